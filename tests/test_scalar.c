/*  What fits levels under a metric: the factor of H, GPTQ (against figures computed elsewhere, and against its own
    identity), the search for scales and zeros, and that the best of all is what the default returns. */
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
            double before = i ? X[n * I + i - 1] : 0, size = 0.3 + 2 * pvti_random_unit(1, PVTI_RANDOM_USER, 9, (uint64_t)i);
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
            double sum = 0, want;
            if (j < i || j >= I) {
                CHECK(f.R[i * f.ld + j] == 0);
                continue;
            }
            for (int64_t k = j; k < I; k++) sum += f.R[i * f.ld + k] * f.R[j * f.ld + k];
            want = (double)H[p * I + f.order[j]];
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
        if (i == 4) H[2 * SIDE + 100] = H[100 * SIDE + 2] = 1000; /* |H_ij| ≤ √(H_ii·H_jj) in a positive one */
        if (i == 5) H[2 * SIDE + 100] = (pvt_real)-INFINITY;
        CHECK(pvti_factor_make(ctx, "some weight", H, SIDE, 0.01, false, &f) == PVT_ERR_NUMERIC);
        CHECK(strstr(pvt_ctx_error(ctx), "some weight") != NULL);
        CHECK(!f.R && !f.order && pvt_ctx_get_info(ctx).bytes_now == before);
        free(H);
    }
}

static void check(pvt_ctx *ctx)
{
    static const int sides[] = {1, 2, 7, 63, 64, 65, 128, 130, 200};
    for (int i = 0; i < (int)PVTI_COUNT(sides); i++)
        for (int k = 0; k < 4; k++) check_factor(ctx, sides[i], k % 2, k / 2);
    check_factor_bits(), check_factor_refused(ctx);
}

int main(void)
{
    pvt_ctx *ctx;
    int64_t before;
    if (pvt_ctx_create(NULL, &ctx) != PVT_OK) return 1;
    before = pvt_ctx_get_info(ctx).bytes_now;
    check(ctx);
    CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
    pvt_ctx_destroy(ctx);
    return test_end();
}
