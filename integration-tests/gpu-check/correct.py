"""The tests of the CUDA backend on the machine's own GPU, each in a process of its own: what one breaks, the next one does not inherit."""

import re
from functools import partial

from engines import Failure
from environment import ROOT
from processes import run
from programs import LAUNCHER, TESTS
from unit import Plan, Run, Unit

# The crate of each, whose folder the programs were told by cargo when they were compiled, maybe on another machine.
CRATES = {"cuda_models": "shard", "cuda": "integration-tests"}


def units(plan: Plan) -> list[Unit]:
    return [Unit(f"correct/{program}", 10, 420, partial(check, program)) for program in TESTS]


def check(program: str, running: Run) -> None:
    path = running.plan.programs.path(program)
    listed = run([path, "--list", "--format", "terse"], 30)
    running.expect(listed)
    names = re.findall(r"^(\S+): test$", listed.output, re.MULTILINE)
    if not names:
        raise Failure(f"{program} lists no test")
    failed = []
    for name in names:
        if f"test/{program}/{name}" not in running.have:
            failed += one(program, name, running)
    if failed:
        raise Failure(f"failed: {', '.join(failed)}")


def one(program: str, name: str, running: Run) -> list[str]:
    """Its name if it fails, which is no figure: the next run tries it again."""
    argv = [running.plan.programs.path(program), "--exact", name, "--show-output", "--test-threads", "1"]
    finished = run(argv, running.seconds_left, environment(program, running.plan))
    if finished.code is None:
        running.expect(finished)
    if finished.code or "1 passed" not in finished.output:
        running.add(f"failed/{program}/{name}", {"why": failure(finished.output)})
        return [name]
    # Errors against the processor, and what a test needs that is not there.
    said = re.findall(r"^(?:skipped: .*|.*(?:relative error|tokens agree).*)$", finished.output, re.MULTILINE)
    is_skipped = any(line.startswith("skipped") for line in said)
    running.add(f"test/{program}/{name}", {"is_skipped": is_skipped, "said": said})
    return []


def environment(program: str, plan: Plan) -> dict[str, str]:
    variables = {"CARGO_MANIFEST_DIR": str(ROOT / CRATES[program])}
    if plan.device == "cuda":
        variables["TGI_TEST_GPU"] = "real"
    if LAUNCHER in plan.programs.paths:
        variables["TEXT_GENERATION_LAUNCHER"] = str(plan.programs.path(LAUNCHER))
    return variables


def failure(output: str) -> str:
    """What a panic says, and the line after it."""
    lines = output.splitlines()
    panics = [index for index, line in enumerate(lines) if "panicked at" in line]
    chosen = lines[panics[0] : panics[0] + 4] if panics else lines[-4:]
    return " / ".join(line.strip() for line in chosen if line.strip())
