"""The header of a GGUF file: metadata, and where each tensor lies. Nothing in it is trusted.

Read in the launcher, in the child that prepares a file, and in every engine rank. Comes in: a
path. Goes out: a `Header`, or a `StartupError` naming the file and its fault. Source of the format:
"GGUF" in the documents of ggml, versions 2 and 3. No torch. Next: `config.py`, `tensors.py`.
"""

import itertools
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serving.models.gguf.cursor import Cursor
from serving.models.gguf.fault import refuse
from serving.models.gguf.tensor_types import OTHER_TYPES, TYPES, TensorType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
MOST_ELEMENTS = 2**48  # of a tensor
LARGEST_ALIGNMENT = 2**16
DEFAULT_ALIGNMENT = 32
SKIPPED = ("tokenizer.",)  # keys whose values only the preparation reads


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header describes it."""

    name: str
    shape: tuple[int, ...]  # outermost first; the file lists the innermost first
    type: TensorType
    offset: int  # bytes from the start of the file

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) // self.type.elements * self.type.size

    @property
    def end(self) -> int:
        """The byte behind the last one."""
        return self.offset + self.size


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    def floats(self, name: str) -> list[float]:
        """The numbers of a small tensor of type F32."""
        info = self.tensors[name]
        if info.type.name != "F32":
            refuse(self.path, f"tensor {name} is {info.type.name} instead of F32")
        with self.path.open("rb") as file:
            file.seek(info.offset)
            return list(struct.unpack(f"<{info.size // 4}f", file.read(info.size)))


def read_header(path: Path, skipped: tuple[str, ...] = SKIPPED) -> Header:
    """Read and verify a header; values of keys that begin with one of `skipped` are passed over."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size < 8:
                refuse(path, "it is too short")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _HeaderReader(path, data, skipped).read()
    except OSError as error:
        refuse(path, str(error))


class _HeaderReader:
    """Goes once through a header; every length is compared with what is left of the file."""

    def __init__(self, path: Path, data: mmap.mmap, skipped: tuple[str, ...]) -> None:
        self._path, self._data, self._skipped = path, data, skipped
        self._cursor = Cursor(path, data)

    def read(self) -> Header:
        """The whole header."""
        if self._cursor.take(4) != MAGIC:
            refuse(self._path, "it does not begin with GGUF")
        version = self._cursor.number("I")
        if version not in VERSIONS:
            big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            refuse(
                self._path,
                "it was written for big-endian machines" if big_endian else f"version {version}",
                f"convert the model again, to GGUF version {VERSIONS[-1]}, little-endian",
            )
        num_tensors, num_keys = self._cursor.count("tensors"), self._cursor.count("keys")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._cursor.name("key")
            if key in metadata:
                refuse(self._path, f"key {key} is there twice")
            kind = self._cursor.number("I")
            metadata[key] = self._cursor.value(kind, key.startswith(self._skipped))
        infos = [self._tensor() for _ in range(num_tensors)]
        return Header(self._path, metadata, self._placed(infos, _alignment(self._path, metadata)))

    def _tensor(self) -> TensorInfo:
        """One entry; its offset still counts from the start of the data."""
        name = self._cursor.name("tensor name")
        dims = self._cursor.number("I")
        if not 1 <= dims <= MOST_DIMENSIONS:
            refuse(self._path, f"tensor {name} has {dims} dimensions")
        shape = tuple(self._cursor.number("Q") for _ in range(dims))[::-1]
        if min(shape) < 1 or math.prod(shape) > MOST_ELEMENTS:
            refuse(self._path, f"tensor {name} has the shape {shape}")
        kind, offset = self._cursor.number("I"), self._cursor.number("Q")
        if kind not in TYPES:
            known = ", ".join(one.name for one in TYPES.values())
            refuse(
                self._path,
                f"tensor {name} has the type {OTHER_TYPES.get(kind, f'number {kind}')}, which is "
                "not supported",
                f"use a file whose tensors are of these types: {known}",
            )
        if shape[-1] % TYPES[kind].elements:
            refuse(
                self._path,
                f"rows of tensor {name} have {shape[-1]} elements, blocks of {TYPES[kind].name} "
                f"{TYPES[kind].elements}",
            )
        return TensorInfo(name, shape, TYPES[kind], offset)

    def _placed(self, infos: list[TensorInfo], alignment: int) -> dict[str, TensorInfo]:
        """Tensors by name, their offsets from the start of the file; data follows the header."""
        start = -(-self._cursor.at // alignment) * alignment
        placed = {}
        for info in infos:
            if info.offset % alignment:
                refuse(self._path, f"tensor {info.name} is not aligned to {alignment} bytes")
            if info.name in placed:
                refuse(self._path, f"tensor {info.name} is there twice")
            one = replace(info, offset=start + info.offset)
            if one.end > len(self._data):
                ends = f"ends at byte {one.end}, the file at {len(self._data)}"
                refuse(self._path, f"tensor {one.name} {ends}")
            placed[one.name] = one
        ordered = sorted(placed.values(), key=lambda info: info.offset)
        for one, following in itertools.pairwise(ordered):
            if one.end > following.offset:
                refuse(self._path, f"tensors {one.name} and {following.name} overlap")
        return placed


def _alignment(path: Path, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= LARGEST_ALIGNMENT:
        refuse(path, f"an alignment of {alignment} bytes")
    if alignment.bit_count() != 1:
        refuse(path, f"an alignment of {alignment} bytes, which is no power of two")
    return alignment
