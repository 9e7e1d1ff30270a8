#!/bin/sh
# Does other software load what we save? transformers 4.49 and 5, each with torch (CPU) and aqlm in an
# environment of its own under build/, load models that are saved here; logits and token ids are compared.
# One report, one row per version, model and check. Called by `make interop`; not part of `make test`,
# which needs no network.
#   INTEROP_VENV_4, INTEROP_VENV_5   environments that exist already, instead of those under build/
#   INTEROP_VENV_GGUF                likewise, with llama-cpp-python, gguf, safetensors
#   INTEROP_ONLY=4, 5 or gguf        one of the three
BUILD=${BUILD:-build}
work=$BUILD/interop
report=$work/report.txt
die() { echo "interop: $*" >&2; exit 1; }

environment() { # MAJOR TRANSFORMERS TORCH: sets venv
    eval "venv=\${INTEROP_VENV_$1:-}"
    if [ -n "$venv" ]; then return; fi
    venv=$BUILD/venv-transformers-$2
    if "$venv/bin/python" -c 'import transformers, torch, aqlm, sentencepiece' 2>/dev/null; then return; fi
    command -v python3 >/dev/null 2>&1 || die "python3 is needed"
    echo "interop: installing transformers $2, torch $3 and aqlm into $venv" >&2
    python3 -m venv "$venv" || die "python3 -m venv does not work here"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "torch==$3" "transformers==$2" 'aqlm[cpu]==1.1.7' \
        'accelerate==1.15.0' 'sentencepiece==0.2.3' protobuf || die "the packages could not be installed: is there a network?"
}

interop() { # MAJOR TRANSFORMERS TORCH
    case ${INTEROP_ONLY:-$1} in $1) ;; *) return ;; esac
    environment "$@"
    mkdir -p "$work/$1"
    cp -r "$work/bytes" "$work/$1"
    # aqlm 1.1.7 adds up a linear layer from several threads at once without care: one thread is right
    NUMBA_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 \
        "$venv/bin/python" tests/interop.py "$BUILD/pvtune" "$work/$1" 2>"$work/$1.log" >"$work/$1.rows" ||
        { tail -3 "$work/$1.log" >&2; echo "$2 the script did not run to its end, see $work/$1.log FAILED" >>"$work/$1.rows"; }
    cat "$work/$1.rows" | tee -a "$report"
}

blocks() { # GGUF's block types, against llama.cpp's decoders
    case ${INTEROP_ONLY:-gguf} in gguf) ;; *) return ;; esac
    venv=${INTEROP_VENV_GGUF:-$BUILD/venv-llama-cpp}
    if ! "$venv/bin/python" -c 'import llama_cpp, gguf, safetensors, numpy' 2>/dev/null; then
        echo "interop: building llama.cpp into $venv, some minutes" >&2
        python3 -m venv "$venv" || die "python3 -m venv does not work here"
        "$venv/bin/pip" install --quiet --disable-pip-version-check 'llama-cpp-python==0.3.36' 'gguf==0.19.0' \
            'safetensors==0.8.0' 'numpy==2.4.6' || die "llama-cpp-python could not be built: a C++ compiler and a network are needed"
    fi
    "$venv/bin/python" tests/interop_blocks.py "$BUILD/pvtune" "$work/gguf" 2>"$work/gguf.log" >"$work/gguf.rows" ||
        { tail -3 "$work/gguf.log" >&2; echo "the script on GGUF did not run to its end, see $work/gguf.log FAILED" >>"$work/gguf.rows"; }
    cat "$work/gguf.rows" | tee -a "$report"
}

rm -rf "$work"
mkdir -p "$work"
"$BUILD/pvtune" demo --quick --quiet --format aqlm:2x8g8 --save "$work/bytes" --svg "$work/demo.svg" >/dev/null || exit 1
interop 4 4.49.0 2.5.1
interop 5 5.24.0 2.15.0
blocks
passed=$(grep -c ' ok ' "$report")
failed=$(grep -c 'FAILED' "$report")
echo "$passed passed, $failed failed" | tee -a "$report"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
