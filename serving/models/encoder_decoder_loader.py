"""Reads the weights of an encoder-decoder as its spec says, only this rank's share.

Runs in an engine rank, at start. Called by `encoder_decoder.py` for each part of the model. Every
question about the checkpoint's names is answered here; the layers see tensors only.
"""

from dataclasses import dataclass

import torch

from serving.kernels.matmul_choice import Matmuls
from serving.kernels.torch_ops import HeadLayout, TorchOps
from serving.layers.embedding import Embedding, Head, vocabulary_range
from serving.layers.encoder_decoder_attention import (
    CrossAttention,
    DecoderAttention,
    EncoderAttention,
)
from serving.layers.linear import ColumnLinear, Part, RowLinear
from serving.layers.mlp import GatedMlp, PlainMlp
from serving.layers.norm import RmsNorm
from serving.layers.parallel import ShardContext
from serving.layers.relative_bias import RelativeBias
from serving.models.encoder_decoder_spec import EncoderDecoderNames, EncoderDecoderSpec, StackNames
from serving.models.weights import Checkpoint


@dataclass(frozen=True)
class Precision:
    """A type for weights, and what reads and multiplies them in it."""

    dtype: torch.dtype
    source: Checkpoint
    matmul: Matmuls


@dataclass(frozen=True)
class EncoderDecoderLoad:
    """What every part of the model is built with.

    `wide` is for what overflows float16: the residual stream and the last matrix of each
    feed-forward part. With every other type it equals `narrow`.
    """

    spec: EncoderDecoderSpec
    names: EncoderDecoderNames
    embedding: str  # name of the one that the checkpoint holds
    narrow: Precision
    wide: Precision
    shard: ShardContext
    ops: TorchOps


class StreamNorm:
    """The norm of a residual stream that may be wider than what it gives."""

    def __init__(self, load: EncoderDecoderLoad, name: str) -> None:
        weight = load.wide.source.vector(f"{name}.weight")
        self._norm = RmsNorm(weight, load.spec.norm_eps, load.ops)
        self._stream, self._dtype = load.wide.dtype, load.narrow.dtype

    def add(self, x: torch.Tensor | None, residual: torch.Tensor) -> torch.Tensor:
        """residual += x in place (None adds nothing); the norm of the sum. May overwrite x."""
        return self._norm.add(None if x is None else x.to(self._stream), residual).to(self._dtype)


class WideRowLinear(RowLinear):
    """A row-parallel linear that multiplies in its own, wider type."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in of this rank] to [tokens, out] in float32."""
        return super().__call__(x.to(torch.float32))


class StackLoader:
    """Loads the parts of one stack's layers."""

    def __init__(self, load: EncoderDecoderLoad, names: StackNames) -> None:
        self._load, self._names, self._spec = load, names, load.spec
        dim = load.spec.head_dim
        heads = load.shard.share(load.spec.heads, "attention heads")
        self._heads = heads
        self._inner = (heads[0] * dim, heads[1] * dim)
        self._layout = HeadLayout(heads[1] - heads[0], heads[1] - heads[0], dim)

    def self_norm(self, i: int) -> StreamNorm:
        """Norm before the self-attention."""
        return StreamNorm(self._load, self._names.self_norm.format(i=i))

    def cross_norm(self, i: int) -> StreamNorm:
        """Norm before the cross-attention."""
        return StreamNorm(self._load, self._names.cross_norm.format(i=i))

    def mlp_norm(self, i: int) -> StreamNorm:
        """Norm before the feed-forward part."""
        return StreamNorm(self._load, self._names.mlp_norm.format(i=i))

    def final_norm(self) -> StreamNorm:
        """Norm behind the last layer."""
        return StreamNorm(self._load, self._names.final_norm)

    def bias(self, i: int, bidirectional: bool) -> RelativeBias | None:
        """Position bias that begins with this layer; None: that of the layer before goes on."""
        spec = self._spec.bias
        if i and not spec.per_layer:
            return None
        name = f"{self._names.self_attention.format(i=i)}.relative_attention_bias.weight"
        weight = self._load.narrow.source.columns(name, *self._heads)
        return RelativeBias(weight, spec.max_distance, bidirectional)

    def encoder_attention(self, i: int) -> EncoderAttention:
        """Self-attention of an encoder layer."""
        name = self._names.self_attention.format(i=i)
        return EncoderAttention(self._layout, self._columns(name, "qkv"), self._out(name))

    def decoder_attention(self, i: int) -> DecoderAttention:
        """Self-attention of a decoder layer."""
        name = self._names.self_attention.format(i=i)
        qkv, out = self._columns(name, "qkv"), self._out(name)
        return DecoderAttention(self._layout, qkv, out, self._load.ops)

    def cross_attention(self, i: int) -> CrossAttention:
        """Attention of a decoder layer over the encoder's output."""
        name = self._names.cross_attention.format(i=i)
        query, key_value = self._columns(name, "q"), self._columns(name, "kv")
        return CrossAttention(self._layout.heads, query, key_value, self._out(name), self._load.ops)

    def mlp(self, i: int) -> GatedMlp | PlainMlp:
        """Feed-forward part."""
        load, spec, name = self._load, self._spec.mlp, self._names.mlp.format(i=i)
        own = load.shard.share(spec.intermediate, "intermediate size")
        wide = load.wide
        row_linear = RowLinear if wide is load.narrow else WideRowLinear
        down = row_linear(
            wide.source, f"{name}.wo", own, self._spec.hidden, False, load.shard, wide.matmul
        )
        if not spec.gated:
            up = self._linear([Part(f"{name}.wi", (own,))])
            return PlainMlp(up, down, spec.activation)
        gate_up = self._linear([Part(f"{name}.wi_0", (own,)), Part(f"{name}.wi_1", (own,))])
        return GatedMlp(gate_up, down, spec.activation, load.ops)

    def _columns(self, name: str, letters: str) -> ColumnLinear:
        """Projections of this rank's heads, fused in the order of their letters."""
        return self._linear([Part(f"{name}.{letter}", (self._inner,)) for letter in letters])

    def _linear(self, parts: list[Part]) -> ColumnLinear:
        narrow = self._load.narrow
        return ColumnLinear(narrow.source, parts, False, narrow.matmul)

    def _out(self, name: str) -> RowLinear:
        load, narrow = self._load, self._load.narrow
        return RowLinear(
            narrow.source, f"{name}.o", self._inner, self._spec.hidden, False,
            load.shard, narrow.matmul,
        )  # fmt: skip


def load_embedding(load: EncoderDecoderLoad) -> Embedding:
    """The embedding that both stacks share."""
    return Embedding(load.narrow.source, load.embedding, load.spec.vocab_size, load.shard)


def load_head(load: EncoderDecoderLoad, embedding: Embedding) -> Head:
    """The output head: the embedding's matrix where it is tied."""
    spec, narrow = load.spec, load.narrow
    start, stop, _ = vocabulary_range(spec.vocab_size, load.shard)
    weight = embedding.weight
    if not spec.tied_head:
        weight = narrow.source.rows(f"{load.names.head}.weight", start, stop)
    return Head(weight, None, spec.vocab_size, load.shard, narrow.matmul)
