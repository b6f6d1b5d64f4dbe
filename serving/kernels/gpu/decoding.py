"""From the codes of a quantized weight to numbers in the registers of a GPU.

Called inside the kernels of `coded_matmul.py` and `paged_tiles.py`; the formulas are those of
`CodedWeight.dequantize`.
"""

import triton
import triton.language as tl


@triton.jit
def numbers(codes: tl.tensor, values: tl.tensor, BOOK: tl.constexpr) -> tl.tensor:
    """Codes, one a byte, to float32; `BOOK`: a name of `codebooks.py`, or "table"."""
    if BOOK == "int4":
        return codes.to(tl.float32) - 8.0
    elif BOOK == "int8":
        return codes.to(tl.int8, bitcast=True).to(tl.float32)
    elif BOOK == "fp8 e5m2":  # the upper half of a float16
        return (codes.to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(tl.float32)
    elif BOOK == "fp8 e4m3":  # a float16 but for the bias of the exponent: 7, not 15
        bits = codes.to(tl.uint16)
        bits = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        return bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    else:
        return tl.load(values + codes.to(tl.int32))


@triton.jit
def weights(
    codes: tl.tensor,  # this and the next two: at the first output of the program
    scales: tl.tensor,
    offsets: tl.tensor,
    values: tl.tensor,
    exists: tl.tensor,  # [N]: whether the output is one
    first: tl.tensor,  # column
    columns: tl.tensor,
    groups: tl.tensor,
    BOOK: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    RUN: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
) -> tl.tensor:
    """The weights [N, K] of some outputs from column `first` on, float32; zero beyond the edges."""
    n = tl.arange(0, N)[:, None].to(tl.int64)
    packed: tl.constexpr = 8 // BITS
    byte = first // packed + tl.arange(0, K // packed)[None, :]
    inside = exists[:, None] & (byte < columns // packed)
    code = tl.load(codes + n * (columns // packed) + byte, mask=inside, other=0)
    if BITS == 4:
        code = tl.interleave(code & 15, code >> 4)
    run = first + RUN * tl.arange(0, K // RUN)[None, :]
    group = run * 0 if GROUP == 0 else run // GROUP
    inside = exists[:, None] & (run < columns)
    scale = tl.load(scales + n * groups + group, mask=inside, other=0.0)
    weight = tl.reshape(numbers(code, values, BOOK), (N, K // RUN, RUN)) * scale[:, :, None]
    if offsets is not None:
        weight += tl.load(offsets + n * groups + group, mask=inside, other=0.0)[:, :, None]
    return tl.reshape(weight, (N, K))
