"""Makes the figures in this directory, against which tests/test_golden.c, test_pv.c and test_tokenizer.c hold
pvtune: tiny random models by transformers, tokenizers by sentencepiece and tokenizers, code searches and
optimizer steps by the few lines of numpy below, which share nothing with pvtune.h.

    python tests/golden/make.py --qwen3        models/qwen3 alone, which needs another version of transformers
    python tests/golden/make.py TEXT [OUT]     TEXT: train.txt of `pvtune demo --quick --save DIR`; OUT: default here

Made with torch 2.5.1, transformers 4.49.0 (models/qwen3: 5.24.0), safetensors, numpy 2.4.6, sentencepiece 0.2.3, tokenizers 0.21.4.
Everything is seeded and computed in float64 from the stored float16 numbers; results are stored as float32.

models/NAME, aqlm/NAME    config.json and model.safetensors as Hugging Face has them;
    golden.safetensors    input_ids i32 [B,T], logits f32 [B,T,vocab]
    golden.json           loss: mean cross-entropy of the B(T-1) next tokens, in nats; or kl
    grads.safetensors     gradient of that loss for every parameter; of a quantized linear for the dense weight,
                          codebooks and scales
    dense.safetensors     (aqlm) the dequantized linears
pv/                       layer 1: beam_l2 (the V step's search), adam, pv_step_* (whole steps)
tokenizers/               tokenizer.model, tokenizer.json, ids.json: texts and their ids
"""
import io, json, math, os, sys
import numpy as np

OUT = os.path.dirname(os.path.abspath(__file__))
F32 = lambda x: np.ascontiguousarray(x, dtype=np.float32)


def save(path, tensors, **document):
    """tensors to PATH.safetensors, a document, if any, to PATH.json."""
    from safetensors.numpy import save_file
    path = os.path.join(OUT, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path + ".safetensors")
    if document:
        write(path + ".json", document)


def write(path, document):
    with open(path, "w") as file:
        json.dump(document, file, separators=(",", ":"), ensure_ascii=True)
        file.write("\n")


# ---- models ----

def exact_library():
    """transformers computes norms in float32 whatever the model's type; here in the type that comes in."""
    import importlib
    import torch

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))
    for family in ("Llama", "Mistral", "Qwen2", "Phi3", "Qwen3"):
        try:
            module = importlib.import_module(f"transformers.models.{family.lower()}.modeling_{family.lower()}")
        except ImportError:  # Qwen3 came with 4.51
            continue
        getattr(module, family + "RMSNorm").forward = norm


def random_model(config, seed):
    """A model in float64 whose numbers are float16 exactly: norms about 1, q and k large enough to attend."""
    import torch
    from transformers import AutoModelForCausalLM
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").double().eval()
    spread = {"norm": .25, "q_proj": .25, "k_proj": .25, "qkv_proj": .25, "embed": .15 if config.tie_word_embeddings else .5}
    with torch.no_grad():
        for name, p in model.named_parameters():
            s = next((v for k, v in spread.items() if k in name), .2)
            p.copy_((("norm" in name) + s * torch.randn(p.shape, dtype=torch.float64)).half().double())
    return model


def loss_of(logits, ids):
    import torch
    V = logits.shape[-1]
    return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, V), ids[:, 1:].reshape(-1).long())


def store_config(directory, config, **more):
    os.makedirs(os.path.join(OUT, directory), exist_ok=True)
    keep = ("architectures model_type vocab_size hidden_size intermediate_size num_hidden_layers "
            "num_attention_heads num_key_value_heads head_dim hidden_act rms_norm_eps rope_theta rope_scaling rope_parameters "
            "sliding_window use_sliding_window max_window_layers max_position_embeddings original_max_position_embeddings "
            "tie_word_embeddings bos_token_id eos_token_id").split()
    full = config.to_dict()
    document = {k: full[k] for k in keep if k in full}
    write(os.path.join(OUT, directory, "config.json"), {**document, "torch_dtype": "float16", **more})


def model_figures(directory, config, seed, B, T):
    import torch
    config.architectures = [config.model_type.capitalize() + "ForCausalLM"]
    model = random_model(config, seed)
    ids = torch.randint(0, config.vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))
    logits = model(ids).logits
    loss = loss_of(logits, ids)
    loss.backward()
    store_config(directory, config)
    weights = {k: p.detach().numpy() for k, p in model.named_parameters()}
    save(f"{directory}/model", {k: v.astype(np.float16) for k, v in weights.items()})
    save(f"{directory}/golden", {"input_ids": ids.numpy().astype(np.int32), "logits": F32(logits.detach())},
         loss=loss.item())
    save(f"{directory}/grads", {k: F32(p.grad) for k, p in model.named_parameters()})
    return model, ids


def make_models():
    import torch
    from transformers import LlamaConfig, MistralConfig, Qwen2Config
    base = dict(vocab_size=31, hidden_size=12, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=1, head_dim=8, rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=128,
                tie_word_embeddings=False)
    gqa = LlamaConfig(**{**base, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                         "head_dim": 4})
    small = LlamaConfig(**{**base, "hidden_size": 8, "intermediate_size": 12, "head_dim": 4})  # of the same vocabulary
    student, ids = model_figures("models/llama_gqa", gqa, 110, 2, 11)
    teacher = random_model(small, 111)
    teacher_logits = teacher(ids).logits.detach()
    small.architectures = ["LlamaForCausalLM"]
    store_config("models/llama_gqa_teacher", small)
    save("models/llama_gqa_teacher/model", {k: p.detach().numpy().astype(np.float16)
                                            for k, p in teacher.named_parameters()})
    save("models/llama_gqa_teacher/golden", {"input_ids": ids.numpy().astype(np.int32), "logits": F32(teacher_logits)})
    student.zero_grad()
    log_p, log_q = torch.log_softmax(teacher_logits, -1), torch.log_softmax(student(ids).logits, -1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    kl.backward()
    save("models/kl_llama/golden", {"input_ids": ids.numpy().astype(np.int32)}, kl=kl.item())
    save("models/kl_llama/grads", {k: F32(p.grad) for k, p in student.named_parameters()})
    # wavelengths 2 pi theta^(2j/16): below context/high, between, and above context/low
    llama3 = LlamaConfig(**{**base, "head_dim": 16, "rope_theta": 5e5, "tie_word_embeddings": True,
                            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                             "high_freq_factor": 4.0, "original_max_position_embeddings": 64}})
    model_figures("models/llama3_tied", llama3, 120, 1, 29)
    model_figures("models/mistral_sw8", MistralConfig(**base, sliding_window=8), 130, 1, 17)
    # its window of 4096 is switched off
    model_figures("models/qwen2_tied", Qwen2Config(**{**base, "tie_word_embeddings": True, "num_attention_heads": 3}),
                  140, 1, 13)
    model_figures("models/qwen2_untied", Qwen2Config(**{**base, "num_hidden_layers": 2}), 141, 2, 9)


def make_families():
    """Rules for longer contexts, and what other families have that Llama has not."""
    from transformers import LlamaConfig, Phi3Config
    base = dict(vocab_size=31, hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=1, rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=16,
                tie_word_embeddings=False)
    scaled = lambda rule: LlamaConfig(**{**base, "head_dim": 8, "rope_scaling": {"rope_type": rule, "factor": 2.5}})
    model_figures("models/llama_linear", scaled("linear"), 150, 1, 13)
    model_figures("models/llama_dynamic", scaled("dynamic"), 151, 1, 25)  # longer than the 16 of its config
    longrope = {"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [1.2, 1.75, 3.5, 6.25]}
    phi3 = lambda **more: Phi3Config(**{**base, "max_position_embeddings": 64, "pad_token_id": None,
                                        "original_max_position_embeddings": 16, "rope_scaling": longrope, **more})
    model_figures("models/phi3_short", phi3(sliding_window=7, num_hidden_layers=2), 152, 1, 16)
    model_figures("models/phi3_long", phi3(), 153, 1, 21)


def make_qwen3():
    from transformers import Qwen3Config
    config = Qwen3Config(vocab_size=31, hidden_size=12, intermediate_size=20, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, head_dim=8, rms_norm_eps=1e-6,
                         max_position_embeddings=128, tie_word_embeddings=True)
    model_figures("models/qwen3", config, 160, 2, 9)


# ---- AQLM checkpoints ----

def dequantize(codes, codebooks, scales):
    """W [O,I] from codes [O/og,I/ig,M], codebooks [M,K,og,ig], scales [O/og,1,1,1]; torch or numpy."""
    GO, GI, M = codes.shape
    og, ig = codebooks.shape[2:]
    W = sum(codebooks[m][codes[:, :, m]] for m in range(M)) * scales  # [GO,GI,og,ig]
    return W.swapaxes(1, 2).reshape(GO * og, GI * ig)


def make_aqlm(directory, seed, M, bits, ig, og, quantized, tied, family="Llama"):
    """Those linears of a random model as codes; the others stay dense, as a checkpoint may have it."""
    import torch, transformers
    config = getattr(transformers, family + "Config")(
        vocab_size=31, hidden_size=8, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=4, rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=64, tie_word_embeddings=tied)
    config.architectures = [family + "ForCausalLM"]
    model = random_model(config, seed)
    g = torch.Generator().manual_seed(seed)
    K = 1 << bits
    parameters = {k: p.detach().clone().requires_grad_() for k, p in model.named_parameters()}
    stored, leaves, dense = {}, {}, {}
    for name in [k for k in parameters if any(q in k for q in quantized) and k.endswith(".weight")]:
        O, I = parameters.pop(name).shape
        codes = torch.randint(0, K, (O // og, I // ig, M), generator=g)
        codes[0, 0, 0], codes[-1, 0, -1], codes[0, -1, -1], codes[-1, -1, 0] = 0, K - 1, K // 2, K // 2 - 1
        half = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).half().double()
        books = half(M, K, og, ig)
        scales = (0.2 * (1.5 + torch.rand(O // og, 1, 1, 1, generator=g, dtype=torch.float64))).half().double()
        books.requires_grad_(), scales.requires_grad_()
        stem = name[:-len("weight")]
        dense[name] = dequantize(codes, books, scales)
        dense[name].retain_grad()
        leaves[stem + "codebooks"], leaves[stem + "scales"] = books, scales
        signed = torch.where(codes >= K // 2, codes - K, codes).numpy()  # two's complement of so many bits
        stored[stem + "codes"] = signed.astype(np.int8 if bits <= 8 else np.int16)
    ids = torch.randint(0, config.vocab_size, (2, 9), generator=g)
    logits = torch.func.functional_call(model, {**parameters, **dense}, (ids,)).logits
    loss = loss_of(logits, ids)
    loss.backward()
    everything = {**parameters, **leaves}
    store_config(directory, config, quantization_config={
        "quant_method": "aqlm", "nbits_per_codebook": bits, "num_codebooks": M, "in_group_size": ig,
        "out_group_size": og, "linear_weights_not_to_quantize": sorted(parameters)})
    stored.update({k: v.detach().numpy().astype(np.float16) for k, v in everything.items()})
    save(f"{directory}/model", stored)
    save(f"{directory}/dense", {k: F32(v.detach()) for k, v in dense.items()})
    save(f"{directory}/golden", {"input_ids": ids.numpy().astype(np.int32), "logits": F32(logits.detach())},
         loss=loss.item())
    save(f"{directory}/grads", {k: F32(v.grad) for k, v in {**everything, **dense}.items()})


# ---- layer 1: codes, optimizer, whole steps ----

class Adam:
    """Adam or LAMB of one array with the conventions of the reference implementation of PV-Tuning: eps outside
    the square root, LAMB's factor |w|/|u| before debias, which LAMB leaves out unless asked."""

    def __init__(self, lr, betas, eps=1e-6, lamb=False, debias=None, amsgrad=False, weight_decay=0., **_):
        self.lr, self.betas, self.eps, self.lamb, self.amsgrad = lr, betas, eps, lamb, amsgrad
        self.debias, self.decay = (not lamb if debias is None else debias), weight_decay
        self.m = self.v = self.most = 0.
        self.t = 0

    def step(self, w, g):
        b1, b2 = self.betas
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g * g
        self.most = np.maximum(self.most, self.v)
        u = self.m / (np.sqrt(self.most if self.amsgrad else self.v) + self.eps)
        rate = self.lr * (math.sqrt(1 - b2 ** self.t) / (1 - b1 ** self.t) if self.debias else 1)
        if self.lamb:
            u = u + self.decay * w
            nw, nu = np.linalg.norm(w), np.linalg.norm(u)
            return w - rate * (nw / nu if nw > 0 and nu > 0 else 1) * u
        return (1 - self.lr * self.decay) * w - rate * u


class Tie(Exception):
    """Two answers are so close that rounding would decide: draw other numbers."""


def sharply(order, keys, k, least=1e-4):
    """The keys at places k-1 and k of the order differ."""
    if 0 < k < len(order) and abs(keys[order[k - 1]] - keys[order[k]]) < least * abs(keys[order[k - 1]]):
        raise Tie
    return order[:k]


def tiles(W, og, ig):
    """[O,I] -> [GO,GI,og*ig]"""
    O, I = W.shape
    return W.reshape(O // og, og, I // ig, ig).swapaxes(1, 2).reshape(O // og, I // ig, og * ig)


def search(target, codes, codebooks, scales, fraction, trust=None, force=False):
    """The V step by trying every code, or pair of codes: the share of groups farthest from their target, farthest
    first; then no further than the trust ratio. New codes and how many groups changed."""
    GO, GI, M = codes.shape
    K, og, ig = codebooks.shape[1:]
    books = codebooks.reshape(M, K, og * ig)
    entries = books[0] if M == 1 else (books[0][:, None] + books[1][None]).reshape(K * K, -1)
    goal, scale = tiles(target, og, ig).reshape(GO * GI, -1), np.repeat(scales.ravel(), GI)
    old = tiles(dequantize(codes, codebooks, scales), og, ig).reshape(GO * GI, -1)
    new_codes, keys = codes.reshape(GO * GI, M).copy(), ((goal - old) ** 2).sum(1)
    k = math.ceil(round(fraction * GO * GI, 9))
    picked = np.argsort(-keys, kind="stable")
    sharply(picked, keys, k)
    if trust:  # the order itself matters
        for i in range(k):
            sharply(picked, keys, i)
    moved, accepted = 0., 0
    for g in picked[:k]:
        d = ((entries - goal[g] / scale[g]) ** 2).sum(1)
        near = np.argsort(d, kind="stable")
        was = int(new_codes[g] @ [K ** (M - 1 - m) for m in range(M)])
        best = near[1] if force and near[0] == was else near[0]
        for a in (0, 1):
            sharply(near, d + 1e-3, a + 1)
        moved += ((scale[g] * entries[best] - old[g]) ** 2).sum()
        within = math.sqrt(moved) / np.linalg.norm(old)
        if trust and abs(within - trust) < 1e-3 * trust:
            raise Tie
        if trust and accepted and not within_before < trust:
            break
        within_before, accepted = within, accepted + 1
        new_codes[g] = [best // K ** (M - 1 - m) % K for m in range(M)]
    new_codes = new_codes.reshape(GO, GI, M)
    return new_codes, int((new_codes != codes).any(2).sum())


def start(rng, O, I, M, K, og, ig):
    codes = rng.integers(0, K, (O // og, I // ig, M))
    codebooks = F32(rng.normal(size=(M, K, og, ig))).astype(float)
    scales = F32(.5 + rng.random((O // og, 1, 1, 1))).astype(float)
    return codes, codebooks, scales


SHAPES = {"m1k16g4": (8, 16, 1, 16, 1, 4), "m2k8g4og2": (8, 16, 2, 8, 2, 4)}


def make_searches(seed):
    rng = np.random.default_rng(seed)
    tensors, cases = {}, []
    for config, shape in SHAPES.items():
        O, I, M, K, og, ig = shape
        codes, codebooks, scales = start(rng, *shape)
        target = F32(dequantize(codes, codebooks, scales) + .6 * rng.normal(size=(O, I))).astype(float)
        tensors.update({f"{config}.reference_weight": F32(target), f"{config}.prev_codes": codes.astype(np.int32),
                        f"{config}.codebooks": F32(codebooks), f"{config}.scales": F32(scales)})
        for fraction, trust, force in [(1, None, False), (.1, None, False), (.3, None, False), (.3, None, True),
                                       (1, .3, False), (1, .1, False), (1, .3, True)]:
            new, changed = search(target, codes, codebooks, scales, fraction, trust, force)
            key = f"{config}.out.{len(cases)}"
            tensors[key] = new.astype(np.int32)
            error = ((dequantize(new, codebooks, scales) - target) ** 2).sum()
            cases.append(dict(config=config, key=key, beam_size=K if M > 1 else 1, max_update_fraction=fraction,
                              trust_ratio=trust, force_update=force, codebook_order=list(range(M)),
                              groups_changed=changed, sq_error_sum=float(error)))
    save("pv/beam_l2", tensors, cases=cases)


ADAM_CASES = [dict(lr=.01, betas=[.9, .95]), dict(lr=.01, betas=[0., .95]), dict(lr=.01, betas=[.9, .999], amsgrad=True),
              dict(lr=.01, betas=[.9, .95], debias=False), dict(lr=.003, betas=[.9, .95], lamb=True),
              dict(lr=.003, betas=[.9, .95], lamb=True, debias=True), dict(lr=.003, betas=[0., .95], lamb=True, debias=True),
              dict(lr=.003, betas=[.9, .95], lamb=True, amsgrad=True),
              dict(lr=.003, betas=[.9, .95], lamb=True, zero_start=True), dict(lr=.01, betas=[0., .95], amsgrad=True),
              dict(lr=.01, betas=[.9, .95], eps=1e-3), dict(lr=.01, betas=[.9, .95], weight_decay=.1),
              dict(lr=.003, betas=[.9, .95], lamb=True, weight_decay=.1)]


def run_adam(case, param0, grads):
    w, adam, rows = param0 * (not case.get("zero_start")), Adam(**case), []
    for g in grads:
        w = adam.step(w, g)
        rows.append(w)
    return np.array(rows)


def make_adam(seed, n=19, steps=5):
    rng = np.random.default_rng(seed)
    param0, grads = F32(rng.normal(size=n)).astype(float), F32(rng.normal(size=(steps, n))).astype(float)
    grads[:, 3], grads[1] = 0, F32(grads[1] * 1e-4)  # a dead element, a step of another size
    tensors = {"param0": F32(param0), "grads": F32(grads)}
    for i, case in enumerate(ADAM_CASES):
        tensors[f"params.{i}"] = F32(run_adam(case, param0, grads))
    save("pv/adam", tensors, n=n, steps=steps, cases=[{**c, "key": f"params.{i}"} for i, c in enumerate(ADAM_CASES)])


def run_steps(case, codes, codebooks, scales, vec, vec_grads, target, hessian):
    """Whole steps: one gradient for the values and for the buffer, one optimizer update of each, the search against
    the updated values, the decay of the buffer. Yields the tensors of each step."""
    M, K, og, ig = codebooks.shape
    O, I = target.shape
    values, scale_opt, vec_opt, code_opt = Adam(**case["cont"]), Adam(**case["cont"]), Adam(**case["nonq"]), Adam(**case["codes"])
    buffer, delta = dequantize(codes, codebooks, scales), case["delta_decay"]
    for step in range(len(vec_grads)):
        weight = dequantize(codes, codebooks, scales)
        grad = F32(2 * (weight - target) @ hessian / O).astype(float)
        h = tiles(grad, og, ig)
        dbooks, dscales = np.zeros_like(codebooks).reshape(M, K, -1), np.zeros_like(scales)
        for o, i, m in np.ndindex(*codes.shape):
            dbooks[m, codes[o, i, m]] += scales[o].item() * h[o, i]
            dscales[o] += h[o, i] @ codebooks[m, codes[o, i, m]].ravel()
        dbooks = dbooks.reshape(codebooks.shape)
        vec = vec_opt.step(vec, vec_grads[step])
        codebooks, scales = values.step(codebooks, dbooks), scale_opt.step(scales, dscales)
        goal = code_opt.step(weight if delta == 1 else buffer, grad)
        codes, changed = search(goal, codes, codebooks, scales, case["max_code_change_per_step"],
                                case.get("code_trust_ratio"), case.get("force_code_update", False))
        weight = dequantize(codes, codebooks, scales)
        out = dict(grad=grad, codebooks_grad=dbooks, scales_grad=dscales, codebooks=codebooks, scales=scales, vec=vec,
                   codes=codes, weight=weight)
        buffer = delta * weight + (1 - delta) * goal
        out.update({"buffer": buffer} if delta < 1 else {"search_target": goal})
        yield out, changed


def make_steps(config, seed, cases):
    shape = SHAPES[config]
    O, I, M = shape[:3]
    rng = np.random.default_rng(seed)
    codes, codebooks, scales = start(rng, *shape)
    exact = lambda x: F32(x).astype(float)
    target = exact(dequantize(codes, codebooks, scales) + .5 * rng.normal(size=(O, I)))
    A = rng.normal(size=(2 * I, I))
    hessian, vec, vec_grads = exact(A.T @ A / (2 * I)), exact(rng.normal(size=7)), exact(rng.normal(size=(3, 7)))
    tensors = {"codes0": codes.astype(np.int32), "codebooks0": F32(codebooks), "scales0": F32(scales),
               "vec0": F32(vec), "vec_grads": F32(vec_grads)}
    for c, case in enumerate(cases):
        case.update(case=c, groups_changed=[], codebook_orders=[list(range(M))] * 3, beam_size=shape[3] if M > 1 else 1)
        for s, (out, changed) in enumerate(run_steps(case, codes, codebooks, scales, vec, vec_grads, target, hessian)):
            case["groups_changed"].append(changed)
            for k, v in out.items():
                tensors[f"case{c}.step{s}.{k}"] = v.astype(np.int32) if k == "codes" else F32(v)
    if any(sum(case["groups_changed"]) < 3 for case in cases):
        raise Tie  # not close, but idle
    save(f"pv/pv_step_{config}", tensors, in_features=I, cases=cases)


def until_sharp(make, seed, *rest):
    while True:
        try:
            return make(seed, *rest) if not rest else make(rest[0], seed, *rest[1:])
        except Tie:
            seed += 1000


def make_pv():
    adam = dict(lr=.001, betas=[.9, .95])
    lamb = dict(lr=.001, betas=[.9, .95], lamb=True, debias=True)
    until_sharp(make_searches, 1)
    make_adam(2)
    until_sharp(make_steps, 3, "m1k16g4", [
        dict(cont=lamb, nonq=adam, codes=dict(lr=.3, betas=[0., .95]), delta_decay=0., max_code_change_per_step=.1),
        dict(cont=adam, nonq=lamb, codes=dict(lr=.5, betas=[0., .95], lamb=True, debias=True), delta_decay=.5,
             max_code_change_per_step=.5, code_trust_ratio=.3)])
    until_sharp(make_steps, 4, "m2k8g4og2", [
        dict(cont=lamb, nonq=adam, codes=dict(lr=.2, betas=[0., .95]), delta_decay=1., max_code_change_per_step=.25,
             force_code_update=True)])


# ---- tokenizers ----

TEXTS = ["", " ", "Hello world", "  two spaces,   three", "Once upon a time\n\n\tthere was\r\n", "don't I'LL we've 'S",
         "12345 007 3.14", "ÀÉîõü ß Ω ж 中文 かな 한국어", "👩‍👩‍👧 🏳️‍🌈 e\u0301", "a\u00a0b\u2003c\u3000d\u200be", "\u2581 <s> </s> <|endoftext|> <unk>",
         "x" * 40 + "!?" * 10, "The cat sat. The dog ran; the bird flew away -- \"home\", it said.", "\ufffd\u0000\u0001\u007f tail "]


def make_tokenizers(text):
    import sentencepiece, tokenizers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    directory = os.path.join(OUT, "tokenizers")
    os.makedirs(directory, exist_ok=True)
    lines = open(text, encoding="utf-8").read().splitlines()
    model = io.BytesIO()
    # as Llama's: spaces kept, bytes for what is unknown
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=420,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, allow_whitespace_only_pieces=True, num_threads=1, minloglevel=2)
    with open(os.path.join(directory, "tokenizer.model"), "wb") as file:
        file.write(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_file=os.path.join(directory, "tokenizer.model"))
    # as GPT-2's
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=420, special_tokens=["<|endoftext|>"], show_progress=False,
                                                       initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    bpe.save(os.path.join(directory, "tokenizer.json"), pretty=False)
    write(os.path.join(directory, "ids.json"),
          [dict(text=t, sentencepiece=pieces.encode(t), bpe=bpe.encode(t, add_special_tokens=True).ids) for t in TEXTS])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if len(sys.argv) > 2:
        OUT = sys.argv[2]
    exact_library()
    if sys.argv[1] == "--qwen3":
        make_qwen3()
        sys.exit()
    make_pv()
    make_tokenizers(sys.argv[1])
    make_models()
    make_families()
    make_aqlm("aqlm/llama_2x8_g8", 200, 2, 8, 8, 1, ["down_proj"], False)
    make_aqlm("aqlm/llama_1x9_g4", 210, 1, 9, 4, 2, ["o_proj"], True)
    make_aqlm("aqlm/qwen2_2x8_g8", 220, 2, 8, 8, 1, ["q_proj", "v_proj"], False, "Qwen2")
