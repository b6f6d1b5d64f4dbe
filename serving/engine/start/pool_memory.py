"""Zeroed memory of a pool, and the moment at which its pages become real.

Runs in an engine rank, at start, for `kv_cache.py`. On CPU a pool is mapped: the kernel gives
zeroed pages, of 2 MiB where it can, when they are first written. That costs up to a second for each
GiB, so it is done in advance: by a thread beside the first steps where the memory is known to be
there. Next: `kv_cache.py`.
"""

import contextlib
import ctypes
import errno
import logging
import math
import mmap
import os
import threading

import torch

log = logging.getLogger(__name__)
MADV_POPULATE_WRITE = 23  # <linux/mman.h>, since Linux 5.14: faults pages in, keeps what they hold
LOWEST_PRIORITY = 19  # steps come first
PIECE = 32 * 2**20  # bytes populated at once: other threads must map memory in between


class PoolMemory:
    """Tensors of one pool on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._mapped: list[torch.Tensor] = []

    def zeros(self, size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A zeroed tensor, on CPU without pages yet. Raises what a lack of memory raises."""
        num_bytes = math.prod(size) * dtype.itemsize
        if self._device.type != "cpu" or not num_bytes:
            return torch.zeros(size, dtype=dtype, device=self._device)
        mapping = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
        tensor = torch.frombuffer(mapping, dtype=dtype)
        self._mapped.append(tensor)
        return tensor.view(size)

    def populate(self, in_background: bool = False) -> None:
        """Make all pages real, `in_background` while the tensors are already in use.

        Raises `MemoryError` if there are not enough. Older kernels cannot do it beside writers:
        then it is done before this returns.
        """
        if not self._mapped:
            return
        if not _can_populate(self._mapped[0]):
            for tensor in self._mapped:
                tensor.zero_()
        elif in_background:
            threading.Thread(target=self._populate_quietly, name="populate", daemon=True).start()
        else:
            self._populate()

    def _populate(self) -> None:
        for tensor in self._mapped:
            for start in range(0, tensor.nbytes, PIECE):
                error = _advise(tensor, start, min(PIECE, tensor.nbytes - start))
                if error:
                    raise MemoryError(f"no pages for a pool's memory: {os.strerror(error)}")

    def _populate_quietly(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)  # this thread's
        try:
            self._populate()
        except MemoryError as error:
            log.warning("%s; the rest is taken when it is needed", error)


def _can_populate(tensor: torch.Tensor) -> bool:
    return _advise(tensor, 0, 1) != errno.EINVAL


def _advise(tensor: torch.Tensor, start: int, num_bytes: int) -> int:
    """Populate some bytes of a mapped tensor; 0 or an error number. Other threads may run."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(tensor.data_ptr() + start)
    if libc.madvise(address, ctypes.c_size_t(num_bytes), MADV_POPULATE_WRITE):
        return ctypes.get_errno()
    return 0
