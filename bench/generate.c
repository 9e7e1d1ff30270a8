/*  Generation with a model of SmolLM2-135M's shape at two bits (random codes): a prompt of 512 tokens up to its last
    logit, and tokens one by one, the first 64 after a prompt of 8, with the head in fp32 and in q8.

        build/bench/generate [--json] [--rows] [--threads N] [--only TEXT]                                       */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "bench.h"

enum { PROMPT = 512, TOKENS = 64 };

typedef struct setting {
    pvt_run *run;
    int32_t ids[PROMPT];
    pvt_real *logits;
    bool failed;
} setting;

static void prompt(void *arg)
{
    setting *s = (setting *)arg;
    pvt_run_reset(s->run);
    s->failed |= pvt_run_forward(s->run, s->ids, 1, PROMPT, NULL) != PVT_OK ||
                 pvt_run_logits(s->run, PROMPT - 1, 1, s->logits) != PVT_OK;
}
static void tokens(void *arg)
{
    setting *s = (setting *)arg;
    pvt_run_reset(s->run);
    s->failed |= pvt_run_forward(s->run, s->ids, 1, 8, NULL) != PVT_OK;
    for (int i = 0; i < TOKENS; i++) s->failed |= pvt_run_forward(s->run, s->ids + 8 + i, 1, 1, s->logits) != PVT_OK;
}

/* One row; prepared: for single tokens, with the head in q8 or as it is. */
static bool measure(const bench *b, int threads, const char *what, bool bf16, bool prepared, bool q8)
{
    pvt_ctx_desc desc;
    pvt_run_desc run;
    pvt_ctx *ctx;
    bench_fn *fn = prepared ? tokens : prompt;
    bench_result r = {0, 0, 0};
    setting s;
    void *arg = &s;
    if (!bench_wants(b, what)) return true;
    memset(&desc, 0, sizeof desc), memset(&run, 0, sizeof run), memset(&s, 0, sizeof s);
    desc.n_threads = threads, desc.compute_bf16 = bf16;
    run.cache = true, run.max_ctx = run.max_tokens = PROMPT;
    if (pvt_ctx_create(&desc, &ctx) != PVT_OK) return false;
    pvt_model *model = bench_smollm2(ctx, 30, true);
    s.logits = (pvt_real *)malloc(49152 * sizeof *s.logits);
    for (int i = 0; i < PROMPT; i++) s.ids[i] = (int32_t)(pvti_random(9, PVTI_RANDOM_USER, 0, (uint64_t)i) % 49152);
    if (!model || !s.logits || (prepared && pvt_model_prepare(model, q8) != PVT_OK) ||
        pvt_run_create(model, &run, &s.run) != PVT_OK)
        return false;
    bench_run(&r, &fn, &arg, 1, 3, false);
    bench_row(b, what, threads, &r, prepared ? TOKENS : PROMPT, "token/s", 0, NULL);
    pvt_run_free(s.run), pvt_model_free(model), pvt_ctx_destroy(ctx);
    free(s.logits);
    return !s.failed;
}

int main(int argc, char **argv)
{
    bench b = bench_start(argc, argv, "generate");
    bool good = true;
    for (int threads = 1; threads <= b.threads; threads += PVTI_MAX(1, b.threads - 1)) {
        good &= measure(&b, threads, "prompt of 512, fp32", false, false, false);
#if PVTI_X86
        if (pvti_has_bf16()) good &= measure(&b, threads, "prompt of 512, bf16", true, false, false);
#endif
        good &= measure(&b, threads, "64 tokens, head in fp32", false, true, false);
        good &= measure(&b, threads, "64 tokens, head in q8", false, true, true);
    }
    if (!good) fprintf(stderr, "generate: failed\n");
    return !good;
}
