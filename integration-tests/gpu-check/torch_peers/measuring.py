"""What the scripts of torch peers share: their task, their figures on stdout, CUDA graphs, and the time of a run.

A script takes one argument, its task as JSON (`peers.py` says what is in it), and prints a line of JSON for every figure.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

FOLDER = Path(__file__).parent.parent
# After the standard library and torch, whose names they must not take.
sys.path += [str(FOLDER), str(FOLDER.parent / "bench")]

# The clocks are up after so long; a median is taken over at least so many runs, and over no longer than so long once there are a few.
WARM_UP_SECONDS = 0.3
LEAST_RUNS, FEW_RUNS, MOST_SECONDS = 30, 5, 2.0


class Task:
    """What to measure."""

    def __init__(self, argument: str) -> None:
        entries = json.loads(argument)
        self.shape_name = entries["shape"]
        self.is_cuda = entries["device"] == "cuda"
        self.device = torch.device(entries["device"])
        self.rows = entries["rows"]
        self.context = entries["context"]
        self.prompts = entries["prompts"]
        self.is_quick = entries["is_quick"]
        self.request = entries["request"]
        self.streams = entries["streams"]
        self.have = set(entries["have"])
        if self.is_cuda and not torch.cuda.is_available():
            skip("torch sees no GPU")
            sys.exit()
        torch.manual_seed(1)

    @property
    def shape(self):
        import checkpoint

        return checkpoint.SHAPES[self.shape_name]

    @property
    def is_tied(self) -> bool:
        import checkpoint

        return self.shape_name in checkpoint.TIED

    def random(self, *extent: int, deviation: float = 0.02, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """Never zeros, on which GPUs multiply faster."""
        return torch.empty(extent, dtype=dtype, device=self.device).normal_(0, deviation)

    def add(self, name: str, **figure) -> None:
        print(json.dumps({"name": name} | figure), flush=True)


def skip(why: str) -> None:
    print(json.dumps({"skipped": why}), flush=True)


def graph(task: Task, step: Callable[[], object]) -> Callable[[], object]:
    """The step as a CUDA graph; on a processor, as it is."""
    if not task.is_cuda:
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        step()
    return captured.replay


def seconds_of(task: Task, run: Callable[[], object]) -> float:
    """The median time of a run, by the GPU's own clock."""
    one = seconds_by_events if task.is_cuda else seconds_by_clock
    start = time.monotonic()
    one(run)
    while task.is_cuda and time.monotonic() - start < WARM_UP_SECONDS:
        one(run)
    runs, start = [], time.monotonic()
    while len(runs) < LEAST_RUNS and (len(runs) < FEW_RUNS or time.monotonic() - start < MOST_SECONDS):
        runs.append(one(run))
    return median(runs)


def seconds_by_events(run: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def seconds_by_clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
