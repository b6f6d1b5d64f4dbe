"""Linear layers split over ranks, and where their weights come from.

A layer is built from `Part`s: which rows of which checkpoint tensors this rank needs, and in which
order, so that fused tensors and shards are the same thing to the loader. The multiplication itself
is a `Matmul` of `kernels/matmul.py`. Called by `models/blocks.py`.
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

    def vector(self, name: str) -> torch.Tensor:
        """A whole tensor."""

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a tensor."""

    def columns(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Columns [start, stop) of a matrix."""


@dataclass(frozen=True)
class RotaryPairs:
    """Heads whose rotated dimensions lie in neighbouring pairs, and should lie in two halves."""

    head_dim: int
    start: int  # first rotated dimension of a head
    rotated: int

    def in_halves(self, rows: torch.Tensor) -> torch.Tensor:
        """[heads * head_dim, ...] with the even rotated rows of each head before the odd ones."""
        before = torch.arange(self.start)
        pairs = torch.arange(self.start, self.start + self.rotated)
        behind = torch.arange(self.start + self.rotated, self.head_dim)
        order = torch.cat([before, pairs[0::2], pairs[1::2], behind]).to(rows.device)
        heads = rows.view(-1, self.head_dim, *rows.shape[1:])
        return heads[:, order].reshape(rows.shape)


@dataclass(frozen=True)
class Part:
    """Output rows of one checkpoint tensor (name without `.weight`), as half-open ranges."""

    name: str
    ranges: tuple[tuple[int, int], ...]
    pairs: RotaryPairs | None = None

    def read(self, source: TensorSource, kind: str, transposed: bool = False) -> torch.Tensor:
        """The rows of its `kind`, "weight" or "bias"; `transposed`: stored as [in, out]."""
        read = source.columns if transposed else source.rows
        pieces = [read(f"{self.name}.{kind}", *one) for one in self.ranges]
        if transposed:
            pieces = [piece.T for piece in pieces]
        rows = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return rows if self.pairs is None else self.pairs.in_halves(rows)


class ColumnLinear:
    """Output features split over ranks: y_local = x @ W_local.T + b_local; no communication."""

    def __init__(
        self,
        source: TensorSource,
        parts: Sequence[Part],
        bias: bool,
        matmul: MatmulFactory,
        transposed: bool = False,
    ) -> None:
        weight = _joined([part.read(source, "weight", transposed) for part in parts])
        offset = _joined([part.read(source, "bias") for part in parts]) if bias else None
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
        transposed: bool = False,
    ) -> None:
        read = source.rows if transposed else source.columns
        weight = read(f"{name}.weight", *inputs)
        # Only one rank may add the bias, or the sum over ranks would hold it `size` times.
        offset = source.rows(f"{name}.bias", 0, outputs) if bias and shard.rank == 0 else None
        self._matmul = matmul(weight.T if transposed else weight, offset)
        self._shard = shard

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in of this rank] to [tokens, out]."""
        return self._shard.all_reduce(self._matmul(x))


def _joined(pieces: list[torch.Tensor]) -> torch.Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
