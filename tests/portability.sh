#!/bin/sh
# The same bits on other processors and systems: builds the digest (tests/test_digest.c) and some of the other tests
# for each target, runs them under an emulator, and ends with a table. By `make portability`; PORTABILITY=NAME,… takes
# some targets only, TESTS= other programs than the digest. What is missing is installed with apt-get where
# that is possible, and skipped with a line where it is not. About ten minutes a target: qemu computes a fused
# multiply-add in software.
BUILD=${BUILD:-build}/portability
TESTS=${TESTS-test_ops test_gemm}
CFLAGS=${CFLAGS:--O2}
root=$PWD
mkdir -p "$BUILD" || exit 1
BUILD=$(cd "$BUILD" && pwd)
table=$BUILD/table
: >"$table"
warn="-Wall -Wextra -pedantic -Wconversion -Wno-sign-conversion -Wshadow -Wstrict-prototypes"
failed=0

have() { command -v "$1" >/dev/null 2>&1; }
install() { # install PACKAGE...: where it may
    have apt-get || return 1
    sudo=
    [ "$(id -u)" = 0 ] || { sudo -n true 2>/dev/null && sudo=sudo; } || return 1
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1
}
row() { printf '%-16s %-34s %-22s %s\n' "$@" | tee -a "$table"; }
wanted() { case ",${PORTABILITY:-$1}," in *",$1,"*) return 0 ;; esac; return 1; }

# run NAME COMMAND...: a test's output to its log; leaves passed, bad
run() {
    log=$BUILD/$name/$1.log
    shift
    "$@" >"$log" 2>&1 </dev/null
    echo "exit status $?" >>"$log"
    counts=$(grep -aE '^[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1 | tr -d '\r')
    if [ -z "$counts" ] || ! grep -q '^exit status 0' "$log"; then
        bad=$((bad + 1))
        echo "$name: failed: $log" && tail -n 5 "$log"
    fi
    passed=$((passed + ${counts%% passed*} + 0))
}

# target NAME COMPILER FLAGS LINK RUNNER PACKAGES: `compile` warns of nothing, `digest` and TESTS pass
target() {
    name=$1 cc=$2 flags=$3 link=$4 runner=$5 packages=$6
    wanted "$name" || return
    for need in "${cc%% *}" ${runner:+"${runner%% *}"}; do
        have "$need" || [ -x "$need" ] && continue
        install $packages
        have "$need" || [ -x "$need" ] || { row "$name" "skipped: no $need" "" ""; return; }
    done
    mkdir -p "$BUILD/$name"
    compile="$cc -std=c99 -D_GNU_SOURCE $warn $CFLAGS $flags -I$root"
    printf '#define PVTUNE_IMPLEMENTATION\n#include "pvtune.h"\n' >"$BUILD/$name/impl.c"
    version=$($cc --version 2>/dev/null | head -n 1 | cut -c1-34)
    if ! $compile -c "$BUILD/$name/impl.c" -o "$BUILD/$name/impl.o" 2>"$BUILD/$name/log" ||
        ! $compile tests/test_digest.c "$BUILD/$name/impl.o" -o "$BUILD/$name/test_digest$exe" $link 2>>"$BUILD/$name/log"; then
        failed=$((failed + 1))
        grep -m 5 error "$BUILD/$name/log"
        row "$name" "$version" "does not compile" ""
        return
    fi
    grep -q 'warning:' "$BUILD/$name/log" && warned=", warnings" || warned=
    passed=0 bad=0
    rm -rf "$BUILD/$name/files" && mkdir "$BUILD/$name/files"
    cd "$BUILD/$name/files" || exit 1
    run test_digest $runner ../test_digest$exe "${where:-.}"
    cd "$root" || exit 1
    rm -rf "$BUILD/$name/files"
    equal=no
    [ $bad = 0 ] && equal=yes
    for test in $TESTS; do
        if grep -q 'define PVTUNE_IMPLEMENTATION' "tests/$test.c"; then how="-DPVT_API=static -Wno-unused-function"; else how=$BUILD/$name/impl.o; fi
        if $compile "tests/$test.c" $how -o "$BUILD/$name/$test$exe" $link 2>"$BUILD/$name/log"; then
            run "$test" $runner "$BUILD/$name/$test$exe"
        else
            bad=$((bad + 1))
            echo "$name: $test does not compile" && grep -m 3 error "$BUILD/$name/log"
        fi
    done
    [ $bad = 0 ] || failed=$((failed + 1))
    row "$name" "$version" "$passed passed, $bad bad$warned" "digest equal: $equal"
}

static="-static -lm -lpthread"
exe=
target native "${CC:-cc}" "" "-lm -lpthread" "" ""
target aarch64 aarch64-linux-gnu-gcc "" "$static" qemu-aarch64-static "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static"
# big-endian; with -std=c99 gcc computes float in double there, which pvtune.h refuses
target s390x s390x-linux-gnu-gcc -fexcess-precision=fast "$static" qemu-s390x-static "gcc-s390x-linux-gnu libc6-dev-s390x-cross qemu-user-static"
target i386 i686-linux-gnu-gcc "-msse2 -mfpmath=sse" "$static" "" "gcc-i686-linux-gnu libc6-dev-i386-cross"
target musl musl-gcc "" "$static" "" musl-tools
target riscv64 riscv64-linux-gnu-gcc "" "$static" qemu-riscv64-static "gcc-riscv64-linux-gnu libc6-dev-riscv64-cross qemu-user-static"
target armhf arm-linux-gnueabihf-gcc "-mfpu=vfpv4" "$static" qemu-arm-static "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross qemu-user-static"
exe=.exe
export WINEDEBUG=-all WINEPREFIX="$BUILD/wine"
wine=$(command -v wine64 || ls /usr/lib/wine/wine64 2>/dev/null || echo wine64)
where=Z:$BUILD/windows/files # an absolute path, as wine has it
target windows x86_64-w64-mingw32-gcc-posix -mfma -static "$wine" "gcc-mingw-w64-x86-64-posix wine64"
exe=.js where=
# files are in memory, as in a browser; the stack's option had another name once
emcc="-sALLOW_MEMORY_GROWTH -sEXIT_RUNTIME -sSTACK_SIZE=4MB -lm"
emcc --version 2>/dev/null | grep -q '^emcc.* 3\.1\.[0-9] ' && emcc="-sALLOW_MEMORY_GROWTH -sEXIT_RUNTIME -sTOTAL_STACK=4MB -lm"
[ -d /usr/share/nodejs/acorn ] && export NODE_PATH="$NODE_PATH:/usr/share/nodejs" # where another node does not look
node=node # an old emscripten fetches its module by URL where node can fetch
node --no-experimental-fetch -e 0 2>/dev/null && node="node --no-experimental-fetch"
target wasm emcc "-DPVTUNE_NO_THREADS -DPVTUNE_NO_MMAP" "$emcc" "$node" "emscripten node-acorn nodejs"
target wasm-threads emcc "-pthread -DPVTUNE_NO_MMAP" "-pthread -sPTHREAD_POOL_SIZE=8 -sINITIAL_MEMORY=256MB ${emcc#-sALLOW_MEMORY_GROWTH}" "$node" "emscripten node-acorn nodejs"

# x87 computes in 80 bits: refused in a sentence
if wanted i386 && have i686-linux-gnu-gcc; then
    if i686-linux-gnu-gcc -std=c99 -mfpmath=387 -fsyntax-only -I. "$BUILD/i386/impl.c" 2>&1 | grep -q 'FLT_EVAL_METHOD'; then
        row "i386, x87" "" "refused in a sentence" ""
    else
        failed=$((failed + 1))
        row "i386, x87" "" "not refused" ""
    fi
fi

echo && cat "$table"
[ $failed = 0 ]
