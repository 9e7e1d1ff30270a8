/*  One token at a time: how fast is y = W·x? Weights in codes, prepared and decoded, a head in f16 and in Q8_0.
    The limit is what this machine reads from memory (a loop over 256 MB, measured here); small matrices come
    from the caches.

        build/bench/tokens [--json] [--rows] [--threads N]                                                            */
#define PVTUNE_IMPLEMENTATION
#define PVTUNE_LAYER 1
#include "../pvtune.h"
#include "bench.h"

typedef struct product {
    const char *name;
    int64_t O, I;
    const char *format; /* of codebooks; NULL: dense, of dtype */
    pvt_dtype dtype;
    bool prepared;
    pvt_ctx *ctx;
    pvt_weight weight;
    void *data;
    float *x, *y;
} product;

static void run(void *arg)
{
    product *p = (product *)arg;
    pvt_weight_forward(p->y, p->x, &p->weight, 1, false);
}

static bool fill(product *p)
{
    pvt_format format;
    p->x = (float *)malloc((size_t)p->I * 4), p->y = (float *)malloc((size_t)p->O * 4);
    for (int64_t i = 0; i < p->I; i++) p->x[i] = (float)pvti_random_unit(1, 0, 0, (uint64_t)i) - 0.5f;
    if (!p->format) {
        const pvti_dtype *type = pvti_dtype_info(p->dtype);
        int64_t bytes = p->O * p->I / type->block * type->bytes;
        p->data = malloc((size_t)bytes);
        for (int64_t i = 0; i < bytes; i++)
            ((uint8_t *)p->data)[i] = (uint8_t)(pvti_random(2, 0, 0, (uint64_t)i) & 0x3f);
        return pvt_weight_borrow(p->ctx, p->data, p->dtype, p->O, p->I, &p->weight) == PVT_OK;
    }
    if (pvt_format_parse(p->ctx, p->format, &format) != PVT_OK ||
        pvti_weight_alloc(p->ctx, &format, p->O, p->I, p->name, &p->weight) != PVT_OK)
        return false;
    for (int64_t i = 0; i < format.codebooks * pvti_entries(&p->weight) * 8; i++)
        pvti_codebooks(&p->weight)[i] = (float)pvti_random_unit(3, 0, 0, (uint64_t)i) - 0.5f;
    for (int64_t i = 0; i < p->O; i++) pvti_scales(&p->weight)[i] = 1;
    for (int64_t i = 0; i < p->O * p->I / 8 * format.codebooks; i++)
        pvti_code_set(&p->weight, i, (int64_t)(pvti_random(4, 0, 0, (uint64_t)i) % (uint64_t)pvti_entries(&p->weight)));
    return !p->prepared || pvt_weight_prepare(&p->weight) == PVT_OK;
}

int main(int argc, char **argv)
{
    static const product products[] = {
        {"2x8g8, look-ups", 576, 576, "aqlm:2x8g8", PVT_DTYPE_NONE, true, NULL, {0}, NULL, NULL, NULL},
        {"2x8g8, look-ups", 1536, 576, "aqlm:2x8g8", PVT_DTYPE_NONE, true, NULL, {0}, NULL, NULL, NULL},
        {"2x8g8, look-ups", 5632, 2048, "aqlm:2x8g8", PVT_DTYPE_NONE, true, NULL, {0}, NULL, NULL, NULL},
        {"1x8g8, look-ups", 5632, 2048, "aqlm:1x8g8", PVT_DTYPE_NONE, true, NULL, {0}, NULL, NULL, NULL},
        {"2x8g8, decoded", 5632, 2048, "aqlm:2x8g8", PVT_DTYPE_NONE, false, NULL, {0}, NULL, NULL, NULL},
        {"1x12g8, prepared", 5632, 2048, "aqlm:1x12g8", PVT_DTYPE_NONE, true, NULL, {0}, NULL, NULL, NULL},
        {"1x16g8, prepared", 5632, 2048, "aqlm:1x16g8", PVT_DTYPE_NONE, true, NULL, {0}, NULL, NULL, NULL},
        {"1x16g8, decoded", 5632, 2048, "aqlm:1x16g8", PVT_DTYPE_NONE, false, NULL, {0}, NULL, NULL, NULL},
        {"head in f16", 49152, 576, NULL, PVT_F16, false, NULL, {0}, NULL, NULL, NULL},
        {"head in q8", 49152, 576, NULL, PVT_Q8_0, false, NULL, {0}, NULL, NULL, NULL},
    };
    bench b = bench_start(argc, argv, "tokens");
    for (int threads = 1; threads <= b.threads; threads += PVTI_MAX(1, b.threads - 1)) {
        double memory = bench_memory(threads);
        for (int64_t i = 0; i < PVTI_COUNT(products); i++) {
            product p = products[i];
            pvt_ctx_desc desc;
            bench_fn *fn = run;
            void *arg = &p;
            bench_result result;
            char what[96];
            double weights = (double)p.O * (double)p.I;
            snprintf(what, sizeof what, "one token, %s, %d x %d", p.name, (int)p.O, (int)p.I);
            if (!bench_wants(&b, what)) continue;
            memset(&desc, 0, sizeof desc);
            desc.n_threads = threads;
            if (pvt_ctx_create(&desc, &p.ctx) != PVT_OK || !fill(&p)) return 1;
            double bytes = weights * pvt_weight_bits(&p.weight) / 8;
            bench_run(&result, &fn, &arg, 1, 0.3, false);
            bench_row(&b, what, threads, &result, 1e-9 * weights, "Gweight/s", memory * weights / bytes, "memory's bandwidth");
            pvt_weight_free(&p.weight);
            pvt_ctx_destroy(p.ctx);
            free(p.data), free(p.x), free(p.y);
        }
    }
    return 0;
}
