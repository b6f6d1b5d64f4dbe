"""Reads the weights of decoder layers as their spec says, only this rank's share.

Called by `decoder.py` for each layer. Every question about names and layouts of a checkpoint is
answered here; the layers of `layers/` see tensors only.
"""

from dataclasses import dataclass

import torch

from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout, TorchOps
from serving.layers.attention import Attention, HeadNorms, head_ranges
from serving.layers.latent_attention import LatentAttention, LowRankQuery
from serving.layers.linear import ColumnLinear, Part, RotaryPairs, RowLinear
from serving.layers.mlp import GatedMlp, PlainMlp
from serving.layers.moe import MoeMlp
from serving.layers.norm import LayerNorm, NoNorm, Norm, OffsetRmsNorm, RmsNorm, ShardedRmsNorm
from serving.models.blocks import Block, ParallelBlock, PostNormBlock, SequentialBlock
from serving.models.load_context import LoadContext
from serving.models.moe_loader import load_moe
from serving.models.spec import (
    HeadNormSpec,
    LatentSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
    NormSpec,
)


@dataclass(frozen=True)
class MlpNames:
    """Where the weights of one feed-forward network lie."""

    gate: str
    up: str
    gate_up: str
    down: str


def load_norm(context: LoadContext, name: str, spec: NormSpec) -> Norm:
    """A norm over whole vectors."""
    if not spec.weight:
        return LayerNorm(None, None, spec.eps, context.ops)
    weight = context.source.vector(f"{name}.weight")
    bias = context.source.vector(f"{name}.bias") if spec.bias else None
    return make_norm(spec, weight, bias, context.ops)


def make_norm(
    spec: NormSpec, weight: torch.Tensor, bias: torch.Tensor | None, ops: TorchOps
) -> Norm:
    """The norm of these tensors."""
    if spec.offset:
        return OffsetRmsNorm(weight, spec.offset, spec.eps, ops)
    if spec.kind == "rms":
        return RmsNorm(weight, spec.eps, ops)
    return LayerNorm(weight, bias, spec.eps, ops)


class BlockLoader:
    """Loads the layers of one decoder, one after the other."""

    def __init__(self, context: LoadContext) -> None:
        self._context = context
        self._spec, self._names = context.spec, context.names
        self._source, self._shard = context.source, context.shard

    def load(self, i: int) -> Block:
        """Layer `i`."""
        spec, names = self._spec, self._names
        layer = spec.layers[i]
        attention = self._attention(i, layer)
        mlp = self._mlp(i, layer.mlp)
        if spec.form == "parallel":
            return ParallelBlock(
                self._norm(i, names.attention_norm),
                attention,
                self._norm(i, names.mlp_norm) if spec.mlp_norm else None,
                mlp,
            )
        if spec.form == "post":
            norms = self._norm(i, names.attention_norm), self._norm(i, names.mlp_norm)
            return PostNormBlock(attention, norms[0], mlp, norms[1])
        return SequentialBlock(
            self._norm(i, names.attention_norm, spec.input_norms),
            attention,
            self._norm(i, names.attention_output_norm, spec.output_norms),
            self._norm(i, names.mlp_norm, spec.input_norms),
            mlp,
            self._norm(i, names.mlp_output_norm, spec.output_norms),
            spec.residual_scale,
        )

    def _norm(self, i: int, name: str, exists: bool = True) -> Norm:
        return load_norm(self._context, name.format(i=i), self._spec.norm) if exists else NoNorm()

    # --- attention -----------------------------------------------------------------------------

    def _attention(self, i: int, layer: LayerSpec) -> Attention | LatentAttention:
        spec = self._spec.attention
        if spec.latent is not None:
            return self._latent_attention(i, layer, spec.latent)
        query, key = head_ranges(spec.heads, spec.kv_heads, self._shard)
        dim = spec.head_dim
        norms = None
        if spec.head_norm is not None:
            norms = self._head_norms(i, layer, spec.head_norm, query, key)
        return Attention(
            HeadLayout(query[1] - query[0], key[1] - key[0], dim),
            ColumnLinear(
                self._source,
                self._qkv_parts(i, layer, query, key),
                spec.qkv_bias,
                self._context.matmul,
                self._names.transposed,
            ),
            self._row_linear(
                self._names.attention_out.format(i=i), (query[0] * dim, query[1] * dim),
                spec.out_bias,
            ),
            norms,
            spec.clip,
            self._score_rule(layer, query),
            self._context.ops,
        )  # fmt: skip

    def _score_rule(self, layer: LayerSpec, query: tuple[int, int]) -> ScoreRule:
        spec = self._spec.attention
        own = spec.slopes[slice(*query)]
        slopes = torch.tensor(own, device=self._source.device) if own else None
        return ScoreRule(spec.scale * layer.score_scale, layer.window, spec.soft_cap, slopes)

    def _rotary_pairs(self, layer: LayerSpec) -> RotaryPairs | None:
        """How rows must be reordered for rotations in halves."""
        if layer.rope is None or not self._spec.ropes[layer.rope].interleaved:
            return None
        return RotaryPairs(self._spec.attention.head_dim, 0, self._spec.ropes[layer.rope].dim)

    def _qkv_parts(
        self, i: int, layer: LayerSpec, query: tuple[int, int], key: tuple[int, int]
    ) -> list[Part]:
        """Queries, keys and values of this rank, wherever they lie in the checkpoint."""
        spec, names = self._spec.attention, self._names
        dim, pairs = spec.head_dim, self._rotary_pairs(layer)
        if not names.qkv:
            after = spec.kv_heads if names.key_value else 0  # heads before the first value
            return [
                Part(names.query.format(i=i), (_scaled(query, dim),), pairs),
                Part((names.key_value or names.key).format(i=i), (_scaled(key, dim),), pairs),
                Part((names.key_value or names.value).format(i=i),
                     (_scaled((after + key[0], after + key[1]), dim),)),
            ]  # fmt: skip
        name = names.qkv.format(i=i)
        if names.qkv_layout == "stacked":
            keys, values = spec.heads, spec.heads + spec.kv_heads
            return [
                Part(name, (_scaled(query, dim),), pairs),
                Part(name, (_scaled((keys + key[0], keys + key[1]), dim),), pairs),
                Part(name, (_scaled((values + key[0], values + key[1]), dim),)),
            ]
        queries = spec.heads // spec.kv_heads
        width = queries + 2  # heads of one group

        def head_rows(head: int) -> tuple[int, int]:
            return (head * dim, (head + 1) * dim)

        return [
            Part(name, tuple(
                head_rows(head // queries * width + head % queries) for head in range(*query)
            ), pairs),
            Part(name, tuple(head_rows(head * width + queries) for head in range(*key)), pairs),
            Part(name, tuple(head_rows(head * width + queries + 1) for head in range(*key))),
        ]  # fmt: skip

    def _head_norms(
        self,
        i: int,
        layer: LayerSpec,
        spec: HeadNormSpec,
        query: tuple[int, int],
        key: tuple[int, int],
    ) -> HeadNorms:
        pairs = self._rotary_pairs(layer)
        names = (self._names.query_norm.format(i=i, h="{h}"),
                 self._names.key_norm.format(i=i, h="{h}"))  # fmt: skip
        norms = [
            self._head_norm(name, spec, own, pairs)
            for name, own in zip(names, (query, key), strict=True)
        ]
        return HeadNorms(norms[0], norms[1], spec.over == "all")

    def _head_norm(
        self, name: str, spec: HeadNormSpec, own: tuple[int, int], pairs: RotaryPairs | None
    ) -> Norm:
        """The norm of this rank's query or key heads."""
        dim = self._spec.attention.head_dim

        def read(kind: str) -> torch.Tensor:
            if "{h}" in name:  # one tensor for each head
                rows = [self._source.vector(f"{name.format(h=h)}.{kind}") for h in range(*own)]
                return torch.stack(rows)
            whole = self._source.vector(f"{name}.{kind}")
            if spec.over == "all":
                return whole[own[0] * dim : own[1] * dim]
            return whole[own[0] : own[1]] if spec.per_head else whole

        weight = read("weight")
        if pairs is not None:
            weight = pairs.in_halves(weight.reshape(-1, 1)).view(weight.shape)
        if spec.over == "all" and self._shard.size > 1:
            if spec.norm.kind != "rms":
                raise ValueError("layer norms over all heads cannot be divided over shards")
            # Ranks that share a KV head count it once each, in the sum and in the size.
            size = weight.numel() * self._shard.size
            return ShardedRmsNorm(weight, spec.norm.eps, size, self._shard)
        return make_norm(
            spec.norm, weight.view(-1, dim) if spec.per_head else weight,
            read("bias") if spec.norm.bias else None, self._context.ops,
        )  # fmt: skip

    def _latent_attention(self, i: int, layer: LayerSpec, spec: LatentSpec) -> LatentAttention:
        names, source = self._names, self._source
        heads = self._shard.share(self._spec.attention.heads, "attention heads")
        dim = spec.plain_dim + spec.rotated_dim
        interleaved = layer.rope is not None and self._spec.ropes[layer.rope].interleaved
        pairs = RotaryPairs(dim, spec.plain_dim, spec.rotated_dim) if interleaved else None
        own_query = (_scaled(heads, dim),)
        query: LowRankQuery | ColumnLinear
        if spec.query_rank:
            query = LowRankQuery(
                self._column_linear(names.query_down.format(i=i), ((0, spec.query_rank),)),
                load_norm(self._context, names.query_down_norm.format(i=i), spec.norm),
                self._column_linear(names.query_up.format(i=i), own_query, pairs),
            )
        else:
            query = self._column_linear(names.query.format(i=i), own_query, pairs)
        width = spec.rank + spec.rotated_dim
        down_pairs = RotaryPairs(width, spec.rank, spec.rotated_dim) if interleaved else None
        up_dim = spec.plain_dim + spec.value_dim
        up = source.rows(f"{names.latent_up.format(i=i)}.weight", *_scaled(heads, up_dim))
        up = up.view(-1, up_dim, spec.rank)
        return LatentAttention(
            query,
            self._column_linear(names.latent_down.format(i=i), ((0, width),), down_pairs),
            load_norm(self._context, names.latent_norm.format(i=i), spec.norm),
            up[:, : spec.plain_dim].contiguous(),
            up[:, spec.plain_dim :].contiguous(),
            self._row_linear(
                names.attention_out.format(i=i), _scaled(heads, spec.value_dim),
                self._spec.attention.out_bias,
            ),
            spec.rotated_dim,
            self._score_rule(layer, heads),
            self._context.ops,
        )  # fmt: skip

    # --- feed-forward --------------------------------------------------------------------------

    def _mlp(self, i: int, spec: MlpSpec | MoeSpec) -> GatedMlp | PlainMlp | MoeMlp:
        names = self._names
        if isinstance(spec, MoeSpec):
            return self._moe(i, spec)
        own = MlpNames(names.gate, names.up, names.gate_up, names.down)
        return self._dense(i, spec, own)

    def _dense(self, i: int, spec: MlpSpec, names: MlpNames) -> GatedMlp | PlainMlp:
        own = self._shard.share(spec.intermediate, "intermediate size")
        down = self._row_linear(names.down.format(i=i), own, spec.bias)
        if not spec.gated:
            up = self._column_linear(names.up.format(i=i), (own,), bias=spec.bias)
            return PlainMlp(up, down, spec.activation)
        if names.gate_up:
            second = (spec.intermediate + own[0], spec.intermediate + own[1])
            parts = [Part(names.gate_up.format(i=i), (own, second))]
        else:
            parts = [Part(names.gate.format(i=i), (own,)), Part(names.up.format(i=i), (own,))]
        gate_up = ColumnLinear(
            self._source, parts, spec.bias, self._context.matmul, self._names.transposed
        )
        return GatedMlp(gate_up, down, spec.activation, self._context.ops)

    def _moe(self, i: int, spec: MoeSpec) -> MoeMlp:
        names = self._names
        shared = None
        if spec.shared is not None:
            own = MlpNames(names.shared_gate, names.shared_up, "", names.shared_down)
            shared = self._dense(i, spec.shared, own)
        return load_moe(self._context, i, spec, shared)

    # --- linear layers -------------------------------------------------------------------------

    def _column_linear(
        self,
        name: str,
        ranges: tuple[tuple[int, int], ...],
        pairs: RotaryPairs | None = None,
        bias: bool = False,
    ) -> ColumnLinear:
        parts = [Part(name, ranges, pairs)]
        return ColumnLinear(self._source, parts, bias, self._context.matmul, self._names.transposed)

    def _row_linear(self, name: str, inputs: tuple[int, int], bias: bool) -> RowLinear:
        return RowLinear(
            self._source, name, inputs, self._spec.hidden, bias,
            self._shard, self._context.matmul, self._names.transposed,
        )  # fmt: skip


def _scaled(heads: tuple[int, int], dim: int) -> tuple[int, int]:
    return (heads[0] * dim, heads[1] * dim)
