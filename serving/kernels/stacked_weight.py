"""Quantized matrices of all experts of a layer in one form: `CodedWeight` with an axis before.

Filled expert by expert by `expert_choice.py`, so that no more than a single matrix is in memory
twice; multiplied with by `gpu/grouped_matmul.py`.
"""

from dataclasses import dataclass

import torch

from serving.kernels.codebooks import Codebook
from serving.kernels.coded_weight import CodedWeight


@dataclass(frozen=True)
class StackedWeight:
    """Matrices [experts, out, in]; every part as in `CodedWeight`, of each expert."""

    book: Codebook
    codes: torch.Tensor  # uint8 [experts, out, bytes]
    scales: torch.Tensor  # float32 [experts, out, groups]
    offsets: torch.Tensor | None  # float32 [experts, out, groups]
    inputs: int
    orders: torch.Tensor | None  # int64 [experts, columns]
    quantizes_activations: bool

    @classmethod
    def like(cls, first: CodedWeight, count: int) -> "StackedWeight":
        """Room for `count` matrices of this kind, on the same device."""

        def room(part: torch.Tensor) -> torch.Tensor:
            return part.new_empty(count, *part.shape)

        return cls(
            first.book,
            room(first.codes),
            room(first.scales),
            None if first.offsets is None else room(first.offsets),
            first.inputs,
            None if first.order is None else room(first.order),
            first.quantizes_activations,
        )

    @property
    def columns(self) -> int:
        """Codes of a row."""
        return self.codes.shape[2] * (8 // self.book.bits)

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.columns // self.scales.shape[2]

    def reason_not(self, weight: CodedWeight) -> str | None:
        """Why a matrix is of another kind than those of the stack, or None."""
        pairs = {
            "codes": (self.book, weight.book),
            "outputs": (self.codes.shape[1], weight.outputs),
            "inputs": (self.inputs, weight.inputs),
            "columns": (self.columns, weight.columns),
            "group sizes": (self.group_size, weight.group_size),
            "offsets": (self.offsets is None, weight.offsets is None),
            "orders of inputs": (self.orders is None, weight.order is None),
            "types of activations": (self.quantizes_activations, weight.quantizes_activations),
        }
        differing = [name for name, (own, other) in pairs.items() if own != other]
        return f"experts whose {' and '.join(differing)} differ" if differing else None

    def put(self, expert: int, weight: CodedWeight) -> None:
        """The matrix of one expert; `reason_not` must have nothing against it."""
        self.codes[expert] = weight.codes
        self.scales[expert] = weight.scales
        if self.offsets is not None and weight.offsets is not None:
            self.offsets[expert] = weight.offsets
        if self.orders is not None and weight.order is not None:
            self.orders[expert] = weight.order
