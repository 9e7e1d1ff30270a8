#!/bin/sh
# The same bits on other processors and systems: for each target the digest (tests/test_digest.c) and other tests are
# built and run, under an emulator where they are another processor's, and a table says what came out. By `make
# portability`, 12 minutes on two cores that have nothing else to do, the digest under qemu a minute and a half of each
# target's five: it computes a fused multiply-add in software. PORTABILITY=NAME,… takes some targets only, TESTS= other
# programs.
# What is missing is installed with apt-get where that is possible, and skipped with a line where it is not.
BUILD=${BUILD:-build}/portability
CFLAGS=${CFLAGS:--O2}
lanes=${JOBS:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)}
root=$PWD
mkdir -p "$BUILD" || exit 1
BUILD=$(cd "$BUILD" && pwd)
rm -f "$BUILD"/row-* "$BUILD"/failed-*
warn="-Wall -Wextra -pedantic -Wconversion -Wno-sign-conversion -Wshadow -Wstrict-prototypes"
export PVTUNE_QUICK=1 # what does not depend on the compiler and the system is `make test`'s

# What runs where. test_faults and test_fork ask for fork; test_power and test_failures lose and refuse the same calls on a
# disk in memory. test_gemm is where there are several sets of kernels to compare. test_formats takes four minutes under an
# emulator. What includes the implementation is compiled with -O1 for it: in half the time.
files="test_ops test_files test_system test_power test_failures"
everything="$files test_faults test_fork"

have() { command -v "$1" >/dev/null 2>&1; }
there() { have "$1" || [ -x "$1" ]; }
install() { # install PACKAGE...: where it may; one lane at a time
    have apt-get || return 1
    sudo=
    [ "$(id -u)" = 0 ] || { sudo -n true 2>/dev/null && sudo=sudo; } || return 1
    while ! mkdir "$BUILD/installing" 2>/dev/null; do sleep 1; done
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1
    rmdir "$BUILD/installing"
}
row() { printf '%-14s %-34s %-36s %s\n' "$@" | tee -a "$BUILD/row-$number"; }
bad() { echo "$*" | tee -a "$BUILD/failed-$number"; }

number=0
# mine NAME: a target that is asked for, and this lane's
mine() {
    name=$1
    number=$((number + 1))
    case ",${PORTABILITY:-$1}," in *",$1,"*) ;; *) return 1 ;; esac
    [ $((number % lanes)) = "$lane" ]
}

# run NAME COMMAND...: a test's output to its log; adds to checks and programs
run() {
    log=$BUILD/$name/$1.log
    shift
    "$@" >"$log" 2>&1 </dev/null
    echo "exit status $?" >>"$log"
    counts=$(grep -aE '^[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1 | tr -d '\r')
    if [ -z "$counts" ] || ! grep -q '^exit status 0' "$log"; then
        bad "$name: failed: $log" && tail -n 5 "$log"
        return 1
    fi
    checks=$((checks + ${counts%% passed*} + 0)) programs=$((programs + 1))
}

# build OUT COMMAND...: compiles; warnings are counted
build() {
    out=$1
    shift
    "$@" -o "$BUILD/$name/$out" >"$BUILD/$name/$out.build" 2>&1
    built=$?
    grep -q 'warning:' "$BUILD/$name/$out.build" && warned=", warnings"
    [ $built = 0 ] || { bad "$name: $out does not compile" && grep -m 5 error "$BUILD/$name/$out.build"; }
    return $built
}

# target NAME COMPILER FLAGS LINK RUNNER PACKAGES TESTS
target() {
    mine "$1" || return
    cc=$2 flags=$3 link=$4 runner=$5 packages=$6 tests=${TESTS-$7}
    for need in "${cc%% *}" ${runner:+"${runner%% *}"}; do
        there "$need" || install $packages
        there "$need" || { row "$name" "skipped: no $need" "" ""; return; }
    done
    rm -rf "$BUILD/$name" && mkdir -p "$BUILD/$name/files" "$BUILD/$name/tmp"
    compile="$cc -std=c99 -D_GNU_SOURCE $warn $CFLAGS $flags -I$root"
    printf '#define PVTUNE_IMPLEMENTATION\n#include "pvtune.h"\n' >"$BUILD/$name/impl.c"
    version=$($cc --version 2>/dev/null | head -n 1 | cut -c1-34)
    checks=0 programs=0 tried=1 warned= equal=no seconds=$(date +%s)
    build impl.o $compile -c "$BUILD/$name/impl.c" || { row "$name" "$version" "does not compile" ""; return; }
    cd "$BUILD/$name/files" || exit 1
    build test_digest$exe $compile "$root/tests/test_digest.c" ../impl.o $link &&
        run test_digest $runner ../test_digest$exe "${where:-.}" && equal="yes, $(grep -ac '^digest' "$log") pairs"
    cd "$root" || exit 1
    for test in $tests; do
        tried=$((tried + 1))
        if grep -q 'define PVTUNE_IMPLEMENTATION' "tests/$test.c"; then how="-O1 -DPVT_API=static -Wno-unused-function"; else how=$BUILD/$name/impl.o; fi
        build "$test$exe" $compile "tests/$test.c" $how $link &&
            TMPDIR=$BUILD/$name/tmp run "$test" $runner "$BUILD/$name/$test$exe"
    done
    [ "$after" ] && $after
    rm -rf "$BUILD/$name/files" "$BUILD/$name/tmp" "$BUILD/$name"/test_*[!gd]
    row "$name" "$version" "$checks checks, $programs of $tried programs$warned" "digest equal: $equal ($(($(date +%s) - seconds)) s)"
}

# The program: a short demo draws the chart that it draws here, in a directory whose name is not ASCII.
program() {
    here=$BUILD/$name/files tried=$((tried + 1))
    # (of what mingw's own isfinite does to a double it would warn)
    build pvtune$exe $compile -Wno-float-conversion examples/pvtune.c "$BUILD/$name/impl.o" $link || return
    build pvtune-here ${CC:-cc} -std=c99 -D_GNU_SOURCE $CFLAGS "$BUILD/$name/impl.c" examples/pvtune.c -I. -lm -lpthread || return
    (cd "$here" && "$BUILD/$name/pvtune-here" demo --quick -q --svg here.svg >log 2>&1 </dev/null &&
        $runner "$BUILD/$name/pvtune$exe" demo --quick -q --svg there.svg --save 'Mödel 模型' >log 2>&1 </dev/null &&
        $runner "$BUILD/$name/pvtune$exe" info --json 'Mödel 模型\tuned' >info 2>>log && grep -q bits_per_weight info &&
        sed 's/there.svg/here.svg/' there.svg | cmp - here.svg) || { bad "$name: the program"; tail -n 5 "$here/log"; return; }
    programs=$((programs + 1)) checks=$((checks + 3))
}

# What no compiler here can run is compiled: syntax NAME NOTE COMMAND...
syntax() {
    mine "$1" || return
    note=$2
    shift 2
    have clang || { row "$name" "skipped: no clang" "" ""; return; }
    printf '#define PVTUNE_IMPLEMENTATION\n#include "pvtune.h"\n' >"$BUILD/impl-$name.c"
    if "$@" -std=c99 $warn -Werror -fsyntax-only -I. "$BUILD/impl-$name.c" >"$BUILD/$name.log" 2>&1; then
        row "$name" "$(clang --version | head -n 1 | cut -c1-34)" "compiles without a warning" "$note"
    else
        row "$name" "" "does not compile" ""
        bad "$name: $BUILD/$name.log" && grep -m 5 'error' "$BUILD/$name.log"
    fi
}

targets() {
    static="-static -lm -lpthread" exe= where= after=
    target native "${CC:-cc}" "" "-lm -lpthread" "" "" "test_fork"
    target aarch64 aarch64-linux-gnu-gcc "" "$static" qemu-aarch64-static "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static" "$everything test_gemm test_ops_bits test_tokens"
    # big-endian; with -std=c99 gcc computes float in double there, which pvtune.h refuses
    target s390x s390x-linux-gnu-gcc -fexcess-precision=fast "$static" qemu-s390x-static "gcc-s390x-linux-gnu libc6-dev-s390x-cross qemu-user-static" "$everything"
    target i386 i686-linux-gnu-gcc "-msse2 -mfpmath=sse" "$static" "" "gcc-i686-linux-gnu libc6-dev-i386-cross" "$everything test_gemm test_formats"
    target musl musl-gcc "" "$static" "" musl-tools "$everything test_formats"
    target riscv64 riscv64-linux-gnu-gcc "" "$static" qemu-riscv64-static "gcc-riscv64-linux-gnu libc6-dev-riscv64-cross qemu-user-static" "$everything"
    target armhf arm-linux-gnueabihf-gcc "-mfpu=vfpv4" "$static" qemu-arm-static "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross qemu-user-static" "$everything"
    exe=.exe
    export WINEDEBUG=-all WINEPREFIX="$BUILD/wine"
    wine=$(command -v wine64 || ls /usr/lib/wine/wine64 2>/dev/null || echo wine64)
    where=Z:$BUILD/windows/files # an absolute path, as wine has it
    after=program
    target windows x86_64-w64-mingw32-gcc-posix -mfma -static "$wine" "gcc-mingw-w64-x86-64-posix wine64" "$files test_gemm"
    after=
    exe=.js where=
    # files are in memory, as in a browser; the stack's option had another name once
    emcc="-sALLOW_MEMORY_GROWTH -sEXIT_RUNTIME -sSTACK_SIZE=4MB -lm"
    emcc --version 2>/dev/null | grep -q '^emcc.* 3\.1\.[0-9] ' && emcc="-sALLOW_MEMORY_GROWTH -sEXIT_RUNTIME -sTOTAL_STACK=4MB -lm"
    [ -d /usr/share/nodejs/acorn ] && export NODE_PATH="$NODE_PATH:/usr/share/nodejs" # where another node does not look
    node=node # an old emscripten fetches its module by URL where node can fetch
    node --no-experimental-fetch -e 0 2>/dev/null && node="node --no-experimental-fetch"
    target wasm emcc "-DPVTUNE_NO_THREADS -DPVTUNE_NO_MMAP" "$emcc" "$node" "emscripten node-acorn nodejs" "test_ops"
    target wasm-threads emcc "-pthread -DPVTUNE_NO_MMAP" "-pthread -sPTHREAD_POOL_SIZE=8 -sINITIAL_MEMORY=256MB ${emcc#-sALLOW_MEMORY_GROWTH}" "$node" "emscripten node-acorn nodejs" "test_ops"

    # Compiled only. Apple's headers are not to be had: musl's stand for them. mingw's headers know gcc's words alone.
    mingw=/usr/x86_64-w64-mingw32/include
    syntax clang-mingw "headers: mingw-w64" clang --target=x86_64-w64-mingw32 -mfma
    syntax windows-arm "headers: mingw-w64" clang --target=aarch64-w64-mingw32 -isystem $mingw
    syntax clang-cl "headers: mingw-w64" clang --target=x86_64-pc-windows-msvc -fgnuc-version=4.2.1 -mfma -isystem $mingw
    syntax macos-arm "headers: musl's" clang --target=arm64-apple-macos11 -nostdlibinc -isystem /usr/include/x86_64-linux-musl
    syntax macos-x86 "headers: musl's" clang --target=x86_64-apple-macos11 -nostdlibinc -isystem /usr/include/x86_64-linux-musl

    # x87 computes in 80 bits: refused in a sentence
    mine i386 || return 0
    if have i686-linux-gnu-gcc; then
        printf '#define PVTUNE_IMPLEMENTATION\n#include "pvtune.h"\n' >"$BUILD/impl-x87.c"
        said=refused
        i686-linux-gnu-gcc -std=c99 -mfpmath=387 -fsyntax-only -I. "$BUILD/impl-x87.c" 2>&1 | grep -q 'FLT_EVAL_METHOD' || said="not refused"
        row "i386, x87" "" "$said in a sentence" ""
        [ "$said" = refused ] || bad "i386: x87 is not refused"
    else
        row "i386, x87" "" "not tried: there is no compiler for it here" ""
    fi
}

lane=0
rmdir "$BUILD/installing" 2>/dev/null
while [ $lane -lt "$lanes" ]; do
    (targets) &
    lane=$((lane + 1))
done
wait
echo
for file in $(ls "$BUILD" | grep '^row-' | sort -t- -k2n); do cat "$BUILD/$file"; done | tee "$BUILD/table"
! ls "$BUILD" | grep -q '^failed-' && [ -s "$BUILD/table" ]
