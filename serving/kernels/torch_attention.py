"""Paged attention in plain torch, on any device: gather, mask, scaled dot product.

Called by `torch_ops.py` and `layers/latent_attention.py`. Keys and values may have different head
sizes; how they are stored is the business of `kv_format.py`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from serving.kernels.attention_batch import AttentionBatch, PrefillChunk
from serving.kernels.kv_format import CachedVectors, KvLayer, LatentKv


@dataclass(frozen=True)
class ScoreRule:
    """How the scores of queries and keys are made."""

    scale: float
    window: int = 0  # how many last positions are seen; 0 sees all
    soft_cap: float = 0.0  # scores become cap * tanh(score / cap); 0 is off
    slopes: torch.Tensor | None = None  # float32 [heads] of linear biases: slope * (key - query)


def write(rows: torch.Tensor, cache: CachedVectors, batch: AttentionBatch) -> None:
    """Put [tokens, kv_heads, dim] into the step's slots; they become what is read from there."""
    cache.store(rows[: batch.num_tokens], batch.slots[: batch.num_tokens])


def attend_chunk(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kv: KvLayer | LatentKv,
    batch: AttentionBatch,
    chunk: PrefillChunk,
    rule: ScoreRule,
) -> torch.Tensor:
    """A prompt chunk over its sequence: the flat [tokens, heads, dim] in, its own rows out.

    `key` and `value` are as `write()` left them.
    """
    own = slice(chunk.start, chunk.stop)
    if chunk.cached_len:
        keys, values = (
            one.transpose(0, 1).flatten(1, 2)[:, : chunk.context_len]
            for one in kv.load(chunk.blocks, query.dtype)
        )
    else:
        keys, values = key[own].transpose(0, 1), value[own].transpose(0, 1)
    mask = _chunk_mask(batch, chunk, rule, query.dtype)
    queries = query[own].transpose(0, 1)
    if rule.soft_cap:
        group = queries.shape[0] // keys.shape[0]
        keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
        return _capped(queries, keys, values, mask, rule).transpose(0, 1)
    result = F.scaled_dot_product_attention(
        queries[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=rule.scale,
        enable_gqa=queries.shape[0] != keys.shape[0],
    )
    return result[0].transpose(0, 1)


def attend_decodes(
    query: torch.Tensor,
    kv: KvLayer | LatentKv,
    batch: AttentionBatch,
    rule: ScoreRule,
) -> torch.Tensor:
    """One query per sequence: [n, heads, dim]. Heads of one KV head share one matmul."""
    rows, heads, dim = query.shape
    keys, values = (
        one.transpose(1, 2).flatten(2, 3) for one in kv.load(batch.block_tables.long(), query.dtype)
    )
    kv_heads = keys.shape[1]
    grouped = query.reshape(rows, kv_heads, heads // kv_heads, dim)
    mask = _decode_mask(batch, keys.shape[2], kv_heads, rule, query.dtype)
    if rule.soft_cap:
        result = _capped(grouped, keys, values, mask, rule)
    else:
        result = F.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=mask, scale=rule.scale
        )
    return result.reshape(rows, heads, -1)


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    rule: ScoreRule,
) -> torch.Tensor:
    """Attention over [..., queries, dim] with a soft cap on the scores, in float32."""
    scores = (query @ key.transpose(-1, -2)).float() * rule.scale
    scores = torch.tanh(scores / rule.soft_cap) * rule.soft_cap
    if mask is None:
        length = query.shape[-2]
        seen = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
        mask = _additive(seen, torch.float32)
    return (scores + mask).softmax(-1).to(value.dtype) @ value


def _chunk_mask(
    batch: AttentionBatch, chunk: PrefillChunk, rule: ScoreRule, dtype: torch.dtype
) -> torch.Tensor | None:
    """Additive mask [queries, context] or [heads, queries, context]; None: plain causal."""
    beyond = rule.window and chunk.context_len > rule.window
    if not chunk.cached_len and not beyond and rule.slopes is None:
        return None
    memo_key = (chunk.start, rule.window)
    if memo_key not in batch.memo:
        device = batch.positions.device
        own = torch.arange(chunk.cached_len, chunk.context_len, device=device)[:, None]
        other = torch.arange(chunk.context_len, device=device)[None, :]
        visible = other <= own
        if rule.window:
            visible &= other > own - rule.window
        mask = _additive(visible, dtype)
        if rule.slopes is not None:
            mask = mask + (rule.slopes[:, None, None] * (other - own)).to(dtype)
        batch.memo[memo_key] = mask
    return batch.memo[memo_key]


def _decode_mask(
    batch: AttentionBatch, width: int, kv_heads: int, rule: ScoreRule, dtype: torch.dtype
) -> torch.Tensor:
    """Additive mask [rows, 1 or kv_heads, 1 or group, width] over the padded contexts."""
    memo_key = ("decode", rule.window)
    if memo_key not in batch.memo:
        lengths = batch.context_lens[:, None]
        other = torch.arange(width, device=batch.context_lens.device)[None, :]
        visible = other < lengths
        if rule.window:
            visible &= other >= lengths - rule.window
        mask = _additive(visible, dtype)[:, None, None]
        if rule.slopes is not None:
            distance = (other - lengths + 1)[:, None, None]
            mask = mask + (rule.slopes.view(1, kv_heads, -1, 1) * distance).to(dtype)
        batch.memo[memo_key] = mask
    return batch.memo[memo_key]


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    hidden = torch.full((), float("-inf"), dtype=dtype, device=visible.device)
    return torch.where(visible, torch.zeros((), dtype=dtype, device=visible.device), hidden)
