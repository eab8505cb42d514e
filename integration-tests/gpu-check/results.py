"""The file of results: what every unit of every piece has measured, kept after each figure, so that a run which ends early goes on later.

A unit is done for one machine, commit and thoroughness; what another one has measured stays in the file but counts for nothing.
"""

import json
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

SCHEMA_VERSION = 1
# Measured to its end; and for a reason that another run would find again.
FINAL = ("done", "skipped")


@dataclass(frozen=True)
class Origin:
    """What figures must have in common to be held against each other."""

    machine: dict
    commit: str
    is_quick: bool

    @property
    def key(self) -> str:
        return f"{self.machine['id']} {self.commit}{' quick' if self.is_quick else ''}"


class Results:
    """The file at `path`, from now on for `origin`."""

    def __init__(self, path: Path, origin: Origin | None = None) -> None:
        self.path = path
        self.content = {"schema_version": SCHEMA_VERSION, "units": {}}
        if path.exists():
            content = json.loads(path.read_text("utf-8"))
            if content.get("schema_version") == SCHEMA_VERSION and "units" in content:
                self.content = content
        if origin:
            head = {"machine": origin.machine, "commit": origin.commit, "is_quick": origin.is_quick, "origin": origin.key}
            self.content |= head | {"date": now()}

    def units(self) -> dict[str, dict]:
        """Those of this origin."""
        return {name: unit for name, unit in self.content["units"].items() if unit["origin"] == self.content.get("origin")}

    def others(self) -> int:
        """How many are of another origin."""
        return len(self.content["units"]) - len(self.units())

    def figures(self) -> dict[str, dict]:
        """All figures of this origin, by name."""
        return {name: figure for unit in self.units().values() for name, figure in unit["figures"].items()}

    def is_final(self, name: str) -> bool:
        return self.units().get(name, {}).get("state") in FINAL

    def begin(self, name: str) -> dict:
        """A unit, with the figures that an earlier run of it has left."""
        figures = self.units().get(name, {}).get("figures", {})
        unit = {"origin": self.content["origin"], "state": "cut", "why": "", "date": now(), "seconds": 0.0, "figures": figures}
        self.content["units"][name] = unit
        return unit

    def save(self) -> None:
        """Whole or not at all."""
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1) + "\n", "utf-8")
        os.replace(part, self.path)


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
