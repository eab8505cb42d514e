"""A llama in plain torch with random weights and a static KV cache: what one would write to decode fast with torch alone.

A decoder layer is a function of tensors, so that `torch.compile` compiles it once for all layers of a model.
"""

import torch
from measuring import Task
from torch.nn import functional

EPSILON = 1e-5


class Llama:
    """Weights of one shape."""

    def __init__(self, task: Task) -> None:
        shape = task.shape
        self.shape = shape
        self.task = task
        kv = shape.kv_heads * shape.head_dim
        extents = {
            "qkv": (shape.hidden + 2 * kv, shape.hidden),
            "o": (shape.hidden, shape.hidden),
            "gate_up": (2 * shape.inter, shape.hidden),
            "down": (shape.hidden, shape.inter),
        }
        ones = torch.ones(shape.hidden, dtype=torch.bfloat16, device=task.device)
        self.layers = [
            {name: task.random(*extent) for name, extent in extents.items()} | {"norm": ones.clone(), "mlp_norm": ones.clone()}
            for _ in range(shape.layers)
        ]
        self.embedding = task.random(shape.vocab, shape.hidden)
        self.head = self.embedding if task.is_tied else task.random(shape.vocab, shape.hidden)
        self.norm = ones

    def caches(self, rows: int, context: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of every layer: rows, heads, positions, elements."""
        extent = (rows, self.shape.kv_heads, context, self.shape.head_dim)
        return [(self.task.random(*extent, deviation=1.0), self.task.random(*extent, deviation=1.0)) for _ in self.layers]

    def rotations(self, context: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of every position."""
        dim = self.shape.head_dim
        powers = torch.arange(0, dim, 2, device=self.task.device, dtype=torch.float32) / dim
        angles = torch.outer(torch.arange(context, device=self.task.device, dtype=torch.float32), self.shape.rope_theta**-powers)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().bfloat16(), angles.sin().bfloat16()


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)).to(x.dtype) * weight


def rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """`x`: .., heads, elements; the halves of a head belong together."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines


def project(x: torch.Tensor, layer: dict, kv_heads: int, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v of rows: rows, heads, elements."""
    qkv = functional.linear(norm(x, layer["norm"]), layer["qkv"]).unflatten(-1, (-1, dim))
    return qkv.split((qkv.shape[-2] - 2 * kv_heads, kv_heads, kv_heads), dim=-2)


def finish(x: torch.Tensor, attended: torch.Tensor, layer: dict) -> torch.Tensor:
    """The rest of a layer after attention."""
    x = x + functional.linear(attended.flatten(-2), layer["o"])
    gate, up = functional.linear(norm(x, layer["mlp_norm"]), layer["gate_up"]).chunk(2, dim=-1)
    return x + functional.linear(functional.silu(gate) * up, layer["down"])


def attend_to_cache(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """One query a row to all its positions. Heads that share keys are queries of one head, so that keys are read once."""
    queries = q.unflatten(1, (k.shape[1], -1))
    return functional.scaled_dot_product_attention(queries, k, v).flatten(1, 2)


def decode_layer(x, layer: dict, k_cache, v_cache, position, cosines, sines):
    """`x`: rows, hidden. All rows are at `position`, the cache's last."""
    q, k, v = project(x, layer, k_cache.shape[1], k_cache.shape[-1])
    cosine, sine = cosines[position], sines[position]
    k_cache.index_copy_(2, position, rotate(k, cosine, sine).unsqueeze(2))
    v_cache.index_copy_(2, position, v.unsqueeze(2))
    return finish(x, attend_to_cache(rotate(q, cosine, sine), k_cache, v_cache), layer)


def prefill_layer(x, layer: dict, k_cache, v_cache, cosines, sines):
    """`x`: positions, hidden, of one prompt that fills the cache."""
    q, k, v = project(x, layer, k_cache.shape[1], k_cache.shape[-1])
    cosines, sines = cosines.unsqueeze(1), sines.unsqueeze(1)
    k_cache.copy_(rotate(k, cosines, sines).transpose(0, 1).unsqueeze(0))
    v_cache.copy_(v.transpose(0, 1).unsqueeze(0))
    q = rotate(q, cosines, sines).transpose(0, 1).unsqueeze(0)
    attended = functional.scaled_dot_product_attention(q, k_cache, v_cache, is_causal=True, enable_gqa=True)
    return finish(x, attended.squeeze(0).transpose(0, 1), layer)


def choose(x, weight, head):
    """The likeliest token of each row."""
    return functional.linear(norm(x, weight), head).argmax(-1)


class Loop:
    """Layers and the choice of tokens, as they are or compiled."""

    def __init__(self, model: Llama, compile=lambda function: function) -> None:
        self.model = model
        self.decode_layer, self.prefill_layer, self.choose = map(compile, (decode_layer, prefill_layer, choose))

    def decoder(self, rows: int, context: int):
        """A step of `rows` rows that makes their next tokens from their last ones, again and again at the last of `context` positions."""
        model, task = self.model, self.model.task
        caches, (cosines, sines) = model.caches(rows, context), model.rotations(context)
        position = torch.tensor([context - 1], device=task.device)
        tokens = torch.randint(model.shape.vocab, (rows,), device=task.device)

        def step() -> None:
            x = functional.embedding(tokens, model.embedding)
            for layer, (k, v) in zip(model.layers, caches, strict=True):
                x = self.decode_layer(x, layer, k, v, position, cosines, sines)
            tokens.copy_(self.choose(x, model.norm, model.head))

        return step

    def prefill(self, length: int):
        """A step that computes a prompt and its first token."""
        model, task = self.model, self.model.task
        caches, (cosines, sines) = model.caches(1, length), model.rotations(length)
        ids = torch.randint(model.shape.vocab, (length,), device=task.device)

        def step() -> None:
            x = functional.embedding(ids, model.embedding)
            for layer, (k, v) in zip(model.layers, caches, strict=True):
                x = self.prefill_layer(x, layer, k, v, cosines, sines)
            self.choose(x[-1:], model.norm, model.head)

        return step
