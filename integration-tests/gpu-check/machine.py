"""Which GPU this is."""

import subprocess
from pathlib import Path

import environment

FIELDS = ("name", "driver_version", "memory.total", "uuid", "clocks.sm")


def describe(device: str) -> dict:
    """`id` tells machines apart, and the same machine after it was started anew: clocks and neighbours may then be others."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    if device == "cpu":
        return {"name": environment.machine(), "driver": "none", "id": boot}
    query = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise environment.Failure(f"nvidia-smi does not answer, and names no GPU: {error}") from None
    if run.returncode:
        raise environment.Failure(f"nvidia-smi: {(run.stdout + run.stderr).strip()}")
    name, driver, memory, uuid, clock = (field.strip() for field in run.stdout.splitlines()[0].split(","))
    return {"name": name, "driver": driver, "memory": memory, "clock_at_start": clock, "id": f"{uuid} {boot}"}
