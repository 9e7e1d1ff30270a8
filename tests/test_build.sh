#!/bin/sh
# Does the header compile and link by itself, at every layer, as C99 and as C++17, with pvt_real
# double, from two translation units? Does it export nothing but pvt_*? Does README's program run?
# Run from the repository's root by `make test`; PVTUNE_STRICT=1 makes every warning an error.
CC=${CC:-cc}
BUILD=${BUILD:-build}
PVTUNE=${PVTUNE:-$BUILD/pvtune}
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0
warn="-Wall -Wextra -pedantic -Wconversion -Wno-sign-conversion -Wshadow"
[ -n "$PVTUNE_STRICT" ] && warn="$warn -Werror"
c99="-std=c99 $warn -Wstrict-prototypes"
cpp="-x c++ -std=c++17 $warn"
link="$LDFLAGS -lm -lpthread"
sanitize=$(printf '%s\n' $CFLAGS | grep -- '^-fsanitize' | tr '\n' ' ')

# check NAME COMMAND...: passes when the command succeeds and, unless it is a program's run, is silent
check() {
    name=$1
    shift
    if "$@" >"$work/log" 2>&1 && ! grep -q 'warning:' "$work/log"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "failed: $name"
        head -n 20 "$work/log"
    fi
}

# Warnings and declarations: the front end alone finds them, and it is quick; kernels are optimized
# even at -O0. Layer 0 is linked here, layer 1 by examples/own_model.c below, layer 2 by every test.
for layer in 0 1 2; do
    printf '#define PVTUNE_LAYER %s\n#define PVTUNE_IMPLEMENTATION\n#include "pvtune.h"\nint main(void) { return 0; }\n' \
        $layer >"$work/layer$layer.c"
    for real in float double; do
        check "layer $layer as C99, $real" $CC $c99 -DPVTUNE_REAL=$real -fsyntax-only -I. "$work/layer$layer.c"
        check "layer $layer as C++17, $real" $CC $cpp -DPVTUNE_REAL=$real -fsyntax-only -I. "$work/layer$layer.c"
    done
done
check "no threads" $CC $c99 -DPVTUNE_NO_THREADS -fsyntax-only -I. "$work/layer2.c"
check "layer 0 links" $CC -O0 -I. "$work/layer0.c" -o "$work/layer0" $link

# two translation units: one holds the implementation, another, in C++, only the interface
cat >"$work/user.cc" <<'EOF'
#include "pvtune.h"
int main() { return pvt_result_text(PVT_OK)[0] == 0; }
EOF
check "the interface in C++" $CC $cpp -I. -c "$work/user.cc" -o "$work/user.o"
check "two translation units" $CC $sanitize "$work/user.o" "$BUILD/pvtune_impl.o" -o "$work/user" $link
check "two translation units run" "$work/user"

if command -v nm >/dev/null 2>&1; then
    nm -g --defined-only "$BUILD/pvtune_impl.o" | awk '{print $NF}' | grep -v '^_*pvt_' |
        grep -vE '^(_?__)?(asan|odr_asan|tsan|ubsan|sanitizer)' >"$work/exported"
    check "exports only pvt_*: $(tr '\n' ' ' <"$work/exported")" test ! -s "$work/exported"
else
    skipped=$((skipped + 1))
    echo "skipped: exported symbols: nm is not installed"
fi

check "examples/minimal.c" $CC $c99 -D_GNU_SOURCE $sanitize -I. examples/minimal.c "$BUILD/pvtune_impl.o" -o "$work/minimal" $link
check "examples/own_model.c" $CC $c99 -D_GNU_SOURCE -DPVT_API=static -Wno-unused-function -O2 -I. examples/own_model.c -o "$work/own_model" $link
check "own_model: tuning lowers the error" "$work/own_model"

# README's program, as it stands there, run on the demo's model; here it links the implementation
# that is compiled already, and only with PVTUNE_STRICT compiles its own
sed -n '/^```c$/,/^```$/p' README.md | sed '/^```/d' >"$work/readme.c"
implementation=$BUILD/pvtune_impl.o
if [ -n "$PVTUNE_STRICT" ]; then implementation=; else sed -i.whole '/define PVTUNE_IMPLEMENTATION/d' "$work/readme.c"; fi
check "README's program" $CC $c99 -D_GNU_SOURCE $sanitize -I. -include stdio.h "$work/readme.c" $implementation -o "$work/readme" $link
check "a small model" "$PVTUNE" demo --quick --train-steps 2 --steps 1 --quiet --svg "$work/demo.svg" --save "$work/demo"
(cd "$work" && mv demo/original model && cp demo/train.txt text.txt)
# (it frees nothing before it ends)
check "README's program runs" sh -c "cd '$work' && ASAN_OPTIONS=detect_leaks=0 ./readme"
check "README's program saved a model" "$PVTUNE" info "$work/tuned" --quiet

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
