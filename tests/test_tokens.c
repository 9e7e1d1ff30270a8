/*  Products with one row of x, as generation makes them: look-ups in tables of codebooks, and dense rows of
    16 or 8 bits decoded in registers. Right against the product of the dequantized weight, and the same bits
    for every kernel set and number of threads. */
#define PVTUNE_IMPLEMENTATION
#define PVTUNE_LAYER 1
#include "../pvtune.h"
#include "test.h"

static pvt_ctx *contexts[3][3]; /* [kernel set][threads 1, 2, 7] */

static void contexts_make(void)
{
    static const int threads[3] = {1, 2, 7};
    static const char *const names[3] = TEST_SETS;
    for (int isa = 0; isa < 3; isa++)
        for (int t = 0; t < 3; t++) {
            pvt_ctx_desc desc;
            memset(&desc, 0, sizeof desc);
            desc.n_threads = threads[t], desc.isa = names[isa];
            CHECK(pvt_ctx_create(&desc, &contexts[isa][t]) == PVT_OK);
            if (strcmp(pvt_ctx_get_info(contexts[isa][t]).isa, names[isa]) != 0)
                pvt_ctx_destroy(contexts[isa][t]), contexts[isa][t] = NULL;
        }
}

static float noise(uint64_t stream, int64_t i)
{
    return (float)(pvti_random_unit(5, PVTI_RANDOM_USER, stream, (uint64_t)i) - 0.5);
}

/* The product in every context; all must give the bits of the first. Returns the relative error. */
static double check_product(const pvt_weight *w, const float *x, bool accumulate)
{
    int64_t O = w->O, I = w->I;
    float *y = (float *)malloc((size_t)O * 4), *first = (float *)malloc((size_t)O * 4);
    float *W = (float *)malloc((size_t)(O * I) * 4);
    double error = 0, size = 0;
    int64_t n = 0;
    pvt_weight_dequantize(w, W);
    for (int isa = 0; isa < 3; isa++)
        for (int t = 0; t < 3 && contexts[isa][t]; t++, n++) {
            pvt_weight there = *w; /* the same arrays, in the hands of that context */
            there.ctx = contexts[isa][t];
            for (int64_t o = 0; o < O; o++) y[o] = accumulate ? (float)o : NAN;
            pvt_weight_forward(y, x, &there, 1, accumulate);
            if (n == 0) memcpy(first, y, (size_t)O * 4);
            else CHECK(memcmp(first, y, (size_t)O * 4) == 0);
        }
    for (int64_t o = 0; o < O; o++) {
        double sum = accumulate ? (double)o : 0;
        for (int64_t i = 0; i < I; i++) sum += (double)W[o * I + i] * (double)x[i];
        error += ((double)first[o] - sum) * ((double)first[o] - sum), size += sum * sum;
    }
    free(y), free(first), free(W);
    return sqrt(error / size);
}

static void check_codes(const char *text, int64_t O, int64_t I, bool expected)
{
    pvt_ctx *ctx = contexts[0][0];
    pvt_format f;
    pvt_weight w, view;
    float *x = (float *)calloc((size_t)I, 4), *y = (float *)malloc((size_t)O * 4);
    pvt_pv *pv;
    int64_t i;
    int bad = 0;
    CHECK_OK(ctx, pvt_format_parse(ctx, text, &f));
    CHECK_OK(ctx, pvti_weight_alloc(ctx, &f, O, I, "w", &w));
    for (i = 0; i < f.codebooks * pvti_entries(&w) * pvti_group_dim(&w); i++) pvti_codebooks(&w)[i] = noise(1, i);
    for (i = 0; i < O / f.out_group; i++) pvti_scales(&w)[i] = 1 + noise(2, i);
    for (i = 0; i < O * I / pvti_group_dim(&w) * f.codebooks; i++)
        pvti_code_set(&w, i, (int64_t)(pvti_random(3, PVTI_RANDOM_USER, 4, (uint64_t)i) % (uint64_t)pvti_entries(&w)));
    CHECK_OK(ctx, pvt_weight_prepare(&w));
    CHECK_OK(ctx, pvt_weight_prepare(&w)); /* again: nothing */
    CHECK((w.prepared != NULL) == expected);
    pvt_weight_forward(y, x, &w, 1, false); /* x = 0 */
    for (i = 0; i < O; i++) bad += y[i] != 0;
    for (i = 0; i < I; i++) x[i] = noise(4, i) * (i % 50 == 7 ? 40 : 1);
    CHECK(check_product(&w, x, false) < 2e-4);
    CHECK(check_product(&w, x, true) < 2e-4);
    x[I / 2] = NAN; /* reaches every row: each has a code in every group */
    pvt_weight_forward(y, x, &w, 1, false);
    for (i = 0; i < O; i++) bad += !(y[i] != y[i]);
    CHECK(bad == 0);
    CHECK_OK(ctx, pvt_weight_rows(&w, 0, O, &view)); /* all: the error is of a whole product, not of one row */
    CHECK(view.prepared == NULL);
    int64_t bytes = pvt_ctx_get_info(ctx).bytes_now;
    CHECK_OK(ctx, pvt_weight_prepare(&view));
    x[I / 2] = 1;
    CHECK(check_product(&view, x, false) < 2e-4);
    pvt_weight_free(&view);
    CHECK(pvt_ctx_get_info(ctx).bytes_now == bytes); /* what it prepared is gone, what it saw is not */
    CHECK(w.array[0] != NULL);
    if (expected) { /* a codebook's NaN is not rounded away */
        CHECK_OK(ctx, pvt_weight_rows(&w, 0, O, &view));
        pvti_codebooks(&w)[0] = NAN;
        CHECK_OK(ctx, pvt_weight_prepare(&view));
        pvt_weight_forward(y, x, &view, 1, false);
        for (i = 0, bad = O > 64; i < O; i++) bad &= y[i] == y[i];
        CHECK(bad == 0);
        pvt_weight_free(&view);
    }
    CHECK_OK(ctx, pvt_pv_create(ctx, NULL, &pv)); /* codes are about to change */
    CHECK_OK(ctx, pvt_pv_add_weight(pv, &w, "w", NULL));
    CHECK(w.prepared == NULL);
    pvt_pv_free(pv);
    pvt_weight_free(&w);
    free(x), free(y);
}

/* Every pair of look-up kernels, on odd sizes, to the bit: those too that a better one hides on this machine. */
static void check_lookup_kernels(void)
{
    static const int shapes[][3] = { /* pairs of elements, tables, row blocks */
        {4, 2, 1}, {4, 32, 3}, {1, 10, 2}, {8, 4, 5}, {3, 30, 1}};
    static int16_t x[32][16], across[8 * 512];
    static int32_t memory[33 * 256]; /* as aligned as the kernels may ask */
    static uint8_t codes[5 * 32 * 64];
    uint8_t *tables = (uint8_t *)(void *)memory, *unused = tables + 32 * 1024;
    float y[5 * 64], first[5 * 64];
    for (int s = 0; s < PVTI_COUNT(shapes); s++) {
        int pairs = shapes[s][0], n = shapes[s][1], blocks = shapes[s][2];
        for (int i = 0; i < 8 * 512; i++) across[i] = (int16_t)(65534 * noise(20, i));
        for (int i = 0; i < 32; i++) /* every third: Σ|x| = 65024, the largest before rounding, of both signs */
            for (int a = 0; a < 2 * pairs; a++)
                x[i][a] = (int16_t)((i % 3 ? noise(21, 16 * i + a) : i & 1 ? -0.5f : 0.5f) * 65024 / (float)pairs);
        for (int a = 0; a < 2 * pairs; a++) { /* two entries of the largest numbers */
            across[a / 2 * 512 + 2 * 77 + a % 2] = 32767;
            across[a / 2 * 512 + 2 * 200 + a % 2] = -32767;
        }
        for (int64_t i = 0; i < (int64_t)sizeof codes; i++)
            codes[i] = (uint8_t)pvti_random(22, PVTI_RANDOM_USER, (uint64_t)s, (uint64_t)i);
        for (int k = 0; k <= pvti_lookup_best(pvti_isa_detect()); k++) {
            const pvti_lookup_set *set = &pvti_lookup_sets[k];
            for (int t = 0; t < n; t += 2)
                if (t % 4 == 0) {
                    set->table(tables + t * set->bytes, tables + (t + 1) * set->bytes, x[t], x[t + 1], across, pairs);
                } else {
                    set->table(tables + t * set->bytes, unused, x[t], x[t], across, pairs);
                    set->table(unused, tables + (t + 1) * set->bytes, x[t], x[t + 1], across, pairs);
                }
            for (int i = 0; i < 5 * 64; i++) y[i] = noise(23, i);
            set->rows(y, codes, n * 64, blocks, tables, n, 0.37f);
            if (k == 0) memcpy(first, y, sizeof y);
            CHECK(memcmp(first, y, sizeof y) == 0);
        }
    }
}

/* Numbers whose sums or products leave what a float can hold although the result does not. */
static void check_range(float x_size, float codebook_size)
{
    pvt_format f;
    pvt_weight w;
    float x[256];
    CHECK_OK(contexts[0][0], pvt_format_parse(contexts[0][0], "aqlm:1x8g8", &f));
    CHECK_OK(contexts[0][0], pvti_weight_alloc(contexts[0][0], &f, 40, 256, "w", &w));
    for (int64_t i = 0; i < 256 * 8; i++) pvti_codebooks(&w)[i] = codebook_size * noise(30, i);
    for (int64_t i = 0; i < 40; i++) pvti_scales(&w)[i] = 1;
    for (int64_t i = 0; i < 40 * 32; i++)
        pvti_code_set(&w, i, (int64_t)(pvti_random(31, PVTI_RANDOM_USER, 0, (uint64_t)i) & 255));
    for (int64_t i = 0; i < 256; i++) x[i] = x_size * (1 + noise(32, i));
    CHECK_OK(contexts[0][0], pvt_weight_prepare(&w));
    CHECK(check_product(&w, x, false) < 2e-4);
    pvt_weight_free(&w);
}

/* q, k and v share x and the parallel regions: the bits of one after the other. */
static void check_side_by_side(void)
{
    static const int64_t rows[3] = {200, 64, 70};
    pvt_weight w[3];
    pvt_format f;
    float x[264], y[3][200], alone[200], *to[3] = {y[0], y[1], y[2]};
    CHECK_OK(contexts[0][0], pvt_format_parse(contexts[0][0], "aqlm:2x8g8", &f));
    for (int k = 0; k < 3; k++) {
        CHECK_OK(contexts[0][0], pvti_weight_alloc(contexts[0][0], &f, rows[k], 264, "w", &w[k]));
        for (int64_t i = 0; i < 2 * 256 * 8; i++) pvti_codebooks(&w[k])[i] = noise((uint64_t)k, i);
        for (int64_t i = 0; i < rows[k]; i++) pvti_scales(&w[k])[i] = 1 + noise(9, i);
        for (int64_t i = 0; i < rows[k] * 33 * 2; i++)
            pvti_code_set(&w[k], i, (int64_t)(pvti_random(8, PVTI_RANDOM_USER, (uint64_t)k, (uint64_t)i) & 255));
        CHECK_OK(contexts[0][0], pvt_weight_prepare(&w[k]));
    }
    for (int64_t i = 0; i < 264; i++) x[i] = noise(10, i);
    for (int isa = 0; isa < 3; isa++)
        for (int t = 0; t < 3 && contexts[isa][t]; t++)
            for (int count = 1; count <= 3; count++) {
                pvt_weight there[3]; /* the same arrays, in the hands of that context */
                memcpy(there, w, sizeof there);
                for (int k = 0; k < 3; k++) there[k].ctx = contexts[isa][t];
                memset(y, 0xff, sizeof y);
                pvti_weights_forward(to, x, there, count, 1, false);
                for (int k = 0; k < count; k++) {
                    pvt_weight_forward(alone, x, &w[k], 1, false);
                    CHECK(memcmp(alone, y[k], (size_t)rows[k] * 4) == 0);
                }
            }
    for (int k = 0; k < 3; k++) pvt_weight_free(&w[k]);
}

static void check_dense(pvt_dtype dtype, int64_t O, int64_t I, double tolerance)
{
    const pvti_dtype *type = pvti_dtype_info(dtype);
    int64_t bytes = O * I / type->block * type->bytes;
    uint8_t *data = (uint8_t *)malloc((size_t)bytes);
    float *x = (float *)malloc((size_t)I * 4);
    pvt_weight w;
    for (int64_t i = 0; i < I; i++) x[i] = noise(6, i) * (i % 40 == 3 ? 30 : 1);
    for (int64_t i = 0; i < bytes; i++) data[i] = (uint8_t)pvti_random(7, PVTI_RANDOM_USER, 0, (uint64_t)i);
    for (int64_t i = 0; i < bytes / type->bytes; i++) { /* no infinities: exponents stay small */
        uint16_t half = dtype == PVT_BF16 ? 0x3f00 : 0x2c00, low;
        memcpy(&low, data + i * type->bytes, 2);
        half = (uint16_t)(half | (low & 0x80ffu));
        memcpy(data + i * type->bytes, &half, 2);
    }
    CHECK_OK(contexts[0][0], pvt_weight_borrow(contexts[0][0], data, dtype, O, I, &w));
    CHECK(check_product(&w, x, false) < tolerance);
    CHECK(check_product(&w, x, true) < tolerance);
    free(data), free(x);
}

/* What was prepared goes when the values are rounded: it was made from the old ones. */
static void check_rounded(void)
{
    enum { O = 16, I = 64 };
    pvt_ctx *ctx = contexts[0][0];
    float W[O * I];
    pvt_format format;
    pvt_weight w;
    for (int64_t i = 0; i < O * I; i++) W[i] = noise(41, i);
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x4g8", &format));
    CHECK_OK(ctx, pvt_weight_fit(ctx, W, O, I, NULL, &format, NULL, NULL, &w));
    CHECK_OK(ctx, pvt_weight_prepare(&w));
    CHECK(w.prepared != NULL);
    CHECK_OK(ctx, pvt_weight_round_f16(&w, "w"));
    CHECK(w.prepared == NULL);
    pvt_weight_free(&w);
}

int main(void)
{
    contexts_make();
    check_rounded();
    check_codes("aqlm:2x8g8", 70, 40, true);
    check_codes("aqlm:2x8g8", 300, 576, true);
    check_codes("aqlm:1x8g8", 64, 264, true);
    check_codes("aqlm:3x4g4", 129, 100, true); /* 75 tables, and an empty one */
    check_codes("aqlm:2x6g16", 65, 96, true);
    check_codes("aqlm:1x1g3", 5, 9, true);
    check_codes("aqlm:1x10g8", 33, 72, true); /* more than 256 entries; an odd number of groups */
    check_codes("aqlm:2x9g8", 70, 576, true);
    check_codes("aqlm:3x12g8", 3, 8, true);
    check_codes("aqlm:1x10g4", 32, 64, false);
    check_codes("aqlm:1x8g8o2", 32, 64, false);
    check_side_by_side();
    check_lookup_kernels();
    check_range(2e36f, 1e-3f), check_range(1e-13f, 1e-20f), check_range(1e-20f, 1e-13f);
    check_dense(PVT_F16, 517, 96, 1e-6);
    check_dense(PVT_BF16, 259, 64, 1e-6);
    check_dense(PVT_Q8_0, 1030, 576, 1e-4);
    check_dense(PVT_Q8_0, 3, 32, 1e-4);
    check_dense(PVT_F16, 33, 50, 1e-6); /* 32 does not divide the row */
    check_dense(PVT_F16, 40, 16, 1e-6), check_dense(PVT_BF16, 40, 48, 1e-6); /* no dots of so few; 16 divides it */
    check_dense(PVT_BF16, 41, 16, 1e-6), check_dense(PVT_F16, 9, 8, 1e-6);
    for (int isa = 0; isa < 3; isa++)
        for (int t = 0; t < 3; t++) pvt_ctx_destroy(contexts[isa][t]);
    return test_end();
}
