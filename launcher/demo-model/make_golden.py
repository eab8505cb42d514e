"""Writes golden.json: what transformers computes from the exported bf16 weights in float32, for other programs to be held against.

For each prompt: its text and token ids, the 20 largest logits after its last token, and 48 greedy tokens with the log-probability of
each and the margin of its logit over the runner-up. Where a margin is small, another order of summation may choose otherwise; such a
token is not a bug. Generation goes on past the end-of-turn token, so that every case has 48 tokens.

    python make_golden.py
"""

import json
import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
NUM_TOKENS = 48
NUM_LOGITS = 20

CASES = [
    ("chat", [{"role": "user", "content": "What is the capital of France?"}]),
    ("chat", [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "Hello!"},
              {"role": "assistant", "content": "Hello! How can I help you today?"}, {"role": "user", "content": "What is 3 plus 4?"}]),
    ("chat", [{"role": "user", "content": "Tell me a story about a fox."}]),
    ("chat", [{"role": "user", "content": "Qué es aprendizaje profundo? 🦊"}]),
    ("plain", "Once upon a time"),
    ("plain", "What is Deep Learning?"),
    ("plain", "Count from 1 to 20."),
]


@torch.no_grad()
def golden(model, tokenizer, kind, prompt):
    if kind == "chat":
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        text, ids = prompt, tokenizer(prompt)["input_ids"]
    case = {"kind": kind, "messages" if kind == "chat" else "inputs": prompt, "text": text, "input_ids": ids}
    tokens = list(ids)
    case["greedy_ids"], case["greedy_logprobs"], case["greedy_margins"] = [], [], []
    for _ in range(NUM_TOKENS):
        # The whole sequence again for each token: slow, but without a cache there is nothing to get wrong.
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
        top = logits.topk(NUM_LOGITS)
        if len(tokens) == len(ids):
            case["top_ids"], case["top_logits"] = top.indices.tolist(), [round(v, 5) for v in top.values.tolist()]
        token = top.indices[0].item()
        case["greedy_ids"].append(token)
        case["greedy_logprobs"].append(round(logits.log_softmax(-1)[token].item(), 5))
        case["greedy_margins"].append(round((top.values[0] - top.values[1]).item(), 5))
        tokens.append(token)
    case["greedy_text"] = tokenizer.decode(case["greedy_ids"], skip_special_tokens=False)
    return case


def main():
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    model = AutoModelForCausalLM.from_pretrained(HERE, dtype=torch.float32, attn_implementation="eager").eval()
    cases = [golden(model, tokenizer, kind, prompt) for kind, prompt in CASES]
    with open(os.path.join(HERE, "golden.json"), "w") as f:
        f.write("[\n" + ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
