"""Does pvtune read GGUF's block types as llama.cpp does? One row per type: a small model whose matrices are partly random bits
and partly what llama.cpp's quantizer makes of numbers, loaded here, written as dense float32, and held against llama.cpp's own
decoder, called in its library, and against the numpy one of the package gguf where that knows the type. Equal means equal.

    interop_blocks.py PVTUNE WORK
"""
import ctypes
import glob
import os
import struct
import sys

import gguf
import llama_cpp
import numpy as np
from safetensors.numpy import load_file

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden"))
import blocks as golden  # the types and the generator of their bits
from interop_rows import row, run, work

DIM, FF, VOCAB, HEADS, KV = 256, 512, 128, 4, 2
HEAD = DIM // HEADS
# GGUF's name, Hugging Face's, rows, columns
TENSORS = [("token_embd", "model.embed_tokens", VOCAB, DIM), ("output", "lm_head", VOCAB, DIM)] + [
    ("blk.0." + a, "model.layers.0." + b, rows, columns) for a, b, rows, columns in (
        ("attn_q", "self_attn.q_proj", DIM, DIM), ("attn_k", "self_attn.k_proj", KV * HEAD, DIM),
        ("attn_v", "self_attn.v_proj", KV * HEAD, DIM), ("attn_output", "self_attn.o_proj", DIM, DIM),
        ("ffn_gate", "mlp.gate_proj", FF, DIM), ("ffn_up", "mlp.up_proj", FF, DIM), ("ffn_down", "mlp.down_proj", DIM, FF))]
KEYS = {"block_count": 1, "embedding_length": DIM, "feed_forward_length": FF, "attention.head_count": HEADS,
        "attention.head_count_kv": KV, "context_length": 64, "rope.freq_base": 10000.0,
        "attention.layer_norm_rms_epsilon": 1e-5}


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def write(path, tensors):
    """tensors: name -> (number of its type, shape, bytes)"""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1 + len(KEYS))
    out += string("general.architecture") + struct.pack("<I", 8) + string("llama")
    for key, value in KEYS.items():
        kind, code = ("<f", 6) if isinstance(value, float) else ("<I", 4)
        out += string("llama." + key) + struct.pack("<I", code) + struct.pack(kind, value)
    data = b""
    for name, (id, shape, raw) in tensors.items():
        out += string(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in reversed(shape))
        out += struct.pack("<IQ", id, len(data))
        data += raw + bytes(-len(raw) % 32)
    with open(path, "wb") as file:
        file.write(out + bytes(-len(out) % 32) + data)


def quantized(library, id, bytes_per_row, numbers):
    """By llama.cpp; some types need to know how important each column is: all alike."""
    rows, columns = numbers.shape
    out, importance = np.zeros(rows * bytes_per_row, np.uint8), np.ones(columns, np.float32)
    numbers = np.ascontiguousarray(numbers, np.float32)
    pointer = lambda x: ctypes.c_void_p(x.ctypes.data)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    size = library.ggml_quantize_chunk(ctypes.c_int(id), pointer(numbers), pointer(out), ctypes.c_int64(0),
                                       ctypes.c_int64(rows), ctypes.c_int64(columns), pointer(importance))
    assert size == out.size, (id, size, out.size)
    return out


def rows_of_pairs(values):
    """Rows as GGUF has q and k, in Hugging Face's order."""
    return values.reshape(-1, HEAD // 2, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def check(library, name, id, elements, bytes, scale):
    fields = [scale, golden.MINIMA[name]] if name in golden.MINIMA else [scale]
    random, tensors, wanted, numpy_too = np.random.default_rng(id), {}, {}, True
    for k, (theirs, ours, rows, columns) in enumerate(TENSORS):
        count = rows * columns // elements
        if k % 2 == 0:
            raw = golden.random_blocks(100 * id + k, count, bytes, fields)
        else:
            raw = quantized(library, id, columns // elements * bytes, random.normal(0, 0.05, (rows, columns))).reshape(-1, bytes)
        tensors[theirs + ".weight"] = (id, (rows, columns), raw.tobytes())
        values = golden.decode(library, id, raw, elements).reshape(rows, columns)
        try:
            again = gguf.quants.dequantize(raw.reshape(rows, -1), gguf.GGMLQuantizationType(id))
            assert np.array_equal(again.view(np.uint32), values.view(np.uint32)), name
        except (ValueError, NotImplementedError):
            numpy_too = False
        wanted[ours + ".weight"] = rows_of_pairs(values) if theirs.endswith(("_q", "_k")) else values
    for norm in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        tensors[norm + ".weight"] = (0, (DIM,), np.ones(DIM, np.float32).tobytes())
    source, result = os.path.join(work, name + ".gguf"), os.path.join(work, name)
    write(source, tensors)
    run("export", source, "--to", "dense", "--dtype", "f32", "-o", result)
    if run("info", source, "--tensors").count(name) < len(TENSORS):
        return False, "info does not name the type"
    got, different = load_file(os.path.join(result, "model.safetensors")), 0
    for tensor, values in wanted.items():
        different += int((got[tensor].view(np.uint32) != values.view(np.uint32)).sum())
    total = sum(values.size for values in wanted.values())
    return different == 0, "%d of %d weights differ%s" % (different, total, ", gguf's numpy agrees" if numpy_too else "")


def main():
    library = ctypes.CDLL(glob.glob(os.path.join(os.path.dirname(llama_cpp.__file__), "lib", "libggml-base.*"))[0])
    os.makedirs(work, exist_ok=True)
    for name, id, elements, bytes, scale in golden.TYPES:
        try:
            good, figure = check(library, name, id, elements, bytes, scale)
        except Exception as error:  # whatever it is, it is this row's
            good, figure = False, "%s: %s" % (type(error).__name__, str(error)[:200])
        row("llama-cpp " + llama_cpp.__version__, name, "weights as llama.cpp decodes them", good, figure)


main()
