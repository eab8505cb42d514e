"""Every goal on one H200, in one table: which rows of `rows.py`, which of their figures, what it must be and what it aims at."""

import fnmatch
from dataclasses import dataclass

# Figures of a row.
SHARE, RATIO, VALUE = "share", "ratio", "value"


@dataclass(frozen=True)
class Goal:
    title: str
    # Names of rows, as a shell would match them; one that matches none is not measured.
    rows: str
    figure: str
    must: float
    aim: float | None = None
    # Otherwise at most.
    is_at_least: bool = True
    # Why no piece can measure it.
    unmeasured: str = ""

    def applies_to(self, row: str) -> bool:
        return fnmatch.fnmatchcase(row, self.rows)

    def verdict(self, figure: float | None) -> str:
        """"aim", "must", "no" or "?"."""
        if figure is None:
            return "?"
        reaches = lambda bound: bound is not None and (figure >= bound if self.is_at_least else figure <= bound)  # noqa: E731
        return "aim" if reaches(self.aim) else "must" if reaches(self.must) else "no"


GOALS = (
    Goal("8B bf16, decode of 1 row, of the memory's ceiling", "8b/bfloat16/decode/1/1024", SHARE, 0.80, 0.90),
    Goal("1B bf16, decode of 1 row, of the memory's ceiling", "1b/bfloat16/decode/1/1024", SHARE, 0.65, 0.80),
    Goal("8B bf16, decode of 128 rows at 1,024 tokens", "8b/bfloat16/decode/128/1024", SHARE, 0.75, 0.87),
    Goal("8B bf16, decode of 256 rows at 1,024 tokens", "8b/bfloat16/decode/256/1024", SHARE, 0.75, 0.87),
    Goal("8B bf16, prefill of 4,096 tokens, of the product's ceiling", "8b/bfloat16/prefill/4096", SHARE, 0.60, 0.80),
    Goal("8B decode attention of 32 rows", "8b/bfloat16/attention/32/1024", SHARE, 0.75, 0.88),
    Goal("8B decode attention of 64 rows", "8b/bfloat16/attention/64/1024", SHARE, 0.75, 0.88),
    Goal("8B decode attention of 128 rows", "8b/bfloat16/attention/128/1024", SHARE, 0.75, 0.88),
    Goal("8B decode attention of 256 rows", "8b/bfloat16/attention/256/1024", SHARE, 0.75, 0.88),
    Goal("8B fp8, decode of 1 row", "8b/fp8/decode/1/1024", SHARE, 0.65, 0.80),
    Goal("8B 4 bits, decode of 1 row", "8b/bitsandbytes-nf4/decode/1/1024", SHARE, 0.65, 0.78),
    Goal("8B served, 1,000 in and 1,000 out, 128 streams, tokens/s", "8b/served/128/1000+1000", VALUE, 7500, 9500),
    Goal("8B, a step alone beyond one of ten (the host's part, which is idle time), us", "8b/bfloat16/host/1/1024", VALUE, 100, 10, False),
    Goal("8B, ready with weights in the page cache, s", "8b/ready", VALUE, 20, 6, False),
    Goal("decode against a torch loop in a CUDA graph, compiled where that worked", "*/bfloat16/decode/*/1024", RATIO, 1.0),
    Goal("against transformers' continuous batching", "*/served/*/1000+128", RATIO, 2.0),
    Goal("cost of determinism", "", SHARE, 0.10, 0.05, False, "the server has no other mode to compare with"),
    Goal("tests on this GPU: failed ones (logits: 1e-2 relative, 99 % top-1)", "tests/failed", VALUE, 0, None, False),
    Goal("compute-sanitizer: units with errors", "sanitizer/failed", VALUE, 0, None, False),
)
