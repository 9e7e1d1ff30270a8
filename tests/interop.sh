#!/bin/sh
# Does other software load what we save? transformers 4.49 and 5, each with torch (CPU) and aqlm in an
# environment of its own under build/, load models that are saved here; logits and token ids are compared.
# One report, one row per version, model and check. Called by `make interop`; not part of `make test`,
# which needs no network.
#   INTEROP_VENV_4, INTEROP_VENV_5   environments that exist already, instead of those under build/
#   INTEROP_VENV_EXPORT, INTEROP_VENV_MLX, INTEROP_VENV_GGUF   likewise, for what export writes: GPTQModel with
#                                    transformers 5 and compressed-tensors; mlx-lm; llama-cpp-python
#   INTEROP_ONLY=4, 5, gguf or export      one of the four
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

packages() { # NAME VENV TEST PACKAGE...: sets venv
    venv=$2
    if "$venv/bin/python" -c "import $3" 2>/dev/null; then return; fi
    name=$1
    shift 3
    echo "interop: installing $* into $venv" >&2
    python3 -m venv "$venv" || die "python3 -m venv does not work here"
    "$venv/bin/pip" install --quiet --disable-pip-version-check setuptools wheel "$1" || die "$1 could not be installed"
    shift
    # GPTQModel looks for torch while it is built, and needs no kernels for a GPU here
    BUILD_CUDA_EXT=0 "$venv/bin/pip" install --quiet --disable-pip-version-check ${isolation:-} "$@" ||
        echo "interop: $name could not be installed; its rows fail" >&2
}

llama_cpp() { # sets venv
    packages llama.cpp "${INTEROP_VENV_GGUF:-$BUILD/venv-llama-cpp}" 'llama_cpp, gguf, safetensors, numpy' numpy==2.4.6 \
        llama-cpp-python==0.3.36 safetensors==0.8.0 gguf==0.19.0
}

blocks() { # GGUF's block types, against llama.cpp's decoders
    case ${INTEROP_ONLY:-gguf} in gguf) ;; *) return ;; esac
    llama_cpp
    "$venv/bin/python" tests/interop_blocks.py "$BUILD/pvtune" "$work/gguf" 2>"$work/gguf.log" >"$work/gguf.rows" ||
        { tail -3 "$work/gguf.log" >&2; echo "the script on GGUF did not run to its end, see $work/gguf.log FAILED" >>"$work/gguf.rows"; }
    cat "$work/gguf.rows" | tee -a "$report"
}

# ---- the targets of export, each in the runtime itself ----

target() { # PART: rows of one runtime, in $venv
    CUDA_VISIBLE_DEVICES='' TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 \
        "$venv/bin/python" tests/interop_export.py "$BUILD/pvtune" "$work/export" "$1" 2>"$work/export-$1.log" >"$work/export-$1.rows" ||
        { tail -3 "$work/export-$1.log" >&2; echo "$1 the script did not run to its end, see $work/export-$1.log FAILED" >>"$work/export-$1.rows"; }
    grep -E ' ok | FAILED|left out' "$work/export-$1.rows" | tee -a "$report"
}

targets() {
    case ${INTEROP_ONLY:-export} in export) ;; *) return ;; esac
    mkdir -p "$work/export"
    cp "$work/bytes/train.txt" "$work/export"
    isolation=--no-build-isolation
    packages gptqmodel "${INTEROP_VENV_EXPORT:-$BUILD/venv-gptqmodel}" 'gptqmodel, compressed_tensors, transformers' \
        torch==2.15.0 transformers==5.24.0 accelerate==1.15.0 compressed-tensors==0.20.0 sentencepiece==0.2.3 protobuf \
        gptqmodel==7.7.0
    isolation=
    target make
    target transformers
    target gptqmodel
    packages mlx "${INTEROP_VENV_MLX:-$BUILD/venv-mlx}" 'mlx_lm, mlx.core' 'mlx[cpu]==0.32.4' mlx-lm==0.32.2
    target mlx
    llama_cpp
    target llama.cpp
}

rm -rf "$work"
mkdir -p "$work"
"$BUILD/pvtune" demo --quick --quiet --format aqlm:2x8g8 --save "$work/bytes" --svg "$work/demo.svg" >/dev/null || exit 1
interop 4 4.49.0 2.5.1
interop 5 5.24.0 2.15.0
blocks
targets
passed=$(grep -c ' ok ' "$report")
failed=$(grep -c 'FAILED' "$report")
echo "$passed passed, $failed failed" | tee -a "$report"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
