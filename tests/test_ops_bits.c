/*  "Same bits everywhere" for layer 0: every op, forward and backward, on scalar, AVX2 and
    AVX-512 kernels with 1, 2, 3 and 7 threads and without a context, compared byte by byte; then once more
    with linear layers and attention in bf16. */
#define PVTUNE_LAYER 0
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

/* One arena: inputs and outputs of all ops of a run lie one after another in it. */
enum { ARENA = 1 << 21 };
typedef struct arena {
    float *base;
    int64_t used, random;
} arena;

static float *take(arena *a, int64_t n, float scale)
{
    float *x = a->base + a->used;
    a->used += n;
    if (a->used > ARENA) exit(2);
    for (int64_t i = 0; i < n; i++, a->random++)
        x[i] = scale * (float)(4 * pvti_random_unit(3, PVTI_RANDOM_USER, 0, (uint64_t)a->random) - 2);
    return x;
}

/* Equal bits of nothing but NaN would prove little. */
static bool finite_numbers(const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (!(fabsf(x[i]) < 1e30f)) return false;
    return true;
}

static void run_rows(pvt_ctx *ctx, arena *a)
{
    enum { N = 200, C = 148, V = 50, O = 33 };
    int32_t ids[N];
    float *x = take(a, N * C, 1), *w = take(a, C, 1), *dout = take(a, N * C, 1), *table = take(a, V * C, 1);
    float *out = take(a, N * C, 0), *rstd = take(a, N, 0), *dx = take(a, N * C, 1), *dw = take(a, C, 1);
    float *dtable = take(a, V * C, 1), *W = take(a, O * C, 1), *bias = take(a, O, 1), *y = take(a, N * O, 0);
    float *dW = take(a, O * C, 1), *dbias = take(a, O, 1), *copy = take(a, N * C, 0), *dy = take(a, N * O, 1);
    for (int64_t i = 0; i < N; i++) ids[i] = (int32_t)(i * i % 53) - 1;
    pvt_rmsnorm_forward(ctx, out, rstd, x, w, N, C, 1e-5f);
    pvt_rmsnorm_backward(ctx, dx, dw, dout, x, rstd, w, N, C);
    pvt_embedding_forward(ctx, copy, table, ids, N, V, C);
    pvt_embedding_backward(ctx, dtable, dout, ids, N, V, C);
    pvt_linear_forward(ctx, y, x, W, bias, N, C, O);
    pvt_linear_backward(ctx, dx, dW, dbias, dy, x, W, N, C, O);
    out = take(a, N * C, 0), x = take(a, N * C, 3);
    pvt_swiglu_forward(ctx, out, x, dout, N * C);
    pvt_swiglu_backward(ctx, dx, copy, dout, x, out, N * C);
    out = take(a, N * C, 0);
    pvt_residual_forward(ctx, out, x, copy, N * C);
    pvt_residual_backward(ctx, dx, copy, out, N * C);
    rstd = take(a, 1, 0);
    rstd[0] = (float)pvt_mse_forward(ctx, x, out, N * C);
    pvt_mse_backward(ctx, dx, x, out, 0.7, N * C);
    CHECK(finite_numbers(dx, N * C) && finite_numbers(y, N * O) && finite_numbers(dW, O * C) && rstd[0] > 0);
}

static void run_attention(pvt_ctx *ctx, arena *a, int64_t HS, int64_t T, int64_t pos, int64_t window)
{
    enum { B = 2, NH = 6, NKV = 2 };
    pvt_attention_desc d;
    float inv_freq[64];
    float *q = take(a, B * T * NH * HS, 1), *k = take(a, B * (pos + T) * NKV * HS, 1);
    float *v = take(a, B * (pos + T) * NKV * HS, 1), *dout = take(a, B * T * NH * HS, 1);
    float *out = take(a, B * T * NH * HS, 0), *lse = take(a, B * NH * T, 0),
          *dq = take(a, B * T * NH * HS, 1);
    float *dk = take(a, B * (pos + T) * NKV * HS, 1), *dv = take(a, B * (pos + T) * NKV * HS, 1);
    float *cosines = take(a, (pos + T) * HS / 2, 0), *sines = take(a, (pos + T) * HS / 2, 0);
    memset(&d, 0, sizeof d);
    d.B = B, d.T = T, d.NH = NH, d.NKV = NKV, d.HS = HS, d.pos = pos, d.window = window;
    pvt_rope_frequencies(inv_freq, HS, 10000);
    pvt_rope_table(ctx, cosines, sines, inv_freq, HS, 0, pos + T);
    pvt_rope_forward(ctx, q, cosines + pos * HS / 2, sines + pos * HS / 2, B, T, NH, HS, PVT_ROPE_HALVES);
    pvt_rope_forward(ctx, k, cosines, sines, B, pos + T, NKV, HS, PVT_ROPE_NEIGHBOURS);
    pvt_attention_forward(ctx, out, lse, q, k, v, &d);
    pvt_attention_backward(ctx, dq, dk, dv, dout, out, lse, q, k, v, &d);
    pvt_rope_backward(ctx, dq, cosines + pos * HS / 2, sines + pos * HS / 2, B, T, NH, HS, PVT_ROPE_HALVES);
    pvt_rope_backward(ctx, dk, cosines, sines, B, pos + T, NKV, HS, PVT_ROPE_NEIGHBOURS);
    CHECK(finite_numbers(dq, B * T * NH * HS) && finite_numbers(dk, B * (pos + T) * NKV * HS));
    CHECK(finite_numbers(out, B * T * NH * HS) && finite_numbers(dv, B * (pos + T) * NKV * HS));
}

static void run_losses(pvt_ctx *ctx, arena *a)
{
    enum { N = 37, V = 1600, SLICE = 700 };
    pvt_softmax_row rows[N], teacher_rows[N];
    double lse[N], teacher_lse[N], loss[N], kl[N], p[SLICE];
    int32_t targets[N];
    float *x = take(a, N * V, 8), *t = take(a, N * V, 8), *d = take(a, N * V, 0);
    for (int64_t i = 0; i < N; i++) targets[i] = (int32_t)(i * 41 % V) - (i % 9 == 4 ? V : 0);
    memset(rows, 0, sizeof rows), memset(teacher_rows, 0, sizeof teacher_rows), memset(kl, 0, sizeof kl);
    for (int64_t v0 = 0; v0 < V; v0 += SLICE) {
        int64_t VS = PVTI_MIN((int64_t)SLICE, V - v0);
        pvt_softmax_update(ctx, rows, x + v0, targets, N, v0, VS, V);
        pvt_softmax_update(ctx, teacher_rows, t + v0, targets, N, v0, VS, V);
    }
    pvt_softmax_finish(ctx, lse, loss, rows, targets, N);
    pvt_softmax_finish(ctx, teacher_lse, NULL, teacher_rows, targets, N);
    pvt_kl_forward(ctx, kl, x, lse, t, teacher_lse, targets, N, V, V);
    memcpy(d, x, N * V * sizeof *d);
    pvt_cross_entropy_backward(ctx, d, lse, targets, 0.01, N, 0, V, V);
    pvt_kl_backward(ctx, x, lse, t, teacher_lse, targets, 0.01, N, V, V);
    CHECK(finite_numbers(d, N * V) && finite_numbers(x, N * V));
    float *keep = take(a, 4 * 2 * N, 0);
    memcpy(keep, lse, sizeof lse), memcpy(keep + 2 * N, teacher_lse, sizeof lse);
    memcpy(keep + 4 * N, loss, sizeof loss), memcpy(keep + 6 * N, kl, sizeof kl);
    PVTI_CALL(ctx, tempered)(p, t, 8, 0.7, SLICE);
    memcpy(take(a, 2 * SLICE, 0), p, sizeof p);
    CHECK(fabs(p[3] / exp(((double)t[3] - 8) / 0.7) - 1) < 1e-14);
}

/* Reductions, at every length around the width of vectors. */
static void run_vectors(pvt_ctx *ctx, arena *a)
{
    for (int64_t n = 0; n < 1100; n += n < 70 ? 1 : 331) {
        float *x = take(a, n, 50), *y = take(a, n, 1), *r = take(a, 8, 0);
        double sums[3];
        PVTI_CALL(ctx, sum)(&sums[0], x, n);
        PVTI_CALL(ctx, dot)(&sums[1], x, y, n);
        PVTI_CALL(ctx, sumsq)(&sums[2], x, n);
        memcpy(r, sums, sizeof sums);
        PVTI_CALL(ctx, max)(r + 6, x, n);
        PVTI_CALL(ctx, add_to)(y, x, n);
    }
}

static void run(pvt_ctx *ctx, arena *a)
{
    a->used = a->random = 0;
    run_vectors(ctx, a);
    run_rows(ctx, a);
    run_attention(ctx, a, 24, 100, 0, 0);
    run_attention(ctx, a, 64, 70, 30, 65);
    run_attention(ctx, a, 32, 1, 130, 0);
    run_losses(ctx, a);
}

/* Every kernel set and number of threads against one thread of scalar kernels, whose results stay in `oracle`. */
static void compare(bool bf16, arena *oracle, arena *other)
{
    static const char *const isa[] = TEST_SETS;
    static const int threads[] = {1, 2, 3, 7};
    for (int i = 0; i < 3; i++) {
        const int first = bf16 || i == 0 ? 0 : -1; /* −1: no context, which rounds nothing and takes the widest */
        for (int t = first; t < 4; t++) {
            arena *a = i == 0 && t == first ? oracle : other;
            pvt_ctx *ctx = NULL;
            pvt_ctx_desc desc;
            int64_t j;
            if (i == 0 && t > 1) continue; /* scalar kernels take their time */
            memset(&desc, 0, sizeof desc);
            desc.n_threads = t >= 0 ? threads[t] : 1, desc.compute_bf16 = bf16, desc.isa = isa[i];
            if (t >= 0) {
                CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
                if (strcmp(pvt_ctx_get_info(ctx).isa, isa[i]) != 0) {
                    SKIP("this processor has not every kernel set");
                    pvt_ctx_destroy(ctx);
                    continue;
                }
            }
            run(ctx, a);
            pvt_ctx_destroy(ctx);
            CHECK(a->used == oracle->used);
            CHECK(memcmp(a->base, oracle->base, (size_t)a->used * sizeof(float)) == 0);
            for (j = 0; j < a->used && memcmp(a->base + j, oracle->base + j, sizeof(float)) == 0; j++) {
            }
            if (j < a->used)
                printf("%s, %d threads: first difference at %lld of %lld: %.9g, scalar %.9g\n", isa[i],
                       t >= 0 ? threads[t] : 0, (long long)j, (long long)a->used, (double)a->base[j],
                       (double)oracle->base[j]);
        }
    }
}

/* Attention in bf16 is near to attention in fp32, but not equal. */
static void check_bf16_attention(arena *fp32, arena *bf16)
{
    double error = 0, size = 0;
    for (int half = 0; half < 2; half++) {
        arena *a = half ? bf16 : fp32;
        pvt_ctx *ctx;
        pvt_ctx_desc desc;
        memset(&desc, 0, sizeof desc);
        desc.n_threads = 2, desc.compute_bf16 = half;
        CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
        a->used = a->random = 0;
        run_attention(ctx, a, 64, 100, 0, 0);
        pvt_ctx_destroy(ctx);
    }
    for (int64_t j = 0; j < fp32->used; j++) {
        double d = (double)bf16->base[j] - (double)fp32->base[j];
        error += d * d, size += (double)fp32->base[j] * (double)fp32->base[j];
    }
    CHECK(error > 0 && sqrt(error / size) < 3e-3);
}

int main(void)
{
    arena fp32, bf16, other;
    memset(&fp32, 0, sizeof fp32), memset(&bf16, 0, sizeof bf16), memset(&other, 0, sizeof other);
    fp32.base = (float *)calloc(ARENA, sizeof(float)), bf16.base = (float *)calloc(ARENA, sizeof(float));
    other.base = (float *)calloc(ARENA, sizeof(float));
    compare(false, &fp32, &other);
    compare(true, &bf16, &other);
    check_bf16_attention(&fp32, &bf16);
    free(fp32.base), free(bf16.base), free(other.base);
    return test_end();
}
