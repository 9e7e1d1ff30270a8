/*  What the page of `make web` computes: three small experiments with the library, each a function of a list of
    integers (its state, which the page keeps in its address) and of nothing else. The same file is compiled

        by emscripten   for the page
        natively        as a program that prints the numbers of a state:  web plane 1,12,0,…   (a test compares)

    A state gives a frame: the numbers that are drawn, in the order of the put()s below. The third experiment is in
    race.h. */
#define PVTUNE_IMPLEMENTATION
#define PVT_API static
#include "../pvtune.h"
#define exp(x) pvti_exp64(x) /* libm's differ in last bits from system to system */
#define log(x) pvti_log(x)
#include "../examples/quadratic.h"
#undef exp
#undef log

enum { MAX_STATE = 1024, MAX_FRAME = 16384 };
static int32_t given[MAX_STATE]; /* [0] seed, [1] step, then what each experiment says */
static double frame[MAX_FRAME];
static int n_frame;
static pvt_ctx *ctx;
static char error[512];

static void put(double x)
{
    if (n_frame < MAX_FRAME) frame[n_frame++] = x;
}
/* False: the library said no; the sentence is kept for the page. */
static bool good(pvt_result result)
{
    if (result != PVT_OK) snprintf(error, sizeof error, "%s", pvt_ctx_error(ctx));
    return result == PVT_OK;
}
#define TRY(call) do { if (!good(call)) return false; } while (0)
static bool in_range(int n, const int32_t limits[][2], int count)
{
    bool fits = n >= count;
    for (int i = 0; i < count; i++) fits = fits && given[i] >= limits[i][0] && given[i] <= limits[i][1];
    if (!fits)
        snprintf(error, sizeof error,
                 "this address holds no state of the experiment: a number is missing or too large");
    return fits;
}

/* ---- a: the plane. Groups of two weights, each with a point x_g where it would like to be, and all coupled by
   what they have in common, as the weights of a layer are by its outputs:
       φ(W) = ½·Σ_g ‖w_g − x_g‖² + κ/2N·‖Σ_g (w_g − x_g)‖²,   ∇_g = w_g − x_g + κ/N·Σ_h (w_h − x_h).
   Moved together they are curved by L = 1 + κ, any share τ of them by no more than L_S = 1 + τ·κ. Codes were
   right once; then three of the seven clusters of points moved. aqlm:1x4g2: sixteen entries, one scale of 1.
   V steps are plain ones, in a subspace without a buffer with L_S, else with L.
   State: seed, step, strategy, cap and the entries' rate in 1/1000, L in 1/100 of the above, decay of the buffer
   in 1/1000, then four for each drag: after so many steps, entry (< 16) or 16 + point, x and y in 1/1000. ---- */

enum { POINTS = 48, ENTRIES = 16, PLANE_OPTIONS = 7, PLANE_STEPS = 400, KAPPA = 15 };
typedef struct plane {
    pvt_weight w;
    pvt_pv *pv;
    pvt_real X[2 * POINTS], W[2 * POINTS], dW[2 * POINTS];
    uint8_t codes[POINTS], before[POINTS], start[POINTS];
    double phi[PLANE_STEPS + 1];
    pvt_pv_stats stats;
} plane;

/* Entries on a grid, each point's code the entry that is nearest to where the point was. */
static bool plane_weight(plane *p)
{
    pvt_real entries[ENTRIES][2], one = 1;
    pvt_format format;
    pvt_array a[PVT_MAX_ARRAYS];
    double centre[10][2];
    int n;
    quad_random r = {(uint64_t)given[0] + 1000};
    for (int i = 0; i < 20; i++) centre[i / 2][i % 2] = 1.7 * quad_uniform(&r) - 0.85;
    for (int i = 0; i < 2 * POINTS; i++)
        p->X[i] = (pvt_real)(centre[i / 2 % 7][i % 2] + 0.07 * quad_normal(&r));
    for (int k = 0; k < ENTRIES; k++)
        entries[k][0] = (pvt_real)(k % 4 - 1.5) / 2, entries[k][1] = (pvt_real)(k / 4 - 1.5) / 2;
    for (int g = 0; g < POINTS; g++) {
        double least = INFINITY;
        for (int k = 0; k < ENTRIES; k++) {
            double x = (double)(p->X[2 * g] - entries[k][0]), y = (double)(p->X[2 * g + 1] - entries[k][1]);
            if (x * x + y * y < least) least = x * x + y * y, p->start[g] = (uint8_t)k;
        }
    }
    for (int i = 0; i < 2 * POINTS; i++)
        if (i / 2 % 7 < 3) p->X[i] += (pvt_real)(centre[7 + i / 2 % 7][i % 2] - centre[i / 2 % 7][i % 2]);
    TRY(pvt_format_parse(ctx, "aqlm:1x4g2", &format));
    TRY(pvt_format_arrays(ctx, &format, 1, 2 * POINTS, a, &n));
    a[0].data = p->start, a[1].data = entries, a[2].data = &one;
    return good(pvt_weight_from_arrays(ctx, &format, 1, 2 * POINTS, a, n, "plane", &p->w));
}

static bool plane_pv(plane *p)
{
    pvt_pv_desc d;
    memset(&d, 0, sizeof d);
    d.strategy = (pvt_strategy)given[2], d.step = PVT_STEP_PLAIN;
    bool capped = d.strategy == PVT_STRATEGY_SUBSPACE || d.strategy == PVT_STRATEGY_SUBSPACE_STE;
    if (capped) d.cap = given[3] / 1000.0;
    d.values.rule = PVT_OPTIMIZER_ADAM, d.values.lr = given[4] / 1000.0;
    d.values.beta1 = 0.9, d.values.beta2 = 0.95;
    d.smoothness = (1 + (d.strategy == PVT_STRATEGY_SUBSPACE ? d.cap : 1) * KAPPA) * given[5] / 100;
    d.train = PVT_TRAIN_CODEBOOKS | (d.strategy == PVT_STRATEGY_CONTINUOUS ? 0 : PVT_TRAIN_CODES);
    if (d.strategy == PVT_STRATEGY_STE || d.strategy == PVT_STRATEGY_SUBSPACE_STE) d.delta = given[6] / 1000.0;
    TRY(pvt_pv_create(ctx, &d, &p->pv));
    return good(pvt_pv_add_weight(p->pv, &p->w, "plane", NULL));
}

static void plane_drag(plane *p, const int32_t *drag)
{
    pvt_real *at = drag[1] < ENTRIES ? pvti_codebooks(&p->w) + 2 * drag[1] : p->X + 2 * (drag[1] - ENTRIES);
    at[0] = (pvt_real)drag[2] / 1000, at[1] = (pvt_real)drag[3] / 1000;
}

static double plane_phi(plane *p) /* and its gradient */
{
    double phi = 0, sum[2] = {0, 0};
    pvt_weight_dequantize(&p->w, p->W);
    for (int i = 0; i < 2 * POINTS; i++) {
        double away = (double)p->W[i] - (double)p->X[i];
        phi += away * away / 2, sum[i % 2] += away;
    }
    for (int i = 0; i < 2 * POINTS; i++)
        p->dW[i] = (pvt_real)((double)p->W[i] - (double)p->X[i] + sum[i % 2] * KAPPA / POINTS);
    return phi + (sum[0] * sum[0] + sum[1] * sum[1]) * KAPPA / (2 * POINTS);
}

static bool plane_run(plane *p, const int32_t *drag, int drags)
{
    for (int s = 0;; s++) {
        for (int i = 0; i < drags; i++)
            if (drag[4 * i] == s) plane_drag(p, drag + 4 * i);
        p->phi[s] = plane_phi(p);
        if (s == given[1]) return true;
        for (int g = 0; g < POINTS; g++) p->before[g] = (uint8_t)pvti_code_get(&p->w, g);
        TRY(pvt_pv_begin(p->pv, 1));
        TRY(pvt_pv_apply(p->pv, 0, p->dW));
        TRY(pvt_pv_end(p->pv, &p->stats));
    }
}

static void plane_put(plane *p)
{
    const pvt_real *buffer = p->pv->entries[0].buffer.w, *target = buffer ? buffer : p->pv->target;
    bool searched[POINTS] = {false}, moves = given[2] != PVT_STRATEGY_CONTINUOUS;
    bool made = moves && (buffer || given[1] > 0);
    int64_t k = p->stats.groups_searched;
    for (int64_t i = 0; i < k; i++) searched[k < POINTS ? p->pv->selected[i] : i] = true;
    int away = 0;
    for (int g = 0; g < POINTS; g++) away += pvti_code_get(&p->w, g) != p->start[g];
    put(p->phi[given[1]]), put((double)k), put((double)p->stats.groups_changed), put(away);
    for (int i = 0; i < 2 * ENTRIES; i++) put((double)pvti_codebooks(&p->w)[i]);
    for (int g = 0; g < POINTS; g++) {
        int code = (int)pvti_code_get(&p->w, g);
        put((double)p->X[2 * g]), put((double)p->X[2 * g + 1]);
        put((double)(made ? target : p->W)[2 * g]), put((double)(made ? target : p->W)[2 * g + 1]);
        put(code), put(searched[g]), put(given[1] > 0 && code != p->before[g]);
    }
    for (int s = 0; s <= given[1]; s++) put(p->phi[s]);
}

static bool plane_frame(int n)
{
    static const int32_t limits[PLANE_OPTIONS][2] = {{0, 1000000}, {0, PLANE_STEPS}, {0, 5}, {1, 1000},
                                                     {1, 1000}, {1, 1000}, {0, 999}};
    static const int32_t drag_limits[4][2] = {
        {0, PLANE_STEPS}, {0, ENTRIES + POINTS - 1}, {-2000, 2000}, {-2000, 2000}};
    static plane p;
    const int32_t *drag = given + PLANE_OPTIONS;
    int drags = (n - PLANE_OPTIONS) / 4;
    if (!in_range(n, limits, PLANE_OPTIONS)) return false;
    for (int i = 0; i < 4 * drags; i++)
        if (drag[i] < drag_limits[i % 4][0] || drag[i] > drag_limits[i % 4][1]) return in_range(0, limits, 1);
    memset(&p, 0, sizeof p);
    bool done = plane_weight(&p) && plane_pv(&p) && plane_run(&p, drag, drags);
    if (done) plane_put(&p);
    pvt_pv_free(p.pv), pvt_weight_free(&p.w);
    return done;
}

/* ---- b: six weights of four values, φ(x) = ½·(x − x*)ᵀ·A·(x − x*) (examples/quadratic.h). From one start, with
   exact P steps, V steps that are exact; linearized, all six with L; in a subspace, the τ with the largest |∇|, with
   their own L_S. State: seed, step, L and L_S in 1/100 of the least that are allowed, τ. ---- */

enum { VALUES = 4, QUAD_OPTIONS = 4, QUAD_STEPS = 60 };
typedef struct quad_state {
    pvt_weight w; /* aqlm:1x2g1 of scale 1: entry k is value k */
    pvt_pv *pv;
    double x[QUAD_D], phi[QUAD_STEPS + 1], L; /* in: S, L: L_S of the last step */
    bool in[QUAD_D];
    int subspace;
} quad_state;

static bool quad_weight(quad_state *s, const double *x)
{
    pvt_real entries[VALUES], one = 1;
    uint8_t codes[QUAD_D];
    double values[QUAD_D];
    pvt_format format;
    pvt_array a[PVT_MAX_ARRAYS];
    pvt_pv_desc d;
    int n, count = quad_values(x, values);
    for (int k = 0; k < VALUES; k++) entries[k] = (pvt_real)values[PVTI_MIN(k, count - 1)];
    for (int i = 0; i < QUAD_D; i++)
        for (codes[i] = 0; values[codes[i]] != x[i]; codes[i]++) {}
    TRY(pvt_format_parse(ctx, "aqlm:1x2g1", &format));
    TRY(pvt_format_arrays(ctx, &format, 1, QUAD_D, a, &n));
    a[0].data = codes, a[1].data = entries, a[2].data = &one;
    TRY(pvt_weight_from_arrays(ctx, &format, 1, QUAD_D, a, n, "quadratic", &s->w));
    memset(&d, 0, sizeof d);
    d.strategy = s->subspace == QUAD_D ? PVT_STRATEGY_LINEARIZED : PVT_STRATEGY_SUBSPACE;
    d.cap = s->subspace == QUAD_D ? 1 : (s->subspace - 0.5) / QUAD_D; /* rounded up */
    d.step = PVT_STEP_PLAIN, d.freeze_values = true;
    d.smoothness = 1; /* another for each step */
    TRY(pvt_pv_create(ctx, &d, &s->pv));
    return good(pvt_pv_add_weight(s->pv, &s->w, "quadratic", NULL));
}

static void quad_read(quad_state *s)
{
    pvt_real W[QUAD_D];
    pvt_weight_dequantize(&s->w, W);
    for (int i = 0; i < QUAD_D; i++) s->x[i] = (double)W[i];
}

static bool quad_step(quad_state *s, const quad *q)
{
    double g[QUAD_D], x[QUAD_D];
    pvt_real dW[QUAD_D];
    memcpy(x, s->x, sizeof x), memset(s->in, 0, sizeof s->in);
    quad_p_step(q, x);
    for (int i = 0; i < QUAD_D; i++) pvti_codebooks(&s->w)[pvti_code_get(&s->w, i)] = (pvt_real)x[i];
    quad_read(s);
    quad_gradient(q, s->x, g);
    for (int i = 0; i < QUAD_D; i++) dW[i] = (pvt_real)g[i];
    quad_choose(QUAD_GREEDY, s->subspace, g, NULL, s->in); /* as pv will, too */
    s->L = s->pv->entries[0].smoothness = quad_curvature(q, s->in) * given[2] / 100;
    TRY(pvt_pv_begin(s->pv, 1));
    TRY(pvt_pv_apply(s->pv, 0, dW));
    TRY(pvt_pv_end(s->pv, NULL));
    quad_read(s);
    return true;
}

static void quad_put(const quad_state *s)
{
    bool made = given[1] > 0;
    put(s->L);
    for (int i = 0; i < QUAD_D; i++) put(s->x[i]), put(made ? (double)s->pv->target[i] : s->x[i]), put(s->in[i]);
    for (int k = 0; k < VALUES; k++) put((double)pvti_codebooks(&s->w)[k]);
}

static bool quad_frame(int n)
{
    static const int32_t limits[QUAD_OPTIONS][2] = {{0, 1000000}, {0, QUAD_STEPS}, {1, 1000}, {1, QUAD_D}};
    quad q;
    quad_state runs[2];
    double exact[QUAD_D], phi[QUAD_STEPS + 1];
    memset(runs, 0, sizeof runs), memset(phi, 0, sizeof phi);
    if (!in_range(n, limits, QUAD_OPTIONS)) return false;
    quad_random r = {(uint64_t)given[0] + 77};
    quad_make(&q, (uint64_t)given[0]);
    quad_start(exact, VALUES, &r);
    for (int i = 0; i < QUAD_D; i++) exact[i] = (double)(float)exact[i];
    runs[0].subspace = QUAD_D, runs[1].subspace = given[3];
    bool done = quad_weight(&runs[0], exact) && quad_weight(&runs[1], exact);
    for (int k = 0; done && k < 2; k++) quad_read(&runs[k]);
    for (int s = 0; done && s <= given[1]; s++) {
        phi[s] = quad_phi(&q, exact);
        for (int k = 0; k < 2; k++) runs[k].phi[s] = quad_phi(&q, runs[k].x);
        if (s == given[1]) break;
        quad_p_step(&q, exact), quad_v_step(&q, exact);
        done = quad_step(&runs[0], &q) && quad_step(&runs[1], &q);
    }
    for (int i = 0; done && i < QUAD_D; i++) put(q.best[i]);
    for (int k = 0; done && k < 2; k++) quad_put(&runs[k]);
    for (int s = 0; done && s <= given[1]; s++) put(phi[s]), put(runs[0].phi[s]), put(runs[1].phi[s]);
    for (int k = 0; k < 2; k++) pvt_pv_free(runs[k].pv), pvt_weight_free(&runs[k].w);
    return done;
}

#include "race.h"

/* ---- what the page calls ---- */

#ifdef __EMSCRIPTEN__
#include <emscripten.h>
#else
#define EMSCRIPTEN_KEEPALIVE
#endif
int32_t *web_state(void);
double *web_numbers(void);
const char *web_error(void);
int web_frame(int experiment, int n);
uint32_t web_digest(void);

EMSCRIPTEN_KEEPALIVE int32_t *web_state(void) { return given; }
EMSCRIPTEN_KEEPALIVE double *web_numbers(void) { return frame; }
EMSCRIPTEN_KEEPALIVE const char *web_error(void) { return error; }
/* The frame of the n integers at web_state(): how many numbers, −1: web_error() says why there are none. */
EMSCRIPTEN_KEEPALIVE int web_frame(int experiment, int n)
{
    static bool (*const frames[])(int n) = {plane_frame, quad_frame, race_frame};
    n_frame = 0, error[0] = 0;
    if (!ctx && pvt_ctx_create(NULL, &ctx) != PVT_OK) return -1;
    return n >= 0 && n <= MAX_STATE && frames[experiment](n) ? n_frame : -1;
}
/* FNV-1a of the last frame's bytes: what a link reproduces. */
EMSCRIPTEN_KEEPALIVE uint32_t web_digest(void)
{
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < (size_t)n_frame * sizeof *frame; i++)
        h = (h ^ ((unsigned char *)frame)[i]) * 16777619u;
    return h;
}

#ifndef __EMSCRIPTEN__
int main(int argc, char **argv) /* NAME STATE…: the bits of each state's numbers, then their digest */
{
    static const char *const names[] = {"plane", "quadratic", "race"};
    for (int a = 1; a + 1 < argc; a += 2) {
        int experiment = 0, n = 0;
        while (experiment < 2 && strcmp(argv[a], names[experiment]) != 0) experiment++;
        for (char *s = strtok(argv[a + 1], ","); s && n < MAX_STATE; s = strtok(NULL, ","))
            given[n++] = (int32_t)strtol(s, NULL, 10);
        int count = web_frame(experiment, n);
        for (int i = 0; i < count; i++) {
            uint64_t bits;
            memcpy(&bits, &frame[i], sizeof bits);
            printf("%016llx\n", (unsigned long long)bits);
        }
        printf("%s ", argv[a]);
        for (int i = 0; i < n; i++) printf("%s%d", i ? "," : "", (int)given[i]);
        printf(": %d numbers, digest %08x %s\n", count, (unsigned)web_digest(), error);
    }
    race_end(), pvt_ctx_destroy(ctx);
    return 0;
}
#endif
