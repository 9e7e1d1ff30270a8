/*  pvtune demo: the whole story in two to four minutes (--short: one to two) and without any file. A text from a seeded
    grammar (or --text) → a small byte-level Llama trained on it by this library's own
    back-propagation → two bits per weight → tuning with four strategies, under a constant and under
    a cosine learning rate → one table and one chart. Every figure is of unseen text, and of values
    rounded to fp16, as a saved file would hold them. The same seed gives the same figures.

    Included by pvtune.c, whose app, progress and JSON it uses. */
#ifndef DEMO_H
#define DEMO_H

#include "plot.h"
#include "stories.h"

enum {
    DEMO_RUNS = 8,      /* strategies × schedules */
    DEMO_LEARN = 512,   /* tokens of a training step: a small model learns most from many small steps */
    DEMO_TOKENS = 2048, /* tokens of a tuning step */
    DEMO_CURVE = 6      /* points of a curve, each measured on all of the unseen text: those of the table */
};

/* Everything that decides how long it takes. The short one still has the strategies in the order of
   the full one, with every gap wider than seeds move it; the quick one only shows that it runs. */
typedef struct demo_size {
    int64_t layers, dim, ff, train_bytes, unseen_bytes, train_steps, tune_steps, samples;
} demo_size;
static const demo_size demo_full = {4, 128, 384, 600000, 32000, 1500, 100, 256};
static const demo_size demo_short = {3, 96, 256, 600000, 32000, 2400, 110, 128};
static const demo_size demo_quick = {2, 64, 192, 60000, 6000, 400, 8, 32};

typedef struct demo_run { /* one strategy under one schedule */
    const char *strategy, *schedule;
    double ppl, seconds, changed; /* changed: share of the groups whose codes are not the calibrated ones */
    double step[DEMO_CURVE], curve[DEMO_CURVE];
    int points;
} demo_run;

typedef struct demo {
    int64_t train_bytes, unseen_bytes, train_steps, tune_steps, samples, every;
    pvt_model_config config;
    pvt_format format;
    pvt_corpus *train, *unseen;
    double ppl_original, ppl_calibrated, train_seconds, quantize_seconds;
    double bits, bits_all;
    demo_run runs[DEMO_RUNS];
    int n_runs;
    double best_ppl;
    pvt_model *best; /* kept for --save; owned by the app */
} demo;

enum { DEMO_ORIGINAL, DEMO_CALIBRATED, DEMO_TUNED, DEMO_BEST }; /* slots of app.models */

static demo demo_sizes(const options *o)
{
    const demo_size *size = o->quick ? &demo_quick : o->brief ? &demo_short : &demo_full;
    demo d;
    memset(&d, 0, sizeof d);
    d.config.layers = size->layers, d.config.dim = size->dim, d.config.heads = 4;
    d.config.ff = size->ff, d.config.vocab = 256, d.config.ctx = 128, d.config.tied = true;
    d.train_bytes = size->train_bytes, d.unseen_bytes = size->unseen_bytes;
    d.train_steps = o->train_steps ? o->train_steps : size->train_steps;
    d.tune_steps = o->steps ? o->steps : size->tune_steps;
    d.samples = size->samples;
    d.every = (d.tune_steps + DEMO_CURVE - 2) / (DEMO_CURVE - 1);
    d.best_ppl = INFINITY;
    return d;
}

static int demo_keep_text(app *a, const char *name, const char *text, int64_t bytes)
{
    char path[4096];
    if (!a->o.save) return 0;
    snprintf(path, sizeof path, "%s/%s", a->o.save, name);
    TRY(a, pvt_file_write(a->ctx, path, text, bytes));
    return 0;
}

/* One byte is one token. */
static int demo_corpus(app *a, int slot, const char *name, const char *text, int64_t bytes)
{
    DO(demo_keep_text(a, name, text, bytes));
    int32_t *ids = (int32_t *)malloc((size_t)bytes * sizeof *ids + 1);
    if (!ids) return fail(a, "out of memory for %lld tokens", (long long)bytes);
    for (int64_t i = 0; i < bytes; i++) ids[i] = (unsigned char)text[i];
    pvt_result result = pvt_corpus_from_ids(a->ctx, ids, bytes, &a->corpora[slot]);
    free(ids);
    TRY(a, result);
    return 0;
}

/* corpora[0] to learn from, corpora[1] unseen. */
static int demo_texts(app *a, demo *d)
{
    int64_t bytes;
    if (a->o.text) {
        char *text = (char *)(a->buffers[0] = read_text(a->o.text, &bytes));
        if (!text) return fail(a, "%s: %s", a->o.text, strerror(errno));
        int64_t unseen = bytes / 10;
        if (unseen < 4 * d->config.ctx)
            return fail(a, "%s has %lld bytes; the demo needs at least %lld", a->o.text, (long long)bytes,
                        (long long)(40 * d->config.ctx));
        unseen = smaller(unseen, d->unseen_bytes);
        DO(demo_corpus(a, 0, "train.txt", text, bytes - bytes / 10));
        DO(demo_corpus(a, 1, "unseen.txt", text + bytes - bytes / 10, unseen));
    } else { /* two seeds, two sets of stories */
        char *text = (char *)(a->buffers[0] = stories_write(2 * a->o.seed, d->train_bytes, &bytes));
        if (!text) return fail(a, "out of memory for the stories");
        DO(demo_corpus(a, 0, "train.txt", text, bytes));
        text = (char *)(a->buffers[1] = stories_write(2 * a->o.seed + 1, d->unseen_bytes, &bytes));
        if (!text) return fail(a, "out of memory for the stories");
        DO(demo_corpus(a, 1, "unseen.txt", text, bytes));
    }
    d->train = &a->corpora[0], d->unseen = &a->corpora[1];
    return 0;
}

/* Perplexity on the unseen text, all of it. Its progress stays silent. */
static int demo_measure(app *a, const demo *d, const pvt_model *model, double *ppl)
{
    pvt_ppl_desc desc;
    pvt_ppl out;
    memset(&desc, 0, sizeof desc);
    desc.ctx = d->config.ctx;
    a->meter.muted++;
    pvt_result result = pvt_perplexity(model, d->unseen, &desc, &out);
    a->meter.muted--;
    TRY(a, result);
    *ppl = out.ppl;
    return 0;
}

/* A step whose own progress stays silent: the demo counts across its runs. */
static int demo_step(app *a, pvt_tune_stats *stats)
{
    a->meter.muted++;
    pvt_result result = pvt_tuner_step(a->tuner, stats);
    a->meter.muted--;
    TRY(a, result);
    return 0;
}

static int demo_train(app *a, demo *d)
{
    pvt_tune_desc desc;
    pvt_tokenizer *bytes;
    double start = meter_now();
    memset(&desc, 0, sizeof desc);
    desc.steps = d->train_steps, desc.ctx = d->config.ctx, desc.batch = DEMO_LEARN / d->config.ctx;
    desc.cross_entropy = true, desc.eval_every = -1;
    desc.warmup = d->train_steps < 4 ? -1 : smaller(50, d->train_steps / 4);
    desc.pv.strategy = PVT_STRATEGY_CONTINUOUS;
    desc.pv.params.lr = 3e-3, desc.pv.params.beta1 = 0.9, desc.pv.params.beta2 = 0.95;
    TRY(a, pvt_model_create(a->ctx, &d->config, &a->models[DEMO_ORIGINAL]));
    TRY(a, pvt_tokenizer_create_bytes(a->ctx, &bytes));
    pvt_model_set_tokenizer(a->models[DEMO_ORIGINAL], bytes);
    note(a, "1. training a Llama of %lld parameters on %lld bytes, %lld steps of %d tokens",
         (long long)count_params(a->models[DEMO_ORIGINAL]), (long long)d->train->n, (long long)d->train_steps, DEMO_LEARN);
    TRY(a, pvt_tuner_create(a->models[DEMO_ORIGINAL], NULL, d->train, &desc, &a->tuner));
    while (!pvt_tuner_get_info(a->tuner).done) {
        pvt_tune_stats stats;
        DO(demo_step(a, &stats));
        if (progress(a, "train", stats.step, d->train_steps, "steps", stats.loss)) return fail(a, "stopped on request");
    }
    pvt_tuner_free(a->tuner);
    a->tuner = NULL;
    TRY(a, pvt_model_round_f16(a->models[DEMO_ORIGINAL])); /* as a file will hold it */
    d->train_seconds = meter_now() - start;
    return demo_measure(a, d, a->models[DEMO_ORIGINAL], &d->ppl_original);
}

static int demo_quantize(app *a, demo *d)
{
    pvt_quantize_desc desc;
    pvt_save_desc as;
    double start = meter_now();
    memset(&desc, 0, sizeof desc);
    desc.format = d->format, desc.samples = d->samples, desc.ctx = d->config.ctx;
    desc.finetune_epochs = 3;
    note(a, "2. calibrating %s on %lld tokens", a->o.format, (long long)(d->samples * d->config.ctx));
    TRY(a, pvt_model_copy(a->ctx, a->models[DEMO_ORIGINAL], &a->models[DEMO_CALIBRATED]));
    TRY(a, pvt_quantize(a->models[DEMO_CALIBRATED], d->train, &desc));
    TRY(a, pvt_model_round_f16(a->models[DEMO_CALIBRATED])); /* as a file will hold it */
    d->quantize_seconds = meter_now() - start;
    memset(&as, 0, sizeof as);
    /* codes of 4 bits count as such: the layout gives them a byte */
    pvt_bits bits = pvt_model_bits(a->models[DEMO_CALIBRATED], &as);
    d->bits = bits.packed_linears, d->bits_all = bits.packed_all;
    return demo_measure(a, d, a->models[DEMO_CALIBRATED], &d->ppl_calibrated);
}

/* Adam 1e-3 (.9, .95) for continuous parameters, 2e-3 (0, .95) for the codes, 1 % of the groups per
   step. At 1e-3 few codes move; at 3e-3 a constant rate does harm, most of all to STE. */
static pvt_tune_desc demo_tune_desc(const demo *d, pvt_strategy strategy, bool cosine)
{
    pvt_tune_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.pv.strategy = strategy;
    desc.pv.values.lr = 1e-3, desc.pv.values.beta1 = 0.9, desc.pv.values.beta2 = 0.95;
    desc.pv.codes.rule = PVT_OPTIMIZER_ADAM, desc.pv.codes.lr = 2e-3;
    desc.steps = d->tune_steps, desc.ctx = d->config.ctx, desc.batch = DEMO_TOKENS / d->config.ctx;
    desc.schedule = cosine ? PVT_SCHEDULE_COSINE : PVT_SCHEDULE_CONSTANT;
    desc.warmup = -1, desc.eval_every = -1;
    return desc;
}

static void demo_point(demo_run *run, int64_t step, double ppl)
{
    run->step[run->points] = (double)step;
    run->curve[run->points++] = ppl;
}

static int demo_tune(app *a, demo *d, demo_run *run, pvt_strategy strategy, int64_t done, int64_t total)
{
    pvt_tune_desc desc = demo_tune_desc(d, strategy, strcmp(run->schedule, "cosine") == 0);
    int64_t groups, moved;
    double ppl;
    TRY(a, pvt_model_copy(a->ctx, a->models[DEMO_CALIBRATED], &a->models[DEMO_TUNED]));
    TRY(a, pvt_tuner_create(a->models[DEMO_TUNED], a->models[DEMO_ORIGINAL], d->train, &desc, &a->tuner));
    demo_point(run, 0, d->ppl_calibrated);
    for (;;) {
        pvt_tune_stats stats;
        double start = meter_now();
        DO(demo_step(a, &stats));
        run->seconds += meter_now() - start;
        if (progress(a, "tune", done + stats.step, total, "steps", stats.loss)) return fail(a, "stopped on request");
        if (stats.step == d->tune_steps) break;
        if (stats.step % d->every != 0) continue;
        DO(demo_measure(a, d, a->models[DEMO_TUNED], &ppl));
        demo_point(run, stats.step, ppl);
    }
    pvt_tuner_free(a->tuner);
    a->tuner = NULL;
    TRY(a, pvt_model_round_f16(a->models[DEMO_TUNED])); /* as a file will hold it */
    DO(demo_measure(a, d, a->models[DEMO_TUNED], &run->ppl));
    demo_point(run, d->tune_steps, run->ppl);
    count_changed(a->models[DEMO_TUNED], a->models[DEMO_CALIBRATED], &groups, &moved);
    run->changed = groups ? (double)moved / (double)groups : 0;
    if (run->ppl < d->best_ppl) {
        d->best_ppl = run->ppl;
        pvt_model_free(a->models[DEMO_BEST]);
        a->models[DEMO_BEST] = a->models[DEMO_TUNED];
    } else
        pvt_model_free(a->models[DEMO_TUNED]);
    a->models[DEMO_TUNED] = NULL;
    return 0;
}

static const char *const demo_names[] = {"original", "calibrated", "tuned"};

/* Models that somebody kept are replaced when that is wished. */
static int demo_check_save(app *a)
{
    char path[4096];
    struct stat st;
    if (!a->o.save) return 0;
    if (stat(a->o.save, &st) == 0 && !S_ISDIR(st.st_mode)) return fail(a, "%s is a file; --save names a directory", a->o.save);
    for (int i = 0; i < 3 && !a->o.text_only; i++) {
        if (snprintf(path, sizeof path, "%s/%s", a->o.save, demo_names[i]) >= (int)sizeof path)
            return fail(a, "%s: path too long", a->o.save);
        if (pvt_model_exists(a->ctx, path) && !a->o.overwrite)
            return fail(a, "%s holds a model already; give another --save, or --overwrite to replace it", path);
    }
    for (int i = 0; i < 2 && a->o.text; i++) {
        snprintf(path, sizeof path, "%s/%s", a->o.save, i ? "unseen.txt" : "train.txt");
        if (same_file(path, a->o.text)) return fail(a, "%s is an input; give another place to --save", path);
    }
    return 0;
}

static int demo_save(app *a)
{
    static const int slots[] = {DEMO_ORIGINAL, DEMO_CALIBRATED, DEMO_BEST};
    pvt_save_desc save;
    char path[4096];
    memset(&save, 0, sizeof save);
    save.overwrite = true;
    for (int i = 0; i < 3 && a->o.save; i++) {
        snprintf(path, sizeof path, "%s/%s", a->o.save, demo_names[i]);
        TRY(a, pvt_model_save(a->models[slots[i]], path, &save));
    }
    return 0;
}

static void demo_table(const app *a, const demo *d)
{
    printf("%-26s %6s %6s %11s %8s %9s\n", "", "bits", "all", "perplexity", "seconds", "codes new");
    printf("%-26s %6.2f %6.2f %11.4f %8.1f\n", "original (fp16)", 16.0, 16.0, d->ppl_original, d->train_seconds);
    printf("%-26s %6.2f %6.2f %11.4f %8.1f\n", "calibrated only", d->bits, d->bits_all, d->ppl_calibrated, d->quantize_seconds);
    for (int i = 0; i < d->n_runs; i++) {
        const demo_run *r = &d->runs[i];
        char name[64];
        snprintf(name, sizeof name, "%s, %s lr", r->strategy, r->schedule);
        printf("%-26s %6.2f %6.2f %11.4f %8.1f %7.1f %%\n", name, d->bits, d->bits_all, r->ppl, r->seconds, 100 * r->changed);
    }
    printf("\nbits: per weight of the blocks' linears (%s), codebooks and scales counted; all: with the embedding\n"
           "and the norms, which stay in fp16. Perplexity per byte of %lld bytes of unseen text. Seconds: of training,\n"
           "calibration, and %lld tuning steps of %d tokens. Curves: %s\n", a->o.format, (long long)d->unseen->n,
           (long long)d->tune_steps, DEMO_TOKENS, a->o.svg);
}

static void demo_json(app *a, const demo *d)
{
    buffer *t = &a->json;
    put_open(t, NULL, "{");
    put_key(t, "seed"), buffer_printf(t, "%llu", (unsigned long long)a->o.seed), put_text(t, "text", a->o.text ? a->o.text : "stories");
    put_text(t, "format", a->o.format), put_int(t, "params", count_params(a->models[DEMO_ORIGINAL]));
    put_number(t, "bits_per_weight", d->bits), put_number(t, "bits_per_weight_all", d->bits_all);
    put_number(t, "ppl_original", d->ppl_original), put_number(t, "ppl_calibrated", d->ppl_calibrated);
    put_open(t, "runs", "[");
    for (int i = 0; i < d->n_runs; i++) {
        const demo_run *r = &d->runs[i];
        put_open(t, NULL, "{");
        put_text(t, "strategy", r->strategy), put_text(t, "schedule", r->schedule), put_number(t, "ppl", r->ppl);
        put_number(t, "groups_changed", r->changed), put_number(t, "seconds", r->seconds);
        put_open(t, "curve", "[");
        for (int j = 0; j < r->points; j++) {
            put_open(t, NULL, "[");
            put_number(t, NULL, r->step[j]), put_number(t, NULL, r->curve[j]);
            put_close(t, "]");
        }
        put_close(t, "]"), put_close(t, "}");
    }
    put_close(t, "]");
    put_text(t, "svg", a->o.svg), put_number(t, "seconds", elapsed(a)), put_int(t, "peak_bytes", peak_bytes(a));
    put_close(t, "}");
}

/* A chart as text, the caller's to free; *svg may be NULL. */
static bool draw_chart(bool (*draw)(const void *chart, FILE *f), const void *chart, char **svg, size_t *bytes)
{
    *svg = NULL, *bytes = 0;
#ifdef _WIN32
    return on_windows_text(draw, chart, svg, bytes);
#else
    FILE *f = open_memstream(svg, bytes);
    bool good = f && draw(chart, f);
    return (!f || fclose(f) == 0) && good;
#endif
}

/* A chart, drawn in memory, then written as a whole. */
static int write_chart(app *a, bool (*draw)(const void *chart, FILE *f), const void *chart)
{
    char *svg;
    size_t bytes;
    bool good = draw_chart(draw, chart, &svg, &bytes);
    if (!good) {
        free(svg);
        return fail(a, "the chart %s could not be drawn: out of memory, or of room for temporary files", a->o.svg);
    }
    pvt_result result = pvt_file_write(a->ctx, a->o.svg, svg, (int64_t)bytes);
    free(svg);
    TRY(a, result);
    return 0;
}

static bool draw_lines(const void *chart, FILE *f) { return plot_write((const plot *)chart, f); }

static int demo_plot(app *a, const demo *d)
{
    static plot p;
    char title[160], subtitle[200] = "from calibrated codes towards the original model; lower is better";
    double highest = 0;
    memset(&p, 0, sizeof p);
    snprintf(title, sizeof title, "Tuning a Llama at %.2f bits per weight", d->bits);
    p.title = title;
    p.subtitle = subtitle;
    p.x_label = "tuning steps of 2,048 tokens";
    p.y_label = "perplexity per byte of unseen text";
    p.panels[0].title = "constant learning rate", p.panels[1].title = "cosine learning rate";
    p.n_panels = 2;
    for (int i = 0; i < d->n_runs; i++) {
        plot_panel *panel = &p.panels[strcmp(d->runs[i].schedule, "cosine") == 0];
        plot_line *line = &panel->lines[panel->n_lines++];
        line->name = d->runs[i].strategy;
        line->x = d->runs[i].step, line->y = d->runs[i].curve, line->n = d->runs[i].points;
    }
    p.levels[0].name = "original", p.levels[0].y = d->ppl_original, p.n_levels = 1;
    /* a strategy that goes astray must not flatten the others: the chart ends a little above the start */
    p.y_max = d->runs[0].curve[0] + 0.4 * (d->runs[0].curve[0] - p.levels[0].y);
    for (int i = 0; i < d->n_runs; i++)
        for (int j = 0; j < d->runs[i].points; j++) highest = fmax(highest, d->runs[i].curve[j]);
    if (!(p.y_max > p.levels[0].y)) p.y_max = 0;
    if (p.y_max > 0 && highest > p.y_max)
        snprintf(subtitle + strlen(subtitle), sizeof subtitle - strlen(subtitle), "; what leaves the chart goes up to %.3g", highest);
    return write_chart(a, draw_lines, &p);
}

static int verb_demo(app *a)
{
    static const pvt_strategy strategies[] = {PVT_STRATEGY_CONTINUOUS, PVT_STRATEGY_STE, PVT_STRATEGY_SUBSPACE_STE, PVT_STRATEGY_SUBSPACE};
    static const char *const schedules[] = {"constant", "cosine"};
    demo d = demo_sizes(&a->o);
    TRY(a, pvt_format_parse(a->ctx, a->o.format, &d.format));
    if (a->o.text_only && !a->o.save) {
        fail(a, "--text-only needs --save DIR");
        return 2;
    }
    if (a->o.quick && a->o.brief) {
        fail(a, "give either --short or --quick");
        return 2;
    }
    if (a->o.save && mkdir(a->o.save, 0777) != 0 && errno != EEXIST)
        return fail(a, "the directory %s could not be made: %s", a->o.save, strerror(errno));
    DO(demo_check_save(a));
    if (!a->o.text_only) DO(check_writable(a, a->o.svg));
    DO(demo_texts(a, &d));
    if (a->o.text_only) {
        put_open(&a->json, NULL, "{");
        put_text(&a->json, "save", a->o.save), put_int(&a->json, "train_bytes", d.train->n);
        put_int(&a->json, "unseen_bytes", d.unseen->n);
        put_close(&a->json, "}");
        return put_result(a);
    }
    DO(demo_train(a, &d));
    DO(demo_quantize(a, &d));
    note(a, "3. tuning with four strategies under two schedules, %lld steps each", (long long)d.tune_steps);
    for (int s = 0; s < 4; s++)
        for (int k = 0; k < 2; k++) {
            demo_run *run = &d.runs[d.n_runs++];
            run->strategy = pvt_strategy_name(strategies[s]), run->schedule = schedules[k];
            DO(demo_tune(a, &d, run, strategies[s], (2 * s + k) * d.tune_steps, DEMO_RUNS * d.tune_steps));
        }
    DO(demo_plot(a, &d));
    DO(demo_save(a));
    meter_clear(&a->meter);
    demo_json(a, &d);
    if (!a->o.json) demo_table(a, &d);
    return put_result(a);
}

#endif
