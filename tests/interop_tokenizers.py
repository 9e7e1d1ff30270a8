"""Does pvtune tokenize as the library tokenizers does? Whole texts, one row per vocabulary and text.

    interop_tokenizers.py PVTUNE WORK DATA MODEL

DATA is ../shared/data: vocabularies of Llama-2, Qwen and GPT-2 as they were published, WikiText-2's test split and the
Brown corpus. MODEL is SmolLM2's GGUF: its tokenizer.json is the one that pvtune writes. The vocabulary of Llama-3
is not there; its rule for words is, with Qwen's vocabulary. A third text is made here, of what is rare elsewhere, also
bytes that SmolLM2 has no token for; a fourth holds every character that Unicode has assigned, a fifth is broken UTF-8.

The library takes Python's strings, which hold no broken UTF-8. Python's own way is to put U+FFFD first
(errors="replace"): that text is compared as it is. The bytes themselves are ours to encode, by one rule: a byte that belongs
to no character is a character of its own, neither letter, number nor space. What the library's parts make of that
rule is compared too: such bytes stand in the text as characters of a private plane, the library cuts it into words, and
in each word the bytes of those characters become the one byte again before the library's model merges.
"""
import gzip
import json
import os
import random
import sys
import unicodedata

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


# ---- broken UTF-8 ----

# cut off, lone continuations, overlong, surrogates, beyond U+10FFFF, of five bytes, no byte of any text
BROKEN = [b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xf0\x9f", b"\x80", b"\xbf\xbf\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\x80",
          b"\xed\xa0\x80", b"\xed\xa0\xbd\xed\xb8\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xfe", b"\xff\xff"]
PRIVATE = 0xf0000  # the character for byte b is U+F0000 + b: F3 B0, 80 + b's upper two bits, 80 + its lower six


def make_broken():
    draw = random.Random(1)
    words = [word.encode() for text in RARE if "<|" not in text for word in text.split(" ")] + [b"the", b"can't", b"2026", b"\n"]
    lines = []
    for _ in range(4000):
        parts = [draw.choice(draw.choice((words, BROKEN))) for _ in range(draw.randrange(1, 12))]
        lines.append(draw.choice((b"", b" ")).join(parts))
    return b"\n".join(lines)


def private(text):
    """Each byte that belongs to no character becomes a character of the private plane."""
    out, at = [], 0
    while at < len(text):
        for length in (1, 2, 3, 4):
            try:
                out.append(text[at:at + length].decode())
                break
            except UnicodeDecodeError:
                pass
        else:
            out.append(chr(PRIVATE + text[at]))
            length = 1
        at += length
    return "".join(out)


def byte_characters():
    """How byte-level vocabularies spell bytes: what Latin-1 prints stands for itself, the 68 others are U+0100 on."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printed]
    return {**{b: chr(b) for b in printed}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def broken_ids(tokenizer, text):
    text, ids = private(text), []
    fours = {b: chr(PRIVATE + b).encode() for b in range(128, 256)}
    if tokenizer.pre_tokenizer is None:  # SentencePiece's kind has no piece of a private character, so four tokens of bytes
        token = {b: tokenizer.token_to_id("<0x%02X>" % b) for b in range(256)}
        ones = {tuple(token[c] for c in four): token[b] for b, four in fours.items()}
        for id in tokenizer.encode(text).ids:
            ids.append(id)
            if tuple(ids[-4:]) in ones:
                ids[-4:] = [ones[tuple(ids[-4:])]]
        return ids
    spelled = byte_characters()
    ones = {"".join(spelled[c] for c in four): spelled[b] for b, four in fours.items()}
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text):
        for four, one in ones.items() if spelled[0xf3] in word else ():
            word = word.replace(four, one)
        ids += [token.id for token in tokenizer.model.tokenize(word)]
    return ids


def compare_broken(name, file, text, text_file):
    tokenizer = tokenizers.Tokenizer.from_file(file)
    ours = json.loads(run("tokenize", file, "-f", text_file, "--verbatim", "--json"))
    row(name, "broken UTF-8, byte by byte", *verdict(ours, broken_ids(tokenizer, text)))
    if name in ("gpt2", "llama3-words"):  # which have all bytes as tokens, and leave text as it is
        decoded = tokenizer.decode(ours, skip_special_tokens=False)
        row(name, "broken UTF-8, decoded there", decoded == text.decode(errors="replace"), "%d characters" % len(decoded))


# ---- whole texts ----

def make_texts():
    draw, lines = random.Random(0), list(RARE)
    for _ in range(3000):
        lines.append("".join(draw.choice(draw.choice(RARE)) for _ in range(draw.randrange(1, 40))))
        lines.append(" ".join(draw.choice(RARE).split(" ")[0] for _ in range(draw.randrange(1, 9))))
    with open(path("rare.txt"), "w", encoding="utf-8", newline="") as file:
        file.write("\n".join(lines))
    with open(path("every.txt"), "w", encoding="utf-8", newline="") as file:
        file.write("\n".join("x%sy %s" % (chr(c), chr(c)) for c in range(0x110000)
                             if unicodedata.category(chr(c)) not in ("Cs", "Cn", "Co")))  # these make it seven times as long
    with open(path("broken.txt"), "wb") as file:
        file.write(make_broken())
    with open(path("replaced.txt"), "w", encoding="utf-8", newline="") as file:
        file.write(make_broken().decode(errors="replace"))
    return {"wiki.test.raw": data + "/wikitext2/wiki.test.raw", "brown.txt": data + "/text/brown.txt", "rare.txt": path("rare.txt"),
            "every assigned character": path("every.txt"), "broken UTF-8, replaced by U+FFFD": path("replaced.txt")}


def verdict(ours, theirs):
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    return ours == theirs, "%d ids" % len(ours) if ours == theirs else \
        "differ from id %d on: %s here, %s there" % (first, ours[first:first + 5], theirs[first:first + 5])


def compare(name, file, text, text_file):
    with open(text_file, encoding="utf-8", newline="") as f:
        theirs = tokenizers.Tokenizer.from_file(file).encode(f.read()).ids
    row(name, text, *verdict(json.loads(run("tokenize", file, "-f", text_file, "--verbatim", "--json")), theirs))


def checks(name, file, texts):
    for text, text_file in texts.items():
        yield text, lambda: compare(name, file, text, text_file)
    yield "broken UTF-8", lambda: compare_broken(name, file, make_broken(), path("broken.txt"))


def main():
    texts = make_texts()
    for name, file in make_vocabularies().items():
        for text, check in checks(name, file, texts):
            try:
                check()
            except Exception as error:  # whatever it is, it is this row's
                row(name, text, False, "%s: %s" % (type(error).__name__, str(error)[:200]))


main()
