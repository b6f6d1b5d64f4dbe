"""`x @ weight.T + bias` on GPUs in 8-bit integers: weights and, row by row, activations.

Chosen by `matmul_choice.py` for weights that say so (W8A8; LLM.int8() without its outliers). Sums
are int32, so exact, whoever computes them: cuBLAS, or triton for the shapes that cuBLAS refuses.
"""

from typing import ClassVar

import torch
import triton
import triton.language as tl

from serving.kernels.codebooks import INT8
from serving.kernels.coded_weight import CodedWeight
from serving.kernels.gpu import tiles
from serving.kernels.gpu.device import OLDEST, reason_not_on
from serving.kernels.gpu.row_codes import quantize_rows

# Limits of `torch._int_mm` on CUDA: more than 16 rows, and both other sizes a multiple of 8.
ROW_MULTIPLE = 32
SIZE_MULTIPLE = 8
SCALE_SIZE = 1024  # numbers that a program of `_scale_kernel` makes


class TritonInt8Matmul:
    """int8 x int8 to int32, scaled by one number per row and one per output."""

    name: ClassVar[str] = "triton int8"

    @classmethod
    def reason_not(
        cls, weight: CodedWeight, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """Why it cannot multiply with this weight; None: it can."""
        if weight.book is not INT8:
            return f"codes are {weight.book}, not {INT8}"
        if not weight.quantizes_activations:
            return "activations are not to be quantized"
        if not weight.is_per_output or weight.offsets is not None:
            return "not one scale per output"
        return reason_not_on(device, dtype, OLDEST)

    def __init__(self, weight: CodedWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self._codes = weight.codes.contiguous().view(torch.int8)  # [out, columns]
        self._scales = weight.scales.flatten()
        self._order = weight.order
        self._bias = bias
        self._is_for_torch = not any(size % SIZE_MULTIPLE for size in self._codes.shape)
        if self._codes.is_cuda:
            self.warm_up(weight.inputs, dtype)

    def warm_up(self, inputs: int, dtype: torch.dtype) -> None:
        """Compiles the kernels of all numbers of rows, which a request would have to wait for."""
        for rows, _ in tiles.INT8:
            self(torch.zeros(rows, inputs, dtype=dtype, device=self._codes.device))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, out]."""
        x = x.contiguous() if self._order is None else x.index_select(1, self._order)
        y = x.new_empty(len(x), len(self._codes))
        if len(x) == 0:
            return y
        if self._is_for_torch:
            self._multiply_in_torch(x, y)
        else:
            self._multiply_in_triton(x, y)
        return y

    def _multiply_in_torch(self, x: torch.Tensor, y: torch.Tensor) -> None:
        rows = triton.cdiv(len(x), ROW_MULTIPLE) * ROW_MULTIPLE
        codes, row_scales = quantize_rows(x, torch.int8, rows)
        sums = torch._int_mm(codes, self._codes.T)
        grid = (len(x), triton.cdiv(y.shape[1], SCALE_SIZE))
        _scale_kernel[grid](
            sums, row_scales, self._scales, self._bias, y, y.shape[1],
            SIZE=SCALE_SIZE, enable_fp_fusion=False,
        )  # fmt: skip

    def _multiply_in_triton(self, x: torch.Tensor, y: torch.Tensor) -> None:
        codes, row_scales = quantize_rows(x, torch.int8, len(x))
        tile = tiles.tile_for(tiles.INT8, len(x))
        grid = (triton.cdiv(len(x), tile.rows), triton.cdiv(y.shape[1], tile.outputs))
        _product_kernel[grid](
            codes, row_scales, self._codes, self._scales, self._bias, y,
            *y.shape, x.shape[1],
            M=tile.rows, N=tile.outputs, K=tile.columns,
            num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=False,
        )  # fmt: skip


@triton.jit
def _scale_kernel(
    sums: tl.tensor,  # int32 [rows, outputs]
    row_scales: tl.tensor,  # [rows]
    scales: tl.tensor,  # [outputs]
    bias: tl.tensor,
    y: tl.tensor,  # [rows, outputs]
    outputs: tl.tensor,
    SIZE: tl.constexpr,
) -> None:
    """Some numbers of one row, scaled."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = n < outputs
    total = tl.load(sums + row * outputs + n, mask=inside, other=0).to(tl.float32)
    total = total * tl.load(row_scales + row) * tl.load(scales + n, mask=inside, other=0.0)
    if bias is not None:
        total += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * outputs + n, total.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _product_kernel(
    x: tl.tensor,  # int8 [rows, columns]
    row_scales: tl.tensor,  # [rows]
    codes: tl.tensor,  # int8 [outputs, columns]
    scales: tl.tensor,  # [outputs]
    bias: tl.tensor,
    y: tl.tensor,  # [rows, outputs]
    rows: tl.tensor,
    outputs: tl.tensor,
    columns: tl.tensor,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
) -> None:
    """A tile [M, N] of the product, scaled."""
    m = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    n = tl.program_id(1).to(tl.int64) * N + tl.arange(0, N)
    is_row, is_output = m < rows, n < outputs
    total = tl.zeros((M, N), dtype=tl.int32)
    for first in range(0, columns, K):
        k = first + tl.arange(0, K)
        inside = is_row[:, None] & (k < columns)[None, :]
        part = tl.load(x + m[:, None] * columns + k[None, :], mask=inside, other=0)
        inside = (k < columns)[:, None] & is_output[None, :]
        code = tl.load(codes + n[None, :] * columns + k[:, None], mask=inside, other=0)
        total = tl.dot(part, code, total, out_dtype=tl.int32)
    row_scale = tl.load(row_scales + m, mask=is_row, other=0.0)[:, None]
    result = total.to(tl.float32) * row_scale
    result *= tl.load(scales + n, mask=is_output, other=0.0)[None, :]
    if bias is not None:
        result += tl.load(bias + n, mask=is_output, other=0.0).to(tl.float32)[None, :]
    inside = is_row[:, None] & is_output[None, :]
    tl.store(y + m[:, None] * outputs + n[None, :], result.to(y.dtype.element_ty), mask=inside)
