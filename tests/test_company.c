/*  Data-parallel tuning, without MPI: the ranks are threads, each with a context and models of its own, and their
    sum goes through a barrier. That all ranks hold the same bits, from run to run and after a resume; that their
    losses are those of one rank that does all; that an error, a cancellation and a failing sum end all, and that
    ranks which do not belong together are refused. */
#define _POSIX_C_SOURCE 200809L /* mkdtemp */
#include "../pvtune.h"
#include "test.h"
#include <pthread.h>

enum { CTX = 32, VOCAB = 300, TEXT = 41 * CTX, RANKS = 3, STEPS = 6 };

/* ---- the company: where the ranks meet ---- */

typedef struct hub {
    pthread_mutex_t lock;
    pthread_cond_t all_here;
    int size, here;
    void *values[RANKS];
    int64_t n;
    pvt_dtype dtype;
    int64_t sums;      /* completed */
    int64_t fail_at;   /* that sum fails, on the rank … */
    int fail_rank;     /* … that finds so; −1: none does */
    bool broken, odd;  /* odd: the ranks called with different n or dtype */
} hub;

typedef struct seat { /* a rank's place in the hub */
    hub *hub;
    int rank;
} seat;

#define ADD(type)                                                                                            \
    for (int64_t i = 0; i < h->n; i++) {                                                                     \
        type total = ((type *)h->values[0])[i];                                                              \
        for (int r = 1; r < h->size; r++) total += ((type *)h->values[r])[i];                                \
        for (int r = 0; r < h->size; r++) ((type *)h->values[r])[i] = total;                                 \
    }

static void add(hub *h)
{
    if (h->dtype == PVT_F64) {
        ADD(double)
    } else {
        ADD(float)
    }
}

/* The last to come adds for all, in the order of the ranks. */
static int sum(void *user, void *values, int64_t n, pvt_dtype dtype)
{
    seat *s = (seat *)user;
    hub *h = s->hub;
    int64_t mine;
    int failed;
    pthread_mutex_lock(&h->lock);
    mine = h->sums;
    if (h->fail_rank == s->rank && h->fail_at == mine) {
        h->broken = true;
        pthread_cond_broadcast(&h->all_here);
    }
    if (h->here > 0 && (h->n != n || h->dtype != dtype)) h->odd = h->broken = true;
    if (!h->broken) {
        h->n = n;
        h->dtype = dtype;
        h->values[s->rank] = values;
        if (++h->here == h->size) {
            add(h);
            h->here = 0;
            h->sums++;
            pthread_cond_broadcast(&h->all_here);
        }
    }
    while (!h->broken && h->sums == mine) pthread_cond_wait(&h->all_here, &h->lock);
    failed = h->sums == mine;
    pthread_mutex_unlock(&h->lock);
    return failed;
}

static void hub_open(hub *h, int size)
{
    memset(h, 0, sizeof *h);
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->all_here, NULL);
    h->size = size;
    h->fail_rank = -1;
}

static void hub_close(hub *h)
{
    CHECK(!h->odd);
    pthread_cond_destroy(&h->all_here);
    pthread_mutex_destroy(&h->lock);
}

/* ---- one rank's work ---- */

static pvt_ctx *shared; /* of the two models and the text that all ranks copy */
static pvt_model *shared_teacher, *shared_student;
static pvt_corpus shared_corpus;

typedef struct job {
    pvt_tune_desc desc;
    int64_t stop;          /* the progress report that asks to stop, counted from 1; 0: none */
    int64_t steps;         /* to make, at most */
    const char *resume;    /* a checkpoint to begin with, or NULL */
    const char *save;      /* where rank 0 saves … */
    int64_t save_at;       /* … after this step */
    uint64_t seed;
    int64_t odd_id;        /* 1: a token of the text is another */
    bool odd_student;      /* a number of the student is another */
    bool poison;           /* after creation a NaN is put into the student */
    bool finish;
} job;

typedef struct outcome { /* plain numbers, so that memcmp compares */
    int64_t result, steps, reports, changed, cancelled;
    uint64_t fingerprint;
    double loss[STEPS];
    pvt_tune_eval start, best, saved;
} outcome;

typedef struct worker {
    pthread_t thread;
    seat seat;
    job job;
    outcome outcome;
    char sentence[400];
    int64_t reports;
    int64_t cancelled;
} worker;

static int report(void *user, const pvt_progress *progress)
{
    worker *w = (worker *)user;
    (void)progress;
    return ++w->reports == w->job.stop;
}

/* Every parameter, dequantized, in one hash. */
static uint64_t fingerprint(const pvt_model *model)
{
    uint64_t hash = 14695981039346656037u;
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        pvt_real *W = (pvt_real *)malloc((size_t)t.n * sizeof *W);
        const uint8_t *bytes = (const uint8_t *)(t.weight ? W : t.values);
        if (t.weight) pvt_weight_dequantize(t.weight, W);
        for (int64_t k = 0; k < t.n * (int64_t)sizeof *W; k++) hash = (hash ^ bytes[k]) * 1099511628211u;
        free(W);
    }
    return hash;
}

static pvt_real *some_values(const pvt_model *model)
{
    for (int64_t i = 0; i < pvt_model_tensors(model); i++)
        if (pvt_model_tensor(model, i).values) return pvt_model_tensor(model, i).values;
    return NULL;
}

static pvt_result finish(worker *w, pvt_tuner *tuner)
{
    pvt_result result = pvt_tuner_finish(tuner, &w->outcome.saved);
    while (result == PVT_ERR_CANCELLED) {
        w->outcome.cancelled++;
        result = pvt_tuner_finish(tuner, &w->outcome.saved);
    }
    return result;
}

/* Steps to the end; a cancelled one is made again. */
static pvt_result work(worker *w, pvt_tuner *tuner)
{
    const job *j = &w->job;
    pvt_result result = j->resume ? pvt_tuner_resume(tuner, j->resume) : PVT_OK;
    while (result == PVT_OK && !pvt_tuner_get_info(tuner).done && pvt_tuner_get_info(tuner).step < j->steps) {
        pvt_tune_stats stats;
        int64_t before = pvt_tuner_get_info(tuner).step;
        result = pvt_tuner_step(tuner, &stats);
        if (result == PVT_OK || result == PVT_ERR_CANCELLED) {
            w->outcome.cancelled += result == PVT_ERR_CANCELLED;
            result = PVT_OK;
            if (pvt_tuner_get_info(tuner).step == before) continue;
            w->outcome.loss[before] = stats.loss;
            w->outcome.changed += stats.groups_changed;
            if (w->seat.rank == 0 && j->save && stats.step == j->save_at) result = pvt_tuner_save(tuner, j->save);
        }
    }
    if (result == PVT_OK && j->finish) result = finish(w, tuner);
    w->outcome.start = pvt_tuner_get_info(tuner).start;
    w->outcome.best = pvt_tuner_get_info(tuner).best;
    w->outcome.steps = pvt_tuner_get_info(tuner).step;
    return result;
}

static pvt_result rank_run(worker *w, pvt_ctx *ctx)
{
    const job *j = &w->job;
    pvt_model *teacher = NULL, *student = NULL;
    pvt_corpus corpus;
    pvt_tuner *tuner = NULL;
    pvt_result result = pvt_corpus_from_ids(ctx, shared_corpus.ids, shared_corpus.n, &corpus);
    if (result == PVT_OK) result = pvt_model_copy(ctx, shared_teacher, &teacher);
    if (result == PVT_OK) result = pvt_model_copy(ctx, shared_student, &student);
    if (result == PVT_OK) {
        corpus.ids[7] ^= (int32_t)j->odd_id;
        if (j->odd_student) some_values(student)[3] += 1;
        result = pvt_tuner_create(ctx, student, teacher, &corpus, &j->desc, &tuner);
    }
    if (result == PVT_OK) {
        if (j->poison) some_values(student)[3] = NAN;
        result = work(w, tuner);
        w->outcome.fingerprint = fingerprint(student);
    }
    pvt_tuner_free(tuner);
    pvt_model_free(student);
    pvt_model_free(teacher);
    pvt_corpus_free(&corpus);
    return result;
}

static void *rank_main(void *arg)
{
    worker *w = (worker *)arg;
    pvt_ctx_desc desc;
    pvt_ctx *ctx;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 1 + w->seat.rank % 2; /* the bits do not depend on it */
    desc.seed = w->job.seed;
    desc.progress = report;
    desc.progress_user = w;
    if (pvt_ctx_create(&desc, &ctx) != PVT_OK) return NULL;
    w->outcome.result = rank_run(w, ctx);
    snprintf(w->sentence, sizeof w->sentence, "%s", pvt_ctx_error(ctx));
    pvt_ctx_destroy(ctx);
    return NULL;
}

/* ---- all ranks at once ---- */

typedef struct company {
    hub hub;
    worker workers[RANKS];
} company;

static void company_open(company *c, int size, const job *all)
{
    memset(c, 0, sizeof *c);
    hub_open(&c->hub, size);
    for (int r = 0; r < size; r++) {
        worker *w = &c->workers[r];
        w->job = *all;
        w->seat.hub = &c->hub;
        w->seat.rank = r;
        w->outcome.result = -1;
        if (size == 1) continue;
        w->job.desc.comm.rank = r;
        w->job.desc.comm.size = size;
        w->job.desc.comm.sum = sum;
        w->job.desc.comm.user = &w->seat;
    }
}

static void company_run(company *c)
{
    for (int r = 0; r < c->hub.size; r++)
        CHECK(pthread_create(&c->workers[r].thread, NULL, rank_main, &c->workers[r]) == 0);
    for (int r = 0; r < c->hub.size; r++) CHECK(pthread_join(c->workers[r].thread, NULL) == 0);
    hub_close(&c->hub);
}

/* Every rank ended with this result. */
static bool ended(const company *c, pvt_result result)
{
    bool all = true;
    for (int r = 0; r < c->hub.size; r++) {
        if (c->workers[r].outcome.result == (int64_t)result) continue;
        all = false;
        printf("rank %d returned %d: %s\n", r, (int)c->workers[r].outcome.result, c->workers[r].sentence);
    }
    return all;
}

/* All ranks of both tell and hold the same. */
static bool same(const company *c, const company *d)
{
    bool all = true;
    for (int r = 0; r < c->hub.size; r++)
        all = all && memcmp(&c->workers[r].outcome, &d->workers[0].outcome, sizeof(outcome)) == 0;
    return all;
}

static outcome run(int size, const job *all)
{
    company c;
    company_open(&c, size, all);
    company_run(&c);
    CHECK(ended(&c, PVT_OK));
    CHECK(same(&c, &c));
    return c.workers[0].outcome;
}

static job plain_job(void)
{
    job j;
    memset(&j, 0, sizeof j);
    j.seed = 5;
    j.finish = true;
    j.steps = STEPS;
    j.desc.steps = STEPS;
    j.desc.batch = 6;
    j.desc.ctx = CTX;
    j.desc.eval_every = 2;
    j.desc.eval_windows = 4; /* of three ranks one has two */
    return j;
}

/* ---- what it must show ---- */

static double apart(double a, double b) { return fabs(a - b) / fabs(b); }

/* The same sequences, losses and figures, for any number of ranks. Before the first update only doubles are added
   in another order. After it the sums of gradients differ in the last bits of pvt_real, a code here and there flips,
   and the losses drift apart by what that is worth; other sequences give losses that are a thousand times farther off. */
static void check_same_loss(int size, int64_t micro_batch, bool teacher)
{
    job j = plain_job();
    outcome one, many, again;
    uint64_t before = fingerprint(shared_student);
    j.desc.micro_batch = micro_batch;
    j.desc.cross_entropy = !teacher;
    one = run(1, &j);
    many = run(size, &j);
    again = run(size, &j);
    CHECK(memcmp(&many, &again, sizeof many) == 0);
    CHECK(one.steps == STEPS && many.steps == STEPS && one.changed > 0 && many.changed > 0);
    CHECK(many.fingerprint != before && many.best.step == one.best.step && many.best.step > 0);
    CHECK_NEAR(apart(many.loss[0], one.loss[0]), 0, 1e-13);
    CHECK_NEAR(apart(many.start.loss, one.start.loss), 0, 1e-13);
    CHECK_NEAR(apart(many.start.ppl, one.start.ppl), 0, 1e-13);
    for (int s = 1; s < STEPS; s++) CHECK_NEAR(apart(many.loss[s], one.loss[s]), 0, 1e-5);
    CHECK_NEAR(apart(many.saved.loss, one.saved.loss), 0, 1e-5);
    if (getenv("SHOW"))
        for (int s = 0; s < STEPS; s++) printf("%d %.17g %.3g\n", s, one.loss[s], apart(many.loss[s], one.loss[s]));
    j.seed++; /* the measure: other sequences */
    again = run(1, &j);
    if (getenv("SHOW"))
        for (int s = 0; s < STEPS; s++) printf("other %d %.17g %.3g\n", s, one.loss[s], apart(again.loss[s], one.loss[s]));
}

static pvt_model *make(bool codes)
{
    pvt_model_config c;
    pvt_quantize_desc q;
    pvt_model *model = NULL;
    memset(&c, 0, sizeof c);
    memset(&q, 0, sizeof q);
    c.layers = 2, c.dim = 64, c.heads = 4, c.kv_heads = 2, c.ff = 96, c.vocab = VOCAB, c.ctx = CTX;
    CHECK_OK(shared, pvt_model_create(shared, &c, &model));
    q.samples = 4, q.fit.epochs = 1, q.fit.kmeans_steps = 2, q.finetune_epochs = -1;
    CHECK_OK(shared, pvt_format_parse(shared, "aqlm:2x4g4", &q.format));
    if (codes) CHECK_OK(shared, pvt_quantize(shared, model, &shared_corpus, &q));
    if (codes) CHECK_OK(shared, pvt_model_round_f16(model));
    return model;
}

int main(void)
{
    int32_t ids[TEXT];
    for (int64_t i = 0; i < TEXT; i++) ids[i] = (int32_t)((i * i + i / 7 + i % 13 * 31) % (VOCAB - 1));
    CHECK(pvt_ctx_create(NULL, &shared) == PVT_OK);
    CHECK_OK(shared, pvt_corpus_from_ids(shared, ids, TEXT, &shared_corpus));
    shared_teacher = make(false);
    shared_student = make(true);
    check_same_loss(2, 0, true);
    check_same_loss(3, 1, true);
    check_same_loss(2, 1, false);
    pvt_model_free(shared_student);
    pvt_model_free(shared_teacher);
    pvt_corpus_free(&shared_corpus);
    pvt_ctx_destroy(shared);
    return test_end();
}
