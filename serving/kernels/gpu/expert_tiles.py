"""Which rows are of which expert, found out on the GPU: the host never waits for it.

Called by `grouped_matmul.py`. Pairs of a token and an expert are sorted by one program for each
expert; a tile of the product finds its expert by itself. The host knows only how many tiles there
may be at most; programs beyond the last tile leave at once.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from serving.kernels.expert_matmul import Routing

FEW, MANY = 512, 4096  # pairs that a program of `_sort_kernel` reads at a time
COPIED = 1024  # numbers that a program of `_permute_kernel` copies


def sort_by_expert(experts: torch.Tensor, count: int) -> Routing:
    """int64 [tokens, chosen] of `count` experts, sorted; pairs of an expert keep their order."""
    experts = experts.contiguous()
    pairs = experts.numel()
    order = torch.empty(pairs, dtype=torch.int64, device=experts.device)
    ends = torch.empty(count, dtype=torch.int32, device=experts.device)
    few = pairs <= FEW
    _sort_kernel[(count,)](
        experts, order, ends, pairs, SIZE=FEW if few else MANY, num_warps=4 if few else 8
    )
    return Routing(order, ends, experts.shape[1])


def most_tiles(pairs: int, experts: int, rows: int) -> int:
    """How many tiles of so many rows there may be: all but one of an expert's tiles are full."""
    return (pairs + min(experts, pairs) * (rows - 1)) // rows


def permuted(
    x: torch.Tensor, routing: Routing, orders: torch.Tensor, gathers: bool
) -> torch.Tensor:
    """Rows [pairs, columns] sorted by expert, their columns in the order of their expert.

    `x` [tokens, in] if it `gathers`, else [pairs, in], sorted by expert; `orders` int64
    [experts, columns].
    """
    count, columns = orders.shape
    y = x.new_empty(len(routing.order), columns)
    grid = (len(y), triton.cdiv(columns, COPIED))
    _permute_kernel[grid](
        x, routing.order, routing.ends, orders, y,
        routing.chosen, int(gathers), count, x.shape[1], columns,
        E=triton.next_power_of_2(count), SIZE=COPIED,
    )  # fmt: skip
    return y


@triton.jit(do_not_specialize=["pairs"])
def _sort_kernel(
    experts: tl.tensor,  # int64 [pairs]
    order: tl.tensor,  # int64 [pairs]
    ends: tl.tensor,  # int32 [programs]
    pairs: tl.tensor,
    SIZE: tl.constexpr,
) -> None:
    """The pairs of one expert behind those of the experts before it."""
    own = tl.program_id(0)
    before = tl.zeros((SIZE,), dtype=tl.int32)
    for first in range(0, pairs, SIZE):
        pair = first + tl.arange(0, SIZE)
        is_pair = pair < pairs
        expert = tl.load(experts + pair, mask=is_pair, other=0)
        before += ((expert < own) & is_pair).to(tl.int32)
    place = tl.sum(before, axis=0)
    for first in range(0, pairs, SIZE):
        pair = first + tl.arange(0, SIZE)
        expert = tl.load(experts + pair, mask=pair < pairs, other=-1)
        is_own = (expert == own).to(tl.int32)
        rank = tl.cumsum(is_own, axis=0)
        tl.store(order + place + rank - 1, pair.to(tl.int64), mask=is_own != 0)
        place += tl.sum(is_own, axis=0)
    tl.store(ends + own, place)


@triton.jit(do_not_specialize=["chosen", "gathers"])
def _permute_kernel(
    x: tl.tensor,  # [tokens or pairs, inputs]
    order: tl.tensor,  # int64 [pairs]
    ends: tl.tensor,  # [experts]
    orders: tl.tensor,  # int64 [experts, columns]
    y: tl.tensor,  # [pairs, columns]
    chosen: tl.tensor,
    gathers: tl.tensor,
    experts: tl.tensor,
    inputs: tl.tensor,
    columns: tl.tensor,
    E: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    """Some columns of one row."""
    row = tl.program_id(0)
    e = tl.arange(0, E)
    end = tl.load(ends + e, mask=e < experts, other=2147483647)
    expert = tl.sum((end <= row).to(tl.int32), axis=0).to(tl.int64)
    source = tl.where(gathers != 0, tl.load(order + row).to(tl.int32) // chosen, row).to(tl.int64)
    column = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    exists = column < columns
    where = tl.load(orders + expert * columns + column, mask=exists, other=0)
    number = tl.load(x + source * inputs + where, mask=exists, other=0.0)
    tl.store(y + row.to(tl.int64) * columns + column, number, mask=exists)


@triton.jit
def locate(
    tile: tl.tensor, ends: tl.tensor, experts: tl.tensor, M: tl.constexpr, E: tl.constexpr
) -> Any:
    """Of a tile of M rows: its expert, its first row, and the end of the expert's rows.

    `ends` [experts]; E: a power of two, not less. Beyond the last tile no row is before the end.
    """
    e = tl.arange(0, E)
    end = tl.load(ends + e, mask=e < experts, other=0).to(tl.int32)
    start = tl.load(ends + e - 1, mask=(e > 0) & (e < experts), other=0).to(tl.int32)
    tiles = (end - start + (M - 1)) // M
    behind = tl.cumsum(tiles, axis=0)
    expert = tl.sum((behind <= tile).to(tl.int32), axis=0)
    is_own = e == expert
    first = tl.sum(tl.where(is_own, start - (behind - tiles) * M, 0), axis=0) + tile * M
    stop = tl.sum(tl.where(is_own, end, 0), axis=0)
    return expert, first, stop


@triton.jit
def share(tiles: tl.tensor, across: tl.tensor, TOGETHER: tl.constexpr) -> Any:
    """Which tile of rows, and of `across` tiles of outputs which, this program computes.

    Neighbouring programs share weights: those of TOGETHER tiles of rows are loaded once.
    """
    number = tl.program_id(0)
    width = TOGETHER * across
    start = number // width * TOGETHER
    together = tl.minimum(tiles - start, TOGETHER)
    rest = number % width
    return start + rest % together, rest // together
