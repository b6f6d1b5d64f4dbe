"""Rows of experts: sorted as torch sorts them, and every row in exactly one tile."""

import pytest
import torch
import triton
import triton.language as tl

from serving.kernels.expert_matmul import Routing
from serving.kernels.gpu import expert_tiles
from serving.kernels.gpu.expert_tiles import locate, most_tiles, permuted, share, sort_by_expert


def routing_of(counts: list[int], device: str) -> Routing:
    """Of pairs that are sorted already."""
    ends = torch.tensor(counts, device=device).cumsum(0).int()
    return Routing(torch.arange(sum(counts), device=device), ends, 1)


@pytest.mark.parametrize("count", [1, 5, 30])
@pytest.mark.parametrize(
    ("tokens", "chosen"), [(1, 1), (1, 4), (73, 7), (64, 8), (171, 3), (410, 3)]
)
def test_pairs_are_sorted_as_torch_does(tokens: int, chosen: int, count: int, device: str) -> None:
    experts = torch.randint(count, (tokens, chosen), device=device)
    routing = sort_by_expert(experts, count)
    numbers, order = experts.flatten().sort(stable=True)
    ends = torch.searchsorted(numbers, torch.arange(count, device=device), right=True)
    assert routing.chosen == chosen
    assert torch.equal(routing.order, order)
    assert torch.equal(routing.ends, ends.int())


def test_pairs_at_the_edge_of_what_is_read_at_a_time(device: str) -> None:
    for pairs in (expert_tiles.FEW, expert_tiles.FEW + 1, expert_tiles.MANY + 1):
        experts = torch.randint(3, (pairs, 1), device=device)
        order = experts.flatten().sort(stable=True).indices
        assert torch.equal(sort_by_expert(experts, 3).order, order)


def test_experts_that_are_not_contiguous(device: str) -> None:
    experts = torch.randint(9, (4, 10), device=device)
    expected = sort_by_expert(experts[:, ::2].contiguous(), 9)
    assert torch.equal(sort_by_expert(experts[:, ::2], 9).order, expected.order)


def test_no_pairs(device: str) -> None:
    routing = sort_by_expert(torch.empty(0, 2, dtype=torch.int64, device=device), 3)
    assert routing.order.shape == (0,)
    assert routing.ends.tolist() == [0, 0, 0]


@pytest.mark.parametrize("rows", [1, 16, 32])
@pytest.mark.parametrize(
    "counts", [[0], [1], [17], [0, 0, 5], [5, 0, 0], [16, 0, 1, 33, 15], [1] * 9, [32, 33, 31, 0]]
)
def test_every_row_is_in_one_tile(counts: list[int], rows: int, device: str) -> None:
    routing = routing_of(counts, device)
    most = most_tiles(sum(counts), len(counts), rows)
    needed = sum(-(-count // rows) for count in counts)
    assert needed <= most
    number = most + 2  # behind the last tile there are none
    found = torch.full((number, 3), -1, dtype=torch.int32, device=device)
    _locate_kernel[(number,)](
        routing.ends, found, len(counts), M=rows, E=triton.next_power_of_2(len(counts))
    )
    expected, start = [], 0
    for expert, count in enumerate(counts):
        expected += [[expert, first, start + count] for first in range(start, start + count, rows)]
        start += count
    assert found[:needed].tolist() == expected
    assert all(first >= stop for _, first, stop in found[needed:].tolist())


def test_no_fewer_tiles_would_do() -> None:
    """The bound is reached where every expert has a row more than its full tiles hold."""
    assert most_tiles(8, 128, 16) == 8
    assert most_tiles(4 * 17, 4, 16) == 8
    assert most_tiles(4 * 17 - 1, 4, 16) == 7
    assert most_tiles(5, 2, 1) == 5


@pytest.mark.parametrize(("most", "across"), [(1, 1), (3, 5), (4, 2), (9, 3), (13, 7)])
def test_programs_share_the_tiles(most: int, across: int, device: str) -> None:
    found = torch.empty(most * across, 2, dtype=torch.int32, device=device)
    _share_kernel[(len(found),)](found, most, across, TOGETHER=4)
    pairs = [tuple(pair) for pair in found.tolist()]
    assert sorted(pairs) == [(tile, n) for tile in range(most) for n in range(across)]
    assert len({n for _, n in pairs[: min(most, 4)]}) == 1  # these read the same weights


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("columns", [1, 6, expert_tiles.COPIED + 1])
def test_columns_in_the_order_of_their_expert(columns: int, gathers: bool, device: str) -> None:
    experts = torch.tensor([[0, 3], [3, 1], [1, 0]], device=device)
    routing = sort_by_expert(experts, 4)
    x = torch.randn(3 if gathers else 6, 5, device=device)
    orders = torch.randint(5, (4, columns), device=device)
    found = permuted(x, routing, orders, gathers)
    for row, pair in enumerate(routing.order.tolist()):
        own = orders[experts.flatten()[pair]]
        assert torch.equal(found[row], x[pair // 2 if gathers else row][own])


@triton.jit
def _locate_kernel(
    ends: tl.tensor, found: tl.tensor, experts: tl.tensor, M: tl.constexpr, E: tl.constexpr
) -> None:
    tile = tl.program_id(0)
    expert, first, stop = locate(tile, ends, experts, M, E)
    tl.store(found + tile * 3, expert)
    tl.store(found + tile * 3 + 1, first)
    tl.store(found + tile * 3 + 2, stop)


@triton.jit
def _share_kernel(
    found: tl.tensor, most: tl.tensor, across: tl.tensor, TOGETHER: tl.constexpr
) -> None:
    tile, output = share(most, across, TOGETHER)
    tl.store(found + tl.program_id(0) * 2, tile)
    tl.store(found + tl.program_id(0) * 2 + 1, output)
