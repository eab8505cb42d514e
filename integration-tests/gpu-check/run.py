"""What a GPU confirms, and what it reaches beside torch: `python3 integration-tests/gpu-check/run.py [PIECE ..]`.

    correct    the tests of the CUDA backend on the machine's own GPU
    shapes     this server's steps and linear layers on random models of 1B and 8B; without --quick, one rank of eight of 70B and 8B
    peers      ceilings of the GPU; torch's linear layers, attention and decode loop; transformers' continuous batching
    served     the whole server over HTTP, and the time to its ready line
    sanitize   compute-sanitizer over attention, linear layers and sampling

    report     prints the table again
    pack FILE  builds the programs and packs them, to be carried to a machine without cargo and network: there, --programs FILE

Without pieces all are run, in this order. A run ends within --minutes; what it has not reached or has left half done, the same command
goes on with. Figures are kept in a file of JSON as they come. Python's standard library is enough, except for `peers`, which needs
torch and skips itself without. docs/gpu-status.md says what to run on a machine that is lent for minutes.
"""

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# Engines, models and checks of the machine are those of the benchmark on processors. Last: both folders have a `run` and a `report`.
sys.path.append(str(FOLDER.parent / "bench"))

import correct  # noqa: E402
import machine  # noqa: E402
import peers  # noqa: E402
import programs  # noqa: E402
import report  # noqa: E402
import sanitize  # noqa: E402
import served  # noqa: E402
import shapes  # noqa: E402
from checkpoint import SHAPES  # noqa: E402
from engines import Failure  # noqa: E402
from environment import say  # noqa: E402
from results import Origin, Results  # noqa: E402
from unit import Cut, Plan, Run, Unit  # noqa: E402

PIECES = {"correct": correct, "shapes": shapes, "peers": peers, "served": served, "sanitize": sanitize}
# What ends a run that hangs takes a moment too.
RESERVE_SECONDS = 5


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="PIECE", help=f"of {', '.join(PIECES)}; or report, or pack FILE")
    parser.add_argument("--programs", type=Path, help="archive of `pack` or folder [default: built here]")
    parser.add_argument("--commit", help="that the programs are of [default: as packed, or git's]")
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), help="file of results [default: gpu-check.json]")
    parser.add_argument("--minutes", type=float, default=9.0, help="in which the run ends [default: 9]")
    parser.add_argument("--quick", action="store_true", help="fewer rows, lengths, streams and types of weights")
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    parser.add_argument("--only", default="", help="units whose names contain this")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script [default: cuda]")
    parser.add_argument("--shapes", help=f"of {','.join(SHAPES)}, with commas [default: 1b,8b; on a processor tiny]")
    parser.add_argument("--python", default=shutil.which("python3") or sys.executable, help="that has torch [default: python3]")
    args = parser.parse_args()
    if args.words[:1] == ["pack"]:
        if len(args.words) != 2:
            parser.error("pack takes a file")
        return args
    for word in args.words:
        if word not in (*PIECES, "report"):
            parser.error(f"{word} is no piece")
    args.shapes = tuple((args.shapes or ("tiny" if args.device == "cpu" else "1b,8b")).split(","))
    for shape in args.shapes:
        if shape not in SHAPES:
            parser.error(f"{shape} is no shape")
    return args


def main() -> int:
    began = time.monotonic()
    args = arguments()
    # As Ctrl-C: what runs is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.words[:1] == ["pack"]:
        programs.pack(programs.find(args.programs, args.commit), Path(args.words[1]))
        return 0
    if args.words == ["report"]:
        print(report.text(Results(args.json)))
        return 0
    built = programs.find(args.programs, args.commit)
    # What is compiled here does not count.
    began = began if args.programs else time.monotonic()
    plan = Plan(built, args.device, args.shapes, args.quick, args.python)
    results = Results(args.json, Origin(machine.describe(args.device), built.commit, args.quick))
    deadline = began + 60 * args.minutes - RESERVE_SECONDS
    pieces = [word for word in args.words if word in PIECES] or list(PIECES)
    try:
        left = run_pieces(pieces, plan, results, deadline, args)
    finally:
        results.save()
        print(report.text(results))
    if left:
        say(f"left for the next run: {', '.join(left)}")
    # A failure is not forgotten in the runs after it.
    failed = [name for name, unit in results.units().items() if unit["state"] == "failed"]
    return 1 if failed else 3 if left else 0


def run_pieces(pieces: list[str], plan: Plan, results: Results, deadline: float, args: argparse.Namespace) -> list[str]:
    """Names of units that are left."""
    units = {unit.name: unit for piece in pieces for unit in PIECES[piece].units(plan)}
    left = []
    for unit in units.values():
        if args.only not in unit.name or (results.is_final(unit.name) and not args.again):
            continue
        if deadline - time.monotonic() < unit.least_seconds:
            left.append(unit.name)
            continue
        if args.again:
            results.content["units"].pop(unit.name, None)
        if run_unit(unit, plan, results, deadline) == "cut":
            left.append(unit.name)
    return left


def run_unit(unit: Unit, plan: Plan, results: Results, deadline: float) -> str:
    """Runs it, and returns its state."""
    say(f"{unit.name} ..")
    begin = time.monotonic()
    entry = results.begin(unit.name)
    # What has failed is tried again.
    entry["figures"] = {name: figure for name, figure in entry["figures"].items() if not name.startswith("failed/")}

    def add(name: str, figure: dict) -> None:
        entry["figures"][name] = figure
        entry["seconds"] = time.monotonic() - begin
        results.save()

    running = Run(plan, min(deadline, begin + unit.most_seconds), add, set(entry["figures"]))
    try:
        unit.run(running)
        entry["state"] = "done"
    except programs.Skipped as reason:
        entry |= {"state": "skipped", "why": str(reason)}
    except Cut as reason:
        # Its own limit, not the run's, means that it hangs.
        is_own = deadline - time.monotonic() > 1
        entry |= {"state": "failed" if is_own else "cut", "why": f"took {unit.most_seconds} s" if is_own else str(reason)}
    except Failure as reason:
        entry |= {"state": "failed", "why": str(reason)}
    entry["seconds"] = time.monotonic() - begin
    results.save()
    say(f"{unit.name}: {entry['state']} after {entry['seconds']:.1f} s{': ' + entry['why'] if entry['why'] else ''}")
    return entry["state"]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"{failure}")
