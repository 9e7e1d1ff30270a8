/*  Layer 1 against recorded figures and against brute force: code searches exactly, optimizer and whole PV
    steps within rounding (tests/golden/pv, made by make.py beside it, and larger ones from
    ../shared/golden/pv where they are), k-means and calibration (there alone). */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

#define SMALL "tests/golden/pv/"
#define GOLDEN "../shared/golden/pv/"

static pvt_ctx *ctx;
static pvti_safetensors st;
static pvti_json js;
static pvti_map js_map;

static void golden_open(const char *dir, const char *name)
{
    char path[200];
    snprintf(path, sizeof path, "%s%s.safetensors", dir, name);
    CHECK_OK(ctx, pvti_safetensors_open(ctx, path, &st));
    snprintf(path, sizeof path, "%s%s.json", dir, name);
    CHECK_OK(ctx, pvti_map_open(ctx, path, &js_map));
    CHECK_OK(ctx, pvti_json_parse(ctx, path, (const char *)js_map.data, js_map.size, &js));
}
static void golden_close(void)
{
    pvti_json_free(&js);
    pvti_map_close(ctx, &js_map);
    pvti_safetensors_close(&st);
}
static const pvti_tensor *tensor(const char *format, ...)
{
    char name[200];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    const pvti_tensor *t = pvti_safetensors_find(&st, name);
    if (!t) printf("no tensor %s\n", name), test_failed++;
    return t;
}
/* A tensor as pvt_real; free with free. */
static pvt_real *reals(const pvti_tensor *t)
{
    int64_t n = t->bytes / pvti_dtype_info(t->dtype)->bytes;
    pvt_real *out = (pvt_real *)malloc((size_t)n * sizeof *out + 1);
    pvti_dtype_info(t->dtype)->decode(t->data, out, n);
    return out;
}
static double number(int64_t node, const char *key, double otherwise)
{
    double value;
    return pvti_json_number(&js, pvti_json_find(&js, node, key), &value) ? value : otherwise;
}
static bool flag(int64_t node, const char *key, bool otherwise)
{
    bool value;
    return pvti_json_bool(&js, pvti_json_find(&js, node, key), &value) ? value : otherwise;
}
static int64_t integers(int64_t node, int64_t *out)
{
    int64_t n = 0;
    for (int64_t child = pvti_json_first(&js, node); child >= 0; child = pvti_json_next(&js, child))
        pvti_json_int(&js, child, &out[n++]);
    return n;
}
static double max_difference(const pvt_real *a, const pvti_tensor *t)
{
    pvt_real *b = reals(t);
    int64_t n = t->bytes / pvti_dtype_info(t->dtype)->bytes;
    double worst = 0;
    for (int64_t i = 0; i < n; i++) worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
    free(b);
    return worst;
}

/* A weight from recorded codes, codebooks and scales. */
static void weight_from(pvt_weight *w, const pvti_tensor *codes, const pvti_tensor *codebooks, const pvti_tensor *scales, int64_t I)
{
    pvt_format f;
    int64_t K = codebooks->shape[1];
    memset(&f, 0, sizeof f);
    f.kind = PVT_FORMAT_AQLM, f.codebooks = (int)codebooks->shape[0];
    while (((int64_t)1 << f.bits) < K) f.bits++;
    f.out_group = (int)codebooks->shape[2], f.in_group = (int)codebooks->shape[3];
    CHECK_OK(ctx, pvti_weight_alloc(ctx, &f, scales->shape[0] * f.out_group, I, "golden", w));
    pvt_real *data = reals(codebooks);
    memcpy(pvti_codebooks(w), data, (size_t)(codebooks->bytes / 4) * sizeof *data), free(data);
    data = reals(scales), memcpy(pvti_scales(w), data, (size_t)(scales->bytes / 4) * sizeof *data), free(data);
    for (int64_t i = 0; i < codes->bytes / 4; i++) {
        int32_t code;
        memcpy(&code, codes->data + 4 * i, 4);
        pvti_code_set(w, i, code);
    }
}
static int64_t codes_different(const pvt_weight *w, const pvti_tensor *codes)
{
    int64_t n = 0;
    for (int64_t i = 0; i < codes->bytes / 4; i++) {
        int32_t code;
        memcpy(&code, codes->data + 4 * i, 4);
        n += pvti_code_get(w, i) != code;
    }
    return n;
}

static double squared_error(const pvt_weight *w, const pvt_real *target)
{
    pvt_real *W = (pvt_real *)malloc((size_t)(w->O * w->I) * sizeof *W);
    double sum = 0;
    pvt_weight_dequantize(w, W);
    for (int64_t i = 0; i < w->O * w->I; i++)
        sum += ((double)W[i] - (double)target[i]) * ((double)W[i] - (double)target[i]);
    free(W);
    return sum;
}

/* The V step: a pv with one weight and one search against a given target, no optimizer. */
static void test_beam_l2(const char *dir)
{
    int64_t count = 0;
    golden_open(dir, "beam_l2");
    int64_t cases = pvti_json_find(&js, 0, "cases");
    for (int64_t node = pvti_json_first(&js, cases); node >= 0; node = pvti_json_next(&js, node), count++) {
        char config[40], key[80];
        pvt_pv_desc desc;
        pvt_pv *pv;
        pvt_weight w;
        int64_t order[16], changed;
        uint64_t seed;
        pvti_json_string(&js, pvti_json_find(&js, node, "config"), config, sizeof config);
        pvti_json_string(&js, pvti_json_find(&js, node, "key"), key, sizeof key);
        const pvti_tensor *reference = tensor("%s.reference_weight", config);
        weight_from(&w, tensor("%s.prev_codes", config), tensor("%s.codebooks", config), tensor("%s.scales", config), reference->shape[1]);
        pvt_real *target = reals(reference);
        memset(&desc, 0, sizeof desc);
        desc.beam = (int)number(node, "beam_size", 1), desc.cap = number(node, "max_update_fraction", 1);
        desc.trust = number(node, "trust_ratio", 0), desc.force_update = flag(node, "force_update", false);
        CHECK_OK(ctx, pvt_pv_create(ctx, &desc, &pv));
        CHECK_OK(ctx, pvt_pv_add_weight(pv, &w, "w", NULL));
        int64_t M = integers(pvti_json_find(&js, node, "codebook_order"), order);
        for (seed = 0;; seed++) { /* a seed whose random order is the recorded one */
            int64_t drawn[16];
            pvti_random_order(drawn, M, seed, PVTI_RANDOM_CODEBOOK_ORDER, 65536);
            if (memcmp(drawn, order, (size_t)M * sizeof *order) == 0) break;
        }
        ctx->seed = seed;
        CHECK_OK(ctx, pvt_pv_begin(pv, 1));
        pvti_pv_assign(pv, 0, target);
        pvti_json_int(&js, pvti_json_find(&js, node, "groups_changed"), &changed);
        if (codes_different(&w, tensor("%s", key))) printf("%s: %lld codes differ\n", key, (long long)codes_different(&w, tensor("%s", key)));
        CHECK(codes_different(&w, tensor("%s", key)) == 0);
        CHECK(*pv->changed == changed);
        CHECK_NEAR(squared_error(&w, target), number(node, "sq_error_sum", -1), 1e-5 * number(node, "sq_error_sum", -1));
        pvt_pv_free(pv);
        pvt_weight_free(&w);
        free(target);
    }
    CHECK(count > 10);
    golden_close();
}

static double xtx_loss(const pvt_weight *w, const pvt_real *W, const pvt_real *H, pvt_real *RH)
{
    int64_t O = w->O, I = w->I;
    pvt_real *R = (pvt_real *)malloc((size_t)(O * I) * sizeof *R);
    double loss = 0;
    pvt_weight_dequantize(w, R);
    for (int64_t i = 0; i < O * I; i++) R[i] = W[i] - R[i];
    for (int64_t o = 0; o < O; o++)
        for (int64_t i = 0; i < I; i++) {
            double sum = 0;
            for (int64_t k = 0; k < I; k++) sum += (double)R[o * I + k] * (double)H[k * I + i];
            loss += sum * (double)R[o * I + i];
            if (RH) RH[o * I + i] = (pvt_real)sum;
        }
    free(R);
    return loss;
}

static void test_beam_xtx(void)
{
    int64_t count = 0;
    golden_open(GOLDEN, "beam_xtx");
    int64_t cases = pvti_json_find(&js, 0, "cases");
    for (int64_t node = pvti_json_first(&js, cases); node >= 0; node = pvti_json_next(&js, node), count++) {
        char config[40], key[80];
        pvt_weight w;
        int64_t order[64], books[64 * 16], n = 0;
        pvti_json_string(&js, pvti_json_find(&js, node, "config"), config, sizeof config);
        pvti_json_string(&js, pvti_json_find(&js, node, "key"), key, sizeof key);
        const pvti_tensor *reference = tensor("%s.reference_weight", config);
        weight_from(&w, tensor("%s.prev_codes", config), tensor("%s.codebooks", config), tensor("%s.scales", config), reference->shape[1]);
        pvt_real *W = reals(reference), *H = reals(tensor("%s.XTX", config));
        pvt_real *RH = (pvt_real *)malloc((size_t)(w.O * w.I) * sizeof *RH);
        integers(pvti_json_find(&js, node, "input_group_order"), order);
        int64_t list = pvti_json_find(&js, node, "codebook_orders");
        for (int64_t child = pvti_json_first(&js, list); child >= 0; child = pvti_json_next(&js, child))
            n += integers(child, books + n);
        CHECK_NEAR(xtx_loss(&w, W, H, RH), number(node, "loss_before", -1), 1e-5 * number(node, "loss_before", -1));
        CHECK_OK(ctx, pvti_xtx_run(ctx, &w, H, RH, (int)number(node, "beam_size", 1), order, books));
        CHECK(codes_different(&w, tensor("%s", key)) == 0);
        CHECK_NEAR(xtx_loss(&w, W, H, NULL), number(node, "loss_after", -1), 1e-5 * number(node, "loss_after", -1));
        pvt_weight_free(&w);
        free(W), free(H), free(RH);
    }
    CHECK(count > 5);
    golden_close();
}

/* Optimizer options as the golden files write them. */
static pvt_optimizer optimizer(int64_t node)
{
    pvt_optimizer o;
    int64_t betas = pvti_json_first(&js, pvti_json_find(&js, node, "betas"));
    memset(&o, 0, sizeof o);
    o.lr = number(node, "lr", 0), o.eps = number(node, "eps", 1e-6), o.weight_decay = number(node, "weight_decay", 0);
    pvti_json_number(&js, betas, &o.beta1), pvti_json_number(&js, pvti_json_next(&js, betas), &o.beta2);
    o.rule = flag(node, "lamb", false) ? PVT_OPTIMIZER_LAMB : PVT_OPTIMIZER_ADAM, o.amsgrad = flag(node, "amsgrad", false);
    o.no_debias = !flag(node, "debias", o.rule == PVT_OPTIMIZER_ADAM);
    return o;
}

static void test_adam(const char *dir)
{
    int64_t count = 0;
    golden_open(dir, "adam");
    for (int64_t node = pvti_json_first(&js, pvti_json_find(&js, 0, "cases")); node >= 0;
         node = pvti_json_next(&js, node), count++) {
        const pvti_tensor *grads = tensor("grads");
        int64_t n = grads->shape[1], steps = grads->shape[0];
        pvt_real *p = reals(tensor("param0")), *g = reals(grads);
        pvt_pv_desc desc;
        pvt_pv *pv;
        char key[40];
        double worst = 0;
        pvti_json_string(&js, pvti_json_find(&js, node, "key"), key, sizeof key);
        pvt_real *want = reals(tensor("%s", key));
        if (flag(node, "zero_start", false)) memset(p, 0, (size_t)n * sizeof *p);
        memset(&desc, 0, sizeof desc);
        desc.params = optimizer(node);
        CHECK_OK(ctx, pvt_pv_create(ctx, &desc, &pv));
        CHECK_OK(ctx, pvt_pv_add_param(pv, p, n, "p", NULL));
        for (int64_t s = 0; s < steps; s++) {
            CHECK_OK(ctx, pvt_pv_begin(pv, 1));
            CHECK_OK(ctx, pvt_pv_apply(pv, 0, g + s * n));
            CHECK_OK(ctx, pvt_pv_end(pv, NULL));
            for (int64_t i = 0; i < n; i++) worst = fmax(worst, fabs((double)p[i] - (double)want[s * n + i]));
        }
        CHECK_NEAR(worst, 0, 1e-6);
        pvt_pv_free(pv);
        free(p), free(g), free(want);
    }
    CHECK(count == 13);
    golden_close();
}

static void test_pv_steps(const char *dir, const char *file)
{
    golden_open(dir, file);
    for (int64_t node = pvti_json_first(&js, pvti_json_find(&js, 0, "cases")); node >= 0;
         node = pvti_json_next(&js, node)) {
        int64_t c = 0, orders[3][16], changed[3], M = 0;
        const pvti_tensor *vec0 = tensor("vec0");
        pvt_weight w;
        pvt_real *vec = reals(vec0);
        pvt_pv_desc desc;
        pvt_pv *pv;
        uint64_t seed;
        pvti_json_int(&js, pvti_json_find(&js, node, "case"), &c);
        weight_from(&w, tensor("codes0"), tensor("codebooks0"), tensor("scales0"), (int64_t)number(0, "in_features", 0));
        pvt_real *dequantized = (pvt_real *)malloc((size_t)(w.O * w.I) * sizeof *dequantized);
        memset(&desc, 0, sizeof desc);
        desc.values = optimizer(pvti_json_find(&js, node, "cont")), desc.params = optimizer(pvti_json_find(&js, node, "nonq"));
        desc.codes = optimizer(pvti_json_find(&js, node, "codes"));
        desc.delta = number(node, "delta_decay", 0), desc.beam = (int)number(node, "beam_size", 1);
        desc.cap = number(node, "max_code_change_per_step", 1), desc.trust = number(node, "code_trust_ratio", 0);
        desc.force_update = flag(node, "force_code_update", false);
        CHECK_OK(ctx, pvt_pv_create(ctx, &desc, &pv));
        CHECK_OK(ctx, pvt_pv_add_weight(pv, &w, "w", NULL));
        CHECK_OK(ctx, pvt_pv_add_param(pv, vec, vec0->bytes / 4, "v", NULL));
        int64_t list = pvti_json_find(&js, node, "codebook_orders");
        for (int64_t step = 0, child = pvti_json_first(&js, list); step < 3;
             step++, child = pvti_json_next(&js, child)) M = integers(child, orders[step]);
        integers(pvti_json_find(&js, node, "groups_changed"), changed);
        for (seed = 0;; seed++) {
            bool same = true;
            for (int64_t step = 0; step < 3 && same; step++) {
                int64_t drawn[16];
                pvti_random_order(drawn, M, seed, PVTI_RANDOM_CODEBOOK_ORDER, (uint64_t)(step + 1) * 65536);
                same = memcmp(drawn, orders[step], (size_t)M * sizeof *drawn) == 0;
            }
            if (same) break;
        }
        ctx->seed = seed;
        for (int64_t step = 0; step < 3; step++) {
            char at[32];
            pvt_pv_stats stats;
            snprintf(at, sizeof at, "case%d.step%d", (int)c, (int)step);
            pvt_real *grad = reals(tensor("%s.grad", at));
            pvt_real *dv = reals(tensor("vec_grads"));
            CHECK_OK(ctx, pvt_pv_begin(pv, 1));
            CHECK_OK(ctx, pvt_pv_apply(pv, 0, grad));
            CHECK_NEAR(max_difference(pv->entries[0].dvalues[1], tensor("%s.codebooks_grad", at)), 0, 2e-6);
            CHECK_NEAR(max_difference(pv->entries[0].dvalues[2], tensor("%s.scales_grad", at)), 0, 2e-6);
            CHECK_OK(ctx, pvt_pv_apply(pv, 1, dv + step * (vec0->bytes / 4)));
            CHECK_NEAR(max_difference(vec, tensor("%s.vec", at)), 0, 2e-6);
            CHECK_OK(ctx, pvt_pv_end(pv, &stats));
            CHECK_NEAR(max_difference(pvti_codebooks(&w), tensor("%s.codebooks", at)), 0, 2e-6);
            CHECK_NEAR(max_difference(pvti_scales(&w), tensor("%s.scales", at)), 0, 2e-6);
            CHECK(codes_different(&w, tensor("%s.codes", at)) == 0);
            CHECK(stats.groups_changed == changed[step]);
            if (desc.delta < 1) CHECK_NEAR(max_difference(pv->entries[0].buffer.w, tensor("%s.buffer", at)), 0, 2e-6);
            else CHECK_NEAR(max_difference(pv->target, tensor("%s.search_target", at)), 0, 2e-6);
            pvt_weight_dequantize(&w, dequantized);
            CHECK_NEAR(max_difference(dequantized, tensor("%s.weight", at)), 0, 2e-6);
            free(grad), free(dv);
        }
        pvt_pv_free(pv);
        pvt_weight_free(&w);
        free(vec), free(dequantized);
    }
    golden_close();
}

static pvt_real noise(uint64_t stream, int64_t i)
{
    return (pvt_real)(pvti_random_unit(7, PVTI_RANDOM_USER, stream, (uint64_t)i) + pvti_random_unit(8, PVTI_RANDOM_USER, stream, (uint64_t)i) - 1);
}

/* Every kernel of the nearest entry, to the bit: those too that a better one hides on this machine. The screening in
   integers has to notice each query that it cannot decide. */
enum { NEAREST_N = 200, NEAREST_K = 256 };
typedef struct nearest_case {
    int D, K, n;
    float x[NEAREST_N * 8], table[8 * NEAREST_K], bias[NEAREST_K];
    int32_t best[NEAREST_N], first[NEAREST_N];
} nearest_case;
typedef enum nearest_what {
    PLAIN, PADDED, LARGE_X, LARGE_C, TINY, HUGE_X, ZEROS, TWINS, NEAR_TWINS, CLOSE, LARGE_BIAS, COMMON_BIAS, NO_BIAS, NAN_X,
    NAN_C, NAN_BIAS, NAN_AND_PADDED, INFINITE_BIAS, NONE, ONE, OVERFLOW_DOWN, OVERFLOW_BETWEEN, LIMITS, LIMITS_OF_BIAS,
    ROUNDED_C, ROUNDED_X, WHATS
} nearest_what;

static void nearest_entry(nearest_case *t, int k, float c, float bias) /* all coordinates alike */
{
    for (int d = 0; d < t->D; d++) t->table[d * t->K + k] = c;
    t->bias[k] = bias;
}
static void nearest_make(nearest_case *t, nearest_what what)
{
    float size_x = what == LARGE_X ? 1e6f : what == TINY ? 1e-25f : what == HUGE_X ? 1e25f : 1;
    float size_c = what == LARGE_C ? 1e6f : what == TINY ? 1e-12f : what == COMMON_BIAS ? 1e-4f : 1;
    for (int k = 0; k < t->n * t->D; k++) t->x[k] = what == ZEROS ? 0 : size_x * noise(31, k);
    for (int k = 0; k < t->K; k++) {
        int as = what == TWINS || what == NEAR_TWINS || what == CLOSE ? k / 2 : k;
        t->bias[k] = 0;
        for (int d = 0; d < t->D; d++) {
            float c = what == ZEROS && k % 2 ? 0 : size_c * noise(32, as * t->D + d);
            if (what == NEAR_TWINS && k % 2 && d == k % t->D) c = nextafterf(c, 9);
            if (what == CLOSE && k % 2) c += 2e-5f * noise(34, k * t->D + d); /* 16 bits often err, fp32 does not */
            t->table[d * t->K + k] = c, t->bias[k] = fmaf(c, c, t->bias[k]);
        }
        if (what == LARGE_BIAS) t->bias[k] = 1e4f * noise(33, k);
        if (what == COMMON_BIAS) t->bias[k] += 1000; /* fp32 rounds what integers tell apart */
        if (what == NO_BIAS) t->bias[k] = 0;
        if ((what == PADDED || what == NAN_AND_PADDED) && k >= t->K - 12) t->bias[k] = INFINITY;
        if (what == NONE || (what == ONE && k)) t->bias[k] = INFINITY;
        if (what == OVERFLOW_DOWN || what == OVERFLOW_BETWEEN)
            nearest_entry(t, k, 0, what == OVERFLOW_DOWN ? 0 : 3e38f);
    }
    if (what == NAN_X) t->x[t->D] = NAN, t->x[3 * t->D + 1] = -INFINITY, t->x[5 * t->D + 2] = 3e38f;
    if (what == NAN_C) t->table[3] = NAN;
    if (what == NAN_BIAS || what == NAN_AND_PADDED) t->bias[5] = -NAN;
    if (what == INFINITE_BIAS) t->bias[7] = INFINITY, t->bias[9] = -INFINITY;
    if (what >= OVERFLOW_DOWN)
        for (int k = 0; k < t->n * t->D; k++)
            t->x[k] = what >= ROUNDED_X ? 0.49f : what >= LIMITS ? -11561 : k % t->D ? 0 : -1e19f;
    if (what >= LIMITS)
        for (int k = 0; k < t->K; k++) nearest_entry(t, k, 0, 1e6f);
    if (what == OVERFLOW_DOWN) /* -4e38 and -4.5e38: both -infinity */
        t->table[0] = 1e19f, t->table[1] = 1.5e19f, t->bias[0] = t->bias[1] = -3e38f;
    if (what == OVERFLOW_BETWEEN) { /* 3e38 + 1.2e38 - 1.3e38: infinite on the way */
        t->table[0] = 1.2e19f, t->table[t->K] = 1.3e19f;
        for (int k = 0; k < t->n; k++) t->x[k * t->D] = 1e19f, t->x[k * t->D + 1] = -1e19f;
    }
    if (what == LIMITS || what == LIMITS_OF_BIAS) { /* sums of nearly 2^31, of both signs: 8 * 11561^2 + 2^30 */
        float bias = what == LIMITS ? 1073741824.0f : 1.9e9f;
        nearest_entry(t, 4, 11561, -bias);
        nearest_entry(t, 5, -11561, bias);
        nearest_entry(t, 6, 11561, -bias + 128);
    }
    if (what == ROUNDED_C) { /* 1000 and 1001 in integers, and the first is the best in truth */
        nearest_entry(t, 7, 1000.49f, -0.1f * 11561 * (float)t->D);
        nearest_entry(t, 8, 1000.51f, 0);
        t->table[9] = -20000; /* so that b = 1 */
    }
    if (what == ROUNDED_X) { /* 0 in integers, so that only the bias counts */
        nearest_entry(t, 7, -7000, 0);
        nearest_entry(t, 8, 7000, -0.9f * 0.49f * 14000 * (float)t->D);
        t->x[t->D] = 20000; /* so that a = 1, in that query's block */
    }
}
static void test_nearest(void)
{
    static const struct {
        int isa;
        void (*nearest)(int32_t *, const float *, int64_t, const float *, const float *, int64_t, int64_t);
    } kernels[] = {
        {PVTI_SCALAR, pvti_nearest},
#if PVTI_X86
        {PVTI_AVX2, pvti_nearest_avx2}, {PVTI_AVX512, pvti_nearest_fp32_avx512}, {PVTI_AVX512, pvti_nearest_avx512},
#elif PVTI_A64
        {PVTI_NEON, pvti_nearest_neon},
#endif
    };
    static const int shapes[][3] = {{8, 256, 200}, {8, 256, 129}, {8, 112, 97}, {8, 64, 24}, {8, 48, 70}, {8, 16, 7}, {6, 256, 67}};
    static nearest_case t;
    for (int s = 0; s < PVTI_COUNT(shapes); s++)
        for (int what = 0; what < WHATS; what++) {
            t.D = shapes[s][0], t.K = shapes[s][1], t.n = shapes[s][2];
            nearest_make(&t, (nearest_what)what);
            for (int k = 0; k < PVTI_COUNT(kernels) && kernels[k].isa <= pvti_isa_detect(); k++) {
                memset(t.best, 0xff, sizeof t.best);
                kernels[k].nearest(t.best, t.x, t.n, t.table, t.bias, t.D, t.K);
                if (k == 0) memcpy(t.first, t.best, sizeof t.best);
                CHECK(memcmp(t.first, t.best, sizeof t.best) == 0);
            }
            for (int i = 0; i < t.n; i++) CHECK(t.best[i] >= 0 && t.best[i] < (what == PADDED ? t.K - 12 : t.K));
        }
}

static void test_kmeans(void)
{
    golden_open(GOLDEN, "kmeans");
    const pvti_tensor *data = tensor("data");
    for (int64_t node = pvti_json_first(&js, pvti_json_find(&js, 0, "runs")); node >= 0;
         node = pvti_json_next(&js, node)) {
        pvti_kmeans s;
        int64_t steps = 0, n = data->shape[0], wrong = 0;
        int32_t index;
        pvt_real *x = reals(data), *centroids = reals(tensor("init"));
        int32_t *assigned = (int32_t *)malloc((size_t)n * 4);
        pvti_json_int(&js, pvti_json_find(&js, node, "max_iter"), &steps);
        memset(&s, 0, sizeof s);
        s.ctx = ctx, s.x = x, s.rows = n, s.GI = 1, s.D = data->shape[1], s.K = 16, s.centroids = centroids, s.assigned = assigned;
        CHECK_OK(ctx, pvti_kmeans_run(&s, (int)steps));
        CHECK_NEAR(max_difference(centroids, tensor("clusters.%d", (int)steps)), 0, 1e-5);
        for (int64_t i = 0; i < n; i++) {
            memcpy(&index, tensor("indices.%d", (int)steps)->data + 4 * i, 4);
            wrong += index != assigned[i];
        }
        CHECK(wrong == 0);
        free(x), free(centroids), free(assigned);
    }
    golden_close();
}

/* The reference's calibration of one layer: Adam with amsgrad on codebooks and scales by the
   library's chain rule, then its search, in the recorded orders. */
static void test_calibration(void)
{
    int64_t at = 0;
    pvt_weight w;
    pvt_pv_desc desc;
    pvt_pv *pv;
    golden_open(GOLDEN, "calibration");
    int64_t O = (int64_t)number(0, "out_features", 0), I = (int64_t)number(0, "in_features", 0);
    weight_from(&w, tensor("codes0"), tensor("codebooks0"), tensor("scales0"), I);
    pvt_real *W = reals(tensor("reference_weight")), *H = reals(tensor("XTX")),
                  *RH = (pvt_real *)malloc((size_t)(O * I) * sizeof *RH);
    pvt_real *dC = (pvt_real *)malloc((size_t)(2 * 16 * 4) * sizeof *dC),
                   *dS = (pvt_real *)malloc((size_t)O * sizeof *dS);
    int64_t n_loss = tensor("losses")->bytes / 8;
    double *losses = (double *)malloc((size_t)n_loss * 8);
    memcpy(losses, tensor("losses")->data, (size_t)n_loss * 8);
    memset(&desc, 0, sizeof desc);
    desc.params = optimizer(0), desc.params.eps = 1e-8;
    CHECK_OK(ctx, pvt_pv_create(ctx, &desc, &pv));
    CHECK_OK(ctx, pvt_pv_add_param(pv, pvti_codebooks(&w), 2 * 16 * 4, "codebooks", NULL));
    CHECK_OK(ctx, pvt_pv_add_param(pv, pvti_scales(&w), O, "scales", NULL));
    int64_t node = pvti_json_first(&js, pvti_json_find(&js, 0, "orders"));
    for (int64_t epoch = 0; epoch < 3; epoch++, node = pvti_json_next(&js, node)) {
        int64_t order[64], books[64 * 16], n = 0;
        for (int64_t step = 0; step < 15; step++) {
            double loss = xtx_loss(&w, W, H, RH) / (double)O;
            pvt_real *dvalues[PVT_MAX_ARRAYS] = {NULL, dC, dS, NULL};
            CHECK_NEAR(loss, losses[at], 1e-5 * losses[at]);
            at++;
            for (int64_t i = 0; i < O * I; i++) RH[i] *= (pvt_real)(-2.0 / (double)O);
            memset(dC, 0, (size_t)(2 * 16 * 4) * sizeof *dC), memset(dS, 0, (size_t)O * sizeof *dS);
            CHECK_OK(ctx, pvt_weight_chain(dvalues, &w, RH));
            if (at == 1) CHECK_NEAR(max_difference(dC, tensor("first.codebooks_grad")), 0, 1e-5);
            if (at == 1) CHECK_NEAR(max_difference(dS, tensor("first.scales_grad")), 0, 1e-5);
            CHECK_OK(ctx, pvt_pv_begin(pv, 1));
            CHECK_OK(ctx, pvt_pv_apply(pv, 0, dC));
            CHECK_OK(ctx, pvt_pv_apply(pv, 1, dS));
            CHECK_OK(ctx, pvt_pv_end(pv, NULL));
        }
        CHECK_NEAR(max_difference(pvti_codebooks(&w), tensor("epoch%d.codebooks", (int)epoch)), 0, 1e-5);
        CHECK_NEAR(max_difference(pvti_scales(&w), tensor("epoch%d.scales", (int)epoch)), 0, 1e-5);
        integers(pvti_json_find(&js, node, "input_group_order"), order);
        for (int64_t child = pvti_json_first(&js, pvti_json_find(&js, node, "codebook_orders")); child >= 0;
             child = pvti_json_next(&js, child)) n += integers(child, books + n);
        xtx_loss(&w, W, H, RH);
        CHECK_OK(ctx, pvti_xtx_run(ctx, &w, H, RH, (int)number(0, "beam_size", 1), order, books));
        CHECK(codes_different(&w, tensor("epoch%d.codes", (int)epoch)) == 0);
    }
    CHECK_NEAR(xtx_loss(&w, W, H, RH) / (double)O, losses[at], 1e-5 * losses[at]);
    pvt_pv_free(pv);
    pvt_weight_free(&w);
    free(W), free(H), free(RH), free(dC), free(dS), free(losses);
    golden_close();
}

static void test_bits_per_parameter(void)
{
    pvti_map map;
    CHECK_OK(ctx, pvti_map_open(ctx, GOLDEN "bits.json", &map));
    CHECK_OK(ctx, pvti_json_parse(ctx, "bits.json", (const char *)map.data, map.size, &js));
    for (int64_t node = pvti_json_first(&js, 0); node >= 0; node = pvti_json_next(&js, node)) {
        pvt_format f;
        memset(&f, 0, sizeof f);
        f.kind = PVT_FORMAT_AQLM, f.codebooks = (int)number(node, "num_codebooks", 0), f.bits = (int)number(node, "nbits_per_codebook", 0);
        f.in_group = (int)number(node, "in_group_size", 0), f.out_group = (int)number(node, "out_group_size", 0);
        CHECK_NEAR(pvt_format_bits(&f, (int64_t)number(node, "out_features", 0), (int64_t)number(node, "in_features", 0)),
                   number(node, "bits_per_parameter", -1), 1e-12);
    }
    pvti_json_free(&js);
    pvti_map_close(ctx, &map);
}

/* ---- what a bare machine can check ---- */

static void random_weight(pvt_weight *w, const char *text, int64_t O, int64_t I)
{
    pvt_format f;
    CHECK_OK(ctx, pvt_format_parse(ctx, text, &f));
    CHECK_OK(ctx, pvti_weight_alloc(ctx, &f, O, I, "random", w));
    for (int64_t i = 0; i < f.codebooks * pvti_entries(w) * pvti_group_dim(w); i++)
        pvti_codebooks(w)[i] = noise(1, i);
    for (int64_t i = 0; i < O / f.out_group; i++) pvti_scales(w)[i] = 1 + noise(2, i) / 2;
    for (int64_t i = 0; i < O * I / pvti_group_dim(w) * f.codebooks; i++)
        pvti_code_set(w, i, (int64_t)(pvti_random(3, PVTI_RANDOM_USER, 4, (uint64_t)i) % (uint64_t)pvti_entries(w)));
}

/* With the beam as wide as a codebook of two, the search is exhaustive: compare all K^M. */
static void test_brute_force(void)
{
    pvt_weight w;
    pvt_pv_desc desc;
    pvt_pv *pv;
    pvt_real target[6 * 12], group[6];
    int64_t wrong = 0;
    random_weight(&w, "aqlm:2x4g6", 6, 12);
    for (int64_t i = 0; i < 6 * 12; i++) target[i] = 2 * noise(5, i);
    memset(&desc, 0, sizeof desc);
    desc.cap = 1, desc.beam = 16;
    CHECK_OK(ctx, pvt_pv_create(ctx, &desc, &pv));
    CHECK_OK(ctx, pvt_pv_add_weight(pv, &w, "w", NULL));
    CHECK_OK(ctx, pvt_pv_begin(pv, 1));
    pvti_pv_assign(pv, 0, target);
    for (int64_t g = 0; g < 12; g++) {
        double best = 1e30, ours = 0;
        const pvt_real *t = target + g / 2 * 12 + g % 2 * 6;
        for (int64_t k0 = 0; k0 < 16; k0++)
            for (int64_t k1 = 0; k1 < 16; k1++) {
                double sum = 0;
                for (int64_t a = 0; a < 6; a++) {
                    double d = (double)t[a] - (double)pvti_scales(&w)[g / 2] * ((double)pvti_codebooks(&w)[k0 * 6 + a] + (double)pvti_codebooks(&w)[(16 + k1) * 6 + a]);
                    sum += d * d;
                }
                best = fmin(best, sum);
            }
        PVTI_CALL(ctx, decode)(group, 6, &w, g / 2, g % 2, g % 2 + 1, true);
        for (int64_t a = 0; a < 6; a++)
            ours += ((double)t[a] - (double)group[a]) * ((double)t[a] - (double)group[a]);
        wrong += ours > best * (1 + 1e-5);
    }
    CHECK(wrong == 0);
    pvt_pv_free(pv);
    pvt_weight_free(&w);
}

/* Selection: the k largest keys, largest first, ties by index. */
static void test_select(void)
{
    int64_t n = 1000, ks[4] = {1, 10, 500, 1000}, wrong = 0;
    float *keys = (float *)malloc((size_t)n * 4);
    int64_t *selected = (int64_t *)malloc((size_t)n * 8);
    uint64_t *work = (uint64_t *)malloc((size_t)n * 8), *more_work = (uint64_t *)malloc((size_t)n * 8);
    for (int64_t i = 0; i < n; i++)
        keys[i] = (float)(pvti_random(1, PVTI_RANDOM_USER, 9, (uint64_t)i) % 97) * (i % 3 == 0 ? 1e-20f
                                                                                               : 1.0f);
    for (int64_t j = 0; j < 4; j++) {
        pvti_group_select(ctx, selected, keys, n, ks[j], work, more_work);
        int64_t larger = 0;
        for (int64_t i = 1; i < ks[j]; i++) {
            float a = keys[selected[i - 1]], b = keys[selected[i]];
            wrong += !(a > b || (a == b && selected[i - 1] < selected[i]));
        }
        for (int64_t i = 0; i < n; i++) larger += keys[i] > keys[selected[ks[j] - 1]];
        wrong += larger > ks[j] - 1; /* nobody left out is larger than the last one in */
    }
    CHECK(wrong == 0);
    CHECK(pvti_share(0.01, 100) == 1 && pvti_share(0.1, 40) == 4 && pvti_share(0.1, 41) == 5 && pvti_share(1, 77) == 77 && pvti_share(1e-9, 5) == 1);
    free(keys), free(selected), free(work), free(more_work);
}

/* The same fit and PV steps to the bit for kernel sets, threads and formats. */
static uint64_t work_hash(const char *isa, int threads, const char *format, int beam, bool metric)
{
    pvt_ctx_desc cd;
    pvt_ctx *saved = ctx;
    pvt_fit_desc fd;
    pvt_pv_desc pd;
    pvt_format f;
    pvt_weight w;
    pvt_pv *pv;
    enum { O = 36, I = 48 };
    pvt_real *W = (pvt_real *)malloc(O * I * sizeof *W), *H = (pvt_real *)malloc(I * I * sizeof *H);
    uint64_t hash = 14695981039346656037u;
    memset(&cd, 0, sizeof cd), memset(&fd, 0, sizeof fd), memset(&pd, 0, sizeof pd);
    cd.n_threads = threads, cd.seed = 5, cd.isa = isa;
    CHECK(pvt_ctx_create(&cd, &ctx) == PVT_OK);
    for (int64_t i = 0; i < O * I; i++) W[i] = noise(21, i);
    for (int64_t i = 0; i < I; i++)
        for (int64_t j = 0; j < I; j++)
            H[i * I + j] = (pvt_real)(i == j ? (double)(2 + i % 5) : 0.5 / (1 + fabs((double)(i - j))));
    CHECK_OK(ctx, pvt_format_parse(ctx, format, &f));
    fd.beam = beam, fd.epochs = 3;
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, O, I, metric ? H : NULL, &f, &fd, NULL, &w));
    pd.beam = beam, pd.cap = 0.3, pd.trust = 0.5, pd.codes.lr = 0.05, pd.values.rule = PVT_OPTIMIZER_LAMB;
    pd.rounding = beam == 2 ? 0.7 : 0;
    CHECK_OK(ctx, pvt_pv_create(ctx, &pd, &pv));
    pvt_weight huge = w; /* refused before any of its numbers is read */
    huge.O = (int64_t)1 << 29, huge.I = (int64_t)1 << 29;
    CHECK(pvt_pv_add_weight(pv, &huge, "huge", NULL) == PVT_ERR_UNSUPPORTED);
    CHECK(strstr(pvt_ctx_error(ctx), "pv: huge has 2^32 groups or more") != NULL);
    CHECK_OK(ctx, pvt_pv_add_weight(pv, &w, "w", NULL));
    for (int64_t step = 0; step < 3; step++) {
        for (int64_t i = 0; i < O * I; i++) W[i] = noise(30 + (uint64_t)step, i);
        CHECK_OK(ctx, pvt_pv_begin(pv, 1));
        CHECK_OK(ctx, pvt_pv_apply(pv, 0, W));
        CHECK_OK(ctx, pvt_pv_end(pv, NULL));
    }
    pvt_weight_dequantize(&w, W);
    for (int64_t i = 0; i < (int64_t)(O * I * sizeof *W); i++)
        hash = (hash ^ ((const uint8_t *)W)[i]) * 1099511628211u;
    pvt_pv_free(pv);
    pvt_weight_free(&w);
    pvt_ctx_destroy(ctx);
    free(W), free(H);
    ctx = saved;
    return hash;
}

static void test_same_bits(void)
{
    static const struct { const char *format; int beam; bool metric; } cases[] = {
        {"aqlm:2x8g8", 1, true}, {"aqlm:2x4g4", 3, true}, {"aqlm:3x3g4o2", 2, true}, {"aqlm:1x9g6", 1, true}, {"aqlm:2x5g8o3", 1, false}};
    static const int threads[] = {1, 2, 3, 7};
    static const char *const sets[] = TEST_SETS;
    for (int64_t c = 0; c < PVTI_COUNT(cases); c++) {
        uint64_t want = work_hash(sets[0], 1, cases[c].format, cases[c].beam, cases[c].metric);
        for (int64_t isa = 0; isa < PVTI_COUNT(sets); isa++)
            for (int64_t t = isa == 0 ? 2 : 0; t < PVTI_COUNT(threads); t++)
                CHECK(work_hash(sets[isa], threads[t], cases[c].format, cases[c].beam, cases[c].metric) == want);
    }
}

/* ---- the strategies of the paper's Table 1 ---- */

static void test_strategy_names(void)
{
    static const struct { const char *name; pvt_strategy strategy; double cap, delta, rounding; } rows[] = {
        {"subspace-ste", PVT_STRATEGY_SUBSPACE_STE, 0.01, 0, 0}, {"continuous", PVT_STRATEGY_CONTINUOUS, 0.01, 0, 0},
        {"linearized", PVT_STRATEGY_LINEARIZED, 1, 1, 0},        {"stochastic", PVT_STRATEGY_STOCHASTIC, 1, 1, 0.35},
        {"ste", PVT_STRATEGY_STE, 1, 0, 0},                      {"subspace", PVT_STRATEGY_SUBSPACE, 0.01, 1, 0}};
    static const char *const bad[] = {"", "PV", "pv-linear", "subspace-st", "subspace-ste "};
    pvt_strategy s;
    pvt_pv_desc d;
    pvt_pv *pv;
    for (int i = 0; i < PVTI_COUNT(rows); i++) {
        CHECK_OK(ctx, pvt_strategy_parse(ctx, rows[i].name, &s));
        CHECK(s == rows[i].strategy && strcmp(pvt_strategy_name(s), rows[i].name) == 0);
        memset(&d, 0, sizeof d);
        d.strategy = s;
        d = pvt_pv_resolve(&d);
        CHECK(d.cap == rows[i].cap && d.delta == rows[i].delta && d.rounding == rows[i].rounding);
    }
    CHECK_OK(ctx, pvt_strategy_parse(ctx, "pv", &s));
    CHECK(s == PVT_STRATEGY_SUBSPACE_STE && (int)s == 0); /* zero is the recommended one */
    for (int i = 0; i < PVTI_COUNT(bad); i++) {
        CHECK(pvt_strategy_parse(ctx, bad[i], &s) == PVT_ERR_ARGUMENT);
        CHECK(strstr(pvt_ctx_error(ctx), "subspace, or pv, which is the first") != NULL);
    }
    CHECK(strcmp(pvt_strategy_name((pvt_strategy)1000), "?") == 0 && strcmp(pvt_strategy_name((pvt_strategy)-1), "?") == 0);
    memset(&d, 0, sizeof d);
    d.strategy = (pvt_strategy)1000;
    CHECK(pvt_pv_create(ctx, &d, &pv) == PVT_ERR_ARGUMENT);
    d.strategy = PVT_STRATEGY_STOCHASTIC, d.force_update = true;
    CHECK(pvt_pv_create(ctx, &d, &pv) == PVT_ERR_ARGUMENT && strstr(pvt_ctx_error(ctx), "choose one") != NULL);
    d.force_update = false, d.rounding = -1;
    CHECK(pvt_pv_create(ctx, &d, &pv) == PVT_ERR_ARGUMENT);
    d.rounding = (double)NAN;
    CHECK(pvt_pv_create(ctx, &d, &pv) == PVT_ERR_ARGUMENT);
}

/* One step of Adam at β1 = 0 by gradients ±1 goes lr against the sign of each. What a strategy without a buffer makes of
   it, computed again: per group the nearest entry of the codebook to Ŵ ∓ lr, or one of the two nearest. */
enum { TABLE_O = 40, TABLE_I = 48, TABLE_G = 4, TABLE_K = 16, TABLE_GROUPS = TABLE_O * TABLE_I / TABLE_G };
typedef struct table_step {
    pvt_weight w;
    uint8_t before[TABLE_GROUPS], after[TABLE_GROUPS];
    double target[TABLE_O * TABLE_I];
    pvt_pv_stats stats;
} table_step;

static void table_run(table_step *t, pvt_strategy strategy, double lr, double rounding, int64_t beam)
{
    static pvt_real W[TABLE_O * TABLE_I], dW[TABLE_O * TABLE_I];
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_pv_desc desc;
    pvt_pv *pv;
    random_weight(&t->w, "aqlm:1x4g4", TABLE_O, TABLE_I);
    CHECK(pvt_weight_arrays(&t->w, arrays) == 3 && arrays[0].bytes == TABLE_GROUPS);
    memcpy(t->before, arrays[0].data, TABLE_GROUPS);
    pvt_weight_dequantize(&t->w, W);
    for (int64_t i = 0; i < TABLE_O * TABLE_I; i++) {
        dW[i] = noise(41, i) < 0 ? (pvt_real)-1 : (pvt_real)1;
        t->target[i] = (double)W[i] - lr * (double)dW[i];
    }
    memset(&desc, 0, sizeof desc);
    desc.strategy = strategy, desc.freeze_values = true, desc.rounding = rounding, desc.beam = (int)beam;
    desc.codes.rule = PVT_OPTIMIZER_ADAM, desc.codes.lr = lr, desc.codes.beta2 = 0.95, desc.codes.eps = 1e-12;
    CHECK_OK(ctx, pvt_pv_create(ctx, &desc, &pv));
    CHECK_OK(ctx, pvt_pv_add_weight(pv, &t->w, "w", NULL));
    CHECK_OK(ctx, pvt_pv_begin(pv, 1));
    CHECK_OK(ctx, pvt_pv_apply(pv, 0, dW));
    CHECK_OK(ctx, pvt_pv_end(pv, &t->stats));
    pvt_pv_free(pv);
    memcpy(t->after, arrays[0].data, TABLE_GROUPS);
}

/* The two entries nearest to a group's target, and their distances. */
static void table_nearest(const table_step *t, int64_t g, int best[2], double e[2])
{
    int64_t go = g / (TABLE_I / TABLE_G), j = g % (TABLE_I / TABLE_G);
    e[0] = e[1] = 1e30, best[0] = best[1] = -1;
    for (int k = 0; k < TABLE_K; k++) {
        double sum = 0;
        for (int64_t a = 0; a < TABLE_G; a++) {
            double d = t->target[go * TABLE_I + j * TABLE_G + a] -
                       (double)pvti_scales(&t->w)[go] * (double)pvti_codebooks(&t->w)[k * TABLE_G + a];
            sum += d * d;
        }
        sum = sqrt(sum);
        if (sum < e[0])
            e[1] = e[0], best[1] = best[0], e[0] = sum, best[0] = k;
        else if (sum < e[1])
            e[1] = sum, best[1] = k;
    }
}

static void test_strategy_linearized(void)
{
    table_step t;
    int64_t wrong = 0, moved = 0;
    table_run(&t, PVT_STRATEGY_LINEARIZED, 0.5, 0, 1);
    for (int64_t g = 0; g < TABLE_GROUPS; g++) {
        int best[2];
        double e[2];
        table_nearest(&t, g, best, e);
        wrong += t.after[g] != best[0];
        moved += t.after[g] != t.before[g];
    }
    CHECK(wrong == 0 && moved > TABLE_GROUPS / 4 && moved < TABLE_GROUPS);
    CHECK(t.stats.groups_searched == TABLE_GROUPS && t.stats.groups_changed == moved);
    pvt_weight_free(&t.w);
    table_run(&t, PVT_STRATEGY_LINEARIZED, 1e-3, 0, 1); /* too short a step moves nothing … */
    CHECK(t.stats.groups_searched == TABLE_GROUPS && t.stats.groups_changed == 0);
    pvt_weight_free(&t.w);
    table_run(&t, PVT_STRATEGY_SUBSPACE, 0.5, 0, 1); /* … and the subspace is a hundredth */
    CHECK(t.stats.groups_searched == (TABLE_GROUPS + 99) / 100);
    pvt_weight_free(&t.w);
}

/* The draw is the library's random number of that group, and the share of draws that of the formula. */
static void check_stochastic(double lr, double tau, int64_t beam)
{
    table_step t;
    int64_t wrong = 0, unsure = 0, second = 0;
    double expected = 0, variance = 0;
    table_run(&t, PVT_STRATEGY_STOCHASTIC, lr, tau, beam);
    for (int64_t g = 0; g < TABLE_GROUPS; g++) {
        int best[2];
        double e[2], u = pvti_random_unit(ctx->seed, PVTI_RANDOM_ROUNDING, 65536, (uint64_t)g);
        table_nearest(&t, g, best, e);
        double p = 1 / (1 + pow(e[1] / e[0], 1 / (tau > 0 ? tau : 0.35)));
        expected += p, variance += p * (1 - p);
        second += t.after[g] == best[1];
        if (fabs(u - p) < 1e-3) unsure++;
        else wrong += t.after[g] != best[u < p];
    }
    CHECK(wrong == 0 && unsure < TABLE_GROUPS / 50);
    CHECK(expected > 5); /* else the rest would show nothing */
    CHECK_NEAR(second, expected, 4 * sqrt(variance) + (double)unsure);
    CHECK(t.stats.groups_searched == TABLE_GROUPS);
    pvt_weight_free(&t.w);
}

/* Levels 0 and 1, target 0.3: the mean of many is 0.3, whatever rounding to the nearest would say; and a weight that is
   at its target stays. */
static void check_unbiased(void)
{
    enum { N = 4096 };
    static pvt_real W[N];
    pvt_format f;
    pvt_weight w;
    pvt_pv_desc desc;
    pvt_pv *pv;
    double mean = 0;
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x1g1", &f));
    CHECK_OK(ctx, pvti_weight_alloc(ctx, &f, 1, N, "levels", &w));
    pvti_codebooks(&w)[0] = 0, pvti_codebooks(&w)[1] = 1, pvti_scales(&w)[0] = 1;
    for (int64_t i = 0; i < N; i++) W[i] = (pvt_real)-1;
    memset(&desc, 0, sizeof desc);
    desc.strategy = PVT_STRATEGY_STOCHASTIC, desc.freeze_values = true, desc.rounding = 1;
    desc.codes.rule = PVT_OPTIMIZER_ADAM, desc.codes.lr = 0.3, desc.codes.beta2 = 0.95, desc.codes.eps = 1e-12;
    CHECK_OK(ctx, pvt_pv_create(ctx, &desc, &pv));
    CHECK_OK(ctx, pvt_pv_add_weight(pv, &w, "w", NULL));
    CHECK_OK(ctx, pvt_pv_begin(pv, 0));
    CHECK_OK(ctx, pvt_pv_apply(pv, 0, W));
    CHECK_OK(ctx, pvt_pv_end(pv, NULL));
    for (int64_t i = 0; i < N; i++) mean += (double)pvti_code_get(&w, i) / N;
    CHECK(mean == 0);
    CHECK_OK(ctx, pvt_pv_begin(pv, 1));
    CHECK_OK(ctx, pvt_pv_apply(pv, 0, W));
    CHECK_OK(ctx, pvt_pv_end(pv, NULL));
    for (int64_t i = 0; i < N; i++) mean += (double)pvti_code_get(&w, i) / N;
    /* step 2 of Adam's debiased second moment by equal gradients is lr again */
    CHECK_NEAR(mean, 0.3, 4 * sqrt(0.3 * 0.7 / N));
    pvt_pv_free(pv);
    pvt_weight_free(&w);
}

static void test_strategies(void)
{
    test_strategy_names();
    test_strategy_linearized();
    check_stochastic(0.3, 0, 1);
    check_stochastic(0.3, 1, 1);
    check_stochastic(0.3, 4, 3);
    check_unbiased();
}

static void test_refusals(void)
{
    static const char *const bad[] = {"", "aqlm", "aqlm:", "aqlm:0x8g8", "aqlm:2x17g8", "aqlm:2x8g65", "aqlm:2x8", "aqlm:2x8g8o", "aqlm:2x8g64o8", "aqlm:2x8g8 ", "AQLM:2x8g8", "aqlm:99999999999x8g8"};
    pvt_format f;
    pvt_weight w;
    pvt_real W[24], H[36];
    char text[48];
    for (int64_t i = 0; i < PVTI_COUNT(bad); i++)
        CHECK(pvt_format_parse(ctx, bad[i], &f) == PVT_ERR_ARGUMENT);
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:4x12g6o2", &f));
    pvt_format_text(&f, text);
    CHECK(strcmp(text, "aqlm:4x12g6o2") == 0);
    for (int64_t i = 0; i < 24; i++) W[i] = (pvt_real)(i % 7) - 3;
    for (int64_t i = 0; i < 36; i++) H[i] = i % 7 == 0;
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x2g4", &f));
    CHECK(pvt_weight_fit(ctx, W, 4, 6, H, &f, NULL, NULL, &w) == PVT_ERR_ARGUMENT);
    CHECK(strstr(pvt_ctx_error(ctx), "do not divide") != NULL);
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x2g3", &f));
    W[5] = (pvt_real)NAN;
    CHECK(pvt_weight_fit(ctx, W, 4, 6, H, &f, NULL, NULL, &w) == PVT_ERR_NUMERIC);
    W[5] = 0, H[7] = (pvt_real)INFINITY;
    CHECK(pvt_weight_fit(ctx, W, 4, 6, H, &f, NULL, NULL, &w) == PVT_ERR_NUMERIC);
    memset(H, 0, sizeof H); /* all inputs dead: nothing to fit, nothing breaks */
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, 4, 6, H, &f, NULL, NULL, &w));
    pvt_weight_free(&w);
    memset(W, 0, sizeof W);
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, 4, 6, NULL, &f, NULL, NULL, &w));
    pvti_codebooks(&w)[0] = 70000;
    CHECK(pvt_weight_round_f16(&w, "w") == PVT_ERR_NUMERIC);
    pvt_weight_free(&w);
    CHECK(pvt_ctx_get_info(ctx).bytes_now > 0);
}

/* Beams over groups of 256 numbers: a block of the search has to shrink until its hypotheses fit a worker's scratch,
   or workers would write into each other's. */
static void test_wide_groups(void)
{
    enum { O = 384, I = 128, CODES = O * I / 256 };
    static pvt_real W[O * I], H[I * I];
    uint8_t codes[CODES];
    pvt_ctx_desc desc;
    pvt_fit_desc d;
    pvt_format f;
    memset(&desc, 0, sizeof desc), memset(&d, 0, sizeof d);
    d.epochs = 1, d.kmeans_steps = 1, d.beam = 16;
    for (int64_t i = 0; i < O * I; i++) W[i] = noise(41, i);
    for (int64_t i = 0; i < I * I; i++) H[i] = (pvt_real)(i % (I + 1) == 0) + (pvt_real)0.3;
    for (int threads = 1; threads <= 3; threads += 2) {
        pvt_ctx *own;
        pvt_weight w;
        desc.n_threads = threads;
        CHECK_OK(ctx, pvt_ctx_create(&desc, &own));
        CHECK_OK(own, pvt_format_parse(own, "aqlm:1x8g4o64", &f));
        CHECK_OK(own, pvt_weight_fit(own, W, O, I, H, &f, &d, NULL, &w));
        if (threads == 1) memcpy(codes, w.array[0], sizeof codes);
        CHECK(memcmp(codes, w.array[0], sizeof codes) == 0);
        pvt_weight_free(&w);
        pvt_ctx_destroy(own);
    }
}

/* Whatever allocation of an addition fails: what was added before goes on as if there had been none. */
static void test_failed_addition(void)
{
    static pvt_real dW[24 * 48];
    pvt_result result = PVT_ERR_MEMORY;
    for (int64_t i = 0; i < 24 * 48; i++) dW[i] = noise(51, i);
    for (int64_t fail_at = 0; result != PVT_OK && fail_at < 100; fail_at++) {
        pvt_ctx_desc desc;
        pvt_pv_desc pv_desc;
        pvt_pv_stats stats;
        test_budget budget = {-1, 0, true};
        pvt_ctx *own, *shared = ctx;
        pvt_weight small, large;
        pvt_pv *pv;
        int handle, second;
        memset(&desc, 0, sizeof desc), memset(&pv_desc, 0, sizeof pv_desc);
        desc.n_threads = 1, desc.allocator.alloc = test_budget_alloc, desc.allocator.free = test_budget_free,
        desc.allocator.user = &budget, pv_desc.cap = 1, pv_desc.delta = 0.5;
        CHECK_OK(ctx, pvt_ctx_create(&desc, &own));
        ctx = own;
        random_weight(&small, "aqlm:1x4g4", 8, 8), random_weight(&large, "aqlm:2x4g6", 24, 48);
        CHECK_OK(own, pvt_pv_create(own, &pv_desc, &pv));
        CHECK_OK(own, pvt_pv_add_weight(pv, &small, "small", &handle));
        budget.left = fail_at;
        result = pvt_pv_add_weight(pv, &large, "large", &second);
        budget.left = -1;
        CHECK(result == PVT_OK || result == PVT_ERR_MEMORY);
        CHECK_OK(own, pvt_pv_begin(pv, 1));
        CHECK_OK(own, pvt_pv_apply(pv, handle, dW));
        if (result == PVT_OK) CHECK_OK(own, pvt_pv_apply(pv, second, dW));
        CHECK_OK(own, pvt_pv_end(pv, &stats));
        CHECK(stats.groups == 16 + (result == PVT_OK ? 192 : 0));
        pvt_pv_free(pv), pvt_weight_free(&small), pvt_weight_free(&large);
        pvt_ctx_destroy(own);
        CHECK(budget.live == 0);
        ctx = shared;
    }
    CHECK(result == PVT_OK);
}

int main(void)
{
    if (pvt_ctx_create(NULL, &ctx) != PVT_OK) return 1;
    int64_t bytes = pvt_ctx_get_info(ctx).bytes_now;
    test_beam_l2(SMALL);
    test_adam(SMALL);
    test_pv_steps(SMALL, "pv_step_m1k16g4");
    test_pv_steps(SMALL, "pv_step_m2k8g4og2");
    if (pvti_path_is_directory(ctx, GOLDEN)) {
        test_beam_l2(GOLDEN);
        test_beam_xtx();
        test_adam(GOLDEN);
        test_pv_steps(GOLDEN, "pv_step_m1k16g4");
        test_pv_steps(GOLDEN, "pv_step_m2k16g8");
        test_kmeans();
        test_calibration();
        test_bits_per_parameter();
    } else {
        SKIP("larger recorded figures (not in this repository)");
    }
    test_nearest();
    test_brute_force();
    test_select();
    test_same_bits();
    test_strategies();
    test_refusals();
    test_wide_groups();
    test_failed_addition();
    CHECK(pvt_ctx_get_info(ctx).bytes_now == bytes); /* nothing leaked */
    pvt_ctx_destroy(ctx);
    return test_end();
}
