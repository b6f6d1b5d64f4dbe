"""One decoder layer: how attention, feed-forward, norms and residual stream go together.

Built by `block_loader.py`, called by `decoder.py`. Between layers the residual stream is split into
what has been added up (`residual`, changed in place) and what is still to be added (`x`), so that
the addition and the norm behind it are one operation.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from serving.kernels.attention_batch import AttentionBatch
from serving.kernels.kv_format import KvLayer
from serving.layers.attention import Attention, Rotary
from serving.layers.latent_attention import LatentAttention
from serving.layers.mlp import GatedMlp, PlainMlp
from serving.layers.moe import MoeMlp
from serving.layers.norm import Norm

Mlp = GatedMlp | PlainMlp | MoeMlp


@dataclass(frozen=True)
class LayerStep:
    """What a layer needs of the step."""

    rotary: Rotary | None
    kv: KvLayer
    batch: AttentionBatch


class Block(Protocol):
    """One layer on one rank."""

    @property
    def mlp(self) -> Mlp:
        """Its feed-forward network."""

    def __call__(
        self, x: torch.Tensor | None, residual: torch.Tensor, step: LayerStep
    ) -> torch.Tensor | None:
        """Both [tokens, hidden]; the result is still to be added to `residual`."""


@dataclass(frozen=True)
class SequentialBlock:
    """x += attention(norm(x)); x += mlp(norm(x)); norms on the results where there are any."""

    attention_norm: Norm
    attention: Attention | LatentAttention
    attention_output_norm: Norm
    mlp_norm: Norm
    mlp: Mlp
    mlp_output_norm: Norm
    scale: float

    def __call__(
        self, x: torch.Tensor | None, residual: torch.Tensor, step: LayerStep
    ) -> torch.Tensor:
        """See `Block`."""
        x = self.attention_norm.add(x, residual)
        x = self.attention(x, step.rotary, step.kv, step.batch)
        x = self._scaled(self.attention_output_norm(x))
        x = self.mlp_norm.add(x, residual)
        return self._scaled(self.mlp_output_norm(self.mlp(x)))

    def _scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.scale == 1.0 else x * self.scale


@dataclass(frozen=True)
class ParallelBlock:
    """x += attention(norm(x)) + mlp(norm(x)); `mlp_norm` None: both read the same norm."""

    attention_norm: Norm
    attention: Attention | LatentAttention
    mlp_norm: Norm | None
    mlp: Mlp

    def __call__(
        self, x: torch.Tensor | None, residual: torch.Tensor, step: LayerStep
    ) -> torch.Tensor:
        """See `Block`."""
        x = self.attention_norm.add(x, residual)
        inner = x if self.mlp_norm is None else self.mlp_norm(residual)
        return self.attention(x, step.rotary, step.kv, step.batch) + self.mlp(inner)


@dataclass(frozen=True)
class PostNormBlock:
    """x = norm(x + attention(x)); x = norm(x + mlp(x)); leaves nothing to be added."""

    attention: Attention | LatentAttention
    attention_norm: Norm
    mlp: Mlp
    mlp_norm: Norm

    def __call__(self, x: torch.Tensor | None, residual: torch.Tensor, step: LayerStep) -> None:
        """See `Block`."""
        x = self.attention(residual, step.rotary, step.kv, step.batch)
        residual.copy_(self.attention_norm.add(x, residual))
        residual.copy_(self.mlp_norm.add(self.mlp(residual), residual))
