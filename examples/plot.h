/*  Line charts as SVG: panels side by side with common axes, linear or logarithmic, every line named at its
    end, dashed lines for levels. Lines that coincide share their dashes and their label. The file carries its own colours for light and for dark viewers. */
#ifndef PLOT_H
#define PLOT_H

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

typedef struct plot_line {
    const char *name;
    const double *x, *y; /* n points, x rising; points that are not finite are left out */
    int n;
    const double *error; /* [n] bars of y ± error; NULL: none */
    bool dots;           /* the points themselves are marked, */
    bool loose;          /* and not joined */
} plot_line;

typedef struct plot_level {
    const char *name;
    double y;
} plot_level;

enum { PLOT_LINES = 8, PLOT_PANELS = 4, PLOT_LEVELS = 4 };

typedef struct plot_panel {
    const char *title;
    plot_line lines[PLOT_LINES];
    int n_lines;
} plot_panel;

typedef struct plot {
    const char *title, *subtitle, *x_label, *y_label;
    plot_panel panels[PLOT_PANELS];
    int n_panels;
    plot_level levels[PLOT_LEVELS]; /* drawn in every panel */
    int n_levels;
    double y_max; /* > 0: what lies higher is cut off */
    bool log_x, log_y; /* logarithmic axes, of what is positive */
} plot;

typedef struct plot_frame { /* where a panel stands, and the ranges it shows: of a logarithmic axis the exponents */
    double left, top, width, height, x0, x1, y0, y1;
    bool log_x, log_y;
} plot_frame;

/* Not isfinite: as mingw writes that macro, it warns of its own casts. */
static bool plot_finite(double x) { return fabs(x) <= DBL_MAX; }

/* A number's place on its axis; NaN: it has none. */
static double plot_at(bool logarithmic, double value)
{
    if (!logarithmic) return value;
    return value > 0 ? log10(value) : (double)NAN;
}
static double plot_px(const plot_frame *f, double x)
{
    return f->left + (plot_at(f->log_x, x) - f->x0) / (f->x1 - f->x0) * f->width;
}
static double plot_py(const plot_frame *f, double y)
{
    return f->top + (f->y1 - plot_at(f->log_y, y)) / (f->y1 - f->y0) * f->height;
}
static bool plot_shows(const plot_frame *f, double x, double y)
{
    return plot_finite(plot_at(f->log_x, x)) && plot_finite(plot_at(f->log_y, y));
}

/* 1, 2 or 5 times a power of ten, giving four to eight ticks over the range. */
static double plot_tick(double range)
{
    double unit = pow(10, floor(log10(range / 4)));
    double ratio = range / 4 / unit;
    return unit * (ratio >= 5 ? 5 : ratio >= 2 ? 2 : 1);
}

/* The numbers that an axis names, in its range: fills `at`, returns how many. Logarithmic: powers of ten, in
   between 2 and 5 times these where there is room. */
enum { PLOT_TICKS = 24 };
static int plot_ticks(bool logarithmic, double from, double to, double at[PLOT_TICKS])
{
    static const double factors[] = {1, 2, 5};
    int n = 0, each = to - from > 2.6 ? 1 : 3;
    double tick = logarithmic ? ceil((to - from) / 7) : plot_tick(to - from);
    if (logarithmic && tick < 1) tick = 1;
    double first = logarithmic ? floor(from / tick) : ceil(from / tick - 1e-9);
    for (double k = first; n < PLOT_TICKS && k * tick <= to + tick * 1e-9; k++)
        for (int i = 0; i < (logarithmic ? each : 1) && n < PLOT_TICKS; i++) {
            double value = logarithmic ? factors[i] * pow(10, k * tick) : fabs(k) < 1e-9 ? 0.0 : k * tick;
            double place = plot_at(logarithmic, value);
            if (place >= from - 1e-9 && place <= to + tick * 1e-9) at[n++] = value;
        }
    return n;
}

static void plot_text(FILE *f, const char *text)
{
    for (; *text; text++)
        if (*text == '<' || *text == '>' || *text == '&')
            fprintf(f, "&#%d;", *text);
        else
            fputc(*text, f);
}

static void plot_label(FILE *f, double x, double y, const char *style, const char *text)
{
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">", x, y, style);
    plot_text(f, text);
    fprintf(f, "</text>\n");
}

/* The ranges that hold every point; a little air above and below. */
static void plot_ranges(const plot *p, plot_frame *f)
{
    f->x0 = f->y0 = 1e300, f->x1 = f->y1 = -1e300;
    f->log_x = p->log_x, f->log_y = p->log_y;
    for (int a = 0; a < p->n_panels; a++)
        for (int l = 0; l < p->panels[a].n_lines; l++)
            for (int i = 0; i < p->panels[a].lines[l].n; i++) {
                double x = p->panels[a].lines[l].x[i], y = p->panels[a].lines[l].y[i];
                if (!plot_shows(f, x, y)) continue;
                x = plot_at(f->log_x, x), y = plot_at(f->log_y, y);
                f->x0 = fmin(f->x0, x), f->x1 = fmax(f->x1, x);
                f->y0 = fmin(f->y0, y), f->y1 = fmax(f->y1, y);
            }
    for (int i = 0; i < p->n_levels; i++) {
        double y = plot_at(f->log_y, p->levels[i].y);
        if (plot_finite(y)) f->y0 = fmin(f->y0, y), f->y1 = fmax(f->y1, y);
    }
    if (p->y_max > 0) f->y1 = fmin(f->y1, plot_at(f->log_y, p->y_max));
    if (!(f->x1 > f->x0)) f->x0 = 0, f->x1 = 1;
    if (!(f->y1 > f->y0)) f->y0 = f->y0 < 1e300 ? f->y0 - 1 : 0, f->y1 = f->y0 + 2;
    double tick = f->log_y ? (f->y1 - f->y0) / 20 : plot_tick(f->y1 - f->y0);
    f->y0 = floor(f->y0 / tick - 0.15) * tick, f->y1 = ceil(f->y1 / tick + (f->log_y ? 0.3 : 0)) * tick;
    if (f->log_x) tick = (f->x1 - f->x0) / 30, f->x0 -= tick, f->x1 += tick;
}

/* A tick's number: 1e-5 rather than 0.00001 or 1e-05. */
static void plot_number(char text[32], double value)
{
    int exponent = value > 0 ? (int)floor(log10(value) + 1e-9) : 0;
    if (value > 0 && (exponent < -3 || exponent > 4)) snprintf(text, 32, "%.3ge%d", value / pow(10, exponent), exponent);
    else snprintf(text, 32, "%.4g", value);
}

static void plot_axes(FILE *out, const plot *p, const plot_frame *f, bool first)
{
    double at[PLOT_TICKS];
    char text[32];
    int n = plot_ticks(f->log_y, f->y0, f->y1, at);
    for (int i = 0; i < n; i++) {
        fprintf(out, "<path class=\"grid\" d=\"M%.1f %.1fh%.1f\"/>\n", f->left, plot_py(f, at[i]), f->width);
        plot_number(text, at[i]);
        if (first) plot_label(out, f->left - 8, plot_py(f, at[i]) + 4, "tick end", text);
    }
    n = plot_ticks(f->log_x, f->x0, f->x1, at);
    for (int i = 0; i < n; i++) {
        fprintf(out, "<path class=\"axis\" d=\"M%.1f %.1fv5\"/>\n", plot_px(f, at[i]), f->top + f->height);
        plot_number(text, at[i]);
        plot_label(out, plot_px(f, at[i]), f->top + f->height + 19, "tick middle", text);
    }
    fprintf(out, "<path class=\"axis\" d=\"M%.1f %.1fh%.1f\"/>\n", f->left, f->top + f->height, f->width);
    plot_label(out, f->left + f->width / 2, f->top + f->height + 40, "label middle", p->x_label);
}

/* The first line that line l lies on everywhere, l itself when there is none. */
static int plot_twin(const plot_panel *panel, const plot_frame *f, int l)
{
    const plot_line *b = &panel->lines[l];
    for (int k = 0; k < l; k++) {
        const plot_line *a = &panel->lines[k];
        bool same = a->n == b->n;
        for (int i = 0; same && i < b->n; i++)
            same = fabs(plot_px(f, a->x[i]) - plot_px(f, b->x[i])) < 1 && fabs(plot_py(f, a->y[i]) - plot_py(f, b->y[i])) < 1.5;
        if (same) return k;
    }
    return l;
}

/* "continuous = pv-linear", each name in its line's colour; colour −1: a level. */
static void plot_name(FILE *out, const plot_panel *panel, const plot_frame *f, double y, const char *name, int colour)
{
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" class=\"name\">", f->left + f->width + 12, y);
    if (colour < 0) fprintf(out, "<tspan class=\"quiet\">");
    else fprintf(out, "<tspan class=\"t%d\">", colour);
    plot_text(out, name);
    fprintf(out, "</tspan>");
    for (int l = colour + 1; colour >= 0 && l < panel->n_lines; l++) {
        if (plot_twin(panel, f, l) != colour) continue;
        fprintf(out, " = <tspan class=\"t%d\">", l);
        plot_text(out, panel->lines[l].name);
        fprintf(out, "</tspan>");
    }
    fprintf(out, "</text>\n");
}

/* Room for the longest label; nobody knows the viewer's font, so for a wide one. */
static double plot_name_width(const plot *p, const plot_frame *f)
{
    size_t longest = 0;
    for (int i = 0; i < p->n_levels; i++) longest = strlen(p->levels[i].name) > longest ? strlen(p->levels[i].name) : longest;
    for (int a = 0; a < p->n_panels; a++)
        for (int l = 0; l < p->panels[a].n_lines; l++) {
            size_t n = 0;
            for (int k = l; k < p->panels[a].n_lines; k++)
                if (plot_twin(&p->panels[a], f, k) == l) n += strlen(p->panels[a].lines[k].name) + (k > l ? 3 : 0);
            longest = n > longest ? n : longest;
        }
    return 28 + 8.4 * (double)longest;
}

/* Labels at the lines' ends, in the lines' order of height, pushed apart until they do not touch. */
static void plot_names(FILE *out, const plot *p, const plot_panel *panel, const plot_frame *f)
{
    const char *names[PLOT_LINES + PLOT_LEVELS];
    double at[PLOT_LINES + PLOT_LEVELS], want[PLOT_LINES + PLOT_LEVELS], t;
    int colour[PLOT_LINES + PLOT_LEVELS], n = 0, j;
    for (int i = 0; i < panel->n_lines; i++) {
        const plot_line *line = &panel->lines[i];
        for (j = line->n - 1; j >= 0 && !plot_shows(f, line->x[j], line->y[j]); j--) {}
        if (j < 0 || plot_twin(panel, f, i) != i) continue;
        names[n] = line->name, colour[n] = i, at[n++] = fmax(plot_py(f, line->y[j]), f->top);
    }
    for (int i = 0; i < p->n_levels; i++)
        names[n] = p->levels[i].name, colour[n] = -1, at[n++] = plot_py(f, p->levels[i].y);
    for (int i = 1; i < n; i++) /* insertion sort from top to bottom */
        for (j = i; j > 0 && at[j - 1] > at[j]; j--) {
            t = at[j], at[j] = at[j - 1], at[j - 1] = t;
            int c = colour[j];
            colour[j] = colour[j - 1], colour[j - 1] = c;
            const char *s = names[j];
            names[j] = names[j - 1], names[j - 1] = s;
        }
    memcpy(want, at, sizeof want);
    for (int round = 0; round < 200; round++)
        for (int i = 1; i < n; i++)
            if (at[i] - at[i - 1] < 15) t = (15 - (at[i] - at[i - 1])) / 2, at[i - 1] -= t, at[i] += t;
    for (int i = 0; i < n; i++) {
        fprintf(out, "<path class=\"lead\" d=\"M%.1f %.1fL%.1f %.1f\"/>\n", f->left + f->width + 1, want[i],
                f->left + f->width + 9, at[i]);
        plot_name(out, panel, f, at[i] + 4, names[i], colour[i]);
    }
}

/* Bars of y ± error and dots, as far as a line has them. */
static void plot_marks(FILE *out, const plot_frame *f, const plot_line *line, int panel, int l)
{
    for (int i = 0; i < line->n; i++) {
        double x = line->x[i], y = line->y[i], e = line->error ? line->error[i] : 0;
        if (!plot_shows(f, x, y)) continue;
        double low = f->log_y && !(y - e > 0) ? f->top + f->height : plot_py(f, y - e);
        if (e > 0)
            fprintf(out, "<path clip-path=\"url(#p%d)\" class=\"bar c%d\" d=\"M%.1f %.1fV%.1f\"/>\n", panel, l,
                    plot_px(f, x), low, plot_py(f, y + e));
        if (line->dots)
            fprintf(out, "<circle clip-path=\"url(#p%d)\" class=\"dot d%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"/>\n", panel, l,
                    plot_px(f, x), plot_py(f, y));
    }
}

static void plot_draw_panel(FILE *out, const plot *p, const plot_panel *panel, const plot_frame *f, bool first)
{
    plot_label(out, f->left, f->top - 10, "panel", panel->title);
    plot_axes(out, p, f, first);
    fprintf(out, "<clipPath id=\"p%d\"><rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/></clipPath>\n",
            (int)(panel - p->panels), f->left, f->top - 1, f->width + 2, f->height + 2);
    for (int i = 0; i < p->n_levels; i++)
        fprintf(out, "<path class=\"level\" d=\"M%.1f %.1fh%.1f\"/>\n", f->left, plot_py(f, p->levels[i].y), f->width);
    for (int l = 0; l < panel->n_lines; l++) {
        const plot_line *line = &panel->lines[l];
        char move = 'M';
        plot_marks(out, f, line, (int)(panel - p->panels), l);
        fprintf(out, "<path clip-path=\"url(#p%d)\" class=\"line c%d%s\" d=\"", (int)(panel - p->panels), l,
                plot_twin(panel, f, l) != l ? " twin" : "");
        for (int i = 0; i < line->n && !line->loose; i++) {
            if (!plot_shows(f, line->x[i], line->y[i])) continue;
            fprintf(out, "%c%.1f %.1f", move, plot_px(f, line->x[i]), plot_py(f, line->y[i]));
            move = 'L';
        }
        fprintf(out, "\"/>\n");
    }
    plot_names(out, p, panel, f);
}

static void plot_style(FILE *f)
{
    /* Eight hues, told apart also by most colour-blind readers: darker on light, lighter on dark. */
    static const char *const light[] = {"#1b6ca8", "#b5540c", "#23763f", "#8a3f9c", "#a52a3c", "#5b6b1a", "#006d77", "#555"};
    static const char *const dark[] = {"#6cb6f5", "#f2a15f", "#6fcf8e", "#d29be6", "#ff8b98", "#c3d069", "#5fd3dd", "#bbb"};
    fprintf(f, "<style>\n.ground{fill:#fff}.line{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}"
               "text{font:13px sans-serif;fill:#333}.title{font-size:17px;font-weight:bold;fill:#111}.panel{font-weight:bold}"
               ".tick{font-size:12px}.end{text-anchor:end}.middle{text-anchor:middle}.name{font-weight:bold}"
               ".quiet{font-weight:normal;fill:#555}.grid{stroke:#e4e4e4;fill:none}.axis{stroke:#888;fill:none}"
               ".twin{stroke-dasharray:9 9;stroke-linecap:butt}.bar{stroke-width:1.2;opacity:.7}.lead{stroke:#bbb;fill:none}.level{stroke:#777;stroke-dasharray:5 4;fill:none}\n");
    for (int i = 0; i < PLOT_LINES; i++) fprintf(f, ".c%d{stroke:%s}.t%d,.d%d{fill:%s}", i, light[i], i, i, light[i]);
    fprintf(f, "\n@media (prefers-color-scheme:dark){.ground{fill:#16191d}text{fill:#ccc}.title{fill:#f2f2f2}"
               ".quiet{fill:#aaa}.grid{stroke:#2c3138}.axis{stroke:#777}.lead{stroke:#555}.level{stroke:#999}\n");
    for (int i = 0; i < PLOT_LINES; i++) fprintf(f, ".c%d{stroke:%s}.t%d,.d%d{fill:%s}", i, dark[i], i, i, dark[i]);
    fprintf(f, "}\n</style>\n");
}

/* A chart is as wide as its heading at least. */
static double plot_wide(double width, const char *title, const char *subtitle)
{
    return fmax(width, fmax(40 + 10.0 * (double)strlen(title), 40 + 7.6 * (double)strlen(subtitle)));
}

/* The chart's ground, style and headings. */
static void plot_begin(FILE *f, double width, double height, const char *title, const char *subtitle)
{
    fprintf(f, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" height=\"%.0f\">\n", width,
            height, width, height);
    plot_style(f);
    fprintf(f, "<rect class=\"ground\" width=\"100%%\" height=\"100%%\"/>\n");
    plot_label(f, 20, 30, "title", title);
    plot_label(f, 20, 51, "label", subtitle);
}

/* Writes the SVG; false when that fails. */
static bool plot_write(const plot *p, FILE *f)
{
    const double panel_width = 300, margin = 64, height = 300, total = height + 148;
    plot_frame frame;
    memset(&frame, 0, sizeof frame);
    plot_ranges(p, &frame);
    frame.top = 92, frame.width = panel_width, frame.height = height;
    double name_width = plot_name_width(p, &frame);
    double width = plot_wide(margin + p->n_panels * (panel_width + name_width), p->title, p->subtitle);
    plot_begin(f, width, total, p->title, p->subtitle);
    fprintf(f, "<text transform=\"translate(18 %.1f) rotate(-90)\" class=\"label middle\">", 92 + height / 2);
    plot_text(f, p->y_label);
    fprintf(f, "</text>\n");
    for (int i = 0; i < p->n_panels; i++) {
        frame.left = margin + i * (panel_width + name_width);
        plot_draw_panel(f, p, &p->panels[i], &frame, i == 0);
    }
    fprintf(f, "</svg>\n");
    return !ferror(f);
}

/* ---- rows: a name, a figure, its error; in groups, below each other ---- */

typedef struct plot_row {
    const char *group, *name;
    double x, error; /* error NaN: none */
    bool base;       /* what the others of its group are held against: drawn hollow */
} plot_row;

typedef struct plot_rows {
    const char *title, *subtitle, *x_label;
    const plot_row *rows; /* those of a group stand together */
    int n;
    const char *level; /* a dashed line's name, NULL: none, */
    double level_x;    /* and place */
    double x_max;      /* > 0: what lies further right is drawn at the edge, with its figure */
} plot_rows;

/* The range that holds every row with its error. */
static void plot_rows_range(const plot_rows *p, plot_frame *f)
{
    f->x0 = 1e300, f->x1 = -1e300;
    for (int i = 0; i < p->n; i++) {
        double e = p->rows[i].error > 0 ? p->rows[i].error : 0, x = p->rows[i].x;
        if (!plot_finite(x)) continue;
        f->x0 = fmin(f->x0, x - e), f->x1 = fmax(f->x1, x + e);
    }
    if (p->level) f->x0 = fmin(f->x0, p->level_x), f->x1 = fmax(f->x1, p->level_x);
    if (p->x_max > 0) f->x1 = fmin(f->x1, p->x_max);
    if (!(f->x1 > f->x0)) f->x0 = f->x0 < 1e300 ? f->x0 - 1 : 0, f->x1 = f->x0 + 2;
    double air = 0.04 * (f->x1 - f->x0);
    f->x0 -= air, f->x1 += air;
}

static void plot_rows_axis(FILE *out, const plot_rows *p, const plot_frame *f)
{
    double at[PLOT_TICKS], bottom = f->top + f->height;
    char text[32];
    int n = plot_ticks(false, f->x0, f->x1, at);
    for (int i = 0; i < n; i++) {
        fprintf(out, "<path class=\"grid\" d=\"M%.1f %.1fV%.1f\"/>\n", plot_px(f, at[i]), f->top, bottom);
        snprintf(text, sizeof text, "%.4g", at[i]);
        plot_label(out, plot_px(f, at[i]), bottom + 19, "tick middle", text);
    }
    fprintf(out, "<path class=\"axis\" d=\"M%.1f %.1fh%.1f\"/>\n", f->left, bottom, f->width);
    plot_label(out, f->left + f->width / 2, bottom + 40, "label middle", p->x_label);
    if (!p->level) return;
    fprintf(out, "<path class=\"level\" d=\"M%.1f %.1fV%.1f\"/>\n", plot_px(f, p->level_x), f->top, bottom);
    plot_label(out, plot_px(f, p->level_x), f->top - 6, "tick middle", p->level);
}

/* One row: name on the left, dot and bar, the figure on the right. Its colour is its group's. */
static void plot_rows_row(FILE *out, const plot_frame *f, const plot_row *row, double y, int colour)
{
    char text[64];
    double e = row->error > 0 ? row->error : 0;
    bool inside = plot_finite(row->x) && plot_px(f, row->x) <= f->left + f->width;
    double px = inside ? plot_px(f, row->x) : f->left + f->width;
    plot_label(out, f->left - 12, y + 4, "end", row->name);
    if (e > 0 && inside)
        fprintf(out, "<path class=\"line c%d\" d=\"M%.1f %.1fH%.1f\"/>\n", colour, fmax(plot_px(f, row->x - e), f->left), y,
                fmin(plot_px(f, row->x + e), f->left + f->width));
    fprintf(out, "<circle class=\"%s%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"4.5\"%s/>\n", row->base ? "ground c" : "d", colour, px, y,
            row->base ? " stroke-width=\"2.2\"" : "");
    int digits = 2 - (int)floor(log10(f->x1 - f->x0)); /* a hundredth of the axis can be read */
    digits = digits < 0 ? 0 : digits > 9 ? 9 : digits;
    if (e > 0) snprintf(text, sizeof text, "%.*f ± %.*f", digits, row->x, digits, e);
    else snprintf(text, sizeof text, "%.*f", digits, row->x);
    plot_label(out, f->left + f->width + 12, y + 4, "tick",
               inside || plot_finite(row->x) ? text : "not finite");
}

static __attribute__((unused)) bool plot_rows_write(const plot_rows *p, FILE *f)
{
    plot_frame frame;
    size_t longest = 0;
    int groups = 0;
    memset(&frame, 0, sizeof frame);
    for (int i = 0; i < p->n; i++) {
        longest = strlen(p->rows[i].name) > longest ? strlen(p->rows[i].name) : longest;
        groups += i == 0 || strcmp(p->rows[i].group, p->rows[i - 1].group) != 0;
    }
    plot_rows_range(p, &frame);
    frame.left = 40 + 7.5 * (double)longest, frame.top = 92, frame.width = 420;
    frame.height = 20.0 * p->n + 30.0 * groups + 10;
    double width = plot_wide(frame.left + frame.width + 150, p->title, p->subtitle), height = frame.top + frame.height + 56, y = frame.top;
    plot_begin(f, width, height, p->title, p->subtitle);
    plot_rows_axis(f, p, &frame);
    groups = -1;
    for (int i = 0; i < p->n; i++) {
        if (i == 0 || strcmp(p->rows[i].group, p->rows[i - 1].group) != 0) {
            y += 30, groups++;
            fprintf(f, "<text x=\"20\" y=\"%.1f\" class=\"panel t%d\">", y - 6, groups % PLOT_LINES);
            plot_text(f, p->rows[i].group);
            fprintf(f, "</text>\n");
        }
        plot_rows_row(f, &frame, &p->rows[i], y + 8, groups % PLOT_LINES);
        y += 20;
    }
    fprintf(f, "</svg>\n");
    return !ferror(f);
}

#endif
