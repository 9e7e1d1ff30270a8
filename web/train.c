/*  Trains the little Llama of the page's third experiment and prints it as a C array in fp16, for WEB_MODEL of
    web.c: the same numbers on every machine. */
#define PVTUNE_IMPLEMENTATION
#define PVT_API static
#include "../pvtune.h"

static pvt_ctx *ctx;
static char error[512];
static bool good(pvt_result result)
{
    if (result != PVT_OK) snprintf(error, sizeof error, "%s", pvt_ctx_error(ctx));
    return result == PVT_OK;
}
#define TRY(call) do { if (!good(call)) return false; } while (0)
#include "race.h"

int main(void)
{
    pvt_tune_desc d;
    pvt_tune_stats stats = {0};
    memset(&d, 0, sizeof d);
    d.steps = 2000, d.ctx = RACE_CTX, d.batch = 8, d.cross_entropy = true, d.eval_every = -1, d.warmup = 50;
    d.pv.strategy = PVT_STRATEGY_CONTINUOUS;
    d.pv.params.lr = 6e-3, d.pv.params.beta1 = 0.9, d.pv.params.beta2 = 0.95;
    if (pvt_ctx_create(NULL, &ctx) || !race_text(0, 400000, &race.train) || !race_text(1, 4096, &race.unseen) ||
        !race_model(&race.original) ||
        !good(pvt_tuner_create(race.original, NULL, &race.train, &d, &race.tuners[0])))
        return fprintf(stderr, "%s\n", error), 1;
    for (int i = 0; i < d.steps; i++)
        if (!good(pvt_tuner_step(race.tuners[0], &stats))) return fprintf(stderr, "%s\n", error), 1;
    int64_t n = race_halves(race.original, NULL, false);
    uint16_t *half = (uint16_t *)malloc((size_t)n * sizeof *half);
    if (!half || !race_measure(race.original, &race.ppl_original)) return 1;
    race_halves(race.original, half, false);
    printf("/* %lld numbers, perplexity %.3f */\n", (long long)n, race.ppl_original);
    printf("static const uint16_t web_model[] = {");
    for (int64_t i = 0; i < n; i++) printf("%s%d,", i % 24 ? "" : "\n", half[i]);
    printf("\n};\n");
    free(half), race_end(), pvt_ctx_destroy(ctx);
    return 0;
}
