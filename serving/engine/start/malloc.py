"""Tells glibc to give freed memory back while weights are loaded.

Runs in an engine rank, around the loading of the model. Packing and joining weights frees as much
as it keeps; glibc would keep aligned blocks of up to 32 MB for reuse, between those that stay, and
find few of them fit (measured: 10 % of the weights). Next: `model_loader.py`.
"""

import contextlib
import ctypes
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
LOADING = 2**20  # bytes from which a block is mapped by itself, and unmapped when it is freed
SERVING = 32 * 2**20  # the size that glibc arrives at by itself


@contextlib.contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Large blocks that are freed inside leave the process at once; nothing without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, LOADING)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, SERVING)
        mallopt(M_TRIM_THRESHOLD, 2 * SERVING)
