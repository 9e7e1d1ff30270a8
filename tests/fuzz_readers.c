/*  Fuzzes every reader: one table of targets, each with the small files that it begins with (samples.h) and
    what is done with a damaged one, on a disk in memory. Damage knows the format: of JSON values are replaced,
    doubled, left out; lengths of safetensors, GGUF, protobuf and llama2.c's vocabulary are put right again, so
    that what lies behind the first check is reached; or bytes are changed as they come. What a reader took is
    used: forwards, encodings, a step of tuning; and what loads is saved, loaded and saved to the same bytes.
    Wrong is also: memory that was not given back, an error without a sentence.

      fuzz_readers [SECONDS [SEED [TARGET]]]   by itself, so many seconds a target, or, with 0, a short round
                                               of a fixed number of cases; the same cases for the same seed
      make fuzz [TARGET=gguf] [TIME=60]        clang's libFuzzer where it is; PVTUNE_TARGET names its target

    Public interface alone; libFuzzer's build brings the implementation by -DPVTUNE_IMPLEMENTATION. */
#include "../pvtune.h"
#include "disk.h"
#include "samples.h"

#define put_key json_put_key /* names of files_seeds.h's */
#define put_text json_put_text
#include "../examples/json.h"
#undef put_key
#undef put_text
#include <time.h>

enum { MOST = 1 << 18 }; /* bytes of an input */

static samples s;
static disk whole;       /* with the samples, as they were made */
static uint64_t accepted; /* inputs that a reader took */

/* ---- what must hold ---- */

static const char *target_name = "";
static pvt_ctx *fresh; /* of the inputs, with its own memory, which must all come back */
static void must(bool good, const char *what)
{
    if (good) return;
    fprintf(stderr, "fuzz %s: %s (%s)\n", target_name, what,
            fresh || s.ctx ? pvt_ctx_error(fresh ? fresh : s.ctx) : "");
    abort();
}
static struct { int64_t now, most; } memory;
typedef union block { int64_t bytes; long double align; } block;
static void *limited_alloc(size_t bytes, void *user)
{
    block *h;
    (void)user;
    if (bytes > (size_t)memory.most || memory.now + (int64_t)bytes > memory.most) return NULL;
    h = (block *)malloc(sizeof *h + bytes);
    if (!h) return NULL;
    h->bytes = (int64_t)bytes, memory.now += h->bytes;
    return h + 1;
}
static void limited_free(void *p, void *user)
{
    (void)user;
    if (!p) return;
    memory.now -= ((block *)p - 1)->bytes;
    free((block *)p - 1);
}

/* What a call came to: true when it did its work; else it must have said why. */
static bool took(pvt_ctx *ctx, pvt_result result)
{
    must(result == PVT_OK || pvt_ctx_error(ctx)[0], "an error without a sentence");
    return result == PVT_OK;
}

/* ---- what is done with the files ---- */

static bool is_small(const pvt_model *model)
{
    const pvt_model_config *c = pvt_model_get_config(model);
    return c->layers <= 4 && c->dim <= 256 && c->ff <= 512 && c->vocab <= 1024 &&
           c->heads * c->head_dim <= 512;
}

static void use_tokenizer(const pvt_tokenizer *t)
{
    static const char text[] = " abc \xc3\xa9\xff<s>\n\t  12 \xe4\xb8\xad<|im_end|>";
    pvt_tokenizer_info info = pvt_tokenizer_get_info(t);
    int32_t *ids = NULL;
    int64_t n = 0, bytes;
    char *back = NULL;
    if (took(fresh, pvt_tokenizer_encode(t, text, (int64_t)sizeof text - 1,
                                         PVT_ENCODE_BOS_ALWAYS | PVT_ENCODE_EOS, &ids, &n))) {
        for (int64_t i = 0; i < n; i++)
            must(ids[i] >= 0 && ids[i] < info.vocab, "an id beyond the vocabulary");
        if (took(fresh, pvt_tokenizer_decode(t, ids, n, 0, &back, &bytes)))
            must(back[bytes] == 0, "no end of the text");
        pvt_text_free(fresh, back);
    }
    pvt_ids_free(fresh, ids);
    for (int32_t id = -1; id <= info.vocab && id < 300; id++)
        (void)pvt_tokenizer_piece(t, id - 1, id, &bytes);
    (void)pvt_tokenizer_find(t, "abc");
}

static void use_model(const pvt_model *model)
{
    static pvt_real logits[3 * 1024];
    int32_t ids[3] = {0, 1, 0};
    pvt_run_desc desc;
    pvt_run *run = NULL;
    if (!is_small(model)) return;
    memset(&desc, 0, sizeof desc);
    desc.max_ctx = 3;
    if (pvt_model_get_config(model)->vocab < 2) ids[1] = 0;
    if (took(fresh, pvt_run_create(model, &desc, &run)))
        (void)took(fresh, pvt_run_forward(run, ids, 1, 3, logits));
    pvt_run_free(run);
}

/* Saved and loaded, it is saved to the same bytes. */
static void save_again(const pvt_model *model)
{
    pvt_model *again = NULL;
    uint64_t view[2] = {0, 0};
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.no_card = desc.overwrite = true;
    if (!is_small(model) || !took(fresh, pvt_model_save(model, "out", &desc))) return;
    for (int i = 0; i < 2; i++) {
        must(took(fresh, pvt_model_load(fresh, "out", NULL, &again)), "what was saved does not load");
        must(took(fresh, pvt_model_save(again, "out", &desc)), "what was saved is not saved again");
        pvt_model_free(again);
        view[i] = disk_view(s.d, disk_find(s.d, "out"), true);
    }
    must(view[0] == view[1], "saved and loaded and saved, it is another");
}

static void load_model(const char *path)
{
    pvt_model *model = NULL;
    if (!took(fresh, pvt_model_load(fresh, path, NULL, &model))) {
        must(!model, "a model in spite of an error");
        return;
    }
    accepted++;
    use_model(model);
    if (pvt_model_tokenizer(model)) use_tokenizer(pvt_model_tokenizer(model));
    save_again(model);
    pvt_model_free(model);
}
static void read_directory(const char *path) /* of a file in it */
{
    char dir[100];
    snprintf(dir, sizeof dir, "%.*s", (int)strcspn(path, "/"), path);
    load_model(dir);
}
static void read_tokenizer(const char *path)
{
    pvt_tokenizer *t = NULL, *again = NULL;
    if (!took(fresh, pvt_tokenizer_load(fresh, path, &t))) return;
    accepted++;
    use_tokenizer(t);
    must(disk_make_directory(&s.user, "out") == 0, "the test's own directory");
    if (pvt_tokenizer_get_info(t).vocab < 2000 && took(fresh, pvt_tokenizer_save(t, "out"))) {
        must(took(fresh, pvt_tokenizer_load(fresh, "out", &again)), "the tokenizer that was saved does not load");
        use_tokenizer(again);
    }
    pvt_tokenizer_free(t), pvt_tokenizer_free(again);
}
static void read_tensors(const char *path)
{
    pvt_tensors *t = NULL;
    pvt_weight w;
    pvt_named_weight named;
    uint64_t sum = 0;
    memset(&w, 0, sizeof w), memset(&named, 0, sizeof named);
    named.name = "w", named.weight = &w;
    if (took(fresh, pvt_tensors_open(fresh, path, &t))) {
        accepted++;
        for (int64_t i = 0; i < pvt_tensors_count(t); i++) {
            pvt_array a = pvt_tensors_get(t, i);
            sum = disk_hash(sum, a.data, a.bytes); /* all of it may be read */
            must(pvt_tensors_find(t, a.name) == i, "a name that does not find its tensor");
        }
    }
    pvt_tensors_close(t);
    if (took(fresh, pvt_weights_load(fresh, path, &named, 1))) {
        pvt_real *W = (pvt_real *)malloc((size_t)(w.O * w.I) * sizeof *W);
        if (W) pvt_weight_dequantize(&w, W);
        free(W);
    }
    pvt_weight_free(&w);
}
static void read_text(const char *path)
{
    pvt_corpus c;
    if (took(fresh, pvt_corpus_load(fresh, path, s.bytes, &c))) accepted++;
    pvt_corpus_free(&c);
}
static void read_task(const char *path)
{
    pvt_task task;
    if (took(fresh, pvt_task_load(fresh, path, s.bytes, NULL, &task))) {
        accepted++;
        for (int64_t i = 0; i < task.n; i++) {
            const pvt_document *d = &task.documents[i];
            must(d->first >= 0 && d->n >= 1 && d->first + d->n <= task.n_choices && d->gold >= 0,
                 "a document's choices");
            for (int64_t k = d->first; k < d->first + d->n; k++)
                must(task.choices[k].context >= 1 && task.choices[k].context < task.choices[k].n,
                     "a choice's context");
        }
    }
    pvt_task_free(&task);
}
static void read_chat(const char *path)
{
    static const pvt_message messages[3] = {{"user", "a"}, {"assistant", "b"}, {"user", "c"}};
    pvt_tokenizer *t = NULL;
    const char *kind = NULL;
    char *text = NULL;
    (void)path;
    if (!took(fresh, pvt_tokenizer_load(fresh, "m", &t))) return;
    if (took(fresh, pvt_chat_kind(t, &kind))) must(kind && kind[0], "a kind without a name");
    if (took(fresh, pvt_chat_prompt(t, messages, 3, NULL, &text))) accepted++;
    pvt_text_free(fresh, text);
    pvt_tokenizer_free(t);
}
static void read_checkpoint(const char *path)
{
    pvt_model *student = NULL;
    pvt_tuner *tuner = NULL;
    samples local = s;
    local.ctx = fresh;
    if (!took(fresh, pvt_model_copy(fresh, s.student, &student))) return;
    tuner = sample_tuner(&local, student);
    must(tuner != NULL, "the test's own tuner");
    if (took(fresh, pvt_tuner_resume(tuner, path))) {
        accepted++;
        if (took(fresh, pvt_tuner_step(tuner, NULL))) (void)took(fresh, pvt_tuner_finish(tuner, NULL));
    }
    pvt_tuner_free(tuner), pvt_model_free(student);
}
static void read_quantized(const char *path)
{
    pvt_model *model = NULL;
    pvt_quantize_desc q;
    (void)path;
    memset(&q, 0, sizeof q);
    must(pvt_format_parse(fresh, "aqlm:1x2g4", &q.format) == PVT_OK, "the test's own format");
    q.samples = 1, q.ctx = 8, q.checkpoint = "q", q.finetune_epochs = -1, q.resume = true;
    if (!took(fresh, pvt_model_copy(fresh, s.dense, &model))) return;
    if (took(fresh, pvt_quantize(model, &s.corpus, &q))) accepted++, use_model(model);
    pvt_model_free(model);
}

/* ---- what is no file: the input itself ---- */

static const uint8_t *input;
static int64_t input_bytes;

static void read_formats(const char *path)
{
    char text[64], back[48], again[48];
    pvt_format f, g;
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_strategy strategy;
    unsigned train;
    int n;
    (void)path;
    snprintf(text, sizeof text, "%.*s", (int)(input_bytes < 63 ? input_bytes : 63), (const char *)input);
    if (took(fresh, pvt_format_parse(fresh, text, &f))) {
        accepted++;
        pvt_format_text(&f, back);
        must(pvt_format_parse(fresh, back, &g) == PVT_OK && memcmp(&f, &g, sizeof f) == 0,
             "a format's text is another's");
        pvt_format_text(&g, again);
        must(strcmp(back, again) == 0, "a format's text is another's");
        (void)took(fresh, pvt_format_arrays(fresh, &f, 64, 256, arrays, &n));
        must(pvt_format_bits(&f, 64, 256) > 0, "a format without bits");
    }
    if (took(fresh, pvt_strategy_parse(fresh, text, &strategy)))
        must(pvt_strategy_name(strategy)[0], "no name");
    if (took(fresh, pvt_train_parse(fresh, text, &train))) {
        char words[96];
        unsigned same = 0;
        pvt_train_text(train, words);
        must(pvt_train_parse(fresh, words, &same) == PVT_OK && same == train, "a list of words is another's");
    }
}
static void read_ids(const char *path)
{
    int32_t *ids = NULL;
    int64_t B, T;
    char *text = (char *)malloc((size_t)input_bytes + 1), *back = NULL;
    (void)path;
    memcpy(text, input, (size_t)input_bytes), text[input_bytes] = 0;
    if (json_ids_read(text, input_bytes, 256, &ids, &B, &T) == JSON_IDS_GOOD) {
        pvt_corpus c;
        accepted++;
        must(B >= 1 && T >= 1, "ids without a shape");
        for (int64_t i = 0; i < B * T; i++) must(ids[i] >= 0 && ids[i] < 256, "an id beyond the limit");
        if (took(fresh, pvt_corpus_from_ids(fresh, ids, B * T, &c))) pvt_corpus_free(&c);
    }
    free(ids), ids = (int32_t *)(void *)text; /* and the bytes as ids of any value */
    if (pvt_tokenizer_decode(s.bytes, ids, input_bytes / 4, 0, &back, NULL) == PVT_OK)
        pvt_text_free(s.ctx, back);
    free(text);
}
static pvt_tokenizer *pieces; /* of t.bin, in s.ctx */
static void read_bytes(const char *path)
{
    const pvt_tokenizer *both[2];
    (void)path;
    both[0] = s.bytes, both[1] = pieces;
    for (int k = 0; k < 2; k++) {
        int32_t *ids = NULL;
        int64_t n = 0, bytes = 0;
        char *back = NULL;
        pvt_result result =
            pvt_tokenizer_encode(both[k], (const char *)input, input_bytes, PVT_ENCODE_PLAIN, &ids, &n);
        must(result == PVT_OK, "any bytes are a text");
        must(pvt_tokenizer_decode(both[k], ids, n, 0, &back, &bytes) == PVT_OK, "ids of ours are a text");
        bool mark = false; /* SentencePiece's sign for a space is a space thereafter */
        for (int64_t i = 0; i + 3 <= input_bytes; i++) mark |= memcmp(input + i, "\xe2\x96\x81", 3) == 0;
        must((mark && k == 1) || (bytes == input_bytes && memcmp(back, input, (size_t)bytes) == 0),
             "encoded and decoded, it is another");
        pvt_ids_free(s.ctx, ids), pvt_text_free(s.ctx, back);
        accepted++;
    }
}

/* ---- the table ---- */

typedef enum kind { RAW, JSON, SAFETENSORS, GGUF, PROTOBUF, VOCABULARY } kind;
typedef struct target {
    const char *name;
    void (*run)(const char *path);
    struct { const char *path; kind kind; } files[9]; /* the first byte of an input says which it replaces */
} target;
static const target targets[] = {
    {"safetensors", read_tensors, {{"w.safetensors", SAFETENSORS}}},
    {"huggingface",
     read_directory,
     {{"m/config.json", JSON},
      {"m/model.safetensors", SAFETENSORS},
      {"m/tokenizer_config.json", JSON},
      {"m/generation_config.json", JSON},
      {"m/model.safetensors.index.json", JSON},
      {"m/.pvtune-save/manifest", RAW}}},
    {"aqlm", read_directory, {{"aq/config.json", JSON}, {"aq/model.safetensors", SAFETENSORS}}},
    {"own", read_directory, {{"own/config.json", JSON}, {"own/model.safetensors", SAFETENSORS}}},
    {"gguf", load_model, {{"x.gguf", GGUF}, {"q.gguf", GGUF}}},
    {"llama2c", load_model, {{"x.bin", RAW}}},
    {"tokenizer-json", read_tokenizer, {{"m/tokenizer.json", JSON}, {"t/tokenizer.json", JSON}}},
    {"tokenizer-model", read_tokenizer, {{"t/tokenizer.model", PROTOBUF}}},
    {"tokenizer-bin", read_tokenizer, {{"t.bin", VOCABULARY}}},
    {"tokenizer-gguf", read_tokenizer, {{"x.gguf", GGUF}}},
    {"text", read_text, {{"text.txt", RAW}, {"lines5.jsonl", JSON}}},
    {"task",
     read_task,
     {{"lines0.jsonl", JSON},
      {"lines1.jsonl", JSON},
      {"lines2.jsonl", JSON},
      {"lines3.jsonl", JSON},
      {"lines4.jsonl", JSON},
      {"lines5.jsonl", JSON},
      {"lines6.jsonl", JSON},
      {"lines7.jsonl", JSON},
      {"lines8.jsonl", JSON}}},
    {"chat", read_chat, {{"m/chat_template.jinja", RAW}, {"m/tokenizer_config.json", JSON}}},
    {"checkpoint", read_checkpoint, {{"c.safetensors", SAFETENSORS}}},
    {"quantize-checkpoint", read_quantized, {{"q/quantize-00000.safetensors", SAFETENSORS}}},
    {"formats", read_formats, {{"", RAW}}},
    {"ids", read_ids, {{"", JSON}}},
    {"bytes", read_bytes, {{"", RAW}}},
};
enum { TARGETS = (int)(sizeof targets / sizeof *targets) };

static int files_of(const target *t)
{
    int n = 0;
    while (n < 9 && t->files[n].path) n++;
    return n;
}
/* The sample, behind the byte that says which; returns the bytes. */
static int64_t begin_with(const target *t, int file, uint64_t draw, uint8_t *out)
{
    static const char *const strings[] = {"had2:aqlm:2x8g8o2",
                                          "had:int:2g64s",
                                          "higgs:p2n64",
                                          "vq:8g4",
                                          "e8p",
                                          "iq2_xxs",
                                          "scales,zeros,codes",
                                          "subspace-ste",
                                          "[[1, 2, 3], [4, 5, 6]]",
                                          "nf4",
                                          "q2_0"};
    const char *path = t->files[file].path, *text = strings[draw % (sizeof strings / sizeof *strings)];
    int i = path[0] ? disk_find(&whole, path) : -1;
    int64_t n = i >= 0 ? whole.inode[i].size : 0;
    out[0] = (uint8_t)file;
    if (i >= 0 && n < MOST) memcpy(out + 1, whole.inode[i].bytes, (size_t)n);
    if (i < 0 && strstr(path, "manifest")) text = "pvtune-save 1\n+ model.safetensors\n- vocab.json\n.\n";
    else if (i < 0 && path[0])
        text = "{\"weight_map\": {\"a\": \"model.safetensors\"}, \"eos_token_id\": [1, 2]}";
    if (i < 0) n = (int64_t)strlen(text), memcpy(out + 1, text, (size_t)n);
    return n + 1;
}

static void end_fresh(void)
{
    pvt_ctx_destroy(fresh);
    fresh = NULL;
    must(memory.now == 0, "memory is not given back");
}

static const target *chosen;
static void run_one(const uint8_t *data, int64_t size)
{
    const pvt_allocator limited = {limited_alloc, limited_free, NULL};
    int file = data[0] % files_of(chosen);
    const char *path = chosen->files[file].path;
    memory.most = (int64_t)64 << 20;
    disk_end(s.d);
    disk_lend(&whole, s.d);
    s.d->safe = true;
    input = data + 1, input_bytes = size - 1;
    if (!fresh) fresh = samples_ctx(&s.user, &limited, 3); /* the samples' seed, for checkpoints */
    must(fresh != NULL, "no context");
    int64_t before = pvt_ctx_get_info(fresh).bytes_now;
    ((char *)(uintptr_t)pvt_ctx_error(fresh))[0] = 0; /* a sentence must be a new one */
    if (path[0]) {
        (void)disk_remove(&s.user, path);
        if (strstr(path, "manifest")) (void)disk_make_directory(&s.user, "m/.pvtune-save");
        must(pvt_file_write(fresh, path, input, input_bytes) == PVT_OK, "the test's own file");
    }
    chosen->run(path);
    must(!s.d->full, "the test's disk is full");
    if (pvt_ctx_get_info(fresh).bytes_now != before) end_fresh(); /* a work space has grown: or is it lost? */
    for (int i = 0; i < DISK_OPENS; i++) must(s.d->number[i] == 0, "a file stays open");
}

/* ---- damage ---- */

typedef struct damage {
    uint8_t *data;
    int64_t size, most;
    uint64_t seed, draws;
} damage;
static uint64_t draw(damage *d, uint64_t below)
{
    return disk_mix(d->seed + ++d->draws * 0x632be59bd9b4e019u) % below;
}

/* bytes[n] in the place of what is at [at, at + old); false: there is no room. */
static bool put_in(damage *d, int64_t at, int64_t old, const void *bytes, int64_t n)
{
    static uint8_t copy[MOST];
    if (at < 0 || old < 0 || at + old > d->size || d->size - old + n > d->most || n > MOST) return false;
    memcpy(copy, bytes, (size_t)n);
    memmove(d->data + at + n, d->data + at + old, (size_t)(d->size - at - old));
    memcpy(d->data + at, copy, (size_t)n);
    d->size += n - old;
    return true;
}
static uint64_t any_number(damage *d)
{
    static const uint64_t words[] = {0,
                                     1,
                                     2,
                                     3,
                                     4,
                                     8,
                                     16,
                                     31,
                                     32,
                                     33,
                                     64,
                                     127,
                                     128,
                                     255,
                                     256,
                                     0x7fff,
                                     0xffff,
                                     0x10000,
                                     0x7fffffff,
                                     0x80000000u,
                                     0xffffffffu,
                                     0x100000000u,
                                     0x7fffffffffffffffu,
                                     0x8000000000000000u,
                                     0xffffffffffffffffu};
    return words[draw(d, sizeof words / sizeof *words)] + draw(d, 4) * (draw(d, 4) == 0);
}
static void change_bytes(damage *d, int64_t from, int64_t to)
{
    if (to - from < 1) return;
    int64_t at = from + (int64_t)draw(d, (uint64_t)(to - from)), n = 1 + (int64_t)draw(d, 8);
    uint64_t word = any_number(d), bytes = (uint64_t)1 << draw(d, 4);
    if (at + n > to) n = to - at;
    switch (draw(d, 6)) {
    case 0: d->data[at] = (uint8_t)(d->data[at] ^ 1u << draw(d, 8)); break;
    case 1: d->data[at] = (uint8_t)draw(d, 256); break;
    case 2:
        if (at + (int64_t)bytes <= to) memcpy(d->data + at, &word, (size_t)bytes);
        break;
    case 3: put_in(d, at, n, "", 0); break;
    case 4: put_in(d, at, 0, d->data + at, n); break;
    default:
        if (draw(d, 8) == 0 && to == d->size) d->size = at > 1 ? at : 1;
        else d->data[at] = (uint8_t)"0{}[]\",:\\ue-9 \xff\xc3.+"[draw(d, 18)];
    }
}

/* The end of the JSON value at `at`, or −1. */
static int64_t value_end(const damage *d, int64_t at, int64_t to)
{
    int depth = 0;
    bool quoted = false;
    for (int64_t i = at; i < to; i++) {
        uint8_t c = d->data[i];
        if (quoted) {
            if (c == '\\') i++;
            quoted = c != '"' || d->data[i] != '"';
            if (!quoted && depth == 0) return i + 1;
        } else if (c == '"') quoted = true;
        else if (c == '{' || c == '[') depth++;
        else if (c == '}' || c == ']') {
            if (--depth == 0) return i + 1;
            if (depth < 0) return i > at ? i : -1;
        } else if ((c == ',' || c == ':') && depth == 0) return i > at ? i : -1;
    }
    return -1;
}
/* Where a value, or with `member` a member of an object or array, begins. */
static int64_t value_begin(damage *d, int64_t from, int64_t to, bool member)
{
    for (int tries = 0; tries < 50 && to > from; tries++) {
        int64_t i = from + (int64_t)draw(d, (uint64_t)(to - from)), end = i + 400 < to ? i + 400 : to;
        for (; i < end; i++) {
            uint8_t c = d->data[i];
            if (c == '{' || c == '[' || c == ',' || (c == ':' && !member)) {
                for (i++; i < to && (d->data[i] == ' ' || d->data[i] == '\n'); i++) continue;
                return i;
            }
        }
    }
    return -1;
}
static void change_json(damage *d, int64_t from, int64_t to)
{
    static const char *const values[] = {
        "0",      "1",         "-1",          "2",     "null",        "true",       "[]",
        "{}",     "\"\"",      "\"a\"",       "1e999", "0.5",         "4294967296", "9223372036854775807",
        "-0",     "[[[[]]]]",  "\"\\ud800\"", "256",   "\"\\u0000\"", "32",         "\"F16\"",
        "\"U8\"", "\"llama\"", "\"../x\"",    "1.5",   "16"};
    int64_t at = value_begin(d, from, to, false), end = at < 0 ? -1 : value_end(d, at, to);
    const char *value = values[draw(d, sizeof values / sizeof *values)];
    if (end < 0) {
        change_bytes(d, from, to);
        return;
    }
    switch (draw(d, 5)) {
    case 0: put_in(d, at, end - at, value, (int64_t)strlen(value)); break;
    case 1: { /* another one of its own */
        int64_t other = value_begin(d, from, to, false), stop = other < 0 ? -1 : value_end(d, other, to);
        if (stop > 0) put_in(d, at, end - at, d->data + other, stop - other);
        break;
    }
    case 2: /* a member twice, or not at all */
        at = value_begin(d, from, to, true), end = at;
        while (end >= 0 && end < to && d->data[end] != ',' && d->data[end] != '}' && d->data[end] != ']') {
            int64_t next = value_end(d, end, to);
            end = next > end ? next : end + 1;
        }
        if (at >= 0 && end > at && end < to && d->data[end] == ',')
            put_in(d, at, draw(d, 2) ? end + 1 - at : 0, d->data + at, draw(d, 2) ? end + 1 - at : 0);
        break;
    case 3: change_bytes(d, at, end); break;
    default: { /* digits of a number */
        char number[32];
        snprintf(number, sizeof number, "%lld", (long long)any_number(d));
        if (d->data[at] == '-' || (d->data[at] >= '0' && d->data[at] <= '9'))
            put_in(d, at, end - at, number, (int64_t)strlen(number));
        else change_bytes(d, at, end);
    }
    }
}

/* Bytes of dtype × shape in the text of one tensor; −1: it says none. */
static int64_t tensor_bytes(const char *entry, const char *end)
{
    static const struct {
        const char *name;
        int bits;
    } types[] = {{"\"F32\"", 32}, {"\"F16\"", 16}, {"\"BF16\"", 16}, {"\"U8\"", 8},
                 {"\"I8\"", 8},   {"\"I16\"", 16}, {"\"U16\"", 16},  {"\"I32\"", 32},
                 {"\"U32\"", 32}, {"\"I64\"", 64}, {"\"F64\"", 64},  {"\"BOOL\"", 8}};
    const char *dtype = strstr(entry, "\"dtype\""), *shape = strstr(entry, "\"shape\"");
    int64_t n = -1;
    if (!dtype || !shape || dtype > end || shape > end) return -1;
    dtype += 7 + strspn(dtype + 7, ": "), shape += 7 + strspn(shape + 7, ": ");
    for (int i = 0; i < (int)(sizeof types / sizeof *types); i++)
        if (strncmp(dtype, types[i].name, strlen(types[i].name)) == 0) n = types[i].bits / 8;
    if (*shape++ != '[') return -1;
    while (n >= 0 && *shape && *shape != ']') {
        long long x = strtoll(shape, (char **)(uintptr_t)&shape, 10);
        if (x < 0 || x > MOST || (n *= x) > MOST) return -1;
        shape += strspn(shape, ", ");
        if (*shape != ']' && (*shape < '0' || *shape > '9')) return -1;
    }
    return n;
}
/* Offsets as dtypes and shapes have them, one behind the other; header length; data of that size. */
static void repair_safetensors(damage *d, int64_t header)
{
    static char text[2 * MOST];
    char *out = text;
    const char *at, *entry;
    int64_t offset = 0, grown = 0;
    static char old[MOST];
    memcpy(old, d->data + 9, (size_t)header), old[header] = 0;
    for (at = old; (entry = strstr(at, "\"data_offsets\"")) != NULL;) {
        const char *begin = entry, *stop;
        while (begin > old && *begin != '{') begin--;
        stop = strchr(entry, '}');
        int64_t n = stop ? tensor_bytes(begin, stop) : -1;
        const char *open = strchr(entry, '['), *close = open ? strchr(open, ']') : NULL;
        if (n < 0 || !close || out - text > MOST) break;
        out += snprintf(out, (size_t)(2 * MOST - (out - text)), "%.*s[%lld, %lld]", (int)(open - at), at,
                        (long long)offset, (long long)(offset + n));
        offset += n, at = close + 1;
    }
    int64_t rest = (int64_t)strlen(at), made = (int64_t)(out - text) + rest;
    memcpy(out, at, (size_t)rest);
    if (made + offset + 16 < d->most) {
        uint64_t length = (uint64_t)made;
        int64_t data = d->size - 9 - header;
        if (put_in(d, 9, header, text, made)) memcpy(d->data + 1, &length, 8);
        for (grown = data; grown < offset; grown++) d->data[9 + made + grown] = (uint8_t)(grown * 7);
        d->size = 9 + made + offset;
    }
}
static void change_safetensors(damage *d)
{
    uint64_t header = 0;
    if (d->size > 9) memcpy(&header, d->data + 1, 8);
    if (d->size < 20 || header > (uint64_t)d->size - 9 || draw(d, 5) == 0) {
        change_bytes(d, 1, d->size);
        return;
    }
    if (draw(d, 3) == 0) { /* numbers: what no header says */
        change_bytes(d, 9 + (int64_t)header, d->size);
        return;
    }
    int64_t size = d->size;
    change_json(d, 9, 9 + (int64_t)header);
    int64_t now = (int64_t)header + d->size - size;
    if (now < 2 || draw(d, 8) == 0) return;
    header = (uint64_t)now;
    memcpy(d->data + 1, &header, 8);
    if (draw(d, 4)) repair_safetensors(d, now);
}

/* The fields of a GGUF: where they are, and where a string's length stands before it. */
typedef struct field {
    int64_t at, bytes, length; /* length: at which the u64 of a string or an array stands; 0: none */
} field;
static int64_t load_number(const damage *d, int64_t at, int bytes)
{
    uint64_t x = 0;
    if (at + bytes > d->size) return INT64_MAX;
    memcpy(&x, d->data + at, (size_t)bytes);
    return x > INT64_MAX ? INT64_MAX : (int64_t)x;
}
enum { FIELDS = 4000 };
static int add_field(field *f, int n, int64_t at, int64_t bytes, int64_t length)
{
    if (n < FIELDS) f[n].at = at, f[n].bytes = bytes, f[n].length = length;
    return n < FIELDS ? n + 1 : n;
}
/* A value of the type at `at`; moves on, beyond the end where it is broken. */
static int64_t gguf_value(const damage *d, field *f, int *n, int64_t at, int64_t type)
{
    static const int bytes[13] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == 8) {
        int64_t length = load_number(d, at, 8);
        if (length > d->size) return d->size + 1;
        *n = add_field(f, *n, at + 8, length, at);
        return at + 8 + length;
    }
    if (type == 9) {
        int64_t of = load_number(d, at, 4), count = load_number(d, at + 4, 8);
        *n = add_field(f, *n, at, 4, 0), *n = add_field(f, *n, at + 4, 8, 0);
        if (count > d->size || of == 9) return d->size + 1;
        for (at += 12; count > 0 && at < d->size; count--) at = gguf_value(d, f, n, at, of);
        return at;
    }
    if (type < 0 || type > 12) return d->size + 1;
    *n = add_field(f, *n, at, bytes[type], 0);
    return at + bytes[type];
}
static int gguf_fields(const damage *d, field *f, int64_t *end)
{
    int64_t tensors = load_number(d, 9, 8), keys = load_number(d, 17, 8), at = 25;
    int n = add_field(f, 0, 9, 8, 0);
    n = add_field(f, n, 17, 8, 0);
    for (; keys > 0 && at < d->size; keys--) {
        at = gguf_value(d, f, &n, at, 8);
        n = add_field(f, n, at, 4, 0);
        at = gguf_value(d, f, &n, at + 4, load_number(d, at, 4));
    }
    for (; tensors > 0 && at < d->size; tensors--) {
        at = gguf_value(d, f, &n, at, 8);
        int64_t rank = load_number(d, at, 4);
        n = add_field(f, n, at, 4, 0), at += 4;
        for (; rank > 0 && at < d->size; rank--, at += 8) n = add_field(f, n, at, 8, 0);
        n = add_field(f, n, at, 4, 0), n = add_field(f, n, at + 4, 8, 0), at += 12;
    }
    *end = at;
    return at <= d->size ? n : 0;
}
static void change_string(damage *d, const field *f, int width)
{
    uint8_t text[64];
    uint64_t n = draw(d, 40);
    for (uint64_t i = 0; i < n; i++)
        text[i] = draw(d, 3) ? (uint8_t)('a' + draw(d, 26)) : (uint8_t)draw(d, 256);
    if (draw(d, 2) && f->bytes < 64) memcpy(text, d->data + f->at, (size_t)f->bytes), n = (uint64_t)f->bytes;
    if (n > 0 && draw(d, 2)) text[draw(d, n)] = (uint8_t)draw(d, 256);
    if (put_in(d, f->at, f->bytes, text, (int64_t)n)) memcpy(d->data + f->length, &n, (size_t)width);
}
static void change_gguf(damage *d)
{
    static field f[FIELDS];
    int64_t end, before = d->size;
    int n = d->size > 40 ? gguf_fields(d, f, &end) : 0;
    if (n == 0 || draw(d, 6) == 0) {
        change_bytes(d, 1, d->size);
        return;
    }
    if (draw(d, 8) == 0) {
        change_bytes(d, end, d->size);
        return;
    }
    uint64_t some = (uint64_t)(n < 60 ? n : 60), which = draw(d, 3); /* the first, the last, or any */
    const field *one = &f[which == 0   ? draw(d, some)
                          : which == 1 ? (uint64_t)n - 1 - draw(d, some)
                                       : draw(d, (uint64_t)n)];
    uint64_t number = any_number(d);
    if (one->length) change_string(d, one, 8);
    else memcpy(d->data + one->at, &number, (size_t)(one->bytes < 8 ? one->bytes : 8));
    static const uint8_t zeros[32]; /* data begins at a multiple of 32 behind the fields */
    int64_t stands = end + d->size - before;
    if (draw(d, 8)) put_in(d, stands, (32 - (end - 1) % 32) % 32, zeros, (32 - (stands - 1) % 32) % 32);
}

/* Pieces of SentencePiece's protobuf, each a field 1 of known length with fields in it. */
static int64_t varint(const damage *d, int64_t *at)
{
    uint64_t x = 0;
    for (int shift = 0; *at < d->size && shift < 63; shift += 7) {
        uint8_t b = d->data[(*at)++];
        x |= (uint64_t)(b & 127) << shift;
        if (b < 128) return (int64_t)x;
    }
    return -1;
}
static void change_protobuf(damage *d)
{
    static field f[FIELDS];
    int n = 0;
    for (int64_t at = 1; at < d->size && n < FIELDS;) {
        int64_t tag = varint(d, &at), stands = at, length = tag >= 0 && (tag & 7) == 2 ? varint(d, &at) : -1;
        if (length < 0 || length > d->size - at) break;
        n = add_field(f, n, at, length, stands), at += length;
    }
    if (n == 0 || draw(d, 5) == 0) {
        change_bytes(d, 1, d->size);
        return;
    }
    field *one = &f[draw(d, 3) ? draw(d, (uint64_t)n) : (uint64_t)n - 1];
    if (draw(d, 6) == 0) { /* twice, or not at all */
        int64_t from = one->length - 1, bytes = one->at + one->bytes - from;
        put_in(d, from, draw(d, 2) ? bytes : 0, d->data + from, draw(d, 2) ? bytes : 0);
        return;
    }
    int64_t size = d->size;
    change_bytes(d, one->at, one->at + one->bytes);
    int64_t bytes = one->bytes + d->size - size;
    if (bytes < 0 || bytes > 127 || one->at - one->length != 1) return;
    d->data[one->length] = (uint8_t)bytes;
    if (bytes > 2 && d->data[one->at] == 10 &&
        draw(d, 4)) /* the piece in it, before score (5) and type (2) */
        d->data[one->at + 1] = (uint8_t)(bytes > 9 ? bytes - 7 : bytes - 2);
}
static void change_vocabulary(damage *d)
{
    static field f[FIELDS];
    int n = 0;
    for (int64_t at = 5; at + 8 <= d->size && n < FIELDS;) {
        int64_t length = load_number(d, at + 4, 4);
        if (length > d->size - at - 8) break;
        n = add_field(f, n, at + 8, length, at + 4), at += 8 + length;
    }
    if (n == 0 || draw(d, 5) == 0) {
        change_bytes(d, 1, d->size);
        return;
    }
    const field *one = &f[draw(d, (uint64_t)n)];
    if (draw(d, 4) == 0) change_bytes(d, one->length - 4, one->length);
    else change_string(d, one, 4);
}

static void change(damage *d)
{
    int file = d->data[0] % files_of(chosen);
    d->data[0] = (uint8_t)file;
    switch (chosen->files[file].kind) {
    case JSON: draw(d, 6) ? change_json(d, 1, d->size) : change_bytes(d, 1, d->size); break;
    case SAFETENSORS: change_safetensors(d); break;
    case GGUF: change_gguf(d); break;
    case PROTOBUF: change_protobuf(d); break;
    case VOCABULARY: change_vocabulary(d); break;
    default: change_bytes(d, 1, d->size);
    }
    if (d->size < 1) d->size = 1;
}

/* ---- drivers ---- */

/* (what was freed is not kept for long: most of the time went there) */
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "quarantine_size_mb=2:max_malloc_fill_size=4096"; }

static bool start(void)
{
    static disk d;
    disk_lost none = {0, 0, 0};
    disk_begin(&d);
    if (!samples_make(&s, &d, NULL)) return false;
    disk_cut(&d, DISK_ALL_STAYS, &whole, &none);
    for (int i = 0; i < DISK_INODES; i++) whole.inode[i].opened = whole.inode[i].mapped = 0;
    if (pvt_tokenizer_load(s.ctx, "t.bin", &pieces) != PVT_OK) return false;
    return true;
}
static bool choose(const char *name)
{
    for (int i = 0; i < TARGETS; i++)
        if (strcmp(targets[i].name, name) == 0) chosen = &targets[i], target_name = name;
    return chosen != NULL;
}

#ifdef PVTUNE_LIBFUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned number);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const char *name = getenv("PVTUNE_TARGET");
    (void)argc, (void)argv;
    if (!start() || !choose(name ? name : "gguf")) exit(2);
    return 0;
}
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size >= 1 && size < MOST) run_one(data, (int64_t)size);
    return 0;
}
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned number)
{
    static uint8_t bytes[MOST];
    damage d = {bytes, (int64_t)size, (int64_t)(most < MOST - 64 ? most : MOST - 64), number, 0};
    if (size < 2 || number % 50 == 0) { /* from the beginning */
        d.size = begin_with(chosen, (int)(number / 50 % (unsigned)files_of(chosen)), number, bytes);
        if (d.size > d.most) return size < 1 ? 1 : size;
    } else if (number % 5 == 1) return LLVMFuzzerMutate(data, size, most);
    else memcpy(bytes, data, size);
    for (uint64_t n = 1 + draw(&d, 4); n > 0; n--) change(&d);
    memcpy(data, bytes, (size_t)d.size);
    return (size_t)d.size;
}
#else

/* Of each target so many cases, or so many seconds; the undamaged samples first. */
static int64_t fuzz(const target *t, double seconds, int64_t cases, uint64_t number)
{
    static uint8_t bytes[MOST];
    double until = (double)clock() / CLOCKS_PER_SEC + seconds;
    int64_t n = 0;
    accepted = 0;
    for (; seconds > 0 ? n % 16 || (double)clock() / CLOCKS_PER_SEC < until : n < cases; n++) {
        damage d = {bytes, 0, MOST - 64, disk_mix(number * 1000003 + (uint64_t)n), 0};
        int file = (int)(n % files_of(t));
        d.size = begin_with(t, file, (uint64_t)n, bytes);
        for (uint64_t k = n < files_of(t) ? 0 : 1 + draw(&d, 5); k > 0; k--) change(&d);
        uint8_t *exact = (uint8_t *)malloc((size_t)d.size); /* sanitizers see one byte too many */
        memcpy(exact, bytes, (size_t)d.size);
        run_one(exact, d.size);
        free(exact);
    }
    printf("  %-20s %lld cases, %lld read\n", t->name, (long long)n, (long long)accepted);
    return n;
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 0;
    uint64_t number = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    int64_t total = 0;
    int taken = 0, run = 0;
    if (!start() || (argc > 3 && !choose(argv[3]))) {
        printf("0 passed, 1 failed, 0 skipped\n");
        return 1;
    }
    for (int i = 0; i < TARGETS; i++) {
        if (argc > 3 && &targets[i] != chosen) continue;
        const target *one = &targets[i];
        chosen = one, target_name = one->name;
        total += fuzz(one, seconds, 250, number);
        run++, taken += accepted > 0;
        if (argc > 3) break;
    }
    end_fresh();
    pvt_tokenizer_free(pieces);
    samples_end(&s);
    printf("%lld cases\n%d passed, %d failed, 0 skipped\n", (long long)total, taken, run - taken);
    return taken != run;
}
#endif
