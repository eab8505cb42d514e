"""transformers on CPU torch: `python transformers_worker.py MODEL_FOLDER THREADS`."""

import sys
from time import perf_counter

import precision
import torch
import transformers
from protocol import serve


class Engine:
    def __init__(self, folder: str, threads: int) -> None:
        torch.set_num_threads(threads)
        transformers.utils.logging.set_verbosity_error()
        self.dtype = precision.fastest()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=self.dtype, attn_implementation="sdpa"
        ).eval()

    def hello(self) -> dict:
        words = f"transformers {transformers.__version__}, torch {torch.__version__}, {self.dtype}"
        return {"about": words.replace("torch.", "")}

    @torch.inference_mode()
    def generate(self, prompts: list, steps: int) -> dict:
        ids = torch.tensor(prompts)
        cache = transformers.DynamicCache(config=self.model.config)
        start = perf_counter()
        last = self.next(ids, cache)
        prefilled = perf_counter()
        chosen = [last]
        for _ in range(steps):
            last = self.next(last, cache)
            chosen.append(last)
        done = perf_counter()
        return {
            "prefill_seconds": prefilled - start,
            "decode_seconds": done - prefilled,
            "ids": torch.cat(chosen, dim=1).tolist(),
        }

    def next(self, ids: torch.Tensor, cache) -> torch.Tensor:
        """The most likely token of each row after `ids`, which the cache holds afterwards."""
        logits = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1, keepdim=True)

    def gemm(self) -> dict:
        """The best of a few large products, as oneDNN computes linears: the machine's peak as far as torch finds it."""
        shapes = ((512, 8192, 2048), (2048, 8192, 2048), (2048, 2048, 8192), (4096, 4096, 4096))
        return {"flops_per_second": max(precision.gemm(self.dtype, *shape) for shape in shapes)}


if __name__ == "__main__":
    serve(Engine(sys.argv[1], int(sys.argv[2])))
