/*  pvtune allocate: which tensor gets how many bits (HIGGS, arXiv 2411.17525). What an error in each tensor costs
    (pvt_model_alpha), what error each format makes there (pvt_model_errors), and the best choice for a file of
    so many bits (pvt_allocate) become a plan, which pvtune quantize --plan follows.

    Included by pvtune.c, whose app, progress and JSON it uses. */
#ifndef ALLOCATE_H
#define ALLOCATE_H

enum { ALLOCATE_FORMATS = 16 };

typedef struct allocation {
    int64_t tensors, matrices, params;
    pvt_format formats[ALLOCATE_FORMATS];
    char names[ALLOCATE_FORMATS][48];
    int n;
    double *alpha;   /* [tensors] */
    double *errors;  /* [tensors, n] t² */
    double *loss;    /* [tensors, n] α·t² */
    int64_t *bytes;  /* [tensors, n] of a file */
    bool *wanted;    /* [tensors] may get codes */
    int *choice;     /* [tensors] */
    pvt_plan *plan;  /* [matrices] */
    char (*tensor_names)[96];
    double bound, predicted, bits;  /* of the choice: in nats; bits of the file per number of the model */
} allocation;

static void allocation_free(allocation *z)
{
    free(z->alpha), free(z->errors), free(z->loss), free(z->bytes), free(z->wanted), free(z->choice),
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

/* α and errors of the model in slot 0; corpus NULL: without data. */
static int allocation_measure(app *a, allocation *z, const pvt_corpus *corpus, const pvt_alpha_desc *alpha,
                              bool tables)
{
    const pvt_model *model = a->models[0];
    size_t n = (size_t)(z->tensors = pvt_model_tensors(model)), all = n * (size_t)z->n;
    z->alpha = (double *)calloc(n, sizeof *z->alpha), z->errors = (double *)calloc(all, sizeof *z->errors);
    z->loss = (double *)calloc(all, sizeof *z->loss), z->bytes = (int64_t *)calloc(all, sizeof *z->bytes);
    z->wanted = (bool *)calloc(n, sizeof *z->wanted), z->choice = (int *)calloc(n, sizeof *z->choice);
    z->plan = (pvt_plan *)calloc(n, sizeof *z->plan), z->tensor_names = (char(*)[96])calloc(n, 96);
    if (!z->alpha || !z->errors || !z->loss || !z->bytes || !z->wanted || !z->choice || !z->plan ||
        !z->tensor_names)
        return fail(a, "out of memory for %lld tensors in %d formats", (long long)z->tensors, z->n);
    z->params = count_params(model);
    for (int64_t i = 0; i < z->tensors; i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        z->wanted[i] = t.weight && (t.linear || tables);
    }
    TRY(a, pvt_model_alpha(model, corpus, alpha, z->alpha));
    TRY(a, pvt_model_errors(model, z->formats, z->n, z->wanted, NULL, z->errors, z->bytes));
    for (int64_t i = 0; i < z->tensors * z->n; i++) z->loss[i] = z->alpha[i / z->n] * z->errors[i];
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
    for (int64_t i = 0; i < z->tensors; i++) {
        bool suits = false;
        for (int j = 0; j < z->n; j++) suits = suits || z->bytes[i * z->n + j] >= 0;
        if (!suits)
            return fail(a, "none of --formats suits %s: add dense, or one whose groups divide it",
                        pvt_model_tensor(a->models[0], i).name);
    }
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

static int plan_write(app *a, const allocation *z)
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
    pvt_result result = t.failed ? PVT_ERR_MEMORY : pvt_file_write(a->ctx, a->o.output, t.data, t.size);
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

static void allocation_report(app *a, const allocation *z)
{
    buffer *t = &a->json;
    put_number(t, "bits", z->bits), put_number(t, "predicted_rise", z->predicted),
        put_number(t, "bound", z->bound);
    put_open(t, "tensors", "[");
    for (int64_t i = 0; i < z->tensors; i++) {
        pvt_tensor_info info = pvt_model_tensor(a->models[0], i);
        int64_t at = i * z->n + z->choice[i];
        if (!info.weight) continue;
        put_open(t, NULL, "{");
        put_text(t, "name", info.name), put_text(t, "format", z->names[z->choice[i]]);
        put_number(t, "alpha", z->alpha[i]), put_number(t, "error", z->errors[at]),
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

static int verb_allocate(app *a)
{
    const options *o = &a->o;
    allocation z;
    pvt_alpha_desc alpha;
    memset(&z, 0, sizeof z), memset(&alpha, 0, sizeof alpha);
    bool noise = o->alpha ? strcmp(o->alpha, "noise") == 0 : !o->calib;
    if (!noise && !o->calib) return fail(a, "--alpha gradient needs --calib TEXT; noise does without");
    alpha.method = noise ? PVT_ALPHA_NOISE : PVT_ALPHA_GRADIENT;
    alpha.samples = o->samples, alpha.ctx = o->ctx;
    if (o->bits == 0) {
        fail(a, "--bits B is missing; see pvtune help allocate");
        return 2;
    }
    DO(check_writable(a, o->output));
    DO(load_model(a, 0, o->model));
    if (o->calib) DO(load_text(a, 0, o->calib, a->models[0]));
    int status = allocation_formats(a, &z, o->formats);
    if (status == 0)
        status = allocation_measure(a, &z, o->calib ? &a->corpora[0] : NULL, &alpha, !o->no_embed);
    if (status == 0) status = allocation_choose(a, &z, o->bits, true);
    if (status == 0) status = plan_write(a, &z);
    meter_clear(&a->meter);
    if (status == 0) {
        put_open(&a->json, NULL, "{");
        allocation_report(a, &z);
        put_text(&a->json, "plan", o->output), put_number(&a->json, "seconds", elapsed(a));
        put_close(&a->json, "}");
        if (!o->json)
            printf("\nA file of %.3f bits per parameter, headers counted; loss predicted to rise by %.4f "
                   "nats per token\n"
                   "(no choice gets below %.4f). Plan: %s; next: pvtune quantize %s --plan %s … %.1f s.\n",
                   z.bits, z.predicted, z.bound, o->output, o->model, o->output, elapsed(a));
        status = put_result(a);
    }
    allocation_free(&z);
    return status;
}

#endif
