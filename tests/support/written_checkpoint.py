"""Turns a plain checkpoint into a quantized one, and into the plain one that it stands for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from written_matrix import Writer

PLAIN = "dequantized"  # below a quantized checkpoint
# Ends of the names of modules whose matrices nobody quantizes, or that are no matrices.
KEPT = (
    "embed_tokens", "wte", "wpe", "word_embeddings", "embed_in", "embed_out", "lm_head", "shared",
    "embeddings", ".gate", "relative_attention_bias", "dt_proj",
)  # fmt: skip


def is_linear(module: str) -> bool:
    return not module.endswith(KEPT)


def write_quantized(
    source: Path,
    output: Path,
    writer: Writer,
    chosen: Callable[[str], bool] = is_linear,
    transposed: bool = False,
) -> Path:
    """Write `output`, and the plain form of it to PLAIN below; returns `output`.

    `chosen`: which modules are quantized. `transposed`: matrices are stored [in, out].
    """
    tensors, plain = {}, {}
    for name, value in load_file(source / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module == name or value.dim() != 2 or not chosen(module):
            tensors[name] = plain[name] = value
            continue
        matrix = (value.T if transposed else value).float().numpy()
        written = writer(np.ascontiguousarray(matrix), np.random.default_rng(crc32(name.encode())))
        own = {f"{module}.{end}": part.contiguous() for end, part in written.tensors.items()}
        tensors = own | tensors  # a bias that is there stays
        result = torch.from_numpy(written.weight)
        plain[name] = (result.T if transposed else result).contiguous()
    _save(source, output, tensors, {"quantization_config": writer.config})
    _save(source, output / PLAIN, plain, {})
    return output


def _save(
    source: Path, output: Path, tensors: dict[str, torch.Tensor], more: dict[str, object]
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    (output / "config.json").write_text(json.dumps(config | more))
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (source / name).exists():
            shutil.copy(source / name, output / name)
