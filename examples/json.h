/*  Text that grows, JSON written into it, and the one thing that the program reads of JSON: arrays of token
    ids. Out of memory is remembered in `failed`, so that it need be asked only at the end. */
#ifndef JSON_H
#define JSON_H

#include <float.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JSON_PRINTF(text, rest) __attribute__((format(printf, text, rest)))

/* Zeroed, it is empty. data is zero-terminated once anything was added. */
typedef struct buffer {
    char *data;
    int64_t size, capacity;
    bool failed;
} buffer;

static void buffer_free(buffer *b)
{
    free(b->data);
    memset(b, 0, sizeof *b);
}

/* Room for n more bytes and a zero. */
static bool buffer_reserve(buffer *b, int64_t n)
{
    int64_t capacity = b->capacity ? b->capacity : 256;
    while (capacity <= b->size + n) capacity *= 2;
    if (capacity == b->capacity || b->failed) return !b->failed;
    char *more = (char *)realloc(b->data, (size_t)capacity);
    if (!more) {
        b->failed = true;
        return false;
    }
    b->data = more;
    b->capacity = capacity;
    return true;
}

static void buffer_put(buffer *b, const char *bytes, int64_t n)
{
    if (n < 1 || !buffer_reserve(b, n)) return;
    memcpy(b->data + b->size, bytes, (size_t)n);
    b->data[b->size += n] = 0;
}

static JSON_PRINTF(2, 3) void buffer_printf(buffer *b, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0 || !buffer_reserve(b, n)) return;
    va_start(args, format);
    vsnprintf(b->data + b->size, (size_t)n + 1, format, args);
    va_end(args);
    b->size += n;
}

/* The first character's bytes, n of them at most; 0: they are not UTF-8. */
static int json_character(const char *s, int64_t n, uint32_t *character)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *u = (const unsigned char *)s;
    int length = u[0] < 0x80 ? 1 : u[0] < 0xc2 ? 0 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : u[0] < 0xf5 ? 4 : 0;
    uint32_t c = length < 2 ? u[0] : u[0] & (0x7fu >> length);
    if (length == 0 || length > n) return 0;
    for (int i = 1; i < length; i++) {
        if ((u[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (u[i] & 0x3fu);
    }
    if (c < least[length] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return 0;
    *character = c;
    return length;
}

/* "…", quoted and escaped: also what terminals obey. Half a character of a generated text becomes U+FFFD. */
static void json_string(buffer *b, const char *s, int64_t n)
{
    static const char controls[] = "\b\f\n\r\t", names[] = "bfnrt";
    buffer_put(b, "\"", 1);
    for (int64_t at = 0; at < n;) {
        uint32_t c = 0;
        int length = json_character(s + at, n - at, &c);
        const char *control = c > 0 && c < 0x20 ? strchr(controls, (int)c) : NULL;
        if (length == 0)
            buffer_put(b, "\\ufffd", 6);
        else if (c == '"' || c == '\\')
            buffer_printf(b, "\\%c", (int)c);
        else if (control)
            buffer_printf(b, "\\%c", names[control - controls]);
        else if (c < 0x20 || (c >= 0x7f && c < 0xa0))
            buffer_printf(b, "\\u%04x", (unsigned)c);
        else
            buffer_put(b, s + at, length);
        at += length ? length : 1;
    }
    buffer_put(b, "\"", 1);
}

/* As few digits as give the same number back; null for what JSON lacks. (The program never sets a locale.) */
static void json_number(buffer *b, double value)
{
    char text[48];
    if (!(value >= -DBL_MAX && value <= DBL_MAX)) {
        buffer_put(b, "null", 4);
        return;
    }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    buffer_put(b, text, (int64_t)strlen(text));
}

/* ---- members of objects: the comma before one is written where one is needed ---- */

static void put_key(buffer *b, const char *key)
{
    char last = (char)(b->size > 0 ? b->data[b->size - 1] : '{');
    if (last != '{' && last != '[' && last != '\n') buffer_put(b, ",", 1);
    if (!key) return;
    json_string(b, key, (int64_t)strlen(key));
    buffer_put(b, ":", 1);
}

static void put_open(buffer *b, const char *key, const char *bracket)
{
    put_key(b, key);
    buffer_put(b, bracket, 1);
}

static void put_close(buffer *b, const char *bracket) { buffer_put(b, bracket, 1); }

static void put_number(buffer *b, const char *key, double value)
{
    put_key(b, key);
    json_number(b, value);
}

static void put_int(buffer *b, const char *key, int64_t value)
{
    put_key(b, key);
    buffer_printf(b, "%lld", (long long)value);
}

static void put_bytes(buffer *b, const char *key, const char *value, int64_t bytes)
{
    put_key(b, key);
    json_string(b, value, bytes);
}

static void put_text(buffer *b, const char *key, const char *value)
{
    put_bytes(b, key, value, (int64_t)strlen(value));
}

/* ---- [[1, 2, 3], [4, 5, 6]] ---- */

static const char *json_space(const char *s)
{
    return s + strspn(s, " \t\r\n");
}

/* One array of whole numbers at *s, which moves on; how many, −1 when it is none. ids NULL: only counted;
   else each must lie in [0, limit), −2 when one does not. */
static int64_t json_ids_row(const char **s, int32_t *ids, int64_t limit)
{
    int64_t n = 0;
    const char *at = json_space(*s);
    if (*at++ != '[') return -1;
    at = json_space(at);
    while (*at != ']') {
        char *end;
        if (n > 0 && *at++ != ',') return -1;
        at = json_space(at);
        if (*at != '-' && (*at < '0' || *at > '9')) return -1;
        long long id = strtoll(at, &end, 10); /* what overflows is out of range too */
        if (end == at || *end == '.' || *end == 'e' || *end == 'E') return ids ? -2 : -1;
        if (ids && (id < 0 || id >= limit)) return -2;
        if (ids) ids[n] = (int32_t)id;
        n++;
        at = json_space(end);
    }
    *s = at + 1;
    return n;
}

typedef enum json_ids {
    JSON_IDS_GOOD,
    JSON_IDS_MALFORMED,
    JSON_IDS_UNEQUAL, /* arrays of different lengths */
    JSON_IDS_RANGE,   /* an id outside [0, limit) */
    JSON_IDS_MEMORY
} json_ids;

/* The B arrays of T ids that the text is, in memory to be freed; `length` bytes with a zero behind them. */
static json_ids json_ids_read(const char *text, int64_t length, int64_t limit, int32_t **ids, int64_t *B,
                              int64_t *T)
{
    const char *s = json_space(text);
    *ids = NULL;
    *B = *T = 0;
    if (*s++ != '[') return JSON_IDS_MALFORMED;
    for (int pass = 0; pass < 2; pass++) { /* counts, then reads */
        const char *at = s;
        int64_t rows = 0;
        do {
            int64_t n = json_ids_row(&at, *ids ? *ids + rows * *T : NULL, limit);
            if (n == -2) return JSON_IDS_RANGE;
            if (n < 1) return JSON_IDS_MALFORMED;
            if (rows > 0 && n != *T) return JSON_IDS_UNEQUAL;
            *T = n;
            rows++;
            at = json_space(at);
        } while (*at++ == ',');
        if (at[-1] != ']' || json_space(at) != text + length) return JSON_IDS_MALFORMED;
        *B = rows;
        if (pass == 0) *ids = (int32_t *)calloc((size_t)(*B * *T), sizeof **ids);
        if (!*ids) return JSON_IDS_MEMORY;
    }
    return JSON_IDS_GOOD;
}

#endif
