"""The tensor-parallel group that a rank belongs to, passed to every layer that is sharded.

Created by `engine/process.py`; never global. With one rank every operation is the identity.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class ShardContext:
    """Rank and size of the group; `group` is None with one rank."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

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
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def all_gather_last(self, tensor: torch.Tensor) -> torch.Tensor:
        """[rows, n] of each rank to [rows, size * n], in rank order."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)


SINGLE = ShardContext()
