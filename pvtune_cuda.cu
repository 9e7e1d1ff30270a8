/*  pvtune_cuda.cu: the device table of pvtune.h for NVIDIA GPUs. Compiled with nvcc and linked beside the
    library (`make cuda`), it gives a context whose ops run on a GPU:

        const pvt_device *device;
        if (pvt_cuda_device(0, &device) == PVT_OK) desc.device = device;  then pvt_ctx_create(&desc, &ctx)

    Weights, activations, gradients, moments, buffers and codes stay there for a whole step. It needs the CUDA
    run time and nothing else; with -DPVT_CUBLAS products of plain numbers are cuBLAS's.

    PROMISES. The same calls give the same bits from run to run: every sum has a fixed order, and no
    floating-point number is added atomically. Against the processor: rounding only, stated op by op in
    tests/test_cuda.cpp. A product of one to four rows adds in another order than one of more, so a batch cut
    so small differs in rounding. One stream, one arena; no op of a step allocates. Errors stick (section
    device of pvtune.h).

    WHAT IS HERE. Every function of the table, for every representation of the header, and dense weights in
    F32, F16, BF16, Q4_0 … Q8_0, Q2_K … Q6_K and Q2_0; those in IQ and TQ blocks come over as F32. Codebooks
    are calibrated here, other formats fit on the host. Refused, with a sentence that sticks: heads of attention
    beyond 256, pvt_real = double; a step that changes more than 268 million groups of a weight, or sorts so
    many of one with codebooks (4,096 to each KiB of PVT_CUDA_ROOM), and weights of 2^32 groups. With
    compute_bf16 products and attention of 16 rows and more run on tensor cores (sm_80 and later), all else on
    plain multiply-adds. None of this has run on a GPU yet; bench/CUDA.md has what is known without one.

    WITHOUT A GPU this very file compiles as C++ with tests/cuda_shim.h, and `make test` runs it so.

    Contents: platform · arena · numbers · sums · rotation · weights · products · rows · attention · losses ·
    sort · gradients of values · optimizer · groups · search · fit · table. */

#include "pvtune.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tuple>
#include <utility>

// >>platform

/* Functions of kernels, of both sides, and kernels: these have 256 threads where nothing else is said. */
#define PVTI_DEVICE static __device__ inline
#define PVTI_BOTH static __host__ __device__ inline
#define PVTI_KERNEL __global__ void __launch_bounds__(PVTI_THREADS)

#ifdef __CUDACC__
#include <cuda_runtime.h>
#ifdef PVT_CUBLAS
#include <cublas_v2.h>
#endif
#define PVT_LAUNCH(kernel, grid, block, bytes, stream, ...) \
    kernel<<<grid, block, bytes, stream>>>(__VA_ARGS__)
#define PVT_SHARED(type, name) __shared__ type name
#define PVT_SHARED_APART(type, name) __shared__ type name /* of a function that kernels call */
#define PVT_UNROLL _Pragma("unroll") /* where an array is in registers only so, and nvcc would not do it */
#define PVT_SHARED_DYNAMIC(type, name)                                \
    extern __shared__ __align__(16) unsigned char pvti_dynamic[];     \
    type *name = (type *)(void *)pvti_dynamic

/*  What PTX has and C++ has not; tests/cuda_shim.h says the same in C++. Kernels that use it are never
    launched where the build has no code for sm_80 or later (pvti_prepare): there it only has to compile. */
#if defined __CUDA_ARCH__ && __CUDA_ARCH__ < 800
#define PVTI_PTX(...) __trap()
#else
#define PVTI_PTX(...) asm volatile(__VA_ARGS__)
#endif
/* 16 bytes from the GPU's memory to shared memory, zeros behind the first `bytes`: seen by this thread after
   pvti_copies_wait, by others after a barrier behind that. */
PVTI_DEVICE void pvti_copy_16(void *to, const void *from, int bytes)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    PVTI_PTX("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}
PVTI_DEVICE void pvti_copies_wait() { PVTI_PTX("cp.async.wait_all;" ::: "memory"); }
/* Two numbers rounded to bf16, to nearest even. */
PVTI_DEVICE unsigned pvti_halves(float low, float high)
{
    unsigned both = 0;
    PVTI_PTX("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
/* Four 8 × 8 matrices of bf16, whose rows of 16 bytes lanes 0 … 7, 8 … 15, … point to: lane l gets numbers
   2(l mod 4) and the next of row l/4 of each matrix; turned: of column l/4. */
PVTI_DEVICE void pvti_matrices(unsigned *x, const uint16_t *row, bool turned)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
#define PVTI_LDMATRIX(trans)                                                                \
    PVTI_PTX("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%4];"    \
             : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory")
    if (turned) PVTI_LDMATRIX(".trans");
    else PVTI_LDMATRIX("");
}
/* c += A·B of 16 × 16 and 16 × 8 numbers. Lane l has of A rows l/4 and l/4 + 8 at k = 2(l mod 4) and the
   next, then both at k + 8; of B column l/4 at the same k (first, second); of C rows l/4 and l/4 + 8 at
   columns 2(l mod 4), + 1. */
PVTI_DEVICE void pvti_mma(float *c, const unsigned *a, unsigned first, unsigned second)
{
    PVTI_PTX("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
             "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
             : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(first), "r"(second));
}
#else
#include "tests/cuda_shim.h"
#endif

static_assert(sizeof(pvt_real) == sizeof(float), "pvtune_cuda.cu needs PVTUNE_REAL to be float");

#ifndef PVT_CUDA_SLAB /* bytes that the arena takes from the GPU at a time; 0: each allocation alone */
#define PVT_CUDA_SLAB ((int64_t)256 << 20)
#endif
#ifndef PVT_CUDA_SIDE /* blocks in the second and the third direction of a grid, at most */
#define PVT_CUDA_SIDE ((int64_t)65535)
#endif
#ifndef PVT_CUDA_ROOM /* bytes of work space, taken when a context begins */
#define PVT_CUDA_ROOM ((int64_t)64 << 20)
#endif
enum { PVTI_THREADS = 256, PVTI_ALIGN = 256, PVTI_ORDINALS = 16 };

/* A piece of a slab. first: where a slab begins, which no two blocks across can merge. */
typedef struct pvti_piece {
    char *at;
    int64_t bytes;
    bool used, first;
} pvti_piece;

/* A context's device. */
typedef struct pvti_cuda {
    const pvt_device *table;
    int ordinal;
    cudaStream_t stream;
    bool streaming, bf16; /* bf16: products multiply operands rounded to it, */
    bool tensor;          /* on tensor cores */
    int cores;            /* multiprocessors */
#ifdef PVT_CUBLAS
    cublasHandle_t cublas;
#endif
    pvt_result failed;
    char why[256];
    pvti_piece *pieces;
    int64_t n_pieces, room_pieces, held;
    char *room;        /* PVT_CUDA_ROOM bytes */
    uint64_t *pairs[2]; /* to sort codes: [room_pairs] each */
    int64_t room_pairs;
    float *e8p, *iq2[3]; /* points of fixed grids: [256, 8]; [256, 8], [512, 8], [1024, 8] magnitudes */
} pvti_cuda;

static void pvti_fail_with(pvti_cuda *s, pvt_result result, const char *sentence)
{
    if (s->failed != PVT_OK) return;
    s->failed = result;
    snprintf(s->why, sizeof s->why, "%s", sentence);
}
static bool pvti_check(pvti_cuda *s, cudaError_t error, const char *what)
{
    char text[200];
    if (error == cudaSuccess) return s->failed == PVT_OK;
    snprintf(text, sizeof text, "%s: %s", what, cudaGetErrorString(error));
    pvti_fail_with(s, error == cudaErrorMemoryAllocation ? PVT_ERR_MEMORY : PVT_ERR_IO, text);
    return false;
}

/* One kernel, if nothing has failed and there is something to do; grid: how many blocks, or a dim3. */
#define PVTI_RUN(s, kernel, grid, threads, bytes, ...)                                                \
    do {                                                                                              \
        dim3 all = pvti_grid(grid);                                                                   \
        if ((s)->failed == PVT_OK && all.x && all.y && all.z) {                                       \
            PVT_LAUNCH(kernel, all, (unsigned)(threads), (size_t)(bytes), (s)->stream, __VA_ARGS__);  \
            pvti_check(s, cudaGetLastError(), #kernel);                                               \
        }                                                                                             \
    } while (0)
static dim3 pvti_grid(dim3 blocks) { return blocks; }
static dim3 pvti_grid(int64_t blocks) { return dim3((unsigned)(blocks > 0 ? blocks : 0)); }
/* With a thread, or a block, to each of n. */
#define PVTI_EACH(s, kernel, n, ...) \
    PVTI_RUN(s, kernel, pvti_ceil(n, PVTI_THREADS), PVTI_THREADS, 0, __VA_ARGS__)
#define PVTI_BLOCKS(s, kernel, n, ...) PVTI_RUN(s, kernel, n, PVTI_THREADS, 0, __VA_ARGS__)
/* The first line of an op. Contexts on several GPUs may share a thread, whose GPU the run time remembers. */
#define PVTI_STATE pvti_cuda *s = pvti_here(state)
/* An op that is one kernel with the same arguments, of which PVTI_ARG(k) is the k-th from the end. `how`:
   PVTI_EACH or PVTI_BLOCKS. A generic lambda, for which the table's slot says what the arguments are. */
#define PVTI_OP(op, how, kernel, n)                                  \
    static const auto pvti_op_##op = [](void *state, auto... args) { \
        PVTI_STATE;                                                  \
        how(s, kernel, n, args...);                                  \
    };
#define PVTI_ARG(k) std::get<sizeof...(args) - (k)>(std::tie(args...))
static pvti_cuda *pvti_here(void *state)
{
    pvti_cuda *s = (pvti_cuda *)state;
    if (s->failed == PVT_OK) pvti_check(s, cudaSetDevice(s->ordinal), "choosing the GPU");
    return s;
}

PVTI_BOTH int64_t pvti_ceil(int64_t n, int64_t by) { return (n + by - 1) / by; }
PVTI_BOTH int64_t pvti_least(int64_t a, int64_t b) { return a < b ? a : b; }
PVTI_BOTH int64_t pvti_most(int64_t a, int64_t b) { return a > b ? a : b; }

/* The thread's number in a grid of blocks in a row. */
#define PVTI_INDEX ((int64_t)blockIdx.x * blockDim.x + threadIdx.x)

// >>arena
/*  Pieces in the order of slabs, and within a slab of addresses; the first free one that is large enough
    serves. A slab that is wholly free goes back. All happens in one stream, so a piece that is freed may be
    handed out again while kernels that read it still wait in line: what writes it waits behind them. */

static bool pvti_piece_insert(pvti_cuda *s, int64_t at, pvti_piece piece)
{
    if (s->n_pieces == s->room_pieces) {
        int64_t room = 2 * s->room_pieces + 64;
        pvti_piece *more = (pvti_piece *)realloc(s->pieces, (size_t)room * sizeof *more);
        if (!more) return false;
        s->pieces = more, s->room_pieces = room;
    }
    memmove(s->pieces + at + 1, s->pieces + at, (size_t)(s->n_pieces++ - at) * sizeof *s->pieces);
    s->pieces[at] = piece;
    return true;
}
static void pvti_piece_remove(pvti_cuda *s, int64_t at)
{
    memmove(s->pieces + at, s->pieces + at + 1, (size_t)(--s->n_pieces - at) * sizeof *s->pieces);
}

/* A slab for `bytes`, as the last piece; false: there is none. */
static bool pvti_slab(pvti_cuda *s, int64_t bytes)
{
    void *memory = NULL;
    int64_t most = pvti_most(bytes, PVT_CUDA_SLAB);
    while (cudaMalloc(&memory, (size_t)most) != cudaSuccess) {
        cudaGetLastError(); /* no memory is no error that sticks */
        if (most == bytes) return false;
        most = bytes;
    }
    if (pvti_piece_insert(s, s->n_pieces, {(char *)memory, most, false, true})) return true;
    cudaFree(memory);
    return false;
}
static void pvti_op_zero(void *state, void *memory, int64_t bytes)
{
    PVTI_STATE;
    if (s->failed != PVT_OK || bytes <= 0) return;
    pvti_check(s, cudaMemsetAsync(memory, 0, (size_t)bytes, s->stream), "zeroing memory");
}

static void *pvti_take(pvti_cuda *s, int64_t bytes)
{
    int64_t i = 0, need = pvti_most(1, pvti_ceil(bytes, PVTI_ALIGN)) * PVTI_ALIGN;
    if (s->failed != PVT_OK || bytes > INT64_MAX / 2) return NULL;
    while (i < s->n_pieces && (s->pieces[i].used || s->pieces[i].bytes < need)) i++;
    if (i == s->n_pieces && !pvti_slab(s, need)) return NULL;
    if (s->pieces[i].bytes > need) {
        pvti_piece rest = {s->pieces[i].at + need, s->pieces[i].bytes - need, false, false};
        if (!pvti_piece_insert(s, i + 1, rest)) return NULL;
        s->pieces[i].bytes = need;
    }
    s->pieces[i].used = true;
    s->held += need;
    pvti_op_zero(s, s->pieces[i].at, bytes);
    return s->failed == PVT_OK ? s->pieces[i].at : NULL;
}

static void pvti_give(pvti_cuda *s, void *memory)
{
    int64_t i = 0;
    while (i < s->n_pieces && s->pieces[i].at != (char *)memory) i++;
    if (!memory || i == s->n_pieces || !s->pieces[i].used) return;
    s->pieces[i].used = false;
    s->held -= s->pieces[i].bytes;
    if (i + 1 < s->n_pieces && !s->pieces[i + 1].used && !s->pieces[i + 1].first) {
        s->pieces[i].bytes += s->pieces[i + 1].bytes;
        pvti_piece_remove(s, i + 1);
    }
    if (!s->pieces[i].first && !s->pieces[i - 1].used) {
        s->pieces[i - 1].bytes += s->pieces[i].bytes;
        pvti_piece_remove(s, i--);
    }
    if (s->pieces[i].first && (i + 1 == s->n_pieces || s->pieces[i + 1].first)) {
        cudaFree(s->pieces[i].at); /* waits for what was asked for */
        pvti_piece_remove(s, i);
    }
}

static void *pvti_op_alloc(void *state, int64_t bytes) { return pvti_take(pvti_here(state), bytes); }
static void pvti_op_free(void *state, void *memory) { pvti_give(pvti_here(state), memory); }
static int64_t pvti_op_held(void *state) { return ((pvti_cuda *)state)->held; }

static void pvti_op_synchronise(void *state)
{
    PVTI_STATE;
    if (s->failed == PVT_OK) pvti_check(s, cudaStreamSynchronize(s->stream), "waiting for the GPU");
}
template <cudaMemcpyKind KIND>
static void pvti_op_copies(void *state, void *to, const void *from, int64_t bytes)
{
    PVTI_STATE;
    if (s->failed != PVT_OK || bytes <= 0) return;
    pvti_check(s, cudaMemcpyAsync(to, from, (size_t)bytes, KIND, s->stream), "a copy of memory");
    /* host memory may be pinned, and then a copy is under way when the call returns: so it is waited for */
    if (KIND != cudaMemcpyDeviceToDevice) pvti_op_synchronise(s);
}
static const auto pvti_op_copy_in = pvti_op_copies<cudaMemcpyHostToDevice>;
static const auto pvti_op_copy_out = pvti_op_copies<cudaMemcpyDeviceToHost>;
static const auto pvti_op_copy = pvti_op_copies<cudaMemcpyDeviceToDevice>;

// >>numbers
/*  The small formats, as pvtune.h's section dtypes has them, bit by bit, and its random numbers. */

PVTI_DEVICE float pvti_from_f16(unsigned half)
{
    unsigned sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
    if (rest < 0x400u) return __uint_as_float(sign | __float_as_uint((float)(int)rest * 0x1p-24f));
    if (rest < 0x7c00u) return __uint_as_float(sign | ((rest << 13) + (112u << 23)));
    return __uint_as_float(sign | (rest << 13) | 0x7f800000u);
}
/* To nearest, ties to even. */
PVTI_DEVICE unsigned pvti_to_f16(float value)
{
    unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return sign | 0x7e00u;
    if (rest >= 0x477ff000u) return sign | 0x7c00u;
    if (rest < 0x38800000u) return sign | (__float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000u);
    return sign | ((rest + 0xfffu + (rest >> 13 & 1u) - (112u << 23)) >> 13);
}
PVTI_DEVICE float pvti_from_bf16(unsigned half) { return __uint_as_float(half << 16); }
PVTI_DEVICE unsigned pvti_to_bf16(float value)
{
    unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bits >> 16 | 0x40u;
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
/* A float's bits in an order that agrees with <, turned round: the largest is the smallest. */
PVTI_DEVICE unsigned pvti_turned(float key)
{
    unsigned bits = __float_as_uint(key);
    return bits >> 31 ? bits : ~(bits | 0x80000000u);
}
PVTI_DEVICE float pvti_rounded(float x, bool bf16) { return bf16 ? pvti_from_bf16(pvti_to_bf16(x)) : x; }

PVTI_BOTH uint64_t pvti_mix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
PVTI_BOTH double pvti_unit_of(uint64_t word) { return (double)(word >> 11) * (1.0 / 9007199254740992.0); }
/* Purposes of the header's random streams; tests/test_cuda.cpp sees that they are still these. */
enum { PVTI_FOR_CODEBOOK_ORDER = 2, PVTI_FOR_ROUNDING = 9 };
PVTI_BOTH uint64_t pvti_random(uint64_t seed, int purpose, uint64_t step, uint64_t index)
{
    return pvti_mix(pvti_mix(pvti_mix(pvti_mix(seed) ^ (uint64_t)purpose) ^ step) ^ index);
}

// >>sums
/*  Sums and maxima over a block's threads, in one fixed order: in a warp by shuffles, then by warps. */

typedef double pvti_sums[32];
typedef uint64_t pvti_words[32];

PVTI_DEVICE double pvti_warp_sum(double x)
{
    for (int bits = 16; bits > 0; bits /= 2) x += __shfl_xor_sync(0xffffffffu, x, bits);
    return x;
}
/* All threads get the sum of what each has. */
PVTI_DEVICE double pvti_block_sum(double x)
{
    PVT_SHARED_APART(pvti_sums, room);
    double sum = 0;
    x = pvti_warp_sum(x);
    __syncthreads(); /* the room may still be read */
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    for (unsigned i = 0; i < blockDim.x / 32; i++) sum += room[i];
    return sum;
}
/* Σ term(i) over 0 ≤ i < n, threads taking turns. */
template <class F> PVTI_DEVICE double pvti_block_total(int64_t n, F term)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += (double)term(i);
    return pvti_block_sum(sum);
}
/* The largest that a thread has; once in a kernel, for nothing here waits until the room was read. */
PVTI_DEVICE float pvti_block_max(float x)
{
    PVT_SHARED_APART(pvti_sums, room);
    for (int bits = 16; bits > 0; bits /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, bits));
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = (double)x;
    __syncthreads();
    float most = (float)room[0];
    for (unsigned i = 1; i < blockDim.x / 32; i++) most = fmaxf(most, (float)room[i]);
    return most;
}
/* The sum of what threads before this one have, and that of all. T: 8 bytes; its order is fixed, too. */
template <class T> PVTI_DEVICE T pvti_block_before(T x, T *total)
{
    PVT_SHARED_APART(pvti_words, room);
    T *part = (T *)(void *)room, sum = x, before = 0;
    unsigned lane = threadIdx.x % 32;
    for (unsigned by = 1; by < 32; by *= 2) {
        T other = __shfl_up_sync(0xffffffffu, sum, by);
        if (lane >= by) sum += other;
    }
    x = __shfl_up_sync(0xffffffffu, sum, 1);
    __syncthreads(); /* the room may still be read */
    if (lane == 31) part[threadIdx.x / 32] = sum;
    __syncthreads();
    *total = 0;
    for (unsigned i = 0; i < blockDim.x / 32; i++) {
        if (i == threadIdx.x / 32) before = *total;
        *total += part[i];
    }
    return lane > 0 ? before + x : before;
}

// >>rotation
/*  R = H·D of blocks of m numbers (see pvt_rotate): the factors, then log2 m stages of butterflies at
    distances 1, 2, … m/2; Rᵀ has the stages first. A thread block holds up to 8,192 numbers in shared memory;
    stages beyond that distance are transforms of their own, of numbers that lie 8,192 apart. Number j of lane
    l lies at base + j·step + l·apart: along a row step is 1 and lanes are further blocks, across rows step is
    a row and lanes are columns.
    Limit: the bytes of x twice; 4·log2 m + 4 shared accesses of 4 bytes for 2·log2 m operations a pair. */

/* The factor of number i in a rotation of blocks of m: its sign over √m. */
PVTI_DEVICE float pvti_rotation_factor(uint64_t key, int64_t i, float scale)
{
    return pvti_mix(key ^ (uint64_t)(i / 64)) >> i % 64 & 1 ? -scale : scale;
}

enum { PVTI_ROTATED = 8192 };
typedef struct pvti_turn {
    float *out;
    const float *x;
    int64_t step, apart, lanes, bases; /* lanes: of one base; base b is b·m·lanes */
    int64_t m, whole;                  /* of these stages; of the transform */
    int64_t C, unit;                   /* a row, and how far apart its numbers lie */
    uint64_t key;
    int at_once;                       /* lanes of a thread block */
    bool before, behind;               /* when factors come, if at all */
} pvti_turn;

PVTI_KERNEL pvti_k_rotate(pvti_turn t)
{
    PVT_SHARED_DYNAMIC(float, room);
    int64_t groups = pvti_ceil(t.lanes, t.at_once), base = blockIdx.x / groups * t.m * t.lanes;
    int64_t l0 = blockIdx.x % groups * t.at_once;
    int m = (int)t.m, lanes = (int)pvti_least(t.at_once, t.lanes - l0), n = lanes * m;
    float scale = 1 / sqrtf((float)t.whole);
    auto each = [&](bool out) { /* from x to the room, or from there to out */
        for (int k = (int)threadIdx.x; k < n; k += (int)blockDim.x) {
            int j = t.step == 1 ? k % m : k / lanes, l = t.step == 1 ? k / m : k % lanes;
            int64_t at = base + j * t.step + (l0 + l) * t.apart;
            int64_t number = (t.unit > 1 ? at / t.unit : at) % t.C;
            float f = (out ? t.behind : t.before) ? pvti_rotation_factor(t.key, number, scale) : 1;
            if (out) t.out[at] = room[l * m + j] * f;
            else room[l * m + j] = t.x[at] * f;
        }
        __syncthreads();
    };
    each(false);
    for (int h = 1; h < m; h *= 2) {
        for (int k = (int)threadIdx.x; k < n / 2; k += (int)blockDim.x) { /* pairs run on through all lanes */
            int low = k / h * 2 * h + k % h;
            float a = room[low], b = room[low + h];
            room[low] = a + b, room[low + h] = a - b;
        }
        __syncthreads();
    }
    each(true);
}

/* n rows of C numbers, or with across the n columns of C rows. */
static void pvti_rotate(pvti_cuda *s, float *out, const float *x, int64_t n, int64_t C, int side,
                        bool inverse, bool across = false)
{
    pvti_turn t = {};
    if (n < 1 || C < 1) return;
    t.out = out, t.x = x, t.C = C, t.unit = across ? n : 1;
    t.whole = C & -C, t.key = pvti_mix((uint64_t)side);
    int64_t done = 1;
    do {
        t.m = pvti_least(t.whole / done, PVTI_ROTATED);
        t.before = !inverse && done == 1, t.behind = inverse && done * t.m == t.whole;
        t.step = done * t.unit, t.apart = t.step > 1 ? 1 : t.m, t.lanes = t.step > 1 ? t.step : n * C / t.m;
        t.bases = n * C / (t.m * t.lanes);
        t.at_once = (int)pvti_least(t.lanes, pvti_most(1, pvti_least(32, PVTI_ROTATED / t.m)));
        PVTI_RUN(s, pvti_k_rotate, t.bases * pvti_ceil(t.lanes, t.at_once), PVTI_THREADS,
                 t.m * t.at_once * (int64_t)sizeof(float), t);
        done *= t.m, t.x = out;
    } while (done < t.whole);
}
static void pvti_op_rotate(void *state, float *out, const float *x, int64_t n, int64_t C, pvt_side side,
                           bool inverse)
{
    pvti_rotate(pvti_here(state), out, x, n, C, side, inverse);
}
static void pvti_op_rotate_columns(void *state, float *x, int64_t C, int64_t n, pvt_side side, bool inverse)
{
    pvti_rotate(pvti_here(state), x, x, n, C, side, inverse, true);
}

// >>weights
/*  A weight as kernels see it: W[row][col] = unit · entry, where `unit` is what a block of inputs shares (a
    scale, for iq2 times the factor of the group) and `entry` what the code stands for. Kernels below know no
    more of a representation; the arithmetic is pvtune.h's, so that numbers agree to the bit. */

enum { PVTI_DENSE, PVTI_AQLM, PVTI_INT, PVTI_SIGNED, PVTI_NF4, PVTI_HIGGS, PVTI_E8P, PVTI_IQ2 };

typedef struct pvti_view {
    int kind, dtype;      /* dtype: of a dense one */
    int M, K, ig, wide;   /* ig: the format's; wide: codes of 16 bits */
    int gog, gig;         /* the tile of weights that one group covers */
    int bits, kept;       /* iq2: of a point's number, 8, 9 or 10; bits that a search leaves, and points ignore */
    bool whole;           /* eight neighbours from a multiple of 8 on share a scale, and are read at once */
    float origin;         /* of signed integers */
    int64_t O, I, GI, groups;
    int64_t block, blocks; /* inputs that share a scale, and scales in a row of groups */
    void *codes;           /* dense: the numbers */
    const float *points;   /* aqlm: codebooks [M, K, gog, gig]; higgs: grid; e8p, iq2: magnitudes [K, 8] */
    float *scales;
    const float *extra;    /* int: zeros; iq2 of nine bits: pairs of factors */
} pvti_view;

/* Rows and columns are below 2³¹: divided in 32 bits, in a tenth of the time and without a call. */
PVTI_DEVICE int64_t pvti_over(int64_t a, int64_t b) { return (unsigned)a / (unsigned)b; }
PVTI_DEVICE int64_t pvti_rest(int64_t a, int64_t b) { return (unsigned)a % (unsigned)b; }

PVTI_DEVICE int pvti_code(const pvti_view &w, int64_t i)
{
    return w.wide ? ((const uint16_t *)w.codes)[i] : ((const uint8_t *)w.codes)[i];
}

PVTI_BOTH bool pvti_is_numbers(const pvti_view &w) { return w.kind == PVTI_DENSE && w.dtype == PVT_F32; }
static pvti_view pvti_plain(const float *numbers, int64_t I)
{
    pvti_view w = {};
    w.kind = PVTI_DENSE, w.dtype = PVT_F32, w.codes = (void *)(uintptr_t)numbers, w.I = I;
    return w;
}
/* Entry k of codebook m, [gog, gig]. */
PVTI_DEVICE const float *pvti_book(const pvti_view &w, int m, int k)
{
    return w.points + (m * (int64_t)w.K + k) * (w.gog * w.gig);
}

/* ---- GGUF blocks, element by element; the drawings are pvtune.h's, section block types ---- */

PVTI_DEVICE float pvti_half(const uint8_t *b) { return pvti_from_f16(b[0] | (unsigned)b[1] << 8); }
/* Number k of packed ones: a byte holds some that are `run` apart, the first in its lowest bits. */
PVTI_DEVICE int pvti_bits(const uint8_t *b, int k, int bits, int run)
{
    int per = 8 / bits;
    return b[k / (run * per) * run + k % run] >> k / run % per * bits & ((1 << bits) - 1);
}
/* Q4_K and Q5_K: d·scale·code − dmin·min, scale and min of 32 elements in six bits, packed. */
PVTI_DEVICE float pvti_block_q45_k(const uint8_t *b, int s, int code)
{
    const uint8_t *p = b + 4;
    int scale = s < 4 ? p[s] & 63 : (p[s + 4] & 15) | p[s - 4] >> 6 << 4;
    int min = s < 4 ? p[s + 4] & 63 : p[s + 4] >> 4 | p[s] >> 6 << 4;
    return pvti_half(b) * (float)scale * (float)code - pvti_half(b + 2) * (float)min;
}

/* Elements and bytes of a block; 0: not decoded here. */
PVTI_BOTH int pvti_block_bytes(int dtype, int *elements)
{
    *elements = dtype >= PVT_Q2_K && dtype <= PVT_Q6_K ? 256 : dtype == PVT_Q2_0 ? 64 : 32;
    switch (dtype) {
    case PVT_Q4_0: case PVT_Q2_0: return 18;
    case PVT_Q4_1: return 20;
    case PVT_Q5_0: return 22;
    case PVT_Q5_1: return 24;
    case PVT_Q8_0: return 34;
    case PVT_Q2_K: return 84;
    case PVT_Q3_K: return 110;
    case PVT_Q4_K: return 144;
    case PVT_Q5_K: return 176;
    case PVT_Q6_K: return 210;
    default: *elements = 1; return dtype == PVT_F32 ? 4 : dtype == PVT_F16 || dtype == PVT_BF16 ? 2 : 0;
    }
}
PVTI_DEVICE float pvti_dense(const pvti_view &w, int64_t row, int64_t col)
{
    int n, bytes = pvti_block_bytes(w.dtype, &n), k = (int)pvti_rest(col, n), s = k / 16;
    const uint8_t *b = (const uint8_t *)w.codes + (row * pvti_over(w.I, n) + pvti_over(col, n)) * bytes;
    switch (w.dtype) {
    case PVT_F32: return *(const float *)(const void *)b;
    case PVT_F16: return pvti_from_f16(*(const uint16_t *)(const void *)b);
    case PVT_BF16: return pvti_from_bf16(*(const uint16_t *)(const void *)b);
    case PVT_Q4_0: return pvti_half(b) * (float)(pvti_bits(b + 2, k, 4, 16) - 8);
    case PVT_Q5_0:
        return pvti_half(b) * (float)(pvti_bits(b + 6, k, 4, 16) + pvti_bits(b + 2, k, 1, 1) * 16 - 16);
    case PVT_Q4_1: return pvti_half(b) * (float)pvti_bits(b + 4, k, 4, 16) + pvti_half(b + 2);
    case PVT_Q5_1:
        k = pvti_bits(b + 8, k, 4, 16) + pvti_bits(b + 4, k, 1, 1) * 16;
        return pvti_half(b) * (float)k + pvti_half(b + 2);
    case PVT_Q8_0: return pvti_half(b) * (float)(int8_t)b[2 + k];
    case PVT_Q2_K:
        k = pvti_bits(b + 16, k, 2, 32);
        return pvti_half(b + 80) * (float)(b[s] & 15) * (float)k - pvti_half(b + 82) * (float)(b[s] >> 4);
    case PVT_Q3_K:
        k = pvti_bits(b + 32, k, 2, 32) + pvti_bits(b, k, 1, 32) * 4 - 4;
        s = pvti_bits(b + 96, s, 4, 8) + pvti_bits(b + 104, s, 2, 4) * 16 - 32;
        return pvti_half(b + 108) * (float)s * (float)k;
    case PVT_Q4_K: return pvti_block_q45_k(b, k / 32, pvti_bits(b + 16, k, 4, 32));
    case PVT_Q5_K:
        return pvti_block_q45_k(b, k / 32, pvti_bits(b + 48, k, 4, 32) + pvti_bits(b + 16, k, 1, 32) * 16);
    case PVT_Q6_K:
        k = pvti_bits(b, k, 4, 64) + pvti_bits(b + 128, k, 2, 32) * 16 - 32;
        return pvti_half(b + 208) * (float)(int8_t)b[192 + s] * (float)k;
    default: return pvti_half(b) * (float)(pvti_bits(b + 2, k, 2, 1) - 1); /* Q2_0 */
    }
}

/* ---- representations with codes ---- */

/* QLoRA, arXiv 2305.14314, appendix E. */
static __device__ const float pvti_nf4_levels[16] = {
    -1.0f,                -0.6961928009986877f,  -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f,  0.16093020141124725f,  0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f,  0.5626170039176941f,   0.7229568362236023f,  1.0f};
PVTI_DEVICE float pvti_nf4_level(int code) { return pvti_nf4_levels[code & 15]; }
/* The code of a group of a vector grid; iq2 of ten bits has two, the lower half first, read as one number. */
PVTI_DEVICE int pvti_point_code(const pvti_view &w, int64_t group)
{
    if (w.M == 1) return pvti_code(w, group);
    unsigned both = ((const uint32_t *)w.codes)[group];
    return (int)((both & 1023) | both >> 16 << 10);
}

/* A point of 8 numbers that a code stands for: magnitudes a, signs (bit d of number d, 1: minus), what is
   added. e8p: pattern · 256 + seven signs · 2 + shift, number 0 the highest; iq2: seven signs above the
   point's number. The eighth sign makes the parity; iq2 of ten bits has all eight. */
typedef struct pvti_signed {
    const float *a;
    unsigned minus;
    float shift;
} pvti_signed;
PVTI_DEVICE pvti_signed pvti_signed_of(const pvti_view &w, int code)
{
    bool e8p = w.kind == PVTI_E8P;
    int total = 0;
    unsigned signs = (unsigned)code >> (e8p ? 1 : w.bits) & (w.M > 1 ? 255u : 127u);
    pvti_signed p = {w.points + (e8p ? code >> 8 : code & ((1 << w.bits) - 1)) * 8, 0, 0};
    p.minus = signs |= w.M > 1 ? 0 : (unsigned)(__popc(signs) & 1) << 7;
    if (!e8p) return p;
    for (int i = 0; i < 8; i++) total += (int)(p.a[i] + p.a[i]); /* odd patterns: 2 mod 4 */
    signs ^= (unsigned)(total / 2 & 1) << 7;
    for (int i = 0; i < 8; i++) p.minus = p.minus >> 1 | (signs >> (7 - i) & 1) << 7;
    p.shift = code & 1 ? 0.25f : -0.25f;
    return p;
}
PVTI_DEVICE float pvti_signed_at(const pvti_signed &p, int d)
{
    return (p.minus >> d & 1 ? -p.a[d] : p.a[d]) + p.shift;
}
/* (s + ½)/4 of a group. s stands in bits of the codes that share it, eight bytes, or in an array. */
PVTI_DEVICE float pvti_iq2_factor(const pvti_view &w, int64_t group)
{
    unsigned t;
    if (w.bits == 9) {
        float pair = w.extra[group / 4];
        t = (pair >= 0 && pair < 256 ? (unsigned)pair : 0) >> group / 2 % 2 * 4 & 15;
    } else {
        const uint2 codes = ((const uint2 *)w.codes)[w.bits == 10 ? group / 2 : group / 4];
        if (w.bits == 10) t = (codes.x >> 24 & 3) | (codes.y >> 24 & 3) << 2;
        else t = (codes.x >> 15 & 1) | codes.x >> 31 << 1 | (codes.y >> 15 & 1) << 2 | codes.y >> 31 << 3;
    }
    return ((float)t + 0.5f) * 0.25f;
}
/* Number d of the point of a vector grid's code. */
PVTI_DEVICE float pvti_point(const pvti_view &w, int code, int d)
{
    if (w.kind == PVTI_HIGGS) return w.points[code * w.gig + d];
    return pvti_signed_at(pvti_signed_of(w, code), d);
}
PVTI_DEVICE int64_t pvti_scale_index(const pvti_view &w, int64_t row, int64_t col)
{
    return pvti_over(row, w.gog) * w.blocks + pvti_over(col, w.block);
}
PVTI_DEVICE float pvti_factor(const pvti_view &w, int64_t row, int64_t col)
{
    return w.kind == PVTI_IQ2 ? pvti_iq2_factor(w, row * w.GI + col / 8) : 1;
}
PVTI_DEVICE float pvti_unit(const pvti_view &w, int64_t row, int64_t col)
{
    return w.scales[pvti_scale_index(w, row, col)] * pvti_factor(w, row, col);
}
PVTI_DEVICE float pvti_entry(const pvti_view &w, int64_t row, int64_t col)
{
    int64_t at = row * w.I + col;
    switch (w.kind) {
    case PVTI_AQLM: {
        int64_t group = pvti_over(row, w.gog) * w.GI + pvti_over(col, w.gig);
        int64_t inside = pvti_rest(row, w.gog) * w.gig + pvti_rest(col, w.gig);
        float sum = 0;
        for (int m = 0; m < w.M; m++) {
            float c = pvti_book(w, m, pvti_code(w, group * w.M + m))[inside];
            sum = m ? sum + c : c;
        }
        return sum;
    }
    case PVTI_INT: return (float)pvti_code(w, at) - w.extra[pvti_scale_index(w, row, col)];
    case PVTI_SIGNED: return (float)pvti_code(w, at) - w.origin;
    case PVTI_NF4: return pvti_nf4_level(pvti_code(w, at));
    default: at = row * w.GI + pvti_over(col, w.gig); /* a vector grid's */
    }
    return pvti_point(w, pvti_point_code(w, at), (int)pvti_rest(col, w.gig));
}
/* One weight of Ŵ. */
PVTI_DEVICE float pvti_number(const pvti_view &w, int64_t row, int64_t col)
{
    return w.kind == PVTI_DENSE ? pvti_dense(w, row, col) : pvti_unit(w, row, col) * pvti_entry(w, row, col);
}
/* Four numbers at a multiple of 16 bytes; n ≤ 8 anywhere, the rest zeros. */
PVTI_DEVICE float4 pvti_four(const float *from) { return *(const float4 *)(const void *)from; }
PVTI_DEVICE void pvti_eight(const float *from, int n, float *out)
{
    if (n == 8 && ((uintptr_t)from & 15) == 0) {
        float4 low = pvti_four(from), high = pvti_four(from + 4);
        out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
        out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
    } else {
        for (int j = 0; j < 8; j++) out[j] = j < n ? from[j] : 0;
    }
}
/* Entries of eight neighbours of a `whole` weight, decoded in registers, codes read once. */
PVTI_DEVICE void pvti_entries(const pvti_view &w, int64_t row, int64_t col, float *out)
{
    int64_t group = row * w.GI + col / 8;
    if (w.kind == PVTI_AQLM) {
        for (int m = 0; m < w.M; m++) {
            float e[8];
            pvti_eight(pvti_book(w, m, pvti_code(w, group * w.M + m)), 8, e);
            for (int j = 0; j < 8; j++) out[j] = m ? out[j] + e[j] : e[j];
        }
    } else if (w.gig == 8) {
        pvti_signed point = pvti_signed_of(w, pvti_point_code(w, group));
        for (int j = 0; j < 8; j++) out[j] = pvti_signed_at(point, j);
    } else {
        uint64_t codes = *(const uint64_t *)(const void *)((const uint8_t *)w.codes + row * w.I + col);
        float zero = w.kind == PVTI_INT ? w.extra[pvti_scale_index(w, row, col)] : w.origin;
        for (int j = 0; j < 8; j++) {
            int code = (int)(codes >> 8 * j & 255);
            out[j] = w.kind == PVTI_NF4 ? pvti_nf4_level(code) : (float)code - zero;
        }
    }
}
/* n ≤ 8 neighbours of a row from col on, a multiple of 8; the rest are zeros. */
PVTI_DEVICE void pvti_run(const pvti_view &w, int64_t row, int64_t col, int n, float *out)
{
    if (w.whole) {
        float unit = pvti_unit(w, row, col);
        pvti_entries(w, row, col, out);
        for (int j = 0; j < 8; j++) out[j] *= unit;
    } else if (pvti_is_numbers(w)) {
        pvti_eight((const float *)w.codes + row * w.I + col, n, out);
    } else {
        for (int j = 0; j < 8; j++) {
            float number = j < n ? pvti_number(w, row, col + j) : 0;
            for (int i = 0; i < 8; i++) out[i] = i == j ? number : j ? out[i] : 0; /* in registers */
        }
    }
}
/* ---- from the host's weight ---- */

static void pvti_view_iq2(pvti_cuda *s, pvti_view *w, int bits, int halves, int kept)
{
    w->kind = PVTI_IQ2, w->gig = 8, w->block = 256, w->bits = bits, w->M = halves, w->kept = kept;
    w->points = s->iq2[bits - 8];
}
static bool pvti_view_codes(pvti_cuda *s, const pvt_weight *weight, pvti_view *w)
{
    const pvt_format *f = &weight->format;
    w->wide = f->bits > 8, w->ig = f->in_group, w->M = 1;
    w->block = f->in_group, w->extra = (const float *)weight->array[2];
    switch (f->kind) {
    case PVT_FORMAT_AQLM:
        w->kind = PVTI_AQLM, w->M = f->codebooks, w->gog = f->out_group, w->gig = f->in_group;
        w->block = w->I, w->points = (const float *)weight->array[1], w->scales = (float *)weight->array[2];
        break;
    case PVT_FORMAT_INT: w->kind = PVTI_INT; break;
    case PVT_FORMAT_INT_SYMMETRIC: w->kind = PVTI_SIGNED, w->origin = (float)(1 << (f->bits - 1)); break;
    case PVT_FORMAT_Q2_0: w->kind = PVTI_SIGNED, w->origin = 1; break;
    case PVT_FORMAT_NF4: w->kind = PVTI_NF4; break;
    case PVT_FORMAT_HIGGS:
        w->kind = PVTI_HIGGS, w->gig = f->in_group, w->block = 1024;
        w->points = (const float *)weight->array[2];
        break;
    case PVT_FORMAT_E8P: w->kind = PVTI_E8P, w->gig = 8, w->block = w->I, w->points = s->e8p; break;
    case PVT_FORMAT_IQ2_XXS: pvti_view_iq2(s, w, 8, 1, 0x8000); break;
    case PVT_FORMAT_IQ2_XS: pvti_view_iq2(s, w, 9, 1, 0); break;
    case PVT_FORMAT_IQ2_S: pvti_view_iq2(s, w, 10, 2, 3 << 18); break;
    default: return false;
    }
    w->K = f->entries > 0 ? f->entries : 1 << f->bits;
    w->whole = w->gog == 1 && w->I % 8 == 0 && w->block % 8 == 0 && ((uintptr_t)w->codes & 7) == 0 &&
               (w->points ? w->gig == 8 && ((uintptr_t)w->points & 15) == 0 : !w->wide);
    return true;
}
/* False, and an error that sticks: a representation that this file does not know. */
static bool pvti_see(pvti_cuda *s, const pvt_weight *weight, pvti_view *w)
{
    char text[200];
    int n;
    *w = {};
    w->O = weight->O, w->I = weight->I, w->codes = weight->array[0], w->scales = (float *)weight->array[1];
    w->gog = w->gig = 1;
    if (weight->format.kind == PVT_FORMAT_DENSE) {
        w->kind = PVTI_DENSE, w->dtype = weight->dtype, w->block = w->I;
        if (!pvti_block_bytes(w->dtype, &n)) {
            snprintf(text, sizeof text, "weights in %s are not decoded on a GPU: pvt_model_copy brings them over as f32",
                     pvt_dtype_name(weight->dtype));
            pvti_fail_with(s, PVT_ERR_UNSUPPORTED, text);
        }
    } else if (!pvti_view_codes(s, weight, w)) {
        pvti_fail_with(s, PVT_ERR_UNSUPPORTED, "a GPU does not know this format: compute on the processor");
    }
    w->blocks = pvti_ceil(w->I, pvti_most(1, w->block));
    w->GI = w->I / w->gig, w->groups = w->O / w->gog * w->GI;
    return s->failed == PVT_OK;
}

static bool pvti_op_decodes(void *, int dtype)
{
    int n;
    return pvti_block_bytes(dtype, &n) > 0;
}

/* The first line of an op on a weight. */
#define PVTI_WEIGHT(w, weight) \
    PVTI_STATE;                \
    pvti_view w;               \
    if (!pvti_see(s, weight, &w)) return

/* ---- a weight in full, and some of its rows ---- */

/* out ← δ·Ŵ + (1−δ)·out, a run of eight to a thread. Limit: bytes of codes and out, twice where δ < 1. */
PVTI_KERNEL pvti_k_dequantize(float *out, pvti_view w, float delta)
{
    int64_t runs = pvti_ceil(w.I, 8), row = PVTI_INDEX / runs, col = PVTI_INDEX % runs * 8;
    float x[8];
    if (row >= w.O) return;
    int n = (int)pvti_least(8, w.I - col);
    pvti_run(w, row, col, n, x);
    for (int j = 0; j < 8; j++) {
        float *o = out + row * w.I + col + j;
        if (j < n) *o = delta < 1 ? delta * x[j] + (1 - delta) * *o : x[j];
    }
}
static void pvti_op_weight_dequantize(void *state, float *out, const pvt_weight *weight, double delta)
{
    PVTI_WEIGHT(w, weight);
    PVTI_EACH(s, pvti_k_dequantize, w.O * pvti_ceil(w.I, 8), out, w, (float)delta);
}

/* out[i] = row rows[i] of Rᵒᵀ·Ŵ; without a rotation of outputs m = 1 and Rᵒ is 1. */
PVTI_KERNEL pvti_k_lookup(float *out, pvti_view w, const int32_t *rows, int64_t n, int64_t m, uint64_t key)
{
    int64_t i = PVTI_INDEX / w.I, col = PVTI_INDEX % w.I;
    if (i >= n) return;
    int64_t row = rows[i], first = row / m * m;
    float sum = key ? 0 : pvti_number(w, row, col),
          factor = pvti_rotation_factor(key, row, 1 / sqrtf((float)m));
    for (int64_t j = 0; key && j < m; j++) {
        float sign = __popc((unsigned)((row - first) & j)) & 1 ? -factor : factor;
        sum += sign * pvti_number(w, first + j, col);
    }
    out[PVTI_INDEX] = sum;
}
static void pvti_op_weight_lookup(void *state, float *out, const pvt_weight *weight, const int32_t *rows,
                                  int64_t n)
{
    PVTI_WEIGHT(w, weight);
    if (n <= 0) return;
    bool turn = weight->format.rotation == 2;
    uint64_t key = turn ? pvti_mix(PVT_SIDE_OUT) : 0;
    PVTI_EACH(s, pvti_k_lookup, n * w.I, out, w, rows, n, turn ? w.O & -w.O : 1, key);
    if (weight->format.rotation) pvti_rotate(s, out, out, n, w.I, PVT_SIDE_IN, true);
}

// >>products
/*  C[M, N] (+)= A·B with sums over k in ascending order, one fused multiply-add each, from C on when it adds:
    the order of the processor. A block makes 64 × 64 of C with 256 threads, 4 × 4 each; 32 k at a time lie in
    shared memory, decoded there from whatever B is held in.
    Limit: 2·M·N·K operations; 8 reads of shared memory for 16 fused multiply-adds. */

enum { PVTI_TILE = 64, PVTI_STEP = 32, PVTI_PITCH = PVTI_TILE + 4 };

/* A(r, k) is data[r·ld + k], or with across data[k·ld + r]; B(n, k) is Ŵ[n, k], or with across Ŵ[k, n]. */
typedef struct pvti_operand {
    const float *data;
    int64_t ld;
    bool across;
} pvti_operand;
typedef struct pvti_product {
    float *C;
    int64_t M, N, K;
    pvti_operand A;
    pvti_view B;
    bool across, accumulate, bf16; /* across: B is; bf16: operands are rounded */
} pvti_product;

/* Where a sum belongs; NULL: outside of C. (Written out in pvti_k_mma this takes fifty registers more.) */
PVTI_DEVICE float *pvti_place_in(float *C, int M, int N, int row, int col)
{
    return row < M && col < N ? C + (int64_t)row * N + col : NULL;
}
/* Eight numbers of a tile of TILE r by 32 k, whose lines are contiguous in the operand, along k or across:
   n of them exist, from `first` of its `line` on. Runs count along lines, or with `down` across them. */
typedef struct pvti_place {
    int over, along;    /* in the tile: which line, and where in it */
    int line, first, n; /* of 32 bits: registers are short here */
} pvti_place;
template <int TILE>
PVTI_DEVICE pvti_place pvti_place_of(int run, bool across, bool down, int r0, int k0, int R, int K)
{
    pvti_place p;
    int lines = across ? PVTI_STEP : TILE, runs = across ? TILE / 8 : PVTI_STEP / 8;
    p.over = down ? run % lines : run / runs, p.along = (down ? run / lines : run % runs) * 8;
    p.line = p.over + (across ? k0 : r0), p.first = p.along + (across ? r0 : k0);
    p.n = p.line < (across ? K : R) ? (across ? R : K) - p.first : 0;
    p.n = p.n < 0 ? 0 : p.n > 8 ? 8 : p.n;
    return p;
}

typedef struct alignas(16) pvti_tiles {
    float a[PVTI_STEP][PVTI_PITCH], b[PVTI_STEP][PVTI_PITCH];
} pvti_tiles;
/* Eight numbers of x, or of a weight, for each thread; zeros outside R × K. */
template <bool WEIGHT>
PVTI_DEVICE void pvti_tile(float (*tile)[PVTI_PITCH], const pvti_operand &x, const pvti_product &p, int r0,
                           int k0, int R)
{
    bool across = x.across;
    float run[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    pvti_place at = pvti_place_of<PVTI_TILE>((int)threadIdx.x, across, !across, r0, k0, R, (int)p.K);
    if (at.n > 0 && WEIGHT) pvti_run(p.B, at.line, at.first, at.n, run);
    if (at.n > 0 && !WEIGHT) pvti_eight(x.data + at.line * x.ld + at.first, at.n, run);
    for (int j = 0; j < 8; j++)
        *(across ? &tile[at.over][at.along + j] : &tile[at.along + j][at.over]) =
            pvti_rounded(run[j], p.bf16);
}

template <bool WEIGHT> __global__ void __launch_bounds__(PVTI_THREADS, 1) pvti_k_gemm(pvti_product p)
{
    PVT_SHARED(pvti_tiles, tiles);
    pvti_operand B = {(const float *)p.B.codes, p.B.I, p.across};
    float sum[16];
    int M = (int)p.M, N = (int)p.N, m0 = (int)blockIdx.y * PVTI_TILE, n0 = (int)blockIdx.x * PVTI_TILE;
    int r = (int)threadIdx.x / 16 * 4, c = (int)threadIdx.x % 16 * 4;
    auto place = [&](int i) { /* of sum[i]; NULL: outside of C */
        int64_t row = m0 + r + i / 4, col = n0 + c + i % 4;
        return row < p.M && col < p.N ? p.C + row * p.N + col : NULL;
    };
    for (int i = 0; i < 16; i++) sum[i] = p.accumulate && place(i) ? *place(i) : 0;
    for (int k0 = 0; k0 < p.K; k0 += PVTI_STEP) {
        pvti_tile<false>(tiles.a, p.A, p, m0, k0, M);
        pvti_tile<WEIGHT>(tiles.b, B, p, n0, k0, N);
        __syncthreads();
        for (int k = 0; k < PVTI_STEP; k++) {
            float4 x = pvti_four(&tiles.a[k][r]), y = pvti_four(&tiles.b[k][c]);
            float a[4] = {x.x, x.y, x.z, x.w}, b[4] = {y.x, y.y, y.z, y.w};
            for (int i = 0; i < 16; i++) sum[i] = fmaf(a[i / 4], b[i % 4], sum[i]);
        }
        __syncthreads();
    }
    for (int i = 0; i < 16; i++)
        if (place(i)) *place(i) = sum[i];
}

/* ---- one to four rows ----
   y[r, o] = x[r]·Ŵ[o]: a warp to an output, eight inputs to a lane at a time, decoded once for all rows,
   lanes added by shuffles. Limit: the weight's bytes; 8 operations a weight and row. */
__global__ void __launch_bounds__(PVTI_THREADS, 1) pvti_k_gemv(pvti_product p)
{
    int64_t o = PVTI_INDEX / 32;
    int lane = (int)threadIdx.x % 32;
    float sum[4] = {0, 0, 0, 0}, run[8], in[8];
    if (o >= p.N) return; /* the whole warp */
    for (int64_t k = lane * 8; k < p.K; k += 256) {
        int n = (int)pvti_least(8, p.K - k);
        pvti_run(p.B, o, k, n, run);
        for (int r = 0; r < 4; r++) {
            if (r >= p.M) continue;
            pvti_eight(p.A.data + r * p.K + k, n, in);
            for (int j = 0; j < 8; j++) sum[r] = fmaf(in[j], run[j], sum[r]);
        }
    }
    for (int r = 0; r < 4; r++) {
        for (int bits = 16; bits > 0; bits /= 2) sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], bits);
        float *y = p.C + r * p.N + o;
        if (lane == 0 && r < p.M) *y = p.accumulate ? *y + sum[r] : sum[r];
    }
}

/* Codebooks of up to 256 entries: Σ_m,j ⟨x_j, entry(m, code)⟩ looks up products of x with all entries, which
   a block makes for some groups of inputs j and uses for 512 outputs, a thread to each (CodeGEMM; the
   processor's products have the like). What blocks have for other groups is added in their order.
   Limit: the codes' bytes; one look-up of 4 bytes a code, in any bank: some 3.5 lines a warp; K/512
   multiply-adds a weight for tables. */
enum { PVTI_LOOKUPS = 8192, PVTI_LOOKUP_ROWS = 512 };
typedef float pvti_lookups[PVTI_LOOKUPS]; /* [groups, M, K] */
PVTI_KERNEL pvti_k_lookups(float *parts, const float *x, pvti_view w, int per)
{
    PVT_SHARED(pvti_lookups, room);
    int64_t j0 = (int64_t)blockIdx.x * per, first = (int64_t)blockIdx.y * PVTI_LOOKUP_ROWS;
    int n = (int)pvti_least(per, w.GI - j0) * w.M;
    x += blockIdx.z * w.I + j0 * w.gig;
    for (int at = (int)threadIdx.x; at < w.M * w.K; at += PVTI_THREADS)
        for (int d = 0; d < w.gig; d += 8) { /* an entry, for all groups while it is in registers */
            int some = w.gig - d < 8 ? w.gig - d : 8;
            float entry[8], in[8];
            pvti_eight(w.points + (int64_t)at * w.gig + d, some, entry);
            for (int i = at / w.K; i < n; i += w.M) {
                float *to = &room[i * w.K + at % w.K], sum = d ? *to : 0;
                pvti_eight(x + i / w.M * w.gig + d, some, in);
                for (int k = 0; k < 8; k++) sum = k < some ? fmaf(in[k], entry[k], sum) : sum;
                *to = sum;
            }
        }
    __syncthreads();
    for (int64_t o = first + threadIdx.x; o < pvti_least(w.O, first + PVTI_LOOKUP_ROWS); o += PVTI_THREADS) {
        const uint8_t *codes = (const uint8_t *)w.codes + (o * w.GI + j0) * w.M;
        float sum = 0;
        int i = 0;
        for (; i + 4 <= n && ((uintptr_t)codes & 3) == 0; i += 4) { /* four codes at once */
            unsigned four = *(const unsigned *)(const void *)(codes + i);
            for (int k = 0; k < 4; k++) sum += room[(i + k) * w.K + (int)(four >> 8 * k & 255)];
        }
        for (; i < n; i++) sum += room[i * w.K + codes[i]];
        parts[((int64_t)blockIdx.x * gridDim.z + blockIdx.z) * w.O + o] = w.scales[o] * sum;
    }
}
/* y (+)= Σ_s parts[s]. */
PVTI_KERNEL pvti_k_parts(float *y, const float *parts, int64_t n, int64_t splits, bool accumulate)
{
    int64_t i = PVTI_INDEX;
    float sum = 0;
    if (i >= n) return;
    for (int64_t k = 0; k < splits; k++) sum += parts[k * n + i];
    y[i] = accumulate ? y[i] + sum : sum;
}
/* False: tables would not pay, or half of the work space (the other is rotations') has no room for parts. */
static bool pvti_look_up(pvti_cuda *s, const pvti_product &p)
{
    const pvti_view &w = p.B;
    int64_t half = PVT_CUDA_ROOM / 2, n = p.M * w.O, per, splits;
    float *parts = (float *)(void *)(s->room + half);
    if (w.kind != PVTI_AQLM || w.gog > 1 || w.wide || w.O < 2 * w.K) return false;
    per = pvti_least(32, PVTI_LOOKUPS / (w.M * w.K)), splits = pvti_ceil(w.GI, per);
    if (splits * n * 4 > half || p.M * (w.I + w.O) * 4 > half) return false;
    dim3 grid((unsigned)splits, (unsigned)pvti_ceil(w.O, PVTI_LOOKUP_ROWS), (unsigned)p.M);
    PVTI_RUN(s, pvti_k_lookups, grid, PVTI_THREADS, 0, parts, p.A.data, w, (int)per);
    PVTI_EACH(s, pvti_k_parts, n, p.C, parts, n, splits, p.accumulate);
    return true;
}

/* ---- on tensor cores: operands rounded to bf16, sums in fp32 ----
   A block makes TILE × TILE of C, its eight warps TILE/2 × TILE/4 each, 32 k a step. Tiles of bf16 lie as
   memory has them, lines of contiguous numbers: (r, k) or across (k, r), which ldmatrix turns; a pitch of an
   odd number of 16 bytes spares it bank conflicts. There are two of each operand, so one barrier a step does.
   Plain numbers come in fp32 by asynchronous copies, under way while the step before is multiplied; each
   thread rounds what it has copied. Weights are decoded straight to their tile. A sum goes from C on through
   k in sixteens, whatever TILE is; inside of sixteen the hardware cuts off what is below its window.
   Limit: 2·M·N·K operations at the tensor cores' rate; shared memory: TILE = 128 reads 6 KiB of fragments and
   writes 2 KiB of tiles for 128·128·4 multiply-adds. */

/* Asks for the thread's runs of plain numbers. */
template <int TILE>
PVTI_DEVICE void pvti_fetch(float4 *raw, const pvti_operand &x, int r0, int k0, int R, int K)
{
    bool wide = (((uint64_t)(uintptr_t)x.data | (uint64_t)x.ld * 4) & 15) == 0;
    for (int j = 0; j < TILE / 32; j++) { /* half a run each */
        int t = (int)threadIdx.x;
        pvti_place p = pvti_place_of<TILE>(t + j / 2 * PVTI_THREADS, x.across, false, r0, k0, R, K);
        int n = (int)pvti_most(0, pvti_least(4, j % 2 ? p.n - 4 : p.n));
        const float *from = n > 0 ? x.data + (int64_t)p.line * x.ld + (p.first + j % 2 * 4) : x.data;
        float *to = &raw[j * PVTI_THREADS + t].x;
        if (wide) pvti_copy_16(to, from, 4 * n);
        for (int i = 0; i < 4 && !wide; i++) to[i] = i < n ? from[i] : 0;
    }
}
/* Eight numbers to a tile of floats, or of bf16. */
PVTI_DEVICE void pvti_put(float *to, const float *x)
{
    *(float4 *)(void *)to = {x[0], x[1], x[2], x[3]};
    *(float4 *)(void *)(to + 4) = {x[4], x[5], x[6], x[7]};
}
PVTI_DEVICE void pvti_put(uint16_t *to, const float *x)
{
    unsigned words[4];
    for (int i = 0; i < 8; i += 2) words[i / 2] = pvti_halves(x[i], x[i + 1]);
    *(uint4 *)(void *)to = {words[0], words[1], words[2], words[3]};
}
template <int TILE> PVTI_DEVICE int pvti_line(bool across) { return across ? TILE + 8 : PVTI_STEP + 8; }
/* A tile of bf16 from what was fetched, or from a weight. */
template <int TILE, bool WEIGHT>
PVTI_DEVICE void pvti_fill(uint16_t *tile, const float4 *raw, const pvti_view &w, bool across, int r0, int k0,
                           int R, int K)
{
    for (int j = 0; j < TILE / 64; j++) {
        int t = (int)threadIdx.x;
        float run[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        pvti_place p = pvti_place_of<TILE>(t + j * PVTI_THREADS, across, false, r0, k0, R, K);
        if (WEIGHT && p.n > 0) pvti_run(w, p.line, p.first, p.n, run);
        for (int k = 0; k < 8 && !WEIGHT; k++) run[k] = (&raw[(2 * j + k / 4) * PVTI_THREADS + t].x)[k % 4];
        pvti_put(tile + p.over * pvti_line<TILE>(across) + p.along, run);
    }
}
/* Rows r … r+15 at k … k+15 of a tile, (r, k) or across (k, r): A of pvti_mma; of B columns r … r+7 are words
   0 and 2, r+8 … r+15 1 and 3. */
PVTI_DEVICE void pvti_fragment(unsigned *x, const uint16_t *tile, int pitch, bool across, int r, int k)
{
    int lane = (int)threadIdx.x % 32, row = r + lane / 8 % 2 * 8, deep = k + lane / 16 * 8;
    int at = across ? (deep + lane % 8) * pitch + row : (row + lane % 8) * pitch + deep;
    pvti_matrices(x, tile + at, across);
}

static size_t pvti_mma_bytes(int tile, bool weight)
{
    return (size_t)(4 * tile * (PVTI_STEP + 8) * 2 + (weight ? 1 : 2) * tile * PVTI_STEP * 4);
}
template <int TILE, bool WEIGHT>
__global__ void __launch_bounds__(PVTI_THREADS, TILE == 128 ? 1 : 3) pvti_k_mma(pvti_product p)
{
    enum { SIDE = TILE * (PVTI_STEP + 8), ROWS = TILE / 32, PAIRS = TILE / 64 }; /* tiles of 16 of a warp */
    PVT_SHARED_DYNAMIC(uint16_t, halves);
    float4 *raw = (float4 *)(void *)(halves + 4 * SIDE), *raw_b = raw + TILE / 32 * PVTI_THREADS;
    int M = (int)p.M, N = (int)p.N, K = (int)p.K, warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int m0 = (int)blockIdx.y * TILE, n0 = (int)blockIdx.x * TILE, m = warp % 2 * (TILE / 2);
    int n = warp / 2 * (TILE / 4), line_a = pvti_line<TILE>(p.A.across), line_b = pvti_line<TILE>(p.across);
    pvti_operand B = {(const float *)p.B.codes, p.B.I, p.across};
    float *C = p.C, sum[ROWS * PAIRS * 2][4];
    auto place = [=](int i) { /* of number i of the sums */
        int r = m0 + m + lane / 4 + i / (PAIRS * 8) * 16 + i % 4 / 2 * 8;
        return pvti_place_in(C, M, N, r, n0 + n + lane % 4 * 2 + i / 4 % (2 * PAIRS) * 8 + i % 2);
    };
    for (int i = 0; i < ROWS * PAIRS * 8; i++) sum[i / 4][i % 4] = p.accumulate && place(i) ? *place(i) : 0;
    pvti_fetch<TILE>(raw, p.A, m0, 0, M, K);
    if (!WEIGHT) pvti_fetch<TILE>(raw_b, B, n0, 0, N, K);
    for (int k0 = 0; k0 < K; k0 += PVTI_STEP) {
        uint16_t *a = halves + k0 / PVTI_STEP % 2 * 2 * SIDE, *b = a + SIDE;
        if (WEIGHT) pvti_fill<TILE, true>(b, raw, p.B, p.across, n0, k0, N, K);
        pvti_copies_wait();
        pvti_fill<TILE, false>(a, raw, p.B, p.A.across, m0, k0, M, K);
        if (!WEIGHT) pvti_fill<TILE, false>(b, raw_b, p.B, p.across, n0, k0, N, K);
        __syncthreads(); /* and who is past it has read the other two tiles */
        if (k0 + PVTI_STEP < K) pvti_fetch<TILE>(raw, p.A, m0, k0 + PVTI_STEP, M, K);
        if (!WEIGHT && k0 + PVTI_STEP < K) pvti_fetch<TILE>(raw_b, B, n0, k0 + PVTI_STEP, N, K);
        for (int k = 0; k < PVTI_STEP; k += 16) {
            unsigned x[ROWS][4], y[PAIRS][4];
            for (int i = 0; i < ROWS; i++) pvti_fragment(x[i], a, line_a, p.A.across, m + 16 * i, k);
            for (int j = 0; j < PAIRS; j++) pvti_fragment(y[j], b, line_b, p.across, n + 16 * j, k);
            for (int i = 0; i < ROWS * PAIRS * 2; i++) {
                const unsigned *right = y[i % (2 * PAIRS) / 2];
                pvti_mma(sum[i], x[i / (2 * PAIRS)], right[i % 2], right[2 + i % 2]);
            }
        }
    }
    for (int i = 0; i < ROWS * PAIRS * 8; i++)
        if (place(i)) *place(i) = sum[i / 4][i % 4];
}

/* ---- which of them ---- */

#ifdef PVT_CUBLAS
/* Rows of C are columns to cuBLAS, so it makes Cᵀ = B·Aᵀ; in bf16 it rounds operands itself. */
static void pvti_cublas(pvti_cuda *s, const pvti_product &p)
{
    float one = 1, add = p.accumulate ? 1.0f : 0.0f;
    cublasStatus_t status =
        cublasGemmEx(s->cublas, p.across ? CUBLAS_OP_N : CUBLAS_OP_T, p.A.across ? CUBLAS_OP_T : CUBLAS_OP_N,
                     (int)p.N, (int)p.M, (int)p.K, &one, p.B.codes, CUDA_R_32F, (int)p.B.I, p.A.data,
                     CUDA_R_32F, (int)p.A.ld, &add, p.C, CUDA_R_32F, (int)p.N,
                     p.bf16 ? CUBLAS_COMPUTE_32F_FAST_16BF : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    if (status != CUBLAS_STATUS_SUCCESS) pvti_fail_with(s, PVT_ERR_IO, "a product of cuBLAS failed");
}
#endif
/* Multiply-adds in tiles of 64, tensor cores in tiles of 128 and 64; B of plain numbers and of a weight. */
typedef void (*pvti_gemm_kernel)(pvti_product);
static const pvti_gemm_kernel pvti_gemm_kernels[3][2] = {{pvti_k_gemm<false>, pvti_k_gemm<true>},
                                                         {pvti_k_mma<128, false>, pvti_k_mma<128, true>},
                                                         {pvti_k_mma<64, false>, pvti_k_mma<64, true>}};
static void pvti_multiply(pvti_cuda *s, pvti_product p)
{
    if (p.M <= 0 || p.N <= 0 || s->failed != PVT_OK) return;
    if (p.M <= 4 && !p.A.across && !p.across && p.K > 0) {
        if (!pvti_look_up(s, p)) PVTI_BLOCKS(s, pvti_k_gemv, pvti_ceil(p.N, PVTI_THREADS / 32), p);
        return;
    }
    bool weight = !pvti_is_numbers(p.B), large = pvti_ceil(p.M, 128) * pvti_ceil(p.N, 128) >= s->cores;
#ifdef PVT_CUBLAS
    if (!weight && p.K > 0 && p.M < INT32_MAX && p.N < INT32_MAX && p.K < INT32_MAX) {
        pvti_cublas(s, p);
        return;
    }
#endif
    int kind = !p.bf16 || !s->tensor ? 0 : large ? 1 : 2, tile = kind == 1 ? 128 : 64;
    pvti_gemm_kernel product = pvti_gemm_kernels[kind][weight];
    for (int64_t m = 0, most = PVT_CUDA_SIDE * tile; m < p.M; m += most) {
        pvti_product part = p;
        part.M = pvti_least(most, p.M - m), part.C += m * p.N, part.A.data += p.A.across ? m : m * p.A.ld;
        dim3 grid((unsigned)pvti_ceil(p.N, tile), (unsigned)pvti_ceil(part.M, tile));
        PVTI_RUN(s, product, grid, PVTI_THREADS, kind ? pvti_mma_bytes(tile, weight) : 0, part);
    }
}

/* As the context has products: fewer than 16 rows are not rounded to bf16, for memory limits them. */
static void pvti_gemm(pvti_cuda *s, pvti_product p)
{
    p.bf16 = s->bf16 && p.M >= 16;
    pvti_multiply(s, p);
}

/* y += bias, row by row. */
PVTI_KERNEL pvti_k_bias(float *y, const float *bias, int64_t n, int64_t O)
{
    if (PVTI_INDEX < n * O) y[PVTI_INDEX] += bias[PVTI_INDEX % O];
}
typedef float pvti_column_room[8][32];
/* sums[c] += Σ_i a[i, c] · b[i, c] · r[i], b and r NULL: 1. A block has 32 columns and 8 threads to each, of
   which each adds every eighth row; the eight are then added in order. Limit: the bytes of a and b. */
PVTI_KERNEL pvti_k_columns(float *sums, const float *a, const float *b, const float *r, int64_t n, int64_t C)
{
    PVT_SHARED(pvti_column_room, room);
    int lane = (int)threadIdx.x % 32, part = (int)threadIdx.x / 32;
    int64_t c = (int64_t)blockIdx.x * 32 + lane;
    float sum = 0;
    for (int64_t i = part; i < n && c < C; i += 8)
        sum += a[i * C + c] * (b ? b[i * C + c] : 1) * (r ? r[i] : 1);
    room[part][lane] = sum;
    __syncthreads();
    if (part || c >= C) return;
    for (int k = 1; k < 8; k++) sum += room[k][lane];
    sums[c] += sum;
}

static void pvti_op_linear_forward(void *state, float *y, const float *x, const float *W, const float *bias,
                                   int64_t n, int64_t I, int64_t O)
{
    PVTI_STATE;
    pvti_gemm(s, {y, n, O, I, {x, I, false}, pvti_plain(W, I), false, false, false});
    if (bias) PVTI_EACH(s, pvti_k_bias, n * O, y, bias, n, O);
}
static void pvti_op_linear_backward(void *state, float *dx, float *dW, float *dbias, const float *dy,
                                    const float *x, const float *W, int64_t n, int64_t I, int64_t O)
{
    PVTI_STATE;
    if (n <= 0) return;
    if (dx) pvti_gemm(s, {dx, n, I, O, {dy, O, false}, pvti_plain(W, I), true, true, false});
    if (dW) pvti_gemm(s, {dW, O, I, n, {dy, O, true}, pvti_plain(x, I), true, true, false});
    const float *one = NULL;
    if (dbias) PVTI_BLOCKS(s, pvti_k_columns, pvti_ceil(O, 32), dbias, dy, one, one, n, O);
}

/* ---- with a weight ---- */

PVTI_KERNEL pvti_k_add(float *out, const float *a, const float *b, int64_t n)
{
    if (PVTI_INDEX < n) out[PVTI_INDEX] = a[PVTI_INDEX] + b[PVTI_INDEX];
}
PVTI_OP(residual_forward, PVTI_EACH, pvti_k_add, PVTI_ARG(1))
/*  y (+)= Ŵ·x, or across Ŵᵀ·x, of n rows. Of a rotated weight x is turned before, to the side of the codes,
    and y back behind; both take the work space, as many rows at a time as it has room for. */
static void pvti_apply(pvti_cuda *s, float *y, const float *x, const pvt_weight *weight, const pvti_view *w,
                       int64_t n, bool across, bool accumulate)
{
    int64_t in = across ? w->O : w->I, out = across ? w->I : w->O, rows;
    int turned = weight->format.rotation; /* 1: of inputs, 2: of both */
    bool before = turned > (across ? 1 : 0), behind = turned > (across ? 0 : 1), aside = behind && accumulate;
    int64_t row = (before ? in : 0) + (aside ? out : 0), most = row ? PVT_CUDA_ROOM / (row * 4) : n;
    if (n > 0 && most < 1) pvti_fail_with(s, PVT_ERR_UNSUPPORTED, "too wide to rotate: raise PVT_CUDA_ROOM");
    for (int64_t i = 0; i < n && most > 0; i += rows, x += rows * in, y += rows * out) {
        float *room = (float *)(void *)s->room;
        rows = pvti_least(most, n - i);
        float *to = aside ? room + (before ? rows * in : 0) : y;
        if (before) pvti_rotate(s, room, x, rows, in, across ? PVT_SIDE_OUT : PVT_SIDE_IN, false);
        pvti_gemm(
            s, {to, rows, out, in, {before ? room : x, in, false}, *w, across, accumulate && !aside, false});
        if (behind) pvti_rotate(s, to, to, rows, out, across ? PVT_SIDE_IN : PVT_SIDE_OUT, true);
        if (aside) pvti_op_residual_forward(s, y, y, to, rows * out);
    }
}
static void pvti_op_weight_forward(void *state, float *y, const float *x, const pvt_weight *weight, int64_t n,
                                   bool accumulate)
{
    PVTI_WEIGHT(w, weight);
    pvti_apply(s, y, x, weight, &w, n, false, accumulate);
}
static void pvti_op_weight_backward(void *state, float *dx, float *dW, const float *dy, const float *x,
                                    const pvt_weight *weight, int64_t n)
{
    PVTI_WEIGHT(w, weight);
    if (dx) pvti_apply(s, dx, dy, weight, &w, n, true, true);
    if (dW && n > 0) pvti_gemm(s, {dW, w.O, w.I, n, {dy, w.O, true}, pvti_plain(x, w.I), true, true, false});
}

// >>rows
/*  Norms, RoPE, swiglu, sums, the embedding. Limit of all: the bytes that they read and write. */

static void pvti_op_residual_backward(void *state, float *da, float *db, const float *dout, int64_t n)
{
    PVTI_STATE;
    if (da) pvti_op_residual_forward(s, da, da, dout, n);
    if (db) pvti_op_residual_forward(s, db, db, dout, n);
}

/* out = silu(gate)·up, silu(z) = z/(1 + exp(−z)). */
PVTI_KERNEL pvti_k_swiglu(float *out, const float *gate, const float *up, int64_t n)
{
    if (PVTI_INDEX >= n) return;
    float z = gate[PVTI_INDEX];
    out[PVTI_INDEX] = z * (1 / (1 + expf(-z))) * up[PVTI_INDEX];
}
/* With σ = 1/(1 + exp(−z)): dgate += dout·up·σ·(1 + z·(1 − σ)), dup += dout·z·σ. */
PVTI_KERNEL pvti_k_swiglu_back(float *dgate, float *dup, const float *dout, const float *gate,
                               const float *up, int64_t n)
{
    if (PVTI_INDEX >= n) return;
    float z = gate[PVTI_INDEX], sigma = 1 / (1 + expf(-z)), d = dout[PVTI_INDEX];
    dgate[PVTI_INDEX] += d * up[PVTI_INDEX] * sigma * (1 + z * (1 - sigma));
    dup[PVTI_INDEX] += d * z * sigma;
}
PVTI_OP(swiglu_forward, PVTI_EACH, pvti_k_swiglu, PVTI_ARG(1))
PVTI_OP(swiglu_backward, PVTI_EACH, pvti_k_swiglu_back, PVTI_ARG(1))

/* out = x·rstd·weight, rstd = 1/√(mean x² + eps): a block to a row. */
PVTI_KERNEL pvti_k_norm(float *out, float *rstd, const float *x, const float *weight, int64_t, int64_t C,
                        float eps)
{
    int64_t i = blockIdx.x;
    double sum = pvti_block_total(C, [=](int64_t c) { return x[i * C + c] * x[i * C + c]; });
    float r = (float)(1 / sqrt(sum / (double)C + (double)eps));
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) out[i * C + c] = x[i * C + c] * r * weight[c];
    if (rstd && threadIdx.x == 0) rstd[i] = r;
}
/* dx += r·(dout·w − x·r²/C·Σ dout·w·x); dweight: pvti_k_columns. */
PVTI_KERNEL pvti_k_norm_back(float *dx, const float *dout, const float *x, const float *rstd,
                             const float *weight, int64_t C)
{
    int64_t i = blockIdx.x;
    double sum = pvti_block_total(C, [=](int64_t c) { return dout[i * C + c] * weight[c] * x[i * C + c]; });
    float r = rstd[i], along = (float)(sum * (double)r * (double)r / (double)C);
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x)
        dx[i * C + c] += r * (dout[i * C + c] * weight[c] - x[i * C + c] * along);
}
PVTI_OP(rmsnorm_forward, PVTI_BLOCKS, pvti_k_norm, PVTI_ARG(2) > 0 ? PVTI_ARG(3) : 0)
static void pvti_op_rmsnorm_backward(void *state, float *dx, float *dweight, const float *dout,
                                     const float *x, const float *rstd, const float *weight, int64_t n,
                                     int64_t C)
{
    PVTI_STATE;
    if (n <= 0 || C <= 0) return;
    if (dweight) PVTI_BLOCKS(s, pvti_k_columns, pvti_ceil(C, 32), dweight, dout, x, rstd, n, C);
    if (dx) PVTI_BLOCKS(s, pvti_k_norm_back, n, dx, dout, x, rstd, weight, C);
}

enum { PVTI_FREQUENCIES = 128 };
typedef struct pvti_frequencies {
    float f[PVTI_FREQUENCIES];
} pvti_frequencies;
/* The angle in float, its sine and cosine in double: as the processor. n of HS/2 columns, from j0 on. */
PVTI_KERNEL pvti_k_rope_table(float *cosines, float *sines, pvti_frequencies inv_freq, int64_t n, int64_t j0,
                              int64_t half, int64_t pos, int64_t T)
{
    int64_t t = PVTI_INDEX / n, j = PVTI_INDEX % n;
    if (t >= T) return;
    double angle = (double)((float)(pos + t) * inv_freq.f[j]);
    cosines[t * half + j0 + j] = (float)cos(angle);
    sines[t * half + j0 + j] = (float)sin(angle);
}
static void pvti_op_rope_table(void *state, float *cosines, float *sines, const float *inv_freq, int64_t HS,
                               int64_t pos, int64_t T)
{
    PVTI_STATE;
    int64_t n;
    for (int64_t j = 0; j < HS / 2; j += n) {
        pvti_frequencies f = {};
        n = pvti_least(PVTI_FREQUENCIES, HS / 2 - j);
        memcpy(f.f, inv_freq + j, (size_t)n * sizeof *f.f);
        PVTI_EACH(s, pvti_k_rope_table, n * T, cosines, sines, f, n, j, HS / 2, pos, T);
    }
}
/* (a, b) → (a·cos − b·sin, b·cos + a·sin); BACK: the other way round. A thread to a pair. */
template <bool BACK>
PVTI_KERNEL pvti_k_rope(float *x, const float *cosines, const float *sines, int64_t B, int64_t T, int64_t NH,
                        int64_t HS, pvt_rope_pairing pairing)
{
    int64_t half = HS / 2, j = PVTI_INDEX % half, head = PVTI_INDEX / half, t = head / NH % T;
    if (head >= B * T * NH) return;
    bool halves = pairing == PVT_ROPE_HALVES;
    float *a = x + head * HS + (halves ? j : 2 * j), *b = a + (halves ? half : 1);
    float cosine = cosines[t * half + j], sine = sines[t * half + j], old = *a;
    if (BACK) sine = -sine;
    *a = old * cosine - *b * sine;
    *b = *b * cosine + old * sine;
}
PVTI_OP(rope_forward, PVTI_EACH, pvti_k_rope<false>,
        PVTI_ARG(5) * PVTI_ARG(4) * PVTI_ARG(3) * (PVTI_ARG(2) / 2))
PVTI_OP(rope_backward, PVTI_EACH, pvti_k_rope<true>,
        PVTI_ARG(5) * PVTI_ARG(4) * PVTI_ARG(3) * (PVTI_ARG(2) / 2))

PVTI_KERNEL pvti_k_embedding(float *out, const float *table, const int32_t *ids, int64_t n, int64_t V,
                             int64_t C)
{
    int64_t i = PVTI_INDEX / C, c = PVTI_INDEX % C;
    if (i >= n) return;
    out[PVTI_INDEX] = ids[i] >= 0 && ids[i] < V ? table[ids[i] * C + c] : 0;
}
PVTI_OP(embedding_forward, PVTI_EACH, pvti_k_embedding, PVTI_ARG(3) * PVTI_ARG(1))

/*  dtable[ids[i]] += dout[i] in the order of i: the block of the first i with an id does it for all of them;
    the others see an earlier one and end. Limit: up to n² comparisons of ids, 32 at a time and by each warp
    of a block, and the bytes of dout. */
PVTI_KERNEL pvti_k_embedding_back(float *dtable, const float *dout, const int32_t *ids, int64_t n, int64_t V,
                                  int64_t C)
{
    int64_t i = blockIdx.x;
    int lane = (int)threadIdx.x % 32, id = ids[i];
    if (id < 0 || id >= V) return;
    for (int64_t j = 0; j < i; j += 32) /* each warp sees the same */
        if (__ballot_sync(0xffffffffu, j + lane < i && ids[j + lane] == id)) return;
    for (int64_t j = i; j < n; j += 32) {
        unsigned same = __ballot_sync(0xffffffffu, j + lane < n && ids[j + lane] == id);
        for (; same; same &= same - 1) {
            int64_t k = j + __ffs(same) - 1;
            for (int64_t c = threadIdx.x; c < C; c += blockDim.x) dtable[id * C + c] += dout[k * C + c];
        }
    }
}
PVTI_OP(embedding_backward, PVTI_BLOCKS, pvti_k_embedding_back, PVTI_ARG(3))

// >>attention
/*  Tiles of rows against tiles of the other side's, scores recomputed and never kept (FlashAttention-2, arXiv
    2307.08691). A warp owns 16 rows, queries or keys, and holds their sums in the layout of pvti_mma; tiles
    of the other side come through shared memory, one for all warps. T: float, multiply-adds; uint16_t, bf16
    on tensor cores: q, k, v, dout, and as they are made the weights P and dS, are rounded, as on the
    processor; sums, softmax, lse and D are in float. DC: columns of a row's sums; heads beyond 128 are done
    in two parts, whose scores are made twice.
    Limit: forward 4·HS operations a score that counts, backward 14·HS (scores are made once for dq and once
    for dk and dv: each sum belongs to one warp and has one order); shared memory: bench/CUDA.md. */

#define PVTI_LOG2E 1.44269504f
enum { PVTI_HEAD = 256, PVTI_ATTENTION_THREADS = 128, PVTI_ATTENTION_BYTES = 64 << 10 };

/* Queries with dout, or keys with values: n rows of `heads` heads. */
typedef struct pvti_side {
    const float *x, *y;
    int64_t batch; /* numbers of a sequence */
    int n, heads;
} pvti_side;
typedef struct pvti_heads {
    pvti_side own, other;
    const float *lse, *D; /* [B, NH, T] */
    float scale;
    int HS, pos, window, parts;
} pvti_heads;
typedef struct pvti_span {
    int from, to; /* included */
} pvti_span;

/* Rows of the other side that count for an own one: query t sees keys pos + t − window + 1 … pos + t. */
PVTI_DEVICE pvti_span pvti_span_of(const pvti_heads &h, bool keys, int row)
{
    int at = keys ? row - h.pos : row + h.pos;
    int far = h.window ? h.window - 1 : 1 << 30;
    pvti_span s = {keys ? at : at - far, keys ? at + far : at};
    if (s.from < 0) s.from = 0;
    if (s.to >= h.other.n) s.to = h.other.n - 1;
    if (row >= h.own.n) s.to = -1; /* nor are its lse and D read */
    return s;
}
PVTI_BOTH int pvti_depth(int HS) { return (HS + 15) / 16 * 16; }
/* Numbers from one row of a tile to the next: no two rows begin in one bank. */
template <class T> PVTI_BOTH int pvti_pitch(int HS) { return pvti_depth(HS) + 16 / (int)sizeof(T); }
/* Rows r0 … of x, of a side, to a tile; zeros where there are none. */
template <class T>
PVTI_DEVICE void pvti_rows_in(T *tile, int rows, const float *x, const pvti_side &side, int head, int r0,
                              int HS)
{
    int runs = pvti_depth(HS) / 8;
    x += blockIdx.z * side.batch + head * HS;
    for (int i = (int)threadIdx.x; i < rows * runs; i += (int)blockDim.x) {
        int r = r0 + i / runs, d = i % runs * 8, n = HS - d < 8 ? HS - d : 8;
        float run[8];
        pvti_eight(x + (int64_t)r * side.heads * HS + d, r < side.n ? n : 0, run);
        pvti_put(tile + i / runs * pvti_pitch<T>(HS) + d, run);
    }
}

/* ---- products of a warp: 16 rows, numbers of C as pvti_mma has them ---- */

/* s[8·N columns] = a·bᵀ of rows of `depth` numbers. */
template <int N>
PVTI_DEVICE void pvti_scores(float (*s)[4], const float *a, const float *b, int depth, int pitch)
{
    int lane = (int)threadIdx.x % 32;
    a += lane / 4 * pitch, b += lane % 4 * 2 * pitch;
    for (int i = 0; i < 4 * N; i++) s[i / 4][i % 4] = 0;
    for (int k = 0; k < depth; k += 4) {
        float4 x = pvti_four(a + k), y = pvti_four(a + 8 * pitch + k);
        for (int i = 0; i < 2 * N; i++) {
            float4 z = pvti_four(b + (i / 2 * 8 + i % 2) * pitch + k);
            float *low = &s[i / 2][i % 2], *high = low + 2;
            *low = fmaf(x.w, z.w, fmaf(x.z, z.z, fmaf(x.y, z.y, fmaf(x.x, z.x, *low))));
            *high = fmaf(y.w, z.w, fmaf(y.z, z.z, fmaf(y.y, z.y, fmaf(y.x, z.x, *high))));
        }
    }
}
template <int N>
PVTI_DEVICE void pvti_scores(float (*s)[4], const uint16_t *a, const uint16_t *b, int depth, int pitch)
{
    for (int i = 0; i < 4 * N; i++) s[i / 4][i % 4] = 0;
    for (int k = 0; k < depth; k += 16) {
        unsigned x[4], y[4];
        pvti_fragment(x, a, pitch, false, 0, k);
        for (int j = 0; j < N; j += 2) {
            pvti_fragment(y, b, pitch, false, 8 * j, k);
            pvti_mma(s[j], x, y[0], y[2]), pvti_mma(s[j + 1], x, y[1], y[3]);
        }
    }
}
/* sum[8·C columns, of which `columns` exist] += p[8·N columns]·v. */
template <int N, int C>
PVTI_DEVICE void pvti_weigh(float (*sum)[4], const float (*p)[4], const float *v, int columns, int pitch)
{
    int lane = (int)threadIdx.x % 32;
    PVT_UNROLL
    for (int k = 0; k < 8 * N; k++) { /* number k of a row is in this lane of its four */
        int from = (lane & 28) + k % 8 / 2;
        float x = __shfl_sync(0xffffffffu, p[k / 8][k % 2], from);
        float y = __shfl_sync(0xffffffffu, p[k / 8][2 + k % 2], from);
        for (int j = 0; j < C; j++) {
            if (8 * j >= columns) break;
            float2 z = *(const float2 *)(const void *)(v + k * pitch + 8 * j + lane % 4 * 2);
            sum[j][0] = fmaf(x, z.x, sum[j][0]), sum[j][1] = fmaf(x, z.y, sum[j][1]);
            sum[j][2] = fmaf(y, z.x, sum[j][2]), sum[j][3] = fmaf(y, z.y, sum[j][3]);
        }
    }
}
template <int N, int C>
PVTI_DEVICE void pvti_weigh(float (*sum)[4], const float (*p)[4], const uint16_t *v, int columns, int pitch)
{
    for (int k = 0; k < N; k += 2) { /* C of one product is A of the next, number for number */
        unsigned x[4] = {pvti_halves(p[k][0], p[k][1]), pvti_halves(p[k][2], p[k][3]),
                         pvti_halves(p[k + 1][0], p[k + 1][1]), pvti_halves(p[k + 1][2], p[k + 1][3])}, y[4];
        for (int j = 0; j < C; j += 2) {
            if (8 * j >= columns) break;
            pvti_fragment(y, v, pitch, true, 8 * j, 8 * k);
            pvti_mma(sum[j], x, y[0], y[2]), pvti_mma(sum[j + 1], x, y[1], y[3]);
        }
    }
}

/* Sums of own rows to x, or added to it. */
template <int C>
PVTI_DEVICE void pvti_rows_out(float *x, const float (*sum)[4], const pvti_heads &h, int row, int d0,
                               bool add)
{
    x += blockIdx.z * h.own.batch + blockIdx.y * h.HS;
    for (int i = 0; i < 4 * C; i++) {
        int r = row + i % 4 / 2 * 8, d = d0 + i / 4 * 8 + (int)threadIdx.x % 4 * 2 + i % 2;
        float *to = x + (int64_t)r * h.own.heads * h.HS + d;
        if (r < h.own.n && d < h.HS) *to = add ? *to + sum[i / 4][i % 4] : sum[i / 4][i % 4];
    }
}

/* ---- the kernels: (query tile, part) × head × sequence ---- */

/*  Scores of two rows become weights 2^(s·log₂e − m). m, the largest so far, is rounded up to a whole number:
    what is shrunk to a new m is exact, and a weight is rounded to bf16 alike in whatever order tiles come. */
template <int N>
PVTI_DEVICE void pvti_softmax(float (*s)[4], const pvti_span *span, int first, float scale, float *most,
                              float *sum, float *shrink)
{
    for (int r = 0; r < 2; r++) {
        float top = -INFINITY;
        for (int i = 0; i < 2 * N; i++) {
            int c = first + i / 2 * 8 + (int)threadIdx.x % 4 * 2 + i % 2;
            float *x = &s[i / 2][2 * r + i % 2];
            *x = c >= span[r].from && c <= span[r].to ? scale * *x : -INFINITY;
            top = fmaxf(top, *x);
        }
        for (int bits = 1; bits < 4; bits *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, bits));
        top = fmaxf(most[r], ceilf(top * PVTI_LOG2E));
        float m = top == -INFINITY ? 0 : top; /* no key so far */
        shrink[r] = exp2f(most[r] - m), most[r] = top, sum[r] *= shrink[r];
        for (int i = 0; i < 2 * N; i++) {
            float *x = &s[i / 2][2 * r + i % 2];
            *x = exp2f(fmaf(*x, PVTI_LOG2E, -m)), sum[r] += *x;
        }
    }
}
template <class T, int DC>
__global__ void __launch_bounds__(PVTI_ATTENTION_THREADS, sizeof(T) == 2 && DC == 64 ? 4 : 1)
    pvti_k_attention(float *out, float *lse, pvti_heads h)
{
    enum { TILE = sizeof(T) == 2 || DC == 64 ? 32 : 8, N = TILE / 8, C = DC / 8 };
    PVT_SHARED_DYNAMIC(T, room);
    int lane = (int)threadIdx.x % 32, mine = (int)threadIdx.x / 32 * 16, rows = (int)blockDim.x / 2;
    int pitch = pvti_pitch<T>(h.HS), depth = pvti_depth(h.HS), d0 = (int)blockIdx.x % h.parts * DC;
    int r0 = (int)((gridDim.x - 1 - blockIdx.x) / h.parts) * rows; /* the longest first */
    int row = r0 + mine + lane / 4, head = (int)blockIdx.y, key_head = head / (h.own.heads / h.other.heads);
    T *q = room, *k = q + rows * pitch, *v = k + TILE * pitch;
    float s[N][4], acc[C][4], most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, shrink[2];
    pvti_span span[2], last = pvti_span_of(h, false, (int)pvti_least(h.own.n, r0 + rows) - 1);
    for (int r = 0; r < 2; r++) span[r] = pvti_span_of(h, false, row + 8 * r);
    for (int i = 0; i < 4 * C; i++) acc[i / 4][i % 4] = 0;
    pvti_rows_in(q, rows, h.own.x, h.own, head, r0, h.HS);
    for (int c = pvti_span_of(h, false, r0).from; c <= last.to; c += TILE) {
        pvti_rows_in(k, TILE, h.other.x, h.other, key_head, c, h.HS);
        pvti_rows_in(v, TILE, h.other.y, h.other, key_head, c, h.HS);
        __syncthreads();
        pvti_scores<N>(s, q + mine * pitch, k, depth, pitch);
        pvti_softmax<N>(s, span, c, h.scale, most, sum, shrink);
        for (int i = 0; i < 4 * C; i++) acc[i / 4][i % 4] *= shrink[i % 4 / 2];
        pvti_weigh<N, C>(acc, s, v + d0, depth - d0, pitch);
        __syncthreads();
    }
    for (int r = 0; r < 2; r++) {
        for (int bits = 1; bits < 4; bits *= 2) sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], bits);
        for (int i = 0; i < 2 * C; i++) acc[i / 2][2 * r + i % 2] /= sum[r];
        if (lse && lane % 4 == 0 && d0 == 0 && row + 8 * r < h.own.n)
            lse[((int64_t)blockIdx.z * h.own.heads + head) * h.own.n + row + 8 * r] =
                (most[r] + log2f(sum[r])) / PVTI_LOG2E;
    }
    pvti_rows_out<C>(out, acc, h, row, d0, false);
}

/*  Backward. With P = exp(scale·q·k − lse) and D = Σ_d dout·out of a query:
        dS = P·(dout·v − D)·scale,   dq = dS·k,   dk = dSᵀ·q,   dv = Pᵀ·dout. */

/* D: a warp to a query and head. */
PVTI_KERNEL pvti_k_attention_dots(float *D, const float *dout, const float *out, int64_t n, int64_t T,
                                  int64_t NH, int64_t HS)
{
    int64_t i = PVTI_INDEX / 32, at = ((i / T / NH * T + i % T) * NH + i / T % NH) * HS;
    double sum = 0;
    if (i >= n) return; /* the whole warp */
    for (int64_t d = threadIdx.x % 32; d < HS; d += 32) sum += (double)dout[at + d] * (double)out[at + d];
    sum = pvti_warp_sum(sum);
    if (threadIdx.x % 32 == 0) D[i] = (float)sum;
}
/* s and d = dout·v of two own rows become P and dS. */
template <int N, bool KEYS>
PVTI_DEVICE void pvti_scores_back(float (*s)[4], float (*d)[4], const pvti_span *span, const pvti_heads &h,
                                  int64_t queries, int row, int first)
{
    for (int i = 0; i < 4 * N; i++) {
        int r = i % 4 / 2, c = first + i / 4 * 8 + (int)threadIdx.x % 4 * 2 + i % 2;
        int64_t t = queries + (KEYS ? c : row + 8 * r);
        bool sees = c >= span[r].from && c <= span[r].to;
        float p = sees ? exp2f(fmaf(h.scale, s[i / 4][i % 4], -h.lse[t]) * PVTI_LOG2E) : 0;
        s[i / 4][i % 4] = p, d[i / 4][i % 4] = sees ? p * (d[i / 4][i % 4] - h.D[t]) * h.scale : 0;
    }
}
/* Own rows are queries, dx is dq; with KEYS they are keys, dx is dk, dy dv, and a group's heads come by. */
template <class T, int DC, bool KEYS>
__global__ void __launch_bounds__(PVTI_ATTENTION_THREADS, sizeof(T) == 2 && DC == 64 ? 3 : 1)
    pvti_k_attention_back(float *dx, float *dy, pvti_heads h)
{
    enum { TILE = sizeof(T) == 2 || DC == 64 ? 32 : 8, N = TILE / 8, C = DC / 8 };
    PVT_SHARED_DYNAMIC(T, room);
    int mine = (int)threadIdx.x / 32 * 16, rows = (int)blockDim.x / 2;
    int pitch = pvti_pitch<T>(h.HS), depth = pvti_depth(h.HS), d0 = (int)blockIdx.x % h.parts * DC;
    int r0 = (int)((KEYS ? blockIdx.x : gridDim.x - 1 - blockIdx.x) / h.parts) * rows;
    int heads = KEYS ? h.other.heads / h.own.heads : 1, row = r0 + mine + (int)threadIdx.x % 32 / 4;
    int head = (int)blockIdx.y * h.other.heads / h.own.heads, NH = KEYS ? h.other.heads : h.own.heads;
    T *own_x = room, *own_y = own_x + rows * pitch, *x = own_y + rows * pitch, *y = x + TILE * pitch;
    float s[N][4], d[N][4], ax[C][4], ay[KEYS ? C : 1][4];
    pvti_span span[2], last = pvti_span_of(h, KEYS, (int)pvti_least(h.own.n, r0 + rows) - 1);
    for (int r = 0; r < 2; r++) span[r] = pvti_span_of(h, KEYS, row + 8 * r);
    for (int i = 0; i < 4 * C; i++) ax[i / 4][i % 4] = ay[KEYS ? i / 4 : 0][i % 4] = 0;
    pvti_rows_in(own_x, rows, h.own.x, h.own, (int)blockIdx.y, r0, h.HS);
    pvti_rows_in(own_y, rows, h.own.y, h.own, (int)blockIdx.y, r0, h.HS);
    for (int end = head + heads; head < end; head++) {
        int64_t one = (int64_t)blockIdx.z * NH + (KEYS ? head : (int)blockIdx.y);
        int64_t queries = one * (KEYS ? h.other.n : h.own.n);
        for (int c = pvti_span_of(h, KEYS, r0).from; c <= last.to; c += TILE) {
            pvti_rows_in(x, TILE, h.other.x, h.other, head, c, h.HS);
            pvti_rows_in(y, TILE, h.other.y, h.other, head, c, h.HS);
            __syncthreads();
            pvti_scores<N>(s, own_x + mine * pitch, x, depth, pitch);
            pvti_scores<N>(d, own_y + mine * pitch, y, depth, pitch);
            pvti_scores_back<N, KEYS>(s, d, span, h, queries, row, c);
            pvti_weigh<N, C>(ax, d, x + d0, depth - d0, pitch);
            if (KEYS) pvti_weigh<N, KEYS ? C : 1>(ay, s, y + d0, depth - d0, pitch);
            __syncthreads();
        }
    }
    pvti_rows_out<C>(dx, ax, h, row, d0, true);
    if (KEYS) pvti_rows_out<KEYS ? C : 1>(dy, ay, h, row, d0, true);
}

/* Forward, dq, dk and dv; in float and bf16; of heads up to 64 and beyond. */
typedef void (*pvti_attention_kernel)(float *, float *, pvti_heads);
static const pvti_attention_kernel pvti_attention_kernels[3][2][2] = {
    {{pvti_k_attention<float, 64>, pvti_k_attention<float, 128>},
     {pvti_k_attention<uint16_t, 64>, pvti_k_attention<uint16_t, 128>}},
    {{pvti_k_attention_back<float, 64, false>, pvti_k_attention_back<float, 128, false>},
     {pvti_k_attention_back<uint16_t, 64, false>, pvti_k_attention_back<uint16_t, 128, false>}},
    {{pvti_k_attention_back<float, 64, true>, pvti_k_attention_back<float, 128, true>},
     {pvti_k_attention_back<uint16_t, 64, true>, pvti_k_attention_back<uint16_t, 128, true>}}};

static bool pvti_heads_of(pvti_cuda *s, pvti_heads *h, const float *q, const float *k, const float *v,
                          const pvt_attention_desc *d)
{
    pvti_side queries = {q, NULL, d->T * d->NH * d->HS, (int)d->T, (int)d->NH};
    pvti_side keys = {k, v, d->kv_batch, (int)(d->pos + d->T), (int)d->NKV};
    *h = {};
    h->own = queries, h->other = keys, h->HS = (int)d->HS;
    if (!d->kv_batch) h->other.batch = (d->pos + d->T) * d->NKV * d->HS;
    h->pos = (int)d->pos, h->window = (int)pvti_least(d->window, 1 << 30), h->parts = d->HS > 128 ? 2 : 1;
    h->scale = (float)(d->scale != 0 ? d->scale : 1 / sqrt((double)d->HS));
    if (d->HS > PVTI_HEAD)
        pvti_fail_with(s, PVT_ERR_UNSUPPORTED, "heads of more than 256 numbers do not fit a GPU's tiles");
    return s->failed == PVT_OK && d->B > 0 && d->T > 0 && d->NH > 0 && d->HS > 0;
}
/* Fewer than 16 queries are not rounded to bf16, as in other products. As many warps as have rows, and as
   their tiles have room for. */
static void pvti_attend(pvti_cuda *s, int which, float *x, float *y, const pvti_heads *h, int64_t B)
{
    bool half = s->bf16 && s->tensor && (which < 2 ? h->own.n : h->other.n) >= 16, wide = h->HS > 64;
    int owned = which ? 2 : 1, tiles = 2 * (half || !wide ? 32 : 8), warps = 1;
    int bytes = half ? pvti_pitch<uint16_t>(h->HS) * 2 : pvti_pitch<float>(h->HS) * 4;
    while (warps < PVTI_ATTENTION_THREADS / 32 && 16 * warps < h->own.n &&
           bytes * (16 * owned * (warps + 1) + tiles) <= PVTI_ATTENTION_BYTES)
        warps++;
    dim3 grid((unsigned)(pvti_ceil(h->own.n, 16 * warps) * h->parts), (unsigned)h->own.heads, (unsigned)B);
    bytes *= 16 * owned * warps + tiles;
    pvti_attention_kernel attention = pvti_attention_kernels[which][half][wide];
    PVTI_RUN(s, attention, grid, 32 * warps, bytes, x, y, *h);
}
static void pvti_op_attention_forward(void *state, float *out, float *lse, const float *q, const float *k,
                                      const float *v, const pvt_attention_desc *d)
{
    PVTI_STATE;
    pvti_heads h;
    if (!pvti_heads_of(s, &h, q, k, v, d)) return;
    for (int64_t b = 0, B; b < d->B; b += B) {
        B = pvti_least(PVT_CUDA_SIDE, d->B - b);
        pvti_attend(s, 0, out, lse, &h, B);
        h.own.x += B * h.own.batch, h.other.x += B * h.other.batch, h.other.y += B * h.other.batch;
        out += B * h.own.batch, lse += lse ? B * d->NH * d->T : 0;
    }
}
/* D goes to the work space, for as many sequences at a time as it has room for. */
static void pvti_op_attention_backward(void *state, float *dq, float *dk, float *dv, const float *dout,
                                       const float *out, const float *lse, const float *q, const float *k,
                                       const float *v, const pvt_attention_desc *d)
{
    PVTI_STATE;
    pvti_heads h;
    float *D = (float *)(void *)s->room;
    int64_t each = d->NH * d->T, most, B;
    if (!pvti_heads_of(s, &h, q, k, v, d)) return;
    most = pvti_least(PVT_CUDA_SIDE, PVT_CUDA_ROOM / (int64_t)sizeof *D / each);
    if (most < 1)
        pvti_fail_with(s, PVT_ERR_UNSUPPORTED, "too long a sequence: raise PVT_CUDA_ROOM");
    h.own.y = dout, h.lse = lse, h.D = D;
    for (int64_t b = 0; b < d->B && s->failed == PVT_OK; b += B) {
        int64_t queries = b * h.own.batch, keys = b * h.other.batch, n;
        B = pvti_least(most, d->B - b), n = B * each;
        pvti_heads part = h;
        part.own.x += queries, part.own.y += queries, part.other.x += keys, part.other.y += keys;
        part.lse += b * each;
        PVTI_EACH(s, pvti_k_attention_dots, 32 * n, D, dout + queries, out + queries, n, d->T, d->NH, d->HS);
        pvti_attend(s, 1, dq + queries, NULL, &part, B);
        pvti_side own = part.own;
        part.own = part.other, part.other = own;
        pvti_attend(s, 2, dk + keys, dv + keys, &part, B);
    }
}

// >>losses
/*  A block to a row of logits. Sums are in double and lse is split in two floats, so that a likely token's
    probability keeps its digits. Limit: the bytes of the logits, which pvti_k_softmax_update reads twice. */

PVTI_DEVICE bool pvti_counts(const int32_t *targets, int64_t i) { return !targets || targets[i] >= 0; }
/* The target's place in this slice, −1: it is elsewhere. */
PVTI_DEVICE int64_t pvti_target(const int32_t *targets, int64_t i, int64_t v0, int64_t VS)
{
    int64_t v = targets ? targets[i] - v0 : -1;
    return targets && targets[i] >= 0 && v >= 0 && v < VS ? v : -1;
}
PVTI_DEVICE float pvti_log_softmax(float x, double lse)
{
    float high = (float)lse, low = (float)(lse - (double)high);
    return (x - high) - low;
}

PVTI_KERNEL pvti_k_softmax_update(pvt_softmax_row *rows, const float *logits, const int32_t *targets, int64_t,
                                  int64_t v0, int64_t VS, int64_t ld)
{
    int64_t i = blockIdx.x, target = pvti_target(targets, i, v0, VS);
    const float *x = logits + i * ld;
    float top = -INFINITY;
    if (!pvti_counts(targets, i)) return;
    pvt_softmax_row old = rows[i];
    for (int64_t v = threadIdx.x; v < VS; v += blockDim.x) top = fmaxf(top, x[v]);
    top = pvti_block_max(top);
    double max = old.sum != 0 && old.max > (double)top ? old.max : (double)top;
    double sum = pvti_block_total(max > -INFINITY ? VS : 0, /* else no probability so far */
                                  [=](int64_t v) { return expf(x[v] - (float)max); });
    if (threadIdx.x) return;
    if (max > -INFINITY) {
        rows[i].sum = (old.sum != 0 ? old.sum * exp(old.max - max) : 0) + sum;
        rows[i].max = max;
    }
    if (target >= 0) rows[i].target = (double)x[target];
}
PVTI_OP(softmax_update, PVTI_BLOCKS, pvti_k_softmax_update, PVTI_ARG(4))

PVTI_KERNEL pvti_k_softmax_finish(double *lse, double *loss, const pvt_softmax_row *rows,
                                  const int32_t *targets, int64_t n)
{
    int64_t i = PVTI_INDEX;
    if (i >= n) return;
    double value = pvti_counts(targets, i) ? rows[i].max + log(rows[i].sum) : 0;
    if (lse) lse[i] = value;
    if (loss) loss[i] = pvti_counts(targets, i) ? value - rows[i].target : 0;
}
PVTI_OP(softmax_finish, PVTI_EACH, pvti_k_softmax_finish, PVTI_ARG(1))

/* dlogits = scale·(softmax − [v = target]). */
PVTI_KERNEL pvti_k_cross_entropy_back(float *logits, const double *lse, const int32_t *targets, double by,
                                      int64_t, int64_t v0, int64_t VS, int64_t ld)
{
    int64_t i = blockIdx.x, target = pvti_target(targets, i, v0, VS);
    float scale = (float)by;
    bool counts = pvti_counts(targets, i);
    for (int64_t v = threadIdx.x; v < VS; v += blockDim.x) {
        float *x = logits + i * ld + v, d = counts ? scale * expf(pvti_log_softmax(*x, lse[i])) : 0;
        *x = v == target ? d - scale : d;
    }
}
PVTI_OP(cross_entropy_backward, PVTI_BLOCKS, pvti_k_cross_entropy_back, PVTI_ARG(4))

/* loss += Σ p·(log p − log q), p the teacher. */
PVTI_KERNEL pvti_k_kl(double *loss, const float *student, const double *student_lse, const float *teacher,
                      const double *teacher_lse, const int32_t *targets, int64_t, int64_t VS, int64_t ld)
{
    int64_t i = blockIdx.x;
    if (!pvti_counts(targets, i)) return;
    double sum = pvti_block_total(VS, [=](int64_t v) {
        float log_p = pvti_log_softmax(teacher[i * ld + v], teacher_lse[i]), p = expf(log_p);
        float ratio = log_p - pvti_log_softmax(student[i * ld + v], student_lse[i]);
        return p > 0 || p != p ? p * ratio : 0; /* 0·log 0 = 0 */
    });
    if (threadIdx.x == 0) loss[i] += sum;
}
PVTI_OP(kl_forward, PVTI_BLOCKS, pvti_k_kl, PVTI_ARG(3))
/* dlogits = scale·(q − p). */
PVTI_KERNEL pvti_k_kl_back(float *student, const double *student_lse, const float *teacher,
                           const double *teacher_lse, const int32_t *targets, double scale, int64_t,
                           int64_t VS, int64_t ld)
{
    int64_t i = blockIdx.x;
    bool counts = pvti_counts(targets, i);
    for (int64_t v = threadIdx.x; v < VS; v += blockDim.x) {
        float *x = student + i * ld + v, p = expf(pvti_log_softmax(teacher[i * ld + v], teacher_lse[i]));
        *x = counts ? (float)scale * (expf(pvti_log_softmax(*x, student_lse[i])) - p) : 0;
    }
}
PVTI_OP(kl_backward, PVTI_BLOCKS, pvti_k_kl_back, PVTI_ARG(3))

/* ---- sums of long arrays: 8,192 numbers to a block, then one block in order ---- */

enum { PVTI_CHUNK = 8192 };
PVTI_KERNEL pvti_k_distance(double *parts, const float *a, const float *b, int64_t n)
{
    int64_t from = (int64_t)blockIdx.x * PVTI_CHUNK, end = pvti_least(n, from + PVTI_CHUNK);
    a += from, b += from;
    double sum = pvti_block_total(end - from, [=](int64_t i) { return (a[i] - b[i]) * (a[i] - b[i]); });
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}
PVTI_KERNEL pvti_k_total(double *out, const double *x, int64_t n)
{
    double sum = pvti_block_total(n, [=](int64_t i) { return x[i]; });
    if (threadIdx.x == 0) *out = sum;
}
static double pvti_op_mse_forward(void *state, const float *a, const float *b, int64_t n)
{
    PVTI_STATE;
    double *parts = (double *)(void *)s->room, sum = 0;
    int64_t blocks = pvti_ceil(n, PVTI_CHUNK);
    if ((blocks + 1) * (int64_t)sizeof sum > PVT_CUDA_ROOM)
        pvti_fail_with(s, PVT_ERR_UNSUPPORTED, "too many numbers to compare: raise PVT_CUDA_ROOM");
    PVTI_BLOCKS(s, pvti_k_distance, blocks, parts + 1, a, b, n);
    PVTI_BLOCKS(s, pvti_k_total, 1, parts, parts + 1, blocks);
    pvti_op_copy_out(s, &sum, parts, (int64_t)sizeof sum);
    return n > 0 && s->failed == PVT_OK ? sum / (double)n : 0;
}
PVTI_KERNEL pvti_k_mse_back(float *da, const float *a, const float *b, float k, int64_t n)
{
    if (PVTI_INDEX < n) da[PVTI_INDEX] = fmaf(k, a[PVTI_INDEX] - b[PVTI_INDEX], da[PVTI_INDEX]);
}
static void pvti_op_mse_backward(void *state, float *da, const float *a, const float *b, double scale,
                                 int64_t n)
{
    PVTI_STATE;
    PVTI_EACH(s, pvti_k_mse_back, n, da, a, b, (float)(scale * 2 / (double)n), n);
}

/* ---- numbers of fp16, and whether all are finite ---- */

/* *bad: the first i with |from[i]| not below `most`, all ones: none. atomicMin of integers has no order. */
PVTI_KERNEL pvti_k_round(unsigned long long *bad, uint16_t *half, float *real, const float *from, int64_t n,
                         float most)
{
    int64_t i = PVTI_INDEX;
    if (i >= n) return;
    float x = from[i];
    unsigned bits = pvti_to_f16(x);
    if (!(fabsf(x) < most)) atomicMin(bad, (unsigned long long)i);
    if (half) half[i] = (uint16_t)bits;
    if (real) real[i] = pvti_from_f16(bits);
}
static int64_t pvti_round(pvti_cuda *s, uint16_t *half, float *real, const float *from, int64_t n, float most)
{
    int64_t bad = -1;
    if (s->failed == PVT_OK)
        pvti_check(s, cudaMemsetAsync(s->room, 0xff, sizeof bad, s->stream), "setting memory");
    PVTI_EACH(s, pvti_k_round, n, (unsigned long long *)(void *)s->room, half, real, from, n, most);
    if (n > 0) pvti_op_copy_out(s, &bad, s->room, (int64_t)sizeof bad);
    return s->failed == PVT_OK ? bad : -1;
}
static int64_t pvti_op_round_f16(void *state, uint16_t *half, float *real, const float *from, int64_t n)
{
    return pvti_round(pvti_here(state), half, real, from, n, 65520);
}
static bool pvti_op_finite(void *state, const float *g, int64_t n, double *)
{
    return pvti_round(pvti_here(state), NULL, NULL, g, n, INFINITY) < 0;
}
PVTI_KERNEL pvti_k_widen(float *out, const uint16_t *half, int64_t n)
{
    if (PVTI_INDEX < n) out[PVTI_INDEX] = pvti_from_f16(half[PVTI_INDEX]);
}
PVTI_OP(widen_f16, PVTI_EACH, pvti_k_widen, PVTI_ARG(1))

// >>sort
/*  Pairs key·2³² + index in ascending order of eight bits of the key after eight: stable, so the whole order
    is that of (key, index), and the same in every run. A block has 4,096 pairs, each of its warps 512 in a
    row, of which it counts the digits; its places for them begin behind those of earlier blocks and warps.
    Limit: the pairs' bytes three times a pass; a shared addition a pair in count, two and a match in move. */

enum { PVTI_SORTED = 4096, PVTI_SORT_WARPS = PVTI_THREADS / 32, PVTI_WARP_SORTED = 4096 / PVTI_SORT_WARPS };
typedef unsigned pvti_digits[PVTI_SORT_WARPS][256];

/* The k-th key of a selection as far as it is known, and how many of those that agree with it are wanted. */
typedef struct pvti_threshold {
    unsigned key, left;
} pvti_threshold;
/* Bits of the key; or, with a threshold, 0: before it, 1: equal, 2: behind. */
PVTI_DEVICE int pvti_digit(uint64_t pair, int shift, const pvti_threshold *last)
{
    unsigned key = (unsigned)(pair >> 32);
    return last ? (key >= last->key) + (key > last->key) : (int)(key >> shift & 255);
}
/* How many digits a block counts. */
PVTI_BOTH int pvti_digit_count(const pvti_threshold *last) { return last ? 3 : 256; }
/* The block's digits, by warps. */
PVTI_DEVICE void pvti_count_digits(pvti_digits &room, const uint64_t *pairs, int64_t n, int shift,
                                   const pvti_threshold *last)
{
    int64_t from = (int64_t)blockIdx.x * PVTI_SORTED;
    int t = (int)threadIdx.x, warp = t / 32;
    for (int w = 0; w < PVTI_SORT_WARPS; w++) room[w][t] = 0;
    __syncthreads();
    for (int i = warp * PVTI_WARP_SORTED + t % 32; i < (warp + 1) * PVTI_WARP_SORTED && from + i < n; i += 32)
        atomicAdd(&room[warp][pvti_digit(pairs[from + i], shift, last)], 1u);
    __syncthreads();
}
PVTI_KERNEL pvti_k_count(unsigned *counts, const uint64_t *pairs, int64_t n, int shift,
                         const pvti_threshold *last)
{
    PVT_SHARED(pvti_digits, room);
    int digits = pvti_digit_count(last);
    unsigned count = 0;
    pvti_count_digits(room, pairs, n, shift, last);
    for (int w = 0; w < PVTI_SORT_WARPS; w++) count += room[w][threadIdx.x];
    if ((int)threadIdx.x < digits) counts[(int64_t)blockIdx.x * digits + threadIdx.x] = count;
}
/* Counts become places: digit after digit, and of one digit block after block, which four threads share. */
__global__ void __launch_bounds__(1024) pvti_k_places(unsigned *counts, int64_t blocks, int digits)
{
    int64_t per = (int)threadIdx.x / 4 < digits ? pvti_ceil(blocks, 4) : 0, from = threadIdx.x % 4 * per;
    int64_t end = pvti_least(blocks, from + per);
    uint64_t at = 0, all;
    counts += threadIdx.x / 4;
    for (int64_t b = from; b < end; b++) at += counts[b * digits];
    at = pvti_block_before(at, &all);
    for (int64_t b = from; b < end; b += 8) { /* reads do not wait for writes */
        unsigned n[8];
        for (int i = 0; i < 8; i++) n[i] = b + i < end ? counts[(b + i) * digits] : 0;
        for (int i = 0; i < 8; i++) {
            if (b + i < end) counts[(b + i) * digits] = (unsigned)at;
            at += n[i];
        }
    }
}
PVTI_KERNEL pvti_k_move(uint64_t *out, const uint64_t *pairs, int64_t n, int shift,
                        const pvti_threshold *last, const unsigned *places)
{
    PVT_SHARED(pvti_digits, room);
    int t = (int)threadIdx.x, lane = t % 32, digits = pvti_digit_count(last);
    unsigned *of = room[t / 32], at = t < digits ? places[(int64_t)blockIdx.x * digits + t] : 0;
    pvti_count_digits(room, pairs, n, shift, last);
    for (int w = 0; w < PVTI_SORT_WARPS; w++) {
        unsigned count = room[w][t];
        room[w][t] = at;
        at += count;
    }
    __syncthreads();
    for (int k = 0; k < PVTI_WARP_SORTED; k += 32) { /* lanes with the same digit go one behind the other */
        int64_t i = (int64_t)blockIdx.x * PVTI_SORTED + t / 32 * PVTI_WARP_SORTED + k + lane;
        uint64_t pair = i < n ? pairs[i] : 0;
        int digit = i < n ? pvti_digit(pair, shift, last) : -1;
        unsigned same = __match_any_sync(0xffffffffu, digit);
        unsigned before = (unsigned)__popc(same & ((1u << lane) - 1));
        unsigned first = before == 0 && digit >= 0 ? atomicAdd(&of[digit], (unsigned)__popc(same)) : 0;
        first = __shfl_sync(0xffffffffu, first, __ffs((int)same) - 1);
        if (digit >= 0) out[first + before] = pair;
    }
}
/* One pass. Counts lie behind what a selection has in the work space. */
enum { PVTI_SELECTING = 16 << 10 };
/* Whether a pass has room for n pairs and their 32 bits for an index; else the error. */
static bool pvti_sortable(pvti_cuda *s, int64_t n, const pvti_threshold *last)
{
    int64_t bytes = pvti_digit_count(last) * (int64_t)sizeof(unsigned);
    if (n > (int64_t)UINT32_MAX)
        pvti_fail_with(s, PVT_ERR_UNSUPPORTED, "a weight of 2^32 groups or more: use larger groups");
    else if (pvti_ceil(n, PVTI_SORTED) > (PVT_CUDA_ROOM - PVTI_SELECTING) / bytes)
        pvti_fail_with(s, PVT_ERR_UNSUPPORTED, "too many groups to sort: raise PVT_CUDA_ROOM");
    return s->failed == PVT_OK;
}
static void pvti_sort_pass(pvti_cuda *s, uint64_t *to, const uint64_t *from, int64_t n, int shift,
                           const pvti_threshold *last)
{
    int64_t blocks = pvti_ceil(n, PVTI_SORTED);
    unsigned *counts = (unsigned *)(void *)(s->room + PVTI_SELECTING);
    if (!pvti_sortable(s, n, last)) return;
    PVTI_BLOCKS(s, pvti_k_count, blocks, counts, from, n, shift, last);
    PVTI_RUN(s, pvti_k_places, blocks > 0, 1024, 0, counts, blocks, pvti_digit_count(last));
    PVTI_BLOCKS(s, pvti_k_move, blocks, to, from, n, shift, last, counts);
}
/* Sorts n pairs by the lowest `bits` of their keys, between a and b; where they are then. */
static uint64_t *pvti_sort_pairs(pvti_cuda *s, uint64_t *a, uint64_t *b, int64_t n, int bits)
{
    for (int shift = 0; shift < bits; shift += 8, std::swap(a, b)) pvti_sort_pass(s, b, a, n, shift, NULL);
    return a;
}

// >>gradients of values
/*  dscale = Σ dW·factor·entry over the block that shares a scale, dzero = −scale·Σ dW: a warp to each.
    Codebooks: groups are sorted by code, and of each entry a block adds s·dW over its groups, in order.
    Limit: the bytes of dW, once for scales and once for each codebook. */

PVTI_KERNEL pvti_k_scales(float *dscales, float *dzeros, pvti_view w, const float *dW)
{
    int64_t i = PVTI_INDEX / 32, c0 = i % w.blocks * w.block, r0 = i / w.blocks * w.gog;
    int64_t width = pvti_least(w.block, w.I - c0), n = width * w.gog;
    double along = 0, total = 0;
    if (i >= w.O / w.gog * w.blocks) return; /* the whole warp */
    for (int64_t k = threadIdx.x % 32; k < n; k += 32) {
        int64_t row = r0 + k / width, col = c0 + k % width;
        double g = (double)dW[row * w.I + col];
        along += g * (double)pvti_factor(w, row, col) * (double)pvti_entry(w, row, col);
        total += g;
    }
    along = pvti_warp_sum(along);
    if (dzeros) total = pvti_warp_sum(total);
    if (threadIdx.x % 32) return;
    dscales[i] += (float)along;
    if (dzeros) dzeros[i] += (float)(-(double)w.scales[i] * total);
}

PVTI_KERNEL pvti_k_code_pairs(uint64_t *pairs, pvti_view w, int m)
{
    int64_t g = PVTI_INDEX;
    if (g < w.groups) pairs[g] = (uint64_t)pvti_code(w, g * w.M + m) << 32 | (uint64_t)g;
}
/* The first pair whose key is not below `key`. */
PVTI_DEVICE int64_t pvti_lower(const uint64_t *pairs, int64_t n, uint64_t key)
{
    int64_t low = 0;
    while (low < n) {
        int64_t middle = (low + n) / 2;
        if (pairs[middle] >> 32 < key) low = middle + 1;
        else n = middle;
    }
    return low;
}
typedef float pvti_entry_room[PVTI_THREADS];
/* Entry k: thread (part, d) adds number d of every so-many-th group, then parts are added in order. */
PVTI_KERNEL pvti_k_codebook(float *dbook, pvti_view w, const float *dW, const uint64_t *pairs)
{
    PVT_SHARED(pvti_entry_room, room);
    int64_t from = pvti_lower(pairs, w.groups, blockIdx.x);
    int64_t to = pvti_lower(pairs, w.groups, (uint64_t)blockIdx.x + 1);
    int D = w.gog * w.gig, parts = PVTI_THREADS / D, d = (int)threadIdx.x % D, part = (int)threadIdx.x / D;
    float sum = 0;
    for (int64_t i = from + part; part < parts && i < to; i += parts) {
        int64_t g = (int64_t)(pairs[i] & 0xffffffffu), go = g / w.GI;
        sum = fmaf(w.scales[go], dW[(go * w.gog + d / w.gig) * w.I + g % w.GI * w.gig + d % w.gig], sum);
    }
    room[threadIdx.x] = sum;
    __syncthreads();
    if (part) return;
    for (int p = 1; p < parts; p++) sum += room[p * D + d];
    dbook[(int64_t)blockIdx.x * D + d] += sum;
}

/* Room to sort so many codes; false: there is none. */
static bool pvti_pairs_room(pvti_cuda *s, int64_t n)
{
    if (n <= s->room_pairs) return true;
    for (int i = 0; i < 2; i++) {
        pvti_give(s, s->pairs[i]);
        s->pairs[i] = (uint64_t *)pvti_take(s, n * (int64_t)sizeof *s->pairs[i]);
    }
    s->room_pairs = s->pairs[0] && s->pairs[1] ? n : 0;
    return s->room_pairs > 0;
}
static bool pvti_op_reserve(void *state, const pvt_weight *weight, int beam)
{
    PVTI_STATE;
    pvti_view w;
    (void)beam;
    return pvti_see(s, weight, &w) && (w.kind != PVTI_AQLM || pvti_pairs_room(s, w.groups));
}
static void pvti_op_weight_chain(void *state, float *const *dvalues, const pvt_weight *weight,
                                 const float *dW)
{
    PVTI_WEIGHT(w, weight);
    if (w.kind == PVTI_DENSE) return;
    bool books = w.kind == PVTI_AQLM;
    float *dzeros = w.kind == PVTI_INT ? dvalues[2] : NULL;
    PVTI_EACH(s, pvti_k_scales, w.O / w.gog * w.blocks * 32, dvalues[books ? 2 : 1], dzeros, w, dW);
    if (books && !pvti_pairs_room(s, w.groups)) /* of a weight that was never reserved for */
        pvti_fail_with(s, PVT_ERR_MEMORY, "no memory to sort codes");
    for (int m = 0; books && m < w.M; m++) {
        PVTI_EACH(s, pvti_k_code_pairs, w.groups, s->pairs[0], w, m);
        const uint64_t *sorted = pvti_sort_pairs(s, s->pairs[0], s->pairs[1], w.groups, w.wide ? 16 : 8);
        PVTI_BLOCKS(s, pvti_k_codebook, w.K, dvalues[1] + (int64_t)m * w.K * w.gog * w.gig, w, dW, sorted);
    }
}

/* ---- surrogates of rounding: see section surrogates of pvtune.h ---- */

typedef struct pvti_bend {
    int surrogate;
    double temperature, sharpness; /* sharpness: of the clamp, not above 0: hard */
} pvti_bend;

PVTI_DEVICE double pvti_gate(double x) { return 1 / (1 + exp(fmin(fmax(-x, -700.0), 700.0))); }
/* ρ at c. */
PVTI_DEVICE double pvti_rounding_slope(const pvti_bend &b, double c)
{
    double r = c - (double)(int64_t)c + (c < 0), apart = fabs(2 * r - 1), gate;
    switch (b.surrogate) {
    case PVT_SURROGATE_SIGMOID:
        gate = pvti_gate(b.temperature * (r - 0.5));
        return b.temperature * gate * (1 - gate);
    case PVT_SURROGATE_ROOT: return apart > 0.01 ? fmin(3.0, 0.2 * pow(apart, -0.8)) : 3;
    default: return 1;
    }
}
/* f = ρ·κ at u, for codes 0 … n. */
PVTI_DEVICE double pvti_surrogate_slope(const pvti_bend &b, double u, double n)
{
    double beyond = b.surrogate == PVT_SURROGATE_IDENTITY ? 0.5 : 0;
    if (!(b.sharpness > 0)) return u >= -beyond && u <= n + beyond ? pvti_rounding_slope(b, u) : 0;
    if (!(fabs(u) < 1e6)) return 0;
    double low = pvti_gate(b.sharpness * u), high = pvti_gate(b.sharpness * (n - u));
    double dlow = b.sharpness * low * (1 - low), dhigh = b.sharpness * high * (1 - high);
    double kappa = low * high + dlow * u * high + dhigh * (n - u * low);
    return kappa * pvti_rounding_slope(b, u * low * high + n * (1 - high));
}
/* A warp to a group: dT = G·f, ds += Σ G·((q − z) − f·T/s), dz += s·Σ G·(f − 1). Limit: the bytes of T, dW
   and dT. */
__global__ void __launch_bounds__(PVTI_THREADS, 1)
    pvti_k_surrogate(float *dscales, float *dzeros, float *dT, pvti_view w, const float *T,
                     const float *dW, pvti_bend b)
{
    int64_t g = PVTI_INDEX / 32;
    double along = 0, across = 0;
    if (g >= w.O * w.blocks) return; /* the whole warp */
    double s = (double)w.scales[g], z = w.kind == PVTI_INT ? (double)w.extra[g] : (double)w.origin;
    for (int64_t k = g * w.ig + threadIdx.x % 32; k < (g + 1) * w.ig; k += 32) {
        double G = (double)dW[k], units = s != 0 ? (double)T[k] / s : 0;
        double f = s != 0 ? pvti_surrogate_slope(b, units + z, (double)(w.K - 1)) : 0;
        dT[k] = (float)(G * f);
        along += G * ((double)pvti_code(w, k) - z - (f != 0 ? f * units : 0));
        across += G * (f - 1);
    }
    along = pvti_warp_sum(along), across = pvti_warp_sum(across);
    if (threadIdx.x % 32) return;
    if (dscales) dscales[g] += (float)along;
    if (dzeros) dzeros[g] += (float)(s * across);
}
static void pvti_op_weight_surrogate(void *state, float *const *dvalues, float *dT, const pvt_weight *weight,
                                     const float *T, const float *dW, const pvt_pv_desc *desc)
{
    PVTI_WEIGHT(w, weight);
    pvti_bend b = {desc->surrogate, desc->surrogate_temperature, desc->clamp_sharpness};
    PVTI_EACH(s, pvti_k_surrogate, w.O * w.blocks * 32, dvalues[1], w.kind == PVTI_INT ? dvalues[2] : NULL, dT,
              w, T, dW, b);
}

// >>optimizer
/*  Adam and LAMB; formulas: section optimizer of pvtune.h. A block to 8,192 numbers; LAMB's rate stays on
    the GPU. Limit: the bytes of w, g and moments, read and written; LAMB reads twice. */

typedef struct pvti_adam {
    pvt_adam a;
    const float *g;
    double *sums;  /* [chunks, 2]: ‖w‖², ‖u‖² */
    double rate;   /* lr · debias */
    const float *lamb_rate; /* the second pass' */
    float beta1, rest1, beta2, rest2, eps, decay, keep;
    bool lamb;
} pvti_adam;

PVTI_DEVICE float pvti_second_moment(const pvt_adam &a, int64_t i)
{
    return a.v_bf16 ? pvti_from_bf16(((const uint16_t *)a.v)[i]) : ((const float *)a.v)[i];
}
/* Moments of number i one step on; the second as it is held, or the largest so far. */
PVTI_DEVICE float pvti_moments(const pvti_adam &s, int64_t i, bool step, float *m)
{
    float g = s.g[i], v = pvti_second_moment(s.a, i);
    *m = s.a.m ? s.a.m[i] : g;
    if (step) {
        if (s.a.m) s.a.m[i] = *m = fmaf(s.beta1, *m, s.rest1 * g);
        v = fmaf(s.beta2, v, s.rest2 * g * g);
        if (s.a.v_bf16) ((uint16_t *)s.a.v)[i] = (uint16_t)pvti_to_bf16(v), v = pvti_second_moment(s.a, i);
        else ((float *)s.a.v)[i] = v;
        if (s.a.v_max) s.a.v_max[i] = fmaxf(s.a.v_max[i], v);
    }
    return s.a.v_max ? s.a.v_max[i] : v;
}
PVTI_KERNEL pvti_k_adam(pvti_adam s)
{
    int64_t from = (int64_t)blockIdx.x * PVTI_CHUNK, end = pvti_least(s.a.n, from + PVTI_CHUNK);
    bool second = s.lamb_rate != NULL;
    float rate = second ? *s.lamb_rate : (float)s.rate;
    double ww = 0, uu = 0;
    for (int64_t i = from + threadIdx.x; i < end; i += PVTI_THREADS) {
        float m, v = pvti_moments(s, i, !second, &m), w = s.a.w[i];
        float u = fmaf(s.lamb ? s.decay : 0, w, m / (sqrtf(v) + s.eps));
        if (s.lamb && !second) ww += (double)(w * w), uu += (double)(u * u);
        else s.a.w[i] = fmaf(-rate, u, s.keep * w);
    }
    if (!s.lamb || second) return;
    ww = pvti_block_sum(ww), uu = pvti_block_sum(uu);
    if (threadIdx.x == 0) s.sums[2 * blockIdx.x] = ww, s.sums[2 * blockIdx.x + 1] = uu;
}
/* rate · ‖w‖/‖u‖. */
PVTI_KERNEL pvti_k_lamb_rate(float *out, const double *sums, int64_t chunks, double rate)
{
    double w = pvti_block_total(chunks, [=](int64_t i) { return sums[2 * i]; });
    double u = pvti_block_total(chunks, [=](int64_t i) { return sums[2 * i + 1]; });
    if (threadIdx.x == 0) *out = (float)(rate * (w > 0 && u > 0 ? sqrt(w) / sqrt(u) : 1));
}
static void pvti_op_adam(void *state, const pvt_adam *a, const float *g, const pvt_optimizer *o,
                         double lr_scale, int64_t t, double *sums)
{
    PVTI_STATE;
    pvti_adam d = {};
    double lr = o->lr * lr_scale, power1 = 1, power2 = 1;
    int64_t chunks = pvti_ceil(a->n, PVTI_CHUNK);
    for (int64_t i = 0; i < t; i++) power1 *= o->beta1, power2 *= o->beta2;
    d.a = *a, d.g = g, d.sums = sums, d.lamb = o->rule == PVT_OPTIMIZER_LAMB;
    d.beta1 = (float)o->beta1, d.rest1 = (float)(1 - o->beta1);
    d.beta2 = (float)o->beta2, d.rest2 = (float)(1 - o->beta2);
    d.eps = (float)o->eps, d.decay = (float)o->weight_decay;
    d.rate = lr * (o->no_debias ? 1 : sqrt(1 - power2) / (1 - power1));
    d.keep = d.lamb ? 1 : (float)(1 - lr * o->weight_decay);
    PVTI_BLOCKS(s, pvti_k_adam, chunks, d);
    if (!d.lamb || chunks == 0) return;
    PVTI_BLOCKS(s, pvti_k_lamb_rate, 1, (float *)(void *)s->room, sums, chunks, d.rate);
    d.lamb_rate = (const float *)(void *)s->room;
    PVTI_BLOCKS(s, pvti_k_adam, chunks, d);
}

// >>groups
/*  Which groups, and what becomes of them; the contracts stand in pvtune.h at group_errors … group_return. */

/* The weights of a group, in the order of a codebook entry. */
PVTI_DEVICE int64_t pvti_group_at(const pvti_view &w, int64_t group, int k)
{
    return (group / w.GI * w.gog + k / w.gig) * w.I + group % w.GI * w.gig + k % w.gig;
}
PVTI_DEVICE float pvti_group_number(const pvti_view &w, int64_t at)
{
    return pvti_number(w, at / w.I, at % w.I);
}

PVTI_KERNEL pvti_k_keys(float *keys, pvti_view w, const float *target)
{
    int64_t g = PVTI_INDEX;
    float sum = 0;
    if (g >= w.groups) return;
    for (int k = 0; k < w.gog * w.gig; k++) {
        int64_t at = pvti_group_at(w, g, k);
        float d = target[at] - pvti_group_number(w, at);
        sum = fmaf(d, d, sum);
    }
    keys[g] = sum;
}
/* ‖Ŵ‖² of a row of groups, a block to each. */
__global__ void __launch_bounds__(PVTI_THREADS, 1)
    pvti_k_row_norms(double *norms, pvti_view w)
{
    int64_t n = w.gog * w.I, from = (int64_t)blockIdx.x * n;
    double sum = pvti_block_total(n, [&](int64_t k) {
        float x = pvti_group_number(w, from + k);
        return x * x;
    });
    if (threadIdx.x == 0) norms[blockIdx.x] = sum;
}
static void pvti_op_group_errors(void *state, float *keys, double *norms, const pvt_weight *weight,
                                 const float *target)
{
    PVTI_WEIGHT(w, weight);
    PVTI_EACH(s, pvti_k_keys, w.groups, keys, w, target);
    PVTI_BLOCKS(s, pvti_k_row_norms, w.O / w.gog, norms, w);
}

PVTI_KERNEL pvti_k_moment_keys(float *keys, pvti_view w, const float *target, pvt_adam a, bool root)
{
    int64_t g = PVTI_INDEX;
    double sum = 0;
    if (g >= w.groups) return;
    for (int k = 0; k < w.gog * w.gig; k++) {
        int64_t at = pvti_group_at(w, g, k);
        double d = (double)target[at] - (double)pvti_group_number(w, at);
        double u = (double)(a.v_max ? a.v_max[at] : pvti_second_moment(a, at));
        sum += (root ? sqrt(u) : u) * d * d;
    }
    sum *= 18446744073709551616.0;
    keys[g] = (float)(sum < (double)FLT_MAX ? sum : (double)FLT_MAX);
}
static void pvti_op_group_moments(void *state, float *keys, const pvt_weight *weight, const float *target,
                                  const pvt_adam *moments, bool root)
{
    PVTI_WEIGHT(w, weight);
    PVTI_EACH(s, pvti_k_moment_keys, w.groups, keys, w, target, *moments, root);
}

PVTI_KERNEL pvti_k_noise(float *keys, int64_t n, double temperature, uint64_t stream)
{
    int64_t i = PVTI_INDEX;
    if (i >= n) return;
    double u = pvti_unit_of(pvti_mix(stream ^ (uint64_t)i));
    double noise = -log(-log(u * 0.999999 + 5e-7));
    keys[i] = keys[i] > 0 ? (float)(0.5 / temperature * log((double)keys[i]) + noise) : -FLT_MAX;
}
PVTI_OP(group_noise, PVTI_EACH, pvti_k_noise, PVTI_ARG(3))

/* ---- the largest k: 11, 11 and 10 bits of the k-th key by counting, then what is before it, sorted ---- */

enum { PVTI_BINS = 2048 };
typedef unsigned pvti_bins[PVTI_BINS];

/* bins[d] += how many keys that begin as the threshold does go on with d. Limit: the keys' bytes. */
PVTI_KERNEL pvti_k_bins(unsigned *bins, const float *keys, int64_t n, const pvti_threshold *last,
                        int shift, int bits)
{
    PVT_SHARED(pvti_bins, room);
    int64_t from = (int64_t)blockIdx.x * PVTI_CHUNK, end = pvti_least(n, from + PVTI_CHUNK);
    for (int d = (int)threadIdx.x; d < PVTI_BINS; d += PVTI_THREADS) room[d] = 0;
    __syncthreads();
    for (int64_t i = from + threadIdx.x; i < end; i += PVTI_THREADS) {
        uint64_t key = pvti_turned(keys[i]);
        if (key >> (shift + bits) == (uint64_t)last->key >> (shift + bits))
            atomicAdd(&room[key >> shift & ((1u << bits) - 1)], 1u);
    }
    __syncthreads();
    for (int d = (int)threadIdx.x; d < PVTI_BINS; d += PVTI_THREADS)
        if (room[d]) atomicAdd(&bins[d], room[d]); /* counts: no order */
}
/* The bin that holds the k-th of the keys; bins are zero again. */
PVTI_KERNEL pvti_k_pick(unsigned *bins, pvti_threshold *threshold, int64_t k, int shift)
{
    enum { OWN = PVTI_BINS / PVTI_THREADS };
    uint64_t left = k > 0 ? (uint64_t)k : threshold->left, all, own = 0, before;
    bins += threadIdx.x * OWN;
    for (int i = 0; i < OWN; i++) own += bins[i];
    before = pvti_block_before(own, &all);
    if (before < left && left <= before + own) { /* one thread */
        unsigned bin = 0;
        while (before + bins[bin] < left) before += bins[bin++];
        threshold->key |= (threadIdx.x * OWN + bin) << shift;
        threshold->left = (unsigned)(left - before);
    }
    for (int i = 0; i < OWN; i++) bins[i] = 0;
}
PVTI_KERNEL pvti_k_key_pairs(uint64_t *pairs, const float *keys, int64_t n)
{
    int64_t i = PVTI_INDEX;
    if (i < n) pairs[i] = (uint64_t)pvti_turned(keys[i]) << 32 | (uint64_t)i;
}
PVTI_KERNEL pvti_k_selected(int64_t *selected, const uint64_t *pairs, int64_t k)
{
    if (PVTI_INDEX < k) selected[PVTI_INDEX] = (int64_t)(pairs[PVTI_INDEX] & 0xffffffffu);
}
/* The threshold parts the pairs in a pass of the sort, ties in order of indices: the first k are meant. */
static void pvti_op_group_select(void *state, int64_t *selected, const float *keys, int64_t groups, int64_t k,
                                 uint64_t *work, uint64_t *more_work)
{
    static const int shifts[3] = {21, 10, 0};
    PVTI_STATE;
    unsigned *bins = (unsigned *)(void *)s->room;
    pvti_threshold *last = (pvti_threshold *)(void *)(bins + PVTI_BINS);
    static_assert(PVTI_BINS * sizeof *bins + sizeof *last <= PVTI_SELECTING, "the work space of a selection");
    if (k < 1 || !pvti_sortable(s, groups, last) || !pvti_sortable(s, k, NULL)) return;
    pvti_op_zero(s, bins, PVTI_SELECTING);
    for (int i = 0; i < 3; i++) {
        int64_t chunks = pvti_ceil(groups, PVTI_CHUNK);
        PVTI_BLOCKS(s, pvti_k_bins, chunks, bins, keys, groups, last, shifts[i], i < 2 ? 11 : 10);
        PVTI_BLOCKS(s, pvti_k_pick, 1, bins, last, i ? (int64_t)0 : k, shifts[i]);
    }
    PVTI_EACH(s, pvti_k_key_pairs, groups, work, keys, groups);
    pvti_sort_pass(s, more_work, work, groups, 0, last);
    const uint64_t *sorted = pvti_sort_pairs(s, more_work, work, k, 32);
    PVTI_EACH(s, pvti_k_selected, k, selected, sorted, k);
}

/* How many of n groups may change: one, and one more for each i with Σ_{j≤i} change < trust²·Σ norms. A
   thread adds eight changes in a row. Limit: one block: 2,048 changes a round of some 0.5 µs. */
PVTI_KERNEL pvti_k_accept(int64_t *accepted, const float *change, int64_t n, const double *norms,
                          int64_t rows, double trust)
{
    double carry = 0, count = 0, all, norm = pvti_block_total(rows, [=](int64_t i) { return norms[i]; });
    for (int64_t i = threadIdx.x * 8; i - threadIdx.x * 8 < n; i += 8 * PVTI_THREADS) {
        double own[8], sum = 0;
        for (int k = 0; k < 8; k++) own[k] = i + k < n ? (double)change[i + k] : 0, sum += own[k];
        double moved = carry + pvti_block_before(sum, &all);
        for (int k = 0; k < 8; k++) moved += own[k], count += i + k < n && moved < trust * trust * norm;
        carry += all;
    }
    count = pvti_block_sum(count);
    if (threadIdx.x == 0) *accepted = pvti_least((int64_t)count + 1, n);
}
PVTI_KERNEL pvti_k_commit(pvti_view w, pvt_assign a, const int64_t *accepted, unsigned long long *changed)
{
    int64_t i = PVTI_INDEX;
    bool differs = false;
    if (i >= (accepted ? *accepted : a.n)) return;
    int64_t group = a.groups ? a.groups[i] : i;
    for (int m = 0; m < w.M; m++) {
        int64_t at = group * w.M + m;
        int code = a.codes[i * w.M + m];
        differs = differs || pvti_code(w, at) != code;
        if (w.wide) ((uint16_t *)w.codes)[at] = (uint16_t)code;
        else ((uint8_t *)w.codes)[at] = (uint8_t)code;
    }
    if (differs) atomicAdd(changed, 1ull); /* a count: no order */
}
static void pvti_op_weight_commit(void *state, pvt_weight *weight, const pvt_assign *a, const double *norms,
                                  double trust, int64_t *changed)
{
    PVTI_WEIGHT(w, weight);
    int64_t *accepted = trust > 0 ? (int64_t *)(void *)s->room : NULL;
    if (accepted) PVTI_BLOCKS(s, pvti_k_accept, 1, accepted, a->change, a->n, norms, w.O / w.gog, trust);
    PVTI_EACH(s, pvti_k_commit, a->n, w, *a, accepted, (unsigned long long *)(void *)changed);
}

__global__ void __launch_bounds__(PVTI_THREADS, 1)
    pvti_k_return(float *target, pvti_view w, pvt_assign a, const double *norm, double wind)
{
    int64_t i = PVTI_INDEX;
    double sum = 0, radius = wind > 0 ? wind * sqrt(*norm / (double)w.groups) : 0;
    if (i >= a.n) return;
    int64_t group = a.groups ? a.groups[i] : i;
    for (int m = 0; a.codes && m < w.M; m++)
        if (pvti_code(w, group * w.M + m) != a.codes[i * w.M + m]) return;
    for (int k = 0; k < w.gog * w.gig; k++) {
        int64_t at = pvti_group_at(w, group, k);
        double d = (double)target[at] - (double)pvti_group_number(w, at);
        sum += d * d;
    }
    if (sum <= radius * radius) return;
    for (int k = 0; k < w.gog * w.gig; k++) {
        int64_t at = pvti_group_at(w, group, k);
        double x = (double)pvti_group_number(w, at);
        target[at] = (float)(x + radius / sqrt(sum) * ((double)target[at] - x));
    }
}
static void pvti_op_group_return(void *state, float *target, const pvt_weight *weight, const pvt_assign *a,
                                 const double *norms, double wind)
{
    PVTI_WEIGHT(w, weight);
    double *norm = (double *)(void *)s->room;
    if (wind > 0) PVTI_BLOCKS(s, pvti_k_total, 1, norm, norms, w.O / w.gog);
    PVTI_EACH(s, pvti_k_return, a->n, target, w, *a, norm, wind);
}

// >>search
/*  Codes nearest to a target: for numbers and points of a fixed grid a thread to a group, for codebooks a
    warp. The rules are those of pvtune.h (sections weights, vector grids, search), ties included, but for points
    of e8p that lie equally near. */

PVTI_DEVICE bool pvti_draw_second(const pvt_assign &a, int64_t group, double e1, double e2)
{
    if (!(e1 > 0 && e2 > 0)) return false;
    double odds = exp(0.5 / a.rounding * (log(e2) - log(e1)));
    return pvti_unit_of(pvti_random(a.seed, PVTI_FOR_ROUNDING, a.stream, (uint64_t)group)) < 1 / (1 + odds);
}
/* With a scale of 0 all codes are equal. */
PVTI_DEVICE int pvti_idle(int now, int other) { return now != other ? now : now > 0 ? now - 1 : 1; }

/* ---- a code for each weight ---- */

PVTI_DEVICE int pvti_int_nearest(double x, int most, int other)
{
    int code = x > 0 ? (x < most ? (int)(x + 0.5) : most) : 0;
    if (code != other) return code;
    if (code == 0 || (code < most && x > code)) return code + 1;
    return code - 1;
}
PVTI_DEVICE double pvti_nf4(int code) { return (double)pvti_nf4_level(code); }
PVTI_DEVICE int pvti_nf4_nearest(double x, int other)
{
    int best = -1; /* where no distance is a number, the first */
    for (int k = 0; k < 16; k++)
        if (k != other && (best < 0 || fabs(x - pvti_nf4(k)) < fabs(x - pvti_nf4(best)))) best = k;
    return best;
}
/* The nearest of all but `other`; *step: by how much the weight then moves. */
PVTI_DEVICE int pvti_single(const pvti_view &w, int64_t i, double target, int other, double *step)
{
    double scale = (double)w.scales[pvti_scale_index(w, i / w.I, i % w.I)];
    double zero = w.kind == PVTI_INT ? (double)w.extra[i / w.ig] : (double)w.origin;
    int now = pvti_code(w, i), code;
    if (scale == 0) code = pvti_idle(now, other);
    else if (w.kind == PVTI_NF4) code = pvti_nf4_nearest(target / scale, other);
    else code = pvti_int_nearest(target / scale + zero, w.K - 1, other);
    *step = scale * (double)(code - now);
    if (w.kind == PVTI_NF4) *step = scale * (pvti_nf4(code) - pvti_nf4(now));
    return code;
}
PVTI_KERNEL pvti_k_assign_singles(pvti_view w, pvt_assign a)
{
    int64_t k = PVTI_INDEX, i;
    if (k >= a.n) return;
    i = a.groups ? a.groups[k] : k;
    double target = (double)a.target[i], step, second_step;
    int code = pvti_single(w, i, target, a.force ? pvti_code(w, i) : -1, &step);
    if (a.rounding > 0) {
        int second = pvti_single(w, i, target, code, &second_step);
        double rest = target - (double)pvti_number(w, i / w.I, i % w.I);
        if (second_step != step && pvti_draw_second(a, i, (rest - step) * (rest - step),
                                                    (rest - second_step) * (rest - second_step)))
            code = second, step = second_step;
    }
    a.codes[k] = (uint16_t)code;
    if (a.change) a.change[k] = (float)(step * step);
}

/* ---- points of a fixed grid ---- */

enum { PVTI_POINTS = 64 }; /* threads of a block */

/* A candidate: the least cost wins, of equals the lower code. */
typedef struct pvti_best {
    double cost;
    int code;
} pvti_best;
PVTI_DEVICE void pvti_offer(pvti_best *best, double cost, int code)
{
    if (cost < best->cost || (cost == best->cost && code < best->code)) best->cost = cost, best->code = code;
}

/* higgs: ‖c‖² − 2·x·c over all points, in float as pvtune.h's pvti_nearest; in double with one to omit. */
PVTI_DEVICE int pvti_higgs_nearest(const pvti_view &w, const float *x)
{
    float least = INFINITY;
    int best = 0;
    for (int k = 0; k < w.K; k++) {
        float sum = 0;
        for (int d = 0; d < w.gig; d++) sum = fmaf(w.points[k * w.gig + d], w.points[k * w.gig + d], sum);
        for (int d = 0; d < w.gig; d++) sum = fmaf(-2 * x[d], w.points[k * w.gig + d], sum);
        if (sum < least) least = sum, best = k;
    }
    return best;
}
/* The distance², less ‖x‖², of a code's point. */
PVTI_DEVICE double pvti_code_cost(const pvti_view &w, const float *x, int code)
{
    double sum = 0;
    for (int d = 0; d < w.gig; d++) {
        double c = (double)pvti_point(w, code, d);
        sum += (c - 2 * (double)x[d]) * c;
    }
    return sum;
}
/* A pattern of magnitudes a with the signs of y, or where their number has not the parity asked for (−1: any
   will do), with the one turned that costs the least: ‖a‖² − 2·Σ|y|·a + 4·min |y|·a. high_first: number 0's
   bit is the highest. */
PVTI_DEVICE double pvti_signed_cost(const float *a, const double *y, int parity, bool high_first,
                                    unsigned *minus)
{
    double score = 0, norm = 0, least = INFINITY;
    int weakest = 0;
    *minus = 0;
    for (int d = 0; d < 8; d++) {
        double part = fabs(y[d]) * (double)a[d];
        score += part, norm += (double)a[d] * (double)a[d];
        if (part < least) least = part, weakest = d;
        *minus |= (unsigned)(y[d] < 0) << (high_first ? 7 - d : d);
    }
    if (parity < 0 || (__popc(*minus) & 1) == parity) return norm - 2 * score;
    *minus ^= 1u << (high_first ? 7 - weakest : weakest);
    return norm - 2 * (score - 2 * least);
}
/*  e8p with its two shifts, and iq2: all patterns, each with its best signs; of that of the code to be left
    out (−1: none is) all signs but those. Candidates are pattern · signs + those, of equals the lowest wins;
    e8p's, whose signs have the shift as their lowest bit, are its codes. */
PVTI_DEVICE int pvti_signed_nearest(const pvti_view &w, const float *x, int not_this)
{
    bool e8p = w.kind == PVTI_E8P;
    int points = e8p ? 256 : 1 << w.bits, signs = e8p || w.M > 1 ? 256 : 128, shifts = e8p ? 2 : 1;
    int same = e8p ? not_this >> 8 : not_this & (points - 1), same_shift = e8p ? not_this & 1 : 0;
    pvti_best best = {INFINITY, 0};
    for (int shift = 0; shift < shifts; shift++) {
        double y[8], delta = !e8p ? 0 : shift ? 0.25 : -0.25, total = 0;
        for (int d = 0; d < 8; d++) y[d] = (double)x[d] - delta, total += (double)x[d];
        for (int i = 0; i < points; i++) {
            const float *a = w.points + i * 8;
            float sum = 0;
            unsigned minus;
            for (int d = 0; d < 8; d++) sum += a[d];
            bool all = not_this >= 0 && i == same && shift == same_shift;
            if (!all) {
                int parity = w.M > 1 ? -1 : e8p && ((int)sum & 1);
                double cost = pvti_signed_cost(a, y, parity, e8p, &minus) - 2 * delta * total;
                int stored = e8p ? (int)(minus & 127) << 1 | shift : (int)minus & (signs - 1);
                pvti_offer(&best, cost, i * signs + stored);
            }
            for (int k = shift; all && k < signs; k += shifts) {
                int code = e8p ? i << 8 | k : i | k << w.bits;
                double cost = pvti_code_cost(w, x, code) - 8 * delta * delta;
                if (code != not_this) pvti_offer(&best, cost, i * signs + k);
            }
        }
    }
    return e8p ? best.code : best.code / signs | best.code % signs << w.bits;
}
/* The nearest of all codes but not_this; −1: of all. */
PVTI_DEVICE int pvti_points_nearest(const pvti_view &w, const float *x, int not_this)
{
    pvti_best best = {INFINITY, not_this == 0};
    if (w.kind != PVTI_HIGGS) return pvti_signed_nearest(w, x, not_this);
    if (not_this < 0) return pvti_higgs_nearest(w, x);
    for (int k = 0; k < w.K; k++)
        if (k != not_this) pvti_offer(&best, pvti_code_cost(w, x, k), k);
    return best.code;
}
PVTI_DEVICE double pvti_points_distance(const pvti_view &w, const float *x, int code)
{
    double sum = 0;
    for (int d = 0; d < w.gig; d++) {
        double rest = (double)x[d] - (double)pvti_point(w, code, d);
        sum += rest * rest;
    }
    return sum;
}
__global__ void __launch_bounds__(PVTI_POINTS, 1) pvti_k_assign_points(pvti_view w, pvt_assign a)
{
    int64_t k = PVTI_INDEX, group;
    float x[8], now_point[8];
    if (k >= a.n) return;
    group = a.groups ? a.groups[k] : k;
    float scale = pvti_unit(w, group / w.GI, group % w.GI * w.gig);
    int old = pvti_point_code(w, group), now = old & ~w.kept, code;
    for (int d = 0; d < w.gig; d++) { /* in units of the scale, and never beyond all measure */
        float y = a.target[group * w.gig + d] / scale;
        x[d] = fabsf(y) <= 1e15f ? y : y > 0 ? 1e15f : y < 0 ? -1e15f : 0;
    }
    if (scale == 0) code = pvti_idle(now, a.force ? now : -1);
    else code = pvti_points_nearest(w, x, a.force ? now : -1);
    if (a.rounding > 0 && scale != 0) {
        int second = pvti_points_nearest(w, x, code);
        if (pvti_draw_second(a, group, pvti_points_distance(w, x, code), pvti_points_distance(w, x, second)))
            code = second;
    }
    code |= old & w.kept;
    a.codes[k * w.M] = (uint16_t)(w.M > 1 ? code & 1023 : code);
    if (w.M > 1) a.codes[k * w.M + 1] = (uint16_t)(code >> 10);
    for (int d = 0; d < w.gig; d++) now_point[d] = pvti_point(w, now, d);
    if (a.change)
        a.change[k] = (float)((double)scale * (double)scale * pvti_points_distance(w, now_point, code));
}

/* ---- codebooks ----
   A beam over codebooks, one at a time, in a drawn order: the visited codebook's vector is taken out of each
   hypothesis, all entries are scored, and the `keep` best (loss, then hypothesis, then entry) go on. A warp
   to a group: its lanes share the entries; the best are found one after the other, each round passing over
   what is already taken, so that no list is as long as a codebook. Codebooks that fit are STAGED: in shared
   memory, turned so that lanes read neighbours, with the entries' norms.
   Limit: M·beam·keep·K·2·D operations a group, D + 1 lines of shared memory for 32·2·D of them; not staged
   4·D, and codebooks through L2. */

enum { PVTI_SEARCHERS = 256, PVTI_SEARCH_BYTES = 48 << 10 };
/* A warp's shared memory; `now` 0 or 1 of v and codes are the hypotheses, the others become the next. */
typedef struct pvti_search {
    float *v, *base;    /* [2, slots, D]; [slots] */
    unsigned *list;     /* [slots] of hypothesis · 2¹⁶ + entry */
    uint16_t *codes;    /* [2, slots, M] */
    const float *books; /* STAGED: [M, D + 1, K], a row of norms last */
    const float *bias;  /* [K] in place of norms, or NULL */
    int slots, D;
} pvti_search;
PVTI_BOTH int pvti_search_bytes(int slots, int D, int M)
{
    return (2 * slots * D * 4 + slots * 8 + 2 * slots * M * 2 + 15) / 16 * 16;
}

/* A candidate as one number, in order of loss (−0 is 0), then of what follows. */
PVTI_DEVICE uint64_t pvti_ranked(float loss, unsigned then)
{
    return (uint64_t)~pvti_turned(loss + 0.0f) << 32 | then;
}
PVTI_DEVICE uint64_t pvti_warp_least(uint64_t x)
{
    for (int bits = 16; bits > 0; bits /= 2) {
        uint64_t other = __shfl_xor_sync(0xffffffffu, x, bits);
        x = other < x ? other : x;
    }
    return x;
}

template <bool STAGED>
PVTI_DEVICE float pvti_book_number(const pvti_search &room, const pvti_view &w, int m, int k, int d)
{
    if (STAGED) return room.books[(m * (room.D + 1) + d) * w.K + k];
    return pvti_book(w, m, k)[d];
}
/* ‖entry‖², or its bias, − 2·v·entry. */
template <bool STAGED>
PVTI_DEVICE float pvti_entry_loss(const pvti_search &room, const pvti_view &w, int m, int k, const float *v)
{
    const float *entry = pvti_book(w, m, k);
    float sum = 0, e[8];
    if (STAGED) {
        sum = room.bias ? room.bias[k] : pvti_book_number<true>(room, w, m, k, room.D);
        for (int d = 0; d < room.D; d++) sum = fmaf(-2 * v[d], pvti_book_number<true>(room, w, m, k, d), sum);
    } else if (room.D == 8) {
        pvti_eight(entry, 8, e);
        for (int d = 0; d < 8 && !room.bias; d++) sum = fmaf(e[d], e[d], sum);
        sum = room.bias ? room.bias[k] : sum;
        for (int d = 0; d < 8; d++) sum = fmaf(-2 * v[d], e[d], sum);
    } else {
        for (int d = 0; d < room.D && !room.bias; d++) sum = fmaf(entry[d], entry[d], sum);
        sum = room.bias ? room.bias[k] : sum;
        for (int d = 0; d < room.D; d++) sum = fmaf(-2 * v[d], entry[d], sum);
    }
    return sum;
}
/* The `keep` best of n hypotheses' entries, to the list, by loss, then hypothesis, then entry; how many there
   are. Where no loss is a number it is hypothesis 0 with its present entry. */
template <bool STAGED>
PVTI_DEVICE int pvti_best_entries(const pvti_search &room, const pvti_view &w, int m, int n, int now,
                                  int keep)
{
    const uint64_t none = ~(uint64_t)0;
    uint64_t last = 0;
    for (int found = 0; found < keep; found++) {
        uint64_t best = none;
        for (int h = 0; h < n; h++)
            for (int k = (int)threadIdx.x % 32; k < w.K; k += 32) {
                const float *v = room.v + (now * room.slots + h) * room.D;
                float loss = pvti_entry_loss<STAGED>(room, w, m, k, v) + room.base[h];
                uint64_t one = pvti_ranked(loss, (unsigned)(h << 16 | k));
                if (loss < INFINITY && one < best && (!found || one > last)) best = one;
            }
        best = pvti_warp_least(best);
        if (best == none && found > 0) return found;
        last = best == none ? room.codes[now * room.slots * w.M + m] : best;
        if (threadIdx.x % 32 == 0) room.list[found] = (unsigned)last;
    }
    return keep;
}
PVTI_DEVICE void pvti_residual(const pvti_search &room, const pvti_view &w, const pvt_assign &a,
                               int64_t group)
{
    float scale = w.scales[group / w.GI], inverse = scale != 0 ? 1 / scale : 0;
    int lane = (int)threadIdx.x % 32;
    __syncwarp(); /* the last group's hypotheses may still be read */
    for (int d = lane; d < room.D; d += 32) {
        float x = a.target[pvti_group_at(w, group, d)] * inverse;
        for (int m = 0; m < w.M; m++) x -= pvti_book(w, m, pvti_code(w, group * w.M + m))[d];
        room.v[d] = x;
    }
    for (int m = lane; m < w.M; m += 32) room.codes[m] = (uint16_t)pvti_code(w, group * w.M + m);
    __syncwarp();
}
/* Codebook m for all hypotheses; how many there are now. greedy: without ‖v‖², which decides nothing. */
template <bool STAGED>
PVTI_DEVICE int pvti_visit(const pvti_search &room, const pvti_view &w, int m, int n, int now, int keep,
                           bool greedy)
{
    int D = room.D, M = w.M, lane = (int)threadIdx.x % 32, next = (1 - now) * room.slots;
    float *v = room.v + now * room.slots * D;
    const uint16_t *codes = room.codes + now * room.slots * M;
    for (int i = lane; i < n * D; i += 32)
        v[i] += pvti_book_number<STAGED>(room, w, m, codes[i / D * M + m], i % D);
    __syncwarp();
    for (int h = lane; h < n; h += 32) {
        room.base[h] = 0;
        for (int d = 0; d < D && !greedy; d++) room.base[h] = fmaf(v[h * D + d], v[h * D + d], room.base[h]);
    }
    __syncwarp();
    int found = pvti_best_entries<STAGED>(room, w, m, n, now, keep);
    __syncwarp();
    for (int i = lane; i < found * D; i += 32) {
        int h = (int)(room.list[i / D] >> 16), k = (int)(room.list[i / D] & 0xffff);
        room.v[next * D + i] = v[h * D + i % D] - pvti_book_number<STAGED>(room, w, m, k, i % D);
    }
    for (int i = lane; i < found * M; i += 32) {
        unsigned best = room.list[i / M];
        room.codes[next * M + i] = i % M == m ? (uint16_t)best : codes[(int)(best >> 16) * M + i % M];
    }
    __syncwarp();
    return found;
}
/* Which of the two best is the answer. */
PVTI_DEVICE int pvti_answer(const pvti_search &room, const pvti_view &w, const pvt_assign &a, int64_t group,
                            int n, int now)
{
    const float *v = room.v + now * room.slots * room.D;
    double e1 = 0, e2 = 0;
    bool same = true;
    if (n < 2) return 0;
    for (int d = 0; d < room.D; d++) {
        e1 += (double)v[d] * (double)v[d];
        e2 += (double)v[room.D + d] * (double)v[room.D + d];
    }
    if (a.rounding > 0) return pvti_draw_second(a, group, e1, e2);
    for (int m = 0; m < w.M; m++)
        same = same && room.codes[now * room.slots * w.M + m] == pvti_code(w, group * w.M + m);
    return a.force && same;
}
/* ‖scale·Σ (new entries − present ones)‖², numbers in turn. */
PVTI_DEVICE float pvti_book_change(const pvti_view &w, const uint16_t *codes, int64_t group)
{
    int D = w.gog * w.gig, lane = (int)threadIdx.x % 32;
    double sum = 0, scale = (double)w.scales[group / w.GI];
    for (int d0 = 0; d0 < D; d0 += 32) {
        double x = 0;
        for (int m = 0; m < w.M && d0 + lane < D; m++) {
            const float *old = pvti_book(w, m, pvti_code(w, group * w.M + m));
            x += (double)pvti_book(w, m, codes[m])[d0 + lane] - (double)old[d0 + lane];
        }
        x *= x;
        for (int d = 0; d < 32 && d0 + d < D; d++) sum += __shfl_sync(0xffffffffu, x, d);
    }
    return (float)(sum * scale * scale);
}
PVTI_DEVICE void pvti_stage(float *books, const pvti_view &w, int D)
{
    for (int at = (int)threadIdx.x; at < w.M * w.K * (D + 1); at += (int)blockDim.x) {
        int m = at / (w.K * (D + 1)), d = at / w.K % (D + 1), k = at % w.K;
        const float *entry = pvti_book(w, m, k);
        float norm = 0;
        for (int i = 0; i < D && d == D; i++) norm = fmaf(entry[i], entry[i], norm);
        books[at] = d == D ? norm : entry[d];
    }
}
/* This warp's share of a block's memory, codebooks staged before it. A barrier. */
template <bool STAGED>
PVTI_DEVICE pvti_search pvti_search_in(float *shared, const pvti_view &w, int slots)
{
    pvti_search room;
    room.slots = slots, room.D = w.gog * w.gig, room.books = shared, room.bias = NULL;
    room.v = shared + (int)threadIdx.x / 32 * (pvti_search_bytes(slots, room.D, w.M) / 4);
    if (STAGED) room.v += w.M * w.K * (room.D + 1);
    room.base = room.v + 2 * slots * room.D, room.list = (unsigned *)(void *)(room.base + slots);
    room.codes = (uint16_t *)(void *)(room.list + slots);
    if (STAGED) pvti_stage(shared, w, room.D);
    __syncthreads();
    return room;
}
template <bool STAGED>
__global__ void __launch_bounds__(PVTI_SEARCHERS, 1)
    pvti_k_assign_books(pvti_view w, pvt_assign a, uint64_t order, int slots)
{
    PVT_SHARED_DYNAMIC(float, shared);
    int warps = (int)blockDim.x / 32, warp = (int)threadIdx.x / 32, two = a.force || a.rounding > 0;
    pvti_search room = pvti_search_in<STAGED>(shared, w, slots);
    for (int64_t i = (int64_t)blockIdx.x * warps + warp; i < a.n; i += (int64_t)gridDim.x * warps) {
        int64_t group = a.groups ? a.groups[i] : i;
        int n = 1, now = 0;
        pvti_residual(room, w, a, group);
        for (int step = 0; step < w.M; step++, now = 1 - now) {
            int keep = step + 1 < w.M ? a.beam : two ? 2 : 1;
            n = pvti_visit<STAGED>(room, w, (int)(order >> 4 * step & 15), n, now, keep, a.beam == 1 && !two);
        }
        const uint16_t *codes = room.codes + (now * slots + pvti_answer(room, w, a, group, n, now)) * w.M;
        float change = a.change ? pvti_book_change(w, codes, group) : 0;
        if (threadIdx.x % 32) continue;
        if (a.change) a.change[i] = change;
        for (int m = 0; m < w.M; m++) a.codes[i * w.M + m] = codes[m];
    }
}

/* A permutation of the codebooks (Fisher-Yates), as the processor draws it: four bits each. */
static uint64_t pvti_book_order(int M, uint64_t seed, uint64_t stream)
{
    uint64_t order = 0xfedcba9876543210u;
    for (int i = M - 1; i > 0; i--) {
        int j = (int)(pvti_random(seed, PVTI_FOR_CODEBOOK_ORDER, stream, (uint64_t)i) % (uint64_t)(i + 1));
        uint64_t differ = (order >> 4 * i ^ order >> 4 * j) & 15;
        order ^= differ << 4 * i ^ differ << 4 * j;
    }
    return order;
}
/* As many warps to a block as its shared memory has room for; codebooks go there where four still have. */
typedef struct pvti_searchers {
    bool staged;
    int64_t warps, bytes;
} pvti_searchers;
static pvti_searchers pvti_searchers_of(const pvti_view *w, int slots)
{
    int D = w->gog * w->gig, each = pvti_search_bytes(slots, D, w->M);
    int64_t books = (int64_t)w->M * w->K * (D + 1) * 4;
    pvti_searchers b = {books + 4 * each <= PVTI_SEARCH_BYTES, 0, 0};
    if (!b.staged) books = 0;
    b.warps = pvti_least(PVTI_SEARCHERS / 32, (PVTI_SEARCH_BYTES - books) / each);
    b.bytes = books + b.warps * each;
    return b;
}
static void pvti_assign_books(pvti_cuda *s, const pvti_view *w, const pvt_assign *a)
{
    uint64_t order = pvti_book_order(w->M, a->seed, a->stream);
    int slots = a->beam > 2 ? a->beam : 2;
    pvti_searchers b = pvti_searchers_of(w, slots);
    int64_t blocks = pvti_least(pvti_ceil(a->n, b.warps), 8 * (int64_t)s->cores);
    auto kernel = b.staged ? pvti_k_assign_books<true> : pvti_k_assign_books<false>;
    PVTI_RUN(s, kernel, blocks, 32 * b.warps, b.bytes, *w, *a, order, slots);
}
static void pvti_op_weight_assign(void *state, const pvt_weight *weight, const pvt_assign *a)
{
    PVTI_WEIGHT(w, weight);
    if (w.kind == PVTI_AQLM) {
        pvti_assign_books(s, &w, a);
    } else if (w.kind == PVTI_INT || w.kind == PVTI_SIGNED || w.kind == PVTI_NF4) {
        PVTI_EACH(s, pvti_k_assign_singles, a->n, w, *a);
    } else {
        PVTI_RUN(s, pvti_k_assign_points, pvti_ceil(a->n, PVTI_POINTS), PVTI_POINTS, 0, w, *a);
    }
}

// >>fit
/*  Calibration of codebooks; what is computed stands in pvtune.h, sections search and fit. */

PVTI_KERNEL pvti_k_row_dots(double *sums, const float *a, const float *b, int64_t n)
{
    int64_t from = (int64_t)blockIdx.x * n;
    double sum = pvti_block_total(n, [&](int64_t i) { return (double)a[from + i] * (double)b[from + i]; });
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
static double pvti_op_dot(void *state, const float *a, const float *b, int64_t rows, int64_t n, double *sums)
{
    PVTI_STATE;
    double *total = (double *)(void *)s->room, sum = 0;
    PVTI_BLOCKS(s, pvti_k_row_dots, rows, sums, a, b, n);
    PVTI_BLOCKS(s, pvti_k_total, 1, total, sums, rows);
    pvti_op_copy_out(s, &sum, total, (int64_t)sizeof sum);
    return s->failed == PVT_OK ? sum : 0;
}
PVTI_KERNEL pvti_k_axpy(float *y, float alpha, const float *x, int64_t rows, int64_t n)
{
    if (PVTI_INDEX < rows * n) y[PVTI_INDEX] = fmaf(alpha, x[PVTI_INDEX], y[PVTI_INDEX]);
}
PVTI_OP(axpy, PVTI_EACH, pvti_k_axpy, PVTI_ARG(2) * PVTI_ARG(1))
static void pvti_op_product(void *state, float *C, const float *A, const float *B, int64_t M, int64_t N,
                            int64_t K)
{
    PVTI_STATE;
    pvti_multiply(s, {C, M, N, K, {A, K, false}, pvti_plain(B, K), false, false, false});
}

/* A block to each scale. Limit: the bytes of W, WH, R and RH twice, and of R and RH once more. */
PVTI_KERNEL pvti_k_fit_scales(pvti_view w, float *R, float *RH, const float *W, const float *WH)
{
    int64_t n = w.gog * w.I, from = (int64_t)blockIdx.x * n;
    W += from, WH += from, R += from, RH += from;
    auto w_hat = [&](int64_t i) { return (double)W[i] - (double)R[i]; };
    double along = pvti_block_total(n, [&](int64_t i) { return (double)WH[i] * w_hat(i); });
    double square =
        pvti_block_total(n, [&](int64_t i) { return ((double)WH[i] - (double)RH[i]) * w_hat(i); });
    float factor = square > 0 && along > 0 ? (float)(along / square) : 1;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        R[i] = W[i] - factor * (W[i] - R[i]);
        RH[i] = WH[i] - factor * (WH[i] - RH[i]);
    }
    if (threadIdx.x == 0) w.scales[blockIdx.x] *= factor;
}
static void pvti_op_fit_scales(void *state, pvt_weight *weight, float *R, float *RH, const float *W,
                               const float *WH)
{
    PVTI_WEIGHT(w, weight);
    PVTI_BLOCKS(s, pvti_k_fit_scales, w.O / w.gog, w, R, RH, W, WH);
}

/* ---- k-means ---- */

/* Σ_d w·c² − 2·w·x·c of all entries, a warp to a point. Limit: 2·K·D multiply-adds a point; entries come through
   the first cache, 16 lines to 32 of eight numbers. */
typedef float pvti_kmeans_room[PVTI_THREADS / 32][2][256];
PVTI_KERNEL pvti_k_kmeans_assign(int32_t *assigned, const float *x, const float *weight, const float *c,
                                 int64_t rows, int64_t GI, int64_t D, int64_t K)
{
    PVT_SHARED(pvti_kmeans_room, room);
    float *square = room[threadIdx.x / 32][0], *along = room[threadIdx.x / 32][1];
    int64_t i = PVTI_INDEX / 32, lane = threadIdx.x % 32;
    uint64_t best = ~(uint64_t)0;
    if (i >= rows * GI) return; /* the whole warp */
    for (int64_t d = lane; d < D; d += 32) {
        square[d] = weight ? weight[i / rows * D + d] : 1;
        along[d] = -2 * square[d] * x[i * D + d];
    }
    __syncwarp();
    float w[8], b[8], e[8]; /* of eight coordinates, which up to D = 8 stay in registers */
    auto eight = [&](int64_t d) {
        for (int64_t j = 0; j < 8; j++) w[j] = d + j < D ? square[d + j] : 0, b[j] = d + j < D ? along[d + j] : 0;
    };
    eight(0);
    for (int64_t k = lane; k < K; k += 32) {
        float sum = 0;
        for (int64_t d = 0; d < D; d += 8) {
            if (D > 8) eight(d);
            pvti_eight(c + k * D + d, (int)pvti_least(8, D - d), e);
            for (int j = 0; j < 8; j++) sum = fmaf(fmaf(w[j], e[j], b[j]), e[j], sum);
        }
        uint64_t one = pvti_ranked(sum, (unsigned)k);
        if (sum < INFINITY && one < best) best = one;
    }
    best = pvti_warp_least(best);
    if (lane == 0) assigned[i] = best == ~(uint64_t)0 ? 0 : (int32_t)(best & 0xffffffffu);
}
static void pvti_op_kmeans_assign(void *state, int32_t *assigned, const float *x, const float *weight,
                                  const float *c, int64_t rows, int64_t GI, int64_t D, int64_t K)
{
    PVTI_STATE;
    PVTI_EACH(s, pvti_k_kmeans_assign, rows * GI * 32, assigned, x, weight, c, rows, GI, D, K);
}

PVTI_KERNEL pvti_k_assigned_pairs(uint64_t *pairs, const int32_t *assigned, int64_t n)
{
    int64_t i = PVTI_INDEX;
    if (i < n) pairs[i] = (uint64_t)(unsigned)assigned[i] << 32 | (uint64_t)i;
}
/* Entry k, as pvti_k_codebook has it. */
typedef double pvti_means_room[2][PVTI_THREADS];
PVTI_KERNEL pvti_k_kmeans_sums(double *sums, const float *x, const float *weight, const uint64_t *pairs,
                               int64_t rows, int64_t n, int64_t D)
{
    PVT_SHARED(pvti_means_room, room);
    int64_t from = pvti_lower(pairs, n, blockIdx.x), to = pvti_lower(pairs, n, (uint64_t)blockIdx.x + 1);
    int64_t parts = PVTI_THREADS / D, d = threadIdx.x % D, part = threadIdx.x / D;
    double sum = 0, all = 0;
    for (int64_t i = from + part; part < parts && i < to; i += parts) {
        int64_t at = (int64_t)(pairs[i] & 0xffffffffu);
        double w = weight ? (double)weight[at / rows * D + d] : 1;
        sum += w * (double)x[at * D + d], all += w;
    }
    room[0][threadIdx.x] = sum, room[1][threadIdx.x] = all;
    __syncthreads();
    if (part) return;
    for (int64_t p = 1; p < parts; p++) sum += room[0][p * D + d], all += room[1][p * D + d];
    sums[2 * blockIdx.x * D + d] = sum, sums[(2 * blockIdx.x + 1) * D + d] = all;
}
static void pvti_op_kmeans_sums(void *state, double *sums, const float *x, const float *weight,
                                const int32_t *assigned, int64_t rows, int64_t GI, int64_t D, int64_t K)
{
    PVTI_STATE;
    int64_t n = rows * GI;
    if (!pvti_pairs_room(s, n)) pvti_fail_with(s, PVT_ERR_MEMORY, "no memory to sort points");
    PVTI_EACH(s, pvti_k_assigned_pairs, n, s->pairs[0], assigned, n);
    const uint64_t *sorted = pvti_sort_pairs(s, s->pairs[0], s->pairs[1], n, K > 256 ? 16 : 8);
    PVTI_BLOCKS(s, pvti_k_kmeans_sums, K, sums, x, weight, sorted, rows, n, D);
}

/* ---- codes under H ----
   Columns lie in the order of visits. A warp has an out group through a block of some 128 columns, with its
   hypotheses' R·H and changes; what these do to other columns follows by one product a block.
   Limit: per group and codebook beam·K·2·D operations (times beam where it is not 1), and of hypotheses that
   are copied 4·width numbers; the product of all blocks has 2·O·beam·I² operations, for simplicity twice what is needed. */

typedef struct pvti_sweep {
    pvti_view w;
    float *H;              /* [I, I] */
    float *RH;             /* [GO, beam, og, I] */
    float *rh[2], *delta[2]; /* the block's: R·H, and how its weights have changed; [GO, beam, og, width] */
    float *bias;           /* ⟨c_k·H_jj, c_k⟩: [groups of the block, M, K] */
    uint16_t *codes;       /* [GO, beam, GI, M] */
    uint16_t *own[2];      /* the block's: [GO, beam, groups, M] */
    double *loss;          /* [GO, beam], from the start on, in units of scale² */
    int *ancestors, *alive; /* [GO, beam]: which of the block's start; [GO]: how many hypotheses */
    int64_t *order, *books; /* [GI], [GI, M] */
    int64_t beam, p0, p1, width; /* groups of the block, and its columns */
} pvti_sweep;

static int64_t pvti_sweep_groups(const pvti_view &w) { return pvti_most(1, 128 / w.gig); }
/* Its arrays in memory from `at` on, NULL: nowhere; how many bytes they take. */
static int64_t pvti_sweep_lay(pvti_sweep *q, char *at)
{
    int64_t GO = q->w.O / q->w.gog, rows = q->w.O * q->beam, all = 0, groups = pvti_sweep_groups(q->w);
    int64_t codes = GO * q->beam * groups * q->w.M;
    auto take = [&](auto **array, int64_t n) {
        void *here = at ? at + all : NULL;
        memcpy(array, &here, sizeof here);
        all += pvti_ceil(n * (int64_t)sizeof **array, PVTI_ALIGN) * PVTI_ALIGN;
    };
    take(&q->H, q->w.I * q->w.I);
    take(&q->RH, rows * q->w.I);
    for (int i = 0; i < (q->beam > 1 ? 2 : 1); i++) {
        take(&q->rh[i], rows * groups * q->w.gig), take(&q->delta[i], rows * groups * q->w.gig);
        take(&q->own[i], codes);
    }
    take(&q->bias, groups * q->w.M * q->w.K), take(&q->codes, GO * q->beam * q->w.GI * q->w.M);
    take(&q->loss, GO * q->beam), take(&q->ancestors, GO * q->beam), take(&q->alive, GO);
    take(&q->order, q->w.GI), take(&q->books, q->w.GI * q->w.M);
    return all;
}

/* out [rows, I], row i·copies/og … of the group's first hypothesis ← columns of `in` in the order of visits;
   rows: so are its rows. */
PVTI_KERNEL pvti_k_visit_order(float *out, const float *in, pvti_sweep q, int64_t n, bool rows)
{
    int64_t i = PVTI_INDEX / q.w.I, j = PVTI_INDEX % q.w.I, og = q.w.gog, ig = q.w.gig;
    if (i >= n) return;
    int64_t from = rows ? q.order[i / ig] * ig + i % ig : i, to = rows ? i : i / og * q.beam * og + i % og;
    out[to * q.w.I + j] = in[from * q.w.I + q.order[j / ig] * ig + j % ig];
}
/* All hypotheses start as the present codes; or the best of them becomes the present ones. */
PVTI_KERNEL pvti_k_sweep_codes(pvti_sweep q, bool back)
{
    int64_t each = q.w.GI * q.w.M, go = PVTI_INDEX / each, i = PVTI_INDEX % each, best = 0;
    if (go >= q.w.O / q.w.gog) return;
    int64_t at = (go * q.w.GI + q.order[i / q.w.M]) * q.w.M + i % q.w.M;
    for (int64_t h = 1; back && h < q.alive[go]; h++)
        if (q.loss[go * q.beam + h] < q.loss[go * q.beam + best]) best = h;
    uint16_t code = q.codes[(go * q.beam + best) * each + i];
    if (back && q.w.wide) ((uint16_t *)q.w.codes)[at] = code;
    if (back && !q.w.wide) ((uint8_t *)q.w.codes)[at] = (uint8_t)code;
    for (int64_t h = 0; !back && h < q.beam; h++)
        q.codes[(go * q.beam + h) * each + i] = (uint16_t)pvti_code(q.w, at);
    if (!back && i == 0) q.alive[go] = 1, q.loss[go * q.beam] = 0;
}
PVTI_KERNEL pvti_k_sweep_bias(pvti_sweep q)
{
    int64_t i = PVTI_INDEX, m = i / q.w.K % q.w.M, first = (q.p0 + i / q.w.K / q.w.M) * q.w.gig;
    const float *c = pvti_book(q.w, (int)m, (int)(i % q.w.K));
    float sum = 0;
    if (i >= (q.p1 - q.p0) * q.w.M * q.w.K) return;
    for (int r = 0; r < q.w.gog; r++, c += q.w.gig)
        for (int a = 0; a < q.w.gig; a++) {
            float row = 0;
            for (int b = 0; b < q.w.gig; b++) row = fmaf(q.H[(first + a) * q.w.I + first + b], c[b], row);
            sum = fmaf(row, c[a], sum);
        }
    q.bias[i] = sum;
}

/* Number d of group p after u [D], a change of it, has gone through H_pp: u·H at (r, a). u: a function of d. */
template <class F> PVTI_DEVICE float pvti_sweep_through(const pvti_sweep &q, int64_t p, int d, float y, F u)
{
    int ig = q.w.gig, r = d / ig, a = d % ig;
    for (int b = 0; b < ig; b++) y = fmaf(u(r * ig + b), q.H[(p * ig + b) * q.w.I + p * ig + a], y);
    return y;
}
/* Where number d of group p is in a hypothesis' block. */
PVTI_DEVICE int64_t pvti_sweep_at(const pvti_sweep &q, int64_t p, int d)
{
    return d / q.w.gig * q.width + (p - q.p0) * q.w.gig + d % q.w.gig;
}
/* Codebook m of group p for the out group's n hypotheses; how many there are then. They are in half `now`,
   and go to half `next`. */
template <bool STAGED>
PVTI_DEVICE int pvti_sweep_step(const pvti_sweep &q, pvti_search &room, int64_t go, int64_t p, int m, int n,
                                int now, int next)
{
    const pvti_view &w = q.w;
    int D = room.D, M = w.M, lane = (int)threadIdx.x % 32;
    int64_t first = go * q.beam, reals = w.gog * q.width, codes = (q.p1 - q.p0) * M, at = (p - q.p0) * M + m;
    float scale = w.scales[go], inverse = scale != 0 ? 1 / scale : 0;
    double least = q.loss[first], loss = 0;
    int ancestor = 0;
    room.bias = q.bias + at * w.K;
    for (int h = lane; h < n; h += 32) room.codes[h * M + m] = q.own[now][(first + h) * codes + at];
    __syncwarp();
    for (int i = lane; i < n * D; i += 32) { /* v = b/s, b = (R·H)_p + s·c·H_pp: without the present entry */
        int h = i / D, k = room.codes[h * M + m];
        float b = q.rh[now][(first + h) * reals + pvti_sweep_at(q, p, i % D)];
        b = pvti_sweep_through(q, p, i % D, b,
                               [&](int d) { return scale * pvti_book_number<STAGED>(room, w, m, k, d); });
        room.v[i] = b * inverse;
    }
    __syncwarp();
    for (int h = lane; h < n; h += 32) {
        float present = pvti_entry_loss<STAGED>(room, w, m, room.codes[h * M + m], room.v + h * D);
        room.base[h] = (float)(q.loss[first + h] - least) - present;
    }
    __syncwarp();
    int found = pvti_best_entries<STAGED>(room, w, m, n, 0, (int)q.beam);
    __syncwarp();
    if (lane < found) {
        int h = (int)(room.list[lane] >> 16), k = (int)(room.list[lane] & 0xffff);
        loss = least + (double)(pvti_entry_loss<STAGED>(room, w, m, k, room.v + h * D) + room.base[h]);
        ancestor = q.ancestors[first + h];
    }
    __syncwarp();
    if (lane < found) q.loss[first + lane] = loss, q.ancestors[first + lane] = ancestor;
    for (int i = 0; i < found && next != now; i++) {
        int64_t h = first + (int)(room.list[i] >> 16);
        for (int64_t c = lane; c < reals; c += 32) {
            q.rh[next][(first + i) * reals + c] = q.rh[now][h * reals + c];
            q.delta[next][(first + i) * reals + c] = q.delta[now][h * reals + c];
        }
        for (int64_t c = lane; c < codes; c += 32) q.own[next][(first + i) * codes + c] = q.own[now][h * codes + c];
    }
    __syncwarp();
    for (int i = lane; i < found * D; i += 32) { /* u = s·(present − new) */
        int h = (int)(room.list[i / D] >> 16), k = (int)(room.list[i / D] & 0xffff), old = room.codes[h * M + m];
        int64_t to = (first + i / D) * reals + pvti_sweep_at(q, p, i % D);
        auto u = [&](int d) {
            return scale * (pvti_book_number<STAGED>(room, w, m, old, d) -
                            pvti_book_number<STAGED>(room, w, m, k, d));
        };
        q.delta[next][to] += u(i % D);
        q.rh[next][to] = pvti_sweep_through(q, p, i % D, q.rh[next][to], u);
        if (i % D == 0) q.own[next][(first + i / D) * codes + at] = (uint16_t)k;
    }
    __syncwarp();
    return found;
}
/* An out group's block into its halves 0, or at its end back, with what lies outside from the ancestors. */
PVTI_DEVICE void pvti_sweep_enter(const pvti_sweep &q, int64_t go, int n)
{
    int64_t reals = q.w.gog * q.width, codes = (q.p1 - q.p0) * q.w.M, each = q.w.GI * q.w.M, I = q.w.I;
    for (int64_t h = go * q.beam; h < go * q.beam + n; h++) {
        for (int64_t c = threadIdx.x % 32; c < reals; c += 32) {
            int64_t from = (h * q.w.gog + c / q.width) * I + q.p0 * q.w.gig + c % q.width;
            q.rh[0][h * reals + c] = q.RH[from], q.delta[0][h * reals + c] = 0;
        }
        for (int64_t c = threadIdx.x % 32; c < codes; c += 32)
            q.own[0][h * codes + c] = q.codes[h * each + q.p0 * q.w.M + c];
        if (threadIdx.x % 32 == 0) q.ancestors[h] = (int)(h - go * q.beam);
    }
}
PVTI_DEVICE void pvti_sweep_leave(const pvti_sweep &q, int64_t go, int n, int now)
{
    int64_t first = go * q.beam, codes = (q.p1 - q.p0) * q.w.M, each = q.w.GI * q.w.M, I = q.w.I;
    const int *from = q.ancestors + first;
    float x[16];
    for (int64_t c = threadIdx.x % 32; c < q.w.gog * I && q.beam > 1; c += 32) { /* a lane has a column of all */
        for (int h = 0; h < n; h++) x[h] = q.RH[(first + from[h]) * q.w.gog * I + c];
        for (int h = 0; h < n; h++) q.RH[(first + h) * q.w.gog * I + c] = x[h];
    }
    for (int64_t c = threadIdx.x % 32; c < q.p0 * q.w.M && q.beam > 1; c += 32) {
        for (int h = 0; h < n; h++) x[h] = (float)q.codes[(first + from[h]) * each + c];
        for (int h = 0; h < n; h++) q.codes[(first + h) * each + c] = (uint16_t)x[h];
    }
    for (int64_t h = first; h < first + n; h++)
        for (int64_t c = threadIdx.x % 32; c < codes; c += 32)
            q.codes[h * each + q.p0 * q.w.M + c] = q.own[now][h * codes + c];
}
template <bool STAGED> __global__ void __launch_bounds__(PVTI_SEARCHERS, 2) pvti_k_sweep(pvti_sweep q)
{
    PVT_SHARED_DYNAMIC(float, shared);
    pvti_search room = pvti_search_in<STAGED>(shared, q.w, (int)q.beam);
    int64_t go = PVTI_INDEX / 32, reals = q.w.gog * q.width;
    int lane = (int)threadIdx.x % 32, now = 0, ig = q.w.gig;
    if (go >= q.w.O / q.w.gog) return; /* the whole warp */
    int n = q.alive[go];
    pvti_sweep_enter(q, go, n);
    __syncwarp();
    for (int64_t p = q.p0; p < q.p1; p++) {
        for (int step = 0; step < q.w.M; step++) {
            int next = q.beam > 1 ? 1 - now : 0;
            n = pvti_sweep_step<STAGED>(q, room, go, p, (int)q.books[p * q.w.M + step], n, now, next);
            now = next;
        }
        int64_t at = (p - q.p0) * ig, later = q.width - at - ig; /* the block's columns to come */
        for (int64_t i = lane; i < n * q.w.gog * later; i += 32) {
            int64_t row = go * q.beam * reals + i / later * q.width, c = at + ig + i % later;
            float y = q.rh[now][row + c];
            for (int a = 0; a < ig; a++)
                y = fmaf(q.delta[now][row + at + a], q.H[(p * ig + a) * q.w.I + q.p0 * ig + c], y);
            q.rh[now][row + c] = y; /* is read behind the next step's first barrier */
        }
    }
    pvti_sweep_leave(q, go, n, now);
    if (lane == 0) q.alive[go] = n;
}

static int64_t pvti_op_search_room(void *state, const pvt_weight *weight, int beam)
{
    pvti_sweep q = {};
    if (!pvti_see((pvti_cuda *)state, weight, &q.w)) return 0;
    q.beam = beam;
    return pvti_sweep_lay(&q, NULL);
}
static void pvti_op_weight_search(void *state, pvt_weight *weight, const float *H, const float *RH, int beam,
                                  const int64_t *order, const int64_t *books, void *room)
{
    pvti_sweep q = {};
    PVTI_STATE;
    if (!pvti_see(s, weight, &q.w)) return;
    q.beam = beam;
    pvti_sweep_lay(&q, (char *)room);
    int64_t I = q.w.I, GI = q.w.GI, M = q.w.M, GO = q.w.O / q.w.gog, groups = pvti_sweep_groups(q.w);
    pvti_searchers b = pvti_searchers_of(&q.w, beam);
    auto kernel = b.staged ? pvti_k_sweep<true> : pvti_k_sweep<false>;
    pvti_op_copy_in(s, q.order, order, GI * (int64_t)sizeof *order);
    pvti_op_copy_in(s, q.books, books, GI * M * (int64_t)sizeof *books);
    PVTI_EACH(s, pvti_k_visit_order, I * I, q.H, H, q, I, true);
    PVTI_EACH(s, pvti_k_visit_order, q.w.O * I, q.RH, RH, q, q.w.O, false);
    PVTI_EACH(s, pvti_k_sweep_codes, GO * GI * M, q, false);
    for (q.p0 = 0; q.p0 < GI; q.p0 = q.p1) {
        q.p1 = pvti_least(GI, q.p0 + groups), q.width = (q.p1 - q.p0) * q.w.gig;
        int last = beam > 1 && (q.p1 - q.p0) * M % 2;
        PVTI_EACH(s, pvti_k_sweep_bias, (q.p1 - q.p0) * M * q.w.K, q);
        PVTI_RUN(s, kernel, pvti_ceil(GO, b.warps), 32 * b.warps, b.bytes, q);
        if (q.p1 < GI)
            pvti_multiply(s, {q.RH, q.w.O * beam, I, q.width, {q.delta[last], q.width, false},
                              pvti_plain(q.H + q.p0 * q.w.gig * I, I), true, true, false});
    }
    PVTI_EACH(s, pvti_k_sweep_codes, GO * GI * M, q, true);
}

// >>table

/*  The magnitudes of a fixed grid's points, [n, 8], on the GPU. They are not laid down here once more, but
    asked of the library: a weight whose codes are the grid's, dequantized on the processor. */
typedef struct pvti_fixed_grid {
    const char *format;
    int n, step, first; /* code of point i: first + i·step */
    int halves;         /* numbers of a code in the array, the others 0 */
    float scale, shift; /* scale: what makes it 1; shift: what points have beside magnitudes */
} pvti_fixed_grid;

static pvt_result pvti_grid_points(pvt_ctx *ctx, const pvti_fixed_grid *g, float *out)
{
    enum { I = 256 };
    pvt_format format;
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_weight w;
    int count;
    uint16_t codes[2048] = {};
    float scales[1024], factors[1024] = {};
    pvt_result result = pvt_format_parse(ctx, g->format, &format);
    if (result == PVT_OK) result = pvt_format_arrays(ctx, &format, g->n * 8 / I, I, arrays, &count);
    for (int i = 0; i < g->n; i++) codes[i * g->halves] = (uint16_t)(g->first + i * g->step), scales[i] = g->scale;
    arrays[0].data = codes, arrays[1].data = scales, arrays[2].data = factors;
    if (result == PVT_OK)
        result = pvt_weight_from_arrays(ctx, &format, g->n * 8 / I, I, arrays, count, g->format, &w);
    if (result != PVT_OK) return result;
    pvt_weight_dequantize(&w, out);
    pvt_weight_free(&w);
    for (int i = 0; i < g->n * 8; i++) out[i] = fabsf(out[i] - g->shift);
    return PVT_OK;
}
static pvt_result pvti_grids(pvti_cuda *s)
{
    static const pvti_fixed_grid grids[4] = {{"e8p", 256, 256, 1, 1, 1, 0.25f}, /* signs 0, shift 1 */
                                             {"iq2_xxs", 256, 1, 0, 1, 8, 0},   /* d·(0 + ½)/4 is 1 */
                                             {"iq2_xs", 512, 1, 0, 1, 8, 0},
                                             {"iq2_s", 1024, 1, 0, 2, 8, 0}};
    float **to[4] = {&s->e8p, &s->iq2[0], &s->iq2[1], &s->iq2[2]}, points[1024 * 8];
    pvt_ctx_desc plain = {};
    pvt_ctx *ctx;
    plain.n_threads = 1;
    pvt_result result = pvt_ctx_create(&plain, &ctx);
    for (int i = 0; result == PVT_OK && i < 4; i++) {
        int64_t bytes = grids[i].n * 8 * (int64_t)sizeof *points;
        result = pvti_grid_points(ctx, &grids[i], points);
        *to[i] = result == PVT_OK ? (float *)pvti_take(s, bytes) : NULL;
        if (*to[i]) pvti_op_copy_in(s, *to[i], points, bytes);
        if (result == PVT_OK) result = *to[i] ? s->failed : PVT_ERR_MEMORY;
    }
    pvt_ctx_destroy(ctx);
    return result;
}

static void pvti_op_close(void *state)
{
    PVTI_STATE;
    if (s->streaming) cudaStreamSynchronize(s->stream);
#ifdef PVT_CUBLAS
    if (s->cublas) cublasDestroy(s->cublas);
#endif
    for (int64_t i = 0; i < s->n_pieces; i++)
        if (s->pieces[i].first) cudaFree(s->pieces[i].at);
    if (s->streaming) cudaStreamDestroy(s->stream);
    free(s->pieces);
    free(s);
}

/* NULL, or why that GPU cannot be had. */
static const char *pvti_choose(int ordinal, char *text, size_t size)
{
    int count = 0, major = 0, minor = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count < 1) {
        cudaGetLastError();
        return "no GPU that CUDA can use was found: is the driver there? Without --device the processor "
               "computes";
    }
    if (ordinal >= count) {
        snprintf(text, size, "there is no GPU %d: CUDA counts %d here, from 0 on", ordinal, count);
        return text;
    }
    if (cudaSetDevice(ordinal) != cudaSuccess ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal) != cudaSuccess)
        return "the GPU does not answer";
    return 10 * major + minor >= 75 ? NULL : "this GPU is too old: compute capability 7.5 or later is needed";
}
/* Tensor cores, if this build has code for them that this GPU runs: an older one may be translated for a
   newer GPU. Beyond 48 KiB of shared memory one has to ask. */
static bool pvti_prepare(pvti_cuda *s)
{
    const cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    cudaFuncAttributes code;
    cudaError_t error = cudaFuncGetAttributes(&code, pvti_k_mma<64, true>);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&s->cores, cudaDevAttrMultiProcessorCount, s->ordinal);
    s->tensor = error == cudaSuccess && code.ptxVersion >= 80;
    for (int i = 0; i < 12 && error == cudaSuccess; i++)
        error = cudaFuncSetAttribute(pvti_attention_kernels[i / 4][i / 2 % 2][i % 2], most,
                                     PVTI_ATTENTION_BYTES);
    for (int i = 0; i < 2 && s->tensor && error == cudaSuccess; i++)
        error = cudaFuncSetAttribute(pvti_gemm_kernels[1][i], most, (int)pvti_mma_bytes(128, i));
#ifdef PVT_CUBLAS
    if (cublasCreate(&s->cublas) != CUBLAS_STATUS_SUCCESS ||
        cublasSetStream(s->cublas, s->stream) != CUBLAS_STATUS_SUCCESS)
        pvti_fail_with(s, PVT_ERR_IO, "cuBLAS cannot be opened");
#endif
    return pvti_check(s, error, "preparing kernels");
}
static pvt_result pvti_open_state(pvti_cuda *s)
{
    if (!pvti_check(s, cudaStreamCreate(&s->stream), "opening a stream")) return s->failed;
    s->streaming = true;
    if (!pvti_prepare(s)) return s->failed;
    s->room = (char *)pvti_take(s, PVT_CUDA_ROOM);
    if (!s->room) {
        pvti_fail_with(s, PVT_ERR_MEMORY, "the GPU has no memory for work space");
        return s->failed;
    }
    return pvti_grids(s);
}
static pvt_result pvti_op_open(const pvt_device *table, const pvt_ctx_desc *desc, void **state)
{
    char text[120];
    int ordinal = (int)(uintptr_t)table->user;
    const char *why = pvti_choose(ordinal, text, sizeof text);
    pvti_cuda *s = why ? NULL : (pvti_cuda *)calloc(1, sizeof *s);
    pvt_result result = why ? PVT_ERR_UNSUPPORTED : PVT_ERR_MEMORY;
    *state = s;
    if (s) {
        s->table = table, s->ordinal = ordinal, s->bf16 = desc->compute_bf16;
        result = pvti_open_state(s);
        why = s->failed ? s->why : result ? "the tables of fixed grids could not be made" : NULL;
    }
    if (result == PVT_OK) return PVT_OK;
    if (desc->error && desc->error_bytes > 0)
        snprintf(desc->error, (size_t)desc->error_bytes, "%s: %s", table->name, why ? why : "out of memory");
    if (s) pvti_op_close(s);
    *state = NULL;
    return result;
}
static pvt_result pvti_op_status(void *state, const char **why)
{
    pvti_cuda *s = (pvti_cuda *)state;
    *why = s->why;
    return s->failed;
}

/* In the order of pvt_device; user: the GPU's number. */
#define PVTI_TABLE(n) \
    {PVT_VERSION, sizeof(pvt_device), sizeof(pvt_real), "cuda:" #n, (void *)(uintptr_t)n, pvti_op_open, \
     pvti_op_close, pvti_op_status, pvti_op_synchronise, pvti_op_alloc, pvti_op_free, pvti_op_held, \
     pvti_op_copy_in, pvti_op_copy_out, pvti_op_copy, pvti_op_zero, pvti_op_embedding_forward, \
     pvti_op_embedding_backward, pvti_op_linear_forward, pvti_op_linear_backward, pvti_op_rmsnorm_forward, \
     pvti_op_rmsnorm_backward, pvti_op_rope_table, pvti_op_rope_forward, pvti_op_rope_backward, \
     pvti_op_rotate, pvti_op_rotate_columns, pvti_op_attention_forward, pvti_op_attention_backward, \
     pvti_op_swiglu_forward, pvti_op_swiglu_backward, pvti_op_residual_forward, pvti_op_residual_backward, \
     pvti_op_softmax_update, pvti_op_softmax_finish, pvti_op_cross_entropy_backward, pvti_op_kl_forward, \
     pvti_op_kl_backward, pvti_op_mse_forward, pvti_op_mse_backward, pvti_op_weight_lookup, \
     pvti_op_weight_forward, pvti_op_weight_backward, pvti_op_weight_dequantize, pvti_op_weight_chain, \
     pvti_op_round_f16, pvti_op_widen_f16, pvti_op_finite, pvti_op_reserve, pvti_op_adam, \
     pvti_op_group_errors, pvti_op_group_noise, pvti_op_group_select, pvti_op_weight_assign, \
     pvti_op_weight_commit, pvti_op_group_moments, pvti_op_group_return, pvti_op_dot, pvti_op_axpy, \
     pvti_op_product, pvti_op_fit_scales, pvti_op_kmeans_assign, pvti_op_kmeans_sums, pvti_op_search_room, \
     pvti_op_weight_search, pvti_op_decodes, pvti_op_weight_surrogate}
static const pvt_device pvti_tables[PVTI_ORDINALS] = {
    PVTI_TABLE(0),  PVTI_TABLE(1),  PVTI_TABLE(2),  PVTI_TABLE(3), PVTI_TABLE(4),  PVTI_TABLE(5),
    PVTI_TABLE(6),  PVTI_TABLE(7),  PVTI_TABLE(8),  PVTI_TABLE(9), PVTI_TABLE(10), PVTI_TABLE(11),
    PVTI_TABLE(12), PVTI_TABLE(13), PVTI_TABLE(14), PVTI_TABLE(15)};

extern "C" pvt_result pvt_cuda_device(int ordinal, const pvt_device **out)
{
    *out = NULL;
    if (ordinal < 0 || ordinal >= PVTI_ORDINALS) return PVT_ERR_ARGUMENT;
    *out = &pvti_tables[ordinal];
    return PVT_OK;
}
extern "C" pvt_result pvt_cuda_memory(int ordinal, char *name, int64_t name_bytes, int64_t *free_bytes,
                                      int64_t *bytes)
{
    cudaDeviceProp p;
    size_t left = 0, all = 0;
    bool known = cudaSetDevice(ordinal) == cudaSuccess &&
                 cudaGetDeviceProperties(&p, ordinal) == cudaSuccess &&
                 cudaMemGetInfo(&left, &all) == cudaSuccess;
    cudaGetLastError();
    if (name && name_bytes > 0) snprintf(name, (size_t)name_bytes, "%s", known ? p.name : "");
    *free_bytes = (int64_t)left, *bytes = (int64_t)all;
    return known ? PVT_OK : PVT_ERR_UNSUPPORTED;
}
