"""`x @ weight.T + bias` on GPUs with fp8 arithmetic: activations are scaled row by row to E4M3.

Chosen by `matmul_choice.py` before `coded_matmul.py`, which is more exact and slower for many rows.
An activation keeps three bits of its mantissa, so a result deviates by a few percent of its size.
"""

from typing import ClassVar

import torch

from serving.kernels.codebooks import E4M3
from serving.kernels.coded_weight import CodedWeight
from serving.kernels.gpu.device import reason_not_on
from serving.kernels.gpu.row_codes import quantize_rows

OLDEST = (8, 9)  # compute capability with fp8 arithmetic
SIZE_MULTIPLE = 16  # of both sizes of the weight, for cuBLAS and CUTLASS


class ScaledFp8Matmul:
    """`torch._scaled_mm` with one scale per row of the activations and one per output."""

    name: ClassVar[str] = "scaled fp8"

    @classmethod
    def reason_not(
        cls, weight: CodedWeight, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """Why it cannot multiply with this weight; None: it can."""
        if weight.book is not E4M3:
            return f"codes are {weight.book}, not {E4M3}"
        if not weight.is_per_output or weight.offsets is not None:
            return "not one scale per output"
        if weight.outputs % SIZE_MULTIPLE or weight.columns % SIZE_MULTIPLE:
            return f"sizes are not multiples of {SIZE_MULTIPLE}"
        if dtype != torch.bfloat16:  # the only result that every version and device can give
            return f"gives bfloat16, not {dtype}"
        return reason_not_on(device, dtype, OLDEST)

    def __init__(self, weight: CodedWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self._codes = weight.codes.contiguous().view(torch.float8_e4m3fn).T  # [columns, out]
        self._scales = weight.scales.contiguous().view(1, -1)
        self._order = weight.order
        self._bias, self._dtype = bias, dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, out]."""
        x = x.contiguous() if self._order is None else x.index_select(1, self._order)
        if len(x) == 0:
            return x.new_empty(0, self._codes.shape[1])
        codes, scales = quantize_rows(x, torch.float8_e4m3fn, len(x))
        return torch._scaled_mm(
            codes,
            self._codes,
            scale_a=scales,
            scale_b=self._scales,
            bias=self._bias,
            out_dtype=self._dtype,
        )
