"""Engines as processes: this server's shard, the peers behind `workers/`, and this server behind HTTP.

All of them are loaded at the same time, so that they can be measured in turn; whoever is not measured is stopped (SIGSTOP) and
costs nothing. Whatever ends this process ends them.
"""

import ctypes
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from measurements import HTTP_STREAMS, Measurement

# vLLM compiles for a model that it has not seen; all others are ready in a tenth of it, also from a slow disk.
START_SECONDS = 600
# The longest request, a batch of long prompts on a slow machine, takes a tenth.
ANSWER_SECONDS = 300
# What both the shard and the server may compute in a step, and hold: the default, and enough for every measurement.
STEP_TOKENS = 512
TOTAL_TOKENS = 16384
SERVER_FLAGS = ("--max-total-tokens", 4096, "--max-batch-total-tokens", TOTAL_TOKENS)


class Failure(Exception):
    """Why an engine has no figure, in words for the table."""


class Engine:
    """A process that can be stopped and continued with everything it started."""

    def __init__(self, argv: list, env: dict | None = None, **pipes) -> None:
        self.log = tempfile.NamedTemporaryFile("w+", prefix="bench-", suffix=".log")
        self.process = subprocess.Popen(
            [str(word) for word in argv],
            env=os.environ | (env or {}),
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent,
            **({"stdin": subprocess.DEVNULL, "stdout": self.log, "stderr": self.log} | pipes),
        )

    @contextmanager
    def running(self):
        """Continued inside, stopped outside."""
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGSTOP)

    def written(self) -> str:
        # By a handle of its own: the process shares the position of ours.
        return Path(self.log.name).read_text("utf-8", "replace")

    def last_words(self) -> str:
        """The last line that says something, of what the process has written."""
        lines = [line.strip() for line in self.written().splitlines() if line.strip()]
        errors = [line for line in lines if re.search("error|Error|panicked", line)]
        return (errors or lines or ["no output"])[-1]

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()


class Worker(Engine):
    """A peer that speaks the protocol of `workers/protocol.py`."""

    def __init__(self, python: Path, script: str, model: Path, threads: int) -> None:
        argv = [python, Path(__file__).parent / "workers" / script, model, threads]
        super().__init__(argv, {"OMP_NUM_THREADS": str(threads)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self.about = self.ask({"do": "hello"}, START_SECONDS)["about"]
            # What is allocated and compiled at the first call is not what is measured.
            for rows in (1, HTTP_STREAMS):
                self.ask({"do": "generate", "prompts": prompts(rows, 16, seed=0), "steps": 1})
        except Failure:
            self.close()
            raise
        self.pause()

    def measure(self, measurement: Measurement, model: str, seed: int) -> float:
        """Tokens per second."""
        rows, tokens, steps = measurement.rows, measurement.prompt_tokens, measurement.steps[model]
        answer = self.generate(prompts(rows, tokens, seed), steps)
        if measurement.figure == "prefill":
            return rows * tokens / answer["prefill_seconds"]
        return rows * steps / answer["decode_seconds"]

    def generate(self, ids: list, steps: int) -> dict:
        with self.running():
            return self.ask({"do": "generate", "prompts": ids, "steps": steps})

    def greedy(self, ids: list, tokens: int) -> list:
        """Replies to prompts, each computed alone."""
        return [self.generate([prompt], tokens - 1)["ids"][0] for prompt in ids]

    def gemm(self) -> float:
        with self.running():
            return self.ask({"do": "gemm"})["flops_per_second"]

    def ask(self, request: dict, seconds: float = ANSWER_SECONDS) -> dict:
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], seconds)[0]:
                raise Failure(f"no answer within {seconds} s")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failure(self.last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise Failure(answer["error"])
        return answer


class Shard(Engine):
    """A shard of this server without a router, driven by text-generation-benchmark."""

    def __init__(self, programs: "Programs", model: Path, threads: int, flags: list) -> None:
        self.programs = programs
        self.folder = tempfile.mkdtemp(prefix="bench-")
        self.about = programs.about()
        argv = [programs.launcher, "shard", "--model-dir", model, "--uds-path", f"{self.folder}/s", "--threads", threads]
        argv += ["--max-batch-size", HTTP_STREAMS * 2, "--max-step-tokens", STEP_TOKENS]
        argv += ["--max-total-tokens", 4096, "--max-batch-total-tokens", TOTAL_TOKENS, *flags]
        super().__init__(argv)
        try:
            self.wait_until_ready()
            self.run(1, 16, 2, seed=0)
            self.run(HTTP_STREAMS, 16, 2, seed=0)
        except Failure:
            self.close()
            raise
        self.pause()

    def wait_until_ready(self) -> None:
        start = time.monotonic()
        while True:
            if self.process.poll() is not None:
                words = self.last_words()
                unknown = "unexpected argument" in words or "not supported" in words
                raise Failure("not supported" if unknown else words)
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(f"{self.folder}/s-0")
                    return
            except OSError:
                if time.monotonic() - start > START_SECONDS:
                    raise Failure(f"not ready within {START_SECONDS} s") from None
                time.sleep(0.02)

    def measure(self, measurement: Measurement, model: str, seed: int) -> float:
        """Tokens per second."""
        point = self.run_alone(measurement.rows, measurement.prompt_tokens, measurement.steps[model] + 1, seed)
        if measurement.figure == "prefill":
            return measurement.rows * measurement.prompt_tokens / point["latency_seconds"]["prefill"]["average"]
        return point["throughput_tokens_per_second"]["decode"]["average"]

    def raw_throughput(self, rows: int, prompt_tokens: int, reply_tokens: int, seed: int) -> float:
        """Tokens of replies per second, prompts included in the time: as a client of a server counts."""
        latency = self.run_alone(rows, prompt_tokens, reply_tokens, seed)["latency_seconds"]
        return rows * reply_tokens / (latency["prefill"]["average"] + latency["decode_total"]["average"])

    def run_alone(self, *lengths, seed: int | None = None) -> dict:
        with self.running():
            return self.run(*lengths) if seed is None else self.run(*lengths, seed=seed)

    def run(self, rows: int, prompt_tokens: int, reply_tokens: int, seed: int) -> dict:
        """The only point of a report of docs/benchmark.md."""
        flags = ["--master-shard-uds-path", f"{self.folder}/s-0", "--runs", 1, "--warmups", 0, "--seed", seed]
        flags += ["--batch-size", rows, "--sequence-length", prompt_tokens, "--decode-length", max(2, reply_tokens)]
        return self.programs.benchmark_point(flags)

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Server(Engine):
    """The whole server. `ready_seconds` is the time from its start to its ready line."""

    def __init__(self, programs: "Programs", model: Path | None, flags: tuple = SERVER_FLAGS, seconds: float = START_SECONDS) -> None:
        self.programs = programs
        self.port = free_port()
        self.home = tempfile.mkdtemp(prefix="bench-")
        argv = [programs.launcher, "--hostname", "127.0.0.1", "--port", self.port]
        if model is not None:
            argv += ["--model-id", model, *flags]
        # A home of its own: what an earlier server has kept there would make this one faster.
        env = {"HOME": self.home, "TMPDIR": self.home}
        start = time.monotonic()
        super().__init__(argv, env)
        while "Ready: " not in self.written():
            if self.process.poll() is not None or time.monotonic() - start > seconds:
                words = self.last_words()
                self.close()
                raise Failure(words)
            time.sleep(0.002)
        self.ready_seconds = time.monotonic() - start

    def throughput(self, streams: int, prompt_tokens: int, reply_tokens: int, seed: int) -> float:
        """Tokens of replies per second of so many clients with one request each."""
        flags = ["--url", f"http://127.0.0.1:{self.port}", "--concurrency", streams, "--requests", streams]
        flags += ["--sequence-length", prompt_tokens, "--decode-length", reply_tokens, "--warmups", 1, "--seed", seed]
        point = self.programs.benchmark_point(flags)
        if point["failed"]:
            raise Failure(f"{point['failures']}")
        return point["output_tokens_per_second"]

    def greedy(self, ids: list, tokens: int) -> list:
        """Replies to prompts of bytes, which are their own ids."""
        return [self.reply(bytes(prompt).decode("ascii"), tokens) for prompt in ids]

    def reply(self, text: str, tokens: int) -> list:
        parameters = {"max_new_tokens": tokens, "details": True, "do_sample": False}
        body = json.dumps({"inputs": text, "parameters": parameters}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/generate", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
                details = json.load(response)["details"]
        except OSError as error:
            raise Failure(f"{error}") from None
        return [token["id"] for token in details["tokens"]]

    def close(self) -> None:
        """Ends it as its users do, so that nothing of it is left; after ten seconds by force."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                pass
        super().close()
        shutil.rmtree(self.home, ignore_errors=True)


class Programs:
    """The executables under test."""

    def __init__(self, launcher: Path, benchmark: Path, machine: Path, version: str) -> None:
        self.launcher = launcher
        self.benchmark = benchmark
        self.machine = machine
        self.version = version

    def about(self) -> str:
        return f"this server {self.version}"

    def benchmark_point(self, flags: list, seconds: float = ANSWER_SECONDS) -> dict:
        argv = [str(word) for word in [self.benchmark, *flags, "--output", "json"]]
        env = os.environ | {"LOG_LEVEL": "error"}
        try:
            run = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"no answer within {seconds:.0f} s") from None
        if run.returncode:
            raise Failure((run.stderr.strip() or "no output").splitlines()[-1])
        return json.loads(run.stdout)["points"][0]

    def measure_machine(self, threads: int) -> dict:
        run = subprocess.run([self.machine, str(threads)], capture_output=True, text=True, check=False)
        if run.returncode:
            raise Failure(f"{self.machine}: {run.stderr.strip()}")
        return json.loads(run.stdout)


def prompts(rows: int, tokens: int, seed: int) -> list:
    """Random ids below the vocabulary of every model."""
    ids = random.Random(seed)
    return [[ids.randrange(32000) for _ in range(tokens)] for _ in range(rows)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def die_with_parent() -> None:
    """PR_SET_PDEATHSIG: a killed benchmark leaves nothing behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
