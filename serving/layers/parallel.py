"""The tensor-parallel group that a rank belongs to, passed to every layer that is sharded.

Created by `engine/ranks.py`; never global. With one rank every operation is the identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from serving.kernels.shared_exchange import SharedExchange


@dataclass(frozen=True)
class ShardContext:
    """Rank and size of the group; `group` is None with one rank.

    `exchange` replaces the group's own operations where all ranks share one machine's CPU.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    exchange: SharedExchange | None = None

    def share(self, total: int, what: str) -> tuple[int, int]:
        """Half-open range of `total` items that belong to this rank.

        Raises `ValueError` naming `what` where the ranks do not divide it.
        """
        if total % self.size:
            raise ValueError(f"{what} ({total}) cannot be divided over {self.size} shards")
        width = total // self.size
        return self.rank * width, (self.rank + 1) * width

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        if self.size == 1:
            return tensor
        whole = tensor.contiguous()  # gloo would sum the gaps of a strided tensor
        if self.exchange is not None:
            self.exchange.all_reduce(whole)
        else:
            dist.all_reduce(whole, group=self.group)
        return tensor if whole is tensor else tensor.copy_(whole)

    def all_gather_last(self, tensor: torch.Tensor) -> torch.Tensor:
        """[rows, n] of each rank to [rows, size * n], in rank order."""
        if self.size == 1:
            return tensor
        if self.exchange is not None:
            return self.exchange.all_gather_last(tensor)
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)

    def agree_on_least(self, values: Sequence[int]) -> list[int]:
        """The least of each value over the ranks: what ranks measured, made the same on all."""
        if self.size == 1:
            return list(values)
        least = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self.group)
        return [int(value) for value in least]


SINGLE = ShardContext()
