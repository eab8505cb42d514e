#!/usr/bin/env python3
"""Makes the golden models beside this file: tiny random checkpoints and what transformers computes from them.

    python make_goldens.py            # needs torch and transformers; the tests need neither
    python make_goldens.py gemma      # only those whose names begin so

Each case is written twice. `<case>-f32` spells config.json as transformers 5 does (`rope_parameters`, `dtype`).
`<case>-bf16` spells it as older versions did (`rope_theta`, `rope_scaling`, `torch_dtype`) and is computed in bfloat16
throughout. golden.json holds, for one prompt: the logits of some prefill positions, and 32 greedy tokens with logprob and
margin (distance to the second-best logit).

A random model's best two tokens may lie closer together than rounding reaches, so that either is right. The prompt is
therefore chosen, out of BATCHES * BATCH, by its least margin; for bfloat16 by the lesser of the margins with activations in
bfloat16 (which transformers rounds) and in float32 (which we keep). `noise` in golden.json is the largest difference of
logits between the two, and `exact_logits` are those in float32.

A router's choice is as close: the same holds for the distance between the last expert that it takes and the first that it leaves.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

HERE = Path(__file__).parent
PROMPT_TOKENS, NEW_TOKENS = 40, 32
PREFILL_POSITIONS = [0, 1, 17, PROMPT_TOKENS - 1]
BATCHES, BATCH = 4, 256
# Twice what rounding keys and values to bfloat16 moves a logit, the only rounding beside the weights' that we share.
MIN_MARGIN = 0.03

# Widths small enough for 300 KB, heads enough for four ranks. An initialiser ten times the usual spreads the logits.
COMMON = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=256,
    max_position_embeddings=640,
    initializer_range=0.25,
    bos_token_id=1,
    eos_token_id=2,
    tie_word_embeddings=False,
)


def rope(kind, **parameters):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=10000.0, **parameters))


CASES = {
    # Grouped queries, tied embeddings, Llama 3.1's scaling; a vocabulary that four ranks cannot share evenly.
    "llama-llama3": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(
            vocab_size=259,
            tie_word_embeddings=True,
            **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
        ),
    ),
    # Every bias there is.
    "llama-bias-linear": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(attention_bias=True, mlp_bias=True, num_key_value_heads=4, **rope("linear", factor=2.5)),
    ),
    # One KV head: replicated on every rank.
    "llama-yarn": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(num_key_value_heads=1, **rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    ),
    # The prompt fits into the original 48 positions, the answer goes beyond them.
    "llama-dynamic": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(max_position_embeddings=48, **rope("dynamic", factor=2.0)),
    ),
    # A window shorter than the prompt; heads wider than hidden_size / heads.
    "mistral-window": (
        MistralForCausalLM,
        MistralConfig,
        dict(sliding_window=12, head_dim=16, **rope("default")),
    ),
    # Bias on q, k, v; tied; a window from the second of three layers on.
    "qwen2-bias": (
        Qwen2ForCausalLM,
        Qwen2Config,
        dict(
            num_hidden_layers=3,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=20,
            max_window_layers=1,
            **rope("default"),
        ),
    ),
    # QK-norm, explicit head_dim, eight heads.
    "qwen3-qk-norm": (
        Qwen3ForCausalLM,
        Qwen3Config,
        dict(num_attention_heads=8, num_key_value_heads=4, head_dim=8, **rope("default")),
    ),
    # Norms that multiply by one more, embeddings that are scaled, GELU of a tanh; one KV head.
    "gemma-tied": (
        GemmaForCausalLM,
        GemmaConfig,
        dict(num_key_value_heads=1, head_dim=16, tie_word_embeddings=True, **rope("default")),
    ),
    # Norms behind every block, scores and logits that level off, a scale of its own; every other layer has a window. With a tied
    # head, it would only repeat itself.
    "gemma2-softcap": (
        Gemma2ForCausalLM,
        Gemma2Config,
        dict(
            num_hidden_layers=3,
            head_dim=16,
            query_pre_attn_scalar=24,
            attn_logit_softcapping=4.0,
            final_logit_softcapping=6.0,
            sliding_window=12,
            **rope("default"),
        ),
    ),
    # Two kinds of positions, QK-norm; an untied head.
    "gemma3-two-ropes": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        dict(
            num_hidden_layers=3,
            head_dim=16,
            query_pre_attn_scalar=20,
            sliding_window=12,
            sliding_window_pattern=2,
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", rope_theta=40000.0, factor=2.0),
                sliding_attention=dict(rope_type="default", rope_theta=500.0),
            ),
        ),
    ),
    # LayerNorm, an MLP without a gate, GELU of an erf, every bias there is; a window.
    "starcoder2-window": (
        Starcoder2ForCausalLM,
        Starcoder2Config,
        dict(hidden_act="gelu", tie_word_embeddings=True, sliding_window=12, **rope("default")),
    ),
    # Experts in every layer, whose weights sum to one; a window.
    "mixtral-window": (
        MixtralForCausalLM,
        MixtralConfig,
        dict(
            intermediate_size=32,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=24,
            **rope("default"),
        ),
    ),
    # Experts around a dense layer, weights that sum to less than one, an intermediate width of six a rank.
    "qwen3-moe-mixed": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        dict(
            num_hidden_layers=3,
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=24,
            mlp_only_layers=[1],
            norm_topk_prob=False,
            head_dim=8,
            **rope("default"),
        ),
    ),
}


@torch.no_grad()
def randomise(model, seed):
    """What initialisation leaves at 0 or 1 (biases, norms) would hide a missing addition or product."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.copy_(0.3 * noise)
        elif "norm" in name:
            # Gemma's norms multiply by one more than their weight.
            parameter.copy_(0.2 * noise + (0.0 if model.config.model_type.startswith("gemma") else 1.0))
        elif "embed_tokens" in name:
            # Rows of length ~1; tied heads would otherwise only repeat the last token.
            parameter.copy_(0.25 * noise)
        elif name.endswith("mlp.gate.weight"):
            parameter.copy_(0.5 * noise)


@torch.no_grad()
def run(model, prompts, ids=None):
    """Prefill logits, each step's logits and tokens of a batch of prompts, with the key-value cache as in generate().

    With `ids`, those tokens are fed instead of the most likely ones.
    """
    output = model(input_ids=prompts, use_cache=True)
    prefill, steps, tokens = output.logits.float(), [], []
    for step in range(NEW_TOKENS):
        steps.append(output.logits[:, -1].float())
        tokens.append(steps[-1].argmax(-1) if ids is None else ids[:, step])
        if step + 1 < NEW_TOKENS:
            fed = tokens[-1][:, None]
            output = model(input_ids=fed, past_key_values=output.past_key_values, use_cache=True)
    return prefill, torch.stack(steps, 1), torch.stack(tokens, 1)


def margins(steps, ids):
    """How far the chosen token's logit is above the best other one; negative if it is not the best."""
    chosen = steps.gather(-1, ids[..., None])[..., 0]
    return chosen - steps.scatter(-1, ids[..., None], float("-inf")).amax(-1)


class RouterGaps:
    """Of every row of a batch, the least distance that a router leaves between the experts that it takes and the others."""

    def __init__(self, model):
        self.least = torch.full((BATCH,), float("inf"))
        routers = [module for module in model.modules() if type(module).__name__.endswith("TopKRouter")]
        self.hooks = [router.register_forward_hook(self.see) for router in routers]

    def see(self, router, _inputs, outputs):
        best = outputs[0].float().topk(router.top_k + 1, dim=-1).values
        gaps = (best[:, -2] - best[:, -1]).reshape(BATCH, -1).amin(1)
        self.least = torch.minimum(self.least, gaps)

    def end(self):
        for hook in self.hooks:
            hook.remove()
        return self.least


def find_prompt(model, reference, seed):
    """The prompt whose least margin is largest, in both precisions."""
    generator = torch.Generator().manual_seed(seed)
    best = (0.0, None)
    # A hundred choices of routers are seldom all clear.
    has_routers = getattr(model.config, "num_experts_per_tok", None) is not None
    for _ in range(BATCHES * 4 if has_routers else BATCHES):
        prompts = torch.randint(3, model.config.vocab_size, (BATCH, PROMPT_TOKENS), generator=generator)
        gaps = RouterGaps(model)
        _, steps, ids = run(model, prompts)
        score = torch.minimum(margins(steps, ids).amin(1), gaps.end())
        if model is not reference:
            gaps = RouterGaps(reference)
            _, exact, _ = run(reference, prompts, ids)
            score = torch.minimum(score, torch.minimum(margins(exact, ids).amin(1), gaps.end()))
        for row in range(BATCH):
            # Fewer than eight different tokens would make a test that a stuck model passes.
            if len(set(ids[row].tolist())) >= 8 and float(score[row]) > best[0]:
                best = (float(score[row]), prompts[row : row + 1])
    return best


def to_old_spelling(config_file):
    config = json.loads(config_file.read_text())
    rope = config.pop("rope_parameters")
    if config["model_type"] == "gemma":
        # What is meant is the one of a tanh.
        config["hidden_act"] = "gelu"
    if config["model_type"].startswith(("gemma2", "gemma3")):
        layer_types = config.pop("layer_types")
        config["sliding_window_pattern"] = layer_types.index("full_attention") + 1
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    # "type" is older still, and older than Gemma 3.
    is_older = config["model_type"] != "gemma3_text"
    if is_older and config["rope_scaling"] and config["rope_scaling"]["rope_type"] in ("linear", "dynamic"):
        config["rope_scaling"]["type"] = config["rope_scaling"].pop("rope_type")
    config_file.write_text(json.dumps(config, indent=2) + "\n")


def rounded(values):
    return [float(f"{value:.8g}") for value in values.tolist()]


def make(case, precision, seed):
    model_class, config_class, overrides = CASES[case]
    directory = HERE / f"{case}-{precision}"
    shutil.rmtree(directory, ignore_errors=True)
    torch.manual_seed(seed)
    model = model_class(config_class(**{**COMMON, **overrides}))
    randomise(model, seed)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]
    model.to(dtype).save_pretrained(directory)
    if precision == "bf16":
        to_old_spelling(directory / "config.json")

    load = lambda dtype: model_class.from_pretrained(directory, dtype=dtype, attn_implementation="eager").eval()
    reference = load(torch.float32)
    model = reference if precision == "f32" else load(dtype)
    margin, prompt = find_prompt(model, reference, seed)
    assert margin >= MIN_MARGIN, f"{directory.name}: margin {margin}"
    prefill, steps, ids = run(model, prompt)
    exact_prefill, exact_steps, _ = run(reference, prompt, ids)
    noise = max(float((prefill - exact_prefill).abs().max()), float((steps - exact_steps).abs().max()))
    prompt, prefill, steps, ids = prompt[0].tolist(), prefill[0], steps[0], ids[0].tolist()
    logprobs = steps.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
    golden = dict(
        made_with=dict(transformers=transformers.__version__, torch=torch.__version__),
        dtype=str(dtype).removeprefix("torch."),
        seed=seed,
        noise=noise,
        prompt_ids=prompt,
        prefill=[
            dict(position=at, logits=rounded(prefill[at]), exact_logits=rounded(exact_prefill[0, at]))
            for at in PREFILL_POSITIONS
        ],
        greedy=dict(ids=ids, logprobs=rounded(logprobs), margins=rounded(margins(steps[None], torch.tensor([ids]))[0]), last_logits=rounded(steps[-1])),
    )
    (directory / "golden.json").write_text(json.dumps(golden) + "\n")
    size = sum(file.stat().st_size for file in directory.iterdir())
    print(
        f"{directory.name:24} {size:7} bytes, least margin {margin:.4f}, noise {noise:.4f}, "
        f"{len(set(ids))} different tokens, logits' deviation {float(steps.std()):.2f}",
        flush=True,
    )
    assert size <= 300_000, f"{directory.name} has {size} bytes"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for seed, case in enumerate(CASES, start=1):
        if not case.startswith(tuple(sys.argv[1:]) or ""):
            continue
        for precision in ("f32", "bf16"):
            make(case, precision, seed)
