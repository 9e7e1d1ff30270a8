/*  Limits: sizes at the edge of their types, memory per byte of input, and what a file may print. Every
    size that a caller can pass is tried at its extremes; under -fsanitize=undefined nothing may overflow. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"

#include "test.h"

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
static pvt_tokenizer *random_tokenizer(pvt_ctx *ctx, uint64_t seed, int pieces)
{
    pvt_tokenizer *t = pvti_vocab_create(ctx, "test", 4 + pieces);
    uint64_t at = 0;
    t->words = PVTI_WORDS_WHOLE;
    for (int id = 0; id < 4 + pieces; id++) {
        char text[64] = {(char)('a' + id)};
        if (id >= 4) {
            const pvti_piece *left = &t->pieces[pvti_random(seed, 1, 0, at++) % (uint64_t)id];
            const pvti_piece *right = &t->pieces[pvti_random(seed, 1, 0, at++) % (uint64_t)id];
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
            int n = snprintf(both, sizeof both, "%.*s%.*s", (int)l->bytes, t->pool + l->start, (int)r->bytes,
                             t->pool + r->start);
            int32_t id = pvti_vocab_find(t, both, n);
            if (id >= 0) CHECK_OK(ctx, pvti_merge_add(t, left, right, id, (int64_t)(pvti_random(seed, 2, 0, at++) % 9)));
        }
    return t;
}

/* The definition: of all neighbours that merge, the leftmost of the lowest rank, until there are none. */
static int64_t merge_by_definition(const pvt_tokenizer *t, int32_t *ids, int64_t n)
{
    for (;;) {
        int64_t best = -1, i;
        uint32_t rank = UINT32_MAX;
        for (i = 0; i + 1 < n; i++) {
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
    for (uint64_t seed = 0; seed < 60; seed++) {
        pvt_tokenizer *t = random_tokenizer(ctx, seed, 10 + (int)seed);
        int64_t n = seed == 0 ? 5000 : 1 + (int64_t)(pvti_random(seed, 3, 0, 0) % 700), i, count, left;
        int letters = 1 + (int)(seed % 4);
        int32_t *ids;
        for (i = 0; i < n; i++) {
            wanted[i] = (int32_t)(pvti_random(seed, 4, 0, (uint64_t)i) % (uint64_t)letters);
            text[i] = (char)('a' + wanted[i]);
        }
        left = merge_by_definition(t, wanted, n);
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

int main(void)
{
    pvt_ctx *ctx;
    if (pvt_ctx_create(NULL, &ctx) != PVT_OK) return 1;
    test_json_memory(ctx);
    test_merges(ctx);
    test_encode_memory(ctx);
    test_compose_memory(ctx);
    pvt_ctx_destroy(ctx);
    return test_end();
}
