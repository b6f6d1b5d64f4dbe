"""compressed-tensors checkpoints: integers of 4 or 8 bits, packed or not, and 8-bit floats.

Runs in an engine rank, while weights are read. Packed: `weight_packed` int32 [out, in * bits / 32],
numbers plus 2 ** (bits - 1), `weight_scale` [out, groups], `weight_zero_point` int32 [out * bits /
32, groups], `weight_g_idx` [in]: the group of each input. Not packed: `weight` int8 or float8 [out,
in], `weight_scale` as in `scaled.py`, `weight_zero_point` int8. Source: the library's compressors.
What a matrix is stored with decides: those that were ignored are plain.
"""

from dataclasses import dataclass

import torch

from serving.kernels.coded_weight import CodedWeight
from serving.quant.affine import affine_weight
from serving.quant.compressed_groups import Group, group_of
from serving.quant.packing import WORD, unit_range, unpack
from serving.quant.scaled import BOOKS, block_of, read_scales, scaled_weight
from serving.quant.scheme import Part, Shapes, TensorIndex, check_dtype, refuse

SCALE_TYPES = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int32, torch.int64)


@dataclass(frozen=True)
class CompressedTensorsScheme:
    """Every matrix is of one of the groups.

    Activations of 8-bit integers are rounded row by row while serving, also where the checkpoint
    has one scale for all of them: a row's own scale is never coarser.
    """

    groups: tuple[Group, ...]
    label: str = "compressed-tensors"

    def holds(self, module: str, tensors: TensorIndex) -> bool:
        """See `Scheme`. Plain matrices may have scales, too, before they are compressed."""
        if f"{module}.weight_packed" in tensors:
            return True
        name = f"{module}.weight"
        return name in tensors and tensors.slice(name).dtype in BOOKS

    def shapes(self, module: str, outputs: int, inputs: int, tensors: TensorIndex) -> Shapes:
        """See `Scheme`."""
        group, scale = self._group(module), f"{module}.weight_scale"
        check_dtype(tensors, scale, *SCALE_TYPES)
        if scale not in tensors:
            return {scale: (outputs, 1)}  # which is refused with all that are missing
        _, columns = _block(group, module, outputs, inputs, tensors)
        found: Shapes = {scale: tensors.slice(scale).shape}
        packed = f"{module}.weight_packed"
        if packed not in tensors:
            return found | {f"{module}.weight": (outputs, inputs)} | _zeros(group, scale, tensors)
        check_dtype(tensors, packed, torch.int32)
        found[packed] = (outputs, -(-inputs * group.bits // WORD))
        if not group.symmetric:
            check_dtype(tensors, f"{module}.weight_zero_point", torch.int32)
            words = -(-outputs * group.bits // WORD)
            found[f"{module}.weight_zero_point"] = (words, -(-inputs // columns))
        if f"{module}.weight_g_idx" in tensors:
            check_dtype(tensors, f"{module}.weight_g_idx", *INTEGERS)
            found[f"{module}.weight_g_idx"] = (inputs,)
        return found

    def read(self, module: str, part: Part, tensors: TensorIndex) -> CodedWeight:
        """See `Scheme`."""
        group = self._group(module)
        block = _block(group, module, part.outputs, part.inputs, tensors)
        scales = read_scales(f"{module}.weight_scale", part, tensors, block)
        own = _group_of(module, part, block[1], scales.shape[1], tensors)
        if f"{module}.weight_packed" in tensors:
            return _packed(group, module, part, tensors, scales, own)
        codes = tensors.slice(f"{module}.weight").read(*part.ranges).contiguous()
        zeros = None
        if not group.symmetric:
            zeros = read_scales(f"{module}.weight_zero_point", part, tensors, block).to(torch.int8)
        patterns, book = codes.view(torch.uint8), BOOKS[codes.dtype]
        return scaled_weight(module, book, patterns, scales, own, zeros, group.rounds)

    def _group(self, module: str) -> Group:
        found = group_of(self.groups, module)
        if found is None:
            refuse(
                f"module {module} is quantized, and no target of `config_groups` is of it",
                "use the config.json that belongs to these weights",
            )
        return found


def _packed(
    group: Group,
    module: str,
    part: Part,
    tensors: TensorIndex,
    scales: torch.Tensor,
    own: torch.Tensor,
) -> CodedWeight:
    """A matrix of words; `own` int [in]: the group of each input."""
    bits, per_word = group.bits, WORD // group.bits
    words = unit_range(*part.columns, bits)
    codes = unpack(tensors.slice(f"{module}.weight_packed").read(part.rows, words), bits)
    begin = words[0] * per_word
    codes = codes[:, part.columns[0] - begin : part.columns[1] - begin]
    zeros = torch.full(scales.shape, 2 ** (bits - 1))
    if not group.symmetric:
        words = unit_range(*part.rows, bits)
        packed = tensors.slice(f"{module}.weight_zero_point").read(words)
        first = part.rows[0] - words[0] * per_word
        zeros = unpack(packed.T, bits)[:, first : first + len(scales)].T
    return affine_weight(module, codes, zeros, scales, own)


def _zeros(group: Group, scale: str, tensors: TensorIndex) -> Shapes:
    """Zero points of a matrix that is not packed; they are as the scales."""
    if group.symmetric:
        return {}
    name = scale.replace("weight_scale", "weight_zero_point")
    check_dtype(tensors, name, torch.int8)
    return {name: tensors.slice(scale).shape}


def _block(
    group: Group, module: str, outputs: int, inputs: int, tensors: TensorIndex
) -> tuple[int, int]:
    """Outputs and inputs that share a scale."""
    rows, columns = (
        whole if size == -1 else size
        for size, whole in zip(group.block, (outputs, inputs), strict=True)
    )
    return block_of(f"{module}.weight_scale", outputs, inputs, tensors, (rows, columns))


def _group_of(
    module: str, part: Part, size: int, groups: int, tensors: TensorIndex
) -> torch.Tensor:
    """int64 [in]: the group of each input of the part."""
    name = f"{module}.weight_g_idx"
    found = torch.arange(part.inputs) // size
    if name in tensors:
        stored = tensors.slice(name).read().long()
        if int(stored.max()) >= groups:
            refuse(
                f"tensor {name} names group {int(stored.max())} of {groups}",
                "copy or download the checkpoint again",
            )
        if int(stored.min()) >= 0:  # -1: as they come
            found = stored
    return found[slice(*part.columns)]
