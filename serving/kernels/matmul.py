"""`x @ weight.T + bias` for weights that never change: plain, or pre-packed by oneDNN.

Chosen by `matmul_choice.py`; used by `layers/linear.py`. Pre-packing
halves the time of a bf16 decode step on CPU (weights stream in the order the kernel reads them)
and gives the same bits as `F.linear`.
"""

from typing import Protocol

import torch
import torch.nn.functional as F


class Matmul(Protocol):
    """A frozen linear map."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, out]."""


class PlainMatmul:
    """`F.linear` on the tensors as they are."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, out]."""
        return F.linear(x, self._weight, self._bias)


class PackedMatmul:
    """oneDNN matmul on weights reordered once at load; the original tensor is not kept."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._bias = bias
        self._run = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, out]."""
        result: torch.Tensor = self._run(x, self._weight, self._bias, "none", [], "")
        return result


def padded_rows(rows: int) -> int:
    """Row count to which a step's `rows` are padded for `PackedMatmul`.

    oneDNN compiles a kernel for every row count it meets (about 1 ms and 1 MB for each shape of
    weights), so a few dozen counts must serve all. The padding is free while weights stream from
    memory (up to 64 rows) and below 7 % beyond.
    """
    if rows <= 2:
        return rows
    if rows <= 128:
        step = 4
    elif rows <= 256:
        step = 8
    else:
        step = max(16, 1 << (rows.bit_length() - 6))
    return -(-rows // step) * step
