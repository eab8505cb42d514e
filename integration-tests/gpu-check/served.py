"""The whole server on random models, over HTTP: the time to its ready line, and the load of `text-generation-benchmark`."""

import os
import tempfile
from functools import partial
from pathlib import Path

import checkpoint
from engines import Failure, Server
from unit import Cut, Plan, Run, Unit

# Of a start; and of a benchmark, beyond which it hangs.
READY_SECONDS = 180
POINT_SECONDS = 300


def units(plan: Plan) -> list[Unit]:
    found = []
    for shape in plan.shapes:
        found.append(Unit(f"served/{shape}/checkpoint", 5, 180, partial(make_checkpoint, shape)))
        found.append(Unit(f"served/{shape}", 30, 500, partial(serve, shape)))
    return found


def make_checkpoint(shape: str, running: Run) -> None:
    path = checkpoint.make(shape)
    running.add(f"checkpoint/{shape}", {"bytes": (path / "model.safetensors").stat().st_size})


def serve(shape: str, running: Run) -> None:
    plan = running.plan
    programs = plan.programs.engines()
    path = checkpoint.make(shape)
    # A home of a server is its own, kernels that were compiled for the GPU are not.
    os.environ.setdefault("TGI_CUDA_CACHE", str(Path(tempfile.gettempdir()) / "gpu-check-kernels"))
    start = partial(Server, programs, path, flags(plan))
    if f"ours/{shape}/ready" not in running.have:
        # The first start brings the weights into the page cache.
        start(seconds=min(READY_SECONDS, running.seconds_left)).close()
    server = start(seconds=min(READY_SECONDS, running.seconds_left))
    try:
        if f"ours/{shape}/ready" not in running.have:
            running.add(f"ours/{shape}/ready", {"seconds": server.ready_seconds})
        for request in plan.requests:
            for streams in plan.streams(request):
                name = f"ours/{shape}/served/{streams}/{request[0]}+{request[1]}"
                if name not in running.have:
                    running.add(name, load(server, streams, request, plan, running))
    finally:
        server.close()


def load(server: Server, streams: int, request: tuple[int, int], plan: Plan, running: Run) -> dict:
    if running.seconds_left < 10:
        raise Cut("time limit")
    rounds = 1 if plan.is_quick or plan.device == "cpu" else 2
    argv = ["--url", f"http://127.0.0.1:{server.port}", "--concurrency", streams, "--requests", rounds * streams]
    argv += ["--sequence-length", request[0], "--decode-length", request[1], "--seed", streams]
    point = server.programs.benchmark_point(argv, min(POINT_SECONDS, running.seconds_left))
    if point["failed"]:
        raise Failure(f"{point['failed']} of {rounds * streams} requests: {point['failures']}")
    latency = point["latency_seconds"]
    return {
        "tokens_per_second": point["output_tokens_per_second"],
        "elapsed_seconds": point["elapsed_seconds"],
        "time_to_first_token": chosen(latency["time_to_first_token"]),
        "inter_token": chosen(latency["inter_token"]),
    }


def chosen(summary: dict | None) -> dict | None:
    return summary and {name: summary[name] for name in ("p50", "p90", "p99")}


def flags(plan: Plan) -> tuple:
    """Room for all streams at once."""
    rows = max(streams for request in plan.requests for streams in plan.streams(request))
    tokens = max(sum(request) for request in plan.requests) + 64
    return (
        "--device",
        plan.device,
        "--num-shard",
        1,
        "--max-concurrent-requests",
        rows,
        "--max-batch-size",
        rows,
        "--max-total-tokens",
        tokens,
        *(("--max-batch-total-tokens", rows * tokens) if plan.device == "cpu" else ()),
    )
