/*  Grids of vectors: higgs, e8p, iq2_xxs, iq2_xs and iq2_s. The grids against published figures and against integration; the search for points
    against all points; the V step, rectangles, arrays, chain and fit against what their documentation says. */
#define _POSIX_C_SOURCE 200809L /* mkdtemp */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

#define SCALAR_GOLDEN "../shared/golden/scalar/"

enum { O = 5, I = 1280, N = O * I }; /* two scales in a row for higgs, the second of 256 inputs */

static const char *const all[] = {"higgs:p1n4", "higgs:p1n300", "higgs:p2n9", "higgs:p4n16", "e8p", "iq2_xxs", "iq2_xs", "iq2_s"};
enum { ALL = sizeof all / sizeof *all };

static double normal(uint64_t stream, uint64_t i)
{
    return pvti_normal_quantile(pvti_random_unit(11, PVTI_RANDOM_USER, stream, i) * (1 - 1e-9) + 5e-10);
}

/* Rows of different sizes, with zeros and an outlier. */
static void make_matrix(pvt_real *W)
{
    for (int i = 0; i < N; i++) W[i] = (pvt_real)(normal(0, (uint64_t)i) * (1 + i / I));
    for (int i = 0; i < 64; i++) W[I + i] = 0;
    W[4 * I + 70] = 40;
}

static pvt_real *make_H(int64_t n)
{
    pvt_real *H = (pvt_real *)calloc((size_t)(n * n), sizeof *H);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) { /* inputs of a chain, of which some are larger: 0.9^|i−j|·s_i·s_j */
            double size = (1 + 3 * (i % 7 == 2)) * (1 + 3 * (double)(j % 7 == 2));
            H[i * n + j] = (pvt_real)(pvti_pow(0.9, fabs((double)(i - j))) * size);
        }
    return H;
}

static pvt_format parse(pvt_ctx *ctx, const char *text)
{
    pvt_format f;
    CHECK_OK(ctx, pvt_format_parse(ctx, text, &f));
    return f;
}

static void fit(pvt_ctx *ctx, const char *format, const pvt_real *H, pvt_fit_stats *stats, pvt_weight *out)
{
    static pvt_real W[N];
    pvt_format f = parse(ctx, format);
    make_matrix(W);
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, O, I, H, &f, NULL, stats, out));
}

#if PVTI_REAL_IS_DOUBLE
/* ---- in double: the chain rule against differences ---- */

static double loss(const pvt_weight *w, const pvt_real *R)
{
    static pvt_real W[N];
    double sum = 0;
    pvt_weight_dequantize(w, W);
    for (int i = 0; i < N; i++) sum += R[i] * W[i];
    return sum;
}

static void check_chain(pvt_ctx *ctx, const char *format)
{
    static pvt_real R[N];
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_real dscales[O * 5], *dvalues[PVT_MAX_ARRAYS] = {NULL, dscales, NULL, NULL};
    pvt_weight w;
    double worst = 0;
    fit(ctx, format, NULL, NULL, &w);
    pvt_weight_arrays(&w, arrays);
    for (int i = 0; i < N; i++) R[i] = normal(5, (uint64_t)i);
    for (int i = 0; i < O * 5; i++) dscales[i] = 100; /* it adds */
    CHECK_OK(ctx, pvt_weight_chain(dvalues, &w, R));
    for (int64_t k = 0; k < pvti_array_count(&arrays[1]); k++) {
        pvt_real *value = (pvt_real *)w.array[1] + k, kept = *value;
        double up, down;
        *value = kept + 1e-3, up = loss(&w, R);
        *value = kept - 1e-3, down = loss(&w, R);
        *value = kept;
        worst = PVTI_MAX(worst, fabs((up - down) / 2e-3 - (dscales[k] - 100)));
    }
    CHECK(worst < 1e-7); /* W is linear in each scale: what is left is rounding */
    pvt_weight_free(&w);
}

static void check(pvt_ctx *ctx)
{
    for (int i = 0; i < ALL; i++) check_chain(ctx, all[i]);
}
#else

/* ---- the normal distribution and the grids ---- */

static void check_normal(void)
{
    static const double known[][2] = {{0.5, 0}, {0.975, 1.9599639845400542}, {0.999, 3.0902323061678135},
                                      {0.02, -2.0537489106318225}, {1e-7, -5.1993375821928165}};
    for (int i = 0; i < 5; i++) CHECK_NEAR(pvti_normal_quantile(known[i][0]), known[i][1], 2e-8);
    for (int i = -40; i < 40; i++) { /* quantile and mass undo each other */
        double x = i * 0.11, u = pvti_normal_mass(-12, x);
        CHECK_NEAR(pvti_normal_quantile(u), x, 1e-8 * (1 + fabs(x)));
    }
    CHECK_NEAR(pvti_normal_mass(-1, 1), 0.68268949213708590, 1e-15);
    CHECK_NEAR(pvti_normal_mass(6, 7) / 9.85307832493812e-10, 1, 1e-9);
}

/* Levels to 1e-7 of the published, and the error that they leave by integration. */
static void check_lloyd_max(pvt_ctx *ctx)
{
    static const struct { int n; double mse, positive[4]; } known[] = {
        {2, .3633802276, {.7978845608}}, {4, .1174818478, {.4527800346, 1.5104176085}},
        {8, .0345477608, {.2450941789, .7560052812, 1.3439092785, 2.1519457045}}, {16, .0095010080, {.1283950299, .3880482995}},
        {32, .0025047, {0}}, {64, 6.4424e-4, {0}}, {256, 4.1185e-5, {0}}};
    for (int i = 0; i < (int)(sizeof known / sizeof *known); i++) {
        pvt_real c[256];
        double error = 1; /* of a grid of centroids: 1 − Σ mass·c² */
        int n = known[i].n;
        CHECK_OK(ctx, pvti_lloyd_max(ctx, n, c));
        for (int k = 0; k < n; k++) {
            double low = k ? ((double)c[k - 1] + (double)c[k]) / 2 : -14, high = k + 1 < n ? ((double)c[k] + (double)c[k + 1]) / 2 : 14;
            error -= pvti_normal_mass(low, high) * (double)c[k] * (double)c[k];
            CHECK(c[k] == -c[n - 1 - k] && (k == 0 || c[k] > c[k - 1]));
        }
        CHECK_NEAR(error, known[i].mse, known[i].mse * 1e-4 + 1e-7);
        for (int k = 0; k < 4 && known[i].positive[k] > 0; k++) CHECK_NEAR(c[n / 2 + k], known[i].positive[k], 2e-7);
    }
    for (int n = 3; n <= 4096; n = n * 3 + 1) { /* any number: each level is the mean of its cell */
        pvt_real *c = (pvt_real *)malloc((size_t)n * sizeof *c);
        double worst = 0;
        CHECK_OK(ctx, pvti_lloyd_max(ctx, n, c));
        for (int k = 1; k + 1 < n; k++) {
            double low = ((double)c[k - 1] + (double)c[k]) / 2, high = ((double)c[k] + (double)c[k + 1]) / 2;
            double mean = (pvti_normal_density(low) - pvti_normal_density(high)) / pvti_normal_mass(low, high);
            worst = fmax(worst, fabs(mean - (double)c[k]) / (high - low));
        }
        CHECK(worst < 1e-3); /* of levels in float, whose cells are down to 0.0013 wide */
        free(c);
    }
}

/* The error per dimension, of 2,000,000 normal vectors or, in the plane, by the trapezoid rule, which is exact here. */
static double error_of_grid(const pvt_real *grid, int n, int p)
{
    double sum = 0, weights = 0;
    int count = p == 2 ? 501 * 501 : 400000;
    for (int i = 0; i < count; i++) {
        double x[4], weight = 1, best = INFINITY;
        for (int d = 0; d < p; d++) x[d] = p == 2 ? ((d ? i / 501 : i % 501) - 250) * 0.022 : normal((uint64_t)(20 + d), (uint64_t)i);
        if (p == 2) weight = pvti_normal_density(x[0]) * pvti_normal_density(x[1]);
        if (weight < 1e-9) continue;
        for (int k = 0; k < n; k++) {
            double rest = 0;
            for (int d = 0; d < p; d++) rest += (x[d] - (double)grid[k * p + d]) * (x[d] - (double)grid[k * p + d]);
            best = fmin(best, rest);
        }
        sum += weight * best, weights += weight;
    }
    return sum / weights / p;
}

static void check_grids(pvt_ctx *ctx)
{
    static const struct { int n, p; double most, least; } bars[] = {
        {16, 2, .1077, .1075}, {64, 2, .0298, .0296}, {88, 2, .0221, .0218}, {256, 2, .0078, .0077}, {256, 4, .0972, .0960}};
    for (int i = 0; i < (int)(sizeof bars / sizeof *bars); i++) {
        static pvt_real grid[256 * 4];
        int n = bars[i].n, p = bars[i].p, sorted = 1;
        CHECK_OK(ctx, pvti_higgs_grid(ctx, n, p, grid));
        double error = error_of_grid(grid, n, p);
        printf("    grid of %d points in %d dimensions: %.5f per dimension\n", n, p, error);
        CHECK(error <= bars[i].most && error >= bars[i].least);
        for (int k = 0; k < n * p; k++) CHECK(grid[k] == (pvt_real)pvti_f16_to_f32(pvti_f32_to_f16((float)grid[k])));
        for (int k = 1; k < n; k++) sorted &= grid[k * p] >= grid[(k - 1) * p];
        CHECK(sorted);
    }
}

/* The paper's codes for a rotated matrix and a grid made elsewhere. */
static void check_golden_higgs(pvt_ctx *ctx, int n)
{
    static pvt_real V[3 * 2048], scales[6];
    static uint8_t none[3 * 1024];
    static uint16_t codes[3 * 1024];
    static pvt_real room[3 * 256];
    pvt_tensors *file;
    pvt_array want, grid, arrays[PVT_MAX_ARRAYS];
    pvt_format f;
    pvt_weight w;
    pvt_assign a;
    char name[40];
    int wrong = 0;
    if (pvt_tensors_open(ctx, SCALAR_GOLDEN "higgs.safetensors", &file) != PVT_OK) {
        SKIP(SCALAR_GOLDEN "higgs.safetensors is not there");
        return;
    }
    pvt_array weight = pvt_tensors_get(file, pvt_tensors_find(file, "weight")),
                       norms = pvt_tensors_get(file, pvt_tensors_find(file, "plain.norms"));
    snprintf(name, sizeof name, "plain.n%d.codes", n), want = pvt_tensors_get(file, pvt_tensors_find(file, name));
    snprintf(name, sizeof name, "grid_n%d", n), grid = pvt_tensors_get(file, pvt_tensors_find(file, name));
    for (int block = 0; block < 6; block++) {
        static double x[1024];
        int row = block / 2, at = block % 2 * 1024;
        for (int i = 0; i < 1024; i++) x[i] = at + i < 1500 ? (double)((const float *)weight.data)[row * 1500 + at + i] : 0;
        for (int half = 1; half < 1024; half *= 2)
            for (int i = 0; i < 1024; i++)
                if (!(i & half)) {
                    double up = x[i], down = x[i + half];
                    x[i] = up + down, x[i + half] = up - down;
                }
        for (int i = 0; i < 1024; i++) V[row * 2048 + at + i] = (pvt_real)(x[i] / 32);
        scales[block] = ((const float *)norms.data)[block] / 32; /* the root mean square, too, of the rotated block */
    }
    snprintf(name, sizeof name, "higgs:p2n%d", n), f = parse(ctx, name);
    CHECK_OK(ctx, pvt_weight_fit(ctx, V, 3, 2048, NULL, &f, NULL, NULL, &w));
    for (int i = 0; i < 6; i++) CHECK_NEAR(((pvt_real *)w.array[1])[i], scales[i], 1e-6 * (double)scales[i]);
    pvt_weight_arrays(&w, arrays);
    arrays[0].data = none, arrays[1].data = scales, arrays[2].data = grid.data;
    pvt_weight_free(&w);
    CHECK_OK(ctx, pvt_weight_from_arrays(ctx, &f, 3, 2048, arrays, 3, "golden", &w));
    memset(&a, 0, sizeof a);
    a.target = V, a.n = 3 * 1024, a.beam = 1, a.codes = codes;
    w.kind->assign(ctx, &w, &a, room);
    for (int i = 0; i < 3 * 1024; i++) wrong += codes[i] != ((const uint8_t *)want.data)[i];
    CHECK(wrong == 0);
    pvt_weight_free(&w);
    pvt_tensors_close(file);
}

/* ---- e8p: the points ---- */

static float points[65536][8];

static int by_point(const void *a, const void *b) { return memcmp(a, b, sizeof points[0]); }

static void check_e8p_points(void)
{
    static float sorted[65536][8];
    double norms = 0, sums[8] = {0, 0, 0, 0, 0, 0, 0, 0}, most = 0;
    int same = 0, outside = 0, histogram[17] = {0};
    static const int known[17] = {2, 56, 252, 688, 1514, 2664, 4396, 7056, 9330, 9980, 11062, 7860, 5892, 3252, 1010, 348, 174};
    for (int code = 0; code < 65536; code++) {
        pvt_real point[8];
        double norm = 0, shift = code & 1 ? 0.25 : -0.25, sum = 0;
        pvti_e8p_point(NULL, point, code);
        for (int d = 0; d < 8; d++) {
            double half = (double)point[d] - shift - 0.5;
            outside += half != floor(half), sum += half + 0.5;
            norm += (double)point[d] * (double)point[d], sums[d] += (double)point[d];
            points[code][d] = (float)point[d];
        }
        outside += fmod(sum, 2) != 0;
        norms += norm, most = fmax(most, norm), histogram[(int)norm]++;
    }
    CHECK(outside == 0 && norms == 627200 && most == 16.5);
    for (int d = 0; d < 8; d++) CHECK(sums[d] == 0);
    for (int k = 0; k < 17; k++) CHECK(histogram[k] == known[k]);
    memcpy(sorted, points, sizeof sorted);
    qsort(sorted, 65536, sizeof *sorted, by_point);
    for (int i = 1; i < 65536; i++) same += memcmp(sorted[i - 1], sorted[i], sizeof *sorted) == 0;
    CHECK(same == 0);
}

static double e8p_distance(const pvt_real *x, int code)
{
    double sum = 0;
    for (int d = 0; d < 8; d++) sum += ((double)x[d] - (double)points[code][d]) * ((double)x[d] - (double)points[code][d]);
    return sum;
}

static int e8p_brute(const pvt_real *x, int not_this)
{
    int best = not_this == 0;
    double least = e8p_distance(x, best);
    for (int code = best + 1; code < 65536; code++) {
        double distance = code != not_this ? e8p_distance(x, code) : INFINITY;
        if (distance < least) least = distance, best = code;
    }
    return best;
}

/* Vectors of all sizes, those near the boundary of the ball above all, with large and equal coordinates among them. */
static void check_e8p_nearest(void)
{
    static const double sizes[] = {0.1, 0.7, 1, 1.03, 1.2, 1.4, 2, 5, 40, 1e4};
    int wrong = 0, outer = 0, count = getenv("PVTUNE_QUICK") ? 300 : 1500;
    for (int i = 0; i < count; i++) {
        pvt_real x[8];
        for (int d = 0; d < 8; d++) {
            x[d] = (pvt_real)(normal(40, (uint64_t)(8 * i + d)) * sizes[i % 10]);
            if (i % 11 == 5) x[d] = (pvt_real)((int)(4 * x[d])) / 4 + (pvt_real)0.05 * (pvt_real)(d + 1) * (pvt_real)0.01;
            if (i % 13 == 7 && d == 3) x[d] *= 10;
        }
        int best = pvti_e8p_nearest_one(x), brute = e8p_brute(x, -1);
        outer += brute >> 8 >= PVTI_E8P_BALL;
        wrong += best != brute && e8p_distance(x, best) > e8p_distance(x, brute) + 1e-12 * (1 + e8p_distance(x, brute));
        if (i % 8) continue;
        best = pvti_e8p_other(NULL, x, brute), brute = e8p_brute(x, brute);
        wrong += best != brute && e8p_distance(x, best) > e8p_distance(x, brute) + 1e-12 * (1 + e8p_distance(x, brute));
    }
    CHECK(wrong == 0 && outer > count / 20); /* the points outside the ball were asked for, too */
    for (int code = 0; code < 65536; code += 97) { /* a point is nearest to itself */
        pvt_real x[8];
        pvti_e8p_point(NULL, x, code);
        CHECK(pvti_e8p_nearest_one(x) == code && pvti_e8p_other(NULL, x, code) != code);
    }
}

/* QuIP#'s figure for normal numbers, and that it is the scale's minimum. */
static void check_e8p_error(void)
{
    double errors[3] = {0, 0, 0};
    int count = 100000;
    for (int k = 0; k < 3; k++) {
        double scale = (k == 0 ? 1 : k == 1 ? 0.93 : 1.07) / 1.03;
        for (int i = 0; i < count; i++) {
            pvt_real x[8];
            for (int d = 0; d < 8; d++) x[d] = (pvt_real)(normal(50, (uint64_t)(8 * i + d)) / scale);
            errors[k] += scale * scale * e8p_distance(x, pvti_e8p_nearest_one(x)) / (8.0 * count);
        }
    }
    printf("    e8p at 1/1.03: %.5f per dimension\n", errors[0]);
    CHECK_NEAR(errors[0], .0915, .0005);
    CHECK(errors[1] > errors[0] && errors[2] > errors[0]);
}

static void check_golden_e8p(pvt_ctx *ctx)
{
    static const struct { const char *name; double scale; } cases[] = {
        {"nearest_0.970874", 0.970873786407767}, {"nearest_1.000000", 1}, {"nearest_1.030000", 1.03}};
    pvt_tensors *file;
    pvt_array codes;
    int wrong = 0;
    if (pvt_tensors_open(ctx, SCALAR_GOLDEN "e8p.safetensors", &file) != PVT_OK) {
        SKIP(SCALAR_GOLDEN "e8p.safetensors is not there");
        return;
    }
    pvt_array samples = pvt_tensors_get(file, pvt_tensors_find(file, "samples"));
    pvt_array patterns = pvt_tensors_get(file, pvt_tensors_find(file, "abs_patterns_times_2"));
    for (int i = 0; i < 256 * 8; i++)
        wrong += ((const int8_t *)patterns.data)[i] != 2 * (int)(pvti_e8p_pattern(i / 8) >> (14 - 2 * (i % 8)) & 3) + 1;
    for (int c = 0; c < 3; c++) {
        codes = pvt_tensors_get(file, pvt_tensors_find(file, cases[c].name));
        for (int i = 0; i < 1024; i++) {
            pvt_real x[8];
            for (int d = 0; d < 8; d++) x[d] = (pvt_real)((double)((const float *)samples.data)[8 * i + d] / cases[c].scale);
            wrong += pvti_e8p_nearest_one(x) != ((const int32_t *)codes.data)[i];
        }
    }
    CHECK(wrong == 0);
    pvt_tensors_close(file);
}

/* ---- texts and sizes ---- */

static void check_texts(pvt_ctx *ctx)
{
    static const char *const hostile[] = {"higgs", "higgs:", "higgs:p2", "higgs:p2n", "higgs:p3n16", "higgs:p0n16", "higgs:p8n16", "higgs:p2n1",
        "higgs:p2n0", "higgs:p2n4097", "higgs:p2n-16", "higgs:p2n16 ", "higgs:p2n16g2", "higgs:p02n", "higgs:p22n16", "higgs:p2n99999999999999999999",
        "iq2", "iq2_x", "iq2_xs ", "iq2_ss", "iq2_s ", "iq2_xxs ", "e8p ", "e8p:", "E8P", "e8", "vq:", "vq:8", "vq:8g", "vq:2x8g8", "vq:17g8", "vq:0g8", "vq:8g8x"};
    pvt_format f, g;
    char text[48];
    for (int i = 0; i < ALL; i++) {
        f = parse(ctx, all[i]);
        pvt_format_text(&f, text);
        CHECK(strcmp(text, all[i]) == 0);
    }
    for (int i = 0; i < (int)(sizeof hostile / sizeof *hostile); i++) {
        if (pvt_format_parse(ctx, hostile[i], &f) == PVT_OK) printf("\"%s\" is taken\n", hostile[i]);
        CHECK(pvt_format_parse(ctx, hostile[i], &f) == PVT_ERR_ARGUMENT);
    }
    CHECK(pvt_format_parse(ctx, "grid", &f) == PVT_ERR_ARGUMENT);
    CHECK(strstr(pvt_ctx_error(ctx), "higgs:pPnN") && strstr(pvt_ctx_error(ctx), "e8p") && strstr(pvt_ctx_error(ctx), "vq:BgG"));
    f = parse(ctx, "vq:8g4"), g = parse(ctx, "aqlm:1x8g4"); /* one codebook by its other name */
    CHECK(memcmp(&f, &g, sizeof f) == 0);
    f = parse(ctx, "vq:8g4o2"), g = parse(ctx, "aqlm:1x8g4o2");
    CHECK(memcmp(&f, &g, sizeof f) == 0);
}

static void check_sizes(pvt_ctx *ctx)
{
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_format f = parse(ctx, "higgs:p4n16");
    int n;
    CHECK(pvt_format_arrays(ctx, &f, 4, 1022, arrays, &n) == PVT_ERR_ARGUMENT && strstr(pvt_ctx_error(ctx), "; higgs:p2n16 would fit"));
    CHECK(pvt_format_arrays(ctx, &f, 4, 1021, arrays, &n) == PVT_ERR_ARGUMENT && strstr(pvt_ctx_error(ctx), "; higgs:p1n16 would fit"));
    CHECK_NEAR(pvt_format_bits(&f, 4096, 4096), 1 + 16.0 / 1024 + 16.0 * 16 * 4 / 4096 / 4096, 1e-12);
    f = parse(ctx, "higgs:p2n88"); /* 7 bits; scales for 1024 and for the 256 left */
    CHECK_NEAR(pvt_format_bits(&f, O, I), 3.5 + 16.0 * 2 / I + 16.0 * 88 * 2 / N, 1e-12);
    f.bits = 8;
    CHECK(pvt_format_arrays(ctx, &f, O, I, arrays, &n) == PVT_ERR_ARGUMENT);
    f = parse(ctx, "e8p");
    CHECK_NEAR(pvt_format_bits(&f, 7, 576), 2 + 16.0 / 576, 1e-12);
    CHECK(pvt_format_arrays(ctx, &f, 4, 1022, arrays, &n) == PVT_ERR_ARGUMENT && !strstr(pvt_ctx_error(ctx), "fit"));
    f = parse(ctx, "iq2_xxs");
    CHECK(pvt_format_arrays(ctx, &f, 4, 640, arrays, &n) == PVT_ERR_ARGUMENT && strstr(pvt_ctx_error(ctx), "groups of 1 x 256 do not divide"));
    f.entries = 4;
    CHECK(pvt_format_arrays(ctx, &f, 4, 1024, arrays, &n) == PVT_ERR_ARGUMENT);
    f = parse(ctx, "iq2_xs");
    CHECK_NEAR(pvt_format_bits(&f, O, I), 2 + 16.0 / 256 + 16.0 / 32, 1e-12);
    CHECK(pvt_format_arrays(ctx, &f, 4, 640, arrays, &n) == PVT_ERR_ARGUMENT && strstr(pvt_ctx_error(ctx), "groups of 1 x 256 do not divide"));
    f = parse(ctx, "iq2_s");
    CHECK_NEAR(pvt_format_bits(&f, O, I), 2.5 + 16.0 / 256, 1e-12);
    CHECK_OK(ctx, pvt_format_arrays(ctx, &f, O, I, arrays, &n));
    CHECK(n == 2 && arrays[0].bits == 10 && arrays[0].shape[1] == I / 4 && arrays[0].dtype == PVT_U16);
    f.bits = 16;
    CHECK(pvt_format_arrays(ctx, &f, O, I, arrays, &n) == PVT_ERR_ARGUMENT);
}

/* ---- iq2_xxs, iq2_xs, iq2_s ---- */

/* What the three differ in, from their descriptions. */
static const struct { const char *name; pvt_format_kind kind; const uint64_t *points; int bits, signs; } iq2[3] = {
    {"iq2_xxs", PVT_FORMAT_IQ2_XXS, pvti_iq2_xxs_points, 8, 7},
    {"iq2_xs", PVT_FORMAT_IQ2_XS, pvti_iq2_xs_points, 9, 7},
    {"iq2_s", PVT_FORMAT_IQ2_S, pvti_iq2_s_points, 10, 8}};
static int iq2_of(const pvt_weight *w) { return w->format.kind == PVT_FORMAT_IQ2_XXS ? 0 : w->format.kind == PVT_FORMAT_IQ2_XS ? 1 : 2; }

/* A code's point, from the table and the rule for signs. */
static double iq2_weight(int which, int64_t code, int k)
{
    static const int magnitudes[3] = {8, 25, 43};
    int bits = iq2[which].bits, number = (int)code & ((1 << bits) - 1), stored = (int)(code >> bits) & 255, last = 0;
    uint64_t word = iq2[which].points[number / 4];
    for (int i = 0; i < 7; i++) last ^= stored >> i & 1;
    if (iq2[which].signs == 8) last = stored >> 7;
    return magnitudes[word >> (number % 4 * 16 + 2 * k) & 3] * ((k < 7 ? stored >> k & 1 : last) ? -1 : 1);
}

/* The search against all 32,768, 65,536 or 262,144 points. */
static void check_iq2(int which)
{
    static double all_points[1 << 18][8];
    int wrong = 0, codes_of = 1 << (iq2[which].bits + iq2[which].signs), count = (getenv("PVTUNE_QUICK") ? 100 : 600) >> which;
    pvt_weight w;
    memset(&w, 0, sizeof w);
    w.format.kind = iq2[which].kind;
    for (int code = 0; code < codes_of; code++)
        for (int k = 0; k < 8; k++) all_points[code][k] = iq2_weight(which, code, k);
    for (int i = 0; i < count; i++) {
        pvt_real x[8];
        double first = INFINITY, second = INFINITY;
        int best = 0, next = 0;
        for (int d = 0; d < 8; d++) x[d] = (pvt_real)(normal(60, (uint64_t)(8 * i + d)) * (i % 3 ? 14 : 60));
        for (int code = 0; code < codes_of; code++) {
            double off = 0;
            for (int k = 0; k < 8; k++) off += ((double)x[k] - all_points[code][k]) * ((double)x[k] - all_points[code][k]);
            if (off < first) second = first, next = best, first = off, best = code;
            else if (off < second) second = off, next = code;
        }
        wrong += pvti_iq2_nearest_one(pvti_iq2_grid_of(&w), x) != best || pvti_iq2_other(&w, x, best) != next;
        wrong += pvti_iq2_other(&w, x, next) != best;
    }
    CHECK(wrong == 0);
}

/* The error of normal numbers. */
static void check_iq2_error(pvt_ctx *ctx, const char *format, double least, double most, double bits)
{
    enum { ROWS = 40, COLUMNS = 512 };
    static pvt_real W[ROWS * COLUMNS];
    pvt_format f = parse(ctx, format);
    pvt_fit_stats stats;
    pvt_weight w;
    for (int i = 0; i < ROWS * COLUMNS; i++) W[i] = (pvt_real)normal(61, (uint64_t)i);
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, ROWS, COLUMNS, NULL, &f, NULL, &stats, &w));
    printf("    %s on normal numbers: %.4f\n", format, stats.error);
    CHECK(stats.error < most && stats.error > least);
    CHECK_NEAR(pvt_weight_bits(&w), bits, 1e-12);
    pvt_weight_free(&w);
}

/* Factors that are no pairs, as a caller can hand them in, count as some pair: nothing is read beyond a table. */
static void check_iq2_strange(pvt_ctx *ctx)
{
    static const struct { double number; int first, second; } cases[] = {
        {0, 0, 0}, {255, 15, 15}, {16, 0, 1}, {37.9, 5, 2}, {-3, 0, 0}, {256, 0, 0}, {1e30, 0, 0}};
    pvt_weight w;
    pvt_real W[256];
    pvt_format f = parse(ctx, "iq2_xs");
    for (int i = 0; i < 256; i++) W[i] = (pvt_real)normal(62, (uint64_t)i);
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, 1, 256, NULL, &f, NULL, NULL, &w));
    for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++) {
        ((pvt_real *)w.array[2])[1] = (pvt_real)cases[i].number;
        pvt_weight_dequantize(&w, W);
        for (int k = 32; k < 64; k++) {
            double s = k < 48 ? cases[i].first : cases[i].second, d = (double)((pvt_real *)w.array[1])[0];
            double want = d * (s + 0.5) / 4 * iq2_weight(1, pvti_code_get(&w, k / 8), k % 8);
            CHECK(fabs((double)W[k] - want) <= 2e-7 * fabs(want));
        }
    }
    pvt_weight_free(&w);
}

/* ---- rectangles, rows, arrays ---- */

/* The whole code of group k, in the weight and in a list of codes: that of iq2_s is two of 10 bits, the lower first. */
static int64_t join(const pvt_weight *w, int64_t first, int64_t second) { return w->format.kind == PVT_FORMAT_IQ2_S ? first | second << 10 : first; }
static int64_t code_of(const pvt_weight *w, int64_t k)
{
    int64_t each = w->format.kind == PVT_FORMAT_IQ2_S ? 2 : 1;
    return join(w, pvti_code_get(w, each * k), pvti_code_get(w, each * k + each - 1));
}
static int64_t code_in(const pvt_weight *w, const uint16_t *list, int64_t k)
{
    int64_t each = w->format.kind == PVT_FORMAT_IQ2_S ? 2 : 1;
    return join(w, list[each * k], list[each * k + each - 1]);
}

/* The number by which the points of a group are multiplied, and number d of a point, by the documentation. */
static double unit_of(const pvt_weight *w, int64_t group)
{
    const pvt_real *scales = (const pvt_real *)w->array[1];
    int64_t GI = w->format.kind == PVT_FORMAT_HIGGS ? I / w->format.in_group : I / 8, row = group / GI, j = group % GI, even = group / 2 * 2;
    int s = 0;
    if (w->format.kind == PVT_FORMAT_HIGGS) return (double)scales[row * 2 + j * w->format.in_group / 1024];
    if (w->format.kind == PVT_FORMAT_E8P) return (double)scales[row];
    if (w->format.kind == PVT_FORMAT_IQ2_XS) { /* two in a number: of 16 inputs, and of the 16 that follow */
        int pair = (int)((const pvt_real *)w->array[2])[group / 4];
        return (double)scales[row * 5 + j / 32] * ((group % 4 < 2 ? pair % 16 : pair / 16) + 0.5) / 4;
    }
    if (w->format.kind == PVT_FORMAT_IQ2_S) /* in two groups, each with half of it above 18 bits */
        return (double)scales[row * 5 + j / 32] * ((int)(code_of(w, even) >> 18 | code_of(w, even + 1) >> 18 << 2) + 0.5) / 4;
    for (int i = 0; i < 4; i++) s += (int)(pvti_code_get(w, group / 4 * 4 + i) >> 15) << i;
    return (double)scales[row * 5 + j / 32] * (s + 0.5) / 4;
}
static double point_of(const pvt_weight *w, int64_t code, int64_t d)
{
    if (w->format.kind == PVT_FORMAT_HIGGS) return (double)((const pvt_real *)w->array[2])[code * w->format.in_group + d];
    return w->format.kind == PVT_FORMAT_E8P ? (double)points[code][d] : iq2_weight(iq2_of(w), code, (int)d);
}
static const pvti_points *kind_of(const pvt_weight *w)
{
    return w->format.kind == PVT_FORMAT_HIGGS ? &pvti_points_higgs : w->format.kind == PVT_FORMAT_E8P ? &pvti_points_e8p : pvti_points_iq2_of(w);
}
/* Codes that a search chooses among, the lowest bits of which `code_limit_of` there are. */
static int64_t code_limit_of(const pvt_weight *w) { return w->format.kind == PVT_FORMAT_IQ2_S ? 1 << 20 : pvti_code_limit(&w->format); }
static int64_t limit_of(const pvt_weight *w)
{
    return w->format.kind == PVT_FORMAT_IQ2_XXS ? 1 << 15 : w->format.kind == PVT_FORMAT_IQ2_S ? 1 << 18 : code_limit_of(w);
}
/* The bits of a code that a search chooses; the others hold sub-scales. */
static int64_t mask_of(const pvt_weight *w) { return limit_of(w) > 4096 ? limit_of(w) - 1 : 0xffff; }

static bool same_arrays(const pvt_weight *a, const pvt_weight *b)
{
    pvt_array x[PVT_MAX_ARRAYS], y[PVT_MAX_ARRAYS];
    int n = pvt_weight_arrays(a, x);
    bool same = pvt_weight_arrays(b, y) == n;
    for (int i = 0; i < n && same; i++)
        same = x[i].bytes == y[i].bytes && memcmp(x[i].data, y[i].data, (size_t)x[i].bytes) == 0;
    return same;
}

/* What W is, from the arrays alone. */
static void check_dequantized(pvt_ctx *ctx, const char *format)
{
    static pvt_real W[N], tile[N];
    pvt_weight w;
    int wrong = 0;
    fit(ctx, format, NULL, NULL, &w);
    int p = (int)pvti_points_size(&w);
    CHECK(p == (w.format.kind == PVT_FORMAT_HIGGS ? w.format.in_group : 8));
    pvt_weight_dequantize(&w, W);
    for (int i = 0; i < N; i++) {
        double want = unit_of(&w, i / p) * point_of(&w, code_of(&w, i / p), i % p);
        wrong += fabs((double)W[i] - want) > 2e-7 * fabs(want);
    }
    for (int k = 0; k < 3000; k++) { /* rectangles cut anywhere */
        uint64_t random = pvti_random(1, PVTI_RANDOM_USER, 77, (uint64_t)k);
        int r0 = (int)(random % O), r1 = r0 + 1 + (int)((random >> 8) % (uint64_t)(O - r0));
        int c0 = (int)((random >> 16) % I), c1 = c0 + 1 + (int)((random >> 32) % (uint64_t)(I - c0)), ld = c1 - c0 + 1;
        for (int r = 0; r < r1 - r0; r++) tile[r * ld + ld - 1] = 12345; /* behind a row nothing is touched */
        w.kind->tile(&w, tile, ld, r0, r1, c0, c1);
        for (int r = 0; r < r1 - r0; r++)
            wrong += memcmp(tile + r * ld, W + (r0 + r) * I + c0, (size_t)(c1 - c0) * sizeof *W) != 0 || tile[r * ld + ld - 1] != 12345;
    }
    CHECK(wrong == 0);
    for (int o = 0; o < O; o++) {
        pvt_weight view;
        CHECK_OK(ctx, pvt_weight_rows(&w, o, O - o, &view));
        pvt_weight_dequantize(&view, tile);
        CHECK(memcmp(tile, W + o * I, (size_t)(O - o) * I * sizeof *W) == 0);
        pvt_weight_free(&view);
    }
    pvt_weight_free(&w);
}

static void check_arrays(pvt_ctx *ctx, const char *format)
{
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_weight w, again;
    fit(ctx, format, NULL, NULL, &w);
    int n = pvt_weight_arrays(&w, arrays);
    CHECK(arrays[0].role == PVT_ARRAY_CODE && arrays[0].dtype == (w.format.bits > 8 ? PVT_U16 : PVT_U8) && arrays[1].role == PVT_ARRAY_VALUE);
    bool xs = w.format.kind == PVT_FORMAT_IQ2_XS;
    CHECK(n == (w.format.kind == PVT_FORMAT_HIGGS || xs ? 3 : 2));
    if (n == 3) CHECK(strcmp(arrays[2].name, xs ? "factors" : "grid") == 0 && arrays[2].role == PVT_ARRAY_FIXED && arrays[2].rows == xs);
    CHECK_OK(ctx, pvt_weight_from_arrays(ctx, &w.format, O, I, arrays, n, "w", &again));
    CHECK(same_arrays(&w, &again));
    CHECK_OK(ctx, pvt_weight_round_f16(&again, "w")); /* a grid and factors are in fp16 from the beginning, scales are not */
    CHECK(!same_arrays(&w, &again));
    if (n == 3) CHECK(memcmp(again.array[2], w.array[2], (size_t)arrays[2].bytes) == 0);
    pvt_weight_free(&again);
    if (w.format.bits != 16) { /* a code that names nothing, though it has no more bits than others */
        pvti_code_set(&w, 7, pvti_code_limit(&w.format));
        CHECK(pvt_weight_from_arrays(ctx, &w.format, O, I, arrays, n, "mine", &again) == PVT_ERR_ARGUMENT);
        CHECK(strstr(pvt_ctx_error(ctx), "mine: code") && !again.array[0]);
        pvti_code_set(&w, 7, 0);
    }
    for (int a = 1; a < n; a++) {
        pvt_real kept = ((pvt_real *)w.array[a])[1];
        ((pvt_real *)w.array[a])[1] = (pvt_real)NAN;
        CHECK(pvt_weight_from_arrays(ctx, &w.format, O, I, arrays, n, "mine", &again) == PVT_ERR_NUMERIC);
        ((pvt_real *)w.array[a])[1] = 70000;
        CHECK(pvt_weight_round_f16(&w, "mine") == PVT_ERR_NUMERIC && strstr(pvt_ctx_error(ctx), arrays[a].name));
        ((pvt_real *)w.array[a])[1] = kept;
    }
    CHECK(pvt_weight_from_arrays(ctx, &w.format, O, I, arrays, n - 1, "mine", &again) == PVT_ERR_ARGUMENT);
    pvt_weight_free(&w);
}

/* In a file and back. */
static void check_file(pvt_ctx *ctx, const char *format)
{
    char dir[300], path[340];
    pvt_weight w, again;
    pvt_named_weight named;
    CHECK(test_scratch(dir, sizeof dir));
    snprintf(path, sizeof path, "%s/w.safetensors", dir);
    fit(ctx, format, NULL, NULL, &w);
    memset(&named, 0, sizeof named);
    named.name = "w", named.weight = &w;
    CHECK_OK(ctx, pvt_weights_save(path, &named, 1, true));
    named.weight = &again;
    CHECK_OK(ctx, pvt_weights_load(ctx, path, &named, 1));
    CHECK(same_arrays(&w, &again) && memcmp(&w.format, &again.format, sizeof w.format) == 0);
    pvt_weight_free(&w), pvt_weight_free(&again);
    test_remove(dir);
}

/* ---- fits ---- */

static double error_of(const pvt_weight *w, const pvt_real *W, const pvt_real *H)
{
    static pvt_real V[N];
    double off = 0, energy = 0;
    pvt_weight_dequantize(w, V);
    for (int r = 0; r < O; r++)
        for (int i = 0; i < I; i++) {
            const pvt_real *x = W + r * I, *v = V + r * I;
            for (int j = H ? 0 : i; j < (H ? I : i + 1); j++) {
                double h = H ? (double)H[i * I + j] : 1;
                off += ((double)x[i] - (double)v[i]) * ((double)x[j] - (double)v[j]) * h;
                energy += (double)x[i] * (double)x[j] * h;
            }
        }
    return off / energy;
}

/* Without H every code is the nearest. With it the errors of neighbours cancel: far less of WX is lost. */
static void check_fit(pvt_ctx *ctx, const char *format)
{
    static pvt_real W[N];
    pvt_real *H = make_H(I);
    pvt_fit_stats stats;
    pvt_weight nearest, feedback;
    make_matrix(W);
    fit(ctx, format, NULL, &stats, &nearest);
    double plain = error_of(&nearest, W, NULL);
    CHECK_NEAR(stats.error, plain, 1e-5);
    if (nearest.format.kind == PVT_FORMAT_E8P) { /* its scale is the best: no other does better by more than 1 in 1000 */
        for (int r = 0; r < O; r++) {
            double better, other = INFINITY, scale = (double)((pvt_real *)nearest.array[1])[r];
            double mine = pvti_e8p_error(W + r * I, I, scale, &better);
            for (int k = -30; k < 60; k++) other = fmin(other, pvti_e8p_error(W + r * I, I, scale * (1 + 0.02 * k), &better));
            CHECK(mine <= other * 1.001);
        }
    }
    for (int b = 0; b < 2 * O && nearest.format.kind == PVT_FORMAT_HIGGS; b++) {
        double square = 0;
        int at = b / 2 * I + b % 2 * 1024, n = b % 2 ? I - 1024 : 1024;
        for (int i = 0; i < n; i++) square += (double)W[at + i] * (double)W[at + i] / n;
        CHECK_NEAR(((pvt_real *)nearest.array[1])[b], sqrt(square), 1e-6 * sqrt(square));
    }
    double least = error_of(&nearest, W, H);
    fit(ctx, format, H, &stats, &feedback);
    CHECK_NEAR(stats.error, error_of(&feedback, W, H), 1e-4 * stats.error + 1e-6);
    printf("    %s: %.4f of W, %.4f of WX by nearest codes, %.4f with feedback\n", format, plain, least, stats.error);
    CHECK(stats.error < 0.8 * least);
    pvt_weight_free(&nearest), pvt_weight_free(&feedback);
    free(H);
}

/* The same feedback, column by column from the last row of the formula in >>gptq, in plain double. */
static void check_feedback(pvt_ctx *ctx)
{
    enum { C = 24 };
    pvt_real *H = make_H(C), W[C];
    pvt_format f = parse(ctx, "higgs:p2n88");
    pvti_factor factor;
    pvt_weight w;
    double S[C], square = 0;
    for (int i = 0; i < C; i++) W[i] = (pvt_real)normal(9, (uint64_t)i), S[i] = 0, square += (double)W[i] * (double)W[i] / C;
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, 1, C, H, &f, NULL, NULL, &w));
    CHECK_OK(ctx, pvti_factor_make(ctx, "H", H, C, 0.01, false, &factor));
    double scale = sqrt(square);
    for (int j = 0; j < C; j += 2) {
        const double *R = factor.R + j * factor.ld + j;
        double z0 = S[j] / R[0], z1 = (S[j + 1] - z0 * R[1]) / R[factor.ld + 1], least = INFINITY;
        double t[2], e[2];
        const pvt_real *grid = (const pvt_real *)w.array[2], *best = grid;
        t[0] = (double)W[j] + z0, t[1] = (double)W[j + 1] + z1;
        for (int k = 0; k < 88; k++) {
            double d0 = t[0] / scale - (double)grid[2 * k], d1 = t[1] / scale - (double)grid[2 * k + 1];
            if (d0 * d0 + d1 * d1 < least) least = d0 * d0 + d1 * d1, best = grid + 2 * k;
        }
        CHECK(pvti_code_get(&w, j / 2) == (best - grid) / 2);
        for (int d = 0; d < 2; d++) e[d] = (double)W[j + d] - scale * (double)best[d];
        for (int i = j + 2; i < C; i++)
            S[i] += e[0] * factor.R[j * factor.ld + i] + e[1] * factor.R[(j + 1) * factor.ld + i];
    }
    pvti_factor_free(ctx, &factor);
    pvt_weight_free(&w);
    free(H);
}

static void check_refused(pvt_ctx *ctx, const char *format)
{
    static pvt_real W[N];
    pvt_real *H = make_H(I);
    pvt_format f = parse(ctx, format);
    pvt_weight w;
    pvt_fit_desc d;
    memset(&d, 0, sizeof d);
    d.name = "some weight";
    CHECK_OK(ctx, (make_matrix(W), pvt_weight_fit(ctx, W, O, I, NULL, &f, NULL, NULL, &w)));
    pvt_weight_free(&w);
    for (int i = 0; i < 5; i++) {
        int64_t before = pvt_ctx_get_info(ctx).bytes_now;
        make_matrix(W);
        if (i == 0) W[N - 1] = (pvt_real)NAN;
        if (i == 1) W[5] = (pvt_real)INFINITY;
        if (i == 2) H[3 * I + 3] = (pvt_real)NAN;
        if (i == 3) H[3 * I + 3] = 1, H[7] = (pvt_real)NAN;
        if (i == 4) H[7] = H[7 * I] = 1000; /* it is no XᵀX */
        CHECK(pvt_weight_fit(ctx, W, O, I, i < 2 ? NULL : H, &f, &d, NULL, &w) == PVT_ERR_NUMERIC);
        CHECK(strstr(pvt_ctx_error(ctx), "some weight") && !w.array[0] && pvt_ctx_get_info(ctx).bytes_now == before);
    }
    free(H);
    H = make_H(I); /* the errors' advice helps: a larger damp makes an H positive that is not */
    for (int i = 0; i < I; i++) H[i * I + i] = 1;
    H[1] = H[I] = (pvt_real)2, make_matrix(W);
    CHECK(pvt_weight_fit(ctx, W, O, I, H, &f, &d, NULL, &w) == PVT_ERR_NUMERIC);
    CHECK(strstr(pvt_ctx_error(ctx), "give a larger damp") != NULL);
    for (int i = 0; i < I; i++)
        for (int j = 0; j < I; j++) H[i * I + j] = i == j;
    H[1] = H[I] = (pvt_real)1.5, d.damp = 1;
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, O, I, H, &f, &d, NULL, &w));
    pvt_weight_free(&w);
    free(H);
}

/* ---- the V step ---- */

static pvt_real now[N], target[N];
static uint16_t codes[N];
static float change[N];
static int64_t groups[N];

static void assign(pvt_ctx *ctx, const pvt_weight *w, const pvt_assign *a)
{
    pvt_real *room = (pvt_real *)calloc((size_t)w->kind->assign_room(w) + 16, sizeof *room);
    w->kind->assign(ctx, w, a, room);
    free(room);
}

static pvt_assign assign_open(pvt_ctx *ctx, const char *format, pvt_weight *w)
{
    pvt_assign a;
    fit(ctx, format, NULL, NULL, w);
    pvt_weight_dequantize(w, now);
    for (int i = 0; i < N; i++) target[i] = now[i] + (pvt_real)(0.4 * (double)(1 + i / I) * normal(6, (uint64_t)i));
    for (int i = 0; i < N; i++) codes[i] = 9999, change[i] = -1;
    memset(&a, 0, sizeof a);
    a.target = target, a.n = pvti_groups(w), a.codes = codes, a.change = change, a.beam = 1;
    return a;
}

/* Squared distance of a group with this code from V. */
static double distance(const pvt_weight *w, int64_t group, int64_t code, const pvt_real *V)
{
    int64_t p = pvti_points_size(w);
    double off = 0, scale = unit_of(w, group);
    for (int64_t d = 0; d < p; d++) {
        double rest = (double)V[group * p + d] - scale * point_of(w, code, d);
        off += rest * rest;
    }
    return off;
}

static void check_assign(pvt_ctx *ctx, const char *format, bool force, bool some)
{
    pvt_weight w;
    pvt_assign a = assign_open(ctx, format, &w);
    int64_t moves = 0, limit = limit_of(&w), step = limit > 65536 ? 97 : limit > 4096 ? 9 : 3, wrong = 0, mask = mask_of(&w), each = pvti_group_codes(&w);
    for (int64_t k = 0; k < a.n; k++) groups[k] = (k * 7 + 2) % a.n;
    a.force = force;
    if (some) a.groups = groups, a.n /= 3;
    assign(ctx, &w, &a);
    for (int64_t k = 0; k < a.n; k++) {
        int64_t group = some ? groups[k] : k, present = code_of(&w, group), code = code_in(&w, codes, k);
        double best = INFINITY, moved = distance(&w, group, code & mask, now);
        moves += code != present;
        wrong += (code & mask) >= limit || (code & ~mask) != (present & ~mask); /* sub-scales stay */
        wrong += fabs((double)change[k] - moved) > 1e-4 * (moved + 1e-2);
        if (k % step) continue;
        for (int64_t other = 0; other < limit; other++)
            if (!force || other != (present & mask)) best = fmin(best, distance(&w, group, other, target));
        wrong += !(distance(&w, group, code & mask, target) <= best + 1e-5 * (best + 1e-3));
    }
    CHECK(wrong == 0);
    CHECK(moves > 0 && (force ? moves == a.n : moves < a.n));
    for (int64_t k = a.n; k < N; k++) wrong += (k >= each * a.n && codes[k] != 9999) || change[k] != -1; /* no more */
    CHECK(wrong == 0);
    pvt_weight_free(&w);
}

/* With rounding: one of the two nearest, the second as often as its distance says; a scale of 0; targets that are none. */
static void check_assign_special(pvt_ctx *ctx, const char *format)
{
    pvt_weight w;
    pvt_assign a = assign_open(ctx, format, &w);
    static uint16_t first[N];
    double want = 0, got = 0;
    int64_t wrong = 0;
    assign(ctx, &w, &a);
    memcpy(first, codes, sizeof first);
    a.rounding = 0.8, a.seed = 3, a.stream = 4;
    assign(ctx, &w, &a);
    for (int64_t k = 0; k < a.n; k++) {
        pvt_real x[8];
        int64_t p = pvti_points_size(&w), mask = mask_of(&w), before = code_in(&w, first, k), after = code_in(&w, codes, k);
        double e1 = distance(&w, k, before & mask, target);
        for (int64_t d = 0; d < p; d++) x[d] = (pvt_real)((double)target[k * p + d] / unit_of(&w, k));
        int64_t second = kind_of(&w)->other(&w, x, (int)(before & mask));
        double e2 = distance(&w, k, second, target);
        wrong += after != before && fabs(distance(&w, k, after & mask, target) - e2) > 1e-5 * e2;
        got += after != before, want += 1 / (1 + pow(e2 / e1, 0.5 / 0.8));
    }
    CHECK(wrong == 0);
    CHECK_NEAR(got, want, 4 * sqrt(want)); /* of a good source less than 1 in 16,000 is further off */
    a.rounding = 0;
    for (int i = 0; i < N; i++) target[i] = (pvt_real)(i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -1e30);
    assign(ctx, &w, &a);
    for (int64_t k = 0; k < a.n; k++) wrong += code_in(&w, codes, k) >= code_limit_of(&w);
    for (int b = 0; b < (int)pvti_points_blocks(kind_of(&w), I) * O; b++) ((pvt_real *)w.array[1])[b] = 0;
    for (int force = 0; force < 2; force++) {
        a.force = force;
        assign(ctx, &w, &a);
        for (int64_t k = 0; k < a.n; k++)
            wrong += (code_in(&w, codes, k) == code_of(&w, k)) == force || code_in(&w, codes, k) >= code_limit_of(&w) || change[k] != 0;
    }
    CHECK(wrong == 0);
    pvt_weight_free(&w);
}

/* ---- same bits, and no memory ---- */

static uint64_t add(uint64_t hash, const void *data, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i++) hash = (hash ^ ((const uint8_t *)data)[i]) * 1099511628211u;
    return hash;
}

static uint64_t work(pvt_ctx *ctx, const char *format, const pvt_real *H)
{
    static pvt_real W[N], y[17 * O], x[17 * I], dscales[5 * O];
    pvt_real *dvalues[PVT_MAX_ARRAYS] = {NULL, dscales, NULL, NULL};
    pvt_array arrays[PVT_MAX_ARRAYS];
    uint64_t hash = 14695981039346656037u;
    pvt_weight w;
    fit(ctx, format, H, NULL, &w);
    for (int i = pvt_weight_arrays(&w, arrays) - 1; i >= 0; i--) hash = add(hash, arrays[i].data, arrays[i].bytes);
    pvt_weight_free(&w);
    pvt_assign a = assign_open(ctx, format, &w);
    for (int i = pvt_weight_arrays(&w, arrays) - 1; i >= 0; i--) hash = add(hash, arrays[i].data, arrays[i].bytes);
    for (int rounding = 0; rounding < 2; rounding++) {
        a.rounding = rounding * 0.7;
        assign(ctx, &w, &a);
        hash = add(add(hash, codes, sizeof codes), change, sizeof change);
    }
    for (int i = 0; i < 17 * I; i++) x[i] = (pvt_real)normal(8, (uint64_t)i);
    for (int n = 1; n <= 17; n += 16) pvt_weight_forward(y, x, &w, n, false), hash = add(hash, y, n * O * (int64_t)sizeof *y);
    pvt_weight_dequantize(&w, W), hash = add(hash, W, sizeof W);
    memset(dscales, 0, sizeof dscales);
    CHECK_OK(ctx, pvt_weight_chain(dvalues, &w, target));
    pvt_weight_free(&w);
    return add(hash, dscales, sizeof dscales);
}

static void check_same_bits(void)
{
    static const struct { const char *isa; int threads; } cases[] = {{"scalar", 5}, {"avx2", 2}, {"avx512", 2}, {"avx2", 1}, {"avx2", 5}};
    pvt_real *H = make_H(I);
    uint64_t first[ALL];
    bool any = false;
    for (int i = 0; i < (getenv("PVTUNE_QUICK") ? 3 : 5); i++) {
        pvt_ctx_desc desc;
        pvt_ctx *ctx;
        memset(&desc, 0, sizeof desc);
        desc.isa = cases[i].isa, desc.n_threads = cases[i].threads;
        if (pvt_ctx_create(&desc, &ctx) != PVT_OK) { /* a processor that has none of these */
            SKIP(cases[i].isa);
            continue;
        }
        for (int k = 0; k < ALL; k++) {
            uint64_t hash = work(ctx, all[k], H);
            if (!any) first[k] = hash;
            if (hash != first[k]) printf("%s: %s, %d threads\n", all[k], cases[i].isa, cases[i].threads);
            CHECK(hash == first[k]);
        }
        any = true;
        pvt_ctx_destroy(ctx);
    }
    free(H);
}

/* Allocations of a fit fail, all from one on: a sentence, and nothing is left behind. Each failure makes the grid anew,
   and one of several dimensions takes seconds: every fifth allocation there. */
static void check_memory(const char *format)
{
    static pvt_real W[4 * 256];
    pvt_real *H = make_H(256);
    bool slow = strncmp(format, "higgs:p", 7) == 0 && format[7] != '1', done = false;
    for (int i = 0; i < 4 * 256; i++) W[i] = (pvt_real)normal(3, (uint64_t)i);
    for (int64_t fail = 0; !done && fail < 60; fail += slow ? 5 : 1) {
        test_budget b = {1000000, 0, false};
        pvt_ctx_desc desc;
        pvt_ctx *ctx;
        pvt_weight w;
        memset(&desc, 0, sizeof desc);
        desc.n_threads = 1;
        desc.allocator.alloc = test_budget_alloc, desc.allocator.free = test_budget_free, desc.allocator.user = &b;
        CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
        pvt_format f = parse(ctx, format);
        b.left = fail;
        pvt_result result = pvt_weight_fit(ctx, W, 4, 256, H, &f, NULL, NULL, &w);
        done = result == PVT_OK;
        CHECK(done || (result == PVT_ERR_MEMORY && pvt_ctx_error(ctx)[0] && !w.array[0]));
        if (done) CHECK(fail > 8);
        pvt_weight_free(&w);
        pvt_ctx_destroy(ctx);
        CHECK(b.live == 0);
    }
    CHECK(done);
    free(H);
}

static void check(pvt_ctx *ctx)
{
    check_normal(), check_lloyd_max(ctx);
    check_golden_higgs(ctx, 16);
    if (!getenv("PVTUNE_QUICK")) /* tens of seconds under a sanitizer */
        check_grids(ctx), check_golden_higgs(ctx, 64), check_golden_higgs(ctx, 256);
    check_e8p_points(), check_e8p_nearest(), check_e8p_error(), check_golden_e8p(ctx);
    for (int which = 0; which < 3; which++) check_iq2(which);
    check_iq2_error(ctx, "iq2_xxs", .104, .109, 2.0625); /* .105 with scales that need not be of 4 bits */
    check_iq2_error(ctx, "iq2_xs", .0803, .083, 2.5625); /* .0803 likewise */
    check_iq2_error(ctx, "iq2_s", .055, .058, 2.5625); /* below the .058 of scales that are not searched for */
    check_iq2_strange(ctx);
    check_texts(ctx), check_sizes(ctx), check_feedback(ctx);
    for (int i = 0; i < ALL; i++) {
        check_dequantized(ctx, all[i]), check_arrays(ctx, all[i]), check_file(ctx, all[i]), check_fit(ctx, all[i]), check_refused(ctx, all[i]);
        for (int k = 0; k < 4; k++) check_assign(ctx, all[i], k % 2, k / 2);
        check_assign_special(ctx, all[i]);
        /* minutes for grids of several dimensions under a sanitizer */
        if (!getenv("PVTUNE_QUICK") || strncmp(all[i], "higgs:p", 7) != 0 || all[i][7] == '1') check_memory(all[i]);
    }
    check_same_bits();
}
#endif

int main(void)
{
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 2;
    if (pvt_ctx_create(&desc, &ctx) != PVT_OK) return 1;
    check(ctx);
    pvt_ctx_destroy(ctx);
    return test_end();
}
