/*  Small valid files made in memory, for the reader tests to damage and the fuzzer to mutate. */
#ifndef PVTUNE_FILES_SEEDS_H
#define PVTUNE_FILES_SEEDS_H

typedef struct seed {
    uint8_t data[16384];
    int64_t size;
} seed;

static void put(seed *b, const void *data, int64_t n)
{
    memcpy(b->data + b->size, data, (size_t)n);
    b->size += n;
}
static void put_little(seed *b, uint64_t value, int bytes)
{
    for (; bytes > 0; bytes--, value >>= 8) {
        uint8_t byte = (uint8_t)value;
        put(b, &byte, 1);
    }
}
static void put_u32(seed *b, uint32_t value) { put_little(b, value, 4); }
static void put_u64(seed *b, uint64_t value) { put_little(b, value, 8); }
static void put_float(seed *b, double value, int bytes) /* a float or a double */
{
    float f = (float)value;
    uint32_t four;
    uint64_t eight;
    memcpy(&four, &f, 4), memcpy(&eight, &value, 8);
    put_little(b, bytes == 4 ? four : eight, bytes);
}
static void put_text(seed *b, const char *text) { put(b, text, (int64_t)strlen(text)); }
static void put_string(seed *b, const char *text) /* as GGUF writes it */
{
    put_u64(b, strlen(text));
    put_text(b, text);
}
static void put_fill(seed *b, int64_t n) /* n bytes of something */
{
    for (; n > 0; n--) b->data[b->size++] = (uint8_t)(n * 37 + 11);
}

/* A header and n bytes of data. */
static void seed_safetensors_of(seed *b, const char *header, int64_t n)
{
    b->size = 0;
    put_u64(b, strlen(header));
    put_text(b, header);
    put_fill(b, n);
}
static PVTI_UNUSED void seed_safetensors(seed *b)
{
    seed_safetensors_of(b,
                        "{\"__metadata__\":{\"format\":\"pt\"},"
                        "\"a.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                        "\"b\":{\"dtype\":\"F16\",\"shape\":[5],\"data_offsets\":[24,34]},"
                        "\"empty\":{\"dtype\":\"BF16\",\"shape\":[0,7],\"data_offsets\":[34,34]},"
                        "\"scalar\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[34,42]}}  ",
                        42);
}

static PVTI_UNUSED void seed_json(seed *b)
{
    b->size = 0;
    put_text(b, "{\"a\": [1, -2.5e-3, true, null, {}], \"b\\u00e9\\n\": \"x\\ud83d\\ude00\\\"\", "
                "\"nest\": [[[[]]]], \"\xc3\xa9\": 0.1, \"n\": 9223372036854775807}");
}

static void put_key(seed *b, const char *key, uint32_t type)
{
    put_string(b, key);
    put_u32(b, type);
}
static void put_info(seed *b, const char *name, uint64_t columns, uint64_t rows, uint32_t type,
                     uint64_t offset)
{
    put_string(b, name);
    put_u32(b, 2);
    put_u64(b, columns);
    put_u64(b, rows);
    put_u32(b, type);
    put_u64(b, offset);
}
static void seed_gguf_head(seed *b, uint64_t tensors, uint64_t keys)
{
    b->size = 0;
    put_text(b, "GGUF");
    put_u32(b, 3);
    put_u64(b, tensors);
    put_u64(b, keys);
}
static void seed_gguf_align(seed *b)
{
    while (b->size % 32 != 0) b->data[b->size++] = 0;
}
static PVTI_UNUSED void seed_gguf(seed *b)
{
    seed_gguf_head(b, 3, 9);
    put_key(b, "general.architecture", 8), put_string(b, "llama");
    put_key(b, "general.alignment", 4), put_u32(b, 32);
    put_key(b, "yes", 7), put(b, "\1", 1);
    put_key(b, "small", 1), put(b, "\xfe", 1);
    put_key(b, "eps", 6), put_float(b, 1e-5, 4);
    put_key(b, "quarter", 12), put_float(b, 0.25, 8);
    put_key(b, "tokens", 9), put_u32(b, 8), put_u64(b, 3), put_string(b, "<s>"), put_string(b, ""),
        put_string(b, "xyz");
    put_key(b, "ids", 9), put_u32(b, 5), put_u64(b, 2), put_u32(b, 7), put_u32(b, 0xffffffffu);
    put_key(b, "nested", 9), put_u32(b, 9), put_u64(b, 2);
    put_u32(b, 0), put_u64(b, 3), put(b, "abc", 3);
    put_u32(b, 8), put_u64(b, 1), put_string(b, "q");
    put_info(b, "w", 32, 2, 2, 0);        /* Q4_0: 36 bytes */
    put_info(b, "k", 256, 1, 14, 64);     /* Q6_K: 210 bytes */
    put_info(b, "norm", 3, 1, 0, 64 + 224); /* F32: 12 bytes */
    seed_gguf_align(b);
    put_fill(b, 64 + 224 + 12);
}

/* dim 4, hidden 6, 2 layers, 2 heads, 1 kv head, 5 tokens, 3 positions */
static PVTI_UNUSED void seed_llama2c(seed *b, bool shared)
{
    int64_t floats = 5 * 4 + 2 * 4 + 2 * 16 + 2 * 8 + 2 * 8 + 2 * 16 + 2 * 4 + 3 * 2 * 24 + 4 + 3 * 2 +
                     (shared ? 0 : 20);
    int32_t header[7] = {4, 6, 2, 2, 1, 5, 3};
    if (!shared) header[5] = -5;
    b->size = 0;
    for (int i = 0; i < 7; i++) put_u32(b, (uint32_t)header[i]);
    put_fill(b, 4 * floats);
}

#endif
