"""AWQ checkpoints: integers of 4 bits with zero points, in groups of inputs, packed along outputs.

Runs in an engine rank, while weights are read. `qweight` int32 [in, out / 8], `qzeros` int32
[groups, out / 8], `scales` [groups, out]; w = (code - zero) * scale. Source: AutoAWQ's
layout "gemm".
"""

from dataclasses import dataclass

import torch

from serving.kernels.coded_weight import CodedWeight
from serving.quant.affine import affine_weight, count_groups, neighbours
from serving.quant.packing import unit_range, unpack
from serving.quant.scheme import Part, Shapes, TensorIndex, check_dtype, check_finite, refuse

BITS = 4
PER_WORD = 8
MIDDLE = 8  # zero point of checkpoints without zero points
ACTIVATIONS = ("act", "gelu_impl")  # modules of AutoAWQ that have scales
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which output each part of a word holds, from the lowest bits


@dataclass(frozen=True)
class AwqScheme:
    """`group_size` -1: one group of all inputs."""

    group_size: int
    label: str = "awq"

    def holds(self, module: str, tensors: TensorIndex) -> bool:
        """See `Scheme`."""
        return f"{module}.qweight" in tensors

    def shapes(self, module: str, outputs: int, inputs: int, tensors: TensorIndex) -> Shapes:
        """See `Scheme`."""
        if outputs % PER_WORD:
            refuse(
                f"tensor {module}.qweight has {outputs} outputs; AWQ packs them by {PER_WORD}",
                "use a checkpoint that was quantized without this layer",
            )
        _check_activation(module, tensors)
        check_dtype(tensors, f"{module}.qweight", torch.int32)
        check_dtype(tensors, f"{module}.qzeros", torch.int32)
        groups = count_groups(inputs, self.group_size)
        found: Shapes = {
            f"{module}.qweight": (inputs, outputs // PER_WORD),
            f"{module}.scales": (groups, outputs),
        }
        if f"{module}.qzeros" in tensors:
            found[f"{module}.qzeros"] = (groups, outputs // PER_WORD)
        return found

    def read(self, module: str, part: Part, tensors: TensorIndex) -> CodedWeight:
        """See `Scheme`."""
        groups = count_groups(part.inputs, self.group_size)
        words = unit_range(*part.rows, BITS)
        own = slice(part.rows[0] - words[0] * PER_WORD, part.rows[1] - words[0] * PER_WORD)
        codes = in_order(tensors.slice(f"{module}.qweight").read(part.columns, words))[:, own]
        scales = tensors.slice(f"{module}.scales").read((0, groups), part.rows).float()
        check_finite(f"{module}.scales", scales)
        zeros = torch.full(scales.shape, MIDDLE)
        if f"{module}.qzeros" in tensors:
            zeros = in_order(tensors.slice(f"{module}.qzeros").read((0, groups), words))[:, own]
        group_of = neighbours(part.columns, part.inputs, self.group_size)
        return affine_weight(module, codes.T.contiguous(), zeros.T, scales.T.contiguous(), group_of)


def _check_activation(module: str, tensors: TensorIndex) -> None:
    """Refuse models whose activations have scales that no layer before them could take."""
    for name in ACTIVATIONS:
        scales = f"{module.rpartition('.')[0]}.{name}.scales"
        if scales in tensors:
            refuse(
                f"tensor {scales}: AWQ with scaled activations is not supported",
                "use a GPTQ checkpoint of the model",
            )


def in_order(words: torch.Tensor) -> torch.Tensor:
    """int32 [rows, words] to uint8 [rows, 8 * words], in the order of the outputs."""
    parts = unpack(words, BITS).view(len(words), -1, PER_WORD)
    return parts[..., torch.tensor(ORDER).argsort()].flatten(1)
