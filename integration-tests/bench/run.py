"""This server against llama.cpp, transformers and vLLM on the same weights, in turn: `python3 integration-tests/bench/run.py`.

The first run installs the peers and makes the models (half an hour, 9 GB under `target/peers`; --folder keeps them elsewhere). A
whole run then takes 25 to 45 minutes and writes docs/performance.md, also if it is ended early; a part of it (--quick, --only, --models, --peers)
prints its tables and leaves that page alone. All figures of a run are in a JSON file beside the installed peers.

Every round measures every engine once, forwards and then backwards, so that a machine that changes its speed changes it for all.
"""

import argparse
import json
import os
import signal
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import environment
import measurements as m
import report
from engines import Failure, Programs, Server, Shard, Worker, prompts
from environment import say
from models import SHAPES

GROUPS = ("decode", "prefill", "batch", "http", "startup")
PEERS = ("llama.cpp", "transformers", "vllm")
PAGE = environment.ROOT / "docs" / "performance.md"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    listed = lambda known: lambda text: [word for word in text.split(",") if word and (word in known or parser.error(f"{word} is none of {known}"))]  # noqa: E731
    parser.add_argument("--rounds", type=int, help="of every figure [default: 5, with --quick 3]")
    parser.add_argument("--quick", action="store_true", help="fewer measurements: about three minutes")
    parser.add_argument("--only", type=listed(GROUPS), default=list(GROUPS), help=f"of {','.join(GROUPS)}")
    parser.add_argument("--models", type=listed(tuple(SHAPES)), default=list(SHAPES), help=f"of {','.join(SHAPES)}")
    parser.add_argument("--peers", type=listed(PEERS), default=list(PEERS), help=f"of {','.join(PEERS)}; '' is none")
    parser.add_argument("--threads", type=int, default=2, help="of every engine [default: 2]")
    parser.add_argument("--folder", type=Path, default=environment.ROOT / "target" / "peers", help="of peers, models and JSON")
    parser.add_argument("--output", type=Path, help="the page [default: docs/performance.md if everything is measured, else none]")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else 5)
    args.folder = args.folder.resolve()
    whole = not args.quick and (args.only, args.models, args.peers) == (list(GROUPS), list(SHAPES), list(PEERS))
    if whole and args.output is None:
        args.output = PAGE
    return args


def main() -> None:
    args = arguments()
    # As Ctrl-C: engines are ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args.folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    bench = Bench(args, environment.programs())
    try:
        for model in args.models:
            bench.attempt(bench.measure_engines, model)
            if "startup" in args.only and model in m.STARTUP_GOALS:
                bench.attempt(bench.measure_startup, model)
            if "http" in args.only:
                bench.attempt(bench.measure_http, model)
        if "startup" in args.only:
            bench.attempt(bench.measure_startup, "demo")
    finally:
        # Also what a run that was ended early has measured.
        bench.results["minutes"] = (time.monotonic() - start) / 60
        (args.folder / "results.json").write_text(json.dumps(bench.results, indent=1), "utf-8")
        text = report.markdown(bench.results)
        if args.output:
            args.output.write_text(text, "utf-8")
        print(text)


class Bench:
    """Measures, and collects."""

    def __init__(self, args: argparse.Namespace, programs: Programs) -> None:
        self.args = args
        self.programs = programs
        # Replies to the same prompts, by model and engine.
        self.replies = {}
        self.results = {
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "command": " ".join(["python3", "integration-tests/bench/run.py", *sys.argv[1:]]),
            "minutes": 0.0,
            "commit": programs.version,
            "machine": environment.machine(),
            "rounds": args.rounds,
            "threads": args.threads,
            "versions": {},
            # What the machine can do, by round.
            "limits": [],
            # By model, title and engine: figures by round, or why there are none.
            "figures": {},
            "http": {},
            "startup": {},
            "agreement": {},
            # What could not be measured at all.
            "failures": [],
        }

    def attempt(self, measure, model: str) -> None:
        """A part that fails costs its own rows, not those of an hour."""
        try:
            measure(model)
        except Failure as failure:
            self.results["failures"].append(f"{measure.__name__} of {model}: {failure}")
            say(self.results["failures"][-1])

    def measure_engines(self, model: str) -> None:
        """The groups decode, prefill and batch."""
        chosen = [entry for entry in m.MEASUREMENTS if entry.group in self.args.only and (entry.quick or not self.args.quick)]
        if not chosen:
            return
        names = list(dict.fromkeys(name for entry in chosen for name in entry.engines if self.is_wanted(name)))
        engines, absent = {}, {}
        try:
            for name in names:
                say(f"{model}: loading {name}")
                try:
                    engines[name] = self.start(name, model)
                    self.results["versions"][name] = engines[name].about
                except Failure as failure:
                    absent[name] = str(failure)
                    say(f"  {failure}")
            figures = self.results["figures"][model] = {
                entry.title: {name: absent.get(name, []) for name in entry.engines if self.is_wanted(name)} for entry in chosen
            }
            for number in range(self.args.rounds):
                say(f"{model}: round {number + 1} of {self.args.rounds}")
                self.measure_limits(engines)
                for entry in chosen:
                    self.measure_round(entry, model, number, engines, figures[entry.title])
            for name, engine in engines.items():
                if isinstance(engine, Worker):
                    greedy = engine.greedy(agreement_prompts(), m.AGREEMENT_TOKENS)
                    self.replies.setdefault(model, {})[name] = greedy
        finally:
            for engine in engines.values():
                engine.close()

    def measure_round(self, entry: m.Measurement, model: str, number: int, engines: dict, figures: dict) -> None:
        names = [name for name in figures if name in engines and isinstance(figures[name], list)]
        for name in names if number % 2 == 0 else reversed(names):
            try:
                figure = engines[name].measure(entry, model, seed=number + 1)
                figures[name].append(figure)
                say(f"  {entry.title:<30} {name:<32} {figure:9.1f}")
            except Failure as failure:
                figures[name] = str(failure)
                say(f"  {entry.title:<30} {name:<32} {failure}")

    def measure_limits(self, engines: dict) -> None:
        limits = self.programs.measure_machine(self.args.threads)
        if m.TRANSFORMERS in engines:
            limits["torch_gemm_flops_per_second"] = engines[m.TRANSFORMERS].gemm()
        self.results["limits"].append(limits)

    def measure_http(self, model: str) -> None:
        """Rounds of the same batch over HTTP and without."""
        if self.args.quick and model != self.args.models[0]:
            return
        lengths = (m.HTTP_STREAMS, m.HTTP_PROMPT_TOKENS, m.HTTP_REPLY_TOKENS[model])
        figures = self.results["http"][model] = {"raw": [], "http": []}
        shard = self.start(m.OURS, model)
        try:
            server = Server(self.programs, environment.model(self.args.folder, model))
            try:
                for number in range(self.args.rounds):
                    figures["raw"].append(shard.raw_throughput(*lengths, seed=number))
                    figures["http"].append(server.throughput(*lengths, seed=number))
                    say(f"{model}: {lengths[0]} streams: raw {figures['raw'][-1]:.1f}, HTTP {figures['http'][-1]:.1f}")
                self.compare_replies(model, server.greedy(agreement_prompts(), m.AGREEMENT_TOKENS))
            finally:
                server.close()
        finally:
            shard.close()

    def compare_replies(self, model: str, ours: list) -> None:
        """Same tokens show that all compute the same; near ties may fall differently, and all that follows with them."""
        for name, theirs in self.replies.get(model, {}).items():
            first = [next((i for i, (a, b) in enumerate(zip(*pair)) if a != b), m.AGREEMENT_TOKENS) for pair in zip(ours, theirs)]
            self.results["agreement"].setdefault(model, {})[name] = first
            say(f"{model}: first token that differs from {name}'s, of {m.AGREEMENT_TOKENS}: {first}")

    def measure_startup(self, model: str) -> None:
        """Rounds of: reading the weights once, starting; with the file in the page cache and, where that works, without."""
        path = None if model == "demo" else environment.model(self.args.folder, model)
        times = self.results["startup"][model] = {}
        for _ in range(self.args.rounds):
            for kind in ("cached", "uncached") if path else ("cached",):
                if path:
                    file = path / "model.safetensors"
                    # Twice: a start must find the same as the reading before it.
                    prepare = evict if kind == "uncached" else seconds_to_read
                    prepare(file)
                    times.setdefault(f"{kind}_read", []).append(seconds_to_read(file))
                    prepare(file)
                server = Server(self.programs, path)
                times.setdefault(f"{kind}_ready", []).append(server.ready_seconds)
                server.close()
        say(f"{model}: startup " + ", ".join(f"{kind} {min(values):.2f} to {max(values):.2f} s" for kind, values in times.items()))

    def is_wanted(self, name: str) -> bool:
        return name in OURS or any(name.lower().startswith(peer) for peer in self.args.peers)

    def start(self, name: str, model: str) -> Shard | Worker:
        folder, threads = self.args.folder, self.args.threads
        path = environment.model(folder, model)
        if name in OURS:
            return Shard(self.programs, path, threads, OURS[name])
        if name in LLAMA:
            file = environment.gguf(folder, model, LLAMA[name])
            return Worker(environment.llama_cpp(folder), "llama_cpp_worker.py", file, threads)
        if name == m.VLLM:
            return Worker(environment.vllm(folder), "vllm_worker.py", path, threads)
        return Worker(environment.torch(folder), "transformers_worker.py", path, threads)


# What makes the engines differ: flags of this server, llama.cpp's file types.
OURS = {m.OURS: [], m.OURS_INT8: ["--quantize", "eetq"], m.OURS_4BIT: ["--quantize", "bitsandbytes-nf4"]}
LLAMA = {m.LLAMA: "bf16", m.LLAMA_INT8: "q8_0", m.LLAMA_4BIT: "q4_0"}


def agreement_prompts() -> list:
    """Of printable bytes: this server gets them as text, one token each."""
    return [[33 + token % 94 for token in prompt] for prompt in prompts(m.AGREEMENT_PROMPTS, m.AGREEMENT_TOKENS, seed=1)]


def evict(file: Path) -> None:
    """Out of the page cache, which is a request that the kernel may refuse."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_to_read(file: Path) -> float:
    """Of one pass by one thread."""
    buffer = bytearray(4 << 20)
    start = time.monotonic()
    with file.open("rb", buffering=0) as opened:
        while opened.readinto(buffer):
            pass
    return time.monotonic() - start


if __name__ == "__main__":
    main()
