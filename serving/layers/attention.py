"""Self-attention of one layer: project, rotate, write KV, attend, project back.

Assembled by `models/blocks.py`; the batch context comes in as an argument and goes on to the
kernels (`kernels/torch_ops.py`). Heads are split over ranks; where there are fewer KV heads than
ranks, several ranks hold the same KV head.
"""

from dataclasses import dataclass

import torch

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.kv_format import KvLayer
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout, TorchOps
from serving.layers.linear import ColumnLinear, RowLinear
from serving.layers.norm import Norm
from serving.layers.parallel import ShardContext

Rotary = tuple[torch.Tensor, torch.Tensor]  # cos and sin of the step's tokens


@dataclass(frozen=True)
class HeadNorms:
    """Norms of queries and keys; over every head, or over all heads of a token at once."""

    query: Norm
    key: Norm
    whole: bool

    def apply(self, heads: torch.Tensor, norm: Norm) -> None:
        """Normalise [tokens, heads, dim] in place."""
        if self.whole:
            heads.copy_(norm(heads.reshape(heads.shape[0], -1)).view(heads.shape))
        else:
            norm.in_place(heads)


def head_ranges(
    heads: int, kv_heads: int, shard: ShardContext
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(query heads, KV heads) of this rank as half-open ranges; KV heads may be shared.

    Raises `ValueError` where query heads do not divide, or KV heads neither divide nor replicate.
    """
    query = shard.share(heads, "attention heads")
    if kv_heads >= shard.size:
        return query, shard.share(kv_heads, "key/value heads")
    if shard.size % kv_heads:
        raise ValueError(f"{kv_heads} key/value heads cannot be replicated on {shard.size} shards")
    own = shard.rank * kv_heads // shard.size
    return query, (own, own + 1)


@dataclass(frozen=True)
class Attention:
    """One layer's attention on one rank."""

    layout: HeadLayout
    qkv: ColumnLinear
    out: RowLinear
    norms: HeadNorms | None
    clip: float
    rule: ScoreRule
    ops: TorchOps

    def __call__(
        self, x: torch.Tensor, rotary: Rotary | None, kv: KvLayer, batch: AttentionBatch
    ) -> torch.Tensor:
        """[tokens, hidden] to [tokens, hidden]; writes this step's keys and values into `kv`."""
        qkv = self.qkv(x)
        if self.clip:
            qkv.clamp_(-self.clip, self.clip)
        if self.norms is not None:
            query, key, _ = self.layout.split(qkv)
            self.norms.apply(query, self.norms.query)
            self.norms.apply(key, self.norms.key)
        if rotary is None:
            self.ops.write(qkv, self.layout, kv, batch)
        else:
            self.ops.rope_and_write(qkv, self.layout, *rotary, kv, batch)
        context = self.ops.attention(qkv, self.layout, kv, batch, self.rule)
        return self.out(context)
