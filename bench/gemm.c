/*  How fast is the GEMM? GFLOP/s of ours beside OpenBLAS (if libopenblas.so.0 can be loaded),
    taken in turn in one run, on one thread and on all; the products of training, a product
    whose weights are decoded from two codebooks on the way, and few rows.

        build/bench/gemm [--json] [--rows] [--threads N] [--quick] [--only NAME]

    A row of OpenBLAS follows ours where it does the same. */
#define PVTUNE_IMPLEMENTATION
#define PVTUNE_LAYER 0
#include "../pvtune.h"
#include "bench.h"

#include <dlfcn.h>

typedef void sgemm_fn(int order, int transA, int transB, int M, int N, int K, float alpha, const float *A,
                      int lda, const float *B, int ldb, float beta, float *C, int ldc);
typedef void set_threads_fn(int);
static sgemm_fn *sgemm;
static set_threads_fn *set_threads;

static void openblas_open(void)
{
    void *library = dlopen("libopenblas.so.0", RTLD_NOW);
    if (!library) return;
    void *symbol = dlsym(library, "cblas_sgemm");
    memcpy(&sgemm, &symbol, sizeof symbol);
    symbol = dlsym(library, "openblas_set_num_threads");
    memcpy(&set_threads, &symbol, sizeof symbol);
    if (!set_threads) sgemm = NULL;
}

/* A weight of O rows and I columns as two codebooks of 256 vectors of 8, summed and scaled by
   row: the real thing's structure, without its code. */
typedef struct codebooks {
    int64_t I;
    int isa;
    uint8_t *codes; /* [O][I/8][2] */
    float *scales;  /* [O] */
    float entries[2][256][8];
} codebooks;

PVTI_KERNELS_BEGIN
PVTI_INLINE void codebooks_row_body(float *out, const uint8_t *codes, const float (*entries)[256][8],
                                    float scale, int64_t n)
{
    for (int64_t g = 0; g < n; g++, out += 8, codes += 2) {
        const float *a = entries[0][codes[0]], *b = entries[1][codes[1]];
        for (int i = 0; i < 8; i++) out[i] = (a[i] + b[i]) * scale;
    }
}
PVTI_KERNEL(codebooks_row,
            (float *out, const uint8_t *codes, const float (*entries)[256][8], float scale, int64_t n),
            (out, codes, entries, scale, n))
PVTI_KERNELS_END

static void codebooks_tile(const void *self, float *out, int64_t ld, int64_t r0, int64_t r1, int64_t c0,
                           int64_t c1)
{
    const codebooks *w = (const codebooks *)self;
    for (int64_t r = r0; r < r1; r++, out += ld)
        PVTI_PICK(w, codebooks_row)
        (out, w->codes + (r * w->I + c0) / 4, w->entries, w->scales[r], (c1 - c0) / 8);
}

typedef struct product {
    const char *name;
    char kind; /* f: y = x·Wᵀ, d: dx = dy·W, w: dW = dyᵀ·x */
    bool tiles, half; /* weights decoded on the way; operands rounded to bf16 */
    int64_t M, N, K;
    pvt_ctx *ctx;
    float *C, *A, *B;
    codebooks *W;
} product;

static void run_ours(void *arg)
{
    product *p = (product *)arg;
    pvti_operand A = p->kind == 'w' ? pvti_cols(p->A, p->M) : pvti_rows(p->A, p->K);
    pvti_operand B = p->kind == 'f' ? pvti_cols(p->B, p->K) : pvti_rows(p->B, p->N);
    if (p->tiles) B = pvti_tiles(codebooks_tile, p->W, p->kind == 'f');
    pvti_gemm_as(p->ctx, p->half, p->C, p->N, A, B, p->M, p->N, p->K, false);
}

static void run_openblas(void *arg)
{
    product *p = (product *)arg;
    int M = (int)p->M, N = (int)p->N, K = (int)p->K;
    bool a = p->kind == 'w', b = p->kind == 'f';
    sgemm(101, a ? 112 : 111, b ? 112 : 111, M, N, K, 1, p->A, a ? M : K, p->B, b ? K : N, 0, p->C, N);
}

static float *numbers(int64_t n)
{
    float *x = (float *)malloc((size_t)n * sizeof(float));
    for (int64_t i = 0; i < n; i++) x[i] = (float)(pvti_random_unit(1, 0, 0, (uint64_t)i) - 0.5);
    return x;
}

static void fill(product *p)
{
    int64_t O = p->kind == 'd' ? p->K : p->N, I = p->kind == 'd' ? p->N : p->K;
    p->A = numbers(p->M * p->K), p->B = numbers(p->K * p->N), p->C = numbers(p->M * p->N);
    if (!p->tiles) return;
    p->W = (codebooks *)malloc(sizeof *p->W);
    p->W->isa = pvti_isa_detect();
    p->W->I = I, p->W->codes = (uint8_t *)malloc((size_t)(O * I / 4)), p->W->scales = numbers(O);
    for (int64_t i = 0; i < O * I / 4; i++) p->W->codes[i] = (uint8_t)pvti_random(2, 0, 0, (uint64_t)i);
    for (int i = 0; i < 4096; i++)
        p->W->entries[i / 2048][i / 8 % 256][i % 8] = (float)pvti_random_unit(3, 0, 0, (uint64_t)i);
}

static void empty(product *p)
{
    free(p->A), free(p->B), free(p->C);
    if (p->tiles) free(p->W->codes), free(p->W->scales), free(p->W);
}

static void report(const bench *b, product *p, int threads, double gflops, double budget)
{
    pvt_ctx_desc desc;
    bench_result result[2];
    bench_fn *fns[2] = {run_ours, sgemm && !p->tiles && !p->half ? run_openblas : NULL};
    void *args[2];
    char what[96];
    double work = 2e-9 * (double)p->M * (double)p->N * (double)p->K;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = threads;
    if (pvt_ctx_create(&desc, &p->ctx) != PVT_OK) return;
    if (set_threads) set_threads(threads);
    args[0] = args[1] = p;
    bench_run(result, fns, args, 2, budget, threads > 1 && fns[1]);
    snprintf(what, sizeof what, "%s, %d x %d x %d", p->name, (int)p->M, (int)p->N, (int)p->K);
    bench_row(b, what, threads, &result[0], work, "GFLOP/s", gflops, "fp32 peak");
    if (fns[1]) {
        snprintf(what, sizeof what, "  OpenBLAS, ours %.0f %% of it", 100 * result[1].min / result[0].min);
        bench_row(b, what, threads, &result[1], work, "GFLOP/s", gflops, "fp32 peak");
    }
    pvt_ctx_destroy(p->ctx);
}

int main(int argc, char **argv)
{
    static const product products[] = {
        {"x.W^T", 'f', false, false, 1024, 1536, 576, NULL, NULL, NULL, NULL, NULL},
        {"x.W^T, 2x8 codebooks", 'f', true, false, 1024, 1536, 576, NULL, NULL, NULL, NULL, NULL},
        {"dy.W", 'd', false, false, 1024, 576, 1536, NULL, NULL, NULL, NULL, NULL},
        {"dy.W, 2x8 codebooks", 'd', true, false, 1024, 576, 1536, NULL, NULL, NULL, NULL, NULL},
        {"dy^T.x", 'w', false, false, 1536, 576, 1024, NULL, NULL, NULL, NULL, NULL},
        {"dy.W", 'd', false, false, 576, 576, 576, NULL, NULL, NULL, NULL, NULL},
        {"dy.W", 'd', false, false, 64, 64, 64, NULL, NULL, NULL, NULL, NULL},
        {"x.W^T", 'f', false, false, 2048, 5632, 2048, NULL, NULL, NULL, NULL, NULL},
        {"x.W^T, 2x8 codebooks", 'f', true, false, 2048, 5632, 2048, NULL, NULL, NULL, NULL, NULL},
        {"x.W^T, a head's slice", 'f', false, false, 1024, 8192, 576, NULL, NULL, NULL, NULL, NULL},
        {"bf16 x.W^T", 'f', false, true, 1024, 1536, 576, NULL, NULL, NULL, NULL, NULL},
        {"bf16 x.W^T, 2x8 codebooks", 'f', true, true, 1024, 1536, 576, NULL, NULL, NULL, NULL, NULL},
        {"bf16 dy.W", 'd', false, true, 1024, 576, 1536, NULL, NULL, NULL, NULL, NULL},
        {"bf16 dy^T.x", 'w', false, true, 1536, 576, 1024, NULL, NULL, NULL, NULL, NULL},
        {"bf16 x.W^T", 'f', false, true, 2048, 5632, 2048, NULL, NULL, NULL, NULL, NULL},
        {"bf16 x.W^T, 2x8 codebooks", 'f', true, true, 2048, 5632, 2048, NULL, NULL, NULL, NULL, NULL},
        {"x.W^T", 'f', false, false, 64, 1536, 576, NULL, NULL, NULL, NULL, NULL},
        {"x.W^T, 2x8 codebooks", 'f', true, false, 64, 1536, 576, NULL, NULL, NULL, NULL, NULL},
        {"x.W^T", 'f', false, false, 8, 5632, 2048, NULL, NULL, NULL, NULL, NULL},
        {"x.W^T, 2x8 codebooks", 'f', true, false, 8, 5632, 2048, NULL, NULL, NULL, NULL, NULL},
        {"dy.W", 'd', false, false, 8, 2048, 5632, NULL, NULL, NULL, NULL, NULL},
        {"x.W^T", 'f', false, false, 1, 5632, 2048, NULL, NULL, NULL, NULL, NULL}};
    bench b = bench_start(argc, argv, "gemm");
    bool quick = bench_flag(argc, argv, "--quick");
    double gflops[2] = {bench_gflops(1), bench_gflops(b.threads)};
    openblas_open();
    if (!sgemm) fprintf(stderr, "gemm: libopenblas.so.0 is not installed: no comparison\n");
    for (int64_t i = 0; i < PVTI_COUNT(products); i++) {
        product p = products[i];
        char what[96];
        snprintf(what, sizeof what, "%s, %d x %d x %d", p.name, (int)p.M, (int)p.N, (int)p.K);
        if (!bench_wants(&b, what)) continue;
        fill(&p);
        for (int t = 1; t <= b.threads; t += PVTI_MAX(1, b.threads - 1))
            report(&b, &p, t, gflops[t > 1], quick ? 0.05 : 0.5);
        empty(&p);
    }
    return 0;
}
