/*  Data-parallel tuning, without MPI: the ranks are threads, each with a context and models of its own, and
    their sum goes through a barrier. That all ranks hold the same bits, from run to run and after a resume;
    that their losses are those of one rank that does all; that an error, a cancellation and a failing sum end
    all, and that ranks which do not belong together are refused. */
#define _POSIX_C_SOURCE 200809L /* mkdtemp */
#include "../pvtune.h"
#include "test.h"
#include <pthread.h>

enum { CTX = 32, VOCAB = 300, TEXT = 41 * CTX, RANKS = 3, STEPS = 5 };

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
    pthread_mutex_lock(&h->lock);
    int64_t mine = h->sums;
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
    int failed = h->sums == mine;
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
    bool overflow;         /* before that a number becomes larger than fp16 holds */
} job;

typedef struct outcome { /* plain numbers, so that memcmp compares */
    int64_t result, steps, changed, cancelled;
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
    int64_t windows; /* that this rank evaluates on */
    double memory;   /* what was planned for its tuner, over what it took */
} worker;

static int report(void *user, const pvt_progress *progress)
{
    worker *w = (worker *)user;
    if (strcmp(progress->phase, "evaluate") == 0) w->windows = progress->total;
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
static pvt_result work(worker *w, pvt_tuner *tuner, pvt_model *student)
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
            if (w->seat.rank == 0 && j->save && stats.step == j->save_at)
                result = pvt_tuner_save(tuner, j->save);
        }
    }
    if (j->overflow) some_values(student)[3] = 1e6f;
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
    int64_t plan = 0, before = 0;
    pvt_result result = pvt_corpus_from_ids(ctx, shared_corpus.ids, shared_corpus.n, &corpus);
    if (result == PVT_OK) result = pvt_model_copy(ctx, shared_teacher, &teacher);
    if (result == PVT_OK) result = pvt_model_copy(ctx, shared_student, &student);
    if (result == PVT_OK) {
        corpus.ids[7] ^= (int32_t)j->odd_id;
        if (j->odd_student) some_values(student)[3] += 1;
        plan = pvt_tuner_bytes(student, teacher, &corpus, &j->desc);
        before = pvt_ctx_get_info(ctx).bytes_now;
        pvt_ctx_reset_peak(ctx);
        result = pvt_tuner_create(student, teacher, &corpus, &j->desc, &tuner);
    }
    if (result == PVT_OK) {
        if (j->poison) some_values(student)[3] = NAN;
        result = work(w, tuner, student);
        w->outcome.fingerprint = fingerprint(student);
        w->memory = (double)(plan - before) / (double)(pvt_ctx_get_info(ctx).bytes_peak - before);
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
    j.desc.pv.cap = 0.1, j.desc.pv.codes.lr = 0.3;
    j.desc.eval_windows = 4; /* of three ranks one has two */
    return j;
}

/* ---- what it must show ---- */

static bool quick(void)
{
    const char *wish = getenv("PVTUNE_QUICK");
    return wish && *wish;
}

static double apart(double a, double b) { return fabs(a - b) / fabs(b); }

/* The same sequences, losses and figures, for any number of ranks. Before the first update only sums of
   doubles are made in another order. After it the gradients' sums differ in the last bit of pvt_real, and so do
   the values: a mean of a thousand losses shows about that bit, 6e-8 as seen in float and 1.4e-15 in double.
   Other sequences make a million times as much. */
static void check_same_loss(int size, int64_t micro_batch, bool teacher)
{
    const double rounding = sizeof(pvt_real) == 8 ? 1e-13 : 1e-6;
    job j = plain_job();
    double most = 0;
    j.desc.micro_batch = micro_batch;
    j.desc.cross_entropy = !teacher;
    outcome one = run(1, &j);
    outcome many = run(size, &j);
    outcome again = run(size, &j);
    CHECK(memcmp(&many, &again, sizeof many) == 0);
    CHECK(one.steps == STEPS && many.steps == STEPS && one.changed > 0 && many.changed > 0);
    CHECK(many.fingerprint != fingerprint(shared_student));
    CHECK(many.best.step == one.best.step && many.best.step > 0);
    CHECK_NEAR(apart(many.loss[0], one.loss[0]), 0, 1e-13);
    CHECK_NEAR(apart(many.start.loss, one.start.loss), 0, 1e-13);
    CHECK_NEAR(apart(many.start.ppl, one.start.ppl), 0, 1e-13);
    for (int s = 1; s < STEPS; s++) CHECK_NEAR(apart(many.loss[s], one.loss[s]), 0, rounding);
    CHECK_NEAR(apart(many.best.loss, one.best.loss), 0, rounding);
    /* rounded to fp16 in between, some value to the other side */
    CHECK_NEAR(apart(many.saved.ppl, one.saved.ppl), 0, sizeof(pvt_real) == 8 ? 1e-9 : 1e-5);
    j.seed++;
    again = run(1, &j);
    for (int s = 0; s < STEPS; s++) most = fmax(most, apart(again.loss[s], one.loss[s]));
    CHECK(most > 1e-2);
}

/* One rank that says so is one that says nothing; windows are shared out, and may be fewer than ranks;
   patience ends all at once. */
static void check_plans(void)
{
    job j = plain_job();
    company c;
    outcome one = run(1, &j);
    company_open(&c, 1, &j);
    c.workers[0].job.desc.comm.size = 1;
    company_run(&c);
    CHECK(ended(&c, PVT_OK) && memcmp(&c.workers[0].outcome, &one, sizeof one) == 0);

    company_open(&c, RANKS, &j);
    company_run(&c);
    CHECK(ended(&c, PVT_OK));
    CHECK(c.workers[0].windows == 2 && c.workers[1].windows == 1 && c.workers[2].windows == 1);
    for (int r = 0; r < RANKS; r++) CHECK_NEAR(c.workers[r].memory, 1, 0.05);

    job k = j;
    k.desc.eval_windows = 1;
    one = run(1, &k);
    outcome many = run(3, &k);
    CHECK_NEAR(apart(many.start.loss, one.start.loss), 0, 1e-13);
    CHECK(many.best.step == one.best.step);

    k = j;
    k.desc.pv.values.lr = 0.5;
    k.desc.eval_every = k.desc.patience = 1;
    one = run(1, &k);
    many = run(2, &k);
    CHECK(one.steps == 1 && many.steps == 1 && many.best.step == 0);

    k = j;
    k.desc.batch = 0; /* one sequence a rank, two at least */
    CHECK_NEAR(apart(run(2, &k).loss[0], run(1, &k).loss[0]), 0, 1e-13);
    CHECK(run(3, &k).steps == STEPS);
}

static job small_steps(void)
{
    job j = plain_job();
    j.desc.micro_batch = 1; /* of two that each of three ranks has */
    return j;
}

/* One rank's callback asks to stop, at any of its reports: the call is cancelled on all ranks, and after it
   the tuning goes on to the same bits. */
static void check_cancelled(int rank)
{
    job j = small_steps();
    outcome plain = run(RANKS, &j);
    company c;
    int64_t at = 1, step = quick() ? 4 : 1;
    company_open(&c, RANKS, &j);
    c.workers[rank].job.stop = at; /* that is the tuner's creation */
    company_run(&c);
    CHECK(ended(&c, PVT_ERR_CANCELLED));
    do {
        at += step;
        company_open(&c, RANKS, &j);
        c.workers[rank].job.stop = at;
        company_run(&c);
        CHECK(ended(&c, PVT_OK) && same(&c, &c));
        CHECK(c.workers[0].outcome.cancelled == (c.workers[rank].reports >= at));
        c.workers[0].outcome.cancelled = 0;
        CHECK(memcmp(&c.workers[0].outcome, &plain, sizeof plain) == 0);
    } while (c.workers[rank].reports >= at);
    CHECK(at > 15);
}

/* Whichever sum fails, on whichever rank: all end with a sentence that says so, and the checkpoint that rank
   0 made before leads all to the same bits. */
static void check_failing_sums(const char *path)
{
    job j = small_steps();
    company c;
    int64_t apart_by = quick() ? 19 : 4;
    j.save = path;
    j.save_at = 3;
    company_open(&c, RANKS, &j);
    company_run(&c);
    CHECK(ended(&c, PVT_OK) && same(&c, &c));
    outcome plain = c.workers[0].outcome;
    int64_t sums = c.hub.sums;
    CHECK(sums > 80);
    for (int64_t at = 0; at < sums; at += apart_by) {
        int rank = (int)(at / apart_by % RANKS);
        company_open(&c, RANKS, &j);
        c.hub.fail_at = at;
        c.hub.fail_rank = rank;
        company_run(&c);
        CHECK(ended(&c, PVT_ERR_IO) && c.hub.sums == at);
        for (int r = 0; r < RANKS; r++)
            CHECK(strstr(c.workers[r].sentence, "resume from the last checkpoint") != NULL);
    }
    j.save = NULL;
    j.resume = path;
    outcome resumed = run(RANKS, &j);
    CHECK(resumed.loss[2] == 0 && resumed.changed < plain.changed);
    CHECK(memcmp(resumed.loss + 3, plain.loss + 3, (STEPS - 3) * sizeof *plain.loss) == 0);
    CHECK(resumed.fingerprint == plain.fingerprint);
    CHECK(memcmp(&resumed.saved, &plain.saved, sizeof plain.saved) == 0);
    CHECK(memcmp(&resumed.best, &plain.best, sizeof plain.best) == 0);
}

/* All take the same checkpoint, or none does. */
static void check_refused_resumes(const char *path, const char *other, const char *missing)
{
    job j = small_steps();
    company c;
    j.save = other;
    j.save_at = 2;
    run(RANKS, &j);
    j.save = NULL;
    j.resume = path;
    company_open(&c, RANKS, &j);
    c.workers[1].job.resume = missing;
    company_run(&c);
    CHECK(ended(&c, PVT_ERR_IO) && strstr(c.workers[1].sentence, missing));
    CHECK(strstr(c.workers[0].sentence, "rank 1 of 3 stopped") != NULL);

    company_open(&c, RANKS, &j);
    c.workers[2].job.resume = other;
    company_run(&c);
    CHECK(ended(&c, PVT_ERR_MISMATCH) && strstr(c.workers[0].sentence, "rank 2 of 3 differs"));

    j.desc.batch = 6, j.desc.micro_batch = 1;
    company_open(&c, 2, &j); /* the sums would be others */
    company_run(&c);
    CHECK(ended(&c, PVT_ERR_MISMATCH) && strstr(c.workers[0].sentence, "ranks 3") != NULL);
    company_open(&c, 1, &j);
    company_run(&c);
    CHECK(ended(&c, PVT_ERR_MISMATCH) && strstr(c.workers[0].sentence, "ranks 3") != NULL);
}

/* What cannot be a company is refused before anything is exchanged. */
static void check_refused_alone(void)
{
    hub h;
    seat s;
    job j = plain_job();
    hub_open(&h, 2);
    s.hub = &h;
    s.rank = 0;
    for (int i = 0; i < 5; i++) {
        pvt_tuner *tuner;
        pvt_tune_desc d = j.desc;
        d.comm.size = i == 0 ? -1 : i == 1 ? 1 << 20 : 2;
        d.comm.rank = i == 2 ? 2 : i == 3 ? -1 : 0;
        d.comm.sum = i == 4 ? NULL : sum;
        d.comm.user = &s;
        CHECK(pvt_tuner_create(shared_student, shared_teacher, &shared_corpus, &d, &tuner) ==
              PVT_ERR_ARGUMENT);
        CHECK(strstr(pvt_ctx_error(shared), "comm: ") != NULL && tuner == NULL);
        CHECK(pvt_tuner_bytes(shared_student, shared_teacher, &shared_corpus, &d) == INT64_MAX);
    }
    hub_close(&h);
}

/* Ranks that do not belong together are told apart before the first step, all with the same result, and each
   says what is amiss. */
typedef struct refusal {
    const char *what;
    pvt_result result;
} refusal;

static const refusal refusals[] = {
    {"3 ranks do not divide the batch of 5", PVT_ERR_ARGUMENT},
    {"micro_batch 4 does not divide batch 2, a rank's share", PVT_ERR_ARGUMENT},
    {"was counted", PVT_ERR_ARGUMENT},
    {"steps, batch, loss, schedule", PVT_ERR_MISMATCH},
    {"strategy, V step or optimizers", PVT_ERR_MISMATCH},
    {"strategy, V step or optimizers", PVT_ERR_MISMATCH},
    {"seed", PVT_ERR_MISMATCH},
    {"in: text", PVT_ERR_MISMATCH},
    {"student", PVT_ERR_MISMATCH},
    {"rank 1 of 3 stopped, and so do all", PVT_ERR_MISMATCH},
    {"strategy, V step or optimizers", PVT_ERR_MISMATCH},
    {"strategy, V step or optimizers", PVT_ERR_MISMATCH},
};

static void check_refused(void)
{
    for (int i = 0; i < (int)(sizeof refusals / sizeof *refusals); i++) {
        company c;
        job j = plain_job();
        if (i == 0) j.desc.batch = 5;
        if (i == 1) j.desc.micro_batch = 4;
        company_open(&c, RANKS, &j);
        job *odd = &c.workers[1].job;
        if (i == 2) odd->desc.comm.rank = 0;
        if (i == 3) odd->desc.patience = 7;
        if (i == 4) odd->desc.pv.codes.lr = 1e-3;
        if (i == 5) odd->desc.pv.trust = 0.5;
        if (i == 6) odd->seed++;
        if (i == 7) odd->odd_id = 1;
        if (i == 8) odd->odd_student = true;
        if (i == 9) odd->odd_id = 1 << 20; /* beyond the vocabulary: an error of this rank alone */
        if (i == 10) odd->desc.pv.rounding = 0.2;
        if (i == 11) odd->desc.pv.train = PVT_TRAIN_ALL & ~PVT_TRAIN_SCALES;
        company_run(&c);
        CHECK(ended(&c, refusals[i].result));
        for (int r = 0; r < RANKS; r++)
            CHECK(strstr(c.workers[r].sentence, i == 9 && r == 1 ? "holds token" : refusals[i].what) != NULL);
    }
}

/* A NaN on one rank, in an evaluation or in a gradient, is everybody's. */
static void check_not_finite(void)
{
    for (int i = 0; i < 2; i++) {
        company c;
        job j = plain_job();
        if (i) j.desc.eval_every = -1;
        company_open(&c, RANKS, &j);
        c.workers[1].job.poison = true;
        company_run(&c);
        CHECK(ended(&c, PVT_ERR_NUMERIC));
        CHECK(strstr(c.workers[0].sentence, i ? "gradient" : "held-out") != NULL);
    }
}

/* What the end rounds to fp16 and cannot hold, on one rank, is everybody's: none waits for the others, none goes on. */
static void check_overflow(void)
{
    company c;
    job j = plain_job();
    j.desc.eval_every = -1; /* no earlier state that would be taken instead */
    company_open(&c, RANKS, &j);
    c.workers[1].job.overflow = true;
    company_run(&c);
    CHECK(ended(&c, PVT_ERR_NUMERIC));
}

static pvt_model *make(bool codes)
{
    pvt_model_config c;
    pvt_quantize_desc q;
    pvt_model *model = NULL;
    memset(&c, 0, sizeof c);
    memset(&q, 0, sizeof q);
    c.layers = 1, c.dim = 64, c.heads = 4, c.kv_heads = 2, c.ff = 96, c.vocab = VOCAB, c.ctx = CTX;
    CHECK_OK(shared, pvt_model_create(shared, &c, &model));
    q.samples = 4, q.fit.epochs = 1, q.fit.kmeans_steps = 2, q.finetune_epochs = -1;
    CHECK_OK(shared, pvt_format_parse(shared, "aqlm:2x4g4", &q.format));
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) { /* sharper than at random: something to learn */
        pvt_weight *w = pvt_model_tensor(model, i).weight;
        for (int64_t k = 0; w && k < w->O * w->I; k++) ((pvt_real *)w->array[0])[k] *= 6;
    }
    if (codes) CHECK_OK(shared, pvt_quantize(model, &shared_corpus, &q));
    if (codes) CHECK_OK(shared, pvt_model_round_f16(model));
    return model;
}

int main(void)
{
    char dir[300], path[400], other[400], missing[400];
    int32_t ids[TEXT];
    for (int64_t i = 0; i < TEXT; i++) ids[i] = (int32_t)((i * i + i / 7 + i % 13 * 31) % (VOCAB - 1));
    CHECK(pvt_ctx_create(NULL, &shared) == PVT_OK);
    CHECK_OK(shared, pvt_corpus_from_ids(shared, ids, TEXT, &shared_corpus));
    shared_teacher = make(false);
    shared_student = make(true);
    CHECK(test_scratch(dir, sizeof dir));
    snprintf(path, sizeof path, "%s/checkpoint.safetensors", dir);
    snprintf(other, sizeof other, "%s/other.safetensors", dir);
    snprintf(missing, sizeof missing, "%s/missing.safetensors", dir);
    check_same_loss(2, 0, true);
    check_same_loss(3, 1, true);
    check_same_loss(2, 1, false);
    if (sizeof(pvt_real) == sizeof(float)) { /* the rest is no matter of precision */
        check_plans();
        check_cancelled(0);
        check_cancelled(1);
        check_failing_sums(path);
        check_refused_resumes(path, other, missing);
        check_refused_alone();
        check_refused();
        check_not_finite();
    check_overflow();
    }
    test_remove(dir);
    pvt_model_free(shared_student);
    pvt_model_free(shared_teacher);
    pvt_corpus_free(&shared_corpus);
    pvt_ctx_destroy(shared);
    return test_end();
}
