/*  One token at a time: how fast is y = W·x? Weights of two codebooks by look-ups and by decoding, a head in f16
    and in Q8_0; Gweights/s, the bytes that must be read, and the share of what this machine reads from memory
    (a loop over 256 MB, measured here). Codes of small matrices come from the caches.

        build/bench/tokens [--json] [--threads N]                                                            */
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
    pvt_weight_forward(p->ctx, p->y, p->x, &p->weight, 1, false);
}

static bool fill(product *p)
{
    pvt_format format;
    int64_t i, bytes;
    p->x = (float *)malloc((size_t)p->I * 4), p->y = (float *)malloc((size_t)p->O * 4);
    for (i = 0; i < p->I; i++) p->x[i] = (float)pvti_random_unit(1, 0, 0, (uint64_t)i) - 0.5f;
    if (!p->format) {
        const pvti_dtype *type = pvti_dtype_info(p->dtype);
        bytes = p->O * p->I / type->block * type->bytes;
        p->data = malloc((size_t)bytes);
        for (i = 0; i < bytes; i++) ((uint8_t *)p->data)[i] = (uint8_t)(pvti_random(2, 0, 0, (uint64_t)i) & 0x3f);
        return pvt_weight_borrow(p->ctx, p->data, p->dtype, p->O, p->I, &p->weight) == PVT_OK;
    }
    if (pvt_format_parse(p->ctx, p->format, &format) != PVT_OK ||
        pvti_weight_alloc(p->ctx, &format, p->O, p->I, p->name, &p->weight) != PVT_OK)
        return false;
    for (i = 0; i < format.codebooks * pvti_entries(&p->weight) * 8; i++)
        p->weight.codebooks[i] = (float)pvti_random_unit(3, 0, 0, (uint64_t)i) - 0.5f;
    for (i = 0; i < p->O; i++) p->weight.scales[i] = 1;
    for (i = 0; i < p->O * p->I / 8 * format.codebooks; i++)
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
    bool json = bench_flag(argc, argv, "--json");
    int most = pvti_thread_count(0), threads;
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], "--threads") == 0) most = (int)PVTI_MAX(1, strtol(argv[i + 1], NULL, 10));
    if (!json) printf("%-18s %6s %5s %7s %9s %9s %9s %8s %9s\n", "one row of x", "O", "I", "threads", "best ms", "median", "Gweight/s", "GB/s", "of memory");
    for (threads = 1; threads <= most; threads += PVTI_MAX(1, most - 1)) {
        double memory = bench_memory(threads);
        for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
            product p = products[i];
            pvt_ctx_desc desc;
            bench_fn *fn = run;
            void *arg = &p;
            bench_result result;
            double weights = (double)p.O * (double)p.I, bytes;
            memset(&desc, 0, sizeof desc);
            desc.n_threads = threads;
            if (pvt_ctx_create(&desc, &p.ctx) != PVT_OK || !fill(&p)) return 1;
            bytes = weights * pvt_weight_bits(&p.weight) / 8;
            bench_run(&result, &fn, &arg, 1, 0.3, false);
            printf(json ? "{\"bench\":\"tokens\",\"name\":\"%s\",\"O\":%d,\"I\":%d,\"threads\":%d,\"ms\":%.4f,\"ms_median\":%.4f,\"gweights\":%.2f,\"gbytes\":%.2f,\"of_memory\":%.3f}\n"
                        : "%-18s %6d %5d %7d %9.4f %9.4f %9.1f %8.1f %9.2f\n",
                   p.name, (int)p.O, (int)p.I, threads, 1e3 * result.min, 1e3 * result.median, 1e-9 * weights / result.min,
                   1e-9 * bytes / result.min, bytes / result.min / memory);
            fflush(stdout);
            pvt_weight_free(&p.weight);
            pvt_ctx_destroy(p.ctx);
            free(p.data), free(p.x), free(p.y);
        }
    }
    return 0;
}
