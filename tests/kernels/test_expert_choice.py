"""The choice of a product with experts: proved, logged, and left where experts differ."""

import logging
from collections.abc import Iterator

import pytest
import torch
from looped_experts import LoopedExperts
from random_weights import random_weight

from serving.kernels import expert_choice
from serving.kernels.codebooks import E4M3, INT4, INT8
from serving.kernels.coded_weight import CodedWeight, Weight
from serving.kernels.expert_choice import ExpertMatmuls, Parts, fault_of
from serving.kernels.expert_matmul import (
    ExpertMatmul,
    GroupedExperts,
    Routing,
    SeparateExperts,
)

CPU = torch.device("cpu")
COUNT = 4


class WithoutWeights(LoopedExperts):
    """Forgets the weights of the router."""

    name = "without weights"

    def scatter(self, rows: torch.Tensor, routing: Routing, weights: torch.Tensor) -> torch.Tensor:
        return super().scatter(rows, routing, torch.ones_like(weights))


class WrongForMany(LoopedExperts):
    """Right for few rows."""

    name = "wrong for many"

    def gather(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        found = super().gather(x, routing)
        return found.flip(0) if len(x) > 100 else found


class Unsorted(LoopedExperts):
    """Rows of an expert in another order."""

    name = "unsorted"

    def route(self, experts: torch.Tensor) -> Routing:
        routing = super().route(experts.flip(0))
        pairs = torch.arange(experts.numel()).view(experts.shape).flip(0).flatten()
        return Routing(pairs[routing.order], routing.ends, routing.chosen)


class Failing(LoopedExperts):
    """Cannot run, and says so only when it does."""

    name = "failing"

    def gather(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        raise NotImplementedError("needs a unicorn\nand more lines")


class Picky(LoopedExperts):
    """Takes groups of 8 only."""

    name = "picky"

    @classmethod
    def reason_not(cls, weight: Weight, dtype: torch.dtype, device: torch.device) -> str | None:
        is_right = isinstance(weight, CodedWeight) and weight.group_size == 8
        return None if is_right else "no groups of 8"


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """Candidates that a test fills in."""
    own: list[type] = []
    monkeypatch.setattr(expert_choice, "_ways", lambda device: iter(own))
    return own


class Reader:
    """Experts of a checkpoint, and how often each was read."""

    def __init__(self, experts: list[list[CodedWeight]]) -> None:
        self.experts, self.reads = experts, 0

    def __call__(self, expert: int) -> Parts:
        self.reads += 1
        return self.experts[expert]


def gate_and_up(group: int = 16) -> list[CodedWeight]:
    return [random_weight(INT4, 24, 64, group) for _ in range(2)]


class Separated(SeparateExperts):
    """What the loader makes of experts that are multiplied with one by one."""


def separate(parts: Iterator[Parts]) -> ExpertMatmul:
    return Separated(list(parts))  # type: ignore[arg-type]


def load(matmuls: ExpertMatmuls, reader: Reader) -> ExpertMatmul:
    return matmuls.coded(len(reader.experts), reader, separate)


@pytest.mark.parametrize("count", [1, 2, COUNT])
@pytest.mark.parametrize(
    "like",
    [
        torch.empty(8, 8),
        random_weight(INT4, 8, 16, 4, offsets=True),
        random_weight(E4M3, 8, 16, 16),
        random_weight(INT4, 8, 16, 4, order=torch.randperm(16)),
        random_weight(INT8, 8, 16, 16, quantizes_activations=True),
    ],
    ids=["plain", "int4", "fp8", "reordered", "rounding"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_right_ways_are_not_refused(dtype: torch.dtype, like: Weight, count: int) -> None:
    assert fault_of(LoopedExperts, like, count, dtype, CPU) is None


@pytest.mark.parametrize(
    ("way", "fault"),
    [
        (WithoutWeights, "its result for 1 tokens is off by"),
        (WrongForMany, "its result for 160 tokens is off by"),
        (Unsorted, "its result for 4 tokens is not sorted"),
        (Failing, "needs a unicorn"),
    ],
)
def test_wrong_ways(way: type, fault: str) -> None:
    for like in (torch.empty(8, 8), random_weight(INT4, 8, 16, 4)):
        found = fault_of(way, like, COUNT, torch.float32, CPU)
        assert found is not None
        assert found.startswith(fault)


def test_a_wrong_way_is_passed_over_and_named(
    ways: list[type], caplog: pytest.LogCaptureFixture
) -> None:
    ways += [Failing, Picky, LoopedExperts]
    with caplog.at_level(logging.INFO):
        matmuls = ExpertMatmuls(CPU, torch.float32)
        for _ in range(3):
            assert type(matmuls.plain(torch.randn(COUNT, 8, 8))) is LoopedExperts
            assert type(load(matmuls, Reader([gate_and_up()] * COUNT))) is LoopedExperts
    passed_over = "; not failing (needs a unicorn); not picky (no groups of 8)"
    assert caplog.messages == [
        f"experts float32: looped{passed_over}",
        f"experts int4, groups of 16: looped{passed_over}",
    ]


def test_where_no_way_is_left(ways: list[type], caplog: pytest.LogCaptureFixture) -> None:
    ways += [Picky]
    with caplog.at_level(logging.INFO):
        matmuls = ExpertMatmuls(CPU, torch.float32)
        assert type(matmuls.plain(torch.randn(COUNT, 8, 8))) is GroupedExperts
        product = load(matmuls, Reader([gate_and_up()] * COUNT))
        assert type(product) is Separated
    assert not product.is_capturable
    assert caplog.messages == [
        "experts float32: torch grouped; not picky (no groups of 8)",
        "experts int4, groups of 16: one by one; not picky (no groups of 8)",
    ]


def test_parts_of_an_expert_lie_upon_each_other(ways: list[type]) -> None:
    ways += [LoopedExperts]
    experts = [gate_and_up() for _ in range(COUNT)]
    reader = Reader(experts)
    product = load(ExpertMatmuls(CPU, torch.float32), reader)
    assert isinstance(product, LoopedExperts)
    for parts, matrix in zip(experts, product.matrices, strict=True):
        assert torch.equal(matrix, torch.cat([part.dequantize() for part in parts]))
    assert reader.reads == COUNT


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (gate_and_up(32), "experts whose group sizes differ"),
        ([gate_and_up(32)[0], gate_and_up(16)[0]], "an expert whose matrices differ"),
    ],
)
def test_experts_that_differ_are_read_one_by_one(
    odd: list[CodedWeight], reason: str, ways: list[type], caplog: pytest.LogCaptureFixture
) -> None:
    ways += [LoopedExperts]
    reader = Reader([gate_and_up(), gate_and_up(), odd, gate_and_up()])
    matmuls = ExpertMatmuls(CPU, torch.float32)
    with caplog.at_level(logging.INFO):
        products = [load(matmuls, reader) for _ in range(3)]
    for product in products:
        assert isinstance(product, Separated)
        assert not product.is_capturable
        assert list(product.matmuls) == reader.experts  # type: ignore[comparison-overlap]
    assert caplog.messages == [
        "experts int4, groups of 16: looped",
        f"experts int4, groups of 16: one by one; not looped ({reason})",
    ]


def test_a_first_expert_whose_matrices_differ(
    ways: list[type], caplog: pytest.LogCaptureFixture
) -> None:
    ways += [LoopedExperts]
    mixed = [gate_and_up(32)[0], gate_and_up(16)[0]]
    matmuls = ExpertMatmuls(CPU, torch.float32)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert isinstance(load(matmuls, Reader([mixed] * COUNT)), Separated)
    assert caplog.messages == [
        "experts of several kinds: one by one; not looped (an expert whose matrices differ)"
    ]


def test_processors_have_no_choice(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is read twice, and nothing is said."""
    reader = Reader([gate_and_up() for _ in range(COUNT)])
    with caplog.at_level(logging.INFO):
        matmuls = ExpertMatmuls(CPU, torch.float32)
        assert isinstance(load(matmuls, reader), Separated)
        assert type(matmuls.plain(torch.randn(COUNT, 8, 8))) is GroupedExperts
    assert reader.reads == COUNT
    assert caplog.messages == []


def test_a_proof_leaves_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fault_of(LoopedExperts, torch.empty(8, 8), COUNT, torch.float32, CPU)
    assert torch.equal(torch.rand(4), expected)
