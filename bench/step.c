/*  What a training step costs: a model of SmolLM2-135M's shape with random weights, 2 × 512 tokens. Forward and
    backward of the dense model (what the peers do), then whole tuning steps of a student in codes against a
    teacher: continuous only, and PV with everything that it adds (gradient into codes' buffer, selection,
    search), with the memory that each takes beside the models. fp32, and bf16 where the processor multiplies it.
    The limit counts 0.87 GFLOP a token forward and backward, 0.27 more for a teacher.

        build/bench/step [--json] [--rows] [--threads N] [--layers N]                                              */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "bench.h"

enum { BATCH = 2, CTX = 512, TOKENS = BATCH * CTX };

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

static int measure(const bench *b, int64_t layers, bool bf16, double gflops)
{
    static const char *const names[2][3] = {
        {"2 x 512 forward + backward, fp32", "2 x 512 tuning, continuous, fp32", "2 x 512 tuning, PV, fp32"},
        {"2 x 512 forward + backward, bf16", "2 x 512 tuning, continuous, bf16", "2 x 512 tuning, PV, bf16"}};
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    pvt_model *student[2];
    pvt_corpus corpus;
    pvt_run_desc run;
    double bytes[3];
    work works[3];
    bench_fn *fns[3] = {forward_backward, tune, tune};
    void *args[3] = {&works[0], &works[1], &works[2]};
    bench_result results[3] = {{0, 0, 0}};
    for (int i = 0; i < 3; i++)
        if (!bench_wants(b, names[bf16][i])) fns[i] = NULL;
    if (!fns[0] && !fns[1] && !fns[2]) return 0;
    memset(&desc, 0, sizeof desc), memset(&run, 0, sizeof run), memset(works, 0, sizeof works), memset(&corpus, 0, sizeof corpus);
    desc.n_threads = b->threads, desc.compute_bf16 = bf16;
    if (pvt_ctx_create(&desc, &ctx) != PVT_OK) return 1;
    pvt_model *dense = bench_smollm2(ctx, layers, false);
    student[0] = bench_smollm2(ctx, layers, true), student[1] = bench_smollm2(ctx, layers, true);
    corpus.n = 64 * CTX, corpus.ids = PVTI_NEW(ctx, int32_t, corpus.n), corpus.ctx = ctx;
    if (!dense || !student[0] || !student[1] || !corpus.ids) return 1;
    for (int64_t i = 0; i < corpus.n; i++) corpus.ids[i] = (int32_t)(pvti_random(9, PVTI_RANDOM_USER, 0, (uint64_t)i) % 49152);
    run.max_batch = BATCH, run.max_ctx = CTX, run.train = true, run.memory_limit = (int64_t)2 << 30;
    bytes[0] = (double)pvt_ctx_get_info(ctx).bytes_now;
    if (pvt_run_create(dense, &run, &works[0].run) != PVT_OK) return 1;
    bytes[0] = (double)pvt_ctx_get_info(ctx).bytes_now - bytes[0];
    works[0].ids = corpus.ids;
    for (int s = 0; s < 2; s++) {
        pvt_tune_desc t;
        memset(&t, 0, sizeof t);
        t.steps = 1 << 20, t.batch = BATCH, t.ctx = CTX, t.no_teacher_cache = true, t.eval_every = -1;
        t.pv.strategy = s ? PVT_STRATEGY_SUBSPACE_STE : PVT_STRATEGY_CONTINUOUS, t.pv.values.lr = t.pv.params.lr = 1e-6;
        bytes[1 + s] = (double)pvt_ctx_get_info(ctx).bytes_now;
        if (pvt_tuner_create(student[s], dense, &corpus, &t, &works[1 + s].tuner) != PVT_OK)
            return fprintf(stderr, "step: %s\n", pvt_ctx_error(ctx)), 1;
        bytes[1 + s] = (double)pvt_ctx_get_info(ctx).bytes_now - bytes[1 + s];
    }
    bench_run(results, fns, args, 3, 12, false);
    for (int i = 0; i < 3; i++) {
        double gflop = layers == 30 ? TOKENS * (i ? 1.14 : 0.87) : 0; /* a head's share is not the layers' */
        char what[96];
        if (!fns[i]) continue;
        snprintf(what, sizeof what, "%s, %.0f MiB", names[bf16][i], bytes[i] / 1048576);
        bench_row(b, what, b->threads, &results[i], TOKENS, "token/s", gflop > 0 ? gflops * TOKENS / gflop : 0, "fp32 peak");
    }
    if (fns[1] && fns[2]) fprintf(stderr, "step: PV adds %.1f %% to a tuning step in %s (medians)\n",
            100 * (results[2].median / results[1].median - 1), bf16 ? "bf16" : "fp32");
    if (works[0].failed || works[1].failed || works[2].failed) return fprintf(stderr, "step: %s\n", pvt_ctx_error(ctx)), 1;
    pvt_run_free(works[0].run), pvt_tuner_free(works[1].tuner), pvt_tuner_free(works[2].tuner);
    pvt_model_free(dense), pvt_model_free(student[0]), pvt_model_free(student[1]), pvt_corpus_free(&corpus);
    pvt_ctx_destroy(ctx);
    return 0;
}

int main(int argc, char **argv)
{
    bench b = bench_start(argc, argv, "step");
    int64_t layers = PVTI_MAX(1, strtol(bench_option(argc, argv, "--layers", "30"), NULL, 10));
    double gflops = bench_gflops(b.threads);
    if (measure(&b, layers, false, gflops)) return 1;
#if PVTI_X86
    if (pvti_has_bf16()) return measure(&b, layers, true, gflops);
#endif
    return 0;
}
