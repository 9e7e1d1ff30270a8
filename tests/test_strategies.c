/*  What a V step can be made of, each choice by itself: which groups are searched (greedy, uniform, proportional; keys
    with and without second moments) against a count by hand, the plain step against its formula, the search for L against
    the descent test, every strategy on the paper's small quadratic against all combinations of codes, what keeps a buffer
    near its weight, what surrogates make of a step, what is trained and what is not, and that threads, kernels and a
    resume change no bit of it. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

static pvt_ctx *ctx;

/* Uniform in −1 … 1, summed to a hat. */
static pvt_real noise(uint64_t stream, int64_t i)
{
    return (pvt_real)(pvti_random_unit(7, PVTI_RANDOM_USER, stream, (uint64_t)i) +
                      pvti_random_unit(8, PVTI_RANDOM_USER, stream, (uint64_t)i) - 1);
}

static void random_weight(pvt_weight *w, const char *text, int64_t O, int64_t I)
{
    pvt_format f;
    CHECK_OK(ctx, pvt_format_parse(ctx, text, &f));
    CHECK_OK(ctx, pvti_weight_alloc(ctx, &f, O, I, "random", w));
    for (int64_t i = 0; i < f.codebooks * pvti_entries(w) * pvti_group_dim(w); i++) pvti_codebooks(w)[i] = noise(1, i);
    for (int64_t i = 0; i < O / f.out_group; i++) pvti_scales(w)[i] = 1 + noise(2, i) / 2;
    for (int64_t i = 0; i < O * I / pvti_group_dim(w) * f.codebooks; i++)
        pvti_code_set(w, i, (int64_t)(pvti_random(3, PVTI_RANDOM_USER, 4, (uint64_t)i) % (uint64_t)pvti_entries(w)));
}

static pvt_pv *one_weight(const pvt_pv_desc *desc, pvt_weight *w)
{
    pvt_pv *pv = NULL;
    CHECK_OK(ctx, pvt_pv_create(ctx, desc, &pv));
    CHECK_OK(ctx, pvt_pv_add_weight(pv, w, "w", NULL));
    return pv;
}

/* ---- selection ---- */

enum { S_O = 24, S_I = 40, S_G = 4, S_GROUPS = S_O * S_I / S_G };

/* The k groups with the largest keys, as a plain search finds them, the largest first. */
static void brute_select(int64_t *selected, const double *keys, int64_t groups, int64_t k)
{
    for (int64_t i = 0; i < k; i++) {
        selected[i] = -1;
        for (int64_t g = 0; g < groups; g++) {
            bool taken = false;
            for (int64_t j = 0; j < i; j++) taken = taken || selected[j] == g;
            if (!taken && (selected[i] < 0 || keys[g] > keys[selected[i]])) selected[i] = g;
        }
    }
}

static void check_greedy(pvt_key key, bool bf16, bool amsgrad)
{
    static pvt_real W[S_O * S_I], target[S_O * S_I];
    double keys[S_GROUPS];
    int64_t want[S_GROUPS], k = 37;
    pvt_weight w;
    pvt_pv_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.key = key, desc.moments = bf16 ? PVT_BF16 : PVT_DTYPE_NONE, desc.codes.amsgrad = amsgrad;
    random_weight(&w, "aqlm:1x4g4", S_O, S_I);
    pvt_weight_dequantize(&w, W);
    pvt_pv *pv = one_weight(&desc, &w);
    pvt_adam *moments = &pv->entries[0].buffer;
    for (int64_t i = 0; i < S_O * S_I; i++) {
        pvt_real v = (pvt_real)1e-12 * noise(12, i) * noise(12, i);
        if (bf16) ((uint16_t *)moments->v)[i] = pvti_f32_to_bf16((float)v);
        else ((pvt_real *)moments->v)[i] = v;
        if (amsgrad) moments->v_max[i] = v * (1 + noise(13, i)), ((pvt_real *)moments->v)[i] = 7;
        target[i] = W[i] + noise(11, i);
    }
    memset(keys, 0, sizeof keys);
    for (int64_t i = 0; i < S_O * S_I; i++) {
        double d = (double)target[i] - (double)W[i];
        double v = bf16      ? (double)pvti_bf16_to_f32(((uint16_t *)moments->v)[i])
                   : amsgrad ? (double)moments->v_max[i]
                             : (double)((pvt_real *)moments->v)[i];
        double u = key == PVT_KEY_NORM ? 1 : key == PVT_KEY_MOMENT ? v : sqrt(v);
        keys[i / S_I * (S_I / S_G) + i % S_I / S_G] += u * d * d;
    }
    brute_select(want, keys, S_GROUPS, k);
    pvti_pv_select(pv, 0, target, k, 5);
    CHECK(memcmp(want, pv->selected, (size_t)k * sizeof *want) == 0);
    pvt_pv_free(pv), pvt_weight_free(&w);
}

/* Each group k/groups of the time, whatever the keys. */
static void check_uniform(void)
{
    enum { DRAWS = 4000, K = 12 };
    static pvt_real target[2][S_O * S_I];
    static int64_t count[S_GROUPS], first[K];
    double expected = (double)DRAWS * K / S_GROUPS, spread = sqrt(expected * (1 - (double)K / S_GROUPS)), chi = 0;
    int64_t outside = 0, wrong = 0;
    pvt_weight w;
    pvt_pv_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.selection = PVT_SELECT_UNIFORM;
    random_weight(&w, "aqlm:1x4g4", S_O, S_I);
    pvt_pv *pv = one_weight(&desc, &w);
    pvt_weight_dequantize(&w, target[0]); /* all keys 0 */
    for (int64_t i = 0; i < S_O * S_I; i++) target[1][i] = i < S_I ? 100 : target[0][i];
    for (int64_t draw = 0; draw < DRAWS; draw++) {
        pvti_pv_select(pv, 0, target[0], K, (uint64_t)draw);
        memcpy(first, pv->selected, sizeof first);
        pvti_pv_select(pv, 0, target[1], K, (uint64_t)draw);
        wrong += memcmp(first, pv->selected, sizeof first) != 0;
        for (int i = 0; i < K; i++) {
            count[first[i]]++;
            for (int j = 0; j < i; j++) wrong += first[i] == first[j]; /* without replacement */
        }
    }
    for (int64_t g = 0; g < S_GROUPS; g++) {
        double d = (double)count[g] - expected;
        outside += fabs(d) > 4.5 * spread;
        chi += d * d / expected;
    }
    CHECK(wrong == 0 && outside == 0);
    CHECK(chi < 240 + 4 * sqrt(2.0 * 240) && chi > 240 - 5 * sqrt(2.0 * 240)); /* nor more even than chance */
    pvt_pv_free(pv), pvt_weight_free(&w);
}

/* One group of eight, drawn many times: chi-square with 7 degrees of freedom is 24.3 at one in a thousand. */
static void check_proportional(double temperature, double exponent)
{
    enum { DRAWS = 20000 };
    static const double distance[8] = {0.5, 1, 1.5, 2, 0, 3, 0.25, 1};
    pvt_real target[8 * 4];
    double sum = 0, chi = 0;
    int64_t count[8] = {0};
    pvt_weight w;
    pvt_pv_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.selection = PVT_SELECT_PROPORTIONAL, desc.temperature = temperature;
    random_weight(&w, "aqlm:1x4g4", 2, 16);
    pvt_pv *pv = one_weight(&desc, &w);
    pvt_weight_dequantize(&w, target);
    for (int g = 0; g < 8; g++) {
        target[g * 4 + 1] += (pvt_real)(0.6 * distance[g]), target[g * 4 + 2] -= (pvt_real)(0.8 * distance[g]);
        sum += pow(distance[g], exponent);
    }
    for (int64_t draw = 0; draw < DRAWS; draw++) {
        pvti_pv_select(pv, 0, target, 1, (uint64_t)draw);
        count[pv->selected[0]]++;
    }
    CHECK(count[4] == 0);
    for (int g = 0; g < 8; g++) {
        double expected = DRAWS * pow(distance[g], exponent) / sum, d = (double)count[g] - expected;
        if (g != 4) chi += d * d / expected;
    }
    CHECK(chi < 24.3);
    if (!(chi < 24.3)) printf("temperature %g: chi-square %g\n", temperature, chi);
    pvt_pv_free(pv), pvt_weight_free(&w);
}

static void test_selection(void)
{
    pvt_pv_desc d;
    check_greedy(PVT_KEY_NORM, false, false);
    check_greedy(PVT_KEY_MOMENT, false, false);
    check_greedy(PVT_KEY_ROOT_MOMENT, false, false);
    check_greedy(PVT_KEY_MOMENT, true, false);
    check_greedy(PVT_KEY_MOMENT, false, true);
    check_uniform();
    check_proportional(0, 1);
    check_proportional(0.5, 2); /* ‖Δ‖² itself */
    check_proportional(2, 0.5);
    memset(&d, 0, sizeof d);
    d.temperature = 3; /* alone it has always meant a draw */
    CHECK(pvt_pv_resolve(&d).selection == PVT_SELECT_PROPORTIONAL && pvt_pv_resolve(&d).temperature == 3);
    CHECK(pvt_pv_resolve(NULL).selection == PVT_SELECT_GREEDY && pvt_pv_resolve(NULL).temperature == 0);
}

/* ---- a quadratic: φ = ½·Σ_rows (w − w*)·H·(w − w*)ᵀ, as a calibration's ---- */

enum { Q_O = 12, Q_I = 16 };
typedef struct quadratic {
    pvt_weight *w;
    double H[Q_I * Q_I], best[Q_O * Q_I], largest; /* eigenvalue, at most */
    int64_t calls;
    int64_t nan_at; /* φ is NaN from this call on; 0: never */
} quadratic;

static double quadratic_at(const quadratic *q, const pvt_real *W, pvt_real *G)
{
    int64_t O = q->w->O, I = q->w->I;
    double loss = 0;
    for (int64_t o = 0; o < O; o++)
        for (int64_t i = 0; i < I; i++) {
            double sum = 0;
            for (int64_t k = 0; k < I; k++) sum += ((double)W[o * I + k] - q->best[o * I + k]) * q->H[k * I + i];
            loss += sum * ((double)W[o * I + i] - q->best[o * I + i]) / 2;
            if (G) G[o * I + i] = (pvt_real)sum;
        }
    return loss;
}
static double quadratic_loss(void *user)
{
    quadratic *q = (quadratic *)user;
    pvt_real W[Q_O * Q_I];
    pvt_weight_dequantize(q->w, W);
    return ++q->calls >= q->nan_at && q->nan_at > 0 ? (double)NAN : quadratic_at(q, W, NULL);
}
/* A Gram matrix of 2·I hat-shaped vectors of unequal size. */
static void quadratic_make(quadratic *q, pvt_weight *w, uint64_t stream)
{
    int64_t I = w->I;
    memset(q, 0, sizeof *q);
    q->w = w;
    for (int64_t i = 0; i < I; i++)
        for (int64_t j = 0; j < I; j++)
            for (int64_t n = 0; n < 2 * I; n++)
                q->H[i * I + j] += (double)noise(stream, n * I + i) * (double)noise(stream, n * I + j) *
                                   (1 + (double)(i % 3)) * (1 + (double)(j % 3));
    for (int64_t i = 0; i < I; i++) { /* Gershgorin */
        double sum = 0;
        for (int64_t j = 0; j < I; j++) sum += fabs(q->H[i * I + j]);
        q->largest = fmax(q->largest, sum);
    }
    for (int64_t i = 0; i < w->O * I; i++) q->best[i] = (double)noise(stream + 1, i);
}
static void step_of(pvt_pv *pv, const pvt_real *G, double lr_scale, pvt_pv_stats *stats)
{
    CHECK_OK(ctx, pvt_pv_begin(pv, lr_scale));
    CHECK_OK(ctx, pvt_pv_apply(pv, 0, G));
    CHECK_OK(ctx, pvt_pv_end(pv, stats));
}

static void fitted_weight(pvt_weight *w, const char *text)
{
    pvt_real W[Q_O * Q_I];
    pvt_fit_desc fit;
    pvt_format f;
    memset(&fit, 0, sizeof fit);
    fit.name = "fitted";
    for (int64_t i = 0; i < Q_O * Q_I; i++) W[i] = noise(30, i);
    CHECK_OK(ctx, pvt_format_parse(ctx, text, &f));
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, Q_O, Q_I, NULL, &f, &fit, NULL, w));
}

/* A default rate is that of two bits; a rate that is given is taken as it is. So the default at B bits gives the bits of
   2^(2−B) times it: of the codes always, of the values where they are integers' scales. */
static void check_rates(const char *format, double codes, double values)
{
    pvt_real after[2][Q_O * Q_I], buffer[2][Q_O * Q_I], G[Q_O * Q_I];
    for (int64_t i = 0; i < Q_O * Q_I; i++) G[i] = noise(31, i);
    for (int given = 0; given < 2; given++) {
        pvt_weight w;
        pvt_pv_desc desc;
        fitted_weight(&w, format);
        memset(&desc, 0, sizeof desc);
        if (given) desc.codes.lr = 2.5e-2 * codes, desc.values.lr = 3e-4 * values;
        CHECK(pvt_pv_resolve(&desc).codes.by_bits == !given && pvt_pv_resolve(&desc).values.by_bits == !given);
        pvt_pv *pv = one_weight(&desc, &w);
        for (int step = 0; step < 3; step++) step_of(pv, G, 1, NULL);
        pvt_weight_dequantize(&w, after[given]);
        memcpy(buffer[given], pv->entries[0].buffer.w, sizeof *buffer);
        pvt_pv_free(pv), pvt_weight_free(&w);
    }
    CHECK(memcmp(after[0], after[1], sizeof *after) == 0 && memcmp(buffer[0], buffer[1], sizeof *buffer) == 0);
}

/* A decay that is set between steps is the desc's from there on. */
static void check_set_delta(void)
{
    pvt_real buffer[2][Q_O * Q_I], G[Q_O * Q_I];
    pvt_pv_desc desc;
    pvt_weight w;
    for (int64_t i = 0; i < Q_O * Q_I; i++) G[i] = noise(32, i);
    for (int set = 0; set < 2; set++) {
        fitted_weight(&w, "int:2g16");
        memset(&desc, 0, sizeof desc);
        desc.delta = set ? 0.7 : 0.25;
        pvt_pv *pv = one_weight(&desc, &w);
        if (set) CHECK_OK(ctx, pvt_pv_set_delta(pv, 0.25));
        for (int step = 0; step < 3; step++) step_of(pv, G, 1, NULL);
        memcpy(buffer[set], pv->entries[0].buffer.w, sizeof *buffer);
        CHECK(pvt_pv_set_delta(pv, 1) == PVT_ERR_ARGUMENT && pvt_pv_set_delta(pv, -0.1) == PVT_ERR_ARGUMENT);
        CHECK_OK(ctx, pvt_pv_begin(pv, 1));
        CHECK(pvt_pv_set_delta(pv, 0.5) == PVT_ERR_ARGUMENT);
        pvt_pv_free(pv), pvt_weight_free(&w);
    }
    CHECK(memcmp(buffer[0], buffer[1], sizeof *buffer) == 0);
    fitted_weight(&w, "int:2g16");
    memset(&desc, 0, sizeof desc);
    desc.strategy = PVT_STRATEGY_SUBSPACE;
    pvt_pv *pv = one_weight(&desc, &w);
    CHECK(pvt_pv_set_delta(pv, 0.5) == PVT_ERR_ARGUMENT && strstr(pvt_ctx_error(ctx), "has a buffer"));
    pvt_pv_free(pv);
    desc.strategy = PVT_STRATEGY_CONTINUOUS;
    pv = one_weight(&desc, &w);
    CHECK(pvt_pv_set_delta(pv, 0.5) == PVT_ERR_ARGUMENT);
    pvt_pv_free(pv), pvt_weight_free(&w);
}

/* The target is W − lr_scale·G/L; with the values frozen and every group searched no step of it raises φ while L is at least
   the largest curvature; and a quarter of that L does raise it. */
static void check_plain(const char *format, pvt_strategy strategy, double share)
{
    pvt_real W[Q_O * Q_I], G[Q_O * Q_I];
    double before = 0, loss = 0, worst = 0;
    int64_t rises = 0, moved = 0;
    quadratic q;
    pvt_weight w;
    pvt_pv_desc desc;
    pvt_pv_stats stats;
    random_weight(&w, format, Q_O, Q_I);
    quadratic_make(&q, &w, 21);
    memset(&desc, 0, sizeof desc);
    desc.strategy = strategy, desc.step = PVT_STEP_PLAIN, desc.smoothness = q.largest * share;
    desc.freeze_values = true;
    pvt_pv *pv = one_weight(&desc, &w);
    for (int step = 0; step < 40; step++) {
        double lr_scale = step % 3 ? 1 : 0.5;
        pvt_weight_dequantize(&w, W);
        loss = quadratic_at(&q, W, G);
        rises += step > 0 && loss > before;
        before = loss;
        step_of(pv, G, lr_scale, &stats);
        moved += stats.groups_changed;
        for (int64_t i = 0; i < Q_O * Q_I; i++)
            worst = fmax(worst, fabs((double)pv->target[i] - ((double)W[i] - lr_scale * (double)G[i] / desc.smoothness)));
        CHECK(stats.smoothness == desc.smoothness);
        CHECK(stats.groups_searched == pvti_share(strategy == PVT_STRATEGY_LINEARIZED ? 1 : 0.01, stats.groups));
    }
    CHECK_NEAR(worst, 0, 1e-6);
    CHECK(moved > 0);
    CHECK(share < 1 ? rises > 0 : rises == 0);
    pvt_pv_free(pv), pvt_weight_free(&w);
}

/* With a buffer a plain step is plain gradient descent on it. */
static void check_plain_buffer(void)
{
    pvt_real W[Q_O * Q_I], G[Q_O * Q_I];
    pvt_weight w;
    pvt_pv_desc desc;
    double worst = 0;
    random_weight(&w, "aqlm:2x3g4", Q_O, Q_I);
    pvt_weight_dequantize(&w, W);
    for (int64_t i = 0; i < Q_O * Q_I; i++) G[i] = noise(5, i);
    memset(&desc, 0, sizeof desc);
    desc.step = PVT_STEP_PLAIN, desc.smoothness = 8;
    pvt_pv *pv = one_weight(&desc, &w);
    CHECK(pv->entries[0].buffer.v == NULL); /* no moments are held */
    step_of(pv, G, 1, NULL), step_of(pv, G, 1, NULL);
    for (int64_t i = 0; i < Q_O * Q_I; i++)
        worst = fmax(worst, fabs((double)pv->entries[0].buffer.w[i] - ((double)W[i] - 2 * (double)G[i] / 8)));
    CHECK_NEAR(worst, 0, 1e-6);
    pvt_pv_free(pv), pvt_weight_free(&w);
}

/* What is accepted passes the descent test with the L that stats name; φ falls; L comes to where it belongs from far
   below. */
static void check_line_search(const char *format, pvt_strategy strategy, double start)
{
    pvt_real W[Q_O * Q_I], G[Q_O * Q_I], next[Q_O * Q_I];
    double first = 0, loss = 0, largest = 0;
    int64_t wrong = 0, moved = 0;
    quadratic q;
    pvt_weight w;
    pvt_pv_desc desc;
    pvt_pv_stats stats;
    random_weight(&w, format, Q_O, Q_I);
    quadratic_make(&q, &w, 31);
    memset(&desc, 0, sizeof desc);
    desc.strategy = strategy, desc.step = PVT_STEP_PLAIN, desc.smoothness = start, desc.freeze_values = true;
    desc.loss = quadratic_loss, desc.loss_user = &q;
    pvt_pv *pv = one_weight(&desc, &w);
    for (int step = 0; step < 30; step++) {
        double model = 0, square = 0;
        pvt_weight_dequantize(&w, W);
        loss = quadratic_at(&q, W, G);
        if (step == 0) first = loss;
        step_of(pv, G, 1, &stats);
        pvt_weight_dequantize(&w, next);
        for (int64_t i = 0; i < Q_O * Q_I; i++) {
            double d = (double)next[i] - (double)W[i];
            model += (double)G[i] * d, square += d * d;
        }
        model += stats.smoothness / 2 * square;
        wrong += quadratic_at(&q, next, NULL) > loss + model + 1e-5 * first || quadratic_at(&q, next, NULL) > loss;
        wrong += model > 1e-5 * first;
        wrong += (square > 0) != (stats.groups_changed > 0);
        wrong += stats.groups_searched != pvti_share(strategy == PVT_STRATEGY_LINEARIZED ? 1 : 0.01, stats.groups);
        if (square > 0) largest = fmax(largest, stats.smoothness);
        moved += stats.groups_changed;
    }
    CHECK(wrong == 0 && moved > 5);
    CHECK(loss < 0.9 * first);
    CHECK(largest > 0 && largest <= fmax(start, 2 * q.largest));
    CHECK(q.calls > 30 && q.calls < 30 * 30);
    q.nan_at = q.calls + 1; /* no φ, no step */
    CHECK_OK(ctx, pvt_pv_begin(pv, 1));
    CHECK(pvt_pv_apply(pv, 0, G) == PVT_ERR_NUMERIC && strstr(pvt_ctx_error(ctx), "loss is not finite") != NULL);
    pvt_weight_dequantize(&w, W);
    CHECK(memcmp(W, next, sizeof W) == 0);
    pvt_pv_free(pv), pvt_weight_free(&w);
}

/* A φ that is never kept to: no code moves, and the search ends. */
static double rising(void *user) { return (double)++*(int64_t *)user; }
static void check_hopeless_search(void)
{
    pvt_real W[Q_O * Q_I], G[Q_O * Q_I], next[Q_O * Q_I];
    int64_t calls = 0;
    pvt_weight w;
    pvt_pv_desc desc;
    pvt_pv_stats stats;
    random_weight(&w, "aqlm:1x4g4", Q_O, Q_I);
    pvt_weight_dequantize(&w, W);
    for (int64_t i = 0; i < Q_O * Q_I; i++) G[i] = noise(5, i);
    memset(&desc, 0, sizeof desc);
    desc.strategy = PVT_STRATEGY_LINEARIZED, desc.step = PVT_STEP_PLAIN, desc.freeze_values = true;
    desc.loss = rising, desc.loss_user = &calls;
    pvt_pv *pv = one_weight(&desc, &w);
    step_of(pv, G, 1, &stats);
    pvt_weight_dequantize(&w, next);
    CHECK(stats.groups_changed == 0 && memcmp(W, next, sizeof W) == 0 && calls > 2 && calls < 210);
    pvt_pv_free(pv), pvt_weight_free(&w);
}

static void test_steps(void)
{
    check_plain("aqlm:1x4g2", PVT_STRATEGY_LINEARIZED, 1);
    check_plain("aqlm:1x6g1", PVT_STRATEGY_LINEARIZED, 1);
    check_plain("aqlm:1x4g2", PVT_STRATEGY_LINEARIZED, 0.1);
    check_plain("aqlm:1x6g1", PVT_STRATEGY_SUBSPACE, 1);
    check_plain_buffer();
    check_line_search("aqlm:1x4g2", PVT_STRATEGY_LINEARIZED, 0);
    check_line_search("aqlm:1x4g2", PVT_STRATEGY_LINEARIZED, 1e-6);
    check_line_search("aqlm:2x3g4", PVT_STRATEGY_LINEARIZED, 0);
    check_line_search("aqlm:1x4g2", PVT_STRATEGY_SUBSPACE, 0);
    check_hopeless_search();
}

/* ---- the paper's small problem: six weights, c = 1 … 6 values ---- */

enum { D = 6 };

/* The values that are best for a partition, exact P step: least squares; values that nothing uses stay. Returns φ. */
static double exact_values(const quadratic *q, const int *codes, int c, double *values)
{
    double A[D][D + 1], W[D], loss = 0;
    for (int a = 0; a < c; a++) {
        memset(A[a], 0, sizeof A[a]);
        for (int i = 0; i < D; i++)
            for (int j = 0; j < D && codes[i] == a; j++) {
                A[a][codes[j]] += q->H[i * D + j];
                A[a][D] += q->H[i * D + j] * q->best[j];
            }
    }
    for (int a = 0; a < c; a++) {
        bool used = false;
        for (int i = 0; i < D; i++) used = used || codes[i] == a;
        if (!used) A[a][a] = 1, A[a][D] = values[a];
    }
    for (int a = 0; a < c; a++)
        for (int b = 0; b < c; b++) {
            double f = A[b][a] / A[a][a];
            for (int k = a; k <= D && b != a; k++)
                if (k < c || k == D) A[b][k] -= f * A[a][k];
        }
    for (int a = 0; a < c; a++) values[a] = A[a][D] / A[a][a];
    for (int i = 0; i < D; i++) W[i] = values[codes[i]] - q->best[i];
    for (int i = 0; i < D; i++)
        for (int j = 0; j < D; j++) loss += W[i] * q->H[i * D + j] * W[j] / 2;
    return loss;
}

/* Over all c^6 assignments: the least φ with these values (exact V step), or with the best values of each. */
static double enumerate(const quadratic *q, int c, const double *values)
{
    double least = 1e30;
    int codes[D], total = 1;
    for (int i = 0; i < D; i++) total *= c;
    for (int n = 0; n < total; n++) {
        double own[D] = {0}, loss = 0;
        for (int i = 0, rest = n; i < D; i++, rest /= c) codes[i] = rest % c;
        if (values)
            for (int i = 0; i < D; i++)
                for (int j = 0; j < D; j++)
                    loss += (values[codes[i]] - q->best[i]) * q->H[i * D + j] * (values[codes[j]] - q->best[j]) / 2;
        else loss = exact_values(q, codes, c, own);
        least = fmin(least, loss);
    }
    return least;
}

static void set_values(pvt_weight *w, int c, const double *values)
{
    for (int k = 0; k < 8; k++) pvti_codebooks(w)[k] = (pvt_real)values[k < c ? k : c - 1]; /* the rest are twins */
}

/* Exact P steps and V steps of a strategy in turn, from codes drawn. Returns the last φ. */
static double alternate(quadratic *q, pvt_weight *w, int c, const pvt_pv_desc *desc, bool monotone, double minimum)
{
    double values[D], before = 1e30, loss = 0;
    int codes[D];
    int64_t wrong = 0;
    pvt_real W[D], G[D];
    for (int i = 0; i < D; i++)
        pvti_code_set(w, i, (int64_t)(pvti_random(9, PVTI_RANDOM_USER, 40 + (uint64_t)c, (uint64_t)i) % (uint64_t)c));
    for (int k = 0; k < c; k++) values[k] = (double)noise(60 + (uint64_t)c, k);
    set_values(w, c, values);
    pvt_pv *pv = one_weight(desc, w);
    for (int step = 0; step < 60; step++) {
        for (int i = 0; i < D; i++) codes[i] = (int)PVTI_MIN(pvti_code_get(w, i), c - 1);
        loss = exact_values(q, codes, c, values);
        wrong += loss < minimum - 1e-5 * (1 + minimum); /* nobody is better than the best of all */
        wrong += monotone && loss > before + 1e-5 * (1 + before);
        before = loss;
        set_values(w, c, values);
        pvt_weight_dequantize(w, W);
        quadratic_at(q, W, G);
        step_of(pv, G, 1, NULL);
        pvt_weight_dequantize(w, W);
        wrong += quadratic_at(q, W, NULL) < enumerate(q, c, values) - 1e-5 * (1 + minimum); /* nor than the exact V step */
    }
    CHECK(wrong == 0);
    pvt_pv_free(pv);
    return loss;
}

static void test_small_problem(void)
{
    static const struct {
        pvt_strategy strategy;
        bool plain, monotone;
    } rows[] = {{PVT_STRATEGY_CONTINUOUS, false, true}, {PVT_STRATEGY_LINEARIZED, true, true},
                {PVT_STRATEGY_SUBSPACE, true, true},    {PVT_STRATEGY_STOCHASTIC, true, false},
                {PVT_STRATEGY_STE, false, false},       {PVT_STRATEGY_SUBSPACE_STE, false, false},
                {PVT_STRATEGY_LINEARIZED, false, false}};
    for (int c = 1; c <= D; c++) {
        double last[PVTI_COUNT(rows)];
        quadratic q;
        pvt_weight w;
        pvt_pv_desc desc;
        random_weight(&w, "aqlm:1x3g1", 1, D);
        pvti_scales(&w)[0] = 1;
        quadratic_make(&q, &w, 70);
        double minimum = enumerate(&q, c, NULL);
        if (c == D) CHECK_NEAR(minimum, 0, 1e-9);
        for (int r = 0; r < (int)PVTI_COUNT(rows); r++) {
            memset(&desc, 0, sizeof desc);
            desc.strategy = rows[r].strategy, desc.freeze_values = true;
            if (rows[r].plain) desc.step = PVT_STEP_PLAIN, desc.smoothness = q.largest;
            last[r] = alternate(&q, &w, c, &desc, rows[r].monotone, minimum);
        }
        CHECK(last[1] <= last[0] * (1 + 1e-5) && last[2] <= last[0] * (1 + 1e-5)); /* codes that move, and only down */
        if (c == 1)
            for (int r = 0; r < (int)PVTI_COUNT(rows); r++) CHECK_NEAR(last[r], minimum, 1e-5 * minimum); /* all the same */
        memset(&desc, 0, sizeof desc);
        desc.strategy = PVT_STRATEGY_SUBSPACE, desc.freeze_values = true, desc.step = PVT_STEP_PLAIN;
        desc.loss = quadratic_loss, desc.loss_user = &q;
        /* one weight at a time: its own curvature, a longer step */
        double searched = alternate(&q, &w, c, &desc, true, minimum);
        CHECK(searched <= last[0] * (1 + 1e-5));
        pvt_weight_free(&w);
    }
}

/* ---- buffers that stay near ---- */

static void test_buffers(void)
{
    static pvt_real W[S_O * S_I], G[S_O * S_I], free_buffer[S_O * S_I], next[S_O * S_I];
    double square = 0;
    for (int64_t i = 0; i < S_O * S_I; i++) G[i] = noise(5, i) * (i / S_I % 4 ? 1 : (pvt_real)0.001);
    for (int which = 0; which < 3; which++) { /* free, bounded, restarted */
        pvt_weight w;
        pvt_pv_desc desc;
        int64_t wrong = 0, held = 0, left = 0;
        random_weight(&w, "aqlm:1x4g4", S_O, S_I);
        pvt_weight_dequantize(&w, W);
        memset(&desc, 0, sizeof desc);
        desc.freeze_values = true, desc.cap = 0.2, desc.codes.lr = 0.2;
        desc.codes.rule = PVT_OPTIMIZER_ADAM, desc.codes.eps = 0.01;
        desc.wind = which == 1 ? 0.3 : 0, desc.restart = which == 2;
        pvt_pv *pv = one_weight(&desc, &w);
        step_of(pv, G, 1, NULL);
        pvt_weight_dequantize(&w, next);
        if (which == 0) memcpy(free_buffer, pv->entries[0].buffer.w, sizeof free_buffer);
        for (int64_t i = 0; which == 0 && i < S_O * S_I; i++) square += (double)W[i] * (double)W[i];
        double radius = 0.3 * sqrt(square / S_GROUPS);
        for (int64_t g = 0; which && g < S_GROUPS; g++) {
            const pvt_real *T = pv->entries[0].buffer.w + g / (S_I / S_G) * S_I + g % (S_I / S_G) * S_G;
            const pvt_real *was = W + (T - pv->entries[0].buffer.w), *now = next + (T - pv->entries[0].buffer.w);
            const pvt_real *loose = free_buffer + (T - pv->entries[0].buffer.w);
            double far = 0, near = 0;
            bool searched = false;
            for (int64_t i = 0; i < pvti_share(0.2, S_GROUPS); i++) searched = searched || pv->selected[i] == g;
            for (int k = 0; k < S_G; k++) {
                far += ((double)loose[k] - (double)was[k]) * ((double)loose[k] - (double)was[k]);
                near += ((double)T[k] - (double)was[k]) * ((double)T[k] - (double)was[k]);
            }
            if (which == 1 ? sqrt(far) > radius : searched && memcmp(was, now, S_G * sizeof *now) == 0) {
                wrong += which == 1 ? fabs(sqrt(near) - radius) > 1e-5 : memcmp(T, now, S_G * sizeof *T) != 0;
                held++;
            } else {
                wrong += memcmp(T, loose, S_G * sizeof *T) != 0;
                left++;
            }
        }
        CHECK(wrong == 0 && (which == 0 || (held > 5 && left > 5)));
        pvt_pv_free(pv), pvt_weight_free(&w);
    }
}

/* ---- quantization-aware training ---- */

static void fitted(pvt_ctx *own, const char *format, const pvt_real *W, int64_t O, int64_t I, pvt_weight *w)
{
    pvt_format f;
    pvt_fit_desc d;
    memset(&d, 0, sizeof d);
    d.method = PVT_FIT_RTN;
    CHECK_OK(own, pvt_format_parse(own, format, &f));
    CHECK_OK(own, pvt_weight_fit(own, W, O, I, NULL, &f, &d, NULL, w));
}

/* A step, line by line: gradients at the old values, codes and buffer; Adam for the values; T − f·G/L; the nearest codes. */
static void check_qat_step(const char *format, pvt_surrogate surrogate, double sharpness)
{
    static pvt_real W[S_O * 64], G[S_O * 64], turned[S_O * 64], T[S_O * 64], dT[S_O * 64], dvalue[2][S_O * 64];
    pvt_real *dvalues[PVT_MAX_ARRAYS] = {NULL, dvalue[0], dvalue[1]};
    int64_t size = S_O * 64, wrong = 0, slack = 0;
    double worst = 0;
    pvt_weight w;
    pvt_pv_desc desc;
    memset(&desc, 0, sizeof desc), memset(dvalue, 0, sizeof dvalue);
    desc.strategy = PVT_STRATEGY_STE, desc.surrogate = surrogate, desc.clamp_sharpness = sharpness;
    desc.step = PVT_STEP_PLAIN, desc.smoothness = 0.5, desc.values.lr = 1e-3;
    for (int64_t i = 0; i < size; i++) W[i] = noise(1, i), G[i] = noise(2, i) * (pvt_real)0.4;
    fitted(ctx, format, W, S_O, 64, &w);
    pvt_pv *pv = one_weight(&desc, &w);
    pvti_pv_entry *e = &pv->entries[0];
    step_of(pv, G, 1, NULL); /* one to leave W: now f varies */
    memcpy(T, e->buffer.w, sizeof T), memcpy(turned, G, sizeof G);
    if (w.format.rotation) pvti_rotate_weight(ctx, turned, G, &w, false);
    w.kind->surrogate(ctx, dvalues, dT, &w, T, turned, &pv->desc);
    step_of(pv, G, 1, NULL);
    for (int64_t i = 0; i < size; i++) {
        worst = fmax(worst, fabs((double)e->buffer.w[i] - ((double)T[i] - (double)dT[i] * 2)));
        slack += dT[i] != turned[i];
    }
    CHECK_NEAR(worst, 0, 1e-6);
    CHECK(surrogate == PVT_SURROGATE_NONE ? slack == 0 : slack > 20);
    for (int k = 0; k < 2; k++)
        wrong += e->dvalues[k + 1] &&
                 memcmp(e->dvalues[k + 1], dvalue[k], (size_t)e->adam[k + 1].n * sizeof(pvt_real)) != 0;
    for (int64_t i = 0; i < size; i++) {
        pvt_assign a;
        uint16_t code;
        memset(&a, 0, sizeof a);
        a.target = e->buffer.w, a.groups = &i, a.n = 1, a.codes = &code;
        pvti_weight_assign(ctx, &w, &a, NULL);
        wrong += code != pvti_code_get(&w, i);
    }
    CHECK(wrong == 0);
    pvt_pv_free(pv), pvt_weight_free(&w);
}

/* A buffer that starts from the weights that were quantized; where the fit chose another code than the nearest, from W. */
static void check_set_buffer(const char *format)
{
    static pvt_real original[S_O * 64], turned[S_O * 64], W[S_O * 64], G[S_O * 64];
    int64_t size = S_O * 64, kept = 0, back = 0, wrong = 0;
    pvt_weight w;
    pvt_pv_desc desc;
    pvt_pv_stats stats;
    memset(&desc, 0, sizeof desc);
    desc.strategy = PVT_STRATEGY_STE, desc.freeze_values = true;
    for (int64_t i = 0; i < size; i++) original[i] = noise(1, i);
    fitted(ctx, format, original, S_O, 64, &w);
    for (int64_t i = 0; i < size; i += 9) pvti_code_set(&w, i, pvti_code_get(&w, i) ^ 1); /* of another mind */
    pvt_pv *pv = one_weight(&desc, &w);
    CHECK(pvt_pv_set_buffer(pv, 1, original) == PVT_ERR_ARGUMENT && strstr(pvt_ctx_error(ctx), "without a buffer") != NULL);
    CHECK_OK(ctx, pvt_pv_set_buffer(pv, 0, original));
    memcpy(turned, original, sizeof turned);
    if (w.format.rotation) pvti_rotate_weight(ctx, turned, original, &w, false);
    w.kind->tile(&w, W, 64, 0, S_O, 0, 64);
    for (int64_t i = 0; i < size; i++) {
        pvt_real T = pv->entries[0].buffer.w[i];
        wrong += T != (i % 9 ? turned[i] : W[i]);
        kept += T == turned[i], back += T == W[i];
    }
    CHECK(wrong == 0 && kept > size / 2 && back >= size / 9);
    memset(G, 0, sizeof G);
    step_of(pv, G, 1, &stats);
    CHECK(stats.groups_changed == 0 && stats.groups_searched == size); /* the first search undoes nothing */
    CHECK(pvt_pv_set_buffer(pv, 0, original) == PVT_ERR_ARGUMENT);
    pvt_pv_free(pv);
    original[7] = (pvt_real)NAN;
    pv = one_weight(&desc, &w);
    CHECK(pvt_pv_set_buffer(pv, 0, original) == PVT_ERR_NUMERIC);
    pvt_pv_free(pv), pvt_weight_free(&w);
}

/* What is trained and what keeps every bit: arrays of one weight, by the mask. */
static void check_train(const char *words, unsigned moved)
{
    static pvt_real W[S_O * 64], G[S_O * 64];
    pvt_weight w, before;
    pvt_pv_desc desc;
    pvt_array now[PVT_MAX_ARRAYS], was[PVT_MAX_ARRAYS];
    memset(&desc, 0, sizeof desc);
    desc.strategy = PVT_STRATEGY_STE, desc.codes.lr = 0.3, desc.values.lr = 1e-2;
    CHECK_OK(ctx, pvt_train_parse(ctx, words, &desc.train));
    for (int64_t i = 0; i < S_O * 64; i++) W[i] = noise(1, i);
    fitted(ctx, "int:2g16", W, S_O, 64, &w), fitted(ctx, "int:2g16", W, S_O, 64, &before);
    pvt_pv *pv = one_weight(&desc, &w);
    for (uint64_t step = 0; step < 3; step++) {
        for (int64_t i = 0; i < S_O * 64; i++) G[i] = noise(50 + step, i);
        step_of(pv, G, 1, NULL);
    }
    int n = pvt_weight_arrays(&w, now);
    pvt_weight_arrays(&before, was);
    for (int i = 0; i < n; i++) CHECK((memcmp(now[i].data, was[i].data, (size_t)now[i].bytes) != 0) == (moved >> i & 1));
    pvt_pv_free(pv), pvt_weight_free(&w), pvt_weight_free(&before);
}

static void test_train_words(void)
{
    char text[96], again[96];
    unsigned train;
    pvt_pv_desc d, r;
    check_train("all", 7), check_train("codes", 1), check_train("scales", 2), check_train("zeros", 4);
    check_train("codes,scales", 3), check_train("zeros,scales", 6), check_train("norms", 0), check_train("codebooks", 0);
    for (unsigned mask = 1; mask <= PVT_TRAIN_ALL; mask += 13) {
        pvt_train_text(mask, text);
        CHECK_OK(ctx, pvt_train_parse(ctx, text, &train));
        pvt_train_text(train, again);
        CHECK(train == mask && strcmp(text, again) == 0);
    }
    CHECK(pvt_train_parse(ctx, "scales,norm", &train) == PVT_ERR_ARGUMENT && train == 0);
    CHECK(strstr(pvt_ctx_error(ctx), "\"norm\" is none of codes, codebooks, scales, zeros, norms, biases, embedding, head"));
    CHECK(pvt_train_parse(NULL, "", &train) == PVT_ERR_ARGUMENT && pvt_train_parse(NULL, "codes,", &train) == PVT_ERR_ARGUMENT);
    /* one mask behind three ways to say it */
    memset(&d, 0, sizeof d);
    CHECK(pvt_pv_resolve(&d).train == PVT_TRAIN_ALL && !pvt_pv_resolve(&d).freeze_values);
    d.freeze_values = true, r = pvt_pv_resolve(&d);
    CHECK(r.train == (PVT_TRAIN_ALL & ~PVT_TRAIN_VALUES) && pvt_pv_resolve(&r).train == r.train);
    d.strategy = PVT_STRATEGY_CONTINUOUS, d.freeze_values = false;
    CHECK(pvt_pv_resolve(&d).train == (PVT_TRAIN_ALL & ~PVT_TRAIN_CODES));
    memset(&d, 0, sizeof d), d.surrogate = PVT_SURROGATE_SIGMOID, r = pvt_pv_resolve(&d);
    CHECK(r.surrogate_temperature == 4 && r.clamp_sharpness == 4 && pvt_pv_resolve(NULL).clamp_sharpness == 0);
    d.clamp_sharpness = -1, r = pvt_pv_resolve(&d);
    CHECK(r.clamp_sharpness == -1 && pvt_pv_resolve(&r).clamp_sharpness == -1);
    memset(&d, 0, sizeof d), d.train = PVT_TRAIN_SCALES | PVT_TRAIN_NORMS, r = pvt_pv_resolve(&d);
    CHECK(r.strategy == PVT_STRATEGY_CONTINUOUS && !r.freeze_values && r.train == d.train);
    d.train = PVT_TRAIN_CODES, r = pvt_pv_resolve(&d);
    CHECK(r.strategy == PVT_STRATEGY_SUBSPACE_STE && r.freeze_values && r.cap == 0.01);
}

static void test_qat(void)
{
    static const char *const able[] = {"int:2g16", "had:int:2g16", "int:3g8s", "q2_0"};
    for (int i = 0; i < 4; i++) {
        check_qat_step(able[i], PVT_SURROGATE_IDENTITY, -1);
        check_qat_step(able[i], PVT_SURROGATE_SIGMOID, -1), check_qat_step(able[i], PVT_SURROGATE_SIGMOID, 5);
        check_qat_step(able[i], PVT_SURROGATE_ROOT, 0);
    }
    check_set_buffer("int:2g16"), check_set_buffer("had2:int:2g16"), check_set_buffer("q2_0");
}

/* ---- what is refused ---- */

static void refuse(const pvt_pv_desc *desc, const char *why)
{
    pvt_pv *pv = NULL;
    CHECK(pvt_pv_create(ctx, desc, &pv) == PVT_ERR_ARGUMENT && pv == NULL);
    CHECK(strstr(pvt_ctx_error(ctx), why) != NULL);
}
#define REFUSE(why, ...)                \
    do {                                \
        pvt_pv_desc d;                  \
        memset(&d, 0, sizeof d);        \
        __VA_ARGS__;                    \
        refuse(&d, why);                \
    } while (0)

static void test_refusals(void)
{
    REFUSE("none of their constants", d.selection = (pvt_selection)3);
    REFUSE("none of their constants", d.key = (pvt_key)-1);
    REFUSE("none of their constants", d.step = (pvt_v_step)2);
    REFUSE("no temperature", (d.selection = PVT_SELECT_UNIFORM, d.temperature = 1));
    REFUSE("no second moment", (d.step = PVT_STEP_PLAIN, d.smoothness = 1, d.key = PVT_KEY_MOMENT));
    REFUSE("needs smoothness", d.step = PVT_STEP_PLAIN);
    REFUSE("must lie in", (d.step = PVT_STEP_PLAIN, d.smoothness = -1));
    REFUSE("must lie in", (d.step = PVT_STEP_PLAIN, d.smoothness = (double)NAN));
    REFUSE("must lie in", d.wind = (double)INFINITY);
    REFUSE("belong to plain steps", d.smoothness = 1);
    REFUSE("belong to plain steps", d.loss = quadratic_loss);
    REFUSE("no rounding", (d.step = PVT_STEP_PLAIN, d.loss = quadratic_loss));
    REFUSE("no rounding", (d.step = PVT_STEP_PLAIN, d.loss = quadratic_loss, d.strategy = PVT_STRATEGY_STOCHASTIC));
    REFUSE("cannot forget as slowly", (d.moments = PVT_BF16, d.codes.beta2 = 0.995));
    REFUSE("there is none", (d.strategy = PVT_STRATEGY_SUBSPACE, d.wind = 1));
    REFUSE("there is none", (d.strategy = PVT_STRATEGY_LINEARIZED, d.restart = true));
    REFUSE("none of their constants", d.surrogate = (pvt_surrogate)4);
    REFUSE("none of their constants", d.train = 1 << 20);
    REFUSE("must lie in 0 to 1e6", (d.surrogate = PVT_SURROGATE_SIGMOID, d.surrogate_temperature = -1));
    REFUSE("clamp_sharpness in -1e6", (d.surrogate = PVT_SURROGATE_SIGMOID, d.clamp_sharpness = (double)NAN));
    REFUSE("belongs to a surrogate", d.clamp_sharpness = -1);
    REFUSE("belongs to the surrogate sigmoid", (d.surrogate = PVT_SURROGATE_ROOT, d.surrogate_temperature = 2));
    REFUSE("belongs to a surrogate", d.clamp_sharpness = 2);
    REFUSE("for the buffer behind codes", (d.surrogate = PVT_SURROGATE_IDENTITY, d.strategy = PVT_STRATEGY_LINEARIZED));
    REFUSE("for the buffer behind codes", (d.surrogate = PVT_SURROGATE_IDENTITY, d.delta = 1));
    REFUSE("for the buffer behind codes", (d.surrogate = PVT_SURROGATE_IDENTITY, d.train = PVT_TRAIN_SCALES));
    pvt_pv_desc d;
    pvt_weight w;
    pvt_pv *pv = NULL;
    memset(&d, 0, sizeof d), d.surrogate = PVT_SURROGATE_SIGMOID;
    random_weight(&w, "aqlm:1x4g4", S_O, S_I);
    CHECK_OK(ctx, pvt_pv_create(ctx, &d, &pv));
    CHECK(pvt_pv_add_weight(pv, &w, "w", NULL) == PVT_ERR_UNSUPPORTED);
    CHECK(strstr(pvt_ctx_error(ctx), "w is in aqlm:1x4g4") && strstr(pvt_ctx_error(ctx), "have one: int:BgG, int:BgGs, q2_0;"));
    pvt_pv_free(pv), pvt_weight_free(&w);
}

/* ---- the same bits ---- */

static double step_loss(void *user)
{
    const pvt_weight *w = (const pvt_weight *)user;
    static pvt_real W[36 * 48];
    double sum = 0;
    pvt_weight_dequantize(w, W);
    for (int i = 0; i < 36 * 48; i++) sum += fabs((double)W[i] - (double)noise(55, i));
    return sum;
}

enum { CHOICES = 6, QAT_CHOICES = 9 }; /* the latter begin where the former end */
static void choose(pvt_pv_desc *d, int which)
{
    memset(d, 0, sizeof *d);
    d->cap = 0.3, d->codes.lr = 0.4, d->beam = 2;
    if (which == 0) d->selection = PVT_SELECT_UNIFORM, d->trust = 0.5;
    if (which == 1) d->selection = PVT_SELECT_PROPORTIONAL, d->key = PVT_KEY_MOMENT;
    if (which == 2) d->key = PVT_KEY_ROOT_MOMENT, d->restart = true, d->moments = PVT_BF16;
    if (which == 3) d->wind = 0.2;
    if (which == 4) d->strategy = PVT_STRATEGY_SUBSPACE, d->step = PVT_STEP_PLAIN, d->smoothness = 2;
    if (which == 5) d->strategy = PVT_STRATEGY_LINEARIZED, d->step = PVT_STEP_PLAIN, d->loss = step_loss;
    if (which >= CHOICES) d->strategy = PVT_STRATEGY_STE, d->cap = 0, d->beam = 0; /* of int:2g8 */
    if (which == 6) d->surrogate = PVT_SURROGATE_IDENTITY, d->clamp_sharpness = -1;
    if (which == 7) d->surrogate = PVT_SURROGATE_SIGMOID, d->clamp_sharpness = 4, d->moments = PVT_BF16;
    if (which == 8) d->surrogate = PVT_SURROGATE_ROOT, d->train = PVT_TRAIN_ALL & ~PVT_TRAIN_ZEROS;
}

static uint64_t choice_hash(int which, const char *isa, int threads)
{
    static pvt_real G[36 * 48];
    pvt_ctx_desc cd;
    pvt_ctx *shared = ctx;
    pvt_pv_desc desc;
    pvt_weight w;
    memset(&cd, 0, sizeof cd);
    cd.n_threads = threads, cd.isa = isa, cd.seed = 3;
    CHECK(pvt_ctx_create(&cd, &ctx) == PVT_OK);
    for (int64_t i = 0; i < 36 * 48; i++) G[i] = noise(9, i);
    if (which < CHOICES) random_weight(&w, "aqlm:2x4g4", 36, 48);
    else fitted(ctx, which == 7 ? "had:int:2g8" : "int:2g8", G, 36, 48, &w);
    choose(&desc, which);
    desc.loss_user = &w;
    pvt_pv *pv = one_weight(&desc, &w);
    for (uint64_t step = 0; step < 4; step++) {
        for (int64_t i = 0; i < 36 * 48; i++) G[i] = noise(50 + step, i);
        step_of(pv, G, 1, NULL);
    }
    pvt_weight_dequantize(&w, G);
    uint64_t hash = pvti_hash(G, sizeof G, sizeof(pvt_real), 0);
    if (pv->entries[0].buffer.w) hash = pvti_hash(pv->entries[0].buffer.w, sizeof G, sizeof(pvt_real), hash);
    pvt_pv_free(pv), pvt_weight_free(&w);
    pvt_ctx_destroy(ctx);
    ctx = shared;
    return hash;
}

static void test_same_bits(void)
{
    static const int threads[] = {1, 2, 5};
    static const char *const sets[] = {"scalar", "avx2", "avx512"};
    uint64_t seen[QAT_CHOICES];
    for (int which = 0; which < QAT_CHOICES; which++) {
        seen[which] = choice_hash(which, "scalar", 1);
        for (int s = 0; s < 3; s++)
            for (int t = s ? 0 : 1; t < 3; t++) CHECK(choice_hash(which, sets[s], threads[t]) == seen[which]);
        for (int other = 0; other < which; other++) CHECK(seen[other] != seen[which]);
    }
}

/* ---- the tuner ---- */

enum { LENGTH = 32, WINDOWS = 10 };

static const char *student_format = "aqlm:2x4g4";
static pvt_model *make(pvt_ctx *own, const pvt_corpus *corpus, bool codes)
{
    pvt_model_config c;
    pvt_quantize_desc q;
    pvt_model *model = NULL;
    memset(&c, 0, sizeof c), memset(&q, 0, sizeof q);
    c.layers = 2, c.dim = 64, c.heads = 4, c.kv_heads = 2, c.ff = 96, c.vocab = 200, c.ctx = LENGTH;
    CHECK_OK(own, pvt_model_create(own, &c, &model));
    q.samples = 4, q.fit.epochs = 1, q.fit.kmeans_steps = 2, q.finetune_epochs = -1;
    CHECK_OK(own, pvt_format_parse(own, student_format, &q.format));
    if (codes) CHECK_OK(own, pvt_quantize(model, corpus, &q));
    return model;
}
static uint64_t model_hash(pvt_model *model)
{
    uint64_t hash = 0;
    CHECK_OK(ctx, pvti_model_hash(model, &hash));
    return hash;
}

/* Six steps; with `path` saved after three, and a new tuner goes on from there. Returns the student's hash. */
static uint64_t tune(int which, const pvt_corpus *corpus, const char *path)
{
    pvt_tune_desc desc;
    pvt_tuner *tuner = NULL;
    pvt_model *teacher = make(ctx, corpus, false), *student = make(ctx, corpus, true);
    memset(&desc, 0, sizeof desc);
    choose(&desc.pv, which);
    desc.pv.codes.lr = 0.3, desc.steps = 6, desc.batch = 2, desc.ctx = LENGTH, desc.eval_every = -1;
    if (which == 4) desc.pv.smoothness = 1e-3;
    int64_t plan = pvt_tuner_bytes(student, teacher, corpus, &desc);
    pvt_ctx_reset_peak(ctx);
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    CHECK_OK(ctx, pvt_tuner_create(student, teacher, corpus, &desc, &tuner));
    for (int step = 0; step < (path ? 3 : 6); step++) CHECK_OK(ctx, pvt_tuner_step(tuner, NULL));
    CHECK_NEAR((double)(plan - before) / (double)(pvt_ctx_get_info(ctx).bytes_peak - before), 1, 0.05);
    if (path) {
        pvt_tune_desc other = desc;
        CHECK_OK(ctx, pvt_tuner_save(tuner, path));
        pvt_tuner_free(tuner), pvt_model_free(student);
        student = make(ctx, corpus, true);
        memset(&other.pv, 0, sizeof other.pv); /* the default's checkpoint is another one */
        other.pv.cap = desc.pv.cap, other.pv.codes = desc.pv.codes, other.pv.beam = 2, other.pv.trust = desc.pv.trust;
        other.pv.strategy = desc.pv.strategy, other.pv.moments = desc.pv.moments;
        if (which >= CHOICES) other.pv = desc.pv, other.pv.surrogate = PVT_SURROGATE_SIGMOID, other.pv.surrogate_temperature = 3;
        if (which == 8) other.pv = desc.pv, other.pv.train = PVT_TRAIN_ALL;
        CHECK_OK(ctx, pvt_tuner_create(student, teacher, corpus, &other, &tuner));
        CHECK(pvt_tuner_resume(tuner, path) == PVT_ERR_MISMATCH);
        CHECK(strstr(pvt_ctx_error(ctx), "another strategy and V step") != NULL);
        pvt_tuner_free(tuner);
        CHECK_OK(ctx, pvt_tuner_create(student, teacher, corpus, &desc, &tuner));
        CHECK_OK(ctx, pvt_tuner_resume(tuner, path));
        for (int step = 3; step < 6; step++) CHECK_OK(ctx, pvt_tuner_step(tuner, NULL));
    }
    uint64_t hash = model_hash(student);
    pvt_tuner_free(tuner), pvt_model_free(student), pvt_model_free(teacher);
    return hash;
}

static void test_tuner(void)
{
    char dir[300], path[340];
    int32_t ids[LENGTH * WINDOWS];
    pvt_corpus corpus;
    for (int64_t i = 0; i < LENGTH * WINDOWS; i++) ids[i] = (int32_t)(i * i % 199);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, LENGTH * WINDOWS, &corpus));
    CHECK(test_scratch(dir, sizeof dir));
    snprintf(path, sizeof path, "%s/checkpoint", dir);
    for (int which = 0; which < CHOICES - 1; which++) CHECK(tune(which, &corpus, NULL) == tune(which, &corpus, path));
    {
        pvt_tune_desc desc;
        pvt_tuner *tuner = NULL;
        pvt_model *teacher = make(ctx, &corpus, false), *student = make(ctx, &corpus, true);
        memset(&desc, 0, sizeof desc);
        desc.steps = 2, desc.ctx = LENGTH, desc.eval_every = -1;
        choose(&desc.pv, CHOICES - 1);
        CHECK(pvt_tuner_create(student, teacher, &corpus, &desc, &tuner) == PVT_ERR_UNSUPPORTED);
        CHECK(strstr(pvt_ctx_error(ctx), "set smoothness") != NULL && tuner == NULL);
        pvt_model_free(student), pvt_model_free(teacher);
    }
    student_format = "int:2g16";
    for (int which = CHOICES; which < QAT_CHOICES; which++) CHECK(tune(which, &corpus, NULL) == tune(which, &corpus, path));
    pvt_corpus_free(&corpus);
    test_remove(dir);
}

int main(void)
{
    pvt_ctx_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 1;
    if (pvt_ctx_create(&desc, &ctx) != PVT_OK) return 1;
    int64_t bytes = pvt_ctx_get_info(ctx).bytes_now;
    test_selection();
    test_steps();
    check_rates("int:2g16", 1, 1), check_rates("int:4g16", 0.25, 0.25), check_rates("int:1g16", 2, 2);
    check_rates("int:3g16s", 0.5, 0.5), check_rates("aqlm:2x8g4", 0.25, 1), check_rates("aqlm:1x8g8", 2, 1);
    check_set_delta();
    test_small_problem();
    test_buffers();
    test_train_words();
    test_qat();
    test_refusals();
    test_same_bits();
    test_tuner();
    CHECK(pvt_ctx_get_info(ctx).bytes_now == bytes); /* nothing leaked */
    pvt_ctx_destroy(ctx);
    return test_end();
}
