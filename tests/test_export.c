/*  What other software finds in a saved directory: names in the config, types of dense tensors, bits, the model
    card, an embedding of codes. tests/interop.sh holds the same against transformers itself. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"

#include <sys/stat.h>
#include <unistd.h>

#include "test.h"

static char scratch_dir[256];

static const char *dir_path(const char *dir)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", scratch_dir, dir);
    return path;
}
static const char *file_in(const char *dir, const char *name)
{
    static char path[600];
    snprintf(path, sizeof path, "%s/%s/%s", scratch_dir, dir, name);
    return path;
}

/* A file of the directory as text, "" when there is none. */
static const char *text_of(const char *dir, const char *name)
{
    static char text[1 << 16];
    FILE *f = fopen(file_in(dir, name), "rb");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f) fclose(f);
    text[n] = 0;
    return text;
}

static pvt_model *tiny(pvt_ctx *ctx, bool tied)
{
    pvt_model_config c;
    pvt_model *model = NULL;
    memset(&c, 0, sizeof c);
    c.layers = 2, c.dim = 32, c.heads = 4, c.kv_heads = 2, c.ff = 40, c.vocab = 64, c.ctx = 32, c.tied = tied;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    for (int64_t i = 0; model && i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        for (int64_t k = 0; t.values && k < t.n; k++)
            t.values[k] = (pvt_real)(1 + pvti_random_unit(7, PVTI_RANDOM_USER, (uint64_t)i, (uint64_t)k));
    }
    return model;
}

/* Its linears as codes; with what is asked for besides, and without those whose name contains `skip`. */
static void quantize(pvt_ctx *ctx, pvt_model *model, const char *format, bool embedding, bool head, const char *skip)
{
    static int32_t ids[640];
    pvt_quantize_desc desc;
    pvt_corpus corpus;
    memset(&desc, 0, sizeof desc), memset(&corpus, 0, sizeof corpus);
    CHECK_OK(ctx, pvt_format_parse(ctx, format, &desc.format));
    desc.samples = 20, desc.ctx = 32, desc.fit.epochs = 1, desc.finetune_epochs = -1;
    desc.embedding = embedding, desc.head = head, desc.skip = skip;
    for (int i = 0; i < 640; i++) ids[i] = i * i % 64;
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, 640, &corpus));
    CHECK_OK(ctx, pvt_quantize(model, &corpus, &desc));
    pvt_corpus_free(&corpus);
}

/* ---- names ---- */

static bool listed(const pvti_json *j, int64_t list, const char *name)
{
    for (int64_t node = pvti_json_first(j, list); node >= 0; node = pvti_json_next(j, node))
        if (pvti_json_equals(j, node, name)) return true;
    return false;
}

/* linear_weights_not_to_quantize: every dense tensor as weight and as module, tied heads included, and nothing
   that is quantized. */
static void check_names(pvt_ctx *ctx, bool tied, bool head, const char *skip)
{
    pvt_model *model = tiny(ctx, tied);
    pvti_map map;
    pvti_json j;
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    quantize(ctx, model, "aqlm:1x4g8", false, head, skip);
    CHECK_OK(ctx, pvt_model_save(model, dir_path("names"), &desc));
    CHECK_OK(ctx, pvti_json_open(ctx, file_in("names", "config.json"), &map, &j));
    int64_t list = pvti_json_find(&j, pvti_json_find(&j, 0, "quantization_config"),
                                  "linear_weights_not_to_quantize");
    CHECK(list >= 0 && pvti_json_equals(&j, pvti_json_find(&j, pvti_json_find(&j, 0, "quantization_config"),
                                                           "quant_method"), "aqlm"));
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        bool dense = t.dtype != PVT_DTYPE_NONE;
        CHECK(listed(&j, list, t.name) == dense);
        t.name[strlen(t.name) - strlen(".weight")] = 0;
        CHECK(listed(&j, list, t.name) == dense);
    }
    if (tied) CHECK(listed(&j, list, "lm_head") && listed(&j, list, "lm_head.weight"));
    pvti_json_free(&j);
    pvti_map_close(ctx, &map);
    pvt_model_free(model);
}

/* ---- an embedding of codes ---- */

/* transformers must refuse it: it loads directories without any quant_method not at all, and others at random. */
static void check_embedding(pvt_ctx *ctx, bool tied, bool head)
{
    pvt_model *model = tiny(ctx, tied), *loaded = NULL;
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    quantize(ctx, model, "aqlm:1x4g8", !tied, head, NULL); /* tied: the head is the embedding */
    CHECK_OK(ctx, pvt_model_save(model, dir_path("embedding"), &desc));
    CHECK(strstr(text_of("embedding", "config.json"), "\"quantization_config\""));
    CHECK(!strstr(text_of("embedding", "config.json"), "quant_method"));
    CHECK(strstr(text_of("embedding", "README.md"), "it refuses this directory"));
    CHECK(!strstr(text_of("embedding", "README.md"), "library_name"));
    CHECK_OK(ctx, pvt_model_load(ctx, dir_path("embedding"), NULL, &loaded));
    CHECK(loaded && pvt_model_tensor(loaded, 0).dtype == PVT_DTYPE_NONE);
    if (loaded) CHECK(memcmp(loaded->embed.array[0], model->embed.array[0], 64 * 4) == 0);
    pvt_model_free(loaded), loaded = NULL;
    desc.dense_embedding = true;
    CHECK_OK(ctx, pvt_model_save(model, dir_path("embedding"), &desc));
    CHECK(strstr(text_of("embedding", "config.json"), "\"quant_method\": \"aqlm\""));
    CHECK(strstr(text_of("embedding", "config.json"), "\"model.embed_tokens\""));
    CHECK(strstr(text_of("embedding", "README.md"), "library_name: transformers"));
    CHECK_OK(ctx, pvt_model_load(ctx, dir_path("embedding"), NULL, &loaded));
    CHECK(loaded && pvt_model_tensor(loaded, 0).dtype == PVT_F16 && pvt_model_tensor(loaded, 3).dtype == PVT_DTYPE_NONE);
    pvt_model_free(loaded), pvt_model_free(model);
}

/* ---- types ---- */

static void set_embedding(pvt_model *model, const float *values, int n)
{
    pvt_real *data = (pvt_real *)(uintptr_t)model->embed.array[0];
    for (int i = 0; i < n; i++) data[i] = (pvt_real)values[i];
}

static void check_dtype(pvt_ctx *ctx)
{
    /* bf16 keeps 8 bits: 1 + 2^-8 is a tie and goes to the even 1; 1 + 3·2^-8 is one and goes up to 1 + 2^-6 */
    static const float values[] = {1.00390625f, 1.01171875f, 1.00390637f, -70000, 3.38e38f, 0.1f};
    const float bf16[] = {1, 1.015625f, 1.0078125f, -70144, (float)ldexp(254, 120), 0.10009765625f};
    static const char *const names[] = {"float32", "float16", "bfloat16"};
    pvt_model *model = tiny(ctx, true), *loaded = NULL;
    pvt_save_desc desc;
    char expected[64];
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    set_embedding(model, values, 6);
    CHECK(pvt_model_save(model, dir_path("types"), &desc) == PVT_ERR_NUMERIC && strstr(pvt_ctx_error(ctx), "fp16"));
    for (int type = PVT_F32; type <= PVT_BF16; type++) {
        pvt_real got[32];
        if (type == PVT_F16) continue;
        desc.dtype = (pvt_dtype)type;
        CHECK_OK(ctx, pvt_model_save(model, dir_path("types"), &desc));
        CHECK_OK(ctx, pvt_model_load(ctx, dir_path("types"), NULL, &loaded));
        if (!loaded) continue;
        loaded->embed.kind->tile(&loaded->embed, got, 32, 0, 1, 0, 32);
        for (int i = 0; i < 6; i++) CHECK((float)got[i] == (type == PVT_F32 ? values[i] : bf16[i]));
        for (int i = 0; i < pvt_model_tensors(loaded); i++)
            CHECK(pvt_model_tensor(loaded, i).dtype == desc.dtype);
        snprintf(expected, sizeof expected, "\"torch_dtype\": \"%s\"", names[type - PVT_F32]);
        CHECK(strstr(text_of("types", "config.json"), expected));
        pvt_model_free(loaded), loaded = NULL;
    }
    set_embedding(model, &(const float){3.4e38f}, 1); /* rounds to infinity in bf16 */
    CHECK(pvt_model_save(model, dir_path("types"), &desc) == PVT_ERR_NUMERIC && strstr(pvt_ctx_error(ctx), "bf16"));
    desc.dtype = PVT_F32;
    CHECK_OK(ctx, pvt_model_save(model, dir_path("types"), &desc));
    set_embedding(model, &(const float){NAN}, 1);
    CHECK(pvt_model_save(model, dir_path("types"), &desc) == PVT_ERR_NUMERIC && strstr(pvt_ctx_error(ctx), "fp32"));
    desc.dtype = PVT_Q8_0;
    CHECK(pvt_model_save(model, dir_path("types"), &desc) == PVT_ERR_ARGUMENT);
    pvt_model_free(model);
}

/* ---- bits ---- */

/* What the file holds is what is said before and after it is written: per tensor, for all, and in bits. */
static void check_bits(pvt_ctx *ctx, const char *format, pvt_dtype dtype, bool embedding)
{
    pvt_model *model = tiny(ctx, false), *loaded = NULL;
    pvt_save_desc desc;
    pvt_bits found;
    int64_t bytes = 0;
    uint64_t header = 0;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true, desc.dtype = dtype;
    if (format) quantize(ctx, model, format, embedding, false, "up_proj");
    pvt_bits said = pvt_model_bits(model, &desc);
    CHECK_OK(ctx, pvt_model_save(model, dir_path("bits"), &desc));
    CHECK_OK(ctx, pvt_model_load(ctx, dir_path("bits"), NULL, &loaded));
    FILE *f = fopen(file_in("bits", "model.safetensors"), "rb");
    CHECK(f && fread(&header, 8, 1, f) == 1 && fseek(f, 0, SEEK_END) == 0);
    int64_t file = f ? (int64_t)ftell(f) : 0;
    if (f) fclose(f);
    if (loaded) {
        for (int64_t i = 0; i < pvt_model_tensors(loaded); i++) bytes += pvt_model_tensor(loaded, i).bytes;
        found = pvt_model_bits(loaded, NULL);
        CHECK(bytes == file - 8 - (int64_t)header && said.bytes == bytes && found.bytes == bytes);
        CHECK(said.params == found.params && said.all == found.all && said.linears == found.linears &&
              said.packed_all == found.packed_all && said.packed_linears == found.packed_linears);
        CHECK_NEAR(said.all * (double)said.params / 8, bytes, 1e-6);
        CHECK(pvt_model_file_bytes(loaded) == file && pvt_model_file_bytes(model) == 0);
        CHECK(said.packed_all <= said.all && (said.packed_linears < said.linears) == (format && strstr(format, "8g") == NULL));
    }
    pvt_model_free(model), pvt_model_free(loaded);
}

/* A tensor in 8.5 bits counts as what it is, and as what a file will make of it. */
static void check_bits_q8(pvt_ctx *ctx)
{
    pvt_model *model = tiny(ctx, false);
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    CHECK_OK(ctx, pvti_model_head_q8(model));
    pvt_tensor_info head = pvt_model_tensor(model, pvt_model_tensors(model) - 1);
    CHECK(head.dtype == PVT_Q8_0 && head.bytes == 64 * 34);
    pvt_bits is = pvt_model_bits(model, NULL), becomes = pvt_model_bits(model, &desc);
    CHECK(becomes.bytes == 2 * becomes.params && is.bytes == (is.params - 64 * 32) * (int64_t)sizeof(pvt_real) + 64 * 34);
    pvt_model_free(model);
    for (int i = 0; i < 2; i++) { /* no block's scale can say that */
        model = tiny(ctx, false);
        int64_t before = pvt_ctx_get_info(ctx).bytes_now;
        ((pvt_real *)model->head.array[0])[40] = i ? (pvt_real)NAN : (pvt_real)1e7;
        CHECK(pvti_model_head_q8(model) == PVT_ERR_NUMERIC && strstr(pvt_ctx_error(ctx), "a head in q8") != NULL);
        CHECK(pvt_ctx_get_info(ctx).bytes_now == before && model->head.dtype != PVT_Q8_0);
        pvt_model_free(model);
    }
}

/* A directory without a model may hold files of such names, which are somebody's: they stay. */
static void check_others_stay(pvt_ctx *ctx)
{
    static const char *const names[] = {"merges.txt", "vocab.json", "special_tokens_map.json", "notes.txt"};
    pvt_model *model = tiny(ctx, false);
    pvt_save_desc desc;
    char path[700], dir[600];
    snprintf(dir, sizeof dir, "%s", dir_path("others"));
    CHECK(mkdir(dir, 0777) == 0);
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        CHECK_OK(ctx, pvt_file_write(ctx, path, "mine", 4));
    }
    memset(&desc, 0, sizeof desc);
    snprintf(path, sizeof path, "%s/model.safetensors", dir); /* a part of a model is a model */
    CHECK(!pvt_model_exists(ctx, dir));
    CHECK_OK(ctx, pvt_file_write(ctx, path, "mine", 4));
    CHECK(pvt_model_exists(ctx, dir) && pvt_model_save(model, dir, &desc) == PVT_ERR_ARGUMENT);
    CHECK(strstr(pvt_ctx_error(ctx), "already (model.safetensors)") != NULL && access(path, F_OK) == 0);
    CHECK(remove(path) == 0);
    for (int round = 0; round < 2; round++) { /* over a model of ours they are taken for its own, and go */
        desc.overwrite = round > 0;
        CHECK_OK(ctx, pvt_model_save(model, dir, &desc));
        for (int i = 0; i < 4; i++) {
            snprintf(path, sizeof path, "%s/%s", dir, names[i]);
            CHECK((access(path, F_OK) == 0) == (round == 0 || i == 3));
        }
    }
    pvt_model_free(model);
}

/* ---- the model card ---- */

static void check_card(pvt_ctx *ctx)
{
    pvt_model *model = tiny(ctx, false);
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true, desc.base_model = "a|b\n`\"x", desc.card = "Made for a test.\n";
    quantize(ctx, model, "aqlm:1x4g8", false, false, NULL);
    CHECK_OK(ctx, pvt_model_save(model, dir_path("card"), &desc));
    const char *card = text_of("card", "README.md");
    CHECK(strncmp(card, "---\n# written by pvtune", 23) == 0);
    CHECK(strstr(card, "\nbase_model: \"a|b\\n`\\\"x\"\n") && strstr(card, "\nlibrary_name: transformers\n") &&
          strstr(card, "\n- aqlm\n---\n"));
    CHECK(strstr(card, "| made from | `a_b__\"x` |") && strstr(card, "`aqlm:1x4g8`") && strstr(card, "\nMade for a test.\n"));
    CHECK(strstr(card, "4.49") && strstr(card, "dtype=torch.float32") && strstr(card, "dropped AQLM"));
    CHECK(!strstr(card, scratch_dir));
    desc.card = "Made again.\n", desc.dense = true; /* ours is replaced */
    CHECK_OK(ctx, pvt_model_save(model, dir_path("card"), &desc));
    card = text_of("card", "README.md");
    CHECK(strstr(card, "Made again.") && !strstr(card, "Made for a test.") && !strstr(card, "aqlm"));
    desc.no_card = true; /* ... and does not stay behind for a model that it does not describe */
    CHECK_OK(ctx, pvt_model_save(model, dir_path("card"), &desc));
    CHECK(!pvti_path_exists(ctx, file_in("card", "README.md")));
    CHECK_OK(ctx, pvti_file_write(ctx, file_in("card", "README.md"), "# mine\n", 7));
    CHECK_OK(ctx, pvt_model_save(model, dir_path("card"), &desc));
    desc.no_card = false;
    CHECK_OK(ctx, pvt_model_save(model, dir_path("card"), &desc));
    CHECK(strcmp(text_of("card", "README.md"), "# mine\n") == 0); /* somebody else's stays */
    CHECK_OK(ctx, pvt_model_save(model, dir_path("plain"), NULL)); /* the library alone writes what it knows */
    CHECK(strstr(text_of("plain", "README.md"), "`aqlm:1x4g8`") && !strstr(text_of("plain", "README.md"), "base_model"));
    pvt_model_free(model);
}

int main(void)
{
    pvt_ctx *ctx;
    if (!test_scratch(scratch_dir, sizeof scratch_dir) || pvt_ctx_create(NULL, &ctx) != PVT_OK) return 1;
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    check_names(ctx, true, false, NULL);
    check_names(ctx, true, false, "down_proj,layers.1.self_attn.q");
    check_names(ctx, false, false, NULL);
    check_names(ctx, false, true, "k_proj");
    check_embedding(ctx, false, false);
    check_embedding(ctx, false, true);
    check_embedding(ctx, true, true);
    check_dtype(ctx);
    check_bits(ctx, NULL, PVT_DTYPE_NONE, false);
    check_bits(ctx, NULL, PVT_F32, false);
    check_bits(ctx, "aqlm:1x8g8", PVT_DTYPE_NONE, false);
    check_bits(ctx, "aqlm:2x4g4", PVT_BF16, false);
    check_bits(ctx, "aqlm:1x3g4o2", PVT_F16, true);
    check_bits(ctx, "aqlm:1x10g8", PVT_F32, true);
    check_bits_q8(ctx);
    check_others_stay(ctx);
    check_card(ctx);
    test_remove(scratch_dir);
    CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
    pvt_ctx_destroy(ctx);
    return test_end();
}
