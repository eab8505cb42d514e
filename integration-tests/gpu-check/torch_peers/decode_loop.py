"""Decode steps and prompts of `llama.py` as CUDA graphs: first as torch runs them, then compiled; which is faster is the peer.

Compiled comes second: it takes long, and what a time limit cuts off is then not all.
"""

import sys

import torch
from llama import Llama, Loop
from measuring import Task, graph, seconds_of, skip

EAGER, COMPILED = "eager", "compiled"
# Kernels are chosen by timing them; the graph of a whole step is ours.
COMPILE_MODE = "max-autotune-no-cudagraphs"


def compiled(function):
    return torch.compile(function, mode=COMPILE_MODE, dynamic=False, fullgraph=True)


def measure(task: Task, name: str, step, is_graph: bool) -> None:
    """A prompt is long enough to hide its launches, and its memory is not doubled by a graph."""
    run = graph(task, step) if is_graph else step
    task.add(name, seconds=seconds_of(task, run))
    del run
    if task.is_cuda:
        torch.cuda.empty_cache()


@torch.inference_mode()
def main() -> None:
    task = Task(sys.argv[1])
    model = Llama(task)
    # A kind of step for every number of rows and every length.
    torch._dynamo.config.recompile_limit = 64
    for how, loop in ((EAGER, Loop(model)), (COMPILED, Loop(model, compiled))):
        prefix = f"torch/{task.shape_name}"
        steps = [(f"{prefix}/decode/{rows}/{task.context}/{how}", loop.decoder, (rows, task.context), True) for rows in task.rows]
        steps += [(f"{prefix}/prefill/{length}/{how}", loop.prefill, (length,), False) for length in task.prompts]
        for name, make, arguments, is_graph in steps:
            if name in task.have:
                continue
            try:
                measure(task, name, make(*arguments), is_graph)
            except Exception as error:  # noqa: BLE001
                if how == EAGER:
                    raise
                # torch's compiler has many ways to fail on a machine that lacks a part of it; the eager figures stand.
                skip(f"{name}: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}")
                return


if __name__ == "__main__":
    main()
