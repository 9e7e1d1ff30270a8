"""The same work on the same GPU by torch (with cuBLAS and SDPA), transformers and aqlm, where they are installed: a line
`name TAB peer TAB milliseconds` for each row that bench/cuda.cpp has under the same name. What is not installed is left
out, with one line on stderr. Called by bench/cuda.sh."""
import sys


def least(torch, run, runs=20):
    """Milliseconds: the best of five times `runs` runs at once, after some for warming up."""
    best = float("inf")
    for _ in range(3):
        run()
    for _ in range(5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(runs):
            run()
        end.record()
        torch.cuda.synchronize()
        best = min(best, begin.elapsed_time(end) / runs)
    return best


def put(name, peer, milliseconds):
    print(f"{name}\t{peer}\t{milliseconds:.4f}", flush=True)


def products(torch):
    torch.backends.cuda.matmul.allow_tf32 = False
    for compute, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for n, O, I in ((1024, 1536, 576), (16384, 5632, 2048)):
            x, y, w = (torch.randn(*s, device="cuda", dtype=dtype) for s in ((n, I), (n, O), (O, I)))
            size = f"product {compute} {n}x{O}x{I}"
            put(size, "cuBLAS", least(torch, lambda: x @ w.T))
            put(size + " dx", "cuBLAS", least(torch, lambda: y @ w))
            put(size + " dW", "cuBLAS", least(torch, lambda: y.T @ x))
            put(size + " 2x8g8", "cuBLAS, dense", least(torch, lambda: x @ w.T))
            put(size + " 2x8g8 dx", "cuBLAS, dense", least(torch, lambda: y @ w))


def attention(torch):
    for compute, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for name, B, T, NH, NKV, HS in (("SmolLM2", 2, 512, 9, 3, 64), ("TinyLlama", 16, 1024, 32, 4, 64)):
            q, k, v = (torch.randn(B, h, T, HS, device="cuda", dtype=dtype, requires_grad=True) for h in (NH, NKV, NKV))
            repeat = NH // NKV

            def forward():
                return torch.nn.functional.scaled_dot_product_attention(
                    q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1), is_causal=True)
            out = forward()
            grad = torch.randn_like(out)
            put(f"attention {compute} {name}", "torch SDPA", least(torch, forward))
            put(f"attention {compute} {name} back", "torch SDPA", least(torch, lambda: out.backward(grad, retain_graph=True)))


def training(torch):
    """Forward and backward of a dense model of the same shape: no optimizer, no teacher, no codes."""
    from transformers import LlamaConfig, LlamaForCausalLM
    shapes = (("SmolLM2", 2, 512, dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                                       num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)),
              ("TinyLlama", 16, 1024, dict(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
                                           num_attention_heads=32, num_key_value_heads=4)))
    for name, B, T, config in shapes[:2 if "large" in sys.argv else 1]:
        model = LlamaForCausalLM(LlamaConfig(use_cache=False, max_position_embeddings=2048, **config)).cuda()
        compiled = torch.compile(model)
        ids = torch.randint(0, 32000, (B, T), device="cuda")
        for compute in ("fp32", "bf16"):
            def step():
                model.zero_grad(set_to_none=True)
                with torch.autocast("cuda", dtype=torch.bfloat16, enabled=compute == "bf16"):
                    loss = compiled(input_ids=ids, labels=ids).loss
                loss.backward()
            put(f"tuning step {name} {compute}", "torch compile, forward + backward", least(torch, step, 3))


def one_row(torch):
    from aqlm.inference_kernels.cuda_kernel import CUDA_FOLDER  # noqa: F401: builds the kernels
    for O, I in ((5632, 2048), (11008, 4096)):
        for M, bits in ((2, 8), (1, 16)):
            x = torch.randn(1, I, device="cuda", dtype=torch.float16)
            kind = torch.int8 if bits == 8 else torch.int16
            codes = torch.randint(-2 ** (bits - 1), 2 ** (bits - 1), (O, I // 8, M), device="cuda").to(kind)
            books = torch.randn(M, 2 ** bits, 1, 8, device="cuda", dtype=torch.float16)
            scales = torch.ones(O, 1, 1, 1, device="cuda", dtype=torch.float16)
            run = getattr(torch.ops.aqlm, f"code{M}x{bits}_matmat")
            put(f"one row aqlm:{M}x{bits}g8 {O}x{I}", "aqlm", least(torch, lambda: run(x, codes, books, scales, None)))


def main():
    try:
        import torch
    except ImportError:
        sys.exit("peers: torch is not installed: no other software in the table")
    if not torch.cuda.is_available():
        sys.exit("peers: torch finds no GPU")
    for part in (products, attention, one_row, training):
        try:
            part(torch)
        except Exception as error:  # what is missing, or too old, leaves its rows out
            print(f"peers: no {part.__name__}: {type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)


main()
