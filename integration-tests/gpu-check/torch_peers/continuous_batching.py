"""transformers' continuous batching (`generate_batch`) on the same random model: as many requests as there are streams, of one length."""

import random
import sys

import torch
from measuring import Task, skip


def load(task: Task):
    import transformers

    transformers.utils.logging.set_verbosity_error()
    entries = task.shape.config() | {"tie_word_embeddings": task.is_tied}
    config = transformers.LlamaConfig(**{name: value for name, value in entries.items() if name not in ("model_type", "torch_dtype")})
    torch.set_default_dtype(torch.bfloat16)
    with task.device:
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model.eval()


def settings(requests: int, task: Task):
    """Greedy, and of exactly as many tokens as asked for."""
    import transformers

    generation = transformers.GenerationConfig(
        max_new_tokens=task.request[1],
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
    )
    names = {"max_batch_tokens": max(8192, requests), "use_async_batching": task.is_cuda, "use_cuda_graph": task.is_cuda}
    if not task.is_cuda:
        names |= {"max_batch_tokens": 64, "num_blocks": 64, "page_size": 32, "block_size": 32}
    known = getattr(transformers, "ContinuousBatchingConfig", None)
    if known is None:
        from transformers.generation import ContinuousBatchingConfig as known
    fields = known.__dataclass_fields__
    # Versions differ in what they call a page.
    if "page_size" in fields:
        names.pop("block_size", None)
    return generation, known(**{name: value for name, value in names.items() if name in fields})


@torch.no_grad()
def measure(model, requests: int, task: Task) -> dict:
    source = random.Random(requests)
    prompt_tokens, reply_tokens = task.request
    inputs = lambda count: [[source.randrange(task.shape.vocab) for _ in range(prompt_tokens)] for _ in range(count)]  # noqa: E731
    generation, batching = settings(requests, task)
    run = lambda prompts: model.generate_batch(inputs=prompts, generation_config=generation, continuous_batching_config=batching)  # noqa: E731
    run(inputs(2))
    replies = run(inputs(requests))
    # From the first request to the end of the last one: what `generate_batch` prepares before them is not theirs.
    begin = min((reply.created_time for reply in replies.values()), default=0.0)
    seconds = max((reply.lifespan[1] for reply in replies.values()), default=0.0) - begin
    tokens = sum(len(reply.generated_tokens) for reply in replies.values())
    if len(replies) != requests or tokens != requests * reply_tokens:
        raise ValueError(f"{len(replies)} replies with {tokens} tokens instead of {requests} with {requests * reply_tokens}")
    if seconds <= 0:
        raise ValueError("the replies do not say when they ended")
    return {"tokens_per_second": tokens / seconds, "elapsed_seconds": seconds}


def main() -> None:
    task = Task(sys.argv[1])
    lengths = "+".join(map(str, task.request))
    try:
        model = load(task)
        for streams in task.streams:
            name = f"transformers/{task.shape_name}/served/{streams}/{lengths}"
            if name not in task.have:
                task.add(name, **measure(model, streams, task))
    except Exception as error:  # noqa: BLE001
        # Young, and different from version to version.
        skip(f"generate_batch: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}")


if __name__ == "__main__":
    main()
