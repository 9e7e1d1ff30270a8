/*  One small sample of each kind of file that the library reads, made by itself on a disk in memory (disk.h):
   for the tests that let every call fail and for the fuzzer, which damages them. Public interface alone. */
#ifndef PVTUNE_SAMPLES_H
#define PVTUNE_SAMPLES_H

#ifndef PVTI_UNUSED
#define PVTI_UNUSED PVT_DISK_UNUSED
#endif
#include "files_seeds.h"

typedef struct samples {
    disk *d;
    disk_user user;
    pvt_ctx *ctx;
    pvt_model *dense, *student; /* the student is dense's copy in codes */
    const pvt_tokenizer *bytes; /* dense's */
    pvt_corpus corpus;
} samples;

/* What the kinds of task files hold, and a text in JSON Lines. */
static const char *const sample_lines[] = {
    "{\"question\": \"abc\", \"choices\": {\"text\": [\"a\", \"b\"], \"label\": [\"A\", \"B\"]}, "
    "\"answerKey\": \"B\"}\n",
    "{\"activity_label\": \"a\", \"ctx_a\": \"b\", \"ctx_b\": \"c\", \"endings\": [\"d\", \"e\"], \"label\": "
    "\"1\"}\n",
    "{\"goal\": \"a\", \"sol1\": \"b\", \"sol2\": \"c\", \"label\": 0}\n",
    "{\"sentence\": \"a _ b\", \"option1\": \"c\", \"option2\": \"d\", \"answer\": \"2\"}\n",
    "{\"passage\": \"a\", \"question\": \"b\", \"label\": 1}\n",
    "{\"text\": \"a b c\"}\n{\"text\": \"d e\\u00e9 f\"}\n",
    "{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"gold\": 0}\n",
    "{\"contexts\": [\"a\", \"b\"], \"continuation\": \"c\", \"gold\": 1}\n",
    "{\"request\": {\"context\": \"a\", \"continuation\": \" b\"}, \"doc_id\": 0, \"idx\": 0, \"label\": 0, "
    "\"task_name\": \"t\"}\n{\"request\": {\"context\": \"a\", \"continuation\": \" c\"}, \"doc_id\": 0, "
    "\"idx\": 1, "
    "\"label\": 0, \"task_name\": \"t\"}\n",
};
enum { SAMPLE_LINES = (int)(sizeof sample_lines / sizeof *sample_lines) };

static const char sample_template[] =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + "
    "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

static PVT_DISK_UNUSED pvt_ctx *samples_ctx(disk_user *user, const pvt_allocator *allocator, uint64_t number)
{
    pvt_ctx_desc desc;
    pvt_ctx *ctx = NULL;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 1, desc.files = disk_files(user), desc.seed = number;
    if (allocator) desc.allocator = *allocator;
    return pvt_ctx_create(&desc, &ctx) == PVT_OK ? ctx : NULL;
}

static pvt_model *sample_model(pvt_ctx *ctx)
{
    pvt_model_config c;
    pvt_model *model = NULL;
    pvt_tokenizer *bytes = NULL;
    memset(&c, 0, sizeof c);
    c.layers = 1, c.dim = 32, c.heads = 2, c.kv_heads = 2, c.ff = 32, c.vocab = 256, c.ctx = 32,
    c.tied = true;
    if (pvt_model_create(ctx, &c, &model) != PVT_OK) return NULL;
    if (pvt_tokenizer_create_bytes(ctx, &bytes) == PVT_OK) pvt_model_set_tokenizer(model, bytes);
    return model;
}

static pvt_model *sample_codes(const samples *s, const char *format)
{
    pvt_quantize_desc q;
    pvt_model *model = NULL;
    memset(&q, 0, sizeof q);
    q.samples = 2, q.ctx = 16, q.finetune_epochs = -1;
    if (pvt_format_parse(s->ctx, format, &q.format) != PVT_OK) return NULL;
    if (pvt_model_copy(s->ctx, s->dense, &model) != PVT_OK) return NULL;
    if (pvt_quantize(model, &s->corpus, &q) == PVT_OK) return model;
    pvt_model_free(model);
    return NULL;
}

/* llama2.c's vocabulary: three control tokens, the bytes, and a few pieces. */
static void sample_vocabulary(seed *b)
{
    static const char *const pieces[] = {" ", "a", "b", "c", "ab", " a", "abc", " b", "e", "t"};
    char byte[8];
    b->size = 0;
    put_u32(b, 6);
    for (int i = 0; i < 259 + (int)(sizeof pieces / sizeof *pieces); i++) {
        static const char *const control[] = {"<unk>", "\n<s>\n", "\n</s>\n"};
        float score = i < 259 ? 0 : (float)-i;
        snprintf(byte, sizeof byte, "<0x%02X>", (unsigned)(i - 3) & 255u);
        const char *piece = i < 3 ? control[i] : i < 259 ? byte : pieces[i - 259];
        put(b, &score, 4), put_u32(b, (uint32_t)strlen(piece)), put_text(b, piece);
    }
}

static pvt_result sample_write(const samples *s, const char *path, const char *text)
{
    return pvt_file_write(s->ctx, path, text, (int64_t)strlen(text));
}

static pvt_tuner *sample_tuner(const samples *s, pvt_model *student)
{
    pvt_tune_desc desc;
    pvt_tuner *tuner = NULL;
    memset(&desc, 0, sizeof desc);
    desc.steps = 4, desc.batch = 1, desc.ctx = 16, desc.eval_windows = 1, desc.delta_from = 0.5;
    desc.pv.delta = 0.1;
    return pvt_tuner_create(student, s->dense, &s->corpus, &desc, &tuner) == PVT_OK ? tuner : NULL;
}

static bool samples_tuning(const samples *s)
{
    pvt_model *student = NULL;
    pvt_quantize_desc q;
    memset(&q, 0, sizeof q);
    q.samples = 1, q.ctx = 8, q.checkpoint = "q", q.finetune_epochs = -1;
    bool good = pvt_format_parse(s->ctx, "aqlm:1x2g4", &q.format) == PVT_OK &&
                disk_make_directory((void *)(uintptr_t)&s->user, "q") == 0 &&
                pvt_model_copy(s->ctx, s->dense, &student) == PVT_OK &&
                pvt_quantize(student, &s->corpus, &q) == PVT_OK;
    pvt_model_free(student), student = NULL;
    good = good && pvt_model_copy(s->ctx, s->student, &student) == PVT_OK;
    pvt_tuner *tuner = good ? sample_tuner(s, student) : NULL;
    good = good && tuner && pvt_tuner_step(tuner, NULL) == PVT_OK && pvt_tuner_step(tuner, NULL) == PVT_OK &&
           pvt_tuner_save(tuner, "c.safetensors") == PVT_OK;
    pvt_tuner_free(tuner), pvt_model_free(student);
    return good;
}

static bool samples_tokenizers(const samples *s)
{
    seed *b = (seed *)malloc(sizeof *b);
    pvt_tokenizer *t = NULL;
    sample_vocabulary(b);
    bool good = pvt_file_write(s->ctx, "t.bin", b->data, b->size) == PVT_OK;
    good = good && pvt_tokenizer_load(s->ctx, "t.bin", &t) == PVT_OK &&
           disk_make_directory((void *)(uintptr_t)&s->user, "t") == 0 && pvt_tokenizer_save(t, "t") == PVT_OK;
    pvt_tokenizer_free(t);
    seed_llama2c(b, true);
    for (int64_t i = 28; i + 4 <= b->size; i += 4) { /* numbers instead of bytes */
        float x = (float)(i % 37 - 18) / 64;
        memcpy(b->data + i, &x, 4);
    }
    good = good && pvt_file_write(s->ctx, "x.bin", b->data, b->size) == PVT_OK;
    free(b);
    return good;
}

static bool samples_files(const samples *s)
{
    pvt_named_weight named;
    pvt_model *own = sample_codes(s, "had:int:2g32");
    pvt_weight w;
    memset(&named, 0, sizeof named);
    bool good = own && pvt_model_save(s->dense, "m", NULL) == PVT_OK &&
                pvt_model_save(s->student, "aq", NULL) == PVT_OK &&
                pvt_model_save(own, "own", NULL) == PVT_OK &&
                pvt_model_export(s->dense, "gguf:f16", "x.gguf", NULL) == PVT_OK &&
                pvt_model_export(s->dense, "gguf:q8_0", "q.gguf", NULL) == PVT_OK;
    for (int64_t i = 0; own && i < pvt_model_tensors(own); i++) {
        pvt_tensor_info t = pvt_model_tensor(own, i);
        if (t.weight) named.name = "w", named.weight = (pvt_weight *)(uintptr_t)t.weight;
    }
    good = good && pvt_weights_save("w.safetensors", &named, 1, true) == PVT_OK;
    pvt_model_free(own);
    memset(&w, 0, sizeof w);
    good = good && sample_write(s, "m/chat_template.jinja", sample_template) == PVT_OK &&
           sample_write(s, "text.txt", "abab baab cab abc\n\xc3\xa9t\xc3\xa9 end") == PVT_OK;
    for (int i = 0; i < SAMPLE_LINES && good; i++) {
        char path[40];
        snprintf(path, sizeof path, "lines%d.jsonl", i);
        good = sample_write(s, path, sample_lines[i]) == PVT_OK;
    }
    return good;
}

/* False: printed why. s->d has begun. */
static bool samples_make(samples *s, disk *d, const pvt_allocator *allocator)
{
    int32_t ids[160];
    memset(s, 0, sizeof *s);
    s->d = s->user.d = d, d->safe = true;
    s->ctx = samples_ctx(&s->user, allocator, 3);
    if (!s->ctx) return false;
    for (int i = 0; i < 160; i++) ids[i] = (i * i + 3) % 256;
    bool good = pvt_corpus_from_ids(s->ctx, ids, 160, &s->corpus) == PVT_OK &&
                (s->dense = sample_model(s->ctx)) != NULL &&
                (s->student = sample_codes(s, "aqlm:1x2g4")) != NULL;
    good = good && samples_files(s) && samples_tokenizers(s) && samples_tuning(s);
    if (!good) printf("samples: %s\n", pvt_ctx_error(s->ctx));
    if (good) s->bytes = pvt_model_tokenizer(s->dense);
    return good && !d->full;
}

static void samples_end(samples *s)
{
    pvt_corpus_free(&s->corpus);
    pvt_model_free(s->dense), pvt_model_free(s->student);
    pvt_ctx_destroy(s->ctx);
    memset(s, 0, sizeof *s);
}

#endif
