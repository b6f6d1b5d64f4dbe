"""fp8 checkpoints: 8-bit floats with a scale of the matrix, of each output, or of blocks.

Runs in an engine rank, while weights are read. `weight` float8 [out, in] and `weight_scale` (one
scale, [out] or [out, 1]) or `weight_scale_inv` [ceil(out / rows), ceil(in / columns)]; w = code *
scale under both names. Sources: AutoFP8, FBGEMM and DeepSeek-V3's checkpoints. What a matrix is
stored with decides: those that were not converted are plain.
"""

from dataclasses import dataclass

import torch

from serving.kernels.coded_weight import CodedWeight
from serving.quant.scaled import BOOKS, Block, block_of, read_scales, scaled_weight
from serving.quant.scheme import Part, Shapes, TensorIndex, check_dtype

TYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALE_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu)
SCALES = ("weight_scale_inv", "weight_scale")


@dataclass(frozen=True)
class Fp8Scheme:
    """`block`: outputs and inputs that share a scale, where the config has blocks."""

    block: Block | None = None
    label: str = "fp8"

    def holds(self, module: str, tensors: TensorIndex) -> bool:
        """See `Scheme`."""
        name = f"{module}.weight"
        return (
            name in tensors
            and tensors.slice(name).dtype in TYPES
            and any(f"{module}.{scale}" in tensors for scale in SCALES)
        )

    def shapes(self, module: str, outputs: int, inputs: int, tensors: TensorIndex) -> Shapes:
        """See `Scheme`."""
        name = _scale_name(module, tensors)
        check_dtype(tensors, name, *SCALE_TYPES)
        self._block(name, outputs, inputs, tensors)
        return {f"{module}.weight": (outputs, inputs), name: tensors.slice(name).shape}

    def read(self, module: str, part: Part, tensors: TensorIndex) -> CodedWeight:
        """See `Scheme`."""
        name = _scale_name(module, tensors)
        block = self._block(name, part.outputs, part.inputs, tensors)
        codes = tensors.slice(f"{module}.weight").read(*part.ranges)
        scales = read_scales(name, part, tensors, block)
        group_of = torch.arange(*part.columns) // block[1]
        patterns = codes.contiguous().view(torch.uint8)
        return scaled_weight(module, BOOKS[codes.dtype], patterns, scales, group_of)

    def _block(self, name: str, outputs: int, inputs: int, tensors: TensorIndex) -> Block:
        return block_of(name, outputs, inputs, tensors, self.block or (outputs, inputs))


def _scale_name(module: str, tensors: TensorIndex) -> str:
    return next(f"{module}.{scale}" for scale in SCALES if f"{module}.{scale}" in tensors)
