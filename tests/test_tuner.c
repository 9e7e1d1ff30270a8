/*  What the tuner promises about memory: it takes all of it before the first step, and says how much in advance.
    And what a quantization leaves behind that was cancelled or had others before it, and a checkpoint with endless
    names. (What the tuner computes is checked against recorded figures in test_golden, resume and kill −9 in
    test_cli.) */
#define _POSIX_C_SOURCE 200809L /* mkdtemp */
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

static int stop(void *user, const pvt_progress *progress)
{
    return strcmp(progress->phase, "quantize") == 0 && progress->item &&
           strcmp(progress->item, (const char *)user) == 0;
}

/* Every model can still be used: under the address sanitizer, without a read of what was freed. */
static void check_left_behind(void)
{
    char item[] = "model.embed_tokens.weight";
    pvt_ctx_desc ctx_desc;
    pvt_model_config c;
    pvt_quantize_desc q;
    pvt_generate_desc g;
    pvt_generated made;
    pvt_corpus corpus;
    pvt_model *model;
    pvt_ctx *ctx;
    int32_t ids[CTX * WINDOWS];
    for (int i = 0; i < CTX * WINDOWS; i++) ids[i] = (int32_t)(i * i % 599);
    memset(&ctx_desc, 0, sizeof ctx_desc), memset(&c, 0, sizeof c), memset(&q, 0, sizeof q), memset(&g, 0, sizeof g);
    ctx_desc.n_threads = 2, ctx_desc.progress = stop, ctx_desc.progress_user = item;
    CHECK(pvt_ctx_create(&ctx_desc, &ctx) == PVT_OK);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, CTX * WINDOWS, &corpus));
    c.layers = 1, c.dim = 64, c.heads = 4, c.kv_heads = 2, c.ff = 128, c.vocab = 600, c.ctx = CTX, c.tied = true;
    q.samples = 4, q.fit.epochs = 1, q.fit.kmeans_steps = 2, g.n = 4;
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x4g4", &q.format));

    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model)); /* cancelled when the tied embedding has been replaced */
    q.embedding = true;
    CHECK(pvt_quantize(ctx, model, &corpus, &q) == PVT_ERR_CANCELLED);
    CHECK_OK(ctx, pvt_generate(ctx, model, ids, 8, &g, &made));
    pvt_ids_free(ctx, made.ids), pvt_model_free(model);

    c.tied = false, q.embedding = false;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model)); /* in two parts, prepared in between */
    q.skip = "mlp";
    CHECK_OK(ctx, pvt_quantize(ctx, model, &corpus, &q));
    CHECK_OK(ctx, pvt_model_prepare(model, false));
    q.skip = "self_attn";
    CHECK_OK(ctx, pvt_quantize(ctx, model, &corpus, &q));
    CHECK_OK(ctx, pvt_generate(ctx, model, ids, 8, &g, &made));
    pvt_ids_free(ctx, made.ids);
    q.skip = NULL, q.format.in_group = 0;
    CHECK(pvt_quantize(ctx, model, &corpus, &q) == PVT_ERR_ARGUMENT);
    pvt_model_free(model), pvt_corpus_free(&corpus);
    pvt_ctx_destroy(ctx);
}

/* A step over a NaN is refused in its middle: that state is not saved, and a checkpoint brings the tuner back. One
   whose first option is 400 letters long is refused, and not a byte beyond the buffer is told. */
static void check_checkpoints(void)
{
    enum { LETTERS = 400 };
    char dir[300], path[400], header[600], letters[LETTERS + 1];
    pvt_tune_desc desc;
    pvt_corpus corpus;
    pvt_model *model;
    pvt_tuner *tuner;
    pvt_ctx *ctx;
    FILE *f;
    int32_t ids[CTX * WINDOWS];
    uint8_t size[8] = {0};
    int n;
    for (int i = 0; i < CTX * WINDOWS; i++) ids[i] = (int32_t)(i * i % 599);
    memset(letters, 'a', LETTERS), letters[LETTERS] = 0;
    memset(&desc, 0, sizeof desc);
    desc.steps = 4, desc.ctx = CTX, desc.cross_entropy = true;
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, CTX * WINDOWS, &corpus));
    model = make(ctx, &corpus, true);
    CHECK_OK(ctx, pvt_tuner_create(ctx, model, NULL, &corpus, &desc, &tuner));
    CHECK(test_scratch(dir, sizeof dir));
    snprintf(path, sizeof path, "%s/checkpoint.safetensors", dir);
    CHECK_OK(ctx, pvt_tuner_step(tuner, NULL));
    CHECK_OK(ctx, pvt_tuner_save(tuner, path));
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        if (t.values) t.values[0] = NAN;
    }
    CHECK(pvt_tuner_step(tuner, NULL) == PVT_ERR_NUMERIC);
    CHECK(pvt_tuner_save(tuner, path) == PVT_ERR_ARGUMENT);
    CHECK_OK(ctx, pvt_tuner_resume(tuner, path));
    CHECK_OK(ctx, pvt_tuner_step(tuner, NULL));
    CHECK(pvt_tuner_step_count(tuner) == 2);
    CHECK_OK(ctx, pvt_tuner_save(tuner, path));

    n = snprintf(header, sizeof header, "{\"__metadata__\":{\"pvtune\":\"%s\"}}", letters);
    size[0] = (uint8_t)(n & 255), size[1] = (uint8_t)(n >> 8);
    f = fopen(path, "wb");
    CHECK(f && fwrite(size, 8, 1, f) == 1 && fwrite(header, (size_t)n, 1, f) == 1 && fclose(f) == 0);
    CHECK(pvt_tuner_resume(tuner, path) == PVT_ERR_MISMATCH);
    letters[199] = 0;
    CHECK(strstr(pvt_ctx_error(ctx), letters) != NULL);
    letters[199] = 'a', letters[200] = 0;
    CHECK(strstr(pvt_ctx_error(ctx), letters) == NULL);
    test_remove(dir);
    pvt_tuner_free(tuner), pvt_model_free(model), pvt_corpus_free(&corpus);
    pvt_ctx_destroy(ctx);
}

int main(void)
{
    check_memory(PVT_STRATEGY_PV_STE, BATCH, PVT_DTYPE_NONE, false, true);
    check_memory(PVT_STRATEGY_PV_STE, 1, PVT_BF16, false, true); /* gradients of all tensors are held */
    check_memory(PVT_STRATEGY_STE, BATCH, PVT_DTYPE_NONE, true, true);
    check_memory(PVT_STRATEGY_CONTINUOUS, 2, PVT_DTYPE_NONE, false, false);
    check_memory(PVT_STRATEGY_PV, BATCH, PVT_DTYPE_NONE, false, true);
    check_left_behind();
    check_checkpoints();
    return test_end();
}
