"""pvtune from Python: ctypes and numpy over the shared library (`make lib`, or PVTUNE_LIBRARY=PATH).

    from pvtune import Pvtune
    p = Pvtune(threads=2, seed=0)
    model = p.load("model")                          # a Hugging Face directory, .gguf or llama2.c .bin
    p.logits(model, [[1, 2, 3]])                     # [B, T, V] float32
    p.perplexity(model, "text.txt")                  # or token ids
    p.quantize(W, "aqlm:2x8g8", H=X.T @ X)           # a matrix of yours: W as its codes make it, error, bits per weight
    p.free(model)

Missing: options (every desc is NULL, its defaults), gradients, a weight's codes as arrays, progress, devices. What
takes no struct goes through call(), such as p.call("pvt_model_save", model, b"dir", None); the rest needs structs
as below, field by field as pvtune.h has them."""
import ctypes as c
import os
import numpy as np

VERSION = 200  # PVT_VERSION of the header whose structs these are; another library refuses it
P, I64, D = c.c_void_p, c.c_int64, c.c_double


def int32(ids):
    """Token ids as the library has them; fractions and what no 32 bits hold are refused, not cut."""
    ids = np.asarray(ids)
    if not np.issubdtype(ids.dtype, np.integer) or (ids.size and (ids.min() < -2**31 or ids.max() >= 2**31)):
        raise ValueError("token ids must be whole numbers of 32 bits")
    return np.ascontiguousarray(ids, np.int32)


def struct(*fields):
    return type("Struct", (c.Structure,), {"_fields_": [(f"f{i}" if isinstance(f, type) else f[0],
                f if isinstance(f, type) else f[1]) for i, f in enumerate(fields)]})


Desc = struct(("n_threads", c.c_int), P, ("seed", c.c_uint64), c.c_bool, P * 26, ("error", P), ("error_bytes", I64))
Config = struct(c.c_char * 16, I64, I64, I64, I64, I64, I64, ("vocab", I64), ("ctx", I64))
Run = struct(("max_batch", I64), ("max_ctx", I64), I64, c.c_bool, c.c_bool, c.c_bool, P, I64)
Corpus = struct(P, I64, P)
Ppl = struct(("ppl", D), ("nll", D), D, D, I64, I64, I64, I64, D)
Format = struct(*[c.c_int] * 7)
Weight = struct(P, P, I64, I64, Format, c.c_int, P * 4, P, c.c_bool)
Fit = struct(("error", D), D, c.c_int, D)


class Pvtune:
    def __init__(self, threads=0, seed=0, library=None):
        beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "build", "libpvtune.so")
        self.lib, self.ctx, said = c.CDLL(library or os.environ.get("PVTUNE_LIBRARY", beside)), P(), c.create_string_buffer(512)
        for name, result in (("pvt_ctx_error", c.c_char_p), ("pvt_model_tokenizer", P), ("pvt_model_get_config", P),
                             ("pvt_weight_bits", D), ("pvt_result_text", c.c_char_p)):
            getattr(self.lib, name).restype = result
        desc = Desc(n_threads=threads, seed=seed, error=c.cast(said, P), error_bytes=512)
        code = self.lib.pvt_ctx_create_v(c.byref(desc), c.byref(self.ctx), VERSION, c.c_size_t(4), c.c_size_t(c.sizeof(Desc)))
        if code:
            raise RuntimeError(said.value.decode() or self.lib.pvt_result_text(code).decode())

    def call(self, name, *arguments):
        if getattr(self.lib, name)(*arguments):
            raise RuntimeError(self.lib.pvt_ctx_error(self.ctx).decode())

    def load(self, path):
        model = P()
        self.call("pvt_model_load", self.ctx, os.fsencode(path), None, c.byref(model))
        return model

    def free(self, model):
        self.lib.pvt_model_free(model)

    def logits(self, model, ids):
        ids, run = int32(ids), P()
        (B, T), V = ids.shape, Config.from_address(self.lib.pvt_model_get_config(model)).vocab
        out = np.empty((B, T, V), np.float32)
        self.call("pvt_run_create", model, c.byref(Run(max_batch=B, max_ctx=T)), c.byref(run))
        try:
            self.call("pvt_run_forward", run, ids.ctypes.data_as(P), I64(B), I64(T), out.ctypes.data_as(P))
        finally:
            self.lib.pvt_run_free(run)
        return out

    def perplexity(self, model, text):
        corpus, out = Corpus(), Ppl()
        if isinstance(text, (str, os.PathLike)):
            self.call("pvt_corpus_load", self.ctx, os.fsencode(text), P(self.lib.pvt_model_tokenizer(model)), c.byref(corpus))
        else:
            ids = int32(text)
            self.call("pvt_corpus_from_ids", self.ctx, ids.ctypes.data_as(P), I64(ids.size), c.byref(corpus))
        try:
            self.call("pvt_perplexity", model, c.byref(corpus), None, c.byref(out))
        finally:
            self.lib.pvt_corpus_free(c.byref(corpus))
        return out.ppl

    def quantize(self, W, format, H=None):
        W, shape, weight, stats = np.ascontiguousarray(W, np.float32), Format(), Weight(), Fit()
        H = None if H is None else np.ascontiguousarray(H, np.float32)
        if W.ndim != 2 or (H is not None and H.shape != (W.shape[1],) * 2):
            raise ValueError("W is [out, in], and H, if given, [in, in]")
        self.call("pvt_format_parse", self.ctx, format.encode(), c.byref(shape))
        self.call("pvt_weight_fit", self.ctx, W.ctypes.data_as(P), I64(W.shape[0]), I64(W.shape[1]),
                  None if H is None else H.ctypes.data_as(P), c.byref(shape), None, c.byref(stats), c.byref(weight))
        out, bits = np.empty_like(W), self.lib.pvt_weight_bits(c.byref(weight))
        self.lib.pvt_weight_dequantize(c.byref(weight), out.ctypes.data_as(P))
        self.lib.pvt_weight_free(c.byref(weight))
        return out, stats.error, bits

    def __del__(self):
        if getattr(self, "ctx", None):
            self.lib.pvt_ctx_destroy(self.ctx)
