"""Quantizes plain weights while they are loaded: one matrix after the other, some rows at a time.

Runs in an engine rank, called by `models/weights.py` for every matrix of a linear layer. In: a
matrix [out, in] of this rank. Out: its `CodedWeight`. No more than `CHUNK` numbers are ever in
float32, so that a model larger than the memory in 16 bits can be loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import Any

import torch

from serving.errors import StartupError
from serving.kernels.codebooks import E4M3, FP4, INT8, NF4, Codebook
from serving.kernels.coded_weight import CodedWeight, pack_nibbles
from serving.quant.scheme import PHASE, check_finite

CHUNK = 2**18  # numbers, which fit into a cache
BLOCK = 64  # of bitsandbytes' 4-bit types
Rows = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class RowQuantizer:
    """Quantizes rows by themselves.

    `rows`: [n, in] to codes, as `CodedWeight` has them, and scales.
    """

    book: Codebook
    rows: Rows
    bits: float
    quantizes_activations: bool = False

    def __call__(self, module: str, matrix: torch.Tensor) -> CodedWeight:
        """The matrix [out, in], quantized. Raises `StartupError` naming one that is not finite."""
        outputs, inputs = matrix.shape
        step = max(1, CHUNK // inputs // BLOCK) * BLOCK  # rows, together whole blocks
        codes, scales = self.rows(matrix[:step])
        all_codes = codes.new_empty(outputs, codes.shape[1])
        all_scales = scales.new_empty(outputs, scales.shape[1])
        all_codes[:step], all_scales[:step] = codes, scales
        for start in range(step, outputs, step):
            own = slice(start, start + step)
            all_codes[own], all_scales[own] = self.rows(matrix[own])
        check_finite(f"{module}.weight", all_scales)
        return CodedWeight(
            module, self.book, all_codes, all_scales, None, inputs,
            quantizes_activations=self.quantizes_activations,
        )  # fmt: skip


def int8_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """8-bit integers, symmetric, one scale for each row."""
    wide = rows.float()
    scales = wide.abs().amax(-1, keepdim=True).clamp_(min=1e-30) / 127
    codes = (wide / scales).round_().to(torch.int8)
    return codes.view(torch.uint8), scales


def fp8_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """8-bit floats of 4 bits of exponent, one scale for each row."""
    wide = rows.float()
    most = torch.finfo(torch.float8_e4m3fn).max
    scales = wide.abs().amax(-1, keepdim=True).clamp_(min=1e-30) / most
    codes = (wide / scales).clamp_(-most, most).to(torch.float8_e4m3fn)
    return codes.view(torch.uint8), scales


def bitsandbytes_int8_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """8-bit integers by the bitsandbytes library, one scale for each row."""
    functional = _bitsandbytes()
    codes, most, _ = functional.int8_vectorwise_quant(rows.half())
    return codes.view(torch.uint8), most.float().unsqueeze(-1) / 127


def bitsandbytes_4bit_rows(rows: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """4-bit floats by the bitsandbytes library; its blocks of 64 run on from row to row."""
    functional = _bitsandbytes()
    packed, state = functional.quantize_4bit(rows.contiguous(), blocksize=BLOCK, quant_type=kind)
    count, inputs = rows.shape
    codes, scales = from_blocks(packed.flatten(), state.absmax, count, inputs, BLOCK)
    return pack_nibbles(codes), scales


def from_blocks(
    packed: torch.Tensor,
    scales: torch.Tensor,
    outputs: int,
    inputs: int,
    block: int,
    skipped: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a matrix that bitsandbytes packed as one row, first code in high bits.

    packed: uint8 [outputs * inputs / 2]; scales: float32, one for each `block` codes; `skipped`:
    how many codes of the first block lie before the matrix. Codes come out one a byte. Where rows
    are not whole blocks, the scale of a block is that of the smaller groups it is made of.
    """
    high_first = torch.stack([packed >> 4, packed & 15], dim=-1)
    codes = high_first.flatten()[: outputs * inputs].view(outputs, inputs)
    group = gcd(inputs, block)
    first = torch.arange(outputs * inputs // group, device=scales.device) * group + skipped
    return codes, scales.float()[first // block].view(outputs, -1)


def _bitsandbytes() -> Any:
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise StartupError(
            PHASE,
            f"--quantize bitsandbytes needs the bitsandbytes library, which is not there ({error})",
            "install bitsandbytes, or choose another scheme",
        ) from error
    return functional


# What --quantize makes of plain weights; scales of 4-bit types take another half bit.
QUANTIZERS: dict[str, RowQuantizer] = {
    "bitsandbytes": RowQuantizer(INT8, bitsandbytes_int8_rows, 8),
    "bitsandbytes-nf4": RowQuantizer(NF4, partial(bitsandbytes_4bit_rows, kind="nf4"), 4.5),
    "bitsandbytes-fp4": RowQuantizer(FP4, partial(bitsandbytes_4bit_rows, kind="fp4"), 4.5),
    "eetq": RowQuantizer(INT8, int8_rows, 8),
    "fp8": RowQuantizer(E4M3, fp8_rows, 8),
    "int8": RowQuantizer(INT8, int8_rows, 8, quantizes_activations=True),
}
