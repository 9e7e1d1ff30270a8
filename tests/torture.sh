#!/bin/sh
# kill -9 at random moments. Of `tune`: killed and resumed until it is done, the result has the bytes of a run that
# nobody disturbed. Of saves over a model: what the next command finds is the old model or the new one, whole. And a
# disk that is full, by a limit on file sizes and, where root may, on a file system of a few blocks. Run from the
# repository's root by `make torture` (100 kills each, ten minutes) or with TORTURE=short (a few, for .ci/run).
PVTUNE=${PVTUNE:-build/pvtune} CC=${CC:-cc}
kills=100 steps=16
[ "$TORTURE" = short ] && kills=6 steps=5
seed=${SEED:-$(date +%s)}
. tests/count.sh
trap 'umount "$work/small" 2>/dev/null; rm -rf "$work"' EXIT
export PVTUNE_NUM_THREADS=1

moment() { # moment SECONDS: waits for a random part of that
    seed=$(((seed * 1103515245 + 12345) % 2147483648))
    sleep "$(awk "BEGIN { printf \"%.4f\", $1 * $((seed / 65536)) / 32768 }")"
}
seconds() { # seconds COMMAND...: how long it takes
    start=$(date +%s.%N)
    ("$@") >/dev/null 2>&1
    awk "BEGIN { print $(date +%s.%N) - $start }"
}

# ---- two models that differ in every number ----
cat >"$work/models.c" <<'END'
#include "pvtune.h"
#include <string.h>
int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        pvt_ctx_desc desc;
        pvt_ctx *ctx;
        pvt_model_config c;
        pvt_model *model;
        pvt_tokenizer *bytes;
        memset(&desc, 0, sizeof desc), memset(&c, 0, sizeof c);
        desc.seed = (uint64_t)i;
        c.layers = 2, c.dim = 64, c.heads = 4, c.ff = 128, c.vocab = 256, c.ctx = 64;
        if (pvt_ctx_create(&desc, &ctx) != PVT_OK || pvt_model_create(ctx, &c, &model) != PVT_OK) return 1;
        if (pvt_tokenizer_create_bytes(ctx, &bytes) != PVT_OK) return 1;
        pvt_model_set_tokenizer(model, bytes);
        if (pvt_model_save(model, argv[i], NULL) != PVT_OK) return 1;
        pvt_model_free(model);
        pvt_ctx_destroy(ctx);
    }
    return 0;
}
END
impl=$(dirname "$PVTUNE")/pvtune_impl.o
$CC -std=c99 -D_GNU_SOURCE -I. -o "$work/models" "$work/models.c" "$impl" $LDFLAGS -lm -lpthread &&
    "$work/models" "$work/a" "$work/b" || { echo "0 passed, 1 failed"; exit 1; }

# ---- saves over a model ----
save() { "$PVTUNE" export "$work/$1" --to dense -o "$2" --overwrite -q >/dev/null; }
same() { for f in config.json model.safetensors tokenizer.json tokenizer_config.json; do cmp -s "$1/$f" "$2/$f" || return 1; done; }
whole() { # whole DIR: loads, and is one of the two
    "$PVTUNE" info "$1" || return 1
    # (killed between its last two calls, a save leaves its folder, empty; the next one takes it)
    [ -z "$(ls -A "$1/.pvtune-save" 2>/dev/null)" ] || { echo "$1/.pvtune-save is left"; return 1; }
    same "$1" "$work/ref-a" || same "$1" "$work/ref-b" || { echo "neither the one nor the other"; return 1; }
}
save a "$work/ref-a" && save b "$work/ref-b" && save a "$work/live" || { echo "0 passed, 1 failed"; exit 1; }
one=$(seconds save b "$work/live")
killed=0 tries=0 changed=0 last=a
while [ $killed -lt $kills ] && [ $tries -lt $((kills * 20)) ]; do
    tries=$((tries + 1))
    next=$([ $last = a ] && echo b || echo a)
    "$PVTUNE" export "$work/$next" --to dense -o "$work/live" --overwrite -q >/dev/null 2>&1 &
    moment "$one"
    kill -9 $! 2>/dev/null
    wait $! 2>/dev/null
    [ $? = 137 ] && killed=$((killed + 1))
    check "a save over a model, killed (the $tries.)" whole "$work/live"
    if same "$work/live" "$work/ref-$next"; then last=$next changed=$((changed + 1)); fi
done
check "enough saves were killed" [ $killed -ge $kills ]
save a "$work/live"
check "nothing is left of them" sh -c "[ \$(ls -A '$work/live' | wc -l) = \$(ls -A '$work/ref-a' | wc -l) ]"
echo "saves: $killed of $tries killed, $changed were the new model"

# ---- tune ----
head -c 20000 README.md >"$work/text"
"$PVTUNE" quantize "$work/a" --calib "$work/text" --format aqlm:1x4g8 --samples 4 --ctx 32 -o "$work/codes" -q >"$work/log" 2>&1 ||
    { cat "$work/log"; echo "0 passed, 1 failed"; exit 1; }
tune() { # tune DIR OPTION...
    into=$1
    shift
    set -- tune "$work/codes" --teacher "$work/a" --data "$work/text" -o "$into" --steps $steps --ctx 32 --batch 2 \
        --save-every 1 --eval-every 4 --eval-windows 2 --no-card -q "$@"
    exec "$PVTUNE" "$@"
}
one=$(seconds tune "$work/undisturbed")
check "tune, undisturbed" "$PVTUNE" info "$work/undisturbed"
killed=0 tries=0 runs=0
while [ $killed -lt $kills ] && [ $tries -lt $((kills * 20)) ]; do
    rm -rf "$work/tuned"
    while :; do
        tries=$((tries + 1))
        (tune "$work/tuned" --resume) >"$work/tune.log" 2>&1 &
        moment "$one"
        [ $killed -ge $kills ] || kill -9 $! 2>/dev/null
        wait $! 2>/dev/null
        status=$?
        [ $status = 137 ] && killed=$((killed + 1)) && continue
        break
    done
    runs=$((runs + 1))
    # (killed between the last save and the end, there is nothing to go on with)
    check "tune goes on" eval '[ $status = 0 ] || grep "holds a finished model" "$work/tune.log" || ! cat "$work/tune.log"'
    check "tune, killed and resumed, to the same bytes" same "$work/tuned" "$work/undisturbed"
done
check "enough runs of tune were killed" [ $killed -ge $kills ]
echo "tune: $killed of $tries killed, $runs runs ended"

# ---- a full disk ----
refused() { # refused COMMAND...: fails with a sentence, and is not ended by a signal
    "$@" 2>"$work/said"
    status=$?
    cat "$work/said"
    [ $status = 1 ] && grep -qiE 'file too large|no space' "$work/said"
}
limited() { (trap '' XFSZ; ulimit -f "$1"; shift; exec "$@"); }
for blocks in 1 4 16 64; do
    check "no file beyond $blocks blocks" refused limited $blocks "$PVTUNE" export "$work/b" --to dense -o "$work/live" --overwrite -q
    check "and the old model is there" same "$work/live" "$work/ref-a"
    check "and nothing else" sh -c "[ \$(ls -A '$work/live' | wc -l) = \$(ls -A '$work/ref-a' | wc -l) ]"
done
mkdir "$work/small"
if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=300k none "$work/small" 2>/dev/null; then
    check "a small disk" save a "$work/small/live"
    check "a full one" refused save b "$work/small/live"
    check "the old model is there" same "$work/small/live" "$work/ref-a"
    check "and nothing else" sh -c "[ \$(ls -A '$work/small/live' | wc -l) = \$(ls -A '$work/ref-a' | wc -l) ]"
    umount "$work/small"
else
    echo "skipped: a file system of a few blocks: no leave to mount one"
fi

finish
