/*  The third experiment of web.c: the demo's Llama (examples/demo.h), smaller: two layers of width 32, bytes of
    stories as tokens, trained when the page was built (train.c). Here it is calibrated, and four strategies tune the
    same codes. aqlm:2x4g4; rates as in the demo, but of the codes twice as long, for there are fewer steps.
    State: seed, step, cap in 1/1000. Needs what web.c has before it: ctx, error, given, put. */
#ifndef RACE_H
#define RACE_H

#include "../examples/stories.h"

enum { RACE_OPTIONS = 3, RACE_STEPS = 60, RACE_EVERY = 4, RACERS = 4, RACE_CTX = 64 };
static struct race {
    pvt_corpus train, unseen;
    pvt_model *original, *calibrated, *tuned[RACERS];
    pvt_tuner *tuners[RACERS];
    double ppl_original, ppl_calibrated, ppl[RACERS][RACE_STEPS / RACE_EVERY + 1];
    int32_t step, options[RACE_OPTIONS];
    bool live;
} race;

static bool race_text(uint64_t seed, int64_t want, pvt_corpus *out)
{
    int64_t bytes = 0;
    char *text = stories_write(seed, want, &bytes);
    int32_t *ids = (int32_t *)malloc((size_t)(bytes + 1) * sizeof *ids);
    for (int64_t i = 0; text && ids && i < bytes; i++) ids[i] = (unsigned char)text[i];
    bool done = text && ids && good(pvt_corpus_from_ids(ctx, ids, want, out));
    free(text), free(ids);
    return done;
}

/* Its numbers in fp16, one after the other: to `half`, or from there. */
static int64_t race_halves(pvt_model *model, uint16_t *half, bool take)
{
    int64_t n = 0;
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        pvt_real *values = t.weight ? (pvt_real *)t.weight->array[0] : t.values;
        for (int64_t j = 0; j < t.n; j++, n++)
            if (take) values[j] = pvti_f16_to_f32(half[n]);
            else if (half) half[n] = pvti_f32_to_f16(values[j]);
    }
    return n;
}

static bool race_model(pvt_model **out)
{
    pvt_model_config c;
    memset(&c, 0, sizeof c);
    c.layers = 2, c.dim = 32, c.heads = 4, c.ff = 96, c.vocab = 256, c.ctx = RACE_CTX, c.tied = true;
    return good(pvt_model_create(ctx, &c, out));
}

static bool race_measure(const pvt_model *model, double *ppl)
{
    pvt_ppl out;
    TRY(pvt_perplexity(model, &race.unseen, NULL, &out));
    *ppl = out.ppl;
    return true;
}

static void race_end(void)
{
    for (int i = 0; i < RACERS; i++) pvt_tuner_free(race.tuners[i]), pvt_model_free(race.tuned[i]);
    pvt_model_free(race.calibrated), pvt_model_free(race.original);
    pvt_corpus_free(&race.train), pvt_corpus_free(&race.unseen);
    memset(&race, 0, sizeof race);
}

#ifdef WEB_MODEL
#include WEB_MODEL

static const pvt_strategy race_strategies[RACERS] = {
    PVT_STRATEGY_CONTINUOUS, PVT_STRATEGY_STE, PVT_STRATEGY_SUBSPACE_STE, PVT_STRATEGY_SUBSPACE};

static bool race_begin(void)
{
    pvt_quantize_desc z;
    pvt_tune_desc d;
    race_end();
    memset(&z, 0, sizeof z), memset(&d, 0, sizeof d);
    memcpy(race.options, given, sizeof race.options);
    z.samples = 16, z.ctx = RACE_CTX, z.fit.stream = (uint64_t)given[0], z.finetune_epochs = -1, z.fit.epochs = 4;
    if (!race_text(2 * (uint64_t)given[0] + 2, 16384, &race.train) || !race_text(1, 1024, &race.unseen) ||
        !race_model(&race.original))
        return false;
    race_halves(race.original, (uint16_t *)web_model, true);
    TRY(pvt_format_parse(ctx, "aqlm:2x4g4", &z.format));
    TRY(pvt_model_copy(ctx, race.original, &race.calibrated));
    TRY(pvt_quantize(race.calibrated, &race.train, &z));
    if (!race_measure(race.original, &race.ppl_original) ||
        !race_measure(race.calibrated, &race.ppl_calibrated))
        return false;
    d.pv.values.lr = 1e-3, d.pv.values.beta1 = 0.9, d.pv.values.beta2 = 0.95;
    d.pv.codes.rule = PVT_OPTIMIZER_ADAM, d.pv.codes.lr = 5e-3;
    d.steps = RACE_STEPS, d.ctx = RACE_CTX, d.batch = 4;
    d.schedule = PVT_SCHEDULE_CONSTANT, d.warmup = -1, d.eval_every = -1;
    for (int i = 0; i < RACERS; i++) {
        d.pv.strategy = race_strategies[i];
        d.pv.cap = race_strategies[i] == PVT_STRATEGY_STE ? 0 : given[2] / 1000.0;
        TRY(pvt_model_copy(ctx, race.calibrated, &race.tuned[i]));
        TRY(pvt_tuner_create(race.tuned[i], race.original, &race.train, &d, &race.tuners[i]));
        race.ppl[i][0] = race.ppl_calibrated;
    }
    return race.live = true;
}

static double race_away(const pvt_model *x, const pvt_model *y) /* share of the groups whose codes differ */
{
    int64_t groups = 0, differ = 0;
    for (int64_t i = 0; i < pvt_model_tensors(x); i++) {
        const pvt_weight *p = pvt_model_tensor(x, i).weight, *q = pvt_model_tensor(y, i).weight;
        if (!p || p->format.kind == PVT_FORMAT_DENSE) continue;
        int64_t M = p->format.codebooks, n = p->O * p->I / p->format.in_group;
        for (int64_t g = 0; g < n; g++)
            differ += memcmp((uint8_t *)p->array[0] + g * M, (uint8_t *)q->array[0] + g * M, (size_t)M) != 0;
        groups += n;
    }
    return (double)differ / (double)groups;
}

/* The only experiment that goes on from the last frame, if that was an earlier step of the same race. */
static bool race_frame(int n)
{
    static const int32_t limits[RACE_OPTIONS][2] = {{0, 1000000}, {0, RACE_STEPS}, {1, 1000}};
    if (!in_range(n, limits, RACE_OPTIONS)) return false;
    bool same = race.live && race.step <= given[1] && race.options[0] == given[0] &&
                race.options[2] == given[2];
    if (!same && !race_begin()) return race_end(), false;
    for (; race.step < given[1]; race.step++)
        for (int i = 0; i < RACERS; i++) {
            pvt_tune_stats stats;
            int32_t after = race.step + 1;
            if (!good(pvt_tuner_step(race.tuners[i], &stats))) return race_end(), false;
            if (after % RACE_EVERY == 0 && !race_measure(race.tuned[i], &race.ppl[i][after / RACE_EVERY]))
                return race_end(), false;
        }
    put(race.ppl_original), put(race.ppl_calibrated), put(pvt_model_bits(race.calibrated, NULL).linears);
    for (int i = 0; i < RACERS; i++) put(race_away(race.tuned[i], race.calibrated));
    for (int k = 0; k <= race.step / RACE_EVERY; k++)
        for (int i = 0; i < RACERS; i++) put(race.ppl[i][k]);
    return true;
}
#endif

#endif
