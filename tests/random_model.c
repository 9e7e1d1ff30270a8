/*  Writes a model of random weights, to try what a machine can hold before a real model is there:
        random_model DIR [--format aqlm:2x8g8] [--layers L] [--dim C] [--ff F] [--heads H] [--kv-heads K] [--vocab V]
    Of TinyLlama-1.1B's shape unless told otherwise; in fp16, or in codes when a format is given: those of one
    quick fit per shape, which all weights of the shape share. Its tokenizer knows bytes, and names for the other ids. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"

enum { LAYERS, DIM, FF, HEADS, KV_HEADS, VOCAB, SIZES };
static const char *const options[SIZES] = {"--layers", "--dim", "--ff", "--heads", "--kv-heads", "--vocab"};

static pvt_result quantize(pvt_ctx *ctx, pvt_model *model, const char *text)
{
    pvt_weight fitted[8], codes;
    pvt_format format;
    pvt_fit_desc fit;
    int n = 0, k;
    memset(&fit, 0, sizeof fit);
    fit.epochs = 1, fit.kmeans_steps = 2;
    PVTI_TRY(pvt_format_parse(ctx, text, &format));
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        if (!t.linear) continue;
        for (k = 0; k < n && (fitted[k].O != t.weight->O || fitted[k].I != t.weight->I); k++) {}
        if (k == n) {
            if (n == 8) return pvti_fail(ctx, PVT_ERR_UNSUPPORTED, "more than 8 shapes of weights");
            PVTI_TRY(pvt_weight_fit(ctx, (const pvt_real *)t.weight->array[0], t.weight->O, t.weight->I, NULL, &format, &fit,
                                    NULL, &fitted[n++]));
        }
        PVTI_TRY(pvti_weight_copy(ctx, &fitted[k], &codes));
        pvt_weight_free(t.weight);
        *t.weight = codes;
    }
    while (n) pvt_weight_free(&fitted[--n]);
    return PVT_OK;
}

static pvt_result byte_tokenizer(pvt_ctx *ctx, int64_t vocab, pvt_tokenizer **out)
{
    pvt_result result = PVT_OK;
    char piece[16];
    *out = pvti_vocab_create(ctx, "bytes", vocab);
    if (!*out) return PVT_ERR_MEMORY;
    for (int64_t i = 0; i < vocab && result == PVT_OK; i++) {
        int n = i < 256 ? pvti_utf8_write(pvti_byte_character((int)i), piece) : snprintf(piece, sizeof piece, "<%lld>", (long long)i);
        result = pvti_vocab_set(*out, (int32_t)i, piece, n, PVTI_PIECE_NORMAL, 0);
    }
    if (result == PVT_OK) result = pvti_vocab_index(*out, false);
    return pvti_tokenizer_finish(result, out);
}

int main(int argc, char **argv)
{
    int64_t size[SIZES] = {22, 2048, 5632, 32, 4, 32000};
    const char *dir = argc > 1 ? argv[1] : NULL, *format = NULL;
    pvt_model_config config;
    pvt_tokenizer *tokenizer;
    pvt_model *model;
    pvt_ctx *ctx;
    int i, k;
    for (i = 2; i + 1 < argc; i += 2) {
        for (k = 0; k < SIZES && strcmp(argv[i], options[k]) != 0; k++) {}
        if (k < SIZES) size[k] = strtoll(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--format") == 0) format = argv[i + 1];
        else break;
    }
    if (!dir || i != argc) return fprintf(stderr, "usage: random_model DIR [--format F] [--layers L] [--dim C] …\n"), 2;
    memset(&config, 0, sizeof config);
    config.layers = size[LAYERS], config.dim = size[DIM], config.ff = size[FF], config.heads = size[HEADS];
    config.kv_heads = size[KV_HEADS], config.vocab = size[VOCAB], config.ctx = 2048;
    if (pvt_ctx_create(NULL, &ctx) != PVT_OK) return 1;
    if (pvt_model_create(ctx, &config, &model) != PVT_OK || byte_tokenizer(ctx, config.vocab, &tokenizer) != PVT_OK ||
        (pvt_model_set_tokenizer(model, tokenizer), format && quantize(ctx, model, format) != PVT_OK) ||
        pvt_model_save(model, dir, NULL) != PVT_OK)
        return fprintf(stderr, "random_model: %s\n", pvt_ctx_error(ctx)), 1;
    pvt_model_free(model);
    pvt_ctx_destroy(ctx);
    return 0;
}
