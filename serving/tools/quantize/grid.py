"""The integer grids that weights are rounded to, and the matrices that lie on them.

Pure functions on tensors, used by `gptq.py` and `awq.py`. Matrices are [in, out] here, as both
formats store them; a group is a run of input channels that share a scale and a zero for each
output: weight = scale * (code - zero).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

SHRINKS = 20  # ranges that a search tries for each group, from the whole one down ...
SMALLEST_SHRINK = 0.5  # ... to this share of it
SMALLEST_SCALE = 2.0**-14  # of normal numbers in float16, in which scales are stored
Loss = Callable[[torch.Tensor], torch.Tensor]  # differences [n, out] to losses [out]


@dataclass(frozen=True)
class GridSpec:
    """What a grid looks like."""

    bits: int
    group_size: int  # input channels of a group; -1: all of them
    symmetric: bool
    lowest_zero: int = 0  # GPTQ stores zero - 1 and cannot say 0

    @property
    def top(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)

    def group_of(self, inputs: int) -> torch.Tensor:
        """Number of the group of each input channel, int32 [in]."""
        size = inputs if self.group_size == -1 else self.group_size
        return torch.arange(inputs, dtype=torch.int32) // size


@dataclass(frozen=True)
class Grid:
    """Scales (float32, but exact in float16) and zeros (whole numbers) [out] of one group."""

    scales: torch.Tensor
    zeros: torch.Tensor
    top: int

    def codes(self, weights: torch.Tensor) -> torch.Tensor:
        """The nearest codes of weights [..., out], as whole float numbers."""
        return (weights / self.scales).round_().add_(self.zeros).clamp_(0, self.top)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """What codes [..., out] stand for."""
        return (codes - self.zeros) * self.scales


@dataclass(frozen=True)
class QuantizedMatrix:
    """A whole matrix on its grids."""

    codes: torch.Tensor  # uint8 [in, out]
    scales: torch.Tensor  # float32 [groups, out], exact in float16
    zeros: torch.Tensor  # int32 [groups, out]
    group_of: torch.Tensor  # int32 [in]
    bits: int

    def dequantized(self) -> torch.Tensor:
        """What every reader of the checkpoint computes with, float32 [in, out]."""
        groups = self.group_of.long()
        return (self.codes - self.zeros[groups]) * self.scales[groups]


def full_grid(weights: torch.Tensor, spec: GridSpec, shrink: float = 1.0) -> Grid:
    """The grid that covers the range of one group of weights [n, out], or a share of it.

    A symmetric grid has its zero in the middle, at 2^(bits - 1): codes reach one step further below
    than above, so the convention (AutoGPTQ's) cuts the largest positive weight by half a step.
    """
    high = weights.amax(0).clamp(min=0) * shrink
    low = weights.amin(0).clamp(max=0) * shrink
    if spec.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    elif spec.lowest_zero:
        low = torch.minimum(low, -high * spec.lowest_zero / (spec.top - spec.lowest_zero))
    scales = ((high - low) / spec.top).clamp(min=SMALLEST_SCALE).half().float()
    if spec.symmetric:
        zeros = torch.full_like(scales, (spec.top + 1) // 2)
    else:
        zeros = (-low / scales).round().clamp(spec.lowest_zero, spec.top)
    return Grid(scales, zeros, spec.top)


def searched_grid(weights: torch.Tensor, spec: GridSpec, loss: Loss) -> Grid:
    """The grid of those over shrunken ranges that loses least, for each output by itself."""
    best = full_grid(weights, spec)
    lowest = loss(best.values(best.codes(weights)) - weights)
    for step in range(1, SHRINKS + 1):
        grid = full_grid(weights, spec, 1 - (1 - SMALLEST_SHRINK) * step / SHRINKS)
        lost = loss(grid.values(grid.codes(weights)) - weights)
        is_better = lost < lowest
        lowest = torch.where(is_better, lost, lowest)
        best = Grid(
            torch.where(is_better, grid.scales, best.scales),
            torch.where(is_better, grid.zeros, best.zeros),
            spec.top,
        )
    return best


def squared(differences: torch.Tensor) -> torch.Tensor:
    """Sum of squares of differences [n, out] for each output."""
    return differences.square().sum(0)


def round_to_nearest(
    weight: torch.Tensor,
    spec: GridSpec,
    choose: Callable[[torch.Tensor, int], Grid] | None = None,
) -> QuantizedMatrix:
    """A float32 matrix [in, out] rounded group by group.

    `choose` gives the grid for the weights of a group and the group's first input channel; without
    it the grid covers their range.
    """
    size = weight.shape[0] if spec.group_size == -1 else spec.group_size
    codes, grids = [], []
    for start in range(0, weight.shape[0], size):
        group = weight[start : start + size]
        grid = choose(group, start) if choose else full_grid(group, spec)
        codes.append(grid.codes(group).to(torch.uint8))
        grids.append(grid)
    return QuantizedMatrix(
        torch.cat(codes),
        *stacked(grids),
        spec.group_of(weight.shape[0]).to(weight.device),
        spec.bits,
    )


def stacked(grids: list[Grid]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros of all groups, [groups, out]."""
    scales = torch.stack([grid.scales for grid in grids])
    return scales, torch.stack([grid.zeros for grid in grids]).int()
