#!/bin/sh
# Does the header compile and link by itself, at every layer, as C99 and as C++17, with pvt_real
# double, from two translation units? As any C++ from 11 on, behind other headers' macros, as static
# functions, without a warning? Does it export nothing but pvt_*? Do the examples and README's program run?
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

# refuses NAME SENTENCE COMMAND...: passes when the command fails and its messages hold the sentence
refuses() {
    name=$1 sentence=$2
    shift 2
    if ! "$@" >"$work/log" 2>&1 && grep -q -- "$sentence" "$work/log"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "failed: $name"
        head -n 20 "$work/log"
    fi
}

finish() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
    exit
}

# two translation units: one holds the implementation, another, in C++, only the interface
cat >"$work/user.cc" <<'EOF'
#include "pvtune.h"
int main() { return pvt_result_text(PVT_OK)[0] == 0; }
EOF
check "the interface in C++" $CC $cpp -I. -c "$work/user.cc" -o "$work/user.o"
check "two translation units" $CC $sanitize "$work/user.o" "$BUILD/pvtune_impl.o" -o "$work/user" $link
check "two translation units run" "$work/user"

# the program is a client of the public interface, and of nothing else
check "the program uses no private name" sh -c \
    "! grep -n 'pvti_\|PVTI_\|PVTUNE_IMPLEMENTATION' examples/pvtune.c examples/*.h"
check "the program behind the interface alone" $CC $c99 -D_GNU_SOURCE $sanitize -c examples/pvtune.c -o "$work/program.o"
check "the program links" $CC $sanitize "$work/program.o" "$BUILD/pvtune_impl.o" -o "$work/program" $link
check "the program runs" "$work/program" --version

if command -v nm >/dev/null 2>&1; then
    nm -g --defined-only "$BUILD/pvtune_impl.o" | awk '{print $NF}' | grep -v '^_*pvt_' |
        grep -vE '^(_?__)?(asan|odr_asan|tsan|ubsan|sanitizer)' >"$work/exported"
    check "exports only pvt_*: $(tr '\n' ' ' <"$work/exported")" test ! -s "$work/exported"
else
    skipped=$((skipped + 1))
    echo "skipped: exported symbols: nm is not installed"
fi

rm -f "$BUILD/minimal" "$BUILD/own_model"
check "make examples" env MAKEFLAGS= ${MAKE:-make} BUILD="$BUILD" examples
check "own_model: tuning lowers the error, the weights outlive a file" "$BUILD/own_model" "$work/own_model.safetensors"
refuses "minimal says how it is used" "usage: minimal MODEL" "$BUILD/minimal"

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

# What follows is compiled for the warnings, and without $CFLAGS: under a sanitizer it would be what the plain
# `make test` has done already.
[ -n "$sanitize" ] && finish

# Warnings and declarations: the front end alone finds them, and it is quick; kernels are optimized
# even at -O0. Layer 0 is linked here, layer 1 by examples/own_model.c below, layer 2 by every test.
for layer in 0 1 2; do
    printf '#define PVTUNE_LAYER %s\n#define PVTUNE_IMPLEMENTATION\n#include "pvtune.h"\nint main(void) { return 0; }\n' \
        $layer >"$work/layer$layer.c"
    check "layer $layer as C99, float" $CC $c99 -fsyntax-only -I. "$work/layer$layer.c"
    check "layer $layer as C99, double" $CC $c99 -DPVTUNE_REAL=double -fsyntax-only -I. "$work/layer$layer.c"
    check "layer $layer as C++17, double" $CC $cpp -DPVTUNE_REAL=double -fsyntax-only -I. "$work/layer$layer.c"
    check "no files, layer $layer as C99, double" \
        $CC $c99 -DPVTUNE_NO_FILES -DPVTUNE_REAL=double -fsyntax-only -I. "$work/layer$layer.c"
    check "no files, layer $layer as C++17, float" $CC $cpp -DPVTUNE_NO_FILES -fsyntax-only -I. "$work/layer$layer.c"
done
# Parts left out: compiled, linked and run at every layer (all of them: layer 0 below, 1 by examples/own_model.c, 2 by
# every test). What a build computes is the same with and without: test_nofiles prints it as a hash.
for layer in 0 1 2; do
    for parts in "-DPVTUNE_NO_FILES" "-DPVTUNE_NO_FAST" "-DPVTUNE_NO_FILES -DPVTUNE_NO_FAST"; do
        check "layer $layer, $parts" $CC $c99 -O0 $parts -I. -c "$work/layer$layer.c" -o "$work/part.o"
        check "layer $layer, $parts, links" $CC "$work/part.o" -o "$work/part" $link
        check "layer $layer, $parts, runs" "$work/part"
        [ "$parts" = -DPVTUNE_NO_FILES ] && mv "$work/part.o" "$work/nofiles.o" # the last is layer 2's: see below
        rm -f "$work/part" "$work/part.o"
    done
    check "layer $layer, no fast, C++17" $CC $cpp -DPVTUNE_NO_FAST -fsyntax-only -I. "$work/layer$layer.c"
    check "layer $layer, no fast, double" $CC $c99 -DPVTUNE_NO_FAST -DPVTUNE_REAL=double -fsyntax-only -I. "$work/layer$layer.c"
    check "layer $layer, no fast, static functions" $CC $c99 -DPVT_API=static -DPVTUNE_NO_FAST -O0 -flto -c -I. \
        "$work/layer$layer.c" -o "$work/static.o"
done
for parts in "-DTEST_WITH_FILES" "" "-DTEST_WITH_FILES -DPVTUNE_NO_FAST" "-DPVTUNE_NO_FAST"; do
    if [ -z "$parts" ]; then
        cp "$BUILD/tests/test_nofiles" "$work/trained"
    else
        check "trained with $parts: compiled" $CC $c99 -D_GNU_SOURCE -O1 -DPVT_API=static $parts \
            tests/test_nofiles.c -o "$work/trained" $link
    fi
    check "trained with ${parts:-no files}: runs" "$work/trained" 3
    kernels=$(sed -n 's/^kernels //p' "$work/log") hash=$(grep '^hash ' "$work/log")
    case $parts in
    -DTEST_WITH_FILES) all=$hash ;;
    *NO_FAST) check "trained with $parts: plain kernels" test "$kernels" = scalar ;;
    esac
    check "trained with ${parts:-no files}: the same bits" test "$hash" = "$all" -a -n "$hash"
    rm -f "$work/trained"
done
check "no threads" $CC $c99 -DPVTUNE_NO_THREADS -fsyntax-only -I. "$work/layer2.c"
check "no mmap" $CC $c99 -DPVTUNE_NO_MMAP -fsyntax-only -I. "$work/layer2.c"
check "layer 0 links" $CC -O0 -I. "$work/layer0.c" -o "$work/layer0" $link

# What other headers define before ours: every one-letter name, and what complex.h, windows.h, X11 and
# Arduino are known for. Afterwards the macros are as they were.
{
    for name in A B C D E F G H J K L M N O P Q R S T U V W X Y Z a b c d e f g h i j k l m n o p q r s t u v w x y z \
        small near far interface IN OUT ERROR CONST VOID BOOL None Bool Status Success Always True False DELETE bit; do
        echo "#define $name struck"
    done
    printf '#define min(a, b) struck\n#define max(a, b) struck\n'
} >"$work/macros.h"
for part in "declarations" "implementation"; do
    printf '#include <complex.h>\n#include "macros.h"\n' >"$work/macros_$part.c"
    [ $part = implementation ] && echo '#define PVTUNE_IMPLEMENTATION' >>"$work/macros_$part.c"
    cat >>"$work/macros_$part.c" <<'EOF'
#include "pvtune.h"
static int struck = 1;
int back(void);
int back(void) { return A + z + small + min(1, 2); }
double complex root(void);
double complex root(void) { return 2.0 * I; }
EOF
done
printf '#include "macros.h"\n#define PVTUNE_IMPLEMENTATION\n#include "pvtune.h"\n' >"$work/macros.cc"

# every C++ that a compiler here knows, and the macros, with every compiler here (PVTUNE_QUICK: this does not
# depend on $CC, and the run with another has done it)
[ -n "$PVTUNE_QUICK" ] || for compiler in "$CC" gcc clang; do
    version=$($compiler --version 2>/dev/null | tail -n +2) || continue
    [ "$compiler" != "$CC" ] && [ "$version" = "$first" ] && continue # cc is gcc
    [ "$compiler" = "$CC" ] && first=$version
    for standard in c++11 c++14 c++17 c++20 c++2b; do
        echo 'int main() { return 0; }' | $compiler -x c++ -std=$standard -fsyntax-only - 2>/dev/null || continue
        check "$compiler, $standard" $compiler -x c++ -std=$standard $warn -fsyntax-only -I. "$work/layer2.c"
    done
    for part in declarations implementation; do
        check "$compiler, other headers' macros, $part" \
            $compiler -std=gnu99 $warn -fsyntax-only -I. "$work/macros_$part.c"
    done
    check "$compiler, other headers' macros, C++" \
        $compiler -x c++ -std=gnu++17 $warn -fsyntax-only -I. "$work/macros.cc"
    for layer in 0 1 2; do
        [ "$compiler" = "$CC" ] || check "$compiler, no files, layer $layer, C99" \
            $compiler $c99 -DPVTUNE_NO_FILES -fsyntax-only -I. "$work/layer$layer.c"
        [ "$compiler" = "$CC" ] || check "$compiler, no files, layer $layer, C++17" \
            $compiler $cpp -DPVTUNE_NO_FILES -fsyntax-only -I. "$work/layer$layer.c"
    done
    # -flto: what is unused is found without waiting for machine code
    for layer in 0 1 2; do
        check "$compiler, static functions, layer $layer" \
            $compiler $c99 -DPVT_API=static -O0 -flto -c -I. "$work/layer$layer.c" -o "$work/static.o"
        check "$compiler, static functions, no files, layer $layer" $compiler $c99 -DPVT_API=static \
            -DPVTUNE_NO_FILES -O0 -flto -c -I. "$work/layer$layer.c" -o "$work/static.o"
    done
    check "$compiler, static functions, C++" \
        $compiler $cpp -DPVT_API=static -O0 -flto -c -I. "$work/layer2.c" -o "$work/static.o"
done

# what cannot work is refused in a sentence, and no more than that
printf '#include <stdio.h>\n#define PVTUNE_IMPLEMENTATION\n#include "pvtune.h"\n' >"$work/behind.c"
printf '#include <stdio.h>\n#include "pvtune.h"\n' >"$work/declared.c"
if $CC -std=c99 -fsyntax-only -I. "$work/behind.c" 2>/dev/null; then # a libc that hides nothing
    passed=$((passed + 1))
else
    refuses "behind libc under -std=c99" "include pvtune.h before libc's headers" \
        $CC -std=c99 -fsyntax-only -I. "$work/behind.c"
    check "behind libc under -std=gnu99" $CC -std=gnu99 -fsyntax-only -I. "$work/behind.c"
fi
refuses "-ffast-math in the implementation" "ffast-math" $CC -std=c99 -ffast-math -fsyntax-only -I. "$work/layer2.c"
if $CC -mfpmath=387 -dM -E -x c /dev/null 2>/dev/null | grep -q '__FLT_EVAL_METHOD__ 2'; then
    refuses "float in 80 bits" "FLT_EVAL_METHOD" $CC -std=c99 -mfpmath=387 -fsyntax-only -I. "$work/layer0.c"
fi
if $CC -march=sapphirerapids -std=gnu17 -dM -E -x c /dev/null 2>/dev/null | grep -q '__FLT_EVAL_METHOD__ 16'; then
    check "float beside halves" $CC -march=sapphirerapids -std=gnu17 -fsyntax-only -I. "$work/layer0.c"
fi
mingw=x86_64-w64-mingw32-gcc-posix
if [ -z "$PVTUNE_QUICK" ] && command -v $mingw >/dev/null 2>&1; then # the two systems' halves have the same functions
    check "Windows" $mingw -std=c99 -mfma -Werror=implicit-function-declaration -fsyntax-only -I. "$work/layer2.c"
fi
check "-ffast-math behind the declarations" $CC -std=c99 -Ofast -ffast-math -fsyntax-only -I. "$work/declared.c"

# part I alone asks the system for nothing about files
if command -v nm >/dev/null 2>&1; then
    files='^_*(f?open|f?close|f?read|f?write|fsync|f?l?stat|fch(mod|own)|flock|fcntl|m(un)?map|rename|remove|unlink'
    files="$files|mkdir|rmdir|opendir|readdir|nanosleep)(64)?(@.*)?\$"
    nm -u "$work/nofiles.o" | awk '{print $NF}' | grep -E "$files" >"$work/calls"
    check "without files nothing is called for them: $(tr '\n' ' ' <"$work/calls")" test ! -s "$work/calls"
    nm -u "$BUILD/pvtune_impl.o" | awk '{print $NF}' | grep -E "$files" >"$work/calls"
    check "with files they are found" test "$(wc -l <"$work/calls")" -gt 15
else
    skipped=$((skipped + 1))
    echo "skipped: calls of a build without files: nm is not installed"
fi

finish
