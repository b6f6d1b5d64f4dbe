"""Ranks as threads, whose `torch.ops.symm_mem` run on the CPU with torch's own schemas.

The checks and the order of the sums are those of torch's `CUDASymmetricMemoryOps.cu`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

GROUP = "a group of threads"
SECONDS = 20.0  # before ranks that wait for a rank that never comes are an error


def alignment(count: int) -> int:
    """Largest of 16, 8, 4, 2, 1 bytes that divides a count."""
    return next(unit for unit in (16, 8, 4, 2, 1) if count % unit == 0)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


class World:
    """All ranks: what they have shared, and which operations each has called."""

    def __init__(self, size: int, multicast: bool = True) -> None:
        self.size, self.multicast = size, multicast
        self.calls: list[list[str]] = [[] for _ in range(size)]
        self.wrong: dict[str, int] = {}  # operation to the rank that gets it wrong
        self.memory: list[torch.Tensor | None] = [None] * size
        self._slots: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=SECONDS)
        self._local = threading.local()

    @property
    def rank(self) -> int:
        return int(self._local.rank)

    def run(self, work: Callable[["ThreadRanks"], Any]) -> list[Any]:
        """What `work` returns on each rank, or the first error."""
        results: list[Any] = [None] * self.size
        errors: list[Exception] = []

        def body(rank: int) -> None:
            self._local.rank = rank
            try:
                results[rank] = work(ThreadRanks(self, rank))
            except Exception as error:
                errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=body, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results

    def everybody(self, value: Any) -> list[Any]:
        """The values of all ranks, to each of them."""
        self._slots[self.rank] = value
        self._barrier.wait()
        values = list(self._slots)
        self._barrier.wait()
        return values

    def empty(self, *size: int, dtype: Any = None, device: Any = None) -> torch.Tensor:
        """As `torch.distributed._symmetric_memory.empty`."""
        self.memory[self.rank] = torch.full(size, 77, dtype=dtype, device=device)
        return self.memory[self.rank]  # type: ignore[return-value]

    def rendezvous(self, tensor: torch.Tensor, group: Any) -> Any:
        """As `torch.distributed._symmetric_memory.rendezvous`."""
        assert group.group_name == GROUP
        mine = self.memory[self.rank]
        self.everybody(None)
        is_shared = mine is not None and tensor.data_ptr() == mine.data_ptr()
        return SimpleNamespace(world_size=self.size) if is_shared else None


class ThreadRanks:
    """One rank's view: what `ShardContext` offers."""

    def __init__(self, world: World, rank: int) -> None:
        self.world, self.rank, self.size = world, rank, world.size
        self.group: Any = SimpleNamespace(group_name=GROUP)

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """In place of NCCL."""
        self.world.calls[self.rank].append("NCCL")
        parts = self.world.everybody(tensor.clone())
        return tensor.copy_(torch.stack(parts).sum(0))

    def all_gather_last(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.world.everybody(tensor), dim=-1)

    def agree_on_least(self, values: list[int]) -> list[int]:
        return [min(column) for column in zip(*self.world.everybody(values), strict=True)]


class _Operations:
    """The kernels of `torch.ops.symm_mem` on one world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def one_shot_all_reduce_copy_out(
        self,
        symm_buffer: torch.Tensor,
        local_input: torch.Tensor,
        reduce_op: str,
        group_name: str,
        out: torch.Tensor,
    ) -> torch.Tensor:
        require(local_input.numel() <= symm_buffer.numel(), "one_shot: local input is larger")
        require(local_input.is_contiguous(), "one_shot: local input must be contiguous")
        require(out.shape == symm_buffer.shape, "one_shot: input/output size mismatch")
        same = self._alignment(symm_buffer) == self._alignment(local_input)
        require(same, "one_shot: local input and symm buffer must have the same alignment")
        symm_buffer.copy_(local_input)
        return out.copy_(self._sum("one-shot", symm_buffer, reduce_op, group_name))

    def two_shot_all_reduce_out(
        self, input: torch.Tensor, reduce_op: str, group_name: str, output: torch.Tensor
    ) -> torch.Tensor:
        size = self._world.size
        require(size in (2, 4, 8), f"Not implemented for world_size={size}")
        require(self._alignment(input) <= self._alignment(output), "two_shot: output alignment")
        require(output.is_contiguous() and output.shape == input.shape, "two_shot: output")
        total = self._sum("two-shot", input, reduce_op, group_name)
        share = -(-len(input) // size)
        own = slice(self._world.rank * share, (self._world.rank + 1) * share)
        input[own] = total[own]  # the kernel leaves its share there
        return output.copy_(total)

    def multimem_one_shot_all_reduce_out(
        self, input: torch.Tensor, reduce_op: str, group_name: str, out: torch.Tensor
    ) -> torch.Tensor:
        require(self._world.multicast, "multimem_one_shot_reduce: requires multicast support.")
        require(out.is_contiguous() and out.shape == input.shape, "multimem_one_shot: output")
        total = self._sum("multimem one-shot", input, reduce_op, group_name, torch.float32)
        return out.copy_(total)

    def multimem_all_reduce_(
        self, input: torch.Tensor, reduce_op: str, group_name: str
    ) -> torch.Tensor:
        require(self._world.multicast, "multimem_all_reduce_: multicast support is required.")
        total = self._sum("multimem two-shot", input, reduce_op, group_name, torch.float32)
        return input.copy_(total)

    def _sum(
        self,
        name: str,
        shared: torch.Tensor,
        reduce_op: str,
        group_name: str,
        inside: torch.dtype | None = None,  # type of the sums; None: that of the numbers
    ) -> torch.Tensor:
        require(reduce_op == "sum", "only sum is supported for now")
        require(group_name == GROUP, f"there is no group '{group_name}'")
        require(shared.is_contiguous(), f"{name}: input must be contiguous")
        require(shared.dtype in (torch.float32, torch.bfloat16), f'"{name}" not implemented')
        mine = self._world.memory[self._world.rank]
        assert mine is not None
        require(
            shared.untyped_storage().data_ptr() == mine.data_ptr(),
            f"{name}: input must be allocated with empty_strided_p2p()",
        )
        self._alignment(shared)
        self._world.calls[self._world.rank].append(name)
        parts = self._world.everybody(shared.clone())
        assert len({len(part) for part in parts}) == 1  # the GPUs would wait for ever
        total = parts[0].to(inside or shared.dtype)
        for part in parts[1:]:
            total = total + part
        if self._world.wrong.get(name) == self._world.rank:
            total = total + total.abs().max() / 8
        return total.to(shared.dtype)

    @staticmethod
    def _alignment(tensor: torch.Tensor) -> int:
        least = max(4, tensor.element_size())
        start = alignment(tensor.storage_offset() * tensor.element_size())
        length = alignment(tensor.numel() * tensor.element_size())
        require(min(start, length) >= least, f"must be at least {least}-byte aligned")
        return min(start, length)


@contextmanager
def operations(world: World) -> Iterator[None]:
    """`torch.ops.symm_mem` on the CPU, for the ranks of this world."""
    kernels = _Operations(world)
    library = torch.library.Library("symm_mem", "IMPL", "CPU")
    for name in (
        "one_shot_all_reduce_copy_out",
        "two_shot_all_reduce_out",
        "multimem_one_shot_all_reduce_out",
        "multimem_all_reduce_",
    ):
        library.impl(name, getattr(kernels, name))
    try:
        yield
    finally:
        library._destroy()
