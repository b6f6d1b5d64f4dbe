"""Self-attention of one layer: project, rotate, write KV, attend, project back.

Assembled by `models/decoder.py`; the batch context comes in as an argument and goes on to the
kernels (`kernels/torch_ops.py`). Heads are split over ranks; where there are fewer KV heads than
ranks, several ranks hold the same KV head.
"""

from dataclasses import dataclass

import torch

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.torch_ops import HeadLayout, TorchOps
from serving.layers.linear import ColumnLinear, RowLinear
from serving.layers.parallel import ShardContext


@dataclass(frozen=True)
class KvLayer:
    """KV cache of one layer, each [blocks, kv_heads, block_size, head_dim]."""

    keys: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class HeadNorms:
    """RMS norm weights [head_dim] over each query and each key head."""

    query: torch.Tensor
    key: torch.Tensor
    eps: float


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
    scale: float
    window: int
    ops: TorchOps

    def __call__(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        kv: KvLayer,
        batch: AttentionBatch,
    ) -> torch.Tensor:
        """[tokens, hidden] to [tokens, hidden]; writes this step's keys and values into `kv`."""
        qkv = self.qkv(x)
        if self.norms:
            self._normalise_heads(qkv, self.norms)
        self.ops.rope_and_write(qkv, self.layout, cos, sin, kv.keys, kv.values, batch)
        context = self.ops.attention(
            qkv, self.layout, kv.keys, kv.values, batch, self.scale, self.window
        )
        return self.out(context)

    def _normalise_heads(self, qkv: torch.Tensor, norms: HeadNorms) -> None:
        query, key, _ = self.layout.split(qkv)
        query.copy_(self.ops.rms_norm(query, norms.query, norms.eps))
        key.copy_(self.ops.rms_norm(key, norms.key, norms.eps))
