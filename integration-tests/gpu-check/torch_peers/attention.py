"""Attention of decoding rows by torch's SDPA: the fastest of its kernels, each row with keys and values of its own."""

import sys

import torch
from llama import attend_to_cache
from measuring import Task, graph, seconds_of, skip
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}

ROTATED_BYTES = 512 << 20
MOST_COPIES = 64


def bytes_read(task: Task, rows: int) -> int:
    """Keys and values of one layer."""
    return 2 * 2 * rows * task.shape.kv_heads * task.context * task.shape.head_dim


def seconds_by_backend(task: Task, rows: int) -> dict[str, float]:
    shape = task.shape
    q = task.random(rows, shape.heads, shape.head_dim, deviation=1.0)
    # More than the caches hold, as a model's layers take turns.
    copies = min(ROTATED_BYTES // bytes_read(task, rows) + 1, MOST_COPIES) if task.is_cuda else 1
    extent = (rows, shape.kv_heads, task.context, shape.head_dim)
    caches = [(task.random(*extent, deviation=1.0), task.random(*extent, deviation=1.0)) for _ in range(copies)]
    found = {}
    for name, backend in BACKENDS.items():

        def step(backend=backend) -> None:
            with sdpa_kernel(backend):
                for k, v in caches:
                    attend_to_cache(q, k, v)

        try:
            found[name] = seconds_of(task, graph(task, step)) / copies
        except RuntimeError:
            # It does not take these extents, or is not built for this device.
            continue
    return found


@torch.inference_mode()
def main() -> None:
    task = Task(sys.argv[1])
    for rows in task.rows:
        name = f"torch/{task.shape_name}/attention/{rows}/{task.context}"
        if name in task.have:
            continue
        found = seconds_by_backend(task, rows)
        if not found:
            skip("no kernel of SDPA takes these extents")
            continue
        how = min(found, key=found.get)
        task.add(name, seconds=found[how], bytes=bytes_read(task, rows), how=how)


if __name__ == "__main__":
    main()
