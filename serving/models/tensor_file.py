"""One safetensors file: its header, and ranges of its tensors mapped on demand.

Runs in an engine rank. Comes in: a path. Goes out: `StoredTensor`s by name, whose `read()` returns
a view of the file's pages: a pass over it (packing, copying to a device) is the only copy that is
made, and the pages leave the process's memory with the view. Next: `weights.py`.
"""

import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from serving.errors import StartupError

PHASE = "weights"
LENGTH_BYTES = 8  # little-endian length of the JSON header, at the start of the file
ADVICE_BYTES = 2**20  # the kernel cuts longer requests to read ahead
LONGEST_HEADER = 100_000_000  # bytes, the limit of the format's own library
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16,
    "I16": torch.int16, "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
    "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: what it is and where its bytes are; nothing is read yet."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file

    @property
    def num_bytes(self) -> int:
        """Memory that it takes as it is stored."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, *ranges: tuple[int, int]) -> torch.Tensor:
        """The part within half-open `ranges` of the leading dimensions; the others are whole.

        A view of the file, private to the process: keep a `clone()`, not the view, of what must
        outlive the file.
        """
        rows, inner = ranges[:1], ranges[1:]
        start, stop = rows[0] if rows else (0, self.shape[0] if self.shape else 1)
        row_shape = self.shape[1:]
        row_bytes = math.prod(row_shape) * self.dtype.itemsize
        shape = (stop - start, *row_shape) if self.shape else ()
        if math.prod(shape) == 0:
            return torch.empty(shape, dtype=self.dtype)
        buffer, skipped = self._map(start * row_bytes, (stop - start) * row_bytes, not inner)
        flat = torch.frombuffer(buffer, dtype=self.dtype, count=math.prod(shape), offset=skipped)
        part = flat.view(shape)
        for dim, (first, last) in enumerate(inner, start=1):
            part = part.narrow(dim, first, last - first)
        return part

    def _map(self, start: int, size: int, is_all_read: bool) -> tuple[mmap.mmap, int]:
        """Mapping that holds bytes [start, start + size) of the tensor, and where they begin."""
        begin = self.offset + start
        skipped = begin % mmap.ALLOCATIONGRANULARITY
        with self.path.open("rb") as file:
            if is_all_read:  # large requests to the disk, instead of one for each page fault
                for piece in range(begin, begin + size, ADVICE_BYTES):
                    os.posix_fadvise(file.fileno(), piece, ADVICE_BYTES, os.POSIX_FADV_WILLNEED)
            buffer = mmap.mmap(
                file.fileno(),
                skipped + size,
                flags=mmap.MAP_PRIVATE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,  # torch wants writable memory
                offset=begin - skipped,
            )
        return buffer, skipped


@dataclass(frozen=True)
class TensorFile:
    """The header of a safetensors file."""

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


def open_tensor_file(path: Path) -> TensorFile:
    """Read and verify a header. Raises `StartupError` naming the file and what is wrong with it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            start = LENGTH_BYTES + length
            if size < LENGTH_BYTES or length > LONGEST_HEADER or start > size:
                _refuse(path, f"its header ends beyond its {size} bytes")
            header = json.loads(file.read(length))
    except (ValueError, OSError, RecursionError) as error:
        _refuse(path, str(error))
    if not isinstance(header, dict):
        _refuse(path, "its header is no JSON object")
    metadata = header.pop("__metadata__", None) or {}
    tensors = {name: _stored(path, name, entry, start) for name, entry in header.items()}
    end = max((t.offset + t.num_bytes for t in tensors.values()), default=start)
    if end > size:
        _refuse(path, f"it has {size} of {end} bytes")
    return TensorFile(tensors, metadata)


def _stored(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    """One entry of a header: `{"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}`."""
    try:
        first, last = (int(offset) for offset in entry["data_offsets"])
        shape = tuple(int(size) for size in entry["shape"])
        dtype_name = str(entry["dtype"])
    except (TypeError, KeyError, ValueError):
        _refuse(path, f"tensor {name} has no valid dtype, shape and data_offsets")
    if dtype_name not in DTYPES:
        _refuse(path, f"tensor {name} has the unknown type {dtype_name}")
    stored = StoredTensor(path, DTYPES[dtype_name], shape, start + first)
    if min(first, *shape, 0) < 0 or last - first != stored.num_bytes:
        _refuse(path, f"tensor {name} of shape {shape} does not fill bytes {first} to {last}")
    return stored


def _refuse(path: Path, fault: str) -> NoReturn:
    raise StartupError(
        PHASE,
        f"{path.name} is not a readable safetensors file ({fault})",
        "copy or download the file again; it is truncated or not safetensors",
    )
