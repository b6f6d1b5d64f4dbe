"""Small random products that prove a multiplication with quantized weights before it is used.

Called by `matmul_choice.py` and `expert_choice.py`: a product must come out as the plain form of
the weights gives it, in every way that a kernel has to cut its rows.
"""

from typing import Protocol

import torch
import torch.nn.functional as F

from serving.kernels.coded_matmul import round_trip_int8
from serving.kernels.coded_weight import CodedWeight
from serving.kernels.first_line import first_line
from serving.kernels.matmul import Matmul

NARROW = (torch.bfloat16, torch.float16)
# Of a proof: outputs, most inputs of a group, and numbers of rows, one for each way that a kernel
# has to cut them.
PROOF_OUTPUTS, PROOF_GROUP, PROOF_ROWS = 64, 256, (1, 2, 3, 24, 70, 130)
# Largest error that is rounding, as a share of the largest result. Narrow types leave room for
# activations that are quantized to 8-bit floats; a wrong layout is off by more than half.
TOLERANCE, NARROW_TOLERANCE = 1e-3, 5e-2


class CodedMatmulClass(Protocol):
    """A way to multiply with quantized weights."""

    def reason_not(
        self, weight: CodedWeight, dtype: torch.dtype, device: torch.device
    ) -> str | None:
        """Why it cannot, or None."""

    def __call__(
        self, weight: CodedWeight, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> Matmul:
        """The multiplication with one weight."""


def fault_of(
    matmul: CodedMatmulClass, like: CodedWeight, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why a multiplication of this kind comes out wrong, or None: a small product proves it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weight = sample(like).to(device)
        bias = torch.randn(weight.outputs).to(device, dtype)
        rows = [torch.randn(count, weight.inputs).to(device, dtype) for count in PROOF_ROWS]
    try:
        product = matmul(weight, bias, dtype)
        for x in rows:
            fault = difference(product(x), expected_product(x, weight) + bias.float())
            if fault is not None:
                return f"its result for {len(x)} rows {fault}"
    except Exception as error:  # whatever a library raises where it cannot
        return first_line(error)
    return None


def expected_product(x: torch.Tensor, weight: CodedWeight) -> torch.Tensor:
    """float32 [tokens, out] with the plain form."""
    if weight.quantizes_activations:
        x = round_trip_int8(x.float())
    return F.linear(x.float(), weight.dequantize())


def difference(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    """By how much a result, of the type of the activations, is off, if that is not rounding."""
    error = float((found.float() - expected).abs().max() / expected.abs().max())
    if error < (NARROW_TOLERANCE if found.dtype in NARROW else TOLERANCE):
        return None
    return f"is off by {error:.1e}"


def sample(like: CodedWeight) -> CodedWeight:
    """A small random weight of the same kind."""
    groups = 1 if like.is_per_output else 2
    group = min(like.group_size, PROOF_GROUP) if like.is_per_output else like.group_size
    columns, book = groups * group, like.book
    codes = torch.randint(0, 256, (PROOF_OUTPUTS, columns * book.bits // 8), dtype=torch.uint8)
    if book.bits == 8:
        codes = torch.where(book.numbers(codes).isfinite(), codes, 0)
    spread = 1 / max(abs(value) for value in book.values if value - value == 0)
    scales = (torch.rand(PROOF_OUTPUTS, groups) + 0.5) * spread
    offsets = None if like.offsets is None else torch.randn(PROOF_OUTPUTS, groups) * 0.1
    order = None if like.order is None else torch.randperm(columns)
    return CodedWeight(
        like.name, book, codes, scales, offsets, columns, order, like.quantizes_activations
    )


def kind_of(weight: CodedWeight) -> tuple[object, ...]:
    """What decides which ways come out right, of those that can run."""
    group = None if weight.is_per_output else weight.group_size
    return (
        weight.book.name, group, weight.offsets is None, weight.order is None,
        weight.quantizes_activations,
    )  # fmt: skip


def described(weight: CodedWeight) -> str:
    """The kind in words, for the log."""
    parts = [weight.book.name]
    parts.append("per output" if weight.is_per_output else f"groups of {weight.group_size}")
    parts += ["offsets"] if weight.offsets is not None else []
    parts += ["reordered inputs"] if weight.order is not None else []
    parts += ["8-bit activations"] if weight.quantizes_activations else []
    return ", ".join(parts)
