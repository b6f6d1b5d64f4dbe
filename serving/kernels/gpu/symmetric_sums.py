"""Small sums between the GPUs of one machine, in memory that all of them reach.

Runs in an engine rank, as the `SmallSums` of `layers/parallel.py`. A decode step has two sums a
layer, of few KiB each; there NCCL's time is that of its messages, which reading the other GPUs'
memory saves. The operations are torch's (`torch.ops.symm_mem`, the same in 2.11 and 2.13). All can
be captured in a CUDA graph. Next: `sums_choice.py`, which proves, times and chooses.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.distributed as dist

# Sums of up to so many bytes have a way of their own each; larger ones go over NCCL. 4 MiB are 256
# rows of 8192 numbers in bfloat16.
SIZES = (2**14, 2**16, 2**18, 2**20, 2**22)
UNIT = 16  # bytes that a thread reads at once: sums are a multiple of it, and start at one
DTYPES = (torch.bfloat16, torch.float32)  # which the operations know

# Sums the contiguous [numbers] of a rank in place. First argument: shared memory of the same type
# and length; last: name of the group.
Way = Callable[[torch.Tensor, torch.Tensor, str], object]


class Ranks(Protocol):
    """What a `ShardContext` tells of the group."""

    @property
    def rank(self) -> int:
        """This one's."""

    @property
    def size(self) -> int:
        """How many."""

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group; None with one rank."""

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""

    def all_gather_last(self, tensor: torch.Tensor) -> torch.Tensor:
        """[rows, n] of each rank to [rows, size * n]."""

    def agree_on_least(self, values: list[int]) -> list[int]:
        """The least of each value over the ranks."""


def one_shot(shared: torch.Tensor, tensor: torch.Tensor, group: str) -> object:
    """Every GPU reads all the numbers of all the others: one launch, best for few numbers."""
    return torch.ops.symm_mem.one_shot_all_reduce_copy_out(shared, tensor, "sum", group, tensor)


def two_shot(shared: torch.Tensor, tensor: torch.Tensor, group: str) -> object:
    """Every GPU sums a share of the numbers and reads the other shares; for 2, 4 and 8 ranks."""
    shared.copy_(tensor)
    return torch.ops.symm_mem.two_shot_all_reduce_out(shared, "sum", group, tensor)


def multimem_one_shot(shared: torch.Tensor, tensor: torch.Tensor, group: str) -> object:
    """As `one_shot`, summed by the switch between the GPUs while they read."""
    shared.copy_(tensor)
    return torch.ops.symm_mem.multimem_one_shot_all_reduce_out(shared, "sum", group, tensor)


def multimem_two_shot(shared: torch.Tensor, tensor: torch.Tensor, group: str) -> object:
    """As `two_shot`, summed and sent to all by the switch."""
    shared.copy_(tensor)
    torch.ops.symm_mem.multimem_all_reduce_(shared, "sum", group)
    return tensor.copy_(shared)


WAYS: Mapping[str, Way] = {
    "one-shot": one_shot,
    "two-shot": two_shot,
    "multimem one-shot": multimem_one_shot,
    "multimem two-shot": multimem_two_shot,
}


class SymmetricSums:
    """Sums of up to 4 MiB in bfloat16 or float32, on one stream at a time.

    They are added in the order of the ranks and rounded to their type after each, but for the
    switch, which adds in float32.
    """

    def __init__(self, shared: torch.Tensor, group: str, ways: tuple[Way | None, ...]) -> None:
        """`shared`: as `shared_memory()` makes it; `ways`: one for each of `SIZES`, None: NCCL's.

        All ranks must be given the same ways.
        """
        self._shared = shared
        self._group = group
        self._ways = (*ways, None)  # the last: of what is larger

    def all_reduce(self, tensor: torch.Tensor) -> bool:
        """Sum of a contiguous tensor over the ranks, in place; False: not done."""
        size = tensor.numel() * tensor.element_size()
        way = self._ways[bisect_left(SIZES, size)]
        is_known = tensor.dtype in DTYPES and tensor.device == self._shared.device
        if way is None or not is_known or size == 0 or size % UNIT:
            return False
        flat = tensor.view(-1)
        # Where a tensor starts may differ between ranks, so that it cannot decide the answer.
        is_aligned = tensor.storage_offset() * tensor.element_size() % UNIT == 0
        summed = flat if is_aligned else flat.clone()
        way(self._shared[:size].view(tensor.dtype), summed, self._group)
        if not is_aligned:
            flat.copy_(summed)
        return True


def shared_memory(ranks: Ranks, device: torch.device) -> torch.Tensor:
    """uint8 [largest of `SIZES`] on the device, which the GPUs of all ranks map. Collective.

    Raises `RuntimeError` and what else torch raises where there is no such memory.
    """
    from torch.distributed import _symmetric_memory as symmetric

    if ranks.group is None:
        raise RuntimeError("one rank has nobody to share memory with")
    shared = symmetric.empty(SIZES[-1], dtype=torch.uint8, device=device)
    if symmetric.rendezvous(shared, ranks.group) is None:
        raise RuntimeError("torch has no symmetric memory for this device")
    return shared


def unreachable(ranks: Ranks, device: torch.device) -> str | None:
    """Which GPU's memory this one cannot access; None: it can access all of the group. Collective.

    To be asked before memory is shared: there the other ranks wait for one that fails.
    """
    if device.type != "cuda":
        return None
    for other in ranks.all_gather_last(torch.tensor([[device.index]])).flatten().tolist():
        if other != device.index and not torch.cuda.can_device_access_peer(device, other):
            return f"GPU {device.index} cannot access the memory of GPU {other}"
    return None
