/*  Quantizing goes on where it was stopped: block by block from the files of a checkpoint, to the same bytes
    as without a stop; files of another run, and damaged ones, are refused with the reason. (Kill −9 and Ctrl-C
    of the program: test_cli.) */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

enum { CTX = 32, TOKENS = CTX * 24, MAX_WEIGHTS = 24 };

static char dir[300], checkpoint[400];

/* Stops when `phase` has been reported `after` times; counts what it hears. */
typedef struct watch {
    const char *phase;
    int after, heard, fits;
    double errors[MAX_WEIGHTS];
    char names[MAX_WEIGHTS][96];
} watch;

static int on_progress(void *user, const pvt_progress *p)
{
    watch *w = (watch *)user;
    return w->phase && strcmp(w->phase, p->phase) == 0 && ++w->heard == w->after;
}

static void on_layer(void *user, const char *name, const pvt_fit_stats *stats)
{
    watch *w = (watch *)user;
    if (w->fits < MAX_WEIGHTS) {
        w->errors[w->fits] = stats->error;
        snprintf(w->names[w->fits], 96, "%s", name);
    }
    w->fits++;
}

typedef struct setup {
    bool tied;
    uint64_t seed, model_seed;
    int n_threads, first_id;
    pvt_quantize_desc desc;
    bool bf16;
} setup;

static setup make_setup(pvt_ctx *ctx, bool tied)
{
    setup s;
    memset(&s, 0, sizeof s);
    s.tied = tied, s.n_threads = 2, s.model_seed = 7;
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:2x4g4", &s.desc.format));
    s.desc.samples = 8, s.desc.ctx = CTX, s.desc.fit.epochs = 2, s.desc.fit.kmeans_steps = 3;
    s.desc.finetune_epochs = 2, s.desc.embedding = tied, s.desc.head = true;
    s.desc.checkpoint = checkpoint;
    return s;
}

/* A dense model of three blocks; the same seed gives the same one. */
static pvt_model *make_model(pvt_ctx *ctx, const setup *s)
{
    pvt_model_config c;
    pvt_model *model = NULL;
    uint64_t seed = ctx->seed;
    memset(&c, 0, sizeof c);
    c.layers = 3, c.dim = 32, c.heads = 4, c.kv_heads = 2, c.ff = 64, c.vocab = 96, c.ctx = CTX, c.tied = s->tied;
    ctx->seed = s->model_seed;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    ctx->seed = seed;
    return model;
}

/* Quantizes a fresh model in a context of its own and saves it as dir/<name> unless name is NULL. The error's
   sentence goes to why. */
static pvt_result quantize(const setup *s, watch *w, const char *name, char why[1024])
{
    pvt_ctx_desc desc;
    pvt_quantize_desc q = s->desc;
    pvt_ctx *ctx;
    pvt_corpus corpus;
    pvt_save_desc save;
    int32_t ids[TOKENS];
    char path[400];
    memset(&desc, 0, sizeof desc), memset(&save, 0, sizeof save);
    desc.n_threads = s->n_threads, desc.seed = s->seed, desc.compute_bf16 = s->bf16;
    desc.progress = on_progress, desc.progress_user = w;
    q.fitted = on_layer, q.fitted_user = w;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
    pvt_model *model = make_model(ctx, s);
    for (int i = 0; i < TOKENS; i++) ids[i] = (int32_t)((i * i + s->first_id) % 95);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, TOKENS, &corpus));
    pvt_result result = pvt_quantize(model, &corpus, &q);
    snprintf(why, 1024, "%s", pvt_ctx_error(ctx));
    snprintf(path, sizeof path, "%s/%s", dir, name ? name : "");
    save.overwrite = true;
    if (result == PVT_OK && name) CHECK_OK(ctx, pvt_model_save(model, path, &save));
    if (result == PVT_ERR_CANCELLED && !q.plan) { /* whole blocks: every linear of a block has codes, or none has */
        for (int i = 0; i < 3; i++) {
            int n = 0;
            for (int j = 0; j < PVTI_LINEARS; j++)
                n += model->layers[i].linear[PVTI_Q + j].format.kind == PVT_FORMAT_AQLM;
            CHECK(n == 0 || n == PVTI_LINEARS);
        }
    }
    pvt_model_free(model), pvt_corpus_free(&corpus), pvt_ctx_destroy(ctx);
    return result;
}

static void empty_checkpoint(void)
{
    char command[900];
    snprintf(command, sizeof command, "rm -rf '%s' && mkdir '%s'", checkpoint, checkpoint);
    CHECK(system(command) == 0);
}

static int files(void)
{
    char command[600];
    int n = -1;
    snprintf(command, sizeof command, "ls '%s' | grep -c '^quantize-.*[.]safetensors$'", checkpoint);
    FILE *f = popen(command, "r");
    CHECK(f && fscanf(f, "%d", &n) == 1);
    if (f) pclose(f);
    return n;
}

static bool same_model(const char *x, const char *y)
{
    char command[1000];
    snprintf(command, sizeof command, "cmp -s '%s/%s/model.safetensors' '%s/%s/model.safetensors'", dir, x, dir, y);
    return system(command) == 0;
}

/* The same with a format of the embedding's and the head's own; NULL: as it is. */
static setup with_embed_format(pvt_ctx *ctx, const setup *s, const char *format)
{
    setup own = *s;
    if (format) CHECK_OK(ctx, pvt_format_parse(ctx, format, &own.desc.embed_format));
    return own;
}

/* What the saved model holds, tensor by tensor. */
static void check_formats(pvt_ctx *ctx, const char *name, bool tied, const char *embed_format)
{
    char path[500], text[48];
    pvt_model *model = NULL;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    CHECK_OK(ctx, pvt_model_load(ctx, path, NULL, &model));
    for (int64_t i = 0; model && i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        if (!t.weight) continue;
        CHECK((t.dtype == PVT_DTYPE_NONE) == (t.linear || (i == 0) == tied));
        if (t.dtype != PVT_DTYPE_NONE) continue;
        pvt_format_text(&t.weight->format, text);
        CHECK(strcmp(text, t.linear || !embed_format ? "aqlm:2x4g4" : embed_format) == 0);
    }
    pvt_model_free(model);
}

static double no_loss(void *user)
{
    (void)user;
    return 0;
}

/* Stopped in every phase and then resumed, on another number of threads: the same bytes, the same report. */
static void check_resume(pvt_ctx *ctx, bool tied, const char *embed_format, bool codes)
{
    static const struct { const char *phase; int after, files[2]; } stops[] = { /* files: head last; embedding first */
        {"observe", 1, {0, 1}}, {"observe", 2, {1, 2}}, {"quantize", 1, {0, 0}}, {"quantize", 2, {0, 0}},
        {"quantize", 5, {0, 1}}, {"finetune", 1, {0, 1}}, {"finetune", 3, {1, 2}}, {"quantize", 13, {1, 2}},
        {"quantize", 22, {2, 3}}, {"quantize", 23, {3, 3}}};
    setup s = make_setup(ctx, tied);
    watch whole, w;
    char why[1024];
    pvt_pv_desc finetune;
    memset(&finetune, 0, sizeof finetune);
    finetune.strategy = PVT_STRATEGY_STE, finetune.codes.lr = 0.3, finetune.cap = 0.5;
    setup begin = with_embed_format(ctx, &s, embed_format);
    if (codes) begin.desc.finetune = &finetune;
    s = begin;
    memset(&whole, 0, sizeof whole);
    s.desc.checkpoint = NULL;
    CHECK(quantize(&s, &whole, "whole", why) == PVT_OK);
    CHECK(whole.fits == 22); /* three times seven, and the embedding or the head */
    check_formats(ctx, "whole", tied, embed_format);
    for (int i = 0; i < PVTI_COUNT(stops); i += embed_format ? 3 : 1) {
        s = begin;
        memset(&w, 0, sizeof w);
        empty_checkpoint();
        w.phase = stops[i].phase, w.after = stops[i].after;
        CHECK(quantize(&s, &w, NULL, why) == PVT_ERR_CANCELLED);
        CHECK(w.heard == w.after);
        CHECK(files() == stops[i].files[tied]);
        memset(&w, 0, sizeof w);
        s.n_threads = 1 + i % 3, s.desc.resume = true;
        CHECK(quantize(&s, &w, "resumed", why) == PVT_OK);
        CHECK(same_model("whole", "resumed"));
        CHECK(files() == 4);
        CHECK(w.fits == whole.fits && memcmp(w.names, whole.names, sizeof w.names) == 0);
        CHECK(memcmp(w.errors, whole.errors, sizeof w.errors) == 0);
    }
    memset(&w, 0, sizeof w);
    s.desc.checkpoint = NULL;
    s.desc.resume = true;
    CHECK(quantize(&s, &w, NULL, why) == PVT_ERR_ARGUMENT);
    s.desc.checkpoint = "/absent/directory", s.desc.resume = false;
    CHECK(quantize(&s, &w, NULL, why) == PVT_ERR_IO && strstr(why, "/absent/directory: there is no such directory"));
    CHECK(w.fits == 0);
}

/* What of block fine-tuning is refused before the work. */
static void check_finetune_refused(pvt_ctx *ctx)
{
    static const char *const whys[] = {"cap must lie in", "has no loss to search L with", "is in aqlm:2x4g4, of whose rounding",
                                       "has nothing to train", "is in aqlm:1x4g8, of whose rounding"};
    char why[1024];
    pvt_pv_desc finetune;
    watch w;
    setup s = make_setup(ctx, false);
    pvt_plan plan[1];
    memset(plan, 0, sizeof plan);
    s.desc.checkpoint = NULL;
    s.desc.finetune = &finetune;
    for (int i = 0; i < PVTI_COUNT(whys); i++) {
        memset(&w, 0, sizeof w), memset(&finetune, 0, sizeof finetune);
        if (i == 0) finetune.cap = 2;
        if (i == 1) finetune.strategy = PVT_STRATEGY_LINEARIZED, finetune.step = PVT_STEP_PLAIN, finetune.loss = no_loss;
        if (i == 2) finetune.surrogate = PVT_SURROGATE_SIGMOID;
        if (i == 3) finetune.strategy = PVT_STRATEGY_CONTINUOUS, finetune.train = PVT_TRAIN_CODES;
        if (i == 4) { /* one tensor of a plan has none; it is said before the first is fit */
            finetune.surrogate = PVT_SURROGATE_SIGMOID, s.desc.plan = plan, s.desc.n_plan = 1;
            plan[0].tensor = "model.layers.2.mlp.down_proj.weight";
            CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x4g8", &plan[0].format));
            CHECK_OK(ctx, pvt_format_parse(ctx, "int:2g16", &s.desc.format));
        }
        CHECK(quantize(&s, &w, NULL, why) == (i == 0 || i == 3 ? PVT_ERR_ARGUMENT : PVT_ERR_UNSUPPORTED) && w.fits == 0);
        CHECK(strstr(why, whys[i]) != NULL);
        if (!strstr(why, whys[i])) printf("    %s\n", why);
    }
}

/* Each option that differs is named. */
static void check_options(pvt_ctx *ctx)
{
    static const char *const names[] = {"precision", "format", "samples", "fit", "fine-tuning", "skip",
                                        "embedding and head", "seed", "text", "model", "embedding and head", "fine-tuning",
                                        "fine-tuning"};
    char why[1024], words[100];
    pvt_pv_desc finetune;
    watch w;
    setup s = make_setup(ctx, false);
    memset(&w, 0, sizeof w);
    memset(&finetune, 0, sizeof finetune);
    empty_checkpoint();
    w.phase = "quantize", w.after = 10;
    CHECK(quantize(&s, &w, NULL, why) == PVT_ERR_CANCELLED && files() == 1);
    for (int i = 0; i < PVTI_COUNT(names); i++) {
        memset(&w, 0, sizeof w);
        s = make_setup(ctx, false);
        s.desc.resume = true;
        if (i == 0) s.bf16 = true;
        if (i == 1) s.desc.format.bits = 5;
        if (i == 2) s.desc.samples = 9;
        if (i == 3) s.desc.fit.tolerance = 0.003;
        if (i == 4) s.desc.finetune_lr = 1e-3;
        if (i == 5) s.desc.skip = "layers.2.mlp";
        if (i == 6) s.desc.head = false;
        if (i == 7) s.seed = 1;
        if (i == 8) s.first_id = 1;
        if (i == 9) s.model_seed = 8;
        if (i == 10) s = with_embed_format(ctx, &s, "int:4g32");
        if (i == 11) s.desc.finetune = &finetune;
        if (i == 12) s.desc.finetune_lr = 2e-4; /* given, it is the same at any bits; the default is not */
        CHECK(quantize(&s, &w, NULL, why) == PVT_ERR_MISMATCH);
        snprintf(words, sizeof words, "was made with another %s: it has", names[i]);
        CHECK(strstr(why, words) != NULL);
        if (!strstr(why, words)) printf("    %s\n", why);
        CHECK(w.fits == 0);
    }
    s = make_setup(ctx, false);
    s.desc.resume = true, s.desc.fit.cg_steps = 8, s.desc.finetune_epochs = 2; /* the defaults, said */
    s = with_embed_format(ctx, &s, "aqlm:2x4g4");
    CHECK(quantize(&s, &w, NULL, why) == PVT_OK);
}

/* A format that cannot be the embedding's is refused before any work. */
static void check_embed_format(pvt_ctx *ctx)
{
    static const struct { const char *format, *why; } cases[] = {
        {"int:4g48", "groups of 1 x 48 do not divide 96 x 32 weights; int:4g32 fits"},
        {"dense", "\"dense\" quantizes nothing"}};
    char why[1024];
    watch w;
    setup s = make_setup(ctx, true), own;
    empty_checkpoint();
    for (int i = 0; i < 3; i++) {
        memset(&w, 0, sizeof w);
        own = with_embed_format(ctx, &s, i < 2 ? cases[i].format : "int:4g32");
        if (i == 2) own.desc.embedding = own.desc.head = false;
        CHECK(quantize(&own, &w, NULL, why) == PVT_ERR_ARGUMENT && w.fits == 0 && files() == 0);
        CHECK(strstr(why, i < 2 ? cases[i].why : "neither of them is to be quantized") != NULL);
        if (i < 2 && !strstr(why, cases[i].why)) printf("    %s\n", why);
    }
}

/* Writes bytes into the data of a tensor of the first block's file. */
static void damage(pvt_ctx *ctx, const char *name, const void *bytes, size_t n)
{
    char path[500];
    pvti_safetensors st;
    long at = -1;
    snprintf(path, sizeof path, "%s/quantize-00000.safetensors", checkpoint);
    CHECK_OK(ctx, pvti_safetensors_open(ctx, path, &st));
    const pvti_tensor *t = pvti_safetensors_find(&st, name);
    CHECK(t != NULL);
    if (t) at = (long)(t->data - (const uint8_t *)st.map.data);
    pvti_safetensors_close(&st);
    FILE *f = fopen(path, "r+b");
    CHECK(f && at >= 0 && fseek(f, at, SEEK_SET) == 0 && fwrite(bytes, 1, n, f) == n);
    if (f) fclose(f);
}

static void check_damage(pvt_ctx *ctx)
{
    static const uint8_t beyond = 16;
    const pvt_real nan_value = (pvt_real)NAN;
    static const char *const names[] = {"model.layers.0.mlp.up_proj.weight.codes", "model.layers.0.mlp.up_proj.weight.codebooks",
                                        "model.layers.0.input_layernorm.weight"};
    char why[1024], command[900];
    watch w;
    setup s = make_setup(ctx, false);
    for (int i = 0; i < 4; i++) {
        memset(&w, 0, sizeof w);
        empty_checkpoint();
        w.phase = "quantize", w.after = 10;
        s.desc.resume = false;
        CHECK(quantize(&s, &w, NULL, why) == PVT_ERR_CANCELLED && files() == 1);
        if (i == 0) damage(ctx, names[i], &beyond, 1);
        else if (i < 3) damage(ctx, names[i], &nan_value, sizeof nan_value);
        else {
            snprintf(command, sizeof command, "cd '%s' && head -c 3000 quantize-00000.safetensors >x && "
                     "mv x quantize-00000.safetensors", checkpoint);
            CHECK(system(command) == 0);
        }
        memset(&w, 0, sizeof w);
        s.desc.resume = true;
        CHECK(quantize(&s, &w, NULL, why) == (i == 1 || i == 2 ? PVT_ERR_NUMERIC : PVT_ERR_FORMAT));
        CHECK(strstr(why, i == 3 ? "quantize-00000" : i == 1 ? "up_proj" : i == 0 ? "code 16" : "input_layernorm") != NULL);
        CHECK(w.fits == 0);
    }
}

/* ---- fine-tuning that moves codes ---- */

enum { AP_CTX = 32, AP_TOKENS = AP_CTX * 32 };

static int ap_epochs = 8;

/* A block quantized to integers; what its output is off by on the calibration text, ‖y − y*‖² / ‖y*‖², and a hash of
   the model. */
static double block_error(const char *format, pvt_fit_method method, const pvt_pv_desc *finetune, int threads, uint64_t *hash,
                          bool *whole)
{
    pvt_ctx_desc cd;
    pvt_model_config c;
    pvt_quantize_desc q;
    pvt_run_desc rd;
    pvt_ctx *ctx = NULL;
    pvt_model *model = NULL, *original = NULL;
    pvt_corpus corpus;
    pvt_run *run[2] = {NULL, NULL};
    int32_t ids[AP_TOKENS];
    double off = 0, all = 0;
    memset(&cd, 0, sizeof cd), memset(&c, 0, sizeof c), memset(&q, 0, sizeof q), memset(&rd, 0, sizeof rd);
    cd.n_threads = threads;
    CHECK(pvt_ctx_create(&cd, &ctx) == PVT_OK);
    for (int i = 0; i < AP_TOKENS; i++) ids[i] = (int32_t)((i * i + i / 7 + i % 13 * 31) % 95);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, AP_TOKENS, &corpus));
    c.layers = 1, c.dim = 64, c.heads = 4, c.kv_heads = 2, c.ff = 128, c.vocab = 96, c.ctx = AP_CTX, c.tied = true;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) { /* sharper than at random: the block does something */
        pvt_weight *w = pvt_model_tensor(model, i).weight;
        for (int64_t k = 0; w && k < w->O * w->I; k++) ((pvt_real *)w->array[0])[k] *= 5;
    }
    CHECK_OK(ctx, pvt_model_copy(ctx, model, &original));
    q.samples = 32, q.ctx = AP_CTX, q.finetune_epochs = ap_epochs, q.fit.method = method, q.finetune = finetune;
    CHECK_OK(ctx, pvt_format_parse(ctx, format, &q.format));
    CHECK_OK(ctx, pvt_quantize(model, &corpus, &q));
    CHECK_OK(ctx, pvti_model_hash(model, hash));
    *whole = true;
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        if (!t.linear) continue;
        for (int64_t g = 0; g < t.n / t.weight->format.in_group; g++) {
            double zero = (double)((const pvt_real *)t.weight->array[2])[g];
            *whole = *whole && zero == floor(zero);
        }
    }
    rd.max_batch = 1, rd.max_ctx = AP_CTX;
    CHECK_OK(ctx, pvt_run_create(model, &rd, &run[0]));
    CHECK_OK(ctx, pvt_run_create(original, &rd, &run[1]));
    for (int s = 0; s < AP_TOKENS / AP_CTX; s++) {
        for (int k = 0; k < 2; k++) CHECK_OK(ctx, pvt_run_forward(run[k], ids + s * AP_CTX, 1, AP_CTX, NULL));
        const pvt_real *x = pvt_run_hidden(run[0]), *y = pvt_run_hidden(run[1]);
        for (int i = 0; i < AP_CTX * 64; i++)
            off += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]), all += (double)y[i] * (double)y[i];
    }
    pvt_run_free(run[0]), pvt_run_free(run[1]), pvt_model_free(model), pvt_model_free(original);
    pvt_corpus_free(&corpus), pvt_ctx_destroy(ctx);
    return off / all;
}

/* Block-AP ends nearer to the original block than fine-tuning that leaves codes alone, from round-to-nearest and from the
   best fit; the same bits on any number of threads; zeros that are not trained stay whole. */
static void check_block_ap(void)
{
    uint64_t hash[4];
    bool whole[4];
    pvt_pv_desc ap;
    memset(&ap, 0, sizeof ap);
    ap.strategy = PVT_STRATEGY_STE, ap.surrogate = PVT_SURROGATE_IDENTITY;
    for (int i = 0; i < 2; i++) {
        pvt_fit_method method = i ? PVT_FIT_BEST : PVT_FIT_RTN;
        double plain = block_error("int:2g16", method, NULL, 2, &hash[0], &whole[0]);
        double moved = block_error("int:2g16", method, &ap, 1, &hash[1], &whole[1]);
        CHECK(moved < plain && moved > 0);
        if (!(moved < plain)) printf("    %s: %g, with codes %g\n", i ? "best" : "rtn", plain, moved);
        CHECK(moved == block_error("int:2g16", method, &ap, 3, &hash[2], &whole[2]) && hash[1] == hash[2] && hash[0] != hash[1]);
        ap.train = PVT_TRAIN_ALL & ~PVT_TRAIN_ZEROS;
        block_error("int:2g16", method, &ap, 2, &hash[3], &whole[3]);
        CHECK(!whole[1] && (whole[3] || i));
        ap.train = 0;
    }
}

/* Fine-tuning that leads away from the original block leaves no trace. */
static void check_undone(void)
{
    uint64_t hash[4];
    bool whole;
    pvt_pv_desc wild;
    memset(&wild, 0, sizeof wild);
    wild.strategy = PVT_STRATEGY_STE, wild.values.lr = 5, wild.codes.rule = PVT_OPTIMIZER_ADAM, wild.codes.lr = 5;
    double tuned = block_error("int:8g16", PVT_FIT_BEST, &wild, 2, &hash[0], &whole);
    block_error("int:2g16", PVT_FIT_BEST, NULL, 2, &hash[1], &whole);
    ap_epochs = -1;
    CHECK(tuned == block_error("int:8g16", PVT_FIT_BEST, NULL, 2, &hash[2], &whole) && hash[0] == hash[2]);
    block_error("int:2g16", PVT_FIT_BEST, NULL, 2, &hash[3], &whole);
    CHECK(hash[1] != hash[3]); /* what leads nearer stays */
    ap_epochs = 8;
}

/* The kernels are chosen by name; no name that is not one. */
static void check_isa(void)
{
    pvt_ctx_desc desc;
    pvt_ctx *ctx = NULL;
    char why[200];
    memset(&desc, 0, sizeof desc);
    desc.isa = "sve", desc.error = why, desc.error_bytes = sizeof why;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_ERR_ARGUMENT && !ctx && strstr(why, "isa is \"sve\""));
    desc.isa = "scalar";
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK && strcmp(pvt_ctx_get_info(ctx).isa, "scalar") == 0);
    pvt_ctx_destroy(ctx), ctx = NULL;
    setenv("PVTUNE_ISA", "sve", 1);
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK); /* the desc comes first */
    pvt_ctx_destroy(ctx), ctx = NULL;
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_ERR_ARGUMENT && !ctx);
    unsetenv("PVTUNE_ISA");
    setenv("PVTUNE_NUM_THREADS", "two", 1);
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_ERR_ARGUMENT && !ctx);
    setenv("PVTUNE_NUM_THREADS", "2", 1);
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK && pvt_ctx_get_info(ctx).n_threads == 2);
    unsetenv("PVTUNE_NUM_THREADS");
    pvt_ctx_destroy(ctx);
}

/* ---- bits where they count ---- */

static uint64_t draw(uint64_t *state) { return *state = pvti_mix(*state); }

/* All n^tensors choices: the least loss that fits, and the fewest bytes that have it. */
static double all_choices(const double *loss, const int64_t *bytes, int tensors, int n, int64_t budget, int64_t *fewest)
{
    double least = INFINITY;
    int total = 1;
    for (int l = 0; l < tensors; l++) total *= n;
    for (int c = 0; c < total; c++) {
        double sum = 0;
        int64_t size = 0;
        bool possible = true;
        for (int l = 0, rest = c; l < tensors; l++, rest /= n) {
            possible = possible && bytes[l * n + rest % n] >= 0;
            sum += loss[l * n + rest % n], size += bytes[l * n + rest % n];
        }
        if (!possible || size > budget) continue;
        if (sum < least - 1e-12 || (sum < least + 1e-12 && size < *fewest)) least = sum, *fewest = size;
    }
    return least;
}

/* A table over every number of bytes. */
static double by_table(const double *loss, const int64_t *bytes, int tensors, int n, int64_t budget)
{
    double *now = (double *)calloc((size_t)budget + 1, sizeof *now), *next = (double *)calloc((size_t)budget + 1, sizeof *next);
    for (int l = 0; l < tensors; l++) {
        for (int64_t b = 0; b <= budget; b++) {
            next[b] = INFINITY;
            for (int j = 0; j < n; j++)
                if (bytes[l * n + j] >= 0 && bytes[l * n + j] <= b)
                    next[b] = fmin(next[b], now[b - bytes[l * n + j]] + loss[l * n + j]);
        }
        double *swap = now;
        now = next, next = swap;
    }
    double least = now[budget];
    free(now), free(next);
    return least;
}

/* The choice's loss; NAN: refused, or it does not fit. */
static double chosen(pvt_ctx *ctx, const double *loss, const int64_t *bytes, int tensors, int n, int64_t budget,
                     int64_t *size, double *bound)
{
    int choice[64];
    double sum = 0;
    *size = 0;
    if (pvt_allocate(ctx, loss, bytes, tensors, n, budget, choice, bound) != PVT_OK) return (double)NAN;
    for (int l = 0; l < tensors; l++) {
        if (choice[l] < 0 || choice[l] >= n || bytes[l * n + choice[l]] < 0) return (double)NAN;
        sum += loss[l * n + choice[l]], *size += bytes[l * n + choice[l]];
    }
    return *size <= budget ? sum : (double)NAN;
}

/* Equal to all choices, above the Lagrangian bound, never worse with more bytes. */
static void check_allocate(pvt_ctx *ctx)
{
    uint64_t state = 5;
    double loss[64 * 8], bound;
    int64_t bytes[64 * 8], size, fewest = 0, wrong = 0, tight = 0, cases = 0;
    for (int trial = 0; trial < 100; trial++) {
        int tensors = 1 + (int)(draw(&state) % 6), n = 1 + (int)(draw(&state) % 4);
        double before = INFINITY;
        for (int i = 0; i < tensors * n; i++) {
            bytes[i] = (int64_t)(draw(&state) % 40) - (i % n ? 4 : 0); /* now and then not possible; equals, too */
            if (bytes[i] < 0) bytes[i] = -1;
            loss[i] = (double)(draw(&state) % 64) / (trial % 3 ? 64 : 7);
        }
        for (int64_t budget = 0; budget < 250; budget += trial % 2 ? 7 : 19) {
            double least = all_choices(loss, bytes, tensors, n, budget, &fewest);
            double sum = chosen(ctx, loss, bytes, tensors, n, budget, &size, &bound);
            if (!(least < INFINITY)) {
                wrong += sum == sum || !strstr(pvt_ctx_error(ctx), "the smallest of these formats take");
                continue;
            }
            wrong += !(fabs(sum - least) < 1e-12) || size != fewest || bound > sum + 1e-9 || sum > before;
            tight += bound > sum - 1e-9, cases++;
            before = sum;
        }
    }
    CHECK(wrong == 0 && cases > 1000 && tight > 50 && tight < cases);
    wrong = 0;
    for (int trial = 0; trial < 3; trial++) { /* the shape of a model: a few sizes, each many times */
        static const int64_t units[] = {1, 3, 3, 1, 8, 8, 8};
        double before = INFINITY;
        for (int i = 0; i < 56 * 8; i++) {
            int64_t unit = i / 8 == 0 ? 60 : units[i / 8 % 7];
            bytes[i] = unit * (2 + i % 8), loss[i] = (1 + (double)(draw(&state) % 100)) / 50 * exp(-1.2 * (i % 8));
        }
        for (int64_t budget = 700; budget < 3600; budget += 131) {
            double sum = chosen(ctx, loss, bytes, 56, 8, budget, &size, &bound);
            wrong += !(fabs(sum - by_table(loss, bytes, 56, 8, budget)) < 1e-9) || bound > sum + 1e-9 || sum > before;
            before = sum;
        }
    }
    CHECK(wrong == 0);
    loss[3] = (double)NAN;
    CHECK(pvt_allocate(ctx, loss, bytes, 56, 8, 9999, NULL, NULL) == PVT_ERR_NUMERIC);
    for (int i = 8; i < 16; i++) bytes[i] = -1;
    loss[3] = 0;
    CHECK(pvt_allocate(ctx, loss, bytes, 56, 8, 9999, NULL, NULL) == PVT_ERR_ARGUMENT);
    CHECK(strstr(pvt_ctx_error(ctx), "suits tensor 1") != NULL);
    CHECK(pvt_allocate(ctx, loss, bytes, 0, 8, 9999, NULL, NULL) == PVT_ERR_ARGUMENT);
    const int64_t huge[4] = {1, INT64_MAX - 1, 1, INT64_MAX - 1};
    CHECK(pvt_allocate(ctx, loss, huge, 2, 2, 10, NULL, NULL) == PVT_ERR_ARGUMENT);
}

/* Numbers that are none, or that no file holds, are not handed on. */
static void check_numeric(pvt_ctx *ctx)
{
    int32_t ids[TOKENS];
    double numbers[64];
    pvt_corpus corpus;
    pvt_alpha_desc alpha;
    setup s = make_setup(ctx, false);
    s.desc.checkpoint = NULL, s.desc.finetune_epochs = -1;
    for (int i = 0; i < TOKENS; i++) ids[i] = (int32_t)(i * i % 95);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, TOKENS, &corpus));
    pvt_model *model = make_model(ctx, &s);
    model->layers[1].vector[PVTI_NORM_ATT][3] = (pvt_real)1e5;
    CHECK(pvt_quantize(model, &corpus, &s.desc) == PVT_ERR_NUMERIC);
    CHECK(strstr(pvt_ctx_error(ctx), "layers.1.input_layernorm.weight\": element 3 is 100000") != NULL);
    CHECK(model->layers[1].vector[PVTI_NORM_ATT][3] == (pvt_real)1e5 && !pvti_has_codes(&model->layers[1].linear[PVTI_Q]));
    pvt_model_free(model);
    model = make_model(ctx, &s);
    ((pvt_real *)model->layers[0].linear[PVTI_Q].array[0])[3] = (pvt_real)NAN;
    memset(&alpha, 0, sizeof alpha);
    alpha.samples = 2, alpha.ctx = CTX;
    CHECK(pvt_model_alpha(model, &corpus, &alpha, numbers) == PVT_ERR_NUMERIC);
    CHECK(strstr(pvt_ctx_error(ctx), "alpha: ") == pvt_ctx_error(ctx));
    pvt_model_free(model), pvt_corpus_free(&corpus);
}

/* Weights that are orthogonal to all inputs: ⟨WH, W⟩ is 0, and by rounding a little below as often as above. */
static void check_orthogonal(pvt_ctx *ctx)
{
    enum { O = 4, I = 64 };
    static const char *const formats[] = {"aqlm:1x4g8", "int:2g32", "nf4"};
    pvt_real W[O * I], H[I * I], x[I];
    pvt_format format;
    pvt_fit_stats stats;
    pvt_weight w;
    int below = 0;
    for (int seed = 0; seed < 12; seed++) {
        for (int i = 0; i < I; i++) x[i] = (pvt_real)pvti_random_unit(7, PVTI_RANDOM_USER, (uint64_t)seed, (uint64_t)i);
        for (int i = 0; i < I * I; i++) H[i] = x[i / I] * x[i % I];
        for (int o = 0; o < O; o++) {
            double along = 0, square = 0;
            for (int i = 0; i < I; i++) {
                W[o * I + i] = (pvt_real)pvti_random_unit(8, PVTI_RANDOM_USER, (uint64_t)seed, (uint64_t)(o * I + i));
                along += (double)W[o * I + i] * (double)x[i], square += (double)x[i] * (double)x[i];
            }
            for (int i = 0; i < I; i++) W[o * I + i] -= (pvt_real)(along / square * (double)x[i]);
        }
        pvt_real WH[O * I];
        double energy = 0;
        pvti_gemm(ctx, WH, I, pvti_rows(W, I), pvti_rows(H, I), O, I, I, false);
        for (int i = 0; i < O * I; i++) energy += (double)W[i] * (double)WH[i];
        below += energy < 0;
        for (int k = 0; k < 3; k++) {
            CHECK_OK(ctx, pvt_format_parse(ctx, formats[k], &format));
            CHECK_OK(ctx, pvt_weight_fit(ctx, W, O, I, H, &format, NULL, &stats, &w));
            CHECK(stats.error >= 0);
            pvt_weight_free(&w);
        }
    }
    CHECK(below > 0);
    for (int i = 0; i < I * I; i++) H[i] = i / I == i % I ? -1 : 0; /* what is not positive is refused all the same */
    CHECK(pvt_weight_fit(ctx, W, O, I, H, &format, NULL, &stats, &w) == PVT_ERR_NUMERIC);
}

/* KL(W ‖ W with noise t in tensor i), measured another way and with other noise than pvt_model_alpha's. */
static double noise_costs(pvt_ctx *ctx, const pvt_model *model, const int32_t *ids, int64_t tensor, double t, double *t2)
{
    enum { B = 4 };
    pvt_model *copy = NULL;
    pvt_run *run[2];
    pvt_run_desc desc;
    pvt_loss_desc loss;
    double square = 0, size = 0, sum;
    int64_t count;
    CHECK_OK(ctx, pvt_model_copy(ctx, model, &copy));
    pvt_tensor_info info = pvt_model_tensor(copy, tensor);
    pvt_real *W = (pvt_real *)info.weight->array[0];
    for (int64_t i = 0; i < info.n; i++) square += (double)W[i] * (double)W[i];
    for (int64_t i = 0; i < info.n; i++) {
        double d = t * sqrt(square / (double)info.n) * (4 * pvti_random_unit(9, PVTI_RANDOM_USER, 1, (uint64_t)i) - 2) * 0.866;
        W[i] += (pvt_real)d, size += d * d;
    }
    memset(&desc, 0, sizeof desc), memset(&loss, 0, sizeof loss);
    desc.max_batch = B, desc.max_ctx = CTX;
    CHECK_OK(ctx, pvt_run_create(model, &desc, &run[0]));
    CHECK_OK(ctx, pvt_run_create(copy, &desc, &run[1]));
    for (int k = 0; k < 2; k++) CHECK_OK(ctx, pvt_run_forward(run[k], ids, B, CTX, NULL));
    loss.teacher = model, loss.teacher_hidden = pvt_run_hidden(run[0]);
    CHECK_OK(ctx, pvt_run_loss(run[1], &loss, &sum, &count, NULL));
    pvt_run_free(run[0]), pvt_run_free(run[1]), pvt_model_free(copy);
    *t2 = size / square;
    return sum / (double)count;
}

/* What α predicts is what noise costs; both ways to α agree; nothing moves, whatever the threads. */
static void check_alpha(pvt_ctx *ctx)
{
    double alpha[2][40], gradient[40], t2, log_ratio = 0;
    memset(alpha, 0, sizeof alpha);
    int64_t matrices = 0, outside = 0;
    int32_t ids[TOKENS];
    pvt_corpus corpus;
    pvt_alpha_desc desc;
    setup s = make_setup(ctx, true);
    uint64_t hash[2];
    pvt_model *model = make_model(ctx, &s);
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) { /* larger weights than a start's, or all outputs are even */
        pvt_tensor_info t = pvt_model_tensor(model, i);
        for (int64_t k = 0; t.weight && k < t.n; k++) ((pvt_real *)t.weight->array[0])[k] *= 12;
    }
    for (int i = 0; i < TOKENS; i++) ids[i] = (int32_t)(pvti_random(1, PVTI_RANDOM_USER, 3, (uint64_t)i) % 96);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, TOKENS, &corpus));
    memset(&desc, 0, sizeof desc);
    desc.method = PVT_ALPHA_NOISE, desc.samples = 4, desc.ctx = CTX, desc.noise = 0.05;
    CHECK_OK(ctx, pvti_model_hash(model, &hash[0]));
    CHECK_OK(ctx, pvt_model_alpha(model, NULL, &desc, alpha[0]));
    CHECK(alpha[0][0] > 0 && pvt_model_alpha(model, NULL, NULL, alpha[1]) == PVT_ERR_ARGUMENT);
    CHECK(strstr(pvt_ctx_error(ctx), "no right next token") != NULL);
    CHECK_OK(ctx, pvt_model_alpha(model, &corpus, &desc, alpha[0]));
    desc.cross_entropy = true; /* the loss itself: here its first order is all there is */
    CHECK_OK(ctx, pvt_model_alpha(model, &corpus, &desc, alpha[1]));
    CHECK(memcmp(alpha[0], alpha[1], sizeof alpha[0]) != 0);
    desc.cross_entropy = false, desc.samples = 99;
    CHECK(pvt_model_alpha(model, &corpus, &desc, alpha[1]) == PVT_ERR_ARGUMENT && strstr(pvt_ctx_error(ctx), "too few"));
    desc.samples = 4, desc.noise = 2;
    CHECK(pvt_model_alpha(model, &corpus, &desc, alpha[1]) == PVT_ERR_ARGUMENT && strstr(pvt_ctx_error(ctx), "noise"));
    desc.noise = 0.05;
    CHECK_OK(ctx, pvti_model_hash(model, &hash[1]));
    CHECK(hash[0] == hash[1]);
    desc.method = PVT_ALPHA_GRADIENT, desc.samples = 24;
    CHECK_OK(ctx, pvt_model_alpha(model, &corpus, &desc, gradient));
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        if (!pvt_model_tensor(model, i).weight) {
            CHECK(alpha[0][i] == 0 && gradient[i] == 0);
            continue;
        }
        double costs = noise_costs(ctx, model, ids, i, 0.03, &t2), predicted = alpha[0][i] * t2;
        outside += !(predicted > 0.5 * costs && predicted < 2 * costs);
        outside += !(gradient[i] > alpha[0][i] / 2 && gradient[i] < 2 * alpha[0][i]);
        log_ratio += log(predicted / costs), matrices++;
    }
    CHECK(matrices == 22 && outside == 0);
    for (int method = 0; method < 2; method++) { /* the same bits for other threads and kernels */
        pvt_ctx_desc other;
        pvt_ctx *second = NULL;
        pvt_model *copy = NULL;
        memset(&other, 0, sizeof other);
        other.n_threads = 3, other.isa = "scalar", other.seed = ctx->seed;
        CHECK(pvt_ctx_create(&other, &second) == PVT_OK);
        CHECK_OK(second, pvt_model_copy(second, model, &copy));
        desc.method = method ? PVT_ALPHA_NOISE : PVT_ALPHA_GRADIENT, desc.samples = 2;
        CHECK_OK(ctx, pvt_model_alpha(model, &corpus, &desc, alpha[0]));
        CHECK_OK(second, pvt_model_alpha(copy, &corpus, &desc, alpha[1]));
        CHECK(alpha[0][0] > 0 && memcmp(alpha[0], alpha[1], sizeof alpha[0]) == 0);
        pvt_model_free(copy), pvt_ctx_destroy(second);
    }
    CHECK_NEAR(log_ratio / 22, 0, 0.15);
    pvt_model_free(model), pvt_corpus_free(&corpus);
}

/* H = Σ_t x_t x_tᵀ / TOKENS of the first block's attention: embeddings behind a norm whose weights are ones. */
static double feedback_inputs(const pvt_model *model, const int32_t ids[TOKENS], pvt_real *H, int dim)
{
    static pvt_real x[TOKENS * 32];
    double trace = 0;
    pvt_weight_embedding(x, pvt_model_tensor(model, 0).weight, ids, TOKENS);
    for (int t = 0; t < TOKENS; t++) {
        double sum = 0;
        for (int i = 0; i < dim; i++) sum += (double)x[t * dim + i] * (double)x[t * dim + i];
        for (int i = 0; i < dim; i++)
            x[t * dim + i] /= (pvt_real)sqrt(sum / dim + pvt_model_get_config(model)->norm_eps);
    }
    for (int i = 0; i < dim; i++)
        for (int j = 0; j < dim; j++) {
            double sum = 0;
            for (int t = 0; t < TOKENS; t++) sum += (double)x[t * dim + i] * (double)x[t * dim + j] / TOKENS;
            H[i * dim + j] = (pvt_real)sum, trace += i == j ? sum : 0;
        }
    return trace;
}

/* What two fits of w say: the error with H over what the error without would be, spread evenly over H's trace. */
static double feedback_expected(pvt_ctx *ctx, const pvt_weight *w, const pvt_real *H, double trace,
                                const pvt_format *probe)
{
    static pvt_real W[32 * 32];
    double energy = 0, square = 0;
    int64_t dim = w->I;
    pvt_fit_stats with, without;
    pvt_weight fitted;
    pvt_weight_dequantize(w, W);
    for (int64_t o = 0; o < w->O; o++)
        for (int64_t i = 0; i < dim; i++) {
            square += (double)W[o * dim + i] * (double)W[o * dim + i];
            for (int64_t j = 0; j < dim; j++)
                energy += (double)W[o * dim + i] * (double)H[i * dim + j] * (double)W[o * dim + j];
        }
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, w->O, dim, H, probe, NULL, &with, &fitted));
    pvt_weight_free(&fitted);
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, w->O, dim, NULL, probe, NULL, &without, &fitted));
    pvt_weight_free(&fitted);
    return with.error * energy / (square * trace / (double)dim) / without.error;
}

static void check_feedback_threads(const pvt_ctx *ctx, const pvt_model *model, const pvt_corpus *corpus,
                                   const pvt_alpha_desc *desc, const pvt_format *probe, const double *feedback)
{
    for (int k = 0; k < 2; k++) {
        double again[40];
        pvt_ctx_desc other;
        pvt_ctx *second = NULL;
        pvt_model *copy = NULL;
        memset(&other, 0, sizeof other);
        other.n_threads = 3 - k, other.isa = k ? NULL : "scalar", other.seed = ctx->seed;
        CHECK(pvt_ctx_create(&other, &second) == PVT_OK);
        CHECK_OK(second, pvt_model_copy(second, model, &copy));
        CHECK_OK(second, pvt_model_feedback(copy, corpus, desc, probe, again));
        CHECK(memcmp(feedback, again, (size_t)pvt_model_tensors(model) * sizeof *again) == 0);
        pvt_model_free(copy), pvt_ctx_destroy(second);
    }
}

/* Refusals, and probes that say nothing: all tensors keep 1. */
static void check_feedback_edges(pvt_ctx *ctx, const pvt_model *model, const pvt_corpus *corpus, int64_t at)
{
    double feedback[40];
    pvt_alpha_desc desc;
    pvt_format probe;
    memset(&desc, 0, sizeof desc);
    desc.samples = 99, desc.ctx = CTX;
    CHECK_OK(ctx, pvt_format_parse(ctx, "int:2g32", &probe));
    CHECK(pvt_model_feedback(model, corpus, &desc, &probe, feedback) == PVT_ERR_ARGUMENT);
    CHECK(strstr(pvt_ctx_error(ctx), "feedback: the text has") && strstr(pvt_ctx_error(ctx), "too few"));
    CHECK_OK(ctx, pvt_format_parse(ctx, "dense", &probe));
    CHECK(pvt_model_feedback(model, corpus, NULL, &probe, feedback) == PVT_ERR_ARGUMENT);
    CHECK(strstr(pvt_ctx_error(ctx), "the probe") != NULL);
    memset(&probe, 0, sizeof probe); /* groups of nothing */
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:2x4g8", &probe));
    probe.in_group = probe.out_group = 0;
    CHECK_OK(ctx, pvt_model_feedback(model, corpus, NULL, &probe, feedback));
    CHECK(feedback[at] == 1);
    CHECK_OK(ctx, pvt_format_parse(ctx, "int:2g48", &probe)); /* which divides nothing here */
    CHECK_OK(ctx, pvt_model_feedback(model, corpus, NULL, &probe, feedback));
    CHECK(feedback[at] == 1);
}

/* What pvt_model_feedback says of the first block's k_proj is what two fits say, H made here in double from the
   text's embeddings; linears that share inputs share H, embedding and vectors keep 1; other threads, same bits. */
static void check_feedback(pvt_ctx *ctx)
{
    enum { DIM = 32, TENSORS = 40 };
    static pvt_real H[DIM * DIM];
    setup s = make_setup(ctx, true);
    double feedback[TENSORS];
    int32_t ids[TOKENS];
    pvt_corpus corpus;
    pvt_format probe;
    pvt_alpha_desc desc;
    uint64_t hash[2];
    int64_t at = -1;
    pvt_model *model = make_model(ctx, &s);
    for (int i = 0; i < TOKENS; i++) ids[i] = (int32_t)(pvti_random(1, PVTI_RANDOM_USER, 3, (uint64_t)i) % 96);
    memset(&desc, 0, sizeof desc);
    desc.samples = TOKENS / CTX, desc.ctx = CTX;
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, TOKENS, &corpus));
    CHECK_OK(ctx, pvt_format_parse(ctx, "int:2g32", &probe));
    CHECK_OK(ctx, pvti_model_hash(model, &hash[0]));
    CHECK_OK(ctx, pvt_model_feedback(model, &corpus, &desc, &probe, feedback));
    CHECK_OK(ctx, pvti_model_hash(model, &hash[1]));
    CHECK(hash[0] == hash[1]);
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        CHECK(t.linear ? feedback[i] > 0 && feedback[i] < 1 : feedback[i] == 1);
        if (strcmp(t.name, "model.layers.0.self_attn.k_proj.weight") == 0) at = i;
    }
    double trace = feedback_inputs(model, ids, H, DIM);
    double expected = feedback_expected(ctx, pvt_model_tensor(model, at).weight, H, trace, &probe);
    CHECK(fabs(feedback[at] / expected - 1) < 0.02); /* fits take their own ways from H's last bits on */
    check_feedback_threads(ctx, model, &corpus, &desc, &probe, feedback);
    check_feedback_edges(ctx, model, &corpus, at);
    pvt_model_free(model), pvt_corpus_free(&corpus);
}

/* A plan of formats from all representations, in turn; the first and last stay dense. */
enum { PLANNED = 23 };
static void make_plan(pvt_ctx *ctx, const pvt_model *model, pvt_plan plan[PLANNED], char names[PLANNED][96])
{
    static const char *const texts[] = {"int:4g32", "aqlm:2x4g4", "dense", "had:int:3g16s", "higgs:p2n16", "vq:6g4"};
    int n = 0;
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        if (!t.weight) continue;
        snprintf(names[n], sizeof names[n], "%s", t.name);
        plan[n].tensor = names[n];
        CHECK_OK(ctx, pvt_format_parse(ctx, texts[n % 6], &plan[n].format));
        n++;
    }
    CHECK(n == PLANNED);
}

/* What pvt_model_errors says of a tensor is what it becomes; a plan is followed, and saved; a run with one is resumed. */
static void check_plan(pvt_ctx *ctx)
{
    pvt_plan plan[PLANNED];
    pvt_format formats[3];
    char names[PLANNED][96], why[1024], path[500];
    double errors[3 * 40];
    int64_t bytes[3 * 40], sum = 0;
    bool wanted[40];
    watch whole, w;
    pvt_model *model = NULL;
    setup s = make_setup(ctx, false);
    pvt_model *original = make_model(ctx, &s);
    make_plan(ctx, original, plan, names);
    memset(wanted, 1, sizeof wanted), memset(&whole, 0, sizeof whole), memset(&w, 0, sizeof w);
    s.desc.plan = plan, s.desc.n_plan = PLANNED, s.desc.checkpoint = NULL, s.desc.head = false;
    s.desc.samples = 4, s.desc.finetune_epochs = 1, s.desc.fit.epochs = 1;
    CHECK(quantize(&s, &whole, "whole", why) == PVT_OK);
    CHECK(whole.fits == PLANNED - 4); /* dense: 2, 8, 14 and 20 */
    snprintf(path, sizeof path, "%s/whole", dir);
    CHECK_OK(ctx, pvt_model_load(ctx, path, NULL, &model));
    wanted[0] = false;
    for (int64_t i = 0, n = 0; model && i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i), before = pvt_model_tensor(original, i);
        if (t.weight) {
            char is[48], planned[48];
            pvt_format_text(&t.weight->format, is), pvt_format_text(&plan[n].format, planned);
            CHECK(strcmp(is, planned) == 0);
            formats[0] = plan[n++].format;
        }
        formats[1] = plan[2].format, formats[2] = plan[0].format; /* dense; int:4g32 */
        formats[2].in_group = 48; /* divides nothing here */
        if (i > 2) { /* the whole list three times is enough */
            sum += t.bytes;
            continue;
        }
        CHECK_OK(ctx, pvt_model_errors(original, formats, 3, wanted, &s.desc.fit, errors, bytes));
        CHECK(bytes[3 * i] == (i == 0 ? -1 : t.bytes) && bytes[3 * i + 1] == 2 * before.n && errors[3 * i + 1] == 0);
        CHECK(bytes[3 * i + 2] == (t.weight ? -1 : 2 * before.n));
        if (i > 0 && t.weight && t.dtype == PVT_DTYPE_NONE) CHECK(errors[3 * i] > 0 && errors[3 * i] < 0.5);
        sum += t.bytes;
    }
    pvt_save_desc as;
    memset(&as, 0, sizeof as);
    CHECK(model && sum == pvt_model_bits(model, &as).bytes);
    pvt_model_free(model);
    s.desc.checkpoint = checkpoint;
    empty_checkpoint();
    w.phase = "quantize", w.after = 9;
    CHECK(quantize(&s, &w, NULL, why) == PVT_ERR_CANCELLED && files() == 2);
    memset(&w, 0, sizeof w);
    s.desc.resume = true;
    plan[22].format = plan[0].format;
    CHECK(quantize(&s, &w, NULL, why) == PVT_ERR_MISMATCH && strstr(why, "was made with another plan: it has"));
    make_plan(ctx, original, plan, names);
    CHECK(quantize(&s, &w, "resumed", why) == PVT_OK && same_model("whole", "resumed"));
    CHECK(memcmp(w.errors, whole.errors, sizeof w.errors) == 0);
    plan[3].tensor = names[4];
    CHECK(quantize(&s, &w, NULL, why) == PVT_ERR_ARGUMENT && strstr(why, "twice"));
    plan[3].tensor = "model.norm.weight";
    CHECK(quantize(&s, &w, NULL, why) == PVT_ERR_ARGUMENT && strstr(why, "no matrix of this model"));
    plan[3].tensor = names[3], plan[0].format.rotation = 2;
    CHECK(quantize(&s, &w, NULL, why) == PVT_ERR_UNSUPPORTED && strstr(why, "had2:"));
    plan[0].format.rotation = 0, plan[5].format.in_group = 48;
    CHECK(quantize(&s, &w, NULL, why) == PVT_ERR_ARGUMENT && strstr(why, "do not divide"));
    make_plan(ctx, original, plan, names); /* the plan's format of the embedding counts, not the one it cannot have */
    s.desc.resume = false, s.desc.checkpoint = NULL, s.desc.embedding = true;
    CHECK_OK(ctx, pvt_format_parse(ctx, "had2:int:2g32", &s.desc.embed_format));
    CHECK(quantize(&s, &w, NULL, why) == PVT_OK);
    pvt_model_free(original);
}

/* One of the calls; which: gradient, noise, errors, choice, feedback. */
static pvt_result allocate_call(pvt_ctx *ctx, const pvt_model *model, const pvt_corpus *corpus, int which)
{
    static const double loss[] = {4, 2, 1, 4, 2, 1, 9, 3, 0};
    static const int64_t bytes[] = {1, 2, 3, 1, 2, 4, 1, 3, 9};
    double numbers[40];
    int64_t sizes[40];
    int choice[3];
    pvt_alpha_desc alpha;
    pvt_format format;
    memset(&alpha, 0, sizeof alpha);
    alpha.method = which == 1 ? PVT_ALPHA_NOISE : PVT_ALPHA_GRADIENT, alpha.samples = 1, alpha.ctx = 8;
    if (which < 2) return pvt_model_alpha(model, corpus, &alpha, numbers);
    if (which == 3) return pvt_allocate(ctx, loss, bytes, 3, 3, 9, choice, NULL);
    CHECK_OK(ctx, pvt_format_parse(ctx, "int:2g32", &format));
    if (which == 4) return pvt_model_feedback(model, corpus, &alpha, &format, numbers);
    return pvt_model_errors(model, &format, 1, NULL, NULL, numbers, sizes);
}

/* Every allocation fails once: a sentence, and nothing is left behind. */
static void check_memory(void)
{
    static const int64_t fewest[] = {6, 15, 1, 4, 20};
    for (int which = 0; which < 5; which++) {
        bool done = false;
        for (int64_t fail = 0; !done && fail < 200; fail++) {
            test_budget b = {1000000, 0, false};
            pvt_ctx_desc desc;
            pvt_model_config c;
            pvt_ctx *ctx;
            pvt_model *model = NULL;
            pvt_corpus corpus;
            int32_t ids[64];
            memset(&desc, 0, sizeof desc), memset(&c, 0, sizeof c);
            desc.n_threads = 1;
            desc.allocator.alloc = test_budget_alloc, desc.allocator.free = test_budget_free, desc.allocator.user = &b;
            CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
            c.layers = 1, c.dim = 32, c.heads = 2, c.ff = 32, c.vocab = 32, c.ctx = 8;
            for (int i = 0; i < 64; i++) ids[i] = i * i % 31;
            CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
            CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, 64, &corpus));
            b.left = fail;
            pvt_result result = allocate_call(ctx, model, &corpus, which);
            done = result == PVT_OK;
            CHECK(done || (result == PVT_ERR_MEMORY && pvt_ctx_error(ctx)[0]));
            CHECK(!done || fail > fewest[which]);
            pvt_corpus_free(&corpus), pvt_model_free(model), pvt_ctx_destroy(ctx);
            CHECK(b.live == 0);
        }
        CHECK(done);
    }
}

int main(void)
{
    pvt_ctx *ctx = NULL;
    if (pvt_ctx_create(NULL, &ctx) != PVT_OK || !test_scratch(dir, sizeof dir)) return 1;
    snprintf(checkpoint, sizeof checkpoint, "%s/checkpoint", dir);
    check_resume(ctx, true, NULL, false);
    if (!TEST_THREAD_SANITIZER) {
        check_resume(ctx, false, NULL, false);
        check_resume(ctx, true, "int:4g32", false);
        check_resume(ctx, false, "int:8g16", true); /* fine-tuning moves codes, too */
        check_options(ctx);
        check_finetune_refused(ctx);
        check_damage(ctx);
        check_memory();
    }
    check_embed_format(ctx);
    check_block_ap(), check_undone();
    check_isa();
    check_allocate(ctx);
    check_alpha(ctx);
    check_numeric(ctx), check_orthogonal(ctx);
    check_feedback(ctx);
    check_plan(ctx);
    pvt_ctx_destroy(ctx);
    test_remove(dir);
    return test_end();
}
