"""Products with the matrices of all experts at once on GPUs, plain or quantized.

Chosen by `expert_choice.py` where a GPU runs it; only then is this module, and with it triton,
imported. A program takes its rows from their tokens, or puts them back there, while it multiplies.
Sums are of a fixed order, and the host reads nothing, so that a CUDA graph can hold it all. Next:
`expert_tiles.py`, from rows to experts; `decoding.py`, from codes to weights; `tiles.py`, sizes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import triton
import triton.language as tl

from serving.kernels.codebooks import INT8
from serving.kernels.coded_weight import CodedWeight, Weight
from serving.kernels.expert_matmul import GroupedExperts, Routing, is_aligned
from serving.kernels.gpu import tiles
from serving.kernels.gpu.coded_matmul import COMPUTED, shared_run
from serving.kernels.gpu.decoding import weights
from serving.kernels.gpu.device import OLDEST, reason_not_on
from serving.kernels.gpu.expert_tiles import (
    FEW,
    locate,
    most_tiles,
    permuted,
    share,
    sort_by_expert,
)
from serving.kernels.gpu.row_codes import quantize_rows
from serving.kernels.stacked_weight import StackedWeight

TOGETHER = 8  # tiles of rows whose programs run side by side, to share weights in the cache
# Capability that torch's grouped matmul is built for; elsewhere it waits for the device.
TORCH_CAPABILITY = (9, 0)
TORCH_ROWS = 64  # of an expert on average, beyond which it is used


@dataclass(frozen=True)
class _Matrices:
    """What the kernel reads of the experts, and how; `book` "plain": numbers, not codes."""

    codes: torch.Tensor  # [experts, outputs, ...]
    columns: int
    scales: torch.Tensor | None = None  # this to `values`: see `decoding.weights`
    offsets: torch.Tensor | None = None
    values: torch.Tensor | None = None
    book: str = "plain"
    bits: int = 8
    groups: int = 1

    @property
    def experts(self) -> int:
        """Number of experts."""
        return len(self.codes)

    @property
    def outputs(self) -> int:
        """Rows of a matrix."""
        return self.codes.shape[1]


class TritonGroupedMatmul:
    """One launch for all experts."""

    name: ClassVar[str] = "triton grouped"
    is_capturable: ClassVar[bool] = True

    @classmethod
    def reason_not(cls, weight: Weight, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why it cannot multiply with experts of this kind; None: it can."""
        if isinstance(weight, CodedWeight) and weight.quantizes_activations:
            if weight.book is not INT8:
                return f"8-bit activations, and codes are {weight.book}"
            if not weight.is_per_output or weight.offsets is not None:
                return "8-bit activations, and not one scale per output"
        return reason_not_on(device, dtype, OLDEST)

    def __init__(self, weight: torch.Tensor | StackedWeight, dtype: torch.dtype) -> None:
        """`weight`: plain ones are [experts, out, in]."""
        self._dtype = dtype
        self._table = tiles.EXPERTS_SINGLE if dtype == torch.float32 else tiles.EXPERTS_HALF
        self._torch: GroupedExperts | None = None
        self._orders: torch.Tensor | None = None
        self._rounds = False  # activations to int8
        if isinstance(weight, StackedWeight):
            self._matrices, self._inputs = _coded(weight), weight.inputs
            self._orders = weight.orders
            if weight.quantizes_activations:
                self._rounds, self._table = True, tiles.INT8
        else:
            weight = weight.contiguous()
            self._inputs = weight.shape[2]
            self._matrices = _Matrices(weight, self._inputs)
            if _torch_runs(weight):
                self._torch = GroupedExperts(weight)
        device = self._matrices.codes.device
        self._ones = torch.ones(1, device=device)  # where there are no weights of the router
        if device.type == "cuda":
            self.warm_up()

    def warm_up(self) -> None:
        """Compiles the kernels of all numbers of rows, which a request would have to wait for."""
        device = self._ones.device
        self.route(torch.zeros(FEW + 1, 1, dtype=torch.int64, device=device))
        routing = self.route(torch.zeros(1, 1, dtype=torch.int64, device=device))
        x = torch.zeros(1, self._inputs, dtype=self._dtype, device=device)
        for _, tile in self._table:
            self._multiply(x, routing, None, tile)

    def route(self, experts: torch.Tensor) -> Routing:
        """See `ExpertMatmul`."""
        return sort_by_expert(experts, self._matrices.experts)

    def gather(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        """See `ExpertMatmul`."""
        rows = self._likely_rows(routing)
        if self._torch is not None and rows > TORCH_ROWS:
            return self._torch.gather(x, routing)
        return self._multiply(x, routing, None, tiles.tile_for(self._table, rows))

    def scatter(self, rows: torch.Tensor, routing: Routing, weights: torch.Tensor) -> torch.Tensor:
        """See `ExpertMatmul`. Weights are multiplied with before results are rounded."""
        likely = self._likely_rows(routing)
        if self._torch is not None and likely > TORCH_ROWS:
            return self._torch.scatter(rows, routing, weights)
        y = self._multiply(rows, routing, weights, tiles.tile_for(self._table, likely))
        return y.view(*weights.shape, y.shape[1])

    def _likely_rows(self, routing: Routing) -> int:
        return tiles.likely_rows(len(routing.order), routing.chosen, self._matrices.experts)

    def _multiply(
        self, x: torch.Tensor, routing: Routing, factors: torch.Tensor | None, tile: tiles.Tile
    ) -> torch.Tensor:
        """[pairs, out]: gathered, or with `factors` scattered."""
        matrices, pairs = self._matrices, len(routing.order)
        y = torch.empty(pairs, matrices.outputs, dtype=self._dtype, device=x.device)
        if pairs == 0:
            return y
        x, gathers, row_scales = x.contiguous(), factors is None, None
        if self._orders is not None:
            x, gathers = permuted(x, routing, self._orders, gathers), False
        if self._rounds:
            x, row_scales = quantize_rows(x, torch.int8, len(x))
        most = most_tiles(pairs, matrices.experts, tile.rows)
        group = 0 if matrices.groups == 1 else matrices.columns // matrices.groups
        _grouped_kernel[(most * triton.cdiv(matrices.outputs, tile.outputs),)](
            x, row_scales, matrices.codes, matrices.scales, matrices.offsets, matrices.values,
            routing.order, routing.ends, self._ones if factors is None else factors.contiguous(), y,
            most, routing.chosen, int(gathers), int(factors is not None),
            matrices.experts, matrices.outputs, matrices.columns, matrices.groups,
            BOOK=matrices.book, BITS=matrices.bits, GROUP=group,
            RUN=shared_run(group, tile.columns),
            M=tile.rows, N=tile.outputs, K=tile.columns,
            E=triton.next_power_of_2(matrices.experts), TOGETHER=TOGETHER, STAGES=tile.stages,
            num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
        )  # fmt: skip
        return y


def _coded(weight: StackedWeight) -> _Matrices:
    columns = weight.columns
    if weight.quantizes_activations:  # integers times integers, scaled at the end
        return _Matrices(weight.codes.view(torch.int8), columns, weight.scales)
    book, values = weight.book.name, None
    if weight.book not in COMPUTED:
        book, values = "table", torch.tensor(weight.book.values, device=weight.codes.device)
    return _Matrices(
        weight.codes, columns, weight.scales, weight.offsets, values,
        book, weight.book.bits, weight.scales.shape[2],
    )  # fmt: skip


def _torch_runs(weight: torch.Tensor) -> bool:
    """Whether torch multiplies with these matrices [experts, out, in] without waiting."""
    if not weight.is_cuda or weight.dtype != torch.bfloat16 or not is_aligned(weight):
        return False
    return torch.cuda.get_device_capability(weight.device) == TORCH_CAPABILITY


@triton.jit
def _part_of(
    codes: tl.tensor,  # this to `offsets`: at the first output of the program
    scales: tl.tensor,
    offsets: tl.tensor,
    values: tl.tensor,
    exists: tl.tensor,  # [N]: whether the output is one
    first: tl.tensor,  # column
    columns: tl.tensor,
    groups: tl.tensor,
    BOOK: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    RUN: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
) -> tl.tensor:
    """Weights [N, K] of some outputs from column `first` on; zero beyond the edges."""
    if BOOK == "plain":
        n = tl.arange(0, N)[:, None].to(tl.int64)
        k = first + tl.arange(0, K)[None, :]
        return tl.load(codes + n * columns + k, mask=exists[:, None] & (k < columns), other=0)
    else:
        return weights(
            codes, scales, offsets, values, exists, first, columns, groups,
            BOOK, BITS, GROUP, RUN, N, K,
        )  # fmt: skip


@triton.jit(do_not_specialize=["most", "chosen", "gathers", "scatters", "groups"])
def _grouped_kernel(
    x: tl.tensor,  # [tokens or pairs, columns]
    row_scales: tl.tensor,  # float32 [rows of x]; None: x is no codes
    codes: tl.tensor,  # this to `values`: see `_Matrices`
    scales: tl.tensor,
    offsets: tl.tensor,
    values: tl.tensor,
    order: tl.tensor,  # this and the next: see `Routing`
    ends: tl.tensor,
    factors: tl.tensor,  # float32 [pairs]; where nothing is scattered a single one
    y: tl.tensor,  # [pairs, outputs]
    most: tl.tensor,  # tiles of rows that there may be
    chosen: tl.tensor,
    gathers: tl.tensor,  # whether x has a row for each token
    scatters: tl.tensor,  # whether y is in the order of pairs, times their factors
    experts: tl.tensor,
    outputs: tl.tensor,
    columns: tl.tensor,
    groups: tl.tensor,
    BOOK: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    RUN: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    E: tl.constexpr,
    TOGETHER: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """A tile [M, N] of the product of one expert; a single row needs no matrix units."""
    tile, across = share(most, tl.cdiv(outputs, N), TOGETHER)
    expert, first, stop = locate(tile, ends, experts, M, E)
    if first >= stop:
        return
    m = first + tl.arange(0, M)
    n = across * N + tl.arange(0, N)
    is_row, is_output = m < stop, n < outputs
    pair = tl.load(order + m, mask=is_row, other=0).to(tl.int32)
    source = tl.where(gathers != 0, pair // chosen, m).to(tl.int64)
    start = expert.to(tl.int64) * outputs + across * N
    codes += start * (columns * BITS // 8)
    if scales is not None:
        scales += start * groups
    if offsets is not None:
        offsets += start * groups
    if M == 1:  # sums of every K-th column stay apart until the loop has ended
        total = tl.zeros((N, K), dtype=tl.float32)
    elif row_scales is not None:
        total = tl.zeros((M, N), dtype=tl.int32)
    else:
        total = tl.zeros((M, N), dtype=tl.float32)
    for column in tl.range(0, columns, K, num_stages=STAGES):
        k = column + tl.arange(0, K)
        inside = is_row[:, None] & (k < columns)[None, :]
        part = tl.load(x + source[:, None] * columns + k[None, :], mask=inside, other=0)
        weight = _part_of(
            codes, scales, offsets, values, is_output, column, columns, groups,
            BOOK, BITS, GROUP, RUN, N, K,
        )  # fmt: skip
        if M == 1:
            total += part.to(tl.float32) * weight.to(tl.float32)
        elif row_scales is not None:
            total = tl.dot(part, tl.trans(weight), total, out_dtype=tl.int32)
        else:
            weight = tl.trans(weight.to(part.dtype))
            total = tl.dot(part, weight, total, input_precision="ieee")
    result = tl.sum(total, axis=1)[None, :] if M == 1 else total.to(tl.float32)
    if row_scales is not None:
        result *= tl.load(row_scales + source, mask=is_row, other=0.0)[:, None]
        result *= tl.load(scales + tl.arange(0, N), mask=is_output, other=0.0)[None, :]
    result *= tl.load(factors + pair * scatters, mask=is_row, other=0.0)[:, None]
    target = tl.where(scatters != 0, pair, m).to(tl.int64)
    inside = is_row[:, None] & is_output[None, :]
    tl.store(y + target[:, None] * outputs + n[None, :], result.to(y.dtype.element_ty), mask=inside)
