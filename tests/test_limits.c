/*  Limits: sizes at the edge of their types, memory per byte of input, and what a file may print. Every
    size that a caller can pass is tried at its extremes; under -fsanitize=undefined nothing may overflow. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"

#include "files_seeds.h"
#include "test.h"
#include "gguf_write.h"

static char dir[256];

static const char *path_of(const char *name)
{
    static char path[400];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* The call was refused with that code, and the sentence says so. */
#define CHECK_REFUSED(ctx, wanted, words, call)                                                      \
    do {                                                                                             \
        pvt_result result_ = (call);                                                                 \
        CHECK(result_ == (wanted) && strstr(pvt_ctx_error(ctx), words));                             \
        if (result_ != (wanted) || !strstr(pvt_ctx_error(ctx), words))                               \
            printf("    %s: %s\n", pvt_result_text(result_), pvt_ctx_error(ctx));                   \
    } while (0)

static double peak_per_byte(pvt_ctx *ctx, int64_t before, int64_t bytes)
{
    return (double)(pvt_ctx_get_info(ctx).bytes_peak - before) / (double)bytes;
}

/* `unit` so many times between head and tail. */
static char *repeat(const char *head, const char *unit, int64_t times, const char *tail, int64_t *bytes)
{
    size_t h = strlen(head), u = strlen(unit), t = strlen(tail), at = h;
    char *text = (char *)malloc(h + u * (size_t)times + t + 1);
    memcpy(text, head, h);
    for (; times > 0; times--, at += u) memcpy(text + at, unit, u);
    memcpy(text + at, tail, t + 1);
    *bytes = (int64_t)(at + t);
    return text;
}

/* ---- memory per byte ---- */

static void test_json_memory(pvt_ctx *ctx)
{
    static const struct { const char *head, *unit, *tail; int64_t values; double most; } cases[] = {
        {"[0", ",1", "]", 1 + 100000, 8.1}, /* the densest there is: a value in two bytes */
        {"[0", ",[]", "]", 1 + 100000, 8.1},
        {"[0", ",{\"a\":[1,2]}", "]", 1 + 100000, 8.1},
        {"[\"", "a text without any value, ", "\"]", 1, 0.1},
        {"[\"", "[,[,\\\",{", "\"]", 1, 0.1}, /* what announces values outside of strings */
    };
    for (int i = 0; i < PVTI_COUNT(cases); i++) {
        int64_t before = pvt_ctx_get_info(ctx).bytes_now, bytes;
        char *text = repeat(cases[i].head, cases[i].unit, 100000, cases[i].tail, &bytes);
        pvti_json j;
        pvt_ctx_reset_peak(ctx);
        CHECK_OK(ctx, pvti_json_parse(ctx, "test", text, bytes, &j));
        CHECK(pvti_json_count(&j, 0) == cases[i].values);
        CHECK(peak_per_byte(ctx, before, bytes) < cases[i].most);
        pvti_json_free(&j);
        free(text);
    }
}

/* A byte-level vocabulary over "abcd" with random pieces and random merges, whose ranks are shared and do
   not grow with length: more than any real one asks of the order of merges. */
static pvt_tokenizer *random_tokenizer(pvt_ctx *ctx, uint64_t number, int pieces)
{
    pvt_tokenizer *t = pvti_vocab_create(ctx, "test", 4 + pieces);
    uint64_t at = 0;
    t->words = PVTI_WORDS_WHOLE;
    for (int id = 0; id < 4 + pieces; id++) {
        char text[64] = {(char)('a' + id)};
        if (id >= 4) {
            const pvti_piece *left = &t->pieces[pvti_random(number, 1, 0, at++) % (uint64_t)id];
            const pvti_piece *right = &t->pieces[pvti_random(number, 1, 0, at++) % (uint64_t)id];
            if (left->bytes + right->bytes > 20) left = &t->pieces[0], right = &t->pieces[1];
            snprintf(text, sizeof text, "%.*s%.*s", (int)left->bytes, t->pool + left->start, (int)right->bytes,
                     t->pool + right->start);
        }
        CHECK_OK(ctx, pvti_vocab_set(t, id, text, (int64_t)strlen(text), PVTI_PIECE_NORMAL, 0));
    }
    CHECK_OK(ctx, pvti_vocab_index(t, true));
    CHECK_OK(ctx, pvti_merges_reserve(t, (int64_t)(4 + pieces) * (4 + pieces)));
    for (int32_t left = 0; left < 4 + pieces; left++)
        for (int32_t right = 0; right < 4 + pieces; right++) {
            char both[64];
            const pvti_piece *l = &t->pieces[left], *r = &t->pieces[right];
            int n = snprintf(both, sizeof both, "%.*s%.*s", (int)l->bytes, t->pool + l->start,
                             (int)r->bytes, t->pool + r->start);
            int32_t id = pvti_vocab_find(t, both, n);
            int64_t rank = (int64_t)(pvti_random(number, 2, 0, at++) % 9);
            if (id >= 0) (void)pvti_merge_add(t, left, right, id, rank);
        }
    return t;
}

/* The definition: of all neighbours that merge, the leftmost of the lowest rank, until there are none. */
static int64_t merge_by_definition(const pvt_tokenizer *t, int32_t *ids, int64_t n)
{
    for (;;) {
        int64_t best = -1;
        uint32_t rank = UINT32_MAX;
        for (int64_t i = 0; i + 1 < n; i++) {
            const pvti_merge *m = pvti_merge_find(t, ids[i], ids[i + 1]);
            if (m && m->rank < rank) rank = m->rank, best = i;
        }
        if (best < 0) return n;
        ids[best] = (int32_t)(pvti_merge_find(t, ids[best], ids[best + 1])->id1 - 1);
        memmove(ids + best + 1, ids + best + 2, (size_t)(n - best - 2) * sizeof *ids);
        n--;
    }
}

static void test_merges(pvt_ctx *ctx)
{
    static char text[5000];
    static int32_t wanted[5000];
    int64_t merged = 0, levels = 0;
    for (uint64_t number = 0; number < 60; number++) {
        pvt_tokenizer *t = random_tokenizer(ctx, number, 10 + (int)number);
        int64_t n = number == 0 ? 5000 : 1 + (int64_t)(pvti_random(number, 3, 0, 0) % 700), count;
        int letters = 1 + (int)(number % 4);
        int32_t *ids;
        for (int64_t i = 0; i < n; i++) {
            wanted[i] = (int32_t)(pvti_random(number, 4, 0, (uint64_t)i) % (uint64_t)letters);
            text[i] = (char)('a' + wanted[i]);
        }
        int64_t left = merge_by_definition(t, wanted, n);
        CHECK_OK(ctx, pvt_tokenizer_encode(t, text, n, 0, &ids, &count));
        CHECK(count == left && memcmp(ids, wanted, (size_t)left * sizeof *ids) == 0);
        merged += n - left, levels += n > 256;
        pvt_ids_free(ctx, ids);
        pvt_tokenizer_free(t);
    }
    CHECK(merged > 5000 && levels > 10); /* many merges, also in words of three levels of ranks */
}

static void test_encode_memory(pvt_ctx *ctx)
{
    static const char *const units[] = {"a", "abcdabdcacdb", "ab"};
    pvt_tokenizer *t = random_tokenizer(ctx, 7, 40);
    for (int i = 0; i < PVTI_COUNT(units); i++) {
        int64_t bytes, count, before = pvt_ctx_get_info(ctx).bytes_now;
        char *text = repeat("", units[i], 2000000 / (int64_t)strlen(units[i]), "", &bytes);
        int32_t *ids = NULL;
        pvt_ctx_reset_peak(ctx);
        CHECK_OK(ctx, pvt_tokenizer_encode(t, text, bytes, 0, &ids, &count));
        CHECK(count > 0 && count < bytes); /* one word of two megabytes, merged */
        CHECK(peak_per_byte(ctx, before, bytes) < 16);
        pvt_ids_free(ctx, ids);
        free(text);
    }
    pvt_tokenizer_free(t);
}

/* Composition works part by part: the same as in one piece, and no array as long as the text. */
static void test_compose_memory(pvt_ctx *ctx)
{
    static const struct { const char *unit, *composed; } cases[] = {
        {"\xe4\xb8\xad\xe6\x96\x87", "\xe4\xb8\xad\xe6\x96\x87"}, /* two ideographs */
        {"e\xcc\x81", "\xc3\xa9"},
        {"\xd0\xb8\xcc\x86", "\xd0\xb9"},                                     /* Cyrillic и + breve */
        {"\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81"},             /* three jamo, one syllable */
        {"\xe0\xa6\x95\xe0\xa7\x87\xe0\xa6\xbe", "\xe0\xa6\x95\xe0\xa7\x8b"}, /* the second part has class 0 */
        {"\xff\xcc\x81", "\xff\xcc\x81"},                                     /* no UTF-8: composes with nothing */
        {"a\xcc\x81\xcc\xa3", "\xe1\xba\xa1\xcc\x81"},                        /* marks change places */
    };
    pvti_encoder e;
    pvt_tokenizer *t = random_tokenizer(ctx, 1, 4);
    t->nfc = PVTI_NEW(ctx, pvti_nfc, 1);
    pvti_nfc_expand(t->nfc);
    for (int i = 0; i < PVTI_COUNT(cases); i++) {
        int64_t bytes, n, want_bytes, before = pvt_ctx_get_info(ctx).bytes_now;
        char *text = repeat("", cases[i].unit, 60000, "", &bytes);
        char *wanted = repeat("", cases[i].composed, 60000, "", &want_bytes);
        memset(&e, 0, sizeof e);
        e.t = t, e.ctx = ctx;
        pvt_ctx_reset_peak(ctx);
        CHECK_OK(ctx, pvti_encode_compose(&e, 0, text, bytes, &n));
        CHECK(n == want_bytes && memcmp(e.text, wanted, (size_t)n) == 0);
        CHECK(peak_per_byte(ctx, before, bytes) < 3.5);
        pvti_free(ctx, e.text), pvti_free(ctx, e.chars), pvti_free(ctx, e.items);
        free(text), free(wanted);
    }
    pvt_tokenizer_free(t);
}

/* ---- sizes at the edge of their types ---- */

/* No more than a gigabyte at a time: what asks for more is refused, by the system or here. */
static void *limited_alloc(size_t bytes, void *user)
{
    (void)user;
    return bytes < (size_t)1 << 30 ? malloc(bytes) : NULL;
}

static void limited_free(void *memory, void *user)
{
    (void)user;
    free(memory);
}

static pvt_model *small_model(pvt_ctx *ctx)
{
    pvt_model_config c;
    pvt_model *model = NULL;
    pvt_tokenizer *bytes = NULL;
    memset(&c, 0, sizeof c);
    c.layers = 2, c.dim = 32, c.heads = 2, c.kv_heads = 1, c.ff = 48, c.vocab = 256, c.ctx = 64;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    CHECK_OK(ctx, pvt_tokenizer_create_bytes(ctx, &bytes));
    pvt_model_set_tokenizer(model, bytes);
    return model;
}

static void test_sizes(pvt_ctx *ctx)
{
    static const int64_t extremes[] = {INT64_MIN, -1, INT32_MAX, (int64_t)1 << 40, INT64_MAX / 2, INT64_MAX};
    pvt_model *model = small_model(ctx);
    int32_t ids[256] = {0}, id = 0;
    pvt_corpus corpus, other;
    pvt_run_desc run_desc;
    pvt_run *run = NULL;
    pvt_weight view, fitted;
    pvt_format format;
    pvt_real logits[2 * 256];
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, 256, &corpus));
    CHECK(pvt_corpus_from_ids(ctx, NULL, 3, &other) == PVT_ERR_ARGUMENT);
    memset(&run_desc, 0, sizeof run_desc);
    run_desc.max_batch = INT32_MAX, run_desc.max_ctx = 4096, run_desc.max_tokens = 1;
    CHECK_OK(ctx, pvt_run_create(model, &run_desc, &run));
    CHECK_OK(ctx, pvt_run_forward(run, &id, 1, 1, NULL));
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x2g4", &format));
    for (int i = 0; i < PVTI_COUNT(extremes); i++) {
        int64_t x = extremes[i];
        pvt_ppl_desc ppl_desc;
        pvt_ppl ppl;
        pvt_generate_desc generate;
        pvt_generated made;
        pvt_quantize_desc q;
        pvt_run_desc d = {0};
        pvt_run *none;
        memset(&ppl_desc, 0, sizeof ppl_desc), memset(&generate, 0, sizeof generate), memset(&q, 0, sizeof q);
        if (x < 0) CHECK(pvt_corpus_from_ids(ctx, ids, x, &other) == PVT_ERR_ARGUMENT && other.n == 0);
        CHECK(pvt_run_forward(run, ids, x, x, NULL) == PVT_ERR_ARGUMENT);
        CHECK(pvt_run_forward(run, ids, x, 3, NULL) == PVT_ERR_ARGUMENT);
        CHECK(pvt_run_forward(run, ids, 3, x, NULL) == PVT_ERR_ARGUMENT);
        CHECK(pvt_run_logits(run, x, x, logits) == PVT_ERR_ARGUMENT);
        CHECK(pvt_run_logits(run, 1, x, logits) == PVT_ERR_ARGUMENT);
        d.max_batch = x, d.max_ctx = x;
        CHECK(pvt_run_create(model, &d, &none) != PVT_OK && !none);
        CHECK(pvt_run_bytes(model, &d) == INT64_MAX);
        d.max_ctx = 8, d.max_tokens = x, d.max_batch = INT32_MAX, d.train = true;
        CHECK(pvt_run_create(model, &d, &none) != PVT_OK && !none);
        CHECK(pvt_weight_rows(&model->embed, x, x, &view) == PVT_ERR_ARGUMENT);
        CHECK(pvt_weight_rows(&model->embed, 1, x, &view) == PVT_ERR_ARGUMENT);
        CHECK(pvt_weight_rows(&model->embed, x, 1, &view) == PVT_ERR_ARGUMENT);
        CHECK(pvt_weight_dense(ctx, NULL, x, x, &view) != PVT_OK);
        CHECK(pvt_weight_borrow(ctx, ids, PVT_F32, x, x, &view) == (x == INT32_MAX ? PVT_OK : PVT_ERR_ARGUMENT));
        if (x != INT32_MAX) CHECK(pvt_weight_fit(ctx, logits, x, 4, NULL, &format, NULL, NULL, &fitted) != PVT_OK);
        ppl_desc.first = x, ppl_desc.last = x;
        CHECK(pvt_perplexity(model, &corpus, &ppl_desc, &ppl) == PVT_ERR_ARGUMENT);
        ppl_desc.first = 0;
        CHECK(pvt_perplexity(model, &corpus, &ppl_desc, &ppl) == PVT_ERR_ARGUMENT);
        ppl_desc.last = 0, ppl_desc.ctx = x;
        CHECK_REFUSED(ctx, PVT_ERR_ARGUMENT, "made for 2 to 64", pvt_perplexity(model, &corpus, &ppl_desc, &ppl));
        generate.n = x;
        CHECK(pvt_generate(model, ids, 1, &generate, &made) == PVT_ERR_ARGUMENT && !made.ids);
        CHECK(pvt_generate(model, ids, x, NULL, &made) == PVT_ERR_ARGUMENT && !made.ids);
        q.format = format, q.ctx = x;
        CHECK_REFUSED(ctx, PVT_ERR_ARGUMENT, "made for 2 to 64", pvt_quantize(model, &corpus, &q));
        q.ctx = 8, q.samples = x;
        CHECK(pvt_quantize(model, &corpus, &q) == PVT_ERR_ARGUMENT);
        CHECK(pvt_tokenizer_encode(model->tokenizer, "a", x < -1 ? x : INT64_MIN, 0, &made.ids, &made.n) ==
              PVT_ERR_ARGUMENT);
    }
    pvt_run_free(run);
    pvt_corpus_free(&corpus);
    pvt_model_free(model);
}

/* A run whose cache would be 2^63 numbers, had it one: each size is allowed, and it holds one token at a time. */
static void test_wide_run(pvt_ctx *ctx)
{
    pvt_model_config c;
    pvt_model *model = NULL;
    pvt_run_desc d;
    pvt_run *run = NULL;
    int32_t id = 0;
    memset(&c, 0, sizeof c), memset(&d, 0, sizeof d);
    c.layers = 1, c.dim = 1, c.heads = c.kv_heads = c.head_dim = 1024, c.ff = 1, c.vocab = 4, c.ctx = 4096;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    d.max_batch = INT32_MAX, d.max_ctx = 4097, d.max_tokens = 1;
    CHECK_OK(ctx, pvt_run_create(model, &d, &run));
    if (run) CHECK_OK(ctx, pvt_run_forward(run, &id, 1, 1, NULL));
    pvt_run_free(run);
    d.cache = true;
    CHECK(pvt_run_create(model, &d, &run) == PVT_ERR_MEMORY && !run);
    pvt_model_free(model);
}

/* Every size of a plan at every extreme: refused with a sentence, and never a number that wrapped. */
static void test_tune_sizes(pvt_ctx *ctx)
{
    static const int64_t extremes[] = {INT64_MIN, -1, 1, 7, 1 << 20, INT64_MAX / 2, INT64_MAX};
    enum { N = (int)PVTI_COUNT(extremes) };
    pvt_model *model = small_model(ctx), *teacher = small_model(ctx);
    int32_t ids[256] = {0};
    pvt_corpus corpus;
    pvt_tuner *tuner = NULL;
    pvt_tune_desc d;
    int possible = 0;
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, 256, &corpus));
    for (int i = 0; i < N * N * N * 3; i++) {
        memset(&d, 0, sizeof d);
        d.steps = extremes[i % N], d.batch = extremes[i / N % N], d.micro_batch = extremes[i / N / N % N];
        d.ctx = i / (N * N * N) == 0 ? 8 : i / (N * N * N) == 1 ? INT64_MAX : -1;
        if (i % 2) d.eval_windows = extremes[i / 2 % N], d.warmup = extremes[i / 3 % N], d.patience = extremes[i / 5 % N];
        CHECK(pvt_tuner_bytes(model, teacher, NULL, &d) > 0);
        int64_t bytes = pvt_tuner_bytes(model, teacher, &corpus, &d);
        CHECK(bytes > 0);
        possible += bytes != INT64_MAX;
        if (bytes == INT64_MAX) CHECK(pvt_tuner_create(model, teacher, &corpus, &d, &tuner) != PVT_OK && !tuner);
    }
    CHECK(possible > 5);
    memset(&d, 0, sizeof d);
    d.steps = INT64_MAX, d.batch = 1, d.ctx = 8;
    CHECK_REFUSED(ctx, PVT_ERR_ARGUMENT, "more than can be counted",
                  pvt_tuner_create(model, teacher, &corpus, &d, &tuner));
    d.steps = 3, d.ctx = 65;
    CHECK_REFUSED(ctx, PVT_ERR_ARGUMENT, "made for 2 to 64", pvt_tuner_create(model, teacher, &corpus, &d, &tuner));
    CHECK(pvt_tuner_bytes(model, teacher, &corpus, &d) == INT64_MAX);
    teacher->config.ctx = 16, d.ctx = 32;
    CHECK_REFUSED(ctx, PVT_ERR_ARGUMENT, "teacher", pvt_tuner_create(model, teacher, &corpus, &d, &tuner));
    pvt_corpus_free(&corpus);
    pvt_model_free(model), pvt_model_free(teacher);
}

/* ---- what a file may print ---- */

static void test_printable(pvt_ctx *ctx)
{
    static seed b;
    pvti_gguf g;
    char out[40];
    static const struct { const char *in, *out; } cases[] = {
        {"plain", "plain"},
        {"\x1b[2J\x07", "\\x1b[2J\\x07"},
        {"Gr\xc3\xbc\xc3\x9f e \xe4\xb8\xad \xf0\x9f\x98\x80", "Gr\xc3\xbc\xc3\x9f e \xe4\xb8\xad \xf0\x9f\x98\x80"},
        {"\x9b" "31m", "\\x9b31m"},         /* a control character in Latin-1 … */
        {"\xc2\x9b" "31m", "\\xc2\\x9b31m"}, /* … and in UTF-8 */
        {"a\nb\x7f", "a\\x0ab\\x7f"},
        {"cut \xe4\xb8", "cut \\xe4\\xb8"},
    };
    for (int i = 0; i < PVTI_COUNT(cases); i++) {
        pvti_printable(out, (int64_t)sizeof out, cases[i].in);
        CHECK(strcmp(out, cases[i].out) == 0);
    }
    pvti_printable(out, 8, "abc\x01\x02");
    CHECK(strcmp(out, "abc\\x01") == 0);
    seed_gguf_head(&b, 1, 0); /* a tensor's name as the whole sentence's subject */
    put_info(&b, "evil\x1b]0;title\x07", 4, 1, 99, 0);
    CHECK_REFUSED(ctx, PVT_ERR_UNSUPPORTED, "evil\\x1b]0;title\\x07", pvti_gguf_read(ctx, "x", b.data, b.size, &g));
    CHECK(!strchr(pvt_ctx_error(ctx), '\x1b') && !strchr(pvt_ctx_error(ctx), '\x07'));
}

/* ---- kinds of files ---- */

static bool write_file(const char *name, const void *data, int64_t bytes)
{
    FILE *f = fopen(path_of(name), "wb");
    bool good = f && fwrite(data, 1, (size_t)bytes, f) == (size_t)bytes;
    return f ? fclose(f) == 0 && good : false;
}

static void test_kinds(pvt_ctx *ctx)
{
    static const char passwd[] = "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n";
    static seed b;
    enum { LAYERS = 123 }; /* 123 is '{', where a safetensors file's header begins */
    int32_t header[7] = {4, 4, LAYERS, 2, 1, 8, 4};
    int64_t floats = 8 * 4 + LAYERS * (4 + 16 + 8 + 8 + 16 + 4 + 16 * 3) + 4 + 4 * 2;
    char *data = (char *)calloc(1, sizeof header + (size_t)floats * 4);
    pvt_model *model = NULL;
    memcpy(data, header, sizeof header);
    CHECK(write_file("deep.bin", data, (int64_t)sizeof header + floats * 4));
    CHECK_OK(ctx, pvt_model_load(ctx, path_of("deep.bin"), NULL, &model));
    CHECK(model && model->config.layers == LAYERS);
    pvt_model_free(model);
    CHECK(write_file("deep.bin", data, 1000));
    CHECK_REFUSED(ctx, PVT_ERR_FORMAT, "cut off", pvt_model_load(ctx, path_of("deep.bin"), NULL, &model));
    free(data);
    seed_safetensors(&b);
    CHECK(write_file("one.safetensors", b.data, b.size));
    CHECK_REFUSED(ctx, PVT_ERR_UNSUPPORTED, "is a safetensors file",
                  pvt_model_load(ctx, path_of("one.safetensors"), NULL, &model));
    CHECK(write_file("passwd", passwd, (int64_t)sizeof passwd));
    CHECK_REFUSED(ctx, PVT_ERR_FORMAT, "a .gguf, or a llama2.c .bin",
                  pvt_model_load(ctx, path_of("passwd"), NULL, &model));
    CHECK(write_file("empty", "", 0));
    CHECK_REFUSED(ctx, PVT_ERR_FORMAT, "a .gguf, or a llama2.c .bin", pvt_model_load(ctx, path_of("empty"), NULL, &model));
    CHECK(!model);
}

/* ---- texts ---- */

/* The file gives exactly the tokens (bytes) of `wanted`. */
static bool gives(pvt_ctx *ctx, const pvt_tokenizer *t, const char *text, const char *wanted)
{
    pvt_corpus corpus, memory;
    int64_t n = (int64_t)strlen(wanted);
    CHECK(write_file("text", text, (int64_t)strlen(text)));
    CHECK_OK(ctx, pvt_corpus_load(ctx, path_of("text"), t, &corpus));
    CHECK_OK(ctx, pvt_corpus_from_text(ctx, text, -1, t, &memory));
    bool good = corpus.n == n && memory.n == n;
    for (int64_t i = 0; i < n && good; i++)
        good = corpus.ids[i] == (uint8_t)wanted[i] && memory.ids[i] == corpus.ids[i];
    pvt_corpus_free(&corpus), pvt_corpus_free(&memory);
    return good;
}

static void test_corpus(pvt_ctx *ctx)
{
    static const struct { const char *text, *wanted; } good[] = {
        {"plain text\n{\"text\": \"a\"}\n", NULL}, /* NULL: verbatim */
        {"{\"text\": \"one\"}\n{\"text\": \"two\\n\", \"id\": 2}\n", "one\n\ntwo\n"},
        {"{\"id\": 1, \"content\": \"c\"}\r\n\r\n{\"content\": 3, \"text\": \"\\u00e9\"}", "c\n\n\xc3\xa9"},
        {"{\"text\": null, \"content\": \"c\"}", "c"},
        {"\"one\"\n\"two\"\n", "one\n\ntwo"},
        {"\"one\"\n{\"text\": \"two\"}\n{\"text\": \"\"}", "one\n\ntwo\n\n"},
        {"\xef\xbb\xbf{\"text\": \"bom\"}\n", "bom"},
        {"\"Quoted,\" she said.\nAnd so on.\n", NULL},
        {"\"Quoted.\"\nAnd so on.\n", NULL},
        {"{\n  \"text\": \"a pretty-printed object is a text\"\n}\n", NULL},
        {"[Music]\nLa la la\n", NULL},
        {"\n = Wiki heading = \n\n A paragraph . \n", NULL},
        {"caf\xe9 au lait, one stray byte of Latin-1\n", NULL},
        {"", NULL},
    };
    static const struct { const char *text; int64_t bytes; pvt_result result; const char *words; } bad[] = {
        {"{\"text\": \"one\"}\n\n{\"txet\": \"two\"}\n", -1, PVT_ERR_FORMAT, "line 3"},
        {"{\"text\": \"one\"}\n{\"text\": \"tw", -1, PVT_ERR_FORMAT, "line 2"},
        {"{\"id\": 1}\n", -1, PVT_ERR_FORMAT, "line 1"},
        {"{\"text\": \"one\"}\nplain\n", -1, PVT_ERR_FORMAT, "line 2"},
        {"[{\"text\": \"one\"},\n {\"text\": \"two\"}]\n", -1, PVT_ERR_UNSUPPORTED, "JSON array"},
        {"\x1f\x8b\x08\0\0\0\0\0\0\3", 10, PVT_ERR_UNSUPPORTED, "gzip -d"},
        {"\x28\xb5\x2f\xfd\x04\x58\x41\0\0", 9, PVT_ERR_UNSUPPORTED, "zstd -d"},
        {"\xfd" "7zXZ\0\0\4", 8, PVT_ERR_UNSUPPORTED, "xz -d"},
        {"BZh91AY&SY", 10, PVT_ERR_UNSUPPORTED, "bzip2 -d"},
        {"PK\3\4\24\0\0\0\10\0", 10, PVT_ERR_UNSUPPORTED, "unzip"},
        {"t\0e\0x\0t\0", 8, PVT_ERR_UNSUPPORTED, "zero bytes"},
        {"\xcf\xf0\xe8\xe2\xe5\xf2, \xec\xe8\xf0", -1, PVT_ERR_UNSUPPORTED, "not UTF-8"},
    };
    pvt_tokenizer *t = NULL;
    pvt_corpus corpus;
    CHECK_OK(ctx, pvt_tokenizer_create_bytes(ctx, &t));
    for (int i = 0; i < PVTI_COUNT(good); i++) {
        const char *wanted = good[i].wanted ? good[i].wanted : good[i].text;
        CHECK(gives(ctx, t, good[i].text, wanted));
    }
    for (int i = 0; i < PVTI_COUNT(bad); i++) {
        int64_t bytes = bad[i].bytes < 0 ? (int64_t)strlen(bad[i].text) : bad[i].bytes;
        CHECK(write_file("text", bad[i].text, bytes));
        int64_t before = pvt_ctx_get_info(ctx).bytes_now;
        CHECK_REFUSED(ctx, bad[i].result, bad[i].words, pvt_corpus_load(ctx, path_of("text"), t, &corpus));
        CHECK(strstr(pvt_ctx_error(ctx), path_of("text")) == pvt_ctx_error(ctx));
        CHECK(pvt_corpus_from_text(ctx, bad[i].text, bytes, t, &corpus) == bad[i].result);
        CHECK(corpus.ids == NULL && corpus.n == 0 && pvt_ctx_get_info(ctx).bytes_now == before);
    }
    CHECK(pvt_corpus_from_text(ctx, "a", INT64_MIN, t, &corpus) == PVT_ERR_ARGUMENT);
    CHECK(pvt_corpus_from_text(ctx, NULL, 1, t, &corpus) == PVT_ERR_ARGUMENT);
    CHECK(pvt_corpus_from_text(ctx, "a", 1, NULL, &corpus) == PVT_ERR_ARGUMENT);
    pvt_tokenizer_free(t);
}

/* ---- formats that make no sense on a model ---- */

static void test_formats(pvt_ctx *ctx)
{
    pvt_model *model = small_model(ctx);
    int32_t ids[256];
    pvt_corpus corpus;
    pvt_quantize_desc q;
    pvt_weight w;
    pvt_real values[9 * 10] = {0};
    for (int i = 0; i < 256; i++) ids[i] = i * 7 % 256;
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, 256, &corpus));
    memset(&q, 0, sizeof q);
    CHECK_OK(ctx, pvt_format_parse(ctx, "dense", &q.format));
    CHECK_REFUSED(ctx, PVT_ERR_ARGUMENT, "export", pvt_quantize(model, &corpus, &q));
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x4g12", &q.format));
    CHECK_REFUSED(ctx, PVT_ERR_ARGUMENT, "aqlm:1x4g16 fits", pvt_quantize(model, &corpus, &q));
    CHECK(pvt_model_bits(model, NULL).linears == 8.0 * sizeof(pvt_real)); /* nothing was begun */
    q.format.in_group = 16, q.finetune_epochs = -1, q.fit.epochs = 1, q.ctx = 8;
    CHECK_OK(ctx, pvt_quantize(model, &corpus, &q)); /* and the proposal is one */
    memset(&q, 0, sizeof q);
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x2g4o2", &q.format));
    CHECK_REFUSED(ctx, PVT_ERR_ARGUMENT, "aqlm:1x2g5o3 would fit",
                  pvt_weight_fit(ctx, values, 9, 10, NULL, &q.format, NULL, NULL, &w));
    pvt_corpus_free(&corpus);
    pvt_model_free(model);
}

/* ---- rope_freqs.weight ---- */

/* As llama.cpp's converter computes them, in float. */
static void factors_of(const pvt_model_config *c, float *out)
{
    for (int64_t j = 0; j < c->head_dim / 2; j++) {
        float frequency = 1.0f / powf((float)c->rope_theta, (float)(2 * j) / (float)c->head_dim);
        float wavelength = 6.2831853f / frequency, old = (float)c->rope_original_ctx, low = (float)c->rope_low;
        float high = (float)c->rope_high, factor = (float)c->rope_factor;
        float smooth = (old / wavelength - low) / (high - low);
        out[j] = wavelength < old / high ? 1 : wavelength > old / low ? factor : 1 / ((1 - smooth) / factor + smooth);
    }
}

static void logits_of(pvt_ctx *ctx, const pvt_model *model, pvt_real *out)
{
    int32_t ids[40];
    pvt_run_desc d = {0};
    pvt_run *run = NULL;
    d.max_ctx = 40;
    for (int i = 0; i < 40; i++) ids[i] = (int32_t)((i * 11 + 5) % model->config.vocab);
    CHECK_OK(ctx, pvt_run_create(model, &d, &run));
    CHECK_OK(ctx, pvt_run_forward(run, ids, 1, 40, out));
    pvt_run_free(run);
}

static double most_apart(const pvt_real *x, const pvt_real *y, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = PVTI_MAX(most, fabs((double)x[i] - (double)y[i]));
    return most;
}

/* The model as a GGUF with its factors: the same logits, and the rule found again; without them, others. */
static void check_rope(pvt_ctx *ctx, const pvt_model *model)
{
    int64_t n = 40 * model->config.vocab;
    pvt_real *wanted = (pvt_real *)malloc((size_t)n * 3 * sizeof *wanted), *got = wanted + n, *plain = got + n;
    float factors[PVTI_ROPE_MOST];
    pvt_model *loaded = NULL, *saved = NULL;
    pvt_save_desc over = {0};
    logits_of(ctx, model, wanted);
    factors_of(&model->config, factors);
    CHECK(write_gguf(model, path_of("plain.gguf"), NULL) && write_gguf(model, path_of("rope.gguf"), factors));
    CHECK_OK(ctx, pvt_model_load(ctx, path_of("plain.gguf"), NULL, &loaded));
    if (loaded) logits_of(ctx, loaded, plain);
    CHECK(most_apart(wanted, plain, n) > 1e-4); /* the factors matter here */
    pvt_model_free(loaded), loaded = NULL;
    CHECK_OK(ctx, pvt_model_load(ctx, path_of("rope.gguf"), NULL, &loaded));
    if (loaded) {
        logits_of(ctx, loaded, got);
        CHECK(most_apart(wanted, got, n) < 1e-5);
        CHECK(loaded->config.rope_factor == model->config.rope_factor && !loaded->config.rope_factors);
        over.overwrite = true;
        CHECK_OK(ctx, pvt_model_save(loaded, path_of("saved"), &over));
        CHECK_OK(ctx, pvt_model_load(ctx, path_of("saved"), NULL, &saved));
        CHECK(saved && saved->config.rope_factor == model->config.rope_factor && saved->config.rope_original_ctx > 0);
        pvt_model_free(loaded), pvt_model_free(saved), loaded = saved = NULL;
    }
    factors[0] = 1.25f; /* follows no rule: computed with, but not to be saved as if it were not there */
    CHECK(write_gguf(model, path_of("own.gguf"), factors));
    CHECK_OK(ctx, pvt_model_load(ctx, path_of("own.gguf"), NULL, &loaded));
    if (loaded) {
        CHECK(loaded->config.rope_factors && loaded->config.rope_factors[0] == 1.25f);
        logits_of(ctx, loaded, got);
        CHECK(most_apart(wanted, got, n) > 1e-4);
        CHECK_OK(ctx, pvt_model_copy(ctx, loaded, &saved));
        pvt_model_free(loaded);
        if (saved) logits_of(ctx, saved, plain);
        CHECK(saved && memcmp(plain, got, (size_t)n * sizeof *got) == 0);
        CHECK_REFUSED(ctx, PVT_ERR_UNSUPPORTED, "would be lost", pvt_model_save(saved, path_of("own"), NULL));
        pvt_model_free(saved);
    }
    factors[1] = -1;
    CHECK(write_gguf(model, path_of("own.gguf"), factors));
    CHECK_REFUSED(ctx, PVT_ERR_FORMAT, "rotary factor 1", pvt_model_load(ctx, path_of("own.gguf"), NULL, &loaded));
    free(wanted);
}

static void test_rope(pvt_ctx *ctx)
{
    pvt_model *model = NULL;
    pvt_model_config c;
    memset(&c, 0, sizeof c);
    c.layers = 2, c.dim = 64, c.heads = 2, c.kv_heads = 1, c.ff = 48, c.vocab = 50, c.ctx = 256, c.tied = true;
    c.rope_theta = 10000, c.rope_factor = 8, c.rope_low = 1, c.rope_high = 4, c.rope_original_ctx = 32;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    /* attention that depends on positions */
    for (int64_t i = 0; model && i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        for (int64_t k = 0; t.weight && k < t.n; k++)
            ((pvt_real *)(uintptr_t)t.weight->array[0])[k] =
                (pvt_real)(pvti_random_unit(5, 1, (uint64_t)i, (uint64_t)k) - 0.5);
    }
    check_rope(ctx, model);
    pvt_model_free(model);
    model = NULL;
    if (!pvti_path_exists(ctx, "../shared/golden/models/llama3_tied/config.json"))
        SKIP("the model with scaled frequencies from PyTorch: ../shared is absent");
    else {
        CHECK_OK(ctx, pvt_model_load(ctx, "../shared/golden/models/llama3_tied", NULL, &model));
        check_rope(ctx, model);
        pvt_model_free(model);
    }
}

int main(void)
{
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    memset(&desc, 0, sizeof desc);
    desc.allocator.alloc = limited_alloc, desc.allocator.free = limited_free;
    if (pvt_ctx_create(&desc, &ctx) != PVT_OK || !test_scratch(dir, sizeof dir)) return 1;
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    test_json_memory(ctx);
    test_merges(ctx);
    test_encode_memory(ctx);
    test_compose_memory(ctx);
    test_sizes(ctx);
    test_wide_run(ctx);
    test_tune_sizes(ctx);
    test_printable(ctx);
    test_kinds(ctx);
    test_corpus(ctx);
    test_formats(ctx);
    test_rope(ctx);
    CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
    pvt_ctx_destroy(ctx);
    test_remove(dir);
    return test_end();
}
