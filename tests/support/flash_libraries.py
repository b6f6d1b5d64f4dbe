"""Attention libraries that are not here: their signatures and checks, with plain sums behind them.

Source: flash-attn 2.8.3 (`flash_attn_interface.py`, `mha_varlen_fwd` of `flash_api.cpp`), its
`hopper/flash_attn_interface.py`, and `torch/nn/attention/varlen.py` of torch 2.11.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: torch.Tensor | None = None,
) -> torch.Tensor:
    """flash-attn's."""
    assert dropout_p == 0.0
    assert block_table is None
    assert not return_attn_probs
    if alibi_slopes is not None:
        assert alibi_slopes.dtype == torch.float32
        assert alibi_slopes.shape == (q.shape[1],)
    left, right = window_size
    return _attention(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale,
        (left, 0 if causal else right), softcap, alibi_slopes,
    )  # fmt: skip


def flash_attn_3_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_q: torch.Tensor | None = None,
    seqused_k: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: torch.Tensor | None = None,
    q_descale: torch.Tensor | None = None,
    k_descale: torch.Tensor | None = None,
    v_descale: torch.Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> torch.Tensor:
    """flash-attn's for Hopper."""
    assert (seqused_q, seqused_k, qv, q_descale, k_descale, v_descale) == (None,) * 6
    assert (attention_chunk, num_splits, return_attn_probs) == (0, 1, False)
    left, right = window_size
    return _attention(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale,
        (left, 0 if causal else right), softcap, None,
    )  # fmt: skip


def varlen_attn_of_2_11(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """Torch's, of a version that is not installed."""
    assert return_aux is None
    return _attention(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size, 0.0, None
    )


@contextmanager
def flash_kernels_on_cpu() -> Iterator[list[str]]:
    """The kernels behind the installed `torch.nn.attention.varlen`; yields which were called."""
    called: list[str] = []
    library = torch.library.Library("aten", "IMPL", "CPU")

    def forward(*args: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        called.append("forward")
        empty = torch.empty(0)
        return _aten(*args, **options), empty, empty, empty, empty

    def inplace(out: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        called.append("inplace")
        assert out.stride(-1) == 1
        out.copy_(_aten(*args, **options))
        return torch.empty(0)

    library.impl("_flash_attention_forward", forward)
    if hasattr(torch.ops.aten, "_flash_attention_forward_no_dropout_inplace"):
        library.impl("_flash_attention_forward_no_dropout_inplace", inplace)
    try:
        yield called
    finally:
        library._destroy()


def _aten(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    num_splits: int | None = None,
) -> torch.Tensor:
    assert dropout_p == 0.0
    assert (return_debug_mask, seqused_k, alibi_slopes, block_table, num_splits) == (
        False, None, None, None, None,
    )  # fmt: skip
    left = -1 if window_size_left is None else window_size_left
    right = -1 if window_size_right is None else window_size_right
    return _attention(
        query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, scale,
        (left, 0 if is_causal else right), 0.0, None,
    )  # fmt: skip


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts_q: torch.Tensor,
    starts_k: torch.Tensor,
    longest_q: int,
    longest_k: int,
    scale: float | None,
    window: tuple[int, int],  # positions seen before and behind; negative: all
    cap: float,
    slopes: torch.Tensor | None,
) -> torch.Tensor:
    """In float64."""
    tokens, heads, dim = query.shape
    assert query.dtype in (torch.float16, torch.bfloat16)
    assert key.dtype == value.dtype == query.dtype
    assert dim % 8 == 0
    assert dim <= 256
    assert key.shape == value.shape
    assert heads % key.shape[1] == 0
    for starts, longest, rows in ((starts_q, longest_q, query), (starts_k, longest_k, key)):
        assert starts.dtype == torch.int32
        assert starts.is_contiguous()
        assert rows.stride(-1) == 1
        assert isinstance(longest, int)
        assert starts.diff().max() <= longest  # or rows beyond it stay as they were
        assert starts[-1] == len(rows)
    scale = dim**-0.5 if scale is None else scale
    out = torch.empty(tokens, heads, dim, dtype=query.dtype)
    group = heads // key.shape[1]
    for first, end in pairwise(starts_q.tolist()):
        keys, values = (
            rows[first:end].double().repeat_interleave(group, 1) for rows in (key, value)
        )
        scores = torch.einsum("qhd,khd->hqk", query[first:end].double(), keys) * scale
        if cap:
            scores = cap * torch.tanh(scores / cap)
        places = torch.arange(end - first)
        behind = places[:, None] - places[None, :]  # of the key, seen from the query
        if slopes is not None:
            scores = scores - slopes.double()[:, None, None] * behind.abs()
        left, right = (end if side < 0 else side for side in window)
        hidden = (behind > left) | (behind < -right)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[first:end] = torch.einsum("hqk,khd->qhd", weights, values).to(query.dtype)
    return out
