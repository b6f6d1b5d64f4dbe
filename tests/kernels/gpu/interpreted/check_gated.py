"""Gated activations against those of plain torch."""

import pytest
import torch

from serving.kernels.gpu.gated import gated
from serving.kernels.torch_ops import ACTIVATIONS, TorchOps

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# The activation may be rounded to a neighbour, and the product after it.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2**-9, torch.bfloat16: 2**-6}
SMALL = 1e-3  # numbers below may be what two numbers around 1 differ by, in any implementation
OPS = TorchOps()

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of numpy


def compare(gate_up: torch.Tensor, activation: str) -> None:
    """With torch, and with an activation in float64: in its tails torch's has errors of its own."""
    found = gated(gate_up, activation)
    gate, up = gate_up.chunk(2, dim=-1)
    exact = ACTIVATIONS[activation](gate.double()).to(gate.dtype) * up
    for expected in (OPS.gated(gate_up, activation), exact):
        tolerance = TOLERANCE[found.dtype]
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=3e-6, equal_nan=True)
        if found.dtype != torch.float32:
            differ = (found != expected) & (expected.abs() > SMALL)
            assert differ.sum() <= 1 + 0.02 * found.numel()


@pytest.mark.parametrize("columns", [1, 20, 1024, 1100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str, dtype: torch.dtype, columns: int, device: str) -> None:
    gate_up = (torch.randn(3, 2 * columns, device=device) * 3).to(dtype)
    before = gate_up.clone()
    compare(gate_up, activation)
    assert torch.equal(gate_up, before)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_numbers_far_from_zero_and_not_finite(
    activation: str, dtype: torch.dtype, device: str
) -> None:
    sizes = torch.tensor([0.0, 1e-7, 1e-3, 4.0, 9.0, 20.0, 88.0, 95.0, 200.0, 6e4, float("inf")])
    gate = torch.cat([sizes, -sizes[:-1], torch.tensor([float("nan")])]).to(device)
    gate_up = torch.cat([gate, torch.ones_like(gate)])[None].to(dtype)
    compare(gate_up, activation)


def test_rows_of_a_wider_matrix(device: str) -> None:
    wide = torch.randn(4, 100, device=device)
    assert torch.equal(gated(wide[:, :60], "silu"), gated(wide[:, :60].contiguous(), "silu"))


def test_other_numbers_of_dimensions(device: str) -> None:
    stacked = torch.randn(2, 3, 40, device=device)
    compare(stacked, "silu")
    compare(stacked[0, 0], "silu")


def test_no_rows(device: str) -> None:
    assert gated(torch.empty(0, 40, device=device), "silu").shape == (0, 20)


def test_an_unknown_activation_is_an_error(device: str) -> None:
    with pytest.raises(Exception, match="no such activation"):
        gated(torch.ones(1, 4, device=device), "swoosh")
