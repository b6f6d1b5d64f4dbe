"""`x @ weight.T + bias` on GPUs for quantized weights, which are decoded in registers.

Chosen by `matmul_choice.py` where a GPU runs it; only then is this module, and with it triton,
imported. Weights are read as they are stored, activations stay what they are, sums are float32. For
few rows the inputs are split over programs, whose partial sums are added in a fixed order. Next:
`decoding.py`, from codes to weights; `tiles.py`, the sizes.
"""

from typing import Any, ClassVar

import torch
import triton
import triton.language as tl

from serving.kernels.codebooks import E4M3, E5M2, INT4, INT8
from serving.kernels.coded_weight import CodedWeight
from serving.kernels.gpu import tiles
from serving.kernels.gpu.decoding import weights
from serving.kernels.gpu.device import OLDEST, processors, reason_not_on

COMPUTED = (INT4, INT8, E4M3, E5M2)  # codes that `decoding.py` has formulas for
SUM_SIZE = 1024  # numbers that a program of `_sum_kernel` makes


class TritonCodedMatmul:
    """Weight-only: products of the activations and the decoded weights."""

    name: ClassVar[str] = "triton"

    @classmethod
    def reason_not(
        cls, weight: CodedWeight, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """Why it cannot multiply with this weight; None: it can."""
        if weight.quantizes_activations:
            return "does not quantize activations"
        return reason_not_on(device, dtype, OLDEST)

    def __init__(self, weight: CodedWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        device = weight.codes.device
        self._outputs, self._columns, self._inputs = weight.outputs, weight.columns, weight.inputs
        self._codes = weight.codes.contiguous()
        self._scales = weight.scales.contiguous()
        self._offsets = None if weight.offsets is None else weight.offsets.contiguous()
        self._order = weight.order
        self._bias = bias
        has_table = weight.book not in COMPUTED
        self._values = torch.tensor(weight.book.values, device=device) if has_table else None
        self._book = "table" if has_table else weight.book.name
        self._bits = weight.book.bits
        self._group = 0 if weight.scales.shape[1] == 1 else weight.group_size
        self._table = tiles.SINGLE if dtype == torch.float32 else tiles.HALF
        self._processors = processors(device)
        if device.type == "cuda":
            self.warm_up(dtype)

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compiles the kernels of all numbers of rows, which a request would have to wait for."""
        for rows, _ in self._table:
            self(torch.zeros(rows, self._inputs, dtype=dtype, device=self._codes.device))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, out]."""
        x = x.contiguous() if self._order is None else x.index_select(1, self._order)
        rows = len(x)
        y = x.new_empty(rows, self._outputs)
        if rows == 0:
            return y
        tile = tiles.tile_for(self._table, rows)
        steps = tiles.steps_per_program(tile, self._outputs, self._columns, self._processors)
        splits = triton.cdiv(self._columns, steps * tile.columns)
        if splits == 1:
            self._launch(x, self._bias, y, tile, steps, splits)
            return y
        sums = x.new_empty(splits, rows, self._outputs, dtype=torch.float32)
        self._launch(x, None, sums, tile, steps, splits)
        grid = (triton.cdiv(y.numel(), SUM_SIZE),)
        _sum_kernel[grid](
            sums, self._bias, y, y.numel(), self._outputs, splits,
            SIZE=SUM_SIZE, enable_fp_fusion=True,
        )  # fmt: skip
        return y

    def _launch(
        self,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        y: torch.Tensor,  # [tokens, out], or sums to be added up [splits, tokens, out]
        tile: tiles.Tile,
        steps: int,
        splits: int,
    ) -> None:
        kernel: Any = _row_kernel if tile.rows == 1 else _tile_kernel
        grid = (triton.cdiv(len(x), tile.rows), triton.cdiv(self._outputs, tile.outputs), splits)
        kernel[grid](
            x, self._codes, self._scales, self._offsets, self._values, bias, y,
            len(x), self._outputs, self._columns, self._scales.shape[1], steps,
            BOOK=self._book, BITS=self._bits, GROUP=self._group,
            RUN=shared_run(self._group, tile.columns),
            M=tile.rows, N=tile.outputs, K=tile.columns, STAGES=tile.stages,
            num_warps=tile.warps, enable_fp_fusion=True,
        )  # fmt: skip


def shared_run(group: int, columns: int) -> int:
    """Neighbours among so many columns that surely share a scale; a power of two, as both are.

    `group`: the size of a group, which need not be a power of two; 0: all of a row.
    """
    return columns if group == 0 else min(group & -group, columns)


@triton.jit(do_not_specialize=["rows", "steps"])
def _tile_kernel(
    x: tl.tensor,  # [rows, columns]
    codes: tl.tensor,  # this to `values`: see `CodedWeight`
    scales: tl.tensor,
    offsets: tl.tensor,
    values: tl.tensor,  # [2 ** BITS]
    bias: tl.tensor,  # [outputs]
    y: tl.tensor,  # [splits, rows, outputs]
    rows: tl.tensor,
    outputs: tl.tensor,
    columns: tl.tensor,
    groups: tl.tensor,
    steps: tl.tensor,
    BOOK: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    RUN: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """A tile [M, N] of the product, over `steps` times K columns, on the matrix units."""
    m = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    start = tl.program_id(1).to(tl.int64) * N
    n = start + tl.arange(0, N)
    first = tl.program_id(2) * steps * K
    codes += start * (columns * BITS // 8)
    scales += start * groups
    if offsets is not None:
        offsets += start * groups
    total = tl.zeros((M, N), dtype=tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):
        column = first + step * K
        k = column + tl.arange(0, K)
        inside = (m < rows)[:, None] & (k < columns)[None, :]
        part = tl.load(x + m[:, None] * columns + k[None, :], mask=inside, other=0.0)
        weight = weights(
            codes, scales, offsets, values, n < outputs, column, columns, groups,
            BOOK, BITS, GROUP, RUN, N, K,
        )  # fmt: skip
        weight = tl.trans(weight.to(part.dtype))
        total = tl.dot(part, weight, total, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    y += tl.program_id(2).to(tl.int64) * rows * outputs
    inside = (m < rows)[:, None] & (n < outputs)[None, :]
    tl.store(y + m[:, None] * outputs + n[None, :], total.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "steps"])
def _row_kernel(
    x: tl.tensor,  # [1, columns]; the others as for `_tile_kernel`
    codes: tl.tensor,
    scales: tl.tensor,
    offsets: tl.tensor,
    values: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    columns: tl.tensor,
    groups: tl.tensor,
    steps: tl.tensor,
    BOOK: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    RUN: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """N numbers of the only row. Sums of every K-th column stay apart until the loop has ended."""
    start = tl.program_id(1).to(tl.int64) * N
    n = start + tl.arange(0, N)
    first = tl.program_id(2) * steps * K
    codes += start * (columns * BITS // 8)
    scales += start * groups
    if offsets is not None:
        offsets += start * groups
    total = tl.zeros((N, K), dtype=tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):  # loads run ahead without a dot, too
        column = first + step * K
        k = column + tl.arange(0, K)
        part = tl.load(x + k, mask=k < columns, other=0.0).to(tl.float32)
        total += part[None, :] * weights(
            codes, scales, offsets, values, n < outputs, column, columns, groups,
            BOOK, BITS, GROUP, RUN, N, K,
        )  # fmt: skip
    result = tl.sum(total, axis=1)
    if bias is not None:
        result += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)
    y += tl.program_id(2).to(tl.int64) * outputs
    tl.store(y + n, result.to(y.dtype.element_ty), mask=n < outputs)


@triton.jit(do_not_specialize=["size", "splits"])
def _sum_kernel(
    sums: tl.tensor,  # float32 [splits, rows, outputs]
    bias: tl.tensor,
    y: tl.tensor,  # [rows, outputs]
    size: tl.tensor,  # rows * outputs
    outputs: tl.tensor,
    splits: tl.tensor,
    SIZE: tl.constexpr,
) -> None:
    """The partial sums added up, the first split first."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), dtype=tl.float32)
    for split in range(splits):
        total += tl.load(sums + split * size.to(tl.int64) + at, mask=at < size, other=0.0)
    if bias is not None:
        total += tl.load(bias + at % outputs, mask=at < size, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=at < size)
