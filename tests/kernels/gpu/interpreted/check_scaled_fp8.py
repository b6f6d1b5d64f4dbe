"""Products in fp8 arithmetic: the codes of activations bit by bit, then the scaled product."""

import pytest
import torch
from random_weights import random_weight

from serving.kernels.codebooks import E4M3, E5M2
from serving.kernels.gpu.row_codes import quantize_rows
from serving.kernels.gpu.scaled_fp8 import ScaledFp8Matmul

CUDA = torch.device("cuda")


def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In plain torch."""
    scales = x.float().abs().amax(dim=1, keepdim=True) / 448
    scales[scales == 0] = 1
    return (x / scales).clamp(-448, 448).to(torch.float8_e4m3fn), scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rows_are_quantized_as_by_torch(dtype: torch.dtype, device: str) -> None:
    x = torch.randn(5, 100, device=device).to(dtype)
    x[2] = 0
    x[3] *= 1e-3
    codes, scales = quantize_rows(x, torch.float8_e4m3fn, 5)
    expected_codes, expected_scales = quantized(x)
    assert torch.equal(codes.float(), expected_codes.float())
    assert torch.equal(scales, expected_scales)


@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("reverses", [False, True])
def test_product(rows: int, reverses: bool, device: str) -> None:
    order = torch.arange(160).flip(0) if reverses else None
    weight = random_weight(E4M3, 48, 160, 160, order=order, device=device)
    bias = torch.randn(48, device=device).bfloat16()
    x = torch.randn(rows, 160, device=device).bfloat16()
    found = ScaledFp8Matmul(weight, bias, torch.bfloat16)(x).double()
    codes, scales = quantized(x)
    expected = codes.double() * scales @ weight.dequantize().double().T + bias
    assert (found - expected).norm() <= 4e-3 * expected.norm()  # rounded to bfloat16
    exact = x.double() @ weight.dequantize().double().T + bias
    assert (found - exact).norm() <= 4e-2 * exact.norm()  # three bits of mantissa


def test_no_rows(device: str) -> None:
    matmul = ScaledFp8Matmul(random_weight(E4M3, 48, 160, 160, device=device), None, torch.bfloat16)
    assert matmul(torch.empty(0, 160, device=device).bfloat16()).shape == (0, 48)


def test_reasons_against() -> None:
    weight = random_weight(E4M3, 16, 64, 64)
    against = {
        "codes are fp8 e5m2, not fp8 e4m3": (random_weight(E5M2, 16, 64, 64), torch.bfloat16, CUDA),
        "not one scale per output": (random_weight(E4M3, 16, 64, 32), torch.bfloat16, CUDA),
        "sizes are not multiples of 16": (random_weight(E4M3, 17, 64, 64), torch.bfloat16, CUDA),
        "gives bfloat16, not torch.float16": (weight, torch.float16, CUDA),
        "no kernel for device 'cpu'": (weight, torch.bfloat16, torch.device("cpu")),
    }
    for reason, case in against.items():
        assert ScaledFp8Matmul.reason_not(*case) == reason
