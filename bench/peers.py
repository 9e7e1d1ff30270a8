"""Our benches beside other software doing the same work, in turn: A B A B. One row per question and thread count;
the ratio is our speed over theirs, its least, median and largest over the rounds. What is not installed is left
out, with one line that says so. Called by `make bench-peers`.

    peers.py BUILD [--rounds N] [--threads N] [--only TEXT]"""
import argparse
import ctypes
import glob
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time


def best(run, seconds=1.0, least=3):
    """The shortest of repeated runs, after one for warming up."""
    run()
    times, start = [], time.perf_counter()
    while len(times) < least or (time.perf_counter() - start < seconds and len(times) < 200):
        t = time.perf_counter()
        run()
        times.append(time.perf_counter() - t)
    return min(times)


# ---- what peers do; each runs in a process of its own and returns a rate ----

def torch_gemm(threads, M, N, K, dtype):
    import torch
    torch.set_num_threads(threads)
    x = torch.randn(M, K, dtype=getattr(torch, dtype))
    w = torch.randn(N, K, dtype=getattr(torch, dtype))
    with torch.no_grad():
        return 2e-9 * M * N * K / best(lambda: torch.nn.functional.linear(x, w))


def smollm2(torch):
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, use_cache=False))


def torch_step(threads, compute, compiled):
    import torch
    torch.set_num_threads(threads)
    model = smollm2(torch)
    ids = torch.randint(0, 49152, (2, 512))
    forward = torch.compile(model) if compiled else model

    def step():
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=compute == "bf16"):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
    return 1024 / best(step, 15)


def transformers_prompt(threads):
    import torch
    torch.set_num_threads(threads)
    model = smollm2(torch).eval()
    ids = torch.randint(0, 49152, (1, 512))
    with torch.no_grad():
        return 512 / best(lambda: model(input_ids=ids, num_logits_to_keep=1), 3)


def aqlm_gemv(threads):
    import torch
    from aqlm.inference_kernels.numba_kernel import numba_gemm_lut
    torch.manual_seed(0)
    x, O, I = torch.randn(1, 2048), 5632, 2048
    codes = torch.randint(-128, 128, (O, I // 8, 2), dtype=torch.int8)
    codebooks, scales = torch.randn(2, 256, 1, 8), torch.ones(O, 1, 1, 1)
    codes = codes.permute(1, 0, 2).contiguous()
    return 1e-9 * O * I / best(lambda: numba_gemm_lut(x, codes, codebooks, scales, None))


def points():
    import numpy
    return numpy.random.default_rng(0).standard_normal((110592, 8)).astype("float32")


def faiss_kmeans(threads):
    import faiss
    faiss.omp_set_num_threads(threads)
    x = points()
    return 26e-6 * len(x) / best(lambda: faiss.Kmeans(8, 256, niter=25, max_points_per_centroid=1 << 20).train(x), 3)


def faiss_nearest(threads):
    import faiss
    faiss.omp_set_num_threads(threads)
    x = points()
    index = faiss.IndexFlatL2(8)
    index.add(x[:256])
    return 1e-6 * len(x) / best(lambda: index.search(x, 1), 3)


def llama_file():
    """SmolLM2 in Q4_0, made by llama.cpp from the GGUF that `make smollm2` fetches."""
    build = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(sys.executable))))
    made = os.path.join(build, "smollm2", "q4_0.peer")
    if not os.path.exists(made):
        from llama_cpp import llama_cpp as llama
        found = glob.glob(os.path.join(build, "smollm2", "*.gguf"))
        if not found:
            raise FileNotFoundError("no SmolLM2 in %s/smollm2: `make smollm2` fetches it" % build)
        params = llama.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize, params.nthread = llama.LLAMA_FTYPE_MOSTLY_Q4_0, True, os.cpu_count()
        if llama.llama_model_quantize(found[0].encode(), (made + ".new").encode(), ctypes.byref(params)):
            raise RuntimeError("llama_model_quantize failed")
        os.rename(made + ".new", made)
    return made


def llama_rate(threads, prompt, tokens):
    """Tokens a second of a prompt, or of tokens one by one after it; the low-level calls, logits not copied."""
    from llama_cpp import llama_cpp as llama
    params = llama.llama_model_default_params()
    params.use_mmap = True
    model = llama.llama_model_load_from_file(llama_file().encode(), params)
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512 if not tokens else prompt + tokens
    params.n_threads = params.n_threads_batch = threads
    context = llama.llama_init_from_model(model, params)
    ids = (llama.llama_token * (prompt + tokens))(*[1 + i * 37 % 40000 for i in range(prompt + tokens)])

    def decode(first, n):
        part = (llama.llama_token * n).from_buffer(ids, first * ctypes.sizeof(llama.llama_token))
        if llama.llama_decode(context, llama.llama_batch_get_one(part, n)):
            raise RuntimeError("llama_decode failed")

    def run():
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        decode(0, prompt)
        for i in range(tokens):
            decode(prompt + i, 1)
        llama.llama_synchronize(context)
    return (tokens or prompt) / best(run, 3)


# what, our bench and its rows' name, peer, its modules, its function and arguments, thread counts
ROWS = [
    ("GEMM fp32 1024 x 1536 x 576", "gemm", "x.W^T, 1024 x 1536 x 576", "torch", ["torch"], torch_gemm, (1024, 1536, 576, "float32"), (1, 2)),
    ("GEMM fp32 2048 x 5632 x 2048", "gemm", "x.W^T, 2048 x 5632 x 2048", "torch", ["torch"], torch_gemm, (2048, 5632, 2048, "float32"), (1, 2)),
    ("GEMM bf16 2048 x 5632 x 2048", "gemm", "bf16 x.W^T, 2048 x 5632 x 2048", "torch", ["torch"], torch_gemm, (2048, 5632, 2048, "bfloat16"), (1, 2)),
    ("8 rows 8 x 5632 x 2048", "gemm", "x.W^T, 8 x 5632 x 2048", "torch", ["torch"], torch_gemm, (8, 5632, 2048, "float32"), (1, 2)),
    ("forward + backward 2 x 512, fp32", "step", "2 x 512 forward + backward, fp32", "torch", ["torch", "transformers"], torch_step, ("fp32", False), (2,)),
    ("forward + backward 2 x 512, fp32", "step", "2 x 512 forward + backward, fp32", "torch.compile", ["torch", "transformers"], torch_step, ("fp32", True), (2,)),
    ("forward + backward 2 x 512, bf16", "step", "2 x 512 forward + backward, bf16", "torch autocast", ["torch", "transformers"], torch_step, ("bf16", False), (2,)),
    ("prompt of 512, fp32", "generate", "prompt of 512, fp32", "transformers", ["torch", "transformers"], transformers_prompt, (), (1, 2)),
    ("prompt of 512, theirs Q4_0", "generate", "prompt of 512, fp32", "llama.cpp", ["llama_cpp"], llama_rate, (512, 0), (1, 2)),
    ("prompt of 512, bf16, theirs Q4_0", "generate", "prompt of 512, bf16", "llama.cpp", ["llama_cpp"], llama_rate, (512, 0), (1, 2)),
    ("64 tokens, 2 bits, theirs Q4_0", "generate", "64 tokens, head in q8", "llama.cpp", ["llama_cpp"], llama_rate, (8, 64), (1, 2)),
    ("one token 2x8g8 5632 x 2048", "tokens", "one token, 2x8g8, look-ups, 5632 x 2048", "aqlm", ["torch", "aqlm", "numba"], aqlm_gemv, (), (1,)),
    ("k-means 110,592 x 8", "codes", "k-means, 110,592 x 8, 256 clusters, 25 rounds", "faiss", ["faiss"], faiss_kmeans, (), (1, 2)),
    ("nearest of 256", "codes", "nearest of 256, 110,592 x 8", "faiss", ["faiss"], faiss_nearest, (), (1, 2)),
]


def ours(build, bench, name, threads):
    out = subprocess.run([build + "/bench/" + bench, "--json", "--threads", str(threads), "--only", name],
                         check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in out.splitlines()]
    return next(r["rate"] for r in rows if r["what"].startswith(name) and r["threads"] == threads)


def theirs(row, threads):
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), NUMBA_NUM_THREADS=str(threads))
    out = subprocess.run([sys.executable, __file__, "--measure", str(row), str(threads)], env=env,
                         capture_output=True, text=True)
    if out.returncode:
        print("    failed: " + (out.stderr.strip().splitlines() or ["?"])[-1])
        return None
    return float(out.stdout.split()[-1])


def openblas(build, rounds, threads, only):
    """bench/gemm takes OpenBLAS in turn by itself."""
    ratios = {}
    for _ in range(rounds):
        out = subprocess.run([build + "/bench/gemm", "--json", "--threads", str(threads)], check=True,
                             capture_output=True, text=True).stdout
        rows = [json.loads(line) for line in out.splitlines()]
        for a, b in zip(rows, rows[1:]):
            if "OpenBLAS" in b["what"]:
                ratios.setdefault((a["what"], a["threads"]), []).append((a["rate"], b["rate"]))
    if not ratios:
        print("libopenblas.so.0 is not installed: its rows are left out")
    for (what, n), pairs in ratios.items():
        show("GEMM fp32 " + what, "OpenBLAS", n, pairs)


def show(what, peer, threads, pairs):
    ratio = sorted(a / b for a, b in pairs)
    print("%-42s %-15s %d  %9.4g %9.4g   %5.2f  %5.2f  %5.2f" % (
        what, peer, threads, max(a for a, _ in pairs), max(b for _, b in pairs), ratio[0], statistics.median(ratio), ratio[-1]), flush=True)


def main():
    if sys.argv[1] == "--measure":
        row, threads = ROWS[int(sys.argv[2])], int(sys.argv[3])
        print(row[5](threads, *row[6]))
        return
    options = argparse.ArgumentParser()
    options.add_argument("build")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--only", default="")
    o = options.parse_args()
    print("%-42s %-15s %s  %9s %9s   %5s  %5s  %5s" % ("rates: the unit of make bench; ratio: ours to theirs", "peer", "T", "ours", "theirs", "least", "median", "most"))
    absent = set()
    for i, (what, bench, name, peer, modules, _, _, thread_counts) in enumerate(ROWS):
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        if missing:
            absent.update(missing)
            continue
        for n in thread_counts:
            if o.only not in what + " " + peer or n > o.threads:
                continue
            pairs = [(ours(o.build, bench, name, n), theirs(i, n)) for _ in range(o.rounds)]
            pairs = [p for p in pairs if p[1]]
            if pairs:
                show(what, peer, n, pairs)
    for m in sorted(absent):
        print(m + " is not installed: its rows are left out")
    if o.only in "GEMM OpenBLAS":
        openblas(o.build, o.rounds, o.threads, o.only)


main()
