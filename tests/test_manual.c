/*  The manual's worked example: one group, one P step, one V step. Each figure is computed by the
    library, compared, and looked for in the manual's text. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

static char *manual;
static void figure(const char *text) /* stands in the manual */
{
    if (!strstr(manual, text)) printf("not in the manual: %s\n", text);
    CHECK(strstr(manual, text) != NULL);
}

static void load_manual(void)
{
    FILE *file = fopen("pvtune.h", "rb");
    manual = (char *)calloc(1, 20001);
    if (file && fread(manual, 1, 20000, file) == 0) manual[0] = 0;
    if (file) fclose(file);
    char *end = strstr(manual, "#ifndef PVTUNE_H");
    if (end) *end = 0;
}

static void step(pvt_ctx *ctx, double code_lr, pvt_weight *w, pvt_real buffer[2])
{
    static const pvt_real entries[8] = {0, 0, (pvt_real)0.5, (pvt_real)-0.5, 1, 0, 0, 1};
    const pvt_real dW[2] = {(pvt_real)0.4, (pvt_real)-0.2};
    pvt_format format;
    pvt_pv_desc desc;
    pvt_pv *pv;
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x2g2", &format));
    CHECK_OK(ctx, pvti_weight_alloc(ctx, &format, 1, 2, "group", w));
    memcpy(pvti_codebooks(w), entries, sizeof entries);
    pvti_scales(w)[0] = 2;
    pvti_code_set(w, 0, 1);
    pvt_weight_dequantize(w, buffer);
    CHECK(buffer[0] == 1 && buffer[1] == -1);
    memset(&desc, 0, sizeof desc);
    desc.values.lr = 0.01, desc.values.beta1 = 0.9, desc.values.beta2 = 0.95;
    desc.codes.rule = PVT_OPTIMIZER_ADAM, desc.codes.lr = code_lr, desc.codes.beta2 = 0.95;
    CHECK_OK(ctx, pvt_pv_create(ctx, &desc, &pv));
    CHECK_OK(ctx, pvt_pv_add_weight(pv, w, "group", NULL));
    CHECK_OK(ctx, pvt_pv_begin(pv, 1));
    CHECK_OK(ctx, pvt_pv_apply(pv, 0, dW));
    CHECK_OK(ctx, pvt_pv_end(pv, NULL));
    CHECK_NEAR(pv->entries[0].dvalues[1][2], 0.8, 1e-6);
    CHECK_NEAR(pv->entries[0].dvalues[1][3], -0.4, 1e-6);
    CHECK_NEAR(pv->entries[0].dvalues[2][0], 0.3, 1e-6);
    memcpy(buffer, pv->entries[0].buffer.w, 2 * sizeof *buffer);
    pvt_pv_free(pv);
}

static double distance(const pvt_weight *w, const pvt_real buffer[2], int k)
{
    double a = (double)(buffer[0] / pvti_scales(w)[0] - pvti_codebooks(w)[2 * k]), b = (double)(buffer[1] / pvti_scales(w)[0] - pvti_codebooks(w)[2 * k + 1]);
    return a * a + b * b;
}

int main(void)
{
    pvt_ctx *ctx;
    pvt_weight w;
    pvt_real buffer[2], W[2];
    if (pvt_ctx_create(NULL, &ctx) != PVT_OK) return 1;
    load_manual();
    figure("dc1 = s·dW = (0.8, -0.4)");
    figure("= 0.3.");
    step(ctx, 0.6, &w, buffer);
    CHECK_NEAR(pvti_codebooks(&w)[2], 0.49, 1e-5);
    CHECK_NEAR(pvti_codebooks(&w)[3], -0.49, 1e-5);
    CHECK_NEAR(pvti_scales(&w)[0], 1.99, 1e-5);
    figure("c1 = (0.49, -0.49),  s = 1.99");
    CHECK_NEAR(buffer[0], 0.4, 5e-5);
    CHECK_NEAR(buffer[1], -0.4, 5e-5);
    CHECK_NEAR(buffer[0] / pvti_scales(&w)[0], 0.201, 5e-4);
    figure("(0.201, -0.201)");
    CHECK_NEAR(distance(&w, buffer, 0), 0.0808, 6e-5);
    figure("c0 0.0808");
    CHECK_NEAR(distance(&w, buffer, 1), 0.1670, 6e-5);
    figure("c1 0.1670");
    CHECK_NEAR(distance(&w, buffer, 2), 0.6788, 6e-5);
    figure("c2 0.6788");
    CHECK_NEAR(distance(&w, buffer, 3), 1.4828, 6e-5);
    figure("c3 1.4828");
    pvt_weight_dequantize(&w, W);
    CHECK(pvti_code_get(&w, 0) == 0 && W[0] == 0 && W[1] == 0);
    pvt_weight_free(&w);
    step(ctx, 0.3, &w, buffer);
    CHECK_NEAR(buffer[0], 0.7, 5e-5);
    CHECK_NEAR(buffer[0] / pvti_scales(&w)[0], 0.352, 5e-4);
    figure("0.352 in units of s");
    CHECK_NEAR(distance(&w, buffer, 1), 0.0382, 6e-5);
    figure("(0.0382)");
    CHECK_NEAR(distance(&w, buffer, 0), 0.2475, 6e-5);
    figure("(0.2475)");
    CHECK(pvti_code_get(&w, 0) == 1);
    pvt_weight_free(&w);
    free(manual);
    pvt_ctx_destroy(ctx);
    return test_end();
}
