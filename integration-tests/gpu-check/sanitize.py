"""compute-sanitizer over the tests that run attention, linear layers and sampling on the smallest models."""

import re
import shutil
from functools import partial
from pathlib import Path

import correct
from engines import Failure
from processes import run
from programs import Skipped
from unit import Plan, Run, Unit

PROGRAM = "cuda_models"
# What each of them reaches: prefill and decode attention with linear layers of all row counts; sampling with graphs and steps in flight.
TESTS = ("bits_do_not_depend_on_chunks_or_neighbours", "a_device_samples_what_the_processor_samples_from_its_logits")
TOOLS = ("memcheck", "racecheck")
FOUND_ERRORS = 99
# How it says that it cannot work on this machine.
REFUSALS = ("Device not supported", "Failed to initialize")


def units(plan: Plan) -> list[Unit]:
    return [Unit(f"sanitize/{tool}/{test}", 20, 240, partial(check, tool, test)) for tool in TOOLS for test in TESTS]


def check(tool: str, test: str, running: Run) -> None:
    plan = running.plan
    if plan.device == "cpu":
        raise Skipped("there is nothing to sanitise on a processor; `cargo test` runs the kernels there under AddressSanitizer")
    argv = [sanitizer(), "--tool", tool, "--error-exitcode", FOUND_ERRORS, plan.programs.path(PROGRAM)]
    argv += ["--exact", test, "--test-threads", "1"]
    finished = run(argv, running.seconds_left, correct.environment(PROGRAM, plan))
    judge(finished.code, finished.output)
    running.expect(finished)
    running.add(f"sanitize/{tool}/{test}", {"errors": 0})


def sanitizer() -> str:
    places = [shutil.which("compute-sanitizer"), *map(str, Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))]
    found = next((place for place in places if place), None)
    if not found:
        raise Skipped("there is no compute-sanitizer")
    return found


def judge(code: int | None, output: str) -> None:
    """Raises Skipped if the tool could not work, Failure if it found something."""
    summary = re.search(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+)", output)
    refusal = next((line.strip() for line in output.splitlines() if any(words in line for words in REFUSALS)), None)
    if refusal:
        raise Skipped(f"compute-sanitizer refuses: {refusal}")
    if code == FOUND_ERRORS or (summary and int(summary[1])):
        first = next((line.strip("= \n") for line in output.splitlines() if "Invalid" in line or "hazard" in line or "Error:" in line), "")
        raise Failure(f"{summary[0] if summary else 'errors were found'}: {first}")
    if code == 0 and not summary:
        raise Failure("compute-sanitizer has written no summary")
