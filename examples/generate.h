/*  pvtune generate: a prompt, a conversation, or a batch of prompts; stop texts. A part of pvtune.c, which includes it
    once. */

/* One text as it grows. What may be the beginning of a stop text is held back until it is known not to be. */
typedef struct stream {
    app *a;
    int32_t previous, end; /* the last token; the one that ends an answer, −1: none */
    bool print, stopped;
    buffer text;
    int64_t printed;
} stream;

/* Where a stop text begins, at or behind `from`; −1: nowhere. */
static int64_t find_stop(const stream *s, int64_t from)
{
    int64_t first = -1;
    for (int i = 0; i < s->a->o.stops.n && s->text.data; i++) {
        const char *at = strstr(s->text.data + from, s->a->o.stops.at[i]);
        if (at && (first < 0 || at - s->text.data < first)) first = at - s->text.data;
    }
    return first;
}

/* Bytes at the end that a stop text may begin with. */
static int64_t held_back(const stream *s)
{
    int64_t most = 0;
    for (int i = 0; i < s->a->o.stops.n; i++) {
        const char *stop = s->a->o.stops.at[i];
        int64_t n = smaller((int64_t)strlen(stop) - 1, s->text.size);
        while (n > most && memcmp(s->text.data + s->text.size - n, stop, (size_t)n) != 0) n--;
        if (n > most) most = n;
    }
    return most;
}

static void stream_print(stream *s, int64_t until)
{
    if (!s->print || until <= s->printed) return;
    fwrite(s->text.data + s->printed, 1, (size_t)(until - s->printed), stdout);
    fflush(stdout);
    s->printed = until;
}

/* Adds a token; whether the text ends here. */
static bool stream_token(stream *s, int32_t id)
{
    int64_t bytes, from = s->text.size, longest = 0;
    if (id == s->end && !s->a->o.ignore_eos) return true;
    const char *piece = pvt_tokenizer_piece(pvt_model_tokenizer(s->a->models[0]), s->previous, id, &bytes);
    s->previous = id;
    buffer_put(&s->text, piece, bytes);
    for (int i = 0; i < s->a->o.stops.n; i++)
        if ((int64_t)strlen(s->a->o.stops.at[i]) > longest) longest = (int64_t)strlen(s->a->o.stops.at[i]);
    int64_t stop = find_stop(s, from > longest ? from - longest : 0);
    if (stop >= 0) s->text.size = stop, s->text.data[stop] = 0, s->stopped = true;
    stream_print(s, stop >= 0 ? stop : s->text.size - held_back(s));
    return stop >= 0;
}

static int on_token(void *user, int32_t id) { return stream_token((stream *)user, id) || stop_asked; }

static int on_token_of(void *user, int64_t prompt, int32_t id)
{
    return stream_token((stream *)user + prompt, id) || stop_asked;
}

static pvt_generate_desc generate_desc(const app *a)
{
    pvt_generate_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.n = a->o.n, desc.temperature = a->o.temp, desc.top_p = a->o.top_p, desc.seed = a->o.seed;
    desc.top_k = a->o.top_k, desc.min_p = a->o.min_p, desc.repeat_penalty = a->o.repeat_penalty;
    desc.ignore_eos = a->o.ignore_eos;
    return desc;
}

static int put_generated(app *a, const int32_t *prompt, int64_t n_prompt, const pvt_generated *out, const stream *s)
{
    buffer *t = &a->json;
    char *text = NULL;
    int64_t bytes = 0;
    TRY(a, pvt_tokenizer_decode(pvt_model_tokenizer(a->models[0]), out->ids, out->n, PVT_DECODE_SKIP_CONTROL, &text, &bytes));
    put_open(t, NULL, "{");
    put_ids(t, "prompt_ids", prompt, n_prompt), put_ids(t, "ids", out->ids, out->n);
    for (int i = 0; s->stopped && i < a->o.stops.n; i++) { /* the ids go as far as the stop text, the text before it */
        const char *at = strstr(text, a->o.stops.at[i]);
        if (at && at - text < bytes) bytes = at - text;
    }
    put_bytes(t, "text", text, bytes);
    pvt_text_free(a->ctx, text);
    put_number(t, "seconds", out->seconds + out->prompt_seconds);
    put_number(t, "tokens_per_second", out->n > 1 && out->seconds > 0 ? (double)out->n / out->seconds : NAN);
    put_close(t, "}");
    return 0;
}

/* A prompt's tokens: of the text, or of a conversation. */
static int prompt_ids(app *a, const pvt_message *messages, int64_t n_messages, stream *s, int32_t **ids, int64_t *n)
{
    const pvt_tokenizer *tokenizer = pvt_model_tokenizer(a->models[0]);
    pvt_chat chat;
    char *text;
    s->end = -1;
    if (!a->o.chat) {
        TRY(a, pvt_tokenizer_encode(tokenizer, messages[n_messages - 1].text, -1, PVT_ENCODE_BOS, ids, n));
    } else {
        TRY(a, pvt_chat_prompt(tokenizer, messages, n_messages, &chat, &text));
        pvt_result result = pvt_tokenizer_encode(tokenizer, text, -1, 0, ids, n);
        pvt_text_free(a->ctx, text);
        TRY(a, result);
        s->end = chat.end;
    }
    s->a = a, s->previous = !a->o.chat && *n > 0 ? (*ids)[*n - 1] : -1;
    return 0;
}

/* One answer, or continuation; s->text is the caller's to free. */
static int generate_one(app *a, const pvt_message *messages, int64_t n_messages, stream *s)
{
    pvt_generate_desc desc = generate_desc(a);
    pvt_generated out;
    int32_t *ids = NULL;
    int64_t n = 0;
    char rate[64];
    memset(&out, 0, sizeof out);
    DO(prompt_ids(a, messages, n_messages, s, &ids, &n));
    int64_t ctx = pvt_model_get_config(a->models[0])->ctx, wanted = a->o.n ? a->o.n : 1;
    if (n + wanted > ctx) {
        pvt_ids_free(a->ctx, ids);
        return fail(a, "%lld tokens of prompt and %lld to make are more than the model's context of %lld%s", (long long)n,
                    (long long)wanted, (long long)ctx, a->o.n ? "; lower -n" : "");
    }
    desc.token = on_token, desc.user = s, s->print = !a->o.json;
    if (s->print && !a->o.chat) fputs(messages[n_messages - 1].text, stdout), fflush(stdout);
    pvt_result result = pvt_generate(a->models[0], ids, n, &desc, &out);
    int status = result == PVT_OK && a->o.json ? put_generated(a, ids, n, &out, s) : 0;
    pvt_ids_free(a->ctx, ids);
    pvt_ids_free(a->ctx, out.ids);
    TRY(a, result);
    DO(status);
    stream_print(s, s->text.size); /* what was held back came to nothing */
    if (!s->print) return 0;
    fputc('\n', stdout);
    note(a, "%s", generate_rate(&out, rate));
    return 0;
}

enum { MESSAGES = 400 };

/* A conversation: each line of standard input is a message, and is answered. */
static int generate_chat(app *a)
{
    pvt_message messages[MESSAGES];
    int64_t n = 0, first;
    int status = 0;
    static char line[1 << 16];
    char *kept[MESSAGES];
    int n_kept = 0;
    if (a->o.system) messages[n].role = "system", messages[n++].text = a->o.system;
    first = n;
    while (status == 0 && n + 2 <= MESSAGES && !stop_asked && fgets(line, sizeof line, stdin)) {
        stream s;
        memset(&s, 0, sizeof s);
        if (strlen(line) == sizeof line - 1 && line[sizeof line - 2] != '\n') {
            status = fail(a, "a message of more than %d bytes", (int)sizeof line - 2);
            break;
        }
        line[strcspn(line, "\r\n")] = 0;
        if (line[0] == 0) continue;
        char *text = (char *)malloc(strlen(line) + 1);
        if (!text) {
            status = fail(a, "out of memory for a message");
            break;
        }
        strcpy(text, line);
        kept[n_kept++] = text;
        messages[n].role = "user", messages[n++].text = text;
        status = generate_one(a, messages, n, &s);
        if (status == 0) status = put_result(a);
        buffer_free(&a->json);
        messages[n].role = "assistant", messages[n++].text = s.text.data ? s.text.data : "";
        if (s.text.data) kept[n_kept++] = s.text.data; /* freed below */
        if (status == 0 && s.text.failed) status = fail(a, "out of memory for an answer");
    }
    if (status == 0 && n + 2 > MESSAGES) note(a, "a conversation ends after %d messages", MESSAGES);
    while (n_kept > 0) free(kept[--n_kept]);
    return status ? status : n > first ? 0 : fail(a, "no message on standard input");
}

/* The lines of a file as prompts, in memory of buffers[0]; blank ones are none. */
static int read_prompts(app *a, const char **prompts, int64_t *count)
{
    int64_t length, n = 0;
    char *text = (char *)(a->buffers[0] = read_text(a->o.prompts, &length)), *next;
    if (!text) return fail(a, "%s: %s", a->o.prompts, strerror(errno));
    for (char *line = text; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        line[strcspn(line, "\r")] = 0;
        if (line[0] == 0) continue;
        if (n == 4096) return fail(a, "%s has more than 4096 prompts; split it", a->o.prompts);
        prompts[n++] = line;
    }
    *count = n;
    return n > 0 ? 0 : fail(a, "%s holds no prompt; one stands on each line", a->o.prompts);
}

typedef struct prompt_batch {
    const char *prompts[4096];
    int32_t *ids[4096];
    int64_t n[4096], count;
    stream streams[4096];
    pvt_generated out[4096];
} prompt_batch;

static int generate_batch(app *a, prompt_batch *b)
{
    pvt_generate_desc desc = generate_desc(a);
    char rate[64];
    DO(read_prompts(a, b->prompts, &b->count));
    for (int64_t i = 0; i < b->count; i++) {
        pvt_message messages[2];
        int64_t n = 0;
        if (a->o.system) messages[n].role = "system", messages[n++].text = a->o.system;
        messages[n].role = "user", messages[n++].text = b->prompts[i];
        DO(prompt_ids(a, messages, n, &b->streams[i], &b->ids[i], &b->n[i]));
    }
    desc.token_of = on_token_of, desc.user = b->streams;
    TRY(a, pvt_generate_many(a->models[0], (const int32_t *const *)b->ids, b->n, b->count, &desc, b->out));
    pvt_generated all = b->out[0];
    all.n = 0;
    for (int64_t i = 0; i < b->count; i++) {
        stream *s = &b->streams[i];
        all.n += b->out[i].n;
        if (a->o.json) DO(put_generated(a, b->ids[i], b->n[i], &b->out[i], s));
        if (a->o.json) buffer_put(&a->json, "\n", i + 1 < b->count);
        if (!a->o.json) printf("%s%s\n", a->o.chat ? "" : b->prompts[i], s->text.data ? s->text.data : "");
    }
    if (!a->o.json) note(a, "%s", generate_rate(&all, rate));
    return 0;
}

static int generate_prompts(app *a)
{
    prompt_batch *b = (prompt_batch *)calloc(1, sizeof *b);
    if (!b) return fail(a, "out of memory for the prompts");
    a->meter.muted--; /* the texts come at the end */
    int status = generate_batch(a, b);
    for (int64_t i = 0; i < b->count; i++) {
        pvt_ids_free(a->ctx, b->ids[i]), pvt_ids_free(a->ctx, b->out[i].ids);
        buffer_free(&b->streams[i].text);
    }
    free(b);
    meter_clear(&a->meter);
    return status ? status : put_result(a);
}

static int verb_generate(app *a)
{
    bool conversation = a->o.chat && !a->o.prompt && !a->o.prompts;
    pvt_message messages[2];
    int64_t n = 0;
    stream s;
    memset(&s, 0, sizeof s);
    if (!conversation && !a->o.prompt == !a->o.prompts) {
        fail(a, "give either -p PROMPT or --prompts FILE, or --chat for a conversation");
        return 2;
    }
    for (int i = 0; i < a->o.stops.n; i++)
        if (!a->o.stops.at[i][0]) return fail(a, "--stop needs a text that is not empty"), 2;
    if (a->o.system && !a->o.chat) return fail(a, "--system goes with --chat only"), 2;
    if (a->o.temp == 0 && (a->o.top_k > 0 || a->o.min_p > 0 || (a->o.top_p > 0 && a->o.top_p < 1)))
        note(a, "--top-k, --min-p and --top-p say how tokens are drawn, and --temp 0 draws none: the likeliest is taken");
    DO(load_model(a, 0, a->o.model));
    if (!pvt_model_tokenizer(a->models[0])) return fail(a, "%s has no tokenizer; give one with --tokenizer FILE", a->o.model);
    TRY(a, pvt_model_prepare(a->models[0], wants_q8(a)));
    a->meter.muted++; /* the text itself shows how far it is */
    if (a->o.prompts) return generate_prompts(a);
    if (conversation) return generate_chat(a);
    if (a->o.system) messages[n].role = "system", messages[n++].text = a->o.system;
    messages[n].role = "user", messages[n++].text = a->o.prompt;
    int status = generate_one(a, messages, n, &s);
    buffer_free(&s.text);
    return status ? status : put_result(a);
}
