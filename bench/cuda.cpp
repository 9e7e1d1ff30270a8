/*  Times of the GPU's ops, by the public interface: a line `name TAB milliseconds TAB rate TAB unit` for
    each, which bench/cuda.sh makes a table of. The least of some repeated runs, each waited for. With `host`
    it takes the processor and small sizes, to check the program itself; `large` adds a TinyLlama-shaped
    tuning step; `counters` runs the largest kernels once each, for Nsight. */
#include "pvtune.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static pvt_ctx *ctx, *plain; /* plain: the processor's, which makes what a device cannot */
static bool host, once;

static double now()
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
static void failed(pvt_ctx *where, const char *what)
{
    fprintf(stderr, "%s: %s\n", what, pvt_ctx_error(where));
    exit(1);
}
/* 20 runs at once, so that a launch does not count; the best of five. */
template <class F> static void row(const char *name, double amount, const char *unit, F run)
{
    double best = 1e9;
    int runs = host ? 1 : 20;
    run();
    for (int k = 0; k < 5 && !once; k++) {
        if (pvt_ctx_synchronise(ctx) != PVT_OK) failed(ctx, name);
        double start = now();
        for (int i = 0; i < runs; i++) run();
        if (pvt_ctx_synchronise(ctx) != PVT_OK) failed(ctx, name);
        double took = (now() - start) / runs;
        best = took < best ? took : best;
    }
    if (!once) printf("%s\t%.4f\t%.1f\t%s\n", name, 1e3 * best, 1e-9 * amount / best, unit);
    fflush(stdout);
}

static uint64_t drawn = 1;
static float uniform()
{
    drawn = drawn * 6364136223846793005u + 1442695040888963407u;
    return (float)(drawn >> 40) * (1.0f / 8388608.0f) - 1;
}
static float *numbers(int64_t n)
{
    float *x = (float *)malloc((size_t)n * sizeof *x), *there = (float *)pvt_memory_alloc(ctx, n * 4);
    if (!x || !there) failed(ctx, "memory");
    for (int64_t i = 0; i < n; i++) x[i] = uniform();
    pvt_memory_write(ctx, there, x, n * 4);
    free(x);
    return there;
}
/* Random codes and values of a format, in `where`; *bytes: of the codes. */
static pvt_weight weight(pvt_ctx *where, const char *name, int64_t O, int64_t I, int64_t *bytes)
{
    pvt_format format;
    pvt_array list[PVT_MAX_ARRAYS];
    pvt_weight w;
    int n = 0;
    if (pvt_format_parse(where, name, &format) != PVT_OK ||
        pvt_format_arrays(where, &format, O, I, list, &n) != PVT_OK)
        failed(where, name);
    for (int k = 0; k < n; k++) {
        uint8_t *data = (uint8_t *)malloc((size_t)list[k].bytes);
        int wide = list[k].dtype == PVT_U16 ? 2 : 1;
        if (!data) failed(where, "memory");
        for (int64_t i = 0; list[k].role != PVT_ARRAY_CODE && i < list[k].bytes / 4; i++)
            ((float *)(void *)data)[i] = 0.03f * uniform();
        for (int64_t i = 0; list[k].role == PVT_ARRAY_CODE && i < list[k].bytes / wide; i++) {
            int code = (int)((uniform() + 1) * 0.5f * (float)(1 << list[k].bits)) & ((1 << list[k].bits) - 1);
            if (wide == 2) ((uint16_t *)(void *)data)[i] = (uint16_t)code;
            else data[i] = (uint8_t)code;
        }
        list[k].data = data;
    }
    if (pvt_weight_from_arrays(where, &format, O, I, list, n, name, &w) != PVT_OK) failed(where, name);
    for (int k = 0; k < n; k++) free((void *)(uintptr_t)list[k].data);
    if (bytes) *bytes = list[0].bytes;
    return w;
}

/* What bench/CUDA.md takes for granted: from one launch to the next, and the rate of a copy, read and
   written. */
static void machine()
{
    int64_t bytes = (int64_t)1 << (host ? 24 : 29);
    char *a = (char *)pvt_memory_alloc(ctx, 2 * bytes);
    if (!a) failed(ctx, "memory");
    row("a launch", 1e9, "1/s", [=]() { pvt_residual_forward(ctx, (float *)a, (float *)a, (float *)a, 1); });
    row("a copy", 2 * (double)bytes, "GB/s", [=]() { pvt_memory_copy(ctx, a, a + bytes, bytes); });
    pvt_memory_free(ctx, a);
}

/* ---- products ---- */

static void products(const char *compute, const char *size, int64_t n, int64_t O, int64_t I)
{
    char name[100];
    double operations = 2.0 * (double)n * (double)O * (double)I;
    float *x = numbers(n * I), *y = numbers(n * O), *W = numbers(O * I);
    pvt_weight w = weight(ctx, "aqlm:2x8g8", O, I, NULL);
    snprintf(name, sizeof name, "product %s %s", compute, size);
    row(name, operations / 1e3, "TFLOP/s", [=]() { pvt_linear_forward(ctx, y, x, W, NULL, n, I, O); });
    snprintf(name, sizeof name, "product %s %s dx", compute, size);
    row(name, operations / 1e3, "TFLOP/s",
        [=]() { pvt_linear_backward(ctx, x, NULL, NULL, y, x, W, n, I, O); });
    snprintf(name, sizeof name, "product %s %s dW", compute, size);
    row(name, operations / 1e3, "TFLOP/s",
        [=]() { pvt_linear_backward(ctx, NULL, W, NULL, y, x, W, n, I, O); });
    snprintf(name, sizeof name, "product %s %s 2x8g8", compute, size);
    row(name, operations / 1e3, "TFLOP/s", [&]() { pvt_weight_forward(y, x, &w, n, false); });
    snprintf(name, sizeof name, "product %s %s 2x8g8 dx", compute, size);
    row(name, operations / 1e3, "TFLOP/s", [&]() { pvt_weight_backward(x, NULL, y, x, &w, n); });
    pvt_weight_free(&w);
    pvt_memory_free(ctx, x), pvt_memory_free(ctx, y), pvt_memory_free(ctx, W);
}
/* The rate is that of the codes' bytes as this library holds them. */
static void one_row(const char *format, int64_t O, int64_t I)
{
    char name[100];
    int64_t bytes;
    float *x = numbers(I), *y = numbers(O);
    pvt_weight w = weight(ctx, format, O, I, &bytes);
    snprintf(name, sizeof name, "one row %s %lldx%lld", format, (long long)O, (long long)I);
    row(name, (double)bytes, "GB/s", [&]() { pvt_weight_forward(y, x, &w, 1, false); });
    pvt_weight_free(&w);
    pvt_memory_free(ctx, x), pvt_memory_free(ctx, y);
}
static void attention(const char *compute, const char *size, int64_t B, int64_t T, int64_t NH, int64_t NKV,
                      int64_t HS)
{
    char name[100];
    pvt_attention_desc d;
    memset(&d, 0, sizeof d);
    d.B = B, d.T = T, d.NH = NH, d.NKV = NKV, d.HS = HS;
    int64_t nq = B * T * NH * HS, nk = B * T * NKV * HS;
    double scores = (double)(B * NH) * (double)T * (double)(T + 1) / 2;
    float *q = numbers(nq), *k = numbers(nk), *v = numbers(nk), *out = numbers(nq),
          *lse = numbers(B * NH * T), *g = numbers(nq);
    float *dq = numbers(nq), *dk = numbers(nk), *dv = numbers(nk);
    snprintf(name, sizeof name, "attention %s %s", compute, size);
    row(name, 4.0 * (double)HS * scores / 1e3, "TFLOP/s",
        [=]() { pvt_attention_forward(ctx, out, lse, q, k, v, &d); });
    snprintf(name, sizeof name, "attention %s %s back", compute, size);
    row(name, 10.0 * (double)HS * scores / 1e3, "TFLOP/s",
        [=]() { pvt_attention_backward(ctx, dq, dk, dv, g, out, lse, q, k, v, &d); });
    float *all[] = {q, k, v, out, lse, g, dq, dk, dv};
    for (float *p : all) pvt_memory_free(ctx, p);
}

/* ---- PV ---- */

/* One weight's whole step: gradients of values, LAMB, keys, selection, search. */
static void pv_step(const char *format, int64_t O, int64_t I)
{
    char name[100];
    pvt_pv *pv;
    pvt_pv_desc desc;
    float *dW = numbers(O * I);
    pvt_weight w = weight(ctx, format, O, I, NULL);
    memset(&desc, 0, sizeof desc);
    if (pvt_pv_create(ctx, &desc, &pv) != PVT_OK || pvt_pv_add_weight(pv, &w, "w", NULL) != PVT_OK)
        failed(ctx, format);
    snprintf(name, sizeof name, "PV step of %s %lldx%lld", format, (long long)O, (long long)I);
    row(name, (double)(O * I), "G weights/s", [=]() {
        if (pvt_pv_begin(pv, 1) != PVT_OK || pvt_pv_apply(pv, 0, dW) != PVT_OK ||
            pvt_pv_end(pv, NULL) != PVT_OK)
            failed(ctx, "PV");
    });
    pvt_pv_free(pv), pvt_weight_free(&w);
    pvt_memory_free(ctx, dW);
}
/* A model of that shape with random codes in its blocks, and a dense teacher: tokens/s of tuning. */
static void model_step(const char *name, const pvt_model_config *c, int64_t batch, int64_t length)
{
    pvt_model *dense, *coded, *teacher, *student;
    pvt_corpus corpus;
    pvt_tuner *tuner;
    pvt_tune_desc desc;
    int64_t n = batch * length * 8;
    int32_t *ids = (int32_t *)malloc((size_t)n * sizeof *ids);
    for (int64_t i = 0; ids && i < n; i++) ids[i] = (int32_t)((uniform() + 1) * 0.5f * (float)(c->vocab - 1));
    memset(&desc, 0, sizeof desc);
    desc.steps = 4, desc.batch = batch, desc.ctx = length, desc.eval_every = -1;
    if (!ids || pvt_model_create(plain, c, &dense) != PVT_OK ||
        pvt_model_copy(plain, dense, &coded) != PVT_OK)
        failed(plain, name);
    for (int64_t i = 0; i < pvt_model_tensors(coded); i++) {
        pvt_tensor_info t = pvt_model_tensor(coded, i);
        if (!t.weight || !strstr(t.name, "layers.")) continue;
        int64_t O = t.weight->O, I = t.weight->I;
        pvt_weight_free(t.weight);
        *t.weight = weight(plain, "aqlm:2x8g8", O, I, NULL);
    }
    if (pvt_model_copy(ctx, dense, &teacher) != PVT_OK || pvt_model_copy(ctx, coded, &student) != PVT_OK ||
        pvt_corpus_from_ids(ctx, ids, n, &corpus) != PVT_OK ||
        pvt_tuner_create(student, teacher, &corpus, &desc, &tuner) != PVT_OK)
        failed(ctx, name);
    pvt_model_free(dense), pvt_model_free(coded), free(ids);
    for (int step = 0; step < 4; step++) { /* the first is for warming up */
        double start = now(), took;
        if (pvt_tuner_step(tuner, NULL) != PVT_OK || pvt_ctx_synchronise(ctx) != PVT_OK) failed(ctx, name);
        took = now() - start;
        if (step == 3)
            printf("%s\t%.4f\t%.1f\ttokens/s\n", name, 1e3 * took, (double)(batch * length) / took);
    }
    pvt_tuner_free(tuner), pvt_corpus_free(&corpus), pvt_model_free(student), pvt_model_free(teacher);
}
static void models(const char *compute, bool large)
{
    pvt_model_config c;
    char name[100];
    memset(&c, 0, sizeof c);
    c.layers = host ? 2 : 30, c.dim = 576, c.heads = 9, c.kv_heads = 3, c.ff = 1536,
    c.vocab = host ? 500 : 49152, c.ctx = 2048;
    c.tied = true;
    snprintf(name, sizeof name, "tuning step SmolLM2 %s", compute);
    model_step(name, &c, 2, host ? 32 : 512);
    if (!large) return;
    memset(&c, 0, sizeof c);
    c.layers = 22, c.dim = 2048, c.heads = 32, c.kv_heads = 4, c.ff = 5632, c.vocab = 32000, c.ctx = 2048;
    snprintf(name, sizeof name, "tuning step TinyLlama %s", compute);
    model_step(name, &c, 16, 1024);
}

static pvt_ctx *context(const pvt_device *device, bool bf16)
{
    pvt_ctx *made;
    pvt_ctx_desc desc;
    char why[300] = "";
    memset(&desc, 0, sizeof desc);
    desc.device = device, desc.compute_bf16 = bf16, desc.error = why, desc.error_bytes = sizeof why;
    if (pvt_ctx_create(&desc, &made) == PVT_OK) return made;
    fprintf(stderr, "%s\n", why);
    exit(2);
}
int main(int argc, char **argv)
{
    const pvt_device *device = NULL;
    host = argc > 1 && strcmp(argv[1], "host") == 0;
    once = argc > 1 && strcmp(argv[1], "counters") == 0;
    bool large = argc > 1 && strcmp(argv[1], "large") == 0;
    if (!host && pvt_cuda_device(0, &device) != PVT_OK) return 2;
    plain = context(NULL, false);
    for (int bf16 = once; bf16 < 2; bf16++) {
        const char *compute = bf16 ? "bf16" : "fp32";
        ctx = context(device, bf16);
        if (!bf16) machine();
        products(compute, "1024x1536x576", host ? 20 : 1024, 1536, 576);
        products(compute, "16384x5632x2048", host ? 20 : 16384, host ? 512 : 5632, 2048);
        attention(compute, "SmolLM2", 2, host ? 32 : 512, 9, 3, 64);
        attention(compute, "TinyLlama", host ? 1 : 16, host ? 32 : 1024, 32, 4, 64);
        if (!once) models(compute, large);
        if (!bf16) {
            one_row("aqlm:2x8g8", 5632, 2048), one_row("aqlm:2x8g8", 11008, 4096),
                one_row("aqlm:1x16g8", 5632, 2048);
            one_row("int:2g64", 5632, 2048), one_row("int:4g64", 11008, 4096), one_row("e8p", 5632, 2048);
            pv_step("aqlm:2x8g8", 1536, 576), pv_step("aqlm:2x8g8", host ? 512 : 5632, 2048),
                pv_step("int:2g64", 1536, 576);
        }
        pvt_ctx_destroy(ctx);
    }
    pvt_ctx_destroy(plain);
    return 0;
}
