"""Every way to multiply with quantized weights on a CPU, against the plain form of the weights."""

from itertools import product

import pytest
import torch
from random_weights import random_weight

from serving.kernels import coded_matmul, cpu_ops
from serving.kernels.codebooks import E4M3, E5M2, FP4, INT4, INT8, NF4, Codebook
from serving.kernels.coded_matmul import (
    CompiledCodedMatmul,
    CompiledHalfMatmul,
    CompiledInt8Matmul,
    DequantizedMatmul,
    OneDnnInt8Matmul,
    TorchInt4Matmul,
    TorchInt8Matmul,
    round_trip_int8,
)
from serving.kernels.coded_weight import CodedWeight

CPU = torch.device("cpu")
BOOKS = [INT4, NF4, FP4, INT8, E4M3, E5M2]
WEIGHT_ONLY = [
    *product((CompiledCodedMatmul, DequantizedMatmul), BOOKS),
    (TorchInt4Matmul, INT4),
    (TorchInt8Matmul, INT8),
]
ROUNDING = [OneDnnInt8Matmul, CompiledInt8Matmul, DequantizedMatmul]
ROWS = (1, 2, 3, 4, 5, 17)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}  # of the largest sum
INPUTS = 128
SHAPES = [(48, 32), (48, 64), (48, 128), (48, 8), (33, 32)]  # outputs, inputs of a group


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cpu_ops.load()


def skip_unless_possible(way, weight: CodedWeight, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    if way.name.startswith("compiled") and not cpu_ops.load():
        pytest.skip("no compiled operations here")
    reason = way.reason_not(weight, dtype, CPU)
    if reason is not None:
        pytest.skip(reason)


def check(way, weight: CodedWeight, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    bias = torch.randn(weight.outputs).to(dtype)
    multiply = way(weight, bias, dtype)
    for rows in ROWS:
        x = torch.randn(rows, weight.inputs).to(dtype)
        given = round_trip_int8(x.float()) if weight.quantizes_activations else x.float()
        expected = given.double() @ weight.dequantize().double().T + bias.double()
        found = multiply(x)
        assert found.dtype == dtype
        assert found.shape == expected.shape
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert error < TOLERANCE[dtype], rows


@pytest.mark.parametrize(("way", "book"), WEIGHT_ONLY, ids=lambda one: str(one.name))
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_weights_alone(way, dtype: torch.dtype, book: Codebook) -> None:  # type: ignore[no-untyped-def]
    orders = (None, torch.randperm(INPUTS), torch.randint(INPUTS - 8, (INPUTS,)))
    for (outputs, group), offsets, order in product(SHAPES, (False, True), orders):
        weight = random_weight(book, outputs, INPUTS, group, offsets, order)
        if way.reason_not(weight, dtype, CPU) is None:
            skip_unless_possible(way, weight, dtype)
            check(way, weight, dtype)


@pytest.mark.parametrize("way", ROUNDING, ids=lambda way: way.name)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 128), (33, 50), (16, 2)])
def test_activations_too(way, dtype: torch.dtype, outputs: int, inputs: int) -> None:  # type: ignore[no-untyped-def]
    weight = random_weight(INT8, outputs, inputs, inputs, quantizes_activations=True)
    skip_unless_possible(way, weight, dtype)
    check(way, weight, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("book", BOOKS, ids=str)
@pytest.mark.parametrize("group", [16, INPUTS])
def test_a_row_has_the_same_bits_whatever_is_beside_it(
    dtype: torch.dtype, book: Codebook, group: int
) -> None:
    for offsets in (False, True):
        weight = random_weight(book, 48, INPUTS, group, offsets)
        skip_unless_possible(CompiledCodedMatmul, weight, dtype)
        check_independence(CompiledCodedMatmul(weight, None, dtype), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_rounded_row_has_the_same_bits_whatever_is_beside_it(dtype: torch.dtype) -> None:
    weight = random_weight(INT8, 48, INPUTS, INPUTS, quantizes_activations=True)
    skip_unless_possible(CompiledInt8Matmul, weight, dtype)
    check_independence(CompiledInt8Matmul(weight, torch.randn(48).to(dtype), dtype), dtype)


def check_independence(multiply, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    x = torch.randn(70, INPUTS).to(dtype)
    whole = multiply(x)
    for rows in (1, 2, 3, 4, 5, 8, 17, 33, 64):
        assert torch.equal(multiply(x[:rows]), whole[:rows]), rows
        assert torch.equal(multiply(x[-rows:]), whole[-rows:]), rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 128), (33, 51)])
def test_plain_weights_of_16_bits(dtype: torch.dtype, outputs: int, inputs: int) -> None:
    if not cpu_ops.load():
        pytest.skip("no compiled operations here")
    weight, bias = torch.randn(outputs, inputs).to(dtype), torch.randn(outputs).to(dtype)
    way = CompiledHalfMatmul(weight, bias)
    for rows in ROWS:
        x = torch.randn(rows, inputs).to(dtype)
        expected = x.double() @ weight.double().T + bias.double()
        error = (way(x).double() - expected).abs().max() / expected.abs().max()
        assert error < TOLERANCE[dtype]


def test_rounding_rows_of_zeros_leaves_zeros() -> None:
    x = torch.zeros(2, 8)
    x[1, 3] = 2.0
    assert torch.equal(round_trip_int8(x), x)
    for way in ROUNDING:
        weight = random_weight(INT8, 16, 8, 8, quantizes_activations=True)
        if way.reason_not(weight, torch.float32, CPU) is None:
            found = way(weight, None, torch.float32)(torch.zeros(3, 8))
            assert torch.equal(found, torch.zeros(3, 16))


def test_reasons_name_what_does_not_fit() -> None:
    odd = random_weight(INT8, 16, 9, 3)
    assert "groups of 3" in str(CompiledCodedMatmul.reason_not(odd, torch.float32, CPU))
    rounding = random_weight(INT8, 16, 8, 8, quantizes_activations=True)
    assert "activations" in str(CompiledCodedMatmul.reason_not(rounding, torch.float32, CPU))
    grouped = random_weight(INT4, 20, 96, 48)
    assert TorchInt4Matmul.reason_not(grouped, torch.float32, CPU) == "groups of 48"
    unaligned = random_weight(INT4, 20, 64, 32)
    assert TorchInt4Matmul.reason_not(unaligned, torch.float32, CPU) == "20 outputs"
    assert "nf4" in str(
        TorchInt4Matmul.reason_not(random_weight(NF4, 16, 32, 32), torch.float32, CPU)
    )
    assert coded_matmul.reason_not_per_output(random_weight(INT8, 16, 8, 4)) == "scales of groups"
