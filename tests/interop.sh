#!/bin/sh
# Does other software load what we save? Installs transformers, torch (CPU) and aqlm into
# build/venv, saves a small quantized model, and compares logits and token ids. Called by
# `make interop`; not part of `make test`, which needs no network.
BUILD=${BUILD:-build}
venv=$BUILD/venv
work=$BUILD/interop
die() { echo "interop: $*" >&2; exit 1; }
command -v python3 >/dev/null 2>&1 || die "python3 is needed"
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import transformers, torch, aqlm' 2>/dev/null; then
    echo "interop: installing transformers, torch and aqlm into $venv" >&2
    python3 -m venv "$venv" || die "python3 -m venv does not work here"
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'torch==2.5.1' 'transformers==4.49.0' 'aqlm[cpu]==1.1.7' accelerate ||
        die "the packages could not be installed: is there a network?"
fi
rm -rf "$work"
mkdir -p "$work"
"$BUILD/pvtune" demo --quick --quiet --format aqlm:2x8g8 --save "$work" --svg "$work/demo.svg" >/dev/null || exit 1
"$BUILD/pvtune" export "$work/tuned" --to dense -o "$work/dense" --quiet >/dev/null || exit 1
# aqlm 1.1.7 adds up a linear layer from several threads at once without care: one thread is right
NUMBA_NUM_THREADS=1 exec "$venv/bin/python" tests/interop.py "$BUILD/pvtune" "$work"
