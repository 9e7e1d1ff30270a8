/*  Whole files of SmolLM2-135M-Instruct, bits per parameter against perplexity: ours beside llama.cpp's types, from
    the figures in bench/pareto.txt (lines of series | bits | perplexity | what it is; measured as bench/SCIENCE.md says).

        build/bench/pareto [--svg FILE] [TABLE]                                                                  */
#include "../examples/plot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { SERIES = 6, POINTS = 32, NAME = 64 };
typedef struct series {
    char name[NAME];
    double bits[POINTS], ppl[POINTS];
    int n;
} series;

static void by_bits(series *s, double bits, double ppl)
{
    int at = s->n++;
    for (; at > 0 && s->bits[at - 1] > bits; at--) s->bits[at] = s->bits[at - 1], s->ppl[at] = s->ppl[at - 1];
    s->bits[at] = bits, s->ppl[at] = ppl;
}

/* The table's lines into series, each sorted by bits; false: a line is none, or there are too many. */
static bool read_table(FILE *f, series *all, int *n)
{
    char line[256], name[NAME];
    double bits, ppl;
    while (fgets(line, sizeof line, f)) {
        int at = 0;
        if (line[0] == '#' || line[0] == '\n') continue;
        if (sscanf(line, "%63[^|]|%lf |%lf", name, &bits, &ppl) != 3) return false;
        while (name[0] && name[strlen(name) - 1] == ' ') name[strlen(name) - 1] = 0;
        while (at < *n && strcmp(all[at].name, name) != 0) at++;
        if (at == SERIES || all[at].n == POINTS) return false;
        if (at == *n) snprintf(all[(*n)++].name, NAME, "%s", name);
        by_bits(&all[at], bits, ppl);
    }
    return *n > 0;
}

int main(int argc, char **argv)
{
    static series all[SERIES];
    static plot p;
    const char *table = "bench/pareto.txt", *svg = "bench/pareto.svg";
    int n = 0;
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--svg") == 0 && i + 1 < argc) svg = argv[++i];
        else table = argv[i];
    FILE *f = fopen(table, "r");
    if (!f) return fprintf(stderr, "pareto: %s: %s\n", table, strerror(errno)), 1;
    bool good = read_table(f, all, &n);
    fclose(f);
    if (!good) return fprintf(stderr, "pareto: %s is no table of series | bits | perplexity\n", table), 1;
    p.title = "SmolLM2-135M-Instruct: whole files", p.n_panels = 1, p.panels[0].title = "";
    p.subtitle = "40 windows of 512 tokens of WikiText-2's test text; lower and further left is better";
    p.x_label = "bits per parameter, everything in the file counted", p.y_label = "perplexity";
    p.levels[0].name = "original", p.levels[0].y = 28.68, p.n_levels = 1, p.y_max = 110;
    for (int i = 0; i < n; i++) {
        plot_line *line = &p.panels[0].lines[p.panels[0].n_lines++];
        line->name = all[i].name, line->x = all[i].bits, line->y = all[i].ppl, line->n = all[i].n, line->dots = true;
        line->loose = strncmp(all[i].name, "allocated", 9) != 0; /* sizes of one method are joined */
    }
    f = fopen(svg, "wb");
    good = f && plot_write(&p, f);
    if (!f || fclose(f) != 0 || !good) return fprintf(stderr, "pareto: %s: %s\n", svg, strerror(errno)), 1;
    return 0;
}
