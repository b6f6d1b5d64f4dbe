"""Frozen linear maps, and the row counts that they are run with."""

import pytest
import torch

from serving.kernels import cpu_ops
from serving.kernels.coded_matmul import CompiledHalfMatmul
from serving.kernels.matmul import PackedMatmul, PlainMatmul, padded_rows
from serving.kernels.matmul_choice import plain_matmul_class

CPU = torch.device("cpu")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_matmul_is_that_of_torch(dtype: torch.dtype, rows: int, bias: bool) -> None:
    if plain_matmul_class(CPU, dtype, compiled=False) is not PackedMatmul:
        pytest.skip(f"oneDNN has no packed weights of {dtype} on this processor")
    weight, x = torch.randn(48, 96).to(dtype), torch.randn(rows, 96).to(dtype)
    offset = torch.randn(48).to(dtype) if bias else None
    expected = x.float() @ weight.float().T + (0 if offset is None else offset.float())
    found = PackedMatmul(weight, offset)(x).float()
    tolerance = 1e-4 if dtype is torch.float32 else 5e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_every_cpu_dtype_gets_a_matmul_that_runs() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for compiled in {False, bool(cpu_ops.load())}:
            make = plain_matmul_class(CPU, dtype, compiled)
            matmul = make(torch.ones(16, 32, dtype=dtype), None)
            assert matmul(torch.ones(2, 32, dtype=dtype)).tolist() == [[32.0] * 16] * 2


@pytest.mark.parametrize("shape", [(48, 96), (33, 51), (1, 1)], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_weights_in_tiles(dtype: torch.dtype, rows: int, shape: tuple[int, int]) -> None:
    if not cpu_ops.load():
        pytest.skip("no compiled operations here")
    weight, x = torch.randn(shape).to(dtype), torch.randn(rows, shape[1]).to(dtype)
    bias = torch.randn(shape[0]).to(dtype)
    expected = (x.double() @ weight.double().T + bias.double()).to(dtype)
    found = CompiledHalfMatmul(weight, bias)(x)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_other_devices_use_plain_torch() -> None:
    assert plain_matmul_class(torch.device("cuda"), torch.float32, True) is PlainMatmul


def test_padding_never_shrinks_and_stays_small() -> None:
    for rows in range(1, 5000):
        padded = padded_rows(rows)
        assert rows <= padded <= max(rows + 3, rows * 1.07)
        assert padded_rows(padded) == padded


def test_few_row_counts_serve_all_steps_of_a_cpu() -> None:
    assert len({padded_rows(rows) for rows in range(1, 513)}) <= 70
