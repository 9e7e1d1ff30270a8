/*  Losses of power. Every save goes to a disk in memory (disk.h) where nothing lasts before it is synced; at
    every call that changes something the power is cut, and of what was not synced an adversary keeps what it
    likes, in pieces. What stands there then, and after the next load has completed what it found, is the old
    model or the new one, whole, file by file and byte by byte; a load more changes nothing, a save more
    leaves nothing but itself; and power may be cut again while a load completes. That the test can fail is
    shown in the test: with any of the calls to sync left out that matter, it does. Two savers at once, in
    seeded turns. */
#include "../pvtune.h"
#include "disk.h"
#include "test.h"

#include <pthread.h>

static disk at_work;              /* what the context's calls go to, unless `user` is bent */
static disk_user user = {&at_work, 0};
static pvt_ctx *ctx;
static pvt_model *old_model, *new_model, *dense_model;
static pvt_tuner *old_tuner, *new_tuner;
static pvt_corpus corpus;

static struct {
    int64_t points, cuts, distinct, completed, again; /* cuts while a load completes */
    int64_t forgotten, found, schedules, meetings;
    disk_lost lost;
} count;

/* What does not depend on the compiler is left out. */
static bool is_quick(void) { return getenv("PVTUNE_QUICK") != NULL; }

/* ---- what is saved ---- */

static pvt_ctx *make_ctx(disk_user *of, uint64_t seed)
{
    pvt_ctx_desc desc;
    pvt_ctx *made = NULL;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 1, desc.files = disk_files(of), desc.seed = seed;
    CHECK(pvt_ctx_create(&desc, &made) == PVT_OK);
    return made;
}

/* Random weights by themselves differ between contexts of other seeds; here the last norm does, too. */
static pvt_model *make_model(pvt_ctx *in, float mark)
{
    pvt_model_config c;
    pvt_model *model = NULL;
    pvt_tokenizer *bytes = NULL;
    memset(&c, 0, sizeof c);
    c.layers = 1, c.dim = 16, c.heads = 2, c.kv_heads = 1, c.ff = 16, c.vocab = 256, c.ctx = 32,
    c.tied = true;
    CHECK_OK(in, pvt_model_create(in, &c, &model));
    CHECK_OK(in, pvt_tokenizer_create_bytes(in, &bytes));
    pvt_model_set_tokenizer(model, bytes);
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        if (t.values) ((pvt_real *)(uintptr_t)t.values)[0] = (pvt_real)mark;
    }
    return model;
}

static pvt_model *make_quantized(float mark)
{
    pvt_quantize_desc q;
    pvt_model *model = make_model(ctx, mark);
    memset(&q, 0, sizeof q);
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x2g4", &q.format));
    q.samples = 4, q.ctx = 16, q.finetune_epochs = -1;
    CHECK_OK(ctx, pvt_quantize(model, &corpus, &q));
    return model;
}

static pvt_tuner *make_tuner(pvt_model *model, int steps)
{
    pvt_tune_desc desc;
    pvt_tuner *tuner = NULL;
    memset(&desc, 0, sizeof desc);
    desc.steps = 4, desc.batch = 1, desc.ctx = 16, desc.cross_entropy = true;
    CHECK_OK(ctx, pvt_tuner_create(model, NULL, &corpus, &desc, &tuner));
    for (int i = 0; i < steps; i++) CHECK_OK(ctx, pvt_tuner_step(tuner, NULL));
    return tuner;
}

static pvt_model *tuned[2];
static void make_all(void)
{
    int32_t ids[256];
    for (int i = 0; i < 256; i++) ids[i] = (i * i + 3) % 256;
    ctx = make_ctx(&user, 1);
    CHECK_OK(ctx, pvt_corpus_from_ids(ctx, ids, 256, &corpus));
    old_model = make_model(ctx, 0.5f), new_model = make_quantized(2), dense_model = make_model(ctx, 3);
    for (int i = 0; i < 2; i++) tuned[i] = make_quantized(1);
    old_tuner = make_tuner(tuned[0], 1), new_tuner = make_tuner(tuned[1], 2);
}

/* ---- the saves ---- */

static pvt_result save_model(pvt_ctx *in, const pvt_model *model, bool overwrite)
{
    pvt_save_desc desc;
    (void)in;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = overwrite;
    return pvt_model_save(model, "m", &desc);
}
static pvt_result export_as(const pvt_model *model, const char *target, const char *path)
{
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    return pvt_model_export(model, target, path, &desc);
}
static pvt_result load_path(const char *path)
{
    pvt_model *model = NULL;
    pvt_result result = pvt_model_load(ctx, path, NULL, &model);
    pvt_model_free(model);
    return result;
}
static pvt_result write_text(const char *path, const char *text)
{
    return pvt_file_write(ctx, path, text, (int64_t)strlen(text));
}

/* The old model: in a shard, with a tokenizer in which a and b have changed places, with files that the new
   one has not, and with the user's own. */
static void old_directory(void)
{
    static const char *const more[] = {"added_tokens.json", "special_tokens_map.json", "vocab.json"};
    char path[100], list[4000] = "{\"weight_map\": {";
    CHECK_OK(ctx, save_model(ctx, old_model, false));
    CHECK(disk_rename(&user, "m/model.safetensors", "m/model-00001-of-00001.safetensors") == 0);
    for (int64_t i = 0; i < pvt_model_tensors(old_model); i++)
        snprintf(list + strlen(list), sizeof list - strlen(list),
                 "%s\"%s\": \"model-00001-of-00001.safetensors\"", i ? ", " : "",
                 pvt_model_tensor(old_model, i).name);
    snprintf(list + strlen(list), sizeof list - strlen(list), "}}");
    CHECK_OK(ctx, write_text("m/model.safetensors.index.json", list));
    disk_inode *f = &user.d->inode[disk_find(user.d, "m/tokenizer.json")];
    for (int64_t i = 0; i + 10 < f->size; i++) {
        if (memcmp(f->bytes + i, "\"a\": 97", 7) == 0) f->bytes[i + 1] = 'b';
        else if (memcmp(f->bytes + i, "\"b\": 98", 7) == 0) f->bytes[i + 1] = 'a';
    }
    f->hash = 0;
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "m/%s", more[i]);
        CHECK_OK(ctx, write_text(path, "{}"));
    }
    CHECK_OK(ctx, write_text("m/notes.txt", "mine"));
    CHECK_OK(ctx, load_path("m"));
}
static pvt_result new_directory(void) { return save_model(ctx, new_model, true); }
static pvt_result load_directory(void) { return load_path("m"); }

static void old_tokenizer(void) { old_directory(); }
static pvt_result new_tokenizer(void) { return pvt_tokenizer_save(pvt_model_tokenizer(new_model), "m"); }

static void old_export(void) { CHECK_OK(ctx, export_as(old_model, "dense", "m")); }
static pvt_result new_export(void) { return export_as(new_model, "dense", "m"); }
static pvt_result new_aqlm(void) { return export_as(new_model, "hf-aqlm", "deep/er/m"); }
static pvt_result load_deep(void) { return load_path("deep/er/m"); }

static void old_gguf(void) { CHECK_OK(ctx, export_as(old_model, "gguf:f16", "x.gguf")); }
static pvt_result new_gguf(void) { return export_as(dense_model, "gguf:f16", "x.gguf"); }
static pvt_result load_gguf(void) { return load_path("x.gguf"); }

static void old_checkpoint(void) { CHECK_OK(ctx, pvt_tuner_save(old_tuner, "c.safetensors")); }
static pvt_result new_checkpoint(void) { return pvt_tuner_save(new_tuner, "c.safetensors"); }
static pvt_result load_checkpoint(void)
{
    pvt_model *model = NULL;
    pvt_tuner *tuner = NULL;
    int64_t step;
    model = make_quantized(1), tuner = make_tuner(model, 0); /* of its own, to resume into */
    pvt_result result = pvt_tuner_resume(tuner, "c.safetensors");
    step = pvt_tuner_get_info(tuner).step;
    pvt_tuner_free(tuner), pvt_model_free(model);
    return result == PVT_OK && step != 1 && step != 2 ? PVT_ERR_MISMATCH : result;
}

static pvt_result weights_of(pvt_model *model)
{
    pvt_named_weight named;
    memset(&named, 0, sizeof named);
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        if (t.weight) named.weight = (pvt_weight *)(uintptr_t)t.weight;
    }
    named.name = "w";
    return pvt_weights_save("w.safetensors", &named, 1, true);
}
static void old_weights(void) { CHECK_OK(ctx, weights_of(old_model)); }
static pvt_result new_weights(void) { return weights_of(new_model); }
static pvt_result load_weights(void)
{
    pvt_weight w;
    pvt_named_weight named;
    memset(&w, 0, sizeof w), memset(&named, 0, sizeof named);
    named.name = "w", named.weight = &w;
    pvt_result result = pvt_weights_load(ctx, "w.safetensors", &named, 1);
    pvt_weight_free(&w);
    return result;
}

typedef struct save_case {
    const char *name;
    void (*before)(void);       /* makes what is there; NULL: nothing is */
    pvt_result (*save)(void);
    pvt_result (*load)(void);
    int syncs_found; /* so many of its syncs, left out, must be found */
    const char *models; /* a directory that others may read meanwhile */
} save_case;
static const save_case cases[] = {
    {"a model over another", old_directory, new_directory, load_directory, 13, "m"},
    {"a model, new", NULL, new_directory, load_directory, 12, "m"},
    {"a tokenizer into a model", old_tokenizer, new_tokenizer, load_directory, 7, NULL},
    {"an export over another", old_export, new_export, load_directory, 10, "m"},
    {"an export, new, directories with it", NULL, new_aqlm, load_deep, 14, "deep/er/m"},
    {"a GGUF over another", old_gguf, new_gguf, load_gguf, 2, NULL},
    {"a GGUF, new", NULL, new_gguf, load_gguf, 2, NULL},
    {"a checkpoint over another", old_checkpoint, new_checkpoint, load_checkpoint, 2, NULL},
    {"weights over others", old_weights, new_weights, load_weights, 2, NULL},
    {"weights, new", NULL, new_weights, load_weights, 2, NULL},
};

/* ---- cuts ---- */

static struct {
    const save_case *c;
    uint64_t is_old, is_new, is_new_all; /* views: before, after; and with everything that lies about */
    uint64_t is_old_model, is_new_model; /* of the directory */
    int adversaries;
    bool quiet;      /* a fault is planted: wrongs are counted and nothing is checked */
    bool done;       /* the save has returned PVT_OK */
    int64_t wrong, point;
    uint64_t seen[1 << 14];
} now;

/* A state that was not looked at yet. */
static bool is_fresh(uint64_t hash)
{
    uint64_t k = hash % (sizeof now.seen / sizeof *now.seen);
    for (int tries = 0; tries < 64; tries++, k = (k + 1) % (sizeof now.seen / sizeof *now.seen)) {
        if (now.seen[k] == hash) return false;
        if (now.seen[k]) continue;
        now.seen[k] = hash;
        return true;
    }
    return true;
}

static void wrong(const char *what, uint64_t seed, pvt_result result)
{
    now.wrong++;
    if (now.quiet || now.wrong > 10) return;
    printf("    %s, point %lld, adversary %llu: %s (%s: %s)\n", now.c->name, (long long)now.point,
           (unsigned long long)seed, what, pvt_result_text(result), pvt_ctx_error(ctx));
}

/* While a load completes what was cut: whatever is left, another load makes the same of it. */
static struct {
    uint64_t wanted, seen;
    int64_t cuts;
    bool good;
} completing;
static void cut_again(void *unused, disk_call kind)
{
    static disk left;
    disk *d = user.d;
    (void)unused, (void)kind;
    for (uint64_t seed = 0; seed < 8; seed += 2) {
        disk_cut(d, seed, &left, &count.lost);
        uint64_t hash = disk_view(&left, DISK_ROOT, true);
        if (hash != completing.seen) {
            left.safe = true, user.d = &left;
            completing.good &=
                now.c->load() == PVT_OK && disk_view(&left, DISK_ROOT, false) == completing.wanted;
            user.d = d, completing.cuts++;
        }
        completing.seen = hash;
        disk_end(&left);
    }
}

/* The load that completes, from the state in `from`, with cuts of its own. */
static bool completes_in_pieces(const disk *from, uint64_t wanted)
{
    static disk copy;
    disk *d = user.d;
    disk_lost none = {0, 0, 0};
    disk_cut(from, DISK_ALL_STAYS, &copy, &none);
    copy.before = cut_again, user.d = &copy;
    completing.wanted = wanted, completing.seen = 0, completing.good = true, completing.cuts = 0;
    bool good = now.c->load() == PVT_OK;
    cut_again(NULL, DISK_ANY);
    count.again += completing.cuts;
    user.d = d;
    disk_end(&copy);
    return good && completing.good;
}

static bool is_committed(const disk *d)
{
    for (int i = 0; i < d->live.n; i++)
        if (strcmp(d->live.at[i].name, ".pvtune-save") == 0)
            return disk_index(&d->live, d->live.at[i].inode, "manifest") >= 0;
    return false;
}

/* Software that knows nothing of a manifest takes what has a config.json for a model, and it is the old or
   the new. */
static bool stranger_is_safe(disk *d)
{
    int m = disk_find(d, now.c->models), hidden = m < 0 ? -1 : disk_index(&d->live, m, ".pvtune-save");
    if (m < 0 || disk_index(&d->live, m, "config.json") < 0) return true;
    uint64_t view = disk_view(d, m, false);
    if (hidden >= 0) view -= disk_view_of(d, hidden, false);
    return view == now.is_old_model || view == now.is_new_model;
}

/* What stands in `left` after a cut, which goes on as the disk of the machine. */
static void look(disk *left, uint64_t seed)
{
    static disk found;
    disk_lost none = {0, 0, 0};
    bool committed = is_committed(left), nothing_before = !now.c->before;
    count.distinct++;
    disk_cut(left, DISK_ALL_STAYS, &found, &none);
    left->safe = true, user.d = left;
    if (now.c->models && !stranger_is_safe(left))
        wrong("another's software takes a mixture for a model", seed, PVT_OK);
    if (now.done && committed) wrong("the save had ended, and is to be done again", seed, PVT_OK);
    pvt_result result = now.c->load();
    uint64_t view = disk_view(left, DISK_ROOT, false), all = disk_view(left, DISK_ROOT, true);
    bool is_old = view == now.is_old && (nothing_before ? result != PVT_OK : result == PVT_OK);
    bool is_new = view == now.is_new && result == PVT_OK;
    if (!is_old && !is_new) wrong("neither the old one nor the new one", seed, result);
    else if (now.done && !is_new) wrong("the save had ended, and is lost", seed, result);
    else if (result != PVT_OK && !pvt_ctx_error(ctx)[0]) wrong("no sentence", seed, result);
    if (now.c->load() != result || disk_view(left, DISK_ROOT, true) != all)
        wrong("a load more changes it", seed, result);
    if (committed && !is_new) wrong("committed, and not completed", seed, result);
    if (committed && !now.quiet && !completes_in_pieces(&found, now.is_new))
        wrong("cut again, and not completed", seed, result);
    count.completed += committed;
    result = now.c->save();
    if (result != PVT_OK) wrong("cannot be saved into", seed, result);
    else if (disk_view(left, DISK_ROOT, true) != now.is_new_all) {
        wrong("a save more leaves something", seed, result);
        if (!now.quiet && now.wrong < 3) disk_print(left, DISK_ROOT, 0);
    }
    if (left->full) wrong("the test's disk is full", seed, result);
    disk_end(&found);
}

static void cut_here(void *unused, disk_call kind)
{
    static disk left;
    disk *d = user.d;
    (void)unused, (void)kind;
    if (now.quiet && now.wrong) return; /* it is found */
    now.point++;
    count.points += !now.quiet;
    for (uint64_t seed = 0; seed < (uint64_t)now.adversaries; seed++) {
        uint64_t drawn = seed < DISK_DRAWN ? seed : seed + (uint64_t)now.point * 32;
        disk_cut(d, drawn, &left, &count.lost);
        count.cuts += !now.quiet;
        if (is_fresh(disk_view(&left, DISK_ROOT, true) + now.done)) look(&left, drawn);
        user.d = d;
        disk_end(&left);
    }
}

/* One save of the case with cuts all along; `forget`: the sync that is left out, or −1. Returns how many
   there are. */
static int64_t cut_all_along(const disk *base, int64_t forget)
{
    static disk d;
    disk_lost none = {0, 0, 0};
    memset(now.seen, 0, sizeof now.seen);
    now.wrong = now.point = 0, now.done = false;
    disk_cut(base, DISK_ALL_STAYS, &d, &none);
    d.before = cut_here, d.forget = forget, user.d = &d;
    CHECK_OK(ctx, now.c->save());
    now.done = true;
    cut_here(NULL, DISK_ANY);
    int64_t syncs = d.of[DISK_SYNC];
    CHECK(forget < 0 || d.forgotten == (forget < syncs));
    count.forgotten += d.forgotten;
    user.d = &at_work;
    disk_end(&d);
    return syncs;
}

static uint64_t model_view(disk *d)
{
    int m = now.c->models ? disk_find(d, now.c->models) : -1;
    return m < 0 ? 0 : disk_view(d, m, false);
}

static void test_case(const save_case *c)
{
    static disk base, after;
    disk_lost none = {0, 0, 0};
    int64_t found = 0, points;
    memset(&now, 0, sizeof now);
    now.c = c, now.adversaries = is_quick() ? 7 : 12;
    disk_begin(&base);
    base.safe = true, user.d = &base;
    if (c->before) c->before();
    now.is_old = disk_view(&base, DISK_ROOT, false), now.is_old_model = model_view(&base);
    disk_cut(&base, DISK_ALL_STAYS, &after, &none);
    after.safe = true, user.d = &after;
    CHECK_OK(ctx, c->save());
    CHECK_OK(ctx, c->load());
    now.is_new = disk_view(&after, DISK_ROOT, false), now.is_new_all = disk_view(&after, DISK_ROOT, true);
    now.is_new_model = model_view(&after);
    CHECK(now.is_old != now.is_new && !is_committed(&after) && !after.full);
    disk_end(&after);

    int64_t syncs = cut_all_along(&base, -1);
    points = now.point;
    CHECK(now.wrong == 0 && points > 5);
    now.quiet = true, now.adversaries = DISK_DRAWN + 4;
    for (int64_t i = 0; i < syncs && !is_quick(); i++) {
        cut_all_along(&base, i);
        found += now.wrong > 0;
        if (getenv("PVTUNE_VERBOSE"))
            printf("    sync %lld: %lld wrongs\n", (long long)i, (long long)now.wrong);
    }
    CHECK(found >= c->syncs_found || is_quick());
    count.found += found;
    printf("%s: %lld points, %lld syncs, %lld of them found when left out\n", c->name, (long long)points,
           (long long)syncs, (long long)found);
    user.d = &at_work;
    disk_end(&base);
}

/* ---- work that goes on from its checkpoints ---- */

static uint64_t model_hash(const pvt_model *model)
{
    static pvt_real values[1 << 13];
    uint64_t h = 1;
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        CHECK(t.n <= (int64_t)(sizeof values / sizeof *values));
        if (t.weight) pvt_weight_dequantize(t.weight, values);
        h = disk_hash(h, t.weight ? values : t.values, t.n * (int64_t)sizeof *values);
    }
    return h;
}

/* Quantizes with a checkpoint after each block, and so on from what lies there; 0 after an error. */
static uint64_t quantize_on(bool resume)
{
    pvt_quantize_desc q;
    pvt_model *model = NULL;
    uint64_t hash = 0;
    memset(&q, 0, sizeof q);
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x2g4", &q.format));
    q.samples = 2, q.ctx = 16, q.embedding = true, q.checkpoint = "q", q.resume = resume;
    CHECK_OK(ctx, pvt_model_copy(ctx, old_model, &model));
    if (pvt_quantize(model, &corpus, &q) == PVT_OK) hash = model_hash(model);
    else if (user.d->fired == 0) printf("    %s\n", pvt_ctx_error(ctx));
    pvt_model_free(model);
    return hash;
}

/* Tunes to the end with a checkpoint after each step, from the last one if there is any; 0 after an error. */
static uint64_t tune_on(bool resume)
{
    pvt_model *model = make_quantized(1);
    pvt_tuner *tuner = make_tuner(model, 0);
    uint64_t hash = 0;
    pvt_result result = PVT_OK;
    if (resume && disk_find(user.d, "q/c.safetensors") >= 0)
        result = pvt_tuner_resume(tuner, "q/c.safetensors");
    while (result == PVT_OK && !pvt_tuner_get_info(tuner).done) {
        result = pvt_tuner_step(tuner, NULL);
        if (result == PVT_OK) result = pvt_tuner_save(tuner, "q/c.safetensors");
    }
    if (result == PVT_OK) result = pvt_tuner_finish(tuner, NULL);
    if (result == PVT_OK) hash = model_hash(model);
    else if (user.d->fired == 0) printf("    %s\n", pvt_ctx_error(ctx));
    pvt_tuner_free(tuner), pvt_model_free(model);
    return hash;
}

/* The power fails at a call, the machine comes back, and the work goes on: to the bits of a run that nothing
   disturbed. */
static void test_work(const char *name, uint64_t (*work)(bool resume), int64_t each)
{
    static disk whole, base, run, left;
    disk_lost none = {0, 0, 0};
    int64_t points = 0, calls;
    disk_begin(&base);
    base.safe = true, user.d = &base;
    CHECK(disk_make_directory(&user, "q") == 0);
    disk_cut(&base, DISK_ALL_STAYS, &whole, &none);
    user.d = &whole;
    uint64_t wanted = work(false);
    calls = whole.calls;
    CHECK(wanted && calls > 20);
    for (int64_t at = 0; at < calls; at += each) {
        disk_cut(&base, DISK_ALL_STAYS, &run, &none);
        run.kind = DISK_ANY, run.at = at, run.onwards = true, run.code = EIO,
        user.d = &run; /* no call reaches it */
        uint64_t ended = work(false);
        CHECK(run.fired > 0 && (!ended || ended == wanted));
        disk_cut(&run, (uint64_t)at % 12, &left, &count.lost);
        left.safe = true, user.d = &left;
        CHECK(work(true) == wanted);
        CHECK(work(true) == wanted);
        disk_end(&run), disk_end(&left);
        points++;
    }
    printf("%s: %lld calls, the power cut at %lld of them\n", name, (long long)calls, (long long)points);
    count.points += points, count.cuts += points;
    user.d = &at_work;
    disk_end(&whole), disk_end(&base);
}

/* ---- two at once ---- */

/* Two threads of which one runs, until a call at which the seed gives the turn to the other. */
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int who;
    bool ended[2];
    int64_t left, changes;
    uint64_t seed, draws;
} turns;
static void take_turn(void *unused, int process)
{
    (void)unused;
    pthread_mutex_lock(&turns.mutex);
    if (turns.who == process && --turns.left < 0) {
        uint64_t draw = disk_mix(turns.seed * 1000 + turns.draws++);
        turns.left = (int64_t)(draw % 8);
        if (draw % 16 < 8 && !turns.ended[1 - process]) turns.who = 1 - process, turns.changes++;
        pthread_cond_broadcast(&turns.changed);
    }
    while (turns.who != process) pthread_cond_wait(&turns.changed, &turns.mutex);
    pthread_mutex_unlock(&turns.mutex);
}

typedef struct saver {
    disk_user user;
    pvt_ctx *ctx;
    pvt_model *model;
    bool overwrite;
    pvt_result result;
} saver;
static void *saver_main(void *arg)
{
    saver *s = (saver *)arg;
    s->result = save_model(s->ctx, s->model, s->overwrite);
    pthread_mutex_lock(&turns.mutex);
    turns.ended[s->user.process] = true, turns.who = 1 - s->user.process;
    pthread_cond_broadcast(&turns.changed);
    pthread_mutex_unlock(&turns.mutex);
    return NULL;
}

static saver savers[2];
static struct {
    uint64_t one[2], all[2],
        none; /* views: with the model of each, with all that lies about; with what was there */
    int64_t wrong, cuts;
} meeting;

static bool is_whole(uint64_t view)
{
    return view == meeting.one[0] || view == meeting.one[1] || view == meeting.none;
}

/* Now and then the power fails while both are at it. */
static void cut_both(void *arg, disk_call kind)
{
    static disk left;
    disk *d = (disk *)arg;
    uint64_t draw = disk_mix(turns.seed * 77 + (uint64_t)d->calls);
    (void)kind;
    if (draw % 4) return;
    disk_cut(d, draw % 200, &left, &count.lost);
    left.safe = true, user.d = &left;
    pvt_result result = load_directory();
    if (!is_whole(disk_view(&left, DISK_ROOT, false)) ||
        (result != PVT_OK && meeting.one[0] == meeting.none)) {
        if (meeting.wrong++ == 0)
            printf("    cut: %s\n", pvt_ctx_error(ctx)), disk_print(&left, DISK_ROOT, 0);
    }
    meeting.cuts++;
    user.d = &at_work;
    disk_end(&left);
}

/* Both save into m, which holds a model or (without leave to overwrite) nothing. */
static void meet(uint64_t seed, bool overwrite, const disk *base)
{
    static disk d;
    pthread_t thread[2];
    disk_lost none = {0, 0, 0};
    memset(&turns, 0, sizeof turns);
    pthread_mutex_init(&turns.mutex, NULL), pthread_cond_init(&turns.changed, NULL);
    turns.seed = seed, turns.who = (int)(seed % 2);
    disk_cut(base, DISK_ALL_STAYS, &d, &none);
    d.turn = take_turn, d.before = cut_both, d.before_user = &d;
    for (int i = 0; i < 2; i++) savers[i].overwrite = overwrite, savers[i].user.d = &d;
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&thread[i], NULL, saver_main, &savers[i]) == 0);
    for (int i = 0; i < 2; i++) CHECK(pthread_join(thread[i], NULL) == 0);
    d.turn = NULL, d.before = NULL;
    int saved = (savers[0].result == PVT_OK) + (savers[1].result == PVT_OK);
    CHECK(saved == (overwrite ? 2 : 1));
    for (int i = 0; i < 2; i++) {
        if (savers[i].result != PVT_OK && overwrite) printf("    %s\n", pvt_ctx_error(savers[i].ctx));
        if (savers[i].result == PVT_OK) continue;
        CHECK(savers[i].result == PVT_ERR_ARGUMENT &&
              strstr(pvt_ctx_error(savers[i].ctx), "a model is there already"));
    }
    user.d = &d;
    uint64_t view = disk_view(&d, DISK_ROOT, false);
    CHECK(overwrite ? view == meeting.one[0] || view == meeting.one[1]
                    : view == meeting.one[savers[0].result == PVT_OK ? 0 : 1]);
    CHECK(!d.full && disk_view(&d, DISK_ROOT, true) == meeting.all[view == meeting.one[0] ? 0 : 1]);
    CHECK_OK(ctx, load_directory());
    count.schedules++, count.meetings += turns.changes;
    user.d = &at_work;
    disk_end(&d);
    pthread_mutex_destroy(&turns.mutex), pthread_cond_destroy(&turns.changed);
}

static void test_two_savers(void)
{
    static disk base, after;
    disk_lost none = {0, 0, 0};
    for (int i = 0; i < 2; i++) {
        savers[i].user.d = &at_work, savers[i].user.process = i;
        savers[i].ctx = make_ctx(&savers[i].user, 5 + (uint64_t)i);
        savers[i].model = make_model(savers[i].ctx, 10.0f + (float)i);
    }
    for (int overwrite = 0; overwrite < 2; overwrite++) {
        disk_begin(&base);
        base.safe = true, user.d = &base;
        if (overwrite) old_directory();
        meeting.none = disk_view(&base, DISK_ROOT, false);
        for (int i = 0; i < 2; i++) {
            disk_cut(&base, DISK_ALL_STAYS, &after, &none);
            after.safe = true, savers[i].user.d = &after;
            CHECK_OK(savers[i].ctx, save_model(savers[i].ctx, savers[i].model, overwrite));
            meeting.one[i] = disk_view(&after, DISK_ROOT, false),
            meeting.all[i] = disk_view(&after, DISK_ROOT, true);
            disk_end(&after);
        }
        CHECK(meeting.one[0] != meeting.one[1] && meeting.one[0] != meeting.none);
        for (uint64_t seed = 0; seed < (is_quick() ? 5u : 20u); seed++) meet(seed, overwrite, &base);
        disk_end(&base);
    }
    CHECK(meeting.wrong == 0 && meeting.cuts > 50 && count.meetings > 40);
    printf("two savers: %lld schedules, %lld changes of turn, %lld cuts\n", (long long)count.schedules,
           (long long)count.meetings, (long long)meeting.cuts);
    count.cuts += meeting.cuts;
    for (int i = 0; i < 2; i++) pvt_model_free(savers[i].model), pvt_ctx_destroy(savers[i].ctx);
}

int main(void)
{
    disk_begin(&at_work);
    make_all();
    for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++) test_case(&cases[i]);
    test_work("quantizing with checkpoints", quantize_on, is_quick() ? 11 : 4);
    test_work("tuning with checkpoints", tune_on, is_quick() ? 17 : 5);
    test_two_savers();
    int64_t before = pvt_ctx_get_info(ctx).bytes_now; /* with all the room that the context keeps for itself */
    test_case(&cases[0]);
    CHECK(pvt_ctx_get_info(ctx).bytes_now == before); /* once more leaves nothing behind */
    CHECK(count.lost.bytes > 0 && count.lost.torn > 0 && count.lost.names > 0 && count.completed > 50);
    printf("%lld points, %lld cuts, %lld different, %lld completed, %lld cut again; lost: %lld bytes, %lld "
           "sectors, "
           "%lld names; %lld syncs left out, %lld found\n",
           (long long)count.points, (long long)count.cuts, (long long)count.distinct,
           (long long)count.completed, (long long)count.again, (long long)count.lost.bytes,
           (long long)count.lost.torn, (long long)count.lost.names, (long long)count.forgotten,
           (long long)count.found);
    pvt_tuner_free(old_tuner), pvt_tuner_free(new_tuner);
    pvt_model_free(tuned[0]), pvt_model_free(tuned[1]);
    pvt_model_free(old_model), pvt_model_free(new_model), pvt_model_free(dense_model);
    pvt_corpus_free(&corpus);
    pvt_ctx_destroy(ctx);
    disk_end(&at_work);
    return test_end();
}
