/*  The model on its own terms, with nothing but what is made here: gradients against differences,
    equal bits whatever the threads, the instruction set, or what is recomputed; the cache against
    the whole; save and load; directories that are no models. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

static double noise(int64_t step, int64_t i)
{
    return pvti_random_unit(7, PVTI_RANDOM_USER, (uint64_t)step, (uint64_t)i) - 0.5;
}

static pvt_real *dense_data(const pvt_weight *weight) { return (pvt_real *)(uintptr_t)weight->array[0]; }

/* A tiny model whose norms are not all 1. */
static pvt_model *tiny(pvt_ctx *ctx, bool tied, int64_t window)
{
    pvt_model_config c;
    pvt_model *model = NULL;
    memset(&c, 0, sizeof c);
    c.layers = 3, c.dim = 24, c.heads = 6, c.kv_heads = 2, c.head_dim = 4, c.ff = 40, c.vocab = 37,
    c.ctx = 32;
    c.tied = tied, c.window = window;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    for (int64_t i = 0; model && i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        for (int64_t k = 0; k < t.n; k++) {
            if (t.values) t.values[k] = (pvt_real)(1 + 0.5 * noise(i, k));
            else dense_data(t.weight)[k] = (pvt_real)(noise(i, k));
        }
    }
    return model;
}

/* Its linears as codes, from a plain fit, and everything as a file would hold it. */
static void quantize(pvt_ctx *ctx, pvt_model *model, const char *text)
{
    pvt_format format;
    CHECK_OK(ctx, pvt_format_parse(ctx, text, &format));
    for (int64_t l = 0; l < model->config.layers; l++)
        for (int64_t j = 0; j < PVTI_LINEARS; j++) {
            pvt_weight *w = &model->layers[l].linear[PVTI_Q + j], q;
            CHECK_OK(ctx, pvt_weight_fit(ctx, dense_data(w), w->O, w->I, NULL, &format, NULL, NULL, &q));
            pvt_weight_free(w);
            *w = q;
        }
    CHECK_OK(ctx, pvt_model_round_f16(model));
}

static const int32_t *some_ids(int64_t n)
{
    static int32_t ids[64];
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)((i * 7 + i * i) % 37);
    return ids;
}

static pvt_run *make_run(pvt_ctx *ctx, const pvt_model *model, int64_t B, int64_t T, bool train,
                         int64_t limit)
{
    pvt_run_desc desc;
    pvt_run *run = NULL;
    memset(&desc, 0, sizeof desc);
    desc.max_batch = B, desc.max_ctx = T, desc.train = train, desc.accumulate = train,
    desc.memory_limit = limit;
    CHECK_OK(ctx, pvt_run_create(model, &desc, &run));
    return run;
}

#if PVTI_REAL_IS_DOUBLE
/* d(mean loss)/d(every kind of parameter) against central differences. */
static void check_gradient(pvt_ctx *ctx, bool tied, int64_t window, bool kl)
{
    pvt_model *model = tiny(ctx, tied, window), *teacher = NULL;
    pvt_run *run = make_run(ctx, model, 2, 9, true, 0), *teacher_run = NULL;
    const int32_t *ids = some_ids(18);
    pvt_loss_desc loss;
    double sum, up, down, worst = 0;
    int64_t count;
    memset(&loss, 0, sizeof loss);
    if (kl) {
        CHECK_OK(ctx, pvt_model_copy(ctx, model, &teacher));
        for (int64_t k = 0; k < 24; k++) teacher->norm[k] += 0.3 * noise(99, k);
        teacher_run = make_run(ctx, teacher, 2, 9, false, 0);
        CHECK_OK(ctx, pvt_run_forward(teacher_run, ids, 2, 9, NULL));
        loss.teacher = teacher, loss.teacher_hidden = pvt_run_hidden(teacher_run);
    }
    CHECK_OK(ctx, pvt_run_forward(run, ids, 2, 9, NULL));
    CHECK_OK(ctx, pvt_run_backward(run, &loss, &sum, &count, NULL, NULL));
    CHECK(count == (kl ? 18 : 16));
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        pvt_real *p = t.values ? t.values : dense_data(t.weight);
        const pvt_real *g = pvt_run_grad(run, i);
        for (int64_t k = 0; k < t.n; k += t.n / 9 + 1) {
            pvt_real old = p[k];
            double h = 1e-5;
            p[k] = old + h;
            pvt_run_forward(run, ids, 2, 9, NULL), pvt_run_loss(run, &loss, &up, &count, NULL);
            p[k] = old - h;
            pvt_run_forward(run, ids, 2, 9, NULL), pvt_run_loss(run, &loss, &down, &count, NULL);
            p[k] = old;
            double slope = (up - down) / (2 * h) / (double)count;
            worst = fmax(worst, fabs(slope - g[k]) / (1e-3 + fabs(slope)));
        }
    }
    CHECK_NEAR(worst, 0, 1e-6);
    pvt_run_free(run), pvt_run_free(teacher_run);
    pvt_model_free(model), pvt_model_free(teacher);
}

/* A tied embedding in codes: through look-up and head together, for every number of its value arrays. */
static void check_table_gradient(pvt_ctx *ctx, const char *text)
{
    pvt_model *model = tiny(ctx, true, 0);
    const int32_t *ids = some_ids(18);
    pvt_real *dvalues[PVT_MAX_ARRAYS] = {NULL};
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_weight dense = model->embed;
    pvt_format format;
    double sum, up, down, worst = 0, largest = 0;
    int64_t count;
    CHECK_OK(ctx, pvt_format_parse(ctx, text, &format));
    CHECK_OK(ctx, pvt_weight_fit(ctx, dense_data(&dense), dense.O, dense.I, NULL, &format, NULL, NULL, &model->embed));
    pvt_weight_free(&dense);
    CHECK_OK(ctx, pvti_model_tie(model));
    int n = pvt_weight_arrays(&model->embed, arrays);
    for (int a = 0; a < n; a++)
        if (arrays[a].role == PVT_ARRAY_VALUE)
            dvalues[a] = (pvt_real *)calloc((size_t)arrays[a].bytes / sizeof(pvt_real), sizeof(pvt_real));
    pvt_run *run = make_run(ctx, model, 2, 9, true, 0);
    CHECK_OK(ctx, pvt_run_forward(run, ids, 2, 9, NULL));
    CHECK_OK(ctx, pvt_run_backward(run, NULL, &sum, &count, NULL, NULL));
    CHECK_OK(ctx, pvt_weight_chain(dvalues, &model->embed, pvt_run_grad(run, 0)));
    for (int a = 0; a < n; a++)
        for (int64_t k = 0; dvalues[a] && k < arrays[a].bytes / (int64_t)sizeof(pvt_real); k++) {
            pvt_real *p = (pvt_real *)(uintptr_t)arrays[a].data + k, old = *p;
            double h = strcmp(arrays[a].name, "scales") == 0 ? 1e-5 / (1 << format.bits)
                                                             : 1e-5; /* times codes */
            *p = old + h;
            pvt_run_forward(run, ids, 2, 9, NULL), pvt_run_loss(run, NULL, &up, &count, NULL);
            *p = old - h;
            pvt_run_forward(run, ids, 2, 9, NULL), pvt_run_loss(run, NULL, &down, &count, NULL);
            *p = old;
            double slope = (up - down) / (2 * h) / (double)count;
            worst = fmax(worst, fabs(slope - dvalues[a][k]) / (1e-3 + fabs(slope)));
            largest = fmax(largest, fabs(slope));
        }
    CHECK_NEAR(worst, 0, 1e-6);
    CHECK(largest > 1e-2);
    for (int a = 0; a < n; a++) free(dvalues[a]);
    pvt_run_free(run);
    pvt_model_free(model);
}
#endif

/* A training step's logits and all gradients, in one array. */
static pvt_real *step_bits(pvt_ctx *ctx, const pvt_model *model, int64_t limit, int64_t *n, int64_t *kept)
{
    pvt_run *run = make_run(ctx, model, 2, 17, true, limit);
    int64_t at = 2 * 17 * 37, i, count;
    double sum;
    for (*n = at, i = 0; i < pvt_model_tensors(model); i++) *n += pvt_model_tensor(model, i).n;
    pvt_real *out = (pvt_real *)malloc((size_t)*n * sizeof *out);
    CHECK_OK(ctx, pvt_run_forward(run, some_ids(34), 2, 17, out));
    CHECK_OK(ctx, pvt_run_backward(run, NULL, &sum, &count, NULL, NULL));
    for (i = 0; i < pvt_model_tensors(model); at += pvt_model_tensor(model, i).n, i++)
        memcpy(out + at, pvt_run_grad(run, i), (size_t)pvt_model_tensor(model, i).n * sizeof *out);
    if (kept) *kept = pvt_run_get_info(run).layers_kept;
    pvt_run_free(run);
    return out;
}

/* Threads, instruction sets, recomputation: the same bits. */
static void check_equal_bits(void)
{
    static const int threads[] = {1, 2, 3, 7};
    static const char *const sets[] = {"scalar", "avx2", "avx512"};
    pvt_real *first = NULL;
    int64_t n = 0, n_first = 0, kept;
    for (int quantized = 0; quantized < 2; quantized++) {
        for (int t = 0; t < 4; t++)
            for (int s = 0; s < 3; s++) {
                pvt_ctx_desc desc;
                pvt_ctx *ctx;
                if (t > 0 && s < 2 && t != s + 1) continue; /* a few of the combinations */
                memset(&desc, 0, sizeof desc);
                desc.n_threads = threads[t];
                desc.isa = sets[s];
                CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
                pvt_model *model = tiny(ctx, false, 0);
                if (quantized) quantize(ctx, model, "aqlm:2x4g4");
                pvt_real *bits = step_bits(ctx, model, 0, &n, &kept);
                CHECK(kept == 3);
                if (!first) first = bits, n_first = n;
                CHECK(n == n_first && memcmp(bits, first, (size_t)n * sizeof *bits) == 0);
                if (bits != first) free(bits);
                bits = step_bits(ctx, model, 1, &n, &kept);
                CHECK(kept == 1 && memcmp(bits, first, (size_t)n * sizeof *bits) == 0);
                free(bits);
                pvt_model_free(model);
                pvt_ctx_destroy(ctx);
            }
        free(first), first = NULL;
    }
}

typedef struct seen {
    pvt_run *held;
    pvt_model *model;
    int64_t n, last;
    bool order, equal;
} seen;

static pvt_result look(void *user, int64_t tensor, const pvt_real *dW)
{
    seen *s = (seen *)user;
    int64_t n = pvt_model_tensor(s->model, tensor).n;
    s->equal &= memcmp(dW, pvt_run_grad(s->held, tensor), (size_t)n * sizeof *dW) == 0;
    s->order &= tensor < s->last;
    s->last = tensor;
    s->n++;
    return PVT_OK;
}

/* A sink sees what accumulation holds, once per tensor, from the last to the first; frozen ones never;
   two halves of a batch add up to the whole. */
static void check_sink(pvt_ctx *ctx, bool tied)
{
    pvt_model *model = tiny(ctx, tied, 0);
    pvt_run *held = make_run(ctx, model, 2, 16, true, 0), *run;
    pvt_run_desc desc;
    pvt_loss_desc loss;
    bool frozen[64];
    double sum, worst = 0;
    int64_t count, tensors = pvt_model_tensors(model);
    seen s;
    memset(&desc, 0, sizeof desc), memset(&s, 0, sizeof s), memset(frozen, 0, sizeof frozen),
        memset(&loss, 0, sizeof loss);
    CHECK_OK(ctx, pvt_run_forward(held, some_ids(32), 2, 16, NULL));
    CHECK_OK(ctx, pvt_run_backward(held, NULL, &sum, &count, NULL, NULL));
    desc.max_batch = 2, desc.max_ctx = 16, desc.train = true;
    for (int64_t i = 0; i < 2; i++) {
        desc.frozen = i ? frozen : NULL;
        frozen[0] = frozen[2] = frozen[5] = frozen[tensors - 1] = true;
        CHECK_OK(ctx, pvt_run_create(model, &desc, &run));
        CHECK_OK(ctx, pvt_run_forward(run, some_ids(32), 2, 16, NULL));
        s.held = held, s.model = model, s.order = s.equal = true, s.last = tensors, s.n = 0;
        CHECK(pvt_run_backward(run, NULL, &sum, &count, NULL, NULL) ==
              PVT_ERR_ARGUMENT); /* nowhere to put them */
        CHECK_OK(ctx, pvt_run_backward(run, NULL, &sum, &count, look, &s));
        CHECK(pvt_run_backward(run, NULL, &sum, &count, look, &s) == PVT_ERR_ARGUMENT); /* twice */
        CHECK(s.equal && s.n == (i ? tensors - 4 : tensors));
        (void)s.order;
        pvt_run_free(run);
    }
    run = make_run(ctx, model, 1, 16, true, 0);
    loss.scale = 1.0 / 30;
    for (int64_t i = 0; i < 2; i++) {
        CHECK_OK(ctx, pvt_run_forward(run, some_ids(32) + 16 * i, 1, 16, NULL));
        CHECK_OK(ctx, pvt_run_backward(run, &loss, &sum, &count, NULL, NULL));
    }
    for (int64_t i = 0; i < tensors; i++)
        for (int64_t k = 0; k < pvt_model_tensor(model, i).n; k++)
            worst = fmax(worst, fabs((double)pvt_run_grad(run, i)[k] - (double)pvt_run_grad(held, i)[k]));
    CHECK_NEAR(worst, 0, 1e-5);
    pvt_run_zero_grad(run);
    CHECK(pvt_run_grad(run, 3)[5] == 0);
    pvt_run_free(run), pvt_run_free(held);
    pvt_model_free(model);
}

/* Token by token against the cache, and in chunks, as against the whole at once. */
static void check_cache(pvt_ctx *ctx, int64_t window)
{
    enum { T = 24, V = 37 };
    static const int64_t chunks[][4] = {{24, 0, 0, 0}, {10, 13, 1, 0}, {1, 1, 20, 2}};
    pvt_model *model = tiny(ctx, true, window);
    pvt_run *whole = make_run(ctx, model, 2, T, false, 0), *run;
    pvt_run_desc desc;
    pvt_real all[2 * T * V], some[2 * T * V];
    int32_t ids[2 * T];
    double worst = 0;
    CHECK_OK(ctx, pvt_run_forward(whole, some_ids(2 * T), 2, T, all));
    memset(&desc, 0, sizeof desc);
    desc.max_batch = 2, desc.max_ctx = T, desc.cache = true;
    CHECK_OK(ctx, pvt_run_create(model, &desc, &run));
    for (int64_t c = 0; c < 3; c++) {
        pvt_run_reset(run);
        for (int64_t pos = 0, k = 0; k < 4 && chunks[c][k]; pos += chunks[c][k++]) {
            int64_t n = chunks[c][k];
            for (int64_t b = 0; b < 2; b++)
                for (int64_t t = 0; t < n; t++) ids[b * n + t] = some_ids(2 * T)[b * T + pos + t];
            CHECK_OK(ctx, pvt_run_forward(run, ids, 2, n, some));
            for (int64_t b = 0; b < 2; b++)
                for (int64_t t = 0; t < n; t++)
                    for (int64_t v = 0; v < V; v++)
                        worst = fmax(worst, fabs((double)some[(b * n + t) * V + v] -
                                                 (double)all[(b * T + pos + t) * V + v]));
        }
        CHECK(pvt_run_get_info(run).position == T);
        CHECK(pvt_run_forward(run, ids, 2, 1, some) == PVT_ERR_ARGUMENT);
    }
    CHECK_NEAR(worst, 0, 2e-4);
    pvt_run_free(run), pvt_run_free(whole);
    pvt_model_free(model);
}

static void check_generation(pvt_ctx *ctx)
{
    pvt_model *model = tiny(ctx, true, 0);
    pvt_generate_desc desc;
    pvt_generated a, b;
    int64_t i;
    memset(&desc, 0, sizeof desc);
    desc.n = 20, desc.temperature = 1, desc.top_p = 0.9, desc.seed = 5;
    CHECK_OK(ctx, pvt_generate(model, some_ids(3), 3, &desc, &a));
    CHECK_OK(ctx, pvt_generate(model, some_ids(3), 3, &desc, &b));
    CHECK(a.n == 20 && b.n == 20 && memcmp(a.ids, b.ids, 20 * sizeof *a.ids) == 0);
    pvt_ids_free(ctx, b.ids);
    desc.seed = 6;
    CHECK_OK(ctx, pvt_generate(model, some_ids(3), 3, &desc, &b));
    CHECK(memcmp(a.ids, b.ids, 20 * sizeof *a.ids) != 0);
    pvt_ids_free(ctx, a.ids), pvt_ids_free(ctx, b.ids);
    desc.temperature = 1e-3, desc.top_p = 0; /* so cold that it is greedy */
    CHECK_OK(ctx, pvt_generate(model, some_ids(3), 3, &desc, &a));
    desc.temperature = 0;
    CHECK_OK(ctx, pvt_generate(model, some_ids(3), 3, &desc, &b));
    CHECK(memcmp(a.ids, b.ids, 20 * sizeof *a.ids) == 0);
    pvt_ids_free(ctx, a.ids);
    model->eos[0] = b.ids[4], model->n_eos = 1; /* it stops before that token's first appearance */
    for (i = 0; b.ids[i] != b.ids[4]; i++) {
    }
    CHECK_OK(ctx, pvt_generate(model, some_ids(3), 3, &desc, &a));
    CHECK(a.n == i);
    pvt_ids_free(ctx, a.ids), pvt_ids_free(ctx, b.ids);
    CHECK(pvt_generate(model, NULL, 0, &desc, &a) == PVT_ERR_ARGUMENT);
    CHECK(pvt_generate(model, NULL, 3, &desc, &a) == PVT_ERR_ARGUMENT);
    pvt_model_free(model);
}

/* What sampling leaves out, on probabilities of 8/15, 4/15, 2/15, 1/15 of four tokens; the penalty. */
static void check_sampler(void)
{
    static const struct { int64_t k; double top_p, min_p; int left; } cases[] = {
        {0, 1, 0, 4}, {1, 1, 0, 1}, {3, 1, 0, 3}, {9, 1, 0, 4}, {0, 1, 0.3, 2}, {0, 1, 0.2, 3}, {0, 1, 1, 1},
        {0, 0.81, 0, 3}, {0, 0.79, 0, 2}, {2, 0.66, 0, 1}, {2, 0.67, 0, 2}, {0, 0.99, 0.3, 2}, {3, 0.95, 0.2, 3},
        {3, 0.85, 0.2, 2},
    };
    pvt_real logits[4] = {(pvt_real)log(4), (pvt_real)log(8), 0, (pvt_real)log(2)};
    static const int32_t history[] = {1, 3, 1};
    double p[4];
    pvti_sort_item order[4];
    int64_t stood[4] = {0, 0, 0, 0};
    pvti_sampler s = {NULL, logits, p, order, 4, stood, 1};
    for (int i = 0; i < PVTI_COUNT(cases); i++) {
        pvt_generate_desc d;
        int count[4] = {0, 0, 0, 0}, left = 0;
        memset(&d, 0, sizeof d);
        d.temperature = 1, d.top_k = cases[i].k, d.top_p = cases[i].top_p, d.min_p = cases[i].min_p;
        for (int u = 0; u < 1500; u++) count[pvti_sample(&s, &d, (u + 0.5) / 1500)]++;
        for (int v = 0; v < 4; v++) left += count[v] > 0;
        CHECK(left == cases[i].left && count[1] >= count[0] && count[0] >= count[3] && count[3] >= count[2]);
        if (left == 4) CHECK(count[1] == 800 && count[2] == 100);
        if (left == 2) CHECK(count[1] == 1000 && count[0] == 500);
    }
    logits[3] = -1;
    pvti_sample_penalize(&s, history, 3, 2);
    CHECK_NEAR(logits[1], log(8) / 2, 1e-6); /* once, though it stands there twice */
    CHECK_NEAR(logits[3], -2, 1e-6);
    CHECK_NEAR(logits[0], log(4), 1e-6);
    s.seen_at = 2;
    pvti_sample_penalize(&s, history, 1, 2);
    CHECK_NEAR(logits[1], log(8) / 4, 1e-6);
}

static int stop_second(void *user, int64_t prompt, int32_t id)
{
    int64_t *calls = (int64_t *)user;
    calls[prompt]++;
    return id < 0 || (prompt == 1 && calls[1] == 3);
}

/* Prompts of different lengths in one batch give what each gives alone. */
static void check_generate_many(pvt_ctx *ctx)
{
    pvt_model *model = tiny(ctx, false, 0);
    const int32_t *prompts[4] = {some_ids(20), some_ids(20) + 3, some_ids(20) + 5, some_ids(20)};
    const int64_t n[4] = {5, 1, 9, 5};
    int64_t calls[4] = {0, 0, 0, 0};
    pvt_generated alone, out[4];
    pvt_generate_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.n = 8, desc.ignore_eos = true, desc.repeat_penalty = 1.3, desc.token_of = stop_second, desc.user = calls;
    CHECK_OK(ctx, pvt_generate_many(model, prompts, n, 4, &desc, out));
    desc.token_of = NULL;
    for (int b = 0; b < 4; b++) {
        int64_t made = b == 1 ? 3 : 8;
        CHECK_OK(ctx, pvt_generate(model, prompts[b], n[b], &desc, &alone));
        CHECK(out[b].n == made && calls[b] == made && memcmp(out[b].ids, alone.ids, (size_t)made * sizeof(int32_t)) == 0);
        pvt_ids_free(ctx, alone.ids), pvt_ids_free(ctx, out[b].ids);
    }
    desc.temperature = 1, desc.repeat_penalty = 0, desc.seed = 3;
    CHECK_OK(ctx, pvt_generate_many(model, prompts, n, 4, &desc, out));
    CHECK(memcmp(out[0].ids, out[3].ids, 8 * sizeof(int32_t)) != 0); /* equal prompts, numbers of their own */
    for (int b = 0; b < 4; b++) pvt_ids_free(ctx, out[b].ids);
    desc.n = 24; /* 9 and 24 are beyond 32 */
    CHECK(pvt_generate_many(model, prompts, n, 4, &desc, out) == PVT_ERR_ARGUMENT && !out[0].ids);
    CHECK(pvt_generate_many(model, prompts, n, 0, &desc, out) == PVT_ERR_ARGUMENT);
    desc.n = 4, desc.min_p = 2;
    CHECK(pvt_generate(model, prompts[0], 5, &desc, out) == PVT_ERR_ARGUMENT && strstr(pvt_ctx_error(ctx), "min_p 2"));
    desc.min_p = 0, desc.repeat_penalty = NAN;
    CHECK(pvt_generate(model, prompts[0], 5, &desc, out) == PVT_ERR_ARGUMENT);
    desc.repeat_penalty = 0, desc.top_k = -1;
    CHECK(pvt_generate(model, prompts[0], 5, &desc, out) == PVT_ERR_ARGUMENT);
    pvt_model_free(model);
}

/* Windows that overlap: each token counts once, where it has most before it; parts of a text add up. */
static void check_stride(pvt_ctx *ctx, const pvt_model *model, const pvt_corpus *corpus)
{
    pvt_ppl_desc desc;
    pvt_ppl ppl, part;
    double window[13], per_token[12], sum, wanted = 0, squares = 0, mean;
    int64_t count;
    pvt_run *run = make_run(ctx, model, 1, 12, false, 0);
    memset(&desc, 0, sizeof desc);
    desc.ctx = 12, desc.stride = 3, desc.window_nll = window;
    CHECK_OK(ctx, pvt_perplexity(model, corpus, &desc, &ppl));
    CHECK(ppl.windows == 13 && ppl.tokens == 11 + 12 * 3 && ppl.stride == 3);
    CHECK(pvt_ppl_window_tokens(&ppl, 0) == 11 && pvt_ppl_window_tokens(&ppl, 1) == 3 && pvt_ppl_window_tokens(&ppl, 12) == 3);
    for (int64_t w = 0; w < 13; w++) {
        double nll = 0;
        CHECK_OK(ctx, pvt_run_forward(run, corpus->ids + 3 * w, 1, 12, NULL));
        CHECK_OK(ctx, pvt_run_loss(run, NULL, &sum, &count, per_token));
        for (int64_t t = w == 0 ? 0 : 8; t < 11; t++) nll += per_token[t];
        CHECK_NEAR(window[w], nll, 1e-4);
        wanted += nll;
    }
    CHECK_NEAR(ppl.nll, wanted / 47, 1e-5);
    mean = ppl.nll_sum / 47;
    for (int64_t w = 0; w < 13; w++) squares += pow(window[w] - mean * (w == 0 ? 11 : 3), 2);
    CHECK_NEAR(ppl.nll_stderr, sqrt(squares / 12 * 13) / 47, 1e-9);
    desc.first = 4, desc.last = 9, desc.window_nll = NULL;
    CHECK_OK(ctx, pvt_perplexity(model, corpus, &desc, &part));
    CHECK(part.tokens == 15 && part.windows == 5);
    CHECK_NEAR(part.nll_sum, window[4] + window[5] + window[6] + window[7] + window[8], 1e-4);
    desc.stride = 13;
    CHECK(pvt_perplexity(model, corpus, &desc, &part) == PVT_ERR_ARGUMENT && strstr(pvt_ctx_error(ctx), "stride of 1 to 12"));
    desc.stride = -1;
    CHECK(pvt_perplexity(model, corpus, &desc, &part) == PVT_ERR_ARGUMENT);
    pvt_run_free(run);
}

static void check_perplexity(pvt_ctx *ctx)
{
    pvt_model *model = tiny(ctx, false, 0);
    pvt_corpus corpus, none;
    pvt_ppl_desc desc;
    pvt_ppl ppl, part;
    pvt_generated made;
    double window[4], sum;
    int64_t count;
    pvt_run *run = make_run(ctx, model, 1, 12, false, 0);
    memset(&desc, 0, sizeof desc);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, some_ids(50), 50, &corpus));
    desc.ctx = 12, desc.window_nll = window;
    CHECK_OK(ctx, pvt_perplexity(model, &corpus, &desc, &ppl));
    CHECK(ppl.windows == 4 && ppl.tokens == 44 && ppl.nll_stderr > 0);
    CHECK_NEAR(log(ppl.ppl), ppl.nll_sum / 44, 1e-12);
    CHECK_OK(ctx, pvt_run_forward(run, some_ids(50) + 24, 1, 12, NULL));
    CHECK_OK(ctx, pvt_run_loss(run, NULL, &sum, &count, NULL));
    CHECK(count == 11);
    CHECK_NEAR(sum, window[2], 1e-4); /* few rows take another kernel */
    desc.first = 2, desc.last = 3, desc.window_nll = NULL;
    CHECK_OK(ctx, pvt_perplexity(model, &corpus, &desc, &part));
    CHECK_NEAR(part.nll_sum, window[2], 1e-4);
    CHECK(part.nll_stderr != part.nll_stderr); /* one window says nothing of how far others lie */
    check_stride(ctx, model, &corpus);
    desc.ctx = 32, desc.first = desc.last = 0, corpus.n = 31;
    CHECK(pvt_perplexity(model, &corpus, &desc, &part) == PVT_ERR_ARGUMENT &&
          strstr(pvt_ctx_error(ctx), "shorter than one window"));
    desc.ctx = 33, corpus.n = 50;
    CHECK(pvt_perplexity(model, &corpus, &desc, &part) == PVT_ERR_ARGUMENT &&
          strstr(pvt_ctx_error(ctx), "made for 2 to 32"));
    CHECK(pvt_corpus_load(ctx, "no-such-file", NULL, &none) == PVT_ERR_ARGUMENT);
    model->norm[3] = (pvt_real)NAN; /* legal in a file, but no figure may come of it */
    desc.ctx = 12;
    CHECK(pvt_perplexity(model, &corpus, &desc, &part) == PVT_ERR_NUMERIC);
    CHECK(pvt_generate(model, some_ids(3), 3, NULL, &made) == PVT_ERR_NUMERIC && made.ids == NULL);
    pvt_run_free(run);
    pvt_corpus_free(&corpus);
    pvt_model_free(model);
}

/* ---- choices ---- */

enum { DOCUMENTS = 60, IDS_OF_ONE = 48, CHOICES = 4 };
typedef struct some_task {
    pvt_task task;
    pvt_document documents[DOCUMENTS];
    pvt_choice choices[DOCUMENTS * CHOICES];
    int32_t ids[DOCUMENTS * CHOICES][IDS_OF_ONE];
    double loglik[DOCUMENTS * CHOICES];
    bool greedy[DOCUMENTS * CHOICES];
} some_task;

/* Documents of all kinds: one choice to four; contexts of one token and of many, equal, different in the middle,
   longer than the model's context; choices of one token and of many, that begin alike. */
static void make_task(some_task *s)
{
    int64_t n = 0;
    memset(s, 0, sizeof *s);
    snprintf(s->task.name, sizeof s->task.name, "made");
    for (int64_t i = 0; i < DOCUMENTS; i++) {
        int64_t choices = 1 + i % CHOICES, context = i % 5 == 0 ? 1 + i % 3 : 2 + i * 7 % 29;
        s->documents[i].first = n, s->documents[i].n = choices, s->documents[i].gold = i * 3 % choices;
        for (int64_t k = 0; k < choices; k++, n++) {
            int64_t length = i % 7 == 0 ? 1 : 1 + (i + 3 * k) % 12;
            pvt_choice *c = &s->choices[n];
            c->ids = s->ids[n], c->context = context, c->n = context + length, c->length = (double)(1 + (i + k) % 5);
            for (int64_t t = 0; t < c->n; t++)
                s->ids[n][t] = (int32_t)(pvti_random(5, PVTI_RANDOM_USER, (uint64_t)i, (uint64_t)t) % 37);
            if (i % 6 == 1) s->ids[n][context / 2] = (int32_t)k; /* contexts that part */
            s->ids[n][c->n - 1] = (int32_t)(3 * k + i % 20);
        }
    }
    s->task.documents = s->documents, s->task.choices = s->choices, s->task.n = DOCUMENTS, s->task.n_choices = n;
    s->task.norm = true;
}

/* Each choice by itself, from a forward over all that the model's context takes, its end. */
static void judge_task(pvt_ctx *ctx, const pvt_model *model, some_task *s)
{
    pvt_run *run = make_run(ctx, model, 1, 32, false, 0);
    static pvt_real logits[32 * 37];
    for (int64_t i = 0; i < s->task.n_choices; i++) {
        const pvt_choice *c = &s->choices[i];
        int64_t drop = c->n > 33 ? c->n - 33 : 0, T = c->n - 1 - drop;
        CHECK_OK(ctx, pvt_run_forward(run, c->ids + drop, 1, T, logits));
        s->loglik[i] = 0, s->greedy[i] = true;
        for (int64_t t = c->context - drop - 1; t < T; t++) {
            const pvt_real *row = logits + t * 37;
            int32_t target = c->ids[drop + t + 1];
            double sum = 0;
            for (int v = 0; v < 37; v++) sum += exp((double)row[v]);
            for (int v = 0; v < 37; v++) s->greedy[i] = s->greedy[i] && row[v] <= row[target];
            s->loglik[i] += (double)row[target] - log(sum);
        }
    }
    pvt_run_free(run);
}

/* Accuracy and its standard error, as the harness has them: by values, not by counts. */
static double mean_of(const double *x, int64_t n, double *error)
{
    double mean = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) mean += x[i] / (double)n;
    for (int64_t i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    *error = sqrt(squares / (double)(n - 1)) / sqrt((double)n);
    return mean;
}

static void check_score(const some_task *s, const pvt_score_desc *desc, const pvt_score *score)
{
    double right[DOCUMENTS], norm[DOCUMENTS], worst = 0, error;
    int64_t same = 0, longer = 0;
    for (int64_t i = 0; i < DOCUMENTS; i++) {
        const pvt_document *d = &s->documents[i];
        const pvt_answer *a = desc->answers + d->first;
        int64_t best = 0, best_norm = 0;
        for (int64_t k = 0; k < d->n; k++) {
            const double *l = s->loglik + d->first;
            worst = fmax(worst, fabs(a[k].loglik - l[k]));
            same += a[k].greedy == s->greedy[d->first + k];
            longer += s->choices[d->first + k].n > 33;
            if (l[k] > l[best]) best = k;
            if (l[k] / s->choices[d->first + k].length > l[best_norm] / s->choices[d->first + best_norm].length)
                best_norm = k;
        }
        right[i] = d->n == 1 ? s->greedy[d->first] : best == d->gold;
        norm[i] = d->n == 1 ? s->greedy[d->first] : best_norm == d->gold;
        CHECK(desc->right[i] == (right[i] > 0) && desc->right_norm[i] == (norm[i] > 0));
    }
    CHECK_NEAR(worst, 0, PVTI_REAL_IS_DOUBLE ? 1e-11 : 2e-5);
    CHECK(same == s->task.n_choices && longer > 5 && score->truncated == longer && score->n == DOCUMENTS);
    CHECK_NEAR(score->acc, mean_of(right, DOCUMENTS, &error), 1e-12);
    CHECK_NEAR(score->acc_stderr, error, 1e-12);
    CHECK_NEAR(score->acc_norm, mean_of(norm, DOCUMENTS, &error), 1e-12);
    CHECK_NEAR(score->acc_norm_stderr, error, 1e-12);
    CHECK(score->ppl != score->ppl && score->acc > 0.1 && score->acc < 0.9);
}

static void check_task_refused(pvt_ctx *ctx, const pvt_model *model, some_task *s)
{
    pvt_score score;
    pvt_choice *c = &s->choices[5];
    const pvt_choice was = *c;
    int32_t *id = &s->ids[5][0];
#define REFUSED(change, result, words)                                                                     \
    do {                                                                                                   \
        change;                                                                                            \
        CHECK(pvt_task_score(model, &s->task, NULL, &score) == (result) && strstr(pvt_ctx_error(ctx), words)); \
        *c = was;                                                                                          \
    } while (0)
    REFUSED(c->context = 0, PVT_ERR_ARGUMENT, "at least one token of each");
    REFUSED(c->n = c->context, PVT_ERR_ARGUMENT, "at least one token of each");
    REFUSED(c->length = NAN, PVT_ERR_ARGUMENT, "at least one token of each");
    REFUSED((c->n = 40, c->context = 1), PVT_ERR_ARGUMENT, "39 tokens behind its context");
    REFUSED(*id = 37, PVT_ERR_MISMATCH, "vocabulary ends at 37");
    REFUSED(*id = -1, PVT_ERR_MISMATCH, "vocabulary ends at 37");
    *id = 1;
    REFUSED(s->documents[2].gold = 3, PVT_ERR_ARGUMENT, "the right one is 3");
    REFUSED((s->documents[2].gold = 0, s->documents[2].n = 1000), PVT_ERR_ARGUMENT, "1000 choices");
    s->documents[2].n = 3;
    REFUSED(s->task.n = 0, PVT_ERR_ARGUMENT, "no documents");
#undef REFUSED
}

/* The same bits for any number of threads and kernels; with room for few sequences the same figures; each
   allocation fails once. */
static void check_task(const char *format, int64_t window)
{
    static some_task s;
    static pvt_answer answers[3][DOCUMENTS * CHOICES];
    bool right[2 * DOCUMENTS];
    for (int i = 0; i < 3; i++) {
        pvt_ctx_desc ctx_desc;
        pvt_ctx *ctx;
        pvt_score_desc desc;
        pvt_score score;
        memset(&ctx_desc, 0, sizeof ctx_desc), memset(&desc, 0, sizeof desc);
        ctx_desc.n_threads = i == 1 ? 3 : 1, ctx_desc.isa = i > 0 ? NULL : "scalar";
        CHECK(pvt_ctx_create(&ctx_desc, &ctx) == PVT_OK);
        pvt_model *model = tiny(ctx, true, window);
        if (format) quantize(ctx, model, format);
        if (i == 0) make_task(&s), judge_task(ctx, model, &s);
        desc.answers = answers[i], desc.right = right, desc.right_norm = right + DOCUMENTS;
        if (i == 2) desc.memory_limit = 1;
        CHECK_OK(ctx, pvt_task_score(model, &s.task, &desc, &score));
        check_score(&s, &desc, &score);
        if (i == 1) CHECK(memcmp(answers[0], answers[1], (size_t)s.task.n_choices * sizeof **answers) == 0);
        if (i == 2) {
            check_task_refused(ctx, model, &s);
            double alone = s.loglik[0];
            make_task(&s), s.task.n = 1, s.task.norm = false;
            CHECK_OK(ctx, pvt_task_score(model, &s.task, NULL, &score));
            CHECK_NEAR(log(score.ppl), -alone, 1e-5);
            CHECK(score.acc_stderr != score.acc_stderr && score.acc_norm != score.acc_norm);
            model->norm[3] = (pvt_real)NAN;
            CHECK(pvt_task_score(model, &s.task, NULL, &score) == PVT_ERR_NUMERIC);
        }
        pvt_model_free(model);
        pvt_ctx_destroy(ctx);
    }
}

/* ---- files ---- */

static char scratch_dir[256];

static const char *in_dir(const char *dir, const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s/%s", scratch_dir, dir, name);
    return path;
}
static const char *dir_path(const char *dir)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", scratch_dir, dir);
    return path;
}

static void count_temporary(void *user, const char *name) { *(int *)user += strstr(name, "pvtune") != NULL; }
static bool no_temporaries(const char *dir)
{
    int n = 0;
    return pvti_own_list(NULL, dir_path(dir), count_temporary, &n) != 0 || n == 0; /* or there is no such directory yet */
}

static void save_and_load(pvt_ctx *ctx, const pvt_model *model, const char *name, bool dense, bool bitwise)
{
    enum { T = 17, V = 37 };
    pvt_save_desc desc;
    pvt_model *loaded = NULL, *copy = NULL;
    pvt_real before[T * V], after[T * V];
    pvt_run *a = make_run(ctx, model, 1, T, false, 0);
    double worst = 0;
    memset(&desc, 0, sizeof desc);
    desc.dense = dense;
    CHECK_OK(ctx, pvt_model_save(model, dir_path(name), &desc));
    CHECK_OK(ctx, pvt_model_load(ctx, dir_path(name), NULL, &loaded));
    if (!loaded) return;
    CHECK(loaded->config.tied == model->config.tied && loaded->config.window == model->config.window);
    CHECK(loaded->config.norm_eps == model->config.norm_eps && loaded->n_eos == model->n_eos &&
          loaded->bos == model->bos);
    CHECK_OK(ctx, pvt_model_copy(ctx, loaded, &copy));
    pvt_run *b = make_run(ctx, copy, 1, T, false, 0);
    CHECK_OK(ctx, pvt_run_forward(a, some_ids(T), 1, T, before));
    CHECK_OK(ctx, pvt_run_forward(b, some_ids(T), 1, T, after));
    for (int64_t i = 0; i < T * V; i++) worst = fmax(worst, fabs((double)before[i] - (double)after[i]));
    if (bitwise) CHECK(memcmp(before, after, sizeof before) == 0);
    CHECK_NEAR(worst, 0, 0.1);
    CHECK(pvt_model_save(model, dir_path(name), &desc) == PVT_ERR_ARGUMENT); /* it is there already */
    desc.overwrite = true;
    CHECK_OK(ctx, pvt_model_save(loaded, dir_path(name), &desc)); /* over the file that it is mapped from */
    CHECK_OK(ctx, pvt_run_forward(b, some_ids(T), 1, T, after));
    pvt_run_free(a), pvt_run_free(b);
    pvt_model_free(loaded), pvt_model_free(copy);
}

/* An overwriting save that cannot put its weights in place leaves what was there, and nothing of its own. */
static void check_blocked_save(pvt_ctx *ctx, const pvt_model *model)
{
    char path[1000];
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    CHECK_OK(ctx, pvt_model_save(model, dir_path("blocked"), &desc));
    snprintf(path, sizeof path, "cd '%s' && mv model.safetensors kept && mkdir model.safetensors && cp config.json config",
             dir_path("blocked"));
    CHECK(system(path) == 0);
    CHECK(pvt_model_save(model, dir_path("blocked"), &desc) == PVT_ERR_IO);
    snprintf(path, sizeof path,
             "cd '%s' && cmp config.json config && test -z \"$(ls -A | grep pvtune)\" &&"
             "rmdir model.safetensors && mv kept model.safetensors && echo '{\"eos_token_id\": 3}' >generation_config.json",
             dir_path("blocked"));
    CHECK(system(path) == 0);
    CHECK_OK(ctx, pvt_model_save(model, dir_path("blocked"), &desc));
    snprintf(path, sizeof path, "cd '%s' && test -z \"$(ls -A | grep -e pvtune -e generation)\"", dir_path("blocked"));
    CHECK(system(path) == 0);
}

static void check_save(pvt_ctx *ctx)
{
    pvt_model *model = tiny(ctx, false, 0), *tied = tiny(ctx, true, 5);
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    tied->bos = 1, tied->eos[0] = 2, tied->eos[1] = 7, tied->n_eos = 2;
    save_and_load(ctx, model, "dense", false, false);
    CHECK_OK(ctx, pvt_model_round_f16(model));
    save_and_load(ctx, model, "dense16", false, true);
    quantize(ctx, model, "aqlm:2x4g4");
    save_and_load(ctx, model, "aqlm", false, true);
    check_blocked_save(ctx, model);
    save_and_load(ctx, model, "aqlm-dense", true, false);
    quantize(ctx, tied, "aqlm:1x9g4o2");
    save_and_load(ctx, tied, "aqlm-tied", false, true);
    tied->layers[1].vector[PVTI_NORM_ATT][3] = (pvt_real)1e6;
    CHECK(pvt_model_save(tied, dir_path("overflow"), NULL) == PVT_ERR_NUMERIC &&
          strstr(pvt_ctx_error(ctx), "model.layers.1.input_layernorm"));
    CHECK(!pvti_path_exists(ctx, in_dir("overflow", "model.safetensors")) &&
          !pvti_path_exists(ctx, in_dir("overflow", "config.json")));
    tied->layers[1].vector[PVTI_NORM_ATT][3] = (pvt_real)NAN;
    desc.overwrite = true;
    CHECK(pvt_model_save(tied, dir_path("aqlm-tied"), &desc) == PVT_ERR_NUMERIC &&
          pvti_path_exists(ctx, in_dir("aqlm-tied", "config.json")));
    pvt_model_free(model), pvt_model_free(tied);
}

/* Replaces `from` by `to` in the config of a good directory; loading must fail and its sentence
   must contain `says`. */
static void broken_config(pvt_ctx *ctx, const char *dir, const char *from, const char *to, const char *says)
{
    pvti_map map;
    pvt_model *model = NULL;
    char config[512];
    snprintf(config, sizeof config, "%s", in_dir(dir, "config.json"));
    CHECK_OK(ctx, pvti_map_open(ctx, config, &map));
    char *text = (char *)calloc(1, (size_t)map.size + 1),
                 *changed = (char *)calloc(1, (size_t)map.size + 256);
    memcpy(text, map.data, (size_t)map.size);
    char *at = strstr(text, from);
    CHECK(at != NULL);
    if (at) {
        snprintf(changed, (size_t)map.size + 256, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
        CHECK_OK(ctx, pvti_file_write(ctx, config, changed, (int64_t)strlen(changed)));
        pvt_result result = pvt_model_load(ctx, dir_path(dir), NULL, &model);
        if (result == PVT_OK || !strstr(pvt_ctx_error(ctx), says))
            printf("%s -> %s: %s\n", from, to, result ? pvt_ctx_error(ctx) : "loaded");
        CHECK(result != PVT_OK && model == NULL && strstr(pvt_ctx_error(ctx), says));
        CHECK_OK(ctx, pvti_file_write(ctx, config, text, map.size));
    }
    free(text), free(changed);
    pvti_map_close(ctx, &map);
}

static void check_broken(pvt_ctx *ctx)
{
    static const char *const edits[][4] = {
        {"aqlm", "\"hidden_size\"", "\"hidden_sise\"", "\"hidden_size\" is missing"},
        {"aqlm", "\"hidden_size\": 24", "\"hidden_size\": 2.5", "not a whole number"},
        {"aqlm", "\"hidden_size\": 24", "\"hidden_size\": -24", "hidden size is -24"},
        {"aqlm", "\"hidden_size\": 24", "\"hidden_size\": 32", "embed_tokens.weight\" is [37, 24]"},
        {"aqlm", "\"vocab_size\": 37", "\"vocab_size\": 36", "asks for [36, 24]"},
        {"aqlm", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4", "model.layers.3"},
        {"aqlm", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 99999999999", "layers is"},
        {"aqlm", "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4", "cannot share"},
        {"aqlm", "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 0", "heads is 0"},
        {"aqlm", "\"head_dim\": 4", "\"head_dim\": 5", "even head size"},
        {"aqlm", "\"intermediate_size\": 40", "\"intermediate_size\": 41", "asks for [41, 6, 2]"},
        {"aqlm", "\"in_group_size\": 4", "\"in_group_size\": 7", "do not divide"},
        {"aqlm", "\"num_codebooks\": 2", "\"num_codebooks\": 0", "codebooks"},
        {"aqlm", "\"nbits_per_codebook\": 4", "\"nbits_per_codebook\": 3", ".codes\": code"},
        {"aqlm", "\"nbits_per_codebook\": 4", "\"nbits_per_codebook\": 5", ".codebooks\" is [2, 16, 1, 4]"},
        {"aqlm", "\"quant_method\": \"aqlm\"", "\"quant_method\": \"gptq\"", "gptq"},
        {"aqlm", "\"quantization_config\"", "\"quantization\"", "has no quantization_config"},
        {"aqlm", "\"model_type\": \"llama\"", "\"model_type\": \"gpt2\"", "gpt2"},
        {"aqlm", "\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", "silu"},
        {"aqlm", "\"attention_bias\": false", "\"attention_bias\": true", "bias"},
        {"aqlm", "\"rope_scaling\": null", "\"rope_scaling\": {\"rope_type\": \"yarn\"}", "yarn"},
        {"aqlm", "\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": \"small\"", "not a number"},
        {"aqlm", "\"head_dim\": 4,", "\"head_dim\": 4", "config.json"},
        {"dense16", "\"hidden_size\": 24", "\"hidden_size\": 23", "is [37, 24]"},
    };
    pvt_model *model;
    pvti_map map;
    char path[512];
    for (int64_t i = 0; i < PVTI_COUNT(edits); i++)
        broken_config(ctx, edits[i][0], edits[i][1], edits[i][2], edits[i][3]);
    snprintf(path, sizeof path, "%s", in_dir("dense16", "model.safetensors"));
    CHECK_OK(ctx, pvti_map_open(ctx, path, &map));
    CHECK_OK(ctx, pvti_file_write(ctx, path, map.data, map.size - 100));
    pvti_map_close(ctx, &map);
    CHECK(pvt_model_load(ctx, dir_path("dense16"), NULL, &model) == PVT_ERR_FORMAT &&
          strstr(pvt_ctx_error(ctx), "model.safetensors"));
    CHECK(pvt_model_load(ctx, path, NULL, &model) == PVT_ERR_UNSUPPORTED &&
          strstr(pvt_ctx_error(ctx), "directory"));
    unlink(path);
    CHECK(pvt_model_load(ctx, dir_path("dense16"), NULL, &model) == PVT_ERR_IO);
    unlink(in_dir("dense16", "config.json"));
    CHECK(pvt_model_load(ctx, dir_path("dense16"), NULL, &model) == PVT_ERR_IO &&
          strstr(pvt_ctx_error(ctx), "config.json"));
    CHECK(pvt_model_load(ctx, dir_path("nowhere"), NULL, &model) == PVT_ERR_IO);
    CHECK_OK(ctx, pvti_file_write(ctx, in_dir("dense16", "config.json"), "no model, just a few words of text",
                                  34));
    CHECK(pvt_model_load(ctx, in_dir("dense16", "config.json"), NULL, &model) == PVT_ERR_FORMAT);
}

/* ---- memory ---- */

/* Two choices behind one context. */
static pvt_result score_two(const pvt_model *model)
{
    pvt_document document = {0, 2, 1};
    pvt_choice choices[2];
    pvt_task task;
    pvt_score score;
    memset(&task, 0, sizeof task), memset(choices, 0, sizeof choices);
    for (int i = 0; i < 2; i++) choices[i].ids = some_ids(9) + i, choices[i].n = 8, choices[i].context = 4;
    task.documents = &document, task.choices = choices, task.n = 1, task.n_choices = 2;
    return pvt_task_score(model, &task, NULL, &score);
}

/* Everything a model is used for; stops at the first failure. */
static pvt_result whole_story(pvt_ctx *ctx, pvt_model **model, pvt_model **copy, pvt_run **run,
                              pvt_corpus *corpus)
{
    pvt_run_desc desc;
    pvt_generate_desc generate;
    pvt_generated made;
    pvt_save_desc save;
    pvt_ppl_desc ppl_desc;
    pvt_ppl ppl;
    double sum;
    int64_t count;
    memset(&desc, 0, sizeof desc), memset(&generate, 0, sizeof generate), memset(&save, 0, sizeof save);
    memset(&ppl_desc, 0, sizeof ppl_desc);
    desc.max_ctx = 8, desc.train = desc.accumulate = true, generate.n = 2, save.overwrite = true,
    ppl_desc.ctx = 8;
    PVTI_TRY(pvt_model_load(ctx, dir_path("aqlm"), NULL, model));
    PVTI_TRY(pvt_model_copy(ctx, *model, copy));
    PVTI_TRY(pvt_run_create(*copy, &desc, run));
    PVTI_TRY(pvt_run_forward(*run, some_ids(8), 1, 8, NULL));
    PVTI_TRY(pvt_run_backward(*run, NULL, &sum, &count, NULL, NULL));
    PVTI_TRY(pvt_model_save(*copy, dir_path("memory"), &save));
    PVTI_TRY(pvt_generate(*model, some_ids(3), 3, &generate, &made));
    pvt_ids_free(ctx, made.ids);
    PVTI_TRY(pvt_corpus_from_ids(ctx, some_ids(20), 20, corpus));
    PVTI_TRY(pvt_perplexity(*model, corpus, &ppl_desc, &ppl));
    PVTI_TRY(score_two(*model));
    return pvt_model_round_f16(*model);
}

/* Each allocation fails once: the call says so, nothing leaks, nothing crashes. */
static void check_memory(void)
{
    test_budget budget = {0, 0, true};
    pvt_ctx_desc desc;
    pvt_result result = PVT_ERR_MEMORY;
    int64_t fail_at;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 1;
    desc.allocator.alloc = test_budget_alloc, desc.allocator.free = test_budget_free, desc.allocator.user = &budget;
    /* the first three are the context's */
    for (fail_at = 3; result != PVT_OK && fail_at < 2000; fail_at++) {
        pvt_ctx *ctx;
        pvt_model *model = NULL, *copy = NULL;
        pvt_run *run = NULL;
        pvt_corpus corpus;
        memset(&corpus, 0, sizeof corpus);
        budget.left = fail_at;
        CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
        result = whole_story(ctx, &model, &copy, &run, &corpus);
        if (result != PVT_OK && (result != PVT_ERR_MEMORY || !strstr(pvt_ctx_error(ctx), "memory")))
            printf("allocation %lld: %s: %s\n", (long long)fail_at, pvt_result_text(result),
                   pvt_ctx_error(ctx));
        CHECK(result == PVT_OK || (result == PVT_ERR_MEMORY && strstr(pvt_ctx_error(ctx), "memory")));
        pvt_run_free(run), pvt_model_free(copy), pvt_model_free(model), pvt_corpus_free(&corpus);
        pvt_ctx_destroy(ctx);
        CHECK(budget.live == 0);
        CHECK(no_temporaries("memory"));
    }
    CHECK(result == PVT_OK && fail_at > 50);
}

int main(void)
{
    pvt_ctx *ctx;
    if (!test_scratch(scratch_dir, sizeof scratch_dir) || pvt_ctx_create(NULL, &ctx) != PVT_OK) return 1;
    int64_t bytes = pvt_ctx_get_info(ctx).bytes_now;
#if PVTI_REAL_IS_DOUBLE
    check_gradient(ctx, false, 0, false);
    check_gradient(ctx, true, 5, false);
    check_gradient(ctx, false, 0, true);
    check_gradient(ctx, true, 0, true);
    check_table_gradient(ctx, "int:4g8");
    check_table_gradient(ctx, "int:8g24");
    check_table_gradient(ctx, "aqlm:1x4g4");
    check_task(NULL, 0);
#else /* the same code in float: once is enough */
    check_equal_bits();
    check_sink(ctx, false), check_sink(ctx, true);
    check_cache(ctx, 0), check_cache(ctx, 7);
    check_generation(ctx);
    check_sampler();
    check_generate_many(ctx);
    check_perplexity(ctx);
    check_task(NULL, 0), check_task(NULL, 5), check_task("aqlm:2x4g4", 0);
    check_save(ctx);
    check_broken(ctx);
    check_memory();
#endif
    test_remove(scratch_dir);
    CHECK(pvt_ctx_get_info(ctx).bytes_now == bytes); /* everything was given back */
    pvt_ctx_destroy(ctx);
    return test_end();
}
