/*  What a C project of its own does with layer 1: the arrays of a weight read, kept and made into a
    weight again, a fit that reports and can be stopped, alone and within pvt_quantize, and the sentence
    of a context that could not be made. The public interface alone. */
#include "../pvtune.h"
#include "test.h"

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
    int64_t before;
    int n, m;
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK);
    before = pvt_ctx_get_info(ctx).bytes_now;
    fit(ctx, format, &weight);
    n = pvt_weight_arrays(&weight, arrays);
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
        CHECK(arrays[1].data == (const void *)weight.data[1] && arrays[2].data == (const void *)weight.data[2]);
    }
    if (codes) { /* a view lists its own rows */
        CHECK_OK(ctx, pvt_weight_rows(&weight, O / 2, O / 2, &view));
        pvt_weight_arrays(&view, arrays);
        CHECK(arrays[0].bytes == listed[0].bytes / 2 &&
              arrays[0].data == (const void *)((const char *)weight.data[0] + arrays[0].bytes));
        CHECK(arrays[2].shape[0] == listed[2].shape[0] / 2);
    }
    tune(ctx, &weight, W); /* what was kept is of before */
    CHECK_OK(ctx, pvt_weight_from_arrays(ctx, &weight.format, O, I, listed, n, NULL, &again));
    for (int i = 0; i < n; i++) free(kept[i]);
    tune(ctx, &again, V);
    CHECK(memcmp(W, V, sizeof W) == 0);
    CHECK(!codes || memcmp(weight.data[0], again.data[0], (size_t)listed[0].bytes) == 0);
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
    for (int i = 0; i < O; i++) ((pvt_real *)weight.data[2])[i] = 2, scales[i] = 0x4000; /* 2 in fp16 */
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
    int64_t before;
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK);
    fit(ctx, "aqlm:2x4g4", &weight);
    before = pvt_ctx_get_info(ctx).bytes_now;
    for (int wrong = 0; wrong < (int)(sizeof words / sizeof *words); wrong++) {
        pvt_array arrays[PVT_MAX_ARRAYS];
        uint8_t codes[O * I / 4 * 2];
        pvt_real scales[O];
        pvt_format format = weight.format;
        int64_t rows = O;
        int n = pvt_weight_arrays(&weight, arrays);
        pvt_result result;
        memcpy(codes, weight.data[0], sizeof codes), memcpy(scales, weight.data[2], sizeof scales);
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
        result = pvt_weight_from_arrays(ctx, &format, rows, I, arrays, n, "mine", &out);
        CHECK(result == (wrong == 7 ? PVT_ERR_NUMERIC : PVT_ERR_ARGUMENT));
        if (!strstr(pvt_ctx_error(ctx), words[wrong])) printf("case %d: %s\n", wrong, pvt_ctx_error(ctx));
        CHECK(strstr(pvt_ctx_error(ctx), words[wrong]) && strstr(pvt_ctx_error(ctx), "mine"));
        CHECK(out.data[0] == NULL && out.ctx == NULL && pvt_ctx_get_info(ctx).bytes_now == before);
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
    int64_t live, fail_at = 0;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 1, desc.allocator.alloc = heap_alloc, desc.allocator.free = heap_free, desc.allocator.user = &h;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
    fit(ctx, "aqlm:1x9g4o2", &weight);
    pvt_weight_arrays(&weight, arrays);
    for (live = h.live; result != PVT_OK && fail_at < 10; fail_at++) {
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
    int64_t before;
    for (int i = 0; i < O * I; i++) W[i] = noise((uint64_t)i);
    memset(&desc, 0, sizeof desc), memset(&d, 0, sizeof d), memset(&w, 0, sizeof w);
    desc.progress = watching, desc.progress_user = &w;
    w.in_order = true;
    d.name = "mine", d.epochs = 4, d.tolerance = 1e-12;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
    before = pvt_ctx_get_info(ctx).bytes_now;
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:2x3g4", &format));
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, O, I, NULL, &format, &d, &stats, &out));
    CHECK(w.fits == stats.epochs && w.fits > 1 && w.total == 4 && w.in_order && strcmp(w.item, "mine") == 0);
    CHECK(w.value > 0 && w.value < stats.error_start && w.value >= stats.error);
    pvt_weight_free(&out);
    memset(&w, 0, sizeof w), memset(&out, 0x55, sizeof out);
    w.in_order = true, w.stop_at = 2;
    CHECK(pvt_weight_fit(ctx, W, O, I, NULL, &format, &d, NULL, &out) == PVT_ERR_CANCELLED);
    CHECK(w.fits == 2 && w.last_done == 2);
    CHECK(out.ctx == NULL && out.data[0] == NULL && pvt_ctx_get_info(ctx).bytes_now == before);
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
    int64_t before, linears = 0, quantized = 0, equal = 0;
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
    before = pvt_ctx_get_info(ctx).bytes_now;
    w.in_order = true, w.stop_at = 2 * 7 + 2 * 2 + 1; /* both epochs of nine weights, the first of the tenth */
    CHECK(pvt_quantize(ctx, model, &corpus, &q) == PVT_ERR_CANCELLED);
    CHECK(w.weights == 9 && w.in_order && strcmp(w.item, "model.layers.1.self_attn.v_proj.weight") == 0);
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i), was = pvt_model_tensor(original, i);
        bool first = strstr(t.name, "layers.0.") != NULL;
        if (!t.linear) continue;
        linears++;
        quantized += (t.weight->format.kind == PVT_FORMAT_AQLM) == first;
        equal += first || memcmp(t.weight->data[0], was.weight->data[0], (size_t)t.n * sizeof(pvt_real)) == 0;
    }
    CHECK(linears == 14 && quantized == 14 && equal == 14);
    CHECK(pvt_ctx_get_info(ctx).bytes_now <= before + 7 * 4096); /* codes of one block, no working memory */
    w.stop_at = 0;
    q.skip = "layers.0."; /* and what is left can be quantized afterwards */
    CHECK_OK(ctx, pvt_quantize(ctx, model, &corpus, &q));
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
    test_fit_progress();
    test_quantize_stopped();
    test_ctx_errors();
    return test_end();
}
