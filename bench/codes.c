/*  What codes cost in tuning and calibration, on one weight of SmolLM2 (576 x 1536, 2x8g8; 110,592 groups): the
    gradient's way into codebooks and scales, the V step (keys, selection, search) for 1 % and for all of the
    groups, a whole pvt_pv_apply; k-means as calibration starts with it, and its search for the nearest centroid.

        build/bench/codes [--json] [--rows] [--threads N]                                                       */
#define PVTUNE_IMPLEMENTATION
#define PVTUNE_LAYER 1
#include "../pvtune.h"
#include "bench.h"

enum { O = 576, I = 1536, GROUPS = O * I / 8, K = 256 };

typedef struct setting {
    pvt_ctx *ctx;
    pvt_weight weight;
    pvt_real *target, *dW, *dcodebooks, *dscales, *partial;
    pvt_pv *pv[4]; /* 1 % beam 1, all beam 1, all beam 5, and for whole steps */
    pvti_kmeans kmeans;
} setting;

static void chain(void *arg)
{
    setting *s = (setting *)arg;
    pvt_real *values[PVT_MAX_ARRAYS] = {NULL, s->dcodebooks, s->dscales};
    s->weight.kind->chain(s->ctx, values, &s->weight, s->dW, s->partial);
}
static void assign(setting *s, int i)
{
    pvt_pv_begin(s->pv[i], 1);
    pvti_pv_assign(s->pv[i], 0, s->target);
    s->pv[i]->open = false; /* nothing was applied: no pvt_pv_end */
}
static void assign_some(void *arg) { assign((setting *)arg, 0); }
static void assign_all(void *arg) { assign((setting *)arg, 1); }
static void assign_beam(void *arg) { assign((setting *)arg, 2); }
static void apply(void *arg)
{
    setting *s = (setting *)arg;
    pvt_pv_begin(s->pv[3], 1);
    pvt_pv_apply(s->pv[3], 0, s->dW);
    pvt_pv_end(s->pv[3], NULL);
}
static void kmeans(void *arg)
{
    setting *s = (setting *)arg;
    for (int k = 0; k < K * 8; k++) s->kmeans.centroids[k] = s->kmeans.x[k];
    pvti_kmeans_run(&s->kmeans, 25);
}
static void nearest(void *arg) { pvti_kmeans_run(&((setting *)arg)->kmeans, 0); }

static pvt_real *noise(int64_t n, uint64_t stream)
{
    pvt_real *x = (pvt_real *)malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; x && i < n; i++)
        x[i] = (pvt_real)(pvti_random_unit(1, PVTI_RANDOM_USER, stream, (uint64_t)i) +
                          pvti_random_unit(2, PVTI_RANDOM_USER, stream, (uint64_t)i) - 1);
    return x;
}

static bool make(setting *s, int threads)
{
    pvt_ctx_desc desc;
    pvt_format format;
    memset(s, 0, sizeof *s), memset(&desc, 0, sizeof desc);
    desc.n_threads = threads;
    if (pvt_ctx_create(&desc, &s->ctx) != PVT_OK || pvt_format_parse(s->ctx, "aqlm:2x8g8", &format) != PVT_OK ||
        pvti_weight_alloc(s->ctx, &format, O, I, "weight", &s->weight) != PVT_OK)
        return false;
    for (int64_t k = 0; k < 2 * K * 8; k++)
        pvti_codebooks(&s->weight)[k] = (pvt_real)pvti_random_unit(3, PVTI_RANDOM_USER, 0, (uint64_t)k) - (pvt_real)0.5;
    for (int64_t k = 0; k < O; k++) pvti_scales(&s->weight)[k] = 1;
    for (int64_t k = 0; k < 2 * GROUPS; k++)
        pvti_code_set(&s->weight, k, (int64_t)(pvti_random(4, PVTI_RANDOM_USER, 0, (uint64_t)k) % K));
    s->target = noise(O * I, 5), s->dW = noise(O * I, 6);
    s->dcodebooks = noise(2 * K * 8, 7), s->dscales = noise(O, 8);
    s->partial = (pvt_real *)malloc((size_t)pvti_chain_values(&s->weight) * sizeof(pvt_real));
    for (int i = 0; i < 4; i++) {
        pvt_pv_desc pv;
        memset(&pv, 0, sizeof pv);
        pv.cap = i == 1 || i == 2 ? 1 : 0.01, pv.beam = i == 2 ? 5 : 1;
        pv.values.lr = 1e-9; /* the codebooks stay, so that every run does the same */
        if (pvt_pv_create(s->ctx, &pv, &s->pv[i]) != PVT_OK ||
            pvt_pv_add_weight(s->pv[i], &s->weight, "weight", NULL) != PVT_OK)
            return false;
    }
    s->kmeans.ctx = s->ctx, s->kmeans.rows = O, s->kmeans.GI = I / 8, s->kmeans.D = 8, s->kmeans.K = K;
    s->kmeans.x = s->target, s->kmeans.centroids = noise(K * 8, 9);
    s->kmeans.assigned = (int32_t *)malloc(GROUPS * sizeof(int32_t));
    return s->target && s->dW && s->dcodebooks && s->dscales && s->partial && s->kmeans.centroids && s->kmeans.assigned;
}

int main(int argc, char **argv)
{
    static const struct { const char *what; bench_fn *run; double work; const char *unit; double gflop; } rows[] = {
        {"gradient into codebooks and scales", chain, 1e-9 * O * I, "Gweight/s", 0},
        {"V step, 1 % of 110,592 groups, beam 1", assign_some, 1e-6 * 0.01 * GROUPS, "Mgroup/s", 0},
        {"V step, all groups, beam 1", assign_all, 1e-6 * GROUPS, "Mgroup/s", 2e-9 * 2 * 2 * K * 8 * GROUPS / 2},
        {"V step, all groups, beam 5", assign_beam, 1e-6 * GROUPS, "Mgroup/s", 0},
        {"pvt_pv_apply, 1 % of the groups", apply, 1e-9 * O * I, "Gweight/s", 0},
        {"k-means, 110,592 x 8, 256 clusters, 25 rounds", kmeans, 26e-6 * GROUPS, "Mpoint/s", 26 * 2e-9 * K * 8 * GROUPS},
        {"nearest of 256, 110,592 x 8", nearest, 1e-6 * GROUPS, "Mpoint/s", 2e-9 * K * 8 * GROUPS},
    };
    bench b = bench_start(argc, argv, "codes");
    for (int threads = 1; threads <= b.threads; threads += PVTI_MAX(1, b.threads - 1)) {
        double gflops = bench_gflops(threads);
        setting s;
        if (!make(&s, threads)) return fprintf(stderr, "codes: out of memory\n"), 1;
        for (int64_t i = 0; i < PVTI_COUNT(rows); i++) {
            bench_fn *fn = rows[i].run;
            bench_result r = {0, 0, 0};
            void *arg = &s;
            if (!bench_wants(&b, rows[i].what)) continue;
            bench_run(&r, &fn, &arg, 1, 0.5, false);
            bench_row(&b, rows[i].what, threads, &r, rows[i].work, rows[i].unit,
                      rows[i].gflop > 0 ? gflops * rows[i].work / rows[i].gflop : 0, "fp32 peak");
        }
        for (int i = 0; i < 4; i++) pvt_pv_free(s.pv[i]);
        pvt_weight_free(&s.weight);
        free(s.target), free(s.dW), free(s.dcodebooks), free(s.dscales), free(s.partial);
        free(s.kmeans.centroids), free(s.kmeans.assigned);
        pvt_ctx_destroy(s.ctx);
    }
    return 0;
}
