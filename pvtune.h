/*  pvtune.h: a Llama-family language model in two bits per weight, tuned - MIT licence

    Takes a model (Hugging Face directory, GGUF, llama2.c), replaces its matrices by additive
    codebooks (AQLM, arXiv 2401.06118), and tunes the result by PV-Tuning (arXiv 2405.14852): the
    continuous parameters by back-propagation, the discrete codes by capped re-assignment. Saves
    what transformers (4.49 to 5.x, with aqlm) loads. Runs on a plain CPU; needs libc, libm, threads.

    IN ONE FILE OF YOUR PROJECT (before other includes, or compile it as gnu99)

        #define PVTUNE_IMPLEMENTATION
        #include "pvtune.h"

    and in the others just the #include. Link with -lm -lpthread. C99, or C++ from 11 on; gcc or clang.
    Macros of one letter, min, max, bit and small (complex.h, windows.h) do no harm in here; to reach the
    field I of a weight from your own code behind complex.h, #undef I.

    A COMPLETE PROGRAM

        #define PVTUNE_IMPLEMENTATION
        #include "pvtune.h"
        int main(void)
        {
            pvt_ctx *ctx; pvt_model *teacher, *model; pvt_corpus text;
            if (pvt_ctx_create(NULL, &ctx)) return puts("out of memory"), 1;
            if (pvt_model_load(ctx, "model", NULL, &teacher) || pvt_model_copy(ctx, teacher, &model) ||
                pvt_corpus_load(ctx, "text.txt", pvt_model_tokenizer(teacher), &text) ||
                pvt_quantize(ctx, model, &text, NULL) ||
                pvt_tune(ctx, model, teacher, &text, NULL, NULL) ||
                pvt_model_save(model, "tuned", NULL)) return puts(pvt_ctx_error(ctx)), 1;
            return 0;
        }

    THREE LAYERS, each using only the ones below it; PVTUNE_LAYER cuts off what stands above
        0  ops on raw pointers, forward and backward adjacent: to read, change and try
        1  pvt_weight and pvt_pv: quantize your own matrices, tune them with gradients that you
           compute, keep them in a file of yours (examples/own_model.c does it in 160 lines)
        2  pvt_model, pvt_run, pvt_quantize, pvt_tuner: a checkpoint in, a checkpoint out

    CONTENTS (search for ">>" and the name)
        interface   context · ops · dtypes · weights · PV · tokenizer · models · runs · corpus,
                    evaluation, generation · quantize and tune
        layer 0     platform · context · errors · memory · random · threads · simd · gemm kernels ·
                    gemm packing · gemm · ops: rows · ops: attention · ops: losses
        layer 1     system · files · dtypes · weights · codebooks · look-ups · search · fit · optimizer · pv
        layer 2     json · exchange · safetensors · gguf · llama2.c · unicode · nfc · vocabulary · words ·
                    encode · tokenizer files · tokenizer saving · model · blocks · run · load · corpus ·
                    evaluation · generation · save · quantize · tuner ·
                    checkpoint

    SWITCHES (define before the #include)
        PVTUNE_IMPLEMENTATION   the code, in exactly one translation unit
        PVTUNE_LAYER 0|1|2      how much of it; default 2
        PVTUNE_REAL double      the whole stack in double, as the gradient checks use it
        PVT_API static          no symbol leaves the file
        PVTUNE_NO_THREADS, PVTUNE_NO_MMAP
    and, where pvt_ctx_desc says nothing, the environment when a context is made: PVTUNE_NUM_THREADS
    (or OMP_NUM_THREADS) and PVTUNE_ISA=scalar|avx2|avx512, which asks for no wider kernels than that.

    PROMISES
        Errors       Every call that can fail returns a pvt_result; pvt_ctx_error has the sentence.
                     Nothing exits, aborts or prints.
        Ownership    What a function creates, its _free or _destroy ends. Arguments are borrowed;
                     what must outlive an object is said where it is made. No globals.
        Threads      One calling thread at a time per context; contexts are independent.
        Same bits    Same input and seed: the same bits, for any number of threads and for scalar,
                     AVX2 and AVX-512 kernels alike. Sums run in a fixed order; exp, log, sin and
                     cos are our own; a*b+c is fused only where the source says so.
        Files        Hostile until checked. A file is written beside its target under a name of its own,
                     flushed, renamed: the old one or the new, whoever else writes it. A directory's files
                     are exchanged together: a save that ends half-way, killed or failed, leaves the old
                     model, the new one, or one that the next load or save completes. Permissions stay.

    AN EVENING'S READING: twelve stops, about 1,500 lines
         1  this manual, with the example below           7  pvti_xtx_* in search: calibration's search
         2  interface: weights and PV                     8  fit: scales, conjugate gradients
         3  codebooks: pvti_decode_row, pvti_scatter_rows 9  optimizer: Adam and LAMB
         4  codebooks: pvti_nearest_scalar               10  pv: pvti_pv_assign, pvt_pv_apply
         5  search: pvti_l2_*, the V step                11  blocks: a transformer block and its adjoint
         6  weights: the table of functions              12  tuner: pvt_tuner_step

    ONE GROUP BY HAND (tests/test_manual.c executes it)
        Format aqlm:1x2g2: one codebook of four entries, groups of two weights; scale s = 2.
            c0 = (0, 0)   c1 = (0.5, -0.5)   c2 = (1, 0)   c3 = (0, 1),   code 1: W = s·c1 = (1, -1).
        Back-propagation says dW = (0.4, -0.2).
        P step, chain rule:  dc1 = s·dW = (0.8, -0.4),  ds = <dW, c1> = 0.4·0.5 + 0.2·0.5 = 0.3.
               One Adam step at learning rate 0.01 moves each value by 0.01 against its sign:
               c1 = (0.49, -0.49),  s = 1.99.
        V step: the straight-through buffer started at W = (1, -1); its own Adam step at 0.6 takes
               it to (0.4, -0.4). In units of s that is (0.201, -0.201). Squared distances:
               c0 0.0808   c1 0.1670   c2 0.6788   c3 1.4828:  the code becomes 0, W = (0, 0).
        At a code learning rate of 0.3 the buffer stands at (0.7, -0.7), 0.352 in units of s: c1
        (0.0382) is nearer than c0 (0.2475) and nothing moves. The buffer must travel about half
        the way to the next entry; that is why it is kept from step to step.
*/

/*  Macros of the including file that would strike names in here: the I of <complex.h>, the small of
    <windows.h>, any of one letter. They are put aside for this file and brought back at its end. */
#define PVTI_PRAGMA(text) _Pragma(#text)
#define PVTI_PUT_ASIDE(name) PVTI_PRAGMA(push_macro(#name))
#define PVTI_BRING_BACK(name) PVTI_PRAGMA(pop_macro(#name))
#define PVTI_STRUCK_NAMES(EACH) \
    EACH(A) EACH(B) EACH(C) EACH(D) EACH(E) EACH(F) EACH(G) EACH(H) EACH(I) EACH(J) EACH(K) EACH(L) EACH(M) \
    EACH(N) EACH(O) EACH(P) EACH(Q) EACH(R) EACH(S) EACH(T) EACH(U) EACH(V) EACH(W) EACH(X) EACH(Y) EACH(Z) \
    EACH(a) EACH(b) EACH(c) EACH(d) EACH(e) EACH(f) EACH(g) EACH(h) EACH(i) EACH(j) EACH(k) EACH(l) EACH(m) \
    EACH(n) EACH(o) EACH(p) EACH(q) EACH(r) EACH(s) EACH(t) EACH(u) EACH(v) EACH(w) EACH(x) EACH(y) EACH(z) \
    EACH(bit) EACH(max) EACH(min) EACH(small)
PVTI_STRUCK_NAMES(PVTI_PUT_ASIDE)
#undef A
#undef B
#undef C
#undef D
#undef E
#undef F
#undef G
#undef H
#undef I
#undef J
#undef K
#undef L
#undef M
#undef N
#undef O
#undef P
#undef Q
#undef R
#undef S
#undef T
#undef U
#undef V
#undef W
#undef X
#undef Y
#undef Z
#undef a
#undef b
#undef c
#undef d
#undef e
#undef f
#undef g
#undef h
#undef i
#undef j
#undef k
#undef l
#undef m
#undef n
#undef o
#undef p
#undef q
#undef r
#undef s
#undef t
#undef u
#undef v
#undef w
#undef x
#undef y
#undef z
#undef bit
#undef max
#undef min
#undef small

#ifndef PVTUNE_H
#define PVTUNE_H

// >>configuration

/* The implementation needs POSIX beside C99: under -std=c99 include pvtune.h before libc's headers. */
#if defined(PVTUNE_IMPLEMENTATION) && !defined(_GNU_SOURCE)
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS, madvise */
#endif
#ifndef _DARWIN_C_SOURCE
#define _DARWIN_C_SOURCE /* _SC_NPROCESSORS_ONLN */
#endif
#endif

#define PVT_VERSION_MAJOR 0
#define PVT_VERSION_MINOR 1
#define PVT_VERSION_PATCH 1
#define PVT_VERSION (PVT_VERSION_MAJOR * 10000 + PVT_VERSION_MINOR * 100 + PVT_VERSION_PATCH)

#ifndef PVTUNE_REAL /* float, or double: then the whole stack computes in double */
#define PVTUNE_REAL float
#endif

#ifndef PVTUNE_LAYER /* 0 ops; 1 and weights, PV; 2 and models: cuts off all above */
#define PVTUNE_LAYER 2
#endif

#ifndef PVT_API /* e.g. static, or __declspec(dllexport) */
#define PVT_API extern
#endif
/* Static functions that a program leaves unused would each be warned of. */
#define PVTI_PASTE_(a, b) a##b
#define PVTI_PASTE(a, b) PVTI_PASTE_(a, b)
#define PVTI_SECOND_(first, second, ...) second
#define PVTI_SECOND(...) PVTI_SECOND_(__VA_ARGS__)
#define PVTI_API_IS_static 0, 1,
#if PVTI_SECOND(PVTI_PASTE(PVTI_API_IS_, PVT_API), 0, 0)
#undef PVT_API
#define PVT_API static __attribute__((unused))
#endif

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PVTI_REAL_IS_DOUBLE_float 0
#define PVTI_REAL_IS_DOUBLE_double 1
#define PVTI_REAL_IS_DOUBLE PVTI_PASTE(PVTI_REAL_IS_DOUBLE_, PVTUNE_REAL)

#ifdef __cplusplus
extern "C" {
#endif

typedef PVTUNE_REAL pvt_real;
// >>interface: context
/*  A context holds what every call shares: allocator, threads, seed, callbacks and the text
    of the last error. Objects made with it remember it; it must outlive them. One calling
    thread at a time per context; different contexts are independent. */

/* One list yields the codes and their names. */
#define PVT_RESULTS(X)                                                                   \
    X(PVT_OK, "done")                                                                    \
    X(PVT_ERR_ARGUMENT, "an argument is out of range or contradicts another")            \
    X(PVT_ERR_MEMORY, "memory could not be allocated, or a memory limit does not allow it") \
    X(PVT_ERR_IO, "a file could not be opened, read or written")                         \
    X(PVT_ERR_FORMAT, "a file is malformed")                                             \
    X(PVT_ERR_UNSUPPORTED, "valid, but not implemented here")                            \
    X(PVT_ERR_MISMATCH, "two things that must belong together do not")                   \
    X(PVT_ERR_NUMERIC, "a value is not finite or does not fit its type")                 \
    X(PVT_ERR_CANCELLED, "the progress callback asked to stop")

typedef enum pvt_result {
#define PVTI_X(name, text) name,
    PVT_RESULTS(PVTI_X)
#undef PVTI_X
    PVT_RESULT_COUNT
} pvt_result;

/* What a result code means, in English. Never NULL; needs no context. */
PVT_API const char *pvt_result_text(pvt_result result);

typedef struct pvt_ctx pvt_ctx;
struct pvt_device; /* see the section device */

/* alloc returns memory aligned for any type, or NULL; free gets what alloc returned. Called
   only from the thread that calls the library. */
typedef struct pvt_allocator {
    void *(*alloc)(size_t bytes, void *user);
    void (*free)(void *memory, void *user);
    void *user;
} pvt_allocator;

typedef struct pvt_progress {
    const char *phase;  /* "quantize" (within it "observe", "fit", "finetune"), "fit" (one weight), "tune"
                           (within it "evaluate"), "eval", …: a literal */
    const char *item;   /* what was just completed, e.g. a tensor's name; may be NULL */
    int64_t done, total; /* in `unit`; total 0: not known */
    const char *unit;   /* "weights", "epochs", "windows", "steps", "tokens" */
    double value;       /* the phase's figure: relative error, loss, perplexity; NaN: none yet */
} pvt_progress;
/* Called between units of work from the calling thread. Non-zero: stop here; the call in
   progress returns PVT_ERR_CANCELLED and its object stands at the last completed unit. */
typedef int pvt_progress_fn(void *user, const pvt_progress *progress);

/* Runs task(arg, i, worker) for every i in [0, n) on threads of the host; worker in
   [0, n_threads) and never the same in two tasks that run at once. Returns when all are done. */
typedef void pvt_task_fn(void *arg, int64_t i, int worker);
typedef void pvt_parallel_fn(void *user, int64_t n, pvt_task_fn *task, void *arg);

/* Zero means the recommended default, here and in every other desc. */
typedef struct pvt_ctx_desc {
    int n_threads; /* 0: PVTUNE_NUM_THREADS, else OMP_NUM_THREADS, else all cores; at most 256 */
    const char *isa; /* "scalar", "avx2", "avx512": use no wider kernels than these, to the same bits;
                        NULL: PVTUNE_ISA of the environment, else the widest that the processor has */
    uint64_t seed; /* every random choice follows from it */
    /* Linear layers and attention multiply operands rounded to bf16, with sums in fp32: twice as fast
       where the processor has AVX512_BF16, slower elsewhere, the same bits on both. Weights, their
       gradients, norms, softmax, losses and optimizers stay in fp32. Not with PVTUNE_REAL double. */
    bool compute_bf16;
    pvt_allocator allocator; /* zeroed: malloc */
    pvt_progress_fn *progress;
    void *progress_user;
    pvt_parallel_fn *parallel; /* NULL: own threads, started at first use */
    void *parallel_user;
    /* Where ops compute, and in whose memory; NULL: the processor. The table outlives the context. See the
       section device. */
    const struct pvt_device *device;
    /* Receives the sentence that says why pvt_ctx_create failed ("" when it did not), cut at error_bytes
       and always terminated; NULL: pvt_result_text has to do. Used by pvt_ctx_create only. */
    char *error;
    int64_t error_bytes;
} pvt_ctx_desc;

/* Creates a context; desc may be NULL. The macro records the caller's version and the sizes
   of its types, so that two translation units compiled differently are told apart.
   Errors: ARGUMENT (also a PVTUNE_ISA or PVTUNE_NUM_THREADS of the environment that means nothing), MEMORY,
   MISMATCH (version, pvt_real), UNSUPPORTED (compute_bf16 in double), and what the device says.
   desc->error has the sentence, except that another version's desc is not looked into. */
PVT_API pvt_result pvt_ctx_create_v(const pvt_ctx_desc *desc, pvt_ctx **out, int version, size_t real_size,
                                    size_t desc_size);
#define pvt_ctx_create(desc, out) \
    pvt_ctx_create_v(desc, out, PVT_VERSION, sizeof(pvt_real), sizeof(pvt_ctx_desc))
/* Ends the threads and frees the context. NULL is allowed. */
PVT_API void pvt_ctx_destroy(pvt_ctx *ctx);
/* What went wrong in the last call that failed, in words; "" before any. Valid until the
   next failure. NULL, which pvt_ctx_create leaves when it fails: a sentence that says so. */
PVT_API const char *pvt_ctx_error(const pvt_ctx *ctx);

typedef struct pvt_ctx_info {
    int n_threads;
    const char *isa;      /* "scalar", "avx2", "avx512" */
    int64_t bytes_now;    /* allocated through the context at this moment */
    int64_t bytes_peak;   /* the most since creation or since pvt_ctx_reset_peak */
    int64_t allocations;  /* how many were made since creation */
    const char *device;   /* its name; NULL: none */
    int64_t device_bytes_now, device_bytes_peak; /* of its memory, likewise */
} pvt_ctx_info;
PVT_API pvt_ctx_info pvt_ctx_get_info(const pvt_ctx *ctx);
PVT_API void pvt_ctx_reset_peak(pvt_ctx *ctx);
// >>interface: ops
/*  Layer 0: the operations a language model is made of, on raw pointers, forward and backward
    side by side. Each is a plain function that the implementation derives in a few lines
    (section ops), so that it can be read, changed and tried on a toy.

    Letters: B batch, T time, C channels, NH query heads, NKV key/value heads, HS head size,
    FF hidden size, V vocabulary, O out, I in; n counts rows (usually B·T). Arrays are
    row-major, the last letter fastest. dX is the gradient of the loss with respect to X.

    Rules for all of them:
    - They never allocate and never fail. Sizes ≥ 0 and pointers are the caller's to get right;
      a size of 0 does nothing. Arrays must not overlap unless a comment allows it.
    - Forward overwrites its outputs. Backward ADDS to the gradients it is given (the caller
      zeroes them first), so that a tensor used twice collects both; RoPE and the two losses,
      which work in place, overwrite and say so. A gradient passed as NULL is not computed,
      where the comment allows NULL.
    - ctx gives threads; ctx NULL runs on the calling thread. The bits are the same for any
      number of threads and any instruction set.
    Thread safety: one calling thread per context; without a context, any number. */

/* ---- embedding: out[i,:] = table[ids[i],:] ----
   out [n,C], table [V,C], ids [n]. An id outside 0 … V−1 gives a row of zeros and no gradient.
   Backward: dtable[ids[i],:] += dout[i,:], for one row of the table in the order of i. */
PVT_API void pvt_embedding_forward(pvt_ctx *ctx, pvt_real *out, const pvt_real *table, const int32_t *ids,
                                   int64_t n, int64_t V, int64_t C);
PVT_API void pvt_embedding_backward(pvt_ctx *ctx, pvt_real *dtable, const pvt_real *dout, const int32_t *ids,
                                    int64_t n, int64_t V, int64_t C);

/* ---- linear: y = x·Wᵀ + bias ----
   y [n,O], x [n,I], W [O,I], bias [O] or NULL.
   Backward: dx [n,I] += dy·W, dW [O,I] += dyᵀ·x, dbias [O] += Σ_n dy; each may be NULL. */
PVT_API void pvt_linear_forward(pvt_ctx *ctx, pvt_real *y, const pvt_real *x, const pvt_real *W,
                                const pvt_real *bias, int64_t n, int64_t I, int64_t O);
PVT_API void pvt_linear_backward(pvt_ctx *ctx, pvt_real *dx, pvt_real *dW, pvt_real *dbias,
                                 const pvt_real *dy, const pvt_real *x, const pvt_real *W, int64_t n,
                                 int64_t I, int64_t O);

/* ---- RMSNorm (Zhang, Sennrich 2019, arXiv 1910.07467, eq. 4) ----
   out[i,c] = x[i,c]·rstd[i]·weight[c],  rstd[i] = 1/√(mean_c x[i,c]² + eps).
   out, x [n,C]; rstd [n], kept for backward, may be NULL in forward; weight [C]. Norms over a
   head (Qwen3) are the same with n = B·T·NH, C = HS. Backward: dx [n,C], dweight [C]; either
   may be NULL. */
PVT_API void pvt_rmsnorm_forward(pvt_ctx *ctx, pvt_real *out, pvt_real *rstd, const pvt_real *x,
                                 const pvt_real *weight, int64_t n, int64_t C, pvt_real eps);
PVT_API void pvt_rmsnorm_backward(pvt_ctx *ctx, pvt_real *dx, pvt_real *dweight, const pvt_real *dout,
                                  const pvt_real *x, const pvt_real *rstd, const pvt_real *weight, int64_t n,
                                  int64_t C);

/* ---- RoPE (Su et al. 2021, arXiv 2104.09864, eq. 15 and 34) ----
   Pair j of a head at position t is rotated by the angle t·inv_freq[j], j = 0 … HS/2−1:
       (x_a, x_b) → (x_a·cos − x_b·sin,  x_b·cos + x_a·sin).
   Which elements are a pair depends on whose weights they are:                              */
typedef enum pvt_rope_pairing {
    PVT_ROPE_HALVES,     /* (j, j + HS/2): Hugging Face */
    PVT_ROPE_NEIGHBOURS  /* (2j, 2j + 1): the paper, llama2.c, GGUF files of the Llama architecture */
} pvt_rope_pairing;
/* inv_freq[j] = theta^(−2j/HS) in float, which is how the trained models had it. HS even. */
PVT_API void pvt_rope_frequencies(float *inv_freq, int64_t HS, double theta);
/* The "llama3" rule for longer contexts (rope_scaling in config.json): wavelengths
   2π/inv_freq above context/low are stretched by factor, those below context/high stay, and
   between the two the frequency is interpolated. context: the original one, in tokens. */
PVT_API void pvt_rope_scale_llama3(float *inv_freq, int64_t HS, double factor, double low, double high,
                                   int64_t context);
/* cosines, sines [T,HS/2] for positions pos … pos+T−1. The angle is rounded to float, as in the
   implementations that the models were trained with: at position 5,000 the difference shows. */
PVT_API void pvt_rope_table(pvt_ctx *ctx, pvt_real *cosines, pvt_real *sines, const float *inv_freq,
                            int64_t HS, int64_t pos, int64_t T);
/* x [B,T,NH,HS], rotated in place; tables as above: to start at a later position pass
   cosines + pos·HS/2 and sines + pos·HS/2. Backward turns dx back in place (it overwrites dx). */
PVT_API void pvt_rope_forward(pvt_ctx *ctx, pvt_real *x, const pvt_real *cosines, const pvt_real *sines,
                              int64_t B, int64_t T, int64_t NH, int64_t HS, pvt_rope_pairing pairing);
PVT_API void pvt_rope_backward(pvt_ctx *ctx, pvt_real *dx, const pvt_real *cosines, const pvt_real *sines,
                               int64_t B, int64_t T, int64_t NH, int64_t HS, pvt_rope_pairing pairing);

/* ---- causal attention, grouped queries (Ainslie et al. 2023, arXiv 2305.13245) ----
   out[b,t,h,:] = Σ_s P[t,s]·v[b,s,g,:],  P[t,:] = softmax_s(scale·q[b,t,h,:]·k[b,s,g,:]),
   g = h / (NH/NKV), over the keys s that query t may see: max(0, pos+t−window+1) … pos+t.
   q, out [B,T,NH,HS]; k, v [B,TK,NKV,HS]; lse [B,NH,T] = log Σ_s exp(scale·q·k), kept for
   backward, may be NULL in forward. NKV divides NH; pos + T ≤ TK.
   For T·TK scores no array exists: they are recomputed tile by tile (Dao et al. 2022,
   FlashAttention, arXiv 2205.14135). Training: pos = 0, TK = T. Decoding against a cache:
   T new queries at position pos, TK = pos + T, and kv_batch the cache's size per sequence. */
typedef struct pvt_attention_desc {
    int64_t B, T, NH, NKV, HS;
    int64_t pos;      /* position of query 0 among the keys */
    int64_t window;   /* keys that a query sees, itself included; 0: all up to itself */
    int64_t kv_batch; /* elements from one sequence of k (and v, dk, dv) to the next; 0: (pos+T)·NKV·HS */
    double scale;     /* 0: 1/√HS */
} pvt_attention_desc;
PVT_API void pvt_attention_forward(pvt_ctx *ctx, pvt_real *out, pvt_real *lse, const pvt_real *q,
                                   const pvt_real *k, const pvt_real *v, const pvt_attention_desc *desc);
/* dq as q, dk and dv as k and v: all three are wanted. out and lse are forward's. */
PVT_API void pvt_attention_backward(pvt_ctx *ctx, pvt_real *dq, pvt_real *dk, pvt_real *dv,
                                    const pvt_real *dout, const pvt_real *out, const pvt_real *lse,
                                    const pvt_real *q, const pvt_real *k, const pvt_real *v,
                                    const pvt_attention_desc *desc);

/* ---- SwiGLU (Shazeer 2020, arXiv 2002.05202, eq. 6): out = silu(gate)·up, element by element ----
   silu(z) = z/(1 + exp(−z)). n counts elements; out may be gate or up itself. */
PVT_API void pvt_swiglu_forward(pvt_ctx *ctx, pvt_real *out, const pvt_real *gate, const pvt_real *up,
                                int64_t n);
PVT_API void pvt_swiglu_backward(pvt_ctx *ctx, pvt_real *dgate, pvt_real *dup, const pvt_real *dout,
                                 const pvt_real *gate, const pvt_real *up, int64_t n);

/* ---- residual: out = a + b ----
   n elements; out may be a or b. Backward: da += dout, db += dout; either may be NULL. */
PVT_API void pvt_residual_forward(pvt_ctx *ctx, pvt_real *out, const pvt_real *a, const pvt_real *b,
                                  int64_t n);
PVT_API void pvt_residual_backward(pvt_ctx *ctx, pvt_real *da, pvt_real *db, const pvt_real *dout, int64_t n);

/* ---- losses over the vocabulary, in slices ----
   The logits of n tokens over V entries are the largest array of all; here only a slice
   v0 … v0+VS−1 of the vocabulary needs to exist at a time. logits [n,VS], rows ld apart.

       zero rows[n];
       for each slice: compute its logits; pvt_softmax_update(…)
       pvt_softmax_finish(…)                                → lse[n] and the cross-entropies
       for each slice: compute its logits again; pvt_cross_entropy_backward(…)
                       or, with the teacher's slice, pvt_kl_forward and pvt_kl_backward
                       → the slice now holds dlogits, ready for dW += dlogitsᵀ·x, dx += dlogits·W

   With one slice (v0 = 0, VS = V) this is the ordinary softmax loss, logits computed once.
   targets [n]: the right token's index in the vocabulary; a negative one takes the row out of
   sums, loss and gradient (give all calls the same targets); NULL, for KL: every row counts.
   The losses are per row, in nats; their mean is the caller's, who knows how many rows counted:
   scale in backward is d(total)/d(loss of a row), usually 1/count. */
typedef struct pvt_softmax_row {
    double max, sum; /* Σ_v exp(logit_v − max) over the slices so far; sum 0: none yet */
    double target;   /* the target's logit, once its slice has been seen */
} pvt_softmax_row;
PVT_API void pvt_softmax_update(pvt_ctx *ctx, pvt_softmax_row *rows, const pvt_real *logits,
                                const int32_t *targets, int64_t n, int64_t v0, int64_t VS, int64_t ld);
/* lse[i] = max + log(sum); loss[i] = lse[i] − target, 0 for a negative target. Either output
   and targets may be NULL; a loss needs targets. */
PVT_API void pvt_softmax_finish(pvt_ctx *ctx, double *lse, double *loss, const pvt_softmax_row *rows,
                                const int32_t *targets, int64_t n);
/* logits in, dlogits out: scale·(softmax − [v = target]); zeros for a negative target. */
PVT_API void pvt_cross_entropy_backward(pvt_ctx *ctx, pvt_real *logits, const double *lse,
                                        const int32_t *targets, double scale, int64_t n, int64_t v0,
                                        int64_t VS, int64_t ld);
/* loss[i] += this slice's share of KL(teacher‖student) = Σ_v p_v·(log p_v − log q_v), p the
   teacher. teacher and student: logits [n,VS] with their own lse; zero loss[n] first. */
PVT_API void pvt_kl_forward(pvt_ctx *ctx, double *loss, const pvt_real *student, const double *student_lse,
                            const pvt_real *teacher, const double *teacher_lse, const int32_t *targets,
                            int64_t n, int64_t VS, int64_t ld);
/* student: logits in, dlogits out: scale·(q − p). */
PVT_API void pvt_kl_backward(pvt_ctx *ctx, pvt_real *student, const double *student_lse,
                             const pvt_real *teacher, const double *teacher_lse, const int32_t *targets,
                             double scale, int64_t n, int64_t VS, int64_t ld);

/* ---- mean squared error: (1/n)·Σ (a − b)² ---- (returned; n elements, 0 when n = 0)
   Backward: da += scale·(2/n)·(a − b). b is a constant. */
PVT_API double pvt_mse_forward(pvt_ctx *ctx, const pvt_real *a, const pvt_real *b, int64_t n);
PVT_API void pvt_mse_backward(pvt_ctx *ctx, pvt_real *da, const pvt_real *a, const pvt_real *b, double scale,
                              int64_t n);
// >>interface: device
/*  Where a context computes. A device is a table with one function for each op of this file; a context that
    was made with one (pvt_ctx_desc.device) hands every op over to it. Without one the processor computes.

    WHICH MEMORY a pointer is. What ops read and write lies in the context's memory: the device's, when it has
    one, else the host's. That are: all arrays that the ops of layer 0 take (ids and targets too); the arrays
    of a pvt_weight, and so of a pvt_model, in the memory of the context that made them; gradients and params
    of a pv; what pvt_run_hidden and pvt_run_grad return and a pvt_grad_fn gets. Host memory is everything
    else: structs, names, texts, ids and targets given to a run, the logits and losses that it hands out,
    arrays given to pvt_weight_from_arrays and pvt_weight_dense. Pointers into a device's memory may be offset
    like any other, but only ops and the functions below read or write through them. Models are loaded, made
    and saved on the host and carried over, each tensor as it is: that is these functions' own affair.

    ERRORS STICK. An op never fails: a device remembers its first error, does nothing from then on, and every
    later call that can fail returns it. pvt_memory_read and pvt_ctx_synchronise wait for all that was asked
    before; no other function of this section waits.

    With a device the following say UNSUPPORTED: pvt_weight_fit, pvt_quantize, a head in q8. Do them in a
    context without one; pvt_model_copy brings a model from one memory to the other. */

/* Zeroed bytes of the context's memory, aligned to 64 or more; NULL, with the sentence in ctx: there is none.
   pvt_memory_free(ctx, NULL) is allowed. */
PVT_API void *pvt_memory_alloc(pvt_ctx *ctx, int64_t bytes);
PVT_API void pvt_memory_free(pvt_ctx *ctx, void *memory);
/* From the host's memory into the context's; `from` is free again on return. */
PVT_API void pvt_memory_write(pvt_ctx *ctx, void *to, const void *from, int64_t bytes);
/* From the context's memory to the host's. Errors: whatever the device has met so far; `to` is then
   undefined. */
PVT_API pvt_result pvt_memory_read(pvt_ctx *ctx, void *to, const void *from, int64_t bytes);
/* Within the context's memory; the two ranges do not overlap. */
PVT_API void pvt_memory_copy(pvt_ctx *ctx, void *to, const void *from, int64_t bytes);
PVT_API void pvt_memory_zero(pvt_ctx *ctx, void *memory, int64_t bytes);
/* Waits until everything that was asked for is done. Errors: the device's first one. */
PVT_API pvt_result pvt_ctx_synchronise(pvt_ctx *ctx);

struct pvt_weight; /* of layer 1, and so is pvt_optimizer */
struct pvt_optimizer;

/* One array w [n] that an optimizer moves, with its moments. */
typedef struct pvt_adam {
    pvt_real *w, *m, *v_max; /* m NULL at β1 = 0; v_max for amsgrad, else NULL */
    void *v;                 /* pvt_real, or uint16_t with the upper half of a float: bf16 */
    bool v_bf16;
    int64_t n;
} pvt_adam;

/*  A search for codes: for each of n groups of a weight the code whose group lies nearest to the target's.
    Arrays in the context's memory but `order`. */
typedef struct pvt_assign {
    const pvt_real *target; /* [O, I] */
    const int64_t *groups;  /* [n], which; NULL: 0 … n−1 */
    int64_t n;
    const int64_t *order;   /* [M], host: in which order the codebooks are gone through */
    int beam;               /* hypotheses kept */
    bool force;             /* the present code is no answer */
    uint16_t *codes;        /* out: [n, M] */
    float *change;          /* out: [n], squared distance of the new group from the present; NULL: unasked */
} pvt_assign;

/*  The table. `state` is what `open` made for one context, whose calls come one at a time. An op of layer 0
    has the contract of the public function of its name, with state for ctx: shapes, what is overwritten, what
    is added to, what may be NULL; what pointers marked `host` point to, and every struct, is on the host and
    free again on return. Ops may be carried out later, in the order in which they were asked for; one that
    returns a number waits (after an error it returns 0, −1 or true). They never allocate what the caller
    could miss: what a device needs beside its operands it takes in `open` and `reserve`. The same calls give
    the same bits, from run to run. Every pointer must be set. */
typedef struct pvt_device {
    int version;            /* PVT_VERSION, */
    size_t size, real_size; /* sizeof(pvt_device) and sizeof(pvt_real) where the table was filled in */
    const char *name;       /* in messages and pvt_ctx_info; outlives the contexts, as the table does */
    void *user;             /* the device's own */

    /* A context begins and ends. desc: the context's. On failure the sentence goes to desc->error. */
    pvt_result (*open)(const struct pvt_device *device, const pvt_ctx_desc *desc, void **state);
    void (*close)(void *state);
    /* The first error so far, without waiting; its sentence, on the host and the device's own, in *why. */
    pvt_result (*status)(void *state, const char **why);
    void (*synchronise)(void *state);

    /* Memory. alloc: zeroed, aligned to 64 or more, or NULL, which is no error that sticks. free: after the
       ops that were asked for before it. held: bytes now. */
    void *(*alloc)(void *state, int64_t bytes);
    void (*free)(void *state, void *memory);
    int64_t (*held)(void *state);
    void (*copy_in)(void *state, void *to, const void *host, int64_t bytes);
    void (*copy_out)(void *state, void *host, const void *from, int64_t bytes); /* waits */
    void (*copy)(void *state, void *to, const void *from, int64_t bytes);
    void (*zero)(void *state, void *memory, int64_t bytes);

    /* Layer 0. */
    void (*embedding_forward)(void *state, pvt_real *out, const pvt_real *table, const int32_t *ids, int64_t n,
                              int64_t V, int64_t C);
    void (*embedding_backward)(void *state, pvt_real *dtable, const pvt_real *dout, const int32_t *ids,
                               int64_t n, int64_t V, int64_t C);
    void (*linear_forward)(void *state, pvt_real *y, const pvt_real *x, const pvt_real *W, const pvt_real *bias,
                           int64_t n, int64_t I, int64_t O);
    void (*linear_backward)(void *state, pvt_real *dx, pvt_real *dW, pvt_real *dbias, const pvt_real *dy,
                            const pvt_real *x, const pvt_real *W, int64_t n, int64_t I, int64_t O);
    void (*rmsnorm_forward)(void *state, pvt_real *out, pvt_real *rstd, const pvt_real *x,
                            const pvt_real *weight, int64_t n, int64_t C, pvt_real eps);
    void (*rmsnorm_backward)(void *state, pvt_real *dx, pvt_real *dweight, const pvt_real *dout,
                             const pvt_real *x, const pvt_real *rstd, const pvt_real *weight, int64_t n,
                             int64_t C);
    void (*rope_table)(void *state, pvt_real *cosines, pvt_real *sines, const float *host_inv_freq, int64_t HS,
                       int64_t pos, int64_t T);
    void (*rope_forward)(void *state, pvt_real *x, const pvt_real *cosines, const pvt_real *sines, int64_t B,
                         int64_t T, int64_t NH, int64_t HS, pvt_rope_pairing pairing);
    void (*rope_backward)(void *state, pvt_real *dx, const pvt_real *cosines, const pvt_real *sines, int64_t B,
                          int64_t T, int64_t NH, int64_t HS, pvt_rope_pairing pairing);
    void (*attention_forward)(void *state, pvt_real *out, pvt_real *lse, const pvt_real *q, const pvt_real *k,
                              const pvt_real *v, const pvt_attention_desc *host_desc);
    void (*attention_backward)(void *state, pvt_real *dq, pvt_real *dk, pvt_real *dv, const pvt_real *dout,
                               const pvt_real *out, const pvt_real *lse, const pvt_real *q, const pvt_real *k,
                               const pvt_real *v, const pvt_attention_desc *host_desc);
    void (*swiglu_forward)(void *state, pvt_real *out, const pvt_real *gate, const pvt_real *up, int64_t n);
    void (*swiglu_backward)(void *state, pvt_real *dgate, pvt_real *dup, const pvt_real *dout,
                            const pvt_real *gate, const pvt_real *up, int64_t n);
    void (*residual_forward)(void *state, pvt_real *out, const pvt_real *a, const pvt_real *b, int64_t n);
    void (*residual_backward)(void *state, pvt_real *da, pvt_real *db, const pvt_real *dout, int64_t n);
    void (*softmax_update)(void *state, pvt_softmax_row *rows, const pvt_real *logits, const int32_t *targets,
                           int64_t n, int64_t v0, int64_t VS, int64_t ld);
    void (*softmax_finish)(void *state, double *lse, double *loss, const pvt_softmax_row *rows,
                           const int32_t *targets, int64_t n);
    void (*cross_entropy_backward)(void *state, pvt_real *logits, const double *lse, const int32_t *targets,
                                   double scale, int64_t n, int64_t v0, int64_t VS, int64_t ld);
    void (*kl_forward)(void *state, double *loss, const pvt_real *student, const double *student_lse,
                       const pvt_real *teacher, const double *teacher_lse, const int32_t *targets, int64_t n,
                       int64_t VS, int64_t ld);
    void (*kl_backward)(void *state, pvt_real *student, const double *student_lse, const pvt_real *teacher,
                        const double *teacher_lse, const int32_t *targets, double scale, int64_t n, int64_t VS,
                        int64_t ld);
    double (*mse_forward)(void *state, const pvt_real *a, const pvt_real *b, int64_t n); /* waits */
    void (*mse_backward)(void *state, pvt_real *da, const pvt_real *a, const pvt_real *b, double scale,
                         int64_t n);

    /* Weights of any representation: the struct is the host's, its arrays (pvt_weight_arrays) the device's.
       */
    void (*weight_lookup)(void *state, pvt_real *out, const struct pvt_weight *weight, const int32_t *rows,
                          int64_t n);
    void (*weight_forward)(void *state, pvt_real *y, const pvt_real *x, const struct pvt_weight *weight,
                           int64_t n, bool accumulate);
    void (*weight_backward)(void *state, pvt_real *dx, pvt_real *dW, const pvt_real *dy, const pvt_real *x,
                            const struct pvt_weight *weight, int64_t n);
    /* out [O, I] ← δ·Ŵ + (1−δ)·out; δ = 1 overwrites */
    void (*weight_dequantize)(void *state, pvt_real *out, const struct pvt_weight *weight, double delta);
    /* dvalues[i] += d loss/d values[i] from dW [O, I], for the weight's arrays of role VALUE in their order
       */
    void (*weight_chain)(void *state, pvt_real *const *host_dvalues, const struct pvt_weight *weight,
                         const pvt_real *dW);

    /* Numbers. round_f16: half[i] = from[i] in fp16 (nearest, ties to even), real[i] = that number again;
       each may be NULL, real may be from. Returns the first i whose from[i] is not finite or rounds beyond
       65504, −1: none; waits. widen_f16: out[i] = half[i]. finite: no NaN, no infinity; waits. sums:
       [2·⌈n/8192⌉], work space. */
    int64_t (*round_f16)(void *state, uint16_t *half, pvt_real *real, const pvt_real *from, int64_t n);
    void (*widen_f16)(void *state, pvt_real *out, const uint16_t *half, int64_t n);
    bool (*finite)(void *state, const pvt_real *g, int64_t n, double *sums);

    /* PV. reserve: a weight was added; takes what weight_chain and the V step below will need for it beside
       their operands; false: no memory. adam: step t (from 1) of a->w against g [a->n] by the rule of o
       (formulas: section optimizer), learning rate o->lr · lr_scale; sums as in finite. */
    bool (*reserve)(void *state, const struct pvt_weight *weight, int beam);
    void (*adam)(void *state, const pvt_adam *host_a, const pvt_real *g, const struct pvt_optimizer *host_o,
                 double lr_scale, int64_t t, double *sums);
    /* The V step of one weight. group_errors: keys [groups] = ‖target − Ŵ‖² of each group, norms [O/og] =
       ‖Ŵ‖² of each row of groups. group_noise: keys[i] ← 0.5/temperature·log keys[i] + Gumbel noise −log(−log
       u), u = unit·0.999999 + 5e-7, unit = (mix(stream ^ i) >> 11)·2⁻⁵³, mix the finalizer of SplitMix64
       (section random); −FLT_MAX where keys[i] is 0. group_select: the k largest, the largest first, ties to
       the lower index; both work arrays [groups]. weight_assign: see pvt_assign; no code changes.
       weight_commit: the codes of a are the weight's from here on, of all a->n groups or, with trust > 0, of
       the first `accepted`: one, and one more for each i with Σ_{j≤i} change[j] < trust²·Σ norms, in double;
       *changed += how many groups' codes differ from those they had. */
    void (*group_errors)(void *state, float *keys, double *norms, const struct pvt_weight *weight,
                         const pvt_real *target);
    void (*group_noise)(void *state, float *keys, int64_t groups, double temperature, uint64_t stream);
    void (*group_select)(void *state, int64_t *selected, const float *keys, int64_t groups, int64_t k,
                         uint64_t *work, uint64_t *more_work);
    void (*weight_assign)(void *state, const struct pvt_weight *weight, const pvt_assign *host_a);
    void (*weight_commit)(void *state, struct pvt_weight *weight, const pvt_assign *host_a, const double *norms,
                          double trust, int64_t *changed);
} pvt_device;
#if PVTUNE_LAYER >= 1
// >>interface: dtypes
/* Element types of tensors in files and in dense weights. The Q types are GGUF's blocks. */
typedef enum pvt_dtype {
    PVT_DTYPE_NONE,
    PVT_F32, PVT_F16, PVT_BF16, PVT_F64,
    PVT_I8, PVT_U8, PVT_I16, PVT_U16, PVT_I32, PVT_U32, PVT_I64, PVT_U64, PVT_BOOL,
    PVT_Q4_0, PVT_Q4_1, PVT_Q5_0, PVT_Q5_1, PVT_Q8_0,
    PVT_Q2_K, PVT_Q3_K, PVT_Q4_K, PVT_Q5_K, PVT_Q6_K,
    PVT_DTYPE_COUNT
} pvt_dtype;

// >>interface: weights
/*  One weight matrix W [O, I] (out, in) in any representation. Layer 1 knows nothing of
    transformers: bring your own matrices and your own gradients. */

typedef enum pvt_format_kind { PVT_FORMAT_DENSE, PVT_FORMAT_AQLM } pvt_format_kind;

/* Additive codebooks (AQLM, arXiv 2401.06118): a group is a tile of og × ig weights, and
       W[group] = scale[out group] · Σ_m codebook_m[code_m],   m = 1 … M, 2^B entries each. */
/* Zeroed, in a desc: that desc's default. "dense" is 16 bits in groups of 1. */
typedef struct pvt_format {
    pvt_format_kind kind;
    int codebooks; /* M, 1 … 16 */
    int bits;      /* B, 1 … 16 */
    int in_group;  /* ig, 1 … 64; must divide I */
    int out_group; /* og, 1 … 64, og · ig ≤ 256; must divide O */
} pvt_format;

/* "aqlm:MxBgG" or "aqlm:MxBgGoO", e.g. "aqlm:2x8g8"; or "dense". Errors: ARGUMENT. */
PVT_API pvt_result pvt_format_parse(pvt_ctx *ctx, const char *text, pvt_format *out);
/* The text that pvt_format_parse reads back. */
PVT_API void pvt_format_text(const pvt_format *format, char out[48]);
/* Bits per weight of an O × I matrix with everything counted:
   (n/(og·ig)·M·B + M·2^B·og·ig·16 + O/og·16) / n, n = O·I. Needs no context. */
PVT_API double pvt_format_bits(const pvt_format *format, int64_t O, int64_t I);

struct pvti_weight_kind;
/* The fields may be read; they change only through the functions below. */
typedef struct pvt_weight {
    const struct pvti_weight_kind *kind; /* the representation's table of functions */
    pvt_ctx *ctx;
    int64_t O, I;
    pvt_format format;
    pvt_dtype dtype;     /* dense: of data */
    const void *data;    /* dense: [O, I] rows, or GGUF blocks along I */
    void *codes;         /* AQLM: [O/og, I/ig, M], uint8_t when B ≤ 8, else uint16_t */
    pvt_real *codebooks; /* AQLM: [M, 2^B, og, ig] */
    pvt_real *scales;    /* AQLM: [O/og] */
    void *lookup;        /* AQLM: what pvt_weight_prepare made for products with one row, or NULL */
    bool owned;          /* frees its arrays; false in a view and over borrowed memory */
} pvt_weight;

/*  The arrays that a weight is made of, so that it can be kept in a file of your own and made again:
        aqlm:   "codes" [O/og, I/ig, M], "codebooks" [M, 2^B, og, ig], "scales" [O/og]
        dense:  "weight" [O, I], or GGUF blocks along I
    Values are pvt_real (dense: the weight's dtype), codes U8 when B ≤ 8, else U16. */
typedef enum pvt_array_role {
    PVT_ARRAY_VALUE, /* continuous: the P step tunes it */
    PVT_ARRAY_CODE   /* discrete: the V step re-assigns it */
} pvt_array_role;
typedef struct pvt_array {
    const char *name; /* in a list of ours: a string literal */
    pvt_array_role role;
    pvt_dtype dtype;
    int rank;
    int64_t shape[4]; /* row-major; beyond rank: 1 */
    int64_t bytes;
    const void *data;
} pvt_array;
enum { PVT_MAX_ARRAYS = 4 };

/* Lists in out the arrays, *n of them, that an O × I matrix of this format has; data is NULL.
   Errors: ARGUMENT (out of range, or a group does not divide). */
PVT_API pvt_result pvt_format_arrays(pvt_ctx *ctx, const pvt_format *format, int64_t O, int64_t I,
                                     pvt_array out[PVT_MAX_ARRAYS], int *n);
/* Lists in out the weight's own arrays and returns how many. They can be read until the weight is
   freed; tuning changes them. Their data lies in the memory of the weight's context (section device). */
PVT_API int pvt_weight_arrays(const pvt_weight *weight, pvt_array out[PVT_MAX_ARRAYS]);
/*  A weight made of copies of n arrays, found by their names; role is not read. Shape and bytes must be
    those that pvt_format_arrays lists, and the dtype too, except that values may be of any
    floating-point type (a dense weight's also GGUF blocks; it becomes pvt_real). name, for messages,
    may be NULL. Errors: ARGUMENT (sizes, an array that is missing, too much or of another type or
    shape, a code of more than B bits), NUMERIC (a value is not finite), MEMORY; out is then zeroed.
    out is owned by the caller: pvt_weight_free. */
PVT_API pvt_result pvt_weight_from_arrays(pvt_ctx *ctx, const pvt_format *format, int64_t O, int64_t I,
                                          const pvt_array *arrays, int n, const char *name, pvt_weight *out);

/* A dense weight over the caller's memory, which must outlive it; nothing is copied. dtype:
   F32, F16, BF16, or a GGUF block type whose block divides I; PVT_F64 in the double build.
   Errors: ARGUMENT. */
PVT_API pvt_result pvt_weight_borrow(pvt_ctx *ctx, const void *data, pvt_dtype dtype, int64_t O, int64_t I,
                                     pvt_weight *out);
/* A dense weight of its own in pvt_real, zero; `fill` may be NULL or [O, I] to copy, in host memory. */
PVT_API pvt_result pvt_weight_dense(pvt_ctx *ctx, const pvt_real *fill, int64_t O, int64_t I, pvt_weight *out);

typedef struct pvt_fit_desc {
    const char *name;      /* for messages */
    uint64_t stream;       /* random choices follow (seed of the context, stream); e.g. the tensor's number */
    int epochs;            /* at most so many of P step, then beam search; 0: 16 */
    double tolerance;      /* stop when an epoch lowers the error by less than this share; 0: 0.002 */
    double target;         /* stop at this relative error; 0: none */
    int cg_steps;          /* conjugate gradients in each P step; 0: 8 */
    int kmeans_steps;      /* 0: 25 */
    int beam;              /* hypotheses kept in the search; 0: 1 */
} pvt_fit_desc;

typedef struct pvt_fit_stats {
    double error;          /* ‖(W−Ŵ)X‖²/‖WX‖² = ⟨(W−Ŵ)H, W−Ŵ⟩/⟨WH, W⟩; without H of the weights themselves */
    double error_start;    /* after k-means */
    int epochs;
    double seconds;
} pvt_fit_stats;

/*  Codes and continuous parameters for W [O, I], by the calibration of AQLM (2401.06118, 3.2):
    minimise ⟨(W−Ŵ)H, W−Ŵ⟩ over codes, codebooks and scales. H [I, I] = XᵀX (any positive
    multiple, symmetric, a mean over samples is usual) or NULL for the plain squared error.
    desc and stats may be NULL. Start: row norms, k-means on the residuals weighted by diag(H);
    then in turn scales in closed form, codebooks by preconditioned conjugate gradients, codes
    by beam search. After each epoch the context's progress is called: phase "fit", item the desc's
    name, value the error so far. Errors: ARGUMENT (a group does not divide), NUMERIC (W or H not
    finite), MEMORY, CANCELLED; out is then zeroed. out is owned by the caller: pvt_weight_free. */
PVT_API pvt_result pvt_weight_fit(pvt_ctx *ctx, const pvt_real *W, int64_t O, int64_t I, const pvt_real *H,
                                  const pvt_format *format, const pvt_fit_desc *desc, pvt_fit_stats *stats,
                                  pvt_weight *out);
/* Rows o0 … o0+n−1 as a weight of its own, sharing memory (fused qkv, gate_up). o0 and n must
   be multiples of og. Freeing a view frees nothing. Errors: ARGUMENT. */
PVT_API pvt_result pvt_weight_rows(const pvt_weight *weight, int64_t o0, int64_t n, pvt_weight *view);
/* W [O, I] in full. */
PVT_API void pvt_weight_dequantize(const pvt_weight *weight, pvt_real *W);
/* Rows of the matrix: out[i] = W[rows[i]], [n, I]; the embedding look-up. Every rows[i] in [0, O). */
PVT_API void pvt_weight_lookup(pvt_ctx *ctx, pvt_real *out, const pvt_weight *weight, const int32_t *rows,
                               int64_t n);
/*  Makes products with one row of x fast, for codebook weights with groups of one row (others are left as they
    are). Up to 256 entries: keeps the codes a second time, in the order in which look-ups read them; such
    products then go through tables of ⟨x_group, entry⟩. Codebooks, x and tables are integers of 16 bits in units
    of the largest (of x and tables: in 32 tables): an error near that of codebooks in fp16 (Gaussian numbers:
    1.2e-4, fp16 2.1e-4; with every 50th of x 40 times as large: 2.3e-4). More entries, groups of eight: keeps
    the codebooks in fp16. The same bits everywhere. Tuning the weight drops it again; a view prepares, and
    frees, its own. A device has ways of its own: there this does nothing. Errors: MEMORY. */
PVT_API pvt_result pvt_weight_prepare(pvt_weight *weight);
/* y [n, O] = x [n, I] · Wᵀ, or y += when accumulate. Never allocates, never fails. */
PVT_API void pvt_weight_forward(pvt_ctx *ctx, pvt_real *y, const pvt_real *x, const pvt_weight *weight,
                                int64_t n, bool accumulate);
/* dx [n, I] += dy · W and dW [O, I] += dyᵀ · x; dx or dW may be NULL. */
PVT_API void pvt_weight_backward(pvt_ctx *ctx, pvt_real *dx, pvt_real *dW, const pvt_real *dy,
                                 const pvt_real *x, const pvt_weight *weight, int64_t n);
/* Chain rule of a codebook weight (with h[g] = the group g of dW):
       dcodebook_m[k] += Σ_{g: code_m(g) = k} scale(g) · h[g],   dscale[o] += Σ_{g in row o} ⟨h[g],
           Σ_m codebook_m[code_m(g)]⟩.
   Shapes as in pvt_weight. Errors: ARGUMENT (dense), MEMORY. */
PVT_API pvt_result pvt_weight_chain(pvt_ctx *ctx, pvt_real *dcodebooks, pvt_real *dscales,
                                    const pvt_weight *weight, const pvt_real *dW);
/* Rounds codebooks and scales to fp16, as a saved file holds them. Errors: NUMERIC (overflow,
   not finite), with the weight unchanged. */
PVT_API pvt_result pvt_weight_round_f16(pvt_weight *weight, const char *name);
/* Bits per weight, everything counted. */
PVT_API double pvt_weight_bits(const pvt_weight *weight);
/* Frees what it owns and zeroes the struct. NULL and zeroed are allowed. */
PVT_API void pvt_weight_free(pvt_weight *weight);

// >>interface: PV
/*  PV-Tuning (arXiv 2405.14852) of any set of weights, with gradients from anyone. A step:
        pvt_pv_begin, then pvt_pv_apply once per handle in any order, then pvt_pv_end.
    Per weight, from one dense gradient dW: chain rule into codebooks and scales (P step), one
    Adam or LAMB update of them and of the straight-through buffer, then re-assignment of the
    capped share of codes against the already updated values (V step), then buffer decay. */

typedef enum pvt_strategy {
    PVT_STRATEGY_PV_STE,     /* "pv": capped search against a persistent buffer (δ = 0) */
    PVT_STRATEGY_CONTINUOUS, /* "continuous": codes stay */
    PVT_STRATEGY_STE,        /* "ste": straight-through estimation; no cap */
    PVT_STRATEGY_PV          /* "pv-linear": subspace linearized PV (δ = 1, no buffer) */
} pvt_strategy;
/* The strategy of that name. Errors: ARGUMENT, listing the names. */
PVT_API pvt_result pvt_strategy_parse(pvt_ctx *ctx, const char *name, pvt_strategy *out);
PVT_API const char *pvt_strategy_name(pvt_strategy strategy);

/* Adam (1412.6980) or LAMB (1904.00962) with the conventions of the reference code: eps is
   added outside the square root and not debiased; LAMB multiplies by ‖w‖/‖update‖ per tensor. */
typedef enum pvt_optimizer_rule {
    PVT_OPTIMIZER_DEFAULT,
    PVT_OPTIMIZER_ADAM,
    PVT_OPTIMIZER_LAMB
} pvt_optimizer_rule;
typedef struct pvt_optimizer {
    pvt_optimizer_rule rule;
    double lr;           /* 0: the default of its rule and place, see pvt_pv_desc */
    double beta1, beta2; /* beta2 0: 0.95, and then beta1 0: that of its place */
    double eps;          /* 0: 1e-6 */
    double weight_decay; /* decoupled; in LAMB added to the update */
    bool amsgrad;        /* the largest v so far instead of v */
    bool no_debias;      /* debias: factor sqrt(1−β2^t)/(1−β1^t) */
} pvt_optimizer;

typedef struct pvt_pv_desc {
    pvt_strategy strategy;
    pvt_optimizer values; /* codebooks and scales. Default: Adam 3e-4 (.9, .95) */
    pvt_optimizer params; /* what is not quantized. Default, field by field: as values */
    pvt_optimizer
        codes; /* the buffer. Default: LAMB 2.5e-2 (0, .95), for weights differ in size from layer to
                  layer, and Adam, whose default is 3e-3, moves the codes of the small ones only */
    double cap;           /* share of each weight's groups searched per step; 0: 0.01 (STE: 1) */
    double trust;         /* ‖ΔW‖ per step at most trust · ‖W‖; 0: no limit */
    double delta;         /* buffer ← δ·W + (1−δ)·buffer after the search; PVT_STRATEGY_PV: 1 */
    int beam;             /* 0: 1 */
    double temperature;   /* > 0: groups drawn with p ∝ key^(0.5/T) instead of the largest */
    bool force_update;    /* a searched group must change */
    bool freeze_values;   /* V step alone: codebooks and scales stay */
    pvt_dtype moments;    /* of the buffer's second moment: PVT_BF16 halves it; 0: full precision */
} pvt_pv_desc;

typedef struct pvt_pv_stats {
    int64_t step;            /* counted from 1 */
    int64_t groups;          /* in all weights */
    int64_t groups_searched; /* in this step */
    int64_t groups_changed;
} pvt_pv_stats;

typedef struct pvt_pv pvt_pv;
/* The desc (NULL: zeroed) with every default filled in: what a pv made with it will do. Needs no context. */
PVT_API pvt_pv_desc pvt_pv_resolve(const pvt_pv_desc *desc);
/* desc may be NULL. Errors: ARGUMENT (which field), MEMORY. */
PVT_API pvt_result pvt_pv_create(pvt_ctx *ctx, const pvt_pv_desc *desc, pvt_pv **out);
PVT_API void pvt_pv_free(pvt_pv *pv);
/* The weight or the n values at p must outlive the pv; they are updated in place. Weights that
   are dense are treated as params (they must be in pvt_real and owned). name is copied.
   Errors: ARGUMENT, MEMORY: nothing was added. No step allocates: all memory is taken here. */
PVT_API pvt_result pvt_pv_add_weight(pvt_pv *pv, pvt_weight *weight, const char *name, int *handle);
PVT_API pvt_result pvt_pv_add_param(pvt_pv *pv, pvt_real *p, int64_t n, const char *name, int *handle);
/* lr_scale multiplies every learning rate in this step: schedules are the caller's. */
PVT_API pvt_result pvt_pv_begin(pvt_pv *pv, double lr_scale);
/* dW: [O, I] of a weight, [n] of a param; read only, free again on return.
   Errors: ARGUMENT (handle unknown or applied twice), NUMERIC (dW not finite: nothing changed). */
PVT_API pvt_result pvt_pv_apply(pvt_pv *pv, int handle, const pvt_real *dW);
/* stats may be NULL. Errors: ARGUMENT (a handle has not been applied). */
PVT_API pvt_result pvt_pv_end(pvt_pv *pv, pvt_pv_stats *stats);
#endif
#if PVTUNE_LAYER >= 2
// >>interface: tokenizer
/*  Text to token ids and back. Two algorithms cover the Llama family: SentencePiece BPE (pieces
    with scores, spaces written as U+2581, bytes for what the vocabulary lacks) and byte-level BPE
    (a split into words per model family, then ranked merges of bytes). Text is any sequence of
    bytes, also with zeros and malformed UTF-8. */
typedef struct pvt_tokenizer pvt_tokenizer;

/* Reads a tokenizer. path: tokenizer.json, tokenizer.model (SentencePiece), llama2.c's
   tokenizer.bin, a .gguf, or a Hugging Face directory (tokenizer.json, else tokenizer.model); the
   kind is recognised from the content, not the name. A tokenizer_config.json beside one of the
   first two is heeded. Free with pvt_tokenizer_free. Errors: IO, FORMAT, UNSUPPORTED (says which
   part), MEMORY. */
PVT_API pvt_result pvt_tokenizer_load(pvt_ctx *ctx, const char *path, pvt_tokenizer **out);
/* The 256 bytes themselves as tokens; no beginning, no end. Free with pvt_tokenizer_free. */
PVT_API pvt_result pvt_tokenizer_create_bytes(pvt_ctx *ctx, pvt_tokenizer **out);
/* NULL is allowed. */
PVT_API void pvt_tokenizer_free(pvt_tokenizer *tokenizer);
/* Writes into the directory `dir` what Hugging Face software needs to tokenize alike: copies of
   the tokenizer files that it was loaded from, and what is missing of tokenizer.json and
   tokenizer_config.json made from the vocabulary (with the chat template of a GGUF); of the SentencePiece
   family also a tokenizer.model, for LlamaTokenizer and the converter of llama.cpp. A file that cannot say
   what the vocabulary does is left out: a tokenizer.model where merges are not those that scores make.
   They replace all tokenizer files there, together. The directory must exist. Errors: IO, MEMORY. */
PVT_API pvt_result pvt_tokenizer_save(const pvt_tokenizer *tokenizer, const char *dir);

typedef struct pvt_tokenizer_info {
    const char *kind;   /* "sentencepiece", "gpt-2", "llama-3", "qwen2", "smollm", "bytes" */
    int64_t vocab;      /* ids are 0 … vocab − 1 */
    int32_t bos, eos;   /* beginning and end of a text; −1: none */
    int32_t unknown;    /* what stands for text outside the vocabulary; −1: none */
    bool adds_bos;      /* the model was trained with bos before every text */
} pvt_tokenizer_info;
PVT_API pvt_tokenizer_info pvt_tokenizer_get_info(const pvt_tokenizer *tokenizer);

enum {
    PVT_ENCODE_BOS = 1,      /* begin with bos if adds_bos */
    PVT_ENCODE_BOS_ALWAYS = 2, /* begin with bos if there is one */
    PVT_ENCODE_EOS = 4,      /* end with eos if there is one */
    PVT_ENCODE_PLAIN = 8     /* "<s>" in the text is three characters, not the control token */
};
/* text[0 … bytes − 1] as *n ids in *ids, to be freed with pvt_ids_free. bytes −1: up to the
   terminating zero. The time is O(bytes · log bytes). Errors: ARGUMENT, MEMORY, MISMATCH (a
   character for which the vocabulary has neither a piece, nor bytes, nor an "unknown"). */
PVT_API pvt_result pvt_tokenizer_encode(const pvt_tokenizer *tokenizer, const char *text, int64_t bytes,
                                        int flags, int32_t **ids, int64_t *n);
PVT_API void pvt_ids_free(pvt_ctx *ctx, int32_t *ids);

enum { PVT_DECODE_SKIP_CONTROL = 1 }; /* leave out control tokens such as "<s>" and "<|im_end|>" */
/* The text of n ids in *text, *bytes long, zero-terminated; free with pvt_text_free. bytes may be
   NULL. Errors: ARGUMENT (an id beyond the vocabulary), MEMORY. */
PVT_API pvt_result pvt_tokenizer_decode(const pvt_tokenizer *tokenizer, const int32_t *ids, int64_t n,
                                        int flags, char **text, int64_t *bytes);
PVT_API void pvt_text_free(pvt_ctx *ctx, char *text);
/* For streams: the bytes that `id` adds after `previous` (−1: it is the first; the space put
   before a text is then left out, as after bos). The memory is the tokenizer's; it may be part of
   a UTF-8 character, may hold zeros and is not zero-terminated. An id beyond the vocabulary gives
   "", *bytes 0. */
PVT_API const char *pvt_tokenizer_piece(const pvt_tokenizer *tokenizer, int32_t previous, int32_t id,
                                        int64_t *bytes);
/* The id of a piece as decoded ("\n", "<|im_end|>", " the"), −1 when there is none. */
PVT_API int32_t pvt_tokenizer_find(const pvt_tokenizer *tokenizer, const char *piece);
#endif
#if PVTUNE_LAYER >= 2
// >>interface: models
/*  A model is weights, immutable while a run uses it. A run owns activations, cache and
    gradients, so that a teacher can be const. */

typedef struct pvt_model_config {
    char family[16];  /* "llama" */
    int64_t layers, dim, heads, kv_heads, head_dim, ff, vocab;
    int64_t ctx;      /* longest context that it was trained for */
    int64_t window;   /* sliding attention window; 0: none */
    double norm_eps, rope_theta;
    /* rope_scaling "llama3"; factor 0: none */
    double rope_factor, rope_low, rope_high;
    int64_t rope_original_ctx;
    /* [head_dim/2]: divisors of the frequencies that follow no such rule, as a GGUF may have them;
       NULL: none. The model keeps its own copy. */
    const float *rope_factors;
    bool tied;            /* the head is the embedding */
} pvt_model_config;

typedef struct pvt_model pvt_model;

typedef struct pvt_load_desc {
    const char *tokenizer; /* path; NULL: what lies beside or inside the model, if anything */
} pvt_load_desc;

/* Opens a Hugging Face directory (dense or AQLM), a .gguf or a llama2.c .bin; the kind is read
   from the content. Weights are mapped, not copied, where their type allows. A save into the directory
   that was interrupted after it had everything is completed first, which writes there. Pipes and devices
   are refused. Errors: IO, FORMAT, UNSUPPORTED, MISMATCH (also: another model was saved there
   meanwhile), MEMORY: a sentence with file, tensor or key, and fault. */
PVT_API pvt_result pvt_model_load(pvt_ctx *ctx, const char *path, const pvt_load_desc *desc, pvt_model **out);
/* A dense model with random weights (norms 1, linears and embedding N(0, 0.02²), the two
   projections into the residual stream scaled by 1/sqrt(2L)), for training from nothing. Zero
   in the config: family llama, kv_heads = heads, head_dim = dim/heads, eps 1e-5, theta 10000. */
PVT_API pvt_result pvt_model_create(pvt_ctx *ctx, const pvt_model_config *config, pvt_model **out);
/* A deep copy in ctx's memory, from whichever memory the model lies in (section device): dense weights as
   pvt_real, codebook weights as they are. */
PVT_API pvt_result pvt_model_copy(pvt_ctx *ctx, const pvt_model *model, pvt_model **out);
PVT_API void pvt_model_free(pvt_model *model);
PVT_API const pvt_model_config *pvt_model_get_config(const pvt_model *model);
/* NULL when the model came without one. Owned by the model. */
PVT_API const pvt_tokenizer *pvt_model_tokenizer(const pvt_model *model);
/* Gives the model a tokenizer, which it then owns. */
PVT_API void pvt_model_set_tokenizer(pvt_model *model, pvt_tokenizer *tokenizer);

/* Tensors by Hugging Face name. Exactly one of weight and values is set. */
typedef struct pvt_tensor_info {
    char name[96];
    pvt_weight *weight;    /* matrices */
    pvt_real *values;      /* norms, biases: [n] */
    int64_t n;             /* elements */
    bool linear;           /* a matrix inside a block: what quantization is for */
    pvt_dtype dtype;       /* as it is held: of the file that it is mapped or was read from, or pvt_real's;
                              NONE: codes */
    int64_t bytes;         /* in that type, everything counted, codes in whole bytes */
} pvt_tensor_info;
/* Number of tensors (a tied head is not counted), and the i-th, in the order of the file layout:
   embedding, per layer norms and linears, final norm, head. */
PVT_API int64_t pvt_model_tensors(const pvt_model *model);
PVT_API pvt_tensor_info pvt_model_tensor(const pvt_model *model, int64_t i);
/* Bytes of the weight files that the model was loaded from, headers included; 0: it came from none. */
PVT_API int64_t pvt_model_file_bytes(const pvt_model *model);

/* Rounds everything to fp16, which is what a saved file holds: figures measured after it belong
   to the file. Mapped weights of other types become fp16 arrays in memory. Errors: NUMERIC (a
   value that is not finite or overflows: the sentence names the tensor), MEMORY. */
PVT_API pvt_result pvt_model_round_f16(pvt_model *model);
/* Readies the model for token by token: pvt_weight_prepare of every linear layer and of the head, or with
   head_q8 a head in Q8_0 (8.5 bits, its groups of 32 must divide the model's width; a little less exact, less to read for
   each token). Not for a model that will be tuned or saved afterwards. Errors: MEMORY, UNSUPPORTED. */
PVT_API pvt_result pvt_model_prepare(pvt_model *model, bool head_q8);

typedef struct pvt_save_desc {
    bool dense;            /* write every weight dequantized instead of codes */
    bool dense_embedding;  /* write a quantized embedding dequantized: transformers has AQLM for linear layers
                              only, and refuses the directory otherwise */
    pvt_dtype dtype;       /* of whatever is written dense: PVT_F16 (also 0), PVT_BF16 or PVT_F32. Codebooks
                              and scales are fp16 always */
    bool overwrite;        /* replace the model that `dir` holds */
    const char *base_model; /* for the model card: what this was made from; NULL: not said */
    const char *card;      /* more for the card, in Markdown: how it was made and measured; NULL: nothing */
    bool no_card;          /* no card */
} pvt_save_desc;
/* Writes the Hugging Face layout (AQLM when there are codes): model.safetensors, config.json,
   tokenizer files, generation_config.json, and a model card (README.md; one that pvtune did not write is left
   alone). The directory is made when it does not exist. What of these
   the model that was there had and this one has not is removed, with shards; other files stay. All new
   files are complete on the device before the first old one goes: after an error, or a death of the process
   at any moment, the directory holds the old model or the new one, or, without a config.json, what the next
   pvt_model_load or pvt_model_save makes the new one of. Files keep the permissions of those they
   replace. Of several that save into one directory at once the last one's model is there, as a whole.
   Values are rounded to the nearest, ties to even. desc may be NULL. Errors: IO, NUMERIC (overflow, not
   finite), ARGUMENT (the directory holds a model; a dtype other than the three), UNSUPPORTED (weights of
   different formats; rope_factors). */
PVT_API pvt_result pvt_model_save(const pvt_model *model, const char *dir, const pvt_save_desc *desc);

/* What a model takes, everything counted. Layouts of files give a code of B bits whole bytes. */
typedef struct pvt_bits {
    int64_t params, bytes; /* numbers in the model; bytes of all its tensors */
    double linears, all;   /* bits per weight of the linears inside blocks; of all: 8 · bytes / params */
    double packed_linears, packed_all; /* the same with B bits for a code, which is what it says */
} pvt_bits;
/* as NULL: as the model is held, in files that are mapped and in memory; else as pvt_model_save writes it
   with this desc: then `bytes` is the size of model.safetensors without its header. */
PVT_API pvt_bits pvt_model_bits(const pvt_model *model, const pvt_save_desc *as);

// >>interface: runs
typedef struct pvt_run pvt_run;
typedef struct pvt_run_desc {
    int64_t max_batch;    /* sequences of a forward at most; 0: 1 */
    int64_t max_ctx;      /* tokens of a sequence at most, with cached ones; 0: the model's, at most 2048 */
    int64_t max_tokens;   /* B·T of one forward at most; 0: max_batch · max_ctx */
    bool train;           /* keep what backward needs */
    bool accumulate;      /* with train: gradients of every tensor are held and add up over backwards */
    bool cache;           /* keep keys and values: forwards continue where the last one ended; no train */
    const bool *frozen;   /* with train: [pvt_model_tensors], true: no gradient for it; NULL: none; copied */
    int64_t memory_limit; /* bytes for activations; beyond it blocks are recomputed in backward; 0: 2 GiB */
} pvt_run_desc;

/* The model must outlive the run, and keep its shape: codes and values may change, also
   representations, but not between a forward and its backward (but see pvt_grad_fn). All memory
   is taken here: no later call on the run allocates. Errors: ARGUMENT, MEMORY, MISMATCH (the model lies
   in another device's memory). */
PVT_API pvt_result pvt_run_create(pvt_ctx *ctx, const pvt_model *model, const pvt_run_desc *desc,
                                  pvt_run **out);
PVT_API void pvt_run_free(pvt_run *run);
/* Bytes that pvt_run_create with this desc would take. */
PVT_API int64_t pvt_run_bytes(const pvt_model *model, const pvt_run_desc *desc);
/* Empties the cache. */
PVT_API void pvt_run_reset(pvt_run *run);
/* ids [B, T] → final hidden states (after the last norm), kept in the run; and, when logits is
   not NULL, logits [B, T, V]. Errors: ARGUMENT (sizes; an id outside the vocabulary). */
PVT_API pvt_result pvt_run_forward(pvt_run *run, const int32_t *ids, int64_t B, int64_t T, pvt_real *logits);
/* Final hidden states of the last forward, [B, T, C], in the context's memory. */
PVT_API const pvt_real *pvt_run_hidden(const pvt_run *run);
/* logits [n, V] of rows first … first+n−1 of the last forward's B·T. Errors: ARGUMENT. */
PVT_API pvt_result pvt_run_logits(pvt_run *run, int64_t first, int64_t n, pvt_real *logits);

typedef struct pvt_run_info {
    int64_t bytes;            /* all that the run holds */
    int64_t bytes_gradients;  /* of these, for gradients */
    int64_t layers_kept;      /* blocks whose activations are kept for backward; the others are recomputed */
    int64_t position;         /* tokens of each sequence in the cache */
} pvt_run_info;
PVT_API pvt_run_info pvt_run_get_info(const pvt_run *run);

typedef struct pvt_loss_desc {
    const int32_t *targets;         /* [B, T], −1: ignored; NULL: the next token of each sequence */
    const pvt_model *teacher;       /* KL(teacher ‖ student) at every position instead of cross-entropy: */
    const pvt_real *teacher_hidden; /* its pvt_run_hidden for the same ids */
    double scale;                   /* the gradient's factor; 0: 1/count, i.e. of the mean loss */
} pvt_loss_desc;
/* Sum of the loss in nats over `count` predicted tokens of the last forward; per_token [B, T]
   (zeros where ignored) may be NULL, and so may desc. KL with targets leaves out the positions
   whose target is −1. Errors: ARGUMENT, MISMATCH (the teacher's vocabulary). */
PVT_API pvt_result pvt_run_loss(pvt_run *run, const pvt_loss_desc *desc, double *sum, int64_t *count,
                                double *per_token);
/* Called with the complete gradient of tensor i (pvt_model_tensor); the memory is the run's (the context's:
   see the section device) and is reused after the call. The tensor may be updated right then: nothing that is left of this
   backward reads it. Non-OK stops backward. */
typedef pvt_result pvt_grad_fn(void *user, int64_t tensor, const pvt_real *dW);
/* Back-propagates the loss of the last forward (train must be set); one backward per forward.
   sink NULL (accumulate must be set): gradients are added to the run's own, held until they are
   handed over or pvt_run_zero_grad. With a sink each tensor's gradient, held ones included, is
   handed over and cleared, layer by layer from the last; a tied embedding comes last.
   Errors: ARGUMENT, MISMATCH, and whatever sink returns. */
PVT_API pvt_result pvt_run_backward(pvt_run *run, const pvt_loss_desc *desc, double *sum, int64_t *count,
                                    pvt_grad_fn *sink, void *user);
/* The held gradient of a tensor (accumulate), in the context's memory; NULL when there is none. */
PVT_API const pvt_real *pvt_run_grad(const pvt_run *run, int64_t tensor);
PVT_API void pvt_run_zero_grad(pvt_run *run);

// >>interface: corpus, evaluation, generation
/* Token ids of a text, to cut contexts from. */
typedef struct pvt_corpus {
    int32_t *ids;
    int64_t n;
    pvt_ctx *ctx;
} pvt_corpus;
/*  A text file, tokenized as a whole, bos in front where the tokenizer puts one. Plain text is taken
    verbatim. JSON Lines are told by their content, each line an object or a string: the documents are
    what stands under "text", else under "content", and are joined by a blank line, as if they stood so in
    a plain file: no bos between them, for a window cut from the ids would rarely begin with one. To take
    any bytes verbatim: pvt_tokenizer_encode and pvt_corpus_from_ids. Errors: IO, ARGUMENT (the model has
    no tokenizer), FORMAT (a line of JSON Lines without a text: names it), UNSUPPORTED (a compressed or
    binary file, one that is mostly not UTF-8, one JSON array: says what to do), MEMORY. */
PVT_API pvt_result pvt_corpus_load(pvt_ctx *ctx, const char *path, const pvt_tokenizer *tokenizer,
                                   pvt_corpus *out);
/* The same of a text in memory; bytes −1: up to the terminating zero. */
PVT_API pvt_result pvt_corpus_from_text(pvt_ctx *ctx, const char *text, int64_t bytes,
                                        const pvt_tokenizer *tokenizer, pvt_corpus *out);
/* A copy of n ids. Errors: ARGUMENT (n negative), MEMORY. */
PVT_API pvt_result pvt_corpus_from_ids(pvt_ctx *ctx, const int32_t *ids, int64_t n, pvt_corpus *out);
PVT_API void pvt_corpus_free(pvt_corpus *corpus);

typedef struct pvt_ppl_desc {
    int64_t ctx;          /* window length; 0: the model's, at most 512 */
    int64_t first, last;  /* windows first … last−1; last 0: all */
    double *window_nll;   /* NULL, or [last − first]: each window's nll sum */
} pvt_ppl_desc;
typedef struct pvt_ppl {
    double ppl, nll, nll_sum; /* nll: mean over tokens */
    double nll_stderr;        /* its standard error over windows; NaN for one window */
    int64_t tokens, windows, ctx;
    double seconds;
} pvt_ppl;
/* Perplexity over non-overlapping windows, ctx − 1 predictions each. Errors: ARGUMENT (text
   shorter than one window, ctx beyond the model's). */
PVT_API pvt_result pvt_perplexity(pvt_ctx *ctx, const pvt_model *model, const pvt_corpus *corpus,
                                  const pvt_ppl_desc *desc, pvt_ppl *out);

typedef struct pvt_generate_desc {
    int64_t n;             /* tokens to make; 0: 64, or as many as the context has room for */
    double temperature;    /* 0: greedy */
    double top_p;          /* 0: 1 */
    uint64_t seed;
    bool ignore_eos;       /* go on after the end token */
    /* called with each new token; non-zero stops */
    int (*token)(void *user, int32_t id);
    void *user;
} pvt_generate_desc;
typedef struct pvt_generated {
    int32_t *ids; /* the new ones; free with pvt_ids_free */
    int64_t n;
    double seconds, prompt_seconds;
} pvt_generated;
/* Errors: ARGUMENT (no prompt; prompt and new tokens beyond the model's context), NUMERIC, MEMORY,
   CANCELLED. */
PVT_API pvt_result pvt_generate(pvt_ctx *ctx, const pvt_model *model, const int32_t *prompt, int64_t n_prompt,
                                const pvt_generate_desc *desc, pvt_generated *out);
#endif
#if PVTUNE_LAYER >= 2
// >>interface: quantize and tune

typedef struct pvt_quantize_desc {
    pvt_format format;      /* zeroed: aqlm:2x8g8; "dense" is refused */
    int64_t samples, ctx;   /* calibration sequences and their length; 0: 64 × 512 (or the model's context) */
    pvt_fit_desc fit;       /* name and stream are set per tensor */
    int finetune_epochs;    /* block fine-tuning: passes over the samples at most; 0: 1, negative: none */
    double finetune_lr;     /* 0: 2e-4 */
    const char *skip;       /* tensors whose name contains one of these comma-separated patterns stay dense */
    bool embedding, head;   /* quantize these too (plain squared error) */
    const char *checkpoint; /* an existing directory: each finished block is written there at once, as
                               quantize-00012.safetensors (also -embedding, -head); NULL: nowhere */
    bool resume; /* takes what lies in checkpoint instead of computing it again, to the same bits */
    /* called after each weight; may be NULL */
    void (*layer)(void *user, const char *name, const pvt_fit_stats *stats);
    void *layer_user;
} pvt_quantize_desc;

/*  Calibrates the model's linears in place, block after block: XᵀX of each linear's inputs on
    the quantized prefix, pvt_weight_fit, then fine-tuning of the block's codebooks, scales and
    norms towards the unquantized block's output on the same inputs (AQLM 2401.06118, 3.3-3.4).
    When it is cancelled the model holds whole blocks: quantized ones first, the rest dense; what was
    written to checkpoint stays, and a run with resume on the original model goes on from there. The
    caller removes the files when the model is saved. layer is called for resumed weights too.
    Errors: ARGUMENT (before any work: a text too short; ctx beyond the model's; groups that do not divide; a
    weight that is quantized already),
    MISMATCH (a token beyond the vocabulary; a file of checkpoint was made from another model or text
    or with other options: says which), NUMERIC, MEMORY, CANCELLED; IO and FORMAT of checkpoint. */
PVT_API pvt_result pvt_quantize(pvt_ctx *ctx, pvt_model *model, const pvt_corpus *corpus,
                                const pvt_quantize_desc *desc);

typedef enum pvt_schedule { PVT_SCHEDULE_COSINE, PVT_SCHEDULE_CONSTANT } pvt_schedule;

typedef struct pvt_tune_desc {
    pvt_pv_desc pv;         /* strategy, optimizers, cap, … */
    int64_t steps;          /* 0: 200 */
    int64_t batch;          /* sequences a step; 0: 2 */
    int64_t micro_batch;    /* sequences a forward; 0: what fits; less than batch: gradients are accumulated */
    int64_t ctx;            /* tokens a sequence; 0: 512 or the model's */
    bool cross_entropy;     /* plain next-token loss; no teacher is needed */
    pvt_schedule schedule;  /* learning rates fall to zero along half a cosine, or are constant */
    int64_t warmup; /* steps of linear rise; 0: a fortieth of the steps, at most 100; negative: none */
    bool freeze_dense;      /* tune codebook weights only; norms, embedding and head stay */
    bool no_teacher_cache;  /* always run the teacher again, even over sequences seen before */
    int64_t memory_limit;   /* activations; 0: 2 GiB */
    /* Evaluation: the loss over held-out windows before the first step, every eval_every steps and after the
       last. The model with the lowest is kept (in fp16, as a file holds it), and pvt_tuner_finish gives it
       back. */
    const pvt_corpus *eval; /* text to evaluate on; NULL: windows spread over the corpus, not tuned on */
    int64_t
        eval_windows; /* of ctx tokens each; 0: a twentieth of the text, 1 at least, at most 8192 tokens */
    int64_t eval_every;     /* 0: a tenth of the steps; negative: no evaluation, and nothing is kept back */
    int64_t patience; /* evaluations without a new lowest that end the tuning; 0: 5; negative: any number */
} pvt_tune_desc;

/* The desc (NULL: zeroed) with every default filled in: what pvt_tuner_create will do with this student. In
   the result eval_every 0 says that there is no evaluation; eval_windows 0 depends on the text. */
PVT_API pvt_tune_desc pvt_tune_resolve(const pvt_model *student, const pvt_tune_desc *desc);

typedef struct pvt_tune_stats {
    int64_t step, tokens;   /* after this step; tokens seen so far */
    double loss;            /* mean over the step's tokens, before the update */
    double lr_scale;
    int64_t groups_searched, groups_changed; /* in this step */
    double seconds;         /* of this step */
} pvt_tune_stats;

/* A figure on the held-out windows. */
typedef struct pvt_tune_eval {
    int64_t step;           /* after so many steps; −1: there is none */
    double loss;            /* mean per token, in nats: KL(teacher ‖ student), or cross-entropy */
    double ppl;             /* perplexity of the student */
} pvt_tune_eval;

typedef struct pvt_tuner_info {
    int64_t step, steps;    /* completed; of the plan */
    bool done;              /* all of them, or … */
    bool stopped;           /* … patience ended: the loss has not fallen for long */
    int64_t windows, eval_windows; /* to tune and to evaluate on */
    pvt_tune_eval start, last, best;
    int64_t resumed_steps;  /* the plan of the run whose checkpoint was resumed; 0: none was */
} pvt_tuner_info;

/*  Tunes student in place towards teacher (NULL: cross-entropy), start to finish: all that the rest of this
    interface does in steps. No default makes the student worse on the held-out windows: where no step helped,
   it ends as it began. info may be NULL. Errors: those of pvt_tuner_create and pvt_tuner_step; CANCELLED: the
   student stands at the last completed step. */
PVT_API pvt_result pvt_tune(pvt_ctx *ctx, pvt_model *student, const pvt_model *teacher,
                            const pvt_corpus *corpus, const pvt_tune_desc *desc, pvt_tuner_info *info);

typedef struct pvt_tuner pvt_tuner;
/* Bytes the context will hold at the peak of tuning, known before it starts: all that it holds now, and what
   pvt_tuner_create will take. corpus NULL: without the teacher's cache, which is needed where sequences come
   again, and with as many held-out windows as there can be. INT64_MAX when the plan is not possible. */
PVT_API int64_t pvt_tuner_bytes(const pvt_model *student, const pvt_model *teacher, const pvt_corpus *corpus,
                                const pvt_tune_desc *desc);
/* Prepares to tune student in place towards teacher (NULL: cross-entropy). All three, and desc->eval, must
   outlive the tuner. Sequences are drawn from the corpus in a seeded order, each once per epoch.
   Errors: ARGUMENT (a text shorter than one context, or than two when a part is kept back; a student without
   codes that is its own teacher), MISMATCH (vocabularies), MEMORY. */
PVT_API pvt_result pvt_tuner_create(pvt_ctx *ctx, pvt_model *student, const pvt_model *teacher,
                                    const pvt_corpus *corpus, const pvt_tune_desc *desc, pvt_tuner **out);
PVT_API void pvt_tuner_free(pvt_tuner *tuner);
/* One optimizer step, and the evaluation that is due before the first or after this one; allocates nothing.
   Cancelled (PVT_ERR_CANCELLED): the step is complete, its evaluation follows with the next call; or, between
   two micro-batches, the step has not begun. Errors: NUMERIC (a loss or gradient is not finite, or a value to
   be kept overflows fp16): updates stop at the tensor it names, so go on from a checkpoint; ARGUMENT (done
   already). */
PVT_API pvt_result pvt_tuner_step(pvt_tuner *tuner, pvt_tune_stats *stats);
PVT_API pvt_tuner_info pvt_tuner_get_info(const pvt_tuner *tuner);
/* Ends the tuning: makes the best evaluated state (without evaluation the last) the student, rounded to fp16
   as a file holds it, and evaluates once more: `result` (may be NULL) is the figure of the model that is
   saved next. No step and no checkpoint after it. Errors: CANCELLED, NUMERIC, MEMORY. */
PVT_API pvt_result pvt_tuner_finish(pvt_tuner *tuner, pvt_tune_eval *result);
/* Everything a resume needs in one safetensors file (f32 masters, codes, moments, buffers, the best state so
   far, step, options, hashes of student, corpora and teacher), written beside and renamed. Errors: IO,
   MEMORY, ARGUMENT (a step failed half-way and no checkpoint has been resumed since; after
   pvt_tuner_finish). */
PVT_API pvt_result pvt_tuner_save(const pvt_tuner *tuner, const char *path);
/* Continues to bitwise the same result. A plan of more steps than the checkpoint's extends that run: the
   schedule is then the longer plan's from here on. Errors: IO, FORMAT, MISMATCH (other options, student, data
   or teacher: says which; more steps done than planned). */
PVT_API pvt_result pvt_tuner_resume(pvt_tuner *tuner, const char *path);
#endif
#ifdef __cplusplus
}
#endif
#endif /* PVTUNE_H */

/* ======================================================================================== */

#ifdef PVTUNE_IMPLEMENTATION
#ifndef PVTUNE_IMPLEMENTED
#define PVTUNE_IMPLEMENTED

#ifdef __FAST_MATH__
#error "pvtune: -ffast-math (-Ofast) breaks the promise of equal bits; compile this file without it"
#endif

// >>platform
/*  What libc leaves out: atomics, threads, memory-mapped files, a monotonic clock, and which
    instructions the processor has. Everything that depends on a system stands here. */

#include <errno.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#ifndef PVTUNE_NO_MMAP
#include <sys/mman.h>
#endif
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifndef PVTUNE_NO_THREADS
#include <pthread.h>
#include <sched.h>
#endif

#ifndef CLOCK_MONOTONIC
#error "pvtune: libc hides POSIX here; include pvtune.h before libc's headers, or compile with -std=gnu99"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Equal bits everywhere: a*b+c is fused only where the source says pvti_fma. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#pragma GCC diagnostic push /* the vector headers of gcc use undefined registers on purpose */
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#else
#error "pvtune: only gcc and clang are supported"
#endif

#if PVTI_REAL_IS_DOUBLE
#define pvti_fma(a, b, c) __builtin_fma(a, b, c)
#define pvti_sqrt(x) __builtin_sqrt(x)
#define PVTI_R(literal) literal
#else
#define pvti_fma(a, b, c) __builtin_fmaf(a, b, c)
#define pvti_sqrt(x) __builtin_sqrtf(x)
#define PVTI_R(literal) PVTI_PASTE(literal, f)
#endif
#define PVTI_INLINE static inline __attribute__((always_inline, unused))
#define PVTI_UNUSED __attribute__((unused)) /* helpers that a smaller PVTUNE_LAYER leaves idle */
#define PVTI_PRINTF(f, a) __attribute__((format(printf, f, a)))
#define PVTI_MIN(a, b) ((a) < (b) ? (a) : (b))
#define PVTI_MAX(a, b) ((a) > (b) ? (a) : (b))
#define PVTI_COUNT(array) ((int64_t)(sizeof(array) / sizeof *(array)))

#if (defined(__x86_64__) || defined(__i386__)) && !PVTI_REAL_IS_DOUBLE
#define PVTI_X86 1
#include <immintrin.h>
#else
#define PVTI_X86 0
#endif

/* Kernel sets; all give the same bits. A kernel is written once in plain C as `name_body` (always inline),
   PVTI_KERNEL compiles it for plain processors and for AVX2, and PVTI_CALL(ctx, name)(args) picks one.
   Those that wider vectors make faster (a bench says so; most wait for memory) are PVTI_KERNEL_WIDE, or are
   written with intrinsics beside a scalar twin; PVTI_CALL_WIDE and PVTI_PICK pick one of three. */
enum { PVTI_SCALAR, PVTI_AVX2, PVTI_AVX512 };
#if PVTI_X86
#define PVTI_TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define PVTI_TARGET_AVX512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#define PVTI_KERNEL(name, params, args)                                            \
    PVTI_PORTABLE static PVTI_UNUSED void name##_scalar params { name##_body args; } \
    PVTI_TARGET_AVX2 static PVTI_UNUSED void name##_avx2 params { name##_body args; }
#define PVTI_KERNEL_WIDE(name, params, args) \
    PVTI_KERNEL(name, params, args)          \
    PVTI_TARGET_AVX512 static PVTI_UNUSED void name##_avx512 params { name##_body args; }
#define PVTI_PICK(isa, name) \
    (*((isa) == PVTI_AVX512 ? name##_avx512 : (isa) == PVTI_AVX2 ? name##_avx2 : name##_scalar))
#define PVTI_PICK_NARROW(isa, name) (*((isa) >= PVTI_AVX2 ? name##_avx2 : name##_scalar))
#else
#define PVTI_KERNEL(name, params, args) \
    static PVTI_UNUSED void name##_scalar params { name##_body args; }
#define PVTI_KERNEL_WIDE PVTI_KERNEL
#define PVTI_PICK(isa, name) (*((void)(isa), name##_scalar))
#define PVTI_PICK_NARROW PVTI_PICK
#endif
#define PVTI_CALL(ctx, name) PVTI_PICK_NARROW((ctx) ? (ctx)->isa : pvti_isa_detect(), name)
#define PVTI_CALL_WIDE(ctx, name) PVTI_PICK((ctx) ? (ctx)->isa : pvti_isa_detect(), name)

/* Around kernels in plain C: gcc is asked to vectorize at any -O; clang does from -O2 on.
   no-trapping-math only allows code that raises no floating-point traps; it changes no value.
   What runs only on an x86 without AVX2 is not worth the time that vectors take to compile. */
#if defined(__clang__)
#define PVTI_KERNELS_BEGIN
#define PVTI_KERNELS_END
#else
#define PVTI_KERNELS_BEGIN \
    _Pragma("GCC push_options") \
        _Pragma("GCC optimize(\"O3\", \"fp-contract=off\", \"no-trapping-math\", \"no-math-errno\")")
#define PVTI_KERNELS_END _Pragma("GCC pop_options")
#endif
#if PVTI_X86 && !defined(__clang__)
#define PVTI_PORTABLE \
    __attribute__((optimize("O2", "no-tree-vectorize", "fp-contract=off", "no-trapping-math", "no-math-errno")))
#else
#define PVTI_PORTABLE
#endif

/* The widest set that the processor has. */
static int pvti_isa_detect(void)
{
    int isa = PVTI_SCALAR;
#if PVTI_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        isa = PVTI_AVX2;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            isa = PVTI_AVX512;
    }
#endif
    return isa;
}

static const char *const pvti_isa_names[] = {"scalar", "avx2", "avx512"};

/* That set, or the one of this name when it is narrower; -1: there is no such name. */
static int pvti_isa_choose(const char *wish)
{
    int isa = pvti_isa_detect(), i;
    if (!wish) return isa;
    for (i = 0; i < PVTI_COUNT(pvti_isa_names); i++)
        if (strcmp(wish, pvti_isa_names[i]) == 0) return PVTI_MIN(i, isa);
    return -1;
}

static PVTI_UNUSED double pvti_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#define pvti_atomic_add(p, v) __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL)
#define pvti_atomic_load(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define pvti_atomic_store(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
#if defined(__x86_64__) || defined(__i386__)
#define pvti_pause() __builtin_ia32_pause()
#else
#define pvti_pause() ((void)0)
#endif

// >>context
#define PVTI_MAX_THREADS 256
#define PVTI_SCRATCH_BYTES ((int64_t)1 << 20) /* per worker, for ops: they never allocate */

typedef struct pvti_pool pvti_pool;
struct pvt_ctx {
    int isa, n_threads;
    bool compute_bf16;
    uint64_t seed;
    pvt_allocator allocator;
    pvt_progress_fn *progress;
    void *progress_user;
    pvt_parallel_fn *parallel;
    void *parallel_user;
    int64_t bytes_now, bytes_peak, allocations;
    char *scratch;     /* n_threads × PVTI_SCRATCH_BYTES */
    char *gemm_shared; /* the panel that all workers of a GEMM read; see >>gemm */
    const struct pvti_system *system; /* how files are reached; NULL: as the machine does it. See >>system */
    int64_t temporaries; /* names of temporary files given out so far */
    pvti_pool *pool;   /* NULL at one thread; its threads start at first use */
    bool in_parallel;  /* a parallel region inside another runs serially */
    const pvt_device *device; /* NULL: none, and so the following; see >>device */
    void *device_state;
    int64_t device_peak;
    pvt_ctx *host;     /* a plain context for what only the host does: load, save, make */
    pvt_ctx *front;    /* of such a context: the one that it belongs to, which has the sentences */
    char error[1024];
};

// >>errors
PVT_API const char *pvt_result_text(pvt_result result)
{
    static const char *const texts[] = {
#define PVTI_X(name, text) text,
        PVT_RESULTS(PVTI_X)
#undef PVTI_X
    };
    return (unsigned)result < (unsigned)PVT_RESULT_COUNT ? texts[result] : "unknown result code";
}

PVT_API const char *pvt_ctx_error(const pvt_ctx *ctx)
{
    if (ctx) return ctx->error;
    return "there is no context: pvt_ctx_create failed or was not called; pvt_result_text of what it "
           "returned, or error of its pvt_ctx_desc, says why";
}

/* One character of UTF-8: its length in bytes, or 0 where s is not well formed (overlong,
   surrogate, beyond U+10FFFF, cut off). */
static int pvti_utf8_read(const char *s, int64_t n, uint32_t *character)
{
    const uint8_t *u = (const uint8_t *)s;
    uint32_t c, least;
    int i, length;
    if (n < 1) return 0;
    c = u[0];
    if (c < 0x80) return *character = c, 1;
    if (c >= 0xc2 && c < 0xe0) length = 2, c &= 31, least = 0x80;
    else if (c >= 0xe0 && c < 0xf0) length = 3, c &= 15, least = 0x800;
    else if (c >= 0xf0 && c < 0xf5) length = 4, c &= 7, least = 0x10000;
    else return 0;
    if (n < length) return 0;
    for (i = 1; i < length; i++) {
        if ((u[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (u[i] & 63u);
    }
    if (c < least || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return 0;
    return *character = c, length;
}

/* s as a terminal may show it: control characters, which steer terminals, and bytes that are not UTF-8 become
   "\\x1b" and the like. Cut to fit out[cap]. */
static void pvti_printable(char *out, int64_t cap, const char *s)
{
    int64_t n = (int64_t)strlen(s), at, used = 0, i;
    for (at = 0; at < n;) {
        uint32_t c = 0;
        int length = pvti_utf8_read(s + at, n - at, &c);
        bool shown = length > 0 && c >= 0x20 && (c < 0x7f || c >= 0xa0);
        if (length == 0) length = 1;
        if (used + (shown ? length : 4 * length) >= cap) break;
        for (i = at; i < at + length; i++) {
            if (shown) out[used++] = s[i];
            else used += snprintf(out + used, 5, "\\x%02x", (unsigned)(uint8_t)s[i]);
        }
        at += length;
    }
    out[used] = 0;
}

/* Records a sentence (what, where, what to do) and returns the code. Whatever of a file gets into it is
   made printable here. */
static PVTI_PRINTF(3, 4) pvt_result pvti_fail(pvt_ctx *ctx, pvt_result result, const char *format, ...)
{
    char text[sizeof ctx->error];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (ctx->front) ctx = ctx->front;
    pvti_printable(ctx->error, (int64_t)sizeof ctx->error, text);
    return result;
}

#define PVTI_TRY(call)                            \
    do {                                          \
        pvt_result result_ = (call);              \
        if (result_ != PVT_OK) return result_;    \
    } while (0)

// >>memory
/*  Every allocation goes through pvti_alloc: counted, checked against overflow, zeroed,
    aligned to a cache line. */

/* a·b and a+b of sizes: false when negative or beyond int64_t. */
static PVTI_UNUSED bool pvti_mul(int64_t a, int64_t b, int64_t *out)
{
    return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, out);
}
static PVTI_UNUSED bool pvti_add(int64_t a, int64_t b, int64_t *out)
{
    return a >= 0 && b >= 0 && !__builtin_add_overflow(a, b, out);
}

#define PVTI_ALIGN 64
typedef struct pvti_block {
    void *base;
    int64_t bytes;
} pvti_block; /* stands just below the memory handed out */

static void *pvti_allocate(pvt_ctx *ctx, int64_t count, int64_t size)
{
    int64_t bytes, total;
    char *base, *memory;
    pvti_block block;
    if (!pvti_mul(count, size, &bytes) || !pvti_add(bytes, PVTI_ALIGN + (int64_t)sizeof block, &total) ||
        (uint64_t)total > (uint64_t)(SIZE_MAX / 2))
        return NULL;
    if (ctx->allocator.alloc) {
        base = (char *)ctx->allocator.alloc((size_t)total, ctx->allocator.user);
        if (base) memset(base, 0, (size_t)total);
    } else {
        base = (char *)calloc(1, (size_t)total); /* large blocks: pages the system zeroes on first use */
    }
    if (!base) return NULL;
    memory = base + sizeof block;
    memory += (PVTI_ALIGN - (uintptr_t)memory % PVTI_ALIGN) % PVTI_ALIGN;
    block.base = base;
    block.bytes = total;
    memcpy(memory - sizeof block, &block, sizeof block);
    ctx->bytes_now += total;
    ctx->bytes_peak = PVTI_MAX(ctx->bytes_peak, ctx->bytes_now);
    ctx->allocations++;
    return memory;
}

/* count × size zeroed bytes, aligned to 64; NULL when it fails, with the sentence recorded. */
static void *pvti_alloc(pvt_ctx *ctx, int64_t count, int64_t size)
{
    void *memory = pvti_allocate(ctx, count, size);
    if (!memory)
        pvti_fail(ctx, PVT_ERR_MEMORY, "out of memory: %lld items of %lld bytes could not be allocated",
                  (long long)count, (long long)size);
    return memory;
}
#define PVTI_NEW(ctx, type, count) ((type *)pvti_alloc(ctx, count, (int64_t)sizeof(type)))

static void pvti_free(pvt_ctx *ctx, void *memory)
{
    pvti_block block;
    if (!memory) return;
    memcpy(&block, (char *)memory - sizeof block, sizeof block);
    ctx->bytes_now -= block.bytes;
    if (ctx->allocator.alloc)
        ctx->allocator.free(block.base, ctx->allocator.user);
    else
        free(block.base);
}

/* *memory grown (by at least half) to hold `need` items; old items kept, new ones zero. */
static PVTI_UNUSED bool pvti_grow(pvt_ctx *ctx, void **memory, int64_t *capacity, int64_t need, int64_t size)
{
    int64_t wanted;
    void *bigger;
    if (need <= *capacity) return true;
    wanted = PVTI_MAX(need, *capacity + *capacity / 2);
    bigger = pvti_alloc(ctx, wanted, size);
    if (!bigger) return false;
    if (*memory) memcpy(bigger, *memory, (size_t)(*capacity * size));
    pvti_free(ctx, *memory);
    *memory = bigger;
    *capacity = wanted;
    return true;
}

// >>random
/*  Every random number is a pure function of (seed, purpose, step, index): nothing depends on
    the order in which threads ask. Philox-like mixing of four words by the finalizer of
    SplitMix64 (Steele, Lea, Flood 2014), applied once per word. */

/* What a stream of random numbers is for; one line per use keeps streams apart. */
enum {
    PVTI_RANDOM_KMEANS, PVTI_RANDOM_GROUP_ORDER, PVTI_RANDOM_CODEBOOK_ORDER, PVTI_RANDOM_SELECTION,
    PVTI_RANDOM_BATCH, PVTI_RANDOM_SAMPLING, PVTI_RANDOM_INIT, PVTI_RANDOM_CALIBRATION, PVTI_RANDOM_USER
};

static uint64_t pvti_mix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static PVTI_UNUSED uint64_t pvti_random_stream(uint64_t seed, int purpose, uint64_t step)
{
    return pvti_mix(pvti_mix(pvti_mix(seed) ^ (uint64_t)purpose) ^ step);
}
static PVTI_UNUSED uint64_t pvti_random(uint64_t seed, int purpose, uint64_t step, uint64_t index)
{
    return pvti_mix(pvti_random_stream(seed, purpose, step) ^ index);
}
/* In [0, 1), 53 bits. */
static PVTI_UNUSED double pvti_unit(uint64_t word) { return (double)(word >> 11) * (1.0 / 9007199254740992.0); }
static PVTI_UNUSED double pvti_random_unit(uint64_t seed, int purpose, uint64_t step, uint64_t index)
{
    return pvti_unit(pvti_random(seed, purpose, step, index));
}
/* A permutation of 0 … n−1 (Fisher-Yates). */
static PVTI_UNUSED void pvti_random_order(int64_t *order, int64_t n, uint64_t seed, int purpose, uint64_t step)
{
    int64_t i, j, t;
    for (i = 0; i < n; i++) order[i] = i;
    for (i = n - 1; i > 0; i--) {
        j = (int64_t)(pvti_random(seed, purpose, step, (uint64_t)i) % (uint64_t)(i + 1));
        t = order[i], order[i] = order[j], order[j] = t;
    }
}

// >>threads
/*  A pool of n_threads − 1 workers; the caller works too. Tasks are claimed one by one from a
    counter, so no result may depend on who runs which. Workers spin for some microseconds
    after a region (the next usually follows at once), then sleep. */

struct pvti_pool {
    pvt_task_fn *task;
    void *arg;
    int64_t n, next; /* next: claimed with an atomic add */
    int n_workers, running;
    uint32_t generation; /* counts regions; odd values never occur */
    bool stop, started;
#ifndef PVTUNE_NO_THREADS
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    int sleeping;
    pthread_t threads[PVTI_MAX_THREADS];
    struct { pvti_pool *pool; int worker; } starts[PVTI_MAX_THREADS];
#endif
};

#ifndef PVTUNE_NO_THREADS
#define PVTI_SPINS 2000

static void pvti_pool_work(pvti_pool *pool, int worker)
{
    int64_t i;
    while ((i = pvti_atomic_add(&pool->next, 1)) < pool->n) pool->task(pool->arg, i, worker);
}

static void *pvti_pool_main(void *start)
{
    pvti_pool *pool;
    int worker;
    uint32_t seen = 0;
    memcpy(&pool, start, sizeof pool); /* the first member of an entry of `starts` */
    worker = (int)(((char *)start - (char *)pool->starts) / (int64_t)sizeof pool->starts[0]) + 1;
    for (;;) {
        int spin = 0;
        while (pvti_atomic_load(&pool->generation) == seen && spin++ < PVTI_SPINS) pvti_pause();
        if (pvti_atomic_load(&pool->generation) == seen) {
            pthread_mutex_lock(&pool->mutex);
            pool->sleeping++;
            while (pvti_atomic_load(&pool->generation) == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
            pool->sleeping--;
            pthread_mutex_unlock(&pool->mutex);
        }
        seen = pvti_atomic_load(&pool->generation);
        if (pool->stop) return NULL;
        pvti_pool_work(pool, worker);
        pvti_atomic_add(&pool->running, -1);
    }
}

static void pvti_pool_start(pvti_pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    pvti_atomic_store(&pool->generation, pool->generation + 2);
    if (pool->sleeping) pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

static void pvti_pool_run(pvti_pool *pool, int64_t n, pvt_task_fn *task, void *arg)
{
    int spin = 0;
    pool->task = task, pool->arg = arg, pool->n = n, pool->next = 0;
    pool->running = pool->n_workers;
    pvti_pool_start(pool);
    pvti_pool_work(pool, 0);
    while (pvti_atomic_load(&pool->running) > 0) {
        if (spin++ < PVTI_SPINS) pvti_pause();
        else sched_yield(); /* a worker has lost its core: let it finish */
    }
}

static void pvti_pool_destroy(pvt_ctx *ctx)
{
    pvti_pool *pool = ctx->pool;
    int i;
    if (pool && pool->started) {
        pool->stop = true;
        pvti_pool_start(pool);
        for (i = 0; i < pool->n_workers; i++) pthread_join(pool->threads[i], NULL);
        pthread_cond_destroy(&pool->wake);
        pthread_mutex_destroy(&pool->mutex);
    }
    pvti_free(ctx, pool);
}

/* How many workers there are; none when the system gives no thread: a region then runs
   serially, to the same bits. */
static int pvti_pool_workers(pvt_ctx *ctx)
{
    pvti_pool *pool = ctx->pool;
    if (!pool) return 0;
    if (!pool->started) {
        pthread_mutex_init(&pool->mutex, NULL);
        pthread_cond_init(&pool->wake, NULL);
        pool->started = true;
        while (pool->n_workers < ctx->n_threads - 1) {
            int i = pool->n_workers;
            pool->starts[i].pool = pool;
            if (pthread_create(&pool->threads[i], NULL, pvti_pool_main, &pool->starts[i]) != 0) break;
            pool->n_workers++;
        }
    }
    return pool->n_workers;
}
#endif

/* task(arg, i, worker) for i in [0, n), in any order, on all workers. ctx NULL, a region
   inside a region, and n = 1 run serially. */
static PVTI_UNUSED void pvti_parallel(pvt_ctx *ctx, int64_t n, pvt_task_fn *task, void *arg)
{
    int64_t i;
    if (ctx && n > 1 && ctx->n_threads > 1 && !ctx->in_parallel) {
        bool ran = true;
        ctx->in_parallel = true;
        if (ctx->parallel)
            ctx->parallel(ctx->parallel_user, n, task, arg);
        else {
#ifndef PVTUNE_NO_THREADS
            ran = pvti_pool_workers(ctx) > 0;
            if (ran) pvti_pool_run(ctx->pool, n, task, arg);
#else
            ran = false;
#endif
        }
        ctx->in_parallel = false;
        if (ran) return;
    }
    for (i = 0; i < n; i++) task(arg, i, 0);
}

/* PVTI_SCRATCH_BYTES of the worker's own, aligned to 64. Needs a context. */
static PVTI_UNUSED void *pvti_scratch(pvt_ctx *ctx, int worker)
{
    return ctx->scratch + worker * PVTI_SCRATCH_BYTES;
}

/* Reports progress; PVT_ERR_CANCELLED when the callback asks to stop. */
static PVTI_UNUSED pvt_result pvti_report(pvt_ctx *ctx, const char *phase, const char *item, int64_t done,
                                          int64_t total, const char *unit, double value)
{
    pvt_progress progress;
    if (!ctx->progress) return PVT_OK;
    progress.phase = phase, progress.item = item, progress.done = done, progress.total = total;
    progress.unit = unit, progress.value = value;
    if (ctx->progress(ctx->progress_user, &progress))
        return pvti_fail(ctx, PVT_ERR_CANCELLED, "%s: stopped on request", phase);
    return PVT_OK;
}

#define PVTI_GEMM_SHARED_BYTES ((int64_t)6 << 20)

/* -1: PVTUNE_NUM_THREADS is no number of threads. Of OMP_NUM_THREADS, which is other software's, the first
   number counts, if there is one. */
static int pvti_thread_count(int wish)
{
    const char *own = getenv("PVTUNE_NUM_THREADS"), *openmp = getenv("OMP_NUM_THREADS");
    char *end = NULL;
    long n = wish;
    if (n <= 0 && own && *own) {
        n = strtol(own, &end, 10);
        if (end == own || *end || n < 0 || n > PVTI_MAX_THREADS) return -1;
    }
    if (n <= 0 && openmp) n = strtol(openmp, NULL, 10);
    if (n <= 0) n = sysconf(_SC_NPROCESSORS_ONLN);
    return (int)PVTI_MAX(1, PVTI_MIN(n, PVTI_MAX_THREADS));
}

/* Says in the desc why there will be no context, and returns the code. */
static PVTI_PRINTF(3, 4) pvt_result
    pvti_ctx_refuse(const pvt_ctx_desc *d, pvt_result result, const char *format, ...)
{
    va_list args;
    if (!d->error || d->error_bytes < 1) return result;
    va_start(args, format);
    vsnprintf(d->error, (size_t)d->error_bytes, format, args);
    va_end(args);
    return result;
}

/* The desc, and the environment where it says nothing. */
static pvt_result pvti_ctx_check(const pvt_ctx_desc *d, int *n_threads, int *isa)
{
    const char *wish = d->isa ? d->isa : getenv("PVTUNE_ISA");
    if (d->error && d->error_bytes > 0) d->error[0] = 0;
    if (d->n_threads < 0 || d->n_threads > PVTI_MAX_THREADS)
        return pvti_ctx_refuse(d, PVT_ERR_ARGUMENT, "n_threads is %d: 0 for all cores, or 1 to %d",
                               d->n_threads, PVTI_MAX_THREADS);
    if (!d->allocator.alloc != !d->allocator.free)
        return pvti_ctx_refuse(d, PVT_ERR_ARGUMENT,
                               "the allocator has %s but no %s: give both, or neither for malloc",
                               d->allocator.alloc ? "alloc" : "free", d->allocator.alloc ? "free" : "alloc");
    if (d->compute_bf16 && PVTI_REAL_IS_DOUBLE)
        return pvti_ctx_refuse(d, PVT_ERR_UNSUPPORTED,
                               "compute_bf16 is not for a build with PVTUNE_REAL double");
    *isa = pvti_isa_choose(wish);
    if (*isa < 0)
        return pvti_ctx_refuse(d, PVT_ERR_ARGUMENT, "%s is \"%.40s\": scalar, avx2 or avx512",
                               d->isa ? "isa" : "PVTUNE_ISA", wish);
    *n_threads = pvti_thread_count(d->n_threads);
    if (*n_threads < 0)
        return pvti_ctx_refuse(d, PVT_ERR_ARGUMENT,
                               "PVTUNE_NUM_THREADS is \"%.40s\": 0 for all cores, or 1 to %d",
                               getenv("PVTUNE_NUM_THREADS"), PVTI_MAX_THREADS);
    return PVT_OK;
}

/* Opens the device, and makes the plain context beside it. */
static pvt_result pvti_ctx_open_device(pvt_ctx *ctx, const pvt_ctx_desc *d)
{
    pvt_ctx_desc plain = *d;
    if (d->device->version != PVT_VERSION || d->device->size != sizeof *d->device ||
        d->device->real_size != sizeof(pvt_real))
        return pvti_ctx_refuse(d, PVT_ERR_MISMATCH,
                               "the device was compiled against another pvtune.h, or with another PVTUNE_REAL");
    plain.device = NULL;
    PVTI_TRY(pvt_ctx_create(&plain, &ctx->host));
    ctx->host->front = ctx;
    PVTI_TRY(d->device->open(d->device, d, &ctx->device_state));
    ctx->device = d->device;
    return PVT_OK;
}

static pvt_result pvti_ctx_no_memory(const pvt_ctx_desc *d, int n_threads)
{
    int64_t bytes = PVTI_GEMM_SHARED_BYTES + n_threads * PVTI_SCRATCH_BYTES;
    return pvti_ctx_refuse(d, PVT_ERR_MEMORY, "out of memory: a context of %d threads takes %lld MiB",
                           n_threads, (long long)(bytes >> 20));
}

PVT_API pvt_result pvt_ctx_create_v(const pvt_ctx_desc *desc, pvt_ctx **out, int version, size_t real_size,
                                    size_t desc_size)
{
    pvt_ctx_desc d;
    pvt_ctx *ctx;
    int n_threads, isa;
    memset(&d, 0, sizeof d);
    if (!out) return PVT_ERR_ARGUMENT;
    *out = NULL;
    if (version != PVT_VERSION || real_size != sizeof(pvt_real) || desc_size != sizeof d)
        return PVT_ERR_MISMATCH;
    if (desc) d = *desc; /* not before its size is known to be ours */
    PVTI_TRY(pvti_ctx_check(&d, &n_threads, &isa));
    ctx =
        (pvt_ctx *)(d.allocator.alloc ? d.allocator.alloc(sizeof *ctx, d.allocator.user) : malloc(sizeof *ctx));
    if (!ctx) return pvti_ctx_no_memory(&d, n_threads);
    memset(ctx, 0, sizeof *ctx);
    ctx->isa = isa;
    ctx->n_threads = n_threads;
    ctx->seed = d.seed, ctx->compute_bf16 = d.compute_bf16;
    ctx->allocator = d.allocator;
    ctx->progress = d.progress, ctx->progress_user = d.progress_user;
    ctx->parallel = d.parallel, ctx->parallel_user = d.parallel_user;
    ctx->scratch = PVTI_NEW(ctx, char, ctx->n_threads * PVTI_SCRATCH_BYTES);
    ctx->gemm_shared = PVTI_NEW(ctx, char, PVTI_GEMM_SHARED_BYTES);
    if (ctx->n_threads > 1) ctx->pool = PVTI_NEW(ctx, pvti_pool, 1);
    if (!ctx->scratch || !ctx->gemm_shared || (ctx->n_threads > 1 && !ctx->pool)) {
        pvt_ctx_destroy(ctx);
        return pvti_ctx_no_memory(&d, n_threads);
    }
    if (d.device) {
        pvt_result result = pvti_ctx_open_device(ctx, &d);
        if (result != PVT_OK) {
            pvt_ctx_destroy(ctx);
            return result;
        }
    }
    *out = ctx;
    return PVT_OK;
}

PVT_API void pvt_ctx_destroy(pvt_ctx *ctx)
{
    pvt_allocator allocator;
    if (!ctx) return;
    pvt_ctx_destroy(ctx->host);
    if (ctx->device) ctx->device->close(ctx->device_state);
#ifndef PVTUNE_NO_THREADS
    pvti_pool_destroy(ctx);
#else
    pvti_free(ctx, ctx->pool);
#endif
    pvti_free(ctx, ctx->scratch);
    pvti_free(ctx, ctx->gemm_shared);
    allocator = ctx->allocator;
    if (allocator.alloc)
        allocator.free(ctx, allocator.user);
    else
        free(ctx);
}

PVT_API pvt_ctx_info pvt_ctx_get_info(const pvt_ctx *ctx)
{
    pvt_ctx_info info;
    memset(&info, 0, sizeof info);
    info.n_threads = ctx->n_threads;
    info.isa = pvti_isa_names[ctx->isa];
    info.bytes_now = ctx->bytes_now, info.bytes_peak = ctx->bytes_peak, info.allocations = ctx->allocations;
    if (!ctx->device) return info;
    info.bytes_now += ctx->host->bytes_now;
    info.bytes_peak += ctx->host->bytes_peak;
    info.allocations += ctx->host->allocations;
    info.device = ctx->device->name;
    info.device_bytes_now = ctx->device->held(ctx->device_state);
    info.device_bytes_peak = ctx->device_peak;
    return info;
}

PVT_API void pvt_ctx_reset_peak(pvt_ctx *ctx)
{
    ctx->bytes_peak = ctx->bytes_now;
    if (!ctx->device) return;
    ctx->host->bytes_peak = ctx->host->bytes_now;
    ctx->device_peak = ctx->device->held(ctx->device_state);
}
// >>device
/*  The context's memory and the way to its device. What an op reads or writes is touched here, inside ops, and
    nowhere else: everything above hands pointers on. */

/* The first line of an op: has the context a device, the op is the device's. */
#define PVTI_ON_DEVICE(ctx, op, ...)                             \
    do {                                                         \
        if ((ctx) && (ctx)->device) {                            \
            (ctx)->device->op((ctx)->device_state, __VA_ARGS__); \
            return;                                              \
        }                                                        \
    } while (0)

/* The device's first error, if it knows of one by now. */
static PVTI_UNUSED pvt_result pvti_device_check(pvt_ctx *ctx)
{
    const char *why = NULL;
    pvt_result result = ctx->device ? ctx->device->status(ctx->device_state, &why) : PVT_OK;
    if (result == PVT_OK) return PVT_OK;
    return pvti_fail(ctx, result, "%s: %s", ctx->device->name, why ? why : pvt_result_text(result));
}

/* For what a device does not do yet. */
static PVTI_UNUSED pvt_result pvti_host_only(pvt_ctx *ctx, const char *what)
{
    if (!ctx->device) return PVT_OK;
    return pvti_fail(ctx, PVT_ERR_UNSUPPORTED,
                     "%s is not possible on %s: do it in a context without a device, and bring the model over "
                     "with pvt_model_copy",
                     what, ctx->device->name);
}

/* Whether ops of the one context can work on what the other made. */
static PVTI_UNUSED bool pvti_same_memory(const pvt_ctx *a, const pvt_ctx *b)
{
    return a == b || (!a->device && !b->device);
}

PVT_API void *pvt_memory_alloc(pvt_ctx *ctx, int64_t bytes)
{
    void *memory;
    if (!ctx->device || bytes < 0) return pvti_alloc(ctx, bytes, 1);
    memory = ctx->device->alloc(ctx->device_state, bytes);
    ctx->device_peak = PVTI_MAX(ctx->device_peak, ctx->device->held(ctx->device_state));
    if (!memory)
        pvti_fail(ctx, PVT_ERR_MEMORY, "%s is out of memory: %lld bytes could not be allocated, %lld are in use",
                  ctx->device->name, (long long)bytes, (long long)ctx->device->held(ctx->device_state));
    return memory;
}
/* count items of a type, in the context's memory. */
static PVTI_UNUSED void *pvti_memory(pvt_ctx *ctx, int64_t count, int64_t size)
{
    int64_t bytes;
    return pvt_memory_alloc(ctx, pvti_mul(count, size, &bytes) ? bytes : -1);
}
#define PVTI_MEMORY(ctx, type, count) ((type *)pvti_memory(ctx, count, (int64_t)sizeof(type)))

PVT_API void pvt_memory_free(pvt_ctx *ctx, void *memory)
{
    if (!memory) return;
    PVTI_ON_DEVICE(ctx, free, memory);
    pvti_free(ctx, memory);
}

PVT_API void pvt_memory_write(pvt_ctx *ctx, void *to, const void *from, int64_t bytes)
{
    if (bytes <= 0) return;
    PVTI_ON_DEVICE(ctx, copy_in, to, from, bytes);
    memcpy(to, from, (size_t)bytes);
}

PVT_API pvt_result pvt_memory_read(pvt_ctx *ctx, void *to, const void *from, int64_t bytes)
{
    if (bytes <= 0) return pvti_device_check(ctx);
    if (!ctx->device) {
        memcpy(to, from, (size_t)bytes);
        return PVT_OK;
    }
    ctx->device->copy_out(ctx->device_state, to, from, bytes);
    return pvti_device_check(ctx);
}

PVT_API void pvt_memory_copy(pvt_ctx *ctx, void *to, const void *from, int64_t bytes)
{
    if (bytes <= 0) return;
    PVTI_ON_DEVICE(ctx, copy, to, from, bytes);
    memcpy(to, from, (size_t)bytes);
}

typedef struct pvti_zeroing {
    char *data;
    int64_t bytes;
} pvti_zeroing;

static void pvti_zero_task(void *arg, int64_t i, int worker)
{
    const pvti_zeroing *z = (const pvti_zeroing *)arg;
    int64_t from = i << 20;
    (void)worker;
    memset(z->data + from, 0, (size_t)PVTI_MIN(z->bytes - from, 1 << 20));
}

PVT_API void pvt_memory_zero(pvt_ctx *ctx, void *memory, int64_t bytes)
{
    pvti_zeroing z;
    if (bytes <= 0) return;
    PVTI_ON_DEVICE(ctx, zero, memory, bytes);
    z.data = (char *)memory;
    z.bytes = bytes;
    pvti_parallel(ctx, (z.bytes + (1 << 20) - 1) >> 20, pvti_zero_task, &z);
}

/* The same of n numbers. */
static PVTI_UNUSED void pvti_zero(pvt_ctx *ctx, pvt_real *data, int64_t n)
{
    pvt_memory_zero(ctx, data, n * (int64_t)sizeof *data);
}
static PVTI_UNUSED void pvti_copy(pvt_ctx *ctx, pvt_real *to, const pvt_real *from, int64_t n)
{
    pvt_memory_copy(ctx, to, from, n * (int64_t)sizeof *to);
}

PVT_API pvt_result pvt_ctx_synchronise(pvt_ctx *ctx)
{
    if (ctx->device) ctx->device->synchronise(ctx->device_state);
    return pvti_device_check(ctx);
}

// >>simd
/*  Vector mathematics in plain C. Loops over restrict pointers with branch-free bodies are
    turned into vector code by gcc and clang; PVTI_KERNEL compiles each for several kernel sets.
    Two habits keep the bits equal between them: an element's arithmetic is spelled out
    (pvti_fma where fusion is meant, our own exp), and a reduction always runs through the same
    16 lanes, element i in lane i mod 16, folded by one fixed tree. exp, log, sin and cos are
    Taylor series after the usual reduction of the argument: their coefficients need no table.

    Why not libm: its versions differ between systems in the last bit, and none is inlined.
    Why not minimax coefficients: they save one fma of eight and cost the reader an origin. */

/* ---- exp: n = round(x·log2 e), r = x − n·ln 2 in [−ln 2/2, ln 2/2], 2ⁿ·Σ r^k/k! ----
   Adding 1.5·2^23 rounds to an integer and leaves it in the lowest bits; shifted to the
   exponent's place these are added to the bits of the polynomial. Results below the smallest
   normal number become 0 (denormal arithmetic is slow, and no softmax misses them). */
PVTI_INLINE float pvti_exp32(float x)
{
    const float shift = 12582912.0f;
    float t = __builtin_fmaf(x, 1.44269504f, shift);
    float n = t - shift;
    float r = __builtin_fmaf(n, 1.90465449e-9f, __builtin_fmaf(n, -0.693147182f, x));
    float p = __builtin_fmaf(r, 1.0f / 5040, 1.0f / 720);
    uint32_t bits, power;
    p = __builtin_fmaf(p, r, 1.0f / 120);
    p = __builtin_fmaf(p, r, 1.0f / 24);
    p = __builtin_fmaf(p, r, 1.0f / 6);
    p = __builtin_fmaf(p, r, 0.5f);
    p = __builtin_fmaf(p, r, 1.0f);
    p = __builtin_fmaf(p, r, 1.0f);
    memcpy(&bits, &p, sizeof bits);
    memcpy(&power, &t, sizeof power);
    bits += power << 23;
    memcpy(&p, &bits, sizeof p);
    p = x < -87.3365402f ? 0.0f : p;
    p = x > 88.7228394f ? (float)INFINITY : p;
    return x == x ? p : x;
}

/* The same with 1.5·2^52 and six terms more. */
PVTI_INLINE double pvti_exp64(double x)
{
    const double shift = 6755399441055744.0;
    double t = __builtin_fma(x, 1.4426950408889634, shift);
    double n = t - shift;
    double r = __builtin_fma(n, -2.3190468138462996e-17, __builtin_fma(n, -0.69314718055994531, x));
    double p = __builtin_fma(r, 1.0 / 6227020800.0, 1.0 / 479001600.0);
    uint64_t bits, power;
    p = __builtin_fma(p, r, 1.0 / 39916800.0);
    p = __builtin_fma(p, r, 1.0 / 3628800.0);
    p = __builtin_fma(p, r, 1.0 / 362880.0);
    p = __builtin_fma(p, r, 1.0 / 40320.0);
    p = __builtin_fma(p, r, 1.0 / 5040.0);
    p = __builtin_fma(p, r, 1.0 / 720.0);
    p = __builtin_fma(p, r, 1.0 / 120.0);
    p = __builtin_fma(p, r, 1.0 / 24.0);
    p = __builtin_fma(p, r, 1.0 / 6.0);
    p = __builtin_fma(p, r, 0.5);
    p = __builtin_fma(p, r, 1.0);
    p = __builtin_fma(p, r, 1.0);
    memcpy(&bits, &p, sizeof bits);
    memcpy(&power, &t, sizeof power);
    bits += power << 52;
    memcpy(&p, &bits, sizeof p);
    p = x < -708.39641853226408 ? 0.0 : p;
    p = x > 709.78271289338397 ? (double)INFINITY : p;
    return x == x ? p : x;
}

#if PVTI_REAL_IS_DOUBLE
#define pvti_exp(x) pvti_exp64(x)
#else
#define pvti_exp(x) pvti_exp32(x)
#endif

/* 1/(1 + exp(−z)) */
PVTI_INLINE pvt_real pvti_sigmoid(pvt_real z) { return 1 / (1 + pvti_exp(-z)); }

/* ---- log: x = 2^e·m with m in [√½, √2), s = (m − 1)/(m + 1), |s| < 0.172, z = s²,
   log x = e·ln 2 + 2·(s + s³/3 + s⁵/5 + …), eleven terms. For positive normal x; 0 gives −∞,
   less gives NaN. ---- */
static PVTI_UNUSED double pvti_log(double x)
{
    const double sqrt_half = 0.70710678118654752;
    uint64_t bits, base;
    double m, s, z, p, e;
    int64_t exponent;
    if (!(x >= 2.2250738585072014e-308)) return x == x ? (x < 0 ? (double)NAN : -(double)INFINITY) : x;
    if (x > 1.7976931348623157e308) return x;
    memcpy(&bits, &x, sizeof bits);
    memcpy(&base, &sqrt_half, sizeof base);
    exponent = (int64_t)(bits - base) >> 52; /* rounds down, so that m ≥ √½ */
    bits -= (uint64_t)exponent << 52;
    memcpy(&m, &bits, sizeof m);
    e = (double)exponent;
    s = (m - 1) / (m + 1);
    z = s * s;
    p = __builtin_fma(z, 1.0 / 21, 1.0 / 19);
    p = __builtin_fma(p, z, 1.0 / 17);
    p = __builtin_fma(p, z, 1.0 / 15);
    p = __builtin_fma(p, z, 1.0 / 13);
    p = __builtin_fma(p, z, 1.0 / 11);
    p = __builtin_fma(p, z, 1.0 / 9);
    p = __builtin_fma(p, z, 1.0 / 7);
    p = __builtin_fma(p, z, 1.0 / 5);
    p = __builtin_fma(p, z, 1.0 / 3);
    p = __builtin_fma(2 * s, p * z, 2 * s);
    return __builtin_fma(e, 0.69314718055994531, __builtin_fma(e, 2.3190468138462996e-17, p));
}

/* x^y for x > 0. */
static PVTI_UNUSED double pvti_pow(double x, double y) { return pvti_exp64(y * pvti_log(x)); }

/* ---- sine and cosine: n = round(x·2/π), r = x − n·π/2 in [−π/4, π/4] with π/2 in two parts;
   n mod 4 says which series and which sign. For |x| up to 10^9. ---- */
static PVTI_UNUSED void pvti_sincos(double x, double *sine, double *cosine)
{
    const double shift = 6755399441055744.0;
    double t = __builtin_fma(x, 0.63661977236758134, shift), n = t - shift;
    double r = __builtin_fma(n, -6.1232339957367660e-17, __builtin_fma(n, -1.5707963267948966, x));
    double z = r * r, s = 0, c = 0, sign_s, sign_c;
    uint64_t quadrant;
    int k;
    memcpy(&quadrant, &t, sizeof quadrant);
    quadrant &= 3;
    for (k = 17; k >= 3; k -= 2) s = (1 - s) * z / (k * (k - 1)); /* 1 − s is the rest of the series … */
    for (k = 18; k >= 2; k -= 2) c = (1 - c) * z / (k * (k - 1));
    s = r - r * s; /* … so that x·(1 − z/6·(1 − z/20·(1 − …))) */
    c = 1 - c;
    sign_s = quadrant & 2 ? -1.0 : 1.0;
    sign_c = quadrant == 1 || quadrant == 2 ? -1.0 : 1.0;
    *sine = sign_s * (quadrant & 1 ? c : s);
    *cosine = sign_c * (quadrant & 1 ? s : c);
}

PVTI_KERNELS_BEGIN

/* ---- reductions ----
   Two vectors of eight lanes; the compiler's vector types, because gcc keeps no array of lanes
   in registers. Every 512 elements the lanes are folded and added to a sum in double: 32
   roundings deep, however long the array. */
typedef pvt_real pvti_lanes __attribute__((vector_size(8 * sizeof(pvt_real))));
typedef pvt_real pvti_lanes_at
    __attribute__((vector_size(8 * sizeof(pvt_real)), aligned(sizeof(pvt_real)), may_alias));
#define PVTI_LANES(x, i) (*(const pvti_lanes_at *)((x) + (i))) /* x[i … i+7] */
#define PVTI_LANE(x, i) ((x)[i])
#define PVTI_SUM_BLOCK 512

PVTI_INLINE double pvti_fold(const pvti_lanes *low, const pvti_lanes *high)
{
    pvti_lanes sum = *low + *high;
    pvt_real a[8];
    memcpy(a, &sum, sizeof a);
    return (double)(((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7])));
}
/* Lane by lane the larger, by comparison and mask. */
PVTI_INLINE void pvti_lanes_max(pvti_lanes *a, const pvti_lanes *b)
{
    __typeof__(*a > *b) keep = *a > *b;
    *a = (pvti_lanes)(((__typeof__(keep))*a & keep) | ((__typeof__(keep))*b & ~keep));
}

/* *out = Σ term: written once for a vector (at = PVTI_LANES), once for a number (PVTI_LANE). */
#define PVTI_REDUCE(term)                                                         \
    double total = 0;                                                             \
    int64_t start, i, end;                                                        \
    for (start = 0; start < n; start += PVTI_SUM_BLOCK) {                         \
        pvti_lanes low = {0}, high = {0};                                         \
        pvt_real lane[16];                                                        \
        int l = 0;                                                                \
        end = PVTI_MIN(n, start + PVTI_SUM_BLOCK);                                \
        for (i = start; i + 16 <= end; i += 16) {                                 \
            low += term(PVTI_LANES, i);                                           \
            high += term(PVTI_LANES, i + 8);                                      \
        }                                                                         \
        if (i < end) {                                                            \
            memcpy(lane, &low, sizeof low), memcpy(lane + 8, &high, sizeof high); \
            for (; i < end; i++) lane[l++] += term(PVTI_LANE, i);                 \
            memcpy(&low, lane, sizeof low), memcpy(&high, lane + 8, sizeof high); \
        }                                                                         \
        total += pvti_fold(&low, &high);                                          \
    }                                                                             \
    *out = total

/* *out = Σ x[i] */
#define PVTI_TERM_SUM(at, i) at(x, i)
PVTI_INLINE void pvti_sum_body(double *out, const pvt_real *x, int64_t n) { PVTI_REDUCE(PVTI_TERM_SUM); }
PVTI_KERNEL(pvti_sum, (double *out, const pvt_real *x, int64_t n), (out, x, n))

/* *out = Σ x[i]·y[i] */
#define PVTI_TERM_DOT(at, i) at(x, i) * at(y, i)
PVTI_INLINE void pvti_dot_body(double *out, const pvt_real *x, const pvt_real *y, int64_t n)
{
    PVTI_REDUCE(PVTI_TERM_DOT);
}
PVTI_KERNEL(pvti_dot, (double *out, const pvt_real *x, const pvt_real *y, int64_t n), (out, x, y, n))

/* *out = Σ x[i]² */
PVTI_INLINE void pvti_sumsq_body(double *out, const pvt_real *x, int64_t n) { pvti_dot_body(out, x, x, n); }
PVTI_KERNEL(pvti_sumsq, (double *out, const pvt_real *x, int64_t n), (out, x, n))

/* *out = Σ x[i]·y[i]·z[i] */
#define PVTI_TERM_DOT3(at, i) at(x, i) * at(y, i) * at(z, i)
PVTI_INLINE void pvti_dot3_body(double *out, const pvt_real *x, const pvt_real *y, const pvt_real *z,
                                int64_t n)
{
    PVTI_REDUCE(PVTI_TERM_DOT3);
}

/* *out = Σ (x[i] − y[i])² */
#define PVTI_TERM_DISTANCE(at, i) (at(x, i) - at(y, i)) * (at(x, i) - at(y, i))
PVTI_INLINE void pvti_distance_body(double *out, const pvt_real *x, const pvt_real *y, int64_t n)
{
    PVTI_REDUCE(PVTI_TERM_DISTANCE);
}
PVTI_KERNEL(pvti_distance, (double *out, const pvt_real *x, const pvt_real *y, int64_t n), (out, x, y, n))

/* *out = max x[i], −∞ for n = 0; a NaN may get lost. */
PVTI_INLINE void pvti_max_body(pvt_real *out, const pvt_real *x, int64_t n)
{
    pvt_real lane[16];
    pvti_lanes low, high, v;
    int64_t i;
    int l;
    for (l = 0; l < 16; l++) lane[l] = -(pvt_real)INFINITY;
    memcpy(&low, lane, sizeof low);
    high = low;
    for (i = 0; i + 16 <= n; i += 16) {
        v = PVTI_LANES(x, i), pvti_lanes_max(&low, &v);
        v = PVTI_LANES(x, i + 8), pvti_lanes_max(&high, &v);
    }
    if (i < n) {
        memcpy(lane, &low, sizeof low), memcpy(lane + 8, &high, sizeof high);
        for (l = 0; i < n; i++, l++) lane[l] = PVTI_MAX(lane[l], x[i]);
        memcpy(&low, lane, sizeof low), memcpy(&high, lane + 8, sizeof high);
    }
    pvti_lanes_max(&low, &high);
    memcpy(lane, &low, sizeof low);
    for (l = 0; l < 4; l++) lane[l] = PVTI_MAX(lane[l], lane[l + 4]);
    lane[0] = PVTI_MAX(lane[0], lane[2]), lane[1] = PVTI_MAX(lane[1], lane[3]);
    *out = PVTI_MAX(lane[0], lane[1]);
}
PVTI_KERNEL(pvti_max, (pvt_real *out, const pvt_real *x, int64_t n), (out, x, n))

/* ---- element by element ---- */

/* y[i] += x[i] */
PVTI_INLINE void pvti_add_to_body(pvt_real *__restrict y, const pvt_real *__restrict x, int64_t n)
{
    int64_t i;
    for (i = 0; i < n; i++) y[i] += x[i];
}
PVTI_KERNEL(pvti_add_to, (pvt_real *y, const pvt_real *x, int64_t n), (y, x, n))

PVTI_KERNELS_END
// >>gemm kernels
/*  C[M,N] (+)= A[M,K] · B[K,N], after BLIS (Van Zee, van de Geijn 2015). Three layers:

      micro-kernels  a tile of C, MR×NR numbers, held in registers; one pass over k adds
                     a column of A times a row of B, an outer product, per step
      packing        copies blocks of A and B into panels in exactly the order in which the
                     micro-kernel reads them; also where weights are dequantized
      blocking       cuts M, N and K so that panels stay in cache; threads  (section >>gemm)

    A panel is K rows of W numbers: element (k, j) stands at panel[k·W + j], with W = MR for
    panels of A (whose transpose is meant: j counts rows of A) and W = NR for those of B.

    Equal bits: every element of C starts from its old value (or 0) and adds a[k]·b[k] for
    k = 0 … K−1 in order, each with one rounding. Where a block of K ends, the sum rests in C
    as the number it is. So neither block sizes nor tile sizes nor threads change a bit, the
    kernel sets may each have the tile that suits them, and zeros that pad a panel only reach
    numbers that are never stored. */

typedef void pvti_micro_fn(pvt_real *C, int64_t ldc, const pvt_real *a, const pvt_real *b, int64_t K,
                           int rows, int cols, bool load);

#define PVTI_MR_SCALAR 4
#define PVTI_NR_SCALAR 16
#define PVTI_MR_AVX2 6
#define PVTI_NR_AVX2 16
#define PVTI_MR_AVX512 12
#define PVTI_NR_AVX512 32
#define PVTI_ROWS6(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define PVTI_ROWS12(X) PVTI_ROWS6(X) X(6) X(7) X(8) X(9) X(10) X(11)

PVTI_KERNELS_BEGIN

/*  The definition of the result, and what runs where no kernel set below does. 4×16: sixteen
    vectors of four, which NEON holds in half of its registers. */
static PVTI_UNUSED void pvti_micro_scalar(pvt_real *C, int64_t ldc, const pvt_real *a, const pvt_real *b,
                                          int64_t K, int rows, int cols, bool load)
{
    pvt_real c[PVTI_MR_SCALAR][PVTI_NR_SCALAR];
    memset(c, 0, sizeof c);
    for (int i = 0; load && i < rows; i++)
        for (int j = 0; j < cols; j++) c[i][j] = C[i * ldc + j];
    for (int64_t k = 0; k < K; k++, a += PVTI_MR_SCALAR, b += PVTI_NR_SCALAR)
        for (int i = 0; i < PVTI_MR_SCALAR; i++)
            for (int j = 0; j < PVTI_NR_SCALAR; j++) c[i][j] = pvti_fma(a[i], b[j], c[i][j]);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) C[i * ldc + j] = c[i][j];
}

#if PVTI_X86
/*  6×16 in 12 of 16 registers. A step of k: 12 fused multiply-adds, 2 loads of B, 6 broadcasts
    of A; two FMA ports and two load ports: 6 cycles by FMA, 4 by loads, so FMA is the limit
    and 12 sums in flight cover 2 ports × 4 or 5 cycles of latency. 24 bytes of A, 64 of B. */
PVTI_TARGET_AVX2 PVTI_INLINE void pvti_micro_avx2_rows(float *C, int64_t ldc, const float *a, const float *b,
                                                       int64_t K, int rows, __m256i left, __m256i right,
                                                       bool load)
{
#define PVTI_X(i) __m256 l##i = _mm256_setzero_ps(), r##i = l##i;
    PVTI_ROWS6(PVTI_X)
#undef PVTI_X
#define PVTI_X(i)                                                      \
    if (i < rows) {                                                    \
        l##i = _mm256_maskload_ps(C + (i) * ldc, left);                \
        r##i = _mm256_maskload_ps(C + (i) * ldc + 8, right);           \
    }
    if (load) {
        PVTI_ROWS6(PVTI_X)
    }
#undef PVTI_X
#define PVTI_X(i)                                                      \
    if (i < rows) {                                                    \
        __m256 x = _mm256_broadcast_ss(a + (i));                       \
        l##i = _mm256_fmadd_ps(x, bl, l##i);                           \
        r##i = _mm256_fmadd_ps(x, br, r##i);                           \
    }
    for (int64_t k = 0; k < K; k++, a += PVTI_MR_AVX2, b += PVTI_NR_AVX2) {
        __m256 bl = _mm256_loadu_ps(b), br = _mm256_loadu_ps(b + 8);
        PVTI_ROWS6(PVTI_X)
    }
#undef PVTI_X
#define PVTI_X(i)                                                      \
    if (i < rows) {                                                    \
        _mm256_maskstore_ps(C + (i) * ldc, left, l##i);                \
        _mm256_maskstore_ps(C + (i) * ldc + 8, right, r##i);           \
    }
    PVTI_ROWS6(PVTI_X)
#undef PVTI_X
}

/* Lane l is on when l < n. */
PVTI_TARGET_AVX2 PVTI_INLINE __m256i pvti_mask_avx2(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)PVTI_MIN(n, 8)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

PVTI_TARGET_AVX2 static void pvti_micro_avx2(float *C, int64_t ldc, const float *a, const float *b, int64_t K,
                                             int rows, int cols, bool load)
{
    __m256i left = pvti_mask_avx2(cols), right = pvti_mask_avx2(cols - 8);
    switch (rows) { /* one copy of the loop for each count, so that rows that are not there cost nothing */
#define PVTI_X(i) \
    case i + 1: pvti_micro_avx2_rows(C, ldc, a, b, K, i + 1, left, right, load); break;
        PVTI_ROWS6(PVTI_X)
#undef PVTI_X
    }
}

/*  12×32 in 24 of 32 registers. A step of k: 24 fused multiply-adds, 2 loads of B, 12 broadcasts
    of A. With full-width units: 12 cycles by FMA, 7 by loads; on Zen 4, which halves 512-bit
    operations, 24 and at most 14. FMA is the limit on both. 48 bytes of A and 128 of B, the latter
    from L2: 5 to 11 bytes a cycle of the 32 that L2 gives. */
PVTI_TARGET_AVX512 PVTI_INLINE void pvti_micro_avx512_rows(float *C, int64_t ldc, const float *a,
                                                           const float *b, int64_t K, int rows,
                                                           __mmask16 left, __mmask16 right, bool load)
{
#define PVTI_X(i) __m512 l##i = _mm512_setzero_ps(), r##i = l##i;
    PVTI_ROWS12(PVTI_X)
#undef PVTI_X
#define PVTI_X(i)                                                      \
    if (i < rows) {                                                    \
        l##i = _mm512_maskz_loadu_ps(left, C + (i) * ldc);             \
        r##i = _mm512_maskz_loadu_ps(right, C + (i) * ldc + 16);       \
    }
    if (load) {
        PVTI_ROWS12(PVTI_X)
    }
#undef PVTI_X
#define PVTI_X(i)                                                      \
    if (i < rows) {                                                    \
        __m512 x = _mm512_set1_ps(a[i]);                               \
        l##i = _mm512_fmadd_ps(x, bl, l##i);                           \
        r##i = _mm512_fmadd_ps(x, br, r##i);                           \
    }
    for (int64_t k = 0; k < K; k++, a += PVTI_MR_AVX512, b += PVTI_NR_AVX512) {
        __m512 bl = _mm512_loadu_ps(b), br = _mm512_loadu_ps(b + 16);
        PVTI_ROWS12(PVTI_X)
    }
#undef PVTI_X
#define PVTI_X(i)                                                      \
    if (i < rows) {                                                    \
        _mm512_mask_storeu_ps(C + (i) * ldc, left, l##i);              \
        _mm512_mask_storeu_ps(C + (i) * ldc + 16, right, r##i);        \
    }
    PVTI_ROWS12(PVTI_X)
#undef PVTI_X
}

/* Bit l is set when l < n. */
PVTI_INLINE __mmask16 pvti_mask_avx512(int64_t n)
{
    return (__mmask16)(n >= 16 ? 0xffffu : n > 0 ? (1u << n) - 1u : 0u);
}

PVTI_TARGET_AVX512 static void pvti_micro_avx512(float *C, int64_t ldc, const float *a, const float *b,
                                                 int64_t K, int rows, int cols, bool load)
{
    __mmask16 left = pvti_mask_avx512(cols), right = pvti_mask_avx512(cols - 16);
    switch (rows) {
#define PVTI_X(i) \
    case i + 1: pvti_micro_avx512_rows(C, ldc, a, b, K, i + 1, left, right, load); break;
        PVTI_ROWS12(PVTI_X)
#undef PVTI_X
    }
}
#endif

#if !PVTI_REAL_IS_DOUBLE
/*  Products of operands rounded to bf16, sums in fp32. A step of a panel is two k: column j of it is one
    32-bit word, the even k in its lower half. What a step does to an element is what one lane of
    VDPBF16PS does,

        c ← fma(a[k+1], b[k+1], c),  c ← fma(a[k], b[k], c)      (the odd k first)

    each rounded to nearest, with subnormal c, before and after, as zero of its sign; the operands
    have no subnormals (packing made them zero). The instruction and its emulation agree bit by bit. */
PVTI_INLINE float pvti_flush(float x) { return __builtin_fabsf(x) < FLT_MIN ? __builtin_copysignf(0, x) : x; }
PVTI_INLINE float pvti_half_even(uint32_t pair)
{
    float x;
    pair <<= 16;
    memcpy(&x, &pair, sizeof x);
    return x;
}
PVTI_INLINE float pvti_half_odd(uint32_t pair)
{
    float x;
    pair &= 0xffff0000u;
    memcpy(&x, &pair, sizeof x);
    return x;
}
PVTI_INLINE void pvti_micro_half_body(float *C, int64_t ldc, const float *a, const float *b, int64_t K,
                                      int rows, int cols, bool load, int MR, int NR)
{
    float c[PVTI_MR_AVX512 * PVTI_NR_AVX512];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++)
            c[i * NR + j] = load && i < rows && j < cols ? pvti_flush(C[i * ldc + j]) : 0;
    for (int64_t k = 0; k < K; k++)
        for (int i = 0; i < rows; i++) {
            uint32_t x, y;
            float even, odd;
            memcpy(&x, a + k * MR + i, sizeof x);
            even = pvti_half_even(x), odd = pvti_half_odd(x);
            for (int j = 0; j < NR; j++) {
                memcpy(&y, b + k * NR + j, sizeof y);
                c[i * NR + j] = pvti_flush(pvti_fma(odd, pvti_half_odd(y), c[i * NR + j]));
                c[i * NR + j] = pvti_flush(pvti_fma(even, pvti_half_even(y), c[i * NR + j]));
            }
        }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) C[i * ldc + j] = c[i * NR + j];
}
static PVTI_UNUSED void pvti_micro_half_scalar(float *C, int64_t ldc, const float *a, const float *b,
                                               int64_t K, int rows, int cols, bool load)
{
    pvti_micro_half_body(C, ldc, a, b, K, rows, cols, load, PVTI_MR_SCALAR, PVTI_NR_SCALAR);
}
#if PVTI_X86
PVTI_TARGET_AVX2 static void pvti_micro_half_avx2(float *C, int64_t ldc, const float *a, const float *b,
                                                  int64_t K, int rows, int cols, bool load)
{
    pvti_micro_half_body(C, ldc, a, b, K, rows, cols, load, PVTI_MR_AVX2, PVTI_NR_AVX2);
}
PVTI_TARGET_AVX512 static void pvti_micro_half_avx512(float *C, int64_t ldc, const float *a, const float *b,
                                                      int64_t K, int rows, int cols, bool load)
{
    pvti_micro_half_body(C, ldc, a, b, K, rows, cols, load, PVTI_MR_AVX512, PVTI_NR_AVX512);
}

/*  As pvti_micro_avx512_rows, with twice the products in the same slots: 24 VDPBF16PS for two k. On a core that
    starts one 512-bit operation a cycle 64 flop a cycle, 230 GFLOP/s at 3.6 GHz; a whole product reaches
    204 to 214: packing and the way of C through the caches weigh twice as much as in fp32. */
#define PVTI_TARGET_BF16 \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
static bool pvti_has_bf16(int isa) { return isa == PVTI_AVX512 && __builtin_cpu_supports("avx512bf16"); }
PVTI_TARGET_BF16 PVTI_INLINE void pvti_micro_bf16_rows(float *C, int64_t ldc, const float *a, const float *b,
                                                       int64_t K, int rows, __mmask16 left, __mmask16 right,
                                                       bool load)
{
#define PVTI_X(i) __m512 l##i = _mm512_setzero_ps(), r##i = l##i;
    PVTI_ROWS12(PVTI_X)
#undef PVTI_X
#define PVTI_X(i)                                                      \
    if (i < rows) {                                                    \
        l##i = _mm512_maskz_loadu_ps(left, C + (i) * ldc);             \
        r##i = _mm512_maskz_loadu_ps(right, C + (i) * ldc + 16);       \
    }
    if (load) {
        PVTI_ROWS12(PVTI_X)
    }
#undef PVTI_X
#define PVTI_X(i)                                                      \
    if (i < rows) {                                                    \
        __m512bh x = (__m512bh)_mm512_set1_ps(a[i]);                   \
        l##i = _mm512_dpbf16_ps(l##i, x, bl);                          \
        r##i = _mm512_dpbf16_ps(r##i, x, br);                          \
    }
    for (int64_t k = 0; k < K; k++, a += PVTI_MR_AVX512, b += PVTI_NR_AVX512) {
        __m512bh bl = (__m512bh)_mm512_loadu_ps(b), br = (__m512bh)_mm512_loadu_ps(b + 16);
        PVTI_ROWS12(PVTI_X)
    }
#undef PVTI_X
#define PVTI_X(i)                                                      \
    if (i < rows) {                                                    \
        _mm512_mask_storeu_ps(C + (i) * ldc, left, l##i);              \
        _mm512_mask_storeu_ps(C + (i) * ldc + 16, right, r##i);        \
    }
    PVTI_ROWS12(PVTI_X)
#undef PVTI_X
}

PVTI_TARGET_BF16 static void pvti_micro_bf16(float *C, int64_t ldc, const float *a, const float *b, int64_t K,
                                             int rows, int cols, bool load)
{
    __mmask16 left = pvti_mask_avx512(cols), right = pvti_mask_avx512(cols - 16);
    switch (rows) {
#define PVTI_X(i) \
    case i + 1: pvti_micro_bf16_rows(C, ldc, a, b, K, i + 1, left, right, load); break;
        PVTI_ROWS12(PVTI_X)
#undef PVTI_X
    }
}
#endif

static pvti_micro_fn *pvti_micro_half(int isa)
{
#if PVTI_X86
    if (pvti_has_bf16(isa)) return pvti_micro_bf16;
#endif
    return &PVTI_PICK(isa, pvti_micro_half);
}
#endif

/*  Skinny products: few rows of x times many rows of w, both contiguous along k. Nothing is
    reused often enough to pay for packing; the rows of w are streamed once. The sum runs
    along k in 16 lanes, lane l taking k ≡ l (mod 16) in order (past the end of k stand zeros),
    and a fixed tree adds the lanes:

        y[m,n] = tree(lanes[m][n]),   lanes[m][n][l] = Σ x[m,k]·w[n,k] over k ≡ l

    The kernel adds one stretch of k into lanes[nx][PVTI_DOT_W][16]; ahead: NULL, or as many rows of w that it may
    fetch meanwhile. */
#define PVTI_DOT_X 4
#define PVTI_DOT_W 6

typedef void pvti_dots_fn(pvt_real *lanes, const pvt_real *x, int64_t ldx, int nx, const pvt_real *w,
                          int64_t ldw, int nw, int64_t K, const pvt_real *ahead);

static PVTI_UNUSED void pvti_dots_scalar(pvt_real *lanes, const pvt_real *x, int64_t ldx, int nx,
                                         const pvt_real *w, int64_t ldw, int nw, int64_t K, const pvt_real *ahead)
{
    (void)ahead;
    for (int i = 0; i < nx; i++)
        for (int j = 0; j < nw; j++) {
            const pvt_real *xi = x + i * ldx, *wj = w + j * ldw;
            pvt_real *sum = lanes + (i * PVTI_DOT_W + j) * 16;
            int64_t k = 0;
            for (; k + 16 <= K; k += 16)
                for (int l = 0; l < 16; l++) sum[l] = pvti_fma(xi[k + l], wj[k + l], sum[l]);
            for (int l = 0; l < 16 && k < K; l++)
                sum[l] = pvti_fma(k + l < K ? xi[k + l] : 0, k + l < K ? wj[k + l] : 0, sum[l]);
        }
}

#if PVTI_X86
/*  2×3 dots of two registers each, 12 of 16. Sixteen k: 12 FMA, 6 loads of w and 4 of x:
    6 cycles by FMA, 5 by loads, for 192 bytes of w of which a core gets about 8 a cycle from
    memory: bandwidth is the limit up to about eight rows of x. */
PVTI_TARGET_AVX2 static void pvti_dots_avx2_2x3(float *lanes, const float *x0, const float *x1,
                                                const float *w0, const float *w1, const float *w2, int64_t K)
{
    __m256 s[12];
    int64_t k;
    for (int i = 0; i < 6; i++) {
        float *lane = lanes + (i % 3) * 16 + (i / 3) * PVTI_DOT_W * 16;
        s[2 * i] = _mm256_loadu_ps(lane), s[2 * i + 1] = _mm256_loadu_ps(lane + 8);
    }
#define PVTI_STEP(load, h)                                                          \
    {                                                                               \
        __m256 a = load(x0), b = load(x1), c;                                       \
        c = load(w0);                                                               \
        s[0 + h] = _mm256_fmadd_ps(a, c, s[0 + h]), s[6 + h] = _mm256_fmadd_ps(b, c, s[6 + h]);   \
        c = load(w1);                                                               \
        s[2 + h] = _mm256_fmadd_ps(a, c, s[2 + h]), s[8 + h] = _mm256_fmadd_ps(b, c, s[8 + h]);   \
        c = load(w2);                                                               \
        s[4 + h] = _mm256_fmadd_ps(a, c, s[4 + h]), s[10 + h] = _mm256_fmadd_ps(b, c, s[10 + h]); \
    }
#define PVTI_LOW(p) _mm256_loadu_ps((p) + k)
#define PVTI_HIGH(p) _mm256_loadu_ps((p) + k + 8)
    for (k = 0; k + 16 <= K; k += 16) {
        PVTI_STEP(PVTI_LOW, 0)
        PVTI_STEP(PVTI_HIGH, 1)
    }
#undef PVTI_LOW
#undef PVTI_HIGH
    if (k < K) {
        __m256i low = pvti_mask_avx2(K - k), high = pvti_mask_avx2(K - k - 8);
#define PVTI_LOW(p) _mm256_maskload_ps((p) + k, low)
#define PVTI_HIGH(p) _mm256_maskload_ps((p) + k + 8, high)
        PVTI_STEP(PVTI_LOW, 0)
        PVTI_STEP(PVTI_HIGH, 1)
#undef PVTI_LOW
#undef PVTI_HIGH
    }
#undef PVTI_STEP
    for (int i = 0; i < 6; i++) {
        float *lane = lanes + (i % 3) * 16 + (i / 3) * PVTI_DOT_W * 16;
        _mm256_storeu_ps(lane, s[2 * i]), _mm256_storeu_ps(lane + 8, s[2 * i + 1]);
    }
}

static void pvti_dots_avx2(float *lanes, const float *x, int64_t ldx, int nx, const float *w, int64_t ldw,
                           int nw, int64_t K, const float *ahead)
{
    (void)ahead;
    for (int i = 0; i < nx; i += 2)
        for (int j = 0; j < nw; j += 3) { /* for a row that is not there: the last, into lanes nobody reads */
            const float *wj = w + j * ldw;
            pvti_dots_avx2_2x3(lanes + (i * PVTI_DOT_W + j) * 16, x + i * ldx,
                               x + PVTI_MIN(i + 1, nx - 1) * ldx, wj, wj + PVTI_MIN(1, nw - 1 - j) * ldw,
                               wj + PVTI_MIN(2, nw - 1 - j) * ldw, K);
        }
}

/*  4×6 dots in 24 of 32 registers. Sixteen k: 24 FMA, 6 loads of w, 4 of x: 24 cycles (12 with
    full-width units) for 384 bytes of w, twice what memory gives a core at nx = 4. */
PVTI_TARGET_AVX512 PVTI_INLINE void pvti_dots_avx512_rows(float *lanes, const float *x, int64_t ldx, int nx,
                                                          const float *w, int64_t ldw, int nw, int64_t K,
                                                          const float *ahead)
{
    const float *w0 = w, *w1 = w + PVTI_MIN(1, nw - 1) * ldw, *w2 = w + PVTI_MIN(2, nw - 1) * ldw;
    const float *w3 = w + PVTI_MIN(3, nw - 1) * ldw, *w4 = w + PVTI_MIN(4, nw - 1) * ldw;
    const float *w5 = w + PVTI_MIN(5, nw - 1) * ldw;
#define PVTI_ROWS4(X) X(0) X(1) X(2) X(3)
#define PVTI_X(i)                                                                                            \
    float *p##i = lanes + (i < nx ? (i) * PVTI_DOT_W * 16 : 0);                                              \
    __m512 s##i##0 = _mm512_loadu_ps(p##i), s##i##1 = _mm512_loadu_ps(p##i + 16);                            \
    __m512 s##i##2 = _mm512_loadu_ps(p##i + 32), s##i##3 = _mm512_loadu_ps(p##i + 48);                       \
    __m512 s##i##4 = _mm512_loadu_ps(p##i + 64), s##i##5 = _mm512_loadu_ps(p##i + 80);
    PVTI_ROWS4(PVTI_X)
#undef PVTI_X
#define PVTI_X(i)                                                                                            \
    if (i < nx) {                                                                                            \
        __m512 v = PVTI_LOAD(x + (i) * ldx);                                                                 \
        s##i##0 = _mm512_fmadd_ps(v, v0, s##i##0), s##i##1 = _mm512_fmadd_ps(v, v1, s##i##1);                \
        s##i##2 = _mm512_fmadd_ps(v, v2, s##i##2), s##i##3 = _mm512_fmadd_ps(v, v3, s##i##3);                \
        s##i##4 = _mm512_fmadd_ps(v, v4, s##i##4), s##i##5 = _mm512_fmadd_ps(v, v5, s##i##5);                \
    }
#define PVTI_STEP                                                                                            \
    {                                                                                                        \
        __m512 v0 = PVTI_LOAD(w0), v1 = PVTI_LOAD(w1), v2 = PVTI_LOAD(w2);                                   \
        __m512 v3 = PVTI_LOAD(w3), v4 = PVTI_LOAD(w4), v5 = PVTI_LOAD(w5);                                   \
        PVTI_ROWS4(PVTI_X)                                                                                   \
    }
    int64_t k;
#define PVTI_LOAD(p) _mm512_loadu_ps((p) + k)
    for (k = 0; k + 16 <= K; k += 16) {
        for (int j = 0; ahead && j < nw; j++) __builtin_prefetch(ahead + j * ldw + k, 0, 2);
        PVTI_STEP
    }
#undef PVTI_LOAD
    if (k < K) {
        __mmask16 tail = pvti_mask_avx512(K - k);
#define PVTI_LOAD(p) _mm512_maskz_loadu_ps(tail, (p) + k)
        PVTI_STEP
#undef PVTI_LOAD
    }
#undef PVTI_STEP
#undef PVTI_X
#define PVTI_X(i)                                                                                            \
    if (i < nx) {                                                                                            \
        _mm512_storeu_ps(p##i, s##i##0), _mm512_storeu_ps(p##i + 16, s##i##1);                               \
        _mm512_storeu_ps(p##i + 32, s##i##2), _mm512_storeu_ps(p##i + 48, s##i##3);                          \
        _mm512_storeu_ps(p##i + 64, s##i##4), _mm512_storeu_ps(p##i + 80, s##i##5);                          \
    }
    PVTI_ROWS4(PVTI_X)
#undef PVTI_X
#undef PVTI_ROWS4
}

PVTI_TARGET_AVX512 static void pvti_dots_avx512(float *lanes, const float *x, int64_t ldx, int nx,
                                                const float *w, int64_t ldw, int nw, int64_t K, const float *ahead)
{
    switch (nx) {
    case 1: pvti_dots_avx512_rows(lanes, x, ldx, 1, w, ldw, nw, K, ahead); break;
    case 2: pvti_dots_avx512_rows(lanes, x, ldx, 2, w, ldw, nw, K, ahead); break;
    case 3: pvti_dots_avx512_rows(lanes, x, ldx, 3, w, ldw, nw, K, ahead); break;
    default: pvti_dots_avx512_rows(lanes, x, ldx, 4, w, ldw, nw, K, ahead);
    }
}
#endif

/*  C[M,N] += A[M,K] · B[K,N] for few rows of A and rows of B that are read once, in place. Eight
    rows of B stay in L1 while each row of C passes by once; k still comes in order, so these are
    the bits of the micro-kernels. 16 columns and 8 k of a row: 8 FMA, 9 loads, a store; limited
    by loads, which memory bandwidth undercuts up to about eight rows. */
#define PVTI_AXPY_K 8
PVTI_INLINE void pvti_gemm_axpy_body(pvt_real *C, int64_t ldc, const pvt_real *A, int64_t ars, int64_t acs,
                                const pvt_real *B, int64_t ldb, int64_t M, int64_t N, int64_t K)
{
    for (int64_t k = 0; k < K; k += PVTI_AXPY_K)
        for (int64_t m = 0; m < M; m++) {
            const pvt_real *a = A + m * ars + k * acs, *__restrict__ b = B + k * ldb;
            pvt_real *__restrict__ c = C + m * ldc;
            if (k + PVTI_AXPY_K <= K) {
                pvt_real a0 = a[0], a1 = a[acs], a2 = a[2 * acs], a3 = a[3 * acs];
                pvt_real a4 = a[4 * acs], a5 = a[5 * acs], a6 = a[6 * acs], a7 = a[7 * acs];
                for (int64_t n = 0; n < N; n++) {
                    pvt_real s = pvti_fma(a0, b[n], c[n]);
                    s = pvti_fma(a1, b[ldb + n], s), s = pvti_fma(a2, b[2 * ldb + n], s);
                    s = pvti_fma(a3, b[3 * ldb + n], s), s = pvti_fma(a4, b[4 * ldb + n], s);
                    s = pvti_fma(a5, b[5 * ldb + n], s), s = pvti_fma(a6, b[6 * ldb + n], s);
                    c[n] = pvti_fma(a7, b[7 * ldb + n], s);
                }
            } else
                for (int64_t i = 0; i < K - k; i++)
                    for (int64_t n = 0; n < N; n++) c[n] = pvti_fma(a[i * acs], b[i * ldb + n], c[n]);
        }
}
PVTI_KERNEL_WIDE(pvti_gemm_axpy,
            (pvt_real * C, int64_t ldc, const pvt_real *A, int64_t ars, int64_t acs, const pvt_real *B,
             int64_t ldb, int64_t M, int64_t N, int64_t K),
            (C, ldc, A, ars, acs, B, ldb, M, N, K))

/* The tree: lane l takes in lane l+8, then l+4, l+2, l+1. */
static pvt_real pvti_lanes_sum(const pvt_real *lanes)
{
    pvt_real s[8];
    for (int l = 0; l < 8; l++) s[l] = lanes[l] + lanes[l + 8];
    for (int l = 0; l < 4; l++) s[l] += s[l + 4];
    return (s[0] + s[2]) + (s[1] + s[3]);
}
PVTI_KERNELS_END

// >>gemm packing
/*  Operands and their way into panels. */

/* Writes rows r0 … r1−1, columns c0 … c1−1 of a matrix into out, row-major with leading
   dimension ld. Any rectangle is legal. */
typedef void pvti_tile_fn(const void *self, pvt_real *out, int64_t ld, int64_t r0, int64_t r1, int64_t c0,
                          int64_t c1);

/* A matrix to read: dense, element (r, c) at data[r·rs + c·cs], or a tile source, which is
   decoded piece by piece on its way into the panels and never stands in memory as a whole. */
typedef struct pvti_operand {
    const pvt_real *data;
    int64_t rs, cs;
    pvti_tile_fn *tile;
    const void *self;
    bool transposed; /* of a tile source: element (r, c) is the source's (c, r) */
} pvti_operand;

/* Dense, row-major, rows ld apart. */
static PVTI_UNUSED pvti_operand pvti_rows(const pvt_real *data, int64_t ld)
{
    pvti_operand x = {data, ld, 1, NULL, NULL, false};
    return x;
}
/* The transpose of such a matrix. */
static PVTI_UNUSED pvti_operand pvti_cols(const pvt_real *data, int64_t ld)
{
    pvti_operand x = {data, 1, ld, NULL, NULL, false};
    return x;
}
static PVTI_UNUSED pvti_operand pvti_tiles(pvti_tile_fn *tile, const void *self, bool transposed)
{
    pvti_operand x = {NULL, 0, 0, tile, self, transposed};
    return x;
}
static pvti_operand pvti_operand_transpose(pvti_operand x)
{
    int64_t t = x.rs;
    x.rs = x.cs, x.cs = t, x.transposed = !x.transposed;
    return x;
}

PVTI_KERNELS_BEGIN
#if PVTI_X86
/*  panel[k·W + j] = src[j·ld + k] for four j and n (a multiple of 8) k: two 4×4 transposes side
    by side. Eight k: 4 loads, 8 shuffles, 8 stores of 16 bytes; the stores limit it to 8
    cycles per 128 bytes, four times what memory delivers. */
PVTI_TARGET_AVX2 static void pvti_pack_four_avx2(float *panel, int W, const float *src, int64_t ld, int64_t n)
{
    for (int64_t k = 0; k < n; k += 8, panel += 8 * W) {
        __m256 r0 = _mm256_loadu_ps(src + k), r1 = _mm256_loadu_ps(src + ld + k);
        __m256 r2 = _mm256_loadu_ps(src + 2 * ld + k), r3 = _mm256_loadu_ps(src + 3 * ld + k);
        __m256 a = _mm256_unpacklo_ps(r0, r1), b = _mm256_unpackhi_ps(r0, r1);
        __m256 c = _mm256_unpacklo_ps(r2, r3), d = _mm256_unpackhi_ps(r2, r3);
        __m256 k04 = _mm256_shuffle_ps(a, c, 0x44), k15 = _mm256_shuffle_ps(a, c, 0xee);
        __m256 k26 = _mm256_shuffle_ps(b, d, 0x44), k37 = _mm256_shuffle_ps(b, d, 0xee);
        _mm_storeu_ps(panel, _mm256_castps256_ps128(k04));
        _mm_storeu_ps(panel + W, _mm256_castps256_ps128(k15));
        _mm_storeu_ps(panel + 2 * W, _mm256_castps256_ps128(k26));
        _mm_storeu_ps(panel + 3 * W, _mm256_castps256_ps128(k37));
        _mm_storeu_ps(panel + 4 * W, _mm256_extractf128_ps(k04, 1));
        _mm_storeu_ps(panel + 5 * W, _mm256_extractf128_ps(k15, 1));
        _mm_storeu_ps(panel + 6 * W, _mm256_extractf128_ps(k26, 1));
        _mm_storeu_ps(panel + 7 * W, _mm256_extractf128_ps(k37, 1));
    }
}
#endif

/* panel[k·W + j] = src[k·rs + j·cs] for k < nk, j < nj ≤ W. */
static void pvti_pack_panel(int isa, pvt_real *panel, int W, const pvt_real *src, int64_t rs, int64_t cs,
                            int64_t nk, int nj)
{
    int64_t done = 0;
    if (cs == 1) {
        for (int64_t k = 0; k < nk; k++, src += rs, panel += W)
            switch (nj) { /* widths known to the compiler become a few moves */
            case 32: memcpy(panel, src, 32 * sizeof *panel); break;
            case 16: memcpy(panel, src, 16 * sizeof *panel); break;
            case 12: memcpy(panel, src, 12 * sizeof *panel); break;
            default:
                for (int j = 0; j < nj; j++) panel[j] = src[j];
            }
        return;
    }
#if PVTI_X86
    if (rs == 1 && isa >= PVTI_AVX2 && nj >= 4)
        while (done + 8 <= nk) { /* 64 rows of the panel at a time stay in L1 until all columns are in */
            int64_t n = PVTI_MIN((nk - done) & ~(int64_t)7, 64);
            for (int j = 0; j < nj; j += 4) {
                int at = PVTI_MIN(j, nj - 4); /* the last four may overlap the four before */
                pvti_pack_four_avx2(panel + done * W + at, W, src + done + at * cs, cs, n);
            }
            done += n;
        }
#endif
    (void)isa;
    for (int64_t k = done; k < nk; k++)
        for (int j = 0; j < nj; j++) panel[k * W + j] = src[k * rs + j * cs];
}

#if !PVTI_REAL_IS_DOUBLE
/* The bits of x in bf16, to nearest even; subnormals become zero, NaN stays NaN: VCVTNEPS2BF16. */
PVTI_INLINE uint32_t pvti_half_bits(float x)
{
    uint32_t bits, rounded;
    memcpy(&bits, &x, sizeof bits);
    rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    rounded = (bits & 0x7fffffffu) < 0x00800000u ? bits & 0x80000000u : rounded;
    rounded = (bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x00400000u : rounded;
    return rounded >> 16;
}

#if PVTI_X86
/*  panel[k/2·W + j] for four j and n (a multiple of 16) k, as bf16 pairs: rounding two rows into one
    register leaves their eight pairs side by side, and two permutations turn 4×8 pairs into 8×4. 16 k:
    4 loads, 2 conversions, 2 permutations, 8 stores of 16 bytes; the stores limit it. */
PVTI_TARGET_BF16 static void pvti_pack_four_bf16(float *panel, int W, const float *src, int64_t ld, int64_t n)
{
    const __m512i low = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    const __m512i high = _mm512_setr_epi32(4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31);
    for (int64_t k = 0; k < n; k += 16, panel += 8 * W) {
        __m512i a = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(src + ld + k), _mm512_loadu_ps(src + k));
        __m512i b = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(src + 3 * ld + k),
                                                 _mm512_loadu_ps(src + 2 * ld + k));
        __m512 x = _mm512_castsi512_ps(_mm512_permutex2var_epi32(a, low, b));
        __m512 y = _mm512_castsi512_ps(_mm512_permutex2var_epi32(a, high, b));
        _mm_storeu_ps(panel, _mm512_castps512_ps128(x));
        _mm_storeu_ps(panel + W, _mm512_extractf32x4_ps(x, 1));
        _mm_storeu_ps(panel + 2 * W, _mm512_extractf32x4_ps(x, 2));
        _mm_storeu_ps(panel + 3 * W, _mm512_extractf32x4_ps(x, 3));
        _mm_storeu_ps(panel + 4 * W, _mm512_castps512_ps128(y));
        _mm_storeu_ps(panel + 5 * W, _mm512_extractf32x4_ps(y, 1));
        _mm_storeu_ps(panel + 6 * W, _mm512_extractf32x4_ps(y, 2));
        _mm_storeu_ps(panel + 7 * W, _mm512_extractf32x4_ps(y, 3));
    }
}

/*  The same from rows of the panel as they lie, ld apart: n (even) k, nj j. Two rows round into one
    register; a permutation of words makes them pairs. 32 numbers: 2 loads, a store. */
PVTI_TARGET_BF16 static void pvti_pack_rows_bf16(float *panel, int W, const float *src, int64_t ld, int64_t n,
                                                 int nj)
{
    __m512i zip = _mm512_setr_epi32(0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006,
                                    0x170007, 0x180008, 0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d,
                                    0x1e000e, 0x1f000f);
    for (int64_t k = 0; k < n; k += 2, panel += W, src += 2 * ld)
        for (int j = 0; j < nj; j += 16) {
            __mmask16 m = pvti_mask_avx512(nj - j);
            __m512 even = _mm512_maskz_loadu_ps(m, src + j), odd = _mm512_maskz_loadu_ps(m, src + ld + j);
            __m512i pairs = _mm512_permutexvar_epi16(zip, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
            _mm512_mask_storeu_ps(panel + j, m, _mm512_castsi512_ps(pairs));
        }
}
#endif

/* The same in pairs of bf16: word panel[k/2·W + j] holds (k, j) and, above it, (k+1, j); past the end 0. */
static void pvti_pack_panel_half(int isa, pvt_real *panel, int W, const pvt_real *src, int64_t rs, int64_t cs,
                                 int64_t nk, int nj)
{
    int64_t done = 0;
#if PVTI_X86
    if (pvti_has_bf16(isa) && cs == 1) {
        done = nk & ~(int64_t)1;
        pvti_pack_rows_bf16(panel, W, src, rs, done, nj);
    } else if (pvti_has_bf16(isa) && rs == 1 && nj >= 4)
        while (done + 16 <= nk) {
            int64_t n = PVTI_MIN((nk - done) & ~(int64_t)15, 128);
            for (int j = 0; j < nj; j += 4) {
                int at = PVTI_MIN(j, nj - 4);
                pvti_pack_four_bf16(panel + done / 2 * W + at, W, src + done + at * cs, cs, n);
            }
            done += n;
        }
#endif
    (void)isa;
    for (int64_t k = done; k < nk; k += 2)
        for (int j = 0; j < nj; j++) {
            const pvt_real *at = src + k * rs + j * cs;
            uint32_t pair = pvti_half_bits(*at) | (k + 1 < nk ? pvti_half_bits(at[rs]) << 16 : 0);
            memcpy(panel + k / 2 * W + j, &pair, sizeof pair);
        }
}
#endif
PVTI_KERNELS_END

#define PVTI_PACK_ROWS 16 /* a tile source is asked for at most 16 rows of 256 numbers: */
#define PVTI_PACK_COLS 256 /* a rectangle that stays in L1 and holds whole blocks of every format */

/* Steps of a panel that n numbers along k take. */
static int64_t pvti_pack_steps(bool half, int64_t n) { return half ? (n + 1) / 2 : n; }

/*  Packs rows k0 … k0+nk−1, columns j0 … j0+nj−1 of x into panels of width W one after the
    other, each nk rows (of bf16 pairs when `half`: (nk+1)/2) long, the last filled up with zeros.
    buffer holds PVTI_PACK_ROWS × PVTI_PACK_COLS numbers. */
static void pvti_pack(int isa, bool half, pvt_real *panels, int W, pvti_operand x, int64_t k0, int64_t nk,
                      int64_t j0, int64_t nj, pvt_real *buffer)
{
    int64_t steps = pvti_pack_steps(half, nk);
    void (*pack_panel)(int, pvt_real *, int, const pvt_real *, int64_t, int64_t, int64_t, int) = pvti_pack_panel;
    bool along_k = x.tile ? x.transposed : x.cs != 1; /* the source's rows run along k */
    int64_t rows = W < PVTI_PACK_ROWS ? PVTI_PACK_ROWS / W * W : PVTI_PACK_ROWS; /* of whole panels */
    int64_t step_j = !x.tile ? nj : along_k ? rows : PVTI_PACK_COLS;
    int64_t step_k = !along_k ? PVTI_PACK_ROWS : x.tile ? PVTI_PACK_COLS : nk;
#if !PVTI_REAL_IS_DOUBLE
    if (half) pack_panel = pvti_pack_panel_half;
#endif
    for (int64_t j = 0; j < nj; j += step_j)
        for (int64_t k = 0; k < nk; k += step_k) {
            int64_t mj = PVTI_MIN(step_j, nj - j), mk = PVTI_MIN(step_k, nk - k), rs = x.rs, cs = x.cs;
            const pvt_real *src = x.tile ? buffer : x.data + (k0 + k) * rs + (j0 + j) * cs;
            if (x.tile && along_k) {
                rs = 1, cs = PVTI_PACK_COLS;
                x.tile(x.self, buffer, cs, j0 + j, j0 + j + mj, k0 + k, k0 + k + mk);
            } else if (x.tile) {
                rs = PVTI_PACK_COLS, cs = 1;
                x.tile(x.self, buffer, rs, k0 + k, k0 + k + mk, j0 + j, j0 + j + mj);
            }
            for (int64_t i = 0; i < mj; i += W - (j + i) % W) { /* the piece, panel by panel */
                int64_t p = (j + i) / W, within = (j + i) % W;
                pack_panel(isa, panels + (p * steps + pvti_pack_steps(half, k)) * W + within, W, src + i * cs, rs,
                           cs, mk, (int)PVTI_MIN(W - within, mj - i));
            }
        }
    if (nj % W)
        for (int64_t k = 0; k < steps; k++)
            for (int64_t j = nj % W; j < W; j++) panels[(nj / W * steps + k) * W + j] = 0;
}

// >>gemm
/*  Blocking. Of the classical five loops, with the roles of A and B chosen for weights that
    are expensive to decode and stand in B:

      for a block of rows m      (usually one: 3072 rows of 512 numbers fit)
        for a block of k         (up to 1024, or 512 where that saves a block of rows)
          pack A[m, k] once, all workers together, into ctx->gemm_shared: it is read from L3
          for a block of columns n, one task each, claimed by whichever worker is free
            pack B[k, n] into the worker's scratch: L2; each element is decoded once
            for each panel of A  (L1)   for each panel of B   micro-kernel

    Scratch: the upper 768 KiB of a worker's 1 MiB; the lower 256 KiB belong to the caller. */

#define PVTI_GEMM_KEEP ((int64_t)256 << 10)     /* of the scratch, the caller's */
#define PVTI_GEMM_BUFFER ((int64_t)48 << 10)    /* for tiles being decoded */
#define PVTI_GEMM_SERIAL_A ((int64_t)208 << 10) /* for A, when gemm_shared may not be used */
#define PVTI_GEMM_ALONE 2e5 /* products of fewer multiplications: waking others takes longer */
#define PVTI_GEMM_STACK ((int64_t)60 << 10)     /* all of it, without a context */

typedef struct pvti_gemm_job {
    pvt_ctx *ctx;
    int isa, mr, nr;
    pvti_micro_fn *micro;
    pvti_dots_fn *dots;
    pvt_real *C;
    int64_t ldc;
    pvti_operand At, B; /* At: the transpose of A, since both are packed along k */
    int64_t M, N, K;
    bool accumulate, half; /* half: operands rounded to bf16, two k in a word of the panels */
    pvt_real *a, *b, *buffer; /* b and buffer NULL: each worker's scratch */
    int64_t a_room, b_room, buffer_room; /* in numbers */
    int64_t k_block, n_block, m_task; /* the plan: columns of a task, rows of a task */
    int64_t m0, mb, k0, kb; /* the block in work */
} pvti_gemm_job;

/* Blocks of d that cover n. */
static int64_t pvti_gemm_parts(int64_t n, int64_t d) { return (n + d - 1) / d; }
/* n cut into the fewest equal parts of at most `most`, each a multiple of `unit`. */
static int64_t pvti_gemm_even(int64_t n, int64_t most, int64_t unit)
{
    int64_t parts = pvti_gemm_parts(n, PVTI_MAX(most / unit, 1) * unit);
    return pvti_gemm_parts(pvti_gemm_parts(n, parts), unit) * unit;
}

/* The worker's B panels and its buffer for tiles. */
static pvt_real *pvti_gemm_b(const pvti_gemm_job *job, int worker, pvt_real **buffer)
{
    char *scratch;
    if (job->b) return *buffer = job->buffer, job->b;
    scratch = (char *)pvti_scratch(job->ctx, worker) + PVTI_GEMM_KEEP;
    *buffer = (pvt_real *)(void *)scratch;
    return (pvt_real *)(void *)(scratch + PVTI_GEMM_BUFFER);
}

#define PVTI_GEMM_PACK_PANELS 8
static void pvti_gemm_pack_task(void *arg, int64_t i, int worker)
{
    const pvti_gemm_job *job = (const pvti_gemm_job *)arg;
    int64_t rows = PVTI_GEMM_PACK_PANELS * job->mr, from = i * rows;
    pvt_real *buffer;
    pvti_gemm_b(job, worker, &buffer);
    pvti_pack(job->isa, job->half, job->a + from * pvti_pack_steps(job->half, job->kb), job->mr, job->At, job->k0,
              job->kb, job->m0 + from, PVTI_MIN(rows, job->mb - from), buffer);
}

/* The tile of C that comes next, on its way while this one is computed: worth 2 to 15 % in bf16. */
PVTI_INLINE void pvti_gemm_prefetch(const pvti_gemm_job *job, int64_t m, int64_t n)
{
    const pvt_real *C = job->C + (job->m0 + m) * job->ldc + n;
    for (int i = 0; i < job->mr; i++, C += job->ldc)
        for (int j = 0; j < job->nr; j += 64 / (int)sizeof *C) __builtin_prefetch(C + j, 1);
}

static void pvti_gemm_task(void *arg, int64_t i, int worker)
{
    const pvti_gemm_job *job = (const pvti_gemm_job *)arg;
    int64_t across = pvti_gemm_parts(job->N, job->n_block);
    int64_t n0 = i % across * job->n_block, m0 = i / across * job->m_task;
    int64_t n = PVTI_MIN(job->n_block, job->N - n0), m1 = PVTI_MIN(m0 + job->m_task, job->mb);
    int64_t steps = pvti_pack_steps(job->half, job->kb);
    bool load = job->accumulate || job->k0 > 0;
    pvt_real *buffer, *b = pvti_gemm_b(job, worker, &buffer);
    pvti_pack(job->isa, job->half, b, job->nr, job->B, job->k0, job->kb, n0, n, buffer);
    for (int64_t m = m0; m < m1; m += job->mr)
        for (int64_t j = 0; j < n; j += job->nr) {
            if (j + job->nr < n)
                pvti_gemm_prefetch(job, m, n0 + j + job->nr);
            else if (m + job->mr < m1)
                pvti_gemm_prefetch(job, m + job->mr, n0);
            job->micro(job->C + (job->m0 + m) * job->ldc + n0 + j, job->ldc, job->a + m * steps,
                       b + j * steps, steps, (int)PVTI_MIN(job->mr, m1 - m),
                       (int)PVTI_MIN(job->nr, n - j), load);
        }
}

/*  Block sizes. K: equal parts of up to k_most, of whole 256-blocks where K has them (GGUF).
    N: blocks that fit, and for several workers some four tasks each, but not under 96 columns,
    since a task reads all of A. Where N gives too few tasks, the rows are cut as well. */
static void pvti_gemm_plan(pvti_gemm_job *job, int64_t k_most, int64_t workers)
{
    int64_t panels, tasks;
    job->k_block =
        PVTI_MIN(pvti_gemm_even(job->K, k_most, job->K % 256 == 0 && k_most >= 256 ? 256 : 32), k_most);
    panels = PVTI_MIN(job->b_room / pvti_pack_steps(job->half, job->k_block), 256) / job->nr;
    tasks = pvti_gemm_parts(job->N, PVTI_MAX(panels, 1) * job->nr);
    if (workers > 1) tasks = PVTI_MAX(tasks, PVTI_MIN(4 * workers, job->N / 96));
    tasks = PVTI_MAX(tasks, 1);
    job->n_block = pvti_gemm_parts(pvti_gemm_parts(job->N, tasks), job->nr) * job->nr;
    job->mb = pvti_gemm_even(job->M, job->a_room / pvti_pack_steps(job->half, job->k_block), job->mr);
    job->m_task = job->mb;
    if (workers > 1 && tasks < 2 * workers)
        job->m_task = pvti_gemm_even(job->mb, PVTI_MAX(job->mb * tasks / (2 * workers), 96), job->mr);
}

static void pvti_gemm_blocks(pvti_gemm_job *job, int64_t k_most, int64_t workers)
{
    pvt_ctx *ctx = workers > 1 ? job->ctx : NULL; /* NULL: serially */
    int64_t mb, tasks;
    pvti_gemm_plan(job, k_most, workers);
    mb = job->mb;
    for (job->m0 = 0; job->m0 < job->M; job->m0 += mb) {
        job->mb = PVTI_MIN(mb, job->M - job->m0);
        for (job->k0 = 0; job->k0 < job->K; job->k0 += job->k_block) {
            job->kb = PVTI_MIN(job->k_block, job->K - job->k0);
            tasks = pvti_gemm_parts(job->N, job->n_block) * pvti_gemm_parts(job->mb, job->m_task);
            pvti_parallel(ctx, pvti_gemm_parts(job->mb, PVTI_GEMM_PACK_PANELS * job->mr), pvti_gemm_pack_task,
                          job);
            pvti_parallel(ctx, tasks, pvti_gemm_task, job);
        }
    }
}

/*  Skinny products: fewer than 16 rows of dense A. Dots decode pieces of B into the worker's buffer, and read a
    dense B where it lies, in long runs of a row: cut into 512 columns and copied out of each other's way in L1,
    eight rows of 2048 columns took twice as long. Axpy copies from four rows on, since it passes over a piece
    of B once per eight rows of it: in place, eight rows took a third longer. */
static void pvti_gemm_dots_task(void *arg, int64_t i, int worker)
{
    const pvti_gemm_job *job = (const pvti_gemm_job *)arg;
    int64_t n1 = PVTI_MIN((i + 1) * job->n_block, job->N), M = job->M;
    bool in_place = !job->B.tile;
    int64_t ldw = in_place ? job->B.cs : job->k_block + 16;
    pvt_real lanes[16 * PVTI_DOT_W * 16], *buffer;
    pvti_gemm_b(job, worker, &buffer);
    for (int64_t n = i * job->n_block; n < n1; n += PVTI_DOT_W) {
        int64_t nw = PVTI_MIN(PVTI_DOT_W, n1 - n);
        memset(lanes, 0, (size_t)M * PVTI_DOT_W * 16 * sizeof *lanes);
        for (int64_t k = 0; k < job->K; k += job->k_block) {
            int64_t nk = PVTI_MIN(job->k_block, job->K - k);
            const pvt_real *w = in_place ? job->B.data + n * ldw + k : buffer;
            if (!in_place) job->B.tile(job->B.self, buffer, ldw, n, n + nw, k, k + nk);
            for (int64_t m = 0; m < M; m += PVTI_DOT_X) /* the last of several passes leaves memory idle: fetch */
                job->dots(lanes + m * PVTI_DOT_W * 16, job->At.data + k + m * job->At.cs, job->At.cs,
                          (int)PVTI_MIN(PVTI_DOT_X, M - m), w, ldw, (int)nw, nk,
                          in_place && m > 0 && m + PVTI_DOT_X >= M && n + nw + nw <= job->N ? w + nw * ldw : NULL);
        }
        for (int64_t m = 0; m < M; m++)
            for (int64_t j = 0; j < nw; j++) {
                pvt_real sum = pvti_lanes_sum(lanes + (m * PVTI_DOT_W + j) * 16);
                pvt_real *c = job->C + m * job->ldc + n + j;
                *c = job->accumulate ? *c + sum : sum;
            }
    }
}

static void pvti_gemm_axpy_task(void *arg, int64_t i, int worker)
{
    const pvti_gemm_job *job = (const pvti_gemm_job *)arg;
    int64_t n0 = i * job->n_block, n1 = PVTI_MIN(n0 + job->n_block, job->N);
    bool in_place = !job->B.tile && job->M < 4;
    int64_t ldb = in_place ? job->B.rs : PVTI_PACK_COLS;
    pvt_real *buffer;
    pvti_gemm_b(job, worker, &buffer);
    for (int64_t m = 0; m < job->M && !job->accumulate; m++)
        memset(job->C + m * job->ldc + n0, 0, (size_t)(n1 - n0) * sizeof(pvt_real));
    for (int64_t k = 0; k < job->K; k += PVTI_PACK_ROWS)
        for (int64_t n = n0; n < n1; n += PVTI_PACK_COLS) {
            int64_t nk = PVTI_MIN(PVTI_PACK_ROWS, job->K - k), nn = PVTI_MIN(PVTI_PACK_COLS, n1 - n);
            const pvt_real *b = in_place ? job->B.data + k * ldb + n : buffer;
            if (job->B.tile) job->B.tile(job->B.self, buffer, ldb, k, k + nk, n, n + nn);
            for (int64_t r = 0; !in_place && !job->B.tile && r < nk; r++)
                memcpy(buffer + r * ldb, job->B.data + (k + r) * job->B.rs + n, (size_t)nn * sizeof *buffer);
            PVTI_PICK(job->isa, pvti_gemm_axpy)
            (job->C + n, job->ldc, job->At.data + k * job->At.rs, job->At.cs, job->At.rs, b, ldb, job->M, nn, nk);
        }
}

/*  Which way a product goes depends on shapes and operands only, never on threads or kernel
    sets. Dots: both sides contiguous along k (forward). Axpy: rows of B contiguous (dx). */
static void pvti_gemm_run(pvti_gemm_job *job, int64_t k_most, int64_t workers)
{
    bool few = job->M < 16 && !job->At.tile;
    pvt_ctx *ctx = workers > 1 ? job->ctx : NULL;
    if (few && job->K >= 32 && job->At.rs == 1 && (job->B.tile ? job->B.transposed : job->B.rs == 1)) {
        job->k_block = job->B.tile ? PVTI_MIN(job->buffer_room / PVTI_DOT_W - 16, 512) & ~(int64_t)15 : 2048;
        job->n_block = pvti_gemm_even(job->N, PVTI_MAX(job->N / (4 * workers), 4 * PVTI_DOT_W), PVTI_DOT_W);
        pvti_parallel(ctx, pvti_gemm_parts(job->N, job->n_block), pvti_gemm_dots_task, job);
    } else if (few && job->N >= 32 && (job->B.tile ? !job->B.transposed : job->B.cs == 1)) {
        job->n_block = pvti_gemm_even(job->N, PVTI_MIN(PVTI_MAX(job->N / (2 * workers), 128), 1024), 32);
        pvti_parallel(ctx, pvti_gemm_parts(job->N, job->n_block), pvti_gemm_axpy_task, job);
    } else
        pvti_gemm_blocks(job, k_most, workers);
}

/* What all entries share; true when there is something left to do. */
static bool pvti_gemm_begin(pvti_gemm_job *job, pvt_ctx *ctx, bool half, pvt_real *C, int64_t ldc, pvti_operand A,
                            pvti_operand B, int64_t M, int64_t N, int64_t K, bool accumulate)
{
    static const int mr[3] = {PVTI_MR_SCALAR, PVTI_MR_AVX2, PVTI_MR_AVX512};
    static const int nr[3] = {PVTI_NR_SCALAR, PVTI_NR_AVX2, PVTI_NR_AVX512};
    memset(job, 0, sizeof *job);
    job->ctx = ctx, job->isa = ctx ? ctx->isa : pvti_isa_detect();
    job->mr = mr[job->isa], job->nr = nr[job->isa];
    job->micro = &PVTI_PICK(job->isa, pvti_micro), job->dots = &PVTI_PICK(job->isa, pvti_dots);
#if !PVTI_REAL_IS_DOUBLE
    if (half) job->half = true, job->micro = pvti_micro_half(job->isa);
#else
    (void)half;
#endif
    job->C = C, job->ldc = ldc, job->At = pvti_operand_transpose(A), job->B = B;
    job->M = M, job->N = N, job->K = K, job->accumulate = accumulate;
    if (K <= 0 && !accumulate)
        for (int64_t m = 0; m < M; m++)
            for (int64_t n = 0; n < N; n++) C[m * ldc + n] = 0;
    return M > 0 && N > 0 && K > 0;
}

/* Cuts memory into buffer, A and B. */
static void pvti_gemm_rooms(pvti_gemm_job *job, char *memory, int64_t buffer, int64_t a, int64_t b)
{
    job->buffer = (pvt_real *)(void *)memory, job->buffer_room = buffer / (int64_t)sizeof(pvt_real);
    job->a = (pvt_real *)(void *)(memory + buffer), job->a_room = a / (int64_t)sizeof(pvt_real);
    job->b = (pvt_real *)(void *)(memory + buffer + a), job->b_room = b / (int64_t)sizeof(pvt_real);
}

/* Without a context, or where its panels are taken: everything in a block of the stack. */
static void pvti_gemm_on_stack(pvti_gemm_job *job)
{
    char memory[PVTI_GEMM_STACK] __attribute__((aligned(PVTI_ALIGN)));
    int64_t buffer = PVTI_PACK_ROWS * PVTI_PACK_COLS * (int64_t)sizeof(pvt_real), a = (int64_t)12 << 10;
    pvti_gemm_rooms(job, memory, buffer, a, PVTI_GEMM_STACK - buffer - a);
    pvti_gemm_run(job, 128, 1);
}

/*  C[M,N] = A[M,K]·B[K,N], or += when accumulate, by one worker inside a parallel task, in the
    upper 768 KiB of that worker's scratch. Same bits as pvti_gemm_linear. */
static PVTI_UNUSED void pvti_gemm_serial(pvt_ctx *ctx, int worker, pvt_real *C, int64_t ldc, pvti_operand A,
                                         pvti_operand B, int64_t M, int64_t N, int64_t K, bool accumulate)
{
    pvti_gemm_job job;
    if (!pvti_gemm_begin(&job, ctx, ctx && ctx->compute_bf16, C, ldc, A, B, M, N, K, accumulate)) return;
    if (!ctx) {
        pvti_gemm_on_stack(&job);
        return;
    }
    pvti_gemm_rooms(&job, (char *)pvti_scratch(ctx, worker) + PVTI_GEMM_KEEP, PVTI_GEMM_BUFFER,
                    PVTI_GEMM_SERIAL_A,
                    PVTI_SCRATCH_BYTES - PVTI_GEMM_KEEP - PVTI_GEMM_BUFFER - PVTI_GEMM_SERIAL_A);
    pvti_gemm_run(&job, 512, 1);
}

/*  The same on all workers, with operands rounded to bf16 when `half`. With ctx NULL, or when another
    parallel region is running, by the caller alone in 60 KiB of its stack: correct, but inside a
    task pvti_gemm_serial is faster. Skinny products ignore `half`: memory limits them. */
static PVTI_UNUSED void pvti_gemm_as(pvt_ctx *ctx, bool half, pvt_real *C, int64_t ldc, pvti_operand A,
                                     pvti_operand B, int64_t M, int64_t N, int64_t K, bool accumulate)
{
    pvti_gemm_job job;
    double work = (double)M * (double)N * (double)K;
    int64_t k_most = 1024;
    if (!pvti_gemm_begin(&job, ctx, half, C, ldc, A, B, M, N, K, accumulate)) return;
    if (!ctx || ctx->in_parallel) {
        pvti_gemm_on_stack(&job);
        return;
    }
    pvti_gemm_rooms(&job, ctx->gemm_shared, 0, PVTI_GEMM_SHARED_BYTES, 0);
    job.b = job.buffer = NULL;
    job.buffer_room = PVTI_GEMM_BUFFER / (int64_t)sizeof(pvt_real);
    job.b_room = (PVTI_SCRATCH_BYTES - PVTI_GEMM_KEEP - PVTI_GEMM_BUFFER) / (int64_t)sizeof(pvt_real);
    /* long blocks of k pass less often over C; not where A must be cut for them, since B is decoded for each cut */
    if (M * pvti_pack_steps(half, PVTI_MIN(K, k_most)) > job.a_room) k_most = 512;
    pvti_gemm_run(&job, k_most, work < PVTI_GEMM_ALONE ? 1 : ctx->n_threads);
}
static PVTI_UNUSED void pvti_gemm(pvt_ctx *ctx, pvt_real *C, int64_t ldc, pvti_operand A, pvti_operand B,
                                  int64_t M, int64_t N, int64_t K, bool accumulate)
{
    pvti_gemm_as(ctx, false, C, ldc, A, B, M, N, K, accumulate);
}
/* A linear layer's product, in the precision the context computes them in. */
static PVTI_UNUSED void pvti_gemm_linear(pvt_ctx *ctx, pvt_real *C, int64_t ldc, pvti_operand A, pvti_operand B,
                                         int64_t M, int64_t N, int64_t K, bool accumulate)
{
    pvti_gemm_as(ctx, ctx && ctx->compute_bf16, C, ldc, A, B, M, N, K, accumulate);
}
// >>ops: rows
/*  Layer 0, first half: embedding, linear, RMSNorm, RoPE, SwiGLU, residual. Each op is a
    kernel (one range of rows or columns, plain C), a task that picks its range, and the public
    function. Tasks split independent outputs only; where rows are summed (the gradients of
    table, bias and norm weight) a task owns some columns and walks the rows in order. */

#define PVTI_TASK_ELEMENTS 16384 /* work of one task: enough to hide the cost of starting it */
#define PVTI_TASK_COLUMNS 64     /* columns of one task that sums rows */

static int64_t pvti_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* One struct for the tasks of all row-wise ops; each public function names what it uses. */
typedef struct pvti_rows_job {
    pvt_ctx *ctx;
    pvt_real *out, *out2;
    const pvt_real *a, *b, *c, *d;
    const int32_t *ids;
    int64_t n, C, V;
    int64_t grain; /* rows, columns or elements per task */
    double eps;
} pvti_rows_job;

static pvti_rows_job pvti_job(pvt_ctx *ctx, int64_t n, int64_t C)
{
    pvti_rows_job job;
    memset(&job, 0, sizeof job);
    job.ctx = ctx, job.n = n, job.C = C;
    return job;
}
static void pvti_job_rows(pvti_rows_job *job, pvt_task_fn *task)
{
    job->grain = PVTI_MAX(1, PVTI_TASK_ELEMENTS / PVTI_MAX(1, job->C));
    pvti_parallel(job->ctx, pvti_ceil_div(job->n, job->grain), task, job);
}
static void pvti_job_columns(pvti_rows_job *job, pvt_task_fn *task)
{
    job->grain = PVTI_TASK_COLUMNS;
    pvti_parallel(job->ctx, pvti_ceil_div(job->C, job->grain), task, job);
}
#define PVTI_JOB_RANGE(total)                                              \
    const pvti_rows_job *job = (const pvti_rows_job *)arg;                 \
    int64_t r0 = task * job->grain, r1 = PVTI_MIN(total, r0 + job->grain); \
    (void)worker

/* ---- embedding ---- */

static void pvti_embedding_forward_task(void *arg, int64_t task, int worker)
{
    PVTI_JOB_RANGE(job->n);
    int64_t i, C = job->C;
    for (i = r0; i < r1; i++) {
        if (job->ids[i] >= 0 && job->ids[i] < job->V)
            memcpy(job->out + i * C, job->a + job->ids[i] * C, (size_t)C * sizeof(pvt_real));
        else
            memset(job->out + i * C, 0, (size_t)C * sizeof(pvt_real));
    }
}
PVT_API void pvt_embedding_forward(pvt_ctx *ctx, pvt_real *out, const pvt_real *table, const int32_t *ids,
                                   int64_t n, int64_t V, int64_t C)
{
    pvti_rows_job job = pvti_job(ctx, n, C);
    PVTI_ON_DEVICE(ctx, embedding_forward, out, table, ids, n, V, C);
    job.out = out, job.a = table, job.ids = ids, job.V = V;
    pvti_job_rows(&job, pvti_embedding_forward_task);
}

/* out[i,:] = table[ids[i],:] copies, so each copy hands its gradient back:
   dtable[v,:] = Σ over i with ids[i] = v of dout[i,:]. Columns are independent. */
static void pvti_embedding_backward_task(void *arg, int64_t task, int worker)
{
    PVTI_JOB_RANGE(job->C);
    int64_t i, id;
    for (i = 0; i < job->n; i++) {
        id = job->ids[i];
        if (id < 0 || id >= job->V) continue;
        PVTI_CALL(job->ctx, pvti_add_to)(job->out + id * job->C + r0, job->a + i * job->C + r0, r1 - r0);
    }
}
PVT_API void pvt_embedding_backward(pvt_ctx *ctx, pvt_real *dtable, const pvt_real *dout, const int32_t *ids,
                                    int64_t n, int64_t V, int64_t C)
{
    pvti_rows_job job = pvti_job(ctx, n, C);
    PVTI_ON_DEVICE(ctx, embedding_backward, dtable, dout, ids, n, V, C);
    job.out = dtable, job.a = dout, job.ids = ids, job.V = V;
    pvti_job_columns(&job, pvti_embedding_backward_task);
}

/* ---- linear ---- */

static void pvti_bias_task(void *arg, int64_t task, int worker)
{
    PVTI_JOB_RANGE(job->n);
    int64_t i;
    for (i = r0; i < r1; i++) memcpy(job->out + i * job->C, job->a, (size_t)job->C * sizeof(pvt_real));
}
PVT_API void pvt_linear_forward(pvt_ctx *ctx, pvt_real *y, const pvt_real *x, const pvt_real *W,
                                const pvt_real *bias, int64_t n, int64_t I, int64_t O)
{
    PVTI_ON_DEVICE(ctx, linear_forward, y, x, W, bias, n, I, O);
    if (bias) {
        pvti_rows_job job = pvti_job(ctx, n, O);
        job.out = y, job.a = bias;
        pvti_job_rows(&job, pvti_bias_task); /* the GEMM accumulates on top */
    }
    pvti_gemm_linear(ctx, y, O, pvti_rows(x, I), pvti_cols(W, I), n, O, I, bias != NULL);
}

/* y[n,o] = Σ_i x[n,i]·W[o,i] + bias[o], hence
   dx[n,i] = Σ_o dy[n,o]·W[o,i],   dW[o,i] = Σ_n dy[n,o]·x[n,i],   dbias[o] = Σ_n dy[n,o]. */
static void pvti_bias_backward_task(void *arg, int64_t task, int worker)
{
    PVTI_JOB_RANGE(job->C);
    int64_t i;
    for (i = 0; i < job->n; i++) {
        PVTI_CALL(job->ctx, pvti_add_to)(job->out + r0, job->a + i * job->C + r0, r1 - r0);
    }
}
PVT_API void pvt_linear_backward(pvt_ctx *ctx, pvt_real *dx, pvt_real *dW, pvt_real *dbias,
                                 const pvt_real *dy, const pvt_real *x, const pvt_real *W, int64_t n,
                                 int64_t I, int64_t O)
{
    PVTI_ON_DEVICE(ctx, linear_backward, dx, dW, dbias, dy, x, W, n, I, O);
    if (dx) pvti_gemm_linear(ctx, dx, I, pvti_rows(dy, O), pvti_rows(W, I), n, I, O, true);
    if (dW) pvti_gemm_linear(ctx, dW, I, pvti_cols(dy, O), pvti_rows(x, I), O, I, n, true);
    if (dbias) {
        pvti_rows_job job = pvti_job(ctx, n, O);
        job.out = dbias, job.a = dy;
        pvti_job_columns(&job, pvti_bias_backward_task);
    }
}

PVTI_KERNELS_BEGIN

/* ---- RMSNorm: out_c = x_c·r·w_c, r = (Σ x²/C + eps)^(−1/2) ---- */

PVTI_INLINE void pvti_rmsnorm_body(pvt_real *__restrict out, pvt_real *rstd, const pvt_real *__restrict x,
                                   const pvt_real *__restrict weight, int64_t n, int64_t C, double eps)
{
    int64_t i, c;
    for (i = 0; i < n; i++, out += C, x += C) {
        double squares;
        pvt_real r;
        pvti_sumsq_body(&squares, x, C);
        r = (pvt_real)(1 / __builtin_sqrt(squares / (double)C + eps));
        for (c = 0; c < C; c++) out[c] = x[c] * r * weight[c];
        if (rstd) rstd[i] = r;
    }
}
PVTI_KERNEL(pvti_rmsnorm,
            (pvt_real *out, pvt_real *rstd, const pvt_real *x, const pvt_real *weight, int64_t n, int64_t C,
             double eps),
            (out, rstd, x, weight, n, C, eps))

/* With g_c = dout_c·w_c the loss sees dL = Σ g_c·d(x_c·r) = r·Σ g_c·dx_c + (Σ g_c·x_c)·dr, and
   from r = (Σ x²/C + eps)^(−1/2) comes dr = −r³/C·Σ x_c·dx_c. Hence
       dx_c      = r·g_c − x_c·r³/C·Σ_j g_j·x_j
       dweight_c = Σ over rows of dout_c·x_c·r. */
PVTI_INLINE void pvti_rmsnorm_backward_body(pvt_real *__restrict dx, const pvt_real *__restrict dout,
                                            const pvt_real *__restrict x, const pvt_real *rstd,
                                            const pvt_real *__restrict weight, int64_t n, int64_t C)
{
    int64_t i, c;
    for (i = 0; i < n; i++, dx += C, dout += C, x += C) {
        double sum;
        pvt_real r = rstd[i], k;
        pvti_dot3_body(&sum, dout, weight, x, C);
        k = (pvt_real)(-(double)r * (double)r * (double)r / (double)C * sum);
        for (c = 0; c < C; c++) dx[c] += pvti_fma(x[c], k, dout[c] * weight[c] * r);
    }
}
PVTI_KERNEL(pvti_rmsnorm_backward,
            (pvt_real *dx, const pvt_real *dout, const pvt_real *x, const pvt_real *rstd,
             const pvt_real *weight, int64_t n, int64_t C),
            (dx, dout, x, rstd, weight, n, C))

/* Some columns (`columns` of them, rows C apart) of all n rows. */
PVTI_INLINE void pvti_rmsnorm_dweight_body(pvt_real *__restrict dweight, const pvt_real *__restrict dout,
                                           const pvt_real *__restrict x, const pvt_real *rstd, int64_t n,
                                           int64_t columns, int64_t C)
{
    int64_t i, c;
    for (i = 0; i < n; i++, dout += C, x += C)
        for (c = 0; c < columns; c++) dweight[c] = pvti_fma(dout[c], x[c] * rstd[i], dweight[c]);
}
PVTI_KERNEL(pvti_rmsnorm_dweight,
            (pvt_real *dweight, const pvt_real *dout, const pvt_real *x, const pvt_real *rstd, int64_t n,
             int64_t columns, int64_t C),
            (dweight, dout, x, rstd, n, columns, C))

/* ---- RoPE: (x_a, x_b) → (x_a·cos − x_b·sin, x_b·cos + x_a·sin) ----
   A rotation is orthogonal: its adjoint is the rotation by the negative angle, sign = −1. */

PVTI_INLINE void pvti_rope_halves_body(pvt_real *__restrict a, pvt_real *__restrict b,
                                       const pvt_real *__restrict cosines, const pvt_real *__restrict sines,
                                       pvt_real sign, int64_t pairs)
{
    int64_t j;
    for (j = 0; j < pairs; j++) {
        pvt_real c = cosines[j], s = sines[j] * sign, xa = a[j], xb = b[j];
        a[j] = pvti_fma(xa, c, -(xb * s));
        b[j] = pvti_fma(xb, c, xa * s);
    }
}
PVTI_KERNEL(pvti_rope_halves,
            (pvt_real *a, pvt_real *b, const pvt_real *cosines, const pvt_real *sines, pvt_real sign,
             int64_t pairs),
            (a, b, cosines, sines, sign, pairs))

PVTI_INLINE void pvti_rope_neighbours_body(pvt_real *__restrict x, const pvt_real *__restrict cosines,
                                           const pvt_real *__restrict sines, pvt_real sign, int64_t pairs)
{
    int64_t j;
    for (j = 0; j < pairs; j++) {
        pvt_real c = cosines[j], s = sines[j] * sign, xa = x[2 * j], xb = x[2 * j + 1];
        x[2 * j] = pvti_fma(xa, c, -(xb * s));
        x[2 * j + 1] = pvti_fma(xb, c, xa * s);
    }
}
PVTI_KERNEL(pvti_rope_neighbours,
            (pvt_real *x, const pvt_real *cosines, const pvt_real *sines, pvt_real sign, int64_t pairs),
            (x, cosines, sines, sign, pairs))

/* ---- SwiGLU: out = g·σ(g)·u; d(g·σ)/dg = σ + g·σ·(1 − σ), so
   dgate = dout·u·σ·(1 + g·(1 − σ)),   dup = dout·g·σ ---- */

PVTI_INLINE void pvti_swiglu_body(pvt_real *out, const pvt_real *gate, const pvt_real *up, int64_t n)
{
    pvt_real block[64];
    int64_t i, start;
    for (start = 0; start < n; start += 64) { /* through a block, because out may be gate or up */
        int64_t m = PVTI_MIN(64, n - start);
        for (i = 0; i < m; i++) block[i] = gate[start + i] * pvti_sigmoid(gate[start + i]) * up[start + i];
        for (i = 0; i < m; i++) out[start + i] = block[i];
    }
}
PVTI_KERNEL(pvti_swiglu, (pvt_real *out, const pvt_real *gate, const pvt_real *up, int64_t n),
            (out, gate, up, n))

PVTI_INLINE void pvti_swiglu_backward_body(pvt_real *__restrict dgate, pvt_real *__restrict dup,
                                           const pvt_real *__restrict dout, const pvt_real *__restrict gate,
                                           const pvt_real *__restrict up, int64_t n)
{
    int64_t i;
    for (i = 0; i < n; i++) {
        pvt_real g = gate[i], s = pvti_sigmoid(g), d = dout[i];
        dgate[i] += d * up[i] * s * pvti_fma(g, 1 - s, 1);
        dup[i] += d * (g * s);
    }
}
PVTI_KERNEL(pvti_swiglu_backward,
            (pvt_real *dgate, pvt_real *dup, const pvt_real *dout, const pvt_real *gate, const pvt_real *up,
             int64_t n),
            (dgate, dup, dout, gate, up, n))

/* ---- residual: out = a + b ---- */

PVTI_INLINE void pvti_residual_body(pvt_real *out, const pvt_real *a, const pvt_real *b, int64_t n)
{
    int64_t i;
    for (i = 0; i < n; i++) out[i] = a[i] + b[i];
}
PVTI_KERNEL(pvti_residual, (pvt_real *out, const pvt_real *a, const pvt_real *b, int64_t n), (out, a, b, n))

PVTI_KERNELS_END

/* ---- RMSNorm, tasks ---- */

static void pvti_rmsnorm_forward_task(void *arg, int64_t task, int worker)
{
    PVTI_JOB_RANGE(job->n);
    int64_t at = r0 * job->C;
    PVTI_CALL(job->ctx, pvti_rmsnorm)
    (job->out + at, job->out2 ? job->out2 + r0 : NULL, job->a + at, job->b, r1 - r0, job->C, job->eps);
}
PVT_API void pvt_rmsnorm_forward(pvt_ctx *ctx, pvt_real *out, pvt_real *rstd, const pvt_real *x,
                                 const pvt_real *weight, int64_t n, int64_t C, pvt_real eps)
{
    pvti_rows_job job = pvti_job(ctx, n, C);
    PVTI_ON_DEVICE(ctx, rmsnorm_forward, out, rstd, x, weight, n, C, eps);
    job.out = out, job.out2 = rstd, job.a = x, job.b = weight, job.eps = (double)eps;
    pvti_job_rows(&job, pvti_rmsnorm_forward_task);
}

static void pvti_rmsnorm_backward_task(void *arg, int64_t task, int worker)
{
    PVTI_JOB_RANGE(job->n);
    int64_t at = r0 * job->C;
    PVTI_CALL(job->ctx, pvti_rmsnorm_backward)
    (job->out + at, job->a + at, job->b + at, job->c + r0, job->d, r1 - r0, job->C);
}
static void pvti_rmsnorm_dweight_task(void *arg, int64_t task, int worker)
{
    PVTI_JOB_RANGE(job->C);
    PVTI_CALL(job->ctx, pvti_rmsnorm_dweight)
    (job->out2 + r0, job->a + r0, job->b + r0, job->c, job->n, r1 - r0, job->C);
}
PVT_API void pvt_rmsnorm_backward(pvt_ctx *ctx, pvt_real *dx, pvt_real *dweight, const pvt_real *dout,
                                  const pvt_real *x, const pvt_real *rstd, const pvt_real *weight, int64_t n,
                                  int64_t C)
{
    pvti_rows_job job = pvti_job(ctx, n, C);
    PVTI_ON_DEVICE(ctx, rmsnorm_backward, dx, dweight, dout, x, rstd, weight, n, C);
    job.out = dx, job.out2 = dweight, job.a = dout, job.b = x, job.c = rstd, job.d = weight;
    if (dx) pvti_job_rows(&job, pvti_rmsnorm_backward_task);
    if (dweight) pvti_job_columns(&job, pvti_rmsnorm_dweight_task);
}

/* ---- RoPE, tables and tasks ---- */

PVT_API void pvt_rope_frequencies(float *inv_freq, int64_t HS, double theta)
{
    int64_t j;
    for (j = 0; j < HS / 2; j++) {
        float exponent = (float)(2 * j) / (float)HS; /* every step rounded to float, as in PyTorch */
        inv_freq[j] = 1.0f / (float)pvti_pow((double)(float)theta, (double)exponent);
    }
}

PVT_API void pvt_rope_scale_llama3(float *inv_freq, int64_t HS, double factor, double low, double high,
                                   int64_t context)
{
    int64_t j;
    for (j = 0; j < HS / 2; j++) {
        double f = (double)inv_freq[j];
        double turns = (double)context * f / 6.283185307179586; /* within the original context */
        double smooth = (turns - low) / (high - low);
        if (turns < low)
            f = f / factor;
        else if (turns <= high)
            f = (1 - smooth) * f / factor + smooth * f;
        inv_freq[j] = (float)f;
    }
}

typedef struct pvti_rope_job {
    pvt_ctx *ctx;
    pvt_real *x, *out_cos, *out_sin;
    const pvt_real *cosines, *sines;
    const float *inv_freq;
    int64_t n, T, NH, HS, pos, grain;
    pvt_rope_pairing pairing;
    pvt_real sign;
} pvti_rope_job;

static void pvti_rope_table_task(void *arg, int64_t task, int worker)
{
    const pvti_rope_job *job = (const pvti_rope_job *)arg;
    int64_t t, j, pairs = job->HS / 2, t1 = PVTI_MIN(job->T, (task + 1) * job->grain);
    (void)worker;
    for (t = task * job->grain; t < t1; t++)
        for (j = 0; j < pairs; j++) {
            float angle = (float)(job->pos + t) * job->inv_freq[j];
            double s, c;
            pvti_sincos((double)angle, &s, &c);
            job->out_cos[t * pairs + j] = (pvt_real)c;
            job->out_sin[t * pairs + j] = (pvt_real)s;
        }
}
PVT_API void pvt_rope_table(pvt_ctx *ctx, pvt_real *cosines, pvt_real *sines, const float *inv_freq,
                            int64_t HS, int64_t pos, int64_t T)
{
    pvti_rope_job job;
    PVTI_ON_DEVICE(ctx, rope_table, cosines, sines, inv_freq, HS, pos, T);
    memset(&job, 0, sizeof job);
    job.out_cos = cosines, job.out_sin = sines, job.inv_freq = inv_freq;
    job.HS = HS, job.pos = pos, job.T = T, job.grain = 32;
    pvti_parallel(ctx, pvti_ceil_div(T, job.grain), pvti_rope_table_task, &job);
}

static void pvti_rope_task(void *arg, int64_t task, int worker)
{
    const pvti_rope_job *job = (const pvti_rope_job *)arg;
    int64_t i, h, pairs = job->HS / 2, i1 = PVTI_MIN(job->n, (task + 1) * job->grain);
    (void)worker;
    for (i = task * job->grain; i < i1; i++) {
        const pvt_real *c = job->cosines + i % job->T * pairs, *s = job->sines + i % job->T * pairs;
        for (h = 0; h < job->NH; h++) {
            pvt_real *x = job->x + (i * job->NH + h) * job->HS;
            if (job->pairing == PVT_ROPE_HALVES)
                PVTI_CALL(job->ctx, pvti_rope_halves)(x, x + pairs, c, s, job->sign, pairs);
            else
                PVTI_CALL(job->ctx, pvti_rope_neighbours)(x, c, s, job->sign, pairs);
        }
    }
}
static void pvti_rope(pvt_ctx *ctx, pvt_real *x, const pvt_real *cosines, const pvt_real *sines, int64_t B,
                      int64_t T, int64_t NH, int64_t HS, pvt_rope_pairing pairing, pvt_real sign)
{
    pvti_rope_job job;
    memset(&job, 0, sizeof job);
    job.ctx = ctx, job.x = x, job.cosines = cosines, job.sines = sines;
    job.n = B * T, job.T = T, job.NH = NH, job.HS = HS, job.pairing = pairing, job.sign = sign;
    job.grain = PVTI_MAX(1, PVTI_TASK_ELEMENTS / PVTI_MAX(1, NH * HS));
    pvti_parallel(ctx, pvti_ceil_div(job.n, job.grain), pvti_rope_task, &job);
}
PVT_API void pvt_rope_forward(pvt_ctx *ctx, pvt_real *x, const pvt_real *cosines, const pvt_real *sines,
                              int64_t B, int64_t T, int64_t NH, int64_t HS, pvt_rope_pairing pairing)
{
    PVTI_ON_DEVICE(ctx, rope_forward, x, cosines, sines, B, T, NH, HS, pairing);
    pvti_rope(ctx, x, cosines, sines, B, T, NH, HS, pairing, 1);
}
PVT_API void pvt_rope_backward(pvt_ctx *ctx, pvt_real *dx, const pvt_real *cosines, const pvt_real *sines,
                               int64_t B, int64_t T, int64_t NH, int64_t HS, pvt_rope_pairing pairing)
{
    PVTI_ON_DEVICE(ctx, rope_backward, dx, cosines, sines, B, T, NH, HS, pairing);
    pvti_rope(ctx, dx, cosines, sines, B, T, NH, HS, pairing, -1);
}

/* ---- SwiGLU and residual, tasks: C = 1, a row is an element ---- */

static void pvti_swiglu_task(void *arg, int64_t task, int worker)
{
    PVTI_JOB_RANGE(job->n);
    PVTI_CALL(job->ctx, pvti_swiglu)(job->out + r0, job->a + r0, job->b + r0, r1 - r0);
}
PVT_API void pvt_swiglu_forward(pvt_ctx *ctx, pvt_real *out, const pvt_real *gate, const pvt_real *up,
                                int64_t n)
{
    pvti_rows_job job = pvti_job(ctx, n, 1);
    PVTI_ON_DEVICE(ctx, swiglu_forward, out, gate, up, n);
    job.out = out, job.a = gate, job.b = up;
    pvti_job_rows(&job, pvti_swiglu_task);
}
static void pvti_swiglu_backward_task(void *arg, int64_t task, int worker)
{
    PVTI_JOB_RANGE(job->n);
    PVTI_CALL(job->ctx, pvti_swiglu_backward)
    (job->out + r0, job->out2 + r0, job->a + r0, job->b + r0, job->c + r0, r1 - r0);
}
PVT_API void pvt_swiglu_backward(pvt_ctx *ctx, pvt_real *dgate, pvt_real *dup, const pvt_real *dout,
                                 const pvt_real *gate, const pvt_real *up, int64_t n)
{
    pvti_rows_job job = pvti_job(ctx, n, 1);
    PVTI_ON_DEVICE(ctx, swiglu_backward, dgate, dup, dout, gate, up, n);
    job.out = dgate, job.out2 = dup, job.a = dout, job.b = gate, job.c = up;
    pvti_job_rows(&job, pvti_swiglu_backward_task);
}

static void pvti_residual_task(void *arg, int64_t task, int worker)
{
    PVTI_JOB_RANGE(job->n);
    PVTI_CALL(job->ctx, pvti_residual)(job->out + r0, job->a + r0, job->b + r0, r1 - r0);
}
PVT_API void pvt_residual_forward(pvt_ctx *ctx, pvt_real *out, const pvt_real *a, const pvt_real *b,
                                  int64_t n)
{
    pvti_rows_job job = pvti_job(ctx, n, 1);
    PVTI_ON_DEVICE(ctx, residual_forward, out, a, b, n);
    job.out = out, job.a = a, job.b = b;
    pvti_job_rows(&job, pvti_residual_task);
}
/* ∂out/∂a = ∂out/∂b = 1. */
static void pvti_residual_backward_task(void *arg, int64_t task, int worker)
{
    PVTI_JOB_RANGE(job->n);
    if (job->out) PVTI_CALL(job->ctx, pvti_add_to)(job->out + r0, job->a + r0, r1 - r0);
    if (job->out2) PVTI_CALL(job->ctx, pvti_add_to)(job->out2 + r0, job->a + r0, r1 - r0);
}
PVT_API void pvt_residual_backward(pvt_ctx *ctx, pvt_real *da, pvt_real *db, const pvt_real *dout, int64_t n)
{
    pvti_rows_job job = pvti_job(ctx, n, 1);
    PVTI_ON_DEVICE(ctx, residual_backward, da, db, dout, n);
    job.out = da, job.out2 = db, job.a = dout;
    pvti_job_rows(&job, pvti_residual_backward_task);
}

// >>ops: attention
/*  Causal attention without the T×T array (FlashAttention). Scores live in one tile of
    64 queries × 64 keys at a time. Forward walks the keys of a block of queries with a running
    maximum m and sum l per row: when a tile raises the maximum from m to m', what was summed so
    far is multiplied by exp(m − m'):
        l ← l·exp(m − m') + Σ_s exp(x_s − m'),   out ← out·exp(m − m') + Σ_s exp(x_s − m')·v_s,
    and at the end out/l, lse = m + log l. Backward has lse, so P = exp(x − lse) comes back
    from q and k without any running state.

    Key tiles start at multiples of 64 counted from key 0, wherever a query stands. Other tile
    sizes were tried: 96 and 128 queries gain nothing at T = 512, as the packing that they save
    is lost again above the diagonal. */

#define PVTI_ATTENTION_Q 64 /* queries of a tile */
#define PVTI_ATTENTION_K 64 /* keys of a tile */

typedef struct pvti_attention {
    pvt_ctx *ctx;
    pvt_attention_desc d;
    int64_t rows, blocks;    /* queries of a head, and in blocks */
    int64_t heads, per_kv;   /* heads of queries, and how many share a key/value head */
    int64_t advance;         /* positions from one row to the next: 1, or 0 for one token */
    int64_t row_ld, head_ld; /* q, out: elements from row to row, from head to head */
    int64_t kv_ld, kv_batch; /* k, v: from token to token, from sequence to sequence */
    pvt_real *out, *lse, *dq, *dk, *dv;
    const pvt_real *q, *k, *v, *dout;
    pvt_real *serial; /* tiles on the caller's stack when there is no context */
} pvti_attention;

/* A tile: `rows` queries against `keys` keys. Row r sees keys up to last + r·advance, counted
   from the tile's first key (which may be negative or beyond the tile), and `window` of them. */
typedef struct pvti_attention_tile {
    int64_t rows, keys, last, advance, window;
} pvti_attention_tile;

PVTI_KERNELS_BEGIN

/* Columns lo … hi−1 of row r are visible. */
#define PVTI_ATTENTION_RANGE(tile, r)                                                 \
    int64_t end = (tile)->last + (r) * (tile)->advance + 1;                           \
    int64_t hi = PVTI_MIN((tile)->keys, end), lo = PVTI_MAX(0, end - (tile)->window); \
    int64_t from = lo & ~(int64_t)15, to = PVTI_MIN((hi + 15) & ~(int64_t)15, (tile)->keys)

/* S → exp(scale·S − m') with m, l and the rows of out brought up to the new maximum. Whole
   vectors are computed, then what is not visible is set to zero. */
PVTI_INLINE void pvti_attention_softmax_body(pvt_real *__restrict S, pvt_real *__restrict m,
                                             pvt_real *__restrict l, pvt_real *__restrict out, int64_t out_ld,
                                             int64_t HS, pvt_real scale, const pvti_attention_tile *tile)
{
    int64_t r, j;
    for (r = 0; r < tile->rows; r++) {
        pvt_real *__restrict p = S + r * PVTI_ATTENTION_K, *__restrict o = out + r * out_ld;
        pvt_real top, rescale;
        double sum;
        PVTI_ATTENTION_RANGE(tile, r);
        if (lo >= hi) {
            for (j = 0; j < tile->keys; j++) p[j] = 0;
            continue;
        }
        pvti_max_body(&top, p + lo, hi - lo);
        top = PVTI_MAX(m[r], top * scale);
        for (j = from; j < to; j++) p[j] = pvti_exp(pvti_fma(p[j], scale, -top));
        for (j = 0; j < lo; j++) p[j] = 0;
        for (j = hi; j < tile->keys; j++) p[j] = 0;
        pvti_sum_body(&sum, p, tile->keys);
        if (top != m[r]) {
            rescale = pvti_exp(m[r] - top);
            l[r] *= rescale;
            for (j = 0; j < HS; j++) o[j] *= rescale;
            m[r] = top;
        }
        l[r] += (pvt_real)sum;
    }
}
PVTI_KERNEL(pvti_attention_softmax,
            (pvt_real *S, pvt_real *m, pvt_real *l, pvt_real *out, int64_t out_ld, int64_t HS,
             pvt_real scale, const pvti_attention_tile *tile),
            (S, m, l, out, out_ld, HS, scale, tile))

/* out/l and lse = m + log l. */
PVTI_INLINE void pvti_attention_finish_body(pvt_real *__restrict out, pvt_real *lse, const pvt_real *m,
                                            const pvt_real *l, int64_t rows, int64_t out_ld, int64_t HS)
{
    int64_t r, j;
    for (r = 0; r < rows; r++, out += out_ld) {
        pvt_real inverse = 1 / l[r];
        for (j = 0; j < HS; j++) out[j] *= inverse;
        if (lse) lse[r] = (pvt_real)((double)m[r] + pvti_log((double)l[r]));
    }
}
PVTI_KERNEL(pvti_attention_finish,
            (pvt_real *out, pvt_real *lse, const pvt_real *m, const pvt_real *l, int64_t rows,
             int64_t out_ld, int64_t HS),
            (out, lse, m, l, rows, out_ld, HS))

/* S → P = exp(scale·S − lse), dP → dS = scale·P∘(dP − D). */
PVTI_INLINE void pvti_attention_dscores_body(pvt_real *__restrict S, pvt_real *__restrict dP,
                                             const pvt_real *lse, const pvt_real *D, pvt_real scale,
                                             const pvti_attention_tile *tile)
{
    int64_t r, j;
    for (r = 0; r < tile->rows; r++) {
        pvt_real *__restrict p = S + r * PVTI_ATTENTION_K, *__restrict d = dP + r * PVTI_ATTENTION_K;
        PVTI_ATTENTION_RANGE(tile, r);
        hi = PVTI_MAX(hi, 0);
        if (lo >= hi) lo = hi, from = to;
        for (j = from; j < to; j++) {
            pvt_real x = pvti_exp(pvti_fma(p[j], scale, -lse[r]));
            p[j] = x;
            d[j] = x * (d[j] - D[r]) * scale;
        }
        for (j = 0; j < lo; j++) p[j] = 0, d[j] = 0;
        for (j = hi; j < tile->keys; j++) p[j] = 0, d[j] = 0;
    }
}
PVTI_KERNEL(pvti_attention_dscores,
            (pvt_real *S, pvt_real *dP, const pvt_real *lse, const pvt_real *D, pvt_real scale,
             const pvti_attention_tile *tile),
            (S, dP, lse, D, scale, tile))

PVTI_KERNELS_END

static pvti_attention pvti_attention_of(pvt_ctx *ctx, const pvt_attention_desc *desc, const pvt_real *q,
                                        const pvt_real *k, const pvt_real *v)
{
    pvti_attention a;
    memset(&a, 0, sizeof a);
    a.ctx = ctx, a.d = *desc, a.q = q, a.k = k, a.v = v;
    a.rows = a.d.T, a.advance = 1;
    a.heads = a.d.NH, a.per_kv = a.d.NH / PVTI_MAX(1, a.d.NKV);
    a.row_ld = a.d.NH * a.d.HS, a.head_ld = a.d.HS, a.kv_ld = a.d.NKV * a.d.HS;
    a.kv_batch = a.d.kv_batch ? a.d.kv_batch : (a.d.pos + a.d.T) * a.kv_ld;
    a.blocks = pvti_ceil_div(a.rows, PVTI_ATTENTION_Q);
    if (a.d.scale == 0) a.d.scale = 1 / __builtin_sqrt((double)a.d.HS);
    if (a.d.window <= 0) a.d.window = a.d.pos + a.d.T;
    return a;
}

/* A single token: the query heads that share keys and values become the rows of one tile, so
   that the cache is read once for all of them. */
static void pvti_attention_merge(pvti_attention *a)
{
    a->rows = a->per_kv, a->advance = 0;
    a->heads = a->d.NKV, a->per_kv = 1;
    a->row_ld = a->d.HS, a->head_ld = a->rows * a->d.HS;
    a->blocks = pvti_ceil_div(a->rows, PVTI_ATTENTION_Q);
}

/* Where queries t0 … of head h stand in q and out, in lse; where their keys stand in k and v. */
static int64_t pvti_attention_q(const pvti_attention *a, int64_t b, int64_t h, int64_t t0)
{
    return b * a->d.T * a->d.NH * a->d.HS + t0 * a->row_ld + h * a->head_ld;
}
static int64_t pvti_attention_lse(const pvti_attention *a, int64_t b, int64_t h, int64_t t0)
{
    return b * a->d.NH * a->d.T + h * a->rows + t0;
}
static int64_t pvti_attention_kv(const pvti_attention *a, int64_t b, int64_t h)
{
    return b * a->kv_batch + h / a->per_kv * a->d.HS;
}

/* Queries t0 … t0+rows−1 see keys from somewhere in the tile at `first` up to `end` − 1. */
static int64_t pvti_attention_first(const pvti_attention *a, int64_t t0)
{
    int64_t s = PVTI_MAX(0, a->d.pos + t0 * a->advance + 1 - a->d.window);
    return s - s % PVTI_ATTENTION_K;
}
static int64_t pvti_attention_end(const pvti_attention *a, int64_t t0, int64_t rows)
{
    return a->d.pos + (t0 + rows - 1) * a->advance + 1;
}
static pvti_attention_tile pvti_attention_at(const pvti_attention *a, int64_t t0, int64_t rows, int64_t s0)
{
    pvti_attention_tile tile;
    tile.rows = rows, tile.advance = a->advance, tile.window = a->d.window;
    tile.keys = PVTI_MIN(PVTI_ATTENTION_K, pvti_attention_end(a, t0, rows) - s0);
    tile.last = a->d.pos + t0 * a->advance - s0;
    return tile;
}

static void pvti_attention_forward_task(void *arg, int64_t task, int worker)
{
    const pvti_attention *a = (const pvti_attention *)arg;
    int64_t HS = a->d.HS, h = task % a->heads, b = task / a->heads % a->d.B;
    int64_t t0 = (a->blocks - 1 - task / a->heads / a->d.B) * PVTI_ATTENTION_Q; /* the longest first */
    int64_t rows = PVTI_MIN(PVTI_ATTENTION_Q, a->rows - t0), end = pvti_attention_end(a, t0, rows), r, s0;
    int64_t at = pvti_attention_q(a, b, h, t0), kv = pvti_attention_kv(a, b, h);
    pvt_real *out = a->out + at, *lse = a->lse ? a->lse + pvti_attention_lse(a, b, h, t0) : NULL;
    pvt_real *S = a->ctx ? (pvt_real *)pvti_scratch(a->ctx, worker) : a->serial;
    pvt_real *m = S + PVTI_ATTENTION_Q * PVTI_ATTENTION_K, *l = m + PVTI_ATTENTION_Q;
    for (r = 0; r < rows; r++) {
        m[r] = -(pvt_real)INFINITY, l[r] = 0;
        memset(out + r * a->row_ld, 0, (size_t)HS * sizeof *out);
    }
    for (s0 = pvti_attention_first(a, t0); s0 < end; s0 += PVTI_ATTENTION_K) {
        pvti_attention_tile tile = pvti_attention_at(a, t0, rows, s0);
        const pvt_real *k = a->k + kv + s0 * a->kv_ld, *v = a->v + kv + s0 * a->kv_ld;
        pvti_gemm_serial(a->ctx, worker, S, PVTI_ATTENTION_K, pvti_rows(a->q + at, a->row_ld),
                         pvti_cols(k, a->kv_ld), rows, tile.keys, HS, false);
        PVTI_CALL(a->ctx, pvti_attention_softmax)(S, m, l, out, a->row_ld, HS, (pvt_real)a->d.scale, &tile);
        pvti_gemm_serial(a->ctx, worker, out, a->row_ld, pvti_rows(S, PVTI_ATTENTION_K),
                         pvti_rows(v, a->kv_ld), rows, HS, tile.keys, true);
    }
    PVTI_CALL(a->ctx, pvti_attention_finish)(out, lse, m, l, rows, a->row_ld, HS);
}

PVT_API void pvt_attention_forward(pvt_ctx *ctx, pvt_real *out, pvt_real *lse, const pvt_real *q,
                                   const pvt_real *k, const pvt_real *v, const pvt_attention_desc *desc)
{
    pvti_attention a = pvti_attention_of(ctx, desc, q, k, v);
    pvt_real tiles[PVTI_ATTENTION_Q * PVTI_ATTENTION_K + 2 * PVTI_ATTENTION_Q];
    PVTI_ON_DEVICE(ctx, attention_forward, out, lse, q, k, v, desc);
    a.out = out, a.lse = lse, a.serial = tiles;
    if (a.d.T == 1) pvti_attention_merge(&a);
    pvti_parallel(ctx, a.blocks * a.d.B * a.heads, pvti_attention_forward_task, &a);
}

/*  With out = P·V and P = softmax(x), x = scale·Q·Kᵀ, row by row:
        dV = Pᵀ·dout
        dP = dout·Vᵀ
        dx_s = P_s·(dP_s − Σ_j P_j·dP_j)             the softmax's Jacobian
        Σ_j P_j·dP_j = Σ_j P_j·(dout·v_j) = dout·out =: D     no row of P is needed for it
        dQ = scale·dx·K,   dK = scale·dxᵀ·Q.
    A task owns one key/value head of one sequence and with it dk, dv and the dq of its query
    heads; these add in order, so the sum over a group is the same for any number of threads. */
static void pvti_attention_backward_block(const pvti_attention *a, int64_t b, int64_t h, int64_t t0,
                                          int worker)
{
    int64_t HS = a->d.HS, rows = PVTI_MIN(PVTI_ATTENTION_Q, a->rows - t0), r, s0;
    int64_t at = pvti_attention_q(a, b, h, t0), kv = pvti_attention_kv(a, b, h);
    pvt_real *P = a->ctx ? (pvt_real *)pvti_scratch(a->ctx, worker) : a->serial;
    pvt_real *dS = P + PVTI_ATTENTION_Q * PVTI_ATTENTION_K, *D = dS + PVTI_ATTENTION_Q * PVTI_ATTENTION_K;
    const pvt_real *lse = a->lse + pvti_attention_lse(a, b, h, t0);
    pvti_operand q = pvti_rows(a->q + at, a->row_ld), dout = pvti_rows(a->dout + at, a->row_ld);
    const int64_t ld = PVTI_ATTENTION_K;
    for (r = 0; r < rows; r++) {
        double dot;
        PVTI_CALL(a->ctx, pvti_dot)(&dot, a->dout + at + r * a->row_ld, a->out + at + r * a->row_ld, HS);
        D[r] = (pvt_real)dot;
    }
    for (s0 = pvti_attention_first(a, t0); s0 < pvti_attention_end(a, t0, rows); s0 += ld) {
        pvti_attention_tile tile = pvti_attention_at(a, t0, rows, s0);
        const pvt_real *k = a->k + kv + s0 * a->kv_ld, *v = a->v + kv + s0 * a->kv_ld;
        pvt_real *dk = a->dk + kv + s0 * a->kv_ld, *dv = a->dv + kv + s0 * a->kv_ld;
        int64_t keys = tile.keys;
        pvti_gemm_serial(a->ctx, worker, P, ld, q, pvti_cols(k, a->kv_ld), rows, keys, HS, false);
        pvti_gemm_serial(a->ctx, worker, dS, ld, dout, pvti_cols(v, a->kv_ld), rows, keys, HS, false);
        PVTI_CALL(a->ctx, pvti_attention_dscores)(P, dS, lse, D, (pvt_real)a->d.scale, &tile);
        pvti_gemm_serial(a->ctx, worker, dv, a->kv_ld, pvti_cols(P, ld), dout, keys, HS, rows, true);
        pvti_gemm_serial(a->ctx, worker, dk, a->kv_ld, pvti_cols(dS, ld), q, keys, HS, rows, true);
        pvti_gemm_serial(a->ctx, worker, a->dq + at, a->row_ld, pvti_rows(dS, ld), pvti_rows(k, a->kv_ld),
                         rows, HS, keys, true);
    }
}

static void pvti_attention_backward_task(void *arg, int64_t task, int worker)
{
    const pvti_attention *a = (const pvti_attention *)arg;
    int64_t g = task % a->d.NKV, b = task / a->d.NKV, h, i;
    for (h = g * a->per_kv; h < (g + 1) * a->per_kv; h++)
        for (i = 0; i < a->blocks; i++) pvti_attention_backward_block(a, b, h, i * PVTI_ATTENTION_Q, worker);
}

PVT_API void pvt_attention_backward(pvt_ctx *ctx, pvt_real *dq, pvt_real *dk, pvt_real *dv,
                                    const pvt_real *dout, const pvt_real *out, const pvt_real *lse,
                                    const pvt_real *q, const pvt_real *k, const pvt_real *v,
                                    const pvt_attention_desc *desc)
{
    pvti_attention a = pvti_attention_of(ctx, desc, q, k, v);
    pvt_real tiles[2 * PVTI_ATTENTION_Q * PVTI_ATTENTION_K + PVTI_ATTENTION_Q];
    PVTI_ON_DEVICE(ctx, attention_backward, dq, dk, dv, dout, out, lse, q, k, v, desc);
    a.dq = dq, a.dk = dk, a.dv = dv, a.dout = dout, a.serial = tiles;
    a.out = (pvt_real *)out, a.lse = (pvt_real *)lse;
    pvti_parallel(ctx, a.d.B * a.d.NKV, pvti_attention_backward_task, &a);
}

// >>ops: losses
/*  Softmax losses in slices of the vocabulary, and the squared error. The sums over a row run
    in blocks of 512 and then in double; lse is double, and split in two parts where it is
    subtracted, so that a likely token's probability keeps all its digits. */

PVTI_KERNELS_BEGIN

#define PVTI_LOSS_BLOCK 512

/* log-softmax: x − lse with lse = hi + lo. */
PVTI_INLINE pvt_real pvti_log_softmax(pvt_real x, pvt_real hi, pvt_real lo) { return (x - hi) - lo; }
#define PVTI_SPLIT(lse) hi_##lse = (pvt_real)(lse), lo_##lse = (pvt_real)((lse) - (double)hi_##lse)

PVTI_INLINE void pvti_softmax_row_body(pvt_softmax_row *row, const pvt_real *x, int64_t n)
{
    pvt_real top, e[PVTI_LOSS_BLOCK];
    double sum = 0, part, max;
    int64_t start, i;
    pvti_max_body(&top, x, n);
    max = row->sum > 0 && row->max > (double)top ? row->max : (double)top;
    top = (pvt_real)max;
    if (max == -(double)INFINITY) return; /* nothing but −∞ so far: no probability */
    for (start = 0; start < n; start += PVTI_LOSS_BLOCK) {
        int64_t m = PVTI_MIN(PVTI_LOSS_BLOCK, n - start);
        for (i = 0; i < m; i++) e[i] = pvti_exp(x[start + i] - top);
        pvti_sum_body(&part, e, m);
        sum += part;
    }
    row->sum = (row->sum > 0 ? row->sum * pvti_exp64(row->max - max) : 0) + sum;
    row->max = max;
}
PVTI_KERNEL(pvti_softmax_row, (pvt_softmax_row *row, const pvt_real *x, int64_t n), (row, x, n))

/* loss = lse − x_target, lse = log Σ exp x_v; ∂lse/∂x_v = exp(x_v − lse), so
   dlogits_v = scale·(exp(x_v − lse) − [v = target]). */
PVTI_INLINE void pvti_cross_entropy_backward_body(pvt_real *x, double lse, pvt_real scale, int64_t n)
{
    pvt_real PVTI_SPLIT(lse);
    int64_t i;
    for (i = 0; i < n; i++) x[i] = scale * pvti_exp(pvti_log_softmax(x[i], hi_lse, lo_lse));
}
PVTI_KERNEL(pvti_cross_entropy_backward, (pvt_real *x, double lse, pvt_real scale, int64_t n),
            (x, lse, scale, n))

/* KL = Σ p_v·(log p_v − log q_v), p teacher. As Σ p_v = 1, only −Σ p_v·log q_v depends on the
   student: the cross-entropy with soft targets, dlogits_v = scale·(q_v − p_v). */
PVTI_INLINE void pvti_kl_forward_body(double *loss, const pvt_real *student, double q,
                                      const pvt_real *teacher, double p, int64_t n)
{
    pvt_real PVTI_SPLIT(q), PVTI_SPLIT(p), e[PVTI_LOSS_BLOCK];
    double sum = 0, part;
    int64_t start, i;
    for (start = 0; start < n; start += PVTI_LOSS_BLOCK) {
        int64_t m = PVTI_MIN(PVTI_LOSS_BLOCK, n - start);
        for (i = 0; i < m; i++) {
            pvt_real log_p = pvti_log_softmax(teacher[start + i], hi_p, lo_p);
            pvt_real ratio = log_p - pvti_log_softmax(student[start + i], hi_q, lo_q),
                     weight = pvti_exp(log_p);
            e[i] = weight > 0 || weight != weight ? weight * ratio : 0; /* 0·log 0 = 0 */
        }
        pvti_sum_body(&part, e, m);
        sum += part;
    }
    *loss += sum;
}
PVTI_KERNEL(pvti_kl_forward,
            (double *loss, const pvt_real *student, double q, const pvt_real *teacher, double p, int64_t n),
            (loss, student, q, teacher, p, n))

PVTI_INLINE void pvti_kl_backward_body(pvt_real *__restrict student, double q,
                                       const pvt_real *__restrict teacher, double p, pvt_real scale,
                                       int64_t n)
{
    pvt_real PVTI_SPLIT(q), PVTI_SPLIT(p);
    int64_t i;
    for (i = 0; i < n; i++)
        student[i] = scale * (pvti_exp(pvti_log_softmax(student[i], hi_q, lo_q)) -
                              pvti_exp(pvti_log_softmax(teacher[i], hi_p, lo_p)));
}
PVTI_KERNEL(pvti_kl_backward,
            (pvt_real *student, double q, const pvt_real *teacher, double p, pvt_real scale, int64_t n),
            (student, q, teacher, p, scale, n))

/* L = (1/n)·Σ (a − b)²; dL/da = (2/n)·(a − b); k = scale·2/n. */
PVTI_INLINE void pvti_mse_backward_body(pvt_real *__restrict da, const pvt_real *__restrict a,
                                        const pvt_real *__restrict b, pvt_real k, int64_t n)
{
    int64_t i;
    for (i = 0; i < n; i++) da[i] = pvti_fma(k, a[i] - b[i], da[i]);
}
PVTI_KERNEL(pvti_mse_backward, (pvt_real *da, const pvt_real *a, const pvt_real *b, pvt_real k, int64_t n),
            (da, a, b, k, n))

PVTI_KERNELS_END

typedef struct pvti_loss_job {
    pvt_ctx *ctx;
    pvt_softmax_row *rows;
    double *loss;
    pvt_real *student;
    const pvt_real *logits, *teacher;
    const double *lse, *teacher_lse;
    const int32_t *targets;
    double scale;
    int64_t n, v0, VS, ld, grain;
} pvti_loss_job;

static pvti_loss_job pvti_loss(pvt_ctx *ctx, const int32_t *targets, int64_t n, int64_t v0, int64_t VS,
                               int64_t ld)
{
    pvti_loss_job job;
    memset(&job, 0, sizeof job);
    job.ctx = ctx, job.targets = targets, job.n = n, job.v0 = v0, job.VS = VS, job.ld = ld;
    return job;
}
static void pvti_loss_run(pvti_loss_job *job, pvt_task_fn *task)
{
    job->grain = PVTI_MAX(1, PVTI_TASK_ELEMENTS / PVTI_MAX(1, job->VS));
    pvti_parallel(job->ctx, pvti_ceil_div(job->n, job->grain), task, job);
}
#define PVTI_LOSS_RANGE                                        \
    const pvti_loss_job *job = (const pvti_loss_job *)arg;     \
    int64_t i, i1 = PVTI_MIN(job->n, (task + 1) * job->grain); \
    (void)worker

/* The place of row i's target within this slice, −1 when it is elsewhere. */
static int64_t pvti_loss_target(const pvti_loss_job *job, int64_t i)
{
    int64_t v = job->targets ? job->targets[i] - job->v0 : -1;
    return job->targets && job->targets[i] >= 0 && v >= 0 && v < job->VS ? v : -1;
}
static bool pvti_loss_counts(const pvti_loss_job *job, int64_t i)
{
    return !job->targets || job->targets[i] >= 0;
}

static void pvti_softmax_update_task(void *arg, int64_t task, int worker)
{
    PVTI_LOSS_RANGE;
    for (i = task * job->grain; i < i1; i++) {
        int64_t target = pvti_loss_target(job, i);
        if (!pvti_loss_counts(job, i)) continue;
        PVTI_CALL(job->ctx, pvti_softmax_row)(job->rows + i, job->logits + i * job->ld, job->VS);
        if (target >= 0) job->rows[i].target = (double)job->logits[i * job->ld + target];
    }
}
PVT_API void pvt_softmax_update(pvt_ctx *ctx, pvt_softmax_row *rows, const pvt_real *logits,
                                const int32_t *targets, int64_t n, int64_t v0, int64_t VS, int64_t ld)
{
    pvti_loss_job job = pvti_loss(ctx, targets, n, v0, VS, ld);
    PVTI_ON_DEVICE(ctx, softmax_update, rows, logits, targets, n, v0, VS, ld);
    job.rows = rows, job.logits = logits;
    if (VS > 0) pvti_loss_run(&job, pvti_softmax_update_task);
}

PVT_API void pvt_softmax_finish(pvt_ctx *ctx, double *lse, double *loss, const pvt_softmax_row *rows,
                                const int32_t *targets, int64_t n)
{
    int64_t i;
    PVTI_ON_DEVICE(ctx, softmax_finish, lse, loss, rows, targets, n);
    for (i = 0; i < n; i++) {
        bool counts = !targets || targets[i] >= 0;
        double value = counts ? rows[i].max + pvti_log(rows[i].sum) : 0;
        if (lse) lse[i] = value;
        if (loss) loss[i] = counts ? value - rows[i].target : 0;
    }
}

static void pvti_cross_entropy_backward_task(void *arg, int64_t task, int worker)
{
    PVTI_LOSS_RANGE;
    for (i = task * job->grain; i < i1; i++) {
        pvt_real *x = job->student + i * job->ld;
        int64_t target = pvti_loss_target(job, i);
        if (!pvti_loss_counts(job, i)) {
            memset(x, 0, (size_t)job->VS * sizeof *x);
            continue;
        }
        PVTI_CALL(job->ctx, pvti_cross_entropy_backward)(x, job->lse[i], (pvt_real)job->scale, job->VS);
        if (target >= 0) x[target] -= (pvt_real)job->scale;
    }
}
PVT_API void pvt_cross_entropy_backward(pvt_ctx *ctx, pvt_real *logits, const double *lse,
                                        const int32_t *targets, double scale, int64_t n, int64_t v0,
                                        int64_t VS, int64_t ld)
{
    pvti_loss_job job = pvti_loss(ctx, targets, n, v0, VS, ld);
    PVTI_ON_DEVICE(ctx, cross_entropy_backward, logits, lse, targets, scale, n, v0, VS, ld);
    job.student = logits, job.lse = lse, job.scale = scale;
    pvti_loss_run(&job, pvti_cross_entropy_backward_task);
}

static void pvti_kl_forward_task(void *arg, int64_t task, int worker)
{
    PVTI_LOSS_RANGE;
    for (i = task * job->grain; i < i1; i++) {
        if (!pvti_loss_counts(job, i)) continue;
        PVTI_CALL(job->ctx, pvti_kl_forward)
        (job->loss + i, job->logits + i * job->ld, job->lse[i], job->teacher + i * job->ld,
         job->teacher_lse[i], job->VS);
    }
}
PVT_API void pvt_kl_forward(pvt_ctx *ctx, double *loss, const pvt_real *student, const double *student_lse,
                            const pvt_real *teacher, const double *teacher_lse, const int32_t *targets,
                            int64_t n, int64_t VS, int64_t ld)
{
    pvti_loss_job job = pvti_loss(ctx, targets, n, 0, VS, ld);
    PVTI_ON_DEVICE(ctx, kl_forward, loss, student, student_lse, teacher, teacher_lse, targets, n, VS, ld);
    job.loss = loss, job.logits = student, job.lse = student_lse, job.teacher = teacher,
    job.teacher_lse = teacher_lse;
    pvti_loss_run(&job, pvti_kl_forward_task);
}

static void pvti_kl_backward_task(void *arg, int64_t task, int worker)
{
    PVTI_LOSS_RANGE;
    for (i = task * job->grain; i < i1; i++) {
        pvt_real *x = job->student + i * job->ld;
        if (!pvti_loss_counts(job, i)) {
            memset(x, 0, (size_t)job->VS * sizeof *x);
            continue;
        }
        PVTI_CALL(job->ctx, pvti_kl_backward)
        (x, job->lse[i], job->teacher + i * job->ld, job->teacher_lse[i], (pvt_real)job->scale, job->VS);
    }
}
PVT_API void pvt_kl_backward(pvt_ctx *ctx, pvt_real *student, const double *student_lse,
                             const pvt_real *teacher, const double *teacher_lse, const int32_t *targets,
                             double scale, int64_t n, int64_t VS, int64_t ld)
{
    pvti_loss_job job = pvti_loss(ctx, targets, n, 0, VS, ld);
    PVTI_ON_DEVICE(ctx, kl_backward, student, student_lse, teacher, teacher_lse, targets, scale, n, VS, ld);
    job.student = student, job.lse = student_lse, job.teacher = teacher, job.teacher_lse = teacher_lse;
    job.scale = scale;
    pvti_loss_run(&job, pvti_kl_backward_task);
}

/* ---- mean squared error: 64 parts, whatever the number of threads, added in order ---- */

typedef struct pvti_mse_job {
    pvt_ctx *ctx;
    pvt_real *da;
    const pvt_real *a, *b;
    int64_t n, grain;
    double sums[64];
    pvt_real k;
} pvti_mse_job;

static void pvti_mse_task(void *arg, int64_t task, int worker)
{
    pvti_mse_job *job = (pvti_mse_job *)arg;
    int64_t i = task * job->grain, count = PVTI_MIN(job->n - i, job->grain);
    (void)worker;
    if (job->da)
        PVTI_CALL(job->ctx, pvti_mse_backward)(job->da + i, job->a + i, job->b + i, job->k, count);
    else
        PVTI_CALL(job->ctx, pvti_distance)(&job->sums[task], job->a + i, job->b + i, count);
}
static double pvti_mse(pvt_ctx *ctx, pvt_real *da, const pvt_real *a, const pvt_real *b, double k, int64_t n)
{
    pvti_mse_job job;
    int64_t i, parts;
    double sum = 0;
    if (n <= 0) return 0;
    job.ctx = ctx, job.da = da, job.a = a, job.b = b, job.n = n, job.k = (pvt_real)k;
    job.grain = PVTI_MAX(PVTI_TASK_ELEMENTS, pvti_ceil_div(n, PVTI_COUNT(job.sums)));
    parts = pvti_ceil_div(n, job.grain);
    memset(job.sums, 0, sizeof job.sums);
    pvti_parallel(ctx, parts, pvti_mse_task, &job);
    for (i = 0; i < parts; i++) sum += job.sums[i];
    return sum / (double)n;
}
PVT_API double pvt_mse_forward(pvt_ctx *ctx, const pvt_real *a, const pvt_real *b, int64_t n)
{
    if (ctx && ctx->device) return ctx->device->mse_forward(ctx->device_state, a, b, n);
    return pvti_mse(ctx, NULL, a, b, 0, n);
}
PVT_API void pvt_mse_backward(pvt_ctx *ctx, pvt_real *da, const pvt_real *a, const pvt_real *b, double scale,
                              int64_t n)
{
    PVTI_ON_DEVICE(ctx, mse_backward, da, a, b, scale, n);
    pvti_mse(ctx, da, a, b, scale * 2 / (double)PVTI_MAX(1, n), n);
}
#if PVTUNE_LAYER >= 1

// >>system
/*  What the library asks of the system about files, in one table: nothing else calls POSIX for them. A
    context uses the machine's own; a test points ctx->system at a table that lets the n-th call fail,
    writes short, or ends the process there. Each function is POSIX's of that name, with its errno. (What
    only asks whether a path exists, and mmap, stand where they are used.) */

typedef void pvti_list_fn(void *user, const char *name);
typedef struct pvti_system {
    int (*open)(const char *path, int flags, mode_t mode);
    int (*close)(int fd);
    ssize_t (*read)(int fd, void *to, size_t bytes);
    ssize_t (*write)(int fd, const void *from, size_t bytes);
    int (*fsync)(int fd);
    int (*fstat)(int fd, struct stat *st);
    int (*stat)(const char *path, struct stat *st);
    int (*fchmod)(int fd, mode_t mode);
    int (*fchown)(int fd, uid_t owner, gid_t group);
    int (*flock)(int fd, int operation);
    int (*dup)(int fd);
    int (*rename)(const char *from, const char *to);
    int (*unlink)(const char *path);
    int (*mkdir)(const char *path, mode_t mode);
    int (*rmdir)(const char *path);
    int (*list)(const char *dir, pvti_list_fn *each, void *user); /* every name in dir; 0, or −1 and errno */
} pvti_system;

static int pvti_system_open(const char *path, int flags, mode_t mode) { return open(path, flags, mode); }
static int pvti_system_dup(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 0); }
static int pvti_system_list(const char *dir, pvti_list_fn *each, void *user)
{
    DIR *stream = opendir(dir);
    struct dirent *entry;
    if (!stream) return -1;
    while ((entry = readdir(stream)) != NULL) each(user, entry->d_name);
    closedir(stream);
    return 0;
}

static const pvti_system *pvti_system_of(const pvt_ctx *ctx)
{
    static const pvti_system own = {
        pvti_system_open, close, read, write, fsync, fstat, stat, fchmod, fchown, flock, pvti_system_dup,
        rename, unlink, mkdir, rmdir, pvti_system_list,
    };
    return ctx->system ? ctx->system : &own;
}

/* Descriptors are not passed on to other programs. */
static int pvti_open(const pvt_ctx *ctx, const char *path, int flags, mode_t mode)
{
    int fd;
    do fd = pvti_system_of(ctx)->open(path, flags | O_CLOEXEC, mode);
    while (fd < 0 && errno == EINTR);
    return fd;
}

/* False: what was written may be lost. The descriptor is gone in any case; EINTR says no more than that. */
static bool pvti_close(const pvt_ctx *ctx, int fd)
{
    return pvti_system_of(ctx)->close(fd) == 0 || errno == EINTR;
}

/* These say that a file system has no such call, which is no news about the data. */
static bool pvti_unsupported(int code)
{
    return code == EINVAL || code == ENOSYS || code == ENOTSUP || code == EOPNOTSUPP || code == ENOLCK;
}

static bool pvti_sync(const pvt_ctx *ctx, int fd)
{
    int status;
    do status = pvti_system_of(ctx)->fsync(fd);
    while (status != 0 && errno == EINTR);
    return status == 0 || pvti_unsupported(errno);
}

/* Whether the open file is still the one that stands at `path`. */
static bool pvti_is_at(const pvt_ctx *ctx, int fd, const char *path)
{
    struct stat a, b;
    return pvti_system_of(ctx)->fstat(fd, &a) == 0 && pvti_system_of(ctx)->stat(path, &b) == 0 &&
           a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/*  A lock on a file says that a process is at work on it, and ends with the process, however that
    ends: what is not locked is an orphan. TAKEN: another one's, or removed before the lock was ours.
    NONE: this file system has no locks; nothing is known about others then. */
typedef enum pvti_lock { PVTI_LOCK_OURS, PVTI_LOCK_TAKEN, PVTI_LOCK_NONE } pvti_lock;
static pvti_lock pvti_lock_try(const pvt_ctx *ctx, int fd, const char *path)
{
    int status;
    do status = pvti_system_of(ctx)->flock(fd, LOCK_EX | LOCK_NB);
    while (status != 0 && errno == EINTR);
    if (status != 0 && errno != EWOULDBLOCK) return PVTI_LOCK_NONE;
    return status == 0 && pvti_is_at(ctx, fd, path) ? PVTI_LOCK_OURS : PVTI_LOCK_TAKEN;
}
// >>files
/*  Reading: a file is mapped, so that a large model costs no memory that the system cannot take
    back; where the system has no mmap it is read into memory instead. A model's files are regular
    files: a pipe named config.json would block for ever, a device never end. Texts may be streams.

    Writing: a file that a user already has is never half overwritten. The writer fills a temporary
    file beside it, flushes it to the device and only then renames it over `path`: at every moment
    one complete file stands there, the old or the new, whoever else writes it at the same time.
    Any failure removes the temporary file and is remembered, so that callers may put everything
    and look at the commit alone. What a killed process left is removed by the next writer of that
    path. Several files that belong together are replaced by >>exchange. */

#define PVTI_PATH_BYTES 4096
#ifndef PVTI_STREAM_BYTES
#define PVTI_STREAM_BYTES ((int64_t)1 << 30) /* of what has no size: a pipe, a device */
#endif

/* ---- paths ---- */

/* out[PVTI_PATH_BYTES] = dir/name, or name alone when dir is empty. */
static PVTI_UNUSED pvt_result pvti_path_join(pvt_ctx *ctx, char *out, const char *dir, const char *name)
{
    size_t length = strlen(dir);
    const char *slash = length == 0 || dir[length - 1] == '/' ? "" : "/";
    if (snprintf(out, PVTI_PATH_BYTES, "%s%s%s", dir, slash, name) >= PVTI_PATH_BYTES)
        return pvti_fail(ctx, PVT_ERR_IO, "%.200s…: this path is too long", dir);
    return PVT_OK;
}

static PVTI_UNUSED bool pvti_path_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

static PVTI_UNUSED bool pvti_path_is_directory(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* The directory of a path, as it was written there, with its slash; "./" when it has none. */
static void pvti_path_directory(const char *path, char out[PVTI_PATH_BYTES])
{
    const char *slash = strrchr(path, '/');
    snprintf(out, PVTI_PATH_BYTES, "%.*s", slash ? (int)(slash - path) + 1 : 2, slash ? path : "./");
}

/* A rename lasts once the directory reached the device. False with errno when that failed; a directory
   that may not be opened, or a file system that cannot sync one, is no failure. */
static PVTI_UNUSED bool pvti_directory_sync(const pvt_ctx *ctx, const char *dir)
{
    int fd = pvti_open(ctx, dir, O_RDONLY, 0), code;
    if (fd < 0) return errno == EACCES;
    code = pvti_sync(ctx, fd) ? 0 : errno;
    if (!pvti_close(ctx, fd) && !code) code = errno;
    errno = code;
    return code == 0;
}

/* Makes the directory and those above it; one that exists is fine. */
static PVTI_UNUSED pvt_result pvti_directory_create(pvt_ctx *ctx, const char *path)
{
    char part[PVTI_PATH_BYTES], above[PVTI_PATH_BYTES];
    size_t i, length = strlen(path);
    bool made;
    if (length == 0 || length >= sizeof part)
        return pvti_fail(ctx, PVT_ERR_IO, "%.200s: cannot be created: not a usable path", path);
    memcpy(part, path, length + 1);
    for (i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != 0) continue;
        part[i] = 0;
        pvti_path_directory(part, above);
        made = pvti_system_of(ctx)->mkdir(part, 0777) == 0;
        if (made ? !pvti_directory_sync(ctx, above) : !pvti_path_is_directory(part))
            return pvti_fail(ctx, PVT_ERR_IO, "%s: this directory cannot be created: %s", part,
                             strerror(errno));
        part[i] = path[i];
    }
    return PVT_OK;
}

/* ---- reading ---- */

/* Zeroed, it is a map of nothing, which may be closed. The file must not be shortened by others
   while it is mapped: the system would end the process at the first missing page. */
typedef struct pvti_map {
    const uint8_t *data; /* never NULL once open */
    int64_t size;
    pvt_ctx *ctx;
    void *mapped; /* by mmap, or … */
    void *memory; /* … read into memory of the context */
} pvti_map;

static PVTI_UNUSED void pvti_map_close(pvt_ctx *ctx, pvti_map *map)
{
#ifndef PVTUNE_NO_MMAP
    if (map->mapped) munmap(map->mapped, (size_t)map->size);
#endif
    pvti_free(ctx, map->memory);
    memset(map, 0, sizeof *map);
}

/* Everything up to the end of the file: of a regular one `expected` bytes, of others at most `limit`. */
static pvt_result pvti_map_read(pvt_ctx *ctx, const char *path, int fd, int64_t expected, int64_t limit,
                                pvti_map *map)
{
    int64_t capacity = 0;
    for (;;) {
        ssize_t got;
        int64_t wanted = PVTI_MAX(map->size, expected) + 1; /* one more, to see the end */
        if (map->size == capacity && !pvti_grow(ctx, &map->memory, &capacity, PVTI_MAX(wanted, 65536), 1))
            return PVT_ERR_MEMORY;
        got = pvti_system_of(ctx)->read(fd, (char *)map->memory + map->size,
                                        (size_t)PVTI_MIN(capacity - map->size, (int64_t)1 << 30));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return pvti_fail(ctx, PVT_ERR_IO, "%s: cannot be read: %s", path, strerror(errno));
        if (got == 0) break;
        map->size += got;
        if (map->size > limit)
            return pvti_fail(ctx, PVT_ERR_IO,
                             "%s: does not end within %lld MiB; put what is wanted into a file", path,
                             (long long)(limit >> 20));
    }
    map->data = (const uint8_t *)map->memory;
    return PVT_OK;
}

static pvt_result pvti_map_fill(pvt_ctx *ctx, const char *path, int fd, bool stream, pvti_map *map)
{
    struct stat st;
    if (pvti_system_of(ctx)->fstat(fd, &st) != 0)
        return pvti_fail(ctx, PVT_ERR_IO, "%s: cannot be read: %s", path, strerror(errno));
    if (S_ISDIR(st.st_mode))
        return pvti_fail(ctx, PVT_ERR_IO, "%s: is a directory; a file was expected", path);
    if (!S_ISREG(st.st_mode) && !stream)
        return pvti_fail(ctx, PVT_ERR_IO, "%s: is a pipe or a device; a regular file was expected", path);
    if (!S_ISREG(st.st_mode)) return pvti_map_read(ctx, path, fd, 0, PVTI_STREAM_BYTES, map);
    if ((uint64_t)st.st_size >= (uint64_t)(SIZE_MAX / 2))
        return pvti_fail(ctx, PVT_ERR_IO, "%s: too large for this system's address space", path);
#ifndef PVTUNE_NO_MMAP
    if (st.st_size > 0) {
        void *mapped = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (mapped != MAP_FAILED) {
            map->mapped = mapped;
            map->data = (const uint8_t *)mapped;
            map->size = (int64_t)st.st_size;
            return PVT_OK;
        }
    }
#endif
    return pvti_map_read(ctx, path, fd, (int64_t)st.st_size, INT64_MAX, map);
}

static pvt_result pvti_map_open_as(pvt_ctx *ctx, const char *path, bool stream, pvti_map *map)
{
    pvt_result result;
    int fd;
    memset(map, 0, sizeof *map);
    /* without O_NONBLOCK a pipe would hold us here until someone writes into it */
    fd = pvti_open(ctx, path, O_RDONLY | (stream ? 0 : O_NONBLOCK), 0);
    if (fd < 0) return pvti_fail(ctx, PVT_ERR_IO, "%s: cannot be opened: %s", path, strerror(errno));
    map->ctx = ctx;
    result = pvti_map_fill(ctx, path, fd, stream, map);
    pvti_close(ctx, fd); /* nothing was written */
    if (result != PVT_OK) pvti_map_close(ctx, map);
    return result;
}

/* A regular file. On failure the map is empty and the sentence names the path. */
static PVTI_UNUSED pvt_result pvti_map_open(pvt_ctx *ctx, const char *path, pvti_map *map)
{
    return pvti_map_open_as(ctx, path, false, map);
}

/* For texts: also a pipe, whose writer is waited for, or a device; of these PVTI_STREAM_BYTES at most. */
static PVTI_UNUSED pvt_result pvti_map_open_stream(pvt_ctx *ctx, const char *path, pvti_map *map)
{
    return pvti_map_open_as(ctx, path, true, map);
}

/* ---- temporary files ---- */

/* out[PVTI_PATH_BYTES] = dir/.NAME.pvtune-PROCESS-NUMBER.tmp, another at each call. NAME is cut so that it
   fits any file system. */
static pvt_result pvti_temporary_name(pvt_ctx *ctx, const char *dir, const char *name, char *out)
{
    char file[256];
    snprintf(file, sizeof file, ".%.180s.pvtune-%ld-%lld.tmp", name, (long)getpid(),
             (long long)ctx->temporaries++);
    return pvti_path_join(ctx, out, dir, file);
}

/* Whether `file` is such a name of NAME's. */
static bool pvti_temporary_is(const char *file, const char *name)
{
    char start[256];
    int n = snprintf(start, sizeof start, ".%.180s.pvtune-", name);
    if (strncmp(file, start, (size_t)n) != 0) return false;
    file += n;
    file += strspn(file, "0123456789");
    if (*file++ != '-') return false;
    return strcmp(file + strspn(file, "0123456789"), ".tmp") == 0;
}

typedef struct pvti_sweep {
    pvt_ctx *ctx;
    const char *dir, *name;
    void (*remove)(pvt_ctx *ctx, const char *path);
} pvti_sweep;

static void pvti_sweep_entry(void *user, const char *file)
{
    const pvti_sweep *sweep = (const pvti_sweep *)user;
    char path[PVTI_PATH_BYTES];
    if (!pvti_temporary_is(file, sweep->name)) return;
    if (snprintf(path, sizeof path, "%s/%s", sweep->dir, file) >= (int)sizeof path) return;
    sweep->remove(sweep->ctx, path);
}

/* A file that somebody may be writing: opened for its lock, whatever its permissions allow. */
static int pvti_open_for_lock(const pvt_ctx *ctx, const char *path)
{
    int fd = pvti_open(ctx, path, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0);
    return fd >= 0 || errno != EACCES ? fd : pvti_open(ctx, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
}

static void pvti_sweep_file(pvt_ctx *ctx, const char *path)
{
    int fd = pvti_open_for_lock(ctx, path);
    if (fd < 0) return;
    if (pvti_lock_try(ctx, fd, path) == PVTI_LOCK_OURS) pvti_system_of(ctx)->unlink(path);
    pvti_close(ctx, fd);
}

/* Removes what processes that are no more have left of NAME in dir. No failure is made of what stays: it is
   not part of the result, and the next writer tries again. */
static void pvti_sweep_orphans(pvt_ctx *ctx, const char *dir, const char *name,
                               void (*remove)(pvt_ctx *ctx, const char *path))
{
    pvti_sweep sweep;
    sweep.ctx = ctx, sweep.dir = dir, sweep.name = name, sweep.remove = remove;
    (void)pvti_system_of(ctx)->list(dir, pvti_sweep_entry, &sweep);
}

/* ---- writing ---- */

#define PVTI_WRITER_BYTES ((int64_t)1 << 18)

/* Zeroed, it is a closed writer, which may be aborted. */
typedef struct pvti_writer {
    pvt_ctx *ctx;
    int fd, lock;   /* valid while `open`, `locked`: lock is the temporary file once more, and keeps its lock
                       when fd is closed, which tells of late errors, before the file is renamed */
    bool open, locked;
    bool direct;    /* path is a device or a pipe, which no file may replace */
    bool temporary; /* `temp` exists and is ours to remove */
    bool staged;    /* an exchange's file: the commit leaves it where it is */
    pvt_result result; /* the first failure */
    char *buffer;
    int64_t used;
    int64_t written; /* bytes put so far: the position in the file */
    char path[PVTI_PATH_BYTES], temp[PVTI_PATH_BYTES];
} pvti_writer;

/* Frees everything. The lock goes last, when the temporary file is renamed or removed. False: it stays. */
static bool pvti_writer_close(pvti_writer *w)
{
    bool clean = true;
    if (w->open) pvti_close(w->ctx, w->fd);
    if (w->temporary) clean = pvti_system_of(w->ctx)->unlink(w->temp) == 0 || errno == ENOENT;
    if (w->locked) pvti_close(w->ctx, w->lock);
    if (w->ctx) pvti_free(w->ctx, w->buffer);
    w->buffer = NULL;
    w->open = w->temporary = w->locked = false;
    return clean;
}

/* Gives up: the temporary file goes, the user's file stays. Harmless after a commit. */
static PVTI_UNUSED void pvti_writer_abort(pvti_writer *w) { pvti_writer_close(w); }

/* Adds to the sentence that is recorded. */
static void pvti_fail_more(pvt_ctx *ctx, const char *what, const char *path)
{
    size_t n = strlen(ctx->error);
    snprintf(ctx->error + n, sizeof ctx->error - n, "%s%s", what, path);
}

static pvt_result pvti_writer_fail(pvti_writer *w, const char *what)
{
    int code = errno; /* before close's own calls change it */
    bool clean = pvti_writer_close(w);
    w->result = pvti_fail(w->ctx, PVT_ERR_IO, "%s: %s: %s%s", w->path, what, strerror(code),
                          w->direct ? "" : "; the file that was there is unchanged");
    if (!clean) pvti_fail_more(w->ctx, "; this temporary file could not be removed: ", w->temp);
    return w->result;
}

/* Gives the new file what the replaced one has. Only root may give files away; that another's file becomes
   ours is no failure. */
static bool pvti_writer_permissions(pvti_writer *w, const struct stat *old)
{
    const pvti_system *system = pvti_system_of(w->ctx);
    struct stat st;
    if (system->fstat(w->fd, &st) != 0) return false;
    if ((st.st_uid != old->st_uid || st.st_gid != old->st_gid) &&
        system->fchown(w->fd, old->st_uid, old->st_gid) != 0 && st.st_gid != old->st_gid)
        (void)system->fchown(w->fd, (uid_t)-1, old->st_gid);
    if ((st.st_mode & 0777) == (old->st_mode & 0777)) return true;
    return system->fchmod(w->fd, old->st_mode & 0777) == 0;
}

/* Creates w->temp, readable to us alone until it is given the permissions of `old`, which it will replace.
   False with errno; EEXIST: try another name. */
static bool pvti_writer_create(pvti_writer *w, const struct stat *old)
{
    w->fd = pvti_open(w->ctx, w->temp, O_WRONLY | O_CREAT | O_EXCL, old ? 0600 : 0666);
    w->open = w->temporary = w->fd >= 0;
    return w->open;
}

/* The lock that keeps sweepers away. False with errno; EEXIST: one was faster and has the file now. */
static bool pvti_writer_lock(pvti_writer *w)
{
    pvti_lock lock = pvti_lock_try(w->ctx, w->fd, w->temp);
    if (lock == PVTI_LOCK_NONE) return true;
    if (lock == PVTI_LOCK_TAKEN) {
        pvti_close(w->ctx, w->fd);
        w->open = w->temporary = false;
        errno = EEXIST;
        return false;
    }
    w->lock = pvti_system_of(w->ctx)->dup(w->fd);
    w->locked = w->lock >= 0;
    return w->locked;
}

/* What is common to a file by itself and one of an exchange; *exists says whether *old was filled in. */
static pvt_result pvti_writer_begin(pvt_ctx *ctx, const char *path, pvti_writer *w, struct stat *old,
                                    bool *exists)
{
    memset(w, 0, sizeof *w);
    w->ctx = ctx;
    w->result = PVT_ERR_IO; /* until it is open */
    if (strlen(path) >= sizeof w->path)
        return pvti_fail(ctx, PVT_ERR_IO, "%.200s…: this path is too long", path);
    snprintf(w->path, sizeof w->path, "%s", path);
    *exists = pvti_system_of(ctx)->stat(path, old) == 0;
    if (*exists && S_ISDIR(old->st_mode)) errno = EISDIR;
    /* what cannot be asked about might have permissions to keep; a link that leads nowhere is replaced */
    if (*exists ? S_ISDIR(old->st_mode) : errno != ENOENT && errno != ENOTDIR)
        return pvti_writer_fail(w, "cannot be written");
    w->buffer = PVTI_NEW(ctx, char, PVTI_WRITER_BYTES);
    return w->buffer ? PVT_OK : (w->result = PVT_ERR_MEMORY);
}

static pvt_result pvti_writer_open_beside(pvti_writer *w, const struct stat *old)
{
    char dir[PVTI_PATH_BYTES];
    const char *slash = strrchr(w->path, '/'), *name = slash ? slash + 1 : w->path;
    int tries;
    pvti_path_directory(w->path, dir);
    pvti_sweep_orphans(w->ctx, dir, name, pvti_sweep_file);
    for (tries = 0; tries < 10000; tries++) {
        if (pvti_temporary_name(w->ctx, dir, name, w->temp) != PVT_OK) {
            pvti_writer_close(w);
            return w->result;
        }
        if (pvti_writer_create(w, old) && pvti_writer_lock(w)) return PVT_OK;
        if (errno != EEXIST) break;
    }
    return pvti_writer_fail(w, "cannot be created");
}

/* Nothing is written to `path` itself before the commit. */
static PVTI_UNUSED pvt_result pvti_writer_open(pvt_ctx *ctx, const char *path, pvti_writer *w)
{
    struct stat old;
    bool exists;
    PVTI_TRY(pvti_writer_begin(ctx, path, w, &old, &exists));
    w->direct = exists && !S_ISREG(old.st_mode);
    if (!w->direct) {
        PVTI_TRY(pvti_writer_open_beside(w, exists ? &old : NULL));
    } else {
        w->fd = pvti_open(ctx, w->path, O_WRONLY, 0);
        w->open = w->fd >= 0;
        if (!w->open) return pvti_writer_fail(w, "cannot be opened");
    }
    if (exists && !w->direct && !pvti_writer_permissions(w, &old))
        return pvti_writer_fail(w, "cannot be given the permissions of the file it replaces");
    return w->result = PVT_OK;
}

static pvt_result pvti_writer_write(pvti_writer *w, const void *data, int64_t bytes)
{
    const char *from = (const char *)data;
    while (bytes > 0) {
        ssize_t done = pvti_system_of(w->ctx)->write(w->fd, from, (size_t)PVTI_MIN(bytes, (int64_t)1 << 30));
        if (done < 0 && errno == EINTR) continue;
        if (done == 0) errno = ENOSPC;
        if (done <= 0) return pvti_writer_fail(w, "writing failed");
        from += done;
        bytes -= done;
    }
    return PVT_OK;
}

static pvt_result pvti_writer_flush(pvti_writer *w)
{
    int64_t used = w->used;
    w->used = 0;
    return pvti_writer_write(w, w->buffer, used);
}

/* After a failure every further put returns that failure and does nothing. */
static PVTI_UNUSED pvt_result pvti_writer_put(pvti_writer *w, const void *data, int64_t bytes)
{
    if (w->result != PVT_OK) return w->result;
    if (bytes <= 0) return PVT_OK;
    w->written += bytes;
    if (bytes > PVTI_WRITER_BYTES - w->used) {
        PVTI_TRY(pvti_writer_flush(w));
        if (bytes >= PVTI_WRITER_BYTES) return pvti_writer_write(w, data, bytes);
    }
    memcpy(w->buffer + w->used, data, (size_t)bytes);
    w->used += bytes;
    return PVT_OK;
}

/* Everything that was put is on the device. */
static pvt_result pvti_writer_settle(pvti_writer *w)
{
    if (w->result != PVT_OK) return w->result;
    PVTI_TRY(pvti_writer_flush(w));
    if (!pvti_sync(w->ctx, w->fd) && !w->direct) return pvti_writer_fail(w, "writing failed");
    w->open = false;
    if (pvti_close(w->ctx, w->fd)) return PVT_OK;
    return pvti_writer_fail(w, "writing failed"); /* network file systems report a full disk here */
}

/* Makes the new file the file. After a failure the old one is untouched, unless the sentence says that the
   new one is in place and only its directory could not be synced. */
static PVTI_UNUSED pvt_result pvti_writer_commit(pvti_writer *w)
{
    char dir[PVTI_PATH_BYTES];
    PVTI_TRY(pvti_writer_settle(w));
    if (w->temporary && !w->staged) {
        if (pvti_system_of(w->ctx)->rename(w->temp, w->path) != 0)
            return pvti_writer_fail(w, "cannot be replaced by the new file");
        w->temporary = false;
        pvti_path_directory(w->path, dir);
        if (!pvti_directory_sync(w->ctx, dir))
            w->result = pvti_fail(w->ctx, PVT_ERR_IO,
                                  "%s: the new file is in place, but its directory could not be synced: %s; "
                                  "it may be lost when the power fails now",
                                  w->path, strerror(errno));
    }
    w->temporary = false; /* an exchange's file stays until that is committed or given up */
    pvti_writer_close(w);
    return w->result;
}

/* A whole small file at once. */
static PVTI_UNUSED pvt_result pvti_file_write(pvt_ctx *ctx, const char *path, const void *data, int64_t bytes)
{
    pvti_writer w;
    PVTI_TRY(pvti_writer_open(ctx, path, &w));
    pvti_writer_put(&w, data, bytes);
    return pvti_writer_commit(&w);
}

/* A byte-for-byte copy. */
static PVTI_UNUSED pvt_result pvti_file_copy(pvt_ctx *ctx, const char *from, const char *to)
{
    pvti_map map;
    pvt_result result;
    PVTI_TRY(pvti_map_open(ctx, from, &map));
    result = pvti_file_write(ctx, to, map.data, map.size);
    pvti_map_close(ctx, &map);
    return result;
}
// >>dtypes
/*  How the numbers in tensor files become pvt_real. Plain types have blocks of one element; the
    Q types of GGUF share scales among 32 or 256 neighbours of a row. Each decoder writes whole
    blocks, loads through memcpy (files promise no alignment) and has one drawing of its bits.

    Two ideas return in all Q types. Halves that belong together sit half a block apart, not
    side by side, so that one mask unpacks a run of neighbours. And a block is
    x = d·q (symmetric: q is shifted to be signed) or x = d·q + m (with a minimum).
    Everything is little-endian, bytes are drawn left to right. */

/* ---- half precision ---- */

PVTI_INLINE uint32_t pvti_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
PVTI_INLINE float pvti_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* f16: s eeeee mmmmmmmmmm, bias 15. Without branches, so that loops become vector code. NaNs
   come out quiet, as the processor's own conversion gives them. */
PVTI_INLINE float pvti_f16_to_f32(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, rest = half & 0x7fffu;
    uint32_t normal = (rest << 13) + (112u << 23); /* the bias becomes 127 */
    uint32_t special = (rest << 13) | 0x7f800000u | (rest > 0x7c00u ? 0x400000u : 0u);
    uint32_t small = pvti_bits((float)(int32_t)rest * 5.9604644775390625e-8f); /* subnormal: m·2^−24 */
    return pvti_from_bits(sign | (rest < 0x400u ? small : rest < 0x7c00u ? normal : special));
}

/* To nearest, ties to even; from 65520 on that is infinity. */
PVTI_INLINE uint16_t pvti_f32_to_f16(float value)
{
    uint32_t bits = pvti_bits(value), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (rest >> 13 & 0x3ffu));
    if (rest >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
    if (rest < 0x38800000u) /* subnormal: at ½ the float's own last place is 2^−24 and rounds for us */
        return (uint16_t)(sign | (pvti_bits(pvti_from_bits(rest) + 0.5f) - pvti_bits(0.5f)));
    return (uint16_t)(sign | ((rest + 0xfffu + (rest >> 13 & 1u) - (112u << 23)) >> 13));
}

/* bf16 is the upper half of an f32. */
PVTI_INLINE float pvti_bf16_to_f32(uint16_t half) { return pvti_from_bits((uint32_t)half << 16); }

/* To nearest, ties to even; NaNs come out quiet. */
PVTI_INLINE uint16_t pvti_f32_to_bf16(float value)
{
    uint32_t bits = pvti_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* ---- decoders: out gets n blocks ---- */

typedef void pvti_decode_fn(const void *blocks, pvt_real *out, int64_t n);
#define PVTI_DECODER(name) \
    PVTI_KERNEL(pvti_decode_##name, (const void *blocks, pvt_real *out, int64_t n), (blocks, out, n))

PVTI_INLINE uint16_t pvti_load16(const uint8_t *bytes)
{
    uint16_t value;
    memcpy(&value, bytes, 2);
    return value;
}
PVTI_INLINE pvt_real pvti_load_f16(const uint8_t *bytes)
{
    return (pvt_real)pvti_f16_to_f32(pvti_load16(bytes));
}

PVTI_KERNELS_BEGIN

/* One of each element; `function` begins its definition. */
#define PVTI_DECODE_PLAIN(function, type, value)                \
    function(const void *blocks, pvt_real *out, int64_t n)      \
    {                                                           \
        const uint8_t *from = (const uint8_t *)blocks;          \
        int64_t i;                                              \
        for (i = 0; i < n; i++) {                               \
            type x;                                             \
            memcpy(&x, from + i * (int64_t)sizeof x, sizeof x); \
            out[i] = (pvt_real)(value);                         \
        }                                                       \
    }
PVTI_DECODE_PLAIN(PVTI_INLINE void pvti_decode_f32_body, float, x)
PVTI_DECODER(f32)
PVTI_DECODE_PLAIN(PVTI_INLINE void pvti_decode_bf16_body, uint16_t, pvti_bf16_to_f32(x))
PVTI_DECODER(bf16)
/* Files hold these, products do not read them: nothing to be gained by vectors. */
PVTI_DECODE_PLAIN(static void pvti_decode_f64, double, x)
PVTI_DECODE_PLAIN(static void pvti_decode_i8, int8_t, x)
PVTI_DECODE_PLAIN(static void pvti_decode_u8, uint8_t, x)
PVTI_DECODE_PLAIN(static void pvti_decode_i16, int16_t, x)
PVTI_DECODE_PLAIN(static void pvti_decode_u16, uint16_t, x)
PVTI_DECODE_PLAIN(static void pvti_decode_i32, int32_t, x)
PVTI_DECODE_PLAIN(static void pvti_decode_u32, uint32_t, x)
PVTI_DECODE_PLAIN(static void pvti_decode_i64, int64_t, x)
PVTI_DECODE_PLAIN(static void pvti_decode_u64, uint64_t, x)
PVTI_DECODE_PLAIN(static void pvti_decode_boolean, uint8_t, x != 0)

/* f16 is what most checkpoints hold, and x86 converts eight at a time: the same bits. */
PVTI_DECODE_PLAIN(static void pvti_decode_f16_scalar, uint16_t, pvti_f16_to_f32(x))
#if PVTI_X86
PVTI_TARGET_AVX2 static void pvti_decode_f16_avx2(const void *blocks, pvt_real *out, int64_t n)
{
    const uint8_t *from = (const uint8_t *)blocks;
    int64_t i;
    for (i = 0; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i,
                         _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(from + 2 * i))));
    pvti_decode_f16_scalar(from + 2 * i, out + i, n - i);
}
#endif

/*  Q4_0, 18 bytes, 32 elements:  x = d·(q − 8)
    | d f16 | q16·q0 | q17·q1 | … | q31·q15 |      each byte: high nibble · low nibble  */
PVTI_INLINE void pvti_decode_q4_0_body(const void *blocks, pvt_real *out, int64_t n)
{
    const uint8_t *b = (const uint8_t *)blocks;
    int j;
    for (; n > 0; n--, b += 18, out += 32) {
        pvt_real d = pvti_load_f16(b);
        for (j = 0; j < 16; j++) out[j] = d * (pvt_real)((b[2 + j] & 15) - 8);
        for (j = 0; j < 16; j++) out[16 + j] = d * (pvt_real)((b[2 + j] >> 4) - 8);
    }
}
PVTI_DECODER(q4_0)

/*  Q4_1, 20 bytes, 32 elements:  x = d·q + m
    | d f16 | m f16 | q16·q0 | … | q31·q15 |  */
PVTI_INLINE void pvti_decode_q4_1_body(const void *blocks, pvt_real *out, int64_t n)
{
    const uint8_t *b = (const uint8_t *)blocks;
    int j;
    for (; n > 0; n--, b += 20, out += 32) {
        pvt_real d = pvti_load_f16(b), m = pvti_load_f16(b + 2);
        for (j = 0; j < 16; j++) out[j] = d * (pvt_real)(b[4 + j] & 15) + m;
        for (j = 0; j < 16; j++) out[16 + j] = d * (pvt_real)(b[4 + j] >> 4) + m;
    }
}
PVTI_DECODER(q4_1)

/*  Q5_0, 22 bytes, 32 elements:  x = d·(q − 16),  q = nibble + 16·(bit j of h)
    | d f16 | h: 32 bits, bit j is element j | q16·q0 | … | q31·q15 |  */
PVTI_INLINE void pvti_decode_q5_0_body(const void *blocks, pvt_real *out, int64_t n)
{
    const uint8_t *b = (const uint8_t *)blocks;
    int j;
    for (; n > 0; n--, b += 22, out += 32) {
        pvt_real d = pvti_load_f16(b);
        uint32_t h = (uint32_t)pvti_load16(b + 2) | (uint32_t)pvti_load16(b + 4) << 16;
        for (j = 0; j < 16; j++) out[j] = d * (pvt_real)((b[6 + j] & 15) + (int)(h >> j & 1) * 16 - 16);
        for (j = 0; j < 16; j++)
            out[16 + j] = d * (pvt_real)((b[6 + j] >> 4) + (int)(h >> (16 + j) & 1) * 16 - 16);
    }
}
PVTI_DECODER(q5_0)

/*  Q5_1, 24 bytes, 32 elements:  x = d·q + m,  q as in Q5_0
    | d f16 | m f16 | h: 32 bits | q16·q0 | … | q31·q15 |  */
PVTI_INLINE void pvti_decode_q5_1_body(const void *blocks, pvt_real *out, int64_t n)
{
    const uint8_t *b = (const uint8_t *)blocks;
    int j;
    for (; n > 0; n--, b += 24, out += 32) {
        pvt_real d = pvti_load_f16(b), m = pvti_load_f16(b + 2);
        uint32_t h = (uint32_t)pvti_load16(b + 4) | (uint32_t)pvti_load16(b + 6) << 16;
        for (j = 0; j < 16; j++) out[j] = d * (pvt_real)((b[8 + j] & 15) + (int)(h >> j & 1) * 16) + m;
        for (j = 0; j < 16; j++)
            out[16 + j] = d * (pvt_real)((b[8 + j] >> 4) + (int)(h >> (16 + j) & 1) * 16) + m;
    }
}
PVTI_DECODER(q5_1)

/*  Q8_0, 34 bytes, 32 elements:  x = d·q
    | d f16 | q0 | q1 | … | q31 |                  signed bytes  */
PVTI_INLINE void pvti_decode_q8_0_body(const void *blocks, pvt_real *out, int64_t n)
{
    const uint8_t *b = (const uint8_t *)blocks;
    int j;
    for (; n > 0; n--, b += 34, out += 32) {
        pvt_real d = pvti_load_f16(b);
        for (j = 0; j < 32; j++) out[j] = d * (pvt_real)(int8_t)b[2 + j];
    }
}
PVTI_DECODER(q8_0)

/*  The K types: 256 elements, in sub-blocks of 16 or 32 whose scales are small integers.

    Q2_K, 84 bytes, 16 sub-blocks of 16:  x = (d·scale)·q − (dmin·min)
    | 16 × min·scale nibbles | 64 bytes of q | d f16 | dmin f16 |
    Bytes 0…31 of q hold elements 0…127: bits 1:0 of byte l are element l, bits 3:2 element
    32 + l, bits 5:4 element 64 + l, bits 7:6 element 96 + l. Bytes 32…63: elements 128…255.  */
PVTI_INLINE void pvti_decode_q2_k_body(const void *blocks, pvt_real *out, int64_t n)
{
    const uint8_t *b = (const uint8_t *)blocks;
    int s, l;
    for (; n > 0; n--, b += 84, out += 256) {
        pvt_real d = pvti_load_f16(b + 80), dmin = pvti_load_f16(b + 82);
        for (s = 0; s < 16; s++) { /* sub-block s: half s/8, bit pair s/2 mod 4, odd ones 16 bytes on */
            const uint8_t *q = b + 16 + s / 8 * 32 + s % 2 * 16;
            pvt_real scale = d * (pvt_real)(b[s] & 15), min = dmin * (pvt_real)(b[s] >> 4);
            int shift = s / 2 % 4 * 2;
            for (l = 0; l < 16; l++) out[s * 16 + l] = scale * (pvt_real)(q[l] >> shift & 3) - min;
        }
    }
}
PVTI_DECODER(q2_k)

/*  Q3_K, 110 bytes, 16 sub-blocks of 16:  x = d·(scale − 32)·(q − 4)
    | 32 bytes: third bits | 64 bytes: lower two bits, as in Q2_K | 12 bytes of scales | d f16 |
    Third bit of element 32·k + l: bit k of byte l (set: add 4 to the lower two bits).
    Scale i, six bits: its low nibble is in byte i mod 8 of the scales (low half for i < 8, else
    high half); its top two are bits 2·(i/4) and above of byte 8 + i mod 4.  */
PVTI_INLINE void pvti_decode_q3_k_body(const void *blocks, pvt_real *out, int64_t n)
{
    const uint8_t *b = (const uint8_t *)blocks;
    int s, l;
    for (; n > 0; n--, b += 110, out += 256) {
        const uint8_t *packed = b + 96;
        pvt_real d = pvti_load_f16(b + 108);
        for (s = 0; s < 16; s++) {
            const uint8_t *h = b + s % 2 * 16, *q = b + 32 + s / 8 * 32 + s % 2 * 16;
            int low = s < 8 ? packed[s] & 15 : packed[s - 8] >> 4;
            int top = packed[8 + s % 4] >> (s / 4 * 2) & 3;
            pvt_real scale = d * (pvt_real)((low | top << 4) - 32);
            int shift = s / 2 % 4 * 2, bit = s / 2;
            for (l = 0; l < 16; l++)
                out[s * 16 + l] = scale * (pvt_real)((q[l] >> shift & 3) + (h[l] >> bit & 1) * 4 - 4);
        }
    }
}
PVTI_DECODER(q3_k)

/*  Q4_K and Q5_K pack eight scales and eight minima of six bits into 12 bytes:
      bytes 0…3:  top two of scale 4+j · scale j        bytes 4…7:  top two of min 4+j · min j
      bytes 8…11: low nibble of min 4+j · low nibble of scale 4+j                              */
PVTI_INLINE void pvti_scale_min_k(const uint8_t *packed, int j, int *scale, int *min)
{
    if (j < 4) {
        *scale = packed[j] & 63;
        *min = packed[j + 4] & 63;
    } else {
        *scale = (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4;
        *min = packed[j + 4] >> 4 | packed[j] >> 6 << 4;
    }
}

/*  Q4_K, 144 bytes, 8 sub-blocks of 32:  x = (d·scale)·q − (dmin·min)
    | d f16 | dmin f16 | 12 bytes of scales and minima | 128 bytes of q |
    32 bytes of q hold two sub-blocks: low nibbles the even one, high nibbles the odd one.  */
PVTI_INLINE void pvti_decode_q4_k_body(const void *blocks, pvt_real *out, int64_t n)
{
    const uint8_t *b = (const uint8_t *)blocks;
    int s, l, scale, min;
    for (; n > 0; n--, b += 144, out += 256) {
        pvt_real d = pvti_load_f16(b), dmin = pvti_load_f16(b + 2);
        for (s = 0; s < 8; s++) {
            const uint8_t *q = b + 16 + s / 2 * 32;
            pvt_real ds, m;
            int shift = s % 2 * 4;
            pvti_scale_min_k(b + 4, s, &scale, &min);
            ds = d * (pvt_real)scale, m = dmin * (pvt_real)min;
            for (l = 0; l < 32; l++) out[s * 32 + l] = ds * (pvt_real)(q[l] >> shift & 15) - m;
        }
    }
}
PVTI_DECODER(q4_k)

/*  Q5_K, 176 bytes, 8 sub-blocks of 32: as Q4_K, with a fifth bit
    | d f16 | dmin f16 | 12 bytes of scales and minima | 32 bytes: fifth bits | 128 bytes of q |
    Fifth bit of element 32·s + l: bit s of byte l.  */
PVTI_INLINE void pvti_decode_q5_k_body(const void *blocks, pvt_real *out, int64_t n)
{
    const uint8_t *b = (const uint8_t *)blocks;
    int s, l, scale, min;
    for (; n > 0; n--, b += 176, out += 256) {
        pvt_real d = pvti_load_f16(b), dmin = pvti_load_f16(b + 2);
        for (s = 0; s < 8; s++) {
            const uint8_t *h = b + 16, *q = b + 48 + s / 2 * 32;
            pvt_real ds, m;
            int shift = s % 2 * 4;
            pvti_scale_min_k(b + 4, s, &scale, &min);
            ds = d * (pvt_real)scale, m = dmin * (pvt_real)min;
            for (l = 0; l < 32; l++)
                out[s * 32 + l] = ds * (pvt_real)((q[l] >> shift & 15) + (h[l] >> s & 1) * 16) - m;
        }
    }
}
PVTI_DECODER(q5_k)

/*  Q6_K, 210 bytes, 16 sub-blocks of 16:  x = (d·scale)·(q − 32)
    | 128 bytes: low nibbles | 64 bytes: upper two bits | 16 signed scales | d f16 |
    For each half of 128 elements, k = 0…3 and l = 0…31, element 32·k + l has its nibble in byte
    32·(k mod 2) + l (low for k < 2, else high) and its upper bits 2k+1:2k of byte l.  */
PVTI_INLINE void pvti_decode_q6_k_body(const void *blocks, pvt_real *out, int64_t n)
{
    const uint8_t *b = (const uint8_t *)blocks;
    int s, l;
    for (; n > 0; n--, b += 210, out += 256) {
        pvt_real d = pvti_load_f16(b + 208);
        for (s = 0; s < 16; s++) {
            int half = s / 8, k = s / 2 % 4, shift = k / 2 * 4;
            const uint8_t *q = b + half * 64 + k % 2 * 32 + s % 2 * 16, *h = b + 128 + half * 32 + s % 2 * 16;
            pvt_real scale = d * (pvt_real)(int8_t)b[192 + s];
            for (l = 0; l < 16; l++)
                out[s * 16 + l] = scale * (pvt_real)((q[l] >> shift & 15) + (h[l] >> 2 * k & 3) * 16 - 32);
        }
    }
}
PVTI_DECODER(q6_k)

PVTI_KERNELS_END

/* ---- the table ---- */

typedef struct pvti_dtype {
    const char *name;  /* as safetensors and GGUF spell it */
    int64_t block;     /* elements; a row holds whole blocks */
    int64_t bytes;     /* of a block */
    pvti_decode_fn *decode, *decode_avx2; /* portable, and for AVX2 to the same bits */
} pvti_dtype;

/* NULL for values outside the enum and PVT_DTYPE_NONE. */
static PVTI_UNUSED const pvti_dtype *pvti_dtype_info(pvt_dtype dtype)
{
#if PVTI_X86
#define PVTI_X(name) pvti_decode_##name##_scalar, pvti_decode_##name##_avx2
#else
#define PVTI_X(name) pvti_decode_##name##_scalar, pvti_decode_##name##_scalar
#endif
#define PVTI_Y(name) pvti_decode_##name, pvti_decode_##name
    static const pvti_dtype table[] = {
        {"", 0, 0, NULL, NULL},
        {"F32", 1, 4, PVTI_X(f32)},      {"F16", 1, 2, PVTI_X(f16)},      {"BF16", 1, 2, PVTI_X(bf16)},
        {"F64", 1, 8, PVTI_Y(f64)},      {"I8", 1, 1, PVTI_Y(i8)},        {"U8", 1, 1, PVTI_Y(u8)},
        {"I16", 1, 2, PVTI_Y(i16)},      {"U16", 1, 2, PVTI_Y(u16)},      {"I32", 1, 4, PVTI_Y(i32)},
        {"U32", 1, 4, PVTI_Y(u32)},      {"I64", 1, 8, PVTI_Y(i64)},      {"U64", 1, 8, PVTI_Y(u64)},
        {"BOOL", 1, 1, PVTI_Y(boolean)}, {"Q4_0", 32, 18, PVTI_X(q4_0)},  {"Q4_1", 32, 20, PVTI_X(q4_1)},
        {"Q5_0", 32, 22, PVTI_X(q5_0)},  {"Q5_1", 32, 24, PVTI_X(q5_1)},  {"Q8_0", 32, 34, PVTI_X(q8_0)},
        {"Q2_K", 256, 84, PVTI_X(q2_k)}, {"Q3_K", 256, 110, PVTI_X(q3_k)}, {"Q4_K", 256, 144, PVTI_X(q4_k)},
        {"Q5_K", 256, 176, PVTI_X(q5_k)}, {"Q6_K", 256, 210, PVTI_X(q6_k)},
    };
#undef PVTI_Y
#undef PVTI_X
    return dtype > PVT_DTYPE_NONE && dtype < PVT_DTYPE_COUNT ? &table[dtype] : NULL;
}

/* The fastest decoder for this context; NULL as above. */
static PVTI_UNUSED pvti_decode_fn *pvti_decoder(const pvt_ctx *ctx, pvt_dtype dtype)
{
    const pvti_dtype *info = pvti_dtype_info(dtype);
    return info && ctx && ctx->isa >= PVTI_AVX2 ? info->decode_avx2 : info ? info->decode : NULL;
}

/* By its name; PVT_DTYPE_NONE when there is none of that name. */
static PVTI_UNUSED pvt_dtype pvti_dtype_parse(const char *name)
{
    int i;
    for (i = 1; i < PVT_DTYPE_COUNT; i++)
        if (strcmp(pvti_dtype_info((pvt_dtype)i)->name, name) == 0) return (pvt_dtype)i;
    return PVT_DTYPE_NONE;
}

/* Bytes of a tensor whose rows hold whole blocks; false on overflow, a bad dtype, or a row that
   does not divide (rank 0 is one element). */
static PVTI_UNUSED bool pvti_dtype_bytes(pvt_dtype dtype, const int64_t *shape, int rank, int64_t *bytes)
{
    const pvti_dtype *info = pvti_dtype_info(dtype);
    int64_t elements = 1, row = rank > 0 ? shape[rank - 1] : 1;
    int i;
    if (!info || row % info->block != 0) return false;
    for (i = 0; i < rank; i++)
        if (!pvti_mul(elements, shape[i], &elements)) return false;
    return pvti_mul(elements / info->block, info->bytes, bytes);
}
/* half[i] = from[i] in fp16, real[i] = that number again; each may be NULL, real may be from. The first i whose
   number is not finite or too large, −1: none. */
static PVTI_UNUSED int64_t pvti_round_f16(pvt_ctx *ctx, uint16_t *half, pvt_real *real, const pvt_real *from,
                                          int64_t n)
{
    if (ctx->device) return ctx->device->round_f16(ctx->device_state, half, real, from, n);
    for (int64_t i = 0; i < n; i++) {
        uint16_t bits;
        if (!(fabs((double)from[i]) < 65520.0)) return i; /* from here on a number rounds to infinity */
        bits = pvti_f32_to_f16((float)from[i]);
        if (half) half[i] = bits;
        if (real) real[i] = (pvt_real)pvti_f16_to_f32(bits);
    }
    return -1;
}
static PVTI_UNUSED void pvti_widen_f16(pvt_ctx *ctx, pvt_real *out, const uint16_t *half, int64_t n)
{
    PVTI_ON_DEVICE(ctx, widen_f16, out, half, n);
    for (int64_t i = 0; i < n; i++) out[i] = (pvt_real)pvti_f16_to_f32(half[i]);
}
/* One number out of an array in the context's memory, for a message; NaN when the device has failed. */
static PVTI_UNUSED double pvti_peek(pvt_ctx *ctx, const pvt_real *number)
{
    pvt_real x;
    return pvt_memory_read(ctx, &x, number, (int64_t)sizeof x) == PVT_OK ? (double)x : NAN;
}

// >>weights
/*  Behind pvt_weight stands one table of functions per representation, the only place that
    knows its codes. Everything above (models, PV, files) goes through the table: a new
    representation is one table more. */

/* One array of continuous parameters of a weight: codebooks, scales, … */
typedef struct pvti_values {
    pvt_real *data;
    int64_t n;
    const char *name;
} pvti_values;
enum { PVTI_MAX_VALUES = 4 };

typedef struct pvti_weight_kind {
    const char *name;
    pvti_tile_fn *tile; /* a rectangle of the dequantized weight: what GEMM packs from */
    /* lists the continuous parameters, returns how many */
    int (*values)(const pvt_weight *weight, pvti_values out[PVTI_MAX_VALUES]);
    /* chain rule: dvalues[i] += d loss / d values[i], from dW; partial: pvti_chain_values of memory */
    void (*chain)(pvt_ctx *ctx, pvt_real *const *dvalues, const pvt_weight *weight, const pvt_real *dW,
                  pvt_real *partial);
    pvt_result (*fit)(pvt_ctx *ctx, const pvt_real *W, const pvt_real *H, const pvt_fit_desc *desc,
                      pvt_fit_stats *stats, pvt_weight *out);
} pvti_weight_kind;

PVT_API pvt_result pvt_format_parse(pvt_ctx *ctx, const char *text, pvt_format *out)
{
    int value[4] = {0, 0, 0, 1}; /* M, B, g, o */
    static const char mark[4] = {':', 'x', 'g', 'o'};
    static const int limit[4] = {16, 16, 64, 64};
    const char *at = text;
    int i;
    memset(out, 0, sizeof *out);
    if (strcmp(text, "dense") == 0) {
        out->bits = 16, out->in_group = out->out_group = 1;
        return PVT_OK;
    }
    if (strncmp(at, "aqlm", 4) != 0) goto fail;
    at += 4;
    for (i = 0; i < 4; i++) {
        int n = 0, digits = 0;
        if (i == 3 && *at == 0) break;
        if (*at++ != mark[i]) goto fail;
        while (*at >= '0' && *at <= '9' && digits++ < 3) n = 10 * n + (*at++ - '0');
        if (n < 1 || n > limit[i]) goto fail;
        value[i] = n;
    }
    if (*at || value[2] * value[3] > 256) goto fail;
    out->kind = PVT_FORMAT_AQLM;
    out->codebooks = value[0], out->bits = value[1], out->in_group = value[2], out->out_group = value[3];
    return PVT_OK;
fail:
    return pvti_fail(
        ctx, PVT_ERR_ARGUMENT,
        "format \"%.40s\": expected dense or aqlm:MxBgG[oO] with M 1-16 codebooks of B 1-16 bits, groups of "
        "G 1-64 inputs and O 1-64 outputs, G*O at most 256; for example aqlm:2x8g8",
        text);
}

PVT_API void pvt_format_text(const pvt_format *format, char out[48])
{
    if (format->kind == PVT_FORMAT_DENSE)
        snprintf(out, 48, "dense");
    else if (format->out_group == 1)
        snprintf(out, 48, "aqlm:%dx%dg%d", format->codebooks, format->bits, format->in_group);
    else
        snprintf(out, 48, "aqlm:%dx%dg%do%d", format->codebooks, format->bits, format->in_group,
                 format->out_group);
}

PVT_API double pvt_format_bits(const pvt_format *format, int64_t O, int64_t I)
{
    double n = (double)O * (double)I, group = (double)format->in_group * format->out_group;
    double entries = (double)((int64_t)1 << format->bits);
    if (format->kind == PVT_FORMAT_DENSE) return 16;
    return (n / group * format->codebooks * format->bits + format->codebooks * entries * group * 16 +
            (double)O / format->out_group * 16) / n;
}

/* ---- dense: any element type of a file, decoded a tile at a time ---- */

static void pvti_tile_dense(const void *self, pvt_real *out, int64_t ld, int64_t r0, int64_t r1, int64_t c0,
                            int64_t c1)
{
    const pvt_weight *weight = (const pvt_weight *)self;
    const pvti_dtype *type = pvti_dtype_info(weight->dtype);
    pvti_decode_fn *decode = pvti_decoder(weight->ctx, weight->dtype);
    const uint8_t *data = (const uint8_t *)weight->data;
    int64_t block = type->block, row_bytes = weight->I / block * type->bytes;
    int64_t b0 = c0 / block, b1 = (c1 + block - 1) / block, r, b;
    for (r = r0; r < r1; r++) {
        const uint8_t *row = data + r * row_bytes;
        pvt_real *o = out + (r - r0) * ld;
        if (b0 * block == c0 && b1 * block == c1) {
            decode(row + b0 * type->bytes, o, b1 - b0);
            continue;
        }
        for (b = b0; b < b1; b++) { /* the rectangle cuts through blocks */
            pvt_real whole[256];
            int64_t from = PVTI_MAX(c0, b * block), to = PVTI_MIN(c1, (b + 1) * block);
            decode(row + b * type->bytes, whole, 1);
            memcpy(o + (from - c0), whole + (from - b * block), (size_t)(to - from) * sizeof *o);
        }
    }
}

static int pvti_values_dense(const pvt_weight *weight, pvti_values out[PVTI_MAX_VALUES])
{
    out[0].data = (pvt_real *)(uintptr_t)weight->data; /* only owned ones, in pvt_real, are ever written */
    out[0].n = weight->O * weight->I;
    out[0].name = "weight";
    return 1;
}

static const pvti_weight_kind pvti_kind_dense = {"dense", pvti_tile_dense, pvti_values_dense, NULL, NULL};

#define PVTI_DTYPE_REAL (PVTI_REAL_IS_DOUBLE ? PVT_F64 : PVT_F32)

PVT_API pvt_result pvt_weight_borrow(pvt_ctx *ctx, const void *data, pvt_dtype dtype, int64_t O, int64_t I,
                                     pvt_weight *out)
{
    const pvti_dtype *type = pvti_dtype_info(dtype);
    memset(out, 0, sizeof *out);
    if (!data || !type || !type->decode || O < 1 || I < 1 || O > INT32_MAX || I > INT32_MAX || I % type->block)
        return pvti_fail(ctx, PVT_ERR_ARGUMENT,
                         "a dense weight of %lld x %lld %s cannot be made: sizes must be positive and the "
                         "block of %lld must divide the row",
                         (long long)O, (long long)I, type ? type->name : "?",
                         (long long)(type ? type->block : 0));
    out->kind = &pvti_kind_dense;
    out->ctx = ctx;
    out->O = O, out->I = I;
    out->dtype = dtype;
    out->data = data;
    return PVT_OK;
}

PVT_API pvt_result pvt_weight_dense(pvt_ctx *ctx, const pvt_real *fill, int64_t O, int64_t I, pvt_weight *out)
{
    int64_t n;
    pvt_real *data;
    pvt_result result;
    memset(out, 0, sizeof *out);
    if (!pvti_mul(O, I, &n) || n < 1)
        return pvti_fail(ctx, PVT_ERR_ARGUMENT, "a weight must have rows and columns");
    data = PVTI_MEMORY(ctx, pvt_real, n);
    if (!data) return PVT_ERR_MEMORY;
    if (fill) pvt_memory_write(ctx, data, fill, n * (int64_t)sizeof *data);
    result = pvt_weight_borrow(ctx, data, PVTI_DTYPE_REAL, O, I, out);
    if (result != PVT_OK) pvt_memory_free(ctx, data);
    out->owned = result == PVT_OK;
    return result;
}

/* ---- any representation ---- */

/* The weight as a GEMM operand: W itself or its transpose. */
static pvti_operand pvti_weight_operand(const pvt_weight *weight, bool transposed)
{
    if (weight->kind == &pvti_kind_dense && weight->dtype == PVTI_DTYPE_REAL &&
        (uintptr_t)weight->data % sizeof(pvt_real) == 0) {
        const pvt_real *data = (const pvt_real *)weight->data;
        return transposed ? pvti_cols(data, weight->I) : pvti_rows(data, weight->I);
    }
    return pvti_tiles(weight->kind->tile, weight, transposed);
}

PVT_API void pvt_weight_dequantize(const pvt_weight *weight, pvt_real *W)
{
    PVTI_ON_DEVICE(weight->ctx, weight_dequantize, W, weight, 1);
    weight->kind->tile(weight, W, weight->I, 0, weight->O, 0, weight->I);
}

typedef struct pvti_rows_args {
    pvt_real *out;
    const pvt_weight *weight;
    const int32_t *rows;
} pvti_rows_args;

static void pvti_rows_task(void *arg, int64_t i, int worker)
{
    const pvti_rows_args *a = (const pvti_rows_args *)arg;
    (void)worker;
    a->weight->kind->tile(a->weight, a->out + i * a->weight->I, a->weight->I, a->rows[i], a->rows[i] + 1, 0,
                          a->weight->I);
}

PVT_API void pvt_weight_lookup(pvt_ctx *ctx, pvt_real *out, const pvt_weight *weight, const int32_t *rows,
                               int64_t n)
{
    pvti_rows_args a;
    PVTI_ON_DEVICE(ctx, weight_lookup, out, weight, rows, n);
    a.out = out, a.weight = weight, a.rows = rows;
    pvti_parallel(ctx, n, pvti_rows_task, &a);
}

#if !PVTI_REAL_IS_DOUBLE
/*  One row of x times dense rows of 16 or 8 bits, decoded in registers, without the way through a buffer.
    For 16 bits the lanes, the order, and so the bits, are those of pvti_dots. For Q8_0 x is rounded to 16 bits
    block by block, x ≈ dx·u, and lane l of 16 adds

        lane ← fma((float)(u[2l]·q[2l] + u[2l+1]·q[2l+1]), d·dx, lane)      per block,

    integers below 2²⁴: exact, whatever adds them. The lanes are added by the tree of pvti_lanes_sum. Four rows
    share the loads of x. 32 weights: a widening load, a VPMADDWD, a conversion, an FMA, and the scale in
    128-bit registers: 5 to 6 cycles for 34 bytes, what memory gives a core. */
PVTI_KERNELS_BEGIN
PVTI_INLINE void pvti_row_lanes_body(float *__restrict lanes, const uint8_t *row, const int16_t *u,
                                     const float *dx, int64_t I)
{
    for (int l = 0; l < 16; l++) lanes[l] = 0;
    for (int64_t k = 0; k < I; k += 32, u += 32, row += 34) {
        float d = pvti_load_f16(row) * dx[k / 32];
        for (int l = 0; l < 16; l++) {
            int32_t sum = u[2 * l] * (int8_t)row[2 + 2 * l] + u[2 * l + 1] * (int8_t)row[3 + 2 * l];
            lanes[l] = pvti_fma((float)sum, d, lanes[l]);
        }
    }
}
PVTI_KERNEL(pvti_row_lanes, (float *lanes, const uint8_t *row, const int16_t *u, const float *dx, int64_t I),
            (lanes, row, u, dx, I))

/* u, dx of x [I], 32 by 32; a NaN or infinity makes its dx NaN. */
PVTI_INLINE void pvti_row_round_body(int16_t *__restrict u, float *__restrict dx, const float *__restrict x,
                                     int64_t I)
{
    for (int64_t k = 0; k < I; k += 32, u += 32, x += 32) {
        uint32_t top = 0;
        float most, inverse;
        for (int l = 0; l < 32; l++) {
            uint32_t bits;
            memcpy(&bits, &x[l], sizeof bits);
            bits &= 0x7fffffffu;
            top = bits > top ? bits : top;
        }
        memcpy(&most, &top, sizeof most);
        inverse = most >= FLT_MIN * 32767 ? 32767 / most : 0;
        for (int l = 0; l < 32; l++) {
            float shifted = pvti_fma(x[l], inverse, 12582912.0f); /* rounds; the integer in the lowest bits */
            uint32_t bits;
            memcpy(&bits, &shifted, sizeof bits);
            u[l] = (int16_t)(uint16_t)bits;
        }
        dx[k / 32] = most / 32767 + 0 * most;
    }
}
PVTI_KERNEL(pvti_row_round, (int16_t *u, float *dx, const float *x, int64_t I), (u, dx, x, I))
PVTI_KERNELS_END
#if PVTI_X86
/* Lanes of one row, 32 numbers on: x0 and x1 are x, or for Q8_0 u and the broadcast dx. */
PVTI_TARGET_AVX512 PVTI_INLINE __m512 pvti_row_32(__m512 lanes, const uint8_t *row, int64_t k, __m512 x0,
                                                  __m512 x1, pvt_dtype dtype)
{
    const __m256i *at = (const __m256i *)(const void *)(row + 2 * k);
    if (dtype == PVT_F16) {
        lanes = _mm512_fmadd_ps(x0, _mm512_cvtph_ps(_mm256_loadu_si256(at)), lanes);
        return _mm512_fmadd_ps(x1, _mm512_cvtph_ps(_mm256_loadu_si256(at + 1)), lanes);
    }
    if (dtype == PVT_BF16) {
        __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at));
        __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at + 1));
        lanes = _mm512_fmadd_ps(x0, _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), lanes);
        return _mm512_fmadd_ps(x1, _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), lanes);
    }
    {
        const uint8_t *block = row + k / 32 * 34;
        __m512i q = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(block + 2)));
        uint16_t d;
        __m128 scale;
        memcpy(&d, block, sizeof d);
        scale = _mm_mul_ss(_mm_cvtph_ps(_mm_cvtsi32_si128(d)), _mm512_castps512_ps128(x1));
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_madd_epi16(q, _mm512_castps_si512(x0))),
                               _mm512_broadcastss_ps(scale), lanes);
    }
}
PVTI_TARGET_AVX512 PVTI_INLINE float pvti_row_sum(__m512 lanes) /* the tree of pvti_lanes_sum */
{
    __m256 s = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
PVTI_TARGET_AVX512 PVTI_INLINE void pvti_row_dots_of(float *y, const uint8_t *rows, int64_t bytes, int64_t n,
                                                     const float *x, const int16_t *u, const float *dx, int64_t I,
                                                     pvt_dtype dtype)
{
    for (int64_t r = 0; r < n; r += 4) {
        const uint8_t *r0 = rows + r * bytes, *r1 = rows + PVTI_MIN(r + 1, n - 1) * bytes;
        const uint8_t *r2 = rows + PVTI_MIN(r + 2, n - 1) * bytes, *r3 = rows + PVTI_MIN(r + 3, n - 1) * bytes;
        __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
        for (int64_t k = 0; k < I; k += 32) {
            bool q8 = dtype == PVT_Q8_0;
            __m512 a = q8 ? _mm512_castsi512_ps(_mm512_loadu_si512(u + k)) : _mm512_loadu_ps(x + k);
            __m512 b = q8 ? _mm512_set1_ps(dx[k / 32]) : _mm512_loadu_ps(x + k + 16);
            /* rows are too short for the hardware's prefetch (without this Q8_0 runs at a quarter of the
               speed): what these four take is fetched 8 rows ahead */
            uintptr_t ahead = (uintptr_t)r0 + (uintptr_t)(8 * bytes + k / 32 * (q8 ? 136 : 256));
            for (unsigned line = 0; line < (q8 ? 192 : 256); line += 64)
                _mm_prefetch((const char *)(ahead + line), _MM_HINT_T0);
            s0 = pvti_row_32(s0, r0, k, a, b, dtype), s1 = pvti_row_32(s1, r1, k, a, b, dtype);
            s2 = pvti_row_32(s2, r2, k, a, b, dtype), s3 = pvti_row_32(s3, r3, k, a, b, dtype);
        }
        y[r] = pvti_row_sum(s0);
        if (r + 1 < n) y[r + 1] = pvti_row_sum(s1);
        if (r + 2 < n) y[r + 2] = pvti_row_sum(s2);
        if (r + 3 < n) y[r + 3] = pvti_row_sum(s3);
    }
}
PVTI_TARGET_AVX512 static void pvti_row_dots_avx512(float *y, const uint8_t *rows, int64_t bytes, int64_t n,
                                                    const float *x, const int16_t *u, const float *dx, int64_t I,
                                                    pvt_dtype dtype)
{
    if (dtype == PVT_Q8_0)
        pvti_row_dots_of(y, rows, bytes, n, x, u, dx, I, PVT_Q8_0);
    else if (dtype == PVT_F16)
        pvti_row_dots_of(y, rows, bytes, n, x, u, dx, I, PVT_F16);
    else
        pvti_row_dots_of(y, rows, bytes, n, x, u, dx, I, PVT_BF16);
}
#endif

typedef struct pvti_row_job {
    pvt_ctx *ctx;
    float *y;
    const float *x, *dx;
    const int16_t *u;
    const pvt_weight *weight;
    int64_t bytes;
    bool accumulate;
} pvti_row_job;

#define PVTI_ROW_TASK 256
static void pvti_row_task(void *arg, int64_t i, int worker)
{
    const pvti_row_job *job = (const pvti_row_job *)arg;
    int64_t from = i * PVTI_ROW_TASK, n = PVTI_MIN(PVTI_ROW_TASK, job->weight->O - from), r;
    const uint8_t *rows = (const uint8_t *)job->weight->data + from * job->bytes;
    float y[PVTI_ROW_TASK];
    (void)worker;
#if PVTI_X86
    if (job->ctx->isa == PVTI_AVX512)
        pvti_row_dots_avx512(y, rows, job->bytes, n, job->x, job->u, job->dx, job->weight->I, job->weight->dtype);
    else
#endif
        for (r = 0; r < n; r++) {
            float lanes[16];
            PVTI_CALL(job->ctx, pvti_row_lanes)(lanes, rows + r * job->bytes, job->u, job->dx, job->weight->I);
            y[r] = pvti_lanes_sum(lanes);
        }
    for (r = 0; r < n; r++) job->y[from + r] = job->accumulate ? job->y[from + r] + y[r] : y[r];
}

static bool pvti_row_forward(pvt_ctx *ctx, float *y, const float *x, const pvt_weight *w, bool accumulate)
{
    const pvti_dtype *type = pvti_dtype_info(w->dtype);
    pvti_row_job job;
    bool wide = ctx && ctx->isa == PVTI_AVX512 && (w->dtype == PVT_F16 || w->dtype == PVT_BF16);
    int16_t *u;
    float *dx;
    if (!ctx || ctx->in_parallel || w->format.kind != PVT_FORMAT_DENSE || !(w->dtype == PVT_Q8_0 || wide) ||
        w->I % 32 || w->I * 3 > PVTI_GEMM_SHARED_BYTES)
        return false;
    job.ctx = ctx, job.y = y, job.x = x, job.weight = w, job.accumulate = accumulate;
    job.bytes = w->I / type->block * type->bytes;
    u = (int16_t *)(void *)ctx->gemm_shared, dx = (float *)(void *)(ctx->gemm_shared + 2 * w->I);
    job.u = u, job.dx = dx;
    if (w->dtype == PVT_Q8_0) PVTI_CALL(ctx, pvti_row_round)(u, dx, x, w->I);
    pvti_parallel(ctx, (w->O + PVTI_ROW_TASK - 1) / PVTI_ROW_TASK, pvti_row_task, &job);
    return true;
}

#define PVTI_LOOKUP_PRODUCTS 3 /* weights that share x: q, k and v */
static bool pvti_lookup_forward(pvt_ctx *ctx, pvt_real *const *y, const pvt_real *x, const pvt_weight *const *weights,
                                int n, bool accumulate);
static bool pvti_gather_forward(pvt_ctx *ctx, pvt_real *y, const pvt_real *x, const pvt_weight *weight, bool accumulate);
#endif

PVT_API void pvt_weight_forward(pvt_ctx *ctx, pvt_real *y, const pvt_real *x, const pvt_weight *weight,
                                int64_t n, bool accumulate)
{
    PVTI_ON_DEVICE(ctx, weight_forward, y, x, weight, n, accumulate);
#if !PVTI_REAL_IS_DOUBLE
    if (n == 1 && pvti_lookup_forward(ctx, &y, x, &weight, 1, accumulate)) return;
    if (n == 1 && pvti_gather_forward(ctx, y, x, weight, accumulate)) return;
    if (n == 1 && pvti_row_forward(ctx, y, x, weight, accumulate)) return;
#endif
    pvti_gemm_linear(ctx, y, weight->O, pvti_rows(x, weight->I), pvti_weight_operand(weight, true), n, weight->O,
              weight->I, accumulate);
}

/* y[i] = x·W[i]ᵀ for weights that lie side by side and share x. One token's look-ups run in common. */
static PVTI_UNUSED void pvti_weights_forward(pvt_ctx *ctx, pvt_real *const *y, const pvt_real *x,
                                             const pvt_weight *weights, int count, int64_t n)
{
#if !PVTI_REAL_IS_DOUBLE
    const pvt_weight *each[PVTI_LOOKUP_PRODUCTS] = {weights, weights + 1, weights + PVTI_MIN(count, 3) - 1};
    if (n == 1 && pvti_lookup_forward(ctx, y, x, each, count, false)) return;
#endif
    for (int i = 0; i < count; i++) pvt_weight_forward(ctx, y[i], x, &weights[i], n, false);
}

PVT_API void pvt_weight_backward(pvt_ctx *ctx, pvt_real *dx, pvt_real *dW, const pvt_real *dy,
                                 const pvt_real *x, const pvt_weight *weight, int64_t n)
{
    PVTI_ON_DEVICE(ctx, weight_backward, dx, dW, dy, x, weight, n);
    if (dx)
        pvti_gemm_linear(ctx, dx, weight->I, pvti_rows(dy, weight->O), pvti_weight_operand(weight, false), n,
                  weight->I, weight->O, true);
    if (dW)
        pvti_gemm_linear(ctx, dW, weight->I, pvti_cols(dy, weight->O), pvti_rows(x, weight->I), weight->O,
                         weight->I, n, true);
}

PVT_API double pvt_weight_bits(const pvt_weight *weight)
{
    const pvti_dtype *type = pvti_dtype_info(weight->dtype);
    if (weight->format.kind != PVT_FORMAT_DENSE) return pvt_format_bits(&weight->format, weight->O, weight->I);
    return 8.0 * (double)type->bytes / (double)type->block;
}

PVT_API void pvt_weight_free(pvt_weight *weight)
{
    if (!weight || !weight->ctx) return;
    if (weight->owned) {
        pvt_memory_free(weight->ctx, (void *)(uintptr_t)weight->data);
        pvt_memory_free(weight->ctx, weight->codes);
        pvt_memory_free(weight->ctx, weight->codebooks);
        pvt_memory_free(weight->ctx, weight->scales);
    }
    pvti_free(weight->ctx, weight->lookup); /* a view's too: it never shares one */
    memset(weight, 0, sizeof *weight);
}
// >>codebooks
/*  Additive codebooks: W[group] = s · Σ_m C_m[code_m]. A group is og × ig weights, its D = og·ig
    numbers stored row by row, as codebook entries are. Codes are bytes up to B = 8, else 16 bits. */

PVTI_INLINE int64_t pvti_entries(const pvt_weight *weight) { return (int64_t)1 << weight->format.bits; }
PVTI_INLINE int64_t pvti_group_dim(const pvt_weight *weight)
{
    return (int64_t)weight->format.in_group * weight->format.out_group;
}
PVTI_INLINE int64_t pvti_code_get(const pvt_weight *weight, int64_t i)
{
    return weight->format.bits <= 8 ? ((const uint8_t *)weight->codes)[i]
                                    : ((const uint16_t *)weight->codes)[i];
}
PVTI_INLINE void pvti_code_set(pvt_weight *weight, int64_t i, int64_t code)
{
    if (weight->format.bits <= 8)
        ((uint8_t *)weight->codes)[i] = (uint8_t)code;
    else
        ((uint16_t *)weight->codes)[i] = (uint16_t)code;
}

PVTI_KERNELS_BEGIN

/* One row (or, at og > 1, the rows of one out group), groups j0 … j1−1, to out. M and ig are
   compile-time constants for the usual formats, so the loops below unroll into vector adds. */
PVTI_INLINE void pvti_decode_row(pvt_real *out, int64_t ld, const pvt_weight *w, int64_t go, int64_t j0,
                                 int64_t j1, bool scaled, int M, int og, int ig, bool bytes)
{
    int64_t K = pvti_entries(w), D = (int64_t)og * ig, GI = w->I / ig, j;
    pvt_real s = scaled ? w->scales[go] : 1;
    for (j = j0; j < j1; j++) {
        int64_t at = (go * GI + j) * M;
        int m, a, r;
        for (r = 0; r < og; r++) {
            pvt_real sum[64];
            pvt_real *o = out + r * ld + (j - j0) * ig;
            for (m = 0; m < M; m++) {
                int64_t code =
                    bytes ? ((const uint8_t *)w->codes)[at + m] : ((const uint16_t *)w->codes)[at + m];
                const pvt_real *entry = w->codebooks + (m * K + code) * D + r * ig;
                for (a = 0; a < ig; a++) sum[a] = m ? sum[a] + entry[a] : entry[a];
            }
            for (a = 0; a < ig; a++) o[a] = s * sum[a];
        }
    }
}

PVTI_INLINE void pvti_decode_body(pvt_real *out, int64_t ld, const pvt_weight *w, int64_t go, int64_t j0,
                                  int64_t j1, bool scaled)
{
    const pvt_format *f = &w->format;
    bool bytes = f->bits <= 8;
    if (bytes && f->out_group == 1 && f->codebooks == 2 && f->in_group == 8)
        pvti_decode_row(out, ld, w, go, j0, j1, scaled, 2, 1, 8, true);
    else if (bytes && f->out_group == 1 && f->codebooks == 1 && f->in_group == 8)
        pvti_decode_row(out, ld, w, go, j0, j1, scaled, 1, 1, 8, true);
    else if (bytes && f->out_group == 1 && f->codebooks == 2 && f->in_group == 4)
        pvti_decode_row(out, ld, w, go, j0, j1, scaled, 2, 1, 4, true);
    else
        pvti_decode_row(out, ld, w, go, j0, j1, scaled, f->codebooks, f->out_group, f->in_group, bytes);
}
PVTI_KERNEL(pvti_decode, (pvt_real *out, int64_t ld, const pvt_weight *w, int64_t go, int64_t j0, int64_t j1,
                          bool scaled),
            (out, ld, w, go, j0, j1, scaled))

/* h[group] of dW into the accumulators of its entries: acc_m[code_m] += s · h, for out groups
   go0 … go1−1 and codebook m; and dscale[go] += ⟨h, Σ C⟩ when dscales is given. */
PVTI_INLINE void pvti_scatter_rows(pvt_real *acc, const pvt_weight *w, const pvt_real *dW, int64_t go0,
                                   int64_t go1, int m, int M, int og, int ig)
{
    int64_t D = (int64_t)og * ig, GI = w->I / ig, go, j;
    for (go = go0; go < go1; go++) {
        pvt_real s = w->scales[go];
        for (j = 0; j < GI; j++) {
            pvt_real *entry = acc + pvti_code_get(w, (go * GI + j) * M + m) * D;
            int r, a;
            for (r = 0; r < og; r++) {
                const pvt_real *h = dW + (go * og + r) * w->I + j * ig;
                for (a = 0; a < ig; a++) entry[r * ig + a] = pvti_fma(s, h[a], entry[r * ig + a]);
            }
        }
    }
}
PVTI_INLINE void pvti_scatter_body(pvt_real *acc, const pvt_weight *w, const pvt_real *dW, int64_t go0,
                                   int64_t go1, int m)
{
    const pvt_format *f = &w->format;
    if (f->out_group == 1 && f->codebooks == 2 && f->in_group == 8)
        pvti_scatter_rows(acc, w, dW, go0, go1, m, 2, 1, 8);
    else
        pvti_scatter_rows(acc, w, dW, go0, go1, m, f->codebooks, f->out_group, f->in_group);
}
PVTI_KERNEL_WIDE(pvti_scatter, (pvt_real *acc, const pvt_weight *w, const pvt_real *dW, int64_t go0, int64_t go1,
                           int m),
            (acc, w, dW, go0, go1, m))

/* score[k] = bias[k] + Σ_d x[d] · table[d][k], d ascending; K a multiple of 16. */
PVTI_INLINE void pvti_scores_body(pvt_real *score, const pvt_real *x, const pvt_real *table,
                                  const pvt_real *bias, int64_t D, int64_t K)
{
    int64_t k, d;
    int l;
    for (k = 0; k < K; k += 16) {
        pvt_real sum[16];
        for (l = 0; l < 16; l++) sum[l] = bias[k + l];
        for (d = 0; d < D; d++)
            for (l = 0; l < 16; l++) sum[l] = pvti_fma(x[d], table[d * K + k + l], sum[l]);
        for (l = 0; l < 16; l++) score[k + l] = sum[l];
    }
}
PVTI_KERNEL_WIDE(pvti_scores, (pvt_real *score, const pvt_real *x, const pvt_real *table, const pvt_real *bias,
                          int64_t D, int64_t K),
            (score, x, table, bias, D, K))

/* The nearest entry for each of n queries x [n, D]: best[i] = argmin_k bias[k] + Σ_d x[i][d] · table[d][k],
   the lowest k among equals; K a multiple of 16. With x = −2v and bias ‖c‖² that is the entry
   nearest to v; with bias c·H·cᵀ the same under the metric H. This one kernel is the inner
   loop of k-means, of calibration's beam search and of the V step.
   Limit: D FMAs, a compare and two blends per 16 entries: for D = 8 on a core that starts one
   512-bit operation a cycle about K/16 · 11 cycles a query; the table stays in L1. At K = 256 70 % of a core's
   FMA peak are reached. */
static PVTI_UNUSED void pvti_nearest_scalar(int32_t *best, const pvt_real *x, int64_t n, const pvt_real *table,
                                            const pvt_real *bias, int64_t D, int64_t K)
{
    int64_t i, k, d;
    int l;
    for (i = 0; i < n; i++) {
        pvt_real least[16];
        int32_t which[16];
        for (l = 0; l < 16; l++) least[l] = (pvt_real)INFINITY, which[l] = l;
        for (k = 0; k < K; k += 16)
            for (l = 0; l < 16; l++) {
                pvt_real sum = bias[k + l];
                for (d = 0; d < D; d++) sum = pvti_fma(x[i * D + d], table[d * K + k + l], sum);
                if (sum < least[l]) least[l] = sum, which[l] = (int32_t)(k + l);
            }
        best[i] = which[0];
        for (l = 1; l < 16; l++)
            if (least[l] < least[0] || (least[l] == least[0] && which[l] < best[i]))
                least[0] = least[l], best[i] = which[l];
    }
}

#if PVTI_X86
/* The least of 16 lanes, the lowest index among equals. */
PVTI_INLINE int32_t pvti_least_lane(const float *least, const int32_t *which)
{
    float low = least[0];
    int32_t at = which[0];
    int l;
    for (l = 1; l < 16; l++)
        if (least[l] < low || (least[l] == low && which[l] < at)) low = least[l], at = which[l];
    return at;
}

/* Q queries at once share each load of the table: two vectors of entries, 2·Q accumulators. */
PVTI_TARGET_AVX512 PVTI_INLINE void pvti_nearest_q_avx512(int32_t *best, const float *x, const float *table,
                                                          const float *bias, int64_t D, int64_t K, int Q)
{
    __m512 least[4], s0[4], s1[4];
    __m512i which[4], at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    int64_t k, d;
    int q;
    for (q = 0; q < Q; q++) least[q] = _mm512_set1_ps(INFINITY), which[q] = at;
    for (k = 0; k + 32 <= K; k += 32) {
        __mmask16 m;
        for (q = 0; q < Q; q++) s0[q] = _mm512_loadu_ps(bias + k), s1[q] = _mm512_loadu_ps(bias + k + 16);
        for (d = 0; d < D; d++) {
            __m512 t0 = _mm512_loadu_ps(table + d * K + k), t1 = _mm512_loadu_ps(table + d * K + k + 16);
            for (q = 0; q < Q; q++) {
                __m512 v = _mm512_set1_ps(x[q * D + d]);
                s0[q] = _mm512_fmadd_ps(v, t0, s0[q]);
                s1[q] = _mm512_fmadd_ps(v, t1, s1[q]);
            }
        }
        for (q = 0; q < Q; q++) {
            m = _mm512_cmp_ps_mask(s0[q], least[q], _CMP_LT_OQ);
            least[q] = _mm512_mask_mov_ps(least[q], m, s0[q]);
            which[q] = _mm512_mask_mov_epi32(which[q], m, at);
            m = _mm512_cmp_ps_mask(s1[q], least[q], _CMP_LT_OQ);
            least[q] = _mm512_mask_mov_ps(least[q], m, s1[q]);
            which[q] = _mm512_mask_mov_epi32(which[q], m, _mm512_add_epi32(at, _mm512_set1_epi32(16)));
        }
        at = _mm512_add_epi32(at, _mm512_set1_epi32(32));
    }
    for (; k < K; k += 16)
        for (q = 0; q < Q; q++) {
            __mmask16 m;
            __m512 sum = _mm512_loadu_ps(bias + k);
            for (d = 0; d < D; d++)
                sum = _mm512_fmadd_ps(_mm512_set1_ps(x[q * D + d]), _mm512_loadu_ps(table + d * K + k), sum);
            m = _mm512_cmp_ps_mask(sum, least[q], _CMP_LT_OQ);
            least[q] = _mm512_mask_mov_ps(least[q], m, sum);
            which[q] = _mm512_mask_mov_epi32(which[q], m, at);
        }
    for (q = 0; q < Q; q++) {
        __m512 low = _mm512_set1_ps(_mm512_reduce_min_ps(least[q]));
        __mmask16 m = _mm512_cmp_ps_mask(least[q], low, _CMP_EQ_OQ);
        best[q] = m ? (int32_t)_mm512_mask_reduce_min_epu32(m, which[q]) : 0;
    }
}

PVTI_TARGET_AVX512 static void pvti_nearest_fp32_avx512(int32_t *best, const float *x, int64_t n,
                                                        const float *table, const float *bias, int64_t D, int64_t K)
{
    int64_t i = 0;
    if (D == 8)
        for (; i + 4 <= n; i += 4) pvti_nearest_q_avx512(best + i, x + i * 8, table, bias, 8, K, 4);
    for (; i + 4 <= n; i += 4) pvti_nearest_q_avx512(best + i, x + i * D, table, bias, D, K, 4);
    for (; i < n; i++) pvti_nearest_q_avx512(best + i, x + i * D, table, bias, D, K, 1);
}

#define PVTI_TARGET_VNNI __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
static bool pvti_has_vnni(int isa) { return isa == PVTI_AVX512 && __builtin_cpu_supports("avx512vnni"); }

/*  With AVX-512 VNNI, groups of 8 and 64 to 256 entries: the same answers for half the time. First all scores in
    integers, I = −score·a·b, from x·a and table·b rounded to 16 bits, a and b powers of two; with the best two of
    each query kept. Where they lie further apart than integers and fp32 together can err, the best is the one that
    fp32 would find; the other queries, one in three hundred on Gaussian numbers, are searched again in fp32.

    Bits: a·‖x‖ and b·‖c‖ stay below 32700 and a·b·|bias| below 2³⁰, so that no sum reaches 2³¹; and a·b is 2⁻⁹⁶ or
    more, so that none in fp32 overflows. Roundings by at most 1/2 move I by ½ Σ|x a| + ½ Σ|c b| + 2.5; eight FMAs in
    fp32, each by 2⁻²⁴ of a sum below 2³¹, by 1024; the number of the entry, which replaces the lowest 8 bits so that
    a maximum carries it along, by 255. Hence `apart`.
    Limit: 4 multiplications (one a cycle) for an entry and 16 queries; blending and keeping two maxima fits beside
    them: K / 4 cycles a query; at K = 256 74 % of that is reached. */
#define PVTI_SCREEN 64 /* queries at a time: with their maxima they fill the registers */

typedef struct pvti_screen {
    int32_t pairs[4][256]; /* [pair of dimensions][entry]: two numbers of 16 bits */
    int32_t bias[256];     /* −bias·a·b */
    const float *score_bias;
    float b, bias_most;
    int32_t entry_most; /* Σ_d |c_d b| of the largest entry */
    int64_t K;          /* without the padding */
} pvti_screen;

/* The largest power of two p ≤ 2⁶⁰ with p·most ≤ limit; 0 if that is below 2⁻⁶⁰ or most no number. */
PVTI_INLINE float pvti_screen_unit(float limit, float most)
{
    uint32_t bits;
    float p = limit / most;
    if (!(p >= 8.673617379884035e-19f)) return 0;
    p = PVTI_MIN(p, 1152921504606846976.0f);
    memcpy(&bits, &p, sizeof bits);
    bits &= 0x7F800000;
    memcpy(&p, &bits, sizeof p);
    return p;
}

/* The largest of 16 numbers that were compared by their bits: NaN is larger than all others. */
PVTI_TARGET_VNNI PVTI_INLINE float pvti_screen_most(__m512i most)
{
    uint32_t bits = _mm512_reduce_max_epu32(most);
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

PVTI_TARGET_VNNI PVTI_INLINE __m512i pvti_screen_pair(const float *even, const float *odd, __m512 unit)
{
    __m512i lower = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(even), unit));
    __m512i upper = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(odd), unit));
    return _mm512_mask_blend_epi16(0xAAAAAAAA, lower, _mm512_slli_epi32(upper, 16));
}

/* sum + Σ |the two numbers of each pair| */
PVTI_TARGET_VNNI PVTI_INLINE __m512i pvti_screen_add(__m512i sum, __m512i pair)
{
    return _mm512_dpwssd_epi32(sum, _mm512_abs_epi16(pair), _mm512_set1_epi16(1));
}

PVTI_TARGET_VNNI static bool pvti_screen_table(pvti_screen *s, const float *table, const float *bias, int64_t K)
{
    __m512i norm = _mm512_setzero_si512(), most = norm, entry = norm;
    __m512 unit;
    int64_t k, d;
    for (s->K = K; s->K > 0 && bias[s->K - 1] == INFINITY;) s->K--;
    for (k = 0; k < s->K; k += 16) {
        __m512 sum = _mm512_setzero_ps();
        __mmask16 in = (__mmask16)(s->K - k < 16 ? (1 << (s->K - k)) - 1 : 0xFFFF);
        for (d = 0; d < 8; d++) {
            __m512 c = _mm512_loadu_ps(table + d * K + k);
            sum = _mm512_fmadd_ps(c, c, sum);
        }
        norm = _mm512_max_epu32(norm, _mm512_castps_si512(sum));
        most = _mm512_mask_max_epu32(most, in, most, _mm512_castps_si512(_mm512_abs_ps(_mm512_loadu_ps(bias + k))));
    }
    s->b = pvti_screen_unit(32700, pvti_sqrt(pvti_screen_most(norm)));
    s->bias_most = pvti_screen_most(most), s->score_bias = bias;
    unit = _mm512_set1_ps(s->b);
    for (k = 0; k < s->K; k += 16) {
        __m512i sum = _mm512_setzero_si512();
        for (d = 0; d < 4; d++) {
            __m512i pair = pvti_screen_pair(table + 2 * d * K + k, table + (2 * d + 1) * K + k, unit);
            _mm512_storeu_si512(&s->pairs[d][k], pair);
            sum = pvti_screen_add(sum, pair);
        }
        entry = _mm512_max_epi32(entry, sum);
    }
    s->entry_most = _mm512_reduce_max_epi32(entry);
    return s->b > 0;
}

/* best[i] for n ≤ 16 V queries; returns a bit for each one that fp32 has to decide. */
PVTI_TARGET_VNNI PVTI_INLINE uint64_t pvti_screen_queries(int32_t *best, const float *x, int64_t n, pvti_screen *s, int V)
{
    __m512i X[4][4], first[4], second[4], most = _mm512_setzero_si512();
    __m512 unit;
    float across[8][PVTI_SCREEN], a, bias_a;
    uint64_t open = 0;
    int64_t i, k, d;
    int v;
    for (i = 0; i < n; i++)
        for (d = 0; d < 8; d++) across[d][i] = x[i * 8 + d];
    for (; i < 16 * V; i++)
        for (d = 0; d < 8; d++) across[d][i] = 0;
    for (v = 0; v < V; v++) {
        __m512 sum = _mm512_setzero_ps();
        for (d = 0; d < 8; d++) {
            __m512 q = _mm512_loadu_ps(&across[d][16 * v]);
            sum = _mm512_fmadd_ps(q, q, sum);
        }
        most = _mm512_max_epu32(most, _mm512_castps_si512(sum));
    }
    a = pvti_screen_unit(32700, pvti_sqrt(pvti_screen_most(most)));
    bias_a = pvti_screen_unit(1073741824, s->bias_most * s->b);
    a = PVTI_MIN(a, bias_a);
    if (a * s->b < 1.262177448353619e-29f /* 2⁻⁹⁶ */) return ~(uint64_t)0 >> (64 - n);
    unit = _mm512_set1_ps(-a * s->b);
    for (k = 0; k < s->K; k += 16)
        _mm512_storeu_si512(s->bias + k, _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(s->score_bias + k), unit)));
    unit = _mm512_set1_ps(-a);
    for (v = 0; v < V; v++) {
        for (d = 0; d < 4; d++) X[d][v] = pvti_screen_pair(&across[2 * d][16 * v], &across[2 * d + 1][16 * v], unit);
        first[v] = second[v] = _mm512_set1_epi32(INT32_MIN);
    }
    for (k = 0; k < s->K; k++) {
        __m512i sum[4], at = _mm512_set1_epi32((int)k);
        for (v = 0; v < V; v++) sum[v] = _mm512_set1_epi32(s->bias[k]);
        for (d = 0; d < 4; d++) {
            __m512i pair = _mm512_set1_epi32(s->pairs[d][k]);
            for (v = 0; v < V; v++) sum[v] = _mm512_dpwssd_epi32(sum[v], X[d][v], pair);
        }
        for (v = 0; v < V; v++) {
            sum[v] = _mm512_mask_mov_epi8(sum[v], 0x1111111111111111, at);
            second[v] = _mm512_max_epi32(second[v], _mm512_min_epi32(first[v], sum[v]));
            first[v] = _mm512_max_epi32(first[v], sum[v]);
        }
    }
    for (v = 0; v < V; v++) {
        int64_t left = n - 16 * v;
        __mmask16 in = (__mmask16)(left >= 16 ? 0xFFFF : left > 0 ? (1 << left) - 1 : 0);
        /* more than twice ½·(Σ|x a| + 4) + ½·(Σ|c b| + 4) + 2.5 + 1024 + 255, the sums those of rounded numbers */
        __m512i apart = _mm512_set1_epi32(s->entry_most + 2600);
        for (d = 0; d < 4; d++) apart = pvti_screen_add(apart, X[d][v]);
        _mm512_mask_storeu_epi32(best + 16 * v, in, _mm512_and_si512(first[v], _mm512_set1_epi32(255)));
        open |= (uint64_t)_mm512_mask_cmple_epu32_mask(in, _mm512_sub_epi32(first[v], second[v]), apart) << (16 * v);
    }
    return open;
}

PVTI_TARGET_VNNI static void pvti_nearest_vnni(int32_t *best, const float *x, int64_t n, const float *table,
                                               const float *bias, int64_t K)
{
    pvti_screen s;
    float rest[PVTI_SCREEN][8];
    int32_t from[PVTI_SCREEN], found[PVTI_SCREEN];
    int64_t i, q, m;
    if (!pvti_screen_table(&s, table, bias, K)) {
        pvti_nearest_fp32_avx512(best, x, n, table, bias, 8, K);
        return;
    }
    for (i = 0; i < n; i += m, best += m, x += 8 * m) {
        uint64_t open;
        int64_t left = 0;
        m = PVTI_MIN(PVTI_SCREEN, n - i);
        open = m > PVTI_SCREEN / 2 ? pvti_screen_queries(best, x, m, &s, 4) : pvti_screen_queries(best, x, m, &s, 2);
        for (q = 0; open; q++, open >>= 1)
            if (open & 1) memcpy(rest[left], x + q * 8, sizeof rest[0]), from[left++] = (int32_t)q;
        pvti_nearest_fp32_avx512(found, rest[0], left, table, bias, 8, K);
        for (q = 0; q < left; q++) best[from[q]] = found[q];
    }
}

PVTI_TARGET_AVX512 static void pvti_nearest_avx512(int32_t *best, const float *x, int64_t n, const float *table,
                                                   const float *bias, int64_t D, int64_t K)
{
    bool screen = D == 8 && K >= 64 && K <= 256 && n >= 24 && pvti_has_vnni(PVTI_AVX512);
    if (screen) pvti_nearest_vnni(best, x, n, table, bias, K);
    else pvti_nearest_fp32_avx512(best, x, n, table, bias, D, K);
}

PVTI_TARGET_AVX2 PVTI_INLINE void pvti_nearest_q_avx2(int32_t *best, const float *x, const float *table,
                                                      const float *bias, int64_t D, int64_t K, int Q)
{
    __m256 least[2][2];
    __m256i which[2][2], at[2];
    float low[16];
    int32_t lane[16];
    int64_t k, d;
    int q, h;
    at[0] = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    at[1] = _mm256_add_epi32(at[0], _mm256_set1_epi32(8));
    for (q = 0; q < Q; q++)
        for (h = 0; h < 2; h++) least[q][h] = _mm256_set1_ps(INFINITY), which[q][h] = at[h];
    for (k = 0; k < K; k += 16) {
        __m256 sum[2][2];
        for (q = 0; q < Q; q++)
            for (h = 0; h < 2; h++) sum[q][h] = _mm256_loadu_ps(bias + k + 8 * h);
        for (d = 0; d < D; d++) {
            __m256 t0 = _mm256_loadu_ps(table + d * K + k), t1 = _mm256_loadu_ps(table + d * K + k + 8);
            for (q = 0; q < Q; q++) {
                __m256 v = _mm256_set1_ps(x[q * D + d]);
                sum[q][0] = _mm256_fmadd_ps(v, t0, sum[q][0]);
                sum[q][1] = _mm256_fmadd_ps(v, t1, sum[q][1]);
            }
        }
        for (q = 0; q < Q; q++)
            for (h = 0; h < 2; h++) {
                __m256 less = _mm256_cmp_ps(sum[q][h], least[q][h], _CMP_LT_OQ);
                least[q][h] = _mm256_blendv_ps(least[q][h], sum[q][h], less);
                which[q][h] = _mm256_blendv_epi8(which[q][h], at[h], _mm256_castps_si256(less));
            }
        for (h = 0; h < 2; h++) at[h] = _mm256_add_epi32(at[h], _mm256_set1_epi32(16));
    }
    for (q = 0; q < Q; q++) {
        for (h = 0; h < 2; h++) {
            _mm256_storeu_ps(low + 8 * h, least[q][h]);
            _mm256_storeu_si256((__m256i *)(void *)(lane + 8 * h), which[q][h]);
        }
        best[q] = pvti_least_lane(low, lane);
    }
}

PVTI_TARGET_AVX2 static void pvti_nearest_avx2(int32_t *best, const float *x, int64_t n, const float *table,
                                               const float *bias, int64_t D, int64_t K)
{
    int64_t i = 0;
    for (; i + 2 <= n; i += 2) pvti_nearest_q_avx2(best + i, x + i * D, table, bias, D, K, 2);
    for (; i < n; i++) pvti_nearest_q_avx2(best + i, x + i * D, table, bias, D, K, 1);
}
#endif
PVTI_KERNELS_END

/* ---- the table's functions ---- */

static void pvti_tile_aqlm(const void *self, pvt_real *out, int64_t ld, int64_t r0, int64_t r1, int64_t c0,
                           int64_t c1)
{
    const pvt_weight *w = (const pvt_weight *)self;
    int64_t og = w->format.out_group, ig = w->format.in_group, go, j0 = c0 / ig, j1 = (c1 + ig - 1) / ig;
    bool whole = r0 % og == 0 && r1 % og == 0 && c0 % ig == 0 && c1 % ig == 0;
    for (go = r0 / og; go * og < r1; go++) {
        int64_t r, j;
        if (whole) {
            PVTI_CALL(w->ctx, pvti_decode)(out + (go * og - r0) * ld, ld, w, go, j0, j1, true);
            continue;
        }
        for (j = j0; j < j1; j++) { /* the rectangle cuts through groups */
            pvt_real group[256];
            int64_t from = PVTI_MAX(c0, j * ig), to = PVTI_MIN(c1, (j + 1) * ig);
            PVTI_CALL(w->ctx, pvti_decode)(group, ig, w, go, j, j + 1, true);
            for (r = PVTI_MAX(r0, go * og); r < PVTI_MIN(r1, (go + 1) * og); r++)
                memcpy(out + (r - r0) * ld + (from - c0), group + (r - go * og) * ig + (from - j * ig),
                       (size_t)(to - from) * sizeof *out);
        }
    }
}

static int pvti_values_aqlm(const pvt_weight *weight, pvti_values out[PVTI_MAX_VALUES])
{
    out[0].data = weight->codebooks;
    out[0].n = weight->format.codebooks * pvti_entries(weight) * pvti_group_dim(weight);
    out[0].name = "codebooks";
    out[1].data = weight->scales;
    out[1].n = weight->O / weight->format.out_group;
    out[1].name = "scales";
    return 2;
}

/* The chain rule is a scatter: two groups with the same code add into one entry. Rows are cut
   into chunks (by shape alone, so that bits do not depend on threads), each with accumulators
   of its own; the chunks are then added in order. */
static int64_t pvti_chain_chunks(const pvt_weight *weight)
{
    int64_t GO = weight->O / weight->format.out_group, groups = GO * (weight->I / weight->format.in_group);
    int64_t chunks = groups / (8 * pvti_entries(weight));
    return PVTI_MAX(1, PVTI_MIN(PVTI_MIN(chunks, 32), GO));
}
static int64_t pvti_chain_values(const pvt_weight *weight) /* reals needed for `partial` */
{
    return pvti_chain_chunks(weight) * weight->format.codebooks * pvti_entries(weight) * pvti_group_dim(weight);
}

typedef struct pvti_chain_args {
    pvt_ctx *ctx;
    pvt_real *partial, *dcodebooks, *dscales;
    const pvt_weight *weight;
    const pvt_real *dW;
    int64_t chunks, n;
} pvti_chain_args;

static void pvti_chain_scatter_task(void *arg, int64_t i, int worker)
{
    const pvti_chain_args *a = (const pvti_chain_args *)arg;
    const pvt_weight *w = a->weight;
    int64_t GO = w->O / w->format.out_group, og = w->format.out_group, ig = w->format.in_group;
    int64_t chunk = i / w->format.codebooks, m = i % w->format.codebooks,
            step = (GO + a->chunks - 1) / a->chunks;
    int64_t go0 = PVTI_MIN(GO, chunk * step), go1 = PVTI_MIN(GO, go0 + step),
            per_book = a->n / w->format.codebooks, go, j0;
    pvt_real *acc = a->partial + chunk * a->n + m * per_book;
    pvt_real *buffer = (pvt_real *)pvti_scratch(a->ctx, worker);
    memset(acc, 0, (size_t)per_book * sizeof *acc);
    PVTI_CALL_WIDE(a->ctx, pvti_scatter)(acc, w, a->dW, go0, go1, (int)m);
    if (m) return;
    for (go = go0; go < go1; go++) { /* dscale: ⟨h, Σ C⟩ over the row, in pieces of 4096 weights */
        int64_t GI = w->I / ig, piece = PVTI_MAX(1, 4096 / (og * ig)), r;
        double sum = 0;
        for (j0 = 0; j0 < GI; j0 += piece) {
            int64_t j1 = PVTI_MIN(GI, j0 + piece), width = (j1 - j0) * ig;
            PVTI_CALL(a->ctx, pvti_decode)(buffer, width, w, go, j0, j1, false);
            for (r = 0; r < og; r++) {
                double dot;
                PVTI_CALL(a->ctx, pvti_dot)(&dot, a->dW + (go * og + r) * w->I + j0 * ig, buffer + r * width,
                                            width);
                sum += dot;
            }
        }
        a->dscales[go] += (pvt_real)sum;
    }
}

static void pvti_chain_add_task(void *arg, int64_t i, int worker)
{
    const pvti_chain_args *a = (const pvti_chain_args *)arg;
    int64_t from = i * 1024, n = PVTI_MIN(1024, a->n - from), chunk;
    (void)worker;
    for (chunk = 0; chunk < a->chunks; chunk++)
        PVTI_CALL(a->ctx, pvti_add_to)(a->dcodebooks + from, a->partial + chunk * a->n + from, n);
}

static void pvti_chain_aqlm(pvt_ctx *ctx, pvt_real *const *dvalues, const pvt_weight *weight,
                            const pvt_real *dW, pvt_real *partial)
{
    pvti_chain_args a;
    a.ctx = ctx, a.partial = partial, a.dcodebooks = dvalues[0], a.dscales = dvalues[1];
    a.weight = weight, a.dW = dW;
    a.chunks = pvti_chain_chunks(weight);
    a.n = pvti_chain_values(weight) / a.chunks;
    pvti_parallel(ctx, a.chunks * weight->format.codebooks, pvti_chain_scatter_task, &a);
    pvti_parallel(ctx, (a.n + 1023) / 1024, pvti_chain_add_task, &a);
}

/* ---- tables for the search ---- */

/* Codebooks as the search reads them: entries across, so that 16 are scored at once. */
typedef struct pvti_search_tables {
    int64_t M, K, padded, D; /* padded: K rounded up to 16; padding has an infinite bias */
    pvt_real *table;         /* [M, D, padded] */
    pvt_real *norm;          /* [M, padded]: ‖c‖² */
} pvti_search_tables;

static int64_t pvti_search_tables_values(const pvt_format *f)
{
    int64_t padded = PVTI_MAX(16, (int64_t)1 << f->bits), D = (int64_t)f->in_group * f->out_group;
    return f->codebooks * padded * (D + 1);
}

static void pvti_search_tables_fill(pvti_search_tables *t, pvt_real *memory, const pvt_weight *weight)
{
    int64_t m, k, d;
    t->M = weight->format.codebooks, t->K = pvti_entries(weight), t->padded = PVTI_MAX(16, t->K),
    t->D = pvti_group_dim(weight);
    t->table = memory;
    t->norm = memory + t->M * t->D * t->padded;
    for (m = 0; m < t->M; m++)
        for (k = 0; k < t->padded; k++) {
            const pvt_real *entry = weight->codebooks + (m * t->K + k) * t->D;
            pvt_real norm = 0;
            for (d = 0; d < t->D; d++) {
                pvt_real c = k < t->K ? entry[d] : 0;
                t->table[(m * t->D + d) * t->padded + k] = c;
                norm = pvti_fma(c, c, norm);
            }
            t->norm[m * t->padded + k] = k < t->K ? norm : (pvt_real)INFINITY;
        }
}

/* A candidate of a beam: entry k after hypothesis h, with its loss. */
typedef struct pvti_candidate {
    pvt_real loss;
    int32_t hypothesis, entry;
} pvti_candidate;

/* Inserts into the sorted list of the `keep` best; ties: the lower hypothesis, then the lower
   entry, stays in front, which is the order in which they are offered. */
PVTI_INLINE int64_t pvti_candidate_insert(pvti_candidate *list, int64_t n, int64_t keep, pvt_real loss,
                                          int64_t h, int64_t k)
{
    int64_t at = n;
    if (n == keep && !(loss < list[n - 1].loss)) return n;
    if (n == keep) at = n - 1;
    while (at > 0 && loss < list[at - 1].loss) list[at] = list[at - 1], at--;
    list[at].loss = loss, list[at].hypothesis = (int32_t)h, list[at].entry = (int32_t)k;
    return n < keep ? n + 1 : n;
}
enum { PVTI_MAX_BEAM = 16 };
// >>look-ups
/*  One token times codes (T-MAC, 2407.00088; AQLM's own CPU kernel): the tables

        T_t[k] = ⟨x_j, C_m[k]⟩,   t = j·M + m   (input group j, codebook m)

    are made once per x, and a row's product is s_o · Σ_t T_t[code_t(o)]: a look-up and an addition where
    a product needs ig multiplications. All of it is in integers, whose sums do not depend on any order, so
    every kernel gives the same bits: a weight's codebooks are counted in units of their largest magnitude
    over 32767, and x, for PVTI_LOOKUP_BLOCK tables at a time, in units such that no Σ_a |x_a| is above 65024
    before it is rounded (65056 after, at 64 a group; 65537 would overflow) and no |x_a| above 32766. ⟨x_j, C_m[k]⟩ then fits 32 bits, and its upper 16, rounded, are the table. The
    error is near that of codebooks in fp16.

    Tables: VPDPWSSD multiplies and adds two elements for 16 entries, one a cycle (two on a core that has 512
    bits twice): 64 a table of 8, 18 ns at 3.6 GHz; 20.5 are reached, and 2 for rounding x. VPMADDWD and an
    addition: 25 ns in AVX-512, 37 in AVX2.

    Look-ups with AVX-512 VBMI: a table of 256 entries is held in registers, VPERMI2B picks 64 bytes from 128,
    so two of them and a blend on the code's top bit look up 64 rows, for the lower and the upper bytes of the
    entries. Two tables' bytes side by side are added by VPMADDUBSW with ones. A pair of tables for 64 rows (512
    weights at 8 a group): 8 VPERMI2B and 4 interleavings at one a cycle, 4 additions of pairs, 4 of sums, 4
    blends beside them: 12 to 16 cycles, 115 to 150 Gweights/s at 3.6 GHz, from L1 (16 KiB of tables a block);
    103 are reached on one core.

    With AVX-512 alone: VPERMI2W picks 32 words from 64, four of them and three blends look up 32 rows. A pair of
    tables for 32 rows: some 28 instructions, 14 cycles, 65 Gweights/s; 43 are reached.

    Elsewhere, AVX2 included: an addition from a table in 32 bits in L1 (32 KiB of tables a block) and a share of the
    load that brought its code: 13 loads and 14 other instructions for 8 look-ups. At two loads a cycle that is
    17.7 Gweights/s at 3.6 GHz; 17.4 are reached. VPSHUFB, which picks from 16 entries, needs ten instructions for
    64 rows and 16 entries, and no less time.

    A task makes a block's tables and at once looks up all rows in them, so that no table ever leaves its core
    (made by all for all, they cost two cores as much time as they saved). What the tasks found for a row is
    added in the order of the input groups, in at most PVTI_LOOKUP_PARTS parts, whatever the threads.

    Codes are kept in the order in which they are read: [block of tables][row block][t][64], row r of a block
    at byte pvti_lookup_at(r), so that the interleavings bring rows 0 … 31 and 32 … 63 back in order. */

#define PVTI_LOOKUP_ROWS 64
#define PVTI_LOOKUP_BLOCK 32 /* tables that share a unit; even, at most 256: 16-bit sums of pairs */
#define PVTI_LOOKUP_PARTS 8
#define PVTI_LOOKUP_ROUND 12582912.0f /* 1.5 · 2^23: adding it rounds, and leaves the integer in the lowest bits */
#define PVTI_LOOKUP_CODEBOOK(pairs) ((pairs) * 512) /* numbers: pairs of elements of 256 entries side by side */

#if !PVTI_REAL_IS_DOUBLE
static int64_t pvti_lookup_pairs(const pvt_weight *w) { return (w->format.in_group + 1) / 2; }
PVTI_INLINE int64_t pvti_lookup_at(int64_t r) { return r % 32 / 8 * 16 + r / 32 * 8 + r % 8; }

static int64_t pvti_lookup_tables(const pvt_weight *w) /* an even number: one may be empty */
{
    return (w->I / w->format.in_group * w->format.codebooks + 1) & ~(int64_t)1;
}
static int64_t pvti_lookup_row_blocks(const pvt_weight *w) { return pvti_ceil_div(w->O, PVTI_LOOKUP_ROWS); }
/* Where the codes of a row block begin for the n tables from t0 (a multiple of the block) on. */
static int64_t pvti_lookup_codes_at(const pvt_weight *w, int64_t t0, int64_t n, int64_t block)
{
    return (t0 * pvti_lookup_row_blocks(w) + block * n) * PVTI_LOOKUP_ROWS;
}

static bool pvti_lookup_fits(const pvt_weight *w)
{
    return w->format.kind == PVT_FORMAT_AQLM && w->format.bits <= 8 && w->format.out_group == 1;
}

/* More than 256 entries of eight: read where they stand, see pvti_gather_task. */
static bool pvti_gather_fits(const pvt_weight *w)
{
    return w->format.kind == PVT_FORMAT_AQLM && w->format.bits > 8 && w->format.in_group == 8 &&
           w->format.out_group == 1;
}
/* Codebooks in fp16; where a value overflows that, none. */
static pvt_result pvti_gather_prepare(pvt_weight *w)
{
    int64_t n = w->format.codebooks * ((int64_t)1 << w->format.bits) * 8, i;
    uint16_t *halves = PVTI_NEW(w->ctx, uint16_t, n);
    if (!halves) return PVT_ERR_MEMORY;
    for (i = 0; i < n; i++) {
        halves[i] = pvti_f32_to_f16(w->codebooks[i]);
        if ((halves[i] & 0x7fff) == 0x7c00) {
            pvti_free(w->ctx, halves);
            return PVT_OK;
        }
    }
    w->lookup = halves;
    return PVT_OK;
}
#endif

PVT_API pvt_result pvt_weight_prepare(pvt_weight *weight)
{
#if !PVTI_REAL_IS_DOUBLE
    int64_t T, GT, M, K, ig, pairs, o, t, m, k, a, bytes;
    float *unit;
    double inverse;
    int16_t *across;
    uint8_t *codes;
    if (weight->ctx->device) return PVT_OK;
    if (!weight->lookup && pvti_gather_fits(weight)) return pvti_gather_prepare(weight);
    if (weight->lookup || !pvti_lookup_fits(weight)) return PVT_OK;
    M = weight->format.codebooks, K = pvti_entries(weight), ig = weight->format.in_group;
    pairs = pvti_lookup_pairs(weight);
    T = pvti_lookup_tables(weight), GT = weight->I / ig * M;
    bytes = 64 + M * PVTI_LOOKUP_CODEBOOK(pairs) * 2 + pvti_lookup_row_blocks(weight) * T * PVTI_LOOKUP_ROWS;
    weight->lookup = pvti_alloc(weight->ctx, bytes, 1); /* zeros: entries beyond K, an odd group's last element */
    if (!weight->lookup) return PVT_ERR_MEMORY;
    unit = (float *)weight->lookup; /* of the codebooks' numbers, and padding */
    across = (int16_t *)weight->lookup + 32;
    codes = (uint8_t *)(across + M * PVTI_LOOKUP_CODEBOOK(pairs));
    for (k = 0; k < M * K * ig; k++) {
        float c = __builtin_fabsf(weight->codebooks[k]);
        if (!(c <= *unit) && *unit == *unit) *unit = c; /* a NaN stays, and reaches every product */
    }
    inverse = *unit > 0 && *unit <= FLT_MAX ? 32767 / (double)*unit : 0, *unit /= 32767;
    for (m = 0; inverse > 0 && m < M; m++)
        for (k = 0; k < K; k++)
            for (a = 0; a < ig; a++)
                across[m * PVTI_LOOKUP_CODEBOOK(pairs) + a / 2 * 512 + k * 2 + a % 2] =
                    (int16_t)((int32_t)((double)weight->codebooks[(m * K + k) * ig + a] * inverse + 32768.5) - 32768);
    for (o = 0; o < weight->O; o++) {
        int64_t block = o / PVTI_LOOKUP_ROWS, at = pvti_lookup_at(o % PVTI_LOOKUP_ROWS);
        for (t = 0; t < GT; t++) {
            int64_t t0 = t / PVTI_LOOKUP_BLOCK * PVTI_LOOKUP_BLOCK, n = PVTI_MIN(PVTI_LOOKUP_BLOCK, T - t0);
            codes[pvti_lookup_codes_at(weight, t0, n, block) + (t - t0) * PVTI_LOOKUP_ROWS + at] =
                ((const uint8_t *)weight->codes)[o * GT + t];
        }
    }
#else
    (void)weight;
#endif
    return PVT_OK;
}

#if !PVTI_REAL_IS_DOUBLE
PVTI_KERNELS_BEGIN
/* x [n] as integers in *unit, each group filled up to pairs with zeros. Where the unit is too small to divide by
   (no |x_a| above 4e-34) or not finite, they are 0 and the unit alone carries that on. */
PVTI_INLINE void pvti_lookup_round_of(int16_t *__restrict to, float *unit, const float *__restrict x, int64_t n,
                                      int64_t ig)
{
    float sums = 0, most = 0, all = 0, largest[8] = {0}, inverse; /* all: 0, or NaN where something is not finite */
    int64_t wide = (ig + 1) & ~(int64_t)1, i, a;
    for (i = 0; i < n; i += ig) {
        float size[64], sum;
        for (a = 0; a < ig; a++) size[a] = __builtin_fabsf(x[i + a]);
        if (ig == 8) {
            sum = ((size[0] + size[1]) + (size[2] + size[3])) + ((size[4] + size[5]) + (size[6] + size[7]));
            for (a = 0; a < 8; a++) largest[a] = size[a] > largest[a] ? size[a] : largest[a];
        } else
            for (sum = 0, a = 0; a < ig; a++) sum += size[a], most = size[a] > most ? size[a] : most;
        all += 0 * sum, sums = sum > sums ? sum : sums;
    }
    for (a = 0; a < 8; a++) most = largest[a] > most ? largest[a] : most;
    *unit = sums / 65024 > most / 32766 ? sums / 65024 : most / 32766;
    if (all != all) *unit = all;
    inverse = *unit >= FLT_MIN ? 1 / *unit : 0;
    if (!(inverse > 0)) memset(to, 0, (size_t)(n / ig * wide) * sizeof *to);
    else
        for (i = 0; i < n; i += ig, to += wide) {
            int32_t rounded[64];
            for (a = 0; a < ig; a++) {
                float p = x[i + a] * inverse + PVTI_LOOKUP_ROUND;
                memcpy(&rounded[a], &p, sizeof p);
            }
            for (a = 0; a < ig; a++) to[a] = (int16_t)rounded[a];
            if (ig % 2) to[ig] = 0;
        }
}
PVTI_INLINE void pvti_lookup_round_body(int16_t *to, float *unit, const float *x, int64_t n, int64_t ig)
{
    if (ig == 8) pvti_lookup_round_of(to, unit, x, n, 8);
    else pvti_lookup_round_of(to, unit, x, n, ig);
}
PVTI_KERNEL(pvti_lookup_round, (int16_t *to, float *unit, const float *x, int64_t n, int64_t ig),
            (to, unit, x, n, ig))

/* T[k] = (2^15 + Σ_a x[a]·C[k][a]) / 2^16 downwards, and U[k] with y for x: two tables of one codebook, so that its
   entries are loaded once for both. In 32 bits each, as they are added. */
PVTI_PORTABLE static void pvti_lookup_table_scalar(uint8_t *T, uint8_t *U, const int16_t *x, const int16_t *y,
                                                   const int16_t *across, int64_t pairs)
{
    for (int64_t k = 0; k < 256; k++) {
        int32_t t = 1 << 15, u = 1 << 15;
        for (int64_t a = 0; a < 2 * pairs; a++) {
            int32_t c = across[a / 2 * 512 + k * 2 + a % 2];
            t += x[a] * c, u += y[a] * c;
        }
        ((int32_t *)(void *)T)[k] = t >> 16, ((int32_t *)(void *)U)[k] = u >> 16;
    }
}

/* sum[r] = Σ_t T_t[code_t(r)] for one row block. Eight rows lie side by side; the codes of four are loaded one by one,
   those of the others at once and taken apart: 13 loads and 14 other instructions for 8 look-ups balance what a core
   can load and what it can compute. Not for the compiler to vectorize. */
PVTI_PORTABLE static void pvti_lookup_sums(int32_t *sum, const uint8_t *codes, const uint8_t *tables, int64_t n)
{
    for (int64_t r = 0; r < PVTI_LOOKUP_ROWS; r += 8) {
        const uint8_t *at = codes + pvti_lookup_at(r);
        const int32_t *table = (const int32_t *)(const void *)tables;
        int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
        for (int64_t t = 0; t < n; t++, at += PVTI_LOOKUP_ROWS, table += 256) {
            uint32_t four;
            uint64_t c;
            memcpy(&four, at + 4, sizeof four), c = four;
            s0 += table[at[0]], s1 += table[at[1]], s2 += table[at[2]], s3 += table[at[3]];
            s4 += table[c & 255], s5 += table[c >> 8 & 255];
            c >>= 16;
            __asm__("" : "+r"(c)); /* else the compiler shifts anew for each code */
            s6 += table[c & 255], s7 += table[c >> 8];
        }
        sum[r] = s0, sum[r + 1] = s1, sum[r + 2] = s2, sum[r + 3] = s3;
        sum[r + 4] = s4, sum[r + 5] = s5, sum[r + 6] = s6, sum[r + 7] = s7;
    }
}

/* y[r] += unit · Σ_t T_t[code_t(r)] for row blocks of 64, codes `apart` from block to block, n (even) tables. */
PVTI_INLINE void pvti_lookup_rows_body(float *y, const uint8_t *codes, int64_t apart, int64_t blocks,
                                       const uint8_t *tables, int64_t n, float unit)
{
    for (; blocks > 0; blocks--, codes += apart, y += PVTI_LOOKUP_ROWS) {
        int32_t sum[PVTI_LOOKUP_ROWS];
        pvti_lookup_sums(sum, codes, tables, n);
        for (int l = 0; l < PVTI_LOOKUP_ROWS; l++) y[l] = pvti_fma(unit, (float)sum[l], y[l]);
    }
}
PVTI_KERNEL(pvti_lookup_rows, (float *y, const uint8_t *codes, int64_t apart, int64_t blocks, const uint8_t *tables,
                               int64_t n, float unit),
            (y, codes, apart, blocks, tables, n, unit))

#if PVTI_X86
/* Keeps in a register what several instructions need: gcc would load it for each, and a core loads 64 bytes a cycle. */
#define PVTI_KEEP(vector) __asm__("" : "+v"(vector))

/* Two elements of x, as often as a vector holds them. */
PVTI_INLINE int32_t pvti_lookup_two(const int16_t *x)
{
    int32_t two;
    memcpy(&two, x, sizeof two);
    return two;
}

PVTI_TARGET_AVX2 PVTI_INLINE void pvti_lookup_table_avx2_of(uint8_t *T, uint8_t *U, const int16_t *x, const int16_t *y,
                                                            const int16_t *across, int64_t pairs)
{
    for (int64_t k = 0; k < 256; k += 16, T += 64, U += 64) {
        __m256i t[4]; /* T and U for 8 entries, T and U for the next 8 */
        for (int i = 0; i < 4; i++) t[i] = _mm256_set1_epi32(1 << 15);
        for (int64_t p = 0; p < pairs; p++)
            for (int i = 0; i < 4; i++) {
                __m256i c = _mm256_loadu_si256((const __m256i *)(const void *)(across + p * 512 + k * 2 + i / 2 * 16));
                __m256i two = _mm256_set1_epi32(pvti_lookup_two((i % 2 ? y : x) + 2 * p));
                t[i] = _mm256_add_epi32(t[i], _mm256_madd_epi16(c, two));
            }
        for (int i = 0; i < 4; i++)
            _mm256_storeu_si256((__m256i *)(void *)((i % 2 ? U : T) + i / 2 * 32), _mm256_srai_epi32(t[i], 16));
    }
}
PVTI_TARGET_AVX2 static void pvti_lookup_table_avx2(uint8_t *T, uint8_t *U, const int16_t *x, const int16_t *y,
                                                    const int16_t *across, int64_t pairs)
{
    if (pairs == 4) pvti_lookup_table_avx2_of(T, U, x, y, across, 4);
    else pvti_lookup_table_avx2_of(T, U, x, y, across, pairs);
}

/* AVX-512 without VBMI. Tables in 16 bits: the upper words of the sums. */
PVTI_TARGET_AVX512 static void pvti_lookup_table_avx512(uint8_t *T, uint8_t *U, const int16_t *x, const int16_t *y,
                                                        const int16_t *across, int64_t pairs)
{
    static const uint16_t odd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                     33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    const __m512i pick = _mm512_loadu_si512(odd), half = _mm512_set1_epi32(1 << 15);
    for (int64_t k = 0; k < 512; k += 64) { /* bytes of a table */
        __m512i t0 = half, t1 = half, u0 = half, u1 = half;
        for (int64_t p = 0; p < pairs; p++) {
            __m512i xp = _mm512_set1_epi32(pvti_lookup_two(x + 2 * p));
            __m512i yp = _mm512_set1_epi32(pvti_lookup_two(y + 2 * p));
            __m512i c = _mm512_loadu_si512(across + p * 512 + k), d = _mm512_loadu_si512(across + p * 512 + k + 32);
            t0 = _mm512_add_epi32(t0, _mm512_madd_epi16(c, xp)), t1 = _mm512_add_epi32(t1, _mm512_madd_epi16(d, xp));
            u0 = _mm512_add_epi32(u0, _mm512_madd_epi16(c, yp)), u1 = _mm512_add_epi32(u1, _mm512_madd_epi16(d, yp));
        }
        _mm512_storeu_si512(T + k, _mm512_permutex2var_epi16(t0, pick, t1));
        _mm512_storeu_si512(U + k, _mm512_permutex2var_epi16(u0, pick, u1));
    }
}
PVTI_TARGET_AVX512 PVTI_INLINE __m512i pvti_lookup_32(const uint8_t *table, const uint8_t *codes)
{
    __m512i c = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)codes)), v[4];
    __mmask32 second = _mm512_test_epi16_mask(c, _mm512_set1_epi16(64));
    for (int i = 0; i < 4; i++, table += 128)
        v[i] = _mm512_permutex2var_epi16(_mm512_loadu_si512(table), c, _mm512_loadu_si512(table + 64));
    v[0] = _mm512_mask_mov_epi16(v[0], second, v[1]), v[2] = _mm512_mask_mov_epi16(v[2], second, v[3]);
    return _mm512_mask_mov_epi16(v[0], _mm512_test_epi16_mask(c, _mm512_set1_epi16(128)), v[2]);
}
PVTI_TARGET_AVX512 static void pvti_lookup_rows_avx512(float *y, const uint8_t *codes, int64_t apart, int64_t blocks,
                                                       const uint8_t *tables, int64_t n, float unit)
{
    const __m512i ones = _mm512_set1_epi16(1);
    const __m512i rows0 = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
    const __m512i rows32 = _mm512_setr_epi32(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (; blocks > 0; blocks--, codes += apart, y += PVTI_LOOKUP_ROWS)
        for (int h = 0; h < 2; h++) { /* rows 16·h … and 32 + 16·h …, by fours in turn */
            __m512i low = _mm512_setzero_si512(), high = low;
            float *to = y + 16 * h;
            for (int64_t t = 0; t < n; t += 2) {
                const uint8_t *at = codes + t * PVTI_LOOKUP_ROWS + 32 * h;
                __m512i a = pvti_lookup_32(tables + t * 512, at);
                __m512i b = pvti_lookup_32(tables + (t + 1) * 512, at + PVTI_LOOKUP_ROWS);
                low = _mm512_add_epi32(low, _mm512_madd_epi16(_mm512_unpacklo_epi16(a, b), ones));
                high = _mm512_add_epi32(high, _mm512_madd_epi16(_mm512_unpackhi_epi16(a, b), ones));
            }
            _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_set1_ps(unit),
                                                 _mm512_cvtepi32_ps(_mm512_permutex2var_epi32(low, rows0, high)),
                                                 _mm512_loadu_ps(to)));
            _mm512_storeu_ps(to + 32, _mm512_fmadd_ps(_mm512_set1_ps(unit),
                                                      _mm512_cvtepi32_ps(_mm512_permutex2var_epi32(low, rows32, high)),
                                                      _mm512_loadu_ps(to + 32)));
        }
}

#define PVTI_TARGET_VBMI \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")))
static bool pvti_has_vbmi(int isa) { return pvti_has_vnni(isa) && __builtin_cpu_supports("avx512vbmi"); }

/* The upper halves of the numbers in four vectors: 64 lower bytes and 64 upper ones. */
PVTI_TARGET_VBMI PVTI_INLINE void pvti_lookup_planes(uint8_t *to, const __m512i *sum)
{
    static const uint8_t bytes[64] = {
        2, 6, 10, 14, 18, 22, 26, 30, 34, 38, 42, 46, 50, 54, 58, 62, 66, 70, 74, 78, 82, 86,
        90, 94, 98, 102, 106, 110, 114, 118, 122, 126, 3, 7, 11, 15, 19, 23, 27, 31, 35, 39, 43, 47,
        51, 55, 59, 63, 67, 71, 75, 79, 83, 87, 91, 95, 99, 103, 107, 111, 115, 119, 123, 127};
    const __m512i pick = _mm512_loadu_si512(bytes);
    __m512i a = _mm512_permutex2var_epi8(sum[0], pick, sum[1]), b = _mm512_permutex2var_epi8(sum[2], pick, sum[3]);
    _mm512_storeu_si512(to, _mm512_shuffle_i64x2(a, b, 0x44));
    _mm512_storeu_si512(to + 256, _mm512_shuffle_i64x2(a, b, 0xee));
}
/* Tables for VPERMI2B: 256 lower bytes and then 256 upper ones. */
PVTI_TARGET_VBMI PVTI_INLINE void pvti_lookup_table_vbmi_of(uint8_t *T, uint8_t *U, const int16_t *x, const int16_t *y,
                                                            const int16_t *across, int64_t pairs)
{
    for (int64_t k = 0; k < 256; k += 64) {
        __m512i t[4], u[4];
        for (int i = 0; i < 4; i++) t[i] = u[i] = _mm512_set1_epi32(1 << 15);
        for (int64_t p = 0; p < pairs; p++)
            for (int i = 0; i < 4; i++) {
                __m512i c = _mm512_loadu_si512(across + p * 512 + k * 2 + 32 * i);
                PVTI_KEEP(c);
                t[i] = _mm512_dpwssd_epi32(t[i], c, _mm512_set1_epi32(pvti_lookup_two(x + 2 * p)));
                u[i] = _mm512_dpwssd_epi32(u[i], c, _mm512_set1_epi32(pvti_lookup_two(y + 2 * p)));
            }
        pvti_lookup_planes(T + k, t), pvti_lookup_planes(U + k, u);
    }
}
PVTI_TARGET_VBMI static void pvti_lookup_table_vbmi(uint8_t *T, uint8_t *U, const int16_t *x, const int16_t *y,
                                                    const int16_t *across, int64_t pairs)
{
    if (pairs == 4)
        pvti_lookup_table_vbmi_of(T, U, x, y, across, 4);
    else
        pvti_lookup_table_vbmi_of(T, U, x, y, across, pairs);
}

/* A plane of a table to registers, and a look-up of 64 of its bytes. */
PVTI_TARGET_VBMI PVTI_INLINE void pvti_lookup_load(__m512i *plane, const uint8_t *table)
{
    for (int i = 0; i < 4; i++) {
        plane[i] = _mm512_loadu_si512(table + 64 * i);
        PVTI_KEEP(plane[i]);
    }
}
PVTI_TARGET_VBMI PVTI_INLINE __m512i pvti_lookup_64(const __m512i *plane, __m512i codes)
{
    __m512i a = _mm512_permutex2var_epi8(plane[0], codes, plane[1]);
    __m512i b = _mm512_permutex2var_epi8(plane[2], codes, plane[3]);
    return _mm512_mask_mov_epi8(a, _mm512_movepi8_mask(codes), b);
}

/* Sixteen rows: y += unit · (lower + 256 · upper). */
PVTI_TARGET_VBMI PVTI_INLINE void pvti_lookup_add(float *y, __m256i lower, __m256i upper, float unit)
{
    __m512i sum = _mm512_add_epi32(_mm512_cvtepu16_epi32(lower),
                                   _mm512_slli_epi32(_mm512_cvtepi16_epi32(upper), 8));
    _mm512_storeu_ps(y, _mm512_fmadd_ps(_mm512_set1_ps(unit), _mm512_cvtepi32_ps(sum), _mm512_loadu_ps(y)));
}

/* `blocks` (1 or 2) row blocks, their codes `apart` bytes from one another. */
PVTI_TARGET_VBMI PVTI_INLINE void pvti_lookup_rows_vbmi_n(float *y, const uint8_t *codes, int64_t apart,
                                                          const uint8_t *tables, int64_t n, float unit, int blocks)
{
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i l0 = _mm512_setzero_si512(), l1 = l0, l2 = l0, l3 = l0, u0 = l0, u1 = l0, u2 = l0, u3 = l0;
    for (int64_t t = 0; t < n; t += 2, tables += 1024, codes += 2 * PVTI_LOOKUP_ROWS) {
        __m512i a0 = _mm512_loadu_si512(codes), b0 = _mm512_loadu_si512(codes + PVTI_LOOKUP_ROWS);
        __m512i a1 = a0, b1 = b0, a, b, A[4], B[4];
        if (blocks == 2)
            a1 = _mm512_loadu_si512(codes + apart), b1 = _mm512_loadu_si512(codes + apart + PVTI_LOOKUP_ROWS);
        pvti_lookup_load(A, tables), pvti_lookup_load(B, tables + 512);
        a = pvti_lookup_64(A, a0), b = pvti_lookup_64(B, b0);
        l0 = _mm512_add_epi16(l0, _mm512_maddubs_epi16(_mm512_unpacklo_epi8(a, b), ones));
        l1 = _mm512_add_epi16(l1, _mm512_maddubs_epi16(_mm512_unpackhi_epi8(a, b), ones));
        if (blocks == 2) {
            a = pvti_lookup_64(A, a1), b = pvti_lookup_64(B, b1);
            l2 = _mm512_add_epi16(l2, _mm512_maddubs_epi16(_mm512_unpacklo_epi8(a, b), ones));
            l3 = _mm512_add_epi16(l3, _mm512_maddubs_epi16(_mm512_unpackhi_epi8(a, b), ones));
        }
        pvti_lookup_load(A, tables + 256), pvti_lookup_load(B, tables + 768);
        a = pvti_lookup_64(A, a0), b = pvti_lookup_64(B, b0);
        u0 = _mm512_add_epi16(u0, _mm512_maddubs_epi16(ones, _mm512_unpacklo_epi8(a, b)));
        u1 = _mm512_add_epi16(u1, _mm512_maddubs_epi16(ones, _mm512_unpackhi_epi8(a, b)));
        if (blocks == 2) {
            a = pvti_lookup_64(A, a1), b = pvti_lookup_64(B, b1);
            u2 = _mm512_add_epi16(u2, _mm512_maddubs_epi16(ones, _mm512_unpacklo_epi8(a, b)));
            u3 = _mm512_add_epi16(u3, _mm512_maddubs_epi16(ones, _mm512_unpackhi_epi8(a, b)));
        }
    }
#define PVTI_ADD(at, l, u)                                                                                     \
    pvti_lookup_add(y + (at), _mm512_castsi512_si256(l), _mm512_castsi512_si256(u), unit);                     \
    pvti_lookup_add(y + (at) + 16, _mm512_extracti64x4_epi64(l, 1), _mm512_extracti64x4_epi64(u, 1), unit)
    PVTI_ADD(0, l0, u0);
    PVTI_ADD(32, l1, u1);
    if (blocks == 1) return;
    PVTI_ADD(64, l2, u2);
    PVTI_ADD(96, l3, u3);
#undef PVTI_ADD
}

PVTI_TARGET_VBMI static void pvti_lookup_rows_vbmi(float *y, const uint8_t *codes, int64_t apart, int64_t blocks,
                                                   const uint8_t *tables, int64_t n, float unit)
{
    for (; blocks >= 2; blocks -= 2, y += 2 * PVTI_LOOKUP_ROWS, codes += 2 * apart)
        pvti_lookup_rows_vbmi_n(y, codes, apart, tables, n, unit, 2);
    if (blocks) pvti_lookup_rows_vbmi_n(y, codes, apart, tables, n, unit, 1);
}
#endif
PVTI_KERNELS_END

typedef void pvti_lookup_table_fn(uint8_t *T, uint8_t *U, const int16_t *x, const int16_t *y, const int16_t *across,
                                  int64_t pairs);
typedef void pvti_lookup_rows_fn(float *y, const uint8_t *codes, int64_t apart, int64_t blocks, const uint8_t *tables,
                                 int64_t n, float unit);

/* By kernel set, and one more for VBMI: tables and look-ups that agree on how a table is laid out. */
typedef struct pvti_lookup_set {
    pvti_lookup_table_fn *table;
    pvti_lookup_rows_fn *rows;
    int64_t bytes; /* of a table */
} pvti_lookup_set;
static const pvti_lookup_set pvti_lookup_sets[] = {
    {pvti_lookup_table_scalar, pvti_lookup_rows_scalar, 1024},
#if PVTI_X86
    {pvti_lookup_table_avx2, pvti_lookup_rows_avx2, 1024},
    {pvti_lookup_table_avx512, pvti_lookup_rows_avx512, 512},
    {pvti_lookup_table_vbmi, pvti_lookup_rows_vbmi, 512},
#endif
};
static int pvti_lookup_best(int isa)
{
#if PVTI_X86
    if (pvti_has_vbmi(isa)) return PVTI_AVX512 + 1;
#endif
    return isa;
}

/* One weight's product; several with the same x share a parallel region, as q, k and v do. */
typedef struct pvti_lookup_product {
    const pvt_weight *weight;
    const int16_t *across;   /* what pvt_weight_prepare made */
    float unit;
    const uint8_t *codes;
    float *y, *sums;         /* sums: [parts][row blocks][64] */
    int64_t T, parts, per;   /* tables; parts of `per` of them, a multiple of the block */
    bool accumulate;
} pvti_lookup_product;

typedef struct pvti_lookup_job {
    pvt_ctx *ctx;
    const float *x;
    pvti_lookup_product products[PVTI_LOOKUP_PRODUCTS];
    pvti_lookup_set set;
} pvti_lookup_job;

/* The tables t0 … t1−1, each of set.bytes; returns their unit. Memory stands still meanwhile, so the codes
   that they are for are fetched. */
static float pvti_lookup_make(const pvti_lookup_job *job, const pvti_lookup_product *p, int64_t t0, int64_t t1,
                              uint8_t *tables)
{
    const uint8_t *codes = p->codes + pvti_lookup_codes_at(p->weight, t0, t1 - t0, 0);
    int64_t ahead = pvti_lookup_row_blocks(p->weight) * PVTI_LOOKUP_ROWS, line;
    int64_t M = p->weight->format.codebooks, ig = p->weight->format.in_group, full = p->weight->I / ig * M, t, m;
    int64_t i0 = t0 / M * ig, i1 = PVTI_MIN((t1 - 1) / M * ig + ig, p->weight->I), pairs = pvti_lookup_pairs(p->weight);
    int64_t bytes = job->set.bytes;
    uint8_t *unused = tables + PVTI_LOOKUP_BLOCK * bytes;
    int16_t *x = (int16_t *)(void *)(unused + bytes);
    float unit;
    PVTI_CALL(job->ctx, pvti_lookup_round)(x, &unit, job->x + i0, i1 - i0, ig);
    for (m = 0; m < M; m++)
        for (t = t0 + (m + M - t0 % M) % M; t < PVTI_MIN(t1, full); t += 2 * M) {
            bool two = t + M < PVTI_MIN(t1, full);
            uint8_t *to = tables + (t - t0) * bytes;
            const int16_t *xt = x + (t / M - t0 / M) * 2 * pairs;
            for (line = 0; line < (two ? 2 : 1) * ahead; line += 64) __builtin_prefetch(codes + line, 0, 2);
            codes += line;
            job->set.table(to, two ? to + M * bytes : unused, xt, two ? xt + 2 * pairs : xt,
                           p->across + m * PVTI_LOOKUP_CODEBOOK(pairs), pairs);
        }
    if (t1 > full) memset(tables + (full - t0) * bytes, 0, (size_t)((t1 - full) * bytes));
    return (unit * 256) * (p->unit * 256); /* the product of two small units would lose bits */
}

/* One part: sums of all rows over some blocks of tables, which are made, used and forgotten one by one. */
static void pvti_lookup_task(void *arg, int64_t i, int worker)
{
    const pvti_lookup_job *job = (const pvti_lookup_job *)arg;
    const pvti_lookup_product *p = job->products;
    uint8_t *tables = (uint8_t *)pvti_scratch(job->ctx, worker);
    int64_t blocks, t, end;
    float *sums;
    while (i >= p->parts) i -= p++->parts;
    /* the codebooks come from memory as streams too short for the hardware's prefetch: 4 % of a token */
    for (const char *at = (const char *)p->across; at < (const char *)p->codes; at += 64) __builtin_prefetch(at);
    blocks = pvti_lookup_row_blocks(p->weight), sums = p->sums + i * blocks * PVTI_LOOKUP_ROWS;
    memset(sums, 0, (size_t)(blocks * PVTI_LOOKUP_ROWS) * sizeof *sums);
    end = PVTI_MIN(p->T, (i + 1) * p->per);
    for (t = i * p->per; t < end; t += PVTI_LOOKUP_BLOCK) {
        int64_t n = PVTI_MIN(PVTI_LOOKUP_BLOCK, p->T - t);
        float unit = pvti_lookup_make(job, p, t, t + n, tables);
        job->set.rows(sums, p->codes + pvti_lookup_codes_at(p->weight, t, n, 0), n * PVTI_LOOKUP_ROWS, blocks, tables,
                      n, unit);
    }
}

/* y[r] = scales[r] · Σ_c sums[c][r], c in order, or += */
PVTI_KERNELS_BEGIN
PVTI_INLINE void pvti_lookup_reduce_body(float *__restrict y, const float *__restrict sums, int64_t apart, int64_t parts,
                                         const float *__restrict scales, int64_t n, bool accumulate)
{
    for (int64_t r = 0; r < n; r += 16) {
        float sum[16];
        int64_t some = PVTI_MIN(16, n - r);
        for (int l = 0; l < 16; l++) sum[l] = sums[r + l]; /* whole blocks of rows: there are always 16 */
        for (int64_t c = 1; c < parts; c++)
            for (int l = 0; l < 16; l++) sum[l] += sums[c * apart + r + l];
        for (int64_t l = 0; l < some; l++) y[r + l] = (accumulate ? y[r + l] : 0) + scales[r + l] * sum[l];
    }
}
PVTI_KERNEL(pvti_lookup_reduce,
            (float *y, const float *sums, int64_t apart, int64_t parts, const float *scales, int64_t n, bool accumulate),
            (y, sums, apart, parts, scales, n, accumulate))
PVTI_KERNELS_END
#define PVTI_LOOKUP_REDUCE 2048
static void pvti_lookup_reduce_task(void *arg, int64_t i, int worker)
{
    const pvti_lookup_product *p = (const pvti_lookup_product *)arg;
    int64_t from = i * PVTI_LOOKUP_REDUCE;
    (void)worker;
    PVTI_CALL(p->weight->ctx, pvti_lookup_reduce)
    (p->y + from, p->sums + from, pvti_lookup_row_blocks(p->weight) * PVTI_LOOKUP_ROWS, p->parts,
     p->weight->scales + from, PVTI_MIN(PVTI_LOOKUP_REDUCE, p->weight->O - from), p->accumulate);
}

/* y[i] = W[i]·x by look-ups; false where a weight is not prepared, where the memory for tables is too small
   for all or taken (inside a task). */
static bool pvti_lookup_forward(pvt_ctx *ctx, pvt_real *const *y, const pvt_real *x, const pvt_weight *const *weights,
                                int n, bool accumulate)
{
    pvti_lookup_job job;
    int64_t tasks = 0, room = PVTI_GEMM_SHARED_BYTES, bytes;
    int i;
    if (!ctx || ctx->in_parallel || n > PVTI_LOOKUP_PRODUCTS) return false;
    for (i = 0; i < n; i++) {
        pvti_lookup_product *p = &job.products[i];
        const pvt_weight *w = weights[i];
        if (!w->lookup || w->format.bits > 8) return false;
        p->weight = w, p->y = y[i], p->accumulate = accumulate;
        p->T = pvti_lookup_tables(w);
        p->per = pvti_ceil_div(pvti_ceil_div(p->T, PVTI_LOOKUP_BLOCK), PVTI_LOOKUP_PARTS) * PVTI_LOOKUP_BLOCK;
        p->parts = pvti_ceil_div(p->T, p->per);
        p->unit = *(const float *)w->lookup, p->across = (const int16_t *)w->lookup + 32;
        p->codes = (const uint8_t *)(p->across + w->format.codebooks * PVTI_LOOKUP_CODEBOOK(pvti_lookup_pairs(w)));
        bytes = p->parts * pvti_lookup_row_blocks(w) * PVTI_LOOKUP_ROWS * (int64_t)sizeof *p->sums;
        if (bytes > room) return false;
        room -= bytes, p->sums = (float *)(void *)(ctx->gemm_shared + room);
        tasks += p->parts;
    }
    job.ctx = ctx, job.x = x, job.set = pvti_lookup_sets[pvti_lookup_best(ctx->isa)];
    pvti_parallel(ctx, tasks, pvti_lookup_task, &job);
    for (i = 0; i < n; i++)
        pvti_parallel(ctx, pvti_ceil_div(weights[i]->O, PVTI_LOOKUP_REDUCE), pvti_lookup_reduce_task, &job.products[i]);
    return true;
}

/*  Codebooks of more than 256 entries: a table would cost more than it saves. A group is one read of 16 bytes
    from a codebook in fp16 and one FMA of eight lanes: lane l of sixteen adds elements l, l+16, …, codebook
    after codebook. Limited by where the codebook lies: 65,536 entries are 1 MiB, as large as an L2. */
typedef struct pvti_gather_job {
    pvt_ctx *ctx;
    const pvt_weight *weight;
    const float *x;
    float *y;
    bool accumulate;
} pvti_gather_job;

#define PVTI_GATHER_ROWS 4
#define PVTI_GATHER_TASK 64
PVTI_KERNELS_BEGIN
/* lanes [16] of one row */
static void pvti_gather_row_scalar(float *lanes, const uint16_t *codes, const pvt_weight *w, const float *x)
{
    const uint16_t *halves = (const uint16_t *)w->lookup;
    int64_t M = w->format.codebooks, groups = w->I / 8;
    memset(lanes, 0, 16 * sizeof *lanes);
    for (int64_t j = 0; j < groups; j++)
        for (int64_t m = 0; m < M; m++) {
            const uint16_t *entry = halves + ((m << w->format.bits) + codes[j * M + m]) * 8;
            float *to = lanes + j % 2 * 8;
            for (int l = 0; l < 8; l++) to[l] = pvti_fma(x[j * 8 + l], pvti_f16_to_f32(entry[l]), to[l]);
        }
}
#if PVTI_X86
/* lanes of four rows, whose codes begin at c[0 … 3] */
PVTI_TARGET_AVX2 PVTI_INLINE void pvti_gather_rows_m(float *lanes, const uint16_t *const *c, const pvt_weight *w,
                                                     const float *x, int64_t M)
{
    const uint16_t *halves = (const uint16_t *)w->lookup;
    int64_t groups = w->I / 8, j;
    __m256 sum[2][PVTI_GATHER_ROWS];
    for (int r = 0; r < PVTI_GATHER_ROWS; r++) sum[0][r] = sum[1][r] = _mm256_setzero_ps();
#define PVTI_GROUP(half, j)                                                                                        \
    for (int r = 0; r < PVTI_GATHER_ROWS; r++)                                                                     \
        for (int64_t m = 0; m < M; m++) {                                                                          \
            const uint16_t *entry = halves + ((m << w->format.bits) + c[r][(j) * M + m]) * 8;                      \
            __m256 e = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)entry));                     \
            sum[half][r] = _mm256_fmadd_ps(_mm256_loadu_ps(x + (j) * 8), e, sum[half][r]);                         \
        }
    for (j = 0; j + 2 <= groups; j += 2) {
        PVTI_GROUP(0, j)
        PVTI_GROUP(1, j + 1)
    }
    if (j < groups) PVTI_GROUP(0, j)
#undef PVTI_GROUP
    for (int r = 0; r < PVTI_GATHER_ROWS; r++, lanes += 16)
        _mm256_storeu_ps(lanes, sum[0][r]), _mm256_storeu_ps(lanes + 8, sum[1][r]);
}
PVTI_TARGET_AVX2 static void pvti_gather_rows_avx2(float *lanes, const uint16_t *const *c, const pvt_weight *w,
                                                   const float *x)
{
    if (w->format.codebooks == 1)
        pvti_gather_rows_m(lanes, c, w, x, 1);
    else
        pvti_gather_rows_m(lanes, c, w, x, w->format.codebooks);
}
#endif
PVTI_KERNELS_END

static void pvti_gather_task(void *arg, int64_t i, int worker)
{
    const pvti_gather_job *job = (const pvti_gather_job *)arg;
    const pvt_weight *w = job->weight;
    int64_t r0 = i * PVTI_GATHER_TASK, r1 = PVTI_MIN(r0 + PVTI_GATHER_TASK, w->O), r, k;
    int64_t per_row = w->I / 8 * w->format.codebooks;
    float lanes[PVTI_GATHER_ROWS * 16];
    (void)worker;
    for (r = r0; r < r1; r += PVTI_GATHER_ROWS) {
        const uint16_t *codes[PVTI_GATHER_ROWS];
        int64_t n = PVTI_MIN(PVTI_GATHER_ROWS, r1 - r);
        for (k = 0; k < PVTI_GATHER_ROWS; k++)
            codes[k] = (const uint16_t *)w->codes + (r + PVTI_MIN(k, n - 1)) * per_row;
#if PVTI_X86
        if (job->ctx->isa >= PVTI_AVX2)
            pvti_gather_rows_avx2(lanes, codes, w, job->x);
        else
#endif
            for (k = 0; k < n; k++) pvti_gather_row_scalar(lanes + k * 16, codes[k], w, job->x);
        for (k = 0; k < n; k++) {
            float y = w->scales[r + k] * pvti_lanes_sum(lanes + k * 16);
            job->y[r + k] = job->accumulate ? job->y[r + k] + y : y;
        }
    }
}

static bool pvti_gather_forward(pvt_ctx *ctx, pvt_real *y, const pvt_real *x, const pvt_weight *weight, bool accumulate)
{
    pvti_gather_job job;
    if (!ctx || ctx->in_parallel || !weight->lookup || weight->format.bits <= 8) return false;
    job.ctx = ctx, job.weight = weight, job.x = x, job.y = y, job.accumulate = accumulate;
    pvti_parallel(ctx, pvti_ceil_div(weight->O, PVTI_GATHER_TASK), pvti_gather_task, &job);
    return true;
}
#endif

// >>search
/*  Codes for given values. Two metrics, one idea: start from the previous codes, visit the
    codebooks one by one, take the visited codebook's vector out, score all of its entries at
    once, keep the best `beam` hypotheses. Orders of visits are the caller's (random in the
    library, recorded in the tests); ties go to the lowest index.

    Why not search all codebooks jointly: K^M candidates. Why not more passes: the next PV step
    or calibration epoch is one. */

/* ---- plain squared error, for chosen groups: the V step (2405.14852, section 3.3) ---- */

typedef struct pvti_l2_search {
    pvt_ctx *ctx;
    const pvt_weight *weight;  /* previous codes, current values */
    const pvt_real *target;    /* [O, I] */
    const int64_t *order;      /* of the codebooks, [M] */
    const int64_t *groups;     /* which groups, [n]; NULL: 0 … n−1 */
    int64_t n, batch;
    int beam;
    bool force;                /* the result must differ from the previous codes */
    pvti_search_tables tables;
    uint16_t *codes;           /* out: [n, M] */
    float *change;             /* out: ‖new − previous‖² of each group, in weight space; [n] or NULL */
} pvti_l2_search;

PVTI_INLINE pvt_real pvti_reciprocal_scale(pvt_real s) { return s != 0 ? 1 / s : 0; }

/* v = target/s − Σ_m C_m[code_m]: what the codes miss, in units of the scale. */
static void pvti_l2_residual(pvt_real *v, uint16_t *codes, const pvti_l2_search *s, int64_t group)
{
    const pvt_weight *w = s->weight;
    int64_t ig = w->format.in_group, og = w->format.out_group, GI = w->I / ig, D = s->tables.D;
    int64_t go = group / GI, j = group % GI, r, a, m;
    pvt_real inverse = pvti_reciprocal_scale(w->scales[go]);
    for (r = 0; r < og; r++)
        for (a = 0; a < ig; a++) v[r * ig + a] = s->target[(go * og + r) * w->I + j * ig + a] * inverse;
    for (m = 0; m < s->tables.M; m++) {
        const pvt_real *entry;
        codes[m] = (uint16_t)pvti_code_get(w, group * s->tables.M + m);
        entry = w->codebooks + (m * s->tables.K + codes[m]) * D;
        for (a = 0; a < D; a++) v[a] -= entry[a];
    }
}

/* One hypothesis at a time: all groups of a batch go through the kernel together. */
static void pvti_l2_greedy(const pvti_l2_search *s, int64_t from, int64_t n, pvt_real *memory)
{
    const pvti_search_tables *t = &s->tables;
    int64_t D = t->D, i, a, step;
    pvt_real *v = memory, *x = v + n * D;
    int32_t *best = (int32_t *)(void *)(x + n * D);
    for (i = 0; i < n; i++)
        pvti_l2_residual(v + i * D, s->codes + (from + i) * t->M, s,
                         s->groups ? s->groups[from + i] : from + i);
    for (step = 0; step < t->M; step++) {
        int64_t m = s->order[step];
        const pvt_real *book = s->weight->codebooks + m * t->K * D;
        for (i = 0; i < n; i++) {
            const pvt_real *entry = book + s->codes[(from + i) * t->M + m] * D;
            for (a = 0; a < D; a++) v[i * D + a] += entry[a], x[i * D + a] = -2 * v[i * D + a];
        }
        PVTI_CALL_WIDE(s->ctx, pvti_nearest)(best, x, n, t->table + m * D * t->padded, t->norm + m * t->padded, D,
                                        t->padded);
        for (i = 0; i < n; i++) {
            const pvt_real *entry = book + best[i] * D;
            for (a = 0; a < D; a++) v[i * D + a] -= entry[a];
            s->codes[(from + i) * t->M + m] = (uint16_t)best[i];
        }
    }
}

/* Several hypotheses for one group: v [2][beam, D], codes [2][beam, M], scores [padded]. */
static void pvti_l2_beam(const pvti_l2_search *s, int64_t at, pvt_real *memory)
{
    const pvti_search_tables *t = &s->tables;
    int64_t D = t->D, M = t->M, B = s->beam + 1, n = 1, step, h, k, a;
    pvt_real *v = memory, *next = v + B * D, *x = next + B * D, *score = x + D;
    uint16_t codes[2][PVTI_MAX_BEAM + 1][16], previous[16];
    pvti_l2_residual(v, codes[0][0], s, s->groups ? s->groups[at] : at);
    memcpy(previous, codes[0][0], sizeof previous);
    for (step = 0; step < M; step++) {
        pvti_candidate list[PVTI_MAX_BEAM + 1];
        int64_t m = s->order[step], keep = step + 1 < M ? s->beam : s->force ? 2 : 1, found = 0;
        const pvt_real *book = s->weight->codebooks + m * t->K * D;
        int now = (int)(step % 2), then = 1 - now;
        for (h = 0; h < n; h++) {
            const pvt_real *entry = book + codes[now][h][m] * D;
            pvt_real base = 0;
            for (a = 0; a < D; a++) {
                pvt_real *vh = v + h * D;
                vh[a] += entry[a], x[a] = -2 * vh[a], base = pvti_fma(vh[a], vh[a], base);
            }
            PVTI_CALL_WIDE(s->ctx, pvti_scores)(score, x, t->table + m * D * t->padded, t->norm + m * t->padded, D,
                                           t->padded);
            for (k = 0; k < t->K; k++) found = pvti_candidate_insert(list, found, keep, score[k] + base, h, k);
        }
        for (h = 0; h < found; h++) {
            const pvt_real *from = v + list[h].hypothesis * D, *entry = book + list[h].entry * D;
            for (a = 0; a < D; a++) next[h * D + a] = from[a] - entry[a];
            memcpy(codes[then][h], codes[now][list[h].hypothesis], sizeof previous);
            codes[then][h][m] = (uint16_t)list[h].entry;
        }
        n = found;
        { pvt_real *swap = v; v = next; next = swap; }
    }
    h = s->force && n > 1 && memcmp(codes[M % 2][0], previous, (size_t)M * sizeof *previous) == 0;
    memcpy(s->codes + at * M, codes[M % 2][h], (size_t)M * sizeof *previous);
}

static void pvti_l2_change(const pvti_l2_search *s, int64_t at)
{
    const pvt_weight *w = s->weight;
    int64_t D = s->tables.D, M = s->tables.M, K = s->tables.K, group = s->groups ? s->groups[at] : at, a, m;
    double sum = 0, scale = (double)w->scales[group / (w->I / w->format.in_group)];
    bool same = true;
    for (m = 0; m < M; m++) same = same && s->codes[at * M + m] == pvti_code_get(w, group * M + m);
    for (a = 0; a < D && !same; a++) {
        double d = 0;
        for (m = 0; m < M; m++)
            d += (double)w->codebooks[(m * K + s->codes[at * M + m]) * D + a] -
                 (double)w->codebooks[(m * K + pvti_code_get(w, group * M + m)) * D + a];
        sum += d * d;
    }
    s->change[at] = (float)(sum * scale * scale);
}

static void pvti_l2_task(void *arg, int64_t i, int worker)
{
    const pvti_l2_search *s = (const pvti_l2_search *)arg;
    int64_t from = i * s->batch, to = PVTI_MIN(s->n, from + s->batch), at;
    pvt_real *memory = (pvt_real *)pvti_scratch(s->ctx, worker);
    if (s->beam == 1 && !s->force)
        pvti_l2_greedy(s, from, to - from, memory);
    else
        for (at = from; at < to; at++) pvti_l2_beam(s, at, memory);
    for (at = from; at < to && s->change; at++) pvti_l2_change(s, at);
}

static void pvti_l2_run(pvti_l2_search *s)
{
    s->batch = 64; /* 64 × (2 D + 1) reals of scratch: at most 130 KiB at D = 256 */
    pvti_parallel(s->ctx, (s->n + s->batch - 1) / s->batch, pvti_l2_task, s);
}

/* ---- the metric H = XᵀX: calibration ----
   Loss of one out group: ⟨R H, R⟩, R = W − Ŵ its rows. Input groups are visited in turn, with
   the beam kept over the whole visit. Taking codebook m's vector c out of group j leaves R′;
   with b = (R′H)_j, choosing entry k gives
       loss(R′ − s·c_k) = loss(R′) − 2 s·⟨c_k, b⟩ + s²·⟨c_k H_jj, c_k⟩,
   so after division by s² all entries are scored by pvti_nearest with x = −2b/s and bias
   ⟨c_k H_jj, c_k⟩. A change δ in group j changes R H by −δ·H_j: at once inside a block of about
   128 columns, and for all later columns by one GEMM per block, as GPTQ (2210.17323) does; that
   turns the I²·O updates into matrix products. */

enum { PVTI_XTX_BLOCK = 128 };

typedef struct pvti_xtx_search {
    pvt_ctx *ctx;
    pvt_weight *weight;
    const int64_t *order;       /* of the input groups, [GI] */
    const int64_t *book_orders; /* for the t-th visited group, [GI, M] */
    int beam;
    const pvt_real *H;          /* [I, I], columns and rows in the order of visits */
    pvt_real *RH, *RH_next;     /* [GO·beam·og, I], likewise; RH_next only for beam > 1 */
    pvt_real *delta;            /* −δ of the current block, [GO·beam·og, width] */
    pvt_real *bias;             /* [groups of the block, M, padded] */
    uint16_t *codes, *codes_next; /* [GO·beam, GI, M], in the order of visits */
    double *loss;               /* [GO·beam], relative to the start */
    int64_t *hypotheses;        /* how many each out group has now, [GO] */
    int64_t *ancestor;          /* the hypothesis at the block's start, [GO·beam] */
    pvti_search_tables tables;
    int64_t p0, p1, width;      /* the block: visited groups p0 … p1−1, their columns */
    int64_t chunk;              /* out groups per task */
} pvti_xtx_search;

PVTI_KERNELS_BEGIN
/* bias[k] = Σ_r ⟨c_kr H, c_kr⟩ over the og rows of an entry; table [og·ig, K], H [ig, ig], rows ld apart. */
PVTI_INLINE void pvti_metric_norms_body(pvt_real *__restrict bias, const pvt_real *__restrict table,
                                        const pvt_real *H, int64_t ld, int64_t og, int64_t ig, int64_t K)
{
    int64_t k, r, a, b;
    int l;
    for (k = 0; k < K; k += 16) {
        pvt_real sum[16] = {0};
        for (r = 0; r < og; r++)
            for (a = 0; a < ig; a++) {
                const pvt_real *c = table + r * ig * K + k;
                pvt_real row[16] = {0};
                for (b = 0; b < ig; b++)
                    for (l = 0; l < 16; l++) row[l] = pvti_fma(H[a * ld + b], c[b * K + l], row[l]);
                for (l = 0; l < 16; l++) sum[l] = pvti_fma(row[l], c[a * K + l], sum[l]);
            }
        for (l = 0; l < 16; l++) bias[k + l] = sum[l];
    }
}
PVTI_KERNEL(pvti_metric_norms, (pvt_real *bias, const pvt_real *table, const pvt_real *H, int64_t ld,
                                int64_t og, int64_t ig, int64_t K),
            (bias, table, H, ld, og, ig, K))
PVTI_KERNELS_END

static void pvti_xtx_bias_task(void *arg, int64_t i, int worker)
{
    const pvti_xtx_search *s = (const pvti_xtx_search *)arg;
    const pvt_weight *w = s->weight;
    const pvti_search_tables *t = &s->tables;
    int64_t p = s->p0 + i / t->M, m = i % t->M, ig = w->format.in_group, k;
    (void)worker;
    PVTI_CALL(s->ctx, pvti_metric_norms)(s->bias + i * t->padded, t->table + m * t->D * t->padded,
                                         s->H + p * ig * w->I + p * ig, w->I,
                                         w->format.out_group, ig, t->padded);
    for (k = t->K; k < t->padded; k++) s->bias[i * t->padded + k] = (pvt_real)INFINITY;
}

/* A hypothesis of one out group inside the block. */
typedef struct pvti_xtx_item {
    pvt_real *rh;    /* [og, width] */
    pvt_real *delta; /* [og, width] */
    uint16_t *codes; /* [groups of the block, M] */
    double loss;
    int64_t ancestor;
} pvti_xtx_item;

PVTI_KERNELS_BEGIN
/* y[0 … n) += Σ_a u[a] · H[a][0 … n), a ascending. */
PVTI_INLINE void pvti_axpys_body(pvt_real *__restrict y, const pvt_real *u, const pvt_real *__restrict H,
                                 int64_t ld, int64_t rows, int64_t n)
{
    int64_t a, c;
    for (a = 0; a < rows; a++)
        for (c = 0; c < n; c++) y[c] = pvti_fma(u[a], H[a * ld + c], y[c]);
}
PVTI_KERNEL(pvti_axpys, (pvt_real *y, const pvt_real *u, const pvt_real *H, int64_t ld, int64_t rows,
                         int64_t n),
            (y, u, H, ld, rows, n))
PVTI_KERNELS_END

/* x = −2b/s for codebook m of visited group p, b = (R H)_p + s·c_old·H_pp. */
static void pvti_xtx_query(pvt_real *x, const pvti_xtx_search *s, const pvti_xtx_item *item, int64_t go,
                           int64_t p, int64_t m)
{
    const pvt_weight *w = s->weight;
    int64_t ig = w->format.in_group, og = w->format.out_group, at = (p - s->p0) * ig, r, a;
    pvt_real scale = w->scales[go], inverse = pvti_reciprocal_scale(scale), u[64];
    const pvt_real *entry =
        w->codebooks + (m * s->tables.K + item->codes[(p - s->p0) * s->tables.M + m]) * s->tables.D;
    for (r = 0; r < og; r++) {
        pvt_real *b = x + r * ig;
        memcpy(b, item->rh + r * s->width + at, (size_t)ig * sizeof *b);
        for (a = 0; a < ig; a++) u[a] = scale * entry[r * ig + a];
        PVTI_CALL(s->ctx, pvti_axpys)(b, u, s->H + p * ig * w->I + p * ig, w->I, ig, ig);
        for (a = 0; a < ig; a++) b[a] *= -2 * inverse;
    }
}

/* Group p of the item takes entry k of codebook m: R H of the group itself follows at once. */
static void pvti_xtx_set(const pvti_xtx_search *s, pvti_xtx_item *item, int64_t go, int64_t p, int64_t m,
                         int64_t k)
{
    const pvt_weight *w = s->weight;
    int64_t ig = w->format.in_group, og = w->format.out_group, D = s->tables.D, at = (p - s->p0) * ig, r, a;
    uint16_t *code = item->codes + (p - s->p0) * s->tables.M + m;
    const pvt_real *old = w->codebooks + (m * s->tables.K + *code) * D,
                   *entry = w->codebooks + (m * s->tables.K + k) * D;
    if (*code == k) return;
    *code = (uint16_t)k;
    for (r = 0; r < og; r++) {
        pvt_real u[64];
        for (a = 0; a < ig; a++) {
            u[a] = w->scales[go] * (old[r * ig + a] - entry[r * ig + a]);
            item->delta[r * s->width + at + a] += u[a];
        }
        PVTI_CALL(s->ctx, pvti_axpys)(item->rh + r * s->width + at, u, s->H + p * ig * w->I + p * ig, w->I, ig,
                                      ig);
    }
}

/* Once group p is settled: the later columns of the block. */
static void pvti_xtx_spread(const pvti_xtx_search *s, pvti_xtx_item *item, int64_t p)
{
    const pvt_weight *w = s->weight;
    int64_t ig = w->format.in_group, at = (p - s->p0) * ig, r;
    for (r = 0; r < w->format.out_group; r++)
        PVTI_CALL(s->ctx, pvti_axpys)(item->rh + r * s->width + at + ig, item->delta + r * s->width + at,
                                      s->H + p * ig * w->I + (p + 1) * ig, w->I, ig, s->width - at - ig);
}

static void pvti_xtx_item_copy(pvti_xtx_item *to, const pvti_xtx_item *from, const pvti_xtx_search *s)
{
    size_t reals = (size_t)(s->weight->format.out_group * s->width) * sizeof(pvt_real);
    memcpy(to->rh, from->rh, reals);
    memcpy(to->delta, from->delta, reals);
    memcpy(to->codes, from->codes, (size_t)((s->p1 - s->p0) * s->tables.M) * sizeof *to->codes);
    to->loss = from->loss, to->ancestor = from->ancestor;
}

/* One codebook of one group for the hypotheses of one out group. Loss of entry k relative to
   the present one: s²·(score_k − score_now). */
static int64_t pvti_xtx_step(const pvti_xtx_search *s, pvti_xtx_item *items, pvti_xtx_item *next, int64_t n,
                             int64_t go, int64_t p, int64_t m, pvt_real *memory)
{
    const pvti_search_tables *t = &s->tables;
    const pvt_real *bias = s->bias + ((p - s->p0) * t->M + m) * t->padded;
    pvt_real *x = memory, *score = x + 256, scale = s->weight->scales[go];
    pvti_candidate list[PVTI_MAX_BEAM];
    double base = n ? items[0].loss : 0;
    int64_t found = 0, h, k;
    for (h = 0; h < n; h++) {
        pvt_real now, offset = (pvt_real)(items[h].loss - base);
        pvti_xtx_query(x, s, &items[h], go, p, m);
        PVTI_CALL_WIDE(s->ctx, pvti_scores)(score, x, t->table + m * t->D * t->padded, bias, t->D, t->padded);
        now = score[items[h].codes[(p - s->p0) * t->M + m]];
        for (k = 0; k < t->K; k++)
            found =
                pvti_candidate_insert(list, found, s->beam, offset + scale * scale * (score[k] - now), h, k);
    }
    for (h = 0; h < found; h++) {
        pvti_xtx_item_copy(&next[h], &items[list[h].hypothesis], s);
        next[h].loss = base + (double)list[h].loss;
        pvti_xtx_set(s, &next[h], go, p, m, list[h].entry);
    }
    for (h = 0; h < found; h++) pvti_xtx_item_copy(&items[h], &next[h], s);
    return found;
}

/* A block for one chunk of out groups. */
static void pvti_xtx_task(void *arg, int64_t task, int worker)
{
    const pvti_xtx_search *s = (const pvti_xtx_search *)arg;
    const pvt_weight *w = s->weight;
    const pvti_search_tables *t = &s->tables;
    int64_t og = w->format.out_group, ig = w->format.in_group, B = s->beam, GI = w->I / ig,
            blocks = s->p1 - s->p0;
    int64_t GO = w->O / og, go0 = task * s->chunk, n = PVTI_MIN(GO, go0 + s->chunk) - go0, i, h, p, r, step;
    int64_t slots = n * B + (B > 1 ? B : 0); /* the last B: room to rearrange one out group's beam */
    char *memory = (char *)pvti_scratch(s->ctx, worker);
    pvti_xtx_item *items = (pvti_xtx_item *)(void *)memory;
    pvt_real *reals = (pvt_real *)(void *)(items + slots);
    pvt_real *x = reals + 2 * slots * og * s->width;
    int32_t *best = (int32_t *)(void *)(x + (B > 1 ? 256 + t->padded : n * t->D));
    uint16_t *codes = (uint16_t *)(void *)(best + n);
    for (i = 0; i < slots; i++) {
        items[i].rh = reals + 2 * i * og * s->width, items[i].delta = items[i].rh + og * s->width;
        items[i].codes = codes + i * blocks * t->M;
    }
    for (i = 0; i < n; i++) /* in */
        for (h = 0; h < s->hypotheses[go0 + i]; h++) {
            pvti_xtx_item *item = &items[i * B + h];
            int64_t at = (go0 + i) * B + h;
            for (r = 0; r < og; r++)
                memcpy(item->rh + r * s->width, s->RH + (at * og + r) * w->I + s->p0 * ig,
                       (size_t)s->width * sizeof *x);
            memset(item->delta, 0, (size_t)(og * s->width) * sizeof *x);
            memcpy(item->codes, s->codes + (at * GI + s->p0) * t->M, (size_t)(blocks * t->M) * sizeof *codes);
            item->loss = s->loss[at], item->ancestor = h;
        }
    for (p = s->p0; p < s->p1; p++) {
        for (step = 0; step < t->M; step++) {
            int64_t m = s->book_orders[p * t->M + step];
            if (B > 1) {
                for (i = 0; i < n; i++)
                    s->hypotheses[go0 + i] = pvti_xtx_step(s, items + i * B, items + n * B,
                                                           s->hypotheses[go0 + i], go0 + i, p, m, x);
                continue;
            }
            for (i = 0; i < n; i++) pvti_xtx_query(x + i * t->D, s, &items[i], go0 + i, p, m);
            PVTI_CALL_WIDE(s->ctx, pvti_nearest)(best, x, n, t->table + m * t->D * t->padded,
                                            s->bias + ((p - s->p0) * t->M + m) * t->padded, t->D, t->padded);
            for (i = 0; i < n; i++)
                if (w->scales[go0 + i] != 0) pvti_xtx_set(s, &items[i], go0 + i, p, m, best[i]);
        }
        for (i = 0; i < n; i++)
            for (h = 0; h < s->hypotheses[go0 + i]; h++) pvti_xtx_spread(s, &items[i * B + h], p);
    }
    for (i = 0; i < n; i++) /* out */
        for (h = 0; h < B; h++) {
            const pvti_xtx_item *item = &items[i * B + h];
            int64_t at = (go0 + i) * B + h, from = h < s->hypotheses[go0 + i] ? item->ancestor : 0;
            pvt_real *delta = s->delta + at * og * s->width;
            s->ancestor[at] = from;
            memset(delta, 0, (size_t)(og * s->width) * sizeof *delta);
            if (h >= s->hypotheses[go0 + i]) continue;
            memcpy(delta, item->delta, (size_t)(og * s->width) * sizeof *delta);
            memcpy(s->codes_next + at * GI * t->M, s->codes + ((go0 + i) * B + from) * GI * t->M,
                   (size_t)(s->p0 * t->M) * sizeof *codes);
            memcpy(s->codes_next + (at * GI + s->p0) * t->M, item->codes,
                   (size_t)(blocks * t->M) * sizeof *codes);
            memcpy(s->codes_next + (at * GI + s->p1) * t->M,
                   s->codes + ((go0 + i) * B + from) * GI * t->M + s->p1 * t->M,
                   (size_t)((GI - s->p1) * t->M) * sizeof *codes);
            s->loss[at] = item->loss;
        }
}

typedef struct pvti_permute_args {
    pvt_real *out;
    const pvt_real *in;
    const int64_t *order;
    int64_t ig, I, copies; /* row i of `in` goes to row i·copies of `out` */
    bool rows;             /* permute the rows as well: H */
    const pvti_xtx_search *search;
} pvti_permute_args;

/* Columns into the order of visits. */
static void pvti_permute_task(void *arg, int64_t i, int worker)
{
    const pvti_permute_args *a = (const pvti_permute_args *)arg;
    int64_t from = a->rows ? a->order[i / a->ig] * a->ig + i % a->ig : i, to, p;
    (void)worker;
    /* row (go, r) of R H belongs to hypothesis 0 of its out group */
    to = a->copies > 1
             ? (i / a->search->weight->format.out_group * a->copies) * a->search->weight->format.out_group +
                   i % a->search->weight->format.out_group
             : i;
    for (p = 0; p < a->I / a->ig; p++)
        memcpy(a->out + to * a->I + p * a->ig, a->in + from * a->I + a->order[p] * a->ig,
               (size_t)a->ig * sizeof *a->out);
}

/* Later columns of R H after a block: gathered from each hypothesis' ancestor. */
static void pvti_xtx_gather_task(void *arg, int64_t i, int worker)
{
    const pvti_xtx_search *s = (const pvti_xtx_search *)arg;
    int64_t og = s->weight->format.out_group, I = s->weight->I, B = s->beam,
            at = s->p1 * s->weight->format.in_group, r;
    int64_t from = i / B * B + s->ancestor[i];
    (void)worker;
    for (r = 0; r < og; r++)
        memcpy(s->RH_next + (i * og + r) * I + at, s->RH + (from * og + r) * I + at,
               (size_t)(I - at) * sizeof *s->RH);
}

static void pvti_xtx_start_codes(pvti_xtx_search *s, int64_t GO, int64_t GI)
{
    int64_t go, p, m, M = s->tables.M;
    for (go = 0; go < GO; go++) {
        s->hypotheses[go] = 1;
        for (p = 0; p < GI; p++)
            for (m = 0; m < M; m++)
                s->codes[(go * s->beam * GI + p) * M + m] =
                    (uint16_t)pvti_code_get(s->weight, (go * GI + s->order[p]) * M + m);
    }
}

static void pvti_xtx_best_codes(pvti_xtx_search *s, int64_t GO, int64_t GI)
{
    int64_t go, p, m, h, M = s->tables.M;
    for (go = 0; go < GO; go++) {
        int64_t best = 0;
        for (h = 1; h < s->hypotheses[go]; h++)
            if (s->loss[go * s->beam + h] < s->loss[go * s->beam + best]) best = h;
        for (p = 0; p < GI; p++)
            for (m = 0; m < M; m++)
                pvti_code_set(s->weight, (go * GI + s->order[p]) * M + m,
                              s->codes[((go * s->beam + best) * GI + p) * M + m]);
    }
}

/* Scratch that a hypothesis takes in pvti_xtx_task, with blocks of so many groups. */
static int64_t pvti_xtx_item_bytes(const pvt_format *f, int64_t groups)
{
    int64_t D = (int64_t)f->out_group * f->in_group;
    return (int64_t)sizeof(pvti_xtx_item) + (2 * groups + 1) * D * (int64_t)sizeof(pvt_real) +
           groups * f->codebooks * (int64_t)sizeof(uint16_t) + (int64_t)sizeof(int32_t);
}

/* One sweep over all codes of the weight. RH [O, I] = (W − Ŵ)·H for the present codes. */
static pvt_result pvti_xtx_run(pvt_ctx *ctx, pvt_weight *weight, const pvt_real *H, const pvt_real *RH,
                               int beam, const int64_t *order, const int64_t *book_orders)
{
    int64_t O = weight->O, I = weight->I, og = weight->format.out_group, ig = weight->format.in_group;
    int64_t GO = O / og, GI = I / ig, M = weight->format.codebooks, rows = O * beam,
            per_block = PVTI_MAX(1, PVTI_XTX_BLOCK / ig);
    int64_t scores = beam > 1 ? 256 + PVTI_MAX(16, pvti_entries(weight)) : 0, /* and room for two out groups: */
            room = (PVTI_SCRATCH_BYTES - scores * (int64_t)sizeof(pvt_real)) / beam;
    pvti_xtx_search s;
    pvti_permute_args permute;
    pvt_real *tables = PVTI_NEW(ctx, pvt_real, pvti_search_tables_values(&weight->format)), *Hp;
    pvt_result result = PVT_ERR_MEMORY;
    while (per_block > 1 && 2 * pvti_xtx_item_bytes(&weight->format, per_block) > room) per_block--;
    memset(&s, 0, sizeof s);
    s.ctx = ctx, s.weight = weight, s.order = order, s.book_orders = book_orders, s.beam = beam;
    Hp = PVTI_NEW(ctx, pvt_real, I * I);
    s.H = Hp;
    s.RH = PVTI_NEW(ctx, pvt_real, rows * I);
    s.RH_next = beam > 1 ? PVTI_NEW(ctx, pvt_real, rows * I) : s.RH;
    s.delta = PVTI_NEW(ctx, pvt_real, rows * per_block * ig);
    s.bias = PVTI_NEW(ctx, pvt_real, per_block * M * PVTI_MAX(16, pvti_entries(weight)));
    s.codes = PVTI_NEW(ctx, uint16_t, GO * beam * GI * M);
    s.codes_next = PVTI_NEW(ctx, uint16_t, GO * beam * GI * M);
    s.loss = PVTI_NEW(ctx, double, GO * beam);
    s.hypotheses = PVTI_NEW(ctx, int64_t, GO);
    s.ancestor = PVTI_NEW(ctx, int64_t, GO * beam);
    if (tables && Hp && s.RH && s.RH_next && s.delta && s.bias && s.codes && s.codes_next && s.loss &&
        s.hypotheses && s.ancestor) {
        result = PVT_OK;
        pvti_search_tables_fill(&s.tables, tables, weight);
        permute.out = Hp, permute.in = H, permute.order = order, permute.ig = ig, permute.I = I;
        permute.copies = 1, permute.rows = true, permute.search = &s;
        pvti_parallel(ctx, I, pvti_permute_task, &permute);
        permute.out = s.RH, permute.in = RH, permute.copies = beam, permute.rows = false;
        pvti_parallel(ctx, O, pvti_permute_task, &permute);
        pvti_xtx_start_codes(&s, GO, GI);
        s.chunk = PVTI_MIN(room / pvti_xtx_item_bytes(&weight->format, per_block) - 1, 32);
        for (s.p0 = 0; s.p0 < GI; s.p0 = s.p1) {
            int64_t after;
            s.p1 = PVTI_MIN(GI, s.p0 + per_block), s.width = (s.p1 - s.p0) * ig, after = s.p1 * ig;
            pvti_parallel(ctx, (s.p1 - s.p0) * M, pvti_xtx_bias_task, &s);
            pvti_parallel(ctx, (GO + s.chunk - 1) / s.chunk, pvti_xtx_task, &s);
            { uint16_t *swap = s.codes; s.codes = s.codes_next; s.codes_next = swap; }
            if (beam > 1) {
                pvt_real *swap;
                pvti_parallel(ctx, GO * beam, pvti_xtx_gather_task, &s);
                swap = s.RH, s.RH = s.RH_next, s.RH_next = swap;
            }
            if (after < I)
                pvti_gemm(ctx, s.RH + after, I, pvti_rows(s.delta, s.width),
                          pvti_rows(Hp + s.p0 * ig * I + after, I), rows, I - after, s.width, true);
        }
        pvti_xtx_best_codes(&s, GO, GI);
    }
    pvti_free(ctx, tables), pvti_free(ctx, Hp);
    if (beam > 1) pvti_free(ctx, s.RH_next);
    pvti_free(ctx, s.RH), pvti_free(ctx, s.delta), pvti_free(ctx, s.bias), pvti_free(ctx, s.codes);
    pvti_free(ctx, s.codes_next), pvti_free(ctx, s.loss), pvti_free(ctx, s.hypotheses),
        pvti_free(ctx, s.ancestor);
    return result;
}
// >>fit
/*  Calibration of one weight (AQLM, 2401.06118, sections 3.2 and 3.3): minimise
        L = ⟨(W−Ŵ)H, W−Ŵ⟩ = ‖(W−Ŵ)X‖²,   H = XᵀX,
    over codes, codebooks and scales. Codes: beam search (section search). Scales and codebooks:
    L is quadratic in each of the two, so scales have a closed form and codebooks are solved
    by conjugate gradients on the normal equations, preconditioned by their diagonal.

    Why not Adam, as the reference does: on a q_proj of SmolLM2 one hundred Adam steps end
    higher than five iterations of conjugate gradients and take fifteen times as long. Why
    weighted k-means: weighting by diag(H) starts at a third of the error and ends lower. */

/* ---- k-means (Lloyd), weighted per coordinate ---- */

/* n = rows × GI points of D coordinates: point (o, j) is x[o][j·D … ], coordinate d of group j
   weighs weight[j·D + d]. weight NULL: all 1. */
typedef struct pvti_kmeans {
    pvt_ctx *ctx;
    const pvt_real *x;        /* [GI, rows, D] */
    const pvt_real *weight;   /* [GI, D] or NULL */
    int64_t rows, GI, D, K;
    pvt_real *centroids;      /* [K, D] in, out */
    int32_t *assigned;        /* [GI, rows] */
    pvt_real *table;          /* [D, padded] */
    int64_t padded, chunks;
    double *sums;             /* [chunks, K, 2 D]: Σ w x and Σ w */
} pvti_kmeans;

PVTI_KERNELS_BEGIN
/* bias[k] = Σ_d w_d·c_kd², table [D, K]; weight NULL: all 1. */
PVTI_INLINE void pvti_weighted_norms_body(pvt_real *__restrict bias, const pvt_real *__restrict table,
                                          const pvt_real *weight, int64_t D, int64_t K)
{
    int64_t k, d;
    for (k = 0; k < K; k++) bias[k] = 0;
    for (d = 0; d < D; d++) {
        pvt_real w = weight ? weight[d] : 1;
        const pvt_real *c = table + d * K;
        for (k = 0; k < K; k++) bias[k] = pvti_fma(w * c[k], c[k], bias[k]);
    }
}
PVTI_KERNEL(pvti_weighted_norms, (pvt_real *bias, const pvt_real *table, const pvt_real *weight, int64_t D,
                                  int64_t K),
            (bias, table, weight, D, K))

/* query = −2 w∘x for n points, as pvti_nearest wants them. */
PVTI_INLINE void pvti_kmeans_query_d(pvt_real *__restrict query, const pvt_real *__restrict x, const pvt_real *weight,
                                     int64_t n, int64_t D)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < D; d++) query[i * D + d] = -2 * (weight ? weight[d] : 1) * x[i * D + d];
}
PVTI_INLINE void pvti_kmeans_query_body(pvt_real *query, const pvt_real *x, const pvt_real *weight, int64_t n, int64_t D)
{
    if (D == 8) pvti_kmeans_query_d(query, x, weight, n, 8);
    else pvti_kmeans_query_d(query, x, weight, n, D);
}
PVTI_KERNEL(pvti_kmeans_query, (pvt_real *query, const pvt_real *x, const pvt_real *weight, int64_t n, int64_t D),
            (query, x, weight, n, D))
PVTI_KERNELS_END

static void pvti_kmeans_assign_task(void *arg, int64_t j, int worker)
{
    const pvti_kmeans *s = (const pvti_kmeans *)arg;
    const pvt_real *weight = s->weight ? s->weight + j * s->D : NULL;
    int64_t D = s->D, batch = 256, k, i, n; /* D = 256 and 65,536 entries fit the scratch, as double too */
    pvt_real *query = (pvt_real *)pvti_scratch(s->ctx, worker), *bias = query + batch * D;
    PVTI_CALL(s->ctx, pvti_weighted_norms)(bias, s->table, weight, D, s->padded);
    for (k = s->K; k < s->padded; k++) bias[k] = (pvt_real)INFINITY;
    for (i = 0; i < s->rows; i += n) {
        n = PVTI_MIN(batch, s->rows - i);
        PVTI_CALL(s->ctx, pvti_kmeans_query)(query, s->x + (j * s->rows + i) * D, weight, n, D);
        PVTI_CALL_WIDE(s->ctx, pvti_nearest)(s->assigned + j * s->rows + i, query, n, s->table, bias, D, s->padded);
    }
}

PVTI_KERNELS_BEGIN
/* Σ w∘x and Σ w of each cluster over n points: sums [K, 2 D]; weight NULL: all 1. */
PVTI_INLINE void pvti_kmeans_sum_d(double *sums, const pvt_real *x, const int32_t *assigned, const pvt_real *weight,
                                   int64_t n, int64_t D)
{
    for (int64_t i = 0; i < n; i++, x += D) {
        double *__restrict sum = sums + assigned[i] * 2 * D;
        for (int64_t d = 0; d < D; d++) {
            double w = weight ? (double)weight[d] : 1;
            sum[d] += w * (double)x[d], sum[D + d] += w;
        }
    }
}
PVTI_INLINE void pvti_kmeans_sum_body(double *sums, const pvt_real *x, const int32_t *assigned, const pvt_real *weight,
                                      int64_t n, int64_t D)
{
    if (D == 8) pvti_kmeans_sum_d(sums, x, assigned, weight, n, 8);
    else pvti_kmeans_sum_d(sums, x, assigned, weight, n, D);
}
PVTI_KERNEL_WIDE(pvti_kmeans_sum,
            (double *sums, const pvt_real *x, const int32_t *assigned, const pvt_real *weight, int64_t n, int64_t D),
            (sums, x, assigned, weight, n, D))
PVTI_KERNELS_END

static void pvti_kmeans_sum_task(void *arg, int64_t chunk, int worker)
{
    const pvti_kmeans *s = (const pvti_kmeans *)arg;
    int64_t D = s->D, step = (s->GI + s->chunks - 1) / s->chunks, j;
    double *sums = s->sums + chunk * s->K * 2 * D;
    (void)worker;
    memset(sums, 0, (size_t)(s->K * 2 * D) * sizeof *sums);
    for (j = chunk * step; j < PVTI_MIN(s->GI, (chunk + 1) * step); j++)
        PVTI_CALL_WIDE(s->ctx, pvti_kmeans_sum)
        (sums, s->x + j * s->rows * D, s->assigned + j * s->rows, s->weight ? s->weight + j * D : NULL, s->rows, D);
}

static void pvti_kmeans_table(pvti_kmeans *s)
{
    int64_t k, d;
    for (k = 0; k < s->padded; k++)
        for (d = 0; d < s->D; d++) s->table[d * s->padded + k] = k < s->K ? s->centroids[k * s->D + d] : 0;
}

/* At most `steps` rounds of assignment and means from the given centroids; an empty cluster
   keeps its centroid. Every tenth round stops before the move when no centroid would move by
   more than 1e-8 + 1e-6·|c|. Leaves the assignment to the final centroids. */
static pvt_result pvti_kmeans_run(pvti_kmeans *s, int steps)
{
    int64_t entries = s->K * s->D, chunk, k, d;
    int step;
    pvt_result result = PVT_ERR_MEMORY;
    s->padded = PVTI_MAX(16, (s->K + 15) / 16 * 16);
    s->chunks = PVTI_MAX(1, PVTI_MIN(PVTI_MIN(s->GI, 16), 2000000 / entries));
    s->table = PVTI_NEW(s->ctx, pvt_real, s->D * s->padded);
    s->sums = PVTI_NEW(s->ctx, double, s->chunks * entries * 2);
    if (s->table && s->sums) {
        result = PVT_OK;
        for (step = 0; step < steps; step++) {
            bool moved = step % 10 != 0;
            pvti_kmeans_table(s);
            pvti_parallel(s->ctx, s->GI, pvti_kmeans_assign_task, s);
            pvti_parallel(s->ctx, s->chunks, pvti_kmeans_sum_task, s);
            for (chunk = 1; chunk < s->chunks; chunk++)
                for (k = 0; k < 2 * entries; k++) s->sums[k] += s->sums[chunk * 2 * entries + k];
            for (k = 0; k < s->K; k++)
                for (d = 0; d < s->D; d++) {
                    double c = (double)s->centroids[k * s->D + d], sum = s->sums[k * 2 * s->D + d],
                           w = s->sums[(k * 2 + 1) * s->D + d];
                    double mean = w > 0 ? (double)(pvt_real)(sum / w) : c;
                    if (fabs(mean - c) > 1e-8 + 1e-6 * fabs(c)) moved = true;
                    s->sums[k * 2 * s->D + d] = mean;
                }
            if (!moved) break;
            for (k = 0; k < s->K; k++)
                for (d = 0; d < s->D; d++) s->centroids[k * s->D + d] = (pvt_real)s->sums[k * 2 * s->D + d];
        }
        pvti_kmeans_table(s);
        pvti_parallel(s->ctx, s->GI, pvti_kmeans_assign_task, s);
    }
    pvti_free(s->ctx, s->table);
    pvti_free(s->ctx, s->sums);
    return result;
}

/* ---- the state of a fit ---- */

typedef struct pvti_fit {
    pvt_ctx *ctx;
    const pvt_real *W, *H;
    pvt_weight *weight;
    const char *name;
    uint64_t stream;
    pvt_fit_desc desc;
    int64_t O, I, og, ig, GO, GI, D, n_values; /* n_values: reals in the codebooks */
    pvt_real *WH;      /* W·H, [O, I] */
    pvt_real *R, *RH;  /* W − Ŵ and its product with H */
    pvt_real *T, *TH;  /* a search direction, dequantized, and its product */
    pvt_real *x, *r, *p, *q, *diagonal; /* conjugate gradients over the codebooks */
    pvt_real *partial, *dscales;        /* see pvti_chain_aqlm */
    int64_t *order, *book_orders;
    double energy;     /* ⟨WH, W⟩ */
    pvt_real alpha;    /* −α of the present step of conjugate gradients */
    double *dots;      /* [O] */
} pvti_fit;

typedef struct pvti_fit_dot_args {
    const pvti_fit *fit;
    const pvt_real *a, *b;
} pvti_fit_dot_args;

static void pvti_fit_dot_task(void *arg, int64_t o, int worker)
{
    const pvti_fit_dot_args *s = (const pvti_fit_dot_args *)arg;
    (void)worker;
    PVTI_CALL(s->fit->ctx, pvti_dot)(&s->fit->dots[o], s->a + o * s->fit->I, s->b + o * s->fit->I, s->fit->I);
}

/* Σ a·b over an [O, I] array: each row by itself, then the rows in order. */
static double pvti_fit_dot(const pvti_fit *f, const pvt_real *a, const pvt_real *b)
{
    pvti_fit_dot_args s;
    double sum = 0;
    int64_t o;
    s.fit = f, s.a = a, s.b = b;
    pvti_parallel(f->ctx, f->O, pvti_fit_dot_task, &s);
    for (o = 0; o < f->O; o++) sum += f->dots[o];
    return sum;
}

/* out = A·H; without H the metric is the identity. */
static void pvti_fit_times_H(const pvti_fit *f, pvt_real *out, const pvt_real *A)
{
    if (f->H)
        pvti_gemm(f->ctx, out, f->I, pvti_rows(A, f->I), pvti_rows(f->H, f->I), f->O, f->I, f->I, false);
    else
        memcpy(out, A, (size_t)(f->O * f->I) * sizeof *out);
}

typedef struct pvti_decode_args {
    const pvti_fit *fit;
    const pvt_weight *weight;
    pvt_real *out;
    const pvt_real *minus; /* out = minus − decoded, when given */
} pvti_decode_args;

static void pvti_fit_decode_task(void *arg, int64_t go, int worker)
{
    const pvti_decode_args *a = (const pvti_decode_args *)arg;
    const pvti_fit *f = a->fit;
    pvt_real *out = a->out + go * f->og * f->I;
    int64_t k;
    (void)worker;
    PVTI_CALL(f->ctx, pvti_decode)(out, f->I, a->weight, go, 0, f->GI, true);
    for (k = 0; a->minus && k < f->og * f->I; k++) out[k] = a->minus[go * f->og * f->I + k] - out[k];
}

/* R = W − Ŵ and R·H; returns the relative error. */
static double pvti_fit_residual(pvti_fit *f)
{
    pvti_decode_args a;
    a.fit = f, a.weight = f->weight, a.out = f->R, a.minus = f->W;
    pvti_parallel(f->ctx, f->GO, pvti_fit_decode_task, &a);
    pvti_fit_times_H(f, f->RH, f->R);
    return f->energy > 0 ? pvti_fit_dot(f, f->R, f->RH) / f->energy : 0;
}

/* Scales in closed form: with U the codes' sum without scale, s = ⟨(WH)_o, U_o⟩ / ⟨(UH)_o, U_o⟩.
   s·UH = WH − RH is at hand, so no product with H is needed. Updates R and RH. */
static void pvti_fit_scales_task(void *arg, int64_t go, int worker)
{
    const pvti_fit *f = (const pvti_fit *)arg;
    int64_t n = f->og * f->I, from = go * n, k;
    pvt_real s = f->weight->scales[go], factor;
    double along = 0, square = 0;
    (void)worker;
    /* Ŵ = W − R and ŴH = WH − RH: s_new / s = ⟨WH, Ŵ⟩ / ⟨ŴH, Ŵ⟩ */
    for (k = from; k < from + n; k++) {
        double w = (double)f->W[k] - (double)f->R[k], wh = (double)f->WH[k] - (double)f->RH[k];
        along += (double)f->WH[k] * w, square += wh * w;
    }
    factor = square > 0 && along > 0 ? (pvt_real)(along / square) : 1;
    f->weight->scales[go] = s * factor;
    for (k = from; k < from + n; k++) {
        f->R[k] = f->W[k] - factor * (f->W[k] - f->R[k]);
        f->RH[k] = f->WH[k] - factor * (f->WH[k] - f->RH[k]);
    }
}

/* out = Σ over groups with that code of s·G[group]: the transpose of decoding. */
static void pvti_fit_gather(pvti_fit *f, pvt_real *out, const pvt_real *G)
{
    pvt_real *values[2];
    values[0] = out, values[1] = f->dscales;
    memset(out, 0, (size_t)f->n_values * sizeof *out);
    pvti_chain_aqlm(f->ctx, values, f->weight, G, f->partial);
}

/* diagonal of the normal equations: Σ over groups with that code of s²·H_jj. */
static void pvti_fit_diagonal(pvti_fit *f)
{
    int64_t M = f->weight->format.codebooks, K = pvti_entries(f->weight), go, j, m, d;
    memset(f->diagonal, 0, (size_t)f->n_values * sizeof *f->diagonal);
    for (go = 0; go < f->GO; go++)
        for (j = 0; j < f->GI; j++)
            for (m = 0; m < M; m++) {
                int64_t code = pvti_code_get(f->weight, (go * f->GI + j) * M + m);
                pvt_real *out = f->diagonal + (m * K + code) * f->D, s = f->weight->scales[go];
                for (d = 0; d < f->D; d++) {
                    int64_t column = j * f->ig + d % f->ig;
                    out[d] += s * s * (f->H ? f->H[column * f->I + column] : 1);
                }
            }
}

static double pvti_sum_products(const pvt_real *a, const pvt_real *b, int64_t n)
{
    double sum = 0;
    int64_t k;
    for (k = 0; k < n; k++) sum += (double)a[k] * (double)b[k];
    return sum;
}

static void pvti_fit_advance_task(void *arg, int64_t o, int worker)
{
    const pvti_fit *f = (const pvti_fit *)arg;
    (void)worker;
    PVTI_CALL(f->ctx, pvti_axpys)(f->R + o * f->I, &f->alpha, f->T + o * f->I, 0, 1, f->I);
    PVTI_CALL(f->ctx, pvti_axpys)(f->RH + o * f->I, &f->alpha, f->TH + o * f->I, 0, 1, f->I);
}

/* Codebooks by conjugate gradients (Hestenes, Stiefel 1952). With A the map from codebooks to
   Ŵ (codes and scales fixed), the normal equations are AᵀHA·c = AᵀHW, whose residual is
   Aᵀ(R H): r = Aᵀ(RH); z = r/diag; per step T = A p, α = ⟨r, z⟩/⟨T H, T⟩, c += α p,
   R −= α T, RH −= α T H, r −= α Aᵀ(TH). */
static void pvti_fit_codebooks(pvti_fit *f)
{
    pvt_weight direction = *f->weight; /* the same codes and scales, p for codebooks */
    pvti_decode_args a;
    int64_t k, n = f->n_values;
    double rz, floor = 0;
    int step;
    pvti_fit_diagonal(f);
    for (k = 0; k < n; k++) floor += (double)f->diagonal[k] / (double)n;
    for (k = 0; k < n; k++) /* unused entries and dead inputs stay as they are */
        f->diagonal[k] = (double)f->diagonal[k] > 1e-9 * floor ? 1 / f->diagonal[k] : 0;
    pvti_fit_gather(f, f->r, f->RH);
    for (k = 0; k < n; k++) f->p[k] = f->diagonal[k] * f->r[k], f->x[k] = f->p[k];
    rz = pvti_sum_products(f->r, f->x, n);
    direction.codebooks = f->p;
    a.fit = f, a.weight = &direction, a.out = f->T, a.minus = NULL;
    for (step = 0; step < f->desc.cg_steps && rz > 0; step++) {
        double curvature, alpha, rz_next;
        pvt_real al, beta;
        pvti_parallel(f->ctx, f->GO, pvti_fit_decode_task, &a);
        pvti_fit_times_H(f, f->TH, f->T);
        curvature = pvti_fit_dot(f, f->T, f->TH);
        if (!(curvature > 0)) break;
        alpha = rz / curvature, al = (pvt_real)alpha;
        f->alpha = -al;
        PVTI_CALL(f->ctx, pvti_axpys)(f->weight->codebooks, &al, f->p, 0, 1, n);
        pvti_parallel(f->ctx, f->O, pvti_fit_advance_task, f);
        pvti_fit_gather(f, f->q, f->TH);
        PVTI_CALL(f->ctx, pvti_axpys)(f->r, &f->alpha, f->q, 0, 1, n);
        for (k = 0; k < n; k++) f->x[k] = f->diagonal[k] * f->r[k];
        rz_next = pvti_sum_products(f->r, f->x, n);
        beta = (pvt_real)(rz_next / rz), rz = rz_next;
        for (k = 0; k < n; k++) f->p[k] = beta * f->p[k] + f->x[k];
    }
}

/* Start: scale = row norm, then each codebook by k-means on what the ones before leave. */
static pvt_result pvti_fit_start(pvti_fit *f)
{
    int64_t M = f->weight->format.codebooks, K = pvti_entries(f->weight), points = f->GO * f->GI, go, j, r, a,
            i, k, m, d;
    pvt_real *x = PVTI_NEW(f->ctx, pvt_real, points * f->D), *weight = PVTI_NEW(f->ctx, pvt_real, f->GI * f->D);
    int32_t *assigned = PVTI_NEW(f->ctx, int32_t, points);
    pvt_result result = x && weight && assigned ? PVT_OK : PVT_ERR_MEMORY;
    for (go = 0; go < f->GO && result == PVT_OK; go++) {
        double square = 0;
        pvt_real inverse;
        for (i = go * f->og * f->I; i < (go + 1) * f->og * f->I; i++)
            square += (double)f->W[i] * (double)f->W[i];
        f->weight->scales[go] = (pvt_real)(__builtin_sqrt(square) + 1e-9);
        inverse = 1 / f->weight->scales[go];
        for (j = 0; j < f->GI; j++)
            for (r = 0; r < f->og; r++)
                for (a = 0; a < f->ig; a++)
                    x[(j * f->GO + go) * f->D + r * f->ig + a] =
                        f->W[(go * f->og + r) * f->I + j * f->ig + a] * inverse;
    }
    if (result == PVT_OK && f->H) {
        double mean = 0;
        for (i = 0; i < f->I; i++) mean += (double)f->H[i * f->I + i] / (double)f->I;
        for (j = 0; j < f->GI; j++)
            for (d = 0; d < f->D; d++) { /* a floor keeps dead inputs from weighing nothing at all */
                int64_t column = j * f->ig + d % f->ig;
                double h = (double)f->H[column * f->I + column];
                weight[j * f->D + d] = mean > 0 ? (pvt_real)(h / mean + 1e-6) : 1;
            }
    }
    for (m = 0; m < M && result == PVT_OK; m++) {
        pvti_kmeans s;
        memset(&s, 0, sizeof s);
        s.ctx = f->ctx, s.x = x, s.weight = f->H ? weight : NULL;
        s.rows = f->GO, s.GI = f->GI, s.D = f->D, s.K = K;
        s.centroids = f->weight->codebooks + m * K * f->D, s.assigned = assigned;
        for (k = 0; k < K; k++) { /* seeds: points drawn at random */
            uint64_t at =
                pvti_random(f->ctx->seed, PVTI_RANDOM_KMEANS, f->stream * 64 + (uint64_t)m, (uint64_t)k) %
                (uint64_t)points;
            memcpy(s.centroids + k * f->D, x + (int64_t)at * f->D, (size_t)f->D * sizeof *x);
        }
        result = pvti_kmeans_run(&s, f->desc.kmeans_steps);
        for (i = 0; i < points && result == PVT_OK; i++) {
            for (d = 0; d < f->D; d++) x[i * f->D + d] -= s.centroids[assigned[i] * f->D + d];
            pvti_code_set(f->weight, (i % f->GO * f->GI + i / f->GO) * M + m, assigned[i]);
        }
    }
    pvti_free(f->ctx, x), pvti_free(f->ctx, weight), pvti_free(f->ctx, assigned);
    return result;
}

/* All codes searched once, in random orders. */
static pvt_result pvti_fit_search(pvti_fit *f, int epoch)
{
    int64_t M = f->weight->format.codebooks, j, m;
    uint64_t step = f->stream * 4096 + (uint64_t)epoch;
    pvti_random_order(f->order, f->GI, f->ctx->seed, PVTI_RANDOM_GROUP_ORDER, step);
    for (j = 0; j < f->GI; j++)
        pvti_random_order(f->book_orders + j * M, M, f->ctx->seed, PVTI_RANDOM_CODEBOOK_ORDER,
                          step * 65536 + (uint64_t)j);
    if (f->H) return pvti_xtx_run(f->ctx, f->weight, f->H, f->RH, f->desc.beam, f->order, f->book_orders);
    { /* identity metric: groups are independent */
        pvti_l2_search s;
        int64_t n = f->GO * f->GI;
        pvt_real *tables = PVTI_NEW(f->ctx, pvt_real, pvti_search_tables_values(&f->weight->format));
        memset(&s, 0, sizeof s);
        s.codes = PVTI_NEW(f->ctx, uint16_t, n * M);
        if (tables && s.codes) {
            s.ctx = f->ctx, s.weight = f->weight, s.target = f->W, s.order = f->book_orders, s.n = n,
            s.beam = f->desc.beam;
            pvti_search_tables_fill(&s.tables, tables, f->weight);
            pvti_l2_run(&s);
            for (m = 0; m < n * M; m++) pvti_code_set(f->weight, m, s.codes[m]);
        }
        pvti_free(f->ctx, tables);
        if (!s.codes || !tables) {
            pvti_free(f->ctx, s.codes);
            return PVT_ERR_MEMORY;
        }
        pvti_free(f->ctx, s.codes);
    }
    return PVT_OK;
}

static pvt_result pvti_fit_loop(pvti_fit *f, pvt_fit_stats *stats)
{
    double best, error;
    int epoch;
    pvti_fit_times_H(f, f->WH, f->W);
    f->energy = pvti_fit_dot(f, f->W, f->WH);
    if (!(f->energy >= 0) || f->energy > DBL_MAX)
        return pvti_fail(f->ctx, PVT_ERR_NUMERIC,
                         "%s: the weight or its inputs hold a NaN or an infinity, or H is not "
                         "positive; it cannot be calibrated",
                         f->name);
    PVTI_TRY(pvti_fit_start(f));
    best = stats->error_start = pvti_fit_residual(f);
    for (epoch = 0;; epoch++) {
        pvti_parallel(f->ctx, f->GO, pvti_fit_scales_task, f);
        pvti_fit_codebooks(f);
        error = f->energy > 0 ? PVTI_MAX(0, pvti_fit_dot(f, f->R, f->RH) / f->energy)
                              : 0; /* rounding can leave −0 */
        stats->error = error, stats->epochs = epoch;
        if (!(error < DBL_MAX)) return pvti_fail(f->ctx, PVT_ERR_NUMERIC, "%s: calibration diverged", f->name);
        if (epoch == f->desc.epochs || error <= f->desc.target ||
            (epoch > 1 && error > best * (1 - f->desc.tolerance)))
            break;
        best = error;
        PVTI_TRY(pvti_fit_search(f, epoch));
        error = pvti_fit_residual(f);
        PVTI_TRY(pvti_report(f->ctx, "fit", f->name, epoch + 1, f->desc.epochs, "epochs", error));
    }
    return PVT_OK;
}

static pvt_result pvti_fit_aqlm(pvt_ctx *ctx, const pvt_real *W, const pvt_real *H, const pvt_fit_desc *desc,
                                pvt_fit_stats *stats, pvt_weight *out)
{
    pvti_fit f;
    pvt_result result = PVT_ERR_MEMORY;
    int64_t elements = out->O * out->I;
    memset(&f, 0, sizeof f);
    f.ctx = ctx, f.W = W, f.H = H, f.weight = out, f.desc = *desc, f.name = desc->name ? desc->name : "weight",
    f.stream = desc->stream;
    f.O = out->O, f.I = out->I, f.og = out->format.out_group, f.ig = out->format.in_group;
    f.GO = f.O / f.og, f.GI = f.I / f.ig, f.D = pvti_group_dim(out);
    f.n_values = out->format.codebooks * pvti_entries(out) * f.D;
    f.WH = PVTI_NEW(ctx, pvt_real, elements), f.R = PVTI_NEW(ctx, pvt_real, elements),
    f.RH = PVTI_NEW(ctx, pvt_real, elements);
    f.T = PVTI_NEW(ctx, pvt_real, elements), f.TH = PVTI_NEW(ctx, pvt_real, elements);
    f.x = PVTI_NEW(ctx, pvt_real, f.n_values * 5), f.dots = PVTI_NEW(ctx, double, f.O);
    f.partial = PVTI_NEW(ctx, pvt_real, pvti_chain_values(out)), f.dscales = PVTI_NEW(ctx, pvt_real, f.GO);
    f.order = PVTI_NEW(ctx, int64_t, f.GI),
    f.book_orders = PVTI_NEW(ctx, int64_t, f.GI * out->format.codebooks);
    if (f.WH && f.R && f.RH && f.T && f.TH && f.x && f.dots && f.partial && f.dscales && f.order &&
        f.book_orders) {
        f.r = f.x + f.n_values, f.p = f.r + f.n_values, f.q = f.p + f.n_values, f.diagonal = f.q + f.n_values;
        result = pvti_fit_loop(&f, stats);
    }
    pvti_free(ctx, f.WH), pvti_free(ctx, f.R), pvti_free(ctx, f.RH), pvti_free(ctx, f.T), pvti_free(ctx, f.TH);
    pvti_free(ctx, f.x), pvti_free(ctx, f.dots), pvti_free(ctx, f.partial), pvti_free(ctx, f.dscales),
        pvti_free(ctx, f.order), pvti_free(ctx, f.book_orders);
    return result;
}

static const pvti_weight_kind pvti_kind_aqlm = {"aqlm", pvti_tile_aqlm, pvti_values_aqlm, pvti_chain_aqlm,
                                                pvti_fit_aqlm};

static bool pvti_format_in_range(const pvt_format *f)
{
    return f->kind == PVT_FORMAT_AQLM && f->codebooks >= 1 && f->codebooks <= 16 && f->bits >= 1 && f->bits <= 16 &&
           f->in_group >= 1 && f->in_group <= 64 && f->out_group >= 1 && f->out_group <= 64 &&
           f->in_group * f->out_group <= 256;
}

static PVTI_UNUSED int64_t pvti_gcd(int64_t a, int64_t b)
{
    while (b) {
        int64_t rest = a % b;
        a = b, b = rest;
    }
    return a;
}

/* The group size nearest to `wanted`, the larger of two equally near, that divides n. */
static int pvti_group_near(int wanted, int64_t n, int most)
{
    int best = 1, g;
    for (g = 1; g <= most; g++)
        if (n % g == 0 && abs(g - wanted) <= abs(best - wanted)) best = g;
    return best;
}

/* The format nearest to this one whose groups divide O × I, as text. O and I may be the common divisors
   of many matrices. */
static void pvti_format_near(const pvt_format *format, int64_t O, int64_t I, char out[48])
{
    pvt_format nearest = *format;
    nearest.in_group = pvti_group_near(format->in_group, I, 64);
    nearest.out_group = pvti_group_near(format->out_group, O, PVTI_MIN(64, 256 / nearest.in_group));
    pvt_format_text(&nearest, out);
}

/* ---- the arrays of a weight, listed ---- */

/* Fills in one array (a size of 0: no such dimension); false when its bytes are too many to count. */
static bool pvti_array_set(pvt_array *array, const char *name, pvt_array_role role, pvt_dtype dtype,
                           int64_t d0, int64_t d1, int64_t d2, int64_t d3)
{
    array->data = NULL;
    array->name = name, array->role = role, array->dtype = dtype;
    array->shape[0] = d0, array->shape[1] = d1, array->shape[2] = d2, array->shape[3] = d3;
    array->rank = d3 ? 4 : d2 ? 3 : d1 ? 2 : 1;
    for (int i = array->rank; i < 4; i++) array->shape[i] = 1;
    return pvti_dtype_bytes(dtype, array->shape, array->rank, &array->bytes);
}

/* dtype: of a dense weight's values. Sizes fit; false when they are too large to count. */
static bool pvti_arrays_list(const pvt_format *f, int64_t O, int64_t I, pvt_dtype dtype, pvt_array *out,
                             int *n)
{
    *n = f->kind == PVT_FORMAT_DENSE ? 1 : 3;
    if (f->kind == PVT_FORMAT_DENSE) return pvti_array_set(out, "weight", PVT_ARRAY_VALUE, dtype, O, I, 0, 0);
    return pvti_array_set(&out[0], "codes", PVT_ARRAY_CODE, f->bits <= 8 ? PVT_U8 : PVT_U16, O / f->out_group,
                          I / f->in_group, f->codebooks, 0) &&
           pvti_array_set(&out[1], "codebooks", PVT_ARRAY_VALUE, PVTI_DTYPE_REAL, f->codebooks,
                          (int64_t)1 << f->bits, f->out_group, f->in_group) &&
           pvti_array_set(&out[2], "scales", PVT_ARRAY_VALUE, PVTI_DTYPE_REAL, O / f->out_group, 0, 0, 0);
}

static pvt_result pvti_format_arrays(pvt_ctx *ctx, const char *name, const pvt_format *format, int64_t O,
                                     int64_t I, pvt_array *out, int *n)
{
    int64_t weights;
    char nearest[48];
    *n = 0;
    if ((format->kind != PVT_FORMAT_DENSE && !pvti_format_in_range(format)) || O < 1 || I < 1)
        return pvti_fail(ctx, PVT_ERR_ARGUMENT, "%s: not a format, or a size out of range", name);
    if (format->kind != PVT_FORMAT_DENSE && (O % format->out_group || I % format->in_group)) {
        pvti_format_near(format, O, I, nearest);
        return pvti_fail(ctx, PVT_ERR_ARGUMENT,
                         "%s: groups of %d x %d do not divide %lld x %lld weights; %s would fit", name,
                         format->out_group, format->in_group, (long long)O, (long long)I, nearest);
    }
    if (O > INT32_MAX || I > INT32_MAX || !pvti_mul(O, I, &weights) ||
        !pvti_arrays_list(format, O, I, PVTI_DTYPE_REAL, out, n))
        return pvti_fail(ctx, PVT_ERR_ARGUMENT, "%s: too large", name);
    return PVT_OK;
}

PVT_API pvt_result pvt_format_arrays(pvt_ctx *ctx, const pvt_format *format, int64_t O, int64_t I,
                                     pvt_array out[PVT_MAX_ARRAYS], int *n)
{
    return pvti_format_arrays(ctx, "arrays", format, O, I, out, n);
}

PVT_API int pvt_weight_arrays(const pvt_weight *weight, pvt_array out[PVT_MAX_ARRAYS])
{
    int n;
    pvti_arrays_list(&weight->format, weight->O, weight->I, weight->dtype, out, &n);
    if (n == 1)
        out[0].data = weight->data;
    else
        out[0].data = weight->codes, out[1].data = weight->codebooks, out[2].data = weight->scales;
    return n;
}

/* An owned codebook weight with zero codes and values. */
static pvt_result pvti_weight_alloc(pvt_ctx *ctx, const pvt_format *format, int64_t O, int64_t I,
                                    const char *name, pvt_weight *out)
{
    pvt_array arrays[PVT_MAX_ARRAYS];
    int n;
    memset(out, 0, sizeof *out);
    if (format->kind == PVT_FORMAT_DENSE)
        return pvti_fail(ctx, PVT_ERR_ARGUMENT, "%s: dense is not a codebook format", name);
    PVTI_TRY(pvti_format_arrays(ctx, name, format, O, I, arrays, &n));
    out->kind = &pvti_kind_aqlm;
    out->ctx = ctx, out->O = O, out->I = I, out->format = *format, out->owned = true;
    out->codes = pvt_memory_alloc(ctx, arrays[0].bytes);
    out->codebooks = (pvt_real *)pvt_memory_alloc(ctx, arrays[1].bytes);
    out->scales = (pvt_real *)pvt_memory_alloc(ctx, arrays[2].bytes);
    if (out->codes && out->codebooks && out->scales) return PVT_OK;
    pvt_weight_free(out);
    return PVT_ERR_MEMORY;
}

/* bytes from the memory of one context to that of another. */
static PVTI_UNUSED pvt_result pvti_transfer(pvt_ctx *ctx, void *to, pvt_ctx *source, const void *from,
                                            int64_t bytes)
{
    char piece[4096];
    int64_t at, n;
    if (pvti_same_memory(ctx, source)) {
        pvt_memory_copy(ctx, to, from, bytes);
        return PVT_OK;
    }
    if (!source->device) {
        pvt_memory_write(ctx, to, from, bytes);
        return PVT_OK;
    }
    if (!ctx->device) {
        pvt_result result = pvt_memory_read(source, to, from, bytes);
        return result == PVT_OK ? PVT_OK : pvti_fail(ctx, result, "%s", pvt_ctx_error(source));
    }
    for (at = 0; at < bytes; at += n) {
        n = PVTI_MIN(bytes - at, (int64_t)sizeof piece);
        PVTI_TRY(pvti_transfer(ctx->host, piece, source, (const char *)from + at, n));
        pvt_memory_write(ctx, (char *)to + at, piece, n);
    }
    return PVT_OK;
}

/* A copy that owns its arrays, each as it is, in ctx's memory. */
static pvt_result pvti_weight_take(pvt_ctx *ctx, const pvt_weight *weight, pvt_weight *out)
{
    pvt_array from[PVT_MAX_ARRAYS], to[PVT_MAX_ARRAYS];
    int n = pvt_weight_arrays(weight, from), i;
    pvt_result result = PVT_OK;
    if (weight->format.kind == PVT_FORMAT_DENSE) {
        void *data = pvt_memory_alloc(ctx, from[0].bytes);
        memset(out, 0, sizeof *out);
        if (!data) return PVT_ERR_MEMORY;
        PVTI_TRY(pvt_weight_borrow(ctx, data, weight->dtype, weight->O, weight->I, out));
        out->owned = true;
    } else {
        PVTI_TRY(pvti_weight_alloc(ctx, &weight->format, weight->O, weight->I, "a copy", out));
    }
    pvt_weight_arrays(out, to);
    for (i = 0; i < n && result == PVT_OK; i++)
        result = pvti_transfer(ctx, (void *)(uintptr_t)to[i].data, weight->ctx, from[i].data, from[i].bytes);
    if (result != PVT_OK) pvt_weight_free(out);
    return result;
}

/* What was made on the host goes over to the device: *weight becomes the copy. */
static pvt_result pvti_weight_move(pvt_ctx *ctx, pvt_weight *weight)
{
    pvt_weight own;
    pvt_result result = pvti_weight_take(ctx, weight, &own);
    pvt_weight_free(weight);
    if (result == PVT_OK) *weight = own;
    return result;
}

/* The one of n arrays that is called want->name and is made like it; NULL, and the sentence, when there is
   none. */
static const pvt_array *pvti_array_find(pvt_ctx *ctx, const char *name, const pvt_array *arrays, int n,
                                        const pvt_array *want)
{
    const pvt_array *found = NULL;
    const pvti_dtype *type;
    bool value;
    for (int i = 0; i < n; i++)
        if (arrays[i].name && strcmp(arrays[i].name, want->name) == 0) found = &arrays[i];
    if (!found || !found->data) {
        pvti_fail(ctx, PVT_ERR_ARGUMENT, "%s: the array \"%s\" is missing", name, want->name);
        return NULL;
    }
    type = pvti_dtype_info(found->dtype);
    value = type && type->decode && (found->dtype <= PVT_F64 || (want->rank == 2 && type->block > 1));
    if (want->role == PVT_ARRAY_VALUE ? !value : found->dtype != want->dtype) {
        pvti_fail(ctx, PVT_ERR_ARGUMENT, "%s: the array \"%s\" is of type %s, which cannot be taken for %s",
                  name, want->name, type ? type->name : "?", pvti_dtype_info(want->dtype)->name);
        return NULL;
    }
    return found;
}

/* Codes are copied, values decoded; both are checked. */
static pvt_result pvti_array_take(pvt_ctx *ctx, const char *name, const pvt_array *from,
                                  const pvt_array *want, const pvt_format *format, void *to)
{
    const pvti_dtype *type = pvti_dtype_info(from->dtype);
    int64_t n = want->bytes / pvti_dtype_info(want->dtype)->bytes, bytes, i;
    if (from->rank != want->rank ||
        memcmp(from->shape, want->shape, (size_t)want->rank * sizeof *want->shape) != 0 ||
        !pvti_dtype_bytes(from->dtype, want->shape, want->rank, &bytes) || from->bytes != bytes)
        return pvti_fail(ctx, PVT_ERR_ARGUMENT,
                         "%s: the array \"%s\" of %lld bytes has not the shape %lld x %lld x %lld x %lld",
                         name, want->name, (long long)from->bytes, (long long)want->shape[0],
                         (long long)want->shape[1], (long long)want->shape[2], (long long)want->shape[3]);
    if (want->role == PVT_ARRAY_VALUE) {
        type->decode((const uint8_t *)from->data, (pvt_real *)to, n / type->block);
        for (i = 0; i < n; i++)
            if (!(fabs((double)((pvt_real *)to)[i]) <= DBL_MAX))
                return pvti_fail(ctx, PVT_ERR_NUMERIC, "%s: number %lld of \"%s\" is not finite", name,
                                 (long long)i, want->name);
        return PVT_OK;
    }
    memcpy(to, from->data, (size_t)want->bytes);
    for (i = 0; i < n; i++) {
        unsigned code = want->dtype == PVT_U8 ? ((const uint8_t *)to)[i] : ((const uint16_t *)to)[i];
        if (code >> format->bits)
            return pvti_fail(ctx, PVT_ERR_ARGUMENT, "%s: code %u at %lld does not fit %d bits", name, code,
                             (long long)i, format->bits);
    }
    return PVT_OK;
}

PVT_API pvt_result pvt_weight_from_arrays(pvt_ctx *ctx, const pvt_format *format, int64_t O, int64_t I,
                                          const pvt_array *arrays, int n, const char *name, pvt_weight *out)
{
    pvt_array want[PVT_MAX_ARRAYS], made[PVT_MAX_ARRAYS];
    pvt_result result;
    int wanted;
    if (!name) name = "weight";
    memset(out, 0, sizeof *out);
    if (ctx->device) {
        PVTI_TRY(pvt_weight_from_arrays(ctx->host, format, O, I, arrays, n, name, out));
        return pvti_weight_move(ctx, out);
    }
    PVTI_TRY(pvti_format_arrays(ctx, name, format, O, I, want, &wanted));
    if (n != wanted)
        return pvti_fail(ctx, PVT_ERR_ARGUMENT, "%s: %d arrays where this format has %d", name, n, wanted);
    for (int i = 0; i < wanted; i++)
        if (!pvti_array_find(ctx, name, arrays, n, &want[i])) return PVT_ERR_ARGUMENT;
    result = format->kind == PVT_FORMAT_DENSE ? pvt_weight_dense(ctx, NULL, O, I, out)
                                              : pvti_weight_alloc(ctx, format, O, I, name, out);
    if (result == PVT_OK) pvt_weight_arrays(out, made);
    for (int i = 0; i < wanted && result == PVT_OK; i++)
        result = pvti_array_take(ctx, name, pvti_array_find(ctx, name, arrays, n, &want[i]), &want[i], format,
                                 (void *)(uintptr_t)made[i].data);
    if (result != PVT_OK) pvt_weight_free(out);
    return result;
}

/* The desc with its defaults. */
static pvt_fit_desc pvti_fit_resolve(const pvt_fit_desc *desc)
{
    pvt_fit_desc d = *desc;
    if (!d.name) d.name = "weight";
    if (!d.epochs) d.epochs = 16;
    if (!d.cg_steps) d.cg_steps = 8;
    if (!d.kmeans_steps) d.kmeans_steps = 25;
    if (!d.beam) d.beam = 1;
    if (d.tolerance == 0) d.tolerance = 0.002;
    return d;
}

PVT_API pvt_result pvt_weight_fit(pvt_ctx *ctx, const pvt_real *W, int64_t O, int64_t I, const pvt_real *H,
                                  const pvt_format *format, const pvt_fit_desc *desc, pvt_fit_stats *stats,
                                  pvt_weight *out)
{
    pvt_fit_desc d;
    pvt_fit_stats own;
    pvt_result result;
    memset(&d, 0, sizeof d);
    if (desc) d = *desc;
    d = pvti_fit_resolve(&d);
    if (!stats) stats = &own;
    memset(stats, 0, sizeof *stats), memset(out, 0, sizeof *out);
    PVTI_TRY(pvti_host_only(ctx, "fitting a weight"));
    stats->seconds = pvti_seconds();
    if (d.epochs < 1 || d.cg_steps < 1 || d.kmeans_steps < 1 || d.beam < 1 || d.beam > PVTI_MAX_BEAM)
        return pvti_fail(ctx, PVT_ERR_ARGUMENT,
                         "%s: epochs, cg_steps and kmeans_steps must be positive, beam 1 to %d", d.name,
                         PVTI_MAX_BEAM);
    PVTI_TRY(pvti_weight_alloc(ctx, format, O, I, d.name, out));
    result = out->kind->fit(ctx, W, H, &d, stats, out);
    stats->seconds = pvti_seconds() - stats->seconds;
    if (result != PVT_OK) pvt_weight_free(out);
    return result;
}

PVT_API pvt_result pvt_weight_rows(const pvt_weight *weight, int64_t o0, int64_t n, pvt_weight *view)
{
    int64_t og = PVTI_MAX(1, weight->format.out_group);
    memset(view, 0, sizeof *view);
    if (o0 < 0 || n < 1 || n > weight->O || o0 > weight->O - n || o0 % og || n % og)
        return pvti_fail(weight->ctx, PVT_ERR_ARGUMENT,
                         "%lld rows from %lld on, of a weight with %lld rows in groups of %lld", (long long)n,
                         (long long)o0, (long long)weight->O, (long long)og);
    *view = *weight;
    view->O = n;
    view->owned = false, view->lookup = NULL;
    if (weight->data) {
        const pvti_dtype *type = pvti_dtype_info(weight->dtype);
        view->data = (const char *)weight->data + o0 * (weight->I / type->block * type->bytes);
    }
    if (weight->codes) {
        int64_t at = o0 / og * (weight->I / weight->format.in_group) * weight->format.codebooks;
        view->codes = (char *)weight->codes + at * (weight->format.bits <= 8 ? 1 : 2);
        view->scales = weight->scales + o0 / og;
    }
    return PVT_OK;
}

/* dvalues[i] += d loss/d values[i]; partial: the processor's work space. */
static void pvti_weight_chain(pvt_ctx *ctx, pvt_real *const *dvalues, const pvt_weight *weight,
                              const pvt_real *dW, pvt_real *partial)
{
    PVTI_ON_DEVICE(ctx, weight_chain, dvalues, weight, dW);
    weight->kind->chain(ctx, dvalues, weight, dW, partial);
}

PVT_API pvt_result pvt_weight_chain(pvt_ctx *ctx, pvt_real *dcodebooks, pvt_real *dscales,
                                    const pvt_weight *weight, const pvt_real *dW)
{
    pvt_real *values[2], *partial = NULL;
    if (!weight->kind->chain)
        return pvti_fail(ctx, PVT_ERR_ARGUMENT, "a dense weight has no codebooks to differentiate");
    if (!ctx->device) partial = PVTI_NEW(ctx, pvt_real, pvti_chain_values(weight));
    if (!ctx->device && !partial) return PVT_ERR_MEMORY;
    values[0] = dcodebooks, values[1] = dscales;
    pvti_weight_chain(ctx, values, weight, dW, partial);
    pvti_free(ctx, partial);
    return PVT_OK;
}

PVT_API pvt_result pvt_weight_round_f16(pvt_weight *weight, const char *name)
{
    pvti_values values[PVTI_MAX_VALUES];
    int n = weight->kind->values(weight, values), i;
    if (weight->format.kind == PVT_FORMAT_DENSE && (!weight->owned || weight->dtype != PVTI_DTYPE_REAL))
        return pvti_fail(weight->ctx, PVT_ERR_ARGUMENT, "%s: only an owned weight can be rounded", name);
    for (i = 0; i < n; i++) {
        int64_t bad = pvti_round_f16(weight->ctx, NULL, NULL, values[i].data, values[i].n);
        if (bad >= 0)
            return pvti_fail(weight->ctx, PVT_ERR_NUMERIC,
                             "%s.%s: element %lld is %g, which does not fit fp16 (largest 65504)", name,
                             values[i].name, (long long)bad, pvti_peek(weight->ctx, values[i].data + bad));
    }
    for (i = 0; i < n; i++) pvti_round_f16(weight->ctx, NULL, values[i].data, values[i].data, values[i].n);
    return pvti_device_check(weight->ctx);
}
// >>optimizer
/*  Adam (1412.6980) and LAMB (1904.00962) for one array, with the reference's conventions:
        m ← β1·m + (1−β1)·g,   v ← β2·v + (1−β2)·g²,
        u = m / (√v + eps),   debias = √(1−β2^t) / (1−β1^t),
        Adam:  w ← (1 − lr·decay)·w − lr·debias·u
        LAMB:  u += decay·w;  w ← w − lr·debias·(‖w‖/‖u‖)·u   (factor 1 when either norm is 0).
    LAMB's ratio is taken before debias, so that at β1 = 0 its first steps are smaller by
    √(1−β2^t): a warm-up in disguise.
    Arrays are cut into chunks of PVTI_CHUNK, whatever the threads; norms are added chunk by
    chunk. At β1 = 0 there is no m. v may be kept in bf16: steps are then computed from the
    rounded value, so that a resumed run repeats them to the bit. */

#define PVTI_CHUNK ((int64_t)8192)

typedef struct pvti_adam_step {
    pvt_ctx *ctx;
    const pvt_adam *state;
    const pvt_real *g;
    double *sums;    /* [chunks, 2]: ‖w‖², ‖u‖² */
    pvt_real beta1, beta2, rest1, rest2, eps, decay, rate, keep; /* keep: 1 − lr·decay */
    bool lamb, second_pass;
} pvti_adam_step;

PVTI_KERNELS_BEGIN
PVTI_INLINE void pvti_adam_moment1_body(pvt_real *__restrict m, const pvt_real *__restrict g, pvt_real beta,
                                        pvt_real rest, int64_t n)
{
    int64_t k;
    for (k = 0; k < n; k++) m[k] = pvti_fma(beta, m[k], rest * g[k]);
}
PVTI_INLINE void pvti_adam_moment2_body(pvt_real *__restrict v, const pvt_real *__restrict g, pvt_real beta,
                                        pvt_real rest, int64_t n)
{
    int64_t k;
    for (k = 0; k < n; k++) v[k] = pvti_fma(beta, v[k], rest * g[k] * g[k]);
}
PVTI_INLINE void pvti_adam_direction_body(pvt_real *__restrict u, const pvt_real *__restrict m,
                                          const pvt_real *__restrict v, const pvt_real *__restrict w,
                                          pvt_real eps, pvt_real decay, int64_t n)
{
    int64_t k;
    for (k = 0; k < n; k++) u[k] = pvti_fma(decay, w[k], m[k] / (pvti_sqrt(v[k]) + eps));
}
PVTI_INLINE void pvti_adam_apply_body(pvt_real *__restrict w, const pvt_real *__restrict u, pvt_real keep,
                                      pvt_real rate, int64_t n)
{
    int64_t k;
    for (k = 0; k < n; k++) w[k] = pvti_fma(-rate, u[k], keep * w[k]);
}
PVTI_KERNEL(pvti_adam_moment1, (pvt_real *m, const pvt_real *g, pvt_real beta, pvt_real rest, int64_t n),
            (m, g, beta, rest, n))
PVTI_KERNEL(pvti_adam_moment2, (pvt_real *v, const pvt_real *g, pvt_real beta, pvt_real rest, int64_t n),
            (v, g, beta, rest, n))
PVTI_KERNEL(pvti_adam_direction, (pvt_real *u, const pvt_real *m, const pvt_real *v, const pvt_real *w,
                                  pvt_real eps,
                                  pvt_real decay, int64_t n), (u, m, v, w, eps, decay, n))
PVTI_KERNEL(pvti_adam_apply, (pvt_real *w, const pvt_real *u, pvt_real keep, pvt_real rate, int64_t n),
            (w, u, keep, rate, n))

PVTI_INLINE void pvti_bf16_load_body(pvt_real *__restrict out, const uint16_t *__restrict in, int64_t n)
{
    int64_t k;
    for (k = 0; k < n; k++) out[k] = (pvt_real)pvti_bf16_to_f32(in[k]);
}
PVTI_INLINE void pvti_bf16_store_body(uint16_t *__restrict out, const pvt_real *__restrict in, int64_t n)
{
    int64_t k;
    for (k = 0; k < n; k++) out[k] = pvti_f32_to_bf16((float)in[k]);
}
PVTI_KERNEL(pvti_bf16_load, (pvt_real *out, const uint16_t *in, int64_t n), (out, in, n))
PVTI_KERNEL(pvti_bf16_store, (uint16_t *out, const pvt_real *in, int64_t n), (out, in, n))
PVTI_KERNELS_END

static void pvti_adam_task(void *arg, int64_t i, int worker)
{
    const pvti_adam_step *s = (const pvti_adam_step *)arg;
    const pvt_adam *a = s->state;
    int64_t from = i * PVTI_CHUNK, n = PVTI_MIN(PVTI_CHUNK, a->n - from), k;
    pvt_real *u = (pvt_real *)pvti_scratch(s->ctx, worker), *own = u + PVTI_CHUNK;
    pvt_real *v = a->v_bf16 ? own : (pvt_real *)a->v + from, *w = a->w + from, *m = a->m ? a->m + from : NULL;
    const pvt_real *g = s->g + from;
    if (a->v_bf16) PVTI_CALL(s->ctx, pvti_bf16_load)(v, (uint16_t *)a->v + from, n);
    if (!s->second_pass) {
        if (m) PVTI_CALL(s->ctx, pvti_adam_moment1)(m, g, s->beta1, s->rest1, n);
        PVTI_CALL(s->ctx, pvti_adam_moment2)(v, g, s->beta2, s->rest2, n);
        if (a->v_bf16) {
            PVTI_CALL(s->ctx, pvti_bf16_store)((uint16_t *)a->v + from, v, n);
            PVTI_CALL(s->ctx, pvti_bf16_load)(v, (uint16_t *)a->v + from, n);
        }
        for (k = 0; a->v_max && k < n; k++) a->v_max[from + k] = PVTI_MAX(a->v_max[from + k], v[k]);
    }
    PVTI_CALL(s->ctx, pvti_adam_direction)(u, m ? m : g, a->v_max ? a->v_max + from : v, w, s->eps,
                                           s->lamb ? s->decay : 0, n);
    if (s->lamb && !s->second_pass) {
        PVTI_CALL(s->ctx, pvti_sumsq)(&s->sums[2 * i], w, n);
        PVTI_CALL(s->ctx, pvti_sumsq)(&s->sums[2 * i + 1], u, n);
    } else {
        PVTI_CALL(s->ctx, pvti_adam_apply)(w, u, s->keep, s->rate, n);
    }
}

static int64_t pvti_chunks(int64_t n) { return (n + PVTI_CHUNK - 1) / PVTI_CHUNK; }

/* Step t (from 1). sums: room for 2·chunks doubles. */
static void pvti_adam_run(pvt_ctx *ctx, const pvt_adam *state, const pvt_real *g, const pvt_optimizer *o,
                          double lr_scale, int64_t t, double *sums)
{
    pvti_adam_step s;
    double lr = o->lr * lr_scale, power1 = 1, power2 = 1, debias, w = 0, u = 0;
    int64_t i;
    PVTI_ON_DEVICE(ctx, adam, state, g, o, lr_scale, t, sums);
    for (i = 0; i < t; i++)
        power1 *= o->beta1, power2 *= o->beta2; /* not pow: libm's last bit differs between systems */
    memset(&s, 0, sizeof s);
    s.ctx = ctx, s.state = state, s.g = g, s.sums = sums, s.lamb = o->rule == PVT_OPTIMIZER_LAMB;
    s.beta1 = (pvt_real)o->beta1, s.rest1 = (pvt_real)(1 - o->beta1);
    s.beta2 = (pvt_real)o->beta2, s.rest2 = (pvt_real)(1 - o->beta2);
    s.eps = (pvt_real)o->eps, s.decay = (pvt_real)o->weight_decay;
    debias = o->no_debias ? 1 : __builtin_sqrt(1 - power2) / (1 - power1);
    s.rate = (pvt_real)(lr * debias), s.keep = s.lamb ? 1 : (pvt_real)(1 - lr * o->weight_decay);
    pvti_parallel(ctx, pvti_chunks(state->n), pvti_adam_task, &s);
    if (!s.lamb) return;
    for (i = 0; i < pvti_chunks(state->n); i++) w += sums[2 * i], u += sums[2 * i + 1];
    s.rate = (pvt_real)(lr * debias * (w > 0 && u > 0 ? __builtin_sqrt(w) / __builtin_sqrt(u) : 1));
    s.second_pass = true;
    pvti_parallel(ctx, pvti_chunks(state->n), pvti_adam_task, &s);
}

// >>pv
/*  PV-Tuning (2405.14852). Selection, cap, trust ratio, straight-through buffer and optimizer
    are written here once, for every representation. One gradient serves both steps. */

typedef struct pvti_pv_entry {
    char name[96];
    pvt_weight *weight;          /* a codebook weight, or NULL: the one array in adam[0] */
    int n_values;
    pvt_adam adam[PVTI_MAX_VALUES];
    pvt_real *dvalues[PVTI_MAX_VALUES];
    pvt_adam buffer;            /* .w: the straight-through buffer; NULL at δ = 1 (the target is made anew) */
    bool applied;
} pvti_pv_entry;

struct pvt_pv {
    pvt_ctx *ctx;
    pvt_pv_desc desc;
    pvti_pv_entry *entries;
    int64_t n, capacity, step;
    double lr_scale;
    bool open;
    pvt_pv_stats stats;
    /* work space, as large as the largest weight needs */
    int64_t room_partial, room_sums, room_target, room_groups, room_codes, room_tables;
    pvt_real *partial, *target, *tables;
    double *sums;
    float *keys, *change;        /* [groups] */
    int64_t *selected;           /* [groups] */
    uint64_t *sorted, *sorted_next; /* [groups] */
    uint16_t *codes;             /* [groups, M] */
    int64_t *changed;            /* groups changed in this step; with the above in the context's memory */
};

static const char *const pvti_strategy_names[] = {"pv", "continuous", "ste", "pv-linear"};

PVT_API pvt_result pvt_strategy_parse(pvt_ctx *ctx, const char *name, pvt_strategy *out)
{
    int i;
    for (i = 0; i < (int)PVTI_COUNT(pvti_strategy_names); i++)
        if (strcmp(name, pvti_strategy_names[i]) == 0) {
            *out = (pvt_strategy)i;
            return PVT_OK;
        }
    return pvti_fail(ctx, PVT_ERR_ARGUMENT, "strategy \"%.40s\": expected pv, continuous, ste or pv-linear",
                     name);
}
PVT_API const char *pvt_strategy_name(pvt_strategy strategy)
{
    return (unsigned)strategy < PVTI_COUNT(pvti_strategy_names) ? pvti_strategy_names[strategy] : "?";
}

/* What `o` leaves open it takes from `otherwise`; the learning rates of the two rules differ by a factor. */
static void pvti_optimizer_resolve(pvt_optimizer *o, const pvt_optimizer *otherwise, double lr_adam,
                                   double lr_lamb)
{
    if (o->rule == PVT_OPTIMIZER_DEFAULT) {
        o->rule = otherwise->rule;
        if (o->lr == 0) o->lr = otherwise->lr;
    }
    if (o->lr == 0) o->lr = o->rule == PVT_OPTIMIZER_LAMB ? lr_lamb : lr_adam;
    if (o->beta1 == 0 && o->beta2 == 0) o->beta1 = otherwise->beta1;
    if (o->beta2 == 0) o->beta2 = otherwise->beta2;
    if (o->eps == 0) o->eps = otherwise->eps;
}

/* The one place where the defaults of PV come from. bench/RESULTS.md says what was tried. */
PVT_API pvt_pv_desc pvt_pv_resolve(const pvt_pv_desc *desc)
{
    static const pvt_optimizer values = {PVT_OPTIMIZER_ADAM, 3e-4, 0.9, 0.95, 1e-6, 0, false, false};
    static const pvt_optimizer codes = {PVT_OPTIMIZER_LAMB, 2.5e-2, 0, 0.95, 1e-6, 0, false, false};
    pvt_pv_desc d;
    memset(&d, 0, sizeof d);
    if (desc) d = *desc;
    pvti_optimizer_resolve(&d.values, &values, 3e-4, 1e-3);
    pvti_optimizer_resolve(&d.params, &d.values, 3e-4, 1e-3);
    pvti_optimizer_resolve(&d.codes, &codes, 3e-3, 2.5e-2);
    if (d.cap == 0) d.cap = d.strategy == PVT_STRATEGY_STE ? 1 : 0.01;
    if (d.strategy == PVT_STRATEGY_PV) d.delta = 1;
    if (d.beam == 0) d.beam = 1;
    return d;
}

static bool pvti_optimizer_valid(const pvt_optimizer *o)
{
    return (unsigned)o->rule <= PVT_OPTIMIZER_LAMB && o->lr >= 0 && o->lr < 1e3 && o->beta1 >= 0 &&
           o->beta1 < 1 && o->beta2 >= 0 && o->beta2 < 1 && o->eps > 0 && o->weight_decay >= 0 &&
           o->weight_decay < 1e3;
}

PVT_API pvt_result pvt_pv_create(pvt_ctx *ctx, const pvt_pv_desc *desc, pvt_pv **out)
{
    pvt_pv_desc d = pvt_pv_resolve(desc);
    *out = NULL;
    if (!pvti_optimizer_valid(&d.values) || !pvti_optimizer_valid(&d.params) || !pvti_optimizer_valid(&d.codes))
        return pvti_fail(ctx, PVT_ERR_ARGUMENT,
                         "pv: an optimizer's rule, learning rate, beta, eps or weight decay is out of range");
    if (!((unsigned)d.strategy < PVTI_COUNT(pvti_strategy_names)) || !(d.cap > 0 && d.cap <= 1) ||
        !(d.trust >= 0) || !(d.delta >= 0 && d.delta <= 1) || d.beam < 1 || d.beam > PVTI_MAX_BEAM ||
        !(d.temperature >= 0) || (d.moments != PVT_DTYPE_NONE && d.moments != PVT_BF16))
        return pvti_fail(ctx, PVT_ERR_ARGUMENT,
                         "pv: cap must lie in (0, 1], delta in [0, 1], beam in 1 to %d; trust and "
                         "temperature may not be negative; moments are bf16 or full",
                         PVTI_MAX_BEAM);
    *out = PVTI_NEW(ctx, pvt_pv, 1);
    if (!*out) return PVT_ERR_MEMORY;
    (*out)->ctx = ctx, (*out)->desc = d;
    (*out)->changed = PVTI_MEMORY(ctx, int64_t, 1);
    if ((*out)->changed) return PVT_OK;
    pvti_free(ctx, *out);
    *out = NULL;
    return PVT_ERR_MEMORY;
}

static void pvti_adam_free(pvt_ctx *ctx, pvt_adam *a)
{
    pvt_memory_free(ctx, a->m), pvt_memory_free(ctx, a->v), pvt_memory_free(ctx, a->v_max);
}

static void pvti_pv_entry_free(pvt_pv *pv, pvti_pv_entry *e)
{
    for (int k = 0; k < e->n_values; k++) {
        pvti_adam_free(pv->ctx, &e->adam[k]);
        pvt_memory_free(pv->ctx, e->dvalues[k]);
    }
    pvti_adam_free(pv->ctx, &e->buffer);
    pvt_memory_free(pv->ctx, e->buffer.w);
}

PVT_API void pvt_pv_free(pvt_pv *pv)
{
    void *room[11];
    int64_t i;
    if (!pv) return;
    for (i = 0; i < pv->n; i++) pvti_pv_entry_free(pv, &pv->entries[i]);
    room[0] = pv->partial, room[1] = pv->target, room[2] = pv->tables, room[3] = pv->sums, room[4] = pv->keys;
    room[5] = pv->change, room[6] = pv->selected, room[7] = pv->sorted, room[8] = pv->sorted_next;
    room[9] = pv->codes, room[10] = pv->changed;
    for (i = 0; i < PVTI_COUNT(room); i++) pvt_memory_free(pv->ctx, room[i]);
    pvti_free(pv->ctx, pv->entries);
    pvti_free(pv->ctx, pv);
}

static bool pvti_adam_alloc(pvt_ctx *ctx, pvt_adam *a, pvt_real *w, int64_t n, const pvt_optimizer *o,
                            bool bf16)
{
    a->w = w, a->n = n, a->v_bf16 = bf16;
    if (o->beta1 > 0) a->m = PVTI_MEMORY(ctx, pvt_real, n);
    if (o->amsgrad) a->v_max = PVTI_MEMORY(ctx, pvt_real, n);
    a->v = pvti_memory(ctx, n, bf16 ? 2 : (int64_t)sizeof(pvt_real));
    return a->v && (a->m || o->beta1 == 0) && (a->v_max || !o->amsgrad);
}

/* *memory, which has room for `room` items, for `need` of them; its contents may be lost, but not it itself. */
static bool pvti_room(pvt_ctx *ctx, void **memory, int64_t room, int64_t need, int64_t size)
{
    void *more;
    if (need <= room) return true;
    more = pvti_memory(ctx, need, size);
    if (!more) return false;
    pvt_memory_free(ctx, *memory);
    *memory = more;
    return true;
}
#define PVTI_ROOM(pv, field, room, need) \
    pvti_room((pv)->ctx, (void **)(void *)&(pv)->field, (pv)->room, need, (int64_t)sizeof *(pv)->field)

static bool pvti_pv_rooms(pvt_pv *pv, const pvti_pv_entry *e, bool codes)
{
    int64_t partial = 0, sums = 0, groups = 0, n_codes = 0, tables = 0, target = 0;
    int i;
    for (i = 0; i < e->n_values; i++) sums = PVTI_MAX(sums, 2 * pvti_chunks(e->adam[i].n));
    if (e->weight) {
        int64_t n = e->weight->O * e->weight->I;
        if (!pv->ctx->device) partial = pvti_chain_values(e->weight); /* a device has its own, see reserve */
        sums = PVTI_MAX(PVTI_MAX(sums, 2 * pvti_chunks(n)), e->weight->O);
        if (codes) {
            groups = n / pvti_group_dim(e->weight), n_codes = groups * e->weight->format.codebooks;
            if (!pv->ctx->device) tables = pvti_search_tables_values(&e->weight->format);
            if (pv->desc.delta >= 1) target = n;
        }
    }
    if (!PVTI_ROOM(pv, partial, room_partial, partial) || !PVTI_ROOM(pv, sums, room_sums, sums) ||
        !PVTI_ROOM(pv, target, room_target, target) || !PVTI_ROOM(pv, tables, room_tables, tables) ||
        !PVTI_ROOM(pv, codes, room_codes, n_codes) || !PVTI_ROOM(pv, keys, room_groups, groups) ||
        !PVTI_ROOM(pv, change, room_groups, groups) || !PVTI_ROOM(pv, selected, room_groups, groups) ||
        !PVTI_ROOM(pv, sorted, room_groups, groups) || !PVTI_ROOM(pv, sorted_next, room_groups, groups))
        return false;
    pv->room_partial = PVTI_MAX(pv->room_partial, partial), pv->room_sums = PVTI_MAX(pv->room_sums, sums);
    pv->room_target = PVTI_MAX(pv->room_target, target), pv->room_tables = PVTI_MAX(pv->room_tables, tables);
    pv->room_codes = PVTI_MAX(pv->room_codes, n_codes), pv->room_groups = PVTI_MAX(pv->room_groups, groups);
    return true;
}

static pvt_result pvti_pv_add(pvt_pv *pv, pvt_weight *weight, pvt_real *p, int64_t n, const char *name,
                              int *handle)
{
    pvti_pv_entry *e;
    bool codes = weight && pv->desc.strategy != PVT_STRATEGY_CONTINUOUS, ok = true;
    int i;
    if (pv->step > 0 || pv->open)
        return pvti_fail(pv->ctx, PVT_ERR_ARGUMENT, "pv: add %s before the first step", name);
    if (!pvti_grow(pv->ctx, (void **)(void *)&pv->entries, &pv->capacity, pv->n + 1,
                   (int64_t)sizeof *pv->entries))
        return PVT_ERR_MEMORY;
    e = &pv->entries[pv->n];
    memset(e, 0, sizeof *e);
    snprintf(e->name, sizeof e->name, "%s", name);
    e->weight = weight;
    if (weight) {
        pvti_values values[PVTI_MAX_VALUES];
        pvti_free(weight->ctx, weight->lookup), weight->lookup = NULL;
        e->n_values = pv->desc.freeze_values ? 0 : weight->kind->values(weight, values);
        for (i = 0; i < e->n_values && ok; i++) {
            ok = pvti_adam_alloc(pv->ctx, &e->adam[i], values[i].data, values[i].n, &pv->desc.values, false);
            e->dvalues[i] = PVTI_MEMORY(pv->ctx, pvt_real, values[i].n);
            ok = ok && e->dvalues[i];
        }
        if (codes && ok) {
            int64_t size = weight->O * weight->I;
            ok =
                pvti_adam_alloc(pv->ctx, &e->buffer, NULL, size, &pv->desc.codes, pv->desc.moments == PVT_BF16);
            if (ok && pv->desc.delta < 1) {
                e->buffer.w = PVTI_MEMORY(pv->ctx, pvt_real, size);
                ok = e->buffer.w != NULL;
                if (ok) pvt_weight_dequantize(weight, e->buffer.w);
            }
        }
    } else {
        e->n_values = 1;
        ok = pvti_adam_alloc(pv->ctx, &e->adam[0], p, n, &pv->desc.params, false);
    }
    ok = ok && pvti_pv_rooms(pv, e, codes);
    if (ok && weight && pv->ctx->device &&
        !pv->ctx->device->reserve(pv->ctx->device_state, weight, pv->desc.beam)) {
        pvti_fail(pv->ctx, PVT_ERR_MEMORY, "pv: %s has no memory for tuning %s", pv->ctx->device->name, name);
        ok = false;
    }
    if (!ok) {
        pvti_pv_entry_free(pv, e);
        return PVT_ERR_MEMORY;
    }
    if (codes) pv->stats.groups += weight->O * weight->I / pvti_group_dim(weight);
    if (handle) *handle = (int)pv->n;
    pv->n++;
    return PVT_OK;
}

PVT_API pvt_result pvt_pv_add_weight(pvt_pv *pv, pvt_weight *weight, const char *name, int *handle)
{
    if (!pvti_same_memory(pv->ctx, weight->ctx))
        return pvti_fail(pv->ctx, PVT_ERR_MISMATCH, "pv: %s lies in the memory of another device", name);
    if (weight->format.kind != PVT_FORMAT_DENSE) return pvti_pv_add(pv, weight, NULL, 0, name, handle);
    if (!weight->owned || weight->dtype != PVTI_DTYPE_REAL)
        return pvti_fail(pv->ctx, PVT_ERR_ARGUMENT,
                         "pv: %s is dense and borrowed or not in full precision; copy it first "
                         "(pvt_weight_dense)",
                         name);
    return pvti_pv_add(pv, NULL, (pvt_real *)(uintptr_t)weight->data, weight->O * weight->I, name, handle);
}

PVT_API pvt_result pvt_pv_add_param(pvt_pv *pv, pvt_real *p, int64_t n, const char *name, int *handle)
{
    if (!p || n < 1) return pvti_fail(pv->ctx, PVT_ERR_ARGUMENT, "pv: %s is empty", name);
    return pvti_pv_add(pv, NULL, p, n, name, handle);
}

PVT_API pvt_result pvt_pv_begin(pvt_pv *pv, double lr_scale)
{
    int64_t i;
    if (pv->open || !(lr_scale >= 0))
        return pvti_fail(pv->ctx, PVT_ERR_ARGUMENT, "pv: begin inside a step, or a negative lr_scale");
    for (i = 0; i < pv->n; i++) pv->entries[i].applied = false;
    pv->open = true, pv->lr_scale = lr_scale;
    pv->step++;
    pv->stats.step = pv->step, pv->stats.groups_searched = pv->stats.groups_changed = 0;
    pvt_memory_zero(pv->ctx, pv->changed, (int64_t)sizeof *pv->changed);
    return pvti_device_check(pv->ctx);
}

PVT_API pvt_result pvt_pv_end(pvt_pv *pv, pvt_pv_stats *stats)
{
    int64_t i;
    if (!pv->open) return pvti_fail(pv->ctx, PVT_ERR_ARGUMENT, "pv: end without begin");
    for (i = 0; i < pv->n; i++)
        if (!pv->entries[i].applied)
            return pvti_fail(pv->ctx, PVT_ERR_ARGUMENT, "pv: %s has had no gradient in this step",
                             pv->entries[i].name);
    PVTI_TRY(pvt_memory_read(pv->ctx, &pv->stats.groups_changed, pv->changed, (int64_t)sizeof *pv->changed));
    pv->open = false;
    if (stats) *stats = pv->stats;
    return PVT_OK;
}

/* ---- selection of groups ---- */

typedef struct pvti_key_args {
    pvt_ctx *ctx;
    const pvt_weight *weight;
    const pvt_real *target;
    float *keys;
    double *norms; /* per out group: ‖Ŵ‖² */
} pvti_key_args;

PVTI_KERNELS_BEGIN
/* keys[j] = ‖target − decoded‖² of group j: og rows of ig weights, rows ld_t and ld_d apart. */
PVTI_INLINE void pvti_group_errors_rows(float *keys, const pvt_real *target, int64_t ld_t,
                                        const pvt_real *decoded, int64_t ld_d, int64_t groups, int64_t og,
                                        int64_t ig)
{
    int64_t j, r, a;
    for (j = 0; j < groups; j++) {
        pvt_real sum = 0;
        for (r = 0; r < og; r++)
            for (a = 0; a < ig; a++) {
                pvt_real d = target[r * ld_t + j * ig + a] - decoded[r * ld_d + j * ig + a];
                sum = pvti_fma(d, d, sum);
            }
        keys[j] = (float)sum;
    }
}
PVTI_INLINE void pvti_group_errors_body(float *keys, const pvt_real *target, int64_t ld_t,
                                        const pvt_real *decoded, int64_t ld_d, int64_t groups, int64_t og,
                                        int64_t ig)
{
    if (og == 1 && ig == 8)
        pvti_group_errors_rows(keys, target, ld_t, decoded, ld_d, groups, 1, 8);
    else
        pvti_group_errors_rows(keys, target, ld_t, decoded, ld_d, groups, og, ig);
}
PVTI_KERNEL_WIDE(pvti_group_errors, (float *keys, const pvt_real *target, int64_t ld_t, const pvt_real *decoded,
                                int64_t ld_d, int64_t groups,
                                int64_t og, int64_t ig), (keys, target, ld_t, decoded, ld_d, groups, og, ig))
PVTI_KERNELS_END

/* key = ‖target − Ŵ‖² of each group, previous codes, updated values. */
static void pvti_key_task(void *arg, int64_t go, int worker)
{
    const pvti_key_args *s = (const pvti_key_args *)arg;
    const pvt_weight *w = s->weight;
    int64_t og = w->format.out_group, ig = w->format.in_group, GI = w->I / ig,
            piece = PVTI_MAX(1, 8192 / (og * ig)), j0;
    pvt_real *decoded = (pvt_real *)pvti_scratch(s->ctx, worker);
    double norm = 0;
    for (j0 = 0; j0 < GI; j0 += piece) {
        int64_t j1 = PVTI_MIN(GI, j0 + piece), width = (j1 - j0) * ig;
        double part;
        PVTI_CALL(s->ctx, pvti_decode)(decoded, width, w, go, j0, j1, true);
        PVTI_CALL(s->ctx, pvti_sumsq)(&part, decoded, og * width);
        norm += part;
        PVTI_CALL_WIDE(s->ctx, pvti_group_errors)(s->keys + go * GI + j0, s->target + go * og * w->I + j0 * ig,
                                             w->I, decoded, width, j1 - j0, og, ig);
    }
    s->norms[go] = norm;
}

static void pvti_group_keys(pvt_ctx *ctx, float *keys, double *norms, const pvt_weight *weight,
                            const pvt_real *target)
{
    pvti_key_args s;
    PVTI_ON_DEVICE(ctx, group_errors, keys, norms, weight, target);
    s.ctx = ctx, s.weight = weight, s.target = target, s.keys = keys, s.norms = norms;
    pvti_parallel(ctx, weight->O / weight->format.out_group, pvti_key_task, &s);
}

/* A float's bits in an unsigned order that agrees with <. */
PVTI_INLINE uint32_t pvti_ordered(float key)
{
    uint32_t bits;
    memcpy(&bits, &key, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* The k groups with the largest keys, largest first, ties by index. A histogram of the upper 11 bits
   finds the bin that holds the k-th; only what lies in or above that bin is sorted (radix, stable).
   sorted and next: [groups] of work space. */
static void pvti_group_select(pvt_ctx *ctx, int64_t *selected, const float *keys, int64_t groups, int64_t k,
                              uint64_t *sorted, uint64_t *next)
{
    int64_t bins[2048], i, n = 0, above = 0;
    int bin = 2047, shift;
    PVTI_ON_DEVICE(ctx, group_select, selected, keys, groups, k, sorted, next);
    memset(bins, 0, sizeof bins);
    for (i = 0; i < groups; i++) bins[pvti_ordered(keys[i]) >> 21]++;
    while (bin > 0 && above + bins[bin] < k) above += bins[bin--];
    for (i = 0; i < groups; i++) {
        uint32_t key = pvti_ordered(keys[i]);
        if ((int)(key >> 21) >= bin)
            sorted[n++] = (uint64_t)~key << 32 | (uint64_t)i; /* ~: ascending sort puts the largest first */
    }
    for (shift = 32; shift < 64; shift += 11) {
        int64_t start[2048], at = 0, b;
        uint64_t *swap = sorted;
        memset(start, 0, sizeof start);
        for (i = 0; i < n; i++) start[sorted[i] >> shift & 2047]++;
        for (b = 0; b < 2048; b++) { int64_t count = start[b]; start[b] = at; at += count; }
        for (i = 0; i < n; i++) next[start[sorted[i] >> shift & 2047]++] = sorted[i];
        sorted = next, next = swap;
    }
    for (i = 0; i < k; i++) selected[i] = (int64_t)(sorted[i] & 0xffffffffu);
}

/* Sampling without replacement with p ∝ key^(0.5/T): the k largest of log p + Gumbel noise. */
static void pvti_group_noise(pvt_ctx *ctx, float *keys, int64_t groups, double temperature, uint64_t stream)
{
    int64_t i;
    PVTI_ON_DEVICE(ctx, group_noise, keys, groups, temperature, stream);
    for (i = 0; i < groups; i++) {
        double u = pvti_unit(pvti_mix(stream ^ (uint64_t)i));
        double noise = -pvti_log(-pvti_log(u * 0.999999 + 5e-7));
        keys[i] = keys[i] > 0 ? (float)(0.5 / temperature * pvti_log((double)keys[i]) + noise) : -FLT_MAX;
    }
}

/* ceil(share · n) without the rounding accident of floating point: share in parts of 1e9. */
static int64_t pvti_share(double share, int64_t n)
{
    int64_t parts = (int64_t)(share * 1e9 + 0.5);
    return PVTI_MIN(n,
                    PVTI_MAX(1, (parts * (n / 1000) + (parts * (n % 1000) + 999) / 1000 + 999999) / 1000000));
}

/* ---- one weight ---- */

static void pvti_weight_assign(pvt_ctx *ctx, const pvt_weight *weight, const pvt_assign *a, pvt_real *tables)
{
    pvti_l2_search s;
    PVTI_ON_DEVICE(ctx, weight_assign, weight, a);
    memset(&s, 0, sizeof s);
    s.ctx = ctx, s.weight = weight, s.target = a->target, s.order = a->order, s.n = a->n, s.beam = a->beam;
    s.force = a->force, s.groups = a->groups, s.codes = a->codes, s.change = a->change;
    pvti_search_tables_fill(&s.tables, tables, weight);
    pvti_l2_run(&s);
}

/* Of the groups that were searched, the most wrong first, as many take their new codes as the trust ratio
   allows: together they may move the weight by trust·‖Ŵ‖. */
static void pvti_weight_commit(pvt_ctx *ctx, pvt_weight *weight, const pvt_assign *a, const double *norms,
                               double trust, int64_t *changed)
{
    int64_t M = weight->format.codebooks, accepted = a->n, i, m;
    double norm = 0, moved = 0;
    PVTI_ON_DEVICE(ctx, weight_commit, weight, a, norms, trust, changed);
    if (trust > 0) {
        for (i = 0; i < weight->O / weight->format.out_group; i++) norm += norms[i];
        for (accepted = 1, i = 0; i < a->n; i++) {
            moved += (double)a->change[i];
            if (moved < trust * trust * norm) accepted++;
        }
        accepted = PVTI_MIN(accepted, a->n);
    }
    for (i = 0; i < accepted; i++) {
        int64_t group = a->groups ? a->groups[i] : i;
        bool differs = false;
        for (m = 0; m < M; m++) {
            differs = differs || pvti_code_get(weight, group * M + m) != a->codes[i * M + m];
            pvti_code_set(weight, group * M + m, a->codes[i * M + m]);
        }
        *changed += differs;
    }
}

/* V step against `target`: search the capped share, keep what the trust ratio allows. */
static void pvti_pv_assign(pvt_pv *pv, int64_t handle, const pvt_real *target)
{
    pvt_weight *w = pv->entries[handle].weight;
    int64_t groups = w->O * w->I / pvti_group_dim(w), k = pvti_share(pv->desc.cap, groups), order[16];
    uint64_t step = (uint64_t)pv->step * 65536 + (uint64_t)handle;
    bool trusted = pv->desc.trust > 0, some = k < groups || trusted;
    pvt_assign a;
    memset(&a, 0, sizeof a);
    if (some) {
        pvti_group_keys(pv->ctx, pv->keys, pv->sums, w, target);
        if (pv->desc.temperature > 0)
            pvti_group_noise(pv->ctx, pv->keys, groups, pv->desc.temperature,
                             pvti_random_stream(pv->ctx->seed, PVTI_RANDOM_SELECTION, step));
        pvti_group_select(pv->ctx, pv->selected, pv->keys, groups, k, pv->sorted, pv->sorted_next);
    }
    pvti_random_order(order, w->format.codebooks, pv->ctx->seed, PVTI_RANDOM_CODEBOOK_ORDER, step);
    a.target = target, a.groups = some ? pv->selected : NULL, a.n = k;
    a.order = order, a.beam = pv->desc.beam, a.force = pv->desc.force_update;
    a.codes = pv->codes, a.change = trusted ? pv->change : NULL;
    pvti_weight_assign(pv->ctx, w, &a, pv->tables);
    pvti_weight_commit(pv->ctx, w, &a, pv->sums, pv->desc.trust, pv->changed);
    pv->stats.groups_searched += k;
}

typedef struct pvti_dequantize_args {
    pvt_ctx *ctx;
    const pvt_weight *weight;
    pvt_real *out, delta; /* out ← δ·Ŵ + (1−δ)·out */
} pvti_dequantize_args;

static void pvti_dequantize_task(void *arg, int64_t go, int worker)
{
    const pvti_dequantize_args *a = (const pvti_dequantize_args *)arg;
    const pvt_weight *w = a->weight;
    int64_t og = w->format.out_group, ig = w->format.in_group, GI = w->I / ig,
            piece = PVTI_MAX(1, 8192 / (og * ig)), j0, r, k;
    pvt_real *decoded = (pvt_real *)pvti_scratch(a->ctx, worker);
    for (j0 = 0; j0 < GI; j0 += piece) {
        int64_t j1 = PVTI_MIN(GI, j0 + piece), width = (j1 - j0) * ig;
        PVTI_CALL(a->ctx, pvti_decode)(decoded, width, w, go, j0, j1, true);
        for (r = 0; r < og; r++) {
            pvt_real *out = a->out + (go * og + r) * w->I + j0 * ig;
            for (k = 0; k < width; k++)
                out[k] = a->delta < 1 ? a->delta * decoded[r * width + k] + (1 - a->delta) * out[k]
                                      : decoded[r * width + k];
        }
    }
}

static void pvti_dequantize_blend(pvt_ctx *ctx, const pvt_weight *weight, pvt_real *out, double delta)
{
    pvti_dequantize_args a;
    PVTI_ON_DEVICE(ctx, weight_dequantize, out, weight, delta);
    a.ctx = ctx, a.weight = weight, a.out = out, a.delta = (pvt_real)delta;
    pvti_parallel(ctx, weight->O / weight->format.out_group, pvti_dequantize_task, &a);
}

typedef struct pvti_finite_args {
    pvt_ctx *ctx;
    const pvt_real *g;
    int64_t n;
    double *sums;
} pvti_finite_args;

static void pvti_finite_task(void *arg, int64_t i, int worker)
{
    const pvti_finite_args *a = (const pvti_finite_args *)arg;
    (void)worker;
    PVTI_CALL(a->ctx, pvti_sum)(&a->sums[i], a->g + i * PVTI_CHUNK, PVTI_MIN(PVTI_CHUNK,
                                                                             a->n - i * PVTI_CHUNK));
}

/* A NaN or infinity in g shows in the sums (a finite sum that overflows is no better). */
static bool pvti_finite(pvt_ctx *ctx, const pvt_real *g, int64_t n, double *sums)
{
    pvti_finite_args a;
    int64_t i;
    bool finite = true;
    if (ctx->device) return ctx->device->finite(ctx->device_state, g, n, sums);
    a.ctx = ctx, a.g = g, a.n = n, a.sums = sums;
    pvti_parallel(ctx, pvti_chunks(n), pvti_finite_task, &a);
    for (i = 0; i < pvti_chunks(n); i++) finite = finite && fabs(sums[i]) <= DBL_MAX;
    return finite;
}

PVT_API pvt_result pvt_pv_apply(pvt_pv *pv, int handle, const pvt_real *dW)
{
    const pvt_pv_desc *d = &pv->desc;
    pvti_pv_entry *e;
    bool finite;
    int i;
    if (!pv->open || handle < 0 || handle >= pv->n || pv->entries[handle].applied)
        return pvti_fail(pv->ctx, PVT_ERR_ARGUMENT,
                         "pv: apply outside a step, with an unknown handle (%d), or twice", handle);
    e = &pv->entries[handle];
    finite = pvti_finite(pv->ctx, dW, e->weight ? e->weight->O * e->weight->I : e->adam[0].n, pv->sums);
    PVTI_TRY(pvti_device_check(pv->ctx));
    if (!finite)
        return pvti_fail(pv->ctx, PVT_ERR_NUMERIC,
                         "the gradient of %s holds a NaN or an infinity; lower the learning rates", e->name);
    e->applied = true;
    if (!e->weight) {
        pvti_adam_run(pv->ctx, &e->adam[0], dW, &d->params, pv->lr_scale, pv->step, pv->sums);
        return PVT_OK;
    }
    pvti_free(e->weight->ctx, e->weight->lookup), e->weight->lookup = NULL; /* prepared since the last step */
    for (i = 0; i < e->n_values; i++) pvti_zero(pv->ctx, e->dvalues[i], e->adam[i].n);
    if (!d->freeze_values) pvti_weight_chain(pv->ctx, e->dvalues, e->weight, dW, pv->partial);
    if (d->strategy != PVT_STRATEGY_CONTINUOUS && d->delta >= 1)
        pvti_dequantize_blend(pv->ctx, e->weight, pv->target, 1);
    for (i = 0; i < e->n_values; i++)
        pvti_adam_run(pv->ctx, &e->adam[i], e->dvalues[i], &d->values, pv->lr_scale, pv->step, pv->sums);
    if (d->strategy == PVT_STRATEGY_CONTINUOUS) return PVT_OK;
    {
        pvt_adam target = e->buffer;
        if (d->delta >= 1) target.w = pv->target;
        pvti_adam_run(pv->ctx, &target, dW, &d->codes, pv->lr_scale, pv->step, pv->sums);
        pvti_pv_assign(pv, handle, target.w);
        if (d->delta > 0 && d->delta < 1) pvti_dequantize_blend(pv->ctx, e->weight, e->buffer.w, d->delta);
    }
    return PVT_OK;
}

/* ---- what a checkpoint holds ---- */

typedef struct pvti_pv_array {
    char name[128];
    void *data;
    pvt_dtype dtype;
    int64_t n;
} pvti_pv_array;

/* The i-th array of the state (masters, moments, buffers, codes), false past the last. */
static PVTI_UNUSED bool pvti_pv_state(const pvt_pv *pv, int64_t index, pvti_pv_array *out)
{
    int64_t i, at = 0;
    int k, part;
    for (i = 0; i < pv->n; i++) {
        const pvti_pv_entry *e = &pv->entries[i];
        for (k = 0; k <= e->n_values; k++) {
            const pvt_adam *a = k < e->n_values ? &e->adam[k] : &e->buffer;
            void *data[4];
            static const char *const suffix[4] = {"w", "m", "v", "vmax"};
            data[0] = a->w, data[1] = a->m, data[2] = a->v, data[3] = a->v_max;
            for (part = 0; part < 4; part++) {
                if (!data[part] || at++ != index) continue;
                snprintf(out->name, sizeof out->name, "%s.%s%d.%s", e->name,
                         k < e->n_values ? "value" : "buffer", k, suffix[part]);
                out->data = data[part], out->n = a->n;
                out->dtype = part == 2 && a->v_bf16 ? PVT_BF16 : PVTI_DTYPE_REAL;
                return true;
            }
        }
        if (e->weight && at++ == index) {
            snprintf(out->name, sizeof out->name, "%s.codes", e->name);
            out->data = e->weight->codes, out->dtype = e->weight->format.bits <= 8 ? PVT_U8 : PVT_U16;
            out->n = e->weight->O * e->weight->I / pvti_group_dim(e->weight) * e->weight->format.codebooks;
            return true;
        }
    }
    return false;
}

#endif /* PVTUNE_LAYER >= 1 */
#if PVTUNE_LAYER >= 2

// >>json
/*  Reading: a first look counts the values; a second checks the text (UTF-8, grammar, depth,
    duplicate keys) and leaves an array of nodes of 16 bytes in document order: at most eight
    bytes per byte of text, and no allocation per string. Node 0 is the root; the first child of a
    container is the node behind it, `next` leads to its siblings. Strings stay in the text, escapes
    and all, and are decoded when asked for: the text must outlive the nodes.

    Writing: pvti_text grows; pvti_text_string and pvti_text_number write values that any reader
    understands, whatever the locale. */

#define PVTI_JSON_DEPTH 64
#define PVTI_JSON_BYTES ((int64_t)1 << 29) /* offsets leave room for a flag in 32 bits */
#define PVTI_JSON_ESCAPED 0x80000000u /* a backslash occurs: bytes as written are not bytes as meant */

enum { PVTI_JSON_NONE, PVTI_JSON_NULL, PVTI_JSON_BOOL, PVTI_JSON_NUMBER, PVTI_JSON_STRING, PVTI_JSON_ARRAY,
       PVTI_JSON_OBJECT };

typedef struct pvti_json_node {
    uint32_t text; /* where the value begins; its first character is its type */
    uint32_t size; /* array, object: children; string: bytes between the quotes, and the flag; else: bytes */
    uint32_t key;  /* member of an object: behind the key's opening quote, and the flag; 0: no member */
    uint32_t next; /* next sibling, 0: none */
} pvti_json_node;

typedef struct pvti_json {
    pvt_ctx *ctx;
    const char *text;
    pvti_json_node *nodes;
    int64_t n, capacity;
} pvti_json;

/* Up to four bytes; their number. */
static int pvti_utf8_write(uint32_t c, char out[4])
{
    int i, length = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t lead[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (i = length - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 63));
    out[0] = (char)(lead[length] | c);
    return length;
}

/* ---- sorting: what duplicate detection rests on, here and in tensor files ---- */

/* The order is by key, then by the tie function (NULL: none), then by index: worst case
   O(n log n) whatever a hostile file contains, where a hash table would go quadratic. */
typedef struct pvti_sort_item {
    uint64_t key;
    int64_t index;
} pvti_sort_item;
typedef int pvti_sort_tie_fn(const void *self, int64_t a, int64_t b); /* as strcmp */

static bool pvti_sort_less(pvti_sort_item a, pvti_sort_item b, pvti_sort_tie_fn *tie, const void *self)
{
    int order = 0;
    if (a.key != b.key) return a.key < b.key;
    if (tie) order = tie(self, a.index, b.index);
    return order ? order < 0 : a.index < b.index;
}

/* Heapsort: in place, no recursion, no worst case. */
static void pvti_sort(pvti_sort_item *items, int64_t n, pvti_sort_tie_fn *tie, const void *self)
{
    int64_t start = n / 2, end = n;
    while (end > 1) {
        pvti_sort_item item;
        int64_t hole, child;
        if (start > 0) {
            item = items[hole = --start]; /* building the heap */
        } else {
            item = items[--end]; /* taking the largest off it */
            items[end] = items[hole = 0];
        }
        while ((child = 2 * hole + 1) < end) {
            if (child + 1 < end && pvti_sort_less(items[child], items[child + 1], tie, self)) child++;
            if (!pvti_sort_less(item, items[child], tie, self)) break;
            items[hole] = items[child];
            hole = child;
        }
        items[hole] = item;
    }
}

/* ---- strings as written: a reader of their decoded bytes ---- */

typedef struct pvti_json_bytes {
    const char *s, *end;
    char pending[4];
    int n, i;
} pvti_json_bytes;

static int pvti_json_hex(const char *s, const char *end, uint32_t *value)
{
    int i;
    *value = 0;
    if (end - s < 4) return 0;
    for (i = 0; i < 4; i++) {
        char c = s[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
                  : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return 0;
        *value = *value << 4 | (uint32_t)digit;
    }
    return 4;
}

/* The character of an escape behind its backslash; bytes consumed, 0 when it is none. */
static int pvti_json_unescape(const char *s, const char *end, uint32_t *character)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const char *found;
    uint32_t low;
    if (s >= end || *s == 0) return 0;
    if (*s != 'u') {
        found = strchr(names, *s);
        if (!found) return 0;
        *character = (uint32_t)values[found - names];
        return 1;
    }
    if (!pvti_json_hex(s + 1, end, character)) return 0;
    if (*character < 0xd800 || *character >= 0xe000) return 5;
    if (*character >= 0xdc00 || end - s < 7 || s[5] != '\\' || s[6] != 'u') return 0; /* half a pair */
    if (!pvti_json_hex(s + 7, end, &low) || low < 0xdc00 || low >= 0xe000) return 0;
    *character = 0x10000 + ((*character - 0xd800) << 10) + (low - 0xdc00);
    return 11;
}

/* The next decoded byte, −1 at the end. The string has been checked by the parser. */
static int pvti_json_byte(pvti_json_bytes *b)
{
    uint32_t character = 0;
    if (b->i < b->n) return (uint8_t)b->pending[b->i++];
    if (b->s >= b->end) return -1;
    if (*b->s != '\\') return (uint8_t)*b->s++;
    b->s += 1 + pvti_json_unescape(b->s + 1, b->end, &character);
    b->n = pvti_utf8_write(character, b->pending);
    b->i = 1;
    return (uint8_t)b->pending[0];
}

/* A string as written, between its quotes. */
typedef struct pvti_json_span {
    const char *s;
    int64_t bytes;
    bool escaped;
} pvti_json_span;

static pvti_json_span pvti_json_value_span(const pvti_json *j, int64_t node)
{
    const pvti_json_node *n = &j->nodes[node];
    pvti_json_span span;
    span.s = j->text + n->text + (j->text[n->text] == '"');
    span.bytes = n->size & ~PVTI_JSON_ESCAPED;
    span.escaped = (n->size & PVTI_JSON_ESCAPED) != 0;
    return span;
}

/* A key's length is found anew: it was seen to end at a quote that no backslash precedes. */
static pvti_json_span pvti_json_key_span(const pvti_json *j, int64_t node)
{
    uint32_t key = j->nodes[node].key;
    pvti_json_span span;
    span.s = j->text + (key & ~PVTI_JSON_ESCAPED);
    span.bytes = 0;
    span.escaped = (key & PVTI_JSON_ESCAPED) != 0;
    if (key)
        for (; span.s[span.bytes] != '"'; span.bytes++) span.bytes += span.s[span.bytes] == '\\';
    return span;
}

static pvti_json_bytes pvti_json_reader(pvti_json_span span)
{
    pvti_json_bytes b;
    memset(&b, 0, sizeof b);
    b.s = span.s, b.end = span.s + span.bytes;
    return b;
}

/* Decoded length, which may exceed cap; the bytes that fit, and a NUL when all do. */
static int64_t pvti_json_decode(pvti_json_span span, char *out, int64_t cap)
{
    int64_t n = 0;
    if (!span.escaped) {
        n = span.bytes;
        if (out && cap > 0) memcpy(out, span.s, (size_t)PVTI_MIN(n, cap));
    } else {
        pvti_json_bytes b = pvti_json_reader(span);
        int c;
        for (; (c = pvti_json_byte(&b)) >= 0; n++)
            if (out && n < cap) out[n] = (char)c;
    }
    if (out && n < cap) out[n] = 0;
    return n;
}

/* strcmp's order on decoded bytes. */
static int pvti_json_compare(pvti_json_bytes a, pvti_json_bytes b)
{
    int x, y;
    do {
        x = pvti_json_byte(&a);
        y = pvti_json_byte(&b);
    } while (x == y && x >= 0);
    return x - y;
}

static bool pvti_json_same(pvti_json_span span, const char *text)
{
    int64_t i, length = (int64_t)strlen(text);
    pvti_json_bytes b;
    if (!span.escaped) return span.bytes == length && memcmp(span.s, text, (size_t)length) == 0;
    b = pvti_json_reader(span);
    for (i = 0; i < length; i++)
        if (pvti_json_byte(&b) != (uint8_t)text[i]) return false;
    return pvti_json_byte(&b) < 0;
}

/* ---- the parser ---- */

typedef struct pvti_json_parser {
    pvti_json *j;
    const char *name, *text, *at, *end;
    pvti_sort_item *keys; /* of the object being checked */
    int64_t keys_capacity;
} pvti_json_parser;

static pvt_result pvti_json_error(const pvti_json_parser *p, const char *where, const char *what)
{
    const char *s;
    long long line = 1, column = 1;
    for (s = p->text; s < where; s++) {
        column = *s == '\n' ? 1 : column + 1;
        line += *s == '\n';
    }
    return pvti_fail(p->j->ctx, PVT_ERR_FORMAT, "%s: not valid JSON: line %lld, column %lld: %s", p->name,
                     line, column, what);
}

static void pvti_json_space(pvti_json_parser *p)
{
    while (p->at < p->end && (*p->at == ' ' || *p->at == '\t' || *p->at == '\n' || *p->at == '\r')) p->at++;
}

/* How many values the text holds if it is valid, so that the nodes are allocated once: each comma and
    each opening bracket announces one, but for a bracket closed at once. Stops where the text cannot be
    valid, so that no text asks for more than eight bytes per byte of it. */
static int64_t pvti_json_count_values(const char *s, const char *end)
{
    int64_t n = 1, depth = 0;
    char last = ',';
    for (; s < end && depth <= PVTI_JSON_DEPTH; s++) {
        char c = *s;
        bool opened = last == '[' || last == '{', opens = c == '[' || c == '{', closes = c == ']' || c == '}';
        if (c == ' ' || c == '\t' || c == '\n' || c == '\r') continue;
        if (c == ',' && (opened || last == ',')) break;
        if (c == '"')
            for (s++; s < end && *s != '"'; s++) s += *s == '\\' && s + 1 < end;
        n += (c == ',' || opens) - (closes && opened);
        depth += opens - closes;
        last = c;
    }
    return n;
}

/* A value that begins at p->at. */
static pvt_result pvti_json_node_add(pvti_json_parser *p, int64_t *node)
{
    pvti_json *j = p->j;
    if (!pvti_grow(j->ctx, (void **)&j->nodes, &j->capacity, j->n + 1, (int64_t)sizeof(pvti_json_node)))
        return PVT_ERR_MEMORY;
    *node = j->n++;
    memset(&j->nodes[*node], 0, sizeof *j->nodes);
    j->nodes[*node].text = (uint32_t)(p->at - p->text);
    return PVT_OK;
}

/* p->at stands on the opening quote; leaves it behind the closing one. bytes: with the flag. */
static pvt_result pvti_json_scan_string(pvti_json_parser *p, uint32_t *bytes)
{
    const char *s = p->at + 1;
    uint32_t character, escaped = 0;
    int n;
    for (;;) {
        if (s >= p->end) return pvti_json_error(p, p->at, "a string is not closed");
        if (*s == '"') break;
        if (*s == '\\') {
            escaped = PVTI_JSON_ESCAPED;
            n = pvti_json_unescape(s + 1, p->end, &character);
            if (!n) return pvti_json_error(p, s, "a bad escape in a string");
            s += 1 + n;
        } else if ((uint8_t)*s < 0x20) {
            return pvti_json_error(p, s, "a control character in a string");
        } else if ((uint8_t)*s < 0x80) {
            s++;
        } else {
            n = pvti_utf8_read(s, p->end - s, &character);
            if (!n) return pvti_json_error(p, s, "a string is not UTF-8");
            s += n;
        }
    }
    *bytes = (uint32_t)(s - p->at - 1) | escaped;
    p->at = s + 1;
    return PVT_OK;
}

static const char *pvti_json_digits(const char *s, const char *end)
{
    while (s < end && *s >= '0' && *s <= '9') s++;
    return s;
}

/* -? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)? */
static pvt_result pvti_json_scan_number(pvti_json_parser *p)
{
    const char *s = p->at, *digits;
    if (s < p->end && *s == '-') s++;
    digits = s;
    s = pvti_json_digits(s, p->end);
    if (s == digits || (*digits == '0' && s - digits > 1)) return pvti_json_error(p, p->at, "not a value");
    if (s < p->end && *s == '.') {
        digits = ++s;
        s = pvti_json_digits(s, p->end);
        if (s == digits) return pvti_json_error(p, p->at, "a number ends at its point");
    }
    if (s < p->end && (*s == 'e' || *s == 'E')) {
        s++;
        if (s < p->end && (*s == '+' || *s == '-')) s++;
        digits = s;
        s = pvti_json_digits(s, p->end);
        if (s == digits) return pvti_json_error(p, p->at, "a number has an empty exponent");
    }
    p->at = s;
    return PVT_OK;
}

static pvt_result pvti_json_scan_scalar(pvti_json_parser *p, int64_t *node)
{
    static const char *const words[] = {"true", "false", "null"};
    const char *start = p->at;
    int i;
    PVTI_TRY(pvti_json_node_add(p, node));
    if (*start == '"') return pvti_json_scan_string(p, &p->j->nodes[*node].size);
    for (i = 0; i < 3; i++) {
        int64_t length = (int64_t)strlen(words[i]);
        if (p->end - start >= length && memcmp(start, words[i], (size_t)length) == 0) p->at = start + length;
    }
    if (p->at == start) PVTI_TRY(pvti_json_scan_number(p));
    p->j->nodes[*node].size = (uint32_t)(p->at - start);
    return PVT_OK;
}

static pvti_json_bytes pvti_json_key_reader(const pvti_json *j, int64_t node)
{
    return pvti_json_reader(pvti_json_key_span(j, node));
}

static int pvti_json_key_tie(const void *self, int64_t a, int64_t b)
{
    return pvti_json_compare(pvti_json_key_reader((const pvti_json *)self, a),
                             pvti_json_key_reader((const pvti_json *)self, b));
}

static uint64_t pvti_json_key_hash(const pvti_json *j, int64_t node)
{
    pvti_json_bytes b = pvti_json_key_reader(j, node);
    uint64_t hash = 0;
    int c;
    while ((c = pvti_json_byte(&b)) >= 0) hash = (hash ^ (uint64_t)c) * 0x100000001b3u;
    return pvti_mix(hash);
}

/* The same key twice: readers differ on which one counts, so neither does. */
static pvt_result pvti_json_check_keys(pvti_json_parser *p, int64_t object)
{
    pvti_json *j = p->j;
    int64_t i = 0, n = j->nodes[object].size, node = object + 1;
    if (n < 2) return PVT_OK;
    if (!pvti_grow(j->ctx, (void **)&p->keys, &p->keys_capacity, n, (int64_t)sizeof *p->keys))
        return PVT_ERR_MEMORY;
    for (; i < n; i++, node = j->nodes[node].next) {
        p->keys[i].key = pvti_json_key_hash(j, node);
        p->keys[i].index = node;
    }
    pvti_sort(p->keys, n, pvti_json_key_tie, j);
    for (i = 1; i < n; i++)
        if (p->keys[i].key == p->keys[i - 1].key &&
            pvti_json_key_tie(j, p->keys[i].index, p->keys[i - 1].index) == 0) {
            pvti_json_span twice = pvti_json_key_span(j, p->keys[i].index);
            char what[160];
            snprintf(what, sizeof what, "the key \"%.*s\" occurs twice in one object",
                     (int)PVTI_MIN(twice.bytes, 100), twice.s);
            return pvti_json_error(p, twice.s, what);
        }
    return PVT_OK;
}

static pvt_result pvti_json_member_key(pvti_json_parser *p, uint32_t *key)
{
    uint32_t bytes;
    if (p->at >= p->end || *p->at != '"') return pvti_json_error(p, p->at, "a key in quotes was expected");
    *key = (uint32_t)(p->at + 1 - p->text);
    PVTI_TRY(pvti_json_scan_string(p, &bytes));
    *key |= bytes & PVTI_JSON_ESCAPED;
    pvti_json_space(p);
    if (p->at >= p->end || *p->at != ':') return pvti_json_error(p, p->at, "':' was expected after a key");
    p->at++;
    pvti_json_space(p);
    return PVT_OK;
}

/* One value and all in it. Recursion is bounded by PVTI_JSON_DEPTH. */
static pvt_result pvti_json_value(pvti_json_parser *p, int depth, int64_t *node)
{
    pvti_json *j = p->j;
    int64_t previous = 0, child = 0;
    bool object;
    char close;
    if (p->at >= p->end) return pvti_json_error(p, p->at, "the text ends where a value was expected");
    if (*p->at != '{' && *p->at != '[') return pvti_json_scan_scalar(p, node);
    if (depth >= PVTI_JSON_DEPTH) return pvti_json_error(p, p->at, "nested deeper than 64 levels");
    object = *p->at == '{';
    close = object ? '}' : ']';
    PVTI_TRY(pvti_json_node_add(p, node));
    p->at++;
    pvti_json_space(p);
    if (p->at < p->end && *p->at == close) return p->at++, PVT_OK;
    for (;;) {
        uint32_t key = 0;
        pvti_json_space(p);
        if (object) PVTI_TRY(pvti_json_member_key(p, &key));
        PVTI_TRY(pvti_json_value(p, depth + 1, &child));
        j->nodes[child].key = key;
        if (previous) j->nodes[previous].next = (uint32_t)child;
        previous = child;
        j->nodes[*node].size++;
        pvti_json_space(p);
        if (p->at < p->end && *p->at == close) break;
        if (p->at >= p->end || *p->at != ',')
            return pvti_json_error(p, p->at, object ? "',' or '}' was expected" : "',' or ']' was expected");
        p->at++;
    }
    p->at++;
    return object ? pvti_json_check_keys(p, *node) : PVT_OK;
}

static void pvti_json_free(pvti_json *j)
{
    if (j->ctx) pvti_free(j->ctx, j->nodes);
    memset(j, 0, sizeof *j);
}

/* Parses text[0 … len−1], which must outlive `out`; `name` is what errors call it.
   On failure out is empty. */
static pvt_result pvti_json_parse(pvt_ctx *ctx, const char *name, const char *text, int64_t len,
                                  pvti_json *out)
{
    pvti_json_parser p;
    pvt_result result;
    int64_t root;
    memset(out, 0, sizeof *out);
    memset(&p, 0, sizeof p);
    if (len > PVTI_JSON_BYTES)
        return pvti_fail(ctx, PVT_ERR_UNSUPPORTED, "%s: %lld bytes of JSON; at most 512 MiB are read", name,
                         (long long)len);
    if (!text) text = "", len = 0;
    out->ctx = ctx, out->text = text;
    p.j = out, p.name = name, p.text = p.at = text, p.end = text + len;
    if (!pvti_grow(ctx, (void **)&out->nodes, &out->capacity, pvti_json_count_values(text, p.end),
                   (int64_t)sizeof *out->nodes)) {
        pvti_json_free(out);
        return PVT_ERR_MEMORY;
    }
    pvti_json_space(&p);
    result = pvti_json_value(&p, 0, &root);
    pvti_json_space(&p);
    if (result == PVT_OK && p.at < p.end)
        result = pvti_json_error(&p, p.at, "text follows the end of the value");
    pvti_free(ctx, p.keys);
    if (result != PVT_OK) pvti_json_free(out);
    return result;
}

/* A file: the map holds the text and is closed after the nodes. On failure both are empty. */
static PVTI_UNUSED pvt_result pvti_json_open(pvt_ctx *ctx, const char *path, pvti_map *map, pvti_json *out)
{
    pvt_result result;
    memset(out, 0, sizeof *out);
    PVTI_TRY(pvti_map_open(ctx, path, map));
    result = pvti_json_parse(ctx, path, (const char *)map->data, map->size, out);
    if (result != PVT_OK) pvti_map_close(ctx, map);
    return result;
}

/* ---- reading values; node −1 is accepted everywhere and behaves as absent ---- */

static int pvti_json_type(const pvti_json *j, int64_t node)
{
    if (node < 0 || node >= j->n) return PVTI_JSON_NONE;
    switch (j->text[j->nodes[node].text]) {
    case '{': return PVTI_JSON_OBJECT;
    case '[': return PVTI_JSON_ARRAY;
    case '"': return PVTI_JSON_STRING;
    case 'n': return PVTI_JSON_NULL;
    case 't':
    case 'f': return PVTI_JSON_BOOL;
    default: return PVTI_JSON_NUMBER;
    }
}

/* Children in order, −1 at the end; a child of an object is the member's value. */
static int64_t pvti_json_first(const pvti_json *j, int64_t node)
{
    return pvti_json_type(j, node) >= PVTI_JSON_ARRAY && j->nodes[node].size ? node + 1 : -1;
}
static int64_t pvti_json_next(const pvti_json *j, int64_t node)
{
    return node > 0 && node < j->n && j->nodes[node].next ? (int64_t)j->nodes[node].next : -1;
}
static PVTI_UNUSED int64_t pvti_json_count(const pvti_json *j, int64_t node)
{
    return pvti_json_type(j, node) >= PVTI_JSON_ARRAY ? j->nodes[node].size : 0;
}

/* The member's value, −1 when there is none. Linear: iterate large objects instead. */
static PVTI_UNUSED int64_t pvti_json_find(const pvti_json *j, int64_t object, const char *key)
{
    int64_t child = pvti_json_type(j, object) == PVTI_JSON_OBJECT ? pvti_json_first(j, object) : -1;
    while (child >= 0 && !pvti_json_same(pvti_json_key_span(j, child), key)) child = pvti_json_next(j, child);
    return child;
}

/* Decoded length of the key or string in bytes (it may exceed cap, and may contain NULs);
   NUL-terminated when that fits too. −1: not a string. */
static PVTI_UNUSED int64_t pvti_json_key(const pvti_json *j, int64_t node, char *out, int64_t cap)
{
    if (pvti_json_type(j, node) == PVTI_JSON_NONE) return -1;
    return pvti_json_decode(pvti_json_key_span(j, node), out, cap);
}
static PVTI_UNUSED int64_t pvti_json_string(const pvti_json *j, int64_t node, char *out, int64_t cap)
{
    if (pvti_json_type(j, node) != PVTI_JSON_STRING) return -1;
    return pvti_json_decode(pvti_json_value_span(j, node), out, cap);
}

/* Is it this string? */
static PVTI_UNUSED bool pvti_json_equals(const pvti_json *j, int64_t node, const char *text)
{
    return pvti_json_type(j, node) == PVTI_JSON_STRING && pvti_json_same(pvti_json_value_span(j, node), text);
}

static PVTI_UNUSED bool pvti_json_bool(const pvti_json *j, int64_t node, bool *out)
{
    if (pvti_json_type(j, node) != PVTI_JSON_BOOL) return false;
    *out = j->text[j->nodes[node].text] == 't';
    return true;
}

/* x·10^exponent to 106 bits (a double and the rest below it), then rounded: the nearest double
   but for ties that nobody writes by chance, and but for subnormals. A power of two keeps both
   parts away from overflow and underflow meanwhile. strtod is no alternative: it obeys the
   host's locale. */
static double pvti_scale10(uint64_t x, int64_t exponent)
{
    static const double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                    1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    bool down = exponent < 0;
    const double two64 = 18446744073709551616.0;
    double guard = down ? two64 * two64 : 1 / two64 / two64, high = (double)x,
           low = (double)(int64_t)(x - (uint64_t)high);
    high *= guard;
    low *= guard;
    for (exponent = down ? -exponent : exponent; exponent > 0 && high > 0 && high <= DBL_MAX;) {
        int step = (int)PVTI_MIN(exponent, 22);
        double p = powers[step]; /* exact */
        double product = down ? high / p : high * p;
        double rest = down ? (__builtin_fma(-product, p, high) + low) / p
                           : __builtin_fma(high, p, -product) + low * p;
        high = product + rest;
        low = rest - (high - product);
        exponent -= step;
    }
    return high <= DBL_MAX ? high / guard : HUGE_VAL;
}

/* A decimal number, already checked to be one; digits beyond the nineteenth are dropped. */
static double pvti_decimal(const char *s, int64_t n)
{
    const char *end = s + n;
    bool negative = n > 0 && *s == '-', fraction = false;
    uint64_t digits = 0;
    int64_t exponent = 0, written = 0;
    double value;
    for (s += negative; s < end && ((*s >= '0' && *s <= '9') || *s == '.'); s++) {
        if (*s == '.') {
            fraction = true;
        } else if (digits < 1000000000000000000u) {
            digits = digits * 10 + (uint64_t)(*s - '0');
            exponent -= fraction;
        } else {
            exponent += !fraction;
        }
    }
    if (s < end && (*s == 'e' || *s == 'E')) {
        bool minus = ++s < end && *s == '-';
        for (s += s < end && (*s == '+' || *s == '-'); s < end && written < 1000000000; s++)
            written = written * 10 + (*s - '0');
        exponent += minus ? -written : written;
    }
    value = pvti_scale10(digits, exponent);
    return negative ? -value : value;
}

/* False when it is no number, or one that no finite double comes near. */
static PVTI_UNUSED bool pvti_json_number(const pvti_json *j, int64_t node, double *out)
{
    double value;
    if (pvti_json_type(j, node) != PVTI_JSON_NUMBER) return false;
    value = pvti_decimal(j->text + j->nodes[node].text, j->nodes[node].size);
    if (!(value >= -DBL_MAX && value <= DBL_MAX)) return false;
    *out = value;
    return true;
}

/* Exact over the whole range of int64_t; 2048.0 and 2e3 are integers too, 0.5 is none. */
static PVTI_UNUSED bool pvti_json_int(const pvti_json *j, int64_t node, int64_t *out)
{
    const char *s, *end;
    int64_t value = 0;
    double number;
    bool negative;
    if (pvti_json_type(j, node) != PVTI_JSON_NUMBER) return false;
    s = j->text + j->nodes[node].text;
    end = s + j->nodes[node].size;
    negative = *s == '-';
    if (pvti_json_digits(s + negative, end) == end) {
        for (s += negative; s < end; s++) { /* downwards, where there is one value more */
            if (__builtin_mul_overflow(value, 10, &value) || __builtin_sub_overflow(value, *s - '0', &value))
                return false;
        }
        if (!negative && value == INT64_MIN) return false;
        *out = negative ? value : -value;
        return true;
    }
    if (!pvti_json_number(j, node, &number) ||
        !(number >= -9007199254740992.0 && number <= 9007199254740992.0))
        return false;
    *out = (int64_t)number;
    return (double)*out == number;
}

/* ---- writing ---- */

/* A text that grows. A failed allocation sticks and is asked for once, at the end. */
typedef struct pvti_text {
    pvt_ctx *ctx;
    char *data; /* NUL-terminated once anything was added */
    int64_t size, capacity;
    bool failed;
} pvti_text;

static PVTI_UNUSED pvti_text pvti_text_begin(pvt_ctx *ctx)
{
    pvti_text text;
    memset(&text, 0, sizeof text);
    text.ctx = ctx;
    return text;
}
static PVTI_UNUSED void pvti_text_free(pvti_text *t)
{
    pvti_free(t->ctx, t->data);
    memset(t, 0, sizeof *t);
}
static PVTI_UNUSED pvt_result pvti_text_check(const pvti_text *t)
{
    return t->failed ? PVT_ERR_MEMORY : PVT_OK;
}

/* Room for n more bytes and a NUL. */
static bool pvti_text_reserve(pvti_text *t, int64_t n)
{
    int64_t need;
    if (!t->failed && (!pvti_add(t->size, n, &need) || !pvti_add(need, 1, &need) ||
                       !pvti_grow(t->ctx, (void **)&t->data, &t->capacity, PVTI_MAX(need, 256), 1)))
        t->failed = true;
    return !t->failed;
}

static PVTI_UNUSED void pvti_text_put(pvti_text *t, const char *bytes, int64_t n)
{
    if (n < 1 || !pvti_text_reserve(t, n)) return;
    memcpy(t->data + t->size, bytes, (size_t)n);
    t->data[t->size += n] = 0;
}

/* Beware of %f and %g: they write the locale's decimal point. See pvti_text_number. */
static PVTI_UNUSED PVTI_PRINTF(2, 3) void pvti_text_printf(pvti_text *t, const char *format, ...)
{
    va_list args;
    int n;
    va_start(args, format);
    n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0 || !pvti_text_reserve(t, n)) return;
    va_start(args, format);
    vsnprintf(t->data + t->size, (size_t)n + 1, format, args);
    va_end(args);
    t->size += n;
}

/* The inside of a JSON string: its length, which may exceed cap; NUL-terminated when that
   fits. Bytes that are not UTF-8 (half a character of a generated text) become U+FFFD. */
static int64_t pvti_json_escape(const char *s, int64_t n, char *out, int64_t cap)
{
    static const char controls[] = "\b\f\n\r\t", names[] = "bfnrt";
    int64_t at = 0, i, written = 0;
    while (at < n) {
        char piece[8];
        uint32_t c;
        int length = pvti_utf8_read(s + at, n - at, &c), bytes;
        if (length == 0) {
            length = 1;
            bytes = snprintf(piece, sizeof piece, "\\ufffd");
        } else if (c == '"' || c == '\\') {
            bytes = snprintf(piece, sizeof piece, "\\%c", (char)c);
        } else if (c < 0x20 || (c >= 0x7f && c < 0xa0)) { /* what terminals obey, U+009B too */
            const char *found = c && c < 0x20 ? strchr(controls, (int)c) : NULL;
            bytes = found ? snprintf(piece, sizeof piece, "\\%c", names[found - controls])
                          : snprintf(piece, sizeof piece, "\\u%04x", c);
        } else {
            memcpy(piece, s + at, (size_t)length);
            bytes = length;
        }
        for (i = 0; i < bytes; i++, written++)
            if (out && written < cap) out[written] = piece[i];
        at += length;
    }
    if (out && written < cap) out[written] = 0;
    return written;
}

/* "…", quoted and escaped. */
static PVTI_UNUSED void pvti_text_string(pvti_text *t, const char *s, int64_t n)
{
    int64_t bytes = pvti_json_escape(s, n, NULL, 0);
    if (!pvti_text_reserve(t, bytes + 2)) return;
    t->data[t->size] = '"';
    pvti_json_escape(s, n, t->data + t->size + 1, bytes);
    t->data[t->size + bytes + 1] = '"';
    t->data[t->size += bytes + 2] = 0;
}

/* A number with `digits` significant digits (1 … 17; 0: as few as give the same value back),
   with a point in every locale; null for NaN and infinities, which JSON lacks. */
static int64_t pvti_number_text(double value, int digits, char buffer[48])
{
    char *s;
    int64_t n = 0;
    int precision;
    if (!(value >= -DBL_MAX && value <= DBL_MAX)) return snprintf(buffer, 48, "null");
    for (precision = digits ? digits : 6; precision <= 17; precision++) {
        snprintf(buffer, 48, "%.*g", PVTI_MIN(precision, 17), value);
        for (s = buffer, n = 0; *s; s++) /* the locale's point, of one or more bytes, to one '.' */
            if (strchr("0123456789+-e", *s)) buffer[n++] = *s;
            else if (n == 0 || buffer[n - 1] != '.') buffer[n++] = '.';
        if (digits || pvti_decimal(buffer, n) == value) break;
    }
    buffer[n] = 0;
    return n;
}

static PVTI_UNUSED void pvti_text_number(pvti_text *t, double value, int digits)
{
    char buffer[48];
    int64_t n = pvti_number_text(value, digits, buffer);
    pvti_text_put(t, buffer, n);
}
// >>exchange
/*  The files of a directory that belong together (weights, config, tokenizer) are replaced together. The
    new ones are written into a folder of their own inside it, with a manifest of what is to happen:

        DIR/.save.pvtune-….tmp/    model.safetensors   tokenizer.json   …   config.json   manifest

    When all are on the device the folder is renamed to DIR/.pvtune-save, which is the commitment: before it
    the directory is the old model, and the folder rubbish; after it the manifest is carried out by who
    comes first: this save, the next one or a load. The old config.json goes, so that no other reader takes
    a mixture for a model; the new files move up; what the new model does not have is removed; the new
    config.json comes last; the folder goes. Every step may be done twice. So a process that ends anywhere
    leaves the old model, the new one, or one that the next to come completes. Of two savers one commits
    after the other, for a folder is not renamed over another. A lock on the manifest keeps two from carrying
    it out at once, and tells rubbish from what is being written. */

#define PVTI_EXCHANGE ".pvtune-save"
#define PVTI_EXCHANGE_HEAD "pvtune-save 1\n"
#define PVTI_EXCHANGE_BYTES ((int64_t)1 << 20) /* of a manifest: 20,000 shards */

/* What saves write, by what they replace as a whole: of the parts that a save replaces, files that it does
   not write are removed. (Part 0: may be written, and is never removed.) A directory's other files are the
   user's. */
enum { PVTI_SAVED_MODEL = 1, PVTI_SAVED_TOKENIZER = 2 };
typedef struct pvti_saved_name {
    const char *name;
    int part;
} pvti_saved_name;
static const pvti_saved_name pvti_saved_names[] = {
    {"config.json", PVTI_SAVED_MODEL},
    {"model.safetensors", PVTI_SAVED_MODEL},
    {"model.safetensors.index.json", PVTI_SAVED_MODEL}, /* and the shards that it lists */
    {"generation_config.json", PVTI_SAVED_MODEL},
    {"tokenizer.json", PVTI_SAVED_TOKENIZER},
    {"tokenizer.model", PVTI_SAVED_TOKENIZER},
    {"tokenizer_config.json", PVTI_SAVED_TOKENIZER},
    {"special_tokens_map.json", PVTI_SAVED_TOKENIZER},
    {"added_tokens.json", PVTI_SAVED_TOKENIZER},
    {"chat_template.jinja", PVTI_SAVED_TOKENIZER},
    {"vocab.json", PVTI_SAVED_TOKENIZER},
    {"merges.txt", PVTI_SAVED_TOKENIZER},
    {"README.md", 0}, /* only where it is a card of ours: >>save decides */
};

/* ---- the manifest: "+ NAME" moves up, "- NAME" is removed; a dot ends it ---- */

/* model-00001-of-00003.safetensors, and nothing that leads elsewhere. */
static bool pvti_shard_name(const char *name)
{
    static const char pattern[] = "model-00000-of-00000.safetensors";
    size_t i;
    for (i = 0; pattern[i]; i++)
        if (pattern[i] == '0' ? name[i] < '0' || name[i] > '9' : name[i] != pattern[i]) return false;
    return name[i] == 0;
}

static bool pvti_saved_known(const char *name)
{
    int64_t i;
    for (i = 0; i < PVTI_COUNT(pvti_saved_names); i++)
        if (strcmp(name, pvti_saved_names[i].name) == 0) return true;
    return pvti_shard_name(name);
}

/* The line at *at: '+' or '-' with its name, 0 at the end; −1 when it is neither. Moves on to the next. */
static int pvti_manifest_line(const char **at, char name[64])
{
    const char *line = *at;
    size_t n = strcspn(line, "\n");
    if (strcmp(line, ".\n") == 0) return 0;
    if (line[n] != '\n' || n < 3 || n - 2 >= 64) return -1;
    if ((line[0] != '+' && line[0] != '-') || line[1] != ' ') return -1;
    memcpy(name, line + 2, n - 2);
    name[n - 2] = 0;
    *at = line + n + 1;
    return pvti_saved_known(name) ? line[0] : -1;
}

/* Lines follow the head. */
static const char *pvti_manifest_start(const pvti_text *list)
{
    return list->data + strlen(PVTI_EXCHANGE_HEAD);
}

static bool pvti_manifest_valid(const pvti_text *list)
{
    char name[64];
    const char *at;
    int kind;
    if (list->size <= (int64_t)strlen(PVTI_EXCHANGE_HEAD) || (int64_t)strlen(list->data) != list->size ||
        strncmp(list->data, PVTI_EXCHANGE_HEAD, strlen(PVTI_EXCHANGE_HEAD)) != 0)
        return false;
    at = pvti_manifest_start(list);
    while ((kind = pvti_manifest_line(&at, name)) > 0) continue;
    return kind == 0;
}

/* Whether a list that is being made, and has no end yet, has that line. */
static bool pvti_manifest_has(const pvti_text *list, int kind, const char *name)
{
    char line[80];
    const char *found = list->data;
    snprintf(line, sizeof line, "\n%c %s\n", kind, name);
    return found && strstr(found, line) != NULL;
}

/* ---- carrying it out ---- */

static pvt_result pvti_exchange_stuck(pvt_ctx *ctx, const char *path, const char *what)
{
    return pvti_fail(ctx, PVT_ERR_IO,
                     "%.1500s: %s: %s; the new files are complete in " PVTI_EXCHANGE
                     " there, and the next load or save puts them in place",
                     path, what, strerror(errno));
}

/* Removes dir/name if it is there. A directory of that name is a user's. */
static pvt_result pvti_exchange_remove(pvt_ctx *ctx, const char *dir, const char *name)
{
    char path[PVTI_PATH_BYTES];
    int code;
    PVTI_TRY(pvti_path_join(ctx, path, dir, name));
    if (pvti_system_of(ctx)->unlink(path) == 0 || errno == ENOENT) return PVT_OK;
    code = errno;
    if (pvti_path_is_directory(path)) return PVT_OK;
    errno = code;
    return pvti_exchange_stuck(ctx, path, "cannot be removed");
}

/* Moves the file up unless that was done before. */
static pvt_result pvti_exchange_move(pvt_ctx *ctx, const char *folder, const char *dir, const char *name)
{
    char from[PVTI_PATH_BYTES], to[PVTI_PATH_BYTES];
    PVTI_TRY(pvti_path_join(ctx, from, folder, name));
    PVTI_TRY(pvti_path_join(ctx, to, dir, name));
    if (pvti_system_of(ctx)->rename(from, to) == 0 || errno == ENOENT) return PVT_OK;
    return pvti_exchange_stuck(ctx, to, "cannot be replaced by the new file");
}

static pvt_result pvti_exchange_sync(pvt_ctx *ctx, const char *dir)
{
    return pvti_directory_sync(ctx, dir) ? PVT_OK : pvti_exchange_stuck(ctx, dir, "cannot be synced");
}

/* What the valid list says. The lock on the manifest is held, or there are none here. */
static pvt_result pvti_exchange_carry_out(pvt_ctx *ctx, const char *dir, const pvti_text *list)
{
    char folder[PVTI_PATH_BYTES], config[PVTI_PATH_BYTES], name[64];
    const char *at = pvti_manifest_start(list);
    int kind;
    PVTI_TRY(pvti_path_join(ctx, folder, dir, PVTI_EXCHANGE));
    PVTI_TRY(pvti_path_join(ctx, config, folder, "config.json"));
    if (pvti_path_exists(config)) { /* else the new one is in place already, or none comes */
        PVTI_TRY(pvti_exchange_remove(ctx, dir, "config.json"));
        PVTI_TRY(pvti_exchange_sync(ctx, dir));
    }
    while ((kind = pvti_manifest_line(&at, name)) > 0) {
        if (kind == '-') PVTI_TRY(pvti_exchange_remove(ctx, dir, name));
        else if (strcmp(name, "config.json") != 0) PVTI_TRY(pvti_exchange_move(ctx, folder, dir, name));
    }
    PVTI_TRY(pvti_exchange_sync(ctx, dir));
    PVTI_TRY(pvti_exchange_move(ctx, folder, dir, "config.json"));
    PVTI_TRY(pvti_exchange_sync(ctx, dir));
    return pvti_exchange_remove(ctx, folder, "manifest");
}

/* The folder of an exchange that was carried out, after its lock was given back: some network file systems
   keep a file that is removed while it is open. Another's exchange may stand there by now. */
static pvt_result pvti_exchange_tidy(pvt_ctx *ctx, const char *dir)
{
    char folder[PVTI_PATH_BYTES];
    PVTI_TRY(pvti_path_join(ctx, folder, dir, PVTI_EXCHANGE));
    if (pvti_system_of(ctx)->rmdir(folder) == 0 || errno == ENOENT || errno == ENOTEMPTY || errno == EEXIST)
        return PVT_OK;
    return pvti_fail(ctx, PVT_ERR_IO, "%s: the new files are in place, but this folder cannot be removed: %s",
                     folder, strerror(errno));
}

/* A directory that is no link to elsewhere. */
static bool pvti_folder_is_real(const pvt_ctx *ctx, const char *path)
{
    int fd = pvti_open(ctx, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
    if (fd >= 0) pvti_close(ctx, fd);
    return fd >= 0;
}

/* Carries out what the manifest, open and locked, says. */
static pvt_result pvti_exchange_resume(pvt_ctx *ctx, const char *dir, const char *manifest, int fd)
{
    pvti_map map;
    pvti_text list = pvti_text_begin(ctx);
    char folder[PVTI_PATH_BYTES];
    pvt_result result;
    memset(&map, 0, sizeof map);
    PVTI_TRY(pvti_path_join(ctx, folder, dir, PVTI_EXCHANGE));
    result = pvti_map_read(ctx, manifest, fd, 0, PVTI_EXCHANGE_BYTES, &map);
    if (result == PVT_OK) pvti_text_put(&list, (const char *)map.data, map.size);
    pvti_map_close(ctx, &map);
    if (result == PVT_OK) result = pvti_text_check(&list);
    if (result == PVT_OK && (!pvti_manifest_valid(&list) || !pvti_folder_is_real(ctx, folder)))
        result = pvti_fail(ctx, PVT_ERR_FORMAT,
                           "%s: is not of an interrupted save, which would be completed now; remove the "
                           "folder that it is in",
                           manifest);
    if (result == PVT_OK) result = pvti_exchange_carry_out(ctx, dir, &list);
    pvti_text_free(&list);
    return result;
}

/* Completes a save that was committed and then interrupted; waits for one that is being completed. */
static pvt_result pvti_exchange_recover(pvt_ctx *ctx, const char *dir)
{
    const struct timespec moment = {0, 10000000};
    char manifest[PVTI_PATH_BYTES];
    pvt_result result;
    int tries;
    PVTI_TRY(pvti_path_join(ctx, manifest, dir, PVTI_EXCHANGE "/manifest"));
    for (tries = 0; tries < 1000; tries++) {
        int fd = pvti_open(ctx, manifest, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0);
        int code = errno;
        if (fd < 0 && (code == ENOENT || code == ENOTDIR || !pvti_path_exists(manifest))) return PVT_OK;
        if (fd < 0)
            return pvti_fail(ctx, PVT_ERR_IO, "%s: saving into this directory was interrupted, and cannot be "
                             "completed now: " PVTI_EXCHANGE "/manifest: %s", dir, strerror(code));
        if (pvti_lock_try(ctx, fd, manifest) != PVTI_LOCK_TAKEN) {
            result = pvti_exchange_resume(ctx, dir, manifest, fd);
            pvti_close(ctx, fd);
            return result == PVT_OK ? pvti_exchange_tidy(ctx, dir) : result;
        }
        pvti_close(ctx, fd);
        nanosleep(&moment, NULL);
    }
    return pvti_fail(ctx, PVT_ERR_IO, "%s: another process is saving into this directory and does not finish",
                     dir);
}

/* ---- making one ---- */

/* Zeroed, it is none, which may be ended. */
typedef struct pvti_exchange {
    pvt_ctx *ctx;
    bool overwrite, folder_made, committed;
    pvti_text list;       /* the manifest's text */
    pvti_writer manifest; /* its lock is held from the beginning to the end */
    char dir[PVTI_PATH_BYTES], folder[PVTI_PATH_BYTES];
} pvti_exchange;

/* An orphan's folder, with what may be in it. */
static void pvti_sweep_folder(pvt_ctx *ctx, const char *folder)
{
    char path[PVTI_PATH_BYTES];
    int64_t i;
    int fd;
    if (!pvti_folder_is_real(ctx, folder)) return;
    if (snprintf(path, sizeof path, "%s/manifest", folder) >= (int)sizeof path) return;
    fd = pvti_open_for_lock(ctx, path);
    if (fd >= 0 && pvti_lock_try(ctx, fd, path) == PVTI_LOCK_OURS) {
        for (i = 0; i < PVTI_COUNT(pvti_saved_names); i++) {
            snprintf(path, sizeof path, "%s/%s", folder, pvti_saved_names[i].name);
            pvti_system_of(ctx)->unlink(path);
        }
        snprintf(path, sizeof path, "%s/manifest", folder);
        pvti_system_of(ctx)->unlink(path);
    }
    if (fd >= 0) pvti_close(ctx, fd);
    pvti_system_of(ctx)->rmdir(folder); /* only when it is empty */
}

/* The folder and its manifest, locked. False with errno; EEXIST: try another name. */
static bool pvti_exchange_make(pvti_exchange *ex)
{
    pvti_writer *w = &ex->manifest;
    if (pvti_system_of(ex->ctx)->mkdir(ex->folder, 0777) != 0) return false;
    ex->folder_made = true;
    if (pvti_writer_create(w, NULL) && pvti_writer_lock(w)) {
        w->result = PVT_OK;
        return true;
    }
    if (errno == ENOENT || errno == EEXIST) { /* swept as an orphan's before it was locked */
        ex->folder_made = false;
        errno = EEXIST;
    }
    return false;
}

static pvt_result pvti_exchange_refuse_model(const pvti_exchange *ex)
{
    char config[PVTI_PATH_BYTES];
    PVTI_TRY(pvti_path_join(ex->ctx, config, ex->dir, "config.json"));
    if (ex->overwrite || !pvti_path_exists(config)) return PVT_OK;
    return pvti_fail(ex->ctx, PVT_ERR_ARGUMENT,
                     "%s: a model is there already; choose another directory, or allow overwriting", ex->dir);
}

/* Begins to replace files in dir, which exists. Without `overwrite` a directory with a config.json is
   refused. To be ended in any case. */
static pvt_result pvti_exchange_begin(pvt_ctx *ctx, const char *dir, bool overwrite, pvti_exchange *ex)
{
    char path[PVTI_PATH_BYTES];
    struct stat none;
    bool exists;
    int tries;
    memset(ex, 0, sizeof *ex);
    ex->ctx = ctx, ex->overwrite = overwrite, ex->list = pvti_text_begin(ctx);
    pvti_text_printf(&ex->list, "%s", PVTI_EXCHANGE_HEAD);
    PVTI_TRY(pvti_text_check(&ex->list));
    PVTI_TRY(pvti_path_join(ctx, ex->dir, "", dir));
    PVTI_TRY(pvti_exchange_recover(ctx, dir));
    PVTI_TRY(pvti_exchange_refuse_model(ex));
    pvti_sweep_orphans(ctx, dir, "save", pvti_sweep_folder);
    for (tries = 0; tries < 10000; tries++) {
        PVTI_TRY(pvti_temporary_name(ctx, dir, "save", ex->folder));
        PVTI_TRY(pvti_path_join(ctx, path, ex->folder, "manifest"));
        pvti_writer_close(&ex->manifest);
        PVTI_TRY(pvti_writer_begin(ctx, path, &ex->manifest, &none, &exists));
        memcpy(ex->manifest.temp, path, sizeof path);
        if (pvti_exchange_make(ex)) return PVT_OK;
        if (errno != EEXIST) break;
    }
    return pvti_fail(ctx, PVT_ERR_IO, "%s: nothing can be written in it: %s", dir, strerror(errno));
}

/* A writer for one of the new files, whose name is in the table and was not written yet. */
static pvt_result pvti_exchange_open(pvti_exchange *ex, const char *name, pvti_writer *w)
{
    char path[PVTI_PATH_BYTES], temp[PVTI_PATH_BYTES];
    struct stat old;
    bool exists;
    memset(w, 0, sizeof *w);
    PVTI_TRY(pvti_path_join(ex->ctx, path, ex->dir, name));
    PVTI_TRY(pvti_path_join(ex->ctx, temp, ex->folder, name));
    pvti_text_printf(&ex->list, "+ %s\n", name);
    PVTI_TRY(pvti_text_check(&ex->list));
    PVTI_TRY(pvti_writer_begin(ex->ctx, path, w, &old, &exists));
    exists = exists && S_ISREG(old.st_mode);
    memcpy(w->temp, temp, sizeof temp);
    w->staged = true;
    if (!pvti_writer_create(w, exists ? &old : NULL)) return pvti_writer_fail(w, "cannot be created");
    if (exists && !pvti_writer_permissions(w, &old))
        return pvti_writer_fail(w, "cannot be given the permissions of the file it replaces");
    return w->result = PVT_OK;
}

/* One of the new files, whole. */
static pvt_result pvti_exchange_put(pvti_exchange *ex, const char *name, const void *data, int64_t bytes)
{
    pvti_writer w;
    PVTI_TRY(pvti_exchange_open(ex, name, &w));
    pvti_writer_put(&w, data, bytes); /* a failure sticks until the commit */
    return pvti_writer_commit(&w);
}

/* One of the new files, as a copy. */
static pvt_result pvti_exchange_copy(pvti_exchange *ex, const char *from, const char *name)
{
    pvti_map map;
    pvt_result result;
    PVTI_TRY(pvti_map_open(ex->ctx, from, &map));
    result = pvti_exchange_put(ex, name, map.data, map.size);
    pvti_map_close(ex->ctx, &map);
    return result;
}

/* A file of the table that goes, whether its part is replaced or not. */
static pvt_result pvti_exchange_drop(pvti_exchange *ex, const char *name)
{
    pvti_text_printf(&ex->list, "- %s\n", name);
    return pvti_text_check(&ex->list);
}

/* Shards that the old index lists go with it. An index that is no JSON lists nothing. */
static pvt_result pvti_exchange_drop_shards(pvti_exchange *ex)
{
    char path[PVTI_PATH_BYTES], name[64], last[64] = "";
    pvti_map map;
    pvti_json j;
    int64_t node, length;
    pvt_result result;
    PVTI_TRY(pvti_path_join(ex->ctx, path, ex->dir, "model.safetensors.index.json"));
    if (!pvti_path_exists(path)) return PVT_OK;
    result = pvti_json_open(ex->ctx, path, &map, &j);
    if (result == PVT_ERR_FORMAT) return PVT_OK;
    if (result != PVT_OK) return result;
    node = pvti_json_first(&j, pvti_json_find(&j, 0, "weight_map"));
    for (; node >= 0; node = pvti_json_next(&j, node)) {
        length = pvti_json_string(&j, node, name, sizeof name);
        if (length < 1 || length >= (int64_t)sizeof name) continue;
        if (!pvti_shard_name(name) || strcmp(name, last) == 0) continue;
        memcpy(last, name, sizeof name); /* tensors of one shard usually follow each other */
        if (!pvti_manifest_has(&ex->list, '-', name)) pvti_text_printf(&ex->list, "- %s\n", name);
    }
    pvti_json_free(&j);
    pvti_map_close(ex->ctx, &map);
    return pvti_text_check(&ex->list);
}

/* Writes the manifest: from here on nothing needs memory. */
static pvt_result pvti_exchange_seal(pvti_exchange *ex, int parts)
{
    pvti_writer *w = &ex->manifest;
    int64_t i;
    for (i = 0; i < PVTI_COUNT(pvti_saved_names); i++) {
        const pvti_saved_name *saved = &pvti_saved_names[i];
        if ((saved->part & parts) && !pvti_manifest_has(&ex->list, '+', saved->name))
            pvti_text_printf(&ex->list, "- %s\n", saved->name);
    }
    if (parts & PVTI_SAVED_MODEL) PVTI_TRY(pvti_exchange_drop_shards(ex));
    pvti_text_put(&ex->list, ".\n", 2);
    PVTI_TRY(pvti_text_check(&ex->list));
    if (ex->list.size > PVTI_EXCHANGE_BYTES)
        return pvti_fail(ex->ctx, PVT_ERR_UNSUPPORTED, "%s: the model there has too many shards to replace",
                         ex->dir);
    pvti_writer_put(w, ex->list.data, ex->list.size);
    PVTI_TRY(pvti_writer_settle(w));
    if (pvti_directory_sync(ex->ctx, ex->folder)) return PVT_OK;
    return pvti_fail(ex->ctx, PVT_ERR_IO, "%s: cannot be synced: %s; the files that were there are unchanged",
                     ex->folder, strerror(errno));
}

/* The rename that decides. Another's exchange that stands there is completed first. */
static pvt_result pvti_exchange_publish(pvti_exchange *ex)
{
    char published[PVTI_PATH_BYTES];
    int tries;
    PVTI_TRY(pvti_path_join(ex->ctx, published, ex->dir, PVTI_EXCHANGE));
    for (tries = 0; tries < 100; tries++) {
        PVTI_TRY(pvti_exchange_recover(ex->ctx, ex->dir));
        PVTI_TRY(pvti_exchange_refuse_model(ex));
        ex->committed = pvti_system_of(ex->ctx)->rename(ex->folder, published) == 0;
        if (ex->committed) break;
        if (errno != ENOTEMPTY && errno != EEXIST) break;
    }
    if (!ex->committed)
        return pvti_fail(ex->ctx, PVT_ERR_IO,
                         "%s: cannot be replaced by the new files: %s; the files that were in its directory "
                         "are unchanged",
                         published, strerror(errno));
    ex->manifest.temporary = false;
    return pvti_exchange_sync(ex->ctx, ex->dir);
}

/* Puts the new files in place of the old. After a failure the old ones are there, or the next load or save
   completes the exchange: the sentence says which. */
static pvt_result pvti_exchange_commit(pvti_exchange *ex, int parts)
{
    PVTI_TRY(pvti_exchange_seal(ex, parts));
    PVTI_TRY(pvti_exchange_publish(ex));
    PVTI_TRY(pvti_exchange_carry_out(ex->ctx, ex->dir, &ex->list));
    pvti_writer_close(&ex->manifest); /* the lock */
    return pvti_exchange_tidy(ex->ctx, ex->dir);
}

/* Frees everything; what was not committed goes. */
static void pvti_exchange_end(pvti_exchange *ex)
{
    const char *at = ex->list.data ? pvti_manifest_start(&ex->list) : "";
    char path[PVTI_PATH_BYTES], name[64];
    bool undo = ex->folder_made && !ex->committed;
    while (undo && pvti_manifest_line(&at, name) > 0)
        if (snprintf(path, sizeof path, "%s/%s", ex->folder, name) < (int)sizeof path)
            pvti_system_of(ex->ctx)->unlink(path);
    pvti_writer_close(&ex->manifest);
    if (undo && pvti_system_of(ex->ctx)->rmdir(ex->folder) != 0 && errno != ENOENT)
        pvti_fail_more(ex->ctx, "; temporary files stay in ", ex->folder);
    if (ex->ctx) pvti_text_free(&ex->list);
}
// >>safetensors
/*  | u64 header length | JSON header, padded with spaces to 8 | data |
    Each key of the header names a tensor: {"dtype": "F16", "shape": [64, 3], "data_offsets":
    [begin, end]}, offsets counted from the end of the header; "__metadata__" holds strings.
    The ranges tile the data exactly. Tensors are views into the mapped file: they cost nothing
    until they are read, and vanish when it is closed.

    A file is hostile until every range is checked; nothing behind the reader checks again. */

/* Row-major: shape[rank − 1] runs fastest, whatever the file's own order. `data` may stand at
   any address: load through memcpy. Zero-size tensors have data too, but no bytes. */
typedef struct pvti_tensor {
    const char *name;
    pvt_dtype dtype;
    int rank;
    int64_t shape[8];
    const uint8_t *data;
    int64_t bytes;
} pvti_tensor;

#define PVTI_MAX_RANK 8

static PVTI_UNUSED int64_t pvti_tensor_count(const pvti_tensor *t) /* of elements; checked on load */
{
    const pvti_dtype *info = pvti_dtype_info(t->dtype);
    return info ? t->bytes / info->bytes * info->block : 0;
}

/* ---- names: sorted once, then found by bisection ---- */

typedef struct pvti_names {
    const pvti_tensor *tensors;
    pvti_sort_item *order; /* the index of each tensor, by name */
    int64_t n;
} pvti_names;

static int pvti_names_tie(const void *self, int64_t a, int64_t b)
{
    const pvti_tensor *tensors = (const pvti_tensor *)self;
    return strcmp(tensors[a].name, tensors[b].name);
}

/* Sorts; *twice is a tensor whose name an earlier one has too, or NULL. */
static pvt_result pvti_names_build(pvt_ctx *ctx, const pvti_tensor *tensors, int64_t n, pvti_names *out,
                                   const pvti_tensor **twice)
{
    int64_t i;
    *twice = NULL;
    out->tensors = tensors;
    out->order = PVTI_NEW(ctx, pvti_sort_item, PVTI_MAX(n, 1));
    if (!out->order) return PVT_ERR_MEMORY;
    out->n = n;
    for (i = 0; i < n; i++) out->order[i].index = i; /* all keys 0: the tie function decides */
    pvti_sort(out->order, n, pvti_names_tie, tensors);
    for (i = 1; i < n; i++)
        if (pvti_names_tie(tensors, out->order[i - 1].index, out->order[i].index) == 0)
            *twice = &tensors[out->order[i].index];
    return PVT_OK;
}

static const pvti_tensor *pvti_names_find(const pvti_names *names, const char *name)
{
    int64_t low = 0, high = names->n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        const pvti_tensor *t = &names->tensors[names->order[middle].index];
        int order = strcmp(name, t->name);
        if (order == 0) return t;
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

/* ---- reading ---- */

/* Zeroed, it is a closed file, which may be closed again. */
typedef struct pvti_safetensors {
    pvt_ctx *ctx;
    pvti_tensor *tensors; /* in the order of the header */
    int64_t n;
    pvti_map map;
    pvti_json header;
    pvti_names names;
    char *strings; /* the names, NUL-terminated */
    int64_t metadata; /* node of "__metadata__" in the header, −1: none */
} pvti_safetensors;

#define PVTI_SAFETENSORS_HEADER_BYTES ((int64_t)100000000)

static PVTI_UNUSED void pvti_safetensors_close(pvti_safetensors *st)
{
    if (st->ctx) {
        pvti_free(st->ctx, st->tensors);
        pvti_free(st->ctx, st->strings);
        pvti_free(st->ctx, st->names.order);
        pvti_json_free(&st->header);
        pvti_map_close(st->ctx, &st->map);
    }
    memset(st, 0, sizeof *st);
}

/* "dtype", "shape" and "data_offsets" of one tensor; data is what follows the header. */
static pvt_result pvti_safetensors_tensor(pvt_ctx *ctx, const char *file, const pvti_json *j, int64_t node,
                                          const uint8_t *data, int64_t size, pvti_tensor *t)
{
    int64_t shape = pvti_json_find(j, node, "shape"), offsets = pvti_json_find(j, node, "data_offsets");
    int64_t dtype = pvti_json_find(j, node, "dtype"), child, begin = 0, end = 0, need;
    char name[16];
    if (pvti_json_type(j, dtype) != PVTI_JSON_STRING || pvti_json_type(j, shape) != PVTI_JSON_ARRAY ||
        pvti_json_type(j, offsets) != PVTI_JSON_ARRAY || pvti_json_count(j, offsets) != 2)
        return pvti_fail(
            ctx, PVT_ERR_FORMAT,
            "%s: tensor \"%.200s\": its entry needs dtype (a string), shape (an array) and data_offsets "
            "(two numbers)",
            file, t->name);
    name[0] = 0;
    if (pvti_json_string(j, dtype, name, sizeof name) < (int64_t)sizeof name)
        t->dtype = pvti_dtype_parse(name);
    if (t->dtype == PVT_DTYPE_NONE || pvti_dtype_info(t->dtype)->block != 1)
        return pvti_fail(ctx, PVT_ERR_UNSUPPORTED, "%s: tensor \"%.200s\": dtype \"%.15s\" is not supported",
                         file, t->name, name);
    if (pvti_json_count(j, shape) > PVTI_MAX_RANK)
        return pvti_fail(ctx, PVT_ERR_UNSUPPORTED, "%s: tensor \"%.200s\": more than %d dimensions", file,
                         t->name, PVTI_MAX_RANK);
    for (child = pvti_json_first(j, shape); child >= 0; child = pvti_json_next(j, child))
        if (!pvti_json_int(j, child, &t->shape[t->rank++]) || t->shape[t->rank - 1] < 0)
            return pvti_fail(ctx, PVT_ERR_FORMAT,
                             "%s: tensor \"%.200s\": its shape must hold whole numbers ≥ 0", file, t->name);
    child = pvti_json_first(j, offsets);
    if (!pvti_json_int(j, child, &begin) || !pvti_json_int(j, pvti_json_next(j, child), &end) || begin < 0 ||
        begin > end || end > size)
        return pvti_fail(
            ctx, PVT_ERR_FORMAT,
            "%s: tensor \"%.200s\": data_offsets %lld to %lld do not lie in the file's %lld bytes of data "
            "(cut off?)",
            file, t->name, (long long)begin, (long long)end, (long long)size);
    if (!pvti_dtype_bytes(t->dtype, t->shape, t->rank, &need) || need != end - begin)
        return pvti_fail(
            ctx, PVT_ERR_FORMAT,
            "%s: tensor \"%.200s\": shape and dtype need another number of bytes than its data_offsets "
            "give (%lld)",
            file, t->name, (long long)(end - begin));
    t->data = data + begin;
    t->bytes = end - begin;
    return PVT_OK;
}

static int pvti_safetensors_by_end(const void *self, int64_t a, int64_t b)
{
    const pvti_tensor *tensors = (const pvti_tensor *)self;
    const uint8_t *x = tensors[a].data + tensors[a].bytes, *y = tensors[b].data + tensors[b].bytes;
    return x < y ? -1 : x > y;
}

/* No gap, no overlap, nothing left at the end. */
static pvt_result pvti_safetensors_check_tiling(pvti_safetensors *st, const char *file, const uint8_t *data,
                                                int64_t size)
{
    pvti_sort_item *items = PVTI_NEW(st->ctx, pvti_sort_item, PVTI_MAX(st->n, 1));
    pvt_result result = PVT_OK;
    int64_t i, end = 0;
    if (!items) return PVT_ERR_MEMORY;
    for (i = 0; i < st->n; i++) {
        items[i].key = (uint64_t)(st->tensors[i].data - data);
        items[i].index = i;
    }
    pvti_sort(items, st->n, pvti_safetensors_by_end, st->tensors);
    for (i = 0; i < st->n && result == PVT_OK; i++) {
        const pvti_tensor *t = &st->tensors[items[i].index];
        if ((int64_t)items[i].key != end)
            result = pvti_fail(st->ctx, PVT_ERR_FORMAT, "%s: tensor \"%.200s\": its data begins at %lld, %s",
                               file, t->name, (long long)items[i].key,
                               (int64_t)items[i].key < end ? "inside another tensor's" : "behind a gap");
        end = (int64_t)items[i].key + t->bytes;
    }
    if (result == PVT_OK && end != size)
        result = pvti_fail(st->ctx, PVT_ERR_FORMAT, "%s: %lld bytes follow the last tensor", file,
                           (long long)(size - end));
    pvti_free(st->ctx, items);
    return result;
}

static pvt_result pvti_safetensors_check_metadata(pvti_safetensors *st, const char *file)
{
    const pvti_json *j = &st->header;
    int64_t child = pvti_json_first(j, st->metadata);
    bool good = st->metadata < 0 || pvti_json_type(j, st->metadata) == PVTI_JSON_OBJECT;
    for (; good && child >= 0; child = pvti_json_next(j, child))
        good = pvti_json_type(j, child) == PVTI_JSON_STRING;
    if (good) return PVT_OK;
    return pvti_fail(st->ctx, PVT_ERR_FORMAT, "%s: \"__metadata__\" must be an object of strings", file);
}

/* Everything the header says, into st; file is the name for errors. */
static pvt_result pvti_safetensors_header(pvti_safetensors *st, const char *file, const uint8_t *data,
                                          int64_t size, int64_t length)
{
    const pvti_json *j = &st->header;
    const pvti_tensor *twice;
    int64_t node;
    char *at;
    if (pvti_json_type(j, 0) != PVTI_JSON_OBJECT)
        return pvti_fail(st->ctx, PVT_ERR_FORMAT, "%s: the header is not a JSON object", file);
    st->metadata = pvti_json_find(j, 0, "__metadata__");
    PVTI_TRY(pvti_safetensors_check_metadata(st, file));
    st->tensors = PVTI_NEW(st->ctx, pvti_tensor, pvti_json_count(j, 0) + 1);
    /* a decoded name is no longer than it is written, and its quotes leave room for the NUL */
    at = st->strings = PVTI_NEW(st->ctx, char, length + 1);
    if (!st->tensors || !st->strings) return PVT_ERR_MEMORY;
    for (node = pvti_json_first(j, 0); node >= 0; node = pvti_json_next(j, node)) {
        pvti_tensor *t = &st->tensors[st->n];
        if (node == st->metadata) continue;
        t->name = at;
        at += pvti_json_key(j, node, at, st->strings + length + 1 - at) + 1;
        if (strlen(t->name) + 1 != (size_t)(at - t->name))
            return pvti_fail(st->ctx, PVT_ERR_FORMAT, "%s: tensor \"%.200s\": its name contains a NUL", file,
                             t->name);
        PVTI_TRY(pvti_safetensors_tensor(st->ctx, file, j, node, data, size, t));
        st->n++;
    }
    PVTI_TRY(pvti_safetensors_check_tiling(st, file, data, size));
    return pvti_names_build(st->ctx, st->tensors, st->n, &st->names, &twice); /* JSON has no key twice */
}

static pvt_result pvti_safetensors_parse(pvti_safetensors *st, const char *file, const uint8_t *data,
                                         int64_t size)
{
    char label[PVTI_PATH_BYTES];
    uint64_t length;
    if (size < 8)
        return pvti_fail(st->ctx, PVT_ERR_FORMAT,
                         "%s: %lld bytes are too few for a safetensors file (cut off?)", file,
                         (long long)size);
    memcpy(&length, data, 8);
    if (length > (uint64_t)PVTI_SAFETENSORS_HEADER_BYTES)
        return pvti_fail(
            st->ctx, PVT_ERR_FORMAT,
            "%s: not a safetensors file: its header would be %llu bytes long; at most 100 MB are allowed",
            file, (unsigned long long)length);
    if ((int64_t)length > size - 8)
        return pvti_fail(st->ctx, PVT_ERR_FORMAT,
                         "%s: the header needs %llu bytes, and the file has %lld (cut off?)", file,
                         (unsigned long long)length, (long long)size);
    snprintf(label, sizeof label, "%.4000s: header", file);
    PVTI_TRY(pvti_json_parse(st->ctx, label, (const char *)data + 8, (int64_t)length, &st->header));
    return pvti_safetensors_header(st, file, data + 8 + length, size - 8 - (int64_t)length, (int64_t)length);
}

/* From memory, which must outlive st; `file` is what errors call it. On failure st is closed. */
static PVTI_UNUSED pvt_result pvti_safetensors_read(pvt_ctx *ctx, const char *file, const void *data,
                                                    int64_t size, pvti_safetensors *st)
{
    pvt_result result;
    memset(st, 0, sizeof *st);
    st->ctx = ctx;
    st->metadata = -1;
    result = pvti_safetensors_parse(st, file, (const uint8_t *)data, size);
    if (result != PVT_OK) pvti_safetensors_close(st);
    return result;
}

static PVTI_UNUSED pvt_result pvti_safetensors_open(pvt_ctx *ctx, const char *path, pvti_safetensors *st)
{
    pvti_map map;
    pvt_result result;
    memset(st, 0, sizeof *st);
    PVTI_TRY(pvti_map_open(ctx, path, &map));
    result = pvti_safetensors_read(ctx, path, map.data, map.size, st);
    if (result == PVT_OK) st->map = map;
    else pvti_map_close(ctx, &map);
    return result;
}

static PVTI_UNUSED const pvti_tensor *pvti_safetensors_find(const pvti_safetensors *st, const char *name)
{
    return pvti_names_find(&st->names, name);
}

/* A string of "__metadata__": its length, −1 when there is none (see pvti_json_string). */
static PVTI_UNUSED int64_t pvti_safetensors_metadata(const pvti_safetensors *st, const char *key, char *out,
                                                     int64_t cap)
{
    return pvti_json_string(&st->header, pvti_json_find(&st->header, st->metadata, key), out, cap);
}

/* ---- a directory: one file, or shards under an index ---- */

/* Zeroed, it is a closed set. */
typedef struct pvti_shards {
    pvt_ctx *ctx;
    pvti_tensor *tensors; /* in the order of the file or of the index */
    int64_t n;
    pvti_safetensors *files;
    char (*file_names)[256];
    int64_t n_files;
    pvti_names names;
} pvti_shards;

static PVTI_UNUSED void pvti_shards_close(pvti_shards *set)
{
    int64_t i;
    if (set->ctx) {
        for (i = 0; i < set->n_files; i++) pvti_safetensors_close(&set->files[i]);
        pvti_free(set->ctx, set->files);
        pvti_free(set->ctx, set->file_names);
        pvti_free(set->ctx, set->tensors);
        pvti_free(set->ctx, set->names.order);
    }
    memset(set, 0, sizeof *set);
}

/* The file of that name, opened when it is new. */
static pvt_result pvti_shards_file(pvti_shards *set, const char *dir, const char *name, int64_t *capacity,
                                   int64_t *file)
{
    char path[PVTI_PATH_BYTES];
    int64_t names_capacity = *capacity;
    for (*file = set->n_files - 1; *file >= 0; --*file) /* usually that of the entry before */
        if (strcmp(set->file_names[*file], name) == 0) return PVT_OK;
    if (!pvti_grow(set->ctx, (void **)&set->file_names, &names_capacity, set->n_files + 1, 256) ||
        !pvti_grow(set->ctx, (void **)&set->files, capacity, set->n_files + 1, (int64_t)sizeof *set->files))
        return PVT_ERR_MEMORY;
    PVTI_TRY(pvti_path_join(set->ctx, path, dir, name));
    PVTI_TRY(pvti_safetensors_open(set->ctx, path, &set->files[set->n_files]));
    memcpy(set->file_names[set->n_files], name, strlen(name) + 1);
    *file = set->n_files++;
    return PVT_OK;
}

/* One entry of weight_map: "tensor": "shard". */
static pvt_result pvti_shards_entry(pvti_shards *set, const char *dir, const char *index, const pvti_json *j,
                                    int64_t node, int64_t *capacity)
{
    char tensor[1024], shard[256];
    const pvti_tensor *t;
    int64_t file, key = pvti_json_key(j, node, tensor, sizeof tensor);
    int64_t length = pvti_json_string(j, node, shard, sizeof shard);
    if (key >= (int64_t)sizeof tensor || (int64_t)strlen(tensor) != key)
        return pvti_fail(set->ctx, PVT_ERR_FORMAT,
                         "%s: weight_map: a tensor's name is too long or contains a NUL", index);
    if (length < 1 || length >= (int64_t)sizeof shard || (int64_t)strlen(shard) != length ||
        strchr(shard, '/') || strchr(shard, '\\') || strstr(shard, ".."))
        return pvti_fail(
            set->ctx, PVT_ERR_FORMAT,
            "%s: weight_map: tensor \"%.200s\": its shard must be the plain name of a file in the same "
            "directory",
            index, tensor);
    PVTI_TRY(pvti_shards_file(set, dir, shard, capacity, &file));
    t = pvti_safetensors_find(&set->files[file], tensor);
    if (!t)
        return pvti_fail(
            set->ctx, PVT_ERR_MISMATCH,
            "%s: tensor \"%.200s\" is not in %s, where the index says; the files do not belong together",
            index, tensor, shard);
    set->tensors[set->n++] = *t;
    return PVT_OK;
}

static pvt_result pvti_shards_index(pvti_shards *set, const char *dir, const char *index, const pvti_json *j)
{
    int64_t map = pvti_json_find(j, 0, "weight_map"), node, capacity = 0;
    if (pvti_json_count(j, map) < 1 || pvti_json_type(j, map) != PVTI_JSON_OBJECT)
        return pvti_fail(set->ctx, PVT_ERR_FORMAT, "%s: has no weight_map from tensors to files", index);
    set->tensors = PVTI_NEW(set->ctx, pvti_tensor, pvti_json_count(j, map));
    if (!set->tensors) return PVT_ERR_MEMORY;
    for (node = pvti_json_first(j, map); node >= 0; node = pvti_json_next(j, node))
        PVTI_TRY(pvti_shards_entry(set, dir, index, j, node, &capacity));
    return PVT_OK;
}

static pvt_result pvti_shards_fill(pvti_shards *set, const char *dir)
{
    char single[PVTI_PATH_BYTES], index[PVTI_PATH_BYTES];
    const pvti_tensor *twice;
    int64_t capacity = 0, file;
    PVTI_TRY(pvti_path_join(set->ctx, single, dir, "model.safetensors"));
    PVTI_TRY(pvti_path_join(set->ctx, index, dir, "model.safetensors.index.json"));
    if (pvti_path_exists(single)) {
        PVTI_TRY(pvti_shards_file(set, dir, "model.safetensors", &capacity, &file));
        set->n = set->files[0].n;
        set->tensors = PVTI_NEW(set->ctx, pvti_tensor, PVTI_MAX(set->n, 1));
        if (!set->tensors) return PVT_ERR_MEMORY;
        memcpy(set->tensors, set->files[0].tensors, (size_t)set->n * sizeof *set->tensors);
    } else if (pvti_path_exists(index)) {
        pvti_map map;
        pvti_json j;
        pvt_result result;
        PVTI_TRY(pvti_json_open(set->ctx, index, &map, &j));
        result = pvti_shards_index(set, dir, index, &j);
        pvti_json_free(&j);
        pvti_map_close(set->ctx, &map);
        if (result != PVT_OK) return result;
    } else {
        return pvti_fail(set->ctx, PVT_ERR_IO,
                         "%s: has neither model.safetensors nor model.safetensors.index.json", dir);
    }
    return pvti_names_build(set->ctx, set->tensors, set->n, &set->names, &twice);
}

/* model.safetensors in dir, or all that its index names. On failure set is closed. */
static PVTI_UNUSED pvt_result pvti_shards_open(pvt_ctx *ctx, const char *dir, pvti_shards *set)
{
    pvt_result result;
    memset(set, 0, sizeof *set);
    set->ctx = ctx;
    result = pvti_shards_fill(set, dir);
    if (result != PVT_OK) pvti_shards_close(set);
    return result;
}

static PVTI_UNUSED const pvti_tensor *pvti_shards_find(const pvti_shards *set, const char *name)
{
    return pvti_names_find(&set->names, name);
}

/* ---- writing ---- */

/* Puts the data of tensors[index], whose `data` is NULL: what is made while it is written (f16 of
   f32 masters, …) needs no memory of its own. It must put exactly tensors[index].bytes. */
typedef pvt_result pvti_tensor_put_fn(void *user, int64_t index, pvti_writer *w);

/* Sorts by descending size of an element, then by name: every tensor is then aligned to its
   elements, and equal models give equal files. */
static pvt_result pvti_safetensors_order(pvt_ctx *ctx, const char *path, const pvti_tensor *tensors,
                                         int64_t n, pvti_sort_item *order)
{
    int64_t i, bytes;
    for (i = 0; i < n; i++) {
        const pvti_tensor *t = &tensors[i];
        const pvti_dtype *info = pvti_dtype_info(t->dtype);
        if (!info || info->block != 1 || t->rank < 0 || t->rank > PVTI_MAX_RANK ||
            !pvti_dtype_bytes(t->dtype, t->shape, t->rank, &bytes) || bytes != t->bytes ||
            strcmp(t->name, "__metadata__") == 0)
            return pvti_fail(
                ctx, PVT_ERR_ARGUMENT,
                "%s: tensor \"%.200s\": name, dtype, shape and bytes cannot be written as safetensors", path,
                t->name);
        order[i].key = (uint64_t)(64 - info->bytes);
        order[i].index = i;
    }
    pvti_sort(order, n, pvti_names_tie, tensors);
    return PVT_OK;
}

/* The header of what follows in that order, padded to 8 bytes. */
static void pvti_safetensors_describe(pvti_text *text, const pvti_tensor *tensors, int64_t n,
                                      const pvti_sort_item *order, const char *const *metadata)
{
    const char *comma = "";
    int64_t i, offset = 0;
    int k;
    pvti_text_put(text, "{", 1);
    if (metadata && metadata[0]) {
        pvti_text_printf(text, "\"__metadata__\":{");
        for (; metadata[0]; metadata += 2, comma = ",") {
            pvti_text_printf(text, "%s", comma);
            pvti_text_string(text, metadata[0], (int64_t)strlen(metadata[0]));
            pvti_text_put(text, ":", 1);
            pvti_text_string(text, metadata[1], (int64_t)strlen(metadata[1]));
        }
        pvti_text_put(text, "}", 1);
        comma = ",";
    }
    for (i = 0; i < n; i++, comma = ",") {
        const pvti_tensor *t = &tensors[order[i].index];
        pvti_text_printf(text, "%s", comma);
        pvti_text_string(text, t->name, (int64_t)strlen(t->name));
        pvti_text_printf(text, ":{\"dtype\":\"%s\",\"shape\":[", pvti_dtype_info(t->dtype)->name);
        for (k = 0; k < t->rank; k++) pvti_text_printf(text, "%s%lld", k ? "," : "", (long long)t->shape[k]);
        pvti_text_printf(text, "],\"data_offsets\":[%lld,%lld]}", (long long)offset,
                         (long long)(offset + t->bytes));
        offset += t->bytes;
    }
    pvti_text_put(text, "}", 1);
    while (text->size % 8 != 0 && !text->failed) pvti_text_put(text, " ", 1);
}

static pvt_result pvti_safetensors_put(pvti_writer *w, const pvti_text *header, const pvti_tensor *tensors,
                                       int64_t n, const pvti_sort_item *order, pvti_tensor_put_fn *put,
                                       void *user)
{
    uint64_t length = (uint64_t)header->size;
    int64_t i;
    pvti_writer_put(w, &length, 8);
    PVTI_TRY(pvti_writer_put(w, header->data, header->size));
    for (i = 0; i < n; i++) {
        const pvti_tensor *t = &tensors[order[i].index];
        int64_t start = w->written;
        if (t->data || !t->bytes) PVTI_TRY(pvti_writer_put(w, t->data, t->bytes));
        else if (put) PVTI_TRY(put(user, order[i].index, w));
        if (w->written - start != t->bytes)
            return pvti_fail(w->ctx, PVT_ERR_ARGUMENT,
                             "%s: tensor \"%.200s\": %lld bytes of data were put, not %lld", w->path, t->name,
                             (long long)(w->written - start), (long long)t->bytes);
    }
    return pvti_writer_commit(w);
}

/* Writes a file as a whole, or not at all: commits the writer, or gives it up. metadata: key, value, …, NULL;
   or NULL for none. */
static pvt_result pvti_safetensors_write_to(pvti_writer *w, const pvti_tensor *tensors, int64_t n,
                                            const char *const *metadata, pvti_tensor_put_fn *put, void *user)
{
    pvt_ctx *ctx = w->ctx;
    pvti_sort_item *order = NULL;
    pvti_text header = pvti_text_begin(ctx);
    pvti_names names;
    const pvti_tensor *twice = NULL;
    pvt_result result;
    memset(&names, 0, sizeof names);
    result = pvti_names_build(ctx, tensors, n, &names, &twice);
    order = names.order;
    if (twice)
        result = pvti_fail(ctx, PVT_ERR_ARGUMENT, "%s: two tensors are called \"%.200s\"", w->path,
                           twice->name);
    if (result == PVT_OK) result = pvti_safetensors_order(ctx, w->path, tensors, n, order);
    if (result == PVT_OK) {
        pvti_safetensors_describe(&header, tensors, n, order, metadata);
        result = header.failed ? PVT_ERR_MEMORY : PVT_OK;
    }
    if (result == PVT_OK) result = pvti_safetensors_put(w, &header, tensors, n, order, put, user);
    pvti_writer_abort(w); /* unless it was committed */
    pvti_text_free(&header);
    pvti_free(ctx, order);
    return result;
}

/* To a path. */
static PVTI_UNUSED pvt_result pvti_safetensors_write_from(pvt_ctx *ctx, const char *path,
                                                          const pvti_tensor *tensors, int64_t n,
                                                          const char *const *metadata,
                                                          pvti_tensor_put_fn *put, void *user)
{
    pvti_writer w;
    PVTI_TRY(pvti_writer_open(ctx, path, &w));
    return pvti_safetensors_write_to(&w, tensors, n, metadata, put, user);
}

static PVTI_UNUSED pvt_result pvti_safetensors_write(pvt_ctx *ctx, const char *path,
                                                     const pvti_tensor *tensors, int64_t n,
                                                     const char *const *metadata)
{
    return pvti_safetensors_write_from(ctx, path, tensors, n, metadata, NULL, NULL);
}
// >>gguf
/*  | "GGUF" | u32 version | u64 tensors | u64 keys | key-value pairs | tensor infos | padding | data |
      string       u64 bytes, then the bytes (no NUL)
      key-value    string key, u32 type, value
      array        u32 type of its elements, u64 count, the elements
      tensor info  string name, u32 dimensions, u64 each (fastest first), u32 type, u64 offset
    Everything is little-endian and packed; offsets count from the start of the data, which is
    aligned to general.alignment. Version 2 has the same layout. Values stay where they are:
    the reader walks once over all of them, and what it notes is views. */

enum { PVTI_GGUF_U8, PVTI_GGUF_I8, PVTI_GGUF_U16, PVTI_GGUF_I16, PVTI_GGUF_U32, PVTI_GGUF_I32, PVTI_GGUF_F32,
       PVTI_GGUF_BOOL, PVTI_GGUF_STRING, PVTI_GGUF_ARRAY, PVTI_GGUF_U64, PVTI_GGUF_I64, PVTI_GGUF_F64,
       PVTI_GGUF_TYPES };

typedef struct pvti_gguf_kv {
    const char *key; /* not NUL-terminated */
    int64_t key_bytes;
    const uint8_t *value, *end;
    uint32_t type;
} pvti_gguf_kv;

/* Zeroed, it is a closed file. */
typedef struct pvti_gguf {
    pvt_ctx *ctx;
    pvti_tensor *tensors; /* in the order of the file, dimensions in row-major order */
    int64_t n;
    pvti_gguf_kv *kv;
    int64_t n_kv;
    uint32_t version;
    int64_t alignment;
    pvti_map map;
    pvti_names names;
    char *strings; /* the tensors' names, 64 bytes each */
} pvti_gguf;

/* ---- a cursor that cannot leave the file ---- */

typedef struct pvti_cursor {
    const uint8_t *at, *end;
} pvti_cursor;

static bool pvti_cursor_take(pvti_cursor *c, void *out, int64_t bytes)
{
    if (c->end - c->at < bytes) return false;
    memcpy(out, c->at, (size_t)bytes);
    c->at += bytes;
    return true;
}

static bool pvti_cursor_string(pvti_cursor *c, const char **s, int64_t *bytes)
{
    uint64_t length;
    if (!pvti_cursor_take(c, &length, 8) || length > (uint64_t)(c->end - c->at)) return false;
    *s = (const char *)c->at;
    *bytes = (int64_t)length;
    c->at += length;
    return true;
}

/* Bytes of a value of fixed size, 0 for strings, arrays and unknown types. */
static int64_t pvti_gguf_size(uint32_t type)
{
    static const uint8_t sizes[PVTI_GGUF_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < PVTI_GGUF_TYPES ? sizes[type] : 0;
}

/* Steps over `count` values. Each takes bytes of the file, so that a count is held against what
   remains before anything is done `count` times; false: cut off, or no such type. */
static bool pvti_gguf_skip(pvti_cursor *c, uint32_t type, uint64_t count, int depth)
{
    int64_t size = pvti_gguf_size(type), bytes;
    const char *s;
    uint64_t i;
    if (size) {
        if (count > (uint64_t)((c->end - c->at) / size)) return false;
        if (type == PVTI_GGUF_BOOL)
            for (i = 0; i < count; i++)
                if (c->at[i] > 1) return false;
        c->at += (int64_t)count * size;
        return true;
    }
    if ((type != PVTI_GGUF_STRING && type != PVTI_GGUF_ARRAY) || depth > 8) return false;
    for (i = 0; i < count; i++) {
        uint32_t inner;
        uint64_t inner_count;
        if (type == PVTI_GGUF_STRING) {
            if (!pvti_cursor_string(c, &s, &bytes)) return false;
        } else if (!pvti_cursor_take(c, &inner, 4) || !pvti_cursor_take(c, &inner_count, 8) ||
                   !pvti_gguf_skip(c, inner, inner_count, depth + 1)) {
            return false;
        }
    }
    return true;
}

/* ---- values by key ---- */

static const pvti_gguf_kv *pvti_gguf_kv_find(const pvti_gguf *g, const char *key)
{
    int64_t i, bytes = (int64_t)strlen(key);
    for (i = 0; i < g->n_kv; i++) /* a few dozen */
        if (g->kv[i].key_bytes == bytes && memcmp(g->kv[i].key, key, (size_t)bytes) == 0) return &g->kv[i];
    return NULL;
}

/* One value of a fixed size; integers as long as they fit int64_t, and true as 1. */
static bool pvti_gguf_load_int(const uint8_t *from, uint32_t type, int64_t *out)
{
    uint64_t u = 0;
    int64_t size = pvti_gguf_size(type);
    if (size == 0 || type == PVTI_GGUF_F32 || type == PVTI_GGUF_F64) return false;
    memcpy(&u, from, (size_t)size);
    if (type == PVTI_GGUF_I8) *out = (int8_t)u;
    else if (type == PVTI_GGUF_I16) *out = (int16_t)u;
    else if (type == PVTI_GGUF_I32) *out = (int32_t)u;
    else *out = (int64_t)u;
    return type != PVTI_GGUF_U64 || u <= (uint64_t)INT64_MAX;
}

static bool pvti_gguf_load_number(const uint8_t *from, uint32_t type, double *out)
{
    int64_t integer;
    float single;
    if (type == PVTI_GGUF_F32) {
        memcpy(&single, from, 4);
        *out = (double)single;
    } else if (type == PVTI_GGUF_F64) {
        memcpy(out, from, 8);
    } else {
        if (!pvti_gguf_load_int(from, type, &integer)) return false;
        *out = (double)integer;
    }
    return true;
}

/* False when the key is absent or of another kind: *out is then as it was, e.g. a default. */
static PVTI_UNUSED bool pvti_gguf_int(const pvti_gguf *g, const char *key, int64_t *out)
{
    const pvti_gguf_kv *kv = pvti_gguf_kv_find(g, key);
    int64_t value;
    if (!kv || kv->type == PVTI_GGUF_BOOL || !pvti_gguf_load_int(kv->value, kv->type, &value)) return false;
    *out = value;
    return true;
}
/* Integers too; NaN and infinity are possible. */
static PVTI_UNUSED bool pvti_gguf_number(const pvti_gguf *g, const char *key, double *out)
{
    const pvti_gguf_kv *kv = pvti_gguf_kv_find(g, key);
    return kv && kv->type != PVTI_GGUF_BOOL && pvti_gguf_load_number(kv->value, kv->type, out);
}
static PVTI_UNUSED bool pvti_gguf_bool(const pvti_gguf *g, const char *key, bool *out)
{
    const pvti_gguf_kv *kv = pvti_gguf_kv_find(g, key);
    if (!kv || kv->type != PVTI_GGUF_BOOL) return false;
    *out = kv->value[0] != 0;
    return true;
}
/* A view into the file, not NUL-terminated. */
static PVTI_UNUSED bool pvti_gguf_string(const pvti_gguf *g, const char *key, const char **s, int64_t *bytes)
{
    const pvti_gguf_kv *kv = pvti_gguf_kv_find(g, key);
    pvti_cursor c;
    if (!kv || kv->type != PVTI_GGUF_STRING) return false;
    c.at = kv->value, c.end = kv->end;
    return pvti_cursor_string(&c, s, bytes);
}
static PVTI_UNUSED bool pvti_gguf_equals(const pvti_gguf *g, const char *key, const char *text)
{
    const char *s;
    int64_t bytes;
    return pvti_gguf_string(g, key, &s, &bytes) && bytes == (int64_t)strlen(text) &&
           memcmp(s, text, (size_t)bytes) == 0;
}

/* An array: numbers by index, strings one after the other. */
typedef struct pvti_gguf_array {
    uint32_t type; /* of the elements */
    int64_t n;
    const uint8_t *data; /* element 0 */
    pvti_cursor next;    /* the string to be taken next */
} pvti_gguf_array;

static PVTI_UNUSED bool pvti_gguf_get_array(const pvti_gguf *g, const char *key, pvti_gguf_array *out)
{
    const pvti_gguf_kv *kv = pvti_gguf_kv_find(g, key);
    uint64_t count;
    if (!kv || kv->type != PVTI_GGUF_ARRAY) return false;
    memcpy(&out->type, kv->value, 4);
    memcpy(&count, kv->value + 4, 8);
    out->n = (int64_t)count;
    out->data = out->next.at = kv->value + 12;
    out->next.end = kv->end;
    return true;
}
/* False beyond the end, and for elements of another kind. */
static PVTI_UNUSED bool pvti_gguf_array_int(const pvti_gguf_array *a, int64_t i, int64_t *out)
{
    return i >= 0 && i < a->n && pvti_gguf_load_int(a->data + i * pvti_gguf_size(a->type), a->type, out);
}
static PVTI_UNUSED bool pvti_gguf_array_number(const pvti_gguf_array *a, int64_t i, double *out)
{
    return i >= 0 && i < a->n && pvti_gguf_load_number(a->data + i * pvti_gguf_size(a->type), a->type, out);
}
/* The next string, a view; false after the last. */
static PVTI_UNUSED bool pvti_gguf_array_string(pvti_gguf_array *a, const char **s, int64_t *bytes)
{
    return a->type == PVTI_GGUF_STRING && pvti_cursor_string(&a->next, s, bytes);
}

/* ---- reading ---- */

static PVTI_UNUSED void pvti_gguf_close(pvti_gguf *g)
{
    if (g->ctx) {
        pvti_free(g->ctx, g->tensors);
        pvti_free(g->ctx, g->kv);
        pvti_free(g->ctx, g->strings);
        pvti_free(g->ctx, g->names.order);
        pvti_map_close(g->ctx, &g->map);
    }
    memset(g, 0, sizeof *g);
}

static pvt_result pvti_gguf_cut(pvti_gguf *g, const char *file, const char *where, int64_t i)
{
    return pvti_fail(g->ctx, PVT_ERR_FORMAT, "%s: the file ends, or is damaged, inside %s %lld", file, where,
                     (long long)i);
}

static int pvti_gguf_kv_tie(const void *self, int64_t a, int64_t b)
{
    const pvti_gguf_kv *x = (const pvti_gguf_kv *)self + a, *y = (const pvti_gguf_kv *)self + b;
    int order = memcmp(x->key, y->key, (size_t)PVTI_MIN(x->key_bytes, y->key_bytes));
    return order ? order : (x->key_bytes > y->key_bytes) - (x->key_bytes < y->key_bytes);
}

static pvt_result pvti_gguf_check_keys(pvti_gguf *g, const char *file)
{
    pvti_sort_item *order = PVTI_NEW(g->ctx, pvti_sort_item, PVTI_MAX(g->n_kv, 1));
    pvt_result result = PVT_OK;
    int64_t i;
    if (!order) return PVT_ERR_MEMORY;
    for (i = 0; i < g->n_kv; i++) order[i].index = i;
    pvti_sort(order, g->n_kv, pvti_gguf_kv_tie, g->kv);
    for (i = 1; i < g->n_kv && result == PVT_OK; i++)
        if (pvti_gguf_kv_tie(g->kv, order[i - 1].index, order[i].index) == 0)
            result = pvti_fail(g->ctx, PVT_ERR_FORMAT, "%s: the key \"%.*s\" occurs twice", file,
                               (int)PVTI_MIN(g->kv[order[i].index].key_bytes, 100),
                               g->kv[order[i].index].key);
    pvti_free(g->ctx, order);
    return result;
}

static pvt_result pvti_gguf_read_keys(pvti_gguf *g, const char *file, pvti_cursor *c, uint64_t n)
{
    if (n > (uint64_t)((c->end - c->at) / 13)) /* no pair is shorter */
        return pvti_fail(g->ctx, PVT_ERR_FORMAT, "%s: %llu keys are announced, more than the file can hold",
                         file, (unsigned long long)n);
    g->kv = PVTI_NEW(g->ctx, pvti_gguf_kv, (int64_t)n + 1);
    if (!g->kv) return PVT_ERR_MEMORY;
    for (; g->n_kv < (int64_t)n; g->n_kv++) {
        pvti_gguf_kv *kv = &g->kv[g->n_kv];
        if (!pvti_cursor_string(c, &kv->key, &kv->key_bytes) || !pvti_cursor_take(c, &kv->type, 4))
            return pvti_gguf_cut(g, file, "key", g->n_kv);
        if (kv->key_bytes < 1 || kv->key_bytes > 65535)
            return pvti_fail(g->ctx, PVT_ERR_FORMAT,
                             "%s: key %lld has a name of %lld bytes; 1 to 65535 are allowed", file,
                             (long long)g->n_kv, (long long)kv->key_bytes);
        kv->value = c->at;
        if (!pvti_gguf_skip(c, kv->type, 1, 0))
            return pvti_fail(g->ctx, PVT_ERR_FORMAT,
                             "%s: the value of key \"%.*s\" (type %u) is damaged or cut off", file,
                             (int)PVTI_MIN(kv->key_bytes, 100), kv->key, kv->type);
        kv->end = c->at;
    }
    return pvti_gguf_check_keys(g, file);
}

/* GGUF's numbers of types; gaps are types that were withdrawn or are not decoded here. */
static pvt_dtype pvti_gguf_dtype(uint32_t type)
{
    static const uint8_t types[] = {
        PVT_F32,  PVT_F16,  PVT_Q4_0, PVT_Q4_1, 0,       0,       PVT_Q5_0, PVT_Q5_1, PVT_Q8_0, 0, PVT_Q2_K,
        PVT_Q3_K, PVT_Q4_K, PVT_Q5_K, PVT_Q6_K, 0,       0,       0,        0,        0,        0, 0,
        0,        0,        PVT_I8,   PVT_I16,  PVT_I32, PVT_I64, PVT_F64,  0,        PVT_BF16};
    return type < sizeof types ? (pvt_dtype)types[type] : PVT_DTYPE_NONE;
}

/* One info; its offset stays in *offset until the start of the data is known. */
static pvt_result pvti_gguf_read_info(pvti_gguf *g, const char *file, pvti_cursor *c, uint64_t *offset)
{
    pvti_tensor *t = &g->tensors[g->n];
    char *name = g->strings + 64 * g->n;
    const char *s;
    int64_t bytes;
    uint64_t dims[4];
    uint32_t rank, type, i;
    if (!pvti_cursor_string(c, &s, &bytes) || !pvti_cursor_take(c, &rank, 4))
        return pvti_gguf_cut(g, file, "the description of tensor", g->n);
    if (bytes < 1 || bytes > 63 || memchr(s, 0, (size_t)bytes))
        return pvti_fail(g->ctx, PVT_ERR_FORMAT,
                         "%s: tensor %lld: its name must have 1 to 63 bytes, none of them 0", file,
                         (long long)g->n);
    memcpy(name, s, (size_t)bytes);
    t->name = name;
    if (rank > 4)
        return pvti_fail(g->ctx, PVT_ERR_FORMAT, "%s: tensor \"%s\": %u dimensions; GGUF allows 4", file,
                         name, rank);
    if (!pvti_cursor_take(c, dims, 8 * (int64_t)rank) || !pvti_cursor_take(c, &type, 4) ||
        !pvti_cursor_take(c, offset, 8))
        return pvti_gguf_cut(g, file, "the description of tensor", g->n);
    t->rank = (int)rank;
    for (i = 0; i < rank; i++) {
        if (dims[i] > (uint64_t)INT64_MAX)
            return pvti_fail(g->ctx, PVT_ERR_FORMAT, "%s: tensor \"%s\": a dimension is out of range", file,
                             name);
        t->shape[rank - 1 - i] = (int64_t)dims[i];
    }
    t->dtype = pvti_gguf_dtype(type);
    if (t->dtype == PVT_DTYPE_NONE)
        return pvti_fail(
            g->ctx, PVT_ERR_UNSUPPORTED,
            "%s: tensor \"%s\": GGUF type %u is not supported; use a file in F32, F16, BF16, Q4_0 to "
            "Q8_0 or Q2_K to Q6_K",
            file, name, type);
    if (!pvti_dtype_bytes(t->dtype, t->shape, t->rank, &t->bytes))
        return pvti_fail(
            g->ctx, PVT_ERR_FORMAT,
            "%s: tensor \"%s\": its rows are no multiple of the %lld elements of a %s block, or its size "
            "is out of range",
            file, name, (long long)pvti_dtype_info(t->dtype)->block, pvti_dtype_info(t->dtype)->name);
    return PVT_OK;
}

static pvt_result pvti_gguf_read_infos(pvti_gguf *g, const char *file, pvti_cursor *c, uint64_t n,
                                       pvti_sort_item **offsets)
{
    if (n > (uint64_t)((c->end - c->at) / 25)) /* no info is shorter */
        return pvti_fail(g->ctx, PVT_ERR_FORMAT,
                         "%s: %llu tensors are announced, more than the file can hold", file,
                         (unsigned long long)n);
    g->tensors = PVTI_NEW(g->ctx, pvti_tensor, (int64_t)n + 1);
    g->strings = (char *)pvti_alloc(g->ctx, (int64_t)n + 1, 64);
    *offsets = PVTI_NEW(g->ctx, pvti_sort_item, (int64_t)n + 1);
    if (!g->tensors || !g->strings || !*offsets) return PVT_ERR_MEMORY;
    for (; g->n < (int64_t)n; g->n++) {
        (*offsets)[g->n].index = g->n;
        PVTI_TRY(pvti_gguf_read_info(g, file, c, &(*offsets)[g->n].key));
    }
    return PVT_OK;
}

static int pvti_gguf_by_size(const void *self, int64_t a, int64_t b)
{
    const pvti_tensor *tensors = (const pvti_tensor *)self;
    return (tensors[a].bytes > tensors[b].bytes) - (tensors[a].bytes < tensors[b].bytes);
}

/* Gives each tensor its data: inside the file, aligned, no two overlapping; gaps are padding. */
static pvt_result pvti_gguf_place(pvti_gguf *g, const char *file, const uint8_t *data, int64_t size,
                                  pvti_sort_item *offsets)
{
    int64_t i, end = 0;
    pvti_sort(offsets, g->n, pvti_gguf_by_size, g->tensors);
    for (i = 0; i < g->n; i++) {
        pvti_tensor *t = &g->tensors[offsets[i].index];
        uint64_t offset = offsets[i].key;
        if (offset > (uint64_t)size || t->bytes > size - (int64_t)offset)
            return pvti_fail(
                g->ctx, PVT_ERR_FORMAT,
                "%s: tensor \"%s\": %lld bytes at offset %llu leave the file's %lld bytes of data (cut off?)",
                file, t->name, (long long)t->bytes, (unsigned long long)offset, (long long)size);
        if (offset % (uint64_t)g->alignment != 0)
            return pvti_fail(g->ctx, PVT_ERR_FORMAT, "%s: tensor \"%s\": offset %llu is not aligned to %lld",
                             file, t->name, (unsigned long long)offset, (long long)g->alignment);
        if ((int64_t)offset < end)
            return pvti_fail(g->ctx, PVT_ERR_FORMAT, "%s: tensor \"%s\": its data overlaps another tensor's",
                             file, t->name);
        t->data = data + offset;
        end = (int64_t)offset + t->bytes;
    }
    return PVT_OK;
}

static pvt_result pvti_gguf_check_alignment(pvti_gguf *g, const char *file)
{
    const pvti_gguf_kv *kv = pvti_gguf_kv_find(g, "general.alignment");
    g->alignment = 32;
    if (kv && (kv->type != PVTI_GGUF_U32 || !pvti_gguf_load_int(kv->value, kv->type, &g->alignment) ||
               g->alignment < 1 || g->alignment > (1 << 20) || (g->alignment & (g->alignment - 1)) != 0))
        return pvti_fail(g->ctx, PVT_ERR_FORMAT,
                         "%s: general.alignment must be a u32, a power of two up to 2^20", file);
    return PVT_OK;
}

/* offsets: the caller's to free, whatever happens here. */
static pvt_result pvti_gguf_parse(pvti_gguf *g, const char *file, const uint8_t *data, int64_t size,
                                  pvti_sort_item **offsets)
{
    const pvti_tensor *twice;
    pvti_cursor c;
    uint64_t n_tensors, n_kv;
    int64_t start;
    c.at = data, c.end = data + size;
    if (size < 24 || memcmp(data, "GGUF", 4) != 0)
        return pvti_fail(g->ctx, PVT_ERR_FORMAT, "%s: not a GGUF file", file);
    c.at += 4;
    pvti_cursor_take(&c, &g->version, 4);
    pvti_cursor_take(&c, &n_tensors, 8);
    pvti_cursor_take(&c, &n_kv, 8);
    if (g->version != 2 && g->version != 3)
        return pvti_fail(g->ctx, PVT_ERR_UNSUPPORTED, "%s: GGUF version %u%s; 2 and 3 are supported", file,
                         g->version, (g->version & 0xffff) == 0 ? " (big-endian)" : "");
    PVTI_TRY(pvti_gguf_read_keys(g, file, &c, n_kv));
    PVTI_TRY(pvti_gguf_check_alignment(g, file));
    PVTI_TRY(pvti_gguf_read_infos(g, file, &c, n_tensors, offsets));
    PVTI_TRY(pvti_names_build(g->ctx, g->tensors, g->n, &g->names, &twice));
    if (twice)
        return pvti_fail(g->ctx, PVT_ERR_FORMAT, "%s: two tensors are called \"%s\"", file, twice->name);
    start = c.at - data; /* below the file's size, so that rounding up cannot overflow */
    start += (g->alignment - start % g->alignment) % g->alignment;
    if (start > size) start = size; /* a file of keys alone may end without its padding */
    return pvti_gguf_place(g, file, data + start, size - start, *offsets);
}

/* From memory, which must outlive g; `file` is what errors call it. On failure g is closed. */
static PVTI_UNUSED pvt_result pvti_gguf_read(pvt_ctx *ctx, const char *file, const void *data, int64_t size,
                                             pvti_gguf *g)
{
    pvti_sort_item *offsets = NULL;
    pvt_result result;
    memset(g, 0, sizeof *g);
    g->ctx = ctx;
    result = pvti_gguf_parse(g, file, (const uint8_t *)data, size, &offsets);
    pvti_free(ctx, offsets);
    if (result != PVT_OK) pvti_gguf_close(g);
    return result;
}

static PVTI_UNUSED pvt_result pvti_gguf_open(pvt_ctx *ctx, const char *path, pvti_gguf *g)
{
    pvti_map map;
    pvt_result result;
    memset(g, 0, sizeof *g);
    PVTI_TRY(pvti_map_open(ctx, path, &map));
    result = pvti_gguf_read(ctx, path, map.data, map.size, g);
    if (result == PVT_OK) g->map = map;
    else pvti_map_close(ctx, &map);
    return result;
}

static PVTI_UNUSED const pvti_tensor *pvti_gguf_find(const pvti_gguf *g, const char *name)
{
    return pvti_names_find(&g->names, name);
}
// >>llama2c
/*  The checkpoints of llama2.c, version 0: seven int32, then float32 tensors without names, each
    holding all layers one after the other. Nothing but the sizes says what the file is, so that
    they must fit to the byte. A negative vocabulary size announces a head of its own.
    RoPE pairs neighbours, as in GGUF's "llama". */

/* Zeroed, it is a closed file. Shapes begin with [L, …] where layers are stacked. */
typedef struct pvti_llama2c {
    pvt_ctx *ctx;
    int64_t dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; /* C, FF, L, NH, NKV, V, T */
    bool shared; /* the head is the embedding */
    pvti_tensor token_embedding, rms_att, wq, wk, wv, wo, rms_ffn, w1, w2, w3, rms_final, wcls;
    pvti_map map;
} pvti_llama2c;

static PVTI_UNUSED void pvti_llama2c_close(pvti_llama2c *m)
{
    if (m->ctx) pvti_map_close(m->ctx, &m->map);
    memset(m, 0, sizeof *m);
}

/* Layer l of a stacked tensor, as a view. */
static PVTI_UNUSED pvti_tensor pvti_llama2c_layer(const pvti_tensor *stacked, int64_t l)
{
    pvti_tensor t = *stacked;
    int i;
    t.bytes = t.bytes / t.shape[0];
    t.data += l * t.bytes;
    t.rank--;
    for (i = 0; i < t.rank; i++) t.shape[i] = stacked->shape[i + 1];
    return t;
}

static pvt_result pvti_llama2c_header(pvti_llama2c *m, const char *file, const uint8_t *data, int64_t size)
{
    int32_t header[7];
    int i;
    if (size < (int64_t)sizeof header)
        return pvti_fail(m->ctx, PVT_ERR_FORMAT, "%s: too short for a llama2.c checkpoint (cut off?)", file);
    memcpy(header, data, sizeof header);
    if (header[0] == 0x616b3432)
        return pvti_fail(m->ctx, PVT_ERR_UNSUPPORTED,
                         "%s: a llama2.c checkpoint of version 1 or 2; export it as version 0", file);
    for (i = 0; i < 7; i++)
        if (header[i] <= 0 && !(i == 5 && header[i] < 0 && header[i] > INT32_MIN))
            return pvti_fail(
                m->ctx, PVT_ERR_FORMAT,
                "%s: not a llama2.c checkpoint: number %d of its header is %d; sizes must be positive", file,
                i + 1, header[i]);
    m->dim = header[0], m->hidden_dim = header[1], m->n_layers = header[2], m->n_heads = header[3];
    m->n_kv_heads = header[4], m->seq_len = header[6];
    m->shared = header[5] > 0;
    m->vocab_size = m->shared ? header[5] : -(int64_t)header[5];
    if (m->dim % m->n_heads != 0 || m->n_heads % m->n_kv_heads != 0 || m->dim / m->n_heads % 2 != 0)
        return pvti_fail(
            m->ctx, PVT_ERR_FORMAT,
            "%s: not a llama2.c checkpoint: %lld channels, %lld heads and %lld kv heads do not fit "
            "together",
            file, (long long)m->dim, (long long)m->n_heads, (long long)m->n_kv_heads);
    return PVT_OK;
}

/* The tensors in the order of the file. */
static pvt_result pvti_llama2c_parse(pvti_llama2c *m, const char *file, const uint8_t *data, int64_t size)
{
    int64_t C, FF, L, KV, at = 7 * 4;
    int i;
    struct { pvti_tensor *out; const char *name; int64_t shape[3]; } order[13];
    PVTI_TRY(pvti_llama2c_header(m, file, data, size));
    C = m->dim, FF = m->hidden_dim, L = m->n_layers, KV = C / m->n_heads * m->n_kv_heads;
#define PVTI_X(k, field, a, b, c)                             \
    order[k].out = &m->field, order[k].name = #field,         \
    order[k].shape[0] = a, order[k].shape[1] = b, order[k].shape[2] = c
    PVTI_X(0, token_embedding, m->vocab_size, C, 0);
    PVTI_X(1, rms_att, L, C, 0);
    PVTI_X(2, wq, L, C, C);
    PVTI_X(3, wk, L, KV, C);
    PVTI_X(4, wv, L, KV, C);
    PVTI_X(5, wo, L, C, C);
    PVTI_X(6, rms_ffn, L, C, 0);
    PVTI_X(7, w1, L, FF, C);
    PVTI_X(8, w2, L, C, FF);
    PVTI_X(9, w3, L, FF, C);
    PVTI_X(10, rms_final, C, 0, 0);
    PVTI_X(11, wcls, m->seq_len, C / m->n_heads, 0); /* cos and sin of RoPE, half each: skipped, */
    PVTI_X(12, wcls, m->vocab_size, C, 0);           /* and then the head, if it has its own */
#undef PVTI_X
    for (i = 0; i < 13 - m->shared; i++) {
        pvti_tensor *t = order[i].out;
        t->name = order[i].name;
        t->dtype = PVT_F32;
        memcpy(t->shape, order[i].shape, sizeof order[i].shape);
        t->rank = order[i].shape[1] == 0 ? 1 : order[i].shape[2] == 0 ? 2 : 3;
        if (!pvti_dtype_bytes(t->dtype, t->shape, t->rank, &t->bytes) || t->bytes > size - at)
            return pvti_fail(m->ctx, PVT_ERR_FORMAT,
                             "%s: the file ends inside %s: cut off, or not a llama2.c checkpoint", file,
                             i == 11 ? "the RoPE table" : t->name);
        t->data = data + at;
        at += t->bytes;
    }
    if (m->shared) m->wcls = m->token_embedding;
    if (at == size) return PVT_OK;
    return pvti_fail(m->ctx, PVT_ERR_FORMAT,
                     "%s: %lld bytes too many for the sizes in its header: not a llama2.c "
                     "checkpoint of version 0",
                     file, (long long)(size - at));
}

/* From memory, which must outlive m; `file` is what errors call it. On failure m is closed. */
static PVTI_UNUSED pvt_result pvti_llama2c_read(pvt_ctx *ctx, const char *file, const void *data,
                                                int64_t size, pvti_llama2c *m)
{
    pvt_result result;
    memset(m, 0, sizeof *m);
    m->ctx = ctx;
    result = pvti_llama2c_parse(m, file, (const uint8_t *)data, size);
    if (result != PVT_OK) pvti_llama2c_close(m);
    return result;
}

static PVTI_UNUSED pvt_result pvti_llama2c_open(pvt_ctx *ctx, const char *path, pvti_llama2c *m)
{
    pvti_map map;
    pvt_result result;
    memset(m, 0, sizeof *m);
    PVTI_TRY(pvti_map_open(ctx, path, &map));
    result = pvti_llama2c_read(ctx, path, map.data, map.size, m);
    if (result == PVT_OK) m->map = map;
    else pvti_map_close(ctx, &map);
    return result;
}
#if PVTUNE_LAYER >= 2
// >>unicode
/*  What pre-tokenizers ask of a character: is it a letter (general category L), a number (N), white
    space (White_Space), or anything else? Unicode 15.1, as run lengths: every entry is
    4 · length + class, from U+0000 on. Expanded once per tokenizer to two bits per character: a
    look-up is then one load, and the table stays within a processor's first cache for most texts. */

enum { PVTI_OTHER, PVTI_LETTER, PVTI_NUMBER, PVTI_SPACE };
#define PVTI_CLASSES_END 0x323b0 /* from here on: PVTI_OTHER */

static const uint16_t pvti_class_runs[] = {
    36, 23, 72, 7, 60, 42, 28, 105, 24, 105, 40, 7, 104, 7, 36, 5, 28, 10, 4, 5, 12, 6, 5, 4, 14, 4, 93, 4,
    125, 4, 1833, 16, 49, 56, 21, 28, 5, 4, 5, 516, 21, 4, 9, 8, 17, 4, 5, 24, 5, 4, 13, 4, 5, 4, 81, 4,
    333, 4, 557, 32, 665, 4, 153, 8, 5, 24, 165, 284, 109, 16, 17, 180, 173, 84, 42, 16, 9, 4, 397, 4, 5,
    60, 9, 28, 9, 42, 13, 8, 5, 64, 5, 4, 121, 116, 357, 44, 5, 56, 42, 133, 36, 9, 16, 5, 20, 89, 16, 5,
    36, 5, 12, 5, 92, 101, 28, 45, 20, 97, 4, 25, 68, 169, 232, 217, 12, 5, 72, 5, 28, 41, 16, 42, 4, 65,
    16, 33, 8, 9, 8, 89, 4, 29, 4, 5, 12, 17, 12, 5, 64, 5, 52, 9, 4, 13, 16, 42, 9, 8, 26, 8, 5, 32, 25,
    16, 9, 8, 89, 4, 29, 4, 9, 4, 9, 4, 9, 124, 17, 4, 5, 28, 42, 8, 13, 64, 37, 4, 13, 4, 89, 4, 29, 4, 9,
    4, 21, 12, 5, 72, 5, 60, 9, 16, 42, 36, 5, 44, 33, 8, 9, 8, 89, 4, 29, 4, 9, 4, 21, 12, 5, 120, 9, 4,
    13, 16, 42, 4, 5, 26, 44, 5, 4, 25, 12, 13, 4, 17, 12, 9, 4, 5, 4, 9, 12, 9, 12, 13, 12, 49, 88, 5, 84,
    54, 72, 33, 4, 13, 4, 93, 4, 65, 12, 5, 104, 13, 8, 5, 8, 9, 16, 42, 32, 30, 4, 5, 16, 33, 4, 13, 4, 93,
    4, 41, 4, 21, 12, 5, 124, 9, 4, 9, 16, 42, 4, 9, 68, 37, 4, 13, 4, 165, 8, 5, 64, 5, 20, 13, 4, 30, 13,
    16, 78, 4, 25, 20, 73, 12, 97, 4, 37, 4, 5, 8, 29, 124, 42, 68, 193, 4, 9, 48, 29, 36, 42, 156, 9, 4, 5,
    4, 21, 4, 97, 4, 5, 4, 41, 4, 9, 36, 5, 8, 21, 4, 5, 36, 42, 8, 17, 128, 5, 124, 82, 48, 33, 4, 145,
    108, 21, 460, 173, 80, 5, 42, 24, 25, 16, 17, 12, 5, 12, 9, 28, 13, 16, 53, 48, 5, 4, 42, 24, 153, 4, 5,
    20, 5, 8, 173, 4, 1333, 4, 17, 8, 29, 4, 5, 4, 17, 8, 165, 4, 17, 8, 133, 4, 17, 8, 29, 4, 5, 4, 17, 8,
    61, 4, 229, 4, 17, 8, 269, 56, 82, 12, 65, 64, 345, 8, 25, 12, 2481, 8, 69, 7, 105, 20, 301, 12, 14, 33,
    28, 73, 52, 77, 56, 73, 56, 53, 4, 13, 60, 209, 140, 5, 16, 5, 12, 42, 24, 42, 88, 42, 24, 357, 28, 21,
    8, 137, 4, 5, 20, 281, 40, 125, 156, 42, 121, 8, 21, 44, 177, 16, 105, 24, 46, 148, 93, 36, 213, 172,
    42, 24, 42, 52, 5, 372, 189, 68, 33, 12, 42, 164, 121, 52, 9, 42, 177, 104, 145, 112, 42, 12, 13, 42,
    145, 8, 37, 28, 173, 8, 13, 164, 17, 4, 25, 4, 9, 12, 5, 20, 769, 256, 1113, 8, 25, 8, 153, 8, 25, 8,
    33, 4, 5, 4, 5, 4, 5, 4, 125, 8, 213, 4, 29, 4, 5, 12, 13, 4, 29, 12, 17, 8, 25, 16, 53, 20, 13, 4, 29,
    12, 47, 116, 11, 20, 7, 188, 7, 64, 6, 5, 8, 26, 20, 5, 42, 24, 53, 404, 5, 16, 5, 8, 41, 4, 5, 12, 21,
    24, 5, 4, 5, 4, 5, 4, 17, 4, 45, 8, 17, 20, 21, 16, 5, 4, 206, 9, 22, 2904, 242, 312, 90, 2520, 122,
    4528, 917, 24, 17, 12, 9, 36, 6, 8, 153, 4, 5, 20, 5, 8, 225, 28, 5, 64, 93, 36, 29, 4, 29, 4, 29, 4,
    29, 4, 29, 4, 29, 4, 29, 4, 29, 320, 5, 1856, 7, 16, 9, 6, 100, 38, 28, 21, 8, 14, 9, 16, 345, 24, 13,
    4, 361, 4, 17, 20, 173, 4, 377, 12, 18, 40, 129, 192, 65, 128, 42, 120, 34, 4, 62, 128, 42, 156, 62,
    1280, 26369, 256, 64001, 24629, 268, 185, 8, 1077, 12, 65, 42, 9, 80, 189, 64, 125, 8, 281, 42, 156, 37,
    8, 413, 8, 257, 20, 9, 4, 5, 4, 21, 96, 65, 4, 13, 4, 17, 4, 93, 52, 26, 40, 209, 56, 201, 112, 42, 96,
    25, 12, 5, 4, 9, 4, 42, 113, 40, 93, 100, 117, 28, 189, 112, 5, 42, 24, 21, 4, 41, 42, 21, 4, 165, 92,
    13, 4, 33, 16, 42, 24, 93, 12, 5, 12, 201, 4, 5, 12, 9, 8, 21, 8, 5, 4, 5, 96, 13, 8, 45, 28, 13, 48,
    25, 8, 25, 8, 25, 36, 29, 4, 29, 4, 173, 4, 57, 24, 461, 52, 42, 24, 44689, 48, 93, 16, 197, 33808,
    1465, 8, 425, 152, 29, 48, 21, 20, 5, 4, 41, 4, 53, 4, 21, 4, 5, 4, 9, 4, 9, 4, 433, 132, 1453, 72, 257,
    8, 217, 160, 49, 464, 21, 4, 541, 76, 42, 28, 105, 24, 105, 44, 357, 12, 25, 8, 25, 8, 25, 8, 13, 140,
    49, 4, 105, 4, 77, 4, 9, 4, 61, 8, 57, 136, 493, 48, 182, 48, 230, 68, 10, 976, 117, 12, 197, 64, 110,
    16, 129, 18, 36, 81, 6, 33, 6, 20, 153, 40, 121, 8, 145, 16, 33, 4, 22, 168, 633, 8, 42, 24, 145, 16,
    145, 16, 161, 32, 209, 48, 45, 4, 61, 4, 29, 4, 9, 4, 45, 4, 61, 4, 29, 4, 9, 268, 1245, 36, 89, 40, 33,
    96, 25, 4, 169, 4, 37, 276, 25, 8, 5, 4, 177, 4, 9, 12, 5, 8, 93, 8, 34, 93, 8, 30, 125, 32, 38, 192,
    77, 4, 9, 20, 22, 89, 26, 16, 105, 280, 225, 16, 10, 9, 66, 8, 186, 5, 60, 17, 4, 13, 4, 117, 40, 38,
    92, 117, 10, 4, 117, 14, 128, 33, 4, 113, 24, 22, 64, 217, 40, 89, 8, 34, 77, 20, 34, 73, 92, 30, 320,
    293, 220, 205, 52, 205, 28, 26, 145, 48, 42, 1176, 126, 4, 169, 24, 9, 312, 117, 42, 5, 32, 89, 44, 18,
    108, 73, 184, 85, 30, 80, 93, 48, 213, 104, 122, 4, 9, 8, 5, 52, 181, 128, 101, 28, 42, 36, 145, 60, 42,
    16, 5, 8, 5, 32, 141, 12, 5, 48, 193, 56, 17, 44, 42, 5, 4, 5, 16, 82, 44, 73, 4, 101, 76, 9, 252, 29,
    4, 5, 4, 17, 4, 61, 4, 41, 28, 189, 68, 42, 44, 33, 8, 9, 8, 89, 4, 29, 4, 9, 4, 21, 12, 5, 72, 5, 48,
    21, 632, 213, 72, 17, 20, 42, 20, 13, 120, 193, 80, 9, 4, 5, 32, 42, 664, 189, 164, 17, 144, 193, 80, 5,
    44, 42, 152, 173, 52, 5, 28, 42, 216, 109, 84, 50, 16, 29, 740, 177, 464, 257, 78, 48, 33, 8, 5, 8, 33,
    4, 9, 4, 97, 60, 5, 4, 5, 56, 42, 280, 33, 8, 157, 64, 5, 4, 5, 112, 5, 40, 161, 28, 5, 84, 5, 44, 185,
    76, 5, 72, 293, 1052, 37, 4, 149, 68, 5, 60, 118, 20, 121, 448, 29, 4, 9, 4, 153, 84, 5, 36, 42, 24, 25,
    4, 9, 4, 129, 56, 5, 28, 42, 1240, 77, 60, 5, 4, 53, 4, 137, 112, 42, 344, 5, 60, 86, 172, 3689, 408,
    446, 68, 785, 10544, 389, 60, 4289, 68, 25, 16100, 2333, 34532, 2277, 28, 125, 4, 42, 24, 317, 4, 42,
    24, 121, 72, 193, 64, 17, 48, 42, 4, 30, 4, 85, 20, 77, 2752, 257, 94, 420, 301, 20, 5, 264, 53, 256, 9,
    4, 5, 112, 24545, 32, 4953, 168, 37, 35740, 17, 4, 29, 4, 9, 4, 1165, 60, 5, 116, 13, 8, 5, 56, 17, 32,
    1585, 9232, 429, 20, 53, 12, 37, 28, 41, 22680, 82, 48, 82, 432, 102, 540, 341, 4, 285, 4, 9, 8, 5, 8,
    9, 8, 17, 4, 49, 4, 5, 4, 29, 4, 261, 4, 17, 8, 33, 4, 29, 4, 113, 4, 17, 4, 21, 4, 5, 12, 29, 4, 1361,
    8, 101, 4, 101, 4, 125, 4, 101, 4, 125, 4, 101, 4, 125, 4, 101, 4, 125, 4, 101, 4, 33, 8, 202, 7168,
    125, 24, 25, 1044, 249, 584, 181, 40, 29, 8, 42, 16, 5, 1284, 121, 72, 177, 16, 42, 1880, 113, 16, 42,
    2968, 29, 4, 17, 4, 9, 4, 61, 4, 789, 8, 38, 192, 273, 28, 5, 16, 42, 3164, 238, 4, 14, 4, 18, 304, 182,
    4, 62, 776, 17, 4, 109, 4, 9, 4, 5, 8, 5, 4, 41, 4, 17, 4, 5, 4, 5, 24, 5, 16, 5, 4, 5, 4, 5, 4, 13, 4,
    9, 4, 5, 8, 5, 4, 5, 4, 5, 4, 5, 4, 5, 4, 9, 4, 5, 8, 17, 4, 29, 4, 17, 4, 17, 4, 5, 4, 41, 4, 69, 20,
    13, 4, 21, 4, 69, 2320, 54, 11148, 42, 4120, 64001, 64001, 42881, 128, 16617, 24, 889, 8, 23049, 56,
    29893, 60, 2489, 9864, 2169, 6024, 19757, 20, 16769,
};

/* Into PVTI_CLASSES_END / 4 bytes, all zero before. */
static void pvti_classes_expand(uint8_t *classes)
{
    uint32_t c = 0;
    int64_t i;
    for (i = 0; i < PVTI_COUNT(pvti_class_runs); i++) {
        uint32_t end = c + pvti_class_runs[i] / 4, class_ = pvti_class_runs[i] % 4;
        for (; c < end; c++) classes[c / 4] |= (uint8_t)(class_ << (c % 4 * 2));
    }
}

/* The class of the character at s, and its length in bytes. A byte that is not UTF-8 is a
   character of its own, of no class. n > 0. */
static int pvti_class_read(const uint8_t *classes, const char *s, int64_t n, int *length)
{
    uint32_t c = (uint8_t)*s;
    *length = 1;
    if (c >= 0x80) {
        *length = pvti_utf8_read(s, n, &c);
        if (*length == 0) return *length = 1, PVTI_OTHER;
        if (c >= PVTI_CLASSES_END) return PVTI_OTHER;
    }
    return classes[c / 4] >> (c % 4 * 2) & 3;
}

/* Bytes of the run of characters of one class at s, at most `most` characters. */
static int64_t pvti_class_run(const uint8_t *classes, const char *s, int64_t n, int class_, int64_t most)
{
    int64_t at = 0;
    int length;
    for (; at < n && most > 0 && pvti_class_read(classes, s + at, n - at, &length) == class_; most--)
        at += length;
    return at;
}

// >>nfc
/*  Unicode's composed form, which Qwen's tokenizer wants: "e" + U+0301 is "é". Decompose
    everything, sort runs of combining marks by their class, compose what composes (Unicode
    Standard Annex 15). Text below U+0300 is composed already and passes untouched. Left
    alone are the thousand compatibility ideographs (U+F900 …, U+2F800 …), which exist only to
    round-trip other encodings: their table would be longer than all the rest. */

/* Per composed character, ascending: 2 · (its distance from the one before) + (1: never composed
   again), first part − first part of the one before, second part − 767 (0: there is none). */
static const int32_t pvti_nfc_pairs[] = {
    384, 65, 1, 2, 0, 2, 2, 0, 3, 2, 0, 4, 2, 0, 9, 2, 0, 11, 4, 2, 40, 2, 2, 1, 2, 0, 2, 2, 0, 3, 2, 0, 9,
    2, 4, 1, 2, 0, 2, 2, 0, 3, 2, 0, 9, 4, 5, 4, 2, 1, 1, 2, 0, 2, 2, 0, 3, 2, 0, 4, 2, 0, 9, 6, 6, 1, 2, 0,
    2, 2, 0, 3, 2, 0, 9, 2, 4, 2, 6, 8, 1, 2, 0, 2, 2, 0, 3, 2, 0, 4, 2, 0, 9, 2, 0, 11, 4, 2, 40, 2, 2, 1,
    2, 0, 2, 2, 0, 3, 2, 0, 9, 2, 4, 1, 2, 0, 2, 2, 0, 3, 2, 0, 9, 4, 5, 4, 2, 1, 1, 2, 0, 2, 2, 0, 3, 2, 0,
    4, 2, 0, 9, 6, 6, 1, 2, 0, 2, 2, 0, 3, 2, 0, 9, 2, 4, 2, 4, 0, 9, 2, -56, 5, 2, 32, 5, 2, -32, 7, 2, 32,
    7, 2, -32, 41, 2, 32, 41, 2, -30, 2, 2, 32, 2, 2, -32, 3, 2, 32, 3, 2, -32, 8, 2, 32, 8, 2, -32, 13, 2,
    32, 13, 2, -31, 13, 2, 32, 13, 6, -31, 5, 2, 32, 5, 2, -32, 7, 2, 32, 7, 2, -32, 8, 2, 32, 8, 2, -32,
    41, 2, 32, 41, 2, -32, 13, 2, 32, 13, 2, -30, 3, 2, 32, 3, 2, -32, 7, 2, 32, 7, 2, -32, 8, 2, 32, 8, 2,
    -32, 40, 2, 32, 40, 2, -31, 3, 2, 32, 3, 6, -31, 4, 2, 32, 4, 2, -32, 5, 2, 32, 5, 2, -32, 7, 2, 32, 7,
    2, -32, 41, 2, 32, 41, 2, -32, 8, 8, 1, 3, 2, 32, 3, 2, -31, 40, 2, 32, 40, 4, -31, 2, 2, 32, 2, 2, -32,
    40, 2, 32, 40, 2, -32, 13, 2, 32, 13, 10, -30, 2, 2, 32, 2, 2, -32, 40, 2, 32, 40, 2, -32, 13, 2, 32,
    13, 8, -31, 5, 2, 32, 5, 2, -32, 7, 2, 32, 7, 2, -32, 12, 2, 32, 12, 6, -29, 2, 2, 32, 2, 2, -32, 40, 2,
    32, 40, 2, -32, 13, 2, 32, 13, 2, -31, 2, 2, 32, 2, 2, -32, 3, 2, 32, 3, 2, -32, 40, 2, 32, 40, 2, -32,
    13, 2, 32, 13, 2, -31, 40, 2, 32, 40, 2, -32, 13, 2, 32, 13, 6, -31, 4, 2, 32, 4, 2, -32, 5, 2, 32, 5,
    2, -32, 7, 2, 32, 7, 2, -32, 11, 2, 32, 11, 2, -32, 12, 2, 32, 12, 2, -32, 41, 2, 32, 41, 2, -30, 3, 2,
    32, 3, 2, -30, 3, 2, 32, 3, 2, -32, 9, 2, 1, 2, 2, 32, 2, 2, -32, 8, 2, 32, 8, 2, -32, 13, 2, 32, 13,
    68, -43, 28, 2, 32, 28, 28, -26, 28, 2, 32, 28, 58, -52, 13, 2, 32, 13, 2, -24, 13, 2, 32, 13, 2, -26,
    13, 2, 32, 13, 2, -26, 13, 2, 32, 13, 2, 103, 5, 2, 32, 5, 2, -32, 2, 2, 32, 2, 2, -32, 13, 2, 32, 13,
    2, -32, 1, 2, 32, 1, 4, -56, 5, 2, 32, 5, 2, 322, 5, 2, 1, 5, 2, -353, 5, 2, 32, 5, 6, -159, 13, 2, 32,
    13, 2, -28, 13, 2, 32, 13, 2, -28, 41, 2, 32, 41, 2, 379, 5, 2, 1, 5, 2, -52, 13, 2, 219, 13, 2, -552,
    13, 8, -35, 2, 2, 32, 2, 6, -25, 1, 2, 32, 1, 2, 87, 2, 2, 32, 2, 2, -31, 2, 2, 32, 2, 2, -14, 2, 2, 32,
    2, 2, -183, 16, 2, 32, 16, 2, -32, 18, 2, 32, 18, 2, -28, 16, 2, 32, 16, 2, -32, 18, 2, 32, 18, 2, -28,
    16, 2, 32, 16, 2, -32, 18, 2, 32, 18, 2, -26, 16, 2, 32, 16, 2, -32, 18, 2, 32, 18, 2, -29, 16, 2, 32,
    16, 2, -32, 18, 2, 32, 18, 2, -29, 16, 2, 32, 16, 2, -32, 18, 2, 32, 18, 2, -34, 39, 2, 32, 39, 2, -31,
    39, 2, 32, 39, 6, -44, 13, 2, 32, 13, 14, -39, 8, 2, 32, 8, 2, -28, 40, 2, 32, 40, 2, 113, 5, 2, 32, 5,
    2, -33, 5, 2, 32, 5, 2, -166, 8, 2, 32, 8, 2, 447, 5, 2, 1, 5, 2, -470, 5, 2, 32, 5, 539, 647, 0, 3, 1,
    0, 5, 18, 0, 3, -11, 2, 97, -79, 0, 21, -638, 0, 14, 109, 2, 2, 745, 2, 3, -730, 0, 2, 734, 2, 2, 2, 2,
    2, 2, 2, 4, 6, 2, 4, 6, 2, 2, 4, 2, 2, 33, 2, 52, -49, 9, 2, 12, 9, 2, 12, 2, 2, 4, 2, 2, 2, 2, 2, 2, 2,
    2, 18, 2, 52, -18, 9, 2, 12, 9, 2, -6, 2, 2, 6, 2, 2, 4, 2, 10, 9, 2, 2, 0, 9, 88, 67, 1, 2, 0, 9, 4,
    -2, 2, 8, -13, 9, 10, 20, 2, 2, -2, 1, 2, 11, 7, 22, -11, 7, 64, 32, 7, 46, -3, 1, 2, 0, 9, 4, -2, 2, 8,
    35, 9, 10, -28, 2, 2, -2, 1, 2, 11, 7, 48, 49, 16, 2, 1, 16, 148, -95, 7, 2, 32, 7, 28, -38, 7, 2, 32,
    7, 2, -32, 9, 2, 32, 9, 6, -27, 7, 2, 32, 7, 6, 163, 9, 2, 1, 9, 2, -195, 9, 2, 32, 9, 2, -31, 9, 2, 32,
    9, 6, -31, 5, 2, 32, 5, 2, -32, 9, 2, 32, 9, 2, -26, 9, 2, 32, 9, 6, 170, 9, 2, 1, 9, 2, -188, 9, 2, 32,
    9, 2, -42, 5, 2, 32, 5, 2, -32, 9, 2, 32, 9, 2, -32, 12, 2, 32, 12, 2, -28, 9, 2, 32, 9, 6, -28, 9, 2,
    32, 9, 594, 476, 852, 2, 0, 853, 2, 33, 853, 2, -33, 854, 2, 35, 853, 308, 139, 853, 4, -20, 853, 34,
    17, 853, 1196, 598, 1597, 16, 8, 1597, 6, 3, 1597, 73, -30, 1597, 3, 1, 1597, 3, 1, 1597, 3, 5, 1597, 3,
    5, 1597, 3, 1, 1597, 3, 9, 1597, 3, 4, 1597, 216, 152, 1727, 2, 0, 1752, 33, -38, 1725, 3, 1, 1725, 5,
    13, 1725, 169, 131, 1853, 7, 6, 1853, 71, -34, 1853, 3, 1, 1853, 3, 5, 1853, 7, 15, 1853, 468, 284,
    2135, 6, 0, 2111, 2, 0, 2136, 33, -38, 2109, 3, 1, 2109, 110, 112, 2264, 108, 52, 2239, 2, 1, 2239, 2,
    -1, 2264, 248, 128, 2391, 240, 121, 2518, 14, 7, 2518, 2, 0, 2519, 4, 0, 2499, 2, 4, 2518, 254, 124,
    2623, 2, 1, 2623, 2, -1, 2648, 284, 147, 2763, 4, 0, 2768, 2, 3, 2763, 2, -3, 2784, 715, 361, 3256, 21,
    10, 3256, 11, 5, 3256, 11, 5, 3256, 11, 5, 3256, 27, -27, 3254, 21, 49, 3187, 5, 0, 3189, 3, 65, 3201,
    5, 1, 3201, 19, -66, 3201, 37, 33, 3256, 21, 10, 3256, 11, 5, 3256, 11, 5, 3256, 11, 5, 3256, 27, -27,
    3254, 218, 149, 3375, 5568, 2784, 6198, 4, 2, 6198, 4, 2, 6198, 4, 2, 6198, 4, 2, 6198, 8, 4, 6198, 82,
    41, 6198, 4, 2, 6198, 6, 2, 6198, 2, 1, 6198, 4, 3, 6198, 1402, -6913, 38, 2, 32, 38, 2, -31, 8, 2, 32,
    8, 2, -32, 36, 2, 32, 36, 2, -32, 50, 2, 32, 50, 2, 101, 2, 2, 32, 2, 2, -163, 8, 2, 32, 8, 2, -32, 36,
    2, 32, 36, 2, -32, 50, 2, 32, 50, 2, -32, 40, 2, 32, 40, 2, -32, 46, 2, 32, 46, 2, 174, 1, 2, 1, 1, 2,
    -1, 2, 2, 1, 2, 2, -206, 46, 2, 32, 46, 2, -32, 49, 2, 32, 49, 2, 451, 7, 2, 1, 7, 2, -483, 8, 2, 32, 8,
    2, -31, 5, 2, 32, 5, 2, -31, 8, 2, 32, 8, 2, -32, 36, 2, 32, 36, 2, -32, 9, 2, 32, 9, 2, -32, 40, 2, 32,
    40, 2, -32, 47, 2, 32, 47, 2, -31, 49, 2, 32, 49, 2, 102, 2, 2, 32, 2, 2, -164, 2, 2, 32, 2, 2, -32, 36,
    2, 32, 36, 2, -32, 50, 2, 32, 50, 2, -31, 36, 2, 32, 36, 2, 7626, 5, 2, 1, 5, 2, -7659, 50, 2, 32, 50,
    2, -32, 46, 2, 32, 46, 2, -31, 2, 2, 32, 2, 2, -32, 8, 2, 32, 8, 2, -32, 36, 2, 32, 36, 2, -31, 8, 2,
    32, 8, 2, -32, 36, 2, 32, 36, 2, -32, 50, 2, 32, 50, 2, -32, 46, 2, 32, 46, 2, 103, 2, 2, 32, 2, 2, -32,
    9, 2, 32, 9, 2, 87, 1, 2, 1, 1, 2, -1, 2, 2, 1, 2, 2, -253, 2, 2, 32, 2, 2, -32, 8, 2, 32, 8, 2, -30, 8,
    2, 32, 8, 2, -32, 36, 2, 32, 36, 2, 7656, 5, 2, 1, 5, 2, -7689, 50, 2, 32, 50, 2, -31, 8, 2, 32, 8, 2,
    -32, 36, 2, 32, 36, 2, 231, 8, 2, 1, 8, 2, 5, 8, 2, 1, 8, 2, 7425, 8, 2, 1, 8, 2, -7695, 8, 2, 32, 8, 2,
    -32, 36, 2, 32, 36, 2, -32, 50, 2, 32, 50, 2, -32, 46, 2, 32, 46, 2, -31, 37, 2, 32, 37, 2, -32, 49, 2,
    32, 49, 2, -32, 46, 2, 32, 46, 2, 243, 2, 2, 1, 2, 2, 1, 9, 2, 1, 9, 2, -277, 4, 2, 32, 4, 2, -32, 36,
    2, 32, 36, 2, -31, 1, 2, 32, 1, 2, -32, 2, 2, 32, 2, 2, -32, 9, 2, 32, 9, 2, -32, 8, 2, 32, 8, 2, -32,
    36, 2, 32, 36, 2, -31, 8, 2, 32, 8, 2, -32, 9, 2, 32, 9, 2, -31, 8, 2, 32, 8, 2, -31, 3, 2, 32, 3, 2,
    -32, 36, 2, 32, 36, 2, -32, 50, 2, 32, 50, 2, -18, 50, 2, 12, 9, 2, 3, 11, 2, 2, 11, 4, 262, 8, 10,
    -318, 36, 2, 32, 36, 2, -32, 10, 2, 32, 10, 2, 97, 2, 2, 32, 2, 2, -32, 1, 2, 32, 1, 2, -32, 10, 2, 32,
    10, 2, -32, 4, 2, 32, 4, 2, 7614, 3, 2, 1, 3, 2, -7583, 2, 2, 1, 2, 2, -1, 1, 2, 1, 1, 2, -1, 10, 2, 1,
    10, 2, -1, 4, 2, 1, 4, 2, 7581, 7, 2, 1, 7, 2, -7772, 36, 2, 32, 36, 2, -32, 10, 2, 32, 10, 2, -32, 4,
    2, 32, 4, 2, 101, 2, 2, 32, 2, 2, -32, 1, 2, 32, 1, 2, -32, 10, 2, 32, 10, 2, -32, 4, 2, 32, 4, 2, 7630,
    3, 2, 1, 3, 2, -7792, 10, 2, 32, 10, 2, -32, 36, 2, 32, 36, 2, -26, 36, 2, 32, 36, 2, -32, 10, 2, 32,
    10, 2, 101, 2, 2, 32, 2, 2, -32, 1, 2, 32, 1, 2, -32, 10, 2, 32, 10, 2, -32, 4, 2, 32, 4, 2, 7640, 3, 2,
    1, 3, 2, -7469, 2, 2, 1, 2, 2, -1, 1, 2, 1, 1, 2, -1, 10, 2, 1, 10, 2, -1, 4, 2, 1, 4, 2, -1, 36, 2, 1,
    36, 2, -332, 36, 2, 32, 36, 2, -32, 10, 2, 32, 10, 2, 314, 2, 2, 1, 2, 2, -1, 1, 2, 1, 1, 2, -1, 10, 2,
    1, 10, 2, -1, 4, 2, 1, 4, 2, -1, 36, 2, 1, 36, 2, -343, 1, 2, 32, 1, 2, -32, 36, 2, 32, 36, 2, -32, 10,
    2, 32, 10, 2, -32, 4, 2, 32, 4, 14, 824, 20, 2, 0, 21, 2, 6991, 1, 2, 1, 1, 2, -1, 2, 2, 1, 2, 2, -1,
    67, 2, 1, 67, 2, -7024, 20, 2, 0, 21, 2, 7031, 1, 2, 1, 1, 2, -1, 2, 2, 1, 2, 2, -1, 67, 2, 1, 67, 2,
    -6996, 20, 2, 0, 21, 2, 7003, 1, 2, 1, 1, 2, -1, 2, 2, 1, 2, 6, -7036, 20, 2, 0, 21, 2, 7043, 1, 2, 1,
    1, 2, -1, 2, 2, 1, 2, 6, -7010, 20, 2, 0, 21, 2, 7017, 1, 2, 1, 1, 2, -1, 2, 2, 1, 2, 2, -1, 67, 2, 1,
    67, 2, -7050, 20, 2, 0, 21, 2, 7057, 1, 2, 1, 1, 2, -1, 2, 2, 1, 2, 2, -1, 67, 2, 1, 67, 2, -7024, 20,
    2, 0, 21, 2, 7031, 1, 2, 1, 1, 2, -1, 2, 2, 1, 2, 2, -1, 67, 2, 1, 67, 2, -7064, 20, 2, 0, 21, 2, 7071,
    1, 2, 1, 1, 2, -1, 2, 2, 1, 2, 2, -1, 67, 2, 1, 67, 2, -7034, 20, 2, 0, 21, 2, 7041, 1, 2, 1, 1, 2, -1,
    2, 2, 1, 2, 6, -7074, 20, 2, 0, 21, 2, 7081, 1, 2, 1, 1, 2, -1, 2, 2, 1, 2, 6, -7044, 20, 2, 0, 21, 2,
    7051, 1, 2, 1, 1, 2, -1, 2, 2, 1, 2, 2, -1, 67, 2, 1, 67, 4, -7084, 21, 4, 7092, 1, 4, 0, 2, 4, 0, 67,
    2, -7056, 20, 2, 0, 21, 2, 7063, 1, 2, 1, 1, 2, -1, 2, 2, 1, 2, 2, -1, 67, 2, 1, 67, 2, -7096, 20, 2, 0,
    21, 2, 7103, 1, 2, 1, 1, 2, -1, 2, 2, 1, 2, 2, -1, 67, 2, 1, 67, 2, -7096, 1, 3, -5, 0, 2, 9, 1, 3, -8,
    0, 2, 10, 1, 3, -9, 0, 2, 11, 1, 3, -10, 0, 2, 16, 1, 3, 13, 0, 2, -7, 1, 3, 8, 0, 2, -4, 1, 3, 5, 0, 6,
    6962, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2,
    1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 17, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1,
    70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70,
    2, 1, 70, 2, 49, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2,
    1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, 1, 70, 2, -7102, 7, 2, 0, 5, 2, 7103, 70, 2,
    -7103, 70, 2, -5, 70, 4, 5, 67, 2, 7173, 70, 2, -7205, 7, 2, 0, 5, 2, 0, 1, 3, -11, 0, 2, 11, 70, 5, 40,
    0, 6, -785, 67, 2, 7884, 70, 2, -7101, 70, 2, -9, 70, 4, 9, 67, 2, 7183, 70, 2, -7217, 1, 3, -13, 0, 2,
    15, 1, 3, -14, 0, 2, 14, 70, 2, 7208, 1, 2, 0, 2, 2, 0, 67, 2, -7174, 7, 2, 0, 5, 2, 17, 1, 3, -58, 0,
    6, 41, 67, 2, 17, 67, 2, -49, 7, 2, 0, 5, 2, 0, 1, 3, -15, 0, 4, 7284, 1, 2, 0, 2, 2, 0, 67, 2, -7225,
    7, 2, 0, 5, 2, 6, 1, 3, -27, 0, 2, 17, 20, 2, 0, 21, 2, 4, 67, 2, 6, 67, 2, -38, 7, 2, 0, 5, 2, 0, 1, 3,
    -23, 0, 2, 19, 21, 2, -761, 1, 3, 733, 0, 3, -805, 0, 6, 7964, 70, 2, -7091, 70, 2, 5, 70, 4, -5, 67, 2,
    7213, 70, 2, -7255, 1, 3, -19, 0, 2, 29, 1, 3, -26, 0, 2, 26, 70, 3, -757, 0, 7, 8014, 0, 3, 1, 0, 587,
    -7258, 0, 9, -862, 0, 3, 122, 0, 222, 8395, 57, 2, 2, 57, 38, 2, 57, 62, 60, 57, 2, 4, 57, 2, -2, 57,
    106, 49, 57, 10, 5, 57, 6, 3, 57, 48, 24, 57, 4, 2, 57, 54, 23, 57, 6, 7, 57, 6, 2, 57, 4, 3, 57, 46,
    -8715, 57, 4, 8740, 57, 22, -20, 57, 2, -8721, 57, 2, 2, 57, 2, 8742, 57, 2, 1, 57, 6, 13, 57, 2, 1, 57,
    6, 3, 57, 2, 1, 57, 14, 3, 57, 2, 1, 57, 6, 7, 57, 2, 1, 57, 6, 3, 57, 2, 1, 57, 70, 27, 57, 2, 6, 57,
    2, 1, 57, 2, 2, 57, 98, -47, 57, 2, 1, 57, 2, 20, 57, 2, 1, 57, 14, 32, 57, 2, 1, 57, 2, 1, 57, 2, 1,
    57, 121, 3411, 0, 3, 1, 0, 3941, -1324, 57, 2784, 1390, 11674, 4, 2, 11674, 4, 2, 11674, 4, 2, 11674, 4,
    2, 11674, 4, 2, 11674, 4, 2, 11674, 4, 2, 11674, 4, 2, 11674, 4, 2, 11674, 4, 2, 11674, 4, 2, 11674, 6,
    3, 11674, 4, 2, 11674, 4, 2, 11674, 14, 7, 11674, 2, 0, 11675, 4, 3, 11674, 2, 0, 11675, 4, 3, 11674, 2,
    0, 11675, 4, 3, 11674, 2, 0, 11675, 4, 3, 11674, 2, 0, 11675, 46, -53, 11674, 20, 87, 11674, 28, 14,
    11674, 4, 2, 11674, 4, 2, 11674, 4, 2, 11674, 4, 2, 11674, 4, 2, 11674, 4, 2, 11674, 4, 2, 11674, 4, 2,
    11674, 4, 2, 11674, 4, 2, 11674, 4, 2, 11674, 6, 3, 11674, 4, 2, 11674, 4, 2, 11674, 14, 7, 11674, 2, 0,
    11675, 4, 3, 11674, 2, 0, 11675, 4, 3, 11674, 2, 0, 11675, 4, 3, 11674, 2, 0, 11675, 4, 3, 11674, 2, 0,
    11675, 46, -53, 11674, 6, 73, 11674, 2, 1, 11674, 2, 1, 11674, 2, 1, 11674, 8, 11, 11674, 103487,
    -11044, 693, 5, 25, 696, 23, -9, 706, 3, 0, 707, 3, 62816, 706, 3, 0, 707, 3, -62841, 696, 3, 0, 697, 3,
    0, 701, 3, 1, 701, 3, 1, 701, 3, 1, 701, 3, 1, 701, 3, 1, 701, 3, 1, 701, 5, 2, 701, 3, 1, 701, 3, 1,
    701, 3, 1, 701, 3, 1, 701, 5, 2, 701, 5, 2, 701, 3, 1, 701, 5, 2, 701, 3, 1, 701, 5, 2, 701, 3, 1, 701,
    3, 1, 701, 3, 1, 701, 3, 1, 701, 3, -21, 698, 3, -4, 704, 3, 10, 704, 3, 9, 704, 10904, 68277, 69051, 4,
    2, 69051, 30, 10, 69051, 262, 140, 69160, 2, 1, 69160, 1080, 533, 69695, 2, 0, 69720, 734, 370, 70075,
    2, 0, 70065, 4, 0, 70078, 504, 255, 70320, 2, 1, 70320, 1786, 892, 71217, 94285, 47138, 118374, 3, 1,
    118374, 3, 7, 118383, 3, 0, 118384, 3, 0, 118385, 3, 0, 118386, 3, 0, 118387, 175, 90, 118374, 3, 1,
    118374, 3, 1, 118383, 3, 1, 118383, 3, -1, 118384, 3, 1, 118384,
};
/* Combining classes from U+0000 on as runs: 256 · length + class. */
static const uint32_t pvti_nfc_runs[] = {
    196608, 5606, 488, 1244, 488, 472, 1500, 714, 1244, 714, 3036, 1281, 1244, 2278, 496, 486, 988, 998,
    732, 256, 998, 1244, 486, 488, 732, 486, 489, 746, 489, 746, 489, 3558, 70400, 1510, 67840, 476, 1254,
    476, 998, 478, 476, 1766, 1756, 742, 476, 742, 478, 484, 486, 266, 267, 268, 269, 270, 271, 272, 273,
    274, 531, 276, 277, 278, 256, 279, 256, 280, 281, 256, 486, 476, 256, 274, 18432, 2278, 286, 287, 288,
    12288, 283, 284, 285, 286, 287, 288, 289, 290, 742, 732, 1510, 476, 742, 476, 4096, 291, 25856, 2022,
    512, 1254, 476, 486, 512, 742, 256, 476, 742, 476, 8960, 292, 7680, 486, 476, 742, 476, 742, 988, 486,
    732, 486, 476, 998, 476, 486, 476, 486, 476, 486, 476, 742, 40960, 2022, 476, 486, 2304, 476, 6144,
    1254, 256, 2534, 256, 998, 256, 1510, 11008, 988, 15360, 486, 988, 1254, 10752, 1510, 1500, 3814, 256,
    476, 742, 476, 742, 476, 998, 988, 283, 284, 285, 998, 476, 742, 732, 1510, 15360, 263, 4096, 265, 768,
    486, 476, 742, 26368, 263, 4096, 265, 12288, 486, 15616, 263, 4096, 265, 28160, 263, 4096, 265, 28160,
    263, 4096, 265, 32512, 265, 28160, 263, 4096, 265, 1792, 340, 347, 25856, 263, 4096, 265, 27904, 521,
    4096, 265, 31744, 265, 27904, 615, 265, 3328, 1131, 27648, 630, 265, 3328, 1146, 19456, 732, 6912, 476,
    256, 476, 256, 472, 14080, 385, 386, 256, 388, 1280, 1154, 512, 386, 256, 742, 265, 256, 742, 15872,
    476, 28672, 263, 256, 521, 20992, 476, 184064, 998, 242688, 521, 7680, 265, 40192, 265, 2560, 486,
    51968, 484, 36608, 478, 486, 476, 56064, 486, 476, 18176, 265, 5120, 2278, 512, 476, 12288, 1510, 1756,
    742, 476, 256, 732, 742, 732, 1510, 476, 1254, 25856, 263, 3840, 265, 9728, 486, 476, 2022, 13824, 521,
    14848, 263, 2816, 521, 17152, 263, 38912, 998, 256, 257, 1500, 742, 1244, 486, 256, 1793, 1024, 476,
    1536, 486, 768, 742, 50688, 742, 476, 2022, 476, 742, 490, 470, 476, 458, 9702, 488, 740, 476, 474, 486,
    489, 476, 486, 476, 184320, 742, 513, 1254, 769, 742, 1024, 486, 768, 513, 486, 476, 486, 513, 1244,
    486, 785920, 998, 36096, 265, 24576, 8422, 141824, 474, 484, 488, 478, 736, 26880, 520, 7721984, 486,
    1024, 2790, 8192, 742, 20480, 742, 70656, 265, 9472, 265, 38656, 265, 6912, 4838, 14592, 988, 9472, 265,
    24320, 263, 3072, 265, 61184, 486, 256, 742, 476, 512, 742, 1280, 742, 256, 486, 13312, 265, 62976, 265,
    5189632, 282, 196864, 2022, 2012, 742, 249088, 476, 57856, 476, 38144, 1510, 430592, 476, 256, 486,
    10240, 486, 257, 476, 1024, 265, 42240, 486, 476, 146688, 1254, 99072, 742, 20480, 988, 17920, 732, 998,
    476, 486, 1244, 12544, 486, 476, 486, 476, 49152, 265, 10496, 265, 3584, 265, 14592, 265, 263, 17664,
    998, 12288, 521, 15872, 263, 19456, 265, 2304, 263, 27136, 265, 263, 45568, 263, 265, 20480, 519, 4096,
    265, 6144, 2022, 768, 1510, 52480, 265, 768, 263, 5888, 486, 25344, 265, 263, 64256, 265, 263, 32256,
    265, 30208, 265, 263, 29440, 265, 68864, 265, 263, 66048, 521, 1024, 263, 39936, 265, 21248, 265, 4608,
    265, 20736, 265, 107776, 265, 66048, 263, 256, 521, 20736, 265, 108800, 521, 4959488, 1281, 15104, 2022,
    309504, 518, 5024768, 257, 1361408, 728, 769, 768, 482, 1496, 2048, 2268, 512, 1510, 732, 7680, 1254,
    37888, 998, 899840, 2022, 256, 4582, 512, 2022, 256, 742, 256, 1510, 25600, 486, 40960, 2022, 96000,
    486, 15616, 1254, 130048, 744, 476, 486, 253952, 2012, 27904, 1766, 263,
};
#define PVTI_NFC_PAIRS 1059
#define PVTI_NFC_END 0x1e94b   /* characters from here on have class 0 */
#define PVTI_NFC_RAW 0x80000000u /* marks a byte that is not UTF-8 */

typedef struct pvti_nfc {
    struct { uint32_t composed, first, second; bool excluded; } pairs[PVTI_NFC_PAIRS];
    uint16_t index[4096]; /* pair + 1 by hash of (first, second) */
    uint8_t class_[PVTI_NFC_END];
    uint8_t joins[(PVTI_NFC_END + 7) / 8]; /* bit: it is the second part of a pair */
} pvti_nfc;

static uint32_t pvti_nfc_hash(uint32_t first, uint32_t second)
{
    return (uint32_t)(pvti_mix((uint64_t)first << 32 | second) % 4096);
}

static void pvti_nfc_expand(pvti_nfc *nfc)
{
    uint32_t composed = 0, first = 0, at = 0, slot;
    int i;
    for (i = 0; i < PVTI_NFC_PAIRS; i++) {
        const int32_t *entry = pvti_nfc_pairs + 3 * i;
        composed += (uint32_t)entry[0] / 2, first += (uint32_t)entry[1];
        nfc->pairs[i].composed = composed, nfc->pairs[i].first = first;
        nfc->pairs[i].second = entry[2] ? (uint32_t)entry[2] + 767 : 0;
        nfc->pairs[i].excluded = entry[0] & 1;
        if (entry[0] & 1) continue;
        for (slot = pvti_nfc_hash(first, nfc->pairs[i].second); nfc->index[slot];) slot = (slot + 1) % 4096;
        nfc->index[slot] = (uint16_t)(i + 1);
        nfc->joins[nfc->pairs[i].second / 8] |= (uint8_t)(1 << nfc->pairs[i].second % 8);
    }
    for (i = 0; i < PVTI_COUNT(pvti_nfc_runs); i++) {
        uint32_t end = at + pvti_nfc_runs[i] / 256;
        for (; at < end; at++) nfc->class_[at] = (uint8_t)(pvti_nfc_runs[i] % 256);
    }
}

static int pvti_nfc_class(const pvti_nfc *nfc, uint32_t c) { return c < PVTI_NFC_END ? nfc->class_[c] : 0; }

/* Characters to come out of a decomposition, at most four; their number. */
static int pvti_nfc_decompose(const pvti_nfc *nfc, uint32_t c, uint32_t *out)
{
    int low = 0, high = PVTI_NFC_PAIRS, n;
    if (c < 0xc0) return *out = c, 1;
    if (c >= 0xac00 && c < 0xac00 + 11172) { /* Hangul: leading consonant, vowel, trailing consonant */
        uint32_t s = c - 0xac00;
        out[0] = 0x1100 + s / 588, out[1] = 0x1161 + s % 588 / 28, out[2] = 0x11a7 + s % 28;
        return s % 28 ? 3 : 2;
    }
    while (low < high) {
        int middle = (low + high) / 2;
        if (nfc->pairs[middle].composed < c) low = middle + 1;
        else high = middle;
    }
    if (low == PVTI_NFC_PAIRS || nfc->pairs[low].composed != c) return *out = c, 1;
    n = pvti_nfc_decompose(nfc, nfc->pairs[low].first, out); /* the second part never decomposes */
    if (nfc->pairs[low].second) out[n++] = nfc->pairs[low].second;
    return n;
}

/* What a and b compose to; 0: nothing. */
static uint32_t pvti_nfc_compose(const pvti_nfc *nfc, uint32_t a, uint32_t b)
{
    uint32_t slot;
    if (a - 0x1100 < 19 && b - 0x1161 < 21) return 0xac00 + ((a - 0x1100) * 21 + (b - 0x1161)) * 28;
    if (a - 0xac00 < 11172 && (a - 0xac00) % 28 == 0 && b - 0x11a8 < 27) return a + (b - 0x11a7);
    for (slot = pvti_nfc_hash(a, b); nfc->index[slot]; slot = (slot + 1) % 4096) {
        int i = nfc->index[slot] - 1;
        if (nfc->pairs[i].first == a && nfc->pairs[i].second == b) return nfc->pairs[i].composed;
    }
    return 0;
}

/* Whether c composes with nothing before it and no mark is sorted across it: text may be cut there. */
static bool pvti_nfc_starts(const pvti_nfc *nfc, uint32_t c)
{
    uint32_t parts[4];
    pvti_nfc_decompose(nfc, c, parts);
    c = parts[0];
    if (c >= 0x1161 && c <= 0x11c2) return false; /* Hangul: vowels and trailing consonants */
    return pvti_nfc_class(nfc, c) == 0 && !(c < PVTI_NFC_END && (nfc->joins[c / 8] >> c % 8 & 1));
}

/* Sorts every run of marks by class, equals in their order. items: scratch for n. */
static void pvti_nfc_sort(const pvti_nfc *nfc, uint32_t *chars, int64_t n, pvti_sort_item *items)
{
    int64_t start, end, i;
    for (start = 0; start < n; start = PVTI_MAX(end, start + 1)) {
        for (end = start; end < n && pvti_nfc_class(nfc, chars[end]); end++) {
            items[end - start].key =
                (uint64_t)pvti_nfc_class(nfc, chars[end]) << 56 | (uint64_t)(end - start) << 21 | chars[end];
            items[end - start].index = 0;
        }
        if (end - start < 2) continue;
        pvti_sort(items, end - start, NULL, NULL);
        for (i = start; i < end; i++) chars[i] = (uint32_t)(items[i - start].key & 0x1fffff);
    }
}

/* chars[0 … n−1], decomposed and sorted, composed in place; the new number. */
static int64_t pvti_nfc_compose_all(const pvti_nfc *nfc, uint32_t *chars, int64_t n)
{
    int64_t i, out = 0, starter = -1;
    int last = 0;
    for (i = 0; i < n; i++) {
        int class_ = pvti_nfc_class(nfc, chars[i]);
        if (starter >= 0 && (last < class_ || (last == 0 && class_ == 0))) { /* nothing between blocks it */
            uint32_t both = pvti_nfc_compose(nfc, chars[starter], chars[i]);
            if (both) {
                chars[starter] = both;
                continue;
            }
        }
        if (class_ == 0) starter = out;
        last = class_;
        chars[out++] = chars[i];
    }
    return out;
}

// >>vocabulary
/*  A tokenizer in memory, whatever file it came from: pieces as the *bytes they stand for* (the
    spellings "▁the", "Ġthe" and "<0x0A>" are undone while loading), a hash index from
    bytes to id, and a hash table of merges (left id, right id) → (rank, id). Both algorithms then run the
    same loop: merge the adjacent pair of lowest rank, leftmost first.

    SentencePiece files list no merges: any two neighbours whose concatenation is a piece may
    merge, the best score first. Listing these pairs when loading (every split of every
    piece into two pieces) turns a score into a rank and saves hashing text later. */

enum { PVTI_PIECE_HOLE, PVTI_PIECE_NORMAL, PVTI_PIECE_UNKNOWN, PVTI_PIECE_CONTROL, PVTI_PIECE_USER,
       PVTI_PIECE_UNUSED, PVTI_PIECE_BYTE }; /* the numbers of SentencePiece and GGUF */

typedef struct pvti_piece {
    uint32_t start, bytes; /* in the pool */
    float score;
    uint8_t type;
    bool strip_left, strip_right; /* a special token that swallows the white space beside it */
} pvti_piece;

typedef struct pvti_merge {
    uint32_t left, right, rank;
    uint32_t id1; /* the id of the result, plus one; 0: an empty slot */
} pvti_merge;

/* How text is cut before merging. */
enum { PVTI_WORDS_WHOLE, PVTI_WORDS_SPACES, PVTI_WORDS_EACH_SPACE, PVTI_WORDS_GPT2, PVTI_WORDS_LLAMA3,
       PVTI_WORDS_QWEN2, PVTI_WORDS_SMOLLM };
/* Which stretches between special tokens get a space in front. */
enum { PVTI_PREFIX_NONE, PVTI_PREFIX_START, PVTI_PREFIX_CONTROL, PVTI_PREFIX_ALL };

struct pvt_tokenizer {
    pvt_ctx *ctx;
    const char *name; /* of the file, while loading */
    int owners;       /* besides the first */
    char *path, *folder; /* the file and its directory, when saving copies them */
    const char *file; /* then "tokenizer.json" or "tokenizer.model"; else NULL */
    char *template_;  /* the chat template of a GGUF, or NULL */
    bool spaces;      /* SentencePiece family: ▁ is a space; else byte-level */
    int words, prefix;
    bool prefix_unless_space; /* no space is put before one */
    bool collapse;            /* runs of spaces become one, none at the ends */
    pvti_nfc *nfc;            /* text is composed first; NULL: it is not */
    bool fuse_unknown, ignore_merges, adds_bos;
    bool scored;              /* merges were made from scores */
    int32_t bos, eos, unknown;
    int64_t V;
    pvti_piece *pieces;
    char *pool;
    int64_t pool_bytes, pool_capacity;
    int32_t *index; /* id + 1 by hash of bytes; 0: empty */
    int64_t index_size; /* power of two */
    pvti_merge *merges;
    int64_t merges_size, n_merges;
    int32_t byte_id[256]; /* the token for a byte, −1: none */
    uint32_t *special_lengths; /* of special tokens, descending */
    int64_t n_special_lengths;
    bool special_first[256];   /* does one begin with this byte? */
    uint8_t classes[PVTI_CLASSES_END / 4];
};

PVT_API void pvt_tokenizer_free(pvt_tokenizer *t)
{
    if (!t || t->owners-- > 0) return;
    pvti_free(t->ctx, t->path);
    pvti_free(t->ctx, t->folder);
    pvti_free(t->ctx, t->template_);
    pvti_free(t->ctx, t->nfc);
    pvti_free(t->ctx, t->pieces);
    pvti_free(t->ctx, t->pool);
    pvti_free(t->ctx, t->index);
    pvti_free(t->ctx, t->merges);
    pvti_free(t->ctx, t->special_lengths);
    pvti_free(t->ctx, t);
}

#define PVTI_VOCAB_MOST ((int64_t)1 << 24)

/* `name` is used until loading ends; V pieces, all holes. */
static pvt_tokenizer *pvti_vocab_create(pvt_ctx *ctx, const char *name, int64_t V)
{
    pvt_tokenizer *t = PVTI_NEW(ctx, pvt_tokenizer, 1);
    int i;
    if (!t) return NULL;
    t->ctx = ctx, t->name = name, t->V = V;
    t->bos = t->eos = t->unknown = -1;
    for (i = 0; i < 256; i++) t->byte_id[i] = -1;
    pvti_classes_expand(t->classes);
    t->pieces = PVTI_NEW(ctx, pvti_piece, V);
    if (!t->pieces) {
        pvt_tokenizer_free(t);
        return NULL;
    }
    return t;
}

/* ---- spellings ---- */

/* Byte-level files write every byte as one printable character: bytes that Latin-1 prints stand
   for themselves, the 68 others are U+0100 … U+0143 in order. −1: no such character. */
static int pvti_byte_character_read(uint32_t c)
{
    if ((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255)) return (int)c;
    if (c < 256 || c > 256 + 67) return -1;
    c -= 256;
    return (int)(c < 33 ? c : c < 67 ? c + 94 : 173);
}
static uint32_t pvti_byte_character(int byte)
{
    uint32_t b = (uint32_t)byte;
    return b < 33 ? 256 + b : b >= 127 && b < 161 ? 256 + b - 94 : b == 173 ? 256 + 67 : b;
}

/* In place; the new length, −1 (and nothing changed) when it is no byte-level spelling. */
static int64_t pvti_byte_characters_undo(char *s, int64_t n)
{
    int64_t at, out = 0;
    uint32_t c;
    int length;
    for (at = 0; at < n; at += length) {
        length = pvti_utf8_read(s + at, n - at, &c);
        if (length == 0 || pvti_byte_character_read(c) < 0) return -1;
    }
    for (at = 0; at < n; at += length) {
        length = pvti_utf8_read(s + at, n - at, &c);
        s[out++] = (char)pvti_byte_character_read(c);
    }
    return out;
}

/* "▁" (U+2581) to spaces, in place; the new length. */
static int64_t pvti_spaces_undo(char *s, int64_t n)
{
    int64_t at = 0, out = 0;
    while (at < n) {
        if (n - at >= 3 && memcmp(s + at, "\xe2\x96\x81", 3) == 0)
            s[out++] = ' ', at += 3;
        else
            s[out++] = s[at++];
    }
    return out;
}

/* Runs of spaces to one, none in front; the new length. */
static int64_t pvti_spaces_collapse(char *s, int64_t n)
{
    int64_t at, out = 0;
    for (at = 0; at < n; at++)
        if (s[at] != ' ' || (out > 0 && s[out - 1] != ' ')) s[out++] = s[at];
    return out;
}

static bool pvti_utf8_valid(const char *s, int64_t n)
{
    int64_t at = 0;
    uint32_t c;
    int length;
    for (; at < n; at += length)
        if ((length = pvti_utf8_read(s + at, n - at, &c)) == 0) return false;
    return true;
}

/* "<0x0A>" → 10, −1: not of this form. */
static int pvti_byte_piece(const char *s, int64_t n)
{
    int high, low;
    const char *const digits = "0123456789ABCDEF", *found;
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>' || !s[3] || !s[4]) return -1;
    found = strchr(digits, s[3]);
    if (!found) return -1;
    high = (int)(found - digits);
    found = strchr(digits, s[4]);
    if (!found) return -1;
    low = (int)(found - digits);
    return high * 16 + low;
}

/* ---- pieces ---- */

static pvt_result pvti_vocab_reserve(pvt_tokenizer *t, int64_t n)
{
    int64_t need;
    if (!pvti_add(t->pool_bytes, n, &need) || need >= INT32_MAX)
        return pvti_fail(t->ctx, PVT_ERR_UNSUPPORTED, "%s: the vocabulary's text exceeds 2 GiB", t->name);
    if (!pvti_grow(t->ctx, (void **)&t->pool, &t->pool_capacity, PVTI_MAX(need, 4096), 1))
        return PVT_ERR_MEMORY;
    return PVT_OK;
}

/* Gives an id its piece, spelled as in the file; the n bytes stand in the pool behind
   pool_bytes already when s is NULL. */
static pvt_result pvti_vocab_set(pvt_tokenizer *t, int64_t id, const char *s, int64_t n, int type,
                                 float score)
{
    pvti_piece *piece;
    char *text;
    if (id < 0 || id >= t->V)
        return pvti_fail(t->ctx, PVT_ERR_FORMAT, "%s: token id %lld of a vocabulary of %lld", t->name,
                         (long long)id, (long long)t->V);
    piece = &t->pieces[id];
    if (piece->type != PVTI_PIECE_HOLE)
        return pvti_fail(t->ctx, PVT_ERR_FORMAT, "%s: two pieces have the id %lld", t->name, (long long)id);
    if (!(score >= -FLT_MAX && score <= FLT_MAX))
        return pvti_fail(t->ctx, PVT_ERR_FORMAT, "%s: the score of piece %lld is not a number", t->name,
                         (long long)id);
    if (s) {
        PVTI_TRY(pvti_vocab_reserve(t, n + 1));
        if (n) memcpy(t->pool + t->pool_bytes, s, (size_t)n);
    }
    text = t->pool + t->pool_bytes;
    if (type == PVTI_PIECE_BYTE) {
        int byte = pvti_byte_piece(text, n);
        if (byte < 0 || t->byte_id[byte] >= 0)
            return pvti_fail(t->ctx, PVT_ERR_FORMAT, "%s: byte piece %lld is \"%.*s\", %s", t->name,
                             (long long)id, (int)PVTI_MIN(n, 40), text,
                             byte < 0 ? "not <0x00> … <0xFF>" : "which exists already");
        t->byte_id[byte] = (int32_t)id;
        *text = (char)byte, n = 1;
    } else if (t->spaces) {
        if (type == PVTI_PIECE_NORMAL && !pvti_utf8_valid(text, n)) type = PVTI_PIECE_UNUSED;
        if (type == PVTI_PIECE_NORMAL || type == PVTI_PIECE_USER) n = pvti_spaces_undo(text, n);
    } else if (type == PVTI_PIECE_NORMAL) {
        int64_t undone = pvti_byte_characters_undo(text, n);
        if (undone < 0) type = PVTI_PIECE_UNUSED; /* nothing can merge into it */
        else n = undone;
    }
    piece->start = (uint32_t)t->pool_bytes, piece->bytes = (uint32_t)n;
    piece->type = (uint8_t)type, piece->score = score;
    t->pool_bytes += n;
    return PVT_OK;
}

/* ---- the index: bytes → id ---- */

#define PVTI_PROBES_MOST 4096 /* a good hash stays below 100: more is an attack, not a vocabulary */

static uint64_t pvti_bytes_hash(const char *s, int64_t n)
{
    uint64_t hash = (uint64_t)n, word;
    for (; n >= 8; n -= 8, s += 8) {
        memcpy(&word, s, 8);
        hash = pvti_mix(hash ^ word);
    }
    word = 0;
    if (n) memcpy(&word, s, (size_t)n);
    return pvti_mix(hash ^ word);
}

/* The slot of these bytes, or the empty one where they belong; −1: too many probes. */
static int64_t pvti_index_slot(const pvt_tokenizer *t, const char *s, int64_t n)
{
    int64_t slot = (int64_t)(pvti_bytes_hash(s, n) & (uint64_t)(t->index_size - 1)), probes;
    for (probes = 0; probes < PVTI_PROBES_MOST; probes++) {
        const pvti_piece *piece;
        if (!t->index[slot]) return slot;
        piece = &t->pieces[t->index[slot] - 1];
        if (piece->bytes == n && memcmp(t->pool + piece->start, s, (size_t)n) == 0) return slot;
        slot = (slot + 1) & (t->index_size - 1);
    }
    return -1;
}

static int32_t pvti_vocab_find(const pvt_tokenizer *t, const char *s, int64_t n)
{
    int64_t slot = pvti_index_slot(t, s, n);
    return slot >= 0 ? t->index[slot] - 1 : -1;
}

/* A piece that ordinary text may become; −1: none. */
static int32_t pvti_vocab_find_text(const pvt_tokenizer *t, const char *s, int64_t n)
{
    int32_t id = pvti_vocab_find(t, s, n);
    int type = id >= 0 ? (int)t->pieces[id].type : (int)PVTI_PIECE_HOLE;
    return type == PVTI_PIECE_NORMAL || type == PVTI_PIECE_USER ? id : -1;
}

/* Is it matched in the text as a whole, before merging? */
static bool pvti_piece_special(const pvti_piece *piece)
{
    return piece->bytes > 0 && (piece->type == PVTI_PIECE_CONTROL || piece->type == PVTI_PIECE_USER ||
                                piece->type == PVTI_PIECE_UNKNOWN);
}

static pvt_result pvti_vocab_index_special(pvt_tokenizer *t)
{
    int64_t i, n = 0, kept = 0;
    pvti_sort_item *items;
    for (i = 0; i < t->V; i++) n += pvti_piece_special(&t->pieces[i]);
    items = PVTI_NEW(t->ctx, pvti_sort_item, n + 1);
    t->special_lengths = PVTI_NEW(t->ctx, uint32_t, n + 1);
    if (!items || !t->special_lengths) {
        pvti_free(t->ctx, items);
        return PVT_ERR_MEMORY;
    }
    for (i = n = 0; i < t->V; i++) {
        if (!pvti_piece_special(&t->pieces[i])) continue;
        t->special_first[(uint8_t)t->pool[t->pieces[i].start]] = true;
        items[n].key = UINT32_MAX - t->pieces[i].bytes;
        items[n].index = i, n++;
    }
    pvti_sort(items, n, NULL, NULL);
    for (i = 0; i < n; i++) {
        uint32_t length = t->pieces[items[i].index].bytes;
        if (kept == 0 || t->special_lengths[kept - 1] != length) t->special_lengths[kept++] = length;
    }
    t->n_special_lengths = kept;
    pvti_free(t->ctx, items);
    return PVT_OK;
}

/* All pieces are set: makes the index. Of equal pieces the lowest id counts when
   `tolerant`; else they are an error. */
static pvt_result pvti_vocab_index(pvt_tokenizer *t, bool tolerant)
{
    int64_t id, slot;
    t->index_size = 256;
    while (t->index_size < 2 * t->V) t->index_size *= 2;
    t->index = PVTI_NEW(t->ctx, int32_t, t->index_size);
    if (!t->index) return PVT_ERR_MEMORY;
    for (id = 0; id < t->V; id++) {
        const pvti_piece *piece = &t->pieces[id];
        const char *s = t->pool + piece->start;
        if (piece->type == PVTI_PIECE_HOLE || piece->type == PVTI_PIECE_UNUSED ||
            piece->type == PVTI_PIECE_BYTE)
            continue;
        slot = pvti_index_slot(t, s, piece->bytes);
        if (slot < 0)
            return pvti_fail(t->ctx, PVT_ERR_FORMAT,
                             "%s: thousands of pieces share one hash value: made to stall", t->name);
        if (t->index[slot] && !tolerant)
            return pvti_fail(t->ctx, PVT_ERR_FORMAT, "%s: pieces %lld and %lld are both \"%.*s\"", t->name,
                             (long long)t->index[slot] - 1, (long long)id, (int)PVTI_MIN(piece->bytes, 60u),
                             s);
        if (t->index[slot]) continue;
        t->index[slot] = (int32_t)(id + 1);
        if (!t->spaces && piece->type == PVTI_PIECE_NORMAL && piece->bytes == 1)
            t->byte_id[(uint8_t)*s] = (int32_t)id;
    }
    return pvti_vocab_index_special(t);
}

/* ---- merges ---- */

static int64_t pvti_merge_slot(const pvt_tokenizer *t, uint32_t left, uint32_t right)
{
    uint64_t hash = pvti_mix((uint64_t)left << 32 | right);
    int64_t slot = (int64_t)(hash & (uint64_t)(t->merges_size - 1)), probes;
    for (probes = 0; probes < PVTI_PROBES_MOST; probes++) {
        const pvti_merge *m = &t->merges[slot];
        if (!m->id1 || (m->left == left && m->right == right)) return slot;
        slot = (slot + 1) & (t->merges_size - 1);
    }
    return -1;
}

/* NULL: these two do not merge. */
static const pvti_merge *pvti_merge_find(const pvt_tokenizer *t, int32_t left, int32_t right)
{
    int64_t slot;
    if (left < 0 || right < 0 || !t->n_merges) return NULL;
    slot = pvti_merge_slot(t, (uint32_t)left, (uint32_t)right);
    return slot >= 0 && t->merges[slot].id1 ? &t->merges[slot] : NULL;
}

static pvt_result pvti_merges_reserve(pvt_tokenizer *t, int64_t n)
{
    t->merges_size = 16;
    while (t->merges_size * 2 < n * 3) t->merges_size *= 2;
    t->merges = PVTI_NEW(t->ctx, pvti_merge, t->merges_size);
    return t->merges ? PVT_OK : PVT_ERR_MEMORY;
}

static pvt_result pvti_merge_add(pvt_tokenizer *t, int32_t left, int32_t right, int32_t id, int64_t rank)
{
    int64_t slot = pvti_merge_slot(t, (uint32_t)left, (uint32_t)right);
    pvti_merge *m;
    if (slot < 0 || t->merges[slot].id1)
        return pvti_fail(t->ctx, PVT_ERR_FORMAT, "%s: merge %lld, of pieces %d and %d, %s", t->name,
                         (long long)rank, left, right,
                         slot < 0 ? "shares its hash with thousands: made to stall" : "occurs twice");
    m = &t->merges[slot];
    m->left = (uint32_t)left, m->right = (uint32_t)right, m->rank = (uint32_t)rank, m->id1 = (uint32_t)id + 1;
    t->n_merges++;
    return PVT_OK;
}

/* Merge `rank` of a list, its two halves spelled as in the file; writes into both. */
static pvt_result pvti_merge_add_text(pvt_tokenizer *t, char *left, int64_t n_left, char *right,
                                      int64_t n_right, int64_t rank)
{
    int64_t n = n_left + n_right;
    int32_t a, b, ab;
    char *both;
    PVTI_TRY(pvti_vocab_reserve(t, n + 1));
    both = t->pool + t->pool_bytes; /* scratch: pool_bytes stays */
    if (n_left) memcpy(both, left, (size_t)n_left);
    if (n_right) memcpy(both + n_left, right, (size_t)n_right);
    n = t->spaces ? pvti_spaces_undo(both, n) : pvti_byte_characters_undo(both, n);
    n_left = t->spaces ? pvti_spaces_undo(left, n_left) : pvti_byte_characters_undo(left, n_left);
    n_right = t->spaces ? pvti_spaces_undo(right, n_right) : pvti_byte_characters_undo(right, n_right);
    a = n_left > 0 ? pvti_vocab_find_text(t, left, n_left) : -1;
    b = n_right > 0 ? pvti_vocab_find_text(t, right, n_right) : -1;
    ab = n > 0 ? pvti_vocab_find_text(t, both, n) : -1;
    if (a < 0 || b < 0 || ab < 0)
        return pvti_fail(t->ctx, PVT_ERR_FORMAT, "%s: merge %lld: its %s is not in the vocabulary", t->name,
                         (long long)rank, a < 0 ? "left half" : b < 0 ? "right half" : "result");
    return pvti_merge_add(t, a, b, ab, rank);
}

#define PVTI_SCORED_PIECE_MOST 256 /* bytes: every split of a piece is looked up */

/* rank[id]: how many different scores are better than that of piece id. */
static pvt_result pvti_scores_rank(pvt_tokenizer *t, uint32_t **out)
{
    pvti_sort_item *items = PVTI_NEW(t->ctx, pvti_sort_item, t->V);
    uint32_t *rank = PVTI_NEW(t->ctx, uint32_t, t->V), next = 0;
    int64_t i;
    *out = rank;
    if (items && rank) {
        for (i = 0; i < t->V; i++) {
            float score = t->pieces[i].score + 0.0f; /* −0 and 0 are one score */
            uint32_t bits;
            memcpy(&bits, &score, 4);
            /* floats descend as these integers ascend */
            items[i].key = bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
            items[i].index = i;
        }
        pvti_sort(items, t->V, NULL, NULL);
        for (i = 0; i < t->V; i++) {
            if (i > 0 && items[i].key != items[i - 1].key) next++;
            rank[items[i].index] = next;
        }
    }
    pvti_free(t->ctx, items);
    return items && rank ? PVT_OK : PVT_ERR_MEMORY;
}

/* Calls for every split of every piece into two pieces: counts them, or (rank given) adds them. */
static pvt_result pvti_merges_split(pvt_tokenizer *t, const uint32_t *rank, int64_t *count)
{
    int64_t id, at;
    for (id = *count = 0; id < t->V; id++) {
        const pvti_piece *piece = &t->pieces[id];
        const char *s = t->pool + piece->start;
        int64_t n = piece->bytes;
        if (piece->type != PVTI_PIECE_NORMAL || pvti_vocab_find(t, s, n) != id) continue;
        if (n > PVTI_SCORED_PIECE_MOST)
            return pvti_fail(t->ctx, PVT_ERR_UNSUPPORTED,
                             "%s: piece %lld has %lld bytes; at most %d are supported", t->name,
                             (long long)id, (long long)n, PVTI_SCORED_PIECE_MOST);
        for (at = 1; at < n; at++) {
            int32_t left, right;
            if (((uint8_t)s[at] & 0xc0) == 0x80) continue; /* inside a character */
            left = pvti_vocab_find_text(t, s, at);
            right = left < 0 ? -1 : pvti_vocab_find_text(t, s + at, n - at);
            if (right < 0 || t->pieces[left].type != PVTI_PIECE_NORMAL ||
                t->pieces[right].type != PVTI_PIECE_NORMAL)
                continue; /* user-defined pieces are matched as a whole, before */
            if (rank) PVTI_TRY(pvti_merge_add(t, left, right, (int32_t)id, rank[id]));
            ++*count;
        }
    }
    return PVT_OK;
}

/* The merges of a vocabulary with scores. */
static pvt_result pvti_merges_from_scores(pvt_tokenizer *t)
{
    uint32_t *rank = NULL;
    int64_t n = 0;
    pvt_result result = pvti_merges_split(t, NULL, &n);
    if (result == PVT_OK) result = pvti_merges_reserve(t, n);
    if (result == PVT_OK) result = pvti_scores_rank(t, &rank);
    if (result == PVT_OK) result = pvti_merges_split(t, rank, &n);
    pvti_free(t->ctx, rank);
    t->scored = true;
    return result;
}

/* SentencePiece merges across spaces only if some piece has a space behind another character.
   If none does (the usual case), words are independent: short, and worth remembering. */
static int pvti_vocab_words(const pvt_tokenizer *t)
{
    int64_t id;
    uint32_t i;
    for (id = 0; id < t->V; id++) {
        const pvti_piece *piece = &t->pieces[id];
        const char *s = t->pool + piece->start;
        if (piece->type != PVTI_PIECE_NORMAL && piece->type != PVTI_PIECE_USER) continue;
        for (i = 1; i < piece->bytes; i++)
            if (s[i] == ' ' && s[i - 1] != ' ') return PVTI_WORDS_WHOLE;
    }
    return PVTI_WORDS_SPACES;
}

PVT_API pvt_tokenizer_info pvt_tokenizer_get_info(const pvt_tokenizer *t)
{
    static const char *const kinds[] = {"bytes", "", "", "gpt-2", "llama-3", "qwen2", "smollm"};
    pvt_tokenizer_info info;
    info.kind = t->spaces ? "sentencepiece" : kinds[t->words];
    info.vocab = t->V;
    info.bos = t->bos, info.eos = t->eos, info.unknown = t->unknown;
    info.adds_bos = t->adds_bos && t->bos >= 0;
    return info;
}

PVT_API int32_t pvt_tokenizer_find(const pvt_tokenizer *t, const char *piece)
{
    int64_t n = (int64_t)strlen(piece);
    int32_t id = pvti_vocab_find(t, piece, n);
    return id < 0 && n == 1 ? t->byte_id[(uint8_t)*piece] : id;
}

// >>words
/*  The pre-tokenizers: regular expressions of four model families as scanners by hand. A
    scanner gets the text from a word's beginning to the end of the stretch (where a look-ahead
    must stop) and returns the word's length. L letter, N number, S space, O other. */

/* 's 't 'm 'd 're 've 'll; 0: none. any_case: also 'S and 'ſ (U+017F folds to s). */
static int64_t pvti_contraction(const char *s, int64_t n, bool any_case)
{
    int a, b;
    if (n < 2 || *s != '\'') return 0;
    if (any_case && n > 2 && memcmp(s + 1, "\xc5\xbf", 2) == 0) return 3;
    a = (uint8_t)s[1], b = n > 2 ? (uint8_t)s[2] : 0;
    if (any_case && a >= 'A' && a <= 'Z') a += 32;
    if (any_case && b >= 'A' && b <= 'Z') b += 32;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \s+(?!\S)|\s+ : white space up to, but without, the last space before a word. */
static int64_t pvti_word_spaces(const uint8_t *classes, const char *s, int64_t n)
{
    int64_t at = 0, last = 0;
    int length;
    while (at < n && pvti_class_read(classes, s + at, n - at, &length) == PVTI_SPACE) {
        last = at;
        at += length;
    }
    return at == n || last == 0 ? at : last;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?L+| ?N+| ?O+|\s+(?!\S)|\s+ */
static int64_t pvti_word_gpt2(const uint8_t *classes, const char *s, int64_t n)
{
    int64_t skip = pvti_contraction(s, n, false);
    int length, class_;
    if (skip) return skip;
    skip = *s == ' ' && n > 1;
    class_ = pvti_class_read(classes, s + skip, n - skip, &length);
    if (class_ == PVTI_SPACE) return pvti_word_spaces(classes, s, n);
    return skip + pvti_class_run(classes, s + skip, n - skip, class_, n);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\nLN]?L+|N{1,digits}| ?O+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static int64_t pvti_word_llama3(const uint8_t *classes, const char *s, int64_t n, int digits)
{
    int64_t at = pvti_contraction(s, n, true), end, newline = 0;
    int length, class_, next;
    if (at) return at;
    class_ = pvti_class_read(classes, s, n, &length);
    if (class_ == PVTI_LETTER) return pvti_class_run(classes, s, n, PVTI_LETTER, n);
    if (class_ == PVTI_NUMBER) return pvti_class_run(classes, s, n, PVTI_NUMBER, digits);
    if (length < n && *s != '\r' && *s != '\n') {
        next = 0;
        if (pvti_class_read(classes, s + length, n - length, &next) == PVTI_LETTER)
            return length + pvti_class_run(classes, s + length, n - length, PVTI_LETTER, n);
    }
    at = *s == ' ' && n > 1;
    if (pvti_class_read(classes, s + at, n - at, &length) == PVTI_OTHER) {
        at += pvti_class_run(classes, s + at, n - at, PVTI_OTHER, n);
        while (at < n && (s[at] == '\r' || s[at] == '\n')) at++;
        return at;
    }
    end = pvti_class_run(classes, s, n, PVTI_SPACE, n);
    for (at = 0; at < end; at++)
        if (s[at] == '\r' || s[at] == '\n') newline = at + 1;
    return newline ? newline : pvti_word_spaces(classes, s, n);
}

/* Length of the first word of s[0 … n−1], n > 0. *cut is the scanner's memory: the end of the
   stretch without numbers that SmolLM2 splits first. */
static int64_t pvti_word(const pvt_tokenizer *t, const char *s, int64_t n, const char **cut)
{
    int64_t at = 0;
    int length;
    switch (t->words) {
    case PVTI_WORDS_SPACES:
        while (at < n && s[at] == ' ') at++;
        while (at < n && s[at] != ' ') at++;
        return at;
    case PVTI_WORDS_EACH_SPACE:
        for (at = 1; at < n && s[at] != ' ';) at++;
        return at;
    case PVTI_WORDS_GPT2: return pvti_word_gpt2(t->classes, s, n);
    case PVTI_WORDS_LLAMA3: return pvti_word_llama3(t->classes, s, n, 3);
    case PVTI_WORDS_QWEN2: return pvti_word_llama3(t->classes, s, n, 1);
    case PVTI_WORDS_SMOLLM:
        if (pvti_class_read(t->classes, s, n, &length) == PVTI_NUMBER) return length;
        if (*cut <= s) {
            for (at = 0; at < n; at += length)
                if (pvti_class_read(t->classes, s + at, n - at, &length) == PVTI_NUMBER) break;
            *cut = s + at;
        }
        return pvti_word_gpt2(t->classes, s, *cut - s);
    default: return n;
    }
}

// >>encode
/*  Text → ids: special tokens are found first; each stretch between them is normalised, cut into
    words, and every word merged. Words repeat: a small table remembers where a word last
    stood in the text and which ids it became, so that most words cost one hash and one
    comparison.

    A word's symbols are an array of ids. Merged, a symbol spans several places: its id stands in the
    first, −1 − span in the second and in the last (which may be the same), so that both neighbours
    are found and nothing else is stored. The rank of every pair stands where the pair begins; above
    the ranks stand the minima of each 16, above these of each 16 again. So the leftmost pair of the
    lowest rank is found in O(log n), and a word of n places takes 8.3·n bytes, be it a megabyte long:
    a heap of candidates took 50 and missed the cache at every step. */

#define PVTI_RANK_NONE UINT32_MAX /* these two do not merge */
#define PVTI_RANK_LEVELS 8        /* 16^8 > INT32_MAX */

typedef struct pvti_ranks {
    uint32_t *level[PVTI_RANK_LEVELS]; /* [0][i]: of the pair at i; [k+1][i]: the least of [k][16·i … +15] */
    int levels;
} pvti_ranks;

typedef struct pvti_seen {
    int64_t at, first; /* in the text; in the ids */
    int32_t bytes, n;
} pvti_seen;
#define PVTI_SEEN 8192

typedef struct pvti_encoder {
    const pvt_tokenizer *t;
    pvt_ctx *ctx;
    int32_t *ids;
    int64_t n, ids_capacity;
    char *text; /* normalised; words refer to it by offset */
    int64_t bytes, text_capacity;
    int32_t *symbols; /* −1: unknown; below: inside a symbol */
    int64_t symbols_capacity;
    uint32_t *rank_memory;
    int64_t ranks_capacity;
    pvti_ranks ranks;
    pvti_seen *seen;
    uint32_t *chars; /* for >>nfc */
    int64_t chars_capacity;
    pvti_sort_item *items;
    int64_t items_capacity;
} pvti_encoder;

static pvt_result pvti_encode_reserve(pvti_encoder *e, int64_t n)
{
    bool room = pvti_grow(e->ctx, (void **)&e->ids, &e->ids_capacity, e->n + n, (int64_t)sizeof *e->ids);
    return room ? PVT_OK : PVT_ERR_MEMORY;
}

/* ---- ranks of pairs ---- */

/* The levels for a word of n symbols, all without a pair. */
static pvt_result pvti_ranks_begin(pvti_encoder *e, int64_t n)
{
    pvti_ranks *r = &e->ranks;
    int64_t sizes[PVTI_RANK_LEVELS], total = 0;
    r->levels = 0;
    do {
        n = (n + 15) / 16 * 16;
        sizes[r->levels++] = n, total += n;
        n /= 16;
    } while (n > 1);
    if (!pvti_grow(e->ctx, (void **)&e->rank_memory, &e->ranks_capacity, total, (int64_t)sizeof(uint32_t)))
        return PVT_ERR_MEMORY;
    memset(e->rank_memory, 0xff, (size_t)total * sizeof(uint32_t));
    r->level[0] = e->rank_memory;
    for (int k = 1; k < r->levels; k++) r->level[k] = r->level[k - 1] + sizes[k - 1];
    return PVT_OK;
}

static uint32_t pvti_ranks_least(const uint32_t *ranks)
{
    uint32_t least = ranks[0];
    int i;
    for (i = 1; i < 16; i++) least = PVTI_MIN(least, ranks[i]);
    return least;
}

/* Where the pair that merges next begins; −1: nothing merges. */
static int64_t pvti_ranks_next(const pvti_ranks *r)
{
    uint32_t least = pvti_ranks_least(r->level[r->levels - 1]);
    int64_t at = 0;
    int k;
    if (least == PVTI_RANK_NONE) return -1;
    for (k = r->levels - 1; k >= 0; k--)
        for (at *= 16; r->level[k][at] != least;) at++;
    return at;
}

static void pvti_ranks_set(pvti_ranks *r, int64_t at, uint32_t rank)
{
    uint32_t old = r->level[0][at], *least;
    int k;
    r->level[0][at] = rank;
    for (k = 1; k < r->levels && rank != old; k++, at /= 16) {
        least = &r->level[k][at / 16];
        if (rank >= *least && old != *least) return; /* neither was nor becomes the least */
        old = *least;
        if (rank > *least) rank = pvti_ranks_least(r->level[k - 1] + at / 16 * 16);
        *least = rank;
    }
}

/* ---- merging ---- */

static int64_t pvti_symbol_next(const int32_t *symbols, int64_t at, int64_t n)
{
    return at + 1 < n && symbols[at + 1] < -1 ? at - 1 - symbols[at + 1] : at + 1;
}

static int64_t pvti_symbol_previous(const int32_t *symbols, int64_t at)
{
    return at > 0 && symbols[at - 1] < -1 ? at + 1 + symbols[at - 1] : at - 1;
}

static uint32_t pvti_symbol_rank(const pvti_encoder *e, int64_t at, int64_t n)
{
    int64_t next = pvti_symbol_next(e->symbols, at, n);
    const pvti_merge *m = next < n ? pvti_merge_find(e->t, e->symbols[at], e->symbols[next]) : NULL;
    return m ? m->rank : PVTI_RANK_NONE;
}

/* Merges symbols 0 … n−1 until nothing merges; *left: how many symbols there are then. */
static pvt_result pvti_encode_merge(pvti_encoder *e, int64_t n, int64_t *left)
{
    int32_t *s = e->symbols;
    int64_t at;
    *left = n;
    PVTI_TRY(pvti_ranks_begin(e, n));
    for (at = 0; at + 1 < n; at++) e->ranks.level[0][at] = pvti_symbol_rank(e, at, n);
    for (int k = 1; k < e->ranks.levels; k++)
        for (at = 0; e->ranks.level[k - 1] + 16 * at < e->ranks.level[k]; at++)
            e->ranks.level[k][at] = pvti_ranks_least(e->ranks.level[k - 1] + 16 * at);
    while ((at = pvti_ranks_next(&e->ranks)) >= 0) {
        int64_t second = pvti_symbol_next(s, at, n), end = pvti_symbol_next(s, second, n);
        int64_t before = pvti_symbol_previous(s, at);
        s[at] = (int32_t)(pvti_merge_find(e->t, s[at], s[second])->id1 - 1);
        s[at + 1] = s[end - 1] = (int32_t)(at - end - 1);
        --*left;
        pvti_ranks_set(&e->ranks, second, PVTI_RANK_NONE);
        pvti_ranks_set(&e->ranks, at, pvti_symbol_rank(e, at, n));
        if (before >= 0) pvti_ranks_set(&e->ranks, before, pvti_symbol_rank(e, before, n));
    }
    return PVT_OK;
}

/* Characters (SentencePiece) or bytes (byte-level) as symbols; their number. */
static int64_t pvti_encode_symbols(pvti_encoder *e, const char *word, int64_t bytes)
{
    const pvt_tokenizer *t = e->t;
    int64_t at = 0, n = 0, i;
    while (at < bytes) {
        uint32_t c;
        int length = t->spaces ? pvti_utf8_read(word + at, bytes - at, &c) : 0;
        int32_t id = length ? pvti_vocab_find_text(t, word + at, length) : -1;
        bool known = true;
        if (length == 0) length = 1;
        if (id >= 0) {
            e->symbols[n++] = id;
        } else {
            for (i = 0; i < length; i++) known = known && t->byte_id[(uint8_t)word[at + i]] >= 0;
            if (!known) e->symbols[n++] = -1;
            for (i = 0; known && i < length; i++) e->symbols[n++] = t->byte_id[(uint8_t)word[at + i]];
        }
        at += length;
    }
    return n;
}

static pvt_result pvti_encode_fresh(pvti_encoder *e, const char *word, int64_t bytes)
{
    const pvt_tokenizer *t = e->t;
    int32_t whole = t->ignore_merges ? pvti_vocab_find_text(t, word, bytes) : -1;
    bool fuse = false;
    int64_t n, left, i;
    if (whole >= 0) {
        PVTI_TRY(pvti_encode_reserve(e, 1));
        e->ids[e->n++] = whole;
        return PVT_OK;
    }
    if (bytes >= INT32_MAX)
        return pvti_fail(e->ctx, PVT_ERR_UNSUPPORTED, "a stretch of text of 2 GiB without a place to cut it");
    if (!pvti_grow(e->ctx, (void **)&e->symbols, &e->symbols_capacity, PVTI_MAX(bytes, 256),
                   (int64_t)sizeof *e->symbols))
        return PVT_ERR_MEMORY;
    n = left = pvti_encode_symbols(e, word, bytes);
    if (t->n_merges) PVTI_TRY(pvti_encode_merge(e, n, &left));
    PVTI_TRY(pvti_encode_reserve(e, left));
    for (i = 0; i < n; i = pvti_symbol_next(e->symbols, i, n)) {
        int32_t id = e->symbols[i];
        if (id < 0 && t->unknown < 0)
            return pvti_fail(e->ctx, PVT_ERR_MISMATCH,
                             "the text has a character that the tokenizer knows neither whole "
                             "nor as bytes, and it has no piece for the unknown");
        if (id >= 0 || !fuse) e->ids[e->n++] = id >= 0 ? id : t->unknown;
        fuse = id < 0 && t->fuse_unknown;
    }
    return PVT_OK;
}

/* The word at e->text + at. */
static pvt_result pvti_encode_word(pvti_encoder *e, int64_t at, int64_t bytes)
{
    const char *word = e->text + at;
    pvti_seen *seen = &e->seen[pvti_bytes_hash(word, bytes) % PVTI_SEEN];
    int64_t first = e->n;
    if (seen->bytes == bytes && memcmp(e->text + seen->at, word, (size_t)bytes) == 0) {
        PVTI_TRY(pvti_encode_reserve(e, seen->n));
        memcpy(e->ids + e->n, e->ids + seen->first, (size_t)seen->n * sizeof *e->ids);
        e->n += seen->n;
        return PVT_OK;
    }
    PVTI_TRY(pvti_encode_fresh(e, word, bytes));
    if (bytes < INT32_MAX) {
        seen->at = at, seen->bytes = (int32_t)bytes;
        seen->first = first, seen->n = (int32_t)(e->n - first);
    }
    return PVT_OK;
}

/* Room in e->text for n bytes more than `at`. */
static pvt_result pvti_encode_room(pvti_encoder *e, int64_t at, int64_t n)
{
    return pvti_grow(e->ctx, (void **)&e->text, &e->text_capacity, at + n, 1) ? PVT_OK : PVT_ERR_MEMORY;
}

/* s[0 … n−1] decomposed into e->chars; their number. */
static pvt_result pvti_encode_decompose(pvti_encoder *e, const char *s, int64_t n, int64_t *count)
{
    const pvti_nfc *nfc = e->t->nfc;
    int64_t i;
    for (*count = i = 0; i < n;) {
        uint32_t c;
        int length = pvti_utf8_read(s + i, n - i, &c);
        if (!pvti_grow(e->ctx, (void **)&e->chars, &e->chars_capacity, *count + 4, (int64_t)sizeof *e->chars))
            return PVT_ERR_MEMORY;
        if (length) *count += pvti_nfc_decompose(nfc, c, e->chars + *count);
        else e->chars[(*count)++] = PVTI_NFC_RAW | (uint8_t)s[i];
        i += length ? length : 1;
    }
    return PVT_OK;
}

/* s[0 … n−1] composed, to e->text + at; adds the bytes to *out. */
static pvt_result pvti_encode_compose_part(pvti_encoder *e, int64_t at, const char *s, int64_t n,
                                           int64_t *out)
{
    int64_t i, count;
    PVTI_TRY(pvti_encode_decompose(e, s, n, &count));
    if (!pvti_grow(e->ctx, (void **)&e->items, &e->items_capacity, count, (int64_t)sizeof *e->items))
        return PVT_ERR_MEMORY;
    pvti_nfc_sort(e->t->nfc, e->chars, count, e->items);
    count = pvti_nfc_compose_all(e->t->nfc, e->chars, count);
    for (i = 0; i < count; i++) {
        char bytes[4];
        int length = 1;
        if (e->chars[i] & PVTI_NFC_RAW) bytes[0] = (char)(e->chars[i] & 255);
        else length = pvti_utf8_write(e->chars[i], bytes);
        PVTI_TRY(pvti_encode_room(e, at, length));
        memcpy(e->text + at, bytes, (size_t)length);
        at += length, *out += length;
    }
    return PVT_OK;
}

/* The end of a part that begins at s: about 1,024 bytes, up to a place where text may be cut. A byte that
   is not UTF-8 is such a place. *composed: all is below U+0300, whose first byte is 0xcc. */
static int64_t pvti_encode_part(const pvti_encoder *e, const char *s, int64_t n, bool *composed)
{
    int64_t end = PVTI_MIN(n, 1024), i;
    int back, length;
    for (*composed = true, i = 0; i < end; i++) *composed = *composed && (uint8_t)s[i] < 0xcc;
    for (back = 0; back < 3 && end < n && ((uint8_t)s[end] & 0xc0) == 0x80; back++) end++; /* to its end */
    for (; end < n; end += length) {
        uint32_t c;
        length = pvti_utf8_read(s + end, n - end, &c);
        if (length == 0 || pvti_nfc_starts(e->t->nfc, c)) break;
        *composed = *composed && c < 0x300;
    }
    return end;
}

/* Part by part, so that the arrays for characters stay small whatever the text. */
static pvt_result pvti_encode_compose(pvti_encoder *e, int64_t at, const char *s, int64_t n, int64_t *out)
{
    int64_t begin, bytes;
    *out = 0;
    for (begin = 0; begin < n; begin += bytes) {
        bool composed;
        bytes = pvti_encode_part(e, s + begin, n - begin, &composed);
        if (!composed) {
            PVTI_TRY(pvti_encode_compose_part(e, at + *out, s + begin, bytes, out));
            continue;
        }
        PVTI_TRY(pvti_encode_room(e, at + *out, bytes));
        memcpy(e->text + at + *out, s + begin, (size_t)bytes);
        *out += bytes;
    }
    return PVT_OK;
}

/* A stretch without special tokens; prefix: a space belongs in front. */
static pvt_result pvti_encode_stretch(pvti_encoder *e, const char *s, int64_t n, bool prefix)
{
    const pvt_tokenizer *t = e->t;
    const char *cut, *end;
    int64_t from = e->bytes + 1, at; /* room for the prefix */
    if (n == 0) return PVT_OK;
    if (!pvti_grow(e->ctx, (void **)&e->text, &e->text_capacity, from + n, 1)) return PVT_ERR_MEMORY;
    if (t->nfc) PVTI_TRY(pvti_encode_compose(e, from, s, n, &n));
    else memcpy(e->text + from, s, (size_t)n);
    if (t->collapse) n = pvti_spaces_collapse(e->text + from, n);
    if (t->spaces) n = pvti_spaces_undo(e->text + from, n);
    while (t->collapse && n > 0 && e->text[from + n - 1] == ' ') n--;
    if (n == 0) return PVT_OK;
    if (prefix && !(t->prefix_unless_space && e->text[from] == ' ')) e->text[--from] = ' ', n++;
    e->bytes = from + n;
    end = e->text + e->bytes, cut = e->text + from;
    for (at = from; at < e->bytes;) { /* the text does not move while words are merged */
        int64_t bytes = pvti_word(t, e->text + at, end - (e->text + at), &cut);
        PVTI_TRY(pvti_encode_word(e, at, bytes));
        at += bytes;
    }
    return PVT_OK;
}

/* The special token at s (the longest), −1: none. */
static int32_t pvti_special_at(const pvt_tokenizer *t, const char *s, int64_t n, bool plain)
{
    int64_t i;
    if (!t->special_first[(uint8_t)*s]) return -1;
    for (i = 0; i < t->n_special_lengths; i++) {
        int64_t length = t->special_lengths[i];
        int32_t id = length <= n ? pvti_vocab_find(t, s, length) : -1;
        if (id < 0 || !pvti_piece_special(&t->pieces[id])) continue;
        if (!plain || t->pieces[id].type == PVTI_PIECE_USER) return id;
    }
    return -1;
}

/* Bytes of the white space character that ends right before s + at; 0: none. */
static int pvti_space_before(const pvt_tokenizer *t, const char *s, int64_t at)
{
    int back, length;
    for (back = 1; back <= 3 && back <= at; back++)
        if (pvti_class_read(t->classes, s + at - back, back, &length) == PVTI_SPACE && length == back)
            return back;
    return 0;
}

static pvt_result pvti_encode_text(pvti_encoder *e, const char *s, int64_t n, int flags)
{
    const pvt_tokenizer *t = e->t;
    int64_t begin = 0, at = 0;
    bool prefix = t->prefix != PVTI_PREFIX_NONE;
    while (begin < n) {
        int64_t end;
        int32_t id = -1;
        for (at = begin; at < n && id < 0;) {
            id = pvti_special_at(t, s + at, n - at, (flags & PVT_ENCODE_PLAIN) != 0);
            at += id < 0;
        }
        end = at;
        if (id >= 0 && t->pieces[id].strip_left)
            while (end > begin && pvti_space_before(t, s, end)) end -= pvti_space_before(t, s, end);
        PVTI_TRY(pvti_encode_stretch(e, s + begin, PVTI_MAX(end - begin, 0), prefix));
        if (id < 0) break;
        PVTI_TRY(pvti_encode_reserve(e, 1));
        e->ids[e->n++] = id;
        begin = at + t->pieces[id].bytes;
        if (t->pieces[id].strip_right)
            begin += pvti_class_run(t->classes, s + begin, n - begin, PVTI_SPACE, n);
        prefix = t->prefix == PVTI_PREFIX_ALL ||
                 (t->prefix == PVTI_PREFIX_CONTROL && t->pieces[id].type != PVTI_PIECE_USER);
    }
    return PVT_OK;
}

static pvt_result pvti_encode_all(pvti_encoder *e, const char *s, int64_t n, int flags)
{
    const pvt_tokenizer *t = e->t;
    bool bos = (flags & PVT_ENCODE_BOS_ALWAYS) || ((flags & PVT_ENCODE_BOS) && t->adds_bos);
    int64_t guess = 0;
    e->seen = PVTI_NEW(e->ctx, pvti_seen, PVTI_SEEN);
    if (!e->seen || !pvti_add(n, n / 8 + 64, &guess) ||
        !pvti_grow(e->ctx, (void **)&e->text, &e->text_capacity, guess, 1)) return PVT_ERR_MEMORY;
    PVTI_TRY(pvti_encode_reserve(e, n / 4 + 16));
    if (bos && t->bos >= 0) e->ids[e->n++] = t->bos;
    PVTI_TRY(pvti_encode_text(e, s, n, flags));
    if ((flags & PVT_ENCODE_EOS) && t->eos >= 0) {
        PVTI_TRY(pvti_encode_reserve(e, 1));
        e->ids[e->n++] = t->eos;
    }
    return PVT_OK;
}

PVT_API pvt_result pvt_tokenizer_encode(const pvt_tokenizer *t, const char *text, int64_t bytes, int flags,
                                        int32_t **ids, int64_t *n)
{
    pvti_encoder e;
    pvt_result result;
    *ids = NULL, *n = 0;
    if (bytes < -1 || (!text && bytes != 0))
        return pvti_fail(t->ctx, PVT_ERR_ARGUMENT, "encode: a text of %lld bytes at %s", (long long)bytes,
                         text ? "an address" : "NULL");
    memset(&e, 0, sizeof e);
    e.t = t, e.ctx = t->ctx;
    result = pvti_encode_all(&e, text ? text : "", bytes < 0 ? (int64_t)strlen(text) : bytes, flags);
    pvti_free(e.ctx, e.text);
    pvti_free(e.ctx, e.symbols);
    pvti_free(e.ctx, e.rank_memory);
    pvti_free(e.ctx, e.seen);
    pvti_free(e.ctx, e.chars);
    pvti_free(e.ctx, e.items);
    if (result != PVT_OK) {
        pvti_free(e.ctx, e.ids);
        return result;
    }
    *ids = e.ids, *n = e.n;
    return PVT_OK;
}

PVT_API void pvt_ids_free(pvt_ctx *ctx, int32_t *ids) { pvti_free(ctx, ids); }
PVT_API void pvt_text_free(pvt_ctx *ctx, char *text) { pvti_free(ctx, text); }

PVT_API const char *pvt_tokenizer_piece(const pvt_tokenizer *t, int32_t previous, int32_t id, int64_t *bytes)
{
    const pvti_piece *piece;
    const char *s;
    *bytes = 0;
    if (id < 0 || id >= t->V) return "";
    piece = &t->pieces[id];
    s = t->pool + piece->start;
    *bytes = piece->bytes;
    if (t->spaces && t->prefix != PVTI_PREFIX_NONE && (previous < 0 || previous == t->bos) &&
        piece->bytes > 0 && *s == ' ' && piece->type != PVTI_PIECE_BYTE)
        s++, --*bytes;
    return s;
}

PVT_API pvt_result pvt_tokenizer_decode(const pvt_tokenizer *t, const int32_t *ids, int64_t n, int flags,
                                        char **text, int64_t *bytes)
{
    int64_t i, total = 0, piece_bytes;
    int pass;
    *text = NULL;
    if (bytes) *bytes = 0;
    if (n < 0 || (!ids && n > 0))
        return pvti_fail(t->ctx, PVT_ERR_ARGUMENT, "decode: %lld ids", (long long)n);
    for (i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= t->V)
            return pvti_fail(t->ctx, PVT_ERR_ARGUMENT,
                             "decode: id %d at position %lld; the vocabulary has %lld", ids[i], (long long)i,
                             (long long)t->V);
    for (pass = 0; pass < 2; pass++) { /* measures, then copies */
        for (i = total = 0; i < n; i++) {
            const char *piece = pvt_tokenizer_piece(t, i ? ids[i - 1] : -1, ids[i], &piece_bytes);
            int type = t->pieces[ids[i]].type;
            if ((flags & PVT_DECODE_SKIP_CONTROL) &&
                (type == PVTI_PIECE_CONTROL || type == PVTI_PIECE_UNKNOWN))
                continue;
            if (pass && piece_bytes) memcpy(*text + total, piece, (size_t)piece_bytes);
            total += piece_bytes;
        }
        if (!pass) *text = PVTI_NEW(t->ctx, char, total + 1);
        if (!*text) return PVT_ERR_MEMORY;
    }
    if (bytes) *bytes = total;
    return PVT_OK;
}

// >>tokenizer files
/*  Five sources, one vocabulary: tokenizer.json, SentencePiece's protobuf, llama2.c's
    tokenizer.bin, GGUF's metadata, and none (bytes). Each reader works from memory; the loader
    recognises the kind by content. What a file asks for and this library lacks is refused by
    name: a tokenizer that is nearly right is worse than none. */

/* ---- tokenizer.json ---- */

typedef struct pvti_tokenizer_json {
    pvt_ctx *ctx;
    const char *name;
    pvti_json j;
    pvt_tokenizer *t;
    bool to_spaces, byte_level, prefix_seen;
    int words, prefix;
    bool prefix_unless_space, nfc;
} pvti_tokenizer_json;

static pvt_result pvti_tj_unsupported(const pvti_tokenizer_json *p, const char *part, int64_t node)
{
    char text[300];
    int64_t n = pvti_json_string(&p->j, pvti_json_find(&p->j, node, "type"), text, (int64_t)sizeof text);
    text[sizeof text - 1] = 0;
    return pvti_fail(p->ctx, PVT_ERR_UNSUPPORTED, "%s: the %s \"%s\" with these options is not implemented",
                     p->name, part, n >= 0 ? text : "of unknown type");
}

/* {"String": "…"} equal to `text`? */
static bool pvti_tj_pattern(const pvti_tokenizer_json *p, int64_t node, const char *text)
{
    return pvti_json_equals(&p->j, pvti_json_find(&p->j, pvti_json_find(&p->j, node, "pattern"), "String"),
                            text);
}

#define PVTI_SPACE_MARK "\xe2\x96\x81" /* ▁ */

static pvt_result pvti_tj_normalizer(pvti_tokenizer_json *p, int64_t node, int depth)
{
    const pvti_json *j = &p->j;
    int64_t type = pvti_json_find(j, node, "type"), child;
    if (pvti_json_type(j, node) <= PVTI_JSON_NULL) return PVT_OK;
    if (pvti_json_equals(j, type, "Sequence") && depth < 4) {
        for (child = pvti_json_first(j, pvti_json_find(j, node, "normalizers")); child >= 0;
             child = pvti_json_next(j, child))
            PVTI_TRY(pvti_tj_normalizer(p, child, depth + 1));
        return PVT_OK;
    }
    if (pvti_json_equals(j, type, "Prepend") &&
        pvti_json_equals(j, pvti_json_find(j, node, "prepend"), PVTI_SPACE_MARK)) {
        p->prefix = PVTI_PREFIX_ALL;
        return PVT_OK;
    }
    if (pvti_json_equals(j, type, "Replace") && pvti_tj_pattern(p, node, " ") &&
        pvti_json_equals(j, pvti_json_find(j, node, "content"), PVTI_SPACE_MARK)) {
        p->to_spaces = true;
        return PVT_OK;
    }
    if (pvti_json_equals(j, type, "NFC")) {
        p->nfc = true;
        return PVT_OK;
    }
    return pvti_tj_unsupported(p, "normalizer", node);
}

static const char *const pvti_regex_gpt2 =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
static const char *const pvti_regex_llama3 =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
static const char *const pvti_regex_qwen2 =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

static bool pvti_tj_flag(const pvti_tokenizer_json *p, int64_t node, const char *key, bool otherwise)
{
    bool value = otherwise;
    pvti_json_bool(&p->j, pvti_json_find(&p->j, node, key), &value);
    return value;
}

static pvt_result pvti_tj_metaspace(pvti_tokenizer_json *p, int64_t node)
{
    const pvti_json *j = &p->j;
    int64_t scheme = pvti_json_find(j, node, "prepend_scheme");
    if (!pvti_json_equals(j, pvti_json_find(j, node, "replacement"), PVTI_SPACE_MARK) || p->to_spaces)
        return pvti_tj_unsupported(p, "pre-tokenizer", node);
    p->to_spaces = p->prefix_unless_space = true;
    p->prefix = PVTI_PREFIX_ALL;
    if (pvti_json_equals(j, scheme, "first")) p->prefix = PVTI_PREFIX_START;
    if (pvti_json_equals(j, scheme, "never") || !pvti_tj_flag(p, node, "add_prefix_space", true))
        p->prefix = PVTI_PREFIX_NONE;
    if (pvti_tj_flag(p, node, "split", true)) p->words = PVTI_WORDS_EACH_SPACE;
    return PVT_OK;
}

static pvt_result pvti_tj_split(pvti_tokenizer_json *p, int64_t node)
{
    const pvti_json *j = &p->j;
    int64_t regex = pvti_json_find(j, pvti_json_find(j, node, "pattern"), "Regex");
    char text[400];
    if (p->words || !pvti_json_equals(j, pvti_json_find(j, node, "behavior"), "Isolated") ||
        pvti_tj_flag(p, node, "invert", false)) return pvti_tj_unsupported(p, "pre-tokenizer", node);
    p->words = pvti_json_equals(j, regex, pvti_regex_llama3) ? PVTI_WORDS_LLAMA3
             : pvti_json_equals(j, regex, pvti_regex_qwen2) ? PVTI_WORDS_QWEN2
             : pvti_json_equals(j, regex, pvti_regex_gpt2) ? PVTI_WORDS_GPT2 : PVTI_WORDS_WHOLE;
    if (p->words != PVTI_WORDS_WHOLE) return PVT_OK;
    if (pvti_json_string(j, regex, text, (int64_t)sizeof text) < 0) snprintf(text, sizeof text, "(no Regex)");
    text[sizeof text - 1] = 0;
    return pvti_fail(p->ctx, PVT_ERR_UNSUPPORTED,
                     "%s: the pre-tokenizer's pattern is none of GPT-2, Llama-3 and Qwen2: %s", p->name, text);
}

/* In a sequence: Digits, Split, ByteLevel in an order that some family uses. */
static pvt_result pvti_tj_pre_tokenizer(pvti_tokenizer_json *p, int64_t node, int depth)
{
    const pvti_json *j = &p->j;
    int64_t type = pvti_json_find(j, node, "type"), child;
    if (pvti_json_type(j, node) <= PVTI_JSON_NULL) return PVT_OK;
    if (pvti_json_equals(j, type, "Sequence") && depth < 4) {
        for (child = pvti_json_first(j, pvti_json_find(j, node, "pretokenizers")); child >= 0;
             child = pvti_json_next(j, child))
            PVTI_TRY(pvti_tj_pre_tokenizer(p, child, depth + 1));
        return PVT_OK;
    }
    if (pvti_json_equals(j, type, "Metaspace")) return pvti_tj_metaspace(p, node);
    if (pvti_json_equals(j, type, "Split")) return pvti_tj_split(p, node);
    if (pvti_json_equals(j, type, "Digits") && pvti_tj_flag(p, node, "individual_digits", false) &&
        !p->words && !p->byte_level) {
        p->words = PVTI_WORDS_SMOLLM; /* if ByteLevel with its pattern follows */
        return PVT_OK;
    }
    if (pvti_json_equals(j, type, "ByteLevel") && !p->byte_level) {
        bool regex = pvti_tj_flag(p, node, "use_regex", true);
        p->byte_level = true;
        if (pvti_tj_flag(p, node, "add_prefix_space", false))
            p->prefix = PVTI_PREFIX_ALL, p->prefix_unless_space = true;
        if (regex && !p->words) p->words = PVTI_WORDS_GPT2;
        else if (regex != (p->words == PVTI_WORDS_SMOLLM))
            return pvti_tj_unsupported(p, "pre-tokenizer", node);
        return PVT_OK;
    }
    return pvti_tj_unsupported(p, "pre-tokenizer", node);
}

/* How many ids there are: the largest plus one, over vocabulary and added tokens. */
static pvt_result pvti_tj_count(const pvti_tokenizer_json *p, int64_t vocab, int64_t added, int64_t *V)
{
    const pvti_json *j = &p->j;
    int64_t entries = pvti_json_count(j, vocab) + pvti_json_count(j, added), node, id = 0;
    *V = 0;
    for (node = pvti_json_first(j, vocab); node >= 0; node = pvti_json_next(j, node)) {
        if (!pvti_json_int(j, node, &id) || id < 0 || id >= PVTI_VOCAB_MOST)
            return pvti_fail(p->ctx, PVT_ERR_FORMAT, "%s: model.vocab has an id that is no number below 2^24",
                             p->name);
        *V = PVTI_MAX(*V, id + 1);
    }
    for (node = pvti_json_first(j, added); node >= 0; node = pvti_json_next(j, node)) {
        if (!pvti_json_int(j, pvti_json_find(j, node, "id"), &id) || id < 0 || id >= PVTI_VOCAB_MOST)
            return pvti_fail(p->ctx, PVT_ERR_FORMAT,
                             "%s: added_tokens has an id that is no number below 2^24", p->name);
        *V = PVTI_MAX(*V, id + 1);
    }
    if (*V < 1 || *V > 2 * entries + 65536) /* holes are legal; memory follows the file's size */
        return pvti_fail(p->ctx, PVT_ERR_FORMAT, "%s: %lld pieces, but ids up to %lld", p->name,
                         (long long)entries, (long long)*V - 1);
    return PVT_OK;
}

/* A string into the pool behind pool_bytes. */
static pvt_result pvti_tj_text(pvti_tokenizer_json *p, int64_t node, bool key, int64_t *n)
{
    pvt_tokenizer *t = p->t;
    const pvti_json *j = &p->j;
    *n = key ? pvti_json_key(j, node, NULL, 0) : pvti_json_string(j, node, NULL, 0);
    if (*n < 0) return pvti_fail(p->ctx, PVT_ERR_FORMAT, "%s: a token's content is not a string", p->name);
    PVTI_TRY(pvti_vocab_reserve(t, *n + 1));
    if (key) pvti_json_key(j, node, t->pool + t->pool_bytes, *n + 1);
    else pvti_json_string(j, node, t->pool + t->pool_bytes, *n + 1);
    return PVT_OK;
}

static pvt_result pvti_tj_vocab(pvti_tokenizer_json *p, int64_t vocab, bool byte_fallback)
{
    const pvti_json *j = &p->j;
    pvt_tokenizer *t = p->t;
    int64_t node, id = 0, n;
    for (node = pvti_json_first(j, vocab); node >= 0; node = pvti_json_next(j, node)) {
        int type = PVTI_PIECE_NORMAL;
        pvti_json_int(j, node, &id);
        PVTI_TRY(pvti_tj_text(p, node, true, &n));
        if (byte_fallback && pvti_byte_piece(t->pool + t->pool_bytes, n) >= 0) type = PVTI_PIECE_BYTE;
        PVTI_TRY(pvti_vocab_set(t, id, NULL, n, type, 0));
    }
    return PVT_OK;
}

static pvt_result pvti_tj_added(pvti_tokenizer_json *p, int64_t added)
{
    const pvti_json *j = &p->j;
    pvt_tokenizer *t = p->t;
    int64_t node, id = 0, n;
    for (node = pvti_json_first(j, added); node >= 0; node = pvti_json_next(j, node)) {
        int type = pvti_tj_flag(p, node, "special", false) ? PVTI_PIECE_CONTROL : PVTI_PIECE_USER;
        pvti_json_int(j, pvti_json_find(j, node, "id"), &id);
        if (pvti_tj_flag(p, node, "single_word", false))
            return pvti_fail(p->ctx, PVT_ERR_UNSUPPORTED, "%s: added token %lld asks for single_word",
                             p->name, (long long)id);
        PVTI_TRY(pvti_tj_text(p, pvti_json_find(j, node, "content"), false, &n));
        t->pieces[id].type = PVTI_PIECE_HOLE; /* usually in the vocabulary too: this entry counts */
        PVTI_TRY(pvti_vocab_set(t, id, NULL, n, type, 0));
        t->pieces[id].strip_left = pvti_tj_flag(p, node, "lstrip", false);
        t->pieces[id].strip_right = pvti_tj_flag(p, node, "rstrip", false);
    }
    return PVT_OK;
}

/* "a b" or ["a", "b"]: older and newer files. */
static pvt_result pvti_tj_merges(pvti_tokenizer_json *p, int64_t merges)
{
    const pvti_json *j = &p->j;
    pvt_tokenizer *t = p->t;
    int64_t node, rank = 0, capacity = 0;
    char *text = NULL;
    pvt_result result = pvti_merges_reserve(t, pvti_json_count(j, merges));
    for (node = pvti_json_first(j, merges); node >= 0 && result == PVT_OK;
         node = pvti_json_next(j, node), rank++) {
        bool pair = pvti_json_type(j, node) == PVTI_JSON_ARRAY && pvti_json_count(j, node) == 2;
        int64_t first = pair ? pvti_json_first(j, node) : node, second = pair ? pvti_json_next(j, first) : -1;
        int64_t a = pvti_json_string(j, first, NULL, 0), b = pair ? pvti_json_string(j, second, NULL, 0) : 0;
        char *right;
        if (a < 0 || b < 0) {
            result = pvti_fail(p->ctx, PVT_ERR_FORMAT, "%s: merge %lld is no pair of strings", p->name,
                               (long long)rank);
            break;
        }
        if (!pvti_grow(p->ctx, (void **)&text, &capacity, PVTI_MAX(a + b + 2, 256), 1)) {
            result = PVT_ERR_MEMORY;
            break;
        }
        pvti_json_string(j, first, text, a + 1);
        right = text + a + 1;
        if (pair) {
            pvti_json_string(j, second, right, b + 1);
        } else if ((right = (char *)memchr(text, ' ', (size_t)a)) != NULL) {
            b = a - (++right - text);
            a -= b + 1;
        }
        result = right ? pvti_merge_add_text(t, text, a, right, b, rank)
                       : pvti_fail(p->ctx, PVT_ERR_FORMAT, "%s: merge %lld has no space", p->name,
                                   (long long)rank);
    }
    pvti_free(p->ctx, text);
    return result;
}

/* A TemplateProcessing that begins with a special token makes that token bos. */
static pvt_result pvti_tj_post_processor(pvti_tokenizer_json *p, int64_t node, int depth)
{
    const pvti_json *j = &p->j;
    int64_t child = pvti_json_find(j, node, "processors"), id = -1;
    if (pvti_json_equals(j, pvti_json_find(j, node, "type"), "Sequence") && depth < 4) {
        for (child = pvti_json_first(j, child); child >= 0; child = pvti_json_next(j, child))
            PVTI_TRY(pvti_tj_post_processor(p, child, depth + 1));
        return PVT_OK;
    }
    if (!pvti_json_equals(j, pvti_json_find(j, node, "type"), "TemplateProcessing")) return PVT_OK;
    child = pvti_json_find(j, pvti_json_first(j, pvti_json_find(j, node, "single")), "SpecialToken");
    if (child >= 0) {
        char name[256];
        int64_t n = pvti_json_string(j, pvti_json_find(j, child, "id"), name, (int64_t)sizeof name);
        int64_t tokens = pvti_json_find(j, node, "special_tokens");
        if (n > 0 && n < (int64_t)sizeof name)
            pvti_json_int(j, pvti_json_first(j, pvti_json_find(j, pvti_json_find(j, tokens, name), "ids")),
                          &id);
        if (id < 0 || id >= p->t->V)
            return pvti_fail(p->ctx, PVT_ERR_FORMAT,
                             "%s: the post-processor's first token has no id in the vocabulary", p->name);
        p->t->bos = (int32_t)id, p->t->adds_bos = true;
    }
    return PVT_OK;
}

static int32_t pvti_vocab_find_control(const pvt_tokenizer *t, const char *s)
{
    int32_t id = pvti_vocab_find(t, s, (int64_t)strlen(s));
    return id >= 0 && t->pieces[id].type == PVTI_PIECE_CONTROL ? id : -1;
}

/* tokenizer.json does not say which token ends a text: the names in use, the usual first. */
static void pvti_vocab_guess(pvt_tokenizer *t)
{
    static const char *const begin[] = {"<s>", "<|begin_of_text|>"};
    static const char *const end[] = {"</s>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>"};
    int64_t i;
    for (i = 0; i < PVTI_COUNT(begin) && t->bos < 0; i++) t->bos = pvti_vocab_find_control(t, begin[i]);
    for (i = 0; i < PVTI_COUNT(end) && t->eos < 0; i++) t->eos = pvti_vocab_find_control(t, end[i]);
}

static pvt_result pvti_tj_model(pvti_tokenizer_json *p)
{
    const pvti_json *j = &p->j;
    int64_t model = pvti_json_find(j, 0, "model"), vocab = pvti_json_find(j, model, "vocab"), V, unknown;
    int64_t added = pvti_json_find(j, 0, "added_tokens");
    int64_t merges = pvti_json_find(j, model, "merges"), type = pvti_json_find(j, model, "type");
    char text[256];
    if (pvti_json_type(j, vocab) != PVTI_JSON_OBJECT || (type >= 0 && !pvti_json_equals(j, type, "BPE")) ||
        pvti_json_type(j, merges) != PVTI_JSON_ARRAY)
        return pvti_fail(p->ctx, PVT_ERR_UNSUPPORTED, "%s: the model is not BPE with a vocab and merges",
                         p->name);
    if (pvti_json_type(j, pvti_json_find(j, model, "dropout")) == PVTI_JSON_NUMBER ||
        pvti_json_string(j, pvti_json_find(j, model, "continuing_subword_prefix"), NULL, 0) > 0 ||
        pvti_json_string(j, pvti_json_find(j, model, "end_of_word_suffix"), NULL, 0) > 0)
        return pvti_fail(p->ctx, PVT_ERR_UNSUPPORTED, "%s: BPE with dropout, prefixes or suffixes", p->name);
    PVTI_TRY(pvti_tj_normalizer(p, pvti_json_find(j, 0, "normalizer"), 0));
    PVTI_TRY(pvti_tj_pre_tokenizer(p, pvti_json_find(j, 0, "pre_tokenizer"), 0));
    if (p->byte_level == p->to_spaces || (p->words == PVTI_WORDS_SMOLLM && !p->byte_level))
        return pvti_fail(p->ctx, PVT_ERR_UNSUPPORTED, "%s: neither byte-level nor SentencePiece BPE",
                         p->name);
    PVTI_TRY(pvti_tj_count(p, vocab, added, &V));
    p->t = pvti_vocab_create(p->ctx, p->name, V);
    if (!p->t) return PVT_ERR_MEMORY;
    p->t->spaces = p->to_spaces, p->t->words = p->words;
    p->t->prefix = p->prefix, p->t->prefix_unless_space = p->prefix_unless_space;
    if (p->nfc) {
        p->t->nfc = PVTI_NEW(p->ctx, pvti_nfc, 1);
        if (!p->t->nfc) return PVT_ERR_MEMORY;
        pvti_nfc_expand(p->t->nfc);
    }
    p->t->fuse_unknown = pvti_tj_flag(p, model, "fuse_unk", false);
    p->t->ignore_merges = pvti_tj_flag(p, model, "ignore_merges", false);
    PVTI_TRY(pvti_tj_vocab(p, vocab, p->to_spaces && pvti_tj_flag(p, model, "byte_fallback", false)));
    PVTI_TRY(pvti_tj_added(p, added));
    PVTI_TRY(pvti_vocab_index(p->t, false));
    PVTI_TRY(pvti_tj_merges(p, merges));
    if (p->to_spaces && p->words == PVTI_WORDS_WHOLE) p->t->words = pvti_vocab_words(p->t);
    unknown = pvti_json_string(j, pvti_json_find(j, model, "unk_token"), text, (int64_t)sizeof text);
    if (unknown > 0 && unknown < (int64_t)sizeof text) p->t->unknown = pvti_vocab_find(p->t, text, unknown);
    PVTI_TRY(pvti_tj_post_processor(p, pvti_json_find(j, 0, "post_processor"), 0));
    pvti_vocab_guess(p->t);
    return PVT_OK;
}

static pvt_result pvti_tokenizer_read_json(pvt_ctx *ctx, const char *name, const char *text, int64_t bytes,
                                           pvt_tokenizer **out)
{
    pvti_tokenizer_json p;
    pvt_result result;
    memset(&p, 0, sizeof p);
    p.ctx = ctx, p.name = name;
    PVTI_TRY(pvti_json_parse(ctx, name, text, bytes, &p.j));
    result = pvti_tj_model(&p);
    pvti_json_free(&p.j);
    *out = p.t;
    return result;
}

/* A special token in tokenizer_config.json: "</s>" or {"content": "</s>", …}. */
static void pvti_config_token(const pvt_tokenizer *t, const pvti_json *j, const char *key, int32_t *id)
{
    int64_t node = pvti_json_find(j, 0, key), n;
    char text[256];
    if (pvti_json_type(j, node) == PVTI_JSON_OBJECT) node = pvti_json_find(j, node, "content");
    n = pvti_json_string(j, node, text, (int64_t)sizeof text);
    if (n > 0 && n < (int64_t)sizeof text && pvti_vocab_find(t, text, n) >= 0)
        *id = pvti_vocab_find(t, text, n);
}

/* What tokenizer_config.json adds to a vocabulary: which tokens begin and end a text. */
static pvt_result pvti_tokenizer_config(pvt_tokenizer *t, const char *name, const char *text, int64_t bytes)
{
    pvti_json j;
    PVTI_TRY(pvti_json_parse(t->ctx, name, text, bytes, &j));
    pvti_config_token(t, &j, "bos_token", &t->bos);
    pvti_config_token(t, &j, "eos_token", &t->eos);
    pvti_json_bool(&j, pvti_json_find(&j, 0, "add_bos_token"), &t->adds_bos);
    pvti_json_free(&j);
    return PVT_OK;
}

/* ---- SentencePiece: { 1: piece { 1: text, 2: score, 3: type }, 2: trainer, 3: normalizer } ---- */

typedef struct pvti_proto {
    const uint8_t *at, *end;
    uint32_t field, wire;
    uint64_t value;      /* wire types 0, 1 and 5 */
    const uint8_t *data; /* wire type 2 */
    int64_t bytes;
} pvti_proto;

static bool pvti_proto_varint(pvti_proto *p, uint64_t *value)
{
    int shift;
    *value = 0;
    for (shift = 0; shift < 64 && p->at < p->end; shift += 7) {
        uint8_t byte = *p->at++;
        *value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) return true;
    }
    return false;
}

/* The next field; false at the end (at == end) and on malformed input (at < end or NULL). */
static bool pvti_proto_next(pvti_proto *p)
{
    uint64_t tag;
    if (p->at == p->end || !p->at) return false;
    if (pvti_proto_varint(p, &tag) && tag >> 3 >= 1 && tag >> 3 < 1u << 29) {
        int64_t fixed = (tag & 7) == 1 ? 8 : (tag & 7) == 5 ? 4 : 0;
        p->field = (uint32_t)(tag >> 3), p->wire = (uint32_t)(tag & 7);
        if (p->wire == 0 && pvti_proto_varint(p, &p->value)) return true;
        if (p->wire == 2 && pvti_proto_varint(p, &p->value) && p->value <= (uint64_t)(p->end - p->at)) {
            p->data = p->at, p->bytes = (int64_t)p->value;
            p->at += p->bytes;
            return true;
        }
        if (fixed && p->end - p->at >= fixed) {
            p->value = 0;
            memcpy(&p->value, p->at, (size_t)fixed);
            p->at += fixed;
            return true;
        }
    }
    p->at = NULL;
    return false;
}

static pvti_proto pvti_proto_begin(const uint8_t *data, int64_t bytes)
{
    pvti_proto p;
    memset(&p, 0, sizeof p);
    p.at = data, p.end = data + bytes;
    return p;
}

static pvt_result pvti_sp_piece(pvt_tokenizer *t, int64_t id, pvti_proto message)
{
    const uint8_t *text = NULL;
    int64_t bytes = 0;
    int type = PVTI_PIECE_NORMAL;
    float score = 0;
    while (pvti_proto_next(&message)) {
        if (message.field == 1 && message.wire == 2) text = message.data, bytes = message.bytes;
        if (message.field == 2 && message.wire == 5) memcpy(&score, &message.value, 4);
        if (message.field == 3 && message.wire == 0) type = message.value <= 6 ? (int)message.value : 0;
    }
    if (!message.at || !text || bytes == 0 || type == 0)
        return pvti_fail(t->ctx, PVT_ERR_FORMAT, "%s: piece %lld is malformed", t->name, (long long)id);
    return pvti_vocab_set(t, id, (const char *)text, bytes, type, score);
}

static pvt_result pvti_sp_trainer(pvt_tokenizer *t, pvti_proto message)
{
    int64_t ids[3] = {0, 1, 2}, i;
    uint64_t model = 1;
    while (pvti_proto_next(&message)) {
        if (message.wire != 0) continue;
        if (message.field == 3) model = message.value;
        if (message.field == 24 && message.value)
            return pvti_fail(t->ctx, PVT_ERR_UNSUPPORTED, "%s: white space as a suffix", t->name);
        if (message.field >= 40 && message.field <= 42) ids[message.field - 40] = (int64_t)message.value;
    }
    if (!message.at) return pvti_fail(t->ctx, PVT_ERR_FORMAT, "%s: the trainer's part is malformed", t->name);
    if (model != 2)
        return pvti_fail(t->ctx, PVT_ERR_UNSUPPORTED,
                         "%s: a SentencePiece model of type %llu (%s); only BPE is implemented", t->name,
                         (unsigned long long)model, model == 1 ? "unigram" : model == 3 ? "word" : "char");
    for (i = 0; i < 3; i++)
        if (ids[i] < 0 || ids[i] >= t->V ||
            t->pieces[ids[i]].type != (i ? PVTI_PIECE_CONTROL : PVTI_PIECE_UNKNOWN))
            ids[i] = -1;
    t->unknown = (int32_t)ids[0], t->bos = (int32_t)ids[1], t->eos = (int32_t)ids[2];
    return PVT_OK;
}

static pvt_result pvti_sp_normalizer(pvt_tokenizer *t, pvti_proto message)
{
    bool prefix = true, collapse = true, escape = true, map = false;
    while (pvti_proto_next(&message)) {
        if (message.field == 2 && message.wire == 2) map = message.bytes > 0;
        if (message.field == 3 && message.wire == 0) prefix = message.value != 0;
        if (message.field == 4 && message.wire == 0) collapse = message.value != 0;
        if (message.field == 5 && message.wire == 0) escape = message.value != 0;
    }
    if (!message.at)
        return pvti_fail(t->ctx, PVT_ERR_FORMAT, "%s: the normalizer's part is malformed", t->name);
    if (map || !escape)
        return pvti_fail(t->ctx, PVT_ERR_UNSUPPORTED, "%s: a normalizer other than \"identity\"", t->name);
    t->prefix = prefix ? PVTI_PREFIX_CONTROL : PVTI_PREFIX_NONE;
    t->collapse = collapse;
    return PVT_OK;
}

static pvt_result pvti_sp_fill(pvt_tokenizer *t, const uint8_t *data, int64_t bytes)
{
    pvti_proto model = pvti_proto_begin(data, bytes), trainer = model, normalizer = model;
    int64_t id = 0;
    trainer.end = trainer.at, normalizer.end = normalizer.at;
    t->spaces = t->fuse_unknown = true;
    while (pvti_proto_next(&model)) {
        pvti_proto message;
        if (model.wire != 2) continue;
        message = pvti_proto_begin(model.data, model.bytes);
        if (model.field == 1) PVTI_TRY(pvti_sp_piece(t, id++, message));
        if (model.field == 2) trainer = message;
        if (model.field == 3) normalizer = message;
    }
    PVTI_TRY(pvti_sp_trainer(t, trainer));
    PVTI_TRY(pvti_sp_normalizer(t, normalizer));
    t->adds_bos = t->bos >= 0;
    PVTI_TRY(pvti_vocab_index(t, false));
    t->words = pvti_vocab_words(t);
    return pvti_merges_from_scores(t);
}

static pvt_result pvti_tokenizer_read_sp(pvt_ctx *ctx, const char *name, const uint8_t *data, int64_t bytes,
                                         pvt_tokenizer **out)
{
    pvti_proto model = pvti_proto_begin(data, bytes);
    int64_t V = 0;
    while (pvti_proto_next(&model)) V += model.field == 1 && model.wire == 2;
    if (!model.at || V == 0 || V > PVTI_VOCAB_MOST)
        return pvti_fail(ctx, PVT_ERR_FORMAT,
                         "%s: neither a tokenizer.json nor SentencePiece, llama2.c or GGUF%s", name,
                         V ? " (or a SentencePiece model that is cut off)" : "");
    *out = pvti_vocab_create(ctx, name, V);
    return *out ? pvti_sp_fill(*out, data, bytes) : PVT_ERR_MEMORY;
}

/* ---- llama2.c: u32 longest piece, then { f32 score, i32 length, text } to the end of the file ---- */

/* The number of pieces; 0: the file is no such thing. */
static int64_t pvti_bin_count(const uint8_t *data, int64_t bytes)
{
    int64_t at = 4, V = 0;
    uint32_t longest, length;
    if (bytes < 4) return 0;
    memcpy(&longest, data, 4);
    for (; at < bytes; V++) {
        if (bytes - at < 8) return 0;
        memcpy(&length, data + at + 4, 4);
        if (length > longest || (int64_t)length > bytes - at - 8) return 0;
        at += 8 + (int64_t)length;
    }
    return V;
}

static pvt_result pvti_bin_fill(pvt_tokenizer *t, const uint8_t *data)
{
    int64_t at = 4, id;
    t->spaces = t->fuse_unknown = t->adds_bos = true;
    t->prefix = PVTI_PREFIX_CONTROL;
    for (id = 0; id < t->V; id++) {
        const char *s = (const char *)data + at + 8;
        uint32_t n;
        float score;
        int type = id == 0 ? PVTI_PIECE_UNKNOWN : id <= 2 ? PVTI_PIECE_CONTROL : PVTI_PIECE_NORMAL;
        memcpy(&score, data + at, 4);
        memcpy(&n, data + at + 4, 4);
        at += 8 + (int64_t)n;
        if (type == PVTI_PIECE_CONTROL && n > 2 && s[0] == '\n' && s[n - 1] == '\n')
            s++, n -= 2; /* "\n<s>\n" */
        if (type == PVTI_PIECE_NORMAL && pvti_byte_piece(s, n) >= 0) type = PVTI_PIECE_BYTE;
        if (n == 0) type = PVTI_PIECE_UNUSED;
        PVTI_TRY(pvti_vocab_set(t, id, s, n, type, score));
    }
    t->unknown = 0, t->bos = 1, t->eos = 2;
    PVTI_TRY(pvti_vocab_index(t, true));
    t->words = pvti_vocab_words(t);
    return pvti_merges_from_scores(t);
}

/* ---- GGUF: tokenizer.ggml.* ---- */

/* The family that tokenizer.ggml.pre names; false: none that is known here. */
static bool pvti_gguf_words(const pvti_gguf *g, int *words)
{
    static const struct { const char *name; int words; } names[] = {
        {"gpt-2", PVTI_WORDS_GPT2},        {"gpt2", PVTI_WORDS_GPT2},
        {"phi-2", PVTI_WORDS_GPT2},        {"olmo", PVTI_WORDS_GPT2},
        {"mpt", PVTI_WORDS_GPT2},          {"roberta-bpe", PVTI_WORDS_GPT2},
        {"llama-bpe", PVTI_WORDS_LLAMA3},  {"llama3", PVTI_WORDS_LLAMA3},
        {"llama-v3", PVTI_WORDS_LLAMA3},   {"qwen2", PVTI_WORDS_QWEN2},
        {"deepseek-r1-qwen", PVTI_WORDS_QWEN2}, {"smollm", PVTI_WORDS_SMOLLM}};
    int64_t i;
    for (i = 0; i < PVTI_COUNT(names); i++)
        if (pvti_gguf_equals(g, "tokenizer.ggml.pre", names[i].name)) {
            *words = names[i].words;
            return true;
        }
    return false;
}

static pvt_result pvti_gguf_pieces(pvt_tokenizer *t, const pvti_gguf *g)
{
    pvti_gguf_array tokens, scores, types;
    bool has_scores, has_types;
    int64_t id;
    memset(&tokens, 0, sizeof tokens);
    scores = types = tokens;
    pvti_gguf_get_array(g, "tokenizer.ggml.tokens", &tokens);
    has_scores = pvti_gguf_get_array(g, "tokenizer.ggml.scores", &scores);
    has_types = pvti_gguf_get_array(g, "tokenizer.ggml.token_type", &types);
    if ((has_scores && scores.n != t->V) || (has_types && types.n != t->V) || (t->spaces && !has_scores))
        return pvti_fail(t->ctx, PVT_ERR_FORMAT,
                         "%s: tokenizer.ggml.scores or .token_type has not the %lld entries of .tokens",
                         t->name, (long long)t->V);
    for (id = 0; id < t->V; id++) {
        const char *s;
        int64_t bytes, type = PVTI_PIECE_NORMAL;
        double score = 0;
        if (!pvti_gguf_array_string(&tokens, &s, &bytes) ||
            (has_scores && !pvti_gguf_array_number(&scores, id, &score)) ||
            (has_types && !pvti_gguf_array_int(&types, id, &type)) || type < 0 || type > PVTI_PIECE_BYTE)
            return pvti_fail(t->ctx, PVT_ERR_FORMAT, "%s: token %lld: its text, score or type is malformed",
                             t->name, (long long)id);
        if (type == PVTI_PIECE_HOLE) type = PVTI_PIECE_UNUSED;
        if (type == PVTI_PIECE_BYTE && !t->spaces) type = PVTI_PIECE_NORMAL;
        PVTI_TRY(pvti_vocab_set(t, id, s, bytes, (int)type, (float)score));
    }
    return pvti_vocab_index(t, true);
}

static pvt_result pvti_gguf_merges(pvt_tokenizer *t, const pvti_gguf *g)
{
    pvti_gguf_array merges;
    int64_t rank, bytes, capacity = 0;
    const char *s;
    char *text = NULL;
    pvt_result result;
    if (!pvti_gguf_get_array(g, "tokenizer.ggml.merges", &merges) || merges.type != PVTI_GGUF_STRING)
        return pvti_fail(t->ctx, PVT_ERR_FORMAT, "%s: tokenizer.ggml.merges is missing", t->name);
    result = pvti_merges_reserve(t, merges.n);
    for (rank = 0; rank < merges.n && result == PVT_OK; rank++) {
        char *space;
        if (!pvti_gguf_array_string(&merges, &s, &bytes) || bytes < 3 ||
            !memchr(s + 1, ' ', (size_t)bytes - 1)) {
            result = pvti_fail(t->ctx, PVT_ERR_FORMAT, "%s: merge %lld is not \"left right\"", t->name,
                               (long long)rank);
        } else if (!pvti_grow(t->ctx, (void **)&text, &capacity, PVTI_MAX(bytes, 256), 1)) {
            result = PVT_ERR_MEMORY;
        } else {
            memcpy(text, s, (size_t)bytes);
            space = (char *)memchr(text + 1, ' ', (size_t)bytes - 1);
            result = pvti_merge_add_text(t, text, space - text, space + 1, bytes - (space + 1 - text), rank);
        }
    }
    pvti_free(t->ctx, text);
    return result;
}

static void pvti_gguf_token(const pvt_tokenizer *t, const pvti_gguf *g, const char *key, int32_t *id)
{
    int64_t value = -1;
    if (pvti_gguf_int(g, key, &value)) *id = value >= 0 && value < t->V ? (int32_t)value : -1;
}

static pvt_result pvti_gguf_fill(pvt_tokenizer *t, const pvti_gguf *g)
{
    const char *s;
    int64_t bytes;
    bool prefix = t->spaces;
    PVTI_TRY(pvti_gguf_pieces(t, g));
    t->adds_bos = t->spaces || t->words == PVTI_WORDS_LLAMA3;
    t->ignore_merges = t->words == PVTI_WORDS_LLAMA3;
    t->fuse_unknown = t->spaces;
    if (t->spaces) t->unknown = 0, t->bos = t->V > 1 ? 1 : -1, t->eos = t->V > 2 ? 2 : -1;
    pvti_gguf_token(t, g, "tokenizer.ggml.unknown_token_id", &t->unknown);
    pvti_gguf_token(t, g, "tokenizer.ggml.bos_token_id", &t->bos);
    pvti_gguf_token(t, g, "tokenizer.ggml.eos_token_id", &t->eos);
    pvti_gguf_bool(g, "tokenizer.ggml.add_bos_token", &t->adds_bos);
    pvti_gguf_bool(g, "tokenizer.ggml.add_space_prefix", &prefix);
    t->prefix = prefix ? PVTI_PREFIX_ALL : PVTI_PREFIX_NONE;
    if (!t->spaces) t->prefix_unless_space = true;
    if (pvti_gguf_string(g, "tokenizer.chat_template", &s, &bytes)) {
        t->template_ = PVTI_NEW(t->ctx, char, bytes + 1);
        if (!t->template_) return PVT_ERR_MEMORY;
        memcpy(t->template_, s, (size_t)bytes);
    }
    if (!t->spaces) return pvti_gguf_merges(t, g);
    t->words = pvti_vocab_words(t);
    return pvti_merges_from_scores(t);
}

static pvt_result pvti_tokenizer_finish(pvt_result result, pvt_tokenizer **out)
{
    if (result != PVT_OK) {
        pvt_tokenizer_free(*out);
        *out = NULL;
    } else {
        (*out)->name = NULL;
    }
    return result;
}

/* The tokenizer that a GGUF carries. `name` is what errors call the file. */
static PVTI_UNUSED pvt_result pvti_tokenizer_from_gguf(pvt_ctx *ctx, const char *name, const pvti_gguf *g,
                                                       pvt_tokenizer **out)
{
    pvti_gguf_array tokens;
    bool spaces = pvti_gguf_equals(g, "tokenizer.ggml.model", "llama");
    int words = PVTI_WORDS_WHOLE;
    const char *s = "(none)";
    int64_t bytes = 6;
    *out = NULL;
    if (!spaces && !pvti_gguf_equals(g, "tokenizer.ggml.model", "gpt2")) {
        pvti_gguf_string(g, "tokenizer.ggml.model", &s, &bytes);
        return pvti_fail(ctx, PVT_ERR_UNSUPPORTED,
                         "%s: tokenizer.ggml.model \"%.*s\"; \"llama\" and \"gpt2\" are implemented", name,
                         (int)PVTI_MIN(bytes, 60), s);
    }
    if (!spaces && !pvti_gguf_words(g, &words)) {
        pvti_gguf_string(g, "tokenizer.ggml.pre", &s, &bytes);
        return pvti_fail(ctx, PVT_ERR_UNSUPPORTED,
                         "%s: tokenizer.ggml.pre \"%.*s\": this splitting of words is not implemented", name,
                         (int)PVTI_MIN(bytes, 60), s);
    }
    if (!pvti_gguf_get_array(g, "tokenizer.ggml.tokens", &tokens) || tokens.type != PVTI_GGUF_STRING ||
        tokens.n < 1 || tokens.n > PVTI_VOCAB_MOST)
        return pvti_fail(ctx, PVT_ERR_FORMAT, "%s: tokenizer.ggml.tokens is missing, empty or too large",
                         name);
    *out = pvti_vocab_create(ctx, name, tokens.n);
    if (!*out) return PVT_ERR_MEMORY;
    (*out)->spaces = spaces, (*out)->words = words;
    return pvti_tokenizer_finish(pvti_gguf_fill(*out, g), out);
}

/* ---- one entry for all ---- */

PVT_API pvt_result pvt_tokenizer_create_bytes(pvt_ctx *ctx, pvt_tokenizer **out)
{
    pvt_result result = PVT_OK;
    int i;
    *out = pvti_vocab_create(ctx, "bytes", 256);
    if (!*out) return PVT_ERR_MEMORY;
    for (i = 0; i < 256 && result == PVT_OK; i++) {
        char character[4];
        int n = pvti_utf8_write(pvti_byte_character(i), character);
        result = pvti_vocab_set(*out, i, character, n, PVTI_PIECE_NORMAL, 0);
    }
    if (result == PVT_OK) result = pvti_vocab_index(*out, false);
    return pvti_tokenizer_finish(result, out);
}

/* A tokenizer.json, with or without white space in front; SentencePiece begins with "\n" too. */
static bool pvti_tokenizer_is_json(const uint8_t *data, int64_t bytes)
{
    int64_t at = 0;
    while (at < bytes && (data[at] == ' ' || data[at] == '\n' || data[at] == '\r' || data[at] == '\t')) at++;
    return at < bytes && data[at] == '{';
}

/* From memory, the kind recognised from the content. */
static pvt_result pvti_tokenizer_read(pvt_ctx *ctx, const char *name, const uint8_t *data, int64_t bytes,
                                      pvt_tokenizer **out)
{
    int64_t V;
    *out = NULL;
    if (bytes >= 4 && memcmp(data, "GGUF", 4) == 0) {
        pvti_gguf g;
        pvt_result result = pvti_gguf_read(ctx, name, data, bytes, &g);
        if (result == PVT_OK) result = pvti_tokenizer_from_gguf(ctx, name, &g, out);
        pvti_gguf_close(&g);
        return result;
    }
    if (pvti_tokenizer_is_json(data, bytes))
        return pvti_tokenizer_finish(pvti_tokenizer_read_json(ctx, name, (const char *)data, bytes, out),
                                     out);
    V = pvti_bin_count(data, bytes);
    if (V < 3 || V > PVTI_VOCAB_MOST)
        return pvti_tokenizer_finish(pvti_tokenizer_read_sp(ctx, name, data, bytes, out), out);
    *out = pvti_vocab_create(ctx, name, V);
    if (!*out) return PVT_ERR_MEMORY;
    return pvti_tokenizer_finish(pvti_bin_fill(*out, data), out);
}

/* Another owner of the same tokenizer; every owner frees it. NULL gives NULL. */
static PVTI_UNUSED pvt_tokenizer *pvti_tokenizer_share(pvt_tokenizer *t)
{
    if (t) t->owners++;
    return t;
}

/* Remembers where a tokenizer came from and heeds the tokenizer_config.json there. */
static pvt_result pvti_tokenizer_settle(pvt_tokenizer *t, const char *path, bool json)
{
    const char *slash = strrchr(path, '/');
    char config[PVTI_PATH_BYTES];
    pvti_map map;
    pvt_result result;
    t->path = PVTI_NEW(t->ctx, char, (int64_t)strlen(path) + 1);
    t->folder = PVTI_NEW(t->ctx, char, (int64_t)strlen(path) + 2);
    if (!t->path || !t->folder) return PVT_ERR_MEMORY;
    strcpy(t->path, path);
    memcpy(t->folder, path, slash ? (size_t)(slash - path) + 1 : 0);
    if (!slash) strcpy(t->folder, "./");
    t->file = json ? "tokenizer.json" : "tokenizer.model";
    PVTI_TRY(pvti_path_join(t->ctx, config, t->folder, "tokenizer_config.json"));
    if (!pvti_path_exists(config)) return PVT_OK;
    PVTI_TRY(pvti_map_open(t->ctx, config, &map));
    result = pvti_tokenizer_config(t, config, (const char *)map.data, map.size);
    pvti_map_close(t->ctx, &map);
    return result;
}

PVT_API pvt_result pvt_tokenizer_load(pvt_ctx *ctx, const char *path, pvt_tokenizer **out)
{
    char file[PVTI_PATH_BYTES];
    pvti_map map;
    pvt_result result;
    *out = NULL;
    PVTI_TRY(pvti_path_join(ctx, file, "", path));
    if (pvti_path_is_directory(path)) {
        PVTI_TRY(pvti_exchange_recover(ctx, path));
        PVTI_TRY(pvti_path_join(ctx, file, path, "tokenizer.json"));
        if (!pvti_path_exists(file)) PVTI_TRY(pvti_path_join(ctx, file, path, "tokenizer.model"));
        if (!pvti_path_exists(file))
            return pvti_fail(ctx, PVT_ERR_IO,
                             "%s: the directory has neither tokenizer.json nor tokenizer.model", path);
    }
    PVTI_TRY(pvti_map_open(ctx, file, &map));
    result = pvti_tokenizer_read(ctx, file, map.data, map.size, out);
    if (result == PVT_OK && !(map.size >= 4 && memcmp(map.data, "GGUF", 4) == 0) &&
        pvti_bin_count(map.data, map.size) < 3)
        result = pvti_tokenizer_finish(
            pvti_tokenizer_settle(*out, file, pvti_tokenizer_is_json(map.data, map.size)), out);
    pvti_map_close(ctx, &map);
    return result;
}

// >>tokenizer saving
/*  A Hugging Face directory wants tokenizer.json and tokenizer_config.json; older software reads
    SentencePiece's tokenizer.model. Files that came from such a directory are copied; a vocabulary from
    elsewhere is written in these forms, with the pairs that >>vocabulary derived from scores as its list
    of merges, and scores made from a list's ranks. */

/* A piece in the file's spelling. */
static pvti_text pvti_save_spelling(const pvt_tokenizer *t, int64_t id)
{
    const pvti_piece *piece = &t->pieces[id];
    const char *s = t->pool + piece->start;
    pvti_text text = pvti_text_begin(t->ctx);
    uint32_t i;
    if (piece->type == PVTI_PIECE_BYTE) {
        pvti_text_printf(&text, "<0x%02X>", (unsigned)(uint8_t)*s);
    } else if (piece->type != PVTI_PIECE_NORMAL) {
        pvti_text_put(&text, s, piece->bytes);
    } else {
        for (i = 0; i < piece->bytes; i++) {
            char character[4];
            if (!t->spaces)
                pvti_text_put(&text, character,
                              pvti_utf8_write(pvti_byte_character((uint8_t)s[i]), character));
            else if (s[i] == ' ') pvti_text_put(&text, PVTI_SPACE_MARK, 3);
            else pvti_text_put(&text, s + i, 1);
        }
    }
    return text;
}

/* The same, quoted. */
static void pvti_save_piece(pvti_text *out, const pvt_tokenizer *t, int64_t id)
{
    pvti_text text = pvti_save_spelling(t, id);
    pvti_text_string(out, text.data, text.size);
    out->failed |= text.failed;
    pvti_text_free(&text);
}

static int pvti_save_merge_tie(const void *self, int64_t a, int64_t b)
{
    const pvti_merge *m = ((const pvt_tokenizer *)self)->merges;
    if (m[a].left != m[b].left) return m[a].left < m[b].left ? -1 : 1;
    return m[a].right < m[b].right ? -1 : m[a].right > m[b].right;
}

static pvt_result pvti_save_merges(pvti_text *out, const pvt_tokenizer *t)
{
    pvti_sort_item *items = PVTI_NEW(t->ctx, pvti_sort_item, t->n_merges + 1);
    int64_t slot, n = 0, i;
    if (!items) return PVT_ERR_MEMORY;
    for (slot = 0; slot < t->merges_size; slot++) {
        if (!t->merges[slot].id1) continue;
        items[n].key = (uint64_t)t->merges[slot].rank << 32 | t->merges[slot].id1;
        items[n++].index = slot;
    }
    pvti_sort(items, n, pvti_save_merge_tie, t);
    for (i = 0; i < n; i++) {
        pvti_text_printf(out, "%s\n      [", i ? "," : "");
        pvti_save_piece(out, t, t->merges[items[i].index].left);
        pvti_text_printf(out, ", ");
        pvti_save_piece(out, t, t->merges[items[i].index].right);
        pvti_text_printf(out, "]");
    }
    pvti_free(t->ctx, items);
    return PVT_OK;
}

static void pvti_save_splitting(pvti_text *out, const pvt_tokenizer *t)
{
    const char *regex = NULL;
    bool own =
        t->words == PVTI_WORDS_GPT2 || t->words == PVTI_WORDS_SMOLLM; /* ByteLevel's pattern is GPT-2's */
    if (t->words == PVTI_WORDS_LLAMA3) regex = pvti_regex_llama3;
    if (t->words == PVTI_WORDS_QWEN2) regex = pvti_regex_qwen2;
    if (t->spaces) {
        pvti_text_printf(
            out,
            "  \"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [%s"
            "{\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"" PVTI_SPACE_MARK
            "\"}]},\n"
            "  \"pre_tokenizer\": null,\n  \"decoder\": {\"type\": \"Sequence\", \"decoders\": ["
            "{\"type\": \"Replace\", \"pattern\": {\"String\": \"" PVTI_SPACE_MARK
            "\"}, \"content\": \" \"}, "
            "{\"type\": \"ByteFallback\"}, {\"type\": \"Fuse\"}%s]},\n",
            t->prefix ? "{\"type\": \"Prepend\", \"prepend\": \"" PVTI_SPACE_MARK "\"}, " : "",
            t->prefix ? ", {\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}" : "");
        return;
    }
    pvti_text_printf(
        out, "  \"normalizer\": %s,\n  \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [\n",
        t->nfc ? "{\"type\": \"NFC\"}" : "null");
    if (t->words == PVTI_WORDS_SMOLLM)
        pvti_text_printf(out, "    {\"type\": \"Digits\", \"individual_digits\": true},\n");
    if (regex) {
        pvti_text_printf(out, "    {\"type\": \"Split\", \"pattern\": {\"Regex\": ");
        pvti_text_string(out, regex, (int64_t)strlen(regex));
        pvti_text_printf(out, "}, \"behavior\": \"Isolated\", \"invert\": false},\n");
    }
    pvti_text_printf(
        out,
        "    {\"type\": \"ByteLevel\", \"add_prefix_space\": %s, \"trim_offsets\": false, \"use_regex\": "
        "%s}]},\n"
        "  \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": false, "
        "\"use_regex\": false},\n",
        t->prefix ? "true" : "false", own ? "true" : "false");
}

static void pvti_save_added(pvti_text *out, const pvt_tokenizer *t)
{
    int64_t id, n = 0;
    pvti_text_printf(out, "  \"added_tokens\": [");
    for (id = 0; id < t->V; id++) {
        const pvti_piece *piece = &t->pieces[id];
        if (!pvti_piece_special(piece)) continue;
        pvti_text_printf(out, "%s\n    {\"id\": %lld, \"content\": ", n++ ? "," : "", (long long)id);
        pvti_save_piece(out, t, id);
        pvti_text_printf(out,
                         ", \"single_word\": false, \"lstrip\": %s, \"rstrip\": %s, \"normalized\": false, "
                         "\"special\": %s}",
                         piece->strip_left ? "true" : "false", piece->strip_right ? "true" : "false",
                         piece->type == PVTI_PIECE_USER ? "false" : "true");
    }
    pvti_text_printf(out, "],\n");
}

static pvt_result pvti_save_json(pvti_text *out, const pvt_tokenizer *t)
{
    int64_t id, n = 0;
    bool byte_fallback = t->spaces;
    for (id = 0; id < 256; id++) byte_fallback = byte_fallback && t->byte_id[id] >= 0;
    pvti_text_printf(out, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n");
    pvti_save_added(out, t);
    pvti_save_splitting(out, t);
    if (t->adds_bos && t->bos >= 0) {
        pvti_text_printf(out, "  \"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": "
                              "[{\"SpecialToken\": {\"id\": ");
        pvti_save_piece(out, t, t->bos);
        pvti_text_printf(
            out,
            ", \"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}], \"pair\": [{\"Sequence\": "
            "{\"id\": \"A\", \"type_id\": 0}}, {\"Sequence\": {\"id\": \"B\", \"type_id\": 1}}], "
            "\"special_tokens\": {");
        pvti_save_piece(out, t, t->bos);
        pvti_text_printf(out, ": {\"id\": ");
        pvti_save_piece(out, t, t->bos);
        pvti_text_printf(out, ", \"ids\": [%d], \"tokens\": [", t->bos);
        pvti_save_piece(out, t, t->bos);
        pvti_text_printf(out, "]}}},\n");
    } else {
        pvti_text_printf(out, "  \"post_processor\": null,\n");
    }
    pvti_text_printf(out, "  \"model\": {\n    \"type\": \"BPE\", \"dropout\": null, \"unk_token\": ");
    if (t->unknown >= 0) pvti_save_piece(out, t, t->unknown);
    else pvti_text_printf(out, "null");
    pvti_text_printf(
        out,
        ", \"continuing_subword_prefix\": null, \"end_of_word_suffix\": null,\n    \"fuse_unk\": %s, "
        "\"byte_fallback\": %s, \"ignore_merges\": %s,\n    \"vocab\": {",
        t->fuse_unknown ? "true" : "false", byte_fallback ? "true" : "false",
        t->ignore_merges ? "true" : "false");
    for (id = 0; id < t->V; id++) {
        if (t->pieces[id].type == PVTI_PIECE_HOLE) continue;
        pvti_text_printf(out, "%s\n      ", n++ ? "," : "");
        pvti_save_piece(out, t, id);
        pvti_text_printf(out, ": %lld", (long long)id);
    }
    pvti_text_printf(out, "},\n    \"merges\": [");
    PVTI_TRY(pvti_save_merges(out, t));
    pvti_text_printf(out, "]\n  }\n}\n");
    return pvti_text_check(out);
}

/* Can a tokenizer.json say what a tokenizer.model did? Not that runs of spaces collapse, nor that no space
   is put behind pieces of the user. */
static bool pvti_save_json_possible(const pvt_tokenizer *t)
{
    int64_t id;
    for (id = 0; id < t->V && t->prefix == PVTI_PREFIX_CONTROL; id++)
        if (t->pieces[id].type == PVTI_PIECE_USER) return false;
    return !t->collapse;
}

static void pvti_save_config(pvti_text *out, const pvt_tokenizer *t)
{
    static const char *const keys[] = {"bos_token", "eos_token", "unk_token"};
    int32_t ids[3];
    int i;
    ids[0] = t->bos, ids[1] = t->eos, ids[2] = t->unknown;
    /* LlamaTokenizer has rules of its own for spaces; the general class does what tokenizer.json says */
    pvti_text_printf(out, "{\n  \"tokenizer_class\": \"%s\",\n",
                     t->file && strcmp(t->file, "tokenizer.model") == 0 && !pvti_save_json_possible(t)
                         ? "LlamaTokenizer"
                         : "PreTrainedTokenizerFast");
    for (i = 0; i < 3; i++) {
        if (ids[i] < 0) continue;
        pvti_text_printf(out, "  \"%s\": ", keys[i]);
        pvti_save_piece(out, t, ids[i]);
        pvti_text_printf(out, ",\n");
    }
    if (t->template_) {
        pvti_text_printf(out, "  \"chat_template\": ");
        pvti_text_string(out, t->template_, (int64_t)strlen(t->template_));
        pvti_text_printf(out, ",\n");
    }
    pvti_text_printf(out, "  \"add_bos_token\": %s,\n  \"clean_up_tokenization_spaces\": false\n}\n",
                     t->adds_bos && t->bos >= 0 ? "true" : "false");
}

/* ---- tokenizer.model ---- */

static void pvti_proto_put_varint(pvti_text *out, uint64_t value)
{
    char byte;
    for (; value > 127; value >>= 7) {
        byte = (char)(uint8_t)(value | 128);
        pvti_text_put(out, &byte, 1);
    }
    byte = (char)value;
    pvti_text_put(out, &byte, 1);
}
static void pvti_proto_put_int(pvti_text *out, int field, int64_t value)
{
    pvti_proto_put_varint(out, (uint64_t)field << 3);
    pvti_proto_put_varint(out, (uint64_t)value);
}
static void pvti_proto_put_float(pvti_text *out, int field, float value)
{
    pvti_proto_put_varint(out, (uint64_t)field << 3 | 5);
    pvti_text_put(out, (const char *)&value, 4);
}
static void pvti_proto_put_bytes(pvti_text *out, int field, const char *data, int64_t n)
{
    pvti_proto_put_varint(out, (uint64_t)field << 3 | 2);
    pvti_proto_put_varint(out, (uint64_t)n);
    pvti_text_put(out, data, n);
}
/* A message becomes a field of the one around it. */
static void pvti_proto_put_message(pvti_text *out, int field, pvti_text *message)
{
    pvti_proto_put_bytes(out, field, message->data, message->size);
    out->failed |= message->failed;
    message->size = 0;
}

/*  Scores that make SentencePiece merge in the order of a tokenizer.json's list. It merges any two
    neighbours whose concatenation is a piece, the best score first: so the list must hold every split of
    every piece, and the merges into one piece must stand together. *same: they do. */
static pvt_result pvti_save_scores(const pvt_tokenizer *t, float *scores, bool *same)
{
    pvti_sort_item *items = PVTI_NEW(t->ctx, pvti_sort_item, t->n_merges + 1);
    int64_t slot, n = 0, i, id, splits = 0, next = 0, previous = -1;
    if (!items) return PVT_ERR_MEMORY;
    *same = pvti_merges_split((pvt_tokenizer *)(uintptr_t)t, NULL, &splits) == PVT_OK;
    *same = *same && splits == t->n_merges;
    for (slot = 0; slot < t->merges_size && *same; slot++) {
        const pvti_merge *m = &t->merges[slot];
        if (!m->id1) continue;
        *same = t->pieces[m->left].type == PVTI_PIECE_NORMAL &&
                t->pieces[m->right].type == PVTI_PIECE_NORMAL &&
                t->pieces[m->id1 - 1].type == PVTI_PIECE_NORMAL;
        items[n].key = m->rank, items[n++].index = (int64_t)m->id1 - 1;
    }
    if (*same) pvti_sort(items, n, NULL, NULL);
    for (id = 0; id < t->V; id++) scores[id] = 1;
    for (i = 0; i < n && *same; i++) {
        id = items[i].index;
        if (id != previous && scores[id] <= 0) *same = false;
        if (id != previous) scores[id] = -(float)next++;
        previous = id;
    }
    for (id = 0; id < t->V; id++) /* pieces that nothing merges into: where they stand does not matter */
        if (scores[id] > 0) scores[id] = -(float)next++;
    pvti_free(t->ctx, items);
    return PVT_OK;
}

/* Can SentencePiece do what this vocabulary does, its order of merges aside? */
static bool pvti_save_model_possible(const pvt_tokenizer *t)
{
    int64_t bytes = 0, i;
    bool each_space = t->words == PVTI_WORDS_EACH_SPACE; /* no merge across the start of a word */
    for (i = 0; i < 256; i++) bytes += t->byte_id[i] >= 0;
    for (i = 0; i < t->V && each_space; i++) {
        const pvti_piece *piece = &t->pieces[i];
        if (piece->type == PVTI_PIECE_NORMAL && piece->bytes > 1 &&
            memchr(t->pool + piece->start + 1, ' ', piece->bytes - 1)) return false;
    }
    return t->spaces && !t->nfc && !t->ignore_merges && t->unknown >= 0 &&
           (bytes == 256 || (bytes == 0 && t->fuse_unknown));
}

/* One piece. Pieces must differ and not be empty: what is none gets a name that no text has. */
static void pvti_save_model_piece(pvti_text *out, const pvt_tokenizer *t, int64_t id, float score)
{
    const pvti_piece *piece = &t->pieces[id];
    pvti_text text = pvti_save_spelling(t, id), message = pvti_text_begin(t->ctx);
    int type = piece->type;
    if (type == PVTI_PIECE_UNKNOWN) type = PVTI_PIECE_CONTROL; /* there is one unknown piece */
    if (id == t->unknown) type = PVTI_PIECE_UNKNOWN;
    if (type != PVTI_PIECE_BYTE &&
        (type == PVTI_PIECE_HOLE || type == PVTI_PIECE_UNUSED || piece->bytes == 0 ||
         pvti_vocab_find(t, t->pool + piece->start, piece->bytes) != id ||
         pvti_byte_piece(text.data, text.size) >= 0 || !pvti_utf8_valid(text.data, text.size))) {
        type = PVTI_PIECE_UNUSED;
        text.size = 0;
        pvti_text_printf(&text, "<no piece %lld>", (long long)id);
    }
    pvti_proto_put_bytes(&message, 1, text.data, text.size);
    pvti_proto_put_float(&message, 2, score);
    if (type != PVTI_PIECE_NORMAL) pvti_proto_put_int(&message, 3, type);
    message.failed |= text.failed;
    pvti_proto_put_message(out, 1, &message);
    pvti_text_free(&message);
    pvti_text_free(&text);
}

/* The trainer's part, with what decides on ids, and the normalizer's: no rules but the space in front. */
static void pvti_save_model_specs(pvti_text *out, const pvt_tokenizer *t)
{
    int32_t ids[3];
    int i;
    pvti_text message = pvti_text_begin(t->ctx);
    ids[0] = t->unknown, ids[1] = t->bos, ids[2] = t->eos;
    pvti_proto_put_int(&message, 3, 2); /* BPE */
    pvti_proto_put_int(&message, 4, t->V);
    pvti_proto_put_int(&message, 35, t->byte_id[0] >= 0);
    for (i = 0; i < 3; i++) pvti_proto_put_int(&message, 40 + i, ids[i]);
    pvti_proto_put_int(&message, 43, -1); /* no padding */
    for (i = 0; i < 3; i++) {
        pvti_text text = ids[i] >= 0 ? pvti_save_spelling(t, ids[i]) : pvti_text_begin(t->ctx);
        if (ids[i] >= 0) pvti_proto_put_bytes(&message, 45 + i, text.data, text.size);
        message.failed |= text.failed;
        pvti_text_free(&text);
    }
    pvti_proto_put_message(out, 2, &message);
    pvti_proto_put_bytes(&message, 1, "identity", 8);
    pvti_proto_put_int(&message, 3, t->prefix != PVTI_PREFIX_NONE);
    pvti_proto_put_int(&message, 4, t->collapse);
    pvti_proto_put_int(&message, 5, 1); /* spaces as U+2581 */
    pvti_proto_put_message(out, 3, &message);
    pvti_text_free(&message);
}

/* The text stays empty when SentencePiece cannot do what this vocabulary does. */
static pvt_result pvti_save_model(pvti_text *out, const pvt_tokenizer *t)
{
    float *scores;
    bool same = true;
    int64_t id;
    pvt_result result = PVT_OK;
    if (!pvti_save_model_possible(t)) return PVT_OK;
    scores = PVTI_NEW(t->ctx, float, t->V);
    if (!scores) return PVT_ERR_MEMORY;
    if (!t->scored) result = pvti_save_scores(t, scores, &same);
    for (id = 0; id < t->V && t->scored; id++) scores[id] = t->pieces[id].score;
    for (id = 0; id < t->V && result == PVT_OK && same; id++) pvti_save_model_piece(out, t, id, scores[id]);
    if (result == PVT_OK && same) pvti_save_model_specs(out, t);
    pvti_free(t->ctx, scores);
    return result != PVT_OK ? result : pvti_text_check(out);
}

/* ---- the files ---- */

/* A copy of the file of that name beside the one that the tokenizer came from. *found: there is one. */
static pvt_result pvti_save_beside(const pvt_tokenizer *t, pvti_exchange *ex, const char *name, bool *found)
{
    char from[PVTI_PATH_BYTES];
    *found = false;
    if (!t->file) return PVT_OK;
    PVTI_TRY(pvti_path_join(t->ctx, from, t->folder, name));
    *found = pvti_path_exists(from);
    return *found ? pvti_exchange_copy(ex, from, name) : PVT_OK;
}

/* A file made from the vocabulary; there is none when the text is empty. */
static pvt_result pvti_save_made(pvti_exchange *ex, const char *name, pvti_text *text)
{
    pvt_result result = pvti_text_check(text);
    if (result == PVT_OK && text->size > 0) result = pvti_exchange_put(ex, name, text->data, text->size);
    text->size = 0;
    return result;
}

static pvt_result pvti_save_vocabulary(const pvt_tokenizer *t, pvti_exchange *ex, pvti_text *text)
{
    bool json = t->file && strcmp(t->file, "tokenizer.json") == 0, found = false;
    if (t->file) PVTI_TRY(pvti_exchange_copy(ex, t->path, t->file));
    if (!t->file || (!json && pvti_save_json_possible(t))) {
        PVTI_TRY(pvti_save_json(text, t));
        PVTI_TRY(pvti_save_made(ex, "tokenizer.json", text));
    }
    if (!t->spaces || (t->file && !json)) return PVT_OK;
    PVTI_TRY(pvti_save_beside(t, ex, "tokenizer.model", &found));
    if (!found) PVTI_TRY(pvti_save_model(text, t));
    return pvti_save_made(ex, "tokenizer.model", text);
}

/* Everything of the tokenizer's among the files of an exchange. */
static pvt_result pvti_tokenizer_put(const pvt_tokenizer *t, pvti_exchange *ex)
{
    static const char *const beside[] = {"special_tokens_map.json", "added_tokens.json",
                                         "chat_template.jinja", "tokenizer_config.json"};
    bool config = false;
    int64_t i;
    pvti_text text = pvti_text_begin(t->ctx);
    pvt_result result = pvti_save_vocabulary(t, ex, &text);
    for (i = 0; i < PVTI_COUNT(beside) && result == PVT_OK; i++)
        result = pvti_save_beside(t, ex, beside[i], &config);
    if (result == PVT_OK && !config) {
        pvti_save_config(&text, t);
        result = pvti_save_made(ex, "tokenizer_config.json", &text);
    }
    pvti_text_free(&text);
    return result;
}

PVT_API pvt_result pvt_tokenizer_save(const pvt_tokenizer *t, const char *dir)
{
    pvti_exchange ex;
    pvt_result result = pvti_exchange_begin(t->ctx, dir, true, &ex);
    if (result == PVT_OK) result = pvti_tokenizer_put(t, &ex);
    if (result == PVT_OK) result = pvti_exchange_commit(&ex, PVTI_SAVED_TOKENIZER);
    pvti_exchange_end(&ex);
    return result;
}
#endif
// >>model
/*  A model is a list of matrices and norms plus the numbers in its config. What they are called in
    each kind of file, and which sizes they have, stands once, in two tables; loading, saving,
    listing and running all read those. Matrices are pvt_weights: mapped from a file, in memory, or
    codes; norms are few and always lie in memory as pvt_real.

    A block (layer), with n = B·T rows everywhere:
        x1 = x  + o(attention(rope(q(a)), rope(k(a)), v(a))),   a = norm_att(x)
        y  = x1 + down(silu(gate(m)) · up(m)),                  m = norm_mlp(x1)

    q and k rows are always in the order of Hugging Face (rotary pairs j, j + HS/2): GGUF and
    llama2.c files have neighbours as pairs, and loading reorders those two matrices. */

enum { PVTI_Q, PVTI_K, PVTI_V, PVTI_O, PVTI_GATE, PVTI_UP, PVTI_DOWN, PVTI_LINEARS };
enum { PVTI_NORM_ATT, PVTI_NORM_MLP, PVTI_NORMS };
typedef enum pvti_width { /* which size of the config a side of a matrix has */
    PVTI_WIDTH_DIM, PVTI_WIDTH_HEADS, PVTI_WIDTH_KV, PVTI_WIDTH_FF, PVTI_WIDTH_VOCAB
} pvti_width;

/* Hugging Face puts "model.layers.N." before and ".weight" behind, GGUF "blk.N." and ".weight";
    llama2.c has no names but a fixed order: there it is the member of pvti_llama2c. */
typedef struct pvti_tensor_row {
    const char *hf, *gguf;
    size_t llama2c;
    pvti_width out, in;
} pvti_tensor_row;
#define PVTI_X(member) offsetof(pvti_llama2c, member)
static const pvti_tensor_row pvti_linears[PVTI_LINEARS] = {
    {"self_attn.q_proj", "attn_q", PVTI_X(wq), PVTI_WIDTH_HEADS, PVTI_WIDTH_DIM},
    {"self_attn.k_proj", "attn_k", PVTI_X(wk), PVTI_WIDTH_KV, PVTI_WIDTH_DIM},
    {"self_attn.v_proj", "attn_v", PVTI_X(wv), PVTI_WIDTH_KV, PVTI_WIDTH_DIM},
    {"self_attn.o_proj", "attn_output", PVTI_X(wo), PVTI_WIDTH_DIM, PVTI_WIDTH_HEADS},
    {"mlp.gate_proj", "ffn_gate", PVTI_X(w1), PVTI_WIDTH_FF, PVTI_WIDTH_DIM},
    {"mlp.up_proj", "ffn_up", PVTI_X(w3), PVTI_WIDTH_FF, PVTI_WIDTH_DIM},
    {"mlp.down_proj", "ffn_down", PVTI_X(w2), PVTI_WIDTH_DIM, PVTI_WIDTH_FF},
};
static const pvti_tensor_row pvti_norms[PVTI_NORMS] = {
    {"input_layernorm", "attn_norm", PVTI_X(rms_att), PVTI_WIDTH_DIM, PVTI_WIDTH_DIM},
    {"post_attention_layernorm", "ffn_norm", PVTI_X(rms_ffn), PVTI_WIDTH_DIM, PVTI_WIDTH_DIM},
};
static const pvti_tensor_row pvti_embedding_row = {
    "model.embed_tokens", "token_embd", PVTI_X(token_embedding), PVTI_WIDTH_VOCAB, PVTI_WIDTH_DIM};
static const pvti_tensor_row pvti_last_norm_row = {
    "model.norm", "output_norm", PVTI_X(rms_final), PVTI_WIDTH_DIM, PVTI_WIDTH_DIM};
static const pvti_tensor_row pvti_head_row = {
    "lm_head", "output", PVTI_X(wcls), PVTI_WIDTH_VOCAB, PVTI_WIDTH_DIM};
#undef PVTI_X

/* The files that a model's mapped weights lie in; one of the three is open. */
typedef struct pvti_source {
    pvt_ctx *ctx;
    pvti_shards shards;
    pvti_gguf gguf;
    pvti_llama2c llama2c;
} pvti_source;

static void pvti_source_close(pvti_source *source)
{
    if (!source) return;
    pvti_shards_close(&source->shards);
    pvti_gguf_close(&source->gguf);
    pvti_llama2c_close(&source->llama2c);
    pvti_free(source->ctx, source);
}

typedef struct pvti_layer {
    pvt_real *norm[PVTI_NORMS]; /* [C] */
    pvt_weight linear[PVTI_LINEARS];
} pvti_layer;

#define PVTI_MAX_EOS 8
struct pvt_model {
    pvt_ctx *ctx;
    pvt_model_config config;
    pvt_weight embed; /* [V, C] */
    pvt_weight head;  /* [V, C]; tied: a view of embed */
    pvti_layer *layers;
    pvt_real *norm;      /* [C], behind the last block */
    pvt_real *norm_data; /* what all norms point into */
    pvt_dtype *norm_types; /* of the norms in the files that they were read from; NONE: from no file */
    float *rope_factors; /* what the config's point to, or NULL */
    pvti_source *source; /* the files that weights are mapped from; NULL: none */
    pvt_tokenizer *tokenizer;
    int32_t bos, eos[PVTI_MAX_EOS]; /* bos −1: none */
    int n_eos;
    char *generation_config; /* the file's text, carried along on save; may be NULL */
    int64_t generation_config_bytes;
};

#define PVTI_ROPE_MOST 512 /* frequencies: head sizes up to 1024, see pvti_config_check */

static int64_t pvti_width_of(const pvt_model_config *c, pvti_width width)
{
    switch (width) {
    case PVTI_WIDTH_HEADS: return c->heads * c->head_dim;
    case PVTI_WIDTH_KV: return c->kv_heads * c->head_dim;
    case PVTI_WIDTH_FF: return c->ff;
    case PVTI_WIDTH_VOCAB: return c->vocab;
    default: return c->dim;
    }
}

/* Refuses what cannot be a model before any size is computed from it: every product of two of
   these fits an int64_t many times over. `name` is where the numbers come from. */
static pvt_result pvti_config_check(pvt_ctx *ctx, const char *name, const pvt_model_config *c)
{
    const struct {
        const char *key;
        int64_t value, min, max;
    } ranges[] = {
        {"layers", c->layers, 1, 4096},
        {"hidden size", c->dim, 1, 1 << 20},
        {"attention heads", c->heads, 1, 1 << 14},
        {"key/value heads", c->kv_heads, 1, 1 << 14},
        {"head size", c->head_dim, 2, 1024},
        {"feed-forward size", c->ff, 1, 1 << 22},
        {"vocabulary", c->vocab, 1, 1 << 24},
        {"context length", c->ctx, 1, 1 << 24},
        {"sliding window", c->window, 0, 1 << 24},
        {"rope_scaling's original context", c->rope_original_ctx, 0, 1 << 24},
    };
    int64_t i;
    for (i = 0; i < PVTI_COUNT(ranges); i++)
        if (ranges[i].value < ranges[i].min || ranges[i].value > ranges[i].max)
            return pvti_fail(ctx, PVT_ERR_FORMAT, "%s: %s is %lld; %lld to %lld are possible", name,
                             ranges[i].key, (long long)ranges[i].value, (long long)ranges[i].min,
                             (long long)ranges[i].max);
    if (c->heads % c->kv_heads)
        return pvti_fail(ctx, PVT_ERR_FORMAT,
                         "%s: %lld attention heads cannot share %lld key/value heads evenly", name,
                         (long long)c->heads, (long long)c->kv_heads);
    if (c->head_dim % 2)
        return pvti_fail(ctx, PVT_ERR_FORMAT, "%s: rotary embedding needs an even head size, not %lld", name,
                         (long long)c->head_dim);
    if (!(c->norm_eps > 0 && c->norm_eps < 1) || !(c->rope_theta > 0 && c->rope_theta < 1e30))
        return pvti_fail(ctx, PVT_ERR_FORMAT, "%s: norm epsilon %g or rotary base %g makes no sense", name,
                         c->norm_eps, c->rope_theta);
    if (c->rope_factor != 0 &&
        !(c->rope_factor >= 1 && c->rope_factor < 1e6 && c->rope_low > 0 && c->rope_high > c->rope_low &&
          c->rope_high < 1e6 && c->rope_original_ctx > 0))
        return pvti_fail(ctx, PVT_ERR_FORMAT,
                         "%s: rope_scaling with factor %g, low %g, high %g, context %lld makes no sense",
                         name, c->rope_factor, c->rope_low, c->rope_high, (long long)c->rope_original_ctx);
    for (i = 0; c->rope_factors && i < c->head_dim / 2; i++)
        if (!(c->rope_factors[i] > 0 && c->rope_factors[i] <= FLT_MAX))
            return pvti_fail(ctx, PVT_ERR_FORMAT, "%s: rotary factor %lld is %g; positive numbers make sense",
                             name, (long long)i, (double)c->rope_factors[i]);
    return PVT_OK;
}

/* Refuses a context that the model was not made for: the angles of positions beyond it occurred in no
   training, so that results there mean nothing. */
static PVTI_UNUSED pvt_result pvti_context_check(pvt_ctx *ctx, const pvt_model *model, const char *what,
                                                 int64_t T)
{
    if (T >= 2 && T <= model->config.ctx) return PVT_OK;
    return pvti_fail(ctx, PVT_ERR_ARGUMENT,
                     "%s: a context of %lld tokens is not possible: this model was made for 2 to %lld", what,
                     (long long)T, (long long)model->config.ctx);
}

/* The head as a view of the embedding; again whenever the embedding was replaced. */
static pvt_result pvti_model_tie(pvt_model *model)
{
    if (!model->config.tied) return PVT_OK;
    pvt_weight_free(&model->head);
    return pvt_weight_rows(&model->embed, 0, model->config.vocab, &model->head);
}

/* The head as Q8_0 blocks: d = max |x| / 127 in fp16, q = x/d to nearest. */
static pvt_result pvti_model_head_q8(pvt_model *model)
{
    pvt_weight *head = &model->head, q8;
    int64_t V = head->O, C = head->I, r, b, i;
    pvt_real *row;
    uint8_t *blocks;
    if (head->dtype == PVT_Q8_0) return PVT_OK;
    PVTI_TRY(pvti_host_only(model->ctx, "a head in q8"));
    if (C % 32)
        return pvti_fail(model->ctx, PVT_ERR_UNSUPPORTED, "a head in q8 needs a width that 32 divides, not %lld",
                         (long long)C);
    row = PVTI_NEW(model->ctx, pvt_real, C), blocks = PVTI_NEW(model->ctx, uint8_t, V * (C / 32) * 34);
    if (!row || !blocks) {
        pvti_free(model->ctx, row), pvti_free(model->ctx, blocks);
        return PVT_ERR_MEMORY;
    }
    for (r = 0; r < V; r++) {
        head->kind->tile(head, row, C, r, r + 1, 0, C);
        for (b = 0; b < C / 32; b++) {
            uint8_t *out = blocks + (r * (C / 32) + b) * 34;
            double most = 0, d;
            uint16_t bits;
            for (i = 0; i < 32; i++) most = PVTI_MAX(most, fabs((double)row[b * 32 + i]));
            bits = pvti_f32_to_f16((float)(most / 127)), d = (double)pvti_f16_to_f32(bits);
            memcpy(out, &bits, 2);
            for (i = 0; i < 32; i++) { /* d is rounded: the largest may come out as 128 */
                double q = d > 0 ? (double)row[b * 32 + i] / d : 0;
                out[2 + i] = (uint8_t)(int8_t)PVTI_MAX(-127, PVTI_MIN(127, (int)(q < 0 ? q - 0.5 : q + 0.5)));
            }
        }
    }
    pvti_free(model->ctx, row);
    PVTI_TRY(pvt_weight_borrow(model->ctx, blocks, PVT_Q8_0, V, C, &q8));
    q8.owned = true;
    pvt_weight_free(head);
    *head = q8;
    return PVT_OK;
}

PVT_API pvt_result pvt_model_prepare(pvt_model *model, bool head_q8)
{
    int64_t l, j;
    for (l = 0; l < model->config.layers; l++)
        for (j = 0; j < PVTI_LINEARS; j++) PVTI_TRY(pvt_weight_prepare(&model->layers[l].linear[j]));
    return head_q8 ? pvti_model_head_q8(model) : pvt_weight_prepare(&model->head);
}

PVT_API void pvt_model_free(pvt_model *model)
{
    int64_t l, j;
    if (!model) return;
    for (l = 0; model->layers && l < model->config.layers; l++)
        for (j = 0; j < PVTI_LINEARS; j++) pvt_weight_free(&model->layers[l].linear[j]);
    pvt_weight_free(&model->head);
    pvt_weight_free(&model->embed);
    pvt_tokenizer_free(model->tokenizer);
    pvti_source_close(model->source);
    pvti_free(model->ctx, model->generation_config);
    pvti_free(model->ctx, model->layers);
    pvt_memory_free(model->ctx, model->norm_data);
    pvti_free(model->ctx, model->norm_types);
    pvti_free(model->ctx, model->rope_factors);
    pvti_free(model->ctx, model);
}

/* A model of that shape without weights yet; norms 1. The config must have been checked. */
static pvt_result pvti_model_new(pvt_ctx *ctx, const pvt_model_config *config, pvt_model **out)
{
    int64_t C = config->dim, n = (PVTI_NORMS * config->layers + 1) * C, i, l;
    pvt_model *model = PVTI_NEW(ctx, pvt_model, 1);
    *out = NULL;
    if (!model) return PVT_ERR_MEMORY;
    model->ctx = ctx;
    model->config = *config;
    model->bos = -1;
    model->layers = PVTI_NEW(ctx, pvti_layer, config->layers);
    model->norm_data = PVTI_MEMORY(ctx, pvt_real, n);
    model->norm_types = PVTI_NEW(ctx, pvt_dtype, PVTI_NORMS * config->layers + 1);
    if (config->rope_factors) model->rope_factors = PVTI_NEW(ctx, float, config->head_dim / 2);
    if (!model->layers || !model->norm_data || !model->norm_types ||
        (config->rope_factors && !model->rope_factors)) {
        pvt_model_free(model);
        return PVT_ERR_MEMORY;
    }
    if (config->rope_factors)
        memcpy(model->rope_factors, config->rope_factors, (size_t)(config->head_dim / 2) * sizeof(float));
    model->config.rope_factors = model->rope_factors;
    for (i = 0; i < n && !ctx->device; i++) model->norm_data[i] = 1; /* on a device it is a copy, see below */
    for (l = 0; l < config->layers; l++)
        for (i = 0; i < PVTI_NORMS; i++)
            model->layers[l].norm[i] = model->norm_data + (PVTI_NORMS * l + i) * C;
    model->norm = model->norm_data + PVTI_NORMS * config->layers * C;
    *out = model;
    return PVT_OK;
}

PVT_API const pvt_model_config *pvt_model_get_config(const pvt_model *model) { return &model->config; }
PVT_API const pvt_tokenizer *pvt_model_tokenizer(const pvt_model *model) { return model->tokenizer; }

PVT_API void pvt_model_set_tokenizer(pvt_model *model, pvt_tokenizer *tokenizer)
{
    if (model->tokenizer != tokenizer) pvt_tokenizer_free(model->tokenizer);
    model->tokenizer = tokenizer;
    if (tokenizer && model->n_eos == 0 && model->bos < 0) { /* the model's files have the first say */
        pvt_tokenizer_info info = pvt_tokenizer_get_info(tokenizer);
        model->bos = info.bos;
        if (info.eos >= 0) model->eos[model->n_eos++] = info.eos;
    }
}

/* ---- tensors, numbered ---- */

/*  0: embedding; then per layer its norms and linears, in the order of PVTI_NORMS and
    PVTI_LINEARS; the last norm; the head, unless tied. */
enum { PVTI_LAYER_TENSORS = (int)PVTI_NORMS + (int)PVTI_LINEARS };
static int64_t pvti_tensor_of_norm(int64_t layer, int64_t j) { return 1 + layer * PVTI_LAYER_TENSORS + j; }
static int64_t pvti_tensor_of_linear(int64_t layer, int64_t j)
{
    return 1 + layer * PVTI_LAYER_TENSORS + PVTI_NORMS + j;
}
static int64_t pvti_tensor_of_last_norm(const pvt_model *model)
{
    return 1 + model->config.layers * PVTI_LAYER_TENSORS;
}
static int64_t pvti_tensor_of_head(const pvt_model *model)
{
    return 2 + model->config.layers * PVTI_LAYER_TENSORS;
}

PVT_API int64_t pvt_model_tensors(const pvt_model *model)
{
    return pvti_tensor_of_head(model) + !model->config.tied;
}

/* Tensor i's row in the tables, and its layer (−1: in none). */
static const pvti_tensor_row *pvti_tensor_find_row(const pvt_model *model, int64_t i, int64_t *layer)
{
    int64_t j = (i - 1) % PVTI_LAYER_TENSORS;
    *layer = -1;
    if (i == 0) return &pvti_embedding_row;
    if (i == pvti_tensor_of_last_norm(model)) return &pvti_last_norm_row;
    if (i == pvti_tensor_of_head(model)) return &pvti_head_row;
    *layer = (i - 1) / PVTI_LAYER_TENSORS;
    return j < PVTI_NORMS ? &pvti_norms[j] : &pvti_linears[j - PVTI_NORMS];
}

#define PVTI_NAME 96 /* bytes of a tensor's name */
/* Its name, with `suffix` for ".weight", ".codes", … */
static void pvti_tensor_name(const pvt_model *model, int64_t i, bool gguf, const char *suffix,
                             char out[PVTI_NAME])
{
    int64_t layer;
    const pvti_tensor_row *row = pvti_tensor_find_row(model, i, &layer);
    const char *name = gguf ? row->gguf : row->hf;
    if (layer < 0) snprintf(out, PVTI_NAME, "%s%s", name, suffix);
    else
        snprintf(out, PVTI_NAME, gguf ? "blk.%lld.%s%s" : "model.layers.%lld.%s%s", (long long)layer, name,
                 suffix);
}

/* Bytes of a codebook weight in a file: codes of up to 8 bits take one byte, longer ones two. */
static int64_t pvti_codes_bytes(const pvt_weight *weight)
{
    const pvt_format *f = &weight->format;
    int64_t rows = weight->O / f->out_group, codes = rows * (weight->I / f->in_group) * f->codebooks;
    int64_t values = ((int64_t)f->codebooks << f->bits) * f->out_group * f->in_group;
    return codes * (f->bits <= 8 ? 1 : 2) + (values + rows) * 2;
}

static int64_t pvti_dense_bytes(int64_t n, pvt_dtype dtype)
{
    const pvti_dtype *type = pvti_dtype_info(dtype);
    return n / type->block * type->bytes;
}

PVT_API pvt_tensor_info pvt_model_tensor(const pvt_model *model, int64_t i)
{
    pvt_model *m = (pvt_model *)(uintptr_t)model; /* who may write through it is for the caller to know */
    pvt_tensor_info info;
    int64_t l = (i - 1) / PVTI_LAYER_TENSORS, j = (i - 1) % PVTI_LAYER_TENSORS;
    int64_t norm = i == pvti_tensor_of_last_norm(model) ? PVTI_NORMS * m->config.layers : PVTI_NORMS * l + j;
    memset(&info, 0, sizeof info);
    if (i < 0 || i >= pvt_model_tensors(model)) return info;
    pvti_tensor_name(model, i, false, ".weight", info.name);
    if (i == 0) info.weight = &m->embed;
    else if (i == pvti_tensor_of_head(model)) info.weight = &m->head;
    else if (i == pvti_tensor_of_last_norm(model)) info.values = m->norm;
    else if (j < PVTI_NORMS) info.values = m->layers[l].norm[j];
    else info.weight = &m->layers[l].linear[j - PVTI_NORMS], info.linear = true;
    info.n = info.weight ? info.weight->O * info.weight->I : m->config.dim;
    if (!info.weight) info.dtype = m->norm_types[norm] ? m->norm_types[norm] : PVTI_DTYPE_REAL;
    else if (info.weight->format.kind == PVT_FORMAT_DENSE) info.dtype = info.weight->dtype;
    if (info.dtype) info.bytes = pvti_dense_bytes(info.n, info.dtype);
    else if (info.weight->ctx) info.bytes = pvti_codes_bytes(info.weight); /* NULL: still to be loaded */
    return info;
}

/* Does a save write this tensor as codes? */
static bool pvti_save_codes(const pvt_model *model, const pvt_save_desc *as, const pvt_tensor_info *t)
{
    if (!t->weight || t->weight->format.kind == PVT_FORMAT_DENSE) return false;
    return !as->dense && !(as->dense_embedding && t->weight == &model->embed);
}

PVT_API pvt_bits pvt_model_bits(const pvt_model *model, const pvt_save_desc *as)
{
    pvt_bits sum;
    double packed;
    int64_t i, linears = 0;
    memset(&sum, 0, sizeof sum);
    for (i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        bool codes = as ? pvti_save_codes(model, as, &t) : t.dtype == PVT_DTYPE_NONE;
        int64_t bytes = as && !codes ? pvti_dense_bytes(t.n, as->dtype ? as->dtype : PVT_F16) : t.bytes;
        packed = codes ? pvt_weight_bits(t.weight) * (double)t.n : 8.0 * (double)bytes;
        sum.params += t.n, sum.bytes += bytes, sum.packed_all += packed;
        if (t.linear) linears += t.n, sum.linears += 8.0 * (double)bytes, sum.packed_linears += packed;
    }
    sum.linears /= (double)linears, sum.packed_linears /= (double)linears;
    sum.all = 8.0 * (double)sum.bytes / (double)sum.params, sum.packed_all /= (double)sum.params;
    return sum;
}

PVT_API int64_t pvt_model_file_bytes(const pvt_model *model)
{
    const pvti_source *source = model->source;
    int64_t bytes = source ? source->gguf.map.size + source->llama2c.map.size : 0, i;
    for (i = 0; source && i < source->shards.n_files; i++) bytes += source->shards.files[i].map.size;
    return bytes;
}

/* ---- making and copying ---- */

/* Nearly N(0, 1): a sum of twelve uniform numbers less its mean (variance 12/12), which needs no
   logarithm and so has the same bits everywhere. 16-bit uniforms, four to a random word. */
static double pvti_random_normal(uint64_t seed, uint64_t step, uint64_t index)
{
    int64_t sum = 0;
    uint64_t i, j;
    for (i = 0; i < 3; i++) {
        uint64_t word = pvti_random(seed, PVTI_RANDOM_INIT, step, 3 * index + i);
        for (j = 0; j < 4; j++) sum += (int64_t)(word >> (16 * j) & 65535);
    }
    return ((double)sum + 6.0) * (1.0 / 65536.0) - 6.0;
}

typedef struct pvti_init {
    pvt_real *W;
    int64_t n, tensor;
    double sigma;
    uint64_t seed;
} pvti_init;

static void pvti_init_task(void *arg, int64_t i, int worker)
{
    const pvti_init *a = (const pvti_init *)arg;
    int64_t j, end = PVTI_MIN(a->n, (i + 1) * 4096);
    (void)worker;
    for (j = i * 4096; j < end; j++)
        a->W[j] = (pvt_real)(a->sigma * pvti_random_normal(a->seed, (uint64_t)a->tensor, (uint64_t)j));
}

static pvt_result pvti_weight_random(pvt_ctx *ctx, int64_t tensor, double sigma, int64_t O, int64_t I,
                                     pvt_weight *out)
{
    pvti_init a;
    PVTI_TRY(pvt_weight_dense(ctx, NULL, O, I, out));
    a.W = (pvt_real *)(uintptr_t)out->data, a.n = O * I, a.tensor = tensor, a.sigma = sigma,
    a.seed = ctx->seed;
    pvti_parallel(ctx, (a.n + 4095) / 4096, pvti_init_task, &a);
    return PVT_OK;
}

/* A copy that owns its arrays, in ctx's memory: dense weights as pvt_real, codes as they are. */
static pvt_result pvti_weight_copy(pvt_ctx *ctx, const pvt_weight *weight, pvt_weight *out)
{
    pvt_weight taken;
    pvt_result result;
    if (weight->format.kind != PVT_FORMAT_DENSE || weight->dtype == PVTI_DTYPE_REAL)
        return pvti_weight_take(ctx, weight, out);
    if (!pvti_same_memory(ctx, weight->ctx)) {
        PVTI_TRY(pvti_weight_take(ctx, weight, &taken));
        result = pvti_weight_copy(ctx, &taken, out);
        pvt_weight_free(&taken);
        return result;
    }
    PVTI_TRY(pvt_weight_dense(ctx, NULL, weight->O, weight->I, out));
    pvt_weight_dequantize(weight, (pvt_real *)(uintptr_t)out->data);
    return PVT_OK;
}

typedef pvt_result pvti_copy_fn(pvt_ctx *ctx, const pvt_weight *weight, pvt_weight *out);

static pvt_result pvti_model_copy_weights(const pvt_model *from, pvt_model *to, pvti_copy_fn *copy)
{
    int64_t l, j;
    PVTI_TRY(copy(to->ctx, &from->embed, &to->embed));
    for (l = 0; l < from->config.layers; l++)
        for (j = 0; j < PVTI_LINEARS; j++)
            PVTI_TRY(copy(to->ctx, &from->layers[l].linear[j], &to->layers[l].linear[j]));
    if (from->config.tied) return pvti_model_tie(to);
    return copy(to->ctx, &from->head, &to->head);
}

static pvt_result pvti_model_copy_as(pvt_ctx *ctx, const pvt_model *model, pvti_copy_fn *copy_weight,
                                     pvt_model **out)
{
    int64_t norms = (PVTI_NORMS * model->config.layers + 1) * model->config.dim;
    pvt_model *copy;
    pvt_result result;
    PVTI_TRY(pvti_model_new(ctx, &model->config, out));
    copy = *out;
    copy->bos = model->bos, copy->n_eos = model->n_eos;
    memcpy(copy->eos, model->eos, sizeof copy->eos);
    result = pvti_transfer(ctx, copy->norm_data, model->ctx, model->norm_data,
                           norms * (int64_t)sizeof(pvt_real));
    if (result == PVT_OK) result = pvti_model_copy_weights(model, copy, copy_weight);
    if (result == PVT_OK && model->generation_config) {
        copy->generation_config = PVTI_NEW(ctx, char, model->generation_config_bytes + 1);
        copy->generation_config_bytes = model->generation_config_bytes;
        if (copy->generation_config)
            memcpy(copy->generation_config, model->generation_config, (size_t)model->generation_config_bytes);
        else result = PVT_ERR_MEMORY;
    }
    if (result != PVT_OK) pvt_model_free(copy), *out = NULL;
    else copy->tokenizer = pvti_tokenizer_share(model->tokenizer);
    return result;
}

PVT_API pvt_result pvt_model_copy(pvt_ctx *ctx, const pvt_model *model, pvt_model **out)
{
    return pvti_model_copy_as(ctx, model, pvti_weight_copy, out);
}

/* What was made on the host goes over to ctx's device, every tensor as it is: *model becomes that. The files
   stay open, for what is asked about them. */
static pvt_result pvti_model_move(pvt_ctx *ctx, pvt_model **model)
{
    pvt_model *from = *model, *to;
    pvt_result result = pvti_model_copy_as(ctx, from, pvti_weight_take, &to);
    *model = NULL;
    if (result == PVT_OK) {
        memcpy(to->norm_types, from->norm_types,
               (size_t)(PVTI_NORMS * to->config.layers + 1) * sizeof *to->norm_types);
        to->source = from->source;
        from->source = NULL;
        *model = to;
    }
    pvt_model_free(from);
    return result;
}

static pvt_result pvti_model_randomize(pvt_model *model)
{
    const pvt_model_config *c = &model->config;
    double residual = 0.02 / __builtin_sqrt(2.0 * (double)c->layers);
    int64_t l, j;
    PVTI_TRY(pvti_weight_random(model->ctx, 0, 0.02, c->vocab, c->dim, &model->embed));
    for (l = 0; l < c->layers; l++)
        for (j = 0; j < PVTI_LINEARS; j++)
            PVTI_TRY(pvti_weight_random(model->ctx, pvti_tensor_of_linear(l, j),
                                        j == PVTI_O || j == PVTI_DOWN ? residual : 0.02,
                                        pvti_width_of(c, pvti_linears[j].out),
                                        pvti_width_of(c, pvti_linears[j].in), &model->layers[l].linear[j]));
    if (c->tied) return pvti_model_tie(model);
    return pvti_weight_random(model->ctx, pvti_tensor_of_head(model), 0.02, c->vocab, c->dim, &model->head);
}

PVT_API pvt_result pvt_model_create(pvt_ctx *ctx, const pvt_model_config *config, pvt_model **out)
{
    pvt_model_config c = *config;
    pvt_result result;
    *out = NULL;
    if (ctx->device) {
        PVTI_TRY(pvt_model_create(ctx->host, config, out));
        return pvti_model_move(ctx, out);
    }
    if (!c.family[0]) snprintf(c.family, sizeof c.family, "llama");
    if (!c.kv_heads) c.kv_heads = c.heads;
    if (!c.head_dim && c.heads > 0) c.head_dim = c.dim / c.heads;
    if (c.norm_eps == 0) c.norm_eps = 1e-5;
    if (c.rope_theta == 0) c.rope_theta = 10000;
    if (pvti_config_check(ctx, "the config of the new model", &c) != PVT_OK) return PVT_ERR_ARGUMENT;
    PVTI_TRY(pvti_model_new(ctx, &c, out));
    result = pvti_model_randomize(*out);
    if (result != PVT_OK) pvt_model_free(*out), *out = NULL;
    return result;
}

/* Makes a dense weight writable: a pvt_real array of its own instead of a file's bytes. Codes are
   always the model's own already. */
static PVTI_UNUSED pvt_result pvti_model_own(pvt_model *model, pvt_weight *weight)
{
    pvt_weight own;
    if (weight->format.kind != PVT_FORMAT_DENSE || (weight->owned && weight->dtype == PVTI_DTYPE_REAL))
        return PVT_OK;
    PVTI_TRY(pvti_weight_copy(model->ctx, weight, &own));
    pvt_weight_free(weight);
    *weight = own;
    return weight == &model->embed ? pvti_model_tie(model) : PVT_OK;
}
// >>blocks
/*  One transformer block, forward and backward, on memory that stands ready: `pvti_blocks` holds
    what running blocks of one shape needs, `pvti_acts` what one forward leaves for its backward.
    The weights come as an argument, so that calibration can run a block's original and its
    quantized version side by side.

    Kept per block and token are 1·C + 2·NH·HS + 2·NKV·HS + 2·FF numbers. The norms' outputs a and
    m and the product h are a third as much again and cost almost nothing to make, so they exist
    once for all blocks and backward makes them again. */

typedef struct pvti_acts {
    pvt_real *q, *k, *v;        /* [B,T,NH,HS], [B,T,NKV,HS] twice; q and k behind RoPE */
    pvt_real *att;              /* [n, NH·HS] input of o */
    pvt_real *x1;               /* [n, C] x + o(att) */
    pvt_real *gate, *up;        /* [n, FF] */
    pvt_real *rstd[PVTI_NORMS]; /* [n] of the two norms */
    pvt_real *lse;              /* [B, NH, T] */
    pvt_real *a;                /* [n, C] input of q, k, v; shared between all sets */
    pvt_real *m;                /* [n, C] input of gate, up; shared */
    pvt_real *h;                /* [n, FF] input of down; shared */
} pvti_acts;

typedef struct pvti_blocks {
    pvt_ctx *ctx;
    pvt_model_config config;
    int64_t tokens, positions; /* n and T at most */
    bool train;
    pvt_real *cosines, *sines; /* [positions, HS/2] */
    pvti_acts *acts;           /* [n_acts] */
    int64_t n_acts;
    pvt_real *da, *wide; /* backward's: [n, C] and [n, max(3·FF, 2·NH·HS + 2·NKV·HS)] */
    void *memory, *host_memory;
} pvti_blocks;

/* Keys and values of earlier tokens, of one layer. */
typedef struct pvti_cache {
    pvt_real *k, *v; /* [B, positions, NKV, HS] */
    int64_t pos;     /* tokens that they hold */
} pvti_cache;

/* Hands out pieces of one allocation. Without memory (base NULL) it only counts, so that the
   same code says how much is needed and then cuts it up. What the host itself reads (pointers, ids)
   comes, when ops compute in a device's memory, from an allocation apart. */
typedef struct pvti_carver {
    char *base, *host;
    int64_t bytes, host_bytes;
    bool apart, overflow;
} pvti_carver;

static pvti_carver pvti_carver_begin(const pvt_ctx *ctx, void *base, void *host)
{
    pvti_carver carver;
    memset(&carver, 0, sizeof carver);
    carver.base = (char *)base;
    carver.host = (char *)host;
    carver.apart = ctx->device != NULL;
    return carver;
}

static void *pvti_carve(pvti_carver *carver, bool host, int64_t rows, int64_t columns, int64_t size)
{
    bool apart = host && carver->apart;
    int64_t bytes, end, *used = apart ? &carver->host_bytes : &carver->bytes;
    char *base = apart ? carver->host : carver->base, *piece = base ? base + *used : NULL;
    if (!pvti_mul(rows, columns, &bytes) || !pvti_mul(bytes, size, &bytes) ||
        !pvti_add(bytes, PVTI_ALIGN - 1, &bytes) ||
        !pvti_add(*used, bytes & -(int64_t)PVTI_ALIGN, &end)) {
        carver->overflow = true;
        return NULL;
    }
    *used = end;
    return piece;
}
#define PVTI_CARVE(carver, type, rows, columns) \
    ((type *)pvti_carve(carver, false, rows, columns, (int64_t)sizeof(type)))
#define PVTI_CARVE_HOST(carver, type, rows, columns) \
    ((type *)pvti_carve(carver, true, rows, columns, (int64_t)sizeof(type)))

/* Cuts up the memory of blocks; config, tokens, positions, train and n_acts are set. */
static void pvti_blocks_layout(pvti_blocks *b, pvti_carver *c)
{
    const pvt_model_config *g = &b->config;
    int64_t n = b->tokens, Q = g->heads * g->head_dim, KV = g->kv_heads * g->head_dim, i, j;
    pvt_real *a, *m, *h;
    b->cosines = PVTI_CARVE(c, pvt_real, b->positions, g->head_dim / 2);
    b->sines = PVTI_CARVE(c, pvt_real, b->positions, g->head_dim / 2);
    a = PVTI_CARVE(c, pvt_real, n, g->dim);
    m = PVTI_CARVE(c, pvt_real, n, g->dim);
    h = PVTI_CARVE(c, pvt_real, n, g->ff);
    b->acts = PVTI_CARVE_HOST(c, pvti_acts, b->n_acts, 1);
    for (i = 0; i < b->n_acts; i++) {
        pvti_acts counted, *s = b->acts ? &b->acts[i] : &counted;
        s->q = PVTI_CARVE(c, pvt_real, n, Q);
        s->k = PVTI_CARVE(c, pvt_real, n, KV);
        s->v = PVTI_CARVE(c, pvt_real, n, KV);
        s->att = PVTI_CARVE(c, pvt_real, n, Q);
        s->x1 = PVTI_CARVE(c, pvt_real, n, g->dim);
        s->gate = PVTI_CARVE(c, pvt_real, n, g->ff);
        s->up = PVTI_CARVE(c, pvt_real, n, g->ff);
        for (j = 0; j < PVTI_NORMS; j++) s->rstd[j] = PVTI_CARVE(c, pvt_real, n, 1);
        s->lse = PVTI_CARVE(c, pvt_real, n, g->heads);
        s->a = a, s->m = m, s->h = h;
    }
    b->da = b->wide = NULL;
    if (!b->train) return;
    b->da = PVTI_CARVE(c, pvt_real, n, g->dim);
    b->wide = PVTI_CARVE(c, pvt_real, n, PVTI_MAX(3 * g->ff, 2 * Q + 2 * KV));
}

static void pvti_blocks_rope(pvti_blocks *b)
{
    const pvt_model_config *g = &b->config;
    float inv_freq[PVTI_ROPE_MOST];
    pvt_rope_frequencies(inv_freq, g->head_dim, g->rope_theta);
    if (g->rope_factor != 0)
        pvt_rope_scale_llama3(inv_freq, g->head_dim, g->rope_factor, g->rope_low, g->rope_high,
                              g->rope_original_ctx);
    for (int64_t j = 0; g->rope_factors && j < g->head_dim / 2; j++) inv_freq[j] /= g->rope_factors[j];
    pvt_rope_table(b->ctx, b->cosines, b->sines, inv_freq, g->head_dim, 0, b->positions);
}

static PVTI_UNUSED void pvti_blocks_free(pvti_blocks *b)
{
    if (b->memory) pvt_memory_free(b->ctx, b->memory);
    if (b->host_memory) pvti_free(b->ctx, b->host_memory);
    memset(b, 0, sizeof *b);
}

/* For up to `tokens` rows, sequences up to `positions` long, and n_acts sets of activations. */
static PVTI_UNUSED pvt_result pvti_blocks_create(pvt_ctx *ctx, const pvt_model_config *config, int64_t tokens,
                                                 int64_t positions, int64_t n_acts, bool train,
                                                 pvti_blocks *b)
{
    pvti_carver carver = pvti_carver_begin(ctx, NULL, NULL);
    memset(b, 0, sizeof *b);
    b->ctx = ctx, b->config = *config, b->tokens = tokens, b->positions = positions, b->n_acts = n_acts,
    b->train = train;
    pvti_blocks_layout(b, &carver);
    b->memory = pvt_memory_alloc(ctx, carver.overflow ? -1 : carver.bytes);
    if (carver.apart) b->host_memory = pvti_alloc(ctx, carver.host_bytes, 1);
    if (!b->memory || (carver.apart && !b->host_memory)) {
        pvti_blocks_free(b);
        return PVT_ERR_MEMORY;
    }
    carver = pvti_carver_begin(ctx, b->memory, b->host_memory);
    pvti_blocks_layout(b, &carver);
    pvti_blocks_rope(b);
    return PVT_OK;
}

static void pvti_cache_append(const pvti_blocks *b, const pvti_cache *cache, const pvti_acts *s, int64_t B,
                              int64_t T)
{
    int64_t KV = b->config.kv_heads * b->config.head_dim, i;
    for (i = 0; i < B; i++) {
        int64_t to = (i * b->positions + cache->pos) * KV;
        pvti_copy(b->ctx, cache->k + to, s->k + i * T * KV, T * KV);
        pvti_copy(b->ctx, cache->v + to, s->v + i * T * KV, T * KV);
    }
}

static pvt_attention_desc pvti_block_attention(const pvti_blocks *b, int64_t B, int64_t T)
{
    pvt_attention_desc d;
    memset(&d, 0, sizeof d);
    d.B = B, d.T = T, d.NH = b->config.heads, d.NKV = b->config.kv_heads, d.HS = b->config.head_dim;
    d.window = b->config.window;
    return d;
}

/*  y [n,C] = block(x [n,C]), n = B·T; y may be x. Leaves in `s` what backward needs; with y NULL
    it does only that. cache: NULL, or the earlier tokens' keys and values, which grow by T. */
static void pvti_block_forward(const pvti_blocks *b, const pvti_layer *layer, pvt_real *y, const pvt_real *x,
                               int64_t B, int64_t T, pvti_acts *s, const pvti_cache *cache)
{
    const pvt_model_config *g = &b->config;
    const pvt_weight *w = layer->linear;
    pvt_ctx *ctx = b->ctx;
    int64_t n = B * T, C = g->dim, HS = g->head_dim, pos = cache ? cache->pos : 0;
    const pvt_real *cosines = b->cosines + pos * (HS / 2), *sines = b->sines + pos * (HS / 2);
    pvt_attention_desc d = pvti_block_attention(b, B, T);
    pvt_real *const qkv[3] = {s->q, s->k, s->v}, *const gate_up[2] = {s->gate, s->up};

    pvt_rmsnorm_forward(ctx, s->a, s->rstd[PVTI_NORM_ATT], x, layer->norm[PVTI_NORM_ATT], n, C,
                        (pvt_real)g->norm_eps);
    pvti_weights_forward(ctx, qkv, s->a, &w[PVTI_Q], 3, n);
    pvt_rope_forward(ctx, s->q, cosines, sines, B, T, g->heads, HS, PVT_ROPE_HALVES);
    pvt_rope_forward(ctx, s->k, cosines, sines, B, T, g->kv_heads, HS, PVT_ROPE_HALVES);
    if (cache) {
        pvti_cache_append(b, cache, s, B, T);
        d.pos = pos, d.kv_batch = b->positions * g->kv_heads * HS;
        pvt_attention_forward(ctx, s->att, NULL, s->q, cache->k, cache->v, &d);
    } else {
        pvt_attention_forward(ctx, s->att, b->train ? s->lse : NULL, s->q, s->k, s->v, &d);
    }
    pvt_weight_forward(ctx, s->x1, s->att, &w[PVTI_O], n, false);
    pvt_residual_forward(ctx, s->x1, s->x1, x, n * C);

    pvt_rmsnorm_forward(ctx, s->m, s->rstd[PVTI_NORM_MLP], s->x1, layer->norm[PVTI_NORM_MLP], n, C,
                        (pvt_real)g->norm_eps);
    pvti_weights_forward(ctx, gate_up, s->m, &w[PVTI_GATE], 2, n);
    pvt_swiglu_forward(ctx, s->h, s->gate, s->up, n * g->ff);
    if (!y) return;
    pvt_weight_forward(ctx, y, s->h, &w[PVTI_DOWN], n, false);
    pvt_residual_forward(ctx, y, y, s->x1, n * C);
}

/*  d [n,C]: dy goes in, dx comes out. x and s: forward's. grads: one array to add to per tensor of
    the layer, norms first (PVTI_NORMS, then PVTI_LINEARS); NULL: not wanted. The adjoint of each line
    of forward, from the last to the first; a residual's gradient goes both ways, so it stays in d. */
static void pvti_block_backward(const pvti_blocks *b, const pvti_layer *layer, pvt_real *d, const pvt_real *x,
                                int64_t B, int64_t T, const pvti_acts *s, pvt_real *const *grads)
{
    const pvt_model_config *g = &b->config;
    const pvt_weight *w = layer->linear;
    pvt_real *const *dW = grads + PVTI_NORMS;
    pvt_ctx *ctx = b->ctx;
    int64_t n = B * T, C = g->dim, HS = g->head_dim, Q = n * g->heads * HS, KV = n * g->kv_heads * HS,
            F = n * g->ff;
    pvt_real *dh = b->wide, *dgate = dh + F, *dup = dgate + F;
    pvt_real *datt = b->wide, *dq = datt + Q, *dk = dq + Q, *dv = dk + KV;
    pvt_attention_desc desc = pvti_block_attention(b, B, T);

    /* y = x1 + down(h), h = silu(gate)·up */
    pvti_zero(ctx, b->wide, 3 * F);
    pvt_swiglu_forward(ctx, s->h, s->gate, s->up, F);
    pvt_weight_backward(ctx, dh, dW[PVTI_DOWN], d, s->h, &w[PVTI_DOWN], n);
    pvt_swiglu_backward(ctx, dgate, dup, dh, s->gate, s->up, F);
    /* gate, up = linear(m), m = norm(x1) */
    pvti_zero(ctx, b->da, n * C);
    pvt_rmsnorm_forward(ctx, s->m, NULL, s->x1, layer->norm[PVTI_NORM_MLP], n, C, (pvt_real)g->norm_eps);
    pvt_weight_backward(ctx, b->da, dW[PVTI_GATE], dgate, s->m, &w[PVTI_GATE], n);
    pvt_weight_backward(ctx, b->da, dW[PVTI_UP], dup, s->m, &w[PVTI_UP], n);
    pvt_rmsnorm_backward(ctx, d, grads[PVTI_NORM_MLP], b->da, s->x1, s->rstd[PVTI_NORM_MLP],
                         layer->norm[PVTI_NORM_MLP], n, C);

    /* x1 = x + o(att), att = attention(rope(q), rope(k), v) */
    pvti_zero(ctx, b->wide, 2 * Q + 2 * KV);
    pvt_weight_backward(ctx, datt, dW[PVTI_O], d, s->att, &w[PVTI_O], n);
    pvt_attention_backward(ctx, dq, dk, dv, datt, s->att, s->lse, s->q, s->k, s->v, &desc);
    pvt_rope_backward(ctx, dq, b->cosines, b->sines, B, T, g->heads, HS, PVT_ROPE_HALVES);
    pvt_rope_backward(ctx, dk, b->cosines, b->sines, B, T, g->kv_heads, HS, PVT_ROPE_HALVES);
    /* q, k, v = linear(a), a = norm(x) */
    pvti_zero(ctx, b->da, n * C);
    pvt_rmsnorm_forward(ctx, s->a, NULL, x, layer->norm[PVTI_NORM_ATT], n, C, (pvt_real)g->norm_eps);
    pvt_weight_backward(ctx, b->da, dW[PVTI_Q], dq, s->a, &w[PVTI_Q], n);
    pvt_weight_backward(ctx, b->da, dW[PVTI_K], dk, s->a, &w[PVTI_K], n);
    pvt_weight_backward(ctx, b->da, dW[PVTI_V], dv, s->a, &w[PVTI_V], n);
    pvt_rmsnorm_backward(ctx, d, grads[PVTI_NORM_ATT], b->da, x, s->rstd[PVTI_NORM_ATT],
                         layer->norm[PVTI_NORM_ATT], n, C);
}

// >>run
/*  The whole model: embedding, blocks, last norm, head, and back. All memory is laid out at
    creation. In training the input of every block is kept; whole sets of activations only for as
    many of the last blocks as the memory limit allows. The others run forward once more when
    backward reaches them, in the set of the last block, which is free by then.

    Logits of all tokens never exist at once. The head runs over chunks of rows: logits, loss and
    their gradient for a chunk, then the next. So no logit is computed twice, and since gradients
    add up row by row in order, the size of a chunk changes no bit. */

struct pvt_run {
    pvt_ctx *ctx;
    const pvt_model *model;
    pvt_run_desc desc; /* defaults filled in; frozen is a copy */
    int64_t B, T;      /* of the last forward; 0: none */
    bool backward_done;
    pvti_blocks blocks;
    pvt_real *x;             /* inputs of blocks: [L + 1, n, C] in training, else [n, C] */
    pvt_real *hidden, *rstd; /* [n, C], [n] */
    pvt_real *dx, *dhidden;  /* [n, C] */
    pvt_real *logits;        /* [logits_n] */
    int64_t logits_n;
    pvt_softmax_row *rows; /* [n], and so are the following */
    double *lse, *teacher_lse, *loss;
    int32_t *ids, *targets;
    double *host_loss; /* the host's copies: with a device apart, else the same arrays */
    int32_t *host_ids, *host_targets;
    pvt_real *cache_k, *cache_v; /* [L, B, positions, NKV, HS] */
    int64_t pos, cache_batch;    /* tokens in the cache, of that many sequences */
    bool *frozen;                /* [tensors] */
    pvt_real **grads;            /* [tensors]; without `accumulate` the layers share theirs */
    void *memory, *host_memory, *grads_memory;
    int64_t bytes, host_bytes, bytes_grads; /* host_bytes: what lies apart */
};

#define PVTI_LOGITS ((int64_t)16 << 20) /* 64 MiB of them at a time, but at least 128 rows */

static void pvti_run_layout(pvt_run *run, pvti_carver *c)
{
    const pvt_model_config *g = &run->model->config;
    const pvt_run_desc *d = &run->desc;
    int64_t n = d->max_tokens, C = g->dim, tensors = pvt_model_tensors(run->model);
    run->blocks.config = *g, run->blocks.tokens = n, run->blocks.positions = d->max_ctx,
    run->blocks.train = d->train;
    pvti_blocks_layout(&run->blocks, c);
    run->x = PVTI_CARVE(c, pvt_real, d->train ? g->layers + 1 : 1, n * C);
    run->hidden = PVTI_CARVE(c, pvt_real, n, C);
    run->rstd = PVTI_CARVE(c, pvt_real, n, 1);
    run->ids = PVTI_CARVE(c, int32_t, n, 1);
    run->host_ids = c->apart ? PVTI_CARVE_HOST(c, int32_t, n, 1) : run->ids;
    run->frozen = PVTI_CARVE_HOST(c, bool, tensors, 1);
    run->grads = PVTI_CARVE_HOST(c, pvt_real *, tensors, 1);
    if (d->cache) {
        run->cache_k = PVTI_CARVE(c, pvt_real, g->layers * d->max_batch,
                                  d->max_ctx * g->kv_heads * g->head_dim);
        run->cache_v = PVTI_CARVE(c, pvt_real, g->layers * d->max_batch,
                                  d->max_ctx * g->kv_heads * g->head_dim);
        run->logits_n = c->apart ? g->vocab : 0; /* on their way to the host */
        run->logits = PVTI_CARVE(c, pvt_real, run->logits_n, 1);
        return;
    }
    run->logits_n = PVTI_MIN(PVTI_MAX(PVTI_LOGITS, 128 * g->vocab),
                             2 * n * g->vocab); /* KL needs two of each */
    run->logits_n = PVTI_MAX(run->logits_n, 2 * g->vocab);
    run->logits = PVTI_CARVE(c, pvt_real, run->logits_n, 1);
    run->rows = PVTI_CARVE(c, pvt_softmax_row, n, 1);
    run->lse = PVTI_CARVE(c, double, n, 1);
    run->teacher_lse = PVTI_CARVE(c, double, n, 1);
    run->loss = PVTI_CARVE(c, double, n, 1);
    run->targets = PVTI_CARVE(c, int32_t, n, 1);
    run->host_loss = c->apart ? PVTI_CARVE_HOST(c, double, n, 1) : run->loss;
    run->host_targets = c->apart ? PVTI_CARVE_HOST(c, int32_t, n, 1) : run->targets;
    if (!d->train) return;
    run->dx = PVTI_CARVE(c, pvt_real, n, C);
    run->dhidden = PVTI_CARVE(c, pvt_real, n, C);
}

/* Gradients: of every tensor with `accumulate`; else the layers use the same arrays in turn. */
static void pvti_run_layout_grads(pvt_run *run, pvti_carver *c)
{
    int64_t tensors = run->desc.train ? pvt_model_tensors(run->model) : 0, i;
    pvt_real *shared[PVTI_LAYER_TENSORS];
    bool taken[PVTI_LAYER_TENSORS];
    memset(taken, 0, sizeof taken);
    for (i = 0; i < tensors; i++) {
        bool share = !run->desc.accumulate && i > 0 && i < pvti_tensor_of_last_norm(run->model);
        int64_t j = PVTI_MAX(0, i - 1) % PVTI_LAYER_TENSORS;
        pvt_real *grad;
        if (run->desc.frozen && run->desc.frozen[i]) continue;
        grad = share && taken[j] ? shared[j] : PVTI_CARVE(c, pvt_real, pvt_model_tensor(run->model, i).n, 1);
        if (share) shared[j] = grad, taken[j] = true;
        if (c->base) run->grads[i] = grad;
    }
}

/* Fills in defaults, and how many sets of activations fit; counts bytes. */
static pvt_result pvti_run_plan(pvt_ctx *ctx, const pvt_model *model, const pvt_run_desc *desc, pvt_run *run)
{
    const pvt_model_config *g = &model->config;
    pvt_run_desc *d = &run->desc;
    pvti_carver one = pvti_carver_begin(ctx, NULL, NULL), two = one, grads = one;
    int64_t limit;
    memset(run, 0, sizeof *run);
    run->ctx = ctx, run->model = model, run->blocks.ctx = ctx;
    if (desc) *d = *desc;
    if (d->max_batch == 0) d->max_batch = 1;
    if (d->max_ctx == 0) d->max_ctx = PVTI_MIN(g->ctx, 2048);
    if (d->max_batch < 1 || d->max_batch > INT32_MAX || d->max_ctx < 1 || d->max_ctx > 1 << 24 ||
        d->max_tokens < 0)
        return pvti_fail(ctx, PVT_ERR_ARGUMENT, "a run of %lld sequences of %lld tokens is not possible",
                         (long long)d->max_batch, (long long)d->max_ctx);
    if (d->cache && d->train)
        return pvti_fail(ctx, PVT_ERR_ARGUMENT, "a run can train or keep a cache, not both");
    if (d->max_tokens == 0) d->max_tokens = d->max_batch * d->max_ctx;
    d->max_tokens = PVTI_MIN(d->max_tokens, d->max_batch * d->max_ctx);
    if (d->max_tokens > INT32_MAX)
        return pvti_fail(ctx, PVT_ERR_ARGUMENT, "%lld tokens in one forward are too many",
                         (long long)d->max_tokens);
    limit = d->memory_limit > 0 ? d->memory_limit : (int64_t)2 << 30;
    run->blocks.n_acts = 1;
    pvti_run_layout(run, &one);
    if (d->train && g->layers > 1) {
        run->blocks.n_acts = 2;
        pvti_run_layout(run, &two);
        if (!two.overflow && limit > one.bytes)
            run->blocks.n_acts = PVTI_MIN(g->layers, 1 + (limit - one.bytes) / (two.bytes - one.bytes));
        else run->blocks.n_acts = 1;
    }
    one = pvti_carver_begin(ctx, NULL, NULL);
    pvti_run_layout(run, &one);
    pvti_run_layout_grads(run, &grads);
    if (one.overflow || grads.overflow)
        return pvti_fail(ctx, PVT_ERR_MEMORY, "a run of %lld tokens needs more memory than can be addressed",
                         (long long)d->max_tokens);
    run->bytes = one.bytes, run->bytes_grads = grads.bytes;
    run->host_bytes = one.host_bytes;
    return PVT_OK;
}

PVT_API void pvt_run_free(pvt_run *run)
{
    if (!run) return;
    pvt_memory_free(run->ctx, run->memory);
    pvt_memory_free(run->ctx, run->grads_memory);
    pvti_free(run->ctx, run->host_memory);
    pvti_free(run->ctx, run);
}

PVT_API int64_t pvt_run_bytes(const pvt_model *model, const pvt_run_desc *desc)
{
    pvt_run run;
    int64_t bytes;
    if (pvti_run_plan(model->ctx, model, desc, &run) != PVT_OK ||
        !pvti_add(run.bytes, run.bytes_grads, &bytes) ||
        !pvti_add(bytes, run.host_bytes + (int64_t)sizeof run, &bytes))
        return INT64_MAX;
    return bytes;
}

PVT_API pvt_result pvt_run_create(pvt_ctx *ctx, const pvt_model *model, const pvt_run_desc *desc,
                                  pvt_run **out)
{
    pvt_run plan, *run;
    pvti_carver carver;
    int64_t i, tensors = pvt_model_tensors(model);
    *out = NULL;
    if (!pvti_same_memory(ctx, model->ctx))
        return pvti_fail(ctx, PVT_ERR_MISMATCH,
                         "the model lies in the memory of another device; pvt_model_copy brings it over");
    PVTI_TRY(pvti_run_plan(ctx, model, desc, &plan));
    run = PVTI_NEW(ctx, pvt_run, 1);
    if (!run) return PVT_ERR_MEMORY;
    *run = plan;
    run->memory = pvt_memory_alloc(ctx, run->bytes);
    run->grads_memory = pvt_memory_alloc(ctx, run->bytes_grads);
    if (ctx->device) run->host_memory = pvti_alloc(ctx, run->host_bytes, 1);
    if (!run->memory || !run->grads_memory || (ctx->device && !run->host_memory)) {
        pvt_run_free(run);
        return PVT_ERR_MEMORY;
    }
    carver = pvti_carver_begin(ctx, run->memory, run->host_memory);
    pvti_run_layout(run, &carver);
    carver = pvti_carver_begin(ctx, run->grads_memory, NULL);
    pvti_run_layout_grads(run, &carver);
    for (i = 0; i < tensors; i++) run->frozen[i] = run->desc.frozen && run->desc.frozen[i];
    run->desc.frozen = run->frozen;
    pvti_blocks_rope(&run->blocks);
    *out = run;
    return PVT_OK;
}

PVT_API pvt_run_info pvt_run_get_info(const pvt_run *run)
{
    pvt_run_info info;
    info.bytes = run->bytes + run->bytes_grads + run->host_bytes + (int64_t)sizeof *run;
    info.bytes_gradients = run->bytes_grads;
    info.layers_kept = run->desc.train ? run->blocks.n_acts : 0;
    info.position = run->pos;
    return info;
}

PVT_API void pvt_run_reset(pvt_run *run) { run->pos = 0; }
PVT_API const pvt_real *pvt_run_hidden(const pvt_run *run) { return run->hidden; }

/* ---- forward ---- */

/* The set of activations that layer l uses: the last n_acts layers have their own. */
static pvti_acts *pvti_run_acts(const pvt_run *run, int64_t l)
{
    return run->blocks.acts + PVTI_MAX(0, l - (run->model->config.layers - run->blocks.n_acts));
}
static pvt_real *pvti_run_input(const pvt_run *run, int64_t l)
{
    return run->x + (run->desc.train ? l * run->desc.max_tokens * run->model->config.dim : 0);
}

static pvt_result pvti_run_check(pvt_run *run, const int32_t *ids, int64_t B, int64_t T)
{
    const pvt_run_desc *d = &run->desc;
    int64_t i, V = run->model->config.vocab;
    if (B < 1 || T < 1 || B > d->max_batch || T > d->max_ctx || B * T > d->max_tokens)
        return pvti_fail(run->ctx, PVT_ERR_ARGUMENT,
                         "forward of %lld x %lld tokens in a run made for %lld x %lld, at most %lld "
                         "at a time",
                         (long long)B, (long long)T, (long long)d->max_batch, (long long)d->max_ctx,
                         (long long)d->max_tokens);
    if (d->cache && run->pos > 0 && (B != run->cache_batch || run->pos + T > d->max_ctx))
        return pvti_fail(run->ctx, PVT_ERR_ARGUMENT,
                         "the cache holds %lld tokens of %lld sequences and has room for %lld; %lld x "
                         "%lld more do not fit",
                         (long long)run->pos, (long long)run->cache_batch, (long long)d->max_ctx,
                         (long long)B, (long long)T);
    for (i = 0; i < B * T; i++)
        if (ids[i] < 0 || ids[i] >= V)
            return pvti_fail(run->ctx, PVT_ERR_ARGUMENT,
                             "token id %lld at position %lld is outside the vocabulary of %lld; does "
                             "the tokenizer belong to the model?",
                             (long long)ids[i], (long long)i, (long long)V);
    return PVT_OK;
}

PVT_API pvt_result pvt_run_logits(pvt_run *run, int64_t first, int64_t n, pvt_real *logits)
{
    int64_t V = run->model->config.vocab, i;
    const pvt_real *hidden = run->hidden + first * run->model->config.dim;
    if (first < 0 || n < 0 || first > run->B * run->T || n > run->B * run->T - first)
        return pvti_fail(run->ctx, PVT_ERR_ARGUMENT,
                         "logits of %lld rows from %lld on: the last forward had %lld rows", (long long)n,
                         (long long)first, (long long)(run->B * run->T));
    if (!run->ctx->device) {
        pvt_weight_forward(run->ctx, logits, hidden, &run->model->head, n, false);
        return PVT_OK;
    }
    for (i = 0; i < n; i += run->logits_n / V) {
        int64_t rows = PVTI_MIN(n - i, run->logits_n / V);
        pvt_weight_forward(run->ctx, run->logits, hidden + i * run->model->config.dim, &run->model->head, rows,
                           false);
        PVTI_TRY(pvt_memory_read(run->ctx, logits + i * V, run->logits, rows * V * (int64_t)sizeof *logits));
    }
    return PVT_OK;
}

/* The host's copy of an array of the run's goes to where ops read it. */
static void pvti_run_send(pvt_run *run, void *to, const void *host, int64_t bytes)
{
    if (to != host) pvt_memory_write(run->ctx, to, host, bytes);
}

PVT_API pvt_result pvt_run_forward(pvt_run *run, const int32_t *ids, int64_t B, int64_t T, pvt_real *logits)
{
    const pvt_model *model = run->model;
    const pvt_model_config *g = &model->config;
    int64_t n, l;
    PVTI_TRY(pvti_run_check(run, ids, B, T));
    n = B * T;
    memcpy(run->host_ids, ids, (size_t)n * sizeof *ids);
    pvti_run_send(run, run->ids, run->host_ids, n * (int64_t)sizeof *ids);
    pvt_weight_lookup(run->ctx, run->x, &model->embed, run->ids, n);
    for (l = 0; l < g->layers; l++) {
        pvti_cache cache;
        if (run->desc.cache) { /* laid out at creation, so that this size fits */
            int64_t at = l * (run->desc.max_batch * run->desc.max_ctx * g->kv_heads * g->head_dim);
            cache.k = run->cache_k + at, cache.v = run->cache_v + at, cache.pos = run->pos;
        }
        pvti_block_forward(&run->blocks, &model->layers[l], pvti_run_input(run, l + 1),
                           pvti_run_input(run, l), B, T, pvti_run_acts(run, l),
                           run->desc.cache ? &cache : NULL);
    }
    pvt_rmsnorm_forward(run->ctx, run->hidden, run->rstd, pvti_run_input(run, g->layers), model->norm, n,
                        g->dim, (pvt_real)g->norm_eps);
    run->B = B, run->T = T, run->backward_done = false;
    if (run->desc.cache) run->pos += T, run->cache_batch = B;
    PVTI_TRY(pvti_device_check(run->ctx));
    return logits ? pvt_run_logits(run, 0, n, logits) : PVT_OK;
}

/* ---- loss and backward ---- */

static const pvt_loss_desc pvti_loss_default = {NULL, NULL, NULL, 0};

static pvt_result pvti_loss_check(const pvt_run *run, const pvt_loss_desc *desc)
{
    int64_t V = run->model->config.vocab, i;
    if (run->B == 0 || run->desc.cache)
        return pvti_fail(run->ctx, PVT_ERR_ARGUMENT,
                         "a loss needs a forward before it, in a run without a cache");
    for (i = 0; desc->targets && i < run->B * run->T; i++)
        if (desc->targets[i] >= V)
            return pvti_fail(run->ctx, PVT_ERR_ARGUMENT,
                             "target %lld at position %lld is outside the vocabulary of %lld",
                             (long long)desc->targets[i], (long long)i, (long long)V);
    if (!desc->teacher) return PVT_OK;
    if (!desc->teacher_hidden)
        return pvti_fail(run->ctx, PVT_ERR_ARGUMENT, "a teacher without its hidden states");
    if (!pvti_same_memory(run->ctx, desc->teacher->ctx))
        return pvti_fail(run->ctx, PVT_ERR_MISMATCH,
                         "the teacher lies in the memory of another device; pvt_model_copy brings it over");
    if (desc->teacher->config.vocab != V)
        return pvti_fail(run->ctx, PVT_ERR_MISMATCH,
                         "the teacher has a vocabulary of %lld, the student one of %lld: they cannot "
                         "be compared",
                         (long long)desc->teacher->config.vocab, (long long)V);
    return PVT_OK;
}

/* What counts: the targets as the losses want them; how many. KL without targets counts all. */
static int64_t pvti_loss_targets(pvt_run *run, const pvt_loss_desc *desc)
{
    int64_t n = run->B * run->T, count = 0, i;
    for (i = 0; i < n; i++) {
        bool last = i % run->T == run->T - 1;
        if (desc->targets) run->host_targets[i] = desc->targets[i];
        else run->host_targets[i] = desc->teacher ? 0 : last ? -1 : run->host_ids[i + 1];
        count += run->host_targets[i] >= 0;
    }
    pvti_run_send(run, run->targets, run->host_targets, n * (int64_t)sizeof *run->targets);
    return count;
}

/* Rows first … first+n−1: losses into run->loss, and with dhead logits' gradients into
   run->dhidden and dW of the head (which may be NULL). */
static void pvti_loss_chunk(pvt_run *run, const pvt_loss_desc *desc, int64_t first, int64_t n, double scale,
                            bool backward, pvt_real *dW)
{
    pvt_ctx *ctx = run->ctx;
    int64_t V = run->model->config.vocab;
    const pvt_real *hidden = run->hidden + first * run->model->config.dim;
    const int32_t *targets = run->targets + first;
    pvt_real *logits = run->logits, *teacher = logits + n * V;
    double *lse = run->lse + first, *teacher_lse = run->teacher_lse + first, *loss = run->loss + first;
    pvt_softmax_row *rows = run->rows + first;

    pvt_weight_forward(ctx, logits, hidden, &run->model->head, n, false);
    pvt_memory_zero(ctx, rows, n * (int64_t)sizeof *rows);
    if (desc->teacher) {
        pvt_softmax_update(ctx, rows, logits, NULL, n, 0, V, V);
        pvt_softmax_finish(ctx, lse, NULL, rows, NULL, n);
        pvt_weight_forward(ctx, teacher, desc->teacher_hidden + first * desc->teacher->config.dim,
                           &desc->teacher->head, n, false);
        pvt_memory_zero(ctx, rows, n * (int64_t)sizeof *rows);
        pvt_softmax_update(ctx, rows, teacher, NULL, n, 0, V, V);
        pvt_softmax_finish(ctx, teacher_lse, NULL, rows, NULL, n);
        pvt_memory_zero(ctx, loss, n * (int64_t)sizeof *loss);
        pvt_kl_forward(ctx, loss, logits, lse, teacher, teacher_lse, targets, n, V, V);
        if (backward) pvt_kl_backward(ctx, logits, lse, teacher, teacher_lse, targets, scale, n, V, V);
    } else {
        pvt_softmax_update(ctx, rows, logits, targets, n, 0, V, V);
        pvt_softmax_finish(ctx, lse, loss, rows, targets, n);
        if (backward) pvt_cross_entropy_backward(ctx, logits, lse, targets, scale, n, 0, V, V);
    }
    if (backward)
        pvt_weight_backward(ctx, run->dhidden + first * run->model->config.dim, dW, logits, hidden,
                            &run->model->head, n);
}

static pvt_result pvti_run_head(pvt_run *run, const pvt_loss_desc *desc, double *sum, int64_t *count,
                                double *per_token, bool backward, pvt_real *dW)
{
    const pvt_loss_desc *d = desc ? desc : &pvti_loss_default;
    int64_t n = run->B * run->T, rows, counted, i;
    double total = 0, scale;
    PVTI_TRY(pvti_loss_check(run, d));
    counted = pvti_loss_targets(run, d);
    scale = d->scale != 0 ? d->scale : 1.0 / (double)PVTI_MAX(1, counted);
    rows = run->logits_n / (run->model->config.vocab * (d->teacher ? 2 : 1));
    if (backward) pvti_zero(run->ctx, run->dhidden, n * run->model->config.dim);
    for (i = 0; i < n; i += rows) pvti_loss_chunk(run, d, i, PVTI_MIN(rows, n - i), scale, backward, dW);
    if (run->host_loss != run->loss)
        PVTI_TRY(pvt_memory_read(run->ctx, run->host_loss, run->loss, n * (int64_t)sizeof *run->loss));
    for (i = 0; i < n; i++) total += run->host_loss[i];
    if (per_token) memcpy(per_token, run->host_loss, (size_t)n * sizeof *per_token);
    if (sum) *sum = total;
    if (count) *count = counted;
    return PVT_OK;
}

PVT_API pvt_result pvt_run_loss(pvt_run *run, const pvt_loss_desc *desc, double *sum, int64_t *count,
                                double *per_token)
{
    return pvti_run_head(run, desc, sum, count, per_token, false, NULL);
}

PVT_API const pvt_real *pvt_run_grad(const pvt_run *run, int64_t tensor)
{
    if (!run->desc.accumulate || tensor < 0 || tensor >= pvt_model_tensors(run->model)) return NULL;
    return run->grads[tensor];
}

PVT_API void pvt_run_zero_grad(pvt_run *run)
{
    pvti_zero(run->ctx, (pvt_real *)run->grads_memory, run->bytes_grads / (int64_t)sizeof(pvt_real));
}

/* Hands tensor i's gradient over and clears it; without a sink it stays. */
static pvt_result pvti_run_hand(pvt_run *run, int64_t i, pvt_grad_fn *sink, void *user)
{
    if (!sink || !run->grads[i]) return PVT_OK;
    PVTI_TRY(sink(user, i, run->grads[i]));
    pvti_zero(run->ctx, run->grads[i], pvt_model_tensor(run->model, i).n);
    return PVT_OK;
}

/* From d(loss)/d(hidden) in run->dhidden down to the embedding. */
static pvt_result pvti_run_backward_body(pvt_run *run, pvt_grad_fn *sink, void *user)
{
    const pvt_model *model = run->model;
    const pvt_model_config *g = &model->config;
    int64_t n = run->B * run->T, last = pvti_tensor_of_last_norm(model), l, j;
    if (!g->tied) PVTI_TRY(pvti_run_hand(run, pvti_tensor_of_head(model), sink, user));
    pvti_zero(run->ctx, run->dx, n * g->dim);
    pvt_rmsnorm_backward(run->ctx, run->dx, run->grads[last], run->dhidden, pvti_run_input(run, g->layers),
                         run->rstd, model->norm, n, g->dim);
    PVTI_TRY(pvti_run_hand(run, last, sink, user));
    for (l = g->layers - 1; l >= 0; l--) {
        int64_t first = pvti_tensor_of_norm(l, 0);
        if (l < g->layers - run->blocks.n_acts)
            pvti_block_forward(&run->blocks, &model->layers[l], NULL, pvti_run_input(run, l), run->B, run->T,
                               pvti_run_acts(run, l), NULL);
        pvti_block_backward(&run->blocks, &model->layers[l], run->dx, pvti_run_input(run, l), run->B, run->T,
                            pvti_run_acts(run, l), run->grads + first);
        for (j = PVTI_LAYER_TENSORS - 1; j >= 0; j--) PVTI_TRY(pvti_run_hand(run, first + j, sink, user));
    }
    if (run->grads[0])
        pvt_embedding_backward(run->ctx, run->grads[0], run->dx, run->ids, n, g->vocab, g->dim);
    return pvti_run_hand(run, 0, sink, user);
}

PVT_API pvt_result pvt_run_backward(pvt_run *run, const pvt_loss_desc *desc, double *sum, int64_t *count,
                                    pvt_grad_fn *sink, void *user)
{
    pvt_result result;
    if (!run->desc.train || run->backward_done)
        return pvti_fail(run->ctx, PVT_ERR_ARGUMENT,
                         run->desc.train ? "backward needs a forward of its own before it"
                                         : "this run was not made with train");
    if (!sink && !run->desc.accumulate)
        return pvti_fail(run->ctx, PVT_ERR_ARGUMENT,
                         "backward without a sink needs a run made with accumulate");
    PVTI_TRY(pvti_loss_check(run, desc ? desc : &pvti_loss_default));
    run->backward_done = true;
    result = pvti_run_head(run, desc, sum, count, NULL, true,
                           run->grads[run->model->config.tied ? 0 : pvti_tensor_of_head(run->model)]);
    if (result == PVT_OK) result = pvti_run_backward_body(run, sink, user);
    if (result == PVT_OK) result = pvti_device_check(run->ctx);
    if (result != PVT_OK) pvt_run_zero_grad(run); /* what was half done is of no use */
    return result;
}
// >>load
/*  From files to a model: the sizes come from config.json, GGUF keys or llama2.c's header into one
    pvt_model_config, and from there on every tensor is held against them. The kind of file shows
    in its first bytes. Weights stay where the file has them, with three exceptions that are copied:
    codes (range-checked on the way), norms, and the rows of q and k where rotary pairs are neighbours. */

typedef struct pvti_loader {
    pvt_ctx *ctx;
    const char *path;             /* what messages call the model */
    char config[PVTI_PATH_BYTES]; /* … and the place where its sizes stand */
    pvti_source *source;
    pvt_model *model;
    bool neighbours;   /* rotary pairs are (2j, 2j+1) */
    pvt_format format; /* of quantized linears; dense: none */
    struct stat before; /* a directory's config.json when loading began */
} pvti_loader;

/* ---- config.json ---- */

/* A whole number; *out keeps its default when the key is absent or null, unless required. */
static pvt_result pvti_config_int(const pvti_loader *a, const pvti_json *j, int64_t object, const char *key,
                                  bool required, int64_t *out)
{
    int64_t node = pvti_json_find(j, object, key);
    int type = pvti_json_type(j, node);
    if (!required && (type == PVTI_JSON_NONE || type == PVTI_JSON_NULL)) return PVT_OK;
    if (pvti_json_int(j, node, out)) return PVT_OK;
    return pvti_fail(a->ctx, PVT_ERR_FORMAT, "%s: \"%s\" is %s", a->config, key,
                     type == PVTI_JSON_NONE ? "missing" : "not a whole number");
}

static pvt_result pvti_config_number(const pvti_loader *a, const pvti_json *j, int64_t object,
                                     const char *key, double *out)
{
    int64_t node = pvti_json_find(j, object, key);
    int type = pvti_json_type(j, node);
    if (type == PVTI_JSON_NONE || type == PVTI_JSON_NULL || pvti_json_number(j, node, out)) return PVT_OK;
    return pvti_fail(a->ctx, PVT_ERR_FORMAT, "%s: \"%s\" is not a number", a->config, key);
}

/* "rope_scaling", or "rope_parameters" as newer versions of transformers write it. */
static pvt_result pvti_config_rope(const pvti_loader *a, const pvti_json *j, pvt_model_config *c)
{
    int64_t node = pvti_json_find(j, 0, "rope_scaling"), type;
    char name[32];
    if (pvti_json_type(j, node) != PVTI_JSON_OBJECT) node = pvti_json_find(j, 0, "rope_parameters");
    PVTI_TRY(pvti_config_number(a, j, 0, "rope_theta", &c->rope_theta));
    if (pvti_json_type(j, node) != PVTI_JSON_OBJECT) return PVT_OK;
    PVTI_TRY(pvti_config_number(a, j, node, "rope_theta", &c->rope_theta));
    type = pvti_json_find(j, node, "rope_type");
    if (type < 0) type = pvti_json_find(j, node, "type");
    if (type < 0 || pvti_json_equals(j, type, "default")) return PVT_OK;
    if (!pvti_json_equals(j, type, "llama3")) {
        name[0] = 0;
        pvti_json_string(j, type, name, sizeof name);
        return pvti_fail(a->ctx, PVT_ERR_UNSUPPORTED,
                         "%s: rope_scaling of type \"%.31s\" is not supported; llama3 is", a->config, name);
    }
    c->rope_factor = 8, c->rope_low = 1, c->rope_high = 4, c->rope_original_ctx = 8192;
    PVTI_TRY(pvti_config_number(a, j, node, "factor", &c->rope_factor));
    PVTI_TRY(pvti_config_number(a, j, node, "low_freq_factor", &c->rope_low));
    PVTI_TRY(pvti_config_number(a, j, node, "high_freq_factor", &c->rope_high));
    return pvti_config_int(a, j, node, "original_max_position_embeddings", false, &c->rope_original_ctx);
}

static pvt_result pvti_config_quantization(pvti_loader *a, const pvti_json *j)
{
    int64_t node = pvti_json_find(j, 0, "quantization_config"), method, M = 0, B = 0, ig = 0, og = 1;
    char name[32];
    if (pvti_json_type(j, node) != PVTI_JSON_OBJECT) return PVT_OK;
    method = pvti_json_find(j, node, "quant_method");
    if (method < 0) method = pvti_json_find(j, node, "pvtune_method"); /* see pvti_export_quantization */
    if (!pvti_json_equals(j, method, "aqlm")) {
        name[0] = 0;
        pvti_json_string(j, method, name, sizeof name);
        return pvti_fail(a->ctx, PVT_ERR_UNSUPPORTED,
                         "%s: weights quantized with \"%.31s\" are not supported; aqlm is", a->config, name);
    }
    PVTI_TRY(pvti_config_int(a, j, node, "num_codebooks", true, &M));
    PVTI_TRY(pvti_config_int(a, j, node, "nbits_per_codebook", true, &B));
    PVTI_TRY(pvti_config_int(a, j, node, "in_group_size", true, &ig));
    PVTI_TRY(pvti_config_int(a, j, node, "out_group_size", false, &og));
    if (M < 1 || M > 16 || B < 1 || B > 16 || ig < 1 || ig > 64 || og < 1 || og > 64 || ig * og > 256)
        return pvti_fail(a->ctx, PVT_ERR_UNSUPPORTED,
                         "%s: quantization_config: %lld codebooks of %lld bits with groups of %lld x %lld: "
                         "1-16 codebooks of 1-16 bits and groups of at most 256 weights are supported",
                         a->config, (long long)M, (long long)B, (long long)og, (long long)ig);
    a->format.kind = PVT_FORMAT_AQLM;
    a->format.codebooks = (int)M, a->format.bits = (int)B, a->format.in_group = (int)ig,
    a->format.out_group = (int)og;
    return PVT_OK;
}

/* What would change the computation and is not implemented: said, not ignored. */
static pvt_result pvti_config_refuse(const pvti_loader *a, const pvti_json *j)
{
    static const char *const biases[] = {"attention_bias", "mlp_bias"};
    int64_t act = pvti_json_find(j, 0, "hidden_act"), i;
    double rotary = 1;
    bool on = false;
    for (i = 0; i < PVTI_COUNT(biases); i++)
        if (pvti_json_bool(j, pvti_json_find(j, 0, biases[i]), &on) && on)
            return pvti_fail(a->ctx, PVT_ERR_UNSUPPORTED, "%s: \"%s\": linears with a bias are not supported",
                             a->config, biases[i]);
    if (act >= 0 && !pvti_json_equals(j, act, "silu"))
        return pvti_fail(a->ctx, PVT_ERR_UNSUPPORTED, "%s: \"hidden_act\": only silu is supported",
                         a->config);
    PVTI_TRY(pvti_config_number(a, j, 0, "partial_rotary_factor", &rotary));
    if (rotary != 1)
        return pvti_fail(a->ctx, PVT_ERR_UNSUPPORTED,
                         "%s: \"partial_rotary_factor\" other than 1 is not supported", a->config);
    return PVT_OK;
}

static pvt_result pvti_config_read(pvti_loader *a, const pvti_json *j, pvt_model_config *c)
{
    int64_t type = pvti_json_find(j, 0, "model_type");
    char family[64];
    family[0] = 0;
    if (pvti_json_string(j, type, family, sizeof family) < 1)
        return pvti_fail(a->ctx, PVT_ERR_FORMAT,
                         "%s: \"model_type\" is missing: not the config.json of a model", a->config);
    if (strcmp(family, "llama") != 0 && strcmp(family, "mistral") != 0)
        return pvti_fail(a->ctx, PVT_ERR_UNSUPPORTED,
                         "%s: models of type \"%.63s\" are not supported; llama and mistral are", a->config,
                         family);
    snprintf(c->family, sizeof c->family, "%.15s", family);
    PVTI_TRY(pvti_config_refuse(a, j));
    PVTI_TRY(pvti_config_int(a, j, 0, "num_hidden_layers", true, &c->layers));
    PVTI_TRY(pvti_config_int(a, j, 0, "hidden_size", true, &c->dim));
    PVTI_TRY(pvti_config_int(a, j, 0, "num_attention_heads", true, &c->heads));
    PVTI_TRY(pvti_config_int(a, j, 0, "intermediate_size", true, &c->ff));
    PVTI_TRY(pvti_config_int(a, j, 0, "vocab_size", true, &c->vocab));
    /* the defaults of transformers, here and below */
    c->kv_heads = strcmp(family, "mistral") == 0 ? 8 : c->heads;
    c->head_dim = c->heads > 0 ? c->dim / c->heads : 0;
    c->ctx = 2048, c->norm_eps = 1e-6, c->rope_theta = 10000;
    c->window = strcmp(family, "mistral") == 0 && pvti_json_find(j, 0, "sliding_window") < 0 ? 4096 : 0;
    PVTI_TRY(pvti_config_int(a, j, 0, "num_key_value_heads", false, &c->kv_heads));
    PVTI_TRY(pvti_config_int(a, j, 0, "head_dim", false, &c->head_dim));
    PVTI_TRY(pvti_config_int(a, j, 0, "max_position_embeddings", false, &c->ctx));
    if (strcmp(family, "mistral") == 0)
        PVTI_TRY(pvti_config_int(a, j, 0, "sliding_window", false, &c->window));
    PVTI_TRY(pvti_config_number(a, j, 0, "rms_norm_eps", &c->norm_eps));
    pvti_json_bool(j, pvti_json_find(j, 0, "tie_word_embeddings"), &c->tied);
    PVTI_TRY(pvti_config_rope(a, j, c));
    PVTI_TRY(pvti_config_quantization(a, j));
    return pvti_config_check(a->ctx, a->config, c);
}

/* "bos_token_id", and "eos_token_id", which may be a list; ids outside the vocabulary are passed over. */
static void pvti_config_ends(const pvti_json *j, pvt_model *model)
{
    int64_t node = pvti_json_find(j, 0, "eos_token_id"), id;
    bool list = pvti_json_type(j, node) == PVTI_JSON_ARRAY;
    if (pvti_json_int(j, pvti_json_find(j, 0, "bos_token_id"), &id) && id >= 0 && id < model->config.vocab)
        model->bos = (int32_t)id;
    if (pvti_json_type(j, node) != PVTI_JSON_ARRAY && pvti_json_type(j, node) != PVTI_JSON_NUMBER) return;
    model->n_eos = 0;
    for (node = list ? pvti_json_first(j, node) : node; node >= 0; node = list ? pvti_json_next(j, node) : -1)
        if (pvti_json_int(j, node, &id) && id >= 0 && id < model->config.vocab && model->n_eos < PVTI_MAX_EOS)
            model->eos[model->n_eos++] = (int32_t)id;
}

/* ---- keys of a GGUF ---- */

/* Whether these factors are what the "llama3" rule of c makes of the frequencies, but for rounding. */
static bool pvti_rope_factors_fit(const pvt_model_config *c, const float *factors)
{
    float plain[PVTI_ROPE_MOST], scaled[PVTI_ROPE_MOST];
    int64_t j;
    pvt_rope_frequencies(plain, c->head_dim, c->rope_theta);
    memcpy(scaled, plain, sizeof scaled);
    pvt_rope_scale_llama3(scaled, c->head_dim, c->rope_factor, c->rope_low, c->rope_high,
                          c->rope_original_ctx);
    for (j = 0; j < c->head_dim / 2; j++)
        if (fabs((double)plain[j] / (double)factors[j] / (double)scaled[j] - 1) > 2e-6) return false;
    return true;
}

/* The contexts that a rule of low 1 and this high may have started from, most usual first, are tried: between
   the two wavelengths there are few factors or none, so that no context could be computed from them. */
static bool pvti_rope_factors_explain(pvt_model_config *c, const float *factors)
{
    static const double highs[] = {4, 2, 8, 16, 32};
    int64_t last = c->head_dim / 2 - 1;
    pvt_model_config rule = *c;
    int i, power;
    rule.rope_factor = (double)factors[last], rule.rope_low = 1;
    if (!(rule.rope_factor > 1 && rule.rope_factor < 1e6)) return false;
    for (i = 0; i < PVTI_COUNT(highs); i++)
        for (power = 0; power < 24; power++) {
            rule.rope_high = highs[i];
            /* 8192, 4096 … 1, 16384 … */
            rule.rope_original_ctx = (int64_t)1 << (power <= 13 ? 13 - power : power);
            if (!pvti_rope_factors_fit(&rule, factors)) continue;
            *c = rule;
            return true;
        }
    return false;
}

/* rope_freqs.weight: llama.cpp's form of Llama 3's scaled frequencies, each one's divisor. Where they
   follow the rule, the config says so, as config.json does; else they stay as they are. */
static pvt_result pvti_gguf_rope_factors(const pvti_loader *a, pvt_model_config *c,
                                         float factors[PVTI_ROPE_MOST])
{
    const pvti_tensor *t = pvti_gguf_find(&a->source->gguf, "rope_freqs.weight");
    int64_t n = c->head_dim / 2, j;
    bool ones = true;
    if (!t) return PVT_OK;
    if (t->dtype != PVT_F32 || t->rank != 1 || t->shape[0] != n)
        return pvti_fail(a->ctx, PVT_ERR_FORMAT,
                         "%s: tensor \"rope_freqs.weight\" must hold %lld numbers in F32, one per pair of "
                         "a head",
                         a->path, (long long)n);
    memcpy(factors, t->data, (size_t)n * sizeof *factors);
    for (j = 0; j < n; j++) ones = ones && factors[j] == 1;
    if (!ones && !pvti_rope_factors_explain(c, factors)) c->rope_factors = factors;
    return pvti_config_check(a->ctx, a->path, c);
}

/* factors: memory for those that the config points to, if any. */
static pvt_result pvti_gguf_config(const pvti_loader *a, pvt_model_config *c, float factors[PVTI_ROPE_MOST])
{
    const pvti_gguf *g = &a->source->gguf;
    const pvti_tensor *embed = pvti_gguf_find(g, "token_embd.weight");
    int64_t rotary, experts = 0, i;
    const struct {
        const char *key;
        int64_t *out;
        bool required;
    } ints[] = {
        {"llama.block_count", &c->layers, true},
        {"llama.embedding_length", &c->dim, true},
        {"llama.feed_forward_length", &c->ff, true},
        {"llama.attention.head_count", &c->heads, true},
        {"llama.attention.head_count_kv", &c->kv_heads, false},
        {"llama.attention.key_length", &c->head_dim, false},
        {"llama.context_length", &c->ctx, false},
        {"llama.attention.sliding_window", &c->window, false},
        {"llama.expert_count", &experts, false},
    };
    if (!pvti_gguf_equals(g, "general.architecture", "llama"))
        return pvti_fail(a->ctx, PVT_ERR_UNSUPPORTED,
                         "%s: \"general.architecture\" must be llama; others are not supported", a->path);
    c->ctx = 2048;
    for (i = 0; i < PVTI_COUNT(ints); i++) {
        if (i == 4) c->kv_heads = c->heads, c->head_dim = c->heads > 0 ? c->dim / c->heads : 0;
        if (!pvti_gguf_int(g, ints[i].key, ints[i].out) &&
            (ints[i].required || pvti_gguf_kv_find(g, ints[i].key)))
            return pvti_fail(a->ctx, PVT_ERR_FORMAT, "%s: key \"%s\" is missing or not a whole number",
                             a->path, ints[i].key);
    }
    rotary = c->head_dim;
    pvti_gguf_int(g, "llama.rope.dimension_count", &rotary);
    if (experts > 0 || rotary != c->head_dim)
        return pvti_fail(a->ctx, PVT_ERR_UNSUPPORTED, "%s: %s", a->path,
                         experts > 0
                             ? "mixtures of experts are not supported"
                             : "\"llama.rope.dimension_count\" other than the head size is not supported");
    if (pvti_gguf_kv_find(g, "llama.rope.scaling.type") &&
        !pvti_gguf_equals(g, "llama.rope.scaling.type", "none"))
        return pvti_fail(a->ctx, PVT_ERR_UNSUPPORTED,
                         "%s: scaled rotary frequencies in a GGUF are not supported; load the Hugging Face "
                         "directory of this model",
                         a->path);
    c->norm_eps = 1e-5, c->rope_theta = 10000;
    if (pvti_gguf_number(g, "llama.attention.layer_norm_rms_epsilon", &c->norm_eps) && c->norm_eps > 0 &&
        c->norm_eps < 1) {
        /* a float in the file: 1e-5, not 9.99999975e-6 */
        double tidy = (double)(int64_t)(c->norm_eps * 1e12 + 0.5) / 1e12;
        if ((float)tidy == (float)c->norm_eps) c->norm_eps = tidy;
    }
    pvti_gguf_number(g, "llama.rope.freq_base", &c->rope_theta);
    c->vocab = embed && embed->rank == 2 ? embed->shape[0] : 0;
    c->tied = !pvti_gguf_find(g, "output.weight");
    snprintf(c->family, sizeof c->family, "llama");
    PVTI_TRY(pvti_config_check(a->ctx, a->path, c));
    return pvti_gguf_rope_factors(a, c, factors);
}

static pvt_result pvti_llama2c_config(const pvti_loader *a, pvt_model_config *c)
{
    const pvti_llama2c *m = &a->source->llama2c;
    snprintf(c->family, sizeof c->family, "llama");
    c->layers = m->n_layers, c->dim = m->dim, c->heads = m->n_heads, c->kv_heads = m->n_kv_heads;
    c->head_dim = m->dim / m->n_heads, c->ff = m->hidden_dim, c->vocab = m->vocab_size, c->ctx = m->seq_len;
    c->norm_eps = 1e-5, c->rope_theta = 10000; /* not in the file: what llama2.c computes with */
    c->tied = m->shared;
    return pvti_config_check(a->ctx, a->path, c);
}

/* ---- tensors ---- */

/* Tensor i of the model in the files, with that suffix; false when there is none. */
static bool pvti_load_find(const pvti_loader *a, int64_t i, const char *suffix, char name[PVTI_NAME],
                           pvti_tensor *out)
{
    const pvti_source *s = a->source;
    const pvti_tensor *found;
    int64_t layer;
    const pvti_tensor_row *row = pvti_tensor_find_row(a->model, i, &layer);
    pvti_tensor_name(a->model, i, s->gguf.ctx != NULL, suffix, name);
    if (s->llama2c.ctx) {
        if (strcmp(suffix, ".weight") != 0) return false;
        memcpy(out, (const char *)&s->llama2c + row->llama2c, sizeof *out);
        if (layer >= 0) *out = pvti_llama2c_layer(out, layer);
        return true;
    }
    found = s->gguf.ctx ? pvti_gguf_find(&s->gguf, name) : pvti_shards_find(&s->shards, name);
    if (found) *out = *found;
    return found != NULL;
}

static void pvti_shape_text(const int64_t *shape, int rank, char out[128])
{
    int i, at = snprintf(out, 128, "[");
    for (i = 0; i < rank && at < 100; i++)
        at += snprintf(out + at, (size_t)(128 - at), "%s%lld", i ? ", " : "", (long long)shape[i]);
    snprintf(out + at, (size_t)(128 - at), "]");
}

/* Tensor i, of exactly that shape and with elements that can be decoded to numbers. */
static pvt_result pvti_load_tensor(const pvti_loader *a, int64_t i, const char *suffix, int rank,
                                   const int64_t *shape, char name[PVTI_NAME], pvti_tensor *t)
{
    const pvti_dtype *type;
    char is[128], wanted[128];
    if (!pvti_load_find(a, i, suffix, name, t))
        return pvti_fail(a->ctx, PVT_ERR_FORMAT, "%s: tensor \"%s\" is missing", a->path, name);
    if (t->rank != rank || memcmp(t->shape, shape, (size_t)rank * sizeof *shape) != 0) {
        pvti_shape_text(t->shape, t->rank, is);
        pvti_shape_text(shape, rank, wanted);
        return pvti_fail(a->ctx, PVT_ERR_MISMATCH, "%s: tensor \"%s\" is %s; %s asks for %s", a->path, name,
                         is, a->config, wanted);
    }
    type = pvti_dtype_info(t->dtype);
    if (strcmp(suffix, ".codes") != 0 && (!type || !type->decode))
        return pvti_fail(a->ctx, PVT_ERR_UNSUPPORTED,
                         "%s: tensor \"%s\": elements of type %s are not weights", a->path, name,
                         type ? type->name : "?");
    return PVT_OK;
}

static pvt_result pvti_load_values(const pvti_loader *a, int64_t i, const char *suffix, int rank,
                                   const int64_t *shape, pvt_real *out, pvt_dtype *dtype)
{
    char name[PVTI_NAME];
    pvti_tensor t;
    const pvti_dtype *type;
    PVTI_TRY(pvti_load_tensor(a, i, suffix, rank, shape, name, &t));
    type = pvti_dtype_info(t.dtype);
    if (dtype) *dtype = t.dtype;
    if (pvti_tensor_count(&t) % type->block == 0 && t.bytes) type->decode(t.data, out, t.bytes / type->bytes);
    return PVT_OK;
}

/* Two's complement in the file: v mod 2^B. Whatever is not a number of B bits, signed or not, is refused. */
static pvt_result pvti_load_codes(const pvti_loader *a, const pvti_tensor *t, const char *name,
                                  pvt_weight *out)
{
    int64_t K = (int64_t)1 << out->format.bits, n = pvti_tensor_count(t), i;
    if (t->dtype != PVT_I8 && t->dtype != PVT_I16 && t->dtype != PVT_I32)
        return pvti_fail(a->ctx, PVT_ERR_FORMAT,
                         "%s: tensor \"%s\": codes must be int8, int16 or int32, not %s", a->path, name,
                         pvti_dtype_info(t->dtype)->name);
    for (i = 0; i < n; i++) {
        int8_t byte;
        int16_t half;
        int32_t word;
        int64_t code;
        if (t->dtype == PVT_I8) memcpy(&byte, t->data + i, 1), code = byte;
        else if (t->dtype == PVT_I16) memcpy(&half, t->data + 2 * i, 2), code = half;
        else memcpy(&word, t->data + 4 * i, 4), code = word;
        if (code < -(K / 2) || code >= K)
            return pvti_fail(a->ctx, PVT_ERR_FORMAT,
                             "%s: tensor \"%s\": code %lld at %lld does not fit %d bits", a->path, name,
                             (long long)code, (long long)i, out->format.bits);
        pvti_code_set(out, i, code & (K - 1));
    }
    return PVT_OK;
}

static pvt_result pvti_load_aqlm(const pvti_loader *a, int64_t i, int64_t O, int64_t I, pvt_weight *out)
{
    const pvt_format *f = &a->format;
    int64_t og = f->out_group, ig = f->in_group;
    int64_t codes[3], books[4], scales[4] = {0, 1, 1, 1};
    char name[PVTI_NAME];
    pvti_tensor t;
    pvti_tensor_name(a->model, i, false, ".codes", name);
    if (f->kind != PVT_FORMAT_AQLM)
        return pvti_fail(a->ctx, PVT_ERR_MISMATCH,
                         "%s: tensor \"%s\" exists, but %s has no quantization_config", a->path, name,
                         a->config);
    if (O % og || I % ig)
        return pvti_fail(
            a->ctx, PVT_ERR_MISMATCH,
            "%s: groups of %lld x %lld in quantization_config do not divide the %lld x %lld weights "
            "of \"%s\"",
            a->config, (long long)og, (long long)ig, (long long)O, (long long)I, name);
    codes[0] = scales[0] = O / og, codes[1] = I / ig, codes[2] = books[0] = f->codebooks;
    books[1] = (int64_t)1 << f->bits, books[2] = og, books[3] = ig;
    PVTI_TRY(pvti_load_tensor(a, i, ".codes", 3, codes, name, &t));
    PVTI_TRY(pvti_weight_alloc(a->ctx, f, O, I, name, out));
    PVTI_TRY(pvti_load_codes(a, &t, name, out));
    PVTI_TRY(pvti_load_values(a, i, ".codebooks", 4, books, out->codebooks, NULL));
    return pvti_load_values(a, i, ".scales", 4, scales, out->scales, NULL);
}

/* The file's bytes as they are, in memory of the weight's own. With head_size ≠ 0 its rows are
   reordered from rotary pairs (2j, 2j+1) to (j, j + head_size/2), head by head. */
static pvt_result pvti_load_copy(const pvti_loader *a, const pvti_tensor *t, int64_t head_size,
                                 pvt_weight *out)
{
    int64_t O = t->shape[0], bytes = t->bytes / O, half = head_size / 2, r;
    uint8_t *data = PVTI_NEW(a->ctx, uint8_t, t->bytes);
    if (!data) return PVT_ERR_MEMORY;
    for (r = 0; r < O; r++) {
        int64_t in_head = head_size ? r % head_size : 0;
        int64_t from = head_size ? r - in_head + 2 * (in_head % half) + in_head / half : r;
        memcpy(data + r * bytes, t->data + from * bytes, (size_t)bytes);
    }
    if (pvt_weight_borrow(a->ctx, data, t->dtype, O, t->shape[1], out) != PVT_OK) {
        pvti_free(a->ctx, data);
        return PVT_ERR_FORMAT;
    }
    out->owned = true;
    return PVT_OK;
}

static pvt_result pvti_load_weight(const pvti_loader *a, int64_t i, pvt_weight *out)
{
    const pvt_model_config *c = &a->model->config;
    int64_t layer, shape[2];
    const pvti_tensor_row *row = pvti_tensor_find_row(a->model, i, &layer);
    bool rotary = a->neighbours && (row == &pvti_linears[PVTI_Q] || row == &pvti_linears[PVTI_K]);
    char name[PVTI_NAME];
    pvti_tensor t;
    shape[0] = pvti_width_of(c, row->out), shape[1] = pvti_width_of(c, row->in);
    if (pvti_load_find(a, i, ".bias", name, &t))
        return pvti_fail(a->ctx, PVT_ERR_UNSUPPORTED,
                         "%s: tensor \"%s\": linears with a bias are not supported", a->path, name);
    if (pvti_load_find(a, i, ".codes", name, &t)) return pvti_load_aqlm(a, i, shape[0], shape[1], out);
    PVTI_TRY(pvti_load_tensor(a, i, ".weight", 2, shape, name, &t));
    if (rotary) return pvti_load_copy(a, &t, c->head_dim, out);
    if ((uintptr_t)t.data % (t.dtype == PVT_F64 ? 8 : t.dtype == PVT_F32 ? 4 : 2))
        return pvti_load_copy(a, &t, 0, out);
    return pvt_weight_borrow(a->ctx, t.data, t.dtype, shape[0], shape[1], out);
}

static pvt_result pvti_load_tensors(const pvti_loader *a)
{
    pvt_model *model = a->model;
    pvt_dtype *norm_type = model->norm_types; /* in the order of the tensors */
    int64_t i;
    for (i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info info = pvt_model_tensor(model, i);
        if (info.weight) PVTI_TRY(pvti_load_weight(a, i, info.weight));
        else PVTI_TRY(pvti_load_values(a, i, ".weight", 1, &model->config.dim, info.values, norm_type++));
    }
    return pvti_model_tie(model);
}

/* ---- the three kinds of model ---- */

/* generation_config.json is carried along and knows the end tokens best; without it, fine. */
static pvt_result pvti_load_generation_config(const pvti_loader *a)
{
    char path[PVTI_PATH_BYTES];
    pvti_map map;
    pvti_json j;
    PVTI_TRY(pvti_path_join(a->ctx, path, a->path, "generation_config.json"));
    if (!pvti_path_exists(path)) return PVT_OK;
    PVTI_TRY(pvti_json_open(a->ctx, path, &map, &j));
    pvti_config_ends(&j, a->model);
    a->model->generation_config = PVTI_NEW(a->ctx, char, map.size + 1);
    a->model->generation_config_bytes = map.size;
    if (a->model->generation_config) memcpy(a->model->generation_config, map.data, (size_t)map.size);
    pvti_json_free(&j);
    pvti_map_close(a->ctx, &map);
    return a->model->generation_config ? PVT_OK : PVT_ERR_MEMORY;
}

static pvt_result pvti_load_directory(pvti_loader *a)
{
    pvt_model_config config;
    pvti_map map;
    pvti_json j;
    pvt_result result;
    memset(&config, 0, sizeof config);
    PVTI_TRY(pvti_exchange_recover(a->ctx, a->path));
    PVTI_TRY(pvti_path_join(a->ctx, a->config, a->path, "config.json"));
    if (!pvti_path_exists(a->config)) /* a save that is just now at work? */
        PVTI_TRY(pvti_exchange_recover(a->ctx, a->path));
    if (!pvti_path_exists(a->config))
        return pvti_fail(a->ctx, PVT_ERR_IO, "%s: there is no config.json in it: not a model", a->path);
    pvti_system_of(a->ctx)->stat(a->config, &a->before);
    PVTI_TRY(pvti_json_open(a->ctx, a->config, &map, &j));
    result = pvti_config_read(a, &j, &config);
    if (result == PVT_OK) result = pvti_shards_open(a->ctx, a->path, &a->source->shards);
    if (result == PVT_OK) result = pvti_model_new(a->ctx, &config, &a->model);
    if (result == PVT_OK) pvti_config_ends(&j, a->model);
    pvti_json_free(&j);
    pvti_map_close(a->ctx, &map);
    if (result != PVT_OK) return result;
    PVTI_TRY(pvti_load_tensors(a));
    return pvti_load_generation_config(a);
}

/* Whether the file's first bytes can be llama2.c's seven numbers: sizes that pvti_config_check lets pass,
   or a later version's mark. */
static bool pvti_load_is_llama2c(const uint8_t *start, int64_t bytes)
{
    const int32_t most[7] = {1 << 20, 1 << 22, 4096, 1 << 14, 1 << 14, 1 << 24, 1 << 24};
    int32_t header[7];
    int i;
    if (bytes >= 4 && memcmp(start, "24ka", 4) == 0) return true;
    if (bytes < (int64_t)sizeof header) return false;
    memcpy(header, start, sizeof header);
    for (i = 0; i < 7; i++)
        if (header[i] == 0 || header[i] > most[i] || header[i] < (i == 5 ? -most[i] : 0)) return false;
    return header[0] % header[3] == 0 && header[3] % header[4] == 0;
}

static pvt_result pvti_load_file(pvti_loader *a, const uint8_t *start, int64_t bytes, int64_t size)
{
    pvt_model_config config;
    float factors[PVTI_ROPE_MOST];
    uint64_t header = UINT64_MAX;
    memset(&config, 0, sizeof config);
    snprintf(a->config, sizeof a->config, "its header");
    a->neighbours = true;
    if (bytes >= 9) memcpy(&header, start, 8);
    /* a llama2.c model of 123 = '{' layers is no such file: its first two sizes make a larger number */
    if (header < (uint64_t)size && start[8] == '{')
        return pvti_fail(a->ctx, PVT_ERR_UNSUPPORTED,
                         "%s: is a safetensors file; name the directory that holds it and its config.json",
                         a->path);
    if (memcmp(start, "GGUF", 4) != 0 && !pvti_load_is_llama2c(start, bytes))
        return pvti_fail(a->ctx, PVT_ERR_FORMAT,
                         "%s: not a model of a kind that is known here: a Hugging Face directory "
                         "(config.json and safetensors files), a .gguf, or a llama2.c .bin",
                         a->path);
    if (memcmp(start, "GGUF", 4) == 0) {
        PVTI_TRY(pvti_gguf_open(a->ctx, a->path, &a->source->gguf));
        PVTI_TRY(pvti_gguf_config(a, &config, factors));
    } else {
        PVTI_TRY(pvti_llama2c_open(a->ctx, a->path, &a->source->llama2c));
        PVTI_TRY(pvti_llama2c_config(a, &config));
    }
    PVTI_TRY(pvti_model_new(a->ctx, &config, &a->model));
    return pvti_load_tensors(a);
}

/* ---- the tokenizer ---- */

/* Where the model's own tokenizer is: in the directory, inside the GGUF, or beside the .bin as
   tok<vocabulary>.bin or tokenizer.bin. False: nowhere. */
static bool pvti_load_find_tokenizer(const pvti_loader *a, char out[PVTI_PATH_BYTES])
{
    static const char *const names[] = {"tokenizer.json", "tokenizer.model"};
    const char *slash = strrchr(a->path, '/');
    int directory = slash ? (int)(slash + 1 - a->path) : 0, i;
    if (a->source->gguf.ctx) {
        snprintf(out, PVTI_PATH_BYTES, "%s", a->path);
        return pvti_gguf_kv_find(&a->source->gguf, "tokenizer.ggml.tokens") != NULL;
    }
    if (a->source->shards.ctx) {
        for (i = 0; i < 2; i++)
            if (pvti_path_join(a->ctx, out, a->path, names[i]) == PVT_OK && pvti_path_exists(out)) {
                snprintf(out, PVTI_PATH_BYTES, "%s", a->path);
                return true;
            }
        return false;
    }
    snprintf(out, PVTI_PATH_BYTES, "%.*stok%lld.bin", directory, a->path, (long long)a->model->config.vocab);
    if (pvti_path_exists(out)) return true;
    snprintf(out, PVTI_PATH_BYTES, "%.*stokenizer.bin", directory, a->path);
    return pvti_path_exists(out);
}

/* Vocabularies in models are often padded; in tokenizers never: more tokens than the model has
   rows, or less than half, is another model's tokenizer. */
static pvt_result pvti_load_tokenizer(const pvti_loader *a, const char *wish)
{
    char path[PVTI_PATH_BYTES];
    pvt_tokenizer *tokenizer;
    int64_t vocab, V = a->model->config.vocab;
    if (wish) snprintf(path, sizeof path, "%s", wish);
    else if (!pvti_load_find_tokenizer(a, path)) return PVT_OK;
    PVTI_TRY(pvt_tokenizer_load(a->ctx, path, &tokenizer));
    vocab = pvt_tokenizer_get_info(tokenizer).vocab;
    if (vocab > V || vocab < V / 2) {
        pvt_tokenizer_free(tokenizer);
        return pvti_fail(a->ctx, PVT_ERR_MISMATCH,
                         "%s: a tokenizer of %lld tokens does not belong to %s, whose vocabulary has %lld",
                         path, (long long)vocab, a->path, (long long)V);
    }
    pvt_model_set_tokenizer(a->model, tokenizer);
    return PVT_OK;
}

/* A save into the directory puts another config.json there: what was read may be half of each model then. */
static pvt_result pvti_load_unchanged(const pvti_loader *a)
{
    struct stat now;
    if (pvti_system_of(a->ctx)->stat(a->config, &now) == 0 && now.st_dev == a->before.st_dev &&
        now.st_ino == a->before.st_ino && now.st_size == a->before.st_size &&
        now.st_mtime == a->before.st_mtime)
        return PVT_OK;
    return pvti_fail(a->ctx, PVT_ERR_MISMATCH,
                     "%s: another model was saved there while it was loaded; load it again", a->path);
}

static pvt_result pvti_load(pvti_loader *a, const char *tokenizer)
{
    if (pvti_path_is_directory(a->path)) {
        PVTI_TRY(pvti_load_directory(a));
        PVTI_TRY(pvti_load_tokenizer(a, tokenizer));
        return pvti_load_unchanged(a);
    } else {
        pvti_map map;
        uint8_t start[28] = {0};
        int64_t size, bytes;
        PVTI_TRY(pvti_map_open(a->ctx, a->path, &map));
        size = map.size, bytes = PVTI_MIN(size, (int64_t)sizeof start);
        memcpy(start, map.data, (size_t)bytes);
        pvti_map_close(a->ctx, &map);
        PVTI_TRY(pvti_load_file(a, start, bytes, size));
    }
    return pvti_load_tokenizer(a, tokenizer);
}

PVT_API pvt_result pvt_model_load(pvt_ctx *ctx, const char *path, const pvt_load_desc *desc, pvt_model **out)
{
    pvti_loader *a;
    pvt_result result = PVT_ERR_MEMORY;
    *out = NULL;
    if (ctx->device) {
        PVTI_TRY(pvt_model_load(ctx->host, path, desc, out));
        return pvti_model_move(ctx, out);
    }
    a = PVTI_NEW(ctx, pvti_loader, 1);
    if (!a) return PVT_ERR_MEMORY;
    a->ctx = ctx, a->path = path;
    a->source = PVTI_NEW(ctx, pvti_source, 1);
    if (a->source) {
        a->source->ctx = ctx;
        result = pvti_load(a, desc ? desc->tokenizer : NULL);
    }
    if (a->model) a->model->source = a->source;
    else pvti_source_close(a->source);
    if (result == PVT_OK) *out = a->model;
    else pvt_model_free(a->model);
    pvti_free(ctx, a);
    return result;
}
// >>corpus
/*  Token ids of a text, tokenized once as a whole: contexts are cut from the ids, not the text. */

PVT_API void pvt_corpus_free(pvt_corpus *corpus)
{
    if (!corpus) return;
    if (corpus->ctx) pvti_free(corpus->ctx, corpus->ids);
    memset(corpus, 0, sizeof *corpus);
}

PVT_API pvt_result pvt_corpus_from_ids(pvt_ctx *ctx, const int32_t *ids, int64_t n, pvt_corpus *out)
{
    memset(out, 0, sizeof *out);
    if (n < 0 || (n > 0 && !ids))
        return pvti_fail(ctx, PVT_ERR_ARGUMENT, "a corpus of %lld ids at %s", (long long)n,
                         ids ? "an address" : "NULL");
    out->ids = PVTI_NEW(ctx, int32_t, PVTI_MAX(n, 1));
    if (!out->ids) return PVT_ERR_MEMORY;
    if (n > 0) memcpy(out->ids, ids, (size_t)n * sizeof *ids);
    out->n = n;
    out->ctx = ctx;
    return PVT_OK;
}

/* What unpacks a file, by bytes that no text has where they stand; NULL: not compressed. */
static const char *pvti_text_unpacker(const char *s, int64_t n)
{
    static const struct { int64_t at, bytes; const char *magic, *with; } kinds[] = {
        {0, 2, "\x1f\x8b", "gzip -d"},
        {0, 4, "\x28\xb5\x2f\xfd", "zstd -d"},
        {0, 6, "\xfd" "7zXZ", "xz -d"},
        {4, 6, "1AY&SY", "bzip2 -d"},
        {0, 4, "PK\3\4", "unzip"},
        {0, 8, "PAR1\x15\4\x15", "it is Parquet: export its column of text"},
    };
    int i;
    for (i = 0; i < PVTI_COUNT(kinds); i++)
        if (n >= kinds[i].at + kinds[i].bytes &&
            memcmp(s + kinds[i].at, kinds[i].magic, (size_t)kinds[i].bytes) == 0)
            return kinds[i].with;
    return NULL;
}

/* Refuses what is no text: its bytes would become tokens like any others. */
static pvt_result pvti_corpus_check_text(pvt_ctx *ctx, const char *name, const char *s, int64_t n)
{
    const char *with = pvti_text_unpacker(s, n);
    int64_t at, bad = 0;
    if (with)
        return pvti_fail(ctx, PVT_ERR_UNSUPPORTED, "%s: is compressed, not a text; unpack it first (%s)",
                         name, with);
    if (n > 0 && memchr(s, 0, (size_t)n))
        return pvti_fail(ctx, PVT_ERR_UNSUPPORTED,
                         "%s: holds zero bytes: no text, or one in UTF-16; UTF-8 is wanted (iconv -t UTF-8)",
                         name);
    for (at = 0; at < n;) {
        uint32_t c;
        int length = pvti_utf8_read(s + at, n - at, &c);
        bad += length == 0;
        at += length ? length : 1;
    }
    if (bad <= n / 4) return PVT_OK; /* a few bytes may be anything */
    return pvti_fail(ctx, PVT_ERR_UNSUPPORTED,
                     "%s: is not UTF-8: no text, or one in an older encoding (iconv -t UTF-8)", name);
}

/* ---- JSON Lines: one document a line, {"text": "…"}, {"content": "…"} or "…" ---- */

/* The next line that is not blank: *at moves to its first character that is no space; its length from
   there, −1: none. */
static int64_t pvti_line_next(const char *s, int64_t n, int64_t *at, int64_t *line)
{
    const char *end;
    for (++*line; *at < n && strchr(" \t\r\n", s[*at]); ++*at) *line += s[*at] == '\n';
    if (*at >= n) return -1;
    end = (const char *)memchr(s + *at, '\n', (size_t)(n - *at));
    return end ? end - (s + *at) : n - *at;
}

/* The node of a line's document; −1: neither an object with one, nor a string. */
static int64_t pvti_line_document(const pvti_json *j)
{
    int64_t node = pvti_json_find(j, 0, "text");
    if (pvti_json_type(j, 0) == PVTI_JSON_STRING) return 0;
    if (pvti_json_type(j, node) != PVTI_JSON_STRING) node = pvti_json_find(j, 0, "content");
    return pvti_json_type(j, node) == PVTI_JSON_STRING ? node : -1;
}

static pvt_result pvti_lines_refuse(pvt_ctx *ctx, const char *name, int64_t line)
{
    return pvti_fail(ctx, PVT_ERR_FORMAT,
                     "%s: line %lld is no document: it begins as JSON Lines, where every line is an object "
                     "with a \"text\" or a \"content\", or a string",
                     name, (long long)line);
}

/* Appends the documents to `out`, a blank line between two. *lines: false where the text is not JSON
   Lines. It is when its first line is an object, and then each must be a document; or when all lines are
   strings. */
static pvt_result pvti_lines_read(pvt_ctx *ctx, const char *name, const char *s, int64_t n, pvti_text *out,
                                  bool *lines)
{
    int64_t at = n >= 3 && memcmp(s, "\xef\xbb\xbf", 3) == 0 ? 3 : 0, line = 0, length;
    bool objects = false;
    for (*lines = false; (length = pvti_line_next(s, n, &at, &line)) >= 0; at += length + 1) {
        pvti_json j = {NULL, NULL, NULL, 0, 0};
        bool may = s[at] == '{' || s[at] == '"';
        pvt_result result = may ? pvti_json_parse(ctx, name, s + at, length, &j) : PVT_ERR_FORMAT;
        int64_t document = result == PVT_OK ? pvti_line_document(&j) : -1, bytes;
        if (result == PVT_ERR_MEMORY) return result;
        if (result == PVT_OK && !*lines) objects = pvti_json_type(&j, 0) == PVTI_JSON_OBJECT;
        if (document < 0) {
            pvti_json_free(&j);
            *lines = objects;
            return objects ? pvti_lines_refuse(ctx, name, line) : PVT_OK;
        }
        if (*lines) pvti_text_put(out, "\n\n", 2);
        *lines = true;
        bytes = pvti_json_string(&j, document, NULL, 0);
        if (pvti_text_reserve(out, bytes)) {
            pvti_json_string(&j, document, out->data + out->size, bytes + 1);
            out->size += bytes;
        }
        pvti_json_free(&j);
        if (out->failed) return PVT_ERR_MEMORY;
    }
    return PVT_OK;
}

/* A whole file that is one JSON array would be tokenized with its brackets. */
static pvt_result pvti_array_refuse(pvt_ctx *ctx, const char *name, const char *s, int64_t n)
{
    int64_t at = 0;
    pvti_json j;
    pvt_result result;
    while (at < n && strchr(" \t\r\n", s[at]) && s[at]) at++;
    if (at == n || s[at] != '[') return PVT_OK;
    result = pvti_json_parse(ctx, name, s, n, &j);
    pvti_json_free(&j);
    if (result != PVT_OK) return result == PVT_ERR_MEMORY ? result : PVT_OK;
    return pvti_fail(ctx, PVT_ERR_UNSUPPORTED,
                     "%s: is one JSON array; JSON Lines are wanted, a document on each line (jq -c '.[]')",
                     name);
}

/* s[0 … n−1] as the text of a file or a stream called `name`. */
static pvt_result pvti_corpus_read(pvt_ctx *ctx, const char *name, const char *s, int64_t n,
                                   const pvt_tokenizer *tokenizer, pvt_corpus *out)
{
    pvti_text documents = pvti_text_begin(ctx);
    bool lines = false; /* then the documents are the text */
    pvt_result result = pvti_corpus_check_text(ctx, name, s, n);
    if (result == PVT_OK) result = pvti_array_refuse(ctx, name, s, n);
    if (result == PVT_OK) result = pvti_lines_read(ctx, name, s, n, &documents, &lines);
    if (lines) s = documents.data, n = documents.size;
    if (result == PVT_OK) result = pvt_tokenizer_encode(tokenizer, s, n, PVT_ENCODE_BOS, &out->ids, &out->n);
    pvti_text_free(&documents);
    if (result == PVT_OK) out->ctx = tokenizer->ctx; /* whose allocator made the ids */
    return result;
}

static pvt_result pvti_corpus_tokenizer(pvt_ctx *ctx, const char *name, const pvt_tokenizer *tokenizer)
{
    if (tokenizer) return PVT_OK;
    return pvti_fail(ctx, PVT_ERR_ARGUMENT,
                     "%s cannot be read as tokens: the model came without a tokenizer; name one "
                     "(--tokenizer FILE)",
                     name);
}

PVT_API pvt_result pvt_corpus_load(pvt_ctx *ctx, const char *path, const pvt_tokenizer *tokenizer,
                                   pvt_corpus *out)
{
    pvti_map map;
    pvt_result result;
    memset(out, 0, sizeof *out);
    PVTI_TRY(pvti_corpus_tokenizer(ctx, path, tokenizer));
    PVTI_TRY(pvti_map_open_stream(ctx, path, &map));
    result = pvti_corpus_read(ctx, path, (const char *)map.data, map.size, tokenizer, out);
    pvti_map_close(ctx, &map);
    return result;
}

PVT_API pvt_result pvt_corpus_from_text(pvt_ctx *ctx, const char *text, int64_t bytes,
                                        const pvt_tokenizer *tokenizer, pvt_corpus *out)
{
    memset(out, 0, sizeof *out);
    PVTI_TRY(pvti_corpus_tokenizer(ctx, "the text", tokenizer));
    if (bytes < -1 || (!text && bytes != 0))
        return pvti_fail(ctx, PVT_ERR_ARGUMENT, "a text of %lld bytes at %s", (long long)bytes,
                         text ? "an address" : "NULL");
    if (bytes < 0) bytes = (int64_t)strlen(text);
    return pvti_corpus_read(ctx, "the text", text ? text : "", bytes, tokenizer, out);
}

// >>evaluation
/*  Perplexity: exp of the mean loss per predicted token, over windows that do not overlap, each
    from an empty context. A window of ctx tokens predicts ctx − 1. */

#define PVTI_EVAL_TOKENS 2048 /* tokens of a forward: enough for GEMM to reach its speed */

/* Losses of the windows first … first+n−1, one forward, into nll[n]. */
static pvt_result pvti_eval_windows(pvt_run *run, const pvt_corpus *corpus, int64_t T, int64_t first,
                                    int64_t n, double *per_token, double *nll)
{
    int64_t i, t, count;
    double sum;
    PVTI_TRY(pvt_run_forward(run, corpus->ids + first * T, n, T, NULL));
    PVTI_TRY(pvt_run_loss(run, NULL, &sum, &count, per_token));
    for (i = 0; i < n; i++) {
        for (nll[i] = 0, t = 0; t < T; t++) nll[i] += per_token[i * T + t];
        if (!(nll[i] - nll[i] == 0))
            return pvti_fail(run->ctx, PVT_ERR_NUMERIC,
                             "the loss of a window is not finite: there are NaN or infinite numbers in the "
                             "model's weights");
    }
    return PVT_OK;
}

static pvt_result pvti_eval_all(pvt_run *run, const pvt_corpus *corpus, int64_t batch, double *per_token,
                                double *nll, pvt_ppl *out)
{
    int64_t done = 0, n, i;
    double squares = 0, T = (double)(out->ctx - 1), windows = (double)out->windows;
    for (; done < out->windows; done += n) {
        n = PVTI_MIN(batch, out->windows - done);
        PVTI_TRY(pvti_eval_windows(run, corpus, out->ctx, done, n, per_token, nll + done));
        for (i = 0; i < n; i++) out->nll_sum += nll[done + i];
        PVTI_TRY(pvti_report(run->ctx, "eval", NULL, done + n, out->windows, "windows",
                             pvti_exp64(out->nll_sum / ((double)(done + n) * T))));
    }
    out->tokens = out->windows * (out->ctx - 1);
    out->nll = out->nll_sum / (double)out->tokens;
    for (i = 0; i < out->windows; i++) squares += (nll[i] / T - out->nll) * (nll[i] / T - out->nll);
    out->nll_stderr = out->windows > 1 ? __builtin_sqrt(squares / (windows - 1) / windows) : NAN;
    out->ppl = pvti_exp64(out->nll);
    return PVT_OK;
}

PVT_API pvt_result pvt_perplexity(pvt_ctx *ctx, const pvt_model *model, const pvt_corpus *corpus,
                                  const pvt_ppl_desc *desc, pvt_ppl *out)
{
    double start = pvti_seconds(), *per_token, *nll;
    int64_t T = desc && desc->ctx ? desc->ctx : PVTI_MIN(model->config.ctx, 512);
    int64_t first = desc ? desc->first : 0, last = desc ? desc->last : 0, all, batch;
    pvt_corpus part;
    pvt_run_desc run_desc;
    pvt_run *run = NULL;
    pvt_result result;
    memset(out, 0, sizeof *out), memset(&run_desc, 0, sizeof run_desc);
    PVTI_TRY(pvti_context_check(ctx, model, "perplexity", T));
    all = corpus->n / T;
    if (last == 0) last = all;
    if (all < 1)
        return pvti_fail(
            ctx, PVT_ERR_ARGUMENT,
            "the text has %lld tokens, shorter than one window of %lld; use a longer text or a smaller "
            "context (--ctx)",
            (long long)corpus->n, (long long)T);
    if (first < 0 || first >= last || last > all)
        return pvti_fail(ctx, PVT_ERR_ARGUMENT,
                         "windows %lld to %lld: the text has %lld windows of %lld tokens", (long long)first,
                         (long long)last, (long long)all, (long long)T);
    part = *corpus;
    part.ids += first * T;
    out->ctx = T, out->windows = last - first;
    batch = PVTI_MIN(out->windows, PVTI_MAX(1, PVTI_EVAL_TOKENS / T));
    run_desc.max_batch = batch, run_desc.max_ctx = T;
    per_token = PVTI_NEW(ctx, double, batch *T);
    nll = PVTI_NEW(ctx, double, out->windows);
    result = per_token && nll ? pvt_run_create(ctx, model, &run_desc, &run) : PVT_ERR_MEMORY;
    if (result == PVT_OK) result = pvti_eval_all(run, &part, batch, per_token, nll, out);
    if (result == PVT_OK && desc && desc->window_nll)
        memcpy(desc->window_nll, nll, (size_t)out->windows * sizeof *nll);
    pvt_run_free(run);
    pvti_free(ctx, per_token);
    pvti_free(ctx, nll);
    out->seconds = pvti_seconds() - start;
    return result;
}
// >>generation
/*  One token after the other against the cache. The choice is made in double: greedy is the
    largest logit; else softmax(logits / temperature), the smallest set of most probable tokens
    whose probabilities reach top_p, and one seeded number into their sum. Ties go to the lowest id. */

#define PVTI_PROMPT_CHUNK 256 /* tokens of the prompt that go through the model at once */

typedef struct pvti_sampler {
    pvt_real *logits;      /* [V] */
    double *p;             /* [V] */
    pvti_sort_item *order; /* [V] most probable first */
    int64_t V;
} pvti_sampler;

static int32_t pvti_sample_greedy(const pvti_sampler *s)
{
    int64_t best = 0, i;
    for (i = 1; i < s->V; i++)
        if (s->logits[i] > s->logits[best]) best = i;
    return (int32_t)best;
}

/* unit in [0, 1). exp is our own, so that equal logits give equal text everywhere. Only tokens
   with p ≥ (1 − top_p)·sum/V are sorted: all the others together have less than 1 − top_p, so
   the set is complete before they are needed. At top_p 1 the order does not matter. */
static int32_t pvti_sample(pvti_sampler *s, double temperature, double top_p, double unit)
{
    int64_t i, n = 0, kept_n = 0;
    double sum = 0, kept = 0, most = (double)s->logits[pvti_sample_greedy(s)], least;
    for (i = 0; i < s->V; i++) sum += s->p[i] = pvti_exp64(((double)s->logits[i] - most) / temperature);
    least = (1 - top_p) * sum / (double)s->V;
    for (i = 0; i < s->V; i++) {
        uint64_t bits;
        if (!(s->p[i] >= least)) continue;
        memcpy(&bits, &s->p[i], sizeof bits); /* positive doubles and their bits have the same order */
        s->order[n].key = ~bits, s->order[n++].index = i;
    }
    if (top_p < 1) pvti_sort(s->order, n, NULL, NULL);
    while (kept_n < n && (kept_n == 0 || kept < top_p * sum)) kept += s->p[s->order[kept_n++].index];
    for (i = 0; i < kept_n - 1; i++) {
        unit -= s->p[s->order[i].index] / kept;
        if (unit < 0) break;
    }
    return kept_n > 0 ? (int32_t)s->order[i].index : pvti_sample_greedy(s);
}

static pvt_result pvti_sample_check(pvt_ctx *ctx, const pvti_sampler *s)
{
    int64_t i;
    for (i = 0; i < s->V; i++)
        if (!(s->logits[i] - s->logits[i] == 0))
            return pvti_fail(ctx, PVT_ERR_NUMERIC,
                             "the logit of token %lld is not finite: there are NaN or infinite numbers in the "
                             "model's weights",
                             (long long)i);
    return PVT_OK;
}

static bool pvti_is_eos(const pvt_model *model, int32_t id)
{
    int i;
    for (i = 0; i < model->n_eos; i++)
        if (model->eos[i] == id) return true;
    return false;
}

/* The prompt in chunks; logits of its last token. */
static pvt_result pvti_generate_prompt(pvt_run *run, const int32_t *prompt, int64_t n, pvt_real *logits)
{
    int64_t i, T;
    for (i = 0; i < n; i += T) {
        T = PVTI_MIN(PVTI_PROMPT_CHUNK, n - i);
        PVTI_TRY(pvt_run_forward(run, prompt + i, 1, T, NULL));
    }
    return pvt_run_logits(run, (n - 1) % PVTI_PROMPT_CHUNK, 1, logits);
}

static pvt_result pvti_generate_tokens(pvt_run *run, const pvt_generate_desc *d, pvti_sampler *s,
                                       pvt_generated *out)
{
    const pvt_model *model = run->model;
    while (out->n < d->n) {
        PVTI_TRY(pvti_sample_check(run->ctx, s));
        double unit = pvti_random_unit(d->seed, PVTI_RANDOM_SAMPLING, (uint64_t)out->n, 0);
        int32_t id = d->temperature > 0 ? pvti_sample(s, d->temperature, d->top_p, unit)
                                        : pvti_sample_greedy(s);
        if (!d->ignore_eos && pvti_is_eos(model, id)) break;
        out->ids[out->n++] = id;
        if (d->token && d->token(d->user, id)) break;
        PVTI_TRY(pvti_report(run->ctx, "generate", NULL, out->n, d->n, "tokens", NAN));
        if (out->n < d->n) PVTI_TRY(pvt_run_forward(run, &id, 1, 1, s->logits));
    }
    return PVT_OK;
}

static pvt_result pvti_generate_all(pvt_ctx *ctx, const pvt_model *model, const int32_t *prompt,
                                    int64_t n_prompt, const pvt_generate_desc *d, pvti_sampler *s,
                                    pvt_run **run, pvt_generated *out)
{
    pvt_run_desc desc;
    double start = pvti_seconds();
    memset(&desc, 0, sizeof desc);
    desc.cache = true;
    desc.max_ctx = n_prompt + d->n;
    desc.max_tokens = PVTI_PROMPT_CHUNK;
    s->V = model->config.vocab;
    s->logits = PVTI_NEW(ctx, pvt_real, s->V);
    s->p = PVTI_NEW(ctx, double, s->V);
    s->order = PVTI_NEW(ctx, pvti_sort_item, s->V);
    out->ids = PVTI_NEW(ctx, int32_t, d->n);
    if (!s->logits || !s->p || !s->order || !out->ids) return PVT_ERR_MEMORY;
    PVTI_TRY(pvt_run_create(ctx, model, &desc, run));
    PVTI_TRY(pvti_generate_prompt(*run, prompt, n_prompt, s->logits));
    out->prompt_seconds = pvti_seconds() - start;
    start = pvti_seconds();
    PVTI_TRY(pvti_generate_tokens(*run, d, s, out));
    out->seconds = pvti_seconds() - start;
    return PVT_OK;
}

PVT_API pvt_result pvt_generate(pvt_ctx *ctx, const pvt_model *model, const int32_t *prompt, int64_t n_prompt,
                                const pvt_generate_desc *desc, pvt_generated *out)
{
    pvt_generate_desc d;
    pvti_sampler sampler;
    pvt_run *run = NULL;
    pvt_result result;
    memset(&d, 0, sizeof d), memset(out, 0, sizeof *out), memset(&sampler, 0, sizeof sampler);
    if (desc) d = *desc;
    if (d.n == 0) d.n = PVTI_MAX(1, PVTI_MIN(64, model->config.ctx - PVTI_MAX(0, n_prompt)));
    if (d.top_p == 0) d.top_p = 1;
    if (n_prompt < 1)
        return pvti_fail(ctx, PVT_ERR_ARGUMENT,
                         "generation needs a prompt of at least one token; begin with the start token");
    if (d.n < 0 || d.n > 1 << 24 || n_prompt > 1 << 24 || !(d.temperature >= 0) ||
        !(d.top_p > 0 && d.top_p <= 1))
        return pvti_fail(
            ctx, PVT_ERR_ARGUMENT,
            "generation of %lld tokens at temperature %g, top_p %g: expected a number, ≥ 0, and in (0, 1]",
            (long long)d.n, d.temperature, d.top_p);
    PVTI_TRY(pvti_context_check(ctx, model, "generation", n_prompt + d.n));
    result = pvti_generate_all(ctx, model, prompt, n_prompt, &d, &sampler, &run, out);
    pvt_run_free(run);
    pvti_free(ctx, sampler.logits);
    pvti_free(ctx, sampler.p);
    pvti_free(ctx, sampler.order);
    if (result != PVT_OK && result != PVT_ERR_CANCELLED) {
        pvti_free(ctx, out->ids);
        memset(out, 0, sizeof *out);
    }
    return result;
}
// >>save
/*  The AQLM layout of Hugging Face, or plain weights: the files of one >>exchange. */

#define PVTI_SAVE_CHUNK ((int64_t)1 << 16) /* numbers converted at a time */

/* ---- rounding ---- */

static pvt_result pvti_round_fail(pvt_ctx *ctx, pvt_dtype dtype, const char *name, int64_t i, double value)
{
    return pvti_fail(ctx, PVT_ERR_NUMERIC,
                     "tensor \"%s\": element %lld is %g, which does not fit %s (largest %.6g)", name,
                     (long long)i, value, dtype == PVT_F16 ? "fp16" : dtype == PVT_BF16 ? "bf16" : "fp32",
                     dtype == PVT_F16 ? 65504.0 : dtype == PVT_BF16 ? 3.38953e38 : 3.40282e38);
}

/* to = from in dtype (F16, BF16, F32); a value that does not fit is an error that names the tensor. */
static pvt_result pvti_round_values(pvt_ctx *ctx, pvt_dtype dtype, void *to, const pvt_real *from, int64_t n,
                                    const char *name, int64_t offset)
{
    /* from here on a number rounds to infinity */
    double limit = dtype == PVT_BF16 ? 3.3961775292304601e38 : 3.4028235677973366e38;
    int64_t i;
    if (dtype == PVT_F16) {
        i = pvti_round_f16(ctx, (uint16_t *)to, NULL, from, n);
        return i < 0 ? PVT_OK : pvti_round_fail(ctx, dtype, name, offset + i, pvti_peek(ctx, from + i));
    }
    for (i = 0; i < n; i++) {
        if (!((double)from[i] < limit && (double)from[i] > -limit))
            return pvti_round_fail(ctx, dtype, name, offset + i, (double)from[i]);
        if (dtype == PVT_BF16) ((uint16_t *)to)[i] = pvti_f32_to_bf16((float)from[i]);
        else ((float *)to)[i] = (float)from[i];
    }
    return PVT_OK;
}

/* Rows r0 … r1−1 of any weight in dtype; `rows` has room for them. */
static pvt_result pvti_round_rows(const pvt_weight *weight, pvt_dtype dtype, void *to, pvt_real *rows,
                                  int64_t r0, int64_t r1, const char *name)
{
    weight->kind->tile(weight, rows, weight->I, r0, r1, 0, weight->I);
    return pvti_round_values(weight->ctx, dtype, to, rows, (r1 - r0) * weight->I, name, r0 * weight->I);
}

/* A dense weight from a file becomes an fp16 array of its own. */
static pvt_result pvti_round_weight(pvt_ctx *ctx, pvt_weight *weight, const char *name)
{
    int64_t step = PVTI_MAX(1, PVTI_SAVE_CHUNK / weight->I), r;
    uint16_t *half = PVTI_MEMORY(ctx, uint16_t, weight->O * weight->I);
    pvt_real *rows = PVTI_MEMORY(ctx, pvt_real, step * weight->I);
    pvt_result result = half && rows ? PVT_OK : PVT_ERR_MEMORY;
    for (r = 0; r < weight->O && result == PVT_OK; r += step) {
        int64_t n = PVTI_MIN(step, weight->O - r), at = r * weight->I;
        pvt_weight some;
        result = pvt_weight_rows(weight, r, n, &some);
        if (result != PVT_OK) break;
        pvt_weight_dequantize(&some, rows);
        result = pvti_round_values(ctx, PVT_F16, half + at, rows, n * weight->I, name, at);
    }
    pvt_memory_free(ctx, rows);
    if (result != PVT_OK) {
        pvt_memory_free(ctx, half);
        return result;
    }
    r = weight->O, step = weight->I;
    pvt_weight_free(weight);
    PVTI_TRY(pvt_weight_borrow(ctx, half, PVT_F16, r, step, weight));
    weight->owned = true;
    return PVT_OK;
}

static pvt_result pvti_round_tensor(pvt_ctx *ctx, const pvt_tensor_info *t)
{
    if (t->values) {
        int64_t bad = pvti_round_f16(ctx, NULL, t->values, t->values, t->n);
        if (bad < 0) return pvti_device_check(ctx);
        return pvti_round_fail(ctx, PVT_F16, t->name, bad, pvti_peek(ctx, t->values + bad));
    }
    if (!t->weight || (t->weight->format.kind == PVT_FORMAT_DENSE && t->weight->dtype == PVT_F16)) return PVT_OK;
    if (t->weight->format.kind != PVT_FORMAT_DENSE || (t->weight->owned && t->weight->dtype == PVTI_DTYPE_REAL))
        return pvt_weight_round_f16(t->weight, t->name);
    return pvti_round_weight(ctx, t->weight, t->name);
}

PVT_API pvt_result pvt_model_round_f16(pvt_model *model)
{
    pvt_result result = PVT_OK, tied;
    for (int64_t i = 0; i < pvt_model_tensors(model) && result == PVT_OK; i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        result = pvti_round_tensor(model->ctx, &t);
    }
    tied = pvti_model_tie(model); /* in any case: a failure leaves an embedding that was replaced */
    return result != PVT_OK ? result : tied;
}

/* ---- model.safetensors ---- */

typedef enum pvti_part {
    PVTI_PART_DENSE,
    PVTI_PART_CODES,
    PVTI_PART_CODEBOOKS,
    PVTI_PART_SCALES,
    PVTI_PART_NORM
} pvti_part;
static const char *const pvti_part_suffix[] = {".weight", ".codes", ".codebooks", ".scales", ".weight"};

/* One tensor of the file: a part of one of the model's tensors. */
typedef struct pvti_export_item {
    int64_t tensor;
    pvti_part part;
    char name[PVTI_NAME];
} pvti_export_item;

typedef struct pvti_exporter {
    pvt_ctx *ctx;
    const pvt_model *model;
    pvt_save_desc desc; /* with its defaults filled in */
    pvt_format format; /* of all quantized weights; dense: there are none */
    pvti_export_item *items;
    pvti_tensor *tensors; /* as the file will list them */
    int64_t n;
    pvt_real *chunk; /* at least PVTI_SAVE_CHUNK numbers, or a row */
    float *rounded;  /* the same number of them in the file's type, at most four bytes each */
} pvti_exporter;

static void pvti_export_add(pvti_exporter *s, int64_t tensor, pvti_part part, pvt_dtype dtype, int rank,
                            int64_t a, int64_t b, int64_t c, int64_t d)
{
    pvti_export_item *item = &s->items[s->n];
    pvti_tensor *t = &s->tensors[s->n++];
    int64_t shape[4] = {a, b, c, d};
    int i;
    item->tensor = tensor, item->part = part;
    pvti_tensor_name(s->model, tensor, false, pvti_part_suffix[part], item->name);
    t->name = item->name, t->dtype = dtype, t->rank = rank;
    t->bytes = pvti_dtype_info(dtype)->bytes;
    for (i = 0; i < rank; i++) t->shape[i] = shape[i], t->bytes *= shape[i];
}

/* Lists what the file will hold. */
static pvt_result pvti_export_list(pvti_exporter *s)
{
    int64_t i, n = pvt_model_tensors(s->model), widest = PVTI_SAVE_CHUNK;
    s->items = PVTI_NEW(s->ctx, pvti_export_item, 3 * n);
    s->tensors = PVTI_NEW(s->ctx, pvti_tensor, 3 * n);
    if (!s->items || !s->tensors) return PVT_ERR_MEMORY;
    for (i = 0; i < n; i++) {
        pvt_tensor_info t = pvt_model_tensor(s->model, i);
        const pvt_format *f = t.weight ? &t.weight->format : NULL;
        if (!t.weight) {
            pvti_export_add(s, i, PVTI_PART_NORM, s->desc.dtype, 1, t.n, 1, 1, 1);
            continue;
        }
        widest = PVTI_MAX(widest, t.weight->I);
        if (!pvti_save_codes(s->model, &s->desc, &t)) {
            pvti_export_add(s, i, PVTI_PART_DENSE, s->desc.dtype, 2, t.weight->O, t.weight->I, 1, 1);
            continue;
        }
        if (s->format.kind == PVT_FORMAT_DENSE) s->format = *f;
        if (memcmp(&s->format, f, sizeof *f) != 0)
            return pvti_fail(
                s->ctx, PVT_ERR_UNSUPPORTED,
                "tensor \"%s\" has another format than those before it; the AQLM layout has one for "
                "the whole model",
                t.name);
        pvti_export_add(s, i, PVTI_PART_CODES, f->bits <= 8 ? PVT_I8 : PVT_I16, 3, t.weight->O / f->out_group,
                        t.weight->I / f->in_group, f->codebooks, 1);
        pvti_export_add(s, i, PVTI_PART_CODEBOOKS, PVT_F16, 4, f->codebooks, (int64_t)1 << f->bits,
                        f->out_group, f->in_group);
        pvti_export_add(s, i, PVTI_PART_SCALES, PVT_F16, 4, t.weight->O / f->out_group, 1, 1, 1);
    }
    s->chunk = PVTI_NEW(s->ctx, pvt_real, widest);
    s->rounded = PVTI_NEW(s->ctx, float, widest);
    return s->chunk && s->rounded ? PVT_OK : PVT_ERR_MEMORY;
}

static pvt_result pvti_export_values(pvti_exporter *s, const pvt_real *values, pvt_dtype dtype, int64_t n,
                                     const char *name, pvti_writer *w)
{
    int64_t i, step;
    for (i = 0; i < n; i += step) {
        step = PVTI_MIN(PVTI_SAVE_CHUNK, n - i);
        PVTI_TRY(pvti_round_values(s->ctx, dtype, s->rounded, values + i, step, name, i));
        PVTI_TRY(pvti_writer_put(w, s->rounded, pvti_dense_bytes(step, dtype)));
    }
    return PVT_OK;
}

/* Codes of B bits in two's complement: v ≥ 2^(B−1) is written as v − 2^B. */
static pvt_result pvti_export_codes(pvti_exporter *s, const pvt_weight *weight, int64_t n, pvti_writer *w)
{
    int64_t sign = (int64_t)1 << (weight->format.bits - 1), i, j, step;
    int8_t *bytes = (int8_t *)s->rounded;
    int16_t *words = (int16_t *)s->rounded;
    for (i = 0; i < n; i += step) {
        step = PVTI_MIN(PVTI_SAVE_CHUNK, n - i);
        for (j = 0; j < step; j++) {
            int64_t code = pvti_code_get(weight, i + j);
            code = (code ^ sign) - sign;
            if (weight->format.bits <= 8) bytes[j] = (int8_t)code;
            else words[j] = (int16_t)code;
        }
        PVTI_TRY(pvti_writer_put(w, s->rounded, step * (weight->format.bits <= 8 ? 1 : 2)));
    }
    return PVT_OK;
}

static pvt_result pvti_export_dense(pvti_exporter *s, const pvt_weight *weight, const char *name,
                                    pvti_writer *w)
{
    int64_t step = PVTI_MAX(1, PVTI_SAVE_CHUNK / weight->I), r;
    for (r = 0; r < weight->O; r += step) {
        int64_t end = PVTI_MIN(weight->O, r + step);
        PVTI_TRY(pvti_round_rows(weight, s->desc.dtype, s->rounded, s->chunk, r, end, name));
        PVTI_TRY(pvti_writer_put(w, s->rounded, pvti_dense_bytes((end - r) * weight->I, s->desc.dtype)));
    }
    return PVT_OK;
}

/* A pvti_tensor_put_fn. */
static pvt_result pvti_export_put(void *user, int64_t index, pvti_writer *w)
{
    pvti_exporter *s = (pvti_exporter *)user;
    const pvti_export_item *item = &s->items[index];
    pvt_tensor_info t = pvt_model_tensor(s->model, item->tensor);
    pvt_dtype dtype = s->tensors[index].dtype;
    int64_t n = pvti_tensor_count(&s->tensors[index]);
    switch (item->part) {
    case PVTI_PART_CODES: return pvti_export_codes(s, t.weight, n, w);
    case PVTI_PART_CODEBOOKS: return pvti_export_values(s, t.weight->codebooks, dtype, n, item->name, w);
    case PVTI_PART_SCALES: return pvti_export_values(s, t.weight->scales, dtype, n, item->name, w);
    case PVTI_PART_NORM: return pvti_export_values(s, t.values, dtype, n, item->name, w);
    default: return pvti_export_dense(s, t.weight, item->name, w);
    }
}

/* ---- config.json ---- */

static void pvti_export_ends(pvti_text *text, const pvt_model *model)
{
    int i;
    pvti_text_printf(text, "  \"bos_token_id\": ");
    pvti_text_printf(text, model->bos >= 0 ? "%d,\n" : "null,\n", model->bos);
    pvti_text_printf(text, "  \"eos_token_id\": ");
    if (model->n_eos == 0) pvti_text_printf(text, "null");
    else if (model->n_eos == 1) pvti_text_printf(text, "%d", model->eos[0]);
    else {
        for (i = 0; i < model->n_eos; i++) pvti_text_printf(text, "%s%d", i ? ", " : "[", model->eos[i]);
        pvti_text_printf(text, "]");
    }
    pvti_text_printf(text, ",\n");
}

/* A number that must not look like an integer: transformers complains about "factor": 8. */
static void pvti_export_float(pvti_text *text, double value)
{
    int64_t start = text->size, i;
    pvti_text_number(text, value, 0);
    for (i = start; i < text->size; i++)
        if (text->data[i] == '.' || text->data[i] == 'e') return;
    pvti_text_put(text, ".0", 2);
}

static void pvti_export_rope(pvti_text *text, const pvt_model_config *c)
{
    pvti_text_printf(text, "  \"rope_theta\": ");
    pvti_export_float(text, c->rope_theta);
    pvti_text_printf(text, ",\n  \"rope_scaling\": ");
    if (c->rope_factor != 0) {
        pvti_text_printf(text, "{\n    \"rope_type\": \"llama3\",\n    \"factor\": ");
        pvti_export_float(text, c->rope_factor);
        pvti_text_printf(text, ",\n    \"low_freq_factor\": ");
        pvti_export_float(text, c->rope_low);
        pvti_text_printf(text, ",\n    \"high_freq_factor\": ");
        pvti_export_float(text, c->rope_high);
        pvti_text_printf(text, ",\n    \"original_max_position_embeddings\": %lld\n  }",
                         (long long)c->rope_original_ctx);
    } else {
        pvti_text_printf(text, "null");
    }
    pvti_text_printf(text, ",\n");
}

/* Does the file hold the embedding as codes? */
static bool pvti_export_codes_embedding(const pvti_exporter *s)
{
    pvt_tensor_info t = pvt_model_tensor(s->model, 0);
    return pvti_save_codes(s->model, &s->desc, &t);
}

/*  transformers takes AQLM in linear layers only and fills an embedding of codes with random numbers.
    Where there is no "quant_method" at all it refuses; an unknown one makes it warn and load every weight
    at random. */
static void pvti_export_quantization(pvti_text *text, const pvti_exporter *s)
{
    const pvt_format *f = &s->format;
    bool ours = pvti_export_codes_embedding(s);
    int64_t i;
    if (f->kind == PVT_FORMAT_DENSE) return;
    pvti_text_printf(text, "  \"quantization_config\": {\n    \"%s\": \"aqlm\",\n",
                     ours ? "pvtune_method" : "quant_method");
    if (ours)
        pvti_text_printf(text,
                         "    \"pvtune_note\": \"the embedding is quantized, which transformers cannot load; "
                         "pvtune can, and its export --to hf writes a directory for transformers\",\n");
    pvti_text_printf(text,
                     "    \"nbits_per_codebook\": %d,\n    \"num_codebooks\": %d,\n"
                     "    \"in_group_size\": %d,\n    \"out_group_size\": %d,\n"
                     "    \"linear_weights_not_to_quantize\": [",
                     f->bits, f->codebooks, f->in_group, f->out_group);
    /* transformers 4 looks for names of weights, 5 for names of modules */
    for (i = 0; i < s->n; i++)
        if (s->items[i].part == PVTI_PART_DENSE || s->items[i].part == PVTI_PART_NORM)
            pvti_text_printf(text, "\n      \"%.*s\",\n      \"%s\",",
                             (int)(strlen(s->items[i].name) - strlen(".weight")), s->items[i].name,
                             s->items[i].name);
    /* … and for the head's even when a tied one has no tensor of its own */
    if (s->model->config.tied) pvti_text_printf(text, "\n      \"lm_head\",\n      \"lm_head.weight\"");
    else if (text->size > 0 && text->data && text->data[text->size - 1] == ',') text->size--;
    pvti_text_printf(text, "\n    ]\n  },\n");
}

static void pvti_export_config(pvti_text *text, const pvti_exporter *s)
{
    const pvt_model_config *c = &s->model->config;
    bool mistral = strcmp(c->family, "mistral") == 0 || c->window; /* llama has no window */
    pvti_text_printf(text, "{\n  \"architectures\": [\n    \"%s\"\n  ],\n  \"model_type\": \"%s\",\n",
                     mistral ? "MistralForCausalLM" : "LlamaForCausalLM", mistral ? "mistral" : "llama");
    pvti_text_printf(text,
                     "  \"vocab_size\": %lld,\n  \"hidden_size\": %lld,\n  \"intermediate_size\": %lld,\n",
                     (long long)c->vocab, (long long)c->dim, (long long)c->ff);
    pvti_text_printf(text,
                     "  \"num_hidden_layers\": %lld,\n  \"num_attention_heads\": %lld,\n  "
                     "\"num_key_value_heads\": %lld,\n",
                     (long long)c->layers, (long long)c->heads, (long long)c->kv_heads);
    pvti_text_printf(text, "  \"head_dim\": %lld,\n  \"max_position_embeddings\": %lld,\n",
                     (long long)c->head_dim, (long long)c->ctx);
    pvti_text_printf(text, "  \"hidden_act\": \"silu\",\n  \"attention_bias\": false,\n  \"mlp_bias\": "
                           "false,\n  \"rms_norm_eps\": ");
    pvti_text_number(text, c->norm_eps, 0);
    pvti_text_printf(text, ",\n");
    pvti_export_rope(text, c);
    if (mistral)
        pvti_text_printf(text, c->window ? "  \"sliding_window\": %lld,\n" : "  \"sliding_window\": null,\n",
                         (long long)c->window);
    pvti_text_printf(text, "  \"tie_word_embeddings\": %s,\n", c->tied ? "true" : "false");
    pvti_export_ends(text, s->model);
    pvti_export_quantization(text, s);
    pvti_text_printf(text, "  \"torch_dtype\": \"%s\"\n}\n",
                     s->desc.dtype == PVT_F16    ? "float16"
                     : s->desc.dtype == PVT_BF16 ? "bfloat16" : "float32");
}

/* ---- the model card ---- */

/* How a card of ours begins: YAML front matter must come first, so the mark is a comment in it. */
static const char pvti_card_mark[] =
    "---\n# written by pvtune, whose saves replace this file as long as this line stands here\n";

/* A name for a table of Markdown: without what would end the cell or the code. */
static void pvti_card_name(pvti_text *text, const char *name)
{
    for (; *name; name++)
        pvti_text_put(text, (uint8_t)*name < 32 || *name == 127 || strchr("|`<>", *name) ? "_" : name, 1);
}

static void pvti_card_facts(pvti_text *text, const pvti_exporter *s)
{
    const pvt_model_config *c = &s->model->config;
    pvt_bits bits = pvt_model_bits(s->model, &s->desc);
    char format[48];
    pvt_format_text(&s->format, format);
    pvti_text_printf(text, "| | |\n|---|---|\n");
    if (s->desc.base_model) {
        pvti_text_printf(text, "| made from | `");
        pvti_card_name(text, s->desc.base_model);
        pvti_text_printf(text, "` |\n");
    }
    pvti_text_printf(text, "| architecture | %s, %lld layers, width %lld, vocabulary %lld |\n", c->family,
                     (long long)c->layers, (long long)c->dim, (long long)c->vocab);
    pvti_text_printf(text, "| format | `%s` |\n| bits per weight of the blocks' linears | ", format);
    pvti_text_number(text, bits.linears, 4);
    if (bits.packed_linears < bits.linears) {
        pvti_text_printf(text, " (");
        pvti_text_number(text, bits.packed_linears, 4);
        pvti_text_printf(text, " if its codes of %d bits were packed)", s->format.bits);
    }
    pvti_text_printf(text, " |\n| bits per weight of the whole file | ");
    pvti_text_number(text, bits.all, 4);
    pvti_text_printf(text, " (%lld parameters in %lld bytes) |\n", (long long)bits.params,
                     (long long)bits.bytes);
}

static void pvti_card_loading(pvti_text *text, const pvti_exporter *s)
{
    bool codes = s->format.kind != PVT_FORMAT_DENSE, ours = pvti_export_codes_embedding(s);
    pvti_text_printf(text, "\n## Loading\n\n");
    if (ours)
        pvti_text_printf(text, "The embedding is quantized, and transformers' AQLM has linear layers only:\n"
                               "it refuses this directory. `pvtune export DIR --to hf -o OUT` writes one\n"
                               "that it loads, with the embedding dense. ");
    else if (codes)
        pvti_text_printf(text, "transformers, checked with 4.49 and 5.24, and aqlm 1.1.7:\n\n"
                               "    pip install transformers accelerate 'aqlm[cpu]'  # GPU: 'aqlm[gpu]'\n\n"
                               "```python\nimport torch\n"
                               "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
                               "# float32 on a CPU; transformers before 4.56 calls it torch_dtype\n"
                               "model = AutoModelForCausalLM.from_pretrained(\"DIR\", dtype=torch.float32)\n"
                               "tokenizer = AutoTokenizer.from_pretrained(\"DIR\")\n```\n\n");
    else pvti_text_printf(text, "Plain weights: transformers, and whatever else reads such directories. ");
    if (codes && !ours && s->format.bits == 8)
        pvti_text_printf(text, s->format.out_group == 1
                                   ? "On a CPU set `NUMBA_NUM_THREADS=1`: aqlm 1.1.7 adds up from several\n"
                                     "threads at once without care.\n"
                                   : "On a CPU aqlm 1.1.7 fails on groups of several rows, 256 entries.\n");
    if (codes && !ours) pvti_text_printf(text, "vLLM does not load it: it has dropped AQLM. ");
    pvti_text_printf(text, "pvtune loads it: `pvtune generate DIR -p PROMPT`.\n");
}

static void pvti_card_text(pvti_text *text, const pvti_exporter *s)
{
    pvti_text_put(text, pvti_card_mark, (int64_t)sizeof pvti_card_mark - 1);
    if (s->desc.base_model) {
        pvti_text_printf(text, "base_model: ");
        pvti_text_string(text, s->desc.base_model, (int64_t)strlen(s->desc.base_model));
        pvti_text_printf(text, "\n");
    }
    if (!pvti_export_codes_embedding(s)) pvti_text_printf(text, "library_name: transformers\n");
    pvti_text_printf(text, "pipeline_tag: text-generation\ntags:\n- pvtune\n%s---\n\n"
                           "# A language model written by pvtune\n\n",
                     s->format.kind != PVT_FORMAT_DENSE ? "- aqlm\n" : "");
    pvti_card_facts(text, s);
    if (s->desc.card) pvti_text_printf(text, "\n%s", s->desc.card);
    pvti_card_loading(text, s);
}

/* *ours: there is no file, or a card of ours. */
static pvt_result pvti_card_replaceable(pvt_ctx *ctx, const char *path, bool *ours)
{
    pvti_map map;
    *ours = !pvti_path_exists(path);
    if (*ours || pvti_path_is_directory(path)) return PVT_OK;
    PVTI_TRY(pvti_map_open(ctx, path, &map));
    *ours = map.size >= (int64_t)sizeof pvti_card_mark - 1 &&
            memcmp(map.data, pvti_card_mark, sizeof pvti_card_mark - 1) == 0;
    pvti_map_close(ctx, &map);
    return PVT_OK;
}

/* A card that is not ours stays; one of ours goes without a new one: it would describe another model. */
static pvt_result pvti_export_card(const pvti_exporter *s, pvti_exchange *ex)
{
    char path[PVTI_PATH_BYTES];
    pvti_text text = pvti_text_begin(s->ctx);
    pvt_result result;
    bool ours;
    PVTI_TRY(pvti_path_join(s->ctx, path, ex->dir, "README.md"));
    PVTI_TRY(pvti_card_replaceable(s->ctx, path, &ours));
    if (!ours) return PVT_OK;
    if (s->desc.no_card) return pvti_exchange_drop(ex, "README.md");
    pvti_card_text(&text, s);
    result = pvti_text_check(&text);
    if (result == PVT_OK) result = pvti_exchange_put(ex, "README.md", text.data, text.size);
    pvti_text_free(&text);
    return result;
}

/* ---- the directory ---- */

/* Everything that a directory holds of a model. */
static pvt_result pvti_export_files(pvti_exporter *s, pvti_exchange *ex)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    const pvt_model *model = s->model;
    pvti_text text = pvti_text_begin(s->ctx);
    pvti_writer weights;
    pvt_result result;
    PVTI_TRY(pvti_exchange_open(ex, "model.safetensors", &weights));
    PVTI_TRY(pvti_safetensors_write_to(&weights, s->tensors, s->n, metadata, pvti_export_put, s));
    pvti_export_config(&text, s);
    result = pvti_text_check(&text);
    if (result == PVT_OK) result = pvti_exchange_put(ex, "config.json", text.data, text.size);
    pvti_text_free(&text);
    if (result == PVT_OK && model->tokenizer) result = pvti_tokenizer_put(model->tokenizer, ex);
    if (result == PVT_OK) result = pvti_export_card(s, ex);
    if (result == PVT_OK && model->generation_config)
        result = pvti_exchange_put(ex, "generation_config.json", model->generation_config,
                                   model->generation_config_bytes);
    return result;
}

static pvt_result pvti_export_directory(pvti_exporter *s, const char *dir, bool overwrite, pvti_exchange *ex)
{
    PVTI_TRY(pvti_export_list(s));
    PVTI_TRY(pvti_directory_create(s->ctx, dir));
    PVTI_TRY(pvti_exchange_begin(s->ctx, dir, overwrite, ex));
    PVTI_TRY(pvti_export_files(s, ex));
    return pvti_exchange_commit(ex, PVTI_SAVED_MODEL | PVTI_SAVED_TOKENIZER);
}

PVT_API pvt_result pvt_model_save(const pvt_model *model, const char *dir, const pvt_save_desc *desc)
{
    pvti_exporter saver;
    pvti_exchange exchange;
    pvt_result result;
    if (model->ctx->device) {
        pvt_model *host;
        PVTI_TRY(pvti_model_copy_as(model->ctx->host, model, pvti_weight_take, &host));
        result = pvt_model_save(host, dir, desc);
        pvt_model_free(host);
        return result;
    }
    if (model->config.rope_factors)
        return pvti_fail(model->ctx, PVT_ERR_UNSUPPORTED,
                         "%s: this model's rotary frequencies have factors that follow no rule which "
                         "config.json knows (rope_freqs.weight of its GGUF): saved so, they would be lost",
                         dir);
    memset(&saver, 0, sizeof saver);
    memset(&exchange, 0, sizeof exchange);
    saver.ctx = model->ctx;
    saver.model = model;
    if (desc) saver.desc = *desc;
    if (!saver.desc.dtype) saver.desc.dtype = PVT_F16;
    if (saver.desc.dtype > PVT_BF16)
        result = pvti_fail(model->ctx, PVT_ERR_ARGUMENT, "a model is saved in fp16, bf16 or fp32, not as %s",
                           pvti_dtype_info(saver.desc.dtype) ? pvti_dtype_info(saver.desc.dtype)->name
                                                             : "that");
    else result = pvti_export_directory(&saver, dir, saver.desc.overwrite, &exchange);
    pvti_exchange_end(&exchange);
    pvti_free(model->ctx, saver.items);
    pvti_free(model->ctx, saver.tensors);
    pvti_free(model->ctx, saver.chunk);
    pvti_free(model->ctx, saver.rounded);
    return result;
}
#if PVTUNE_LAYER >= 2
// >>quantize
/* A fingerprint (not cryptographic): 64-bit words, multiplied and mixed. */
static uint64_t pvti_hash(const void *data, int64_t bytes, uint64_t hash)
{
    const uint8_t *at = (const uint8_t *)data;
    uint64_t word;
    for (; bytes >= 8; bytes -= 8, at += 8) {
        memcpy(&word, at, 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    for (; bytes > 0; bytes--, at++) hash = (hash ^ *at) * 0x100000001b3u;
    return pvti_mix(hash);
}

/* *hash goes on over an array in the context's memory. */
static pvt_result pvti_hash_memory(pvt_ctx *ctx, const void *data, int64_t bytes, uint64_t *hash)
{
    void *copy = NULL;
    pvt_result result = PVT_OK;
    if (ctx->device) {
        copy = pvti_alloc(ctx, bytes, 1);
        result = copy ? pvt_memory_read(ctx, copy, data, bytes) : PVT_ERR_MEMORY;
        data = copy;
    }
    if (result == PVT_OK) *hash = pvti_hash(data, bytes, *hash);
    pvti_free(ctx, copy);
    return result;
}

static pvt_result pvti_model_hash(const pvt_model *model, uint64_t *out)
{
    const pvt_model_config *c = &model->config;
    double shape[14] = {(double)c->layers,   (double)c->dim,
                        (double)c->heads,    (double)c->kv_heads,
                        (double)c->head_dim, (double)c->ff,
                        (double)c->window,   c->tied ? 1.0 : 0.0,
                        c->norm_eps,         c->rope_theta,
                        c->rope_factor,      c->rope_low,
                        c->rope_high,        (double)c->rope_original_ctx};
    uint64_t hash = pvti_hash(shape, sizeof shape, 0);
    int64_t i, tensors = pvt_model_tensors(model);
    for (i = 0; i < tensors; i++) {
        pvt_tensor_info info = pvt_model_tensor(model, i);
        pvt_array arrays[PVT_MAX_ARRAYS];
        int n, k;
        hash = pvti_hash(info.name, (int64_t)strlen(info.name), hash);
        if (!info.weight) {
            PVTI_TRY(pvti_hash_memory(model->ctx, info.values, info.n * (int64_t)sizeof(pvt_real), &hash));
            continue;
        }
        n = pvt_weight_arrays(info.weight, arrays);
        for (k = 1; k <= n; k++) /* codes, which come first, are the last here: so a checkpoint has it */
            PVTI_TRY(pvti_hash_memory(model->ctx, arrays[k % n].data, arrays[k % n].bytes, &hash));
    }
    *out = hash;
    return PVT_OK;
}

/*  Calibration of a model (AQLM, 2401.06118): block after block, on the inputs that the already
    quantized blocks before it produce. Per block: one pass of the original block over all
    samples gives its outputs (the target) and XᵀX of its four kinds of inputs; each linear is fit
    (section fit); then the block's continuous parameters are tuned towards the target; then the
    quantized block makes the next block's inputs. */

/* Which input each linear reads. */
enum { PVTI_IN_A, PVTI_IN_ATT, PVTI_IN_M, PVTI_IN_H, PVTI_INPUTS };
static const int pvti_linear_input[PVTI_LINEARS] = {PVTI_IN_A, PVTI_IN_A, PVTI_IN_A, PVTI_IN_ATT,
                                                    PVTI_IN_M, PVTI_IN_M, PVTI_IN_H};

/* What must agree for a block of another run to be this run's, as text by name. */
typedef struct pvti_quantizer_option {
    const char *name;
    char value[200];
} pvti_quantizer_option;
enum { PVTI_QUANTIZER_OPTIONS = 11 };

typedef struct pvti_quantizer {
    pvt_ctx *ctx;
    pvt_model *model;
    pvt_quantize_desc desc;
    pvti_blocks blocks;
    int64_t samples, T, C, per_chunk; /* per_chunk: sequences in one forward */
    pvt_real *x, *y;                  /* [samples·T, C]: the block's inputs; its original outputs */
    pvt_real *out, *dout;             /* [chunk tokens, C] */
    pvt_real *W;                      /* the largest linear, dense */
    pvt_real *H[PVTI_INPUTS], *part;  /* [I, I]; one chunk's share */
    pvt_real *dW[PVTI_LAYER_TENSORS]; /* gradients: norms, then linears */
    int64_t done, total;              /* weights */
    pvt_fit_stats fits[PVTI_LINEARS]; /* of the block at work */
    int n_fits;
    pvti_quantizer_option options[PVTI_QUANTIZER_OPTIONS]; /* with a checkpoint */
} pvti_quantizer;

static bool pvti_name_skipped(const char *patterns, const char *name)
{
    while (patterns && *patterns) {
        size_t n = strcspn(patterns, ",");
        const char *at;
        for (at = name; n && *at; at++)
            if (strncmp(at, patterns, n) == 0) return true;
        patterns += n + (patterns[n] == ',');
    }
    return false;
}

/* Does this calibration turn that tensor into codes? */
static bool pvti_quantize_wants(const pvt_model *model, const pvt_quantize_desc *d, const pvt_tensor_info *t)
{
    if (t->linear) return !pvti_name_skipped(d->skip, t->name);
    if (t->weight == &model->embed) return d->embedding || (d->head && model->config.tied);
    return t->weight && d->head;
}

static int64_t pvti_input_width(const pvti_quantizer *z, int input)
{
    const pvt_model_config *c = &z->model->config;
    return input == PVTI_IN_ATT ? c->heads * c->head_dim : input == PVTI_IN_H ? c->ff : c->dim;
}

typedef struct pvti_share_args {
    pvt_real *H;
    const pvt_real *part;
    int64_t I;
    pvt_real factor;
    bool mirror;
} pvti_share_args;

/* H += factor · part in the upper triangle; or, to end, the lower one from the upper. */
static void pvti_share_task(void *arg, int64_t r, int worker)
{
    const pvti_share_args *a = (const pvti_share_args *)arg;
    int64_t c;
    (void)worker;
    if (a->mirror)
        for (c = 0; c < r; c++) a->H[r * a->I + c] = a->H[c * a->I + r];
    else
        for (c = r; c < a->I; c++) a->H[r * a->I + c] += a->factor * a->part[r * a->I + c];
}

/* H += XᵀX/total for n rows of inputs. Only the upper triangle is computed, in bands of columns. */
static void pvti_quantizer_gram(const pvti_quantizer *z, int input, const pvt_real *X, int64_t n)
{
    const int64_t band = 384;
    int64_t I = pvti_input_width(z, input), c;
    pvti_share_args a;
    for (c = 0; c < I; c += band) {
        int64_t width = PVTI_MIN(band, I - c);
        pvti_gemm(z->ctx, z->part + c, I, pvti_cols(X, I), pvti_rows(X + c, I), c + width, width, n, false);
    }
    a.H = z->H[input], a.part = z->part, a.I = I, a.factor = (pvt_real)(1.0 / (double)(z->samples * z->T)),
    a.mirror = false;
    pvti_parallel(z->ctx, I, pvti_share_task, &a);
}

/* The original block over all samples: outputs to z->y, inputs' XᵀX to z->H. */
static pvt_result pvti_quantizer_observe(pvti_quantizer *z, const pvti_layer *layer)
{
    int64_t s, I;
    int i;
    pvti_share_args a;
    for (i = 0; i < PVTI_INPUTS; i++) I = pvti_input_width(z, i), pvti_zero(z->ctx, z->H[i], I * I);
    for (s = 0; s < z->samples; s += z->per_chunk) {
        int64_t B = PVTI_MIN(z->per_chunk, z->samples - s), at = s * z->T * z->C;
        pvti_acts *acts = &z->blocks.acts[0];
        pvti_block_forward(&z->blocks, layer, z->y + at, z->x + at, B, z->T, acts, NULL);
        pvti_quantizer_gram(z, PVTI_IN_A, acts->a, B * z->T);
        pvti_quantizer_gram(z, PVTI_IN_ATT, acts->att, B * z->T);
        pvti_quantizer_gram(z, PVTI_IN_M, acts->m, B * z->T);
        pvti_quantizer_gram(z, PVTI_IN_H, acts->h, B * z->T);
        PVTI_TRY(pvti_report(z->ctx, "observe", NULL, s + B, z->samples, "samples", NAN));
    }
    for (i = 0; i < PVTI_INPUTS; i++) {
        a.H = z->H[i], a.I = pvti_input_width(z, i), a.mirror = true;
        pvti_parallel(z->ctx, a.I, pvti_share_task, &a);
    }
    return PVT_OK;
}

static void pvti_quantizer_tensor_name(const pvti_quantizer *z, int64_t l, int j, char name[96])
{
    snprintf(name, 96, "%s", pvt_model_tensor(z->model, pvti_tensor_of_norm(l, 0) + PVTI_NORMS + j).name);
}

/* One weight more is done. */
static pvt_result pvti_quantizer_tell(pvti_quantizer *z, const char *name, const pvt_fit_stats *stats)
{
    z->done++;
    if (z->desc.layer) z->desc.layer(z->desc.layer_user, name, stats);
    return pvti_report(z->ctx, "quantize", name, z->done, z->total, "weights", stats->error);
}

/* Fits one matrix and puts it in place of the old one; H may be NULL. */
static pvt_result pvti_quantizer_fit(pvti_quantizer *z, pvt_weight *weight, const char *name, uint64_t stream,
                                     const pvt_real *H)
{
    pvt_fit_desc fit = z->desc.fit;
    pvt_fit_stats stats;
    pvt_weight fitted;
    fit.name = name, fit.stream = stream;
    pvt_weight_dequantize(weight, z->W);
    PVTI_TRY(pvt_weight_fit(z->ctx, z->W, weight->O, weight->I, H, &z->desc.format, &fit, &stats, &fitted));
    pvt_weight_free(weight);
    *weight = fitted;
    if (weight == &z->model->embed) PVTI_TRY(pvti_model_tie(z->model)); /* before a callback uses the model */
    z->fits[z->n_fits++] = stats;
    return pvti_quantizer_tell(z, name, &stats);
}

/* From 1 at t = 0 to 0 at t = 1. */
static double pvti_half_cosine(double t)
{
    double sine, cosine;
    pvti_sincos(3.14159265358979323846 * t, &sine, &cosine);
    return 0.5 * (1 + cosine);
}

/* Block fine-tuning: Adam on codebooks, scales and norms towards z->y (mean squared error), the
   learning rate falling to zero along half a cosine over all steps. */
static pvt_result pvti_quantizer_finetune_steps(pvti_quantizer *z, pvti_layer *layer, pvt_pv *pv,
                                                const int *handles)
{
    int64_t chunks = (z->samples + z->per_chunk - 1) / z->per_chunk, steps = chunks * z->desc.finetune_epochs,
            step, n;
    pvt_real *grads[PVTI_LAYER_TENSORS];
    int j;
    for (step = 0; step < steps; step++) {
        int64_t s = step % chunks * z->per_chunk, B = PVTI_MIN(z->per_chunk, z->samples - s),
                at = s * z->T * z->C;
        n = B * z->T * z->C;
        for (j = 0; j < PVTI_LAYER_TENSORS; j++) {
            grads[j] = handles[j] >= 0 ? z->dW[j] : NULL;
            if (grads[j])
                pvti_zero(z->ctx, grads[j],
                          j < PVTI_NORMS ? z->C
                                         : layer->linear[j - PVTI_NORMS].O * layer->linear[j - PVTI_NORMS].I);
        }
        pvti_block_forward(&z->blocks, layer, z->out, z->x + at, B, z->T, &z->blocks.acts[0], NULL);
        pvti_zero(z->ctx, z->dout, n);
        pvt_mse_backward(z->ctx, z->dout, z->out, z->y + at, 1, n);
        pvti_block_backward(&z->blocks, layer, z->dout, z->x + at, B, z->T, &z->blocks.acts[0], grads);
        PVTI_TRY(pvt_pv_begin(pv, pvti_half_cosine((double)step / (double)steps)));
        for (j = 0; j < PVTI_LAYER_TENSORS; j++)
            if (handles[j] >= 0) PVTI_TRY(pvt_pv_apply(pv, handles[j], grads[j]));
        PVTI_TRY(pvt_pv_end(pv, NULL));
        PVTI_TRY(pvti_report(z->ctx, "finetune", NULL, step + 1, steps, "steps", NAN));
    }
    return PVT_OK;
}

static pvt_result pvti_quantizer_finetune(pvti_quantizer *z, pvti_layer *layer, int64_t l)
{
    pvt_pv_desc desc;
    pvt_pv *pv;
    pvt_result result;
    int handles[PVTI_LAYER_TENSORS], j;
    char name[96];
    memset(&desc, 0, sizeof desc);
    desc.strategy = PVT_STRATEGY_CONTINUOUS;
    desc.values.lr = z->desc.finetune_lr, desc.values.beta1 = 0.9, desc.values.beta2 = 0.95;
    PVTI_TRY(pvt_pv_create(z->ctx, &desc, &pv));
    result = PVT_OK;
    for (j = 0; j < PVTI_LAYER_TENSORS && result == PVT_OK; j++) {
        handles[j] = -1;
        if (j < PVTI_NORMS) {
            result = pvt_pv_add_param(pv, layer->norm[j], z->C, "norm", &handles[j]);
        } else if (layer->linear[j - PVTI_NORMS].format.kind != PVT_FORMAT_DENSE) {
            pvti_quantizer_tensor_name(z, l, j - PVTI_NORMS, name);
            result = pvt_pv_add_weight(pv, &layer->linear[j - PVTI_NORMS], name, &handles[j]);
        }
    }
    if (result == PVT_OK) result = pvti_quantizer_finetune_steps(z, layer, pv, handles);
    pvt_pv_free(pv);
    return result;
}

/* The values as the file will hold them, before anything is measured with them. */
static pvt_result pvti_quantizer_round(pvti_quantizer *z, pvti_layer *layer, int64_t l)
{
    char name[96];
    int64_t k;
    int j;
    for (j = 0; j < PVTI_LINEARS; j++) {
        if (layer->linear[j].format.kind == PVT_FORMAT_DENSE) continue;
        pvti_quantizer_tensor_name(z, l, j, name);
        PVTI_TRY(pvt_weight_round_f16(&layer->linear[j], name));
    }
    for (j = 0; j < PVTI_NORMS; j++)
        for (k = 0; k < z->C; k++)
            layer->norm[j][k] = (pvt_real)pvti_f16_to_f32(pvti_f32_to_f16((float)layer->norm[j][k]));
    return PVT_OK;
}

/* ---- checkpoints: a finished block in a file of its own ---- */

/* What a file holds: the codes and values of the weights that have codes, and norms. */
typedef struct pvti_quantizer_item {
    char file[32];
    int n_weights, n_norms;
    pvt_weight *weights[PVTI_LINEARS];
    bool fitted[PVTI_LINEARS];         /* in this run; else its codes are older and were fine-tuned only */
    char names[PVTI_LINEARS][96], norm_names[PVTI_NORMS][96];
    pvt_real *norms[PVTI_NORMS];       /* [C] */
} pvti_quantizer_item;

enum { PVTI_QUANTIZER_ARRAYS = (int)PVTI_LINEARS * (int)PVT_MAX_ARRAYS + (int)PVTI_NORMS + 1 };

typedef struct pvti_quantizer_arrays {
    pvti_tensor tensors[PVTI_QUANTIZER_ARRAYS];
    char names[PVTI_QUANTIZER_ARRAYS][128];
    int64_t n;
} pvti_quantizer_arrays;

static pvti_quantizer_item pvti_quantizer_block_item(pvti_quantizer *z, pvti_layer *layer, int64_t l)
{
    pvti_quantizer_item item;
    int j;
    memset(&item, 0, sizeof item);
    snprintf(item.file, sizeof item.file, "quantize-%05d.safetensors", (int)l);
    for (j = 0; j < PVTI_LINEARS; j++) {
        int n = item.n_weights;
        pvti_quantizer_tensor_name(z, l, j, item.names[n]);
        item.fitted[n] = !pvti_name_skipped(z->desc.skip, item.names[n]);
        if (!item.fitted[n] && layer->linear[j].format.kind == PVT_FORMAT_DENSE) continue;
        item.weights[item.n_weights++] = &layer->linear[j];
    }
    for (j = 0; j < PVTI_NORMS; j++) {
        item.norms[item.n_norms++] = layer->norm[j];
        memcpy(item.norm_names[j], pvt_model_tensor(z->model, pvti_tensor_of_norm(l, j)).name,
               sizeof item.norm_names[j]);
    }
    return item;
}

static void pvti_quantizer_array(pvti_quantizer_arrays *a, const char *name, pvt_dtype dtype, int64_t n,
                                 const void *data)
{
    pvti_tensor *t = &a->tensors[a->n];
    snprintf(a->names[a->n], sizeof a->names[0], "%s", name);
    memset(t, 0, sizeof *t);
    t->name = a->names[a->n++];
    t->dtype = dtype, t->rank = 1, t->shape[0] = n, t->bytes = n * pvti_dtype_info(dtype)->bytes;
    t->data = (const uint8_t *)data;
}

/* The item's arrays, where they are in memory; fits: [n_weights][4] of numbers about them. */
static void pvti_quantizer_describe(const pvti_quantizer *z, const pvti_quantizer_item *item,
                                    double (*fits)[4], pvti_quantizer_arrays *a)
{
    int i, k, j;
    a->n = 0;
    for (i = 0; i < item->n_weights; i++) {
        pvt_array arrays[PVT_MAX_ARRAYS];
        int n = pvt_weight_arrays(item->weights[i], arrays);
        for (k = 0; k < n; k++) {
            char name[128];
            pvti_tensor *t = &a->tensors[a->n];
            snprintf(name, sizeof name, "%s.%s", item->names[i], arrays[k].name);
            pvti_quantizer_array(a, name, arrays[k].dtype, 0, arrays[k].data);
            t->rank = arrays[k].rank, t->bytes = arrays[k].bytes;
            for (j = 0; j < t->rank; j++) t->shape[j] = arrays[k].shape[j];
        }
    }
    for (i = 0; i < item->n_norms; i++)
        pvti_quantizer_array(a, item->norm_names[i], PVTI_DTYPE_REAL, z->C, item->norms[i]);
    if (item->n_weights) pvti_quantizer_array(a, "fit", PVT_F64, 4 * (int64_t)item->n_weights, fits);
}

/* After pvti_quantizer_check, before anything is changed. */
static pvt_result pvti_quantizer_read_options(pvti_quantizer *z, const pvt_corpus *corpus)
{
    static const char *const names[PVTI_QUANTIZER_OPTIONS] = {
        "pvtune", "precision",          "format", "samples", "fit",  "fine-tuning",
        "skip",   "embedding and head", "seed",   "text",    "model"};
    const pvt_quantize_desc *d = &z->desc;
    pvt_fit_desc fit = pvti_fit_resolve(&d->fit);
    const char *skip = d->skip ? d->skip : "";
    char number[2][48];
    uint64_t hash;
    int i;
    PVTI_TRY(pvti_model_hash(z->model, &hash));
    for (i = 0; i < PVTI_QUANTIZER_OPTIONS; i++) z->options[i].name = names[i];
    snprintf(z->options[0].value, 200, "quantize 1 of version %d", PVT_VERSION);
    snprintf(z->options[1].value, 200, "%d bytes, products %s", (int)sizeof(pvt_real),
             z->ctx->compute_bf16 ? "bf16" : "full");
    pvt_format_text(&d->format, z->options[2].value);
    snprintf(z->options[3].value, 200, "%lld of %lld tokens", (long long)z->samples, (long long)z->T);
    pvti_number_text(fit.tolerance, 0, number[0]), pvti_number_text(fit.target, 0, number[1]);
    snprintf(z->options[4].value, 200, "epochs %d tolerance %s target %s cg_steps %d kmeans_steps %d beam %d",
             fit.epochs, number[0], number[1], fit.cg_steps, fit.kmeans_steps, fit.beam);
    pvti_number_text(d->finetune_lr, 0, number[0]);
    snprintf(z->options[5].value, 200, "epochs %d lr %s", PVTI_MAX(d->finetune_epochs, 0), number[0]);
    snprintf(z->options[6].value, 200, "%.150s, hash %016llx", skip,
             (unsigned long long)pvti_hash(skip, (int64_t)strlen(skip), 0));
    snprintf(z->options[7].value, 200, "embedding %d head %d", d->embedding, d->head);
    snprintf(z->options[8].value, 200, "%llu", (unsigned long long)z->ctx->seed);
    snprintf(z->options[9].value, 200, "%lld tokens, hash %016llx", (long long)corpus->n,
             (unsigned long long)pvti_hash(corpus->ids, corpus->n * (int64_t)sizeof *corpus->ids, 0));
    snprintf(z->options[10].value, 200, "hash %016llx", (unsigned long long)hash);
    return PVT_OK;
}

static pvt_result pvti_quantizer_store(pvti_quantizer *z, const pvti_quantizer_item *item)
{
    pvti_quantizer_arrays arrays;
    const char *metadata[2 * PVTI_QUANTIZER_OPTIONS + 1];
    char path[PVTI_PATH_BYTES];
    double fits[PVTI_LINEARS][4];
    int i, fit = 0;
    memset(fits, 0, sizeof fits);
    for (i = 0; i < item->n_weights; i++) {
        const pvt_fit_stats *s = &z->fits[fit];
        if (!item->fitted[i]) continue;
        fits[i][0] = s->error, fits[i][1] = s->error_start, fits[i][2] = s->epochs, fits[i][3] = s->seconds;
        fit++;
    }
    for (i = 0; i < PVTI_QUANTIZER_OPTIONS; i++)
        metadata[2 * i] = z->options[i].name, metadata[2 * i + 1] = z->options[i].value;
    metadata[2 * i] = NULL;
    PVTI_TRY(pvti_path_join(z->ctx, path, z->desc.checkpoint, item->file));
    pvti_quantizer_describe(z, item, fits, &arrays);
    return pvti_safetensors_write(z->ctx, path, arrays.tensors, arrays.n, metadata);
}

static pvt_result pvti_quantizer_compare_options(const pvti_quantizer *z, const pvti_safetensors *st,
                                                 const char *path)
{
    char text[200];
    int i;
    for (i = 0; i < PVTI_QUANTIZER_OPTIONS; i++) {
        const pvti_quantizer_option *o = &z->options[i];
        if (pvti_safetensors_metadata(st, o->name, text, sizeof text) < 0)
            return pvti_fail(z->ctx, PVT_ERR_FORMAT,
                             "%s: not a block of pvtune's quantize (no \"%s\" in its metadata)", path,
                             o->name);
        text[sizeof text - 1] = 0; /* it may have been cut */
        if (strcmp(text, o->value) != 0)
            return pvti_fail(z->ctx, PVT_ERR_MISMATCH,
                             "%s was made with another %s: it has \"%s\", this run \"%s\"", path, o->name,
                             text, o->value);
    }
    return PVT_OK;
}

/* An array of the file into memory of so many bytes. */
static pvt_result pvti_quantizer_copy(pvti_quantizer *z, const pvti_safetensors *st, const char *path,
                                      const char *name, pvt_dtype dtype, void *to, int64_t bytes)
{
    const pvti_tensor *t = pvti_safetensors_find(st, name);
    if (!t || t->dtype != dtype || t->bytes != bytes)
        return pvti_fail(z->ctx, PVT_ERR_FORMAT, "%s: %s is missing or has another size", path, name);
    memcpy(to, t->data, (size_t)bytes);
    return PVT_OK;
}

/* A weight from the file's arrays, checked. */
static pvt_result pvti_quantizer_read_weight(pvti_quantizer *z, const pvti_safetensors *st, const char *path,
                                             const char *name, const pvt_format *format,
                                             const pvt_weight *like, pvt_weight *out)
{
    pvt_array arrays[PVT_MAX_ARRAYS];
    pvt_result result;
    char full[128], why[sizeof z->ctx->error];
    int n, k, j;
    PVTI_TRY(pvt_format_arrays(z->ctx, format, like->O, like->I, arrays, &n));
    for (k = 0; k < n; k++) {
        const pvti_tensor *t;
        snprintf(full, sizeof full, "%s.%s", name, arrays[k].name);
        t = pvti_safetensors_find(st, full);
        if (!t || t->rank > 4)
            return pvti_fail(z->ctx, PVT_ERR_FORMAT, "%s: %s is missing or misshapen", path, full);
        arrays[k].dtype = t->dtype, arrays[k].rank = t->rank, arrays[k].bytes = t->bytes,
        arrays[k].data = t->data;
        for (j = 0; j < 4; j++) arrays[k].shape[j] = j < t->rank ? t->shape[j] : 1;
    }
    result = pvt_weight_from_arrays(z->ctx, format, like->O, like->I, arrays, n, name, out);
    if (result == PVT_ERR_ARGUMENT) { /* the file's fault */
        snprintf(why, sizeof why, "%s", z->ctx->error);
        return pvti_fail(z->ctx, PVT_ERR_FORMAT, "%.400s: %.500s", path, why);
    }
    return result == PVT_OK ? pvt_weight_round_f16(out, name)
                            : result; /* rounded they are: it must not overflow */
}

/* All of the file's arrays: weights into `made`, norms into the item. */
static pvt_result pvti_quantizer_read(pvti_quantizer *z, const pvti_quantizer_item *item,
                                      const pvti_safetensors *st, const char *path, pvt_weight *made,
                                      double (*fits)[4])
{
    int64_t real = (int64_t)sizeof(pvt_real), k;
    int i;
    PVTI_TRY(pvti_quantizer_compare_options(z, st, path));
    for (i = 0; i < item->n_weights; i++) {
        const pvt_weight *like = item->weights[i];
        PVTI_TRY(pvti_quantizer_read_weight(
            z, st, path, item->names[i], item->fitted[i] ? &z->desc.format : &like->format, like, &made[i]));
    }
    for (i = 0; i < item->n_norms; i++) {
        PVTI_TRY(pvti_quantizer_copy(z, st, path, item->norm_names[i], PVTI_DTYPE_REAL, item->norms[i],
                                     z->C * real));
        for (k = 0; k < z->C; k++)
            if (!(item->norms[i][k] >= -65504 && item->norms[i][k] <= 65504))
                return pvti_fail(z->ctx, PVT_ERR_NUMERIC,
                                 "%s: %s holds a value that is not finite or overflows fp16", path,
                                 item->norm_names[i]);
    }
    if (!item->n_weights) return PVT_OK;
    return pvti_quantizer_copy(z, st, path, "fit", PVT_F64, fits, item->n_weights * (int64_t)sizeof *fits);
}

/* Puts a finished block in place from its file; *taken false: there is none, and nothing has changed. */
static pvt_result pvti_quantizer_take(pvti_quantizer *z, const pvti_quantizer_item *item, bool *taken)
{
    pvti_safetensors st;
    pvt_weight made[PVTI_LINEARS];
    pvt_result result;
    double fits[PVTI_LINEARS][4];
    char path[PVTI_PATH_BYTES];
    int i;
    *taken = false;
    if (!z->desc.resume) return PVT_OK;
    PVTI_TRY(pvti_path_join(z->ctx, path, z->desc.checkpoint, item->file));
    if (!pvti_path_exists(path)) return PVT_OK;
    memset(made, 0, sizeof made);
    PVTI_TRY(pvti_safetensors_open(z->ctx, path, &st));
    result = pvti_quantizer_read(z, item, &st, path, made, fits);
    pvti_safetensors_close(&st);
    for (i = 0; i < item->n_weights; i++) {
        pvt_weight_free(result == PVT_OK ? item->weights[i] : &made[i]);
        if (result == PVT_OK) *item->weights[i] = made[i];
    }
    if (result == PVT_OK && item->weights[0] == &z->model->embed) result = pvti_model_tie(z->model);
    for (i = 0; i < item->n_weights && result == PVT_OK; i++) {
        pvt_fit_stats stats;
        memset(&stats, 0, sizeof stats);
        stats.error = fits[i][0], stats.error_start = fits[i][1], stats.seconds = fits[i][3];
        stats.epochs = fits[i][2] >= 0 && fits[i][2] <= INT_MAX ? (int)fits[i][2] : 0;
        if (item->fitted[i]) result = pvti_quantizer_tell(z, item->names[i], &stats);
    }
    *taken = result == PVT_OK;
    return result;
}

/* ---- a block ---- */

/* Fits and fine-tunes the block; its weights are exchanged one by one in `layer`. */
static pvt_result pvti_quantizer_make_block(pvti_quantizer *z, pvti_layer *layer, const pvti_layer *original,
                                            int64_t l)
{
    char name[96];
    int j;
    z->n_fits = 0;
    PVTI_TRY(pvti_quantizer_observe(z, original));
    for (j = 0; j < PVTI_LINEARS; j++) {
        pvti_quantizer_tensor_name(z, l, j, name);
        if (pvti_name_skipped(z->desc.skip, name)) continue;
        PVTI_TRY(pvti_quantizer_fit(z, &layer->linear[j], name, (uint64_t)(l * PVTI_LINEARS + j),
                                    z->H[pvti_linear_input[j]]));
    }
    if (z->desc.finetune_epochs > 0) PVTI_TRY(pvti_quantizer_finetune(z, layer, l));
    return pvti_quantizer_round(z, layer, l);
}

static pvt_result pvti_quantizer_block_body(pvti_quantizer *z, pvti_layer *layer, const pvti_layer *original,
                                            int64_t l)
{
    pvti_quantizer_item item = pvti_quantizer_block_item(z, layer, l);
    bool taken;
    int64_t s;
    PVTI_TRY(pvti_quantizer_take(z, &item, &taken));
    if (!taken) {
        PVTI_TRY(pvti_quantizer_make_block(z, layer, original, l));
        if (z->desc.checkpoint) PVTI_TRY(pvti_quantizer_store(z, &item));
    }
    for (s = 0; s < z->samples; s += z->per_chunk) { /* the inputs of the next block */
        int64_t B = PVTI_MIN(z->per_chunk, z->samples - s);
        pvt_real *x = z->x + s * z->T * z->C;
        pvti_block_forward(&z->blocks, layer, x, x, B, z->T, &z->blocks.acts[0], NULL);
        PVTI_TRY(pvti_report(z->ctx, "observe", NULL, s + B, z->samples, "samples", NAN));
    }
    return PVT_OK;
}

/* A block is exchanged whole: when anything fails in between, the original stays. */
static pvt_result pvti_quantizer_block(pvti_quantizer *z, int64_t l)
{
    pvti_layer *layer = &z->model->layers[l], original, work;
    pvt_real *norms = PVTI_NEW(z->ctx, pvt_real, PVTI_NORMS * z->C);
    pvt_result result = PVT_OK;
    int j;
    if (!norms) return PVT_ERR_MEMORY;
    original = *layer, work = *layer;
    for (j = 0; j < PVTI_NORMS; j++) {
        work.norm[j] = norms + j * z->C;
        memcpy(work.norm[j], original.norm[j], (size_t)z->C * sizeof *norms);
    }
    for (j = 0; j < PVTI_LINEARS && result == PVT_OK; j++) /* codes of an earlier run are fine-tuned: a copy of them */
        if (original.linear[j].format.kind != PVT_FORMAT_DENSE)
            result = pvti_weight_copy(z->ctx, &original.linear[j], &work.linear[j]);
        else work.linear[j].owned = false; /* the original must survive being replaced */
    if (result == PVT_OK) result = pvti_quantizer_block_body(z, &work, &original, l);
    for (j = 0; j < PVTI_LINEARS; j++) {
        bool replaced =
            work.linear[j].format.kind != PVT_FORMAT_DENSE && work.linear[j].codes != original.linear[j].codes;
        if (!replaced) continue;
        pvt_weight_free(result == PVT_OK ? &original.linear[j] : &work.linear[j]);
        if (result == PVT_OK) layer->linear[j] = work.linear[j];
    }
    for (j = 0; j < PVTI_NORMS && result == PVT_OK; j++)
        memcpy(layer->norm[j], work.norm[j], (size_t)z->C * sizeof *norms);
    pvti_free(z->ctx, norms);
    return result;
}

/* Embedding or head under the plain squared error. */
static pvt_result pvti_quantizer_make_table(pvti_quantizer *z, pvt_weight *weight, bool head,
                                            const char *name)
{
    pvt_real *W = z->W;
    pvt_result result;
    z->n_fits = 0;
    z->W = PVTI_NEW(z->ctx, pvt_real, weight->O * weight->I);
    result = z->W ? pvti_quantizer_fit(z, weight, name,
                                       (uint64_t)(z->model->config.layers * PVTI_LINEARS + head), NULL)
                  : PVT_ERR_MEMORY;
    if (result == PVT_OK) result = pvt_weight_round_f16(weight, name);
    pvti_free(z->ctx, z->W);
    z->W = W;
    return result;
}

static pvt_result pvti_quantizer_table(pvti_quantizer *z, bool head)
{
    pvt_model *model = z->model;
    pvti_quantizer_item item;
    bool taken;
    memset(&item, 0, sizeof item);
    item.n_weights = 1, item.fitted[0] = true;
    item.weights[0] = head && !model->config.tied ? &model->head : &model->embed;
    snprintf(item.names[0], sizeof item.names[0], head ? "lm_head.weight" : "model.embed_tokens.weight");
    snprintf(item.file, sizeof item.file,
             head ? "quantize-head.safetensors" : "quantize-embedding.safetensors");
    PVTI_TRY(pvti_quantizer_take(z, &item, &taken));
    if (taken) return PVT_OK;
    PVTI_TRY(pvti_quantizer_make_table(z, item.weights[0], head, item.names[0]));
    return z->desc.checkpoint ? pvti_quantizer_store(z, &item) : PVT_OK;
}

/* Random windows of the corpus, each at most once, through the embedding. */
static pvt_result pvti_quantizer_inputs(pvti_quantizer *z, const pvt_corpus *corpus)
{
    int64_t windows = corpus->n / z->T, s;
    int64_t *order = PVTI_NEW(z->ctx, int64_t, windows);
    if (!order) return PVT_ERR_MEMORY;
    pvti_random_order(order, windows, z->ctx->seed, PVTI_RANDOM_CALIBRATION, 0);
    for (s = 0; s < z->samples; s++)
        pvt_weight_lookup(z->ctx, z->x + s * z->T * z->C, &z->model->embed, corpus->ids + order[s] * z->T,
                          z->T);
    pvti_free(z->ctx, order);
    return PVT_OK;
}

/* The matrix of tensor i if this run is to quantize it, else NULL. */
static const pvt_weight *pvti_quantizer_wants(const pvti_quantizer *z, int64_t tensor)
{
    pvt_tensor_info info = pvt_model_tensor(z->model, tensor);
    return pvti_quantize_wants(z->model, &z->desc, &info) ? info.weight : NULL;
}

/* Refuses before the first hour, not after. */
static pvt_result pvti_quantizer_check_format(pvti_quantizer *z)
{
    const pvt_format *f = &z->desc.format;
    int64_t i, tensors = pvt_model_tensors(z->model), O = 0, I = 0, unfit = -1;
    char nearest[48];
    for (i = 0; i < tensors; i++) {
        const pvt_weight *w = pvti_quantizer_wants(z, i);
        if (!w) continue;
        if (w->format.kind != PVT_FORMAT_DENSE)
            return pvti_fail(z->ctx, PVT_ERR_ARGUMENT,
                             "%s is quantized already; start from the original model",
                             pvt_model_tensor(z->model, i).name);
        O = pvti_gcd(O, w->O), I = pvti_gcd(I, w->I);
        if (unfit < 0 && (w->O % f->out_group || w->I % f->in_group)) unfit = i;
        z->total++;
    }
    if (unfit >= 0) {
        pvt_tensor_info info = pvt_model_tensor(z->model, unfit);
        pvti_format_near(f, O, I, nearest);
        return pvti_fail(z->ctx, PVT_ERR_ARGUMENT,
                         "%s: groups of %d x %d do not divide %lld x %lld weights; %s fits all of this "
                         "model, or leave the tensor dense with skip",
                         info.name, f->out_group, f->in_group, (long long)info.weight->O,
                         (long long)info.weight->I, nearest);
    }
    return PVT_OK;
}

static pvt_result pvti_quantizer_check(pvti_quantizer *z, const pvt_corpus *corpus)
{
    const pvt_model_config *c = &z->model->config;
    pvt_quantize_desc *d = &z->desc;
    int64_t i, available;
    if (d->format.kind == PVT_FORMAT_DENSE && d->format.bits == 0)
        PVTI_TRY(pvt_format_parse(z->ctx, "aqlm:2x8g8", &d->format));
    if (d->format.kind == PVT_FORMAT_DENSE)
        return pvti_fail(z->ctx, PVT_ERR_ARGUMENT,
                         "quantize: \"dense\" quantizes nothing; to write a model in fp16, export it as "
                         "dense");
    if (!pvti_format_in_range(&d->format))
        return pvti_fail(z->ctx, PVT_ERR_ARGUMENT, "quantize: not a codebook format, or a size out of range");
    if (d->resume && !d->checkpoint)
        return pvti_fail(z->ctx, PVT_ERR_ARGUMENT, "quantize: resume needs the directory of the checkpoint");
    if (d->finetune_epochs == 0) d->finetune_epochs = 1;
    if (d->finetune_lr == 0) d->finetune_lr = 2e-4;
    z->T = d->ctx ? d->ctx : PVTI_MIN(512, c->ctx);
    z->C = c->dim;
    PVTI_TRY(pvti_context_check(z->ctx, z->model, "quantize", z->T));
    if (d->samples < 0 || d->finetune_lr < 0)
        return pvti_fail(z->ctx, PVT_ERR_ARGUMENT, "quantize: samples or learning rate is negative");
    available = corpus->n / z->T;
    if (available < 1 || d->samples > available)
        return pvti_fail(z->ctx, PVT_ERR_ARGUMENT,
                         "the calibration text has %lld tokens, enough for %lld samples of %lld; %lld "
                         "wanted: bring more text, or lower samples or ctx",
                         (long long)corpus->n, (long long)available, (long long)z->T,
                         (long long)(d->samples ? d->samples : 64));
    z->samples = d->samples ? d->samples : PVTI_MIN(64, available);
    for (i = 0; i < corpus->n; i++)
        if (corpus->ids[i] < 0 || corpus->ids[i] >= c->vocab)
            return pvti_fail(z->ctx, PVT_ERR_MISMATCH,
                             "the calibration text holds token %lld, the model's vocabulary ends at %lld: "
                             "was it tokenized with another tokenizer?",
                             (long long)corpus->ids[i], (long long)c->vocab);
    return pvti_quantizer_check_format(z);
}

static pvt_result pvti_quantizer_alloc(pvti_quantizer *z)
{
    const pvt_model_config *c = &z->model->config;
    int64_t largest = 0, widest = 0, tokens, inputs, l;
    int i;
    /* samples · T is no more than the text has */
    if (!pvti_mul(z->samples * z->T, z->C, &inputs)) inputs = INT64_MAX;
    z->per_chunk = PVTI_MAX(1, PVTI_MIN(z->samples, 1024 / z->T));
    tokens = z->per_chunk * z->T;
    for (l = 0; l < c->layers; l++)
        for (i = 0; i < PVTI_LINEARS; i++)
            largest = PVTI_MAX(largest, z->model->layers[l].linear[i].O * z->model->layers[l].linear[i].I);
    PVTI_TRY(pvti_blocks_create(z->ctx, c, tokens, z->T, 1, true, &z->blocks));
    z->x = PVTI_NEW(z->ctx, pvt_real, inputs);
    z->y = PVTI_NEW(z->ctx, pvt_real, inputs);
    z->out = PVTI_NEW(z->ctx, pvt_real, tokens * z->C);
    z->dout = PVTI_NEW(z->ctx, pvt_real, tokens * z->C);
    z->W = PVTI_NEW(z->ctx, pvt_real, largest);
    if (!z->x || !z->y || !z->out || !z->dout || !z->W) return PVT_ERR_MEMORY;
    for (i = 0; i < PVTI_INPUTS; i++) {
        int64_t I = pvti_input_width(z, i);
        widest = PVTI_MAX(widest, I);
        z->H[i] = PVTI_NEW(z->ctx, pvt_real, I * I);
        if (!z->H[i]) return PVT_ERR_MEMORY;
    }
    z->part = PVTI_NEW(z->ctx, pvt_real, widest * widest);
    if (!z->part) return PVT_ERR_MEMORY;
    for (i = 0; i < PVTI_LAYER_TENSORS && z->desc.finetune_epochs > 0; i++) {
        const pvt_weight *w = &z->model->layers[0].linear[PVTI_MAX(0, i - PVTI_NORMS)];
        z->dW[i] = PVTI_NEW(z->ctx, pvt_real, i < PVTI_NORMS ? z->C : w->O * w->I);
        if (!z->dW[i]) return PVT_ERR_MEMORY;
    }
    return PVT_OK;
}

static void pvti_quantizer_free(pvti_quantizer *z)
{
    int i;
    pvti_blocks_free(&z->blocks);
    pvti_free(z->ctx, z->x), pvti_free(z->ctx, z->y), pvti_free(z->ctx, z->out), pvti_free(z->ctx, z->dout),
        pvti_free(z->ctx, z->W), pvti_free(z->ctx, z->part);
    for (i = 0; i < PVTI_INPUTS; i++) pvti_free(z->ctx, z->H[i]);
    for (i = 0; i < PVTI_LAYER_TENSORS; i++) pvti_free(z->ctx, z->dW[i]);
}

static pvt_result pvti_quantizer_run(pvti_quantizer *z, const pvt_corpus *corpus)
{
    const pvt_model_config *c = &z->model->config;
    int64_t l;
    PVTI_TRY(pvti_quantizer_alloc(z));
    if (z->desc.checkpoint) PVTI_TRY(pvti_quantizer_read_options(z, corpus));
    PVTI_TRY(pvti_report(z->ctx, "quantize", NULL, 0, z->total, "weights", NAN));
    if (z->desc.embedding || (z->desc.head && c->tied)) PVTI_TRY(pvti_quantizer_table(z, false));
    PVTI_TRY(pvti_quantizer_inputs(z, corpus));
    for (l = 0; l < c->layers; l++) PVTI_TRY(pvti_quantizer_block(z, l));
    if (z->desc.head && !c->tied) PVTI_TRY(pvti_quantizer_table(z, true));
    return PVT_OK;
}

PVT_API pvt_result pvt_quantize(pvt_ctx *ctx, pvt_model *model, const pvt_corpus *corpus,
                                const pvt_quantize_desc *desc)
{
    pvti_quantizer z;
    pvt_result result;
    memset(&z, 0, sizeof z);
    z.ctx = ctx, z.model = model;
    if (desc) z.desc = *desc;
    PVTI_TRY(pvti_host_only(ctx, "quantizing a model"));
    PVTI_TRY(pvti_host_only(model->ctx, "quantizing a model"));
    PVTI_TRY(pvti_quantizer_check(&z, corpus));
    result = pvti_quantizer_run(&z, corpus);
    pvti_quantizer_free(&z);
    return result;
}
#endif
#if PVTUNE_LAYER >= 2
// >>tuner
/*  PV-Tuning of a model: tokens → teacher's hidden states → student's loss → gradients, tensor by
    tensor from the last layer to the first, each handed to pvt_pv_apply as soon as it is
    complete. With one micro-batch a step the dense gradients of one layer exist at a time.

    Small batches are noisy: the loss of a step says little about the model. So a few windows of the
    text are kept back, spread evenly over it; the loss on them (of the teacher's own distribution,
    paired by construction) decides which state is kept as the best, and when to stop. */

/* A part of the best state: a copy of one array that the pv tunes, as a file would hold it. */
typedef struct pvti_best {
    char name[128];
    const pvti_pv_entry *entry;
    const pvt_adam *value;  /* of these masters, in fp16; or NULL: the weight's codes */
    void *data;
    pvt_dtype dtype;
    int64_t n;
} pvti_best;

struct pvt_tuner {
    pvt_ctx *ctx;
    pvt_model *student;
    const pvt_model *teacher;
    const pvt_corpus *corpus;
    pvt_tune_desc desc;      /* with defaults filled in */
    pvt_run *run, *teacher_run;
    pvt_pv *pv;
    int *handles;            /* [tensors]; −1: not tuned */
    bool *frozen;            /* [tensors] */
    int64_t windows, epoch;  /* to tune on; the epoch that `order` belongs to, −1: none */
    int64_t *place;          /* [windows]: which window of the corpus each is */
    int64_t *order;          /* [windows] */
    pvt_real *cache;         /* teacher's hidden states, [windows, T, C], when sequences come again; on the
                                host, which has room for them */
    bool *cached;            /* [windows] */
    pvt_real *hidden;        /* teacher's hidden states of a micro-batch taken from the cache */
    int32_t *ids;            /* [micro_batch, T] */
    int64_t *window_of;      /* [micro_batch] */
    int64_t step;
    uint64_t corpus_hash, teacher_hash, student_hash, eval_hash;
    /* evaluation */
    const pvt_corpus *eval;  /* NULL: none */
    int64_t eval_windows;
    pvt_real *eval_hidden;   /* teacher's hidden states of the held-out windows, [eval_windows, T, C] */
    bool eval_taught;        /* eval_hidden is filled */
    pvt_tune_eval start, last, top; /* top: the best */
    int64_t stale;           /* evaluations since the best */
    pvti_best *best;
    int64_t n_best;
    int64_t resumed_steps;
    bool finished;
};

#define PVTI_HELD_OUT_TOKENS 8192 /* to evaluate on, at most */

/* The one place where the defaults of tuning come from. */
PVT_API pvt_tune_desc pvt_tune_resolve(const pvt_model *student, const pvt_tune_desc *desc)
{
    pvt_tune_desc d;
    memset(&d, 0, sizeof d);
    if (desc) d = *desc;
    d.pv = pvt_pv_resolve(&d.pv);
    if (!d.steps) d.steps = 200;
    if (!d.batch) d.batch = 2;
    if (!d.ctx) d.ctx = PVTI_MIN(512, student->config.ctx);
    if (!d.micro_batch)
        d.micro_batch = d.ctx >= 1 && d.ctx <= 4096 ? PVTI_MIN(d.batch, PVTI_MAX(1, 4096 / d.ctx)) : 1;
    if (!d.warmup) d.warmup = PVTI_MIN(100, d.steps / 40);
    if (d.warmup < 0) d.warmup = 0;
    if (!d.eval_every) d.eval_every = PVTI_MAX(1, d.steps / 10);
    if (d.eval_every < 0) d.eval_every = 0;
    if (!d.patience) d.patience = 5;
    if (d.patience < 0) d.patience = INT64_MAX;
    return d;
}

/* Held-out windows out of `available`, when no number is asked for. */
static int64_t pvti_tuner_eval_default(const pvt_tune_desc *d, int64_t available)
{
    int64_t most = PVTI_MAX(1, PVTI_HELD_OUT_TOKENS / PVTI_MAX(1, d->ctx));
    return PVTI_MIN(most, d->eval ? available : PVTI_MAX(1, available / 20));
}

static bool pvti_tuner_wants(const pvt_model *student, const pvt_tune_desc *d, int64_t tensor)
{
    pvt_tensor_info info = pvt_model_tensor(student, tensor);
    return !d->freeze_dense || (info.weight && info.weight->format.kind != PVT_FORMAT_DENSE);
}

static bool pvti_tuner_must_copy(const pvt_weight *w)
{
    return w && w->format.kind == PVT_FORMAT_DENSE && (!w->owned || w->dtype != PVTI_DTYPE_REAL);
}

static pvt_run_desc pvti_tuner_run_desc(const pvt_tune_desc *d, bool student, const bool *frozen)
{
    pvt_run_desc r;
    memset(&r, 0, sizeof r);
    r.max_batch = d->micro_batch, r.max_ctx = d->ctx;
    r.train = student, r.accumulate = student && d->micro_batch < d->batch;
    r.frozen = student ? frozen : NULL;
    r.memory_limit = d->memory_limit;
    return r;
}

/* Positive sizes whose product, the tokens of the whole run, is a number: then every product of some of
   them is. Whatever is computed from a desc comes after this. */
static pvt_result pvti_tune_sizes_check(pvt_ctx *ctx, const pvt_tune_desc *d)
{
    int64_t tokens;
    if (d->steps < 1 || d->batch < 1 || d->batch > 1 << 20 || d->micro_batch < 1 ||
        d->micro_batch > d->batch || d->ctx < 2 || d->ctx > 1 << 20 || d->warmup < 0 || d->eval_windows < 0 ||
        (unsigned)d->schedule > PVT_SCHEDULE_CONSTANT)
        return pvti_fail(ctx, PVT_ERR_ARGUMENT,
                         "tune: steps, batch and micro_batch must be positive, ctx at least 2, batch and "
                         "ctx at most %d, and micro_batch no more than batch", 1 << 20);
    if (!pvti_mul(d->steps, d->batch, &tokens) || !pvti_mul(tokens, d->ctx, &tokens))
        return pvti_fail(ctx, PVT_ERR_ARGUMENT,
                         "tune: %lld steps of %lld x %lld tokens are more than can be counted",
                         (long long)d->steps, (long long)d->batch, (long long)d->ctx);
    return PVT_OK;
}

/* Numbers in the teacher's hidden states of so many windows; INT64_MAX: more than can be counted. */
static int64_t pvti_tuner_hidden_size(const pvt_tune_desc *d, const pvt_model *teacher, int64_t windows)
{
    int64_t n;
    return pvti_mul(windows, d->ctx * teacher->config.dim, &n) ? n : INT64_MAX;
}

/* Whether sequences come again, so that the teacher's hidden states are worth keeping. */
static bool pvti_tuner_caches(const pvt_tune_desc *d, const pvt_model *teacher, int64_t windows)
{
    return teacher && !d->no_teacher_cache && d->batch > windows / d->steps;
}

/* What one quantized weight takes: moments, gradients, buffer, and its copy in the best state. */
static int64_t pvti_tuner_weight_bytes(const pvt_weight *w, const pvt_tune_desc *d)
{
    pvti_values values[PVTI_MAX_VALUES];
    int64_t n = w->O * w->I, real = (int64_t)sizeof(pvt_real), total = 0;
    int64_t codes = n / pvti_group_dim(w) * w->format.codebooks * (w->format.bits <= 8 ? 1 : 2);
    int k, n_values = d->pv.freeze_values ? 0 : w->kind->values(w, values);
    for (k = 0; k < n_values; k++) {
        total += values[k].n * real * (d->pv.values.beta1 > 0 ? 3 : 2); /* m, v, gradient */
        total += d->eval_every ? values[k].n * 2 : 0;
    }
    if (d->eval_every) total += codes;
    if (d->pv.strategy == PVT_STRATEGY_CONTINUOUS) return total;
    total += n * (d->pv.moments == PVT_BF16 ? 2 : real) + (d->pv.codes.beta1 > 0 ? n * real : 0);
    return total + (d->pv.delta < 1 ? n * real : 0);
}

/* The tensors' share of pvt_tuner_bytes; frozen [tensors] is filled in. */
static int64_t pvti_tuner_tensor_bytes(const pvt_model *student, const pvt_tune_desc *d, bool *frozen)
{
    int64_t tensors = pvt_model_tensors(student), real = (int64_t)sizeof(pvt_real), total = 0, largest = 0,
            groups = 0;
    for (int64_t i = 0; i < tensors; i++) {
        pvt_tensor_info info = pvt_model_tensor(student, i);
        frozen[i] = !pvti_tuner_wants(student, d, i);
        if (frozen[i]) continue;
        if (pvti_tuner_must_copy(info.weight)) total += info.n * real;
        if (!info.weight || info.weight->format.kind == PVT_FORMAT_DENSE) {
            total += info.n * (real * (d->pv.params.beta1 > 0 ? 2 : 1) + (d->eval_every ? 2 : 0));
            continue;
        }
        total += pvti_tuner_weight_bytes(info.weight, d);
        if (d->pv.strategy == PVT_STRATEGY_CONTINUOUS) continue;
        largest = PVTI_MAX(largest, info.n);
        groups = PVTI_MAX(groups, info.n / pvti_group_dim(info.weight));
    }
    return total + (d->pv.delta >= 1 ? largest * real : 0) + groups * (4 + 4 + 8 + 8 + 8 + 4);
}

PVT_API int64_t pvt_tuner_bytes(const pvt_model *student, const pvt_model *teacher, const pvt_corpus *corpus,
                                const pvt_tune_desc *desc)
{
    pvt_tune_desc d = pvt_tune_resolve(student, desc);
    pvt_ctx_info held = pvt_ctx_get_info(student->ctx);
    int64_t total = held.bytes_now + held.device_bytes_now, windows, kept = 0, hidden, run;
    bool *frozen;
    pvt_run_desc r;
    if (pvti_tune_sizes_check(student->ctx, &d) != PVT_OK ||
        pvti_context_check(student->ctx, student, "tune", d.ctx) != PVT_OK)
        return INT64_MAX;
    frozen = PVTI_NEW(student->ctx, bool, pvt_model_tensors(student));
    if (!frozen) return INT64_MAX;
    total += pvti_tuner_tensor_bytes(student, &d, frozen);
    r = pvti_tuner_run_desc(&d, true, frozen);
    run = pvt_run_bytes(student, &r);
    pvti_free(student->ctx, frozen);
    if (!pvti_add(total, run, &total)) return INT64_MAX;
    if (d.cross_entropy || !teacher) return total;
    r = pvti_tuner_run_desc(&d, false, NULL);
    run = pvt_run_bytes(teacher, &r);
    windows = corpus ? corpus->n / d.ctx : INT64_MAX;
    if (d.eval_every) {
        int64_t available = d.eval ? d.eval->n / d.ctx : windows;
        kept = d.eval_windows ? PVTI_MIN(d.eval_windows, available) : pvti_tuner_eval_default(&d, available);
        if (!d.eval) windows -= kept;
    }
    if (corpus && windows > 0 && pvti_tuner_caches(&d, teacher, windows) &&
        !pvti_add(kept, windows + d.micro_batch, &kept))
        return INT64_MAX;
    if (!pvti_mul(pvti_tuner_hidden_size(&d, teacher, kept), (int64_t)sizeof(pvt_real), &hidden) ||
        !pvti_add(total, run, &total) || !pvti_add(total, hidden, &total))
        return INT64_MAX;
    return total;
}

PVT_API void pvt_tuner_free(pvt_tuner *tuner)
{
    if (!tuner) return;
    for (int64_t i = 0; i < tuner->n_best; i++) pvt_memory_free(tuner->ctx, tuner->best[i].data);
    pvti_free(tuner->ctx, tuner->best), pvt_memory_free(tuner->ctx, tuner->eval_hidden);
    pvt_run_free(tuner->run), pvt_run_free(tuner->teacher_run), pvt_pv_free(tuner->pv);
    pvti_free(tuner->ctx, tuner->handles), pvti_free(tuner->ctx, tuner->frozen);
    pvti_free(tuner->ctx, tuner->order), pvti_free(tuner->ctx, tuner->place);
    pvti_free(tuner->ctx, tuner->cache), pvti_free(tuner->ctx, tuner->cached);
    pvt_memory_free(tuner->ctx, tuner->hidden);
    pvti_free(tuner->ctx, tuner->ids), pvti_free(tuner->ctx, tuner->window_of);
    pvti_free(tuner->ctx, tuner);
}

/* Every tensor that is tuned gets a handle; dense ones that lie in a file are copied first. */
static pvt_result pvti_tuner_add_tensors(pvt_tuner *t)
{
    int64_t i, tensors = pvt_model_tensors(t->student);
    for (i = 0; i < tensors; i++) {
        pvt_tensor_info info = pvt_model_tensor(t->student, i);
        t->handles[i] = -1;
        t->frozen[i] = !pvti_tuner_wants(t->student, &t->desc, i);
        if (t->frozen[i]) continue;
        if (info.values) {
            PVTI_TRY(pvt_pv_add_param(t->pv, info.values, info.n, info.name, &t->handles[i]));
            continue;
        }
        if (pvti_tuner_must_copy(info.weight)) {
            pvt_weight copy;
            PVTI_TRY(pvt_weight_dense(t->ctx, NULL, info.weight->O, info.weight->I, &copy));
            pvt_weight_dequantize(info.weight, (pvt_real *)(uintptr_t)copy.data);
            pvt_weight_free(info.weight);
            *info.weight = copy;
            PVTI_TRY(pvti_model_tie(t->student));
        }
        PVTI_TRY(pvt_pv_add_weight(t->pv, info.weight, info.name, &t->handles[i]));
    }
    return PVT_OK;
}

/* Ids within the vocabulary, and at least one context. */
static pvt_result pvti_tuner_check_text(const pvt_tuner *t, const pvt_corpus *corpus, const char *what)
{
    int64_t i, V = t->student->config.vocab;
    if (corpus->n < t->desc.ctx)
        return pvti_fail(t->ctx, PVT_ERR_ARGUMENT,
                         "%s has %lld tokens, less than one context of %lld: bring more text, or lower ctx",
                         what, (long long)corpus->n, (long long)t->desc.ctx);
    for (i = 0; i < corpus->n; i++)
        if (corpus->ids[i] < 0 || corpus->ids[i] >= V)
            return pvti_fail(
                t->ctx, PVT_ERR_MISMATCH,
                "%s holds token %lld, the model's vocabulary ends at %lld: was it tokenized with "
                "another tokenizer?",
                what, (long long)corpus->ids[i], (long long)V);
    return PVT_OK;
}

/* How many windows there are to tune and to evaluate on. */
static pvt_result pvti_tuner_split(pvt_tuner *t)
{
    const pvt_tune_desc *d = &t->desc;
    int64_t available;
    PVTI_TRY(pvti_tuner_check_text(t, t->corpus, "the text"));
    t->windows = t->corpus->n / d->ctx;
    if (!d->eval_every) return PVT_OK;
    if (d->eval) PVTI_TRY(pvti_tuner_check_text(t, d->eval, "the text to evaluate on"));
    t->eval = d->eval ? d->eval : t->corpus;
    available = t->eval->n / d->ctx;
    t->eval_windows = d->eval_windows ? d->eval_windows : pvti_tuner_eval_default(d, available);
    if (t->eval_windows > available - (d->eval ? 0 : 1))
        return pvti_fail(
            t->ctx, PVT_ERR_ARGUMENT,
            "the text %s has %lld windows of %lld tokens, too few to keep %lld back for evaluation: "
            "bring more text, name a text to evaluate on, lower ctx, or do without evaluation",
            d->eval ? "to evaluate on" : "to tune on", (long long)available, (long long)d->ctx,
            (long long)t->eval_windows);
    if (!d->eval) t->windows -= t->eval_windows;
    return PVT_OK;
}

static pvt_result pvti_tuner_check(pvt_tuner *t)
{
    const pvt_tune_desc *d = &t->desc;
    const pvt_model_config *c = &t->student->config;
    PVTI_TRY(pvti_tune_sizes_check(t->ctx, d));
    PVTI_TRY(pvti_context_check(t->ctx, t->student, "tune", d->ctx));
    if (t->teacher) PVTI_TRY(pvti_context_check(t->ctx, t->teacher, "tune: the teacher", d->ctx));
    if (d->batch % d->micro_batch)
        return pvti_fail(t->ctx, PVT_ERR_ARGUMENT, "tune: micro_batch %lld does not divide batch %lld",
                         (long long)d->micro_batch, (long long)d->batch);
    if (t->teacher && t->teacher->config.vocab != c->vocab)
        return pvti_fail(t->ctx, PVT_ERR_MISMATCH,
                         "the teacher has a vocabulary of %lld, the student one of %lld: they cannot be "
                         "compared",
                         (long long)t->teacher->config.vocab, (long long)c->vocab);
    PVTI_TRY(pvti_model_hash(t->student, &t->student_hash));
    if (t->teacher) PVTI_TRY(pvti_model_hash(t->teacher, &t->teacher_hash));
    if (t->teacher && t->student_hash == t->teacher_hash)
        return pvti_fail(t->ctx, PVT_ERR_ARGUMENT,
                         "the student is the teacher itself, there is nothing to learn: quantize it first");
    return pvti_tuner_split(t);
}

/* Is window w of the corpus kept back? The last of each of E equal sections is. */
static bool pvti_tuner_held_out(int64_t w, int64_t available, int64_t E)
{
    return E > 0 && (w + 1) * E / available > w * E / available;
}

/* The corpus' window that is the i-th of E held-out ones. */
static int64_t pvti_tuner_eval_place(const pvt_tuner *t, int64_t i)
{
    int64_t available = t->eval->n / t->desc.ctx, E = t->eval_windows;
    return ((i + 1) * available + E - 1) / E - 1;
}

static void pvti_tuner_places(pvt_tuner *t)
{
    int64_t available = t->corpus->n / t->desc.ctx, E = t->eval == t->corpus ? t->eval_windows : 0, w, n = 0;
    for (w = 0; w < available; w++)
        if (!pvti_tuner_held_out(w, available, E)) t->place[n++] = w;
}

/* The arrays of the best state, in the order of the pv's entries. */
static pvt_result pvti_tuner_best_alloc(pvt_tuner *t)
{
    int64_t i, n = 0;
    int k;
    for (i = 0; i < t->pv->n; i++) n += t->pv->entries[i].n_values + (t->pv->entries[i].weight != NULL);
    t->best = PVTI_NEW(t->ctx, pvti_best, n);
    if (!t->best) return PVT_ERR_MEMORY;
    for (i = 0; i < t->pv->n; i++) {
        const pvti_pv_entry *e = &t->pv->entries[i];
        for (k = 0; k < e->n_values + (e->weight != NULL); k++) {
            pvti_best *b = &t->best[t->n_best];
            b->entry = e;
            b->value = k < e->n_values ? &e->adam[k] : NULL;
            if (b->value) {
                snprintf(b->name, sizeof b->name, "best.%s.value%d", e->name, k);
                b->dtype = PVT_F16, b->n = b->value->n;
            } else {
                snprintf(b->name, sizeof b->name, "best.%s.codes", e->name);
                b->dtype = e->weight->format.bits <= 8 ? PVT_U8 : PVT_U16;
                b->n = e->weight->O * e->weight->I / pvti_group_dim(e->weight) * e->weight->format.codebooks;
            }
            b->data = pvti_memory(t->ctx, b->n, pvti_dtype_info(b->dtype)->bytes);
            if (!b->data) return PVT_ERR_MEMORY;
            t->n_best++;
        }
    }
    return PVT_OK;
}

static pvt_result pvti_tuner_alloc_eval(pvt_tuner *t)
{
    t->start.step = t->last.step = t->top.step = -1;
    if (!t->eval) return PVT_OK;
    t->eval_hash =
        pvti_hash(t->eval->ids, t->eval->n * (int64_t)sizeof *t->eval->ids, (uint64_t)t->eval_windows);
    if (t->teacher) {
        t->eval_hidden =
            PVTI_MEMORY(t->ctx, pvt_real, pvti_tuner_hidden_size(&t->desc, t->teacher, t->eval_windows));
        if (!t->eval_hidden) return PVT_ERR_MEMORY;
    }
    return pvti_tuner_best_alloc(t);
}

static pvt_result pvti_tuner_alloc(pvt_tuner *t)
{
    const pvt_tune_desc *d = &t->desc;
    int64_t tensors = pvt_model_tensors(t->student);
    pvt_run_desc r;
    PVTI_TRY(pvti_tuner_check(t));
    PVTI_TRY(pvti_report(t->ctx, "tune", NULL, 0, d->steps, "steps", NAN));
    t->handles = PVTI_NEW(t->ctx, int, tensors), t->frozen = PVTI_NEW(t->ctx, bool, tensors);
    t->order = PVTI_NEW(t->ctx, int64_t, t->windows), t->place = PVTI_NEW(t->ctx, int64_t, t->windows);
    t->ids = PVTI_NEW(t->ctx, int32_t, d->micro_batch * d->ctx),
    t->window_of = PVTI_NEW(t->ctx, int64_t, d->micro_batch);
    if (!t->handles || !t->frozen || !t->order || !t->place || !t->ids || !t->window_of)
        return PVT_ERR_MEMORY;
    pvti_tuner_places(t);
    if (pvti_tuner_caches(d, t->teacher, t->windows)) {
        t->cache = PVTI_NEW(t->ctx, pvt_real, pvti_tuner_hidden_size(d, t->teacher, t->windows)),
        t->cached = PVTI_NEW(t->ctx, bool, t->windows);
        t->hidden = PVTI_MEMORY(t->ctx, pvt_real, pvti_tuner_hidden_size(d, t->teacher, d->micro_batch));
        if (!t->cache || !t->cached || !t->hidden) return PVT_ERR_MEMORY;
    }
    PVTI_TRY(pvt_pv_create(t->ctx, &d->pv, &t->pv));
    PVTI_TRY(pvti_tuner_add_tensors(t));
    r = pvti_tuner_run_desc(d, true, t->frozen);
    PVTI_TRY(pvt_run_create(t->ctx, t->student, &r, &t->run));
    r = pvti_tuner_run_desc(d, false, NULL);
    if (t->teacher) PVTI_TRY(pvt_run_create(t->ctx, t->teacher, &r, &t->teacher_run));
    t->corpus_hash = pvti_hash(t->corpus->ids, t->corpus->n * (int64_t)sizeof *t->corpus->ids, 0);
    t->epoch = -1;
    return pvti_tuner_alloc_eval(t);
}

PVT_API pvt_result pvt_tuner_create(pvt_ctx *ctx, pvt_model *student, const pvt_model *teacher,
                                    const pvt_corpus *corpus, const pvt_tune_desc *desc, pvt_tuner **out)
{
    pvt_tuner *t;
    pvt_result result;
    *out = NULL;
    if (!teacher && !(desc && desc->cross_entropy))
        return pvti_fail(ctx, PVT_ERR_ARGUMENT, "tune: without a teacher only cross_entropy is possible");
    if (!pvti_same_memory(ctx, student->ctx) || (teacher && !pvti_same_memory(ctx, teacher->ctx)))
        return pvti_fail(ctx, PVT_ERR_MISMATCH,
                         "tune: student and teacher must lie in this context's memory; pvt_model_copy "
                         "brings them there");
    t = PVTI_NEW(ctx, pvt_tuner, 1);
    if (!t) return PVT_ERR_MEMORY;
    t->ctx = ctx, t->student = student, t->corpus = corpus;
    t->desc = pvt_tune_resolve(student, desc);
    t->teacher = t->desc.cross_entropy ? NULL : teacher;
    result = pvti_tuner_alloc(t);
    if (result != PVT_OK) {
        pvt_tuner_free(t);
        return result;
    }
    *out = t;
    return PVT_OK;
}

static bool pvti_tuner_stopped(const pvt_tuner *t) { return t->eval && t->stale >= t->desc.patience; }

PVT_API pvt_tuner_info pvt_tuner_get_info(const pvt_tuner *tuner)
{
    pvt_tuner_info info;
    memset(&info, 0, sizeof info);
    info.step = tuner->step, info.steps = tuner->desc.steps;
    info.stopped = pvti_tuner_stopped(tuner) && info.step < info.steps;
    info.done = tuner->finished || info.stopped || info.step >= info.steps;
    info.windows = tuner->windows, info.eval_windows = tuner->eval_windows;
    info.start = tuner->start, info.last = tuner->last, info.best = tuner->top;
    info.resumed_steps = tuner->resumed_steps;
    return info;
}

/* ---- evaluation ---- */

/* The teacher's last hidden states for the B held-out windows from i on, kept for the next evaluation. */
static pvt_result pvti_tuner_eval_teach(pvt_tuner *t, int64_t i, int64_t B, const pvt_real **hidden)
{
    int64_t each = t->teacher ? t->desc.ctx * t->teacher->config.dim : 0;
    *hidden = NULL;
    if (!t->teacher) return PVT_OK;
    *hidden = t->eval_hidden + i * each;
    if (t->eval_taught) return PVT_OK;
    PVTI_TRY(pvt_run_forward(t->teacher_run, t->ids, B, t->desc.ctx, NULL));
    pvti_copy(t->ctx, t->eval_hidden + i * each, pvt_run_hidden(t->teacher_run), B * each);
    return PVT_OK;
}

/* Mean loss and perplexity of the student, as it stands, on the held-out windows. */
static pvt_result pvti_tuner_measure(pvt_tuner *t, pvt_tune_eval *out)
{
    double loss_sum = 0, nll_sum = 0, part;
    int64_t T = t->desc.ctx, i, k, B, losses = 0, predictions = 0, count;
    for (i = 0; i < t->eval_windows; i += B) {
        pvt_loss_desc loss;
        B = PVTI_MIN(t->desc.micro_batch, t->eval_windows - i);
        memset(&loss, 0, sizeof loss);
        for (k = 0; k < B; k++)
            memcpy(t->ids + k * T, t->eval->ids + pvti_tuner_eval_place(t, i + k) * T,
                   (size_t)T * sizeof *t->ids);
        PVTI_TRY(pvti_tuner_eval_teach(t, i, B, &loss.teacher_hidden));
        PVTI_TRY(pvt_run_forward(t->run, t->ids, B, T, NULL));
        PVTI_TRY(pvt_run_loss(t->run, &loss, &part, &count, NULL));
        nll_sum += part, predictions += count;
        if (t->teacher) {
            loss.teacher = t->teacher;
            PVTI_TRY(pvt_run_loss(t->run, &loss, &part, &count, NULL));
        }
        loss_sum += part, losses += count;
        PVTI_TRY(pvti_report(t->ctx, "evaluate", NULL, i + B, t->eval_windows, "windows",
                             loss_sum / (double)losses));
    }
    t->eval_taught = true;
    out->step = t->step;
    out->loss = loss_sum / (double)PVTI_MAX(1, losses);
    out->ppl = pvti_exp64(nll_sum / (double)PVTI_MAX(1, predictions));
    return PVT_OK;
}

/* Keeps the student's present state. */
static pvt_result pvti_tuner_keep(pvt_tuner *t)
{
    for (int64_t i = 0; i < t->n_best; i++) {
        const pvti_best *b = &t->best[i];
        if (b->value)
            PVTI_TRY(pvti_round_values(t->ctx, PVT_F16, b->data, b->value->w, b->n, b->entry->name, 0));
        else
            pvt_memory_copy(t->ctx, b->data, b->entry->weight->codes, b->n * pvti_dtype_info(b->dtype)->bytes);
    }
    return pvti_device_check(t->ctx);
}

static void pvti_tuner_restore(pvt_tuner *t)
{
    for (int64_t i = 0; i < t->n_best; i++) {
        const pvti_best *b = &t->best[i];
        if (b->value) pvti_widen_f16(t->ctx, b->value->w, (const uint16_t *)b->data, b->n);
        else
            pvt_memory_copy(t->ctx, b->entry->weight->codes, b->data, b->n * pvti_dtype_info(b->dtype)->bytes);
    }
}

/* Does what is due at this step: before the first, every eval_every and after the last. */
static pvt_result pvti_tuner_settle(pvt_tuner *t)
{
    const pvt_tune_desc *d = &t->desc;
    pvt_tune_eval now;
    if (!t->eval || t->last.step == t->step || (t->step % d->eval_every && t->step < d->steps)) return PVT_OK;
    PVTI_TRY(pvti_tuner_measure(t, &now));
    if (!(now.loss < HUGE_VAL))
        return pvti_fail(t->ctx, PVT_ERR_NUMERIC, "tune: the loss on the held-out text is not finite");
    if (t->top.step < 0 || now.loss < t->top.loss) {
        PVTI_TRY(pvti_tuner_keep(t));
        t->top = now;
        t->stale = 0;
    } else {
        t->stale++;
    }
    t->last = now;
    if (t->step == 0) t->start = now;
    return PVT_OK;
}

PVT_API pvt_result pvt_tuner_finish(pvt_tuner *tuner, pvt_tune_eval *result)
{
    pvt_tune_eval now;
    memset(&now, 0, sizeof now);
    now.step = -1, now.loss = now.ppl = NAN;
    if (tuner->pv->open)
        return pvti_fail(tuner->ctx, PVT_ERR_ARGUMENT,
                         "tune: the last step failed half-way; resume from a checkpoint");
    if (!tuner->finished) PVTI_TRY(pvti_tuner_settle(tuner));
    if (tuner->eval) pvti_tuner_restore(tuner);
    tuner->finished = true;
    PVTI_TRY(pvt_model_round_f16(tuner->student));
    if (tuner->eval) {
        PVTI_TRY(pvti_tuner_measure(tuner, &now));
        now.step = tuner->top.step;
    }
    if (result) *result = now;
    return PVT_OK;
}

/* ---- a step ---- */

/* The learning rates' common factor in step s (from 0). */
static double pvti_schedule(const pvt_tune_desc *d, int64_t s)
{
    double rise = s < d->warmup ? (double)(s + 1) / (double)d->warmup : 1;
    int64_t rest = d->steps - d->warmup;
    if (d->schedule == PVT_SCHEDULE_CONSTANT || s < d->warmup) return rise;
    return pvti_half_cosine((double)(s - d->warmup) / (double)PVTI_MAX(1, rest));
}

/* The micro-batch's sequences: position p of the endless sequence of epochs, each a fresh
   permutation of the windows to tune on. */
static void pvti_tuner_gather(pvt_tuner *t, int64_t first)
{
    int64_t i, T = t->desc.ctx;
    for (i = 0; i < t->desc.micro_batch; i++) {
        int64_t epoch = (first + i) / t->windows;
        if (epoch != t->epoch) {
            pvti_random_order(t->order, t->windows, t->ctx->seed, PVTI_RANDOM_BATCH, (uint64_t)epoch);
            t->epoch = epoch;
        }
        t->window_of[i] = t->order[(first + i) % t->windows];
        memcpy(t->ids + i * T, t->corpus->ids + t->place[t->window_of[i]] * T, (size_t)T * sizeof *t->ids);
    }
}

/* The teacher's last hidden states for the micro-batch: run, or taken from the cache. */
static pvt_result pvti_tuner_teach(pvt_tuner *t, const pvt_real **hidden)
{
    int64_t i, B = t->desc.micro_batch, each = t->desc.ctx * (t->teacher ? t->teacher->config.dim : 0);
    bool all = t->cache != NULL;
    *hidden = NULL;
    if (!t->teacher) return PVT_OK;
    for (i = 0; i < B; i++) all = all && t->cached[t->window_of[i]];
    if (!all) {
        PVTI_TRY(pvt_run_forward(t->teacher_run, t->ids, B, t->desc.ctx, NULL));
        *hidden = pvt_run_hidden(t->teacher_run);
    }
    for (i = 0; i < B && t->cache; i++) {
        pvt_real *place = t->cache + t->window_of[i] * each;
        int64_t bytes = each * (int64_t)sizeof *place;
        if (all) {
            pvt_memory_write(t->ctx, t->hidden + i * each, place, bytes);
            continue;
        }
        PVTI_TRY(pvt_memory_read(t->ctx, place, *hidden + i * each, bytes));
        t->cached[t->window_of[i]] = true;
    }
    if (all) *hidden = t->hidden;
    return PVT_OK;
}

static pvt_result pvti_tuner_sink(void *user, int64_t tensor, const pvt_real *dW)
{
    pvt_tuner *t = (pvt_tuner *)user;
    return t->handles[tensor] >= 0 ? pvt_pv_apply(t->pv, t->handles[tensor], dW) : PVT_OK;
}

/* Forward and backward of the step's sequences, updates included. Between micro-batches it can be stopped:
   nothing is updated before the last. */
static pvt_result pvti_tuner_batch(pvt_tuner *t, double lr_scale, double *sum, int64_t *tokens)
{
    const pvt_tune_desc *d = &t->desc;
    int64_t done, predicted = d->batch * (t->teacher ? d->ctx : d->ctx - 1);
    *sum = 0;
    *tokens = 0;
    for (done = 0; done < d->batch; done += d->micro_batch) {
        bool last = done + d->micro_batch == d->batch;
        pvt_loss_desc loss;
        double part;
        int64_t count;
        if (done > 0)
            PVTI_TRY(pvti_report(t->ctx, "tune", NULL, t->step, d->steps, "steps", *sum / (double)*tokens));
        memset(&loss, 0, sizeof loss);
        loss.scale = 1.0 / (double)predicted;
        pvti_tuner_gather(t, t->step * d->batch + done);
        PVTI_TRY(pvti_tuner_teach(t, &loss.teacher_hidden));
        loss.teacher = t->teacher;
        PVTI_TRY(pvt_run_forward(t->run, t->ids, d->micro_batch, d->ctx, NULL));
        if (last) PVTI_TRY(pvt_pv_begin(t->pv, lr_scale));
        PVTI_TRY(pvt_run_backward(t->run, &loss, &part, &count, last ? pvti_tuner_sink : NULL, t));
        *sum += part;
        *tokens += count;
    }
    return PVT_OK;
}

PVT_API pvt_result pvt_tuner_step(pvt_tuner *tuner, pvt_tune_stats *stats)
{
    const pvt_tune_desc *d = &tuner->desc;
    pvt_tune_stats s;
    pvt_pv_stats pv;
    pvt_result result;
    double started = pvti_seconds(), sum;
    int64_t tokens;
    memset(&s, 0, sizeof s);
    s.step = tuner->step, s.tokens = tuner->step * d->batch * d->ctx, s.loss = NAN;
    if (stats) *stats = s;
    if (pvt_tuner_get_info(tuner).done)
        return pvti_fail(tuner->ctx, PVT_ERR_ARGUMENT, "tune: all is done after step %lld",
                         (long long)tuner->step);
    PVTI_TRY(pvti_tuner_settle(tuner));
    if (pvti_tuner_stopped(tuner)) return PVT_OK; /* by an evaluation that was cancelled when it was due */
    s.lr_scale = pvti_schedule(d, tuner->step);
    result = pvti_tuner_batch(tuner, s.lr_scale, &sum, &tokens);
    if (result != PVT_OK && d->micro_batch < d->batch)
        pvt_run_zero_grad(tuner->run); /* of a batch that was not completed */
    PVTI_TRY(result);
    PVTI_TRY(pvt_pv_end(tuner->pv, &pv));
    tuner->step++;
    s.step = tuner->step, s.tokens = tuner->step * d->batch * d->ctx;
    s.loss = sum / (double)PVTI_MAX(1, tokens);
    s.groups_searched = pv.groups_searched, s.groups_changed = pv.groups_changed;
    s.seconds = pvti_seconds() - started;
    if (stats) *stats = s;
    PVTI_TRY(pvti_report(tuner->ctx, "tune", NULL, tuner->step, d->steps, "steps", s.loss));
    return pvti_tuner_settle(tuner);
}

PVT_API pvt_result pvt_tune(pvt_ctx *ctx, pvt_model *student, const pvt_model *teacher,
                            const pvt_corpus *corpus, const pvt_tune_desc *desc, pvt_tuner_info *info)
{
    pvt_tuner *tuner;
    pvt_result result;
    PVTI_TRY(pvt_tuner_create(ctx, student, teacher, corpus, desc, &tuner));
    do result = pvt_tuner_step(tuner, NULL);
    while (result == PVT_OK && !pvt_tuner_get_info(tuner).done);
    if (result == PVT_OK) result = pvt_tuner_finish(tuner, NULL);
    if (info) *info = pvt_tuner_get_info(tuner);
    pvt_tuner_free(tuner);
    return result;
}

#endif
#if PVTUNE_LAYER >= 2
// >>checkpoint
/*  A tuning run in one safetensors file: masters, codes, moments and buffers of the pv, the best state so
   far, where the run stands, and what must agree for it to go on. A checkpoint is taken whole or not
   at all. */

/* Everything that must agree for a resumed run to give the same bits, as text by name. (The number of steps
   need not: it only sets the schedule.) */
#define PVTI_OPTION_TEXT 320
typedef struct pvti_tuner_option {
    const char *name;
    char value[PVTI_OPTION_TEXT];
} pvti_tuner_option;
enum { PVTI_TUNER_OPTIONS = 13 };

static const char *pvti_short_number(double x, char out[48])
{
    pvti_number_text(x, 0, out);
    return out;
}

static void pvti_optimizer_text(const pvt_optimizer *o, char out[PVTI_OPTION_TEXT])
{
    char n[5][48];
    snprintf(out, PVTI_OPTION_TEXT, "%s lr %s beta1 %s beta2 %s eps %s decay %s amsgrad %d debias %d",
             o->rule == PVT_OPTIMIZER_LAMB ? "lamb" : "adam", pvti_short_number(o->lr, n[0]),
             pvti_short_number(o->beta1, n[1]), pvti_short_number(o->beta2, n[2]),
             pvti_short_number(o->eps, n[3]), pvti_short_number(o->weight_decay, n[4]), o->amsgrad,
             !o->no_debias);
}

static void pvti_tuner_options(const pvt_tuner *t, pvti_tuner_option out[PVTI_TUNER_OPTIONS])
{
    static const char *const names[PVTI_TUNER_OPTIONS] = {"pvtune",
                                                          "precision",
                                                          "strategy and V step",
                                                          "learning rate of codebooks",
                                                          "learning rate of dense parameters",
                                                          "learning rate of codes",
                                                          "schedule and batch",
                                                          "seed",
                                                          "text",
                                                          "teacher",
                                                          "loss",
                                                          "student",
                                                          "text to evaluate on"};
    const pvt_tune_desc *d = &t->desc;
    char n[4][48];
    int i;
    for (i = 0; i < PVTI_TUNER_OPTIONS; i++) out[i].name = names[i];
    snprintf(out[0].value, PVTI_OPTION_TEXT, "checkpoint 2");
    snprintf(out[1].value, PVTI_OPTION_TEXT, "%d bytes, products %s, moments %s", (int)sizeof(pvt_real),
             t->ctx->compute_bf16 ? "bf16" : "full", d->pv.moments == PVT_BF16 ? "bf16" : "full");
    snprintf(out[2].value, PVTI_OPTION_TEXT,
             "%s cap %s trust %s delta %s beam %d temperature %s force %d freeze %d",
             pvt_strategy_name(d->pv.strategy), pvti_short_number(d->pv.cap, n[0]),
             pvti_short_number(d->pv.trust, n[1]), pvti_short_number(d->pv.delta, n[2]), d->pv.beam,
             pvti_short_number(d->pv.temperature, n[3]), d->pv.force_update, d->pv.freeze_values);
    pvti_optimizer_text(&d->pv.values, out[3].value);
    pvti_optimizer_text(&d->pv.params, out[4].value);
    pvti_optimizer_text(&d->pv.codes, out[5].value);
    snprintf(out[6].value, PVTI_OPTION_TEXT, "%s batch %lld micro %lld ctx %lld freeze %d",
             d->schedule == PVT_SCHEDULE_CONSTANT ? "constant" : "cosine", (long long)d->batch,
             (long long)d->micro_batch, (long long)d->ctx, d->freeze_dense);
    snprintf(out[7].value, PVTI_OPTION_TEXT, "%llu", (unsigned long long)t->ctx->seed);
    snprintf(out[8].value, PVTI_OPTION_TEXT, "%lld tokens, hash %016llx", (long long)t->corpus->n,
             (unsigned long long)t->corpus_hash);
    snprintf(out[9].value, PVTI_OPTION_TEXT, "hash %016llx", (unsigned long long)t->teacher_hash);
    snprintf(out[10].value, PVTI_OPTION_TEXT, t->teacher ? "KL" : "cross-entropy");
    snprintf(out[11].value, PVTI_OPTION_TEXT, "hash %016llx", (unsigned long long)t->student_hash);
    snprintf(out[12].value, PVTI_OPTION_TEXT, t->eval ? "%lld windows, hash %016llx" : "none",
             (long long)t->eval_windows, (unsigned long long)t->eval_hash);
}

/* Where the run stands, as text: figures by their bits, for no digit may be lost. */
static uint64_t pvti_double_bits(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static void pvti_tuner_progress_text(const pvt_tuner *t, char out[400])
{
    const pvt_tune_eval *e[3] = {&t->start, &t->last, &t->top};
    int i, at = snprintf(out, 400, "%lld %lld %lld", (long long)t->step, (long long)t->desc.steps,
                         (long long)t->stale);
    for (i = 0; i < 3; i++)
        at += snprintf(out + at, (size_t)(400 - at), " %lld %016llx %016llx", (long long)e[i]->step,
                       (unsigned long long)pvti_double_bits(e[i]->loss),
                       (unsigned long long)pvti_double_bits(e[i]->ppl));
}

/* False when the text is not one that pvti_tuner_progress_text writes. */
static bool pvti_tuner_progress_parse(const char *text, int64_t n[6], double figures[6])
{
    int i, k = 0, f = 0;
    for (i = 0; i < 12; i++) {
        bool hex = i >= 3 && (i - 3) % 3 != 0;
        char *end;
        unsigned long long bits;
        errno = 0;
        if (hex) {
            uint64_t word;
            bits = strtoull(text, &end, 16);
            word = bits;
            memcpy(&figures[f++], &word, sizeof word);
        } else {
            n[k++] = strtoll(text, &end, 10);
        }
        if (end == text || errno || *end != (i == 11 ? 0 : ' ')) return false;
        text = end + (i < 11);
    }
    return true;
}

/* The i-th array of a checkpoint: of the pv, then of the best state; false past the last. */
static bool pvti_tuner_state(const pvt_tuner *t, int64_t pv_arrays, int64_t i, pvti_pv_array *out)
{
    const pvti_best *b;
    if (i < pv_arrays) return pvti_pv_state(t->pv, i, out);
    i -= pv_arrays;
    if (!t->eval || t->top.step < 0 || i >= t->n_best) return false;
    b = &t->best[i];
    memcpy(out->name, b->name, sizeof out->name);
    out->data = b->data, out->dtype = b->dtype, out->n = b->n;
    return true;
}

static int64_t pvti_tuner_pv_arrays(const pvt_tuner *t)
{
    pvti_pv_array array;
    int64_t n = 0;
    while (pvti_pv_state(t->pv, n, &array)) n++;
    return n;
}

/* What the i-th array of a checkpoint is to the writer: its bytes on the host, where ops compute elsewhere a
   copy, which goes into *copy. */
static pvt_result pvti_tuner_array_out(const pvt_tuner *t, const pvti_pv_array *array, pvti_tensor *out,
                                       void **copy)
{
    out->dtype = array->dtype;
    out->rank = 1;
    out->shape[0] = array->n;
    out->bytes = array->n * pvti_dtype_info(array->dtype)->bytes;
    out->data = (const uint8_t *)array->data;
    if (!t->ctx->device) return PVT_OK;
    *copy = pvti_alloc(t->ctx, out->bytes, 1);
    if (!*copy) return PVT_ERR_MEMORY;
    out->data = (const uint8_t *)*copy;
    return pvt_memory_read(t->ctx, *copy, array->data, out->bytes);
}

PVT_API pvt_result pvt_tuner_save(const pvt_tuner *tuner, const char *path)
{
    pvti_tuner_option options[PVTI_TUNER_OPTIONS];
    const char *metadata[2 * PVTI_TUNER_OPTIONS + 3];
    char progress[400];
    pvti_pv_array array;
    pvti_tensor *tensors;
    char(*names)[128];
    void **copies;
    pvt_result result = PVT_ERR_MEMORY;
    int64_t pv_arrays = pvti_tuner_pv_arrays(tuner), n, i;
    if (tuner->pv->open || tuner->finished)
        return pvti_fail(tuner->ctx, PVT_ERR_ARGUMENT, "%s: %s", path,
                         tuner->finished
                             ? "the tuning is finished; save before pvt_tuner_finish"
                             : "the last step failed half-way; resume from a checkpoint made before it");
    pvti_tuner_options(tuner, options);
    for (i = 0; i < PVTI_TUNER_OPTIONS; i++)
        metadata[2 * i] = options[i].name, metadata[2 * i + 1] = options[i].value;
    pvti_tuner_progress_text(tuner, progress);
    metadata[2 * i] = "progress", metadata[2 * i + 1] = progress, metadata[2 * i + 2] = NULL;
    n = pv_arrays + (tuner->eval && tuner->top.step >= 0 ? tuner->n_best : 0);
    tensors = PVTI_NEW(tuner->ctx, pvti_tensor, n);
    names = (char(*)[128])pvti_alloc(tuner->ctx, n, sizeof *names);
    copies = PVTI_NEW(tuner->ctx, void *, n);
    if (tensors && names && copies) result = PVT_OK;
    for (i = 0; i < n && result == PVT_OK; i++) {
        pvti_tuner_state(tuner, pv_arrays, i, &array);
        memcpy(names[i], array.name, sizeof *names);
        tensors[i].name = names[i];
        result = pvti_tuner_array_out(tuner, &array, &tensors[i], &copies[i]);
    }
    if (result == PVT_OK) result = pvti_safetensors_write(tuner->ctx, path, tensors, n, metadata);
    for (i = 0; copies && i < n; i++) pvti_free(tuner->ctx, copies[i]);
    pvti_free(tuner->ctx, copies);
    pvti_free(tuner->ctx, tensors), pvti_free(tuner->ctx, names);
    return result;
}

/* Codes beyond the codebook would read foreign memory. */
static pvt_result pvti_tuner_resume_codes(const pvt_tuner *t, const pvti_safetensors *st, const char *path,
                                          const pvt_weight *w, const char *name)
{
    const pvti_tensor *codes = pvti_safetensors_find(st, name);
    int64_t k, size = w->format.bits <= 8 ? 1 : 2;
    if (w->format.bits == 8 || w->format.bits == 16) return PVT_OK;
    for (k = 0; k < pvti_tensor_count(codes); k++) {
        uint16_t code = 0;
        memcpy(&code, codes->data + k * size, (size_t)size);
        if (code >= pvti_entries(w))
            return pvti_fail(t->ctx, PVT_ERR_FORMAT, "%s: %s holds code %d of a codebook with %lld entries",
                             path, name, code, (long long)pvti_entries(w));
    }
    return PVT_OK;
}

static pvt_result pvti_tuner_resume_options(const pvt_tuner *t, const pvti_safetensors *st, const char *path)
{
    pvti_tuner_option options[PVTI_TUNER_OPTIONS];
    char text[PVTI_OPTION_TEXT];
    int i;
    pvti_tuner_options(t, options);
    for (i = 0; i < PVTI_TUNER_OPTIONS; i++) {
        if (pvti_safetensors_metadata(st, options[i].name, text, sizeof text) < 0)
            return pvti_fail(t->ctx, PVT_ERR_FORMAT,
                             "%s: not a checkpoint of pvtune (no \"%s\" in its metadata)", path,
                             options[i].name);
        text[sizeof text - 1] = 0; /* it may have been cut */
        if (strcmp(text, options[i].value) != 0)
            return pvti_fail(t->ctx, PVT_ERR_MISMATCH,
                             "%s was made with another %s: it has \"%s\", this run \"%s\"", path,
                             options[i].name, text, options[i].value);
    }
    return PVT_OK;
}

/* Refuses before anything is touched: a checkpoint is taken whole or not at all. n and figures are its
   progress. */
static pvt_result pvti_tuner_resume_check(pvt_tuner *t, const pvti_safetensors *st, const char *path,
                                          int64_t n[6], double figures[6])
{
    pvti_pv_array array;
    char text[400];
    int64_t i, pv_arrays = pvti_tuner_pv_arrays(t);
    PVTI_TRY(pvti_tuner_resume_options(t, st, path));
    if (pvti_safetensors_metadata(st, "progress", text, sizeof text) < 1 ||
        (text[sizeof text - 1] = 0, !pvti_tuner_progress_parse(text, n, figures)) || n[0] < 0 ||
        n[1] < n[0] || n[2] < 0 || n[3] < -1 || n[4] < -1 || n[5] < -1 || n[4] > n[0] || n[5] > n[4])
        return pvti_fail(t->ctx, PVT_ERR_FORMAT, "%s: its progress is malformed", path);
    if (n[0] > t->desc.steps || n[1] > t->desc.steps)
        return pvti_fail(t->ctx, PVT_ERR_MISMATCH,
                         "%s is of a run of %lld steps, %lld of them done; this plan has only %lld", path,
                         (long long)n[1], (long long)n[0], (long long)t->desc.steps);
    t->top.step =
        t->eval ? n[5]
                : -1; /* decides whether there is a best state to list; the caller puts the rest right */
    for (i = 0; pvti_tuner_state(t, pv_arrays, i, &array); i++) {
        const pvti_tensor *in = pvti_safetensors_find(st, array.name);
        if (!in || in->dtype != array.dtype || in->bytes != array.n * pvti_dtype_info(array.dtype)->bytes)
            return pvti_fail(t->ctx, PVT_ERR_MISMATCH,
                             "%s: %s is missing or has another size; was the checkpoint made from "
                             "another model?",
                             path, array.name);
    }
    if (st->n != i)
        return pvti_fail(t->ctx, PVT_ERR_MISMATCH, "%s holds tensors that this model does not have", path);
    for (i = 0; i < t->pv->n; i++) {
        const pvti_pv_entry *e = &t->pv->entries[i];
        char name[128];
        if (!e->weight) continue;
        snprintf(name, sizeof name, "%s.codes", e->name);
        PVTI_TRY(pvti_tuner_resume_codes(t, st, path, e->weight, name));
    }
    for (i = 0; i < t->n_best && t->top.step >= 0; i++)
        if (!t->best[i].value)
            PVTI_TRY(pvti_tuner_resume_codes(t, st, path, t->best[i].entry->weight, t->best[i].name));
    return PVT_OK;
}

/* Takes over a checkpoint that was checked. */
static void pvti_tuner_resume_take(pvt_tuner *t, const pvti_safetensors *st, const int64_t n[6],
                                   const double figures[6])
{
    pvti_pv_array array;
    int64_t i, pv_arrays = pvti_tuner_pv_arrays(t);
    for (i = 0; pvti_tuner_state(t, pv_arrays, i, &array); i++)
        pvt_memory_write(t->ctx, array.data, pvti_safetensors_find(st, array.name)->data,
                         array.n * pvti_dtype_info(array.dtype)->bytes);
    t->step = t->pv->step = n[0];
    t->pv->open = false; /* of a step that failed */
    t->resumed_steps = n[1];
    t->stale = n[1] < t->desc.steps ? 0 : n[2]; /* an extended run may rise anew for a while */
    t->start.step = n[3], t->start.loss = figures[0], t->start.ppl = figures[1];
    t->last.step = n[4], t->last.loss = figures[2], t->last.ppl = figures[3];
    t->top.step = n[5], t->top.loss = figures[4], t->top.ppl = figures[5];
}

PVT_API pvt_result pvt_tuner_resume(pvt_tuner *tuner, const char *path)
{
    pvti_safetensors st;
    pvt_result result;
    int64_t n[6], top = tuner->top.step;
    double figures[6];
    if (tuner->finished)
        return pvti_fail(tuner->ctx, PVT_ERR_ARGUMENT, "%s: this tuning is finished; make another tuner",
                         path);
    PVTI_TRY(pvti_safetensors_open(tuner->ctx, path, &st));
    result = pvti_tuner_resume_check(tuner, &st, path, n, figures);
    if (result == PVT_OK) pvti_tuner_resume_take(tuner, &st, n, figures);
    else tuner->top.step = top;
    pvti_safetensors_close(&st);
    return result;
}
#endif

#endif /* PVTUNE_LAYER >= 2 */

#if !defined(__clang__) && defined(__GNUC__)
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif
#ifdef __cplusplus
}
#endif
#endif /* PVTUNE_IMPLEMENTED */
#endif /* PVTUNE_IMPLEMENTATION */

PVTI_STRUCK_NAMES(PVTI_BRING_BACK)
