"""Models of real shapes with seeded random weights: `python models.py SHAPE FOLDER`.

Speed does not depend on what weights say, so that nothing has to be downloaded. A folder has what this server and transformers
load (config.json, tokenizer.json, model.safetensors in bf16), and `gguf/bf16.gguf` with the same bits for llama.cpp, from which
`workers/llama_cpp_worker.py` makes the quantised ones.

Weights are normal with a standard deviation of 0.02, as models are initialised: activations stay near one through all layers,
and the largest logit leads by more than what rounding to bf16 moves, so that engines can be compared by their greedy tokens.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

# Raised when the files of a shape and seed change: older ones are then made anew.
VERSION = 1
SEED = 1
DEVIATION = 0.02


@dataclass(frozen=True)
class Shape:
    """A Llama-architecture model with tied embeddings."""

    title: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inter: int
    vocab: int
    context: int
    rope_theta: float
    rope_scaling: dict | None = None

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of the linears of a layer, by their names in checkpoints."""
        kv = self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.inter, self.hidden),
            "mlp.up_proj": (self.inter, self.hidden),
            "mlp.down_proj": (self.hidden, self.inter),
        }

    @property
    def layer_parameters(self) -> int:
        """Of the linears of all layers."""
        return self.layers * sum(n * k for n, k in self.matrices.values())

    @property
    def parameters(self) -> int:
        """What a decode step reads: all linears, and the embedding once, as the output layer."""
        return self.layer_parameters + self.vocab * self.hidden

    def prefill_flops(self, tokens: int) -> int:
        """Of one prompt: linears, causal attention (half of the square), and logits of the last token only."""
        attention = 2 * tokens * (tokens + 1) * self.hidden * self.layers
        return 2 * tokens * self.layer_parameters + attention + 2 * self.vocab * self.hidden

    def config(self) -> dict:
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inter,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context,
            "vocab_size": self.vocab,
            "rms_norm_eps": 1e-5,
            "rope_theta": self.rope_theta,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "eos_token_id": self.vocab - 1,
        }
        return config | ({"rope_scaling": self.rope_scaling} if self.rope_scaling else {})


SHAPES = {
    "135m": Shape("SmolLM2-135M", 576, 30, 9, 3, 1536, 49152, 8192, 100000.0),
    "1b": Shape(
        "Llama-3.2-1B",
        2048,
        16,
        32,
        8,
        8192,
        128256,
        131072,
        500000.0,
        {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
}


def folder(root: Path, name: str) -> Path:
    """Where the files of a shape are kept."""
    return root / f"{name}-v{VERSION}-seed{SEED}"


def make(shape: Shape, path: Path) -> None:
    """Writes all files, the marker `complete` last."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "gguf").mkdir(exist_ok=True)
    write_json = lambda name, value: (path / name).write_text(json.dumps(value), "utf-8")  # noqa: E731
    write_json("config.json", shape.config())
    write_json("tokenizer.json", tokenizer(shape.vocab))
    write_json("tokenizer_config.json", {"eos_token": "<|end|>"})
    tensors = weights(shape)
    write_safetensors(path / "model.safetensors", tensors)
    write_gguf(path / "gguf" / "bf16.gguf", shape, tensors)
    (path / "complete").write_text("", "utf-8")


def weights(shape: Shape) -> dict:
    """The tensors by name, as the bits of bf16."""
    import numpy as np

    random = np.random.default_rng(SEED)

    def matrix(rows, columns):
        values = random.standard_normal((rows, columns), dtype=np.float32) * np.float32(DEVIATION)
        # To nearest; ties, one in 65536, go up.
        return ((values.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16)

    def ones():
        return np.full(shape.hidden, 0x3F80, dtype=np.uint16)

    tensors = {"model.embed_tokens.weight": matrix(shape.vocab, shape.hidden), "model.norm.weight": ones()}
    # The logit of the end token is zero, never the largest: no reply ends before its length.
    tensors["model.embed_tokens.weight"][-1] = 0
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = ones()
        tensors[prefix + "post_attention_layernorm.weight"] = ones()
        for name, (rows, columns) in shape.matrices.items():
            tensors[f"{prefix}{name}.weight"] = matrix(rows, columns)
    return tensors


def write_safetensors(path: Path, tensors: dict) -> None:
    """The file format: length of the header (u64), header (JSON), values."""
    header, end = {}, 0
    for name, values in tensors.items():
        start, end = end, end + values.nbytes
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    # Values begin at a multiple of 64, as writers of real checkpoints see to.
    text += b" " * (-(len(text) + 8) % 64)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(values.data)


def write_gguf(path: Path, shape: Shape, tensors: dict) -> None:
    """The same bits under llama.cpp's names."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(shape.title)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inter)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    # Token ids only.
    writer.add_tokenizer_model("none")
    for name, values in tensors.items():
        name = gguf_name(name)
        if values.ndim == 1:
            widened = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
            writer.add_tensor(name, widened)
            continue
        for part, heads in (("attn_q", shape.heads), ("attn_k", shape.kv_heads)):
            if part in name:
                # llama.cpp rotates neighbours of a head, checkpoints its halves.
                halves = values.reshape(heads, 2, shape.head_dim // 2, shape.hidden)
                values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
        writer.add_tensor(name, values.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    if shape.rope_scaling:
        writer.add_tensor("rope_freqs.weight", np.array(rope_divisors(shape), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers.": "blk.",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for theirs in sorted(names, key=len, reverse=True):
        name = name.replace(theirs, names[theirs])
    return name


def rope_divisors(shape: Shape) -> list[float]:
    """By what llama3's scaling divides each frequency: nothing for short waves, the factor for long ones, a blend between."""
    scaling = shape.rope_scaling
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    divisors = []
    for pair in range(shape.head_dim // 2):
        wave_length = 2 * math.pi * shape.rope_theta ** (2 * pair / shape.head_dim)
        turns = scaling["original_max_position_embeddings"] / wave_length
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        divisors.append(1 / ((1 - share) / scaling["factor"] + share))
    return divisors


def tokenizer(vocab: int) -> dict:
    """One token per byte in the alphabet of GPT-2; all other ids, which no text becomes, read `t1234`."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    tokens = {chr(byte if byte in printable else next(moved)): byte for byte in range(256)}
    tokens |= {f"\u0120t{number}": number for number in range(256, vocab - 1)}
    flags = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [{"id": vocab - 1, "content": "<|end|>", **flags}],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": tokens, "merges": []},
    }


if __name__ == "__main__":
    make(SHAPES[sys.argv[1]], Path(sys.argv[2]))
