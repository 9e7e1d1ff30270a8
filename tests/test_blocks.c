/*  GGUF's block types: every decoder, in every kernel set, makes of the same bits what llama.cpp's own makes (figures
    in tests/golden/blocks.safetensors, by blocks.py there), infinities and NaNs included; no bits make it read beyond
    its tables or its block; and models in these types load, compute and are named. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"
#include "gguf_write.h"

enum { BLOCKS = 1000 };

typedef struct block_type {
    pvt_dtype dtype;
    uint32_t id; /* in GGUF */
    int scale, min; /* where its fp16 numbers stand; −1: nowhere, or (scale) spread over the block */
} block_type;

static const block_type types[] = {
    {PVT_Q4_0, 2, 0, -1},     {PVT_Q4_1, 3, 0, 2},      {PVT_Q5_0, 6, 0, -1},    {PVT_Q5_1, 7, 0, 2},
    {PVT_Q8_0, 8, 0, -1},     {PVT_Q2_K, 10, 80, 82},   {PVT_Q3_K, 11, 108, -1}, {PVT_Q4_K, 12, 0, 2},
    {PVT_Q5_K, 13, 0, 2},     {PVT_Q6_K, 14, 208, -1},  {PVT_IQ1_S, 19, 0, -1},  {PVT_IQ1_M, 29, -1, -1},
    {PVT_IQ2_XXS, 16, 0, -1}, {PVT_IQ2_XS, 17, 0, -1},  {PVT_IQ2_S, 22, 0, -1},  {PVT_IQ3_XXS, 18, 0, -1},
    {PVT_IQ3_S, 21, 0, -1},   {PVT_IQ4_NL, 20, 0, -1},  {PVT_IQ4_XS, 23, 0, -1}, {PVT_TQ1_0, 34, 52, -1},
    {PVT_TQ2_0, 35, 64, -1},  {PVT_Q2_0, 42, 0, -1}};

static char dir[300];

static const char *in(const char *name)
{
    static char path[400];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* The bytes that blocks.py begins with `seed`; with `tame` their scales are of an ordinary size, of either sign. */
static void random_blocks(const block_type *type, uint32_t seed, int64_t n, bool tame, uint8_t *out)
{
    int64_t bytes = pvti_dtype_info(type->dtype)->bytes;
    for (int64_t i = 0; i < n * bytes; i++) seed = seed * 1664525u + 1013904223u, out[i] = (uint8_t)(seed >> 24);
    for (; tame && n > 0; n--, out += bytes) {
        if (type->scale < 0) out[55] = (uint8_t)((out[55] & 0x8f) | 0x20);
        else out[type->scale + 1] = (uint8_t)((out[type->scale + 1] & 0x83) | 0x2c);
        if (type->min >= 0) out[type->min + 1] = (uint8_t)((out[type->min + 1] & 0x83) | 0x2c);
    }
}

/* FNV-1a over floats, lowest byte first; all NaNs are one. */
static uint64_t hash_of(const pvt_real *x, int64_t n)
{
    uint64_t hash = 0xcbf29ce484222325ull;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = x[i] == x[i] ? pvti_bits((float)x[i]) : 0x7fc00000u;
        for (int k = 0; k < 4; k++, bits >>= 8) hash = (hash ^ (bits & 255)) * 0x100000001b3ull;
    }
    return hash;
}

static const uint8_t *golden(const pvti_safetensors *st, const char *name, const char *what, int64_t bytes)
{
    char key[64];
    snprintf(key, sizeof key, "%s.%s", name, what);
    const pvti_tensor *t = pvti_safetensors_find(st, key);
    CHECK(t && t->bytes == bytes);
    return t && t->bytes == bytes ? t->data : NULL;
}

/* The first blocks number by number, so that an error has a place; all by their hash. Blocks lie at an odd address, in
   memory of exactly their size. */
static void check_type(pvt_ctx *ctx, const pvti_safetensors *st, const block_type *type)
{
    const pvti_dtype *info = pvti_dtype_info(type->dtype);
    int64_t bytes = BLOCKS * info->bytes, n = BLOCKS * info->block, i;
    uint8_t *b = (uint8_t *)malloc((size_t)bytes + 1);
    pvt_real *out = (pvt_real *)malloc((size_t)n * sizeof *out);
    for (int tame = 0; tame < 2; tame++) {
        const uint8_t *hash = golden(st, info->name, tame ? "hash" : "any", 8);
        random_blocks(type, type->id, BLOCKS, tame, b + 1);
        pvti_decoder(ctx, type->dtype)(b + 1, out, BLOCKS);
        if (hash && hash_of(out, n) != pvti_load_u64(hash))
            printf("%s, %s, %s: ", info->name, pvt_ctx_get_info(ctx).isa, tame ? "tame" : "any");
        CHECK(hash && hash_of(out, n) == pvti_load_u64(hash));
    }
    if (type->id > 14) {
        const uint8_t *blocks = golden(st, info->name, "blocks", 256 / info->block * info->bytes);
        const uint8_t *values = golden(st, info->name, "values", 256 * 4);
        if (blocks && values) {
            CHECK(memcmp(blocks, b + 1, (size_t)(256 / info->block * info->bytes)) == 0);
            pvti_decoder(ctx, type->dtype)(blocks, out, 256 / info->block);
            for (i = 0; i < 256 && pvti_bits((float)out[i]) == pvti_load_u32(values + 4 * i); i++) continue;
            if (i < 256)
                printf("%s: element %lld is %.9g, llama.cpp has %.9g\n", info->name, (long long)i, (double)out[i],
                       (double)pvti_load_f32(values + 4 * i));
            CHECK(i == 256);
        }
    }
    free(b), free(out);
}

static void test_golden(void)
{
    static const char *const sets[] = {"scalar", "avx2", "avx512"}; /* a set that is not there is the next lower one */
    pvti_safetensors st;
    pvt_ctx_desc desc;
    pvt_ctx *ctx = NULL;
    memset(&desc, 0, sizeof desc);
    for (int k = 0; k < PVTI_COUNT(sets); k++) {
        desc.isa = sets[k];
        CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
        CHECK_OK(ctx, pvti_safetensors_open(ctx, "tests/golden/blocks.safetensors", &st));
        for (int i = 0; i < PVTI_COUNT(types); i++) check_type(ctx, &st, &types[i]);
        pvti_safetensors_close(&st);
        pvt_ctx_destroy(ctx);
    }
    for (int t = PVT_Q4_0; t < PVT_DTYPE_COUNT; t++) { /* none is left out above */
        int found = 0;
        for (int i = 0; i < PVTI_COUNT(types); i++)
            found += (int)types[i].dtype == t && pvti_gguf_dtype(types[i].id) == types[i].dtype;
        CHECK(found == 1 && (int)pvti_dtype_parse(pvt_dtype_name((pvt_dtype)t)) == t);
    }
    CHECK(pvti_gguf_dtype(41) == PVT_DTYPE_NONE && pvti_gguf_dtype(43) == PVT_DTYPE_NONE);
}

/* Blocks whose bytes are all the same: the highest number of a point, and the lowest. */
static void test_extremes(pvt_ctx *ctx)
{
    static const uint8_t spread[4] = {0, 0, 0xc0, 0x30}; /* 1 */
    for (int i = 0; i < PVTI_COUNT(types); i++) {
        const pvti_dtype *info = pvti_dtype_info(types[i].dtype);
        int64_t bytes = info->bytes, wrong = 0;
        for (int value = 0; value < 256; value++) {
            uint8_t *b = (uint8_t *)malloc((size_t)bytes); /* of its own size: sanitizers see a byte too many */
            pvt_real *out = (pvt_real *)malloc((size_t)info->block * sizeof *out);
            memset(b, value, (size_t)bytes);
            if (types[i].scale >= 0) b[types[i].scale] = 0, b[types[i].scale + 1] = 0x3c; /* 1 */
            if (types[i].min >= 0) b[types[i].min] = 0, b[types[i].min + 1] = 0x3c;
            for (int k = 0; k < 4 && types[i].scale < 0; k++) b[49 + 2 * k] = (uint8_t)((value & 15) | spread[k]);
            pvti_decoder(ctx, types[i].dtype)(b, out, 1);
            for (int64_t k = 0; k < info->block; k++) wrong += !(fabs((double)out[k]) <= 128 * 63 * 8);
            free(b), free(out);
        }
        CHECK(wrong == 0);
    }
}

/* ---- models ---- */

enum { DIM = 256, FF = 512, V = 64, T = 12 };

static pvt_model *model_of_256(pvt_ctx *ctx)
{
    pvt_model_config c;
    pvt_model *model = NULL;
    memset(&c, 0, sizeof c);
    snprintf(c.family, sizeof c.family, "llama");
    c.layers = 1, c.dim = DIM, c.heads = 4, c.kv_heads = 2, c.ff = FF, c.vocab = V, c.ctx = T, c.tied = true;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    return model;
}

/* As gguf_write.h writes it, with matrices as blocks of a type; `cut` of the first dimension of the embedding are left
   out. */
static bool write_blocks(const pvt_model *model, const char *path, const block_type *type, int64_t cut)
{
    const pvt_model_config *c = &model->config;
    const pvti_dtype *info = pvti_dtype_info(type->dtype);
    int64_t at = 0;
    char name[96];
    gguf = fopen(path, "wb");
    if (!gguf) return false;
    gguf_put("GGUF", 4), gguf_u32(3), gguf_u64((uint64_t)pvt_model_tensors(model)), gguf_u64(9);
    gguf_string("general.architecture"), gguf_u32(8), gguf_string("llama");
    gguf_int("llama", "block_count", c->layers), gguf_int("llama", "embedding_length", c->dim);
    gguf_int("llama", "feed_forward_length", c->ff), gguf_int("llama", "attention.head_count", c->heads);
    gguf_int("llama", "attention.head_count_kv", c->kv_heads), gguf_int("llama", "context_length", c->ctx);
    gguf_float("llama", "rope.freq_base", c->rope_theta);
    gguf_float("llama", "attention.layer_norm_rms_epsilon", c->norm_eps);
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        int64_t columns = t.weight ? t.weight->I - (i == 0 ? cut : 0) : t.n, rows = t.weight ? t.weight->O : 1;
        gguf_name(t.name, name);
        gguf_string(name), gguf_u32(t.weight ? 2 : 1), gguf_u64((uint64_t)columns);
        if (t.weight) gguf_u64((uint64_t)rows);
        gguf_u32(t.weight ? type->id : 0), gguf_u64((uint64_t)at);
        at += (t.weight ? rows * columns / info->block * info->bytes : 4 * columns) + 31, at -= at % 32;
    }
    while (ftell(gguf) % 32) gguf_put("", 1);
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        int64_t bytes = t.weight ? t.n / info->block * info->bytes : 4 * t.n;
        uint8_t *data = (uint8_t *)malloc((size_t)bytes);
        if (t.weight) random_blocks(type, (uint32_t)i, t.n / info->block, true, data);
        for (int64_t k = 0; !t.weight && k < t.n; k++) memcpy(data + 4 * k, "\0\0\x80\x3f", 4); /* 1 */
        gguf_put(data, (size_t)bytes);
        for (; bytes % 32; bytes++) gguf_put("", 1);
        free(data);
    }
    return fclose(gguf) == 0;
}

/* A tensor's weights are its blocks decoded; rows of q and k are put in our order. */
static void check_tensor(pvt_ctx *ctx, const pvt_tensor_info *t, int64_t i, const block_type *type)
{
    const pvti_dtype *info = pvti_dtype_info(type->dtype);
    int64_t I = t->weight->I, HS = DIM / 4, wrong = 0;
    bool rotary = strstr(t->name, "q_proj") || strstr(t->name, "k_proj");
    uint8_t *b = (uint8_t *)malloc((size_t)(t->n / info->block * info->bytes));
    pvt_real *wanted = (pvt_real *)malloc((size_t)(2 * t->n) * sizeof *wanted), *got = wanted + t->n;
    random_blocks(type, (uint32_t)i, t->n / info->block, true, b);
    pvti_decoder(ctx, type->dtype)(b, wanted, t->n / info->block);
    pvt_weight_dequantize(t->weight, got);
    for (int64_t r = 0; r < t->weight->O; r++) {
        int64_t half = HS / 2, h = r % HS, from = rotary ? r - h + 2 * (h % half) + h / half : r;
        wrong += memcmp(got + r * I, wanted + from * I, (size_t)I * sizeof *got) != 0;
    }
    CHECK(wrong == 0);
    free(b), free(wanted);
}

static void check_loaded(pvt_ctx *ctx, const pvt_model *model, const block_type *type)
{
    static pvt_real logits[T * V];
    int32_t ids[T];
    pvt_run_desc desc;
    pvt_run *run = NULL;
    int64_t i;
    for (i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        const pvti_dtype *info = pvti_dtype_info(type->dtype);
        if (!t.weight) continue;
        CHECK(t.dtype == type->dtype && t.bytes == t.n / info->block * info->bytes);
        CHECK(strcmp(pvt_dtype_name(t.dtype), info->name) == 0);
        check_tensor(ctx, &t, i, type);
    }
    memset(&desc, 0, sizeof desc);
    desc.max_ctx = T;
    for (i = 0; i < T; i++) ids[i] = (int32_t)(i * 7 % V);
    CHECK_OK(ctx, pvt_run_create(model, &desc, &run));
    CHECK_OK(ctx, pvt_run_forward(run, ids, 1, T, logits));
    for (i = 0; i < T * V && fabs((double)logits[i]) < 1e6; i++) continue;
    CHECK(i == T * V && logits[0] != logits[1]);
    pvt_run_free(run);
}

static void test_models(pvt_ctx *ctx)
{
    pvt_model *model = model_of_256(ctx);
    for (int k = 0; model && k < PVTI_COUNT(types); k++) {
        pvt_model *loaded = NULL;
        char sentence[96];
        int64_t block = pvti_dtype_info(types[k].dtype)->block;
        CHECK(write_blocks(model, in("blocks.gguf"), &types[k], 0));
        CHECK_OK(ctx, pvt_model_load(ctx, in("blocks.gguf"), NULL, &loaded));
        if (loaded) check_loaded(ctx, loaded, &types[k]);
        pvt_model_free(loaded), loaded = NULL;
        CHECK(write_blocks(model, in("cut.gguf"), &types[k], 16));
        CHECK(pvt_model_load(ctx, in("cut.gguf"), NULL, &loaded) == PVT_ERR_FORMAT && !loaded);
        snprintf(sentence, sizeof sentence, "no multiple of the %lld elements of a %s block", (long long)block,
                 pvt_dtype_name(types[k].dtype));
        CHECK(strstr(pvt_ctx_error(ctx), sentence) != NULL);
    }
    pvt_model_free(model);
}

int main(void)
{
    pvt_ctx *ctx = NULL;
    CHECK(pvt_ctx_create(NULL, &ctx) == PVT_OK && test_scratch(dir, sizeof dir));
    test_golden();
    test_extremes(ctx);
    test_models(ctx);
    pvt_ctx_destroy(ctx);
    test_remove(dir);
    return test_end();
}
