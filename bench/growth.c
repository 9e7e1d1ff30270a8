/*  Does time grow with the work? Forward and backward of models with random weights: more tokens in one sequence,
    more sequences, more layers, more width; and more threads on the same work. Each row's work is counted in
    multiplications (linears, head, attention's T²), its rate beside the first row's of the series says how
    even the growth is; --svg draws time against work, both relative to the first row.

        build/bench/growth [--json] [--rows] [--threads N] [--svg FILE]                                        */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "bench.h"
#include "../examples/plot.h"

#include <errno.h>
#include <math.h>

enum { STEPS = 4, SERIES = 5 };
typedef struct size {
    int64_t B, T, layers, dim;
} size;
static const size base = {2, 256, 4, 256};
static const char *const names[SERIES] = {"tokens", "sequences", "layers", "width", "threads"};

static size grown(int series, int64_t factor)
{
    size s = base;
    if (series == 0) s.T *= factor;
    if (series == 1) s.B *= factor;
    if (series == 2) s.layers *= factor;
    if (series == 3) s.dim *= factor;
    return s;
}

enum { VOCAB = 4096 };
/* Multiplications and additions of forward and backward: 6 per weight and token, attention 12·T/2·C per layer. */
static double gflop(const size *s)
{
    double C = (double)s->dim, n = (double)(s->B * s->T), linears = 4 * C * C + 3 * C * 3 * C;
    return 1e-9 * n * (6 * ((double)s->layers * linears + VOCAB * C) + (double)s->layers * 6 * (double)s->T * C);
}

typedef struct job {
    pvt_run *run;
    int32_t *ids;
    size s;
    bool failed;
} job;
static pvt_result ignore(void *user, int64_t tensor, const pvt_real *dW)
{
    (void)user, (void)tensor, (void)dW;
    return PVT_OK;
}
static void forward_backward(void *arg)
{
    job *w = (job *)arg;
    double loss;
    int64_t count;
    w->failed |= pvt_run_forward(w->run, w->ids, w->s.B, w->s.T, NULL) != PVT_OK ||
                 pvt_run_backward(w->run, NULL, &loss, &count, ignore, NULL) != PVT_OK;
}

static bool measure(int threads, const size *s, bench_result *result)
{
    pvt_model_config c;
    pvt_ctx_desc desc;
    pvt_run_desc run;
    pvt_model *model;
    pvt_ctx *ctx;
    bench_fn *fn = forward_backward;
    job w;
    void *arg = &w;
    memset(&c, 0, sizeof c), memset(&desc, 0, sizeof desc), memset(&run, 0, sizeof run), memset(&w, 0, sizeof w);
    desc.n_threads = threads;
    c.layers = s->layers, c.dim = s->dim, c.ff = 3 * s->dim, c.head_dim = 64, c.heads = s->dim / 64, c.vocab = VOCAB;
    c.ctx = 4096, c.tied = true;
    run.max_batch = s->B, run.max_ctx = s->T, run.train = true;
    if (pvt_ctx_create(&desc, &ctx) != PVT_OK || pvt_model_create(ctx, &c, &model) != PVT_OK ||
        pvt_run_create(model, &run, &w.run) != PVT_OK)
        return false;
    w.s = *s, w.ids = (int32_t *)malloc((size_t)(s->B * s->T) * sizeof *w.ids);
    for (int64_t i = 0; w.ids && i < s->B * s->T; i++) w.ids[i] = (int32_t)(pvti_random(1, PVTI_RANDOM_USER, 0, (uint64_t)i) % VOCAB);
    if (w.ids) bench_run(result, &fn, &arg, 1, 1, false);
    w.failed |= !w.ids;
    free(w.ids);
    pvt_run_free(w.run), pvt_model_free(model), pvt_ctx_destroy(ctx);
    return !w.failed;
}

int main(int argc, char **argv)
{
    bench b = bench_start(argc, argv, "growth");
    const char *svg = bench_option(argc, argv, "--svg", NULL);
    double x[SERIES][STEPS], y[SERIES][STEPS], line[2] = {0, 0};
    plot p;
    memset(&p, 0, sizeof p);
    p.title = "Time against work, forward + backward", p.n_panels = 1;
    p.subtitle = "from the first step of each series (threads: speed)";
    p.x_label = "doublings of the work", p.y_label = "doublings of the time", p.panels[0].title = "";
    for (int series = 0; series < SERIES; series++) {
        double first = 0, start = 0;
        int n = 0;
        for (int64_t factor = 1; n < STEPS && (series < 4 || factor <= b.threads); factor *= 2, n++) {
            size s = grown(series, factor);
            double work = gflop(&s);
            int threads = series < 4 ? b.threads : (int)factor;
            bench_result r = {0, 0, 0};
            char what[96];
            if (!measure(threads, &s, &r)) return fprintf(stderr, "growth: failed\n"), 1;
            if (n == 0) first = work / r.min, start = r.min;
            snprintf(what, sizeof what, "%s x %d: %d x %d, %d layers of %d", names[series], (int)factor, (int)s.B, (int)s.T, (int)s.layers, (int)s.dim);
            bench_row(&b, what, threads, &r, work, "GFLOP/s", series < 4 ? first : first * (double)factor, "the first row's rate");
            x[series][n] = log2(series < 4 ? work / (first * start) : (double)factor);
            y[series][n] = log2(series < 4 ? r.min / start : start / r.min);
            line[1] = x[series][n] > line[1] ? x[series][n] : line[1];
        }
        p.panels[0].lines[series].name = names[series], p.panels[0].lines[series].n = n;
        p.panels[0].lines[series].x = x[series], p.panels[0].lines[series].y = y[series];
    }
    p.panels[0].lines[SERIES].name = "as work", p.panels[0].lines[SERIES].n = 2;
    p.panels[0].lines[SERIES].x = p.panels[0].lines[SERIES].y = line, p.panels[0].n_lines = SERIES + 1;
    if (svg) {
        FILE *f = fopen(svg, "wb");
        bool written = f && plot_write(&p, f);
        if (!f || fclose(f) != 0 || !written)
            return fprintf(stderr, "growth: %s could not be written: %s\n", svg, strerror(errno)), 1;
    }
    return 0;
}
