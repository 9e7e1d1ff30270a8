/*  pvtune allocate: which tensor gets how many bits (HIGGS, arXiv 2411.17525). What an error in each tensor costs
    (pvt_model_alpha), what error each format makes there (pvt_model_errors), and the best choice for a file of
    so many bits (pvt_allocate) become a plan, which pvtune quantize --plan follows.

    Included by pvtune.c, whose app, progress and JSON it uses. */
#ifndef ALLOCATE_H
#define ALLOCATE_H

enum { ALLOCATE_FORMATS = 16 };

typedef struct allocation {
    int64_t tensors, matrices, params;
    pvt_format formats[ALLOCATE_FORMATS + 1];
    char names[ALLOCATE_FORMATS + 1][48];
    int n;
    int kept;        /* the last format is "dense", for embedding and head alone: its number, else 0 */
    double *alpha;   /* [tensors] */
    double *feedback; /* [tensors] what calibration leaves of errors */
    double *errors;  /* [tensors, n] t² */
    double *loss;    /* [tensors, n] α·feedback·t² */
    int64_t *bytes;  /* [tensors, n] of a file */
    bool *wanted;    /* [tensors] may get codes */
    int *choice;     /* [tensors] */
    pvt_plan *plan;  /* [matrices] */
    char (*tensor_names)[96];
    double bound, predicted, bits;  /* of the choice: in nats; bits of the file per number of the model */
} allocation;

static void allocation_free(allocation *z)
{
    free(z->alpha), free(z->feedback);
    free(z->errors), free(z->loss), free(z->bytes), free(z->wanted), free(z->choice),
        free(z->plan);
    free(z->tensor_names);
    memset(z, 0, sizeof *z);
}

/* What the file's header takes at most for a tensor: name, type, shape and place of each array, three of a matrix
   with codes. */
static int64_t allocation_header(const pvt_tensor_info *t)
{
    return (t->weight ? 3 : 1) * ((int64_t)strlen(t->name) + 85);
}

static int allocation_formats(app *a, allocation *z, const char *list)
{
    char text[800];
    snprintf(text, sizeof text, "%s", list);
    for (char *format = strtok(text, ","); format; format = strtok(NULL, ",")) {
        if (z->n == ALLOCATE_FORMATS) return fail(a, "allocate takes at most %d formats", ALLOCATE_FORMATS);
        TRY(a, pvt_format_parse(a->ctx, format, &z->formats[z->n]));
        pvt_format_text(&z->formats[z->n], z->names[z->n]);
        z->n++;
    }
    return z->n ? 0 : fail(a, "--formats names none");
}

/* Embedding and head stay dense: a choice which is theirs alone, unless --formats offers it to all. */
static int allocation_keep(app *a, allocation *z)
{
    for (int j = 0; j < z->n; j++)
        if (strcmp(z->names[j], "dense") == 0) return 0;
    z->kept = z->n++;
    TRY(a, pvt_format_parse(a->ctx, "dense", &z->formats[z->kept]));
    pvt_format_text(&z->formats[z->kept], z->names[z->kept]);
    return 0;
}

static bool allocation_suits(app *a, const pvt_format *format, int64_t i)
{
    pvt_tensor_info t = pvt_model_tensor(a->models[0], i);
    pvt_array arrays[PVT_MAX_ARRAYS];
    int n;
    if (!t.weight) return true;
    if (i == 0 && format->rotation == 2) return false; /* the embedding: its outputs are looked up */
    return pvt_format_arrays(a->ctx, format, t.weight->O, t.weight->I, arrays, &n) == PVT_OK;
}

/* Asked before minutes of measuring: has every tensor a format that it can take? */
static int allocation_check(app *a, const allocation *z)
{
    for (int64_t i = 0; i < pvt_model_tensors(a->models[0]); i++) {
        pvt_tensor_info t = pvt_model_tensor(a->models[0], i);
        bool suits = false;
        for (int j = 0; j < z->n && !suits; j++)
            if (!(z->kept && j == z->kept && t.linear)) suits = allocation_suits(a, &z->formats[j], i);
        if (!suits)
            return fail(a, "none of --formats suits %s: add dense, or one whose groups divide it", t.name);
    }
    return 0;
}

/* Bytes of a file for that matrix in that format: codes of aqlm take whole bytes. */
static int64_t allocation_bytes(app *a, const pvt_format *format, const pvt_tensor_info *t)
{
    pvt_array arrays[PVT_MAX_ARRAYS];
    int64_t bytes = 0;
    int n;
    if (!t->weight || format->kind == PVT_FORMAT_DENSE) return 2 * t->n;
    if (pvt_format_arrays(a->ctx, format, t->weight->O, t->weight->I, arrays, &n) != PVT_OK) return -1;
    for (int k = 0; k < n; k++) {
        int64_t count = 1, row;
        for (int d = 0; d < arrays[k].rank; d++) count *= arrays[k].shape[d];
        row = arrays[k].shape[0] > 0 ? count / arrays[k].shape[0] : 0;
        if (arrays[k].role != PVT_ARRAY_CODE) bytes += 2 * count;
        else if (format->kind == PVT_FORMAT_AQLM) bytes += count * (arrays[k].bits > 8 ? 2 : 1);
        else bytes += arrays[k].shape[0] * ((row * arrays[k].bits + 7) / 8);
    }
    return bytes;
}

/* Asked before minutes of measuring, too: is one of the sizes not below what the smallest formats take? */
static int allocation_check_sizes(app *a, const allocation *z, const double *bits, int n)
{
    double most = 0, params = (double)count_params(a->models[0]);
    int64_t least = 0;
    for (int i = 0; i < n; i++) most = bits[i] > most ? bits[i] : most;
    for (int64_t i = 0; i < pvt_model_tensors(a->models[0]); i++) {
        pvt_tensor_info t = pvt_model_tensor(a->models[0], i);
        int64_t fewest = -1;
        for (int j = 0; j < z->n; j++) {
            bool dense = z->formats[j].kind == PVT_FORMAT_DENSE, table = t.weight && !t.linear;
            if (t.weight && ((z->kept && j == z->kept && t.linear) || (a->o.no_embed && table && !dense))) continue;
            if (!allocation_suits(a, &z->formats[j], i)) continue;
            int64_t bytes = allocation_bytes(a, &z->formats[j], &t);
            if (fewest < 0 || bytes < fewest) fewest = bytes;
        }
        least += fewest < 0 ? 0 : fewest;
        least += allocation_header(&t);
    }
    least += 64;
    if ((double)least <= most * params / 8 + 1e-3) return 0;
    return fail(a, "--bits %.10g: the smallest of --formats make a file of %.3f bits per parameter: give more, or smaller formats",
                most, 8.0 * (double)least / params);
}

/* The format with the largest errors, where calibration matters most; −1: all are dense. */
static int allocation_probe(const allocation *z)
{
    int probe = -1;
    double worst = 0;
    for (int j = 0; j < z->n; j++) {
        double sum = 0;
        for (int64_t i = 0; i < z->tensors; i++) sum += z->errors[i * z->n + j];
        if (sum > worst) worst = sum, probe = j;
    }
    return probe;
}

/* α and errors of the model in slot 0; corpus NULL: without data. calibrated: it will be on such a text. */
static int allocation_measure(app *a, allocation *z, const pvt_corpus *corpus, const pvt_alpha_desc *alpha,
                              bool tables, bool calibrated)
{
    const pvt_model *model = a->models[0];
    size_t n = (size_t)(z->tensors = pvt_model_tensors(model)), all = n * (size_t)z->n;
    z->feedback = (double *)calloc(n, sizeof *z->feedback);
    z->alpha = (double *)calloc(n, sizeof *z->alpha), z->errors = (double *)calloc(all, sizeof *z->errors);
    z->loss = (double *)calloc(all, sizeof *z->loss), z->bytes = (int64_t *)calloc(all, sizeof *z->bytes);
    z->wanted = (bool *)calloc(n, sizeof *z->wanted), z->choice = (int *)calloc(n, sizeof *z->choice);
    z->plan = (pvt_plan *)calloc(n, sizeof *z->plan), z->tensor_names = (char(*)[96])calloc(n, 96);
    if (!z->alpha || !z->feedback || !z->errors || !z->loss || !z->bytes || !z->wanted || !z->choice ||
        !z->plan || !z->tensor_names)
        return fail(a, "out of memory for %lld tensors in %d formats", (long long)z->tensors, z->n);
    z->params = count_params(model);
    for (int64_t i = 0; i < z->tensors; i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        z->wanted[i] = t.weight && (t.linear || tables);
    }
    TRY(a, pvt_model_alpha(model, corpus, alpha, z->alpha));
    TRY(a, pvt_model_errors(model, z->formats, z->n, z->wanted, NULL, z->errors, z->bytes));
    for (int64_t i = 0; i < z->tensors; i++) {
        z->feedback[i] = 1;
        if (z->kept && z->wanted[i]) z->bytes[i * z->n + z->kept] = -1;
    }
    int probe = allocation_probe(z);
    if (corpus && calibrated && probe >= 0)
        TRY(a, pvt_model_feedback(model, corpus, alpha, &z->formats[probe], z->feedback));
    for (int64_t i = 0; i < z->tensors * z->n; i++)
        z->loss[i] = z->alpha[i / z->n] * z->feedback[i / z->n] * z->errors[i];
    return 0;
}

/* The choice for a file of so many bits per number of the model, and its plan. headers: they count. */
static int allocation_choose(app *a, allocation *z, double bits, bool headers)
{
    int64_t header = 64, bytes = 0;
    for (int64_t i = 0; i < z->tensors; i++) {
        pvt_tensor_info t = pvt_model_tensor(a->models[0], i);
        header += allocation_header(&t);
    }
    if (!headers) header = 0;
    int64_t budget = (int64_t)(bits * (double)z->params / 8 + 1e-3) - header; /* bits may be a whole number's */
    TRY(a, pvt_allocate(a->ctx, z->loss, z->bytes, z->tensors, z->n, budget, z->choice, &z->bound));
    z->predicted = 0, z->matrices = 0;
    for (int64_t i = 0; i < z->tensors; i++) {
        pvt_tensor_info t = pvt_model_tensor(a->models[0], i);
        int64_t at = i * z->n + z->choice[i];
        bytes += z->bytes[at], z->predicted += z->loss[at];
        if (!t.weight) continue;
        snprintf(z->tensor_names[z->matrices], sizeof *z->tensor_names, "%s", t.name);
        z->plan[z->matrices].tensor = z->tensor_names[z->matrices];
        z->plan[z->matrices++].format = z->formats[z->choice[i]];
    }
    z->bits = 8.0 * (double)(bytes + header) / (double)z->params;
    return 0;
}

/* ---- the plan's file: {"tensors":{"NAME":"FORMAT", …}} with what else it says of itself ---- */

static int plan_write(app *a, const allocation *z, const char *path)
{
    buffer t = {NULL, 0, 0, false};
    char format[48];
    put_open(&t, NULL, "{");
    put_number(&t, "bits", z->bits), put_number(&t, "predicted_rise", z->predicted);
    put_open(&t, "tensors", "{");
    for (int64_t i = 0; i < z->matrices; i++) {
        if (i) buffer_put(&t, ",", 1);
        buffer_put(&t, "\n", 1);
        pvt_format_text(&z->plan[i].format, format);
        put_text(&t, z->plan[i].tensor, format);
    }
    buffer_put(&t, "\n", 1);
    put_close(&t, "}"), put_close(&t, "}");
    buffer_put(&t, "\n", 1);
    pvt_result result = t.failed ? PVT_ERR_MEMORY : pvt_file_write(a->ctx, path, t.data, t.size);
    bool failed = t.failed;
    buffer_free(&t);
    if (failed) return fail(a, "out of memory for the plan");
    TRY(a, result);
    return 0;
}

/* "…" at *s, which moves behind it; its end becomes a zero. NULL: there is none, or one with an escape. */
static char *plan_string(char **s)
{
    char *at = *s + strspn(*s, " \t\r\n");
    if (*at != '"') return NULL;
    size_t n = strcspn(at + 1, "\"\\");
    if (at[1 + n] != '"') return NULL;
    at[1 + n] = 0;
    *s = at + 2 + n;
    return at + 1;
}
static bool plan_sign(char **s, char sign)
{
    *s += strspn(*s, " \t\r\n");
    if (**s != sign) return false;
    ++*s;
    return true;
}

/* The plan in a file, in memory of the app. */
static int plan_read(app *a, const char *path, const pvt_plan **plan, int64_t *n)
{
    int64_t bytes;
    char *text = (char *)(a->buffers[5] = read_text(path, &bytes));
    if (!text) return fail(a, "%s: %s", path, strerror(errno));
    char *at = strstr(text, "\"tensors\"");
    int64_t most = 1;
    for (const char *c = text; *c; c++) most += *c == ',';
    pvt_plan *list = (pvt_plan *)(a->buffers[6] = calloc((size_t)most, sizeof *list));
    if (!list) return fail(a, "out of memory for %s", path);
    *n = 0;
    bool good = at != NULL;
    if (good) at += strlen("\"tensors\"");
    good = good && plan_sign(&at, ':') && plan_sign(&at, '{');
    bool closed = false;
    for (bool more = good; more; closed = !more && plan_sign(&at, '}')) {
        char *name = plan_string(&at), *format = name && plan_sign(&at, ':') ? plan_string(&at) : NULL;
        good = format && *n < most;
        if (!good) break;
        list[*n].tensor = name;
        if (pvt_format_parse(a->ctx, format, &list[*n].format) != PVT_OK)
            return fail(a, "%s: %s: %s", path, name, pvt_ctx_error(a->ctx));
        ++*n;
        more = plan_sign(&at, ',');
    }
    if (!good || !closed || *n == 0)
        return fail(a,
                    "%s is no plan: {\"tensors\": {\"NAME\": \"FORMAT\", …}}, as pvtune allocate writes it, "
                    "is wanted",
                    path);
    *plan = list;
    return 0;
}

/* ---- the verb ---- */

/* One plan: what it says of itself, and (for people) how much of the model has each format. */
static void allocation_report(app *a, const allocation *z, const char *path)
{
    buffer *t = &a->json;
    put_text(t, "plan", path);
    put_number(t, "bits", z->bits), put_number(t, "predicted_rise", z->predicted),
        put_number(t, "bound", z->bound);
    put_open(t, "tensors", "[");
    for (int64_t i = 0; i < z->tensors; i++) {
        pvt_tensor_info info = pvt_model_tensor(a->models[0], i);
        int64_t at = i * z->n + z->choice[i];
        if (!info.weight) continue;
        put_open(t, NULL, "{");
        put_text(t, "name", info.name), put_text(t, "format", z->names[z->choice[i]]);
        put_number(t, "alpha", z->alpha[i]), put_number(t, "feedback", z->feedback[i]);
        put_number(t, "error", z->errors[at]),
            put_int(t, "bytes", z->bytes[at]);
        put_close(t, "}");
    }
    put_close(t, "]");
    if (a->o.json) return;
    printf("%-20s %8s %12s %8s %10s\n", "format", "matrices", "numbers", "bits", "mean t^2");
    for (int j = 0; j < z->n; j++) {
        int64_t count = 0, numbers = 0, bytes = 0;
        double error = 0;
        for (int64_t i = 0; i < z->tensors; i++) {
            pvt_tensor_info info = pvt_model_tensor(a->models[0], i);
            if (!info.weight || z->choice[i] != j) continue;
            count++, numbers += info.n, bytes += z->bytes[i * z->n + j], error += z->errors[i * z->n + j];
        }
        if (count)
            printf("%-20s %8lld %12lld %8.3f %10.5f\n", z->names[j], (long long)count, (long long)numbers,
                   8.0 * (double)bytes / (double)numbers, error / (double)count);
    }
}

enum { ALLOCATE_SIZES = 32, ALLOCATE_PATH = 4096 };

/* The sizes that --bits lists, and where the plan of each goes: its text in place of the % of --output. */
typedef struct allocation_sizes {
    int n;
    double bits[ALLOCATE_SIZES];
    char (*paths)[ALLOCATE_PATH]; /* [ALLOCATE_SIZES] */
} allocation_sizes;

static int allocation_path(app *a, const char *bits, int length, char path[ALLOCATE_PATH])
{
    const char *output = a->o.output, *mark = strchr(output, '%');
    int before = mark ? (int)(mark - output) : (int)strlen(output);
    int n = mark ? snprintf(path, ALLOCATE_PATH, "%.*s%.*s%s", before, output, length, bits, mark + 1)
                 : snprintf(path, ALLOCATE_PATH, "%s", output);
    if (n >= ALLOCATE_PATH) return fail(a, "--output: longer than %d bytes", ALLOCATE_PATH - 1);
    return check_writable(a, path);
}

static int allocation_read_sizes(app *a, allocation_sizes *sizes)
{
    char *end;
    for (const char *text = a->o.bits;; text = end + 1) {
        double bits = strtod(text, &end);
        if (end == text || (*end && *end != ',') || !(bits >= 0.1 && bits <= 16)) {
            fail(a, "--bits %s: numbers from 0.1 to 16 with commas between them are wanted", a->o.bits);
            return 2;
        }
        if (sizes->n == ALLOCATE_SIZES) return fail(a, "--bits takes at most %d sizes", ALLOCATE_SIZES);
        DO(allocation_path(a, text, (int)(end - text), sizes->paths[sizes->n]));
        for (int i = 0; i < sizes->n; i++)
            if (strcmp(sizes->paths[i], sizes->paths[sizes->n]) == 0 && strchr(a->o.output, '%'))
                return fail(a, "--bits has %.*s twice", (int)(end - text), text);
        sizes->bits[sizes->n++] = bits;
        if (!*end) break;
    }
    if (sizes->n > 1 && !strchr(a->o.output, '%'))
        return fail(a, "several sizes make several plans: put a %% for the bits into --output, as in plan-%%.json");
    return 0;
}

/* The plan for one size, written and reported. */
static int allocation_plan(app *a, allocation *z, double bits, const char *path)
{
    DO(allocation_choose(a, z, bits, true));
    DO(plan_write(a, z, path));
    meter_clear(&a->meter);
    put_open(&a->json, NULL, "{");
    allocation_report(a, z, path);
    put_close(&a->json, "}");
    if (!a->o.json)
        printf("\nA file of %.3f bits per parameter, headers counted; loss predicted to rise by %.4f "
               "nats per token\n"
               "(no choice gets below %.4f). Plan: %s; next: pvtune quantize %s --plan %s … %.1f s.\n\n",
               z->bits, z->predicted, z->bound, path, a->o.model, path, elapsed(a));
    return 0;
}

/* What is measured once serves every size. */
static int allocation_plans(app *a, allocation *z, const allocation_sizes *sizes, const pvt_alpha_desc *alpha)
{
    DO(load_model(a, 0, a->o.model));
    if (a->o.calib) DO(load_text(a, 0, a->o.calib, a->models[0]));
    DO(allocation_formats(a, z, a->o.formats));
    if (a->o.no_embed) DO(allocation_keep(a, z));
    DO(allocation_check(a, z));
    DO(allocation_check_sizes(a, z, sizes->bits, sizes->n));
    DO(allocation_measure(a, z, a->o.calib ? &a->corpora[0] : NULL, alpha, !a->o.no_embed, true));
    put_open(&a->json, NULL, "{");
    put_open(&a->json, "plans", "[");
    int status = 0, made = 0;
    for (int i = 0; i < sizes->n; i++) {
        int plan = allocation_plan(a, z, sizes->bits[i], sizes->paths[i]);
        if (status == 0) status = plan; /* a size too small for these formats keeps no other from its plan */
        made += plan == 0;
    }
    if (made == 0) return status;
    put_close(&a->json, "]");
    put_number(&a->json, "seconds", elapsed(a));
    put_close(&a->json, "}");
    int written = put_result(a);
    return status ? status : written;
}

static int verb_allocate(app *a)
{
    const options *o = &a->o;
    allocation z;
    allocation_sizes sizes;
    pvt_alpha_desc alpha;
    memset(&z, 0, sizeof z), memset(&alpha, 0, sizeof alpha), memset(&sizes, 0, sizeof sizes);
    bool noise = o->alpha ? strcmp(o->alpha, "noise") == 0 : !o->calib;
    if (!noise && !o->calib) return fail(a, "--alpha gradient needs --calib TEXT; noise does without");
    alpha.method = noise ? PVT_ALPHA_NOISE : PVT_ALPHA_GRADIENT;
    alpha.samples = o->samples, alpha.ctx = o->ctx;
    if (!o->bits) {
        fail(a, "--bits B is missing; see pvtune help allocate");
        return 2;
    }
    sizes.paths = (char(*)[ALLOCATE_PATH])calloc(ALLOCATE_SIZES, ALLOCATE_PATH);
    if (!sizes.paths) return fail(a, "out of memory for %d paths", ALLOCATE_SIZES);
    int status = allocation_read_sizes(a, &sizes);
    if (status == 0) status = allocation_plans(a, &z, &sizes, &alpha);
    allocation_free(&z), free(sizes.paths);
    return status;
}

#endif
