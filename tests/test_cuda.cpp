/*  The GPU's device table without a GPU: pvtune_cuda.cu compiled as C++ with cuda_shim.h, held against the
    processor, op by op on odd sizes, and as a whole, one tuning run of a tiny model. Then every barrier of
    every kernel is left out once, and the same comparisons have to notice.

    `make test-cuda` has nvcc compile the same for a GPU: then the comparisons are the GPU's, and what plants
    faults is left out.

    Rounding: where an op only moves numbers or does the processor's arithmetic in the processor's order,
    none. Else the largest difference relative to the largest number of the result, stated at each op. */
#include <vector>
#include <stdint.h>
static int64_t slab; /* 0: each allocation alone, so that the shim sees what is written behind it */
#define PVT_CUDA_SLAB slab
static int64_t work_space = 1 << 20;
#define PVT_CUDA_ROOM work_space
static int64_t grid_side = 65535; /* of a grid */
#define PVT_CUDA_SIDE grid_side
#include "../pvtune_cuda.cu"
#ifdef __CUDACC__
/* What is asked of the shim, with no answer. */
namespace shim {
static struct nothing {
    uint64_t random;
    int64_t launches, errors, fail_launch, fail_malloc, mallocs;
    int devices, ptx, cores, omit, n_lines, lines[1], side;
    char *base, *end, why[1];
} w;
static void guard(bool) {}
} // namespace shim
static const bool on_gpu = true;
#else
static const bool on_gpu = false;
#endif

#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "test.h"

static pvt_ctx *host, *there;
static const pvt_device *device;
static char why[300];
static int64_t cases, differences; /* comparisons made, and those that failed, in this round */
static bool planted;               /* a barrier is left out: differences are expected, and not told */
static bool quick;                 /* a part of the formats, and no planted faults */

static pvt_result open_context(const pvt_device *with, bool bf16, pvt_ctx **out)
{
    pvt_ctx_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 1, desc.seed = 5, desc.device = with, desc.error = why, desc.error_bytes = sizeof why;
    desc.compute_bf16 = bf16;
    return pvt_ctx_create(&desc, out);
}

/* ---- the same numbers in both memories ---- */

enum { ARRAYS = 64 };
typedef struct both {
    void *h, *d;
    int64_t bytes;
} both;
static both arrays[ARRAYS];
static int n_arrays;

static both *array(const void *fill, int64_t bytes)
{
    both *b = &arrays[n_arrays++];
    b->h = calloc(1, (size_t)bytes + 1), b->d = pvt_memory_alloc(there, bytes), b->bytes = bytes;
    if (fill) memcpy(b->h, fill, (size_t)bytes);
    pvt_memory_write(there, b->d, b->h, bytes);
    return b;
}
static uint64_t drawn;
static double uniform()
{
    return pvti_unit_of(pvti_mix(drawn++)) * 2 - 1;
}
static both *numbers(int64_t n, double scale)
{
    float *x = (float *)malloc((size_t)n * sizeof *x + 4);
    for (int64_t i = 0; i < n; i++) x[i] = (float)(uniform() * scale);
    both *b = array(x, n * 4);
    free(x);
    return b;
}
static void release_all()
{
    while (n_arrays > 0) n_arrays--, free(arrays[n_arrays].h), pvt_memory_free(there, arrays[n_arrays].d);
}
#define H(b) ((float *)(b)->h)
#define D(b) ((float *)(b)->d)

/* PVTUNE_CASES: a line for each, of which bench/cuda_cases.sh makes the table in bench/CUDA.md. */
static void compared(bool same, const char *what, double off, double allowed)
{
    static const bool told = getenv("PVTUNE_CASES") != NULL;
    cases++;
    if (told && !planted) printf("case\t%s\t%.3g\t%.3g\n", what, same ? fmin(off, allowed) : off, allowed);
    if (same) return;
    differences++;
    if (!planted) printf("%s: off by %.3g, allowed %.3g\n", what, off, allowed);
}
static void worked(bool ok, const char *what)
{
    cases++, differences += !ok;
    if (!ok && !planted) printf("failed: %s\n", what);
}
/* "op: of what", until the next call. */
static const char *of(const char *op, const char *what)
{
    static char text[200];
    snprintf(text, sizeof text, "%s: %s", op, what);
    return text;
}
/* The largest difference relative to the largest number; NaN where only one has it differs. */
static void compare(const both *b, const char *what, double allowed)
{
    int64_t n = b->bytes / 4;
    float *x = (float *)malloc((size_t)b->bytes + 4), *y = H(b);
    double off = 0, most = 0;
    if (pvt_memory_read(there, x, b->d, b->bytes) != PVT_OK) worked(false, pvt_ctx_error(there));
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)x[i] - (double)y[i]);
        if (x[i] != x[i] && y[i] != y[i]) continue;
        off = d <= off ? off : d, most = fmax(most, fabs((double)y[i])); /* a NaN is the largest */
        if (d != d) off = INFINITY;
    }
    compared(off <= allowed * most, what, most > 0 ? off / most : off, allowed);
    free(x);
}
static void compare_doubles(const both *b, const char *what, double allowed)
{
    double *x = (double *)malloc((size_t)b->bytes + 8), *y = (double *)b->h, off = 0, most = 0;
    if (pvt_memory_read(there, x, b->d, b->bytes) != PVT_OK) worked(false, pvt_ctx_error(there));
    for (int64_t i = 0; i < b->bytes / 8; i++) {
        double d = fabs(x[i] - y[i]);
        off = d <= off ? off : d == d ? d : INFINITY, most = fmax(most, fabs(y[i]));
    }
    compared(off <= allowed * most, what, most > 0 ? off / most : off, allowed);
    free(x);
}
static void compare_bytes(const both *b, const char *what)
{
    char *x = (char *)malloc((size_t)b->bytes + 1);
    if (pvt_memory_read(there, x, b->d, b->bytes) != PVT_OK) worked(false, pvt_ctx_error(there));
    compared(memcmp(x, b->h, (size_t)b->bytes) == 0, what, 1, 0);
    free(x);
}

/* ---- layer 0 ---- */

static void grids_of(int n) { shim::w.side = n, grid_side = n; }

#define FOR(list, i) for (size_t i = 0; i < sizeof list / sizeof *list; i++)
static const double EXACT = 0, SUMS = 2e-6; /* SUMS: other orders of sums of some hundred floats */

/* Products: the processor's order, so its bits, but for one to four rows (lanes of a warp). */
static void ops_linear()
{
    static const int sizes[][3] = {{70, 65, 131}, {3, 300, 40}, {1, 5, 3},
                                   {3, 300, 19},  {7, 33, 70},  {5, 24, 64}};
    FOR(sizes, i) {
        int n = sizes[i][0], I = sizes[i][1], O = sizes[i][2];
        grids_of(i ? 65535 : 1); /* several launches for the first */
        both *x = numbers(n * I, 1), *W = numbers(O * I, 1), *bias = numbers(O, 1), *y = numbers(n * O, 1);
        both *dx = numbers(n * I, 1), *dW = numbers(O * I, 1), *db = numbers(O, 1);
        pvt_linear_forward(host, H(y), H(x), H(W), H(bias), n, I, O);
        pvt_linear_forward(there, D(y), D(x), D(W), D(bias), n, I, O);
        compare(y, "linear_forward", SUMS);
        pvt_linear_backward(host, H(dx), H(dW), H(db), H(y), H(x), H(W), n, I, O);
        pvt_linear_backward(there, D(dx), D(dW), D(db), D(y), D(x), D(W), n, I, O);
        compare(dx, "linear_backward: dx", SUMS), compare(dW, "linear_backward: dW", SUMS);
        compare(db, "linear_backward: dbias", SUMS);
        release_all();
    }
}
static void ops_norm()
{
    static const int sizes[][2] = {{1, 5}, {9, 24}, {5, 600}, {130, 33}};
    FOR(sizes, i) {
        int n = sizes[i][0], C = sizes[i][1];
        both *x = numbers(n * C, 2), *w = numbers(C, 1), *y = numbers(n * C, 1), *rstd = numbers(n, 1);
        both *dx = numbers(n * C, 1), *dw = numbers(C, 1), *g = numbers(n * C, 1);
        pvt_rmsnorm_forward(host, H(y), H(rstd), H(x), H(w), n, C, 1e-5f);
        pvt_rmsnorm_forward(there, D(y), D(rstd), D(x), D(w), n, C, 1e-5f);
        compare(y, "rmsnorm_forward", 3e-7), compare(rstd, "rmsnorm_forward: rstd", 3e-7);
        pvt_rmsnorm_backward(host, H(dx), H(dw), H(g), H(x), H(rstd), H(w), n, C);
        pvt_rmsnorm_backward(there, D(dx), D(dw), D(g), D(x), D(rstd), D(w), n, C);
        compare(dx, "rmsnorm_backward: dx", SUMS), compare(dw, "rmsnorm_backward: dweight", SUMS);
        release_all();
    }
}
static void ops_rope()
{
    enum { B = 2, T = 5, NH = 3, HS = 300 };
    float inv_freq[HS / 2];
    both *x = numbers(B * T * NH * HS, 1), *c = numbers(T * HS / 2, 1), *s = numbers(T * HS / 2, 1);
    pvt_rope_frequencies(inv_freq, HS, 10000);
    pvt_rope_table(host, H(c), H(s), inv_freq, HS, 70, T);
    pvt_rope_table(there, D(c), D(s), inv_freq, HS, 70, T);
    compare(c, "rope_table: cosines", 1.2e-7), compare(s, "rope_table: sines", 1.2e-7);
    for (int pairing = 0; pairing < 2; pairing++) {
        pvt_rope_forward(host, H(x), H(c), H(s), B, T, NH, HS, (pvt_rope_pairing)pairing);
        pvt_rope_forward(there, D(x), D(c), D(s), B, T, NH, HS, (pvt_rope_pairing)pairing);
        compare(x, "rope_forward", 5e-7);
    }
    pvt_rope_backward(host, H(x), H(c), H(s), B, T, NH, HS, PVT_ROPE_NEIGHBOURS);
    pvt_rope_backward(there, D(x), D(c), D(s), B, T, NH, HS, PVT_ROPE_NEIGHBOURS);
    compare(x, "rope_backward", 1e-6);
    release_all();
}
static void ops_rotate()
{
    static const int sizes[][2] = {{3, 7}, {5, 24}, {2, 192}, {9, 64}, {1, 16384}};
    FOR(sizes, i)
        for (int inverse = 0; inverse < 2; inverse++) {
            int n = sizes[i][0], C = sizes[i][1];
            both *x = numbers(n * C, 1), *y = numbers(n * C, 1);
            pvt_rotate(host, H(y), H(x), n, C, PVT_SIDE_IN, inverse);
            pvt_rotate(there, D(y), D(x), n, C, PVT_SIDE_IN, inverse);
            compare(y, "rotate", 4e-7);
            pvt_rotate(host, H(x), H(x), n, C, PVT_SIDE_OUT, inverse);
            pvt_rotate(there, D(x), D(x), n, C, PVT_SIDE_OUT, inverse);
            compare(x, "rotate: in place", 4e-7);
            pvt_rotate_columns(host, H(y), C, n, PVT_SIDE_OUT, inverse);
            pvt_rotate_columns(there, D(y), C, n, PVT_SIDE_OUT, inverse);
            compare(y, "rotate_columns", 6e-7);
            release_all();
        }
    both *wide = numbers(24 * 70, 1); /* columns in several parts */
    pvt_rotate_columns(host, H(wide), 24, 70, PVT_SIDE_IN, false);
    pvt_rotate_columns(there, D(wide), 24, 70, PVT_SIDE_IN, false);
    compare(wide, "rotate_columns: wide", 4e-7);
    release_all();
}
/* B, T, NH, NKV, HS, pos, window. Allowed: of out and its gradients in fp32, where scores and sums have other
   orders and exp is another; in bf16 see halves_attention. */
static void attention_of(const int *size, bool half, double forward, double backward)
{
    pvt_attention_desc d;
    memset(&d, 0, sizeof d);
    d.B = size[0], d.T = size[1], d.NH = size[2], d.NKV = size[3], d.HS = size[4];
    d.pos = size[5], d.window = size[6];
    int64_t kv = (d.pos + d.T) * d.NKV * d.HS, nq = d.B * d.T * d.NH * d.HS;
    if (d.pos == 11) kv = d.kv_batch = kv + 5 * d.NKV * d.HS, d.scale = 0.3;
    both *q = numbers(nq, 2), *k = numbers(d.B * kv, 2), *v = numbers(d.B * kv, 1), *out = numbers(nq, 1);
    both *lse = numbers(d.B * d.NH * d.T, 1), *g = numbers(nq, 1);
    both *dq = numbers(nq, 1), *dk = numbers(d.B * kv, 1), *dv = numbers(d.B * kv, 1);
    pvt_attention_forward(host, H(out), H(lse), H(q), H(k), H(v), &d);
    pvt_attention_forward(there, D(out), D(lse), D(q), D(k), D(v), &d);
    compare(out, half ? "attention_forward, bf16" : "attention_forward", forward);
    compare(lse, half ? "attention_forward, bf16, lse" : "attention_forward, lse", 1e-6);
    pvt_memory_write(there, out->d, out->h, out->bytes), pvt_memory_write(there, lse->d, lse->h, lse->bytes);
    if (d.B > 1) work_space = 4 * d.NH * d.T; /* one sequence at a time */
    pvt_attention_backward(host, H(dq), H(dk), H(dv), H(g), H(out), H(lse), H(q), H(k), H(v), &d);
    pvt_attention_backward(there, D(dq), D(dk), D(dv), D(g), D(out), D(lse), D(q), D(k), D(v), &d);
    work_space = 1 << 20;
    for (int i = 0; i < 3 && backward > 0; i++)
        compare(i ? i > 1 ? dv : dk : dq, half ? "attention_backward, bf16" : "attention_backward", backward);
    release_all();
}
static void ops_attention()
{
    static const int several[7] = {5, 3, 2, 1, 6, 0, 0};
    static const int sizes[][7] = {{2, 5, 4, 2, 6, 0, 0}, {1, 70, 2, 1, 33, 0, 0},  {1, 45, 3, 3, 8, 0, 9},
                                   {2, 3, 4, 2, 6, 11, 0}, {1, 20, 1, 1, 160, 5, 0}, {1, 1, 4, 1, 16, 40, 7}};
    FOR(sizes, i) attention_of(sizes[i], false, 3e-6, 5e-6);
    grids_of(2); /* three launches */
    attention_of(several, false, 3e-6, 5e-6);
    grids_of(65535);
}
static void ops_elements()
{
    static const int32_t ids_of[70] = {3, 30, 3, -1, 0, 31, 12, 3, 0};
    enum { N = 523, IDS = 70, V = 31, C = 24 };
    int32_t ids[IDS];
    for (int i = 0; i < IDS; i++) ids[i] = i < 9 ? ids_of[i] : i * i % 33;
    both *a = numbers(N, 6), *b = numbers(N, 1), *c = numbers(N, 1), *da = numbers(N, 1), *db = numbers(N, 1);
    pvt_swiglu_forward(host, H(c), H(a), H(b), N), pvt_swiglu_forward(there, D(c), D(a), D(b), N);
    compare(c, "swiglu_forward", 3e-7);
    pvt_swiglu_backward(host, H(da), H(db), H(c), H(a), H(b), N);
    pvt_swiglu_backward(there, D(da), D(db), D(c), D(a), D(b), N);
    compare(da, "swiglu_backward: dgate", 6e-7), compare(db, "swiglu_backward: dup", 6e-7);
    pvt_residual_forward(host, H(c), H(a), H(b), N), pvt_residual_forward(there, D(c), D(a), D(b), N);
    compare(c, "residual_forward", 3e-7);
    pvt_residual_backward(host, H(da), NULL, H(c), N), pvt_residual_backward(there, D(da), NULL, D(c), N);
    pvt_residual_backward(host, H(da), H(db), H(a), N), pvt_residual_backward(there, D(da), D(db), D(a), N);
    compare(da, "residual_backward: da", 6e-7), compare(db, "residual_backward: db", 6e-7);
    both *i = array(ids, sizeof ids), *table = numbers(V * C, 1), *rows = numbers(IDS * C, 1),
         *dt = numbers(V * C, 1);
    pvt_embedding_forward(host, H(rows), H(table), (int32_t *)i->h, IDS, V, C);
    pvt_embedding_forward(there, D(rows), D(table), (int32_t *)i->d, IDS, V, C);
    compare(rows, "embedding_forward", EXACT);
    pvt_embedding_backward(host, H(dt), H(rows), (int32_t *)i->h, IDS, V, C);
    pvt_embedding_backward(there, D(dt), D(rows), (int32_t *)i->d, IDS, V, C);
    compare(dt, "embedding_backward", EXACT);
    double x = pvt_mse_forward(host, H(a), H(b), N), y = pvt_mse_forward(there, D(a), D(b), N);
    compared(fabs(x - y) <= 1e-6 * x, "mse_forward", fabs(x - y) / x, 1e-6);
    pvt_mse_backward(host, H(da), H(a), H(b), 0.5, N), pvt_mse_backward(there, D(da), D(a), D(b), 0.5, N);
    compare(da, "mse_backward", 3e-7);
    release_all();
}
static void ops_losses()
{
    enum { N = 5, V = 700, V0 = 300 };
    static const int32_t targets[N] = {3, 699, -1, 300, 299};
    both *s = numbers(N * V, 9), *p = numbers(N * V, 9), *t = array(targets, sizeof targets);
    both *rows = array(NULL, 2 * N * sizeof(pvt_softmax_row)), *lse = array(NULL, 4 * N * 8);
    pvt_ctx *ctx[2] = {host, there};
    for (int k = 0; k < 2; k++) {
        const int32_t *at = (const int32_t *)(k ? t->d : t->h);
        float *x = k ? D(s) : H(s), *y = k ? D(p) : H(p);
        double *l = (double *)(k ? lse->d : lse->h);
        pvt_softmax_row *r = (pvt_softmax_row *)(k ? rows->d : rows->h);
        pvt_softmax_update(ctx[k], r, x, at, N, 0, V0, V);
        pvt_softmax_update(ctx[k], r, x + V0, at, N, V0, V - V0, V);
        pvt_softmax_finish(ctx[k], l, l + N, r, at, N);
        pvt_softmax_update(ctx[k], r + N, y, NULL, N, 0, V, V);
        pvt_softmax_finish(ctx[k], l + 2 * N, NULL, r + N, NULL, N);
        pvt_kl_forward(ctx[k], l + 3 * N, x, l, y, l + 2 * N, at, N, V0, V);
        pvt_kl_backward(ctx[k], x, l, y, l + 2 * N, at, 0.25, N, V0, V);
        pvt_cross_entropy_backward(ctx[k], x + V0, l, at, 0.5, N, V0, V - V0, V);
    }
    compare_doubles(lse, "softmax_update, softmax_finish, kl_forward", 1e-6);
    compare(s, "kl_backward, cross_entropy_backward", 1e-6);
    release_all();
}

/* ---- weights ---- */

typedef struct weight_case {
    const char *format;
    int O, I;
} weight_case;
static const weight_case weight_cases[] = {
    {"aqlm:2x5g8", 19, 72},  {"aqlm:3x4g3o2", 14, 21}, {"aqlm:1x9g4", 33, 20},   {"int:3g5", 11, 35},
    {"int:4g16s", 29, 48},    {"q2_0", 7, 128},         {"nf4", 5, 192},          {"higgs:p2n11", 6, 1100},
    {"higgs:p1n300", 5, 33}, {"e8p", 9, 40},           {"iq2_xxs", 5, 256},      {"iq2_xs", 3, 512},
    {"iq2_s", 5, 512},
    {"had:int:2g8", 12, 40}, {"had2:aqlm:2x4g4", 20, 24}, {"had2:q2_0", 24, 64},
    {"aqlm:1x11g8", 9, 48},   {"aqlm:1x12g4", 5, 36}, /* codebooks too large for shared memory */
    {"aqlm:2x2g8", 21, 280},  {"aqlm:3x2g12", 9, 132}, /* products by tables */
    {"had:aqlm:1x1g8", 521, 16},
};
enum { UNSTAGED = 16, BY_TABLES = 18 };

/* The same weight in both memories. */
static bool weight_pair(const weight_case *c, pvt_weight *h, pvt_weight *d)
{
    pvt_format format;
    pvt_fit_desc fit;
    pvt_array list[PVT_MAX_ARRAYS];
    float *W = (float *)malloc((size_t)(c->O * c->I) * sizeof *W);
    for (int i = 0; i < c->O * c->I; i++) W[i] = (float)(uniform() + uniform() + uniform());
    memset(&fit, 0, sizeof fit);
    fit.epochs = 1, fit.kmeans_steps = 2;
    bool ok = pvt_format_parse(host, c->format, &format) == PVT_OK &&
              pvt_weight_fit(host, W, c->O, c->I, NULL, &format, &fit, NULL, h) == PVT_OK;
    free(W);
    int n = ok ? pvt_weight_arrays(h, list) : 0;
    if (!ok || pvt_weight_from_arrays(there, &format, c->O, c->I, list, n, c->format, d) != PVT_OK) {
        printf("%s: %s%s\n", c->format, pvt_ctx_error(host), pvt_ctx_error(there));
        worked(false, "a weight");
        return false;
    }
    return true;
}

static void weight_products(const weight_case *c, const pvt_weight *h, const pvt_weight *d)
{
    static const int rows[3] = {1, 3, 17};
    for (int i = 0; i < 3; i++)
        for (int add = 0; add < 2; add++) {
            both *x = numbers(rows[i] * c->I, 1), *y = numbers(rows[i] * c->O, 1);
            both *dx = numbers(rows[i] * c->I, 1), *dW = numbers(c->O * c->I, 1);
            pvt_weight_forward(H(y), H(x), h, rows[i], add), pvt_weight_forward(D(y), D(x), d, rows[i], add);
            compare(y, of("weight_forward", c->format), SUMS);
            pvt_weight_forward(D(y), D(x), d, 0, add); /* no rows: nothing to do, and nothing to fail of */
            compare(y, of("weight_forward", c->format), SUMS);
            pvt_weight_backward(H(dx), add ? NULL : H(dW), H(y), H(x), h, rows[i]);
            pvt_weight_backward(D(dx), add ? NULL : D(dW), D(y), D(x), d, rows[i]);
            compare(dx, of("weight_backward, dx", c->format), SUMS);
            compare(dW, of("weight_backward, dW", c->format), SUMS);
            release_all();
        }
}
static void weight_values(const weight_case *c, const pvt_weight *h, const pvt_weight *d)
{
    static const int32_t rows[3] = {2, 0, 2};
    bool turned = h->format.rotation != 0;
    both *W = numbers(c->O * c->I, 1), *some = numbers(3 * c->I, 1), *at = array(rows, sizeof rows);
    pvt_array list[PVT_MAX_ARRAYS];
    both *g[PVT_MAX_ARRAYS] = {NULL, NULL, NULL, NULL};
    pvt_real *hg[PVT_MAX_ARRAYS] = {NULL, NULL, NULL, NULL}, *dg[PVT_MAX_ARRAYS] = {NULL, NULL, NULL, NULL};
    pvt_weight_dequantize(h, H(W)), pvt_weight_dequantize(d, D(W));
    compare(W, of(turned ? "weight_dequantize, rotated" : "weight_dequantize", c->format),
            turned ? 6e-7 : EXACT);
    pvt_weight_embedding(H(some), h, (int32_t *)at->h, 3);
    pvt_weight_embedding(D(some), d, (int32_t *)at->d, 3);
    compare(some, of(turned ? "weight_lookup, rotated" : "weight_lookup", c->format), turned ? 6e-7 : EXACT);
    both *dW = numbers(c->O * c->I, 1);
    for (int i = 1; i < pvt_weight_arrays(h, list); i++)
        if (list[i].role == PVT_ARRAY_VALUE)
            g[i] = numbers(list[i].bytes / 4, 1), hg[i] = H(g[i]), dg[i] = D(g[i]);
    worked(pvt_weight_chain(hg, h, H(dW)) == PVT_OK && pvt_weight_chain(dg, d, D(dW)) == PVT_OK, "chain");
    for (int i = 1; i < PVT_MAX_ARRAYS; i++)
        if (g[i]) compare(g[i], of("weight_chain", c->format), SUMS);
    release_all();
}
static void weights_products()
{
    FOR(weight_cases, i) {
        pvt_weight h, d;
        if (planted ? i > 0 && i != BY_TABLES : quick && i % 3 && i < BY_TABLES) continue;
        if (!weight_pair(&weight_cases[i], &h, &d)) continue;
        weight_products(&weight_cases[i], &h, &d);
        pvt_weight_free(&h), pvt_weight_free(&d);
    }
}
static void weights_values()
{
    FOR(weight_cases, i) {
        pvt_weight h, d;
        if ((planted && i > 1) || !weight_pair(&weight_cases[i], &h, &d)) continue;
        weight_values(&weight_cases[i], &h, &d);
        pvt_weight_free(&h), pvt_weight_free(&d);
    }
}

/* Dense weights as files hold them. */
static void weights_dense()
{
    static const pvt_dtype types[] = {PVT_F32,  PVT_F16,  PVT_BF16, PVT_Q4_0, PVT_Q4_1, PVT_Q5_0, PVT_Q5_1,
                                      PVT_Q8_0,
                                      PVT_Q2_K, PVT_Q3_K, PVT_Q4_K, PVT_Q5_K, PVT_Q6_K, PVT_Q2_0};
    static const int bytes_256[] = {1024, 512, 512, 144, 160, 176, 192, 272, 84, 110, 144, 176, 210, 72};
    enum { O = 5, I = 512 };
    FOR(types, i) {
        int64_t n = O * I / 256 * bytes_256[i];
        uint8_t *data = (uint8_t *)malloc((size_t)n);
        pvt_weight h, d;
        for (int64_t k = 0; k < n; k++) data[k] = (uint8_t)pvti_mix(drawn++);
        if (i < 3) /* whole numbers: no NaN */
            for (int64_t k = 0; k < n; k++)
                data[k] = (uint8_t)(k % (i ? 2 : 4) == (i ? 1 : 3) ? 0x3c + (k & 2) : data[k]);
        both *blocks = array(data, n), *W = numbers(O * I, 1);
        worked(pvt_weight_borrow(host, blocks->h, types[i], O, I, &h) == PVT_OK &&
                   pvt_weight_borrow(there, blocks->d, types[i], O, I, &d) == PVT_OK,
               pvt_dtype_name(types[i]));
        pvt_weight_dequantize(&h, H(W)), pvt_weight_dequantize(&d, D(W));
        compare(W, of("weight_dequantize, dense", pvt_dtype_name(types[i])), 1e-7);
        release_all();
        free(data);
    }
}

/* ---- PV ---- */

typedef struct pv_case {
    pvt_pv_desc d;
    const char *name;
    double allowed; /* share of codes that may differ: only draws can, for log and exp are others */
} pv_case;
static int pv_cases(pv_case *list)
{
    int n = 0;
    memset(list, 0, 12 * sizeof *list);
    list[n++].name = "the default";
    list[n].name = "trust and moments in bf16", list[n].d.trust = 0.05, list[n].d.cap = 0.3,
    list[n++].d.moments = PVT_BF16;
    list[n].name = "linearized with a beam", list[n].d.strategy = PVT_STRATEGY_LINEARIZED,
    list[n++].d.beam = 3;
    list[n].name = "forced", list[n].d.cap = 0.5, list[n].d.force_update = true, list[n++].d.beam = 2;
    list[n].name = "stochastic", list[n].d.strategy = PVT_STRATEGY_STOCHASTIC, list[n].d.codes.lr = 0.5,
    list[n++].allowed = 0.01;
    list[n].name = "uniform, restart and wind", list[n].d.selection = PVT_SELECT_UNIFORM,
    list[n].d.restart = true;
    list[n].d.cap = 0.4, list[n].d.wind = 0.3, list[n++].allowed = 0.01;
    list[n].name = "proportional by moments", list[n].d.selection = PVT_SELECT_PROPORTIONAL,
    list[n].d.cap = 0.4;
    list[n].d.key = PVT_KEY_MOMENT, list[n].d.codes.amsgrad = true, list[n++].allowed = 0.01;
    list[n].name = "plain", list[n].d.strategy = PVT_STRATEGY_SUBSPACE, list[n].d.step = PVT_STEP_PLAIN;
    list[n].d.smoothness = 2, list[n++].d.cap = 0.2;
    list[n].name = "Adam for codes, LAMB for values", list[n].d.codes.rule = PVT_OPTIMIZER_ADAM;
    list[n].d.values.rule = PVT_OPTIMIZER_LAMB, list[n].d.values.weight_decay = 0.1,
    list[n].d.key = PVT_KEY_ROOT_MOMENT;
    list[n].d.codes.lr = 0.1, list[n].d.cap = 0.2, list[n++].d.delta = 0.25;
    return n;
}

/* Two steps of one weight in both memories: values to rounding, codes alike. */
static void pv_weight(const pv_case *p, const weight_case *c)
{
    pvt_weight w[2];
    pvt_pv *pv[2] = {NULL, NULL};
    pvt_ctx *ctx[2] = {host, there};
    pvt_pv_stats stats[2];
    pvt_array list[PVT_MAX_ARRAYS], other[PVT_MAX_ARRAYS];
    char what[120];
    snprintf(what, sizeof what, "%s, %s", c->format, p->name); /* of several ops, in turn */
    if (!weight_pair(c, &w[0], &w[1])) return;
    for (int k = 0; k < 2; k++)
        if (pvt_pv_create(ctx[k], &p->d, &pv[k]) != PVT_OK ||
            pvt_pv_add_weight(pv[k], &w[k], "w", NULL) != PVT_OK)
            worked(false, pvt_ctx_error(ctx[k]));
    for (int step = 0; step < 2; step++) {
        both *dW = numbers(c->O * c->I, 1);
        for (int k = 0; k < 2; k++)
            if (pvt_pv_begin(pv[k], 1) != PVT_OK || pvt_pv_apply(pv[k], 0, k ? D(dW) : H(dW)) != PVT_OK ||
                pvt_pv_end(pv[k], &stats[k]) != PVT_OK)
                worked(false, pvt_ctx_error(ctx[k]));
        release_all();
    }
    int n = pvt_weight_arrays(&w[0], list);
    pvt_weight_arrays(&w[1], other);
    for (int i = 0; i < n; i++) {
        both *b = array(list[i].data, list[i].bytes);
        pvt_memory_copy(there, b->d, other[i].data, list[i].bytes);
        if (list[i].role != PVT_ARRAY_CODE) compare(b, of("two PV steps, values", what), 1e-5);
        else if (p->allowed == 0) compare_bytes(b, of("two PV steps, codes", what));
        else {
            int64_t off = 0;
            uint8_t *read = (uint8_t *)malloc((size_t)b->bytes);
            if (pvt_memory_read(there, read, b->d, b->bytes) != PVT_OK) off = b->bytes;
            for (int64_t j = 0; j < b->bytes; j++) off += read[j] != ((uint8_t *)b->h)[j];
            compared((double)off <= p->allowed * (double)b->bytes, of("two PV steps, drawn codes", what),
                     (double)off / (double)b->bytes, p->allowed);
            free(read);
        }
    }
    release_all();
    double changed = (double)stats[0].groups_changed, apart = fabs(changed - (double)stats[1].groups_changed);
    compared(apart <= p->allowed * changed, of("two PV steps, groups changed", what), apart, p->allowed * changed);
    for (int k = 0; k < 2; k++) pvt_pv_free(pv[k]), pvt_weight_free(&w[k]);
}
static void pv_all()
{
    pv_case list[12];
    int n = pv_cases(list);
    FOR(weight_cases, i)
        for (int k = 0; k < n; k++) {
            if (i >= BY_TABLES) continue;
            if (i >= UNSTAGED && k > 3) continue;
            bool halves = strcmp(weight_cases[i].format, "iq2_s") == 0 && k == 4; /* two numbers to a drawn code */
            if (planted ? k > 3 || i > 0 : !halves && (i + (size_t)k) % (quick ? 9 : 3)) continue;
            pv_weight(&list[k], &weight_cases[i]);
        }
}

/* Gradients that see the rounding; exp and pow are another library's, so that a code may tip otherwise. */
static void pv_surrogates()
{
    static const weight_case integers[] = {
        {"int:3g5", 11, 35}, {"int:2g40", 6, 80}, {"int:4g16s", 29, 48}, {"q2_0", 7, 128}, {"had2:q2_0", 24, 64}};
    static const char *const names[] = {"", "identity", "sigmoid", "root"};
    FOR(integers, i)
        for (int k = 1; k <= 3; k++)
            for (int hard = 0; hard < 2; hard++) {
                pv_case p;
                if (planted || (quick && (int)i != k)) continue;
                memset(&p, 0, sizeof p);
                p.name = names[k], p.allowed = 0.01, p.d.strategy = PVT_STRATEGY_STE;
                p.d.surrogate = (pvt_surrogate)k, p.d.clamp_sharpness = hard ? -1 : 3;
                p.d.codes.lr = 0.2, p.d.train = i == 3 && hard ? PVT_TRAIN_CODES : 0;
                if (!hard) /* steps that follow a gradient's size, not its sign alone */
                    p.d.values.eps = p.d.codes.eps = 1, p.d.values.lr = 0.1, p.d.codes.rule = PVT_OPTIMIZER_ADAM;
                pv_weight(&p, &integers[i]);
            }
}

/* ---- sorting, selecting, accepting: several blocks, many ties ---- */

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}
enum { PICKED = 8500 };
static void select_some(pvti_cuda *s, int64_t n, int64_t k, int values)
{
    both *keys = numbers(n, 1), *work = array(NULL, n * 8), *more = array(NULL, n * 8),
         *selected = array(NULL, k * 8);
    uint64_t *sorted = (uint64_t *)malloc((size_t)n * sizeof *sorted);
    for (int64_t i = 0; i < n; i++) {
        if (values > 0) H(keys)[i] = (float)((int)(H(keys)[i] * (float)values));
        if (values < 0) H(keys)[i] = (float)(i >= n / 2); /* ties, and far behind them the largest */
        uint32_t bits;
        memcpy(&bits, &H(keys)[i], 4);
        sorted[i] = (uint64_t)(bits >> 31 ? bits : 0x7fffffffu - bits) << 32 | (uint64_t)i;
    }
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    for (int64_t i = 0; i < k; i++) ((int64_t *)selected->h)[i] = (int64_t)(sorted[i] & 0xffffffffu);
    pvt_memory_write(there, keys->d, keys->h, n * 4);
    pvti_op_group_select(s, (int64_t *)selected->d, D(keys), n, k, (uint64_t *)work->d, (uint64_t *)more->d);
    compare_bytes(selected, "group_select");
    free(sorted), release_all();
}
static void sort_some(pvti_cuda *s, int64_t n)
{
    both *a = array(NULL, n * 8), *b = array(NULL, n * 8);
    uint64_t *pairs = (uint64_t *)a->h;
    for (int64_t i = 0; i < n; i++) pairs[i] = pvti_mix(drawn++) % (i % 3 ? 5 : 60000) << 32 | (uint64_t)i;
    pvt_memory_write(there, a->d, pairs, n * 8);
    pvt_memory_copy(there, b->d, pvti_sort_pairs(s, (uint64_t *)a->d, (uint64_t *)b->d, n, 16), n * 8);
    qsort(pairs, (size_t)n, sizeof *pairs, by_value), memcpy(b->h, pairs, (size_t)n * 8);
    compare_bytes(b, "sort of codes");
    release_all();
}
static void accept_some(pvti_cuda *s, int64_t n, int64_t rows, double trust)
{
    both *change = numbers(n, 1), *norms = array(NULL, rows * 8), *accepted = array(NULL, 8);
    double norm = 0, moved = 0;
    int64_t count = 1;
    for (int64_t i = 0; i < rows; i++) norm += ((double *)norms->h)[i] = (double)(i % 7 + 1);
    for (int64_t i = 0; i < n; i++) {
        H(change)[i] = (float)(int)(8 * fabsf(H(change)[i])); /* whole: all orders add up alike */
        moved += (double)H(change)[i], count += moved < trust * trust * norm;
    }
    *(int64_t *)accepted->h = count < n ? count : n;
    pvt_memory_write(there, change->d, change->h, n * 4);
    pvt_memory_write(there, norms->d, norms->h, rows * 8);
    PVTI_RUN(s, pvti_k_accept, 1, PVTI_THREADS, 0, (int64_t *)accepted->d, D(change), n, (double *)norms->d,
             rows, trust);
    compare_bytes(accepted, "weight_commit: groups accepted");
    release_all();
}
/* What is not finite, or too large for fp16, is found wherever it is, and the first of several. */
static void finite_some(pvti_cuda *s)
{
    static const float bad[4] = {NAN, -INFINITY, 65520, -65519.99f}; /* the last rounds to 65504 */
    enum { N = 300 };
    both *x = array(NULL, N * 4), *y = array(NULL, N * 4);
    for (int i = 0; i < 4; i++)
        for (int64_t at = 0; at < N; at += N - 1) {
            pvt_memory_zero(there, x->d, x->bytes), pvt_memory_write(there, D(x) + at, &bad[i], 4);
            worked(pvti_op_finite(s, D(x), N, NULL) == (i > 1), "finite");
            worked(pvti_op_round_f16(s, NULL, D(y), D(x), N) == (i < 3 ? at : -1), "round_f16: the place");
        }
    pvt_memory_write(there, D(x) + 70, bad, 4);
    worked(pvti_op_round_f16(s, NULL, D(y), D(x), N) == 70, "round_f16: the first place");
    H(y)[N - 1] = -65504, pvt_memory_write(there, D(x) + 70, y->h, 4);
    worked(pvti_op_round_f16(s, NULL, D(y), D(x), N) == -1, "round_f16: none");
    compare(y, "round_f16", EXACT);
    release_all();
}
/* The nearest point of a signed grid, and the nearest but that: against all codes. A kernel's function,
   called as it is. */
static void nearest_signed(pvti_cuda *s, int kind, int bits)
{
#ifndef __CUDACC__
    static const float scales[4] = {0.3f, 1, 2, 4};
    pvti_view w = {};
    w.kind = kind, w.bits = bits, w.M = 1 + (bits == 10), w.gig = 8;
    w.points = kind == PVTI_E8P ? s->e8p : s->iq2[bits - 8];
    for (int i = 0; i < 4; i++) {
        float x[8];
        double first = INFINITY, second = INFINITY;
        for (int d = 0; d < 8; d++)
            x[d] = (float)uniform() * scales[i] + (kind == PVTI_E8P ? 0 : scales[i] * 4);
        int found = pvti_signed_nearest(w, x, -1), next = pvti_signed_nearest(w, x, found);
        for (int code = 0; code < (kind == PVTI_E8P ? 65536 : 1 << (bits + (bits == 10 ? 8 : 7))); code++) {
            double off = pvti_points_distance(w, x, code);
            if (code != found) second = fmin(second, off);
            first = fmin(first, off);
        }
        double off = pvti_points_distance(w, x, found) - first,
               off_next = pvti_points_distance(w, x, next) - second;
        compared(off <= 1e-9 && off_next <= 1e-9 && found != next, "weight_assign: a signed grid",
                 fmax(off, off_next), 1e-9);
    }
#else
    (void)s, (void)kind, (void)bits;
#endif
}
/* Groups that cannot be sorted: refused before any kernel sees an array, here of no bytes. */
static void refuse_select(pvti_cuda *s, int64_t room, int64_t n, int64_t k, const char *sentence)
{
    work_space = room;
    pvti_op_group_select(s, NULL, NULL, n, k, NULL, NULL);
    CHECK(s->failed == PVT_ERR_UNSUPPORTED && strstr(s->why, sentence));
    work_space = 1 << 20, s->failed = PVT_OK;
}
static void refuse_selections(pvti_cuda *s)
{
    static const char raise[] = "too many groups to sort: raise PVT_CUDA_ROOM";
    int64_t few = PVTI_SELECTING + 1024, most = (int64_t)1 << 32;
    refuse_select(s, (int64_t)1 << 40, most, 1, "a weight of 2^32 groups or more: use larger groups");
    refuse_select(s, few, 85 * PVTI_SORTED + 1, 1, raise), refuse_select(s, few, PICKED, 4097, raise);
    refuse_select(s, 1 << 20, most - 1, 1, raise);
    work_space = few, select_some(s, PICKED, 4096, 3), work_space = 1 << 20; /* the most that has room */
}
static void select_all()
{
    void *state;
    pvt_ctx_desc desc;
    memset(&desc, 0, sizeof desc);
    worked(device->open(device, &desc, &state) == PVT_OK, "a state");
    pvti_cuda *s = (pvti_cuda *)state;
    select_some(s, PICKED, 300, 0), select_some(s, PICKED, 5000, 40);
    if (!planted)
        select_some(s, PICKED, 1, 3), select_some(s, 70, 70, 0), select_some(s, 5, 3, 1),
            select_some(s, 4097, 9, 1);
    for (int i = 0; i < 3 && !planted; i++)
        select_some(s, PICKED, PICKED / 2 + 3, -1), select_some(s, 1000, 501, -1);
    if (!planted) select_some(s, 40000, 700, 0), finite_some(s), refuse_selections(s);
    if (!planted)
        nearest_signed(s, PVTI_E8P, 0), nearest_signed(s, PVTI_IQ2, 8), nearest_signed(s, PVTI_IQ2, 9),
            nearest_signed(s, PVTI_IQ2, 10);
    sort_some(s, PICKED);
    accept_some(s, 2500, 300, 2), accept_some(s, 3, 700, 1e-3), accept_some(s, 4000, 9, 1e3);
    accept_some(s, 1, 1, 0.5);
    device->close(state);
}

/* ---- operands rounded to bf16 ---- */

/* Sizes where both round, or neither; ptx 75: without tensor cores, 90: on them, and with 1 or many
   multiprocessors in tiles of 128 or 64. Sums in other orders. */
static void halves_linear(int n, int I, int O)
{
    both *x = numbers(n * I, 1), *W = numbers(O * I, 1), *y = numbers(n * O, 1);
    both *dx = numbers(n * I, 1), *dW = numbers(O * I, 1), *g = numbers(n * O, 1);
    pvt_linear_forward(host, H(y), H(x), H(W), NULL, n, I, O);
    pvt_linear_forward(there, D(y), D(x), D(W), NULL, n, I, O);
    compare(y, "linear_forward, bf16", SUMS);
    pvt_linear_backward(host, H(dx), H(dW), NULL, H(g), H(x), H(W), n, I, O);
    pvt_linear_backward(there, D(dx), D(dW), NULL, D(g), D(x), D(W), n, I, O);
    compare(dx, "linear_backward, bf16: dx", SUMS), compare(dW, "linear_backward, bf16: dW", SUMS);
    release_all();
}
static void halves_weight(const weight_case *c, int n)
{
    pvt_weight h, d;
    if (!weight_pair(c, &h, &d)) return;
    both *x = numbers(n * c->I, 1), *y = numbers(n * c->O, 1), *dx = numbers(n * c->I, 1),
         *g = numbers(n * c->O, 1);
    pvt_weight_forward(H(y), H(x), &h, n, true), pvt_weight_forward(D(y), D(x), &d, n, true);
    compare(y, of("weight_forward, bf16", c->format), SUMS);
    pvt_weight_backward(H(dx), NULL, H(g), H(x), &h, n), pvt_weight_backward(D(dx), NULL, D(g), D(x), &d, n);
    compare(dx, of("weight_backward, bf16", c->format), SUMS);
    release_all();
    pvt_weight_free(&h), pvt_weight_free(&d);
}
/* q, k, v, dout, P and dS are rounded alike on both sides, P in the forward by another factor: by 2⁻⁸ of
   itself at most. On a GPU, whose exp2 is another, the last bit of a float may turn one P or dS here and
   there by such a step, too. */
static void halves_attention()
{
    static const int sizes[][7] = {
        {2, 80, 2, 1, 24, 0, 0}, {1, 33, 2, 1, 70, 11, 19}, {1, 20, 1, 1, 160, 5, 0}};
    static const int few[7] = {1, 7, 2, 1, 40, 29, 0}; /* in fp32; backwards the processor rounds a part */
    for (int i = 0; i < (planted ? 1 : 3); i++) attention_of(sizes[i], true, 4e-3, on_gpu ? 4e-3 : SUMS);
    attention_of(few, false, 3e-6, 0);
}
static void halves_in_context(int ptx, int cores)
{
    static const weight_case weights[] = {{"aqlm:2x5g8", 131, 72}, {"aqlm:3x4g3o2", 34, 21},
                                          {"int:4g16s", 65, 48},
                                          {"int:3g5", 17, 35},     {"e8p", 19, 40},          {"nf4", 18, 64}};
    pvt_ctx *fp32[2] = {host, there};
    shim::w.ptx = ptx, shim::w.cores = cores, host = there = NULL;
    worked(open_context(NULL, true, &host) == PVT_OK && open_context(device, true, &there) == PVT_OK, why);
    halves_linear(70, 65, 131), halves_linear(3, 300, 40), halves_linear(40, 36, 72);
    if (cores == 1 && ptx == 90) halves_attention(); /* elsewhere attention is in fp32 */
    for (int i = 0; i < (planted || cores > 1 ? 1 : 6); i++) halves_weight(&weights[i], 17 + 20 * i);
    pvt_ctx_destroy(there), pvt_ctx_destroy(host);
    host = fp32[0], there = fp32[1];
}
static void halves_all()
{
    halves_in_context(90, 1), halves_in_context(90, 1000);
    if (!planted) halves_in_context(75, 1);
}

/* ---- fits ---- */

typedef std::vector<double> doubles;

static void fit_numbers(pvti_cuda *s)
{
    enum { ROWS = 37, N = 523 };
    both *a = numbers(ROWS * N, 1), *b = numbers(ROWS * N, 1), *sums = array(NULL, ROWS * 8);
    double sum = 0, size = 0;
    for (int i = 0; i < ROWS * N; i++) {
        double product = (double)H(a)[i] * (double)H(b)[i];
        ((double *)sums->h)[i / N] += product, sum += product, size += fabs(product);
    }
    double found = pvti_op_dot(s, D(a), D(b), ROWS, N, (double *)sums->d);
    compared(fabs(found - sum) <= 1e-14 * size, "dot", fabs(found - sum) / size, 1e-14);
    compare_doubles(sums, "dot: rows", 1e-14);
    for (int i = 0; i < ROWS * N; i++) H(b)[i] = fmaf(-0.3f, H(a)[i], H(b)[i]);
    pvti_op_axpy(s, D(b), -0.3f, D(a), ROWS, N);
    compare(b, "axpy", EXACT);
    both *C = numbers(ROWS * 70, 1); /* C [37, 70] of A [37, 90] and B [70, 90] */
    pvt_linear_forward(host, H(C), H(a), H(b), NULL, ROWS, 90, 70);
    s->bf16 = true; /* which no exact product minds */
    pvti_op_product(s, D(C), D(a), D(b), ROWS, 70, 90);
    s->bf16 = false;
    compare(C, "product", SUMS);
    release_all();
}
static void fit_kmeans(pvti_cuda *s, int rows, int GI, int DIM, int K, bool weighted)
{
    int n = rows * GI;
    both *x = numbers(n * DIM, 1), *weight = numbers(GI * DIM, 0.4), *c = numbers(K * DIM, 1);
    both *assigned = array(NULL, n * 4), *sums = array(NULL, 2 * K * DIM * 8);
    int32_t *at = (int32_t *)assigned->h;
    for (int i = 0; i < GI * DIM; i++) H(weight)[i] += 0.5f;
    for (int i = 0; i < DIM && K > 4; i++) H(c)[3 * DIM + i] = H(c)[DIM + i]; /* a tie: the lower index */
    pvt_memory_write(there, weight->d, weight->h, weight->bytes), pvt_memory_write(there, c->d, c->h, c->bytes);
    for (int i = 0; i < n; i++) {
        double best = INFINITY;
        for (int k = 0; k < K; k++) {
            double off = 0;
            for (int d = 0; d < DIM; d++) {
                double w = weighted ? (double)H(weight)[i / rows * DIM + d] : 1, e = (double)H(c)[k * DIM + d];
                off += w * e * (e - 2 * (double)H(x)[i * DIM + d]);
            }
            if (off < best) best = off, at[i] = k;
        }
        for (int d = 0; d < DIM; d++) {
            double w = weighted ? (double)H(weight)[i / rows * DIM + d] : 1, *sum = (double *)sums->h;
            sum[2 * at[i] * DIM + d] += w * (double)H(x)[i * DIM + d], sum[(2 * at[i] + 1) * DIM + d] += w;
        }
    }
    const float *w = weighted ? D(weight) : NULL;
    pvti_op_kmeans_assign(s, (int32_t *)assigned->d, D(x), w, D(c), rows, GI, DIM, K);
    pvti_op_kmeans_sums(s, (double *)sums->d, D(x), w, (const int32_t *)assigned->d, rows, GI, DIM, K);
    compare_bytes(assigned, "kmeans_assign"), compare_doubles(sums, "kmeans_sums", 1e-13);
    release_all();
}

/* What a search under H finds, hypothesis by hypothesis, each with its whole residual, in double. */
typedef struct hypothesis {
    doubles R;
    std::vector<int> codes; /* [GI, M] */
    double loss;
} hypothesis;
typedef struct candidate {
    double loss;
    int h, k;
} candidate;
static double row_loss(const doubles &R, const both *H, int64_t rows, int64_t n)
{
    double sum = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) sum += R[r * n + i] * (double)H(H)[i * n + j] * R[r * n + j];
    return sum;
}
/* The hypothesis with entry k of codebook m in group j. */
static hypothesis with_entry(const hypothesis &from, const pvt_weight *w, const both *H, int64_t j, int m, int k,
                             double scale)
{
    int64_t ig = w->format.in_group, og = w->format.out_group, M = w->format.codebooks, K = 1 << w->format.bits;
    hypothesis to = from;
    const float *books = (const float *)w->array[1] + m * K * og * ig;
    for (int64_t d = 0; d < og * ig; d++)
        to.R[d / ig * w->I + j * ig + d % ig] +=
            scale * ((double)books[from.codes[j * M + m] * og * ig + d] - (double)books[k * og * ig + d]);
    to.codes[j * M + m] = k, to.loss = row_loss(to.R, H, og, w->I);
    return to;
}
/* The loss that it ends with; and, in *other, that of the codes `theirs`. */
static double search_out_group(const pvt_weight *w, const both *H, const doubles &R, int64_t go, int beam,
                               const int64_t *order, const int64_t *books, const int *theirs, double *other)
{
    int64_t og = w->format.out_group, GI = w->I / w->format.in_group, M = w->format.codebooks;
    double scale = (double)((const float *)w->array[2])[go];
    std::vector<hypothesis> now(1), next;
    now[0].R.assign(R.begin() + go * og * w->I, R.begin() + (go + 1) * og * w->I);
    for (int64_t i = 0; i < GI * M; i++)
        now[0].codes.push_back(w->format.bits > 8 ? ((const uint16_t *)w->array[0])[go * GI * M + i]
                                                  : ((const uint8_t *)w->array[0])[go * GI * M + i]);
    const hypothesis first = now[0];
    for (int64_t t = 0; t < GI * M; t++) {
        std::vector<hypothesis> all;
        for (size_t h = 0; h < now.size(); h++)
            for (int k = 0; k < 1 << w->format.bits; k++)
                all.push_back(with_entry(now[h], w, H, order[t / M], (int)books[t], k, scale));
        for (next.clear(); (int)next.size() < beam && next.size() < all.size();) {
            size_t best = 0;
            for (size_t i = 1; i < all.size(); i++)
                if (all[i].loss < all[best].loss) best = i;
            next.push_back(all[best]), all[best].loss = INFINITY;
        }
        now = next;
    }
    hypothesis there_found = first;
    for (int64_t i = 0; i < GI * M; i++)
        there_found = with_entry(there_found, w, H, i / M, (int)(i % M), theirs[i], scale);
    *other = there_found.loss;
    return now[0].loss;
}
/* Groups and codebooks in a drawn order; among entries that are nearly the same rounding may choose another, so
   losses are compared. */
static void fit_search(pvti_cuda *s, const char *format, int O, int I, int beam)
{
    weight_case c = {format, O, I};
    pvt_weight h, d;
    if (!weight_pair(&c, &h, &d)) return;
    int64_t GI = I / h.format.in_group, M = h.format.codebooks, og = h.format.out_group;
    both *W = numbers(O * I, 3), *Hs = numbers(I * I, 0), *X = numbers(3 * I, 0.5), *RH = numbers(O * I, 0);
    std::vector<int64_t> order((size_t)GI), books((size_t)(GI * M));
    std::vector<float> now((size_t)(O * I));
    doubles R((size_t)(O * I));
    pvt_array list[PVT_MAX_ARRAYS];
    for (int i = 0; i < I * I; i++) {
        for (int t = 0; t < 3; t++) H(Hs)[i] += H(X)[t * I + i / I] * H(X)[t * I + i % I];
        H(Hs)[i] += i / I == i % I ? 0.3f : 0;
    }
    pvt_weight_dequantize(&h, now.data());
    for (int i = 0; i < O * I; i++) R[(size_t)i] = (double)H(W)[i] - (double)now[(size_t)i];
    for (int i = 0; i < O * I; i++) {
        double sum = 0;
        for (int k = 0; k < I; k++) sum += R[(size_t)(i / I * I + k)] * (double)H(Hs)[k * I + i % I];
        H(RH)[i] = (float)sum;
    }
    for (int64_t t = 0; t < GI; t++) {
        int64_t j = (int64_t)(pvti_mix(drawn++) % (uint64_t)(t + 1));
        order[(size_t)t] = order[(size_t)j], order[(size_t)j] = t;
        for (int64_t m = 0; m < M; m++) books[(size_t)(t * M + m)] = t % 2 ? m : M - 1 - m;
    }
    pvt_memory_write(there, Hs->d, Hs->h, Hs->bytes), pvt_memory_write(there, RH->d, RH->h, RH->bytes);
    int64_t bytes = pvti_op_search_room(s, &d, beam);
    double off = 0;
    both *room = array(NULL, bytes);
    pvti_op_weight_search(s, &d, D(Hs), D(RH), beam, order.data(), books.data(), room->d);
    pvt_weight_arrays(&d, list);
    std::vector<uint8_t> codes((size_t)list[0].bytes);
    worked(pvt_memory_read(there, codes.data(), list[0].data, list[0].bytes) == PVT_OK, "codes of a search");
    for (int64_t go = 0; go < O / og; go++) {
        std::vector<int> theirs;
        double other;
        for (int64_t i = go * GI * M; i < (go + 1) * GI * M; i++)
            theirs.push_back(h.format.bits > 8 ? ((uint16_t *)(void *)codes.data())[i] : codes[(size_t)i]);
        double own = search_out_group(&h, Hs, R, go, beam, order.data(), books.data(), theirs.data(), &other);
        off = fmax(off, fabs(other / own - 1));
    }
    compared(off <= 1e-5, of("weight_search: loss", format), off, 1e-5);
    pvt_weight_free(&h), pvt_weight_free(&d), release_all();
}
/* The scales, R and R·H of the closed form, in double. */
static void fit_scales_of(pvti_cuda *s, const char *format, int O, int I)
{
    weight_case c = {format, O, I};
    pvt_weight h, d;
    if (!weight_pair(&c, &h, &d)) return;
    int64_t n = h.format.out_group * I, count = O / h.format.out_group;
    both *R = numbers(O * I, 1), *RH = numbers(O * I, 1), *W = numbers(O * I, 2), *WH = numbers(O * I, 2),
         *scales = array(h.array[2], count * 4);
    for (int64_t go = 0; go < count; go++) {
        double along = 0, square = 0;
        for (int64_t i = go * n; i < (go + 1) * n; i++) {
            double w = (double)H(W)[i] - (double)H(R)[i];
            along += (double)H(WH)[i] * w, square += ((double)H(WH)[i] - (double)H(RH)[i]) * w;
        }
        float factor = along > 0 && square > 0 ? (float)(along / square) : 1;
        H(scales)[go] *= factor;
        for (int64_t i = go * n; i < (go + 1) * n; i++) {
            H(R)[i] = H(W)[i] - factor * (H(W)[i] - H(R)[i]);
            H(RH)[i] = H(WH)[i] - factor * (H(WH)[i] - H(RH)[i]);
        }
    }
    pvti_op_fit_scales(s, &d, D(R), D(RH), D(W), D(WH));
    compare(R, "fit_scales: R", 3e-7), compare(RH, "fit_scales: RH", 3e-7);
    pvt_memory_copy(there, scales->d, d.array[2], count * 4), compare(scales, "fit_scales", 3e-7);
    pvt_weight_free(&h), pvt_weight_free(&d), release_all();
}
/* A whole fit: the processor's error, nearly, and twice the same bits. */
static void fit_whole(const char *text, bool metric, int beam)
{
    enum { O = 40, I = 48 };
    pvt_format format;
    pvt_fit_desc desc;
    pvt_fit_stats stats[3];
    pvt_weight w[3];
    both *W = numbers(O * I, 1), *Hs = numbers(I * I, 0), *X = numbers(60 * I, 1);
    std::vector<float> full((size_t)(O * I) * 3);
    for (int i = 0; i < I * I; i++)
        for (int t = 0; t < 60; t++) H(Hs)[i] += H(X)[t * I + i / I] * H(X)[t * I + i % I];
    memset(&desc, 0, sizeof desc);
    desc.epochs = 2, desc.kmeans_steps = 4, desc.beam = beam;
    worked(pvt_format_parse(host, text, &format) == PVT_OK, text);
    for (int i = 0; i < 3; i++) {
        pvt_ctx *ctx = i ? there : host;
        if (pvt_weight_fit(ctx, H(W), O, I, metric ? H(Hs) : NULL, &format, &desc, &stats[i], &w[i]) != PVT_OK) {
            worked(false, pvt_ctx_error(ctx));
            return;
        }
        both *numbers_of = array(NULL, O * I * 4);
        pvt_weight_dequantize(&w[i], i ? D(numbers_of) : H(numbers_of));
        if (i) worked(pvt_memory_read(there, &full[(size_t)(i * O * I)], numbers_of->d, O * I * 4) == PVT_OK, text);
        pvt_weight_free(&w[i]);
    }
    double off = fabs(stats[1].error / stats[0].error - 1);
    compared(off <= 0.01, of("pvt_weight_fit: error", text), off, 0.01);
    compared(memcmp(&full[O * I], &full[2 * O * I], O * I * 4) == 0, of("pvt_weight_fit: twice", text), 1, 0);
    worked(stats[1].error > 0 && stats[1].error < 0.5 && stats[1].error < stats[1].error_start, "a fit");
    release_all();
}
static void fit_all()
{
    void *state;
    pvt_ctx_desc desc;
    memset(&desc, 0, sizeof desc);
    worked(device->open(device, &desc, &state) == PVT_OK, "a state");
    pvti_cuda *s = (pvti_cuda *)state;
    if (!planted) fit_numbers(s);
    fit_kmeans(s, 50, 5, 8, 16, true), fit_kmeans(s, 3, 7, 33, 4, false);
    if (!planted) fit_kmeans(s, 30, 4, 4, 300, true), fit_kmeans(s, 2, 3, 256, 5, true);
    fit_scales_of(s, "aqlm:2x3g4o2", 8, 12);
    fit_search(s, "aqlm:2x3g4", 4, 140, 1), fit_search(s, "aqlm:2x2g4", 3, 140, 3);
    fit_search(s, "aqlm:1x3g64", 3, 384, 4);
    if (!planted && !quick) {
        fit_search(s, "aqlm:3x3g4o2", 4, 16, 4), fit_search(s, "aqlm:1x9g64", 2, 192, 2);
        fit_search(s, "aqlm:1x11g8", 1, 16, 1), fit_search(s, "aqlm:1x12g4", 1, 8, 2);
        fit_search(s, "aqlm:2x2g3", 3, 132, 16), fit_search(s, "aqlm:1x2g5", 4, 150, 2);
    }
    if (!planted) fit_whole("aqlm:2x4g4", true, 1), fit_whole("aqlm:2x4g8", true, 3);
    if (!planted && !quick) fit_whole("had:aqlm:1x5g4o2", true, 2), fit_whole("aqlm:1x9g8", false, 1);
    device->close(state);
}

/* ---- all of it ---- */

typedef struct part {
    const char *name;
    void (*run)();
} part;
static const part parts[] = {{"linear", ops_linear},       {"norm", ops_norm},         {"rope", ops_rope},
                             {"rotate", ops_rotate},       {"attention", ops_attention},
                             {"elements", ops_elements},   {"losses", ops_losses},
                             {"select", select_all},       {"weights", weights_values},
                             {"products", weights_products}, {"dense", weights_dense}, {"bf16", halves_all},
                             {"fit", fit_all}, {"pv", pv_all}, {"surrogates", pv_surrogates}}; /* cheap ones first: barriers are looked for in this order */

static bool met_by[sizeof parts / sizeof *parts][4096]; /* the barriers of each part, by their lines */

static int64_t run_part(const part *p, uint64_t seed)
{
    shim::w.random = seed, drawn = 1000 * (uint64_t)(p - parts + 1), differences = 0;
    p->run();
    return differences;
}
static void test_parts()
{
    FOR(parts, i) {
        shim::w.n_lines = 0;
        shim::guard(i < 7); /* layer 0; it takes its time */
        CHECK(run_part(&parts[i], 7) == 0);
        for (int k = 0; k < shim::w.n_lines; k++) met_by[i][shim::w.lines[k]] = true;
        if (getenv("PVTUNE_TIMES")) printf("%s: %ld\n", parts[i].name, (long)clock()), fflush(stdout);
    }
    printf("%ld comparisons with the processor\n", (long)cases);
    CHECK(shim::w.errors == 0);
    if (shim::w.errors) printf("%s\n", shim::w.why);
}

/* ---- a model ---- */

enum { CTX = 12, VOCAB = 90, WINDOWS = 12 };
static pvt_model *teacher[2], *student[2];
static pvt_corpus corpus;

static void make_models()
{
    pvt_model_config c;
    pvt_quantize_desc q;
    int32_t ids[CTX * WINDOWS];
    memset(&c, 0, sizeof c), memset(&q, 0, sizeof q);
    for (int i = 0; i < CTX * WINDOWS; i++) ids[i] = (int32_t)(i * i % 89);
    CHECK_OK(host, pvt_corpus_from_ids(host, ids, CTX * WINDOWS, &corpus));
    c.layers = 2, c.dim = 32, c.heads = 4, c.kv_heads = 2, c.ff = 48, c.vocab = VOCAB, c.ctx = CTX;
    CHECK_OK(host, pvt_model_create(host, &c, &teacher[0]));
    CHECK_OK(host, pvt_model_copy(host, teacher[0], &student[0]));
    q.samples = 4, q.fit.epochs = 1, q.fit.kmeans_steps = 2, q.finetune_epochs = -1;
    q.embedding = true;
    CHECK_OK(host, pvt_format_parse(host, "had:int:3g8", &q.embed_format));
    CHECK_OK(host, pvt_format_parse(host, "aqlm:2x5g4", &q.format));
    CHECK_OK(host, pvt_quantize(student[0], &corpus, &q));
    for (int64_t i = 0; i < pvt_model_tensors(student[0]); i++) { /* one with outputs rotated */
        pvt_tensor_info t = pvt_model_tensor(student[0], i), from = pvt_model_tensor(teacher[0], i);
        if (!strstr(t.name, "layers.1.mlp.down_proj")) continue;
        pvt_weight_free(t.weight);
        CHECK_OK(host, pvt_format_parse(host, "had2:int:4g16", &q.format));
        CHECK_OK(host, pvt_weight_fit(host, (const pvt_real *)from.weight->array[0], from.weight->O,
                                      from.weight->I, NULL, &q.format, NULL, NULL, t.weight));
    }
    CHECK_OK(there, pvt_model_copy(there, teacher[0], &teacher[1]));
    CHECK_OK(there, pvt_model_copy(there, student[0], &student[1]));
}
static void free_models()
{
    for (int i = 0; i < 2; i++) pvt_model_free(teacher[i]), pvt_model_free(student[i]);
    pvt_corpus_free(&corpus);
}

/* Perplexity, logits and what is written. */
static void test_use()
{
    pvt_ctx *ctx[2] = {host, there};
    pvt_ppl_desc desc;
    pvt_ppl ppl[2];
    pvt_generate_desc g;
    pvt_generated made[2];
    memset(&desc, 0, sizeof desc), memset(&g, 0, sizeof g);
    desc.ctx = CTX, g.n = 8;
    for (int i = 0; i < 2; i++) {
        CHECK_OK(ctx[i], pvt_perplexity(student[i], &corpus, &desc, &ppl[i]));
        CHECK_OK(ctx[i], pvt_generate(student[i], corpus.ids, 4, &g, &made[i]));
    }
    CHECK_NEAR(ppl[0].nll, ppl[1].nll, 1e-6);
    CHECK(made[0].n == 8 && made[1].n == 8 && memcmp(made[0].ids, made[1].ids, 8 * sizeof(int32_t)) == 0);
    for (int i = 0; i < 2; i++) pvt_ids_free(ctx[i], made[i].ids);
}

/* Σ (a − b)²/Σ a² over all matrices, which may lie in different memories. */
static double distance(const pvt_model *a, const pvt_model *b)
{
    pvt_model *x, *y;
    double error = 0, norm = 0;
    CHECK_OK(host, pvt_model_copy(host, a, &x));
    CHECK_OK(host, pvt_model_copy(host, b, &y));
    for (int64_t i = 0; i < pvt_model_tensors(x); i++) {
        pvt_tensor_info p = pvt_model_tensor(x, i), q = pvt_model_tensor(y, i);
        std::vector<float> u((size_t)p.n), v((size_t)p.n);
        if (p.weight) pvt_weight_dequantize(p.weight, u.data()), pvt_weight_dequantize(q.weight, v.data());
        else memcpy(u.data(), p.values, (size_t)p.n * 4), memcpy(v.data(), q.values, (size_t)p.n * 4);
        for (int64_t k = 0; k < p.n; k++) {
            double d = u[(size_t)k] - v[(size_t)k];
            error += d * d, norm += (double)u[(size_t)k] * u[(size_t)k];
        }
    }
    pvt_model_free(x), pvt_model_free(y);
    return error / norm;
}

/* A model quantized and fine-tuned, block by block: nearly the processor's, and twice the same bits. */
static void test_quantize(const char *format)
{
    pvt_quantize_desc q;
    pvt_model *made[3];
    memset(&q, 0, sizeof q);
    q.samples = 4, q.fit.epochs = 1, q.fit.kmeans_steps = 2, q.finetune_epochs = 3, q.finetune_lr = 1e-3;
    q.skip = "layers.0.mlp.up_proj";
    CHECK_OK(host, pvt_format_parse(host, format, &q.format));
    for (int i = 0; i < 3; i++) {
        pvt_ctx *ctx = i ? there : host;
        CHECK_OK(ctx, pvt_model_copy(ctx, teacher[i > 0], &made[i]));
        CHECK_OK(ctx, pvt_quantize(made[i], &corpus, &q));
    }
    CHECK(distance(made[1], made[2]) == 0);
    CHECK(distance(teacher[0], made[1]) > 1e-4);
    CHECK(distance(made[0], made[1]) < 1e-6);
    for (int i = 0; i < 3; i++) pvt_model_free(made[i]);
}

/* Two steps in both memories: losses to rounding, as many groups searched, nothing allocated, and twice the
   same bits there. */
static void test_tune(const pvt_tune_desc *desc)
{
    pvt_ctx *ctx[3] = {host, there, there};
    pvt_model *tuned[3];
    pvt_tuner *tuner[3];
    pvt_tune_stats s[3];
    int64_t changed = 0;
    for (int i = 0; i < 3; i++) {
        CHECK_OK(ctx[i], pvt_model_copy(ctx[i], student[i > 0], &tuned[i]));
        CHECK_OK(ctx[i], pvt_tuner_create(tuned[i], desc->cross_entropy ? NULL : teacher[i > 0], &corpus,
                                          desc, &tuner[i]));
        if (!tuner[i]) return;
    }
    int64_t mallocs = shim::w.mallocs;
    for (int step = 0; step < desc->steps; step++) {
        for (int i = 0; i < 3; i++) CHECK_OK(ctx[i], pvt_tuner_step(tuner[i], &s[i]));
        CHECK_NEAR(s[0].loss, s[1].loss, 1e-6 * s[0].loss + 1e-7); /* KL: of logits to 1e-7 */
        CHECK(s[1].loss == s[2].loss && s[1].groups_changed == s[2].groups_changed);
        CHECK(s[0].groups_searched == s[1].groups_searched);
        CHECK_NEAR((double)s[1].groups_changed, (double)s[0].groups_changed,
                   0.02 * (double)s[0].groups_searched);
        changed += s[1].groups_changed;
    }
    CHECK(changed > 0 && shim::w.mallocs == mallocs);
    for (int64_t i = 0; i < pvt_model_tensors(tuned[1]); i++) {
        pvt_tensor_info a = pvt_model_tensor(tuned[1], i), b = pvt_model_tensor(tuned[2], i);
        pvt_array x[PVT_MAX_ARRAYS], y[PVT_MAX_ARRAYS];
        int n = a.weight ? pvt_weight_arrays(a.weight, x) : 0;
        if (a.weight) pvt_weight_arrays(b.weight, y);
        for (int k = 0; k < n; k++) CHECK(memcmp(x[k].data, y[k].data, (size_t)x[k].bytes) == 0);
    }
    for (int i = 0; i < 3; i++) pvt_tuner_free(tuner[i]), pvt_model_free(tuned[i]);
}
static void test_model()
{
    pvt_tune_desc desc;
    memset(&desc, 0, sizeof desc);
    make_models();
    test_use();
    test_quantize("aqlm:2x5g4");
    if (!quick) test_quantize("had:int:3g8");
    desc.steps = 2, desc.batch = 2, desc.ctx = CTX, desc.pv.cap = 0.05, desc.eval_every = -1;
    desc.pv.codes.lr = 2.5e-2, desc.pv.values.lr = 3e-4; /* the defaults change no code so soon */
    test_tune(&desc);
    desc.cross_entropy = true, desc.memory_limit = 1, desc.pv.trust = 0.02;
    if (!quick) test_tune(&desc);
}

/* ---- what goes wrong ---- */

static void test_refusals()
{
    const pvt_device *other;
    pvt_ctx *ctx;
    pvt_weight w;
    pvt_attention_desc d;
    float *x = (float *)pvt_memory_alloc(there, 4096);
    CHECK(pvt_cuda_device(-1, &other) == PVT_ERR_ARGUMENT && !other &&
          pvt_cuda_device(16, &other) == PVT_ERR_ARGUMENT);
    CHECK(pvt_cuda_device(3, &other) == PVT_OK && open_context(other, false, &ctx) == PVT_ERR_UNSUPPORTED &&
          !ctx);
    CHECK(strstr(why, "cuda:3: there is no GPU 3: CUDA counts 1 here"));
    char name[10];
    int64_t left, all;
    CHECK(pvt_cuda_memory(0, name, sizeof name, &left, &all) == PVT_OK && strcmp(name, "a GPU of ") == 0 &&
          0 < left && left < all);
    shim::w.devices = 0;
    CHECK(pvt_cuda_memory(0, name, sizeof name, &left, &all) == PVT_ERR_UNSUPPORTED && !name[0]);
    CHECK(open_context(device, false, &ctx) == PVT_ERR_UNSUPPORTED &&
          strstr(why, "no GPU that CUDA can use was found"));
    shim::w.devices = 1;
    CHECK(device->decodes(NULL, PVT_Q4_0) && device->decodes(NULL, PVT_BF16) && !device->decodes(NULL, PVT_IQ4_NL));
    CHECK_OK(there, pvt_weight_borrow(there, x, PVT_IQ4_NL, 1, 32, &w));
    CHECK(open_context(device, false, &ctx) == PVT_OK);
    w.ctx = ctx;
    pvt_weight_dequantize(&w, x);
    CHECK(pvt_ctx_synchronise(ctx) == PVT_ERR_UNSUPPORTED &&
          strstr(pvt_ctx_error(ctx), "weights in IQ4_NL are not decoded"));
    CHECK(pvt_ctx_synchronise(ctx) == PVT_ERR_UNSUPPORTED && !pvt_memory_alloc(ctx, 10)); /* it sticks */
    pvt_ctx_destroy(ctx);
    CHECK(open_context(device, false, &ctx) == PVT_OK);
    memset(&d, 0, sizeof d);
    d.B = d.T = d.NH = d.NKV = 1, d.HS = 257;
    pvt_attention_forward(ctx, x, NULL, x, x, x, &d);
    CHECK(pvt_ctx_synchronise(ctx) == PVT_ERR_UNSUPPORTED && strstr(pvt_ctx_error(ctx), "more than 256"));
    pvt_ctx_destroy(ctx);
    pvt_memory_free(there, x);
}
/* A kernel that could not be launched, and memory that is not there, at every place in turn. */
static void test_failures()
{
    pvt_ctx *ctx;
    float x[64];
    int64_t failed = 0;
    CHECK(open_context(device, false, &ctx) == PVT_OK);
    float *y = (float *)pvt_memory_alloc(ctx, sizeof x);
    shim::w.fail_launch = shim::w.launches;
    pvt_residual_forward(ctx, y, y, y, 64);
    pvt_residual_forward(ctx, y, y, y, 64); /* does nothing */
    CHECK(pvt_ctx_synchronise(ctx) == PVT_ERR_IO);
    CHECK(strstr(pvt_ctx_error(ctx), "cuda:0: pvti_k_add: unspecified launch failure"));
    CHECK(pvt_memory_read(ctx, x, y, sizeof x) == PVT_ERR_IO);
    shim::w.fail_launch = -1;
    pvt_ctx_destroy(ctx);
    for (;; failed++) {
        shim::w.fail_malloc = shim::w.mallocs + failed;
        pvt_result result = open_context(device, false, &ctx);
        shim::w.fail_malloc = -1;
        if (result == PVT_OK) break;
        CHECK(result == PVT_ERR_MEMORY && !ctx && why[0]);
    }
    CHECK(failed == 5); /* work space and four grids */
    pvt_ctx_destroy(ctx);
}
/* Slabs: pieces of one, merged again, and several. */
static void test_arena()
{
    pvt_ctx *ctx;
    void *p[12];
    slab = 2 << 20;
    CHECK(open_context(device, false, &ctx) == PVT_OK);
    int64_t held = pvt_ctx_get_info(ctx).device_bytes_now, mallocs = shim::w.mallocs;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 12; i++) {
            p[i] = pvt_memory_alloc(ctx, 100000 + 1000 * i);
            bool apart = p[i] && (uintptr_t)p[i] % 256 == 0;
            for (int k = 0; k < i; k++) apart = apart && llabs((char *)p[i] - (char *)p[k]) >= 100000;
            CHECK(apart);
            pvt_memory_zero(ctx, p[i], 100000 + 1000 * i);
        }
        for (int i = 0; i < 12; i++) pvt_memory_free(ctx, p[(i * 7 + round) % 12]);
        CHECK(pvt_ctx_get_info(ctx).device_bytes_now == held);
    }
    CHECK(shim::w.mallocs - mallocs <= 3);
    pvt_ctx_destroy(ctx);
    slab = 0;
}
/* ---- planted faults ---- */

/* Whether the part notices that the barrier in this line is left out: in a child, for it may also crash or
   hang. */
static bool notices(const part *p, int line)
{
    int status = 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        bool found = false;
        planted = true, shim::w.omit = line;
        if (!freopen("/dev/null", "w", stdout)) _exit(0);
        alarm(60);
        for (uint64_t seed = 1; seed < 9 && !found; seed++)
            found = run_part(p, seed) > 0 || shim::w.errors > 0;
        _exit(found);
    }
    return child > 0 && waitpid(child, &status, 0) == child && status != 0;
}
static void test_barriers()
{
    int n = 0;
    for (int line = 1; line < 4096; line++) {
        bool met = false, found = false;
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        for (size_t i = 0; i < sizeof parts / sizeof *parts && !found; i++) {
            if (!met_by[i][line]) continue;
            met = true, found = notices(&parts[i], line);
        }
        if (!met) continue;
        n++;
        CHECK(found);
        clock_gettime(CLOCK_MONOTONIC, &to);
        if (getenv("PVTUNE_TIMES"))
            printf("line %d: %.3f s\n", line,
                   (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec));
        if (!found) printf("pvtune_cuda.cu:%d: no test misses this barrier\n", line);
    }
    printf("%d barriers left out, one by one\n", n);
    CHECK(n >= 30);
}

int main()
{
    quick = getenv("PVTUNE_QUICK") != NULL;
    CHECK(pvt_cuda_device(0, &device) == PVT_OK);
    grids_of(65535);
    shim::w.fail_launch = shim::w.fail_malloc = -1, shim::w.devices = 1, shim::w.ptx = 90, shim::w.cores = 1;
    CHECK(open_context(NULL, false, &host) == PVT_OK);
    CHECK(open_context(device, false, &there) == PVT_OK || on_gpu);
    if (!there) printf(on_gpu ? "skipped: %s\n" : "%s\n", why);
    if (!there && on_gpu) return printf("0 passed, 0 failed, 1 skipped\n"), 0;
    if (there) test_parts();
    shim::guard(false);
    if (there && !on_gpu) test_refusals(), test_failures();
    if (there) test_arena(), test_model();
    if (there && !quick && !on_gpu) test_barriers();
    if (there) free_models();
    pvt_ctx_destroy(there), pvt_ctx_destroy(host);
    CHECK(shim::w.errors == 0 && shim::w.end == shim::w.base); /* all memory is back, untouched behind */
    return test_end();
}
