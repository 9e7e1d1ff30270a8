"""Makes blocks.safetensors, against which tests/test_blocks.c holds the decoders of GGUF's block types: what llama.cpp's
own functions make of blocks of pseudo-random bits. They are called in its library, so that nothing is shared with pvtune.h.

    python tests/golden/blocks.py LIBGGML_BASE [OUT]     e.g. .../site-packages/llama_cpp/lib/libggml-base.so

Made with llama-cpp-python 0.3.36, numpy 2.4.6. A block of type number `id` is bytes of the generator below, begun at
`id`; its fp16 scale is made one of an ordinary size. Per type
    NAME.blocks, NAME.values   u8, f32: the first blocks, 256 elements, and their elements
    NAME.hash                  u64: FNV-1a of the bits of the elements of the first 1000 blocks, every point of every grid
                               among them
    NAME.any                   u64: the same with wholly random scales, infinities among them, and every NaN as 0x7fc00000
"""
import ctypes, os, sys
import numpy as np

# name, its number, elements and bytes of a block, where its scale stands (−1: spread over it, see scale below)
TYPES = [("Q4_0", 2, 32, 18, 0), ("Q4_1", 3, 32, 20, 0), ("Q5_0", 6, 32, 22, 0), ("Q5_1", 7, 32, 24, 0), ("Q8_0", 8, 32, 34, 0),
         ("Q2_K", 10, 256, 84, 80), ("Q3_K", 11, 256, 110, 108), ("Q4_K", 12, 256, 144, 0), ("Q5_K", 13, 256, 176, 0),
         ("Q6_K", 14, 256, 210, 208),
         ("IQ1_S", 19, 256, 50, 0), ("IQ1_M", 29, 256, 56, -1), ("IQ2_XXS", 16, 256, 66, 0), ("IQ2_XS", 17, 256, 74, 0),
         ("IQ2_S", 22, 256, 82, 0), ("IQ3_XXS", 18, 256, 98, 0), ("IQ3_S", 21, 256, 110, 0), ("IQ4_NL", 20, 32, 18, 0),
         ("IQ4_XS", 23, 256, 136, 0), ("TQ1_0", 34, 256, 54, 52), ("TQ2_0", 35, 256, 66, 64), ("Q2_0", 42, 64, 18, 0)]
MINIMA = {"Q4_1": 2, "Q5_1": 2, "Q2_K": 82, "Q4_K": 2, "Q5_K": 2}  # where a second fp16 stands


def random_blocks(id, n, bytes, fields):
    state, out = id, np.empty(n * bytes, np.uint8)
    for i in range(out.size):
        state = (state * 1664525 + 1013904223) & 0xffffffff
        out[i] = state >> 24
    out = out.reshape(n, bytes)
    for at in fields:
        if at < 0:  # IQ1_M: the upper four bits of four u16 at 48 on
            out[:, 55] = (out[:, 55] & 0x8f) | 0x20
        else:
            out[:, at + 1] = (out[:, at + 1] & 0x83) | 0x2c
    return out


def decode(library, id, blocks, elements):
    class Traits(ctypes.Structure):
        _fields_ = [("name", ctypes.c_char_p), ("blck_size", ctypes.c_int64), ("interleave", ctypes.c_int64),
                    ("type_size", ctypes.c_size_t), ("quantized", ctypes.c_bool),
                    ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64))]
    library.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    traits = library.ggml_get_type_traits(id).contents
    assert (traits.blck_size, traits.type_size) == (elements, blocks.shape[1]), (id, traits.blck_size, traits.type_size)
    blocks = np.ascontiguousarray(blocks)
    out = np.empty(blocks.shape[0] * elements, np.float32)
    traits.to_float(blocks.ctypes.data, out.ctypes.data, out.size)
    return out


def fnv(values):
    hash = 0xcbf29ce484222325
    for byte in values.astype("<f4").tobytes():
        hash = ((hash ^ byte) * 0x100000001b3) & 0xffffffffffffffff
    return np.array([hash], np.uint64)


def main():
    from safetensors.numpy import save_file
    library, tensors = ctypes.CDLL(sys.argv[1]), {}
    out = sys.argv[2] if len(sys.argv) > 2 else os.path.dirname(os.path.abspath(__file__))
    for name, id, elements, bytes, scale in TYPES:
        fields = [scale, MINIMA[name]] if name in MINIMA else [scale]
        blocks, first = random_blocks(id, 1000, bytes, fields), 256 // elements
        values = decode(library, id, blocks, elements)
        assert np.isfinite(values).all()
        tensors[name + ".hash"] = fnv(values)
        if id > 14:
            tensors[name + ".blocks"], tensors[name + ".values"] = blocks[:first].copy(), values[:256].copy()
        values = decode(library, id, random_blocks(id, 1000, bytes, []), elements)
        values.view(np.uint32)[np.isnan(values)] = 0x7fc00000
        tensors[name + ".any"] = fnv(values)
    save_file(tensors, os.path.join(out, "blocks.safetensors"))


if __name__ == "__main__":
    main()
