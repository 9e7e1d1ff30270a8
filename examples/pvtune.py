"""pvtune from Python: ctypes and numpy over the shared library (`make lib`, or PVTUNE_LIBRARY=PATH).

    p = Pvtune(threads=2, seed=0)
    model = p.load("model")                          # a Hugging Face directory, .gguf or llama2.c .bin
    p.logits(model, [[1, 2, 3]])                     # [B, T, V] float32
    p.perplexity(model, "text.txt")                  # or token ids
    p.quantize(W, "aqlm:2x8g8", H=X.T @ X)           # a matrix of yours: W as its codes make it, error, bits per weight
    p.lib.pvt_model_free(model)

Every desc is NULL, its defaults. What takes no struct goes through call(): p.call("pvt_model_save", model, b"dir", None);
the rest (tuning, codes as arrays, progress, devices) needs structs as below, field by field as pvtune.h has them."""
import ctypes as c
import os
import numpy as np

VERSION = 200  # PVT_VERSION of the header whose structs these are; another library refuses it
BUILT = os.path.dirname(os.path.abspath(__file__)) + "/../build/libpvtune.so"
P, I64, D = c.c_void_p, c.c_int64, c.c_double

def struct(*types, **names):  # the types of all fields; by name, the numbers of those that are set or read
    named = {number: name for name, number in names.items()}
    return type("Struct", (c.Structure,), {"_fields_": [(named.get(i, f"f{i}"), t) for i, t in enumerate(types)]})
Desc = struct(c.c_int, P, c.c_uint64, c.c_bool, P * 26, P, I64, threads=0, seed=2, error=5, error_bytes=6)
Config, Run = struct(c.c_char * 16, *[I64] * 8, vocab=7), struct(I64, I64, I64, c.c_bool, c.c_bool, c.c_bool, P, I64)
Corpus, Ppl = struct(P, I64, P), struct(D, D, D, D, I64, I64, I64, I64, D, ppl=0)
Format, Fit = struct(*[c.c_int] * 7), struct(D, D, c.c_int, D, error=0)
Weight = struct(P, P, I64, I64, Format, c.c_int, P * 4, P, c.c_bool)

def array(x, dtype, *shape):  # as the library has it; ids that would be cut, and other shapes, are refused
    y = np.ascontiguousarray(x, dtype)
    if (dtype == np.int32 and not np.array_equal(x, y)) or y.shape != (shape or y.shape):
        raise ValueError("token ids are whole numbers of 32 bits; W is [out, in], H [in, in]")
    return y, y.ctypes.data_as(P)

class Pvtune:
    def __init__(self, threads=0, seed=0, library=None):
        self.lib = c.CDLL(library or os.environ.get("PVTUNE_LIBRARY", BUILT))
        for name, result in dict(ctx_error=c.c_char_p, result_text=c.c_char_p, model_tokenizer=P, model_get_config=P,
                                 weight_bits=D).items():
            getattr(self.lib, "pvt_" + name).restype = result
        self.ctx, said = P(), c.create_string_buffer(512)
        desc = Desc(threads=threads, seed=seed, error=c.cast(said, P), error_bytes=512)
        code = self.lib.pvt_ctx_create_v(c.byref(desc), c.byref(self.ctx), VERSION, c.c_size_t(4),
                                         c.c_size_t(c.sizeof(Desc)))
        if code: raise RuntimeError((said.value or self.lib.pvt_result_text(code)).decode())

    def call(self, name, *arguments, free=None):  # free: what goes in any case
        code = getattr(self.lib, name)(*arguments)
        sentence = self.lib.pvt_ctx_error(self.ctx).decode() if code else None
        if free: free()
        if code: raise RuntimeError(sentence)

    def load(self, path):
        model = P()
        self.call("pvt_model_load", self.ctx, os.fsencode(path), None, c.byref(model))
        return model

    def logits(self, model, ids):
        (B, T), run, config = np.shape(ids), P(), self.lib.pvt_model_get_config(model)
        (ids, at), V = array(ids, np.int32), Config.from_address(config).vocab
        out, to = array(np.empty((B, T, V), np.float32), np.float32)
        self.call("pvt_run_create", model, c.byref(Run(B, T)), c.byref(run))
        self.call("pvt_run_forward", run, at, I64(B), I64(T), to, free=lambda: self.lib.pvt_run_free(run))
        return out

    def perplexity(self, model, text):
        corpus, out = Corpus(), Ppl()
        if isinstance(text, (str, os.PathLike)):
            tokenizer = P(self.lib.pvt_model_tokenizer(model))
            self.call("pvt_corpus_load", self.ctx, os.fsencode(text), tokenizer, c.byref(corpus))
        else:
            ids, at = array(text, np.int32)
            self.call("pvt_corpus_from_ids", self.ctx, at, I64(ids.size), c.byref(corpus))
        self.call("pvt_perplexity", model, c.byref(corpus), None, c.byref(out),
                  free=lambda: self.lib.pvt_corpus_free(c.byref(corpus)))
        return out.ppl

    def quantize(self, W, format, H=None):
        (O, I), shape, weight, stats = np.shape(W), Format(), Weight(), Fit()
        (W, at), (H, moments) = array(W, np.float32), (None, None) if H is None else array(H, np.float32, I, I)
        self.call("pvt_format_parse", self.ctx, format.encode(), c.byref(shape))
        self.call("pvt_weight_fit", self.ctx, at, I64(O), I64(I), moments, c.byref(shape), None, c.byref(stats),
                  c.byref(weight))
        (out, to), bits = array(np.empty((O, I), np.float32), np.float32), self.lib.pvt_weight_bits(c.byref(weight))
        self.lib.pvt_weight_dequantize(c.byref(weight), to)
        self.lib.pvt_weight_free(c.byref(weight))
        return out, stats.error, bits

    def __del__(self):
        if getattr(self, "ctx", None): self.lib.pvt_ctx_destroy(self.ctx)
