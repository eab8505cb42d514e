"""`F.linear` (cuBLAS) with the linear layers of a shape, one by one, with more weights than any cache holds."""

import sys
from itertools import cycle, islice

import torch
from measuring import Task, graph, seconds_of
from torch.nn import functional

# As in `shard/examples/gpu_check/linears.rs`.
ROTATED_BYTES = 512 << 20
PRODUCTS = 20


def layers(shape) -> dict[str, tuple[int, int]]:
    """Outputs and inputs, multiplied together as this server does."""
    kv = shape.kv_heads * shape.head_dim
    return {
        "qkv": (shape.hidden + 2 * kv, shape.hidden),
        "o": (shape.hidden, shape.hidden),
        "gate_up": (2 * shape.inter, shape.hidden),
        "down": (shape.hidden, shape.inter),
        "head": (shape.vocab, shape.hidden),
    }


@torch.inference_mode()
def main() -> None:
    task = Task(sys.argv[1])
    for layer, (n, k) in layers(task.shape).items():
        copies = min(ROTATED_BYTES // (2 * n * k), PRODUCTS - 1) + 1 if task.is_cuda else 2
        weights = [task.random(n, k) for _ in range(copies)]
        for rows in task.rows:
            name = f"torch/{task.shape_name}/linear/{layer}/{rows}"
            if name in task.have:
                continue
            x = task.random(rows, k, deviation=1.0)

            def step(x=x, weights=weights) -> None:
                for weight in islice(cycle(weights), PRODUCTS):
                    functional.linear(x, weight)

            seconds = seconds_of(task, graph(task, step)) / PRODUCTS
            task.add(name, seconds=seconds, bytes=2 * (n * k + rows * (n + k)), flops=2 * rows * n * k)


if __name__ == "__main__":
    main()
