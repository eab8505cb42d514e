"""What this GPU does at most: bytes copied and only read, products in bfloat16 and fp8, and what a kernel in a graph costs by itself."""

import sys

import torch
from measuring import Task, graph, seconds_of, skip

# Kernels in the graph whose time by kernel is the least a kernel takes.
TINY_KERNELS = 100


def copy(task: Task) -> None:
    elements = (4 << 30 if task.is_cuda else 4 << 20) // 4
    source = task.random(elements, dtype=torch.float32)
    target = torch.empty_like(source)
    seconds = seconds_of(task, lambda: target.copy_(source))
    task.add("ceiling/copy", per_second=2 * 4 * elements / seconds)


def read(task: Task) -> None:
    """The best of two reductions; they write next to nothing."""
    elements = (8 << 30 if task.is_cuda else 4 << 20) // 4
    source = task.random(elements, dtype=torch.float32)
    # By rows, so that all multiprocessors have one.
    rows = source.view(-1, elements // 4096)
    seconds = min(seconds_of(task, lambda: source.sum()), seconds_of(task, lambda: rows.amax(dim=1)))
    task.add("ceiling/read", per_second=4 * elements / seconds)


def product(task: Task) -> None:
    n = 8192 if task.is_cuda else 256
    a, b = task.random(n, n, deviation=1.0), task.random(n, n, deviation=1.0)
    out = torch.empty(n, n, dtype=a.dtype, device=task.device)
    task.add("ceiling/gemm_bf16", per_second=2 * n**3 / seconds_of(task, lambda: torch.mm(a, b, out=out)))


def product_fp8(task: Task) -> None:
    """One scale for each matrix."""
    n = 8192
    a = task.random(n, n, deviation=1.0).to(torch.float8_e4m3fn)
    b = task.random(n, n, deviation=1.0).to(torch.float8_e4m3fn).t()
    one = torch.ones((), device=task.device)
    multiply = lambda: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)  # noqa: E731
    task.add("ceiling/gemm_fp8", per_second=2 * n**3 / seconds_of(task, multiply))


def launch(task: Task) -> None:
    x = task.random(1)

    def step() -> None:
        for _ in range(TINY_KERNELS):
            x.mul_(1.0)

    task.add("ceiling/kernel", seconds=seconds_of(task, graph(task, step)) / TINY_KERNELS)


@torch.inference_mode()
def main() -> None:
    task = Task(sys.argv[1])
    parts = {"copy": copy, "read": read, "gemm_bf16": product, "gemm_fp8": product_fp8, "kernel": launch}
    for name, measure in parts.items():
        if f"ceiling/{name}" in task.have or (name == "gemm_fp8" and not task.is_cuda):
            continue
        try:
            measure(task)
        except (RuntimeError, AttributeError) as error:
            if name != "gemm_fp8":
                raise
            # Not every GPU and build of torch has it.
            skip(f"torch._scaled_mm: {str(error).splitlines()[0]}")
        if task.is_cuda:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
