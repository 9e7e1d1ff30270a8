#!/bin/sh
# Memory of a model of TinyLlama-1.1B's shape: what `info --plan tune` says before and what `tune` then takes, and
# what `quantize` takes. Weights are random, so losses mean nothing; the first tuning steps' time does not either.
# Called by `make tinyllama`; LAYERS= of the model that is quantized (its memory hardly depends on them, its
# time does), TUNE= further options of tune. About 5 GB of disk in build/tinyllama, which is removed at the end.
BUILD=${BUILD:-build}
LAYERS=${LAYERS:-1}
TUNE=${TUNE:---batch 2 --ctx 512}
work=$BUILD/tinyllama
pvtune=$BUILD/pvtune
say() { echo "tinyllama: $*" >&2; }
rm -rf "$work" && mkdir -p "$work" || exit 1
trap 'rm -rf "$work"' EXIT INT TERM

# the most anonymous memory (of which mapped files are no part) that a process held, in MiB
measured() { # measured COMMAND...
    "$@" >"$work/out" 2>"$work/err" &
    pid=$! most=0
    while kill -0 $pid 2>/dev/null; do
        now=$(sed -n 's/^RssAnon:[^0-9]*\([0-9]*\).*/\1/p' /proc/$pid/status 2>/dev/null)
        [ -n "$now" ] && [ "$now" -gt $most ] && most=$now
        sleep 0.2
    done
    wait $pid || { cat "$work/err" >&2; exit 1; }
    echo $((most / 1024))
}
field() { sed -n "s/.*\"$1\":\([-0-9.e]*\).*/\1/p" "$work/out"; }

"$pvtune" demo --text-only --save "$work/demo" --quiet >/dev/null || exit 1
say "writing a model of 22 layers of 2048 with random weights, and the same in codes"
"$BUILD/tests/random_model" "$work/original" || exit 1
"$BUILD/tests/random_model" "$work/codes" --format aqlm:2x8g8 || exit 1
say "planning, then two tuning steps: $TUNE"
plan=$("$pvtune" info "$work/codes" --plan tune --teacher "$work/original" --data "$work/demo/train.txt" $TUNE --json |
    sed -n 's/.*"plan_bytes":\([0-9]*\).*/\1/p')
rss=$(measured "$pvtune" tune "$work/codes" --teacher "$work/original" --data "$work/demo/train.txt" $TUNE --steps 2 \
    -o "$work/tuned" --json --quiet) || exit 1
awk -v plan="$plan" -v peak="$(field peak_bytes)" -v rss="$rss" -v s="$(field seconds)" 'BEGIN {
    printf "tune      planned %7.0f MiB, took %7.0f MiB (plan %+.1f %%), resident %7.0f MiB beside mapped files, %4.0f s for two steps\n",
        plan / 1048576, peak / 1048576, 100 * (plan / peak - 1), rss, s }'
rm -rf "$work/codes" "$work/original" "$work/tuned"
say "quantizing $LAYERS layers of the same shape, 64 sequences of 512 tokens"
"$BUILD/tests/random_model" "$work/short" --layers "$LAYERS" || exit 1
rss=$(measured "$pvtune" quantize "$work/short" --calib "$work/demo/train.txt" --samples 64 --ctx 512 -o "$work/quantized" --json --quiet) || exit 1
awk -v peak="$(field peak_bytes)" -v rss="$rss" -v n="$LAYERS" 'BEGIN {
    printf "quantize  %d layers: %.0f MiB, resident %.0f MiB beside mapped files; every further layer leaves 12 MiB of codes\n", n, peak / 1048576, rss }'
