"""Multi-head latent attention: one small vector per token is cached instead of keys and values.

Source: DeepSeek-V2, arXiv:2405.04434. The up-projections of keys and values are absorbed into
queries and outputs, so that attention runs on the cached vectors themselves: one KV head, whose
values are the leading part of its keys. Assembled by `models/blocks.py`; heads are split over
ranks, every rank caches the same vectors.
"""

from dataclasses import dataclass

import torch

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.kv_format import KvLayer, LatentKv
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import TorchOps
from serving.layers.attention import Rotary
from serving.layers.linear import ColumnLinear, RowLinear
from serving.layers.norm import Norm


@dataclass(frozen=True)
class LowRankQuery:
    """Queries through a bottleneck: up(norm(down(x)))."""

    down: ColumnLinear
    norm: Norm
    up: ColumnLinear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] to [tokens, heads * dim]."""
        return self.up(self.norm(self.down(x)))


@dataclass(frozen=True)
class LatentAttention:
    """One layer's attention on one rank."""

    query: LowRankQuery | ColumnLinear
    down: ColumnLinear  # to the latent vector and the rotated key
    norm: Norm  # of the latent vector
    key_up: torch.Tensor  # [heads, plain_dim, rank]
    value_up: torch.Tensor  # [heads, value_dim, rank]
    out: RowLinear
    rotated_dim: int
    rule: ScoreRule
    ops: TorchOps

    def __call__(
        self, x: torch.Tensor, rotary: Rotary | None, kv: KvLayer, batch: AttentionBatch
    ) -> torch.Tensor:
        """[tokens, hidden] to [tokens, hidden]; writes this step's vectors into `kv.keys`."""
        heads, plain, rank = self.key_up.shape
        query = self.query(x).view(x.shape[0], heads, plain + self.rotated_dim)
        down = self.down(x)
        key = torch.cat([self.norm(down[:, :rank]), down[:, rank:]], dim=-1)[:, None]
        if rotary is not None:
            self.ops.rotate(query[..., plain:], *rotary)
            self.ops.rotate(key[..., rank:], *rotary)
        absorbed = torch.einsum("thp,hpr->thr", query[..., :plain], self.key_up)
        query = torch.cat([absorbed, query[..., plain:]], dim=-1)
        self.ops.write_vectors(key, kv.keys, batch)
        vectors = LatentKv(kv.keys, rank)
        latent = self.ops.latent_attention(query, key, vectors, batch, self.rule)
        return self.out(torch.einsum("thr,hvr->thv", latent, self.value_up).flatten(1))
