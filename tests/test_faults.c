/*  What files survive. Every call to the system that a save makes fails once, is interrupted, writes
    short, or is the last thing that the process does; after each the directory holds the old model or the
    new one, weights and tokenizer together, or what the next load makes one of them. Further: two writers
    at once, permissions, orphans, manifests from an enemy, pipes and devices in the place of files. */
#define PVTUNE_IMPLEMENTATION
#define PVTI_STREAM_BYTES ((int64_t)1 << 20) /* what has no size is given up early here */
#include "../pvtune.h"
#include "test.h"

#include <sys/wait.h>

/* ---- a system that fails on purpose ---- */

#define CALLS(X) X(OPEN) X(CLOSE) X(READ) X(WRITE) X(FSYNC) X(FSTAT) X(STAT) X(FCHMOD) X(FCHOWN) X(FLOCK) \
    X(DUP) X(RENAME) X(UNLINK) X(MKDIR) X(RMDIR) X(LIST) X(MAP)
typedef enum call {
#define X(name) name,
    CALLS(X)
#undef X
    ANY
} call;
static const char *const call_names[] = {
#define X(name) #name,
    CALLS(X)
#undef X
    "ANY"};

enum { EACH = -2 };
enum { ENDED = 42 }; /* exit status of a process that was ended on purpose */
typedef enum how { FAILS, INTERRUPTED, ENDS_BEFORE, ENDS_AFTER, WRITES_SHORT } how;
static struct {
    call kind;
    how how;
    int code;       /* errno of FAILS */
    int64_t at;     /* which call of that kind, from 0; −1: none, EACH: all */
    int64_t n;      /* calls of that kind so far */
    int64_t fired;
    bool wide;      /* a file was created that others may read */
    bool narrow;    /* one was that they may not */
} fault;

static bool hits(call kind, how h)
{
    return (fault.kind == kind || fault.kind == ANY) && fault.how == h &&
           (fault.n == fault.at || fault.at == EACH);
}

/* True: the call is to fail, with errno set. */
static bool before_call(call kind)
{
    if (hits(kind, ENDS_BEFORE)) _exit(ENDED);
    if (!hits(kind, FAILS) && !hits(kind, INTERRUPTED)) return false;
    fault.fired++;
    errno = fault.how == INTERRUPTED ? EINTR : fault.code;
    return true;
}
static void after_call(call kind)
{
    int code = errno;
    if (hits(kind, ENDS_AFTER)) _exit(ENDED);
    if (fault.kind == kind || fault.kind == ANY) fault.n++;
    errno = code;
}
#define CALL(kind, type, failed, call)              \
    do {                                            \
        type result_ = failed;                      \
        if (!before_call(kind)) result_ = call;     \
        after_call(kind);                           \
        return result_;                             \
    } while (0)

static int bad_open(void *user, const char *path, pvt_file_open purpose)
{
    fault.wide |= purpose == PVT_OPEN_NEW, fault.narrow |= purpose == PVT_OPEN_NEW_PRIVATE;
    CALL(OPEN, int, -1, pvti_own_open(user, path, purpose));
}
static int bad_close(void *user, int fd) /* the descriptor is gone, whatever close says */
{
    bool fails = before_call(CLOSE);
    int code = errno, status = pvti_own_close(user, fd);
    if (fails) errno = code;
    after_call(CLOSE);
    return fails ? -1 : status;
}
static int64_t bad_read(void *user, int fd, void *to, int64_t bytes)
{
    CALL(READ, int64_t, -1, pvti_own_read(user, fd, to, bytes));
}
static int64_t bad_write(void *user, int fd, const void *from, int64_t bytes)
{
    if (fault.how == WRITES_SHORT && fault.kind == WRITE) {
        fault.fired += bytes > 5;
        bytes = PVTI_MIN(bytes, 5);
    }
    CALL(WRITE, int64_t, -1, pvti_own_write(user, fd, from, bytes));
}
/* No test pulls the plug: no time for devices. */
static int bad_sync(void *user, int fd) { CALL(FSYNC, int, -1, ((void)user, (void)fd, 0)); }
static int bad_info(void *user, const char *path, int fd, pvt_file_info *info)
{
    CALL(path ? STAT : FSTAT, int, -1, pvti_own_info(user, path, fd, info));
}
static int bad_permissions(void *user, int fd, uint32_t permissions)
{
    CALL(FCHMOD, int, -1, pvti_own_set_permissions(user, fd, permissions));
}
static int bad_owner(void *user, int fd, int64_t owner, int64_t group)
{
    CALL(FCHOWN, int, -1, pvti_own_set_owner(user, fd, owner, group));
}
static int bad_lock(void *user, int fd) { CALL(FLOCK, int, -1, pvti_own_lock(user, fd)); }
static int bad_share(void *user, int fd) { CALL(DUP, int, -1, pvti_own_share(user, fd)); }
static int bad_rename(void *user, const char *from, const char *to)
{
    CALL(RENAME, int, -1, pvti_own_rename(user, from, to));
}
static int bad_remove(void *user, const char *path) { CALL(UNLINK, int, -1, pvti_own_remove(user, path)); }
static int bad_make(void *user, const char *path) { CALL(MKDIR, int, -1, pvti_own_make_directory(user, path)); }
static int bad_unmake(void *user, const char *path) { CALL(RMDIR, int, -1, pvti_own_remove_directory(user, path)); }
static int bad_list(void *user, const char *dir, void (*each)(void *arg, const char *name), void *arg)
{
    CALL(LIST, int, -1, pvti_own_list(user, dir, each, arg));
}
static const void *bad_map(void *user, int fd, int64_t bytes)
{
    CALL(MAP, const void *, NULL, pvti_own_map(user, fd, bytes));
}
static const pvt_files bad_files = {
    NULL, bad_open, bad_close, bad_read, bad_info, bad_write, bad_rename, bad_remove, bad_make, bad_unmake, bad_sync,
    bad_lock, bad_share, bad_list, bad_map, pvti_own_unmap, bad_owner, bad_permissions,
};

static void set_fault(call kind, how h, int64_t at)
{
    memset(&fault, 0, sizeof fault);
    fault.kind = kind, fault.how = h, fault.at = at, fault.code = EIO;
}

/* A context whose files are reached through these functions. */
static pvt_ctx *make_ctx_of(const pvt_files *files)
{
    pvt_ctx_desc desc;
    pvt_ctx *made = NULL;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 1, desc.files = *files;
    CHECK(pvt_ctx_create(&desc, &made) == PVT_OK);
    return made;
}
static pvt_ctx *make_ctx(void) { return make_ctx_of(&bad_files); }

/* Without the library, and without a fault. */
static bool exists(const char *path) { return access(path, F_OK) == 0; }
static bool is_directory(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* ---- models to tell apart ---- */

static char scratch[256];
static pvt_ctx *ctx;            /* of the models in memory: all saves go through it */
static pvt_model *old_model, *new_model;
static double old_figure, new_figure;
static char old_list[2048], new_list[2048]; /* files of a directory that holds the one or the other */

static const char *in(const char *name)
{
    static char path[4][600];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[0], "%s/%s", scratch, name);
    return path[turn];
}

static PVTI_PRINTF(1, 2) bool sh(const char *format, ...)
{
    char command[3000], all[3400];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    snprintf(all, sizeof all, "cd '%s' && { %s ; } >/dev/null 2>&1", scratch, command);
    return system(all) == 0;
}

/* A small model whose values follow from the seed. */
static pvt_model *make_model(uint64_t seed)
{
    pvt_model_config c;
    pvt_model *model = NULL;
    memset(&c, 0, sizeof c);
    c.layers = 1, c.dim = 8, c.heads = 2, c.kv_heads = 1, c.ff = 8, c.vocab = 256, c.ctx = 32, c.tied = true;
    ctx->seed = seed;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    return model;
}

static void sort_names(char names[][64], int n)
{
    char moved[64];
    for (int i = 1; i < n; i++)
        for (int j = i; j > 0 && strcmp(names[j], names[j - 1]) < 0; j--)
            memcpy(moved, names[j], 64), memcpy(names[j], names[j - 1], 64), memcpy(names[j - 1], moved, 64);
}

typedef struct listing {
    char names[40][64];
    int n;
} listing;
static void listing_add(void *user, const char *name)
{
    listing *l = (listing *)user;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || l->n >= 40) return;
    snprintf(l->names[l->n++], 64, "%s", name);
}

/* Sorted names, hidden ones too. */
static void list_files(const char *dir, char out[2048])
{
    listing l;
    size_t n = 0;
    l.n = 0, out[0] = 0;
    if (pvti_own_list(NULL, dir, listing_add, &l) != 0) return;
    sort_names(l.names, l.n);
    for (int i = 0; i < l.n; i++) n += (size_t)snprintf(out + n, 2048 - n, "%s ", l.names[i]);
}

/* The perplexity that the directory's model has on a text, as its own tokenizer cuts it: one figure that
   differs when either is another's. Loaded in a fresh context; NAN when that fails, `why` says why. */
static double figure(const char *dir, char why[1024])
{
    static const char text[] = "abababbaab abba baab bbbbaaaab aabb";
    pvt_ctx *fresh = make_ctx();
    pvt_model *model = NULL;
    pvt_corpus corpus;
    pvt_ppl_desc desc;
    pvt_ppl ppl;
    int32_t *ids = NULL;
    int64_t n = 0;
    double value = NAN;
    memset(&corpus, 0, sizeof corpus), memset(&desc, 0, sizeof desc);
    desc.ctx = 16;
    set_fault(ANY, FAILS, -1);
    if (pvt_model_load(fresh, dir, NULL, &model) == PVT_OK && pvt_model_tokenizer(model) &&
        pvt_tokenizer_encode(pvt_model_tokenizer(model), text, -1, 0, &ids, &n) == PVT_OK &&
        pvt_corpus_from_ids(fresh, ids, n, &corpus) == PVT_OK &&
        pvt_perplexity(model, &corpus, &desc, &ppl) == PVT_OK)
        value = ppl.ppl;
    if (why) snprintf(why, 1024, "%s", pvt_ctx_error(fresh));
    pvt_ids_free(fresh, ids);
    pvt_corpus_free(&corpus), pvt_model_free(model);
    pvt_ctx_destroy(fresh);
    return value;
}

static pvt_result save(const pvt_model *model, const char *dir)
{
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    return pvt_model_save(model, dir, &desc);
}

/* "old": sharded, with a tokenizer that swaps a and b, and with files that the new model has not.
   "plain": the same in one file. Both have something of the user's. */
static void make_old(void)
{
    pvt_tokenizer *bytes = NULL;
    char list[8192] = "";
    old_model = make_model(1);
    CHECK_OK(ctx, pvt_tokenizer_create_bytes(ctx, &bytes));
    pvt_model_set_tokenizer(old_model, bytes);
    CHECK_OK(ctx, save(old_model, in("plain")));
    CHECK(sh("cd plain && sed -e 's/\"a\": 97/\"a\": 98/' -e 's/\"b\": 98/\"b\": 97/' tokenizer.json >t && "
             "! cmp t tokenizer.json && mv t tokenizer.json && echo '{\"eos_token_id\": 3}' >generation_config.json"));
    CHECK(sh("cd plain && echo '{}' >added_tokens.json && echo '{}' >special_tokens_map.json && "
             "echo x >chat_template.jinja && echo '{}' >vocab.json && echo x >merges.txt && echo x >tokenizer.model"));
    CHECK(sh("cd plain && echo 'the old card' >>README.md && echo mine >notes.txt && mkdir mine && echo y >mine/config.json && "
             "echo x >model-00009-of-00009.safetensors"));
    CHECK(sh("cp -r plain old && mv old/model.safetensors old/model-00001-of-00001.safetensors"));
    for (int64_t i = 0; i < pvt_model_tensors(old_model); i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s\"%s\": \"model-00001-of-00001.safetensors\"",
                 i ? ", " : "", pvt_model_tensor(old_model, i).name);
    FILE *f = fopen(in("old/model.safetensors.index.json"), "w");
    CHECK(f && fprintf(f, "{\"weight_map\": {%s}}", list) > 0 && fclose(f) == 0);
    old_figure = figure(in("old"), NULL);
    CHECK(old_figure > 1 && figure(in("plain"), NULL) == old_figure);
}

static void make_new(void)
{
    pvt_tokenizer *bytes = NULL;
    new_model = make_model(2);
    CHECK_OK(ctx, pvt_tokenizer_create_bytes(ctx, &bytes));
    pvt_model_set_tokenizer(new_model, bytes);
    CHECK_OK(ctx, save(new_model, in("new")));
    new_figure = figure(in("new"), NULL);
    CHECK(new_figure > 1 && new_figure != old_figure);
    /* neither half alone passes for the whole */
    CHECK(sh("cp -r new mixed && cp plain/tokenizer.json mixed"));
    CHECK(figure(in("mixed"), NULL) != new_figure && figure(in("mixed"), NULL) != old_figure);
    CHECK(sh("cp -r plain mixed2 && cp new/tokenizer.json mixed2"));
    CHECK(figure(in("mixed2"), NULL) != new_figure && figure(in("mixed2"), NULL) != old_figure);
}

#define BARE "README.md config.json model.safetensors tokenizer.json tokenizer_config.json " /* a new model by itself */

/* What a good overwriting leaves: nothing of the old model's, everything of the user's. */
static void test_stale(void)
{
    char list[2048];
    list_files(in("new"), list);
    CHECK(strcmp(list, BARE) == 0);
    CHECK(sh("cp -r old stale"));
    list_files(in("old"), old_list);
    CHECK_OK(ctx, save(new_model, in("stale")));
    list_files(in("stale"), new_list);
    CHECK(strcmp(new_list, "README.md config.json mine model-00009-of-00009.safetensors model.safetensors notes.txt "
                           "tokenizer.json tokenizer_config.json ") == 0);
    CHECK(figure(in("stale"), NULL) == new_figure);
    CHECK(sh("cmp stale/model.safetensors new/model.safetensors && test \"$(cat stale/notes.txt)\" = mine && "
             "test -e stale/mine/config.json"));
    CHECK_OK(ctx, pvt_tokenizer_save(pvt_model_tokenizer(new_model), in("plain")));
    CHECK(sh("cmp plain/tokenizer.json new/tokenizer.json && test -e plain/config.json && "
             "! test -e plain/added_tokens.json && cmp plain/model.safetensors old/model-00001-of-00001.safetensors"));
    CHECK(sh("rm -r plain mixed mixed2"));
}

/* ---- faults in the saving of a directory ---- */

static struct {
    int64_t calls, faults, ends;
} count;

static void remove_tree(const char *path)
{
    listing l;
    l.n = 0;
    if (pvti_own_list(NULL, path, listing_add, &l) != 0) return;
    for (int i = 0; i < l.n; i++) {
        char below[900];
        snprintf(below, sizeof below, "%s/%s", path, l.names[i]);
        if (unlink(below) != 0) remove_tree(below);
    }
    rmdir(path);
}

static bool copy_file(const char *from, const char *to)
{
    static char bytes[1 << 16];
    struct stat st;
    FILE *f = fopen(from, "rb"), *g = fopen(to, "wb");
    size_t n = f ? fread(bytes, 1, sizeof bytes, f) : 0;
    bool good = f && g && n < sizeof bytes && fwrite(bytes, 1, n, g) == n;
    if (f) fclose(f);
    if (g) fclose(g);
    return good && stat(from, &st) == 0 && chmod(to, st.st_mode & 0777) == 0;
}

static bool copy_tree(const char *from, const char *to)
{
    listing l;
    l.n = 0;
    bool good = mkdir(to, 0755) == 0 && pvti_own_list(NULL, from, listing_add, &l) == 0;
    for (int i = 0; i < l.n && good; i++) {
        char below[900], copy[900];
        snprintf(below, sizeof below, "%s/%s", from, l.names[i]);
        snprintf(copy, sizeof copy, "%s/%s", to, l.names[i]);
        good = is_directory(below) ? copy_tree(below, copy) : copy_file(below, copy);
    }
    return good;
}

/* dir becomes a copy of `from` (NULL: absent), by hand, for it happens a thousand times. */
static void fresh_directory(const char *from)
{
    remove_tree(in("dir"));
    CHECK(!from || copy_tree(in(from), in("dir")));
}

/* Software that knows nothing of an exchange sees the old model, the new one or none: never a mixture. */
static bool stranger_is_safe(const char *from)
{
    if (!exists(in("dir/config.json"))) return true;
    remove_tree(in("view"));
    if (!copy_tree(in("dir"), in("view"))) return false;
    remove_tree(in("view/" PVTI_EXCHANGE));
    double value = figure(in("view"), NULL);
    return value == new_figure || (from && value == old_figure);
}

static char *slurp(const char *path, int64_t *n)
{
    FILE *f = fopen(path, "rb");
    char *text = (char *)calloc(1, 1 << 20);
    *n = f ? (int64_t)fread(text, 1, (1 << 20) - 1, f) : -1;
    if (f) fclose(f);
    return text;
}

static bool same_files(const char *a, const char *b)
{
    int64_t n, m;
    char *x = slurp(a, &n), *y = slurp(b, &m);
    bool same = n >= 0 && n == m && memcmp(x, y, (size_t)n) == 0;
    free(x), free(y);
    return same;
}

/* After a save of the new model that returned `result`, −1: the process ended. `from`: what was there before. */
static bool directory_holds(const char *from, int result, const char *sentence)
{
    char why[1024], again[1024], list[2048];
    call kind = fault.kind; /* what this is about, for the printing */
    how h = fault.how;
    int64_t at = fault.at;
    bool safe = stranger_is_safe(from);
    double value = figure(in("dir"), why);
    bool is_new = value == new_figure, is_old = from && value == old_figure, nothing = !from && isnan(value);
    bool good = safe && (is_new || is_old || nothing);
    if (result == PVT_OK) good = good && is_new;
    if (nothing) good = good && !exists(in("dir/config.json"));
    if (is_new == is_old && from) good = false;
    if (result > 0) good = good && sentence[0];
    if (result > 0 && strstr(sentence, "unchanged")) good = good && !is_new; /* a sentence keeps its word */
    if (result > 0 && strstr(sentence, "puts them in place")) good = good && is_new;
    if (!nothing) good = good && same_files(in("dir/README.md"), in(is_new ? "new/README.md" : "old/README.md"));
    good = good && !exists(in("dir/" PVTI_EXCHANGE "/manifest"));
    value = figure(in("dir"), again);
    good = good && (nothing ? isnan(value) : is_new ? value == new_figure : value == old_figure);
    if (is_old) { /* it is whole, with everything that lay there (and perhaps an orphan) */
        list_files(in("dir"), list);
        for (const char *name = old_list; good && *name; name += strcspn(name, " ") + 1) {
            char word[80];
            snprintf(word, sizeof word, "%.*s ", (int)strcspn(name, " "), name);
            good = strstr(list, word) != NULL;
        }
    }
    /* the next save leaves nothing of all this behind */
    good = good && save(new_model, in("dir")) == PVT_OK && figure(in("dir"), NULL) == new_figure;
    list_files(in("dir"), list);
    good = good && strcmp(list, from ? new_list : BARE) == 0;
    if (!good)
        printf("    %s call %lld, how %d: result %d \"%s\"; figure %g (old %g, new %g) \"%s\"; files %s\n",
               call_names[kind], (long long)at, (int)h, result, sentence, value, old_figure, new_figure, why, list);
    return good;
}

/* Whose failure is always one of the save. Files that were only read may fail to close, directories may be there
   already, sweeping may fail, a file system may have no locks. */
static bool told(call kind)
{
    return kind == WRITE || kind == FSYNC || kind == RENAME || kind == UNLINK || kind == RMDIR;
}
static int64_t closes_told;

/* One save with the fault set; false when the fault did not occur, for there are no more such calls. */
static bool fault_once(const char *from, call kind, how h, int64_t at, int64_t *tally)
{
    char sentence[1024];
    fresh_directory(from);
    set_fault(kind, h, at);
    snprintf(ctx->error, sizeof ctx->error, "%s", "");
    pvt_result result = save(new_model, in("dir"));
    bool fired = fault.fired > 0;
    snprintf(sentence, sizeof sentence, "%s", pvt_ctx_error(ctx));
    fault.at = -1;
    if (!fired) {
        CHECK(result == PVT_OK);
        return false;
    }
    if (h == INTERRUPTED) CHECK(result == PVT_OK);
    if (h == FAILS && told(kind)) CHECK(result != PVT_OK);
    closes_told += h == FAILS && kind == CLOSE && result != PVT_OK;
    fault.at = at;
    CHECK(directory_holds(from, (int)result, sentence));
    ++*tally;
    return true;
}

/* The process ends before or after its n-th call of whatever kind. */
static bool end_once(const char *from, how h, int64_t at)
{
    int status = 0;
    fresh_directory(from);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        set_fault(ANY, h, at);
        _exit(save(new_model, in("dir")) == PVT_OK ? 0 : 1);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status));
    if (WEXITSTATUS(status) != ENDED) {
        CHECK(WEXITSTATUS(status) == 0);
        return false;
    }
    set_fault(ANY, h, at);
    CHECK(directory_holds(from, -1, ""));
    count.ends++;
    return true;
}

static void test_directory(const char *from)
{
    static const call must[] = {OPEN, CLOSE, WRITE, FSYNC, RENAME, MKDIR, FLOCK, DUP, STAT};
    static const call interruptible[] = {OPEN, CLOSE, WRITE, FSYNC, FLOCK};
    int64_t fired[ANY + 1], at;
    int kind, i;
    memset(fired, 0, sizeof fired);
    fresh_directory(from);
    set_fault(ANY, FAILS, -1);
    CHECK_OK(ctx, save(new_model, in("dir")));
    int64_t n = fault.n;
    count.calls += n;
    closes_told = 0;
    for (kind = 0; kind < ANY; kind++)
        for (at = 0; fault_once(from, (call)kind, FAILS, at, &fired[kind]);) at++;
    CHECK(closes_told >= 10); /* of five files and five times a directory */
    for (i = 0; i < PVTI_COUNT(must); i++) CHECK(fired[must[i]] > 0);
    if (from) CHECK(fired[UNLINK] > 5);
    for (kind = 0, at = 0; kind < ANY; kind++) at += fired[kind];
    CHECK(at >= n - 3); /* every call that was made failed once (those behind a failure are fewer) */
    count.faults += at;
    for (int h = ENDS_BEFORE; h <= ENDS_AFTER; h++) {
        for (at = 0; end_once(from, (how)h, at);) at++;
        CHECK(at == n);
    }
    for (i = 0, fired[ANY] = 0; i < PVTI_COUNT(interruptible); i++)
        for (at = 0; fault_once(from, interruptible[i], INTERRUPTED, at, &fired[ANY]);) at++;
    CHECK(fired[ANY] > 30);
    count.faults += fired[ANY];
    fresh_directory(from);
    set_fault(WRITE, WRITES_SHORT, -1);
    CHECK_OK(ctx, save(new_model, in("dir")));
    CHECK(fault.fired > 1000);
    CHECK(directory_holds(from, PVT_OK, ""));
}

/* File systems that cannot sync, or know no locks, or where a directory may not be listed, will do. */
static void test_lesser_systems(void)
{
    static const struct { call kind; int code; } lacks[] = {{FSYNC, EINVAL}, {FSYNC, ENOSYS}, {FLOCK, ENOLCK},
                                                            {FLOCK, ENOSYS}, {LIST, EACCES}, {FCHOWN, EPERM}};
    for (int64_t i = 0; i < PVTI_COUNT(lacks); i++) {
        fresh_directory("old");
        if (lacks[i].kind == FCHOWN && geteuid() == 0) CHECK(chown(in("dir/config.json"), 12345, 12345) == 0);
        set_fault(lacks[i].kind, FAILS, EACH);
        fault.code = lacks[i].code;
        CHECK_OK(ctx, save(new_model, in("dir")));
        CHECK(fault.fired > 0 || (lacks[i].kind == FCHOWN && geteuid() != 0));
        CHECK(directory_holds("old", PVT_OK, ""));
    }
}

/* What a save left is completed by a load, and a fault in that leaves it for the next. */
static void test_recovery(void)
{
    char why[1024];
    int64_t fired = 0, ended = 0;
    int status;
    pvt_ctx *other = make_ctx();
    pvt_model *model;
    set_fault(ANY, FAILS, -1);
    fresh_directory("old");
    set_fault(RENAME, FAILS, 2); /* the first puts the folder in place */
    CHECK(save(new_model, in("dir")) == PVT_ERR_IO && fault.fired == 1);
    CHECK(strstr(pvt_ctx_error(ctx), "the next load or save puts them in place") != NULL);
    CHECK(sh("test -e dir/.pvtune-save/manifest && ! test -e dir/config.json && rm -rf half && cp -rp dir half"));
    for (int kind = 0; kind < ANY; kind++)
        for (int64_t at = 0;; at++) {
            fresh_directory("half");
            set_fault((call)kind, FAILS, at);
            pvt_result result = pvt_model_load(other, in("dir"), NULL, &model);
            pvt_model_free(model);
            bool fail = fault.fired > 0;
            if (!fail) CHECK(result == PVT_OK);
            CHECK(figure(in("dir"), why) == new_figure);
            if (!fail) break;
            fired++;
        }
    for (int64_t at = 0;; at++) {
        fresh_directory("half");
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            set_fault(ANY, ENDS_AFTER, at);
            _exit(pvt_model_load(other, in("dir"), NULL, &model) == PVT_OK ? 0 : 1);
        }
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        CHECK(figure(in("dir"), why) == new_figure);
        if (!(WIFEXITED(status) && WEXITSTATUS(status) == ENDED)) break;
        ended++;
    }
    CHECK(fired > 40 && ended > 40);
    count.faults += fired, count.ends += ended;
    /* a directory that may not be written */
    fresh_directory("half");
    set_fault(OPEN, FAILS, 0);
    fault.code = EROFS;
    CHECK(pvt_model_load(other, in("dir"), NULL, &model) == PVT_ERR_IO && fault.fired == 1);
    CHECK(strstr(pvt_ctx_error(other), "cannot be completed now") && strstr(pvt_ctx_error(other), strerror(EROFS)));
    CHECK(figure(in("dir"), why) == new_figure);
    /* the tokenizer alone is also a load */
    fresh_directory("half");
    {
        pvt_tokenizer *t = NULL;
        set_fault(ANY, FAILS, -1);
        CHECK_OK(other, pvt_tokenizer_load(other, in("dir"), &t));
        CHECK(sh("! test -e dir/.pvtune-save && cmp dir/tokenizer.json new/tokenizer.json"));
        pvt_tokenizer_free(t);
    }
    pvt_ctx_destroy(other);
}

/* What cannot be asked about is not taken for absent: a model that may not be overwritten, and a card that is the
   user's, stay whichever question fails. */
static void test_unanswered(void)
{
    pvt_save_desc desc;
    int64_t at, fired = 0;
    bool asked = true;
    memset(&desc, 0, sizeof desc);
    for (at = 0; asked; at++) {
        fresh_directory("old");
        set_fault(STAT, FAILS, at);
        CHECK(pvt_model_save(new_model, in("dir"), &desc) != PVT_OK);
        asked = fault.fired > 0, fired += asked;
        CHECK(figure(in("dir"), NULL) == old_figure);
    }
    CHECK(fired >= 1);
    desc.overwrite = true;
    for (at = 0, asked = true; asked; at++) {
        fresh_directory("old");
        CHECK(sh("echo 'my own' >dir/README.md"));
        set_fault(STAT, FAILS, at);
        CHECK(pvt_model_save(new_model, in("dir"), &desc) == PVT_OK || fault.fired > 0);
        asked = fault.fired > 0, fired += asked;
        CHECK(figure(in("dir"), NULL) > 1); /* completed, if it was committed */
        CHECK(sh("test \"$(cat dir/README.md)\" = 'my own'"));
    }
    CHECK(fired > 10);
}

/* ---- faults in the writing of one file ---- */

static bool file_is(const char *path, const char *content, int64_t bytes)
{
    int64_t n;
    char *text = slurp(path, &n);
    bool same = n == bytes && memcmp(text, content, (size_t)PVTI_MAX(n, 0)) == 0;
    free(text);
    return same;
}

typedef struct single {
    const char *name;                   /* in "one/" */
    pvt_result (*write)(const char *path); /* the new content */
    char *before, *after;
    int64_t before_bytes, after_bytes;
} single;

/* The state of one/NAME after a write that returned `result` (−1: the process ended); then a good write. */
static bool single_holds(const single *s, int result)
{
    char path[600], list[2048], name[128];
    snprintf(path, sizeof path, "%s/one/%s", scratch, s->name);
    bool is_old = s->before ? file_is(path, s->before, s->before_bytes) : !exists(path);
    bool is_new = file_is(path, s->after, s->after_bytes);
    bool good = is_old != is_new && (result != PVT_OK || is_new);
    if (result > 0 && strstr(pvt_ctx_error(ctx), "unchanged")) good = good && is_old;
    set_fault(ANY, FAILS, -1);
    good = good && s->write(path) == PVT_OK && file_is(path, s->after, s->after_bytes);
    list_files(in("one"), list);
    snprintf(name, sizeof name, "%s ", s->name);
    good = good && strcmp(list, name) == 0;
    if (!good) printf("    result %d \"%s\"; files %s\n", result, pvt_ctx_error(ctx), list);
    return good;
}

static void single_begin(const single *s, char path[600])
{
    remove_tree(in("one"));
    CHECK(mkdir(in("one"), 0755) == 0);
    snprintf(path, 600, "%s/one/%s", scratch, s->name);
    if (!s->before) return;
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(s->before, 1, (size_t)s->before_bytes, f) == (size_t)s->before_bytes && fclose(f) == 0);
}

static bool may_be_interrupted(call kind)
{
    return kind == OPEN || kind == CLOSE || kind == WRITE || kind == FSYNC || kind == FLOCK;
}

static void test_single(const single *s)
{
    char path[600];
    int64_t fired = 0, ended = 0;
    int status;
    single_begin(s, path);
    set_fault(ANY, FAILS, -1);
    CHECK(s->write(path) == PVT_OK);
    int64_t all = fault.n;
    count.calls += all;
    for (int h = FAILS; h <= INTERRUPTED; h++)
        for (int kind = 0; kind < ANY; kind++) {
            if (h == INTERRUPTED && !may_be_interrupted((call)kind)) continue;
            for (int64_t at = 0;; at++) {
                single_begin(s, path);
                set_fault((call)kind, (how)h, at);
                pvt_result result = s->write(path);
                bool fail = fault.fired > 0;
                if (!fail || h == INTERRUPTED) CHECK(result == PVT_OK);
                else if (told((call)kind)) CHECK(result != PVT_OK);
                CHECK(single_holds(s, (int)result));
                if (!fail) break;
                fired++;
            }
        }
    for (int h = ENDS_BEFORE; h <= ENDS_AFTER; h++)
        for (int64_t at = 0;; at++) {
            single_begin(s, path);
            fflush(stdout);
            pid_t child = fork();
            if (child == 0) {
                set_fault(ANY, (how)h, at);
                _exit(s->write(path) == PVT_OK ? 0 : 1);
            }
            CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status));
            if (WEXITSTATUS(status) != ENDED) break;
            CHECK(single_holds(s, -1));
            ended++;
        }
    CHECK(fired >= all && ended == 2 * all);
    count.faults += fired, count.ends += ended;
}

static pvt_result write_text(const char *path)
{
    static char big[700000];
    memset(big, 'n', sizeof big);
    return pvti_file_write(ctx, path, big, (int64_t)sizeof big);
}

static pvt_tuner *tuner;
static pvt_result write_checkpoint(const char *path) { return pvt_tuner_save(tuner, path); }

static const pvt_model *exported; /* what is written, over the file that was there */
static pvt_result write_gguf(const char *path)
{
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    return pvt_model_export(exported, "gguf:f16", path, &desc);
}

/* A tuner with one step done. */
static void make_tuner(pvt_model *model, pvt_corpus *corpus)
{
    pvt_tune_desc desc;
    int32_t ids[64];
    memset(&desc, 0, sizeof desc);
    for (int i = 0; i < 64; i++) ids[i] = (i * i + 3) % 256;
    desc.steps = 4, desc.batch = 1, desc.ctx = 16, desc.cross_entropy = true;
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, 64, corpus));
    CHECK_OK(ctx, pvt_tuner_create(model, NULL, corpus, &desc, &tuner));
    CHECK_OK(ctx, pvt_tuner_step(tuner, NULL));
}

static void quantize(pvt_model *model)
{
    pvt_format format;
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x2g2", &format));
    for (int64_t j = 0; j < PVTI_LINEARS; j++) {
        pvt_weight *w = &model->layers[0].linear[PVTI_Q + j], q;
        CHECK_OK(ctx, pvt_weight_fit(ctx, (const pvt_real *)w->array[0], w->O, w->I, NULL, &format, NULL, NULL, &q));
        pvt_weight_free(w);
        *w = q;
    }
}

static void test_files(void)
{
    single s;
    pvt_model *model = make_model(3);
    pvt_corpus corpus;
    memset(&s, 0, sizeof s);
    s.name = "result.txt", s.write = write_text, s.after = (char *)malloc(700000), s.after_bytes = 700000;
    memset(s.after, 'n', 700000);
    test_single(&s); /* a file that was not there */
    s.before = (char *)"old", s.before_bytes = 3;
    test_single(&s);
    free(s.after);

    exported = model;
    set_fault(ANY, FAILS, -1);
    CHECK_OK(ctx, write_gguf(in("first.gguf")));
    s.name = "model.gguf", s.write = write_gguf;
    s.before = NULL, s.before_bytes = 0, s.after = slurp(in("first.gguf"), &s.after_bytes);
    CHECK(s.after_bytes > 1000);
    test_single(&s);
    free(s.after);

    quantize(model);
    make_tuner(model, &corpus);
    set_fault(ANY, FAILS, -1);
    CHECK_OK(ctx, pvt_tuner_save(tuner, in("first")));
    CHECK_OK(ctx, pvt_tuner_step(tuner, NULL));
    CHECK_OK(ctx, pvt_tuner_save(tuner, in("second")));
    s.name = "checkpoint.safetensors", s.write = write_checkpoint;
    s.before = slurp(in("first"), &s.before_bytes), s.after = slurp(in("second"), &s.after_bytes);
    CHECK(s.before_bytes > 1000 && s.before_bytes < 1000000 && !file_is(in("second"), s.before, s.before_bytes));
    test_single(&s);
    CHECK_OK(ctx, pvt_tuner_resume(tuner, in("one/checkpoint.safetensors")));
    CHECK(pvt_tuner_get_info(tuner).step == 2);
    free(s.before), free(s.after);
    pvt_tuner_free(tuner), pvt_model_free(model), pvt_corpus_free(&corpus);
}

/* ---- several at once ---- */

static void test_two_writers(void)
{
    pvt_ctx *other = make_ctx();
    pvti_writer a, b;
    char path[600], list[2048];
    set_fault(ANY, FAILS, -1);
    CHECK(sh("rm -rf one && mkdir one"));
    snprintf(path, sizeof path, "%s/one/both", scratch);
    CHECK_OK(ctx, pvti_writer_open(ctx, path, &a));
    CHECK_OK(ctx, pvti_writer_put(&a, "aaaa", 4));
    CHECK_OK(other, pvti_writer_open(other, path, &b)); /* takes nothing from the first */
    CHECK_OK(other, pvti_writer_put(&b, "bbb", 3));
    CHECK_OK(ctx, pvti_writer_commit(&a));
    CHECK(file_is(path, "aaaa", 4));
    CHECK_OK(other, pvti_writer_commit(&b));
    CHECK(file_is(path, "bbb", 3));
    CHECK_OK(ctx, pvti_writer_open(ctx, path, &a)); /* given up between the other's opening and commit */
    CHECK_OK(other, pvti_writer_open(other, path, &b));
    CHECK_OK(other, pvti_writer_put(&b, "b", 1));
    pvti_writer_abort(&a);
    CHECK(file_is(path, "bbb", 3));
    CHECK_OK(other, pvti_writer_commit(&b));
    list_files(in("one"), list);
    CHECK(file_is(path, "b", 1) && strcmp(list, "both ") == 0);
    /* an orphan is removed, what looks a little like one is not */
    CHECK(sh("cd one && for f in .both.pvtune-1-0.tmp .both.pvtune-1-x.tmp .both.tmp both.tmp; do echo x >$f; done"));
    CHECK_OK(ctx, pvti_file_write(ctx, path, "c", 1));
    list_files(in("one"), list);
    CHECK(strcmp(list, ".both.pvtune-1-x.tmp .both.tmp both both.tmp ") == 0);
    pvt_ctx_destroy(other);
}

static void write_often(char letter, const char *path, int times)
{
    static char big[300000];
    pvt_ctx *own = make_ctx();
    set_fault(ANY, FAILS, -1);
    memset(big, letter, sizeof big);
    while (times-- > 0)
        if (pvti_file_write(own, path, big, letter == 'a' ? 300000 : 200000) != PVT_OK) {
            printf("    writer %c: %s\n", letter, pvt_ctx_error(own));
            fflush(stdout);
            _exit(1);
        }
    _exit(0);
}

static void test_two_processes(void)
{
    char path[600], list[2048];
    pid_t child[2];
    int status, alive = 2, looks = 0, whole = 0;
    CHECK(sh("rm -rf one && mkdir one"));
    snprintf(path, sizeof path, "%s/one/both", scratch);
    fflush(stdout);
    for (int i = 0; i < 2; i++) {
        child[i] = fork();
        if (child[i] == 0) write_often(i ? 'b' : 'a', path, 150);
    }
    while (alive > 0) {
        int64_t n, k = 0;
        char *text = slurp(path, &n);
        while (k < n && text[k] == text[0]) k++;
        if (n >= 0) looks++, whole += k == n && n == (text[0] == 'a' ? 300000 : 200000);
        free(text);
        for (int i = 0; i < 2; i++)
            if (child[i] > 0 && waitpid(child[i], &status, WNOHANG) == child[i]) {
                CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
                child[i] = 0, alive--;
            }
    }
    list_files(in("one"), list);
    CHECK(looks > 10 && whole == looks && strcmp(list, "both ") == 0);
}

/* Until a file says that it is enough. */
static void save_often(const pvt_model *model)
{
    while (!exists(in("enough")))
        if (save(model, in("dir")) != PVT_OK) {
            printf("    a saver: %s\n", pvt_ctx_error(ctx));
            fflush(stdout);
            _exit(1);
        }
    _exit(0);
}

static void test_two_savers(void)
{
    pvti_exchange a, b;
    pid_t child[2];
    char why[1024];
    int status, alive = 2, looks = 0, loaded = 0, told = 0;
    double bytes_figure = figure(in("old-bytes"), why);
    set_fault(ANY, FAILS, -1);
    /* one stands half finished while the other commits: it is completed first, then replaced */
    fresh_directory("old");
    CHECK_OK(ctx, pvti_exchange_begin(ctx, in("dir"), true, &a));
    CHECK_OK(ctx, pvti_exchange_begin(ctx, in("dir"), true, &b));
    CHECK_OK(ctx, pvti_exchange_put(&a, "tokenizer.json", "a", 1));
    CHECK_OK(ctx, pvti_exchange_put(&a, "vocab.json", "a", 1));
    CHECK_OK(ctx, pvti_exchange_put(&b, "tokenizer.json", "b", 1));
    set_fault(RENAME, FAILS, 1);
    CHECK(pvti_exchange_commit(&a, PVTI_SAVED_TOKENIZER) == PVT_ERR_IO && fault.fired == 1);
    set_fault(ANY, FAILS, -1);
    pvti_exchange_end(&a);
    CHECK_OK(ctx, pvti_exchange_commit(&b, PVTI_SAVED_TOKENIZER));
    pvti_exchange_end(&b);
    CHECK(sh("cd dir && test \"$(cat tokenizer.json)\" = b && ! test -e vocab.json && test -e config.json"));
    CHECK(sh("test -z \"$(ls -A dir | grep pvtune)\""));
    /* two processes save their models, time and again, while a third looks */
    fresh_directory("old-bytes");
    fflush(stdout);
    for (int i = 0; i < 2; i++) {
        child[i] = fork();
        if (child[i] == 0) save_often(i ? new_model : old_model);
    }
    while (alive > 0) {
        double value = figure(in("dir"), why);
        if (++looks == 60) CHECK(sh("touch enough"));
        if (value == new_figure || value == bytes_figure) loaded++;
        /* a save that fell between two of the loader's looks is told, never loaded half */
        else if (isnan(value) &&
                 (strstr(why, "load it again") || strstr(why, "no config.json") || strstr(why, "No such file")))
            told++;
        else printf("    %g: %s\n", value, why);
        for (int i = 0; i < 2; i++)
            if (child[i] > 0 && waitpid(child[i], &status, WNOHANG) == child[i]) {
                CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
                child[i] = 0, alive--;
            }
    }
    CHECK(looks >= 60 && loaded + told == looks);
    CHECK(figure(in("dir"), why) == new_figure || figure(in("dir"), why) == bytes_figure);
    CHECK(sh("test -z \"$(ls -A dir | grep pvtune)\""));
    /* without leave to overwrite, a model that came meanwhile is not replaced */
    CHECK(sh("rm -rf dir && mkdir dir"));
    CHECK_OK(ctx, pvti_exchange_begin(ctx, in("dir"), false, &a));
    CHECK_OK(ctx, pvti_exchange_put(&a, "config.json", "{}", 2));
    CHECK_OK(ctx, save(new_model, in("dir")));
    CHECK(pvti_exchange_commit(&a, PVTI_SAVED_MODEL) == PVT_ERR_ARGUMENT);
    pvti_exchange_end(&a);
    CHECK(figure(in("dir"), why) == new_figure && sh("test -z \"$(ls -A dir | grep pvtune)\""));
}

/* A model that is exchanged while it is loaded: half of each would pass unseen. */
static pvt_files meddling;
static bool meddled;
static int meddling_open(void *user, const char *path, pvt_file_open purpose)
{
    if (!meddled && strstr(path, "model.safetensors")) {
        meddled = true;
        CHECK_OK(ctx, save(new_model, in("dir")));
    }
    return bad_open(user, path, purpose);
}

static void test_exchanged_meanwhile(void)
{
    pvt_model *model = NULL;
    fresh_directory("old-bytes");
    set_fault(ANY, FAILS, -1);
    meddling = bad_files, meddling.open = meddling_open;
    pvt_ctx *other = make_ctx_of(&meddling);
    CHECK(pvt_model_load(other, in("dir"), NULL, &model) == PVT_ERR_MISMATCH && meddled && model == NULL);
    CHECK(strstr(pvt_ctx_error(other), "load it again") != NULL);
    CHECK_OK(other, pvt_model_load(other, in("dir"), NULL, &model));
    pvt_model_free(model);
    pvt_ctx_destroy(other);
}

/* An exchange that is committed just after it was looked for in vain is no failure: it is another's. */
static int late_open(void *user, const char *path, pvt_file_open purpose)
{
    int fd = bad_open(user, path, purpose), code = errno;
    if (!meddled && strstr(path, PVTI_EXCHANGE "/manifest")) {
        meddled = true;
        CHECK(fd < 0 && code == ENOENT && rename(in("aside"), in("dir/" PVTI_EXCHANGE)) == 0);
    }
    errno = code;
    return fd;
}

static void test_committed_meanwhile(void)
{
    pvt_model *model = NULL;
    fresh_directory("half");
    CHECK(rename(in("dir/" PVTI_EXCHANGE), in("aside")) == 0);
    set_fault(ANY, FAILS, -1);
    meddled = false;
    meddling = bad_files, meddling.open = late_open;
    pvt_ctx *other = make_ctx_of(&meddling);
    CHECK_OK(other, pvt_model_load(other, in("dir"), NULL, &model));
    CHECK(meddled && figure(in("dir"), NULL) == new_figure);
    pvt_model_free(model);
    pvt_ctx_destroy(other);
}

/* ---- permissions ---- */

static mode_t mode_of(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 ? st.st_mode & 0777 : 07777;
}

static void test_permissions(void)
{
    pvti_writer w;
    char path[600];
    mode_t mask = umask(022);
    struct stat st;
    set_fault(ANY, FAILS, -1);
    CHECK(sh("rm -rf one && mkdir one && cd one && echo secret >mine && chmod 600 mine"));
    snprintf(path, sizeof path, "%s/one/mine", scratch);
    fault.wide = fault.narrow = false;
    CHECK_OK(ctx, pvti_writer_open(ctx, path, &w));
    CHECK(mode_of(w.temp) == 0600 && fault.narrow && !fault.wide); /* from its creation on */
    CHECK_OK(ctx, pvti_writer_put(&w, "new", 3));
    CHECK_OK(ctx, pvti_writer_commit(&w));
    CHECK(file_is(path, "new", 3) && mode_of(path) == 0600);
    CHECK(chmod(path, 0664) == 0);
    CHECK_OK(ctx, pvti_file_write(ctx, path, "new", 3));
    CHECK(mode_of(path) == 0664);
    CHECK(chmod(path, 0400) == 0);
    CHECK_OK(ctx, pvti_file_write(ctx, path, "newer", 5));
    CHECK(mode_of(path) == 0400 && file_is(path, "newer", 5));
    CHECK_OK(ctx, pvti_file_write(ctx, in("one/fresh"), "x", 1));
    CHECK(mode_of(in("one/fresh")) == 0644);

    CHECK(sh("rm -rf dir && cp -r new dir && chmod 600 dir/* && chmod 640 dir/tokenizer.json"));
    CHECK_OK(ctx, save(new_model, in("dir")));
    CHECK(mode_of(in("dir/model.safetensors")) == 0600 && mode_of(in("dir/config.json")) == 0600);
    CHECK(mode_of(in("dir/tokenizer.json")) == 0640 && mode_of(in("dir/tokenizer_config.json")) == 0600);
    if (geteuid() == 0) {
        CHECK(chown(path, 12345, 12346) == 0 && chown(in("dir/config.json"), 12345, 12346) == 0);
        CHECK_OK(ctx, pvti_file_write(ctx, path, "x", 1));
        CHECK(stat(path, &st) == 0 && st.st_uid == 12345 && st.st_gid == 12346 && (st.st_mode & 0777) == 0400);
        CHECK_OK(ctx, save(new_model, in("dir")));
        CHECK(stat(in("dir/config.json"), &st) == 0 && st.st_uid == 12345 && st.st_gid == 12346);
    } else {
        SKIP("a file's owner is kept: only root can give files away");
    }
    umask(mask);
}

/* ---- what an enemy may put there ---- */

static void test_hostile_manifests(void)
{
    static const char *const texts[] = {
        "", "x", "pvtune-save 1\n", "pvtune-save 2\n.\n", "pvtune-save 1\n+ model.safetensors\n",
        "pvtune-save 1\n+ model.safetensors\n.", "pvtune-save 1\n+ ../model.safetensors\n.\n",
        "pvtune-save 1\n- /etc/passwd\n.\n", "pvtune-save 1\n- ..\n.\n", "pvtune-save 1\n- notes.txt\n.\n",
        "pvtune-save 1\n* config.json\n.\n", "pvtune-save 1\n- \n.\n", "pvtune-save 1\n-\n.\n", "pvtune-save 1\n\n.\n",
        "pvtune-save 1\n- mine/config.json\n.\n", "pvtune-save 1\n- model-1-of-2.safetensors\n.\n",
        "pvtune-save 1\n- config.json\n.\nmore", "pvtune-save 1\n- model-00001-of-0000/.safetensors\n.\n",
        "pvtune-save 1\n- aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n.\n",
    };
    pvt_ctx *other = make_ctx();
    pvt_model *model;
    char list[2048], why[1024];
    int k;
    fresh_directory("old");
    set_fault(ANY, FAILS, -1);
    CHECK(sh("mkdir dir/.pvtune-save && echo bad >dir/.pvtune-save/config.json"));
    for (int64_t i = 0; i < PVTI_COUNT(texts) + 2; i++) {
        FILE *f = fopen(in("dir/.pvtune-save/manifest"), "wb");
        if (i < PVTI_COUNT(texts)) fputs(texts[i], f);
        else if (i == PVTI_COUNT(texts)) fwrite("pvtune-save 1\n- config.json\0\n.\n", 1, 31, f);
        else for (k = 0, fputs("pvtune-save 1\n", f); k < 100000; k++) fputs("- config.json\n", f);
        CHECK(fclose(f) == 0);
        CHECK(pvt_model_load(other, in("dir"), NULL, &model) ==
              (i <= PVTI_COUNT(texts) ? PVT_ERR_FORMAT : PVT_ERR_IO));
        CHECK(strstr(pvt_ctx_error(other), ".pvtune-save/manifest") != NULL);
        CHECK(save(new_model, in("dir")) != PVT_OK); /* nothing is guessed */
    }
    CHECK(sh("rm -r dir/.pvtune-save"));
    list_files(in("dir"), list);
    CHECK(strcmp(list, old_list) == 0 && figure(in("dir"), why) == old_figure);
    /* folders that are links to somewhere else */
    CHECK(sh("mkdir else && echo mine >else/config.json && "
             "printf 'pvtune-save 1\\n+ config.json\\n.\\n' >else/manifest"));
    CHECK(sh("cd dir && ln -s ../else .pvtune-save"));
    CHECK(pvt_model_load(other, in("dir"), NULL, &model) == PVT_ERR_FORMAT);
    CHECK(sh("cd dir && rm .pvtune-save && ln -s ../else .save.pvtune-1-0.tmp && "
             "ln -s ../else/config.json .config.json.pvtune-1-0.tmp"));
    CHECK_OK(ctx, save(new_model, in("dir")));
    CHECK(sh("test -e else/config.json && test -e else/manifest && rm dir/.save.pvtune-1-0.tmp"));
    CHECK(figure(in("dir"), why) == new_figure);
    /* a folder of that name that is not ours blocks the save, and says so */
    CHECK(sh("rm -rf dir && cp -r old dir && mkdir dir/.pvtune-save && echo x >dir/.pvtune-save/x"));
    CHECK(save(new_model, in("dir")) == PVT_ERR_IO);
    CHECK(strstr(pvt_ctx_error(ctx), ".pvtune-save") && strstr(pvt_ctx_error(ctx), "unchanged"));
    CHECK(figure(in("dir"), why) == old_figure && sh("test -e dir/.pvtune-save/x"));
    /* an empty one, as a death between two last calls leaves it, does not */
    CHECK(sh("rm dir/.pvtune-save/x"));
    CHECK_OK(ctx, save(new_model, in("dir")));
    CHECK(figure(in("dir"), why) == new_figure && sh("! test -e dir/.pvtune-save"));
    pvt_ctx_destroy(other);
}

/* ---- pipes and devices: an alarm ends a test that waits for them ---- */

static void refuse_special(pvt_ctx *other, const char *what, const char *name)
{
    pvt_model *model = NULL;
    char path[600];
    fresh_directory("new");
    CHECK(sh("cd dir && rm -f '%s' && %s '%s'", name, what, name));
    alarm(20);
    CHECK(pvt_model_load(other, in("dir"), NULL, &model) == PVT_ERR_IO && model == NULL);
    CHECK(strstr(pvt_ctx_error(other), name) && strstr(pvt_ctx_error(other), "a regular file was expected"));
    snprintf(path, sizeof path, "%s/dir/%s", scratch, name);
    CHECK(pvt_model_load(other, path, NULL, &model) == PVT_ERR_IO && model == NULL);
    alarm(0);
}

static void test_special_files(void)
{
    static const char *const names[] = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                                        "generation_config.json"};
    pvt_ctx *other = make_ctx();
    pvt_corpus corpus;
    pvt_model *model = NULL;
    pvt_tokenizer *t = NULL;
    int status;
    set_fault(ANY, FAILS, -1);
    for (int i = 0; i < PVTI_COUNT(names); i++) {
        refuse_special(other, "mkfifo", names[i]);
        if (exists("/dev/zero")) refuse_special(other, "ln -s /dev/zero", names[i]);
    }
    fresh_directory("new");
    CHECK(sh("mkdir dir/.pvtune-save && mkfifo dir/.pvtune-save/manifest"));
    alarm(20);
    CHECK(pvt_model_load(other, in("dir"), NULL, &model) != PVT_OK);
    CHECK(pvt_tokenizer_load(other, "/dev/zero", &t) == PVT_ERR_IO);
    /* a text may come through a pipe, but must end some time */
    CHECK_OK(other, pvt_tokenizer_create_bytes(other, &t));
    CHECK(sh("mkfifo text"));
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        int fd = open(in("text"), O_WRONLY);
        for (int i = 0; i < 1000; i++)
            if (write(fd, "some text ", 10) != 10) _exit(1);
        _exit(0);
    }
    CHECK_OK(other, pvt_corpus_load(other, in("text"), t, &corpus));
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(corpus.n == 10000);
    pvt_corpus_free(&corpus);
    pvt_ctx_reset_peak(other);
    int64_t peak = pvt_ctx_get_info(other).bytes_peak;
    CHECK(pvt_corpus_load(other, "/dev/zero", t, &corpus) == PVT_ERR_IO);
    CHECK(strstr(pvt_ctx_error(other), "does not end") != NULL);
    CHECK(pvt_ctx_get_info(other).bytes_peak - peak < 4 * PVTI_STREAM_BYTES);
    alarm(0);
    pvt_tokenizer_free(t);
    pvt_ctx_destroy(other);
}

int main(void)
{
    if (!test_scratch(scratch, sizeof scratch)) return 1;
    ctx = make_ctx();
    set_fault(ANY, FAILS, -1);
    make_old();
    make_new();
    CHECK_OK(ctx, save(old_model, in("old-bytes")));
    test_stale();
    test_directory("old");
    test_directory(NULL);
    test_lesser_systems();
    test_recovery();
    test_unanswered();
    test_files();
    test_two_writers();
    test_two_processes();
    test_two_savers();
    test_exchanged_meanwhile();
    test_committed_meanwhile();
    test_permissions();
    test_hostile_manifests();
    test_special_files();
    printf("%lld calls enumerated, %lld faults fired, %lld ends of a process\n", (long long)count.calls,
           (long long)count.faults, (long long)count.ends);
    pvt_model_free(old_model), pvt_model_free(new_model);
    pvt_ctx_destroy(ctx);
    test_remove(scratch);
    return test_end();
}
