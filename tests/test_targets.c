/*  What pvt_model_export writes, read a second time: a naive reader of GGUF and of the packed bits of GPTQ,
    compressed-tensors and mlx, written from their descriptions, gives the weights that the model has; and our
    own loader gives a GGUF back as it was. tests/interop.sh runs the results in the runtimes themselves. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"
#include "gguf_write.h"

#define TOKENIZERS "tests/golden/tokenizers/"

static char scratch[256];

static const char *in(const char *name)
{
    static char path[2][512];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", scratch, name);
    return path[turn];
}

static uint8_t *slurp(const char *path, int64_t *n)
{
    FILE *f = fopen(path, "rb");
    uint8_t *data = (uint8_t *)calloc(1, 1 << 22);
    *n = f ? (int64_t)fread(data, 1, (1 << 22) - 1, f) : -1;
    if (f) fclose(f);
    return data;
}

/* ---- models ---- */

static pvt_model *sized(pvt_ctx *ctx, const char *family, bool tied, int layers, int dim, int ff)
{
    pvt_model_config c;
    pvt_model *model = NULL;
    memset(&c, 0, sizeof c);
    snprintf(c.family, sizeof c.family, "%s", family);
    c.layers = layers, c.dim = dim, c.heads = 4, c.kv_heads = 2, c.ff = ff, c.vocab = 600, c.ctx = 48, c.tied = tied;
    c.rope_theta = 20000, c.norm_eps = 1e-6;
    if (strcmp(family, "mistral") == 0) c.window = 24;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    for (int64_t i = 0; model && i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        for (int64_t k = 0; t.values && k < t.n; k++)
            t.values[k] = (pvt_real)(1 + pvti_random_unit(7, PVTI_RANDOM_USER, (uint64_t)i, (uint64_t)k));
    }
    return model;
}
static pvt_model *tiny(pvt_ctx *ctx, const char *family, bool tied) { return sized(ctx, family, tied, 2, 64, 128); }

/* Tensor i in a format, by its own fit; with zeros between low and high where it has some. */
static void quantize_one(pvt_ctx *ctx, pvt_model *model, int64_t i, const char *text, int low, int high)
{
    pvt_tensor_info t = pvt_model_tensor(model, i);
    pvt_format format;
    pvt_weight q;
    pvt_array arrays[PVT_MAX_ARRAYS];
    CHECK_OK(ctx, pvt_format_parse(ctx, text, &format));
    CHECK_OK(ctx, pvt_weight_fit(ctx, (const pvt_real *)t.weight->array[0], t.weight->O, t.weight->I, NULL, &format, NULL, NULL, &q));
    pvt_weight_free(t.weight);
    *t.weight = q;
    for (int n = pvt_weight_arrays(&q, arrays); n-- > 0;)
        for (int64_t g = 0; strcmp(arrays[n].name, "zeros") == 0 && high >= low && g < arrays[n].shape[0] * arrays[n].shape[1]; g++)
            ((pvt_real *)q.array[n])[g] = (pvt_real)(low + (g * 7 + i) % (high - low + 1));
    CHECK_OK(ctx, pvt_weight_round_f16(t.weight, t.name));
}

/* All linears. */
static void quantize_range(pvt_ctx *ctx, pvt_model *model, const char *text, int low, int high)
{
    for (int64_t i = 0; i < pvt_model_tensors(model); i++)
        if (pvt_model_tensor(model, i).linear) quantize_one(ctx, model, i, text, low, high);
}

/* ---- GGUF, naively: skip the keys, note the tensors ---- */

typedef struct naive {
    uint8_t *data;
    int64_t n, at, start;
    struct {
        char name[64];
        uint32_t type;
        uint64_t dims[2], offset;
    } tensors[64];
    int n_tensors;
} naive;

static uint64_t number(naive *f, int bytes)
{
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++) v |= (uint64_t)f->data[f->at + i] << 8 * i;
    f->at += bytes;
    return v;
}
static void skip(naive *f, uint32_t type)
{
    static const int sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == 8) {
        uint64_t bytes = number(f, 8);
        f->at += (int64_t)bytes;
    } else if (type == 9) {
        uint32_t inner = (uint32_t)number(f, 4);
        uint64_t n = number(f, 8);
        for (uint64_t i = 0; i < n; i++) skip(f, inner);
    } else f->at += sizes[type];
}
static bool naive_open(naive *f, const char *path)
{
    uint64_t keys;
    memset(f, 0, sizeof *f);
    f->data = slurp(path, &f->n);
    if (f->n < 24 || memcmp(f->data, "GGUF\3\0\0\0", 8) != 0) return false;
    f->at = 8;
    f->n_tensors = (int)number(f, 8), keys = number(f, 8);
    for (uint64_t i = 0; i < keys; i++) {
        skip(f, 8);
        skip(f, (uint32_t)number(f, 4));
    }
    for (int t = 0; t < f->n_tensors; t++) {
        uint64_t length = number(f, 8);
        memcpy(f->tensors[t].name, f->data + f->at, length);
        f->at += (int64_t)length;
        f->tensors[t].dims[1] = 1;
        for (uint64_t rank = number(f, 4), d = 0; d < rank; d++) f->tensors[t].dims[d] = number(f, 8);
        f->tensors[t].type = (uint32_t)number(f, 4), f->tensors[t].offset = number(f, 8);
    }
    f->start = (f->at + 31) / 32 * 32;
    return true;
}
static int naive_find(const naive *f, const char *name)
{
    for (int t = 0; t < f->n_tensors; t++)
        if (strcmp(f->tensors[t].name, name) == 0) return t;
    return -1;
}

/* The F32 file against that of a writer of its own, tensor by tensor. */
static void check_gguf_f32(pvt_ctx *ctx, const pvt_model *model)
{
    naive ours, theirs;
    int wrong = 0;
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    CHECK_OK(ctx, pvt_model_export(model, "gguf:f32", in("ours.gguf"), &desc));
    CHECK(write_gguf(model, in("theirs.gguf"), NULL));
    CHECK(naive_open(&ours, in("ours.gguf")) && naive_open(&theirs, in("theirs.gguf")));
    CHECK(theirs.n_tensors > 0 && ours.n_tensors == theirs.n_tensors + (model->config.rope_factor != 0));
    for (int t = 0; t < theirs.n_tensors; t++) {
        int o = naive_find(&ours, theirs.tensors[t].name);
        uint64_t *a = theirs.tensors[t].dims, *b = ours.tensors[o < 0 ? 0 : o].dims;
        bool same = o >= 0 && a[0] == b[0] && a[1] == b[1] && ours.tensors[o].type == 0 &&
                    memcmp(theirs.data + theirs.start + theirs.tensors[t].offset,
                           ours.data + ours.start + ours.tensors[o].offset, a[0] * a[1] * 4) == 0;
        wrong += !same;
    }
    CHECK(wrong == 0);
    free(ours.data), free(theirs.data);
}

static void check_same_config(const pvt_model *a, const pvt_model *b)
{
    const pvt_model_config *x = &a->config, *y = &b->config;
    CHECK(x->layers == y->layers && x->dim == y->dim && x->heads == y->heads && x->kv_heads == y->kv_heads &&
          x->head_dim == y->head_dim && x->ff == y->ff && x->vocab == y->vocab && x->ctx == y->ctx);
    CHECK(x->window == y->window && x->tied == y->tied && x->norm_eps == y->norm_eps && x->rope_theta == y->rope_theta);
    CHECK(x->rope_factor == y->rope_factor && x->rope_low == y->rope_low && x->rope_high == y->rope_high &&
          (x->rope_factor == 0 || x->rope_original_ctx == y->rope_original_ctx));
}

/* What the loader makes of a file, against the model rounded to the file's type. */
static void check_gguf_back(pvt_ctx *ctx, const pvt_model *model, const char *target, pvt_dtype dtype)
{
    pvt_model *loaded = NULL;
    pvt_save_desc desc;
    int64_t wrong = 0;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    CHECK_OK(ctx, pvt_model_export(model, target, in("back.gguf"), &desc));
    CHECK_OK(ctx, pvt_model_load(ctx, in("back.gguf"), NULL, &loaded));
    if (!loaded) return;
    check_same_config(model, loaded);
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info a = pvt_model_tensor(model, i), b = pvt_model_tensor(loaded, i);
        pvt_real *x = (pvt_real *)calloc((size_t)a.n, sizeof *x), *y = (pvt_real *)calloc((size_t)a.n, sizeof *y);
        CHECK(strcmp(a.name, b.name) == 0 && a.n == b.n && (a.values || b.dtype == dtype));
        if (a.values) memcpy(x, a.values, (size_t)a.n * sizeof *x), memcpy(y, b.values, (size_t)a.n * sizeof *y);
        else pvt_weight_dequantize(a.weight, x), pvt_weight_dequantize(b.weight, y);
        for (int64_t k = 0; k < a.n; k++) {
            float v = (float)x[k];
            if (a.weight && dtype == PVT_F16) v = pvti_f16_to_f32(pvti_f32_to_f16(v));
            if (a.weight && dtype == PVT_BF16) v = pvti_bf16_to_f32(pvti_f32_to_bf16(v));
            if (a.weight && dtype == PVT_Q8_0) { /* half a step of the block's largest / 127, and of its rounding */
                double most = 0;
                for (int64_t j = k / 32 * 32; j < k / 32 * 32 + 32; j++) most = PVTI_MAX(most, fabs((double)x[j]));
                wrong += !(fabs((double)x[k] - (double)y[k]) <= most / 127 * 0.5 + most * 0.0006);
            } else wrong += (float)y[k] != v;
        }
        free(x), free(y);
    }
    CHECK(wrong == 0);
    pvt_model_free(loaded);
}

/* A file that is loaded and written again is the same file, blocks and keys. */
static void check_gguf_again(pvt_ctx *ctx, const pvt_model *model, const char *target)
{
    pvt_model *loaded = NULL;
    pvt_save_desc desc;
    int64_t a, b;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    CHECK_OK(ctx, pvt_model_export(model, target, in("first.gguf"), &desc));
    CHECK_OK(ctx, pvt_model_load(ctx, in("first.gguf"), NULL, &loaded));
    if (!loaded) return;
    CHECK_OK(ctx, pvt_model_export(loaded, target, in("second.gguf"), &desc));
    uint8_t *first = slurp(in("first.gguf"), &a), *second = slurp(in("second.gguf"), &b);
    CHECK(a > 1000 && a == b && memcmp(first, second, (size_t)a) == 0);
    free(first), free(second);
    pvt_model_free(loaded);
}

static void set_tokenizer(pvt_ctx *ctx, pvt_model *model, const char *path)
{
    pvt_tokenizer *t = NULL;
    if (path) CHECK_OK(ctx, pvt_tokenizer_load(ctx, path, &t));
    else CHECK_OK(ctx, pvt_tokenizer_create_bytes(ctx, &t));
    if (t) pvt_model_set_tokenizer(model, t);
}

static void test_gguf(pvt_ctx *ctx)
{
    static const char *const families[] = {"llama", "mistral", "qwen2"};
    for (int f = 0; f < 3; f++)
        for (int tied = 0; tied < 2; tied++) {
            pvt_model *model = tiny(ctx, families[f], tied);
            check_gguf_f32(ctx, model);
            check_gguf_back(ctx, model, "gguf:f32", PVT_F32);
            check_gguf_back(ctx, model, "gguf:f16", PVT_F16);
            check_gguf_back(ctx, model, "gguf:bf16", PVT_BF16);
            check_gguf_back(ctx, model, "gguf:q8_0", PVT_Q8_0);
            check_gguf_again(ctx, model, "gguf:f16");
            check_gguf_again(ctx, model, "gguf:q8_0");
            pvt_model_free(model);
        }
}

static void test_gguf_rope(pvt_ctx *ctx)
{
    float factors[8] = {1, 1, 1.5f, 2, 3, 4, 4, 5};
    pvt_model *model = tiny(ctx, "llama", true), *loaded = NULL;
    model->config.rope_factor = 4, model->config.rope_low = 1, model->config.rope_high = 4;
    model->config.rope_original_ctx = 32;
    check_gguf_f32(ctx, model);
    check_gguf_back(ctx, model, "gguf:f16", PVT_F16);
    check_gguf_again(ctx, model, "gguf:f16");
    model->config.rope_factor = 0, model->config.rope_factors = factors; /* of no rule */
    CHECK_OK(ctx, pvt_model_export(model, "gguf:f16", in("factors.gguf"), NULL));
    model->config.rope_factors = NULL;
    CHECK_OK(ctx, pvt_model_load(ctx, in("factors.gguf"), NULL, &loaded));
    CHECK(loaded && loaded->config.rope_factors && memcmp(loaded->config.rope_factors, factors, sizeof factors) == 0);
    pvt_model_free(loaded), pvt_model_free(model);
}

/* ---- tokenizers ---- */

static void check_ids(pvt_ctx *ctx, const pvt_tokenizer *a, const pvt_tokenizer *b)
{
    static const char *const texts[] = {"Once upon a time", " two  spaces", "\ttab\nline\n\n", "Gr\303\266\303\237en 12 \360\237\246\212", "x", "", "aaaa bb",
                                        "the fox and the hen"};
    for (int i = 0; i < (int)PVTI_COUNT(texts); i++) {
        int32_t *x = NULL, *y = NULL;
        int64_t n = -1, m = -2;
        CHECK_OK(ctx, pvt_tokenizer_encode(a, texts[i], -1, PVT_ENCODE_BOS, &x, &n));
        CHECK_OK(ctx, pvt_tokenizer_encode(b, texts[i], -1, PVT_ENCODE_BOS, &y, &m));
        CHECK(n == m && (n == 0 || memcmp(x, y, (size_t)n * sizeof *x) == 0));
        pvt_ids_free(ctx, x), pvt_ids_free(ctx, y);
    }
}

static void test_tokenizer(pvt_ctx *ctx, const char *path, const char *kind)
{
    pvt_model *model = tiny(ctx, "llama", true), *loaded = NULL;
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    set_tokenizer(ctx, model, path);
    CHECK_OK(ctx, pvt_model_export(model, "gguf:f16", in("tokens.gguf"), &desc));
    CHECK_OK(ctx, pvt_model_load(ctx, in("tokens.gguf"), NULL, &loaded));
    if (loaded) {
        pvt_tokenizer_info a = pvt_tokenizer_get_info(model->tokenizer);
        CHECK(loaded->tokenizer != NULL);
        pvt_tokenizer_info b = pvt_tokenizer_get_info(loaded->tokenizer);
        CHECK(b.vocab == 600 && a.bos == b.bos && a.eos == b.eos && a.unknown == b.unknown && a.adds_bos == b.adds_bos);
        CHECK((strcmp(a.kind, "sentencepiece") == 0) == (strcmp(b.kind, "sentencepiece") == 0) && strcmp(a.kind, kind) == 0);
        check_ids(ctx, model->tokenizer, loaded->tokenizer);
    }
    pvt_model_free(loaded);
    check_gguf_again(ctx, model, "gguf:f16");
    pvt_model_free(model);
}

/* ---- Q2_0 ---- */

static void test_q2_0(pvt_ctx *ctx, const char *format, int low, int high)
{
    pvt_model *model = tiny(ctx, "qwen2", false); /* rows in our own order */
    naive f;
    int64_t wrong = 0;
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    quantize_range(ctx, model, format, low, high);
    CHECK_OK(ctx, pvt_model_export(model, "gguf:q2_0", in("q2_0.gguf"), &desc));
    CHECK(naive_open(&f, in("q2_0.gguf")));
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        char name[96];
        gguf_name(t.name, name);
        int at = naive_find(&f, name);
        CHECK(at >= 0 && f.tensors[at].type == (t.linear ? 42u : t.weight ? 1u : 0u));
        if (!t.linear || at < 0) continue;
        pvt_real *W = (pvt_real *)calloc((size_t)t.n, sizeof *W);
        pvt_weight_dequantize(t.weight, W);
        for (int64_t r = 0; r < t.weight->O; r++)
            for (int64_t c = 0; c < t.weight->I; c++) {
                const uint8_t *block = f.data + f.start + f.tensors[at].offset + (r * t.weight->I + c) / 64 * 18;
                double d = (double)pvti_f16_to_f32((uint16_t)(block[0] | block[1] << 8));
                int q = block[2 + c % 64 / 4] >> c % 4 * 2 & 3;
                wrong += d * (q - 1) != (double)W[r * t.weight->I + c];
            }
        free(W);
    }
    CHECK(wrong == 0);
    free(f.data);
    pvt_model_free(model);
}

/* ---- an embedding and a head of codes ---- */

/* What a GGUF of q2_0 makes of an embedding in a format: the type, by its number, and the sentence that says so. `exact`: what is
   loaded is what the model has; else to fp16 of scale · zero, or of each weight. Zeros are low … high, and a quarter more. */
static const struct { const char *format; int low, high; bool quarter, exact; uint32_t type; const char *says; } kept_cases[] = {
    {"int:4g32s", 0, -1, false, true, 2, "`int:4g32s` in q4_0, as it is."},
    {"int:3g64s", 0, -1, false, true, 2, "in q4_0"},
    {"int:2g32s", 0, -1, false, true, 2, "in q4_0"},
    {"int:2g64s", 0, -1, false, true, 42, "in q2_0"},
    {"q2_0", 0, -1, false, true, 42, "`q2_0` in q2_0, as it is."},
    {"int:1g64", 0, 1, false, true, 42, "in q2_0"},
    {"int:5g32s", 0, -1, false, true, 6, "in q5_0"},
    {"int:6g32s", 0, -1, false, true, 8, "in q8_0"},
    {"int:8g32s", 0, -1, false, true, 8, "in q8_0"},
    {"int:4g32", 7, 8, false, true, 2, "in q4_0"}, /* −7 … 8 is −8 … 7 turned round */
    {"int:4g32", 0, 0, false, true, 3, "in q4_1"},
    {"int:4g32", 1, 15, false, true, 6, "in q5_0, as it is."},
    {"int:5g32", 0, 0, false, true, 7, "in q5_1"},
    {"int:5g32", 0, 31, false, true, 8, "in q8_0"},
    {"int:7g64", 0, 127, false, true, 8, "in q8_0"},
    {"int:8g32", 127, 128, false, true, 8, "in q8_0"},
    {"int:3g32", 1, 6, true, false, 3, "in q4_1, with scale * zero rounded to fp16."},
    {"int:5g64", 1, 30, true, false, 7, "in q5_1, with scale * zero rounded"},
    {"int:8g32", 100, 200, false, false, 1, "in f16, dequantized, for"},
    {"int:6g32", 3, 60, true, false, 1, "in f16, dequantized, for"},
    {"int:4g16s", 0, -1, false, false, 1, "in f16, dequantized, for"},
    {"had:int:4g32s", 0, -1, false, false, 1, "`had:int:4g32s` in f16, dequantized, for"},
    {"nf4", 0, -1, false, false, 1, "in f16, dequantized, for"}};

/* Tensor i of the file against the model's. */
static void check_kept(const pvt_model *model, const pvt_model *loaded, int64_t i, bool exact)
{
    pvt_tensor_info a = pvt_model_tensor(model, i), b = pvt_model_tensor(loaded, i);
    pvt_real *x = (pvt_real *)calloc((size_t)a.n, sizeof *x), *y = (pvt_real *)calloc((size_t)a.n, sizeof *y);
    double most = 0, off = 0;
    pvt_weight_dequantize(a.weight, x), pvt_weight_dequantize(b.weight, y);
    for (int64_t k = 0; k < a.n; k++) most = fmax(most, fabs((double)x[k])), off = fmax(off, fabs((double)x[k] - (double)y[k]));
    if (!(exact ? off == 0 : off <= most / 1024)) printf("    %s: off by %g of %g\n", a.name, off, most);
    CHECK(most > 0 && (exact ? off == 0 : off <= most / 1024)); /* fp16 rounds scale · zero, which is twice as large at most */
    free(x), free(y);
}

static void check_kept_case(pvt_ctx *ctx, pvt_model *model, int which, bool tied)
{
    static const struct { uint32_t type; int64_t bytes; } blocks[] = {{1, 64}, {2, 18}, {3, 20}, {6, 22}, {7, 24}, {8, 34}, {42, 9}}; /* of 32 weights */
    const char *format = kept_cases[which].format, *says = kept_cases[which].says;
    uint32_t type = kept_cases[which].type;
    pvt_model *loaded = NULL;
    naive f;
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true, desc.card = "A card.";
    quantize_one(ctx, model, 0, format, kept_cases[which].low, kept_cases[which].high);
    pvt_weight *embed = pvt_model_tensor(model, 0).weight;
    for (int64_t g = 0; kept_cases[which].quarter && g < 600 * 64 / embed->format.in_group; g += 2)
        ((pvt_real *)embed->array[2])[g] += (pvt_real)0.25;
    CHECK_OK(ctx, pvt_model_export(model, "gguf:q2_0", in("kept.gguf"), &desc));
    CHECK(naive_open(&f, in("kept.gguf")));
    int at = naive_find(&f, "token_embd.weight"), head = naive_find(&f, "output.weight");
    if (at < 0 || f.tensors[at].type != type) printf("    %s: type %d\n", format, at < 0 ? -1 : (int)f.tensors[at].type);
    CHECK(at >= 0 && f.tensors[at].type == type && (head < 0) == tied && (tied || f.tensors[head].type == 8));
    bool said = false, head_said = false, card = false;
    for (int64_t i = 0; i < f.start; i++) { /* the keys are text among zeros */
        const char *text = (const char *)f.data + i;
        said = said || strncmp(text, says, strlen(says)) == 0;
        head_said = head_said || strncmp(text, "`lm_head.weight`: `int:8g64s` in q8_0", 37) == 0;
        card = card || strncmp(text, "A card.\n`model.embed_tokens.weight`", 35) == 0;
    }
    CHECK(said && head_said != tied && card);
    free(f.data);
    CHECK_OK(ctx, pvt_model_load(ctx, in("kept.gguf"), NULL, &loaded));
    if (loaded) {
        check_kept(model, loaded, 0, kept_cases[which].exact);
        if (!tied) check_kept(model, loaded, pvt_model_tensors(model) - 1, true);
        for (int b = 0; b < (int)PVTI_COUNT(blocks); b++)
            if (blocks[b].type == type) CHECK(pvt_model_tensor(loaded, 0).bytes == 600 * 64 / 32 * blocks[b].bytes);
    }
    pvt_model_free(loaded);
}

static void test_kept(pvt_ctx *ctx, bool tied)
{
    pvt_model *model = tiny(ctx, "llama", tied);
    pvt_weight *embed = pvt_model_tensor(model, 0).weight;
    pvt_real *dense = (pvt_real *)calloc(600 * 64, sizeof *dense);
    pvt_weight_dequantize(embed, dense);
    quantize_range(ctx, model, "q2_0", 0, -1);
    if (!tied) quantize_one(ctx, model, pvt_model_tensors(model) - 1, "int:8g64s", 0, -1);
    for (int i = tied; i < (int)PVTI_COUNT(kept_cases); i += 2) { /* the others with the other kind of head */
        pvt_weight_free(embed);
        CHECK_OK(ctx, pvt_weight_dense(ctx, dense, 600, 64, embed));
        check_kept_case(ctx, model, i, tied);
    }
    free(dense);
    pvt_model_free(model);
}

/* Linears and the embedding in Q8_0: integers stay what they are, and others are rounded as before. */
static void test_q8_0_integers(pvt_ctx *ctx)
{
    static const struct { const char *format; int low, high; } cases[] = {{"int:4g32s", 0, -1}, {"int:8g64s", 0, -1}, {"int:4g32", 0, 15}, {"q2_0", 0, -1}};
    for (int c = 0; c < 4; c++) {
        pvt_model *model = tiny(ctx, "qwen2", true), *loaded = NULL;
        pvt_save_desc desc;
        memset(&desc, 0, sizeof desc);
        desc.overwrite = true;
        quantize_range(ctx, model, cases[c].format, cases[c].low, cases[c].high);
        quantize_one(ctx, model, 0, cases[c].format, cases[c].low, cases[c].high);
        CHECK_OK(ctx, pvt_model_export(model, "gguf:q8_0", in("integers.gguf"), &desc));
        CHECK_OK(ctx, pvt_model_load(ctx, in("integers.gguf"), NULL, &loaded));
        for (int64_t i = 0; loaded && i < pvt_model_tensors(model); i++)
            if (pvt_model_tensor(model, i).weight) check_kept(model, loaded, i, true);
        pvt_model_free(loaded), pvt_model_free(model);
    }
}

/* ---- llama.cpp's grids: the file against our own loader, whose decoders give llama.cpp's bits ---- */

/* Does a key of u32 have this value? */
static bool file_has_u32(const naive *f, const char *key, uint32_t value)
{
    int64_t n = (int64_t)strlen(key);
    for (int64_t i = 0; i + n + 8 <= f->start; i++)
        if (memcmp(f->data + i, key, (size_t)n) == 0)
            return pvti_load_u32(f->data + i + n) == 4 && pvti_load_u32(f->data + i + n + 4) == value;
    return false;
}

/* Scales that fp16 does not have, of either sign and one of 0, are rounded, and nothing else is lost. */
static void set_scales(pvt_model *model)
{
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        pvt_real *scales = t.linear ? (pvt_real *)t.weight->array[1] : NULL;
        for (int64_t b = 0; t.linear && b < t.n / 256; b++)
            scales[b] = b == 3 ? 0 : (b % 5 == 1 ? -1 : 1) * scales[b] * (pvt_real)1.0001;
    }
}

static void test_grid_blocks(pvt_ctx *ctx, const char *family, const char *format, pvt_dtype type, uint32_t number,
                             uint32_t file_type)
{
    pvt_model *model = sized(ctx, family, false, 1, 256, 512), *loaded = NULL;
    naive f;
    char target[32];
    int64_t wrong = 0, moved = 0;
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    snprintf(target, sizeof target, "gguf:%s", format);
    quantize_range(ctx, model, format, 0, -1);
    quantize_one(ctx, model, pvt_model_tensors(model) - 1, format, 0, -1); /* the head too */
    set_scales(model);
    CHECK_OK(ctx, pvt_model_export(model, target, in("grid.gguf"), &desc));
    CHECK_OK(ctx, pvt_model_load(ctx, in("grid.gguf"), NULL, &loaded));
    CHECK(naive_open(&f, in("grid.gguf")) && file_has_u32(&f, "general.file_type", file_type));
    for (int64_t i = 0; loaded && i < pvt_model_tensors(model); i++) {
        pvt_tensor_info a = pvt_model_tensor(model, i), b = pvt_model_tensor(loaded, i);
        char name[96];
        gguf_name(a.name, name);
        int at = naive_find(&f, name);
        bool codes = a.dtype == PVT_DTYPE_NONE;
        CHECK(at >= 0 && f.tensors[at].type == (codes ? number : a.weight ? 1u : 0u) && (codes || !a.linear));
        if (!codes) continue;
        CHECK(b.dtype == type);
        pvt_real *x = (pvt_real *)calloc((size_t)a.n, sizeof *x), *y = (pvt_real *)calloc((size_t)a.n, sizeof *y);
        pvt_weight_dequantize(a.weight, x);
        pvt_weight_dequantize(b.weight, y);
        for (int64_t k = 0; k < a.n; k++) moved += x[k] != y[k];
        CHECK_OK(ctx, pvt_weight_round_f16(a.weight, a.name));
        pvt_weight_dequantize(a.weight, x);
        wrong += memcmp(x, y, (size_t)a.n * sizeof *x) != 0;
        free(x), free(y);
    }
    CHECK(loaded && wrong == 0 && moved > 1000);
    free(f.data);
    pvt_model_free(loaded), pvt_model_free(model);
}

/* ---- packed directories ---- */

/* Value i of `bits` bits in a stream of them, the first lowest. */
static int stream(const uint8_t *bytes, int64_t i, int bits)
{
    int v = 0;
    for (int b = 0; b < bits; b++) v |= (bytes[(i * bits + b) / 8] >> (i * bits + b) % 8 & 1) << b;
    return v;
}
static const uint8_t *part(const pvt_tensors *file, const char *name, const char *suffix, pvt_array *a)
{
    char full[160];
    snprintf(full, sizeof full, "%.*s.%s", (int)(strrchr(name, '.') - name), name, suffix);
    int64_t at = pvt_tensors_find(file, full);
    memset(a, 0, sizeof *a);
    if (at >= 0) *a = pvt_tensors_get(file, at);
    return (const uint8_t *)a->data;
}
static double real_at(const pvt_array *a, int64_t i)
{
    float v;
    if (a->dtype == PVT_F16) return (double)pvti_f16_to_f32(pvti_load_u16((const uint8_t *)a->data + 2 * i));
    memcpy(&v, (const uint8_t *)a->data + 4 * i, 4);
    return (double)v;
}

typedef struct reading { /* of one tensor */
    const pvt_tensors *file;
    const char *name;
    int64_t O, I, group;
    int bits, plus; /* plus: 1 in version 1 of gptq */
    bool symmetric;
} reading;
typedef double read_fn(const reading *x, int64_t o, int64_t i);

static double read_gptq(const reading *x, int64_t o, int64_t i)
{
    pvt_array q, z, s, g;
    int each = 32 / x->bits;
    const uint8_t *words = part(x->file, x->name, "qweight", &q), *zeros = part(x->file, x->name, "qzeros", &z);
    part(x->file, x->name, "scales", &s), part(x->file, x->name, "g_idx", &g);
    if (!words || !zeros || !s.data || !g.data || q.shape[0] != x->I / each || q.shape[1] != x->O || z.shape[1] != x->O / each ||
        s.shape[0] != x->I / x->group || s.shape[1] != x->O || g.shape[0] != x->I || q.dtype != PVT_I32) return NAN;
    int64_t group = pvti_load_u32((const uint8_t *)g.data + 4 * i);
    return real_at(&s, group * x->O + o) *
           ((int)(pvti_load_u32(words + 4 * (i / each * x->O + o)) >> i % each * x->bits & ((1u << x->bits) - 1)) -
            (int)(pvti_load_u32(zeros + 4 * (group * (x->O / each) + o / each)) >> o % each * x->bits & ((1u << x->bits) - 1)) - x->plus);
}
static double read_ct(const reading *x, int64_t o, int64_t i)
{
    pvt_array w, z, s, shape;
    const uint8_t *codes = part(x->file, x->name, "weight_packed", &w), *zeros = part(x->file, x->name, "weight_zero_point", &z);
    int64_t GI = x->I / x->group, row = x->I * x->bits / 8;
    int zero = 0, half = 1 << (x->bits - 1);
    part(x->file, x->name, "weight_scale", &s), part(x->file, x->name, "weight_shape", &shape);
    if (!codes || !s.data || !shape.data || (zeros == NULL) != x->symmetric || s.shape[0] != x->O || s.shape[1] != GI ||
        (int64_t)pvti_load_u64(shape.data) != x->O || (int64_t)pvti_load_u64((const uint8_t *)shape.data + 8) != x->I) return NAN;
    int q = stream(codes + o * row, i, x->bits) - half; /* numbers with a sign */
    if (zeros) { /* the column of that group, along O */
        uint32_t word = pvti_load_u32(zeros + 4 * (o * x->bits / 32 * GI + i / x->group));
        zero = (int)(word >> o * x->bits % 32 & ((1u << x->bits) - 1)) - half;
    }
    return real_at(&s, o * GI + i / x->group) * (q - zero);
}
static double read_mlx(const reading *x, int64_t o, int64_t i)
{
    pvt_array w, b, s;
    const uint8_t *codes = part(x->file, x->name, "weight", &w);
    int64_t GI = x->I / x->group, g = o * GI + i / x->group;
    part(x->file, x->name, "scales", &s), part(x->file, x->name, "biases", &b);
    if (!codes || !s.data || !b.data || w.dtype != PVT_U32 || w.shape[1] != x->I * x->bits / 32 || s.dtype != b.dtype) return NAN;
    return real_at(&s, g) * stream(codes + o * (x->I * x->bits / 8), i, x->bits) + real_at(&b, g);
}

/* Every linear of the directory, read so, is the model's; to `tolerance` of its scale. */
static void check_packed(const pvt_model *model, const char *dir, read_fn *read, int plus, bool symmetric, double tolerance)
{
    reading x;
    pvt_tensors *file = NULL;
    char path[512];
    int64_t wrong = 0;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    CHECK_OK(model->ctx, pvt_tensors_open(model->ctx, path, &file));
    for (int64_t i = 0; file && i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        if (!t.linear) {
            CHECK(pvt_tensors_find(file, t.name) >= 0);
            continue;
        }
        x.file = file, x.name = t.name, x.O = t.weight->O, x.I = t.weight->I, x.group = t.weight->format.in_group;
        x.bits = t.weight->format.bits, x.plus = plus, x.symmetric = symmetric;
        pvt_real *W = (pvt_real *)calloc((size_t)t.n, sizeof *W);
        pvt_weight_dequantize(t.weight, W);
        for (int64_t o = 0; o < x.O; o++)
            for (int64_t k = 0; k < x.I; k++) {
                double w = (double)W[o * x.I + k], off = fabs(read(&x, o, k) - w);
                wrong += !(off <= tolerance);
            }
        free(W);
    }
    CHECK(wrong == 0);
    pvt_tensors_close(file);
}

static bool config_has(const char *dir, const char *text)
{
    char path[512];
    int64_t n;
    snprintf(path, sizeof path, "%s/config.json", dir);
    uint8_t *data = slurp(path, &n);
    bool found = n > 0 && strstr((const char *)data, text) != NULL;
    free(data);
    return found;
}

/* The card names the target, what runs it, and the bytes that the file takes. */
static void check_card(const pvt_model *model, const char *dir, const char *target, const char *runs)
{
    char path[512], bits[64];
    int64_t n;
    double bytes = 0;
    pvt_tensors *file = NULL;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    CHECK_OK(model->ctx, pvt_tensors_open(model->ctx, path, &file));
    for (int64_t i = 0; file && i < pvt_tensors_count(file); i++)
        bytes += (double)pvt_tensors_get(file, i).bytes;
    snprintf(path, sizeof path, "%s/README.md", dir);
    uint8_t *card = slurp(path, &n);
    snprintf(bits, sizeof bits, "in %.0f bytes)", bytes);
    snprintf(path, sizeof path, "\n- %s\n---\n", target);
    CHECK(n > 0 && strstr((char *)card, path) && strstr((char *)card, runs) && strstr((char *)card, bits));
    free(card);
    pvt_tensors_close(file);
}

static void export_to(pvt_ctx *ctx, const pvt_model *model, const char *target)
{
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    CHECK_OK(ctx, pvt_model_export(model, target, in("packed"), &desc));
}

/* low … high are the zeros that the weights have; the float product s·(q − z) is exact in double. */
static void test_packed(pvt_ctx *ctx, const char *format, int low, int high)
{
    pvt_model *model = tiny(ctx, "llama", true);
    pvt_format f;
    char text[64], dir[512];
    snprintf(dir, sizeof dir, "%s", in("packed"));
    pvt_format_parse(ctx, format, &f);
    quantize_range(ctx, model, format, low, high);
    int middle = 1 << (f.bits - 1);
    bool symmetric = low >= middle - 1 && high <= middle;
    if (f.bits == 2 || f.bits == 4 || f.bits == 8) {
        export_to(ctx, model, "gptq");
        check_packed(model, dir, read_gptq, symmetric, false, 1e-7);
        snprintf(text, sizeof text, "\"checkpoint_format\": \"%s\"", symmetric ? "gptq" : "gptq_v2");
        CHECK(config_has(dir, text) && config_has(dir, symmetric ? "\"sym\": true" : "\"sym\": false"));
        check_card(model, dir, "gptq", "GPTQModel.load(\"DIR\")");
        export_to(ctx, model, "compressed-tensors");
        check_card(model, dir, "compressed-tensors", "vllm serve DIR");
        check_packed(model, dir, read_ct, 0, symmetric, 1e-7);
        CHECK(config_has(dir, symmetric ? "\"symmetric\": true" : "\"symmetric\": false") && config_has(dir, "\"lm_head\""));
    }
    export_to(ctx, model, "mlx");
    check_card(model, dir, "mlx", "mlx_lm.generate --model DIR");
    check_packed(model, dir, read_mlx, 0, false, 1e-7);
    snprintf(text, sizeof text, "\"bits\": %d", f.bits);
    CHECK(config_has(dir, text) && config_has(dir, "\"quantization\""));
    pvt_model_free(model);
}

/* mlx: formats in any mixture, zeros off the integers, heights (48) that 32 does not divide. */
static void test_mlx_mixed(pvt_ctx *ctx)
{
    pvt_model *model = sized(ctx, "llama", false, 2, 96, 128), *other = sized(ctx, "llama", false, 2, 96, 128);
    pvt_weight *a = pvt_model_tensor(model, 3).weight, *b = pvt_model_tensor(other, 3).weight;
    char dir[512];
    snprintf(dir, sizeof dir, "%s", in("packed"));
    quantize_range(ctx, model, "int:3g32", 0, 7), quantize_range(ctx, other, "int:6g32", 20, 40);
    pvt_weight swap = *a;
    *a = *b, *b = swap;
    pvt_real *zeros = (pvt_real *)pvt_model_tensor(model, 4).weight->array[2];
    zeros[5] = (pvt_real)2.40625;
    export_to(ctx, model, "mlx");
    check_packed(model, dir, read_mlx, 0, false, 1e-7);
    CHECK(config_has(dir, "\"model.layers.0.self_attn.q_proj\": {\"group_size\": 32, \"bits\": 6"));
    pvt_model_free(model), pvt_model_free(other);
}

/* ---- what cannot be held ---- */

static void refused(pvt_ctx *ctx, const pvt_model *model, const char *target, pvt_result expected, const char *word)
{
    char path[512];
    struct stat st;
    snprintf(path, sizeof path, "%s", in("refused"));
    pvt_result result = pvt_model_export(model, target, path, NULL);
    CHECK(result == expected && strstr(pvt_ctx_error(ctx), word));
    if (!strstr(pvt_ctx_error(ctx), word)) printf("    %s: %s\n", target, pvt_ctx_error(ctx));
    CHECK(stat(path, &st) != 0);
}

static void test_refused(pvt_ctx *ctx)
{
    pvt_model *model = tiny(ctx, "llama", false);
    refused(ctx, model, "onnx", PVT_ERR_ARGUMENT, "no target");
    refused(ctx, model, "gguf:q2_0", PVT_ERR_UNSUPPORTED, "model.layers.0.self_attn.q_proj.weight\" is in dense");
    refused(ctx, model, "gptq", PVT_ERR_UNSUPPORTED, "nothing in this model is quantized");
    quantize_range(ctx, model, "int:2g32", 1, 2);
    refused(ctx, model, "gguf:q2_0", PVT_ERR_UNSUPPORTED, "int:2g32");
    refused(ctx, model, "hf-aqlm", PVT_ERR_UNSUPPORTED, "use --to dense");
    pvt_real *zeros = (pvt_real *)pvt_model_tensor(model, 3).weight->array[2];
    zeros[1] = (pvt_real)1.5;
    refused(ctx, model, "gptq", PVT_ERR_UNSUPPORTED, "the zero 1.5 in group 1");
    refused(ctx, model, "compressed-tensors", PVT_ERR_UNSUPPORTED, "the zero 1.5");
    zeros[1] = 4;
    refused(ctx, model, "compressed-tensors", PVT_ERR_UNSUPPORTED, "the zero 4 in group 1");
    zeros[1] = -1;
    refused(ctx, model, "gptq", PVT_ERR_UNSUPPORTED, "the zero -1");
    pvt_model_free(model);
    model = tiny(ctx, "llama", false), quantize_range(ctx, model, "int:2g64", 0, 2);
    refused(ctx, model, "gguf:q2_0", PVT_ERR_UNSUPPORTED, "the zero of group");
    pvt_model_free(model);
    model = tiny(ctx, "llama", false), quantize_range(ctx, model, "int:3g16", 0, 7);
    refused(ctx, model, "gptq", PVT_ERR_UNSUPPORTED, "a width of 3 bits");
    refused(ctx, model, "mlx", PVT_ERR_UNSUPPORTED, "groups there are of 32, 64 or 128");
    pvt_model_free(model);
    model = tiny(ctx, "llama", false), quantize_range(ctx, model, "aqlm:1x4g8", 0, -1);
    refused(ctx, model, "compressed-tensors", PVT_ERR_UNSUPPORTED, "aqlm:1x4g8");
    refused(ctx, model, "gguf:iq2_xxs", PVT_ERR_UNSUPPORTED, "no multiple of the 256");
    pvt_model_free(model);
    model = sized(ctx, "llama", false, 1, 256, 256);
    refused(ctx, model, "gguf:iq2_xxs", PVT_ERR_UNSUPPORTED, "model.layers.0.self_attn.q_proj.weight\" is in dense");
    quantize_range(ctx, model, "iq2_xxs", 0, -1);
    refused(ctx, model, "gguf:q2_0", PVT_ERR_UNSUPPORTED, "is in iq2_xxs");
    refused(ctx, model, "gguf:iq2_xs", PVT_ERR_UNSUPPORTED, "model.layers.0.self_attn.q_proj.weight\" is in iq2_xxs;");
    pvt_model_tensor(model, 4).weight->format.rotation = 1; /* the file could not say it */
    refused(ctx, model, "gguf:iq2_xxs", PVT_ERR_UNSUPPORTED, "model.layers.0.self_attn.k_proj.weight\" is in had:iq2_xxs");
    pvt_model_tensor(model, 4).weight->format.rotation = 0;
    ((pvt_real *)pvt_model_tensor(model, 5).weight->array[1])[7] = (pvt_real)1e6;
    refused(ctx, model, "gguf:iq2_xxs", PVT_ERR_NUMERIC, "model.layers.0.self_attn.v_proj.weight");
    pvt_model_free(model);
    model = tiny(ctx, "qwen2", false);
    model->config.window = 8;
    refused(ctx, model, "gguf:f16", PVT_ERR_UNSUPPORTED, "a window");
    model->config.window = 0, model->config.rope_factor = 4, model->config.rope_low = 1, model->config.rope_high = 4;
    refused(ctx, model, "gguf:f16", PVT_ERR_UNSUPPORTED, "scaled rotary frequencies");
    model->config.rope_factor = 0;
    pvt_real *values = (pvt_real *)(uintptr_t)model->embed.array[0];
    values[70] = (pvt_real)NAN;
    refused(ctx, model, "gguf:q8_0", PVT_ERR_NUMERIC, "model.embed_tokens.weight");
    values[70] = (pvt_real)1e9;
    refused(ctx, model, "gguf:f16", PVT_ERR_NUMERIC, "model.embed_tokens.weight");
    refused(ctx, model, "gguf:q8_0", PVT_ERR_NUMERIC, "Q8_0");
    values[70] = 0;
    CHECK_OK(ctx, pvt_model_export(model, "gguf:f16", in("there.gguf"), NULL));
    CHECK(pvt_model_export(model, "gguf:f16", in("there.gguf"), NULL) == PVT_ERR_ARGUMENT && strstr(pvt_ctx_error(ctx), "already"));
    pvt_model_free(model);
}

/* ---- the table; memory that fails ---- */

static void test_table(void)
{
    const pvt_export_target *t;
    int n = 0;
    while ((t = pvt_export_target_at(n)) != NULL) {
        CHECK(t->name[0] && t->about[0] && t->file == (strncmp(t->name, "gguf:", 5) == 0));
        n++;
    }
    CHECK(n >= 12 && !pvt_export_target_at(-1));
}

static void test_memory(const char *target, const char *format, const char *tokenizer)
{
    test_budget budget = {1000000, 0, false};
    pvt_ctx_desc desc;
    pvt_save_desc save;
    pvt_ctx *ctx;
    pvt_result result = PVT_ERR_MEMORY;
    int64_t at;
    bool clean = true;
    memset(&desc, 0, sizeof desc), memset(&save, 0, sizeof save);
    save.overwrite = true;
    desc.n_threads = 1;
    desc.allocator.alloc = test_budget_alloc, desc.allocator.free = test_budget_free, desc.allocator.user = &budget;
    if (pvt_ctx_create(&desc, &ctx) != PVT_OK) {
        CHECK(ctx != NULL);
        return;
    }
    bool wide = strncmp(format, "iq2", 3) == 0;
    pvt_model *model = wide ? sized(ctx, "llama", true, 1, 256, 256) : tiny(ctx, "llama", true);
    quantize_range(ctx, model, format, 1, 2);
    if (strcmp(target, "gguf:q2_0") == 0) quantize_one(ctx, model, 0, "int:4g32s", 0, -1); /* and the sentence about it */
    set_tokenizer(ctx, model, tokenizer);
    int64_t before = budget.live;
    for (at = 0; result == PVT_ERR_MEMORY && at < 20000; at += at < 60 ? 1 : PVTI_MAX(1, at / 8)) {
        budget.left = at;
        result = pvt_model_export(model, target, in("memory"), &save);
        clean = clean && budget.live == before;
    }
    CHECK(result == PVT_OK && clean && at > 5);
    budget.left = 1000000;
    pvt_model_free(model);
    pvt_ctx_destroy(ctx);
    test_remove(in("memory"));
}

int main(void)
{
    pvt_ctx *ctx;
    pvt_format format;
    if (!test_scratch(scratch, sizeof scratch) || pvt_ctx_create(NULL, &ctx) != PVT_OK) return 1;
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    test_table();
    test_gguf(ctx);
    test_gguf_rope(ctx);
    test_tokenizer(ctx, NULL, "bytes");
    test_tokenizer(ctx, TOKENIZERS "tokenizer.model", "sentencepiece");
    test_tokenizer(ctx, TOKENIZERS "tokenizer.json", "gpt-2");
    test_q2_0(ctx, "int:2g64", 1, 1);
    test_q2_0(ctx, "int:2g64", 1, 2);
    if (pvt_format_parse(NULL, "q2_0", &format) == PVT_OK) {
        test_q2_0(ctx, "q2_0", 1, 1);
        test_packed(ctx, "q2_0", 1, 1);
    } else SKIP("the format q2_0 is not in this build");
    test_kept(ctx, false), test_kept(ctx, true);
    test_q8_0_integers(ctx);
    test_grid_blocks(ctx, "llama", "iq2_xxs", PVT_IQ2_XXS, 16, 19);
    test_grid_blocks(ctx, "qwen2", "iq2_xxs", PVT_IQ2_XXS, 16, 19);
    test_grid_blocks(ctx, "llama", "iq2_xs", PVT_IQ2_XS, 17, 20);
    test_grid_blocks(ctx, "qwen2", "iq2_xs", PVT_IQ2_XS, 17, 20);
    test_grid_blocks(ctx, "llama", "iq2_s", PVT_IQ2_S, 22, 28);
    if (pvt_format_parse(NULL, "int:4g32s", &format) == PVT_OK) test_packed(ctx, "int:4g32s", 8, 8);
    else SKIP("symmetric integers are not in this build");
    test_packed(ctx, "int:2g64", 1, 2);
    test_packed(ctx, "int:2g64", 0, 3);
    test_packed(ctx, "int:4g32", 8, 8);
    test_packed(ctx, "int:4g32", 1, 15);
    test_packed(ctx, "int:8g64", 100, 200);
    test_packed(ctx, "int:3g32", 3, 4);
    test_packed(ctx, "int:6g64", 10, 40);
    test_mlx_mixed(ctx);
    test_refused(ctx);
    test_memory("gguf:q8_0", "int:2g64", TOKENIZERS "tokenizer.model");
    test_memory("gguf:q2_0", "int:2g64", TOKENIZERS "tokenizer.json");
    test_memory("gguf:iq2_xxs", "iq2_xxs", NULL);
    test_memory("gguf:iq2_xs", "iq2_xs", NULL);
    test_memory("gptq", "int:2g64", NULL);
    test_memory("mlx", "int:2g64", NULL);
    test_remove(scratch);
    CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
    pvt_ctx_destroy(ctx);
    return test_end();
}
