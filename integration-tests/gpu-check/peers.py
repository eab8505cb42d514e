"""torch and transformers on the same GPU: each script of `torch_peers/` in a process of its own, which prints a figure a line.

What this server does in bfloat16 is measured in the same piece, before its peers, unless it was already on this machine.
"""

import json
from functools import partial
from pathlib import Path

import shapes
from processes import run
from programs import Skipped
from unit import SHORT_REQUEST, TINY_REQUEST, Plan, Run, Unit

SCRIPTS = Path(__file__).parent / "torch_peers"
# Without importing it, which takes seconds.
HAS_TORCH = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"


def units(plan: Plan) -> list[Unit]:
    def script(name: str, shape: str, least_seconds: float, most_seconds: float) -> Unit:
        return Unit(f"peers/{name}/{shape}", least_seconds, most_seconds, partial(measure, name, shape))

    units = [Unit("peers/ceilings", 15, 90, partial(measure, "ceilings", plan.shapes[0]))]
    for shape in plan.shapes:
        if plan.device == "cuda":
            units.append(shapes.unit(shape, "bfloat16"))
        units += [script("linears", shape, 15, 90), script("attention", shape, 15, 90), script("decode_loop", shape, 40, 300)]
    # Last: the slowest.
    chosen = plan.shapes[-1:] if plan.is_quick else plan.shapes
    return units + [script("continuous_batching", shape, 60, 240) for shape in chosen]


def measure(name: str, shape: str, running: Run) -> None:
    plan = running.plan
    if run([plan.python, "-c", HAS_TORCH], 60).code:
        raise Skipped(f"{plan.python} has no torch")
    task = {
        "device": plan.device,
        "shape": shape,
        "rows": plan.rows,
        "context": plan.contexts[1],
        "prompts": plan.prompts,
        "is_quick": plan.is_quick,
        "request": TINY_REQUEST if plan.device == "cpu" else SHORT_REQUEST,
        "streams": plan.streams(TINY_REQUEST if plan.device == "cpu" else SHORT_REQUEST),
        "have": sorted(running.have),
    }
    refused = []

    def each_line(line: str) -> None:
        entry = parsed(line)
        if entry is None:
            # What libraries say on the way.
            return
        if "skipped" in entry:
            refused.append(entry["skipped"])
        else:
            print(line, end="", flush=True)
            running.add(entry.pop("name"), entry)

    env = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    finished = run([plan.python, SCRIPTS / f"{name}.py", json.dumps(task)], running.seconds_left, env, each_line=each_line)
    if finished.code == 0 and refused:
        raise Skipped("; ".join(refused))
    running.expect(finished)


def parsed(line: str) -> dict | None:
    """A figure, or None of any other line."""
    if not line.startswith("{"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if "name" in entry or "skipped" in entry else None
