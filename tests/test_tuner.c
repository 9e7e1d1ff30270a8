/*  What the tuner promises about memory: it takes all of it before the first step, and says how much in advance.
    (What it computes is checked against recorded figures in test_golden, resume and kill −9 in test_cli.) */
#include "../pvtune.h"
#include "test.h"

enum { CTX = 64, BATCH = 4, WINDOWS = 12 };

static pvt_model *make(pvt_ctx *ctx, const pvt_corpus *corpus, bool codes)
{
    pvt_model_config c;
    pvt_quantize_desc q;
    pvt_model *model = NULL;
    memset(&c, 0, sizeof c), memset(&q, 0, sizeof q);
    c.layers = 3, c.dim = 128, c.heads = 4, c.kv_heads = 2, c.ff = 256, c.vocab = 600, c.ctx = CTX;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    q.samples = 4, q.fit.epochs = 1, q.fit.kmeans_steps = 2, q.finetune_epochs = -1;
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:2x4g4", &q.format));
    if (codes) CHECK_OK(ctx, pvt_quantize(ctx, model, corpus, &q));
    return model;
}

/* Steps past an epoch's end; the plan against what the context held at most. */
static void check_memory(pvt_strategy strategy, int64_t micro_batch, pvt_dtype moments, bool freeze, bool teach)
{
    pvt_ctx_desc ctx_desc;
    pvt_tune_desc desc;
    pvt_ctx *ctx;
    pvt_corpus corpus;
    pvt_model *teacher, *student;
    pvt_tuner *tuner;
    int32_t ids[CTX * WINDOWS];
    int64_t plan, before, allocations, i;
    memset(&ctx_desc, 0, sizeof ctx_desc), memset(&desc, 0, sizeof desc);
    ctx_desc.n_threads = 2;
    for (i = 0; i < CTX * WINDOWS; i++) ids[i] = (int32_t)(i * i % 599);
    CHECK(pvt_ctx_create(&ctx_desc, &ctx) == PVT_OK);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, CTX * WINDOWS, &corpus));
    teacher = make(ctx, &corpus, false), student = make(ctx, &corpus, true);
    desc.pv.strategy = strategy, desc.pv.moments = moments, desc.steps = 5, desc.batch = BATCH, desc.ctx = CTX;
    desc.micro_batch = micro_batch, desc.freeze_dense = freeze, desc.cross_entropy = !teach;
    plan = pvt_tuner_bytes(student, teacher, &corpus, &desc);
    pvt_ctx_reset_peak(ctx);
    before = pvt_ctx_get_info(ctx).bytes_now;
    CHECK_OK(ctx, pvt_tuner_create(ctx, student, teacher, &corpus, &desc, &tuner));
    allocations = pvt_ctx_get_info(ctx).allocations;
    for (i = 0; i < desc.steps; i++) CHECK_OK(ctx, pvt_tuner_step(tuner, NULL));
    CHECK(pvt_ctx_get_info(ctx).allocations == allocations);
    CHECK_NEAR((double)(plan - before) / (double)(pvt_ctx_get_info(ctx).bytes_peak - before), 1, 0.05);
    pvt_tuner_free(tuner), pvt_model_free(student), pvt_model_free(teacher), pvt_corpus_free(&corpus);
    pvt_ctx_destroy(ctx);
}

int main(void)
{
    check_memory(PVT_STRATEGY_PV_STE, BATCH, PVT_DTYPE_NONE, false, true);
    check_memory(PVT_STRATEGY_PV_STE, 1, PVT_BF16, false, true); /* gradients of all tensors are held */
    check_memory(PVT_STRATEGY_STE, BATCH, PVT_DTYPE_NONE, true, true);
    check_memory(PVT_STRATEGY_CONTINUOUS, 2, PVT_DTYPE_NONE, false, false);
    check_memory(PVT_STRATEGY_PV, BATCH, PVT_DTYPE_NONE, false, true);
    return test_end();
}
