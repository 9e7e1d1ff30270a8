/*  The device seam, without a device: a table whose memory cannot be read or written but inside its own ops, which
    are the processor's on a plain context. Whatever a run, a tuner, an evaluation or a generation does on it has the
    processor's bits, and a read or write beside the ops ends the test with a sentence. */
#define PVTUNE_IMPLEMENTATION
#include "../pvtune.h"

#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

#if !defined(MAP_ANONYMOUS) || !defined(MAP_NORESERVE)
int main(void)
{
    SKIP("the device seam: this system has no memory to protect (mmap)");
    return test_end();
}
#else

/* ---- the device ---- */

enum { POINTERS = sizeof(pvt_device) / sizeof(void *), STRAY = 77 };
enum { BLOCKS = 4096 };
#define ROOM ((int64_t)256 << 20) /* of addresses */

typedef struct device_state {
    pvt_ctx *plain; /* where the ops are carried out */
    char *base;
    struct {
        int64_t at, room, bytes; /* bytes −1: free */
    } block[BLOCKS]; /* by address */
    int64_t n_blocks, used, held, wrong_frees, strays;
    int depth; /* of ops inside ops: the memory is open while it is not 0 */
    int64_t calls[POINTERS];
    int64_t allocations, fail_allocation; /* fails the one of that number; −1: none */
    int64_t ops, fail_op;                 /* from the op of that number on the device has failed; −1: none */
    int64_t bytes_in, bytes_out;
    bool failed, open_fails;
} device_state;

static device_state device; /* one context at a time */

static void protect(int how)
{
    int64_t pages = (device.used + 65535) / 65536 * 65536; /* whole ones on any machine */
    if (pages && mprotect(device.base, (size_t)pages, how) != 0) perror("mprotect"), exit(1);
}
static void enter(size_t offset)
{
    device.calls[offset / sizeof(void *)]++;
    if (device.depth++ == 0) protect(PROT_READ | PROT_WRITE);
}
static void leave(void)
{
    if (--device.depth == 0) protect(PROT_NONE);
}
/* What an op is handed must lie in the device's memory; NULL may be. */
static void inside(const void *at)
{
    if (at && ((const char *)at < device.base || (const char *)at >= device.base + ROOM)) device.strays++;
}
/* False once the device has failed: the op does nothing. */
static bool works(void)
{
    if (device.ops++ == device.fail_op) device.failed = true;
    return !device.failed;
}

static void stray(int number, siginfo_t *info, void *context)
{
    static const char text[] = "stopped: a read or write of the device's memory outside its ops\n";
    char *at = (char *)info->si_addr;
    (void)context;
    if (at >= device.base && at < device.base + ROOM) {
        if (write(2, text, sizeof text - 1) < 0) _exit(1);
        _exit(STRAY);
    }
    signal(number, SIG_DFL);
}

#define ENTER(op) enter(offsetof(pvt_device, op))
/* An op that returns nothing: the processor's, on the plain context. */
#define OP(op, parameters, call)                      \
    static void device_##op parameters                \
    {                                                 \
        ENTER(op);                                    \
        if (works()) call;                            \
        leave();                                      \
        (void)state;                                  \
    }

static pvt_result device_open(const pvt_device *table, const pvt_ctx_desc *desc, void **state)
{
    pvt_ctx_desc plain = *desc;
    pvt_format rotated;
    (void)table;
    if (device.open_fails) {
        snprintf(desc->error, (size_t)desc->error_bytes, "the device is asleep");
        return PVT_ERR_IO;
    }
    memset(&device, 0, sizeof device);
    device.fail_allocation = device.fail_op = -1;
    plain.device = NULL;
    device.base = (char *)mmap(NULL, (size_t)ROOM, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (device.base == MAP_FAILED) return PVT_ERR_MEMORY;
    device.calls[offsetof(pvt_device, open) / sizeof(void *)]++;
    *state = &device;
    if (pvt_ctx_create(&plain, &device.plain) != PVT_OK) return PVT_ERR_MEMORY;
    memset(&rotated, 0, sizeof rotated);
    rotated.rotation = 2; /* the room that products of rotated weights need where they are carried out */
    return pvti_rotation_enter(device.plain, &rotated, 100, 100);
}
static void device_close(void *state)
{
    (void)state;
    ENTER(close);
    leave();
    pvt_ctx_destroy(device.plain);
    munmap(device.base, (size_t)ROOM);
    device.base = NULL;
}
static pvt_result device_status(void *state, const char **why)
{
    (void)state;
    ENTER(status);
    leave();
    *why = "the power went out";
    return device.failed ? PVT_ERR_IO : PVT_OK;
}
static void device_synchronise(void *state) { (void)state, ENTER(synchronise), leave(); }

static void *device_alloc(void *state, int64_t bytes)
{
    int64_t room = (bytes + 256) / 256 * 256, i = 0;
    (void)state;
    device.calls[offsetof(pvt_device, alloc) / sizeof(void *)]++;
    if (device.allocations++ == device.fail_allocation) return NULL;
    while (i < device.n_blocks && (device.block[i].bytes >= 0 || device.block[i].room < room)) i++;
    if (i == device.n_blocks) {
        if (i == BLOCKS || device.used + room > ROOM) return NULL;
        device.block[i].at = device.used, device.block[i].room = room;
        device.n_blocks++;
        device.used += room;
    }
    device.block[i].bytes = bytes;
    device.held += bytes;
    if (device.depth++ == 0) protect(PROT_READ | PROT_WRITE);
    memset(device.base + device.block[i].at, 0, (size_t)bytes);
    leave();
    return device.base + device.block[i].at;
}
static void device_free(void *state, void *memory)
{
    int64_t i = 0;
    (void)state;
    device.calls[offsetof(pvt_device, free) / sizeof(void *)]++;
    while (i < device.n_blocks && device.base + device.block[i].at != (char *)memory) i++;
    if (i == device.n_blocks || device.block[i].bytes < 0) { /* twice, or what was never allocated */
        device.wrong_frees++;
        return;
    }
    device.held -= device.block[i].bytes;
    device.block[i].bytes = -1;
    while (device.n_blocks > 0 && device.block[device.n_blocks - 1].bytes < 0)
        device.used = device.block[--device.n_blocks].at;
}
static int64_t device_held(void *state)
{
    (void)state;
    device.calls[offsetof(pvt_device, held) / sizeof(void *)]++;
    return device.held;
}
OP(copy_in, (void *state, void *to, const void *host, int64_t bytes),
   (inside(to), memcpy(to, host, (size_t)bytes), device.bytes_in += bytes))
OP(copy_out, (void *state, void *host, const void *from, int64_t bytes),
   (inside(from), memcpy(host, from, (size_t)bytes), device.bytes_out += bytes))
OP(copy, (void *state, void *to, const void *from, int64_t bytes),
   (inside(to), inside(from), memcpy(to, from, (size_t)bytes)))
OP(zero, (void *state, void *memory, int64_t bytes), (inside(memory), memset(memory, 0, (size_t)bytes)))

OP(embedding_forward,
   (void *state, pvt_real *out, const pvt_real *table, const int32_t *ids, int64_t n, int64_t V, int64_t C),
   pvt_embedding_forward(device.plain, out, table, ids, n, V, C))
OP(embedding_backward,
   (void *state, pvt_real *dtable, const pvt_real *dout, const int32_t *ids, int64_t n, int64_t V, int64_t C),
   pvt_embedding_backward(device.plain, dtable, dout, ids, n, V, C))
OP(linear_forward,
   (void *state, pvt_real *y, const pvt_real *x, const pvt_real *W, const pvt_real *bias, int64_t n, int64_t in,
    int64_t out),
   pvt_linear_forward(device.plain, y, x, W, bias, n, in, out))
OP(linear_backward,
   (void *state, pvt_real *dx, pvt_real *dW, pvt_real *dbias, const pvt_real *dy, const pvt_real *x,
    const pvt_real *W, int64_t n, int64_t in, int64_t out),
   pvt_linear_backward(device.plain, dx, dW, dbias, dy, x, W, n, in, out))
OP(rmsnorm_forward,
   (void *state, pvt_real *out, pvt_real *rstd, const pvt_real *x, const pvt_real *weight, int64_t n, int64_t C,
    pvt_real eps),
   pvt_rmsnorm_forward(device.plain, out, rstd, x, weight, n, C, eps))
OP(rmsnorm_backward,
   (void *state, pvt_real *dx, pvt_real *dweight, const pvt_real *dout, const pvt_real *x, const pvt_real *rstd,
    const pvt_real *weight, int64_t n, int64_t C),
   pvt_rmsnorm_backward(device.plain, dx, dweight, dout, x, rstd, weight, n, C))
OP(rope_table,
   (void *state, pvt_real *cosines, pvt_real *sines, const float *inv_freq, int64_t HS, int64_t pos, int64_t T),
   pvt_rope_table(device.plain, cosines, sines, inv_freq, HS, pos, T))
OP(rope_forward,
   (void *state, pvt_real *x, const pvt_real *cosines, const pvt_real *sines, int64_t B, int64_t T, int64_t NH,
    int64_t HS, pvt_rope_pairing pairing),
   pvt_rope_forward(device.plain, x, cosines, sines, B, T, NH, HS, pairing))
OP(rope_backward,
   (void *state, pvt_real *dx, const pvt_real *cosines, const pvt_real *sines, int64_t B, int64_t T, int64_t NH,
    int64_t HS, pvt_rope_pairing pairing),
   pvt_rope_backward(device.plain, dx, cosines, sines, B, T, NH, HS, pairing))
OP(rotate,
   (void *state, pvt_real *out, const pvt_real *x, int64_t n, int64_t C, pvt_side side, bool inverse),
   (inside(out), inside(x), pvt_rotate(device.plain, out, x, n, C, side, inverse)))
OP(rotate_columns, (void *state, pvt_real *x, int64_t C, int64_t n, pvt_side side, bool inverse),
   pvt_rotate_columns(device.plain, x, C, n, side, inverse))
OP(attention_forward,
   (void *state, pvt_real *out, pvt_real *lse, const pvt_real *q, const pvt_real *k, const pvt_real *v,
    const pvt_attention_desc *desc),
   pvt_attention_forward(device.plain, out, lse, q, k, v, desc))
OP(attention_backward,
   (void *state, pvt_real *dq, pvt_real *dk, pvt_real *dv, const pvt_real *dout, const pvt_real *out,
    const pvt_real *lse, const pvt_real *q, const pvt_real *k, const pvt_real *v, const pvt_attention_desc *desc),
   pvt_attention_backward(device.plain, dq, dk, dv, dout, out, lse, q, k, v, desc))
OP(swiglu_forward, (void *state, pvt_real *out, const pvt_real *gate, const pvt_real *up, int64_t n),
   pvt_swiglu_forward(device.plain, out, gate, up, n))
OP(swiglu_backward,
   (void *state, pvt_real *dgate, pvt_real *dup, const pvt_real *dout, const pvt_real *gate, const pvt_real *up,
    int64_t n),
   pvt_swiglu_backward(device.plain, dgate, dup, dout, gate, up, n))
OP(residual_forward, (void *state, pvt_real *out, const pvt_real *a, const pvt_real *b, int64_t n),
   pvt_residual_forward(device.plain, out, a, b, n))
OP(residual_backward, (void *state, pvt_real *da, pvt_real *db, const pvt_real *dout, int64_t n),
   pvt_residual_backward(device.plain, da, db, dout, n))
OP(softmax_update,
   (void *state, pvt_softmax_row *rows, const pvt_real *logits, const int32_t *targets, int64_t n, int64_t v0,
    int64_t VS, int64_t ld),
   pvt_softmax_update(device.plain, rows, logits, targets, n, v0, VS, ld))
OP(softmax_finish,
   (void *state, double *lse, double *loss, const pvt_softmax_row *rows, const int32_t *targets, int64_t n),
   pvt_softmax_finish(device.plain, lse, loss, rows, targets, n))
OP(cross_entropy_backward,
   (void *state, pvt_real *logits, const double *lse, const int32_t *targets, double scale, int64_t n, int64_t v0,
    int64_t VS, int64_t ld),
   pvt_cross_entropy_backward(device.plain, logits, lse, targets, scale, n, v0, VS, ld))
OP(kl_forward,
   (void *state, double *loss, const pvt_real *student, const double *student_lse, const pvt_real *teacher,
    const double *teacher_lse, const int32_t *targets, int64_t n, int64_t VS, int64_t ld),
   pvt_kl_forward(device.plain, loss, student, student_lse, teacher, teacher_lse, targets, n, VS, ld))
OP(kl_backward,
   (void *state, pvt_real *student, const double *student_lse, const pvt_real *teacher, const double *teacher_lse,
    const int32_t *targets, double scale, int64_t n, int64_t VS, int64_t ld),
   pvt_kl_backward(device.plain, student, student_lse, teacher, teacher_lse, targets, scale, n, VS, ld))
static double device_mse_forward(void *state, const pvt_real *a, const pvt_real *b, int64_t n)
{
    double mse = 0;
    (void)state;
    ENTER(mse_forward);
    if (works()) mse = pvt_mse_forward(device.plain, a, b, n);
    leave();
    return mse;
}
OP(mse_backward, (void *state, pvt_real *da, const pvt_real *a, const pvt_real *b, double scale, int64_t n),
   pvt_mse_backward(device.plain, da, a, b, scale, n))

/* The weight as the plain context's. */
static pvt_weight here(const pvt_weight *weight)
{
    pvt_weight w = *weight;
    w.ctx = device.plain;
    w.owned = false;
    return w;
}
#define WEIGHT_OP(op, parameters, call)               \
    static void device_##op parameters                \
    {                                                 \
        pvt_weight w = here(weight);                  \
        ENTER(op);                                    \
        if (works()) call;                            \
        leave();                                      \
        (void)state;                                  \
    }
WEIGHT_OP(weight_lookup,
          (void *state, pvt_real *out, const pvt_weight *weight, const int32_t *rows, int64_t n),
          pvt_weight_embedding(out, &w, rows, n))
WEIGHT_OP(weight_forward,
          (void *state, pvt_real *y, const pvt_real *x, const pvt_weight *weight, int64_t n, bool accumulate),
          pvt_weight_forward(y, x, &w, n, accumulate))
WEIGHT_OP(weight_backward,
          (void *state, pvt_real *dx, pvt_real *dW, const pvt_real *dy, const pvt_real *x,
           const pvt_weight *weight, int64_t n),
          pvt_weight_backward(dx, dW, dy, x, &w, n))
WEIGHT_OP(weight_dequantize, (void *state, pvt_real *out, const pvt_weight *weight, double delta),
          (inside(out), pvti_dequantize_blend(device.plain, &w, out, delta)))
WEIGHT_OP(weight_chain,
          (void *state, pvt_real *const *dvalues, const pvt_weight *weight, const pvt_real *dW),
          (inside(dW), w.format.rotation = 0, pvt_weight_chain(dvalues, &w, dW))) /* dW is rotated already */

static int64_t device_round_f16(void *state, uint16_t *half, pvt_real *real, const pvt_real *from, int64_t n)
{
    int64_t bad = -1;
    (void)state;
    ENTER(round_f16);
    if (works()) bad = pvti_round_f16(device.plain, half, real, from, n);
    leave();
    return bad;
}
OP(widen_f16, (void *state, pvt_real *out, const uint16_t *half, int64_t n),
   pvti_widen_f16(device.plain, out, half, n))
static bool device_finite(void *state, const pvt_real *g, int64_t n, double *sums)
{
    bool finite = true;
    (void)state;
    ENTER(finite);
    if (works()) finite = pvti_finite(device.plain, g, n, sums);
    leave();
    return finite;
}
static bool device_reserve(void *state, const pvt_weight *weight, int beam)
{
    (void)state, (void)weight, (void)beam;
    ENTER(reserve);
    leave();
    return device.allocations++ != device.fail_allocation;
}
OP(adam,
   (void *state, const pvt_adam *a, const pvt_real *g, const pvt_optimizer *o, double lr_scale, int64_t t,
    double *sums),
   pvti_adam_run(device.plain, a, g, o, lr_scale, t, sums))
WEIGHT_OP(group_errors,
          (void *state, float *keys, double *norms, const pvt_weight *weight, const pvt_real *target),
          pvti_group_keys(device.plain, keys, norms, &w, target))
OP(group_noise, (void *state, float *keys, int64_t groups, double temperature, uint64_t stream),
   pvti_group_noise(device.plain, keys, groups, temperature, stream))
OP(group_select,
   (void *state, int64_t *selected, const float *keys, int64_t groups, int64_t k, uint64_t *work,
    uint64_t *more_work),
   pvti_group_select(device.plain, selected, keys, groups, k, work, more_work))
static void assign_here(const pvt_weight *w, const pvt_assign *a)
{
    pvt_real *tables = PVTI_NEW(device.plain, pvt_real, w->kind->assign_room(w));
    pvti_weight_assign(device.plain, w, a, tables);
    pvti_free(device.plain, tables);
}
WEIGHT_OP(weight_assign, (void *state, const pvt_weight *weight, const pvt_assign *a),
          (inside(a->target), inside(a->groups), inside(a->codes), inside(a->change), assign_here(&w, a)))
WEIGHT_OP(weight_commit,
          (void *state, pvt_weight *weight, const pvt_assign *a, const double *norms, double trust,
           int64_t *changed),
          pvti_weight_commit(device.plain, &w, a, norms, trust, changed))

WEIGHT_OP(group_moments,
          (void *state, float *keys, const pvt_weight *weight, const pvt_real *target, const pvt_adam *moments,
           bool root),
          pvti_group_moments(device.plain, keys, &w, target, moments, root))
WEIGHT_OP(group_return,
          (void *state, pvt_real *target, const pvt_weight *weight, const pvt_assign *a, const double *norms,
           double wind),
          pvti_group_return(device.plain, target, &w, a, norms, wind))

static double device_dot(void *state, const pvt_real *a, const pvt_real *b, int64_t rows, int64_t n, double *sums)
{
    double sum = 0;
    (void)state;
    ENTER(dot);
    if (works()) sum = pvti_rows_dot(device.plain, a, b, rows, n, sums);
    leave();
    return sum;
}
OP(axpy, (void *state, pvt_real *y, pvt_real alpha, const pvt_real *x, int64_t rows, int64_t n),
   (inside(y), inside(x), pvti_rows_axpy(device.plain, y, alpha, x, rows, n)))
OP(product, (void *state, pvt_real *C, const pvt_real *A, const pvt_real *B, int64_t M, int64_t N, int64_t K),
   (inside(C), inside(A), inside(B), pvti_exact_product(device.plain, C, A, B, M, N, K)))
WEIGHT_OP(fit_scales,
          (void *state, pvt_weight *weight, pvt_real *R, pvt_real *RH, const pvt_real *W, const pvt_real *WH),
          (inside(R), inside(RH), inside(W), inside(WH), pvti_fit_scales(device.plain, &w, R, RH, W, WH)))

/* k-means as the processor has it; of `sums` or, NULL, of `assigned` what comes out is copied. */
static void kmeans_here(int32_t *assigned, double *sums, const pvt_real *x, const pvt_real *weight,
                        const pvt_real *c, int64_t rows, int64_t GI, int64_t D, int64_t K)
{
    pvti_kmeans s;
    memset(&s, 0, sizeof s);
    s.ctx = device.plain, s.x = x, s.weight = weight, s.rows = rows, s.GI = GI, s.D = D, s.K = K;
    s.centroids = (pvt_real *)(uintptr_t)c, s.assigned = assigned;
    if (!pvti_kmeans_enter(&s)) device.failed = true;
    else if (sums) pvti_kmeans_sums(&s), memcpy(sums, s.sums, (size_t)(2 * K * D) * sizeof *sums);
    else pvti_kmeans_assign(&s);
    pvti_kmeans_leave(&s);
}
OP(kmeans_assign,
   (void *state, int32_t *assigned, const pvt_real *x, const pvt_real *weight, const pvt_real *c, int64_t rows,
    int64_t GI, int64_t D, int64_t K),
   kmeans_here(assigned, NULL, x, weight, c, rows, GI, D, K))
OP(kmeans_sums,
   (void *state, double *sums, const pvt_real *x, const pvt_real *weight, const int32_t *assigned, int64_t rows,
    int64_t GI, int64_t D, int64_t K),
   kmeans_here((int32_t *)(uintptr_t)assigned, sums, x, weight, NULL, rows, GI, D, K))
static int64_t device_search_room(void *state, const pvt_weight *weight, int beam)
{
    (void)state, (void)weight;
    ENTER(search_room);
    leave();
    return beam * 100;
}
WEIGHT_OP(weight_search,
          (void *state, pvt_weight *weight, const pvt_real *H, const pvt_real *RH, int beam, const int64_t *order,
           const int64_t *book_orders, void *room),
          (inside(H), inside(RH), inside(room), memset(room, 1, (size_t)beam * 100),
           pvti_xtx_run(device.plain, &w, H, RH, beam, order, book_orders)))

static bool device_decodes(void *state, int dtype)
{
    (void)state;
    ENTER(decodes);
    leave();
    return dtype != PVT_Q4_1;
}

WEIGHT_OP(weight_surrogate,
          (void *state, pvt_real *const *dvalues, pvt_real *dT, const pvt_weight *weight, const pvt_real *T,
           const pvt_real *dW, const pvt_pv_desc *desc),
          (inside(dT), inside(T), inside(dW), inside(dvalues[1]),
           w.kind->surrogate(device.plain, dvalues, dT, &w, T, dW, desc)))

static pvt_device table(void)
{
    pvt_device d;
    memset(&d, 0, sizeof d);
    d.version = PVT_VERSION, d.size = sizeof d, d.real_size = sizeof(pvt_real), d.name = "guarded memory";
    d.user = &device;
#define SET(op) d.op = device_##op
    SET(open), SET(close), SET(status), SET(synchronise), SET(alloc), SET(free), SET(held), SET(copy_in);
    SET(copy_out), SET(copy), SET(zero), SET(embedding_forward), SET(embedding_backward), SET(linear_forward);
    SET(linear_backward), SET(rmsnorm_forward), SET(rmsnorm_backward), SET(rope_table), SET(rope_forward);
    SET(rope_backward), SET(rotate), SET(rotate_columns), SET(attention_forward), SET(attention_backward), SET(swiglu_forward);
    SET(swiglu_backward), SET(residual_forward), SET(residual_backward), SET(softmax_update);
    SET(softmax_finish), SET(cross_entropy_backward), SET(kl_forward), SET(kl_backward), SET(mse_forward);
    SET(mse_backward), SET(weight_lookup), SET(weight_forward), SET(weight_backward), SET(weight_dequantize);
    SET(weight_chain), SET(round_f16), SET(widen_f16), SET(finite), SET(reserve), SET(adam), SET(group_errors);
    SET(group_noise), SET(group_select), SET(weight_assign), SET(weight_commit);
    SET(group_moments), SET(group_return), SET(dot), SET(axpy), SET(product), SET(fit_scales);
    SET(kmeans_assign), SET(kmeans_sums), SET(search_room), SET(weight_search), SET(decodes);
    SET(weight_surrogate);
#undef SET
    return d;
}

/* ---- contexts ---- */

static pvt_device guarded;
static pvt_ctx *host, *there; /* the processor alone; and with the device */
static char why[256];

static pvt_result open_context(const pvt_device *with, pvt_ctx **out)
{
    pvt_ctx_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.n_threads = 2, desc.seed = 5, desc.device = with, desc.error = why, desc.error_bytes = sizeof why;
    return pvt_ctx_create(&desc, out);
}

/* ---- the guard itself ---- */

/* How a child ends that reads, or writes, what the device holds: by the guard, or 0. */
static int child_end(bool write_it, bool inside)
{
    volatile char *memory = (volatile char *)pvt_memory_alloc(there, 100);
    int status = 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (dup2(open("/dev/null", O_WRONLY), 2) < 0) _exit(1);
        if (inside) enter(0);
        if (write_it) memory[50] = 1;
        _exit(memory[50] == (write_it ? 1 : 0) ? 0 : 1);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) return -1;
    pvt_memory_free(there, (void *)(uintptr_t)memory);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_guard(void)
{
    CHECK(child_end(false, false) == STRAY);
    CHECK(child_end(true, false) == STRAY);
    CHECK(child_end(false, true) == 0); /* and within an op it is memory like any other */
    CHECK(child_end(true, true) == 0);
}

/* ---- memory ---- */

static void test_memory(void)
{
    char text[2000], back[2000];
    int64_t before = device.held;
    char *a = (char *)pvt_memory_alloc(there, sizeof text), *b = (char *)pvt_memory_alloc(there, sizeof text);
    for (size_t i = 0; i < sizeof text; i++) text[i] = (char)(i * 7);
    CHECK(a && b && (uintptr_t)a % 64 == 0 && device.held == before + 2 * (int64_t)sizeof text);
    CHECK(pvt_ctx_get_info(there).device_bytes_now == device.held);
    CHECK(strcmp(pvt_ctx_get_info(there).device, "guarded memory") == 0 && !pvt_ctx_get_info(host).device);
    pvt_memory_write(there, a, text, sizeof text);
    pvt_memory_copy(there, b, a, sizeof text);
    pvt_memory_zero(there, b, 100);
    memset(text, 0, 100);
    CHECK_OK(there, pvt_memory_read(there, back, b, sizeof text));
    CHECK(memcmp(text, back, sizeof text) == 0);
    CHECK_OK(there, pvt_ctx_synchronise(there));
    pvt_memory_free(there, a), pvt_memory_free(there, b), pvt_memory_free(there, NULL);
    CHECK(device.held == before && pvt_ctx_get_info(there).device_bytes_peak >= before + 4000);
    pvt_ctx_reset_peak(there);
    CHECK(pvt_ctx_get_info(there).device_bytes_peak == before);
    device.fail_allocation = device.allocations;
    CHECK(pvt_memory_alloc(there, 10) == NULL && strstr(pvt_ctx_error(there), "guarded memory is out of memory"));
    CHECK(pvt_memory_alloc(there, -1) == NULL);
    device.fail_allocation = -1;
    CHECK_OK(there, pvt_ctx_synchronise(there)); /* no memory is no error that sticks */
    a = (char *)pvt_memory_alloc(host, 10);
    pvt_memory_write(host, a, text, 10);
    CHECK(memcmp(a, text, 10) == 0);
    pvt_memory_free(host, a);
}

/* ---- layer 0 ---- */

enum { SLOTS = 24 };
static struct {
    void *slot[SLOTS];
    int64_t bytes[SLOTS];
    int n;
} pool[2]; /* of the processor, of the device */

/* n seeded numbers in ctx's memory; both contexts get the same. */
static pvt_real *numbers(pvt_ctx *ctx, int64_t n)
{
    int which = ctx == there, slot = pool[which].n++;
    pvt_real *x = (pvt_real *)malloc((size_t)n * sizeof *x), *memory = PVTI_MEMORY(ctx, pvt_real, n);
    for (int64_t i = 0; i < n; i++)
        x[i] = (pvt_real)(pvti_random_unit(3, PVTI_RANDOM_USER, (uint64_t)slot, (uint64_t)i) * 2 - 1);
    pvt_memory_write(ctx, memory, x, n * (int64_t)sizeof *x);
    free(x);
    pool[which].slot[slot] = memory;
    pool[which].bytes[slot] = n * (int64_t)sizeof *x;
    return memory;
}

enum { N = 7, C = 24, V = 31, O = 19, B = 2, T = 5, NH = 4, NKV = 2, HS = 6, KV = B * T * NKV * HS };

/* Every op once. What came of it is in the pool. Returns the mean squared error. */
static double all_ops(pvt_ctx *ctx)
{
    static const int32_t host_ids[N] = {3, 30, 3, -1, 0, 31, 12};
    float inv_freq[HS / 2];
    pvt_attention_desc d;
    int32_t *ids = (int32_t *)pvt_memory_alloc(ctx, sizeof host_ids);
    pvt_softmax_row *rows = (pvt_softmax_row *)pvt_memory_alloc(ctx, 2 * N * (int64_t)sizeof *rows);
    double *lse = (double *)pvt_memory_alloc(ctx, 4 * N * (int64_t)sizeof *lse);
    pvt_real *embedding = numbers(ctx, V * C), *x = numbers(ctx, N * C), *y = numbers(ctx, N * O);
    pvt_real *W = numbers(ctx, O * C), *bias = numbers(ctx, O), *norm = numbers(ctx, C), *rstd = numbers(ctx, N);
    pvt_real *q = numbers(ctx, B * T * NH * HS), *k = numbers(ctx, KV), *v = numbers(ctx, KV);
    pvt_real *logits = numbers(ctx, N * V), *teacher = numbers(ctx, N * V), *out = numbers(ctx, B * T * NH * HS);
    pvt_real *dq = numbers(ctx, B * T * NH * HS), *dk = numbers(ctx, KV), *dv = numbers(ctx, KV);
    pvt_real *cosines = numbers(ctx, T * HS / 2), *sines = numbers(ctx, T * HS / 2);
    pvt_real *attention_lse = numbers(ctx, B * NH * T);
    memset(&d, 0, sizeof d);
    d.B = B, d.T = T, d.NH = NH, d.NKV = NKV, d.HS = HS;
    pvt_memory_write(ctx, ids, host_ids, sizeof host_ids);
    pvt_real *grad = numbers(ctx, V * C);
    pvt_embedding_forward(ctx, x, embedding, ids, N, V, C);
    pvt_linear_forward(ctx, y, x, W, bias, N, C, O);
    pvt_rmsnorm_forward(ctx, y, rstd, y, bias, N, O, (pvt_real)1e-5);
    pvt_linear_backward(ctx, x, W, bias, y, x, W, N, C, O);
    pvt_rmsnorm_backward(ctx, x, norm, x, x, rstd, norm, N, C);
    pvt_embedding_backward(ctx, grad, x, ids, N, V, C);
    pvt_rope_frequencies(inv_freq, HS, 10000);
    pvt_rope_table(ctx, cosines, sines, inv_freq, HS, 0, T);
    pvt_rope_forward(ctx, q, cosines, sines, B, T, NH, HS, PVT_ROPE_HALVES);
    pvt_attention_forward(ctx, out, attention_lse, q, k, v, &d);
    pvt_attention_backward(ctx, dq, dk, dv, q, out, attention_lse, q, k, v, &d);
    pvt_rope_backward(ctx, dk, cosines, sines, B, T, NKV, HS, PVT_ROPE_NEIGHBOURS);
    pvt_rotate(ctx, dq, q, B * T, NH * HS, PVT_SIDE_IN, false);
    pvt_rotate(ctx, dq, dq, B * T, NH * HS, PVT_SIDE_OUT, true);
    pvt_rotate_columns(ctx, dq, NH * HS, B * T, PVT_SIDE_OUT, false);
    pvt_swiglu_forward(ctx, y, y, y, N * O);
    pvt_swiglu_backward(ctx, dk, dv, k, v, k, KV);
    pvt_residual_forward(ctx, x, x, logits, N * C);
    pvt_residual_backward(ctx, dk, dv, k, KV);
    pvt_softmax_update(ctx, rows, logits, ids, N, 0, V, V);
    pvt_softmax_finish(ctx, lse, lse + N, rows, ids, N);
    pvt_softmax_update(ctx, rows + N, teacher, ids, N, 0, V, V);
    pvt_softmax_finish(ctx, lse + 2 * N, NULL, rows + N, ids, N);
    pvt_kl_forward(ctx, lse + 3 * N, logits, lse, teacher, lse + 2 * N, ids, N, V, V);
    pvt_kl_backward(ctx, logits, lse, teacher, lse + 2 * N, ids, 0.25, N, V, V);
    pvt_cross_entropy_backward(ctx, teacher, lse + 2 * N, ids, 0.5, N, 0, V, V);
    double mse = pvt_mse_forward(ctx, logits, teacher, N * V);
    pvt_mse_backward(ctx, x, x, y, 0.5, N * O);
    pool[ctx == there].slot[pool[ctx == there].n] = lse;
    pool[ctx == there].bytes[pool[ctx == there].n++] = 4 * N * (int64_t)sizeof *lse;
    pvt_memory_free(ctx, ids), pvt_memory_free(ctx, rows);
    return mse;
}

static void test_ops(void)
{
    memset(pool, 0, sizeof pool);
    double a = all_ops(host), b = all_ops(there);
    CHECK(a == b && a > 0);
    for (int i = 0; i < pool[0].n; i++) {
        char *copy = (char *)malloc((size_t)pool[1].bytes[i]);
        CHECK_OK(there, pvt_memory_read(there, copy, pool[1].slot[i], pool[1].bytes[i]));
        CHECK(memcmp(copy, pool[0].slot[i], (size_t)pool[0].bytes[i]) == 0);
        free(copy);
        pvt_memory_free(host, pool[0].slot[i]), pvt_memory_free(there, pool[1].slot[i]);
    }
}

/* ---- models ---- */

enum { CTX = 24, VOCAB = 90, WINDOWS = 14 };
static pvt_model *teacher[2], *student[2]; /* of the processor; copies on the device */
static pvt_corpus corpus;

/* Weights with a rotation among those of the student, of any format and on either side. */
static void rotate_some(pvt_model *model)
{
    static const char *const which[][2] = {{"layers.1.self_attn.q_proj", "had:int:4g16"}, {"layers.1.self_attn.k_proj", "had:int:4g16"},
                                           {"layers.1.mlp.down_proj", "had2:aqlm:1x4g4"}, {"layers.2.mlp.gate_proj", "had2:int:4g16"}};
    int done = 0;
    for (int64_t i = 0; i < pvt_model_tensors(model); i++)
        for (int k = 0; k < 4; k++) {
            pvt_tensor_info t = pvt_model_tensor(model, i), from = pvt_model_tensor(teacher[0], i);
            pvt_format f;
            pvt_fit_desc d;
            if (!strstr(t.name, which[k][0])) continue;
            memset(&d, 0, sizeof d);
            d.epochs = 1, d.kmeans_steps = 2;
            pvt_weight_free(t.weight);
            CHECK_OK(host, pvt_format_parse(host, which[k][1], &f));
            CHECK_OK(host, pvt_weight_fit(host, (const pvt_real *)from.weight->array[0], from.weight->O, from.weight->I, NULL, &f,
                                          &d, NULL, t.weight));
            done++;
        }
    CHECK(done == 4);
}

static void make_models(void)
{
    pvt_model_config c;
    pvt_quantize_desc q;
    pvt_model *quantized;
    int32_t ids[CTX * WINDOWS];
    memset(&c, 0, sizeof c), memset(&q, 0, sizeof q);
    for (int i = 0; i < CTX * WINDOWS; i++) ids[i] = (int32_t)(i * i % 89);
    CHECK_OK(host, pvt_corpus_from_ids(host, ids, CTX * WINDOWS, &corpus));
    c.layers = 3, c.dim = 32, c.heads = 4, c.kv_heads = 2, c.ff = 48, c.vocab = VOCAB, c.ctx = CTX;
    CHECK_OK(host, pvt_model_create(host, &c, &teacher[0]));
    CHECK_OK(host, pvt_model_copy(host, teacher[0], &quantized));
    q.samples = 4, q.fit.epochs = 1, q.fit.kmeans_steps = 2, q.finetune_epochs = -1;
    CHECK_OK(host, pvt_format_parse(host, "aqlm:2x5g4", &q.format));
    CHECK_OK(host, pvt_quantize(quantized, &corpus, &q));
    rotate_some(quantized);
    student[0] = quantized;
    CHECK_OK(there, pvt_model_copy(there, teacher[0], &teacher[1]));
    CHECK_OK(there, pvt_model_copy(there, quantized, &student[1]));
}

/* Do two models hold the same bytes, tensor by tensor? b may lie on the device. */
static bool same_model(const pvt_model *a, const pvt_model *b)
{
    pvt_model *copy;
    bool same = pvt_model_tensors(a) == pvt_model_tensors(b);
    CHECK_OK(host, pvt_model_copy(host, b, &copy));
    for (int64_t i = 0; same && i < pvt_model_tensors(a); i++) {
        pvt_tensor_info x = pvt_model_tensor(a, i), y = pvt_model_tensor(copy, i);
        pvt_array p[PVT_MAX_ARRAYS], q[PVT_MAX_ARRAYS];
        if (x.values) {
            same = same && memcmp(x.values, y.values, (size_t)x.n * sizeof *x.values) == 0;
            continue;
        }
        int n = pvt_weight_arrays(x.weight, p);
        same = same && pvt_weight_arrays(y.weight, q) == n;
        for (int k = 0; same && k < n; k++)
            same = p[k].bytes == q[k].bytes && memcmp(p[k].data, q[k].data, (size_t)p[k].bytes) == 0;
    }
    pvt_model_free(copy);
    return same;
}

static void test_copies(void)
{
    pvt_model_config c = *pvt_model_get_config(teacher[0]);
    pvt_model *made;
    CHECK(same_model(teacher[0], teacher[1]) && same_model(student[0], student[1]));
    CHECK(!same_model(teacher[0], student[1]));
    CHECK_OK(there, pvt_model_create(there, &c, &made));
    CHECK(same_model(teacher[0], made)); /* same seed */
    pvt_model_free(made);
    CHECK_OK(there, pvt_model_copy(there, student[1], &made));
    CHECK(same_model(student[0], made));
    pvt_model_free(made);
}

/* Arrays in, arrays as a weight there, in full, chain rule and rounding. */
static void test_weight(const char *tensor)
{
    const pvt_weight *from = NULL;
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_weight w, dense;
    pvt_real *W, *read;
    pvt_real *d[PVT_MAX_ARRAYS] = {NULL}, *expect[PVT_MAX_ARRAYS] = {NULL};
    for (int64_t i = 0; i < pvt_model_tensors(student[0]); i++)
        if (strstr(pvt_model_tensor(student[0], i).name, tensor)) from = pvt_model_tensor(student[0], i).weight;
    int n = pvt_weight_arrays(from, arrays);
    int64_t bytes = from->O * from->I * (int64_t)sizeof *W;
    W = (pvt_real *)malloc((size_t)bytes), read = (pvt_real *)malloc((size_t)bytes);
    pvt_real *whole = (pvt_real *)pvt_memory_alloc(there, bytes);
    CHECK_OK(there, pvt_weight_from_arrays(there, &from->format, from->O, from->I, arrays, n, "w", &w));
    CHECK_OK(there, pvt_weight_prepare(&w));
    CHECK(w.ctx == there && !w.prepared);
    pvt_weight_dequantize(from, W);
    pvt_weight_dequantize(&w, whole);
    CHECK_OK(there, pvt_memory_read(there, read, whole, bytes));
    CHECK(memcmp(read, W, (size_t)bytes) == 0);
    pvt_memory_free(there, whole), free(read);
    CHECK_OK(there, pvt_weight_dense(there, W, from->O, from->I, &dense));
    pvt_real *dW = (pvt_real *)dense.array[0];
    for (int k = 1; k < n; k++) {
        d[k] = (pvt_real *)pvt_memory_alloc(there, arrays[k].bytes);
        expect[k] = (pvt_real *)calloc(1, (size_t)arrays[k].bytes);
    }
    CHECK_OK(there, pvt_weight_chain(d, &w, dW));
    CHECK_OK(host, pvt_weight_chain(expect, from, W));
    for (int k = 1; k < n; k++) {
        void *back = malloc((size_t)arrays[k].bytes);
        CHECK_OK(there, pvt_memory_read(there, back, d[k], arrays[k].bytes));
        CHECK(memcmp(back, expect[k], (size_t)arrays[k].bytes) == 0);
        free(back), free(expect[k]);
        pvt_memory_free(there, d[k]);
    }
    CHECK_OK(there, pvt_weight_round_f16(&dense, "dense"));
    W[5] = (pvt_real)1e6;
    pvt_memory_write(there, dW, W, from->O * from->I * (int64_t)sizeof *W);
    CHECK(pvt_weight_round_f16(&dense, "dense") == PVT_ERR_NUMERIC);
    CHECK(strstr(pvt_ctx_error(there), "element 5 is 1e+06") != NULL);
    pvt_weight_free(&w), pvt_weight_free(&dense);
    free(W);
}

/* ---- evaluation and generation ---- */

static void test_use(void)
{
    pvt_ppl_desc desc;
    pvt_ppl ppl[2];
    pvt_generate_desc g;
    pvt_generated made[2];
    pvt_ctx *ctx[2] = {host, there};
    double nll[2][WINDOWS];
    memset(&desc, 0, sizeof desc), memset(&g, 0, sizeof g);
    desc.ctx = CTX;
    for (int i = 0; i < 2; i++) {
        desc.window_nll = nll[i];
        CHECK_OK(ctx[i], pvt_perplexity(student[i], &corpus, &desc, &ppl[i]));
    }
    CHECK(ppl[0].ppl == ppl[1].ppl && ppl[0].nll_stderr == ppl[1].nll_stderr && ppl[0].ppl > 1);
    CHECK(memcmp(nll[0], nll[1], sizeof nll[0]) == 0);
    for (int sampled = 0; sampled < 2; sampled++) {
        g.n = 12, g.temperature = sampled, g.top_p = 0.9, g.seed = 11;
        for (int i = 0; i < 2; i++) CHECK_OK(ctx[i], pvt_generate(student[i], corpus.ids, 9, &g, &made[i]));
        CHECK(made[0].n == 12 && made[1].n == 12 && memcmp(made[0].ids, made[1].ids, 12 * sizeof(int32_t)) == 0);
        for (int i = 0; i < 2; i++) pvt_ids_free(ctx[i], made[i].ids);
    }
}

/* Logits of a batch, and those of some rows again. */
static void test_logits(void)
{
    pvt_ctx *ctx[2] = {host, there};
    pvt_run_desc desc;
    pvt_run *run;
    pvt_real *logits[2];
    memset(&desc, 0, sizeof desc);
    desc.max_batch = 3, desc.max_ctx = CTX;
    for (int i = 0; i < 2; i++) {
        logits[i] = (pvt_real *)malloc((size_t)(4 * CTX * VOCAB) * sizeof(pvt_real));
        CHECK_OK(ctx[i], pvt_run_create(student[i], &desc, &run));
        CHECK_OK(ctx[i], pvt_run_forward(run, corpus.ids, 3, CTX, logits[i]));
        CHECK_OK(ctx[i], pvt_run_logits(run, 5, CTX, logits[i] + 3 * CTX * VOCAB));
        pvt_run_free(run);
    }
    CHECK(memcmp(logits[0], logits[1], (size_t)(4 * CTX * VOCAB) * sizeof(pvt_real)) == 0);
    free(logits[0]), free(logits[1]);
}

/* ---- tuning ---- */

static bool same_file(const char *a, const char *b)
{
    FILE *f = fopen(a, "rb"), *g = fopen(b, "rb");
    int x = 0, y = 0;
    int64_t n = -1;
    if (!f || !g) return false;
    while (x == y && x != EOF) x = getc(f), y = getc(g), n++;
    fclose(f), fclose(g);
    return x == y && n > 1000;
}

/* The same steps here and there: losses, checkpoints and models to the bit; and what a step moves to and fro. */
static void tune_both(const pvt_tune_desc *desc, const char *dir)
{
    pvt_ctx *ctx[2] = {host, there};
    pvt_model *tuned[2];
    pvt_tuner *tuner[2];
    pvt_tune_eval figure[2];
    pvt_tune_stats s[2];
    char path[3][600];
    int64_t held = device.held, changed = 0;
    for (int i = 0; i < 2; i++) {
        snprintf(path[i], sizeof path[i], "%s/%d.safetensors", dir, i);
        CHECK_OK(ctx[i], pvt_model_copy(ctx[i], student[i], &tuned[i]));
        CHECK_OK(ctx[i], pvt_tuner_create(tuned[i], desc->cross_entropy ? NULL : teacher[i], &corpus, desc,
                                          &tuner[i]));
        if (!tuner[i]) return;
    }
    int64_t allocations = device.allocations;
    for (int step = 0; step < desc->steps; step++) {
        for (int i = 0; i < 2; i++) {
            device.bytes_in = device.bytes_out = 0;
            CHECK_OK(ctx[i], pvt_tuner_step(tuner[i], &s[i]));
        }
        CHECK(s[0].loss == s[1].loss && s[0].loss > 0 && s[0].groups_searched == s[1].groups_searched);
        CHECK(s[0].groups_changed == s[1].groups_changed);
        changed += s[1].groups_changed;
        if (step == 0) /* without the teacher's cache and an evaluation: ids and targets in, losses and counts out */
            CHECK(!desc->no_teacher_cache || desc->eval_every >= 0 ||
                  (device.bytes_in <= 12 * desc->batch * CTX && device.bytes_out <= 8 * desc->batch * CTX + 8));
    }
    CHECK(device.allocations == allocations); /* no step takes memory */
    CHECK((changed > 0) == (desc->pv.strategy != PVT_STRATEGY_CONTINUOUS));
    for (int i = 0; i < 2; i++) CHECK_OK(ctx[i], pvt_tuner_save(tuner[i], path[i]));
    CHECK(same_file(path[0], path[1]));
    CHECK_OK(there, pvt_tuner_resume(tuner[1], path[0])); /* what was saved here goes on there */
    snprintf(path[2], sizeof path[2], "%s/2.safetensors", dir);
    CHECK_OK(there, pvt_tuner_save(tuner[1], path[2]));
    CHECK(same_file(path[0], path[2]));
    for (int i = 0; i < 2; i++) {
        CHECK_OK(ctx[i], pvt_tuner_finish(tuner[i], &figure[i]));
        pvt_tuner_free(tuner[i]);
    }
    if (desc->eval_every >= 0) CHECK(figure[0].loss == figure[1].loss && figure[0].ppl == figure[1].ppl);
    CHECK(same_model(tuned[0], tuned[1]) && !same_model(student[0], tuned[1]));
    for (int i = 0; i < 2; i++) pvt_model_free(tuned[i]);
    CHECK(device.held == held);
}

static void test_tune(const char *dir)
{
    pvt_tune_desc desc, plain;
    memset(&plain, 0, sizeof plain);
    plain.steps = 3, plain.batch = 2, plain.ctx = CTX, plain.pv.cap = 0.05;
    plain.eval_every = -1, plain.no_teacher_cache = true, plain.pv.codes.lr = 0.5;
    for (int strategy = 0; strategy < (int)PVTI_COUNT(pvti_strategies); strategy++) {
        desc = plain;
        desc.pv.strategy = (pvt_strategy)strategy;
        tune_both(&desc, dir);
    }
    desc = plain; /* windows come again: the cache; evaluations and the best state; gradients of two micro-batches */
    desc.steps = 8, desc.no_teacher_cache = false, desc.eval_every = 3, desc.micro_batch = 1;
    tune_both(&desc, dir);
    desc = plain;
    desc.cross_entropy = true, desc.pv.trust = 0.01, desc.pv.temperature = 1, desc.pv.beam = 2;
    desc.pv.force_update = true, desc.pv.moments = PVT_BF16, desc.pv.delta = 0.5;
    desc.pv.codes.rule = PVT_OPTIMIZER_ADAM, desc.pv.values.rule = PVT_OPTIMIZER_LAMB, desc.pv.values.amsgrad = true;
    tune_both(&desc, dir);
    desc = plain;
    desc.pv.selection = PVT_SELECT_UNIFORM, desc.pv.restart = true, desc.pv.wind = 0.5;
    tune_both(&desc, dir);
    desc.pv.selection = PVT_SELECT_PROPORTIONAL, desc.pv.key = PVT_KEY_MOMENT;
    tune_both(&desc, dir);
    desc = plain;
    desc.pv.strategy = PVT_STRATEGY_SUBSPACE, desc.pv.step = PVT_STEP_PLAIN, desc.pv.smoothness = 1e-3;
    tune_both(&desc, dir);
    desc = plain;
    desc.freeze_dense = true, desc.memory_limit = 1; /* blocks run again in backward */
    desc.pv.train = PVT_TRAIN_ALL & ~PVT_TRAIN_SCALES;
    tune_both(&desc, dir);
}

/* Gradients that see the rounding, of integers. */
static void test_surrogates(const char *dir)
{
    pvt_model *mixed[2] = {student[0], student[1]};
    pvt_quantize_desc q;
    pvt_tune_desc desc;
    memset(&q, 0, sizeof q), memset(&desc, 0, sizeof desc);
    q.samples = 4, q.ctx = CTX, q.finetune_epochs = -1;
    desc.steps = 2, desc.batch = 2, desc.ctx = CTX, desc.eval_every = -1, desc.pv.codes.lr = 0.5;
    desc.pv.strategy = PVT_STRATEGY_STE;
    CHECK_OK(host, pvt_format_parse(host, "had:int:2g8", &q.format));
    CHECK_OK(host, pvt_model_copy(host, teacher[0], &student[0]));
    CHECK_OK(host, pvt_quantize(student[0], &corpus, &q));
    CHECK_OK(there, pvt_model_copy(there, student[0], &student[1]));
    for (int surrogate = PVT_SURROGATE_IDENTITY; surrogate <= PVT_SURROGATE_ROOT; surrogate++) {
        desc.pv.surrogate = (pvt_surrogate)surrogate;
        desc.pv.clamp_sharpness = surrogate == PVT_SURROGATE_IDENTITY ? -1 : 0;
        tune_both(&desc, dir);
    }
    desc.pv.train = PVT_TRAIN_ALL & ~PVT_TRAIN_VALUES;
    tune_both(&desc, dir);
    for (int i = 0; i < 2; i++) pvt_model_free(student[i]), student[i] = mixed[i];
}

/* ---- what bits are worth ---- */

static int64_t calls_of(size_t offset) { return device.calls[offset / sizeof(void *)]; }
#define CALLS(op) calls_of(offsetof(pvt_device, op))

/* A figure for each tensor, here and there: to the bit. */
static void same_figures(const double *here, const double *there_too, int64_t n)
{
    int64_t real = 0;
    for (int64_t i = 0; i < n; i++) real += here[i] > 0 && here[i] < 1e9;
    CHECK(real > 5 && memcmp(here, there_too, (size_t)n * sizeof *here) == 0);
}
static void test_allocation(void)
{
    enum { MOST = 400, FORMATS = 4 };
    static const char *const names[FORMATS] = {"aqlm:1x4g4", "int:2g8", "had:nf4", "dense"};
    static double figure[2][MOST];
    static int64_t bytes[2][MOST];
    pvt_format formats[FORMATS];
    pvt_alpha_desc desc;
    pvt_fit_desc fit;
    int64_t n = pvt_model_tensors(teacher[0]), held = device.held;
    CHECK(n * FORMATS <= MOST);
    for (int i = 0; i < FORMATS; i++) CHECK_OK(host, pvt_format_parse(host, names[i], &formats[i]));
    for (int noise = 0; noise < 3; noise++) { /* gradients; noise and the KL of drawn ids; noise and the loss */
        memset(&desc, 0, sizeof desc);
        desc.method = noise ? PVT_ALPHA_NOISE : PVT_ALPHA_GRADIENT;
        desc.samples = 2, desc.ctx = CTX, desc.cross_entropy = noise == 2;
        for (int i = 0; i < 2; i++) {
            int64_t ops = device.ops;
            CHECK(pvt_model_alpha(teacher[i], noise == 1 ? NULL : &corpus, &desc, figure[i]) == PVT_OK);
            CHECK((device.ops > ops) == (i == 1));
        }
        same_figures(figure[0], figure[1], n);
    }
    memset(&fit, 0, sizeof fit);
    fit.epochs = 1, fit.kmeans_steps = 2;
    desc.method = PVT_ALPHA_GRADIENT, desc.cross_entropy = false;
    int64_t searches = CALLS(weight_search);
    for (int i = 0; i < 2; i++) CHECK(pvt_model_feedback(teacher[i], &corpus, &desc, &formats[0], figure[i]) == PVT_OK);
    same_figures(figure[0], figure[1], n);
    CHECK(CALLS(weight_search) > searches);
    for (int i = 0; i < 2; i++) CHECK(pvt_model_errors(teacher[i], formats, FORMATS, NULL, &fit, figure[i], bytes[i]) == PVT_OK);
    same_figures(figure[0], figure[1], n * FORMATS);
    CHECK(memcmp(bytes[0], bytes[1], (size_t)(n * FORMATS) * sizeof **bytes) == 0);
    CHECK(device.held == held);
    device.fail_op = device.ops + 40; /* the device's sentence, and nothing stays */
    CHECK(pvt_model_alpha(teacher[1], &corpus, &desc, figure[1]) == PVT_ERR_IO);
    CHECK(strcmp(pvt_ctx_error(there), "guarded memory: the power went out") == 0);
    device.failed = false, device.fail_op = -1;
    CHECK(device.held == held);
}

/* ---- files ---- */

static void test_files(const char *dir)
{
    char path[600];
    pvt_model *loaded[2];
    pvt_save_desc save;
    memset(&save, 0, sizeof save);
    for (int codes = 0; codes < 2; codes++) {
        snprintf(path, sizeof path, "%s/model%d", dir, codes);
        save.dtype = PVT_BF16;
        CHECK_OK(there, pvt_model_save(codes ? student[1] : teacher[1], path, &save));
        CHECK_OK(host, pvt_model_load(host, path, NULL, &loaded[0]));
        CHECK_OK(there, pvt_model_load(there, path, NULL, &loaded[1]));
        CHECK(pvt_model_file_bytes(loaded[1]) == pvt_model_file_bytes(loaded[0]));
        CHECK(pvt_model_tensor(loaded[1], 0).dtype == PVT_BF16); /* as the file has it, not widened */
        CHECK_OK(host, pvt_model_round_f16(loaded[0]));
        CHECK_OK(there, pvt_model_round_f16(loaded[1]));
        CHECK(pvt_model_tensor(loaded[1], 0).dtype == PVT_F16);
        for (int i = 0; i < 2; i++) { /* as pvt_real, to compare */
            pvt_model *copy;
            CHECK_OK(host, pvt_model_copy(host, loaded[i], &copy));
            pvt_model_free(loaded[i]);
            loaded[i] = copy;
        }
        CHECK(same_model(loaded[0], loaded[1]));
        pvt_model_free(loaded[0]), pvt_model_free(loaded[1]);
    }
    CHECK(pvt_model_load(there, "/nowhere", NULL, &loaded[1]) == PVT_ERR_IO);
    CHECK(strstr(pvt_ctx_error(there), "/nowhere") != NULL);
}

/* ---- fits ---- */

/* The device does the work for codebooks, the host what it does not know or cannot: the same bits. */
static void test_fit(const char *text, bool metric, int beam, bool able)
{
    enum { ROWS = 24, COLS = 32 };
    pvt_real W[ROWS * COLS], H[COLS * COLS];
    pvt_format format;
    pvt_fit_desc desc;
    pvt_fit_stats stats[2];
    pvt_weight w[2];
    int64_t held = device.held, search = CALLS(weight_search), plain = CALLS(weight_assign), sums = CALLS(kmeans_sums);
    for (int64_t i = 0; i < ROWS * COLS; i++)
        W[i] = (pvt_real)(pvti_random_unit(4, PVTI_RANDOM_USER, 0, (uint64_t)i) - 0.5);
    for (int64_t i = 0; i < COLS; i++)
        for (int64_t j = 0; j <= i; j++) H[i * COLS + j] = H[j * COLS + i] = i == j ? (pvt_real)(2 + i % 3) : 1 / (pvt_real)(1 + i - j);
    memset(&desc, 0, sizeof desc);
    desc.beam = beam, desc.epochs = 3;
    CHECK_OK(host, pvt_format_parse(host, text, &format));
    CHECK_OK(host, pvt_weight_fit(host, W, ROWS, COLS, metric ? H : NULL, &format, &desc, &stats[0], &w[0]));
    CHECK_OK(there, pvt_weight_fit(there, W, ROWS, COLS, metric ? H : NULL, &format, &desc, &stats[1], &w[1]));
    CHECK(stats[0].error > 0 && stats[0].error == stats[1].error && stats[0].epochs == stats[1].epochs);
    CHECK((CALLS(weight_search) > search) == (able && metric) && (CALLS(weight_assign) > plain) == (able && !metric));
    CHECK((CALLS(kmeans_sums) > sums) == able);
    for (int i = 0; i < 2; i++) {
        pvt_real *full = (pvt_real *)pvt_memory_alloc(w[i].ctx, (int64_t)sizeof W), *to = i ? H : W;
        pvt_weight_dequantize(&w[i], full);
        CHECK_OK(w[i].ctx, pvt_memory_read(w[i].ctx, to, full, (int64_t)sizeof W));
        pvt_memory_free(w[i].ctx, full);
    }
    CHECK(memcmp(W, H, sizeof W) == 0);
    pvt_weight_free(&w[0]), pvt_weight_free(&w[1]);
    CHECK(device.held == held);
}

/* What the device does not decode comes over in full, and stands for the same numbers. */
static void test_unpack(void)
{
    uint8_t blocks[4 * 2 * 20]; /* four rows of two blocks of Q4_1, or of Q4_0, which is shorter */
    pvt_real W[4 * 64], full[4 * 64];
    pvt_weight w, copy;
    int64_t held = device.held;
    for (int i = 0; i < (int)sizeof blocks; i++) blocks[i] = (uint8_t)(i * 37 % 60);
    for (int k = 0; k < 2; k++) {
        CHECK_OK(host, pvt_weight_borrow(host, blocks, k ? PVT_Q4_0 : PVT_Q4_1, 4, 64, &w));
        CHECK_OK(there, pvti_weight_take(there, &w, &copy));
        CHECK(copy.owned && copy.dtype == (k ? PVT_Q4_0 : PVTI_DTYPE_REAL));
        pvt_real *numbers = (pvt_real *)pvt_memory_alloc(there, (int64_t)sizeof W);
        pvt_weight_dequantize(&w, W), pvt_weight_dequantize(&copy, numbers);
        CHECK_OK(there, pvt_memory_read(there, full, numbers, (int64_t)sizeof W));
        CHECK(memcmp(W, full, sizeof W) == 0 && W[0] != W[1]);
        pvt_memory_free(there, numbers), pvt_weight_free(&copy);
    }
    CHECK(device.held == held);
}

/* ---- quantizing ---- */

static pvt_quantize_desc quantize_desc(const char *format)
{
    pvt_quantize_desc q;
    memset(&q, 0, sizeof q);
    q.samples = 4, q.fit.epochs = 1, q.fit.kmeans_steps = 2, q.finetune_epochs = 3, q.finetune_lr = 1e-2;
    q.skip = "layers.1.mlp.up_proj", q.embedding = true;
    CHECK_OK(host, pvt_format_parse(host, format, &q.format));
    CHECK_OK(host, pvt_format_parse(host, "int:4g8", &q.embed_format));
    return q;
}

/* Blocks run on the device, which fits codebooks; other weights are fit beside it: a model of the processor's bits. With a checkpoint the
   second time goes on from the first's files; another context's are refused. */
static void test_quantize(const char *dir, const char *format, bool finetune, pvt_strategy strategy, pvt_surrogate surrogate)
{
    pvt_model *made[2], *again;
    pvt_quantize_desc q = quantize_desc(format);
    pvt_pv_desc pv;
    memset(&pv, 0, sizeof pv);
    pv.strategy = strategy, pv.surrogate = surrogate, pv.codes.lr = 1e-2, q.finetune = &pv;
    char command[600];
    int64_t held = device.held;
    if (!finetune) q.finetune_epochs = -1;
    CHECK_OK(host, pvt_model_copy(host, teacher[0], &made[0]));
    CHECK_OK(there, pvt_model_copy(there, teacher[1], &made[1]));
    CHECK_OK(there, pvt_model_copy(there, teacher[1], &again));
    CHECK_OK(host, pvt_quantize(made[0], &corpus, &q));
    int64_t forwards = CALLS(attention_forward);
    q.checkpoint = dir;
    CHECK_OK(there, pvt_quantize(made[1], &corpus, &q));
    CHECK(CALLS(attention_forward) - forwards >= 6);
    CHECK(!same_model(teacher[0], made[1]) && same_model(made[0], made[1]));
    q.resume = true;
    CHECK_OK(there, pvt_quantize(again, &corpus, &q));
    CHECK(same_model(made[0], again));
    pvt_model_free(made[0]);
    CHECK_OK(host, pvt_model_copy(host, teacher[0], &made[0]));
    CHECK(pvt_quantize(made[0], &corpus, &q) == PVT_ERR_MISMATCH);
    CHECK(strstr(pvt_ctx_error(host), "products full, on guarded memory") != NULL);
    pvt_model_free(made[0]), pvt_model_free(made[1]), pvt_model_free(again);
    CHECK(device.held == held);
    snprintf(command, sizeof command, "rm '%s'/quantize-*.safetensors", dir);
    CHECK(system(command) == 0);
}

/* Of the allocations there one fails, then an op: an error, whole blocks in the model, nothing stays. */
static void test_quantize_failures(void)
{
    pvt_quantize_desc q = quantize_desc("aqlm:1x4g4");
    pvt_pv_desc pv;
    pvt_ppl_desc desc;
    pvt_ppl ppl;
    pvt_model *model;
    pvt_result result = PVT_ERR_MEMORY;
    int64_t held = device.held, failed = 0, wrong = 0, all = 0, ops = 0;
    memset(&desc, 0, sizeof desc);
    memset(&pv, 0, sizeof pv);
    pv.strategy = PVT_STRATEGY_STE, q.finetune = &pv;
    desc.ctx = CTX, q.samples = 1, q.finetune_epochs = 1;
    for (; result == PVT_ERR_MEMORY && failed < 2000; failed += 1 + failed / 8) {
        CHECK_OK(there, pvt_model_copy(there, teacher[1], &model));
        device.allocations = 0, device.fail_allocation = failed, ops = device.ops;
        result = pvt_quantize(model, &corpus, &q);
        all = device.ops - ops;
        device.fail_allocation = -1;
        CHECK_OK(there, pvt_perplexity(model, &corpus, &desc, &ppl));
        wrong += !(ppl.nll > 0 && ppl.nll < 10);
        pvt_model_free(model);
        wrong += device.held != held;
    }
    CHECK(result == PVT_OK && failed > 200 && all > 300 && wrong == 0);
    for (int64_t at = 0; at < all; at += 89) {
        CHECK_OK(there, pvt_model_copy(there, teacher[1], &model));
        device.fail_op = device.ops + at;
        wrong += pvt_quantize(model, &corpus, &q) != PVT_ERR_IO;
        wrong += strcmp(pvt_ctx_error(there), "guarded memory: the power went out") != 0;
        device.failed = false, device.fail_op = -1;
        pvt_model_free(model);
        wrong += device.held != held;
    }
    CHECK(wrong == 0);
}

/* ---- what goes wrong ---- */

static void test_refusals(void)
{
    pvt_real W[64] = {1};
    pvt_format format;
    pvt_weight w;
    pvt_model *model;
    pvt_tuner *tuner;
    pvt_tune_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.ctx = CTX, desc.steps = 1;
    CHECK_OK(there, pvt_format_parse(there, "aqlm:1x4g4", &format));
    CHECK_OK(there, pvt_weight_fit(there, W, 8, 8, NULL, &format, NULL, NULL, &w));
    CHECK(w.ctx == there && w.owned);
    pvt_weight_free(&w);
    CHECK(pvt_weight_fit(there, W, 8, 9, NULL, &format, NULL, NULL, &w) == PVT_ERR_ARGUMENT && !w.kind);
    CHECK(strstr(pvt_ctx_error(there), "do not divide") != NULL);
    guarded.rotate = NULL; /* a device that cannot */
    CHECK(pvt_model_copy(there, student[0], &model) == PVT_ERR_UNSUPPORTED);
    CHECK(strstr(pvt_ctx_error(there), "guarded memory does not rotate") != NULL);
    guarded.rotate = device_rotate;
    pvt_pv_desc qat;
    pvt_pv *pv = NULL;
    memset(&qat, 0, sizeof qat);
    qat.surrogate = PVT_SURROGATE_IDENTITY;
    guarded.weight_surrogate = NULL;
    CHECK(pvt_pv_create(there, &qat, &pv) == PVT_ERR_UNSUPPORTED && !pv);
    CHECK(strstr(pvt_ctx_error(there), "surrogates are not implemented on") != NULL);
    pvt_quantize_desc q = quantize_desc("int:3g8"); /* before any work is done */
    int64_t forwards = CALLS(attention_forward);
    qat.strategy = PVT_STRATEGY_STE, q.finetune = &qat;
    CHECK_OK(there, pvt_model_copy(there, teacher[1], &model));
    CHECK(pvt_quantize(model, &corpus, &q) == PVT_ERR_UNSUPPORTED && CALLS(attention_forward) == forwards);
    CHECK(strstr(pvt_ctx_error(there), "surrogates are not implemented on guarded memory") != NULL);
    pvt_model_free(model);
    guarded.weight_surrogate = device_weight_surrogate;
    CHECK(pvt_model_prepare(teacher[1], true) == PVT_ERR_UNSUPPORTED);
    CHECK_OK(there, pvt_model_prepare(student[1], false));
    CHECK(pvt_tuner_create(student[1], teacher[0], &corpus, &desc, &tuner) == PVT_ERR_MISMATCH);
}

static void test_tables(void)
{
    pvt_device other = guarded;
    pvt_ctx *ctx;
    other.version++;
    CHECK(open_context(&other, &ctx) == PVT_ERR_MISMATCH && !ctx && strstr(why, "another pvtune.h"));
    other = guarded, other.size--;
    CHECK(open_context(&other, &ctx) == PVT_ERR_MISMATCH);
    other = guarded, other.real_size = 2;
    CHECK(open_context(&other, &ctx) == PVT_ERR_MISMATCH);
    device.open_fails = true;
    CHECK(open_context(&guarded, &ctx) == PVT_ERR_IO && !ctx && strcmp(why, "the device is asleep") == 0);
    device.open_fails = false;
}

/* Each allocation on the device fails once: an error, and nothing stays. */
static void test_no_memory(void)
{
    pvt_tune_desc desc;
    pvt_tuner *tuner = NULL;
    pvt_model *model = NULL;
    pvt_result result = PVT_ERR_MEMORY;
    int64_t held = device.held, failed = 0;
    memset(&desc, 0, sizeof desc);
    desc.ctx = CTX, desc.steps = 2;
    for (; result == PVT_ERR_MEMORY && failed < 2000; failed++) {
        device.allocations = 0, device.fail_allocation = failed;
        result = pvt_model_copy(there, student[1], &model);
        if (result == PVT_OK) result = pvt_tuner_create(model, teacher[1], &corpus, &desc, &tuner);
        if (result != PVT_OK && (model ? (pvt_model_free(model), device.held) : device.held) != held) break;
        if (result != PVT_OK) model = NULL;
    }
    CHECK(result == PVT_OK && failed > 100);
    device.fail_allocation = -1;
    pvt_tuner_free(tuner), pvt_model_free(model);
    CHECK(device.held == held);
}

/* The device fails at its n-th op: the step says so, and so does whatever comes later. */
static void test_failures(void)
{
    pvt_tune_desc desc;
    pvt_tuner *tuner;
    pvt_model *model;
    int64_t wrong = 0;
    char text[8];
    memset(&desc, 0, sizeof desc);
    desc.ctx = CTX, desc.steps = 4, desc.eval_every = -1;
    CHECK_OK(there, pvt_model_copy(there, student[1], &model));
    CHECK_OK(there, pvt_tuner_create(model, teacher[1], &corpus, &desc, &tuner));
    int64_t ops = device.ops;
    CHECK_OK(there, pvt_tuner_step(tuner, NULL));
    ops = device.ops - ops;
    pvt_tuner_free(tuner), pvt_model_free(model);
    for (int64_t at = 0; at < ops; at += 19) {
        CHECK_OK(there, pvt_model_copy(there, student[1], &model));
        CHECK_OK(there, pvt_tuner_create(model, teacher[1], &corpus, &desc, &tuner));
        device.fail_op = device.ops + at;
        wrong += pvt_tuner_step(tuner, NULL) != PVT_ERR_IO;
        wrong += strcmp(pvt_ctx_error(there), "guarded memory: the power went out") != 0;
        wrong += pvt_ctx_synchronise(there) != PVT_ERR_IO;
        wrong += pvt_memory_read(there, text, model->norm, sizeof text) != PVT_ERR_IO;
        device.failed = false, device.fail_op = -1;
        pvt_tuner_free(tuner), pvt_model_free(model);
    }
    CHECK(ops > 300 && wrong == 0);
}

/* Nothing above is worth anything if an op was never asked for. */
static void test_coverage(void)
{
    size_t first = offsetof(pvt_device, open) / sizeof(void *), last = sizeof(pvt_device) / sizeof(void *);
    CHECK(last - first == 62 && device.strays == 0);
    for (size_t i = first; i < last; i++) {
        if (device.calls[i] == 0 && i != offsetof(pvt_device, close) / sizeof(void *))
            printf("op %d of the table was not called\n", (int)(i - first));
        CHECK(device.calls[i] > 0 || i == offsetof(pvt_device, close) / sizeof(void *)); /* that comes below */
    }
}

int main(void)
{
    struct sigaction action;
    char dir[500];
    memset(&action, 0, sizeof action);
    action.sa_sigaction = stray, action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, NULL), sigaction(SIGBUS, &action, NULL);
    guarded = table();
    if (!test_scratch(dir, sizeof dir)) return 1;
    CHECK(open_context(NULL, &host) == PVT_OK);
    test_tables();
    CHECK(open_context(&guarded, &there) == PVT_OK);
    test_guard();
    test_memory();
    test_ops();
    make_models();
    test_copies();
    test_weight("layers.0.self_attn.q_proj"), test_weight("layers.1.mlp.down_proj");
    test_use();
    test_logits();
    test_tune(dir);
    test_surrogates(dir);
    test_allocation();
    test_files(dir);
    test_unpack();
    test_fit("aqlm:2x4g4", true, 1, true), test_fit("aqlm:2x4g4", true, 3, true), test_fit("aqlm:2x3g4o2", true, 2, true);
    test_fit("aqlm:3x9g8", false, 1, true), test_fit("had2:aqlm:1x4g8", true, 1, true), test_fit("int:2g8", true, 1, false);
    guarded.weight_search = NULL, test_fit("aqlm:2x4g4", true, 1, false), guarded = table();
    test_quantize(dir, "aqlm:2x5g4", true, PVT_STRATEGY_CONTINUOUS, PVT_SURROGATE_NONE);
    test_quantize(dir, "had:int:3g8", true, PVT_STRATEGY_STE, PVT_SURROGATE_NONE);
    test_quantize(dir, "had:int:3g8", true, PVT_STRATEGY_STE, PVT_SURROGATE_SIGMOID);
    test_quantize(dir, "aqlm:2x4g8", true, PVT_STRATEGY_SUBSPACE_STE, PVT_SURROGATE_NONE);
    test_quantize(dir, "int:2g8", false, PVT_STRATEGY_CONTINUOUS, PVT_SURROGATE_NONE);
    test_quantize(dir, "had2:e8p", true, PVT_STRATEGY_CONTINUOUS, PVT_SURROGATE_NONE);
    test_quantize_failures();
    test_refusals();
    test_no_memory();
    test_failures();
    test_coverage();
    for (int i = 0; i < 2; i++) pvt_model_free(teacher[i]), pvt_model_free(student[i]);
    CHECK(device.held == 0 && device.wrong_frees == 0);
    pvt_corpus_free(&corpus);
    pvt_ctx_destroy(there);
    CHECK(device.calls[offsetof(pvt_device, close) / sizeof(void *)] == 1);
    pvt_ctx_destroy(host);
    test_remove(dir);
    return test_end();
}
#endif
