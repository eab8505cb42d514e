"""What is measured, on whom, and which goal it has: one entry each. `run.py` carries them out, `report.py` prints them.

Every figure is tokens per second of all rows together. What a figure is held against, its limit, is the time that no engine
can beat: the weights read once from memory, or the multiplications at the peak of matrix products, whichever is longer.
"""

from dataclasses import dataclass, field

from models import Shape

OURS, OURS_INT8, OURS_4BIT = "this server", "this server, eetq", "this server, bitsandbytes-nf4"
OURS_ALL = (OURS, OURS_INT8, OURS_4BIT)
LLAMA, LLAMA_INT8, LLAMA_4BIT = "llama.cpp bf16", "llama.cpp Q8_0", "llama.cpp Q4_0"
TRANSFORMERS, VLLM = "transformers", "vLLM"

# Bytes of a weight: of the 4-bit formats with a scale of two bytes for 32 weights, which is the larger of them.
BF16, INT8, FOUR_BIT = 2.0, 1.0, 0.5625


@dataclass(frozen=True)
class Goal:
    """At least `least` times the best of `peers`; without peers, at least that share of the limit."""

    least: float
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """Prompts of random tokens are computed, then all rows decode together; `figure` is the part that counts."""

    # What --only chooses.
    group: str
    title: str
    figure: str  # "prefill" or "decode"
    rows: int
    prompt_tokens: int
    # By model: steps after prefill, so many that they take a second or two.
    steps: dict[str, int]
    # Ours first.
    engines: tuple[str, ...]
    weight_bytes: float = BF16
    # By model.
    goals: dict[str, tuple[Goal, ...]] = field(default_factory=dict)
    # Part of --quick.
    quick: bool = False
    # The measurement whose peers this is held against, beside its own.
    peers_of: str = ""

    def limit_seconds(self, shape: Shape, machine: dict) -> float:
        """Of one step, or of the whole prompt."""
        weights = shape.parameters * self.weight_bytes / machine["read_bytes_per_second"]
        if self.figure == "prefill":
            return shape.prefill_flops(self.prompt_tokens) / machine["gemm_flops_per_second"]
        return max(weights, 2 * self.rows * shape.parameters / machine["gemm_flops_per_second"])

    def limit(self, shape: Shape, machine: dict) -> float | None:
        """In tokens per second. None for rows of quantised weights: they are multiplied at other peaks, which nobody measures."""
        if self.weight_bytes != BF16 and (self.rows > 1 or self.figure == "prefill"):
            return None
        tokens = self.prompt_tokens if self.figure == "prefill" else self.rows
        return tokens / self.limit_seconds(shape, machine)


def both(*goals: Goal) -> dict[str, tuple[Goal, ...]]:
    return {"135m": goals, "1b": goals}


PEERS_BF16 = (LLAMA, TRANSFORMERS, VLLM)
# llama.cpp is faster at batches with Q8_0, and it is what its users run.
PEERS_ANY = (LLAMA, LLAMA_INT8, TRANSFORMERS, VLLM)
PREFILL_GOALS = {
    "135m": (Goal(2.1, (TRANSFORMERS,)),),
    "1b": (Goal(0.78), Goal(1.5, (TRANSFORMERS,))),
}
# Against peers only: of quantised weights no limit is known.
PREFILL_RATIOS = {model: tuple(goal for goal in goals if goal.peers) for model, goals in PREFILL_GOALS.items()}
BATCH_GOALS = both(Goal(1.6, PEERS_ANY), Goal(1.9, (TRANSFORMERS,)))

MEASUREMENTS = (
    Measurement(
        "decode",
        "decode, batch 1, bf16",
        "decode",
        1,
        16,
        {"135m": 64, "1b": 16},
        (OURS, *PEERS_BF16),
        goals=both(Goal(0.80), Goal(1.4, PEERS_BF16)),
        quick=True,
    ),
    Measurement(
        "decode",
        "decode, batch 1, int8",
        "decode",
        1,
        16,
        {"135m": 96, "1b": 24},
        (OURS_INT8, LLAMA_INT8),
        INT8,
        both(Goal(1.2, (LLAMA_INT8,))),
        quick=True,
    ),
    Measurement(
        "decode",
        "decode, batch 1, 4 bits",
        "decode",
        1,
        16,
        {"135m": 128, "1b": 32},
        (OURS_4BIT, LLAMA_4BIT),
        FOUR_BIT,
        both(Goal(1.1, (LLAMA_4BIT,))),
        quick=True,
    ),
    Measurement(
        "prefill",
        "prefill of 512 tokens, bf16",
        "prefill",
        1,
        512,
        {"135m": 1, "1b": 1},
        (OURS, *PEERS_BF16),
        goals=PREFILL_GOALS,
        quick=True,
    ),
    Measurement(
        "prefill",
        "prefill of 512 tokens, int8",
        "prefill",
        1,
        512,
        {"135m": 1, "1b": 1},
        (OURS_INT8,),
        INT8,
        PREFILL_RATIOS,
        peers_of="prefill of 512 tokens, bf16",
    ),
    Measurement(
        "prefill",
        "prefill of 2048 tokens, bf16",
        "prefill",
        1,
        2048,
        {"135m": 1, "1b": 1},
        # llama.cpp would take longer than all others together, and is slower here than at 512 tokens.
        (OURS, TRANSFORMERS, VLLM),
        goals=PREFILL_GOALS,
    ),
    Measurement(
        "prefill",
        "prefill of 2048 tokens, int8",
        "prefill",
        1,
        2048,
        {"135m": 1, "1b": 1},
        (OURS_INT8,),
        INT8,
        PREFILL_RATIOS,
        peers_of="prefill of 2048 tokens, bf16",
    ),
    Measurement(
        "batch",
        "decode, batch 8, bf16",
        "decode",
        8,
        4,
        {"135m": 24, "1b": 8},
        (OURS, *PEERS_ANY),
        goals=BATCH_GOALS,
    ),
    Measurement(
        "batch",
        "decode, batch 8, int8",
        "decode",
        8,
        4,
        {"135m": 24, "1b": 8},
        (OURS_INT8,),
        INT8,
        BATCH_GOALS,
        peers_of="decode, batch 8, bf16",
    ),
    Measurement(
        "batch",
        "decode, batch 32, bf16",
        "decode",
        32,
        4,
        {"135m": 16, "1b": 6},
        (OURS, *PEERS_ANY),
        goals=BATCH_GOALS,
        quick=True,
    ),
    Measurement(
        "batch",
        "decode, batch 32, int8",
        "decode",
        32,
        4,
        {"135m": 16, "1b": 6},
        (OURS_INT8,),
        INT8,
        BATCH_GOALS,
        peers_of="decode, batch 32, bf16",
    ),
)

# Over HTTP and, with the same lengths, without: streams, tokens of each prompt, tokens of each reply by model.
HTTP_STREAMS = 32
HTTP_PROMPT_TOKENS = 16
HTTP_REPLY_TOKENS = {"135m": 64, "1b": 24}
HTTP_GOAL = 0.92

# Seconds to the ready line with the files in the page cache; without: by what the time to read them once is multiplied.
STARTUP_GOALS = {"1b": 3.0, "demo": 0.5}
STARTUP_GOAL_TO_READ = 1.3

# Greedy replies that are compared between engines.
AGREEMENT_PROMPTS = 8
AGREEMENT_TOKENS = 16
