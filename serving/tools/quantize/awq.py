"""AWQ: scales that spare the input channels with large activations, and ranges worth their codes.

Pure functions on tensors. Comes in: matrices [in, out] and what their inputs look like. Goes out:
scales, or a matrix on its grids. Source: Lin et al., AWQ, arXiv:2306.00978, sections 3.2 and 4;
losses are measured at the linear layers' outputs, by the Hessian of their inputs, instead of behind
the whole block. Next: `awq_scheme.py` folds the scales into the model.
"""

from collections.abc import Callable, Sequence

import torch

from serving.tools.quantize.grid import (
    Grid,
    GridSpec,
    QuantizedMatrix,
    full_grid,
    round_to_nearest,
    searched_grid,
)

RATIOS = 20  # exponents that are tried, 0 (no scales) to 0.95
SMALLEST_MAGNITUDE = 1e-4
SAMPLED_OUTPUTS = 512  # of each matrix: enough to choose one exponent, and many times faster


def search_scales(
    weights: Sequence[torch.Tensor],
    hessian: torch.Tensor,
    magnitude: torch.Tensor,
    spec: GridSpec,
) -> torch.Tensor:
    """Scales [in] of input channels that lose least when weight * scale is rounded.

    `weights`: float32 [in, out], matrices with the same input. `hessian`: sum of x x^T [in, in].
    `magnitude`: mean |x| [in]; the scales are a power of it. All ones if no scales are better.
    """
    best = torch.ones_like(magnitude)
    lowest = float("inf")
    sampled = [weight[:, :: -(-weight.shape[1] // SAMPLED_OUTPUTS)] for weight in weights]
    for step in range(RATIOS):
        scales = magnitude.clamp(min=SMALLEST_MAGNITUDE).pow(step / RATIOS)
        scales = scales / (scales.max() * scales.min()).sqrt()
        lost = sum(_lost(weight, scales, hessian, spec) for weight in sampled)
        if lost < lowest:
            best, lowest = scales, lost
    return best


def round_clipped(
    weight: torch.Tensor, hessian: torch.Tensor, spec: GridSpec, clip: bool = True
) -> QuantizedMatrix:
    """Round a matrix [in, out]; with `clip`, over the range of each group that loses least.

    The loss of a group is that of its own inputs, as if all others were exact.
    """

    def choose(group: torch.Tensor, start: int) -> Grid:
        if not clip:
            return full_grid(group, spec)
        channels = slice(start, start + len(group))
        return searched_grid(group, spec, _outputs_lost(hessian[channels, channels]))

    return round_to_nearest(weight, spec, choose)


def _lost(
    weight: torch.Tensor, scales: torch.Tensor, hessian: torch.Tensor, spec: GridSpec
) -> float:
    """|X (rounded(weight * scales) / scales - weight)|^2."""
    columns = scales[:, None]
    change = round_to_nearest(weight * columns, spec).dequantized() / columns - weight
    return float(_outputs_lost(hessian)(change).sum())


def _outputs_lost(hessian: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """|X change|^2 of each output, for changes [in, out]."""
    return lambda change: ((hessian @ change) * change).sum(0)
