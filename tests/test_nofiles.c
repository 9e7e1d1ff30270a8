/*  Part I alone: a model is made, trained, quantized, tuned, evaluated and asked for tokens in memory, by a build
    that can reach no file. */
#define PVTUNE_NO_FILES
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

enum { TOKENS = 4000, VOCAB = 32 };

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
    desc.steps = 60, desc.batch = 4, desc.ctx = 32, desc.cross_entropy = !teacher;
    desc.pv.values.lr = lr, desc.pv.params.lr = lr;
    CHECK_OK(ctx, pvt_tune(model, teacher, text, &desc, &info));
    CHECK(info.step == 60 || info.stopped);
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
    CHECK(out.n == 16 && right >= 12); /* it has learnt the rule */
    pvt_ids_free(ctx, out.ids);
}

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

int main(void)
{
    static int32_t ids[TOKENS];
    pvt_model_config c;
    pvt_quantize_desc desc;
    pvt_ctx *ctx = NULL;
    pvt_model *model = NULL, *small = NULL;
    pvt_corpus text;
    double start, trained, quantized, tuned;
    int64_t before;
    memset(&c, 0, sizeof c), memset(&desc, 0, sizeof desc);
    c.layers = 2, c.dim = 32, c.heads = 4, c.kv_heads = 2, c.ff = 64, c.vocab = VOCAB, c.ctx = 64;
    make_text(ids);
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK);
    before = pvt_ctx_get_info(ctx).bytes_now;
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, TOKENS, &text));
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    start = perplexity(ctx, model, &text);
    train(ctx, model, NULL, &text, 1e-2);
    trained = perplexity(ctx, model, &text);
    CHECK(trained < 0.3 * start);
    check_generate(ctx, model);

    CHECK_OK(ctx, pvt_model_copy(ctx, model, &small));
    check_refused(ctx, small, &text);
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x4g4", &desc.format));
    desc.samples = 16, desc.ctx = 32;
    CHECK_OK(ctx, pvt_quantize(small, &text, &desc));
    quantized = perplexity(ctx, small, &text);
    CHECK(pvt_model_bits(small, NULL).linears < 6 && quantized > trained);
    train(ctx, small, model, &text, 3e-3);
    tuned = perplexity(ctx, small, &text);
    CHECK(tuned < quantized);
    printf("perplexity %.2f, trained %.3f, quantized %.3f, tuned %.3f\n", start, trained, quantized, tuned);
    CHECK(pvt_model_file_bytes(model) == 0);
    pvt_model_free(small), pvt_model_free(model), pvt_corpus_free(&text);
    CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
    pvt_ctx_destroy(ctx);
    return test_end();
}
