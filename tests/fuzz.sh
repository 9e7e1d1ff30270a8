#!/bin/sh
# make fuzz: every target of tests/fuzz_readers.c for its share of TIME seconds. With clang's libFuzzer, which keeps
# what reaches new code in $BUILD/fuzz/corpus-TARGET; without it by the program's own seeded cases under the
# address sanitizer. The last line counts targets; a finding's input lies in $BUILD/fuzz/.
BUILD=${BUILD:-build} TIME=${TIME:-3600} CLANG=${CLANG:-clang} CC=${CC:-cc}
dir=$BUILD/fuzz
mkdir -p "$dir" || exit 1
n=0 passed=0 failed=0
for target in $TARGETS; do n=$((n + 1)); done
share=$((TIME / n > 0 ? TIME / n : 1))
flags="-std=c99 -D_GNU_SOURCE -O1 -g1 -w -fno-sanitize-recover=all -DPVTUNE_NO_FAST -DPVTUNE_IMPLEMENTATION"
if echo 'int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return d && n > 9; }' |
    $CLANG -fsanitize=fuzzer -x c - -o "$dir/can" 2>/dev/null; then
    $CLANG $flags -DPVTUNE_LIBFUZZER -fsanitize=fuzzer,address,undefined -o "$dir/fuzz" tests/fuzz_readers.c -lm -lpthread || exit 1
    engine=libFuzzer
else
    echo "no libFuzzer ($CLANG): by seeded cases"
    $CC $flags -fsanitize=address,undefined -o "$dir/fuzz" tests/fuzz_readers.c -lm -lpthread || exit 1
    engine=own
fi
rm -f "$dir/can"
for target in $TARGETS; do
    log=$dir/$target.log
    if [ $engine = libFuzzer ]; then
        mkdir -p "$dir/corpus-$target"
        PVTUNE_TARGET=$target "$dir/fuzz" -max_total_time=$share -timeout=20 -rss_limit_mb=2000 -max_len=200000 \
            -print_final_stats=1 -artifact_prefix="$dir/$target-" "$dir/corpus-$target" >"$log" 2>&1
    else
        "$dir/fuzz" $share "$(date +%s)" "$target" >"$log" 2>&1
    fi
    if [ $? = 0 ]; then
        passed=$((passed + 1))
        echo "$target: $(grep -E 'executed_units|cases,' "$log" | tail -n 1)"
    else
        failed=$((failed + 1))
        echo "$target: FOUND, see $log"
        grep -E 'ERROR|runtime error|fuzz .*:|Test unit' "$log" | head -n 5
    fi
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
