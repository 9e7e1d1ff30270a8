/*  Every call that the library makes to its allocator and to the system fails once, in every function of the
    interface that makes any: one table of functions, one loop. After each failure the function has said so,
    with a code that fits and a sentence, or has done its work all the same, to the same result; it has given
    back every byte; and called again it succeeds. (test_faults and test_power look at what a save leaves.) */
#include "../pvtune.h"
#include "disk.h"
#include "samples.h"
#include "test.h"

#include <time.h>

static samples s;
static disk whole; /* with the samples, as they were made */

/* ---- an allocator of which one call fails, or all from one on ---- */

static struct {
    int64_t n, at, live, fired;
    bool onwards;
} memory = {0, -1, 0, 0, false};
static void *bad_alloc(size_t bytes, void *user)
{
    int64_t n = memory.n++;
    (void)user;
    if (memory.at >= 0 && (memory.onwards ? n >= memory.at : n == memory.at))
        return memory.fired++, (void *)NULL;
    memory.live++;
    return malloc(bytes);
}
static void bad_free(void *p, void *user)
{
    (void)user;
    if (p) memory.live--;
    free(p);
}

/* ---- the functions: each makes, hashes and frees ---- */

static uint64_t made; /* what the last call came to */

static void hash_more(const void *data, int64_t bytes) { made = disk_hash(made, data, bytes); }
static void hash_weight(const pvt_weight *w)
{
    static pvt_real values[1 << 14];
    if (w->O * w->I > 1 << 14) return;
    pvt_weight_dequantize(w, values);
    hash_more(values, w->O * w->I * (int64_t)sizeof *values);
}
static void hash_tokenizer(const pvt_tokenizer *t)
{
    int64_t bytes, n = t ? pvt_tokenizer_get_info(t).vocab : -1;
    hash_more(&n, 8);
    for (int32_t id = 0; id < n; id++) {
        const char *piece = pvt_tokenizer_piece(t, -1, id, &bytes);
        hash_more(piece, bytes);
    }
}
static void hash_model(const pvt_model *model)
{
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        if (t.weight) hash_weight(t.weight);
        else hash_more(t.values, t.n * (int64_t)sizeof *t.values);
    }
    hash_tokenizer(pvt_model_tokenizer(model));
}
static void hash_disk(void)
{
    uint64_t view = disk_view(s.d, DISK_ROOT, false);
    hash_more(&view, 8);
}

static pvt_result load_model(const char *path)
{
    pvt_model *model = NULL;
    pvt_result result = pvt_model_load(s.ctx, path, NULL, &model);
    if (result == PVT_OK) hash_model(model);
    else CHECK(model == NULL);
    pvt_model_free(model);
    return result;
}
static pvt_result load_dense(void) { return load_model("m"); }
static pvt_result load_aqlm(void) { return load_model("aq"); }
static pvt_result load_own(void) { return load_model("own"); }
static pvt_result load_gguf(void) { return load_model("x.gguf"); }
static pvt_result load_blocks(void) { return load_model("q.gguf"); }
static pvt_result load_llama2c(void) { return load_model("x.bin"); }

static pvt_result load_tokenizer(const char *path)
{
    pvt_tokenizer *t = NULL;
    pvt_result result = pvt_tokenizer_load(s.ctx, path, &t);
    if (result == PVT_OK) hash_tokenizer(t);
    pvt_tokenizer_free(t);
    return result;
}
static pvt_result load_tokenizer_json(void) { return load_tokenizer("m/tokenizer.json"); }
static pvt_result load_tokenizer_directory(void) { return load_tokenizer("t"); }
static pvt_result load_tokenizer_model(void) { return load_tokenizer("t/tokenizer.model"); }
static pvt_result load_tokenizer_bin(void) { return load_tokenizer("t.bin"); }
static pvt_result load_tokenizer_gguf(void) { return load_tokenizer("x.gguf"); }
static pvt_result create_bytes(void)
{
    pvt_tokenizer *t = NULL;
    pvt_result result = pvt_tokenizer_create_bytes(s.ctx, &t);
    if (result == PVT_OK) hash_tokenizer(t);
    pvt_tokenizer_free(t);
    return result;
}
static pvt_result save_tokenizer(void)
{
    pvt_result result = pvt_tokenizer_save(s.bytes, "t");
    hash_disk();
    return result;
}
static pvt_tokenizer *pieces; /* of t.bin, made by main */
static pvt_result save_pieces(void)
{
    pvt_result result = pvt_tokenizer_save(pieces, "m");
    hash_disk();
    return result;
}
static pvt_result encode(void)
{
    int32_t *ids = NULL;
    int64_t n = 0;
    pvt_result result =
        pvt_tokenizer_encode(pieces, " abc ab abcabc\n\xc3\xa9", -1, PVT_ENCODE_BOS_ALWAYS, &ids, &n);
    if (result == PVT_OK) hash_more(ids, n * 4);
    pvt_ids_free(s.ctx, ids);
    return result;
}
static pvt_result decode(void)
{
    static const int32_t ids[] = {1, 260, 263, 100, 264};
    char *text = NULL;
    int64_t bytes = 0;
    pvt_result result = pvt_tokenizer_decode(pieces, ids, 5, 0, &text, &bytes);
    if (result == PVT_OK) hash_more(text, bytes);
    pvt_text_free(s.ctx, text);
    return result;
}

static pvt_result save_as(const pvt_model *model, const char *dir)
{
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true, desc.card = "more";
    pvt_result result = pvt_model_save(model, dir, &desc);
    hash_disk();
    return result;
}
static pvt_result save_new(void) { return save_as(s.dense, "new/dir"); }
static pvt_result save_over(void) { return save_as(s.student, "m"); }
static pvt_result export_as(const pvt_model *model, const char *target, const char *path)
{
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    pvt_result result = pvt_model_export(model, target, path, &desc);
    hash_disk();
    return result;
}
static pvt_model *packed, *symmetric; /* int:4g32 and int:4g32s, made by main */
static pvt_result export_gguf(void) { return export_as(s.dense, "gguf:q8_0", "x.gguf"); }
static pvt_result export_dense(void) { return export_as(s.student, "dense", "m"); }
static pvt_result export_aqlm(void) { return export_as(s.student, "hf-aqlm", "e"); }
static pvt_result export_gptq(void) { return export_as(symmetric, "gptq", "e"); }
static pvt_result export_compressed(void) { return export_as(symmetric, "compressed-tensors", "e"); }
static pvt_result export_mlx(void) { return export_as(packed, "mlx", "e"); }
static pvt_result exists(void)
{
    bool found = pvt_model_exists(s.ctx, "m");
    hash_more(&found, 1);
    return PVT_OK;
}

static pvt_result load_weights(void)
{
    pvt_weight w;
    pvt_named_weight named = {"w", NULL};
    memset(&w, 0, sizeof w);
    named.weight = &w;
    pvt_result result = pvt_weights_load(s.ctx, "w.safetensors", &named, 1);
    if (result == PVT_OK) hash_weight(&w);
    pvt_weight_free(&w);
    return result;
}
static pvt_weight *some_weight(pvt_model *model)
{
    for (int64_t i = pvt_model_tensors(model) - 1;; i--)
        if (pvt_model_tensor(model, i).weight)
            return (pvt_weight *)(uintptr_t)pvt_model_tensor(model, i).weight;
}
static pvt_result save_weights(void)
{
    pvt_named_weight named = {"w", some_weight(s.student)};
    pvt_result result = pvt_weights_save("w.safetensors", &named, 1, true);
    hash_disk();
    return result;
}
static pvt_result open_tensors(void)
{
    pvt_tensors *t = NULL;
    pvt_result result = pvt_tensors_open(s.ctx, "w.safetensors", &t);
    for (int64_t i = 0; result == PVT_OK && i < pvt_tensors_count(t); i++) {
        pvt_array a = pvt_tensors_get(t, i);
        hash_more(a.data, a.bytes);
    }
    pvt_tensors_close(t);
    return result;
}
static pvt_result save_tensors(void)
{
    static const float numbers[3] = {1, 2, 3};
    pvt_array a;
    memset(&a, 0, sizeof a);
    a.name = "x", a.dtype = PVT_F32, a.rank = 1, a.shape[0] = 3, a.bytes = 12, a.data = numbers;
    pvt_result result = pvt_tensors_save(s.ctx, "w.safetensors", &a, 1);
    hash_disk();
    return result;
}
static pvt_result write_file(void)
{
    pvt_result result = pvt_file_write(s.ctx, "text.txt", "anything", 8);
    hash_disk();
    return result;
}

static pvt_result fit_as(const char *format)
{
    static pvt_real W[32 * 32], H[32 * 32];
    pvt_format f;
    pvt_weight w;
    memset(&w, 0, sizeof w);
    for (int i = 0; i < 32 * 32; i++) W[i] = (pvt_real)(i * i % 37 - 18) / 16, H[i] = (pvt_real)(i % 33 == 0);
    CHECK_OK(s.ctx, pvt_format_parse(s.ctx, format, &f));
    pvt_result result = pvt_weight_fit(s.ctx, W, 32, 32, H, &f, NULL, NULL, &w);
    if (result == PVT_OK) result = pvt_weight_prepare(&w);
    if (result == PVT_OK) hash_weight(&w);
    pvt_weight_free(&w);
    return result;
}
static pvt_result fit_aqlm(void) { return fit_as("aqlm:2x3g8"); }
static pvt_result fit_int(void) { return fit_as("had2:int:3g32"); }
static pvt_result fit_higgs(void) { return fit_as("had:higgs:p1n4"); }
static pvt_result weight_again(void) /* from its arrays; dense; a chain */
{
    static pvt_real dW[32 * 32], values[2][4096];
    const pvt_weight *w = some_weight(s.student);
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_real *sums[PVT_MAX_ARRAYS] = {NULL, values[0], values[1], NULL};
    pvt_weight copy, dense;
    memset(&copy, 0, sizeof copy), memset(&dense, 0, sizeof dense), memset(values, 0, sizeof values);
    for (int i = 0; i < 32 * 32; i++) dW[i] = (pvt_real)(i % 7);
    int n = pvt_weight_arrays(w, arrays);
    pvt_result result = pvt_weight_from_arrays(s.ctx, &w->format, w->O, w->I, arrays, n, "w", &copy);
    if (result == PVT_OK) result = pvt_weight_dense(s.ctx, NULL, 8, 8, &dense);
    if (result == PVT_OK) result = pvt_weight_chain(sums, &copy, dW);
    if (result == PVT_OK) hash_weight(&copy), hash_more(values, (int64_t)sizeof values);
    pvt_weight_free(&copy), pvt_weight_free(&dense);
    return result;
}
static pvt_result pv_steps(void)
{
    static pvt_real dW[32 * 32], dp[4] = {1, 2, 3, 4};
    pvt_real p[4] = {1, 2, 3, 4};
    const pvt_weight *w = some_weight(s.student);
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_weight copy;
    pvt_pv *pv = NULL;
    int first, second;
    memset(&copy, 0, sizeof copy);
    for (int i = 0; i < 32 * 32; i++) dW[i] = (pvt_real)(i % 7 - 3);
    pvt_result result = pvt_weight_from_arrays(s.ctx, &w->format, w->O, w->I, arrays,
                                               pvt_weight_arrays(w, arrays), "w", &copy);
    if (result == PVT_OK) result = pvt_pv_create(s.ctx, NULL, &pv);
    if (result == PVT_OK) result = pvt_pv_add_weight(pv, &copy, "w", &first);
    if (result == PVT_OK) result = pvt_pv_add_param(pv, p, 4, "p", &second);
    if (result == PVT_OK) result = pvt_pv_begin(pv, 1);
    if (result == PVT_OK) result = pvt_pv_apply(pv, first, dW);
    if (result == PVT_OK) result = pvt_pv_apply(pv, second, dp);
    if (result == PVT_OK) result = pvt_pv_end(pv, NULL);
    if (result == PVT_OK) hash_weight(&copy), hash_more(p, (int64_t)sizeof p);
    pvt_pv_free(pv), pvt_weight_free(&copy);
    return result;
}

static pvt_result create_model(void)
{
    pvt_model_config c = *pvt_model_get_config(s.dense);
    pvt_model *model = NULL, *copy = NULL;
    pvt_result result = pvt_model_create(s.ctx, &c, &model);
    if (result == PVT_OK) result = pvt_model_copy(s.ctx, s.student, &copy);
    if (result == PVT_OK) result = pvt_model_prepare(copy, true);
    if (result == PVT_OK) result = pvt_model_round_f16(copy);
    if (result == PVT_OK) hash_model(model), hash_model(copy);
    pvt_model_free(model), pvt_model_free(copy);
    return result;
}
static pvt_result run_model(void)
{
    static const int32_t ids[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    pvt_run_desc desc;
    pvt_run *run = NULL;
    double sum = 0;
    int64_t n = 0;
    memset(&desc, 0, sizeof desc);
    desc.train = desc.accumulate = true, desc.max_ctx = 8;
    pvt_result result = pvt_run_create(s.student, &desc, &run);
    if (result == PVT_OK) result = pvt_run_forward(run, ids, 1, 8, NULL);
    if (result == PVT_OK) result = pvt_run_backward(run, NULL, &sum, &n, NULL, NULL);
    if (result == PVT_OK) hash_more(&sum, 8);
    pvt_run_free(run);
    return result;
}
static pvt_result load_text(const char *path)
{
    pvt_corpus c;
    pvt_result result = pvt_corpus_load(s.ctx, path, s.bytes, &c);
    if (result == PVT_OK) hash_more(c.ids, c.n * 4);
    pvt_corpus_free(&c);
    return result;
}
static pvt_result load_plain(void) { return load_text("text.txt"); }
static pvt_result load_lines(void) { return load_text("lines5.jsonl"); }
static pvt_result text_in_memory(void)
{
    pvt_corpus c, d;
    memset(&c, 0, sizeof c), memset(&d, 0, sizeof d);
    pvt_result result = pvt_corpus_from_text(s.ctx, sample_lines[5], -1, s.bytes, &c);
    if (result == PVT_OK) result = pvt_corpus_from_ids(s.ctx, c.ids, c.n, &d);
    if (result == PVT_OK) hash_more(d.ids, d.n * 4);
    pvt_corpus_free(&c), pvt_corpus_free(&d);
    return result;
}
static pvt_result perplexity(void)
{
    pvt_ppl_desc desc;
    pvt_ppl ppl;
    memset(&desc, 0, sizeof desc);
    desc.ctx = 16, desc.last = 3;
    pvt_result result = pvt_perplexity(s.student, &s.corpus, &desc, &ppl);
    if (result == PVT_OK) hash_more(&ppl.nll_sum, 8);
    return result;
}
static pvt_result generate(void)
{
    static const int32_t prompt[3] = {'a', 'b', 'c'};
    pvt_generate_desc desc;
    pvt_generated g;
    memset(&desc, 0, sizeof desc), memset(&g, 0, sizeof g);
    desc.n = 4, desc.temperature = 1, desc.top_p = 0.9, desc.top_k = 20, desc.repeat_penalty = 1.1;
    pvt_result result = pvt_generate(s.student, prompt, 3, &desc, &g);
    if (result == PVT_OK) hash_more(g.ids, g.n * 4);
    pvt_ids_free(s.ctx, g.ids);
    return result;
}
static pvt_result generate_many(void)
{
    static const int32_t a[2] = {'a', 'b'}, b[3] = {'c', 'd', 'e'};
    const int32_t *const prompts[2] = {a, b};
    static const int64_t n[2] = {2, 3};
    pvt_generate_desc desc;
    pvt_generated g[2];
    memset(&desc, 0, sizeof desc), memset(g, 0, sizeof g);
    desc.n = 3;
    pvt_result result = pvt_generate_many(s.student, prompts, n, 2, &desc, g);
    for (int i = 0; i < 2 && result == PVT_OK; i++) {
        hash_more(g[i].ids, g[i].n * 4);
        pvt_ids_free(s.ctx, g[i].ids);
    }
    return result;
}
static pvt_result load_task(int i)
{
    pvt_task task;
    char path[40];
    snprintf(path, sizeof path, "lines%d.jsonl", i);
    pvt_result result = pvt_task_load(s.ctx, path, s.bytes, NULL, &task);
    for (int64_t k = 0; result == PVT_OK && k < task.n_choices; k++)
        hash_more(task.choices[k].ids, task.choices[k].n * 4);
    pvt_task_free(&task);
    return result;
}
static pvt_result load_arc(void) { return load_task(0); }
static pvt_result load_lambada(void) { return load_task(5); }
static pvt_result load_plain_task(void) { return load_task(6); }
static pvt_result load_requests(void) { return load_task(8); }
static pvt_task scored; /* made by main */
static pvt_result score_task(void)
{
    pvt_score score;
    pvt_result result = pvt_task_score(s.student, &scored, NULL, &score);
    if (result == PVT_OK) hash_more(&score.acc, 8);
    return result;
}
static pvt_tokenizer *chatty; /* with a template, made by main */
static pvt_result chat(void)
{
    static const pvt_message messages[2] = {{"system", "be"}, {"user", "hello"}};
    const char *kind = "";
    char *text = NULL;
    pvt_result result = pvt_chat_kind(chatty, &kind);
    if (result == PVT_OK) result = pvt_chat_prompt(chatty, messages, 2, NULL, &text);
    if (result == PVT_OK) hash_more(kind, (int64_t)strlen(kind)), hash_more(text, (int64_t)strlen(text));
    pvt_text_free(s.ctx, text);
    return result;
}

static pvt_result quantize_with(pvt_quantize_desc *q, const char *format)
{
    pvt_model *model = NULL;
    CHECK_OK(s.ctx, pvt_format_parse(s.ctx, format, &q->format));
    q->samples = 1, q->ctx = 8;
    pvt_result result = pvt_model_copy(s.ctx, s.dense, &model);
    if (result == PVT_OK) result = pvt_quantize(model, &s.corpus, q);
    if (result == PVT_OK) hash_model(model); /* (checkpoints hold times) */
    pvt_model_free(model);
    return result;
}
static pvt_result quantize(void)
{
    pvt_quantize_desc q;
    memset(&q, 0, sizeof q);
    q.checkpoint = "q", q.embedding = true, q.finetune_epochs = -1, q.fit.method = PVT_FIT_RTN;
    return quantize_with(&q, "int:2g32");
}
static pvt_result quantize_on(void)
{
    pvt_quantize_desc q;
    memset(&q, 0, sizeof q);
    q.checkpoint = "q", q.resume = true, q.finetune_epochs = -1;
    return quantize_with(&q, "aqlm:1x2g4");
}
static pvt_result quantize_to_plan(void)
{
    pvt_quantize_desc q;
    pvt_plan plan[1];
    pvt_pv_desc finetune;
    memset(&q, 0, sizeof q), memset(&finetune, 0, sizeof finetune), memset(plan, 0, sizeof plan);
    plan[0].tensor = "model.layers.0.mlp.up_proj.weight";
    q.fit.method = PVT_FIT_RTN;
    CHECK_OK(s.ctx, pvt_format_parse(s.ctx, "int:4g16", &plan[0].format));
    q.plan = plan, q.n_plan = 1, q.finetune = &finetune;
    return quantize_with(&q, "int:2g32");
}
static pvt_result alpha(void)
{
    double numbers[64];
    pvt_alpha_desc desc;
    memset(&desc, 0, sizeof desc), memset(numbers, 0, sizeof numbers);
    desc.samples = 1, desc.ctx = 8;
    pvt_result result = pvt_model_alpha(s.dense, &s.corpus, &desc, numbers);
    desc.method = PVT_ALPHA_NOISE;
    if (result == PVT_OK) result = pvt_model_alpha(s.dense, &s.corpus, &desc, numbers + 32);
    if (result == PVT_OK) hash_more(numbers, (int64_t)sizeof numbers);
    return result;
}
static pvt_result feedback(void)
{
    double numbers[64];
    pvt_alpha_desc desc;
    pvt_format probe;
    memset(&desc, 0, sizeof desc);
    desc.samples = 1, desc.ctx = 8;
    CHECK_OK(s.ctx, pvt_format_parse(s.ctx, "int:2g32", &probe));
    pvt_result result = pvt_model_feedback(s.dense, &s.corpus, &desc, &probe, numbers);
    if (result == PVT_OK) hash_more(numbers, pvt_model_tensors(s.dense) * (int64_t)sizeof *numbers);
    return result;
}
static pvt_result allocate(void)
{
    double errors[64];
    int64_t bytes[64];
    int choice[32];
    pvt_format formats[2];
    int64_t n = pvt_model_tensors(s.dense);
    CHECK_OK(s.ctx, pvt_format_parse(s.ctx, "int:2g32", &formats[0]));
    CHECK_OK(s.ctx, pvt_format_parse(s.ctx, "dense", &formats[1]));
    pvt_result result = pvt_model_errors(s.dense, formats, 2, NULL, NULL, errors, bytes);
    if (result == PVT_OK) result = pvt_allocate(s.ctx, errors, bytes, n, 2, 20000, choice, NULL);
    if (result == PVT_OK) hash_more(choice, n * (int64_t)sizeof *choice);
    return result;
}
static pvt_result tune_with(bool resume)
{
    pvt_model *student = NULL;
    pvt_tuner *tuner = NULL;
    pvt_tune_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.steps = 4, desc.batch = 1, desc.ctx = 16, desc.eval_windows = 1, desc.delta_from = 0.5,
    desc.pv.delta = 0.1;
    pvt_result result = pvt_model_copy(s.ctx, s.student, &student);
    if (result == PVT_OK) result = pvt_tuner_create(student, s.dense, &s.corpus, &desc, &tuner);
    if (result == PVT_OK && resume) result = pvt_tuner_resume(tuner, "c.safetensors");
    if (result == PVT_OK) result = pvt_tuner_step(tuner, NULL);
    if (result == PVT_OK) result = pvt_tuner_save(tuner, "c2.safetensors");
    if (result == PVT_OK && !resume) result = pvt_tuner_finish(tuner, NULL);
    if (result == PVT_OK) hash_model(student), hash_disk();
    pvt_tuner_free(tuner), pvt_model_free(student);
    return result;
}
static pvt_result tune(void) { return tune_with(false); }
static pvt_result tune_on(void) { return tune_with(true); }
static pvt_result tune_whole(void)
{
    pvt_model *student = NULL;
    pvt_tune_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.steps = 2, desc.batch = 2, desc.micro_batch = 1, desc.ctx = 16, desc.cross_entropy = true;
    pvt_result result = pvt_model_copy(s.ctx, s.student, &student);
    if (result == PVT_OK) result = pvt_tune(student, NULL, &s.corpus, &desc, NULL);
    if (result == PVT_OK) hash_model(student);
    pvt_model_free(student);
    return result;
}
static pvt_result device_memory(void)
{
    void *p = pvt_memory_alloc(s.ctx, 100);
    if (p) memset(p, 1, 100), hash_more(p, 100);
    pvt_memory_free(s.ctx, p);
    return p ? PVT_OK : PVT_ERR_MEMORY;
}

typedef struct entry {
    const char *name;
    pvt_result (*call)(void);
    bool files;
    int step; /* every so manieth call fails: the code is another one's; 0: every one */
} entry;
static const entry entries[] = {
    {"pvt_model_load, dense", load_dense, true, 0},
    {"pvt_model_load, aqlm", load_aqlm, true, 0},
    {"pvt_model_load, own layout", load_own, true, 0},
    {"pvt_model_load, GGUF", load_gguf, true, 0},
    {"pvt_model_load, GGUF blocks", load_blocks, true, 0},
    {"pvt_model_load, llama2.c", load_llama2c, true, 0},
    {"pvt_model_exists", exists, false, 0},
    {"pvt_model_create, copy, prepare, round", create_model, false, 0},
    {"pvt_model_save, new", save_new, true, 0},
    {"pvt_model_save, over another", save_over, true, 0},
    {"pvt_model_export, gguf", export_gguf, true, 0},
    {"pvt_model_export, dense", export_dense, true, 0},
    {"pvt_model_export, hf-aqlm", export_aqlm, true, 0},
    {"pvt_model_export, gptq", export_gptq, true, 0},
    {"pvt_model_export, compressed-tensors", export_compressed, true, 5},
    {"pvt_model_export, mlx", export_mlx, true, 5},
    {"pvt_tokenizer_load, json", load_tokenizer_json, true, 0},
    {"pvt_tokenizer_load, directory", load_tokenizer_directory, true, 0},
    {"pvt_tokenizer_load, model", load_tokenizer_model, true, 0},
    {"pvt_tokenizer_load, bin", load_tokenizer_bin, true, 0},
    {"pvt_tokenizer_load, GGUF", load_tokenizer_gguf, true, 0},
    {"pvt_tokenizer_create_bytes", create_bytes, false, 0},
    {"pvt_tokenizer_save, bytes", save_tokenizer, true, 0},
    {"pvt_tokenizer_save, pieces", save_pieces, true, 0},
    {"pvt_tokenizer_encode", encode, false, 0},
    {"pvt_tokenizer_decode", decode, false, 0},
    {"pvt_weights_load", load_weights, true, 0},
    {"pvt_weights_save", save_weights, true, 0},
    {"pvt_tensors_open", open_tensors, true, 0},
    {"pvt_tensors_save", save_tensors, true, 0},
    {"pvt_file_write", write_file, true, 0},
    {"pvt_weight_fit, aqlm", fit_aqlm, false, 0},
    {"pvt_weight_fit, int", fit_int, false, 0},
    {"pvt_weight_fit, higgs", fit_higgs, false, 0},
    {"pvt_weight_from_arrays, dense, chain", weight_again, false, 0},
    {"pvt_pv_…", pv_steps, false, 0},
    {"pvt_run_…", run_model, false, 0},
    {"pvt_corpus_load, plain", load_plain, true, 0},
    {"pvt_corpus_load, lines", load_lines, true, 0},
    {"pvt_corpus_from_text, ids", text_in_memory, false, 0},
    {"pvt_perplexity", perplexity, false, 0},
    {"pvt_generate", generate, false, 0},
    {"pvt_generate_many", generate_many, false, 0},
    {"pvt_task_load, arc", load_arc, true, 0},
    {"pvt_task_load, lambada", load_lambada, true, 0},
    {"pvt_task_load, plain", load_plain_task, true, 0},
    {"pvt_task_load, requests", load_requests, true, 0},
    {"pvt_task_score", score_task, false, 0},
    {"pvt_chat_…", chat, true, 0},
    {"pvt_quantize, checkpoints", quantize, true, 0},
    {"pvt_quantize, resumed", quantize_on, true, 0},
    {"pvt_quantize, plan and fine-tuning", quantize_to_plan, false, 0},
    {"pvt_model_alpha", alpha, false, 0},
    {"pvt_model_feedback", feedback, false, 0},
    {"pvt_model_errors, pvt_allocate", allocate, false, 0},
    {"pvt_tuner_…", tune, true, 0},
    {"pvt_tuner_resume", tune_on, true, 0},
    {"pvt_tune", tune_whole, false, 0},
    {"pvt_memory_alloc", device_memory, false, 0},
};

/* ---- the loop ---- */

static struct {
    int64_t allocations, calls, tolerated, interrupted, full, shortened, reads;
} count;
static int64_t said;

static void again_whole(void) /* the disk as it was made */
{
    disk_end(s.d);
    disk_lend(&whole, s.d);
    s.d->safe = true;
}
static pvt_result call_once(const entry *e)
{
    made = 1;
    ((char *)(uintptr_t)pvt_ctx_error(s.ctx))[0] = 0; /* the sentence must be a new one */
    return e->call();
}

static void complain(const entry *e, const char *what, int64_t at, const char *kind, pvt_result result)
{
    if (said++ < 40)
        printf("    %s, %s %lld: %s (%s: %s)\n", e->name, kind, (long long)at, what, pvt_result_text(result),
               pvt_ctx_error(s.ctx));
}

/* After a call of which something failed; `wanted`: the code that it must have, or PVT_OK with the right
   result where that may be. */
static bool judge(const entry *e, pvt_result result, pvt_result wanted, bool may, uint64_t right,
                  int64_t bytes, int64_t at, const char *kind)
{
    const char *wrong = NULL;
    int64_t now = pvt_ctx_get_info(s.ctx).bytes_now;
    if (now != bytes) wrong = "memory is not given back";
    else if (result == PVT_OK ? !may : result != wanted)
        wrong = result == PVT_OK ? "not noticed" : "another code";
    else if (result == PVT_OK && made != right) wrong = "passed over, to another result";
    else if (result != PVT_OK && !pvt_ctx_error(s.ctx)[0]) wrong = "no sentence";
    if (wrong) complain(e, wrong, at, kind, result);
    return !wrong;
}

/* What does not depend on the compiler is done in full once. */
#ifdef __SANITIZE_ADDRESS__ /* five times as slow */
enum { QUICK_STEP = 9 };
#else
enum { QUICK_STEP = 3 };
#endif
static int64_t step_of(const entry *e)
{
    int64_t step = getenv("PVTUNE_QUICK") ? QUICK_STEP : 1;
    return e->step > step ? e->step : step;
}

static void fail_allocations(const entry *e, uint64_t right, int64_t bytes)
{
    bool good = true;
    int64_t fired = 0;
    for (int onwards = 0; onwards < 2; onwards++)
        for (int64_t at = 0;; at += onwards ? 5 * step_of(e) : step_of(e)) {
            again_whole();
            memory.n = 0, memory.at = at, memory.onwards = onwards, memory.fired = 0;
            pvt_result result = call_once(e);
            memory.at = -1;
            if (!memory.fired) break;
            fired++;
            good &= judge(e, result, PVT_ERR_MEMORY, false, right, bytes, at,
                          onwards ? "allocations from" : "allocation");
            if (onwards || at % 4) continue;
            result = call_once(e);
            good &= judge(e, result, PVT_OK, true, made, bytes, at, "again after allocation");
        }
    CHECK(good);
    count.allocations += fired;
}

static void fail_calls(const entry *e, uint64_t right, int64_t bytes)
{
#define X(name) #name,
    static const char *const names[] = {DISK_CALLS(X)};
#undef X
    static const int codes[] = {EIO, ENOSPC, EINTR, 0};
    bool good = true;
    for (int kind = 0; kind < DISK_KINDS; kind++)
        for (int c = 0; c < 4; c++) {
            bool makes = kind == DISK_WRITE || kind == DISK_SYNC || kind == DISK_RENAME;
            bool interrupts =
                makes || kind == DISK_OPEN || kind == DISK_CLOSE || kind == DISK_READ || kind == DISK_LOCK;
            if (codes[c] == ENOSPC && !(makes || kind == DISK_OPEN || kind == DISK_MKDIR)) continue;
            if (codes[c] == EINTR && (!interrupts || kind == DISK_RENAME)) continue;
            if (codes[c] == 0 && kind != DISK_WRITE) continue;
            for (int64_t at = 0;; at += step_of(e)) {
                again_whole();
                s.d->kind = (disk_call)kind, s.d->at = at, s.d->code = codes[c];
                s.d->no_map = kind == DISK_READ;
                pvt_result result = call_once(e);
                s.d->at = -1;
                if (!s.d->fired) break;
                bool must_pass = codes[c] == EINTR || codes[c] == 0;
                count.calls++, count.tolerated += result == PVT_OK, count.interrupted += codes[c] == EINTR;
                count.full += codes[c] == ENOSPC, count.reads += kind == DISK_READ, count.shortened += codes[c] == 0;
                good &= judge(e, result, must_pass ? PVT_OK : PVT_ERR_IO, must_pass || !makes, right, bytes,
                              at, names[kind]);
                if (must_pass) continue;
                result = call_once(e);
                good &= judge(e, result, PVT_OK, true, made, bytes, at, "again after a call");
            }
        }
    CHECK(good);
}

static void test_entry(const entry *e)
{
    again_whole();
    for (int i = 0; i < 2; i++) { /* the first call may leave a work space to the context */
        again_whole();
        CHECK_OK(s.ctx, call_once(e));
    }
    uint64_t right = made;
    int64_t bytes = pvt_ctx_get_info(s.ctx).bytes_now, calls = count.calls;
    fail_allocations(e, right, bytes);
    if (e->files) fail_calls(e, right, bytes);
    CHECK(!e->files || count.calls > calls + (step_of(e) > 1 ? 1 : 3));
    if (getenv("PVTUNE_VERBOSE")) printf("%8.3f s  %s\n", (double)clock() / CLOCKS_PER_SEC, e->name);
    again_whole();
    CHECK(call_once(e) == PVT_OK && made == right && pvt_ctx_get_info(s.ctx).bytes_now == bytes);
}

/* The context itself, whose first work spaces are not there yet. */
static void test_contexts(void)
{
    const pvt_allocator bad = {bad_alloc, bad_free, NULL};
    int64_t live = memory.live, at;
    char why[200];
    bool good = true;
    for (at = 0;; at++) {
        pvt_ctx_desc desc;
        pvt_ctx *ctx = NULL;
        memset(&desc, 0, sizeof desc);
        desc.n_threads = 1, desc.allocator = bad, desc.error = why, desc.error_bytes = sizeof why;
        memory.n = 0, memory.at = at, memory.onwards = false, memory.fired = 0;
        pvt_result result = pvt_ctx_create(&desc, &ctx);
        memory.at = -1;
        pvt_ctx_destroy(ctx);
        if (!memory.fired) break;
        good &= result == PVT_ERR_MEMORY && !ctx && why[0] && memory.live == live;
    }
    CHECK(good && at >= 1 && memory.live == live);
    count.allocations += at;
}

/* What the fuzzer found: two tokens of one text loaded, and what was saved of them did not. */
static void test_one_text_twice(void)
{
    pvt_tokenizer *t = NULL;
    again_whole();
    const disk_inode *f = &s.d->inode[disk_find(s.d, "t.bin")];
    char *bytes = (char *)malloc((size_t)f->size);
    int64_t size = f->size;
    memcpy(bytes, f->bytes, (size_t)size);
    bytes[size - 1] = 'e'; /* the last piece, "t", is the one before */
    CHECK_OK(s.ctx, pvt_file_write(s.ctx, "t.bin", bytes, size));
    CHECK_OK(s.ctx, pvt_tokenizer_load(s.ctx, "t.bin", &t));
    uint64_t before = disk_view(s.d, DISK_ROOT, true);
    CHECK(pvt_tokenizer_save(t, "t") == PVT_ERR_UNSUPPORTED &&
          strstr(pvt_ctx_error(s.ctx), "are both \"e\""));
    CHECK(disk_view(s.d, DISK_ROOT, true) == before);
    pvt_tokenizer_free(t);
    bytes[size - 1] = '\xfe', bytes[size - 10] = '\xff'; /* JSON has one sign for both */
    CHECK_OK(s.ctx, pvt_file_write(s.ctx, "t.bin", bytes, size));
    CHECK_OK(s.ctx, pvt_tokenizer_load(s.ctx, "t.bin", &t));
    CHECK(pvt_tokenizer_save(t, "t") == PVT_ERR_UNSUPPORTED && strstr(pvt_ctx_error(s.ctx), "are both \""));
    pvt_tokenizer_free(t);
    memset(bytes + size - 14, 0, 4), memmove(bytes + size - 10, bytes + size - 9, 4); /* both are empty */
    memset(bytes + size - 6, 0, 4);
    CHECK_OK(s.ctx, pvt_file_write(s.ctx, "t.bin", bytes, size - 2));
    CHECK_OK(s.ctx, pvt_tokenizer_load(s.ctx, "t.bin", &t));
    CHECK(pvt_tokenizer_save(t, "t") == PVT_ERR_UNSUPPORTED && strstr(pvt_ctx_error(s.ctx), "are both \"\""));
    pvt_tokenizer_free(t);
    free(bytes);
}

int main(void)
{
    static disk d;
    const pvt_allocator bad = {bad_alloc, bad_free, NULL};
    disk_lost none = {0, 0, 0};
    const char *only = getenv("PVTUNE_ENTRY");
    disk_begin(&d);
    if (!samples_make(&s, &d, &bad)) return 1;
    disk_cut(&d, DISK_ALL_STAYS, &whole, &none);
    packed = sample_codes(&s, "int:4g32");
    symmetric = sample_codes(&s, "int:4g32s");
    CHECK(packed && symmetric);
    CHECK_OK(s.ctx, pvt_tokenizer_load(s.ctx, "t.bin", &pieces));
    CHECK_OK(s.ctx, pvt_tokenizer_load(s.ctx, "m", &chatty));
    CHECK_OK(s.ctx, pvt_task_load(s.ctx, "lines6.jsonl", s.bytes, NULL, &scored));
    for (int i = 0; i < (int)(sizeof entries / sizeof *entries); i++)
        if (!only || strstr(entries[i].name, only)) test_entry(&entries[i]);
    test_contexts();
    test_one_text_twice();
    if (!only)
        CHECK(count.allocations > 500 && count.calls > 200 && count.interrupted > 50 && count.full > 50 &&
              count.shortened > 8 && count.reads > 50);
    printf(
        "%d functions: %lld allocations failed, %lld calls of the system (%lld made no difference, %lld were "
        "interrupted, %lld found a full disk, %lld wrote little)\n",
        (int)(sizeof entries / sizeof *entries), (long long)count.allocations, (long long)count.calls,
        (long long)count.tolerated, (long long)count.interrupted, (long long)count.full,
        (long long)count.shortened);
    pvt_task_free(&scored), pvt_tokenizer_free(pieces), pvt_tokenizer_free(chatty), pvt_model_free(packed),
        pvt_model_free(symmetric);
    samples_end(&s);
    CHECK(memory.live == 0);
    disk_end(&d), disk_end(&whole);
    return test_end();
}
