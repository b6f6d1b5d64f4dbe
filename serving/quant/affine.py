"""From integers with zero points, in groups of inputs, to the form of `coded_weight.py`.

Pure functions on tensors, used by the readers of GPTQ, AWQ and their kin: w = (code - zero) *
scale. A zero point that is the same everywhere is taken into the codes, others become offsets.
"""

import math

import torch

from serving.kernels.codebooks import INT4, INT8
from serving.kernels.coded_weight import CodedWeight, pack_nibbles

MIDDLE = {4: 8, 8: 128}  # code that stands for 0 in our books, by bits
LEAST_GROUP = 8  # inputs that share a scale, where groups are cut apart: kernels take multiples
PADDED_GROUP = 16  # multiple to which groups of unequal sizes are filled up


def count_groups(inputs: int, size: int) -> int:
    """How many groups of `size` inputs there are, the last perhaps smaller; -1: one of all."""
    return 1 if size == -1 else -(-inputs // size)


def neighbours(columns: tuple[int, int], inputs: int, size: int) -> torch.Tensor:
    """int64 [in]: the group of each input in a half-open range; `size` as above."""
    return torch.arange(*columns) // (inputs if size == -1 else size)


def affine_weight(
    name: str,
    codes: torch.Tensor,
    zeros: torch.Tensor,
    scales: torch.Tensor,
    group_of: torch.Tensor | None = None,
) -> CodedWeight:
    """The weight of codes [out, in] (uint8), zero points and float32 scales [out, groups].

    `group_of` int [in]: the group of each input; None: groups are neighbours, of one size. Codes of
    at most 4 bits are kept in 4, others in 8.
    """
    order = None
    inputs = codes.shape[1]
    if group_of is not None:
        columns, groups, is_filled = arrange(group_of)
        scales, zeros = scales[:, groups], zeros[:, groups]
        if columns is not None:
            order = columns
            filler = zeros.repeat_interleave(len(columns) // len(groups), 1).to(torch.uint8)
            codes = torch.where(is_filled, filler, codes[:, columns])
    largest = int(codes.max())
    bits = 4 if largest < 16 and inputs % 2 == 0 else 8
    middle = MIDDLE[bits]
    offsets: torch.Tensor | None = (middle - zeros.float()) * scales
    first = int(zeros.flatten()[0])
    shift = middle - first
    if bool((zeros == first).all()) and largest + shift < 2 * middle and shift >= 0:
        codes, offsets = codes + shift, None
    if bits == 4:
        return CodedWeight(name, INT4, pack_nibbles(codes), scales, offsets, inputs, order)
    return CodedWeight(name, INT8, codes ^ 128, scales, offsets, inputs, order)


def arrange(
    group_of: torch.Tensor,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Bring inputs into groups of one size: (columns, group of each, which columns are filled in).

    columns: int64, which input each column holds; None: they are in order, only cut finer.
    """
    group_of = group_of.long()
    present, lengths = torch.unique_consecutive(group_of, return_counts=True)
    size = math.gcd(*lengths.tolist())
    if len(present.unique()) == len(present) and (size % LEAST_GROUP == 0 or len(present) == 1):
        return None, present.repeat_interleave(lengths // size), torch.tensor(False)
    inputs = group_of.argsort(stable=True)
    present, lengths = torch.unique_consecutive(group_of[inputs], return_counts=True)
    size = math.gcd(*lengths.tolist())
    if size % LEAST_GROUP:
        size = PADDED_GROUP
    padded = -(-lengths // size) * size
    starts = padded.cumsum(0) - padded
    places = torch.arange(len(inputs)) + (starts - (lengths.cumsum(0) - lengths)).repeat_interleave(
        lengths
    )
    columns = torch.zeros(int(padded.sum()), dtype=torch.int64)
    is_filled = torch.ones(len(columns), dtype=torch.bool)
    columns[places] = inputs
    is_filled[places] = False
    return columns, present.repeat_interleave(padded // size), is_filled
