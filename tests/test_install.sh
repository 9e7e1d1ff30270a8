#!/bin/sh
# Installs into a directory of its own and uses what is there as a stranger would: through CMake (find_package,
# FetchContent), through pkg-config, from C++ with a context made before main, from Python. Does the library
# export pvt_* and nothing else? Does make uninstall leave nothing? Run by `make test`, not with PVTUNE_QUICK.
CC=${CC:-cc}
CXX=${CXX:-c++}
BUILD=${BUILD:-build}
source=$PWD
export MAKEFLAGS=
. tests/count.sh

# the program and the object as `make test` has them; the library compiles quickest without part III
mkdir -p "$work/build" "$work/stage"
cp "$BUILD/pvtune_impl.o" "$work/build/" && cp "$BUILD/pvtune" "$work/build/" # in this order: newer than what it is made of
install_it() {
    ${MAKE:-make} --no-print-directory "$1" BUILD="$work/build" CC="$CC" CFLAGS=-O0 CPPFLAGS=-DPVTUNE_NO_FAST LDFLAGS= \
        PREFIX="$work/prefix" "$2"
}
check "make install" install_it install DESTDIR=
[ "$failed" = 0 ] || finish
version=$("$work/prefix/bin/pvtune" --version | sed 's/pvtune //')
check "the manual page has every verb" sh -c '
    for verb in $("$0" --help | sed -n "/^usage:/,/^  lab/s/^  \([a-z]*\)  .*/\1/p" | tr a-z A-Z); do
        grep -q "^.SH PVTUNE $verb\$" "$1" || { echo "$verb is missing"; exit 1; }
    done
    grep -c "^\.TP" "$1" && test "$(grep -c "^\.TP" "$1")" -gt 200' "$BUILD/pvtune" "$work/prefix/share/man/man1/pvtune.1"
if have nm; then
    check "exports pvt_*, and nothing else" sh -c \
        'nm -D --defined-only "$1" | awk "{ if (\$NF ~ /^pvt_/) own++; else { print; other++ } } END { exit own < 100 || other }"' \
        - "$work/prefix/lib/libpvtune.so"
else
    skip "exported symbols: nm is not installed"
fi

# three consumers: the compiled library from C++, with a static context; the header; the header in C99, strictly
cat >"$work/static.cc" <<'EOT'
#include "pvtune.h"
#include <cstdio>
struct holder { // made before main, ended after it
    pvt_ctx *ctx;
    pvt_result made;
    holder() : ctx(0) { made = pvt_ctx_create(0, &ctx); }
    ~holder() { pvt_ctx_destroy(ctx); }
};
static holder early;
static double fit()
{
    pvt_format format;
    pvt_weight weight;
    pvt_real W[64 * 64];
    double bits;
    for (int i = 0; i < 64 * 64; i++) W[i] = (pvt_real)(i * 7919 % 257 - 128) / 128;
    if (pvt_format_parse(early.ctx, "int:4g64", &format) || pvt_weight_fit(early.ctx, W, 64, 64, 0, &format, 0, 0, &weight))
        return -1;
    bits = pvt_weight_bits(&weight);
    pvt_weight_free(&weight);
    return bits;
}
static double before = fit(); // also the work, with threads
int main()
{
    std::printf("%g bits\n", before);
    return early.made == PVT_OK && before == 4.5 && fit() == 4.5 ? 0 : 1;
}
EOT
cat >"$work/header.c" <<'EOT'
#define PVTUNE_IMPLEMENTATION
#define PVTUNE_LAYER 0
#define PVTUNE_NO_FAST
#include "pvtune.h"
int main(void)
{
    pvt_ctx *ctx;
    if (pvt_ctx_create(NULL, &ctx)) return 1;
    pvt_ctx_destroy(ctx);
    return 0;
}
EOT
if have "$CXX"; then
    check "C++, a static object with a context" "$CXX" -std=c++11 -I"$work/prefix/include" "$work/static.cc" -o "$work/static" \
        -L"$work/prefix/lib" -lpvtune "-Wl,-rpath,$work/prefix/lib"
    check "C++, a static object with a context, runs" "$work/static"
else
    skip "a static object in C++: no $CXX"
fi

if have pkg-config; then
    export PKG_CONFIG_PATH="$work/prefix/lib/pkgconfig"
    check "pkg-config has version $version" pkg-config --exact-version="$version" pvtune pvtune-lib
    check "pkg-config, the header" sh -c '"$0" -std=c99 "$1/header.c" -o "$1/header" $(pkg-config --cflags --libs pvtune) && "$1/header"' \
        "$CC" "$work"
    sed '/define/d; s/NULL, &ctx))/NULL, \&ctx) || pvt_ctx_get_info(ctx).n_threads < 1)/' "$work/header.c" >"$work/library.c"
    check "pkg-config, the library" sh -c '"$0" "$1/library.c" -o "$1/library" $(pkg-config --cflags --libs pvtune-lib) &&
        LD_LIBRARY_PATH="$1/prefix/lib" "$1/library"' "$CC" "$work"
else
    skip "pkg-config is not installed"
fi

if have cmake; then
    mkdir "$work/find" "$work/fetch"
    cat >"$work/find/CMakeLists.txt" <<'EOT'
cmake_minimum_required(VERSION 3.14)
project(consumer C)
find_package(pvtune 0.2 REQUIRED)
add_executable(header ../header.c)
target_link_libraries(header PRIVATE pvtune::pvtune)
add_executable(library ../library.c)
target_link_libraries(library PRIVATE pvtune::lib)
EOT
    cat >"$work/fetch/CMakeLists.txt" <<EOT
cmake_minimum_required(VERSION 3.14)
project(consumer C)
include(FetchContent)
FetchContent_Declare(pvtune SOURCE_DIR "$source")
FetchContent_MakeAvailable(pvtune)
add_executable(header ../header.c)
target_link_libraries(header PRIVATE pvtune::pvtune)
if(NOT TARGET pvtune::lib)
    message(FATAL_ERROR "no target pvtune::lib")
endif()
EOT
    [ -f "$work/library.c" ] || sed '/define/d' "$work/header.c" >"$work/library.c"
    for way in find fetch; do
        check "CMake, $way" sh -c 'cmake -S "$0/$1" -B "$0/$1/build" -DCMAKE_C_COMPILER="$2" -DCMAKE_PREFIX_PATH="$0/prefix" &&
            cmake --build "$0/$1/build"' "$work" $way "$CC"
        check "CMake, $way: the header's program runs" "$work/$way/build/header"
    done
    check "CMake, find: the library's program runs" "$work/find/build/library"
    sed 's/pvtune 0.2 REQ/pvtune 9.0 REQ/' "$work/find/CMakeLists.txt" >"$work/find/new" && mv "$work/find/new" "$work/find/CMakeLists.txt"
    check "CMake refuses another version" sh -c '! cmake -S "$0/find" -B "$0/find/other" -DCMAKE_C_COMPILER="$1" -DCMAKE_PREFIX_PATH="$0/prefix" &&
        test -d "$0/find/other"' "$work" "$CC"
else
    skip "cmake is not installed"
fi

python=
for candidate in python3 /usr/bin/python3; do
    [ -z "$python" ] && $candidate -c 'import numpy, ctypes' 2>/dev/null && python=$candidate
done
if [ -n "$python" ]; then
    model=tests/golden/models/llama_linear
    echo '[[1, 2, 3, 4], [5, 6, 7, 8]]' >"$work/ids.json"
    "$BUILD/pvtune" logits -q $model --ids "$work/ids.json" -o "$work/logits.safetensors" >/dev/null
    cat >"$work/check.py" <<'EOT'
import json, struct, sys
sys.dont_write_bytecode = True
sys.path.insert(0, "examples")
import numpy as np
from pvtune import Pvtune
library, model, file = sys.argv[1:]
p = Pvtune(threads=2, library=library)
loaded = p.load(model)
logits = p.logits(loaded, [[1, 2, 3, 4], [5, 6, 7, 8]])
raw = open(file, "rb").read()
size = struct.unpack("<Q", raw[:8])[0]
where = json.loads(raw[8:8 + size])["logits"]
assert list(logits.shape) == where["shape"]
assert logits.tobytes() == raw[8 + size:][slice(*where["data_offsets"])], "other logits than the program's"
ids = (np.arange(200) * 7) % 31 # five windows of the model's context, 16 stretched by 2.5
lines = p.logits(loaded, ids.reshape(-1, 40)).astype(np.float64)[:, :-1]
nll = np.log(np.exp(lines).sum(-1)) - np.take_along_axis(lines, ids.reshape(-1, 40)[:, 1:, None], 2)[..., 0]
assert abs(p.perplexity(loaded, ids) / np.exp(nll.mean()) - 1) < 1e-5, "perplexity"
random = np.random.default_rng(0)
W, X = random.standard_normal((64, 64)).astype(np.float32), random.standard_normal((300, 64))
Q, error, bits = p.quantize(W, "int:4g64", H=X.T @ X)
mine = np.square((W - Q) @ X.T).sum() / np.square(W @ X.T).sum()
assert 0 < error < 0.01 and abs(error / mine - 1) < 1e-3 and bits == 4.5, (error, mine, bits)
for wrong in (lambda: p.load("no such model"), lambda: p.quantize(W, "int:4g65"), lambda: p.quantize(W, "nonsense")):
    try:
        wrong()
    except RuntimeError as sentence:
        assert len(str(sentence)) > 20
    else:
        raise AssertionError("no error")
for wrong in ([1, 2], [[[1, 2], [3, 4]]], [[0.5, 1]]):
    try:
        p.logits(loaded, wrong)
    except ValueError:
        continue
    raise AssertionError("ids of another shape or kind")
p.lib.pvt_model_free(loaded)
EOT
    check "Python: the program's logits, perplexity, a matrix" $python "$work/check.py" "$work/prefix/lib/libpvtune.so" $model \
        "$work/logits.safetensors"
else
    skip "Python: no python3 with numpy"
fi

check "make install DESTDIR=" install_it install DESTDIR="$work/stage"
check "... has no word of DESTDIR in its files" sh -c '! grep -rl "$0/stage" "$0/stage"' "$work"
check "make uninstall" install_it uninstall DESTDIR="$work/stage"
check "... leaves no file" sh -c 'test -z "$(find "$0/stage" ! -type d)" && test -d "$0/stage"' "$work"
finish
