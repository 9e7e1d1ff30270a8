/*  What a training step costs: a model of SmolLM2-135M's shape with random weights, 2 × 512 tokens. Forward and
    backward of the dense model (what the peers do), then whole tuning steps of a student in codes against a
    teacher: continuous only, and PV with everything that it adds (gradient into codes' buffer, selection,
    search). fp32, and bf16 where the processor multiplies it. Share: of the machine's multiplications in fp32
    (a loop of them, measured here), at 0.87 GFLOP a token forward and backward, 0.27 more for a teacher.

        build/bench/step [--json] [--threads N] [--layers N]                                              */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "bench.h"

enum { BATCH = 2, CTX = 512, TOKENS = BATCH * CTX };

static pvt_real noise(int64_t stream, int64_t i)
{
    return (pvt_real)(pvti_random_unit(7, PVTI_RANDOM_USER, (uint64_t)stream, (uint64_t)i) - 0.5);
}

/* With codes, its linears are random codes instead of random numbers. */
static pvt_model *make(pvt_ctx *ctx, int64_t layers, bool codes)
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
            for (int64_t k = 0; k < 2 * 256 * 8; k++) q.codebooks[k] = noise(i, k) / 8;
            for (int64_t k = 0; k < w->O; k++) q.scales[k] = 1;
            for (int64_t k = 0; k < w->O * w->I / 4; k++)
                ((uint8_t *)q.codes)[k] = (uint8_t)pvti_random(8, PVTI_RANDOM_USER, (uint64_t)i, (uint64_t)k);
            pvt_weight_free(w);
            *w = q;
        } else
            for (int64_t k = 0; k < t.n; k++) ((pvt_real *)(uintptr_t)w->data)[k] = noise(i, k) / 8;
    }
    return model;
}

typedef struct work {
    pvt_run *run;
    const int32_t *ids;
    pvt_tuner *tuner;
    bool failed;
} work;

static pvt_result ignore(void *user, int64_t tensor, const pvt_real *dW)
{
    (void)user, (void)tensor, (void)dW;
    return PVT_OK;
}
static void forward_backward(void *arg)
{
    work *w = (work *)arg;
    double loss;
    int64_t count;
    w->failed |= pvt_run_forward(w->run, w->ids, BATCH, CTX, NULL) != PVT_OK ||
                 pvt_run_backward(w->run, NULL, &loss, &count, ignore, NULL) != PVT_OK;
}
static void tune(void *arg)
{
    work *w = (work *)arg;
    w->failed |= pvt_tuner_step(w->tuner, NULL) != PVT_OK;
}

/* fp32 multiplications and additions a second that this machine reaches: the GEMM's own inner loop on panels
   that stay in L1. */
enum { PEAK_TILES = 2000, PEAK_TASKS = 16 }; /* of each thread */
typedef struct peak {
    int isa;
    float *panels;
} peak;
static void peak_task(void *arg, int64_t i, int worker)
{
    const peak *p = (const peak *)arg;
    float C[PVTI_MR_AVX512 * PVTI_NR_AVX512];
    (void)i, (void)worker;
    for (int k = 0; k < PEAK_TILES; k++)
        PVTI_PICK(p->isa, pvti_micro)
        (C, PVTI_NR_AVX512, p->panels, p->panels + 2048, 128, p->isa == PVTI_AVX512 ? 12 : p->isa == PVTI_AVX2 ? 6 : 4,
         p->isa == PVTI_AVX512 ? 32 : 16, false);
}
static double machine_flops(pvt_ctx *ctx, int threads)
{
    peak p;
    double best = 1e9, rows = ctx->isa == PVTI_AVX512 ? 12 : ctx->isa == PVTI_AVX2 ? 6 : 4, cols = ctx->isa == PVTI_AVX512 ? 32 : 16;
    p.isa = ctx->isa, p.panels = (float *)calloc(8192, sizeof(float));
    for (int pass = 0; pass < 30; pass++) {
        double t = bench_seconds();
        pvti_parallel(ctx, threads * PEAK_TASKS, peak_task, &p);
        t = bench_seconds() - t;
        best = t < best ? t : best;
    }
    free(p.panels);
    return 2.0 * 128 * PEAK_TILES * PEAK_TASKS * rows * cols * threads / best;
}

static int measure(int threads, int64_t layers, bool bf16, bool json)
{
    static const char *const names[3] = {"forward + backward", "tuning, continuous", "tuning, PV"};
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    pvt_model *dense, *student[2];
    pvt_corpus corpus;
    pvt_run_desc run;
    double peak_flops, bytes[3];
    work works[3];
    bench_fn *fns[3] = {forward_backward, tune, tune};
    void *args[3] = {&works[0], &works[1], &works[2]};
    bench_result results[3];
    memset(&desc, 0, sizeof desc), memset(&run, 0, sizeof run), memset(works, 0, sizeof works), memset(&corpus, 0, sizeof corpus);
    desc.n_threads = threads, desc.compute_bf16 = bf16;
    if (pvt_ctx_create(&desc, &ctx) != PVT_OK) return 1;
    peak_flops = machine_flops(ctx, threads);
    dense = make(ctx, layers, false), student[0] = make(ctx, layers, true), student[1] = make(ctx, layers, true);
    corpus.n = 64 * CTX, corpus.ids = PVTI_NEW(ctx, int32_t, corpus.n), corpus.ctx = ctx;
    if (!dense || !student[0] || !student[1] || !corpus.ids) return 1;
    for (int64_t i = 0; i < corpus.n; i++) corpus.ids[i] = (int32_t)(pvti_random(9, PVTI_RANDOM_USER, 0, (uint64_t)i) % 49152);
    run.max_batch = BATCH, run.max_ctx = CTX, run.train = true, run.memory_limit = (int64_t)2 << 30;
    bytes[0] = (double)pvt_ctx_get_info(ctx).bytes_now;
    if (pvt_run_create(ctx, dense, &run, &works[0].run) != PVT_OK) return 1;
    bytes[0] = (double)pvt_ctx_get_info(ctx).bytes_now - bytes[0];
    works[0].ids = corpus.ids;
    for (int s = 0; s < 2; s++) {
        pvt_tune_desc t;
        memset(&t, 0, sizeof t);
        t.steps = 1 << 20, t.batch = BATCH, t.ctx = CTX, t.no_teacher_cache = true;
        t.pv.strategy = s ? PVT_STRATEGY_PV_STE : PVT_STRATEGY_CONTINUOUS, t.pv.values.lr = t.pv.params.lr = 1e-6;
        bytes[1 + s] = (double)pvt_ctx_get_info(ctx).bytes_now;
        if (pvt_tuner_create(ctx, student[s], dense, &corpus, &t, &works[1 + s].tuner) != PVT_OK)
            return fprintf(stderr, "step: %s\n", pvt_ctx_error(ctx)), 1;
        bytes[1 + s] = (double)pvt_ctx_get_info(ctx).bytes_now - bytes[1 + s];
    }
    if (!json) printf("%s: %.0f GFLOP/s in fp32 is what this machine multiplies\n", bf16 ? "bf16" : "fp32", 1e-9 * peak_flops);
    bench_run(results, fns, args, 3, 20, false);
    for (int i = 0; i < 3; i++) {
        double flops = TOKENS * (double)layers / 30 * (i ? 1.14e9 : 0.87e9); /* the head's share is taken as layers' */
        if (layers != 30) flops = 0;
        printf(json ? "{\"bench\":\"step\",\"name\":\"%s\",\"compute\":\"%s\",\"threads\":%d,\"seconds\":%.4f,\"seconds_median\":%.4f,\"tokens_per_second\":%.1f,\"mib\":%.0f,\"of_fp32_peak\":%.3f}\n"
                    : "%-20s %-5s %7d %9.3f %9.3f %10.1f %8.0f %9.2f\n",
               names[i], bf16 ? "bf16" : "fp32", threads, results[i].min, results[i].median, TOKENS / results[i].min,
               bytes[i] / 1048576, flops / results[i].min / peak_flops);
    }
    if (!json)
        printf("PV adds %.1f %% to a tuning step\n", 100 * (results[2].median / results[1].median - 1));
    fflush(stdout);
    if (works[0].failed || works[1].failed || works[2].failed) return fprintf(stderr, "step: %s\n", pvt_ctx_error(ctx)), 1;
    pvt_run_free(works[0].run), pvt_tuner_free(works[1].tuner), pvt_tuner_free(works[2].tuner);
    pvt_model_free(dense), pvt_model_free(student[0]), pvt_model_free(student[1]), pvt_corpus_free(&corpus);
    pvt_ctx_destroy(ctx);
    return 0;
}

int main(int argc, char **argv)
{
    bool json = bench_flag(argc, argv, "--json");
    int threads = pvti_thread_count(0);
    int64_t layers = 30;
    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--threads") == 0) threads = (int)PVTI_MAX(1, strtol(argv[i + 1], NULL, 10));
        if (strcmp(argv[i], "--layers") == 0) layers = PVTI_MAX(1, strtol(argv[i + 1], NULL, 10));
    }
    if (!json) printf("%-20s %-5s %7s %9s %9s %10s %8s %9s\n", "2 x 512 tokens", "", "threads", "best s", "median", "tokens/s", "MiB", "of peak");
    if (measure(threads, layers, false, json)) return 1;
#if PVTI_X86
    if (pvti_has_bf16(pvti_isa_detect())) return measure(threads, layers, true, json);
#endif
    return 0;
}
