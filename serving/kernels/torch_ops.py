"""The model's elementwise and attention operations in plain torch: always present, any device.

`compiled_ops.py` replaces some of them on CPU; `dispatch.py` chooses. Called by
`models/decoder.py` and `layers/attention.py`. KV caches are [blocks, kv_heads, block_size,
head_dim].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from serving.kernels.attention_batch import AttentionBatch, PrefillChunk

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True)
class HeadLayout:
    """Heads of one rank inside a fused query-key-value row."""

    heads: int
    kv_heads: int
    head_dim: int

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[tokens, (heads + 2 kv_heads) * head_dim] to views [tokens, heads or kv_heads, dim]."""
        rows = qkv.view(qkv.shape[0], self.heads + 2 * self.kv_heads, self.head_dim)
        query = rows[:, : self.heads]
        key = rows[:, self.heads : self.heads + self.kv_heads]
        return query, key, rows[:, self.heads + self.kv_heads :]


class TorchOps:
    """Every operation of a decoder layer that is not a matrix multiplication with weights."""

    name = "torch"

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """RMS norm over the last dimension, computed in float32."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return weight * normed.to(x.dtype)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """residual += x in place; the norm of the sum. Both [tokens, hidden]. May overwrite x."""
        residual += x
        return self.rms_norm(residual, weight, eps)

    def gated(self, gate_up: torch.Tensor, activation: str) -> torch.Tensor:
        """[tokens, 2 n] of gate and up to [tokens, n]: activation(gate) * up."""
        gate, up = gate_up.chunk(2, dim=-1)
        return ACTIVATIONS[activation](gate) * up

    def rope_and_write(
        self,
        qkv: torch.Tensor,
        layout: HeadLayout,
        cos: torch.Tensor,
        sin: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        batch: AttentionBatch,
    ) -> None:
        """Rotate query and key in place; write key and value into their slots.

        `cos`, `sin` float32 [tokens, rotated / 2]. Source: RoFormer, in rotate-half order.
        """
        query, key, value = layout.split(qkv)
        _rotate_half(query, cos, sin)
        _rotate_half(key, cos, sin)
        block_size = key_cache.shape[2]
        slots = batch.slots[: batch.num_tokens]
        block, offset = slots // block_size, slots % block_size
        key_cache[block, :, offset] = key[: batch.num_tokens]
        value_cache[block, :, offset] = value[: batch.num_tokens]

    def attention(
        self,
        qkv: torch.Tensor,
        layout: HeadLayout,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        batch: AttentionBatch,
        scale: float,
        window: int,
    ) -> torch.Tensor:
        """Attention of every token over its sequence: [tokens, heads * head_dim]."""
        query, key, value = layout.split(qkv)
        output = torch.empty(query.shape, dtype=qkv.dtype, device=qkv.device)
        output[batch.num_tokens :] = 0
        if batch.num_decodes:
            output[: batch.num_decodes] = self.decode_attention(
                query[: batch.num_decodes], key_cache, value_cache, batch, scale, window
            )
        for chunk in batch.chunks:
            own = slice(chunk.start, chunk.stop)
            if chunk.cached_len:
                keys = _gather(key_cache, chunk.blocks, chunk.context_len)
                values = _gather(value_cache, chunk.blocks, chunk.context_len)
            else:
                keys, values = key[own].transpose(0, 1), value[own].transpose(0, 1)
            mask = _chunk_mask(batch, chunk, window, qkv.dtype)
            output[own] = F.scaled_dot_product_attention(
                query[own].transpose(0, 1)[None],
                keys[None],
                values[None],
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=layout.heads != layout.kv_heads,
            )[0].transpose(0, 1)
        return output.view(qkv.shape[0], -1)

    def decode_attention(
        self,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        batch: AttentionBatch,
        scale: float,
        window: int,
    ) -> torch.Tensor:
        """One query per sequence: [n, heads, dim]. Heads of one KV head share one matmul."""
        rows, heads, dim = query.shape
        kv_heads = key_cache.shape[1]
        tables = batch.block_tables.long()
        keys = key_cache[tables].transpose(1, 2).reshape(rows, kv_heads, -1, dim)
        values = value_cache[tables].transpose(1, 2).reshape(rows, kv_heads, -1, dim)
        grouped = query.reshape(rows, kv_heads, heads // kv_heads, dim)
        mask = _decode_mask(batch, keys.shape[2], window, query.dtype)
        result = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
        return result.reshape(rows, heads, dim)

    def greedy(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Best id (int64) and its log-probability (float32) of each row of [rows, vocab]."""
        wide = logits.float()
        best, ids = wide.max(dim=-1)
        return ids, best - wide.logsumexp(dim=-1)


def _rotate_half(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotate [tokens, heads, dim] in place over the first 2 * cos.shape[1] dimensions."""
    half = cos.shape[1]
    first, second = heads[..., :half].float(), heads[..., half : 2 * half].float()
    cos, sin = cos[:, None], sin[:, None]
    turned = (first * cos - second * sin, second * cos + first * sin)
    heads[..., : 2 * half] = torch.cat(turned, dim=-1).to(heads.dtype)


def _gather(cache: torch.Tensor, blocks: torch.Tensor, length: int) -> torch.Tensor:
    """[kv_heads, length, head_dim] of one sequence."""
    picked = cache[blocks].transpose(0, 1)
    return picked.reshape(picked.shape[0], -1, cache.shape[3])[:, :length]


def _chunk_mask(
    batch: AttentionBatch, chunk: PrefillChunk, window: int, dtype: torch.dtype
) -> torch.Tensor | None:
    """Additive mask [queries, context], or None where plain causal attention is right."""
    if not chunk.cached_len and not (window and chunk.context_len > window):
        return None
    memo_key = (chunk.start, window)
    if memo_key not in batch.memo:
        device = batch.positions.device
        own = torch.arange(chunk.cached_len, chunk.context_len, device=device)[:, None]
        other = torch.arange(chunk.context_len, device=device)[None, :]
        visible = other <= own
        if window:
            visible &= other > own - window
        batch.memo[memo_key] = _additive(visible, dtype)
    return batch.memo[memo_key]


def _decode_mask(
    batch: AttentionBatch, width: int, window: int, dtype: torch.dtype
) -> torch.Tensor:
    """Additive mask [rows, 1, 1, width] over the padded contexts."""
    memo_key = ("decode", window)
    if memo_key not in batch.memo:
        lengths = batch.context_lens[:, None]
        other = torch.arange(width, device=batch.context_lens.device)[None, :]
        visible = other < lengths
        if window:
            visible &= other >= lengths - window
        batch.memo[memo_key] = _additive(visible, dtype)[:, None, None]
    return batch.memo[memo_key]


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    hidden = torch.full((), float("-inf"), dtype=dtype, device=visible.device)
    return torch.where(visible, torch.zeros((), dtype=dtype, device=visible.device), hidden)
