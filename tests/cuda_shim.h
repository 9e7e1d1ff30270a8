/*  Kernels without a GPU: what pvtune_cuda.cu takes from CUDA, in C++, so that the very same file compiles
    and runs.

    A launch runs its blocks one by one. A block's threads are fibers, each with a stack of its own; one runs
    until it meets a barrier, a shuffle or its end, then another. Their order is drawn anew each time, from a
    seed: a kernel that counts on some order, for want of a barrier, gives other results with other seeds (or
    NaN: shared memory and what lies behind an allocation are filled with ones, and so is each block's shared
    memory before it starts). Reported are: a barrier that not all threads of a block reach, or reach in
    different lines; writes behind an allocation. The device's memory cannot be touched while no kernel runs.

    What this is not: it does not run threads of a warp in step, knows no caches and no time, and sees a race
    only where an order of whole pieces between barriers shows it. */
#ifndef PVTUNE_CUDA_SHIM_H
#define PVTUNE_CUDA_SHIM_H

#undef _FORTIFY_SOURCE /* its longjmp refuses to change stacks */
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#define SHIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SHIM_ASAN 1
#endif
#endif
#ifdef SHIM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

namespace shim {

enum { THREADS = 1024, STACK = 128 << 10, SHARED = 100 << 10, APART = 256, SLOT = 64 };
enum { READY, AT_BLOCK, AT_WARP, DONE };

/* An asynchronous copy that was asked for and not waited for. */
struct copy {
    char *to;
    const char *from;
    int size, bytes;
};
enum { COPIES = 64 };

struct fiber {
    ucontext_t context;
    jmp_buf resume;
    char *stack;
    dim3 at;
    int state, line, turn; /* line: of the barrier it waits at; turn: which of two slots it writes next */
    bool started;
    void *fake;
    copy copies[COPIES];
    int n_copies;
};

/* A run's errors, counted; the first in words. */
struct world {
    fiber thread[THREADS];
    alignas(16) char slot[2][THREADS][SLOT]; /* what a lane hands to its warp */
    alignas(256) char shared[SHARED + APART];
    dim3 block, block_size, grid;
    int current, n;
    uint64_t random;
    void (*call)(void *);
    void *arg;
    jmp_buf scheduler;
    void *fake;
    const void *bottom;
    size_t bottom_size;
    char *base, *end, *most, *last_header; /* of device memory; most: the highest end so far */
    int64_t launches, errors, fail_launch, fail_malloc, mallocs; /* fail_…: which one; −1: none */
    int last, devices; /* cudaError_t; GPUs there are */
    int side;          /* of a grid, in its second and third direction */
    int ptx, cores;    /* what kernels were compiled for, as in cudaFuncAttributes; multiprocessors */
    char why[200];
    int omit;                    /* the barrier, or wait for copies, in this line is left out; 0: none */
    int lines[256], n_lines;     /* those that were met */
    bool guard; /* device memory is closed between launches */
};
static world w;
enum { ROOM = 1 << 30 }; /* of addresses for device memory */

static inline void fail(const char *why, const char *kernel)
{
    if (w.errors++ == 0)
        snprintf(w.why, sizeof w.why, "%s: %s, block %u %u", kernel, why, w.block.x, w.block.y);
}
static inline uint64_t next()
{
    w.random = w.random * 6364136223846793005u + 1442695040888963407u;
    return w.random >> 33;
}

/* ---- fibers ---- */

static inline void suspend(int state, int line)
{
    fiber *f = &w.thread[w.current];
    f->state = state, f->line = line;
    if (_setjmp(f->resume) == 0) {
#ifdef SHIM_ASAN
        __sanitizer_start_switch_fiber(&f->fake, w.bottom, w.bottom_size);
#endif
        _longjmp(w.scheduler, 1);
    }
#ifdef SHIM_ASAN
    __sanitizer_finish_switch_fiber(w.thread[w.current].fake, &w.bottom, &w.bottom_size);
#endif
}
static inline void entry()
{
#ifdef SHIM_ASAN
    __sanitizer_finish_switch_fiber(NULL, &w.bottom, &w.bottom_size);
#endif
    for (;;) {
        w.call(w.arg);
        suspend(DONE, 0);
    }
}
static inline void run(int i)
{
    fiber *f = &w.thread[i];
    w.current = i;
    if (!f->stack) {
        f->stack = (char *)mmap(NULL, STACK, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (f->stack == (char *)MAP_FAILED) perror("mmap"), exit(1);
    }
    if (_setjmp(w.scheduler) == 0) {
#ifdef SHIM_ASAN
        __sanitizer_start_switch_fiber(&w.fake, f->stack, STACK);
#endif
        if (w.thread[w.current].started) _longjmp(w.thread[w.current].resume, 1);
        w.thread[w.current].started = true;
        getcontext(&w.thread[w.current].context);
        w.thread[w.current].context.uc_stack.ss_sp = w.thread[w.current].stack;
        w.thread[w.current].context.uc_stack.ss_size = STACK;
        w.thread[w.current].context.uc_link = NULL;
        makecontext(&w.thread[w.current].context, entry, 0);
        setcontext(&w.thread[w.current].context);
    }
#ifdef SHIM_ASAN
    __sanitizer_finish_switch_fiber(w.fake, NULL, NULL);
#endif
}

/* A wait is met; false: who plants faults leaves it out. */
static inline bool met(int line)
{
    int i = 0;
    if (line == w.omit) return false;
    while (i < w.n_lines && w.lines[i] != line) i++;
    if (i == w.n_lines && i < 256) w.lines[w.n_lines++] = line;
    return true;
}
static inline void barrier(int line)
{
    if (met(line)) suspend(AT_BLOCK, line);
}
/* The same of a warp. */
static inline void warp_barrier(int line)
{
    if (met(line)) suspend(AT_WARP, line);
}

/* Threads from … to−1 go on, if all that have not ended wait for that. */
static inline bool release(int from, int to, int state, const char *kernel)
{
    int waiting = 0, line = 0;
    bool all = true, apart = false;
    for (int i = from; i < to; i++) {
        if (w.thread[i].state == DONE) continue;
        if (w.thread[i].state != state) all = false;
        else if (waiting++ > 0 && w.thread[i].line != line) apart = true;
        else line = w.thread[i].line;
    }
    if (!all || waiting == 0) return false;
    if (apart) fail("threads wait in different lines", kernel);
    for (int i = from; i < to; i++)
        if (w.thread[i].state == state) w.thread[i].state = READY;
    return true;
}

/* A warp's threads until all of them wait for other warps, or have ended: so one warp is as far ahead of the
   others as barriers allow. False: none could. */
static inline bool run_warp(int from, const char *kernel)
{
    int n = from + 32 < w.n ? 32 : w.n - from;
    bool moved = false;
    do {
        int first = (int)(next() % (uint64_t)n), step = next() & 1 ? 1 : n - 1;
        for (int k = 0, i = first; k < n; k++, i = (i + step) % n)
            if (w.thread[from + i].state == READY) run(from + i), moved = true;
    } while (release(from, from + n, AT_WARP, kernel));
    return moved;
}

static inline void run_block(const char *kernel)
{
    memset(w.shared, 0xff, sizeof w.shared);
    for (int i = 0; i < w.n; i++) w.thread[i].state = READY, w.thread[i].n_copies = 0;
    for (int live = w.n; live > 0;) {
        int warps = (w.n + 31) / 32, first = (int)(next() % (uint64_t)warps),
            step = next() & 1 ? 1 : warps - 1;
        bool moved = false;
        for (int k = 0, i = first; k < warps; k++, i = (i + step) % warps)
            moved = run_warp(i * 32, kernel) || moved;
        moved = release(0, w.n, AT_BLOCK, kernel) || moved;
        live = 0;
        for (int i = 0; i < w.n; i++) live += w.thread[i].state != DONE;
        if (moved || live == 0) continue;
        fail("deadlock: some threads wait at a barrier that others never reach", kernel);
        for (int i = 0; i < w.n; i++) w.thread[i].started = w.thread[i].started && w.thread[i].state == DONE;
        return;
    }
}

static inline void open_memory(bool open)
{
    if (!w.guard || w.most == w.base) return;
    if (mprotect(w.base, (size_t)(w.most - w.base + 65535) / 65536 * 65536,
                 open ? PROT_READ | PROT_WRITE : PROT_NONE))
        perror("mprotect"), exit(1);
}

static inline void guard(bool on)
{
    open_memory(true);
    w.guard = on;
    open_memory(false);
}

/* The kernel as a closure. */
template <class F> void call(void *arg) { (*(F *)arg)(); }
template <class F> void launch(const char *kernel, dim3 grid, dim3 block, size_t bytes, F f)
{
    int64_t blocks = (int64_t)grid.x * grid.y * grid.z;
    w.n = (int)(block.x * block.y * block.z), w.grid = grid, w.block_size = block;
    w.call = call<F>, w.arg = &f;
    if (w.launches++ == w.fail_launch) w.last = 719; /* cudaErrorLaunchFailure */
    if (w.n < 1 || w.n > THREADS || bytes > SHARED || blocks < 1 || grid.y > (unsigned)w.side ||
        grid.z > (unsigned)w.side)
        w.last = 9;
    if (w.last) return;
    for (int i = 0; i < w.n; i++)
        w.thread[i].at =
            dim3((unsigned)i % block.x, (unsigned)i / block.x % block.y, (unsigned)i / (block.x * block.y));
    bool back = next() & 1;
    open_memory(true);
    for (int64_t k = 0; k < blocks; k++) {
        int64_t b = back ? blocks - 1 - k : k;
        w.block =
            dim3((unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y));
        run_block(kernel);
    }
    open_memory(false);
}

template <class... P, class... A>
void launch_with(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t bytes, A... args)
{
    launch(name, grid, block, bytes, [=]() { kernel(args...); });
}

/* ---- warps ---- */

/* All lanes hand over a value; where the warp's lie then. */
template <class T> const char *exchange(T value, int line)
{
    fiber *f = &w.thread[w.current];
    int turn = f->turn;
    static_assert(sizeof value <= SLOT, "a value of at most 64 bytes");
    memcpy(w.slot[turn][w.current], &value, sizeof value);
    f->turn = 1 - turn; /* the next one goes to the other slot: this is still read */
    suspend(AT_WARP, line);
    return w.slot[turn][w.current / 32 * 32];
}
template <class T> T shuffle(T value, int from, int line)
{
    T got;
    const char *warp = exchange(value, line);
    memcpy(&got, warp + (from & 31) * SLOT, sizeof got);
    return got;
}
static inline unsigned ballot(bool vote, int line)
{
    unsigned mask = 0;
    const char *warp = exchange((int)vote, line);
    for (int i = 0; i < 32 && w.current / 32 * 32 + i < w.n; i++)
        mask |= (unsigned)(warp[i * SLOT] != 0) << i;
    return mask;
}

template <class T> unsigned match(T value, int line)
{
    unsigned mask = 0;
    const char *warp = exchange(value, line);
    for (int i = 0; i < 32; i++) mask |= (unsigned)(memcmp(warp + i * SLOT, &value, sizeof value) == 0) << i;
    return mask;
}

/* ---- asynchronous copies and tensor cores ---- */

/* What a copy writes to is no number until it has been waited for; what is read, is read then. */
static inline void copy_async(void *to, const void *from, int size, int bytes)
{
    fiber *f = &w.thread[w.current];
    if (f->n_copies == COPIES) fail("more copies under way than the shim has room for", "a copy");
    if ((uintptr_t)to % (unsigned)size || (uintptr_t)from % (unsigned)size)
        fail("a copy that is not aligned", "a copy");
    if (f->n_copies == COPIES) return;
    f->copies[f->n_copies].to = (char *)to, f->copies[f->n_copies].from = (const char *)from;
    f->copies[f->n_copies].size = size, f->copies[f->n_copies++].bytes = bytes;
    memset(to, 0xff, (size_t)size);
}
static inline void copies_wait(int line)
{
    fiber *f = &w.thread[w.current];
    if (!met(line)) return;
    for (int i = 0; i < f->n_copies; i++) {
        const copy *c = &f->copies[i];
        memcpy(c->to, c->from, (size_t)c->bytes), memset(c->to + c->bytes, 0, (size_t)(c->size - c->bytes));
    }
    f->n_copies = 0;
}
static inline unsigned half_bits(float x)
{
    unsigned bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
/* ldmatrix.x4 (PTX ISA 9.7.14.5.15). */
static inline void matrices(unsigned *x, const uint16_t *row, bool turned, int line)
{
    int lane = w.current % 32;
    if ((uintptr_t)row % 16) fail("a matrix' row that is not aligned", "ldmatrix");
    const char *warp = exchange(row, line);
    for (int m = 0; m < 4; m++) {
        const uint16_t *at[8];
        for (int i = 0; i < 8; i++) memcpy(&at[i], warp + (8 * m + i) * SLOT, sizeof *at);
        unsigned low = turned ? at[lane % 4 * 2][lane / 4] : at[lane / 4][lane % 4 * 2];
        unsigned high = turned ? at[lane % 4 * 2 + 1][lane / 4] : at[lane / 4][lane % 4 * 2 + 1];
        x[m] = low | high << 16;
    }
}
static inline double half_of(unsigned word, int k)
{
    unsigned bits = k ? word & 0xffff0000u : word << 16;
    float f;
    return memcpy(&f, &bits, 4), (double)f;
}
/* mma.m16n8k16 of bf16 (PTX ISA 9.7.14.5.8); the sixteen products and c are added in double and rounded
   once. */
static inline void mma(float *c, const unsigned *a, unsigned first, unsigned second, int line)
{
    struct operands {
        unsigned a[4], b[2];
    } own = {{a[0], a[1], a[2], a[3]}, {first, second}}, x, y;
    int lane = w.current % 32;
    const char *warp = exchange(own, line);
    for (int i = 0; i < 4; i++) {
        int row = lane / 4, col = lane % 4 * 2 + i % 2; /* rows + 8: words 1 and 3 of A */
        double sum = (double)c[i];
        for (int k = 0; k < 16; k++) {
            memcpy(&x, warp + (row * 4 + k % 8 / 2) * SLOT, sizeof x);
            memcpy(&y, warp + (col * 4 + k % 8 / 2) * SLOT, sizeof y);
            sum += half_of(x.a[i / 2 + k / 8 * 2], k % 2) * half_of(y.b[k / 8], k % 2);
        }
        c[i] = (float)sum;
    }
}

} // namespace shim

#define pvti_copy_16(to, from, bytes) shim::copy_async(to, from, 16, bytes)
#define pvti_copies_wait() shim::copies_wait(__LINE__)
#define pvti_halves(low, high) (shim::half_bits(low) | shim::half_bits(high) << 16) /* cvt.rn.bf16x2.f32 */
#define pvti_matrices(x, row, turned) shim::matrices(x, row, turned, __LINE__)
#define pvti_mma(c, a, first, second) shim::mma(c, a, first, second, __LINE__)
#define __global__ static
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define threadIdx (shim::w.thread[shim::w.current].at)
#define blockIdx (shim::w.block)
#define blockDim (shim::w.block_size)
#define gridDim (shim::w.grid)
#define __syncthreads() shim::barrier(__LINE__)
#define __syncwarp() shim::warp_barrier(__LINE__)
#define __shfl_sync(mask, value, lane) shim::shuffle(value, lane, __LINE__)
#define __shfl_xor_sync(mask, value, bits) shim::shuffle(value, (int)(threadIdx.x & 31) ^ (bits), __LINE__)
#define __shfl_up_sync(mask, value, by)                                                      \
    shim::shuffle(value,                                                                     \
                  (int)(threadIdx.x & 31) < (int)(by) ? (int)(threadIdx.x & 31)              \
                                                      : (int)(threadIdx.x & 31) - (int)(by), \
                  __LINE__)
#define __match_any_sync(mask, value) shim::match(value, __LINE__)
#define __ballot_sync(mask, vote) shim::ballot(vote, __LINE__)
#define PVT_LAUNCH(kernel, grid, block, bytes, stream, ...) \
    ((void)(stream),                                        \
     shim::launch_with(#kernel, kernel, dim3(grid), dim3(block), (size_t)(bytes), __VA_ARGS__))
/* Static and dynamic shared memory are one buffer here, so a kernel has one or the other. */
#define PVT_SHARED(type, name)                                                                      \
    static_assert(sizeof(type) <= 48 << 10, "static shared memory");                                \
    type &name = *(type *)(void *)shim::w.shared
/* That of functions is behind the kernel's, and one for all of them. */
#define PVT_SHARED_APART(type, name)                                                                \
    static_assert(sizeof(type) <= shim::APART, "shared memory of a function");                      \
    type &name = *(type *)(void *)(shim::w.shared + shim::SHARED)
#define PVT_UNROLL
#define PVT_SHARED_DYNAMIC(type, name) type *name = (type *)(void *)shim::w.shared

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline float __uint_as_float(unsigned x) { float f; memcpy(&f, &x, 4); return f; }
static inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T atomicAdd(T *p, T x) { T old = *p; *p += x; return old; }
template <class T> static inline T atomicMin(T *p, T x) { T old = *p; *p = x < old ? x : old; return old; }

/* ---- the runtime ---- */

typedef int cudaError_t;
typedef void *cudaStream_t;
enum { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorNoDevice = 100 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaFuncAttributes {
    int ptxVersion;
};
struct cudaDeviceProp {
    char name[256];
};

static inline cudaError_t cudaGetLastError() { int e = shim::w.last; shim::w.last = 0; return e; }
static inline const char *cudaGetErrorString(cudaError_t e)
{
    return e == 2   ? "out of memory"
           : e == 9 ? "invalid configuration argument"
                    : "unspecified launch failure";
}
static inline cudaError_t cudaGetDeviceCount(int *n) { return *n = shim::w.devices, 0; }
static inline cudaError_t cudaSetDevice(int) { return 0; }
static inline cudaError_t cudaDeviceGetAttribute(int *value, int which, int)
{
    return *value = which == cudaDevAttrMultiProcessorCount ? shim::w.cores : 9, 0;
}
template <class F> static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, F *)
{
    return a->ptxVersion = shim::w.ptx, 0;
}
template <class F> static inline cudaError_t cudaFuncSetAttribute(F *, int, int bytes)
{
    return bytes > 99 << 10 ? 1 : 0;
}
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int n)
{
    snprintf(p->name, sizeof p->name, "a GPU of fibers");
    return n < shim::w.devices ? 0 : 101;
}
static inline cudaError_t cudaMemGetInfo(size_t *left, size_t *all)
{
    return *all = shim::ROOM, *left = shim::ROOM - (size_t)(shim::w.end - shim::w.base), 0;
}
static inline cudaError_t cudaStreamCreate(cudaStream_t *s) { return *s = &shim::w, 0; }
static inline cudaError_t cudaStreamDestroy(cudaStream_t) { return 0; }
static inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return 0; }

/* From low addresses to high, each with 256 bytes in front, and ones behind; freed, they are ones. What is
   freed at the end is used again. */
typedef struct shim_header {
    size_t bytes;
    char *before; /* the header in front of this one */
    bool freed;
} shim_header;
static inline cudaError_t cudaMalloc(void **out, size_t bytes)
{
    shim::world *w = &shim::w;
    size_t room = (bytes + 255) / 256 * 256 + 512;
    *out = NULL;
    if (w->mallocs++ == w->fail_malloc) return cudaErrorMemoryAllocation;
    if (!w->base)
        w->base = w->end = w->most = (char *)mmap(NULL, shim::ROOM, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (w->base == (char *)MAP_FAILED || w->end + room > w->base + shim::ROOM)
        return cudaErrorMemoryAllocation;
    shim::open_memory(true);
    shim_header *header = (shim_header *)(void *)w->end;
    header->bytes = bytes, header->before = w->last_header, header->freed = false;
    w->last_header = w->end;
    *out = w->end + 256;
    w->end += room;
    if (w->end > w->most) w->most = w->end;
    memset(*out, 0xff, room - 256);
    shim::open_memory(false);
    return cudaSuccess;
}
static inline cudaError_t cudaFree(void *p)
{
    shim::world *w = &shim::w;
    if (!p) return cudaSuccess;
    shim::open_memory(true);
    shim_header *header = (shim_header *)(void *)((char *)p - 256);
    for (size_t i = header->bytes; i < (header->bytes + 255) / 256 * 256 + 256; i++)
        if (((unsigned char *)p)[i] != 0xff) {
            shim::fail("writes behind an allocation", "some kernel");
            break;
        }
    memset(p, 0xff, header->bytes);
    header->freed = true;
    while (w->last_header && ((shim_header *)(void *)w->last_header)->freed) {
        w->end = w->last_header;
        w->last_header = ((shim_header *)(void *)w->last_header)->before;
    }
    shim::open_memory(false);
    return cudaSuccess;
}
static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, int, cudaStream_t)
{
    shim::open_memory(true), memcpy(to, from, bytes), shim::open_memory(false);
    return 0;
}
static inline cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t)
{
    shim::open_memory(true), memset(to, value, bytes), shim::open_memory(false);
    return 0;
}

#endif
