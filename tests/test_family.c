/*  Families: their tensors by name and number, and what they add to Llama (Qwen2: biases on q, k, v; Qwen3:
    norms of q and k; Phi-3: fused matrices), and the rules of rope_scaling, through all that a model is used
    for: gradients against differences, single tokens, dense and AQLM directories, GGUF, calibration, tuning;
    and what cannot be represented is refused. (Figures of transformers: test_golden.) */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"
#include "gguf_write.h"

enum { T = 24, V = 96, CTX = 32, TOKENS = CTX * 16, ORIGINAL = 16 };

static char dir[256];

static const char *in(const char *name)
{
    static char path[4][400];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[0], "%s/%s", dir, name);
    return path[turn];
}

static double uniform(int64_t step, int64_t i)
{
    return pvti_random_unit(7, PVTI_RANDOM_USER, (uint64_t)step, (uint64_t)i) - 0.5;
}

static const int32_t *some_ids(void)
{
    static int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++) ids[i] = (i * 7 + i * i) % (V - 1);
    return ids;
}

/* What a family has beside Llama's: a bias, or a norm of q or k. */
static bool is_bias(const pvt_tensor_info *t) { return t->values && strstr(t->name, ".bias") != NULL; }
static bool is_extra(const pvt_tensor_info *t)
{
    return is_bias(t) || strstr(t->name, "q_norm") || strstr(t->name, "k_norm");
}

/* Of that rule, with an original context of ORIGINAL; −1: none. */
static void set_rope(pvt_model_config *c, int rule)
{
    static const float short_factors[4] = {1, 1.1f, 1.3f, 1.5f}, long_factors[4] = {1.2f, 1.75f, 3.5f, 6.25f};
    if (rule < 0) return;
    c->rope_rule = (pvt_rope_rule)rule, c->rope_factor = 2, c->rope_original_ctx = ORIGINAL;
    if (rule == PVT_ROPE_LLAMA3) c->rope_low = 1, c->rope_high = 4;
    if (rule != PVT_ROPE_LONG) return;
    c->rope_factors = short_factors, c->rope_long_factors = long_factors;
}

/* Two layers whose numbers fit fp16; biases as large as what they are added to, so that they matter. */
static pvt_model *tiny_rope(pvt_ctx *ctx, const char *family, bool tied, int64_t window, int rule)
{
    pvt_model_config c;
    pvt_model *model = NULL;
    memset(&c, 0, sizeof c);
    snprintf(c.family, sizeof c.family, "%s", family);
    c.layers = 2, c.dim = 32, c.heads = 4, c.kv_heads = 2, c.ff = 48, c.vocab = V, c.ctx = CTX;
    c.tied = tied, c.window = window;
    set_rope(&c, rule);
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    for (int64_t i = 0; model && i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        pvt_real *p = t.values ? t.values : (pvt_real *)(uintptr_t)t.weight->array[0];
        double middle = t.values && !is_bias(&t) ? 1 : 0;
        for (int64_t k = 0; k < t.n; k++)
            p[k] = (pvt_real)pvti_f16_to_f32(pvti_f32_to_f16((float)(middle + uniform(i, k))));
    }
    return model;
}
static pvt_model *tiny(pvt_ctx *ctx, const char *family, bool tied, int64_t window)
{
    return tiny_rope(ctx, family, tied, window, -1);
}

/* Its linears as codes, those whose name contains `skip` left out. */
static void quantize(pvt_ctx *ctx, pvt_model *model, const char *text, const char *skip)
{
    pvt_format format;
    pvt_fit_desc fit;
    memset(&fit, 0, sizeof fit);
    fit.epochs = 1, fit.kmeans_steps = 2;
    fit.cg_steps = 1; /* fewer groups than entries: more steps would diverge */
    CHECK_OK(ctx, pvt_format_parse(ctx, text, &format));
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        pvt_weight q;
        if (!t.linear || (skip && strstr(t.name, skip))) continue;
        CHECK_OK(ctx, pvt_weight_fit(ctx, (const pvt_real *)t.weight->array[0], t.weight->O, t.weight->I, NULL,
                                     &format, &fit, NULL, &q));
        pvt_weight_free(t.weight);
        *t.weight = q;
    }
    CHECK_OK(ctx, pvt_model_round_f16(model));
}

static pvt_run *make_run(pvt_ctx *ctx, const pvt_model *model, int64_t n, bool train, bool cache)
{
    pvt_run_desc desc;
    pvt_run *run = NULL;
    memset(&desc, 0, sizeof desc);
    desc.max_ctx = n;
    desc.train = desc.accumulate = train;
    desc.cache = cache;
    CHECK_OK(ctx, pvt_run_create(model, &desc, &run));
    return run;
}

static void logits_of(pvt_ctx *ctx, const pvt_model *model, pvt_real *out)
{
    pvt_run *run = make_run(ctx, model, T, false, false);
    CHECK_OK(ctx, pvt_run_forward(run, some_ids(), 1, T, out));
    pvt_run_free(run);
}

static double most_apart(const pvt_real *x, const pvt_real *y, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) {
        double apart = fabs((double)x[i] - (double)y[i]);
        if (!(apart <= most)) most = apart;
    }
    return most;
}

#if PVTI_REAL_IS_DOUBLE

enum { LONG = 19 }; /* longer than ORIGINAL */

/* d(mean loss)/d(every kind of parameter) against central differences; every element of what Llama has not.
   */
static void check_gradient(pvt_ctx *ctx, const char *family, bool tied, int64_t window, int rule,
                           int64_t extra)
{
    pvt_model *model = tiny_rope(ctx, family, tied, window, rule);
    pvt_run *run = make_run(ctx, model, LONG, true, false);
    const int32_t *ids = some_ids();
    double sum, up, down, worst = 0, largest = 0;
    int64_t count, extras = 0;
    CHECK_OK(ctx, pvt_run_forward(run, ids, 1, LONG, NULL));
    CHECK_OK(ctx, pvt_run_backward(run, NULL, &sum, &count, NULL, NULL));
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        pvt_real *p = t.values ? t.values : (pvt_real *)(uintptr_t)t.weight->array[0];
        const pvt_real *g = pvt_run_grad(run, i);
        for (int64_t k = 0; k < t.n; k += is_extra(&t) ? 1 : t.n / 9 + 1) {
            pvt_real old = p[k];
            double h = 1e-5;
            p[k] = old + h;
            pvt_run_forward(run, ids, 1, LONG, NULL), pvt_run_loss(run, NULL, &up, &count, NULL);
            p[k] = old - h;
            pvt_run_forward(run, ids, 1, LONG, NULL), pvt_run_loss(run, NULL, &down, &count, NULL);
            p[k] = old;
            double slope = (up - down) / (2 * h) / (double)count;
            worst = fmax(worst, fabs(slope - g[k]) / (1e-3 + fabs(slope)));
            if (is_extra(&t)) extras++;
            if (is_extra(&t) && !strstr(t.name, "k_proj")) largest = fmax(largest, fabs(slope));
        }
    }
    CHECK(extras == 2 * extra && (largest > 1e-3) == (extra > 0));
    CHECK_NEAR(worst, 0, 1e-6);
    pvt_run_free(run);
    pvt_model_free(model);
}

#else

/* ---- names and numbers ---- */

static void check_names(pvt_ctx *ctx)
{
    static const char *const names[] = {
        "input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.q_proj.weight",
        "self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.o_proj.weight",
        "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight",
        "self_attn.q_proj.bias", "self_attn.k_proj.bias",
        "self_attn.v_proj.bias", "self_attn.q_norm.weight", "self_attn.k_norm.weight"};
    static const char *const families[] = {"", "llama", "mistral", "phi3", "qwen2", "qwen3"};
    static const int tensors[] = {9, 9, 9, 9, 12, 11};
    pvt_model_config c;
    pvt_model *model;
    char name[96];
    for (int f = 0; f < 6; f++)
        for (int tied = 0; tied < 2; tied++) {
            int64_t last = 1 + 2 * tensors[f];
            model = tiny(ctx, families[f], tied, 0);
            CHECK(pvt_model_tensors(model) == last + 2 - tied);
            CHECK(strcmp(pvt_model_tensor(model, 0).name, "model.embed_tokens.weight") == 0);
            for (int l = 0; l < 2; l++)
                for (int j = 0; j < tensors[f]; j++) {
                    pvt_tensor_info t = pvt_model_tensor(model, 1 + l * tensors[f] + j);
                    snprintf(name, sizeof name, "model.layers.%d.%s", l, names[f == 5 && j >= 9 ? j + 3 : j]);
                    CHECK(strcmp(t.name, name) == 0);
                    CHECK(t.linear == (j >= 2 && j < 9) && (t.values != NULL) == (j < 2 || j >= 9));
                    CHECK(j < 9 || t.n == (f == 5 ? 8 : j == 9 ? 32 : 16));
                    CHECK((t.whole[0] != 0) == (f == 3 && ((j >= 2 && j < 5) || j == 6 || j == 7)));
                }
            CHECK(strcmp(pvt_model_tensor(model, last).name, "model.norm.weight") == 0);
            CHECK(tied || strcmp(pvt_model_tensor(model, last + 1).name, "lm_head.weight") == 0);
            pvt_model_free(model);
        }
    memset(&c, 0, sizeof c);
    snprintf(c.family, sizeof c.family, "gpt2");
    c.layers = 1, c.dim = 8, c.heads = 1, c.ff = 8, c.vocab = 8, c.ctx = 8;
    CHECK(pvt_model_create(ctx, &c, &model) == PVT_ERR_ARGUMENT &&
          strstr(pvt_ctx_error(ctx),
                 "no family \"gpt2\"; llama, mistral, qwen2, qwen3 and phi3 are supported"));
    memset(c.family, 'q', sizeof c.family); /* not even terminated */
    CHECK(pvt_model_create(ctx, &c, &model) == PVT_ERR_ARGUMENT && model == NULL);
    snprintf(c.family, sizeof c.family, "qwen2");
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model)); /* biases begin as zeros, norms as ones */
    for (int j = 0; model && j < 8; j++)
        CHECK(model->layers[0].vector[PVTI_K_BIAS][j] == 0 && model->norm[j] == 1);
    pvt_model_free(model);
}

/* ---- single tokens ---- */

/* Token by token, every kernel set and number of threads gives the same bits, near those of all at once; as
   dense weights in F16 and F32 and as codes, prepared and not. */
static void check_tokens(void)
{
    static const char *const formats[] = {NULL, "aqlm:2x8g8", "aqlm:1x10g8", "f16"};
    static const char *const sets[] = {"scalar", "avx2", "avx512"};
    static pvt_real all[T * V], some[T * V], first[T * V];
    for (int f = 0; f < PVTI_COUNT(formats); f++)
        for (int s = 0; s < 6; s++) {
            pvt_ctx_desc desc;
            pvt_ctx *ctx;
            memset(&desc, 0, sizeof desc);
            desc.n_threads = 1 + s % 3;
            desc.isa = sets[s % 3];
            CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
            pvt_model *model = tiny(ctx, "qwen2", true, 0);
            if (formats[f] && strcmp(formats[f], "f16") == 0) {
                pvt_save_desc save;
                memset(&save, 0, sizeof save);
                save.overwrite = true;
                CHECK_OK(ctx, pvt_model_save(model, in("f16"), &save));
                pvt_model_free(model);
                CHECK_OK(ctx, pvt_model_load(ctx, in("f16"), NULL, &model));
            } else if (formats[f]) {
                quantize(ctx, model, formats[f], NULL);
            }
            logits_of(ctx, model, all);
            if (s >= 3) CHECK_OK(ctx, pvt_model_prepare(model, false));
            /* both ways are taken */
            CHECK((model->layers[0].linear[PVTI_Q].prepared != NULL) == (s >= 3 && formats[f] && f < 3));
            pvt_run *run = make_run(ctx, model, T, false, true);
            for (int t = 0; t < T; t++)
                CHECK_OK(ctx, pvt_run_forward(run, some_ids() + t, 1, 1, some + t * V));
            CHECK_NEAR(most_apart(all, some, T * V), 0, s >= 3 ? 2e-2 : 1e-4);
            if (s % 3 == 0) memcpy(first, some, sizeof first);
            CHECK(memcmp(first, some, sizeof first) == 0);
            pvt_run_free(run);
            pvt_model_free(model);
            pvt_ctx_destroy(ctx);
        }
}

/*  Sequences that outgrow the original context while they are cached: from then on they are as if all of it
    had come at once, whatever the pieces. */
static void check_growth(pvt_ctx *ctx)
{
    static const int pieces[][4] = {{1, 0, 0, 0}, {5, 9, 4, 6}, {15, 2, 7, 0}, {20, 4, 0, 0}};
    static pvt_real all[2 * T * V], few[2 * ORIGINAL * V], some[2 * T * V];
    for (int p = 0; p < PVTI_COUNT(pieces); p++) {
        pvt_model *model = tiny_rope(ctx, "phi3", false, 0, PVT_ROPE_LONG);
        pvt_run_desc desc;
        pvt_run *run = NULL, *whole = NULL;
        memset(&desc, 0, sizeof desc);
        desc.max_batch = 2, desc.max_ctx = T;
        CHECK_OK(ctx, pvt_run_create(model, &desc, &whole));
        CHECK_OK(ctx, pvt_run_forward(whole, some_ids(), 2, T, all));
        desc.cache = true, desc.max_tokens = 2 * 20;
        CHECK_OK(ctx, pvt_run_create(model, &desc, &run));
        for (int again = 0; again < 2; again++) {
            pvt_run_reset(run);
            for (int at = 0, k = 0, step; at < T; at += step) {
                int32_t ids[2 * T];
                step = pieces[p][1] ? pieces[p][k++] : 1;
                for (int b = 0; b < 2; b++)
                    memcpy(ids + b * step, some_ids() + b * T + at, (size_t)step * sizeof *ids);
                CHECK_OK(ctx, pvt_run_forward(run, ids, 2, step, some));
                if (at + step <= ORIGINAL) continue;
                for (int b = 0; b < 2; b++)
                    CHECK_NEAR(most_apart(some + b * step * V, all + (b * T + at) * V, step * V), 0, 1e-4);
            }
        }
        CHECK_OK(ctx, pvt_run_forward(whole, some_ids(), 2, ORIGINAL, few)); /* the short factors again */
        CHECK(most_apart(few, all, ORIGINAL * V) > 1e-3);
        pvt_run_reset(run);
        CHECK_OK(ctx, pvt_run_forward(run, some_ids(), 2, ORIGINAL, some));
        CHECK_NEAR(most_apart(few, some, 2 * ORIGINAL * V), 0, 1e-4);
        pvt_run_free(run), pvt_run_free(whole);
        pvt_model_free(model);
    }
}

/* A run that had longer sequences forgets their frequencies. */
static void check_lengths(pvt_ctx *ctx)
{
    static pvt_real first[T * V], again[T * V], longer[T * V];
    for (int rule = 0; rule < PVTI_COUNT(pvti_rope_names); rule++) {
        pvt_model *model = tiny_rope(ctx, "llama", false, 0, rule);
        pvt_run *run = make_run(ctx, model, T, false, false);
        bool by_length = rule == PVT_ROPE_DYNAMIC || rule == PVT_ROPE_LONG;
        CHECK_OK(ctx, pvt_run_forward(run, some_ids(), 1, ORIGINAL, first));
        CHECK_OK(ctx, pvt_run_forward(run, some_ids(), 1, T, longer));
        CHECK_OK(ctx, pvt_run_forward(run, some_ids(), 1, ORIGINAL, again));
        CHECK(memcmp(first, again, ORIGINAL * V * sizeof *first) == 0);
        CHECK((most_apart(first, longer, ORIGINAL * V) > 1e-3) == by_length);
        CHECK_OK(ctx, pvt_run_forward(run, some_ids(), 1, T - 2, again)); /* fewer, beyond it too */
        CHECK_OK(ctx, pvt_run_forward(run, some_ids(), 1, T, again));
        CHECK(memcmp(longer, again, sizeof longer) == 0);
        pvt_run_free(run);
        pvt_model_free(model);
    }
}

/* Rotary factors stand alone, or as longrope's two; beside a rule nobody would apply them. */
static void check_factors_refused(pvt_ctx *ctx)
{
    static const float factors[4] = {1, 1.1f, 1.3f, 1.5f};
    for (int rule = -1; rule < PVTI_COUNT(pvti_rope_names); rule++)
        for (int given = 1; given < 4; given++) { /* the short ones, the long ones, both */
            pvt_model_config c;
            pvt_model *model;
            memset(&c, 0, sizeof c);
            c.layers = 1, c.dim = 32, c.heads = 4, c.kv_heads = 2, c.ff = 32, c.vocab = 40, c.ctx = 2 * ORIGINAL;
            set_rope(&c, rule);
            c.rope_factors = given & 1 ? factors : NULL, c.rope_long_factors = given & 2 ? factors : NULL;
            bool fine = rule == PVT_ROPE_LONG ? given == 3 : rule < 0 && given == 1;
            CHECK((pvt_model_create(ctx, &c, &model) == PVT_OK) == fine);
            if (fine) pvt_model_free(model);
        }
}

/* ---- files ---- */

static char *text_of(pvt_ctx *ctx, const char *path, int64_t *bytes)
{
    pvti_map map;
    CHECK_OK(ctx, pvti_map_open(ctx, path, &map));
    char *text = (char *)calloc(1, (size_t)map.size + 1);
    memcpy(text, map.data, (size_t)map.size);
    if (bytes) *bytes = map.size;
    pvti_map_close(ctx, &map);
    return text;
}

static void check_same_rope(const pvt_model_config *a, const pvt_model_config *b)
{
    size_t bytes = (size_t)(a->head_dim / 2) * sizeof(float);
    CHECK(a->ctx == b->ctx && a->rope_rule == b->rope_rule && a->rope_factor == b->rope_factor);
    CHECK(a->rope_original_ctx == b->rope_original_ctx || a->rope_factor == 0);
    CHECK(fabs(a->rope_attention - b->rope_attention) < 1e-12);
    if (a->rope_factor != 0 && a->rope_rule == PVT_ROPE_LONG)
        CHECK_NEAR(a->rope_attention, sqrt(1 + log(2) / log((double)ORIGINAL)), 1e-12);
    CHECK(!a->rope_factors == !b->rope_factors && !a->rope_long_factors == !b->rope_long_factors);
    if (a->rope_factors && b->rope_factors) CHECK(memcmp(a->rope_factors, b->rope_factors, bytes) == 0);
    if (a->rope_long_factors && b->rope_long_factors)
        CHECK(memcmp(a->rope_long_factors, b->rope_long_factors, bytes) == 0);
}

/* The loaded model has the other's logits to the bit, and biases make a difference in it. */
static void check_same(pvt_ctx *ctx, const pvt_model *model, const char *path, const char *family)
{
    static pvt_real before[T * V], after[T * V];
    pvt_model *loaded = NULL, *copy = NULL;
    CHECK_OK(ctx, pvt_model_load(ctx, path, NULL, &loaded));
    if (!loaded) return;
    CHECK(strcmp(loaded->config.family, family) == 0 && loaded->config.tied == model->config.tied);
    CHECK(loaded->config.window == model->config.window);
    check_same_rope(&loaded->config, &model->config);
    CHECK(pvt_model_tensors(loaded) == pvt_model_tensors(model));
    CHECK_OK(ctx, pvt_model_copy(ctx, loaded, &copy));
    logits_of(ctx, model, before);
    logits_of(ctx, loaded, after);
    CHECK(memcmp(before, after, sizeof before) == 0);
    logits_of(ctx, copy, after);
    CHECK(memcmp(before, after, sizeof before) == 0);
    for (int j = PVTI_Q_BIAS; j <= PVTI_K_NORM; j++) {
        pvt_real *bias = copy->layers[1].vector[j];
        CHECK((bias != NULL) == pvti_config_has(&model->config, j));
        if (!bias) continue;
        for (int i = 0; i < 8; i++) bias[i] += (pvt_real)(0.5 * uniform(90 + j, i));
        logits_of(ctx, copy, after);
        CHECK(most_apart(before, after, T * V) > 1e-3);
        memcpy(bias, loaded->layers[1].vector[j], 8 * sizeof *bias);
    }
    pvt_model_free(loaded);
    pvt_model_free(copy);
}

static void check_directory(pvt_ctx *ctx, bool tied, int64_t window)
{
    pvt_model *model = tiny(ctx, "qwen2", tied, window);
    const char *name = tied ? "tied" : "untied";
    char path[400], sub[420];
    pvti_safetensors st;
    pvt_save_desc save;
    int64_t biases = 0;
    memset(&save, 0, sizeof save);
    snprintf(path, sizeof path, "%s", in(name));
    CHECK_OK(ctx, pvt_model_save(model, path, NULL));
    check_same(ctx, model, path, "qwen2");
    snprintf(sub, sizeof sub, "%s/config.json", path);
    char *config = text_of(ctx, sub, NULL);
    CHECK(strstr(config, "\"Qwen2ForCausalLM\"") && strstr(config, "\"model_type\": \"qwen2\""));
    CHECK(!strstr(config, "attention_bias") && !strstr(config, "mlp_bias"));
    CHECK(strstr(config, window ? "\"use_sliding_window\": true" : "\"use_sliding_window\": false"));
    free(config);

    quantize(ctx, model, "aqlm:2x4g4", "layers.1.self_attn.k_proj");
    save.overwrite = true;
    CHECK_OK(ctx, pvt_model_save(model, path, &save));
    check_same(ctx, model, path, "qwen2");
    config = text_of(ctx, sub, NULL);
    CHECK(strstr(config, "\"model.layers.1.self_attn.k_proj\"") &&
          strstr(config, "\"model.layers.1.self_attn.k_proj.weight\""));
    CHECK(!strstr(config, "q_proj") && !strstr(config, ".bias"));
    free(config);
    snprintf(sub, sizeof sub, "%s/model.safetensors", path);
    CHECK_OK(ctx, pvti_safetensors_open(ctx, sub, &st));
    for (int64_t i = 0; i < st.n; i++) biases += strstr(st.tensors[i].name, ".bias") != NULL;
    CHECK(biases == 6 && pvti_safetensors_find(&st, "model.layers.0.self_attn.q_proj.codes"));
    CHECK(pvti_safetensors_find(&st, "model.layers.0.self_attn.q_proj.bias")->dtype == PVT_F16);
    pvti_safetensors_close(&st);
    pvt_bits bits = pvt_model_bits(model, NULL);
    CHECK(bits.params == V * 32 * (2 - tied) + 32 +
                             2 * (2 * 32 + 64 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48));
    pvt_model_free(model);
}

/* Which names model.safetensors has in `path`. */
static bool file_has(pvt_ctx *ctx, const char *path, const char *name)
{
    pvti_safetensors st;
    char file[420];
    snprintf(file, sizeof file, "%s/model.safetensors", path);
    CHECK_OK(ctx, pvti_safetensors_open(ctx, file, &st));
    bool has = pvti_safetensors_find(&st, name) != NULL;
    pvti_safetensors_close(&st);
    return has;
}

/* Codes of Phi-3's parts are apart in our layout, and what cannot be said elsewhere is refused. */
static void check_codes(pvt_ctx *ctx, pvt_model *model, const char *path, bool fused)
{
    pvt_save_desc save;
    memset(&save, 0, sizeof save);
    save.overwrite = true;
    quantize(ctx, model, "aqlm:2x4g4", "layers.1.mlp.up_proj");
    CHECK_OK(ctx, pvt_model_save(model, path, &save));
    check_same(ctx, model, path, model->config.family);
    CHECK(file_has(ctx, path, "model.layers.0.self_attn.q_proj.codes"));
    CHECK(file_has(ctx, path, "model.layers.1.mlp.up_proj.weight")); /* its other part is of codes */
    pvt_result result = pvt_model_export(model, "hf-aqlm", path, &save);
    if (fused) CHECK(result == PVT_ERR_UNSUPPORTED && strstr(pvt_ctx_error(ctx), "gate and up in another"));
    else CHECK_OK(ctx, result);
    if (result == PVT_OK) check_same(ctx, model, path, model->config.family);
}

/* Directories and GGUFs, dense and of codes, of every family and rule. */
static void check_families(pvt_ctx *ctx)
{
    static const struct {
        const char *family;
        int rule;
        int64_t window;
        bool gguf;
    } cases[] = {{"llama", PVT_ROPE_LINEAR, 0, true}, {"llama", PVT_ROPE_DYNAMIC, 0, false},
                 {"llama", PVT_ROPE_LONG, 0, false}, {"mistral", PVT_ROPE_LLAMA3, 7, true},
                 {"qwen2", PVT_ROPE_LINEAR, 0, true}, {"qwen3", -1, 0, true},
                 {"qwen3", PVT_ROPE_DYNAMIC, 5, false},
                 {"phi3", -1, 5, true}, {"phi3", PVT_ROPE_LONG, 0, true}};
    char path[400];
    for (int i = 0; i < PVTI_COUNT(cases); i++) {
        pvt_model *model = tiny_rope(ctx, cases[i].family, i % 2, cases[i].window, cases[i].rule);
        bool fused = strcmp(cases[i].family, "phi3") == 0;
        snprintf(path, sizeof path, "%s/family%d", dir, i);
        CHECK_OK(ctx, pvt_model_save(model, path, NULL));
        check_same(ctx, model, path, cases[i].family);
        CHECK(file_has(ctx, path, "model.layers.1.self_attn.qkv_proj.weight") == fused);
        CHECK(file_has(ctx, path, "model.layers.1.mlp.gate_up_proj.weight") == fused);
        CHECK(file_has(ctx, path, "model.layers.1.mlp.up_proj.weight") != fused);
        pvt_result result = pvt_model_export(model, "gguf:f32", in("family.gguf"), NULL);
        CHECK(cases[i].gguf ? result == PVT_OK : result == PVT_ERR_UNSUPPORTED);
        const char *named = strcmp(cases[i].family, "mistral") == 0 ? "llama" : cases[i].family;
        if (cases[i].gguf) {
            check_same(ctx, model, in("family.gguf"), named);
            CHECK(remove(in("family.gguf")) == 0);
        }
        check_codes(ctx, model, path, fused);
        pvt_model_free(model);
    }
}

/* A window that only another family of the same GGUF architecture can tell is kept. */
static void check_window(pvt_ctx *ctx)
{
    pvt_model *model = tiny(ctx, "llama", true, 5), *loaded = NULL;
    CHECK_OK(ctx, pvt_model_save(model, in("window"), NULL));
    CHECK_OK(ctx, pvt_model_load(ctx, in("window"), NULL, &loaded));
    CHECK(loaded && loaded->config.window == 5 && strcmp(loaded->config.family, "mistral") == 0);
    pvt_model_free(model);
    pvt_model_free(loaded);
}

static void check_gguf(pvt_ctx *ctx)
{
    static pvt_real before[T * V], after[T * V];
    pvt_model *loaded = NULL;
    int64_t bytes;
    for (int tied = 0; tied < 2; tied++) {
        pvt_model *model = tiny(ctx, "qwen2", tied, 0);
        CHECK(write_gguf(model, in("qwen2.gguf"), NULL));
        check_same(ctx, model, in("qwen2.gguf"), "qwen2");
        pvt_model_free(model);
        model = tiny(ctx, "qwen3", tied, 0);
        CHECK(write_gguf(model, in("qwen3.gguf"), NULL));
        check_same(ctx, model, in("qwen3.gguf"), "qwen3");
        pvt_model_free(model);
    }
    pvt_model *model = tiny(ctx, "llama", false, 0); /* whose rows of q and k are in another order there */
    CHECK(write_gguf(model, in("llama.gguf"), NULL));
    CHECK_OK(ctx, pvt_model_load(ctx, in("llama.gguf"), NULL, &loaded));
    logits_of(ctx, model, before);
    if (loaded) logits_of(ctx, loaded, after);
    CHECK(memcmp(before, after, sizeof before) == 0);
    pvt_model_free(model);
    pvt_model_free(loaded);
    char *text = text_of(ctx, in("qwen2.gguf"), &bytes);
    char *at = text;
    while (memcmp(at, "qwen2", 5) != 0) at++;
    at[4] = '9';
    CHECK_OK(ctx, pvti_file_write(ctx, in("other.gguf"), text, bytes));
    CHECK(pvt_model_load(ctx, in("other.gguf"), NULL, &loaded) == PVT_ERR_UNSUPPORTED &&
          strstr(pvt_ctx_error(ctx), "\"qwen9\" are not supported; llama, qwen2, qwen3 and phi3 are"));
    free(text);
}

/* ---- what is refused ---- */

/* A key of a good config.json replaced; says NULL: it loads, and has that window. */
static void check_config(pvt_ctx *ctx, const char *from, const char *to, const char *says, int64_t window)
{
    pvt_model *model = NULL;
    char path[420];
    snprintf(path, sizeof path, "%s", in("untied/config.json"));
    char *text = text_of(ctx, path, NULL);
    char *changed = (char *)calloc(1, strlen(text) + strlen(to) + 1);
    char *at = strstr(text, from);
    CHECK(at != NULL);
    if (at) sprintf(changed, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    CHECK_OK(ctx, pvti_file_write(ctx, path, changed, (int64_t)strlen(changed)));
    pvt_result result = pvt_model_load(ctx, in("untied"), NULL, &model);
    if (says) CHECK(result != PVT_OK && strstr(pvt_ctx_error(ctx), says));
    else CHECK(result == PVT_OK && model->config.window == window);
    if (says ? result == PVT_OK || !strstr(pvt_ctx_error(ctx), says) : result != PVT_OK)
        printf("    %s: %s\n", to, result ? pvt_ctx_error(ctx) : "loaded");
    CHECK_OK(ctx, pvti_file_write(ctx, path, text, (int64_t)strlen(text)));
    pvt_model_free(model);
    free(text), free(changed);
}

static void check_configs(pvt_ctx *ctx)
{
    static const char off[] =
        "\"use_sliding_window\": false,\n  \"max_window_layers\": 2,\n  \"sliding_window\": null,";
    static const struct {
        const char *to, *says;
        int64_t window;
    } cases[] = {
        {"\"sliding_window\": 7,", NULL, 0}, /* switched off unless it is on */
        {"\"use_sliding_window\": true, \"sliding_window\": null,", NULL, 0},
        {"\"use_sliding_window\": true, \"sliding_window\": 7,", NULL, 0}, /* from layer 28 on */
        {"\"use_sliding_window\": true, \"sliding_window\": 7, \"max_window_layers\": 2,", NULL, 0},
        {"\"use_sliding_window\": true, \"sliding_window\": 7, \"max_window_layers\": 0,", NULL, 7},
        {"\"use_sliding_window\": true, \"max_window_layers\": -9223372036854775807,", NULL, 4096},
        {"\"use_sliding_window\": true, \"sliding_window\": 7, \"max_window_layers\": 1,",
         "window in 1 of 2 layers", 0},
        {"\"use_sliding_window\": true, \"sliding_window\": 7, \"max_window_layers\": 0, "
         "\"layer_types\": [\"full_attention\", \"full_attention\"],", NULL, 0},
        {"\"use_sliding_window\": true, \"sliding_window\": 7, "
         "\"layer_types\": [\"sliding_attention\", \"sliding_attention\"],", NULL, 7},
        {"\"use_sliding_window\": true, \"sliding_window\": 7, "
         "\"layer_types\": [\"sliding_attention\", \"full_attention\"],", "window in 1 of 2 layers", 0},
        {"\"use_sliding_window\": true, \"sliding_window\": 7, \"layer_types\": [\"sliding_attention\"],",
         "each of 2 layers", 0},
        {"\"use_sliding_window\": true, \"sliding_window\": 7, \"layer_types\": 2,", "each of 2 layers", 0},
        {"\"use_sliding_window\": true, \"sliding_window\": 7, "
         "\"layer_types\": [\"sliding_attention\", \"chunked_attention\"],", "each of 2 layers", 0},
        {"\"use_sliding_window\": true, \"sliding_window\": \"wide\",", "not a whole number", 0},
    };
    for (int i = 0; i < PVTI_COUNT(cases); i++)
        check_config(ctx, off, cases[i].to, cases[i].says, cases[i].window);
    check_config(ctx, "\"model_type\": \"qwen2\"", "\"model_type\": \"qwen7\"",
                 "\"qwen7\" are not supported; llama, mistral, qwen2, qwen3 and phi3 are", 0);
    check_config(ctx, "\"model_type\": \"qwen2\"", "\"model_type\": \"gemma2\"",
                 "\"gemma2\" are not supported; llama,", 0);
    check_config(ctx, "\"model_type\": \"qwen2\"", "\"model_type\": \"llama\"",
                 "q_proj.bias\": a bias that models of type llama", 0);
    /* transformers' default, and what null is */
    check_config(ctx, "\"num_key_value_heads\": 2,", "", "share 32 key/value heads", 0);
    check_config(ctx, "\"num_key_value_heads\": 2", "\"num_key_value_heads\": null", "asks for [32, 8", 0);
}

/*  Rules of rope_scaling that make no sense, in a config of Llama; each case replaces the null. */
static void check_rules(pvt_ctx *ctx)
{
    static const struct {
        const char *to, *says; /* NULL: loads */
    } cases[] = {
        {"{\"type\": \"linear\", \"factor\": 2}", NULL},
        {"{\"rope_type\": \"dynamic\", \"factor\": 2.0, \"original_max_position_embeddings\": 7}", NULL},
        {"null, \"partial_rotary_factor\": 0.5", "\"partial_rotary_factor\" other than 1"},
        {"null, \"rope_parameters\": {\"rope_type\": \"default\", \"partial_rotary_factor\": 0.75}",
         "\"partial_rotary_factor\" other than 1"},
        {"null, \"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 2}", NULL},
        {"{\"type\": \"linear\"}", "needs a \"factor\" of at least 1"},
        {"{\"type\": \"linear\", \"factor\": 0.5}", "needs a \"factor\" of at least 1"},
        {"{\"type\": \"dynamic\", \"factor\": \"two\"}", "\"factor\" is not a number"},
        {"{\"type\": \"dynamic\", \"factor\": 1e300}", "with factor 1e+300"},
        {"{\"type\": \"yarn\", \"factor\": 2}",
         "\"yarn\" is not supported; llama3, linear, dynamic and longrope"},
        {"{\"type\": \"longrope\", \"short_factor\": [1, 1, 1, 1]}", "\"long_factor\" must be a list of 4"},
        {"{\"type\": \"longrope\", \"short_factor\": 1, \"long_factor\": 1}",
         "\"short_factor\" must be a list of 4"},
        {"{\"type\": \"su\", \"short_factor\": [1, 1, 1, 1], \"long_factor\": [1, 1, 1, 2]}", NULL},
        {"{\"type\": \"longrope\", \"short_factor\": [1, 1, 1, \"1\"], \"long_factor\": [1, 1, 1, 2]}",
         "\"short_factor\" must be a list of 4"},
        {"{\"type\": \"longrope\", \"short_factor\": [1, 1, 1, 1e999], \"long_factor\": [1, 1, 1, 2]}",
         "factor"},
        {"{\"type\": \"longrope\", \"short_factor\": [1, 1, 1, 0], \"long_factor\": [1, 1, 1, 2]}",
         "rotary factor 3 is 0"},
        {"{\"type\": \"longrope\", \"short_factor\": [1, 1, 1, 1], \"long_factor\": [1, 1, 1, 2], "
         "\"attention_factor\": -1}", "attention factor of -1"},
        {"{\"type\": \"longrope\", \"short_factor\": [1, 1, 1, 1], \"long_factor\": [1, 1, 1, 2], "
         "\"long_mscale\": 1.2}", "\"long_mscale\" are not supported"},
        {"{\"type\": \"longrope\", \"short_factor\": [1, 1, 1, 1], \"long_factor\": [1, 1, 1, 2]}, "
         "\"original_max_position_embeddings\": 0", NULL},
        {"{\"type\": \"longrope\", \"short_factor\": [1, 1, 1, 1], \"long_factor\": [1, 1, 1, 2]}, "
         "\"original_max_position_embeddings\": -5", "is -5"},
    };
    CHECK(strcmp(pvt_rope_name(PVT_ROPE_LLAMA3), "llama3") == 0 && strcmp(pvt_rope_name(PVT_ROPE_LONG), "longrope") == 0);
    CHECK(strcmp(pvt_rope_name((pvt_rope_rule)4), "?") == 0 && strcmp(pvt_rope_name((pvt_rope_rule)-1), "?") == 0);
    for (int i = 0; i < PVTI_COUNT(cases); i++) {
        char to[400];
        snprintf(to, sizeof to, "\"rope_scaling\": %s", cases[i].to);
        check_config(ctx, "\"rope_scaling\": null", to, cases[i].says, 0);
    }
}

/* The first names of rotary factors in the GGUF of a Phi-3 under others: half of the two is refused. */
static void check_gguf_factors(pvt_ctx *ctx)
{
    static const char *const edits[][3] = {
        {"rope_factors_short", "rope_factors_shirt", "rope_factors_short.weight\" is missing"},
        {"rope_factors_long", "rope_factors_lung", "rope_factors_long.weight\" is missing"},
        {"original_context_length", "original_context_lungth", "original_context_length\" is missing"},
        {"attn_qkv.weight", "attn_qkw.weight", "attn_qkv.weight\" is missing"}};
    pvt_model *model = tiny_rope(ctx, "phi3", false, 0, PVT_ROPE_LONG), *loaded = NULL;
    int64_t bytes;
    CHECK_OK(ctx, pvt_model_export(model, "gguf:f32", in("factors.gguf"), NULL));
    for (int i = 0; i < PVTI_COUNT(edits); i++) {
        char *text = text_of(ctx, in("factors.gguf"), &bytes), *at = text;
        while (at < text + bytes && memcmp(at, edits[i][0], strlen(edits[i][0])) != 0) at++;
        CHECK(at < text + bytes);
        memcpy(at, edits[i][1], strlen(edits[i][1]));
        CHECK_OK(ctx, pvti_file_write(ctx, in("broken.gguf"), text, bytes));
        CHECK(pvt_model_load(ctx, in("broken.gguf"), NULL, &loaded) == PVT_ERR_FORMAT);
        CHECK(strstr(pvt_ctx_error(ctx), edits[i][2]));
        free(text);
    }
    pvt_model_free(model);
}

/* The model's directory, dense but for layer 0's qkv_proj, whose codes are those of `whole` in the layout
   of aqlm. */
static void write_fused(pvt_ctx *ctx, const pvt_model *model, const pvt_weight *whole, const char *path)
{
    static const char stem[] = "model.layers.0.self_attn.qkv_proj", *const suffix[] = {"codes", "codebooks",
                                                                                       "scales"};
    static char names[3][96];
    static const char quantization[] =
        "\"quantization_config\": {\"quant_method\": \"aqlm\", \"num_codebooks\": 2, \"nbits_per_codebook\": 4, "
        "\"in_group_size\": 4}, \"torch_dtype\"";
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvti_safetensors st;
    pvti_tensor all[64];
    uint8_t codes[1024];
    char file[420], target[420];
    int64_t n = 0;
    pvt_save_desc save;
    memset(&save, 0, sizeof save);
    save.dense = true, save.dtype = PVT_F32;
    CHECK_OK(ctx, pvt_model_save(model, path, &save));
    snprintf(file, sizeof file, "%s/model.safetensors", path);
    CHECK_OK(ctx, pvti_safetensors_open(ctx, file, &st));
    for (int64_t i = 0; i < st.n && n < 60; i++)
        if (strncmp(st.tensors[i].name, stem, strlen(stem)) != 0) all[n++] = st.tensors[i];
    pvt_weight_arrays(whole, arrays);
    for (int k = 0; k < 3; k++) {
        snprintf(names[k], sizeof names[k], "%s.%s", stem, suffix[k]);
        pvti_layout_array(&arrays[k], true);
        memset(&all[n], 0, sizeof all[n]);
        all[n].name = names[k], all[n].dtype = k ? PVT_F32 : PVT_I8, all[n].rank = arrays[k].rank;
        memcpy(all[n].shape, arrays[k].shape, (size_t)arrays[k].rank * sizeof(int64_t));
        all[n].data = k ? (const uint8_t *)whole->array[k] : codes;
        pvti_dtype_bytes(all[n].dtype, all[n].shape, all[n].rank, &all[n].bytes);
        n++;
    }
    CHECK(pvti_tensor_count(&all[n - 3]) == (int64_t)sizeof codes);
    for (int64_t i = 0; i < (int64_t)sizeof codes; i++)
        codes[i] = (uint8_t)((pvti_code_get(whole, i) ^ 8) - 8);
    snprintf(target, sizeof target, "%s/new.safetensors", path);
    CHECK_OK(ctx, pvti_safetensors_write(ctx, target, all, n, NULL));
    pvti_safetensors_close(&st);
    CHECK(rename(target, file) == 0);
    snprintf(file, sizeof file, "%s/config.json", path);
    char *text = text_of(ctx, file, NULL), *at = strstr(text, "\"torch_dtype\"");
    char *changed = (char *)calloc(1, strlen(text) + sizeof quantization);
    sprintf(changed, "%.*s%s%s", (int)(at - text), text, quantization, at + strlen("\"torch_dtype\""));
    CHECK_OK(ctx, pvti_file_write(ctx, file, changed, (int64_t)strlen(changed)));
    free(text), free(changed);
}

/*  AQLM checkpoints have Phi-3's matrices of codes fused: made here of our three parts with one codebook, by
    writing the file that transformers would. */
static void check_fused_codes(pvt_ctx *ctx)
{
    static pvt_real before[T * V], after[T * V];
    pvt_model *model = tiny(ctx, "phi3", false, 0), *loaded = NULL;
    pvt_weight whole, *parts = &model->layers[0].linear[PVTI_Q];
    pvt_format format;
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_real *W = (pvt_real *)calloc(64 * 32, sizeof *W);
    pvt_fit_desc fit;
    memset(&fit, 0, sizeof fit);
    fit.epochs = 1, fit.kmeans_steps = 2, fit.cg_steps = 1;
    for (int j = 0, row = 0; j < 3; row += (int)parts[j++].O)
        pvt_weight_dequantize(&parts[j], W + row * 32);
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:2x4g4", &format));
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, 64, 32, NULL, &format, &fit, NULL, &whole));
    CHECK_OK(ctx, pvt_weight_round_f16(&whole, "qkv"));
    for (int j = 0, row = 0; j < 3; row += (int)parts[j++].O) {
        pvt_weight view;
        CHECK_OK(ctx, pvt_weight_rows(&whole, row, parts[j].O, &view));
        pvt_weight_free(&parts[j]);
        CHECK_OK(ctx, pvti_weight_copy(ctx, &view, &parts[j]));
    }
    logits_of(ctx, model, before);
    write_fused(ctx, model, &whole, in("fusedcodes"));
    CHECK_OK(ctx, pvt_model_load(ctx, in("fusedcodes"), NULL, &loaded));
    if (loaded) {
        CHECK(loaded->layers[0].linear[PVTI_K].kind && pvt_weight_arrays(&loaded->layers[0].linear[PVTI_K],
                                                                         arrays) == 3);
        logits_of(ctx, loaded, after);
        CHECK(memcmp(before, after, sizeof before) == 0);
    }
    pvt_model_free(loaded), pvt_model_free(model);
    pvt_weight_free(&whole);
    free(W);
}

/* A bias under another name of the same length: one is missing, and one is there that nobody knows. */
static void check_biases(pvt_ctx *ctx)
{
    static const char *const edits[][3] = {
        {"layers.1.self_attn.v_proj.bias", "layers.1.self_attn.v_proj.base", "v_proj.bias\" is missing"},
        {"layers.1.self_attn.v_proj.bias", "layers.1.self_attn.o_proj.bias", "o_proj.bias\": a bias"}};
    pvt_model *model = NULL;
    int64_t bytes;
    for (int i = 0; i < PVTI_COUNT(edits); i++) {
        char *text = text_of(ctx, in("tied/model.safetensors"), &bytes), *at = text + 8;
        char *file = (char *)malloc((size_t)bytes);
        memcpy(file, text, (size_t)bytes);
        at = strstr(at, edits[i][0]);
        CHECK(at != NULL);
        if (at) memcpy(at, edits[i][1], strlen(edits[i][1]));
        CHECK_OK(ctx, pvti_file_write(ctx, in("tied/model.safetensors"), text, bytes));
        CHECK(pvt_model_load(ctx, in("tied"), NULL, &model) != PVT_OK &&
              strstr(pvt_ctx_error(ctx), edits[i][2]));
        CHECK_OK(ctx, pvti_file_write(ctx, in("tied/model.safetensors"), file, bytes));
        free(text), free(file);
    }
    CHECK_OK(ctx, pvt_model_load(ctx, in("tied"), NULL, &model));
    pvt_model_free(model);
}

/* ---- calibration and tuning ---- */

/* The two models' tensors of that kind: how many, and how many differ. */
static int differing(const pvt_model *a, const pvt_model *b, bool biases, int *n)
{
    int changed = 0;
    *n = 0;
    for (int64_t i = 0; i < pvt_model_tensors(a); i++) {
        pvt_tensor_info x = pvt_model_tensor(a, i), y = pvt_model_tensor(b, i);
        if (!x.values || is_extra(&x) != biases) continue;
        (*n)++;
        changed += memcmp(x.values, y.values, (size_t)x.n * sizeof(pvt_real)) != 0;
    }
    return changed;
}

static int stop_at_second(void *user, const pvt_progress *p)
{
    return *(bool *)user && strcmp(p->phase, "quantize") == 0 && p->done == 8;
}

/* Calibrated with fine-tuning, in one go and in two: the same bits; the biases were tuned and fit fp16. */
static void check_calibration(const char *family, int extra)
{
    static pvt_real one[T * V], two[T * V];
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    pvt_quantize_desc q;
    pvt_corpus corpus;
    pvti_safetensors st;
    bool stop = false;
    int n;
    memset(&desc, 0, sizeof desc), memset(&q, 0, sizeof q);
    desc.progress = stop_at_second, desc.progress_user = &stop;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, some_ids(), TOKENS, &corpus));
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:2x4g4", &q.format));
    if (extra == 4) q.finetune_lr = 2e-3; /* norms are near 1, where fp16 swallows smaller steps */
    q.samples = 8, q.ctx = CTX, q.fit.epochs = 1, q.fit.kmeans_steps = 2;
    pvt_model *dense = tiny(ctx, family, false, 0);
    pvt_model *model = tiny(ctx, family, false, 0);
    pvt_real *last = model->layers[1].vector[PVTI_V_BIAS];
    if (!last) last = model->layers[1].vector[PVTI_K_NORM];
    CHECK_OK(ctx, pvt_quantize(model, &corpus, &q));
    CHECK(differing(model, dense, true, &n) == extra && n == extra);
    for (int i = 0; i < 8 && last; i++) {
        pvt_real b = last[i];
        CHECK(b == (pvt_real)pvti_f16_to_f32(pvti_f32_to_f16((float)b)));
    }
    logits_of(ctx, model, one);
    pvt_model_free(model);

    CHECK_OK(ctx, pvti_directory_create(ctx, in("checkpoint")));
    q.checkpoint = in("checkpoint");
    q.resume = true;
    model = tiny(ctx, family, false, 0);
    stop = true;
    CHECK(pvt_quantize(model, &corpus, &q) == PVT_ERR_CANCELLED);
    stop = false;
    pvt_model_free(model);
    CHECK_OK(ctx, pvti_safetensors_open(ctx, in("checkpoint/quantize-00000.safetensors"), &st));
    CHECK((pvti_safetensors_find(&st, "model.layers.0.self_attn.k_proj.bias") != NULL) == (extra == 6));
    CHECK((pvti_safetensors_find(&st, "model.layers.0.self_attn.k_norm.weight") != NULL) == (extra == 4));
    pvti_safetensors_close(&st);
    model = tiny(ctx, family, false, 0);
    q.checkpoint = in("checkpoint");
    CHECK_OK(ctx, pvt_quantize(model, &corpus, &q));
    logits_of(ctx, model, two);
    CHECK(memcmp(one, two, sizeof one) == 0);
    pvt_model_free(model), pvt_model_free(dense);
    test_remove(in("checkpoint"));
    pvt_corpus_free(&corpus);
    pvt_ctx_destroy(ctx);
}

/* Some steps of tuning a quantized student; which vectors have moved; resumed from a checkpoint: the same
   bits. */
static void check_tuning(pvt_ctx *ctx, const char *family, int extra, bool freeze, bool tied)
{
    static pvt_real one[T * V], two[T * V];
    pvt_model *teacher = tiny(ctx, family, tied, 0), *before = NULL;
    pvt_tune_desc desc;
    pvt_tune_stats stats;
    pvt_tuner *tuner = NULL;
    pvt_corpus corpus;
    int n;
    memset(&desc, 0, sizeof desc);
    desc.steps = 6, desc.batch = 2, desc.ctx = CTX, desc.eval_every = -1, desc.freeze_dense = freeze;
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, some_ids(), TOKENS, &corpus));
    pvt_model *student = tiny(ctx, family, tied, 0);
    quantize(ctx, student, "aqlm:2x4g4", NULL);
    CHECK_OK(ctx, pvt_model_copy(ctx, student, &before));
    CHECK_OK(ctx, pvt_tuner_create(student, teacher, &corpus, &desc, &tuner));
    for (int i = 0; i < 6; i++) {
        CHECK_OK(ctx, pvt_tuner_step(tuner, &stats));
        if (i == 2) CHECK_OK(ctx, pvt_tuner_save(tuner, in("tuner.safetensors")));
    }
    CHECK_OK(ctx, pvt_tuner_finish(tuner, NULL));
    pvt_tuner_free(tuner);
    CHECK(differing(student, before, true, &n) == (freeze ? 0 : extra) && n == extra);
    CHECK(differing(student, before, false, &n) == (freeze ? 0 : 5) && n == 5);
    logits_of(ctx, student, one);
    CHECK_OK(ctx, pvt_tuner_create(before, teacher, &corpus, &desc, &tuner));
    CHECK_OK(ctx, pvt_tuner_resume(tuner, in("tuner.safetensors")));
    for (int i = 3; i < 6; i++) CHECK_OK(ctx, pvt_tuner_step(tuner, &stats));
    CHECK_OK(ctx, pvt_tuner_finish(tuner, NULL));
    pvt_tuner_free(tuner);
    logits_of(ctx, before, two);
    CHECK(memcmp(one, two, sizeof one) == 0);
    pvt_model_free(teacher), pvt_model_free(student), pvt_model_free(before);
    pvt_corpus_free(&corpus);
}

#endif

/* A choice beyond what one forward takes otherwise: its keys have one set of frequencies, as one forward's. */
static void check_long_choice(pvt_ctx *ctx)
{
    enum { LONG = 2300, LAST = 5 };
    static int32_t ids[LONG + 1];
    static double each[LONG];
    pvt_model_config c;
    pvt_model *model = NULL;
    pvt_choice choice[2];
    pvt_document document = {0, 2, 0};
    pvt_task task;
    pvt_score_desc desc;
    pvt_answer answers[2];
    pvt_score score;
    pvt_run_desc r;
    pvt_run *run;
    pvt_loss_desc loss;
    double sum, want = 0;
    int64_t n;
    memset(&c, 0, sizeof c), memset(choice, 0, sizeof choice), memset(&task, 0, sizeof task);
    memset(&desc, 0, sizeof desc), memset(&r, 0, sizeof r), memset(&loss, 0, sizeof loss);
    c.layers = 1, c.dim = 32, c.heads = 2, c.kv_heads = 1, c.ff = 32, c.vocab = 96, c.ctx = 4096;
    c.rope_rule = PVT_ROPE_DYNAMIC, c.rope_factor = 4, c.rope_original_ctx = 1024;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) { /* sharp attention, that frequencies matter */
        pvt_tensor_info t = pvt_model_tensor(model, i);
        for (int64_t k = 0; t.linear && k < t.n; k++) ((pvt_real *)t.weight->array[0])[k] *= 20;
    }
    for (int i = 0; i <= LONG; i++) ids[i] = (int32_t)(pvti_mix((uint64_t)i) % 96);
    for (int i = 0; i < 2; i++)
        choice[i].ids = ids + i, choice[i].n = LONG, choice[i].context = LONG - LAST, choice[i].length = LAST;
    task.documents = &document, task.choices = choice, task.n = 1, task.n_choices = 2, desc.answers = answers;
    CHECK_OK(ctx, pvt_task_score(model, &task, &desc, &score));
    r.max_ctx = LONG, loss.targets = ids + 1;
    CHECK_OK(ctx, pvt_run_create(model, &r, &run));
    CHECK_OK(ctx, pvt_run_forward(run, ids, 1, LONG - 1, NULL));
    CHECK_OK(ctx, pvt_run_loss(run, &loss, &sum, &n, each));
    for (int i = LONG - 1 - LAST; i < LONG - 1; i++) want -= each[i];
    CHECK_NEAR(answers[0].loglik, want, 1e-4);
    pvt_run_free(run), pvt_model_free(model);
}

int main(void)
{
    pvt_ctx *ctx;
    if (!test_scratch(dir, sizeof dir) || pvt_ctx_create(NULL, &ctx) != PVT_OK) return 1;
    int64_t bytes = pvt_ctx_get_info(ctx).bytes_now;
#if PVTI_REAL_IS_DOUBLE
    check_gradient(ctx, "qwen2", false, 0, -1, 32 + 16 + 16);
    check_gradient(ctx, "qwen2", true, 5, -1, 32 + 16 + 16);
    check_gradient(ctx, "qwen3", false, 0, PVT_ROPE_DYNAMIC, 8 + 8);
    check_gradient(ctx, "phi3", false, 5, PVT_ROPE_LONG, 0);
#else /* the same code in float: once is enough */
    check_names(ctx);
    check_tokens();
    check_directory(ctx, false, 0), check_directory(ctx, true, 7);
    check_growth(ctx);
    check_lengths(ctx);
    check_factors_refused(ctx);
    check_long_choice(ctx);
    check_families(ctx);
    check_window(ctx);
    check_gguf(ctx);
    check_configs(ctx);
    check_rules(ctx);
    check_gguf_factors(ctx);
    check_fused_codes(ctx);
    check_biases(ctx);
    check_calibration("qwen2", 6), check_calibration("qwen3", 4), check_calibration("phi3", 0);
    check_tuning(ctx, "qwen2", 6, false, false), check_tuning(ctx, "qwen2", 6, true, true);
    check_tuning(ctx, "qwen3", 4, false, true), check_tuning(ctx, "phi3", 0, false, false);
#endif
    CHECK(pvt_ctx_get_info(ctx).bytes_now == bytes); /* everything was given back */
    pvt_ctx_destroy(ctx);
    test_remove(dir);
    return test_end();
}
