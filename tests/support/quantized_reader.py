"""Reads GPTQ and AWQ checkpoints by the definition of their formats, with numpy only.

The oracle of the tests of `serving/tools/quantize`: shares nothing with the code that writes.
"""

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

Floats = NDArray[np.float32]


def read_bits(words: NDArray[np.int32], bits: int) -> NDArray[np.int64]:
    """int32 [n] as one little-endian stream of bits; returns numbers of `bits` bits."""
    stream = np.unpackbits(words.astype("<i4").view(np.uint8), bitorder="little")
    return (stream.reshape(-1, bits).astype(np.int64) << np.arange(bits)).sum(1)


def gptq_codes(qweight: NDArray[np.int32], bits: int) -> NDArray[np.int64]:
    """[in * bits / 32, out] to codes [in, out]: each column is a stream."""
    return np.stack([read_bits(column, bits) for column in qweight.T.copy()], axis=1)


def gptq_zeros(qzeros: NDArray[np.int32], bits: int) -> NDArray[np.int64]:
    """[groups, out * bits / 32] to zeros [groups, out]: each row is a stream of zero - 1."""
    return np.stack([read_bits(row, bits) for row in qzeros]) + 1


def awq_codes(packed: NDArray[np.int32]) -> NDArray[np.int64]:
    """[n, out / 8] to [n, out]: nibble k of a word, from the lowest, is column 0,2,4,6,1,3,5,7."""
    codes = np.zeros((packed.shape[0], packed.shape[1] * 8), dtype=np.int64)
    for nibble, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
        codes[:, column::8] = (packed.view(np.uint32) >> np.uint32(4 * nibble)) & 15
    return codes


def gptq_weight(parts: dict[str, NDArray], bits: int) -> Floats:
    """The float matrix [in, out] of a GPTQ linear layer."""
    zeros, groups = gptq_zeros(parts["qzeros"], bits), parts["g_idx"]
    scales = parts["scales"].astype(np.float32)
    return ((gptq_codes(parts["qweight"], bits) - zeros[groups]) * scales[groups]).astype("f4")


def awq_weight(parts: dict[str, NDArray], group_size: int) -> Floats:
    """The float matrix [in, out] of an AWQ linear layer."""
    codes, zeros = awq_codes(parts["qweight"]), awq_codes(parts["qzeros"])
    scales = parts["scales"].astype(np.float32)
    groups = np.arange(len(codes)) // group_size
    return ((codes - zeros[groups]) * scales[groups]).astype("f4")


def read_checkpoint(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by its index."""
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = {}
    for name in sorted(set(index.values())):
        with safe_open(directory / name, framework="pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert tensors.keys() == index.keys()
    return tensors


def dequantize(directory: Path, output: Path, transposed: bool = False) -> Path:
    """Write a quantized checkpoint as a float one that transformers loads by itself.

    `transposed`: matrices are stored [in, out], as GPT-2 has them.
    """
    config = json.loads((directory / "config.json").read_text())
    method = config.pop("quantization_config")
    tensors = read_checkpoint(directory)
    for name in [name for name in tensors if name.endswith(".qweight")]:
        stem = name.removesuffix("qweight")
        ends = ("qweight", "qzeros", "scales", *(["g_idx"] if f"{stem}g_idx" in tensors else []))
        parts = {end: tensors.pop(stem + end).numpy() for end in ends}
        if method["quant_method"] == "gptq":
            weight = gptq_weight(parts, method["bits"])
        else:
            weight = awq_weight(parts, method["group_size"])
        stored = weight if transposed else weight.T
        tensors[f"{stem}weight"] = torch.from_numpy(stored.copy())
    output.mkdir()
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    (output / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    return output
