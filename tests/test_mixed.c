/*  Models in every representation, and one whose tensors are each of another: quantized, tuned under every strategy,
    resumed, saved, loaded to the same bits; and directories whose config.json and arrays do not belong together. */
#define _POSIX_C_SOURCE 200809L /* mkdtemp */
#include "../pvtune.h"
#include "test.h"

enum { CTX = 32, VOCAB = 96, TOKENS = 20 * CTX, STEPS = 4, STRATEGIES = 6 };

static const char *const formats[] = {"aqlm:2x4g4", "aqlm:2x3g4o2", "nf4", "int:4g32", "int:2g16", "int:1g8",
                                      "int:8g64", "int:4g32s", "q2_0", "higgs:p2n88", "higgs:p1n300", "e8p",
                                      "had:int:4g32", "had2:aqlm:2x4g4", "mixed", "both", "table"};
enum { FORMATS = sizeof formats / sizeof *formats };

/* "table": aqlm:2x4g4, and the embedding, which is the head as well, int:4g32 (embed_format).
   The model "mixed", and "both", where all is aqlm but in two formats: the first row that a name holds is its tensor's. */
static const char *const mixture[][3] = {
    {"embed_tokens", "int:4g32", "dense"}, {"layers.1.mlp.up", "aqlm:1x3g4", "aqlm:1x4g2"}, {"q_proj", "nf4", "aqlm:2x4g4"},
    {"k_proj", "aqlm:2x4g4", "aqlm:2x4g4"}, {"v_proj", "had:int:8g64", "aqlm:2x4g4"}, {"o_proj", "had2:aqlm:1x4g4o2", "aqlm:2x4g4"},
    {"gate_proj", "dense", "aqlm:2x4g4"}, {"up_proj", "int:2g16", "aqlm:2x4g4"},
    {"layers.0.mlp.down", "higgs:p4n12", "aqlm:2x4g4"}, {"down_proj", "had2:e8p", "aqlm:2x4g4"},
    {"lm_head", "int:1g8", "dense"}};

static const char *mixture_of(const char *name, bool both)
{
    size_t i = 0;
    while (!strstr(name, mixture[i][0])) i++;
    return mixture[i][both ? 2 : 1];
}

static char dir[300];

static const char *at(const char *name)
{
    static char path[2][400];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
    return path[turn];
}

/* Some order, so that there is something to learn. */
static pvt_corpus make_text(pvt_ctx *ctx)
{
    pvt_corpus corpus;
    int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++) ids[i] = (int32_t)((i * i + i % 13 * 31) % VOCAB);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, TOKENS, &corpus));
    return corpus;
}

static pvt_model *make_dense(pvt_ctx *ctx, bool tied)
{
    pvt_model_config c;
    pvt_model *model = NULL;
    memset(&c, 0, sizeof c);
    c.layers = 2, c.dim = 64, c.heads = 4, c.kv_heads = 2, c.ff = 128, c.vocab = VOCAB, c.ctx = CTX;
    c.tied = tied;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    return model;
}

/* Every tensor by itself into the format of the table. */
static void mix(pvt_ctx *ctx, pvt_model *model, bool both)
{
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        pvt_format f;
        pvt_fit_desc d;
        if (!t.weight) continue;
        memset(&d, 0, sizeof d);
        d.epochs = 1, d.kmeans_steps = 2, d.name = t.name, d.stream = (uint64_t)i;
        CHECK_OK(ctx, pvt_format_parse(ctx, mixture_of(t.name, both), &f));
        if (f.kind == PVT_FORMAT_DENSE) continue;
        pvt_weight dense = *t.weight;
        CHECK_OK(ctx, pvt_weight_fit(ctx, (const pvt_real *)dense.array[0], dense.O, dense.I, NULL, &f, &d, NULL, t.weight));
        pvt_weight_free(&dense);
    }
}

static pvt_model *make(pvt_ctx *ctx, const char *format, const pvt_corpus *corpus)
{
    bool table = strcmp(format, "table") == 0;
    pvt_model *model = make_dense(ctx, table);
    pvt_quantize_desc q;
    if (strcmp(format, "mixed") == 0 || strcmp(format, "both") == 0) {
        mix(ctx, model, format[0] == 'b');
    } else {
        memset(&q, 0, sizeof q);
        q.samples = 4, q.fit.epochs = 1, q.fit.kmeans_steps = 2;
        CHECK_OK(ctx, pvt_format_parse(ctx, table ? "aqlm:2x4g4" : format, &q.format));
        if (table) CHECK_OK(ctx, pvt_format_parse(ctx, "int:4g32", &q.embed_format));
        q.embedding = table;
        CHECK_OK(ctx, pvt_quantize(model, corpus, &q));
    }
    CHECK_OK(ctx, pvt_model_round_f16(model));
    return model;
}

static uint64_t add(uint64_t hash, const void *data, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i++) hash = (hash ^ ((const uint8_t *)data)[i]) * 1099511628211u;
    return hash;
}

/* All arrays of one role of a weight. */
static uint64_t arrays_hash(const pvt_weight *w, pvt_array_role role)
{
    pvt_array arrays[PVT_MAX_ARRAYS];
    uint64_t hash = 14695981039346656037u;
    int n = pvt_weight_arrays(w, arrays);
    for (int i = 0; i < n; i++)
        if (arrays[i].role == role) hash = add(hash, arrays[i].data, arrays[i].bytes);
    return hash;
}

static uint64_t fingerprint(const pvt_model *model)
{
    uint64_t hash = 14695981039346656037u;
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        uint64_t part[2] = {0, 0};
        if (t.weight) part[0] = arrays_hash(t.weight, PVT_ARRAY_CODE), part[1] = arrays_hash(t.weight, PVT_ARRAY_VALUE);
        hash = t.weight ? add(hash, part, sizeof part) : add(hash, t.values, t.n * (int64_t)sizeof *t.values);
    }
    return hash;
}

static void logits_of(pvt_ctx *ctx, const pvt_model *model, const pvt_corpus *corpus, pvt_real *logits)
{
    pvt_run_desc desc;
    pvt_run *run = NULL;
    memset(&desc, 0, sizeof desc);
    CHECK_OK(ctx, pvt_run_create(model, &desc, &run));
    CHECK_OK(ctx, pvt_run_forward(run, corpus->ids, 1, CTX, logits));
    pvt_run_free(run);
}

/* ---- tuning ---- */

static pvt_tune_desc plan(pvt_strategy strategy)
{
    pvt_tune_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.steps = STEPS, desc.batch = 2, desc.ctx = CTX, desc.eval_every = -1, desc.warmup = -1;
    desc.schedule = PVT_SCHEDULE_CONSTANT, desc.pv.strategy = strategy;
    /* ten times the size of a weight: no code is so coarse that it stays for that */
    desc.pv.codes.rule = PVT_OPTIMIZER_ADAM, desc.pv.codes.lr = 0.2;
    desc.pv.values.lr = 3e-4; /* the default would hardly move the scales of eight bits */
    return desc;
}

/* Which codes and values have moved since `before`: in every tensor, except those codes that the strategy leaves. */
static void check_moved(const pvt_model *model, const pvt_model *before, pvt_strategy strategy)
{
    int coded = 0;
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i), was = pvt_model_tensor(before, i);
        if (!t.weight) continue;
        CHECK(arrays_hash(t.weight, PVT_ARRAY_VALUE) != arrays_hash(was.weight, PVT_ARRAY_VALUE));
        bool moved = arrays_hash(t.weight, PVT_ARRAY_CODE) != arrays_hash(was.weight, PVT_ARRAY_CODE);
        if (t.dtype == PVT_DTYPE_NONE && moved != (strategy != PVT_STRATEGY_CONTINUOUS))
            printf("    %s, %s\n", t.name, pvt_strategy_name(strategy));
        CHECK(moved == (t.dtype == PVT_DTYPE_NONE && strategy != PVT_STRATEGY_CONTINUOUS));
        coded += t.dtype == PVT_DTYPE_NONE;
    }
    CHECK(coded >= 13);
}

/* A checkpoint with a code of this tensor that is the first beyond the format's: refused, and nothing is taken. */
static void check_hostile_checkpoint(pvt_ctx *ctx, pvt_model *model, const pvt_model *teacher, const pvt_corpus *corpus)
{
    pvt_tune_desc desc = plan(PVT_STRATEGY_STE);
    size_t size;
    char *bytes = test_slurp(at("tuner.safetensors"), &size), name[120], range[100];
    pvt_tuner *tuner = NULL;
    uint64_t before = fingerprint(model), header;
    memcpy(&header, bytes, sizeof header);
    CHECK_OK(ctx, pvt_tuner_create(model, teacher, corpus, &desc, &tuner));
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        char *where = NULL, kept[2];
        if (t.dtype != PVT_DTYPE_NONE || t.weight->format.bits % 8 == 0) continue;
        int limit = t.weight->format.entries ? t.weight->format.entries : 1 << t.weight->format.bits;
        snprintf(name, sizeof name, "\"%s.codes\"", t.name);
        char *found = strstr(bytes + 8, name); /* the header is text, and its offsets follow the name */
        CHECK(found && (where = strstr(found, "\"data_offsets\":[")) != NULL);
        if (!where) continue;
        snprintf(range, sizeof range, "%.90s", strchr(where, '[') + 1);
        long long from = strtoll(range, NULL, 10);
        where = bytes + 8 + header + (uint64_t)from;
        memcpy(kept, where, 2);
        where[0] = (char)limit;
        if (limit > 255) where[1] = (char)(limit >> 8);
        test_spit(at("tuner.safetensors"), bytes, size);
        CHECK(pvt_tuner_resume(tuner, at("tuner.safetensors")) == PVT_ERR_FORMAT);
        CHECK(strstr(pvt_ctx_error(ctx), t.name) && strstr(pvt_ctx_error(ctx), "does not fit") && fingerprint(model) == before);
        memcpy(where, kept, 2);
    }
    test_spit(at("tuner.safetensors"), bytes, size);
    CHECK_OK(ctx, pvt_tuner_resume(tuner, at("tuner.safetensors")));
    pvt_tuner_free(tuner);
    free(bytes);
}

/* Four steps, a checkpoint in the middle, and the second half once more from there. */
static void check_tune(pvt_ctx *ctx, const pvt_model *start, const pvt_model *teacher, const pvt_corpus *corpus,
                       pvt_strategy strategy, pvt_model **tuned)
{
    pvt_tune_desc desc = plan(strategy);
    pvt_tune_stats stats;
    pvt_tuner *tuner = NULL;
    pvt_model *model = NULL, *again = NULL;
    int64_t changed = 0;
    CHECK_OK(ctx, pvt_model_copy(ctx, start, &model));
    CHECK_OK(ctx, pvt_model_copy(ctx, start, &again));
    CHECK_OK(ctx, pvt_tuner_create(model, teacher, corpus, &desc, &tuner));
    for (int i = 0; i < STEPS; i++) {
        CHECK_OK(ctx, pvt_tuner_step(tuner, &stats));
        changed += stats.groups_changed;
        if (i == 1) CHECK_OK(ctx, pvt_tuner_save(tuner, at("tuner.safetensors")));
    }
    CHECK_OK(ctx, pvt_tuner_finish(tuner, NULL));
    pvt_tuner_free(tuner);
    CHECK((changed > 0) == (strategy != PVT_STRATEGY_CONTINUOUS));
    check_moved(model, start, strategy);

    CHECK_OK(ctx, pvt_tuner_create(again, teacher, corpus, &desc, &tuner));
    CHECK_OK(ctx, pvt_tuner_resume(tuner, at("tuner.safetensors")));
    CHECK(fingerprint(again) != fingerprint(start));
    for (int i = 2; i < STEPS; i++) CHECK_OK(ctx, pvt_tuner_step(tuner, NULL));
    CHECK_OK(ctx, pvt_tuner_finish(tuner, NULL));
    pvt_tuner_free(tuner);
    CHECK(fingerprint(again) == fingerprint(model));
    pvt_model_free(again);
    *tuned = model;
}

/* ---- files ---- */

/* Bytes of a safetensors file behind its header. */
static int64_t data_bytes(const char *path)
{
    size_t size;
    char *bytes = test_slurp(path, &size);
    uint64_t header;
    memcpy(&header, bytes, sizeof header);
    free(bytes);
    return (int64_t)size - 8 - (int64_t)header;
}

static void check_array(pvt_tensors *file, const char *name, pvt_dtype dtype, int rank)
{
    int64_t i = pvt_tensors_find(file, name);
    CHECK(i >= 0 && pvt_tensors_get(file, i).dtype == dtype && pvt_tensors_get(file, i).rank == rank);
}

/* The layout: that of aqlm where all is one format of it, else a format for each tensor. */
static void check_layout(pvt_ctx *ctx, const char *format, const pvt_model *model)
{
    size_t size;
    char *config = test_slurp(at("saved/config.json"), &size), line[200], text[48];
    bool aqlm = strncmp(format, "aqlm", 4) == 0, both = strcmp(format, "both") == 0 || strcmp(format, "table") == 0;
    int rank = aqlm || strstr(format, ":aqlm") || both || strcmp(format, "mixed") == 0 ? 3 : 2; /* of k_proj's codes */
    pvt_tensors *file;
    CHECK_OK(ctx, pvt_tensors_open(ctx, at("saved/model.safetensors"), &file));
    CHECK((strstr(config, "\"quant_method\": \"aqlm\"") != NULL) == aqlm);
    CHECK((strstr(config, "\"pvtune_method\": \"arrays\"") != NULL) == !aqlm);
    CHECK(!strstr(config, "quant_method") == !aqlm && (strstr(config, "\"formats\"") != NULL) == !aqlm);
    check_array(file, "model.layers.0.self_attn.k_proj.codes", aqlm ? PVT_I8 : PVT_U8, rank);
    if (aqlm) check_array(file, "model.layers.1.mlp.up_proj.scales", PVT_F16, 4);
    else check_array(file, "model.layers.1.self_attn.q_proj.scales", PVT_F16, both || strstr(format, ":aqlm") ? 1 : 2);
    for (int64_t i = 0; i < pvt_model_tensors(model) && !aqlm; i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        char *dot = strstr(t.name, ".weight");
        if (t.dtype == PVT_DTYPE_NONE) pvt_format_text(&t.weight->format, text);
        snprintf(line, sizeof line, "\"%.*s\": \"%s\"", (int)(dot - t.name), t.name, text);
        if (t.dtype == PVT_DTYPE_NONE) CHECK(strstr(config, line) != NULL);
        snprintf(line, sizeof line, "\"%.*s\":", (int)(dot - t.name), t.name);
        CHECK((strstr(config, line) != NULL) == (t.dtype == PVT_DTYPE_NONE));
    }
    pvt_tensors_close(file);
    free(config);
}

/* The embedding as it is in the file: four bits for a code (int:4g32), fp16 scales and zeros for 32; and the bits over all are
   the file's. */
static void check_table(const pvt_model *model)
{
    pvt_tensor_info t = pvt_model_tensor(model, 0);
    pvt_bits bits = pvt_model_bits(model, NULL);
    char text[48];
    pvt_format_text(&t.weight->format, text);
    CHECK(strcmp(text, "int:4g32") == 0 && strcmp(t.name, "model.embed_tokens.weight") == 0);
    CHECK(pvt_model_get_config(model)->tied && pvt_model_tensors(model) == 1 + 2 * 9 + 1);
    CHECK_NEAR(pvt_weight_bits(t.weight), 4 + 2 * 16 / 32.0, 1e-9);
    CHECK_NEAR(8.0 * (double)t.bytes / (double)t.n, 4 + 2 * 16 / 32.0, 1e-9);
    CHECK_NEAR(bits.all * (double)bits.params, 8.0 * (double)data_bytes(at("saved/model.safetensors")), 0.5);
}

static void check_files(pvt_ctx *ctx, const char *format, const pvt_model *model, const pvt_corpus *corpus)
{
    static pvt_real one[CTX * VOCAB], two[CTX * VOCAB];
    pvt_save_desc desc;
    pvt_model *loaded = NULL;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    CHECK_OK(ctx, pvt_model_save(model, at("saved"), &desc));
    CHECK(pvt_model_bits(model, &desc).bytes == data_bytes(at("saved/model.safetensors")));
    check_layout(ctx, format, model);
    CHECK_OK(ctx, pvt_model_load(ctx, at("saved"), NULL, &loaded));
    if (!loaded) return;
    if (strcmp(format, "table") == 0) check_table(loaded);
    logits_of(ctx, model, corpus, one), logits_of(ctx, loaded, corpus, two);
    CHECK(memcmp(one, two, sizeof one) == 0);
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i), u = pvt_model_tensor(loaded, i);
        CHECK((t.dtype == PVT_DTYPE_NONE) == (u.dtype == PVT_DTYPE_NONE));
        if (t.dtype != PVT_DTYPE_NONE) continue;
        CHECK(memcmp(&t.weight->format, &u.weight->format, sizeof t.weight->format) == 0);
        CHECK(arrays_hash(t.weight, PVT_ARRAY_CODE) == arrays_hash(u.weight, PVT_ARRAY_CODE));
        CHECK(arrays_hash(t.weight, PVT_ARRAY_VALUE) == arrays_hash(u.weight, PVT_ARRAY_VALUE));
    }
    CHECK_NEAR(pvt_model_bits(loaded, NULL).linears, pvt_model_bits(model, &desc).linears, 1e-9);
    pvt_model_free(loaded);

    desc.dense = true; /* and in full: about the same */
    CHECK_OK(ctx, pvt_model_save(model, at("saved"), &desc));
    CHECK(pvt_model_bits(model, &desc).bytes == data_bytes(at("saved/model.safetensors")));
    CHECK_OK(ctx, pvt_model_load(ctx, at("saved"), NULL, &loaded));
    logits_of(ctx, loaded, corpus, two);
    for (int i = 0; i < CTX * VOCAB; i++) CHECK_NEAR(one[i], two[i], 0.02 * (1 + fabs((double)one[i])));
    pvt_model_free(loaded);
}

static void check_models(pvt_ctx *ctx)
{
    pvt_corpus corpus = make_text(ctx);
    pvt_model *teacher = make_dense(ctx, false);
    for (int i = 0; i < FORMATS; i++) {
        pvt_model *model = make(ctx, formats[i], &corpus), *tuned = NULL;
        check_files(ctx, formats[i], model, &corpus);
        for (int s = 0; s < STRATEGIES; s++) {
            check_tune(ctx, model, teacher, &corpus, (pvt_strategy)s, &tuned);
            if (s == PVT_STRATEGY_STE) check_files(ctx, formats[i], tuned, &corpus);
            pvt_model_free(tuned);
            if (s != PVT_STRATEGY_STE) continue;
            CHECK_OK(ctx, pvt_model_copy(ctx, model, &tuned));
            check_hostile_checkpoint(ctx, tuned, teacher, &corpus);
            pvt_model_free(tuned);
        }
        pvt_model_free(model);
    }
    pvt_model_free(teacher), pvt_corpus_free(&corpus);
}

/* ---- directories that are not right ---- */

/* In a copy of config.json, the first `from` becomes `to`; the sentence of the load that is refused. */
static void refuse_config(pvt_ctx *ctx, const char *from, const char *to, const char *word, const char *tensor)
{
    size_t size;
    char *config = test_slurp(at("saved/config.json"), &size);
    char *other = (char *)calloc(1, size + strlen(to) + 1);
    char *found = strstr(config, from);
    pvt_model *model = NULL;
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    CHECK(found != NULL);
    if (found) {
        snprintf(other, size + strlen(to) + 1, "%.*s%s%s", (int)(found - config), config, to, found + strlen(from));
        test_spit(at("saved/config.json"), other, strlen(other));
        pvt_result result = pvt_model_load(ctx, at("saved"), NULL, &model);
        if (result == PVT_OK || !strstr(pvt_ctx_error(ctx), word)) printf("    %s -> %s: %s\n", from, to, result ? pvt_ctx_error(ctx) : "loaded");
        CHECK((result == PVT_ERR_FORMAT || result == PVT_ERR_UNSUPPORTED || result == PVT_ERR_MISMATCH) && !model);
        CHECK(strstr(pvt_ctx_error(ctx), dir) && strstr(pvt_ctx_error(ctx), word) && strstr(pvt_ctx_error(ctx), tensor));
        CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
        pvt_model_free(model);
        test_spit(at("saved/config.json"), config, size);
    }
    free(config), free(other);
}

#define K0 "model.layers.0.self_attn.k_proj"
#define Q0 "model.layers.0.self_attn.q_proj"
#define D0 "model.layers.0.mlp.down_proj"
#define E "model.embed_tokens"
#define H "lm_head"

static void check_configs(pvt_ctx *ctx)
{
    char many[300], name[400];
    memset(many, '9', 280), many[280] = 0;
    snprintf(name, sizeof name, "\"%s%s\": \"nf4\"", Q0, many);
    refuse_config(ctx, "\"" E "\": \"int:4g32\"", "\"" E "\": \"int:9g32\"", "int:9g32", E);
    refuse_config(ctx, "\"" E "\": \"int:4g32\"", "\"" E "\": \"dense\"", "dense", E);
    refuse_config(ctx, "\"" E "\": \"int:4g32\"", "\"" E "\": 4", "not known", E);
    refuse_config(ctx, "\"" E "\": \"int:4g32\"", "\"" E "\": [\"int:4g32\"]", "not known", E);
    refuse_config(ctx, "int:4g32", many, "not known", E);
    refuse_config(ctx, "\"" Q0 "\": \"nf4\"", name, "not known", "model.layers.0");
    refuse_config(ctx, "\"" Q0 "\": \"nf4\"", "\"another\": \"nf4\"", "no quantization_config for it", Q0);
    refuse_config(ctx, "\"formats\": {", "\"others\": {", "\"formats\"", "");
    refuse_config(ctx, "\"formats\": {", "\"formats\": 7, \"others\": {", "\"formats\"", "");
    refuse_config(ctx, "\"arrays\"", "\"tables\"", "tables", "");
    refuse_config(ctx, "\"" E "\": \"int:4g32\"", "\"" E "\": \"int:4g48\"", "do not divide", E);
    refuse_config(ctx, "\"" E "\": \"int:4g32\"", "\"" E "\": \"int:4g16\"", "scales", E);
    refuse_config(ctx, "\"" E "\": \"int:4g32\"", "\"" E "\": \"int:3g32\"", "codes", E);
    refuse_config(ctx, "\"" Q0 "\": \"nf4\"", "\"" Q0 "\": \"int:4g64\"", "zeros", Q0);
    refuse_config(ctx, "\"" Q0 "\": \"nf4\"", "\"" Q0 "\": \"aqlm:1x4g1\"", "codes", Q0);
    refuse_config(ctx, "\"" K0 "\": \"aqlm:2x4g4\"", "\"" K0 "\": \"aqlm:2x4g8\"", "codes", K0);
    refuse_config(ctx, "\"" K0 "\": \"aqlm:2x4g4\"", "\"" K0 "\": \"aqlm:2x3g4\"", "", K0);
    refuse_config(ctx, "\"" K0 "\": \"aqlm:2x4g4\"", "\"" K0 "\": \"aqlm:2x12g4\"", "codes", K0);
}

typedef enum wrong { WRONG_NAME, WRONG_TYPE, WRONG_RANK, WRONG_SHAPE, WRONG_CONTENT, WRONGS } wrong;

/* The weight file once more with one array that is not right. */
static void refuse_array(pvt_ctx *ctx, const char *name, wrong how, const char *tensor)
{
    pvt_array arrays[64];
    pvt_tensors *file;
    pvt_model *model = NULL;
    uint8_t content[1 << 14], shorter[1 << 14];
    size_t size;
    char *kept = test_slurp(at("saved/model.safetensors"), &size);
    CHECK_OK(ctx, pvt_tensors_open(ctx, at("saved/model.safetensors"), &file));
    int64_t n = pvt_tensors_count(file), i = pvt_tensors_find(file, name);
    CHECK(n <= 64 && i >= 0 && pvt_tensors_get(file, i).bytes <= (int64_t)sizeof content);
    for (int64_t k = 0; k < n; k++) arrays[k] = pvt_tensors_get(file, k);
    memcpy(content, arrays[i].data, (size_t)arrays[i].bytes), memset(shorter, 0, sizeof shorter);
    if (how == WRONG_NAME) arrays[i].name = "something.else";
    if (how == WRONG_TYPE) arrays[i].dtype = PVT_I8;
    if (how == WRONG_RANK) arrays[i].shape[arrays[i].rank++] = 1;
    if (how == WRONG_SHAPE) arrays[i].bytes -= arrays[i].bytes / arrays[i].shape[0], arrays[i].shape[0]--, arrays[i].data = shorter;
    if (how == WRONG_CONTENT) content[arrays[i].bytes - 1] = 0xff, arrays[i].data = content;
    CHECK_OK(ctx, pvt_tensors_save(ctx, at("saved/model.safetensors"), arrays, n));
    pvt_tensors_close(file);
    pvt_result result = pvt_model_load(ctx, at("saved"), NULL, &model);
    if (result == PVT_OK || !strstr(pvt_ctx_error(ctx), tensor))
        printf("    %s, wrong %d: %s\n", name, (int)how, result ? pvt_ctx_error(ctx) : "loaded");
    CHECK(result == PVT_ERR_FORMAT || result == PVT_ERR_MISMATCH || result == PVT_ERR_NUMERIC || result == PVT_ERR_UNSUPPORTED);
    CHECK(!model && strstr(pvt_ctx_error(ctx), dir) && strstr(pvt_ctx_error(ctx), tensor));
    pvt_model_free(model);
    test_spit(at("saved/model.safetensors"), kept, size);
    free(kept);
}

static void check_refused(pvt_ctx *ctx)
{
    static const char *const names[] = {E ".codes", E ".scales", E ".zeros", Q0 ".codes", Q0 ".scales", K0 ".codes", K0 ".codebooks", H ".codes", D0 ".codes"};
    pvt_model *model = make(ctx, "mixed", NULL), *again = NULL;
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    CHECK_OK(ctx, pvt_model_save(model, at("saved"), &desc));
    pvt_model_free(model);
    check_configs(ctx);
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++)
        for (int how = 0; how < WRONGS; how++) {
            char tensor[100];
            /* values are numbers of any type, and any numbers, as dense weights are */
            if ((how == WRONG_TYPE || how == WRONG_CONTENT) && !strstr(names[i], ".codes")) continue;
            /* any bits are codes, but aqlm's bytes and those of a grid of twelve */
            if (how == WRONG_CONTENT && strcmp(names[i], K0 ".codes") != 0 && strcmp(names[i], D0 ".codes") != 0) continue;
            snprintf(tensor, sizeof tensor, "%.*s", (int)(strrchr(names[i], '.') - names[i]), names[i]);
            refuse_array(ctx, names[i], (wrong)how, tensor);
        }
    CHECK_OK(ctx, pvt_model_load(ctx, at("saved"), NULL, &again)); /* it was not refused for anything else */
    pvt_model_free(again);
}

/* A context keeps the grid that it has made last: to compare what it holds, the same one before and after. */
static void keep_grid(pvt_ctx *ctx)
{
    static const pvt_real W[4] = {1, 2, -1, 0};
    pvt_format f;
    pvt_weight w;
    CHECK_OK(ctx, pvt_format_parse(ctx, "higgs:p1n2", &f));
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, 1, 4, NULL, &f, NULL, NULL, &w));
    pvt_weight_free(&w);
}

int main(void)
{
    pvt_ctx *ctx;
    pvt_ctx_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 2;
    if (!test_scratch(dir, sizeof dir) || pvt_ctx_create(&desc, &ctx) != PVT_OK) return 1;
    keep_grid(ctx);
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    check_models(ctx);
    check_refused(ctx);
    keep_grid(ctx);
    CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
    pvt_ctx_destroy(ctx);
    test_remove(dir);
    return test_end();
}
