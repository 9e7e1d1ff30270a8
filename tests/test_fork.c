/*  What the manual promises about fork and signals: a child's context goes on with one thread, to the same bits,
    and can be destroyed; a new one there has threads again; signals between and during calls change nothing, and
    a flag that a handler sets stops the work by way of the progress callback. */
#include "../pvtune.h"
#include "test.h"

#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { O = 192, I = 160, N = 96 };
typedef struct product {
    pvt_real W[O * I], x[N * I], y[N * O], expected[N * O];
} product;

static pvt_ctx *context(int threads, pvt_progress_fn *progress)
{
    pvt_ctx *ctx = NULL;
    pvt_ctx_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = threads, desc.progress = progress;
    return pvt_ctx_create(&desc, &ctx) == PVT_OK ? ctx : NULL;
}

/* y = x · Wᵀ, large enough to be cut among threads. */
static int multiply(pvt_ctx *ctx, product *p)
{
    pvt_weight w;
    if (pvt_weight_dense(ctx, p->W, O, I, &w) != PVT_OK) return 0;
    memset(p->y, 0, sizeof p->y);
    pvt_weight_forward(p->y, p->x, &w, N, false);
    pvt_weight_free(&w);
    return 1;
}
static int same(pvt_ctx *ctx, product *p)
{
    return multiply(ctx, p) && memcmp(p->y, p->expected, sizeof p->y) == 0;
}

/* Of this process, where Linux tells; else 0. An emulator may have some of its own among them: only differences count. */
static int threads_now(void)
{
    char line[256];
    int n = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "Threads: %d", &n) == 1) break;
    if (f) fclose(f);
    return n;
}

/* What a child does with the parent's context, as a number of the first thing that went wrong. */
static int in_child(pvt_ctx *ctx, product *p, int depth)
{
    int before = threads_now();
    alarm(20); /* who waits for a thread that is not there is ended by this */
    if (!same(ctx, p)) return 1;
    if (threads_now() != before) return 2;
    if (depth == 0) {
        int status;
        pid_t child = fork();
        if (child == 0) _exit(in_child(ctx, p, 1));
        if (waitpid(child, &status, 0) != child || status != 0) return 3;
    }
    pvt_ctx *own = context(3, NULL);
    if (!own || !same(own, p)) return 4;
    if (before && threads_now() - before != 2) return 5;
    pvt_ctx_destroy(own);
    pvt_ctx_destroy(ctx);
    return 0;
}

static void test_child(product *p, int started)
{
    int status = -1, before = threads_now();
    pvt_ctx *ctx = context(4, NULL);
    CHECK(ctx != NULL);
    if (started) CHECK(same(ctx, p));
    if (started && before) CHECK(threads_now() - before == 3); /* else this tests nothing */
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) _exit(started ? in_child(ctx, p, 0) : same(ctx, p) ? 0 : 1);
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    if (status) printf("the child: %d\n", status);
    CHECK(status == 0);
    CHECK(same(ctx, p)); /* the parent's threads are as they were */
    pvt_ctx_destroy(ctx);
}

static volatile sig_atomic_t signals, stop;
static void on_signal(int number)
{
    signals++;
    if (number == SIGUSR1) stop = 1;
}
static int on_progress(void *user, const pvt_progress *progress)
{
    (void)user, (void)progress;
    if (!stop) raise(SIGUSR1);
    return stop;
}

static void test_signals(product *p)
{
    struct sigaction action;
    struct itimerval each = {{0, 500}, {0, 500}}, none = {{0, 0}, {0, 0}};
    int good = 1, rounds = 0;
    pvt_weight w;
    pvt_format format;
    pvt_ctx *ctx = context(4, on_progress);
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal; /* without SA_RESTART */
    sigaction(SIGALRM, &action, NULL), sigaction(SIGUSR1, &action, NULL);
    setitimer(ITIMER_REAL, &each, NULL);
    for (; rounds < 20 || (signals < 20 && rounds < 20000); rounds++) good = good && same(ctx, p);
    setitimer(ITIMER_REAL, &none, NULL);
    CHECK(signals >= 20); /* they came */
    CHECK(good);
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x4g4", &format));
    CHECK(pvt_weight_fit(ctx, p->W, O, I, NULL, &format, NULL, NULL, &w) == PVT_ERR_CANCELLED);
    CHECK(stop == 1);
    CHECK(same(ctx, p));
    pvt_ctx_destroy(ctx);
}

int main(void)
{
    static product p;
    for (int i = 0; i < O * I; i++) p.W[i] = (pvt_real)((i * 7919 + 13) % 1009) / 512 - 1;
    for (int i = 0; i < N * I; i++) p.x[i] = (pvt_real)((i * 104729 + 7) % 2003) / 1024 - 1;
    pvt_ctx *one = context(1, NULL);
    CHECK(multiply(one, &p));
    memcpy(p.expected, p.y, sizeof p.expected);
    pvt_ctx_destroy(one);
    test_child(&p, 0);
    test_child(&p, 1);
    test_signals(&p);
    return test_end();
}
