/*  What a rotation costs: products of 512 rows with had: and had2: in front of a format, beside the same without, taken
    in turn; a row's share is its time against the plain one's (96 %: it takes 1/.96 of the time). And the transform
    itself against a copy of the same numbers in memory.

        build/bench/rotation [--json] [--rows] [--threads N] [--only TEXT]                                            */
#define PVTUNE_IMPLEMENTATION
#define PVTUNE_LAYER 1
#include "../pvtune.h"
#include "bench.h"

enum { ROWS = 512, KINDS = 3, LARGE = 4096 };

typedef struct product {
    pvt_weight weight;
    float *x, *y, *dx, *dW;
} product;

static void forward(void *arg)
{
    product *p = (product *)arg;
    pvt_weight_forward(p->y, p->x, &p->weight, ROWS, false);
}
static void backward(void *arg)
{
    product *p = (product *)arg;
    pvt_weight_backward(p->dx, p->dW, p->y, p->x, &p->weight, ROWS);
}

typedef struct transform {
    pvt_ctx *ctx;
    float *out, *x;
    int64_t C;
} transform;

static void rotate(void *arg)
{
    transform *t = (transform *)arg;
    pvt_rotate(t->ctx, t->out, t->x, LARGE, t->C, PVT_SIDE_IN, false);
}
static void copy_task(void *arg, int64_t row, int worker)
{
    transform *t = (transform *)arg;
    (void)worker;
    memcpy(t->out + row * t->C, t->x + row * t->C, (size_t)t->C * sizeof *t->x);
}
static void copy(void *arg)
{
    transform *t = (transform *)arg;
    pvti_parallel(t->ctx, LARGE, copy_task, t);
}

static float *numbers(int64_t n)
{
    float *x = (float *)malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; x && i < n; i++) x[i] = (float)pvti_random_unit(1, PVTI_RANDOM_USER, 0, (uint64_t)i) - 0.5f;
    return x;
}

static bool products(const bench *b, pvt_ctx *ctx, int threads, const char *format, int64_t O, int64_t I)
{
    static const char *const before[KINDS] = {"", "had:", "had2:"};
    product p[KINDS];
    void *args[KINDS];
    float *W = numbers(O * I), *x = numbers(ROWS * I), *y = numbers(ROWS * O), *dx = numbers(ROWS * I), *dW = numbers(O * I);
    pvt_fit_desc fit;
    bool ok = W && x && y && dx && dW;
    memset(p, 0, sizeof p), memset(&fit, 0, sizeof fit);
    fit.epochs = 1, fit.kmeans_steps = 1, fit.cg_steps = 1;
    for (int k = 0; k < KINDS; k++) {
        char text[64];
        pvt_format f;
        snprintf(text, sizeof text, "%s%s", before[k], format);
        ok = ok && pvt_format_parse(ctx, text, &f) == PVT_OK &&
             pvt_weight_fit(ctx, W, O, I, NULL, &f, &fit, NULL, &p[k].weight) == PVT_OK;
        p[k].x = x, p[k].y = y, p[k].dx = dx, p[k].dW = dW, args[k] = &p[k];
    }
    for (int back = 0; back < 2 && ok; back++) {
        bench_fn *fn = back ? backward : forward, *fns[KINDS];
        bench_result r[KINDS];
        for (int k = 0; k < KINDS; k++) fns[k] = fn;
        bench_run(r, fns, args, KINDS, 1, false);
        for (int k = 0; k < KINDS; k++) {
            char what[96];
            double work = (back ? 4e-9 : 2e-9) * ROWS * (double)O * (double)I;
            snprintf(what, sizeof what, "%s %s%s %lldx%lld", back ? "backward" : "forward", before[k], format, (long long)O,
                     (long long)I);
            bench_row(b, what, threads, &r[k], work, "GFLOP/s", k ? work / r[0].min : 0, "the plain product");
        }
    }
    if (!ok) fprintf(stderr, "rotation: %s\n", pvt_ctx_error(ctx));
    for (int k = 0; k < KINDS; k++) pvt_weight_free(&p[k].weight);
    free(W), free(x), free(y), free(dx), free(dW);
    return ok;
}

static bool transforms(const bench *b, pvt_ctx *ctx, int threads, int64_t C)
{
    bench_fn *fns[2] = {copy, rotate};
    bench_result r[2];
    transform t = {ctx, numbers(LARGE * C), numbers(LARGE * C), C};
    void *args[2] = {&t, &t};
    bool ok = t.out && t.x;
    double work = 8e-9 * LARGE * (double)C;
    char what[64];
    if (ok) bench_run(r, fns, args, 2, 1, false);
    snprintf(what, sizeof what, "copy of %d rows of %lld", LARGE, (long long)C);
    if (ok) bench_row(b, what, threads, &r[0], work, "GB/s", 0, "");
    snprintf(what, sizeof what, "transform of %d rows of %lld", LARGE, (long long)C);
    if (ok) bench_row(b, what, threads, &r[1], work, "GB/s", work / r[0].min, "the copy");
    free(t.out), free(t.x);
    return ok;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *format;
        int64_t O, I;
    } sizes[] = {{"int:2g64", 576, 576}, {"int:2g64", 1536, 576}, {"int:2g64", 2048, 2048}, {"vq:8g4", 1536, 576},
                 {"vq:8g4", 2048, 2048}};
    bench b = bench_start(argc, argv, "rotation");
    bool ok = true;
    for (int threads = 1; threads <= b.threads; threads += PVTI_MAX(1, b.threads - 1)) {
        pvt_ctx_desc desc;
        pvt_ctx *ctx;
        memset(&desc, 0, sizeof desc);
        desc.n_threads = threads;
        if (pvt_ctx_create(&desc, &ctx) != PVT_OK) return 1;
        for (int64_t i = 0; i < PVTI_COUNT(sizes); i++)
            if (bench_wants(&b, sizes[i].format)) ok = products(&b, ctx, threads, sizes[i].format, sizes[i].O, sizes[i].I) && ok;
        for (int64_t C = 576; C <= 2048 && bench_wants(&b, "transform"); C += 1472) ok = transforms(&b, ctx, threads, C) && ok;
        pvt_ctx_destroy(ctx);
    }
    return !ok;
}
