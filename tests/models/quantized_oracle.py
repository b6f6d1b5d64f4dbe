"""What transformers computes with quantized weights: plain ones that are worth the same.

Quantizing while loading is done here once more, rank by rank: layers whose inputs are divided are
quantized in these parts. Integers and floats of 8 bits with numpy, bitsandbytes' types by its
library.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reference import load_reference
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSeq2SeqLM
from transformers.pytorch_utils import Conv1D
from written_checkpoint import is_linear
from written_matrix import Floats

DIVIDED = (  # ends of the names of modules whose inputs are divided over ranks
    "o_proj", "down_proj", "c_proj", "attention.dense", "dense_4h_to_h", "w2", "x_proj", "out_proj",
    "Attention.o", "wo",
)  # fmt: skip
UP_OF_LATENT = "kv_b_proj"  # absorbed into queries and outputs, and kept plain


def int8(weight: Floats) -> Floats:
    scales = np.abs(weight).max(1, keepdims=True) / np.float32(127)
    return np.rint(weight / scales) * scales


def fp8(weight: Floats) -> Floats:
    scales = np.abs(weight).max(1, keepdims=True) / np.float32(448)
    return torch.from_numpy(weight / scales).to(torch.float8_e4m3fn).float().numpy() * scales


def bitsandbytes_int8(weight: Floats) -> Floats:
    from bitsandbytes import functional

    codes, most, _ = functional.int8_vectorwise_quant(torch.from_numpy(weight).half())
    return functional.int8_vectorwise_dequant(codes, most).numpy()


def bitsandbytes_4bit(weight: Floats, kind: str) -> Floats:
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(
        torch.from_numpy(weight), blocksize=64, quant_type=kind
    )
    return functional.dequantize_4bit(packed, state).numpy()


ONLINE: dict[str, Callable[[Floats], Floats]] = {
    "int8": int8,
    "eetq": int8,
    "fp8": fp8,
    "bitsandbytes": bitsandbytes_int8,
    "bitsandbytes-nf4": lambda weight: bitsandbytes_4bit(weight, "nf4"),
    "bitsandbytes-fp4": lambda weight: bitsandbytes_4bit(weight, "fp4"),
}


def is_rounded(module: str) -> bool:
    """Whether a matrix is quantized while loading."""
    if module.endswith("dt_proj"):  # which checkpoints with groups of inputs cannot have quantized
        return True
    return is_linear(module) and not module.endswith(UP_OF_LATENT)


def write_rounded(source: Path, output: Path, flag: str, size: int, transposed: bool) -> Path:
    """The plain checkpoint in `source` with the weights that `size` ranks make of it."""
    tensors = load_file(source / "model.safetensors")
    for name, value in tensors.items():
        module = name.removesuffix(".weight")
        if module == name or value.dim() != 2 or not is_rounded(module):
            continue
        matrix = np.ascontiguousarray((value.T if transposed else value).float().numpy())
        parts = np.split(matrix, size if module.endswith(DIVIDED) else 1, axis=1)
        whole = np.concatenate([ONLINE[flag](part.copy()) for part in parts], axis=1)
        result = torch.from_numpy(whole.astype(np.float32))
        tensors[name] = (result.T if transposed else result).contiguous()
    output.mkdir()
    (output / "config.json").write_text((source / "config.json").read_text())
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    return output


def round_rows(model: nn.Module, size: int) -> None:
    """Let every linear layer but the head round its input to 8 bits, by row and by rank."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and is_rounded(name):
            parts = size if name.endswith(DIVIDED) else 1
            module.register_forward_pre_hook(_rounding(parts))


def _rounding(parts: int) -> Callable[[nn.Module, tuple[torch.Tensor]], torch.Tensor]:
    def hook(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        rounded = []
        for part in inputs[0].chunk(parts, dim=-1):
            scales = part.abs().amax(-1, keepdim=True) / 127
            rounded.append((part / scales).round() * scales)
        return torch.cat(rounded, dim=-1)

    return hook


def load_plain(path: Path) -> nn.Module:
    """The model of transformers, whatever kind it is."""
    if json.loads((path / "config.json").read_text()).get("is_encoder_decoder"):
        model: Any = AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32)
        return model.eval()  # type: ignore[no-any-return]
    return load_reference(path)
