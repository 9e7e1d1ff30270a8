/*  The small problem of PV-Tuning (arXiv 2405.14852, section 3 and the experiment that goes with it), step by
    step: of all vectors x in R^6 with at most c distinct values the one with the least

        φ(x) = ½·(x − x*)ᵀ·A·(x − x*),   A positive definite.

    The paper's letters: V(x) is the set of x's values, P(x) the partition of its indices by equal value, and
    what is looked for lies in R^d_≤c = {x : |V(x)| ≤ c}. A group of weights is one number here and a codebook is
    V(x). Everything is so small that the V step can also be done exactly, by trying all combinations: that is
    what the steps of a real network are measured against.

    Plain C without the library; `pvtune lab quadratic` runs the methods below from many starts. The same steps for weights of a
    network: pvt_pv in pvtune.h (strategies linearized and subspace, step plain). */
#ifndef QUADRATIC_H
#define QUADRATIC_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { QUAD_D = 6 };
typedef struct quad {
    double A[QUAD_D][QUAD_D], best[QUAD_D]; /* best: x*, where φ = 0 */
} quad;

/* ---- chance: a pure function of a seed and a counter (SplitMix64) ---- */

typedef struct quad_random {
    uint64_t state;
} quad_random;
static double quad_uniform(quad_random *r) /* in (0, 1) */
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return ((double)((z ^ (z >> 31)) >> 11) + 0.5) / 9007199254740992.0;
}
static double quad_normal(quad_random *r) /* of twelve uniform numbers: nearly */
{
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += quad_uniform(r);
    return sum;
}

/* A = BᵀB/d of a random square B: eigenvalues from almost 0 to about 4, so that L says little of most directions. */
static void quad_make(quad *q, uint64_t seed)
{
    quad_random r = {seed};
    double B[QUAD_D][QUAD_D];
    memset(q, 0, sizeof *q);
    for (int i = 0; i < QUAD_D * QUAD_D; i++) B[i / QUAD_D][i % QUAD_D] = quad_normal(&r);
    for (int i = 0; i < QUAD_D; i++) q->best[i] = quad_normal(&r);
    for (int i = 0; i < QUAD_D; i++)
        for (int j = 0; j < QUAD_D; j++)
            for (int k = 0; k < QUAD_D; k++) q->A[i][j] += B[k][i] * B[k][j] / QUAD_D;
}

static double quad_phi(const quad *q, const double *x)
{
    double phi = 0;
    for (int i = 0; i < QUAD_D; i++)
        for (int j = 0; j < QUAD_D; j++) phi += (x[i] - q->best[i]) * q->A[i][j] * (x[j] - q->best[j]) / 2;
    return phi;
}

/* ∇φ(x) = A·(x − x*) */
static void quad_gradient(const quad *q, const double *x, double *g)
{
    for (int i = 0; i < QUAD_D; i++) {
        g[i] = 0;
        for (int j = 0; j < QUAD_D; j++) g[i] += q->A[i][j] * (x[j] - q->best[j]);
    }
}

/* V(x): its distinct values, in order of appearance. Returns |V(x)|. */
static int quad_values(const double *x, double *values)
{
    int n = 0;
    for (int i = 0; i < QUAD_D; i++) {
        int k = 0;
        while (k < n && values[k] != x[i]) k++;
        if (k == n) values[n++] = x[i];
    }
    return n;
}

/* ---- the P step: argmin φ(y) over the y that are equal wherever x is equal: P(y) ⊇ P(x) ----
   y = Z·v, Z [d, c] with Z_ik = 1 where x_i is the k-th value: φ is least where ZᵀAZ·v = ZᵀA·x*, c equations.
   With A = 1 the solution is the mean of each class: k-means' other step. */
static void quad_p_step(const quad *q, double *x)
{
    double values[QUAD_D], M[QUAD_D][QUAD_D + 1];
    int of[QUAD_D], c = quad_values(x, values);
    memset(M, 0, sizeof M);
    for (int i = 0; i < QUAD_D; i++)
        for (of[i] = 0; values[of[i]] != x[i]; of[i]++) {}
    for (int i = 0; i < QUAD_D; i++)
        for (int j = 0; j < QUAD_D; j++)
            M[of[i]][of[j]] += q->A[i][j], M[of[i]][c] += q->A[i][j] * q->best[j];
    for (int k = 0; k < c; k++) /* elimination; ZᵀAZ is positive definite, so no pivot is 0 */
        for (int row = 0; row < c; row++) {
            double factor = M[row][k] / M[k][k];
            for (int j = k; row != k && j <= c; j++) M[row][j] -= factor * M[k][j];
        }
    for (int i = 0; i < QUAD_D; i++) x[i] = M[of[i]][c] / M[of[i]][of[i]];
}

/* ---- the exact V step: argmin φ(x) over V(x) ⊆ V(y), all |V|^d of them ----
   Coordinate by coordinate, with what the choices so far add to φ: ½·A_ii·e_i² + Σ_{j<i} A_ij·e_j·e_i. */
typedef struct quad_search {
    const quad *q;
    double values[QUAD_D], e[QUAD_D], x[QUAD_D], best[QUAD_D], least;
    int n;
} quad_search;

static void quad_try(quad_search *s, int i, double phi)
{
    double from_before = 0;
    if (i == QUAD_D) {
        if (phi < s->least) s->least = phi, memcpy(s->best, s->x, sizeof s->best);
        return;
    }
    for (int j = 0; j < i; j++) from_before += s->q->A[i][j] * s->e[j];
    for (int k = 0; k < s->n; k++) {
        s->x[i] = s->values[k], s->e[i] = s->x[i] - s->q->best[i];
        quad_try(s, i + 1, phi + (s->q->A[i][i] * s->e[i] / 2 + from_before) * s->e[i]);
    }
}

static void quad_v_step(const quad *q, double *x)
{
    quad_search s;
    s.q = q, s.n = quad_values(x, s.values);
    memcpy(s.best, x, sizeof s.best);
    s.least = quad_phi(q, x) * (1 - 1e-12); /* who does not gain does not move */
    quad_try(&s, 0, 0);
    memcpy(x, s.best, sizeof s.best);
}

/* ---- the subspace S, and how strongly φ is curved in it ---- */

typedef enum quad_choice { QUAD_ALL, QUAD_GREEDY, QUAD_PROPORTIONAL, QUAD_UNIFORM } quad_choice;

/* Marks the n coordinates of S: the largest |∇_i|, or drawn one after the other with p ∝ |∇_i| or evenly. (Of keys
   log(u)/w, u uniform, the largest are such a draw: Efraimidis, Spirakis 2006.) */
static void quad_choose(quad_choice choice, int n, const double *g, quad_random *r, bool *in)
{
    double keys[QUAD_D];
    for (int i = 0; i < QUAD_D; i++) {
        double u = choice == QUAD_GREEDY ? 0 : log(quad_uniform(r));
        keys[i] = choice == QUAD_GREEDY ? fabs(g[i]) : choice == QUAD_UNIFORM ? u : u / fmax(fabs(g[i]), 1e-300);
        in[i] = choice == QUAD_ALL;
    }
    for (int k = 0; k < n && choice != QUAD_ALL; k++) {
        int top = -1;
        for (int i = 0; i < QUAD_D; i++)
            if (!in[i] && (top < 0 || keys[i] > keys[top])) top = i;
        in[top] = true;
    }
}

/* L_S, the largest eigenvalue of A_SS, from above by at most 0.2 %: (tr M^m)^(1/m) with m = 1024. M is squared ten
   times and divided by its trace each time, or it would overflow. */
static double quad_curvature(const quad *q, const bool *in)
{
    double M[QUAD_D][QUAD_D], N[QUAD_D][QUAD_D], log_L = 0, power = 1;
    for (int i = 0; i < QUAD_D; i++)
        for (int j = 0; j < QUAD_D; j++) M[i][j] = in[i] && in[j] ? q->A[i][j] : 0;
    for (int round = 0;; round++, power /= 2) {
        double trace = 0;
        for (int i = 0; i < QUAD_D; i++) trace += M[i][i];
        log_L += power * log(trace);
        if (round == 10) return exp(log_L);
        memset(N, 0, sizeof N);
        for (int i = 0; i < QUAD_D; i++)
            for (int j = 0; j < QUAD_D; j++)
                for (int k = 0; k < QUAD_D; k++) N[i][j] += M[i][k] / trace * M[k][j] / trace;
        memcpy(M, N, sizeof M);
    }
}

/* ---- the linearized V step in S: x_i ← of `values` the nearest to x_i − ∇_i/L_S, i in S ----
   It minimises the upper model φ(y) + <∇, x − y> + L_S/2·‖x − y‖² over x_S, so that φ cannot rise; and nothing
   moves when no |∇_i|/L_S reaches half-way to another value. A smaller S has a smaller L_S: a longer step. */
static void quad_linear_step(const quad *q, double *x, const double *values, int n, quad_choice choice, int size,
                             quad_random *r)
{
    double g[QUAD_D];
    bool in[QUAD_D];
    quad_gradient(q, x, g);
    quad_choose(choice, size, g, r, in);
    double L = quad_curvature(q, in);
    for (int i = 0; i < QUAD_D; i++) {
        if (!in[i]) continue;
        double target = x[i] - g[i] / L, nearest = x[i];
        for (int k = 0; k < n; k++)
            if (fabs(values[k] - target) < fabs(nearest - target)) nearest = values[k];
        x[i] = nearest;
    }
}

/* ---- the algorithm: P and V in turn ---- */

typedef struct quad_method {
    const char *name;
    bool exact;         /* the V step tries all combinations; else it is linearized, */
    quad_choice choice; /* in a subspace chosen so, */
    int size;           /* of so many coordinates, */
    int inner;          /* T times in a row */
} quad_method;

static const quad_method quad_methods[] = {
    {"exact", true, QUAD_ALL, QUAD_D, 1},
    {"linearized", false, QUAD_ALL, QUAD_D, 1},
    {"linearized, T = 4", false, QUAD_ALL, QUAD_D, 4},
    {"greedy 1 of 6", false, QUAD_GREEDY, 1, 1},
    {"proportional 1 of 6", false, QUAD_PROPORTIONAL, 1, 1},
    {"uniform 1 of 6", false, QUAD_UNIFORM, 1, 1},
    {"uniform 2 of 6", false, QUAD_UNIFORM, 2, 1},
    {"uniform 2 of 6, T = 4", false, QUAD_UNIFORM, 2, 4},
};
enum { QUAD_METHODS = (int)(sizeof quad_methods / sizeof *quad_methods) };

/* A start with exactly c values: c coordinates take one each, the others any of them. */
static void quad_start(double *x, int c, quad_random *r)
{
    double values[QUAD_D];
    int order[QUAD_D];
    for (int i = 0; i < QUAD_D; i++) order[i] = i;
    for (int i = QUAD_D - 1; i > 0; i--) {
        int j = (int)(quad_uniform(r) * (i + 1)), swap = order[i];
        order[i] = order[j], order[j] = swap;
    }
    for (int k = 0; k < c; k++) values[k] = quad_normal(r);
    for (int i = 0; i < QUAD_D; i++) x[order[i]] = values[i < c ? i : (int)(quad_uniform(r) * c)];
}

/* `steps` rounds from x. phi[k], k = 0 … steps: φ(x) at the start and after round k. False when an iterate has
   more than c values or φ has risen: neither can be. */
static bool quad_run(const quad *q, const quad_method *m, double *x, int c, quad_random *r, double *phi, int steps)
{
    double values[QUAD_D], before[QUAD_D];
    bool good = true, moves = true;
    phi[0] = quad_phi(q, x);
    for (int k = 1; k <= steps; k++) {
        memcpy(before, x, sizeof before);
        if (moves) quad_p_step(q, x);
        int n = quad_values(x, values);
        good = good && n <= c;
        if (m->exact && moves) quad_v_step(q, x);
        for (int t = 0; t < m->inner && !m->exact; t++)
            quad_linear_step(q, x, values, n, m->choice, m->size, r);
        moves = !m->exact || memcmp(before, x, sizeof before) != 0; /* exact steps that end, end for ever */
        phi[k] = quad_phi(q, x);
        good = good && quad_values(x, values) <= c && phi[k] <= phi[k - 1] * (1 + 1e-9) + 1e-12;
    }
    return good;
}

#endif
