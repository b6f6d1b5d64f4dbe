"""GPTQ checkpoints: integers of 2, 3, 4 or 8 bits with zero points, in groups of inputs.

Runs in an engine rank, while weights are read. `qweight` int32 [in * bits / 32, out] is packed
along the inputs, `qzeros` [groups, out * bits / 32] along the outputs, `scales` [groups, out];
`g_idx` [in] names the group of each input (act-order). Source: AutoGPTQ's format, versions 1 and 2;
in version 1 zero points are stored less one.
"""

from dataclasses import dataclass

import torch

from serving.kernels.coded_weight import CodedWeight
from serving.quant.affine import affine_weight, count_groups, neighbours
from serving.quant.packing import unit_range, unpack, values_of_unit, words_of_unit
from serving.quant.scheme import Part, Shapes, TensorIndex, check_dtype, check_finite, refuse

BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class GptqScheme:
    """`group_size` -1: one group of all inputs. `zero_bias`: added to stored zero points."""

    bits: int
    group_size: int
    zero_bias: int = 1
    label: str = "gptq"

    def holds(self, module: str, tensors: TensorIndex) -> bool:
        """See `Scheme`."""
        return f"{module}.qweight" in tensors

    def shapes(self, module: str, outputs: int, inputs: int, tensors: TensorIndex) -> Shapes:
        """See `Scheme`."""
        unit = values_of_unit(self.bits)
        for what, size in (("inputs", inputs), ("outputs", outputs)):
            if size % unit:
                refuse(
                    f"tensor {module}.qweight has {size} {what}; {self.bits}-bit GPTQ packs them "
                    f"by {unit}",
                    "use a checkpoint that was quantized without this layer",
                )
        for end in ("qweight", "qzeros"):
            check_dtype(tensors, f"{module}.{end}", torch.int32)
        groups = count_groups(inputs, self.group_size)
        words = words_of_unit(self.bits)
        found: Shapes = {
            f"{module}.qweight": (inputs // unit * words, outputs),
            f"{module}.qzeros": (groups, outputs // unit * words),
            f"{module}.scales": (groups, outputs),
        }
        if f"{module}.g_idx" in tensors:
            found[f"{module}.g_idx"] = (inputs,)
        return found

    def read(self, module: str, part: Part, tensors: TensorIndex) -> CodedWeight:
        """See `Scheme`."""
        outputs, inputs = slice(*part.rows), slice(*part.columns)
        codes = self._codes(module, part, tensors)
        groups = count_groups(part.inputs, self.group_size)
        scales = tensors.slice(f"{module}.scales").read((0, groups), part.rows).float()
        check_finite(f"{module}.scales", scales)
        words = unit_range(outputs.start, outputs.stop, self.bits)
        stored = unpack(tensors.slice(f"{module}.qzeros").read((0, groups), words), self.bits)
        first = words[0] // words_of_unit(self.bits) * values_of_unit(self.bits)
        stored = stored[:, outputs.start - first : outputs.stop - first]
        zeros = (stored.int() + self.zero_bias) & (2**self.bits - 1)
        group_of = self._group_of(module, part, groups, tensors)[inputs]
        return affine_weight(module, codes, zeros.T, scales.T.contiguous(), group_of)

    def _codes(self, module: str, part: Part, tensors: TensorIndex) -> torch.Tensor:
        """uint8 [out, in] of the part."""
        words = unit_range(*part.columns, self.bits)
        packed = tensors.slice(f"{module}.qweight").read(words, part.rows)
        codes = unpack(packed.T.contiguous(), self.bits)
        first = words[0] // words_of_unit(self.bits) * values_of_unit(self.bits)
        return codes[:, part.columns[0] - first : part.columns[1] - first]

    def _group_of(self, module: str, part: Part, groups: int, tensors: TensorIndex) -> torch.Tensor:
        """int [in]: the group of each input of the whole matrix."""
        name = f"{module}.g_idx"
        if name not in tensors:
            return neighbours((0, part.inputs), part.inputs, self.group_size)
        found = tensors.slice(name).read()
        if int(found.min()) < 0 or int(found.max()) >= groups:
            refuse(
                f"tensor {name} names group {int(found.max())} of {groups}",
                "copy or download the checkpoint again",
            )
        return found
