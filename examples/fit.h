/*  pvtune fit: matrices without a model. Every matrix of a safetensors file becomes codes, alone or as the
    inputs that are given for it weigh its error; the result holds the arrays of each and what they stand for
    in full, so that any software can use it, and be held against this one.

    Included by pvtune.c, whose app, progress and JSON it uses. */
#ifndef FIT_H
#define FIT_H

enum {
    FIT_ROWS = 512, /* of inputs, decoded at a time */
    FIT_NAME = 200  /* bytes of a name, as pvt_weights_save allows */
};

typedef struct fit_matrix {
    pvt_array source;
    int64_t tensor; /* its number in the file: random choices follow it, whatever is skipped */
    int64_t inputs; /* number of the tensor that holds its inputs; −1: none */
    pvt_weight weight;
    pvt_fit_stats stats;
} fit_matrix;

typedef struct fit_job {
    pvt_tensors *file, *inputs;
    pvt_format format;
    fit_matrix *matrices;
    pvt_named_weight *named;
    int64_t n, done;
    pvt_real *H;     /* XᵀX of … */
    int64_t H_of;    /* … this tensor; −1: of none yet */
    int64_t largest; /* bytes that the program held beside the library at most */
    buffer skipped;  /* names, as JSON */
} fit_job;

static void fit_free(fit_job *job)
{
    for (int64_t i = 0; i < job->n; i++) pvt_weight_free(&job->matrices[i].weight);
    free(job->matrices);
    free(job->named);
    free(job->H);
    buffer_free(&job->skipped);
    pvt_tensors_close(job->file);
    pvt_tensors_close(job->inputs);
}

static bool fit_is_float(pvt_dtype dtype)
{
    return dtype == PVT_F32 || dtype == PVT_F16 || dtype == PVT_BF16;
}

/* Whether the name contains one of the patterns, which commas separate. */
static bool fit_name_in(const char *patterns, const char *name)
{
    while (patterns && *patterns) {
        size_t n = strcspn(patterns, ",");
        for (const char *at = name; n && *at; at++)
            if (strncmp(at, patterns, n) == 0) return true;
        patterns += n + (patterns[n] == ',');
    }
    return false;
}

/* Why a tensor is left out; NULL: it is not. */
static const char *fit_why_skipped(const app *a, const pvt_array *t)
{
    if (fit_name_in(a->o.skip, t->name)) return "--skip";
    if (t->rank != 2) return "not a matrix";
    if (!fit_is_float(t->dtype)) return "not f32, f16 or bf16";
    return t->bytes == 0 ? "empty" : NULL;
}

/* The tensor of a matrix' inputs [n, in], or a reason to refuse. */
static int fit_find_inputs(app *a, const fit_job *job, fit_matrix *m)
{
    m->inputs = pvt_tensors_find(job->inputs, m->source.name);
    if (m->inputs < 0) m->inputs = pvt_tensors_find(job->inputs, "inputs");
    if (m->inputs < 0)
        return fail(a, "%s: holds neither a tensor %s nor one called inputs", a->o.inputs, m->source.name);
    pvt_array x = pvt_tensors_get(job->inputs, m->inputs);
    if (x.rank == 2 && x.shape[0] > 0 && x.shape[1] == m->source.shape[1] && fit_is_float(x.dtype)) return 0;
    return fail(a, "%s: the inputs %s of %s must be f32, f16 or bf16 [n, %lld]", a->o.inputs, x.name,
                m->source.name, (long long)m->source.shape[1]);
}

/* What will be fit, and all that can be refused before the work. */
static int fit_list(app *a, fit_job *job)
{
    int64_t count = pvt_tensors_count(job->file);
    job->matrices = (fit_matrix *)calloc((size_t)count + 1, sizeof *job->matrices);
    job->named = (pvt_named_weight *)calloc((size_t)count + 1, sizeof *job->named);
    if (!job->matrices || !job->named)
        return fail(a, "out of memory for a list of %lld tensors", (long long)count);
    for (int64_t i = 0; i < count; i++) {
        fit_matrix *m = &job->matrices[job->n];
        pvt_array arrays[PVT_MAX_ARRAYS], t = pvt_tensors_get(job->file, i);
        const char *why = fit_why_skipped(a, &t);
        int n;
        if (why) {
            note(a, "skipped: %s (%s)", t.name, why);
            put_text(&job->skipped, NULL, t.name);
            continue;
        }
        if (t.name[0] == 0 || strlen(t.name) > FIT_NAME)
            return fail(a, "%s: the name \"%.60s\" is empty or longer than %d bytes; leave it out with "
                        "--skip", a->o.model, t.name, FIT_NAME);
        if (pvt_format_arrays(a->ctx, &job->format, t.shape[0], t.shape[1], arrays, &n) != PVT_OK)
            return fail(a, "%s: %s; or leave it out with --skip", t.name, pvt_ctx_error(a->ctx));
        m->source = t;
        m->tensor = i;
        m->inputs = -1;
        if (job->inputs) DO(fit_find_inputs(a, job, m));
        job->named[job->n].name = t.name;
        job->named[job->n++].weight = &m->weight;
    }
    if (job->n == 0) return fail(a, "%s: holds no f32, f16 or bf16 matrix to fit", a->o.model);
    return 0;
}

/* Rows r0 … r0+n−1 of a matrix in a file, in pvt_real. */
static pvt_result fit_decode(app *a, const pvt_array *t, int64_t r0, int64_t n, pvt_real *out)
{
    const char *data = (const char *)t->data + r0 * (t->bytes / t->shape[0]);
    pvt_weight rows;
    pvt_result result = pvt_weight_borrow(a->ctx, data, t->dtype, n, t->shape[1], &rows);
    if (result == PVT_OK) pvt_weight_dequantize(&rows, out);
    return result;
}

/* job->H = XᵀX of the matrix' inputs, unless it is that already. */
static int fit_hessian(app *a, fit_job *job, const fit_matrix *m)
{
    pvt_result result = PVT_OK;
    int64_t I = m->source.shape[1];
    if (m->inputs < 0 || job->H_of == m->inputs) return 0;
    pvt_array x = pvt_tensors_get(job->inputs, m->inputs);
    free(job->H);
    job->H = (pvt_real *)calloc((size_t)I, (size_t)I * sizeof *job->H);
    pvt_real *rows = (pvt_real *)calloc((size_t)I, FIT_ROWS * sizeof *rows);
    for (int64_t r = 0; r < x.shape[0] && job->H && rows && result == PVT_OK; r += FIT_ROWS) {
        int64_t n = smaller(FIT_ROWS, x.shape[0] - r);
        result = fit_decode(a, &x, r, n, rows);
        if (result == PVT_OK) pvt_linear_backward(a->ctx, NULL, job->H, NULL, rows, rows, NULL, n, I, I);
    }
    if (!rows) result = PVT_ERR_MEMORY;
    free(rows);
    if (!job->H || result == PVT_ERR_MEMORY)
        return fail(a, "out of memory for XᵀX, %lld x %lld, of the inputs of %s", (long long)I, (long long)I,
                    m->source.name);
    TRY(a, result);
    job->H_of = m->inputs;
    return 0;
}

static void fit_report(app *a, const fit_job *job, const char *name, double error)
{
    pvt_progress p;
    p.phase = "fitting";
    p.item = name;
    p.done = job->done;
    p.total = job->n;
    p.unit = "matrices";
    p.value = error;
    on_progress(a, &p);
}

/* One matrix; *result is the library's, for a stop on request is no failure here. */
static int fit_one(app *a, fit_job *job, fit_matrix *m, pvt_result *result)
{
    const options *o = &a->o;
    int64_t O = m->source.shape[0], I = m->source.shape[1];
    pvt_fit_desc desc;
    DO(fit_hessian(a, job, m));
    pvt_real *W = (pvt_real *)calloc((size_t)O, (size_t)I * sizeof *W);
    if (!W) return fail(a, "out of memory for %s", m->source.name);
    int64_t bytes = (O * I + (job->H ? I * (I + FIT_ROWS) : 0)) * (int64_t)sizeof *W;
    if (bytes > job->largest) job->largest = bytes;
    memset(&desc, 0, sizeof desc);
    desc.name = m->source.name;
    desc.stream = (uint64_t)m->tensor;
    desc.epochs = (int)o->epochs;
    desc.tolerance = o->tolerance;
    desc.target = o->target;
    desc.beam = (int)o->beam;
    fit_method(o, &desc);
    *result = fit_decode(a, &m->source, 0, O, W);
    if (*result == PVT_OK)
        *result = pvt_weight_fit(a->ctx, W, O, I, m->inputs < 0 ? NULL : job->H, &job->format, &desc,
                                 &m->stats, &m->weight);
    free(W);
    return 0;
}

static void fit_put(app *a, const fit_matrix *m)
{
    put_open(&a->json, NULL, "{");
    put_text(&a->json, "name", m->source.name);
    put_number(&a->json, "error", m->stats.error);
    put_int(&a->json, "epochs", m->stats.epochs);
    put_number(&a->json, "seconds", m->stats.seconds);
    put_close(&a->json, "}");
}

/* All of them, until one fails or a stop is asked for: *result. */
static int fit_all(app *a, fit_job *job, pvt_result *result)
{
    *result = PVT_OK;
    fit_report(a, job, NULL, NAN);
    while (job->done < job->n && *result == PVT_OK) {
        fit_matrix *m = &job->matrices[job->done];
        DO(fit_one(a, job, m, result));
        if (*result != PVT_OK) return 0;
        fit_put(a, m);
        job->done++;
        fit_report(a, job, m->source.name, m->stats.error);
        if (stop_asked && job->done < job->n) *result = PVT_ERR_CANCELLED;
    }
    return 0;
}

static int fit_finish(app *a, fit_job *job)
{
    double bits = 0, weights = 0, error = 0;
    char format[48], peak[32];
    int64_t bytes = peak_bytes(a) + job->largest;
    pvt_format_text(&job->format, format);
    for (int64_t i = 0; i < job->n; i++) {
        const fit_matrix *m = &job->matrices[i];
        double n = (double)m->weight.O * (double)m->weight.I;
        bits += pvt_weight_bits(&m->weight) * n;
        weights += n;
        error += m->stats.error / (double)job->n;
        if (!a->o.json)
            printf("%-52s %7lld × %-7lld error %.5f\n", m->source.name, (long long)m->weight.O,
                   (long long)m->weight.I, m->stats.error);
    }
    put_close(&a->json, "]");
    put_open(&a->json, "skipped", "[");
    buffer_put(&a->json, job->skipped.data, job->skipped.size);
    put_close(&a->json, "]");
    put_number(&a->json, "bits_per_weight", bits / weights);
    put_number(&a->json, "seconds", elapsed(a));
    put_int(&a->json, "peak_bytes", bytes);
    put_close(&a->json, "}");
    if (job->skipped.failed) return fail(a, "out of memory for the result");
    if (!a->o.json)
        printf("%s: %lld %s at %.3f bits; mean relative error %.4f, %.1f s, peak %s\nwritten to %s\n", format,
               (long long)job->n, job->n == 1 ? "matrix" : "matrices", bits / weights, error, elapsed(a),
               human_bytes((double)bytes, peak), a->o.output);
    return put_result(a);
}

static int fit_run(app *a, fit_job *job)
{
    pvt_result result;
    char format[48];
    TRY(a, pvt_format_parse(a->ctx, a->o.format, &job->format));
    DO(check_writable(a, a->o.output));
    TRY(a, pvt_tensors_open(a->ctx, a->o.model, &job->file));
    if (a->o.inputs) TRY(a, pvt_tensors_open(a->ctx, a->o.inputs, &job->inputs));
    DO(fit_list(a, job));
    pvt_format_text(&job->format, format);
    put_open(&a->json, NULL, "{");
    put_text(&a->json, "format", format);
    put_open(&a->json, "layers", "[");
    DO(fit_all(a, job, &result));
    if (result != PVT_OK && result != PVT_ERR_CANCELLED) return fail_result(a, result);
    if (result == PVT_ERR_CANCELLED && job->done == 0)
        return fail(a, "stopped on request before the first matrix was done; nothing was written");
    TRY(a, pvt_weights_save(a->o.output, job->named, job->done, true));
    if (result == PVT_ERR_CANCELLED)
        return fail(a, "stopped on request; %lld of %lld matrices were done and are in %s",
                    (long long)job->done, (long long)job->n, a->o.output);
    meter_clear(&a->meter);
    return fit_finish(a, job);
}

static int verb_fit(app *a)
{
    fit_job job;
    memset(&job, 0, sizeof job);
    job.H_of = -1;
    int status = fit_run(a, &job);
    fit_free(&job);
    return status;
}

#endif
