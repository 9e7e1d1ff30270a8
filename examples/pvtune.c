/*  pvtune: the program. Quantizes a Llama-family model to about two bits per weight, tunes it by
    PV-Tuning, measures, exports and runs it. Everything happens in pvtune.h, behind its public
    interface; here stand the verbs, their options, progress, Ctrl-C and the printing of results.

        pvtune help            the verbs
        pvtune help VERB       its options

    Results go to stdout (as one JSON object with --json), progress and messages to stderr. Exit
    status: 0 done, 1 failed (one line says why and what to do), 2 wrong usage. */

#ifndef _FILE_OFFSET_BITS /* 32-bit Linux: stat and readdir of what is large; before libc's headers */
#define _FILE_OFFSET_BITS 64
#endif
#include "../pvtune.h"

#include <ctype.h>
#include <dirent.h>
#include <stdarg.h>
#include <sys/stat.h>

#ifdef _WIN32
#include "on_windows.h"
#endif
#include "json.h"
#include "meter.h"
#include "options.h"

/* ---- options: the struct that the tables fill, zero meaning the library's default ---- */

typedef struct options {
    const char *model, *text, *output, *teacher, *data, *calib, *format, *skip, *ppl, *windows, *log, *against;
    const char *prompt, *file, *ids, *to, *tokenizer, *strategy, *schedule, *loss, *plan, *svg, *save, *moments;
    const char *select, *key, *step;
    const char *optimizer, *code_optimizer, *param_optimizer, *compute, *device, *head_type, *eval, *inputs;
    int64_t threads, samples, ctx, epochs, beam, finetune_epochs, steps, batch, micro_batch, warmup;
    int64_t save_every, n, memory, train_steps, eval_every, eval_windows, patience;
    uint64_t seed;
    double lr, code_lr, param_lr, cap, trust, delta, delta_from, temperature, rounding, temp, top_p, finetune_lr, target, tolerance;
    double smoothness, wind;
    bool json, quiet, embed, head, resume, restart, overwrite, force, freeze, no_cache, no_finetune, tensors, keep;
    bool ignore_eos, quick, brief, text_only, no_eval, freeze_values, no_card, verbatim;
    const char *dtype, *embed_format;
    const char *train, *surrogate; /* see SURROGATE */
    double surrogate_temperature, clamp_sharpness;
    const char *finetune_strategy, *finetune_train;
    double finetune_code_lr;
    const char *fit; /* --fit, --act-order, --damp: see FIT_METHOD */
    bool act_order;
    double damp;
    const char *lab; /* which experiment, */
    int64_t runs;    /* from so many starts or seeds */
    option_list tasks, stops;
    const char *prompts, *system;
    int64_t top_k;
    double min_p, repeat_penalty;
    bool chat;
    int64_t limit, stride;
    const char *beside;
    bool join;
    const char *formats, *alpha, *bits;
    bool no_embed;
} options;

#define NOT_GIVEN (-1) /* of --warmup and --clamp-sharpness, where 0 says something */

#define AT(field) offsetof(options, field)
#define POSITIONAL(name, field, help) {name, NULL, OPTION_TEXT, AT(field), true, "", 0, 0, NULL, help}
#define OUTPUT(what) {"--output", "-o", OPTION_TEXT, AT(output), true, "DIR", 0, 0, NULL, what}
#define OVERWRITE {"--overwrite", NULL, OPTION_FLAG, AT(overwrite), false, "", 0, 0, NULL, "replace what -o holds"}
#define HEADING(text) {"-", NULL, OPTION_HEADING, 0, false, "", 0, 0, NULL, text}
#define NO_CARD {"--no-card", NULL, OPTION_FLAG, AT(no_card), false, "", 0, 0, NULL, "no model card (README.md)"}

static const option common_rows[] = {
    HEADING("Common to all"),
    {"--tokenizer", NULL, OPTION_TEXT, AT(tokenizer), false, "FILE", 0, 0, "(beside or inside the model)", "the tokenizer"},
    {"--threads", NULL, OPTION_INT, AT(threads), false, "N", 1, 256, "(PVTUNE_NUM_THREADS, else all cores)", "threads"},
    {"--compute", NULL, OPTION_CHOICE, AT(compute), false, "fp32|bf16", 0, 0, "fp32",
     "linear layers and attention multiply operands rounded so; bf16 is twice as fast with AVX512_BF16, slow without"},
    {"--device", NULL, OPTION_TEXT, AT(device), false, "cuda[:N]", 0, 0, "(the processor)",
     "compute on GPU N; needs a program built by `make cuda`"},
    {"--seed", NULL, OPTION_SEED, AT(seed), false, "S", 0, 0, "0", "every random choice follows from it"},
    {"--verbatim", NULL, OPTION_FLAG, AT(verbatim), false, "", 0, 0, NULL, "texts byte for byte: JSON Lines are not taken apart, nothing is refused"},
    {"--json", NULL, OPTION_FLAG, AT(json), false, "", 0, 0, NULL, "the result as one JSON object"},
    {"--quiet", "-q", OPTION_FLAG, AT(quiet), false, "", 0, 0, NULL, "no progress"},
};
static const option demo_rows[] = {
    {"--text", NULL, OPTION_TEXT, AT(text), false, "FILE", 0, 0, "(little stories)", "learn this text; its last tenth is kept unseen"},
    {"--svg", NULL, OPTION_TEXT, AT(svg), false, "FILE", 0, 0, "demo.svg", "where the curves go"},
    {"--steps", NULL, OPTION_INT, AT(steps), false, "N", 1, 1e6, "(100; --short: 110)", "tuning steps of 2,048 tokens"},
    {"--train-steps", NULL, OPTION_INT, AT(train_steps), false, "N", 1, 1e6, "(1500; --short: 2400)", "training steps of 512 tokens"},
    {"--format", NULL, OPTION_TEXT, AT(format), false, "F", 0, 0, "aqlm:2x4g4", "quantization format"},
    {"--short", NULL, OPTION_FLAG, AT(brief), false, "", 0, 0, NULL, "a smaller model: one to two minutes, the same order of strategies"},
    {"--quick", NULL, OPTION_FLAG, AT(quick), false, "", 0, 0, NULL,
     "a tiny model and few steps, to see that it runs: too raw to tell strategies apart"},
    {"--text-only", NULL, OPTION_FLAG, AT(text_only), false, "", 0, 0, NULL, "only write the texts into --save DIR"},
    {"--save", NULL, OPTION_TEXT, AT(save), false, "DIR", 0, 0, NULL,
     "keep the models and the texts: DIR/original, DIR/calibrated, DIR/tuned, DIR/train.txt, DIR/unseen.txt"},
    {"--overwrite", NULL, OPTION_FLAG, AT(overwrite), false, "", 0, 0, NULL, "replace the models that --save DIR holds"},
};
static const option info_rows[] = {
    POSITIONAL("MODEL", model, "a Hugging Face directory, a .gguf or a llama2.c .bin"),
    {"--tensors", NULL, OPTION_FLAG, AT(tensors), false, "", 0, 0, NULL, "list every tensor (--json always does)"},
    {"--plan", NULL, OPTION_CHOICE, AT(plan), false, "tune", 0, 0, NULL, "memory that tuning would take; options of tune may follow"},
};
#define FIT_METHOD /* of formats with a code for each weight */                                             \
    {"--fit", NULL, OPTION_CHOICE, AT(fit), false, "rtn|gptq|best", 0, 0, "best",                            \
     "of nf4, int and q2_0: round to nearest, GPTQ, or GPTQ with searched scales and a descent from there"}, \
    {"--act-order", NULL, OPTION_FLAG, AT(act_order), false, "", 0, 0, NULL,                                 \
     "GPTQ takes the strongest inputs first"},                                                               \
    {"--damp", NULL, OPTION_REAL, AT(damp), false, "X", 1e-9, 1e6, "(0.01)",                                 \
     "GPTQ adds this share of the mean diagonal to XᵀX"}
#define SURROGATE /* quantization-aware training: of tune, and of block fine-tuning */                       \
    {"--surrogate-temperature", NULL, OPTION_REAL, AT(surrogate_temperature), false, "X", 1e-9, 1e6, "(4)",  \
     "of sigmoid: how much more it hears of weights that are about to take another code"},                   \
    {"--clamp-sharpness", NULL, OPTION_REAL, AT(clamp_sharpness), false, "X", 0, 1e6, "(4)",                 \
     "of a surrogate's clamp: weights beyond the last code still hear a little; 0: nothing, a hard clamp"}
#define SURROGATE_NAMES "none|identity|sigmoid|root"
#define STRATEGY_NAMES "continuous|linearized|stochastic|ste|subspace|subspace-ste|pv"
static const option quantize_rows[] = {
    HEADING("Main"),
    POSITIONAL("MODEL", model, "a Hugging Face directory, a .gguf or a llama2.c .bin"),
    {"--calib", NULL, OPTION_TEXT, AT(calib), true, "TEXT", 0, 0, NULL, "text to calibrate on: plain, or JSON Lines with \"text\" or \"content\"; -: standard input"},
    OUTPUT("directory for the quantized model"),
    {"--format", NULL, OPTION_TEXT, AT(format), false, "F", 0, 0, "aqlm:2x8g8",
     "aqlm:MxBgG: M codebooks of 2^B entries, groups of G weights (aqlm:MxBgGoO: of O rows); vq:BgG: one codebook; "
     "nf4; int:BgG: integers of B bits, a scale and zero for G (int:BgGs: no zero); q2_0: llama.cpp's two bits; "
     "higgs:pPnN: N points for P weights; e8p: QuIP#'s 2-bit lattice; iq2_xxs, iq2_xs, iq2_s: llama.cpp's grids; had:F, had2:F: F behind "
     "a Hadamard rotation of inputs, of both sides"},
    HEADING("Calibration"),
    {"--samples", NULL, OPTION_INT, AT(samples), false, "N", 1, 1e6, "(64)", "calibration sequences"},
    {"--ctx", NULL, OPTION_INT, AT(ctx), false, "T", 2, 1e6, "(512, or the model's context)", "tokens of a sequence"},
    {"--epochs", NULL, OPTION_INT, AT(epochs), false, "N", 1, 1000, "(16)", "at most so many rounds per weight"},
    {"--tolerance", NULL, OPTION_REAL, AT(tolerance), false, "X", 1e-9, 1, "(0.002)", "stop when a round gains less than this share"},
    {"--target", NULL, OPTION_REAL, AT(target), false, "X", 1e-9, 1, "(none)", "stop at this relative error"},
    {"--beam", NULL, OPTION_INT, AT(beam), false, "N", 1, 16, "(1)", "hypotheses kept in the code search"},
    FIT_METHOD,
    {"--finetune-epochs", NULL, OPTION_INT, AT(finetune_epochs), false, "N", 1, 1000, "(1)", "passes of block fine-tuning at most"},
    {"--finetune-lr", NULL, OPTION_REAL, AT(finetune_lr), false, "X", 1e-9, 1, "(2e-4 at two bits of code, more at fewer, less at more)", "its learning rate"},
    {"--no-finetune", NULL, OPTION_FLAG, AT(no_finetune), false, "", 0, 0, NULL, "no block fine-tuning"},
    {"--finetune-strategy", NULL, OPTION_CHOICE, AT(finetune_strategy), false, STRATEGY_NAMES, 0, 0,
     "(continuous; beside the next two: ste)",
     "how its codes change; ste, from the original weights, is Block-AP"},
    {"--finetune-surrogate", NULL, OPTION_CHOICE, AT(surrogate), false, SURROGATE_NAMES, 0, 0, "none",
     "its gradient of rounding: see tune"},
    {"--finetune-code-lr", NULL, OPTION_REAL, AT(finetune_code_lr), false, "X", 1e-9, 10, "(1e-3 at two bits, half as much for each bit more)",
     "Adam's, of the weights behind its codes"},
    {"--finetune-train", NULL, OPTION_TEXT, AT(finetune_train), false, "A,B", 0, 0, "all",
     "it moves codes, codebooks, scales, zeros, norms, biases alone; without zeros they stay whole for export --to gptq"},
    SURROGATE,
    HEADING("What is quantized"),
    {"--plan", NULL, OPTION_TEXT, AT(plan), false, "FILE", 0, 0, NULL,
     "a format for each tensor, as pvtune allocate writes it; what follows is then about the others"},
    {"--skip", NULL, OPTION_TEXT, AT(skip), false, "A,B", 0, 0, NULL, "tensors whose name contains A or B stay as they are"},
    {"--embed", NULL, OPTION_FLAG, AT(embed), false, "", 0, 0, NULL, "quantize the embedding too; transformers then needs export --to hf"},
    {"--head", NULL, OPTION_FLAG, AT(head), false, "", 0, 0, NULL, "quantize the head too (where it is the embedding: see --embed)"},
    {"--embed-format", NULL, OPTION_TEXT, AT(embed_format), false, "F", 0, 0, "(as --format)",
     "of the embedding, and the head where it is quantized, e.g. int:4g64; implies --embed"},
    HEADING("Files"),
    {"--resume", NULL, OPTION_FLAG, AT(resume), false, "", 0, 0, NULL,
     "go on from the blocks that an unfinished run left in -o, to the same result; start when there are none"},
    NO_CARD,
    OVERWRITE,
};
static const option fit_rows[] = {
    POSITIONAL("W.safetensors", model, "its f32, f16 and bf16 matrices are fit; other tensors are skipped"),
    {"--format", NULL, OPTION_TEXT, AT(format), false, "F", 0, 0, "aqlm:2x8g8",
     "aqlm:MxBgG: M codebooks of 2^B entries, groups of G weights (aqlm:MxBgGoO: of O rows); vq:BgG: one codebook; "
     "nf4; int:BgG: integers of B bits, a scale and zero for G (int:BgGs: no zero); q2_0: llama.cpp's two bits; "
     "higgs:pPnN: N points for P weights; e8p: QuIP#'s 2-bit lattice; iq2_xxs, iq2_xs, iq2_s: llama.cpp's grids; had:F, had2:F: F behind "
     "a Hadamard rotation of inputs, of both sides"},
    {"--inputs", NULL, OPTION_TEXT, AT(inputs), false, "X.safetensors", 0, 0, NULL,
     "weigh errors as these inputs do: per matrix [out, in] a tensor [n, in] of its name, or one called inputs for all"},
    {"--output", "-o", OPTION_TEXT, AT(output), true, "F.safetensors", 0, 0, NULL,
     "per matrix its arrays as NAME.ARRAY, and NAME.dequantized in f32"},
    {"--skip", NULL, OPTION_TEXT, AT(skip), false, "A,B", 0, 0, NULL, "leave out tensors whose name contains A or B"},
    {"--epochs", NULL, OPTION_INT, AT(epochs), false, "N", 1, 1000, "(16)", "at most so many rounds per matrix"},
    {"--tolerance", NULL, OPTION_REAL, AT(tolerance), false, "X", 1e-9, 1, "(0.002)", "stop when a round gains less than this share"},
    {"--target", NULL, OPTION_REAL, AT(target), false, "X", 1e-9, 1, "(none)", "stop at this relative error"},
    {"--beam", NULL, OPTION_INT, AT(beam), false, "N", 1, 16, "(1)", "hypotheses kept in the code search"},
    FIT_METHOD,
};
static const option tune_rows[] = {
    HEADING("Main"),
    POSITIONAL("DIR", model, "a quantized model: what pvtune quantize made, or any AQLM checkpoint"),
    {"--teacher", NULL, OPTION_TEXT, AT(teacher), false, "MODEL", 0, 0, NULL, "the original model (needed unless --loss ce)"},
    {"--data", NULL, OPTION_TEXT, AT(data), true, "TEXT", 0, 0, NULL, "text to tune on: plain, or JSON Lines with \"text\" or \"content\"; -: standard input"},
    OUTPUT("directory for the tuned model, and for the checkpoint until it is done"),
    {"--strategy", NULL, OPTION_CHOICE, AT(strategy), false, STRATEGY_NAMES, 0, 0, "subspace-ste",
     "how codes change; pv is subspace-ste"},
    {"--train", NULL, OPTION_TEXT, AT(train), false, "A,B", 0, 0, "all",
     "codes, codebooks, scales, zeros of what is quantized, norms, biases, embedding, head, linears of what is not; the rest stays"},
    {"--steps", NULL, OPTION_INT, AT(steps), false, "N", 1, 1e9, "200", "optimizer steps"},
    {"--batch", NULL, OPTION_INT, AT(batch), false, "SEQS", 1, 1e6, "(2)", "sequences of a step"},
    {"--micro-batch", NULL, OPTION_INT, AT(micro_batch), false, "SEQS", 1, 1e6, "(what fits)", "sequences of a forward"},
    {"--ctx", NULL, OPTION_INT, AT(ctx), false, "T", 2, 1e6, "(512, or the model's context)", "tokens of a sequence"},
    {"--loss", NULL, OPTION_CHOICE, AT(loss), false, "kl|ce", 0, 0, "kl", "towards the teacher, or plain next-token"},
    HEADING("Learning"),
    {"--lr", NULL, OPTION_REAL, AT(lr), false, "A", 1e-9, 10, "(3e-4 at two bits of code, more at fewer, less at more)", "learning rate of codebooks and scales"},
    {"--code-lr", NULL, OPTION_REAL, AT(code_lr), false, "B", 1e-9, 10, "(2.5e-2 at two bits, half as much for each bit more; adam: 3e-3)",
     "of the buffer that codes are searched against"},
    {"--param-lr", NULL, OPTION_REAL, AT(param_lr), false, "C", 1e-9, 10, "(as --lr)", "of everything that is not quantized"},
    {"--optimizer", NULL, OPTION_CHOICE, AT(optimizer), false, "adam|lamb", 0, 0, "(adam)", "for codebooks and scales"},
    {"--code-optimizer", NULL, OPTION_CHOICE, AT(code_optimizer), false, "adam|lamb", 0, 0, "(lamb)", "for the buffer"},
    {"--param-optimizer", NULL, OPTION_CHOICE, AT(param_optimizer), false, "adam|lamb", 0, 0, "(as --optimizer)", "for the rest"},
    {"--schedule", NULL, OPTION_CHOICE, AT(schedule), false, "cosine|constant|wsd", 0, 0, "(cosine)", "learning rates over time; wsd: constant, the last third a line to zero"},
    {"--warmup", NULL, OPTION_INT, AT(warmup), false, "N", 0, 1e9, "(a fortieth of the steps)", "steps of linear rise"},
    HEADING("V step: which codes change"),
    {"--cap", NULL, OPTION_REAL, AT(cap), false, "X", 1e-9, 1, "(0.01; ste, linearized, stochastic: 1)", "share of a weight's groups searched in a step"},
    {"--trust", NULL, OPTION_REAL, AT(trust), false, "R", 1e-9, 1e9, "(none)", "a step moves codes until a weight has changed by R of its norm"},
    {"--delta", NULL, OPTION_REAL, AT(delta), false, "D", 0, 1, "0", "decay of the buffer towards the weight"},
    {"--delta-from", NULL, OPTION_REAL, AT(delta_from), false, "X", 0, 1, "0", "after this share of the steps --delta rises from 0, to D at the last"},
    {"--beam", NULL, OPTION_INT, AT(beam), false, "N", 1, 16, "(1)", "hypotheses kept in the code search"},
    {"--select", NULL, OPTION_CHOICE, AT(select), false, "greedy|uniform|proportional", 0, 0, "greedy",
     "the groups to search: farthest from their targets, drawn evenly, or drawn in proportion to that distance"},
    {"--key", NULL, OPTION_CHOICE, AT(key), false, "norm|moment|root-moment", 0, 0, "norm",
     "that distance: plain, or weighted by the second moment of the gradient or its root"},
    {"--temperature", NULL, OPTION_REAL, AT(temperature), false, "T", 0, 1e6, "(0; proportional: 1)",
     "draw groups with p ~ distance^(1/T) instead of the farthest"},
    {"--v-step", NULL, OPTION_CHOICE, AT(step), false, "preconditioned|plain", 0, 0, "preconditioned",
     "towards the target: by --code-optimizer, or by -gradient/L"},
    {"--smoothness", NULL, OPTION_REAL, AT(smoothness), false, "L", 1e-30, 1e30, "(none)",
     "the L of plain steps, which need one"},
    {"--wind", NULL, OPTION_REAL, AT(wind), false, "X", 1e-9, 1e9, "(none)",
     "keep a group's buffer within X of a group's usual norm from its weights"},
    {"--restart", NULL, OPTION_FLAG, AT(restart), false, "", 0, 0, NULL, "a searched group that keeps its code has its buffer reset"},
    {"--rounding", NULL, OPTION_REAL, AT(rounding), false, "T", 0, 1e6, "(0: the nearest code; stochastic: 0.35)",
     "draw between the two nearest codes, the more evenly the larger T"},
    {"--force-update", NULL, OPTION_FLAG, AT(force), false, "", 0, 0, NULL, "a searched group must change"},
    {"--moments", NULL, OPTION_CHOICE, AT(moments), false, "f32|bf16", 0, 0, "f32", "the buffer's second moment"},
    HEADING("Quantization-aware training of int and q2_0 (with --strategy ste)"),
    {"--surrogate", NULL, OPTION_CHOICE, AT(surrogate), false, SURROGATE_NAMES, 0, 0, "none",
     "what gradients see of rounding: nothing (PV-Tuning), 1 (with --clamp-sharpness 0 EfficientQAT's), a bell (arXiv 2410.10849), a peak (LC-QAT)"},
    SURROGATE,
    HEADING("Memory, and what stays as it is"),
    {"--freeze-values", NULL, OPTION_FLAG, AT(freeze_values), false, "", 0, 0, NULL, "codebooks, scales and zeros stay: --train without them"},
    {"--freeze-dense", NULL, OPTION_FLAG, AT(freeze), false, "", 0, 0, NULL, "what is not quantized stays: --train codes,codebooks,scales,zeros"},
    {"--no-teacher-cache", NULL, OPTION_FLAG, AT(no_cache), false, "", 0, 0, NULL, "run the teacher again over sequences seen before"},
    {"--memory", NULL, OPTION_INT, AT(memory), false, "MIB", 16, 1e8, "(2048)", "limit for activations"},
    HEADING("Evaluation while tuning"),
    {"--eval", NULL, OPTION_TEXT, AT(eval), false, "TEXT", 0, 0, "(a twentieth of --data, kept back)",
     "text to evaluate on while tuning: the best state is what is saved"},
    {"--eval-every", NULL, OPTION_INT, AT(eval_every), false, "N", 1, 1e9, "(a tenth of the steps)", "steps between evaluations"},
    {"--eval-windows", NULL, OPTION_INT, AT(eval_windows), false, "N", 1, 1e6, "(at most 8192 tokens)", "sequences to evaluate on"},
    {"--patience", NULL, OPTION_INT, AT(patience), false, "N", 1, 1e9, "(5)", "evaluations without a new best that end the tuning; of wsd those when rates fall"},
    {"--no-eval", NULL, OPTION_FLAG, AT(no_eval), false, "", 0, 0, NULL, "tune on all of --data and save the last state"},
    HEADING("Files"),
    {"--save-every", NULL, OPTION_INT, AT(save_every), false, "N", 0, 1e9, "50", "steps between checkpoints; 0: only on Ctrl-C"},
    {"--resume", NULL, OPTION_FLAG, AT(resume), false, "", 0, 0, NULL,
     "go on from the checkpoint in -o, to the same result, or with more --steps beyond it; start when there is none"},
    {"--keep-checkpoint", NULL, OPTION_FLAG, AT(keep), false, "", 0, 0, NULL, "keep it at the end, so that a later --resume with more --steps extends the run"},
    {"--log", NULL, OPTION_TEXT, AT(log), false, "F.jsonl", 0, 0, NULL, "one JSON object per step; --resume continues it"},
    NO_CARD,
    OVERWRITE,
};
static const option eval_rows[] = {
    POSITIONAL("MODEL", model, "a Hugging Face directory, a .gguf or a llama2.c .bin"),
    HEADING("Perplexity"),
    {"--ppl", NULL, OPTION_TEXT, AT(ppl), false, "TEXT", 0, 0, NULL, "on this text, as quantize --calib takes it, in windows; -: standard input"},
    {"--ctx", NULL, OPTION_INT, AT(ctx), false, "T", 2, 1e6, "(512, or the model's context)", "tokens of a window"},
    {"--windows", NULL, OPTION_TEXT, AT(windows), false, "N|A:B", 0, 0, "(all)", "the first N windows, or A … B-1"},
    {"--stride", NULL, OPTION_INT, AT(stride), false, "N", 1, 1e6, "(--ctx: they do not overlap)",
     "tokens from one window to the next; of all but the first only the last N predictions count"},
    {"--join", NULL, OPTION_FLAG, AT(join), false, "", 0, 0, NULL,
     "lines joined by blank ones, as the papers on WikiText-2 have them: \"\\n\\n\".join(dataset[\"text\"])"},
    {"--against", NULL, OPTION_TEXT, AT(against), false, "F.jsonl", 0, 0, NULL,
     "the --log of another model on the same windows: print the paired difference"},
    HEADING("Zero-shot tasks"),
    {"--task", NULL, OPTION_LIST, AT(tasks), false, "[NAME=]FILE", 0, 0, NULL,
     "documents as JSON Lines: arc_easy, arc_challenge, hellaswag, piqa, winogrande, boolq, lambada as their data sets have them, "
     "or {\"context\", \"choices\", \"gold\"}, {\"contexts\", \"continuation\", \"gold\"}, or request rows; may be given several times"},
    {"--limit", NULL, OPTION_INT, AT(limit), false, "N", 1, 1e9, "(all)", "the first N documents of each"},
    HEADING("Both"),
    {"--beside", NULL, OPTION_TEXT, AT(beside), false, "MODEL", 0, 0, NULL,
     "measure this model too, on the same tokens, and print the paired differences"},
    {"--log", NULL, OPTION_TEXT, AT(log), false, "F.jsonl", 0, 0, NULL, "one JSON object per window, and per document of a task"},
};
static const option generate_rows[] = {
    POSITIONAL("MODEL", model, "a Hugging Face directory, a .gguf or a llama2.c .bin"),
    {"--prompt", "-p", OPTION_TEXT, AT(prompt), false, "PROMPT", 0, 0, NULL, "the text to continue, with --chat to answer"},
    {"--prompts", NULL, OPTION_TEXT, AT(prompts), false, "FILE", 0, 0, NULL,
     "one on each line (-: standard input), all in one batch; printed in their order, with --json an object on each line"},
    {"--chat", NULL, OPTION_FLAG, AT(chat), false, "", 0, 0, NULL,
     "by the model's chat template: ChatML, Llama-2, Llama-3, Mistral, Phi-3; without -p a conversation, a line of standard input each turn"},
    {"--system", NULL, OPTION_TEXT, AT(system), false, "TEXT", 0, 0, NULL, "what a chat begins with"},
    {"--tokens", "-n", OPTION_INT, AT(n), false, "N", 1, 1e6, "(64)", "tokens to make, with the prompt no more than the model's context"},
    {"--temp", NULL, OPTION_REAL, AT(temp), false, "T", 0, 100, "0", "temperature; 0: the likeliest token always"},
    {"--top-p", NULL, OPTION_REAL, AT(top_p), false, "P", 1e-9, 1, "1", "draw from the likeliest tokens that hold this share"},
    {"--top-k", NULL, OPTION_INT, AT(top_k), false, "K", 1, 1e9, "(all)", "draw from the K likeliest tokens"},
    {"--min-p", NULL, OPTION_REAL, AT(min_p), false, "P", 0, 1, "(0)", "draw from none less likely than P times the likeliest"},
    {"--repeat-penalty", NULL, OPTION_REAL, AT(repeat_penalty), false, "X", 0.01, 100, "(1)",
     "logits of tokens that stand already are divided by it where positive, multiplied where negative"},
    {"--stop", NULL, OPTION_LIST, AT(stops), false, "TEXT", 0, 0, NULL, "end before this text; may be given several times"},
    {"--head", NULL, OPTION_CHOICE, AT(head_type), false, "full|q8", 0, 0, "full", "as it is, or rounded to 8 bits: faster, a little less exact"},
    {"--ignore-eos", NULL, OPTION_FLAG, AT(ignore_eos), false, "", 0, 0, NULL, "go on after the end token"},
};
static const option export_rows[] = {
    POSITIONAL("DIR", model, "a model"),
    OUTPUT("directory to write, or for gguf the file"),
    {"--to", NULL, OPTION_CHOICE, AT(to), true,
     "hf-aqlm|dense|gguf:f16|gguf:bf16|gguf:f32|gguf:q8_0|gguf:q2_0|gguf:iq2_xxs|gguf:iq2_xs|gguf:iq2_s|gptq|compressed-tensors|mlx|hf", 0, 0, NULL,
     "transformers with AQLM codes (also called hf) or dense; llama.cpp; GPTQModel; vLLM; mlx-lm"},
    {"--dtype", NULL, OPTION_CHOICE, AT(dtype), false, "f16|bf16|f32", 0, 0, "f16", "of what is written dense"},
    NO_CARD,
    OVERWRITE,
};
static const option tokenize_rows[] = {
    POSITIONAL("MODEL", model, "a model with a tokenizer, or a tokenizer file"),
    {"TEXT", NULL, OPTION_TEXT, AT(text), false, "", 0, 0, NULL, "the text, or -f"},
    {"--file", "-f", OPTION_TEXT, AT(file), false, "FILE", 0, 0, NULL, "take the text from a file; -: standard input"},
};
static const option logits_rows[] = {
    POSITIONAL("MODEL", model, "a Hugging Face directory, a .gguf or a llama2.c .bin"),
    {"--ids", NULL, OPTION_TEXT, AT(ids), true, "FILE", 0, 0, NULL, "JSON array of equally long arrays of token ids"},
    {"--output", "-o", OPTION_TEXT, AT(output), true, "F.safetensors", 0, 0, NULL, "tensor \"logits\" [B, T, V]"},
};
static const option grad_rows[] = {
    POSITIONAL("MODEL", model, "a Hugging Face directory, a .gguf or a llama2.c .bin"),
    {"--ids", NULL, OPTION_TEXT, AT(ids), true, "FILE", 0, 0, NULL, "JSON array of equally long arrays of token ids"},
    {"--teacher", NULL, OPTION_TEXT, AT(teacher), false, "MODEL", 0, 0, NULL, "KL(teacher || model) instead of cross-entropy"},
    {"--output", "-o", OPTION_TEXT, AT(output), true, "F.safetensors", 0, 0, NULL,
     "\"loss\" and every parameter's gradient by Hugging Face name"},
};
static const option allocate_rows[] = {
    POSITIONAL("MODEL", model, "a Hugging Face directory, a .gguf or a llama2.c .bin, not quantized"),
    {"--bits", NULL, OPTION_TEXT, AT(bits), false, "B,B", 0, 0, NULL,
     "of the whole file per parameter, embedding, head and headers counted, each from 0.1 to 16; several: a plan for each"},
    {"--output", "-o", OPTION_TEXT, AT(output), true, "PLAN.json", 0, 0, NULL,
     "for pvtune quantize --plan; a % in it stands for the bits, as several sizes need: plan-%.json"},
    {"--formats", NULL, OPTION_TEXT, AT(formats), false, "F,F", 0, 0, "aqlm:2x8g8,int:2g64,int:3g64,int:4g64,int:6g64,dense",
     "what to choose from, as quantize takes them; dense: 16 bits"},
    {"--calib", NULL, OPTION_TEXT, AT(calib), false, "TEXT", 0, 0, "(none: random tokens)", "text on which to measure what errors cost; -: standard input"},
    {"--alpha", NULL, OPTION_CHOICE, AT(alpha), false, "gradient|noise", 0, 0, "(gradient; without --calib noise)",
     "how: from backward passes, or by noise in one tensor at a time, which takes a forward pass for each and is the only way without --calib"},
    {"--samples", NULL, OPTION_INT, AT(samples), false, "N", 1, 1e6, "(32; noise: 4)", "sequences"},
    {"--ctx", NULL, OPTION_INT, AT(ctx), false, "T", 2, 1e6, "(256, or the model's context)", "tokens of a sequence"},
    {"--no-embed", NULL, OPTION_FLAG, AT(no_embed), false, "", 0, 0, NULL, "embedding and head stay dense"},
};

#define LAB_NAMES "quadratic|smoothness|strategies|ablation|pv-or-ste|surrogates|linearity|allocation"
static const option lab_rows[] = {
    {"NAME", NULL, OPTION_CHOICE, AT(lab), true, LAB_NAMES, 0, 0, NULL, "the experiment"},
    {"MODEL", NULL, OPTION_TEXT, AT(model), false, "", 0, 0, "(a small Llama, trained first)",
     "what it is done to; not quadratic, which needs none"},
    {"--runs", NULL, OPTION_INT, AT(runs), false, "N", 1, 1e6, "(3 seeds; quadratic: 50 starts)",
     "over which means and standard errors are taken"},
    {"--svg", NULL, OPTION_TEXT, AT(svg), false, "FILE", 0, 0, "(lab-NAME.svg)", "where the chart goes"},
    {"--quick", NULL, OPTION_FLAG, AT(quick), false, "", 0, 0, NULL,
     "a tiny model and few steps, to see that it runs: its figures say nothing"},
    {"--text", NULL, OPTION_TEXT, AT(text), false, "FILE", 0, 0, "(little stories)", "what the small Llama learns"},
    {"--train-steps", NULL, OPTION_INT, AT(train_steps), false, "N", 1, 1e6, "(2400)", "in so many steps"},
    {"--formats", NULL, OPTION_TEXT, AT(formats), false, "F,F", 0, 0, "(four of two bits; ablation: one)",
     "representations, as quantize takes them"},
    {"--steps", NULL, OPTION_INT, AT(steps), false, "N", 1, 1e6, "(110; pv-or-ste 80; of a MODEL 100)", "tuning steps of a run"},
    {"--samples", NULL, OPTION_INT, AT(samples), false, "N", 1, 1e6, "(128; of a MODEL 64)", "calibration sequences"},
    HEADING("With a MODEL"),
    {"--data", NULL, OPTION_TEXT, AT(data), false, "TEXT", 0, 0, NULL, "text to calibrate and tune on"},
    {"--eval", NULL, OPTION_TEXT, AT(eval), false, "TEXT", 0, 0, "(the last tenth of --data)", "text to measure on"},
    {"--eval-windows", NULL, OPTION_INT, AT(eval_windows), false, "N", 1, 1e6, "(16384 tokens)", "so much of it"},
    {"--ctx", NULL, OPTION_INT, AT(ctx), false, "T", 2, 1e6, "(512, or the model's context)", "tokens of a sequence"},
};

/* ---- the program's state: one struct, freed in one place ---- */

enum { MODELS = 4, BUFFERS = 8, TEXT_BUFFER = BUFFERS - 1 };
typedef struct app {
    const char *verb;
    options o;
    pvt_ctx *ctx;
    meter meter;
    buffer json, card, table_head, table_lines;
    char **arguments; /* of the command, for the model card */
    double started;
    /* whatever is set here is freed by app_close */
    pvt_model *models[MODELS];
    pvt_run *runs[2];
    pvt_corpus corpora[2];
    pvt_tuner *tuner;
    pvt_tokenizer *tokenizer;
    void *buffers[BUFFERS]; /* of calloc */
    FILE *log;
} app;

/* Everything that was computed. */
static void app_clear(app *a)
{
    pvt_tuner_free(a->tuner), a->tuner = NULL;
    for (int i = 0; i < 2; i++) pvt_run_free(a->runs[i]), a->runs[i] = NULL, pvt_corpus_free(&a->corpora[i]);
    for (int i = 0; i < MODELS; i++) pvt_model_free(a->models[i]), a->models[i] = NULL;
    pvt_tokenizer_free(a->tokenizer), a->tokenizer = NULL;
    for (int i = 0; i < BUFFERS; i++) free(a->buffers[i]), a->buffers[i] = NULL;
    pvt_ctx_destroy(a->ctx), a->ctx = NULL;
}

static void app_close(app *a)
{
    app_clear(a);
    buffer_free(&a->json);
    buffer_free(&a->card);
    buffer_free(&a->table_head);
    buffer_free(&a->table_lines);
}

/* ---- messages and progress, on stderr ---- */

static JSON_PRINTF(2, 3) void note(app *a, const char *format, ...)
{
    va_list args;
    if (a->o.quiet) return;
    pthread_mutex_lock(&a->meter.lock); /* what is shown comes back at its next drawing */
    meter_erase(&a->meter);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    pthread_mutex_unlock(&a->meter.lock);
}

/* Says why, in one line; returns the exit status of failure. */
static JSON_PRINTF(2, 3) int fail(app *a, const char *format, ...)
{
    va_list args;
    meter_clear(&a->meter);
    fprintf(stderr, "pvtune %s: ", a->verb);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    return 1;
}

/* The library's sentence, without the verb that fail puts in front of it. */
static const char *library_error(const app *a)
{
    const char *why = pvt_ctx_error(a->ctx);
    size_t verb = strlen(a->verb);
    return strncmp(why, a->verb, verb) == 0 && strncmp(why + verb, ": ", 2) == 0 ? why + verb + 2 : why;
}

static int fail_result(app *a, pvt_result result)
{
    const char *why = library_error(a);
    return fail(a, "%s", why[0] ? why : pvt_result_text(result));
}

/* Passes a library call's failure on as exit status 1. */
#define TRY(a, call)                                                  \
    do {                                                              \
        pvt_result result_ = (call);                                  \
        if (result_ != PVT_OK) return fail_result(a, result_);        \
    } while (0)
/* Passes on an exit status other than 0. */
#define DO(call)                              \
    do {                                      \
        int status_ = (call);                 \
        if (status_ != 0) return status_;     \
    } while (0)

/* The library's report. What goes on inside a weight, a block or a tuning run only says where the work stands. */
static int on_progress(void *user, const pvt_progress *p)
{
    static const char *const inside[] = {"fit", "observe", "finetune", "evaluate"};
    const char *figure = "loss";
    app *a = (app *)user;
    char what[160];
    for (int i = 0; i < (int)(sizeof inside / sizeof *inside); i++)
        if (strcmp(p->phase, inside[i]) == 0) {
            snprintf(what, sizeof what, "%s %.96s %lld/%lld", p->phase, p->item ? p->item : "", (long long)p->done,
                     (long long)p->total);
            meter_detail(&a->meter, what);
            return stop_asked;
        }
    if (strcmp(p->phase, "quantize") == 0 || strcmp(p->phase, "fitting") == 0) figure = "error";
    if (strcmp(p->phase, "eval") == 0) figure = "perplexity";
    if (strcmp(p->phase, "task") == 0) figure = "accuracy";
    meter_count(&a->meter, p->phase, p->item, p->done, p->total, p->unit, figure, p->value);
    return stop_asked;
}

/* For loops of the program's own. */
static int progress(app *a, const char *phase, int64_t done, int64_t total, const char *unit, double value)
{
    pvt_progress p;
    p.phase = phase, p.item = NULL, p.done = done, p.total = total, p.unit = unit, p.value = value;
    return on_progress(a, &p);
}

/* The device of --device; NULL, and a sentence: it cannot be had. */
static const pvt_device *choose_device(app *a)
{
    const char *text = a->o.device;
    const pvt_device *device = NULL;
    char *end = NULL;
    long n = strncmp(text, "cuda:", 5) == 0 && isdigit((unsigned char)text[5]) ? strtol(text + 5, &end, 10) : 0;
    if (strcmp(text, "cuda") != 0 && (!end || *end)) {
        fail(a, "--device %s: expected cuda, or cuda:N for GPU number N", text);
        return NULL;
    }
#ifdef PVTUNE_CUDA
    if (n > 1000 || pvt_cuda_device((int)n, &device) != PVT_OK) fail(a, "--device %s: there is no such GPU; they count from 0", text);
#else
    (void)n;
    fail(a, "--device %s: this program was built without CUDA; `make cuda` builds one that has it", text);
#endif
    return device;
}

/* The device's own name and memory; false: the processor computes, or the GPU does not answer. */
static bool device_memory(const app *a, char *name, int64_t name_bytes, int64_t *free_bytes, int64_t *bytes)
{
#ifdef PVTUNE_CUDA
    const char *device = a->ctx ? pvt_ctx_get_info(a->ctx).device : NULL;
    int n = device && strchr(device, ':') ? atoi(strchr(device, ':') + 1) : 0;
    return device && pvt_cuda_memory(n, name, name_bytes, free_bytes, bytes) == PVT_OK;
#else
    (void)a, (void)name, (void)name_bytes, (void)free_bytes, (void)bytes;
    return false;
#endif
}

/* The context that the options ask for. */
static int open_context(app *a)
{
    pvt_ctx_desc desc;
    char why[300] = "";
    memset(&desc, 0, sizeof desc);
    desc.n_threads = (int)a->o.threads, desc.seed = a->o.seed;
    desc.compute_bf16 = a->o.compute && strcmp(a->o.compute, "bf16") == 0;
    desc.progress = on_progress, desc.progress_user = a;
    desc.error = why, desc.error_bytes = sizeof why;
    if (a->o.device && !(desc.device = choose_device(a))) return 1;
    return pvt_ctx_create(&desc, &a->ctx) == PVT_OK ? 0 : fail(a, "%s", why);
}

static int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
static double elapsed(const app *a) { return meter_now() - a->started; }
static int64_t peak_bytes(const app *a) { return pvt_ctx_get_info(a->ctx).bytes_peak; }

/* Prints what was collected, when --json was asked for. */
static int put_result(app *a)
{
    if (!a->o.json) return 0;
    if (a->json.failed) return fail(a, "out of memory for the result");
    fwrite(a->json.data, 1, (size_t)a->json.size, stdout);
    fputc('\n', stdout);
    return 0;
}

/* ---- what several verbs need ---- */

/* The blocks of an unfinished quantize in a directory, counted; remove: and removed, false when that fails. */
static bool quantize_files(const char *dir, bool remove_them, int *count)
{
    DIR *d = opendir(dir);
    struct dirent *entry;
    bool good = true;
    *count = 0;
    if (!d) return errno == ENOENT || errno == ENOTDIR;
    while ((entry = readdir(d))) {
        char path[4096];
        size_t n = strlen(entry->d_name), end = strlen(".safetensors");
        if (strncmp(entry->d_name, "quantize-", 9) != 0 || n < 9 + end ||
            strcmp(entry->d_name + n - end, ".safetensors") != 0)
            continue;
        ++*count;
        if (!remove_them) continue;
        if (snprintf(path, sizeof path, "%s/%s", dir, entry->d_name) >= (int)sizeof path || remove(path) != 0) good = false;
    }
    closedir(d);
    return good;
}

static bool holds(const char *dir, const char *name)
{
    char path[4096];
    return snprintf(path, sizeof path, "%s/%s", dir, name) < (int)sizeof path && access(path, F_OK) == 0;
}

/* A directory that a stopped run left: what lies there, and what to do. */
static int fail_unfinished(app *a, const char *path)
{
    int blocks = 0;
    if (holds(path, "config.json")) return 0; /* the library's sentence says more */
    quantize_files(path, false, &blocks);
    if (blocks > 0)
        return fail(a, "%s holds no model yet, but %d block%s of an unfinished quantize; the same quantize command with "
                    "--resume finishes it", path, blocks, blocks == 1 ? "" : "s");
    if (holds(path, "checkpoint.safetensors"))
        return fail(a, "%s holds no model yet, but the checkpoint of an unfinished tune; the same tune command with "
                    "--resume finishes it", path);
    if (holds(path, "model.safetensors"))
        return fail(a, "%s holds weights and no config.json: a save that was not finished, or a file that is missing", path);
    return 0;
}

static int load_model(app *a, int slot, const char *path)
{
    pvt_load_desc desc;
    char what[160];
    memset(&desc, 0, sizeof desc);
    desc.tokenizer = slot == 0 ? a->o.tokenizer : NULL;
    snprintf(what, sizeof what, "loading %s", path);
    meter_doing(&a->meter, what);
    pvt_result result = pvt_model_load(a->ctx, path, &desc, &a->models[slot]);
    if (result != PVT_OK) DO(fail_unfinished(a, path));
    TRY(a, result);
    meter_clear(&a->meter);
    return 0;
}

/* All that a stream still holds, in zero-terminated memory, or NULL with errno set. */
static char *read_stream(FILE *f, int64_t *length)
{
    char *text = NULL;
    int64_t n = 0, capacity = 0;
    size_t got = 1;
    while (got > 0) {
        if (capacity - n < 65536) {
            char *bigger = (char *)realloc(text, (size_t)(capacity = 2 * capacity + 131072));
            if (!bigger) break;
            text = bigger;
        }
        got = fread(text + n, 1, (size_t)(capacity - n - 1), f);
        n += (int64_t)got;
        text[n] = 0;
    }
    if (ferror(f) || got > 0) free(text), text = NULL;
    *length = n;
    return text;
}

/* A whole file, "-": standard input; or NULL with errno set. */
static char *read_text(const char *path, int64_t *length)
{
    bool standard = strcmp(path, "-") == 0;
    FILE *f = standard ? stdin : fopen(path, "rb");
    char *text = f ? read_stream(f, length) : NULL;
    if (f && !standard) fclose(f);
    return text;
}

/* Every byte of a text as it is: with --verbatim. */
static int load_verbatim(app *a, int slot, const char *text, int64_t bytes, const pvt_tokenizer *tokenizer)
{
    int32_t *ids;
    int64_t n;
    TRY(a, pvt_tokenizer_encode(tokenizer, text, bytes, PVT_ENCODE_BOS, &ids, &n));
    pvt_result result = pvt_corpus_from_ids(a->ctx, ids, n, &a->corpora[slot]);
    pvt_ids_free(a->ctx, ids);
    TRY(a, result);
    return 0;
}

static int load_text(app *a, int slot, const char *path, const pvt_model *model)
{
    const pvt_tokenizer *tokenizer = pvt_model_tokenizer(model);
    char what[160];
    int64_t bytes;
    if (!tokenizer) return fail(a, "%s has no tokenizer; give one with --tokenizer FILE", a->o.model);
    snprintf(what, sizeof what, "reading %s", strcmp(path, "-") == 0 ? "standard input" : path);
    meter_doing(&a->meter, what);
    if (strcmp(path, "-") != 0 && !a->o.verbatim) {
        TRY(a, pvt_corpus_load(a->ctx, path, tokenizer, &a->corpora[slot]));
    } else {
        char *text = (char *)(a->buffers[TEXT_BUFFER] = read_text(path, &bytes));
        if (!text) return fail(a, "%s: %s", path, strerror(errno));
        if (a->o.verbatim)
            DO(load_verbatim(a, slot, text, bytes, tokenizer));
        else
            TRY(a, pvt_corpus_from_text(a->ctx, text, bytes, tokenizer, &a->corpora[slot]));
        free(text), a->buffers[TEXT_BUFFER] = NULL;
    }
    meter_doing(&a->meter, "preparing"); /* until the first weight, window or step is counted */
    return 0;
}

/* That a result can go there is found out before the work; what was not there is not left there. */
static int check_writable(app *a, const char *path)
{
    struct stat st;
    bool there = path && stat(path, &st) == 0;
    if (!path || (there && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))) return 0; /* a pipe or device is not opened twice */
    FILE *f = fopen(path, "ab");
    if (!f) return fail(a, "%s could not be written: %s", path, strerror(errno));
    fclose(f);
    if (!there) remove(path);
    return 0;
}

/* Refuses before the work what pvt_model_save would refuse after it. desc: of quantize, else NULL. */
static int check_savable(app *a, const pvt_quantize_desc *desc)
{
    int64_t n = pvt_model_tensors(a->models[0]);
    bool *skip = (bool *)calloc((size_t)n, sizeof *skip);
    if (!skip) return fail(a, "out of memory for %lld tensors", (long long)n);
    for (int64_t i = 0; i < n && desc; i++) skip[i] = pvt_quantize_wants(a->models[0], desc, i);
    pvt_result result = pvt_model_savable(a->models[0], skip);
    free(skip);
    if (result != PVT_OK) return fail(a, "%s: a result could not be saved: %s", a->o.model, pvt_ctx_error(a->ctx));
    return 0;
}

static bool same_file(const char *x, const char *y)
{
    struct stat sx, sy;
    return stat(x, &sx) == 0 && stat(y, &sy) == 0 && sx.st_dev == sy.st_dev && sx.st_ino == sy.st_ino;
}

/* What a verb writes must be none of what it reads, which would be lost; and standard input can be read once. */
static int check_paths(app *a)
{
    const options *o = &a->o;
    const char *const outputs[][2] = {{o->output, "-o"}, {o->log, "--log"}, {o->svg, "--svg"}, {o->save, "--save"}};
    const char *inputs[16 + 2 * OPTION_LIST_MOST] = {o->model, o->teacher, o->beside, o->tokenizer, o->data, o->calib,
                                                     o->eval, o->ppl, o->prompts, o->text, o->ids, o->inputs,
                                                     o->against, o->plan, o->file};
    int n = 15, streams = 0;
    for (int i = 0; i < o->tasks.n; i++) { /* [NAME=]FILE */
        const char *equals = strchr(o->tasks.at[i], '=');
        inputs[n++] = o->tasks.at[i], inputs[n++] = equals ? equals + 1 : NULL;
    }
    for (int i = 0; i < n; i++) {
        streams += inputs[i] && strcmp(inputs[i], "-") == 0;
        for (int j = 0; j < 4; j++) {
            struct stat st;
            if (!inputs[i] || !outputs[j][0] || !same_file(inputs[i], outputs[j][0])) continue;
            if (stat(inputs[i], &st) != 0 || (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))) continue; /* /dev/null */
            return fail(a, "%s is an input; give another place to %s", outputs[j][0], outputs[j][1]);
        }
    }
    if (streams <= 1) return 0;
    fail(a, "- is standard input, which can be read once; give files for the other texts");
    return 2;
}

/* The directory for a result, made before the work begins, not after hours of it. A directory that
   this call made is recorded, so that a failure can leave nothing behind. */
static int prepare_output(app *a, bool *made)
{
    const char *dir = a->o.output;
    struct stat st;
    if (made) *made = false;
    if (mkdir(dir, 0777) == 0) {
        if (made) *made = true;
        return 0;
    }
    if (errno != EEXIST) return fail(a, "the directory %s could not be made: %s", dir, strerror(errno));
    if (stat(dir, &st) == 0 && !S_ISDIR(st.st_mode)) return fail(a, "%s is a file; -o names a directory", dir);
    if (pvt_model_exists(a->ctx, dir) && !a->o.overwrite)
        return fail(a, "%s already holds a model; give another -o, or --overwrite to replace it", dir);
    if (access(dir, W_OK | X_OK) != 0) return fail(a, "%s cannot be written to: %s", dir, strerror(errno));
    return 0;
}

/* How many groups of the quantized weights differ in their codes. */
static void count_changed(const pvt_model *x, const pvt_model *y, int64_t *groups, int64_t *changed)
{
    int64_t n = pvt_model_tensors(x);
    *groups = *changed = 0;
    for (int64_t i = 0; i < n; i++) {
        const pvt_weight *p = pvt_model_tensor(x, i).weight, *q = pvt_model_tensor(y, i).weight;
        pvt_array a[PVT_MAX_ARRAYS], b[PVT_MAX_ARRAYS];
        if (!p || !q) continue;
        pvt_weight_arrays(p, a), pvt_weight_arrays(q, b);
        if (a[0].role != PVT_ARRAY_CODE || b[0].role != PVT_ARRAY_CODE || a[0].bytes != b[0].bytes) continue;
        int64_t bytes = p->format.codebooks * (p->format.bits > 8 ? 2 : 1);
        int64_t count = a[0].bytes / bytes;
        *groups += count;
        for (int64_t g = 0; g < count; g++)
            *changed += memcmp((const char *)a[0].data + g * bytes, (const char *)b[0].data + g * bytes, (size_t)bytes) != 0;
    }
}

static const char *human_bytes(double bytes, char out[32])
{
    const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int u = 0;
    while (bytes >= 1024 && u < 4) bytes /= 1024, u++;
    snprintf(out, 32, "%.3g %s", bytes, units[u]);
    return out;
}

/* ---- the model card ---- */

/* The last part of a path, without the slashes behind it: what of it is nobody's business stays out of a card. */
static void put_base_name(buffer *t, const char *path)
{
    size_t end = strlen(path), start;
    while (end > 1 && path[end - 1] == '/') end--;
    for (start = end; start > 0 && path[start - 1] != '/';) start--;
    buffer_put(t, path + start, (int64_t)(end - start));
}

/* One argument of the command as a shell would take it, paths cut to base names ("--log=x/y" too). */
static void put_argument(buffer *t, const char *argument)
{
    const char *value = argument[0] == '-' ? strchr(argument, '=') : NULL;
    int64_t at = t->size + 1, i;
    buffer_put(t, " ", 1);
    if (value) buffer_put(t, argument, ++value - argument);
    put_base_name(t, value ? value : argument);
    for (i = at; i < t->size; i++)
        if ((uint8_t)t->data[i] < 32 || t->data[i] == 127 || t->data[i] == '\'') t->data[i] = '_';
    for (i = at; i < t->size && (isalnum((uint8_t)t->data[i]) || strchr("-_.,:=+@%/", t->data[i])); i++) {}
    if (i == t->size && i > at) return;
    buffer_put(t, "''", 2); /* room for two quotes */
    if (t->failed) return;
    memmove(t->data + at + 1, t->data + at, (size_t)(t->size - 2 - at));
    t->data[at] = t->data[t->size - 1] = '\'';
}

/* Gives a save what only the program knows for the model card: what the model was made from, a sentence on how,
   and the command. */
static JSON_PRINTF(4, 5) void card_text(app *a, pvt_save_desc *save, const char *made_from, const char *format, ...)
{
    buffer *t = &a->card;
    int64_t base = 0;
    va_list args;
    char recipe[1024];
    va_start(args, format);
    vsnprintf(recipe, sizeof recipe, format, args);
    va_end(args);
    save->no_card = a->o.no_card;
    t->size = 0;
    buffer_printf(t, "%s\n\n    pvtune", recipe);
    for (char **argument = a->arguments; *argument; argument++) put_argument(t, *argument);
    buffer_put(t, "\n", 2); /* with its zero: the base name stands behind it */
    base = t->size;
    put_base_name(t, made_from);
    if (t->failed) return; /* then the card has less to say */
    save->card = t->data, save->base_model = t->data + base;
}

/* What a result takes, as the file that was written holds it: the same figures that info finds there. */
static void put_bits(app *a, const pvt_save_desc *save, pvt_bits *bits)
{
    struct stat st;
    buffer path = {NULL, 0, 0, false};
    *bits = pvt_model_bits(a->models[0], save);
    buffer_printf(&path, "%s/model.safetensors", a->o.output);
    put_number(&a->json, "bits_per_weight", bits->linears);
    put_number(&a->json, "bits_per_weight_packed", bits->packed_linears);
    put_number(&a->json, "bits_per_weight_all", bits->all);
    if (!path.failed && stat(path.data, &st) == 0)
        put_number(&a->json, "file_bits_per_weight", 8.0 * (double)st.st_size / (double)bits->params);
    buffer_free(&path);
}

/* "2.171 bits", and what its codes would take alone where the file gives them whole bytes. */
static const char *bits_phrase(const pvt_bits *bits, char out[64])
{
    if (bits->packed_linears < bits->linears)
        snprintf(out, 64, "%.3f bits (%.3f with its codes packed)", bits->linears, bits->packed_linears);
    else
        snprintf(out, 64, "%.3f bits", bits->linears);
    return out;
}

/* ---- info ---- */

static pvt_optimizer_rule optimizer_rule(const char *name)
{
    if (!name) return PVT_OPTIMIZER_DEFAULT;
    return strcmp(name, "lamb") == 0 ? PVT_OPTIMIZER_LAMB : PVT_OPTIMIZER_ADAM;
}

/* Which of the choices, separated by |, this is: options are checked when they are parsed. */
static int choice_index(const char *choice, const char *choices)
{
    size_t n = strlen(choice);
    for (int i = 0;; i++) {
        if (strncmp(choices, choice, n) == 0 && (choices[n] == '|' || choices[n] == 0)) return i;
        choices = strchr(choices, '|');
        if (!choices) return 0;
        choices++;
    }
}

static void set_surrogate(const options *o, pvt_pv_desc *pv)
{
    pv->surrogate = (pvt_surrogate)choice_index(o->surrogate, SURROGATE_NAMES);
    pv->surrogate_temperature = o->surrogate_temperature;
    pv->clamp_sharpness = o->clamp_sharpness == NOT_GIVEN ? 0 : o->clamp_sharpness == 0 ? -1 : o->clamp_sharpness;
}

static pvt_tune_desc tune_desc(const options *o)
{
    pvt_tune_desc d;
    memset(&d, 0, sizeof d);
    pvt_strategy_parse(NULL, o->strategy, &d.pv.strategy); /* a choice: checked when it was parsed */
    d.pv.values.rule = optimizer_rule(o->optimizer), d.pv.values.lr = o->lr;
    d.pv.params.rule = optimizer_rule(o->param_optimizer), d.pv.params.lr = o->param_lr;
    d.pv.codes.rule = optimizer_rule(o->code_optimizer), d.pv.codes.lr = o->code_lr;
    d.pv.cap = o->cap, d.pv.trust = o->trust, d.pv.delta = o->delta, d.pv.beam = (int)o->beam;
    d.pv.temperature = o->temperature, d.pv.rounding = o->rounding, d.pv.force_update = o->force, d.pv.freeze_values = o->freeze_values;
    d.pv.selection = (pvt_selection)choice_index(o->select, "greedy|uniform|proportional");
    d.pv.key = (pvt_key)choice_index(o->key, "norm|moment|root-moment");
    d.pv.step = (pvt_v_step)choice_index(o->step, "preconditioned|plain");
    d.pv.smoothness = o->smoothness, d.pv.wind = o->wind, d.pv.restart = o->restart;
    d.pv.moments = strcmp(o->moments, "bf16") == 0 ? PVT_BF16 : PVT_DTYPE_NONE;
    if (o->train) pvt_train_parse(NULL, o->train, &d.pv.train); /* checked when it was parsed */
    set_surrogate(o, &d.pv);
    d.steps = o->steps, d.batch = o->batch, d.micro_batch = o->micro_batch, d.ctx = o->ctx;
    d.cross_entropy = strcmp(o->loss, "ce") == 0;
    d.schedule = o->schedule ? (pvt_schedule)choice_index(o->schedule, "cosine|constant|wsd") : PVT_SCHEDULE_COSINE;
    d.delta_from = o->delta_from;
    d.warmup = o->warmup == NOT_GIVEN ? 0 : o->warmup == 0 ? -1 : o->warmup;
    d.eval_every = o->no_eval ? -1 : o->eval_every, d.eval_windows = o->eval_windows, d.patience = o->patience;
    d.freeze_dense = o->freeze, d.no_teacher_cache = o->no_cache;
    d.memory_limit = o->memory << 20;
    return d;
}

static int64_t count_params(const pvt_model *model) { return pvt_model_bits(model, NULL).params; }

static void tensor_format(const pvt_tensor_info *t, char format[48])
{
    memset(format, 0, 48);
    if (t->dtype == PVT_DTYPE_NONE) pvt_format_text(&t->weight->format, format);
    else snprintf(format, 48, "%s", pvt_dtype_name(t->dtype));
}

static void info_tensor(app *a, const pvt_tensor_info *t)
{
    char format[48];
    double bits = 8.0 * (double)t->bytes / (double)t->n;
    tensor_format(t, format);
    put_open(&a->json, NULL, "{");
    put_text(&a->json, "name", t->name);
    put_open(&a->json, "shape", "[");
    put_int(&a->json, NULL, t->weight ? t->weight->O : t->n);
    if (t->weight) put_int(&a->json, NULL, t->weight->I);
    put_close(&a->json, "]");
    put_text(&a->json, "format", format);
    put_number(&a->json, "bits", bits), put_int(&a->json, "bytes", t->bytes);
    put_close(&a->json, "}");
    if (a->o.tensors && !a->o.json)
        printf("%-52s %7lld × %-7lld %-12s %6.3f bits\n", t->name, (long long)(t->weight ? t->weight->O : t->n),
               (long long)(t->weight ? t->weight->I : 1), format, bits);
}

/* A list of words is no choice that the table of options could check. */
static int check_train(app *a, const char *words)
{
    unsigned train;
    if (words) TRY(a, pvt_train_parse(a->ctx, words, &train));
    return 0;
}

static int info_plan(app *a)
{
    pvt_tune_desc desc = tune_desc(&a->o);
    DO(check_train(a, a->o.train));
    const pvt_model *teacher = a->models[0];
    char text[32];
    if (a->o.teacher) DO(load_model(a, 1, a->o.teacher));
    if (a->models[1]) teacher = a->models[1];
    if (a->o.data) DO(load_text(a, 0, a->o.data, a->models[0]));
    int64_t bytes = pvt_tuner_bytes(a->models[0], teacher, a->o.data ? &a->corpora[0] : NULL, &desc);
    if (bytes == INT64_MAX) return fail(a, "this plan is not possible: %s", pvt_ctx_error(a->ctx));
    put_int(&a->json, "plan_bytes", bytes);
    if (!a->o.json)
        printf("tuning     %s at the peak%s, beside the mapped model files\n", human_bytes((double)bytes, text),
               pvt_ctx_get_info(a->ctx).device ? ", nearly all of it on the device" : "");
    return 0;
}

/* The representations that occur, most weights first, each with what it takes: a line, or an object. */
static void info_formats(app *a)
{
    enum { MOST = 24 }; /* a plan has fewer; what is beyond stands in the table of tensors */
    struct { char format[48]; int64_t tensors, params, bytes; } rows[MOST];
    int n = 0;
    for (int64_t i = 0; i < pvt_model_tensors(a->models[0]); i++) {
        pvt_tensor_info t = pvt_model_tensor(a->models[0], i);
        char format[48];
        int k = 0;
        tensor_format(&t, format);
        while (k < n && strcmp(rows[k].format, format) != 0) k++;
        if (k == MOST) continue;
        if (k == n) memset(&rows[n++], 0, sizeof rows[0]);
        memcpy(rows[k].format, format, sizeof format);
        rows[k].tensors++, rows[k].params += t.n, rows[k].bytes += t.bytes;
    }
    put_open(&a->json, "formats", "[");
    for (int done = 0; done < n; done++) {
        int k = 0;
        for (int i = 1; i < n; i++)
            if (rows[i].params > rows[k].params) k = i;
        double bits = 8.0 * (double)rows[k].bytes / (double)rows[k].params;
        put_open(&a->json, NULL, "{");
        put_text(&a->json, "format", rows[k].format), put_int(&a->json, "tensors", rows[k].tensors);
        put_int(&a->json, "params", rows[k].params), put_number(&a->json, "bits", bits);
        put_close(&a->json, "}");
        if (!a->o.json)
            printf("%-10s %-16s %5lld tensor%s of %12lld numbers, %6.3f bits each\n", done ? "" : "formats",
                   rows[k].format, (long long)rows[k].tensors, rows[k].tensors == 1 ? " " : "s",
                   (long long)rows[k].params, bits);
        rows[k].params = -1;
    }
    put_close(&a->json, "]");
}

/* Context, window, and the rule that stretched it. */
static void info_context(app *a, const pvt_model_config *c)
{
    const char *rule = c->rope_factor != 0 ? pvt_rope_name(c->rope_rule) : c->rope_factors ? "factors" : "none";
    put_int(&a->json, "window", c->window), put_number(&a->json, "rope_theta", c->rope_theta);
    put_text(&a->json, "rope_scaling", rule);
    if (c->rope_factor != 0) {
        put_number(&a->json, "rope_factor", c->rope_factor);
        put_int(&a->json, "rope_original_ctx", c->rope_original_ctx);
    }
    if (a->o.json) return;
    printf("context    %lld tokens", (long long)c->ctx);
    if (c->window) printf(", of which attention sees the last %lld", (long long)c->window);
    if (c->rope_factor != 0)
        printf(", %lld before rope_scaling \"%s\" by %g", (long long)c->rope_original_ctx, rule,
               c->rope_factor);
    else if (c->rope_factors) printf(", rotary frequencies with factors of their own");
    printf("\n");
}

static int info_tokenizer(app *a)
{
    const pvt_tokenizer *tokenizer = pvt_model_tokenizer(a->models[0]);
    const char *chat = "none";
    if (tokenizer) TRY(a, pvt_chat_kind(tokenizer, &chat));
    put_text(&a->json, "tokenizer", tokenizer ? pvt_tokenizer_get_info(tokenizer).kind : "none");
    put_text(&a->json, "chat_template", chat);
    if (a->o.json) return 0;
    printf("tokenizer  %s", tokenizer ? pvt_tokenizer_get_info(tokenizer).kind : "none");
    if (tokenizer) printf(", %lld tokens", (long long)pvt_tokenizer_get_info(tokenizer).vocab);
    printf("\nchat       %s\n", chat);
    return 0;
}

static bool has_codes(const pvt_model *model)
{
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        const pvt_weight *w = pvt_model_tensor(model, i).weight;
        if (w && pvt_model_tensor(model, i).dtype == PVT_DTYPE_NONE) return true;
    }
    return false;
}

/* What tuning takes with the defaults, the model its own teacher: --plan tells it for other options. */
static void info_tuning(app *a)
{
    pvt_tune_desc desc;
    char text[32];
    memset(&desc, 0, sizeof desc);
    int64_t bytes = pvt_tuner_bytes(a->models[0], a->models[0], NULL, &desc);
    if (bytes == INT64_MAX || !has_codes(a->models[0])) return; /* nothing in it can be tuned */
    put_int(&a->json, "tune_bytes", bytes);
    if (!a->o.json)
        printf("tuning     %s at the peak with the defaults, beside the mapped model files; --plan tune for others\n",
               human_bytes((double)bytes, text));
}

static void info_device(app *a)
{
    char name[200], available[32], whole[32];
    int64_t left, bytes;
    if (!device_memory(a, name, sizeof name, &left, &bytes)) return;
    put_open(&a->json, "device", "{");
    put_text(&a->json, "device", pvt_ctx_get_info(a->ctx).device), put_text(&a->json, "name", name);
    put_int(&a->json, "bytes", bytes), put_int(&a->json, "free_bytes", left);
    put_close(&a->json, "}");
    if (!a->o.json)
        printf("device     %s, %s: %s of %s free\n", pvt_ctx_get_info(a->ctx).device, name,
               human_bytes((double)left, available), human_bytes((double)bytes, whole));
}

static int verb_info(app *a)
{
    buffer *t = &a->json;
    char phrase[64];
    DO(load_model(a, 0, a->o.model));
    pvt_bits bits = pvt_model_bits(a->models[0], NULL);
    double file_bits = 8.0 * (double)pvt_model_file_bytes(a->models[0]) / (double)bits.params;
    const pvt_model_config *c = pvt_model_get_config(a->models[0]);
    put_open(t, NULL, "{");
    put_text(t, "family", c->family);
    put_int(t, "layers", c->layers), put_int(t, "dim", c->dim), put_int(t, "heads", c->heads);
    put_int(t, "kv_heads", c->kv_heads), put_int(t, "head_dim", c->head_dim), put_int(t, "ff", c->ff);
    put_int(t, "vocab", c->vocab), put_int(t, "ctx", c->ctx), put_int(t, "params", bits.params);
    put_number(t, "bits_per_weight", bits.linears), put_number(t, "bits_per_weight_packed", bits.packed_linears);
    put_number(t, "bits_per_weight_all", bits.all), put_number(t, "file_bits_per_weight", file_bits);
    put_int(t, "file_bytes", pvt_model_file_bytes(a->models[0]));
    put_key(t, "tied"), buffer_printf(t, c->tied ? "true" : "false");
    if (!a->o.json) {
        printf("family     %s\n", c->family);
        printf("shape      %lld layers, dim %lld, ff %lld, %lld heads (%lld for keys) of %lld, vocabulary %lld%s\n",
               (long long)c->layers, (long long)c->dim, (long long)c->ff, (long long)c->heads, (long long)c->kv_heads,
               (long long)c->head_dim, (long long)c->vocab, c->tied ? ", tied head" : "");
    }
    info_context(a, c);
    DO(info_tokenizer(a));
    if (!a->o.json) {
        printf("parameters %lld\n", (long long)bits.params);
        printf("weights    %s in the blocks' linears, %.3f over all parameters, %.3f with the file's headers\n",
               bits_phrase(&bits, phrase), bits.all, file_bits);
    }
    info_formats(a);
    put_open(t, "tensors", "[");
    for (int64_t i = 0; i < pvt_model_tensors(a->models[0]); i++) {
        pvt_tensor_info tensor = pvt_model_tensor(a->models[0], i);
        info_tensor(a, &tensor);
    }
    put_close(t, "]");
    if (!a->o.plan) info_tuning(a);
    info_device(a);
    if (a->o.plan) DO(info_plan(a));
    put_close(t, "}");
    return put_result(a);
}

#include "allocate.h"

/* ---- quantize ---- */

typedef struct quantize_log {
    app *a;
    pvt_pv_desc finetune;
    double error;
    int n;
    bool resumed; /* blocks in the directory are this run's own */
} quantize_log;

static void on_layer(void *user, const char *name, const pvt_fit_stats *stats)
{
    quantize_log *log = (quantize_log *)user;
    buffer *t = &log->a->json;
    int old;
    /* nothing is refused any more: blocks of another run go, before the first of this one is written */
    if (log->n == 0 && !log->resumed) quantize_files(log->a->o.output, true, &old);
    put_open(t, NULL, "{");
    put_text(t, "name", name);
    put_number(t, "error", stats->error), put_int(t, "epochs", stats->epochs), put_number(t, "seconds", stats->seconds);
    put_close(t, "}");
    log->error += stats->error;
    log->n++;
}

/* Where to begin: the directory of a new run, blocks to go on from, or a reason to refuse. */
static int quantize_begin(app *a, bool *made, int *blocks)
{
    const char *dir = a->o.output;
    *made = false;
    quantize_files(dir, false, blocks);
    if (*blocks > 0 && a->o.resume) return 0; /* the model beside them, if any, was saved but not yet tidied up */
    if (*blocks > 0 && !a->o.overwrite)
        return fail(a, "%s holds %d block%s of an unfinished quantize; give --resume to go on, or --overwrite to begin again",
                    dir, *blocks, *blocks == 1 ? "" : "s");
    if (a->o.resume && !a->o.overwrite && pvt_model_exists(a->ctx, dir))
        return fail(a, "%s holds a finished model: nothing is left to resume; give another -o, or --overwrite to replace it", dir);
    DO(prepare_output(a, made));
    if (a->o.resume) note(a, "no unfinished blocks in %s: starting at the beginning", dir);
    return 0;
}

/* How formats with a code for each weight are fit. */
static void fit_method(const options *o, pvt_fit_desc *desc)
{
    static const char *const names[] = {"best", "rtn", "gptq"}; /* in the order of pvt_fit_method */
    for (int i = 0; i < 3; i++)
        if (o->fit && strcmp(o->fit, names[i]) == 0) desc->method = (pvt_fit_method)i;
    desc->act_order = o->act_order, desc->damp = o->damp;
}

/* Block fine-tuning, where one of its options says what the library does not do by itself. */
static void finetune(const options *o, pvt_pv_desc *pv, pvt_quantize_desc *desc)
{
    bool codes = strcmp(o->surrogate, "none") != 0 || o->finetune_code_lr > 0;
    set_surrogate(o, pv);
    if (!codes && !o->finetune_strategy && !o->finetune_train && o->surrogate_temperature == 0 && pv->clamp_sharpness == 0)
        return;
    pv->strategy = codes ? PVT_STRATEGY_STE : PVT_STRATEGY_CONTINUOUS;
    if (o->finetune_strategy) pvt_strategy_parse(NULL, o->finetune_strategy, &pv->strategy); /* a choice: checked */
    if (o->finetune_train) pvt_train_parse(NULL, o->finetune_train, &pv->train);                 /* checked, too */
    if (o->finetune_code_lr > 0) pv->codes.rule = PVT_OPTIMIZER_ADAM, pv->codes.lr = o->finetune_code_lr;
    desc->finetune = pv;
}

static pvt_quantize_desc quantize_desc(app *a, quantize_log *log)
{
    const options *o = &a->o;
    pvt_quantize_desc desc;
    memset(&desc, 0, sizeof desc);
    finetune(o, &log->finetune, &desc);
    desc.samples = o->samples, desc.ctx = o->ctx;
    desc.fit.epochs = (int)o->epochs, desc.fit.beam = (int)o->beam;
    desc.fit.tolerance = o->tolerance, desc.fit.target = o->target;
    fit_method(o, &desc.fit);
    desc.finetune_epochs = o->no_finetune ? -1 : (int)o->finetune_epochs, desc.finetune_lr = o->finetune_lr;
    desc.skip = o->skip, desc.embedding = o->embed || o->embed_format, desc.head = o->head;
    desc.checkpoint = o->output, desc.resume = o->resume;
    desc.fitted = on_layer, desc.fitted_user = log;
    return desc;
}

/* A failure, with what became of the work. */
static int quantize_failed(app *a, pvt_result result, bool made, const quantize_log *log)
{
    int blocks = 0;
    /* the same weight would fail again: of a run that began here nothing is worth keeping */
    quantize_files(a->o.output, result == PVT_ERR_NUMERIC && !a->o.resume, &blocks);
    if (made) rmdir(a->o.output); /* stays when something lies in it */
    if (result != PVT_ERR_CANCELLED) return fail_result(a, result);
    if (blocks == 0) return fail(a, "stopped on request before the first block was finished; nothing was written");
    return fail(a, "stopped on request after %d weights; %d finished block%s lie%s in %s: the same command with --resume goes "
                "on from there", log->n, blocks, blocks == 1 ? "" : "s", blocks == 1 ? "s" : "", a->o.output);
}

/* The embedding and the head have a format of their own. */
static bool has_embed_format(const pvt_quantize_desc *desc)
{
    static const pvt_format unset;
    return memcmp(&desc->embed_format, &unset, sizeof unset) != 0 &&
           memcmp(&desc->embed_format, &desc->format, sizeof unset) != 0;
}

/* Bits per weight of all that the run quantizes, if `format` were its format. */
static double quantize_bits(const pvt_model *model, const pvt_quantize_desc *desc, const pvt_format *format)
{
    double bits = 0, n = 0;
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        const pvt_format *f = !t.linear && has_embed_format(desc) ? &desc->embed_format : format;
        if (!pvt_quantize_wants(model, desc, i)) continue;
        bits += pvt_format_bits(f, t.weight->O, t.weight->I) * (double)t.n;
        n += (double)t.n;
    }
    return n > 0 ? bits / n : 0;
}

/* Codebooks are stored with every weight: on a small model they can weigh more than what they replace. */
static void quantize_note_bits(app *a, const pvt_quantize_desc *desc)
{
    const pvt_model *model = a->models[0];
    pvt_format smaller = desc->format;
    double bits = quantize_bits(model, desc, &smaller);
    char text[48], proposal[48];
    if (bits < 16) return;
    while (quantize_bits(model, desc, &smaller) > 8 && smaller.bits > 1) smaller.bits--;
    while (quantize_bits(model, desc, &smaller) > 8 && smaller.codebooks > 1) smaller.codebooks--;
    pvt_format_text(&desc->format, text), pvt_format_text(&smaller, proposal);
    if (smaller.kind != PVT_FORMAT_AQLM) {
        note(a, "note: %s takes %.1f bits per weight, more than fp16: its scales weigh more than the weights; take larger groups",
             text, bits);
        return;
    }
    note(a, "note: %s takes %.1f bits per weight on this model, more than fp16: its codebooks weigh more than the weights; try %s "
         "(%.1f)", text, bits, proposal, quantize_bits(model, desc, &smaller));
}

/* What the user must know before the work: what the file will not hold as the source does, and who will not load it. */
static void quantize_notes(app *a, const pvt_quantize_desc *desc)
{
    const pvt_model *model = a->models[0];
    const char *type = "";
    int64_t n = 0, from = 0, to = 0;
    for (int64_t i = 0; i < pvt_model_tensors(model); i++) {
        pvt_tensor_info t = pvt_model_tensor(model, i);
        if (!t.weight || t.dtype == PVT_DTYPE_NONE || pvt_quantize_wants(model, desc, i)) continue;
        if (t.dtype == PVT_F16 || t.dtype == PVT_BF16) continue;
        type = pvt_dtype_name(t.dtype), n++, from += t.bytes, to += 2 * t.n;
    }
    if (n)
        note(a, "note: %lld %s stay%s unquantized and become%s fp16 (%s in the source): %.1f MB there, %.1f MB in the result",
             (long long)n, n == 1 ? "matrix" : "matrices", n == 1 ? "s" : "", n == 1 ? "s" : "", type, (double)from / 1e6,
             (double)to / 1e6);
    if (desc->plan || desc->format.kind != PVT_FORMAT_AQLM || desc->format.rotation ||
        (desc->head && !pvt_model_get_config(model)->tied && has_embed_format(desc)))
        note(a, "note: transformers will refuse the result, a format of pvtune's own; pvtune loads it, and export --to dense "
                "writes dense weights that transformers loads");
    else if (desc->embedding || (desc->head && pvt_model_get_config(model)->tied))
        note(a, "note: transformers will refuse the result, because its AQLM has no embeddings; pvtune loads it, and "
                "export --to hf writes it with a dense embedding");
}

/* Samples times their length, with the library's defaults: what of the text was used. */
static int64_t calibration_tokens(const app *a)
{
    int64_t ctx = a->o.ctx ? a->o.ctx : smaller(512, pvt_model_get_config(a->models[0])->ctx);
    return ctx * (a->o.samples ? a->o.samples : smaller(64, a->corpora[0].n / ctx));
}

/* Whether --skip leaves something, and a word of it that no name contains. */
static int check_skip(app *a, const pvt_quantize_desc *desc)
{
    char words[800];
    int64_t n = pvt_model_tensors(a->models[0]), left = 0;
    if (!desc->skip) return 0;
    for (int64_t i = 0; i < n; i++) left += pvt_quantize_wants(a->models[0], desc, i);
    if (left == 0) return fail(a, "--skip %s leaves nothing to quantize", desc->skip);
    if (snprintf(words, sizeof words, "%s", desc->skip) >= (int)sizeof words) return 0;
    for (char *word = strtok(words, ","); word; word = strtok(NULL, ",")) {
        bool found = false;
        for (int64_t i = 0; i < n; i++) found = found || strstr(pvt_model_tensor(a->models[0], i).name, word);
        if (!found) note(a, "--skip %s: no tensor's name contains it", word);
    }
    return 0;
}

static int verb_quantize(app *a)
{
    const options *o = &a->o;
    pvt_save_desc save;
    quantize_log log;
    pvt_bits bits;
    bool made;
    int blocks;
    char format[48], own[48] = "", peak[32], phrase[64];
    memset(&save, 0, sizeof save), memset(&log, 0, sizeof log);
    log.a = a;
    if (o->no_finetune && (o->finetune_epochs || o->finetune_lr > 0 || o->finetune_strategy || o->finetune_code_lr > 0 ||
                           strcmp(o->finetune_train, "all") != 0 || strcmp(o->surrogate, "none") != 0))
        return fail(a, "--no-finetune contradicts the --finetune options"), 2;
    DO(check_train(a, o->finetune_train));
    pvt_quantize_desc desc = quantize_desc(a, &log);
    TRY(a, pvt_format_parse(a->ctx, o->format, &desc.format));
    if (o->embed_format) TRY(a, pvt_format_parse(a->ctx, o->embed_format, &desc.embed_format));
    if (o->plan) DO(plan_read(a, o->plan, &desc.plan, &desc.n_plan));
    DO(load_model(a, 0, o->model));
    DO(check_savable(a, &desc));
    DO(check_skip(a, &desc));
    DO(load_text(a, 0, o->calib, a->models[0]));
    DO(quantize_begin(a, &made, &blocks));
    log.resumed = blocks > 0 && o->resume;
    if (!o->plan) quantize_note_bits(a, &desc);
    quantize_notes(a, &desc);
    pvt_format_text(&desc.format, format);
    if (o->plan) snprintf(format, sizeof format, "plan");
    if (has_embed_format(&desc)) pvt_format_text(&desc.embed_format, own);
    const char *comma = *own ? ", embedding " : "";
    put_open(&a->json, NULL, "{");
    put_text(&a->json, "format", format);
    if (*own) put_text(&a->json, "embed_format", own);
    put_open(&a->json, "layers", "[");
    pvt_result result = pvt_quantize(a->models[0], &a->corpora[0], &desc);
    save.overwrite = o->overwrite || o->resume; /* a model beside the blocks is this run's own */
    card_text(a, &save, o->model, "%d weights quantized to `%s%s%s` with calibration; mean relative error of their outputs %.4f.",
              log.n, format, comma, own, log.n ? log.error / log.n : 0);
    if (result == PVT_OK) result = pvt_model_save(a->models[0], o->output, &save);
    if (result != PVT_OK) return quantize_failed(a, result, made, &log);
    if (!quantize_files(o->output, true, &blocks)) note(a, "the files %s/quantize-*.safetensors could not be removed", o->output);
    put_close(&a->json, "]");
    put_bits(a, &save, &bits);
    put_int(&a->json, "calibration_tokens", calibration_tokens(a));
    put_number(&a->json, "seconds", elapsed(a));
    put_int(&a->json, "peak_bytes", peak_bytes(a));
    put_close(&a->json, "}");
    meter_clear(&a->meter);
    if (!o->json)
        printf("%s%s%s: %d weights at %s, %.3f over all parameters; mean relative error %.4f, %.1f s, peak %s\n"
               "written to %s\n", format, comma, own, log.n, bits_phrase(&bits, phrase), bits.all,
               log.n ? log.error / log.n : 0, elapsed(a), human_bytes((double)peak_bytes(a), peak), o->output);
    return put_result(a);
}

/* ---- tune ---- */

typedef struct tune_state {
    char checkpoint[4096];
    double loss_first, loss_last;
    int64_t resumed_at, saved_at, tokens, searched, changed, steps;
    pvt_tune_desc desc;
    int64_t noted; /* the evaluation that was reported last, by its step */
    bool made; /* the directory is this run's own */
    bool kept; /* the checkpoint stood beside the model that came of it */
} tune_state;

/* Opens the log. On resume lines of steps after the checkpoint, and a line that was half written
   when the program died, are cut off: those steps are about to be done again. */
static int open_log(app *a, int64_t completed)
{
    int64_t length = 0, keep = 0;
    char *end;
    if (!a->o.log) return 0;
    if (completed == 0) {
        a->log = fopen(a->o.log, "wb");
    } else {
        char *text = read_text(a->o.log, &length);
        for (char *line = text; line && (end = strchr(line, '\n')); line = end + 1) {
            long long step;
            if (sscanf(line, "{\"step\":%lld,", &step) != 1 || step > completed) break;
            keep = end + 1 - text;
        }
        a->log = fopen(a->o.log, text ? "r+b" : "wb");
        free(text);
        if (a->log && (ftruncate(fileno(a->log), (off_t)keep) != 0 || fseek(a->log, 0, SEEK_END) != 0))
            return fail(a, "%s: %s", a->o.log, strerror(errno));
    }
    if (!a->log) return fail(a, "the log %s could not be opened: %s", a->o.log, strerror(errno));
    return 0;
}

static int log_step(app *a, const pvt_tune_stats *s, const pvt_tune_eval *eval)
{
    buffer line;
    if (!a->log) return 0;
    memset(&line, 0, sizeof line);
    put_open(&line, NULL, "{");
    put_int(&line, "step", s->step), put_int(&line, "tokens", s->tokens), put_number(&line, "loss", s->loss);
    put_number(&line, "lr_scale", s->lr_scale);
    put_int(&line, "groups_searched", s->groups_searched), put_int(&line, "groups_changed", s->groups_changed);
    put_number(&line, "seconds", s->seconds);
    if (eval->step == s->step) put_number(&line, "eval_loss", eval->loss), put_number(&line, "eval_ppl", eval->ppl);
    put_close(&line, "}");
    bool good = !line.failed && fwrite(line.data, 1, (size_t)line.size, a->log) == (size_t)line.size &&
                fputc('\n', a->log) != EOF && fflush(a->log) == 0;
    buffer_free(&line);
    return good ? 0 : fail(a, "the log %s could not be written: %s", a->o.log, strerror(errno));
}

/* A checkpoint to go on from. */
static int tune_resume(app *a, tune_state *s)
{
    pvt_result result = pvt_tuner_resume(a->tuner, s->checkpoint);
    if (result == PVT_ERR_MISMATCH || result == PVT_ERR_FORMAT)
        return fail(a, "%s; give what that run was given, or --overwrite in place of --resume to begin again", library_error(a));
    TRY(a, result);
    pvt_tuner_info info = pvt_tuner_get_info(a->tuner);
    s->resumed_at = s->saved_at = info.step;
    s->tokens = info.step * s->desc.batch * s->desc.ctx;
    s->kept = pvt_model_exists(a->ctx, a->o.output);
    s->noted = info.last.step;
    note(a, "resumed after step %lld of %lld", (long long)info.step, (long long)info.steps);
    if (info.resumed_steps < info.steps)
        note(a, "the run of %lld steps is extended to %lld; a falling learning rate follows the longer plan from here on",
             (long long)info.resumed_steps, (long long)info.steps);
    return 0;
}

/* Finds out where to begin: a new run, a checkpoint to go on from, or a reason to refuse. */
static int tune_begin(app *a, tune_state *s)
{
    s->noted = -1;
    if (snprintf(s->checkpoint, sizeof s->checkpoint, "%s/checkpoint.safetensors", a->o.output) >= (int)sizeof s->checkpoint)
        return fail(a, "%s: path too long", a->o.output);
    bool checkpoint = access(s->checkpoint, F_OK) == 0;
    if (checkpoint && a->o.resume) return tune_resume(a, s); /* a model beside it was saved but not yet tidied up */
    if (checkpoint && !a->o.overwrite)
        return fail(a, "%s holds the checkpoint of an unfinished run; give --resume to go on, or --overwrite to begin again",
                    a->o.output);
    if (a->o.resume && !a->o.overwrite && pvt_model_exists(a->ctx, a->o.output))
        return fail(a, "%s holds a finished model and no checkpoint to extend its run from (--keep-checkpoint keeps one); to tune "
                       "the model further: pvtune tune %s … -o ANOTHER", a->o.output, a->o.output);
    DO(prepare_output(a, &s->made));
    if (a->o.resume) note(a, "no checkpoint in %s: starting at the beginning", a->o.output);
    return 0;
}

static int tune_save(app *a, tune_state *s)
{
    TRY(a, pvt_tuner_save(a->tuner, s->checkpoint));
    s->saved_at = pvt_tuner_get_info(a->tuner).step;
    return 0;
}

/* Tells of an evaluation that has not been told yet. */
static void tune_note(app *a, tune_state *s, const pvt_tuner_info *info)
{
    if (info->last.step < 0 || info->last.step == s->noted) return;
    s->noted = info->last.step;
    if (info->last.step == 0)
        note(a, "before tuning: loss %.4f, perplexity %.4f on %lld held-out windows", info->last.loss, info->last.ppl,
             (long long)info->eval_windows);
    else
        note(a, "step %lld: loss %.4f, perplexity %.4f%s", (long long)info->last.step, info->last.loss, info->last.ppl,
             info->best.step == info->last.step ? ", the best so far" : "");
}

/* Steps until all are done. On Ctrl-C the checkpoint is written and the exit status is 1. */
static int tune_steps(app *a, tune_state *s)
{
    pvt_tuner_info info = pvt_tuner_get_info(a->tuner);
    while (!info.done) {
        pvt_tune_stats stats;
        int64_t before = info.step;
        pvt_result result = stop_asked ? PVT_ERR_CANCELLED : pvt_tuner_step(a->tuner, &stats);
        info = pvt_tuner_get_info(a->tuner);
        tune_note(a, s, &info);
        if (result != PVT_OK && result != PVT_ERR_CANCELLED) TRY(a, result);
        if (info.step > before) {
            if (s->steps++ == 0) s->loss_first = stats.loss;
            s->loss_last = stats.loss, s->tokens = stats.tokens;
            s->searched += stats.groups_searched, s->changed += stats.groups_changed;
            DO(log_step(a, &stats, &info.last));
        }
        if (result == PVT_ERR_CANCELLED) {
            if (info.step != s->saved_at && info.step > 0) DO(tune_save(a, s));
            return fail(a, "stopped on request after step %lld of %lld; the same command with --resume goes on from there",
                        (long long)info.step, (long long)info.steps);
        }
        if (a->o.save_every > 0 && info.step % a->o.save_every == 0 && info.step > s->saved_at && !info.done) DO(tune_save(a, s));
    }
    if (info.stopped)
        note(a, "ended after step %lld of %lld: the loss on the held-out windows has not fallen in %lld evaluations",
             (long long)info.step, (long long)info.steps, (long long)(a->o.patience ? a->o.patience : 5));
    if (a->o.keep && info.step != s->saved_at) DO(tune_save(a, s)); /* what a later run may extend */
    return 0;
}

static void put_eval(buffer *t, const char *key, const pvt_tune_eval *eval)
{
    if (eval->step < 0) return;
    put_open(t, key, "{");
    put_int(t, "step", eval->step), put_number(t, "loss", eval->loss), put_number(t, "ppl", eval->ppl);
    put_close(t, "}");
}

/* The last line names what was saved, by its figure on text that it was not tuned on. */
static void tune_print(app *a, const tune_state *s, const pvt_tuner_info *info, const pvt_tune_eval *saved, int64_t groups,
                       int64_t moved)
{
    char peak[32], losses[96] = "nothing was left to do";
    if (s->steps > 0)
        snprintf(losses, sizeof losses, s->resumed_at ? "%lld tokens, training loss %.4f → %.4f since step %lld"
                                                      : "%lld tokens, training loss %.4f → %.4f",
                 (long long)s->tokens, s->loss_first, s->loss_last, (long long)s->resumed_at + 1);
    printf("%s: %lld steps, %s, %.2f %% of the groups have new codes, %.1f s, peak %s\n",
           pvt_strategy_name(s->desc.pv.strategy), (long long)info->step, losses,
           groups ? 100.0 * (double)moved / (double)groups : 0.0, elapsed(a), human_bytes((double)peak_bytes(a), peak));
    if (info->eval_windows == 0)
        printf("written to %s: the state after the last step, not evaluated\n", a->o.output);
    else if (info->best.step == 0)
        printf("written to %s: the model as it was, perplexity %.4f: no evaluation after a step was better; try lower learning "
               "rates or more text\n", a->o.output, saved->ppl);
    else
        printf("written to %s: the state after step %lld, perplexity %.4f (before tuning %.4f), loss %.4f (%.4f) on %lld "
               "held-out windows of %lld tokens\n", a->o.output, (long long)info->best.step, saved->ppl, info->start.ppl,
               saved->loss, info->start.loss, (long long)info->eval_windows,
               (long long)s->desc.ctx);
}

static void tune_card(app *a, pvt_save_desc *save, const tune_state *s, const pvt_tuner_info *info, const pvt_tune_eval *saved)
{
    char measured[256] = "not evaluated";
    if (info->eval_windows > 0)
        snprintf(measured, sizeof measured, "perplexity %.4f, before tuning %.4f, on %lld windows of %lld tokens held out of the text",
                 saved->ppl, info->start.ppl, (long long)info->eval_windows, (long long)s->desc.ctx);
    card_text(a, save, a->o.teacher ? a->o.teacher : a->o.model, "Tuned by PV-Tuning, strategy `%s`: %lld steps, %lld tokens; %s.",
              pvt_strategy_name(s->desc.pv.strategy), (long long)info->step, (long long)s->tokens, measured);
}

/* The best state becomes the model. Stopped in the last evaluation there is a checkpoint to go on from; stopped when
   that state stands already, only its figure is not measured once more, and it is known. */
static int tune_end(app *a, const tune_state *s, const pvt_tuner_info *info, pvt_tune_eval *saved)
{
    pvt_result result = pvt_tuner_finish(a->tuner, saved);
    if (result != PVT_ERR_CANCELLED) TRY(a, result);
    if (result == PVT_OK) return 0;
    result = pvt_tuner_save(a->tuner, s->checkpoint);
    if (result == PVT_OK)
        return fail(a, "stopped on request after step %lld of %lld; the same command with --resume goes on from there",
                    (long long)info->step, (long long)info->steps);
    if (result != PVT_ERR_ARGUMENT) TRY(a, result); /* ARGUMENT: it has ended */
    *saved = pvt_tuner_get_info(a->tuner).best;
    return 0;
}

static int tune_finish(app *a, const tune_state *s)
{
    pvt_save_desc save;
    pvt_bits bits;
    pvt_tuner_info info = pvt_tuner_get_info(a->tuner);
    pvt_tune_eval saved;
    int64_t groups = 0, moved = 0;
    memset(&save, 0, sizeof save);
    save.overwrite = a->o.overwrite || a->o.resume; /* an extended run replaces its own model */
    DO(tune_end(a, s, &info, &saved));
    tune_card(a, &save, s, &info, &saved);
    if (pvt_model_save(a->models[0], a->o.output, &save) != PVT_OK)
        return s->saved_at > 0 && access(s->checkpoint, F_OK) == 0
                   ? fail(a, "%s; the checkpoint of step %lld stays: the same command with --resume goes on from it",
                          pvt_ctx_error(a->ctx), (long long)s->saved_at)
                   : fail(a, "%s; there is no checkpoint to go on from", pvt_ctx_error(a->ctx));
    bool keep = a->o.keep || (s->kept && s->steps == 0); /* nothing was left to do: what had been kept stays */
    if (!keep && unlink(s->checkpoint) != 0 && errno != ENOENT)
        note(a, "%s is no longer needed, but could not be removed: %s", s->checkpoint, strerror(errno));
    if (pvt_model_load(a->ctx, a->o.model, NULL, &a->models[2]) == PVT_OK)
        count_changed(a->models[0], a->models[2], &groups, &moved);
    put_open(&a->json, NULL, "{");
    put_text(&a->json, "strategy", pvt_strategy_name(s->desc.pv.strategy));
    put_int(&a->json, "steps", info.step), put_int(&a->json, "tokens", s->tokens);
    put_number(&a->json, "loss_first", s->steps ? s->loss_first : NAN);
    put_number(&a->json, "loss_last", s->steps ? s->loss_last : NAN);
    put_eval(&a->json, "eval_start", &info.start), put_eval(&a->json, "eval_saved", &saved);
    put_int(&a->json, "groups", groups), put_int(&a->json, "groups_changed", moved);
    put_int(&a->json, "changes", s->changed), put_int(&a->json, "searched", s->searched);
    put_int(&a->json, "resumed_at", s->resumed_at);
    put_bits(a, &save, &bits);
    put_number(&a->json, "seconds", elapsed(a)), put_int(&a->json, "peak_bytes", peak_bytes(a));
    put_close(&a->json, "}");
    meter_clear(&a->meter);
    if (!a->o.json) tune_print(a, s, &info, &saved, groups, moved);
    return put_result(a);
}

/* Refuses a plan that the machine's memory, or the device's, cannot hold, before it is tried. */
static int tune_fits(app *a, const pvt_tune_desc *desc)
{
    int64_t bytes = pvt_tuner_bytes(a->models[0], a->models[1], &a->corpora[0], desc);
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    char plan[32], machine[32], name[200];
    int64_t left, all;
    bool device = device_memory(a, name, sizeof name, &left, &all);
    if (device) memory = (double)all;
    if (bytes == INT64_MAX || memory <= 0 || (double)bytes <= memory) return 0; /* INT64_MAX: the tuner says why */
    return fail(a, "this plan takes %s of memory, the %s has %s: lower --micro-batch, --ctx or --memory, or tune on less text",
                human_bytes((double)bytes, plan), device ? "GPU" : "machine", human_bytes(memory, machine));
}

/* Whether anything in here is about the V step. */
static bool moves_codes(const pvt_pv_desc *pv)
{
    static const pvt_pv_desc nothing;
    pvt_pv_desc rest;
    memcpy(&rest, pv, sizeof rest);
    rest.strategy = nothing.strategy, rest.train = 0, rest.freeze_values = false;
    memset(&rest.values, 0, sizeof rest.values), memset(&rest.params, 0, sizeof rest.params);
    return memcmp(&rest, &nothing, sizeof rest) != 0;
}

/* Options that contradict each other, or that would count for nothing. */
static int tune_options(app *a, const pvt_pv_desc *pv)
{
    const options *o = &a->o;
    const char *why =
        o->no_eval && (o->eval || o->eval_every || o->eval_windows || o->patience)
            ? "--no-eval contradicts --eval, --eval-every, --eval-windows and --patience"
        : o->resume && o->overwrite ? "--resume goes on with what -o holds, --overwrite replaces it: give one of them"
        : pv->strategy == PVT_STRATEGY_CONTINUOUS && moves_codes(pv)
            ? "--strategy continuous changes no codes: what says which and how (--code-lr, --code-optimizer, --cap to "
              "--surrogate in the help) goes with other strategies"
        : o->teacher && o->loss && strcmp(o->loss, "ce") == 0 ? "--loss ce needs no --teacher"
                                                               : NULL;
    if (!why) return 0;
    fail(a, "%s", why);
    return 2;
}

static int verb_tune(app *a)
{
    const options *o = &a->o;
    pvt_tune_desc desc = tune_desc(o);
    tune_state s;
    memset(&s, 0, sizeof s);
    if (!o->teacher && !desc.cross_entropy) {
        fail(a, "--teacher MODEL is missing (or give --loss ce)");
        return 2;
    }
    DO(tune_options(a, &desc.pv));
    DO(check_train(a, o->train));
    DO(load_model(a, 0, o->model));
    DO(check_savable(a, NULL));
    if (!has_codes(a->models[0]))
        return fail(a, "%s has no codes to tune: it is not quantized; begin with pvtune quantize %s --calib TEXT -o DIR", o->model,
                    o->model);
    if (o->teacher && !desc.cross_entropy) DO(load_model(a, 1, o->teacher));
    DO(load_text(a, 0, o->data, a->models[0]));
    if (o->eval) DO(load_text(a, 1, o->eval, a->models[0]));
    if (o->eval && same_file(o->eval, o->data))
        note(a, "--eval is the text that is tuned on, so its figures are not of unseen text; without --eval a twentieth is kept back");
    desc.eval = o->eval ? &a->corpora[1] : NULL;
    s.desc = pvt_tune_resolve(a->models[0], &desc);
    DO(tune_fits(a, &desc));
    TRY(a, pvt_tuner_create(a->models[0], a->models[1], &a->corpora[0], &desc, &a->tuner));
    int status = tune_begin(a, &s);
    if (status == 0) status = open_log(a, s.resumed_at);
    if (status == 0) status = tune_steps(a, &s);
    if (status == 0) status = tune_finish(a, &s);
    if (status != 0 && s.made) rmdir(o->output); /* unless a checkpoint lies in it */
    return status;
}

/* ---- eval ---- */

/* "N" or "A:B". */
static int parse_windows(app *a, pvt_ppl_desc *desc)
{
    const char *text = a->o.windows;
    char *end;
    long long first = 0;
    if (!text) return 0;
    long long last = strtoll(text, &end, 10);
    if (*end == ':') first = last, last = strtoll(end + 1, &end, 10);
    if (*end || end == text || first < 0 || last <= first || last > 1000000000) {
        fail(a, "--windows must be N, the first N windows, or A:B, the windows A to B-1; not '%s'", text);
        return 2;
    }
    desc->first = first, desc->last = last;
    return 0;
}

/* The windows of another log, as many as these. */
static int read_windows(app *a, const pvt_ppl *ppl, int64_t first, double *nll)
{
    int64_t length, n = 0;
    char *text = read_text(a->o.against, &length), *next;
    if (!text) return fail(a, "%s: %s", a->o.against, strerror(errno));
    for (int64_t i = 0; i < ppl->windows; i++) nll[i] = NAN;
    for (char *line = text; line && *line; line = next ? next + 1 : NULL) {
        long long window, tokens;
        double other;
        next = strchr(line, '\n');
        if (sscanf(line, "{\"window\":%lld,\"tokens\":%lld,\"nll_sum\":%lf", &window, &tokens, &other) != 3) continue;
        if (window < first || window >= first + ppl->windows) continue;
        if (tokens != pvt_ppl_window_tokens(ppl, window)) continue;
        n += nll[window - first] != nll[window - first]; /* each once, however often it stands there */
        nll[window - first] = other;
    }
    free(text);
    if (n == ppl->windows) return 0;
    return fail(a, "%s holds %lld of these %lld windows of %lld tokens; make it with eval --log on the same text",
                a->o.against, (long long)n, (long long)ppl->windows, (long long)ppl->ctx);
}

/* That the files of tasks are there, and --against is such a log, is found out before the work. */
static int check_eval_files(app *a)
{
    int64_t length;
    for (int i = 0; i < a->o.tasks.n; i++) {
        const char *task = a->o.tasks.at[i], *equals = strchr(task, '=');
        if (access(task, R_OK) == 0 || (equals && access(equals + 1, R_OK) == 0)) continue;
        return fail(a, "%s: %s", equals ? equals + 1 : task, strerror(errno));
    }
    struct stat st;
    if (!a->o.against || (stat(a->o.against, &st) == 0 && !S_ISREG(st.st_mode))) return 0; /* a pipe is read once */
    char *text = read_text(a->o.against, &length);
    if (!text) return fail(a, "%s: %s", a->o.against, strerror(errno));
    bool windows = strstr(text, "{\"window\":") != NULL;
    free(text);
    return windows ? 0 : fail(a, "%s holds no windows; make it with eval --ppl --log on the same text", a->o.against);
}

/* Mean difference per token to another model's windows, and its standard error over windows. */
static double paired_difference(const pvt_ppl *ppl, const double *nll, const double *other, int64_t first, double *error)
{
    double sum = 0, squares = 0, tokens = (double)ppl->tokens, windows = (double)ppl->windows;
    for (int64_t i = 0; i < ppl->windows; i++) sum += nll[i] - other[i];
    for (int64_t i = 0; i < ppl->windows; i++) {
        double off = nll[i] - other[i] - sum / tokens * (double)pvt_ppl_window_tokens(ppl, first + i);
        squares += off * off;
    }
    *error = ppl->windows > 1 ? sqrt(squares * windows / (windows - 1)) / tokens : NAN;
    return sum / tokens;
}

static void log_windows(buffer *t, const pvt_ppl *ppl, const double *nll, int64_t first)
{
    for (int64_t i = 0; i < ppl->windows; i++) {
        put_open(t, NULL, "{");
        put_int(t, "window", first + i), put_int(t, "tokens", pvt_ppl_window_tokens(ppl, first + i));
        put_number(t, "nll_sum", nll[i]);
        buffer_put(t, "}\n", 2);
    }
}

/* " ± 0.01234", or nothing where one window says nothing of how far others lie. */
static const char *plus_minus(double error, char out[32])
{
    out[0] = 0;
    if (error == error) snprintf(out, 32, " ± %.5f", error);
    return out;
}

#include "tasks.h"

/* Rows as the datasets library has them, a line each with its end, blank ones empty, and "\n\n" between two. */
static int join_lines(app *a, int slot, const char *path)
{
    int64_t bytes = 0;
    const pvt_tokenizer *tokenizer = pvt_model_tokenizer(a->models[0]);
    buffer joined = {NULL, 0, 0, false};
    char *text = (char *)(a->buffers[TEXT_BUFFER] = read_text(path, &bytes));
    if (!tokenizer) return fail(a, "%s has no tokenizer; give one with --tokenizer FILE", a->o.model);
    if (!text) return fail(a, "%s: %s", path, strerror(errno));
    for (const char *line = text, *end = text + bytes; line < end;) {
        const char *next = (const char *)memchr(line, '\n', (size_t)(end - line)), *s = line;
        next = next ? next + 1 : end;
        while (s < next && strchr(" \t\r\n\v\f", *s) && *s) s++;
        if (line > text) buffer_put(&joined, "\n\n", 2);
        if (s < next) buffer_put(&joined, line, next - line);
        line = next;
    }
    int status = joined.failed ? fail(a, "out of memory for the text")
                               : load_verbatim(a, slot, joined.data ? joined.data : "", joined.size, tokenizer);
    buffer_free(&joined);
    free(text), a->buffers[TEXT_BUFFER] = NULL;
    return status;
}

static int eval_perplexity(app *a, int model, pvt_ppl_desc *desc, double *nll, pvt_ppl *ppl)
{
    desc->window_nll = nll;
    pvt_result result = pvt_perplexity(a->models[model], &a->corpora[0], desc, ppl);
    if (result == PVT_ERR_CANCELLED) return fail(a, "stopped on request; no figure, for it would be of fewer windows than asked");
    TRY(a, result);
    return 0;
}

/* Is a window no longer than the model's context? */
static int check_window(app *a, int model, int64_t ctx)
{
    int64_t most = pvt_model_get_config(a->models[model])->ctx;
    if (ctx <= most) return 0;
    return fail(a, "%s: windows of %lld tokens are longer than its context of %lld: give --ctx",
                model ? a->o.beside : a->o.model, (long long)ctx, (long long)most);
}

static void print_ppl(buffer *t, const char *of, const pvt_ppl *ppl)
{
    char error[32];
    buffer_printf(t, "%sperplexity %.4f (nll %.5f%s) over %lld tokens in %lld window%s of %lld, %.1f s\n", of, ppl->ppl, ppl->nll,
           plus_minus(ppl->nll_stderr, error), (long long)ppl->tokens, (long long)ppl->windows, ppl->windows == 1 ? "" : "s",
           (long long)ppl->ctx, ppl->seconds);
}

static void put_ppl(buffer *t, const pvt_ppl *ppl)
{
    put_number(t, "ppl", ppl->ppl), put_number(t, "nll", ppl->nll);
    put_number(t, "nll_stderr", ppl->nll_stderr), put_number(t, "nll_sum", ppl->nll_sum);
    put_int(t, "tokens", ppl->tokens), put_int(t, "windows", ppl->windows), put_int(t, "ctx", ppl->ctx);
    put_int(t, "stride", ppl->stride);
}

/* Perplexity, of a second model too where one is asked for. */
static int eval_text(app *a, buffer *log)
{
    pvt_ppl_desc desc;
    pvt_ppl ppl, beside;
    const char *other_name = a->o.beside ? a->o.beside : a->o.against;
    double difference = 0, error = 0;
    memset(&desc, 0, sizeof desc), memset(&beside, 0, sizeof beside);
    desc.ctx = a->o.ctx, desc.stride = a->o.stride;
    DO(parse_windows(a, &desc));
    if (a->o.join) DO(join_lines(a, 0, a->o.ppl));
    else DO(load_text(a, 0, a->o.ppl, a->models[0]));
    if (desc.ctx == 0) desc.ctx = smaller(512, pvt_model_get_config(a->models[0])->ctx);
    int64_t windows = desc.last ? desc.last - desc.first : a->corpora[0].n / (desc.stride ? desc.stride : desc.ctx);
    double *nll = (double *)(a->buffers[0] = calloc(windows > 0 ? 2 * (size_t)windows : 1, sizeof *nll));
    double *other = nll + (windows > 0 ? windows : 0);
    if (!nll) return fail(a, "out of memory for %lld windows", (long long)windows);
    for (int i = 0; i < 2; i++)
        if (a->models[i]) DO(check_window(a, i, desc.ctx));
    DO(eval_perplexity(a, 0, &desc, nll, &ppl));
    log_windows(log, &ppl, nll, desc.first);
    put_ppl(&a->json, &ppl);
    if (a->o.beside) DO(eval_perplexity(a, 1, &desc, other, &beside));
    else if (a->o.against) DO(read_windows(a, &ppl, desc.first, other));
    if (a->o.beside) {
        put_open(&a->json, "beside", "{");
        put_ppl(&a->json, &beside);
        put_close(&a->json, "}");
    }
    if (other_name) {
        difference = paired_difference(&ppl, nll, other, desc.first, &error);
        put_number(&a->json, "nll_difference", difference), put_number(&a->json, "nll_difference_stderr", error);
    }
    meter_clear(&a->meter);
    if (a->o.json) return 0;
    print_ppl(&a->table_lines, "", &ppl);
    if (a->o.beside) print_ppl(&a->table_lines, "beside it ", &beside);
    char of_difference[32];
    if (other_name)
        buffer_printf(&a->table_lines, "nll minus that of %s: %+.5f%s\n", other_name, difference,
                      plus_minus(error, of_difference));
    return 0;
}

static int verb_eval(app *a)
{
    buffer log = {NULL, 0, 0, false};
    pvt_ppl_desc unused;
    pvt_result result = PVT_OK;
    if (!a->o.ppl && a->o.tasks.n == 0) {
        fail(a, "give --ppl TEXT, or --task FILE, or both");
        return 2;
    }
    if (!a->o.ppl && (a->o.ctx || a->o.windows || a->o.stride || a->o.join || a->o.against)) {
        fail(a, "--ctx, --windows, --stride, --join and --against go with --ppl TEXT only");
        return 2;
    }
    if (a->o.limit && a->o.tasks.n == 0) {
        fail(a, "--limit goes with --task FILE only");
        return 2;
    }
    if (a->o.beside && a->o.against) {
        fail(a, "give either --beside MODEL or --against F.jsonl");
        return 2;
    }
    memset(&unused, 0, sizeof unused);
    DO(parse_windows(a, &unused)); /* before the model is loaded */
    DO(check_writable(a, a->o.log));
    DO(check_eval_files(a));
    DO(load_model(a, 0, a->o.model));
    if (a->o.beside) DO(load_model(a, 1, a->o.beside));
    if (a->o.beside && pvt_model_get_config(a->models[0])->vocab != pvt_model_get_config(a->models[1])->vocab)
        return fail(a, "%s has a vocabulary of %lld, %s one of %lld: they cannot be measured on the same tokens", a->o.model,
                    (long long)pvt_model_get_config(a->models[0])->vocab, a->o.beside,
                    (long long)pvt_model_get_config(a->models[1])->vocab);
    put_open(&a->json, NULL, "{");
    int status = a->o.ppl ? eval_text(a, &log) : 0;
    if (status == 0 && a->o.tasks.n > 0) status = eval_tasks(a, &log);
    put_number(&a->json, "bits_per_weight", pvt_model_bits(a->models[0], NULL).linears);
    put_number(&a->json, "seconds", elapsed(a));
    put_close(&a->json, "}");
    if (status == 0 && a->o.log) result = log.failed ? PVT_ERR_MEMORY : pvt_file_write(a->ctx, a->o.log, log.data, log.size);
    buffer_free(&log);
    if (status != 0) return status;
    TRY(a, result);
    if (a->table_lines.failed) return fail(a, "out of memory for the table");
    fwrite(a->table_lines.data ? a->table_lines.data : "", 1, (size_t)a->table_lines.size, stdout); /* what the log has is safe */
    return put_result(a);
}

/* ---- generate, tokenize ---- */

static void put_ids(buffer *t, const char *key, const int32_t *ids, int64_t n)
{
    put_open(t, key, "[");
    for (int64_t i = 0; i < n; i++) put_int(t, NULL, ids[i]);
    put_close(t, "]");
}

static bool wants_q8(const app *a) { return a->o.head_type && strcmp(a->o.head_type, "q8") == 0; }

/* "64 tokens, 20.1 tokens/s"; no rate of what was too short to be timed. */
static const char *generate_rate(const pvt_generated *out, char text[64])
{
    int n = snprintf(text, 64, "%lld token%s", (long long)out->n, out->n == 1 ? "" : "s");
    if (out->n > 1 && out->seconds >= 0.05)
        snprintf(text + n, 64 - (size_t)n, ", %.1f tokens/s", (double)out->n / out->seconds);
    return text;
}

#include "generate.h"

static int verb_tokenize(app *a)
{
    const pvt_tokenizer *tokenizer;
    const char *text = a->o.text;
    int64_t bytes = -1, n;
    int32_t *ids;
    if (!a->o.text == !a->o.file) {
        fail(a, "give either TEXT or -f FILE");
        return 2;
    }
    if (pvt_tokenizer_load(a->ctx, a->o.tokenizer ? a->o.tokenizer : a->o.model, &a->tokenizer) == PVT_OK)
        tokenizer = a->tokenizer;
    else { /* a model whose tokenizer stands elsewhere; its complaint is the better one */
        DO(load_model(a, 0, a->o.model));
        tokenizer = pvt_model_tokenizer(a->models[0]);
        if (!tokenizer) return fail(a, "%s has no tokenizer; give one with --tokenizer FILE", a->o.model);
    }
    if (a->o.file) {
        text = (char *)(a->buffers[0] = read_text(a->o.file, &bytes));
        if (!text) return fail(a, "%s: %s", a->o.file, strerror(errno));
    }
    TRY(a, pvt_tokenizer_encode(tokenizer, text, bytes, PVT_ENCODE_BOS, &ids, &n));
    put_ids(&a->json, NULL, ids, n);
    for (int64_t i = 0; i < n && !a->o.json; i++) {
        int64_t length;
        const char *piece = pvt_tokenizer_piece(tokenizer, i ? ids[i - 1] : -1, ids[i], &length);
        buffer shown = {NULL, 0, 0, false};
        json_string(&shown, piece, length);
        printf("%d\t%s\n", (int)ids[i], shown.data ? shown.data : "\"\"");
        buffer_free(&shown);
    }
    pvt_ids_free(a->ctx, ids);
    return put_result(a);
}

/* ---- export ---- */

/* What --to names, "hf" as it was once called too. */
static const pvt_export_target *export_target(const char *name)
{
    const pvt_export_target *target;
    for (int i = 0; (target = pvt_export_target_at(i)) != NULL; i++)
        if (strcmp(target->name, strcmp(name, "hf") == 0 ? "hf-aqlm" : name) == 0) return target;
    return NULL;
}

/* A file's place; prepare_output's for one that is no directory. */
static int prepare_file(app *a)
{
    struct stat st;
    if (stat(a->o.output, &st) != 0)
        return errno == ENOENT ? 0 : fail(a, "%s cannot be looked at: %s", a->o.output, strerror(errno));
    if (S_ISDIR(st.st_mode)) return fail(a, "%s is a directory; --to %s writes one file: give it a name", a->o.output, a->o.to);
    if (!a->o.overwrite) return fail(a, "%s is there already; give another -o, or --overwrite to replace it", a->o.output);
    return 0;
}

/* Bits per weight of what was written, everything counted. */
static void put_export_bits(app *a, const pvt_export_target *target, const pvt_save_desc *save)
{
    struct stat st;
    buffer path = {NULL, 0, 0, false};
    pvt_bits bits;
    if (strcmp(target->name, "dense") == 0 || strcmp(target->name, "hf-aqlm") == 0) {
        put_bits(a, save, &bits);
        return;
    }
    bits = pvt_model_bits(a->models[0], NULL);
    buffer_printf(&path, target->file ? "%s" : "%s/model.safetensors", a->o.output);
    if (!path.failed && stat(path.data, &st) == 0)
        put_number(&a->json, "file_bits_per_weight", 8.0 * (double)st.st_size / (double)bits.params);
    buffer_free(&path);
}

static int verb_export(app *a)
{
    const pvt_export_target *target = export_target(a->o.to);
    pvt_save_desc save;
    bool made = false;
    memset(&save, 0, sizeof save);
    if (!target) return fail(a, "--to %s is not known to the library", a->o.to);
    if (target->file && strcmp(a->o.dtype, "f16") != 0)
        return fail(a, "--dtype is of directories; a GGUF's type stands in --to, as in gguf:bf16"), 2;
    save.dense = strcmp(target->name, "dense") == 0, save.dense_embedding = true; /* for put_bits */
    save.dtype = strcmp(a->o.dtype, "bf16") == 0 ? PVT_BF16 : strcmp(a->o.dtype, "f32") == 0 ? PVT_F32 : PVT_F16;
    DO(load_model(a, 0, a->o.model));
    DO(target->file ? prepare_file(a) : prepare_output(a, &made));
    if (strcmp(target->name, "hf-aqlm") == 0 && pvt_model_tensor(a->models[0], 0).dtype == PVT_DTYPE_NONE)
        note(a, "note: the embedding is quantized and is written dense, for transformers");
    card_text(a, &save, a->o.model, "Exported with `--to %s`.", a->o.to);
    save.overwrite = a->o.overwrite;
    meter_doing(&a->meter, "writing");
    pvt_result result = pvt_model_export(a->models[0], target->name, a->o.output, &save);
    meter_clear(&a->meter);
    if (result != PVT_OK && made) rmdir(a->o.output);
    TRY(a, result);
    put_open(&a->json, NULL, "{");
    put_text(&a->json, "to", a->o.to), put_text(&a->json, "output", a->o.output);
    put_export_bits(a, target, &save);
    put_number(&a->json, "seconds", elapsed(a));
    put_close(&a->json, "}");
    if (!a->o.json) printf("written to %s\n", a->o.output);
    return put_result(a);
}

/* ---- logits, grad: so that anyone can hold this implementation against another ---- */

typedef struct batch {
    int32_t *ids; /* [B, T], in buffers[0] */
    int64_t B, T;
} batch;

static int load_batch(app *a, batch *out)
{
    int64_t length;
    DO(check_writable(a, a->o.output));
    DO(load_model(a, 0, a->o.model));
    char *text = (char *)(a->buffers[1] = read_text(a->o.ids, &length));
    if (!text) return fail(a, "%s: %s", a->o.ids, strerror(errno));
    int64_t vocab = pvt_model_get_config(a->models[0])->vocab;
    json_ids read = json_ids_read(text, length, vocab, &out->ids, &out->B, &out->T);
    a->buffers[0] = out->ids;
    if (read == JSON_IDS_MEMORY) return fail(a, "out of memory for the token ids of %s", a->o.ids);
    if (read == JSON_IDS_UNEQUAL) return fail(a, "%s: the arrays are not equally long", a->o.ids);
    if (read == JSON_IDS_RANGE)
        return fail(a, "%s: a token id is not a whole number from 0 to %lld", a->o.ids, (long long)(vocab - 1));
    if (read == JSON_IDS_MALFORMED || out->B > (1 << 24) / out->T)
        return fail(a, "%s: a JSON array of equally long arrays of token ids is wanted, such as [[1, 2, 3]]", a->o.ids);
    return 0;
}

static pvt_array real_array(const char *name, const pvt_real *data, int rank, const int64_t *shape)
{
    pvt_array array;
    memset(&array, 0, sizeof array);
    array.name = name;
    array.dtype = sizeof(pvt_real) == 8 ? PVT_F64 : PVT_F32;
    array.rank = rank;
    array.data = data;
    array.bytes = (int64_t)sizeof(pvt_real);
    for (int i = 0; i < rank; i++) {
        array.shape[i] = shape[i];
        array.bytes *= shape[i];
    }
    return array;
}

static int verb_logits(app *a)
{
    batch b;
    pvt_run_desc desc;
    int64_t shape[3];
    memset(&desc, 0, sizeof desc);
    DO(load_batch(a, &b));
    shape[0] = b.B, shape[1] = b.T, shape[2] = pvt_model_get_config(a->models[0])->vocab;
    desc.max_batch = b.B, desc.max_ctx = b.T;
    pvt_real *logits = (pvt_real *)(a->buffers[2] = calloc((size_t)(b.B * b.T * shape[2]), sizeof *logits));
    if (!logits) return fail(a, "out of memory for the logits of %lld tokens; give fewer at a time", (long long)(b.B * b.T));
    TRY(a, pvt_run_create(a->models[0], &desc, &a->runs[0]));
    TRY(a, pvt_run_forward(a->runs[0], b.ids, b.B, b.T, logits));
    pvt_array array = real_array("logits", logits, 3, shape);
    TRY(a, pvt_tensors_save(a->ctx, a->o.output, &array, 1));
    put_open(&a->json, NULL, "{");
    put_int(&a->json, "batch", shape[0]), put_int(&a->json, "ctx", shape[1]), put_int(&a->json, "vocab", shape[2]);
    put_number(&a->json, "seconds", elapsed(a));
    put_close(&a->json, "}");
    if (!a->o.json) printf("logits [%lld, %lld, %lld] written to %s\n", (long long)b.B, (long long)b.T, (long long)shape[2], a->o.output);
    return put_result(a);
}

/* The gradients of a model as a list of named tensors: a codebook weight gives three. */
typedef struct grad_list {
    pvt_array *arrays;
    char (*names)[128];
    pvt_real **chained; /* gradients of codebooks and scales, freed at the end */
    int64_t n, n_chained;
} grad_list;

static pvt_real *grad_chain(grad_list *list, int64_t n)
{
    pvt_real *memory = (pvt_real *)calloc((size_t)n, sizeof *memory);
    if (memory) list->chained[list->n_chained++] = memory;
    return memory;
}

static void grad_add(grad_list *list, const pvt_tensor_info *t, const char *suffix, const pvt_real *data, int rank,
                     const int64_t *shape)
{
    char *name = list->names[list->n];
    size_t stem = strlen(t->name), weight = strlen(".weight");
    snprintf(name, sizeof *list->names, "%s", t->name);
    if (suffix && stem > weight && strcmp(t->name + stem - weight, ".weight") == 0)
        snprintf(name + stem - weight, sizeof *list->names - stem + weight, ".%s", suffix);
    list->arrays[list->n++] = real_array(name, data, rank, shape);
}

/* The number of tensors from i on that are one matrix in the model's files, by whose name its gradient goes; 1: not
   so, or its parts have codes of their own. */
static int grad_parts(app *a, int64_t i)
{
    pvt_tensor_info first = pvt_model_tensor(a->models[0], i), t = first;
    int n = 0;
    while (first.whole[0] && strcmp(t.whole, first.whole) == 0 && t.dtype != PVT_DTYPE_NONE)
        t = pvt_model_tensor(a->models[0], i + ++n);
    return n > 0 && first.whole_row == 0 && strcmp(t.whole, first.whole) != 0 ? n : 1;
}

static int grad_join(app *a, grad_list *list, int64_t i, int parts)
{
    pvt_tensor_info whole = pvt_model_tensor(a->models[0], i);
    int64_t shape[2];
    shape[0] = whole.whole_rows, shape[1] = whole.weight->I;
    pvt_real *dW = grad_chain(list, shape[0] * shape[1]);
    if (!dW) return fail(a, "out of memory for the gradients of %s", whole.whole);
    for (int k = 0; k < parts; k++) {
        pvt_tensor_info t = pvt_model_tensor(a->models[0], i + k);
        memcpy(dW + t.whole_row * shape[1], pvt_run_grad(a->runs[0], i + k), (size_t)t.n * sizeof *dW);
    }
    memcpy(whole.name, whole.whole, sizeof whole.name);
    grad_add(list, &whole, NULL, dW, 2, shape);
    return 0;
}

static int grad_collect(app *a, grad_list *list)
{
    int parts;
    for (int64_t i = 0; i < pvt_model_tensors(a->models[0]); i++) {
        pvt_tensor_info t = pvt_model_tensor(a->models[0], i);
        const pvt_real *dW = pvt_run_grad(a->runs[0], i);
        int64_t shape[4];
        if (!dW) continue;
        if ((parts = grad_parts(a, i)) > 1) {
            DO(grad_join(a, list, i, parts));
            i += parts - 1;
            continue;
        }
        shape[0] = t.weight ? t.weight->O : t.n, shape[1] = t.weight ? t.weight->I : 0;
        grad_add(list, &t, NULL, dW, t.weight ? 2 : 1, shape);
        if (t.weight && t.dtype == PVT_DTYPE_NONE) {
            pvt_real *dvalues[PVT_MAX_ARRAYS] = {NULL};
            pvt_array arrays[PVT_MAX_ARRAYS];
            int n = pvt_weight_arrays(t.weight, arrays);
            for (int k = 0; k < n; k++) {
                if (arrays[k].role != PVT_ARRAY_VALUE) continue;
                dvalues[k] = grad_chain(list, arrays[k].bytes / (int64_t)sizeof(pvt_real));
                if (!dvalues[k]) return fail(a, "out of memory for the gradients of %s", t.name);
            }
            TRY(a, pvt_weight_chain(dvalues, t.weight, dW));
            /* one dimension is written as four, as checkpoints of aqlm have their scales */
            for (int k = 0; k < n; k++)
                if (dvalues[k])
                    grad_add(list, &t, arrays[k].name, dvalues[k], arrays[k].rank == 1 ? 4 : arrays[k].rank, arrays[k].shape);
        }
    }
    return 0;
}

static int grad_write(app *a, double loss)
{
    grad_list list;
    pvt_real value = (pvt_real)loss;
    int64_t n = pvt_model_tensors(a->models[0]);
    int status = 1;
    memset(&list, 0, sizeof list);
    list.arrays = (pvt_array *)calloc((size_t)(PVT_MAX_ARRAYS * n + 1), sizeof *list.arrays);
    list.names = (char(*)[128])calloc((size_t)(PVT_MAX_ARRAYS * n + 1), sizeof *list.names);
    list.chained = (pvt_real **)calloc((size_t)(PVT_MAX_ARRAYS * n + 1), sizeof *list.chained);
    if (list.arrays && list.names && list.chained) {
        list.arrays[list.n++] = real_array("loss", &value, 0, NULL);
        status = grad_collect(a, &list);
        if (status == 0 && pvt_tensors_save(a->ctx, a->o.output, list.arrays, list.n) != PVT_OK)
            status = fail_result(a, PVT_ERR_IO);
    } else
        fail(a, "out of memory for the list of gradients");
    for (int64_t i = 0; i < list.n_chained; i++) free(list.chained[i]);
    free(list.chained);
    free(list.names);
    free(list.arrays);
    return status;
}

static int verb_grad(app *a)
{
    batch b;
    pvt_run_desc desc;
    pvt_loss_desc loss;
    double sum;
    int64_t count;
    memset(&desc, 0, sizeof desc), memset(&loss, 0, sizeof loss);
    DO(load_batch(a, &b));
    desc.max_batch = b.B, desc.max_ctx = b.T;
    if (a->o.teacher) {
        DO(load_model(a, 1, a->o.teacher));
        TRY(a, pvt_run_create(a->models[1], &desc, &a->runs[1]));
        TRY(a, pvt_run_forward(a->runs[1], b.ids, b.B, b.T, NULL));
        loss.teacher = a->models[1], loss.teacher_hidden = pvt_run_hidden(a->runs[1]);
    }
    desc.train = desc.accumulate = true;
    TRY(a, pvt_run_create(a->models[0], &desc, &a->runs[0]));
    TRY(a, pvt_run_forward(a->runs[0], b.ids, b.B, b.T, NULL));
    TRY(a, pvt_run_backward(a->runs[0], &loss, &sum, &count, NULL, NULL));
    if (count < 1) return fail(a, "%s: nothing is predicted; give at least two tokens per array", a->o.ids);
    DO(grad_write(a, sum / (double)count));
    put_open(&a->json, NULL, "{");
    put_number(&a->json, "loss", sum / (double)count), put_int(&a->json, "tokens", count);
    put_number(&a->json, "seconds", elapsed(a));
    put_close(&a->json, "}");
    if (!a->o.json) printf("loss %.7f over %lld tokens; gradients written to %s\n", sum / (double)count, (long long)count, a->o.output);
    return put_result(a);
}

#include "demo.h"
#include "fit.h"
#include "lab.h"

/* ---- the verbs, and main ---- */

#define SET(rows) {rows, (int)(sizeof rows / sizeof *rows), NULL}
static const struct verb {
    const char *name, *summary;
    option_set options;
    int (*run)(app *);
} verbs[] = {
    {"demo", "train a small Llama, quantize and tune it: one table, one chart; needs no files", SET(demo_rows), verb_demo},
    {"info", "architecture, tensors and bits of a model; memory of a plan", SET(info_rows), verb_info},
    {"quantize", "compress a model to codes, calibrated on a text", SET(quantize_rows), verb_quantize},
    {"fit", "compress matrices of a safetensors file, without a model", SET(fit_rows), verb_fit},
    {"allocate", "choose a format for each tensor, for a file of so many bits", SET(allocate_rows), verb_allocate},
    {"tune", "tune codes and codebooks of a quantized model towards the original", SET(tune_rows), verb_tune},
    {"eval", "perplexity on a text, zero-shot tasks", SET(eval_rows), verb_eval},
    {"generate", "continue prompts, or chat", SET(generate_rows), verb_generate},
    {"export", "write a model for other software", SET(export_rows), verb_export},
    {"tokenize", "token ids of a text", SET(tokenize_rows), verb_tokenize},
    {"logits", "logits of given token ids, as safetensors", SET(logits_rows), verb_logits},
    {"grad", "loss and gradients of given token ids, as safetensors", SET(grad_rows), verb_grad},
    {"lab", "the experiments of the papers: a table and a chart each", SET(lab_rows), verb_lab},
};
enum { VERBS = (int)(sizeof verbs / sizeof *verbs) };
static const option_set common_set = SET(common_rows);
/* the options of tune, when its memory is planned */
static const option_set plan_set = {tune_rows, (int)(sizeof tune_rows / sizeof *tune_rows), "--plan"};

static const struct verb_examples {
    const char *name, *text;
} examples[] = {
    {"demo", "  pvtune demo                                  two to four minutes on two cores: a table, and demo.svg\n"
             "  pvtune demo --short                          one to two minutes\n"
             "  pvtune demo --text book.txt --save models    learn a text of yours, keep the models\n"},
    {"info", "  pvtune info model\n"
             "  pvtune info model.gguf --tensors\n"
             "  pvtune info two-bits --plan tune --batch 4 --ctx 1024    memory that this would take\n"},
    {"quantize", "  pvtune quantize model --calib text.txt -o two-bits\n"
                 "  pvtune quantize model.gguf --calib text.txt -o two-bits --samples 256 --ctx 1024\n"
                 "  pvtune quantize model --calib text.txt -o two-bits --resume    go on after Ctrl-C or a crash\n"
                 "  pvtune quantize model --calib text.txt -o small --format aqlm:1x8g8 --embed\n"
                 "  pvtune quantize model --calib text.txt -o small --embed-format int:4g64\n"},
    {"fit", "  pvtune fit matrices.safetensors -o codes.safetensors\n"
            "  pvtune fit matrices.safetensors --inputs x.safetensors --format aqlm:1x8g8 -o codes.safetensors\n"},
    {"allocate", "  pvtune allocate model --bits 3 --calib text.txt -o plan.json\n"
                 "  pvtune quantize model --plan plan.json --calib text.txt -o three-bits\n"},
    {"tune", "  pvtune tune two-bits --teacher model --data text.txt -o tuned\n"
             "  pvtune tune two-bits --teacher model --data text.txt -o tuned --resume     go on after Ctrl-C or a crash\n"
             "  pvtune tune two-bits --data text.txt --loss ce -o tuned                    without the original model\n"
             "  pvtune tune two-bits --teacher model --data text.txt -o tuned --steps 1000 --log tuned.jsonl\n"},
    {"eval", "  pvtune eval tuned --ppl unseen.txt\n"
             "  pvtune eval model --ppl unseen.txt --windows 40 --log model.jsonl\n"
             "  pvtune eval tuned --ppl unseen.txt --windows 40 --against model.jsonl    the difference, window by window\n"
             "  pvtune eval tuned --task arc_easy.jsonl --task piqa.jsonl --beside model    two tasks, paired\n"},
    {"generate", "  pvtune generate tuned -p \"Once upon a time\" -n 100\n"
                 "  pvtune generate tuned -p \"Once upon a time\" --temp 0.8 --top-p 0.95 --seed 7\n"
                 "  pvtune generate tuned --chat -p \"What is a codebook?\"\n"},
    {"export", "  pvtune export tuned --to dense -o tuned-fp16\n"
               "  pvtune export tuned --to gguf:q8_0 -o tuned.gguf\n"},
    {"tokenize", "  pvtune tokenize model \"some text\"\n"
                 "  pvtune tokenize model -f text.txt --json\n"},
    {"logits", "  echo '[[1, 2, 3]]' >ids.json; pvtune logits model --ids ids.json -o logits.safetensors\n"},
    {"grad", "  pvtune grad tuned --ids ids.json --teacher model -o grad.safetensors\n"},
    {"lab", "  pvtune lab quadratic                         exact against linearized V steps, in a second: lab-quadratic.svg\n"
            "  pvtune lab quadratic --seed 1 --json         another problem; the table as JSON\n"},
};

static int program_help(FILE *f)
{
    fprintf(f, "pvtune compresses language models of the Llama family to about two bits per weight and tunes them.\n\n"
               "usage: pvtune VERB …\n\n");
    for (int i = 0; i < VERBS; i++) fprintf(f, "  %-9s %s\n", verbs[i].name, verbs[i].summary);
    fprintf(f, "\n  pvtune help VERB   its options and examples      pvtune --version\n\n"
               "For example:\n"
               "  pvtune demo\n"
               "  pvtune quantize model --calib text.txt -o two-bits\n"
               "  pvtune tune two-bits --teacher model --data text.txt -o tuned\n"
               "  pvtune eval tuned --ppl unseen.txt\n\n"
               "Results go to stdout, progress to stderr. Exit status: 0 done, 1 failed, 2 wrong usage.\n");
    return f == stdout ? 0 : 2;
}

static int verb_help(const struct verb *v)
{
    options_usage(stdout, "pvtune", v->name, v->options);
    printf("%s\n", v->summary);
    options_help(stdout, v->options);
    options_help(stdout, common_set);
    for (int i = 0; i < (int)(sizeof examples / sizeof *examples); i++)
        if (strcmp(examples[i].name, v->name) == 0) printf("\nExamples\n%s", examples[i].text);
    return 0;
}

static const struct verb *find_verb(const char *name)
{
    const char *near = NULL;
    int distance = 99;
    for (int i = 0; i < VERBS; i++) {
        if (strcmp(verbs[i].name, name) == 0) return &verbs[i];
        near = option_nearest(name, near, verbs[i].name, &distance);
    }
    fprintf(stderr, near ? "pvtune: there is no verb '%s'; did you mean %s?\n" : "pvtune: there is no verb '%s'; see pvtune help\n",
            name, near);
    return NULL;
}

/* What was printed must have arrived: a full disk is a failure. */
static int finish_stdout(const char *verb, int status)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return status;
    fprintf(stderr, "pvtune %s: the result could not be written to standard output: %s\n", verb, strerror(errno));
    return status ? status : 1;
}

/* What the first Ctrl-C is answered, at once. */
static const char *stop_answer(const char *verb)
{
    if (strcmp(verb, "quantize") == 0)
        return "stopping; blocks that are finished stay for --resume; again to end at once\n";
    if (strcmp(verb, "fit") == 0) return "stopping; matrices that are finished are written; again to end at once\n";
    if (strcmp(verb, "tune") == 0) return "stopping after the last finished step, with a checkpoint for --resume; again to end at once\n";
    return "stopping; again to end at once\n";
}

static int run_verb(const struct verb *v, app *a)
{
    const char *isa = getenv("PVTUNE_ISA"); /* the library reads it; here only to say what it could not give */
    meter_begin(&a->meter, v->name, a->o.quiet);
    meter_catch(a->o.quiet ? NULL : stop_answer(v->name));
    DO(open_context(a));
    if (isa && strcmp(isa, pvt_ctx_get_info(a->ctx).isa) != 0)
        note(a, "this processor has no %s: %s it is", isa, pvt_ctx_get_info(a->ctx).isa);
    a->started = meter_now();
    int status = check_paths(a);
    if (status == 0) status = v->run(a);
    if (a->log && fclose(a->log) != 0 && status == 0) /* where network file systems report a full disk */
        status = fail(a, "the log %s could not be written: %s", a->o.log, strerror(errno));
    a->log = NULL;
    meter_end(&a->meter);
    app_close(a);
    return status;
}

int main(int argc, char **argv)
{
    static app a;
    option_set sets[3];
    char wrong[512];
    bool help = false;
    int n_sets = 0;
#ifdef _WIN32
    if (!on_windows_begin(&argc, &argv)) return 1;
#endif
    if (argc < 2) return program_help(stderr);
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "version") == 0) {
        printf("pvtune %d.%d.%d\n", PVT_VERSION_MAJOR, PVT_VERSION_MINOR, PVT_VERSION_PATCH);
        return finish_stdout("--version", 0);
    }
    if (strcmp(argv[1], "help") == 0 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        if (argc < 3) return finish_stdout("help", program_help(stdout));
        const struct verb *v = find_verb(argv[2]);
        return v ? finish_stdout("help", verb_help(v)) : 2;
    }
    const struct verb *v = find_verb(argv[1]);
    if (!v) return 2;
    a.verb = v->name;
    a.o.warmup = NOT_GIVEN, a.o.clamp_sharpness = NOT_GIVEN;
    sets[n_sets++] = v->options;
    sets[n_sets++] = common_set;
    if (v->run == verb_info) sets[n_sets++] = plan_set;
    if (!options_parse(sets, n_sets, argc - 2, argv + 2, &a.o, &help, wrong, sizeof wrong)) {
        fprintf(stderr, "pvtune %s: %s; see pvtune help %s\n", v->name, wrong, v->name);
        return 2;
    }
    if (help) return finish_stdout("help", verb_help(v));
    a.arguments = argv + 1;
    return finish_stdout(v->name, run_verb(v, &a));
}
