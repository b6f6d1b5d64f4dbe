"""GPTQ against the paper's own formula, against rounding to nearest, and at its edges."""

import pytest
import torch

from serving.tools.quantize.gptq import BLOCK, NotDefinite, gptq, inverse_factor
from serving.tools.quantize.grid import GridSpec, full_grid, round_to_nearest
from serving.tools.quantize.stages import relative_error

SPEC = GridSpec(bits=4, group_size=32, symmetric=True, lowest_zero=1)


def correlated(inputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [in, 48] and the Hessian of inputs that move together."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(inputs, 48, generator=generator)
    mixing = torch.randn(inputs // 4, inputs, generator=generator)
    texts = torch.randn(4 * inputs, inputs // 4, generator=generator) @ mixing
    texts += 0.3 * torch.randn(4 * inputs, inputs, generator=generator)
    return weight, texts.T @ texts


def error(matrix: torch.Tensor, weight: torch.Tensor, hessian: torch.Tensor) -> float:
    return relative_error(matrix - weight, weight, hessian)


def brain_surgeon(
    weight: torch.Tensor, hessian: torch.Tensor, order: list[int], group: int
) -> torch.Tensor:
    """Codes by equations 2 and 3 of the paper: one channel after the other leaves the inverse."""
    rest = weight.double().clone()
    inverse = torch.linalg.inv(
        hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(len(weight))
    )
    codes = torch.zeros_like(rest)
    for place, channel in enumerate(order):
        if place % group == 0:
            grid = full_grid(rest[order[place : place + group]], SPEC)
        codes[channel] = grid.codes(rest[channel])
        change = (rest[channel] - grid.values(codes[channel])) / inverse[channel, channel]
        rest -= torch.outer(inverse[:, channel], change)
        inverse = inverse - torch.outer(inverse[:, channel], inverse[channel]) / (
            inverse[channel, channel].clone()
        )
        rest[channel] = 0
    return codes


@pytest.mark.parametrize("act_order", [False, True])
def test_codes_are_those_of_the_formula(act_order: bool) -> None:
    weight, hessian = correlated(BLOCK + 64)  # more than one block, the last not whole
    order = hessian.diagonal().argsort(descending=True) if act_order else torch.arange(BLOCK + 64)
    expected = brain_surgeon(weight, hessian, order.tolist(), 32)
    found = gptq(weight.double(), hessian.double(), SPEC, 0.01, act_order)
    assert torch.equal(found.codes.double(), expected)
    single = gptq(weight, hessian, SPEC, 0.01, act_order)
    assert (single.codes != expected).float().mean() < 0.01  # some lie between two codes


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [-1, 32, 64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_beats_rounding_to_nearest(bits: int, group_size: int, symmetric: bool) -> None:
    weight, hessian = correlated(192)
    spec = GridSpec(bits, group_size, symmetric, lowest_zero=1)
    nearest = error(round_to_nearest(weight, spec).dequantized(), weight, hessian)
    found = error(gptq(weight, hessian, spec).dequantized(), weight, hessian)
    assert found < 0.5 * nearest


@pytest.mark.parametrize("symmetric", [True, False])
def test_independent_inputs_are_rounded_to_nearest(symmetric: bool) -> None:
    weight, _ = correlated(160)
    spec = GridSpec(4, 32, symmetric, lowest_zero=1)
    found, nearest = gptq(weight, torch.eye(160), spec), round_to_nearest(weight, spec)
    assert torch.equal(found.codes, nearest.codes)
    assert torch.equal(found.scales, nearest.scales)
    assert torch.equal(found.zeros, nearest.zeros)
    assert torch.equal(found.group_of, nearest.group_of)


def test_act_order_groups_the_largest_channels() -> None:
    weight, hessian = correlated(128)
    spread = torch.linspace(0.1, 3, 128)[torch.randperm(128)]
    hessian = hessian * spread * spread[:, None]
    ordered = gptq(weight, hessian, SPEC, act_order=True)
    first = (ordered.group_of == 0).nonzero().flatten()
    assert set(first.tolist()) == set(hessian.diagonal().topk(32).indices.tolist())
    assert ordered.group_of.bincount().tolist() == [32] * 4
    plain = gptq(weight, hessian, SPEC)
    assert error(ordered.dequantized(), weight, hessian) < error(
        plain.dequantized(), weight, hessian
    )


def test_a_searched_range_is_better_for_two_bits() -> None:
    weight, hessian = correlated(128)
    spec = GridSpec(2, 128, False, lowest_zero=1)
    plain = error(gptq(weight, hessian, spec).dequantized(), weight, hessian)
    searched = error(gptq(weight, hessian, spec, search=True).dequantized(), weight, hessian)
    assert searched < plain


def test_channels_that_no_input_uses_keep_their_weights() -> None:
    weight, hessian = correlated(64)
    hessian[5] = hessian[:, 5] = 0
    found = gptq(weight, hessian, GridSpec(8, 32, False, 1)).dequantized()
    assert (found[5] - weight[5]).abs().max() < 0.05
    nothing = gptq(weight, torch.zeros(64, 64), SPEC)
    assert torch.equal(nothing.codes, round_to_nearest(weight, SPEC).codes)


def test_fewer_tokens_than_channels_are_enough() -> None:
    weight = torch.randn(256, 32)
    texts = torch.randn(8, 256)
    hessian = texts.T @ texts
    found = error(gptq(weight, hessian, SPEC).dequantized(), weight, hessian)
    nearest = error(round_to_nearest(weight, SPEC).dequantized(), weight, hessian)
    assert found < 0.1 * nearest


def test_a_hessian_without_an_inverse_is_refused() -> None:
    with pytest.raises(NotDefinite):
        inverse_factor(torch.full((4, 4), float("nan")), torch.arange(4), 0.01)
    with pytest.raises(NotDefinite):
        inverse_factor(-torch.eye(4), torch.arange(4), 0.01)
