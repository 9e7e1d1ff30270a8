/*  Data-parallel tuning with MPI: every process (rank) holds both models and tunes on its share of each
    step's sequences; the library adds the gradients through mpi_sum. Rank 0 tells, keeps a checkpoint, saves.
        make mpi
        mpirun -np 2 build/pvtune_mpi tune DIR --teacher MODEL --data TEXT -o DIR2 --batch 4
    All ranks read the same paths. The bits depend on the number of ranks, and on nothing else. */
#include "options.h"
#include "pvtune.h"
#include <mpi.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct options {
    const char *verb, *model, *teacher, *data, *output, *tokenizer, *strategy;
    int64_t steps, batch, micro_batch, ctx, eval_every, save_every, threads;
    uint64_t seed;
    double lr, code_lr;
    bool resume;
} options;

#define AT(field) offsetof(options, field)
#define TEXT(name, letter, field, required, value, preset, help) \
    {name, letter, OPTION_TEXT, AT(field), required, value, 0, 0, preset, help}
#define WHOLE(name, field, low, high, value, preset, help) \
    {name, NULL, OPTION_INT, AT(field), false, value, low, high, preset, help}
#define RATE(name, field, preset, help) \
    {name, NULL, OPTION_REAL, AT(field), false, "R", 1e-9, 10, preset, help}
static const option rows[] = {
    TEXT("tune", NULL, verb, true, "", NULL, "the only verb; options are some of pvtune's"),
    TEXT("DIR", NULL, model, true, "", NULL, "a quantized model"),
    TEXT("--teacher", NULL, teacher, true, "MODEL", NULL, "the original model"),
    TEXT("--data", NULL, data, true, "TEXT", NULL, "text to tune on"),
    TEXT("--output", "-o", output, true, "DIR", NULL, "for the tuned model, and for the checkpoint"),
    TEXT("--tokenizer", NULL, tokenizer, false, "FILE", "(DIR's)", "the tokenizer"),
    TEXT("--strategy", NULL, strategy, false, "NAME", "(pv)", "how codes change"),
    WHOLE("--steps", steps, 1, 1e9, "N", "(200)", "optimizer steps"),
    WHOLE("--batch", batch, 1, 1e6, "SEQS", "(2, or the ranks)", "sequences of a step, on all ranks"),
    WHOLE("--micro-batch", micro_batch, 1, 1e6, "SEQS", "(what fits)", "sequences of a forward"),
    WHOLE("--ctx", ctx, 2, 1e6, "T", "(512, or the model's context)", "tokens of a sequence"),
    RATE("--lr", lr, "(3e-4)", "learning rate of codebooks and scales"),
    RATE("--code-lr", code_lr, "(2.5e-2)", "of the buffer that codes are searched against"),
    WHOLE("--eval-every", eval_every, 1, 1e9, "N", "(a tenth of the steps)", "steps between evaluations"),
    WHOLE("--save-every", save_every, 1, 1e9, "N", "50", "steps between checkpoints"),
    {"--resume", NULL, OPTION_FLAG, AT(resume), false, "", 0, 0, NULL, "from the checkpoint in -o, if any"},
    WHOLE("--threads", threads, 1, 256, "N", "(cores / ranks on a machine)", "of each rank"),
    {"--seed", NULL, OPTION_SEED, AT(seed), false, "S", 0, 0, "0", "every random choice follows from it"},
};
static const option_set set = {rows, (int)(sizeof rows / sizeof *rows), NULL};

enum { PIECE = 1 << 14 }; /* values that a rank adds up at a time */

typedef struct app {
    options o;
    int rank, ranks;
    char *block, *pieces; /* [ranks, PIECE] of double */
    char checkpoint[4096];
    pvt_ctx *ctx;
    pvt_model *student, *teacher;
    pvt_corpus text;
    pvt_tuner *tuner;
} app;

/* One rank that cannot go on ends all. Where all fail alike rank 0 speaks first, and for the others. */
static void die(const app *a, const char *format, ...)
{
    va_list args;
    if (a->rank > 0) sleep(1);
    fprintf(stderr, "pvtune_mpi: rank %d: ", a->rank);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    MPI_Abort(MPI_COMM_WORLD, 1);
    exit(1);
}
#define TRY(call)                                                       \
    do {                                                                \
        if ((call) != PVT_OK) die(a, "%s", pvt_ctx_error(a->ctx));      \
    } while (0)

/* mpirun ends the other ranks with SIGTERM when one dies, and all on Ctrl-C. */
static void on_terminate(int number)
{
    static const char text[] = "pvtune_mpi: ended: a rank died, or the run was stopped; --resume goes on "
                               "from the last checkpoint\n";
    ssize_t written = write(2, text, sizeof text - 1);
    (void)written;
    _exit(128 + number);
}

/* pieces [ranks, n] → their sum in the first, rank after rank. */
static void add_pieces(app *a, int n, pvt_dtype dtype)
{
    double *x64 = (double *)(void *)a->pieces;
    float *x32 = (float *)(void *)a->pieces;
    for (int r = 1; r < a->ranks; r++)
        for (int i = 0; i < n; i++) {
            if (dtype == PVT_F64) x64[i] += x64[r * n + i];
            else x32[i] += x32[r * n + i];
        }
}

/* pvt_comm's sum. Not MPI_Allreduce: in which order that adds is its own affair, and may change from call to
   call. Here each rank gets one piece of every rank's values, adds it up, and gives the sum to all. */
static int mpi_sum(void *user, void *values, int64_t n, pvt_dtype dtype)
{
    app *a = (app *)user;
    MPI_Comm all = MPI_COMM_WORLD;
    MPI_Datatype type = dtype == PVT_F64 ? MPI_DOUBLE : MPI_FLOAT;
    int64_t size = dtype == PVT_F64 ? (int64_t)sizeof(double) : (int64_t)sizeof(float), count;
    char *at = (char *)values;
    for (int64_t most = (int64_t)a->ranks * PIECE; n > 0; n -= count, at += count * size) {
        count = n < most ? n : most;
        int piece = (int)((count + a->ranks - 1) / a->ranks);
        memcpy(a->block, at, (size_t)(count * size));
        memset(a->block + count * size, 0, (size_t)((a->ranks * (int64_t)piece - count) * size));
        if (MPI_Alltoall(a->block, piece, type, a->pieces, piece, type, all) != MPI_SUCCESS) return 1;
        add_pieces(a, piece, dtype);
        if (MPI_Allgather(a->pieces, piece, type, a->block, piece, type, all) != MPI_SUCCESS) return 1;
        memcpy(at, a->block, (size_t)(count * size));
    }
    return 0;
}

/* The cores of a machine are shared among the ranks on it. */
static int threads(const app *a)
{
    MPI_Comm machine;
    int here = 1;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (a->o.threads) return (int)a->o.threads;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, a->rank, MPI_INFO_NULL, &machine);
    MPI_Comm_size(machine, &here);
    MPI_Comm_free(&machine);
    return cores / here > 1 ? (int)(cores / here < 256 ? cores / here : 256) : 1;
}

static void load(app *a)
{
    pvt_ctx_desc desc;
    pvt_load_desc with;
    char error[400] = "";
    memset(&desc, 0, sizeof desc);
    memset(&with, 0, sizeof with);
    desc.n_threads = threads(a);
    desc.seed = a->o.seed;
    desc.error = error;
    desc.error_bytes = sizeof error;
    with.tokenizer = a->o.tokenizer;
    if (pvt_ctx_create(&desc, &a->ctx) != PVT_OK) die(a, "%s", error);
    TRY(pvt_model_load(a->ctx, a->o.model, &with, &a->student));
    TRY(pvt_model_load(a->ctx, a->o.teacher, NULL, &a->teacher));
    TRY(pvt_corpus_load(a->ctx, a->o.data, pvt_model_tokenizer(a->student), &a->text));
}

/* Is there a checkpoint to go on from? Rank 0 looks, and makes the directory. */
static int look(app *a)
{
    int found = access(a->checkpoint, F_OK) == 0;
    if (found && !a->o.resume) die(a, "%s is of an unfinished run: --resume, or another -o", a->checkpoint);
    if (!found && pvt_model_exists(a->ctx, a->o.output)) die(a, "%s holds a model: give another -o", a->o.output);
    if (mkdir(a->o.output, 0777) != 0 && errno != EEXIST) die(a, "%s: %s", a->o.output, strerror(errno));
    return found;
}

static void begin(app *a)
{
    const options *o = &a->o;
    pvt_tune_desc desc;
    int found = 0;
    memset(&desc, 0, sizeof desc);
    if (o->strategy) TRY(pvt_strategy_parse(a->ctx, o->strategy, &desc.pv.strategy));
    desc.pv.values.lr = o->lr, desc.pv.codes.lr = o->code_lr;
    desc.steps = o->steps, desc.batch = o->batch, desc.micro_batch = o->micro_batch, desc.ctx = o->ctx;
    desc.eval_every = o->eval_every;
    desc.comm.rank = a->rank, desc.comm.size = a->ranks, desc.comm.sum = mpi_sum, desc.comm.user = a;
    if (strlen(o->output) > 4000) die(a, "the path of -o is too long");
    snprintf(a->checkpoint, sizeof a->checkpoint, "%s/checkpoint.safetensors", o->output);
    if (a->rank == 0) found = look(a);
    if (MPI_Bcast(&found, 1, MPI_INT, 0, MPI_COMM_WORLD) != MPI_SUCCESS) die(a, "rank 0 cannot be reached");
    TRY(pvt_tuner_create(a->student, a->teacher, &a->text, &desc, &a->tuner));
    if (!found) return;
    TRY(pvt_tuner_resume(a->tuner, a->checkpoint));
    if (a->rank == 0)
        fprintf(stderr, "resumed after step %lld\n", (long long)pvt_tuner_get_info(a->tuner).step);
}

static void tell(const pvt_tuner_info *info, const pvt_tune_stats *s)
{
    fprintf(stderr, "step %lld of %lld: loss %.9g, %lld codes changed, %.2f s\n", (long long)s->step,
            (long long)info->steps, s->loss, (long long)s->groups_changed, s->seconds);
    if (info->last.step == s->step)
        fprintf(stderr, "held out: loss %.9g, perplexity %.6g (before tuning %.6g)\n", info->last.loss,
                info->last.ppl, info->start.ppl);
}

static void tune(app *a)
{
    pvt_tuner_info info = pvt_tuner_get_info(a->tuner);
    pvt_save_desc save;
    pvt_tune_eval saved;
    double began = MPI_Wtime(), seconds = 0;
    int64_t first = info.step;
    while (!info.done) {
        pvt_tune_stats stats;
        TRY(pvt_tuner_step(a->tuner, &stats));
        info = pvt_tuner_get_info(a->tuner);
        seconds += stats.seconds;
        if (a->rank == 0) tell(&info, &stats);
        if (a->rank == 0 && info.step % a->o.save_every == 0 && !info.done)
            TRY(pvt_tuner_save(a->tuner, a->checkpoint));
    }
    TRY(pvt_tuner_finish(a->tuner, &saved));
    if (a->rank > 0) return;
    memset(&save, 0, sizeof save);
    save.overwrite = a->o.resume; /* a run that was stopped between this line and the next */
    TRY(pvt_model_save(a->student, a->o.output, &save));
    unlink(a->checkpoint);
    printf("%d ranks of %d threads: %lld steps, %.2f s in steps, %.2f s in all\n", a->ranks,
           pvt_ctx_get_info(a->ctx).n_threads, (long long)(info.step - first), seconds, MPI_Wtime() - began);
    printf("written to %s: the state after step %lld, loss %.9g, perplexity %.6g\n", a->o.output,
           (long long)saved.step, saved.loss, saved.ppl);
}

int main(int argc, char **argv)
{
    static app a;
    bool help = false;
    char wrong[400] = "";
    MPI_Init(&argc, &argv);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &a.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &a.ranks);
    if (!options_parse(&set, 1, argc - 1, argv + 1, &a.o, &help, wrong, sizeof wrong) || help ||
        strcmp(a.o.verb, "tune") != 0) {
        if (a.rank == 0 && *wrong) fprintf(stderr, "pvtune_mpi: %s\n", wrong);
        if (a.rank == 0) options_usage(help ? stdout : stderr, "mpirun -np RANKS", "pvtune_mpi", set);
        if (a.rank == 0) options_help(help ? stdout : stderr, set);
        MPI_Finalize();
        return help ? 0 : 2;
    }
    if (a.rank == 0) signal(SIGTERM, on_terminate);
    a.block = (char *)malloc((size_t)a.ranks * PIECE * sizeof(double));
    a.pieces = (char *)malloc((size_t)a.ranks * PIECE * sizeof(double));
    if (!a.block || !a.pieces) die(&a, "no memory for %d ranks", a.ranks);
    load(&a);
    begin(&a);
    tune(&a);
    MPI_Finalize();
    pvt_tuner_free(a.tuner);
    pvt_corpus_free(&a.text);
    pvt_model_free(a.teacher);
    pvt_model_free(a.student);
    pvt_ctx_destroy(a.ctx);
    free(a.pieces);
    free(a.block);
    return 0;
}
