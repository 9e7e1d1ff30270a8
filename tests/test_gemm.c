/*  GEMM: right against sums in double, and the same bits for every kernel set, number of
    threads, kind of operand, and for the serial entry with and without a context; in fp32 and
    with operands rounded to bf16. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"
#include "test.h"

enum { ROWS, COLS, STRIDED, DENSE, TILES = DENSE, TILES_TRANSPOSED, KINDS }; /* A is dense */
static bool half; /* operands rounded to bf16 */
static const char *const isa_names[] = TEST_SETS;

/* An R×C matrix of random numbers with NaN all around them, and one operand on it per kind. */
typedef struct matrix {
    pvt_real *values; /* R×C, dense: what is meant */
    pvt_real *memory; /* what the operand reads */
    int64_t R, C, ld, rows, cols; /* rows × cols: the source as it lies in memory */
    bool outside; /* a tile was asked for outside of it */
    pvti_operand x;
} matrix;

static void copy_tile(const void *self, pvt_real *out, int64_t ld, int64_t r0, int64_t r1, int64_t c0,
                      int64_t c1)
{
    const matrix *m = (const matrix *)self;
    if (r0 < 0 || c0 < 0 || r1 > m->rows || c1 > m->cols || r0 >= r1 || c0 >= c1 || ld < c1 - c0) {
        ((matrix *)(size_t)self)->outside = true;
        return;
    }
    for (int64_t r = r0; r < r1; r++)
        for (int64_t c = c0; c < c1; c++) out[(r - r0) * ld + c - c0] = m->memory[r * m->ld + c];
}

static void matrix_make(matrix *m, int kind, int64_t R, int64_t C, uint64_t seed)
{
    bool turned = kind == COLS || kind == TILES_TRANSPOSED;
    int64_t step = kind == STRIDED ? 2 : 1;
    memset(m, 0, sizeof *m);
    m->R = R, m->C = C, m->rows = turned ? C : R, m->cols = turned ? R : C, m->ld = m->cols * step + 3;
    m->values = (pvt_real *)malloc((size_t)(R * C + 1) * sizeof(pvt_real));
    m->memory = (pvt_real *)malloc((size_t)(m->rows * m->ld + 1) * sizeof(pvt_real));
    for (int64_t i = 0; i < m->rows * m->ld; i++) m->memory[i] = (pvt_real)NAN;
    for (int64_t r = 0; r < R; r++)
        for (int64_t c = 0; c < C; c++) {
            pvt_real v = (pvt_real)(pvti_random_unit(seed, PVTI_RANDOM_USER, 0, (uint64_t)(r * C + c)) - 0.5);
            m->values[r * C + c] = v;
            m->memory[turned ? c * m->ld + r : r * m->ld + c * step] = v;
        }
    m->x = kind == ROWS ? pvti_rows(m->memory, m->ld) : pvti_cols(m->memory, m->ld);
    if (kind == STRIDED) m->x.rs = m->ld, m->x.cs = step;
    if (kind == TILES || kind == TILES_TRANSPOSED) m->x = pvti_tiles(copy_tile, m, turned);
}

static void matrix_free(matrix *m)
{
    free(m->values), free(m->memory);
}

/* Contexts of every kernel set and number of threads. */
#define THREADS 4
static const int thread_counts[THREADS] = {1, 2, 3, 7};
static pvt_ctx *contexts[3][THREADS];

static void contexts_make(void)
{
    for (int isa = 0; isa < 3; isa++)
        for (int t = 0; t < THREADS; t++) {
            pvt_ctx_desc desc;
            memset(&desc, 0, sizeof desc);
            desc.n_threads = thread_counts[t], desc.isa = isa_names[isa];
            CHECK(pvt_ctx_create(&desc, &contexts[isa][t]) == PVT_OK);
            if (strcmp(pvt_ctx_get_info(contexts[isa][t]).isa, isa_names[isa]) != 0)
                pvt_ctx_destroy(contexts[isa][t]), contexts[isa][t] = NULL;
        }
    for (int isa = 1; isa < 3; isa++)
        if (!contexts[isa][0])
            printf("skipped: kernels for %s: this processor or build has none\n", isa_names[isa]),
                test_skipped++;
}

/* C with some slack around it that must stay as it is. */
typedef struct target {
    pvt_real *C;
    int64_t ldc, count;
} target;

static void target_fill(target *c, int64_t M, int64_t N)
{
    c->ldc = N + 5, c->count = (M + 1) * c->ldc;
    if (!c->C) c->C = (pvt_real *)malloc((size_t)c->count * sizeof(pvt_real));
    for (int64_t i = 0; i < c->count; i++)
        c->C[i] = (pvt_real)(pvti_random_unit(7, PVTI_RANDOM_USER, 1, (uint64_t)i) - 0.5);
}

typedef struct serial_call {
    pvt_ctx *ctx;
    target *c;
    const matrix *a, *b;
    bool accumulate;
} serial_call;
static void run_serial(void *arg, int64_t i, int worker)
{
    serial_call *s = (serial_call *)arg;
    if (i == 0)
        pvti_gemm_serial(s->ctx, worker, s->c->C, s->c->ldc, s->a->x, s->b->x, s->a->R, s->b->C, s->a->C,
                         s->accumulate);
}

/* x to eight significant bits, ties to even: bf16 by another way than the library's. */
static double rounded(pvt_real x)
{
    int exponent;
    double m = frexp((double)x, &exponent);
    if (!half) return (double)x;
    return fabs((double)x) < FLT_MIN ? 0 : ldexp(nearbyint(ldexp(m, 8)), exponent - 8);
}

static void check_values(const target *c, const target *before, const matrix *a, const matrix *b,
                         bool accumulate)
{
    int64_t M = a->R, N = b->C, K = a->C, wrong = 0;
    double unit = sizeof(pvt_real) == 4 ? 1.2e-7 : 2.3e-16;
    for (int64_t i = 0; i < c->count; i++) {
        int64_t m = i / c->ldc, n = i % c->ldc;
        if (m >= M || n >= N) { /* slack */
            wrong += c->C[i] != before->C[i];
            continue;
        }
        double sum = accumulate ? (double)before->C[i] : 0, size = fabs(sum);
        for (int64_t k = 0; k < K; k++) {
            double term = rounded(a->values[m * K + k]) * rounded(b->values[k * N + n]);
            sum += term, size += fabs(term);
        }
        wrong += !(fabs((double)c->C[i] - sum) <= unit * ((double)K + 1) * size);
    }
    CHECK(wrong == 0);
}

static void check_case(int kind_a, int kind_b, int64_t M, int64_t N, int64_t K, bool accumulate)
{
    matrix a, b;
    target want = {NULL, 0, 0}, got = {NULL, 0, 0}, before = {NULL, 0, 0};
    serial_call call;
    int failed = test_failed;
    matrix_make(&a, kind_a, M, K, 1);
    matrix_make(&b, kind_b, K, N, 2);
    target_fill(&want, M, N), target_fill(&before, M, N);
    pvti_gemm_as(contexts[0][0], half, want.C, want.ldc, a.x, b.x, M, N, K, accumulate);
    check_values(&want, &before, &a, &b, accumulate);
    for (int isa = 0; isa < 3; isa++)
        for (int t = 0; t < THREADS && contexts[isa][t]; t++) {
            if (t > 0 && (isa == 0 || M * N * K < 100000)) continue; /* not split, or the others show it */
            target_fill(&got, M, N);
            pvti_gemm_as(contexts[isa][t], half, got.C, got.ldc, a.x, b.x, M, N, K, accumulate);
            CHECK(memcmp(got.C, want.C, (size_t)want.count * sizeof(pvt_real)) == 0);
        }
    for (int isa = 0; isa < 3 && contexts[isa][1] && !half; isa++) {
        call.ctx = contexts[isa][1], call.c = &got, call.a = &a, call.b = &b, call.accumulate = accumulate;
        target_fill(&got, M, N);
        pvti_parallel(call.ctx, 2, run_serial, &call);
        CHECK(memcmp(got.C, want.C, (size_t)want.count * sizeof(pvt_real)) == 0);
    }
    target_fill(&got, M, N);
    pvti_gemm_as(NULL, half, got.C, got.ldc, a.x, b.x, M, N, K, accumulate);
    CHECK(memcmp(got.C, want.C, (size_t)want.count * sizeof(pvt_real)) == 0);
    CHECK(!a.outside && !b.outside);
    if (test_failed > failed)
        printf("  in the case M %d, N %d, K %d, operands of kind %d and %d, accumulate %d, bf16 %d\n", (int)M,
               (int)N, (int)K, kind_a, kind_b, accumulate, half);
    matrix_free(&a), matrix_free(&b);
    free(want.C), free(got.C), free(before.C);
}

/* A bf16 number of a corner of the format; as an operand never subnormal: rounding would make it zero. */
static float half_corner(uint64_t index, bool subnormal)
{
    static const uint32_t exponents[16] = {0, 1, 2, 60, 63, 64, 65, 126, 127, 128, 190, 191, 192, 253, 254, 255};
    uint32_t word = (uint32_t)pvti_random(11, PVTI_RANDOM_USER, 0, index), exponent = exponents[word >> 16 & 15];
    uint32_t fraction = exponent || subnormal ? word & 0x7fu : 0;
    return pvti_from_bits(((word & 0x8000u) | exponent << 7 | fraction) << 16);
}

/* Products in bf16 that reach subnormal results, infinities, NaN and cancellation: the same bits, NaN for
   NaN. Sixteen rows, because fewer are not rounded. */
static void check_half_corners(void)
{
    enum { M = 16, N = 40, K = 3 };
    float a[M * K], b[K * N], c[3][M * N];
    int64_t differ = 0, subnormal = 0, nans = 0, zeros = 0;
    uint64_t at = 0;
    for (int trial = 0; trial < 1000; trial++) {
        for (int i = 0; i < M * K; i++) a[i] = half_corner(at++, false);
        for (int i = 0; i < K * N; i++) b[i] = half_corner(at++, false);
        for (int i = 0; i < M * N; i++) c[0][i] = c[1][i] = c[2][i] = half_corner(at++, true);
        for (int isa = 0; isa < 3 && contexts[isa][0]; isa++)
            pvti_gemm_as(contexts[isa][0], true, c[isa], N, pvti_rows(a, K), pvti_rows(b, N), M, N, K, true);
        for (int i = 0; i < M * N; i++) {
            bool nan = c[0][i] != c[0][i];
            for (int isa = 1; isa < 3 && contexts[isa][0]; isa++)
                differ += nan ? c[isa][i] == c[isa][i] : memcmp(&c[0][i], &c[isa][i], 4) != 0;
            subnormal += c[0][i] != 0 && fabsf(c[0][i]) < FLT_MIN;
            nans += nan, zeros += c[0][i] == 0;
        }
    }
    CHECK(differ == 0);
    CHECK(subnormal == 0);
    CHECK(nans > 1000 && nans < 1000 * M * N && zeros > 0); /* the corners were reached */
}

/* What a task must not do is safe all the same: pvti_gemm where a parallel region is running. */
static void nested_task(void *arg, int64_t i, int worker)
{
    serial_call *s = (serial_call *)arg;
    (void)worker;
    pvti_gemm(s->ctx, s->c[i].C, s->c[i].ldc, s->a->x, s->b->x, s->a->R, s->b->C, s->a->C, false);
}
static void check_nested(void)
{
    matrix a, b;
    target c[8];
    serial_call call;
    memset(c, 0, sizeof c);
    matrix_make(&a, ROWS, 70, 140, 3), matrix_make(&b, COLS, 140, 90, 4);
    for (int i = 0; i < 8; i++) target_fill(&c[i], 70, 90);
    call.ctx = contexts[0][2], call.c = c, call.a = &a, call.b = &b, call.accumulate = false;
    pvti_parallel(call.ctx, 8, nested_task, &call);
    for (int i = 1; i < 8; i++) CHECK(memcmp(c[0].C, c[i].C, (size_t)c[0].count * sizeof(pvt_real)) == 0);
    for (int i = 0; i < 8; i++) free(c[i].C);
    matrix_free(&a), matrix_free(&b);
}

int main(void)
{
    static const int64_t small[][3] = {{1, 1, 1},     {1, 1, 0},    {3, 5, 0},    {0, 4, 3},    {4, 0, 3},
                                       {2, 3, 1},     {5, 7, 9},    {12, 32, 16}, {13, 33, 31}, {11, 31, 33},
                                       {6, 16, 8},    {7, 17, 40},  {1, 40, 32},  {2, 13, 47},  {4, 6, 64},
                                       {5, 25, 100},  {15, 64, 33}, {9, 7, 48},   {16, 20, 32}, {64, 64, 64},
                                       {24, 48, 130}, {29, 9, 257}, {17, 259, 12}};
    static const int64_t large[][3] = {
        {60, 200, 600}, {25, 301, 1030}, {15, 97, 1100}, {8, 100, 2048}, {31, 330, 513}};
    contexts_make();
    for (int64_t i = 0; i < PVTI_COUNT(small); i++)
        for (int kind = 0; kind < DENSE * KINDS; kind++)
            check_case(kind % DENSE, kind / DENSE, small[i][0], small[i][1], small[i][2],
                       (kind + i) % 2 != 0);
    for (int64_t i = 0; i < PVTI_COUNT(large); i++)
        for (int kind = 0; kind < KINDS; kind++) /* forward, dx, dW, and each kind of tile */
            check_case(kind % 2, kind, large[i][0], large[i][1], large[i][2], (kind + i) % 2 != 0);
    check_case(STRIDED, TILES_TRANSPOSED, 70, 120, 300, true);
    check_case(COLS, ROWS, 3100, 9, 512,
               true); /* more rows than the shared panels hold; tasks cut the rows */
    check_nested();
    half = true;
    for (int64_t i = 0; i < PVTI_COUNT(small); i++)
        for (int kind = 0; kind < DENSE * KINDS && small[i][0] >= 16; kind++)
            check_case(kind % DENSE, kind / DENSE, small[i][0], small[i][1], small[i][2],
                       (kind + i) % 2 != 0);
    check_case(ROWS, COLS, 60, 200, 600, true), check_case(ROWS, TILES_TRANSPOSED, 25, 301, 1031, false);
    check_case(COLS, ROWS, 31, 330, 513, true), check_case(STRIDED, TILES, 70, 120, 301, true);
    check_case(COLS, ROWS, 3100, 9, 511, true);
    check_half_corners();
    for (int isa = 0; isa < 3; isa++)
        for (int t = 0; t < THREADS; t++) pvt_ctx_destroy(contexts[isa][t]);
    return test_end();
}
