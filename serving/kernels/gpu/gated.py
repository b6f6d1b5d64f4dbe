"""Gated activations of a feed-forward layer on GPUs: the halves of a row to their product.

Rows of gate and up in; activation(gate) * up out, for the projection that follows. The activations
are those of `torch_ops.py`, computed in float32.
"""

import torch
import triton
import triton.language as tl

from serving.kernels.gpu.row_checks import need_whole_rows

NUMBERS = 1024  # of the result that a program makes: 8 for each thread


def gated(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """[tokens, 2 n] of gate and up to [tokens, n]: activation(gate) * up.

    Equals `TorchOps.gated`: the activation is rounded to the type of the numbers, then the product;
    it may differ in the last bit of float32. `activation`: a key of `ACTIVATIONS`. The last
    dimension is contiguous.
    """
    need_whole_rows(gate_up)
    rows = gate_up.view(-1, gate_up.shape[-1]) if gate_up.dim() != 2 else gate_up
    tokens, columns = len(rows), rows.shape[1] // 2
    out = torch.empty(*gate_up.shape[:-1], columns, dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        _gated_kernel[(tokens, triton.cdiv(columns, NUMBERS))](
            rows, out, rows.stride(0), columns,
            ACTIVATION=activation, N=NUMBERS, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return out


@triton.jit
def _gated_kernel(
    gate_up: tl.tensor,  # [tokens, 2 * columns], by its stride
    out: tl.tensor,  # [tokens, columns]
    stride: tl.tensor,
    columns: tl.tensor,
    ACTIVATION: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """N numbers of one row."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * N + tl.arange(0, N)
    gate_up += row * stride
    gate = tl.load(gate_up + k, mask=k < columns, other=0.0).to(tl.float32)
    up = tl.load(gate_up + columns + k, mask=k < columns, other=0.0).to(tl.float32)
    active = _activated(gate, ACTIVATION).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * columns + k, (active * up).to(out.dtype.element_ty), mask=k < columns)


@triton.jit
def _activated(x: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """Of float32 numbers; NaN stays NaN."""
    if ACTIVATION == "silu":
        return x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":  # (1 + tanh(y)) / 2 is the logistic function of 2 y
        y = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return x / (1.0 + tl.exp(-2.0 * y))
    elif ACTIVATION == "relu":
        return tl.where(x < 0.0, 0.0, x)
    else:
        tl.static_assert(ACTIVATION == "relu2", "no such activation")
        return tl.where(x < 0.0, 0.0, x * x)
