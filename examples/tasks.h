/*  Zero-shot tasks of pvtune eval: every --task FILE is scored, one table printed. A part of pvtune.c, which
    includes it once. */

/* What the papers on two bits average: accuracies of these five. */
static const char *const papers_tasks[] = {"arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande"};
enum { PAPERS_TASKS = sizeof papers_tasks / sizeof *papers_tasks };

typedef struct task_result {
    char name[64];
    pvt_score score;
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
static double task_average(const task_result *results, int n)
{
    double sum = 0;
    for (int k = 0; k < PAPERS_TASKS; k++) {
        int i = 0;
        while (i < n && strcmp(results[i].name, papers_tasks[k]) != 0) i++;
        if (i == n) return NAN;
        sum += results[i].score.acc / PAPERS_TASKS;
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

/* Scores one task, whose memory the caller frees. */
static int task_score(app *a, pvt_task *task, task_result *result, buffer *log)
{
    pvt_score_desc desc;
    memset(&desc, 0, sizeof desc);
    pvt_answer *answers = (pvt_answer *)(a->buffers[1] = calloc((size_t)task->n_choices, sizeof *answers));
    bool *right = (bool *)(a->buffers[2] = calloc(2 * (size_t)task->n, sizeof *right));
    if (!answers || !right) return fail(a, "out of memory for %lld choices", (long long)task->n_choices);
    desc.answers = answers, desc.right = right, desc.right_norm = right + task->n;
    pvt_result scored = pvt_task_score(a->models[0], task, &desc, &result->score);
    if (scored == PVT_ERR_CANCELLED)
        return fail(a, "stopped on request; no figure of %s, for it would be of fewer documents than asked", task->name);
    TRY(a, scored);
    memcpy(result->name, task->name, sizeof result->name);
    if (result->score.truncated > 0)
        note(a, "%s: %lld prompts were longer than the model's context and lost their beginning", task->name,
             (long long)result->score.truncated);
    if (a->o.log) task_log(log, task, answers, right);
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

static void task_print(app *a, const task_result *results, int n)
{
    double average = task_average(results, n);
    char of_acc[48], of_norm[48];
    put_open(&a->json, "tasks", "{");
    if (!a->o.json) printf("%-20s %9s %18s %18s\n", "task", "documents", "acc         ", "acc_norm      ");
    for (int i = 0; i < n; i++) {
        const pvt_score *s = &results[i].score;
        put_open(&a->json, results[i].name, "{");
        put_number(&a->json, "acc", s->acc), put_number(&a->json, "acc_stderr", s->acc_stderr);
        if (s->acc_norm == s->acc_norm)
            put_number(&a->json, "acc_norm", s->acc_norm), put_number(&a->json, "acc_norm_stderr", s->acc_norm_stderr);
        if (s->ppl == s->ppl) put_number(&a->json, "ppl", s->ppl);
        put_int(&a->json, "n", s->n), put_int(&a->json, "truncated", s->truncated), put_number(&a->json, "seconds", s->seconds);
        put_close(&a->json, "}");
        if (a->o.json) continue;
        printf("%-20s %9lld %s %s", results[i].name, (long long)s->n, task_figure(s->acc, s->acc_stderr, of_acc),
               task_figure(s->acc_norm, s->acc_norm_stderr, of_norm));
        printf(s->ppl == s->ppl ? "   perplexity %.4g\n" : "\n", s->ppl);
    }
    put_close(&a->json, "}");
    if (average == average) put_number(&a->json, "average", average);
    if (average == average && !a->o.json) printf("%-20s %9s %9.4f\n", "average of the five", "", average);
}

static int eval_tasks(app *a, buffer *log)
{
    task_result *results = (task_result *)(a->buffers[0] = realloc(a->buffers[0], OPTION_LIST_MOST * sizeof *results));
    if (!results) return fail(a, "out of memory for the tasks");
    for (int i = 0; i < a->o.tasks.n; i++) {
        pvt_task task;
        int status = task_read(a, a->o.tasks.at[i], &task);
        for (int k = 0; k < i && status == 0; k++)
            if (strcmp(results[k].name, task.name) == 0)
                status = fail(a, "two tasks are called %s; name one of them: --task NAME=FILE", task.name);
        if (status == 0) status = task_score(a, &task, &results[i], log);
        pvt_task_free(&task);
        DO(status);
    }
    meter_clear(&a->meter);
    task_print(a, results, a->o.tasks.n);
    return 0;
}
