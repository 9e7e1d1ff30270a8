/*  Every op of layer 0 in double: its gradient against central differences of Σ out·R, and
    its result against the plainest way to write it. Sizes are odd, heads are grouped, windows,
    offsets and slices occur. Gradients start at 0.5, so that adding and overwriting differ. */
#define PVTUNE_REAL double
#define PVTUNE_LAYER 0
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

static pvt_ctx *ctx;
static uint64_t test_counter;
static int64_t samples = 200; /* elements of a gradient that are looked at */

/* n numbers, roughly normal. */
static double *random_array(int64_t n, double scale)
{
    double *x = (double *)malloc((size_t)(n + 1) * sizeof *x);
    test_counter++;
    for (int64_t i = 0; i < n; i++) {
        double sum = -3;
        for (int64_t k = 0; k < 6; k++)
            sum += pvti_random_unit(7, PVTI_RANDOM_USER, test_counter, (uint64_t)(6 * i + k));
        x[i] = scale * 1.4 * sum;
    }
    return x;
}
static double *constant_array(int64_t n, double value)
{
    double *x = (double *)malloc((size_t)(n + 1) * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = value;
    return x;
}
static double dot(const double *x, const double *y, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}
static double sum_of(const double *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

/* The largest |dx − start − central difference| / (1 + |dx|) over x[0 … n−1]; over that many samples,
   evenly spread, when there are more. */
typedef double loss_fn(void *self);
static double gradient_error(loss_fn *loss, void *self, double *x, const double *dx, double start, int64_t n)
{
    const double h = 1e-5;
    double worst = 0;
    for (int64_t i = 0; i < n; i += 1 + n / samples) {
        double old = x[i], up, down;
        x[i] = old + h, up = loss(self);
        x[i] = old - h, down = loss(self);
        x[i] = old;
        double error = fabs(dx[i] - start - (up - down) / (2 * h)) / (1 + fabs(dx[i]));
        if (!(error <= worst)) worst = error;
    }
    return worst;
}
#define CHECK_GRADIENT(loss, self, x, dx, n) CHECK_NEAR(gradient_error(loss, self, x, dx, 0.5, n), 0, 2e-8)

/* What the losses below have at hand. */
typedef struct setup {
    double *x, *y, *z, *w, *out, *extra, *R;
    int32_t *ids;
    int64_t n, a, b, c;
    pvt_attention_desc desc;
    pvt_rope_pairing pairing;
} setup;

/* ---- mathematics ---- */

static void test_math(void)
{
    double worst_exp = 0, worst_exp32 = 0, worst_log = 0, worst_sin = 0, s, c;
    for (int64_t i = -7000; i < 7000; i++) {
        double x = (double)i * 0.1 + 0.0123;
        double e = fabs(pvti_exp64(x) / exp(x) - 1);
        worst_exp = e > worst_exp ? e : worst_exp;
    }
    for (int64_t i = -8700; i < 8800; i++) {
        float xf = (float)i * 0.01f;
        double e = fabs((double)pvti_exp32(xf) / exp((double)xf) - 1);
        worst_exp32 = e > worst_exp32 ? e : worst_exp32;
    }
    for (int64_t i = 1; i < 20000; i++) {
        double x = (double)i * 0.003;
        double e = fabs(pvti_log(x) - log(x)) / (1e-3 + fabs(log(x)));
        worst_log = e > worst_log ? e : worst_log;
        x = (double)(i - 10000) * 13.37;
        pvti_sincos(x, &s, &c);
        e = fabs(s - sin(x)) + fabs(c - cos(x)), worst_sin = e > worst_sin ? e : worst_sin;
    }
    CHECK_NEAR(worst_exp, 0, 5e-16);
    CHECK_NEAR(worst_exp32, 0, 1.2e-7);
    CHECK_NEAR(worst_log, 0, 5e-16);
    CHECK_NEAR(worst_sin, 0, 5e-16);
    CHECK(pvti_exp32(-200.0f) == 0 && pvti_exp32(200.0f) == (float)INFINITY &&
          pvti_exp32((float)NAN) != pvti_exp32(0));
    CHECK(pvti_exp32(-(float)INFINITY) == 0 && pvti_exp32(0) == 1 && pvti_exp64(0) == 1);
    CHECK(pvti_exp64(-(double)INFINITY) == 0 && pvti_exp64((double)INFINITY) == (double)INFINITY);
    CHECK(pvti_exp64((double)NAN) != pvti_exp64((double)NAN) && isnan(pvti_exp32((float)NAN)));
    CHECK(pvti_log(0) == -(double)INFINITY && isnan(pvti_log(-1)) &&
          pvti_log((double)INFINITY) == (double)INFINITY);
    CHECK(pvti_log(1) == 0 && isnan(pvti_log((double)NAN)));
    CHECK_NEAR(pvti_pow(10000, -0.375), pow(10000, -0.375), 1e-16);
}

static void test_reductions(void)
{
    for (int64_t n = 0; n < 1300; n = n * 2 + 3) {
        double *x = random_array(n, 1), *y = random_array(n, 1), sum = 0, product = 0,
               top = -(double)INFINITY;
        double distance = 0, r;
        for (int64_t i = 0; i < n; i++) {
            sum += x[i], product += x[i] * y[i], distance += (x[i] - y[i]) * (x[i] - y[i]);
            top = x[i] > top ? x[i] : top;
        }
        PVTI_CALL(ctx, sum)(&r, x, n);
        CHECK_NEAR(r, sum, 1e-11);
        PVTI_CALL(ctx, dot)(&r, x, y, n);
        CHECK_NEAR(r, product, 1e-11);
        PVTI_CALL(ctx, distance)(&r, x, y, n);
        CHECK_NEAR(r, distance, 1e-11);
        PVTI_CALL(ctx, max)(&r, x, n);
        CHECK(r == top);
        free(x), free(y);
    }
}

/* ---- embedding ---- */

static double embedding_loss(void *self)
{
    setup *s = (setup *)self;
    pvt_embedding_forward(ctx, s->out, s->w, s->ids, s->n, s->a, s->b);
    return dot(s->out, s->R, s->n * s->b);
}
static void test_embedding(void)
{
    int32_t ids[7] = {3, 0, 3, -1, 10, 11, 3}; /* −1 and 11 are outside */
    setup s;
    s.n = 7, s.a = 11, s.b = 67, s.ids = ids;
    s.w = random_array(11 * 67, 1), s.R = random_array(7 * 67, 1), s.out = constant_array(7 * 67, 9);
    double *dtable = constant_array(11 * 67, 0.5);
    pvt_embedding_backward(ctx, dtable, s.R, ids, 7, 11, 67);
    CHECK_GRADIENT(embedding_loss, &s, s.w, dtable, 11 * 67);
    embedding_loss(&s);
    CHECK(memcmp(s.out + 4 * 67, s.w + 10 * 67, 67 * sizeof(double)) == 0);
    for (int64_t c = 0; c < 67; c++) CHECK(s.out[3 * 67 + c] == 0 && s.out[5 * 67 + c] == 0);
    free(s.w), free(s.R), free(s.out), free(dtable);
}

/* ---- linear ---- */

static double linear_loss(void *self)
{
    setup *s = (setup *)self;
    pvt_linear_forward(ctx, s->out, s->x, s->w, s->y, s->n, s->a, s->b);
    return dot(s->out, s->R, s->n * s->b);
}
static void test_linear(void)
{
    setup s;
    s.n = 5, s.a = 13, s.b = 9;
    s.x = random_array(5 * 13, 1), s.w = random_array(9 * 13, 1), s.y = random_array(9, 1);
    s.R = random_array(5 * 9, 1), s.out = constant_array(5 * 9, 9);
    double *dx = constant_array(5 * 13, 0.5), *dW = constant_array(9 * 13, 0.5),
                 *dbias = constant_array(9, 0.5);
    pvt_linear_backward(ctx, dx, dW, dbias, s.R, s.x, s.w, 5, 13, 9);
    CHECK_GRADIENT(linear_loss, &s, s.x, dx, 5 * 13);
    CHECK_GRADIENT(linear_loss, &s, s.w, dW, 9 * 13);
    CHECK_GRADIENT(linear_loss, &s, s.y, dbias, 9);
    linear_loss(&s);
    for (int64_t i = 0; i < 5; i++)
        for (int64_t o = 0; o < 9; o++)
            CHECK_NEAR(s.out[i * 9 + o], dot(s.x + i * 13, s.w + o * 13, 13) + s.y[o], 1e-13);
    pvt_linear_backward(ctx, NULL, NULL, NULL, s.R, s.x, s.w, 5, 13, 9);
    pvt_linear_forward(ctx, s.out, s.x, s.w, NULL, 5, 13, 9);
    CHECK_NEAR(s.out[11], dot(s.x + 13, s.w + 2 * 13, 13), 1e-13);
    free(s.x), free(s.w), free(s.y), free(s.R), free(s.out), free(dx), free(dW), free(dbias);
}

/* ---- RMSNorm ---- */

static double rmsnorm_loss(void *self)
{
    setup *s = (setup *)self;
    pvt_rmsnorm_forward(ctx, s->out, s->extra, s->x, s->w, s->n, s->a, 1e-5);
    return dot(s->out, s->R, s->n * s->a);
}
static void test_rmsnorm(int64_t n, int64_t C)
{
    setup s;
    double *dx = constant_array(n * C, 0.5), *dw = constant_array(C, 0.5);
    s.n = n, s.a = C;
    s.x = random_array(n * C, 1), s.w = random_array(C, 1), s.R = random_array(n * C, 1);
    s.out = constant_array(n * C, 9), s.extra = constant_array(n, 9);
    rmsnorm_loss(&s);
    double r = 1 / sqrt(dot(s.x, s.x, C) / (double)C + 1e-5);
    CHECK_NEAR(s.extra[0], r, 1e-13);
    CHECK_NEAR(s.out[C - 1], s.x[C - 1] * r * s.w[C - 1], 1e-13);
    pvt_rmsnorm_backward(ctx, dx, dw, s.R, s.x, s.extra, s.w, n, C);
    CHECK_GRADIENT(rmsnorm_loss, &s, s.x, dx, n * C);
    CHECK_GRADIENT(rmsnorm_loss, &s, s.w, dw, C);
    free(s.x), free(s.w), free(s.R), free(s.out), free(s.extra), free(dx), free(dw);
}

/* ---- RoPE ---- */

static double rope_loss(void *self)
{
    setup *s = (setup *)self;
    int64_t n = 2 * s->n * s->a * s->b;
    memcpy(s->out, s->x, (size_t)n * sizeof(double));
    pvt_rope_forward(ctx, s->out, s->y, s->z, 2, s->n, s->a, s->b, s->pairing);
    return dot(s->out, s->R, n);
}
static void test_rope(pvt_rope_pairing pairing)
{
    enum { B = 2, T = 5, NH = 3, HS = 10, POS = 7 };
    setup s;
    float inv_freq[HS / 2];
    double tables[2 * (POS + T) * HS / 2];
    int64_t n = B * T * NH * HS;
    s.n = T, s.a = NH, s.b = HS, s.pairing = pairing;
    s.x = random_array(n, 1), s.R = random_array(n, 1), s.out = constant_array(n, 9);
    s.y = tables + POS * HS / 2, s.z = s.y + (POS + T) * HS / 2;
    pvt_rope_frequencies(inv_freq, HS, 10000);
    pvt_rope_table(ctx, tables, tables + (POS + T) * HS / 2, inv_freq, HS, 0, POS + T);
    double *dx = random_array(n, 0);
    memcpy(dx, s.R, (size_t)n * sizeof *dx);
    pvt_rope_backward(ctx, dx, s.y, s.z, B, T, NH, HS, pairing);
    CHECK_NEAR(gradient_error(rope_loss, &s, s.x, dx, 0, n), 0, 2e-8);
    rope_loss(&s);
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < T; t++)
            for (int64_t h = 0; h < NH; h++)
                for (int64_t j = 0; j < HS / 2; j++) {
                    int64_t base = ((b * T + t) * NH + h) * HS;
                    int64_t i0 = base + (pairing == PVT_ROPE_HALVES ? j : 2 * j);
                    int64_t i1 = base + (pairing == PVT_ROPE_HALVES ? j + HS / 2 : 2 * j + 1);
                    double angle = (double)(POS + t) * pow(10000, -2.0 * (double)j / (double)HS);
                    CHECK_NEAR(s.out[i0], s.x[i0] * cos(angle) - s.x[i1] * sin(angle), 4e-6);
                    CHECK_NEAR(s.out[i1], s.x[i1] * cos(angle) + s.x[i0] * sin(angle), 4e-6);
                }
    free(s.x), free(s.R), free(s.out), free(dx);
}
/* The three bands of the llama3 rule at theta 500000, head size 16, context 64. */
static void test_rope_llama3(void)
{
    float plain[8], scaled[8];
    pvt_rope_frequencies(plain, 16, 500000);
    memcpy(scaled, plain, sizeof plain);
    pvt_rope_scale_llama3(scaled, 16, 8, 1, 4, 64);
    for (int64_t j = 0; j < 8; j++) {
        double f = (double)plain[j], wavelength = 2 * 3.14159265358979323846 / f, want = f, smooth;
        if (wavelength > 64.0)
            want = f / 8;
        else if (wavelength >= 16.0)
            smooth = (64 / wavelength - 1) / 3, want = (1 - smooth) * f / 8 + smooth * f;
        CHECK_NEAR((double)scaled[j] / want, 1, 1e-7);
    }
    CHECK(plain[0] == 1.0f && scaled[0] == 1.0f);
}

/* ---- attention ---- */

/* One query at a time, scores in full. */
static void naive_attention(double *out, double *lse, const setup *s)
{
    const pvt_attention_desc *d = &s->desc;
    int64_t TK = d->pos + d->T, batch = d->kv_batch ? d->kv_batch : TK * d->NKV * d->HS;
    int64_t window = d->window ? d->window : TK;
    double *p = (double *)malloc((size_t)TK * sizeof *p),
           scale = d->scale != 0 ? d->scale : 1 / sqrt((double)d->HS);
    for (int64_t b = 0; b < d->B; b++)
        for (int64_t h = 0; h < d->NH; h++)
            for (int64_t t = 0; t < d->T; t++) {
                int64_t g = h / (d->NH / d->NKV), last = d->pos + t,
                        first = last - window + 1 > 0 ? last - window + 1 : 0;
                int64_t at = ((b * d->T + t) * d->NH + h) * d->HS;
                double sum = 0, max = -1e300;
                for (int64_t j = first; j <= last; j++) {
                    p[j] = scale * dot(s->x + at, s->y + b * batch + (j * d->NKV + g) * d->HS, d->HS);
                    max = p[j] > max ? p[j] : max;
                }
                for (int64_t j = first; j <= last; j++) sum += p[j] = exp(p[j] - max);
                for (int64_t i = 0; i < d->HS; i++) out[at + i] = 0;
                for (int64_t j = first; j <= last; j++)
                    for (int64_t i = 0; i < d->HS; i++)
                        out[at + i] += p[j] / sum * s->z[b * batch + (j * d->NKV + g) * d->HS + i];
                lse[(b * d->NH + h) * d->T + t] = max + log(sum);
            }
    free(p);
}
static double attention_loss(void *self)
{
    setup *s = (setup *)self;
    pvt_attention_forward(ctx, s->out, s->extra, s->x, s->y, s->z, &s->desc);
    return dot(s->out, s->R, s->n);
}
static double max_difference(const double *a, const double *b, int64_t n)
{
    double worst = 0;
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(a[i] - b[i]) <= worst)) worst = fabs(a[i] - b[i]);
    return worst;
}
static void test_attention(int64_t B, int64_t T, int64_t NH, int64_t NKV, int64_t HS, int64_t pos,
                           int64_t window, int64_t spare, double scale, bool gradients)
{
    setup s;
    int64_t nq = B * T * NH * HS, batch = (pos + T + spare) * NKV * HS, nkv = B * batch;
    double *dq = constant_array(nq, 0.5), *dk = constant_array(nkv, 0.5), *dv = constant_array(nkv, 0.5);
    double *want = constant_array(nq, 7), *want_lse = constant_array(B * NH * T, 7);
    memset(&s, 0, sizeof s);
    s.desc.B = B, s.desc.T = T, s.desc.NH = NH, s.desc.NKV = NKV, s.desc.HS = HS;
    s.desc.pos = pos, s.desc.window = window, s.desc.kv_batch = spare ? batch : 0, s.desc.scale = scale;
    s.n = nq;
    s.x = random_array(nq, 1.5), s.y = random_array(nkv, 1.5), s.z = random_array(nkv, 1),
    s.R = random_array(nq, 1);
    s.out = constant_array(nq, (double)NAN), s.extra = constant_array(B * NH * T, 9);
    attention_loss(&s);
    naive_attention(want, want_lse, &s);
    CHECK_NEAR(max_difference(s.out, want, nq), 0, 1e-13);
    CHECK_NEAR(max_difference(s.extra, want_lse, B * NH * T), 0, 1e-13);
    pvt_attention_backward(ctx, dq, dk, dv, s.R, s.out, s.extra, s.x, s.y, s.z, &s.desc);
    if (gradients) {
        CHECK_GRADIENT(attention_loss, &s, s.x, dq, nq);
        CHECK_GRADIENT(attention_loss, &s, s.y, dk, nkv);
        CHECK_GRADIENT(attention_loss, &s, s.z, dv, nkv);
    } else { /* Euler: the scores are bilinear in q and k, out is linear in v */
        CHECK_NEAR(dot(s.x, dq, nq) - 0.5 * sum_of(s.x, nq), dot(s.y, dk, nkv) - 0.5 * sum_of(s.y, nkv),
                   1e-9);
        CHECK_NEAR(dot(s.z, dv, nkv) - 0.5 * sum_of(s.z, nkv), dot(s.out, s.R, nq), 1e-9);
    }
    free(s.x), free(s.y), free(s.z), free(s.R), free(s.out), free(s.extra);
    free(dq), free(dk), free(dv), free(want), free(want_lse);
}
/* Seventy tokens, then token after token against a cache: as the whole sequence at once. */
static void test_attention_decode(int64_t window)
{
    enum { T = 150, NH = 6, NKV = 2, HS = 40 };
    pvt_attention_desc d;
    double *q = random_array(T * NH * HS, 1), *k = random_array(T * NKV * HS, 1),
           *v = random_array(T * NKV * HS, 1);
    double *whole = constant_array(T * NH * HS, 9), *step = constant_array(T * NH * HS, 9);
    memset(&d, 0, sizeof d);
    d.B = 1, d.T = T, d.NH = NH, d.NKV = NKV, d.HS = HS, d.window = window;
    pvt_attention_forward(ctx, whole, NULL, q, k, v, &d);
    d.kv_batch = T * NKV * HS;
    for (int64_t t = 0; t < T; t += d.T) {
        d.pos = t, d.T = t < 70 ? 70 : 1;
        pvt_attention_forward(ctx, step + t * NH * HS, NULL, q + t * NH * HS, k, v, &d);
    }
    CHECK_NEAR(max_difference(whole, step, T * NH * HS), 0, 1e-14);
    free(q), free(k), free(v), free(whole), free(step);
}

/* ---- SwiGLU, residual, squared error ---- */

static double swiglu_loss(void *self)
{
    setup *s = (setup *)self;
    pvt_swiglu_forward(ctx, s->out, s->x, s->y, s->n);
    return dot(s->out, s->R, s->n);
}
static double residual_loss(void *self)
{
    setup *s = (setup *)self;
    pvt_residual_forward(ctx, s->out, s->x, s->y, s->n);
    return dot(s->out, s->R, s->n);
}
static double mse_loss(void *self)
{
    setup *s = (setup *)self;
    return 3 * pvt_mse_forward(ctx, s->x, s->y, s->n);
}
static void test_pointwise(int64_t n)
{
    setup s;
    double *dx = constant_array(n, 0.5), *dy = constant_array(n, 0.5);
    s.n = n;
    s.x = random_array(n, 2), s.y = random_array(n, 1), s.R = random_array(n, 1),
    s.out = constant_array(n, 9);
    pvt_swiglu_backward(ctx, dx, dy, s.R, s.x, s.y, n);
    CHECK_GRADIENT(swiglu_loss, &s, s.x, dx, n);
    CHECK_GRADIENT(swiglu_loss, &s, s.y, dy, n);
    swiglu_loss(&s);
    CHECK_NEAR(s.out[n - 1], s.x[n - 1] / (1 + exp(-s.x[n - 1])) * s.y[n - 1], 1e-14);
    memcpy(dx, s.x, (size_t)n * sizeof *dx); /* in place */
    pvt_swiglu_forward(ctx, dx, dx, s.y, n);
    CHECK(memcmp(dx, s.out, (size_t)n * sizeof *dx) == 0);
    free(dx), free(dy);

    dx = constant_array(n, 0.5), dy = constant_array(n, 0.5);
    pvt_residual_backward(ctx, dx, dy, s.R, n);
    CHECK_GRADIENT(residual_loss, &s, s.x, dx, n);
    CHECK_GRADIENT(residual_loss, &s, s.y, dy, n);
    pvt_residual_backward(ctx, NULL, NULL, s.R, n);
    free(dx), free(dy);

    dx = constant_array(n, 0.5);
    pvt_mse_backward(ctx, dx, s.x, s.y, 3, n);
    CHECK_GRADIENT(mse_loss, &s, s.x, dx, n);
    CHECK(pvt_mse_forward(ctx, s.x, s.x, n) == 0 && pvt_mse_forward(ctx, s.x, s.y, 0) == 0);
    free(dx), free(s.x), free(s.y), free(s.R), free(s.out);
}

/* ---- losses ---- */

/* Sliced at c entries; x logits [n,a], y the teacher's, extra the weight of each row's loss is 1. */
static void slices(const setup *s, const double *logits, double *lse, double *loss)
{
    pvt_softmax_row rows[8];
    double *slice = (double *)malloc((size_t)(s->n * (s->c + 3)) * sizeof *slice);
    int64_t ld = s->c + 3;
    memset(rows, 0, sizeof rows);
    for (int64_t v0 = 0; v0 < s->a; v0 += s->c) {
        int64_t VS = s->a - v0 < s->c ? s->a - v0 : s->c;
        for (int64_t i = 0; i < s->n; i++)
            memcpy(slice + i * ld, logits + i * s->a + v0, (size_t)VS * sizeof *slice);
        pvt_softmax_update(ctx, rows, slice, s->ids, s->n, v0, VS, ld);
    }
    pvt_softmax_finish(ctx, lse, loss, rows, s->ids, s->n);
    free(slice);
}
static double cross_entropy_loss(void *self)
{
    setup *s = (setup *)self;
    double lse[8], loss[8], sum = 0;
    slices(s, s->x, lse, loss);
    for (int64_t i = 0; i < s->n; i++) sum += loss[i];
    return 0.3 * sum;
}
static double kl_loss(void *self)
{
    setup *s = (setup *)self;
    double lse[8], teacher_lse[8], loss[8], sum = 0;
    slices(s, s->x, lse, NULL);
    slices(s, s->y, teacher_lse, NULL);
    memset(loss, 0, sizeof loss);
    for (int64_t v0 = 0; v0 < s->a; v0 += s->c)
        pvt_kl_forward(ctx, loss, s->x + v0, lse, s->y + v0, teacher_lse, s->ids, s->n,
                       s->a - v0 < s->c ? s->a - v0 : s->c, s->a);
    for (int64_t i = 0; i < s->n; i++) sum += loss[i];
    return 0.3 * sum;
}
static void test_losses(int64_t V, int64_t slice, bool masked)
{
    int32_t targets[5] = {0, -1, 16, 5, 7};
    double *d, lse[8], teacher_lse[8], sum = 0, kl = 0;
    setup s;
    targets[4] = (int32_t)(V - 1);
    if (!masked) targets[1] = 3;
    s.n = 5, s.a = V, s.c = slice, s.ids = targets;
    s.x = random_array(5 * V, 3), s.y = random_array(5 * V, 3), d = random_array(5 * V, 0);
    s.x[2 * V + 1] = 800, s.x[2 * V + 16] = 790; /* exp would overflow without the maximum */
    slices(&s, s.x, lse, NULL);
    slices(&s, s.y, teacher_lse, NULL);
    for (int64_t i = 0; i < 5; i++) {
        double z = 0, zt = 0, max = i == 2 ? 800 : 0;
        if (targets[i] < 0) continue;
        for (int64_t v = 0; v < V; v++) z += exp(s.x[i * V + v] - max), zt += exp(s.y[i * V + v]);
        sum += log(z) + max - s.x[i * V + targets[i]];
        for (int64_t v = 0; v < V; v++)
            kl += exp(s.y[i * V + v]) / zt * (s.y[i * V + v] - log(zt) - s.x[i * V + v] + log(z) + max);
    }
    CHECK_NEAR(cross_entropy_loss(&s), 0.3 * sum, 1e-12);
    CHECK_NEAR(kl_loss(&s), 0.3 * kl, 1e-11);

    memcpy(d, s.x, (size_t)(5 * V) * sizeof *d); /* in place, slice by slice of the whole array */
    for (int64_t v0 = 0; v0 < V; v0 += slice)
        pvt_cross_entropy_backward(ctx, d + v0, lse, targets, 0.3, 5, v0, V - v0 < slice ? V - v0 : slice, V);
    CHECK_NEAR(gradient_error(cross_entropy_loss, &s, s.x, d, 0, 5 * V), 0, 2e-8);
    memcpy(d, s.x, (size_t)(5 * V) * sizeof *d);
    for (int64_t v0 = 0; v0 < V; v0 += slice)
        pvt_kl_backward(ctx, d + v0, lse, s.y + v0, teacher_lse, targets, 0.3, 5,
                        V - v0 < slice ? V - v0 : slice, V);
    CHECK_NEAR(gradient_error(kl_loss, &s, s.x, d, 0, 5 * V), 0, 4e-8);
    for (int64_t v = 0; masked && v < V; v++) CHECK(d[V + v] == 0);
    s.ids = NULL; /* every row counts */
    pvt_kl_backward(ctx, s.y, teacher_lse, s.y, teacher_lse, NULL, 1, 0, V, V);
    CHECK(masked ? kl_loss(&s) > 0.3 * kl : fabs(kl_loss(&s) - 0.3 * kl) < 1e-11);
    free(s.x), free(s.y), free(d);
}

static void test_all(void)
{
    test_math();
    test_reductions();
    test_embedding();
    test_linear();
    test_rmsnorm(3, 7), test_rmsnorm(2, 67), test_rmsnorm(1, 529);
    test_rope(PVT_ROPE_HALVES), test_rope(PVT_ROPE_NEIGHBOURS), test_rope_llama3();
    test_attention(2, 5, 4, 2, 3, 0, 0, 0, 0, true);
    test_attention(1, 7, 3, 1, 6, 4, 0, 2, 0.7, true); /* against a cache with room to spare */
    test_attention(1, 9, 2, 2, 5, 0, 3, 0, 0, true);   /* window */
    test_attention(1, 69, 2, 1, 2, 1, 0, 0, 0, true);  /* more than one tile each way */
    test_attention(1, 67, 2, 1, 2, 0, 2, 0, 0, true);
    test_attention(1, 200, 6, 3, 16, 0, 0, 0, 0, false);
    test_attention(2, 130, 4, 2, 24, 75, 70, 5, 0, false); /* window across tiles, an offset, a cache */
    test_attention(1, 1, 4, 2, 8, 0, 0, 0, 0, true);
    test_attention_decode(0), test_attention_decode(37);
    test_pointwise(77), test_pointwise(1);
    test_losses(29, 29, true), test_losses(29, 10, true), test_losses(29, 10, false),
        test_losses(530, 300, true);
}

/* The product and sum of machines without a fused one, against this machine's (but for emscripten's, which is wrong in
   half-way cases): any bits, and such as lie half-way. The sum over all bits is the same on every machine. */
static void test_fmaf(void)
{
    uint32_t r = 12345, differ = 0, halves = 0, all = 0;
    for (int i = 0; i < 400000; i++) {
        float v[3];
        for (int j = 0; j < 3; j++) {
            r = r * 1664525u + 1013904223u;
            uint32_t bits = r ^ r >> 15;
            if (i % 4 == 1) bits = (bits & 0x80fff000u) | 0x3f000000u; /* few bits: exact sums, half-ways */
            if (i % 4 == 2) bits = (bits & 0x81ffffffu) | (j < 2 ? 0x1f000000u : 0); /* subnormal sums */
            v[j] = pvti_from_bits(bits);
        }
        if (i % 4 == 3) { /* (1 + m/2^12)·(1 + n/2^12) with m·n odd, and next to nothing beside it */
            v[0] = 1 + (float)(r >> 8 & 0xffe) / 4096 + 1.0f / 4096;
            v[1] = 1 + (float)(r >> 20 & 0xffe) / 4096 + 1.0f / 4096;
            v[2] = (r & 128 ? 1.0f : -1.0f) * pvti_from_bits((r % 90 + 1) << 23), halves++;
        }
        float mine = pvti_fmaf_exact(v[0], v[1], v[2]), theirs = __builtin_fmaf(v[0], v[1], v[2]);
        differ += pvti_bits(mine) != pvti_bits(theirs) && !(mine != mine && theirs != theirs);
        all = all * 16777619u + (mine != mine ? 1u : pvti_bits(mine));
    }
    CHECK(halves == 100000);
#ifdef __wasm__
    (void)differ;
#else
    CHECK(differ == 0);
#endif
    CHECK(all == 0x47789889u);
}

/* A NaN or an infinity in one slice of the vocabulary is there in the end, whichever slice it was. */
static void test_softmax_slices(void)
{
    for (int k = 0; k < 4; k++) {
        pvt_real first[2][4] = {{1, 0, 3, 4}, {1, 2, 3, 4}};
        pvt_softmax_row row;
        const int32_t target = 5;
        double lse, loss;
        memset(&row, 0, sizeof row);
        first[k / 2][1] = k % 2 ? (pvt_real)INFINITY : (pvt_real)NAN;
        for (int v = 0; v < 2; v++) pvt_softmax_update(ctx, &row, first[v], &target, 1, 4 * v, 4, 4);
        pvt_softmax_finish(ctx, &lse, &loss, &row, &target, 1);
        CHECK(!(fabs(loss) <= DBL_MAX));
    }
}

int main(void)
{
    pvt_ctx_desc desc;
    test_fmaf();
    test_all(); /* no context: serial, on the stack */
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 3, samples = 20;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
    test_all();
    test_softmax_slices();
    pvt_ctx_destroy(ctx);
    return test_end();
}
