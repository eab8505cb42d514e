"""Trains the demo model on the CPU: tokenizer, weights, export, evaluation. See README.md for what it makes.

    python train.py --work /tmp/demo-model            # all of it; continues a run that was stopped
    python train.py --work /tmp/demo-model --export   # only export and evaluate the last checkpoint

Seeded: one machine, one version of PyTorch and one number of threads make the same weights again.
"""

import argparse
import json
import math
import os
import random
import time
from collections import defaultdict
from itertools import chain, islice

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

import generate_text

HERE = os.path.dirname(os.path.abspath(__file__))
SEED = 20261121
SPECIAL = ["<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
BOS, END, SYSTEM, USER, ASSISTANT = range(5)
VOCAB_SIZE = 2048
CONTEXT = 512
# What users say is not to be imitated, but the model should not be blind to it either.
USER_WEIGHT = 0.1
# Steps of each stage of the text; see generate_text.py for what differs.
STAGES = {1: 690, 2: 710, 3: 250, 4: 300}

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% else %}{{ '<|user|>' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}"
    "{% elif message['content'] %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}"
    "{% endif %}"
    "{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def config():
    return LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=2048, rms_norm_eps=1e-5, tie_word_embeddings=True,
        attention_bias=False, mlp_bias=False, bos_token_id=BOS, eos_token_id=END, pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0})


# Tokenizer


def train_tokenizer():
    def texts():
        for doc in islice(generate_text.documents(SEED), 60_000):
            yield from (m["content"] for m in doc["messages"]) if "messages" in doc else [doc["text"]]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # All 256 bytes are in the vocabulary, so that any text can be encoded.
    tokenizer.train_from_iterator(texts(), trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    tokenizer.save(os.path.join(HERE, "tokenizer.json"))
    write_json("tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "<|end|>", "pad_token": None,
        "unk_token": None, "clean_up_tokenization_spaces": False, "model_max_length": 2048,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False,
                                          "single_word": False, "special": True} for i, t in enumerate(SPECIAL)},
        "chat_template": CHAT_TEMPLATE})


def write_json(name, value):
    with open(os.path.join(HERE, name), "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def encode(tokenizer, doc):
    """Token ids of a document as the chat template would give them, and the weight of each as a target."""
    def text(s):
        return tokenizer.encode(s, add_special_tokens=False).ids

    if "text" in doc:
        ids = [BOS] + text(doc["text"]) + [END]
        return ids, [1.0] * len(ids)
    ids, weights = [BOS], [USER_WEIGHT]
    for m in doc["messages"]:
        part = [{"system": SYSTEM, "user": USER, "assistant": ASSISTANT}[m["role"]]] + text(m["content"]) + [END]
        ids += part
        # The mark `<|assistant|>` itself is put by the template, never by the model.
        weights += [USER_WEIGHT] + [1.0] * (len(part) - 1) if m["role"] == "assistant" else [USER_WEIGHT] * len(part)
    return ids, weights


def token_stream(tokenizer, seed, stage):
    """Rows of CONTEXT + 1 tokens and target weights; documents are packed one after the other."""
    ids, weights = [], []
    for doc in generate_text.documents(seed, stage):
        i, w = encode(tokenizer, doc)
        ids += i
        weights += w
        while len(ids) > CONTEXT:
            yield ids[:CONTEXT + 1], weights[1:CONTEXT + 1]
            del ids[:CONTEXT], weights[:CONTEXT]


# Evaluation


def prompts_and_answers(tokenizer, questions):
    for q in questions:
        doc = {"messages": generate_text.turn(q.text, q.answer)}
        ids, _ = encode(tokenizer, doc)
        yield ids, ids.index(ASSISTANT) + 1


def exact(model, tokenizer, questions):
    """Which questions a greedy answer would get right, word for word."""
    return exact_rows(model, list(prompts_and_answers(tokenizer, questions)))


@torch.no_grad()
def exact_rows(model, rows):
    """Of rows of (token ids, where the last answer begins): for which the answer is what greedy generation would give.

    It is exactly if each of its tokens, and the end, is the most likely one given those before. So one forward over question and
    answer decides it, with no need to generate.
    """
    right = []
    for start in range(0, len(rows), 64):
        batch = rows[start:start + 64]
        width = max(len(ids) for ids, _ in batch)
        x = torch.tensor([ids + [END] * (width - len(ids)) for ids, _ in batch])
        best = model(input_ids=x).logits.argmax(-1)
        right += [bool((best[i, a - 1:len(ids) - 1] == x[i, a:len(ids)]).all()) for i, (ids, a) in enumerate(batch)]
    return right


def chats_exact(model, tokenizer, num=100):
    """Of new chats of several turns: follow-up questions ("And Spain?"), and things the user said of themselves."""
    w, rng, out = generate_text.World(), random.Random(SEED + 3), {}
    for name, make in (("follow-up", generate_text.follow_up), ("memory", generate_text.memory)):
        rows = []
        for _ in range(num):
            ids, _ = encode(tokenizer, {"messages": make(w, rng)})
            rows.append((ids, len(ids) - ids[::-1].index(ASSISTANT)))
        out[name] = f"{sum(exact_rows(model, rows))}/{num}"
    return out


def by_group(questions, right):
    table = defaultdict(lambda: [0, 0])
    for q, ok in zip(questions, right):
        table[generate_text.GROUP_OF[q.kind]][0] += ok
        table[generate_text.GROUP_OF[q.kind]][1] += 1
    return dict(table)


@torch.no_grad()
def heldout_loss(model, tokenizer, num=200):
    """Mean loss per token of assistant turns and plain text that were not trained on, in nats; stories apart from answers."""
    sums = {"stories": [0.0, 0.0], "answers": [0.0, 0.0]}
    for i, doc in enumerate(generate_text.heldout_documents(SEED + 1, num)):
        ids, weights = encode(tokenizer, doc)
        x = torch.tensor([ids])
        loss = F.cross_entropy(model(input_ids=x[:, :-1]).logits[0].float(), x[0, 1:], reduction="none")
        mask = torch.tensor(weights[1:]) == 1.0
        total = sums["stories" if i % 4 < 2 else "answers"]
        total[0] += loss[mask].sum().item()
        total[1] += mask.sum().item()
    return {name: total / count for name, (total, count) in sums.items()}


# Training


def learning_rate(step):
    """Of the peak: a warm-up, constant for 40 %, straight to zero at the end of stage 2; the later stages start again from a third."""
    main = STAGES[1] + STAGES[2]
    if step < main:
        return min(1.0, (step + 1) / 25, (main - step) / (0.6 * main))
    first, num = (main, STAGES[3]) if step < main + STAGES[3] else (main + STAGES[3], STAGES[4])
    return min((step - first + 1) / 10, (first + num - step) / num) / 3


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal before it is applied, for the matrices of the layers.

    `torch.optim.Muon` is not used because it computes in bf16, which is slow on a CPU without bf16 units; this one stays in f32.
    Source: K. Jordan, "Muon" (2024); the scale 0.2·sqrt(max(rows, columns)), which lets it share AdamW's learning rate: arXiv:2502.16982.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.05):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                by_shape[p.shape].append((p, p.grad.lerp(buffer, group["momentum"])))
            for (rows, columns), pairs in by_shape.items():
                update = orthogonal(torch.stack([u for _, u in pairs]))
                for (p, _), u in zip(pairs, update):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(u, alpha=-group["lr"] * 0.2 * math.sqrt(max(rows, columns)))


def orthogonal(x):
    """The orthogonal matrix nearest to each of a stack of matrices, roughly: five Newton-Schulz steps."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


def train(args, tokenizer):
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config())
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    matrices = [p for n, p in model.named_parameters() if "layers" in n and p.ndim == 2]
    others = [p for n, p in model.named_parameters() if not ("layers" in n and p.ndim == 2)]
    optimizers = [Muon(matrices, lr=args.lr), torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0)]
    if args.adamw:
        optimizers = [torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.05)]
    watch = generate_text.World().split_heldout()[1][:300]
    steps = sum(STAGES.values())
    path, first, seconds = os.path.join(args.work, "checkpoint.pt"), 0, 0.0
    if os.path.exists(path):
        state = torch.load(path)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        first, seconds = state["step"], state["seconds"]
        print(f"continues at step {first}", flush=True)
    rows = chain.from_iterable(islice(token_stream(tokenizer, SEED + stage, stage), num * args.batch) for stage, num in STAGES.items())
    for _ in range(first * args.batch):
        next(rows)
    started, recent = time.time() - seconds, []
    saved = shown = time.time()
    for step in range(first, min(steps, args.stop or steps)):
        rate = args.lr * learning_rate(step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        batch = list(islice(rows, args.batch))
        ids = torch.from_numpy(np.array([i for i, _ in batch], dtype=np.int64))
        weights = torch.from_numpy(np.array([w for _, w in batch], dtype=np.float32)).flatten()
        logits = model(input_ids=ids[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (loss * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if (step + 1) % 20 == 0:
            print(f"step {step + 1}/{steps} loss {np.mean(recent):.4f} lr {rate:.2e} "
                  f"{20 * args.batch * CONTEXT / (time.time() - shown):.0f} tokens/s {time.time() - started:.0f} s", flush=True)
            recent, shown = [], time.time()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            right = exact(model, tokenizer, watch)
            weak = {g: f"{a}/{b}" for g, (a, b) in by_group(watch, right).items() if a < 0.9 * b}
            print(f"  held-out pairs (not the 100): {sum(right)}/{len(watch)}, weak: {weak}", flush=True)
        if time.time() - saved > 180 or step + 1 == steps:
            torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step + 1,
                        "seconds": time.time() - started}, path + ".new")
            os.replace(path + ".new", path)
            saved = time.time()
    return model


# Export


def export(model):
    from safetensors.torch import save_file

    # The output matrix is the embedding (tie_word_embeddings), so it is not written a second time.
    weights = {n: p.to(torch.bfloat16).contiguous() for n, p in model.state_dict().items() if n != "lm_head.weight"}
    save_file(weights, os.path.join(HERE, "model.safetensors"), metadata={"format": "pt"})
    os.chmod(os.path.join(HERE, "model.safetensors"), 0o644)
    write_json("config.json", {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": BOS,
        "eos_token_id": END, "head_dim": 32, "hidden_act": "silu", "hidden_size": 256, "initializer_range": 0.02,
        "intermediate_size": 512, "max_position_embeddings": 2048, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": 8, "num_hidden_layers": 4, "num_key_value_heads": 4, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": VOCAB_SIZE})
    write_json("generation_config.json", {"bos_token_id": BOS, "eos_token_id": END, "do_sample": False})


@torch.no_grad()
def evaluate():
    """The exported files, loaded by transformers in bf16 and in f32, answer the 100 questions by greedy generation."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(HERE)
    test, rest = generate_text.World().split_heldout()
    with open(os.path.join(HERE, "heldout_questions.json")) as f:
        assert [row["question"] for row in json.load(f)] == [q.text for q in test], "heldout_questions.json is of another generator"
    for dtype in (torch.bfloat16, torch.float32):
        model = AutoModelForCausalLM.from_pretrained(HERE, dtype=dtype).eval()
        right = []
        for q in test:
            x = tokenizer.apply_chat_template([{"role": "user", "content": q.text}], add_generation_prompt=True,
                                              return_tensors="pt", return_dict=True)
            out = model.generate(**x, max_new_tokens=96, do_sample=False, pad_token_id=END)
            answer = tokenizer.decode(out[0, x["input_ids"].shape[1]:], skip_special_tokens=True)
            right.append(answer == q.answer)
            if answer != q.answer:
                print(f"  {q.text!r}: {answer!r}, expected {q.answer!r}")
        print(f"{dtype}: {sum(right)} of {len(test)} held-out questions exact")
        for group, (ok, num) in by_group(test, right).items():
            print(f"  {group}: {ok}/{num}")
        inner = tokenizer.backend_tokenizer
        right = exact(model, inner, rest)
        print(f"  the other held-out pairs: {sum(right)} of {len(rest)}",
              {group: f"{ok}/{num}" for group, (ok, num) in by_group(rest, right).items()})
        print(f"  last answers of chats of several turns: {chats_exact(model, inner)}")
        print(f"  loss on held-out text: {heldout_loss(model, inner)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", default="/tmp/demo-model", help="folder of the checkpoint")
    parser.add_argument("--stop", type=int, help="stop after this step, for a trial")
    parser.add_argument("--batch", type=int, default=8, help=f"rows of {CONTEXT} tokens per step")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--adamw", action="store_true", help="AdamW for all parameters, for comparison")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export", action="store_true", help="do not train")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.makedirs(args.work, exist_ok=True)
    if not os.path.exists(os.path.join(HERE, "tokenizer.json")):
        train_tokenizer()
    tokenizer = Tokenizer.from_file(os.path.join(HERE, "tokenizer.json"))
    if args.export:
        model = LlamaForCausalLM(config())
        model.load_state_dict(torch.load(os.path.join(args.work, "checkpoint.pt"))["model"])
    else:
        model = train(args, tokenizer)
    if args.stop:
        return
    export(model)
    evaluate()


if __name__ == "__main__":
    main()
