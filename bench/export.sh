#!/bin/sh
# One quantized model in the runtimes that it is exported for, on the same windows of the same token ids: perplexity
# there and here. Called by `make bench-export` after `make smollm2 FORMAT=q2_0 STEPS=195`, and after `make interop`,
# which installs the runtimes (INTEROP_VENV_GGUF=, _EXPORT=, _MLX= name others).
#   MODEL=     the model, MODEL's original as a GGUF in ORIGINAL= (build/smollm2's); EVAL= the text to measure on
#   WINDOWS=   of EVAL (40); the first ones
#   TARGETS=   targets of export; llama.cpp runs all windows (Q2_0 on x86: 25 s each on one core), transformers 4,
#              GPTQModel and mlx, whose kernels for processors are slow, the first
#   THREADS=   threads, of theirs too
BUILD=${BUILD:-build}
MODEL=${MODEL:-$BUILD/smollm2/tuned}
ORIGINAL=${ORIGINAL:-$(ls "$BUILD"/smollm2/*.gguf 2>/dev/null | head -n 1)}
EVAL=${EVAL:-../shared/data/wikitext2/wiki.test.raw}
TARGETS=${TARGETS:-gguf:q2_0 gguf:f32 compressed-tensors gptq mlx}
WINDOWS=${WINDOWS:-40}
export THREADS=${THREADS:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)}
work=$BUILD/export
pvtune=$BUILD/pvtune
say() { echo "bench-export: $*" >&2; }
die() { say "$@"; exit 1; }
[ -f "$MODEL/config.json" ] || die "there is no model $MODEL: make smollm2 FORMAT=q2_0 STEPS=195, or MODEL="
[ -f "$EVAL" ] || die "there is no text $EVAL: EVAL= names one"
rm -rf "$work"
mkdir -p "$work" || exit 1
export CUDA_VISIBLE_DEVICES= TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 OMP_NUM_THREADS="$THREADS"

runtime() { # PACKAGE VENV ARGUMENTS...: a row, or one line that says why there is none
    package=$1 venv=$2
    shift 2
    "$venv/bin/python" -c "import $package" 2>/dev/null || { say "$package is not in $venv: make interop installs it"; return; }
    "$venv/bin/python" bench/export.py "$@" 2>"$work/log" || { tail -n 3 "$work/log" >&2; say "$package did not run $4"; }
}
gguf=${INTEROP_VENV_GGUF:-$BUILD/venv-interop-GGUF}

say "measuring $MODEL here"
"$pvtune" tokenize "$MODEL" -f "$EVAL" --json >"$work/ids.json" || exit 1
"$pvtune" eval "$MODEL" --ppl "$EVAL" --ctx 512 --windows "$WINDOWS" --threads "$THREADS" --log "$work/ours.jsonl" --json >"$work/ours.json" || exit 1
echo "model $MODEL, windows of 512 tokens of $EVAL; off: perplexity, and the first window's logits, root mean square and largest, by the deviation of ours"
printf '%-20s %-24s %6s %4s %14s %10s   %s\n' target runtime MB win perplexity ours off
for target in $TARGETS; do
    result=$work/model-$(echo "$target" | tr : -)
    "$pvtune" export "$MODEL" --to "$target" -o "$result" --quiet >/dev/null || { say "$target does not hold this model"; continue; }
    case $target in
    gguf:f32) runtime llama_cpp "$gguf" "$pvtune" "$MODEL" "$work" "$target" "$result" 4 ;; # no rounding of activations
    gguf:*) runtime llama_cpp "$gguf" "$pvtune" "$MODEL" "$work" "$target" "$result" ;;
    mlx) runtime mlx_lm "${INTEROP_VENV_MLX:-$BUILD/venv-interop-MLX}" "$pvtune" "$MODEL" "$work" "$target" "$result" 1 ;;
    gptq) runtime gptqmodel "${INTEROP_VENV_EXPORT:-$BUILD/venv-interop-EXPORT}" "$pvtune" "$MODEL" "$work" "$target" "$result" 1 ;;
    compressed-tensors)
        runtime compressed_tensors "${INTEROP_VENV_EXPORT:-$BUILD/venv-interop-EXPORT}" "$pvtune" "$MODEL" "$work" "$target" "$result" 4 ;;
    *) say "no runtime is known for $target" ;;
    esac
done
case "$TARGETS" in *gguf:q2_0*)
    [ -f "$ORIGINAL" ] || { say "no ORIGINAL=, so no row of llama.cpp's own Q2_0"; exit 0; }
    "$pvtune" export "$ORIGINAL" --to gguf:f16 -o "$work/original-f16.gguf" --quiet >/dev/null || exit 1
    runtime llama_cpp "$gguf" - - "$work" own "$work/original-f16.gguf" ;;
esac
