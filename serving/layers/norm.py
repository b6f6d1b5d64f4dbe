"""Normalisations of hidden states, and the residual addition that goes with them.

Built and called by `models/blocks.py`. The fused forms of `kernels/` serve RMS norms, which most
models use.
"""

from abc import ABC, abstractmethod

import torch

from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import ShardContext


class Norm(ABC):
    """[..., hidden] to the same shape."""

    @abstractmethod
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The norm of x."""

    @abstractmethod
    def add(self, x: torch.Tensor | None, residual: torch.Tensor) -> torch.Tensor:
        """residual += x in place (None adds nothing); the norm of the sum. May overwrite x."""

    def in_place(self, x: torch.Tensor) -> None:
        """The norm of x in the place of x, which may lie inside wider rows."""
        x.copy_(self(x))


class RmsNorm(Norm):
    """x / rms(x) * weight."""

    def __init__(self, weight: torch.Tensor, eps: float, ops: TorchOps) -> None:
        self._weight, self._eps, self._ops = weight, eps, ops

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Norm`."""
        return self._ops.rms_norm(x, self._weight, self._eps)

    def in_place(self, x: torch.Tensor) -> None:
        """See `Norm`."""
        self._ops.rms_norm_(x, self._weight, self._eps)

    def add(self, x: torch.Tensor | None, residual: torch.Tensor) -> torch.Tensor:
        """See `Norm`."""
        if x is None:
            return self(residual)
        return self._ops.add_rms_norm(x, residual, self._weight, self._eps)


class OffsetRmsNorm(Norm):
    """x / rms(x) * (offset + weight), in float32: narrow types would lose what `weight` adds."""

    def __init__(self, weight: torch.Tensor, offset: float, eps: float, ops: TorchOps) -> None:
        self._weight, self._eps, self._ops = weight.float() + offset, eps, ops

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Norm`."""
        return self._ops.wide_rms_norm(x, self._weight, self._eps)

    def add(self, x: torch.Tensor | None, residual: torch.Tensor) -> torch.Tensor:
        """See `Norm`."""
        if x is None:
            return self(residual)
        return self._ops.add_wide_rms_norm(x, residual, self._weight, self._eps)


class ShardedRmsNorm(Norm):
    """An RMS norm over a dimension of which each rank holds a share."""

    def __init__(self, weight: torch.Tensor, eps: float, size: int, shard: ShardContext) -> None:
        """`weight`: of this rank's share; `size`: of the whole dimension."""
        self._weight, self._eps, self._size, self._shard = weight, eps, size, shard

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Norm`."""
        wide = x.float()
        squares = self._shard.all_reduce(wide.square().sum(-1, keepdim=True))
        normed = wide * torch.rsqrt(squares / self._size + self._eps)
        return self._weight * normed.to(x.dtype)

    def add(self, x: torch.Tensor | None, residual: torch.Tensor) -> torch.Tensor:
        """See `Norm`."""
        if x is not None:
            residual += x
        return self(residual)


class LayerNorm(Norm):
    """(x - mean(x)) / deviation(x) * weight + bias; statistics and result in float32, then x's."""

    def __init__(
        self, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, ops: TorchOps
    ) -> None:
        """`weight`: [hidden], or [heads, hidden] where each head has its own; None is all ones."""
        self._weight, self._bias, self._eps, self._ops = weight, bias, eps, ops
        self._by_heads = weight is not None and weight.dim() > 1

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Norm`."""
        if self._weight is None or not self._by_heads:
            return self._ops.layer_norm(x, self._weight, self._bias, self._eps)
        normed = self._ops.layer_norm(x, None, None, self._eps) * self._weight
        return normed if self._bias is None else normed + self._bias

    def add(self, x: torch.Tensor | None, residual: torch.Tensor) -> torch.Tensor:
        """See `Norm`."""
        if x is None or self._by_heads:
            if x is not None:
                residual += x
            return self(residual)
        return self._ops.add_layer_norm(x, residual, self._weight, self._bias, self._eps)


class NoNorm(Norm):
    """Leaves its input as it is."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Norm`."""
        return x

    def add(self, x: torch.Tensor | None, residual: torch.Tensor) -> torch.Tensor:
        """See `Norm`; the result is `residual` itself."""
        if x is not None:
            residual += x
        return residual
