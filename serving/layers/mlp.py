"""Feed-forward networks of one layer, their intermediate dimension split over ranks."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from serving.kernels.torch_ops import ACTIVATIONS, TorchOps
from serving.layers.linear import ColumnLinear, RowLinear


@dataclass(frozen=True)
class GatedMlp:
    """down(activation(gate(x)) * up(x)), gate and up fused into one matmul."""

    gate_up: ColumnLinear
    down: RowLinear
    activation: str
    ops: TorchOps
    is_capturable: ClassVar[bool] = True  # see `CausalModel`

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] to [tokens, hidden]."""
        return self.down(self.ops.gated(self.gate_up(x), self.activation))


@dataclass(frozen=True)
class PlainMlp:
    """down(activation(up(x)))."""

    up: ColumnLinear
    down: RowLinear
    activation: str
    is_capturable: ClassVar[bool] = True

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] to [tokens, hidden]."""
        return self.down(ACTIVATIONS[self.activation](self.up(x)))
