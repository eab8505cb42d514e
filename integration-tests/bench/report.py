"""The page that a run writes: figures with their spread, beside limits, peers and goals."""

from statistics import median

import measurements as m
from models import SHAPES

MET = {True: "met", False: "**not met**"}


def markdown(results: dict) -> str:
    limits = machine_limits(results)
    parts = [
        head(results),
        machine(results, limits),
        *(engines(results, model, limits) for model in results["figures"]),
        http(results),
        startup(results),
        agreement(results),
        failures(results),
        METHOD,
    ]
    return "\n".join(part for part in parts if part)


def head(results: dict) -> str:
    # Engines of one program have one line.
    versions = "".join(f"- {about}\n" for about in sorted(set(results["versions"].values())))
    return f"""# Performance on CPUs

Written by `{results["command"]}` (`just bench-peers`) on {results["date"]}, commit {results["commit"]}, in {results["minutes"]:.0f} minutes: {results["rounds"]} rounds,
{results["threads"]} threads for every engine. Figures are medians over the rounds, in parentheses the lowest and the highest. Only ratios within
one run say something: other machines, and this one at another time, are faster or slower.

Machine: {results["machine"]}.

{versions}"""


def machine_limits(results: dict) -> dict | None:
    """Medians over the rounds; of matrix products, that of the faster of torch and this server."""
    rounds = results["limits"]
    if not rounds:
        return None
    ours = median(limits["bf16_gemm_flops_per_second"] for limits in rounds)
    theirs = median(limits.get("torch_gemm_flops_per_second", 0.0) for limits in rounds)
    return {
        "read_bytes_per_second": median(limits["read_bytes_per_second"] for limits in rounds),
        "gemm_flops_per_second": max(ours, theirs),
    }


def machine(results: dict, limits: dict | None) -> str:
    if not limits:
        return ""
    titles = {
        "read_bytes_per_second": ("reading memory, huge pages, best of 1, 2 and 4 streams a thread", "GB/s", 1e9),
        "bf16_gemm_flops_per_second": ("matrix product, this server's linear of bf16 weights", "TFLOP/s", 1e12),
        "torch_gemm_flops_per_second": ("matrix product, best of torch/oneDNN in the precision that is faster", "TFLOP/s", 1e12),
    }
    lines = ["## The machine's limits, measured in the same rounds", "", "| | |", "|---|---:|"]
    for key, (title, unit, scale) in titles.items():
        values = [limits[key] / scale for limits in results["limits"] if key in limits]
        if values:
            lines.append(f"| {title} | {spread(values)} {unit} |")
    return "\n".join([*lines, ""])


def engines(results: dict, model: str, limits: dict) -> str:
    figures, shape = results["figures"][model], SHAPES[model]
    columns = (m.LLAMA, m.LLAMA_INT8, m.LLAMA_4BIT, m.TRANSFORMERS, m.VLLM)
    columns = [name for name in columns if any(name in entry for entry in figures.values())]
    lines = [
        f"## {shape.title}, {shape.parameters / 1e6:.0f} M weights: tokens per second",
        "",
        f"| | this server | of the limit | {' | '.join(columns)} | against the best peer | goals |",
        f"|---|---:|---:|{'---:|' * len(columns)}---:|---|",
    ]
    for entry in m.MEASUREMENTS:
        if entry.title in figures:
            # What a row shows is its own; what it is held against may be another row's peers.
            peers = {name: values for name, values in figures.get(entry.peers_of, {}).items() if name not in m.OURS_ALL}
            lines.append(row(entry, figures[entry.title], peers, columns, model, limits, results["rounds"]))
    return "\n".join([*lines, ""])


def row(entry: m.Measurement, figures: dict, peers: dict, columns: list, model: str, limits: dict, rounds: int) -> str:
    ours = entry.engines[0]
    limit = entry.limit(SHAPES[model], limits)
    medians = {name: median(values) for name, values in (peers | figures).items() if isinstance(values, list) and values}
    share = medians[ours] / limit if limit and ours in medians else None
    best = max((value for name, value in medians.items() if name != ours), default=None)
    ratio = medians[ours] / best if ours in medians and best else None
    cells = [entry.title, cell(figures.get(ours, ""), rounds), f"{share:.0%} of {number(limit)}" if share is not None else ""]
    cells += [cell(figures.get(name, ""), rounds) for name in columns]
    cells += [f"{ratio:.2f} ×" if ratio is not None else "", verdicts(entry.goals.get(model, ()), medians, ours, share)]
    return f"| {' | '.join(cells)} |"


def verdicts(goals: tuple, medians: dict, ours: str, share: float | None) -> str:
    return "; ".join(verdict(goal, medians, ours, share) for goal in goals)


def verdict(goal: m.Goal, medians: dict, ours: str, share: float | None) -> str:
    if not goal.peers:
        words = f"{goal.least:.0%} of the limit"
        return f"{words}: {MET[share >= goal.least]}" if share is not None else f"{words}: not measured"
    words = f"{goal.least} × {goal.peers[0] if len(goal.peers) == 1 else 'best peer'}"
    peers = [medians[name] for name in goal.peers if name in medians]
    if ours not in medians or not peers:
        return f"{words}: not measured"
    ratio = medians[ours] / max(peers)
    return f"{words}: {MET[ratio >= goal.least]} ({ratio:.2f})"


def http(results: dict) -> str:
    if not results["http"]:
        return ""
    lines = [
        f"## {m.HTTP_STREAMS} streams over HTTP: tokens of replies per second, prompts included in the time",
        "",
        "| | without HTTP | over HTTP | ratio | goal |",
        "|---|---:|---:|---:|---|",
    ]
    for model, figures in results["http"].items():
        ratios = [served / raw for served, raw in zip(figures["http"], figures["raw"])]
        if not ratios:
            continue
        lengths = f"{m.HTTP_PROMPT_TOKENS} + {m.HTTP_REPLY_TOKENS[model]} tokens"
        cells = [f"{SHAPES[model].title}, {lengths}", spread(figures["raw"]), spread(figures["http"]), spread(ratios)]
        lines.append(f"| {' | '.join(cells)} | {m.HTTP_GOAL}: {MET[median(ratios) >= m.HTTP_GOAL]} |")
    return "\n".join([*lines, ""])


def startup(results: dict) -> str:
    if not results["startup"]:
        return ""
    lines = [
        "## Start-up: seconds from the start of the executable to the ready line",
        "",
        "| | reading the file once | ready | goal |",
        "|---|---:|---:|---|",
    ]
    for model, times in results["startup"].items():
        if not times.get("cached_ready"):
            continue
        title = "demo model" if model == "demo" else SHAPES[model].title
        most = m.STARTUP_GOALS[model]
        verdict = f"{most} s: {MET[median(times['cached_ready']) <= most]}"
        lines.append(f"| {title}, in the page cache | {spread(times.get('cached_read'))} | {spread(times['cached_ready'])} | {verdict} |")
        if times.get("uncached_ready"):
            ratio = median(times["uncached_ready"]) / median(times["uncached_read"])
            verdict = f"{m.STARTUP_GOAL_TO_READ} × reading: {MET[ratio <= m.STARTUP_GOAL_TO_READ]} ({ratio:.2f})"
            cells = [f"{title}, from the disk", spread(times["uncached_read"]), spread(times["uncached_ready"]), verdict]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def agreement(results: dict) -> str:
    if not results["agreement"]:
        return ""
    lines = [
        "## The same computation",
        "",
        f"Greedy replies of {m.AGREEMENT_TOKENS} tokens to {m.AGREEMENT_PROMPTS} prompts, this server's against each peer's: how many are equal, and after how",
        "many tokens the others part. Rounding decides near ties, and everything after one; quantised weights are other weights.",
        "",
        "| | equal | the others part after |",
        "|---|---:|---|",
    ]
    for model, peers in results["agreement"].items():
        for name, first in peers.items():
            parted = sorted(tokens for tokens in first if tokens < m.AGREEMENT_TOKENS)
            equal = f"{len(first) - len(parted)} of {len(first)}"
            lines.append(f"| {SHAPES[model].title}, {name} | {equal} | {', '.join(map(str, parted))} |")
    return "\n".join([*lines, ""])


def failures(results: dict) -> str:
    if not results["failures"]:
        return ""
    return "\n".join(["## Not measured", "", *(f"- {failure}" for failure in results["failures"]), ""])


def cell(figures: list | str, rounds: int) -> str:
    """Figures, and in how many rounds if not in all; or why there are none."""
    if isinstance(figures, str):
        return figures.replace("|", "/")[:80]
    return spread(figures) + (f", n = {len(figures)}" if 0 < len(figures) < rounds else "")


def spread(values: list | None) -> str:
    if not values:
        return ""
    return f"{number(median(values))} ({number(min(values))}–{number(max(values))})"


def number(value: float) -> str:
    """Three digits."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"


METHOD = """## How it is measured

- Weights are random (seeded) in the shapes of the models named, the same bits for every engine; llama.cpp's quantised files are made
  from them by its own quantiser with its defaults. Speed does not depend on what weights say.
- Prompts are random tokens, 16 long, in batches 4, except where a prefill is measured. Prefill ends with the first token, decode counts the tokens after it;
  all engines choose greedily and hand the tokens over after every step.
- This server: one shard, driven by `text-generation-benchmark` over its socket as a router would. Peers: Python processes that keep the
  model loaded. llama.cpp (compiled for this machine): `llama_decode` with default settings, several sequences in one batch. transformers: sdpa,
  `inference_mode`, a dynamic cache. vLLM: its engine stepped in process, no prefix cache. Both in bfloat16 or, where torch multiplies
  matrices more than twice as fast in it, float32: the list of versions says which.
- All engines of a model are loaded at once and stopped (SIGSTOP) except the one that is measured. Each round measures every engine
  once, every second round in reverse order.
- The limit of a decode step is the time to read all weights once (bf16: 2 bytes, int8: 1, 4 bits: 0.5625) or, if longer, the time of its
  multiplications at the better matrix-product rate of torch and this server; of a prefill the latter, with causal attention counted half.
- "best peer" is the fastest in the row, whatever its weights are; rows of int8 without peers are held against those of the row of bf16
  above them.
- "From the disk": the file is dropped from the page cache before each reading and each start. What lies below the virtual machine may cache it still.
"""
