/*  Holds models against figures from public implementations: logits, losses and gradients of tiny
    models of each family and AQLM checkpoints, from tests/golden (made by make.py there) and, where they are, larger
    ones from ../shared/golden, with the llama2.c checkpoints and SmolLM2-135M. What is not there is
    skipped with a line. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

#define SMALL "tests/golden/"
#define GOLDEN "../shared/golden/"
#define DATA "../shared/data/"
#ifndef SMOLLM2
#define SMOLLM2 "build/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#endif

static pvt_ctx *ctx;

static const char *path_of(const char *dir, const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s%s", dir, name);
    return path;
}

/* Opens dir/name; false (and a failure) when it cannot be. */
static bool open_tensors(const char *dir, const char *name, pvti_safetensors *st)
{
    pvt_result result = pvti_safetensors_open(ctx, path_of(dir, name), st);
    CHECK_OK(ctx, result);
    return result == PVT_OK;
}

static double json_number(const char *path, const char *key)
{
    pvti_map map;
    pvti_json j;
    double value = NAN;
    if (pvti_json_open(ctx, path, &map, &j) != PVT_OK) return NAN;
    pvti_json_number(&j, pvti_json_find(&j, 0, key), &value);
    pvti_json_free(&j);
    pvti_map_close(ctx, &map);
    return value;
}

/* The numbers of a tensor, to be freed; and its int32 view. */
static pvt_real *numbers(const pvti_safetensors *st, const char *name, int64_t *n)
{
    const pvti_tensor *t = pvti_safetensors_find(st, name);
    if (!t) return NULL;
    *n = pvti_tensor_count(t);
    pvt_real *out = (pvt_real *)malloc((size_t)*n * sizeof *out);
    pvti_dtype_info(t->dtype)->decode(t->data, out, *n);
    return out;
}
static int32_t *integers(const pvti_safetensors *st, const char *name, const pvti_tensor **t)
{
    *t = pvti_safetensors_find(st, name);
    if (!*t || (*t)->dtype != PVT_I32) return NULL;
    int32_t *out = (int32_t *)malloc((size_t)(*t)->bytes + 1);
    memcpy(out, (*t)->data, (size_t)(*t)->bytes);
    return out;
}

/* The largest excess of |a − b| over tolerance + relative·|b|, at least 0, as the difference itself. */
static double worst(const pvt_real *a, const pvt_real *b, int64_t n, double relative)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) {
        double off = fabs((double)a[i] - (double)b[i]) - relative * fabs((double)b[i]);
        if (!(off <= most)) most = off;
    }
    return most;
}

/* The gradient of tensor i in the file, or the rows of it in that of the matrix that it is a part of there.
   */
static pvt_real *golden_gradient(const pvt_model *model, int64_t i, const pvti_safetensors *st, int64_t *n,
                                 bool *part)
{
    pvt_tensor_info t = pvt_model_tensor(model, i);
    *part = t.whole[0] != 0;
    pvt_real *golden = numbers(st, *part ? t.whole : t.name, n);
    if (!golden || !*part) return golden;
    CHECK(*n == t.whole_rows * t.weight->I && t.whole_row + t.weight->O <= t.whole_rows);
    *n = t.n;
    memmove(golden, golden + t.whole_row * t.weight->I, (size_t)t.n * sizeof *golden);
    *part = t.whole_row > 0; /* the first one counts */
    return golden;
}

/* Every gradient that the file has, by name; codebooks and scales through the chain rule. */
static void check_gradients(const pvt_model *model, const pvt_run *run, const char *dir, const char *label)
{
    pvti_safetensors st;
    double most = 0;
    int64_t n, compared = 0;
    char name[128];
    if (!open_tensors(dir, "grads.safetensors", &st)) return;
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        const pvt_weight *w = t.weight;
        bool part;
        pvt_real *golden = golden_gradient(model, i, &st, &n, &part);
        CHECK(golden != NULL && n == t.n);
        if (!golden || n != t.n) continue;
        compared += !part;
        most = fmax(most, worst(pvt_run_grad(run, i), golden, n, 1e-4));
        free(golden);
        if (!w || w->format.kind == PVT_FORMAT_DENSE) continue;
        {
            int64_t books = w->format.codebooks * ((int64_t)1 << w->format.bits) * w->format.in_group *
                            w->format.out_group;
            int64_t scales = w->O / w->format.out_group;
            pvt_real *dbooks = (pvt_real *)calloc((size_t)books, sizeof *dbooks);
            pvt_real *dscales = (pvt_real *)calloc((size_t)scales, sizeof *dscales);
            pvt_real *dvalues[PVT_MAX_ARRAYS] = {NULL, dbooks, dscales, NULL};
            int length = (int)strlen(t.name) - (int)strlen("weight");
            CHECK_OK(ctx, pvt_weight_chain(dvalues, w, pvt_run_grad(run, i)));
            snprintf(name, sizeof name, "%.*scodebooks", length, t.name);
            golden = numbers(&st, name, &n);
            CHECK(golden && n == books);
            if (golden) most = fmax(most, worst(dbooks, golden, n, 1e-4));
            free(golden);
            snprintf(name, sizeof name, "%.*sscales", length, t.name);
            golden = numbers(&st, name, &n);
            CHECK(golden && n == scales);
            if (golden) most = fmax(most, worst(dscales, golden, n, 1e-4));
            free(golden), free(dbooks), free(dscales);
            compared += 2;
        }
    }
    CHECK(compared == st.n);
    CHECK_NEAR(most, 0, 1e-5);
    printf("%s: %lld gradients within %.2g + 1e-4·|g|\n", label, (long long)compared, most);
    pvti_safetensors_close(&st);
}

static pvt_run *run_for(const pvt_model *model, int64_t B, int64_t T, bool train)
{
    pvt_run_desc desc;
    pvt_run *run = NULL;
    memset(&desc, 0, sizeof desc);
    desc.max_batch = B, desc.max_ctx = T, desc.train = train, desc.accumulate = train;
    CHECK_OK(ctx, pvt_run_create(model, &desc, &run));
    return run;
}

/* Logits, loss and gradients of one directory. */
static void check_model(const char *dir, bool gradients)
{
    pvt_model *model;
    pvti_safetensors st;
    const pvti_tensor *t;
    int64_t n, count;
    double sum;
    CHECK_OK(ctx, pvt_model_load(ctx, dir, NULL, &model));
    if (!model) return;
    if (!open_tensors(dir, "golden.safetensors", &st)) return;
    int32_t *ids = integers(&st, "input_ids", &t);
    pvt_real *golden = numbers(&st, "logits", &n);
    pvt_run *run = run_for(model, t->shape[0], t->shape[1], true);
    pvt_real *logits = (pvt_real *)malloc((size_t)n * sizeof *logits);
    CHECK_OK(ctx, pvt_run_forward(run, ids, t->shape[0], t->shape[1], logits));
    double most = worst(logits, golden, n, 0);
    CHECK_NEAR(most, 0, 3e-5);
    if (gradients) {
        double loss = json_number(path_of(dir, "golden.json"), "loss");
        CHECK_OK(ctx, pvt_run_backward(run, NULL, &sum, &count, NULL, NULL));
        CHECK_NEAR(sum / (double)count, loss, 1e-6);
        CHECK(count == t->shape[0] * (t->shape[1] - 1));
        printf("%s: logits within %.2g, loss within %.2g\n", dir, most, fabs(sum / (double)count - loss));
        check_gradients(model, run, dir, dir);
    }
    pvt_run_free(run);
    free(ids), free(golden), free(logits);
    pvti_safetensors_close(&st);
    pvt_model_free(model);
}

static void check_dense(const char *dir)
{
    pvt_model *model;
    pvti_safetensors st;
    double most = 0;
    int64_t n, compared = 0;
    CHECK_OK(ctx, pvt_model_load(ctx, dir, NULL, &model));
    if (!model || !open_tensors(dir, "dense.safetensors", &st)) return;
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        pvt_real *golden = t.linear ? numbers(&st, t.name, &n) : NULL;
        if (!golden) continue;
        CHECK(n == t.n && t.weight->format.kind == PVT_FORMAT_AQLM);
        pvt_real *W = (pvt_real *)malloc((size_t)n * sizeof *W);
        pvt_weight_dequantize(t.weight, W);
        most = fmax(most, worst(W, golden, n, 0));
        compared++;
        free(W), free(golden);
    }
    CHECK(compared == st.n);
    CHECK_NEAR(most, 0, 1e-6);
    pvti_safetensors_close(&st);
    pvt_model_free(model);
}

/* Loaded and saved again, an AQLM checkpoint has the same tensors, byte for byte. */
static void check_round_trip(const char *dir)
{
    char out[256];
    pvt_model *model;
    pvti_safetensors was, is;
    int64_t equal = 0;
    CHECK(test_scratch(out, sizeof out - 1));
    strcat(out, "/");
    CHECK_OK(ctx, pvt_model_load(ctx, dir, NULL, &model));
    if (!model) return;
    CHECK_OK(ctx, pvt_model_save(model, out, NULL));
    if (open_tensors(dir, "model.safetensors", &was) && open_tensors(out, "model.safetensors", &is)) {
        CHECK(was.n == is.n);
        for (int64_t i = 0; i < was.n; i++) {
            const pvti_tensor *a = &was.tensors[i], *b = pvti_safetensors_find(&is, a->name);
            equal += b && a->dtype == b->dtype && a->rank == b->rank && a->bytes == b->bytes &&
                     memcmp(a->shape, b->shape, sizeof a->shape) == 0 &&
                     memcmp(a->data, b->data, (size_t)a->bytes) == 0;
        }
        CHECK(equal == was.n);
        pvti_safetensors_close(&was), pvti_safetensors_close(&is);
    }
    test_remove(out);
    pvt_model_free(model);
}

/* The student llama_gqa against llama_gqa_teacher. */
static void check_kl(const char *base)
{
    char dir[128], models[2][128];
    pvt_model *student, *teacher;
    pvti_safetensors st;
    const pvti_tensor *t;
    pvt_loss_desc loss;
    double sum, again;
    int64_t count;
    snprintf(dir, sizeof dir, "%smodels/kl_llama/", base);
    snprintf(models[0], sizeof models[0], "%smodels/llama_gqa", base);
    snprintf(models[1], sizeof models[1], "%smodels/llama_gqa_teacher", base);
    CHECK_OK(ctx, pvt_model_load(ctx, models[0], NULL, &student));
    CHECK_OK(ctx, pvt_model_load(ctx, models[1], NULL, &teacher));
    if (!student || !teacher || !open_tensors(dir, "golden.safetensors", &st)) return;
    int32_t *ids = integers(&st, "input_ids", &t);
    int64_t B = t->shape[0], T = t->shape[1];
    pvt_run *run = run_for(student, B, T, true), *run_teacher = run_for(teacher, B, T, false);
    CHECK_OK(ctx, pvt_run_forward(run_teacher, ids, B, T, NULL));
    CHECK_OK(ctx, pvt_run_forward(run, ids, B, T, NULL));
    memset(&loss, 0, sizeof loss);
    loss.teacher = teacher, loss.teacher_hidden = pvt_run_hidden(run_teacher);
    CHECK_OK(ctx, pvt_run_loss(run, &loss, &again, &count, NULL));
    CHECK_OK(ctx, pvt_run_backward(run, &loss, &sum, &count, NULL, NULL));
    CHECK(count == B * T && again == sum);
    CHECK_NEAR(sum / (double)count, json_number(path_of(dir, "golden.json"), "kl"), 1e-6);
    check_gradients(student, run, dir, dir);
    pvt_run_free(run), pvt_run_free(run_teacher);
    free(ids);
    pvti_safetensors_close(&st);
    pvt_model_free(student), pvt_model_free(teacher);
}

/* One linear, forward and backward, from its own file. */
static void check_linear(const char *file, pvt_format format)
{
    pvti_safetensors st;
    pvt_weight w;
    int64_t n, O;
    if (!open_tensors(GOLDEN "aqlm/", file, &st)) return;
    pvt_real *x = numbers(&st, "x", &n), *y = numbers(&st, "y", &n), *dy = numbers(&st, "grad_y", &n),
    *bias = numbers(&st, "bias", &O);
    int64_t rows = n / O;
    int64_t I = pvti_tensor_count(pvti_safetensors_find(&st, "x")) / rows;
    CHECK_OK(ctx, pvti_weight_alloc(ctx, &format, O, I, file, &w));
    const pvti_tensor *codes = pvti_safetensors_find(&st, "codes");
    for (int64_t i = 0; i < pvti_tensor_count(codes); i++) {
        int16_t half;
        if (codes->dtype == PVT_I8) half = (int8_t)codes->data[i];
        else memcpy(&half, codes->data + 2 * i, 2);
        pvti_code_set(&w, i, half & ((1 << format.bits) - 1));
    }
    pvt_real *values = numbers(&st, "codebooks", &n);
    memcpy(pvti_codebooks(&w), values, (size_t)n * sizeof *values),
    free(values);
    values = numbers(&st, "scales", &n), memcpy(pvti_scales(&w), values, (size_t)n * sizeof *values), free(values);

    pvt_real *W = (pvt_real *)malloc((size_t)(O * I) * sizeof *W);
    pvt_weight_dequantize(&w, W);
    pvt_real *golden = numbers(&st, "weight", &n);
    CHECK_NEAR(worst(W, golden, n, 0), 0, 1e-6);
    free(golden);
    pvt_real *out = (pvt_real *)malloc((size_t)(rows * O) * sizeof *out);
    pvt_weight_forward(out, x, &w, rows, false);
    for (int64_t i = 0; i < rows * O; i++) out[i] += bias[i % O];
    CHECK_NEAR(worst(out, y, rows * O, 0), 0, 3e-5);
    pvt_real *dx = (pvt_real *)calloc((size_t)(rows * I), sizeof *dx),
    *dW = (pvt_real *)calloc((size_t)(O * I), sizeof *dW);
    pvt_weight_backward(dx, dW, dy, x, &w, rows);
    golden = numbers(&st, "grad_x", &n);
    CHECK_NEAR(worst(dx, golden, n, 1e-4), 0, 1e-5);
    free(golden);
    golden = numbers(&st, "grad_weight", &n);
    CHECK_NEAR(worst(dW, golden, n, 1e-4), 0, 1e-5);
    free(golden);
    for (int64_t i = 0; i < rows; i++) { /* single rows take the kernels of decoding */
        pvt_weight_forward(out, x + i * I, &w, 1, false);
        for (n = 0; n < O; n++) out[n] += bias[n];
        CHECK_NEAR(worst(out, y + i * O, O, 0), 0, 3e-5);
    }
    pvt_weight_free(&w);
    free(x), free(y), free(dy), free(bias), free(W), free(out), free(dx), free(dW);
    pvti_safetensors_close(&st);
}

/* Every token's loss, and greedy text, of a llama2.c checkpoint. */
static void check_llama2c(const char *name, bool greedy)
{
    pvt_model *model;
    pvti_safetensors st;
    const pvti_tensor *t;
    char key[64];
    int32_t *ids;
    int64_t n, count;
    double sum, mean = 0, most = 0;
    pvt_real *golden;
    snprintf(key, sizeof key, DATA "models/%s.bin", name);
    CHECK_OK(ctx, pvt_model_load(ctx, key, NULL, &model));
    if (!model || !open_tensors(GOLDEN "llama2c/", "llama2c.safetensors", &st)) return;
    snprintf(key, sizeof key, "%s.ids", name), ids = integers(&st, key, &t);
    snprintf(key, sizeof key, "%s.nll", name), golden = numbers(&st, key, &n);
    pvt_run *run = run_for(model, 1, n + 1, false);
    double *nll = (double *)malloc((size_t)(n + 1) * sizeof *nll);
    CHECK_OK(ctx, pvt_run_forward(run, ids, 1, n + 1, NULL));
    CHECK_OK(ctx, pvt_run_loss(run, NULL, &sum, &count, nll));
    CHECK(count == n);
    for (int64_t i = 0; i < n; i++)
        most = fmax(most, fabs(nll[i] - (double)golden[i])), mean += (double)golden[i] / (double)n;
    CHECK_NEAR(most, 0, 2e-4);
    CHECK_NEAR(sum / (double)n, mean, 1e-5);
    free(golden);
    snprintf(key, sizeof key, "%s.last_logits", name), golden = numbers(&st, key, &n);
    pvt_real *logits = (pvt_real *)malloc((size_t)n * sizeof *logits);
    CHECK_OK(ctx, pvt_run_logits(run, t->shape[0] - 2, 1, logits)); /* of the last prediction */
    printf("%s: token losses within %.2g, last logits within %.2g\n", name, most,
           worst(logits, golden, n, 0));
    CHECK_NEAR(worst(logits, golden, n, 0), 0, 3e-4);
    if (greedy) {
        pvti_map map;
        pvti_json j;
        pvt_generate_desc desc;
        pvt_generated out;
        int32_t bos = 1;
        int64_t wanted = 0;
        memset(&desc, 0, sizeof desc);
        desc.n = 64, desc.ignore_eos = true;
        CHECK_OK(ctx, pvt_generate(model, &bos, 1, &desc, &out));
        CHECK_OK(ctx, pvti_json_open(ctx, GOLDEN "llama2c/llama2c.json", &map, &j));
        int64_t node = pvti_json_find(&j, pvti_json_find(&j, 0, name), "greedy64_from_bos");
        CHECK(out.n == 64 && pvti_json_count(&j, node) == 65);
        node = pvti_json_next(&j, pvti_json_first(&j, node));
        for (int64_t i = 0; i < out.n && node >= 0; i++, node = pvti_json_next(&j, node))
            wanted += pvti_json_int(&j, node, &n) && n == out.ids[i];
        CHECK(wanted == 64);
        pvti_json_free(&j);
        pvti_map_close(ctx, &map);
        pvt_ids_free(ctx, out.ids);
    }
    free(ids), free(golden), free(logits), free(nll);
    pvt_run_free(run);
    pvti_safetensors_close(&st);
    pvt_model_free(model);
}

/* The tokenizer beside the checkpoint is found, and goes along: what is saved loads with it. */
static void check_carried_tokenizer(const char *path)
{
    static const char text[] = "Once upon a time, Lily's dog said: \"42!\"\n";
    char dir[256];
    pvt_model *model[2] = {NULL, NULL};
    int32_t *ids[2] = {NULL, NULL};
    int64_t n[2] = {0, 0};
    CHECK(test_scratch(dir, sizeof dir));
    CHECK_OK(ctx, pvt_model_load(ctx, path, NULL, &model[0]));
    if (model[0]) CHECK_OK(ctx, pvt_model_save(model[0], dir, NULL));
    CHECK_OK(ctx, pvt_model_load(ctx, dir, NULL, &model[1]));
    for (int64_t i = 0; i < 2; i++) {
        CHECK(model[i] && pvt_model_tokenizer(model[i]));
        if (model[i] && pvt_model_tokenizer(model[i]))
            CHECK_OK(ctx, pvt_tokenizer_encode(pvt_model_tokenizer(model[i]), text, -1, PVT_ENCODE_BOS, &ids[i],
                                               &n[i]));
    }
    CHECK(n[0] > 10 && n[0] == n[1] && memcmp(ids[0], ids[1], (size_t)n[0] * sizeof(int32_t)) == 0);
    for (int64_t i = 0; i < 2; i++) pvt_ids_free(ctx, ids[i]), pvt_model_free(model[i]);
    test_remove(dir);
}

static void check_smollm2_prompt(const pvt_model *model)
{
    pvti_safetensors st;
    const pvti_tensor *t;
    int64_t n, V = pvt_model_get_config(model)->vocab;
    double most_logit = 0, most_last = 0, most_lse = 0;
    if (!open_tensors(GOLDEN "smollm2/", "prompt32.safetensors", &st)) return;
    int32_t *top = integers(&st, "top10_ids", &t), *ids = integers(&st, "ids", &t);
    pvt_real *top_logits = numbers(&st, "top10_logits", &n), *lse = numbers(&st, "logsumexp", &n),
    *last = numbers(&st, "last_logprobs", &n);
    pvt_real *logits = (pvt_real *)malloc((size_t)(32 * V) * sizeof *logits);
    pvt_run *run = run_for(model, 1, 32, false);
    CHECK_OK(ctx, pvt_run_forward(run, ids, 1, 32, logits));
    for (int64_t i = 0; i < 32; i++) {
        double sum = 0;
        for (int64_t j = 0; j < 10; j++)
            most_logit = fmax(most_logit,
                              fabs((double)logits[i * V + top[i * 10 + j]] - (double)top_logits[i * 10 + j]));
        for (int64_t j = 0; j < V; j++) sum += exp((double)logits[i * V + j] - (double)lse[i]);
        most_lse = fmax(most_lse, fabs(log(sum)));
    }
    for (int64_t j = 0; j < V; j++)
        most_last = fmax(most_last, fabs((double)logits[31 * V + j] - (double)lse[31] - (double)last[j]));
    printf("smollm2: logits within %.2g, logsumexp within %.2g, last log-probabilities within %.2g\n",
           most_logit, most_lse, most_last);
    CHECK_NEAR(most_logit, 0, 1e-3);
    CHECK_NEAR(most_lse, 0, 1e-3);
    CHECK_NEAR(most_last, 0, 1e-3);
    pvt_run_free(run);
    free(ids), free(top), free(top_logits), free(lse), free(last), free(logits);
    pvti_safetensors_close(&st);
}

/* Greedy text, as long as the recorded gap between the two best logits leaves no doubt. */
static void check_smollm2_greedy(const pvt_model *model)
{
    pvti_map map;
    pvti_json j;
    int64_t id;
    CHECK_OK(ctx, pvti_json_open(ctx, GOLDEN "smollm2/greedy.json", &map, &j));
    for (int64_t c = pvti_json_first(&j, 0); c >= 0; c = pvti_json_next(&j, c)) {
        int32_t prompt[512];
        int64_t n = 0, same = 0, sure = 0;
        double margin;
        pvt_generate_desc desc;
        pvt_generated out;
        int64_t node = pvti_json_find(&j, c, "prompt_ids");
        for (node = pvti_json_first(&j, node); node >= 0 && n < 512; node = pvti_json_next(&j, node))
            if (pvti_json_int(&j, node, &id)) prompt[n++] = (int32_t)id;
        memset(&desc, 0, sizeof desc);
        desc.n = 64, desc.ignore_eos = true;
        CHECK_OK(ctx, pvt_generate(model, prompt, n, &desc, &out));
        node = pvti_json_first(&j, pvti_json_find(&j, c, "new_ids"));
        int64_t gap = pvti_json_first(&j, pvti_json_find(&j, c, "top1_minus_top2"));
        for (int64_t i = 0; i < out.n && node >= 0;
             i++, node = pvti_json_next(&j, node), gap = pvti_json_next(&j, gap)) {
            if (!pvti_json_number(&j, gap, &margin) || margin < 0.02) break;
            sure++;
            same += pvti_json_int(&j, node, &id) && id == out.ids[i];
        }
        printf("smollm2: %lld of %lld greedy tokens equal, %.1f tokens/s\n", (long long)same, (long long)sure,
               (double)out.n / out.seconds);
        CHECK(same == sure && sure > 0);
        pvt_ids_free(ctx, out.ids);
    }
    pvti_json_free(&j);
    pvti_map_close(ctx, &map);
}

/* Perplexity: by hand (an argument gives the number of windows), for it takes seconds a window. */
static void check_smollm2_perplexity(const pvt_model *model, int64_t windows)
{
    pvti_map map;
    pvti_json j;
    pvt_corpus corpus;
    pvt_ppl_desc desc;
    pvt_ppl ppl;
    double nll[592], sum, most = 0;
    int64_t i = 0;
    CHECK_OK(ctx, pvt_corpus_load(ctx, DATA "wikitext2/wiki.test.raw", pvt_model_tokenizer(model), &corpus));
    CHECK(corpus.n == 303415);
    memset(&desc, 0, sizeof desc);
    desc.ctx = 512, desc.last = windows, desc.window_nll = nll;
    CHECK_OK(ctx, pvt_perplexity(model, &corpus, &desc, &ppl));
    CHECK_OK(ctx, pvti_json_open(ctx, GOLDEN "smollm2/wikitext2_ppl.json", &map, &j));
    for (int64_t node = pvti_json_first(&j, pvti_json_find(&j, 0, "windows")); node >= 0 && i < windows;
         node = pvti_json_next(&j, node), i++)
        if (pvti_json_number(&j, pvti_json_find(&j, node, "nll_sum"), &sum))
            most = fmax(most, fabs(nll[i] - sum));
    CHECK_NEAR(most, 0, 0.02);
    printf("smollm2: perplexity %.4f ± %.1f%% over %lld windows, a window's nll sum within %.2g, %.0f "
           "tokens/s\n",
           ppl.ppl, 100 * ppl.nll_stderr, (long long)i, most, (double)(ppl.windows * ppl.ctx) / ppl.seconds);
    pvti_json_free(&j);
    pvti_map_close(ctx, &map);
    pvt_corpus_free(&corpus);
}

/* ---- tasks, against lm-evaluation-harness 0.4.13 ---- */

static const char *const harness_tasks[] = {"arc_easy", "piqa", "hellaswag", "lambada_openai"};
enum { HARNESS_TASKS = sizeof harness_tasks / sizeof *harness_tasks, HARNESS_DOCUMENTS = 50 };

static void put_span(FILE *f, const char *before, const pvti_json *j, int64_t node, int64_t from, int64_t cut)
{
    pvti_json_span s = pvti_json_value_span(j, node);
    fprintf(f, "%s%.*s", before, (int)(s.bytes - from - cut), s.s + from);
}

/* A row's document as its data set has it: of ARC the question without what the harness put around it; PIQA's is
   whole; of HellaSwag there is only the prompt as it was made. */
static void put_document(FILE *f, const char *name, const pvti_json *j)
{
    int64_t doc = pvti_json_find(j, 0, "doc"), choices = pvti_json_find(j, doc, "choices"), gold = 0, n = 0;
    const char *at = j->text + j->nodes[doc].text;
    if (strcmp(name, "arc_easy") != 0) { /* up to the brace before the next key */
        const char *end = j->text + j->nodes[pvti_json_find(j, 0, "request")].key;
        while (*end != '}') end--;
        fprintf(f, "%.*s\n", (int)(end + 1 - at), at);
        return;
    }
    CHECK(pvti_json_int(j, pvti_json_find(j, doc, "gold"), &gold));
    put_span(f, "{\"question\":\"", j, pvti_json_find(j, doc, "query"), 10, 9);
    fprintf(f, "\",\"choices\":{\"text\":[");
    for (int64_t c = pvti_json_first(j, choices); c >= 0; c = pvti_json_next(j, c), n++)
        put_span(f, n ? "\",\"" : "\"", j, c, 0, 0);
    fprintf(f, "\"],\"label\":[");
    for (int64_t i = 0; i < n; i++) fprintf(f, "%s\"%c\"", i ? "," : "", (char)('A' + i));
    fprintf(f, "]},\"answerKey\":\"%c\"}\n", (char)('A' + gold));
}

/* The first documents of the request rows of ../shared/data/tasks into `path`; false: they cannot be unpacked. */
static bool write_documents(const char *name, const char *path)
{
    static char line[1 << 16];
    char command[200];
    int64_t n = 0, id, index;
    snprintf(command, sizeof command, "gzip -dc " DATA "tasks/%s.rc_*.jsonl.gz 2>/dev/null", name);
    FILE *rows = popen(command, "r"), *f = fopen(path, "w");
    while (rows && f && n < HARNESS_DOCUMENTS && fgets(line, sizeof line, rows)) {
        pvti_json j;
        if (pvti_json_parse(ctx, name, line, (int64_t)strlen(line), &j) != PVT_OK) break;
        if (pvti_json_int(&j, pvti_json_find(&j, 0, "idx"), &index) && index == 0 &&
            pvti_json_int(&j, pvti_json_find(&j, 0, "doc_id"), &id) && id == n)
            put_document(f, name, &j), n++;
        pvti_json_free(&j);
    }
    if (f) fclose(f);
    if (rows) pclose(rows);
    return n == HARNESS_DOCUMENTS;
}

static bool load_harness(const char *name, const char *dir, const pvt_tokenizer *tokenizer, int64_t limit,
                         pvt_task *task)
{
    char path[300] = DATA "tasks/lambada_test.jsonl";
    pvt_task_desc desc = {name, limit};
    memset(task, 0, sizeof *task);
    if (strcmp(name, "lambada_openai") != 0) {
        snprintf(path, sizeof path, "%s/%s.jsonl", dir, name);
        if (!pvti_path_exists(ctx, path) && !write_documents(name, path)) return false;
    }
    CHECK_OK(ctx, pvt_task_load(ctx, path, tokenizer, &desc, task));
    return task->n == limit;
}

/* Prompts byte for byte. */
static int64_t check_prompts(const pvt_task *task, const pvti_json *j, int64_t docs)
{
    int64_t same = 0, wanted = 0, target;
    for (int64_t i = 0; i < task->n && docs >= 0; i++, docs = pvti_json_next(j, docs)) {
        const pvt_document *d = &task->documents[i];
        int64_t requests = pvti_json_find(j, docs, "requests"), r = pvti_json_first(j, requests);
        CHECK(pvti_json_count(j, requests) == d->n);
        if (d->n > 1) CHECK(pvti_json_int(j, pvti_json_find(j, docs, "target"), &target) && target == d->gold);
        for (int64_t k = 0; k < d->n; k++, r = pvti_json_next(j, r)) {
            const pvt_choice *c = &task->choices[d->first + k];
            wanted++;
            same += pvti_json_equals(j, pvti_json_find(j, r, "context"), c->context_text) &&
                    pvti_json_equals(j, pvti_json_find(j, r, "continuation"), c->continuation);
        }
    }
    CHECK(same == wanted && wanted >= task->n);
    return same;
}

/* Log-likelihoods and what they decide, document by document. */
static void check_scores(const pvt_model *model, const pvt_task *task, const pvti_json *j, int64_t docs)
{
    pvt_answer *answers = (pvt_answer *)calloc((size_t)task->n_choices, sizeof *answers);
    bool right[2 * HARNESS_DOCUMENTS], greedy;
    pvt_score_desc desc;
    pvt_score score;
    double worst = 0, value, acc = 0, mean = 0;
    memset(&desc, 0, sizeof desc);
    desc.answers = answers, desc.right = right, desc.right_norm = right + task->n;
    CHECK_OK(ctx, pvt_task_score(model, task, &desc, &score));
    for (int64_t i = 0; i < task->n; i++, docs = pvti_json_next(j, docs)) {
        const pvt_document *d = &task->documents[i];
        int64_t l = pvti_json_first(j, pvti_json_find(j, docs, "loglik"));
        int64_t g = pvti_json_first(j, pvti_json_find(j, docs, "is_greedy"));
        for (int64_t k = d->first; k < d->first + d->n; k++, l = pvti_json_next(j, l), g = pvti_json_next(j, g)) {
            CHECK(pvti_json_number(j, l, &value) && pvti_json_bool(j, g, &greedy) && greedy == answers[k].greedy);
            worst = fmax(worst, fabs(value - answers[k].loglik));
        }
        CHECK(pvti_json_number(j, pvti_json_find(j, docs, "acc"), &acc) && (acc > 0.5) == right[i]);
        mean += acc / (double)task->n;
        if (pvti_json_number(j, pvti_json_find(j, docs, "acc_norm"), &acc)) CHECK((acc > 0.5) == right[task->n + i]);
    }
    CHECK_NEAR(worst, 0, 1e-3);
    CHECK_NEAR(score.acc, mean, 1e-12);
    printf("%s: log-likelihoods within %.2g, accuracy %.2f and acc_norm %.2f of %lld documents, %.1f s\n", task->name,
           worst, score.acc, score.acc_norm, (long long)task->n, score.seconds);
    free(answers);
}

/* Of a model that is in fp16 already; NULL: the prompts alone. */
static void check_harness(const pvt_model *model, int64_t documents)
{
    char dir[256];
    pvti_map map;
    pvti_json j;
    pvt_tokenizer *bytes = NULL;
    CHECK(test_scratch(dir, sizeof dir));
    CHECK_OK(ctx, pvt_tokenizer_create_bytes(ctx, &bytes));
    CHECK_OK(ctx, pvti_json_open(ctx, GOLDEN "tasks/lm_eval.json", &map, &j));
    for (int i = 0; i < HARNESS_TASKS; i++) {
        int64_t node = pvti_json_find(&j, pvti_json_find(&j, 0, "tasks"), harness_tasks[i]);
        int64_t docs = pvti_json_first(&j, pvti_json_find(&j, node, "docs"));
        pvt_task task;
        bool there = load_harness(harness_tasks[i], dir, model ? pvt_model_tokenizer(model) : bytes, documents, &task);
        if (!there) SKIP("documents of a task: gzip could not unpack them");
        else if (model) check_scores(model, &task, &j, docs);
        else printf("%s: %lld prompts of the harness\n", harness_tasks[i], (long long)check_prompts(&task, &j, docs));
        pvt_task_free(&task);
    }
    pvti_json_free(&j);
    pvti_map_close(ctx, &map);
    pvt_tokenizer_free(bytes);
    test_remove(dir);
}

/* log p of a choice by one forward of it alone. */
static double choice_alone(const pvt_model *model, const pvt_choice *c)
{
    pvt_run_desc d;
    pvt_run *run;
    double sum = 0;
    int64_t V = model->config.vocab;
    pvt_real *logits = (pvt_real *)calloc((size_t)(c->n * V), sizeof *logits);
    memset(&d, 0, sizeof d);
    d.max_ctx = c->n - 1;
    CHECK_OK(ctx, pvt_run_create(model, &d, &run));
    CHECK_OK(ctx, pvt_run_forward(run, c->ids, 1, c->n - 1, logits));
    for (int64_t t = c->context - 1; t < c->n - 1; t++) {
        const pvt_real *row = logits + t * V;
        double most = -1e30, z = 0;
        for (int64_t v = 0; v < V; v++) most = fmax(most, (double)row[v]);
        for (int64_t v = 0; v < V; v++) z += exp((double)row[v] - most);
        sum += (double)row[c->ids[t + 1]] - most - log(z);
    }
    pvt_run_free(run);
    free(logits);
    return sum;
}

/* Choices on both sides of the length at which rotary frequencies change: in company what each is alone. */
static void check_company_of_lengths(const char *name)
{
    pvt_model *model = NULL;
    pvt_task task;
    pvt_answer answers[4];
    pvt_score_desc desc;
    pvt_score score;
    int32_t ids[4][24];
    char path[128];
    snprintf(path, sizeof path, SMALL "models/%s", name);
    CHECK_OK(ctx, pvt_model_load(ctx, path, NULL, &model));
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 24; j++) ids[i][j] = (j * 7 + (j > 13 || i > 1) * (i * 5 + j * i)) % 31;
    pvt_choice choices[4] = {{ids[0], 16, 14, 5, NULL, NULL}, {ids[1], 16, 14, 5, NULL, NULL},
                             {ids[2], 20, 14, 5, NULL, NULL}, {ids[3], 21, 14, 5, NULL, NULL}};
    pvt_document documents[2] = {{0, 2, 0}, {2, 2, 0}};
    memset(&task, 0, sizeof task), memset(&desc, 0, sizeof desc);
    task.documents = documents, task.choices = choices, task.n = 2, task.n_choices = 4;
    desc.answers = answers;
    CHECK_OK(ctx, pvt_task_score(model, &task, &desc, &score));
    for (int i = 0; i < 4; i++) CHECK_NEAR(answers[i].loglik, choice_alone(model, &choices[i]), 1e-5);
    pvt_model_free(model);
}

/* What both places have. */
static void check_models(const char *base)
{
    static const char *const names[] = {"llama_gqa/", "llama_gqa_teacher/", "llama3_tied/", "mistral_sw8/",
                                        "qwen2_tied/"};
    char dir[128];
    for (int i = 0; i < PVTI_COUNT(names); i++) {
        snprintf(dir, sizeof dir, "%smodels/%s", base, names[i]);
        check_model(dir, i != 1);
    }
    check_kl(base);
}

static void check_aqlm(const char *dir)
{
    check_model(dir, true);
    check_dense(dir);
    check_round_trip(dir);
}

static void check_larger(void)
{
    pvt_format f1x16 = {PVT_FORMAT_AQLM, 1, 16, 8, 1, 0, 0}, f2x8 = {PVT_FORMAT_AQLM, 2, 8, 8, 1, 0, 0};
    check_models(GOLDEN);
    check_model(GOLDEN "models/qwen3/", true);
    check_model(GOLDEN "models/phi3/", true);
    check_aqlm(GOLDEN "aqlm/llama_2x8_g8/");
    check_aqlm(GOLDEN "aqlm/llama_1x8_g8/");
    check_aqlm(GOLDEN "aqlm/llama_4x8_g16/");
    check_linear("linear_2x8_g8.safetensors", f2x8);
    check_linear("linear_1x16_g8.safetensors", f1x16);
    if (pvti_path_exists(ctx, DATA "models/stories260K.bin")) {
        check_llama2c("stories260K", true);
        check_llama2c("babyllama105", false);
        check_carried_tokenizer(DATA "models/stories260K.bin");
    } else {
        SKIP("llama2.c checkpoints (not in this repository)");
    }
}

static void check_smollm2(int64_t windows)
{
    pvt_model *model;
    if (!pvti_path_exists(ctx, SMOLLM2)) {
        SKIP("SmolLM2: " SMOLLM2 " is not there (make smollm2 fetches it)");
        return;
    }
    CHECK_OK(ctx, pvt_model_load(ctx, SMOLLM2, NULL, &model));
    if (!model) return;
    check_smollm2_prompt(model);
    check_smollm2_greedy(model);
    if (windows) check_smollm2_perplexity(model, windows);
    CHECK_OK(ctx, pvt_model_round_f16(model)); /* the harness ran it so */
    check_harness(model, windows ? HARNESS_DOCUMENTS : 2);
    pvt_model_free(model);
}

int main(int argc, char **argv)
{
    if (pvt_ctx_create(NULL, &ctx) != PVT_OK) return 1;
    check_company_of_lengths("phi3_long"), check_company_of_lengths("llama_dynamic");
    check_company_of_lengths("llama_gqa");
    check_models(SMALL);
    check_aqlm(SMALL "aqlm/llama_2x8_g8/");
    check_aqlm(SMALL "aqlm/llama_1x9_g4/");
    check_aqlm(SMALL "aqlm/qwen2_2x8_g8/");
    check_model(SMALL "models/qwen2_untied/", true);
    check_model(SMALL "models/llama_linear/", true);
    check_model(SMALL "models/llama_dynamic/", true);
    check_model(SMALL "models/qwen3/", true);
    check_model(SMALL "models/phi3_short/", true);
    check_model(SMALL "models/phi3_long/", true);
    if (pvti_path_is_directory(ctx, GOLDEN)) {
        check_larger();
        check_harness(NULL, HARNESS_DOCUMENTS);
        check_smollm2(argc > 1 ? PVTI_MIN(40, atoi(argv[1])) : 0);
    } else {
        SKIP("larger recorded figures (not in this repository)");
    }
    pvt_ctx_destroy(ctx);
    return test_end();
}
