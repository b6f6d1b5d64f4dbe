"""Sizes the KV and state pools from measured memory, makes their tensors, prints the ledger.

Runs in every rank. Called by `limits.py` and `warm_up.py` after the weights are loaded. The pool is
touched once at start: memory that the server has declared ready is really there. Next:
`pool_memory.py`.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from serving.engine.start.pool_memory import PoolMemory
from serving.errors import StartupError
from serving.kernels.kv_format import CachedVectors, KvLayer, format_of

log = logging.getLogger(__name__)
GIB = 1024**3
CPU_SHARE = 0.5  # of the free memory: the rest belongs to the page cache and other processes
DEVICE_SHARE = 0.9


class PoolShape(Protocol):
    """What a model keeps of its sequences on this rank: by blocks of tokens, or by rows."""

    @property
    def layers(self) -> int:
        """Layers that keep something."""

    @property
    def block_size(self) -> int:
        """Tokens of one block."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers; 0 where nothing grows with the tokens."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one sequence over all layers, beside its blocks."""

    def allocate_layer(self, layer: int, num_blocks: int, rows: int, memory: PoolMemory) -> Any:
        """Zeroed pool of layer number `layer`, as the model's `forward` takes it."""


@dataclass(frozen=True)
class KvShape:
    """What one block of the pool holds on this rank."""

    layers: int
    kv_heads: int
    block_size: int
    head_dim: int
    dtype: torch.dtype  # of what is stored: the model's, or that of a coded format
    value_dim: int | None = None  # where values are not as wide as keys; 0: there are none
    # Of the keys and the values of each layer, where the format takes one for a layer; none: 1.
    scales: tuple[tuple[float, float], ...] = ()

    @property
    def dims(self) -> tuple[int, int]:
        """Size of a cached key and of a cached value."""
        return self.head_dim, self.head_dim if self.value_dim is None else self.value_dim

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers: keys, values and the scales of each."""
        vector_bytes = sum(dim * self.dtype.itemsize for dim in self.dims)
        if format_of(self.dtype).own_scales:
            vector_bytes += sum(torch.float32.itemsize for dim in self.dims if dim)
        return self.layers * self.kv_heads * self.block_size * vector_bytes

    @property
    def row_bytes(self) -> int:
        """A sequence has nothing but its blocks."""
        return 0

    def allocate_layer(self, layer: int, num_blocks: int, rows: int, memory: PoolMemory) -> KvLayer:
        """Zeroed keys and values of one layer."""
        scales = self.scales[layer] if self.scales else (1.0, 1.0)
        keys, values = (
            self._allocate(num_blocks, dim, scale, memory)
            for dim, scale in zip(self.dims, scales, strict=True)
        )
        return KvLayer(keys, values)

    def _allocate(
        self, num_blocks: int, dim: int, scale: float, memory: PoolMemory
    ) -> CachedVectors:
        """Zeroed vectors of one size."""
        kv_format, size = format_of(self.dtype), (num_blocks, self.kv_heads, self.block_size)
        codes = memory.zeros((*size, dim), self.dtype)
        if not kv_format.limit:
            return CachedVectors(codes)
        if kv_format.own_scales:
            return CachedVectors(codes, memory.zeros(size if dim else (0,), torch.float32))
        return CachedVectors(codes, torch.full((1,), scale, device=codes.device))


def allocate(
    shape: PoolShape,
    num_blocks: int,
    device: torch.device,
    rows: int = 0,
    in_background: bool = False,
) -> list[Any]:
    """Zeroed pool of `num_blocks` blocks and `rows` rows: one entry per layer.

    `rows` counts only where a shape has `row_bytes`. `in_background`: the pool may be used while
    its memory is still being taken. Raises what a lack of memory raises (`out_of_memory.py`).
    """
    memory = PoolMemory(device)
    pool = [shape.allocate_layer(i, num_blocks, rows, memory) for i in range(shape.layers)]
    memory.populate(in_background)
    return pool


def affordable_rows(shape: PoolShape, free_bytes: int, fraction: float, wanted: int) -> int:
    """Sequences whose rows fit into the share of free memory, at most `wanted`.

    Raises `StartupError` if there is no room for one.
    """
    if not shape.row_bytes:
        return wanted
    fitting = int(free_bytes * fraction) // shape.row_bytes
    if not fitting:
        raise StartupError(
            "kv cache",
            f"not enough memory for the states of one sequence: {shape.row_bytes} bytes of "
            f"{int(free_bytes * fraction)}",
            "give the process more memory, or take a smaller model",
        )
    return min(fitting, wanted)


def default_pool_tokens(
    shape: PoolShape, device: torch.device, weight_bytes: int, rows: int, longest: int
) -> int:
    """Tokens that a pool should hold if nobody says: every row at full length.

    On CPU no more than the size of the weights (1 GiB at least, and one longest sequence): the
    pool is touched at start, which must not take longer than loading the model does.
    """
    if device.type != "cpu" or not shape.block_bytes:
        return rows * longest
    affordable = max(weight_bytes, GIB) // shape.block_bytes * shape.block_size
    return min(rows * longest, max(affordable, longest))


def pool_blocks(shape: PoolShape, free_bytes: int, fraction: float, wanted_tokens: int) -> int:
    """Blocks that fit into the share of free memory, at most what `wanted_tokens` need."""
    wanted = -(-wanted_tokens // shape.block_size)
    if not shape.block_bytes:
        return wanted
    return min(int(free_bytes * fraction) // shape.block_bytes, wanted)


def device_fraction(device: torch.device, cuda_memory_fraction: float) -> float:
    """Share of the free memory that the pool may take."""
    return CPU_SHARE if device.type == "cpu" else DEVICE_SHARE * cuda_memory_fraction


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated now on the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    available = _meminfo("MemAvailable")
    limit = _cgroup_headroom()
    return available if limit is None else min(available, limit)


def resident_memory() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def log_ledger(entries: dict[str, int]) -> None:
    """One line with every part of the memory, in GiB."""
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in entries.items())
    log.info("memory ledger (GiB): %s", parts)


def _meminfo(key: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise StartupError("kv cache", f"/proc/meminfo has no {key}", "run on Linux with /proc mounted")


def _cgroup_headroom(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes left below the container's memory limit, or None where there is no limit.

    File pages that nobody has used for long (weights that were read) count as free: they give way.
    """
    for limit_file, usage_file, stat_file, idle_files in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        if not (root / limit_file).exists() or not (root / usage_file).exists():
            continue
        limit = (root / limit_file).read_text().strip()
        if limit.isdigit():
            used = int((root / usage_file).read_text())
            return max(int(limit) - used + _stat(root / stat_file, idle_files), 0)
    return None


def _stat(path: Path, key: str) -> int:
    """The value of one line `key value` of a statistics file; 0 if there is none."""
    if not path.exists():
        return 0
    values = dict(line.split() for line in path.read_text().splitlines())
    return int(values.get(key, 0))
