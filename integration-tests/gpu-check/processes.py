"""Other programs, each with a time limit, and with everything it started ended when it ends."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engines import die_with_parent


@dataclass(frozen=True)
class Finished:
    """`code` is None if the time limit ended it."""

    code: int | None
    output: str

    def last_lines(self, count: int = 3) -> str:
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return " / ".join(lines[-count:]) or "no output"


def run(
    argv: list,
    seconds: float,
    env: dict | None = None,
    cwd: Path | None = None,
    each_line: Callable[[str], None] = lambda line: None,
) -> Finished:
    """Runs a program to its end. What it writes, to stdout and stderr, is handed over line by line as it comes."""
    process = subprocess.Popen(
        [str(word) for word in argv],
        env=os.environ | (env or {}),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    is_late = threading.Event()

    def end_late() -> None:
        is_late.set()
        end_group(process)

    timer = threading.Timer(max(seconds, 0.1), end_late)
    timer.start()
    output = []
    try:
        for line in process.stdout:
            output.append(line)
            each_line(line)
        code = process.wait()
    finally:
        timer.cancel()
        end_group(process)
        process.stdout.close()
        process.wait()
    return Finished(None if is_late.is_set() else code, "".join(output))


def end_group(process: subprocess.Popen) -> None:
    """Its session is its own, so the group is it and what it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
