"""A unit: what is measured or skipped as a whole, and continued where a time limit has cut it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from engines import Failure
from processes import Finished
from programs import Programs

# Prompt and reply of a request: what the goals are about, and short enough for a peer that is much slower.
LONG_REQUEST = (1000, 1000)
SHORT_REQUEST = (1000, 128)
TINY_REQUEST = (24, 8)


class Cut(Exception):
    """The time limit ended it: what it has measured counts, the rest is left for the next run."""


@dataclass(frozen=True)
class Plan:
    """What all units are told."""

    programs: Programs
    # "cuda", or "cpu" to try the script where there is no GPU.
    device: str
    shapes: tuple[str, ...]
    is_quick: bool
    # Python that has torch.
    python: str

    @property
    def rows(self) -> tuple[int, ...]:
        """Of decode steps."""
        if self.device == "cpu":
            return (1, 3)
        return (1, 32, 128, 256) if self.is_quick else (1, 8, 32, 64, 128, 256)

    @property
    def prompts(self) -> tuple[int, ...]:
        if self.device == "cpu":
            return (80,)
        return (4096,) if self.is_quick else (512, 4096, 16384)

    @property
    def contexts(self) -> tuple[int, int]:
        """Of decoding rows. The second counts; attention is what it takes beyond the first."""
        return (32, 64) if self.device == "cpu" else (64, 1024)

    @property
    def requests(self) -> tuple[tuple[int, int], ...]:
        """Prompts and replies of what is served."""
        return (TINY_REQUEST,) if self.device == "cpu" else (LONG_REQUEST, SHORT_REQUEST)

    def streams(self, request: tuple[int, int]) -> tuple[int, ...]:
        """Clients at once."""
        if self.device == "cpu":
            return (2, 4)
        return (128,) if self.is_quick or request == SHORT_REQUEST else (64, 128, 256)


@dataclass
class Run:
    """A unit that runs: where its figures go, and how long it may take."""

    plan: Plan
    deadline: float
    add: Callable[[str, dict], None]
    # Names of figures that an earlier run has left.
    have: set[str] = field(default_factory=set)

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def expect(self, finished: Finished) -> None:
        """Raises Cut or Failure unless a program has ended well."""
        if finished.code is None:
            raise Cut("time limit")
        if finished.code:
            raise Failure(f"exit code {finished.code}: {finished.last_lines()}")


@dataclass(frozen=True)
class Unit:
    name: str
    # Below, it is not worth beginning; beyond, something hangs.
    least_seconds: float
    most_seconds: float
    run: Callable[[Run], None]
