/*  pvtune lab NAME: the experiments of the papers, each one verb, one table, one chart, in minutes. They are
    meant to be read beside the papers, changed, and run again.

    Included by pvtune.c, whose app, progress and JSON it uses, behind demo.h, whose model it borrows. */
#ifndef LAB_H
#define LAB_H

#include "quadratic.h"

/* ---- a table, cell by cell: printed with its columns' names above, and as the rows of --json ---- */

typedef struct lab_table {
    app *a; /* which keeps head and lines */
    bool named; /* the columns' names are complete: the first row is */
} lab_table;

static void lab_row(lab_table *t) { put_open(&t->a->json, NULL, "{"); }

static void lab_end(lab_table *t)
{
    put_close(&t->a->json, "}");
    buffer_put(&t->a->table_lines, "\n", 1);
    t->named = true;
}

/* width < 0: flush left; 0: in --json alone. */
static void lab_word(lab_table *t, const char *name, int width, const char *word)
{
    put_text(&t->a->json, name, word);
    if (width == 0) return;
    if (!t->named) buffer_printf(&t->a->table_head, "%*s ", width, name);
    buffer_printf(&t->a->table_lines, "%*s ", width, word);
}

/* digits < 0: a whole number; a NaN is an empty cell. */
static void lab_cell(lab_table *t, const char *name, int width, int digits, double value)
{
    put_number(&t->a->json, name, value);
    if (width == 0) return;
    if (!t->named) buffer_printf(&t->a->table_head, "%*s ", width, name);
    if (!(value == value)) buffer_printf(&t->a->table_lines, "%*s ", width, "");
    else buffer_printf(&t->a->table_lines, "%*.*f ", width, digits < 0 ? 0 : digits, value);
}

static void lab_begin(lab_table *t, app *a)
{
    memset(t, 0, sizeof *t);
    t->a = a;
    put_open(&a->json, NULL, "{");
    put_text(&a->json, "name", a->o.lab);
    put_key(&a->json, "seed"), buffer_printf(&a->json, "%llu", (unsigned long long)a->o.seed);
    put_open(&a->json, "rows", "[");
}

/* Prints the table, with `about` below it, or the JSON. */
static int lab_finish(lab_table *t, const char *about)
{
    app *a = t->a;
    put_close(&a->json, "]");
    put_text(&a->json, "svg", a->o.svg), put_number(&a->json, "seconds", elapsed(a));
    put_close(&a->json, "}");
    meter_clear(&a->meter);
    bool failed = t->a->table_head.failed || t->a->table_lines.failed;
    if (!a->o.json && !failed)
        printf("%s\n%s\n%s\nChart: %s. %.1f s.\n", t->a->table_head.data, t->a->table_lines.data, about, a->o.svg, elapsed(a));
    buffer_free(&t->a->table_head), buffer_free(&t->a->table_lines);
    return failed ? fail(a, "out of memory for the table") : put_result(a);
}

/* The mean of n numbers and its standard error (NaN for one). */
typedef struct lab_mean {
    double mean, error;
} lab_mean;
static lab_mean lab_mean_of(const double *x, int64_t n)
{
    lab_mean m = {0, 0};
    for (int64_t i = 0; i < n; i++) m.mean += x[i] / (double)n;
    for (int64_t i = 0; i < n; i++) m.error += (x[i] - m.mean) * (x[i] - m.mean);
    m.error = n > 1 ? sqrt(m.error / (double)(n - 1) / (double)n) : (double)NAN;
    return m;
}

/* ---- lab quadratic ---- */

enum { QUAD_STEPS = 40 };
static const double quad_floor = 1e-7; /* less than that is drawn as that */

/* One method at one c from all starts: means of φ after every round, and the last with its error. */
static int lab_quadratic_run(app *a, const quad *q, const quad_method *m, int c, double *curve,
                             lab_mean *last)
{
    int64_t starts = a->o.runs;
    double phi[QUAD_STEPS + 1], x[QUAD_D];
    double *ends = (double *)(a->buffers[0] = calloc((size_t)starts, sizeof *ends));
    if (!ends) return fail(a, "out of memory for %lld starts", (long long)starts);
    memset(curve, 0, (QUAD_STEPS + 1) * sizeof *curve);
    for (int64_t i = 0; i < starts; i++) {
        quad_random r = {(a->o.seed * 8 + (uint64_t)c) * 1000003u +
                         (uint64_t)i}; /* the same starts for every method */
        quad_start(x, c, &r);
        if (!quad_run(q, m, x, c, &r, phi, QUAD_STEPS))
            return fail(
                a,
                "%s, c = %d, start %lld: an iterate has more than c values, or φ has risen: the algorithm is "
                "wrong",
                m->name, c, (long long)i);
        for (int k = 0; k <= QUAD_STEPS; k++) curve[k] += phi[k] / (double)starts;
        ends[i] = phi[QUAD_STEPS];
    }
    for (int k = 0; k <= QUAD_STEPS; k++) curve[k] = fmax(curve[k], quad_floor);
    *last = lab_mean_of(ends, starts);
    free(ends), a->buffers[0] = NULL;
    return 0;
}

static int lab_quadratic(app *a)
{
    static double curves[QUAD_D][QUAD_METHODS][QUAD_STEPS + 1], rounds[QUAD_STEPS + 1];
    static plot p;
    static const char *const titles[] = {"c = 2 values", "c = 3 values", "c = 4 values"};
    lab_table t;
    lab_mean last = {0, 0};
    quad q;
    char subtitle[120];
    if (a->o.runs == 0) a->o.runs = 50;
    quad_make(&q, a->o.seed);
    lab_begin(&t, a);
    for (int c = 1; c <= QUAD_D; c++)
        for (int m = 0; m < QUAD_METHODS; m++) {
            DO(lab_quadratic_run(a, &q, &quad_methods[m], c, curves[c - 1][m], &last));
            lab_row(&t);
            lab_cell(&t, "c", 2, -1, c), lab_word(&t, "V step", -22, quad_methods[m].name);
            lab_cell(&t, "start", 9, 4, curves[c - 1][m][0]),
                lab_cell(&t, "after 5", 9, 4, curves[c - 1][m][5]);
            lab_cell(&t, "last", 9, 4, last.mean), lab_cell(&t, "stderr", 8, 4, last.error);
            lab_end(&t);
            if (progress(a, "lab", (c - 1) * QUAD_METHODS + m + 1, QUAD_METHODS * QUAD_D, "runs", NAN))
                return fail(a, "stopped on request");
        }
    snprintf(subtitle, sizeof subtitle,
             "mean φ over %lld starts: exact V steps against linearized ones; lower is better",
             (long long)a->o.runs);
    p.title = "A quadratic of six numbers with at most c values", p.subtitle = subtitle;
    p.x_label = "rounds of P and V steps", p.y_label = "φ", p.log_x = p.log_y = true, p.n_panels = 3;
    for (int k = 0; k <= QUAD_STEPS; k++) rounds[k] = k;
    for (int i = 0; i < 3; i++) {
        p.panels[i].title = titles[i];
        for (int m = 0; m < QUAD_METHODS; m++) {
            plot_line *line = &p.panels[i].lines[p.panels[i].n_lines++];
            line->name = quad_methods[m].name, line->x = rounds + 1, line->y = curves[i + 1][m] + 1,
            line->n = QUAD_STEPS;
        }
    }
    DO(write_chart(a, draw_lines, &p));
    return lab_finish(&t, "φ, means over the starts: at first, after 5 rounds of a P and a V step, and after 40. \"n of 6\":\n"
                          "linearized in a subspace of n coordinates; T: linearized steps for each P step. No iterate had\n"
                          "more than c values, and φ never rose.\n");
}

/* ---- what the other experiments work on ---- */

/* A MODEL of the user's, with --data to learn from and --eval, else the last tenth of --data, to measure on. */
static int lab_load(app *a, demo *d)
{
    pvt_corpus *train = &a->corpora[0], *unseen = &a->corpora[1];
    if (!a->o.data) return fail(a, "a MODEL needs --data TEXT to calibrate and tune on");
    DO(load_model(a, DEMO_ORIGINAL, a->o.model));
    DO(load_text(a, 0, a->o.data, a->models[DEMO_ORIGINAL]));
    memset(d, 0, sizeof *d);
    d->config = *pvt_model_get_config(a->models[DEMO_ORIGINAL]);
    d->config.ctx = smaller(a->o.ctx ? a->o.ctx : 512, d->config.ctx);
    if (a->o.eval) {
        DO(load_text(a, 1, a->o.eval, a->models[DEMO_ORIGINAL]));
    } else {
        int64_t tail = train->n / 10;
        TRY(a, pvt_corpus_from_ids(a->ctx, train->ids + train->n - tail, tail, unseen));
        train->n -= tail;
    }
    if (train->n < d->config.ctx || unseen->n < d->config.ctx)
        return fail(a, "%s has too little text for windows of %lld tokens; give more, or a smaller --ctx",
                    a->o.data, (long long)d->config.ctx);
    unseen->n = smaller(unseen->n, a->o.eval_windows ? a->o.eval_windows * d->config.ctx
                                                     : 16384 / d->config.ctx * d->config.ctx);
    d->train = train, d->unseen = unseen, d->train_bytes = train->n;
    d->tune_steps = a->o.steps ? a->o.steps : 100, d->samples = a->o.samples ? a->o.samples : 64;
    return demo_measure(a, d, a->models[DEMO_ORIGINAL], &d->ppl_original);
}

/* The demo's small Llama (that of demo --short), trained from nothing on the seed's stories, or MODEL. */
static int lab_subject(app *a, demo *d)
{
    if (a->o.model) return lab_load(a, d);
    a->o.brief = !a->o.quick;
    *d = demo_sizes(&a->o);
    if (a->o.samples) d->samples = a->o.samples;
    DO(demo_texts(a, d));
    return demo_train(a, d);
}

/* Run after run has a seed of its own, in a context of its own. */
static int lab_seed(app *a, uint64_t first, int64_t run)
{
    app_clear(a);
    a->o.seed = first + (uint64_t)run;
    return open_context(a);
}

/* ---- lab smoothness ----
   Why a subspace: φ is L-smooth when ‖∇φ(x) − ∇φ(y)‖ ≤ L·‖x − y‖, and a linearized step may be 1/L long. For
   steps in a subspace S alone the constant is L_S = max ‖P_S·H·P_S‖ ≤ L, H the Hessian, P_S the projection on S:
   of nested subspaces the smaller has the smaller one. How much smaller decides how much longer a subspace step may be.

   At points along gradient descent (φ: cross-entropy on a fixed batch), for nested subspaces that hold a share
   of the parameters, drawn evenly or those with the largest gradients:
     schema I    ‖P_S(∇φ(x + u) − ∇φ(x))‖/‖u‖,  u = −r·P_S∇φ/‖P_S∇φ‖: gradients differ so along the path, and
     schema II   the largest eigenvalue of P_S·H·P_S by power iteration, v ← P_S·H·v/‖P_S·H·v‖, with the
                 Hessian-vector product as a difference, H·v ≈ (∇φ(x + εv) − ∇φ(x − εv))/2ε.                     */

enum { SMOOTH_SHARES = 9, SMOOTH_RUNS = 16, SMOOTH_POINTS = 3, SMOOTH_PAUSE = 8, SMOOTH_BATCH = 4 };
static const double smooth_shares[SMOOTH_SHARES] = {1, 0.85, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05};

typedef struct smooth {
    app *a;
    int64_t n, tensors, B, T;
    int64_t *at;                  /* [tensors + 1]: where tensor i begins in the vectors below */
    pvt_real *x, *g, *v, *Hv, *y; /* [n]: the point, its gradient, a direction, H·v, work space */
    float *rank, *sorted; /* [n]: S holds the parameters whose rank lies below … , sorted: those in order */
    double phi;
    const int32_t *ids;
    pvt_real *into;               /* where the gradient goes */
    int64_t done, total;          /* gradients */
    int points, power;            /* of the path; rounds of power iteration */
} smooth;

/* The numbers of tensor i: all are dense in a copied model. */
static pvt_real *smooth_numbers(const smooth *s, int64_t i)
{
    pvt_tensor_info t = pvt_model_tensor(s->a->models[DEMO_TUNED], i);
    return t.weight ? (pvt_real *)t.weight->array[0] : t.values;
}

static pvt_result smooth_sink(void *user, int64_t tensor, const pvt_real *dW)
{
    smooth *s = (smooth *)user;
    memcpy(s->into + s->at[tensor], dW, (size_t)(s->at[tensor + 1] - s->at[tensor]) * sizeof *dW);
    return PVT_OK;
}

/* into ← ∇φ(x + step·v); v NULL: ∇φ(x) */
static int smooth_gradient(smooth *s, double step, const pvt_real *v, pvt_real *into)
{
    app *a = s->a;
    double sum;
    int64_t count;
    for (int64_t i = 0; i < s->tensors; i++) {
        pvt_real *numbers = smooth_numbers(s, i);
        for (int64_t k = s->at[i]; k < s->at[i + 1]; k++)
            numbers[k - s->at[i]] = s->x[k] + (v ? (pvt_real)step * v[k] : 0);
    }
    s->into = into;
    TRY(a, pvt_run_forward(a->runs[0], s->ids, s->B, s->T, NULL));
    TRY(a, pvt_run_backward(a->runs[0], NULL, &sum, &count, smooth_sink, s));
    s->phi = sum / (double)count;
    if (progress(a, "lab", ++s->done, s->total, "gradients", s->phi)) return fail(a, "stopped on request");
    return 0;
}

/* v ← P_S·from, to length 1; S: rank < limit. Returns the length that it had. */
static double smooth_project(const smooth *s, pvt_real *v, const pvt_real *from, float limit)
{
    double square = 0;
    for (int64_t i = 0; i < s->n; i++) {
        v[i] = s->rank[i] < limit ? from[i] : 0;
        square += (double)v[i] * (double)v[i];
    }
    double length = sqrt(square);
    for (int64_t i = 0; i < s->n && length > 0; i++) v[i] = (pvt_real)((double)v[i] / length);
    return length;
}

/* The length of P_S·(y − z). */
static double smooth_distance(const smooth *s, const pvt_real *y, const pvt_real *z, float limit)
{
    double square = 0;
    for (int64_t i = 0; i < s->n; i++) {
        double d = (double)y[i] - (double)z[i];
        square += s->rank[i] < limit ? d * d : 0;
    }
    return sqrt(square);
}

static int smooth_schema_1(smooth *s, float limit, double r, double *L)
{
    smooth_project(s, s->v, s->g, limit);
    DO(smooth_gradient(s, -r, s->v, s->y));
    *L = smooth_distance(s, s->y, s->g, limit) / r;
    return 0;
}

/* From s->v, where it leaves the direction of the strongest curvature. ‖P_S·H·v‖ never falls from round to
   round. */
static int smooth_schema_2(smooth *s, float limit, double epsilon, int rounds, double *L)
{
    smooth_project(s, s->v, s->v, limit);
    for (int k = 0; k < rounds; k++) {
        DO(smooth_gradient(s, epsilon, s->v, s->Hv));
        DO(smooth_gradient(s, -epsilon, s->v, s->y));
        for (int64_t i = 0; i < s->n; i++) s->Hv[i] = (s->Hv[i] - s->y[i]) / (pvt_real)(2 * epsilon);
        *L = smooth_project(s, s->v, s->Hv, limit);
    }
    return 0;
}

static int smooth_up(const void *p, const void *q)
{
    float x = *(const float *)p, y = *(const float *)q;
    return (x > y) - (x < y);
}

/* Ranks: drawn once for all points, or the more of the gradient the sooner. */
static void smooth_rank(smooth *s, bool greedy, uint64_t seed)
{
    quad_random r = {seed};
    for (int64_t i = 0; i < s->n; i++) s->rank[i] = greedy ? -fabsf((float)s->g[i]) : (float)quad_uniform(&r);
    memcpy(s->sorted, s->rank, (size_t)s->n * sizeof *s->rank);
    qsort(s->sorted, (size_t)s->n, sizeof *s->sorted, smooth_up);
}

static double smooth_length(const smooth *s, const pvt_real *v)
{
    double square = 0;
    for (int64_t i = 0; i < s->n; i++) square += (double)v[i] * (double)v[i];
    return sqrt(square);
}

/* Both schemas for all shares: L[schema][share]. Power iteration goes from the smallest subspace up and begins
   in each where it ended in the one before, which is a direction of the larger one, too. */
static int smooth_point(smooth *s, double r, double L[2][SMOOTH_SHARES])
{
    double epsilon = 1e-3 * smooth_length(s, s->x);
    float limits[SMOOTH_SHARES];
    for (int k = 0; k < SMOOTH_SHARES; k++) {
        int64_t count = (int64_t)(smooth_shares[k] * (double)s->n);
        limits[k] = count < s->n ? s->sorted[count] : (float)INFINITY;
        DO(smooth_schema_1(s, limits[k], r, &L[0][k]));
    }
    memcpy(s->v, s->g, (size_t)s->n * sizeof *s->v);
    for (int k = SMOOTH_SHARES - 1; k >= 0; k--)
        DO(smooth_schema_2(s, limits[k], epsilon, k == SMOOTH_SHARES - 1 ? 2 * s->power : s->power,
                           &L[1][k]));
    return 0;
}

/* x ← x − η·∇φ, and the gradient there. */
static int smooth_descend(smooth *s, double eta, int steps)
{
    for (int k = 0; k < steps; k++) {
        for (int64_t i = 0; i < s->n; i++) s->x[i] -= (pvt_real)(eta * (double)s->g[i]);
        DO(smooth_gradient(s, 0, NULL, s->g));
    }
    return 0;
}

/* A copy of the model in pvt_real, a run that gives gradients, and the vectors. */
static int smooth_prepare(smooth *s, const demo *d)
{
    app *a = s->a;
    pvt_run_desc desc;
    memset(&desc, 0, sizeof desc);
    s->T = d->config.ctx, s->B = smaller(a->o.quick ? 1 : SMOOTH_BATCH, d->train->n / s->T),
    s->ids = d->train->ids;
    desc.max_batch = s->B, desc.max_ctx = s->T, desc.train = true;
    TRY(a, pvt_model_copy(a->ctx, a->models[DEMO_ORIGINAL], &a->models[DEMO_TUNED]));
    s->tensors = pvt_model_tensors(a->models[DEMO_TUNED]);
    s->at = (int64_t *)(a->buffers[2] = calloc((size_t)s->tensors + 1, sizeof *s->at));
    if (!s->at) return fail(a, "out of memory");
    for (int64_t i = 0; i < s->tensors; i++) {
        pvt_tensor_info t = pvt_model_tensor(a->models[DEMO_TUNED], i);
        if (t.dtype == PVT_DTYPE_NONE)
            return fail(a, "%s: %s is quantized; smoothness is measured on a dense model", a->o.model,
                        t.name);
        s->at[i + 1] = s->at[i] + t.n;
    }
    s->n = s->at[s->tensors];
    s->x = (pvt_real *)(a->buffers[3] = calloc((size_t)s->n, 5 * sizeof *s->x));
    s->rank = (float *)(a->buffers[4] = calloc((size_t)s->n, 2 * sizeof *s->rank));
    if (!s->x || !s->rank) return fail(a, "out of memory for vectors of %lld parameters", (long long)s->n);
    s->g = s->x + s->n, s->v = s->g + s->n, s->Hv = s->v + s->n, s->y = s->Hv + s->n,
    s->sorted = s->rank + s->n;
    for (int64_t i = 0; i < s->tensors; i++)
        memcpy(s->x + s->at[i], smooth_numbers(s, i), (size_t)(s->at[i + 1] - s->at[i]) * sizeof *s->x);
    TRY(a, pvt_run_create(a->models[DEMO_TUNED], &desc, &a->runs[0]));
    return 0;
}

/* A seed's part: L[choice][schema][share][point]. */
static int smooth_seed(smooth *s, const demo *d, double L[2][2][SMOOTH_SHARES][SMOOTH_POINTS])
{
    double at_point[2][SMOOTH_SHARES], most;
    DO(smooth_prepare(s, d));
    DO(smooth_gradient(s, 0, NULL, s->g));
    smooth_rank(s, false, s->a->o.seed);
    memcpy(s->v, s->g, (size_t)s->n * sizeof *s->v);
    DO(smooth_schema_2(s, INFINITY, 1e-3 * smooth_length(s, s->x), s->power,
                       &most)); /* steps of 1/L descend */
    for (int point = 0; point < s->points; point++)
        for (int greedy = 0; greedy < 2; greedy++) {
            if (point > 0 && !greedy) DO(smooth_descend(s, 1 / most, SMOOTH_PAUSE));
            smooth_rank(s, greedy, s->a->o.seed);
            DO(smooth_point(s, smooth_length(s, s->g) / most, at_point));
            for (int schema = 0; schema < 2; schema++)
                for (int k = 0; k < SMOOTH_SHARES; k++) L[greedy][schema][k][point] = at_point[schema][k];
        }
    return 0;
}

typedef struct smooth_results { /* [choice of S][schema][share]; shares fall in L and rise in means, errors */
    double L[2][2][SMOOTH_SHARES][SMOOTH_RUNS * SMOOTH_POINTS], means[2][2][SMOOTH_SHARES],
        errors[2][2][SMOOTH_SHARES];
    double shares[SMOOTH_SHARES]; /* in percent */
    int64_t n;                    /* of L: points of all runs */
} smooth_results;

/* The table; how often a mean rises where its subspace shrinks. */
static int64_t smooth_rows(lab_table *t, smooth_results *r)
{
    static const char *const columns[2][2][2] = {
        {{"even I", "even I se"}, {"even II", "even II se"}},
        {{"greedy I", "greedy I se"}, {"greedy II", "greedy II se"}}};
    int64_t rises = 0;
    for (int k = 0; k < SMOOTH_SHARES; k++) {
        lab_row(t);
        int at = SMOOTH_SHARES - 1 - k; /* the chart wants them rising */
        lab_cell(t, "% of parameters", 15, -1, r->shares[at] = 100 * smooth_shares[k]);
        for (int i = 0; i < 4; i++) {
            lab_mean m = lab_mean_of(r->L[i / 2][i % 2][k], r->n);
            r->means[i / 2][i % 2][at] = m.mean, r->errors[i / 2][i % 2][at] = m.error;
            rises += k > 0 && m.mean > r->means[i / 2][i % 2][at + 1];
            lab_cell(t, columns[i / 2][i % 2][0], 10, 3, m.mean);
            lab_cell(t, columns[i / 2][i % 2][1], 12, 3, m.error);
        }
        lab_end(t);
    }
    return rises;
}

static int smooth_chart(app *a, const smooth_results *r)
{
    static const char *const lines[] = {"drawn evenly", "largest gradients"};
    static const char *const panels[] = {"schema I: differences of gradients",
                                         "schema II: largest eigenvalue"};
    static plot p;
    p.title = "How strongly the loss is curved in a subspace";
    p.subtitle = "L along gradient descent; bars: ± one standard error";
    p.x_label = "% of the parameters", p.y_label = "L", p.log_x = p.log_y = true, p.n_panels = 2;
    for (int schema = 0; schema < 2; schema++) {
        p.panels[schema].title = panels[schema], p.panels[schema].n_lines = 2;
        for (int i = 0; i < 2; i++) {
            plot_line *line = &p.panels[schema].lines[i];
            line->name = lines[i], line->x = r->shares, line->y = r->means[i][schema];
            line->error = r->errors[i][schema], line->n = SMOOTH_SHARES, line->dots = true;
        }
    }
    return write_chart(a, draw_lines, &p);
}

static int lab_smoothness(app *a)
{
    static double one[2][2][SMOOTH_SHARES][SMOOTH_POINTS];
    static smooth_results r;
    smooth s;
    demo d;
    lab_table t;
    uint64_t seed = a->o.seed;
    int64_t runs = a->o.runs ? a->o.runs : 3;
    if (runs > SMOOTH_RUNS) return fail(a, "smoothness takes at most %d --runs", SMOOTH_RUNS);
    memset(&s, 0, sizeof s);
    s.a = a, s.points = a->o.quick ? 1 : SMOOTH_POINTS, s.power = a->o.quick ? 3 : 5;
    s.total = runs * (1 + 2 * s.power + (s.points - 1) * SMOOTH_PAUSE +
                      s.points * 2 * (SMOOTH_SHARES + 2 * s.power * (SMOOTH_SHARES + 1)));
    lab_begin(&t, a);
    for (int64_t run = 0; run < runs; run++) {
        DO(lab_seed(a, seed, run));
        DO(lab_subject(a, &d));
        DO(smooth_seed(&s, &d, one));
        for (int i = 0; i < 4 * SMOOTH_SHARES; i++)
            memcpy(r.L[i / SMOOTH_SHARES / 2][i / SMOOTH_SHARES % 2][i % SMOOTH_SHARES] + r.n,
                   one[i / SMOOTH_SHARES / 2][i / SMOOTH_SHARES % 2][i % SMOOTH_SHARES],
                   (size_t)s.points * sizeof(double));
        r.n += s.points;
    }
    int64_t rises = smooth_rows(&t, &r);
    DO(smooth_chart(a, &r));
    return lab_finish(
        &t, rises ? "L rises somewhere as the subspace shrinks: the estimates are too rough.\n"
                  : "L never rises as the subspace shrinks. even: parameters drawn evenly; greedy: those\n"
                    "with the largest gradients; I: from differences of gradients, II: by power iteration;\n"
                    "se: standard error over points and seeds.\n");
}

/* ---- one engine for all that is calibrated and tuned: variants, run over seeds ---- */

typedef struct lab_variant {
    const char *group,
        *name; /* variants of a group stand together; its first is what the others are held against */
    const char *format;
    double samples;           /* calibration sequences, as a multiple of the usual; 0: 1 */
    const char *words; /* options of `pvtune tune`, behind those that all have; NULL: it is not tuned */
} lab_variant;

enum { LAB_VARIANTS = 72, LAB_RUNS = 16 };
typedef struct lab_results {
    lab_variant variants[LAB_VARIANTS];
    int n;
    int64_t runs;
    double nll[LAB_VARIANTS][LAB_RUNS], changed[LAB_VARIANTS], seconds[LAB_VARIANTS], bits[LAB_VARIANTS];
    double original[LAB_RUNS]; /* its nll */
    plot_row rows[LAB_VARIANTS];
    const char *format; /* what DEMO_CALIBRATED is in, */
    double samples;     /* with so many samples */
    double calibrated;  /* its nll */
    char texts[LAB_VARIANTS][64];
} lab_results;

/* What `pvtune tune` would do with these words. */
static int lab_tune_desc(app *a, const demo *d, const char *words, pvt_tune_desc *desc)
{
    static const option_set sets[2] = {{common_rows, (int)(sizeof common_rows / sizeof *common_rows), NULL},
                                       {tune_rows, (int)(sizeof tune_rows / sizeof *tune_rows), NULL}};
    const char *base =
        a->o.model ? "--no-eval" : "--no-eval --warmup 0 --lr 1e-3 --code-optimizer adam --code-lr 2e-3";
    char text[400], wrong[300], *argv[60];
    bool help = false;
    options o;
    int argc = 0;
    memset(&o, 0, sizeof o);
    o.warmup = NOT_GIVEN, o.clamp_sharpness = NOT_GIVEN;
    snprintf(text, sizeof text, "%s %s", base, words);
    for (char *word = strtok(text, " "); word && argc < 60; word = strtok(NULL, " ")) argv[argc++] = word;
    if (!options_parse(sets, 2, argc, argv, &o, &help, wrong, sizeof wrong))
        return fail(a, "'%s': %s", words, wrong);
    *desc = tune_desc(&o);
    desc->ctx = d->config.ctx;
    int64_t usual =
        a->o.model ? 2 : DEMO_TOKENS / d->config.ctx; /* of the base, whose tokens all variants see */
    int64_t sequences = d->tune_steps * usual;
    if (desc->batch == 0) desc->batch = usual;
    desc->steps = sequences < desc->batch ? 1 : sequences / desc->batch;
    return 0;
}

/* models[DEMO_CALIBRATED] in that format, unless it is already. */
static int lab_calibrate(app *a, const demo *d, lab_results *r, const lab_variant *v)
{
    pvt_quantize_desc desc;
    double samples = v->samples > 0 ? v->samples : 1, ppl;
    if (r->format && strcmp(r->format, v->format) == 0 && r->samples == samples) return 0;
    memset(&desc, 0, sizeof desc);
    TRY(a, pvt_format_parse(a->ctx, v->format, &desc.format));
    desc.ctx = d->config.ctx, desc.finetune_epochs = a->o.model ? 0 : 3;
    desc.samples = smaller((int64_t)fmax(1, samples * (double)d->samples), d->train->n / d->config.ctx);
    pvt_model_free(a->models[DEMO_CALIBRATED]), a->models[DEMO_CALIBRATED] = NULL;
    r->format = NULL;
    TRY(a, pvt_model_copy(a->ctx, a->models[DEMO_ORIGINAL], &a->models[DEMO_CALIBRATED]));
    a->meter.muted++;
    pvt_result result = pvt_quantize(a->models[DEMO_CALIBRATED], d->train, &desc);
    a->meter.muted--;
    TRY(a, result);
    TRY(a, pvt_model_round_f16(a->models[DEMO_CALIBRATED]));
    DO(demo_measure(a, d, a->models[DEMO_CALIBRATED], &ppl));
    r->format = v->format, r->samples = samples, r->calibrated = log(ppl);
    return 0;
}

/* Tunes a copy of it; the last state counts, as a file would hold it. */
static int lab_tune(app *a, const demo *d, lab_results *r, int i, int64_t run, int64_t done)
{
    pvt_tune_desc desc;
    pvt_tune_stats stats;
    int64_t groups, moved;
    double ppl;
    DO(lab_tune_desc(a, d, r->variants[i].words, &desc));
    TRY(a, pvt_model_copy(a->ctx, a->models[DEMO_CALIBRATED], &a->models[DEMO_TUNED]));
    TRY(a, pvt_tuner_create(a->models[DEMO_TUNED], a->models[DEMO_ORIGINAL], d->train, &desc, &a->tuner));
    while (!pvt_tuner_get_info(a->tuner).done) {
        DO(demo_step(a, &stats));
        if (progress(a, "lab", done, r->n * r->runs, "variants", stats.loss))
            return fail(a, "stopped on request");
    }
    pvt_tuner_free(a->tuner), a->tuner = NULL;
    TRY(a, pvt_model_round_f16(a->models[DEMO_TUNED]));
    DO(demo_measure(a, d, a->models[DEMO_TUNED], &ppl));
    count_changed(a->models[DEMO_TUNED], a->models[DEMO_CALIBRATED], &groups, &moved);
    r->nll[i][run] = log(ppl);
    r->changed[i] += groups ? (double)moved / (double)groups / (double)r->runs : 0;
    pvt_model_free(a->models[DEMO_TUNED]), a->models[DEMO_TUNED] = NULL;
    return 0;
}

/* The variant before i that does the same; i: none. */
static int lab_twin(const lab_results *r, int i)
{
    const lab_variant *v = r->variants;
    for (int k = 0; k < i; k++)
        if (strcmp(v[k].format, v[i].format) == 0 && v[k].samples == v[i].samples && v[k].words &&
            v[i].words && strcmp(v[k].words, v[i].words) == 0)
            return k;
    return i;
}

static int lab_variant_run(app *a, const demo *d, lab_results *r, int i, int64_t run)
{
    int twin = lab_twin(r, i);
    double start = meter_now(), runs = (double)r->runs;
    pvt_save_desc as;
    memset(&as, 0, sizeof as);
    if (progress(a, "lab", run * r->n + i, r->n * r->runs, "variants", NAN))
        return fail(a, "stopped on request");
    if (twin < i) {
        r->nll[i][run] = r->nll[twin][run], r->bits[i] = r->bits[twin];
        r->changed[i] = r->changed[twin], r->seconds[i] = r->seconds[twin];
        return 0;
    }
    DO(lab_calibrate(a, d, r, &r->variants[i]));
    r->bits[i] = pvt_model_bits(a->models[DEMO_CALIBRATED], &as).packed_linears;
    if (r->variants[i].words) start = meter_now();
    if (r->variants[i].words) DO(lab_tune(a, d, r, i, run, run * r->n + i));
    else r->nll[i][run] = r->calibrated;
    r->seconds[i] += (meter_now() - start) / runs;
    return 0;
}

static int lab_run_all(app *a, lab_results *r)
{
    uint64_t seed = a->o.seed;
    demo d;
    for (int64_t run = 0; run < r->runs; run++) {
        DO(lab_seed(a, seed, run));
        DO(lab_subject(a, &d));
        r->original[run] = log(d.ppl_original), r->format = NULL;
        for (int i = 0; i < r->n; i++) DO(lab_variant_run(a, &d, r, i, run));
    }
    a->o.seed = seed;
    return 0;
}

/* The table and the chart's rows: differences of the nll from the original's or the group's first, seed by seed. */
static void lab_rows_of(lab_table *t, lab_results *r, bool from_original)
{
    double x[LAB_RUNS];
    int first = 0;
    for (int i = 0; i < r->n; i++) {
        const lab_variant *v = &r->variants[i];
        plot_row *row = &r->rows[i];
        if (strcmp(v->group, r->variants[first].group) != 0) first = i;
        for (int64_t k = 0; k < r->runs; k++) x[k] = exp(r->nll[i][k]);
        lab_mean ppl = lab_mean_of(x, r->runs);
        for (int64_t k = 0; k < r->runs; k++)
            x[k] = r->nll[i][k] - (from_original ? r->original[k] : r->nll[first][k]);
        lab_mean difference = lab_mean_of(x, r->runs);
        if (i == first && !from_original) difference.error = (double)NAN;
        row->group = v->group, row->name = v->name, row->base = i == first;
        row->x = difference.mean, row->error = difference.error;
        lab_row(t);
        lab_word(t, "group", -16, v->group), lab_word(t, "variant", -20, v->name);
        lab_word(t, "format", 0, v->format), lab_word(t, "options", 0, v->words ? v->words : "");
        lab_cell(t, "bits", 5, 2, r->bits[i]);
        lab_cell(t, "perplexity", 10, 4, ppl.mean), lab_cell(t, "stderr", 7, 4, ppl.error);
        lab_cell(t, from_original ? "nll - original" : "nll - first", 14, 4, difference.mean);
        lab_cell(t, "se", 7, 4, difference.error);
        lab_cell(t, "% new", 6, 1, 100 * r->changed[i]), lab_cell(t, "seconds", 7, 1, r->seconds[i]);
        lab_end(t);
    }
}

static bool draw_rows(const void *chart, FILE *f) { return plot_rows_write((const plot_rows *)chart, f); }

static int lab_prepare(app *a, lab_table *t, lab_results *r)
{
    memset(r, 0, sizeof *r);
    r->runs = a->o.runs ? a->o.runs : 3;
    if (r->runs > LAB_RUNS) return fail(a, "%s takes at most %d --runs", a->o.lab, LAB_RUNS);
    lab_begin(t, a);
    return 0;
}

static void lab_add(lab_results *r, const char *group, const char *name, const char *format, double samples,
                    const char *words)
{
    if (r->n == LAB_VARIANTS) return; /* the lists below are shorter; --formats is checked */
    lab_variant *v = &r->variants[r->n++];
    v->group = group, v->name = name, v->format = format, v->samples = samples, v->words = words;
}

/* ---- lab strategies: the paper's Table 1 ---- */

enum { STRATEGIES = 6, STRATEGY_FORMATS = LAB_VARIANTS / (STRATEGIES + 1) };

static int lab_strategies(app *a)
{
    static const char *const words[STRATEGIES][2] = {
        {"continuous", "--strategy continuous"}, {"linearized", "--strategy linearized"},
        {"stochastic", "--strategy stochastic"}, {"ste", "--strategy ste"},
        {"subspace", "--strategy subspace"},     {"subspace-ste", "--strategy subspace-ste"}};
    static lab_results r;
    static plot_rows p;
    lab_table t;
    char formats[800];
    DO(lab_prepare(a, &t, &r));
    snprintf(formats, sizeof formats, "%s",
             a->o.formats ? a->o.formats
             : a->o.model ? "aqlm:2x8g8,vq:8g4,had:higgs:p2n16,int:2g64"
                          : "aqlm:2x4g4,vq:4g2,had:higgs:p2n16,int:2g32s");
    for (char *format = strtok(formats, ","); format; format = strtok(NULL, ",")) {
        lab_add(&r, format, "calibrated only", format, 0, NULL);
        for (int i = 0; i < STRATEGIES; i++) lab_add(&r, format, words[i][0], format, 0, words[i][1]);
    }
    DO(lab_run_all(a, &r));
    lab_rows_of(&t, &r, true);
    for (int i = 0; i < r.n; i++) {
        snprintf(r.texts[i], sizeof r.texts[i], "%.40s, %.2f bits", r.variants[i].group, r.bits[i]);
        r.rows[i].group = r.texts[i];
        if (!r.variants[i].words) p.x_max = fmax(p.x_max, r.rows[i].x * 1.05); /* far worse: at the edge */
    }
    p.title = "Strategies by representations";
    p.subtitle = "loss of unseen text above the original's; hollow: calibrated only; bars: ± one standard error";
    p.x_label = "nll - the original's, nats per token, paired by seed", p.rows = r.rows, p.n = r.n;
    p.level = "original";
    DO(write_chart(a, draw_rows, &p));
    return lab_finish(&t, "bits: per weight of the linears, all counted. nll - original: in nats per token, paired by seed;\n"
                          "se: its standard error over the seeds. % new: groups whose codes are not the calibrated ones.\n");
}

/* ---- one thing changed at a time ---- */

/* Runs the variants, whose last is the calibrated model untuned, and draws each group beside its first. */
static int lab_one_by_one(app *a, lab_table *t, lab_results *r, const char *title, const char *subtitle)
{
    plot_rows p;
    memset(&p, 0, sizeof p);
    DO(lab_run_all(a, r));
    lab_rows_of(t, r, false);
    p.title = title, p.subtitle = subtitle;
    p.x_label = "nll - that of the group's first, nats", p.rows = r->rows, p.n = r->n - 1;
    p.x_max = lab_mean_of(r->nll[r->n - 1], r->runs).mean -
              lab_mean_of(r->nll[0], r->runs).mean; /* worse than no tuning: at the edge */
    DO(write_chart(a, draw_rows, &p));
    return lab_finish(t, "All see the same number of tokens. nll - first: in nats, against the group's first, paired by\n"
                         "seed; se: its standard error. % new: groups whose codes are not the calibrated ones.\n");
}

/* ---- lab ablation: the options of PV-Tuning ---- */

static int lab_ablation(app *a)
{
    static const char *const rows[][3] = {
        {"cap", "0.01", ""},
        {"cap", "0.001", "--cap 0.001"},
        {"cap", "0.003", "--cap 0.003"},
        {"cap", "0.03", "--cap 0.03"},
        {"cap", "0.1", "--cap 0.1"},
        {"cap", "1: ste", "--strategy ste"},
        {"delta", "0", ""},
        {"delta", "1e-4", "--delta 1e-4"},
        {"delta", "1e-3", "--delta 1e-3"},
        {"delta", "1e-2", "--delta 1e-2"},
        {"delta", "0.1", "--delta 0.1"},
        {"delta", "1: subspace", "--strategy subspace"},
        {"delta, late", "0", ""},
        {"delta, late", "to 1e-3, last half", "--delta 1e-3 --delta-from 0.5"},
        {"delta, late", "to 1e-2, last half", "--delta 1e-2 --delta-from 0.5"},
        {"delta, late", "to 0.1, last half", "--delta 0.1 --delta-from 0.5"},
        {"delta, late", "to 0.1, last fifth", "--delta 0.1 --delta-from 0.8"},
        {"beam", "1", ""},
        {"beam", "2", "--beam 2"},
        {"beam", "4", "--beam 4"},
        {"trust", "none", ""},
        {"trust", "0.1", "--trust 0.1"},
        {"trust", "0.01", "--trust 0.01"},
        {"trust", "0.003", "--trust 0.003"},
        {"tokens of a step", "2048", ""},
        {"tokens of a step", "512", "--batch 4"},
        {"tokens of a step", "1024", "--batch 8"},
        {"tokens of a step", "8192", "--batch 64"},
        {"optimizer", "adam, code lr 2e-3", ""},
        {"optimizer", "adam, code lr 1e-3", "--code-lr 1e-3"},
        {"optimizer", "adam, code lr 4e-3", "--code-lr 4e-3"},
        {"optimizer", "lamb, code lr 1e-2", "--code-optimizer lamb --code-lr 1e-2"},
        {"optimizer", "lamb, code lr 2.5e-2", "--code-optimizer lamb --code-lr 2.5e-2"},
        {"optimizer", "lamb, code lr 5e-2", "--code-optimizer lamb --code-lr 5e-2"},
        {"schedule", "cosine", ""},
        {"schedule", "constant", "--schedule constant"},
        {"schedule", "wsd", "--schedule wsd"},
        {"schedule", "warm-up 10", "--warmup 10"},
        {"calibration", "as usual", ""}};
    static const struct {
        const char *name;
        double samples;
    } sizes[] = {{"a sixteenth", 1.0 / 16}, {"a quarter", 0.25}, {"four times", 4}};
    static lab_results r;
    lab_table t;
    const char *format = a->o.formats ? a->o.formats : a->o.model ? "aqlm:2x8g8" : "aqlm:2x4g4";
    pvt_format parsed;
    DO(lab_prepare(a, &t, &r));
    TRY(a, pvt_format_parse(a->ctx, format, &parsed));
    for (int i = 0; i < (int)(sizeof rows / sizeof *rows); i++)
        lab_add(&r, rows[i][0], rows[i][1], format, 0, rows[i][2]);
    for (int i = 0; i < 3; i++) lab_add(&r, "calibration", sizes[i].name, format, sizes[i].samples, "");
    lab_add(&r, "no tuning", "calibrated only", format, 0, NULL);
    return lab_one_by_one(a, &t, &r, "PV-Tuning, one thing changed at a time",
                          "hollow: the default; right of it is worse; bars: ± one standard error, paired by seed");
}

/* ---- lab pv-or-ste: when is the cap worth having? ----
   Both keep the same straight-through buffer; PV-Tuning moves only the groups that lie farthest from it (cap =
   0.01 of them a step), ste all that have crossed. What may decide between them: how noisy a step's gradient is
   (its tokens), whether the rates end in nothing (schedule), and how far the buffer travels (rate). */

static int lab_pv_or_ste(app *a)
{
    static const struct {
        const char *name, *options;
    } schedules[] = {{"cosine", "--schedule cosine"}, {"constant", "--schedule constant"}};
    static const struct {
        const char *name, *options;
        double rate; /* of codes, as a multiple of the usual */
    } rows[] = {{"pv", "--strategy pv", 1},          {"pv, twice the rate", "--strategy pv", 2},
                {"ste", "--strategy ste", 1},        {"ste, twice the rate", "--strategy ste", 2},
                {"ste, half the rate", "--strategy ste", 0.5}, {"continuous", "--strategy continuous", 1}};
    static const int64_t parts[] = {4, 1, -4}; /* of the usual tokens: a quarter, as they are, four times */
    enum { SCHEDULES = 2, ROWS = (int)(sizeof rows / sizeof *rows), PARTS = 3 };
    static lab_results r;
    static char groups[SCHEDULES * PARTS][48], words[SCHEDULES * PARTS * ROWS][120];
    const char *format = a->o.formats ? a->o.formats : a->o.model ? "aqlm:2x8g8" : "aqlm:2x4g4";
    int64_t ctx = smaller(a->o.ctx ? a->o.ctx : 512, 512);
    lab_table t;
    pvt_format parsed;
    if (!a->o.model && !a->o.quick && !a->o.steps) a->o.steps = 80; /* 36 runs a seed: ten minutes on two cores */
    DO(lab_prepare(a, &t, &r));
    TRY(a, pvt_format_parse(a->ctx, format, &parsed));
    for (int s = 0; s < SCHEDULES; s++)
        for (int p = 0; p < PARTS; p++) {
            char *group = groups[s * PARTS + p];
            int64_t usual = a->o.model ? 4 : DEMO_TOKENS / 128;
            int64_t B = parts[p] > 0 ? usual / parts[p] : usual * -parts[p];
            snprintf(group, sizeof *groups, "%s, %lld tokens", schedules[s].name,
                     (long long)(B * (a->o.model ? ctx : 128)));
            for (int k = 0; k < ROWS; k++) {
                char *w = words[r.n];
                snprintf(w, sizeof *words, "%s %s --batch %lld --code-lr %g", schedules[s].options, rows[k].options,
                         (long long)B, rows[k].rate * (a->o.model ? 2.5e-2 : 2e-3));
                lab_add(&r, group, rows[k].name, format, 0, w);
            }
        }
    lab_add(&r, "no tuning", "calibrated only", format, 0, NULL);
    return lab_one_by_one(a, &t, &r, "PV-Tuning or straight-through?",
                          "hollow: PV-Tuning; left of it is better; bars: ± one standard error, paired by seed");
}

/* ---- lab surrogates: what gradients see of rounding (2410.10849) ---- */

static int lab_surrogates(app *a)
{
    static const char *const rows[][3] = {
        {"surrogate", "none: ste", ""},
        {"surrogate", "identity, hard", "--surrogate identity --clamp-sharpness 0"},
        {"surrogate", "identity", "--surrogate identity"},
        {"surrogate", "sigmoid", "--surrogate sigmoid"},
        {"surrogate", "root", "--surrogate root"},
        {"surrogate", "pv", "--strategy pv"},
        {"temperature", "4", "--surrogate sigmoid"},
        {"temperature", "1", "--surrogate sigmoid --surrogate-temperature 1"},
        {"temperature", "2", "--surrogate sigmoid --surrogate-temperature 2"},
        {"temperature", "8", "--surrogate sigmoid --surrogate-temperature 8"},
        {"temperature", "16", "--surrogate sigmoid --surrogate-temperature 16"},
        {"temperature", "32", "--surrogate sigmoid --surrogate-temperature 32"},
        {"soft clamp", "4", "--surrogate sigmoid"},
        {"soft clamp", "hard", "--surrogate sigmoid --clamp-sharpness 0"},
        {"soft clamp", "1", "--surrogate sigmoid --clamp-sharpness 1"},
        {"soft clamp", "16", "--surrogate sigmoid --clamp-sharpness 16"}};
    enum { ROWS = (int)(sizeof rows / sizeof *rows) };
    static lab_results r;
    static char words[ROWS][120];
    lab_table t;
    const char *format = a->o.formats ? a->o.formats : a->o.model ? "int:2g64" : "int:2g32";
    pvt_format parsed;
    DO(lab_prepare(a, &t, &r));
    TRY(a, pvt_format_parse(a->ctx, format, &parsed));
    for (int i = 0; i < ROWS; i++) {
        snprintf(words[i], sizeof words[i], "--strategy ste %s", rows[i][2]);
        lab_add(&r, rows[i][0], rows[i][1], format, 0, words[i]);
    }
    lab_add(&r, "no tuning", "calibrated only", format, 0, NULL);
    return lab_one_by_one(a, &t, &r, "Surrogates of rounding, all with codes as straight-through has them",
                          "hollow: the group's first; right of it is worse; bars: ± one standard error, paired by seed");
}

/* ---- lab linearity: does Σ α_l·t_l² foretell the loss? (2411.17525) ----
   On the unquantized model: each format in one tensor at a time, the loss's rise against α_l·t_l²; then in all
   linears at once, against the sum. The loss is the mean nll of unseen text; α comes from other text. Formats
   are fit to the weights alone, as the theorem has it. */

enum { LINEAR_FORMATS = 7, LINEAR_TENSORS = 64 };
typedef struct linearity {
    allocation z;
    pvt_real *fitted[LINEAR_TENSORS]; /* a tensor in the format at work; NULL: none */
    pvt_real *as_it_was;
    double predicted[LINEAR_FORMATS][LINEAR_TENSORS],
        measured[LINEAR_FORMATS][LINEAR_TENSORS]; /* of single tensors */
    int n[LINEAR_FORMATS], whole_n[LINEAR_FORMATS]; /* of these; of all linears that a format suits */
    double whole_predicted[LINEAR_FORMATS][LAB_RUNS], whole_measured[LINEAR_FORMATS][LAB_RUNS],
        ratio[LINEAR_FORMATS][LAB_RUNS];
    double *gradient, whole_gradient[LINEAR_FORMATS][LAB_RUNS]; /* α the other way */
    double error[LINEAR_FORMATS]; /* Σ t² over linears and runs */
    int64_t runs;
} linearity;

static int linearity_nll(app *a, const demo *d, double *nll)
{
    double ppl;
    DO(demo_measure(a, d, a->models[DEMO_TUNED], &ppl));
    *nll = log(ppl);
    return 0;
}

/* Tensor i of models[DEMO_TUNED], a dense copy, as format j makes it; l->as_it_was has what it was. */
static int linearity_quantize(app *a, linearity *l, int64_t i, int j)
{
    pvt_tensor_info t = pvt_model_tensor(a->models[DEMO_TUNED], i);
    pvt_real *numbers = (pvt_real *)t.weight->array[0];
    pvt_fit_desc fit;
    pvt_weight w;
    memset(&fit, 0, sizeof fit);
    fit.stream = (uint64_t)i; /* as pvt_model_errors has it */
    memcpy(l->as_it_was, numbers, (size_t)t.n * sizeof *numbers);
    a->meter.muted++;
    pvt_result result = pvt_weight_fit(a->ctx, l->as_it_was, t.weight->O, t.weight->I, NULL, &l->z.formats[j],
                                       &fit, NULL, &w);
    a->meter.muted--;
    TRY(a, result);
    pvt_weight_dequantize(&w, numbers);
    pvt_weight_free(&w);
    return 0;
}

/* The linears in format j one at a time (each put back; at most LINEAR_TENSORS), or all together. */
static int linearity_pass(app *a, const demo *d, linearity *l, int j, double base, bool whole, int64_t run)
{
    double nll;
    int n = 0;
    for (int64_t i = 0; i < l->z.tensors && (whole || n < LINEAR_TENSORS); i++) {
        pvt_tensor_info t = pvt_model_tensor(a->models[DEMO_TUNED], i);
        int64_t at = i * l->z.n + j;
        if (!t.linear || l->z.bytes[at] < 0) continue;
        DO(linearity_quantize(a, l, i, j));
        if (whole) {
            l->whole_predicted[j][run] += l->z.loss[at], l->error[j] += l->z.errors[at];
            l->whole_gradient[j][run] += l->gradient[i] * l->z.errors[at];
        } else {
            DO(linearity_nll(a, d, &nll));
            l->predicted[j][n] = l->z.loss[at], l->measured[j][n] = nll - base;
            memcpy(t.weight->array[0], l->as_it_was, (size_t)t.n * sizeof *l->as_it_was);
        }
        n++;
        if (progress(a, "lab", (run * l->z.n + j) * 2 + whole, l->runs * l->z.n * 2, "formats", NAN))
            return fail(a, "stopped on request");
    }
    *(whole ? &l->whole_n[j] : &l->n[j]) = n;
    if (n > 0) return 0;
    return fail(a, "%s suits none of the linears of this model; leave it out of --formats", l->z.names[j]);
}

static int linearity_format(app *a, const demo *d, linearity *l, int j, int64_t run)
{
    double base, nll, sum = 0;
    int counted = 0;
    DO(linearity_nll(a, d, &base)); /* on the same text, in the copy's own numbers */
    DO(linearity_pass(a, d, l, j, base, false, run));
    for (int k = 0; k < l->n[j]; k++) /* (noise may find no curvature in a linear, and then has no say) */
        if (l->predicted[j][k] > 0) sum += l->measured[j][k] / l->predicted[j][k], counted++;
    if (counted == 0) return fail(a, "noise finds no curvature in any linear of this model");
    l->ratio[j][run] = sum / counted;
    DO(linearity_pass(a, d, l, j, base, true, run));
    DO(linearity_nll(a, d, &nll));
    l->whole_measured[j][run] = nll - base;
    for (int64_t i = 0; i < l->z.tensors; i++) { /* back to the original */
        pvt_tensor_info t = pvt_model_tensor(a->models[DEMO_TUNED], i);
        if (t.linear)
            pvt_weight_dequantize(pvt_model_tensor(a->models[DEMO_ORIGINAL], i).weight,
                                  (pvt_real *)t.weight->array[0]);
    }
    return 0;
}

static int linearity_seed(app *a, linearity *l, int64_t run)
{
    demo d;
    pvt_alpha_desc alpha;
    int64_t largest = 0;
    memset(&alpha, 0, sizeof alpha);
    DO(lab_subject(a, &d));
    d.unseen->n = smaller(d.unseen->n, 64 * d.config.ctx); /* many figures, each a difference on one text */
    alpha.method = PVT_ALPHA_NOISE, alpha.ctx = d.config.ctx, alpha.samples = a->o.quick ? 2 : 16;
    allocation_free(&l->z);
    DO(allocation_formats(
        a, &l->z,
        a->o.formats ? a->o.formats
        : a->o.model ? "int:2g64,int:3g64,int:4g64,had:int:2g64,had:int:3g64,had:int:4g64,aqlm:2x8g8"
                     : "int:2g32,int:3g32,int:4g32,had:int:2g32,had:int:3g32,had:int:4g32,aqlm:2x4g4"));
    DO(allocation_measure(a, &l->z, d.train, &alpha, true, false));
    l->gradient = (double *)(a->buffers[3] = calloc((size_t)l->z.tensors, sizeof *l->gradient));
    if (!l->gradient) return fail(a, "out of memory");
    alpha.method = PVT_ALPHA_GRADIENT, alpha.samples = a->o.quick ? 2 : 32;
    TRY(a, pvt_model_alpha(a->models[DEMO_ORIGINAL], d.train, &alpha, l->gradient));
    TRY(a, pvt_model_copy(a->ctx, a->models[DEMO_ORIGINAL], &a->models[DEMO_TUNED]));
    for (int64_t i = 0; i < l->z.tensors; i++) {
        pvt_tensor_info t = pvt_model_tensor(a->models[DEMO_ORIGINAL], i);
        if (t.weight && t.n > largest) largest = t.n;
    }
    l->as_it_was = (pvt_real *)(a->buffers[2] = calloc((size_t)largest, sizeof *l->as_it_was));
    if (!l->as_it_was) return fail(a, "out of memory");
    for (int j = 0; j < l->z.n; j++) DO(linearity_format(a, &d, l, j, run));
    return 0;
}

static void linearity_rows(lab_table *t, const linearity *l)
{
    int64_t runs = l->runs;
    for (int j = 0; j < l->z.n; j++) {
        lab_mean predicted = lab_mean_of(l->whole_predicted[j], runs),
                 measured = lab_mean_of(l->whole_measured[j], runs), ratio = lab_mean_of(l->ratio[j], runs);
        lab_row(t);
        lab_word(t, "format", -14, l->z.names[j]),
            lab_cell(t, "mean t^2", 9, 5, l->error[j] / (double)(l->whole_n[j] * runs));
        lab_cell(t, "predicted", 10, 5, predicted.mean), lab_cell(t, "se", 9, 5, predicted.error);
        lab_cell(t, "by gradient", 11, 5, lab_mean_of(l->whole_gradient[j], runs).mean);
        lab_cell(t, "measured", 10, 5, measured.mean), lab_cell(t, "measured se", 11, 5, measured.error);
        lab_cell(t, "ratio", 6, 2, measured.mean / predicted.mean);
        lab_cell(t, "of single ones", 14, 2, ratio.mean), lab_cell(t, "single se", 9, 2, ratio.error);
        lab_end(t);
    }
}

/* Left the single linears of the last seed, right the means of all together. */
static int linearity_chart(app *a, const linearity *l)
{
    static double whole[2][LINEAR_FORMATS], line[2];
    static plot p;
    plot_panel *single = &p.panels[0], *all = &p.panels[1];
    line[0] = 1e300, line[1] = 0;
    for (int j = 0; j < l->z.n; j++) {
        plot_line *dots = &single->lines[single->n_lines++];
        dots->name = l->z.names[j], dots->x = l->predicted[j], dots->y = l->measured[j], dots->n = l->n[j];
        dots->dots = dots->loose = true;
        whole[0][j] = lab_mean_of(l->whole_predicted[j], l->runs).mean;
        whole[1][j] = lab_mean_of(l->whole_measured[j], l->runs).mean;
        dots = &all->lines[all->n_lines++];
        dots->name = l->z.names[j], dots->x = &whole[0][j], dots->y = &whole[1][j], dots->n = 1,
        dots->dots = true;
        for (int k = 0; k < l->n[j]; k++) line[0] = fmin(line[0], l->predicted[j][k]);
        line[1] = fmax(line[1], whole[0][j]);
    }
    for (int k = 0; k < 2; k++) {
        plot_line *same = &p.panels[k].lines[p.panels[k].n_lines++];
        same->name = "as predicted", same->x = same->y = line, same->n = 2;
    }
    p.title = "The linearity theorem";
    p.subtitle = "the rise of unseen text's loss, predicted by Σ α·t² and measured, nats per token";
    p.x_label = "predicted", p.y_label = "measured", p.log_x = p.log_y = true, p.n_panels = 2;
    single->title = "one linear quantized", all->title = "all linears quantized";
    return write_chart(a, draw_lines, &p);
}

static int lab_linearity(app *a)
{
    static linearity l;
    lab_table t;
    uint64_t seed = a->o.seed;
    int status = 0;
    l.runs = a->o.runs ? a->o.runs : 3;
    if (l.runs > LAB_RUNS) return fail(a, "linearity takes at most %d --runs", LAB_RUNS);
    lab_begin(&t, a);
    for (int64_t run = 0; run < l.runs && status == 0; run++) {
        status = lab_seed(a, seed, run);
        if (status == 0) status = linearity_seed(a, &l, run);
    }
    if (status == 0) linearity_rows(&t, &l);
    if (status == 0) status = linearity_chart(a, &l);
    allocation_free(&l.z);
    DO(status);
    return lab_finish(
        &t,
        "Rises of the loss of unseen text in nats per token, all linears in one format: predicted by the\n"
        "sum of α·t², measured, and their ratio; the mean ratio of one linear at a time. α from noise,\n"
        "\"by gradient\": from gradients. se: standard errors over the seeds.\n"
        "Where the ratio leaves 1, the theorem's errors are no longer small.\n");
}

/* ---- lab allocation: perplexity over bits ----
   Uniform formats, embedding included, against pvtune allocate's choice among the same formats at the same size
   of file; all calibrated alike. */

enum { ALLOCATED_BUDGETS = 8 };

typedef struct allocations {
    allocation z;
    double uniform_bits[ALLOCATE_FORMATS], uniform[ALLOCATE_FORMATS][LAB_RUNS];
    double bits[ALLOCATED_BUDGETS], allocated[ALLOCATED_BUDGETS][LAB_RUNS], predicted[ALLOCATED_BUDGETS];
    double original[LAB_RUNS], wanted[ALLOCATED_BUDGETS];
    int budgets;
} allocations;

/* Perplexity and bits of a copy calibrated with desc. */
static int allocation_calibrate(app *a, const demo *d, pvt_quantize_desc *desc, double *bits, double *ppl)
{
    pvt_save_desc as;
    memset(&as, 0, sizeof as);
    desc->samples = smaller(d->samples, d->train->n / d->config.ctx), desc->ctx = d->config.ctx;
    desc->finetune_epochs = -1; /* its steps are too long for the small scales of many bits */
    TRY(a, pvt_model_copy(a->ctx, a->models[DEMO_ORIGINAL], &a->models[DEMO_CALIBRATED]));
    a->meter.muted++;
    pvt_result result = pvt_quantize(a->models[DEMO_CALIBRATED], d->train, desc);
    a->meter.muted--;
    TRY(a, result);
    TRY(a, pvt_model_round_f16(a->models[DEMO_CALIBRATED]));
    *bits = pvt_model_bits(a->models[DEMO_CALIBRATED], &as).all;
    DO(demo_measure(a, d, a->models[DEMO_CALIBRATED], ppl));
    pvt_model_free(a->models[DEMO_CALIBRATED]), a->models[DEMO_CALIBRATED] = NULL;
    return 0;
}

/* The sizes to allocate for: each uniform format's, and one between each two; in the tensors' arrays alone. */
static void allocation_budgets(allocations *s)
{
    double bits[ALLOCATE_FORMATS];
    int n = 0;
    for (int j = 0; j < s->z.n; j++) { /* insertion sort */
        int k = n++;
        for (; k > 0 && bits[k - 1] > s->uniform_bits[j]; k--) bits[k] = bits[k - 1];
        bits[k] = s->uniform_bits[j];
    }
    s->budgets = 0;
    for (int j = 0; j < n && s->budgets < ALLOCATED_BUDGETS; j++) {
        s->wanted[s->budgets++] = bits[j];
        if (j + 1 < n && s->budgets < ALLOCATED_BUDGETS)
            s->wanted[s->budgets++] = (bits[j] + bits[j + 1]) / 2;
    }
}

static int allocations_seed(app *a, allocations *s, int64_t run, int64_t runs)
{
    demo d;
    pvt_alpha_desc alpha;
    double ppl, bits;
    int64_t parts = runs * 2 * ALLOCATED_BUDGETS;
    memset(&alpha, 0, sizeof alpha);
    DO(lab_subject(a, &d));
    s->original[run] = log(d.ppl_original);
    alpha.ctx = d.config.ctx, alpha.samples = a->o.quick ? 2 : 32;
    allocation_free(&s->z);
    DO(allocation_formats(a, &s->z,
                          a->o.formats ? a->o.formats
                          : a->o.model ? "int:2g64,int:3g64,int:4g64,int:8g64"
                                       : "int:2g32,int:3g32,int:4g32,int:8g32"));
    DO(allocation_check(a, &s->z));
    DO(allocation_measure(a, &s->z, d.train, &alpha, true, true));
    for (int j = 0; j < s->z.n; j++) {
        pvt_quantize_desc desc;
        memset(&desc, 0, sizeof desc);
        desc.format = s->z.formats[j], desc.embedding = desc.head = true;
        DO(allocation_calibrate(a, &d, &desc, &s->uniform_bits[j], &ppl));
        s->uniform[j][run] = log(ppl);
        if (progress(a, "lab", run * 2 * ALLOCATED_BUDGETS + j, parts, "models", ppl))
            return fail(a, "stopped on request");
    }
    if (run == 0) allocation_budgets(s);
    for (int j = 0; j < s->budgets; j++) {
        pvt_quantize_desc desc;
        memset(&desc, 0, sizeof desc);
        DO(allocation_choose(a, &s->z, s->wanted[j], false));
        desc.plan = s->z.plan, desc.n_plan = s->z.matrices;
        DO(allocation_calibrate(a, &d, &desc, &bits, &ppl));
        s->allocated[j][run] = log(ppl), s->bits[j] += bits / (double)runs,
        s->predicted[j] += s->z.predicted / (double)runs;
        if (progress(a, "lab", run * 2 * ALLOCATED_BUDGETS + ALLOCATED_BUDGETS + j, parts, "models", ppl))
            return fail(a, "stopped on request");
    }
    return 0;
}

/* One row, and the point of its line in the chart: the rise above the original's nll, paired by seed. */
static void allocations_row(lab_table *t, const char *name, double bits, const double *nll,
                            const double *original, double predicted, int64_t runs, double *x, double *y,
                            double *error)
{
    double rise[LAB_RUNS], ppl[LAB_RUNS];
    for (int64_t k = 0; k < runs; k++) rise[k] = nll[k] - original[k], ppl[k] = exp(nll[k]);
    lab_mean m = lab_mean_of(rise, runs), p = lab_mean_of(ppl, runs);
    lab_row(t);
    lab_word(t, "choice", -14, name), lab_cell(t, "bits", 6, 3, bits),
        lab_cell(t, "perplexity", 10, 4, p.mean);
    lab_cell(t, "stderr", 7, 4, p.error), lab_cell(t, "nll - original", 14, 5, m.mean),
        lab_cell(t, "se", 8, 5, m.error);
    lab_cell(t, "predicted", 9, 5, predicted);
    lab_end(t);
    *x = bits, *y = m.mean, *error = m.error > 0 ? m.error : 0;
}

static int lab_allocation(app *a)
{
    static allocations s;
    static plot p;
    static double x[2][ALLOCATE_FORMATS], y[2][ALLOCATE_FORMATS], error[2][ALLOCATE_FORMATS];
    static const char *const names[] = {"uniform", "allocated"};
    lab_table t;
    uint64_t seed = a->o.seed;
    int64_t runs = a->o.runs ? a->o.runs : 3;
    int status = 0;
    if (runs > LAB_RUNS) return fail(a, "allocation takes at most %d --runs", LAB_RUNS);
    lab_begin(&t, a);
    for (int64_t run = 0; run < runs && status == 0; run++) {
        status = lab_seed(a, seed, run);
        if (status == 0) status = allocations_seed(a, &s, run, runs);
    }
    for (int j = 0; j < s.z.n && status == 0; j++)
        allocations_row(&t, s.z.names[j], s.uniform_bits[j], s.uniform[j], s.original, (double)NAN, runs,
                        &x[0][j], &y[0][j], &error[0][j]);
    for (int j = 0; j < s.budgets && status == 0; j++)
        allocations_row(&t, "allocated", s.bits[j], s.allocated[j], s.original, s.predicted[j], runs,
                        &x[1][j], &y[1][j], &error[1][j]);
    p.title = "Bits where they count",
    p.subtitle = "unseen text's loss above the original's, by size of the model; bars: ± one standard error";
    p.x_label = "bits per parameter, everything counted", p.y_label = "nll - the original's, nats",
    p.log_y = true;
    p.n_panels = 1, p.panels[0].title = "calibrated, not tuned", p.panels[0].n_lines = 2;
    for (int k = 0; k < 2; k++) {
        plot_line *line = &p.panels[0].lines[k];
        line->name = names[k], line->x = x[k], line->y = y[k], line->error = error[k];
        line->n = k ? s.budgets : s.z.n, line->dots = true;
    }
    if (status == 0) status = write_chart(a, draw_lines, &p);
    allocation_free(&s.z);
    DO(status);
    return lab_finish(&t, "bits: of all parameters, embedding included, without the file's header. nll - original: paired by\n"
                          "seed; se: its standard error. predicted: Σ α·t² of the choice, from fits without inputs.\n"
                          "No fine-tuning of blocks.\n");
}

/* ---- the verb ---- */

enum { LAB_MODEL = 1, LAB_TUNES = 2, LAB_CALIBRATES = 4, LAB_ALL = LAB_MODEL | LAB_TUNES | LAB_CALIBRATES };
static const struct lab_experiment {
    const char *name;
    int (*run)(app *);
    int takes, formats; /* so many at most */
} lab_experiments[] = {
    {"quadratic", lab_quadratic, 0, 0},
    {"smoothness", lab_smoothness, LAB_MODEL, 0},
    {"strategies", lab_strategies, LAB_ALL, STRATEGY_FORMATS},
    {"ablation", lab_ablation, LAB_ALL, 1},
    {"pv-or-ste", lab_pv_or_ste, LAB_ALL, 1},
    {"surrogates", lab_surrogates, LAB_ALL, 1},
    {"linearity", lab_linearity, LAB_MODEL, LINEAR_FORMATS},
    {"allocation", lab_allocation, LAB_MODEL | LAB_CALIBRATES, ALLOCATE_FORMATS}};

/* What is given and would not be heard is refused before a model is trained. */
static int lab_check(app *a, const struct lab_experiment *e)
{
    const options *o = &a->o;
    const struct { const char *name; bool given; int with; } all[] = {
        {"MODEL", o->model != NULL, LAB_MODEL},
        {"--text", o->text != NULL, LAB_MODEL},
        {"--train-steps", o->train_steps != 0, LAB_MODEL},
        {"--steps", o->steps != 0, LAB_TUNES},
        {"--samples", o->samples != 0, LAB_CALIBRATES}};
    char formats[800];
    int n = 0;
    for (int i = 0; i < (int)(sizeof all / sizeof *all); i++)
        if (all[i].given && !(e->takes & all[i].with)) return fail(a, "%s takes no %s", e->name, all[i].name), 2;
    if (!o->model && (o->data || o->eval || o->eval_windows || o->ctx))
        return fail(a, "--data, --eval, --eval-windows and --ctx go with a MODEL; what the small Llama learns is --text"), 2;
    if (o->model && (o->text || o->train_steps))
        return fail(a, "--text and --train-steps are for the small Llama, and go without a MODEL"), 2;
    if (o->formats && e->formats == 0) return fail(a, "%s takes no --formats", e->name), 2;
    snprintf(formats, sizeof formats, "%s", o->formats ? o->formats : "");
    for (char *format = strtok(formats, ","); format; format = strtok(NULL, ",")) {
        pvt_format parsed;
        if (n++ == e->formats)
            return fail(a, "%s takes at most %d of --formats", e->name, e->formats), 2;
        TRY(a, pvt_format_parse(a->ctx, format, &parsed));
    }
    if (o->formats && n == 0) return fail(a, "--formats names none"), 2;
    return 0;
}

static int verb_lab(app *a)
{
    char svg[64];
    for (int i = 0; i < (int)(sizeof lab_experiments / sizeof *lab_experiments); i++) {
        const struct lab_experiment *e = &lab_experiments[i];
        if (strcmp(e->name, a->o.lab) != 0) continue;
        DO(lab_check(a, e));
        snprintf(svg, sizeof svg, "lab-%s.svg", e->name);
        if (!a->o.svg) a->o.svg = svg;
        DO(check_writable(a, a->o.svg));
        return e->run(a);
    }
    return 2; /* options_parse takes no other name */
}

#endif
