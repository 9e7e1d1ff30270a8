#!/bin/sh
# Data-parallel tuning with MPI, on one machine: are the losses of two ranks those of one? Are the bits the
# same from run to run? Does the death of a rank end all, with a sentence, and does the last checkpoint lead
# to the bits of a run without it? Run from the repository's root by `make mpi-test`.
BUILD=${BUILD:-build}
shared=../shared/data
. tests/count.sh

fails() { ! "$@"; }

# a small trained model where there is one, else random weights: then only the mechanism is tried
if [ -f $shared/models/babyllama105.bin ]; then
    teacher=$shared/models/babyllama105.bin text=$shared/text/tinystories_valid.txt ctx=256
    "$BUILD/pvtune" quantize -q "$teacher" --tokenizer $shared/models/babyllama105.tokenizer.model \
        --calib $text --format aqlm:1x6g8 --samples 16 -o "$work/codes" >"$work/log" 2>&1
else
    echo "skipped: $shared/models is not there; random weights instead"
    teacher=$work/random text=README.md ctx=128
    $MAKE --no-print-directory BUILD="$BUILD" "$BUILD/tests/random_model" >"$work/log" 2>&1 &&
        "$BUILD/tests/random_model" "$teacher" --layers 3 --dim 128 --ff 256 --heads 4 --kv-heads 2 \
            --vocab 512 &&
        "$BUILD/pvtune" quantize -q "$teacher" --calib $text --format aqlm:1x6g8 --samples 8 --ctx 128 \
            -o "$work/codes" >"$work/log" 2>&1
fi || { cat "$work/log"; echo "failed: no model to tune"; exit 1; }

# ranks N NAME OPTION...: a run of N ranks into $work/NAME; every rank's process id goes to $work/pid.RANK
ranks() {
    n=$1 into=$work/$2
    shift 2
    set -- tune "$work/codes" --teacher "$teacher" --data "$text" -o "$into" --ctx $ctx --batch 8 --steps 24 \
        --eval-every 6 --save-every 4 --code-lr 0.1 "$@"
    WORK=$work PVTUNE_MPI=$BUILD/pvtune_mpi OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
        OMPI_MCA_rmaps_base_oversubscribe=1 exec mpirun -np "$n" sh -c \
        'rank=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}
         echo $$ >"$WORK/pid.$rank"
         [ "$rank" != "$ODD" ] || set -- "$@" --seed 7
         exec "$PVTUNE_MPI" "$@"' rank "$@" --threads 1 >"$into.out" 2>"$into.err"
}

# refused NAME N INTO OPTION...: a run that must fail
refused() {
    what=$1
    shift
    (ranks "$@")
    status=$?
    check "$what" [ $status != 0 ]
}

# Losses of two logs side by side: is the relative difference of the first at most $3, the largest at most $4?
near() {
    sed -n 's/.*loss \([0-9.e+-]*\),.*/\1/p' "$1" >"$work/a"
    sed -n 's/.*loss \([0-9.e+-]*\),.*/\1/p' "$2" >"$work/b"
    paste "$work/a" "$work/b" | awk -v first="$3" -v all="$4" '
        { d = ($1 - $2) / $2; if (d < 0) d = -d; if (NR == 1) f = d; if (d > most) most = d }
        END { printf "%d losses, apart by %.2g at first, by %.2g at most\n", NR, f, most
              exit !(NR >= 28 && f <= first && most <= all) }' >"$work/near"
    status=$?
    cat "$work/near"
    return $status
}

# gone PID: has it ended, or does it within 5 seconds?
gone() {
    for i in 1 2 3 4 5 6 7 8 9 10; do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.5
    done
    return 1
}

# Kills rank $1 of a run of two once it has made 6 steps. All processes go, the status is not 0, a
# sentence stands there, and no model, but a checkpoint; the run goes on from it to the same bits.
death() {
    run=killed$1
    (ranks 2 $run) &
    job=$!
    until grep -q '^step 6 ' "$work/$run.err" 2>/dev/null || ! kill -0 $job 2>/dev/null; do sleep 0.05; done
    kill -9 "$(cat "$work/pid.$1")"
    wait $job
    status=$?
    check "rank $1 dies: the run fails" [ $status != 0 ]
    check "rank $1 dies: rank 0 is gone" gone "$(cat "$work/pid.0")"
    check "rank $1 dies: rank 1 is gone" gone "$(cat "$work/pid.1")"
    check "rank $1 dies: a sentence" grep -q 'signal 9 (Killed)' "$work/$run.err"
    [ "$1" = 0 ] || check "rank $1 dies: what to do" grep -q 'resume goes on from the last' "$work/$run.err"
    check "rank $1 dies: before the end" fails grep -q '^step 24 ' "$work/$run.err"
    check "rank $1 dies: no model" fails test -e "$work/$run/config.json"
    check "rank $1 dies: a checkpoint" test -s "$work/$run/checkpoint.safetensors"
    refused "rank $1 dies: without --resume refused" 2 $run
    (ranks 2 $run --resume)
    check "rank $1 dies: resumed" grep -q '^resumed after step [48]$' "$work/$run.err"
    check "rank $1 dies: the same bits" cmp "$work/two/model.safetensors" "$work/$run/model.safetensors"
}

(ranks 1 one)
check "one rank" test -e "$work/one/config.json"
(ranks 2 two)
check "two ranks" test -e "$work/two/config.json"
# written with 9 digits; seen: 5e-8 with the trained model, 4e-6 with random weights, whose loss is small
check "two ranks: the losses of one" near "$work/one.err" "$work/two.err" 1e-8 1e-5
cat "$work/near"
check "codes have changed" grep -q ' [1-9][0-9]* codes changed' "$work/two.err"
(ranks 2 again)
check "two ranks: the same bits again" cmp "$work/two/model.safetensors" "$work/again/model.safetensors"
death 1
death 0
ODD=1
export ODD
refused "a rank with another seed fails" 2 odd
check "a rank with another seed: a sentence" grep -q 'rank 1 of 2 differs .* in: seed' "$work/odd.err"
ODD=
refused "3 ranks do not divide 8" 3 three
check "3 ranks do not divide 8: a sentence" grep -q '3 ranks do not divide the batch of 8' "$work/three.err"

finish
