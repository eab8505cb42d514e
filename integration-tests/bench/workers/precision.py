"""In which precision torch multiplies matrices fastest here."""

from time import perf_counter

import torch


def fastest() -> torch.dtype:
    """bfloat16, which is what the weights are, unless this processor computes float32 much faster, as those do whose
    instructions know no bfloat16: there nobody would serve a model in it."""
    return torch.bfloat16 if gemm(torch.bfloat16, 512, 1024, 1024) > gemm(torch.float32, 512, 1024, 1024) / 2 else torch.float32


def gemm(dtype: torch.dtype, m: int, n: int, k: int) -> float:
    """FLOPs per second of one of torch's linears, the best of three."""
    x = torch.randn(m, k).to(dtype)
    linear = torch.nn.Linear(k, n, bias=False, dtype=dtype)
    best = 0.0
    with torch.inference_mode():
        linear(x)
        for _ in range(3):
            start = perf_counter()
            linear(x)
            best = max(best, 2 * m * n * k / (perf_counter() - start))
    return best
