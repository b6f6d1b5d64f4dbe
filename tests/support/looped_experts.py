"""A way to multiply with all experts at once that runs anywhere: one after the other."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from serving.kernels.coded_matmul import round_trip_int8
from serving.kernels.coded_weight import CodedWeight, Weight
from serving.kernels.expert_matmul import SortedExperts
from serving.kernels.stacked_weight import StackedWeight


class LoopedExperts(SortedExperts):
    """What a kernel computes, in the plainest torch."""

    name: ClassVar[str] = "looped"
    is_capturable: ClassVar[bool] = True

    def __init__(self, weight: torch.Tensor | StackedWeight, dtype: torch.dtype) -> None:
        self.rounds = isinstance(weight, StackedWeight) and weight.quantizes_activations
        count = len(weight.codes if isinstance(weight, StackedWeight) else weight)
        self.matrices = [plain_matrix(weight, expert).to(dtype) for expert in range(count)]

    @classmethod
    def reason_not(cls, weight: Weight, dtype: torch.dtype, device: torch.device) -> str | None:
        return None

    @property
    def count(self) -> int:
        return len(self.matrices)

    def __call__(self, rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        if self.rounds:
            rows = round_trip_int8(rows)
        parts = rows.tensor_split(ends[:-1].tolist())
        return torch.cat([
            F.linear(part, matrix) for part, matrix in zip(parts, self.matrices, strict=True)
        ])  # fmt: skip


def plain_matrix(weight: torch.Tensor | StackedWeight, expert: int) -> torch.Tensor:
    """The matrix [out, in] of one expert."""
    if isinstance(weight, torch.Tensor):
        return weight[expert]
    offsets, orders = weight.offsets, weight.orders
    return CodedWeight(
        "of a stack",
        weight.book,
        weight.codes[expert],
        weight.scales[expert],
        None if offsets is None else offsets[expert],
        weight.inputs,
        None if orders is None else orders[expert],
        weight.quantizes_activations,
    ).dequantize()
