/*  The few macros that every test shares. A test program calls CHECK and CHECK_NEAR, skips
    with SKIP, and returns test_end(), which prints the line that `make test` adds up. */
#ifndef PVTUNE_TEST_H
#define PVTUNE_TEST_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int test_passed, test_failed, test_skipped;

/* One condition; a failure says where and what. */
#define CHECK(condition)                                                              \
    do {                                                                              \
        if (condition)                                                                \
            test_passed++;                                                            \
        else                                                                          \
            test_failed++, printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
    } while (0)

/* |a − b| ≤ tolerance; NaN fails. */
#define CHECK_NEAR(a, b, tolerance)                                                                  \
    do {                                                                                             \
        double a_ = (double)(a), b_ = (double)(b);                                                   \
        if (fabs(a_ - b_) <= (tolerance))                                                            \
            test_passed++;                                                                           \
        else                                                                                         \
            test_failed++, printf("%s:%d: failed: %s = %.9g, %s = %.9g, off by %.3g > %.3g\n",       \
                                  __FILE__, __LINE__, #a, a_, #b, b_, fabs(a_ - b_), (double)(tolerance)); \
    } while (0)

/* The call returns PVT_OK, or the context's sentence is printed. */
#define CHECK_OK(ctx, call)                                                                          \
    do {                                                                                             \
        pvt_result result_ = (call);                                                                 \
        if (result_ == PVT_OK)                                                                       \
            test_passed++;                                                                           \
        else                                                                                         \
            test_failed++, printf("%s:%d: failed: %s: %s: %s\n", __FILE__, __LINE__, #call,          \
                                  pvt_result_text(result_), pvt_ctx_error(ctx));                     \
    } while (0)

/* Kernel sets to hold against each other, from the narrowest. */
#ifdef __aarch64__
#define TEST_SETS {"scalar", "native", "neon"}
#else
#define TEST_SETS {"scalar", "avx2", "avx512"}
#endif

/* Under the thread sanitizer, several times as slow, a test may leave out what starts no thread otherwise than the rest. */
#ifdef __SANITIZE_THREAD__
#define TEST_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TEST_THREAD_SANITIZER 1
#endif
#endif
#ifndef TEST_THREAD_SANITIZER
#define TEST_THREAD_SANITIZER 0
#endif

#define SKIP(why) (test_skipped++, printf("skipped: %s\n", why))

#ifdef _WIN32 /* what the next two functions need of POSIX */
#include <direct.h>
#include <io.h>
#define TEST_REMOVE "rmdir /s /q \"%s\""
static inline char *mkdtemp(char *name) { return _mktemp(name) && _mkdir(name) == 0 ? name : NULL; }
#else
#define TEST_REMOVE "rm -rf '%s'"
#endif

/* A new directory for a test's files, in $TMPDIR or where the system keeps such; false when none can
   be made. test_remove removes it with everything in it. */
static inline int test_scratch(char *dir, size_t size)
{
    const char *base = getenv("TMPDIR");
    int n = snprintf(dir, size, "%s/pvtune-XXXXXX", base && *base ? base : P_tmpdir);
    return n > 0 && (size_t)n < size && mkdtemp(dir) != NULL;
}

static inline void test_remove(const char *dir)
{
    char command[600];
    snprintf(command, sizeof command, TEST_REMOVE, dir);
#ifdef _WIN32
    for (char *c = strchr(command, '"'); *c; c++)
        if (*c == '/') *c = '\\'; /* what begins with the other is an option there */
#endif
    if (system(command) != 0) printf("%s could not be removed\n", dir);
}

/* A file's bytes (up to 4 MiB) and a NUL, the caller's to free; none when there is no such file. */
static inline char *test_slurp(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    char *bytes = (char *)calloc(1, 1 << 22);
    *size = f ? fread(bytes, 1, (1 << 22) - 1, f) : 0;
    if (f) fclose(f);
    return bytes;
}

static inline void test_spit(const char *path, const char *bytes, size_t size)
{
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(bytes, 1, size, f) == size);
    if (f) fclose(f);
}

/* An allocator that gives `left` times and then never again, or, with `once`, fails that once and goes on giving;
   live: what was not freed. */
typedef struct test_budget {
    long long left, live;
    int once;
} test_budget;
static inline void *test_budget_alloc(size_t size, void *user)
{
    test_budget *b = (test_budget *)user;
    int fails = b->once ? b->left == 0 : b->left <= 0;
    void *memory = fails ? NULL : malloc(size);
    b->left--;
    b->live += memory != NULL;
    return memory;
}
static inline void test_budget_free(void *memory, void *user)
{
    if (memory) ((test_budget *)user)->live--;
    free(memory);
}

static int test_end(void)
{
    printf("%d passed, %d failed, %d skipped\n", test_passed, test_failed, test_skipped);
    return test_failed != 0;
}

#endif
