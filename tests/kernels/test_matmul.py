"""Frozen linear maps, and the row counts that they are run with."""

import pytest
import torch

from serving.kernels.matmul import PackedMatmul, PlainMatmul, matmul_factory, padded_rows

CPU = torch.device("cpu")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_matmul_is_that_of_torch(dtype: torch.dtype, rows: int, bias: bool) -> None:
    weight, x = torch.randn(48, 96).to(dtype), torch.randn(rows, 96).to(dtype)
    offset = torch.randn(48).to(dtype) if bias else None
    expected = x.float() @ weight.float().T + (0 if offset is None else offset.float())
    found = PackedMatmul(weight, offset)(x).float()
    tolerance = 1e-4 if dtype is torch.float32 else 5e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_every_cpu_dtype_gets_a_matmul_that_runs() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        matmul = matmul_factory(CPU, dtype)(torch.ones(16, 32, dtype=dtype), None)
        assert matmul(torch.ones(2, 32, dtype=dtype)).tolist() == [[32.0] * 16] * 2


def test_other_devices_use_plain_torch() -> None:
    assert matmul_factory(torch.device("cuda"), torch.float32) is PlainMatmul


def test_padding_never_shrinks_and_stays_small() -> None:
    for rows in range(1, 5000):
        padded = padded_rows(rows)
        assert rows <= padded <= max(rows + 3, rows * 1.07)
        assert padded_rows(padded) == padded


def test_few_row_counts_serve_all_steps_of_a_cpu() -> None:
    assert len({padded_rows(rows) for rows in range(1, 513)}) <= 70
