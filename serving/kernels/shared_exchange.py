"""Sums and gathers between the ranks of one machine, through memory that all of them map. CPU only.

Used by `layers/parallel.py` in place of gloo, whose sockets cost a wake-up for each of the dozens
of sums of a step. The operations are in `cpu_ops_exchange.h`. The memory has no name in any file
system, so nothing is left of it however the ranks end.
"""

import mmap
import os

import torch

PIECE_BYTES = 2**20  # sums are cut into pieces of this size, which stay in a core's cache
LINE_BYTES = 64  # head of a rank's area, see the header


class SharedExchange:
    """One rank's view of the shared region."""

    def __init__(self, region: mmap.mmap, rank: int, size: int) -> None:
        """`region` is what `create()` of one rank made. The compiled ops must be loaded."""
        self._region = torch.frombuffer(region, dtype=torch.uint8)
        self._rank = rank
        self._size = size
        self._sum = torch.ops.serving_cpu.exchange_sum_.default
        self._gather = torch.ops.serving_cpu.exchange_gather.default

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sum of a contiguous tensor, in place; added in fp32, in the order of the ranks."""
        self._sum(tensor, self._region, self._rank, self._size)

    def all_gather_last(self, tensor: torch.Tensor) -> torch.Tensor:
        """[rows, n] of each rank to [rows, size * n], in rank order."""
        gathered: torch.Tensor = self._gather(
            tensor.contiguous(), self._region, self._rank, self._size
        )
        return gathered


def create(size: int) -> tuple[str, mmap.mmap]:
    """Zeroed memory for `size` ranks, and the name by which others on this machine may open it.

    The name is good as long as this process lives.
    Raises `OSError` where the system has no anonymous files.
    """
    fd = os.memfd_create("rank-exchange")
    length = size * (LINE_BYTES + 2 * PIECE_BYTES)
    os.ftruncate(fd, length)
    return f"/proc/{os.getpid()}/fd/{fd}", mmap.mmap(fd, length)


def attach(name: str) -> mmap.mmap:
    """The memory that another rank has created. Raises `OSError` if it is on another machine."""
    with open(name, "r+b") as file:
        return mmap.mmap(file.fileno(), 0)
