"""The one torch module that interprets a `DecoderSpec`: every declared family runs through here.

Built by `engine/process.py` from a spec, weight names and a checkpoint; called by
`engine/model_runner.py` once per step with a flat token axis. Norms and residuals are here, the
rest is in `layers/`. No training, hence plain classes instead of `nn.Module`.
"""

from dataclasses import dataclass

import torch

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.torch_ops import HeadLayout, TorchOps
from serving.layers.attention import Attention, HeadNorms, KvLayer, head_ranges
from serving.layers.embedding import Embedding, Head, vocabulary_range
from serving.layers.linear import ColumnLinear, MatmulFactory, RowLinear, Slice
from serving.layers.mlp import GatedMlp
from serving.layers.parallel import ShardContext
from serving.layers.rotary import rotary_table
from serving.models.spec import DecoderSpec, WeightNames
from serving.models.weights import Checkpoint


@dataclass(frozen=True)
class Layer:
    """One decoder layer on one rank."""

    attention_norm: torch.Tensor
    attention: Attention
    mlp_norm: torch.Tensor
    mlp: GatedMlp


@dataclass(frozen=True)
class LoadContext:
    """What every part of the model is built with."""

    spec: DecoderSpec
    names: WeightNames
    source: Checkpoint
    shard: ShardContext
    ops: TorchOps
    matmul: MatmulFactory


class Decoder:
    """A loaded model: token ids to hidden states, hidden states to logits."""

    def __init__(self, context: LoadContext, positions: int, device: torch.device) -> None:
        """Read all weights of this rank. `positions`: length of the rotary table."""
        spec, names, source = context.spec, context.names, context.source
        self.spec = spec
        self._ops = context.ops
        self._embedding = Embedding(source, names.embedding, spec.vocab_size, context.shard)
        self._layers = [_load_layer(context, i) for i in range(spec.layers)]
        self._final_norm = source.vector(f"{names.final_norm}.weight")
        self._head = _load_head(context, self._embedding)
        cos, sin = rotary_table(spec.rope, positions)
        self._cos, self._sin = cos.to(device), sin.to(device)

    def forward(
        self, token_ids: torch.Tensor, kv: list[KvLayer], batch: AttentionBatch
    ) -> torch.Tensor:
        """Token ids int64 [tokens] to hidden states [tokens, hidden] before the final norm.

        Writes the step's keys and values into `kv`, one entry per layer.
        """
        cos, sin = self._cos[batch.positions], self._sin[batch.positions]
        ops, eps = self._ops, self.spec.norm_eps
        residual = self._embedding(token_ids)
        x = ops.rms_norm(residual, self._layers[0].attention_norm, eps)
        for i, layer in enumerate(self._layers):
            if i:
                x = ops.add_rms_norm(x, residual, layer.attention_norm, eps)
            x = layer.attention(x, cos, sin, kv[i], batch)
            x = ops.add_rms_norm(x, residual, layer.mlp_norm, eps)
            x = layer.mlp(x)
        residual += x
        return residual

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [rows, hidden] from `forward` to logits [rows, vocab_size]."""
        return self._head(self._ops.rms_norm(hidden, self._final_norm, self.spec.norm_eps))


def kv_heads_of_rank(spec: DecoderSpec, shard: ShardContext) -> int:
    """How many KV heads this rank caches."""
    start, stop = head_ranges(spec.attention.heads, spec.attention.kv_heads, shard)[1]
    return stop - start


def _load_layer(context: LoadContext, i: int) -> Layer:
    names, source = context.names, context.source
    return Layer(
        source.vector(f"{names.attention_norm.format(i=i)}.weight"),
        _load_attention(context, i),
        source.vector(f"{names.mlp_norm.format(i=i)}.weight"),
        _load_mlp(context, i),
    )


def _load_attention(context: LoadContext, i: int) -> Attention:
    spec, names, source = context.spec.attention, context.names, context.source
    query, key = head_ranges(spec.heads, spec.kv_heads, context.shard)
    dim = spec.head_dim
    own_query = (query[0] * dim, query[1] * dim)
    own_key = (key[0] * dim, key[1] * dim)
    parts = [
        Slice(names.query.format(i=i), *own_query),
        Slice(names.key.format(i=i), *own_key),
        Slice(names.value.format(i=i), *own_key),
    ]
    norms = None
    if spec.qk_norm:
        norms = HeadNorms(
            source.vector(f"{names.query_norm.format(i=i)}.weight"),
            source.vector(f"{names.key_norm.format(i=i)}.weight"),
            context.spec.norm_eps,
        )
    return Attention(
        HeadLayout(query[1] - query[0], key[1] - key[0], dim),
        ColumnLinear(source, parts, spec.qkv_bias, context.matmul),
        RowLinear(
            source, names.attention_out.format(i=i), own_query, context.spec.hidden,
            spec.out_bias, context.shard, context.matmul,
        ),
        norms,
        spec.scale,
        context.spec.windows[i],
        context.ops,
    )  # fmt: skip


def _load_mlp(context: LoadContext, i: int) -> GatedMlp:
    spec, names = context.spec.mlp, context.names
    own = context.shard.share(spec.intermediate, "intermediate size")
    parts = [Slice(names.gate.format(i=i), *own), Slice(names.up.format(i=i), *own)]
    return GatedMlp(
        ColumnLinear(context.source, parts, spec.bias, context.matmul),
        RowLinear(
            context.source, names.down.format(i=i), own, context.spec.hidden, spec.bias,
            context.shard, context.matmul,
        ),
        spec.activation,
        context.ops,
    )  # fmt: skip


def _load_head(context: LoadContext, embedding: Embedding) -> Head:
    spec, shard = context.spec, context.shard
    weight = embedding.weight
    if not spec.tied_head:
        start, stop, _ = vocabulary_range(spec.vocab_size, shard)
        weight = context.source.rows(f"{context.names.head}.weight", start, stop)
    return Head(weight, spec.vocab_size, shard, context.matmul)
