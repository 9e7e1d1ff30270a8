/*  Zero-shot tasks of pvtune eval: every --task FILE is scored, one table printed. A part of pvtune.c, which
    includes it once. */

/* What the papers on two bits average: accuracies of these five. */
static const char *const papers_tasks[] = {"arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande"};
enum { PAPERS_TASKS = sizeof papers_tasks / sizeof *papers_tasks };

typedef struct task_result {
    char name[64];
    pvt_score score, beside;   /* of the model, of the one beside it */
    double difference[2][2];   /* the first minus the second: acc, acc_norm, each with its standard error */
} task_result;

/* "0.4321 ± 0.0123" in columns; a dash where there is none. */
static const char *task_figure(double mean, double error, char out[48])
{
    if (mean != mean) return "               -";
    int n = snprintf(out, 48, "%9.4f", mean);
    snprintf(out + n, 48 - (size_t)n, error == error ? " ± %.4f" : "         ", error);
    return out;
}

/* The mean accuracy of the papers' five, NaN when one of them is missing. */
static double task_average(const task_result *results, int n, bool beside)
{
    double sum = 0;
    for (int k = 0; k < PAPERS_TASKS; k++) {
        int i = 0;
        while (i < n && strcmp(results[i].name, papers_tasks[k]) != 0) i++;
        if (i == n) return NAN;
        sum += (beside ? results[i].beside.acc : results[i].score.acc) / PAPERS_TASKS;
    }
    return sum;
}

static void task_log(buffer *t, const pvt_task *task, const pvt_answer *answers, const bool *right)
{
    for (int64_t i = 0; i < task->n; i++) {
        const pvt_document *d = &task->documents[i];
        put_open(t, NULL, "{");
        put_text(t, "task", task->name), put_int(t, "document", i), put_int(t, "gold", d->gold);
        put_open(t, "loglik", "[");
        for (int64_t k = 0; k < d->n; k++) put_number(t, NULL, answers[d->first + k].loglik);
        put_close(t, "]");
        put_open(t, "greedy", "[");
        for (int64_t k = 0; k < d->n; k++) put_int(t, NULL, answers[d->first + k].greedy);
        put_close(t, "]");
        put_int(t, "acc", right[i]);
        if (task->norm) put_int(t, "acc_norm", right[task->n + i]);
        buffer_put(t, "}\n", 2);
    }
}

/* Mean of x − y over documents, and its standard error: of what differs, not of the documents. */
static void task_difference(const bool *x, const bool *y, int64_t n, double out[2])
{
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] - (double)y[i];
    out[0] = sum / (double)n;
    for (int64_t i = 0; i < n; i++) {
        double off = (double)x[i] - (double)y[i] - out[0];
        squares += off * off;
    }
    out[1] = n > 1 ? sqrt(squares / (double)(n - 1) / (double)n) : NAN;
}

static int task_run(app *a, int model, const pvt_task *task, pvt_answer *answers, bool *right, pvt_score *score)
{
    pvt_score_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.answers = answers, desc.right = right, desc.right_norm = right + task->n;
    pvt_result scored = pvt_task_score(a->models[model], task, &desc, score);
    if (scored == PVT_ERR_CANCELLED)
        return fail(a, "stopped on request; no figure of %s, for it would be of fewer documents than asked", task->name);
    TRY(a, scored);
    if (score->truncated > 0)
        note(a, "%s: %lld prompts were longer than the model's context and lost their beginning", task->name,
             (long long)score->truncated);
    return 0;
}

/* Scores one task, whose memory the caller frees. */
static int task_score(app *a, pvt_task *task, task_result *result, buffer *log)
{
    pvt_answer *answers = (pvt_answer *)(a->buffers[1] = calloc((size_t)task->n_choices, sizeof *answers));
    bool *right = (bool *)(a->buffers[2] = calloc(4 * (size_t)task->n, sizeof *right)), *other = right + 2 * task->n;
    if (!answers || !right) return fail(a, "out of memory for %lld choices", (long long)task->n_choices);
    memset(result, 0, sizeof *result);
    memcpy(result->name, task->name, sizeof result->name);
    DO(task_run(a, 0, task, answers, right, &result->score));
    if (a->o.log) task_log(log, task, answers, right);
    if (a->o.beside) {
        DO(task_run(a, 1, task, answers, other, &result->beside));
        for (int k = 0; k < 2; k++) task_difference(right + k * task->n, other + k * task->n, task->n, result->difference[k]);
    }
    free(a->buffers[1]), a->buffers[1] = NULL;
    free(a->buffers[2]), a->buffers[2] = NULL;
    return 0;
}

/* --task [NAME=]FILE; a file whose name has a '=' is FILE when it is there. */
static int task_read(app *a, const char *text, pvt_task *task)
{
    char name[64], what[160];
    pvt_task_desc desc;
    const char *equals = strchr(text, '='), *path = text;
    const pvt_tokenizer *tokenizer = pvt_model_tokenizer(a->models[0]);
    memset(&desc, 0, sizeof desc);
    desc.limit = a->o.limit;
    if (equals && equals > text && equals - text < (int)sizeof name && access(text, F_OK) != 0) {
        snprintf(name, sizeof name, "%.*s", (int)(equals - text), text);
        desc.name = name, path = equals + 1;
    }
    if (!tokenizer) return fail(a, "%s has no tokenizer; give one with --tokenizer FILE", a->o.model);
    snprintf(what, sizeof what, "reading %s", path);
    meter_doing(&a->meter, what);
    TRY(a, pvt_task_load(a->ctx, path, tokenizer, &desc, task));
    meter_doing(&a->meter, "preparing");
    return 0;
}

static void put_score(buffer *t, const pvt_score *s)
{
    put_number(t, "acc", s->acc), put_number(t, "acc_stderr", s->acc_stderr);
    if (s->acc_norm == s->acc_norm) put_number(t, "acc_norm", s->acc_norm), put_number(t, "acc_norm_stderr", s->acc_norm_stderr);
    if (s->ppl == s->ppl) put_number(t, "ppl", s->ppl);
    put_int(t, "n", s->n), put_int(t, "truncated", s->truncated), put_number(t, "seconds", s->seconds);
}

static void task_row(buffer *t, const char *name, const pvt_score *s)
{
    char of_acc[48], of_norm[48];
    buffer_printf(t, "%-20s %9lld %s %s", name, (long long)s->n, task_figure(s->acc, s->acc_stderr, of_acc),
           task_figure(s->acc_norm, s->acc_norm_stderr, of_norm));
    if (s->ppl == s->ppl) buffer_printf(t, "   perplexity %.4g", s->ppl);
    buffer_put(t, "\n", 1);
}

static void task_json(app *a, const task_result *results, int n)
{
    double average = task_average(results, n, false), beside = task_average(results, n, true);
    put_open(&a->json, "tasks", "{");
    for (int i = 0; i < n; i++) {
        const task_result *r = &results[i];
        put_open(&a->json, r->name, "{");
        put_score(&a->json, &r->score);
        if (a->o.beside) {
            put_open(&a->json, "beside", "{");
            put_score(&a->json, &r->beside);
            put_close(&a->json, "}");
            put_number(&a->json, "acc_difference", r->difference[0][0]);
            put_number(&a->json, "acc_difference_stderr", r->difference[0][1]);
            if (r->score.acc_norm == r->score.acc_norm) {
                put_number(&a->json, "acc_norm_difference", r->difference[1][0]);
                put_number(&a->json, "acc_norm_difference_stderr", r->difference[1][1]);
            }
        }
        put_close(&a->json, "}");
    }
    put_close(&a->json, "}");
    if (average == average) put_number(&a->json, "average", average);
    if (average == average && a->o.beside) put_number(&a->json, "average_beside", beside);
}

static void task_table(app *a, const task_result *results, int n)
{
    double average = task_average(results, n, false);
    buffer *t = &a->table_lines;
    buffer_printf(t, "%-20s %9s %16s %17s\n", "task", "documents", "acc       ", "acc_norm    ");
    for (int i = 0; i < n; i++) {
        const task_result *r = &results[i];
        char of_acc[48], of_norm[48];
        task_row(t, r->name, &r->score);
        if (!a->o.beside) continue;
        task_row(t, "  beside it", &r->beside);
        bool norm = r->score.acc_norm == r->score.acc_norm;
        buffer_printf(t, "%-20s %9s %s %s\n", "  difference", "", task_figure(r->difference[0][0], r->difference[0][1], of_acc),
               task_figure(norm ? r->difference[1][0] : NAN, r->difference[1][1], of_norm));
    }
    if (average != average) return;
    buffer_printf(t, "%-20s %9s %9.4f\n", "average of the five", "", average);
    if (a->o.beside) buffer_printf(t, "%-20s %9s %9.4f\n", "  beside it", "", task_average(results, n, true));
}

static int eval_tasks(app *a, buffer *log)
{
    task_result *results = (task_result *)(a->buffers[0] = realloc(a->buffers[0], OPTION_LIST_MOST * sizeof *results));
    if (!results) return fail(a, "out of memory for the tasks");
    for (int i = 0; i < a->o.tasks.n; i++) {
        pvt_task task;
        memset(&task, 0, sizeof task);
        int status = task_read(a, a->o.tasks.at[i], &task);
        for (int k = 0; k < i && status == 0; k++)
            if (strcmp(results[k].name, task.name) == 0)
                status = fail(a, "two tasks are called %s; name one of them: --task NAME=FILE", task.name);
        if (status == 0) status = task_score(a, &task, &results[i], log);
        pvt_task_free(&task);
        DO(status);
    }
    meter_clear(&a->meter);
    if (a->o.json) task_json(a, results, a->o.tasks.n);
    else task_table(a, results, a->o.tasks.n);
    return 0;
}
