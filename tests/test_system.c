/*  The seam to the system. Files through a caller's functions: a model, its tokenizer, a text, checkpoints of
    quantizing and tuning live in a file system in memory, and nothing touches the disk. And the order of
    bytes in them; test_swapped compiles all this once more, as a host of the other order would have it. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

/* ---- a file system in memory: nodes by path, and open files that keep a node alive ---- */

enum { NODES = 64, OPEN = 32 };
typedef struct node {
    char path[200]; /* "": no longer anywhere */
    bool directory, used;
    char *bytes;
    int64_t size, opened; /* opened: how many times at this moment */
    uint64_t number;
} node;
typedef struct disk {
    node nodes[NODES];
    struct { node *node; int64_t at; } open[OPEN];
    uint64_t numbers;
    int64_t opens, reads, writes, renames, maps, unmaps, infos; /* calls */
} disk;

/* "./x" is "x". */
static const char *plain(const char *path) { return strncmp(path, "./", 2) == 0 ? path + 2 : path; }

static node *find(disk *d, const char *path)
{
    path = plain(path);
    for (int i = 0; i < NODES; i++)
        if (d->nodes[i].used && strcmp(d->nodes[i].path, path) == 0) return &d->nodes[i];
    return NULL;
}

static int fails(int code)
{
    errno = code;
    return -1;
}

static void drop(node *n)
{
    n->path[0] = 0;
    if (n->opened > 0) return;
    free(n->bytes);
    memset(n, 0, sizeof *n);
}

/* The directory that a path lies in is there. */
static bool has_parent(disk *d, const char *path)
{
    const char *slash = strrchr(path, '/');
    char parent[200];
    if (!slash) return true;
    snprintf(parent, sizeof parent, "%.*s", (int)(slash - path), path);
    node *n = find(d, parent);
    return n && n->directory;
}

static node *make(disk *d, const char *path, bool directory)
{
    path = plain(path);
    if (find(d, path)) return errno = EEXIST, (node *)NULL;
    if (!has_parent(d, path)) return errno = ENOENT, (node *)NULL;
    for (int i = 0; i < NODES; i++) {
        node *n = &d->nodes[i];
        if (n->used) continue;
        n->used = true, n->directory = directory, n->number = ++d->numbers;
        snprintf(n->path, sizeof n->path, "%s", path);
        return n;
    }
    return errno = ENOSPC, (node *)NULL;
}

static int mem_open(void *user, const char *path, pvt_file_open how)
{
    disk *d = (disk *)user;
    bool is_new = how == PVT_OPEN_NEW || how == PVT_OPEN_NEW_PRIVATE;
    node *n = is_new ? make(d, path, false) : find(d, path);
    d->opens++;
    if (!n) return is_new ? -1 : fails(ENOENT);
    for (int i = 0; i < OPEN; i++)
        if (!d->open[i].node) {
            d->open[i].node = n, d->open[i].at = 0, n->opened++;
            return i;
        }
    return fails(EMFILE);
}
static int mem_close(void *user, int file)
{
    disk *d = (disk *)user;
    node *n = d->open[file].node;
    d->open[file].node = NULL;
    if (--n->opened == 0 && !n->path[0]) drop(n);
    return 0;
}
static int64_t mem_read(void *user, int file, void *to, int64_t bytes) /* never more than 1000 at once */
{
    disk *d = (disk *)user;
    node *n = d->open[file].node;
    int64_t take = PVTI_MIN(PVTI_MIN(bytes, 1000), n->size - d->open[file].at);
    d->reads++;
    if (n->directory) return fails(EISDIR);
    if (take > 0) memcpy(to, n->bytes + d->open[file].at, (size_t)take);
    d->open[file].at += take;
    return take;
}
static int64_t mem_write(void *user, int file, const void *from, int64_t bytes)
{
    disk *d = (disk *)user;
    node *n = d->open[file].node;
    int64_t take = PVTI_MIN(bytes, 3000);
    n->bytes = (char *)realloc(n->bytes, (size_t)(n->size + take));
    memcpy(n->bytes + n->size, from, (size_t)take);
    n->size += take;
    d->writes++;
    return take;
}
static int mem_info(void *user, const char *path, int file, pvt_file_info *out)
{
    disk *d = (disk *)user;
    node *n = path ? find(d, path) : d->open[file].node;
    memset(out, 0, sizeof *out);
    d->infos++;
    if (!n) return fails(ENOENT);
    out->kind = n->directory ? PVT_FILE_DIRECTORY : PVT_FILE_REGULAR;
    out->bytes = n->size, out->number = n->number;
    return 0;
}
static int mem_rename(void *user, const char *from, const char *to)
{
    disk *d = (disk *)user;
    node *n = find(d, from), *old = find(d, to);
    size_t length = strlen(from);
    d->renames++;
    to = plain(to);
    if (!n || !has_parent(d, to)) return fails(ENOENT);
    if (old && old->directory) return fails(ENOTEMPTY);
    if (old) drop(old);
    for (int i = 0; i < NODES; i++) { /* what lies in a directory moves with it */
        node *in = &d->nodes[i];
        char moved[400];
        if (!in->used || in == n || strncmp(in->path, from, length) != 0 || in->path[length] != '/') continue;
        snprintf(moved, sizeof moved, "%s%s", to, in->path + length);
        snprintf(in->path, sizeof in->path, "%.199s", moved);
    }
    snprintf(n->path, sizeof n->path, "%s", to);
    return 0;
}
static int mem_remove(void *user, const char *path)
{
    node *n = find((disk *)user, path);
    if (!n) return fails(ENOENT);
    if (n->directory) return fails(EISDIR);
    drop(n);
    return 0;
}
static int mem_make_directory(void *user, const char *path)
{
    return make((disk *)user, path, true) ? 0 : -1;
}
static int mem_remove_directory(void *user, const char *path)
{
    disk *d = (disk *)user;
    node *n = find(d, path);
    size_t length = strlen(path);
    if (!n) return fails(ENOENT);
    for (int i = 0; i < NODES; i++)
        if (strncmp(d->nodes[i].path, path, length) == 0 && d->nodes[i].path[length] == '/')
            return fails(ENOTEMPTY);
    drop(n);
    return 0;
}
static const void *mem_map(void *user, int file, int64_t bytes)
{
    disk *d = (disk *)user;
    d->maps++, (void)bytes;
    return d->open[file].node->bytes;
}
static void mem_unmap(void *user, const void *memory, int64_t bytes)
{
    ((disk *)user)->unmaps++, (void)memory, (void)bytes;
}

/* What every writer needs, and nothing that may be missing. */
static pvt_files files_of(disk *d)
{
    pvt_files f;
    memset(&f, 0, sizeof f);
    f.user = d;
    f.open = mem_open, f.close = mem_close, f.read = mem_read, f.info = mem_info, f.write = mem_write;
    f.rename = mem_rename, f.remove = mem_remove;
    f.make_directory = mem_make_directory, f.remove_directory = mem_remove_directory;
    return f;
}

static pvt_ctx *make_ctx(const pvt_files *files)
{
    pvt_ctx_desc desc;
    pvt_ctx *ctx = NULL;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 2, desc.files = *files;
    CHECK(pvt_ctx_create(&desc, &ctx) == PVT_OK);
    return ctx;
}

/* ---- a model ---- */

static pvt_model *make_model(pvt_ctx *ctx)
{
    pvt_model_config c;
    pvt_model *model = NULL;
    memset(&c, 0, sizeof c);
    c.layers = 2, c.dim = 32, c.heads = 4, c.kv_heads = 2, c.ff = 48, c.vocab = 256, c.ctx = 64;
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &model));
    return model;
}

/* Every tensor's numbers are the same. */
static bool same_model(const pvt_model *a, const pvt_model *b)
{
    static pvt_real x[1 << 14], y[1 << 14];
    for (int64_t i = 0; i < pvt_model_tensors(a); i++) {
        pvt_tensor_info s = pvt_model_tensor(a, i), t = pvt_model_tensor(b, i);
        if (s.n != t.n || s.n > (int64_t)PVTI_COUNT(x)) return false;
        if (s.weight) pvt_weight_dequantize(s.weight, x), pvt_weight_dequantize(t.weight, y);
        else memcpy(x, s.values, (size_t)s.n * sizeof *x), memcpy(y, t.values, (size_t)s.n * sizeof *y);
        if (memcmp(x, y, (size_t)s.n * sizeof *x) != 0) return false;
    }
    return pvt_model_tensors(a) == pvt_model_tensors(b);
}

static pvt_result save(const pvt_model *model, const char *dir)
{
    pvt_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.overwrite = true;
    return pvt_model_save(model, dir, &desc);
}

static int64_t files_in(const disk *d)
{
    int64_t n = 0;
    for (int i = 0; i < NODES; i++) n += d->nodes[i].used;
    return n;
}

/* Quantized with checkpoints; once more from them alone. */
static void check_quantize(pvt_ctx *ctx, disk *d, const pvt_model *original, const pvt_corpus *text,
                           pvt_model **out)
{
    pvt_quantize_desc desc;
    pvt_model *again = NULL;
    int64_t writes;
    memset(&desc, 0, sizeof desc);
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:1x4g4", &desc.format));
    desc.samples = 4, desc.ctx = 16, desc.checkpoint = "blocks";
    CHECK_OK(ctx, pvti_directory_create(ctx, "blocks"));
    CHECK_OK(ctx, pvt_model_copy(ctx, original, out));
    CHECK_OK(ctx, pvt_quantize(*out, text, &desc));
    CHECK(find(d, "blocks/quantize-00000.safetensors") && find(d, "blocks/quantize-00001.safetensors"));
    desc.resume = true, writes = d->writes;
    CHECK_OK(ctx, pvt_model_copy(ctx, original, &again));
    CHECK_OK(ctx, pvt_quantize(again, text, &desc));
    CHECK(d->writes == writes && same_model(*out, again)); /* taken from the files, not computed */
    pvt_model_free(again);
}

/* Codes of more than a byte in the layout of our own, and matrices in full: numbers of files, whatever the host's
   order is. */
static void check_own_layout(pvt_ctx *ctx, const pvt_model *original, const pvt_corpus *text)
{
    pvt_quantize_desc desc;
    pvt_model *model = NULL, *again = NULL;
    pvt_tensors *file;
    memset(&desc, 0, sizeof desc);
    CHECK_OK(ctx, pvt_format_parse(ctx, "had:aqlm:1x9g4", &desc.format));
    desc.samples = 4, desc.ctx = 16, desc.finetune_epochs = -1;
    CHECK_OK(ctx, pvt_model_copy(ctx, original, &model));
    CHECK_OK(ctx, pvt_quantize(model, text, &desc));
    CHECK_OK(ctx, pvt_model_save(model, "own", NULL));
    CHECK_OK(ctx, pvt_model_load(ctx, "own", NULL, &again));
    CHECK(again && same_model(model, again));
    pvt_tensor_info t = pvt_model_tensor(model, 3);
    pvt_named_weight named;
    memset(&named, 0, sizeof named);
    named.name = "w", named.weight = t.weight;
    CHECK_OK(ctx, pvt_weights_save("weights", &named, 1, true));
    CHECK_OK(ctx, pvt_tensors_open(ctx, "weights", &file));
    pvt_array full = pvt_tensors_get(file, pvt_tensors_find(file, "w.dequantized"));
    pvt_real *W = (pvt_real *)malloc((size_t)t.n * sizeof *W);
    int64_t differ = 0;
    pvt_weight_dequantize(t.weight, W);
    for (int64_t k = 0; k < t.n; k++) differ += !(fabs((double)((const float *)full.data)[k] - (double)W[k]) < 1e-6);
    CHECK(full.dtype == PVT_F32 && differ == 0);
    free(W);
    pvt_tensors_close(file);
    pvt_model_free(model), pvt_model_free(again);
}

static void check_tune(pvt_ctx *ctx, disk *d, pvt_model *model, const pvt_corpus *text)
{
    pvt_tune_desc desc;
    pvt_model *copy = NULL;
    pvt_tuner *tuner = NULL, *resumed = NULL;
    memset(&desc, 0, sizeof desc);
    desc.steps = 4, desc.batch = 1, desc.ctx = 16, desc.cross_entropy = true;
    CHECK_OK(ctx, pvt_model_copy(ctx, model, &copy));
    CHECK_OK(ctx, pvt_tuner_create(model, NULL, text, &desc, &tuner));
    CHECK_OK(ctx, pvt_tuner_create(copy, NULL, text, &desc, &resumed));
    CHECK_OK(ctx, pvt_tuner_step(tuner, NULL));
    CHECK_OK(ctx, pvt_tuner_save(tuner, "checkpoint"));
    CHECK(find(d, "checkpoint") && !same_model(model, copy));
    CHECK_OK(ctx, pvt_tuner_resume(resumed, "checkpoint"));
    for (int i = 1; i < 4; i++) {
        CHECK_OK(ctx, pvt_tuner_step(tuner, NULL));
        CHECK_OK(ctx, pvt_tuner_step(resumed, NULL));
    }
    CHECK_OK(ctx, pvt_tuner_finish(tuner, NULL));
    CHECK_OK(ctx, pvt_tuner_finish(resumed, NULL));
    CHECK(same_model(model, copy));
    pvt_tuner_free(tuner), pvt_tuner_free(resumed), pvt_model_free(copy);
}

/* `maps`: the file system also maps. */
static void test_memory(bool maps)
{
    static const char *const names[] = {"m/config.json", "m/model.safetensors", "m/tokenizer.json",
                                        "m/tokenizer_config.json", "m/README.md"};
    static disk d;
    pvt_files files = files_of(&d);
    pvt_model *loaded = NULL, *small = NULL;
    pvt_tokenizer *bytes = NULL;
    pvt_corpus text;
    char story[400];
    memset(&d, 0, sizeof d);
    if (maps) files.map = mem_map, files.unmap = mem_unmap;
    pvt_ctx *ctx = make_ctx(&files);
    for (int i = 0; i < (int)sizeof story; i++) story[i] = "abcdefgh \n"[i * i % 10];
    pvt_model *model = make_model(ctx);
    CHECK_OK(ctx, pvt_tokenizer_create_bytes(ctx, &bytes));
    pvt_model_set_tokenizer(model, bytes);
    CHECK_OK(ctx, pvti_file_write(ctx, "text", story, sizeof story));
    CHECK_OK(ctx, pvt_corpus_load(ctx, "text", bytes, &text));
    CHECK(text.n == (int64_t)sizeof story && text.ids[0] == story[0]);

    CHECK_OK(ctx, pvt_model_round_f16(model));
    CHECK_OK(ctx, save(model, "m"));
    for (int i = 0; i < PVTI_COUNT(names); i++) CHECK(find(&d, names[i]) != NULL);
    CHECK(files_in(&d) == 2 + PVTI_COUNT(names)); /* the directory and the text; nothing temporary stays */
    int64_t before = d.reads;
    d.maps = 0;
    CHECK_OK(ctx, pvt_model_load(ctx, "m", NULL, &loaded));
    CHECK(same_model(model, loaded) && pvt_model_tokenizer(loaded) != NULL);
    maps = maps && !PVTI_SWAPS; /* then numbers are put right in memory */
    CHECK(maps ? d.reads == before && d.maps >= 3 : d.reads > before + 30);
    CHECK(save(loaded, "m") == PVT_OK); /* over the files that it is mapped from */
    pvt_model_free(loaded);
    CHECK_OK(ctx, pvt_model_load(ctx, "m", NULL, &loaded));
    CHECK(same_model(model, loaded));
    pvt_model_free(loaded);

    check_quantize(ctx, &d, model, &text, &small);
    check_own_layout(ctx, model, &text);
    check_tune(ctx, &d, small, &text);
    CHECK_OK(ctx, save(small, "below/more/small"));
    CHECK_OK(ctx, pvt_model_load(ctx, "below/more/small", NULL, &loaded));
    CHECK(same_model(small, loaded));
    pvt_model_free(loaded), pvt_model_free(small), pvt_model_free(model), pvt_corpus_free(&text);
    CHECK(d.opens > 40 && d.writes > 40 && d.renames > 10 && d.infos > 40);
    CHECK(d.maps == 0 || d.unmaps > 0);
    for (int i = 0; i < OPEN; i++) CHECK(d.open[i].node == NULL); /* all were closed */
    CHECK(pvt_ctx_get_info(ctx).bytes_now < (int64_t)16 << 20);
    pvt_ctx_destroy(ctx);
    for (int i = 0; i < NODES; i++) free(d.nodes[i].bytes);
}

/* Only what reading needs. */
static void test_read_only(void)
{
    static disk d;
    pvt_files files = files_of(&d);
    pvt_ctx *ctx = make_ctx(&files);
    pvt_model *model = make_model(ctx), *loaded = NULL;
    memset(&d, 0, sizeof d);
    CHECK_OK(ctx, save(model, "m"));
    pvt_model_free(model), pvt_ctx_destroy(ctx);
    files.write = NULL, files.rename = NULL, files.remove = NULL;
    files.make_directory = NULL, files.remove_directory = NULL;
    ctx = make_ctx(&files);
    CHECK_OK(ctx, pvt_model_load(ctx, "m", NULL, &loaded));
    CHECK(save(loaded, "m") == PVT_ERR_IO);
    CHECK(strstr(pvt_ctx_error(ctx), strerror(ENOSYS)) != NULL);
    CHECK(strstr(pvt_ctx_error(ctx), "m: nothing can be written") != NULL);
    pvt_model_free(loaded);
    CHECK_OK(ctx, pvt_model_load(ctx, "m", NULL, &loaded));
    pvt_model_free(loaded), pvt_ctx_destroy(ctx);
    for (int i = 0; i < NODES; i++) free(d.nodes[i].bytes);
}

/* ---- the order of bytes ---- */

static void reverse(uint8_t *bytes, int n)
{
    for (int i = 0; i < n / 2; i++) {
        uint8_t t = bytes[i];
        bytes[i] = bytes[n - 1 - i], bytes[n - 1 - i] = t;
    }
}

/* Known bytes at an odd address; a build that swaps sees the host's other order. */
static void test_numbers(void)
{
    static const uint8_t known[8] = {0x01, 0x02, 0x03, 0x84, 0x05, 0x06, 0x07, 0x88};
    static const uint8_t one[4] = {0x00, 0x00, 0x80, 0x3f}, half[8] = {0, 0, 0, 0, 0, 0, 0xe0, 0x3f};
    const uint16_t probe = 1;
    bool host_little = *(const uint8_t *)&probe == 1, forced = (PVTI_SWAPS != 0) == host_little;
    uint8_t at[9], back[9];
    uint16_t twos[4];
    for (int size = 2; size <= 8; size *= 2) {
        memcpy(at + 1, known, 8), memset(back, 0, sizeof back);
        if (forced) reverse(at + 1, size);
        if (size == 2) CHECK(pvti_load_u16(at + 1) == 0x0201u);
        if (size == 4) CHECK(pvti_load_u32(at + 1) == 0x84030201u);
        if (size == 8) CHECK(pvti_load_u64(at + 1) == 0x8807060584030201u);
        if (size == 2) pvti_store_u16(back + 1, 0x0201u);
        if (size == 4) pvti_store_u32(back + 1, 0x84030201u);
        if (size == 8) pvti_store_u64(back + 1, 0x8807060584030201u);
        CHECK(memcmp(at + 1, back + 1, (size_t)size) == 0);
    }
    memcpy(at + 1, one, 4);
    if (forced) reverse(at + 1, 4);
    pvti_store_f32(back + 1, 1.0f);
    CHECK(pvti_load_f32(at + 1) == 1.0f && memcmp(at + 1, back + 1, 4) == 0);
    memcpy(at + 1, half, 8);
    if (forced) reverse(at + 1, 8);
    CHECK(pvti_load_f64(at + 1) == 0.5);
    memcpy(twos, known, 8);
    for (int i = 0; i < 4 && forced; i++) reverse((uint8_t *)&twos[i], 2);
    pvti_copy_numbers(twos, twos, 4, 2); /* in place */
    CHECK(twos[0] == 0x0201u && twos[1] == 0x8403u && twos[2] == 0x0605u && twos[3] == 0x8807u);
}

/* The file has the order that it must have (or, in a build that swaps, the other one). */
static void test_file_order(void)
{
    static disk d;
    pvt_files files = files_of(&d);
    pvt_ctx *ctx = make_ctx(&files);
    const float values[3] = {1.0f, -2.0f, 0.5f};
    const uint16_t probe = 1;
    bool little = (*(const uint8_t *)&probe == 1) == !PVTI_SWAPS;
    pvti_tensor t;
    pvti_safetensors st;
    memset(&t, 0, sizeof t);
    t.name = "x", t.dtype = PVT_F32, t.rank = 1, t.shape[0] = 3;
    t.bytes = 12, t.data = (const uint8_t *)values;
    CHECK_OK(ctx, pvti_safetensors_write(ctx, "x", &t, 1, NULL));
    const uint8_t *bytes = (const uint8_t *)find(&d, "x")->bytes;
    int64_t header = little ? bytes[0] : bytes[7];
    CHECK(bytes[0] + bytes[7] == header && find(&d, "x")->size == 8 + header + 12);
    CHECK(bytes[8 + header + (little ? 3 : 0)] == 0x3f && bytes[8 + header + 4 + (little ? 3 : 0)] == 0xc0);
    CHECK_OK(ctx, pvti_safetensors_open(ctx, "x", &st));
    CHECK(memcmp(st.tensors[0].data, values, sizeof values) == 0);
    pvti_safetensors_close(&st), pvt_ctx_destroy(ctx);
    for (int i = 0; i < NODES; i++) free(d.nodes[i].bytes);
}

/* Half a table is refused. */
static void test_descs(void)
{
    static disk d;
    char why[200];
    for (int i = 0; i < 8; i++) {
        pvt_ctx_desc desc;
        pvt_ctx *ctx = NULL;
        memset(&desc, 0, sizeof desc);
        desc.files = files_of(&d), desc.error = why, desc.error_bytes = sizeof why;
        if (i == 0) desc.files.open = NULL;
        if (i == 1) desc.files.close = NULL;
        if (i == 2) desc.files.read = NULL;
        if (i == 3) desc.files.info = NULL;
        if (i == 4) desc.files.lock = mem_close;
        if (i == 5) desc.files.map = mem_map;
        if (i == 6) desc.files.unmap = mem_unmap;
        CHECK(pvt_ctx_create(&desc, &ctx) == (i < 7 ? PVT_ERR_ARGUMENT : PVT_OK));
        CHECK(i < 7 ? strstr(why, "files: open") != NULL : !why[0]);
        pvt_ctx_destroy(ctx);
    }
}

int main(void)
{
    char scratch[256];
    if (!test_scratch(scratch, sizeof scratch) || chdir(scratch) != 0) return 1;
    test_memory(false);
    test_memory(true);
    test_read_only();
    test_descs();
    test_numbers();
    test_file_order();
    CHECK(chdir("..") == 0 && rmdir(scratch) == 0); /* nothing lies in the directory where all this would have been */
    return test_end();
}
