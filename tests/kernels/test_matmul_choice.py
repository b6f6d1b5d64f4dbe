"""The choice of a multiplication: proved, logged, and made anew where sizes do not fit."""

import logging

import pytest
import torch
from random_weights import random_weight

from serving.kernels import cpu_ops, matmul_choice
from serving.kernels.codebooks import E4M3, INT4, INT8, NF4
from serving.kernels.coded_matmul import CompiledCodedMatmul, DequantizedMatmul, TorchInt4Matmul
from serving.kernels.coded_weight import CodedWeight
from serving.kernels.matmul import Matmul
from serving.kernels.matmul_choice import Matmuls
from serving.kernels.matmul_proof import fault_of

CPU = torch.device("cpu")


class Wrong(DequantizedMatmul):
    """Forgets one scale, for many rows only: a proof of a single row would not see it."""

    name = "wrong"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        found = super().__call__(x)
        if len(x) > 8:
            found[:, 0] += 0.5 * found.abs().max()
        return found


class Failing(DequantizedMatmul):
    """Cannot run, and says so only when it does."""

    name = "failing"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("needs a unicorn\nand more lines")


class Picky(DequantizedMatmul):
    """Takes groups of 8 only."""

    name = "picky"

    @classmethod
    def reason_not(
        cls, weight: CodedWeight, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        return None if weight.group_size == 8 else f"groups of {weight.group_size}"


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """Candidates that a test fills in."""
    own: list[type] = []
    monkeypatch.setattr(
        matmul_choice, "_candidates",
        lambda *_: [(way.name, way) for way in [*own, DequantizedMatmul]],
    )  # fmt: skip
    return own


def chosen(matmuls: Matmuls, weight: CodedWeight) -> type:
    product: Matmul = matmuls(weight, None)
    return type(product)


def test_a_wrong_way_is_passed_over_and_named(
    ways: list[type], caplog: pytest.LogCaptureFixture
) -> None:
    ways += [Wrong, Failing, Picky]
    with caplog.at_level(logging.INFO):
        matmuls = Matmuls(CPU, torch.float32, compiled=False)
        assert chosen(matmuls, random_weight(NF4, 32, 64, 16)) is DequantizedMatmul
    (line,) = caplog.messages
    assert line.startswith("weights nf4, groups of 16: dequantized; not wrong (its result for 24 ")
    assert "not failing (needs a unicorn)" in line
    assert "not picky (groups of 16)" in line


def test_a_kind_is_proved_and_logged_once(
    ways: list[type], caplog: pytest.LogCaptureFixture
) -> None:
    ways += [Picky]
    with caplog.at_level(logging.INFO):
        matmuls = Matmuls(CPU, torch.float32, compiled=False)
        for _ in range(3):
            assert chosen(matmuls, random_weight(INT8, 32, 64, 8)) is Picky
    assert caplog.messages == ["weights int8, groups of 8: picky"]


def test_one_group_of_another_size_is_another_kind(ways: list[type]) -> None:
    """Scales per output are of one kind, whatever the inputs; not all ways take all of them."""
    ways += [Picky]
    matmuls = Matmuls(CPU, torch.float32, compiled=False)
    assert chosen(matmuls, random_weight(INT8, 32, 8, 8)) is Picky
    assert chosen(matmuls, random_weight(INT8, 32, 24, 24)) is DequantizedMatmul


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_ways_of_this_machine_are_right(dtype: torch.dtype) -> None:
    compiled = bool(cpu_ops.load())
    matmuls = Matmuls(CPU, dtype, compiled)
    for weight in (random_weight(INT4, 32, 64, 32), random_weight(E4M3, 32, 64, 64)):
        if compiled:
            assert chosen(matmuls, weight) is CompiledCodedMatmul
            assert fault_of(CompiledCodedMatmul, weight, dtype, CPU) is None
    assert fault_of(DequantizedMatmul, random_weight(NF4, 32, 64, 32), dtype, CPU) is None
    if dtype is not torch.float16:
        assert fault_of(TorchInt4Matmul, random_weight(INT4, 32, 64, 32), dtype, CPU) is None


def test_a_proof_leaves_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fault_of(DequantizedMatmul, random_weight(INT8, 8, 8, 8), torch.float32, CPU)
    torch.manual_seed(3)
    Matmuls(CPU, torch.float32, compiled=False)(random_weight(INT8, 8, 8, 8), None)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(4), expected)
