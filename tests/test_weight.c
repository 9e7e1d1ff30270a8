/*  What a C project of its own does with layer 1: the arrays of a weight read, kept and made into a
    weight again, weights by name in a file, a fit that reports and can be stopped, alone and within pvt_quantize,
    and the sentence of a context that could not be made. The public interface alone. */
#include "../pvtune.h"
#include "test.h"
#include <dirent.h>

/* A context whose allocations can be made to fail and are counted. */
typedef struct heap {
    int64_t left, live;
} heap;
static void *heap_alloc(size_t bytes, void *user)
{
    heap *h = (heap *)user;
    void *memory = h->left-- == 0 ? NULL : malloc(bytes);
    h->live += memory != NULL;
    return memory;
}
static void heap_free(void *memory, void *user)
{
    ((heap *)user)->live -= memory != NULL;
    free(memory);
}

/* About normal, from an index. */
static pvt_real noise(uint64_t i)
{
    double sum = 0;
    for (int j = 0; j < 4; j++) {
        i = (i + 1) * 6364136223846793005u + 1442695040888963407u;
        sum += (double)(i >> 40) / (double)(1 << 24);
    }
    return (pvt_real)((sum - 2) * 1.7);
}

enum { O = 12, I = 24 };

static void fit(pvt_ctx *ctx, const char *format, pvt_weight *out)
{
    pvt_real W[O * I];
    pvt_format f;
    pvt_fit_desc d;
    memset(&d, 0, sizeof d);
    d.epochs = 2;
    for (int i = 0; i < O * I; i++) W[i] = noise((uint64_t)i);
    CHECK_OK(ctx, pvt_format_parse(ctx, format, &f));
    if (f.kind == PVT_FORMAT_DENSE) CHECK_OK(ctx, pvt_weight_dense(ctx, W, O, I, out));
    else CHECK_OK(ctx, pvt_weight_fit(ctx, W, O, I, NULL, &f, &d, NULL, out));
}

/* Three PV steps with made-up gradients; then the weight in full. */
static void tune(pvt_ctx *ctx, pvt_weight *weight, pvt_real *W)
{
    pvt_real dW[O * I];
    pvt_pv_desc desc;
    pvt_pv *pv;
    int handle;
    memset(&desc, 0, sizeof desc);
    desc.cap = 0.5, desc.codes.lr = 0.3, desc.values.lr = 0.01;
    CHECK_OK(ctx, pvt_pv_create(ctx, &desc, &pv));
    CHECK_OK(ctx, pvt_pv_add_weight(pv, weight, "w", &handle));
    for (int step = 0; step < 3; step++) {
        for (int i = 0; i < O * I; i++) dW[i] = noise((uint64_t)(1000 * step + i));
        CHECK_OK(ctx, pvt_pv_begin(pv, 1));
        CHECK_OK(ctx, pvt_pv_apply(pv, handle, dW));
        CHECK_OK(ctx, pvt_pv_end(pv, NULL));
    }
    pvt_pv_free(pv);
    pvt_weight_dequantize(weight, W);
}

/* Kept as bytes and made again: the same weight, and it tunes the same. */
static void test_round_trip(const char *format, int codes, pvt_dtype code_type)
{
    pvt_ctx *ctx;
    pvt_weight weight, again, view;
    pvt_array arrays[PVT_MAX_ARRAYS], listed[PVT_MAX_ARRAYS];
    pvt_real W[O * I], V[O * I];
    void *kept[PVT_MAX_ARRAYS];
    int m;
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK);
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    fit(ctx, format, &weight);
    int n = pvt_weight_arrays(&weight, arrays);
    CHECK(n == (codes ? 3 : 1));
    CHECK_OK(ctx, pvt_format_arrays(ctx, &weight.format, O, I, listed, &m));
    CHECK(m == n);
    for (int i = 0; i < n; i++) {
        CHECK(strcmp(arrays[i].name, listed[i].name) == 0 && arrays[i].bytes == listed[i].bytes && !listed[i].data);
        kept[i] = malloc((size_t)listed[i].bytes);
        memcpy(kept[i], arrays[i].data, (size_t)arrays[i].bytes);
        listed[i].data = kept[i];
    }
    if (codes) {
        CHECK(strcmp(arrays[0].name, "codes") == 0 && arrays[0].role == PVT_ARRAY_CODE && arrays[0].dtype == code_type);
        CHECK(arrays[0].shape[0] * arrays[0].shape[1] * arrays[0].shape[2] == codes && arrays[0].rank == 3);
        CHECK(arrays[1].data == (const void *)weight.array[1] && arrays[2].data == (const void *)weight.array[2]);
    }
    if (codes) { /* a view lists its own rows */
        CHECK_OK(ctx, pvt_weight_rows(&weight, O / 2, O / 2, &view));
        pvt_weight_arrays(&view, arrays);
        CHECK(arrays[0].bytes == listed[0].bytes / 2 &&
              arrays[0].data == (const void *)((const char *)weight.array[0] + arrays[0].bytes));
        CHECK(arrays[2].shape[0] == listed[2].shape[0] / 2);
    }
    tune(ctx, &weight, W); /* what was kept is of before */
    CHECK_OK(ctx, pvt_weight_from_arrays(ctx, &weight.format, O, I, listed, n, NULL, &again));
    for (int i = 0; i < n; i++) free(kept[i]);
    tune(ctx, &again, V);
    CHECK(memcmp(W, V, sizeof W) == 0);
    CHECK(!codes || memcmp(weight.array[0], again.array[0], (size_t)listed[0].bytes) == 0);
    pvt_weight_free(&weight), pvt_weight_free(&again);
    CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
    pvt_ctx_destroy(ctx);
}

/* Values in fp16, as a file may hold them. */
static void test_other_types(void)
{
    pvt_ctx *ctx;
    pvt_weight weight, again, half;
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_real W[O * I], V[O * I];
    uint16_t scales[O], dense[O * I];
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK);
    fit(ctx, "aqlm:1x4g4", &weight);
    for (int i = 0; i < O; i++) ((pvt_real *)weight.array[2])[i] = 2, scales[i] = 0x4000; /* 2 in fp16 */
    pvt_weight_arrays(&weight, arrays);
    arrays[2].data = scales, arrays[2].dtype = PVT_F16, arrays[2].bytes = sizeof scales;
    CHECK_OK(ctx, pvt_weight_from_arrays(ctx, &weight.format, O, I, arrays, 3, "w", &again));
    pvt_weight_dequantize(&weight, W), pvt_weight_dequantize(&again, V);
    CHECK(memcmp(W, V, sizeof W) == 0);
    pvt_weight_free(&weight), pvt_weight_free(&again);

    for (int i = 0; i < O * I; i++) dense[i] = (uint16_t)(0x3C00 + i); /* fp16 from 1 up */
    CHECK_OK(ctx, pvt_weight_borrow(ctx, dense, PVT_F16, O, I, &half));
    CHECK(pvt_weight_arrays(&half, arrays) == 1 && arrays[0].dtype == PVT_F16 && arrays[0].bytes == sizeof dense);
    CHECK_OK(ctx, pvt_weight_from_arrays(ctx, &half.format, O, I, arrays, 1, "w", &again));
    pvt_weight_dequantize(&half, W), pvt_weight_dequantize(&again, V);
    CHECK(memcmp(W, V, sizeof W) == 0 && V[0] == 1 && again.owned);
    pvt_weight_free(&half), pvt_weight_free(&again);
    pvt_ctx_destroy(ctx);
}

/* One thing wrong at a time. */
static void test_refused_arrays(void)
{
    static const char *const words[] = {"missing", "shape", "shape", "shape", "type", "type", "bits", "not finite",
                                        "arrays where", "do not divide", "out of range", "too large"};
    pvt_ctx *ctx;
    pvt_weight weight, out;
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK);
    fit(ctx, "aqlm:2x4g4", &weight);
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    for (int wrong = 0; wrong < (int)(sizeof words / sizeof *words); wrong++) {
        pvt_array arrays[PVT_MAX_ARRAYS];
        uint8_t codes[O * I / 4 * 2];
        pvt_real scales[O];
        pvt_format format = weight.format;
        int64_t rows = O;
        int n = pvt_weight_arrays(&weight, arrays);
        memcpy(codes, weight.array[0], sizeof codes), memcpy(scales, weight.array[2], sizeof scales);
        arrays[0].data = codes, arrays[2].data = scales;
        if (wrong == 0) arrays[1].name = "code books";
        if (wrong == 1) arrays[0].shape[2] = 1;
        if (wrong == 2) arrays[2].bytes--;
        if (wrong == 3) arrays[1].rank = 3;
        if (wrong == 4) arrays[0].dtype = PVT_U16;
        if (wrong == 5) arrays[2].dtype = PVT_Q8_0;
        if (wrong == 6) codes[sizeof codes - 1] = 16;
        if (wrong == 7) scales[O - 1] = (pvt_real)NAN;
        if (wrong == 8) n = 2;
        if (wrong == 9) format.in_group = 5;
        if (wrong == 10) format.bits = 17;
        if (wrong == 11) rows = INT64_MAX / 2;
        memset(&out, 0x55, sizeof out);
        pvt_result result = pvt_weight_from_arrays(ctx, &format, rows, I, arrays, n, "mine", &out);
        CHECK(result == (wrong == 7 ? PVT_ERR_NUMERIC : PVT_ERR_ARGUMENT));
        if (!strstr(pvt_ctx_error(ctx), words[wrong])) printf("case %d: %s\n", wrong, pvt_ctx_error(ctx));
        CHECK(strstr(pvt_ctx_error(ctx), words[wrong]) && strstr(pvt_ctx_error(ctx), "mine"));
        CHECK(out.array[0] == NULL && out.ctx == NULL && pvt_ctx_get_info(ctx).bytes_now == before);
    }
    pvt_weight_free(&weight);
    pvt_ctx_destroy(ctx);
}

/* Whatever allocation fails: MEMORY, nothing kept. */
static void test_failing_memory(void)
{
    heap h = {-1, 0};
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    pvt_weight weight, out;
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_result result = PVT_ERR_MEMORY;
    int64_t fail_at = 0;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 1, desc.allocator.alloc = heap_alloc, desc.allocator.free = heap_free, desc.allocator.user = &h;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
    fit(ctx, "aqlm:1x9g4o2", &weight);
    pvt_weight_arrays(&weight, arrays);
    for (int64_t live = h.live; result != PVT_OK && fail_at < 10; fail_at++) {
        h.left = fail_at;
        result = pvt_weight_from_arrays(ctx, &weight.format, O, I, arrays, 3, NULL, &out);
        h.left = -1;
        CHECK(result == PVT_OK || (result == PVT_ERR_MEMORY && h.live == live && out.ctx == NULL));
    }
    CHECK(result == PVT_OK && fail_at == 4); /* codes, codebooks and scales failed each once */
    pvt_weight_free(&out), pvt_weight_free(&weight);
    pvt_ctx_destroy(ctx);
    CHECK(h.live == 0);
}

/* ---- weights by name in a file ---- */

static char dir[300];

static const char *at(const char *name)
{
    static char path[400];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static int files_in_dir(void)
{
    DIR *d = opendir(dir);
    int n = -2; /* "." and ".." */
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

static bool same_arrays(const pvt_weight *a, const pvt_weight *b)
{
    pvt_array x[PVT_MAX_ARRAYS], y[PVT_MAX_ARRAYS];
    int n = pvt_weight_arrays(a, x);
    bool same = a->O == b->O && a->I == b->I && pvt_weight_arrays(b, y) == n;
    for (int i = 0; i < n && same; i++)
        same = x[i].bytes == y[i].bytes && x[i].dtype == y[i].dtype && memcmp(x[i].data, y[i].data, (size_t)x[i].bytes) == 0;
    return same;
}

/* Several formats in one file, read in another order: the same bits, which tune the same; and in full beside them. */
static void test_files(void)
{
    static const char *const formats[] = {"aqlm:2x4g4", "aqlm:1x9g4o2", "dense", "aqlm:3x2g8"};
    static const char *const names[] = {"first", "a \"q\\uoted\" n\xc3\xa4me.weight", "weight", "first.codes"};
    pvt_ctx *ctx;
    pvt_weight kept[4], again[4];
    pvt_named_weight out[4], in[4];
    pvt_tensors *file;
    pvt_real W[O * I], V[O * I];
    float full[O * I];
    char path[400];
    snprintf(path, sizeof path, "%s", at("kept.safetensors"));
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK);
    for (int i = 0; i < 4; i++) {
        fit(ctx, formats[i], &kept[i]);
        out[i].name = names[i], out[i].weight = &kept[i];
        in[3 - i].name = names[i], in[3 - i].weight = &again[i];
    }
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    CHECK_OK(ctx, pvt_weights_save(path, out, 4, true));
    CHECK(files_in_dir() == 1); /* nothing temporary is left */
    CHECK_OK(ctx, pvt_weights_load(ctx, path, in, 4));
    CHECK_OK(ctx, pvt_tensors_open(ctx, path, &file));
    CHECK(pvt_tensors_count(file) == 3 + 3 + 1 + 3 + 4);
    for (int i = 0; i < 4; i++) {
        char name[100];
        CHECK(same_arrays(&kept[i], &again[i]) && again[i].owned && again[i].format.kind == kept[i].format.kind);
        snprintf(name, sizeof name, "%s.dequantized", names[i]);
        CHECK(pvt_tensors_find(file, name) >= 0);
        pvt_array array = pvt_tensors_get(file, pvt_tensors_find(file, name));
        CHECK(strcmp(array.name, name) == 0 && array.dtype == PVT_F32 && array.rank == 2 && array.bytes == sizeof full);
        CHECK(array.shape[0] == O && array.shape[1] == I && array.shape[2] == 1 && array.shape[7] == 1);
        memcpy(full, array.data, sizeof full);
        pvt_weight_dequantize(&kept[i], W);
        for (int k = 0; k < O * I; k++) V[k] = (pvt_real)full[k], W[k] = (pvt_real)(float)W[k];
        CHECK(memcmp(W, V, sizeof W) == 0);
        tune(ctx, &kept[i], W), tune(ctx, &again[i], V);
        CHECK(memcmp(W, V, sizeof W) == 0);
        pvt_weight_free(&again[i]);
    }
    CHECK(pvt_tensors_find(file, "no such tensor") == -1);
    pvt_tensors_close(file), pvt_tensors_close(NULL);
    CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
    CHECK_OK(ctx, pvt_weights_load(ctx, path, in, 0)); /* asks only whether it is such a file */
    for (int i = 0; i < 4; i++) pvt_weight_free(&kept[i]);
    remove(path);
    pvt_ctx_destroy(ctx);
}

/* A view's rows, and a dense weight in fp16: it comes back in full precision. */
static void test_files_of_parts(void)
{
    pvt_ctx *ctx;
    pvt_weight weight, half, rows, again[2];
    uint16_t dense[O * I];
    pvt_real W[O * I], V[O * I];
    char path[400];
    snprintf(path, sizeof path, "%s", at("parts.safetensors"));
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK);
    fit(ctx, "aqlm:2x4g4o2", &weight);
    for (int i = 0; i < O * I; i++) dense[i] = (uint16_t)(0x3C00 + i);
    CHECK_OK(ctx, pvt_weight_borrow(ctx, dense, PVT_F16, O, I, &half));
    CHECK_OK(ctx, pvt_weight_rows(&weight, O / 2, O / 2, &rows));
    {
        const pvt_named_weight out[2] = {{"rows", &rows}, {"half", &half}}, in[2] = {{"rows", &again[0]}, {"half", &again[1]}};
        CHECK_OK(ctx, pvt_weights_save(path, out, 2, false));
        CHECK_OK(ctx, pvt_weights_load(ctx, path, in, 2));
    }
    CHECK(same_arrays(&rows, &again[0]) && again[0].O == O / 2);
    pvt_weight_dequantize(&half, W), pvt_weight_dequantize(&again[1], V);
    CHECK(memcmp(W, V, sizeof W) == 0 && V[0] == 1 && again[1].dtype == (sizeof(pvt_real) == 8 ? PVT_F64 : PVT_F32));
    pvt_weight_free(&again[0]), pvt_weight_free(&again[1]), pvt_weight_free(&half), pvt_weight_free(&weight);
    remove(path);
    pvt_ctx_destroy(ctx);
}

/* What cannot be saved: nothing is written, and the file that is there stays. */
static void test_files_not_saved(void)
{
    static const char *const words[] = {"name", "name", "name", "name", "two tensors", "not finite", "Q8_0", "No such file",
                                        "must be there"};
    char long_name[202], path[400];
    size_t old_size, now_size;
    pvt_ctx *ctx;
    pvt_weight weight, blocks, other;
    uint8_t q8[O * 34];
    pvt_real W[O * 32];
    memset(long_name, 'n', 201), long_name[201] = 0;
    memset(q8, 0, sizeof q8), memset(W, 0, sizeof W);
    snprintf(path, sizeof path, "%s", at("old.safetensors"));
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK);
    fit(ctx, "aqlm:2x4g4", &weight);
    CHECK_OK(ctx, pvt_weight_borrow(ctx, q8, PVT_Q8_0, O, 32, &blocks));
    {
        const pvt_named_weight out = {"w", &weight};
        CHECK_OK(ctx, pvt_weights_save(path, &out, 1, false));
        CHECK(pvt_weights_save(path, &out, 0, false) == PVT_ERR_ARGUMENT);
    }
    char *old = test_slurp(path, &old_size);
    for (int wrong = 0; wrong < (int)(sizeof words / sizeof *words); wrong++) {
        pvt_named_weight out[2] = {{"w", &weight}, {"v", &weight}};
        pvt_real scale = ((pvt_real *)weight.array[2])[O - 1];
        pvt_result want = PVT_ERR_ARGUMENT;
        if (wrong == 0) out[1].name = NULL;
        if (wrong == 1) out[1].name = "";
        if (wrong == 2) out[1].name = long_name;
        if (wrong == 3) out[1].name = "not \xff utf-8";
        if (wrong == 4) out[1].name = "w";
        if (wrong == 5) ((pvt_real *)weight.array[2])[O - 1] = (pvt_real)NAN, want = PVT_ERR_NUMERIC;
        if (wrong == 6) out[1].weight = &blocks, want = PVT_ERR_UNSUPPORTED;
        if (wrong == 7) want = PVT_ERR_IO;
        if (wrong == 8) out[1].weight = NULL;
        pvt_result result = pvt_weights_save(wrong == 7 ? at("no/where.safetensors") : path, out, 2, true);
        CHECK(result == want && strstr(pvt_ctx_error(ctx), words[wrong]));
        if (!strstr(pvt_ctx_error(ctx), words[wrong])) printf("case %d: %s\n", wrong, pvt_ctx_error(ctx));
        ((pvt_real *)weight.array[2])[O - 1] = scale;
        char *now = test_slurp(path, &now_size);
        CHECK(now_size == old_size && memcmp(old, now, old_size) == 0 && files_in_dir() == 1);
        free(now);
    }
    CHECK_OK(ctx, pvt_weight_dense(ctx, W, O, 32, &other)); /* what the sentence about blocks recommends */
    pvt_weight_free(&other), pvt_weight_free(&blocks), pvt_weight_free(&weight);
    free(old);
    remove(path);
    pvt_ctx_destroy(ctx);
}

/* Replaces one text of the header by another of the same length. */
static bool patch(char *bytes, size_t size, const char *from, const char *to)
{
    size_t n = strlen(from);
    for (size_t i = 0; i + n <= size; i++)
        if (memcmp(bytes + i, from, n) == 0) {
            memcpy(bytes + i, to, n);
            return strlen(to) == n;
        }
    return false;
}

/* One thing wrong with the file at a time; then cut off anywhere, and every byte of the header another. */
static void test_files_not_loaded(void)
{
    static const struct { const char *from, *to, *word; pvt_result result; } cases[] = {
        {"w.scales", "w.scalez", "\"scales\" is missing", PVT_ERR_FORMAT},
        {"weight.w", "weight.x", "no weight of this name", PVT_ERR_MISMATCH},
        {"pvtune-weights 1", "pvtune-weights 2", "not a file of weights", PVT_ERR_FORMAT},
        {"\"format\"", "\"formal\"", "not a file of weights", PVT_ERR_FORMAT},
        {"aqlm:2x4g4 12 24", "aqlm:1x4g4 12 24", "shape", PVT_ERR_FORMAT},
        {"aqlm:2x4g4 12 24", "aqlm:2x3g4 12 24", "does not fit 3 bits", PVT_ERR_FORMAT},
        {"aqlm:2x4g4 12 24", "aqlm:2x4g4 12 25", "do not divide", PVT_ERR_FORMAT},
        {"aqlm:2x4g4 12 24", "aqlm:2x4g4 24 12", "shape", PVT_ERR_FORMAT},
        {"aqlm:2x4g4 12 24", "aqlm:2x4g4 12 0 ", "two sizes", PVT_ERR_FORMAT},
        {"aqlm:2x4g4 12 24", "aqlm:2x4g4  12 4", "two sizes", PVT_ERR_FORMAT},
        {"aqlm:2x4g4 12 24", "aqlm:2x4g4 12 -4", "two sizes", PVT_ERR_FORMAT},
        {"aqlm:2x4g4 12 24", "aqlm:2x4g4_12_24", "two sizes", PVT_ERR_FORMAT},
        {"aqlm:2x4g4 12 24", "aqlm:2x99g4 2 24", "not known", PVT_ERR_FORMAT},
        {"aqlm:2x4g4 12 24", "wxyz:2x4g4 12 24", "not known", PVT_ERR_FORMAT},
        {"aqlm:2x4g4 12 24", "dense 9999999999", "two sizes", PVT_ERR_FORMAT},
        {"aqlm:2x4g4 12 24", "dense 4 29999999", "\"weight\" is missing", PVT_ERR_FORMAT},
        {"\"U8\"", "\"I8\"", "cannot be taken", PVT_ERR_FORMAT},
    };
    pvt_ctx *ctx;
    pvt_weight weight, again;
    const pvt_named_weight out = {"w", &weight}, in = {"w", &again};
    char path[400];
    size_t size;
    int64_t fine = 0;
    snprintf(path, sizeof path, "%s", at("bad.safetensors"));
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK);
    fit(ctx, "aqlm:2x4g4", &weight);
    CHECK_OK(ctx, pvt_weights_save(path, &out, 1, false));
    char *good = test_slurp(path, &size), *bad = (char *)malloc(size);
    size_t header = 8 + (uint8_t)good[0] + 256u * (uint8_t)good[1];
    CHECK(header > 100 && header < size);
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++) {
        memcpy(bad, good, size);
        CHECK(patch(bad, size, cases[i].from, cases[i].to));
        test_spit(path, bad, size);
        memset(&again, 0x55, sizeof again);
        CHECK(pvt_weights_load(ctx, path, &in, 1) == cases[i].result);
        CHECK(strstr(pvt_ctx_error(ctx), cases[i].word) && strstr(pvt_ctx_error(ctx), "bad.safetensors"));
        if (!strstr(pvt_ctx_error(ctx), cases[i].word)) printf("case %d: %s\n", i, pvt_ctx_error(ctx));
        CHECK(again.ctx == NULL && again.array[0] == NULL && pvt_ctx_get_info(ctx).bytes_now == before);
    }
    memcpy(bad, good, size), bad[size - 1] = 16; /* a code of more than 4 bits */
    test_spit(path, bad, size);
    CHECK(pvt_weights_load(ctx, path, &in, 1) == PVT_ERR_FORMAT && strstr(pvt_ctx_error(ctx), "does not fit 4 bits"));
    memcpy(bad, good, size), memset(bad + header, 0xff, sizeof(pvt_real)); /* the first number of the codebooks is no number */
    test_spit(path, bad, size);
    CHECK(pvt_weights_load(ctx, path, &in, 1) == PVT_ERR_NUMERIC && strstr(pvt_ctx_error(ctx), "not finite"));
    for (size_t n = 0; n < size; n += n < header + 40 ? 1 : 37) {
        test_spit(path, good, n);
        CHECK(pvt_weights_load(ctx, path, &in, 1) == PVT_ERR_FORMAT && again.ctx == NULL);
    }
    for (size_t n = 0; n < header; n++)
        for (int flip = 0; flip < 3; flip++) {
            memcpy(bad, good, size), bad[n] = (char)(bad[n] ^ (flip == 0 ? 1 : flip == 1 ? 4 : 0x80));
            test_spit(path, bad, size);
            pvt_result result = pvt_weights_load(ctx, path, &in, 1);
            fine += result == PVT_OK;
            CHECK((result == PVT_OK) == (again.ctx != NULL) && result != PVT_ERR_ARGUMENT && result != PVT_ERR_IO);
            pvt_weight_free(&again);
        }
    CHECK(fine < (int64_t)header / 10); /* spaces of the padding may become others */
    CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
    remove(path);
    CHECK(pvt_weights_load(ctx, path, &in, 1) == PVT_ERR_IO);
    free(good), free(bad);
    pvt_weight_free(&weight);
    pvt_ctx_destroy(ctx);
}

/* Whatever allocation fails: MEMORY, nothing kept, the old file there. */
static void test_files_failing_memory(void)
{
    heap h = {-1, 0};
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    pvt_weight weight[2], again[2];
    const pvt_named_weight out[2] = {{"w", &weight[0]}, {"v", &weight[1]}}, in[2] = {{"w", &again[0]}, {"v", &again[1]}};
    char path[400];
    size_t old_size, now_size;
    int64_t fail_at;
    pvt_result result = PVT_ERR_MEMORY;
    snprintf(path, sizeof path, "%s", at("memory.safetensors"));
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 1, desc.allocator.alloc = heap_alloc, desc.allocator.free = heap_free, desc.allocator.user = &h;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
    fit(ctx, "aqlm:1x9g4o2", &weight[0]), fit(ctx, "dense", &weight[1]);
    test_spit(path, "old", 3);
    int64_t live = h.live;
    for (fail_at = 0; result != PVT_OK && fail_at < 100; fail_at++) {
        h.left = fail_at;
        result = pvt_weights_save(path, out, 2, true);
        h.left = -1;
        char *old = test_slurp(path, &old_size);
        CHECK(h.live == live && files_in_dir() == 1);
        CHECK(result == PVT_OK || (result == PVT_ERR_MEMORY && old_size == 3 && memcmp(old, "old", 3) == 0));
        free(old);
    }
    CHECK(result == PVT_OK && fail_at > 8);
    for (result = PVT_ERR_MEMORY, fail_at = 0; result != PVT_OK && fail_at < 100; fail_at++) {
        h.left = fail_at;
        result = pvt_weights_load(ctx, path, in, 2);
        h.left = -1;
        CHECK(result == PVT_OK || (result == PVT_ERR_MEMORY && h.live == live && !again[0].ctx && !again[1].ctx));
    }
    CHECK(result == PVT_OK && fail_at > 6 && same_arrays(&weight[0], &again[0]) && same_arrays(&weight[1], &again[1]));
    char *old = test_slurp(path, &old_size);
    CHECK_OK(ctx, pvt_weights_save(path, in, 2, true)); /* what was read gives the same file */
    char *now = test_slurp(path, &now_size);
    CHECK(now_size == old_size && memcmp(now, old, old_size) == 0);
    free(old), free(now);
    for (int i = 0; i < 2; i++) pvt_weight_free(&again[i]), pvt_weight_free(&weight[i]);
    remove(path);
    pvt_ctx_destroy(ctx);
    CHECK(h.live == 0);
}

/* Arrays of one's own. */
static void test_tensors(void)
{
    static const int32_t ids[6] = {1, 2, 3, 4, 5, 6};
    static const float loss = 0.5f;
    pvt_ctx *ctx;
    pvt_tensors *file;
    pvt_array arrays[3];
    char path[400];
    snprintf(path, sizeof path, "%s", at("arrays.safetensors"));
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK);
    memset(arrays, 0, sizeof arrays);
    arrays[0].name = "ids", arrays[0].dtype = PVT_I32, arrays[0].rank = 5, arrays[0].bytes = sizeof ids, arrays[0].data = ids;
    arrays[0].shape[0] = 1, arrays[0].shape[1] = 2, arrays[0].shape[2] = arrays[0].shape[3] = 1, arrays[0].shape[4] = 3;
    arrays[1].name = "loss", arrays[1].dtype = PVT_F32, arrays[1].bytes = sizeof loss, arrays[1].data = &loss;
    arrays[2].name = "none", arrays[2].dtype = PVT_F32, arrays[2].rank = 1;
    CHECK_OK(ctx, pvt_tensors_save(ctx, path, arrays, 3));
    CHECK_OK(ctx, pvt_tensors_open(ctx, path, &file));
    CHECK(pvt_tensors_count(file) == 3);
    pvt_array got = pvt_tensors_get(file, pvt_tensors_find(file, "ids"));
    CHECK(got.rank == 5 && got.shape[4] == 3 && got.dtype == PVT_I32 && memcmp(got.data, ids, sizeof ids) == 0);
    got = pvt_tensors_get(file, pvt_tensors_find(file, "loss"));
    CHECK(got.rank == 0 && got.bytes == 4 && memcmp(got.data, &loss, 4) == 0);
    got = pvt_tensors_get(file, pvt_tensors_find(file, "none"));
    CHECK(got.rank == 1 && got.shape[0] == 0 && got.bytes == 0);
    pvt_tensors_close(file);
    for (int wrong = 0; wrong < 6; wrong++) {
        pvt_array bad[3];
        memcpy(bad, arrays, sizeof bad);
        if (wrong == 0) bad[1].name = "ids";
        if (wrong == 1) bad[0].bytes--;
        if (wrong == 2) bad[0].dtype = PVT_Q8_0;
        if (wrong == 3) bad[0].data = NULL;
        if (wrong == 4) bad[0].rank = 9;
        if (wrong == 5) bad[2].name = "__metadata__";
        CHECK(pvt_tensors_save(ctx, path, bad, 3) == PVT_ERR_ARGUMENT);
    }
    CHECK_OK(ctx, pvt_file_write(ctx, path, "{}", 2));
    CHECK(pvt_tensors_open(ctx, path, &file) == PVT_ERR_FORMAT && file == NULL);
    remove(path);
    CHECK(pvt_tensors_open(ctx, path, &file) == PVT_ERR_IO && file == NULL);
    CHECK(strcmp(pvt_dtype_name(PVT_BF16), "BF16") == 0 && strcmp(pvt_dtype_name(PVT_DTYPE_NONE), "?") == 0);
    pvt_ctx_destroy(ctx);
}

typedef struct watch {
    int64_t fits, last_done, total, stop_at; /* stop_at: at so many "fit" reports; 0 never */
    int64_t weights;                         /* completed, by the reports of "quantize" */
    double value;
    bool in_order;
    char item[96];
} watch;
static int watching(void *user, const pvt_progress *p)
{
    watch *w = (watch *)user;
    if (strcmp(p->phase, "quantize") == 0) w->weights += p->done > 0, w->last_done = 0; /* the first one only begins */
    if (strcmp(p->phase, "fit") != 0) return 0;
    w->in_order = w->in_order && p->done == w->last_done + 1 && strcmp(p->unit, "epochs") == 0;
    w->fits++, w->last_done = p->done, w->total = p->total, w->value = p->value;
    snprintf(w->item, sizeof w->item, "%s", p->item ? p->item : "");
    return w->fits == w->stop_at;
}

/* One call per epoch, and a stop between two of them leaves nothing behind. */
static void test_fit_progress(void)
{
    watch w;
    pvt_ctx_desc desc;
    pvt_fit_desc d;
    pvt_fit_stats stats;
    pvt_format format;
    pvt_ctx *ctx;
    pvt_weight out;
    pvt_real W[O * I];
    for (int i = 0; i < O * I; i++) W[i] = noise((uint64_t)i);
    memset(&desc, 0, sizeof desc), memset(&d, 0, sizeof d), memset(&w, 0, sizeof w);
    desc.progress = watching, desc.progress_user = &w;
    w.in_order = true;
    d.name = "mine", d.epochs = 4, d.tolerance = 1e-12;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:2x3g4", &format));
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, O, I, NULL, &format, &d, &stats, &out));
    CHECK(w.fits == stats.epochs && w.fits > 1 && w.total == 4 && w.in_order && strcmp(w.item, "mine") == 0);
    CHECK(w.value > 0 && w.value < stats.error_start && w.value >= stats.error);
    pvt_weight_free(&out);
    memset(&w, 0, sizeof w), memset(&out, 0x55, sizeof out);
    w.in_order = true, w.stop_at = 2;
    CHECK(pvt_weight_fit(ctx, W, O, I, NULL, &format, &d, NULL, &out) == PVT_ERR_CANCELLED);
    CHECK(w.fits == 2 && w.last_done == 2);
    CHECK(out.ctx == NULL && out.array[0] == NULL && pvt_ctx_get_info(ctx).bytes_now == before);
    CHECK(strstr(pvt_ctx_error(ctx), "stopped on request") != NULL);
    pvt_ctx_destroy(ctx);
}

/* Stopped within a fit of the second block: the first is quantized, the second stands as it was. */
static void test_quantize_stopped(void)
{
    enum { CTX = 16, IDS = 8 * CTX };
    watch w;
    pvt_ctx_desc desc;
    pvt_model_config c;
    pvt_quantize_desc q;
    pvt_corpus corpus;
    pvt_model *model, *original;
    pvt_ctx *ctx;
    int32_t ids[IDS];
    int64_t linears = 0, quantized = 0, equal = 0;
    memset(&desc, 0, sizeof desc), memset(&c, 0, sizeof c), memset(&q, 0, sizeof q), memset(&w, 0, sizeof w);
    for (int i = 0; i < IDS; i++) ids[i] = i * i % 61;
    desc.progress = watching, desc.progress_user = &w;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, IDS, &corpus));
    c.layers = 2, c.dim = 16, c.heads = 2, c.kv_heads = 2, c.ff = 32, c.vocab = 61, c.ctx = CTX;
    q.fit.epochs = 2, q.fit.kmeans_steps = 2, q.fit.tolerance = 1e-12;
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x4g4", &q.format));
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    CHECK_OK(ctx, pvt_model_copy(ctx, model, &original));
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    w.in_order = true, w.stop_at = 2 * 7 + 2 * 2 + 1; /* both epochs of nine weights, the first of the tenth */
    CHECK(pvt_quantize(model, &corpus, &q) == PVT_ERR_CANCELLED);
    CHECK(w.weights == 9 && w.in_order && strcmp(w.item, "model.layers.1.self_attn.v_proj.weight") == 0);
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i), was = pvt_model_tensor(original, i);
        bool first = strstr(t.name, "layers.0.") != NULL;
        if (!t.linear) continue;
        linears++;
        quantized += (t.weight->format.kind == PVT_FORMAT_AQLM) == first;
        equal += first || memcmp(t.weight->array[0], was.weight->array[0], (size_t)t.n * sizeof(pvt_real)) == 0;
    }
    CHECK(linears == 14 && quantized == 14 && equal == 14);
    CHECK(pvt_ctx_get_info(ctx).bytes_now <= before + 7 * 4096); /* codes of one block, no working memory */
    w.stop_at = 0;
    q.skip = "layers.0."; /* and what is left can be quantized afterwards */
    CHECK_OK(ctx, pvt_quantize(model, &corpus, &q));
    pvt_model_free(model), pvt_model_free(original), pvt_corpus_free(&corpus);
    pvt_ctx_destroy(ctx);
}

/* A context that cannot be made says why. */
static void test_ctx_errors(void)
{
    heap h = {-1, 0};
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    char why[200] = "before", tiny[4] = "abc";
    memset(&desc, 0, sizeof desc);
    desc.error = why, desc.error_bytes = sizeof why;
    desc.n_threads = 1;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK && why[0] == 0);
    pvt_ctx_destroy(ctx);
    desc.n_threads = 257;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_ERR_ARGUMENT && ctx == NULL && strstr(why, "257") && strstr(why, "256"));
    desc.error = tiny, desc.error_bytes = sizeof tiny;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_ERR_ARGUMENT && strncmp(tiny, why, 3) == 0 && tiny[3] == 0);
    desc.error = NULL;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_ERR_ARGUMENT);
    desc.error = why, desc.error_bytes = sizeof why;
    desc.n_threads = 2, desc.allocator.alloc = heap_alloc;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_ERR_ARGUMENT && strstr(why, "no free"));
    desc.allocator.free = heap_free, desc.allocator.user = &h;
    for (int64_t i = 0; i < 4; i++) { /* the context, its scratch, its panel, its pool */
        why[0] = 0, h.left = i;
        CHECK(pvt_ctx_create(&desc, &ctx) == PVT_ERR_MEMORY && strstr(why, "2 threads takes 8 MiB") && h.live == 0);
    }
    h.left = 4;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK && why[0] == 0);
    pvt_ctx_destroy(ctx);
    CHECK(strstr(pvt_ctx_error(NULL), "pvt_ctx_create failed") != NULL);
    CHECK(pvt_ctx_create_v(NULL, &ctx, PVT_VERSION + 1, sizeof(pvt_real), sizeof desc) == PVT_ERR_MISMATCH && !ctx);
}

int main(void)
{
    test_round_trip("aqlm:2x4g4", O * I / 4 * 2, PVT_U8);
    test_round_trip("aqlm:1x9g4o2", O * I / 8, PVT_U16);
    test_round_trip("dense", 0, PVT_U8);
    test_other_types();
    test_refused_arrays();
    test_failing_memory();
    CHECK(test_scratch(dir, sizeof dir));
    test_files();
    test_files_of_parts();
    test_files_not_saved();
    test_files_not_loaded();
    test_files_failing_memory();
    test_tensors();
    test_remove(dir);
    test_fit_progress();
    test_quantize_stopped();
    test_ctx_errors();
    return test_end();
}
