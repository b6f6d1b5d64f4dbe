"""Linear layers split over ranks, and where their weights come from.

A layer is built from `Slice`s: which rows or columns of which checkpoint tensors this rank needs,
so that fused layers (query-key-value, gate-up) and shards are the same thing to the loader. The
multiplication itself is a `Matmul` of `kernels/matmul.py`. Called by `models/decoder.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from serving.kernels.matmul import Matmul
from serving.layers.parallel import ShardContext

MatmulFactory = Callable[[torch.Tensor, torch.Tensor | None], Matmul]


class TensorSource(Protocol):
    """Where weights are read from: slices only, converted to the model's dtype."""

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a tensor."""

    def columns(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Columns [start, stop) of a matrix."""


@dataclass(frozen=True)
class Slice:
    """Range of output rows of one checkpoint tensor (name without `.weight`)."""

    name: str
    start: int
    stop: int


class ColumnLinear:
    """Output features split over ranks: y_local = x @ W_local.T + b_local; no communication."""

    def __init__(
        self, source: TensorSource, parts: Sequence[Slice], bias: bool, matmul: MatmulFactory
    ) -> None:
        weight = torch.cat([source.rows(f"{p.name}.weight", p.start, p.stop) for p in parts])
        offset = (
            torch.cat([source.rows(f"{p.name}.bias", p.start, p.stop) for p in parts])
            if bias
            else None
        )
        self._matmul = matmul(weight, offset)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, out of this rank]."""
        return self._matmul(x)


class RowLinear:
    """Input features split over ranks: y = sum over ranks of x_local @ W_local.T, plus b."""

    def __init__(
        self,
        source: TensorSource,
        name: str,
        inputs: tuple[int, int],
        outputs: int,
        bias: bool,
        shard: ShardContext,
        matmul: MatmulFactory,
    ) -> None:
        weight = source.columns(f"{name}.weight", *inputs)
        # Only one rank may add the bias, or the sum over ranks would hold it `size` times.
        offset = source.rows(f"{name}.bias", 0, outputs) if bias and shard.rank == 0 else None
        self._matmul = matmul(weight, offset)
        self._shard = shard

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in of this rank] to [tokens, out]."""
        return self._shard.all_reduce(self._matmul(x))
