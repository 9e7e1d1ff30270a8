/*  A model as a GGUF in F32, the way llama.cpp's converter writes it: its own names, columns first, and for
    the architecture "llama" the rows of q and k with rotary pairs as neighbours. After test.h. */
#ifndef PVTUNE_GGUF_WRITE_H
#define PVTUNE_GGUF_WRITE_H

static FILE *gguf;
static void gguf_put(const void *data, size_t bytes) { CHECK(fwrite(data, 1, bytes, gguf) == bytes); }
static void gguf_u32(uint32_t v) { gguf_put(&v, 4); }
static void gguf_u64(uint64_t v) { gguf_put(&v, 8); }
static void gguf_string(const char *s) { gguf_u64(strlen(s)), gguf_put(s, strlen(s)); }
static void gguf_key(const char *arch, const char *name, uint32_t type)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", arch, name);
    gguf_string(key), gguf_u32(type);
}
static void gguf_int(const char *arch, const char *name, int64_t value)
{
    gguf_key(arch, name, 4), gguf_u32((uint32_t)value);
}
static void gguf_float(const char *arch, const char *name, double value)
{
    float v = (float)value;
    gguf_key(arch, name, 6), gguf_put(&v, 4);
}
static void gguf_info(const char *name, int64_t rows, int64_t columns, int64_t *at)
{
    gguf_string(name), gguf_u32(rows ? 2 : 1), gguf_u64((uint64_t)columns);
    if (rows) gguf_u64((uint64_t)rows);
    gguf_u32(0), gguf_u64((uint64_t)*at);
    *at += (PVTI_MAX(rows, 1) * columns * 4 + 31) / 32 * 32;
}

/* llama.cpp's name of what Hugging Face calls so, from a list of its own. */
static void gguf_name(const char *hf, char out[96])
{
    static const char *const names[][2] = {
        {"self_attn.q_proj", "attn_q"}, {"self_attn.k_proj", "attn_k"}, {"self_attn.v_proj", "attn_v"},
        {"self_attn.q_norm", "attn_q_norm"}, {"self_attn.k_norm", "attn_k_norm"},
        {"self_attn.o_proj", "attn_output"}, {"mlp.gate_proj", "ffn_gate"}, {"mlp.up_proj", "ffn_up"},
        {"mlp.down_proj", "ffn_down"}, {"input_layernorm", "attn_norm"},
        {"post_attention_layernorm", "ffn_norm"}, {"model.embed_tokens", "token_embd"},
        {"model.norm", "output_norm"}, {"lm_head", "output"}};
    const char *end = strrchr(hf, '.'), *start = hf;
    int layer = -1, used = 0;
    out[0] = 0;
    if (sscanf(hf, "model.layers.%d.%n", &layer, &used) == 1) start += used;
    int length = (int)(end - start);
    for (int i = 0; i < PVTI_COUNT(names); i++)
        if ((int)strlen(names[i][0]) == length && strncmp(start, names[i][0], (size_t)length) == 0) {
            if (layer < 0) snprintf(out, 96, "%s%s", names[i][1], end);
            else snprintf(out, 96, "blk.%d.%s%s", layer, names[i][1], end);
        }
    CHECK(out[0] != 0);
}

static void gguf_data(const pvt_model *model, const char *arch, const pvt_tensor_info *t)
{
    int64_t O = t->weight ? t->weight->O : 1, I = t->weight ? t->weight->I : t->n;
    int64_t HS = model->config.head_dim;
    bool rotary = strcmp(arch, "llama") == 0 && (strstr(t->name, "q_proj") || strstr(t->name, "k_proj"));
    pvt_real *W = t->values;
    if (t->weight) W = (pvt_real *)malloc((size_t)(O * I) * sizeof *W), pvt_weight_dequantize(t->weight, W);
    for (int64_t r = 0; r < O; r++) {
        int64_t in_head = r % HS, from = rotary ? r - in_head + in_head / 2 + in_head % 2 * (HS / 2) : r;
        for (int64_t i = 0; i < I; i++) {
            float v = (float)W[from * I + i];
            gguf_put(&v, 4);
        }
    }
    for (int64_t i = O * I * 4; i % 32; i++) gguf_put("", 1);
    if (t->weight) free(W);
}

/* factors: of rope_freqs.weight, or NULL. */
static PVTI_UNUSED bool write_gguf(const pvt_model *model, const char *path, const float *factors)
{
    const pvt_model_config *c = &model->config;
    const char *arch = strcmp(c->family, "mistral") == 0 ? "llama" : c->family;
    int64_t n = pvt_model_tensors(model), at = 0;
    char name[96];
    gguf = fopen(path, "wb");
    if (!gguf) return false;
    gguf_put("GGUF", 4), gguf_u32(3), gguf_u64((uint64_t)(n + (factors != NULL))), gguf_u64(9);
    gguf_string("general.architecture"), gguf_u32(8), gguf_string(arch);
    gguf_int(arch, "block_count", c->layers), gguf_int(arch, "embedding_length", c->dim);
    gguf_int(arch, "feed_forward_length", c->ff), gguf_int(arch, "attention.head_count", c->heads);
    gguf_int(arch, "attention.head_count_kv", c->kv_heads), gguf_int(arch, "context_length", c->ctx);
    gguf_float(arch, "rope.freq_base", c->rope_theta);
    gguf_float(arch, "attention.layer_norm_rms_epsilon", c->norm_eps);
    for (int64_t i = 0; i < n; i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        gguf_name(t.name, name);
        gguf_info(name, t.weight ? t.weight->O : 0, t.weight ? t.weight->I : t.n, &at);
    }
    if (factors) gguf_info("rope_freqs.weight", 0, c->head_dim / 2, &at);
    while (ftell(gguf) % 32) gguf_put("", 1);
    for (int64_t i = 0; i < n; i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        gguf_data(model, arch, &t);
    }
    for (int64_t l = 0; factors && l < c->head_dim / 2; l++) gguf_put(&factors[l], 4);
    return fclose(gguf) == 0;
}

#endif
