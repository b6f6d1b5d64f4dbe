"""Grids cover the weights, keep their promises on zeros, and are exact in float16."""

import pytest
import torch

from serving.tools.quantize.grid import (
    GridSpec,
    full_grid,
    round_to_nearest,
    searched_grid,
    squared,
)

WEIGHTS = torch.randn(32, 200, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("lowest_zero", [0, 1])
def test_asymmetric_grids_reach_every_weight(bits: int, lowest_zero: int) -> None:
    grid = full_grid(WEIGHTS, GridSpec(bits, 32, False, lowest_zero))
    distance = (grid.values(grid.codes(WEIGHTS)) - WEIGHTS).abs()
    # Half a step, half a step more where the zero is rounded at an end, and the scale's rounding.
    assert (distance <= 1.01 * grid.scales).all()
    assert distance.mean() < 0.3 * grid.scales.mean()


@pytest.mark.parametrize("sign", [1, -1])
def test_weights_of_one_sign(sign: int) -> None:
    spec = GridSpec(4, 32, False, lowest_zero=1)
    weights = sign * WEIGHTS.abs()
    grid = full_grid(weights, spec)
    assert ((grid.zeros >= 1) & (grid.zeros <= 15)).all()
    assert ((grid.values(grid.codes(weights)) - weights).abs() <= 0.51 * grid.scales + 1e-3).all()


def test_symmetric_zeros_are_in_the_middle() -> None:
    grid = full_grid(WEIGHTS, GridSpec(4, 32, True, 1))
    assert grid.zeros.unique().tolist() == [8]
    largest = WEIGHTS.abs().amax(0)
    torch.testing.assert_close(grid.scales, largest / 7.5, rtol=1e-3, atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("weights", [torch.zeros(32, 4), torch.full((32, 4), 1e-9)])
def test_nothing_becomes_nothing(weights: torch.Tensor, symmetric: bool) -> None:
    matrix = round_to_nearest(weights, GridSpec(4, 32, symmetric, 1))
    assert matrix.dequantized().abs().max() == 0


def test_scales_are_exact_in_float16() -> None:
    scales = round_to_nearest(WEIGHTS, GridSpec(4, 32, False)).scales
    assert torch.equal(scales, scales.half().float())


def test_a_search_never_loses() -> None:
    spec = GridSpec(3, 32, False)
    full, best = full_grid(WEIGHTS, spec), searched_grid(WEIGHTS, spec, squared)
    before = squared(full.values(full.codes(WEIGHTS)) - WEIGHTS)
    after = squared(best.values(best.codes(WEIGHTS)) - WEIGHTS)
    assert (after <= before).all()
    assert after.sum() < 0.95 * before.sum()


def test_a_group_size_of_minus_one_is_one_group() -> None:
    matrix = round_to_nearest(WEIGHTS, GridSpec(4, -1, True))
    assert matrix.scales.shape == (1, 200)
    assert matrix.group_of.tolist() == [0] * 32
