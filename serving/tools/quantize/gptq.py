"""GPTQ: rounds a matrix column by column and lets later columns make up for each error.

Pure functions on tensors. Comes in: a matrix and the Hessian of its inputs. Goes out: the matrix on
its grids. Source: Frantar et al., GPTQ, arXiv:2210.17323, algorithm 1; where the paper says column
of W [out, in], here it is a row of the transposed matrix. Next: `packing.py`.
"""

import torch

from serving.tools.quantize.grid import (
    Grid,
    GridSpec,
    QuantizedMatrix,
    full_grid,
    searched_grid,
    squared,
    stacked,
)

BLOCK = 128  # input channels whose errors are passed on to the rest in one product
DAMPING_ATTEMPTS = 4  # each with ten times the damping of the one before


class NotDefinite(ValueError):
    """The Hessian cannot be inverted, whatever the damping."""


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    spec: GridSpec,
    damping: float = 0.01,
    act_order: bool = False,
    search: bool = False,
) -> QuantizedMatrix:
    """Round a float32 matrix [in, out] so that its outputs on the calibration inputs stay.

    `hessian`: sum of x x^T over the inputs, float32 [in, in], in any scale. `damping`: share of its
    mean diagonal that is added to the diagonal. `act_order`: the channels with the largest inputs
    first. `search`: look for the range of each group that has the least squared error.
    Raises `NotDefinite`.
    """
    inputs = weight.shape[0]
    order = torch.arange(inputs, device=weight.device)
    if act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    factor = inverse_factor(hessian, order, damping)
    rest = weight[order]  # what is not rounded yet, with all errors so far made up for
    codes = torch.empty_like(rest, dtype=torch.uint8)
    grids: list[Grid] = []
    for start in range(0, inputs, BLOCK):
        block = slice(start, start + BLOCK)
        errors = _round_block(rest, codes, factor, start, spec, grids, search)
        rest[start + BLOCK :] -= factor[block, start + BLOCK :].T @ errors
    back = order.argsort()
    group_of = spec.group_of(inputs).to(weight.device)
    return QuantizedMatrix(codes[back], *stacked(grids), group_of[back], spec.bits)


def _round_block(
    rest: torch.Tensor,
    codes: torch.Tensor,
    factor: torch.Tensor,
    start: int,
    spec: GridSpec,
    grids: list[Grid],
    search: bool,
) -> torch.Tensor:
    """Round input channels [start, start + BLOCK) in turn; returns their errors [block, out].

    Fills `codes` and, at the first channel of each group, `grids`.
    """
    stop = min(start + BLOCK, len(rest))
    size = len(rest) if spec.group_size == -1 else spec.group_size
    errors = torch.empty_like(rest[start:stop])
    for channel in range(start, stop):
        if channel % size == 0:
            group = rest[channel : channel + size]
            grids.append(searched_grid(group, spec, squared) if search else full_grid(group, spec))
        grid, row = grids[-1], rest[channel]
        code = grid.codes(row)
        codes[channel] = code.to(torch.uint8)
        error = (row - grid.values(code)) / factor[channel, channel]
        rest[channel + 1 : stop] -= torch.outer(factor[channel, channel + 1 : stop], error)
        errors[channel - start] = error
    return errors


def inverse_factor(hessian: torch.Tensor, order: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of the damped Hessian in an order, [in, in].

    A channel that no input ever used is set apart: it is rounded to nearest and corrects nothing.
    At most three matrices beside the Hessian are in memory. Raises `NotDefinite`.
    """
    share = damping
    for _ in range(DAMPING_ATTEMPTS):
        work = hessian[order[:, None], order]
        diagonal = work.diagonal()
        diagonal[diagonal == 0] = 1
        diagonal += share * diagonal.mean()
        factor, failed = torch.linalg.cholesky_ex(work)
        if not failed:
            torch.cholesky_inverse(factor, out=work)
            torch.linalg.cholesky_ex(work, out=(factor, failed))
            if not failed:
                upper: torch.Tensor = factor.T
                return upper
        share *= 10
    raise NotDefinite("the products of its inputs have no inverse")
