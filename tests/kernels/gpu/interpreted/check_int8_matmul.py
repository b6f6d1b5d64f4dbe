"""Products of 8-bit integers, against the same sums in numpy."""

import numpy as np
import pytest
import torch
from random_weights import random_weight

from serving.kernels.codebooks import E4M3, INT8
from serving.kernels.coded_weight import CodedWeight
from serving.kernels.gpu import tiles
from serving.kernels.gpu.int8_matmul import TritonInt8Matmul

CUDA = torch.device("cuda")


def int8_weight(
    outputs: int, columns: int, device: str, order: torch.Tensor | None = None
) -> CodedWeight:
    return random_weight(
        INT8, outputs, columns, columns, order=order, quantizes_activations=True, device=device
    )


def oracle(x: torch.Tensor, weight: CodedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """In whole numbers but for the scales."""
    rows = x.float().cpu().numpy()
    if weight.order is not None:
        rows = rows[:, weight.order.cpu().numpy()]
    row_scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    codes = np.rint(rows / row_scales).astype(np.int64)
    sums = codes @ weight.codes.cpu().numpy().view(np.int8).astype(np.int64).T
    result = sums.astype(np.float32) * row_scales * weight.scales.cpu().numpy().T
    if bias is not None:
        result += bias.float().cpu().numpy()
    return torch.from_numpy(result).to(x.dtype).to(x.device)


@pytest.mark.parametrize("rows", [1, 16, 33])
@pytest.mark.parametrize(("outputs", "columns"), [(40, 264), (37, 100), (40, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_same_bits_as_whole_numbers(
    dtype: torch.dtype, outputs: int, columns: int, rows: int, device: str
) -> None:
    weight = int8_weight(outputs, columns, device)
    x = torch.randn(rows, columns, device=device).to(dtype)
    bias = torch.randn(outputs, device=device).to(dtype) if rows > 1 else None
    assert torch.equal(TritonInt8Matmul(weight, bias, dtype)(x), oracle(x, weight, bias))


def test_codes_are_rounded_half_to_even(device: str) -> None:
    weight = int8_weight(8, 8, device)
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 63.5]], device=device)
    codes = torch.tensor([127.0, 0, 2, 2, 0, -2, -2, 64], device=device)
    expected = weight.numbers() @ codes * weight.scales[:, 0]
    assert torch.equal(TritonInt8Matmul(weight, None, torch.float32)(x)[0], expected)


def test_columns_in_another_order_some_twice(device: str) -> None:
    order = torch.cat([torch.randperm(60), torch.tensor([7, 7, 0, 59])])
    weight = int8_weight(24, 64, device, order)
    x = torch.randn(3, 60, device=device)
    assert torch.equal(TritonInt8Matmul(weight, None, torch.float32)(x), oracle(x, weight, None))


@pytest.mark.parametrize("outputs", [24, 25])
def test_a_row_of_zeros_and_no_rows(outputs: int, device: str) -> None:
    bias = torch.randn(outputs, device=device)
    matmul = TritonInt8Matmul(int8_weight(outputs, 64, device), bias, torch.float32)
    assert torch.equal(matmul(torch.zeros(2, 64, device=device)), bias.expand(2, outputs))
    assert matmul(torch.zeros(0, 64, device=device)).shape == (0, outputs)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_what_is_not_finite_stays_so(device: str) -> None:
    x = torch.randn(3, 64, device=device)
    x[0, 7], x[1, 3] = float("nan"), float("inf")
    matmul = TritonInt8Matmul(int8_weight(24, 64, device), None, torch.float32)
    assert matmul(x).isfinite().all(dim=1).tolist() == [False, False, True]


def test_warm_up_runs_every_tile(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matmul = TritonInt8Matmul(int8_weight(25, 64, device), None, torch.float16)
    seen = []
    monkeypatch.setattr(matmul, "_multiply_in_triton", lambda x, y: seen.append(len(x)))
    matmul.warm_up(64, torch.float16)
    assert [tiles.tile_for(tiles.INT8, rows) for rows in seen] == [one for _, one in tiles.INT8]


def test_reasons_against() -> None:
    reason_not = TritonInt8Matmul.reason_not
    plain = random_weight(INT8, 16, 64, 64)
    assert reason_not(random_weight(E4M3, 16, 64, 64), torch.float16, CUDA) == (
        "codes are fp8 e4m3, not int8"
    )
    assert reason_not(plain, torch.float16, CUDA) == "activations are not to be quantized"
    grouped = random_weight(INT8, 16, 64, 32, quantizes_activations=True)
    assert reason_not(grouped, torch.float16, CUDA) == "not one scale per output"
    assert reason_not(int8_weight(16, 64, "cpu"), torch.float16, torch.device("cpu")) == (
        "no kernel for device 'cpu'"
    )
