/*  Command-line options from tables: one row per option yields parsing, range checks, `--help`
    and the nearest name for a typing error. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum option_kind {
    OPTION_FLAG,   /* bool */
    OPTION_INT,    /* int64_t in [low, high] */
    OPTION_SEED,   /* uint64_t, any */
    OPTION_REAL,   /* double in [low, high] */
    OPTION_TEXT,   /* const char * */
    OPTION_LIST,   /* option_list: TEXT that may be given several times */
    OPTION_CHOICE, /* const char *, one of `value`, "a|b|c" */
    OPTION_HEADING /* no option: `help` stands above the rows that follow */
} option_kind;

enum { OPTION_LIST_MOST = 32 };
typedef struct option_list {
    const char *at[OPTION_LIST_MOST];
    int n;
} option_list;

typedef struct option {
    const char *name;   /* "--steps"; without dashes it is a positional argument, "MODEL"; "-" of a heading */
    const char *letter; /* "-n", or NULL */
    option_kind kind;
    size_t offset;      /* of its field in the struct that is filled */
    bool required;      /* TEXT and CHOICE without a preset */
    const char *value;  /* what help calls it: "N" */
    double low, high;
    const char *preset; /* the value when it is not given; in parentheses: said in help only; or NULL */
    const char *help;
} option;

typedef struct option_set {
    const option *rows;
    int n;
    const char *with; /* taken only beside this option, a TEXT or CHOICE without preset; NULL: always */
} option_set;

/* Edits (insert, delete, replace) from a to b: names within two are taken for typing errors. */
static int option_distance(const char *a, const char *b)
{
    int row[64], n = (int)strlen(b);
    if (n > 60 || strlen(a) > 60) return 60;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int replace = diagonal + (a[i - 1] != b[j - 1]), best = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;
            diagonal = row[j];
            row[j] = replace < best ? replace : best;
        }
    }
    return row[n];
}

/* The nearest of the names, or NULL when none is near. */
static const char *option_nearest(const char *wrong, const char *best, const char *candidate, int *distance)
{
    int d = option_distance(wrong, candidate);
    if (d > 2 && !(strlen(wrong) > 4 && strncmp(wrong, candidate, strlen(wrong)) == 0)) return best;
    if (best && d >= *distance) return best;
    *distance = d;
    return candidate;
}

static bool option_in_list(const char *list, const char *text)
{
    size_t n = strlen(text);
    const char *at = list;
    while (at) {
        if (strncmp(at, text, n) == 0 && (at[n] == '|' || at[n] == 0) && n > 0) return true;
        at = strchr(at, '|');
        if (at) at++;
    }
    return false;
}

/* Whole numbers exactly; "1e6" too, as far as doubles are exact. */
static bool option_whole(const char *text, int64_t *out)
{
    char *end;
    errno = 0;
    *out = strtoll(text, &end, 10);
    if (end != text && *end == 0) return errno == 0;
    double number = strtod(text, &end);
    if (end == text || *end || !(fabs(number) <= 9007199254740992.0) || number != floor(number)) return false;
    *out = (int64_t)number;
    return true;
}

static bool option_number(const option *o, const char *text, void *at)
{
    char *end;
    if (o->kind == OPTION_SEED) { /* strtoull would take "-1" for 2^64 - 1 */
        errno = 0;
        *(uint64_t *)at = strtoull(text, &end, 10);
        return text[0] >= '0' && text[0] <= '9' && *end == 0 && errno == 0;
    }
    if (o->kind == OPTION_INT)
        return option_whole(text, (int64_t *)at) && (double)*(int64_t *)at >= o->low && (double)*(int64_t *)at <= o->high;
    *(double *)at = strtod(text, &end);
    return end != text && *end == 0 && *(double *)at >= o->low && *(double *)at <= o->high;
}

/* Stores one value; false with a sentence in `wrong`. */
static bool option_store(const option *o, const char *text, void *into, char *wrong, size_t size)
{
    void *at = (char *)into + o->offset;
    if (o->kind == OPTION_FLAG)
        *(bool *)at = true;
    else if (o->kind == OPTION_TEXT)
        *(const char **)at = text;
    else if (o->kind == OPTION_LIST) {
        option_list *list = (option_list *)at;
        if (list->n == OPTION_LIST_MOST) {
            snprintf(wrong, size, "%s can be given %d times", o->name, OPTION_LIST_MOST);
            return false;
        }
        list->at[list->n++] = text;
    } else if (o->kind == OPTION_CHOICE) {
        if (!option_in_list(o->value, text)) {
            snprintf(wrong, size, "%s must be one of %s, not '%s'", o->name, o->value, text);
            return false;
        }
        *(const char **)at = text;
    } else if (!option_number(o, text, at)) {
        if (o->kind == OPTION_SEED)
            snprintf(wrong, size, "%s must be a whole number from 0 to %llu, not '%s'", o->name,
                     (unsigned long long)UINT64_MAX, text);
        else
            snprintf(wrong, size, "%s must be a%s number from %.10g to %.10g, not '%s'", o->name,
                     o->kind == OPTION_INT ? " whole" : "", o->low, o->high, text);
        return false;
    }
    return true;
}

static const option *option_find(const option_set *sets, int n_sets, const char *name, size_t length)
{
    for (int s = 0; s < n_sets; s++)
        for (int i = 0; i < sets[s].n; i++) {
            const option *o = &sets[s].rows[i];
            if (o->kind == OPTION_HEADING) continue;
            if (o->name[0] == '-' && strlen(o->name) == length && strncmp(o->name, name, length) == 0) return o;
            if (o->letter && strlen(o->letter) == length && strncmp(o->letter, name, length) == 0) return o;
        }
    return NULL;
}

/* The set that a row is of. */
static const option_set *option_set_of(const option_set *sets, int n_sets, const option *o)
{
    int s = 0;
    while (s < n_sets - 1 && (o < sets[s].rows || o >= sets[s].rows + sets[s].n)) s++;
    return &sets[s];
}

/* Whether the option that this one goes with was given too. */
static bool option_in_company(const option_set *sets, int n_sets, const option *o, const void *into,
                              char *wrong, size_t size)
{
    const char *name = option_set_of(sets, n_sets, o)->with;
    const option *with = option_find(sets, n_sets, name, strlen(name));
    if (*(const char *const *)(const void *)((const char *)into + with->offset)) return true;
    snprintf(wrong, size, "%s goes with %s %s only", o->name, with->name, with->value);
    return false;
}

static const option *option_positional(const option_set *sets, int n_sets, int index)
{
    for (int s = 0; s < n_sets; s++)
        for (int i = 0; i < sets[s].n; i++)
            if (sets[s].rows[i].name[0] != '-' && index-- == 0) return &sets[s].rows[i];
    return NULL;
}

static bool option_unknown(const option_set *sets, int n_sets, const char *name, char *wrong, size_t size)
{
    const char *near = NULL;
    int distance = 99;
    for (int s = 0; s < n_sets; s++)
        for (int i = 0; i < sets[s].n; i++)
            if (sets[s].rows[i].name[0] == '-' && sets[s].rows[i].kind != OPTION_HEADING)
                near = option_nearest(name, near, sets[s].rows[i].name, &distance);
    snprintf(wrong, size, near ? "unknown option '%s'; did you mean %s?" : "unknown option '%s'", name, near);
    return false;
}

/* The value of an option given without '='. One that begins with '-' is a forgotten value, not a file
   of that name; "-" alone and numbers are values. */
static bool option_separate_value(const option_set *sets, int n_sets, const option *o, const char *text, char *wrong,
                                  size_t size)
{
    bool file = option_in_list("DIR|FILE|TEXT|MODEL|F.jsonl|F.safetensors|X.safetensors", o->value);
    char *end;
    if (text[0] != '-' || text[1] == 0 || (strtod(text, &end), end != text && *end == 0)) return true;
    const option *other = option_find(sets, n_sets, text, strcspn(text, "="));
    snprintf(wrong, size, other ? "%s needs a value (%s), and '%s' is an option; as a value: %s=%s%s%s"
                                : "%s needs a value (%s), and '%s' begins like an option; as a value: %s=%s%s%s",
             o->name, o->value, text, o->name, text, file ? " or ./" : "", file ? text : "");
    return false;
}

/* The option at argv[*i], which begins with '-', and its value, after which *i stands. */
static const option *option_read(const option_set *sets, int n_sets, int argc, char **argv, int *i, const char **value,
                                 char *wrong, size_t size)
{
    const char *text = argv[*i], *equals = strchr(text, '=');
    const option *o = option_find(sets, n_sets, text, equals ? (size_t)(equals - text) : strlen(text));
    *value = "";
    if (!o) {
        option_unknown(sets, n_sets, text, wrong, size);
        return NULL;
    }
    if (o->kind == OPTION_FLAG && equals) {
        snprintf(wrong, size, "%s takes no value", o->name);
        return NULL;
    }
    if (o->kind == OPTION_FLAG) return o;
    if (!equals && *i + 1 == argc) {
        snprintf(wrong, size, "%s needs a value (%s)", o->name, o->value);
        return NULL;
    }
    *value = equals ? equals + 1 : argv[++*i];
    return equals || option_separate_value(sets, n_sets, o, *value, wrong, size) ? o : NULL;
}

static bool options_preset(const option_set *sets, int n_sets, void *into, char *wrong, size_t size)
{
    for (int s = n_sets - 1; s >= 0; s--)
        for (int i = 0; i < sets[s].n; i++) {
            const option *o = &sets[s].rows[i];
            if (o->preset && o->preset[0] != '(' && !option_store(o, o->preset, into, wrong, size)) return false;
        }
    return true;
}

/* Reads argv[0 … argc−1] into the struct, which holds zeros, or what stands for "not given". `--name value`, `--name=value`; after "--"
   everything is positional. The first set's positional arguments and required options are checked,
   those of further sets not. False with a sentence in `wrong`. */
static bool options_parse(const option_set *sets, int n_sets, int argc, char **argv, void *into, bool *help,
                          char *wrong, size_t size)
{
    const option *last = NULL;
    bool plain = false;
    int i, positional = 0;
    if (!options_preset(sets, n_sets, into, wrong, size)) return false;
    for (i = 0; i < argc; i++) {
        const char *text = argv[i];
        const option *o;
        if (!plain && strcmp(text, "--") == 0) {
            plain = true;
            continue;
        }
        if (plain || text[0] != '-' || text[1] == 0) {
            o = option_positional(sets, 1, positional++);
            if (!o) {
                snprintf(wrong, size, "unexpected argument '%s'", text);
                return false;
            }
        } else {
            if (strcmp(text, "--help") == 0 || strcmp(text, "-h") == 0) {
                *help = true;
                return true;
            }
            o = option_read(sets, n_sets, argc, argv, &i, &text, wrong, size);
            if (!o) return false;
            if (option_set_of(sets, n_sets, o)->with) last = o;
        }
        if (!option_store(o, text, into, wrong, size)) return false;
    }
    if (last && !option_in_company(sets, n_sets, last, into, wrong, size)) return false;
    for (i = 0; i < sets[0].n; i++) {
        const option *o = &sets[0].rows[i];
        if (!o->required || *(const char **)(void *)((char *)into + o->offset)) continue;
        snprintf(wrong, size, o->name[0] == '-' ? "%s %s is missing" : "%s is missing", o->name, o->value);
        return false;
    }
    return true;
}

static void options_usage(FILE *f, const char *program, const char *verb, option_set set)
{
    fprintf(f, "usage: %s %s", program, verb);
    for (int i = 0; i < set.n; i++) {
        const option *o = &set.rows[i];
        if (o->kind == OPTION_HEADING) continue;
        if (o->name[0] != '-')
            fprintf(f, o->required ? " %s" : " [%s]", o->name);
        else if (o->required)
            fprintf(f, " %s %s", o->letter ? o->letter : o->name, o->value);
    }
    fprintf(f, " [options]\n"); /* those common to all at least */
}

static void options_help(FILE *f, option_set set)
{
    if (set.n > 0 && set.rows[0].kind != OPTION_HEADING) fputc('\n', f);
    for (int i = 0; i < set.n; i++) {
        const option *o = &set.rows[i];
        char left[64];
        if (o->kind == OPTION_HEADING) {
            fprintf(f, "\n%s\n", o->help);
            continue;
        }
        snprintf(left, sizeof left, "%s%s%s%s%s", o->letter ? o->letter : "", o->letter ? ", " : "", o->name,
                 o->name[0] == '-' && o->kind != OPTION_FLAG ? " " : "",
                 o->name[0] == '-' && o->kind != OPTION_FLAG && o->kind != OPTION_CHOICE ? o->value : "");
        fprintf(f, "  %-22s %s", left, o->help);
        if (o->kind == OPTION_CHOICE) fprintf(f, ": %s", o->value);
        if (o->kind == OPTION_INT || o->kind == OPTION_REAL) fprintf(f, " [%.10g … %.10g]", o->low, o->high);
        if (o->preset && o->preset[0] == '(')
            fprintf(f, " %s", o->preset);
        else if (o->preset)
            fprintf(f, " (%s)", o->preset);
        fputc('\n', f);
    }
}

#endif
