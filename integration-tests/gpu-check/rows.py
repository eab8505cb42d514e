"""From figures to rows of the table: each beside the ceiling that this GPU has shown, and its peer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`share` is of the ceiling named, `ratio` how many times faster than the peer named."""

    name: str
    value: float
    unit: str
    share: float | None = None
    ceiling: str = ""
    ratio: float | None = None
    peer: str = ""


@dataclass(frozen=True)
class Ceilings:
    """Bytes and products per second; None where nothing was measured."""

    memory: float | None
    product: float | None
    # What `memory` was measured by.
    name: str

    @staticmethod
    def of(figures: dict[str, dict]) -> "Ceilings":
        """The best of reading and copying: a poor reduction must not make shares look good."""
        names = {"ceiling/read": "read", "ceiling/copy": "copy", "ceiling/copy/ours": "copy"}
        found = {name: figures[name]["per_second"] for name in names if name in figures}
        best = max(found, key=found.get, default=None)
        product = figures.get("ceiling/gemm_bf16", {}).get("per_second")
        return Ceilings(found.get(best), product, names.get(best, ""))

    def share(self, seconds: float, num_bytes: float, flops: float) -> tuple[float | None, str]:
        """How much of the time would be needed at the ceiling which takes longer, and which that is."""
        by_memory = num_bytes / self.memory if self.memory else None
        by_product = flops / self.product if self.product else 0.0
        if by_memory is None:
            return None, ""
        return (by_memory / seconds, self.name) if by_memory >= by_product else (by_product / seconds, "product")


def rows(figures: dict[str, dict], units: dict[str, dict]) -> list[Row]:
    ceilings = Ceilings.of(figures)
    # After all that was measured directly: what is derived from several figures.
    found = [row for name, figure in figures.items() for row in direct(name, figure, figures, ceilings)]
    return found + [row for name in figures for row in derived(name, figures, ceilings)] + counts(figures, units)


def direct(name: str, figure: dict, figures: dict[str, dict], ceilings: Ceilings) -> list[Row]:
    words = name.split("/")
    match words:
        case ["ceiling", "kernel"]:
            return [Row(name, figure["seconds"] * 1e6, "us")]
        case ["ceiling", what, *_]:
            return [Row(name, figure["per_second"] / 1e12, "TFLOP/s" if "gemm" in what else "TB/s")]
        case ["ours", shape, "linear", layer, num_rows]:
            peer = peer_seconds(figures, f"torch/{shape}/linear/{layer}/{num_rows}")
            return [rate(f"{shape}/linear/{layer}/{num_rows}", figure, ceilings, peer)]
        case ["ours", shape, weights, "decode", num_rows, context]:
            seconds = figure["seconds_of_ten"]
            share, ceiling = ceilings.share(seconds, figure["bytes"], figure["flops"])
            ratio, peer = against_torch(figures, seconds, shape, weights, f"decode/{num_rows}/{context}")
            return [Row(f"{shape}/{weights}/decode/{num_rows}/{context}", int(num_rows) / seconds, "tokens/s", share, ceiling, ratio, peer)]
        case ["ours", shape, weights, "prefill", length]:
            seconds = figure["seconds"]
            share = figure["flops"] / ceilings.product / seconds if ceilings.product else None
            ratio, peer = against_torch(figures, seconds, shape, weights, f"prefill/{length}")
            return [Row(f"{shape}/{weights}/prefill/{length}", int(length) / seconds, "tokens/s", share, "product", ratio, peer)]
        case ["ours", shape, weights, "load"]:
            return [Row(f"{shape}/{weights}/load", figure["seconds"], "s")]
        case ["ours", shape, "ready"]:
            return [Row(f"{shape}/ready", figure["seconds"], "s")]
        case ["ours", shape, "served", streams, lengths]:
            value = figure["tokens_per_second"]
            peer = figures.get(f"transformers/{shape}/served/{streams}/{lengths}")
            ratio = peer and value / peer["tokens_per_second"]
            return [Row(f"{shape}/served/{streams}/{lengths}", value, "tokens/s", ratio=ratio, peer="transformers" if peer else "")]
        case ["torch", shape, "linear" | "attention" as what, *rest]:
            return [rate(f"torch/{shape}/{what}/{'/'.join(rest)}", figure, ceilings)]
        case ["torch", shape, "decode", num_rows, context, how]:
            return [Row(name, int(num_rows) / figure["seconds"], "tokens/s")]
        case ["torch", shape, "prefill", length, how]:
            return [Row(name, int(length) / figure["seconds"], "tokens/s")]
        case ["transformers", *_]:
            return [Row(name, figure["tokens_per_second"], "tokens/s")]
    return []


def rate(name: str, figure: dict, ceilings: Ceilings, peer: float | None = None) -> Row:
    """Of an operation: bytes a second, or products where these are what takes longer."""
    seconds, num_bytes, flops = figure["seconds"], figure["bytes"], figure.get("flops", 0.0)
    share, ceiling = ceilings.share(seconds, num_bytes, flops)
    by_product = ceiling == "product"
    value = (flops if by_product else num_bytes) / seconds / 1e12
    ratio = peer and peer / seconds
    return Row(name, value, "TFLOP/s" if by_product else "TB/s", share, ceiling, ratio, "torch" if peer else "")


def derived(name: str, figures: dict[str, dict], ceilings: Ceilings) -> list[Row]:
    """Of a decode step: what the host adds to a step alone, and attention, which is what a long context takes beyond a short one."""
    match name.split("/"):
        case ["ours", shape, weights, "decode", num_rows, context]:
            figure = figures[name]
            found = [Row(f"{shape}/{weights}/host/{num_rows}/{context}", (figure["seconds"] - figure["seconds_of_ten"]) * 1e6, "us")]
            prefix = f"ours/{shape}/{weights}/decode/{num_rows}/"
            shortest = min((other for other in figures if other.startswith(prefix)), key=lambda other: int(other.rsplit("/", 1)[1]))
            less = figures[shortest]
            difference = {what: figure[key] - less[key] for what, key in (("seconds", "seconds_of_ten"), ("bytes", "bytes"))}
            # Noise is more than what few rows read.
            if shortest != name and difference["seconds"] > 0.02 * figure["seconds_of_ten"]:
                # torch was timed with one layer.
                a_byte = peer_seconds_a_byte(figures, f"torch/{shape}/attention/{num_rows}/{context}")
                peer = a_byte and a_byte * difference["bytes"]
                found.append(rate(f"{shape}/{weights}/attention/{num_rows}/{context}", difference, ceilings, peer))
            return found
    return []


def peer_seconds(figures: dict[str, dict], name: str) -> float | None:
    return figures[name]["seconds"] if name in figures else None


def peer_seconds_a_byte(figures: dict[str, dict], name: str) -> float | None:
    return figures[name]["seconds"] / figures[name]["bytes"] if name in figures else None


def against_torch(figures: dict[str, dict], seconds: float, shape: str, weights: str, what: str) -> tuple[float | None, str]:
    """How many times faster than torch's loop, the faster of its two ways, and which that is. Where there was only one, that is said: a peer
    that is not compiled is weaker. There is none with quantised weights."""
    found = {how: peer_seconds(figures, f"torch/{shape}/{what}/{how}") for how in ("eager", "compiled")}
    found = {how: peer for how, peer in found.items() if peer}
    if weights != "bfloat16" or not found:
        return None, ""
    how = min(found, key=found.get)
    return found[how] / seconds, f"torch, {how}" if len(found) == 2 else f"torch, {how} only"


def counts(figures: dict[str, dict], units: dict[str, dict]) -> list[Row]:
    """How many tests there were, and how many of them failed."""
    found = []
    passed = [figure for name, figure in figures.items() if name.startswith("test/")]
    failed = [name for name in figures if name.startswith("failed/")]
    if passed or failed:
        skipped = sum(figure["is_skipped"] for figure in passed)
        found.append(Row("tests/passed", len(passed) - skipped, ""))
        found.append(Row("tests/skipped", skipped, ""))
        # None has failed is only said once all have run.
        states = {unit["state"] for name, unit in units.items() if name.startswith("correct/")}
        if failed or states == {"done"}:
            found.append(Row("tests/failed", len(failed), ""))
    sanitized = [unit for name, unit in units.items() if name.startswith("sanitize/") and unit["state"] in ("done", "failed")]
    if sanitized:
        found.append(Row("sanitizer/passed", sum(unit["state"] == "done" for unit in sanitized), ""))
        found.append(Row("sanitizer/failed", sum(unit["state"] == "failed" for unit in sanitized), ""))
    return found
