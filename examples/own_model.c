/*  Layer 1 alone: a network that is not a transformer, with a backward pass of its own.
    y = W2·tanh(W1·x), 128 → 128 → 32, is trained to imitate a random target function; then both
    matrices are quantized to about two bits and tuned with the very same gradients, kept in a file
    and made again from it. Everything the library needs from you is dW.

        own_model [FILE]    FILE: where the weights are kept; own_model.safetensors */
#define PVTUNE_LAYER 1
#define PVTUNE_IMPLEMENTATION
#include "pvtune.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 256, X = 128, H = 128, Y = 32 }; /* samples of a batch; sizes of input, hidden layer, output */
static float x[N * X], hidden[N * H], y[N * Y], want[N * Y], dy[N * Y], dhidden[N * H], dW1[H * X], dW2[Y * H];
static float target1[H * X], target2[Y * H], start1[H * X], start2[Y * H], XX[X * X], HH[H * H];
static uint64_t state = 7;
static float noise(void) /* about normal: the sum of four uniform numbers */
{
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(state >> 40);
    }
    return (sum / (float)(1 << 24) - 2) * 1.7f;
}

static void forward(float *out, const pvt_weight *W1, const pvt_weight *W2)
{
    pvt_weight_forward(hidden, x, W1, N, false);
    for (int i = 0; i < N * H; i++) hidden[i] = tanhf(hidden[i]);
    pvt_weight_forward(out, hidden, W2, N, false);
}

/* A new batch, its mean squared error, and dW1, dW2: back-propagation by hand. */
static double loss_and_gradients(const pvt_weight *W1, const pvt_weight *W2,
                                 const pvt_weight target[2])
{
    double loss = 0;
    for (int i = 0; i < N * X; i++) x[i] = noise() * 3 / (float)(1 + i % X / 4); /* few directions matter */
    forward(want, &target[0], &target[1]);
    forward(y, W1, W2);
    for (int i = 0; i < N * Y; i++) dy[i] = y[i] - want[i], loss += dy[i] * dy[i], dy[i] *= 2.0f / (N * Y);
    memset(dW1, 0, sizeof dW1), memset(dW2, 0, sizeof dW2), memset(dhidden, 0, sizeof dhidden);
    pvt_weight_backward(dhidden, dW2, dy, hidden, W2, N);
    for (int i = 0; i < N * H; i++) dhidden[i] *= 1 - hidden[i] * hidden[i];
    pvt_weight_backward(NULL, dW1, dhidden, x, W1, N);
    return loss / (N * Y);
}

/* Both weights, dense or codes, through `steps` steps of PV-Tuning (of Adam, where dense). */
static double tune(pvt_ctx *ctx, pvt_weight *W1, pvt_weight *W2, const pvt_weight target[2], int steps)
{
    pvt_pv_desc desc;
    pvt_pv *pv;
    int h1, h2;
    double mean = 0;
    memset(&desc, 0, sizeof desc); /* zero is the recommended default everywhere */
    desc.values.lr = 3e-3, desc.values.beta1 = 0.9, desc.values.beta2 = 0.95;
    desc.codes.lr = 1e-2, desc.codes.beta2 = 0.95;
    if (pvt_pv_create(ctx, &desc, &pv)) return -1;
    if (pvt_pv_add_weight(pv, W1, "W1", &h1) || pvt_pv_add_weight(pv, W2, "W2", &h2)) return -1;
    for (int s = 0; s < steps; s++) {
        double loss = loss_and_gradients(W1, W2, target);
        if (s >= steps - 20) mean += loss / 20;
        if (pvt_pv_begin(pv, 1.0 - 0.95 * s / steps) || pvt_pv_apply(pv, h1, dW1)) return -1;
        if (pvt_pv_apply(pv, h2, dW2) || pvt_pv_end(pv, NULL)) return -1;
    }
    pvt_pv_free(pv);
    return mean;
}

/* Both weights through a file; the copies must compute the same, to the bit. */
static bool keep(pvt_ctx *ctx, const char *path, pvt_weight *Q1, pvt_weight *Q2)
{
    static float again[N * Y];
    pvt_weight copy[2];
    const pvt_named_weight result[2] = {{"W1", Q1}, {"W2", Q2}};
    const pvt_named_weight read[2] = {{"W1", &copy[0]}, {"W2", &copy[1]}};
    if (pvt_weights_save(path, result, 2, false) || pvt_weights_load(ctx, path, read, 2)) {
        fprintf(stderr, "own_model: the weights could not be kept: %s\n", pvt_ctx_error(ctx));
        return false;
    }
    forward(y, Q1, Q2);
    forward(again, &copy[0], &copy[1]);
    pvt_weight_free(&copy[0]);
    pvt_weight_free(&copy[1]);
    return memcmp(y, again, sizeof y) == 0;
}

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : "own_model.safetensors";
    char why[200];
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    pvt_weight target[2], W1, W2, Q1, Q2;
    pvt_format format;
    double fitted = 0;
    memset(&desc, 0, sizeof desc);
    desc.error = why, desc.error_bytes = sizeof why;
    if (pvt_ctx_create(&desc, &ctx)) return fprintf(stderr, "own_model: %s\n", why), 1;
    for (int i = 0; i < H * X; i++) target1[i] = noise() / 8, start1[i] = noise() / 8;
    for (int i = 0; i < Y * H; i++) target2[i] = noise() / 11, start2[i] = noise() / 11;
    pvt_weight_dense(ctx, target1, H, X, &target[0]), pvt_weight_dense(ctx, target2, Y, H, &target[1]);
    pvt_weight_dense(ctx, start1, H, X, &W1), pvt_weight_dense(ctx, start2, Y, H, &W2);
    double trained = tune(ctx, &W1, &W2, target, 500);
    loss_and_gradients(&W1, &W2, target); /* leaves x and hidden: the inputs of W1 and W2 */
    pvt_linear_backward(ctx, NULL, XX, NULL, x, x, NULL, N, X, X);           /* XᵀX */
    pvt_linear_backward(ctx, NULL, HH, NULL, hidden, hidden, NULL, N, H, H);
    if (pvt_format_parse(ctx, "aqlm:2x4g4", &format) ||
        pvt_weight_fit(ctx, (const float *)W1.array[0], H, X, XX, &format, NULL, NULL, &Q1) ||
        pvt_weight_fit(ctx, (const float *)W2.array[0], Y, H, HH, &format, NULL, NULL, &Q2)) {
        fprintf(stderr, "own_model: %s\n", pvt_ctx_error(ctx));
        return 1;
    }
    for (int s = 0; s < 20; s++) fitted += loss_and_gradients(&Q1, &Q2, target) / 20;
    double tuned = tune(ctx, &Q1, &Q2, target, 500);
    bool kept = keep(ctx, path, &Q1, &Q2);
    printf("mean squared error: trained %.5f, quantized to %.2f bits %.5f, tuned %.5f\n", trained,
           (pvt_weight_bits(&Q1) * H * X + pvt_weight_bits(&Q2) * Y * H) / (H * X + Y * H), fitted, tuned);
    if (kept) printf("kept in %s, and made again from it: the same\n", path);
    pvt_weight_free(&target[0]), pvt_weight_free(&target[1]), pvt_weight_free(&W1), pvt_weight_free(&W2);
    pvt_weight_free(&Q1), pvt_weight_free(&Q2), pvt_ctx_destroy(ctx);
    return !(kept && tuned >= 0 && tuned < fitted);
}
