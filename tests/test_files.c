/*  Files: the safe writer, number formats, JSON, safetensors, GGUF, llama2.c. What is valid is read
    to the byte; what is damaged is refused with a sentence; nothing leaks when memory ends. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "files_seeds.h"
#include "test.h"

#include <locale.h>
#if !PVTI_WINDOWS
#include <signal.h>
#include <sys/resource.h>
#endif

static pvt_ctx *ctx;

#if PVTI_WINDOWS
#define NOTHING "NUL"
/* A link takes a privilege there: a folder. */
static bool obstacle(const char *path) { return pvti_make_directory(ctx, path); }
static bool obstacle_remove(const char *path) { return pvti_remove_directory(ctx, path); }
static int geteuid(void) { return 0; }
#else
#define NOTHING "/dev/null"
static bool obstacle(const char *path) { return symlink("file", path) == 0; }
static bool obstacle_remove(const char *path) { return unlink(path) == 0; }
#endif

static char dir[256]; /* a directory of our own */

static const char *in_dir(const char *name)
{
    static char path[4][PVTI_PATH_BYTES];
    static int turn;
    turn = (turn + 1) % 4;
    pvti_path_join(ctx, path[turn], dir, name);
    return path[turn];
}

/* A refusal of the kind expected, whose sentence contains each part of `says` (split at '|'). */
static void refused(pvt_result result, pvt_result expected, const char *label, const char *says)
{
    const char *error = pvt_ctx_error(ctx), *part = says;
    bool good = result == expected;
    while (good && *part) {
        char word[128];
        size_t n = strcspn(part, "|");
        memcpy(word, part, n);
        word[n] = 0;
        good = strstr(error, word) != NULL;
        part += n + (part[n] == '|');
    }
    if (good) test_passed++;
    else
        test_failed++, printf("%s: expected \"%s\" with \"%s\", got %s: %s\n", label,
                              pvt_result_text(expected), says, pvt_result_text(result), error);
}

/* ---- the safe writer ---- */

static bool file_is(const char *path, const char *content)
{
    pvti_map map;
    if (pvti_map_open(ctx, path, &map) != PVT_OK) return false;
    bool same = map.size == (int64_t)strlen(content) && memcmp(map.data, content, strlen(content)) == 0;
    pvti_map_close(ctx, &map);
    return same;
}

static void count_temporary(void *user, const char *name)
{
    *(int *)user += strstr(name, ".pvtune-") != NULL;
}
static bool no_temporaries(void)
{
    int n = 0;
    return pvti_own_list(NULL, dir, count_temporary, &n) == 0 && n == 0;
}

static void test_writer(void)
{
    char path[PVTI_PATH_BYTES], temp[PVTI_PATH_BYTES];
    static char big[600000];
    pvti_writer w;
    snprintf(path, sizeof path, "%s", in_dir("file"));
    memset(big, 'x', sizeof big - 1);

    CHECK_OK(ctx, pvti_file_write(ctx, path, "old", 3));
    CHECK(file_is(path, "old"));
    CHECK_OK(ctx, pvti_writer_open(ctx, path, &w)); /* given up half way */
    CHECK_OK(ctx, pvti_writer_put(&w, big, sizeof big));
    CHECK(pvti_path_exists(ctx, w.temp) && file_is(path, "old"));
    pvti_writer_abort(&w);
    CHECK(!pvti_path_exists(ctx, w.temp) && file_is(path, "old"));

    /* something lies where the temporary file would be: it is not followed, and not taken */
    snprintf(temp, sizeof temp, "%s/.file.pvtune-%ld-%lld.tmp", dir, pvti_process(), (long long)ctx->temporaries);
    CHECK(obstacle(temp));
    CHECK_OK(ctx, pvti_writer_open(ctx, path, &w));
    CHECK(strcmp(temp, w.temp) != 0);
    for (int i = 0; i < 1000; i++) pvti_writer_put(&w, big, 599); /* many small puts, over the buffer's end */
    CHECK(w.written == 599000 && file_is(path, "old"));
    pvti_writer_put(&w, big, 999);
    CHECK_OK(ctx, pvti_writer_commit(&w));
    pvti_writer_abort(&w); /* harmless */
    CHECK(file_is(path, big) && !pvti_path_exists(ctx, w.temp) && obstacle_remove(temp));

    CHECK_OK(ctx, pvti_file_write(ctx, path, "old", 3));
    CHECK(chmod(path, 0640) == 0);
    CHECK_OK(ctx, pvti_file_write(ctx, path, "", 0));
    CHECK(file_is(path, ""));
#if !PVTI_WINDOWS /* which has no such bits */
    struct stat st;
    CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0640); /* permissions stay */
#endif
}

#if !PVTI_WINDOWS
/* A limit on the size of files stands in for the full disk: write fails in the middle. */
static void test_limit(void)
{
    struct rlimit before;
    static char big[2000000];
    char path[PVTI_PATH_BYTES];
    snprintf(path, sizeof path, "%s", in_dir("precious"));
    CHECK_OK(ctx, pvti_file_write(ctx, path, "old", 3));
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    struct rlimit small = before;
    small.rlim_cur = 1000000;
    setrlimit(RLIMIT_FSIZE, &small);
    pvt_result result = pvti_file_write(ctx, path, big, sizeof big);
    setrlimit(RLIMIT_FSIZE, &before);
    refused(result, PVT_ERR_IO, "full disk", "precious|writing failed|File too large|unchanged");
    CHECK(file_is(path, "old") && no_temporaries());
    if (pvti_path_exists(ctx, "/dev/full")) {
        refused(pvti_file_write(ctx, "/dev/full", "x", 1), PVT_ERR_IO, "/dev/full",
                "/dev/full|writing failed|No space");
        refused(pvti_file_write(ctx, "/dev/full", big, sizeof big), PVT_ERR_IO, "/dev/full", "No space");
        CHECK(pvti_path_exists(ctx, "/dev/full")); /* a device is not replaced */
    } else {
        SKIP("no /dev/full here");
    }
}
#endif

/* The last step fails: a directory has come to stand there. */
static void test_rename(void)
{
    pvti_writer w;
    CHECK_OK(ctx, pvti_writer_open(ctx, in_dir("late"), &w));
    CHECK_OK(ctx, pvti_writer_put(&w, "x", 1));
    CHECK_OK(ctx, pvti_directory_create(ctx, in_dir("late/below")));
    refused(pvti_writer_commit(&w), PVT_ERR_IO, "rename", "late|cannot be replaced");
    refused(pvti_writer_put(&w, "x", 1), PVT_ERR_IO, "after a failure", "");
    CHECK(no_temporaries() && pvti_path_is_directory(ctx, in_dir("late")));
    /* an exchange counts on this: a folder takes the place of an empty one, and of no other */
    CHECK_OK(ctx, pvti_directory_create(ctx, in_dir("empty")));
    CHECK(!pvti_rename(ctx, in_dir("empty"), in_dir("late")) && (errno == ENOTEMPTY || errno == EEXIST));
    CHECK(pvti_rename(ctx, in_dir("late"), in_dir("empty")) && pvti_path_is_directory(ctx, in_dir("empty/below")));
    CHECK(!pvti_path_exists(ctx, in_dir("late")));
}

/* Of two who open a file one has the lock, by a second number also when the first is closed and the folder has
   another name; what nobody has a lock on is an orphan of a save, and swept. */
static void test_locks(void)
{
    char in[PVTI_PATH_BYTES], moved[PVTI_PATH_BYTES], orphan[PVTI_PATH_BYTES];
    CHECK_OK(ctx, pvti_directory_create(ctx, in_dir("locks")));
    snprintf(in, sizeof in, "%s", in_dir("locks/file")), snprintf(moved, sizeof moved, "%s", in_dir("moved/file"));
    CHECK_OK(ctx, pvti_file_write(ctx, in, "x", 1));
    int a = pvti_open(ctx, in, PVT_OPEN_LOCK), b = pvti_open(ctx, in, PVT_OPEN_LOCK);
    CHECK(a >= 0 && b >= 0);
    CHECK(pvti_lock_try(ctx, a, in) == PVTI_LOCK_OURS && pvti_lock_try(ctx, b, in) == PVTI_LOCK_TAKEN);
    int shared = ctx->files.share(ctx->files.user, a);
    CHECK(shared >= 0 && pvti_close(ctx, a));
    CHECK(pvti_lock_try(ctx, b, in) == PVTI_LOCK_TAKEN && pvti_close(ctx, b));
    CHECK(pvti_rename(ctx, in_dir("locks"), in_dir("moved")));
    CHECK((a = pvti_open(ctx, moved, PVT_OPEN_LOCK)) >= 0 && pvti_lock_try(ctx, a, moved) == PVTI_LOCK_TAKEN);
    CHECK(pvti_close(ctx, a) && pvti_close(ctx, shared));
    CHECK((a = pvti_open(ctx, moved, PVT_OPEN_LOCK)) >= 0 && pvti_lock_try(ctx, a, moved) == PVTI_LOCK_OURS);
    CHECK(pvti_close(ctx, a));
    snprintf(orphan, sizeof orphan, "%s", in_dir("moved/.file.pvtune-1-1.tmp"));
    test_spit(orphan, "half", 4);
    CHECK_OK(ctx, pvti_file_write(ctx, moved, "y", 1));
    CHECK(file_is(moved, "y") && !pvti_path_exists(ctx, orphan));
}

static void test_paths(void)
{
    pvti_map map;
    char deep[PVTI_PATH_BYTES + 100];
    refused(pvti_map_open(ctx, in_dir("absent"), &map), PVT_ERR_IO, "absent file",
            "absent|cannot be opened|No such file");
    refused(pvti_map_open(ctx, dir, &map), PVT_ERR_IO, "directory", "is a directory");
    refused(pvti_file_write(ctx, in_dir("no/such/file"), "x", 1), PVT_ERR_IO, "absent directory",
            "cannot be created");
    refused(pvti_file_write(ctx, dir, "x", 1), PVT_ERR_IO, "a directory", "cannot be written");
    memset(deep, 'a', sizeof deep - 1);
    deep[sizeof deep - 1] = 0;
    refused(pvti_file_write(ctx, deep, "x", 1), PVT_ERR_IO, "long path", "too long");
    CHECK_OK(ctx, pvti_directory_create(ctx, in_dir("a/b/c")));
    CHECK_OK(ctx, pvti_directory_create(ctx, in_dir("a/b")));
    CHECK(pvti_path_is_directory(ctx, in_dir("a/b/c")));
    CHECK_OK(ctx, pvti_file_write(ctx, in_dir("plain"), "x", 1));
    refused(pvti_directory_create(ctx, in_dir("plain/x")), PVT_ERR_IO, "below a file", "cannot be created");
    CHECK_OK(ctx, pvti_map_open_stream(ctx, NOTHING, &map)); /* not mappable, and empty */
    CHECK(map.size == 0 && map.data != NULL);
    pvti_map_close(ctx, &map);
    if (PVTI_WINDOWS || geteuid() == 0) {
        SKIP("read-only directory: root may write anywhere, and Windows has none");
    } else {
        CHECK_OK(ctx, pvti_directory_create(ctx, in_dir("locked")));
        CHECK(chmod(in_dir("locked"), 0555) == 0);
        refused(pvti_file_write(ctx, in_dir("locked/x"), "x", 1), PVT_ERR_IO, "read-only directory",
                "locked/x|cannot be created|Permission denied");
        chmod(in_dir("locked"), 0755);
    }
}

/* ---- number formats ---- */

static double half_value(int h) /* by the definition */
{
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    double value = exponent == 31 ? (mantissa ? NAN : INFINITY)
                 : exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return h & 0x8000 ? -value : value;
}

static void test_half(void)
{
    int wrong = 0;
    for (int h = 0; h < 65536; h++) {
        double value = half_value(h), next = half_value(h + 1);
        float f = pvti_f16_to_f32((uint16_t)h);
        if (isnan(value) ? !isnan(f) : (double)f != value || !signbit(f) != !signbit(value)) wrong++;
        if (!isnan(value) && pvti_f32_to_f16(f) != h) wrong++;
        if (isnan(value) && !isnan(half_value(pvti_f32_to_f16(f)))) wrong++;
        if ((h & 0x7fff) < 0x7bff) { /* half way to the next goes to the even one, a hair off to the nearer */
            float middle = (float)((value + next) / 2);
            if (pvti_f32_to_f16(middle) != (h & 1 ? h + 1 : h)) wrong++;
            if (pvti_f32_to_f16(nextafterf(middle, (float)next)) != h + 1) wrong++;
            if (pvti_f32_to_f16(nextafterf(middle, (float)value)) != h) wrong++;
        }
        f = pvti_bf16_to_f32((uint16_t)h);
        if (!isnan(f) && pvti_f32_to_bf16(f) != h) wrong++;
        if (isnan(f) && !isnan(pvti_bf16_to_f32(pvti_f32_to_bf16(f)))) wrong++;
        if ((h & 0x7fff) < 0x7f7f) {
            float middle = pvti_from_bits((uint32_t)h << 16 | 0x8000u);
            if (pvti_f32_to_bf16(middle) != (h & 1 ? h + 1 : h)) wrong++;
            if (pvti_f32_to_bf16(pvti_from_bits(pvti_bits(middle) + 1)) != h + 1) wrong++;
            if (pvti_f32_to_bf16(pvti_from_bits(pvti_bits(middle) - 1)) != h) wrong++;
        }
    }
    CHECK(wrong == 0);
    CHECK(pvti_f32_to_f16(65519.996f) == 0x7bff && pvti_f32_to_f16(65520.0f) == 0x7c00);
    CHECK(pvti_f32_to_f16(-1e30f) == 0xfc00 && pvti_f32_to_f16(1e-30f) == 0 &&
          pvti_f32_to_f16(-0.0f) == 0x8000);
    CHECK(pvti_f32_to_bf16(FLT_MAX) == 0x7f80);
}

/* Element i of a block, straight from the description of its bits: a second, slow opinion. */
static double naive(pvt_dtype type, const uint8_t *b, int i)
{
    int j = i % 16, side = i / 16 % 2, part = i / 32, half = i / 128, l = i % 32, k = i % 128 / 32;
    int scale, min;
    double d = half_value(pvti_load_u16(b)), m = half_value(pvti_load_u16(b + 2));
    uint32_t h;
    if (type == PVT_Q4_0) return d * ((b[2 + j] >> 4 * side & 15) - 8);
    if (type == PVT_Q4_1) return d * (b[4 + j] >> 4 * side & 15) + m;
    if (type == PVT_Q5_0) {
        h = pvti_load_u32(b + 2);
        return d * ((b[6 + j] >> 4 * side & 15) + 16 * (int)(h >> i & 1) - 16);
    }
    if (type == PVT_Q5_1) {
        h = pvti_load_u32(b + 4);
        return d * ((b[8 + j] >> 4 * side & 15) + 16 * (int)(h >> i & 1)) + m;
    }
    if (type == PVT_Q8_0) return d * (int8_t)b[2 + i];
    if (type == PVT_Q2_K) {
        d = half_value(pvti_load_u16(b + 80)), m = half_value(pvti_load_u16(b + 82));
        return d * (b[i / 16] & 15) * (b[16 + 32 * half + l] >> 2 * k & 3) - m * (b[i / 16] >> 4);
    }
    if (type == PVT_Q3_K) { /* the sixteen scales unpacked as four words, the way ggml stores them */
        static const uint32_t low = 0x0f0f0f0fu, top = 0x03030303u;
        uint32_t w[3], s[4];
        for (int word = 0; word < 3; word++) w[word] = pvti_load_u32(b + 96 + 4 * word);
        s[0] = (w[0] & low) | (w[2] & top) << 4, s[1] = (w[1] & low) | (w[2] >> 2 & top) << 4;
        s[2] = (w[0] >> 4 & low) | (w[2] >> 4 & top) << 4, s[3] = (w[1] >> 4 & low) | (w[2] >> 6 & top) << 4;
        scale = (int)(s[i / 64] >> 8 * (i / 16 % 4) & 63) - 32;
        d = half_value(pvti_load_u16(b + 108));
        return d * scale * ((b[32 + 32 * half + l] >> 2 * k & 3) - (b[l] >> part & 1 ? 0 : 4));
    }
    if (type == PVT_Q6_K) {
        int q = b[64 * half + 32 * (k & 1) + l] >> (k >= 2 ? 4 : 0) & 15;
        q |= (b[128 + 32 * half + l] >> 2 * k & 3) << 4;
        return half_value(pvti_load_u16(b + 208)) * (int8_t)b[192 + i / 16] * (q - 32);
    }
    if (part < 4) scale = b[4 + part] & 63, min = b[8 + part] & 63; /* Q4_K, Q5_K */
    else scale = (b[8 + part] & 15) + (b[part] >> 6) * 16, min = (b[8 + part] >> 4) + (b[4 + part] >> 6) * 16;
    if (type == PVT_Q4_K) return d * scale * (b[16 + part / 2 * 32 + l] >> 4 * (part % 2) & 15) - m * min;
    return d * scale * ((b[48 + part / 2 * 32 + l] >> 4 * (part % 2) & 15) + (b[16 + l] >> part & 1) * 16) -
           m * min;
}

/* Random bits, except for the f16 fields, which get values that do not hide the rest. */
static void random_blocks(pvt_dtype type, uint8_t *b, int n)
{
    static const int fields[][2] = {{0, -1},  {0, 2},    {0, -1}, {0, 2}, {0, -1},
                                    {80, 82}, {108, -1}, {0, 2},  {0, 2}, {208, -1}};
    int64_t bytes = pvti_dtype_info(type)->bytes;
    for (int64_t i = 0; i < n * bytes; i++)
        b[i] = (uint8_t)pvti_random(3, PVTI_RANDOM_USER, type, (uint64_t)i);
    for (int64_t i = 0; i < n && type >= PVT_Q4_0; i++)
        for (int k = 0; k < 2; k++) {
            uint16_t half = pvti_f32_to_f16(
                (float)pvti_random_unit(4, PVTI_RANDOM_USER, type, (uint64_t)(2 * i + k)) - 0.4f);
            if (fields[type - PVT_Q4_0][k] >= 0) pvti_store_u16(b + i * bytes + fields[type - PVT_Q4_0][k], half);
        }
}

static void test_decoders(void)
{
    static uint8_t b[40 * 256 + 1];
    static pvt_real out[40 * 256], again[40 * 256];
    pvt_ctx_desc scalar;
    pvt_ctx *plain = NULL;
    int i;
    memset(&scalar, 0, sizeof scalar);
    scalar.isa = "scalar";
    CHECK(pvt_ctx_create(&scalar, &plain) == PVT_OK);
    for (int type = PVT_F32; type <= PVT_Q6_K; type++) { /* the others: test_blocks */
        const pvti_dtype *info = pvti_dtype_info((pvt_dtype)type);
        int n = info->block == 1 ? 37 : 5, wrong = 0;
        int64_t elements = n * info->block;
        random_blocks((pvt_dtype)type, b + 1, n);
        pvti_decoder(plain, (pvt_dtype)type)(b + 1, out, n);
        for (i = 0; i < elements && type >= PVT_Q4_0; i++) {
            double x = naive((pvt_dtype)type, b + 1 + i / info->block * info->bytes, (int)(i % info->block));
            if (!(fabs(x - (double)out[i]) <= 1e-4 + 1e-6 * fabs(x))) wrong++;
        }
        memset(again, 0, sizeof again); /* to the bit */
        pvti_decoder(ctx, (pvt_dtype)type)(b + 1, again, n);
        if (memcmp(out, again, (size_t)elements * sizeof *out) != 0) wrong++;
        CHECK(wrong == 0);
        CHECK(pvti_dtype_parse(info->name) == (pvt_dtype)type);
    }
    { /* every half, special ones included, through every kernel set */
        static uint16_t halves[65536];
        static pvt_real first[65536], other[65536];
        for (i = 0; i < 65536; i++) halves[i] = (uint16_t)i;
        pvti_dtype_info(PVT_F16)->decode(halves, first, 65536);
        pvti_decoder(ctx, PVT_F16)(halves, other, 65536);
        CHECK(memcmp(first, other, sizeof first) == 0);
        for (i = 0; i < 0x7c00; i++)
            if (first[i] != (pvt_real)half_value(i)) break;
        CHECK(i == 0x7c00);
    }
    { /* a block by hand: d = 0.5, nibbles 0 and 15 in byte 0 */
        uint8_t block[18] = {0x00, 0x38, 0xf0, 0x89};
        pvti_decoder(plain, PVT_Q4_0)(block, out, 1);
        CHECK(out[0] == -4 && out[16] == PVTI_R(3.5) && out[1] == PVTI_R(0.5) && out[17] == 0 &&
              out[2] == -4);
    }
    { /* plain types at an odd address, negative and large */
        int16_t s = -3;
        uint64_t u = 1ull << 40;
        memcpy(b + 1, &s, 2), pvti_dtype_info(PVT_I16)->decode(b + 1, out, 1);
        memcpy(b + 3, &u, 8), pvti_dtype_info(PVT_U64)->decode(b + 3, out + 1, 1);
        CHECK(out[0] == -3 && out[1] == PVTI_R(1099511627776.0));
    }
    CHECK(pvti_decoder(NULL, PVT_Q4_0) == NULL && pvti_decoder(NULL, PVT_F16) && !pvti_decoder(ctx, PVT_DTYPE_NONE));
    pvt_ctx_destroy(plain);
    CHECK(pvti_dtype_info(PVT_DTYPE_NONE) == NULL && pvti_dtype_info(PVT_DTYPE_COUNT) == NULL);
    CHECK(pvti_dtype_parse("F8_E4M3") == PVT_DTYPE_NONE && pvti_dtype_parse("") == PVT_DTYPE_NONE);
}

/* ---- JSON ---- */

static pvt_result parse(const char *text, pvti_json *j)
{
    return pvti_json_parse(ctx, "test.json", text, (int64_t)strlen(text), j);
}

static void test_json_refuses(void)
{
    static const char *const cases[][2] = {
        {"", "ends where a value"}, {"  ", "ends where"}, {"{", "key in quotes"}, {"[1,]", "not a value"},
        {"[1 2]", "',' or ']'"},
        {"{\"a\" 1}", "':'"},
        {"{\"a\":1,}", "key in quotes"},
        {"{a:1}", "key in quotes"},
        {"[1]x", "follows the end"}, {"nul", "not a value"}, {"truefalse", "follows"}, {"01", "not a value"},
        {"-", "not a value"}, {"+1", "not a value"}, {".5", "not a value"}, {"1.", "ends at its point"},
        {"1e", "empty exponent"},
        {"1e+", "empty exponent"},
        {"NaN", "not a value"},
        {"Infinity", "not a value"},
        {"'a'", "not a value"}, {"\"a", "not closed"}, {"\"\\", "bad escape"}, {"\"\\x\"", "bad escape"},
        {"\"\\u12g4\"", "bad escape"}, {"\"\\u12\"", "bad escape"}, {"\"\\ud800\"", "bad escape"},
        {"\"\\udc00\"", "bad escape"}, {"\"\\ud800\\u0041\"", "bad escape"}, {"\"\t\"", "control character"},
        {"\"\xff\"", "not UTF-8"}, {"\"\xc0\x80\"", "not UTF-8"}, {"\"\xed\xa0\x80\"", "not UTF-8"},
        {"\"\xf4\x90\x80\x80\"", "not UTF-8"},
        {"\"\xe2\x82\"", "not UTF-8"},
        {"\xef\xbb\xbf{}", "not a value"},
        {"{\"a\":1,\"a\":2}", "\"a\" occurs twice"}, {"{\"ab\":1,\"c\":3,\"\\u0061b\":2}", "occurs twice"},
        {"[\n1,\n  x]", "line 3, column 3"},
        {"[[]", "',' or ']'"},
        {"{\"a\":[}", "not a value"},
        {"/**/1", "not a value"},
    };
    char deep[200];
    pvti_json j;
    for (int i = 0; i < PVTI_COUNT(cases); i++) {
        refused(parse(cases[i][0], &j), PVT_ERR_FORMAT, cases[i][0], cases[i][1]);
        CHECK(strstr(pvt_ctx_error(ctx), "test.json") && j.nodes == NULL);
    }
    memset(deep, '[', 65), memset(deep + 65, ']', 65), deep[130] = 0;
    refused(parse(deep, &j), PVT_ERR_FORMAT, "65 levels", "64 levels");
    memset(deep, '[', 64), memset(deep + 64, ']', 64), deep[128] = 0;
    CHECK_OK(ctx, parse(deep, &j));
    pvti_json_free(&j);
    refused(pvti_json_parse(ctx, "nul", "[1]\0", 4, &j), PVT_ERR_FORMAT, "NUL", "follows");
}

static void test_json_numbers(void)
{
    static const struct { const char *text; double value; bool integer; } cases[] = {
        {"0", 0, true},
        {"-0", 0, true},
        {"1e-05", 1e-05, false},
        {"500000.0", 500000.0, true},
        {"1e-6", 1e-6, false},
        {"1E+2", 100, true}, {"0.1", 0.1, false}, {"123456789.123456", 123456789.123456, false},
        {"-2.5e-3", -2.5e-3, false}, {"1e22", 1e22, false}, {"9007199254740993", 9007199254740992.0, true},
        {"1.7976931348623157e308", 1.7976931348623157e308, false},
        {"5e-324", 5e-324, false},
        {"1e-400", 0, true},
        {"0.000000000000000000000000000000000000000000000000001e51", 1, true},
        {"3.141592653589793", 3.141592653589793, false},
        {"2.2250738585072014e-308", 2.2250738585072014e-308, false}, {"6.02214076e23", 6.02214076e23, false},
        {"10000000000000000000000000000000000000000e-40", 1, true},
        {"0.30000000000000004", 0.30000000000000004, false},
    };
    pvti_json j;
    double value;
    int64_t integer;
    for (int i = 0; i < PVTI_COUNT(cases); i++) {
        CHECK_OK(ctx, parse(cases[i].text, &j));
        CHECK_OK(ctx, pvti_json_number(&j, 0, &value) && value == cases[i].value
                          ? PVT_OK
                          : pvti_fail(ctx, PVT_ERR_NUMERIC, "%s reads as %.17g", cases[i].text, value));
        CHECK(pvti_json_int(&j, 0, &integer) == cases[i].integer);
        pvti_json_free(&j);
    }
    CHECK_OK(ctx, parse("[9223372036854775807, -9223372036854775808, 9223372036854775808, 1e999, \"1\", 1.5]",
                        &j));
    CHECK(pvti_json_int(&j, 1, &integer) && integer == INT64_MAX);
    CHECK(pvti_json_int(&j, 2, &integer) && integer == INT64_MIN);
    CHECK(!pvti_json_int(&j, 3, &integer) && !pvti_json_number(&j, 4, &value) &&
          !pvti_json_int(&j, 5, &integer));
    CHECK(!pvti_json_int(&j, 6, &integer) && !pvti_json_int(&j, -1, &integer) &&
          !pvti_json_int(&j, 99, &integer));
    pvti_json_free(&j);
}

static void test_json_values(void)
{
    seed b;
    pvti_json j;
    char out[32];
    int64_t n = 0;
    bool truth = false;
    seed_json(&b);
    CHECK_OK(ctx, pvti_json_parse(ctx, "seed", (const char *)b.data, b.size, &j));
    CHECK(pvti_json_type(&j, 0) == PVTI_JSON_OBJECT && pvti_json_count(&j, 0) == 5);
    for (int64_t node = pvti_json_first(&j, pvti_json_find(&j, 0, "a")); node >= 0;
         node = pvti_json_next(&j, node))
        n++;
    CHECK(n == 5 && pvti_json_count(&j, pvti_json_find(&j, 0, "a")) == 5);
    CHECK(pvti_json_bool(&j, 4, &truth) && truth && pvti_json_type(&j, 5) == PVTI_JSON_NULL);
    int64_t node = pvti_json_find(&j, 0, "b\xc3\xa9\n"); /* written with escapes */
    CHECK(node > 0 && pvti_json_string(&j, node, out, sizeof out) == 6 &&
          strcmp(out, "x\xf0\x9f\x98\x80\"") == 0);
    CHECK(pvti_json_equals(&j, node, "x\xf0\x9f\x98\x80\"") && !pvti_json_equals(&j, node, "x"));
    CHECK(pvti_json_string(&j, node, out, 3) == 6 && pvti_json_string(&j, node, NULL, 0) == 6);
    CHECK(pvti_json_key(&j, node, out, sizeof out) == 4 && strcmp(out, "b\xc3\xa9\n") == 0);
    CHECK(pvti_json_find(&j, 0, "\xc3\xa9") > 0 && pvti_json_find(&j, 0, "b") < 0 &&
          pvti_json_find(&j, 1, "a") < 0);
    CHECK(pvti_json_first(&j, -1) < 0 && pvti_json_next(&j, -1) < 0 &&
          pvti_json_type(&j, -1) == PVTI_JSON_NONE);
    CHECK(pvti_json_string(&j, -1, out, 4) < 0 && pvti_json_key(&j, -1, out, 4) < 0 &&
          pvti_json_count(&j, -1) == 0);
    CHECK(!pvti_json_equals(&j, -1, "") && pvti_json_find(&j, -1, "a") < 0 && pvti_json_next(&j, 0) < 0);
    pvti_json_free(&j);
    pvti_json_free(&j);
    CHECK_OK(ctx, parse("{\"\\u0000\":\"a\\u0000b\",\"\":1}", &j));
    CHECK(pvti_json_string(&j, 1, out, sizeof out) == 3 && memcmp(out, "a\0b", 4) == 0 &&
          pvti_json_find(&j, 0, "") == 2);
    pvti_json_free(&j);
}

/* 60,000 keys: quick if and only if nothing is quadratic. */
static void test_json_large(void)
{
    pvti_text t = pvti_text_begin(ctx);
    pvti_json j;
    char key[16];
    double start = pvti_seconds();
    pvti_text_put(&t, "{", 1);
    for (int i = 0; i < 60000; i++)
        pvti_text_printf(&t, "%s\"key %d\":%d", i ? "," : "", i * 7919 % 60000, i);
    pvti_text_put(&t, "}", 1);
    CHECK_OK(ctx, pvti_json_parse(ctx, "large", t.data, t.size, &j));
    CHECK(pvti_json_count(&j, 0) == 60000 && pvti_json_key(&j, 2, key, 16) == 8 &&
          strcmp(key, "key 7919") == 0);
    pvti_json_free(&j);
    t.size--;
    pvti_text_printf(&t, ",\"key 59999\":0}");
    refused(pvti_json_parse(ctx, "large", t.data, t.size, &j), PVT_ERR_FORMAT, "large",
            "\"key 59999\" occurs twice");
    pvti_text_free(&t);
    CHECK(pvti_seconds() - start < 5);
}

static void test_json_writing(void)
{
    static const double numbers[] = {
        0, -1, 0.1, 1.0 / 3, 1e-5, 3.4028234663852886e38, 5e-324, 123456789012345680.0, 2.5};
    pvti_text t = pvti_text_begin(ctx);
    pvti_json j;
    char out[64];
    double value;
    int i;
    CHECK(pvti_json_escape("a\"\\\n\x01\xc3\xa9", 7, out, sizeof out) == 15);
    CHECK(strcmp(out, "a\\\"\\\\\\n\\u0001\xc3\xa9") == 0);
    CHECK(pvti_json_escape("\xff"
                           "a\xe2\x82",
                           4, out, sizeof out) == 19 &&
          strcmp(out, "\\ufffda\\ufffd\\ufffd") == 0);
    CHECK(pvti_json_escape("abc", 3, out, 2) == 3);
    if (!setlocale(LC_NUMERIC, "de_DE.UTF-8"))
        setlocale(LC_NUMERIC, "fr_FR.UTF-8"); /* a comma, where installed */
    pvti_text_put(&t, "[", 1);
    for (i = 0; i < PVTI_COUNT(numbers); i++) pvti_text_number(&t, numbers[i], 0), pvti_text_put(&t, ",", 1);
    pvti_text_number(&t, NAN, 0);
    pvti_text_put(&t, ",", 1);
    pvti_text_number(&t, 2.0 / 3, 4);
    pvti_text_printf(&t, ",");
    pvti_text_string(&t, "\"q\"\0", 4);
    pvti_text_printf(&t, "%s", "]");
    CHECK_OK(ctx, pvti_text_check(&t));
    CHECK_OK(ctx, parse(t.data, &j));
    for (i = 0; i < PVTI_COUNT(numbers); i++)
        CHECK(pvti_json_number(&j, i + 1, &value) && value == numbers[i]);
    CHECK(pvti_json_type(&j, i + 1) == PVTI_JSON_NULL);
    CHECK(pvti_json_number(&j, i + 2, &value) && value == 0.6667);
    CHECK(pvti_json_string(&j, i + 3, out, 64) == 4 && memcmp(out, "\"q\"\0", 4) == 0);
    setlocale(LC_NUMERIC, "C");
    pvti_json_free(&j);
    pvti_text_free(&t);
}

/* ---- safetensors ---- */

static void test_safetensors_reads(void)
{
    seed b;
    pvti_safetensors st;
    int64_t i;
    char text[8];
    seed_safetensors(&b);
    CHECK_OK(ctx, pvti_safetensors_read(ctx, "seed", b.data, b.size, &st));
    CHECK(st.n == 4);
    const pvti_tensor *t = pvti_safetensors_find(&st, "a.weight");
    CHECK(t && t->dtype == PVT_F32 && t->rank == 2 && t->shape[0] == 2 && t->shape[1] == 3 && t->bytes == 24);
    CHECK(t && t->data == b.data + b.size - 42 && pvti_tensor_count(t) == 6);
    t = pvti_safetensors_find(&st, "scalar");
    CHECK(t && t->rank == 0 && pvti_tensor_count(t) == 1 && t->bytes == 8);
    t = pvti_safetensors_find(&st, "empty");
    CHECK(t && t->bytes == 0 && t->data && t->shape[1] == 7);
    CHECK(!pvti_safetensors_find(&st, "A.weight") && !pvti_safetensors_find(&st, "") &&
          pvti_safetensors_find(&st, "b"));
    CHECK(pvti_safetensors_metadata(&st, "format", text, 8) == 2 && strcmp(text, "pt") == 0);
    CHECK(pvti_safetensors_metadata(&st, "absent", text, 8) < 0);
    pvti_safetensors_close(&st);
    pvti_safetensors_close(&st);
    for (i = 0; i < b.size; i++) { /* every file that was cut off */
        if (pvti_safetensors_read(ctx, "cut", b.data, i, &st) != PVT_ERR_FORMAT) break;
    }
    CHECK(i == b.size);
    seed_safetensors_of(&b, "{}", 0);
    CHECK_OK(ctx, pvti_safetensors_read(ctx, "none", b.data, b.size, &st));
    CHECK(st.n == 0 && !pvti_safetensors_find(&st, "a") && pvti_safetensors_metadata(&st, "a", text, 8) < 0);
    pvti_safetensors_close(&st);
}

static void test_safetensors_refuses(void)
{
#define BODY(dtype, shape, offsets) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define ENTRY(dtype, shape, offsets) "{\"t\":" BODY(dtype, shape, offsets) "}"
#define PAIR(a, b) "{\"t\":" BODY("U8", "[4]", a) ",\"u\":" BODY("U8", "[4]", b) "}"
    static const struct { const char *header; int bytes; pvt_result result; const char *says; } cases[] = {
        {"[]", 0, PVT_ERR_FORMAT, "hostile.st|not a JSON object"}, {"", 0, PVT_ERR_FORMAT, "header|JSON"},
        {"{\"t\":1}", 0, PVT_ERR_FORMAT, "\"t\"|dtype"}, {"{\"t\":{}}", 0, PVT_ERR_FORMAT, "\"t\"|dtype"},
        {ENTRY("F32", "[1]", "[0]"), 4, PVT_ERR_FORMAT, "two numbers"},
        {ENTRY("F32", "[1]", "[0,4,8]"), 4, PVT_ERR_FORMAT, "two numbers"},
        {ENTRY("F32", "{}", "[0,4]"), 4, PVT_ERR_FORMAT, "shape"},
        {ENTRY("F8_E4M3", "[4]", "[0,4]"), 4, PVT_ERR_UNSUPPORTED, "\"t\"|F8_E4M3"},
        {ENTRY("Q4_0", "[32]", "[0,18]"), 18, PVT_ERR_UNSUPPORTED, "Q4_0"},
        {ENTRY("A_VERY_LONG_NAME_OF_A_DTYPE", "[4]", "[0,4]"), 4, PVT_ERR_UNSUPPORTED, "A_VERY"},
        {ENTRY("F32", "[-1]", "[0,4]"), 4, PVT_ERR_FORMAT, "shape"},
        {ENTRY("F32", "[1.5]", "[0,4]"), 4, PVT_ERR_FORMAT, "shape"},
        {ENTRY("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, PVT_ERR_UNSUPPORTED, "dimensions"},
        {ENTRY("F32", "[4294967296,4294967296]", "[0,0]"), 0, PVT_ERR_FORMAT, "\"t\"|bytes"},
        {ENTRY("F32", "[4611686018427387905]", "[0,4]"), 4, PVT_ERR_FORMAT, "bytes"},
        {ENTRY("F32", "[2]", "[0,4]"), 4, PVT_ERR_FORMAT, "\"t\"|bytes"},
        {ENTRY("F32", "[1]", "[0,8]"), 8, PVT_ERR_FORMAT, "bytes"},
        {ENTRY("F32", "[1]", "[0,4]"), 3, PVT_ERR_FORMAT, "do not lie in"},
        {ENTRY("F32", "[1]", "[4,0]"), 4, PVT_ERR_FORMAT, "do not lie"},
        {ENTRY("F32", "[1]", "[-4,0]"), 4, PVT_ERR_FORMAT, "do not lie"},
        {ENTRY("F32", "[1]", "[\"0\",4]"), 4, PVT_ERR_FORMAT, "do not lie"},
        {ENTRY("F32", "[1]", "[9223372036854775804,9223372036854775808]"), 4, PVT_ERR_FORMAT, "do not lie"},
        {ENTRY("F32", "[1]", "[0,4]"), 5, PVT_ERR_FORMAT, "1 bytes follow"},
        {ENTRY("F32", "[1]", "[4,8]"), 8, PVT_ERR_FORMAT, "gap"},
        {PAIR("[0,4]", "[0,4]"), 4, PVT_ERR_FORMAT, "inside another"},
        {PAIR("[0,4]", "[2,6]"), 6, PVT_ERR_FORMAT, "inside another"},
        {PAIR("[5,9]", "[0,4]"), 9, PVT_ERR_FORMAT, "\"t\"|gap"},
        {"{\"t\":" BODY("U8", "[0]", "[0,0]") ",\"t\":" BODY("U8", "[0]", "[0,0]") "}", 0, PVT_ERR_FORMAT,
         "\"t\" occurs twice"},
        {"{\"a\\u0000\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, PVT_ERR_FORMAT, "NUL"},
        {"{\"__metadata__\":3}", 0, PVT_ERR_FORMAT, "__metadata__"},
        {"{\"__metadata__\":{\"a\":1}}", 0, PVT_ERR_FORMAT, "__metadata__"},
        {"{} x", 0, PVT_ERR_FORMAT, "follows"},
    };
    pvti_safetensors st;
    seed b;
    for (int i = 0; i < PVTI_COUNT(cases); i++) {
        seed_safetensors_of(&b, cases[i].header, cases[i].bytes);
        refused(pvti_safetensors_read(ctx, "hostile.st", b.data, b.size, &st), cases[i].result,
                cases[i].header, cases[i].says);
        CHECK(st.tensors == NULL);
    }
    seed_safetensors_of(&b, PAIR("[4,8]", "[0,4]"), 8); /* any order in the header */
    CHECK_OK(ctx, pvti_safetensors_read(ctx, "swapped", b.data, b.size, &st));
    pvti_safetensors_close(&st);
    pvti_store_u64(b.data, 100000001);
    refused(pvti_safetensors_read(ctx, "st", b.data, b.size, &st), PVT_ERR_FORMAT, "long header", "100 MB");
    pvti_store_u64(b.data, UINT64_MAX);
    refused(pvti_safetensors_read(ctx, "st", b.data, b.size, &st), PVT_ERR_FORMAT, "longest header",
            "100 MB");
    pvti_store_u64(b.data, 5000);
    refused(pvti_safetensors_read(ctx, "st", b.data, b.size, &st), PVT_ERR_FORMAT, "header beyond the end",
            "cut off");
}

static pvti_tensor tensor_of(const char *name, pvt_dtype dtype, int64_t rows, int64_t columns,
                             const void *data)
{
    pvti_tensor t;
    memset(&t, 0, sizeof t);
    t.name = name, t.dtype = dtype, t.rank = 2, t.shape[0] = rows, t.shape[1] = columns;
    t.data = (const uint8_t *)data;
    t.bytes = rows * columns * pvti_dtype_info(dtype)->bytes;
    return t;
}

static pvt_result put_counting(void *user, int64_t index, pvti_writer *w)
{
    uint16_t i;
    (void)index;
    for (i = 0; i < *(int *)user; i++) PVTI_TRY(pvti_writer_put(w, &i, 2));
    return PVT_OK;
}

static void test_safetensors_writes(void)
{
    static const float values[6] = {1, -2, 3.5f, 0, 1e-30f, 6};
    static const uint8_t codes[3] = {0, 127, 255};
    const char *const metadata[] = {"format", "pt", "note", "\"q\" \xc3\xa9", NULL};
    pvti_tensor tensors[5];
    pvti_safetensors st;
    char path[PVTI_PATH_BYTES], note[16];
    int count = 4;
    snprintf(path, sizeof path, "%s", in_dir("w.safetensors"));
    tensors[0] = tensor_of("z.codes", PVT_U8, 1, 3, codes);
    tensors[1] = tensor_of("b \"quoted\"", PVT_F32, 2, 3, values);
    tensors[2] = tensor_of("a", PVT_F32, 1, 2, values);
    tensors[3] = tensor_of("made", PVT_F16, 2, 2, NULL);
    tensors[4] = tensor_of("none", PVT_I64, 0, 2, NULL);
    CHECK_OK(ctx, pvti_safetensors_write_from(ctx, path, tensors, 5, metadata, put_counting, &count));
    CHECK_OK(ctx, pvti_safetensors_open(ctx, path, &st));
    CHECK(st.n == 5 && (st.tensors[0].data - st.map.data) % 8 == 0);
    CHECK(strcmp(st.tensors[0].name, "none") == 0 &&
          strcmp(st.tensors[1].name, "a") == 0); /* by size, then name */
    CHECK(strcmp(st.tensors[2].name, "b \"quoted\"") == 0 && strcmp(st.tensors[4].name, "z.codes") == 0);
    const pvti_tensor *t = pvti_safetensors_find(&st, "b \"quoted\"");
    CHECK(t && t->rank == 2 && t->shape[1] == 3 && memcmp(t->data, values, sizeof values) == 0);
    t = pvti_safetensors_find(&st, "made");
    CHECK(t && t->data[6] == 3 && t->data[7] == 0);
    CHECK(pvti_safetensors_metadata(&st, "note", note, 16) == 6 && strcmp(note, "\"q\" \xc3\xa9") == 0);
    pvti_safetensors_close(&st);

    count = 3; /* the source puts too little: the good file stays */
    refused(pvti_safetensors_write_from(ctx, path, tensors, 5, NULL, put_counting, &count), PVT_ERR_ARGUMENT,
            "too little", "\"made\"|6 bytes|not 8");
    tensors[4].name = "a";
    refused(pvti_safetensors_write(ctx, path, tensors, 5, NULL), PVT_ERR_ARGUMENT, "duplicate",
            "two tensors|\"a\"");
    tensors[4].name = "__metadata__";
    refused(pvti_safetensors_write(ctx, path, tensors, 5, NULL), PVT_ERR_ARGUMENT, "reserved",
            "__metadata__");
    tensors[4].name = "a\xff"; /* "a\xfe" would be read back as the same name */
    refused(pvti_safetensors_write(ctx, path, tensors, 5, NULL), PVT_ERR_ARGUMENT, "no UTF-8", "name");
    tensors[4] = tensor_of("q", PVT_F32, 1, 3, values), tensors[4].bytes = 8;
    refused(pvti_safetensors_write(ctx, path, tensors, 5, NULL), PVT_ERR_ARGUMENT, "bytes", "\"q\"");
    CHECK_OK(ctx, pvti_safetensors_open(ctx, path, &st));
    CHECK(st.n == 5 && no_temporaries());
    pvti_safetensors_close(&st);
    CHECK_OK(ctx, pvti_safetensors_write(ctx, path, tensors, 0, NULL));
    CHECK_OK(ctx, pvti_safetensors_open(ctx, path, &st));
    CHECK(st.n == 0);
    pvti_safetensors_close(&st);
}

static void write_text(const char *path, const char *text)
{
    CHECK_OK(ctx, pvti_file_write(ctx, path, text, (int64_t)strlen(text)));
}

static void test_shards(void)
{
    static const float values[2] = {1, 2};
    static const struct { const char *index; pvt_result result; const char *says; } cases[] = {
        {"{}", PVT_ERR_FORMAT, "index.json|weight_map"},
        {"{\"weight_map\":[1]}", PVT_ERR_FORMAT, "weight_map"},
        {"{\"weight_map\":{}}", PVT_ERR_FORMAT, "weight_map"},
        {"{\"weight_map\":{\"a\":1}}", PVT_ERR_FORMAT, "\"a\"|plain name"},
        {"{\"weight_map\":{\"a\":\"../x.safetensors\"}}", PVT_ERR_FORMAT, "plain name"},
        {"{\"weight_map\":{\"a\":\"x/y\"}}", PVT_ERR_FORMAT, "plain name"},
        {"{\"weight_map\":{\"a\":\"x\\\\y\"}}", PVT_ERR_FORMAT, "plain name"},
        {"{\"weight_map\":{\"a\":\"..\"}}", PVT_ERR_FORMAT, "plain name"},
        {"{\"weight_map\":{\"a\":\"\"}}", PVT_ERR_FORMAT, "plain name"},
        {"{\"weight_map\":{\"a\":\"one\\u0000/x\"}}", PVT_ERR_FORMAT, "plain name"},
        {"{\"weight_map\":{\"a\":\"absent.safetensors\"}}", PVT_ERR_IO, "absent.safetensors|cannot be"},
        {"{\"weight_map\":{\"b\":\"one.safetensors\"}}", PVT_ERR_MISMATCH, "\"b\"|one.safetensors"},
        {"{\"weight_map\":{\"a\":\"model.safetensors.index.json\"}}", PVT_ERR_FORMAT, "index.json"},
        {"{", PVT_ERR_FORMAT, "index.json|JSON"},
    };
    char path[PVTI_PATH_BYTES], index[PVTI_PATH_BYTES];
    pvti_tensor a = tensor_of("a", PVT_F32, 1, 2, values), b = tensor_of("b", PVT_F32, 2, 1, values);
    pvti_shards set;
    snprintf(path, sizeof path, "%s", in_dir("sharded"));
    CHECK_OK(ctx, pvti_directory_create(ctx, path));
    refused(pvti_shards_open(ctx, path, &set), PVT_ERR_IO, "empty directory", "sharded|neither");
    CHECK_OK(ctx, pvti_safetensors_write(ctx, in_dir("sharded/one.safetensors"), &a, 1, NULL));
    CHECK_OK(ctx, pvti_safetensors_write(ctx, in_dir("sharded/two.safetensors"), &b, 1, NULL));
    snprintf(index, sizeof index, "%s", in_dir("sharded/model.safetensors.index.json"));
    for (int i = 0; i < PVTI_COUNT(cases); i++) {
        write_text(index, cases[i].index);
        refused(pvti_shards_open(ctx, path, &set), cases[i].result, cases[i].index, cases[i].says);
        CHECK(set.tensors == NULL);
    }
    write_text(index, "{\"metadata\":{\"total_size\":16},\"weight_map\":{\"b\":\"two.safetensors\",\"a\":"
                      "\"one.safetensors\"}}");
    CHECK_OK(ctx, pvti_shards_open(ctx, path, &set));
    CHECK(set.n == 2 && set.n_files == 2 && pvti_shards_find(&set, "b") &&
          pvti_shards_find(&set, "b")->shape[0] == 2);
    CHECK(!pvti_shards_find(&set, "c") && memcmp(pvti_shards_find(&set, "a")->data, values, 8) == 0);
    pvti_shards_close(&set);
    CHECK_OK(ctx,
             pvti_safetensors_write(ctx, in_dir("sharded/model.safetensors"), &a, 1, NULL)); /* goes first */
    CHECK_OK(ctx, pvti_shards_open(ctx, path, &set));
    CHECK(set.n == 1 && pvti_shards_find(&set, "a") && !pvti_shards_find(&set, "b"));
    pvti_shards_close(&set);
}

/* ---- GGUF ---- */

static void test_gguf_reads(void)
{
    seed b;
    pvti_gguf g;
    pvti_gguf_array array;
    const char *s;
    int64_t n, integer = 0;
    double number = 0;
    bool truth = false;
    seed_gguf(&b);
    CHECK_OK(ctx, pvti_gguf_read(ctx, "seed", b.data, b.size, &g));
    CHECK(g.n == 3 && g.n_kv == 9 && g.version == 3 && g.alignment == 32);
    CHECK(pvti_gguf_string(&g, "general.architecture", &s, &n) && n == 5 && memcmp(s, "llama", 5) == 0);
    CHECK(pvti_gguf_equals(&g, "general.architecture", "llama") && !pvti_gguf_equals(&g, "eps", "llama"));
    CHECK(pvti_gguf_bool(&g, "yes", &truth) && truth && !pvti_gguf_bool(&g, "eps", &truth));
    CHECK(pvti_gguf_int(&g, "small", &integer) && integer == -2);
    CHECK(!pvti_gguf_int(&g, "eps", &integer) && !pvti_gguf_int(&g, "yes", &integer) &&
          !pvti_gguf_int(&g, "no", &integer));
    CHECK(integer == -2);
    CHECK(pvti_gguf_number(&g, "eps", &number) && number == (double)1e-5f);
    CHECK(pvti_gguf_number(&g, "quarter", &number) && number == 0.25 &&
          pvti_gguf_number(&g, "small", &number));
    CHECK(pvti_gguf_get_array(&g, "tokens", &array) && array.n == 3 && array.type == PVTI_GGUF_STRING);
    CHECK(pvti_gguf_array_string(&array, &s, &n) && n == 3 && memcmp(s, "<s>", 3) == 0);
    CHECK(pvti_gguf_array_string(&array, &s, &n) && n == 0 && pvti_gguf_array_string(&array, &s, &n) &&
          s[2] == 'z');
    CHECK(!pvti_gguf_array_string(&array, &s, &n) && !pvti_gguf_array_int(&array, 0, &integer));
    CHECK(pvti_gguf_get_array(&g, "ids", &array) && array.n == 2 &&
          pvti_gguf_array_int(&array, 1, &integer) && integer == -1);
    CHECK(pvti_gguf_array_number(&array, 0, &number) && number == 7 &&
          !pvti_gguf_array_int(&array, 2, &integer));
    CHECK(!pvti_gguf_array_int(&array, -1, &integer) && !pvti_gguf_get_array(&g, "eps", &array));
    const pvti_tensor *t = pvti_gguf_find(&g, "w");
    CHECK(t && t->dtype == PVT_Q4_0 && t->rank == 2 && t->shape[0] == 2 && t->shape[1] == 32 &&
          t->bytes == 36);
    t = pvti_gguf_find(&g, "norm");
    CHECK(t && t->data == b.data + b.size - 12 && !pvti_gguf_find(&g, "W"));
    pvti_gguf_close(&g);
    pvti_gguf_close(&g);
    for (n = 0; n < b.size; n++)
        if (pvti_gguf_read(ctx, "cut", b.data, n, &g) != PVT_ERR_FORMAT) break;
    CHECK(n == b.size);
    b.data[4] = 2; /* version 2 */
    CHECK_OK(ctx, pvti_gguf_read(ctx, "v2", b.data, b.size, &g));
    pvti_gguf_close(&g);
    seed_gguf_head(&b, 0, 0); /* no keys, no tensors, no padding: legal */
    CHECK_OK(ctx, pvti_gguf_read(ctx, "none", b.data, b.size, &g));
    CHECK(g.n == 0 && !pvti_gguf_find(&g, "w"));
    pvti_gguf_close(&g);
}

static void gguf_refused(const seed *b, pvt_result result, const char *says)
{
    pvti_gguf g;
    refused(pvti_gguf_read(ctx, "hostile.gguf", b->data, b->size, &g), result, says, says);
    CHECK(strstr(pvt_ctx_error(ctx), "hostile.gguf") && g.tensors == NULL);
}

static void test_gguf_refuses_keys(void)
{
    seed b;
    seed_gguf_head(&b, 0, 0), b.data[0] = 'g', gguf_refused(&b, PVT_ERR_FORMAT, "not a GGUF");
    seed_gguf_head(&b, 0, 0), b.data[4] = 1, gguf_refused(&b, PVT_ERR_UNSUPPORTED, "version 1");
    seed_gguf_head(&b, 0, 0), b.data[4] = 0, b.data[7] = 3,
                              gguf_refused(&b, PVT_ERR_UNSUPPORTED, "big-endian");
    seed_gguf_head(&b, 0, UINT64_MAX), gguf_refused(&b, PVT_ERR_FORMAT, "keys|more than the file");
    seed_gguf_head(&b, 1ull << 60, 0), gguf_refused(&b, PVT_ERR_FORMAT, "tensors|more than the file");
    seed_gguf_head(&b, 0, 1), put_u64(&b, UINT64_MAX), put_u64(&b, 0),
        gguf_refused(&b, PVT_ERR_FORMAT, "key 0");
    seed_gguf_head(&b, 0, 1), put_key(&b, "", 0), put_u64(&b, 0),
        gguf_refused(&b, PVT_ERR_FORMAT, "key 0|0 bytes");
    seed_gguf_head(&b, 0, 1), put_key(&b, "k", 13), put_u64(&b, 0),
        gguf_refused(&b, PVT_ERR_FORMAT, "\"k\"|type 13");
    seed_gguf_head(&b, 0, 1), put_key(&b, "k", 7), put_u64(&b, 2),
        gguf_refused(&b, PVT_ERR_FORMAT, "\"k\"|type 7");
    seed_gguf_head(&b, 0, 1), put_key(&b, "k", 8), put_u64(&b, 9),
        gguf_refused(&b, PVT_ERR_FORMAT, "\"k\"|damaged");
    seed_gguf_head(&b, 0, 1), put_key(&b, "k", 8), put_u64(&b, UINT64_MAX),
        gguf_refused(&b, PVT_ERR_FORMAT, "\"k\"");
    seed_gguf_head(&b, 0, 1), put_key(&b, "k", 9), put_u32(&b, 12), put_u64(&b, 1ull << 61),
        gguf_refused(&b, PVT_ERR_FORMAT, "\"k\"");
    seed_gguf_head(&b, 0, 1), put_key(&b, "k", 9), put_u32(&b, 8), put_u64(&b, UINT64_MAX),
        gguf_refused(&b, PVT_ERR_FORMAT, "\"k\"");
    seed_gguf_head(&b, 0, 1), put_key(&b, "k", 9), put_u32(&b, 9), put_u64(&b, UINT64_MAX),
        gguf_refused(&b, PVT_ERR_FORMAT, "\"k\"");
    seed_gguf_head(&b, 0, 1), put_key(&b, "k", 9);
    for (int i = 0; i < 1000; i++) put_u32(&b, 9), put_u64(&b, 1); /* arrays in arrays in … */
    gguf_refused(&b, PVT_ERR_FORMAT, "\"k\"|damaged");
    seed_gguf_head(&b, 0, 2), put_key(&b, "twin", 0), put(&b, "x", 1), put_key(&b, "twin", 1),
        put(&b, "x", 1);
    gguf_refused(&b, PVT_ERR_FORMAT, "\"twin\" occurs twice");
    for (int i = 0; i < 4; i++) {
        static const uint32_t alignments[] = {0, 3, 33, 1u << 31};
        seed_gguf_head(&b, 0, 1), put_key(&b, "general.alignment", 4), put_u32(&b, alignments[i]);
        gguf_refused(&b, PVT_ERR_FORMAT, "general.alignment");
    }
    seed_gguf_head(&b, 0, 1), put_key(&b, "general.alignment", 8), put_string(&b, "32");
    gguf_refused(&b, PVT_ERR_FORMAT, "general.alignment");
}

/* One tensor, 64 bytes of data. */
static void gguf_tensor(seed *b, const char *name, uint64_t columns, uint64_t rows, uint32_t type,
                        uint64_t offset)
{
    seed_gguf_head(b, 1, 0);
    put_info(b, name, columns, rows, type, offset);
    seed_gguf_align(b);
    put_fill(b, 64);
}

static void test_gguf_refuses_tensors(void)
{
    seed b;
    pvti_gguf g;
    char name[80];
    memset(name, 'n', sizeof name), name[64] = 0;
    gguf_tensor(&b, "t", 4, 4, 0, 0);
    CHECK_OK(ctx, pvti_gguf_read(ctx, "good", b.data, b.size, &g));
    pvti_gguf_close(&g);
    gguf_tensor(&b, "t", 4, 5, 0, 0), gguf_refused(&b, PVT_ERR_FORMAT, "\"t\"|80 bytes|cut off");
    gguf_tensor(&b, "t", 4, 1, 0, 64), gguf_refused(&b, PVT_ERR_FORMAT, "\"t\"|16 bytes|cut off");
    gguf_tensor(&b, "t", 4, 1, 0, UINT64_MAX - 31), gguf_refused(&b, PVT_ERR_FORMAT, "\"t\"|cut off");
    gguf_tensor(&b, "t", 4, 1, 0, 4), gguf_refused(&b, PVT_ERR_FORMAT, "\"t\"|not aligned");
    gguf_tensor(&b, "t", 1ull << 62, 1ull << 62, 0, 0),
        gguf_refused(&b, PVT_ERR_FORMAT, "\"t\"|out of range");
    gguf_tensor(&b, "t", 1ull << 63, 1, 0, 0), gguf_refused(&b, PVT_ERR_FORMAT, "\"t\"|dimension");
    gguf_tensor(&b, "t", 33, 1, 2, 0), gguf_refused(&b, PVT_ERR_FORMAT, "\"t\"|multiple of the 32|Q4_0");
    gguf_tensor(&b, "t", 32, 1, 4, 0), gguf_refused(&b, PVT_ERR_UNSUPPORTED, "\"t\"|type 4");
    gguf_tensor(&b, "t", 32, 1, 39, 0), gguf_refused(&b, PVT_ERR_UNSUPPORTED, "\"t\"|type 39");
    gguf_tensor(&b, "t", 32, 1, 0xffffffffu, 0), gguf_refused(&b, PVT_ERR_UNSUPPORTED, "type 4294967295");
    gguf_tensor(&b, name, 4, 1, 0, 0), gguf_refused(&b, PVT_ERR_FORMAT, "tensor 0|1 to 63");
    gguf_tensor(&b, "", 4, 1, 0, 0), gguf_refused(&b, PVT_ERR_FORMAT, "tensor 0|1 to 63");
    gguf_tensor(&b, "tt", 4, 1, 0, 0), b.data[33] = 0, gguf_refused(&b, PVT_ERR_FORMAT, "none of them 0");
    gguf_tensor(&b, "t", 4, 1, 0, 0), b.data[33] = 5, gguf_refused(&b, PVT_ERR_FORMAT, "\"t\"|5 dimensions");
    seed_gguf_head(&b, 2, 0), put_info(&b, "t", 4, 1, 0, 0), put_info(&b, "t", 4, 1, 0, 32),
        seed_gguf_align(&b);
    put_fill(&b, 64), gguf_refused(&b, PVT_ERR_FORMAT, "two tensors|\"t\"");
    seed_gguf_head(&b, 2, 0), put_info(&b, "t", 9, 1, 0, 0), put_info(&b, "u", 4, 1, 0, 32),
        seed_gguf_align(&b);
    put_fill(&b, 64), gguf_refused(&b, PVT_ERR_FORMAT, "\"u\"|overlaps");
}

/* ---- llama2.c ---- */

static void test_llama2c(void)
{
    seed b;
    pvti_llama2c m;
    pvti_tensor layer;
    int i;
    for (int shared = 0; shared < 2; shared++) {
        seed_llama2c(&b, shared);
        CHECK_OK(ctx, pvti_llama2c_read(ctx, "seed", b.data, b.size, &m));
        CHECK(m.dim == 4 && m.n_layers == 2 && m.vocab_size == 5 && m.shared == (shared != 0));
        CHECK(m.wk.rank == 3 && m.wk.shape[0] == 2 && m.wk.shape[1] == 2 && m.wk.shape[2] == 4);
        CHECK(m.token_embedding.data == b.data + 28 && m.rms_att.data == b.data + 28 + 80);
        CHECK(shared ? m.wcls.data == m.token_embedding.data : m.wcls.data == b.data + b.size - 80);
        layer = pvti_llama2c_layer(&m.w2, 1);
        CHECK(layer.rank == 2 && layer.shape[0] == 4 && layer.shape[1] == 6 && layer.data == m.w2.data + 96);
        layer = pvti_llama2c_layer(&m.rms_ffn, 1);
        CHECK(layer.rank == 1 && layer.shape[0] == 4 && layer.bytes == 16);
        pvti_llama2c_close(&m);
        for (i = 0; i < b.size; i++)
            if (pvti_llama2c_read(ctx, "cut", b.data, i, &m) != PVT_ERR_FORMAT) break;
        CHECK(i == b.size);
        refused(pvti_llama2c_read(ctx, "x.bin", b.data, b.size + 4, &m), PVT_ERR_FORMAT, "too long",
                "x.bin|4 bytes too many");
    }
    for (i = 0; i < 7; i++) {
        static const int32_t bad[] = {0, INT32_MIN, INT32_MAX};
        for (int k = 0; k < 3; k++) {
            seed_llama2c(&b, true);
            pvti_store_u32(b.data + 4 * i, (uint32_t)bad[k]);
            refused(pvti_llama2c_read(ctx, "x.bin", b.data, b.size, &m), PVT_ERR_FORMAT, "header",
                    "x.bin|llama2.c");
        }
    }
    seed_llama2c(&b, true), memcpy(b.data, "24ka", 4);
    refused(pvti_llama2c_read(ctx, "x.bin", b.data, b.size, &m), PVT_ERR_UNSUPPORTED, "version 1",
            "version 0");
}

/* ---- memory that ends ---- */

/* Runs reader number `which`; every failure must be one of memory. */
static pvt_result read_something(pvt_ctx *c, int which)
{
    static seed b;
    static const float values[2] = {1, 2};
    pvti_tensor t[2];
    pvti_json j;
    pvti_map map;
    pvti_safetensors st;
    pvti_shards set;
    pvti_gguf g;
    pvti_llama2c m;
    pvt_result result = PVT_OK;
    t[0] = tensor_of("a", PVT_F32, 1, 2, values), t[1] = tensor_of("b", PVT_F32, 1, 2, values);
    switch (which) {
    case 0:
        seed_json(&b), result = pvti_json_parse(c, "j", (const char *)b.data, b.size, &j), pvti_json_free(&j);
        break;
    case 1:
        seed_safetensors(&b), result = pvti_safetensors_read(c, "s", b.data, b.size, &st),
                              pvti_safetensors_close(&st);
        break;
    case 2: seed_gguf(&b), result = pvti_gguf_read(c, "g", b.data, b.size, &g), pvti_gguf_close(&g); break;
    case 3:
        seed_llama2c(&b, false), result = pvti_llama2c_read(c, "m", b.data, b.size, &m),
                                 pvti_llama2c_close(&m);
        break;
    case 4: result = pvti_safetensors_write(c, in_dir("memory"), t, 2, NULL); break;
    case 5: result = pvti_shards_open(c, in_dir("indexed"), &set), pvti_shards_close(&set); break;
    case 6: result = pvti_map_open_stream(c, NOTHING, &map), pvti_map_close(c, &map); break;
    default: result = pvti_json_open(c, in_dir("indexed/model.safetensors.index.json"), &map, &j);
        pvti_json_free(&j), pvti_map_close(c, &map); break;
    }
    return result;
}

static void test_scarce_memory(void)
{
    test_budget budget = {1000, 0, false};
    static const float values[2] = {1, 2};
    pvti_tensor a = tensor_of("a", PVT_F32, 1, 2, values), b = tensor_of("b", PVT_F32, 1, 2, values);
    pvt_ctx_desc desc;
    pvt_ctx *c;
    int n;
    CHECK_OK(ctx, pvti_directory_create(ctx, in_dir("indexed")));
    CHECK_OK(ctx, pvti_safetensors_write(ctx, in_dir("indexed/one"), &a, 1, NULL));
    CHECK_OK(ctx, pvti_safetensors_write(ctx, in_dir("indexed/two"), &b, 1, NULL));
    write_text(in_dir("indexed/model.safetensors.index.json"),
               "{\"weight_map\":{\"a\":\"one\",\"b\":\"two\"}}");
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 1;
    desc.allocator.alloc = test_budget_alloc, desc.allocator.free = test_budget_free, desc.allocator.user = &budget;
    CHECK(pvt_ctx_create(&desc, &c) == PVT_OK);
    for (int which = 0; which < 8; which++) {
        int64_t before = pvt_ctx_get_info(c).bytes_now;
        pvt_result result = PVT_ERR_MEMORY;
        for (n = 0; n < 100 && result == PVT_ERR_MEMORY; n++) { /* the n-th allocation fails */
            budget.left = n;
            result = read_something(c, which);
            if (pvt_ctx_get_info(c).bytes_now != before) break;
        }
        CHECK(result == PVT_OK && pvt_ctx_get_info(c).bytes_now == before);
        CHECK(n > 1 || which == 3); /* llama2.c allocates nothing */
    }
    CHECK(no_temporaries());
    budget.left = 1000;
    pvt_ctx_destroy(c);
    CHECK(budget.live == 0);
}

/* ---- real files, where they are ---- */

static void test_real_files(void)
{
    static const char *const vocabularies[] = {"gpt-2", "llama-spm", "phi-3"};
    static const int64_t sizes[] = {50257, 32000, 32064};
    char path[256];
    pvti_safetensors st;
    pvti_llama2c m;
    pvti_gguf g;
    CHECK_OK(ctx, pvti_safetensors_open(ctx, "tests/golden/models/llama_gqa/model.safetensors", &st));
    CHECK(st.n == 21 && pvti_safetensors_find(&st, "model.embed_tokens.weight"));
    pvti_safetensors_close(&st);
    if (!pvti_path_exists(ctx, "../shared/golden/models/llama_gqa/model.safetensors") ||
        !pvti_path_exists(ctx, "../shared/data/models/stories260K.bin")) {
        SKIP("real files of other software (not in this repository)");
        return;
    }
    CHECK_OK(ctx, pvti_safetensors_open(ctx, "../shared/golden/models/llama_gqa/model.safetensors", &st));
    CHECK(st.n == 21 && pvti_safetensors_find(&st, "model.embed_tokens.weight"));
    CHECK(pvti_safetensors_metadata(&st, "format", path, sizeof path) == 2);
    pvti_safetensors_close(&st);
    CHECK_OK(ctx, pvti_llama2c_open(ctx, "../shared/data/models/stories260K.bin", &m));
    CHECK(m.dim == 64 && m.hidden_dim == 172 && m.n_kv_heads == 4 && m.vocab_size == 512 && m.shared);
    pvti_llama2c_close(&m);
    for (int i = 0; i < 3; i++) {
        pvti_gguf_array tokens;
        const char *s;
        int64_t n = 0, bytes;
        snprintf(path, sizeof path, "../shared/data/tokenizers/goldens/ggml-vocab-%s.gguf", vocabularies[i]);
        CHECK_OK(ctx, pvti_gguf_open(ctx, path, &g));
        CHECK(pvti_gguf_get_array(&g, "tokenizer.ggml.tokens", &tokens) && tokens.n == sizes[i]);
        while (pvti_gguf_array_string(&tokens, &s, &bytes)) n++;
        CHECK(n == sizes[i]);
        pvti_gguf_close(&g);
    }
}

int main(void)
{
    if (!test_scratch(dir, sizeof dir) || pvt_ctx_create(NULL, &ctx) != PVT_OK) return 1;
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    test_writer();
#if !PVTI_WINDOWS
    test_limit();
#endif
    test_rename();
    test_locks();
    test_paths();
    test_half();
    test_decoders();
    test_json_refuses();
    test_json_numbers();
    test_json_values();
    test_json_large();
    test_json_writing();
    test_safetensors_reads();
    test_safetensors_refuses();
    test_safetensors_writes();
    test_shards();
    test_gguf_reads();
    test_gguf_refuses_keys();
    test_gguf_refuses_tensors();
    test_llama2c();
    test_scarce_memory();
    test_real_files();
    CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
    pvt_ctx_destroy(ctx);
    test_remove(dir);
    return test_end();
}
