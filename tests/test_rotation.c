/*  Rotation: the transform against its matrix written out, weights with had: and had2: against their dense selves, the
    fit, the P and V steps in the rotated space, the same bits for any number of threads, kernels and room, files. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

#define DOUBLE PVTI_REAL_IS_DOUBLE
#define NEAR_ONE (DOUBLE ? 1e-12 : 1e-6) /* of numbers of size 1 that went through one transform */
#define NEAR_SUM (DOUBLE ? 1e-10 : 2e-4) /* of sums of some hundred products, relative to their size */

enum { O = 96, I = 192, N = O * I, N_ROWS = 100 }; /* 3 blocks of 32, 3 of 64 */

static const char *const all[] = {"had:int:4g32", "had2:int:2g16", "had2:int:8g64", "had:nf4", "had2:nf4", "had:aqlm:2x4g4",
                                  "had2:aqlm:2x3g4o2", "had2:aqlm:2x8g8"};
enum { ALL = sizeof all / sizeof *all };

static char dir[300];

/* About normal, from an index. */
static pvt_real bell(uint64_t i)
{
    double sum = 0;
    for (int j = 0; j < 4; j++) sum += pvti_random_unit(7, PVTI_RANDOM_USER, (uint64_t)j, i);
    return (pvt_real)((sum - 2) * 1.7);
}
static pvt_real *noises(int64_t n, uint64_t from)
{
    pvt_real *x = (pvt_real *)malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = bell(from + (uint64_t)i);
    return x;
}
static pvt_real *copy_of(const pvt_real *x, int64_t n)
{
    pvt_real *y = (pvt_real *)malloc((size_t)n * sizeof *y);
    memcpy(y, x, (size_t)n * sizeof *y);
    return y;
}
static double norm(const pvt_real *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}
/* The largest difference, in units of the root mean square of b. */
static double off_by(const pvt_real *a, const pvt_real *b, int64_t n)
{
    double most = 0;
    if (n == 0) return 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= most)) most = d; /* NaN shows */
    }
    return most / (norm(b, n) / sqrt((double)n) + 1e-300);
}
static bool same(const pvt_real *a, const pvt_real *b, int64_t n) { return memcmp(a, b, (size_t)n * sizeof *a) == 0; }

static pvt_format parse(pvt_ctx *ctx, const char *text)
{
    pvt_format f;
    CHECK_OK(ctx, pvt_format_parse(ctx, text, &f));
    return f;
}

/* ---- the transform, written a second time ---- */

static uint64_t mix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
/* R[i, j] on a side of C numbers. */
static double entry(int64_t C, int side, int64_t i, int64_t j)
{
    int64_t m = 1;
    int parity = 0;
    while (C % (2 * m) == 0) m *= 2;
    if (i / m != j / m) return 0;
    for (int64_t k = i % m & j % m; k; k &= k - 1) parity++;
    if (mix(mix((uint64_t)side) ^ (uint64_t)(j / 64)) >> j % 64 & 1) parity++;
    return (parity % 2 ? -1 : 1) / sqrt((double)m);
}
/* out [n, C] = x·Rᵀ, or x·R when inverse. */
static void rotate_slowly(double *out, const double *x, int64_t n, int64_t C, int side, bool inverse)
{
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < C; i++) {
            double sum = 0;
            for (int64_t j = 0; j < C; j++)
                sum += (inverse ? entry(C, side, j, i) : entry(C, side, i, j)) * x[r * C + j];
            out[r * C + i] = sum;
        }
}

static void check_transform(pvt_ctx *ctx, int64_t C)
{
    enum { n = 3 };
    for (int side = 0; side < 2; side++) {
        pvt_real *x = noises(n * C, 99), *y = noises(n * C, 5), *z = copy_of(x, n * C), *t = noises(n * C, 7);
        double *wide = (double *)malloc((size_t)(n * C) * sizeof *wide), *want = (double *)malloc((size_t)(n * C) * sizeof *want);
        double worst = 0, back = 0;
        for (int64_t i = 0; i < n * C; i++) wide[i] = (double)x[i];
        for (int inverse = 0; inverse < 2; inverse++) {
            rotate_slowly(want, wide, n, C, side, inverse != 0);
            pvt_rotate(ctx, y, x, n, C, (pvt_side)side, inverse != 0);
            for (int64_t i = 0; i < n * C; i++) worst = fmax(worst, fabs((double)y[i] - want[i]));
            memcpy(z, x, (size_t)(n * C) * sizeof *z);
            pvt_rotate(ctx, z, z, n, C, (pvt_side)side, inverse != 0); /* in place */
            CHECK(same(y, z, n * C));
            CHECK_NEAR(norm(y, n * C) / norm(x, n * C), 1, NEAR_ONE);
            pvt_rotate(ctx, z, z, n, C, (pvt_side)side, inverse == 0);
            for (int64_t i = 0; i < n * C; i++) back = fmax(back, fabs((double)z[i] - (double)x[i]));
            for (int64_t i = 0; i < n * C; i++) t[i % C * n + i / C] = x[i];
            pvt_rotate_columns(ctx, t, C, n, (pvt_side)side, inverse != 0);
            for (int64_t i = 0; i < n * C; i++) worst = fmax(worst, fabs((double)t[i % C * n + i / C] - want[i]));
        }
        if (!(worst < 3 * NEAR_ONE && back < 3 * NEAR_ONE)) printf("%d: off by %g, %g back\n", (int)C, worst, back);
        CHECK(worst < 3 * NEAR_ONE && back < 3 * NEAR_ONE);
        free(x), free(y), free(z), free(t), free(wide), free(want);
    }
}

static void check_transforms(pvt_ctx *ctx)
{
    static const int64_t sizes[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 72, 128, 192, 256, 321, 512, 576, 1024, 1536};
    pvt_real x[5] = {1, 2, 3, 4, 5};
    for (int i = 0; i < (int)(sizeof sizes / sizeof *sizes); i++) check_transform(ctx, sizes[i]), check_transform(NULL, sizes[i]);
    pvt_rotate(ctx, x, x, 0, 5, PVT_SIDE_IN, false), pvt_rotate(ctx, x, x, 1, 0, PVT_SIDE_IN, false);
    pvt_rotate_columns(ctx, x, 5, 0, PVT_SIDE_IN, false), pvt_rotate_columns(ctx, x, 0, 1, PVT_SIDE_IN, false);
    for (int i = 0; i < 5; i++) CHECK(x[i] == (pvt_real)(i + 1));
    /* one of 64 numbers is spread evenly, and comes back */
    for (int at = 0; at < 64; at += 9) {
        pvt_real one[64];
        memset(one, 0, sizeof one);
        one[at] = 8;
        pvt_rotate(ctx, one, one, 1, 64, PVT_SIDE_IN, false);
        for (int i = 0; i < 64; i++) CHECK(fabs((double)one[i]) == 1);
        pvt_rotate(ctx, one, one, 1, 64, PVT_SIDE_IN, true);
        for (int i = 0; i < 64; i++) CHECK(one[i] == (i == at ? 8 : 0));
    }
}

/* ---- texts ---- */

static void check_texts(pvt_ctx *ctx)
{
    static const char *const hostile[] = {"had", "had:", "had2:", "had2", "had:dense", "had2:dense", "had3:nf4", "had0:nf4", "had1:nf4",
                                          "HAD:nf4", " had:nf4", "had: nf4", "had:nf4 ", "had:had:nf4", "had2:had:nf4", "had:had2:nf4",
                                          "had:int:9g32", "had:aqlm:2x8", "hadnf4", "had:nf4:had:", "nf4:had"};
    pvt_format f, plain, zero;
    pvt_array arrays[PVT_MAX_ARRAYS];
    char text[48];
    int n;
    memset(&zero, 0, sizeof zero);
    for (int i = 0; i < ALL; i++) {
        f = parse(ctx, all[i]), plain = parse(ctx, strchr(all[i], ':') + 1);
        pvt_format_text(&f, text);
        CHECK(strcmp(text, all[i]) == 0 && f.rotation == (all[i][3] == '2' ? 2 : 1) && plain.rotation == 0);
        CHECK(pvt_format_bits(&f, O, I) == pvt_format_bits(&plain, O, I) && pvt_format_bits(&f, O, I) > 0);
        f.rotation = 3;
        pvt_format_text(&f, text);
        CHECK(strcmp(text, "?") == 0 && pvt_format_arrays(ctx, &f, O, I, arrays, &n) == PVT_ERR_ARGUMENT);
        f.rotation = -1;
        CHECK(pvt_format_arrays(ctx, &f, O, I, arrays, &n) == PVT_ERR_ARGUMENT && pvt_format_bits(&f, O, I) == 0);
    }
    f = parse(ctx, "had2:aqlm:16x16g64o4");
    pvt_format_text(&f, text);
    CHECK(strcmp(text, "had2:aqlm:16x16g64o4") == 0);
    for (int i = 0; i < (int)(sizeof hostile / sizeof *hostile); i++) {
        memset(&f, 0x55, sizeof f);
        if (pvt_format_parse(ctx, hostile[i], &f) == PVT_OK) printf("\"%s\" is taken\n", hostile[i]);
        CHECK(pvt_format_parse(ctx, hostile[i], &f) == PVT_ERR_ARGUMENT && memcmp(&f, &zero, sizeof f) == 0);
        CHECK(strstr(pvt_ctx_error(ctx), "had2:") != NULL);
        CHECK(strstr(pvt_ctx_error(ctx), strstr(hostile[i], "aqlm") ? "aqlm:MxBgG" : "int:BgG") != NULL);
    }
    f = parse(ctx, "had:int:4g32");
    CHECK(pvt_format_arrays(ctx, &f, 4, 80, arrays, &n) == PVT_ERR_ARGUMENT);
    CHECK(strstr(pvt_ctx_error(ctx), "had:int:4g40 would fit") != NULL);
}

/* ---- weights ---- */

static void fit_to(pvt_ctx *ctx, const char *format, const pvt_real *W, const pvt_real *H, pvt_fit_stats *stats, pvt_weight *out)
{
    pvt_format f = parse(ctx, format);
    pvt_fit_desc d;
    memset(&d, 0, sizeof d);
    d.epochs = 1, d.kmeans_steps = 3;
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, O, I, H, &f, &d, stats, out));
}
static void fit(pvt_ctx *ctx, const char *format, pvt_weight *out)
{
    pvt_real *W = noises(N, 1000);
    fit_to(ctx, format, W, NULL, NULL, out);
    free(W);
}

/* W = Rᵒᵀ·Ŵ·Rⁱ by the written-out matrices. */
static void check_dequantize(const pvt_weight *w)
{
    pvt_real *W = noises(N, 0), *hat = noises(N, 0), *rows = noises(3 * I, 0);
    double *a = (double *)malloc(N * sizeof *a), *b = (double *)malloc(N * sizeof *b), worst = 0;
    const int32_t which[3] = {O - 1, 0, 37};
    w->kind->tile(w, hat, I, 0, O, 0, I);
    pvt_weight_dequantize(w, W);
    for (int i = 0; i < N; i++) a[i] = (double)hat[i];
    rotate_slowly(b, a, O, I, PVT_SIDE_IN, true);
    if (w->format.rotation == 2) {
        for (int i = 0; i < N; i++) a[i % I * O + i / I] = b[i];
        rotate_slowly(b, a, I, O, PVT_SIDE_OUT, true);
        memcpy(a, b, N * sizeof *a);
        for (int i = 0; i < N; i++) b[i] = a[i % I * O + i / I];
    }
    for (int i = 0; i < N; i++) worst = fmax(worst, fabs((double)W[i] - b[i]));
    CHECK(worst < 5 * NEAR_ONE);
    CHECK_NEAR(norm(W, N) / norm(hat, N), 1, NEAR_ONE);
    CHECK(off_by(W, hat, N) > 0.1); /* there is a rotation */
    pvt_weight_embedding(rows, w, which, 3);
    for (int i = 0; i < 3; i++) CHECK(off_by(rows + i * I, W + which[i] * I, I) < 10 * NEAR_ONE);
    free(W), free(hat), free(rows), free(a), free(b);
}

static void check_products(const pvt_weight *w, int64_t n)
{
    pvt_real *W = noises(N, 0), *x = noises(n * I, 100), *dy = noises(n * O, 200), *y = noises(n * O, 300), *want = copy_of(y, n * O);
    pvt_real *dx = noises(n * I, 400), *dx_want = copy_of(dx, n * I), *dW = noises(N, 500), *dW_want = copy_of(dW, N);
    pvt_real *x_was = copy_of(x, n * I), *dy_was = copy_of(dy, n * O);
    pvt_weight_dequantize(w, W);
    for (int64_t r = 0; r < n; r++)
        for (int o = 0; o < O; o++) {
            double sum = (double)want[r * O + o];
            for (int i = 0; i < I; i++) sum += (double)x[r * I + i] * (double)W[o * I + i];
            want[r * O + o] = (pvt_real)sum;
        }
    pvt_weight_forward(y, x, w, n, true);
    CHECK(off_by(y, want, n * O) < NEAR_SUM);
    pvt_weight_forward(y, x, w, n, false); /* overwrites */
    for (int64_t i = 0; i < n * O; i++) want[i] -= bell(300 + (uint64_t)i);
    CHECK(off_by(y, want, n * O) < NEAR_SUM);
    pvt_linear_backward(w->ctx, dx_want, dW_want, NULL, dy, x, W, n, I, O);
    pvt_weight_backward(dx, dW, dy, x, w, n);
    CHECK(off_by(dx, dx_want, n * I) < NEAR_SUM && off_by(dW, dW_want, N) < NEAR_SUM);
    pvt_weight_backward(NULL, dW, dy, x, w, n), pvt_weight_backward(dx, NULL, dy, x, w, n);
    pvt_linear_backward(w->ctx, dx_want, dW_want, NULL, dy, x, W, n, I, O);
    CHECK(off_by(dx, dx_want, n * I) < NEAR_SUM && off_by(dW, dW_want, N) < NEAR_SUM);
    CHECK(same(x, x_was, n * I) && same(dy, dy_was, n * O));
    free(W), free(x), free(dy), free(y), free(want), free(dx), free(dx_want), free(dW), free(dW_want), free(x_was), free(dy_was);
}

/* Pieces as small as they may be: the bits of one piece. */
static void check_pieces(pvt_weight *w)
{
    pvt_real *x = noises(N_ROWS * I, 100), *dy = noises(N_ROWS * O, 200), *y[2], *dx[2];
    int64_t bytes = w->ctx->rotated_bytes;
    for (int k = 0; k < 2; k++) {
        y[k] = noises(N_ROWS * O, 300), dx[k] = noises(N_ROWS * I, 400);
        w->ctx->rotated_bytes = k ? 32 * (I + (w->format.rotation == 2 ? O : 0)) * (int64_t)sizeof(pvt_real) : bytes;
        CHECK(pvti_rotated_pieces(w->ctx, N_ROWS, I + (w->format.rotation == 2 ? O : 0)) == (k ? 4 : 1));
        pvt_weight_forward(y[k], x, w, N_ROWS, true);
        pvt_weight_backward(dx[k], NULL, dy, x, w, N_ROWS);
    }
    w->ctx->rotated_bytes = bytes;
    CHECK(same(y[0], y[1], N_ROWS * O) && same(dx[0], dx[1], N_ROWS * I));
    for (int64_t n = 32; n < 400; n++) { /* pieces cover all rows and have 16 at least */
        int64_t pieces = pvti_ceil_div(n, 32), at = 0, rows;
        bool good = true;
        for (int64_t p = 0; p < pieces; p++) good = good && pvti_rotated_piece(n, pieces, p, &rows) == at && rows >= 16 && rows <= 32, at += rows;
        CHECK(good && at == n);
    }
    free(x), free(dy), free(y[0]), free(y[1]), free(dx[0]), free(dx[1]);
}

/* q, k and v: x is rotated once, and each product has the bits that it has alone. */
static void check_shared(pvt_ctx *ctx, const char *const names[3])
{
    static const int64_t counts[] = {1, 5, 20};
    pvt_weight w[3];
    for (int i = 0; i < 3; i++) fit(ctx, names[i], &w[i]);
    for (int t = 0; t < 6; t++) {
        int64_t n = counts[t / 2];
        bool accumulate = t % 2;
        pvt_real *x = noises(n * I, 1), *y[3], *alone = noises(n * O, 0);
        for (int i = 0; i < 3; i++) y[i] = noises(n * O, 50);
        pvti_weights_forward(y, x, w, 3, n, accumulate);
        for (int i = 0; i < 3; i++) {
            for (int64_t k = 0; k < n * O; k++) alone[k] = bell(50 + (uint64_t)k);
            pvt_weight_forward(alone, x, &w[i], n, accumulate);
            CHECK(same(alone, y[i], n * O));
            free(y[i]);
        }
        free(x), free(alone);
    }
    for (int i = 0; i < 3; i++) pvt_weight_free(&w[i]);
}

static void check_views(pvt_weight *w)
{
    pvt_real *x = noises(20 * I, 1), *y = noises(20 * O, 2), *part = noises(20 * 32, 3);
    pvt_weight view;
    pvt_weight_forward(y, x, w, 20, false);
    CHECK_OK(w->ctx, pvt_weight_rows(w, 0, O, &view)); /* all rows: as a tied head is */
    pvt_weight_free(&view);
    if (w->format.rotation == 2) {
        CHECK(pvt_weight_rows(w, 32, 32, &view) == PVT_ERR_UNSUPPORTED && !view.kind);
        CHECK(strstr(pvt_ctx_error(w->ctx), "had2:") && strstr(pvt_ctx_error(w->ctx), "had:"));
    } else {
        CHECK_OK(w->ctx, pvt_weight_rows(w, 32, 32, &view));
        pvt_weight_forward(part, x, &view, 20, false);
        for (int r = 0; r < 20; r++) CHECK(off_by(part + r * 32, y + r * O + 32, 32) < NEAR_SUM);
        pvt_weight_free(&view);
    }
    free(x), free(y), free(part);
}

/* One token of a prepared weight: integers of 16 bits, see pvt_weight_prepare. */
static void check_prepared(pvt_weight *w)
{
    pvt_real *x = noises(I, 1), *y[2];
    for (int k = 0; k < 2; k++) {
        y[k] = noises(O, 2);
        pvt_weight_forward(y[k], x, w, 1, k);
        CHECK_OK(w->ctx, pvt_weight_prepare(w));
    }
    for (int i = 0; i < O; i++) y[1][i] -= bell(2 + (uint64_t)i);
    CHECK(off_by(y[1], y[0], O) < 2e-3);
    if (!DOUBLE) CHECK((w->prepared != NULL) == (w->format.kind == PVT_FORMAT_AQLM && w->format.out_group == 1));
    free(x), free(y[0]), free(y[1]);
}

static void check_weights(pvt_ctx *ctx)
{
    static const char *const shared[][3] = {{"had:aqlm:2x4g4", "had:aqlm:2x4g4", "had:aqlm:2x4g4"},
                                            {"had2:int:4g32", "had2:nf4", "had2:aqlm:2x3g4o2"},
                                            {"had:nf4", "nf4", "had2:nf4"}, {"nf4", "int:4g32", "int:2g16"}};
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    for (int i = 0; i < ALL; i++) {
        static const int64_t rows[] = {0, 1, 2, 15, 16, 40};
        pvt_weight w;
        fit(ctx, all[i], &w);
        check_dequantize(&w);
        for (int k = 0; k < (int)(sizeof rows / sizeof *rows); k++) check_products(&w, rows[k]);
        check_pieces(&w);
        check_views(&w);
        check_prepared(&w);
        CHECK(ctx->rotated && ctx->rotated_weights == 1);
        pvt_weight_free(&w);
        CHECK(!ctx->rotated && pvt_ctx_get_info(ctx).bytes_now == before);
    }
    for (int i = 0; i < (int)(sizeof shared / sizeof *shared); i++) check_shared(ctx, shared[i]);
    CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
}

/* ---- fits ---- */

/* ⟨(W−Ŵ)H, W−Ŵ⟩/⟨WH, W⟩ in the space in which the weight is meant. */
static double error_of(const pvt_weight *w, const pvt_real *W, const pvt_real *H)
{
    pvt_real *V = noises(N, 0);
    double off = 0, energy = 0;
    pvt_weight_dequantize(w, V);
    for (int r = 0; r < O; r++)
        for (int i = 0; i < I; i++)
            for (int j = H ? 0 : i; j < (H ? I : i + 1); j++) {
                double h = H ? (double)H[i * I + j] : 1;
                const pvt_real *x = W + r * I, *v = V + r * I;
                off += ((double)x[i] - (double)v[i]) * ((double)x[j] - (double)v[j]) * h;
                energy += (double)x[i] * (double)x[j] * h;
            }
    free(V);
    return off / energy;
}

static bool same_arrays(const pvt_weight *a, const pvt_weight *b)
{
    pvt_array x[PVT_MAX_ARRAYS], y[PVT_MAX_ARRAYS];
    int n = pvt_weight_arrays(a, x);
    bool equal = pvt_weight_arrays(b, y) == n;
    for (int i = 0; i < n && equal; i++)
        equal = x[i].bytes == y[i].bytes && memcmp(x[i].data, y[i].data, (size_t)x[i].bytes) == 0;
    return equal;
}

static void check_fits(pvt_ctx *ctx)
{
    pvt_real *W = noises(N, 1000), *turned = noises(N, 0), *X = noises(2 * I * I, 9000),
             *H = noises(I * I, 0);
    for (int i = 0; i < I; i++)
        for (int j = 0; j <= i; j++) {
            double sum = i == j ? 0.1 : 0;
            for (int k = 0; k < 2 * I; k++) sum += (double)X[k * I + i] * (double)X[k * I + j] / (2 * I);
            H[i * I + j] = H[j * I + i] = (pvt_real)(sum * (1 + i % 7) * (1 + j % 7));
        }
    pvt_real *was = copy_of(H, I * I);
    for (int i = 0; i < 2 * ALL; i++) {
        const pvt_real *metric = i % 2 ? H : NULL;
        pvt_fit_stats stats;
        pvt_weight w, plain;
        fit_to(ctx, all[i / 2], W, metric, &stats, &w);
        double error = error_of(&w, W, metric);
        CHECK(error > 0 && error < 0.8);
        CHECK_NEAR(stats.error, error, 1e-3 * error);
        if (metric) CHECK(same(was, H, I * I));
        if (!metric) { /* what a fit of the rotated matrix gives by itself */
            memcpy(turned, W, N * sizeof *W);
            pvti_rotate_weight(ctx, turned, turned, &w, false);
            fit_to(ctx, strchr(all[i / 2], ':') + 1, turned, NULL, NULL, &plain);
            CHECK(same_arrays(&w, &plain) && plain.format.rotation == 0);
            pvt_weight_free(&plain);
        }
        pvt_weight_free(&w);
    }
    free(W), free(turned), free(X), free(H), free(was);
}

/* Some inputs whose weights are large: without a rotation they widen the scale of all their neighbours. */
static void check_outliers(pvt_ctx *ctx)
{
    pvt_real *W = noises(N, 1000);
    double error[3];
    static const char *const formats[3] = {"int:2g64", "had:int:2g64", "had2:int:2g64"};
    for (int i = 0; i < N; i++)
        if (i % I % 31 == 0) W[i] *= 12;
    for (int k = 0; k < 3; k++) {
        pvt_fit_stats stats;
        pvt_weight w;
        fit_to(ctx, formats[k], W, NULL, &stats, &w);
        error[k] = stats.error;
        pvt_weight_free(&w);
    }
    CHECK(error[1] < 0.8 * error[0] && error[2] < 0.8 * error[0]);
    free(W);
}

static void check_refused(pvt_ctx *ctx)
{
    for (int i = 0; i < 3 * ALL; i++) {
        pvt_real *W = noises(N, 1000), *H = noises(I * I, 0);
        pvt_format f = parse(ctx, all[i / 3]);
        int64_t before = pvt_ctx_get_info(ctx).bytes_now;
        pvt_fit_desc d;
        pvt_weight w;
        memset(&d, 0, sizeof d);
        d.name = "some weight";
        for (int k = 0; k < I * I; k++) H[k] = k / I == k % I;
        if (i % 3 == 0) W[N - 1] = (pvt_real)NAN;
        if (i % 3 == 1) W[5] = (pvt_real)INFINITY;
        if (i % 3 == 2) H[3 * I + 3] = (pvt_real)NAN;
        CHECK(pvt_weight_fit(ctx, W, O, I, H, &f, &d, NULL, &w) == PVT_ERR_NUMERIC);
        CHECK(strstr(pvt_ctx_error(ctx), "some weight") && !w.kind && pvt_ctx_get_info(ctx).bytes_now == before);
        free(W), free(H);
    }
}

/* ---- P and V steps ---- */

#if DOUBLE
/* Σ G·W(values), which is linear in dW = G. */
static double loss(const pvt_weight *w, const pvt_real *G)
{
    static pvt_real W[N];
    double sum = 0;
    pvt_weight_dequantize(w, W);
    for (int i = 0; i < N; i++) sum += (double)G[i] * (double)W[i];
    return sum;
}

/* The gradients of all values, as pvt_weight_chain says and as a step of pv has them, against differences. */
static void check_chain(pvt_ctx *ctx, const char *format)
{
    pvt_real *G = noises(N, 5000), *dvalues[PVT_MAX_ARRAYS] = {NULL, NULL, NULL, NULL};
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_weight w, tuned;
    pvt_pv *pv;
    double worst = 0;
    int handle;
    fit(ctx, format, &w), fit(ctx, format, &tuned);
    int n = pvt_weight_arrays(&w, arrays);
    for (int a = 1; a < n; a++) dvalues[a] = (pvt_real *)calloc((size_t)pvti_array_count(&arrays[a]), sizeof(pvt_real));
    CHECK_OK(ctx, pvt_weight_chain(dvalues, &w, G));
    CHECK_OK(ctx, pvt_pv_create(ctx, NULL, &pv));
    CHECK_OK(ctx, pvt_pv_add_weight(pv, &tuned, "w", &handle));
    CHECK_OK(ctx, pvt_pv_begin(pv, 1));
    CHECK_OK(ctx, pvt_pv_apply(pv, handle, G));
    CHECK_OK(ctx, pvt_pv_end(pv, NULL));
    for (int a = 1; a < n; a++)
        for (int64_t k = 0; k < pvti_array_count(&arrays[a]); k += 1 + k % 3) {
            pvt_real *value = (pvt_real *)w.array[a] + k, kept = *value;
            double step = 1e-3 * (1 + fabs(kept)), up, down;
            *value = kept + step, up = loss(&w, G);
            *value = kept - step, down = loss(&w, G);
            *value = kept;
            worst = fmax(worst, fabs((up - down) / (2 * step) - dvalues[a][k]));
            worst = fmax(worst, fabs((up - down) / (2 * step) - pv->entries[handle].dvalues[a][k]));
        }
    if (!(worst < 1e-6)) printf("%s: off by %g\n", format, worst);
    CHECK(worst < 1e-6);
    pvt_pv_free(pv), pvt_weight_free(&w), pvt_weight_free(&tuned);
    for (int a = 1; a < n; a++) free(dvalues[a]);
    free(G);
}
#endif

/* φ = ½·‖W − T‖², whose gradient is W − T: each step takes it down, with codes that move. */
static void check_descent(pvt_ctx *ctx, const char *format, pvt_strategy strategy)
{
    pvt_real *W = noises(N, 0), *T = noises(N, 1000), *G = noises(N, 0);
    pvt_pv_desc d;
    pvt_pv_stats stats;
    pvt_weight w;
    pvt_pv *pv;
    double first = 0, last = 0;
    int64_t changed = 0;
    int handle;
    memset(&d, 0, sizeof d);
    d.strategy = strategy, d.values.lr = 2e-4, d.freeze_values = strategy != PVT_STRATEGY_CONTINUOUS;
    /* a step of 900/(900 + √v)·G: about G, to which W − G = T is the target, so that no V step leads up */
    d.codes.rule = PVT_OPTIMIZER_ADAM, d.codes.lr = 900, d.codes.eps = 900, d.codes.no_debias = true;
    for (int i = 0; i < N; i++) T[i] += (pvt_real)0.35 * bell(70000 + (uint64_t)i);
    fit(ctx, format, &w);
    CHECK_OK(ctx, pvt_pv_create(ctx, &d, &pv));
    CHECK_OK(ctx, pvt_pv_add_weight(pv, &w, "w", &handle));
    for (int step = 0; step < 5; step++) {
        pvt_weight_dequantize(&w, W);
        for (int i = 0; i < N; i++) G[i] = W[i] - T[i];
        CHECK(step == 0 || norm(G, N) <= last * (1 + 1e-6));
        last = norm(G, N);
        if (step == 0) first = last;
        CHECK_OK(ctx, pvt_pv_begin(pv, 1));
        CHECK_OK(ctx, pvt_pv_apply(pv, handle, G));
        CHECK_OK(ctx, pvt_pv_end(pv, &stats));
        CHECK_NEAR(norm(pv->turned, N) / last, 1, NEAR_ONE); /* as long in the rotated space */
        changed += stats.groups_changed;
    }
    if (!(last < first) || (changed > 0) != (strategy != PVT_STRATEGY_CONTINUOUS))
        printf("%s, %s: %g to %g, %d codes\n", format, pvt_strategy_name(strategy), first, last, (int)changed);
    CHECK(last < first && (changed > 0) == (strategy != PVT_STRATEGY_CONTINUOUS));
    G[7] = (pvt_real)NAN;
    CHECK_OK(ctx, pvt_pv_begin(pv, 1));
    CHECK(pvt_pv_apply(pv, handle, G) == PVT_ERR_NUMERIC);
    pvt_pv_free(pv), pvt_weight_free(&w);
    free(W), free(T), free(G);
}

/* The straight-through buffer starts in Ŵ, where its target is, not in W. */
static void check_buffer(pvt_ctx *ctx, const char *format)
{
    pvt_real *hat = noises(N, 0);
    pvt_weight w;
    pvt_pv *pv;
    int handle;
    fit(ctx, format, &w);
    w.kind->tile(&w, hat, I, 0, O, 0, I);
    CHECK_OK(ctx, pvt_pv_create(ctx, NULL, &pv));
    CHECK_OK(ctx, pvt_pv_add_weight(pv, &w, "w", &handle));
    CHECK(same(pv->entries[handle].buffer.w, hat, N));
    pvt_pv_free(pv), pvt_weight_free(&w);
    free(hat);
}

static void check_pv(pvt_ctx *ctx)
{
    for (int i = 0; i < ALL; i++) {
        check_buffer(ctx, all[i]);
#if DOUBLE
        check_chain(ctx, all[i]);
#endif
        check_descent(ctx, all[i], PVT_STRATEGY_LINEARIZED);
        check_descent(ctx, all[i], PVT_STRATEGY_SUBSPACE);
        check_descent(ctx, all[i], PVT_STRATEGY_CONTINUOUS);
    }
}

/* ---- the same bits ---- */

static uint64_t add(uint64_t hash, const void *data, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i++) hash = (hash ^ ((const uint8_t *)data)[i]) * 1099511628211u;
    return hash;
}

/* Everything that a rotation has a part in, on this context. */
static uint64_t all_bits(pvt_ctx *ctx)
{
    static const int64_t sizes[] = {1, 6, 24, 64, 576, 1536}, rows[] = {1, 7, 40};
    uint64_t hash = 14695981039346656037u;
    for (int i = 0; i < (int)(sizeof sizes / sizeof *sizes); i++)
        for (int inverse = 0; inverse < 2; inverse++) {
            int64_t n = 70, C = sizes[i];
            pvt_real *x = noises(n * C, 3);
            pvt_rotate(ctx, x, x, n, C, PVT_SIDE_IN, inverse != 0), pvt_rotate_columns(ctx, x, C, n, PVT_SIDE_OUT, inverse != 0);
            hash = add(hash, x, n * C * (int64_t)sizeof *x);
            free(x);
        }
    for (int i = 0; i < ALL; i++) {
        pvt_weight w;
        pvt_pv *pv;
        pvt_array arrays[PVT_MAX_ARRAYS];
        pvt_real *W = noises(N, 0), *G = noises(N, 4000);
        int handle;
        fit(ctx, all[i], &w);
        CHECK_OK(ctx, pvt_weight_prepare(&w));
        for (int k = 0; k < 3; k++) {
            pvt_real *x = noises(rows[k] * I, 1), *y = noises(rows[k] * O, 2), *dx = noises(rows[k] * I, 3);
            pvt_weight_forward(y, x, &w, rows[k], true), pvt_weight_backward(dx, W, y, x, &w, rows[k]);
            hash = add(hash, y, rows[k] * O * (int64_t)sizeof *y), hash = add(hash, dx, rows[k] * I * (int64_t)sizeof *dx);
            free(x), free(y), free(dx);
        }
        hash = add(hash, W, N * (int64_t)sizeof *W);
        CHECK_OK(ctx, pvt_pv_create(ctx, NULL, &pv));
        CHECK_OK(ctx, pvt_pv_add_weight(pv, &w, "w", &handle));
        CHECK_OK(ctx, pvt_pv_begin(pv, 1));
        CHECK_OK(ctx, pvt_pv_apply(pv, handle, G));
        pvt_weight_dequantize(&w, W);
        hash = add(hash, W, N * (int64_t)sizeof *W);
        for (int a = pvt_weight_arrays(&w, arrays) - 1; a >= 0; a--) hash = add(hash, arrays[a].data, arrays[a].bytes);
        pvt_pv_free(pv), pvt_weight_free(&w);
        free(W), free(G);
    }
    return hash;
}

static void check_bits(void)
{
    static const char *const sets[] = {"scalar", "native", "avx2", "avx512"};
    static const int threads[] = {1, 2, 5};
    uint64_t first = 0;
    for (int i = 0; i < 6; i++) {
        pvt_ctx_desc desc;
        pvt_ctx *ctx;
        memset(&desc, 0, sizeof desc);
        desc.n_threads = i < 4 ? threads[i % 3] : threads[i - 3], desc.isa = sets[i < 4 ? i : 3];
        CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
        uint64_t hash = all_bits(ctx);
        if (i == 0) first = hash;
        if (hash != first) printf("%s, %d threads\n", desc.isa, desc.n_threads);
        CHECK(hash == first);
        pvt_ctx_destroy(ctx);
    }
}

/* ---- memory ---- */

/* Each allocation fails once: everything says so, and nothing is left over. */
static void check_scarce_memory(void)
{
    pvt_real *W = noises(N, 1000), *H = noises(I * I, 0), *dvalues[PVT_MAX_ARRAYS];
    int64_t total = 1 << 20;
    test_budget budget = {-1, 0, true};
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    for (int k = 0; k < I * I; k++) H[k] = k / I == k % I;
    for (int k = 0; k < PVT_MAX_ARRAYS; k++) dvalues[k] = noises(N, 0);
    memset(&desc, 0, sizeof desc);
    desc.allocator.alloc = test_budget_alloc, desc.allocator.free = test_budget_free, desc.allocator.user = &budget;
    desc.n_threads = 1;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    for (int64_t at = 0; at < total; at++) {
        pvt_format f = parse(ctx, "had2:int:4g32");
        pvt_weight w;
        pvt_pv *pv = NULL;
        budget.left = at;
        pvt_result result = pvt_weight_fit(ctx, W, O, I, H, &f, NULL, NULL, &w);
        if (result == PVT_OK) result = pvt_weight_chain(dvalues, &w, W);
        if (result == PVT_OK) result = pvt_pv_create(ctx, NULL, &pv);
        if (result == PVT_OK) result = pvt_pv_add_weight(pv, &w, "w", NULL);
        if (budget.left >= 0) total = at; /* none failed */
        CHECK(result == (total == at ? PVT_OK : PVT_ERR_MEMORY));
        budget.left = -1;
        pvt_pv_free(pv), pvt_weight_free(&w);
        CHECK(pvt_ctx_get_info(ctx).bytes_now == before && !ctx->rotated && ctx->rotated_weights == 0);
    }
    CHECK(total > 20);
    pvt_ctx_destroy(ctx);
    for (int k = 0; k < PVT_MAX_ARRAYS; k++) free(dvalues[k]);
    free(W), free(H);
}

/* ---- files and models ---- */

static const char *path_of(const char *name)
{
    static char path[400];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void check_files(pvt_ctx *ctx)
{
    for (int i = 0; i < ALL; i++) {
        pvt_weight w, back;
        pvt_named_weight named = {"w", &w}, read = {"w", &back};
        pvt_real *W = noises(N, 0);
        pvt_tensors *file;
        fit(ctx, all[i], &w);
        CHECK_OK(ctx, pvt_weights_save(path_of("w.safetensors"), &named, 1, true));
        CHECK_OK(ctx, pvt_weights_load(ctx, path_of("w.safetensors"), &read, 1));
        CHECK(same_arrays(&w, &back) && memcmp(&w.format, &back.format, sizeof w.format) == 0);
        CHECK_OK(ctx, pvt_tensors_open(ctx, path_of("w.safetensors"), &file));
        pvt_array whole = pvt_tensors_get(file, pvt_tensors_find(file, "w.dequantized"));
        pvt_weight_dequantize(&w, W);
        CHECK(whole.bytes == N * 4);
        for (int k = 0; k < N && whole.bytes == N * 4; k += 7) {
            float x;
            memcpy(&x, (const char *)whole.data + 4 * k, 4);
            CHECK_NEAR(x, W[k], 1e-5);
        }
        pvt_tensors_close(file);
        pvt_weight_free(&w), pvt_weight_free(&back);
        free(W);
    }
}

/* An embedding whose rows are sums over many is refused; one with rotated inputs is looked up. */
static void check_embedding(pvt_ctx *ctx)
{
    enum { CTX = 16, VOCAB = 96 };
    for (int k = 0; k < 4; k++) {
        int32_t ids[8 * CTX];
        pvt_model_config c;
        pvt_quantize_desc q;
        pvt_corpus corpus;
        pvt_model *model;
        memset(&c, 0, sizeof c), memset(&q, 0, sizeof q);
        c.layers = 1, c.dim = 64, c.heads = 2, c.kv_heads = 1, c.ff = 64, c.vocab = VOCAB, c.ctx = CTX, c.tied = k % 2;
        for (int i = 0; i < 8 * CTX; i++) ids[i] = (i * i + 3 * i) % VOCAB;
        CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, 8 * CTX, &corpus));
        CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
        q.samples = 2, q.embedding = k % 2 == 0, q.head = k % 2, q.format = parse(ctx, k < 2 ? "had2:int:4g32" : "had:int:4g32");
        pvt_result result = pvt_quantize(model, &corpus, &q);
        CHECK(result == (k < 2 ? PVT_ERR_UNSUPPORTED : PVT_OK));
        if (k < 2) CHECK(strstr(pvt_ctx_error(ctx), "had2:") && strstr(pvt_ctx_error(ctx), "embedding"));
        pvt_model_free(model), pvt_corpus_free(&corpus);
    }
}

/* A head in eight bits is made of W, not of what stands in the arrays. */
static void check_head(pvt_ctx *ctx)
{
    enum { CTX = 16, VOCAB = 96 };
    for (int k = 0; k < 2 && !DOUBLE; k++) {
        pvt_format f = parse(ctx, k ? "had2:int:8g64" : "had:int:8g64");
        pvt_model_config c;
        pvt_model *model;
        pvt_real *W = noises(VOCAB * 64, 0), *V = noises(VOCAB * 64, 0);
        memset(&c, 0, sizeof c);
        c.layers = 1, c.dim = 64, c.heads = 2, c.kv_heads = 1, c.ff = 64, c.vocab = VOCAB, c.ctx = CTX;
        CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
        pvt_weight *head = &model->head;
        pvt_weight dense = *head;
        CHECK_OK(ctx, pvt_weight_fit(ctx, (const pvt_real *)dense.array[0], VOCAB, 64, NULL, &f, NULL, NULL, head));
        pvt_weight_free(&dense);
        pvt_weight_dequantize(head, W);
        CHECK_OK(ctx, pvt_model_prepare(model, true));
        pvt_weight_dequantize(head, V);
        CHECK(head->dtype == PVT_Q8_0 && off_by(V, W, VOCAB * 64) < 0.03);
        pvt_model_free(model);
        free(W), free(V);
    }
}

int main(void)
{
    pvt_ctx *ctx;
    pvt_ctx_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 2;
    if (!test_scratch(dir, sizeof dir) || pvt_ctx_create(&desc, &ctx) != PVT_OK) return 1;
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    check_transforms(ctx);
    check_texts(ctx);
    check_weights(ctx);
    check_fits(ctx);
    check_outliers(ctx);
    check_refused(ctx);
    check_pv(ctx);
    check_scarce_memory();
    check_files(ctx);
    check_embedding(ctx);
    check_head(ctx);
    check_bits();
    CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
    pvt_ctx_destroy(ctx);
    test_remove(dir);
    return test_end();
}
