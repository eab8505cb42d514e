"""This server's kernels and steps on random models, as `gpu_check` measures them (shard/examples/gpu_check)."""

import json
import tempfile
from functools import partial
from pathlib import Path

from processes import run
from programs import GPU_CHECK, Skipped
from unit import Plan, Run, Unit

WEIGHTS = ("bfloat16", "fp8", "bitsandbytes-nf4", "eetq")
# One rank of eight, whose sums take a stated time: what is left of a step when eight GPUs share it. 8 us is what a kernel over mapped
# memory is expected to take for the rows of a decode step.
RANKS, SUM_US = 8, 8
OF_RANKS = ("70b", "8b")


def units(plan: Plan) -> list[Unit]:
    """A type of weights after the other, so that what the goals are about comes first."""
    weights = WEIGHTS[:3] if plan.is_quick else WEIGHTS
    found = [unit(shape, kind) for kind in weights for shape in plan.shapes]
    # The 70B shape takes a minute to write and load.
    return found if plan.is_quick or plan.device == "cpu" else found + [rank_unit(shape) for shape in OF_RANKS]


def unit(shape: str, weights: str) -> Unit:
    return Unit(f"shapes/{shape}/{weights}", 20 if shape != "8b" else 60, 300, partial(measure, shape, weights))


def rank_unit(shape: str) -> Unit:
    # Sums of prompts take longer than those of decode steps.
    flags = ("--rank-of", RANKS, "--sum-us", SUM_US, "--prompts", 0)
    return Unit(f"shapes/{shape}/bfloat16-1of{RANKS}", 120, 300, partial(measure, shape, "bfloat16", flags=flags))


def measure(shape: str, weights: str, running: Run, flags: tuple = ()) -> None:
    plan = running.plan
    if plan.device == "cpu":
        raise Skipped("gpu_check measures GPUs; `cargo test` runs the same steps on a simulated one")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        argv = [plan.programs.path(GPU_CHECK), shape, "--weights", weights, "--json", report]
        for flag, numbers in (("--rows", plan.rows), ("--contexts", plan.contexts), ("--prompts", plan.prompts)):
            if flag not in flags:
                argv += [flag, ",".join(map(str, numbers))]
        argv += map(str, flags)
        if weights != "bfloat16":
            argv.append("--without-linears")
        env = {"TMPDIR": tempfile.gettempdir()}
        finished = run(argv, running.seconds_left, env, each_line=lambda line: print(line, end="", flush=True))
        if report.exists():
            for name, figure in figures(json.loads(report.read_text("utf-8"))).items():
                running.add(name, figure)
    running.expect(finished)


def figures(report: dict) -> dict[str, dict]:
    """By the names that `rows.py` knows."""
    found = {"ceiling/copy/ours": {"per_second": report["copy_bytes_per_second"]}}
    for entry in report["linears"]:
        found[f"ours/{entry['shape']}/linear/{entry['layer']}/{entry['rows']}"] = chosen(entry, "seconds", "bytes", "flops")
    for model in report["models"]:
        of = f"-1of{model['rank_of']}" if model["rank_of"] > 1 else ""
        prefix = f"ours/{model['shape']}/{model['weights']}{of}"
        found[f"{prefix}/load"] = {"seconds": model["loading_seconds"], "bytes": model["weights_bytes"]}
        for entry in model["decode"]:
            figure = chosen(entry, "seconds", "seconds_of_ten", "bytes", "flops")
            found[f"{prefix}/decode/{entry['rows']}/{entry['context']}"] = figure
        for entry in model["prefill"]:
            found[f"{prefix}/prefill/{entry['rows']}"] = chosen(entry, "seconds", "bytes", "flops")
    return found


def chosen(entry: dict, *names: str) -> dict:
    return {name: entry[name] for name in names}
