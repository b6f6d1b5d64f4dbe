"""Linear layers split over ranks, and where their weights come from.

A layer is built from `Part`s: which rows of which checkpoint tensors this rank needs, and in which
order, so that fused tensors and shards are the same thing to the loader. Weights are plain tensors
or quantized ones (`kernels/coded_weight.py`); the multiplication itself is a `Matmul` of
`kernels/matmul.py`. Called by `models/block_loader.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from serving.kernels.coded_weight import CodedWeight, Weight, can_join, join
from serving.kernels.matmul import Matmul
from serving.layers.parallel import ShardContext

MatmulFactory = Callable[[Weight, torch.Tensor | None], Matmul]


class TensorSource(Protocol):
    """Where weights are read from: slices only, converted to the model's dtype."""

    def vector(self, name: str) -> torch.Tensor:
        """A whole tensor."""

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a tensor."""

    def columns(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Columns [start, stop) of a matrix."""

    def matrix_rows(self, module: str, start: int, stop: int, transposed: bool = False) -> Weight:
        """Output rows [start, stop) of a module's matrix; `transposed`: stored as [in, out]."""

    def matrix_columns(
        self, module: str, start: int, stop: int, transposed: bool = False
    ) -> Weight:
        """The same for its inputs."""

    def quantized(self, module: str, weight: Weight) -> Weight:
        """The matrix as it is kept: quantized now, where plain ones are to be."""


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

    def weight(self, source: TensorSource, transposed: bool = False) -> Weight:
        """The rows of its matrix; `transposed`: stored as [in, out]."""
        rows = join([source.matrix_rows(self.name, *one, transposed) for one in self.ranges])
        return source.quantized(self.name, self._in_halves(rows))

    def bias(self, source: TensorSource) -> torch.Tensor:
        """The rows of its bias."""
        rows = torch.cat([source.rows(f"{self.name}.bias", *one) for one in self.ranges])
        return rows if self.pairs is None else self.pairs.in_halves(rows)

    def _in_halves(self, rows: Weight) -> Weight:
        if self.pairs is None:
            return rows
        if isinstance(rows, CodedWeight):
            return rows.map_rows(self.pairs.in_halves)
        return self.pairs.in_halves(rows)


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
        weights = [part.weight(source, transposed) for part in parts]
        offsets = [part.bias(source) for part in parts] if bias else [None] * len(parts)
        self._matmul = stacked_matmul(weights, offsets, matmul)

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
        weight = source.quantized(name, source.matrix_columns(name, *inputs, transposed))
        # Only one rank may add the bias, or the sum over ranks would hold it `size` times.
        offset = source.rows(f"{name}.bias", 0, outputs) if bias and shard.rank == 0 else None
        self._matmul = matmul(weight, offset)
        self._shard = shard

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in of this rank] to [tokens, out]."""
        return self._shard.all_reduce(self._matmul(x))


def stacked_matmul(
    weights: Sequence[Weight], biases: Sequence[torch.Tensor | None], matmul: MatmulFactory
) -> Matmul:
    """One multiplication with matrices of the same inputs, one upon the other.

    Matrices that cannot be one (some of a layer quantized, others not; groups of other inputs) are
    multiplied with one after the other.
    """
    if can_join(weights):
        given = [one for one in biases if one is not None]
        return matmul(join(weights), torch.cat(given) if given else None)
    return SeparateMatmuls([matmul(*pair) for pair in zip(weights, biases, strict=True)])


@dataclass(frozen=True)
class SeparateMatmuls:
    """Several multiplications of the same rows, their results beside each other."""

    matmuls: Sequence[Matmul]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, all outputs]."""
        return torch.cat([matmul(x) for matmul in self.matmuls], dim=-1)
