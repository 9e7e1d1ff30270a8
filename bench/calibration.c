/*  Calibration of the linears of one block: relative output error ‖(W−Ŵ)X‖²/‖WX‖² and seconds, beside
    what the reference implementation (Vahe1994/AQLM) reaches on the same inputs. The real case is
    block 5 of SmolLM2-135M with 64 × 512 tokens of wiki.test.raw (make smollm2 fetches the model);
    without the files the bench takes random weights with correlated inputs, which have no peer. The fit
    stops at a tolerance of 0.001, by default at 0.002: here errors count, not what the model makes of them.

        build/bench/calibration [--json] [--rows] [--threads N] [--beam N] [--model GGUF --text TEXT]       */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "bench.h"

enum { LAYER = 5, SAMPLES = 64, CTX = 512, CG_STEPS = 4 };
static const double TOLERANCE = 0.001;

/* Errors of the reference on block 5, where they were recorded; they stand in brackets behind ours. */
static const struct { const char *name; int linear; double reference; } cases[] = {
    {"q_proj", PVTI_Q, 0.0148}, {"k_proj", PVTI_K, 0.0110}, {"v_proj", PVTI_V, 0}, {"o_proj", PVTI_O, 0},
    {"gate_proj", PVTI_GATE, 0.0293}, {"up_proj", PVTI_UP, 0}, {"down_proj", PVTI_DOWN, 0.0527}};

static int fail(pvt_ctx *ctx, const char *what)
{
    fprintf(stderr, "calibration: %s: %s\n", what, pvt_ctx_error(ctx));
    return 1;
}

static void row(const bench *b, const char *name, int64_t O, int64_t I, const pvt_fit_stats *s, double reference)
{
    bench_result r = {s->seconds, s->seconds, 1};
    char what[96], peer[16] = "";
    if (reference > 0) snprintf(peer, sizeof peer, " (%.4f)", reference);
    snprintf(what, sizeof what, "%s %d x %d, error %.4f%s", name, (int)O, (int)I, s->error, peer);
    bench_row(b, what, b->threads, &r, 1e-6 * (double)(O * I), "Mweight/s", 0, NULL);
}

/* The block's inputs in the unquantized model: XᵀX of the four kinds of inputs into z->H. */
static pvt_result observe(pvt_ctx *ctx, pvt_model *model, const pvt_corpus *corpus, pvti_quantizer *z)
{
    memset(z, 0, sizeof *z);
    z->ctx = z->run = ctx, z->model = z->there = model;
    z->desc.samples = SAMPLES, z->desc.ctx = CTX;
    PVTI_TRY(pvti_quantizer_check(z, corpus));
    PVTI_TRY(pvti_quantizer_alloc(z));
    for (int64_t s = 0; s < SAMPLES; s++) /* the first windows, as recorded */
        pvt_weight_embedding(z->x + s * CTX * z->C, &model->embed, corpus->ids + s * CTX, CTX);
    for (int64_t l = 0; l < LAYER; l++)
        for (int64_t s = 0; s < z->samples; s += z->per_chunk) {
            pvt_real *x = z->x + s * CTX * z->C;
            pvti_block_forward(&z->blocks, &model->layers[l], x, x, PVTI_MIN(z->per_chunk, z->samples - s), CTX, &z->blocks.acts[0], NULL);
        }
    return pvti_quantizer_observe(z, LAYER);
}

static int real(const bench *b, pvt_ctx *ctx, const char *path, const char *text, int beam)
{
    pvt_model *model;
    pvt_corpus corpus;
    pvti_quantizer z;
    pvt_format format;
    double seconds = 0, weights = 0;
    if (pvt_model_load(ctx, path, NULL, &model) != PVT_OK) return fail(ctx, path);
    if (pvt_corpus_load(ctx, text, pvt_model_tokenizer(model), &corpus) != PVT_OK) return fail(ctx, text);
    if (observe(ctx, model, &corpus, &z) != PVT_OK) return fail(ctx, "inputs");
    if (pvt_format_parse(ctx, "aqlm:2x8g8", &format) != PVT_OK) return fail(ctx, "format");
    for (int64_t i = 0; i < PVTI_COUNT(cases); i++) {
        const pvt_weight *w = &model->layers[LAYER].linear[cases[i].linear];
        pvt_fit_desc desc;
        pvt_fit_stats stats;
        pvt_weight out;
        memset(&desc, 0, sizeof desc);
        desc.name = cases[i].name, desc.beam = beam, desc.tolerance = TOLERANCE, desc.cg_steps = CG_STEPS;
        pvt_weight_dequantize(w, z.W);
        if (pvt_weight_fit(ctx, z.W, w->O, w->I, z.H[pvti_tensors[cases[i].linear].input], &format, &desc, &stats, &out) != PVT_OK)
            return fail(ctx, cases[i].name);
        row(b, cases[i].name, w->O, w->I, &stats, cases[i].reference);
        weights += 1e-6 * (double)(w->O * w->I);
        seconds += stats.seconds;
        pvt_weight_free(&out);
    }
    {
        bench_result all = {seconds, seconds, 1};
        bench_row(b, "the seven weights of a block", b->threads, &all, weights, "Mweight/s", 0, NULL);
    }
    pvti_quantizer_free(&z);
    pvt_corpus_free(&corpus);
    pvt_model_free(model);
    return 0;
}

static int synthetic(const bench *b, pvt_ctx *ctx, int beam)
{
    enum { O = 576, I = 576, N = 2048 };
    pvt_real *W = (pvt_real *)malloc(O * I * sizeof *W), *X = (pvt_real *)malloc(N * I * sizeof *X), *H = (pvt_real *)malloc(I * I * sizeof *H);
    pvt_format format;
    pvt_fit_desc desc;
    pvt_fit_stats stats;
    pvt_weight out;
    int64_t k;
    if (!W || !X || !H) return 1;
    for (int64_t i = 0; i < O * I; i++)
        for (k = 0, W[i] = 0; k < 4; k++) W[i] += (pvt_real)pvti_random_unit(1, PVTI_RANDOM_USER, (uint64_t)k, (uint64_t)i) - (pvt_real)0.5;
    for (int64_t i = 0; i < N * I; i++) {
        for (k = 0, X[i] = 0; k < 4; k++) X[i] += (pvt_real)pvti_random_unit(2, PVTI_RANDOM_USER, (uint64_t)k, (uint64_t)i) - (pvt_real)0.5;
        X[i] *= 1 + (pvt_real)(i % I % 17) / 3;
        if (i % I > 2) X[i] += X[i - 3] / 2;
    }
    pvti_gemm(ctx, H, I, pvti_cols(X, I), pvti_rows(X, I), I, I, N, false);
    memset(&desc, 0, sizeof desc);
    desc.beam = beam, desc.tolerance = TOLERANCE, desc.cg_steps = CG_STEPS;
    if (pvt_format_parse(ctx, "aqlm:2x8g8", &format) != PVT_OK) return fail(ctx, "format");
    if (pvt_weight_fit(ctx, W, O, I, H, &format, &desc, &stats, &out) != PVT_OK) return fail(ctx, "fit");
    row(b, "random weights", O, I, &stats, 0);
    pvt_weight_free(&out);
    free(W), free(X), free(H);
    return 0;
}

int main(int argc, char **argv)
{
    const char *model = bench_option(argc, argv, "--model", "build/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    const char *text = bench_option(argc, argv, "--text", "../shared/data/wikitext2/wiki.test.raw");
    int beam = (int)strtol(bench_option(argc, argv, "--beam", "1"), NULL, 10), status;
    bench b = bench_start(argc, argv, "calibration");
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = b.threads;
    if (pvt_ctx_create(&desc, &ctx) != PVT_OK) return 1;
    if (pvti_path_exists(ctx, model) && pvti_path_exists(ctx, text))
        status = real(&b, ctx, model, text, beam);
    else {
        fprintf(stderr, "calibration: %s or %s is absent (make smollm2 fetches the model): random weights instead\n", model, text);
        status = synthetic(&b, ctx, beam);
    }
    pvt_ctx_destroy(ctx);
    return status;
}
