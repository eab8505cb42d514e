"""What the benchmark needs beside this repository: peers in virtual environments, models, built programs. All kept and reused."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import models
from engines import Failure, Programs

BENCH = Path(__file__).parent
ROOT = BENCH.parent.parent
# llama.cpp for the machine that measures; two jobs, because a C++ compiler takes a gigabyte.
LLAMA_BUILD = {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": "2"}


def programs() -> Programs:
    """Built from this working tree, except those that the environment names, as in `integration-tests/src/executable.rs`."""
    return Programs(
        built("TEXT_GENERATION_LAUNCHER", "text-generation-launcher", ["--bin", "text-generation-launcher"]),
        built("TEXT_GENERATION_BENCHMARK", "text-generation-benchmark", ["--bin", "text-generation-benchmark"]),
        built("MACHINE_EXAMPLE", "examples/machine", ["--package", "kernels", "--example", "machine"]),
        commit(),
    )


def built(variable: str, name: str, what: list[str]) -> Path:
    if variable in os.environ:
        return Path(os.environ[variable])
    say(f"cargo build --release {' '.join(what)}")
    subprocess.run(["cargo", "build", "--quiet", "--release", *what], cwd=ROOT, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / name


def commit() -> str:
    """Of the working tree, with a plus if it differs."""
    git = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout  # noqa: E731
    return git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def llama_cpp(folder: Path) -> Path:
    """The interpreter of llama.cpp's environment."""
    return venv(folder, [("llama-cpp", ["--no-binary", "llama-cpp-python"])], LLAMA_BUILD)


def torch(folder: Path) -> Path:
    """The interpreter of torch, transformers and gguf."""
    return venv(folder, [("torch", [])])


def vllm(folder: Path) -> Path:
    """vLLM, in the same environment as the torch that it is compiled against."""
    return venv(folder, [("torch", []), ("vllm", ["--no-deps"])])


def venv(folder: Path, parts: list[tuple[str, list[str]]], env: dict | None = None) -> Path:
    """An environment named after the first part, with the requirements of all of them. A marker for each says what is installed.

    Raises Failure if something cannot be installed; what pip said is in a file beside the environment.
    """
    path = folder / f"{parts[0][0]}.venv"
    python = path / "bin" / "python"
    for name, options in parts:
        requirements = BENCH / f"requirements-{name}.txt"
        marker = path / f"installed-{name}.txt"
        if marker.exists() and marker.read_text() == requirements.read_text():
            continue
        if name == parts[0][0]:
            shutil.rmtree(path, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", path], check=True)
        log = folder / f"{name}.log"
        say(f"installing {requirements.name} (once; pip's words are in {log})")
        argv = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", *options]
        with log.open("w") as output:
            run = subprocess.run(
                [*argv, "--requirement", requirements],
                env=os.environ | (env or {}),
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if run.returncode:
            raise Failure(f"not installed, see {log}")
        shutil.copy(requirements, marker)
    return python


def model(folder: Path, name: str) -> Path:
    """The folder of a model of `models.SHAPES`."""
    path = models.folder(folder / "models", name)
    if not (path / "complete").exists():
        say(f"making {path}")
        subprocess.run([torch(folder), BENCH / "models.py", name, path], check=True)
    return path


def gguf(folder: Path, name: str, file_type: str) -> Path:
    """The same model for llama.cpp, quantised by llama.cpp itself."""
    source = model(folder, name) / "gguf" / "bf16.gguf"
    target = source.with_name(f"{file_type}.gguf")
    if not target.exists():
        say(f"making {target}")
        part = target.with_suffix(".part")
        worker = [llama_cpp(folder), BENCH / "workers" / "llama_cpp_worker.py", "quantize", source, part, file_type]
        run = subprocess.run(worker, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if run.returncode:
            raise Failure(f"{file_type}: {run.stderr.strip().splitlines()[-1]}")
        part.rename(target)
    return target


def machine() -> str:
    """In words."""
    info = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.*)", info)
    flags = re.search(r"flags\s*: (.*)", info)
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    has = [flag for flag in wanted if flags and flag in flags[1].split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{name[1] if name else platform.processor()}, {cores} cores, {memory:.0f} GiB, {' '.join(has)}"


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)
