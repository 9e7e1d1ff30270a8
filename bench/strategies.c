/*  What becomes of a V step's choices where nobody evaluates: a noiseless quadratic of one weight, layer 1.
        φ(W) = ½·Σ_rows (w − w*)·H·(w − w*)ᵀ,   256 x 256, H the mean of 512 correlated inputs' x·xᵀ
    from the calibrated weight (aqlm:2x6g8), 200 steps at constant rates: φ at first, at its least and at
    last, and changes of codes. "shifted": the target moved after calibration (by 0.3 of its size), so that
    there is something to gain. No times are taken.

        build/bench/strategies [--rows] [--only TEXT]                                                     */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "bench.h"

enum { N = 256, INPUTS = 512, STEPS = 200 };

typedef struct problem {
    pvt_ctx *ctx;
    pvt_weight w;
    pvt_real H[N * N], best[N * N], W[N * N], D[N * N], G[N * N];
    double phi; /* at W, with its gradient in G */
} problem;
static problem p;

static double evaluate(void *user)
{
    problem *q = (problem *)user;
    double sum = 0;
    pvt_weight_dequantize(&q->w, q->W);
    for (int i = 0; i < N * N; i++) q->D[i] = q->W[i] - q->best[i];
    memset(q->G, 0, sizeof q->G);
    pvt_linear_forward(q->ctx, q->G, q->D, q->H, NULL, N, N, N);
    for (int i = 0; i < N * N; i++) sum += (double)q->D[i] * (double)q->G[i];
    return sum / 2;
}
/* For the search for L, which must not touch G while pv reads it. */
static double evaluate_only(void *user)
{
    static problem copy;
    const problem *q = (const problem *)user;
    copy = *q;
    return evaluate(&copy);
}

/* The sum of twelve uniform numbers: nearly normal. */
static double normal(uint64_t stream, int64_t i)
{
    double sum = -6;
    for (uint64_t k = 0; k < 12; k++) sum += pvti_random_unit(7, PVTI_RANDOM_USER, stream * 16 + k, (uint64_t)i);
    return sum;
}

static void make(double shift)
{
    static pvt_real X[INPUTS * N];
    for (int i = 0; i < N * N; i++) p.best[i] = (pvt_real)(normal(1, i) + shift * normal(5, i));
    for (int n = 0; n < INPUTS; n++)
        for (int i = 0; i < N; i++)
            X[n * N + i] = (pvt_real)(normal(2, n * N + i) * (0.3 + 2.0 / (1 + i / 16))) +
                           (i ? (pvt_real)0.7 * X[n * N + i - 1] : 0);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int n = 0; n < INPUTS; n++) sum += (double)X[n * N + i] * (double)X[n * N + j];
            p.H[i * N + j] = (pvt_real)(sum / INPUTS);
        }
}

/* The calibrated weight; the target moves after it. */
static pvt_result fit(double shift)
{
    pvt_format format;
    make(0);
    PVTI_TRY(pvt_format_parse(p.ctx, "aqlm:2x6g8", &format));
    PVTI_TRY(pvt_weight_fit(p.ctx, p.best, N, N, p.H, &format, NULL, NULL, &p.w));
    make(shift);
    return PVT_OK;
}

static pvt_result run(const char *name, const pvt_pv_desc *desc, double shift)
{
    double first = 0, least = 1e30, last = 0;
    int64_t changed = 0;
    pvt_pv *pv;
    pvt_pv_stats stats;
    PVTI_TRY(fit(shift));
    PVTI_TRY(pvt_pv_create(p.ctx, desc, &pv));
    PVTI_TRY(pvt_pv_add_weight(pv, &p.w, "w", NULL));
    for (int step = 0; step <= STEPS; step++) {
        last = evaluate(&p);
        first = step ? first : last;
        least = last < least ? last : least;
        if (step == STEPS) break;
        PVTI_TRY(pvt_pv_begin(pv, 1));
        PVTI_TRY(pvt_pv_apply(pv, 0, p.G));
        PVTI_TRY(pvt_pv_end(pv, &stats));
        changed += stats.groups_changed;
    }
    pvt_pv_free(pv), pvt_weight_free(&p.w);
    printf("%-44s %9.1f %9.1f %9.1f %8lld\n", name, first, least, last, (long long)changed);
    return PVT_OK;
}

/* A choice as text: strategy, then words with or without a number. */
static pvt_result parse(const char *text, pvt_pv_desc *d)
{
    char copy[120];
    memset(d, 0, sizeof *d);
    snprintf(copy, sizeof copy, "%s", text);
    char *word = strtok(copy, " ");
    PVTI_TRY(pvt_strategy_parse(p.ctx, word, &d->strategy));
    while ((word = strtok(NULL, " "))) {
        const char *number = strtok(NULL, " ");
        double x = number ? atof(number) : 0;
        if (strcmp(word, "delta") == 0) d->delta = x;
        else if (strcmp(word, "cap") == 0) d->cap = x;
        else if (strcmp(word, "wind") == 0) d->wind = x;
        else if (strcmp(word, "restart") == 0) d->restart = x > 0;
        else if (strcmp(word, "uniform") == 0) d->selection = PVT_SELECT_UNIFORM;
        else if (strcmp(word, "proportional") == 0) d->selection = PVT_SELECT_PROPORTIONAL, d->temperature = x;
        else if (strcmp(word, "moment") == 0) d->key = PVT_KEY_MOMENT;
        else if (strcmp(word, "L") == 0) d->step = PVT_STEP_PLAIN, d->smoothness = x;
        else if (strcmp(word, "search") == 0) d->step = PVT_STEP_PLAIN, d->loss = evaluate_only, d->loss_user = &p;
        else return pvti_fail(p.ctx, PVT_ERR_ARGUMENT, "what is %s?", word);
    }
    return PVT_OK;
}

int main(int argc, char **argv)
{
    static const char *const choices[] = {
        "continuous", "pv", "ste", "pv delta 0.03", "pv delta 0.1", "pv wind 1", "pv wind 0.5", "pv wind 0.3",
        "ste wind 0.5", "ste wind 0.3", "pv restart 1", "ste restart 1", "pv uniform 1", "pv proportional 1",
        "pv moment 1", "linearized", "subspace", "stochastic", "linearized L 100", "linearized L 30",
        "linearized L 10",
        "subspace L 100", "subspace L 30", "subspace L 10", "linearized search 1", "subspace search 1",
        "subspace cap 0.001 search 1"};
    const char *only = "";
    bool head = true;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--rows") == 0) head = false;
        else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc) only = argv[++i];
    }
    if (pvt_ctx_create(NULL, &p.ctx) != PVT_OK) return 1;
    if (head)
        printf("%-44s %9s %9s %9s %8s\n", "quadratic, 200 steps", "first", "least", "last", "changed");
    for (int shifted = 0; shifted < 2; shifted++)
        for (int i = 0; i < (int)(sizeof choices / sizeof *choices); i++) {
            char name[160];
            pvt_pv_desc d;
            snprintf(name, sizeof name, "%s%s", shifted ? "shifted: " : "optimum: ", choices[i]);
            if (!strstr(name, only)) continue;
            if (parse(choices[i], &d) != PVT_OK || run(name, &d, shifted ? 0.3 : 0) != PVT_OK) {
                fprintf(stderr, "strategies: %s: %s\n", name, pvt_ctx_error(p.ctx));
                return 1;
            }
        }
    pvt_ctx_destroy(p.ctx);
    return 0;
}
