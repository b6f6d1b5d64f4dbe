"""The tensor-parallel group that a rank belongs to, passed to every layer that is sharded.

Created by `engine/start/ranks.py`; never global. With one rank every operation is the identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist

from serving.kernels.shared_exchange import SharedExchange


class SmallSums(Protocol):
    """Sums that are faster than the group's own, for some tensors."""

    def all_reduce(self, tensor: torch.Tensor) -> bool:
        """Sum of a contiguous tensor over the ranks, in place; False: left to the group.

        The answer is the same on all ranks: it depends on size, type and kind of device.
        """


@dataclass(frozen=True)
class ShardContext:
    """Rank and size of the group; `group` is None with one rank.

    `exchange` replaces the group's own operations where all ranks share one machine's CPU;
    `small_sums` some of its sums where all ranks have GPUs of one machine.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    exchange: SharedExchange | None = None
    small_sums: SmallSums | None = None

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
        elif self.small_sums is None or not self.small_sums.all_reduce(whole):
            dist.all_reduce(whole, group=self.group)
        return tensor if whole is tensor else tensor.copy_(whole)

    def all_gather_last(self, tensor: torch.Tensor) -> torch.Tensor:
        """[rows, n] of each rank to [rows, size * n], in rank order."""
        if self.size == 1:
            return tensor
        if self.exchange is not None:
            return self.exchange.all_gather_last(tensor)
        if tensor.device.type == "cuda":
            return gather_in_one(tensor, self.size, self.group)
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor of rank 0 in place of every other rank's; any type, the same shape on all."""
        if self.size == 1:
            return tensor
        whole = tensor.contiguous()
        dist.broadcast(whole, group=self.group, group_src=0)
        return tensor if whole is tensor else tensor.copy_(whole)

    def agree_on_least(self, values: Sequence[int]) -> list[int]:
        """The least of each value over the ranks: what ranks measured, made the same on all."""
        if self.size == 1:
            return list(values)
        least = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self.group)
        return [int(value) for value in least]

    def all_can(self, own: bool) -> bool:
        """Whether all ranks can do what this one can, or cannot."""
        return bool(self.agree_on_least([own])[0])


def gather_in_one(tensor: torch.Tensor, size: int, group: dist.ProcessGroup | None) -> torch.Tensor:
    """[rows, n] of each of `size` ranks to [rows, size * n]: one launch of NCCL, and one copy."""
    # The name that torch 2.13 gives to `all_gather_into_tensor`, which it calls deprecated.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    rows, width = tensor.shape
    gathered = tensor.new_empty(size * rows, width)
    gather(gathered, tensor.contiguous(), group=group)
    return gathered.view(size, rows, width).transpose(0, 1).reshape(rows, size * width)


SINGLE = ShardContext()
