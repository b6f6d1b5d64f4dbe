"""Our paged attention in the shape that transformers' modelling code calls.

Used by `transformers_decoder.py`. Comes in: query, key and value of one layer after the rotation,
`[1, heads, tokens, dim]`. Goes out: the context `[1, tokens, heads, dim]`; keys and values are in
the pool then. What the layers are like was found out at start by `attention_recorder.py`; the
operations are those of every other model (`kernels/torch_ops.py`).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.kv_format import CachedVectors, KvLayer
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout, TorchOps


@dataclass(frozen=True)
class AttentionCall:
    """One call of attention in a forward pass; the n-th call owns the n-th layer of the pool."""

    module: nn.Module
    layout: HeadLayout  # its head_dim is the wider one of keys and values
    value_dim: int
    rule: ScoreRule


class PagedAttention:
    """The attention function of one model.

    transformers offers no way through all its models for an argument of ours, so the step is held
    here between `begin` and `end`.
    """

    def __init__(self, calls: list[AttentionCall], ops: TorchOps, dtype: torch.dtype) -> None:
        """`dtype`: that of the queries, keys and values that are attended to."""
        self._calls, self._ops, self._dtype = calls, ops, dtype
        self._kv: list[KvLayer] = []
        self._batch: AttentionBatch | None = None
        self._done = 0
        self._unrotated = torch.empty(0)

    def begin(self, kv: list[KvLayer], batch: AttentionBatch) -> None:
        """A forward pass over `batch` starts."""
        self._kv, self._batch, self._done = kv, batch, 0
        # Positions are in the keys already: a rotation over no dimension leaves them as they are.
        self._unrotated = torch.empty(
            len(batch.positions), 0, dtype=torch.float32, device=batch.positions.device
        )

    def end(self) -> None:
        """The pass is over. Raises `RuntimeError` if a layer was left out."""
        self._batch = None
        if self._done != len(self._calls):
            raise RuntimeError(f"{self._done} of {len(self._calls)} attention layers have run")

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        """Write key and value, attend. Mask and options were read when the layers were recorded."""
        call, batch = self._calls[self._done], self._batch
        if batch is None or module is not call.module:
            raise RuntimeError("attention layers run in another order than at start")
        layer = self._kv[self._done]
        self._done += 1
        layout = call.layout
        kv = KvLayer(_as_laid_out(layer.keys, layout), _as_laid_out(layer.values, layout))
        qkv = _fused(query, key, value, layout).to(self._dtype)
        self._ops.rope_and_write(qkv, layout, self._unrotated, self._unrotated, kv, batch)
        context = self._ops.attention(qkv, layout, kv, batch, call.rule)
        heads = context.view(1, -1, layout.heads, layout.head_dim)
        return heads[..., : call.value_dim].to(query.dtype), None


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: HeadLayout
) -> torch.Tensor:
    """Three [1, heads, tokens, dim] to [tokens, (heads + 2 kv_heads) * head_dim].

    Narrower heads are filled with zeros, which change neither scores nor the kept dimensions.
    """
    parts = []
    for heads in (query, key, value):
        rows = heads[0].transpose(0, 1)  # [tokens, heads, dim]
        missing = layout.head_dim - rows.shape[-1]
        parts.append(nn.functional.pad(rows, (0, missing)) if missing else rows)
    return torch.cat(parts, dim=1).flatten(1)


def _as_laid_out(cache: CachedVectors, layout: HeadLayout) -> CachedVectors:
    """The pool's vectors with the heads of this layer.

    The pool has room for what any layer needs; others use the beginning of the same memory.
    """
    blocks, kv_heads, size, head_dim = cache.codes.shape
    if (kv_heads, head_dim) == (layout.kv_heads, layout.head_dim):
        return cache
    own = (blocks, layout.kv_heads, size)
    scales = cache.scales
    if scales is not None and scales.dim() > 1:
        scales = _beginning(scales, own)
    return CachedVectors(_beginning(cache.codes, (*own, layout.head_dim)), scales)


def _beginning(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return tensor.view(-1)[: math.prod(shape)].view(shape)
