"""The model's elementwise and attention operations in plain torch: always present, any device.

`compiled_ops.py` replaces some of them on CPU; `dispatch.py` chooses. Called by
`models/decoder.py` and `layers/attention.py`. How keys and values are stored: `kv_format.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F

from serving.kernels import filters, selective_scan, torch_attention
from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.kv_format import CachedVectors, KvLayer, LatentKv
from serving.kernels.selective_scan import ScanInputs
from serving.kernels.torch_attention import ScoreRule

Cache = TypeVar("Cache", KvLayer, LatentKv)

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
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
    compiled = False  # whether products may be compiled ones too, which the device then has

    @property
    def is_capturable(self) -> bool:
        """Whether a GPU can record them: their work depends on numbers that stay the same."""
        return False

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """RMS norm over the last dimension, computed in float32."""
        return weight * _rms_normed(x, eps).to(x.dtype)

    def rms_norm_(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
        """`rms_norm()` in place, on heads [tokens, heads, dim] inside wider rows."""
        x.copy_(self.rms_norm(x, weight, eps))

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """residual += x in place; the norm of the sum. Both [tokens, hidden]. May overwrite x."""
        residual += x
        return self.rms_norm(residual, weight, eps)

    def wide_rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """As `rms_norm()` with a float32 weight: narrow types would lose what it adds to 1.

        Rounded to the type of x after the product.
        """
        return (_rms_normed(x, eps) * weight).to(x.dtype)

    def add_wide_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """As `add_rms_norm()`, of `wide_rms_norm()`."""
        residual += x
        return self.wide_rms_norm(residual, weight, eps)

    def layer_norm(
        self, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
    ) -> torch.Tensor:
        """Layer norm over the last dimension; `weight`, `bias` [n], or None."""
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    def add_layer_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        """residual += x in place; the layer norm of the sum. May overwrite x."""
        residual += x
        return self.layer_norm(residual, weight, bias, eps)

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
        kv: KvLayer,
        batch: AttentionBatch,
    ) -> None:
        """Rotate query and key in place; write key and value as `write()` does.

        `cos`, `sin` float32 [tokens, rotated / 2]. Source: RoFormer, in rotate-half order.
        """
        query, key, _ = layout.split(qkv)
        rotate_half(query, cos, sin)
        rotate_half(key, cos, sin)
        self.write(qkv, layout, kv, batch)

    def write(
        self,
        qkv: torch.Tensor,
        layout: HeadLayout,
        kv: KvLayer,
        batch: AttentionBatch,
    ) -> None:
        """Write key and value into their slots; in `qkv` they become what is read from there."""
        _, key, value = layout.split(qkv)
        torch_attention.write(key, kv.keys, batch)
        torch_attention.write(value, kv.values, batch)

    def attention(
        self,
        qkv: torch.Tensor,
        layout: HeadLayout,
        kv: KvLayer,
        batch: AttentionBatch,
        rule: ScoreRule,
    ) -> torch.Tensor:
        """Attention of every token over its sequence: [tokens, heads * head_dim]."""
        query, key, value = layout.split(qkv)
        output = _attend(query, key, value, kv, batch, rule, self.decode_attention)
        return output.view(qkv.shape[0], -1)

    def decode_attention(
        self,
        query: torch.Tensor,
        kv: KvLayer,
        batch: AttentionBatch,
        rule: ScoreRule,
    ) -> torch.Tensor:
        """One query per sequence: [n, heads, dim]."""
        return torch_attention.attend_decodes(query, kv, batch, rule)

    def rotate(self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """Rotate [tokens, heads, dim] in place over their first 2 * cos.shape[1] dimensions."""
        rotate_half(heads, cos, sin)

    def write_vectors(
        self, rows: torch.Tensor, cache: CachedVectors, batch: AttentionBatch
    ) -> None:
        """Write [tokens, kv_heads, dim] as `write()` writes keys."""
        torch_attention.write(rows, cache, batch)

    def latent_attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        kv: LatentKv,
        batch: AttentionBatch,
        rule: ScoreRule,
    ) -> torch.Tensor:
        """Attention over cached vectors: [tokens, heads, value_dim].

        `query` [tokens, heads, dim]; `key` [tokens, 1, dim]: as `write_vectors()` left them.
        """
        value = key[..., : kv.value_dim]
        return _attend(query, key, value, kv, batch, rule, torch_attention.attend_decodes)

    def selective_scan(
        self, inputs: ScanInputs, rates: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch
    ) -> torch.Tensor:
        """The recurrence of a state space over the step: see `selective_scan.py`."""
        return selective_scan.advance(inputs, rates, pool, batch)

    def greedy(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Best id (int64) and its log-probability (float32) of each row of [rows, vocab]."""
        wide = logits.float()
        best, ids = wide.max(dim=-1)
        return ids, best - wide.logsumexp(dim=-1)

    def keep_top_k(self, scores: torch.Tensor, top_k: torch.Tensor, largest: int) -> None:
        """See `filters.py`, of this and the next two."""
        filters.keep_top_k(scores, top_k, largest)

    def keep_top_p(self, scores: torch.Tensor, top_p: torch.Tensor) -> None:
        """Keep the most likely ids, until their mass reaches p."""
        if scores.device.type == "cpu":
            filters.keep_top_p(scores, top_p)
        else:  # which must not be waited for
            filters.keep_sorted_top_p(scores, top_p)

    def keep_typical(self, scores: torch.Tensor, typical_p: torch.Tensor) -> None:
        """Keep the ids of about the expected information, until their mass reaches p."""
        filters.keep_typical(scores, typical_p)


def _rms_normed(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) in float32."""
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kv: Cache,
    batch: AttentionBatch,
    rule: ScoreRule,
    decode: Callable[[torch.Tensor, Cache, AttentionBatch, ScoreRule], torch.Tensor],
) -> torch.Tensor:
    """Attention of every token over its sequence, [tokens, heads, value_dim]; zeros in the padding.

    `decode`: of one query per sequence.
    """
    output = query.new_empty(*query.shape[:2], value.shape[-1])
    output[batch.num_tokens :] = 0
    decodes = batch.num_decodes
    if decodes:
        output[:decodes] = decode(query[:decodes], kv, batch, rule)
    for chunk in batch.chunks:
        output[chunk.start : chunk.stop] = torch_attention.attend_chunk(
            query, key, value, kv, batch, chunk, rule
        )
    return output


def rotate_half(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotate [tokens, heads, dim] in place over the first 2 * cos.shape[1] dimensions."""
    half = cos.shape[1]
    first, second = heads[..., :half].float(), heads[..., half : 2 * half].float()
    cos, sin = cos[:, None], sin[:, None]
    turned = (first * cos - second * sin, second * cos + first * sin)
    heads[..., : 2 * half] = torch.cat(turned, dim=-1).to(heads.dtype)
