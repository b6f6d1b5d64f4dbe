"""A quantized matrix in the one form that every scheme is brought into: codes, scales, offsets.

Made by the readers of `serving/quant/`, joined and reordered by `layers/linear.py`, multiplied with
by the kernels of `coded_matmul.py`. Every scheme is a case of it: a group of neighbouring inputs of
one output shares a scale and an offset; what differs is how a code is a number (`codebooks.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from serving.kernels.codebooks import Codebook


@dataclass(frozen=True)
class CodedWeight:
    """A matrix [out, in]: w[o, order[j]] = book(code[o, j]) * scales[o, g] + offsets[o, g].

    g = j // group_size, where `group_size` divides the columns of the codes. `order` is there where
    groups are not of neighbouring inputs; an input may then have several columns, which are added
    up, and all but one of them are zero.
    """

    name: str  # of the checkpoint's tensors, for messages
    book: Codebook
    codes: torch.Tensor  # uint8 [out, columns]; of 4 bits [out, columns / 2], even column low
    scales: torch.Tensor  # float32 [out, groups]
    offsets: torch.Tensor | None  # float32 [out, groups]; None: 0
    inputs: int  # length of the vectors it is multiplied with
    order: torch.Tensor | None = None  # int64 [columns]; None: as they come
    quantizes_activations: bool = False  # to int8, each row by its own maximum

    @property
    def outputs(self) -> int:
        """Rows of the matrix."""
        return self.codes.shape[0]

    @property
    def columns(self) -> int:
        """Codes of a row."""
        return self.codes.shape[1] * (8 // self.book.bits)

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.columns // self.scales.shape[1]

    @property
    def is_per_output(self) -> bool:
        """Whether a row is a single group."""
        return self.scales.shape[1] == 1

    @property
    def num_bytes(self) -> int:
        """Memory of all parts."""
        parts = (self.codes, self.scales, self.offsets, self.order)
        return sum(part.nbytes for part in parts if part is not None)

    def map_rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "CodedWeight":
        """`change` of the rows of every part: a selection, or another order."""
        offsets = None if self.offsets is None else change(self.offsets)
        return replace(self, codes=change(self.codes), scales=change(self.scales), offsets=offsets)

    def to(self, device: torch.device) -> "CodedWeight":
        """The same on a device."""
        weight = self.map_rows(lambda part: part.to(device))
        return weight if self.order is None else replace(weight, order=self.order.to(device))

    def numbers(self) -> torch.Tensor:
        """Every code as a number, float32 [out, columns]."""
        return self.book.numbers(self.codes if self.book.bits == 8 else unpack_nibbles(self.codes))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The matrix [out, in] in plain form; computed in float32, then rounded."""
        groups = self.numbers().view(self.outputs, -1, self.group_size)
        groups.mul_(self.scales.unsqueeze(-1))
        if self.offsets is not None:
            groups.add_(self.offsets.unsqueeze(-1))
        matrix = groups.view(self.outputs, -1)
        if self.order is not None:
            natural = matrix.new_zeros(self.outputs, self.inputs)
            matrix = natural.index_add_(1, self.order, matrix)
        return matrix.to(dtype)


Weight = torch.Tensor | CodedWeight


def can_join(weights: Sequence[Weight]) -> bool:
    """Whether these matrices, one upon the other, are a matrix of one kind."""
    first = weights[0]
    if isinstance(first, torch.Tensor):
        return all(isinstance(one, torch.Tensor) for one in weights)
    return all(isinstance(one, CodedWeight) and _are_alike(first, one) for one in weights)


def join(weights: Sequence[Weight]) -> Weight:
    """One upon the other: rows of the first, then of the second; `can_join` must hold."""
    first = weights[0]
    if len(weights) == 1:
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat([one for one in weights if isinstance(one, torch.Tensor)])
    coded = [one for one in weights if isinstance(one, CodedWeight)]
    offsets = None
    if any(one.offsets is not None for one in coded):
        offsets = torch.cat([
            torch.zeros_like(one.scales) if one.offsets is None else one.offsets for one in coded
        ])  # fmt: skip
    return replace(
        first,
        codes=torch.cat([one.codes for one in coded]),
        scales=torch.cat([one.scales for one in coded]),
        offsets=offsets,
    )


def as_tensor(weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    """The matrix in plain form."""
    return weight if isinstance(weight, torch.Tensor) else weight.dequantize(dtype)


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [out, columns] of 4-bit codes, an even number of columns, to [out, columns / 2]."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The reverse: uint8 [out, columns / 2] to [out, columns]."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)


def _are_alike(first: CodedWeight, other: CodedWeight) -> bool:
    return (
        (first.book, first.group_size, first.inputs, first.columns, first.quantizes_activations)
        == (other.book, other.group_size, other.inputs, other.columns, other.quantizes_activations)
        and (first.order is None) == (other.order is None)
        and (first.order is None or torch.equal(first.order, other.order))  # type: ignore[arg-type]
    )
