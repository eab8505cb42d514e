"""llama.cpp by its C functions: `python llama_cpp_worker.py FILE.gguf THREADS`, or `.. quantize FILE.gguf OUT.gguf q8_0|q4_0`."""

import ctypes
import sys
from time import perf_counter

import llama_cpp as c
import numpy as np
from protocol import serve

# Tokens of the longest sequence, and of each of a batch.
CONTEXT_ALONE = 4096
CONTEXT_IN_BATCH = 256
MAX_BATCH = 32
FILE_TYPES = {"f16": c.LLAMA_FTYPE_MOSTLY_F16, "q8_0": c.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": c.LLAMA_FTYPE_MOSTLY_Q4_0}


class Engine:
    def __init__(self, file: str, threads: int) -> None:
        c.llama_backend_init()
        params = c.llama_model_default_params()
        self.model = c.llama_model_load_from_file(file.encode(), params)
        assert self.model, f"{file} cannot be loaded"
        self.vocab_size = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        self.threads = threads
        self.contexts = {}

    def hello(self) -> dict:
        system = c.llama_print_system_info().decode()
        return {"about": f"llama-cpp-python {c.__version__} ({system.strip()})"}

    def context(self, rows: int):
        """One for single sequences and one for batches: what a cache must hold costs time whether it is used or not."""
        batched = rows > 1
        if batched not in self.contexts:
            params = c.llama_context_default_params()
            params.n_ctx = MAX_BATCH * CONTEXT_IN_BATCH if batched else CONTEXT_ALONE
            params.n_seq_max = MAX_BATCH if batched else 1
            params.n_batch = CONTEXT_ALONE
            params.n_threads = params.n_threads_batch = self.threads
            context = c.llama_init_from_model(self.model, params)
            assert context, "no context"
            self.contexts[batched] = (context, c.llama_batch_init(CONTEXT_ALONE, 0, 1))
        return self.contexts[batched]

    def generate(self, prompts: list, steps: int) -> dict:
        context, batch = self.context(len(prompts))
        c.llama_memory_clear(c.llama_get_memory(context), False)
        start = perf_counter()
        last = self.prefill(context, batch, prompts)
        prefilled = perf_counter()
        chosen = [last]
        for step in range(steps):
            last = self.decode(context, batch, last, len(prompts[0]) + step)
            chosen.append(last)
        done = perf_counter()
        ids = [[int(row) for row in rows] for rows in zip(*chosen)]
        return {"prefill_seconds": prefilled - start, "decode_seconds": done - prefilled, "ids": ids}

    def prefill(self, context, batch, prompts: list):
        length = len(prompts[0])
        batch.n_tokens = length * len(prompts)
        for row, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                self.put(batch, row * length + position, token, row, position, position + 1 == length)
        self.run(context, batch)
        return [self.most_likely(context, row * length + length - 1) for row in range(len(prompts))]

    def decode(self, context, batch, tokens: list, position: int):
        batch.n_tokens = len(tokens)
        for row, token in enumerate(tokens):
            self.put(batch, row, token, row, position, True)
        self.run(context, batch)
        return [self.most_likely(context, row) for row in range(len(tokens))]

    @staticmethod
    def put(batch, index: int, token: int, row: int, position: int, wants_logits: bool) -> None:
        batch.token[index] = token
        batch.pos[index] = position
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = row
        batch.logits[index] = wants_logits

    @staticmethod
    def run(context, batch) -> None:
        code = c.llama_decode(context, batch)
        assert code == 0, f"llama_decode returned {code}"

    def most_likely(self, context, index: int) -> int:
        logits = c.llama_get_logits_ith(context, index)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocab_size,)).argmax())


def quantize(source: str, target: str, file_type: str) -> None:
    """As `llama-quantize` does it by default."""
    params = c.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[file_type]
    params.nthread = 2
    code = c.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    assert code == 0, f"llama_model_quantize returned {code}"


if __name__ == "__main__":
    if sys.argv[1] == "quantize":
        quantize(*sys.argv[2:])
    else:
        serve(Engine(sys.argv[1], int(sys.argv[2])))
