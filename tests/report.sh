#!/bin/sh
# Adds up the logs of `make test`: per test its summary line, what failed before that, and last of
# all one line of counts for everything. A test that ended without a summary counts as one failure.
passed=0 failed=0 skipped=0
for log in "$@"; do
    name=$(basename "$log" .log)
    if [ ! -f "$log" ]; then
        echo "$name: did not compile"
        failed=$((failed + 1))
        continue
    fi
    status=$(sed -n '$s/^exit status //p' "$log")
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1)
    if [ -z "$line" ]; then
        echo "$name: ended without a summary (exit status $status); its last lines:"
        tail -n 20 "$log" | sed 's/^/    /'
        failed=$((failed + 1))
        continue
    fi
    echo "$name: $line"
    grep -E '^skipped: ' "$log" | sed 's/^/    /'
    p=${line%% passed*}
    f=${line#*passed, } f=${f%% failed*}
    s=0
    case $line in *skipped*) s=${line#*failed, } s=${s%% skipped*} ;; esac
    if [ "$f" != 0 ] || [ "$status" != 0 ]; then
        grep -vE '^(exit status|skipped:)' "$log" | tail -n 60 | sed 's/^/    /'
        if [ "$f" = 0 ]; then # the counts are clean, the exit is not: a sanitizer or a crash at the end
            echo "    exit status $status"
            f=1
        fi
    fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" != 0 ]
