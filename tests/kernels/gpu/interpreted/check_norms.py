"""Norms against those of plain torch, with the same roundings."""

import pytest
import torch
import torch.nn.functional as F

from serving.kernels.gpu import norms
from serving.kernels.torch_ops import TorchOps

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Sums are in another order: the last bit may differ, of the norm and of its product.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2**-9, torch.bfloat16: 2**-6}
EPS = 1e-5
OPS = TorchOps()
SHAPES = [(3, 64), (1, 1), (5, 100), (2, 1024), (2, 1536), (7, 3, 32), (2, 2, 3, 20), (40,)]


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-6) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=atol)
    if found.dtype != torch.float32:
        assert (found != expected).sum() <= 1 + 0.02 * found.numel()


def random(*shape: int, dtype: torch.dtype, device: str, spread: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, device=device) * spread).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...], device: str) -> None:
    x = random(*shape, dtype=dtype, device=device, spread=3.0)
    weight = random(shape[-1], dtype=dtype, device=device)
    before = x.clone()
    close(norms.rms_norm(x, weight, EPS), OPS.rms_norm(x, weight, EPS))
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_of_a_wider_row_in_place(dtype: torch.dtype, device: str) -> None:
    rows, weight = (random(*shape, dtype=dtype, device=device) for shape in ((5, 7, 48), (48,)))
    heads, expected = rows[:, 2:5], rows.clone()
    expected[:, 2:5] = OPS.rms_norm(heads, weight, EPS)
    close(norms.rms_norm(heads, weight, EPS), expected[:, 2:5])
    assert norms.rms_norm(heads, weight, EPS, out=heads) is heads
    close(rows, expected)


@pytest.mark.parametrize("columns", [48, 1500])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_rms_norm(dtype: torch.dtype, columns: int, device: str) -> None:
    x = random(3, columns, dtype=dtype, device=device)
    residual = random(3, 2 * columns, dtype=dtype, device=device, spread=9.0)[:, :columns]
    weight = random(columns, dtype=dtype, device=device)
    total = residual.clone()
    expected = OPS.add_rms_norm(x.clone(), total, weight, EPS)
    found = norms.add_rms_norm(x, residual, weight, EPS)
    assert found is x
    assert torch.equal(residual, total)
    close(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_float32_weight_is_multiplied_before_rounding(dtype: torch.dtype, device: str) -> None:
    x, residual = (random(4, 200, dtype=dtype, device=device) for _ in range(2))
    weight = torch.randn(200, device=device) + 1  # that of OffsetRmsNorm
    close(norms.rms_norm(x, weight, EPS), OPS.rms_norm(x.float(), weight, EPS).to(dtype))
    total = residual + x
    expected = OPS.rms_norm(total.float(), weight, EPS).to(dtype)
    close(norms.add_rms_norm(x, residual, weight, EPS), expected)
    assert torch.equal(residual, total)


def test_the_two_roundings_differ(device: str) -> None:
    x = random(4, 2000, dtype=torch.bfloat16, device=device)
    weight = random(2000, dtype=torch.bfloat16, device=device)
    rounded_last = norms.rms_norm(x, weight.float(), EPS)
    assert not torch.equal(norms.rms_norm(x, weight, EPS), rounded_last)


@pytest.mark.parametrize(("has_weight", "has_bias"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer_norm(
    dtype: torch.dtype, shape: tuple[int, ...], has_weight: bool, has_bias: bool, device: str
) -> None:
    x = random(*shape, dtype=dtype, device=device) + 5
    columns = shape[-1:]
    weight = random(*columns, dtype=dtype, device=device) if has_weight else None
    bias = random(*columns, dtype=dtype, device=device) if has_bias else None
    found = norms.layer_norm(x, weight, bias, EPS)
    wide = (None if one is None else one.double() for one in (weight, bias))
    expected = F.layer_norm(x.double(), columns, *wide, EPS).to(dtype)
    # The mean is far from zero, so that its own rounding is seen in float32.
    close(found, expected, atol=4e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_layer_norm(dtype: torch.dtype, device: str) -> None:
    x, residual = (random(3, 100, dtype=dtype, device=device) for _ in range(2))
    weight, bias = (random(100, dtype=dtype, device=device) for _ in range(2))
    total = residual + x
    expected = F.layer_norm(total.double(), (100,), weight.double(), bias.double(), EPS).to(dtype)
    assert norms.add_layer_norm(x, residual, weight, bias, EPS) is x
    close(x, expected, atol=4e-6)
    assert torch.equal(residual, total)


@pytest.mark.parametrize("columns", [130, 192, 257])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_are_longer_than_a_program_holds(
    dtype: torch.dtype, columns: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms, "LONGEST", 64)
    monkeypatch.setattr(norms, "SHORTEST", 64)
    x = random(3, 2, columns, dtype=dtype, device=device)
    weight, bias = (random(columns, dtype=dtype, device=device) for _ in range(2))
    close(norms.rms_norm(x, weight, EPS), OPS.rms_norm(x, weight, EPS))
    close(norms.rms_norm(x[:, 1:], weight, EPS), OPS.rms_norm(x[:, 1:], weight, EPS))
    expected = F.layer_norm(x.double(), (columns,), weight.double(), bias.double(), EPS).to(dtype)
    close(norms.layer_norm(x, weight, bias, EPS), expected, atol=4e-6)
    x, residual = x[:, 0].clone(), x[:, 1].clone()
    for add, fine in (
        (lambda *pair: norms.add_rms_norm(*pair, weight, EPS), OPS.add_rms_norm),
        (lambda *pair: norms.add_layer_norm(*pair, weight, bias, EPS), None),
    ):
        own, total = x.clone(), residual.clone()
        found = add(own, total)
        assert torch.equal(total, residual + x)
        if fine is not None:
            close(found, fine(x.clone(), residual.clone(), weight, EPS))
        else:
            close(found, norms.layer_norm(total, weight, bias, EPS))


def test_a_row_does_not_depend_on_the_others(device: str) -> None:
    x, weight = (random(*shape, dtype=torch.float32, device=device) for shape in ((9, 96), (96,)))
    assert torch.equal(norms.rms_norm(x, weight, EPS)[4:5], norms.rms_norm(x[4:5], weight, EPS))


def test_a_nan_stays_in_its_row(device: str) -> None:
    x, weight = torch.ones(3, 32, device=device), torch.ones(32, device=device)
    x[1, 5] = float("nan")
    found = norms.rms_norm(x, weight, EPS)
    assert found[1].isnan().all()
    assert found[::2].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_and_tiny_numbers(dtype: torch.dtype, device: str) -> None:
    x = random(2, 64, dtype=torch.float32, device=device)
    x[0] *= 1e4
    x[1] *= 1e-6
    x, weight = x.to(dtype), torch.ones(64, dtype=dtype, device=device)
    close(norms.rms_norm(x, weight, EPS), OPS.rms_norm(x, weight, EPS))


def test_no_rows(device: str) -> None:
    x, weight = torch.empty(0, 32, device=device), torch.ones(32, device=device)
    assert norms.rms_norm(x, weight, EPS).shape == (0, 32)
    assert norms.add_rms_norm(x, x.clone(), weight, EPS).shape == (0, 32)
    heads = torch.empty(0, 4, 32, device=device)
    assert norms.layer_norm(heads, weight, None, EPS).shape == (0, 4, 32)
