"""Compares pvtune's logits and token ids with those of transformers on the models in a directory."""
import json
import subprocess
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

pvtune, work = sys.argv[1], sys.argv[2]
passed = failed = 0


def check(what, good):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    print("%s: %s" % ("ok" if good else "FAILED", what))


text = open(work + "/unseen.txt").read()[:300]
ids = torch.tensor([list(text.encode())[:100], list(text.encode())[100:200]])
json.dump(ids.tolist(), open(work + "/ids.json", "w"))
for name in ["original", "calibrated", "tuned", "dense"]:
    path = work + "/" + name
    subprocess.run([pvtune, "logits", path, "--ids", work + "/ids.json", "-o", work + "/logits.safetensors", "-q"],
                   check=True, stdout=subprocess.DEVNULL)
    ours = load_file(work + "/logits.safetensors")["logits"]
    model = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32)
    with torch.no_grad():
        theirs = model(ids).logits
    difference = (ours - theirs).abs().max().item()
    check("%s: largest difference of logits %.2g" % (name, difference), difference < 1e-3)
    tokenizer = AutoTokenizer.from_pretrained(path)
    sample = text[:80] + " Übergrößen, 12½ 漢字\n\t<s>"
    got = subprocess.run([pvtune, "tokenize", path, sample, "--json"], check=True, capture_output=True).stdout
    check(name + ": token ids", json.loads(got) == tokenizer(sample)["input_ids"])
print("%d passed, %d failed" % (passed, failed))
sys.exit(failed > 0)
