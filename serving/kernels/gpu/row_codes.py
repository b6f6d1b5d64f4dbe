"""Activations to 8 bits on a GPU, each row by its own largest number.

Used by `int8_matmul.py` and `scaled_fp8.py`, whose products are of 8-bit numbers on both sides.
"""

import torch
import triton
import triton.language as tl

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # what the largest of a row becomes
LONGEST = 8192  # numbers that a program reads at a time


def quantize_rows(
    x: torch.Tensor, dtype: torch.dtype, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, contiguous [tokens, columns], as a product of codes [rows, columns] and scales [rows, 1].

    `dtype`: that of the codes; scales are float32. Rows beyond those of x are zero. Rounded half to
    even.
    """
    columns = x.shape[1]
    codes = torch.empty(rows, columns, dtype=dtype, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    _quantize_kernel[(rows,)](
        x, codes, scales, len(x), columns,
        LARGEST=LARGEST[dtype], ROUNDS=not dtype.is_floating_point,
        K=min(triton.next_power_of_2(columns), LONGEST),
        num_warps=8, enable_fp_fusion=False,  # the same bits as torch
    )  # fmt: skip
    return codes, scales


@triton.jit(do_not_specialize=["rows"])
def _quantize_kernel(
    x: tl.tensor,  # [rows, columns]
    codes: tl.tensor,  # [programs, columns]
    scales: tl.tensor,  # [programs]
    rows: tl.tensor,
    columns: tl.tensor,
    LARGEST: tl.constexpr,
    ROUNDS: tl.constexpr,
    K: tl.constexpr,
) -> None:
    """One row: its largest number first, then its codes."""
    row = tl.program_id(0).to(tl.int64)
    x += row * columns
    codes += row * columns
    length = tl.where(row < rows, columns, 0)
    largest = tl.zeros((K,), dtype=tl.float32)
    for first in range(0, columns, K):
        k = first + tl.arange(0, K)
        part = tl.load(x + k, mask=k < length, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(part), propagate_nan=tl.PropagateNan.ALL)
    scale = tl.math.div_rn(tl.max(largest, axis=0), LARGEST)
    scale += 0.0 * tl.sum(largest, axis=0)  # a maximum passes over NaN; no result should
    scale = tl.where(scale == 0.0, 1.0, scale)
    tl.store(scales + row, scale)
    for first in range(0, columns, K):
        k = first + tl.arange(0, K)
        part = tl.load(x + k, mask=k < length, other=0.0).to(tl.float32)
        code = tl.math.div_rn(part, scale)
        code = tl.minimum(tl.maximum(code, -LARGEST), LARGEST)
        if ROUNDS:  # float32 has no bits for fractions of numbers around 1.5 * 2 ** 23
            code = (code + 12582912.0) - 12582912.0
        tl.store(codes + k, code.to(codes.dtype.element_ty), mask=k < columns)
