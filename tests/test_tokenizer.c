/*  Tokenizers: small vocabularies made here in every file format, ids recorded from sentencepiece and tokenizers
    (tests/golden), from llama.cpp and transformers where ../shared has them, malformed files, failing memory. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

#define DATA "../shared/data/"
#define SMALL "tests/golden/tokenizers/"
#define GOLDEN "../shared/golden/"

/* ---- helpers ---- */

typedef struct buffer {
    uint8_t data[1 << 16];
    int64_t n;
} buffer;

static void put(buffer *b, const void *data, int64_t n)
{
    memcpy(b->data + b->n, data, (size_t)n);
    b->n += n;
}
static void put_text(buffer *b, const char *text) { put(b, text, (int64_t)strlen(text)); }
static void put_little(buffer *b, uint64_t value, int bytes)
{
    for (; bytes > 0; bytes--, value >>= 8) {
        uint8_t byte = (uint8_t)value;
        put(b, &byte, 1);
    }
}
static void put_u32(buffer *b, uint32_t v) { put_little(b, v, 4); }
static void put_u64(buffer *b, uint64_t v) { put_little(b, v, 8); }

static bool exists(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (f) fclose(f);
    return f != NULL;
}

/* The ids of a text as "1 2 3"; "error" when it fails. Static memory. */
static const char *ids_of(const pvt_tokenizer *t, const char *text, int flags)
{
    static char out[4096];
    int32_t *ids;
    int64_t n;
    size_t at = 0;
    if (pvt_tokenizer_encode(t, text, -1, flags, &ids, &n) != PVT_OK) return "error";
    out[0] = 0;
    for (int64_t i = 0; i < n && at < sizeof out - 16; i++)
        at += (size_t)snprintf(out + at, sizeof out - at, "%s%d", i ? " " : "", ids[i]);
    pvt_ids_free(t->ctx, ids);
    return out;
}
#define CHECK_IDS(t, text, flags, expected)                                              \
    do {                                                                                 \
        const char *got_ = ids_of(t, text, flags);                                       \
        CHECK(strcmp(got_, expected) == 0);                                              \
        if (strcmp(got_, expected) != 0) printf("    \"%s\" gave %s\n", text, got_);     \
    } while (0)

static bool same_ids(const int32_t *a, int64_t na, const int32_t *b, int64_t nb)
{
    return na == nb && (na == 0 || memcmp(a, b, (size_t)na * sizeof *a) == 0);
}

/* ---- a vocabulary of 10 pieces and 256 bytes, in four formats ---- */

static const char *const pieces[] = {"\xe2\x96\x81",
                                     "a",
                                     "b",
                                     "c",
                                     "ab",
                                     "\xe2\x96\x81"
                                     "a",
                                     "\xe2\x96\x81"
                                     "ab",
                                     "abc",
                                     "\xc3\xa9",
                                     "\xe2\x96\x81\xe2\x96\x81"};
enum { N_PIECES = 10, V_SMALL = 259 + N_PIECES };

static int known_bytes = 256;  /* of the 256 only the first have tokens */
static const char *last_piece; /* in the place of the last, or NULL */
static int last_type = 1;      /* of the last piece, and */
static int fifth_type = 1;     /* of "ab" */
static uint8_t collapses;      /* remove_extra_whitespaces */

/* Text, score and SentencePiece type of a token. */
static void small_token(int id, char text[16], float *score, int *type)
{
    static const char *const control[] = {"<unk>", "<s>", "</s>"};
    *score = id < 259 ? 0 : (float)(259 - id);
    *type = id == 0 ? 2 : id < 3 ? 3 : id < 259 ? 6 : 1;
    if (id < 3) strcpy(text, control[id]);
    else if (id < 259) snprintf(text, 16, "<0x%02X>", (unsigned)id - 3);
    else strcpy(text, pieces[id - 259]);
    if (id >= 3 + known_bytes && id < 259) snprintf(text, 16, "no %d", id), *type = 1;
    if (id == V_SMALL - 1 && last_piece) strcpy(text, last_piece);
    if (id == V_SMALL - 1) *type = last_type;
    if (id == 263) *type = fifth_type;
}

static void make_bin(buffer *b)
{
    int type;
    char text[16];
    float score;
    b->n = 0;
    put_u32(b, 8);
    for (int id = 0; id < V_SMALL; id++) {
        small_token(id, text, &score, &type);
        if (id == 1) strcpy(text, "\n<s>\n");
        if (id == 2) strcpy(text, "\n</s>\n");
        put(b, &score, 4);
        put_u32(b, (uint32_t)strlen(text));
        put_text(b, text);
    }
}

static void make_model(buffer *b)
{
    static const uint8_t trainer[] = {0x12, 2, 0x18, 2};
    const uint8_t normalizer[] = {0x1a, 4, 0x18, 1, 0x20, collapses};
    int type;
    char text[16];
    float score;
    b->n = 0;
    for (int id = 0; id < V_SMALL; id++) {
        uint8_t head[4] = {0x0a, 0, 0x0a, 0}, tail[2] = {0x18, 0}, mark = 0x15;
        small_token(id, text, &score, &type);
        head[3] = (uint8_t)strlen(text);
        head[1] = (uint8_t)(head[3] + 9);
        tail[1] = (uint8_t)type;
        put(b, head, 4);
        put_text(b, text);
        put(b, &mark, 1);
        put(b, &score, 4);
        put(b, tail, 2);
    }
    put(b, trainer, sizeof trainer);
    put(b, normalizer, sizeof normalizer);
}

static void make_json(buffer *b, bool metaspace, bool pairs)
{
    static const char *const merges[][2] = {{"a", "b"},  {"_", "a"},  {"_", "ab"},
                                            {"_a", "b"}, {"ab", "c"}, {"_", "_"}};
    int type;
    char text[64], piece[16];
    float score;
    b->n = 0;
    put_text(b, "{\"version\":\"1.0\",\"added_tokens\":[");
    for (int id = 0; id < 3; id++) {
        small_token(id, piece, &score, &type);
        snprintf(text, sizeof text, "%s{\"id\":%d,\"content\":\"%s\",\"special\":true}", id ? "," : "", id,
                 piece);
        put_text(b, text);
    }
    put_text(
        b,
        metaspace
            ? "],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\","
              "\"prepend_scheme\":\"first\",\"split\":false},"
            : "],\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":"
              "\"\\u2581\"},"
              "{\"type\":\"Replace\",\"pattern\":{\"String\":\" "
              "\"},\"content\":\"\\u2581\"}]},\"pre_tokenizer\":null,");
    put_text(
        b,
        "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},"
        "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[1]}}},"
        "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"byte_fallback\":true,"
        "\"vocab\":{");
    for (int id = 0; id < V_SMALL; id++) {
        small_token(id, piece, &score, &type);
        snprintf(text, sizeof text, "%s\"%s\":%d", id ? "," : "", piece, id);
        put_text(b, text);
    }
    put_text(b, "},\"merges\":[");
    for (int i = 0; i < (int)(sizeof merges / sizeof *merges); i++) {
        put_text(b, i ? "," : "");
        put_text(b, pairs ? "[\"" : "\"");
        for (const char *c = merges[i][0]; *c; c++)
            put_text(b, *c == '_' ? "\\u2581" : *c == 'a' ? "a" : *c == 'b' ? "b" : "c");
        put_text(b, pairs ? "\",\"" : " ");
        for (const char *c = merges[i][1]; *c; c++)
            put_text(b, *c == '_' ? "\\u2581" : *c == 'a' ? "a" : *c == 'b' ? "b" : "c");
        put_text(b, pairs ? "\"]" : "\"");
    }
    put_text(b, "]}}");
}

static void put_key(buffer *b, const char *key, uint32_t type)
{
    put_u64(b, strlen(key));
    put_text(b, key);
    put_u32(b, type);
}

static void make_gguf(buffer *b)
{
    static const char *const arrays[] = {"tokenizer.ggml.tokens", "tokenizer.ggml.scores",
                                         "tokenizer.ggml.token_type"};
    static const uint32_t types[] = {8, 6, 5};
    int type;
    char text[16];
    float score;
    b->n = 0;
    put_text(b, "GGUF");
    put_u32(b, 3), put_u64(b, 0), put_u64(b, 4);
    put_key(b, "tokenizer.ggml.model", 8);
    put_u64(b, 5), put_text(b, "llama");
    for (int i = 0; i < 3; i++) {
        put_key(b, arrays[i], 9);
        put_u32(b, types[i]), put_u64(b, V_SMALL);
        for (int id = 0; id < V_SMALL; id++) {
            small_token(id, text, &score, &type);
            if (i == 0) put_u64(b, strlen(text)), put_text(b, text);
            if (i == 1) put(b, &score, 4);
            if (i == 2) put_u32(b, (uint32_t)type);
        }
    }
}

/* Byte-level: the 256 bytes, " a" "ab" " ab" and two special tokens. */
static void make_byte_level(buffer *b, const char *pre_tokenizer, bool ignore_merges)
{
    char text[128], character[5];
    b->n = 0;
    put_text(b, "{\"added_tokens\":[{\"id\":260,\"content\":\"<|end|>\",\"special\":true,\"rstrip\":true},"
                "{\"id\":261,\"content\":\"<|e\",\"special\":false,\"lstrip\":true}],\"normalizer\":null,"
                "\"pre_tokenizer\":");
    put_text(b, pre_tokenizer);
    put_text(b, ignore_merges ? ",\"model\":{\"type\":\"BPE\",\"ignore_merges\":true,\"vocab\":{"
                              : ",\"model\":{\"type\":\"BPE\",\"vocab\":{");
    for (int i = 0; i < 256; i++) {
        int n = pvti_utf8_write(pvti_byte_character(i), character);
        character[n] = 0;
        snprintf(text, sizeof text, "%s\"%s%s\":%d", i ? "," : "", i == '"' || i == '\\' ? "\\" : "",
                 character, i);
        put_text(b, text);
    }
    put_text(b, ",\"\xc4\xa0"
                "a\":256,\"ab\":257,\"\xc4\xa0"
                "ab\":258,\"aaa\":259},\"merges\":[\"\xc4\xa0 a\",[\"a\",\"b\"],"
                "\"\xc4\xa0"
                "a b\"]}}");
}

static pvt_tokenizer *read_buffer(pvt_ctx *ctx, const buffer *b)
{
    pvt_tokenizer *t = NULL;
    pvt_result result = pvti_tokenizer_read(ctx, "made here", b->data, b->n, &t);
    if (result != PVT_OK) printf("    %s\n", pvt_ctx_error(ctx));
    CHECK(result == PVT_OK && t);
    return t;
}

static void make(buffer *b, int format)
{
    if (format == 0) make_bin(b);
    if (format == 1) make_model(b);
    if (format == 2) make_gguf(b);
    if (format == 3 || format == 4) make_json(b, false, format == 4);
    if (format == 5) make_json(b, true, false);
    if (format == 6)
        make_byte_level(b, "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}", false);
    if (format == 7)
        make_byte_level(
            b,
            "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":true},"
            "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}]}",
            true);
}
enum { N_FORMATS = 8 };

static void test_small_sentencepiece(pvt_ctx *ctx, buffer *b)
{
    for (int format = 0; format < 6; format++) {
        make(b, format);
        pvt_tokenizer *t = read_buffer(ctx, b);
        if (!t) continue;
        pvt_tokenizer_info info = pvt_tokenizer_get_info(t);
        CHECK(strcmp(info.kind, "sentencepiece") == 0 && info.vocab == V_SMALL && info.bos == 1 &&
              info.eos == 2);
        CHECK(info.adds_bos && info.unknown == 0);
        CHECK_IDS(t, "", 0, "");
        CHECK_IDS(t, "", PVT_ENCODE_BOS | PVT_ENCODE_EOS, "1 2");
        CHECK_IDS(t, "abc", 0, "265 262"); /* "ab", then "_ab", before "abc" */
        CHECK_IDS(t, "aabc abc", PVT_ENCODE_BOS, "1 264 266 265 262");
        CHECK_IDS(t, "\xc3\xa9\n\xe4\xb8\xad", 0, "259 267 13 231 187 176"); /* é; bytes of newline and 中 */
        CHECK_IDS(t, "\xff" "a", 0, "259 258 260");                         /* not UTF-8 */
        CHECK_IDS(t, "<s>", PVT_ENCODE_PLAIN, "259 63 118 65");
        CHECK_IDS(t, "a<s>", 0, "264 1");
        CHECK_IDS(t, "a<s>b", 0, format == 5 ? "264 1 261" : "264 1 259 261");
        CHECK_IDS(t, " a", 0, format == 5 ? "264" : "259 264"); /* Metaspace puts no space before one */
        CHECK(pvt_tokenizer_find(t, " ab") == 265 && pvt_tokenizer_find(t, "\n") == 13 &&
              pvt_tokenizer_find(t, "zz") == -1);
        pvt_tokenizer_free(t);
    }
}

static void check_refused(pvt_ctx *ctx, const void *data, int64_t n, pvt_result expected, const char *word)
{
    pvt_tokenizer *t = NULL;
    pvt_result result = pvti_tokenizer_read(ctx, "made here", (const uint8_t *)data, n, &t);
    CHECK(result == expected && !t && strstr(pvt_ctx_error(ctx), word));
    if (result != expected || !strstr(pvt_ctx_error(ctx), word))
        printf("    expected \"%s\", got %d %s\n", word, (int)result, pvt_ctx_error(ctx));
}

/* To SentencePiece a piece of the user is part of the text: its ids, with spaces that stay and that collapse. */
static void test_user_piece(pvt_ctx *ctx, buffer *b)
{
    static const char *const cases[][3] = {
        {"<p>", "259 268", "259 268"},
        {"a <p> b", "264 259 268 259 261", "264 259 268 259 261"},
        {"<p>a", "259 268 260", "259 268 260"},
        {"  a  <p>  b  ", "259 259 264 259 259 268 259 259 261 259 259", "264 259 268 259 261"},
        {"a<p>", "264 268", "264 268"},
        {"<p> <p>", "259 268 259 268", "259 268 259 268"},
        {"<p><p> a", "259 268 268 264", "259 268 268 264"},
        {"b <p>", "259 261 259 268", "259 261 259 268"},
        {" ", "259 259", ""}};
    last_piece = "<p>", last_type = 4;
    for (collapses = 0; collapses < 2; collapses++) {
        make(b, 1);
        pvt_tokenizer *t = read_buffer(ctx, b);
        for (int i = 0; t && i < (int)(sizeof cases / sizeof *cases); i++)
            CHECK_IDS(t, cases[i][0], 0, cases[i][1 + collapses]);
        pvt_tokenizer_free(t);
    }
    collapses = 0, last_piece = NULL, last_type = 1;
    fifth_type = 5; /* "ab" unused: SentencePiece merges through it all the same */
    make(b, 1);
    check_refused(ctx, b->data, b->n, PVT_ERR_UNSUPPORTED, "piece 263 is unused, and others merge into it");
    fifth_type = 1;
}

static void test_small_byte_level(pvt_ctx *ctx, buffer *b)
{
    make(b, 6);
    pvt_tokenizer *t = read_buffer(ctx, b);
    if (!t) return;
    CHECK(strcmp(pvt_tokenizer_get_info(t).kind, "gpt-2") == 0);
    CHECK_IDS(t, "ab ab  ab", 0, "257 258 32 258");
    CHECK_IDS(t, "aaa\xff", 0, "97 97 97 255");
    CHECK_IDS(t, "a <|end|> \n b", 0, "97 32 260 98"); /* rstrip */
    CHECK_IDS(t, "a <|e <|en", 0, "97 261 261 110");   /* lstrip; the shorter token */
    CHECK_IDS(t, "a<|end|>", PVT_ENCODE_PLAIN, "97 261 110 100 124 62");
    pvt_tokenizer_free(t);
    make(b, 7);
    t = read_buffer(ctx, b);
    if (!t) return;
    CHECK(strcmp(pvt_tokenizer_get_info(t).kind, "smollm") == 0);
    CHECK_IDS(t, "aaa ab1", 0, "259 258 49"); /* ignore_merges: a whole word comes first */
    pvt_tokenizer_free(t);
}

/* ---- words ---- */

static const char *words_of(pvt_tokenizer *t, int words, const char *text)
{
    static char out[512];
    const char *cut = text, *end = text + strlen(text);
    int64_t at = 0;
    t->words = words;
    while (text < end) {
        int64_t n = pvti_word(t, text, end - text, &cut);
        memcpy(out + at, text, (size_t)n);
        out[at + n] = '|';
        at += n + 1, text += n;
    }
    out[at] = 0;
    return out;
}
#define CHECK_WORDS(t, words, text, expected)                                         \
    do {                                                                              \
        const char *got_ = words_of(t, words, text);                                  \
        CHECK(strcmp(got_, expected) == 0);                                           \
        if (strcmp(got_, expected) != 0) printf("    %s: got %s\n", text, got_);      \
    } while (0)

static void test_words(pvt_ctx *ctx)
{
    pvt_tokenizer *t;
    CHECK_OK(ctx, pvt_tokenizer_create_bytes(ctx, &t));
    CHECK_WORDS(t, PVTI_WORDS_GPT2, "I'M we'll 'llama  x1234\n\n y",
                "I|'|M| we|'ll| '|llama| | x|1234|\n\n| y|");
    CHECK_WORDS(t, PVTI_WORDS_GPT2, "a \n b\t\tc! ?  ", "a| \n| b|\t|\t|c|!| ?|  |");
    CHECK_WORDS(t, PVTI_WORDS_SMOLLM, "x 12 \xc2\xbd" "a  3", "x| |1|2| |\xc2\xbd|a|  |3|");
    CHECK_WORDS(t, PVTI_WORDS_LLAMA3, "I'M we'LL 12345,a \n\n\n b!!\r\nc\td",
                "I|'M| we|'LL| |123|45|,a| \n\n\n| b|!!\r\n|c|\td|");
    CHECK_WORDS(t, PVTI_WORDS_LLAMA3, "  \n x   y\n", "  \n| x|  | y|\n|");
    CHECK_WORDS(t, PVTI_WORDS_QWEN2,
                " 12 \xc3\xa9"
                "a\xcc\x81\xe4\xb8\xad",
                " |1|2| \xc3\xa9"
                "a|\xcc\x81\xe4\xb8\xad|");
    CHECK_WORDS(t, PVTI_WORDS_SPACES, "a  b ", "a|  b| |");
    CHECK_WORDS(t, PVTI_WORDS_EACH_SPACE, "a  b ", "a| | b| |");
    CHECK_WORDS(t, PVTI_WORDS_GPT2, "a\xff\xfe" "b\xe4\xb8", "a|\xff\xfe|b|\xe4\xb8|");
    pvt_tokenizer_free(t);
}

/* Unicode's composed form, seen through the byte tokenizer. */
static void test_nfc(pvt_ctx *ctx)
{
    pvt_tokenizer *t;
    CHECK_OK(ctx, pvt_tokenizer_create_bytes(ctx, &t));
    t->nfc = PVTI_NEW(ctx, pvti_nfc, 1);
    pvti_nfc_expand(t->nfc);
    CHECK_IDS(t, "e\xcc\x81!", 0, "195 169 33");                          /* é */
    CHECK_IDS(t, "e\xcc\xa3\xcc\x82", 0, "225 187 135");                  /* ệ: two marks */
    CHECK_IDS(t, "e\xcc\x82\xcc\xa3", 0, "225 187 135");                  /* … in the other order */
    CHECK_IDS(t, "q\xcc\x87\xcc\xa3", 0, "113 204 163 204 135");          /* sorted, nothing composes */
    CHECK_IDS(t, "\xe2\x84\xab", 0, "195 133");                           /* Ångström sign: Å */
    CHECK_IDS(t, "\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab", 0, "237 149 156"); /* 한 from its parts */
    CHECK_IDS(t, "\xe0\xa5\x98", 0, "224 164 149 224 164 188");           /* one that never composes */
    CHECK_IDS(t, "\xcc\x81\xff" "e\xcc\x81", 0, "204 129 255 195 169"); /* nothing before; not UTF-8 */
    /* compatibility ideographs: the first and the last of both blocks, one that stays (U+FA0E), one beyond */
    CHECK_IDS(t, "\xef\xa4\x80\xef\xab\x99", 0, "232 177 136 233 190 142");
    CHECK_IDS(t, "\xf0\xaf\xa0\x80\xf0\xaf\xa8\x9d", 0, "228 184 189 240 170 152 128");
    CHECK_IDS(t, "\xef\xa8\x8e\xef\xab\x9a", 0, "239 168 142 239 171 154");
    pvt_tokenizer_free(t);
}

/* ---- whole files ---- */

static void test_bytes(pvt_ctx *ctx)
{
    pvt_tokenizer *t;
    int32_t *ids;
    char text[4096], *back;
    int64_t n, bytes;
    CHECK_OK(ctx, pvt_tokenizer_create_bytes(ctx, &t));
    for (int64_t i = 0; i < (int64_t)sizeof text; i++)
        text[i] = (char)(i < 256 ? i : (int64_t)pvti_random(1, PVTI_RANDOM_USER, 0, (uint64_t)i));
    CHECK_OK(ctx, pvt_tokenizer_encode(t, text, (int64_t)sizeof text, PVT_ENCODE_BOS_ALWAYS | PVT_ENCODE_EOS,
                                       &ids, &n));
    CHECK(n == (int64_t)sizeof text && ids[0] == 0 && ids[255] == 255);
    CHECK_OK(ctx, pvt_tokenizer_decode(t, ids, n, 0, &back, &bytes));
    CHECK(bytes == (int64_t)sizeof text && memcmp(back, text, sizeof text) == 0);
    pvt_text_free(ctx, back);
    ids[7] = 256;
    CHECK(pvt_tokenizer_decode(t, ids, n, 0, &back, &bytes) == PVT_ERR_ARGUMENT && !back);
    pvt_ids_free(ctx, ids);
    CHECK(strcmp(pvt_tokenizer_get_info(t).kind, "bytes") == 0 && pvt_tokenizer_get_info(t).bos == -1);
    pvt_tokenizer_free(t);
}

static void test_decode(pvt_ctx *ctx, buffer *b)
{
    static const int32_t ids[] = {1, 265, 262, 265, 13, 2};
    char *text;
    int64_t bytes;
    make(b, 0);
    pvt_tokenizer *t = read_buffer(ctx, b);
    if (!t) return;
    CHECK_OK(ctx, pvt_tokenizer_decode(t, ids, 6, 0, &text, &bytes));
    CHECK(strcmp(text, "<s>abc ab\n</s>") == 0);
    pvt_text_free(ctx, text);
    CHECK_OK(ctx, pvt_tokenizer_decode(t, ids, 6, PVT_DECODE_SKIP_CONTROL, &text, NULL));
    CHECK(strcmp(text, "abc ab\n") == 0);
    pvt_text_free(ctx, text);
    CHECK(memcmp(pvt_tokenizer_piece(t, 1, 265, &bytes), "ab", 2) == 0 && bytes == 2);
    CHECK(memcmp(pvt_tokenizer_piece(t, 262, 265, &bytes), " ab", 3) == 0 && bytes == 3);
    CHECK(pvt_tokenizer_piece(t, 262, -5, &bytes)[0] == 0 && bytes == 0);
    pvt_tokenizer_free(t);
}

/* What is written for another's vocabulary must read back to the same ids. */
static void test_save(pvt_ctx *ctx, buffer *b)
{
    static const char *const texts[] = {"abc ab\xc3\xa9\n", "a<s>b</s>", "  a  12 ab", "x\xff<|end|> a <|e"};
    char dir[256];
    CHECK(test_scratch(dir, sizeof dir));
    for (int format = 0; format < N_FORMATS; format++) {
        pvt_tokenizer *again = NULL;
        make(b, format);
        pvt_tokenizer *t = read_buffer(ctx, b);
        if (!t || format == 5) { /* its prefix has no counterpart in a file of ours: such a file is copied */
            pvt_tokenizer_free(t);
            continue;
        }
        CHECK_OK(ctx, pvt_tokenizer_save(t, dir));
        CHECK_OK(ctx, pvt_tokenizer_load(ctx, dir, &again));
        for (int i = 0; again && i < 4; i++) {
            char first[512];
            snprintf(first, sizeof first, "%s", ids_of(t, texts[i], PVT_ENCODE_BOS));
            CHECK_IDS(again, texts[i], PVT_ENCODE_BOS, first);
        }
        if (again) CHECK(pvt_tokenizer_get_info(again).eos == pvt_tokenizer_get_info(t).eos);
        if (again) CHECK_OK(ctx, pvt_tokenizer_save(again, dir)); /* copies the files onto themselves */
        pvt_tokenizer_free(again);
        pvt_tokenizer_free(t);
    }
    test_remove(dir);
}

/* The whole file in b; -1 bytes when there is none. */
static int64_t read_whole(const char *dir, const char *name, buffer *b)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    b->n = f ? (int64_t)fread(b->data, 1, sizeof b->data, f) : -1;
    if (f) fclose(f);
    return b->n;
}

/* A vocabulary with tokens for some bytes: a character of others is unknown, before and after. Tokens that
   JSON cannot say are refused before anything is written. */
static void test_save_bytes(pvt_ctx *ctx, buffer *b)
{
    static const char *const odd[] = {"\xff", "\xe4\xb8", "<0xF1>"};
    static const char text[] = "\x01\n\xf0\x9f\xa6\x8a" "ab\xff\x7f";
    char dir[256], before[512];
    pvt_tokenizer *again = NULL, *t;
    CHECK(test_scratch(dir, sizeof dir));
    for (int i = 0; i < 3; i++) {
        known_bytes = 128, last_piece = odd[i];
        make(b, 2);
        t = read_buffer(ctx, b);
        if (t) CHECK(pvt_tokenizer_save(t, dir) == PVT_ERR_UNSUPPORTED);
        CHECK(strstr(pvt_ctx_error(ctx), "token 268 is no UTF-8, or"));
        CHECK(read_whole(dir, "tokenizer.json", b) < 0);
        pvt_tokenizer_free(t);
    }
    last_piece = NULL;
    make(b, 2), known_bytes = 256;
    t = read_buffer(ctx, b);
    if (t) CHECK_OK(ctx, pvt_tokenizer_save(t, dir));
    if (t) CHECK_OK(ctx, pvt_tokenizer_load(ctx, dir, &again));
    if (t) snprintf(before, sizeof before, "%s", ids_of(t, text, 0));
    if (again) CHECK(strcmp(before, "259 4 13 0 263 0 130") == 0);
    if (again) CHECK_IDS(again, text, 0, before);
    pvt_tokenizer_free(again), pvt_tokenizer_free(t);
    test_remove(dir);
}

/* Every SentencePiece vocabulary is saved as tokenizer.model too, and comes back from it with the same ids. */
static void test_save_model(pvt_ctx *ctx, buffer *b)
{
    static const char *const texts[] = {"abc ab\xc3\xa9\n", "a<s>b</s>", "  a  12 ab", "x\xff \xf0\x9f\xa6\x8a a ", "b", ""};
    char dir[256];
    for (int format = 0; format < 5; format++) {
        pvt_tokenizer *again = NULL;
        make(b, format);
        pvt_tokenizer *t = read_buffer(ctx, b);
        CHECK(test_scratch(dir, sizeof dir));
        if (!t) continue;
        CHECK_OK(ctx, pvt_tokenizer_save(t, dir));
        CHECK(read_whole(dir, "tokenizer.model", b) > 0);
        if (b->n > 0) CHECK_OK(ctx, pvti_tokenizer_read(ctx, "tokenizer.model", b->data, b->n, &again));
        for (int i = 0; again && i < 6; i++) {
            char first[512];
            snprintf(first, sizeof first, "%s", ids_of(t, texts[i], PVT_ENCODE_BOS));
            CHECK_IDS(again, texts[i], PVT_ENCODE_BOS, first);
        }
        if (again) CHECK(memcmp(again->byte_id, t->byte_id, sizeof t->byte_id) == 0 && again->V == t->V);
        if (again)
            CHECK(again->bos == t->bos && again->eos == t->eos && again->unknown == t->unknown && again->scored);
        pvt_tokenizer_free(again);
        pvt_tokenizer_free(t);
        test_remove(dir);
    }
}

/* Merges that no scores make: a tokenizer.model would tokenize otherwise, so there is none. */
static void test_save_model_impossible(pvt_ctx *ctx, buffer *b)
{
    static const char merge[] = ",\"\\u2581a b\"";
    char dir[256];
    make(b, 3);
    b->data[b->n] = 0;
    char *at = strstr((char *)b->data, merge);
    CHECK(at != NULL);
    if (!at) return;
    memset(at, ' ', sizeof merge - 1);
    pvt_tokenizer *t = read_buffer(ctx, b);
    CHECK(test_scratch(dir, sizeof dir));
    if (t) CHECK_OK(ctx, pvt_tokenizer_save(t, dir));
    CHECK(read_whole(dir, "tokenizer.json", b) > 0 && read_whole(dir, "tokenizer.model", b) < 0);
    pvt_tokenizer_free(t);
    test_remove(dir);
}

/* White space before a tokenizer.json does not make a SentencePiece model of it: that begins with "\n" as well. */
static void test_save_newline(pvt_ctx *ctx, buffer *b)
{
    static buffer copy;
    char from[256], to[256], path[600];
    pvt_tokenizer *t = NULL;
    CHECK(test_scratch(from, sizeof from) && test_scratch(to, sizeof to));
    make(b, 6);
    snprintf(path, sizeof path, "%s/tokenizer.json", from);
    FILE *f = fopen(path, "wb");
    CHECK(f && fputc('\n', f) == '\n' && fwrite(b->data, 1, (size_t)b->n, f) == (size_t)b->n && fclose(f) == 0);
    CHECK_OK(ctx, pvt_tokenizer_load(ctx, from, &t));
    if (t) CHECK_OK(ctx, pvt_tokenizer_save(t, to));
    CHECK(read_whole(to, "tokenizer.json", &copy) == b->n + 1 && copy.data[0] == '\n' &&
          memcmp(copy.data + 1, b->data, (size_t)b->n) == 0);
    CHECK(read_whole(to, "tokenizer.model", &copy) < 0);
    pvt_tokenizer_free(t);
    test_remove(from), test_remove(to);
}

/* ---- hostile files ---- */

/* Added tokens as other programs write them; the ids are those of the library tokenizers. Saved, they stay. */
static void test_added(pvt_ctx *ctx, buffer *b)
{
#define PREPEND                                                                                              \
    "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\\u2581\"},"          \
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"}]},\"pre_tokenizer\":null,"             \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"\\u2581\":0,\"a\":1,\"X\":2,\"<s>\":3,\"XY\":4,\"Y\":5,\"<\":6,\"s\":7,"        \
    "\">\":8},\"merges\":[\"X Y\"]},\"added_tokens\":[{\"id\":3,\"content\":\"<s>\",\"special\":true,\"normalized\":"
#define PREPEND_MORE ",{\"id\":4,\"content\":\"XY\",\"special\":false,\"normalized\":"
#define SPACES                                                                                               \
    "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"model\":{\"type\":\"BPE\",\"vocab\":"      \
    "{\"\\u0120\":0,\"\\u0120\\u0120\":1},\"merges\":[\"\\u0120 \\u0120\"]},\"added_tokens\":[{\"id\":2,\"content\":"    \
    "\"  \",\"special\":false}]}"
#define SPECIAL                                                                                              \
    "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"model\":{\"type\":\"BPE\",\"vocab\":"      \
    "{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]},\"added_tokens\":[{\"id\":2,\"content\":\"ab\",\"special\":true}]}"
#define FUSE /* unknown spaces, and what is unknown beside them, are one */                                  \
    "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\\u2581\"},"          \
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"}]},\"pre_tokenizer\":null,"             \
    "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"vocab\":{\"<unk>\":0,\"a\":1},\"merges\":[]},"  \
    "\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true,\"normalized\":false}]}"
    static const char plain[] = PREPEND "false}" PREPEND_MORE "false}]}";
    static const char normalized[] = PREPEND "true}" PREPEND_MORE "true}]}";
    static const struct {
        const char *json, *text, *ids;
    } cases[] = {
        {plain, "<s>a", "3 0 1"},         {normalized, "<s>a", "3 1"},
        {plain, "aXYa", "0 1 4 0 1"},     {normalized, "aXYa", "0 1 4 1"},
        {plain, "a XYa", "0 1 0 4 0 1"},  {normalized, "a XYa", "0 1 4 1"},
        {SPACES, "   ", "2 0"},           {SPECIAL, "aabb", "0 2 1"},
        {normalized, " <s>", "0 3"},      {normalized, "a <s>", "0 1 3"},
        {normalized, "<s> <s>", "3 3"},   {normalized, "  XYa", "0 0 4 1"},
        {normalized, "a  <s>a", "0 1 0 3 1"}, {normalized, "\xe2\x96\x81<s>a", "0 3 1"},
        {normalized, "a\xe2\x96\x81XY", "0 1 4"},
        {FUSE, "\xc3\xa9 \xe4\xb8\xad", "0"}, {FUSE, "a \xc3\xa9", "0 1 0"}, {FUSE, "aa", "0 1 1"},
    };
    for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++) {
        b->n = 0;
        put_text(b, cases[i].json);
        pvt_tokenizer *t = read_buffer(ctx, b);
        if (!t) continue;
        CHECK_IDS(t, cases[i].text, 0, cases[i].ids);
        pvti_text saved = pvti_text_begin(ctx);
        CHECK_OK(ctx, pvti_save_json(&saved, t));
        pvt_tokenizer_free(t);
        b->n = 0;
        put(b, saved.data, (size_t)saved.size);
        pvti_text_free(&saved);
        t = read_buffer(ctx, b);
        if (t) CHECK_IDS(t, cases[i].text, 0, cases[i].ids);
        pvt_tokenizer_free(t);
    }
}

static void test_refused(pvt_ctx *ctx, buffer *b)
{
#define BPE(vocab, merges)                                                                                   \
    "{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"vocab\":{" vocab "},\"merges\":[" merges "]}}"
    static const struct { const char *text; pvt_result result; const char *word;
    } cases[] = {
        {"", PVT_ERR_FORMAT, "neither"},
        {"hello", PVT_ERR_FORMAT, "neither"},
        {"{", PVT_ERR_FORMAT, "JSON"},
        {"{}", PVT_ERR_UNSUPPORTED, "not BPE"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":{},\"merges\":[]}}", PVT_ERR_UNSUPPORTED, "not BPE"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}", PVT_ERR_UNSUPPORTED, "neither byte-level"},
        {"{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":true},"
         "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}]},\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}",
         PVT_ERR_UNSUPPORTED, "with these options"},
        {"{\"normalizer\":{\"type\":\"Prepend\",\"prepend\":\"\\u2581\"},\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":"
         "false},\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}",
         PVT_ERR_UNSUPPORTED, "neither byte-level"},
        {"{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
         "\"use_regex\":false},{\"type\":\"Split\",\"pattern\":{\"Regex\":\"x\"},\"behavior\":\"Isolated\"}]},"
         "\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}",
         PVT_ERR_UNSUPPORTED, "Split"},
        {"{\"normalizer\":{\"type\":\"NFKC\"},\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}",
         PVT_ERR_UNSUPPORTED, "NFKC"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\d\"},\"behavior\":\"Isolated\"}"
         ","
         "\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}",
         PVT_ERR_UNSUPPORTED, "\\d"},
        {BPE("", ""), PVT_ERR_FORMAT, "0 pieces"},
        {BPE("\"a\":0,\"b\":0", ""), PVT_ERR_FORMAT, "id 0"},
        {BPE("\"a\":-1", ""), PVT_ERR_FORMAT, "2^24"},
        {BPE("\"a\":0.5", ""), PVT_ERR_FORMAT, "2^24"},
        {BPE("\"a\":16000000", ""), PVT_ERR_FORMAT, "ids up to"},
        {BPE("\"a\":0,\"a\":1", ""), PVT_ERR_FORMAT, "twice"},
        {BPE("\"a\":0", "\"a b\""), PVT_ERR_FORMAT, "right half"},
        {BPE("\"a\":0,\"b\":1", "\"a b\""), PVT_ERR_FORMAT, "result"},
        {BPE("\"a\":0,\"aa\":1", "\"a a\",\"a a\""), PVT_ERR_FORMAT, "twice"},
        {BPE("\"a\":0", "\"aa\""), PVT_ERR_FORMAT, "no space"},
        {BPE("\"a\":0", "7"), PVT_ERR_FORMAT, "pair"},
        {BPE("\"a\":0", "[\"a\"]"), PVT_ERR_FORMAT, "pair"},
        {BPE("\"a\":0", "[1,2]"), PVT_ERR_FORMAT, "pair"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_refused(ctx, cases[i].text, (int64_t)strlen(cases[i].text), cases[i].result, cases[i].word);
    make(b, 1);
    b->data[b->n - 7] = 1; /* trainer: unigram */
    check_refused(ctx, b->data, b->n, PVT_ERR_UNSUPPORTED, "unigram");
    make(b, 1);
    check_refused(ctx, b->data, b->n - 1, PVT_ERR_FORMAT, "cut off");
    make(b, 2);
    check_refused(ctx, b->data, b->n - 4, PVT_ERR_FORMAT, "made here");
    b->n = 0;
    put_text(b, PREPEND "true,\"rstrip\":true}]}");
    check_refused(ctx, b->data, b->n, PVT_ERR_UNSUPPORTED, "added token 3 is normalized and strips");
    /* a text with what the vocabulary lacks */
    b->n = 0;
    put_text(b, BPE("\"a\":0", ""));
    pvt_tokenizer *t = read_buffer(ctx, b);
    CHECK_IDS(t, "aab", 0, "error");
    CHECK(t && strstr(pvt_ctx_error(ctx), "unknown"));
    pvt_tokenizer_free(t);
    CHECK(pvt_tokenizer_load(ctx, "/nonexistent/tokenizer.json", &t) == PVT_ERR_IO && !t);
}

/* Random damage: any answer but a crash. The sanitizers of .ci/run watch. */
static void test_damaged(pvt_ctx *ctx, buffer *b)
{
    int loaded = 0;
    uint64_t k = 0;
    for (int format = 0; format < N_FORMATS; format++)
        for (int round = 0; round < 150; round++) {
            pvt_tokenizer *t = NULL;
            int hits = 1 + (int)(pvti_random(2, PVTI_RANDOM_USER, 1, k++) % 4);
            make(b, format);
            while (hits-- > 0) {
                uint64_t where = pvti_random(2, PVTI_RANDOM_USER, 2, k++) % (uint64_t)b->n;
                b->data[where] = (uint8_t)pvti_random(2, PVTI_RANDOM_USER, 3, k++);
            }
            if (round % 5 == 0) b->n = (int64_t)(pvti_random(2, PVTI_RANDOM_USER, 4, k++) % (uint64_t)b->n);
            if (pvti_tokenizer_read(ctx, "made here", b->data, b->n, &t) == PVT_OK) {
                int32_t *ids;
                int64_t n;
                char *text;
                loaded++;
                if (pvt_tokenizer_encode(t, "abc ab \xc3\xa9 <s> 12\n", -1, PVT_ENCODE_BOS, &ids, &n) ==
                    PVT_OK) {
                    pvt_tokenizer_decode(t, ids, n, 0, &text, NULL);
                    pvt_text_free(ctx, text);
                    pvt_ids_free(ctx, ids);
                }
                pvt_tokenizer_free(t);
            } else if (t) {
                CHECK(t == NULL);
            }
        }
    CHECK(loaded > 10);
}

/* ---- memory that runs out ---- */

static pvt_result everything(pvt_ctx *ctx, const buffer *b)
{
    pvt_tokenizer *t = NULL;
    int32_t *ids = NULL;
    int64_t n = 0;
    char *text = NULL;
    pvt_result result = pvti_tokenizer_read(ctx, "made here", b->data, b->n, &t);
    if (result == PVT_OK) result = pvt_tokenizer_encode(t, "abc abab<s>a", -1, 0, &ids, &n);
    if (result == PVT_OK) result = pvt_tokenizer_decode(t, ids, n, 0, &text, NULL);
    if (result == PVT_OK) {
        pvti_text json = pvti_text_begin(ctx);
        result = pvti_save_json(&json, t);
        json.size = 0;
        if (result == PVT_OK) result = pvti_save_model(&json, t);
        pvti_text_free(&json);
    }
    pvt_text_free(ctx, text);
    pvt_ids_free(ctx, ids);
    pvt_tokenizer_free(t);
    return result;
}

static void test_memory(buffer *b)
{
    test_budget budget = {1000000, 0, false};
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 1;
    desc.allocator.alloc = test_budget_alloc, desc.allocator.free = test_budget_free, desc.allocator.user = &budget;
    if (pvt_ctx_create(&desc, &ctx) != PVT_OK) {
        CHECK(ctx != NULL);
        return;
    }
    for (int format = 0; format < N_FORMATS; format++) {
        int64_t before = budget.live, fail_at;
        pvt_result result = PVT_ERR_MEMORY;
        bool clean = true;
        make(b, format);
        for (fail_at = 0; result == PVT_ERR_MEMORY && fail_at < 5000; fail_at += fail_at < 60 ? 1 : 37) {
            budget.left = fail_at;
            result = everything(ctx, b);
            clean = clean && budget.live == before;
        }
        CHECK(result == PVT_OK && clean && fail_at > 10);
    }
    budget.left = 1000000;
    pvt_ctx_destroy(ctx);
    CHECK(budget.live == 0);
}

/* ---- recorded ids ---- */

/* Strings of FILE.inp against the lines of ids in FILE.out. */
static void test_golden(pvt_ctx *ctx, const pvt_tokenizer *t, const char *name)
{
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char path[256];
    pvti_map in, out;
    int64_t cases = 0, good = 0;
    snprintf(path, sizeof path, DATA "tokenizers/goldens/ggml-vocab-%s.gguf.inp", name);
    CHECK_OK(ctx, pvti_map_open(ctx, path, &in));
    snprintf(path, sizeof path, DATA "tokenizers/goldens/ggml-vocab-%s.gguf.out", name);
    CHECK_OK(ctx, pvti_map_open(ctx, path, &out));
    const char *text = (const char *)in.data, *line = (const char *)out.data;
    while (text && line) {
        const char *end = (const char *)in.data + in.size, *at = text;
        int32_t *ids = NULL, expected[512];
        int64_t n = 0, count = 0;
        const char *next = NULL;
        for (; at + sizeof separator - 1 <= end && !next; at++)
            if (memcmp(at, separator, sizeof separator - 1) == 0) next = at;
        if (next) end = next;
        while (line < (const char *)out.data + out.size && *line != '\n') {
            char *after;
            long id = strtol(line, &after, 10);
            if (after == line) {
                line++;
                continue;
            }
            if (count < 512) expected[count++] = (int32_t)id;
            line = after;
        }
        line++;
        CHECK_OK(ctx, pvt_tokenizer_encode(t, text, end - text, PVT_ENCODE_PLAIN, &ids, &n));
        if (same_ids(ids, n, expected, count)) good++;
        else
            printf("    %s, string %lld \"%.*s\" differs\n", name, (long long)cases, (int)(end - text), text);
        pvt_ids_free(ctx, ids);
        cases++;
        text = next ? next + sizeof separator - 1 : NULL;
    }
    CHECK(cases >= 46 && good == cases);
    printf("%s: %lld of %lld strings of llama.cpp\n", name, (long long)good, (long long)cases);
    pvti_map_close(ctx, &in);
    pvti_map_close(ctx, &out);
}

/* A SentencePiece model and a byte-level BPE of tests/golden, each held against the ids of the library that made it
   (make.py there); the byte-level one gives every text back. */
static void test_small_goldens(pvt_ctx *ctx)
{
    static const char *const files[] = {SMALL "tokenizer.model", SMALL "tokenizer.json"};
    static const char *const keys[] = {"sentencepiece", "bpe"};
    pvti_map map;
    pvti_json j;
    CHECK_OK(ctx, pvti_json_open(ctx, SMALL "ids.json", &map, &j));
    for (int i = 0; i < 2; i++) {
        pvt_tokenizer *t = NULL;
        int64_t cases = 0, good = 0, returned = 0;
        CHECK_OK(ctx, pvt_tokenizer_load(ctx, files[i], &t));
        if (!t) continue;
        CHECK(pvt_tokenizer_get_info(t).vocab == 420);
        for (int64_t node = pvti_json_first(&j, 0); node >= 0; node = pvti_json_next(&j, node), cases++) {
            char text[256], *back;
            int32_t *ids, expected[256];
            int64_t n, count = 0, id, got;
            int64_t list = pvti_json_find(&j, node, keys[i]);
            int64_t bytes = pvti_json_string(&j, pvti_json_find(&j, node, "text"), text, sizeof text);
            for (list = pvti_json_first(&j, list); list >= 0 && count < 256; list = pvti_json_next(&j, list))
                if (pvti_json_int(&j, list, &id)) expected[count++] = (int32_t)id;
            /* SentencePiece takes "<s>" for three characters, byte-level BPE knows control tokens in a text */
            CHECK_OK(ctx, pvt_tokenizer_encode(t, text, bytes, i ? 0 : PVT_ENCODE_PLAIN, &ids, &n));
            if (same_ids(ids, n, expected, count)) good++;
            else printf("    %s, \"%.*s\" differs\n", files[i], (int)bytes, text);
            CHECK_OK(ctx, pvt_tokenizer_decode(t, ids, n, 0, &back, &got));
            returned += got == bytes && memcmp(back, text, (size_t)bytes) == 0;
            pvt_text_free(ctx, back);
            pvt_ids_free(ctx, ids);
        }
        CHECK(cases == 14 && good == cases);
        CHECK(i == 0 || returned == cases);
        pvt_tokenizer_free(t);
    }
    pvti_json_free(&j);
    pvti_map_close(ctx, &map);
}

static void test_goldens(pvt_ctx *ctx)
{
    static const char *const names[] = {"llama-spm", "phi-3", "gpt-2"};
    char path[256];
    pvt_tokenizer *t = NULL;
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, DATA "tokenizers/goldens/ggml-vocab-%s.gguf", names[i]);
        if (!exists(path)) {
            SKIP("llama.cpp's vocabularies (not in this repository)");
            return;
        }
        CHECK_OK(ctx, pvt_tokenizer_load(ctx, path, &t));
        if (t) test_golden(ctx, t, names[i]);
        pvt_tokenizer_free(t);
    }
    CHECK_OK(ctx, pvt_tokenizer_load(ctx, DATA "tokenizers/llama2/tokenizer.json", &t));
    if (t) test_golden(ctx, t, "llama-spm");
    pvt_tokenizer_free(t);
}

/* The Qwen tokenizer lies there compressed: read through gzip. */
static void test_qwen(pvt_ctx *ctx)
{
    const char *path = DATA "tokenizers/qwen3/tokenizer.json.gz";
    FILE *f =
        exists(path) ? popen("gzip -dc " DATA "tokenizers/qwen3/tokenizer.json.gz 2>/dev/null", "r") : NULL;
    pvti_text text = pvti_text_begin(ctx);
    char chunk[4096];
    size_t n;
    pvt_tokenizer *t = NULL;
    while (f && (n = fread(chunk, 1, sizeof chunk, f)) > 0) pvti_text_put(&text, chunk, (int64_t)n);
    if (f) pclose(f);
    if (text.size == 0) {
        SKIP("the Qwen tokenizer (not in this repository), or gzip");
        return;
    }
    CHECK_OK(ctx, pvti_tokenizer_read(ctx, path, (const uint8_t *)text.data, text.size, &t));
    if (t) test_golden(ctx, t, "qwen2");
    pvt_tokenizer_free(t);
    pvti_text_free(&text);
}

/* One vocabulary in three files. */
static void test_llama2(pvt_ctx *ctx)
{
    static const char *const files[] = {"tokenizer.model", "tokenizer.json", "tokenizer.bin"};
    pvti_map text;
    int32_t *ids[3] = {NULL, NULL, NULL};
    int64_t n[3] = {0, 0, 0};
    if (!exists(DATA "tokenizers/llama2/tokenizer.model") || !exists(DATA "text/tinyshakespeare.txt")) {
        SKIP("Llama 2's tokenizer in three formats (not in this repository)");
        return;
    }
    CHECK_OK(ctx, pvti_map_open(ctx, DATA "text/tinyshakespeare.txt", &text));
    for (int i = 0; i < 3; i++) {
        char path[256], *back;
        int64_t bytes;
        pvt_tokenizer *t = NULL;
        snprintf(path, sizeof path, DATA "tokenizers/llama2/%s", files[i]);
        CHECK_OK(ctx, pvt_tokenizer_load(ctx, path, &t));
        if (!t) continue;
        CHECK(pvt_tokenizer_get_info(t).vocab == 32000 && pvt_tokenizer_get_info(t).adds_bos);
        CHECK_OK(ctx,
                 pvt_tokenizer_encode(t, (const char *)text.data, text.size, PVT_ENCODE_BOS, &ids[i], &n[i]));
        CHECK_OK(ctx, pvt_tokenizer_decode(t, ids[i], n[i], PVT_DECODE_SKIP_CONTROL, &back, &bytes));
        CHECK(bytes == text.size && memcmp(back, text.data, (size_t)bytes) == 0);
        pvt_text_free(ctx, back);
        CHECK(same_ids(ids[0], n[0], ids[i], n[i]) && n[i] > 300000);
        pvt_tokenizer_free(t);
    }
    for (int i = 0; i < 3; i++) pvt_ids_free(ctx, ids[i]);
    pvti_map_close(ctx, &text);
}

/* The ids of golden/llama2c. */
static void test_llama2c(pvt_ctx *ctx)
{
    static const char *const models[] = {"stories260K", "babyllama105"};
    static const char *const files[] = {DATA "models/tok512.bin", DATA "models/babyllama105.tokenizer.model"};
    pvti_map text;
    pvti_safetensors st;
    if (!exists(GOLDEN "llama2c/llama2c.safetensors") || !exists(files[0]) ||
        !exists(DATA "text/tinystories_valid.txt")) {
        SKIP("ids of stories260K and babyllama105 (not in this repository)");
        return;
    }
    CHECK_OK(ctx, pvti_map_open(ctx, DATA "text/tinystories_valid.txt", &text));
    memset(&st, 0, sizeof st);
    CHECK_OK(ctx, pvti_safetensors_open(ctx, GOLDEN "llama2c/llama2c.safetensors", &st));
    for (int i = 0; i < 2; i++) {
        char name[64];
        pvt_tokenizer *t = NULL;
        int32_t *ids = NULL;
        int64_t n = 0;
        snprintf(name, sizeof name, "%s.ids", models[i]);
        const pvti_tensor *tensor = pvti_safetensors_find(&st, name);
        CHECK(tensor && tensor->dtype == PVT_I32);
        CHECK_OK(ctx, pvt_tokenizer_load(ctx, files[i], &t));
        if (!t || !tensor) continue;
        CHECK_OK(ctx, pvt_tokenizer_encode(t, (const char *)text.data, text.size, PVT_ENCODE_BOS, &ids, &n));
        int32_t *expected = PVTI_NEW(ctx, int32_t, tensor->bytes / 4);
        memcpy(expected, tensor->data, (size_t)tensor->bytes);
        CHECK(n >= tensor->bytes / 4 && same_ids(ids, tensor->bytes / 4, expected, tensor->bytes / 4));
        pvti_free(ctx, expected);
        pvt_ids_free(ctx, ids);
        pvt_tokenizer_free(t);
    }
    pvti_safetensors_close(&st);
    pvti_map_close(ctx, &text);
}

/* ---- SmolLM2 ---- */

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

/* FIPS 180-4, as hexadecimal digits. */
static void sha256(const uint8_t *data, int64_t n, char out[65])
{
    static uint32_t k[64];
    uint32_t h[8];
    int64_t blocks = (n + 9 + 63) / 64;
    int p = 2;
    for (int i = 0; i < 64; p++) { /* fractions of square and cube roots of the first primes */
        bool prime = true;
        for (int j = 2; j * j <= p; j++) prime = prime && p % j != 0;
        if (!prime) continue;
        k[i] = (uint32_t)(int64_t)floorl((cbrtl((long double)p) - floorl(cbrtl((long double)p))) *
                                         4294967296.0L);
        if (i < 8)
            h[i] = (uint32_t)(int64_t)floorl((sqrtl((long double)p) - floorl(sqrtl((long double)p))) *
                                             4294967296.0L);
        i++;
    }
    for (int64_t at = 0; at < blocks; at++) {
        uint32_t w[64], s[8];
        for (int i = 0; i < 64; i++) {
            int64_t byte = at * 64 + i;
            uint32_t v = byte < n ? data[byte] : byte == n ? 0x80 : byte >= blocks * 64 - 8
                       ? (uint8_t)((uint64_t)n * 8 >> (8 * (blocks * 64 - 1 - byte))) : 0;
            w[i / 4] = (i % 4 ? w[i / 4] << 8 : 0) | v;
        }
        for (int i = 16; i < 64; i++)
            w[i] = w[i - 16] + w[i - 7] + (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) +
                   (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
        memcpy(s, h, sizeof s);
        for (int i = 0; i < 64; i++) {
            uint32_t a = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) +
                         ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
            uint32_t b = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) +
                         ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            memmove(s + 1, s, 7 * sizeof *s);
            s[4] += a, s[0] = a + b;
        }
        for (int i = 0; i < 8; i++) h[i] += s[i];
    }
    for (int i = 0; i < 8; i++) snprintf(out + 8 * i, 9, "%08x", h[i]);
}

static void test_smollm2_tokens(pvt_ctx *ctx, const pvt_tokenizer *t)
{
    pvti_map map;
    pvti_json j;
    CHECK_OK(ctx, pvti_map_open(ctx, GOLDEN "smollm2/tokens.json", &map));
    CHECK_OK(ctx, pvti_json_parse(ctx, "tokens.json", (const char *)map.data, map.size, &j));
    for (int64_t item = pvti_json_first(&j, 0); item >= 0; item = pvti_json_next(&j, item)) {
        char text[2048], decoded[2048], *back;
        int32_t *ids, expected[512];
        int64_t n, count = 0, id;
        pvti_json_string(&j, pvti_json_find(&j, item, "text"), text, (int64_t)sizeof text);
        pvti_json_string(&j, pvti_json_find(&j, item, "decoded"), decoded, (int64_t)sizeof decoded);
        int64_t node = pvti_json_first(&j, pvti_json_find(&j, item, "ids"));
        for (; node >= 0 && count < 512; node = pvti_json_next(&j, node))
            if (pvti_json_int(&j, node, &id)) expected[count++] = (int32_t)id;
        CHECK_OK(ctx, pvt_tokenizer_encode(t, text, -1, 0, &ids, &n));
        CHECK(same_ids(ids, n, expected, count));
        CHECK_OK(ctx, pvt_tokenizer_decode(t, ids, n, 0, &back, NULL));
        CHECK(strcmp(back, decoded) == 0);
        pvt_text_free(ctx, back);
        pvt_ids_free(ctx, ids);
    }
    pvti_json_free(&j);
    pvti_map_close(ctx, &map);
}

static void test_smollm2(pvt_ctx *ctx)
{
    const char *model = "build/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    pvt_tokenizer *t = NULL;
    pvti_map text, golden;
    pvti_json j;
    int32_t *ids = NULL;
    int64_t n = 0, expected = 0;
    char hash[65];
    if (!exists(model) || !exists(GOLDEN "smollm2/tokens.json") || !exists(DATA "wikitext2/wiki.test.raw")) {
        SKIP("SmolLM2's ids: build/smollm2 is not there (make smollm2 fetches it)");
        return;
    }
    CHECK_OK(ctx, pvt_tokenizer_load(ctx, model, &t));
    if (!t) return;
    test_smollm2_tokens(ctx, t);
    CHECK_OK(ctx, pvti_map_open(ctx, DATA "wikitext2/wiki.test.raw", &text));
    CHECK_OK(ctx, pvti_map_open(ctx, GOLDEN "smollm2/wikitext2_ppl.json", &golden));
    CHECK_OK(ctx, pvti_json_parse(ctx, "wikitext2_ppl.json", (const char *)golden.data, golden.size, &j));
    double start = pvti_seconds();
    CHECK_OK(ctx, pvt_tokenizer_encode(t, (const char *)text.data, text.size, 0, &ids, &n));
    printf("SmolLM2: %lld bytes to %lld ids in %.3f s\n", (long long)text.size, (long long)n,
           pvti_seconds() - start);
    CHECK(pvti_json_int(&j, pvti_json_find(&j, 0, "n_tokens"), &expected) && n == expected);
    sha256((const uint8_t *)ids, n * 4, hash);
    CHECK(pvti_json_equals(&j, pvti_json_find(&j, 0, "ids_sha256_int32le"), hash));
    pvt_ids_free(ctx, ids);
    pvti_json_free(&j);
    pvti_map_close(ctx, &golden);
    pvti_map_close(ctx, &text);
    pvt_tokenizer_free(t);
}

/* A word of half a megabyte: the merge loop must not be quadratic. */
static void test_long_word(pvt_ctx *ctx, buffer *b)
{
    int64_t n_text = 500000, n, bytes;
    char *text = PVTI_NEW(ctx, char, n_text), *back;
    double start = pvti_seconds();
    for (int64_t i = 0; i < n_text; i++)
        text[i] = (char)('a' + pvti_random(3, PVTI_RANDOM_USER, 0, (uint64_t)i) % 3);
    for (int format = 0; format <= 6; format += 6) {
        int32_t *ids;
        make(b, format);
        pvt_tokenizer *t = read_buffer(ctx, b);
        if (!t) continue;
        CHECK_OK(ctx, pvt_tokenizer_encode(t, text, n_text, 0, &ids, &n));
        CHECK_OK(ctx, pvt_tokenizer_decode(t, ids, n, 0, &back, &bytes));
        CHECK(bytes == n_text && memcmp(back, text, (size_t)bytes) == 0);
        pvt_text_free(ctx, back);
        pvt_ids_free(ctx, ids);
        pvt_tokenizer_free(t);
    }
    CHECK(pvti_seconds() - start < 20); /* 0.2 s; minutes when quadratic */
    pvti_free(ctx, text);
}

/* ---- documents of tasks ---- */

static char task_file[300];

/* A task of these lines, by the bytes as tokens. */
static pvt_result load_task(pvt_ctx *ctx, const pvt_tokenizer *t, const char *lines, const pvt_task_desc *desc,
                            pvt_task *task)
{
    test_spit(task_file, lines, strlen(lines));
    return pvt_task_load(ctx, task_file, t, desc, task);
}

/* A document as "gold|context>continuation/length|…". Static memory. */
static const char *document_text(const pvt_task *task, int64_t i)
{
    static char out[4096];
    const pvt_document *d = &task->documents[i];
    int n = snprintf(out, sizeof out, "%d", (int)d->gold);
    for (int64_t k = 0; k < d->n; k++) {
        const pvt_choice *c = &task->choices[d->first + k];
        n += snprintf(out + n, sizeof out - (size_t)n, "|%s>%s/%g", c->context_text, c->continuation, c->length);
    }
    return out;
}

/* What the harness makes of such documents, written down by hand; hellaswag's, with all of its rules at once, was
   also compared with its own Python on some thousands of texts. */
static void test_task_prompts(pvt_ctx *ctx, const pvt_tokenizer *t)
{
    static const struct { const char *name, *line, *wanted; bool norm; } cases[] = {
        {"arc", "{\"id\":\"x\",\"question\":\"Why?\",\"choices\":{\"text\":[\"so\",\"\\u00e9t\\u00e9\"],\"label\":"
                "[\"1\",\"2\"]},\"answerKey\":\"2\"}",
         "1|Question: Why?\nAnswer:> so/2|Question: Why?\nAnswer:> été/3", true},
        {"hellaswag", "{\"activity_label\":\"Baking\",\"ctx_a\":\"A  man [header] stands. [title] Then\",\"ctx_b\":"
                      "\"he GOES. \",\"endings\":[\" out [step] to  town \",\"[x] [ y\",\"\"],\"label\":\"2\"}",
         "2|Baking: A man stands.. Then He goes.> out to town/11|Baking: A man stands.. Then He goes.>  [ y/4|"
         "Baking: A man stands.. Then He goes.> /0", true},
        {"hellaswag", "{\"activity_label\":\"B\",\"ctx_a\":\"a\",\"ctx_b\":\"\\u00e9CLAIR \\u0141\\u00d3\\u0414 "
                      "\\u1e9e\",\"endings\":[\"x\",\"[a\\nb]\"],\"label\":1}",
         "1|B: a Éclair łóд ß> x/1|B: a Éclair łóд ß> [a\nb]/5", true},
        {"piqa", "{\"goal\":\"Dry it\",\"sol1\":\"a \",\"sol2\":\"b\",\"label\":0}",
         "0|Question: Dry it\nAnswer:> a /2|Question: Dry it\nAnswer:> b/1", true},
        {"winogrande", "{\"sentence\":\"He saw _  run  fast. \",\"option1\":\"Al\",\"option2\":\"Bo\",\"answer\":\"2\"}",
         "1|He saw Al> run  fast./10|He saw Bo> run  fast./10", false},
        {"boolq", "{\"passage\":\"Ice melts.\",\"question\":\"does it\",\"label\":1}",
         "1|Ice melts.\nQuestion: does it?\nAnswer:> no/2|Ice melts.\nQuestion: does it?\nAnswer:> yes/3", false},
        {"boolq", "{\"question\":\"does it\",\"answer\":false,\"passage\":\"Ice.\"}",
         "0|Ice.\nQuestion: does it?\nAnswer:> no/2|Ice.\nQuestion: does it?\nAnswer:> yes/3", false},
        {"lambada", "{\"text\":\"one two\\nthree four\"}", "0|one two\nthree> four/4", false},
        {"task", "{\"context\":\"2 + 2 =\",\"choices\":[\"4\",\"five\"],\"gold\":0}",
         "0|2 + 2 => 4/1|2 + 2 => five/4", true},
        {"task", "{\"query\":\"Q\",\"choices\":[\"a\"],\"gold\":0}", "0|Q> a/1", true},
        {"task", "{\"contexts\":[\"A\",\"B c\"],\"continuation\":\"d\",\"gold\":1}", "1|A> d/1|B c> d/1", false},
    };
    for (int i = 0; i < PVTI_COUNT(cases); i++) {
        pvt_task task;
        CHECK_OK(ctx, load_task(ctx, t, cases[i].line, NULL, &task));
        if (task.n != 1) continue;
        if (strcmp(document_text(&task, 0), cases[i].wanted) != 0) printf("    %s\n", document_text(&task, 0));
        CHECK(strcmp(document_text(&task, 0), cases[i].wanted) == 0);
        CHECK(strcmp(task.name, cases[i].name) == 0 && task.norm == cases[i].norm);
        pvt_task_free(&task);
    }
}

/* Several rows make a document; those without a question are passed over; a limit counts documents. */
static void test_task_rows(pvt_ctx *ctx, const pvt_tokenizer *t)
{
#define ROW(id, index, context, continuation, label)                                                            \
    "{\"request\":{\"context\":\"" context "\",\"continuation\":\"" continuation "\"},\"idx\":" index ",\"doc_id\":" id \
    ",\"label\":" label ",\"task_name\":\"rows\"}\n"
    static const char lines[] = ROW("0", "0", "A:", " x", "1") ROW("0", "1", "A:", " yz", "1") "\n"
                                ROW("1000000", "0", "Answer:", " x", "1")
                                ROW("7", "0", "B:", " u", "0") ROW("7", "1", "C:", " u", "0");
    pvt_task task;
    pvt_task_desc desc = {"mine", 1};
    CHECK_OK(ctx, load_task(ctx, t, lines, NULL, &task));
    CHECK(task.n == 2 && task.n_choices == 4 && strcmp(task.name, "rows") == 0 && !task.norm);
    CHECK(task.n == 2 && strcmp(document_text(&task, 1), "0|B:> u/1|C:> u/1") == 0);
    pvt_task_free(&task);
    CHECK_OK(ctx, load_task(ctx, t, lines, &desc, &task));
    CHECK(task.n == 1 && task.n_choices == 2 && strcmp(task.name, "mine") == 0 && task.norm);
    CHECK(strcmp(document_text(&task, 0), "1|A:> x/1|A:> yz/2") == 0);
    pvt_task_free(&task);
    CHECK(load_task(ctx, t, ROW("0", "1", "A:", " x", "1"), NULL, &task) == PVT_ERR_FORMAT &&
          strstr(pvt_ctx_error(ctx), "line 1: rows of one \"doc_id\" follow one another"));
    CHECK(load_task(ctx, t, ROW("0", "0", "A:", " x", "1"), NULL, &task) == PVT_ERR_FORMAT &&
          strstr(pvt_ctx_error(ctx), "choice 1 is right; it has 1"));
    CHECK(load_task(ctx, t, ROW("1000000", "0", "A:", " x", "1"), NULL, &task) == PVT_ERR_FORMAT &&
          strstr(pvt_ctx_error(ctx), "no document with its question"));
#undef ROW
}

/* Where context and continuation part: tokens of both together; white space behind a context goes over; what
   begins a text stands before an empty one. */
static void test_task_tokens(pvt_ctx *ctx, const pvt_tokenizer *bytes)
{
    static const char lines[] = "{\"contexts\":[\"ab \\n\",\"\",\"  \"],\"continuation\":\"c\",\"gold\":0}\n";
    static buffer b;
    pvt_tokenizer *t = NULL;
    pvt_task task;
    CHECK(load_task(ctx, bytes, lines, NULL, &task) == PVT_ERR_FORMAT &&
          strstr(pvt_ctx_error(ctx), "no token that begins a text"));
    make_model(&b);
    t = read_buffer(ctx, &b);
    CHECK(t != NULL);
    if (!t) return;
    int32_t bos = pvt_tokenizer_get_info(t).bos, *ids = NULL;
    int64_t n = 0;
    CHECK_OK(ctx, load_task(ctx, t, lines, NULL, &task));
    if (task.n_choices == 3) {
        const pvt_choice *c = task.choices;
        CHECK_OK(ctx, pvt_tokenizer_encode(t, "ab", -1, PVT_ENCODE_BOS, &ids, &n));
        CHECK(c[0].context == n && c[0].n > n && memcmp(c[0].ids, ids, (size_t)n * sizeof *ids) == 0);
        pvt_ids_free(ctx, ids);
        CHECK_OK(ctx, pvt_tokenizer_encode(t, "ab \n c", -1, PVT_ENCODE_BOS, &ids, &n));
        CHECK(c[0].n == n && memcmp(c[0].ids, ids, (size_t)n * sizeof *ids) == 0);
        pvt_ids_free(ctx, ids);
        for (int i = 1; i < 3; i++) {
            CHECK_OK(ctx, pvt_tokenizer_encode(t, i == 1 ? " c" : "   c", -1, 0, &ids, &n));
            CHECK(c[i].context == 1 && c[i].ids[0] == bos && c[i].n == n + 1 &&
                  memcmp(c[i].ids + 1, ids, (size_t)n * sizeof *ids) == 0);
            pvt_ids_free(ctx, ids);
        }
    }
    pvt_task_free(&task);
    pvt_tokenizer_free(t);
}

static void test_task_refused(pvt_ctx *ctx, const pvt_tokenizer *t)
{
    static const struct { const char *lines, *words; pvt_result result; } cases[] = {
        {"", "is empty", PVT_ERR_FORMAT},
        {"\n \n", "is empty", PVT_ERR_FORMAT},
        {"Once upon a time\n", "line 1: no JSON object", PVT_ERR_FORMAT},
        {"[1, 2]\n", "line 1: no JSON object", PVT_ERR_FORMAT},
        {"{\"name\":\"x\"}\n", "line 1: no document of a task: arc, hellaswag", PVT_ERR_FORMAT},
        {"{\"question\":\"x\",\"question_concept\":\"y\"}\n", "line 1: documents of CommonsenseQA are not read", PVT_ERR_FORMAT},
        {"{\"text\":\"a b\"}\n\n{\"text\":\"a\n", "line 3: no JSON object", PVT_ERR_FORMAT},
        {"{\"text\":\"a b\"}\n{\"goal\":\"a\"}\n", "line 2: no \"text\" of the right type, which a document of lambada",
         PVT_ERR_FORMAT},
        {"{\"text\":7}\n", "no \"text\"", PVT_ERR_FORMAT},
        {"{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":2}", "line 1: \"gold\" says that choice 2 is right; there "
         "are 2, counted from 0", PVT_ERR_FORMAT},
        {"{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":-1}", "choice -1 is right", PVT_ERR_FORMAT},
        {"{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":NaN}", "line 1: no JSON object", PVT_ERR_FORMAT},
        {"{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":0.5}", "no \"gold\" of the right type", PVT_ERR_FORMAT},
        {"{\"context\":\"a\",\"choices\":[],\"gold\":0}", "there are 0", PVT_ERR_FORMAT},
        {"{\"context\":\"a\",\"choices\":[\"b\",1],\"gold\":0}", "no \"choices\"", PVT_ERR_FORMAT},
        {"{\"context\":\"a\",\"choices\":\"b\",\"gold\":0}", "no \"choices\"", PVT_ERR_FORMAT},
        {"{\"goal\":\"a\",\"sol1\":\"b\",\"sol2\":\"c\"}", "no \"label\" of the right type, which a document of piqa has; "
         "the test split of a data set may come without", PVT_ERR_FORMAT},
        {"{\"goal\":\"a\",\"sol1\":\"b\",\"sol2\":\"c\",\"label\":\"\"}", "no \"label\"", PVT_ERR_FORMAT},
        {"{\"sentence\":\"no gap\",\"option1\":\"b\",\"option2\":\"c\",\"answer\":\"1\"}", "has no \"_\"", PVT_ERR_FORMAT},
        {"{\"sentence\":\"a _ b\",\"option1\":\"b\",\"option2\":\"c\",\"answer\":\"3\"}", "choice 3 is right; there are 2, "
         "counted from 1", PVT_ERR_FORMAT},
        {"{\"sentence\":\"a _ b\",\"option1\":\"b\",\"option2\":\"c\",\"answer\":\"\"}", "no \"answer\"", PVT_ERR_FORMAT},
        {"{\"question\":\"a\",\"choices\":{\"text\":[\"b\"],\"label\":[\"A\",\"B\"]},\"answerKey\":\"A\"}", "no \"choices\"",
         PVT_ERR_FORMAT},
        {"{\"question\":\"a\",\"choices\":{\"text\":[\"b\"],\"label\":[\"A\"]},\"answerKey\":\"B\"}",
         "no choice has the label of \"answerKey\": B", PVT_ERR_FORMAT},
        {"{\"activity_label\":\"a\",\"ctx_a\":\"b\",\"endings\":[\"c\"],\"label\":\"0\"}", "no \"ctx_b\"", PVT_ERR_FORMAT},
        {"\x1f\x8b\x08", "unpack it first (gzip -d)", PVT_ERR_UNSUPPORTED},
    };
    pvt_task task;
    pvt_task_desc named = {"hellaswag", 0};
    CHECK(load_task(ctx, t, "{\"text\":\"a b\"}", &named, &task) == PVT_ERR_FORMAT &&
          strstr(pvt_ctx_error(ctx), "holds documents of lambada, and is called \"hellaswag\": give it"));
    named.name = "hellaswags"; /* no name of a data set */
    CHECK_OK(ctx, load_task(ctx, t, "{\"text\":\"a b\"}", &named, &task));
    pvt_task_free(&task);
    for (int i = 0; i < PVTI_COUNT(cases); i++) {
        pvt_result result = load_task(ctx, t, cases[i].lines, NULL, &task);
        bool good = result == cases[i].result && strstr(pvt_ctx_error(ctx), cases[i].words) && task.n == 0;
        if (!good) printf("    %s: %s\n", cases[i].lines, result ? pvt_ctx_error(ctx) : "taken");
        CHECK(good);
    }
    CHECK(load_task(ctx, NULL, "{\"text\":\"a b\"}", NULL, &task) == PVT_ERR_ARGUMENT);
    CHECK(pvt_task_load(ctx, "absent", t, NULL, &task) == PVT_ERR_IO);
    pvt_task_free(&task), pvt_task_free(NULL);
}

/* Any line may be cut anywhere; each allocation fails once. */
static void test_task_damaged(void)
{
    static const char line[] = "{\"activity_label\":\"B\",\"ctx_a\":\"a [title] b\",\"ctx_b\":\"c\",\"endings\":[\"x\",\"y [z]\"],"
                               "\"label\":1}";
    static const char sentence[] = "{\"sentence\":\"a _ b\",\"option1\":\"b\",\"option2\":\"c\",\"answer\":\"1\"}";
    test_budget budget = {100000, 0, false};
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    pvt_tokenizer *t = NULL;
    pvt_task task;
    char cut[sizeof line];
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 1;
    desc.allocator.alloc = test_budget_alloc, desc.allocator.free = test_budget_free, desc.allocator.user = &budget;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK && pvt_tokenizer_create_bytes(ctx, &t) == PVT_OK);
    for (size_t n = 0; n < sizeof line - 1; n++) {
        memcpy(cut, line, n), cut[n] = 0;
        CHECK(load_task(ctx, t, cut, NULL, &task) == PVT_ERR_FORMAT);
    }
    long long live = budget.live;
    for (int k = 0; k < 2; k++) {
        pvt_result result = PVT_ERR_MEMORY;
        int fails = 0;
        for (; result != PVT_OK && fails < 500; fails++) {
            budget.left = fails;
            result = load_task(ctx, t, k ? sentence : line, NULL, &task);
            CHECK(result == PVT_OK || (result == PVT_ERR_MEMORY && strstr(pvt_ctx_error(ctx), "memory")));
            pvt_task_free(&task);
            CHECK(budget.live == live);
        }
        CHECK(result == PVT_OK && fails > 10);
        budget.left = 100000;
    }
    pvt_tokenizer_free(t);
    pvt_ctx_destroy(ctx);
    CHECK(budget.live == 0);
}

/* ---- chat ---- */

/* What Jinja makes of such templates (jinja2 3.1, compared once on 18 templates of published models), here with the
   constants that tell the kinds. "N" stands for BOS, "X" for EOS. */
static void test_chat(pvt_ctx *ctx, const char *dir)
{
    static const struct { const char *source, *kind, *alone, *long_; } cases[] = {
        {"{{'<|im_start|>system\nBe good<|im_end|>\n'}}{{'<|im_start|>' + role}}'<|im_start|>assistant\\n'", "ChatML",
         "<|im_start|>system\nBe good<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n",
         "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
         "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"},
        {"<|im_end|>'<|im_start|>system\\n' + x {{'<|im_start|>assistant\n'}}", "ChatML",
         "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n", NULL},
        {"<|eot_id|>'<|start_header_id|>assistant<|end_header_id|>\\n\\n'", "Llama-3",
         "N<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", NULL},
        {"'<|assistant|>\\n' '<|end|>\\n'", "Phi-3", "<|user|>\n Hi <|end|>\n<|assistant|>\n",
         "<|system|>\nS<|end|>\n<|user|>\n Hi <|end|>\n<|assistant|>\nYes<|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\n"},
        {"'[INST] ' + '<<SYS>>\\n'", "Llama-2", "N[INST] Hi [/INST]",
         "N[INST] <<SYS>>\nS\n<</SYS>>\n\n Hi [/INST] Yes XN[INST] Bye [/INST]"},
        {"'[INST] ' + x + ' [/INST]'", "Mistral", "N[INST]  Hi  [/INST]", "N[INST]  Hi  [/INST]YesX[INST] S\n\nBye [/INST]"},
        {"'[INST]' + x + '[/INST]' ' ' + message", "Mistral", "N[INST] Hi [/INST]", "N[INST] Hi [/INST] YesX[INST]S\n\nBye[/INST]"},
        {"{{ '<|user|>' }}{{ x + eos_token }}", NULL, "a chat template of another kind: ChatML, Llama-2", NULL},
        {"[SYSTEM_PROMPT][INST][/INST]", NULL, "of another kind", NULL},
        {"<|im_start|>assistant\n<think><|im_end|>", NULL, "of another kind", NULL},
        {NULL, NULL, "the model has no chat template", NULL},
    };
    static const pvt_message messages[] = {{"system", "S"}, {"user", " Hi "}, {"assistant", "Yes"}, {"user", "Bye"}};
    static buffer b;
    char path[2][300], wanted[400], *text;
    pvt_tokenizer *t = NULL;
    pvt_chat chat;
    snprintf(path[0], sizeof path[0], "%s/tokenizer.json", dir), snprintf(path[1], sizeof path[1], "%s/chat_template.jinja", dir);
    make(&b, 3), test_spit(path[0], (const char *)b.data, (size_t)b.n);
    CHECK_OK(ctx, pvt_tokenizer_load(ctx, path[0], &t));
    for (int i = 0; i < PVTI_COUNT(cases) && t; i++) {
        if (cases[i].source) test_spit(path[1], cases[i].source, strlen(cases[i].source));
        else remove(path[1]);
        for (int k = 0; k < 2; k++) {
            const char *s = k ? cases[i].long_ : cases[i].alone;
            int n = 0;
            if (!s) continue;
            pvt_result result = pvt_chat_prompt(t, messages + !k, k ? 4 : 1, &chat, &text);
            if (!cases[i].kind) {
                CHECK(result == PVT_ERR_UNSUPPORTED && !text && strstr(pvt_ctx_error(ctx), s));
                continue;
            }
            for (; *s && n < 390; s++)
                n += snprintf(wanted + n, 8, *s == 'N' && s[1] != 'S' ? "<s>" : *s == 'X' ? "</s>" : "%c", *s);
            if (result != PVT_OK || strcmp(text, wanted) != 0) printf("    %d %d: %s\n", i, k, text ? text : pvt_ctx_error(ctx));
            CHECK(result == PVT_OK && strcmp(text, wanted) == 0 && strcmp(chat.kind, cases[i].kind) == 0 && chat.end == -1);
            pvt_text_free(ctx, text);
        }
    }
    CHECK(pvt_chat_prompt(t, messages, 1, NULL, &text) == PVT_ERR_ARGUMENT);
    CHECK(pvt_chat_prompt(t, messages, 3, NULL, &text) == PVT_ERR_ARGUMENT);
    CHECK(pvt_chat_prompt(t, messages + 2, 2, NULL, &text) == PVT_ERR_ARGUMENT && strstr(pvt_ctx_error(ctx), "must be the user's"));
    CHECK(pvt_chat_prompt(t, messages, 0, NULL, &text) == PVT_ERR_ARGUMENT);
    CHECK(pvt_chat_prompt(t, NULL, 1, NULL, &text) == PVT_ERR_ARGUMENT);
    static const pvt_message empty[] = {{"system", NULL}, {"user", "Hi"}};
    CHECK(pvt_chat_prompt(t, empty, 2, NULL, &text) == PVT_ERR_ARGUMENT);
    /* earlier thoughts are taken out */
    static const char splits[] = "<|im_end|>{{'<|im_start|>assistant\n'}}{{ x.split('</think>')[-1] }}";
    static const pvt_message thoughts[] = {
        {"user", "Hi"}, {"assistant", "<think>\na</think>b</think>\n\nYes"}, {"user", "</think>Bye"}};
    test_spit(path[1], splits, strlen(splits));
    CHECK_OK(ctx, pvt_chat_prompt(t, thoughts, 3, NULL, &text));
    CHECK(strcmp(text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\n</think>Bye"
                       "<|im_end|>\n<|im_start|>assistant\n") == 0);
    pvt_text_free(ctx, text);
    pvt_tokenizer_free(t);
}

static void test_tasks(pvt_ctx *ctx)
{
    char dir[256];
    pvt_tokenizer *t = NULL;
    CHECK(test_scratch(dir, sizeof dir));
    snprintf(task_file, sizeof task_file, "%s/task.jsonl", dir);
    CHECK_OK(ctx, pvt_tokenizer_create_bytes(ctx, &t));
    test_task_prompts(ctx, t);
    test_task_rows(ctx, t);
    test_task_tokens(ctx, t);
    test_task_refused(ctx, t);
    test_task_damaged();
    test_chat(ctx, dir);
    pvt_tokenizer_free(t);
    test_remove(dir);
}

int main(void)
{
    static buffer b;
    pvt_ctx *ctx;
    if (pvt_ctx_create(NULL, &ctx) != PVT_OK) return 1;
    int64_t before = pvt_ctx_get_info(ctx).bytes_now;
    test_small_sentencepiece(ctx, &b);
    test_user_piece(ctx, &b);
    test_small_byte_level(ctx, &b);
    test_added(ctx, &b);
    test_words(ctx);
    test_nfc(ctx);
    test_bytes(ctx);
    test_decode(ctx, &b);
    test_save(ctx, &b);
    test_save_bytes(ctx, &b);
    test_save_model(ctx, &b);
    test_save_model_impossible(ctx, &b);
    test_save_newline(ctx, &b);
    test_refused(ctx, &b);
    test_damaged(ctx, &b);
    test_memory(&b);
    test_long_word(ctx, &b);
    test_tasks(ctx);
    test_small_goldens(ctx);
    if (pvti_path_is_directory(ctx, GOLDEN) || pvti_path_is_directory(ctx, DATA)) {
        test_goldens(ctx);
        test_qwen(ctx);
        test_llama2(ctx);
        test_llama2c(ctx);
        test_smollm2(ctx);
    } else {
        SKIP("real tokenizers and their recorded ids (not in this repository)");
    }
    CHECK(pvt_ctx_get_info(ctx).bytes_now == before);
    pvt_ctx_destroy(ctx);
    return test_end();
}
