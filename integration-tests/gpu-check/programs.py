"""The programs under test: built here, or carried as one archive to a machine that has a GPU and nothing else."""

import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import environment
import engines
from engines import Failure
from environment import ROOT, say

LAUNCHER, BENCHMARK, GPU_CHECK = "text-generation-launcher", "text-generation-benchmark", "gpu_check"
TESTS = ("cuda_models", "cuda")
NAMES = (LAUNCHER, BENCHMARK, GPU_CHECK, *TESTS)
CARGO = (
    ("build", "--bin", LAUNCHER, "--bin", BENCHMARK, "--example", GPU_CHECK),
    ("test", "--no-run", *(word for test in TESTS for word in ("--test", test))),
)


class Skipped(Exception):
    """Why a unit cannot run on this machine, in words for the table."""


@dataclass(frozen=True)
class Programs:
    """Paths by name; and the commit that they are of."""

    paths: dict[str, Path]
    commit: str

    def path(self, name: str) -> Path:
        if name not in self.paths:
            raise Skipped(f"{name} is not among the programs")
        return self.paths[name]

    def engines(self) -> engines.Programs:
        """As the benchmark of peers on processors takes them."""
        return engines.Programs(self.path(LAUNCHER), self.path(BENCHMARK), Path(), self.commit)


def build() -> Programs:
    """Compiled from this working tree. With NVCC set the kernels' machine code is in them, else they are compiled where they run."""
    paths = {}
    for words in CARGO:
        argv = ["cargo", words[0], "--release", "--workspace", *words[1:], "--message-format=json-render-diagnostics"]
        say(" ".join(argv[:-1]))
        run = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if run.returncode:
            raise Failure("cargo has failed")
        for line in run.stdout.splitlines():
            message = json.loads(line) if line.startswith("{") else {}
            if message.get("executable") and message["target"]["name"] in NAMES:
                paths[message["target"]["name"]] = Path(message["executable"])
    return Programs(paths, environment.commit())


def find(place: Path | None, commit: str | None) -> Programs:
    """Those of a folder or an archive of `pack`; without one, built if there is a cargo."""
    if place is None:
        if not shutil.which("cargo"):
            raise Failure("there is no cargo here: carry an archive (`run.py pack`) and name it with --programs")
        return build()
    if place.is_file():
        place = unpack(place)
    paths = {name: place / name for name in NAMES if (place / name).exists()}
    if not paths:
        raise Failure(f"{place} has none of {', '.join(NAMES)}")
    noted = place / "commit"
    commit = commit or (noted.read_text("utf-8").strip() if noted.exists() else "") or environment.commit()
    return Programs({name: path.resolve() for name, path in paths.items()}, commit)


def pack(programs: Programs, archive: Path) -> None:
    """One file with all programs, stripped, and their commit."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, path in programs.paths.items():
            shutil.copy(path, folder / name)
            subprocess.run(["strip", folder / name], check=True)
        (folder / "commit").write_text(programs.commit + "\n", "utf-8")
        say(f"compressing {archive}")
        with tarfile.open(archive, "w:xz") as file:
            for path in sorted(folder.iterdir()):
                file.add(path, path.name)
    say(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB, commit {programs.commit}")


def unpack(archive: Path) -> Path:
    """Beside the random models, once for each archive."""
    stamp = archive.stat()
    folder = Path(tempfile.gettempdir()) / f"gpu-check-programs-{stamp.st_size}-{stamp.st_mtime_ns}"
    if not folder.exists():
        part = Path(tempfile.mkdtemp(prefix="gpu-check-"))
        with tarfile.open(archive) as file:
            file.extractall(part, filter="data")
        part.rename(folder)
    return folder
