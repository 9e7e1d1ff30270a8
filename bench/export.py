"""A model that was exported, in the runtime that it was exported for: perplexity of the same windows of the same token
ids there and here, and the first window's logits. Called by bench/export.sh, once for each runtime.

    export.py PVTUNE MODEL WORK TARGET RESULT [WINDOWS]      RESULT: what `export MODEL --to TARGET` wrote
    export.py - - WORK own ORIGINAL.gguf                     llama.cpp's Q2_0 of a GGUF in 16 bits: no figure of ours

WORK holds ids.json, the text's token ids, and ours.jsonl, the log of `pvtune eval MODEL` on its windows of 512.
"""
import json
import math
import os
import subprocess
import sys

import numpy

T = 512
THREADS = int(os.environ.get("THREADS", "1"))


# ---- runtimes: each a function from the path to a function from T ids to logits [T, V] ----

def llama_cpp(path):
    import llama_cpp
    llama = llama_cpp.Llama(path, n_ctx=T, n_batch=T, n_ubatch=T, logits_all=True, n_threads=THREADS,
                            n_threads_batch=THREADS, verbose=False)

    def logits(ids):
        llama.reset()
        llama.eval(ids)
        return llama.scores[:len(ids)]
    return logits


def of_torch(model):
    import torch
    torch.set_num_threads(THREADS)

    def logits(ids):
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].float().numpy()
    return logits


def transformers(path):
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig
    weights = json.load(open(path + "/config.json"))["quantization_config"]["config_groups"]["group_0"]["weights"]
    # compressed-tensors 0.20 loads packed zeros dequantized alone, see tests/interop_export.py
    more = {} if weights["symmetric"] else {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    return of_torch(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **more))


def gptqmodel(path):
    import torch
    from gptqmodel import BACKEND, GPTQModel
    return of_torch(GPTQModel.load(path, device="cpu", backend=BACKEND.TORCH, dtype=torch.float16).model)


def mlx(path):
    import mlx.core as mx
    from mlx_lm import load
    model, _ = load(path)
    model.set_dtype(mx.float32)
    return lambda ids: numpy.array(model(mx.array([ids])))[0]


RUNTIMES = {"gguf": ("llama.cpp", llama_cpp), "compressed-tensors": ("transformers", transformers),
            "gptq": ("GPTQModel, fp16", gptqmodel), "mlx": ("mlx-lm, fp32", mlx)}


# ---- figures ----

def nll_of(logits, ids):
    """Σ −log p(id t+1 | ids to t)"""
    most = logits.max(-1, keepdims=True)
    rest = numpy.log(numpy.exp(logits - most).sum(-1, dtype=numpy.float64)) + most[:, 0]
    return float((rest[:-1] - logits[numpy.arange(T - 1), ids[1:]]).sum(dtype=numpy.float64))


def perplexity(sums):
    return math.exp(sum(sums) / (len(sums) * (T - 1)))


def first_logits(pvtune, model, work, ids):
    """Ours [T, V]."""
    from safetensors.numpy import load_file
    if not os.path.exists(work + "/ours.logits"):
        json.dump([ids], open(work + "/first.json", "w"))
        subprocess.run([pvtune, "logits", model, "--ids", work + "/first.json", "-o", work + "/ours.logits",
                        "--threads", str(THREADS), "--quiet"], check=True)
    return load_file(work + "/ours.logits")["logits"][0]


def bytes_of(path):
    """Of a GGUF, or of a directory's weights."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(path, name)) for name in os.listdir(path) if name.endswith(".safetensors"))


def quantized_by_llama_cpp(path, work):
    import ctypes
    import llama_cpp
    how, result = llama_cpp.llama_model_quantize_default_params(), work + "/own-q2_0.gguf"
    how.ftype, how.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q2_0, THREADS
    if not os.path.exists(result) and llama_cpp.llama_model_quantize(path.encode(), result.encode(), ctypes.byref(how)):
        sys.exit("llama.cpp could not quantize %s" % path)
    return result


def main():
    rows = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what runtimes print goes to the log
    pvtune, model, work, target, result = sys.argv[1:6]
    own = target == "own"
    if own:
        result = quantized_by_llama_cpp(result, work)
    ours = [json.loads(line)["nll_sum"] for line in open(work + "/ours.jsonl")]
    windows = min(len(ours), int(sys.argv[6]) if len(sys.argv) > 6 else len(ours))
    text = json.load(open(work + "/ids.json"))
    name, runtime = RUNTIMES["gguf" if own else target.split(":")[0]]
    logits, sums, off = runtime(result), [], ""
    for w in range(windows):
        ids = text[w * T:(w + 1) * T]
        theirs = logits(ids)
        sums.append(nll_of(theirs, ids))
        print("%s: %d of %d windows" % (target, w + 1, windows), sums[-1], perplexity(sums), file=sys.stderr, flush=True)
        if w == 0 and not own:
            mine = first_logits(pvtune, model, work, ids)
            far = theirs.astype(numpy.float64) - mine
            off = "%.1e %.1e" % (numpy.sqrt((far ** 2).mean()) / mine.std(), numpy.abs(far).max() / mine.std())
    there, here = perplexity(sums), perplexity(ours[:windows])
    figures = "" if own else "%10.3f %+9.4f %%  %s" % (here, 100 * (there / here - 1), off)
    print("%-20s %-24s %6.1f %4d %14.3f %s" % ("its own Q2_0" if own else target, name, bytes_of(result) / 1e6, windows, there, figures),
          file=rows, flush=True)


main()
