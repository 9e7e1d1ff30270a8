"""Does pvtune eval --task score as lm-evaluation-harness does? Both read the same documents and run the same model, the
harness through transformers, with its own task objects: of their settings only the data set is another. One row per task
and check.

    interop_tasks.py PVTUNE WORK MODEL DATA

MODEL is exported to WORK in float32 for both. DATA is ../shared/data. Its tasks/ are request rows; what the data set's own
documents held is in them, and is put back into the data set's fields here. ARC's rows keep choices without their letters
(A, B, … here); HellaSwag's keep the prompt that the harness' preprocessing left, which is the same when it is preprocessed
again. BoolQ is not there: its passages are paragraphs of WikiText-2, questions and answers are made here.
"""
import gzip
import json
import os
import random
import sys

import lm_eval
import torch
import transformers
from lm_eval.models.huggingface import HFLM

import interop_rows
from interop_rows import path, run

model, data = sys.argv[3:5]
MOST = int(os.environ.get("INTEROP_DOCUMENTS", 100))  # of each task
TOLERANCE = 1e-3  # nats of a whole continuation, both models in float32
# The harness' own option for its log_softmax. In float32 torch sums 49,152 exponentials with an error of one sign, up to
# 8e-6 nats a token: 9e-4 nats on PIQA's longest answers (111 tokens), where the same logits with this sum in double are
# 2e-5 off the model in float64, and ours 1.4e-4.
SOFTMAX = "float64"


def row(task, check, good, figure=""):
    interop_rows.row("lm_eval", task, check, good, figure)


# ---- documents ----

def rows(name):
    """The first row of each document; those from 1,000,000 on are for another measure."""
    seen = set()
    with gzip.open(os.path.join(data, "tasks", name + ".jsonl.gz"), "rt", encoding="utf-8") as file:
        for line in file:
            one = json.loads(line)
            if one["doc_id"] < 1000000 and one["doc_id"] not in seen:
                seen.add(one["doc_id"])
                yield one["doc"]


def arc(name):
    for doc in rows(name):
        letters = [chr(ord("A") + i) for i in range(len(doc["choices"]))]
        question = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        yield {"id": doc["id"], "question": question, "choices": {"text": doc["choices"], "label": letters},
               "answerKey": letters[doc["gold"]]}


def hellaswag():
    for doc in rows("hellaswag.rc_5shot"):
        activity, rest = doc["query"].split(": ", 1)
        yield {"activity_label": activity, "ctx_a": rest, "ctx_b": "", "endings": doc["choices"], "label": str(doc["gold"])}


def piqa():
    for doc in rows("piqa.rc_0shot"):
        yield {key: doc[key] for key in ("goal", "sol1", "sol2", "label")}


def winogrande():
    for doc in rows("winogrande.rc_0shot"):
        yield {key: doc[key] for key in ("sentence", "option1", "option2", "answer")}


def lambada():
    with open(os.path.join(data, "tasks/lambada_test.jsonl"), encoding="utf-8") as file:
        for line in file:
            yield {"text": json.loads(line)["text"]}


def boolq():
    draw = random.Random(0)
    with open(os.path.join(data, "wikitext2/wiki.test.raw"), encoding="utf-8") as file:
        for line in file:
            words = line.split()
            if 60 < len(words) < 160:
                yield {"passage": line.strip(), "question": "is it true that " + " ".join(words[10:18]).lower(), "idx": len(words),
                       "label": draw.randrange(2)}


# the task here, its file in the harness, its documents
TASKS = {"arc_easy": ("arc/arc_easy.yaml", lambda: arc("arc_easy.rc_0shot")),
         "arc_challenge": ("arc/arc_challenge.yaml", lambda: arc("arc_challenge.rc_0shot")),
         "hellaswag": ("hellaswag/hellaswag.yaml", hellaswag), "piqa": ("piqa/piqa.yaml", piqa),
         "winogrande": ("winogrande/default.yaml", winogrande), "lambada": ("lambada/lambada_openai.yaml", lambada),
         "boolq": ("super_glue/boolq/default.yaml", boolq)}


def write_documents(task):
    documents = [document for document, _ in zip(TASKS[task][1](), range(MOST))]
    with open(path(task + ".jsonl"), "w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps(document) + "\n")
    return len(documents)


# ---- both ----

def theirs_of(tasks):
    """The harness' own settings of each task, all but the place of its documents."""
    for task in tasks:
        splits = {split: path(task + ".jsonl") for split in ("train", "validation", "test")}
        with open(path(task + ".yaml"), "w", encoding="utf-8") as file:  # JSON is YAML
            json.dump({"include": os.path.join(os.path.dirname(lm_eval.__file__), "tasks", TASKS[task][0]), "task": "local_" + task,
                       "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": splits}}, file)
    lm = HFLM(pretrained=transformers.AutoModelForCausalLM.from_pretrained(path("dense"), torch_dtype=torch.float32),
              tokenizer=transformers.AutoTokenizer.from_pretrained(path("dense")), batch_size=8, device="cpu",
              softmax_dtype=SOFTMAX)
    return lm_eval.simple_evaluate(model=lm, tasks=[path(task + ".yaml") for task in tasks], num_fewshot=0, bootstrap_iters=10,
                                   log_samples=True)


def ours_of(tasks):
    arguments = [word for task in tasks for word in ("--task", task + "=" + path(task + ".jsonl"))]
    result = json.loads(run("eval", path("dense"), *arguments, "--log", path("log.jsonl"), "--json"))["tasks"]
    log = {}
    with open(path("log.jsonl"), encoding="utf-8") as file:
        for line in file:
            one = json.loads(line)
            log.setdefault(one["task"], []).append(one)
    return result, log


def compare_documents(task, samples, log):
    """Log-likelihoods, which of them are greedy, and which documents are right: one by one."""
    far, count, greedy, right = 0.0, 0, 0, 0
    for sample, one in zip(sorted(samples, key=lambda sample: sample["doc_id"]), log):
        answers = [answer[0] for answer in sample["resps"]]
        if len(answers) != len(one["loglik"]):
            return row(task, "choices", False, "%d there, %d here" % (len(answers), len(one["loglik"])))
        for (loglik, is_greedy), mine, mine_greedy in zip(answers, one["loglik"], one["greedy"]):
            far, count = max(far, abs(loglik - mine)), count + 1
            greedy += bool(is_greedy) != bool(mine_greedy)
        for metric in ("acc", "acc_norm"):
            right += metric in sample and int(sample[metric]) != one[metric]
    row(task, "log-likelihoods", far < TOLERANCE and count > 0, "%.1e at most, of %d in %d documents" % (far, count, len(samples)))
    row(task, "greedy, right and right_norm", greedy == 0 and right == 0, "%d and %d differ" % (greedy, right))


def compare(task, theirs, samples, ours, log):
    if len(samples) != len(log[task]) or ours[task]["n"] != len(samples):
        return row(task, "documents", False, "%d there, %d here" % (len(samples), len(log[task])))
    compare_documents(task, samples, log[task])
    for metric, key in (("acc", "acc"), ("acc_norm", "acc_norm"), ("perplexity", "ppl")):
        if metric + ",none" not in theirs:
            row(task, "no " + metric, key not in ours[task])
            continue
        value, mine = theirs[metric + ",none"], ours[task][key]
        if metric == "perplexity":
            row(task, metric, abs(value / mine - 1) < TOLERANCE, "%.5g there, %.5g here" % (value, mine))
            continue
        error, own = theirs[metric + "_stderr,none"], ours[task][key + "_stderr"]
        row(task, metric, abs(value - mine) < 1e-9 and abs(error - own) < 1e-6,
            "%.4f ± %.4f there, %.4f ± %.4f here" % (value, error, mine, own))


def main():
    transformers.logging.set_verbosity_error()
    run("export", model, "--to", "dense", "--dtype", "f32", "-o", path("dense"))
    tasks = list(TASKS)
    for task in tasks:
        if write_documents(task) != MOST:
            raise RuntimeError("%s: fewer than %d documents" % (task, MOST))
    theirs = theirs_of(tasks)
    ours, log = ours_of(tasks)
    for task in tasks:
        compare(task, theirs["results"]["local_" + task], theirs["samples"]["local_" + task], ours, log)


main()
