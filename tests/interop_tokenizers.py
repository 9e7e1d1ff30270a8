"""Does pvtune tokenize as the library tokenizers does? Whole texts, one row per vocabulary and text.

    interop_tokenizers.py PVTUNE WORK DATA MODEL

DATA is ../shared/data: vocabularies of Llama-2, Qwen and GPT-2 as they were published, WikiText-2's test split and the
Brown corpus. MODEL is SmolLM2's GGUF: its tokenizer.json is the one that pvtune writes. The vocabulary of Llama-3
is not there; its rule for words is, with Qwen's vocabulary. A third text is made here, of what is rare elsewhere, also
bytes that SmolLM2 has no token for. Broken UTF-8 cannot be given to the library.
"""
import gzip
import json
import os
import random
import sys

import tokenizers

import interop_rows
from interop_rows import path, run

data, model = sys.argv[3:5]
LLAMA3_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                r"|\s+(?!\S)|\s+")
RARE = ["👩‍👩‍👧‍👦 🏳️‍🌈 🧑🏽‍🚀🇩🇪🇯🇵 1️⃣", "漢字かな交じり文、中文字符。한국어 텍스트", "مرحبا بالعالم، كَيْفَ حَالُكَ؟ ١٢٣",
        "e\u0301 a\u0300\u0323 n\u0303\u0327 \u1e9b\u0323 Å \ufb01",
        "हिन्दी ภาษาไทย தமிழ் ქართული Ελληνικά עברית", "½ ⅷ ² ① ٣ ௧ 12345678 3.14e-10", "\u00a0\u2003\u3000\u200b\ufeff\t \r\n\n  \r \u2028",
        "don't WE'LL i'M ſ's ǅ ß İ",
        "<|endoftext|> <s></s><unk> <|im_start|>user", "{\"a\":[1,2,3]} x_y-z ~~~~ ===== ....", "\x00\x01\x7f\x1b[0m \\u0041", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𒀀 \U0010fffd \ue000",
        "\x04\x06\x13 \U00040000\U00080001"]


def row(name, text, good, figure=""):
    interop_rows.row("tokenizers", name, text, good, figure)


def make_vocabularies():
    """Names of files in WORK/NAME/tokenizer.json, which both read."""
    made = {}

    def keep(name, text):
        os.makedirs(path(name))
        made[name] = path(name + "/tokenizer.json")
        with open(made[name], "w", encoding="utf-8") as file:
            file.write(text)

    with open(data + "/tokenizers/llama2/tokenizer.json", encoding="utf-8") as file:
        keep("llama2", file.read())
    with gzip.open(data + "/tokenizers/qwen3/tokenizer.json.gz", "rt", encoding="utf-8") as file:
        qwen = file.read()
    keep("qwen", qwen)
    llama3 = json.loads(qwen)
    llama3["normalizer"] = None
    llama3["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = LLAMA3_WORDS
    keep("llama3-words", json.dumps(llama3))
    gpt2 = tokenizers.ByteLevelBPETokenizer.from_file(data + "/tokenizers/gpt2/gpt2_vocab.json",
                                                        data + "/tokenizers/gpt2/gpt2_merges.txt")
    keep("gpt2", gpt2._tokenizer.to_str())
    run("export", model, "--to", "dense", "-o", path("smollm2"))
    made["smollm2"] = path("smollm2/tokenizer.json")
    return made


def make_texts():
    draw, lines = random.Random(0), list(RARE)
    for _ in range(3000):
        lines.append("".join(draw.choice(draw.choice(RARE)) for _ in range(draw.randrange(1, 40))))
        lines.append(" ".join(draw.choice(RARE).split(" ")[0] for _ in range(draw.randrange(1, 9))))
    with open(path("rare.txt"), "w", encoding="utf-8", newline="") as file:
        file.write("\n".join(lines))
    return {"wiki.test.raw": data + "/wikitext2/wiki.test.raw", "brown.txt": data + "/text/brown.txt", "rare.txt": path("rare.txt")}


def compare(name, file, text, text_file):
    with open(text_file, encoding="utf-8", newline="") as f:
        theirs = tokenizers.Tokenizer.from_file(file).encode(f.read()).ids
    ours = json.loads(run("tokenize", file, "-f", text_file, "--verbatim", "--json"))
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    row(name, text, ours == theirs, "%d ids" % len(ours) if ours == theirs else
        "differ from id %d on: %s here, %s there" % (first, ours[first:first + 5], theirs[first:first + 5]))


def main():
    texts = make_texts()
    for name, file in make_vocabularies().items():
        for text, text_file in texts.items():
            try:
                compare(name, file, text, text_file)
            except Exception as error:  # whatever it is, it is this row's
                row(name, text, False, "%s: %s" % (type(error).__name__, str(error)[:200]))


main()
