"""The tensors of a GGUF model, under the file's own names, as the loader reads them.

Runs in an engine rank, called by `models/weights.py`. Comes in: the files of one model. Goes out: a
`TensorFile`; tensors in blocks are plain ones that are unpacked when they are read, unless the
scheme of `quant/gguf.py` takes their blocks. The experts of a layer, which the file keeps in one
tensor, are tensors of their own here. Next: `architectures.py` says which part of a model each is.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from serving.models.gguf.architectures import ARCHITECTURES, architecture_of
from serving.models.gguf.fault import refuse
from serving.models.gguf.file import Header, TensorInfo, read_header
from serving.models.tensor_file import StoredTensor, TensorFile
from serving.quant.gguf_blocks import BLOCK_TYPES, BlockType
from serving.quant.scheme import Range

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
EXPERTS = "_exps.weight"  # ends the names of [experts, out, in]
ROW = "ffn_gate_inp_shexp.weight"  # [1, in], whose 1 some files leave out


@dataclass(frozen=True)
class BlockTensor(StoredTensor):
    """A matrix in blocks: reads as the float32 that it stands for."""

    block_type: BlockType

    @property
    def num_bytes(self) -> int:
        """Memory that it takes as codes, with a scale and an offset of 4 bytes for each group."""
        kind = self.block_type
        return int(math.prod(self.shape) * (kind.book.bits / 8 + 8 / kind.group))

    def read(self, *ranges: Range) -> torch.Tensor:
        """See `StoredTensor`; any range of columns, as whole rows are unpacked."""
        rows = ranges[0] if ranges else (0, self.shape[0])
        matrix = self.block_type.decode(self.path.name, self.blocks(rows)).dequantize()
        for first, last in ranges[1:]:
            matrix = matrix[:, first:last]
        return matrix

    def blocks(self, rows: Range) -> torch.Tensor:
        """The bytes of whole rows, uint8 [rows, bytes of a row]."""
        width = self.shape[1] // self.block_type.elements * self.block_type.size
        stored = StoredTensor(self.path, torch.uint8, (self.shape[0], width), self.offset)
        return stored.read(rows)


class ShiftedTensor(StoredTensor):
    """A norm's weight, of which the file holds 1 more than the checkpoint that it was made from."""

    def read(self, *ranges: Range) -> torch.Tensor:
        """See `StoredTensor`."""
        return super().read(*ranges) - 1


def open_gguf(paths: Sequence[Path]) -> TensorFile:
    """The tensors of the files of one model; the first one's metadata says what it is.

    Raises `StartupError` for a header that is damaged or of an architecture without a mapping.
    """
    headers = [read_header(path) for path in paths]
    shifted = ARCHITECTURES[architecture_of(headers[0])].shifted_norms
    tensors: dict[str, StoredTensor] = {}
    for header in headers:
        for info in header.tensors.values():
            for name, stored in _stored(header, info):
                if name in tensors:
                    refuse(header.path, f"tensor {name} is in {tensors[name].path.name} too")
                is_shifted = shifted and name.endswith("norm.weight")
                tensors[name] = _shifted(stored) if is_shifted else stored
    return TensorFile(tensors, {})


def _stored(header: Header, info: TensorInfo) -> Iterator[tuple[str, StoredTensor]]:
    """Names and tensors: one, or one for each expert."""
    if info.name.endswith(ROW) and len(info.shape) == 1:
        info = replace(info, shape=(1, *info.shape))
    if not info.name.endswith(EXPERTS):
        yield info.name, _tensor(header, info)
        return
    if len(info.shape) != 3:
        refuse(header.path, f"tensor {info.name} has the shape {info.shape}")
    size = info.size // info.shape[0]
    stem = info.name.removesuffix(".weight")
    for e in range(info.shape[0]):
        one = replace(info, shape=info.shape[1:], offset=info.offset + e * size)
        yield f"{stem}.{e}.weight", _tensor(header, one)


def _tensor(header: Header, info: TensorInfo) -> StoredTensor:
    kind = info.type.name
    if kind in PLAIN:
        return StoredTensor(header.path, PLAIN[kind], info.shape, info.offset)
    if len(info.shape) != 2:
        refuse(header.path, f"tensor {info.name} of type {kind} has the shape {info.shape}")
    return BlockTensor(header.path, torch.float32, info.shape, info.offset, BLOCK_TYPES[kind])


def _shifted(stored: StoredTensor) -> StoredTensor:
    return ShiftedTensor(stored.path, stored.dtype, stored.shape, stored.offset)
