"""Random models as folders, where `gpu_check` looks for them, and makes them if they are not there.

Speed does not depend on what weights say. Numbers are cut from one seeded block again and again, so that 16 GB are written as fast as the
disk takes them; the block's length divides no row, so no two rows of a matrix are the same.
"""

import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from models import Shape, tokenizer

SEED = 1
# Prime: 32 MB.
BLOCK_NUMBERS = 16_777_213
CONTEXT = 32768

# Extents as in `shard/examples/gpu_check/shape.rs`.
SHAPES = {
    "tiny": Shape("tiny", 128, 2, 4, 2, 256, 512, CONTEXT, 500000.0),
    "1b": Shape("Llama-3.2-1B", 2048, 16, 32, 8, 8192, 128256, CONTEXT, 500000.0),
    "8b": Shape("Llama-3.1-8B", 4096, 32, 32, 8, 14336, 128256, CONTEXT, 500000.0),
}
TIED = ("1b",)


def folder(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"gpu-check-{name}"


def make(name: str) -> Path:
    """The folder of a shape, with weights if it has none yet. `config.json` comes last: a folder with it is complete."""
    path, shape = folder(name), SHAPES[name]
    path.mkdir(parents=True, exist_ok=True)
    # What `gpu_check` makes has no tokenizer.
    (path / "tokenizer.json").write_text(json.dumps(tokenizer(shape.vocab)), "utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}), "utf-8")
    if not (path / "config.json").exists():
        write_weights(path / "model.safetensors", extents(shape, name in TIED))
        config = shape.config() | {"tie_word_embeddings": name in TIED}
        part = path / "config.part"
        part.write_text(json.dumps(config), "utf-8")
        os.replace(part, path / "config.json")
    return path


def extents(shape: Shape, is_tied: bool) -> dict[str, tuple[int, ...]]:
    """Of every tensor, by its name in checkpoints."""
    tensors = {"model.embed_tokens.weight": (shape.vocab, shape.hidden), "model.norm.weight": (shape.hidden,)}
    if not is_tied:
        tensors["lm_head.weight"] = (shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = (shape.hidden,)
        tensors[prefix + "post_attention_layernorm.weight"] = (shape.hidden,)
        tensors |= {f"{prefix}{name}.weight": rows_and_columns for name, rows_and_columns in shape.matrices.items()}
    return tensors


def write_weights(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """The file format: length of the header (u64), header (JSON), values."""
    header, end = {}, 0
    for name, extent in tensors.items():
        start, end = end, end + num_bytes(extent)
        header[name] = {"dtype": "BF16", "shape": list(extent), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    # Values begin at a multiple of 64, as writers of real checkpoints see to.
    text += b" " * (-(len(text) + 8) % 64)
    block = memoryview(random_block(min(BLOCK_NUMBERS, end // 2)))
    position = 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for extent in tensors.values():
            if len(extent) == 1:
                # Norms multiply by one.
                file.write(b"\x80\x3f" * extent[0])
                continue
            for part in parts(block, position, num_bytes(extent)):
                file.write(part)
            position = (position + num_bytes(extent)) % len(block)


def num_bytes(extent: tuple[int, ...]) -> int:
    count = 2
    for length in extent:
        count *= length
    return count


def random_block(numbers: int) -> bytes:
    """Numbers of bfloat16 with both signs, from 1/128 to 1/32 in magnitude: their root mean square is 0.019, as models are initialised.

    The upper byte holds the sign and all but the last bit of the exponent, the lower byte that bit and the fraction.
    """
    source = random.Random(SEED)
    block = bytearray(2 * numbers)
    block[0::2] = source.randbytes(numbers)
    block[1::2] = source.randbytes(numbers).translate(bytes([0x3C] * 128 + [0xBC] * 128))
    return bytes(block)


def parts(block: memoryview, position: int, count: int) -> Iterator[memoryview]:
    """`count` bytes from `position` on, beginning anew at the block's end."""
    while count:
        part = block[position : position + count]
        yield part
        count -= len(part)
        position = (position + len(part)) % len(block)

