/*  Part I alone: a model is made, trained, quantized, tuned, evaluated and asked for tokens in memory, by a build
    that can reach no file. test_build.sh compiles this once more for every combination of parts; what they compute is
    printed as a hash, and is the same. */
#if !defined(TEST_WITH_FILES) && !defined(PVTUNE_NO_FILES)
#define PVTUNE_NO_FILES
#endif
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

enum { TOKENS = 4000, VOCAB = 32 };
static int steps = 60;      /* or those of the command line: too few to learn anything, enough for the same bits */
static bool learns = true;

/* A walk that mostly goes on by its own rule: learnable. */
static void make_text(int32_t *ids)
{
    int32_t at = 1;
    for (int i = 0; i < TOKENS; i++) {
        bool odd = pvti_random_unit(3, PVTI_RANDOM_USER, 0, (uint64_t)i) < 0.1;
        ids[i] = at;
        at = odd ? (int32_t)(pvti_random(4, PVTI_RANDOM_USER, 0, (uint64_t)i) % VOCAB) : (at * 5 + 3) % VOCAB;
    }
}

/* Of everything that part III has a faster way for, except what pvt_weight_prepare makes: it is part III's own. */
static uint64_t hash = 14695981039346656037u;
static void add(const void *data, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i++) hash = (hash ^ ((const uint8_t *)data)[i]) * 1099511628211u;
}

/* The model's numbers and codes, and what it makes of some tokens: of many at once, and of one after the other. */
static void add_model(pvt_ctx *ctx, const pvt_model *model, const int32_t *ids)
{
    static pvt_real logits[32 * VOCAB];
    pvt_run_desc desc;
    pvt_run *run = NULL;
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        pvt_array arrays[PVT_MAX_ARRAYS];
        int n = t.weight ? pvt_weight_arrays(t.weight, arrays) : 0;
        for (int k = 0; k < n; k++) add(arrays[k].data, arrays[k].bytes);
        if (t.values) add(t.values, t.n * (int64_t)sizeof *t.values);
    }
    memset(&desc, 0, sizeof desc);
    desc.cache = true;
    CHECK_OK(ctx, pvt_run_create(model, &desc, &run));
    CHECK_OK(ctx, pvt_run_forward(run, ids, 1, 32, logits));
    add(logits, sizeof logits);
    for (int i = 32; i < 36; i++) {
        CHECK_OK(ctx, pvt_run_forward(run, ids + i, 1, 1, logits));
        add(logits, VOCAB * (int64_t)sizeof *logits);
    }
    pvt_run_free(run);
}

static double perplexity(pvt_ctx *ctx, const pvt_model *model, const pvt_corpus *text)
{
    pvt_ppl_desc desc;
    pvt_ppl ppl;
    memset(&desc, 0, sizeof desc), memset(&ppl, 0, sizeof ppl);
    desc.ctx = 32;
    CHECK_OK(ctx, pvt_perplexity(model, text, &desc, &ppl));
    return ppl.ppl;
}

static void train(pvt_ctx *ctx, pvt_model *model, const pvt_model *teacher, const pvt_corpus *text, double lr)
{
    pvt_tune_desc desc;
    pvt_tuner_info info;
    memset(&desc, 0, sizeof desc);
    desc.steps = steps, desc.batch = 4, desc.ctx = 32, desc.cross_entropy = !teacher;
    desc.pv.values.lr = lr, desc.pv.params.lr = lr;
    CHECK_OK(ctx, pvt_tune(model, teacher, text, &desc, &info));
    CHECK(info.step == steps || info.stopped);
}

static void check_generate(pvt_ctx *ctx, const pvt_model *model)
{
    const int32_t prompt[4] = {1, 8, 11, 26};
    pvt_generate_desc desc;
    pvt_generated out;
    int right = 0;
    memset(&desc, 0, sizeof desc);
    desc.n = 16;
    CHECK_OK(ctx, pvt_generate(model, prompt, 4, &desc, &out));
    for (int i = 1; i < out.n; i++) right += out.ids[i] == (out.ids[i - 1] * 5 + 3) % VOCAB;
    CHECK(out.n == 16 && (right >= 12 || !learns)); /* it has learnt the rule */
    add(out.ids, out.n * (int64_t)sizeof *out.ids);
    pvt_ids_free(ctx, out.ids);
}

#ifdef PVTUNE_NO_FILES
static void check_refused(pvt_ctx *ctx, pvt_model *model, const pvt_corpus *text)
{
    pvt_quantize_desc desc;
    pvt_ctx_desc with_files;
    pvt_ctx *none = NULL;
    char why[200];
    memset(&desc, 0, sizeof desc), memset(&with_files, 0, sizeof with_files);
    desc.samples = 8, desc.ctx = 32, desc.checkpoint = "blocks";
    CHECK(pvt_quantize(model, text, &desc) == PVT_ERR_UNSUPPORTED);
    CHECK(strstr(pvt_ctx_error(ctx), "checkpoint") && strstr(pvt_ctx_error(ctx), "PVTUNE_NO_FILES"));
    with_files.files.user = why, with_files.error = why, with_files.error_bytes = sizeof why;
    CHECK(pvt_ctx_create(&with_files, &none) == PVT_ERR_UNSUPPORTED && !none);
    CHECK(strstr(why, "PVTUNE_NO_FILES") != NULL);
}
#endif

/* Quantized and tuned towards the model that it came from. */
static void check_format(pvt_ctx *ctx, const pvt_model *model, const pvt_corpus *text, const char *format)
{
    pvt_quantize_desc desc;
    pvt_model *small = NULL;
    memset(&desc, 0, sizeof desc);
    CHECK_OK(ctx, pvt_model_copy(ctx, model, &small));
#ifdef PVTUNE_NO_FILES
    check_refused(ctx, small, text);
#endif
    CHECK_OK(ctx, pvt_format_parse(ctx, format, &desc.format));
    desc.samples = 16, desc.ctx = 32;
    CHECK_OK(ctx, pvt_quantize(small, text, &desc));
    double quantized = perplexity(ctx, small, text);
    CHECK(pvt_model_bits(small, NULL).linears < 10 && (quantized > perplexity(ctx, model, text) || !learns));
    train(ctx, small, model, text, 3e-3);
    double tuned = perplexity(ctx, small, text);
    CHECK(tuned < quantized || !learns);
    printf("%s: perplexity quantized %.3f, tuned %.3f\n", format, quantized, tuned);
    add_model(ctx, small, text->ids);
    pvt_model_free(small);
}

int main(int argc, char **argv)
{
    static int32_t ids[TOKENS];
    pvt_model_config c;
    pvt_ctx *ctx = NULL;
    pvt_model *model = NULL;
    pvt_corpus text;
    if (argc > 1) steps = atoi(argv[1]), learns = false;
    memset(&c, 0, sizeof c);
    c.layers = 2, c.dim = 32, c.heads = 4, c.kv_heads = 2, c.ff = 64, c.vocab = VOCAB, c.ctx = 64;
    make_text(ids);
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK);
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, TOKENS, &text));
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    double start = perplexity(ctx, model, &text);
    train(ctx, model, NULL, &text, 1e-2);
    double trained = perplexity(ctx, model, &text);
    CHECK(trained < (learns ? 0.3 : 1) * start);
    printf("perplexity %.2f, trained %.3f\n", start, trained);
    add_model(ctx, model, ids);
    check_generate(ctx, model);
    check_format(ctx, model, &text, "aqlm:1x4g4"), check_format(ctx, model, &text, "aqlm:2x3g8o2");
    check_format(ctx, model, &text, "int:2g32");
    CHECK(pvt_model_file_bytes(model) == 0);
    pvt_model_free(model), pvt_corpus_free(&text);
    CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
    printf("kernels %s\nhash %016llx\n", pvt_ctx_get_info(ctx).isa, (unsigned long long)hash);
    pvt_ctx_destroy(ctx);
    return test_end();
}
