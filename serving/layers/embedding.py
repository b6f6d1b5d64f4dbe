"""Token embedding and output head, both split over ranks along the vocabulary.

Used by `models/decoder.py`. Shards are padded to equal width, so that any vocabulary divides.
"""

import torch
import torch.nn.functional as F

from serving.kernels.coded_weight import CodedWeight, Weight
from serving.layers.linear import MatmulFactory, TensorSource
from serving.layers.parallel import ShardContext


def vocabulary_range(vocab_size: int, shard: ShardContext) -> tuple[int, int, int]:
    """(start, stop, padded width) of this rank's rows of the vocabulary."""
    width = -(-vocab_size // shard.size)
    start = min(shard.rank * width, vocab_size)
    return start, min(start + width, vocab_size), width


class Embedding:
    """Vocabulary-parallel lookup: a rank gives zeros for ids that it does not hold."""

    def __init__(
        self, source: TensorSource, name: str, vocab_size: int, shard: ShardContext
    ) -> None:
        self._start, self._stop, _ = vocabulary_range(vocab_size, shard)
        self.weight = source.rows(f"{name}.weight", self._start, self._stop)
        self._shard = shard

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[tokens] to [tokens, hidden]."""
        if self._shard.size == 1:
            return F.embedding(token_ids, self.weight)
        held = (token_ids >= self._start) & (token_ids < self._stop)
        local = torch.where(held, token_ids - self._start, 0)
        hidden = F.embedding(local, self.weight) * held.unsqueeze(-1)
        return self._shard.all_reduce(hidden)


class Head:
    """Vocabulary-parallel projection to logits, gathered so that every rank has them all."""

    def __init__(
        self,
        weight: Weight,
        bias: torch.Tensor | None,
        vocab_size: int,
        shard: ShardContext,
        matmul: MatmulFactory,
    ) -> None:
        """`weight`, `bias`: this rank's rows of the vocabulary, [rows, hidden] and [rows]."""
        _, _, width = vocabulary_range(vocab_size, shard)
        padding = width - (weight.outputs if isinstance(weight, CodedWeight) else weight.shape[0])
        if padding:
            weight = padded(weight, padding)
            bias = None if bias is None else F.pad(bias, (0, padding))
        self._matmul = matmul(weight, bias)
        self._vocab_size = vocab_size
        self._shard = shard

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] to [rows, vocab_size]."""
        return self._shard.all_gather_last(self._matmul(hidden))[:, : self._vocab_size]


def padded(weight: Weight, rows: int) -> Weight:
    """The matrix with so many rows more, which nobody reads."""

    def pad(part: torch.Tensor) -> torch.Tensor:
        return F.pad(part, (0, 0, 0, rows))

    return weight.map_rows(pad) if isinstance(weight, CodedWeight) else pad(weight)
