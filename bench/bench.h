/*  What the benches share: a clock, minimum and median of repeated runs, candidates taken in turn
    (A B A B …) so that a noisy machine treats them alike, the machine's own limits, and one form of row:
    what, threads, best and median milliseconds, a rate, its share of a limit. Include pvtune.h with
    PVTUNE_IMPLEMENTATION before. Options of every bench: --json, one object per line instead; --rows, no head
    of the table; --threads N; --only TEXT, rows whose name contains it. */
#ifndef PVTUNE_BENCH_H
#define PVTUNE_BENCH_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BENCH_RUNS 256

typedef void bench_fn(void *arg);
typedef struct bench_result {
    double min, median; /* seconds */
    int runs;
} bench_result;

static double bench_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int bench_compare(const void *a, const void *b)
{
    const double *x = (const double *)a, *y = (const double *)b;
    return (*x > *y) - (*x < *y);
}

/* Runs n functions in turn, NULL ones left out, until `budget` seconds have passed for each;
   at least three rounds. With settle, each turn first sleeps and runs once untimed: a thread pool
   (OpenBLAS's is one) spins for a while after its work and would take a core from the next. */
static inline void bench_run(bench_result *results, bench_fn *const *fns, void *const *args, int n,
                             double budget, bool settle)
{
    double *times = (double *)malloc((size_t)n * BENCH_RUNS * sizeof(double)), start = bench_seconds();
    int burst = settle ? 4 : 1, runs = 0;
    for (int i = 0; i < n; i++)
        if (fns[i]) fns[i](args[i]);
    while (runs < 4 || (runs + burst <= BENCH_RUNS && bench_seconds() - start < budget * n)) {
        for (int i = 0; i < n; i++) {
            struct timespec pause = {0, 40000000};
            if (!fns[i]) continue;
            if (settle) nanosleep(&pause, NULL), fns[i](args[i]);
            for (int j = 0; j < burst; j++) {
                double t = bench_seconds();
                fns[i](args[i]);
                times[i * BENCH_RUNS + runs + j] = bench_seconds() - t;
            }
        }
        runs += burst;
    }
    for (int i = 0; i < n; i++) {
        if (!fns[i]) continue;
        qsort(times + i * BENCH_RUNS, (size_t)runs, sizeof(double), bench_compare);
        results[i].min = times[i * BENCH_RUNS], results[i].median = times[i * BENCH_RUNS + runs / 2];
        results[i].runs = runs;
    }
    free(times);
}

typedef struct bench {
    const char *name; /* of the program, for JSON */
    const char *only;
    bool json, rows;
    int threads; /* at most */
} bench;

static inline bool bench_flag(int argc, char **argv, const char *name)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], name) == 0) return true;
    return false;
}
static inline const char *bench_option(int argc, char **argv, const char *name, const char *otherwise)
{
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], name) == 0) return argv[i + 1];
    return otherwise;
}
static inline bench bench_start(int argc, char **argv, const char *name)
{
    bench b;
    b.name = name, b.only = bench_option(argc, argv, "--only", ""), b.json = bench_flag(argc, argv, "--json"), b.rows = b.json || bench_flag(argc, argv, "--rows");
    b.threads = pvti_thread_count((int)strtol(bench_option(argc, argv, "--threads", "0"), NULL, 10));
    if (!b.rows)
        printf("%-44s %7s %11s %11s  %18s  %s\n", "what", "threads", "best ms", "median ms", "rate", "of the machine's limit");
    return b;
}

static inline bool bench_wants(const bench *b, const char *what) { return strstr(what, b->only) != NULL; }

/* A row. work: units of `unit` that a run does, so the rate is work/seconds; limit: the machine's rate, 0: none. */
static inline void bench_row(const bench *b, const char *what, int threads, const bench_result *r, double work,
                             const char *unit, double limit, const char *of)
{
    double rate = work / r->min;
    if (b->json) {
        printf("{\"bench\":\"%s\",\"what\":\"%s\",\"threads\":%d,\"ms\":%.6g,\"ms_median\":%.6g,\"runs\":%d,\"rate\":%.6g,"
               "\"unit\":\"%s\"", b->name, what, threads, 1e3 * r->min, 1e3 * r->median, r->runs, rate, unit);
        if (limit > 0) printf(",\"share\":%.4f,\"of\":\"%s\"", rate / limit, of);
        printf("}\n");
    } else {
        printf("%-44s %7d %11.4g %11.4g  %8.4g %-9s", what, threads, 1e3 * r->min, 1e3 * r->median, rate, unit);
        if (limit > 0) printf("  %3.0f %% of %s", 100 * rate / limit, of);
        printf("\n");
    }
    fflush(stdout);
}

/* GFLOP/s in fp32 that this machine reaches: the GEMM's own inner loop on panels that stay in L1. */
enum { BENCH_TILES = 2000, BENCH_TASKS = 16 }; /* of each thread */
typedef struct bench_peak {
    const pvti_gemm_tiles *tiles;
    float *panels;
} bench_peak;
static inline void bench_peak_task(void *arg, int64_t i, int worker)
{
    const bench_peak *p = (const bench_peak *)arg;
    float C[PVTI_TILE_MOST];
    (void)i, (void)worker;
    for (int k = 0; k < BENCH_TILES; k++)
        p->tiles->micro(C, p->tiles->nr, p->panels, p->panels + 2048, 128, p->tiles->mr, p->tiles->nr, false);
}
static inline double bench_gflops(int threads)
{
    bench_peak p;
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    double best = 1e9;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = threads;
    if (pvt_ctx_create(&desc, &ctx) != PVT_OK) return 0;
    p.tiles = (const pvti_gemm_tiles *)ctx->kernels.gemm_tiles, p.panels = (float *)calloc(8192, sizeof(float));
    double tile = p.tiles ? p.tiles->mr * p.tiles->nr : 0;
    for (int pass = 0; pass < 20 && p.panels && p.tiles; pass++) {
        double t = bench_seconds();
        pvti_parallel(ctx, threads * BENCH_TASKS, bench_peak_task, &p);
        t = bench_seconds() - t;
        best = t < best ? t : best;
    }
    free(p.panels);
    pvt_ctx_destroy(ctx);
    return 2e-9 * 128 * BENCH_TILES * BENCH_TASKS * tile * threads / best;
}

/* GB/s that memory gives: a sum over 256 MB, on so many threads; the best of five passes. */
enum { BENCH_MEMORY = 256 << 20 };
typedef struct bench_reader {
    const uint64_t *from;
    int64_t n;
    uint64_t sum;
} bench_reader;
static inline void bench_read(bench_reader *r)
{
    uint64_t s[8] = {0};
    for (int64_t i = 0; i + 8 <= r->n; i += 8)
        for (int j = 0; j < 8; j++) s[j] ^= r->from[i + j];
    for (int j = 0; j < 8; j++) r->sum ^= s[j];
}
static inline void bench_read_task(void *arg, int64_t i, int worker)
{
    (void)worker;
    bench_read((bench_reader *)arg + i);
}
static inline double bench_memory(int threads)
{
    uint64_t *memory = (uint64_t *)malloc(BENCH_MEMORY);
    bench_reader readers[64];
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    double best = 1e9;
    memset(&desc, 0, sizeof desc);
    threads = threads > 64 ? 64 : threads, desc.n_threads = threads;
    if (!memory || pvt_ctx_create(&desc, &ctx) != PVT_OK) return 0;
    memset(memory, 1, BENCH_MEMORY);
    memset(readers, 0, sizeof readers);
    for (int i = 0; i < threads; i++)
        readers[i].n = BENCH_MEMORY / 8 / threads, readers[i].from = memory + i * readers[i].n;
    for (int pass = 0; pass < 5; pass++) {
        double t = bench_seconds();
        pvti_parallel(ctx, threads, bench_read_task, readers);
        t = bench_seconds() - t;
        if (t < best) best = t;
    }
    pvt_ctx_destroy(ctx);
    free(memory);
    return 1e-9 * BENCH_MEMORY / best;
}

#if PVTUNE_LAYER >= 2
static inline pvt_real bench_noise(int64_t stream, int64_t i)
{
    return (pvt_real)(pvti_random_unit(7, PVTI_RANDOM_USER, (uint64_t)stream, (uint64_t)i) - 0.5) / 8;
}

/* A model of SmolLM2-135M's shape with random weights; with codes, its linears are random codes (2x8g8). */
static inline pvt_model *bench_smollm2(pvt_ctx *ctx, int64_t layers, bool codes)
{
    pvt_model_config c;
    pvt_model *model;
    pvt_format format;
    memset(&c, 0, sizeof c);
    c.layers = layers, c.dim = 576, c.heads = 9, c.kv_heads = 3, c.head_dim = 64, c.ff = 1536, c.vocab = 49152;
    c.ctx = 2048, c.tied = true;
    if (pvt_model_create(ctx, &c, &model) != PVT_OK || pvt_format_parse(ctx, "aqlm:2x8g8", &format) != PVT_OK) return NULL;
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        pvt_weight *w = t.weight, q;
        if (!w) continue;
        if (codes && w != &model->embed) {
            if (pvti_weight_alloc(ctx, &format, w->O, w->I, t.name, &q) != PVT_OK) return NULL;
            for (int64_t k = 0; k < 2 * 256 * 8; k++) pvti_codebooks(&q)[k] = bench_noise(i, k);
            for (int64_t k = 0; k < w->O; k++) pvti_scales(&q)[k] = 1;
            for (int64_t k = 0; k < w->O * w->I / 4; k++)
                ((uint8_t *)q.array[0])[k] = (uint8_t)pvti_random(8, PVTI_RANDOM_USER, (uint64_t)i, (uint64_t)k);
            pvt_weight_free(w);
            *w = q;
        } else
            for (int64_t k = 0; k < t.n; k++) ((pvt_real *)(uintptr_t)w->array[0])[k] = bench_noise(i, k);
    }
    return model;
}
#endif

#endif
