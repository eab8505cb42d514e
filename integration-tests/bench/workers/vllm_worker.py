"""vLLM on its CPU backend: `python vllm_worker.py MODEL_FOLDER THREADS`."""

import os
import re
import sys
from pathlib import Path

# Before vLLM is imported: its engine runs in this process, which is stopped while others are measured.
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{int(sys.argv[2]) - 1}",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    # What it compiles for a model is kept beside it, not in the user's home.
    "VLLM_CACHE_ROOT": os.path.join(sys.prefix, "vllm-cache"),
}

from time import perf_counter  # noqa: E402

import precision  # noqa: E402
import vllm  # noqa: E402
from protocol import serve  # noqa: E402


# What the engines loaded after this one take, and the page cache from which llama.cpp reads its weights.
ROOM_BYTES = 8 << 30


def refuse_what_does_not_fit(folder: Path, dtype: str) -> None:
    """Weights are kept twice, as they were loaded and packed; a machine that swaps or drops its page cache measures nothing."""
    needed = 2 * (folder / "model.safetensors").stat().st_size * (2 if dtype == "float32" else 1) + ROOM_BYTES
    free = 1024 * int(re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())[1])
    if free < needed:
        raise MemoryError(f"needs {needed / 2**30:.0f} GiB in {dtype}, {free / 2**30:.0f} are free")


class Engine:
    def __init__(self, folder: str, threads: int) -> None:
        self.dtype = str(precision.fastest()).removeprefix("torch.")
        refuse_what_does_not_fit(Path(folder), self.dtype)
        self.llm = vllm.LLM(
            folder,
            dtype=self.dtype,
            max_model_len=4096,
            max_num_seqs=32,
            max_num_batched_tokens=2048,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
        )
        self.number = 0

    def hello(self) -> dict:
        return {"about": f"vLLM {vllm.__version__}, {self.dtype}"}

    def generate(self, prompts: list, steps: int) -> dict:
        engine = self.llm.llm_engine
        params = vllm.SamplingParams(temperature=0.0, max_tokens=steps + 1, ignore_eos=True, detokenize=False)
        ids = {}
        start = perf_counter()
        for prompt in prompts:
            self.number += 1
            name = f"{self.number:09}"
            ids[name] = []
            engine.add_request(name, {"prompt_token_ids": prompt}, params)
        prefilled = None
        while engine.has_unfinished_requests():
            for output in engine.step():
                ids[next(name for name in ids if output.request_id.startswith(name))] = list(output.outputs[0].token_ids)
            if prefilled is None and all(ids.values()):
                prefilled = perf_counter()
        done = perf_counter()
        return {"prefill_seconds": prefilled - start, "decode_seconds": done - prefilled, "ids": list(ids.values())}


if __name__ == "__main__":
    serve(Engine(sys.argv[1], int(sys.argv[2])))
