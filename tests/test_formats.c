/*  The seam behind pvt_weight: every representation with codes against what its documentation says, written here a
    second time: texts, sizes, fits, rectangles, the chain rule (in the double build), the V step against a search over
    all codes, the surrogates of quantization-aware training, and the same bits for any number of threads and any kernels. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

#define NF4_GOLDEN "../shared/golden/scalar/nf4.safetensors"

enum { O = 6, I = 128, N = O * I };

static const char *const all[] = {"aqlm:2x4g4", "aqlm:2x3g4o2", "aqlm:1x4g2", "nf4", "int:4g32", "int:2g16",
                                  "int:1g8", "int:8g64",
                                  "int:4g32s", "int:2g16s", "int:8g64s", "q2_0"};
enum { ALL = sizeof all / sizeof *all };

/* About normal, from an index. */
static pvt_real bell(uint64_t i)
{
    double sum = 0;
    for (int j = 0; j < 4; j++) sum += pvti_random_unit(7, PVTI_RANDOM_USER, (uint64_t)j, i);
    return (pvt_real)((sum - 2) * 1.7);
}

/* Rows that a grid finds hard: of zeros, of one sign, with one huge value. */
static void make_matrix(pvt_real *W)
{
    for (int i = 0; i < N; i++) W[i] = bell((uint64_t)i);
    for (int i = 0; i < 64; i++) W[I + i] = 0;                          /* row 1: half of it */
    for (int i = 0; i < I; i++) W[2 * I + i] = 1 + W[2 * I + i] / 16;   /* row 2: positive */
    for (int i = 0; i < I; i++) W[3 * I + i] = -1 - W[3 * I + i] / 16;  /* row 3: negative */
    W[4 * I + 70] = 1000;
}

static void make_H(pvt_real *H)
{
    static pvt_real X[2 * I * I];
    for (int i = 0; i < 2 * I * I; i++) X[i] = bell((uint64_t)(10000 + i));
    for (int i = 0; i < I; i++)
        for (int j = 0; j < I; j++) {
            double sum = i == j ? 0.1 : 0;
            for (int k = 0; k < 2 * I; k++) sum += (double)X[k * I + i] * (double)X[k * I + j] / (2 * I);
            H[i * I + j] = (pvt_real)sum;
        }
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
    pvt_fit_desc d;
    memset(&d, 0, sizeof d);
    d.epochs = 2, d.kmeans_steps = 5, d.method = PVT_FIT_RTN; /* other fits: test_scalar.c */
    make_matrix(W);
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, O, I, H, &f, &d, stats, out));
}

static bool same_arrays(const pvt_weight *a, const pvt_weight *b)
{
    pvt_array x[PVT_MAX_ARRAYS], y[PVT_MAX_ARRAYS];
    int n = pvt_weight_arrays(a, x);
    bool same = pvt_weight_arrays(b, y) == n;
    for (int i = 0; i < n && same; i++)
        same = x[i].bytes == y[i].bytes && memcmp(x[i].data, y[i].data, (size_t)x[i].bytes) == 0;
    return same;
}

/* ---- quantization-aware training ---- */

typedef struct qat {
    pvt_weight w;
    pvt_real T[N], G[N];
    pvt_pv_desc desc;
    double origin; /* of every weight, where there are no zeros */
    int ig, n;     /* codes 0 … n */
} qat;

/* A staircase (for identity a ramp) whose derivative the surrogate of rounding is, the steps of sigmoid and root smooth. */
static double staircase(const pvt_pv_desc *d, double c)
{
    double t = d->surrogate_temperature, r = c - floor(c), x = 2 * r - 1;
    if (d->surrogate == PVT_SURROGATE_SIGMOID)
        return floor(c) * tanh(t / 4) + 1 / (1 + exp(-t * (r - 0.5))) - 1 / (1 + exp(t / 2));
    if (d->surrogate == PVT_SURROGATE_ROOT) return floor(c) + (1 + (x < 0 ? -1 : 1) * pow(fabs(x), 0.2)) / 2;
    return c;
}
static double gate(double x) { return 1 / (1 + exp(-x)); }
static double clamped(const qat *q, double u)
{
    double beyond = q->desc.surrogate == PVT_SURROGATE_IDENTITY ? 0.5 : 0, b = q->desc.clamp_sharpness;
    if (b == 0) return fmin(fmax(u, -beyond), q->n + beyond);
    return u * gate(b * u) * gate(b * (q->n - u)) + q->n * gate(b * (u - q->n));
}

/* What the surrogate takes W to be near these T, s and z: the codes as they are, and a change as the staircase has it. */
static double surrogate_weight(const qat *q, int i, double T, double s, double z)
{
    int g = i / q->ig;
    double s0 = (double)((const pvt_real *)q->w.array[1])[g];
    double z0 = q->w.format.kind == PVT_FORMAT_INT ? (double)((const pvt_real *)q->w.array[2])[g] : q->origin;
    double moved = staircase(&q->desc, clamped(q, T / s + z)) - staircase(&q->desc, clamped(q, (double)q->T[i] / s0 + z0));
    return s * ((double)pvti_code_get(&q->w, i) + moved - z);
}

/* Codes, scales of either sign where there are no zeros, and a buffer from below the codes to above them, away from where
   the slope jumps or has no end. */
static void qat_open(pvt_ctx *ctx, const char *format, pvt_surrogate surrogate, double temperature, double sharpness, qat *q)
{
    pvt_format f = parse(ctx, format);
    memset(q, 0, sizeof *q);
    CHECK_OK(ctx, pvti_weight_alloc(ctx, &f, O, I, format, &q->w));
    q->desc.surrogate = surrogate, q->desc.surrogate_temperature = temperature, q->desc.clamp_sharpness = sharpness;
    q->ig = f.in_group, q->n = (1 << f.bits) - 1;
    q->origin = f.kind == PVT_FORMAT_Q2_0 ? 1 : 1 << (f.bits - 1);
    for (int i = 0; i < N; i++) {
        double u = (q->n + 3) * pvti_random_unit(4, PVTI_RANDOM_USER, 1, (uint64_t)i) - 1.5;
        double apart = fabs(u - floor(u) - 0.5), near = fabs(u - floor(u + 0.5));
        pvt_real *s = (pvt_real *)q->w.array[1] + i / q->ig, z = (pvt_real)q->origin;
        double sign = f.kind == PVT_FORMAT_INT ? 1 : i / q->ig % 3 - 1.25;
        if (i % q->ig == 0) *s = (pvt_real)(sign * (0.5 + fabs((double)bell((uint64_t)i))));
        if (i % q->ig == 0 && f.kind == PVT_FORMAT_INT)
            ((pvt_real *)q->w.array[2])[i / q->ig] = 1 + bell((uint64_t)(7 + i)) / 2;
        if (f.kind == PVT_FORMAT_INT) z = ((const pvt_real *)q->w.array[2])[i / q->ig];
        if (apart < 0.05 || near < 0.02) u += 0.11; /* from an edge, or the top of root's peak */
        q->T[i] = *s * ((pvt_real)u - z), q->G[i] = bell((uint64_t)(3000 + i));
        pvti_code_set(&q->w, i, pvti_int_nearest(u + (i % 5 == 0), f.bits, -1)); /* some lag behind, as under a cap */
    }
}

/* dT, ds and dz against central differences of Σ G·W. */
static void check_surrogate(pvt_ctx *ctx, const char *format, pvt_surrogate surrogate, double temperature, double sharpness)
{
    static pvt_real dT[N], ds[N], dz[N];
    static qat q;
    pvt_real *dvalues[PVT_MAX_ARRAYS] = {NULL, ds, dz};
    double h = 1e-6, worst = 0, tolerance = sizeof(pvt_real) == 8 ? 1e-6 : 2e-4;
    int bent = 0;
    qat_open(ctx, format, surrogate, temperature, sharpness, &q);
    memset(ds, 0, sizeof ds), memset(dz, 0, sizeof dz);
    q.w.kind->surrogate(ctx, dvalues, dT, &q.w, q.T, q.G, &q.desc);
    for (int g = 0; g < N / q.ig; g++) {
        double s = (double)((const pvt_real *)q.w.array[1])[g], sum[2] = {0, 0};
        double z = q.w.format.kind == PVT_FORMAT_INT ? (double)((const pvt_real *)q.w.array[2])[g] : q.origin;
        for (int i = g * q.ig; i < (g + 1) * q.ig; i++) {
            double T = (double)q.T[i], G = (double)q.G[i];
            double along = (surrogate_weight(&q, i, T + h, s, z) - surrogate_weight(&q, i, T - h, s, z)) / (2 * h);
            worst = fmax(worst, fabs((double)dT[i] - G * along));
            bent += dT[i] != q.G[i];
            sum[0] += G * (surrogate_weight(&q, i, T, s + h, z) - surrogate_weight(&q, i, T, s - h, z)) / (2 * h);
            sum[1] += G * (surrogate_weight(&q, i, T, s, z + h) - surrogate_weight(&q, i, T, s, z - h)) / (2 * h);
        }
        worst = fmax(worst, fabs((double)ds[g] - sum[0]));
        if (q.w.format.kind == PVT_FORMAT_INT) worst = fmax(worst, fabs((double)dz[g] - sum[1]));
        else CHECK(dz[g] == 0);
    }
    if (!(worst < tolerance))
        printf("%s, surrogate %d, t %g, beta %g: %g\n", format, (int)surrogate, temperature, sharpness, worst);
    CHECK(worst < tolerance && bent > N / 20);
    pvt_weight_free(&q.w);
}

/* EfficientQAT (arXiv 2407.11062) as published, for one weight w of integer zero: q̂ = clamp(⌊w/s⌉ + z), ŵ = s(q̂ − z);
   ∂ŵ/∂w, ∂ŵ/∂s and ∂ŵ/∂z inside, below and above. With no group to sum over each gradient is one of them. */
static void check_efficient_qat(pvt_ctx *ctx)
{
    static const double places[] = {-3.2, -0.7, -0.4, 0.2, 0.7, 1.4, 2.3, 2.9, 3.3, 3.7, 5.1}; /* w/s + z; codes 0 … 3 */
    enum { COUNT = sizeof places / sizeof *places };
    pvt_real T[COUNT], G[COUNT], dT[COUNT], ds[COUNT], dz[COUNT];
    pvt_real *dvalues[PVT_MAX_ARRAYS] = {NULL, ds, dz};
    int inside = 0;
    pvt_format f = parse(ctx, "int:2g1");
    pvt_pv_desc desc;
    pvt_weight w;
    memset(&desc, 0, sizeof desc), memset(ds, 0, sizeof ds), memset(dz, 0, sizeof dz);
    desc.surrogate = PVT_SURROGATE_IDENTITY;
    CHECK_OK(ctx, pvti_weight_alloc(ctx, &f, 1, COUNT, "w", &w));
    for (int i = 0; i < COUNT; i++) {
        double s = 0.25 + i, z = i % 3;
        ((pvt_real *)w.array[1])[i] = (pvt_real)s, ((pvt_real *)w.array[2])[i] = (pvt_real)z;
        T[i] = (pvt_real)(s * (places[i] - z)), G[i] = (pvt_real)(i % 2 ? 0.5 : -2);
        pvti_code_set(&w, i, (int64_t)fmin(fmax(rint(places[i]), 0), 3));
    }
    w.kind->surrogate(ctx, dvalues, dT, &w, T, G, &desc);
    for (int i = 0; i < COUNT; i++) {
        double s = 0.25 + i, z = i % 3, ratio = (double)T[i] / s, level = rint(ratio) + z, g = (double)G[i];
        bool in = level >= 0 && level <= 3;
        CHECK_NEAR(dT[i], in ? g : 0, 1e-6);
        CHECK_NEAR(ds[i], g * (in ? rint(ratio) - ratio : level < 0 ? -z : 3 - z), 1e-5);
        CHECK_NEAR(dz[i], in ? 0 : -s * g, 1e-5);
        inside += in;
    }
    CHECK(inside == 7);
    pvt_weight_free(&w);
}

/* Where nothing is clamped, identity differs from PV-Tuning's own gradients by −Σ G·T/s in ds, and has no dz. A scale of 0
   is no place to divide by. */
static void check_surrogate_relations(pvt_ctx *ctx)
{
    static pvt_real dT[N], ds[N], dz[N], own_ds[N], own_dz[N];
    static qat q;
    pvt_real *dvalues[PVT_MAX_ARRAYS] = {NULL, ds, dz}, *own[PVT_MAX_ARRAYS] = {NULL, own_ds, own_dz};
    pvt_real *none[PVT_MAX_ARRAYS] = {NULL};
    qat_open(ctx, "int:2g16", PVT_SURROGATE_IDENTITY, 0, 0, &q);
    memset(ds, 0, sizeof ds), memset(dz, 0, sizeof dz), memset(own_ds, 0, sizeof ds), memset(own_dz, 0, sizeof dz);
    pvt_weight_dequantize(&q.w, q.T); /* T = W: every weight lies on a level */
    CHECK_OK(ctx, pvt_weight_chain(own, &q.w, q.G));
    q.w.kind->surrogate(ctx, dvalues, dT, &q.w, q.T, q.G, &q.desc);
    CHECK(memcmp(dT, q.G, sizeof dT) == 0);
    for (int g = 0; g < N / 16; g++) {
        double sum = 0;
        for (int i = g * 16; i < (g + 1) * 16; i++)
            sum += (double)q.G[i] * (double)q.T[i] / (double)((pvt_real *)q.w.array[1])[g];
        CHECK(dz[g] == 0 && own_dz[g] != 0);
        CHECK_NEAR(ds[g], (double)own_ds[g] - sum, 1e-4);
    }
    q.w.kind->surrogate(ctx, none, dT, &q.w, q.T, q.G, &q.desc); /* dT alone */
    CHECK(memcmp(dT, q.G, sizeof dT) == 0);
    memset(ds, 0, sizeof ds), memset(dz, 0, sizeof dz);
    for (int g = 0; g < N / 16; g++) ((pvt_real *)q.w.array[1])[g] = g % 2 ? 0 : (pvt_real)1e-37;
    for (int soft = 0; soft < 2; soft++) {
        double sum = 0;
        q.desc.clamp_sharpness = soft * 4;
        q.w.kind->surrogate(ctx, dvalues, dT, &q.w, q.T, q.G, &q.desc);
        for (int i = 0; i < N; i++) sum += fabs((double)dT[i]) + fabs((double)ds[i]) + fabs((double)dz[i]);
        CHECK(sum > 0 && sum < 1e6);
    }
    pvt_weight_free(&q.w);
}

static void check_qat(pvt_ctx *ctx)
{
    static const char *const able[] = {"int:2g16", "int:4g32", "int:1g8", "int:2g16s", "int:4g32s", "q2_0"};
    for (int i = 0; i < (int)PVTI_COUNT(able); i++) {
        for (int soft = 0; soft < 3; soft++) {
            check_surrogate(ctx, able[i], PVT_SURROGATE_IDENTITY, 0, soft * 3);
            check_surrogate(ctx, able[i], PVT_SURROGATE_SIGMOID, 4, soft * 3);
            check_surrogate(ctx, able[i], PVT_SURROGATE_SIGMOID, 11, soft * 3);
            if (!soft) check_surrogate(ctx, able[i], PVT_SURROGATE_ROOT, 0, 0); /* c of the soft one may fall on the peak */
        }
    }
    check_efficient_qat(ctx);
    check_surrogate_relations(ctx);
}

#if PVTI_REAL_IS_DOUBLE
/* ---- in double: the chain rule against differences ---- */

/* Σ R·W(values), which is linear in dW = R. */
static double loss(const pvt_weight *w, const pvt_real *R)
{
    static pvt_real W[N];
    double sum = 0;
    pvt_weight_dequantize(w, W);
    for (int i = 0; i < N; i++) sum += (double)R[i] * (double)W[i];
    return sum;
}

static void check_chain(pvt_ctx *ctx, const char *format)
{
    static pvt_real R[N];
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_real *dvalues[PVT_MAX_ARRAYS] = {NULL, NULL, NULL, NULL};
    pvt_weight w;
    double worst = 0;
    fit(ctx, format, NULL, NULL, &w);
    int n = pvt_weight_arrays(&w, arrays);
    for (int i = 0; i < N; i++) R[i] = bell((uint64_t)(5000 + i));
    for (int a = 1; a < n; a++) {
        dvalues[a] = (pvt_real *)malloc((size_t)arrays[a].bytes);
        for (int64_t k = 0; k < pvti_array_count(&arrays[a]); k++) dvalues[a][k] = 100; /* it adds */
    }
    CHECK_OK(ctx, pvt_weight_chain(dvalues, &w, R));
    for (int a = 1; a < n; a++)
        for (int64_t k = 0; k < pvti_array_count(&arrays[a]); k++) {
            pvt_real *value = (pvt_real *)w.array[a] + k, kept = *value;
            double step = 1e-3 * (1 + fabs(kept)), up, down;
            *value = kept + step, up = loss(&w, R);
            *value = kept - step, down = loss(&w, R);
            *value = kept;
            worst = PVTI_MAX(worst, fabs((up - down) / (2 * step) - (dvalues[a][k] - 100)));
        }
    if (!(worst < 1e-7)) printf("%s: off by %g\n", format, worst);
    CHECK(worst < 1e-7); /* W is linear in each value alone: what is left is rounding */
    for (int a = 1; a < n; a++) free(dvalues[a]);
    pvt_weight_free(&w);
}

static void check(pvt_ctx *ctx)
{
    for (int i = 0; i < ALL; i++) check_chain(ctx, all[i]);
    check_qat(ctx);
}
#else

/* ---- texts and sizes ---- */

static void check_texts(pvt_ctx *ctx)
{
    static const char *const hostile[] = {
        "", "nf", "nf4 ", " nf4", "NF4", "nf4:64", "nf4g64", "int", "int:", "int:4", "int:g32", "int:4g", "int:4g0", "int:0g32",
        "int:9g32", "int:4g4097", "int:-4g32", "int:4g-32", "int:4g32o2", "int:4g32 ", "int: 4g32", "int:4x32", "int:4G32",
        "int:1g32s", "int:9g32s", "int:4g32ss", "int:4gs", "int:4g32S", "int:4g32s ",
        "q2", "q2_", "q2_1", "Q2_0", "q2_0 ", "q2_0g64",
        "int:4294967300g32", "int:4g4294967328", "int:99999999999999999999g32", "dense:", "denser", "aqlm", "aqlm:", "aqlm:2x4",
        "aqlm:0x4g4", "aqlm:17x4g4", "aqlm:2x17g4", "aqlm:2x0g4", "aqlm:2x4g0", "aqlm:2x4g65", "aqlm:2x4g4o", "aqlm:2x4g4o0",
        "aqlm:2x4g4o65", "aqlm:1x8g64o64", "aqlm:2x4g4o2x", "aqlm:2x4g4,nf4", "%s%s%n", "int:4g32\n"};
    pvt_format f, zero;
    char text[48];
    memset(&zero, 0, sizeof zero);
    for (int i = 0; i < ALL; i++) {
        f = parse(ctx, all[i]);
        pvt_format_text(&f, text);
        CHECK(strcmp(text, all[i]) == 0);
    }
    for (int i = 0; i < (int)(sizeof hostile / sizeof *hostile); i++) {
        memset(&f, 0x55, sizeof f);
        if (pvt_format_parse(ctx, hostile[i], &f) == PVT_OK) printf("\"%s\" is taken\n", hostile[i]);
        CHECK(pvt_format_parse(ctx, hostile[i], &f) == PVT_ERR_ARGUMENT && pvt_format_parse(NULL, hostile[i], &f) != PVT_OK);
        CHECK(memcmp(&f, &zero, sizeof f) == 0);
    }
    CHECK(pvt_format_parse(ctx, "int:9g32", &f) == PVT_ERR_ARGUMENT); /* the sentence says what would be taken */
    CHECK(strstr(pvt_ctx_error(ctx), "\"int:9g32\": expected int:BgG with") && strstr(pvt_ctx_error(ctx), "; or int:BgGs"));
    CHECK(!strstr(pvt_ctx_error(ctx), "aqlm") && !strstr(pvt_ctx_error(ctx), "nf4"));
    CHECK(pvt_format_parse(ctx, "had:vq:99g8", &f) == PVT_ERR_ARGUMENT && strstr(pvt_ctx_error(ctx), "expected aqlm:MxBgG"));
    CHECK(pvt_format_parse(ctx, "int", &f) == PVT_ERR_ARGUMENT); /* all, where its name says nothing */
    CHECK(strstr(pvt_ctx_error(ctx), "aqlm:MxBgG") && strstr(pvt_ctx_error(ctx), "nf4") && strstr(pvt_ctx_error(ctx), "int:BgG"));
    f.kind = (pvt_format_kind)99;
    pvt_format_text(&f, text);
    CHECK(strcmp(text, "?") == 0);
}

/* What does not divide, and what the sentence proposes (NULL: nothing would fit). */
static void check_sizes(pvt_ctx *ctx)
{
    static const struct { const char *format; int64_t rows, columns; const char *near_one; } cases[] = {
        {"nf4", 4, 96, NULL}, {"int:4g32", 4, 80, "int:4g40"}, {"int:2g64", 4, 96, "int:2g48"}, {"int:4g32", 3, 31, "int:4g31"},
        {"int:4g32s", 4, 80, "int:4g40s"}, {"q2_0", 4, 96, NULL},
        {"aqlm:2x4g4", 4, 10, "aqlm:2x4g5"}, {"aqlm:2x3g4o2", 5, 8, "aqlm:2x3g4"}};
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_format f;
    int n;
    for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++) {
        char proposal[80];
        f = parse(ctx, cases[i].format);
        CHECK(pvt_format_arrays(ctx, &f, cases[i].rows, cases[i].columns, arrays, &n) == PVT_ERR_ARGUMENT && n == 0);
        snprintf(proposal, sizeof proposal, "; %s would fit", cases[i].near_one ? cases[i].near_one : "");
        CHECK(strstr(pvt_ctx_error(ctx), "do not divide") != NULL);
        CHECK((strstr(pvt_ctx_error(ctx), proposal) != NULL) == (cases[i].near_one != NULL));
        if (!cases[i].near_one) CHECK(!strstr(pvt_ctx_error(ctx), "fit"));
        if (!cases[i].near_one) continue;
        f = parse(ctx, cases[i].near_one); /* and it does */
        CHECK_OK(ctx, pvt_format_arrays(ctx, &f, cases[i].rows, cases[i].columns, arrays, &n));
    }
    for (int i = 0; i < ALL; i++) {
        f = parse(ctx, all[i]);
        CHECK(pvt_format_arrays(ctx, &f, 0, I, arrays, &n) == PVT_ERR_ARGUMENT);
        CHECK(pvt_format_arrays(ctx, &f, O, -I, arrays, &n) == PVT_ERR_ARGUMENT);
        CHECK(pvt_format_arrays(ctx, &f, INT64_MAX / 2, I, arrays, &n) == PVT_ERR_ARGUMENT);
        f.out_group = 3; /* none but aqlm has groups of rows, and for this one M·2^B are in range */
        CHECK((pvt_format_arrays(ctx, &f, O, I, arrays, &n) == PVT_OK) == (f.kind == PVT_FORMAT_AQLM));
        f.out_group = 1, f.bits = 17;
        CHECK(pvt_format_arrays(ctx, &f, O, I, arrays, &n) == PVT_ERR_ARGUMENT);
        f.kind = (pvt_format_kind)-1;
        CHECK(pvt_format_arrays(ctx, &f, O, I, arrays, &n) == PVT_ERR_ARGUMENT && pvt_format_bits(&f, O, I) == 0);
    }
}

/* The documented size, as arithmetic. */
static double bits_of(const pvt_format *f)
{
    double n = N, groups = n / (f->in_group * f->out_group);
    if (f->kind == PVT_FORMAT_NF4) return 4 + 16.0 / 64;
    if (f->kind == PVT_FORMAT_INT) return f->bits + 32.0 / f->in_group;
    if (f->kind == PVT_FORMAT_INT_SYMMETRIC) return f->bits + 16.0 / f->in_group;
    if (f->kind == PVT_FORMAT_Q2_0) return 2 + 16.0 / 64;
    double bits = groups * f->codebooks * f->bits + O / f->out_group * 16.0;
    return (bits + f->codebooks * (1 << f->bits) * f->in_group * f->out_group * 16.0) / n;
}

static void check_bits(pvt_ctx *ctx)
{
    for (int i = 0; i < ALL; i++) {
        pvt_format f = parse(ctx, all[i]);
        pvt_array arrays[PVT_MAX_ARRAYS];
        pvt_weight w;
        double sum = 0;
        int n;
        CHECK_OK(ctx, pvt_format_arrays(ctx, &f, O, I, arrays, &n));
        for (int a = 0; a < n; a++) sum += (double)pvti_array_count(&arrays[a]) * arrays[a].bits;
        CHECK_NEAR(pvt_format_bits(&f, O, I), sum / N, 1e-12);
        CHECK_NEAR(pvt_format_bits(&f, O, I), bits_of(&f), 1e-12);
        fit(ctx, all[i], NULL, NULL, &w);
        CHECK(pvt_weight_bits(&w) == pvt_format_bits(&f, O, I));
        pvt_weight_free(&w);
    }
}

/* ---- fits ---- */

/* The error that the stats should say, from the weight as it is. */
static double error_of(const pvt_weight *w, const pvt_real *W, const pvt_real *H)
{
    static pvt_real V[N];
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
    return off / energy;
}

static void check_fit_int(const pvt_weight *w, const pvt_real *W)
{
    const pvt_real *scales = (const pvt_real *)w->array[1], *zeros = (const pvt_real *)w->array[2];
    int ig = w->format.in_group, most = (1 << w->format.bits) - 1;
    for (int g = 0; g < N / ig; g++) {
        double low = 0, high = 0;
        for (int k = g * ig; k < (g + 1) * ig; k++) low = fmin(low, (double)W[k]), high = fmax(high, (double)W[k]);
        double scale = (high - low) / most, zero = scale > 0 ? floor(-low / scale + 0.5) : 0;
        CHECK(scales[g] == (pvt_real)scale && zeros[g] == (pvt_real)zero);
        for (int k = g * ig; k < (g + 1) * ig; k++) {
            double q = scale > 0 ? floor((double)W[k] / scale + zero + 0.5) : 0;
            CHECK(((const uint8_t *)w->array[0])[k] == (int)fmin(fmax(q, 0), most));
        }
    }
}

/* Without zeros: the smallest scale of either sign that cuts nothing off. */
static void check_fit_signed(const pvt_weight *w, const pvt_real *W, int origin)
{
    const pvt_real *scales = (const pvt_real *)w->array[1];
    int ig = w->format.in_group, top = (1 << w->format.bits) - 1 - origin;
    for (int g = 0; g < N / ig; g++) {
        double low = 0, high = 0;
        for (int k = g * ig; k < (g + 1) * ig; k++)
            low = fmin(low, (double)W[k]), high = fmax(high, (double)W[k]);
        double up = fmax(high / top, -low / origin), down = fmax(high / origin, -low / top);
        double scale = down < up ? -down : up;
        CHECK(scales[g] == (pvt_real)scale);
        for (int k = g * ig; k < (g + 1) * ig; k++) {
            double q = origin + (scale != 0 ? floor((double)W[k] / (double)scales[g] + 0.5) : 0);
            CHECK(((const uint8_t *)w->array[0])[k] == (int)fmin(fmax(q, 0), origin + top));
        }
    }
}

static void check_fit_nf4(const pvt_weight *w, const pvt_real *W)
{
    for (int g = 0; g < N / 64; g++) {
        double most = 0;
        for (int k = 64 * g; k < 64 * (g + 1); k++) most = fmax(most, fabs((double)W[k]));
        CHECK(((const pvt_real *)w->array[1])[g] == (pvt_real)most);
        for (int k = 64 * g; k < 64 * (g + 1); k++) {
            int code = ((const uint8_t *)w->array[0])[k], best = 7; /* level 7 is 0 */
            for (int c = 0; c < 16 && most > 0; c++)
                if (fabs((double)W[k] - most * (double)pvti_nf4_levels[c]) <
                    fabs((double)W[k] - most * (double)pvti_nf4_levels[best]))
                    best = c;
            CHECK(code == best);
        }
    }
}

static void check_fits(pvt_ctx *ctx)
{
    static pvt_real W[N], H[I * I], V[N];
    make_matrix(W), make_H(H);
    for (int i = 0; i < 2 * ALL; i++) {
        const pvt_real *metric = i % 2 ? H : NULL;
        pvt_fit_stats stats;
        pvt_weight w;
        fit(ctx, all[i / 2], metric, &stats, &w);
        double error = error_of(&w, W, metric);
        CHECK(error > 0 && error < 1);
        CHECK_NEAR(stats.error, error, 1e-4 * error + 1e-8);
        if (w.format.kind == PVT_FORMAT_INT) check_fit_int(&w, W);
        if (w.format.kind == PVT_FORMAT_NF4) check_fit_nf4(&w, W);
        if (w.format.kind == PVT_FORMAT_INT_SYMMETRIC) check_fit_signed(&w, W, 1 << (w.format.bits - 1));
        if (w.format.kind == PVT_FORMAT_Q2_0) check_fit_signed(&w, W, 1);
        pvt_weight_dequantize(&w, V);
        if (w.format.kind != PVT_FORMAT_AQLM) { /* zeros stay; what is huge is off by half a step at most */
            double span = 1010.0 / ((1 << w.format.bits) - 1);
            for (int k = 0; k < 64; k++) CHECK(V[I + k] == 0);
            CHECK(fabs((double)V[4 * I + 70] - 1000) <= (w.format.kind == PVT_FORMAT_NF4 ? 0 : 0.501 * span));
        }
        pvt_weight_free(&w);
    }
}

/* No number that is none, and no H that is none, gets by. */
static void check_fits_refused(pvt_ctx *ctx)
{
    static pvt_real W[N], H[I * I];
    for (int i = 0; i < 4 * ALL; i++) {
        pvt_format f = parse(ctx, all[i / 4]);
        int64_t before = pvt_ctx_get_info(ctx).bytes_now;
        pvt_fit_desc d;
        pvt_weight w;
        memset(&d, 0, sizeof d), memset(&w, 0x55, sizeof w);
        d.name = "some weight";
        make_matrix(W), make_H(H);
        if (i % 4 == 0) W[N - 1] = (pvt_real)NAN;
        if (i % 4 == 1) W[5] = (pvt_real)INFINITY;
        if (i % 4 == 2) H[3 * I + 3] = (pvt_real)NAN;
        if (i % 4 == 3) W[N - 70] = (pvt_real)-INFINITY;
        CHECK(pvt_weight_fit(ctx, W, O, I, H, &f, &d, NULL, &w) == PVT_ERR_NUMERIC);
        CHECK(strstr(pvt_ctx_error(ctx), "some weight") != NULL);
        CHECK(!w.array[0] && !w.kind && pvt_ctx_get_info(ctx).bytes_now == before);
    }
}

/* What bitsandbytes' rule gives, computed elsewhere: exact codes. */
static void check_golden(pvt_ctx *ctx)
{
    pvt_tensors *file;
    pvt_format f = parse(ctx, "nf4");
    static pvt_real W[16 * 128], V[16 * 128];
    pvt_weight w;
    if (pvt_tensors_open(ctx, NF4_GOLDEN, &file) != PVT_OK) {
        SKIP(NF4_GOLDEN " is not there");
        return;
    }
    pvt_array weight = pvt_tensors_get(file, pvt_tensors_find(file, "weight")),
                       codes = pvt_tensors_get(file, pvt_tensors_find(file, "codes"));
    pvt_array scales = pvt_tensors_get(file, pvt_tensors_find(file, "absmax")),
                       dequant = pvt_tensors_get(file, pvt_tensors_find(file, "dequant"));
    CHECK(weight.bytes == sizeof W && codes.bytes == 16 * 128 && scales.bytes == 32 * sizeof(pvt_real));
    memcpy(W, weight.data, sizeof W);
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, 16, 128, NULL, &f, NULL, NULL, &w));
    CHECK(memcmp(w.array[0], codes.data, (size_t)codes.bytes) == 0);
    CHECK(memcmp(w.array[1], scales.data, (size_t)scales.bytes) == 0);
    pvt_weight_dequantize(&w, V);
    memcpy(W, dequant.data, sizeof W);
    for (int i = 0; i < 16 * 128; i++) CHECK_NEAR(V[i], W[i], 1e-6 * fabs((double)W[i]));
    pvt_weight_free(&w);
    pvt_tensors_close(file);
}

/* ---- rectangles, rows, arrays ---- */

static void check_tiles(pvt_ctx *ctx, const char *format)
{
    static pvt_real W[N], tile[N];
    int64_t og, ig, wrong = 0;
    pvt_weight w;
    fit(ctx, format, NULL, NULL, &w);
    pvt_weight_dequantize(&w, W);
    pvti_group_of(&w, &og, &ig);
    for (int64_t r0 = 0; r0 < O; r0++)
        for (int64_t r1 = r0 + 1; r1 <= PVTI_MIN(O, r0 + 3); r1++)
            for (int64_t c0 = 0; c0 < I; c0++)
                for (int64_t c1 = c0 + 1; c1 <= I; c1++) {
                    int64_t ld = c1 - c0 + 1;
                    /* behind a row nothing is touched */
                    for (int64_t r = 0; r < r1 - r0; r++) tile[r * ld + ld - 1] = 12345;
                    w.kind->tile(&w, tile, ld, r0, r1, c0, c1);
                    for (int64_t r = 0; r < r1 - r0; r++)
                        wrong += memcmp(tile + r * ld, W + (r0 + r) * I + c0, (size_t)(c1 - c0) * sizeof *W) != 0 ||
                                 tile[r * ld + ld - 1] != 12345;
                }
    CHECK(wrong == 0);
    pvt_weight_free(&w);
}

static void check_views(pvt_ctx *ctx, const char *format)
{
    static pvt_real W[N], V[N];
    static const int32_t rows[4] = {5, 0, 5, 2};
    pvt_weight w, view;
    fit(ctx, format, NULL, NULL, &w);
    int step = w.format.out_group;
    pvt_weight_dequantize(&w, W);
    for (int o = 0; o < O; o++)
        for (int n = 1; n <= O - o; n++) {
            bool whole = o % step == 0 && n % step == 0;
            CHECK((pvt_weight_rows(&w, o, n, &view) == PVT_OK) == whole);
            if (!whole) continue;
            memset(V, 0, sizeof V);
            pvt_weight_dequantize(&view, V);
            CHECK(memcmp(V, W + o * I, (size_t)n * I * sizeof *V) == 0);
            pvt_weight_free(&view);
        }
    CHECK(pvt_weight_rows(&w, -step, step, &view) == PVT_ERR_ARGUMENT && pvt_weight_rows(&w, 0, O + step, &view) == PVT_ERR_ARGUMENT);
    CHECK(pvt_weight_rows(&w, O, step, &view) == PVT_ERR_ARGUMENT && pvt_weight_rows(&w, 0, 0, &view) == PVT_ERR_ARGUMENT);
    pvt_weight_embedding(V, &w, rows, 4);
    for (int i = 0; i < 4; i++) CHECK(memcmp(V + i * I, W + rows[i] * I, I * sizeof *V) == 0);
    pvt_weight_free(&w);
}

static void check_arrays(pvt_ctx *ctx, const char *format)
{
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_weight w, again;
    fit(ctx, format, NULL, NULL, &w);
    int n = pvt_weight_arrays(&w, arrays), bits = w.format.bits;
    CHECK(strcmp(arrays[0].name, "codes") == 0 && arrays[0].role == PVT_ARRAY_CODE && arrays[0].dtype == PVT_U8 && arrays[0].bits == bits);
    for (int i = 1; i < n; i++) CHECK(arrays[i].role == PVT_ARRAY_VALUE && arrays[i].dtype == PVTI_DTYPE_REAL && arrays[i].bits == 16);
    CHECK_OK(ctx, pvt_weight_from_arrays(ctx, &w.format, O, I, arrays, n, "w", &again));
    CHECK(same_arrays(&w, &again));
    pvt_weight_free(&again);
    if (bits < 8) {
        uint8_t *codes = (uint8_t *)w.array[0] + arrays[0].bytes - 1;
        *codes = (uint8_t)(1 << bits);
        CHECK(pvt_weight_from_arrays(ctx, &w.format, O, I, arrays, n, "mine", &again) == PVT_ERR_ARGUMENT);
        CHECK(strstr(pvt_ctx_error(ctx), "mine: code") && strstr(pvt_ctx_error(ctx), "does not fit") && !again.array[0]);
        *codes = 0;
    }
    arrays[n - 1].shape[0]++;
    CHECK(pvt_weight_from_arrays(ctx, &w.format, O, I, arrays, n, "mine", &again) == PVT_ERR_ARGUMENT);
    CHECK(strstr(pvt_ctx_error(ctx), "shape") != NULL);
    CHECK(pvt_weight_from_arrays(ctx, &w.format, O, I, arrays, n - 1, "mine", &again) == PVT_ERR_ARGUMENT);
    arrays[n - 1].shape[0]--, ((pvt_real *)w.array[n - 1])[0] = (pvt_real)NAN;
    CHECK(pvt_weight_from_arrays(ctx, &w.format, O, I, arrays, n, "mine", &again) == PVT_ERR_NUMERIC);
    pvt_weight_free(&w);
}

static void check_round(pvt_ctx *ctx, const char *format)
{
    pvt_array arrays[PVT_MAX_ARRAYS], kept[PVT_MAX_ARRAYS];
    pvt_weight w, before;
    fit(ctx, format, NULL, NULL, &w);
    int n = pvt_weight_arrays(&w, arrays);
    pvt_real *last = (pvt_real *)w.array[n - 1] + pvti_array_count(&arrays[n - 1]) - 1;
    *last = 1e6;
    CHECK_OK(ctx, pvt_weight_from_arrays(ctx, &w.format, O, I, arrays, n, "w", &before));
    CHECK(pvt_weight_round_f16(&w, "mine") == PVT_ERR_NUMERIC);
    CHECK(strstr(pvt_ctx_error(ctx), "mine.") && strstr(pvt_ctx_error(ctx), arrays[n - 1].name));
    CHECK(same_arrays(&w, &before));
    *last = ((pvt_real *)before.array[n - 1])[pvti_array_count(&arrays[n - 1]) - 1] = (pvt_real)0.1;
    CHECK_OK(ctx, pvt_weight_round_f16(&w, "mine"));
    pvt_weight_arrays(&before, kept);
    CHECK(!same_arrays(&w, &before) && memcmp(w.array[0], before.array[0], (size_t)arrays[0].bytes) == 0);
    for (int a = 1; a < n; a++)
        for (int64_t k = 0; k < pvti_array_count(&arrays[a]); k++)
            CHECK(((pvt_real *)w.array[a])[k] == pvti_f16_to_f32(pvti_f32_to_f16(((const float *)kept[a].data)[k])));
    pvt_weight_free(&w), pvt_weight_free(&before);
}

/* ---- the V step ---- */

/* The M codes of a group as one number. */
static int64_t packed_get(const pvt_weight *w, int64_t group)
{
    int64_t M = w->format.codebooks, packed = 0;
    for (int64_t m = M - 1; m >= 0; m--) packed = packed << w->format.bits | pvti_code_get(w, group * M + m);
    return packed;
}
static void packed_set(pvt_weight *w, int64_t group, int64_t packed)
{
    int64_t M = w->format.codebooks, mask = (1 << w->format.bits) - 1;
    for (int64_t m = 0; m < M; m++) pvti_code_set(w, group * M + m, packed >> m * w->format.bits & mask);
}

/* Squared distance from V [O, I] of a group with these codes. */
static double distance(pvt_weight *w, int64_t group, int64_t packed, const pvt_real *V)
{
    int64_t og, ig, kept = packed_get(w, group);
    pvt_real tile[256];
    double off = 0;
    pvti_group_of(w, &og, &ig);
    int64_t row = group / (I / ig) * og, column = group % (I / ig) * ig;
    packed_set(w, group, packed);
    w->kind->tile(w, tile, ig, row, row + og, column, column + ig);
    packed_set(w, group, kept);
    for (int64_t i = 0; i < og * ig; i++) {
        double d = (double)tile[i] - (double)V[(row + i / ig) * I + column + i % ig];
        off += d * d;
    }
    return off;
}

static void assign(pvt_ctx *ctx, const pvt_weight *w, const pvt_assign *a)
{
    pvt_real *room = (pvt_real *)calloc((size_t)w->kind->assign_room(w) + 16, sizeof *room);
    w->kind->assign(ctx, w, a, room);
    free(room);
}

static pvt_real now[N], target[N];
static uint16_t codes[2 * N];
static float change[N];
static int64_t groups[N];

/* A weight, a target beside it, and a search for all its groups. */
static pvt_assign assign_open(pvt_ctx *ctx, const char *format, pvt_weight *w)
{
    pvt_assign a;
    fit(ctx, format, NULL, NULL, w);
    pvt_weight_dequantize(w, now);
    for (int i = 0; i < N; i++) target[i] = now[i] + (pvt_real)0.4 * bell((uint64_t)(300 + i));
    for (int i = 0; i < N; i++) codes[i] = codes[N + i] = 9999, change[i] = -1;
    memset(&a, 0, sizeof a);
    a.target = target, a.n = pvti_groups(w), a.codes = codes, a.change = change;
    a.beam = w->format.codebooks > 1 ? 1 << w->format.bits : 1; /* so wide, the search over pairs is complete */
    return a;
}

/* Each group on its own has the best of all codes, or with force the best of all others. */
static void check_assign(pvt_ctx *ctx, const char *format, bool force, bool some)
{
    pvt_weight w;
    pvt_assign a = assign_open(ctx, format, &w);
    int64_t M = w.format.codebooks, moves = 0, all_codes = 1 << M * w.format.bits,
            mask = (1 << w.format.bits) - 1;
    for (int64_t k = 0; k < a.n; k++) groups[k] = (k * 5 + 2) % a.n;
    a.force = force;
    if (some) a.groups = groups, a.n /= 3;
    assign(ctx, &w, &a);
    for (int64_t k = 0; k < a.n; k++) {
        int64_t group = some ? groups[k] : k, present = packed_get(&w, group), mine = codes[k * M];
        double best = INFINITY;
        if (M == 2) mine |= (int64_t)codes[k * M + 1] << w.format.bits;
        CHECK(codes[k * M] <= mask && codes[k * M + M - 1] <= mask && (!force || mine != present));
        for (int64_t code = 0; code < all_codes; code++)
            if (!force || code != present) best = fmin(best, distance(&w, group, code, target));
        CHECK(distance(&w, group, mine, target) <= best + 1e-5 * (best + 1e-3));
        double moved = distance(&w, group, mine, now);
        CHECK_NEAR(change[k], moved, 1e-4 * (moved + 1e-2));
        moves += mine != present;
    }
    CHECK(moves > 0 && (force ? moves == a.n : moves < a.n));
    for (int64_t k = a.n * M; k < 2 * N; k++)
        CHECK(codes[k] == 9999 && (k >= N || k < a.n || change[k] == -1)); /* no more */
    pvt_weight_free(&w);
}

/* With the beam of a usual V step no group gets worse. */
static void check_assign_narrow(pvt_ctx *ctx, const char *format)
{
    pvt_weight w;
    pvt_assign a = assign_open(ctx, format, &w);
    int64_t moves = 0;
    a.beam = 1;
    assign(ctx, &w, &a);
    for (int64_t k = 0; k < a.n; k++) {
        int64_t present = packed_get(&w, k), mine = codes[2 * k] | (int64_t)codes[2 * k + 1] << w.format.bits;
        CHECK(distance(&w, k, mine, target) <= distance(&w, k, present, target) + 1e-6);
        moves += mine != present;
    }
    CHECK(moves > 0);
    pvt_weight_free(&w);
}

/* Draws between the two nearest: how often the second, and where the mean is. A target stands at `share` of the way
   between the levels of `low` and of the code above it. */
static void check_rounding(pvt_ctx *ctx, const char *format, int low, double share, double rounding)
{
    enum { COUNT = 256 * 64 };
    static pvt_real W[COUNT], V[COUNT];
    static uint16_t drawn[COUNT];
    pvt_format f = parse(ctx, format);
    pvt_weight w;
    pvt_assign a;
    double mean = 0, up = 0, a_level, b_level;
    for (int i = 0; i < COUNT; i++) W[i] = (pvt_real)(i % 8 == 0 ? 2 : i % 8 == 1 ? -2 : 0);
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, 256, 64, NULL, &f, NULL, NULL, &w));
    for (int i = 0; i < COUNT; i++) pvti_code_set(&w, i, low + 1);
    pvt_weight_dequantize(&w, V), b_level = (double)V[5];
    for (int i = 0; i < COUNT; i++) pvti_code_set(&w, i, low);
    pvt_weight_dequantize(&w, V), a_level = (double)V[5];
    double span = b_level - a_level;
    for (int i = 0; i < COUNT; i++) W[i] = (pvt_real)(a_level + share * span);
    memset(&a, 0, sizeof a);
    a.target = W, a.n = COUNT, a.beam = 1, a.rounding = rounding, a.seed = 5, a.stream = 3, a.codes = drawn;
    assign(ctx, &w, &a);
    for (int i = 0; i < COUNT; i++) {
        CHECK(drawn[i] == low || drawn[i] == low + 1);
        up += drawn[i] != low, mean += drawn[i] == low ? a_level / COUNT : b_level / COUNT;
    }
    double want = pow(share, 1 / rounding) / (pow(share, 1 / rounding) + pow(1 - share, 1 / rounding));
    CHECK_NEAR(up / COUNT, want, 4 * sqrt(want * (1 - want) / COUNT)); /* of a good source 1 in 16,000 is further off */
    if (rounding == 1) CHECK_NEAR(mean, a_level + share * span, 4 * span * sqrt(share * (1 - share) / COUNT));
    a.stream = 4, assign(ctx, &w, &a);
    for (int i = 0; i < COUNT; i++) up -= drawn[i] != low;
    CHECK(up != 0); /* another step draws anew */
    pvt_weight_free(&w);
}

/* ---- products ---- */

static void check_products(pvt_ctx *ctx, const char *format, int n)
{
    static pvt_real W[N], x[17 * I], y[17 * O], dy[17 * O], dx[17 * I], dW[N];
    pvt_weight w;
    double worst = 0;
    fit(ctx, format, NULL, NULL, &w);
    pvt_weight_dequantize(&w, W);
    for (int i = 0; i < n * I; i++) x[i] = bell((uint64_t)(900 + i)), dx[i] = 1;
    for (int i = 0; i < n * O; i++) dy[i] = bell((uint64_t)(90000 + i)), y[i] = -2;
    for (int i = 0; i < N; i++) dW[i] = 3;
    pvt_weight_forward(y, x, &w, n, false);
    pvt_weight_forward(y, x, &w, n, true); /* twice the product */
    pvt_weight_backward(dx, dW, dy, x, &w, n);
    for (int t = 0; t < n; t++)
        for (int o = 0; o < O; o++) {
            double sum = 0, size = 0;
            for (int i = 0; i < I; i++) sum += (double)x[t * I + i] * (double)W[o * I + i], size += fabs((double)W[o * I + i]);
            worst = fmax(worst, fabs((double)y[t * O + o] - 2 * sum) / (size + 1));
        }
    for (int t = 0; t < n; t++)
        for (int i = 0; i < I; i++) {
            double sum = 1, size = 1;
            for (int o = 0; o < O; o++) sum += (double)dy[t * O + o] * (double)W[o * I + i], size += fabs((double)W[o * I + i]);
            worst = fmax(worst, fabs((double)dx[t * I + i] - sum) / size);
        }
    for (int i = 0; i < N; i++) {
        double sum = 3;
        for (int t = 0; t < n; t++) sum += (double)dy[t * O + i / I] * (double)x[t * I + i % I];
        worst = fmax(worst, fabs((double)dW[i] - sum) / n);
    }
    if (!(worst < 2e-6)) printf("%s, %d tokens: off by %g\n", format, n, worst);
    CHECK(worst < 2e-6); /* 17 ulps, of sums of at most 128 */
    pvt_weight_free(&w);
}

/* ---- same bits ---- */

static uint64_t add(uint64_t hash, const void *data, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i++) hash = (hash ^ ((const uint8_t *)data)[i]) * 1099511628211u;
    return hash;
}

/* All that a representation computes, in one number. */
static uint64_t work(pvt_ctx *ctx, const char *format)
{
    static pvt_real H[I * I], W[N], x[17 * I], y[17 * O], dx[17 * I], dW[N], dvalue[PVT_MAX_ARRAYS][N];
    pvt_real *dvalues[PVT_MAX_ARRAYS] = {NULL, dvalue[1], dvalue[2], dvalue[3]};
    pvt_array arrays[PVT_MAX_ARRAYS];
    uint64_t hash = 14695981039346656037u;
    pvt_weight w;
    make_H(H), fit(ctx, format, H, NULL, &w), pvt_weight_free(&w);
    pvt_assign a = assign_open(ctx, format, &w);
    for (int i = 0; i < 17 * I; i++) x[i] = bell((uint64_t)(700 + i)), dx[i] = 0;
    memset(dW, 0, sizeof dW), memset(dvalue, 0, sizeof dvalue);
    for (int rounding = 0; rounding < 2; rounding++) {
        a.rounding = rounding * 0.7;
        assign(ctx, &w, &a);
        hash = add(add(hash, codes, sizeof codes), change, sizeof change);
    }
    pvt_weight_dequantize(&w, W), hash = add(hash, W, sizeof W);
    for (int n = 1; n <= 17; n += 16) {
        pvt_weight_forward(y, x, &w, n, false), hash = add(hash, y, n * O * (int64_t)sizeof *y);
        pvt_weight_backward(dx, dW, y, x, &w, n), hash = add(add(hash, dx, sizeof dx), dW, sizeof dW);
    }
    CHECK_OK(ctx, pvt_weight_chain(dvalues, &w, dW));
    hash = add(hash, dvalue, sizeof dvalue);
    for (int i = pvt_weight_arrays(&w, arrays) - 1; i >= 0; i--) hash = add(hash, arrays[i].data, arrays[i].bytes);
    pvt_weight_free(&w);
    return hash;
}

static void check_same_bits(void)
{
    static const char *const isas[] = {"scalar", "avx2", "avx512"};
    static const int threads[] = {1, 2, 7};
    uint64_t first[ALL];
    for (int i = 0; i < 9; i++) {
        pvt_ctx_desc desc;
        pvt_ctx *ctx;
        memset(&desc, 0, sizeof desc);
        desc.isa = isas[i / 3], desc.n_threads = threads[i % 3];
        if (pvt_ctx_create(&desc, &ctx) != PVT_OK) { /* a processor that has none of these */
            SKIP(isas[i / 3]);
            continue;
        }
        for (int k = 0; k < ALL; k++) {
            uint64_t hash = work(ctx, all[k]);
            if (i == 0) first[k] = hash;
            if (hash != first[k]) printf("%s: %s, %d threads\n", all[k], isas[i / 3], threads[i % 3]);
            CHECK(hash == first[k]);
        }
        pvt_ctx_destroy(ctx);
    }
}

static void check(pvt_ctx *ctx)
{
    check_texts(ctx), check_sizes(ctx), check_bits(ctx);
    check_fits(ctx), check_fits_refused(ctx), check_golden(ctx);
    for (int i = 0; i < ALL; i++) {
        check_tiles(ctx, all[i]), check_views(ctx, all[i]), check_arrays(ctx, all[i]), check_round(ctx, all[i]);
        for (int k = 0; k < 4; k++) check_assign(ctx, all[i], k % 2, k / 2);
        check_products(ctx, all[i], 1), check_products(ctx, all[i], 2), check_products(ctx, all[i], 17);
    }
    check_assign_narrow(ctx, "aqlm:2x4g4"), check_assign_narrow(ctx, "aqlm:2x3g4o2");
    check_rounding(ctx, "int:4g32", 6, 0.3, 1), check_rounding(ctx, "int:4g32", 6, 0.3, 0.35);
    check_rounding(ctx, "int:1g8", 0, 0.6, 1), check_rounding(ctx, "int:8g64", 99, 0.8, 0.5);
    check_rounding(ctx, "int:4g32s", 6, 0.3, 1), check_rounding(ctx, "q2_0", 1, 0.6, 0.5);
    check_rounding(ctx, "nf4", 9, 0.4, 1), check_rounding(ctx, "nf4", 2, 0.55, 0.35);
    check_qat(ctx);
    check_same_bits();
}
#endif

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
