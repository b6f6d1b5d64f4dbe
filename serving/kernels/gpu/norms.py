"""Norms over the last dimension on GPUs, with the residual addition before them in one launch.

Rows of hidden states, or heads inside wider rows, in; rows of the same type out. Statistics are
float32. A row belongs to one program, so its result does not depend on the batch; rows of up to
`LONGEST` numbers are read once and stay in registers. The formulas: `torch_ops.py`,
`layers/norm.py`.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from serving.kernels.gpu.row_checks import need_whole_rows

LONGEST = 16384  # numbers of a row that a program holds
SHORTEST = 1024  # numbers of a program: where rows are shorter, it has several of them
PER_THREAD = 8  # numbers of 16 bits that are one access to memory
MOST_WARPS = 16


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x / rms(x) * weight of x [..., n], whose last dimension is contiguous; `weight` [n].

    Equals `TorchOps.rms_norm`: rounded to the type of x before the product with the weight. A
    float32 weight of a narrower x is that of `OffsetRmsNorm`: rounded after the product. The result
    is new and contiguous, or `out`, which may be x itself.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    _launch(x, None, weight, None, eps, out, centred=False)
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """residual += x in place; the norm of the sum, written into x. Both [..., n].

    Equals `TorchOps.add_rms_norm` (or `OffsetRmsNorm.add`, see `rms_norm`): the norm is that of the
    sum as it was rounded.
    """
    _launch(x, residual, weight, None, eps, x, centred=False)
    return x


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """(x - mean(x)) / deviation(x) * weight + bias of x [..., n]; `weight`, `bias` [n].

    Equals `F.layer_norm`: all in float32, rounded once. The deviation is that of the differences
    from the mean. The result is new and contiguous.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, bias, eps, out, centred=True)
    return out


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """residual += x in place; `layer_norm` of the sum as it was rounded, written into x."""
    _launch(x, residual, weight, bias, eps, x, centred=True)
    return x


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    out: torch.Tensor,
    centred: bool,
) -> None:
    need_whole_rows(x, residual, out, weight, bias)
    columns = x.shape[-1]
    if residual is not None:
        x, residual, out = (one.view(-1, columns) for one in (x, residual, out))
    heads, outs = _by_heads(x), _by_heads(out)
    rows = heads.shape[0] * heads.shape[1]
    if rows == 0:
        return
    size = min(triton.next_power_of_2(columns), LONGEST)
    each = max(1, SHORTEST // size)
    kernel: Any = _norm_kernel if columns <= LONGEST else _long_norm_kernel
    kernel[(triton.cdiv(rows, each),)](
        x, residual, weight, bias, out,
        rows, heads.shape[1], heads.stride(0), heads.stride(1),
        0 if residual is None else residual.stride(0), outs.stride(0), outs.stride(1), eps,
        CENTRED=centred, ROUNDS_FIRST=rounds_first(x, weight, centred),
        COLUMNS=columns, ROWS=each, N=size,
        num_warps=warps(each * size), enable_fp_fusion=False,  # products rounded as by torch
    )  # fmt: skip


def rounds_first(x: torch.Tensor, weight: torch.Tensor | None, centred: bool) -> bool:
    """Whether the norm is rounded before its product with the weight."""
    return not centred and weight is not None and weight.dtype == x.dtype


def warps(numbers: int) -> int:
    """Of a program that has so many numbers."""
    return min(MOST_WARPS, max(1, numbers // (32 * PER_THREAD)))


def _by_heads(x: torch.Tensor) -> torch.Tensor:
    """A view [tokens, heads, n] of [..., n]; raises `RuntimeError` where strides allow none."""
    return x.view(-1, *x.shape[-2:]) if x.dim() > 2 else x.view(-1, 1, x.shape[-1])


@triton.jit(do_not_specialize=["rows", "eps"])
def _norm_kernel(
    x: tl.tensor,  # [tokens, heads, COLUMNS], by strides
    residual: tl.tensor,  # [tokens, COLUMNS]; only with one head
    weight: tl.tensor,  # [COLUMNS]
    bias: tl.tensor,  # [COLUMNS]
    out: tl.tensor,  # as x
    rows: tl.tensor,  # tokens * heads
    heads: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    residual_stride: tl.tensor,
    out_token_stride: tl.tensor,
    out_head_stride: tl.tensor,
    eps: tl.tensor,
    CENTRED: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """ROWS rows, each whole in a tile [ROWS, N]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    token, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    k = tl.arange(0, N)[None, :]
    inside = (row < rows) & (k < COLUMNS)
    at = x + token * token_stride + head * head_stride + k
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        value = _added(value, residual + token * residual_stride + k, inside)
    if CENTRED:
        mean = tl.math.div_rn(tl.sum(value, axis=1, keep_dims=True), 1.0 * COLUMNS)
        value = tl.where(k < COLUMNS, value - mean, 0.0)
    total = tl.sum(value * value, axis=1, keep_dims=True)
    normed = value * tl.rsqrt(tl.math.div_rn(total, 1.0 * COLUMNS) + eps)
    result = _weighted(normed, weight, bias, k, COLUMNS, ROUNDS_FIRST, out.dtype.element_ty)
    at = out + token * out_token_stride + head * out_head_stride + k
    tl.store(at, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "eps"])
def _long_norm_kernel(
    x: tl.tensor,  # all arguments as those of `_norm_kernel`
    residual: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    heads: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    residual_stride: tl.tensor,
    out_token_stride: tl.tensor,
    out_head_stride: tl.tensor,
    eps: tl.tensor,
    CENTRED: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """One row, N numbers at a time: its sum, then its squares, then its norm."""
    token, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    x += token.to(tl.int64) * token_stride + head.to(tl.int64) * head_stride
    out += token.to(tl.int64) * out_token_stride + head.to(tl.int64) * out_head_stride
    source = x
    sums = tl.zeros((N,), dtype=tl.float32)
    if residual is not None:
        source = residual + token.to(tl.int64) * residual_stride
    if residual is not None or CENTRED:
        for first in range(0, COLUMNS, N):
            k = first + tl.arange(0, N)
            value = tl.load(x + k, mask=k < COLUMNS, other=0.0).to(tl.float32)
            if residual is not None:
                value = _added(value, source + k, k < COLUMNS)
            sums += value
        tl.debug_barrier()  # what was stored is read again
    mean = tl.math.div_rn(tl.sum(sums, axis=0), 1.0 * COLUMNS) if CENTRED else 0.0
    squares = tl.zeros((N,), dtype=tl.float32)
    for first in range(0, COLUMNS, N):
        k = first + tl.arange(0, N)
        value = tl.load(source + k, mask=k < COLUMNS, other=mean).to(tl.float32) - mean
        squares += value * value
    scale = tl.rsqrt(tl.math.div_rn(tl.sum(squares, axis=0), 1.0 * COLUMNS) + eps)
    for first in range(0, COLUMNS, N):
        k = first + tl.arange(0, N)
        value = tl.load(source + k, mask=k < COLUMNS, other=0.0).to(tl.float32) - mean
        normed = value * scale
        result = _weighted(normed, weight, bias, k, COLUMNS, ROUNDS_FIRST, out.dtype.element_ty)
        tl.store(out + k, result.to(out.dtype.element_ty), mask=k < COLUMNS)


@triton.jit
def _added(value: tl.tensor, residual: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Adds to the numbers that `residual` points to, in place; the sums, rounded to their type."""
    value += tl.load(residual, mask=inside, other=0.0).to(tl.float32)
    rounded = value.to(residual.dtype.element_ty)
    tl.store(residual, rounded, mask=inside)
    return rounded.to(tl.float32)


@triton.jit
def _weighted(
    normed: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    k: tl.tensor,
    COLUMNS: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    TYPE: tl.constexpr,
) -> tl.tensor:
    """normed * weight + bias in float32, of columns k."""
    if ROUNDS_FIRST:
        normed = normed.to(TYPE).to(tl.float32)
    k = tl.broadcast_to(k, normed.shape)  # loaded in the layout of the numbers: no exchange
    if weight is not None:
        normed *= tl.load(weight + k, mask=k < COLUMNS, other=0.0).to(tl.float32)
    if bias is not None:
        normed += tl.load(bias + k, mask=k < COLUMNS, other=0.0).to(tl.float32)
    return normed
