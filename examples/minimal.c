/*  The shortest useful program: original model → two bits per weight → tuned → saved. Models are
    Hugging Face directories, .gguf files or llama2.c .bin files.
        cc -O2 -I. examples/minimal.c -o minimal -lm -lpthread -DPVTUNE_IMPLEMENTATION
        ./minimal MODEL TEXT OUTPUT_DIRECTORY */
#include "pvtune.h"
#include <stdio.h>

int main(int argc, char **argv)
{
    pvt_ctx *ctx = NULL;
    pvt_model *teacher = NULL, *model = NULL;
    pvt_corpus text = {NULL, 0, NULL};
    pvt_tuner_info info;
    if (argc != 4) return fprintf(stderr, "usage: minimal MODEL TEXT OUTPUT_DIRECTORY\n"), 2;
    pvt_result r = pvt_ctx_create(NULL, &ctx);
    if (r == PVT_OK) r = pvt_model_load(ctx, argv[1], NULL, &teacher);
    if (r == PVT_OK) r = pvt_corpus_load(ctx, argv[2], pvt_model_tokenizer(teacher), &text);
    if (r == PVT_OK) r = pvt_model_copy(ctx, teacher, &model);
    if (r == PVT_OK) r = pvt_quantize(model, &text, NULL); /* aqlm:2x8g8 */
    if (r == PVT_OK) r = pvt_tune(model, teacher, &text, NULL, &info); /* 200 steps, the best state is kept */
    if (r == PVT_OK) r = pvt_model_save(model, argv[3], NULL);
    if (r == PVT_OK) printf("perplexity of held-out text: %.3f, tuned %.3f\n", info.start.ppl, info.best.ppl);
    if (r != PVT_OK) fprintf(stderr, "minimal: %s\n", ctx ? pvt_ctx_error(ctx) : pvt_result_text(r));
    pvt_corpus_free(&text);
    pvt_model_free(model);
    pvt_model_free(teacher);
    pvt_ctx_destroy(ctx);
    return r != PVT_OK;
}
