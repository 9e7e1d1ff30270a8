/*  What fits levels under a metric: the factor of H, GPTQ (against figures computed elsewhere, and against
    its own identity), the search for scales and zeros, and that the best of all is what the default returns.
    */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

/* About normal, from an index. */
static double noise(uint64_t i)
{
    double sum = 0;
    for (int j = 0; j < 4; j++) sum += pvti_random_unit(7, PVTI_RANDOM_USER, (uint64_t)j, i);
    return (sum - 2) * 1.7;
}

/* H [I, I] of inputs that depend on each other and differ in size; every tenth is dead when asked for. */
static pvt_real *make_H(int64_t I, bool dead)
{
    pvt_real *H = (pvt_real *)calloc((size_t)(I * I), sizeof *H);
    double *X = (double *)malloc((size_t)(2 * I * I) * sizeof *X);
    for (int64_t n = 0; n < 2 * I; n++)
        for (int64_t i = 0; i < I; i++) {
            double before = i ? X[n * I + i - 1] : 0;
            double size = 0.3 + 2 * pvti_random_unit(1, PVTI_RANDOM_USER, 9, (uint64_t)i);
            X[n * I + i] = 0.6 * before + size * noise((uint64_t)(50000 + n * I + i));
        }
    for (int64_t i = 0; i < I; i++)
        for (int64_t j = 0; j < I; j++) {
            double sum = 0;
            for (int64_t n = 0; n < 2 * I; n++) sum += X[n * I + i] * X[n * I + j];
            if (!dead || (i % 10 != 3 && j % 10 != 3)) H[i * I + j] = (pvt_real)(sum / (double)(2 * I));
        }
    free(X);
    return H;
}

/* ---- the factor ---- */

static void check_factor(pvt_ctx *ctx, int64_t I, bool act_order, bool dead)
{
    pvt_real *H = make_H(I, dead);
    bool *seen = (bool *)calloc((size_t)I, sizeof *seen);
    pvti_factor f;
    double worst = 0, before = INFINITY, mean = 0, live = 0;
    CHECK_OK(ctx, pvti_factor_make(ctx, "H", H, I, 0.01, act_order, &f));
    for (int64_t i = 0; i < I; i++) mean += (double)H[i * I + i], live += H[i * I + i] > 0;
    mean /= live;
    CHECK_NEAR(f.mean, mean, 1e-12 * mean);
    for (int64_t i = 0; i < I; i++) {
        int64_t p = f.order[i];
        CHECK(p >= 0 && p < I && !seen[p] && (act_order || p == i));
        seen[p] = true;
        if (act_order) CHECK((double)H[p * I + p] <= before);
        before = (double)H[p * I + p];
        for (int64_t j = 0; j < f.ld; j++) {
            double sum = 0;
            if (j < i || j >= I) {
                CHECK(f.R[i * f.ld + j] == 0);
                continue;
            }
            for (int64_t k = j; k < I; k++) sum += f.R[i * f.ld + k] * f.R[j * f.ld + k];
            double want = (double)H[p * I + f.order[j]];
            if (i == j) want = (want > 0 ? want : mean) + 0.01 * mean;
            worst = fmax(worst, fabs(sum - want));
        }
        CHECK(f.R[i * f.ld + i] > 0);
    }
    CHECK(worst < 1e-12 * mean * (double)I);
    pvti_factor_free(ctx, &f);
    free(seen);
    free(H);
}

/* The same bits for any number of threads and any kernels. */
static void check_factor_bits(void)
{
    static const char *const isas[] = {"scalar", "avx2", "avx512"};
    static const int threads[] = {1, 2, 5};
    enum { SIDE = 203 };
    pvt_real *H = make_H(SIDE, true);
    pvti_factor first, f;
    pvt_ctx *own = NULL;
    memset(&first, 0, sizeof first);
    for (int i = 0; i < 9; i++) {
        pvt_ctx_desc desc;
        pvt_ctx *ctx;
        memset(&desc, 0, sizeof desc);
        desc.isa = isas[i / 3], desc.n_threads = threads[i % 3];
        if (pvt_ctx_create(&desc, &ctx) != PVT_OK) {
            SKIP(isas[i / 3]);
            continue;
        }
        CHECK_OK(ctx, pvti_factor_make(ctx, "H", H, SIDE, 0.01, true, &f));
        if (i) {
            CHECK(memcmp(f.R, first.R, (size_t)(SIDE * f.ld) * sizeof *f.R) == 0);
            pvti_factor_free(ctx, &f);
            pvt_ctx_destroy(ctx);
        } else
            first = f, own = ctx;
    }
    CHECK(own != NULL);
    if (own) pvti_factor_free(own, &first), pvt_ctx_destroy(own);
    free(H);
}

static void check_factor_refused(pvt_ctx *ctx)
{
    enum { SIDE = 130 };
    for (int i = 0; i < 6; i++) {
        pvt_real *H = make_H(SIDE, false);
        int64_t before = pvt_ctx_get_info(ctx).bytes_now;
        pvti_factor f;
        if (i == 0) H[5 * SIDE + 5] = (pvt_real)NAN;
        if (i == 1) H[5 * SIDE + 7] = (pvt_real)NAN;
        if (i == 2) H[99 * SIDE + 99] = (pvt_real)INFINITY;
        if (i == 3) H[99 * SIDE + 99] = -1;
        if (i == 4) H[2 * SIDE + 100] = H[100 * SIDE + 2] = 1000; /* |H_ij| ≤ √(H_ii·H_jj) if positive */
        if (i == 5) H[2 * SIDE + 100] = (pvt_real)-INFINITY;
        CHECK(pvti_factor_make(ctx, "some weight", H, SIDE, 0.01, false, &f) == PVT_ERR_NUMERIC);
        CHECK(strstr(pvt_ctx_error(ctx), "some weight") != NULL);
        CHECK(!f.R && !f.order && pvt_ctx_get_info(ctx).bytes_now == before);
        free(H);
    }
}

/* ---- fits ---- */

static pvt_real *make_W(int64_t O, int64_t I)
{
    pvt_real *W = (pvt_real *)malloc((size_t)(O * I) * sizeof *W);
    for (int64_t i = 0; i < O * I; i++) W[i] = (pvt_real)noise((uint64_t)i);
    return W;
}

static double damping; /* 0: the default */
static void fit(pvt_ctx *ctx, const char *format, const pvt_real *W, int64_t O, int64_t I, const pvt_real *H,
                pvt_fit_method method, bool act_order, pvt_fit_stats *stats, pvt_weight *out)
{
    pvt_format f;
    pvt_fit_desc d;
    memset(&d, 0, sizeof d);
    d.method = method, d.act_order = act_order, d.damp = damping;
    CHECK_OK(ctx, pvt_format_parse(ctx, format, &f));
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, O, I, H, &f, &d, stats, out));
}

/* E·H·Eᵀ of row o, E = W − Ŵ; H NULL: the identity. */
static double row_error(const pvt_weight *w, const pvt_real *W, const pvt_real *H, int64_t o)
{
    double *e = (double *)malloc((size_t)w->I * sizeof *e), sum = 0;
    pvt_real v;
    for (int64_t i = 0; i < w->I; i++) {
        w->kind->tile(w, &v, 1, o, o + 1, i, i + 1);
        e[i] = (double)W[o * w->I + i] - (double)v;
    }
    for (int64_t i = 0; i < w->I; i++)
        for (int64_t j = H ? 0 : i; j < (H ? w->I : i + 1); j++)
            sum += e[i] * e[j] * (H ? (double)H[i * w->I + j] : 1);
    free(e);
    return sum;
}

/* GPTQ word by word as the paper has it, in double, for one row: inverse of H + λ, its upper Cholesky factor
   U, updates of all columns to come at every column. Writes the codes; returns Σ ((w_j − q_j) / U_jj)². */
static double paper(const pvt_real *W, const double *U, int64_t I, int ig, int bits, uint8_t *codes,
                    double *dequantized)
{
    double *w = (double *)malloc((size_t)I * sizeof *w), sum = 0, scale = 0, zero = 0;
    int most = (1 << bits) - 1;
    for (int64_t i = 0; i < I; i++) w[i] = (double)W[i];
    for (int64_t j = 0; j < I; j++) {
        if (j % ig == 0) {
            double low = 0, high = 0;
            for (int64_t k = j; k < j + ig; k++) low = fmin(low, w[k]), high = fmax(high, w[k]);
            scale = (high - low) / most, zero = floor(-low / scale + 0.5);
        }
        double q = fmin(fmax(floor(w[j] / scale + zero + 0.5), 0), most);
        codes[j] = (uint8_t)q, dequantized[j] = scale * (q - zero);
        double e = (w[j] - dequantized[j]) / U[j * I + j];
        sum += e * e;
        for (int64_t k = j; k < I; k++) w[k] -= e * U[j * I + k];
    }
    free(w);
    return sum;
}

/* A [n, n] ← its lower Cholesky factor, or the inverse of such a factor. */
static void lower(double *A, int64_t n, bool invert)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++) {
            double sum = invert ? i == j : A[i * n + j];
            if (invert) {
                for (int64_t k = j; k < i; k++) sum -= A[i * n + k] * A[k * n + j];
                A[i * n + j] = sum / A[i * n + i];
            } else {
                for (int64_t k = 0; k < j; k++) sum -= A[i * n + k] * A[j * n + k];
                A[i * n + j] = i == j ? sqrt(sum) : sum / A[j * n + j];
            }
        }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i + 1; j < n; j++) A[i * n + j] = 0;
}

/* U of H + λ by way of the inverse: H = LLᵀ, H⁻¹ = L⁻ᵀL⁻¹, and that = UᵀU. */
static double *upper(const pvt_real *H, int64_t I, double lambda)
{
    double *L = (double *)malloc((size_t)(I * I) * sizeof *L);
    double *V = (double *)malloc((size_t)(I * I) * sizeof *V);
    for (int64_t i = 0; i < I * I; i++) L[i] = (double)H[i] + (i % (I + 1) ? 0 : lambda);
    lower(L, I, false);
    for (int64_t i = 0; i < I; i++) { /* L⁻¹, column by column */
        for (int64_t j = 0; j < I; j++) {
            double sum = i == j;
            for (int64_t k = i; k < j; k++) sum -= L[j * I + k] * V[k * I + i];
            V[j * I + i] = j < i ? 0 : sum / L[j * I + j];
        }
    }
    for (int64_t i = 0; i < I; i++)
        for (int64_t j = 0; j < I; j++) {
            double sum = 0;
            for (int64_t k = 0; k < I; k++) sum += V[k * I + i] * V[k * I + j];
            L[i * I + j] = sum;
        }
    lower(L, I, false);
    for (int64_t i = 0; i < I; i++)
        for (int64_t j = 0; j < I; j++) V[i * I + j] = L[j * I + i];
    free(L);
    return V;
}

/* The paper's codes, and its identity: Σ ((w − q)/U_jj)² = tr((W − Q)(H + λ)(W − Q)ᵀ). */
static void check_paper(pvt_ctx *ctx, int64_t O, int64_t I, int bits, int ig)
{
    char format[48];
    pvt_real *W = make_W(O, I), *H = make_H(I, false);
    uint8_t *codes = (uint8_t *)malloc((size_t)I);
    double *V = (double *)malloc((size_t)I * sizeof *V), lambda = 0;
    pvt_weight w;
    for (int64_t i = 0; i < I; i++) lambda += 0.01 * (double)H[i * I + i] / (double)I;
    double *U = upper(H, I, lambda);
    snprintf(format, sizeof format, "int:%dg%d", bits, ig);
    fit(ctx, format, W, O, I, H, PVT_FIT_GPTQ, false, NULL, &w);
    for (int64_t o = 0; o < O; o++) {
        double sum = paper(W + o * I, U, I, ig, bits, codes, V), trace = row_error(&w, W, H, o);
        pvt_real v;
        CHECK(memcmp(codes, (const uint8_t *)w.array[0] + o * I, (size_t)I) == 0);
        for (int64_t i = 0; i < I; i++) {
            w.kind->tile(&w, &v, 1, o, o + 1, i, i + 1);
            CHECK_NEAR(v, V[i], 1e-5);
            double e = (double)W[o * I + i] - (double)v;
            trace += lambda * e * e;
        }
        CHECK_NEAR(sum, trace, 1e-4 * trace);
    }
    pvt_weight_free(&w);
    free(W), free(H), free(U), free(V), free(codes);
}

#if !PVTI_REAL_IS_DOUBLE
/* ---- figures computed elsewhere ---- */

#define GOLDEN "../shared/golden/scalar/gptq.safetensors"
enum { ROWS = 48, COLUMNS = 64, GROUP = 32 };

static const void *tensor(const pvt_tensors *file, const char *key, const char *name, int64_t bytes)
{
    char full[64];
    snprintf(full, sizeof full, "%s%s", key, name);
    int64_t at = pvt_tensors_find(file, full);
    CHECK(at >= 0);
    if (at < 0) exit(1);
    pvt_array a = pvt_tensors_get(file, at);
    CHECK(a.bytes == bytes);
    return a.data;
}

/* One case. Its act-order has groups of columns that follow each other in the order of quantization, where
   ours are neighbours in W: with the columns put in that order first, both are the same. */
static void check_golden_case(pvt_ctx *ctx, const pvt_tensors *file, int bits, bool act_order)
{
    static pvt_real W[ROWS * COLUMNS], H[COLUMNS * COLUMNS];
    char key[24], format[24];
    const float *weight = (const float *)tensor(file, "", "weight", sizeof W);
    const double *hessian = (const double *)tensor(file, "", "hessian", 8 * COLUMNS * COLUMNS);
    const int32_t *perm = NULL;
    double live = 0;
    pvt_weight w;
    snprintf(key, sizeof key, "b%d.%s", bits, act_order ? "act" : "noact");
    snprintf(format, sizeof format, "int:%dg%d", bits, GROUP);
    const uint8_t *q = (const uint8_t *)tensor(file, key, ".q", ROWS * COLUMNS);
    const float *scale = (const float *)tensor(file, key, ".scale", 4 * ROWS * COLUMNS / GROUP);
    const float *zero = (const float *)tensor(file, key, ".zero", 4 * ROWS * COLUMNS / GROUP);
    const float *dequant = (const float *)tensor(file, key, ".dequant", 4 * ROWS * COLUMNS);
    if (act_order) perm = (const int32_t *)tensor(file, key, ".perm", 4 * COLUMNS);
    for (int j = 0; j < COLUMNS; j++) {
        int from = perm ? perm[j] : j;
        for (int o = 0; o < ROWS; o++) W[o * COLUMNS + j] = weight[o * COLUMNS + from];
        for (int k = 0; k < COLUMNS; k++)
            H[j * COLUMNS + k] = (pvt_real)hessian[from * COLUMNS + (perm ? perm[k] : k)];
    }
    for (int j = 0; j < COLUMNS; j++) live += (double)H[j * COLUMNS + j] / (COLUMNS - 1);
    /* the one dead input counts as 1 there, as the mean here */
    damping = 0.01 * ((COLUMNS - 1) * live + 1) / (COLUMNS * live);
    fit(ctx, format, W, ROWS, COLUMNS, H, PVT_FIT_GPTQ, false, NULL, &w);
    damping = 0;
    for (int o = 0; o < ROWS; o++) {
        for (int j = 0; j < COLUMNS; j++) {
            int from = perm ? perm[j] : j;
            pvt_real v;
            w.kind->tile(&w, &v, 1, o, o + 1, j, j + 1);
            CHECK(((const uint8_t *)w.array[0])[o * COLUMNS + j] == q[o * COLUMNS + from]);
            CHECK_NEAR(v, dequant[o * COLUMNS + from], 1e-6);
        }
        for (int g = o * (COLUMNS / GROUP); g < (o + 1) * (COLUMNS / GROUP); g++) {
            CHECK_NEAR(((const pvt_real *)w.array[1])[g], scale[g], 1e-6);
            CHECK(((const pvt_real *)w.array[2])[g] == zero[g]);
        }
    }
    pvt_weight_free(&w);
}

static void check_golden(pvt_ctx *ctx)
{
    static pvt_real H[COLUMNS * COLUMNS];
    pvt_tensors *file;
    pvti_factor f;
    int dead = -1, at = 0;
    if (pvt_tensors_open(ctx, GOLDEN, &file) != PVT_OK) {
        SKIP(GOLDEN " is not there");
        return;
    }
    for (int i = 0; i < 6; i++) check_golden_case(ctx, file, 2 + i / 2, i % 2);
    const double *hessian = (const double *)tensor(file, "", "hessian", 8 * COLUMNS * COLUMNS);
    const int32_t *perm = (const int32_t *)tensor(file, "b2.act", ".perm", 4 * COLUMNS);
    for (int i = 0; i < COLUMNS * COLUMNS; i++) H[i] = (pvt_real)hessian[i];
    for (int i = 0; i < COLUMNS; i++)
        if (H[i * COLUMNS + i] == 0) dead = i;
    CHECK_OK(ctx, pvti_factor_make(ctx, "H", H, COLUMNS, 0.01, true, &f));
    CHECK(dead == 5 && f.order[COLUMNS - 1] == dead);
    for (int i = 0; i < COLUMNS; i++) /* the dead one counts as 1 there, and is last here */
        if (perm[i] != dead) CHECK(f.order[at++] == perm[i]);
    pvti_factor_free(ctx, &f);
    pvt_tensors_close(file);
}
#endif

/* ---- what is best ---- */

static const char *const formats[] = {"int:2g64", "int:3g64", "int:4g16", "int:1g32", "int:8g64",
                                      "int:2g64s", "int:4g32s", "q2_0", "nf4"};

/* BEST is never above GPTQ, in no row; on these data GPTQ is below RTN. The stats are what is so. */
static void check_order(pvt_ctx *ctx, const char *format, bool act_order, bool dead)
{
    enum { O = 12, I = 192 };
    pvt_real *W = make_W(O, I), *H = make_H(I, dead);
    pvt_fit_stats rtn, gptq, best;
    pvt_weight a, b, c;
    double sum = 0, energy = 0;
    fit(ctx, format, W, O, I, H, PVT_FIT_RTN, act_order, &rtn, &a);
    fit(ctx, format, W, O, I, H, PVT_FIT_GPTQ, act_order, &gptq, &b);
    fit(ctx, format, W, O, I, H, PVT_FIT_BEST, act_order, &best, &c);
    CHECK(best.error < gptq.error && best.error < rtn.error);
    CHECK(best.error_start == gptq.error && best.epochs > 0);
    if (c.format.bits > 1) CHECK(gptq.error < rtn.error); /* two levels at the ends: too far apart */
    for (int o = 0; o < O; o++) {
        double mine = row_error(&c, W, H, o);
        CHECK(mine <= row_error(&b, W, H, o) * (1 + 1e-6));
        sum += mine;
        for (int i = 0; i < I; i++)
            for (int j = 0; j < I; j++)
                energy += (double)W[o * I + i] * (double)W[o * I + j] * (double)H[i * I + j];
    }
    CHECK_NEAR(best.error, sum / energy, 1e-4 * best.error);
    pvt_weight_free(&a), pvt_weight_free(&b), pvt_weight_free(&c);
    free(W), free(H);
}

/* Without H: no group above round-to-nearest. */
static void check_plain(pvt_ctx *ctx, const char *format)
{
    enum { O = 16, I = 128 };
    pvt_real *W = make_W(O, I);
    pvt_fit_stats rtn, gptq, best;
    pvt_weight a, b, c;
    for (int i = 0; i < I; i++)
        W[i] = 0, W[I + i] = 3, W[2 * I + i] = -3, W[3 * I + i] = 5 + W[3 * I + i] / 16;
    W[4 * I + 7] = 1000, W[5 * I + 9] = (pvt_real)1e-30;
    fit(ctx, format, W, O, I, NULL, PVT_FIT_RTN, false, &rtn, &a);
    fit(ctx, format, W, O, I, NULL, PVT_FIT_GPTQ, false, &gptq, &b);
    fit(ctx, format, W, O, I, NULL, PVT_FIT_BEST, false, &best, &c);
    CHECK(gptq.error == rtn.error && best.error <= rtn.error);
    CHECK(a.format.kind == PVT_FORMAT_NF4 || best.error < rtn.error);
    for (int o = 0; o < O; o++)
        CHECK(row_error(&c, W, NULL, o) <= row_error(&a, W, NULL, o) * (1 + 1e-5) + 1e-9);
    CHECK(row_error(&c, W, NULL, 0) == 0);
    CHECK(row_error(&c, W, NULL, 1) < 1e-9 && row_error(&c, W, NULL, 2) < 1e-9);
    pvt_weight_free(&a), pvt_weight_free(&b), pvt_weight_free(&c);
    free(W);
}

/* The least squared error of eight numbers over all codes of two bits, the scale (and zero) by least squares.
   */
static double brute(const pvt_real *x, bool zeros)
{
    double least = INFINITY;
    for (int code = 0; code < 1 << 16; code++) {
        double n = 8, l = 0, ll = 0, s = 0, sl = 0, ss = 0;
        for (int k = 0; k < 8; k++) {
            double level = (code >> 2 * k & 3) - (zeros ? 0 : 2), v = (double)x[k];
            l += level, ll += level * level, s += v, sl += v * level, ss += v * v;
        }
        if (zeros) ll -= l * l / n, sl -= l * s / n, ss -= s * s / n;
        double error = ll > 1e-9 ? ss - sl * sl / ll : ss;
        least = fmin(least, error);
    }
    return least;
}

static void check_brute(pvt_ctx *ctx, const char *format, bool zeros)
{
    enum { O = 8, I = 64 };
    pvt_real *W = make_W(O, I);
    double least = 0, mine = 0;
    pvt_weight w;
    fit(ctx, format, W, O, I, NULL, PVT_FIT_BEST, false, NULL, &w);
    for (int g = 0; g < O * I / 8; g++) least += brute(W + 8 * g, zeros);
    for (int o = 0; o < O; o++) mine += row_error(&w, W, NULL, o);
    printf("%s: %.4f of the least\n", format, mine / least);
    CHECK(mine >= least * (1 - 1e-6) && mine <= least * 1.05);
    pvt_weight_free(&w);
    free(W);
}

/* The mean squared error of a normal distribution: with scales of either sign 0.123 (0.144 with positive ones
   only). */
static void check_gaussian(pvt_ctx *ctx)
{
    enum { O = 256, I = 512 };
    pvt_real *W = (pvt_real *)malloc(O * I * sizeof *W);
    pvt_fit_stats stats;
    pvt_weight w;
    int negative = 0;
    for (int i = 0; i < O * I; i++) { /* Box and Muller */
        double sine, cosine, u = pvti_random_unit(3, PVTI_RANDOM_USER, 77, (uint64_t)i);
        double turn = pvti_random_unit(3, PVTI_RANDOM_USER, 78, (uint64_t)i);
        pvti_sincos(6.283185307179586 * turn, &sine, &cosine);
        W[i] = (pvt_real)(sqrt(-2 * log(1 - u)) * cosine);
    }
    fit(ctx, "q2_0", W, O, I, NULL, PVT_FIT_BEST, false, &stats, &w);
    printf("q2_0, normal distribution: %.4f\n", stats.error);
    CHECK_NEAR(stats.error, 0.123, 0.002);
    for (int g = 0; g < O * I / 64; g++) negative += ((const pvt_real *)w.array[1])[g] < 0;
    CHECK(negative > O * I / 64 / 3 && negative < O * I / 64 * 2 / 3);
    pvt_weight_free(&w);
    free(W);
}

/* ---- same bits ---- */

static uint64_t hash_of(const pvt_weight *w)
{
    pvt_array arrays[PVT_MAX_ARRAYS];
    uint64_t hash = 14695981039346656037u;
    for (int i = pvt_weight_arrays(w, arrays) - 1; i >= 0; i--)
        for (int64_t k = 0; k < arrays[i].bytes; k++)
            hash = (hash ^ ((const uint8_t *)arrays[i].data)[k]) * 1099511628211u;
    return hash;
}

static void check_same_bits(void)
{
    static const char *const isas[] = {"scalar", "avx2", "avx512"};
    static const int threads[] = {1, 2, 5};
    enum { O = 21, I = 320, FITS = 4 * (int)(sizeof formats / sizeof *formats) };
    pvt_real *W = make_W(O, I), *H = make_H(I, true);
    uint64_t first[FITS];
    memset(first, 0, sizeof first);
    for (int i = 0; i < 9; i++) {
        pvt_ctx_desc desc;
        pvt_ctx *ctx;
        memset(&desc, 0, sizeof desc);
        desc.isa = isas[i / 3], desc.n_threads = threads[i % 3];
        if (pvt_ctx_create(&desc, &ctx) != PVT_OK) {
            SKIP(isas[i / 3]);
            continue;
        }
        for (int k = 0; k < FITS; k++) {
            pvt_weight w;
            fit(ctx, formats[k / 4], W, O, I, k % 4 == 3 ? NULL : H, k % 4 == 1 ? PVT_FIT_GPTQ : PVT_FIT_BEST,
                k % 4 == 2, NULL, &w);
            uint64_t hash = hash_of(&w);
            if (i == 0) first[k] = hash;
            if (hash != first[k]) printf("%s: %s, %d threads\n", formats[k / 4], isas[i / 3], threads[i % 3]);
            CHECK(hash == first[k]);
            pvt_weight_free(&w);
        }
        pvt_ctx_destroy(ctx);
    }
    free(W), free(H);
}

/* ---- what goes wrong ---- */

static void check_refused(pvt_ctx *ctx)
{
    enum { O = 5, I = 128 };
    pvt_real *W = make_W(O, I);
    for (int i = 0; i < 12; i++)
        for (int m = 0; m < 2; m++) {
            pvt_real *H = make_H(I, false);
            int64_t before = pvt_ctx_get_info(ctx).bytes_now;
            pvt_result want = i < 8 ? PVT_ERR_NUMERIC : PVT_ERR_ARGUMENT;
            pvt_format f;
            pvt_fit_desc d;
            pvt_weight w;
            memset(&d, 0, sizeof d), memset(&w, 0x55, sizeof w);
            d.name = "some weight", d.method = m ? PVT_FIT_GPTQ : PVT_FIT_BEST;
            CHECK_OK(ctx, pvt_format_parse(ctx, i % 2 ? "int:2g64" : "q2_0", &f));
            if (i == 0) H[5 * I + 5] = (pvt_real)NAN;
            if (i == 1) H[7 * I + 5] = (pvt_real)NAN;
            if (i == 2) H[5 * I + 7] = (pvt_real)NAN;
            if (i == 3) H[99 * I + 99] = (pvt_real)INFINITY;
            if (i == 4) H[99 * I + 99] = -1;
            if (i == 5) H[2 * I + 100] = H[100 * I + 2] = 1000;
            if (i == 6) W[3 * I + 4] = (pvt_real)NAN;
            if (i == 7) W[3 * I + 4] = (pvt_real)INFINITY;
            if (i == 8) d.damp = -1;
            if (i == 9) d.damp = NAN;
            if (i == 10) d.damp = INFINITY;
            if (i == 11) d.method = (pvt_fit_method)3;
            CHECK(pvt_weight_fit(ctx, W, O, I, H, &f, &d, NULL, &w) == want);
            CHECK(strstr(pvt_ctx_error(ctx), "some weight") != NULL);
            CHECK(!w.array[0] && !w.kind && pvt_ctx_get_info(ctx).bytes_now == before);
            W[3 * I + 4] = 0;
            free(H);
        }
    free(W);
}

/* Inputs that are all dead say nothing: as without H. And H may be scaled as one likes: by powers of 4, to
   the bit. */
static void check_scaled(pvt_ctx *ctx)
{
    enum { O = 7, I = 128 };
    pvt_real *W = make_W(O, I), *zero = (pvt_real *)calloc(I * I, sizeof *zero), *H = make_H(I, true);
    pvt_fit_stats stats;
    pvt_weight a, b;
    for (int i = 0; i < 2 * (int)PVTI_COUNT(formats); i++) {
        pvt_fit_method method = i % 2 ? PVT_FIT_BEST : PVT_FIT_GPTQ;
        fit(ctx, formats[i / 2], W, O, I, zero, method, false, &stats, &a);
        fit(ctx, formats[i / 2], W, O, I, NULL, method, false, NULL, &b);
        CHECK(hash_of(&a) == hash_of(&b) && stats.error == 0);
        pvt_weight_free(&a), pvt_weight_free(&b);
    }
    fit(ctx, "int:2g64", W, O, I, H, PVT_FIT_BEST, true, NULL, &a);
    for (int i = 0; i < I * I; i++) H[i] /= 1 << 20;
    fit(ctx, "int:2g64", W, O, I, H, PVT_FIT_BEST, true, NULL, &b);
    CHECK(hash_of(&a) == hash_of(&b));
    pvt_weight_free(&a), pvt_weight_free(&b);
    free(W), free(zero), free(H);
}

/* Every allocation fails once. */
static void check_memory(const char *format, pvt_fit_method method)
{
    enum { O = 3, I = 64, PLENTY = 1 << 30 };
    test_budget budget = {PLENTY, 0, false};
    pvt_real *W = make_W(O, I), *H = make_H(I, false);
    pvt_ctx_desc desc;
    pvt_result result = PVT_ERR_MEMORY;
    pvt_ctx *ctx;
    int64_t n;
    memset(&desc, 0, sizeof desc);
    desc.allocator.alloc = test_budget_alloc, desc.allocator.free = test_budget_free, desc.allocator.user = &budget;
    desc.n_threads = 1;
    if (pvt_ctx_create(&desc, &ctx) != PVT_OK) exit(1);
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    for (n = 0; result != PVT_OK && n < 100; n++) {
        pvt_format f;
        pvt_fit_desc d;
        pvt_weight w;
        memset(&d, 0, sizeof d), d.method = method;
        CHECK_OK(ctx, pvt_format_parse(ctx, format, &f));
        budget.left = n;
        result = pvt_weight_fit(ctx, W, O, I, H, &f, &d, NULL, &w);
        budget.left = PLENTY;
        CHECK(result == PVT_OK || (result == PVT_ERR_MEMORY && !w.kind && !w.array[0]));
        if (result == PVT_OK) pvt_weight_free(&w);
        CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
    }
    CHECK(result == PVT_OK && n > 12);
    pvt_ctx_destroy(ctx);
    free(W), free(H);
}

static int calls;
static int stop_at_second(void *user, const pvt_progress *p)
{
    (void)user;
    CHECK(strcmp(p->phase, "fit") == 0);
    return ++calls == 2;
}
static void check_cancelled(void)
{
    enum { O = 6, I = 128 };
    pvt_real *W = make_W(O, I), *H = make_H(I, false);
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    pvt_format f;
    pvt_weight w;
    memset(&desc, 0, sizeof desc);
    desc.progress = stop_at_second;
    if (pvt_ctx_create(&desc, &ctx) != PVT_OK) exit(1);
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    CHECK_OK(ctx, pvt_format_parse(ctx, "int:2g64", &f));
    CHECK(pvt_weight_fit(ctx, W, O, I, H, &f, NULL, NULL, &w) == PVT_ERR_CANCELLED);
    CHECK(!w.kind && pvt_ctx_get_info(ctx).bytes_now == before);
    pvt_ctx_destroy(ctx);
    free(W), free(H);
}

static void check(pvt_ctx *ctx)
{
    static const int sides[] = {1, 2, 7, 63, 64, 65, 128, 130, 200};
    for (int i = 0; i < (int)PVTI_COUNT(sides); i++)
        for (int k = 0; k < 4; k++) check_factor(ctx, sides[i], k % 2, k / 2);
    check_factor_bits(), check_factor_refused(ctx);
    check_paper(ctx, 6, 60, 2, 20), check_paper(ctx, 3, 300, 3, 30);
    check_paper(ctx, 3, 300, 2, 150), check_paper(ctx, 4, 192, 4, 64);
#if !PVTI_REAL_IS_DOUBLE
    check_golden(ctx);
#endif
    for (int i = 0; i < (int)PVTI_COUNT(formats); i++) {
        for (int k = 0; k < 4; k++) check_order(ctx, formats[i], k % 2, k / 2);
        check_plain(ctx, formats[i]);
    }
    check_brute(ctx, "int:2g8", true), check_brute(ctx, "int:2g8s", false), check_gaussian(ctx);
    check_same_bits(), check_refused(ctx), check_scaled(ctx), check_cancelled();
    check_memory("int:2g64", PVT_FIT_BEST), check_memory("q2_0", PVT_FIT_BEST);
    check_memory("nf4", PVT_FIT_GPTQ);
}

int main(void)
{
    pvt_ctx *ctx;
    if (pvt_ctx_create(NULL, &ctx) != PVT_OK) return 1;
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    check(ctx);
    CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
    pvt_ctx_destroy(ctx);
    return test_end();
}
