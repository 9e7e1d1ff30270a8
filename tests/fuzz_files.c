/*  Fuzzes the readers of JSON, safetensors, GGUF and llama2.c from memory.
      clang -g -fsanitize=fuzzer,address,undefined -DPVTUNE_LIBFUZZER tests/fuzz_files.c -lm -lpthread
    Without libFuzzer, main runs seeded mutations of small valid files: fuzz_files [cases [seed]]. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"

static void touch(const pvt_ctx *ctx, const uint8_t *data, size_t size, const pvti_tensor *tensors, int64_t n)
{
    static pvt_real block[256];
    for (int64_t i = 0; i < n; i++) {
        const pvti_tensor *t = &tensors[i];
        if (t->data < data || t->data > data + size || t->bytes > (int64_t)(data + size - t->data)) abort();
        if (t->bytes) pvti_decoder(ctx, t->dtype)(t->data, block, 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static pvt_ctx *ctx;
    pvti_json json;
    pvti_safetensors st;
    pvti_gguf gguf;
    pvti_llama2c llama;
    pvti_gguf_array array;
    int64_t bytes;
    const char *s;
    char text[64];
    double number;
    if (!ctx && pvt_ctx_create(NULL, &ctx) != PVT_OK) return 0;
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    pvti_json_parse(ctx, "fuzz", (const char *)data, (int64_t)size, &json);
    for (int64_t i = 0; i < json.n; i++)
        pvti_json_key(&json, i, text, 64), pvti_json_string(&json, i, text, 64),
            pvti_json_number(&json, i, &number), pvti_json_int(&json, i, &bytes);
    pvti_json_free(&json);
    if (pvti_safetensors_read(ctx, "fuzz", data, (int64_t)size, &st) == PVT_OK)
        touch(ctx, data, size, st.tensors, st.n);
    pvti_safetensors_close(&st);
    if (pvti_gguf_read(ctx, "fuzz", data, (int64_t)size, &gguf) == PVT_OK)
        touch(ctx, data, size, gguf.tensors, gguf.n);
    if (pvti_gguf_get_array(&gguf, "tokens", &array))
        while (pvti_gguf_array_string(&array, &s, &bytes)) memcpy(text, s, (size_t)PVTI_MIN(bytes, 64));
    if (pvti_gguf_get_array(&gguf, "ids", &array)) pvti_gguf_array_number(&array, array.n - 1, &number);
    pvti_gguf_close(&gguf);
    if (pvti_llama2c_read(ctx, "fuzz", data, (int64_t)size, &llama) == PVT_OK)
        touch(ctx, data, size, &llama.wcls, 1);
    pvti_llama2c_close(&llama);
    if (pvt_ctx_get_info(ctx).bytes_now != before) abort();
    return 0;
}

#ifndef PVTUNE_LIBFUZZER
#include "files_seeds.h"

static uint64_t draw(uint64_t number, uint64_t *at, uint64_t below)
{
    return pvti_random(number, PVTI_RANDOM_USER, 0, (*at)++) % below;
}

/* One change: bits, bytes and words that are often wrong, cuts, and pieces moved about. */
static void mutate(seed *b, uint64_t number, uint64_t *at)
{
    static const uint64_t words[] = {0,
                                     1,
                                     2,
                                     0x7f,
                                     0x80,
                                     0xff,
                                     0xffff,
                                     0x7fffffff,
                                     0x80000000u,
                                     0xffffffffu,
                                     0x100000000u,
                                     0x7fffffffffffffffu,
                                     0x8000000000000000u,
                                     0xffffffffffffffffu};
    if (b->size < 16 || b->size > 16000) return;
    int64_t where = (int64_t)draw(number, at, (uint64_t)b->size - 8);
    int64_t n = 1 + (int64_t)draw(number, at, 8);
    uint64_t word = words[draw(number, at, sizeof words / sizeof *words)];
    switch (draw(number, at, 6)) {
    case 0: b->data[where] = (uint8_t)(b->data[where] ^ 1u << draw(number, at, 8)); break;
    case 1: b->data[where] = (uint8_t)"0{}[]\",:\\ue-9 \xff"[draw(number, at, 16)]; break;
    case 2: memcpy(b->data + where, &word, draw(number, at, 2) ? 4 : 8); break;
    case 3: b->size = where; break;
    case 4: memmove(b->data + where, b->data + where + n, (size_t)(b->size - where - n)), b->size -= n; break;
    default: memmove(b->data + where + n, b->data + where, (size_t)(b->size - where)), b->size += n; break;
    }
}

int main(int argc, char **argv)
{
    long cases = argc > 1 ? atol(argv[1]) : 4000;
    uint64_t number = argc > 2 ? strtoull(argv[2], NULL, 10) : 1, at = 0;
    for (long i = 0; i < cases; i++) {
        static seed b;
        uint8_t *exact; /* of the size that it claims: sanitizers see one byte too many */
        int64_t n = (int64_t)draw(number, &at, 4);
        if (i % 5 == 0) seed_json(&b);
        else if (i % 5 == 1) seed_safetensors(&b);
        else if (i % 5 == 4) seed_llama2c(&b, n & 1);
        else seed_gguf(&b);
        for (; n >= 0; n--) mutate(&b, number, &at);
        exact = (uint8_t *)malloc((size_t)b.size + 1);
        if (!exact) return 1;
        memcpy(exact + 1, b.data, (size_t)b.size); /* and at an odd address */
        LLVMFuzzerTestOneInput(exact + 1, (size_t)b.size);
        free(exact);
    }
    printf("%ld passed, 0 failed, 0 skipped\n", cases);
    return 0;
}
#endif
