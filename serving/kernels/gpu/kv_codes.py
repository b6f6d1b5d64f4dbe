"""Numbers to the codes of a KV cache, in registers of a GPU: `KvFormat.encode`, bit for bit.

Called inside the kernel of `rotary.py`. 8-bit floats are made by integer arithmetic, so that every
GPU makes the same codes, whether or not it has instructions for them.
"""

import torch
import triton
import triton.language as tl

NAMES = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2", torch.int8: "int8"}
TINY = tl.constexpr(2.0**-126)  # the smallest normal float32, which no scale is below
INFINITY = tl.constexpr(0x7F800000)  # bits of float32 above which there is only NaN
SHIFT = tl.constexpr(12582912.0)  # 1.5 * 2 ** 23: float32 has no bits for fractions around it


@triton.jit
def encoded(
    numbers: tl.tensor, scales: tl.tensor, FORMAT: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """(codes, what is read from them), the latter float32, of float32 numbers.

    `scales`: of the numbers, float32 in a shape that fits; `FORMAT`: one of `NAMES`. Codes of 8-bit
    floats are uint32 below 256, of "int8" float32.
    """
    divisor = tl.where(scales < TINY, TINY, scales)
    numbers = tl.math.div_rn(numbers, divisor)
    if FORMAT == "e4m3":
        codes, rounded = _small_floats(_limited(numbers, 448.0), 3, 7)
    elif FORMAT == "e5m2":
        codes, rounded = _small_floats(_limited(numbers, 57344.0), 2, 15)
    else:
        rounded = (_limited(numbers, 127.0) + SHIFT) - SHIFT
        rounded = tl.where(_is_nan(rounded), 0.0, rounded)  # no integer is NaN
        codes = rounded
    return codes, rounded * scales


@triton.jit
def own_scales(numbers: tl.tensor) -> tl.tensor:
    """Scales [vectors, 1] of "int8" for the vectors [vectors, dim]; NaN where a number is."""
    largest = tl.max(tl.abs(numbers), axis=1, keep_dims=True)
    has_nan = tl.max(_is_nan(numbers).to(tl.int32), axis=1, keep_dims=True) > 0
    return tl.math.div_rn(tl.where(has_nan, float("nan"), largest), 127.0)


@triton.jit
def _is_nan(numbers: tl.tensor) -> tl.tensor:
    return numbers != numbers  # noqa: PLR0124


@triton.jit
def _limited(numbers: tl.tensor, LIMIT: tl.constexpr) -> tl.tensor:
    """Within the limit on both sides; NaN stays, as in torch."""
    numbers = tl.where(numbers > LIMIT, LIMIT, numbers)
    return tl.where(numbers < -LIMIT, -LIMIT, numbers)


@triton.jit
def _small_floats(
    numbers: tl.tensor, MANTISSA: tl.constexpr, BIAS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """(codes, their numbers) of the nearest floats of 8 bits, half to even; `BIAS`: of exponents.

    The numbers are within the range of those floats, or NaN.
    """
    DROPPED: tl.constexpr = 23 - MANTISSA
    bits = numbers.to(tl.uint32, bitcast=True)
    sign, size = bits & 0x80000000, bits & 0x7FFFFFFF
    kept = (size + ((1 << (DROPPED - 1)) - 1) + ((size >> DROPPED) & 1)) >> DROPPED
    # Below the normal ones, steps have one size: that of the last bit of numbers above the anchor.
    ANCHOR: tl.constexpr = 2.0 ** (24 - BIAS - MANTISSA)
    ANCHOR_BITS: tl.constexpr = (127 + 24 - BIAS - MANTISSA) << 23
    steps = size.to(tl.float32, bitcast=True) + ANCHOR
    is_normal = size >= ((128 - BIAS) << 23)
    codes = tl.where(
        is_normal,
        kept - ((127 - BIAS) << MANTISSA),
        steps.to(tl.uint32, bitcast=True) - ANCHOR_BITS,
    )
    codes = tl.where(size > INFINITY, 0x7F, codes) | (sign >> 24)
    rounded = tl.where(is_normal, kept << DROPPED, (steps - ANCHOR).to(tl.uint32, bitcast=True))
    rounded = tl.where(size > INFINITY, bits, rounded | sign)
    return codes, rounded.to(tl.float32, bitcast=True)
