/*  Before the work begins: seconds until a model is loaded, its tokenizer's encoding and decoding of a text.
    Needs a model and a text; without arguments those of `make smollm2` and WikiText-2, where they are.

        build/bench/files [--json] [--rows] [MODEL TEXT]                                                 */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "bench.h"

typedef struct setting {
    pvt_ctx *ctx;
    const char *path;
    const pvt_tokenizer *tokenizer;
    pvti_map text;
    int32_t *ids;
    int64_t n;
    bool failed;
} setting;

static void load(void *arg)
{
    setting *s = (setting *)arg;
    pvt_model *model = NULL;
    s->failed |= pvt_model_load(s->ctx, s->path, NULL, &model) != PVT_OK;
    pvt_model_free(model);
}
static void encode(void *arg)
{
    setting *s = (setting *)arg;
    pvt_ids_free(s->ctx, s->ids);
    s->failed |= pvt_tokenizer_encode(s->tokenizer, (const char *)s->text.data, s->text.size, 0, &s->ids, &s->n) != PVT_OK;
}
static void decode(void *arg)
{
    setting *s = (setting *)arg;
    char *text = NULL;
    int64_t bytes;
    s->failed |= pvt_tokenizer_decode(s->tokenizer, s->ids, s->n, 0, &text, &bytes) != PVT_OK || bytes != s->text.size;
    pvt_text_free(s->ctx, text);
}

int main(int argc, char **argv)
{
    const char *path = "build/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", *text = "../shared/data/wikitext2/wiki.test.raw";
    bench_fn *fns[3] = {load, encode, decode}, *fn;
    bench_result r[3];
    setting s;
    void *arg = &s;
    pvt_model *model;
    memset(&s, 0, sizeof s), memset(r, 0, sizeof r);
    if (argc > 2 && argv[argc - 2][0] != '-') path = argv[argc - 2], text = argv[argc - 1];
    bench b = bench_start(argc, argv, "files");
    if (pvt_ctx_create(NULL, &s.ctx) != PVT_OK) return fprintf(stderr, "files: no memory\n"), 1;
    if (!pvti_path_exists(s.ctx, path) || !pvti_path_exists(s.ctx, text)) {
        fprintf(stderr, "files: %s or %s is absent (make smollm2 fetches the model): nothing to measure\n", path, text);
        return 0;
    }
    s.path = path;
    if (pvt_model_load(s.ctx, path, NULL, &model) != PVT_OK || pvti_map_open(s.ctx, text, &s.text) != PVT_OK)
        return fprintf(stderr, "files: %s\n", pvt_ctx_error(s.ctx)), 1;
    s.tokenizer = pvt_model_tokenizer(model);
    if (!s.tokenizer) return fprintf(stderr, "files: %s has no tokenizer\n", path), 1;
    for (int i = 0; i < 3; i++) fn = fns[i], bench_run(&r[i], &fn, &arg, 1, 0.5, false);
    if (s.failed) return fprintf(stderr, "files: %s\n", pvt_ctx_error(s.ctx)), 1;
    bench_row(&b, "load a model and its tokenizer, mapped", 1, &r[0], 1, "model/s", 0, NULL);
    bench_row(&b, "encode a text", 1, &r[1], 1e-6 * (double)s.text.size, "MB/s", 0, NULL);
    bench_row(&b, "decode it again", 1, &r[2], 1e-6 * (double)s.text.size, "MB/s", 0, NULL);
    pvt_ids_free(s.ctx, s.ids);
    pvti_map_close(s.ctx, &s.text);
    pvt_model_free(model);
    pvt_ctx_destroy(s.ctx);
    return 0;
}
