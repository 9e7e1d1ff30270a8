"""Does transformers load what pvtune saves, and compute and tokenize the same? One row per model and check.

    interop.py PVTUNE WORK      WORK/bytes holds what `pvtune demo --save` leaves; models made here go into WORK
"""
import json
import os
import shutil

import sentencepiece
import tokenizers
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import interop_rows
from interop_rows import path, run

version = transformers.__version__
new = int(version.split(".")[0]) >= 5
TEXTS = ["Once upon a time there was a fox.", " two  spaces, and   three", "\ttab\nnew line\n\n", "Übergrößen, 12½ 漢字 🦊🦊",
         "x", "a\u0300 e\u0301 \u200d", "end of text "]

QWEN2_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
               r"|\s+(?!\S)|\s+")


def row(model, check, good, figure=""):
    interop_rows.row(version, model, check, good, figure)


def load(name, dtype=None):
    """The model, and what was missing from or too much in its files."""
    more = {} if dtype is None else {"dtype" if new else "torch_dtype": dtype}
    model, info = AutoModelForCausalLM.from_pretrained(path(name), output_loading_info=True, **more)
    return model, sorted(info["missing_keys"]) + sorted(info["unexpected_keys"]) + list(info["mismatched_keys"])


def ids_for(name):
    config = json.load(open(path(name) + "/config.json"))
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, config["vocab_size"], (2, 60), generator=generator)


def our_logits(name, ids):
    json.dump(ids.tolist(), open(path("ids.json"), "w"))
    run("logits", path(name), "--ids", path("ids.json"), "-o", path("logits.safetensors"))
    return load_file(path("logits.safetensors"))["logits"]


def check_logits(name, how, dtype=None):
    """As float32 whatever it was loaded in: values of 16 bits stay what they are."""
    try:
        ids = ids_for(name)
        model, wrong = load(name, dtype)
        loaded_as = str(model.dtype).replace("torch.", "")
        with torch.no_grad():
            theirs = torch.nn.Module.float(model)(ids).logits
        ours = our_logits(name, ids)
        difference = ((ours - theirs).abs().max() / theirs.std()).item()
        row(name, "logits, " + how, difference < 1e-4 and not wrong,
            "%.1e of their deviation, loaded as %s%s" % (difference, loaded_as, ", missing or unexpected: %s" % wrong[:3] if wrong else ""))
    except Exception as error:  # whatever it is, it is this row's
        row(name, "logits, " + how, False, "%s: %s" % (type(error).__name__, str(error)[:200]))


def check_refused(name):
    for loader in (AutoModelForCausalLM, LlamaForCausalLM):
        try:
            loader.from_pretrained(path(name))
            row(name, "refused by " + loader.__name__, False, "loaded, its embedding at random")
        except ValueError as error:
            row(name, "refused by " + loader.__name__, "quant_method" in str(error), str(error)[:70])


def check_tokens(name):
    try:
        tokenizer = AutoTokenizer.from_pretrained(path(name))
        for text in TEXTS:
            ours, theirs = json.loads(run("tokenize", path(name), text, "--json")), tokenizer(text)["input_ids"]
            if ours != theirs:
                return row(name, "token ids", False, "%r: %s here, %s there" % (text, ours, theirs))
        row(name, "token ids", True, "%d texts, %s" % (len(TEXTS), type(tokenizer).__name__))
    except Exception as error:
        row(name, "token ids", False, "%s: %s" % (type(error).__name__, str(error)[:200]))


def check_sentencepiece(name):
    """The tokenizer.model that was written, in Google's own library."""
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=path(name) + "/tokenizer.model")
        for text in TEXTS:
            ours = json.loads(run("tokenize", path(name), text, "--json"))
            theirs = ([model.bos_id()] if ours and ours[0] == model.bos_id() else []) + model.encode(text)
            if ours != theirs:
                return row(name, "tokenizer.model in sentencepiece", False, "%r: %s here, %s there" % (text, ours, theirs))
        row(name, "tokenizer.model in sentencepiece", True, "%d texts" % len(TEXTS))
    except Exception as error:
        row(name, "tokenizer.model in sentencepiece", False, "%s: %s" % (type(error).__name__, str(error)[:200]))


def check_bits(name):
    """The bits that info prints, against the file itself."""
    info, file = json.loads(run("info", path(name), "--json")), path(name) + "/model.safetensors"
    with open(file, "rb") as f:
        header = int.from_bytes(f.read(8), "little")
    data = os.path.getsize(file) - 8 - header
    row(name, "bits are the file's", data == sum(t["bytes"] for t in info["tensors"]) and
        abs(info["bits_per_weight_all"] * info["params"] / 8 - data) < 0.5, "%.3f over all parameters" % info["bits_per_weight_all"])


def check(name):
    check_logits(name, "float32", torch.float32)
    check_logits(name, "default type")
    # on a lone tokenizer.model transformers 5 has rules of its own for a space at the beginning
    if not new or os.path.exists(path(name) + "/tokenizer.json"):
        check_tokens(name)
    check_bits(name)


def make_tokenizers():
    """A SentencePiece vocabulary and a byte-level one, both of the demo's text."""
    os.makedirs(path("tokenizers"))
    text = path("bytes/train.txt")
    sentencepiece.SentencePieceTrainer.train(
        input=text, model_prefix=path("tokenizers/sp"), model_type="bpe", vocab_size=420, byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2)
    bpe = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
    bpe.train([text], vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save(path("tokenizers/bpe.json"))
    # transformers 5 gives a Qwen2 model the parts of Qwen2's tokenizer, whatever the file says
    qwen2 = json.loads(bpe._tokenizer.to_str())
    qwen2["normalizer"] = {"type": "NFC"}
    qwen2["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]}
    json.dump(qwen2, open(path("tokenizers/qwen2.json"), "w"))


def make_model(name, kind, tied, tokenizer, **more):
    vocab = 256 if tokenizer is None else 420 if tokenizer.endswith(".model") else 400
    Config, Model = getattr(transformers, kind + "Config"), getattr(transformers, kind + "ForCausalLM")
    torch.manual_seed(3)
    more = {"max_position_embeddings": 128, **more}
    model = Model(Config(vocab_size=vocab, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, initializer_range=0.15, tie_word_embeddings=tied, **more))
    for parameter in model.parameters():  # norms of 1 would hide one that was not loaded
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(path(name))
    if tokenizer is None:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(path("bytes/original/" + file), path(name))
    else:
        shutil.copy(path(tokenizer), path(name) + "/tokenizer." + tokenizer.rsplit(".", 1)[1])
        if tokenizer.endswith(".json"):
            json.dump({"tokenizer_class": "PreTrainedTokenizerFast"}, open(path(name) + "/tokenizer_config.json", "w"))


def quantize(name, result, *more):
    run("quantize", path(name), "--calib", path("bytes/train.txt"), "-o", path(result), "--samples", "8", "--ctx", "64",
        "--no-finetune", "--epochs", "2", *more)


def rope(kind, **more):
    """A rule, as this version takes it."""
    rule = {"rope_type": kind, **more}
    return {"rope_parameters": dict(rule, rope_theta=20000.0)} if new else {"rope_scaling": rule, "rope_theta": 20000.0}


def rope_llama3():
    return rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)


def rope_long(original):
    """LongRoPE; transformers 4.49 has Phi-3's rule under its old name, with the original context beside it."""
    factors = {"short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], "long_factor": [1.2, 1.7, 2.5, 3.5, 4.5, 5.5, 6.0, 6.2]}
    if new:
        return dict(rope("longrope", original_max_position_embeddings=original, **factors), original_max_position_embeddings=original)
    return {"rope_scaling": {"type": "longrope", **factors}, "rope_theta": 20000.0, "original_max_position_embeddings": original}


def check_variants(name, tied):
    check(name)
    quantize(name, name + "-2x8g8")
    check(name + "-2x8g8")
    quantize(name, name + "-skip", "--skip", "down_proj,layers.1.self_attn.q_proj")
    check(name + "-skip")
    quantize(name, name + "-head", "--head")
    check_refused(name + "-head") if tied else check(name + "-head")
    quantize(name, name + "-embed", "--embed")
    check_refused(name + "-embed")
    run("export", path(name + "-embed"), "--to", "hf", "-o", path(name + "-embed-hf"))
    check(name + "-embed-hf")


def check_dense(name):
    for short, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32)):
        result = "%s-dense-%s" % (name, short)
        run("export", path(name), "--to", "dense", "--dtype", short, "-o", path(result))
        check(result)
        with safe_open(path(result) + "/model.safetensors", "pt") as f:
            types = {f.get_tensor(key).dtype for key in f.keys()}
        config = transformers.AutoConfig.from_pretrained(path(result))
        row(result, "type of tensors and config", types == {dtype} and (config.dtype if new else config.torch_dtype) == dtype)


def main():
    transformers.logging.set_verbosity_error()
    for name in ("bytes/original", "bytes/calibrated", "bytes/tuned"):
        check(name)
    make_tokenizers()
    make_model("llama-tied", "Llama", True, "tokenizers/bpe.json")
    make_model("llama-untied", "Llama", False, "tokenizers/sp.model", **rope_llama3())
    make_model("mistral", "Mistral", False, None, sliding_window=24, **({} if new else {"rope_theta": 10000.0}))
    make_model("qwen2-tied", "Qwen2", True, "tokenizers/qwen2.json")
    # transformers 4.49 applies a window that is switched off
    make_model("qwen2-untied", "Qwen2", False, "tokenizers/qwen2.json", sliding_window=24 if new else 4096)
    # 60 tokens are more than the original context of 32, and less than that of 96
    make_model("llama-linear", "Llama", True, "tokenizers/bpe.json", **rope("linear", factor=4.0))
    make_model("llama-dynamic", "Llama", False, "tokenizers/bpe.json", max_position_embeddings=32, **rope("dynamic", factor=3.0))
    make_model("phi3", "Phi3", False, "tokenizers/sp.model", pad_token_id=None)
    make_model("phi3-window", "Phi3", False, "tokenizers/sp.model", pad_token_id=None, sliding_window=24)
    make_model("phi3-short", "Phi3", False, "tokenizers/sp.model", pad_token_id=None, **rope_long(96))
    make_model("phi3-long", "Phi3", False, "tokenizers/sp.model", pad_token_id=None, **rope_long(32))
    check_variants("llama-tied", True)
    check_variants("llama-untied", False)
    check_variants("mistral", False)
    check_variants("qwen2-tied", True)
    check_variants("qwen2-untied", False)
    for name in ("llama-linear", "llama-dynamic"):
        check(name)
        quantize(name, name + "-2x8g8")
        check(name + "-2x8g8")
        check_dense(name + "-2x8g8")
    for name in ("phi3", "phi3-window", "phi3-short", "phi3-long"):  # codes of fused parts have no layout elsewhere
        check(name)
        quantize(name, name + "-2x8g8")
        check_dense(name + "-2x8g8")
    if new:  # transformers 4.49 has no Qwen3
        make_model("qwen3", "Qwen3", True, "tokenizers/qwen2.json", head_dim=32)
        check_variants("qwen3", True)
        check_dense("qwen3-2x8g8")
    for form in ("aqlm:2x4g4", "aqlm:1x10g8"):  # codes of 4 bits in a byte, of 10 in two
        name = "llama-untied-" + form.split(":")[1]
        quantize("llama-untied", name, "--format", form)
        check(name)
    run("export", path("llama-untied-2x8g8"), "--to", "hf", "--dtype", "bf16", "-o", path("llama-untied-hf-bf16"))
    check_logits("llama-untied-hf-bf16", "float32", torch.float32)
    check_dense("llama-tied-2x8g8")
    check_dense("mistral-2x8g8")
    check_dense("qwen2-untied-2x8g8")
    # a tokenizer.model made from a tokenizer.json that was itself made from a tokenizer.model
    os.remove(path("llama-untied-2x8g8/tokenizer.model"))
    run("export", path("llama-untied-2x8g8"), "--to", "hf", "-o", path("llama-untied-remade"))
    check_tokens("llama-untied-remade")
    check_sentencepiece("llama-untied-remade")


main()
