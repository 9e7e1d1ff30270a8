"""Do the runtimes read what pvtune exports, and compute the same? One row per runtime, model and check.

    interop_export.py PVTUNE WORK make            models and exports into WORK, with transformers 5
    interop_export.py PVTUNE WORK llama.cpp       … each where its package is installed
    interop_export.py PVTUNE WORK transformers
    interop_export.py PVTUNE WORK gptqmodel
    interop_export.py PVTUNE WORK mlx

WORK/train.txt is the text that tokenizers and calibration are made from.
"""
import json
import os
import sys

import interop_rows
from interop_rows import path, run

part = sys.argv[3]
TEXTS = ["Once upon a time there was a fox.", " two  spaces, and   three", "\ttab\nnew line\n\n", "Übergrößen, 12½ 漢字 🦊🦊",
         "x", "a\u0300 e\u0301 \u200d", "end of text "]
MODELS = ("llama-tied", "llama-untied", "mistral", "qwen2-tied", "qwen2-untied", "qwen3", "llama-linear", "phi", "phi-short",
          "phi-long")
# llama.cpp's "llama" has no window, and its "phi3" none since its pull request 13676: as far as a window goes they agree
WINDOW = 24
WINDOWED = ("mistral-window", "phi-window")
# the packed formats: model, format, target
PACKED = [("llama-tied", "int:4g32", "gptq"), ("qwen2-untied", "int:8g64", "gptq"), ("llama-untied", "int:2g64", "gptq"),
          ("llama-tied", "int:4g32", "compressed-tensors"), ("qwen2-untied", "int:8g64", "compressed-tensors"),
          ("llama-untied", "int:2g64", "compressed-tensors"),
          ("llama-wide", "int:4g128", "gptq"), ("llama-tied", "int:4g32s", "gptq"), ("qwen2-untied", "int:8g64s", "compressed-tensors"),
          ("llama-tied", "int:4g32", "mlx"), ("qwen2-untied", "int:8g64", "mlx"), ("mistral", "int:2g64", "mlx"),
          ("llama-untied", "int:3g32", "mlx"), ("qwen2-tied", "int:6g64", "mlx"),
          ("llama-tied", "q2_0", "gguf:q2_0"), ("qwen2-untied", "q2_0", "gguf:q2_0"),
          # with an embedding, and a head, in a format of their own
          ("llama-tied", "q2_0+int:4g32s", "gguf:q2_0"), ("qwen2-tied", "q2_0+int:5g32s", "gguf:q2_0"),
          ("llama-untied", "q2_0+int:8g32s", "gguf:q2_0"), ("qwen2-untied", "q2_0+int:4g32", "gguf:q2_0"),
          ("mistral", "q2_0+q2_0", "gguf:q2_0"), ("llama-wide", "iq2_s+iq2_s", "gguf:iq2_s"),
          ("llama-untied", "q2_0", "gptq"), ("llama-untied", "q2_0", "compressed-tensors"), ("mistral", "q2_0", "mlx"),
          ("llama-wide", "iq2_xxs", "gguf:iq2_xxs"), ("qwen2-wide", "iq2_xxs", "gguf:iq2_xxs"),
          ("llama-wide", "iq2_xs", "gguf:iq2_xs"), ("qwen2-wide", "iq2_xs", "gguf:iq2_xs"),
          ("llama-wide", "iq2_s", "gguf:iq2_s"), ("qwen2-wide", "iq2_s", "gguf:iq2_s"),
          ("qwen3", "q2_0", "gguf:q2_0"), ("phi-long", "q2_0", "gguf:q2_0"), ("phi-short", "q2_0+int:4g32s", "gguf:q2_0"),
          ("llama-linear", "q2_0", "gguf:q2_0"),
          ("qwen3", "int:4g32", "gptq"), ("qwen3", "int:8g64", "compressed-tensors"), ("qwen3", "int:4g32", "mlx"),
          ("llama-linear", "int:4g32", "gptq"), ("llama-linear", "int:4g32", "compressed-tensors"), ("llama-linear", "int:4g32", "mlx")]
GGUF = ("f32", "f16", "bf16", "q8_0")


def row(model, check, good, figure=""):
    interop_rows.row(part, model, check, good, figure)


def name_of(model, form, target=None):
    return "%s-%s" % (model, form.replace(":", "")) + ("" if target is None else "-" + target.replace(":", "-"))


def exported(target=None):
    """(source, result, target) of PACKED that were made; make leaves out formats that pvtune does not have."""
    for model, form, to in PACKED:
        result = name_of(model, form, to) + (".gguf" if to.startswith("gguf") else "")
        if (target is None or to.startswith(target)) and os.path.exists(path(result)):
            yield name_of(model, form), result, to


def our_logits(name):
    """[2, 60, V] of the same ids for all."""
    from safetensors.numpy import load_file
    if not os.path.exists(path(name + ".logits")):
        run("logits", path(name), "--ids", path("ids.json"), "-o", path(name + ".logits"))
    return load_file(path(name + ".logits"))["logits"]


def compare(result, check, theirs, source, tolerance, mean=False):
    """The largest difference, or with `mean` the root of the mean square."""
    import numpy
    ours = our_logits(source)
    off = numpy.abs(ours.astype(numpy.float64) - theirs)
    difference = (numpy.sqrt((off ** 2).mean()) if mean else off.max()) / ours.std()
    row(result, check, bool(difference < tolerance), "%.1e of their deviation, at most %.1e" % (difference, tolerance))


def guarded(function, result, *arguments):
    try:
        function(result, *arguments)
    except Exception as error:  # whatever it is, it is this row's
        row(result, function.__name__.replace("check_", ""), False, "%s: %s" % (type(error).__name__, str(error)[:200]))


# ---- make ----

QWEN2_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
               r"|\s+(?!\S)|\s+")


def make_tokenizers():
    import sentencepiece
    import tokenizers
    sentencepiece.SentencePieceTrainer.train(
        input=path("train.txt"), model_prefix=path("sp"), model_type="bpe", vocab_size=420, byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2)
    bpe = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
    bpe.train([path("train.txt")], vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save(path("bpe.json"))
    qwen2 = json.loads(bpe._tokenizer.to_str())
    qwen2["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]}
    json.dump(qwen2, open(path("qwen2.json"), "w"))


def make_model(name, kind, tied, tokenizer, width=64, **more):
    import shutil
    import torch
    import transformers
    Config, Model = getattr(transformers, kind + "Config"), getattr(transformers, kind + "ForCausalLM")
    torch.manual_seed(3)
    more = {"max_position_embeddings": 128, **more}
    model = Model(Config(vocab_size=448, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, initializer_range=0.15, tie_word_embeddings=tied, **more))
    for parameter in model.parameters():  # norms of 1 would hide one that was not loaded
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(path(name))
    shutil.copy(path(tokenizer), path(name) + "/tokenizer." + tokenizer.rsplit(".", 1)[1])
    if tokenizer.endswith(".json"):
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast"}, open(path(name) + "/tokenizer_config.json", "w"))


def rope_long(original):
    factors = {"short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], "long_factor": [1.2, 1.7, 2.5, 3.5, 4.5, 5.5, 6.0, 6.2]}
    return {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": original, "rope_theta": 20000.0, **factors},
            "original_max_position_embeddings": original, "max_position_embeddings": 4 * original}


def make():
    import torch
    make_tokenizers()
    rope = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32, "rope_theta": 20000.0}
    make_model("llama-tied", "Llama", True, "bpe.json")
    make_model("llama-untied", "Llama", False, "sp.model", rope_parameters=rope)
    make_model("mistral", "Mistral", False, "sp.model", sliding_window=4096)
    make_model("qwen2-tied", "Qwen2", True, "qwen2.json")
    make_model("qwen2-untied", "Qwen2", False, "qwen2.json")
    make_model("qwen3", "Qwen3", True, "qwen2.json", head_dim=32)
    make_model("llama-linear", "Llama", True, "bpe.json", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 20000.0})
    # a model whose name says phi3 must have <|endoftext|> in its vocabulary, or llama.cpp does not load it
    make_model("phi", "Phi3", False, "sp.model", pad_token_id=None)
    # llama.cpp chooses between the factors by the room that it was asked for, 256 tokens here, not by how many there are
    make_model("phi-short", "Phi3", False, "sp.model", pad_token_id=None, **rope_long(256))
    make_model("phi-long", "Phi3", False, "sp.model", pad_token_id=None, **rope_long(32))
    make_model("mistral-window", "Mistral", False, "sp.model", sliding_window=WINDOW)
    make_model("phi-window", "Phi3", False, "sp.model", pad_token_id=None, sliding_window=WINDOW)
    # for groups of 128 and blocks of 256
    make_model("llama-wide", "Llama", True, "sp.model", width=256)
    make_model("qwen2-wide", "Qwen2", False, "qwen2.json", width=256)
    json.dump(torch.randint(0, 448, (2, 60), generator=torch.Generator().manual_seed(1)).tolist(), open(path("ids.json"), "w"))
    for model in MODELS + WINDOWED:
        for form in GGUF if model in MODELS else ("f32",):
            run("export", path(model), "--to", "gguf:" + form, "-o", path("%s-%s.gguf" % (model, form)))
    whole = ["--fit", "gptq"] if "--fit" in run("help", "quantize") else []  # zeros that stay integers
    for model, form, target in PACKED:
        source, result = path(name_of(model, form)), path(name_of(model, form, target)) + (".gguf" if target.startswith("gguf") else "")
        try:
            linears, _, embedding = form.partition("+")
            if not os.path.exists(source):
                run("quantize", path(model), "--calib", path("train.txt"), "-o", source, "--samples", "8", "--ctx", "64",
                    "--no-finetune", "--format", linears, *whole, *(("--embed-format", embedding, "--head") if embedding else ()))
            run("export", source, "--to", target, "-o", result)
            row(name_of(model, form, target), "written", True)
        except RuntimeError as error:
            unknown = any("format \"%s\": expected" % part_of in str(error) for part_of in (linears, embedding))
            if unknown:
                print("%-12s  %-34s  left out: this pvtune has no %s" % (part, name_of(model, form, target), form), flush=True)
            else:
                row(name_of(model, form, target), "written", False, str(error)[-160:])


# ---- the runtimes ----

def open_in_llama(result):
    import llama_cpp
    return llama_cpp.Llama(path(result), n_ctx=256, logits_all=True, n_threads=1, verbose=False, seed=0,
                           type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, flash_attn=False)


def logits_of_llama(llama):
    import numpy
    theirs = []
    for ids in json.load(open(path("ids.json"))):
        llama.reset()
        llama.eval(ids)
        theirs.append(numpy.array(llama.scores[:len(ids)]))
    return numpy.stack(theirs)


def rounding_of(model):
    """With weights in blocks of 256 llama.cpp rounds activations to 8 bits in such blocks: what that alone does to
    logits, root of the mean square, is seen on a file of llama.cpp's own making (Q6_K), whose weights both read."""
    import ctypes
    import llama_cpp
    import numpy
    plain, own = path(model + "-plain.gguf"), path(model + "-q6_k.gguf")
    if not os.path.exists(own):
        run("export", path(model), "--to", "gguf:f32", "-o", plain)
        how = llama_cpp.llama_model_quantize_default_params()
        how.ftype, how.pure = llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K, True
        if llama_cpp.llama_model_quantize(plain.encode(), own.encode(), ctypes.byref(how)):
            raise RuntimeError("llama.cpp could not quantize %s" % plain)
    ours = our_logits(os.path.basename(own)).astype(numpy.float64)
    return numpy.sqrt(((ours - logits_of_llama(open_in_llama(os.path.basename(own)))) ** 2).mean()) / ours.std()


def check_window(result, source):
    """Where a token sees all before it; behind that they differ, or there is no window here."""
    import numpy
    ours, theirs = our_logits(source).astype(numpy.float64), logits_of_llama(open_in_llama(result))
    off = numpy.abs(ours - theirs).max(axis=(0, 2)) / ours.std()
    row(result, "logits, in the first window", bool(off[:WINDOW].max() < 1e-4 and off[WINDOW:].max() > 1e-2),
        "%.1e of their deviation, %.1e behind it, where llama.cpp has no window" % (off[:WINDOW].max(), off[WINDOW:].max()))


def check_their_file(result, source):
    """A file that llama.cpp writes, read here."""
    import ctypes
    import llama_cpp
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_F16
    if llama_cpp.llama_model_quantize(path(source).encode(), path(result).encode(), ctypes.byref(how)):
        raise RuntimeError("llama.cpp could not quantize %s" % source)
    compare(result, "written by llama.cpp, logits", logits_of_llama(open_in_llama(result)), result, 3e-3, True)


def check_llama_cpp(result, source, tolerance):
    llama = open_in_llama(result)
    compare(result, "logits", logits_of_llama(llama), source, tolerance, tolerance > 1e-4)
    for text in TEXTS:
        ours = json.loads(run("tokenize", path(source), text, "--json"))
        ids = llama.tokenize(text.encode(), add_bos=True, special=True)
        if ours != ids:
            return row(result, "token ids", False, "%r: %s here, %s there" % (text, ours, ids))
    row(result, "token ids", True, "%d texts" % len(TEXTS))


LINEARS = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
           "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def check_grid_blocks(result, source):
    """Each linear of the file, as llama.cpp's package gguf decodes it, to the bit ours in float32."""
    import gguf
    import numpy
    from safetensors.numpy import load_file
    run("export", path(source), "--to", "dense", "--dtype", "f32", "-o", path(source + "-f32"))
    dense, count, wrong = load_file(path(source + "-f32") + "/model.safetensors"), 0, 0
    for tensor in gguf.GGUFReader(path(result)).tensors:
        words = tensor.name.split(".")  # blk.0.attn_q.weight
        if len(words) < 4 or words[2] not in LINEARS or words[3] != "weight":
            continue
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if source.startswith("llama") and words[2] in ("attn_q", "attn_k"):  # rows of pairs, heads of 64
            values = values.reshape(-1, 32, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        ours = dense["model.layers.%s.%s.weight" % (words[1], LINEARS[words[2]])]
        count, wrong = count + 1, wrong + (not numpy.array_equal(values, ours))
    row(result, "weights, to the bit of float32", count == 14 and wrong == 0, "%d of %d differ" % (wrong, count))


def check_transformers(result, source):
    """compressed-tensors 0.20 leaves zero points unpacked where it makes the modules that a checkpoint is read
    into, and so refuses packed ones, its own too; dequantized while it is loaded it takes them, and rounds the
    weights to the fp16 of their scales: so do we then."""
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig
    symmetric = json.load(open(path(result) + "/config.json"))["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"]
    more = {} if symmetric else {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    model, info = AutoModelForCausalLM.from_pretrained(path(result), output_loading_info=True, dtype=torch.float32, **more)
    wrong = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
    with torch.no_grad():
        theirs = model(torch.tensor(json.load(open(path("ids.json"))))).logits.float().numpy()
    if not symmetric and not os.path.exists(path(source + "-f16")):
        run("export", path(source), "--to", "dense", "-o", path(source + "-f16"))
    if symmetric:
        compare(result, "logits", theirs, source, 1e-4)
    else:
        compare(result, "logits, dequantized when loaded", theirs, source + "-f16", 1e-4)
    row(result, "no key missing or unexpected", not wrong, str(wrong[:3]) if wrong else "")


def check_gptqmodel(result, source):
    """Its loader and its kernel for CPUs, which computes in fp16: so each weight that it unpacks is held against
    ours, rounded to fp16, to the bit; and its logits are no more than twice as far from ours as those of
    transformers with the same weights, dense, in fp16."""
    import numpy
    import torch
    from transformers import AutoModelForCausalLM
    from gptqmodel import BACKEND, GPTQModel
    from safetensors.torch import load_file
    if not os.path.exists(path(source + "-f16")):
        run("export", path(source), "--to", "dense", "-o", path(source + "-f16"))
    dense, count, wrong = load_file(path(source + "-f16") + "/model.safetensors"), 0, 0
    model = GPTQModel.load(path(result), device="cpu", backend=BACKEND.TORCH, dtype=torch.float16)
    for name, module in model.model.named_modules():
        if hasattr(module, "dequantize_weight"):
            count += 1
            wrong += not torch.equal(module.dequantize_weight().T.contiguous().half(), dense[name + ".weight"])
    row(result, "weights, to the bit of fp16", count == 14 and wrong == 0, "%d of %d differ" % (wrong, count))
    with torch.no_grad():
        ids = torch.tensor(json.load(open(path("ids.json"))))
        plain = AutoModelForCausalLM.from_pretrained(path(source + "-f16"), dtype=torch.float16)
        far = numpy.abs(plain(ids).logits.float().numpy() - our_logits(source)).max() / our_logits(source).std()
        theirs = model.model(ids).logits.float().numpy()
    compare(result, "logits, in fp16", theirs, source, 2 * far)


def check_mlx(result, source):
    import mlx.core as mx
    import numpy
    from mlx_lm import load
    model, _ = load(path(result))
    model.set_dtype(mx.float32)
    theirs = numpy.array(model(mx.array(json.load(open(path("ids.json")))))).astype(numpy.float32)
    compare(result, "logits", theirs, source, 1e-4)


def main():
    if part == "make":
        make()
    elif part == "llama.cpp":
        # F32 shows that layouts are right. With F16 and BF16 llama.cpp rounds activations to these, with blocks to
        # 8 bits, each time: then the mean difference is held against that
        for model in MODELS:
            for form, tolerance in zip(GGUF, (1e-4, 3e-3, 2e-2, 6e-2)):
                name = "%s-%s.gguf" % (model, form)
                guarded(check_llama_cpp, name, name, tolerance)
            guarded(check_their_file, model + "-theirs-f16.gguf", model + "-f32.gguf")
        for model in WINDOWED:
            guarded(check_window, model + "-f32.gguf", model + "-f32.gguf")
        for source, result, _ in exported("gguf"):
            grid = "gguf-iq2" in result
            guarded(check_llama_cpp, result, source, 2 * rounding_of(source.rsplit("-", 1)[0]) if grid else 6e-2)
            if grid:
                guarded(check_grid_blocks, result, source)
    else:
        targets = {"transformers": "compressed-tensors", "gptqmodel": "gptq", "mlx": "mlx"}
        checks = {"transformers": check_transformers, "gptqmodel": check_gptqmodel, "mlx": check_mlx}
        for source, result, _ in exported(targets[part]):
            guarded(checks[part], result, source)


main()
