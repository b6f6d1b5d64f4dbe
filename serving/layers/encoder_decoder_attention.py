"""The three attentions of an encoder-decoder layer, over a paged KV pool where they decode.

Runs in an engine rank. Assembled by `models/encoder_decoder_loader.py`; called by
`models/encoder_decoder.py` with the token axis of one stack. Scores are not scaled. Heads are split
over ranks. Next: `kernels/torch_ops.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from serving.kernels import torch_attention
from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.kv_format import KvLayer
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout, TorchOps
from serving.layers.linear import ColumnLinear, RowLinear
from serving.layers.relative_bias import RelativeBias, SequenceBias

UNSCALED = ScoreRule(scale=1.0)


@dataclass(frozen=True)
class Span:
    """A prompt of the step: its rows on the encoder's token axis, and on the decoder's."""

    encoder: slice
    decoder: slice


@dataclass(frozen=True)
class DecodeRows:
    """Where decode rows find the KV entries of their own output, and those of their prompt."""

    count: int
    cross: AttentionBatch  # its contexts are the prompts
    blocks: torch.Tensor  # int64 [rows, blocks]: from the one where the output begins
    distances: torch.Tensor  # int64 [rows, entries of the blocks], key minus query
    visible: torch.Tensor  # bool, the same shape

    def biases(self, bias: RelativeBias) -> torch.Tensor:
        """Additive [rows, heads, 1, entries]; -inf for what is not of the row's output."""
        values = bias(self.distances).masked_fill(~self.visible, float("-inf"))
        return values.transpose(0, 1).unsqueeze(2)


@dataclass(frozen=True)
class EncoderAttention:
    """Every token of a prompt sees all of it."""

    layout: HeadLayout
    qkv: ColumnLinear
    out: RowLinear

    def __call__(
        self, x: torch.Tensor, spans: list[Span], biases: list[SequenceBias]
    ) -> torch.Tensor:
        """[tokens, hidden] to the same shape; `biases`: one for each span."""
        query, key, value = self.layout.split(self.qkv(x))
        result = torch.zeros_like(query)
        for span, bias in zip(spans, biases, strict=True):
            own = span.encoder
            for rows, block in _attend(query[own], key[own], value[own], bias):
                result[own][rows] = block
        return self.out(result.flatten(1))


@dataclass(frozen=True)
class DecoderAttention:
    """Every token of an output sees those before it, and itself."""

    layout: HeadLayout
    qkv: ColumnLinear
    out: RowLinear
    ops: TorchOps

    def __call__(
        self,
        x: torch.Tensor,
        kv: KvLayer,
        batch: AttentionBatch,
        spans: list[Span],
        biases: list[SequenceBias],
        decodes: DecodeRows,
        decode_biases: torch.Tensor,
    ) -> torch.Tensor:
        """[tokens, hidden] to the same shape; writes keys and values into the slots of `batch`."""
        qkv = self.qkv(x)
        self.ops.write(qkv, self.layout, kv, batch)
        query, key, value = self.layout.split(qkv)
        result = torch.zeros_like(query)
        if decodes.count:
            attended = _attend_blocks(query[: decodes.count], kv, decodes.blocks, decode_biases)
            result[: decodes.count] = attended
        for span, bias in zip(spans, biases, strict=True):
            own = span.decoder
            for rows, block in _attend(query[own], key[own], value[own], bias):
                result[own][rows] = block
        return self.out(result.flatten(1))


@dataclass(frozen=True)
class CrossAttention:
    """Every token of an output sees the whole encoded prompt."""

    heads: int  # of this rank
    query: ColumnLinear
    key_value: ColumnLinear
    out: RowLinear
    ops: TorchOps

    def encode(self, encoded: torch.Tensor, kv: KvLayer, batch: AttentionBatch) -> torch.Tensor:
        """Keys and values [2, tokens, heads, dim] of the encoder's output [tokens, hidden].

        Writes them into the slots of `batch`; they are what is read from there.
        """
        rows = self.key_value(encoded)
        key, value = rows.view(rows.shape[0], 2, self.heads, -1).unbind(1)
        torch_attention.write(key, kv.keys, batch)
        torch_attention.write(value, kv.values, batch)
        return torch.stack([key, value])

    def __call__(
        self,
        x: torch.Tensor,
        kv: KvLayer,
        encoded: torch.Tensor | None,
        spans: list[Span],
        decodes: DecodeRows,
    ) -> torch.Tensor:
        """[tokens, hidden] to the same shape; `encoded`: what `encode()` gave for the spans."""
        query = self.query(x)
        query = query.view(query.shape[0], self.heads, -1)
        result = torch.zeros_like(query)
        if decodes.count:
            result[: decodes.count] = self.ops.decode_attention(
                query[: decodes.count], kv, decodes.cross, UNSCALED
            )
        if encoded is not None:
            key, value = encoded
            for span in spans:
                own, other = span.decoder, span.encoder
                result[own] = _scores_to_values(query[own], key[other], value[other], None)
        return self.out(result.flatten(1))


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: SequenceBias
) -> Iterator[tuple[slice, torch.Tensor]]:
    """One sequence over itself, each [tokens, heads, dim]: rows, and their [rows, heads, dim]."""
    for start, stop in bias.blocks():
        mask = bias.rows(start, stop)
        yield slice(start, stop), _scores_to_values(query[start:stop], key, value, mask)


def _scores_to_values(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """[queries, heads, dim] over [keys, heads, dim]; `mask`: additive [heads, queries, keys]."""
    result = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        attn_mask=None if mask is None else mask[None],
        scale=1.0,
    )
    return result[0].transpose(0, 1)


def _attend_blocks(
    query: torch.Tensor, kv: KvLayer, blocks: torch.Tensor, biases: torch.Tensor
) -> torch.Tensor:
    """One query per row, [rows, heads, dim], over its `blocks` [rows, blocks] of the pool."""
    keys, values = (one.transpose(1, 2).flatten(2, 3) for one in kv.load(blocks, query.dtype))
    result = F.scaled_dot_product_attention(
        query.unsqueeze(2), keys, values, attn_mask=biases, scale=1.0
    )
    return result.squeeze(2)
