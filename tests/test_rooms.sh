#!/bin/sh
# Do the seams hold? What belongs to one representation, family, instruction set or operating system stands in its
# sections of pvtune.h and nowhere else; part I names nothing that part II or III makes. Then violations are planted in
# copies: each must be found. Run from the repository's root by `make test`.
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

check() { # check NAME CONDITION...
    name=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "failed: $name"
    fi
}

# What | how it looks, % for where a word begins or ends | the sections that are its rooms | sections whose comments
# may speak of it. "head" is what stands before the first section.
cat >"$work/rooms" <<'END'
the grid of nf4|%nf4%|grids;interface: weights|
the grid of nf4|NF4|grids;interface: weights|
a grid|_GRID_|grids|
private names of int|pvti_int_|scalar|
private names of int|PVTI_INT_|scalar|
the number of a format|PVT_FORMAT_[A-Z]|interface: weights;iq2;layout;look-ups|
the table of a kind|pvti_kind_(dense|aqlm|nf4|int|int_symmetric|q2_0)%|weights;codebooks;fit;grids;scalar;representations|interface: weights
aqlm|%aqlm%|interface: weights;codebooks;search;fit;layout;load;load tensors;save;export;look-ups|head;weights;interface: models;interface: quantize and tune
AQLM|AQLM|interface: weights;codebooks;search;fit;layout;load;load tensors;save;export;look-ups|head;interface: models;interface: quantize and tune;quantize
what codebooks are read by|pvti_(codebooks|entries|group_dim|scales|decode_row|scatter)%|codebooks;search;fit;look-ups|head
codebooks|[Cc]odebook|interface: weights;weights;codebooks;search;fit;grids;vector grids;higgs;e8p;iq2;scalar;training;layout;load;load tensors;save;look-ups|head;interface: device;interface: PV;interface: models;interface: quantize and tune;pv;pv step;quantize
a family|%"llama"%|families;tokenizer files;gguf writing|llama2c
a family|[Mm]istral|families;chat|interface: chat
a family|[Qq]wen|families;vocabulary;words;tokenizer files;tokenizer saving;gguf writing|interface: ops;interface: tokenizer;nfc
a rotation|[.>]rotation%|interface: ops;interface: device;interface: weights;rotation;weights;representations;pv;pv step;quantize;quantize blocks;tuner;layout|
a rotation|pvti?_rotate|interface: ops;interface: device;interface: weights;rotation;weights;representations;pv;pv step;quantize;quantize blocks;tuner;layout|
an instruction set|avx|instruction sets;fast gemm;fast decoders;fast search;row products;look-ups;installing;start|head;interface: context
an instruction set|AVX|instruction sets;fast gemm;fast decoders;fast search;row products;look-ups;installing;start|head;interface: context
vectors of a processor|__m(128|256|512)|instruction sets;fast gemm;fast decoders;fast search;row products;look-ups|
vectors of a processor|%_mm[0-9]*_|instruction sets;fast gemm;fast decoders;fast search;row products;look-ups|
vectors of a processor|immintrin|instruction sets|
an instruction set|neon|instruction sets;neon;installing;start|head;interface: context
an instruction set|NEON|instruction sets;neon;installing|head;interface: context;platform;fast gemm
vectors of a processor|%v?(float32x4|float16x8|uint32x4)_t%|neon|
vectors of a processor|arm_neon|neon|
a processor|x86_64|instruction sets;windows|
a processor|__aarch64__|instruction sets;neon|
an operating system|_WIN32|platform|
an operating system|%(HANDLE|DWORD|GetLastError|CreateFileW)%|windows|
a processor|__builtin_cpu_|instruction sets;fast gemm;fast search;look-ups;installing|
a call for files|[^A-Za-z0-9_.>*](f?open|fdopen|f?close|f?read|f?write|l?stat|fstat|rename|remove|unlink|mkdir|rmdir|fsync|flock|fcntl|fchown|fchmod|chmod|dup|dup2|pread|pwrite|lseek|fseek|ftell|fputs|fputc|fgets|fflush|tmpfile|mkstemp|realpath|access)\(|system;system: files;system: threads|
a call for directories|[^A-Za-z0-9_](opendir|readdir|closedir|scandir)\(|system;system: files;system: threads|
a call for memory|[^A-Za-z0-9_](mmap|munmap|madvise|mprotect|mlock|sbrk)\(|system;system: files;system: threads|
a call for threads|[^A-Za-z0-9_](pthread_|sched_yield|thrd_|mtx_|sem_)|system;system: files;system: threads|
a call for the time|[^A-Za-z0-9_.>*](clock_gettime|gettimeofday|nanosleep|usleep|sleep|time|clock)\(|system;system: files;system: threads|
a call for the process|[^A-Za-z0-9_](getenv|sysconf|getpid|getrusage|signal|sigaction|fork|raise)\(|system;windows;system: files;system: threads|
what ends or prints|[^A-Za-z0-9_](exit|_Exit|abort|printf|fprintf|vprintf|vfprintf|puts|perror|assert)\(||head
a system's header|#include <(unistd|fcntl|dirent|pthread|sched|time|sys/[a-z]*|windows)\.h>|system;windows;system: files;system: threads|
END

# Lines that may stand where they do, by a piece of them: each must be there still.
cat >"$work/exempt" <<'END'
#if defined(__x86_64__) || defined(__i386__)|platform|how a waiting thread pauses, beside the other atomics
pvt_format_parse(z->ctx, "aqlm:2x8g8", &d->format)|quantize blocks|the default, documented in the interface
"learning rate of codebooks",|checkpoint|the key that checkpoints have it under
END

# Splits each line into code and comment, and names its section: SECTION<TAB>NUMBER<TAB>CODE<TAB>COMMENT.
cat >"$work/split.awk" <<'END'
BEGIN { section = "head"; inside = 0; OFS = "\t" }
/^\/\/ >>/ { section = substr($0, 6); inside = 0 }
{
    rest = $0; code = ""; comment = ""
    gsub(/\t/, " ", rest)
    while (rest != "") {
        if (inside) {
            at = index(rest, "*/")
            if (!at) { comment = comment rest; break }
            comment = comment substr(rest, 1, at + 1); rest = substr(rest, at + 2); inside = 0
        } else if (match(rest, /\/\*|\/\/|"|'/)) {
            mark = substr(rest, RSTART, RLENGTH)
            code = code substr(rest, 1, RSTART - 1)
            if (mark == "/*") { rest = substr(rest, RSTART + 2); inside = 1; code = code " " }
            else if (mark == "//") { comment = comment substr(rest, RSTART); break }
            else {
                from = RSTART
                for (i = from + 1; i <= length(rest) && substr(rest, i, 1) != mark; i++)
                    if (substr(rest, i, 1) == "\\") i++
                code = code substr(rest, from, i - from + 1); rest = substr(rest, i + 1)
            }
        } else { code = code rest; break }
    }
    print section, NR, code, comment
}
END

# Lines outside their rooms, one to a line.
cat >"$work/rooms.awk" <<'END'
BEGIN {
    FS = "|"
    while ((getline <rooms_file) > 0) {
        pattern = $0
        sub(/^[^|]*\|/, "", pattern) # the pattern may itself hold bars, in parentheses: the last two fields are the lists
        n++
        what[n] = $1; says[n] = ";" $NF ";"; home[n] = ";" $(NF - 1) ";"
        pattern = substr(pattern, 1, length(pattern) - length($NF) - length($(NF - 1)) - 2)
        gsub(/%/, "[^A-Za-z0-9_]", pattern)
        look[n] = pattern
    }
    while ((getline <exempt_file) > 0) {
        e++
        place[e] = $(NF - 1)
        piece[e] = substr($0, 1, length($0) - length($NF) - length($(NF - 1)) - 2)
    }
    FS = "\t"
}
{
    seen[$1] = 1
    code = " " $3 " "; comment = " " $4 " "
    if ($3 ~ /^[ ]*$/ && $4 ~ /^[ ]*$/) next
    free = 0
    for (i = 1; i <= e; i++) if (index($3, piece[i]) && $1 == place[i]) free = used[i] = 1
    if (free) next
    for (i = 1; i <= n; i++) {
        if (index(home[i], ";" $1 ";")) continue
        if (code ~ look[i]) print "line " $2 " in >>" $1 ": " what[i] ": " $3
        else if (!index(says[i], ";" $1 ";") && comment ~ look[i]) print "line " $2 " in >>" $1 ", a comment: " what[i] ": " $4
    }
}
END {
    for (i = 1; i <= e; i++) if (!used[i]) print "the exemption is not needed any more: " piece[i]
    for (i = 1; i <= n; i++) {
        count = split(home[i] says[i], all, ";")
        for (k = 1; k <= count; k++) if (all[k] != "" && !(all[k] in seen)) print "there is no section >>" all[k]
    }
}
END

# Names that part II or III makes and part I uses. pvti_source is a pointer that I passes on and never looks into.
cat >"$work/parts.awk" <<'END'
BEGIN { FS = "\t"; part = 0 }
$4 ~ /^ *PART I: / { part = 1; parts++ }
$4 ~ /^ *PART II: / { part = 2; parts++ }
$4 ~ /^ *PART III: / { part = 3; parts++ }
$1 == "start" { part = 0 } # puts the parts together, and is always there
part == 1 { code[++lines] = $3; number[lines] = $2 }
part > 0 && $3 ~ /^[A-Za-z#}]/ {
    name = ""
    if ($3 ~ /^#define +[A-Za-z_]/) { name = $3; sub(/^#define +/, "", name); sub(/[^A-Za-z0-9_].*/, "", name) }
    else if ($3 ~ /^} [a-z_0-9]+;/) { name = $3; sub(/^} /, "", name); sub(/;.*/, "", name) }
    else if ($3 !~ /;[ ]*$/ && match($3, /^[^(=]*[ *]pvti?_[a-z0-9_A-Z]+\(/)) {
        name = substr($3, 1, RLENGTH - 1); sub(/.*[ *]/, "", name) # the first name with a parenthesis
    }
    else if (match($3, /^(static const|static) [^(=]*pvti_[a-z0-9_]+(\[[^]]*\])* =/)) {
        name = substr($3, 1, RLENGTH); sub(/(\[[^]]*\])* =$/, "", name); sub(/.*[ *]/, "", name)
    }
    if (name != "") { if (part == 1) own[name] = 1; else if (!(name in made)) { made[name] = $1; names++ } }
}
END {
    if (parts != 3) print "the banners of the three parts were not found"
    if (names < 500) print "only " names " names were found in parts II and III"
    for (i = 1; i <= lines; i++) {
        count = split(code[i], words, /[^A-Za-z0-9_]+/)
        for (k = 1; k <= count; k++)
            if ((words[k] in made) && !(words[k] in own) && words[k] != "pvti_source")
                print "line " number[i] " of part I names " words[k] " of >>" made[words[k]]
    }
}
END

violations() { # of the header $1
    awk -f "$work/split.awk" "$1" >"$work/lines"
    awk -v rooms_file="$work/rooms" -v exempt_file="$work/exempt" -f "$work/rooms.awk" "$work/lines"
    awk -f "$work/parts.awk" "$work/lines"
}

violations pvtune.h >"$work/found"
cat "$work/found"
check "every name in its room, and part I alone" test ! -s "$work/found"
check "the header was read" test "$(awk -F'\t' '$3 ~ /[a-z]/' "$work/lines" | wc -l)" -gt 10000

# Plants: a section, and the line that is written into it; each line must be found, by its number in the copy.
cat >"$work/plants" <<'END'
pv|static int planted(const pvt_weight *w) { return strcmp(w->kind->name, "nf4") == 0; }
weights|static const int planted = PVTI_NF4_GROUP;
tuner|static int planted(double x) { return pvti_int_nearest(x, 4, -1); }
scalar|static int planted(const pvt_weight *w) { return w->format.rotation; }
search|static void planted(pvt_real *x) { pvt_rotate(NULL, x, x, 1, 8, PVT_SIDE_IN, false); }
save|static bool planted(const pvt_format *f) { return f->kind == PVT_FORMAT_INT; }
checkpoint|static bool planted(const pvt_format *f) { return f->kind == PVT_FORMAT_AQLM; }
optimizer|static int64_t planted(const pvt_weight *w) { return pvti_entries(w); }
tuner|static int planted(const pvt_weight *w) { return w->format.codebooks; }
quantize|static bool planted(const char *format) { return strcmp(format, "aqlm") == 0; }
run|/* what follows is for nf4 only */
model|static bool planted(const char *family) { return strcmp(family, "llama") == 0; }
blocks|static bool planted(const char *family) { return strcmp(family, "mistral") == 0; }
load|static const char planted[] = "qwen2";
gemm|static const char planted[] = "avx2";
ops: rows|static void planted(float *x) { __m256 y = _mm256_loadu_ps(x); _mm256_storeu_ps(x, y); }
simd|#include <immintrin.h>
simd|#if defined(__x86_64__)
simd|static void planted(float *x) { float32x4_t y = vld1q_f32(x); }
files|#ifdef _WIN32
search|/* AVX-512 takes sixteen at once */
files|static int planted(const char *path) { return open(path, 0); }
save|static void planted(const char *path) { remove(path); }
load|static void *planted(void) { return fopen("x", "r"); }
threads|static pthread_t planted;
tuner|static double planted(void) { struct timespec t; clock_gettime(0, &t); return 0; }
context|static const char *planted(void) { return getenv("PVTUNE_ISA"); }
memory|static void *planted(void) { return mmap(0, 1, 0, 0, 0, 0); }
json|static void planted(const char *text) { printf("%s", text); }
errors|static void planted(void) { abort(); }
corpus|#include <sys/stat.h>
model|static void planted(pvti_json *j) { pvti_json_free(j); }
ops: attention|enum { PLANTED = PVTI_MR_AVX2 };
gemm|static void planted(pvt_ctx *ctx) { pvti_isa_install(ctx, 0); }
quantize|static pvt_result planted(const char *path) { return pvt_tensors_open(NULL, path, NULL); }
END
awk -v plants="$work/plants" -v places="$work/places" '
BEGIN { while ((getline <plants) > 0) { n++; section[n] = "// >>" $0; sub(/\|.*/, "", section[n]); line[n] = $0; sub(/^[^|]*\|/, "", line[n]) } }
{ print; at++ }
/^\/\/ >>/ { for (i = 1; i <= n; i++) if (section[i] == $0) { print line[i]; print ++at " in " section[i] ": " line[i] >places } }
' pvtune.h >"$work/planted.h"
violations "$work/planted.h" >"$work/found"
while read -r number line; do
    check "planted in line $number: $line" grep -q "^line $number " "$work/found"
done <"$work/places"
check "all was planted" test "$(wc -l <"$work/places")" = 35

# a room that moves, or an exemption that nobody needs, shows too
sed 's|^// >>scalar$|// >>integers|' pvtune.h >"$work/planted.h"
violations "$work/planted.h" >"$work/found"
check "a section of another name" grep -q "there is no section >>scalar" "$work/found"
echo 'no such line|pv|' >>"$work/exempt"
violations pvtune.h >"$work/found"
check "an idle exemption" grep -q "not needed any more: no such line" "$work/found"

echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]
