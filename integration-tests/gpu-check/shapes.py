"""This server's kernels and steps on random models, as `gpu_check` measures them (shard/examples/gpu_check)."""

import json
import tempfile
from functools import partial
from pathlib import Path

from processes import run
from programs import GPU_CHECK, Skipped
from unit import Plan, Run, Unit

WEIGHTS = ("bfloat16", "fp8", "bitsandbytes-nf4", "eetq")


def units(plan: Plan) -> list[Unit]:
    """A type of weights after the other, so that what the goals are about comes first."""
    weights = WEIGHTS[:3] if plan.is_quick else WEIGHTS
    return [unit(shape, kind) for kind in weights for shape in plan.shapes]


def unit(shape: str, weights: str) -> Unit:
    return Unit(f"shapes/{shape}/{weights}", 20 if shape != "8b" else 60, 300, partial(measure, shape, weights))


def measure(shape: str, weights: str, running: Run) -> None:
    plan = running.plan
    if plan.device == "cpu":
        raise Skipped("gpu_check measures GPUs; `cargo test` runs the same steps on a simulated one")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        argv = [plan.programs.path(GPU_CHECK), shape, "--weights", weights, "--json", report]
        for flag, numbers in (("--rows", plan.rows), ("--contexts", plan.contexts), ("--prompts", plan.prompts)):
            argv += [flag, ",".join(map(str, numbers))]
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
        prefix = f"ours/{model['shape']}/{model['weights']}"
        found[f"{prefix}/load"] = {"seconds": model["loading_seconds"], "bytes": model["weights_bytes"]}
        for entry in model["decode"]:
            figure = chosen(entry, "seconds", "seconds_of_ten", "bytes", "flops")
            found[f"{prefix}/decode/{entry['rows']}/{entry['context']}"] = figure
        for entry in model["prefill"]:
            found[f"{prefix}/prefill/{entry['rows']}"] = chosen(entry, "seconds", "bytes", "flops")
    return found


def chosen(entry: dict, *names: str) -> dict:
    return {name: entry[name] for name in names}
