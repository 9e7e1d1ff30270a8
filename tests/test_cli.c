/*  Breaking the program: wrong usage, missing and damaged files, full disks, kill -9, Ctrl-C. Drives
    build/pvtune (or $PVTUNE) through the shell, as its users do, on a small random model. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"

#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include "../examples/options.h"
#include "../examples/stories.h"
#include "test.h"

static char dir[256], program[512], out_text[1 << 20], err_text[1 << 16];

static int64_t slurp(const char *path, char *into, int64_t capacity)
{
    FILE *f = fopen(path, "rb");
    int64_t n = f ? (int64_t)fread(into, 1, (size_t)(capacity - 1), f) : 0;
    if (f) fclose(f);
    into[n] = 0;
    return n;
}

static int shell_status(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

/* Runs `pvtune <args>` in the scratch directory; exit status, and stdout and stderr in the two texts. */
static PVTI_PRINTF(1, 2) int run(const char *format, ...)
{
    char command[4096], args[3000], path[600];
    va_list list;
    va_start(list, format);
    vsnprintf(args, sizeof args, format, list);
    va_end(list);
    snprintf(command, sizeof command, "cd '%s' && '%s' %s >out 2>err </dev/null", dir, program, args);
    int status = shell_status(system(command));
    snprintf(path, sizeof path, "%s/out", dir), slurp(path, out_text, sizeof out_text);
    snprintf(path, sizeof path, "%s/err", dir), slurp(path, err_text, sizeof err_text);
    return status;
}

static PVTI_PRINTF(1, 2) int sh(const char *format, ...)
{
    char command[4096], args[3000];
    va_list list;
    va_start(list, format);
    vsnprintf(args, sizeof args, format, list);
    va_end(list);
    snprintf(command, sizeof command, "cd '%s' && { %s ; } >sh.log 2>&1 </dev/null", dir, args);
    return shell_status(system(command));
}

static int lines(const char *text)
{
    int n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

/* The run failed with that status, nothing on stdout, and one line on stderr that has `words`. */
#define CHECK_REFUSED(wanted, words, status)                                                         \
    do {                                                                                             \
        int status_ = (status);                                                                      \
        CHECK(status_ == (wanted));                                                                  \
        CHECK(out_text[0] == 0);                                                                     \
        CHECK(lines(err_text) == 1);                                                                 \
        CHECK(strstr(err_text, words) != NULL);                                                      \
        if (status_ != (wanted) || lines(err_text) != 1 || !strstr(err_text, words))                 \
            printf("    exit status %d, stderr: %s\n", status_, err_text);                           \
    } while (0)

/* The run succeeded; its complaint is shown when not. */
#define CHECK_RUN(status)                                                                            \
    do {                                                                                             \
        int status_ = (status);                                                                      \
        CHECK(status_ == 0);                                                                         \
        if (status_ != 0) printf("    exit status %d, stderr: %s\n", status_, err_text);             \
    } while (0)

/* stdout is one JSON value with all the fields (comma-separated). */
static bool json_has(pvt_ctx *ctx, const char *fields)
{
    pvti_json j;
    char key[64];
    bool good = true;
    if (pvti_json_parse(ctx, "stdout", out_text, (int64_t)strlen(out_text), &j) != PVT_OK) {
        printf("    not JSON: %s: %.200s\n", pvt_ctx_error(ctx), out_text);
        return false;
    }
    while (*fields) {
        size_t n = strcspn(fields, ",");
        snprintf(key, sizeof key, "%.*s", (int)n, fields);
        if (pvti_json_find(&j, 0, key) < 0) good = false, printf("    no field \"%s\" in %.200s\n", key, out_text);
        fields += n + (fields[n] == ',');
    }
    pvti_json_free(&j);
    return good;
}

/* A byte-level model with random weights, of this width. */
static void make_model(pvt_ctx *ctx, const char *name, int64_t width)
{
    pvt_model_config config;
    pvt_model *model = NULL;
    pvt_tokenizer *bytes = NULL;
    char path[600];
    memset(&config, 0, sizeof config);
    config.layers = 2, config.dim = width, config.heads = 4, config.kv_heads = 2, config.ff = 2 * width, config.vocab = 256;
    config.ctx = 64, config.tied = true;
    CHECK_OK(ctx, pvt_model_create(ctx, &config, &model));
    CHECK_OK(ctx, pvt_tokenizer_create_bytes(ctx, &bytes));
    pvt_model_set_tokenizer(model, bytes);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    CHECK_OK(ctx, pvt_model_save(model, path, NULL));
    pvt_model_free(model);
}

/* A model and texts, for everything below. */
static void make_inputs(pvt_ctx *ctx)
{
    char path[600];
    int64_t n;
    make_model(ctx, "model", 32);
    char *text = stories_write(3, 20000, &n);
    snprintf(path, sizeof path, "%s/text", dir);
    FILE *f = fopen(path, "wb");
    CHECK(text && f && fwrite(text, 1, (size_t)n, f) == (size_t)n);
    if (f) fclose(f);
    free(text);
    CHECK(sh("head -c 50 text >short; echo '[[1,2,3,4],[5,6,7,8]]' >ids") == 0);
}

static void test_usage(void)
{
    CHECK(run("help") == 0 && strstr(out_text, "quantize") && err_text[0] == 0);
    CHECK(run("--version") == 0 && strncmp(out_text, "pvtune ", 7) == 0);
    CHECK(run("help tune") == 0 && strstr(out_text, "--code-lr"));
    CHECK(run("tune --help") == 0 && strstr(out_text, "--code-lr"));
    CHECK(run(" ") == 2 && out_text[0] == 0);
    CHECK_REFUSED(2, "did you mean tune", run("tuna"));
    CHECK_REFUSED(2, "no verb", run("help frobnicate"));
    CHECK_REFUSED(2, "did you mean --steps", run("tune model --stesp 3"));
    CHECK_REFUSED(2, "MODEL is missing", run("info"));
    CHECK_REFUSED(2, "--calib TEXT is missing", run("quantize model -o x"));
    CHECK_REFUSED(2, "unexpected argument 'b'", run("info model b"));
    CHECK_REFUSED(2, "whole number from 1", run("quantize model --calib text -o x --samples 0"));
    CHECK_REFUSED(2, "whole number", run("quantize model --calib text -o x --samples 3.5"));
    CHECK_REFUSED(2, "number from", run("tune model --data text -o x --cap nan"));
    CHECK_REFUSED(2, "one of", run("tune model --data text -o x --strategy best"));
    CHECK_REFUSED(2, "needs a value", run("eval model --ppl"));
    CHECK_REFUSED(2, "takes no value", run("info model --json=yes"));
    CHECK_REFUSED(2, "--teacher", run("tune model --data text -o x"));
    CHECK_REFUSED(2, "--windows", run("eval model --ppl text --windows 3:2"));
    CHECK_REFUSED(2, "either", run("tokenize model"));
    CHECK(run("info --quiet -- model") == 0);
}

/* An option in the place of a value, seeds to the last digit, the environment, and what is found out before
   the work instead of after it. */
static void test_refused_early(void)
{
    CHECK_REFUSED(2, "--overwrite' is an option", run("export model --to hf -o --overwrite"));
    CHECK_REFUSED(2, "'-x' begins like an option", run("generate model -p -x"));
    CHECK_REFUSED(2, "'-q' is an option", run("eval model --ppl text --windows -q"));
    CHECK(sh("test ! -e ./--overwrite") == 0);
    CHECK_RUN(run("generate model --prompt=-x -n 2 -q"));
    CHECK(strncmp(out_text, "-x", 2) == 0);
    CHECK_REFUSED(2, "number from", run("generate model -p x --temp -1"));
    CHECK_REFUSED(2, "to 18446744073709551615", run("demo --seed 18446744073709551616"));
    CHECK_REFUSED(2, "whole number from 0", run("demo --seed -1"));
    CHECK_RUN(run("demo --quick --text-only --save s1 --seed 9007199254740992"));
    CHECK_RUN(run("demo --quick --text-only --save s2 --seed 9007199254740993"));
    CHECK(sh("cmp -s s1/train.txt s2/train.txt") == 1); /* doubles cannot tell the two apart */
    CHECK_RUN(run("demo --quick --text-only --save s1 --seed 18446744073709551615"));
    CHECK_REFUSED(2, "either", run("demo --quick --short"));
    CHECK_REFUSED(1, "absent/demo.svg", run("demo --quick --train-steps 2 --steps 1 --svg absent/demo.svg"));
    CHECK_REFUSED(1, "absent/log", run("eval model --ppl nosuchtext --log absent/log"));
    CHECK_REFUSED(1, "absent/l", run("logits model --ids nosuchids -o absent/l"));
    CHECK(sh("PVTUNE_ISA=sve '%s' info model >o 2>e", program) == 1 && sh("test ! -s o; grep -q 'PVTUNE_ISA is .sve.: scalar, native, neon, avx2 or avx512' e") == 0);
    CHECK(sh("PVTUNE_ISA=scalar '%s' info model >o 2>e && test ! -s e", program) == 0);
    CHECK(sh("PVTUNE_NUM_THREADS=all '%s' info model 2>e", program) == 1 && sh("grep -q PVTUNE_NUM_THREADS e") == 0);
    CHECK_RUN(run("generate model -p Once -n 1"));
    CHECK(strcmp(err_text, "1 token\n") == 0);
    CHECK_RUN(run("generate model -p Once -n 1 --json"));
    CHECK(strstr(out_text, "\"tokens_per_second\":null") != NULL);
}

/* More rows than any verb has: the last one is required like the first. */
static void test_many_options(void)
{
    enum { ROWS = 100 };
    static option rows[ROWS];
    static char names[ROWS][16];
    const char *values[ROWS] = {NULL};
    char wrong[200], text[6000] = "", last[] = "--o99", given[] = "here", *arguments[2];
    option_set set = {rows, ROWS, NULL};
    bool help = false;
    for (int i = 0; i < ROWS; i++) {
        snprintf(names[i], sizeof names[i], "--o%02d", i);
        rows[i].name = names[i], rows[i].kind = OPTION_TEXT, rows[i].offset = (size_t)i * sizeof *values;
        rows[i].value = "X", rows[i].required = i == ROWS - 1;
    }
    CHECK(!options_parse(&set, 1, 0, NULL, values, &help, wrong, sizeof wrong) && strstr(wrong, "--o99 X is missing"));
    arguments[0] = last, arguments[1] = given;
    CHECK(options_parse(&set, 1, 2, arguments, values, &help, wrong, sizeof wrong) && values[ROWS - 1] == given);
    for (int i = 0; i < ROWS; i++) rows[i].help = "a help";
    FILE *f = tmpfile();
    if (f) options_usage(f, "program", "verb", set), options_help(f, set), rewind(f);
    CHECK(f && fread(text, 1, sizeof text - 1, f) > 0);
    CHECK(strncmp(text, "usage: program verb --o99 X [options]\n", 38) == 0 && strstr(text, "\n  --o50 X "));
    if (f) fclose(f);
}

static void test_help(void)
{
    static const char *const verbs[] = {"demo", "info", "quantize", "tune", "eval", "generate", "export", "tokenize",
                                        "logits", "grad", "lab", "allocate"};
    char example[40];
    for (int i = 0; i < PVTI_COUNT(verbs); i++) {
        CHECK_RUN(run("help %s", verbs[i]));
        snprintf(example, sizeof example, "pvtune %s ", verbs[i]);
        CHECK(strstr(out_text, "\nExamples\n") && strstr(strstr(out_text, "\nExamples\n"), example));
    }
    CHECK_RUN(run("help tune"));
    CHECK(strstr(out_text, "\nMain\n") && strstr(out_text, "\nLearning\n") && strstr(out_text, "\nV step"));
    CHECK(strstr(out_text, "\nLearning\n") < strstr(out_text, "--code-lr"));
    CHECK_RUN(run("help"));
    CHECK(strstr(out_text, "pvtune quantize model --calib"));
}

static void test_files(void)
{
    CHECK_REFUSED(1, "absent", run("info absent"));
    CHECK_REFUSED(1, "absent", run("eval model --ppl absent"));
    CHECK_REFUSED(1, "absent", run("logits model --ids absent -o x"));
    CHECK_REFUSED(1, "absent", run("tokenize model -f absent"));
    CHECK_REFUSED(1, "absent", run("eval model --ppl text --tokenizer absent"));
    CHECK_REFUSED(1, "absent", run("quantize model --calib text -o absent/there --format aqlm:1x2g4"));
    CHECK_REFUSED(1, "text", run("info text"));
    CHECK_REFUSED(1, "text", run("eval model --ppl text --tokenizer text"));
    CHECK_REFUSED(1, "model", run("eval model --ppl model"));
    CHECK_REFUSED(1, "50", run("eval model --ppl short"));
    CHECK_REFUSED(1, "window", run("eval model --ppl text --windows 100000:100001"));
    CHECK_REFUSED(1, "equally long", run("logits model --ids ids2 -o x") == 1 && sh("echo '[[1],[2,3]]' >ids2") == 0
                                             ? run("logits model --ids ids2 -o x") : -1);
    CHECK(sh("echo '[[1,999]]' >ids2") == 0);
    CHECK_REFUSED(1, "0 to 255", run("logits model --ids ids2 -o x"));
    CHECK(sh("echo '[[1,2' >ids2") == 0);
    CHECK_REFUSED(1, "ids2", run("grad model --ids ids2 -o x"));
    CHECK(sh("test -e x") != 0); /* nothing of all this left a file */
    if (geteuid() != 0) {
        CHECK(sh("cp text secret; chmod 000 secret") == 0);
        CHECK_REFUSED(1, "secret", run("eval model --ppl secret"));
    } else
        SKIP("an unreadable file: this is root, who reads everything");
    /* truncated and damaged models */
    CHECK(sh("cp -r model cut; head -c 5000 model/model.safetensors >cut/model.safetensors") == 0);
    CHECK_REFUSED(1, "model.safetensors", run("info cut"));
    CHECK(sh("head -c 30 model/config.json >cut/config.json; cp model/model.safetensors cut") == 0);
    CHECK_REFUSED(1, "config.json", run("info cut"));
    CHECK(sh("rm -r cut; cp -r model cut; rm cut/config.json") == 0);
    CHECK_REFUSED(1, "cut", run("info cut"));
}

/* A model of another family in `name`, its tensors as the files of that family have them. */
static void make_family(pvt_ctx *ctx, const char *name, const char *family)
{
    static const float factors[4] = {1, 1, 2, 2};
    pvt_model_config c;
    pvt_model *other = NULL;
    char path[300];
    memset(&c, 0, sizeof c);
    snprintf(c.family, sizeof c.family, "%s", family);
    c.layers = 1, c.dim = 16, c.heads = 2, c.ff = 24, c.vocab = 40, c.ctx = 32;
    if (strcmp(family, "phi3") == 0) {
        c.rope_rule = PVT_ROPE_LONG, c.rope_factor = 2, c.rope_original_ctx = 16;
        c.rope_factors = c.rope_long_factors = factors;
    }
    snprintf(path, sizeof path, "%s/%s", dir, name);
    CHECK_OK(ctx, pvt_model_create(ctx, &c, &other));
    if (other) CHECK_OK(ctx, pvt_model_save(other, path, NULL));
    pvt_model_free(other);
}

/* Kinds of malformed models: a shell command that makes `bad` of a good one, and what the sentence says. */
static void test_malformed(pvt_ctx *ctx)
{
    static const char *const cases[][3] = {
        {"model", "sed -i 's/\"hidden_size\": [0-9]*/\"hidden_size\": 24/' config.json",
         "config.json asks for"},
        {"model", "sed -i 's/\"num_hidden_layers\": [0-9]*/\"num_hidden_layers\": 9/' config.json",
         "is missing"},
        {"model", "sed -i 's/\"num_hidden_layers\"/\"vocab_size\": 1, \"num_hidden_layers\"/' config.json",
         "\"vocab_size\" occurs twice"},
        {"model", "sed -i 's/\"model_type\": \"[a-z]*\"/\"model_type\": \"gemma2\"/' config.json",
         "\"gemma2\" are not supported; llama, mistral, qwen2, qwen3 and phi3 are"},
        {"model", "sed -i 's/\"model_type\": \"[a-z]*\"/\"model_type\": \"mixtral\"/' config.json",
         "\"mixtral\" are not supported; llama, mistral, qwen2, qwen3 and phi3 are"},
        {"model", "sed -i 's/\"rope_scaling\": null/\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4}/' "
                  "config.json",
         "type \"yarn\" is not supported; llama3, linear, dynamic and longrope are"},
        {"model", "sed -i 's/\"rope_scaling\": null/\"rope_scaling\": {\"factor\": 4}/' config.json",
         "rope_scaling has a \"factor\" and no \"rope_type\": say there what"},
        {"phi3", "sed -i 's/\"num_hidden_layers\"/\"partial_rotary_factor\": 0.5, &/' config.json",
         "\"partial_rotary_factor\" other than 1 is not supported"},
        {"model", "sed -i 's/\"dtype\":\"F16\"/\"dtype\":\"I16\"/' model.safetensors",
         "of type I16 are not weights"},
        {"model", "sed -i 's/input_layernorm/post_attention_layernorm/; s/  *$//' model.safetensors",
         "model.safetensors"},
        {"model", "mv model.safetensors part.safetensors; "
                  "echo '{\"weight_map\":{\"lm_head.weight\":\"gone.safetensors\"}}' >model.safetensors.index.json",
         "gone.safetensors"},
        {"model", "mv model.safetensors ../outside.safetensors; "
                  "echo '{\"weight_map\":{\"lm_head.weight\":\"../outside.safetensors\"}}' >model.safetensors.index.json",
         "plain name"},
        {"phi3", "sed -i 's/\"num_key_value_heads\": 2/\"num_key_value_heads\": 1/' config.json",
         "qkv_proj.weight\" is [48, 16]; bad/config.json asks for [32, 16]"},
        {"phi3", "sed -i 's/\"intermediate_size\": 24/\"intermediate_size\": 23/' config.json",
         "gate_up_proj.weight\" is [48, 16]; bad/config.json asks for [46, 16]"},
        {"phi3", "sed -i 's/\"short_factor\": ./&1.0, /' config.json",
         "\"short_factor\" must be a list of 4 numbers"},
        {"phi3", "sed -i 's/\"long_factor\": .[0-9.]*, /\"long_factor\": [/' config.json",
         "\"long_factor\" must be a list of 4 numbers"},
        {"phi3", "sed -i 's/\"long_factor\": .[0-9.]*/\"long_factor\": [-1.0/' config.json",
         "rotary factor 0 is -1"},
        {"phi3",
         "sed -i 's/\"original_max_position_embeddings\": 16/\"original_max_position_embeddings\": -16/' "
                 "config.json", "\"original_max_position_embeddings\" is -16"},
        {"qwen3", "sed -i 's/q_norm/qqnorm/' model.safetensors", "q_norm.weight\" is missing"},
        {"q", "sed -i 's/\"nbits_per_codebook\": 4/\"nbits_per_codebook\": 3/' config.json",
         ".codes\": code"},
        {"q", "sed -i 's/\"num_codebooks\": 2/\"num_codebooks\": 1/' config.json", "config.json asks for"},
    };
    make_family(ctx, "phi3", "phi3"), make_family(ctx, "qwen3", "qwen3");
    CHECK(sh("cp -r model linear; sed -i 's/\"rope_scaling\": null/\"rope_scaling\": {\"type\": \"linear\", "
             "\"factor\": 4}/' linear/config.json") == 0);
    for (int i = 0; i < PVTI_COUNT(cases); i++) {
        CHECK(sh("rm -rf bad; cp -r %s bad; cd bad; %s", cases[i][0], cases[i][1]) == 0);
        CHECK_REFUSED(1, cases[i][2], run("info bad"));
    }
    CHECK_REFUSED(1, "does not belong to", run("eval phi3 --ppl text --tokenizer model"));
    CHECK_REFUSED(1, "text: line 1: no JSON object", run("eval model --task text"));
    CHECK_REFUSED(1, "model.safetensors: holds zero bytes", run("eval model --task model/model.safetensors"));
    CHECK_RUN(run("export linear -o g.gguf --to gguf:f16 -q"));
    CHECK(sh("LC_ALL=C sed 's/linear/yarn42/' g.gguf >g2.gguf") == 0);
    CHECK_REFUSED(1, "g2.gguf: \"llama.rope.scaling.type\" \"yarn42\" is not supported", run("info g2.gguf"));
    CHECK(sh("LC_ALL=C sed 's/architecture\\(.\\{12\\}\\)llama/architecture\\1gemma/' g.gguf >g2.gguf") == 0);
    CHECK_REFUSED(1, "models of \"general.architecture\" \"gemma\" are not supported; llama, qwen2, qwen3 and phi3 "
                     "are", run("info g2.gguf"));
    CHECK(sh("rm -r linear g.gguf g2.gguf") == 0);
    CHECK(sh("rm -r bad phi3 qwen3 outside.safetensors") == 0);
}

/* What info says about models of other families, and about their chat template. */
static void test_info(pvt_ctx *ctx)
{
    static const char *const chats[][2] = {
        {"{{ '<|im_start|>' + m.role + m.content + '<|im_end|>' }}{{ '<|im_start|>assistant\\n' }}", "ChatML"},
        {"{{ m.content + '<|eot_id|>' }}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}", "Llama-3"},
        {"{{ '<|user|>' + m.content + '<|end|>' + '<|assistant|>\\n' }}", "Phi-3"},
        {"{{ '[INST] <<SYS>>\\n' + s + '<</SYS>>' + m.content + ' [/INST]' }}", "Llama-2"},
        {"{{ '[INST] ' + m.content + ' [/INST]' }}", "Mistral"},
        {"{{ 'User: ' + m.content }}", "other"}};
    char line[40];
    make_family(ctx, "phi3", "phi3");
    CHECK_RUN(run("info phi3"));
    CHECK(strstr(out_text, "family     phi3\n") && strstr(out_text, "rope_scaling \"longrope\" by 2\n"));
    CHECK(strstr(out_text, "chat       none\n") && strstr(out_text, "\nformats    F16 "));
    CHECK_RUN(run("info phi3 --json"));
    CHECK(json_has(ctx, "window,rope_theta,rope_scaling,rope_factor,rope_original_ctx,file_bytes,tokenizer,"
                        "chat_template,formats"));
    CHECK(!strstr(out_text, "tune_bytes")); /* there are no codes to tune */
    CHECK_RUN(run("info q --json"));
    CHECK(json_has(ctx, "tune_bytes"));
    CHECK(sh("cp -r model chatty") == 0);
    for (int i = 0; i < PVTI_COUNT(chats); i++) {
        CHECK(sh("printf '%%s' \"%s\" >chatty/chat_template.jinja", chats[i][0]) == 0);
        snprintf(line, sizeof line, "\nchat       %s\n", chats[i][1]);
        CHECK_RUN(run("info chatty"));
        CHECK(strstr(out_text, line));
    }
    CHECK(sh("rm chatty/chat_template.jinja; echo '{\"chat_template\": [{\"name\": \"tools\", \"template\": \"x\"}, "
             "{\"name\": \"default\", \"template\": \"<|im_end|><|im_start|>assistant\\\\n\"}]}' >chatty/tokenizer_config.json") == 0);
    CHECK_RUN(run("info chatty"));
    CHECK(strstr(out_text, "\nchat       ChatML\n"));
    CHECK(sh("echo '{' >chatty/tokenizer_config.json") == 0);
    CHECK(run("info chatty") == 1 && strstr(err_text, "tokenizer_config.json"));
    CHECK(sh("rm -r chatty phi3") == 0);
}

static void test_results(pvt_ctx *ctx)
{
    CHECK_RUN(run("info model --json"));
    CHECK(json_has(ctx, "family,layers,dim,heads,kv_heads,head_dim,ff,vocab,ctx,params,bits_per_weight,"
                        "bits_per_weight_all,tensors"));
    CHECK_RUN(run("quantize model --calib text -o q --format aqlm:2x4g4 --samples 8 --json"));
    CHECK(json_has(ctx, "format,bits_per_weight,layers,seconds,peak_bytes"));
    CHECK_RUN(run("quantize model --calib text -o q1 --format aqlm:2x4g4 --samples 8 --threads 1 -q"));
    CHECK(sh("cmp q/model.safetensors q1/model.safetensors") == 0); /* any number of threads */
    CHECK_REFUSED(1, "--overwrite", run("quantize model --calib text -o q --format aqlm:2x4g4 -q"));
    CHECK_REFUSED(1, "input", run("quantize model --calib text -o model --overwrite -q"));
    CHECK_RUN(run("quantize model --calib text -o q1 --format aqlm:1x4g4 --samples 8 -q --overwrite"));
    CHECK_RUN(run("eval q --ppl text --windows 2:9 --log w.jsonl --json"));
    CHECK(json_has(ctx, "ppl,nll,nll_stderr,nll_sum,tokens,windows,ctx,seconds"));
    CHECK(sh("test $(wc -l <w.jsonl) = 7") == 0);
    CHECK_RUN(run("eval model --ppl text --windows 2:9 --against w.jsonl --json"));
    CHECK(json_has(ctx, "nll_difference,nll_difference_stderr"));
    CHECK_REFUSED(1, "w.jsonl", run("eval model --ppl text --windows 2:10 --against w.jsonl -q"));
    CHECK_RUN(run("eval q --ppl text --windows 2:9 --json"));
    double ppl = strtod(strstr(out_text, "\"ppl\":") + 6, NULL);
    CHECK_RUN(run("eval q --ppl text --windows 2:9 --compute bf16 --json"));
    CHECK_NEAR(strtod(strstr(out_text, "\"ppl\":") + 6, NULL) / ppl, 1, 2e-3);
    CHECK(strtod(strstr(out_text, "\"ppl\":") + 6, NULL) != ppl); /* it did round */
    CHECK_REFUSED(2, "--compute", run("eval q --ppl text --compute fp8"));
    CHECK_RUN(run("generate q -p Once -n 8 --head q8 -q"));
    CHECK(strncmp(out_text, "Once", 4) == 0);
    CHECK_RUN(run("generate q -p Once -n 8 --json"));
    CHECK(json_has(ctx, "prompt_ids,ids,text,seconds,tokens_per_second"));
    CHECK_RUN(run("generate q -p Once -n 8 --temp 1 --top-p 0.9 --seed 5 -q"));
    CHECK(strncmp(out_text, "Once", 4) == 0);
    CHECK_RUN(run("tokenize model 'ab c' --json"));
    CHECK(strcmp(out_text, "[97,98,32,99]\n") == 0);
    CHECK_RUN(run("logits q --ids ids -o l.safetensors --json"));
    CHECK_RUN(run("grad q --ids ids --teacher model -o g.safetensors --json"));
    CHECK(json_has(ctx, "loss,tokens"));
    CHECK_RUN(run("export q -o dense --to dense -q"));
    CHECK(sh("mkdir again && echo mine > again/merges.txt") == 0); /* no model is there: it is not one's part */
    CHECK_RUN(run("export q -o again --to hf -q"));
    CHECK(sh("grep -q mine again/merges.txt && rm again/merges.txt") == 0);
    CHECK(sh("cmp q/model.safetensors again/model.safetensors") == 0);
    CHECK_RUN(run("export q -o q.gguf --to gguf:q8_0 --json"));
    CHECK(json_has(ctx, "to,output,file_bits_per_weight,seconds"));
    CHECK_REFUSED(1, "is there already", run("export model -o q.gguf --to gguf:f16 -q"));
    CHECK_RUN(run("export model -o q.gguf --to gguf:f16 -q --overwrite"));
    CHECK_RUN(run("tokenize q.gguf 'ab c' --json"));
    CHECK(strcmp(out_text, "[97,98,32,99]\n") == 0);
    CHECK_REFUSED(1, "is a directory", run("export model -o dense --to gguf:f16 -q"));
    CHECK_REFUSED(1, "is an input", run("export q.gguf -o q.gguf --to gguf:f16 -q --overwrite"));
    CHECK_REFUSED(1, "cannot be looked at: Not a directory", run("export model -o q.gguf/x --to gguf:f16 -q"));
    CHECK_REFUSED(1, "\"model.layers.0.", run("export q -o q2.gguf --to gguf:q2_0 -q"));
    CHECK_REFUSED(1, "has no form there", run("export q -o packed --to gptq -q"));
    CHECK(sh("test ! -e packed && test ! -e q2.gguf && rm q.gguf") == 0);
    CHECK_RUN(run("info q --plan tune --batch 4 --ctx 32 --json"));
    CHECK(json_has(ctx, "plan_bytes"));
    CHECK_REFUSED(2, "--batch goes with --plan tune", run("info q --batch 4"));
    CHECK_RUN(run("info q --batch 4 --plan=tune -q")); /* in any order */
    CHECK_REFUSED(1, "--plan", run("info -- --plan")); /* a file of that name */
}

/* The text of a number in the JSON on stdout. Static memory, two of them in turn. */
static const char *json_number(const char *key)
{
    static char values[2][64];
    static int turn;
    char wanted[64], *value = values[turn = !turn];
    snprintf(wanted, sizeof wanted, "\"%s\":", key);
    const char *at = strstr(out_text, wanted);
    value[0] = 0;
    if (at) snprintf(value, sizeof values[0], "%.*s", (int)strcspn(at + strlen(wanted), ",}"), at + strlen(wanted));
    return value;
}

/* What a verb says about its result is what info finds in the file; with codes of 4 bits, which take a byte. */
static void test_bits(const char *made_by, const char *result)
{
    static const char *const keys[] = {"bits_per_weight", "bits_per_weight_packed", "bits_per_weight_all", "file_bits_per_weight"};
    char said[4][64];
    CHECK_RUN(run("%s --json", made_by));
    for (int i = 0; i < 4; i++) snprintf(said[i], sizeof said[i], "%s", json_number(keys[i]));
    CHECK_RUN(run("info %s --json", result));
    for (int i = 0; i < 4; i++) {
        CHECK(said[i][0] && strcmp(said[i], json_number(keys[i])) == 0);
        if (strcmp(said[i], json_number(keys[i])) != 0) printf("    %s: %s, %s\n", keys[i], said[i], json_number(keys[i]));
    }
    int64_t params = strtoll(json_number("params"), NULL, 10);
    CHECK(sh("wc -c <%s/model.safetensors >size", result) == 0);
    int64_t bytes = (int64_t)(strtod(json_number("file_bits_per_weight"), NULL) * (double)params / 8 + 0.5);
    CHECK(params > 0 && sh("test $(cat size) = %lld", (long long)bytes) == 0);
}

static void test_ecosystem(void)
{
    test_bits("quantize model --calib text -o 'b 4' --format aqlm:2x4g4 --samples 8 --no-finetune -q", "'b 4'");
    CHECK(strtod(json_number("bits_per_weight"), NULL) > strtod(json_number("bits_per_weight_packed"), NULL) + 1.9);
    CHECK_RUN(run("info 'b 4' --tensors"));
    CHECK(strstr(out_text, "bits (") && strstr(out_text, "with its codes packed") && strstr(out_text, "F16"));
    test_bits("export model -o b32 --to dense --dtype f32 -q", "b32");
    CHECK(strcmp(json_number("bits_per_weight_all"), "32") == 0);
    test_bits("export model -o b16 --to dense --dtype bf16 -q", "b16");
    CHECK(strcmp(json_number("bits_per_weight_all"), "16") == 0 && sh("grep -q bfloat16 b16/config.json") == 0);
    /* before the work: what a source of another type becomes, and who will not load an embedding of codes */
    CHECK_RUN(run("quantize b32 --calib text -o b8 --format aqlm:1x8g8 --samples 8 --no-finetune"));
    CHECK(strstr(err_text, "note: 1 matrix stays unquantized and becomes fp16 (F32 in the source): 0.0 MB"));
    CHECK_RUN(run("quantize model --calib text -o be --format aqlm:1x8g8 --samples 8 --no-finetune --embed"));
    CHECK(strstr(err_text, "note: transformers will refuse the result") && strstr(err_text, "--to hf"));
    CHECK(sh("grep -q pvtune_method be/config.json && ! grep -q quant_method be/config.json") == 0);
    test_bits("export be -o be-hf --to hf -q", "be-hf");
    CHECK(sh("grep -q '\"quant_method\": \"aqlm\"' be-hf/config.json") == 0);
    CHECK_RUN(run("eval be --ppl text --windows 2 --json -q"));
    double ppl = strtod(json_number("ppl"), NULL);
    CHECK_RUN(run("eval be-hf --ppl text --windows 2 --json -q"));
    CHECK_NEAR(strtod(json_number("ppl"), NULL) / ppl, 1, 1e-3);
#define OWN "quantize model --calib text -o bi --format aqlm:1x8g8 --embed-format int:4g8 --samples 8 --no-finetune -q"
    test_bits(OWN, "bi");
    CHECK_RUN(run(OWN " --overwrite --json"));
    CHECK(strstr(out_text, "\"embed_format\"") && strstr(out_text, "\"aqlm:1x8g8\"") && strstr(out_text, "\"int:4g8\""));
    CHECK_RUN(run("info bi --tensors"));
    CHECK(strstr(out_text, "int:4g8") && strstr(out_text, "aqlm:1x8g8"));
    CHECK(sh("grep -q 'embedding int:4g8' bi/README.md") == 0);
    CHECK_RUN(run("export bi -o bi-hf --to hf"));
    CHECK(strstr(err_text, "the embedding is quantized and is written dense"));
    CHECK(sh("grep -q '\"quant_method\": \"aqlm\"' bi-hf/config.json") == 0);
    CHECK_REFUSED(1, "quantizes nothing", run("quantize model --calib text -o x --embed-format dense -q"));
    CHECK_REFUSED(1, "int:44g8", run("quantize model --calib text -o x --embed-format int:44g8 -q"));
    CHECK_REFUSED(2, "f16|bf16|f32", run("export q -o x --to dense --dtype q8_0"));
    /* the card: what it was made from and how, by base names only */
    CHECK_RUN(run("quantize '%s/model/' --calib '%s/text' -o \"$PWD/b c/\" --format=aqlm:1x8g8 --samples 8 --no-finetune -q", dir, dir));
    CHECK(sh("head -2 'b c/README.md' | grep -q 'written by pvtune' && grep -q '^base_model: \"model\"' 'b c/README.md'") == 0);
    CHECK(sh("grep -qF \"    pvtune quantize model --calib text -o 'b c' --format=aqlm:1x8g8 --samples 8 --no-finetune -q\" "
             "'b c/README.md'") == 0);
    CHECK(sh("! grep -qF '%s' 'b c/README.md' && ! grep -q '/tmp' 'b c/README.md'", dir) == 0);
    CHECK_RUN(run("export q -o nocard --to hf --no-card -q"));
    CHECK(sh("test -e nocard/config.json && test ! -e nocard/README.md") == 0);
}

/* A number of the JSON object on stdout; NaN: null, or none. */
static double json_double(const char *key)
{
    char text[64];
    snprintf(text, sizeof text, "\"%s\":", key);
    const char *at = strstr(out_text, text);
    return at && strncmp(at + strlen(text), "null", 4) != 0 ? strtod(at + strlen(text), NULL) : NAN;
}

static void test_texts(pvt_ctx *ctx)
{
    pvti_text line = pvti_text_begin(ctx);
    char path[600];
    CHECK(sh("head -c 6000 text >plain; gzip -c plain >plain.gz") == 0);
    snprintf(path, sizeof path, "%s/plain", dir);
    int64_t n = slurp(path, out_text, sizeof out_text);
    pvti_text_put(&line, "{\"id\": 1, \"text\": ", 18);
    pvti_text_string(&line, out_text, n);
    pvti_text_put(&line, "}\n", 2);
    snprintf(path, sizeof path, "%s/lines.jsonl", dir);
    CHECK_OK(ctx, pvti_file_write(ctx, path, line.data, line.size));
    pvti_text_free(&line);
    CHECK_RUN(run("eval model --ppl plain --json"));
    double ppl = json_double("ppl");
    CHECK(ppl > 1);
    CHECK_RUN(run("eval model --ppl lines.jsonl --json"));
    CHECK(json_double("ppl") == ppl); /* the document alone, without its braces */
    CHECK_RUN(run("eval model --ppl lines.jsonl --verbatim --json"));
    CHECK(json_double("ppl") != ppl && json_double("ppl") > 1);
    CHECK_RUN(run("eval model --ppl - --json <plain >out 2>err #")); /* and no more redirections */
    CHECK(json_double("ppl") == ppl);
    CHECK_RUN(run("eval model --ppl - --verbatim --json <plain >out 2>err #"));
    CHECK(json_double("ppl") == ppl);
    CHECK_RUN(run("tokenize model -f - --json <ids >out 2>err #"));
    CHECK(strncmp(out_text, "[91,91,49,44", 12) == 0);
    CHECK_REFUSED(1, "plain.gz: is compressed", run("eval model --ppl plain.gz -q"));
    CHECK_REFUSED(1, "plain.gz: is compressed", run("quantize model --calib plain.gz -o x --format aqlm:1x4g4 -q"));
    CHECK_REFUSED(1, "plain.gz: is compressed", run("tune q --teacher model --data plain.gz -o x -q"));
    CHECK_REFUSED(1, "the text: is compressed", run("eval model --ppl - -q <plain.gz >out 2>err #"));
    CHECK(sh("echo '{\"text\": \"a\"}' >bad.jsonl; echo '{}' >>bad.jsonl") == 0);
    CHECK_REFUSED(1, "bad.jsonl: line 2", run("eval model --ppl bad.jsonl -q"));
}

/* A number of the JSON row that has all these words: `"c":2,"V step":"exact"`. */
static double lab_figure(const char *words, const char *name)
{
    char key[64];
    const char *row = strstr(out_text, words);
    snprintf(key, sizeof key, "\"%s\":", name);
    const char *at = row ? strstr(row, key) : NULL;
    if (!at) printf("    no %s of %s in %.300s\n", name, words, out_text);
    return at ? strtod(at + strlen(key), NULL) : (double)NAN;
}

/* What a verb writes is none of what it reads, by whatever path; and other ways to lose what one had. */
static void test_inputs_stay(void)
{
    CHECK(sh("cp text mine; cp text mine2; ln -sf mine link; echo '[[1,2,3]]' >mine.json; cp model/model.safetensors before") == 0);
    CHECK_REFUSED(1, "mine is an input; give another place to --log", run("eval model --ppl mine --log ./mine -q"));
    CHECK_REFUSED(1, "is an input", run("eval model --ppl mine --log link -q"));
    CHECK_REFUSED(1, "is an input", run("tune q --teacher model --data mine -o x --log mine -q"));
    CHECK_REFUSED(1, "is an input", run("tune q --teacher model --data text --eval mine -o x --log mine -q"));
    CHECK_REFUSED(1, "is an input", run("logits model --ids mine.json -o mine.json -q"));
    CHECK_REFUSED(1, "is an input", run("grad model --ids mine.json -o mine.json -q"));
    CHECK_REFUSED(1, "is an input", run("allocate model --bits 8 --calib mine -o mine -q"));
    CHECK_REFUSED(1, "is an input", run("eval model --task t=mine --log mine -q"));
    CHECK_REFUSED(1, "is an input", run("demo --quick --text mine --svg mine -q"));
    CHECK_REFUSED(1, "is an input", run("quantize model --calib text -o model --overwrite -q"));
    CHECK_REFUSED(1, "is an input", run("tune q --teacher model --data text -o model --resume -q"));
    CHECK(sh("cmp mine mine2 && cmp model/model.safetensors before && echo '[[1,2,3]]' | cmp - mine.json") == 0);
    CHECK_REFUSED(2, "can be read once", run("tune q --teacher model --data - --eval - -o x -q"));
    CHECK_RUN(run("eval model --ppl text --windows 2 --log /dev/null --json -q")); /* which is no file to be lost */
    CHECK_REFUSED(1, "mine is a file; -o names a directory", run("export model --to dense -o mine -q"));
    CHECK_RUN(run("demo --quick --train-steps 2 --steps 1 --save kept --svg d.svg -q"));
    CHECK_REFUSED(1, "kept/original holds a model already", run("demo --quick --train-steps 2 --steps 1 --save kept --svg d.svg -q"));
    CHECK_RUN(run("demo --quick --text-only --save kept --json -q"));
    CHECK(strstr(out_text, "\"train_bytes\":60"));
    CHECK_REFUSED(1, "train.txt is an input", run("demo --quick --text kept/train.txt --save kept --overwrite -q"));
    CHECK_REFUSED(1, "mine is a file", run("demo --quick --save mine --svg d.svg -q"));
}

/* A finished run that kept its checkpoint keeps it when nothing is left to do, and can then be extended. */
static void test_kept_checkpoint(void)
{
    static const char tune[] = "tune q --teacher model --data text -o kc --ctx 16 --json -q";
    CHECK_RUN(run("%s --steps 2 --keep-checkpoint", tune));
    CHECK_RUN(run("%s --steps 2 --resume", tune));
    CHECK(strstr(out_text, "\"loss_first\":null") && lab_figure("", "tokens") == 2 * 2 * 16 && sh("test -e kc/checkpoint.safetensors") == 0);
    CHECK_RUN(run("%s --steps 3 --resume", tune));
    CHECK(lab_figure("", "steps") == 3 && lab_figure("", "resumed_at") == 2 && sh("test ! -e kc/checkpoint.safetensors") == 0);
    CHECK_RUN(run("tune q --teacher model --data text -o kc2 --ctx 16 --steps 1 --train scales --json -q"));
    CHECK(strstr(out_text, "\"strategy\":\"continuous\"") && sh("grep -q 'strategy `continuous`' kc2/README.md") == 0);
}

/* A model with a number that a file in fp16 cannot hold: said before the work, unless that number becomes codes. */
static void test_unsavable(pvt_ctx *ctx)
{
    char path[600];
    pvt_model *model = NULL;
    pvt_save_desc save;
    bool skip[64] = {false};
    memset(&save, 0, sizeof save);
    save.dtype = PVT_F32;
    snprintf(path, sizeof path, "%s/model", dir);
    CHECK_OK(ctx, pvt_model_load(ctx, path, NULL, &model));
    if (!model) return;
    int64_t n = pvt_model_tensors(model), norm = 0;
    CHECK(n <= 64);
    while (norm < n - 1 && !pvt_model_tensor(model, norm).values) norm++;
    CHECK_OK(ctx, pvt_model_savable(model, NULL));
    pvt_model_tensor(model, norm).values[1] = 1e5f;
    CHECK(pvt_model_savable(model, NULL) == PVT_ERR_NUMERIC && strstr(pvt_ctx_error(ctx), pvt_model_tensor(model, norm).name));
    skip[norm] = true;
    CHECK_OK(ctx, pvt_model_savable(model, skip));
    snprintf(path, sizeof path, "%s/big", dir);
    CHECK_OK(ctx, pvt_model_save(model, path, &save));
    pvt_model_free(model);
    CHECK_REFUSED(1, "big: a result could not be saved:", run("quantize big --calib text -o x -q"));
    CHECK(sh("test ! -e x") == 0);
}

/* Options that say the opposite of each other, or nothing at all. */
static void test_contradictions(void)
{
    CHECK_REFUSED(2, "--no-eval contradicts", run("tune q --teacher model --data text -o x --no-eval --patience 2 -q"));
    CHECK_REFUSED(2, "give one of them", run("tune q --teacher model --data text -o x --resume --overwrite -q"));
    CHECK_REFUSED(2, "changes no codes", run("tune q --teacher model --data text -o x --strategy continuous --cap 0.1 -q"));
    CHECK_REFUSED(2, "changes no codes", run("tune q --teacher model --data text -o x --strategy continuous --key moment -q"));
    CHECK_REFUSED(2, "needs no --teacher", run("tune q --teacher model --data text -o x --loss ce -q"));
    CHECK_REFUSED(2, "contradicts the --finetune", run("quantize model --calib text -o x --no-finetune --finetune-epochs 2 -q"));
    CHECK_REFUSED(2, "a GGUF's type stands in --to", run("export model --to gguf:f16 --dtype f32 -o x.gguf -q"));
    CHECK_REFUSED(2, "go with a MODEL", run("lab smoothness --quick --data text -q"));
    CHECK_REFUSED(1, "expected", run("lab allocation --quick --formats foo -q"));
    CHECK_REFUSED(2, "quadratic takes no --formats", run("lab quadratic --formats int:2g32 -q"));
    CHECK_REFUSED(2, "quadratic takes no MODEL", run("lab quadratic model -q"));
    CHECK_REFUSED(2, "linearity takes no --steps", run("lab linearity --quick --steps 3 -q"));
    CHECK_REFUSED(2, "at most 1 of --formats", run("lab ablation --quick --formats int:2g32,int:3g32 -q"));
    CHECK_REFUSED(2, "go without a MODEL", run("lab smoothness model --data text --train-steps 3 -q"));
    CHECK_REFUSED(1, "leaves nothing to quantize", run("quantize model --calib text -o x --skip layers -q"));
    CHECK_REFUSED(1, "nowhere: No such file", run("eval model --ppl text --against nowhere -q"));
    CHECK_REFUSED(1, "nowhere.jsonl: No such file", run("eval model --ppl text --task t=nowhere.jsonl -q"));
    CHECK_REFUSED(1, "text holds no windows", run("eval model --ppl text --against text -q"));
    CHECK_REFUSED(1, "weights; leave the tensor dense", run("quantize model --calib text -o x --format nf4 -q"));
    CHECK_RUN(run("eval model --ppl text --ctx 16 --windows 0:3 --log w1 -q") || run("eval model --ppl text --ctx 16 --windows 2:4 --log w2 -q"));
    CHECK(sh("cat w1 w2 >w3") == 0); /* window 2 twice, and none of 4 */
    CHECK_REFUSED(1, "holds 4 of these 5 windows", run("eval model --ppl text --ctx 16 --windows 0:5 --against w3 -q"));
    CHECK_RUN(run("eval model --ppl text --ctx 16 --windows 0:4 --against w3 --json -q"));
    CHECK(lab_figure("", "nll_difference") == 0);
}

/* What was accepted, and led to nonsense or to hours of work for nothing. */
static void test_refused(void)
{
    CHECK_REFUSED(1, "made for 2 to 64", run("quantize model --calib text -o x --format aqlm:1x4g4 --ctx 99999 -q"));
    CHECK_REFUSED(1, "made for 2 to 64", run("tune q --teacher model --data text -o x --ctx 99999 -q"));
    CHECK_REFUSED(1, "longer than its context of 64", run("eval model --ppl text --ctx 99999 -q"));
    CHECK_REFUSED(1, "4 tokens of prompt and 61 to make are more than the model's context of 64; lower -n", run("generate model -p Once -n 61"));
    CHECK_RUN(run("generate model -p Once --ignore-eos --json")); /* the default stays within */
    CHECK(run("info q --plan tune --ctx 65 -q") == 1 && strstr(err_text, "made for 2 to 64"));
    CHECK_REFUSED(1, "export it as dense", run("quantize model --calib text -o x --format dense -q"));
    CHECK_RUN(run("quantize model --calib text -o fat --format aqlm:1x12g4 --samples 4 --epochs 1 --no-finetune"));
    CHECK(strstr(err_text, "aqlm:1x12g4 takes") && strstr(err_text, "more than fp16") && strstr(err_text, "try aqlm:1x"));
    CHECK_REFUSED(1, "aqlm:1x4g8 fits", run("quantize model --calib text -o x --format aqlm:1x4g7 -q"));
    CHECK_REFUSED(1, "a llama2.c .bin", run("info text"));
    CHECK(sh("test ! -e x") == 0); /* nothing was left behind */
}

/* Figures that said something else. */
static void test_figures(void)
{
    CHECK_RUN(run("quantize model --calib text -o few --format aqlm:1x4g4 --samples 3 --ctx 32 --no-finetune --json"));
    CHECK(json_double("calibration_tokens") == 96);
    CHECK_RUN(run("quantize model --calib text -o few --format aqlm:1x4g4 --no-finetune --overwrite --json"));
    CHECK(json_double("calibration_tokens") == 64 * 64); /* the default, not the whole text */
    CHECK_RUN(run("eval model --ppl text --windows 1 -q"));
    CHECK(strstr(out_text, "in 1 window of") && !strstr(out_text, "±"));
    CHECK_RUN(run("eval model --ppl text --windows 1 --log one.jsonl --json"));
    CHECK(strstr(out_text, "\"nll_stderr\":null"));
    CHECK_RUN(run("eval q --ppl text --windows 1 --against one.jsonl -q"));
    CHECK(strstr(out_text, "nll minus that of one.jsonl") && !strstr(out_text, "±"));
    CHECK_RUN(run("eval model --ppl text --windows 2 -q"));
    CHECK(strstr(out_text, "±"));
}

/* Windows that overlap, the papers' joining of a text, a second model beside the first. */
static void test_perplexity(pvt_ctx *ctx)
{
    char figures[600];
    CHECK(sh("printf ' = A = \n\n  \nOne\ttwo \nthree' >rows; printf ' = A = \n\n\n\n\n\n\nOne\ttwo \n\n\nthree' >joined") == 0);
    CHECK_RUN(run("eval model --ppl joined --verbatim --ctx 8 --json"));
    snprintf(figures, sizeof figures, "%.*s", (int)(strstr(out_text, "\"bits") - out_text), out_text);
    CHECK_RUN(run("eval model --ppl rows --join --ctx 8 --json"));
    CHECK(strncmp(out_text, figures, strlen(figures)) == 0);
    CHECK_RUN(run("eval model --ppl rows --ctx 8 --json"));
    CHECK(strncmp(out_text, figures, strlen(figures)) != 0);
    CHECK_RUN(run("eval q --ppl text --windows 9 --ctx 16 --stride 4 --log s.jsonl --json"));
    CHECK(strstr(out_text, "\"tokens\":47,\"windows\":9,\"ctx\":16,\"stride\":4"));
    CHECK_RUN(run("eval model --ppl text --windows 9 --ctx 16 --stride 4 --against s.jsonl --json"));
    double against = json_double("nll_difference"), error = json_double("nll_difference_stderr");
    CHECK_RUN(run("eval model --ppl text --windows 9 --ctx 16 --stride 4 --beside q --json"));
    CHECK(json_has(ctx, "ppl,beside,nll_difference") && against != 0 && error > 0);
    CHECK_NEAR(json_double("nll_difference"), against, 1e-12);
    CHECK_NEAR(json_double("nll_difference_stderr"), error, 1e-12);
    CHECK_RUN(run("eval model --ppl text --windows 9 --beside model --task words -q"));
    CHECK(strstr(out_text, "\nbeside it perplexity ") && strstr(out_text, "\nnll minus that of model: +0.00000 ± 0.00000\n"));
    CHECK(strstr(out_text, "\n  beside it ") && strstr(out_text, "\n  difference "));
    CHECK_REFUSED(1, "stride of 1 to 8", run("eval model --ppl text --ctx 8 --stride 9 -q"));
    CHECK_REFUSED(2, "--beside MODEL or --against", run("eval model --ppl text --beside q --against s.jsonl"));
    CHECK_REFUSED(2, "go with --ppl TEXT only", run("eval model --task words --stride 4"));
    CHECK_REFUSED(2, "--limit goes with --task", run("eval model --ppl text --limit 4"));
    CHECK_REFUSED(1, "absent", run("eval model --ppl text --beside absent -q"));
}

/* Tasks: one table, the average of the papers' five when all are there, a line of the log per document. */
static void test_tasks(pvt_ctx *ctx)
{
    static const char three[] =
        "printf '%s\\n' '{\"context\":\"Once\",\"choices\":[\"upon\",\"a time\",\"b\"],\"gold\":1}' "
        "'{\"context\":\"Two\",\"choices\":[\"x\",\"yy\"],\"gold\":0}' '{\"context\":\"c\",\"choices\":[\"x\",\"y\"],\"gold\":1}' >";
    CHECK(sh("%s plain.jsonl", three) == 0);
    CHECK_RUN(run("eval q --task plain.jsonl --beside model --json"));
    CHECK(json_has(ctx, "tasks") && strstr(out_text, "\"acc_difference_stderr\":") &&
          strstr(out_text, "\"acc_norm_difference\":") && strstr(out_text, "\"acc_norm_difference_stderr\":"));
    CHECK(sh("%s a=b.jsonl && echo '{\"text\":\"one two\"}' >words && printf '{\"text\":\"one two\"}\\n{}\\n' >bad.task", three) == 0);
    CHECK_RUN(run("eval q --task words --beside model --json")); /* has no acc_norm */
    CHECK(strstr(out_text, "\"acc_difference\":") && !strstr(out_text, "acc_norm_difference"));
    CHECK_RUN(run("eval q --task plain.jsonl --task lambada_openai=words --log t.jsonl --json"));
    CHECK(json_has(ctx, "tasks,bits_per_weight,seconds") && !strstr(out_text, "average") && !strstr(out_text, "ppl\":null"));
    CHECK(strstr(out_text, "\"plain\":{\"acc\":") && strstr(out_text, "\"acc_norm_stderr\":") && strstr(out_text, "\"n\":3"));
    CHECK(strstr(out_text, "\"lambada_openai\":{\"acc\":"));
    CHECK(sh("test $(wc -l <t.jsonl) = 4 && grep -c '^{\"task\":\"plain\",\"document\":[0-2],\"gold\":[01],\"loglik\":\\[-' t.jsonl "
             "| grep -x 3") == 0);
    CHECK_RUN(run("eval q --task plain.jsonl --limit 2 --ppl text --windows 2 --threads 1"));
    CHECK(strncmp(out_text, "perplexity ", 11) == 0 && strstr(out_text, "\nplain                        2 "));
    CHECK_RUN(run("eval q --task arc_easy=plain.jsonl --task arc_challenge=a=b.jsonl --task hellaswag=plain.jsonl --json "
                  "--task piqa=plain.jsonl --task winogrande=plain.jsonl"));
    CHECK(json_has(ctx, "average"));
    CHECK_RUN(run("eval q --task a=b.jsonl -q")); /* a file of that name */
    CHECK(strstr(out_text, "\na=b "));
    CHECK_REFUSED(2, "--ppl TEXT, or --task FILE", run("eval q"));
    CHECK_REFUSED(2, "needs a value", run("eval q --task"));
    CHECK_REFUSED(1, "two tasks are called plain", run("eval q --task plain.jsonl --task plain.jsonl -q"));
    CHECK_REFUSED(1, "absent: No such file", run("eval q --task absent -q"));
    CHECK_REFUSED(1, "text: line 1: no JSON object", run("eval q --task text -q"));
    CHECK_REFUSED(1, "bad.task: line 2: no \"text\"", run("eval q --task bad.task -q"));
    CHECK_REFUSED(1, "q.gz: is compressed", sh("gzip -c plain.jsonl >q.gz") == 0 ? run("eval q --task q.gz -q") : -1);
}

/* A model that says the byte after the last one. */
static void make_alphabet(pvt_ctx *ctx)
{
    pvt_model_config config;
    pvt_model *model = NULL;
    pvt_tokenizer *bytes = NULL;
    char path[600];
    memset(&config, 0, sizeof config);
    config.layers = 1, config.dim = 256, config.heads = 4, config.ff = 16, config.vocab = 256, config.ctx = 64;
    CHECK_OK(ctx, pvt_model_create(ctx, &config, &model));
    for (int64_t i = 0; model && i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        bool embed = strstr(t.name, "embed_tokens") != NULL, head = strstr(t.name, "lm_head") != NULL;
        if (!embed && !head && !strstr(t.name, "o_proj") && !strstr(t.name, "down_proj")) continue;
        pvt_real *W = (pvt_real *)(uintptr_t)t.weight->array[0];
        memset(W, 0, (size_t)t.n * sizeof *W);
        for (int64_t v = 0; v < 256 && (embed || head); v++) W[(v + head) % 256 * 256 + v] = 1;
    }
    CHECK_OK(ctx, pvt_tokenizer_create_bytes(ctx, &bytes));
    pvt_model_set_tokenizer(model, bytes);
    snprintf(path, sizeof path, "%s/alphabet", dir);
    CHECK_OK(ctx, pvt_model_save(model, path, NULL));
    pvt_model_free(model);
}

/* Sampling, stop texts, a batch of prompts, and what a model without a chat template says. */
static void test_generate(pvt_ctx *ctx)
{
    static char plain[2000];
    make_alphabet(ctx);
    CHECK_RUN(run("generate q -p Once -n 12 --ignore-eos -q"));
    snprintf(plain, sizeof plain, "%.1999s", out_text);
    CHECK_RUN(run("generate q -p Once -n 12 --ignore-eos --temp 1 --top-k 1 -q"));
    CHECK(strcmp(plain, out_text) == 0);
    CHECK_RUN(run("generate q -p Once -n 12 --ignore-eos --temp 1 --min-p 1 -q"));
    CHECK(strcmp(plain, out_text) == 0);
    CHECK_RUN(run("generate q -p Once -n 12 --ignore-eos --repeat-penalty 50 -q"));
    CHECK(strcmp(plain, out_text) != 0);
    CHECK(sh("printf 'Once\n\nA day\nOnce\n' >prompts; printf '\n\n' >empty") == 0);
    CHECK_RUN(run("generate q --prompts prompts -n 12 --ignore-eos -q"));
    CHECK(strncmp(out_text, plain, strlen(plain)) == 0 && strstr(out_text, "\nA day"));
    CHECK_RUN(run("generate q --prompts prompts -n 3 --json"));
    CHECK(lines(out_text) == 3 && strncmp(out_text, "{\"prompt_ids\":[79,", 18) == 0);
    CHECK_RUN(run("generate q -p Once -n 12 --ignore-eos --json"));
    CHECK(json_has(ctx, "prompt_ids,ids,text,seconds,tokens_per_second"));
    CHECK_RUN(run("generate alphabet -p ab -n 40 -q --stop xyz --stop cd"));
    CHECK(strcmp(out_text, "ab\n") == 0);
    CHECK_RUN(run("generate alphabet -p ab -n 40 --stop efg --json"));
    CHECK(strstr(out_text, "\"ids\":[99,100,101,102,103],\"text\":\"cd\"") != NULL);
    CHECK_RUN(run("generate alphabet -p ab -n 3 -q --stop eg"));
    CHECK(strcmp(out_text, "abcde\n") == 0); /* "e" was held back, and came to nothing */
    CHECK_REFUSED(2, "-p PROMPT or --prompts", run("generate q"));
    CHECK_REFUSED(2, "-p PROMPT or --prompts", run("generate q -p a --prompts prompts"));
    CHECK_REFUSED(2, "--system goes with --chat", run("generate q -p a --system b"));
    CHECK_REFUSED(2, "not empty", run("generate q -p a --stop ''"));
    CHECK_REFUSED(1, "absent: No such file", run("generate q --prompts absent"));
    CHECK_REFUSED(1, "holds no prompt", run("generate q --prompts empty"));
    CHECK_REFUSED(1, "the model has no chat template", run("generate q --chat -p Hi"));
    CHECK_REFUSED(1, "no message on standard input", run("generate q --chat"));
}

static void test_tensors(pvt_ctx *ctx)
{
    pvti_safetensors st;
    char path[600];
    snprintf(path, sizeof path, "%s/l.safetensors", dir);
    CHECK_OK(ctx, pvti_safetensors_open(ctx, path, &st));
    const pvti_tensor *t = pvti_safetensors_find(&st, "logits");
    CHECK(t && t->dtype == PVT_F32 && t->rank == 3 && t->shape[0] == 2 && t->shape[1] == 4 && t->shape[2] == 256);
    pvti_safetensors_close(&st);
    snprintf(path, sizeof path, "%s/g.safetensors", dir);
    CHECK_OK(ctx, pvti_safetensors_open(ctx, path, &st));
    CHECK(pvti_safetensors_find(&st, "loss") != NULL);
    CHECK(pvti_safetensors_find(&st, "model.embed_tokens.weight") != NULL);
    CHECK(pvti_safetensors_find(&st, "model.layers.1.mlp.down_proj.weight") != NULL);
    t = pvti_safetensors_find(&st, "model.layers.1.mlp.down_proj.codebooks");
    CHECK(t && t->rank == 4 && t->shape[0] == 2 && t->shape[1] == 16 && t->shape[2] == 1 && t->shape[3] == 4);
    CHECK(pvti_safetensors_find(&st, "model.layers.1.mlp.down_proj.scales") != NULL);
    CHECK(pvti_safetensors_find(&st, "model.norm.weight") != NULL);
    pvti_safetensors_close(&st);
}

/* Whether `pvtune <args>` ends by itself within so many seconds; then its exit status, and stderr in its text. */
static int run_within(int seconds, const char *args)
{
    char command[4096], path[600];
    int status;
    pid_t child = fork();
    if (child == 0) {
        snprintf(command, sizeof command, "cd '%s' && exec '%s' %s >out 2>err </dev/null", dir, program, args);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    for (int waited = 0; waited < 100 * seconds; waited++) {
        if (waitpid(child, &status, WNOHANG) == child) {
            snprintf(path, sizeof path, "%s/out", dir), slurp(path, out_text, sizeof out_text);
            snprintf(path, sizeof path, "%s/err", dir), slurp(path, err_text, sizeof err_text);
            return shell_status(status);
        }
        usleep(10000);
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return -1;
}

/* What was there when a model is saved over another: of the old one nothing stays but its permissions. (Faults and
   kills in the middle of it: test_faults.) */
static void test_overwrite(void)
{
    CHECK(sh("cp -r model over && cd over && echo '{}' >added_tokens.json && echo '{}' >special_tokens_map.json && "
             "echo x >chat_template.jinja && echo x >tokenizer.model && echo x >notes.txt && chmod 600 *") == 0);
    CHECK_REFUSED(1, "--overwrite", run("export q -o over --to hf -q"));
    CHECK_RUN(run("export q -o over --to hf -q --overwrite"));
    CHECK(sh("cmp over/model.safetensors q/model.safetensors") == 0);
    CHECK(sh("test \"$(LC_ALL=C ls -A over | tr '\\n' ' ')\" = 'README.md config.json model.safetensors notes.txt tokenizer.json tokenizer_config.json '") == 0);
    CHECK(sh("ls -l over | grep json | cut -c 1-10 | sort -u >modes && test \"$(cat modes)\" = '-rw-------'") == 0);
    CHECK(sh("ls -l over/model.safetensors | grep -q '^-rw-------'") == 0);
    /* a save that was interrupted after its commitment is a model: it is not overwritten by mistake */
    CHECK(sh("mkdir -p begun/.pvtune-save && echo x >begun/.pvtune-save/manifest") == 0);
    CHECK_REFUSED(1, "already holds a model", run("export q -o begun --to hf -q"));
    CHECK_REFUSED(1, "manifest", run("info begun"));
    /* what is no file does not hold the program up */
    CHECK(sh("cp -r model pipe && rm pipe/config.json && mkfifo pipe/config.json") == 0);
    CHECK_REFUSED(1, "config.json", run_within(20, "info pipe"));
    CHECK_REFUSED(1, "config.json", run_within(20, "info pipe/config.json"));
}

/* A NaN in fp16 amid a tensor of nan/model.safetensors. */
static void put_nan(pvt_ctx *ctx, const char *name)
{
    pvti_safetensors st;
    uint64_t header = 0;
    char path[600];
    snprintf(path, sizeof path, "%s/nan/model.safetensors", dir);
    CHECK_OK(ctx, pvti_safetensors_open(ctx, path, &st));
    const pvti_tensor *t = pvti_safetensors_find(&st, name);
    FILE *f = fopen(path, "r+b");
    CHECK(t && f && fread(&header, 8, 1, f) == 1);
    if (t && f) {
        const uint8_t *first = t->data;
        for (int64_t i = 0; i < st.n; i++) first = PVTI_MIN(first, st.tensors[i].data);
        fseek(f, (long)(8 + header) + (long)(t->data - first) + 100, SEEK_SET);
        CHECK(fwrite("\0\x7e", 2, 1, f) == 1);
    }
    if (f) fclose(f);
    pvti_safetensors_close(&st);
}

static void test_numbers(pvt_ctx *ctx)
{
    CHECK_REFUSED(1, "q_proj", run("quantize model --calib text -o bad --format aqlm:2x4g7 -q"));
    CHECK_REFUSED(1, "aqlm", run("quantize model --calib text -o bad --format aqlm:twoxfour -q"));
    CHECK(sh("test -e bad") != 0);
    CHECK(sh("cp -r model nan") == 0);
    put_nan(ctx, "model.layers.1.self_attn.v_proj.weight");
    CHECK_REFUSED(1, "v_proj", run("quantize nan --calib text -o bad --format aqlm:2x4g4 --samples 8 -q"));
    CHECK(sh("test -e bad") != 0);
}

/* Starts a tuning run, waits until its log has `at_least` lines, sends the signal; its exit status. */
static int interrupted(const char *args, const char *log, int at_least, int signal_number)
{
    char command[4096], path[600];
    static char text[1 << 16];
    int status, waited = 0;
    pid_t child = fork();
    if (child == 0) {
        snprintf(command, sizeof command, "cd '%s' && exec '%s' %s >out 2>err </dev/null", dir, program, args);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    snprintf(path, sizeof path, "%s/%s", dir, log);
    for (;;) {
        slurp(path, text, sizeof text);
        if (lines(text) >= at_least || waited++ > 6000) break;
        if (waitpid(child, &status, WNOHANG) == child) return shell_status(status);
        usleep(5000);
    }
    kill(child, signal_number);
    waitpid(child, &status, 0);
    snprintf(path, sizeof path, "%s/err", dir), slurp(path, err_text, sizeof err_text);
    snprintf(path, sizeof path, "%s/out", dir), slurp(path, out_text, sizeof out_text);
    return shell_status(status);
}

/* ---- fit ---- */

enum { FIT_A = 16 * 32, FIT_B = 8 * 16, FIT_X = 40 };
static float fit_number(uint64_t stream, int64_t i)
{
    return (float)(pvti_random_unit(3, PVTI_RANDOM_USER, stream, (uint64_t)i) - 0.5);
}

static pvt_array fit_array(const char *name, pvt_dtype dtype, int rank, int64_t d0, int64_t d1, const void *data)
{
    pvt_array a;
    memset(&a, 0, sizeof a);
    a.name = name, a.dtype = dtype, a.rank = rank, a.data = data;
    a.shape[0] = d0, a.shape[1] = d1;
    pvti_dtype_bytes(dtype, a.shape, rank, &a.bytes);
    return a;
}

/* W.safetensors: matrices of three types, and what is none; inputs of two kinds; what makes no sense. */
static void fit_files(pvt_ctx *ctx, float *a, float *b, float *x)
{
    static uint16_t half[FIT_B], brain[FIT_B];
    static const int32_t integers[4] = {1, 2, 3, 4};
    char path[600];
    pvt_array arrays[7];
    for (int i = 0; i < FIT_A; i++) a[i] = fit_number(1, i);
    for (int i = 0; i < FIT_B; i++) {
        half[i] = pvti_f32_to_f16(fit_number(2, i));
        brain[i] = pvti_f32_to_bf16(fit_number(2, i));
        b[i] = pvti_f16_to_f32(half[i]);
    }
    for (int i = 0; i < FIT_X * 32; i++) x[i] = fit_number(4, i) * (float)(1 + i % 32 / 8);
    arrays[0] = fit_array("a", PVT_F32, 2, 16, 32, a);
    arrays[1] = fit_array("b.weight", PVT_F16, 2, 8, 16, half);
    arrays[2] = fit_array("c", PVT_BF16, 2, 8, 16, brain);
    arrays[3] = fit_array("norm", PVT_F32, 1, 32, 1, a);
    arrays[4] = fit_array("integers", PVT_I32, 2, 2, 2, integers);
    arrays[5] = fit_array("empty", PVT_F32, 2, 0, 32, a);
    snprintf(path, sizeof path, "%s/W.safetensors", dir);
    CHECK_OK(ctx, pvt_tensors_save(ctx, path, arrays, 6));
    arrays[6] = fit_array("odd", PVT_F32, 2, 4, 6, a);
    snprintf(path, sizeof path, "%s/odd.safetensors", dir);
    CHECK_OK(ctx, pvt_tensors_save(ctx, path, arrays + 5, 2));
    snprintf(path, sizeof path, "%s/none.safetensors", dir);
    CHECK_OK(ctx, pvt_tensors_save(ctx, path, arrays + 3, 3));
    arrays[1] = fit_array("a", PVT_F32, 2, FIT_X, 32, x);
    arrays[2] = fit_array("inputs", PVT_F32, 2, 2 * FIT_X, 16, x);
    snprintf(path, sizeof path, "%s/X.safetensors", dir);
    CHECK_OK(ctx, pvt_tensors_save(ctx, path, arrays + 1, 2));
    snprintf(path, sizeof path, "%s/X1.safetensors", dir);
    CHECK_OK(ctx, pvt_tensors_save(ctx, path, arrays + 1, 1));
    snprintf(path, sizeof path, "%s/X2.safetensors", dir);
    CHECK_OK(ctx, pvt_tensors_save(ctx, path, arrays + 2, 1));
}

/* The weight of that name in the file is what the library makes of W and H, to the bit, and beside it W in full. */
static void fit_check(pvt_ctx *ctx, const char *file, const char *name, uint64_t stream, const float *W, int64_t O,
                      int64_t I, const pvt_real *H)
{
    pvt_real values[FIT_A], full[FIT_A];
    float dequantized[FIT_A];
    char path[600], key[100];
    pvt_weight kept, made;
    const pvt_named_weight in = {name, &kept};
    pvt_array x[PVT_MAX_ARRAYS], y[PVT_MAX_ARRAYS];
    pvt_tensors *tensors;
    pvt_format format;
    pvt_fit_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.stream = stream, desc.epochs = 3, desc.name = name;
    for (int64_t i = 0; i < O * I; i++) values[i] = (pvt_real)W[i];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    CHECK_OK(ctx, pvt_weights_load(ctx, path, &in, 1));
    CHECK_OK(ctx, pvt_format_parse(ctx, "aqlm:2x3g4", &format));
    CHECK_OK(ctx, pvt_weight_fit(ctx, values, O, I, H, &format, &desc, NULL, &made));
    int n = pvt_weight_arrays(&made, x);
    CHECK(n == 3 && pvt_weight_arrays(&kept, y) == n);
    for (int i = 0; i < n; i++) CHECK(x[i].bytes == y[i].bytes && memcmp(x[i].data, y[i].data, (size_t)x[i].bytes) == 0);
    pvt_weight_dequantize(&kept, full);
    CHECK_OK(ctx, pvt_tensors_open(ctx, path, &tensors));
    snprintf(key, sizeof key, "%s.dequantized", name);
    pvt_array array = pvt_tensors_get(tensors, pvt_tensors_find(tensors, key));
    memcpy(dequantized, array.data, (size_t)array.bytes);
    CHECK(array.bytes == O * I * 4 && array.shape[0] == O && array.shape[1] == I);
    for (int64_t i = 0; i < O * I; i++) CHECK(dequantized[i] == (float)full[i]);
    pvt_tensors_close(tensors);
    pvt_weight_free(&kept), pvt_weight_free(&made);
}

static void test_fit(pvt_ctx *ctx)
{
    static float a[FIT_A], b[FIT_B], x[FIT_X * 32];
    static pvt_real X[FIT_X * 32], Ha[32 * 32], Hb[16 * 16];
    pvt_tensors *file;
    char path[600];
    fit_files(ctx, a, b, x);
    snprintf(path, sizeof path, "%s/W.safetensors", dir);
    CHECK_OK(ctx, pvt_tensors_open(ctx, path, &file));
    int64_t at_a = pvt_tensors_find(file, "a"), at_b = pvt_tensors_find(file, "b.weight");
    pvt_tensors_close(file);
    CHECK_RUN(run("fit W.safetensors --format aqlm:2x3g4 --epochs 3 -o fit.safetensors --json"));
    CHECK(json_has(ctx, "format,bits_per_weight,layers,skipped,seconds,peak_bytes"));
    CHECK(strstr(out_text, "\"name\":\"b.weight\",\"error\":0.") && strstr(out_text, "\"name\":\"c\""));
    for (int i = 0; i < 3; i++) {
        static const char *const skipped[] = {"\"norm\"", "\"integers\"", "\"empty\""};
        CHECK(strstr(out_text, skipped[i]) > strstr(out_text, "\"skipped\":["));
    }
    CHECK(strstr(err_text, "skipped: norm (not a matrix)") && strstr(err_text, "skipped: integers (not f32"));
    fit_check(ctx, "fit.safetensors", "a", (uint64_t)at_a, a, 16, 32, NULL);
    fit_check(ctx, "fit.safetensors", "b.weight", (uint64_t)at_b, b, 8, 16, NULL);

    for (int i = 0; i < FIT_X * 32; i++) X[i] = (pvt_real)x[i];
    pvt_linear_backward(ctx, NULL, Ha, NULL, X, X, NULL, FIT_X, 32, 32);
    pvt_linear_backward(ctx, NULL, Hb, NULL, X, X, NULL, 2 * FIT_X, 16, 16);
    CHECK_RUN(run("fit W.safetensors --inputs X.safetensors --format aqlm:2x3g4 --epochs 3 -o weighed.safetensors -q"));
    CHECK(lines(out_text) == 5 && strstr(out_text, "aqlm:2x3g4: 3 matrices at") && err_text[0] == 0);
    fit_check(ctx, "weighed.safetensors", "a", (uint64_t)at_a, a, 16, 32, Ha);
    fit_check(ctx, "weighed.safetensors", "b.weight", (uint64_t)at_b, b, 8, 16, Hb);
    CHECK(sh("cmp fit.safetensors weighed.safetensors") != 0);

    /* the same bits for any number of threads, also where other matrices are left out; another seed, others */
    CHECK_RUN(run("fit W.safetensors --format aqlm:2x3g4 --epochs 3 -o fit2.safetensors -q --threads 3"));
    CHECK(sh("cmp fit.safetensors fit2.safetensors") == 0);
    CHECK_RUN(run("fit W.safetensors --format aqlm:2x3g4 --epochs 3 -o fit2.safetensors -q --skip a,c"));
    CHECK(strstr(out_text, ": 1 matrix at") != NULL);
    fit_check(ctx, "fit2.safetensors", "b.weight", (uint64_t)at_b, b, 8, 16, NULL);
    CHECK_RUN(run("fit W.safetensors --format aqlm:2x3g4 --epochs 3 -o fit2.safetensors -q --seed 1"));
    CHECK(sh("cmp fit.safetensors fit2.safetensors") != 0);
}

/* --fit, --act-order and --damp reach the library: the errors of matrix a. */
static void test_fit_method(void)
{
    static const char *const options[] = {"--fit rtn", "--fit gptq", "", "--fit best", "--fit gptq --damp 10",
                                          "--fit gptq --act-order"};
    double error[6];
    for (int i = 0; i < 6; i++) {
        char args[200];
        snprintf(args, sizeof args, "fit W.safetensors --inputs X.safetensors --format int:2g16 --json -q "
                                    "-o m.safetensors %s", options[i]);
        CHECK_RUN(run("%s", args));
        const char *at = strstr(out_text, "\"error\":");
        CHECK(at != NULL);
        error[i] = at ? strtod(at + 8, NULL) : 0;
    }
    CHECK(error[0] > error[1] && error[1] > error[2] && error[2] > 0 && error[3] == error[2]);
    CHECK(error[4] > error[1] && error[4] < error[0]); /* nearer to RTN */
    CHECK(error[5] < error[0] && error[5] != error[1]);
    CHECK_REFUSED(2, "rtn|gptq|best", run("fit W.safetensors --format int:2g16 --fit gtpq -o bad"));
    CHECK_REFUSED(2, "--damp", run("fit W.safetensors --format int:2g16 --damp 0 -o bad"));
    CHECK_RUN(run("quantize model --calib text -o fat --format int:2g16s --samples 4 --no-finetune -q "
                  "--overwrite --fit gptq --act-order --damp 0.02"));
}

static void test_fit_refused(void)
{
    CHECK_REFUSED(2, "W.safetensors is missing", run("fit"));
    CHECK_REFUSED(2, "-o", run("fit W.safetensors"));
    CHECK_REFUSED(1, "format", run("fit W.safetensors --format aqlm:2x3 -o bad.safetensors"));
    CHECK_REFUSED(1, "odd: ", run("fit odd.safetensors --format aqlm:2x3g4 -o bad.safetensors -q"));
    CHECK(strstr(err_text, "do not divide") && strstr(err_text, "--skip"));
    CHECK_REFUSED(1, "no f32, f16 or bf16 matrix", run("fit none.safetensors -o bad.safetensors -q"));
    CHECK_REFUSED(1, "is an input", run("fit W.safetensors -o W.safetensors"));
    CHECK_REFUSED(1, "is an input", run("fit W.safetensors --inputs X.safetensors -o ./X.safetensors"));
    CHECK_REFUSED(1, "absent", run("fit absent.safetensors -o bad.safetensors"));
    CHECK_REFUSED(1, "nor one called inputs",
                  run("fit W.safetensors --format aqlm:2x3g4 --inputs X1.safetensors -o bad.safetensors -q"));
    CHECK_REFUSED(1, "inputs of a must be f32, f16 or bf16 [n, 32]",
                  run("fit W.safetensors --format aqlm:2x3g4 --inputs X2.safetensors -o bad.safetensors -q"));
    CHECK(sh("head -c 300 W.safetensors >cut.safetensors") == 0);
    CHECK_REFUSED(1, "cut.safetensors", run("fit cut.safetensors -o bad.safetensors"));
    CHECK_REFUSED(1, "no/bad", run("fit W.safetensors -o no/bad.safetensors"));
    CHECK(sh("test -e bad.safetensors") != 0);
    CHECK(run("fit W.safetensors --format aqlm:2x3g4 -o /dev/full -q") == 1);
}

/* Ctrl-C: what was done is written, and said to be a part. */
static void test_fit_stop(pvt_ctx *ctx)
{
    static float z[256 * 512];
    pvt_array arrays[2];
    pvt_weight a;
    const pvt_named_weight wanted = {"a", &a}, missing = {"z", &a};
    char path[600];
    for (int i = 0; i < 256 * 512; i++) z[i] = fit_number(5, i);
    arrays[0] = fit_array("a", PVT_F32, 2, 8, 8, z), arrays[1] = fit_array("z", PVT_F32, 2, 256, 512, z);
    snprintf(path, sizeof path, "%s/stop.safetensors", dir);
    CHECK_OK(ctx, pvt_tensors_save(ctx, path, arrays, 2));
    CHECK(sh("rm -f err") == 0);
    int status = interrupted(
        "fit stop.safetensors --format aqlm:2x8g4 --epochs 1000 --tolerance 1e-9 --beam 16 "
        "-o stopped.safetensors", "err", 1, SIGINT);
    if (status == 0) {
        SKIP("Ctrl-C while fitting: this machine was done before the first line of progress");
        return;
    }
    CHECK(status == 1 && out_text[0] == 0 && strstr(err_text, "1 of 2 matrices were done and are in stopped.safetensors"));
    if (!strstr(err_text, "1 of 2 matrices")) printf("    exit status %d, stderr: %s\n", status, err_text);
    snprintf(path, sizeof path, "%s/stopped.safetensors", dir);
    CHECK_OK(ctx, pvt_weights_load(ctx, path, &wanted, 1));
    pvt_weight_free(&a);
    CHECK(pvt_weights_load(ctx, path, &missing, 1) == PVT_ERR_MISMATCH);
}

/* Ctrl-C while a model is quantized: a sentence, and nothing half-written. */
static void test_stop_quantize(void)
{
    static const char args[] = "quantize model --calib text -o half --format aqlm:2x6g4 --beam 8 --samples 300 --epochs 500 "
                               "--tolerance 1e-9 --finetune-epochs 500 -q";
    char command[4096];
    int status;
    pid_t child = fork();
    if (child == 0) {
        snprintf(command, sizeof command, "cd '%s' && exec '%s' %s >out 2>err </dev/null", dir, program, args);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    usleep(500000);
    kill(child, SIGINT);
    waitpid(child, &status, 0);
    if (shell_status(status) == 0) {
        SKIP("Ctrl-C while quantizing: this machine was done within half a second");
        return;
    }
    CHECK(shell_status(status) == 1 && sh("grep -q 'stopped on request' err") == 0);
    CHECK(sh("test -e half/config.json") != 0 && sh("test ! -e half || test -e half/quantize-embedding.safetensors -o "
                                                     "-e half/quantize-00000.safetensors") == 0);
}

#define QUANTIZE "quantize model --calib text --format aqlm:2x6g4 --samples 128 --epochs 40 --tolerance 1e-9 --embed -q "

/* Killed when the first block's file is there, and resumed; also stopped by Ctrl-C. */
static void test_resume_quantize(void)
{
    char command[4096], path[600];
    int status;
    CHECK_RUN(run(QUANTIZE "-o once"));
    CHECK(sh("test -z \"$(ls once | grep quantize-)\"") == 0);
    for (int kind = 0; kind < 2; kind++) {
        pid_t child = fork();
        if (child == 0) {
            snprintf(command, sizeof command, "cd '%s' && exec '%s' " QUANTIZE "-o cut_off >out 2>err </dev/null", dir, program);
            execl("/bin/sh", "sh", "-c", command, (char *)NULL);
            _exit(127);
        }
        snprintf(path, sizeof path, "%s/cut_off/quantize-00000.safetensors", dir);
        for (int waited = 0; access(path, F_OK) != 0 && waited < 60000; waited++) usleep(1000);
        kill(child, kind ? SIGINT : SIGKILL);
        waitpid(child, &status, 0);
        CHECK(shell_status(status) == (kind ? 1 : 128 + SIGKILL)); /* it was not done yet */
        CHECK(sh("test ! -e cut_off/config.json && test -e cut_off/quantize-00000.safetensors") == 0);
        if (kind) CHECK(sh("test $(wc -l <err) = 1 && grep -q 'stopped on request.*finished blocks.*--resume' err") == 0);
        CHECK_REFUSED(1, "unfinished quantize", run("info cut_off"));
        CHECK_REFUSED(1, "--resume", run(QUANTIZE "-o cut_off"));
        CHECK_REFUSED(1, "another seed", run(QUANTIZE "-o cut_off --resume --seed 1"));
        CHECK(sh("test -e cut_off/quantize-00000.safetensors") == 0);
        CHECK_RUN(run(QUANTIZE "-o cut_off --resume --threads 1"));
        CHECK(sh("cmp once/model.safetensors cut_off/model.safetensors && diff -r -x README.md once cut_off") == 0);
        CHECK_REFUSED(1, "nothing is left to resume", run(QUANTIZE "-o cut_off --resume"));
        CHECK(sh("rm -r cut_off") == 0);
    }
    CHECK(sh("mkdir cut_off && echo junk >cut_off/quantize-00000.safetensors") == 0); /* begins again */
    CHECK_REFUSED(1, "quantize-00000", run(QUANTIZE "-o cut_off --resume"));
    CHECK_RUN(run(QUANTIZE "-o cut_off --overwrite"));
    CHECK(sh("diff -r -x README.md once cut_off") == 0);
    CHECK(sh("mkdir weights && cp model/model.safetensors weights") == 0);
    CHECK_REFUSED(1, "no config.json", run("info weights"));
}

#define TUNE "tune q --teacher model --data text --steps 30 --batch 8 --ctx 64 --cap 0.05 --code-optimizer adam --code-lr 0.01 --patience 99 -q --save-every 4 "

static void test_resume(pvt_ctx *ctx)
{
    CHECK_RUN(run(TUNE "-o t --log t.jsonl --json"));
    CHECK(json_has(ctx, "strategy,steps,tokens,loss_first,loss_last,groups_changed,seconds,peak_bytes"));
    CHECK(sh("test ! -e t/checkpoint.safetensors && test $(wc -l <t.jsonl) = 30") == 0);
    CHECK(sh("grep -q '^base_model: \"model\"' t/README.md && grep -q 'strategy `subspace-ste`: 30 steps' t/README.md && grep -q 'before tuning' t/README.md") == 0);
    int status = interrupted(TUNE "-o killed --log killed.jsonl", "killed.jsonl", 9, SIGKILL);
    CHECK(status == 128 + SIGKILL);
    CHECK(sh("test -e killed/checkpoint.safetensors && test ! -e killed/config.json") == 0);
    CHECK_REFUSED(1, "--resume", run(TUNE "-o killed"));
    CHECK_REFUSED(1, "unfinished tune", run("info killed"));
    CHECK_REFUSED(1, "checkpoint", run(TUNE "-o killed --resume --cap 0.04"));
    CHECK(sh("cp killed/checkpoint.safetensors whole; head -c 2000 whole >killed/checkpoint.safetensors") == 0);
    CHECK_REFUSED(1, "checkpoint.safetensors", run(TUNE "-o killed --resume"));
    CHECK(sh("mv whole killed/checkpoint.safetensors; printf '{\"step\":' >>killed.jsonl") == 0);
    CHECK_RUN(run(TUNE "-o killed --log killed.jsonl --resume"));
    CHECK(sh("cmp t/model.safetensors killed/model.safetensors && cmp t/config.json killed/config.json") == 0);
    CHECK(sh("test ! -e killed/checkpoint.safetensors && test $(wc -l <killed.jsonl) = 30 &&"
             "cut -d, -f1-6 t.jsonl >a; cut -d, -f1-6 killed.jsonl >b; cmp a b") == 0);
    status = interrupted(TUNE "-o stopped --log stopped.jsonl", "stopped.jsonl", 3, SIGINT);
    CHECK_REFUSED(1, "--resume", status);
    CHECK_RUN(run(TUNE "-o stopped --resume"));
    CHECK(sh("cmp t/model.safetensors stopped/model.safetensors") == 0);
    CHECK_REFUSED(1, "already holds a model", run(TUNE "-o stopped"));
    CHECK_REFUSED(1, "input", run(TUNE "-o q --overwrite"));
    CHECK_REFUSED(1, "log", run(TUNE "-o other --log absent/log"));
    /* the model cannot be saved: only a checkpoint that is there is promised */
    CHECK(sh("mkdir -p blocked/tokenizer.json") == 0);
    CHECK_REFUSED(1, "there is no checkpoint", run(TUNE "-o blocked --save-every 0"));
    CHECK(sh("test ! -e blocked/checkpoint.safetensors") == 0);
    CHECK_REFUSED(1, "the checkpoint of step 28 stays", run(TUNE "-o blocked"));
    CHECK(sh("test -e blocked/checkpoint.safetensors && rmdir blocked/tokenizer.json") == 0);
    CHECK_RUN(run(TUNE "-o blocked --resume"));
    CHECK(sh("cmp t/model.safetensors blocked/model.safetensors") == 0);
}

/* Everything that tune says of itself is true: what it saved is what its last line measured. */
static void test_tune(pvt_ctx *ctx)
{
    pvt_model_config config;
    pvt_model *model = NULL;
    memset(&config, 0, sizeof config);
    config.layers = 1, config.dim = 32, config.heads = 2, config.ff = 64, config.vocab = 300, config.ctx = 64;
    CHECK_OK(ctx, pvt_model_create(ctx, &config, &model));
    pvt_tune_desc d = pvt_tune_resolve(model, NULL);
    pvt_model_free(model);
    CHECK(run("help tune") == 0); /* the help's defaults are the library's */
    CHECK(d.pv.values.lr == 3e-4 && strstr(out_text, "(3e-4 at two bits of code"));
    CHECK(d.pv.codes.lr == 2.5e-2 && strstr(out_text, "(2.5e-2 at two bits, half as much for each bit more; adam: 3e-3)"));
    CHECK(d.pv.codes.rule == PVT_OPTIMIZER_LAMB && strstr(out_text, "(lamb)") && strstr(out_text, "(cosine)"));
    CHECK(d.steps == 200 && d.warmup == 5 && d.eval_every == 20 && d.patience == 5 && d.pv.cap == 0.01 && d.batch == 2);

    CHECK_REFUSED(1, "no codes to tune", run("tune model --teacher model --data text -o none"));
    CHECK_REFUSED(2, "contradict", run("tune q --teacher model --data text -o none --eval text --no-eval"));
    CHECK(sh("test ! -e none") == 0);
    /* rates that only do harm: the model stays, and that is said */
    CHECK_RUN(run("tune q --teacher model --data text --steps 12 --ctx 64 --lr 1 --eval-every 1 -o harm"));
    CHECK(strstr(out_text, "the model as it was") && strstr(err_text, "ended after step 5 of 12"));
    CHECK(sh("cmp q/model.safetensors harm/model.safetensors") == 0);
    /* the last line's figure is that of the saved model on that very text */
    CHECK(sh("head -c 4000 text >part") == 0);
    CHECK_REFUSED(1, "too few", run("tune q --teacher model --data text --ctx 64 --eval part --eval-windows 99 -o kept"));
    CHECK_RUN(run("tune q --teacher model --data text --steps 12 --ctx 64 --eval part --json -o kept"));
    const char *saved = strstr(out_text, "\"eval_saved\"");
    CHECK(saved && strstr(saved, "\"ppl\":"));
    double ppl = saved ? strtod(strstr(saved, "\"ppl\":") + 6, NULL) : 0;
    CHECK_RUN(run("eval kept --ppl part --ctx 64 --json"));
    CHECK_NEAR(strtod(strstr(out_text, "\"ppl\":") + 6, NULL), ppl, 1e-6 * ppl);
    /* a finished run is extended where its checkpoint was kept, and refused with a sentence where not */
    CHECK_REFUSED(1, "no checkpoint to extend", run("tune q --teacher model --data text --steps 20 --ctx 64 -o kept --resume"));
    CHECK_RUN(run("tune q --teacher model --data text --steps 4 --ctx 64 --schedule constant --warmup 0 --keep-checkpoint -o ext"));
    CHECK_RUN(run("tune q --teacher model --data text --steps 9 --ctx 64 --schedule constant --warmup 0 --resume -o ext"));
    CHECK(strstr(err_text, "extended to 9"));
    CHECK_RUN(run("tune q --teacher model --data text --steps 9 --ctx 64 --schedule constant --warmup 0 -o whole"));
    CHECK(sh("cmp ext/model.safetensors whole/model.safetensors") == 0);
    CHECK_REFUSED(1, "the machine has", run("tune q --teacher model --data text --ctx 64 --batch 1000000 --micro-batch 1000000 -o big"));
}

static void test_full_disk(void)
{
    CHECK(sh("'%s' info model --json 2>full.err >/dev/full", program) == 1 && sh("grep -q 'standard output' full.err") == 0);
    CHECK_REFUSED(1, "/dev/full", run("eval model --ppl text --log /dev/full -q"));
    CHECK(run("logits model --ids ids -o /dev/full") == 1 && sh("test -c /dev/full") == 0); /* and it is still a device */
    if (sh("mkdir small && mount -t tmpfs -o size=32k tmpfs small") != 0) {
        SKIP("a full disk: no tmpfs may be mounted here");
        return;
    }
    CHECK_REFUSED(1, "small", run("export model -o small/model --to dense -q"));
    CHECK(sh("test ! -e small/model/config.json") == 0);
    CHECK_REFUSED(1, "small", run(TUNE "-o small/tuned"));
    CHECK(sh("test ! -e small/tuned/config.json && test -z \"$(find small -name '*pvtune*')\"") == 0);
    CHECK(sh("umount small") == 0);
}

/* ---- a terminal ---- */

typedef struct terminal {
    int master;
    pid_t child;
    int columns;
    char text[1 << 16];
    int n;
    double started;
} terminal;

/* Starts the program with stderr on a pseudo-terminal of so many columns; false: there is none. */
static bool terminal_start(terminal *t, int columns, const char *args)
{
    struct winsize size;
    char command[1500];
    memset(t, 0, sizeof *t), memset(&size, 0, sizeof size);
    t->columns = columns, t->started = pvti_seconds();
    t->master = posix_openpt(O_RDWR | O_NOCTTY);
    if (t->master < 0 || grantpt(t->master) != 0 || unlockpt(t->master) != 0) return false;
    size.ws_row = 24, size.ws_col = (unsigned short)columns;
    if (ioctl(t->master, TIOCSWINSZ, &size) != 0) return false;
    t->child = fork();
    if (t->child == 0) {
        int slave = open(ptsname(t->master), O_RDWR | O_NOCTTY);
        dup2(slave, 2);
        snprintf(command, sizeof command, "cd '%s' && TERM=xterm exec '%s' %s >out </dev/null", dir, program, args);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    fcntl(t->master, F_SETFL, O_NONBLOCK);
    return true;
}

/* Reads until `words` have been written, the program ends or so many seconds are over; whether they were. */
static bool terminal_read(terminal *t, const char *words, double seconds, int *status)
{
    double until = pvti_seconds() + seconds;
    bool ended = false;
    while (pvti_seconds() < until) {
        int got = (int)read(t->master, t->text + t->n, sizeof t->text - 1 - (size_t)t->n);
        if (got > 0) t->text[t->n += got] = 0;
        if (words && strstr(t->text, words)) return true;
        if (got > 0) continue;
        if (ended) break;
        ended = status && waitpid(t->child, status, WNOHANG) == t->child; /* and once more what is left to read */
        usleep(2000);
    }
    return ended && !words;
}

/* What a terminal does with it: the widest column reached, how many lines were begun. ASCII but for its names. */
static int terminal_widest(const terminal *t, int *lines_begun)
{
    int column = 0, widest = 0;
    *lines_begun = 0;
    for (int i = 0; i < t->n; i++) {
        if (t->text[i] == '\r') column = 0;
        else if (t->text[i] == '\n') ++*lines_begun;
        else if ((t->text[i] & 0xc0) != 0x80) column++;
        widest = PVTI_MAX(widest, column);
    }
    return widest;
}

/* One line that is redrawn in place, as wide as the terminal allows and never wider. */
static void test_widths(void)
{
    static const int columns[] = {20, 40, 80, 200};
    static terminal t;
    for (int i = 0; i < PVTI_COUNT(columns); i++) {
        int status = -1, begun;
        if (!terminal_start(&t, columns[i], "quantize model --calib text -o w --format aqlm:2x6g4 --samples 128 --epochs 10 "
                                            "--overwrite")) {
            SKIP("the progress bar: no pseudo-terminal");
            return;
        }
        CHECK(terminal_read(&t, NULL, 120, &status) && shell_status(status) == 0);
        int widest = terminal_widest(&t, &begun);
        CHECK(strchr(t.text, '\r') && (strstr(t.text, "quantize 0/14") || strstr(t.text, "] 0/14")));
        CHECK(widest < columns[i] && begun == 0);
        if (widest >= columns[i] || begun) printf("    %d columns, %d lines on a terminal of %d\n", widest, begun, columns[i]);
        CHECK((strchr(t.text, '#') != NULL) == (columns[i] >= 40));
        if (columns[i] == 200) CHECK(widest > 100 && strstr(t.text, "layers.1.mlp"));
        CHECK(!strstr(t.text, ", 0/s"));
        close(t.master);
    }
    CHECK_RUN(run("quantize model --calib text -o w --format aqlm:1x2g4 --samples 8 --overwrite"));
    CHECK(err_text[0] == 0); /* no terminal, and done in a moment: nothing to say */
}

/* It says what it does while there is nothing to count, and Ctrl-C is answered at once, in the middle of a step. */
static void test_silence(void)
{
    static terminal t;
    int status = -1;
    if (!terminal_start(&t, 80, "tune q --teacher model --data text --batch 40000 --ctx 64 --micro-batch 8 -o silent")) {
        SKIP("Ctrl-C at a terminal: no pseudo-terminal");
        return;
    }
    CHECK(terminal_read(&t, "tune", 10, NULL)); /* the first step lasts minutes */
    CHECK(terminal_read(&t, " 0/200 steps, ", 20, NULL) && terminal_read(&t, ", 0:02", 20, NULL));
    double asked = pvti_seconds();
    kill(t.child, SIGINT);
    CHECK(terminal_read(&t, "again to end at once", 5, NULL));
    CHECK(pvti_seconds() - asked < 1);
    CHECK(terminal_read(&t, "stopped on request after step 0 of 200", 30, NULL)); /* between two micro-batches */
    waitpid(t.child, &status, 0);
    CHECK(shell_status(status) == 1);
    CHECK(strchr(t.text, '#') == NULL && !strstr(t.text, "/s"));
    close(t.master);
    /* what cannot be stopped, here a pipe that nobody writes to, is acknowledged too, and ended by a second Ctrl-C */
    CHECK(sh("mkfifo fifo") == 0);
    CHECK(terminal_start(&t, 80, "logits model --ids fifo -o piped"));
    usleep(300000);
    kill(t.child, SIGINT);
    /* (the thread sanitizer calls a handler only when the blocking call that it interrupted is over) */
    CHECK(terminal_read(&t, "again to end at once", 5, NULL) || TEST_THREAD_SANITIZER);
    CHECK(waitpid(t.child, &status, WNOHANG) == 0);
    kill(t.child, SIGINT);
    waitpid(t.child, &status, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
    close(t.master);
}

/* A stop while weights are fitted or a block is fine-tuned comes within seconds, not at the block's end. */
static void test_stop_soon(void)
{
    static terminal t;
    int status = -1;
    if (!terminal_start(&t, 100, "quantize model --calib text -o soon --format aqlm:1x2g4 --samples 300 --ctx 64 "
                                 "--finetune-epochs 1000")) {
        SKIP("Ctrl-C while fine-tuning: no pseudo-terminal");
        return;
    }
    CHECK(terminal_read(&t, "finetune", 60, NULL)); /* 19,000 steps */
    double asked = pvti_seconds();
    kill(t.child, SIGINT);
    CHECK(terminal_read(&t, "stopped on request before the first block", 60, &status));
    CHECK(pvti_seconds() - asked < 10);
    waitpid(t.child, &status, 0);
    CHECK(shell_status(status) == 1 && sh("test ! -e soon") == 0);
    close(t.master);
}

/* The formats that are pvtune's own, from the text to dense weights. */
static void test_formats(pvt_ctx *ctx, const char *format, const char *packed)
{
    double ppl[3] = {0, 0, 0};
    char name[100];
    CHECK_RUN(run("quantize wide --calib text -o own --format %s --samples 8 --no-finetune --overwrite", format));
    CHECK(strstr(err_text, "transformers will refuse the result") && strstr(err_text, "--to dense"));
    snprintf(name, sizeof name, "%.3f bits", strtod(packed, NULL)); /* the file's own: its codes are packed */
    CHECK(strstr(out_text, format) && strstr(out_text, name));
    CHECK(sh("grep -q '\"pvtune_method\": \"arrays\"' own/config.json && ! grep -q quant_method own/config.json") == 0);
    CHECK(sh("grep -q 'mlp.down_proj\": \"%s\"' own/config.json", format) == 0);
    CHECK(sh("grep -q 'format | `%s`' own/README.md && grep -q -- '--to$' own/README.md && ! grep -q hf own/README.md", format) == 0);
    CHECK_RUN(run("tune own --teacher wide --data text -o tuned --steps 3 --batch 2 --ctx 32 --strategy ste --code-lr 2 --no-eval "
                  "--json -q --overwrite"));
    CHECK(json_has(ctx, "groups_changed,bits_per_weight_packed") && strcmp(json_number("bits_per_weight_packed"), packed) == 0);
    CHECK(strcmp(json_number("bits_per_weight"), packed) == 0);
    CHECK(strtod(json_number("groups_changed"), NULL) > 0);
    test_bits("export tuned -o dense --to dense -q --overwrite", "dense");
    for (int i = 0; i < 3; i++) {
        CHECK_RUN(run("eval %s --ppl text --windows 2 --json -q", i == 0 ? "wide" : i == 1 ? "tuned" : "dense"));
        ppl[i] = strtod(json_number("ppl"), NULL);
    }
    CHECK(ppl[0] > 1 && ppl[1] != ppl[0]);
    CHECK_NEAR(ppl[2] / ppl[1], 1, 1e-3);
    CHECK_REFUSED(1, "use --to dense", run("export tuned -o x --to hf -q"));
    CHECK(strstr(err_text, format) && sh("test ! -e x") == 0);
    CHECK_RUN(run("generate tuned -p Once -n 4 --ignore-eos -q"));
    CHECK_RUN(run("info tuned --tensors"));
    CHECK(strstr(out_text, format) != NULL);
}

/* Quantization-aware training, and what is trained: own is of integers. */
static void test_training(pvt_ctx *ctx)
{
    CHECK_RUN(run("quantize wide --calib text -o own --format int:2g32 --samples 8 --fit rtn --finetune-surrogate identity "
                  "--finetune-code-lr 3e-3 --finetune-train codes,scales,norms --overwrite -q"));
    CHECK_RUN(run("export own -o packed --to gptq -q --overwrite")); /* zeros were left whole */
    CHECK_RUN(run("tune own --teacher wide --data text -o tuned --steps 3 --batch 2 --ctx 32 --strategy ste --surrogate sigmoid "
                  "--surrogate-temperature 6 --clamp-sharpness 3 --code-lr 1 --no-eval --json -q --overwrite"));
    CHECK(json_has(ctx, "groups_changed") && strtod(json_number("groups_changed"), NULL) > 0);
    CHECK_REFUSED(1, "has the zero", run("export tuned -o x --to gptq -q"));
    CHECK_RUN(run("tune own --teacher wide --data text -o tuned --steps 3 --ctx 32 --train norms --no-eval --json -q --overwrite"));
    CHECK(strcmp(json_number("groups_changed"), "0") == 0);
    CHECK_RUN(run("export tuned -o packed2 --to gptq -q --overwrite"));
    CHECK(sh("cmp -s packed/model.safetensors packed2/model.safetensors") != 0); /* the norms have moved */
    CHECK_REFUSED(1, "\"norm\" is none of codes", run("tune own --teacher wide --data text -o x --train codes,norm -q"));
    CHECK_REFUSED(1, "\"norm\" is none of codes", run("quantize wide --calib text -o x --finetune-train norm -q"));
    CHECK_REFUSED(1, "belongs to a surrogate", run("tune own --teacher wide --data text -o x --clamp-sharpness 2 -q"));
    CHECK_REFUSED(1, "these have one: int:BgG, int:BgGs, q2_0",
                  run("quantize wide --calib text -o x --format nf4 --finetune-surrogate root -q"));
    CHECK(sh("test ! -e x") == 0);
}

static void test_formats_refused(void)
{
    CHECK_REFUSED(1, "do not divide", run("quantize model --calib text -o x --format nf4 -q"));
    CHECK_REFUSED(1, "int:2g32 fits", run("quantize model --calib text -o x --format int:2g48 -q"));
    CHECK_REFUSED(1, "int:BgG", run("quantize model --calib text -o x --format int:9g32 -q"));
    CHECK_REFUSED(1, "had:int:2g32 fits", run("quantize model --calib text -o x --format had:int:2g48 -q"));
    CHECK_REFUSED(1, "had2:", run("quantize model --calib text -o x --format had3:int:2g32 -q"));
    CHECK(sh("test ! -e x") == 0);
    CHECK_RUN(run("quantize model --calib text -o turned --format had:aqlm:1x2g4 --samples 4 --no-finetune --overwrite"));
    CHECK(strstr(err_text, "transformers will refuse the result"));
    CHECK_REFUSED(1, "is in had:aqlm:1x2g4, which transformers does not load", run("export turned -o x --to hf -q"));
    CHECK_RUN(run("export turned -o x --to dense -q"));
    CHECK(sh("rm -r x") == 0);
    CHECK_RUN(run("quantize model --calib text -o fat --format int:8g1 --samples 4 --no-finetune --overwrite"));
    CHECK(strstr(err_text, "its scales weigh more than the weights; take larger groups") && !strstr(err_text, "codebooks"));
    CHECK_RUN(run("demo --quick --train-steps 4 --steps 1 --format int:4g64 --svg own.svg --json -q"));
    CHECK(strstr(out_text, "\"format\":\"int:4g64\"") && strcmp(json_number("runs"), "") != 0);
    CHECK(sh("test -s own.svg") == 0);
}

/* Chart, table and JSON hold the same figures; lines that coincide are both named. */
static void test_demo(pvt_ctx *ctx)
{
    static const char *const fields[] = {"ppl_original", "ppl_calibrated"};
    pvti_json j;
    double ppl[2] = {0, 0}, first = 0, last = 0, run_ppl = 0;
    int64_t runs = 0;
    CHECK_RUN(run("demo --quick --train-steps 200 --steps 7 --svg demo.svg --json -q"));
    CHECK_OK(ctx, pvti_json_parse(ctx, "demo", out_text, (int64_t)strlen(out_text), &j));
    for (int i = 0; i < 2; i++) CHECK(pvti_json_number(&j, pvti_json_find(&j, 0, fields[i]), &ppl[i]));
    int64_t list = pvti_json_find(&j, 0, "runs");
    for (int64_t node = pvti_json_first(&j, list); node >= 0; node = pvti_json_next(&j, node), runs++) {
        int64_t curve = pvti_json_find(&j, node, "curve"), n = 0;
        CHECK(pvti_json_number(&j, pvti_json_find(&j, node, "ppl"), &run_ppl));
        for (int64_t point = pvti_json_first(&j, curve); point >= 0; point = pvti_json_next(&j, point), n++) {
            int64_t figure = pvti_json_next(&j, pvti_json_first(&j, point));
            CHECK(pvti_json_number(&j, figure, n == 0 ? &first : &last));
        }
        CHECK(n == 5 && first == ppl[1] && last == run_ppl);
    }
    CHECK(runs == 8);
    pvti_json_free(&j);
    CHECK(sh("grep -q 'continuous</tspan>.* = <tspan class=\"t3\">subspace<' demo.svg") == 0);
    CHECK(sh("grep -q 'class=\"line c3 twin\"' demo.svg") == 0);
}

/* The shape of the paper's result; that |V(x)| ≤ c and that φ never rises the program checks at every iterate. */
static void test_lab_quadratic(pvt_ctx *ctx)
{
    static const char *const methods[] = {"exact", "linearized", "linearized, T = 4", "greedy 1 of 6", "proportional 1 of 6",
                                          "uniform 1 of 6", "uniform 2 of 6", "uniform 2 of 6, T = 4"};
    enum { METHODS = (int)(sizeof methods / sizeof *methods) };
    double last[7][METHODS];
    char words[80];
    CHECK_RUN(run("lab quadratic --json -q --svg q.svg"));
    CHECK(json_has(ctx, "name,seed,rows,svg,seconds"));
    for (int c = 1; c <= 6; c++)
        for (int m = 0; m < METHODS; m++) {
            snprintf(words, sizeof words, "{\"c\":%d,\"V step\":\"%s\"", c, methods[m]);
            last[c][m] = lab_figure(words, "last");
        }
    for (int m = 0; m < METHODS; m++) {
        CHECK_NEAR(last[6][m], 0, 1e-12);        /* each coordinate a value of its own: the P step alone solves it */
        CHECK_NEAR(last[1][m], last[1][0], 1e-9); /* one value: no V step has a choice */
        for (int c = 2; c <= 4; c++) CHECK(last[c][0] <= last[c][m] && last[c][m] < last[1][0]);
    }
    for (int c = 2; c <= 4; c++) {
        CHECK(last[c][1] > 1.5 * last[c][0]); /* linearized ends above exact, */
        CHECK_NEAR(last[c][2] / last[c][1], 1, 0.1); /* however often it is repeated; */
        for (int m = 4; m < METHODS; m++) CHECK(last[c][m] < 0.95 * last[c][1]); /* a drawn subspace in between */
        CHECK(last[c][4] < last[c][6] && last[c][5] < last[c][6]); /* and the smaller the better */
    }
    CHECK(sh("grep -q '>proportional 1 of 6<' q.svg && grep -q '</svg>' q.svg") == 0);
    CHECK_RUN(run("lab quadratic --runs 3 --seed 1 -q --svg q.svg"));
    CHECK(strstr(out_text, " 6 exact") && strstr(out_text, "φ never rose"));
    CHECK_REFUSED(2, "NAME must be one of quadratic", run("lab cubic"));
    CHECK_REFUSED(1, "absent/q.svg", run("lab quadratic --svg absent/q.svg"));
}

/* Of nested subspaces the smaller is curved less. */
static void test_lab_smoothness(pvt_ctx *ctx)
{
    static const int shares[] = {100, 85, 70, 60, 40, 30, 20, 10, 5};
    static const char *const columns[] = {"even I", "even II", "greedy II"};
    char words[40];
    CHECK_RUN(run("lab smoothness --quick --train-steps 20 --runs 1 --json -q --svg q.svg"));
    CHECK(json_has(ctx, "name,seed,rows,svg,seconds"));
    for (int c = 0; c < 3; c++) {
        double before = 1e300, first = 0, L = 0;
        for (int k = 0; k < PVTI_COUNT(shares); k++) {
            snprintf(words, sizeof words, "{\"%% of parameters\":%d,", shares[k]);
            L = lab_figure(words, columns[c]);
            CHECK(L > 0 && L <= before);
            before = L, first = k == 0 ? L : first;
        }
        if (c < 2) CHECK(L < 0.3 * first); /* a twentieth, drawn evenly: far less */
    }
    CHECK_REFUSED(1, "--runs", run("lab smoothness --quick --runs 17 -q"));
    CHECK_REFUSED(1, "needs --data", run("lab smoothness model -q"));
}

/* A plan is made, followed, and keeps its budget, in the file. */
static void test_allocate(pvt_ctx *ctx)
{
    static const char formats[] = "--formats int:2g32,int:4g32,aqlm:1x4g4,dense";
    CHECK_RUN(run("allocate wide --bits 5 --calib text %s -o plan.json --json -q", formats));
    CHECK(json_has(ctx, "plans,seconds") && strstr(out_text, "{\"plan\":\"plan.json\",\"bits\":"));
    CHECK(lab_figure("", "bits") <= 5 && lab_figure("", "bound") <= lab_figure("", "predicted_rise"));
    CHECK(lab_figure("model.layers.1.mlp.down_proj.weight\"", "alpha") > 0);
    CHECK_RUN(run("quantize wide --plan plan.json --calib text -o planned --samples 4 --no-finetune --overwrite --json -q"));
    CHECK(strstr(out_text, "\"format\":\"plan\"") && lab_figure("", "file_bits_per_weight") < 5);
    CHECK_RUN(run("info planned --tensors --json -q"));
    CHECK(sh("'%s' info planned --tensors -q | awk '$3 == \"×\" && $4 > 1 {print $1 \" \" $5}' | sort >is; "
             "grep -o '\"model[^\"]*\":\"[^\"]*\"' plan.json | tr -d '\"' | tr ':' ' ' | sed 's/ /:/2;s/:F16//' | sort >planned.txt; "
             "test -s is && sed 's/ F16$/ dense/' is | cmp - planned.txt", program) == 0);
    CHECK_RUN(run("allocate wide --bits 6 --alpha noise --samples 1 --ctx 16 %s -o plan2.json -q", formats)); /* without data */
    CHECK(strstr(out_text, "no choice gets below") && strstr(out_text, "quantize wide --plan plan2.json"));
    CHECK(sh("cp plan2.json six.json") == 0); /* several sizes of one measurement: each the plan of a run of its own */
    CHECK_RUN(run("allocate wide --bits 5,6 --alpha noise --samples 1 --ctx 16 %s -o plan-%%.json --json -q", formats));
    CHECK(sh("cmp six.json plan-6.json && ! cmp -s plan-5.json plan-6.json") == 0);
    CHECK(sh("rm plan-6.json") == 0);
    CHECK(run("allocate wide --bits 1,6 --alpha noise --samples 1 --ctx 16 %s -o plan-%%.json -q", formats) == 1);
    CHECK(strstr(err_text, "the smallest of these formats take") && strstr(out_text, "Plan: plan-6.json"));
    CHECK(sh("cmp six.json plan-6.json && test ! -e plan-1.json") == 0); /* what can be had is there */
    CHECK_REFUSED(1, "several sizes make several plans", run("allocate wide --bits 5,6 --calib text -o x.json -q"));
    CHECK_REFUSED(2, "numbers from 0.1 to 16", run("allocate wide --bits 5,17 --calib text -o x-%%.json -q"));
    CHECK_REFUSED(2, "numbers from 0.1 to 16", run("allocate wide --bits 5, --calib text -o x-%%.json -q"));
    CHECK_REFUSED(2, "numbers from 0.1 to 16", run("allocate wide --bits nan --calib text -o x.json -q"));
    CHECK_REFUSED(1, "no-such", run("allocate wide --bits 5 --calib text -o no-such/x.json -q"));
    CHECK_REFUSED(2, "--bits B is missing", run("allocate wide -o x"));
    CHECK_REFUSED(1, "the smallest of --formats make a file of", run("allocate wide --bits 1 --calib text %s -o x.json --json -q", formats));
    /* embedding dense, though no format of the list is: a choice that linears do not have */
    CHECK_RUN(run("allocate wide --bits 16 --no-embed --formats int:2g32,int:4g32 --alpha noise --samples 1 --ctx 16 -o plan6.json -q"));
    CHECK(sh("grep -c dense plan6.json | grep -x 1 && grep -q 'embed_tokens.weight\":\"dense' plan6.json && grep -q int:4g32 plan6.json") == 0);
    CHECK_REFUSED(1, "none of --formats suits", run("allocate wide --bits 5 --formats int:4g48 --calib text -o x.json"));
    CHECK(!strstr(err_text, "alpha")); /* before anything is measured */
    CHECK_REFUSED(1, "is no plan", run("quantize wide --plan text --calib text -o x -q"));
    CHECK(sh("echo '{\"tensors\": { \"model.layers.9.mlp.up_proj.weight\" : \"int:2g32\" } }' >plan3.json") == 0);
    CHECK_REFUSED(1, "no matrix of this model", run("quantize model --plan plan3.json --calib text -o x -q"));
    CHECK(sh("printf '{\"tensors\":{\"a\":\"int:2g32\" \"b\":\"int:4g32\"}}' >plan4.json; printf '{\"tensors\":{\"a\":\"int:2g32\"' >plan5.json") == 0);
    CHECK_REFUSED(1, "is no plan", run("quantize model --plan plan4.json --calib text -o x -q")); /* no comma */
    CHECK_REFUSED(1, "is no plan", run("quantize model --plan plan5.json --calib text -o x -q")); /* cut off */
    CHECK_REFUSED(1, "--alpha gradient needs --calib", run("allocate wide --bits 6 --alpha gradient -o x.json -q"));
}

/* The experiments on models, as small as they get: what they print has a row for each variant. */
static void test_lab_models(pvt_ctx *ctx)
{
    CHECK_RUN(run("lab strategies --formats int:2g32s --samples 2 --steps 1 --quick --train-steps 4 --runs 2 --json -q --svg q.svg"));
    CHECK(json_has(ctx, "name,seed,rows,svg,seconds") && lab_figure("\"variant\":\"ste\"", "bits") == 2.5);
    CHECK(lab_figure("\"variant\":\"calibrated only\"", "% new") == 0 && lab_figure("\"variant\":\"stochastic\"", "% new") > 0);
    CHECK(lab_figure("\"variant\":\"continuous\"", "stderr") > 0);
    CHECK(sh("grep -q '>int:2g32s, 2.50 bits<' q.svg && grep -q '>subspace-ste<' q.svg") == 0);
    CHECK_RUN(run("lab pv-or-ste --formats int:2g32s --samples 2 --steps 1 --quick --train-steps 4 --runs 1 --json -q --svg q.svg"));
    CHECK(strstr(out_text, "\"options\":\"--schedule constant --strategy ste --batch 64 --code-lr 0.004\""));
    CHECK(strstr(out_text, "\"group\":\"cosine, 512 tokens\"") && sh("grep -q '>constant, 8192 tokens<' q.svg") == 0);
    CHECK_RUN(run("lab linearity --formats int:4g32 --quick --train-steps 4 --runs 1 --json -q --svg q.svg"));
    CHECK(lab_figure("\"format\":\"int:4g32\"", "mean t^2") > 1e-3 && lab_figure("\"format\":\"int:4g32\"", "mean t^2") < 2e-2);
    CHECK(lab_figure("\"format\":\"int:4g32\"", "predicted") > 0 && sh("grep -q '>all linears quantized<' q.svg") == 0);
    CHECK_RUN(run("lab allocation --formats int:2g32,int:4g32 --samples 2 --quick --train-steps 4 --runs 1 --json -q --svg q.svg"));
    double two = lab_figure("\"choice\":\"int:2g32\"", "bits"), four = lab_figure("\"choice\":\"int:4g32\"", "bits");
    CHECK(two < four && lab_figure("\"choice\":\"allocated\"", "bits") <= two); /* the first has the size of the smaller */
    CHECK_REFUSED(1, "do not divide", run("lab ablation --formats int:2g48 --quick --train-steps 4 --samples 2 --steps 1 --runs 1 -q"));
    CHECK_REFUSED(1, "at most", run("lab allocation --runs 99 -q"));
}

int main(void)
{
    pvt_ctx *ctx = NULL;
    const char *wanted = getenv("PVTUNE");
    char here[256];
    if (!wanted) wanted = "build/pvtune";
    if (!getcwd(here, sizeof here)) return 1;
    snprintf(program, sizeof program, "%s%s%s", wanted[0] == '/' ? "" : here, wanted[0] == '/' ? "" : "/", wanted);
    if (access(program, X_OK) != 0) {
        printf("there is no program %s: make builds it\n", program);
        return 1;
    }
    if (!test_scratch(dir, sizeof dir) || pvt_ctx_create(NULL, &ctx) != PVT_OK) return 1;
    make_inputs(ctx);
    test_usage();
    test_help();
    test_many_options();
    test_refused_early();
    test_files();
    test_results(ctx);
    test_malformed(ctx);
    test_info(ctx);
    test_texts(ctx);
    test_refused();
    test_inputs_stay();
    test_kept_checkpoint();
    test_contradictions();
    test_unsavable(ctx);
    test_figures();
    test_tasks(ctx);
    test_perplexity(ctx);
    test_generate(ctx);
    test_tensors(ctx);
    test_overwrite();
    test_ecosystem();
    test_numbers(ctx);
    test_fit(ctx);
    test_fit_method(), test_fit_refused();
    test_fit_stop(ctx);
    test_stop_quantize();
    test_resume_quantize();
    test_resume(ctx);
    test_tune(ctx);
    test_full_disk();
    test_widths();
    test_silence();
    test_stop_soon();
    make_model(ctx, "wide", 64);
    test_formats(ctx, "nf4", "4.25"), test_formats(ctx, "int:2g64", "2.5"), test_formats(ctx, "had2:int:2g64", "2.5");
    test_training(ctx);
    test_formats_refused();
    if (!TEST_THREAD_SANITIZER) { /* no thread runs otherwise there than in what stands above */
        test_demo(ctx);
        test_lab_quadratic(ctx), test_lab_smoothness(ctx);
        test_allocate(ctx);
    }
    if (!getenv("PVTUNE_QUICK")) test_lab_models(ctx);
    pvt_ctx_destroy(ctx);
    test_remove(dir);
    return test_end();
}
