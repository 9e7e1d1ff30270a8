/*  Progress on stderr, and Ctrl-C. On a terminal one line, redrawn in place and never wider than the
    terminal, whose width is asked at each drawing; elsewhere a plain line now and then. A thread
    draws once a second what the library says seldom, so that the first second of a long phase
    already shows. No colours, so NO_COLOR changes nothing. */
#ifndef METER_H
#define METER_H

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifndef _WIN32
#include <sys/ioctl.h>
#endif
#include <time.h>
#include <unistd.h>

typedef struct meter {
    pthread_mutex_t lock; /* of everything below */
    pthread_cond_t wake;
    pthread_t thread;
    bool ticking, ending; /* the thread runs; it should end */
    const char *verb;
    bool terminal, quiet;
    int muted;            /* > 0: phases inside a phase stay silent */
    const char *phase;    /* NULL: nothing to show */
    char detail[160];     /* what is being worked on */
    char unit[16], figure[48];
    int64_t done, total;
    int64_t first, mark;  /* what was done a while ago, from which the rate is counted, and what will be that next */
    double began, first_at, mark_at, last_at, shown;
    int drawn;            /* columns of the line on the terminal; 0: none */
} meter;

static volatile sig_atomic_t stop_asked;
static volatile sig_atomic_t meter_drawn;      /* a bar stands on the current line */
static const char *volatile meter_stop_answer; /* what Ctrl-C is answered; NULL: nothing */

/* Acknowledges at once; the work stops at its next possible point. */
static void meter_on_signal(int number)
{
    int saved = errno;
    const char *answer = meter_stop_answer;
    ssize_t ignored = 0;
    (void)number;
    stop_asked = 1;
    if (answer && meter_drawn) ignored = write(2, "\n", 1);
    if (answer) ignored = write(2, answer, strlen(answer));
    meter_drawn = 0;
    (void)ignored;
    errno = saved;
}

/* SIGINT and SIGTERM: the first one asks, a second one ends the program at once. */
static void meter_catch(const char *answer)
{
    meter_stop_answer = answer;
#ifdef _WIN32 /* a handler is for one signal only, and comes in a thread of its own */
    signal(SIGINT, meter_on_signal), signal(SIGTERM, meter_on_signal);
#else
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = meter_on_signal;
    action.sa_flags = SA_RESTART | (int)SA_RESETHAND;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
#endif
}

static double meter_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- columns ---- */

static int meter_width(void)
{
    const char *columns = getenv("COLUMNS");
    int wish = columns ? atoi(columns) : 0;
#ifndef _WIN32
    struct winsize size;
    if (ioctl(2, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
#endif
    return wish > 0 ? wish : 80;
}

/* The code point at *at, which moves on; what is no UTF-8 counts as one. */
static uint32_t meter_code_point(const char **at)
{
    const unsigned char *s = (const unsigned char *)*at;
    int more = *s >= 0xf0 ? 3 : *s >= 0xe0 ? 2 : *s >= 0xc0 ? 1 : 0;
    uint32_t code = more ? *s & (0x3fu >> more) : *s;
    for (int i = 1; i <= more; i++) {
        if ((s[i] & 0xc0) != 0x80) {
            more = 0, code = *s;
            break;
        }
        code = code << 6 | (s[i] & 0x3fu);
    }
    *at += more + 1;
    return code;
}

/* Columns of a code point: combining marks none, East Asian wide ones and pictures two. */
static int meter_code_columns(uint32_t c)
{
    if ((c >= 0x300 && c <= 0x36f) || (c >= 0x200b && c <= 0x200f) || (c >= 0xfe00 && c <= 0xfe0f)) return 0;
    return (c >= 0x1100 && c <= 0x115f) || (c >= 0x2e80 && c <= 0xa4cf) || (c >= 0xac00 && c <= 0xd7a3) ||
           (c >= 0xf900 && c <= 0xfaff) || (c >= 0xfe30 && c <= 0xfe6f) || (c >= 0xff00 && c <= 0xff60) ||
           (c >= 0xffe0 && c <= 0xffe6) || (c >= 0x1f300 && c <= 0x1faff) || (c >= 0x20000 && c <= 0x3fffd) ? 2 : 1;
}

static int meter_columns(const char *text)
{
    int columns = 0;
    while (*text) columns += meter_code_columns(meter_code_point(&text));
    return columns;
}

/* Cuts after the last character that fits. */
static void meter_cut(char *text, int columns)
{
    const char *at = text, *next = text;
    while (*next) {
        columns -= meter_code_columns(meter_code_point(&next));
        if (columns < 0) break;
        at = next;
    }
    text[at - text] = 0;
}

/* A name for one line: control characters would move the cursor. */
static void meter_name(char *out, size_t size, const char *name)
{
    char *at = out;
    snprintf(out, size, "%s", name);
    for (; *at; at++)
        if ((unsigned char)*at < 32 || *at == 127) *at = '?';
}

/* ---- the line ---- */

static void duration(double seconds, char out[32])
{
    int64_t s = seconds > 0 && seconds < 1e9 ? (int64_t)(seconds + 0.5) : 0;
    if (s >= 3600)
        snprintf(out, 32, "%d:%02d:%02d", (int)(s / 3600), (int)(s / 60 % 60), (int)(s % 60));
    else
        snprintf(out, 32, "%d:%02d", (int)(s / 60), (int)(s % 60));
}

/* Units a second; 0: not known, before two reports half a second apart. */
static double meter_rate(const meter *m)
{
    double seconds = m->last_at - m->first_at;
    return m->done > m->first && seconds >= 0.5 ? (double)(m->done - m->first) / seconds : 0;
}

/* "3:20 left", or the time spent as long as nobody knows. */
static void meter_time(const meter *m, double now, char out[48])
{
    double rate = meter_rate(m);
    char text[32];
    if (rate > 0 && m->total > m->done) {
        duration((double)(m->total - m->done) / rate - (now - m->last_at), text);
        snprintf(out, 48, "%s left", text);
    } else {
        duration(now - m->began, text);
        snprintf(out, 48, "%s", now - m->began >= 1 ? text : "");
    }
}

enum { METER_LINE = 512, METER_LEVELS = 8, METER_BAR = 20 };

/* The line at a level of detail: 0 all there is, METER_LEVELS − 1 the count alone. */
static void meter_compose(const meter *m, double now, int level, int bar, char out[METER_LINE])
{
    char hashes[64] = "", time[48], rate[32] = "", count[64] = "";
    int filled = m->total > 0 ? (int)(bar * (m->done < m->total ? m->done : m->total) / m->total) : 0;
    meter_time(m, now, time);
    if (m->total <= 0) {
        snprintf(out, METER_LINE, "%s%s%s%s%s", m->phase, m->detail[0] ? ": " : "", m->detail, time[0] ? " " : "", time);
        return;
    }
    if (level >= 5) bar = 0;
    for (int i = 0; i < bar; i++) hashes[i] = i < filled ? '#' : '.';
    hashes[bar] = 0;
    if (meter_rate(m) > 0) snprintf(rate, sizeof rate, ", %.3g/s", meter_rate(m));
    snprintf(count, sizeof count, "%lld/%lld%s%s", (long long)m->done, (long long)m->total, level < 3 ? " " : "",
             level < 3 ? m->unit : "");
    snprintf(out, METER_LINE, "%s%s%s%s%s%s%s%s%s%s%s%s", level < 7 ? m->phase : "", level < 7 ? " " : "", bar ? "[" : "",
             hashes, bar ? "] " : "", count, level < 4 ? m->figure : "", level < 2 ? rate : "",
             level < 6 && time[0] ? ", " : "", level < 6 ? time : "", level < 1 && m->detail[0] ? "; " : "",
             level < 1 ? m->detail : "");
}

/* The most that fits into so many columns; a wide line gets a longer bar. */
static void meter_fit(const meter *m, double now, int columns, char out[METER_LINE])
{
    int spare = -1,
        wide = columns < 100 ? METER_BAR : columns < 180 ? METER_BAR + (columns - 100) / 4 : 2 * METER_BAR;
    for (int level = 0; level < METER_LEVELS && spare < 0; level++) {
        meter_compose(m, now, level, level < 3 ? wide : METER_BAR / 2, out);
        spare = columns - meter_columns(out);
    }
    meter_cut(out, columns);
}

static void meter_write(const char *text)
{
    size_t n = strlen(text);
    while (n > 0) {
        ssize_t put = write(2, text, n);
        if (put < 0 && errno != EINTR) return; /* nobody reads: no reason to stop working */
        if (put > 0) text += put, n -= (size_t)put;
    }
}

/* Removes the line from the terminal. The lock is held. */
static void meter_erase(meter *m)
{
    char line[METER_LINE];
    int columns = meter_width() - 1;
    if (m->drawn > columns) m->drawn = columns;
    if (m->drawn > 0 && meter_drawn) {
        snprintf(line, sizeof line, "\r%*s\r", m->drawn < METER_LINE - 3 ? m->drawn : METER_LINE - 3, "");
        meter_write(line);
    }
    m->drawn = 0, meter_drawn = 0;
}

/* The last column stays free: some terminals go to the next line when it is filled. */
static void meter_draw(meter *m, double now)
{
    char text[METER_LINE], line[2 * METER_LINE];
    int columns = meter_width() - 1;
    if (columns < 1) columns = 1;
    if (columns > METER_LINE / 4) columns = METER_LINE / 4; /* four bytes a character at most */
    meter_fit(m, now, columns, text);
    int wide = meter_columns(text);
    int pad = meter_drawn && m->drawn > wide ? (m->drawn < columns ? m->drawn : columns) - wide : 0;
    snprintf(line, sizeof line, "\r%s%*s", text, pad > 0 ? pad : 0, "");
    m->drawn = wide, meter_drawn = 1, m->shown = now;
    meter_write(line);
}

/* Away from a terminal: two seconds into a phase, then every five seconds, after a minute every thirty. */
static void meter_print(meter *m, double now)
{
    char text[METER_LINE];
    double wait = m->shown == 0 ? 2 : now - m->began < 60 ? 5 : 30;
    if (now - (m->shown == 0 ? m->began : m->shown) < wait) return;
    meter_fit(m, now, METER_LINE, text); /* the bar says nothing there */
    if (m->total > 0) meter_compose(m, now, 0, 0, text);
    m->shown = now;
    strcat(text, "\n");
    meter_write(text);
}

static void meter_show(meter *m, double now, double pause)
{
    if (m->quiet || !m->phase) return;
    if (!m->terminal)
        meter_print(m, now);
    else if (now - m->shown >= pause || m->shown == 0)
        meter_draw(m, now);
}

/* ---- what the program calls ---- */

static void *meter_tick(void *user)
{
    meter *m = (meter *)user;
    struct timespec at;
    pthread_mutex_lock(&m->lock);
    while (!m->ending) {
        clock_gettime(CLOCK_REALTIME, &at);
        at.tv_sec++;
        pthread_cond_timedwait(&m->wake, &m->lock, &at);
        if (!m->ending) meter_show(m, meter_now(), 0.9);
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

static void meter_begin(meter *m, const char *verb, bool quiet)
{
    const char *term = getenv("TERM");
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->wake, NULL);
    m->verb = verb, m->quiet = quiet;
    m->terminal = isatty(2) && term && strcmp(term, "dumb") != 0;
    if (!quiet) m->ticking = pthread_create(&m->thread, NULL, meter_tick, m) == 0; /* without it: fewer drawings */
}

/* Nothing is shown from now on, until the next phase. */
static void meter_clear(meter *m)
{
    pthread_mutex_lock(&m->lock);
    meter_erase(m);
    m->phase = NULL;
    pthread_mutex_unlock(&m->lock);
}

static void meter_end(meter *m)
{
    meter_clear(m);
    pthread_mutex_lock(&m->lock);
    m->ending = true;
    pthread_cond_signal(&m->wake);
    pthread_mutex_unlock(&m->lock);
    if (m->ticking) pthread_join(m->thread, NULL);
    pthread_cond_destroy(&m->wake);
    pthread_mutex_destroy(&m->lock);
}

/* Something that nobody counts: "loading model". */
static void meter_doing(meter *m, const char *what)
{
    double now = meter_now();
    if (m->muted > 0) return;
    pthread_mutex_lock(&m->lock);
    m->phase = m->verb, m->total = m->done = m->first = 0;
    m->began = now;
    if (m->terminal) m->shown = now - 0.5; /* what is done in half a second needs no line */
    else m->shown = 0;
    meter_name(m->detail, sizeof m->detail, what);
    pthread_mutex_unlock(&m->lock);
}

/* done of total in a phase; a NaN is no figure. */
static void meter_count(meter *m, const char *phase, const char *item, int64_t done, int64_t total, const char *unit,
                        const char *figure, double value)
{
    double now = meter_now();
    if (m->muted > 0) return;
    pthread_mutex_lock(&m->lock);
    if (!m->phase || m->total <= 0 || strcmp(m->phase, phase) != 0 || done < m->done) {
        m->first = m->mark = done, m->first_at = m->mark_at = now;
        m->began = now, m->shown = 0;
    }
    if (done != m->done && now - m->mark_at > 60) { /* the rate is that of the last one to two minutes */
        m->first = m->mark, m->first_at = m->mark_at;
        m->mark = done, m->mark_at = now;
    }
    if (done != m->done || m->last_at < m->first_at) m->last_at = now; /* a report inside a unit is none of the rate */
    m->phase = phase, m->done = done, m->total = total;
    snprintf(m->unit, sizeof m->unit, "%s", unit ? unit : "");
    meter_name(m->detail, sizeof m->detail, item ? item : "");
    m->figure[0] = 0;
    if (value == value) snprintf(m->figure, sizeof m->figure, ", %s %.4g", figure, value);
    meter_show(m, now, done == total ? 0 : 0.1);
    pthread_mutex_unlock(&m->lock);
}

/* Inside a counted phase: what it is at. */
static void meter_detail(meter *m, const char *what)
{
    if (m->muted > 0) return;
    pthread_mutex_lock(&m->lock);
    meter_name(m->detail, sizeof m->detail, what);
    meter_show(m, meter_now(), 0.2);
    pthread_mutex_unlock(&m->lock);
}

#endif
