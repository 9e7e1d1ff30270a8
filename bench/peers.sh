#!/bin/sh
# The benches beside other software (torch, transformers, aqlm, faiss, llama.cpp; OpenBLAS where the system has it),
# installed with pip into build/venv, 6 GB; llama.cpp is built there, which takes some minutes, and runs SmolLM2 as
# `make smollm2` fetched it. Called by `make bench-peers`; PEERS= further options of bench/peers.py.
BUILD=${BUILD:-build}
venv=$BUILD/venv
say() { echo "bench-peers: $*" >&2; }
if command -v python3 >/dev/null 2>&1; then
    if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import transformers, torch, aqlm, faiss' 2>/dev/null; then
        say "installing torch, transformers, aqlm and faiss into $venv"
        { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check 'torch==2.5.1' 'transformers==4.49.0' \
            'aqlm[cpu]==1.1.7' accelerate faiss-cpu; } || say "not everything could be installed: is there a network?"
    fi
    if [ -x "$venv/bin/pip" ] && ! "$venv/bin/python" -c 'import llama_cpp' 2>/dev/null; then
        say "building llama.cpp into $venv"
        CMAKE_ARGS=-DGGML_NATIVE=ON "$venv/bin/pip" install --quiet --disable-pip-version-check 'llama-cpp-python==0.3.36' ||
            say "llama.cpp could not be built: its rows are left out"
    fi
fi
if [ -x "$venv/bin/python" ]; then
    exec "$venv/bin/python" bench/peers.py "$BUILD" $PEERS
fi
say "there is no python3 with venv, so no peers: ours alone"
exec make --no-print-directory bench BUILD="$BUILD"
