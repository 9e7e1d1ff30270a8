/*  The same bits on every machine: a tiny model is quantized, tuned for five steps, saved, loaded and evaluated, and
    all bytes that were written and the bits of all losses become one digest for each format and precision. The
    constants below are a promise: whoever changes them changes what every seed gives, and says so in CHANGELOG.md.
    `make portability` runs this on other processors and systems; only pvtune's public interface is used.
        test_digest [DIR]       files go to DIR/FORMAT-PRECISION and stay */
#include "../pvtune.h"
#include "test.h"

enum { TOKENS = 1500, VOCAB = 80, CTX = 32, STEPS = 5 };

typedef struct test_case {
    const char *format, *name; /* of the directory */
    bool bf16;
    uint64_t digest;
} test_case;
static const test_case cases[] = {
    {"aqlm:2x4g8", "aqlm", false, 0x12c75d982676ef6b},
    {"aqlm:2x4g8", "aqlm", true, 0xa1b041acdb8aa208},
    {"int:3g16", "int", false, 0xe23c83b3f5d34796},
    {"int:3g16", "int", true, 0xf0615daf25c6a6f3},
    {"higgs:p2n16", "higgs", false, 0x24d613ace45bd981},
    {"had:aqlm:1x6g4o2", "had", false, 0x49a695d00fbf7c45},
    {"had2:int:2g32", "had2", true, 0x69c1f970c4780a0f},
};

/* FNV-1a over bytes, numbers from the lowest byte up. */
static void add(uint64_t *digest, const void *data, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i++) *digest = (*digest ^ ((const uint8_t *)data)[i]) * 1099511628211u;
}
static void add_number(uint64_t *digest, uint64_t bits, int bytes)
{
    for (; bytes > 0; bytes--, bits >>= 8) {
        uint8_t low = (uint8_t)bits;
        add(digest, &low, 1);
    }
}
static void add_double(uint64_t *digest, double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    add_number(digest, bits, 8);
}
static void add_floats(uint64_t *digest, const pvt_real *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float number = (float)x[i];
        uint32_t bits;
        memcpy(&bits, &number, sizeof bits);
        add_number(digest, bits, 4);
    }
}

static void add_file(uint64_t *digest, const char *dir, const char *name)
{
    char path[700];
    size_t size;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    char *bytes = test_slurp(path, &size);
    CHECK(size > 0);
    add(digest, bytes, (int64_t)size);
    free(bytes);
}

/* Text that is neither all chance nor all rule. */
static void make_text(int32_t *ids)
{
    uint32_t state = 12345, at = 1;
    for (int i = 0; i < TOKENS; i++) {
        state = state * 1664525u + 1013904223u;
        at = state >> 29 ? (at * 5 + 3) % VOCAB : (state >> 8) % VOCAB;
        ids[i] = (int32_t)at;
    }
}

/* Logits of a batch, and of tokens one after the other, as generation computes them; the loss over the text. */
static void add_outputs(uint64_t *digest, pvt_ctx *ctx, pvt_model *model, const pvt_corpus *text)
{
    static pvt_real logits[CTX * VOCAB];
    pvt_ppl_desc windows;
    pvt_run_desc desc;
    pvt_run *run = NULL;
    pvt_ppl ppl;
    memset(&windows, 0, sizeof windows), memset(&ppl, 0, sizeof ppl), memset(&desc, 0, sizeof desc);
    windows.ctx = CTX, windows.last = 4;
    CHECK_OK(ctx, pvt_perplexity(model, text, &windows, &ppl));
    CHECK(ppl.ppl > 1 && ppl.ppl < 2 * VOCAB);
    add_double(digest, ppl.nll_sum), add_double(digest, ppl.ppl);
    CHECK_OK(ctx, pvt_model_prepare(model, false));
    desc.cache = true;
    CHECK_OK(ctx, pvt_run_create(model, &desc, &run));
    CHECK_OK(ctx, pvt_run_forward(run, text->ids, 1, 20, logits));
    add_floats(digest, logits, (int64_t)20 * VOCAB);
    for (int i = 20; i < 24; i++) {
        CHECK_OK(ctx, pvt_run_forward(run, text->ids + i, 1, 1, logits));
        add_floats(digest, logits, VOCAB);
    }
    pvt_run_free(run);
}

static void tune(uint64_t *digest, pvt_ctx *ctx, pvt_model *model, const pvt_model *teacher,
                 const pvt_corpus *text, const char *dir)
{
    pvt_tune_desc desc;
    pvt_tuner *tuner = NULL;
    pvt_tune_stats stats;
    pvt_tune_eval result;
    char path[700];
    memset(&desc, 0, sizeof desc), memset(&stats, 0, sizeof stats), memset(&result, 0, sizeof result);
    desc.steps = STEPS, desc.batch = 2, desc.ctx = CTX, desc.warmup = -1;
    desc.eval_windows = 2, desc.eval_every = STEPS;
    desc.pv.cap = 0.1, desc.pv.values.lr = 1e-3, desc.pv.codes.lr = 1;
    CHECK_OK(ctx, pvt_tuner_create(model, teacher, text, &desc, &tuner));
    int64_t changed = 0;
    for (int i = 0; i < STEPS && tuner; i++) {
        CHECK_OK(ctx, pvt_tuner_step(tuner, &stats));
        add_double(digest, stats.loss), add_number(digest, (uint64_t)stats.groups_changed, 8);
        changed += stats.groups_changed;
    }
    CHECK(changed > 0); /* codes move, or the digest says nothing about V steps */
    snprintf(path, sizeof path, "%s/tuner.safetensors", dir);
    CHECK_OK(ctx, pvt_tuner_save(tuner, path));
    CHECK_OK(ctx, pvt_tuner_finish(tuner, &result));
    add_double(digest, result.loss);
    pvt_tuner_free(tuner);
}

static pvt_ctx *make_context(const test_case *c)
{
    pvt_ctx_desc desc;
    pvt_ctx *ctx = NULL;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 2, desc.seed = 18, desc.compute_bf16 = c->bf16;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
    return ctx;
}

/* Quantized, tuned, and saved in dir. */
static void make_model(uint64_t *digest, const test_case *c, const char *dir)
{
    static int32_t ids[TOKENS];
    pvt_ctx *ctx = make_context(c);
    pvt_model *teacher = NULL, *model = NULL;
    pvt_model_config config;
    pvt_quantize_desc quantize;
    pvt_save_desc save;
    pvt_corpus text;
    memset(&config, 0, sizeof config), memset(&quantize, 0, sizeof quantize), memset(&save, 0, sizeof save);
    config.layers = 2, config.dim = 64, config.heads = 4, config.kv_heads = 2, config.ff = 96;
    config.vocab = VOCAB, config.ctx = 2 * CTX;
    make_text(ids);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, TOKENS, &text));
    CHECK_OK(ctx, pvt_model_create(ctx, &config, &teacher));
    CHECK_OK(ctx, pvt_model_copy(ctx, teacher, &model));
    CHECK_OK(ctx, pvt_format_parse(ctx, c->format, &quantize.format));
    quantize.samples = 6, quantize.ctx = CTX, quantize.fit.epochs = 2, quantize.fit.kmeans_steps = 5;
    CHECK_OK(ctx, pvt_quantize(model, &text, &quantize));
    save.overwrite = true;
    CHECK_OK(ctx, pvt_model_save(model, dir, &save)); /* replaced below, in one step */
    tune(digest, ctx, model, teacher, &text, dir);
    CHECK_OK(ctx, pvt_model_save(model, dir, &save));
    pvt_model_free(model), pvt_model_free(teacher), pvt_corpus_free(&text);
    pvt_ctx_destroy(ctx);
}

/* What a model that was saved computes. */
static void load_model(uint64_t *digest, const test_case *c, const char *dir)
{
    static int32_t ids[TOKENS];
    pvt_ctx *ctx = make_context(c);
    pvt_model *model = NULL;
    pvt_corpus text;
    make_text(ids);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, TOKENS, &text));
    CHECK_OK(ctx, pvt_model_load(ctx, dir, NULL, &model));
    if (model) add_outputs(digest, ctx, model, &text);
    pvt_model_free(model), pvt_corpus_free(&text);
    pvt_ctx_destroy(ctx);
}

static void check_case(const test_case *c, const char *base)
{
    uint64_t digest = 14695981039346656037u, parts[3] = {0};
    char dir[600];
    snprintf(dir, sizeof dir, "%s/%s-%s", base, c->name, c->bf16 ? "bf16" : "fp32");
    make_model(&digest, c, dir);
    parts[0] = digest;
    add_file(&digest, dir, "config.json"), add_file(&digest, dir, "model.safetensors");
    parts[1] = digest;
    add_file(&digest, dir, "tuner.safetensors");
    parts[2] = digest;
    load_model(&digest, c, dir);
    printf("digest %s %s: %016llx (%04x losses %04x model %04x checkpoint)\n", c->format,
           c->bf16 ? "bf16" : "fp32", (unsigned long long)digest, (unsigned)parts[0] & 0xffff, (unsigned)parts[1] & 0xffff,
           (unsigned)parts[2] & 0xffff); /* so that one sees where machines part */
    CHECK(digest == c->digest);
}

/* Names that are not ASCII, and on Windows parted as it parts them: made, replaced while the model that came from
   there is in use, found again; a file where a folder is wanted, and the other way round. */
static void check_paths(const char *base)
{
    pvt_ctx *ctx = make_context(&cases[0]);
    pvt_model *model = NULL, *again = NULL;
    pvt_model_config config;
    pvt_save_desc save;
    char dir[600], inside[700];
    memset(&config, 0, sizeof config), memset(&save, 0, sizeof save);
    config.layers = 1, config.dim = 16, config.heads = 2, config.ff = 16, config.vocab = 8, config.ctx = 8;
#ifdef _WIN32
    snprintf(dir, sizeof dir, "%s\\M\xc3\xb6""del \xe6\xa8\xa1\xe5\x9e\x8b\\eins", base);
    snprintf(inside, sizeof inside, "%s\\model.safetensors", dir);
#else
    snprintf(dir, sizeof dir, "%s/M\xc3\xb6""del \xe6\xa8\xa1\xe5\x9e\x8b/eins", base);
    snprintf(inside, sizeof inside, "%s/model.safetensors", dir);
#endif
    CHECK(!pvt_model_exists(ctx, dir));
    CHECK_OK(ctx, pvt_model_create(ctx, &config, &model));
    CHECK_OK(ctx, pvt_model_save(model, dir, NULL));
    CHECK(pvt_model_exists(ctx, dir));
    CHECK(pvt_model_save(model, dir, NULL) == PVT_ERR_ARGUMENT); /* a model is there */
    CHECK_OK(ctx, pvt_model_load(ctx, dir, NULL, &again));
    save.overwrite = true;
    CHECK_OK(ctx, pvt_model_save(again, dir, &save));
    pvt_model_free(again);
    CHECK_OK(ctx, pvt_model_load(ctx, dir, NULL, &again));
    pvt_model_free(again), pvt_model_free(model);
    CHECK(pvt_model_load(ctx, inside, NULL, &again) == PVT_ERR_UNSUPPORTED); /* of a model, and none itself */
    CHECK(strstr(pvt_ctx_error(ctx), "M\xc3\xb6""del \xe6\xa8\xa1") != NULL);
    snprintf(inside, sizeof inside, "%s/none/at/all", base);
    CHECK(pvt_model_load(ctx, inside, NULL, &again) == PVT_ERR_IO);
    pvt_ctx_destroy(ctx);
}

int main(int argc, char **argv)
{
    char dir[300];
    if (argc > 1) snprintf(dir, sizeof dir, "%s", argv[1]);
    else if (!test_scratch(dir, sizeof dir)) return printf("no directory for files\n0 passed, 1 failed\n"), 1;
    for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++) check_case(&cases[i], dir);
    check_paths(dir);
    if (argc < 2) test_remove(dir);
    return test_end();
}
