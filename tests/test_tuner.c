/*  What the tuner promises about memory: it takes all of it before the first step, and says how much in advance.
    That tuning never makes a model worse on held-out text, keeps the best state, resumes and extends to the bit.
    And what a quantization leaves behind that was cancelled or had others before it, and a checkpoint with endless
    names. (What the tuner computes is checked against recorded figures in test_golden, kill −9 in
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
    if (codes) CHECK_OK(ctx, pvt_quantize(model, corpus, &q));
    return model;
}

/* Steps past an epoch's end; the plan against what the context held at most. */
static void check_memory(pvt_strategy strategy, int64_t batch, int64_t micro_batch, pvt_dtype moments, bool freeze,
                         bool teach)
{
    pvt_ctx_desc ctx_desc;
    pvt_tune_desc desc;
    pvt_ctx *ctx;
    pvt_corpus corpus;
    pvt_tuner *tuner;
    int32_t ids[CTX * WINDOWS];
    memset(&ctx_desc, 0, sizeof ctx_desc), memset(&desc, 0, sizeof desc);
    ctx_desc.n_threads = 2;
    for (int64_t i = 0; i < CTX * WINDOWS; i++) ids[i] = (int32_t)(i * i % 599);
    CHECK(pvt_ctx_create(&ctx_desc, &ctx) == PVT_OK);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, CTX * WINDOWS, &corpus));
    pvt_model *teacher = make(ctx, &corpus, false), *student = make(ctx, &corpus, true);
    desc.pv.strategy = strategy, desc.pv.moments = moments, desc.steps = 5, desc.batch = batch, desc.ctx = CTX;
    if (batch != BATCH) desc.steps = 1, desc.pv.codes.amsgrad = desc.pv.values.amsgrad = desc.pv.params.amsgrad = true;
    desc.micro_batch = micro_batch, desc.freeze_dense = freeze, desc.cross_entropy = !teach;
    int64_t plan = pvt_tuner_bytes(student, teacher, &corpus, &desc);
    pvt_ctx_reset_peak(ctx);
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    CHECK_OK(ctx, pvt_tuner_create(student, teacher, &corpus, &desc, &tuner));
    int64_t allocations = pvt_ctx_get_info(ctx).allocations;
    for (int64_t i = 0; i < desc.steps; i++) CHECK_OK(ctx, pvt_tuner_step(tuner, NULL));
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
    CHECK(pvt_quantize(model, &corpus, &q) == PVT_ERR_CANCELLED);
    CHECK_OK(ctx, pvt_generate(model, ids, 8, &g, &made));
    pvt_ids_free(ctx, made.ids), pvt_model_free(model);

    c.tied = false, q.embedding = false;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model)); /* in two parts, prepared in between */
    q.skip = "mlp";
    CHECK_OK(ctx, pvt_quantize(model, &corpus, &q));
    CHECK_OK(ctx, pvt_model_prepare(model, false));
    q.skip = "self_attn";
    CHECK_OK(ctx, pvt_quantize(model, &corpus, &q));
    CHECK_OK(ctx, pvt_generate(model, ids, 8, &g, &made));
    pvt_ids_free(ctx, made.ids);
    q.skip = NULL, q.format.in_group = 0;
    CHECK(pvt_quantize(model, &corpus, &q) == PVT_ERR_ARGUMENT);
    pvt_model_free(model), pvt_corpus_free(&corpus);
    pvt_ctx_destroy(ctx);
}

/* A step over a NaN is refused in its middle: that state is not saved, and a checkpoint brings the tuner back. One
   whose first option is 500 letters long is refused, and not a byte beyond the buffer is told. */
static void check_checkpoints(void)
{
    enum { LETTERS = 500, TOLD = 447 };
    char dir[300], path[400], header[700], letters[LETTERS + 1];
    pvt_tune_desc desc;
    pvt_corpus corpus;
    pvt_tuner *tuner;
    pvt_ctx *ctx;
    int32_t ids[CTX * WINDOWS];
    uint8_t size[8] = {0};
    for (int i = 0; i < CTX * WINDOWS; i++) ids[i] = (int32_t)(i * i % 599);
    memset(letters, 'a', LETTERS), letters[LETTERS] = 0;
    memset(&desc, 0, sizeof desc);
    desc.steps = 4, desc.ctx = CTX, desc.cross_entropy = true;
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, CTX * WINDOWS, &corpus));
    pvt_model *model = make(ctx, &corpus, true);
    CHECK_OK(ctx, pvt_tuner_create(model, NULL, &corpus, &desc, &tuner));
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
    CHECK(pvt_tuner_get_info(tuner).step == 2);
    CHECK_OK(ctx, pvt_tuner_save(tuner, path));

    int n = snprintf(header, sizeof header, "{\"__metadata__\":{\"pvtune\":\"%s\"}}", letters);
    size[0] = (uint8_t)(n & 255), size[1] = (uint8_t)(n >> 8);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(size, 8, 1, f) == 1 && fwrite(header, (size_t)n, 1, f) == 1 && fclose(f) == 0);
    CHECK(pvt_tuner_resume(tuner, path) == PVT_ERR_MISMATCH);
    letters[TOLD] = 0;
    CHECK(strstr(pvt_ctx_error(ctx), letters) != NULL);
    letters[TOLD] = 'a', letters[TOLD + 1] = 0;
    CHECK(strstr(pvt_ctx_error(ctx), letters) == NULL);
    test_remove(dir);
    pvt_tuner_free(tuner), pvt_model_free(model), pvt_corpus_free(&corpus);
    pvt_ctx_destroy(ctx);
}

/* ---- defaults, evaluation, the best state ---- */

static void check_defaults(void)
{
    pvt_pv_desc zero;
    memset(&zero, 0, sizeof zero);
    pvt_pv_desc d = pvt_pv_resolve(NULL);
    CHECK(d.codes.rule == PVT_OPTIMIZER_LAMB && d.values.rule == PVT_OPTIMIZER_ADAM && d.params.rule == PVT_OPTIMIZER_ADAM);
    CHECK(d.codes.beta1 == 0 && d.codes.beta2 == 0.95 && d.values.beta1 == 0.9 && d.values.beta2 == 0.95 && d.cap == 0.01);
    d = zero, d.values.beta1 = 0.5; /* one field set leaves the others their defaults */
    d = pvt_pv_resolve(&d);
    CHECK(d.values.beta1 == 0.5 && d.values.beta2 == 0.95 && d.values.lr == pvt_pv_resolve(NULL).values.lr);
    d = zero, d.params.rule = PVT_OPTIMIZER_LAMB;
    d = pvt_pv_resolve(&d);
    CHECK(d.params.rule == PVT_OPTIMIZER_LAMB && d.params.lr > 0 && d.values.rule == PVT_OPTIMIZER_ADAM);
    d = zero, d.codes.rule = PVT_OPTIMIZER_ADAM; /* LAMB's rate would be no rate for Adam */
    CHECK(pvt_pv_resolve(&d).codes.lr < pvt_pv_resolve(NULL).codes.lr);
    d = zero, d.values.beta2 = 0.9; /* β1 = 0 can be said */
    CHECK(pvt_pv_resolve(&d).values.beta1 == 0);
}

typedef struct bench { /* a small model, its quantized copy, and a text */
    pvt_ctx *ctx;
    pvt_corpus corpus;
    pvt_model *teacher, *student;
    pvt_tune_desc desc;
} bench;

/* Ids with some order in them, so that there is something to learn. */
static void text(int32_t *ids, int64_t n, int32_t seed)
{
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)((i * i + seed * i / 7 + i % 13 * 31) % 599);
}

static void bench_open(bench *b, pvt_progress_fn *progress, void *user)
{
    enum { TEXT = 40 * CTX };
    pvt_ctx_desc ctx_desc;
    int32_t ids[TEXT];
    memset(b, 0, sizeof *b), memset(&ctx_desc, 0, sizeof ctx_desc);
    ctx_desc.n_threads = 2, ctx_desc.progress = progress, ctx_desc.progress_user = user;
    text(ids, TEXT, 3);
    CHECK(pvt_ctx_create(&ctx_desc, &b->ctx) == PVT_OK);
    CHECK_OK(b->ctx, pvt_corpus_from_ids(b->ctx, ids, TEXT, &b->corpus));
    b->teacher = make(b->ctx, &b->corpus, false), b->student = make(b->ctx, &b->corpus, true);
    CHECK_OK(b->ctx, pvt_model_round_f16(b->student)); /* as a file would give it */
    b->desc.steps = 8, b->desc.ctx = CTX, b->desc.eval_every = 2;
}

static void bench_close(bench *b)
{
    pvt_model_free(b->student), pvt_model_free(b->teacher), pvt_corpus_free(&b->corpus);
    pvt_ctx_destroy(b->ctx);
}

/* Every parameter, dequantized, in one hash. */
static uint64_t fingerprint(const pvt_model *model)
{
    uint64_t hash = 14695981039346656037u;
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        pvt_real *W = (pvt_real *)malloc((size_t)t.n * sizeof *W);
        const uint8_t *bytes = (const uint8_t *)(t.weight ? W : t.values);
        if (t.weight) pvt_weight_dequantize(t.weight, W);
        for (int64_t k = 0; k < t.n * (int64_t)sizeof *W; k++) hash = (hash ^ bytes[k]) * 1099511628211u;
        free(W);
    }
    return hash;
}

/* No strategy ends above its start, whatever the rates do: where every step does harm the student ends as it began, to
   the bit. With sound rates it ends below. */
static void check_never_worse(pvt_strategy strategy)
{
    for (int wild = 0; wild < 2; wild++) {
        bench b;
        pvt_tuner *tuner;
        pvt_tune_eval saved;
        bench_open(&b, NULL, NULL);
        uint64_t before = fingerprint(b.student);
        b.desc.pv.strategy = strategy;
        if (wild) b.desc.pv.values.lr = 0.5, b.desc.pv.codes.rule = PVT_OPTIMIZER_ADAM, b.desc.pv.codes.lr = 0.5;
        CHECK_OK(b.ctx, pvt_tuner_create(b.student, b.teacher, &b.corpus, &b.desc, &tuner));
        do CHECK_OK(b.ctx, pvt_tuner_step(tuner, NULL));
        while (!pvt_tuner_get_info(tuner).done);
        CHECK(fingerprint(b.student) != before); /* it was tuned … */
        pvt_tuner_info info = pvt_tuner_get_info(tuner);
        CHECK(info.start.step == 0 && info.last.step == info.step);
        CHECK(wild ? info.last.loss > info.start.loss && info.best.step == 0 : info.best.loss < info.start.loss);
        CHECK_OK(b.ctx, pvt_tuner_finish(tuner, &saved));
        CHECK(saved.loss <= info.start.loss && saved.step == info.best.step);
        CHECK_NEAR(saved.loss, info.best.loss, 1e-4 * info.best.loss); /* rounded to fp16 in between */
        CHECK((fingerprint(b.student) == before) == (wild != 0)); /* … and put back where that did harm */
        CHECK(pvt_tuner_step(tuner, NULL) == PVT_ERR_ARGUMENT);
        pvt_tuner_free(tuner);
        bench_close(&b);
    }
}

/* A teacher of another context teaches the same, to the bit. */
static void check_two_contexts(void)
{
    uint64_t prints[2];
    for (int two = 0; two < 2; two++) {
        bench b, other;
        pvt_tuner *tuner;
        bench_open(&b, NULL, NULL), bench_open(&other, NULL, NULL);
        b.desc.steps = 3;
        CHECK_OK(b.ctx, pvt_tuner_create(b.student, two ? other.teacher : b.teacher, &b.corpus, &b.desc, &tuner));
        do CHECK_OK(b.ctx, pvt_tuner_step(tuner, NULL));
        while (!pvt_tuner_get_info(tuner).done);
        CHECK_OK(b.ctx, pvt_tuner_finish(tuner, NULL));
        pvt_tuner_free(tuner);
        prints[two] = fingerprint(b.student);
        bench_close(&b), bench_close(&other);
    }
    CHECK(prints[0] == prints[1]);
}

/* Held-out windows are not tuned on; patience ends a run; without evaluation all is as it was: the last state, all text. */
static void check_evaluation(void)
{
    bench b;
    pvt_tuner *tuner;
    pvt_tune_eval saved;
    bench_open(&b, NULL, NULL);
    b.desc.steps = 200, b.desc.eval_every = 1, b.desc.patience = 3, b.desc.pv.values.lr = 0.5;
    CHECK_OK(b.ctx, pvt_tuner_create(b.student, b.teacher, &b.corpus, &b.desc, &tuner));
    pvt_tuner_info info = pvt_tuner_get_info(tuner);
    CHECK(info.eval_windows == 2 && info.windows == 38 && info.start.step == -1 && info.best.step == -1 && !info.done);
    while (!pvt_tuner_get_info(tuner).done) CHECK_OK(b.ctx, pvt_tuner_step(tuner, NULL));
    info = pvt_tuner_get_info(tuner);
    CHECK(info.stopped && info.step == 3 && info.best.step == 0);
    pvt_tuner_free(tuner);

    b.desc.schedule = PVT_SCHEDULE_WSD, b.desc.steps = 12; /* patience begins with the last third: steps 8, 9, 10 */
    CHECK_OK(b.ctx, pvt_tuner_create(b.student, b.teacher, &b.corpus, &b.desc, &tuner));
    while (!pvt_tuner_get_info(tuner).done) CHECK_OK(b.ctx, pvt_tuner_step(tuner, NULL));
    info = pvt_tuner_get_info(tuner);
    CHECK(info.stopped && info.step == 10 && info.best.step == 0);
    pvt_tuner_free(tuner);
    b.desc.schedule = PVT_SCHEDULE_COSINE, b.desc.steps = 200;

    b.desc.eval_windows = 40;
    CHECK(pvt_tuner_create(b.student, b.teacher, &b.corpus, &b.desc, &tuner) == PVT_ERR_ARGUMENT);
    b.desc.eval_windows = 0, b.desc.eval_every = -1, b.desc.steps = 2, b.desc.pv.values.lr = 0;
    CHECK_OK(b.ctx, pvt_tuner_create(b.student, b.teacher, &b.corpus, &b.desc, &tuner));
    CHECK(pvt_tuner_get_info(tuner).windows == 40 && pvt_tuner_get_info(tuner).eval_windows == 0);
    CHECK_OK(b.ctx, pvt_tuner_step(tuner, NULL));
    CHECK_OK(b.ctx, pvt_tuner_step(tuner, NULL));
    CHECK_OK(b.ctx, pvt_tuner_finish(tuner, &saved));
    CHECK(saved.step == -1 && isnan(saved.loss));
    pvt_tuner_free(tuner);

    CHECK(pvt_tuner_create(b.teacher, b.teacher, &b.corpus, &b.desc, &tuner) == PVT_ERR_ARGUMENT); /* nothing to learn */
    CHECK(strstr(pvt_ctx_error(b.ctx), "teacher itself") != NULL);
    b.desc.steps = INT64_MAX;
    CHECK(pvt_tuner_create(b.student, b.teacher, &b.corpus, &b.desc, &tuner) == PVT_ERR_ARGUMENT);
    b.desc.steps = 2;
    CHECK_OK(b.ctx, pvt_tune(b.student, b.teacher, &b.corpus, &b.desc, &info));
    CHECK(info.done && info.step == 2 && !info.stopped);
    bench_close(&b);
}

static void steps(const bench *b, pvt_tuner *tuner, int64_t n)
{
    while (n-- > 0) CHECK_OK(b->ctx, pvt_tuner_step(tuner, NULL));
}

/* From a checkpoint to the same bits, the best state and its figure included; a longer plan extends a run, under a
   constant rate to what the longer run would have been. Another student is refused, also where only a frozen tensor differs. */
/* Each choice with as many digits as a number has: all of them are written, and compared. */
static void check_long_options(void)
{
    char dir[300], path[400];
    bench b;
    pvt_tuner *tuner;
    bench_open(&b, NULL, NULL);
    CHECK(test_scratch(dir, sizeof dir));
    snprintf(path, sizeof path, "%s/checkpoint.safetensors", dir);
    b.desc.pv.cap = b.desc.pv.trust = b.desc.pv.delta = b.desc.pv.rounding = 1.2345678901234567e-05;
    b.desc.pv.temperature = b.desc.pv.wind = 1.2345678901234567e-05, b.desc.pv.beam = 10, b.desc.pv.restart = true;
    b.desc.pv.key = PVT_KEY_ROOT_MOMENT, b.desc.pv.train = PVT_TRAIN_ALL & ~(unsigned)PVT_TRAIN_SCALES;
    for (int i = 0; i < 2; i++) {
        if (i) b.desc.pv.train = PVT_TRAIN_ALL & ~(unsigned)PVT_TRAIN_NORMS;
        CHECK_OK(b.ctx, pvt_tuner_create(b.student, b.teacher, &b.corpus, &b.desc, &tuner));
        if (i == 0) CHECK_OK(b.ctx, pvt_tuner_save(tuner, path));
        CHECK(pvt_tuner_resume(tuner, path) == (i ? PVT_ERR_MISMATCH : PVT_OK));
        pvt_tuner_free(tuner);
    }
    test_remove(dir);
    bench_close(&b);
}

static void check_resume(void)
{
    char dir[300], path[400];
    bench b, c, d;
    pvt_tuner *tuner, *other, *whole;
    pvt_tune_eval one, two;
    bench_open(&b, NULL, NULL), bench_open(&c, NULL, NULL), bench_open(&d, NULL, NULL);
    CHECK(test_scratch(dir, sizeof dir));
    snprintf(path, sizeof path, "%s/checkpoint.safetensors", dir);
    CHECK_OK(b.ctx, pvt_tuner_create(b.student, b.teacher, &b.corpus, &b.desc, &tuner));
    steps(&b, tuner, 3);
    CHECK_OK(b.ctx, pvt_tuner_save(tuner, path));
    steps(&b, tuner, 5);
    CHECK_OK(b.ctx, pvt_tuner_finish(tuner, &one));
    CHECK(pvt_tuner_save(tuner, path) == PVT_ERR_ARGUMENT); /* the masters are gone */
    CHECK_OK(c.ctx, pvt_tuner_create(c.student, c.teacher, &c.corpus, &c.desc, &other));
    CHECK_OK(c.ctx, pvt_tuner_resume(other, path));
    CHECK(pvt_tuner_get_info(other).step == 3 && pvt_tuner_get_info(other).last.step == 2);
    steps(&c, other, 5);
    CHECK_OK(c.ctx, pvt_tuner_finish(other, &two));
    CHECK(memcmp(&one, &two, sizeof one) == 0 && fingerprint(b.student) == fingerprint(c.student));
    pvt_tuner_free(tuner), pvt_tuner_free(other);
    bench_close(&b), bench_close(&c);

    bench_open(&b, NULL, NULL), bench_open(&c, NULL, NULL);
    b.desc.schedule = PVT_SCHEDULE_CONSTANT, b.desc.steps = 4, b.desc.freeze_dense = true;
    c.desc = b.desc, c.desc.steps = 8, d.desc = c.desc;
    CHECK_OK(b.ctx, pvt_tuner_create(b.student, b.teacher, &b.corpus, &b.desc, &tuner));
    steps(&b, tuner, 4);
    CHECK(pvt_tuner_get_info(tuner).done);
    CHECK_OK(b.ctx, pvt_tuner_save(tuner, path));
    CHECK_OK(c.ctx, pvt_tuner_create(c.student, c.teacher, &c.corpus, &c.desc, &other));
    CHECK_OK(c.ctx, pvt_tuner_resume(other, path));
    CHECK(!pvt_tuner_get_info(other).done && pvt_tuner_get_info(other).resumed_steps == 4);
    steps(&c, other, 4);
    CHECK_OK(d.ctx, pvt_tuner_create(d.student, d.teacher, &d.corpus, &d.desc, &whole));
    steps(&d, whole, 8);
    CHECK_OK(c.ctx, pvt_tuner_finish(other, &one));
    CHECK_OK(d.ctx, pvt_tuner_finish(whole, &two));
    CHECK(memcmp(&one, &two, sizeof one) == 0 && fingerprint(c.student) == fingerprint(d.student));
    CHECK(pvt_tuner_resume(tuner, path) == PVT_OK);
    pvt_tuner_free(tuner), pvt_tuner_free(other), pvt_tuner_free(whole);
    bench_close(&c), bench_close(&d);

    bench_open(&d, NULL, NULL);
    d.desc = b.desc, d.desc.warmup = 3; /* of the same plan: other rates, other bits */
    CHECK_OK(d.ctx, pvt_tuner_create(d.student, d.teacher, &d.corpus, &d.desc, &whole));
    CHECK(pvt_tuner_resume(whole, path) == PVT_ERR_MISMATCH && strstr(pvt_ctx_error(d.ctx), "another warm-up: it has"));
    pvt_tuner_free(whole), bench_close(&d);

    bench_open(&d, NULL, NULL); /* its embedding, which stays frozen, differs in one number */
    d.desc = b.desc;
    ((pvt_real *)(uintptr_t)pvt_model_tensor(d.student, 0).weight->array[0])[5] += 1;
    CHECK_OK(d.ctx, pvt_tuner_create(d.student, d.teacher, &d.corpus, &d.desc, &whole));
    CHECK(pvt_tuner_resume(whole, path) == PVT_ERR_MISMATCH && strstr(pvt_ctx_error(d.ctx), "student"));
    pvt_tuner_free(whole);
    test_remove(dir);
    bench_close(&b), bench_close(&d);
}

/* Rates, δ and what is resumed, step by step: a rate that is constant and then falls along a line; a δ that rises late,
   without which the same steps end elsewhere, and which a resumed run takes up where it was. */
static void check_schedules(void)
{
    pvt_tune_stats s;
    pvt_tuner *tuner;
    bench b;
    uint64_t ends[5];
    char dir[256], path[300];
    CHECK(test_scratch(dir, sizeof dir));
    snprintf(path, sizeof path, "%s/c.safetensors", dir);
    /* 0: δ rises; 1: the same, resumed in between; 2: it does not rise; 3: only after the last step, 4: never */
    for (int run = 0; run < 5; run++) {
        static const double from[] = {0.5, 0.5, 0, 1, 0};
        bench_open(&b, NULL, NULL);
        b.desc.schedule = PVT_SCHEDULE_WSD, b.desc.steps = 9, b.desc.warmup = 2;
        b.desc.pv.delta = run == 4 ? 0 : 0.8, b.desc.delta_from = from[run], b.desc.eval_every = -1;
        b.desc.pv.codes.lr = 0.3, b.desc.pv.cap = 0.2; /* codes change, so that δ matters */
        CHECK_OK(b.ctx, pvt_tuner_create(b.student, b.teacher, &b.corpus, &b.desc, &tuner));
        for (int step = 0; step < 9; step++) {
            static const double rates[] = {0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25};
            CHECK_OK(b.ctx, pvt_tuner_step(tuner, &s));
            CHECK_NEAR(s.lr_scale, rates[step], 1e-12);
            if (run == 0 && step == 6) CHECK_OK(b.ctx, pvt_tuner_save(tuner, path));
            if (run != 1 || step != 2) continue;
            CHECK_OK(b.ctx, pvt_tuner_resume(tuner, path));
            step = 6;
        }
        ends[run] = fingerprint(b.student);
        pvt_tuner_free(tuner);
        if (run == 2) { /* a rate that is given is another than the default of the same size */
            b.desc.pv.codes.lr = 0, b.desc.pv.delta = 0.8, b.desc.delta_from = 0.5;
            CHECK_OK(b.ctx, pvt_tuner_create(b.student, b.teacher, &b.corpus, &b.desc, &tuner));
            CHECK_OK(b.ctx, pvt_tuner_save(tuner, path));
            pvt_tuner_free(tuner);
            b.desc.pv.codes.lr = 2.5e-2;
            CHECK_OK(b.ctx, pvt_tuner_create(b.student, b.teacher, &b.corpus, &b.desc, &tuner));
            CHECK(pvt_tuner_resume(tuner, path) == PVT_ERR_MISMATCH && strstr(pvt_ctx_error(b.ctx), "learning rate of codes"));
            pvt_tuner_free(tuner);
        }
        b.desc.pv.delta = 0, b.desc.delta_from = 0.5;
        CHECK(pvt_tuner_create(b.student, b.teacher, &b.corpus, &b.desc, &tuner) == PVT_ERR_ARGUMENT);
        CHECK(strstr(pvt_ctx_error(b.ctx), "delta_from") != NULL);
        bench_close(&b);
    }
    CHECK(ends[0] == ends[1] && ends[0] != ends[2] && ends[0] != ends[4]);
    CHECK(ends[3] == ends[4]);
    test_remove(dir);
}

/* Rates left open follow the bits of the student's codes, (mean of 4^−B / 4^−2)^¾; given ones stay. */
static void check_coarseness(void)
{
    static const struct { const char *format; double factor; } rows[] = {
        {"int:1g32", 2.8284271247461903}, {"int:2g32", 1}, {"int:4g32", 0.125}, {"aqlm:2x6g4", 0.35355339059327379}};
    pvt_tune_desc d, open;
    bench b;
    bench_open(&b, NULL, NULL);
    memset(&open, 0, sizeof open);
    for (int i = 0; i < (int)(sizeof rows / sizeof *rows); i++) {
        pvt_quantize_desc q;
        pvt_model *student;
        memset(&q, 0, sizeof q);
        CHECK_OK(b.ctx, pvt_format_parse(b.ctx, rows[i].format, &q.format));
        q.samples = 2, q.fit.epochs = 1, q.fit.kmeans_steps = 1, q.finetune_epochs = -1;
        CHECK_OK(b.ctx, pvt_model_copy(b.ctx, b.teacher, &student));
        CHECK_OK(b.ctx, pvt_quantize(student, &b.corpus, &q));
        d = pvt_tune_resolve(student, &open);
        CHECK_NEAR(d.pv.values.lr, 3e-4 * rows[i].factor, 1e-18);
        CHECK(d.pv.params.lr == d.pv.values.lr && d.pv.values.by_bits && !d.pv.params.by_bits && d.pv.codes.lr == 2.5e-2);
        pvt_tune_desc again = pvt_tune_resolve(student, &d);
        CHECK(memcmp(&again, &d, sizeof d) == 0); /* what is resolved stays as it is */
        open.pv.params.lr = 1e-3, open.pv.values.lr = 2e-3;
        d = pvt_tune_resolve(student, &open);
        CHECK(d.pv.params.lr == 1e-3 && d.pv.values.lr == 2e-3 && !d.pv.values.by_bits);
        open.pv.params.lr = open.pv.values.lr = 0;
        pvt_model_free(student);
    }
    bench_close(&b);
}

static int stop_evaluation(void *user, const pvt_progress *progress)
{
    int *left = (int *)user;
    return strcmp(progress->phase, "evaluate") == 0 && --*left == 0;
}

/* Stopped within an evaluation: the step stands, and the evaluation is made up for. */
static void check_cancelled_evaluation(void)
{
    bench b;
    pvt_tuner *tuner;
    pvt_tune_eval one;
    bench_open(&b, NULL, NULL);
    b.desc.micro_batch = 1; /* two reports in each evaluation */
    CHECK_OK(b.ctx, pvt_tuner_create(b.student, b.teacher, &b.corpus, &b.desc, &tuner));
    steps(&b, tuner, 8);
    CHECK_OK(b.ctx, pvt_tuner_finish(tuner, &one));
    for (int at = 1; at <= 4; at++) {
        int left = at;
        bench c;
        pvt_tuner *other;
        pvt_tune_eval two;
        int cancelled = 0;
        bench_open(&c, stop_evaluation, &left);
        c.desc.micro_batch = 1;
        CHECK_OK(c.ctx, pvt_tuner_create(c.student, c.teacher, &c.corpus, &c.desc, &other));
        while (!pvt_tuner_get_info(other).done) {
            pvt_result result = pvt_tuner_step(other, NULL);
            CHECK(result == PVT_OK || result == PVT_ERR_CANCELLED);
            cancelled += result == PVT_ERR_CANCELLED;
        }
        CHECK(cancelled == 1);
        CHECK_OK(c.ctx, pvt_tuner_finish(other, &two));
        CHECK(memcmp(&one, &two, sizeof one) == 0 && fingerprint(b.student) == fingerprint(c.student));
        pvt_tuner_free(other);
        bench_close(&c);
    }
    pvt_tuner_free(tuner);
    bench_close(&b);
}

static int stop_accumulation(void *user, const pvt_progress *progress)
{
    int *left = (int *)user;
    return strcmp(progress->phase, "tune") == 0 && progress->done == 1 && --*left == 0;
}

/* Stopped between two micro-batches: the step has not begun, and is done whole afterwards. */
static void check_cancelled_step(void)
{
    int left = 3; /* the step's own end, after the first micro-batch, after the second */
    bench b, c;
    pvt_tuner *tuner, *other;
    bench_open(&b, NULL, NULL), bench_open(&c, stop_accumulation, &left);
    b.desc.micro_batch = c.desc.micro_batch = 1, b.desc.batch = c.desc.batch = 4, b.desc.eval_every = c.desc.eval_every = -1;
    CHECK_OK(b.ctx, pvt_tuner_create(b.student, b.teacher, &b.corpus, &b.desc, &tuner));
    CHECK_OK(c.ctx, pvt_tuner_create(c.student, c.teacher, &c.corpus, &c.desc, &other));
    steps(&b, tuner, 3), steps(&c, other, 1);
    CHECK(pvt_tuner_step(other, NULL) == PVT_ERR_CANCELLED && left == 0 && pvt_tuner_get_info(other).step == 1);
    steps(&c, other, 2);
    CHECK(fingerprint(b.student) == fingerprint(c.student));
    pvt_tuner_free(tuner), pvt_tuner_free(other);
    bench_close(&b), bench_close(&c);
}

/* V step alone: codebooks and scales keep every bit, codes do not. */
static void check_freeze_values(void)
{
    bench b, c;
    pvt_tuner *tuner;
    int64_t values = 0, codes = 0;
    bench_open(&b, NULL, NULL), bench_open(&c, NULL, NULL);
    b.desc.pv.freeze_values = true, b.desc.freeze_dense = true, b.desc.eval_every = -1;
    b.desc.pv.codes.lr = 0.3, b.desc.pv.cap = 1;
    CHECK_OK(b.ctx, pvt_tuner_create(b.student, b.teacher, &b.corpus, &b.desc, &tuner));
    steps(&b, tuner, 8);
    for (int64_t i = 0; i < pvt_model_tensors(b.student); i++) {
        const pvt_weight *x = pvt_model_tensor(b.student, i).weight, *y = pvt_model_tensor(c.student, i).weight;
        if (!x || x->format.kind == PVT_FORMAT_DENSE) continue;
        values += memcmp(x->array[1], y->array[1], 2 * 16 * 4 * sizeof(pvt_real)) != 0;
        values += memcmp(x->array[2], y->array[2], (size_t)x->O * sizeof(pvt_real)) != 0;
        codes += memcmp(x->array[0], y->array[0], (size_t)(x->O * x->I / 4 * 2)) != 0;
    }
    CHECK(values == 0 && codes > 0);
    pvt_tuner_free(tuner);
    bench_close(&b), bench_close(&c);
}

/* ---- what is trained ---- */

/* A Qwen2, which has biases, of integers but for one matrix. */
static pvt_model *make_integers(pvt_ctx *ctx, const pvt_corpus *corpus, bool tied, bool codes)
{
    pvt_model_config c;
    pvt_quantize_desc q;
    pvt_model *model = NULL;
    memset(&c, 0, sizeof c), memset(&q, 0, sizeof q);
    snprintf(c.family, sizeof c.family, "qwen2");
    c.layers = 1, c.dim = 64, c.heads = 4, c.kv_heads = 2, c.ff = 128, c.vocab = 600, c.ctx = CTX, c.tied = tied;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    q.samples = 4, q.fit.method = PVT_FIT_RTN, q.finetune_epochs = -1, q.skip = tied ? NULL : "mlp.up_proj";
    CHECK_OK(ctx, pvt_format_parse(ctx, "int:2g32", &q.format));
    if (codes) CHECK_OK(ctx, pvt_quantize(model, corpus, &q));
    return model;
}

/* The word of --train that an array of a tensor goes by. */
static unsigned word_of(const pvt_tensor_info *t, const char *array, bool tied)
{
    if (array && strcmp(array, "codes") == 0) return PVT_TRAIN_CODES;
    if (array && strcmp(array, "scales") == 0) return PVT_TRAIN_SCALES;
    if (array && strcmp(array, "zeros") == 0) return PVT_TRAIN_ZEROS;
    if (strstr(t->name, "norm")) return PVT_TRAIN_NORMS;
    if (strstr(t->name, "bias")) return PVT_TRAIN_BIASES;
    if (strstr(t->name, "embed")) return PVT_TRAIN_EMBEDDING | (tied ? (unsigned)PVT_TRAIN_HEAD : 0u);
    return strstr(t->name, "lm_head") ? PVT_TRAIN_HEAD : PVT_TRAIN_LINEARS;
}

static pvt_tune_desc train_plan(const char *words)
{
    pvt_tune_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.steps = 3, desc.ctx = CTX, desc.eval_every = -1, desc.schedule = PVT_SCHEDULE_CONSTANT;
    desc.pv.strategy = PVT_STRATEGY_STE, desc.pv.codes.lr = 0.6, desc.pv.values.lr = 1e-2;
    CHECK(pvt_train_parse(NULL, words, &desc.pv.train) == PVT_OK);
    return desc;
}

/* What the words name moves, all of it, and all else keeps every bit; the plan of memory holds. */
static void check_train(const char *words, bool tied, bool freeze_dense)
{
    pvt_ctx *ctx;
    pvt_corpus corpus;
    pvt_tuner *tuner;
    int32_t ids[CTX * WINDOWS];
    int wrong = 0, moved = 0;
    text(ids, CTX * WINDOWS, 5);
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, CTX * WINDOWS, &corpus));
    pvt_model *teacher = make_integers(ctx, &corpus, tied, false), *student = make_integers(ctx, &corpus, tied, true);
    pvt_model *before = make_integers(ctx, &corpus, tied, true);
    pvt_tune_desc desc = train_plan(words);
    unsigned train = desc.pv.train & ~(freeze_dense ? (unsigned)PVT_TRAIN_DENSE : 0u);
    desc.freeze_dense = freeze_dense;
    int64_t plan = pvt_tuner_bytes(student, teacher, &corpus, &desc), now = pvt_ctx_get_info(ctx).bytes_now;
    pvt_ctx_reset_peak(ctx);
    CHECK_OK(ctx, pvt_tuner_create(student, teacher, &corpus, &desc, &tuner));
    for (int i = 0; i < 3; i++) CHECK_OK(ctx, pvt_tuner_step(tuner, NULL));
    CHECK_NEAR((double)(plan - now) / (double)(pvt_ctx_get_info(ctx).bytes_peak - now), 1, 0.05);
    for (int64_t i = 0; i < pvt_model_tensors(student); i++) {
        pvt_tensor_info x = pvt_model_tensor(student, i), y = pvt_model_tensor(before, i);
        pvt_array a[PVT_MAX_ARRAYS], b[PVT_MAX_ARRAYS];
        int n = x.weight ? pvt_weight_arrays(x.weight, a) : 1;
        if (x.weight) pvt_weight_arrays(y.weight, b);
        else a[0].data = x.values, b[0].data = y.values, a[0].bytes = x.n * (int64_t)sizeof(pvt_real), a[0].name = NULL;
        for (int k = 0; k < n; k++) {
            bool differs = memcmp(a[k].data, b[k].data, (size_t)a[k].bytes) != 0;
            bool wanted = (train & word_of(&x, x.weight && x.dtype == PVT_DTYPE_NONE ? a[k].name : NULL, tied)) != 0;
            if (differs != wanted) printf("    %s: %s %s\n", words, x.name, differs ? "moved" : "stayed");
            wrong += differs != wanted, moved += differs;
        }
    }
    CHECK(wrong == 0 && moved > 0);
    pvt_tuner_free(tuner), pvt_model_free(student), pvt_model_free(before), pvt_model_free(teacher);
    pvt_corpus_free(&corpus), pvt_ctx_destroy(ctx);
}

/* A surrogate takes one gradient of the largest weight more, and the plan says so. */
static void check_surrogate_memory(pvt_model *student, const pvt_model *teacher, const pvt_corpus *corpus, pvt_ctx *ctx)
{
    int64_t plan[2], held[2];
    for (int i = 0; i < 2; i++) {
        pvt_tune_desc desc = train_plan("all");
        pvt_tuner *tuner;
        desc.pv.surrogate = i ? PVT_SURROGATE_ROOT : PVT_SURROGATE_NONE;
        int64_t before = pvt_ctx_get_info(ctx).bytes_now;
        plan[i] = pvt_tuner_bytes(student, teacher, corpus, &desc);
        CHECK_OK(ctx, pvt_tuner_create(student, teacher, corpus, &desc, &tuner));
        held[i] = pvt_ctx_get_info(ctx).bytes_now - before;
        pvt_tuner_free(tuner);
    }
    CHECK(plan[1] - plan[0] == 64 * 128 * (int64_t)sizeof(pvt_real));
    CHECK_NEAR(held[1] - held[0], plan[1] - plan[0], 128); /* an allocation has a header */
}

/* Zeros stay whole while all else is tuned, by a surrogate, too: then GPTQ's layout holds the model, else it does not. */
static void check_train_exports(void)
{
    char dir[300], path[400];
    pvt_ctx *ctx;
    pvt_corpus corpus;
    pvt_tuner *tuner = NULL;
    int32_t ids[CTX * WINDOWS];
    text(ids, CTX * WINDOWS, 5);
    CHECK(test_scratch(dir, sizeof dir));
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, CTX * WINDOWS, &corpus));
    for (int whole = 0; whole < 2; whole++) {
        pvt_model *teacher = make_integers(ctx, &corpus, true, false), *student = make_integers(ctx, &corpus, true, true);
        pvt_tune_desc desc = train_plan(whole ? "codes,scales,norms,biases,embedding" : "all");
        desc.pv.surrogate = PVT_SURROGATE_IDENTITY;
        if (whole) check_surrogate_memory(student, teacher, &corpus, ctx);
        CHECK_OK(ctx, pvt_tune(student, teacher, &corpus, &desc, NULL));
        snprintf(path, sizeof path, "%s/gptq%d", dir, whole);
        CHECK(pvt_model_export(student, "gptq", path, NULL) == (whole ? PVT_OK : PVT_ERR_UNSUPPORTED));
        if (!whole) CHECK(strstr(pvt_ctx_error(ctx), "the zero") && strstr(pvt_ctx_error(ctx), "train"));
        desc.pv.train = PVT_TRAIN_CODEBOOKS, desc.pv.surrogate = PVT_SURROGATE_NONE;
        CHECK(pvt_tuner_create(student, teacher, &corpus, &desc, &tuner) == PVT_ERR_ARGUMENT && !tuner);
        CHECK(strstr(pvt_ctx_error(ctx), "what is to be trained (codebooks) the student has nothing"));
        pvt_model_free(student), pvt_model_free(teacher);
    }
    test_remove(dir);
    pvt_corpus_free(&corpus), pvt_ctx_destroy(ctx);
}

static void check_training(void)
{
    static const char *const words[] = {"codes", "scales", "zeros", "norms", "biases", "embedding", "head", "linears",
                                        "scales,norms", "all"};
    for (int i = 0; i < (int)(sizeof words / sizeof *words); i++) check_train(words[i], false, false);
    check_train("head", true, false), check_train("all", false, true);
    check_train_exports();
}

int main(void)
{
    check_training();
    check_memory(PVT_STRATEGY_SUBSPACE_STE, BATCH, BATCH, PVT_DTYPE_NONE, false, true);
    check_never_worse(PVT_STRATEGY_SUBSPACE_STE);
    check_two_contexts();
    check_evaluation();
    check_resume();
    if (TEST_THREAD_SANITIZER) return test_end();
    check_memory(PVT_STRATEGY_SUBSPACE_STE, 65, 0, PVT_DTYPE_NONE, false, true); /* 64 fit, 13 divide */
    check_memory(PVT_STRATEGY_SUBSPACE_STE, BATCH, 1, PVT_BF16, false, true); /* gradients of all tensors are held */
    check_memory(PVT_STRATEGY_STE, BATCH, BATCH, PVT_DTYPE_NONE, true, true);
    check_memory(PVT_STRATEGY_CONTINUOUS, BATCH, 2, PVT_DTYPE_NONE, false, false);
    check_memory(PVT_STRATEGY_SUBSPACE, BATCH, BATCH, PVT_DTYPE_NONE, false, true);
    check_memory(PVT_STRATEGY_STOCHASTIC, BATCH, BATCH, PVT_DTYPE_NONE, false, true);
    check_left_behind();
    check_checkpoints();
    check_defaults();
    for (int s = PVT_STRATEGY_SUBSPACE_STE + 1; s <= PVT_STRATEGY_SUBSPACE && !getenv("PVTUNE_QUICK"); s++)
        check_never_worse((pvt_strategy)s);
    check_long_options();
    check_schedules();
    check_coarseness();
    check_cancelled_evaluation();
    check_cancelled_step();
    check_freeze_values();
    return test_end();
}
