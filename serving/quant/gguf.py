"""GGUF files: matrices of blocks, each type a packing of codes, scales and offsets.

Runs in an engine rank, while weights are read. Comes in: a module's name and the rows and columns
that the rank needs. Goes out: a `CodedWeight`. Names are those of the file. Next: `gguf_blocks.py`.
"""

from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch

from serving.kernels.coded_weight import CodedWeight
from serving.quant.gguf_blocks import BlockType
from serving.quant.scheme import Part, Range, Shapes, TensorIndex, check_finite, refuse


@runtime_checkable
class BlockStored(Protocol):
    """A matrix that a file holds in blocks."""

    @property
    def block_type(self) -> BlockType:
        """Of all its blocks."""

    def blocks(self, rows: Range) -> torch.Tensor:
        """The bytes of whole rows, uint8 [rows, bytes of a row]."""


class GgufScheme:
    """Matrices in blocks; others of the same file are plain."""

    label = "gguf"

    def holds(self, module: str, tensors: TensorIndex) -> bool:
        """See `Scheme`."""
        name = f"{module}.weight"
        return name in tensors and isinstance(tensors.slice(name), BlockStored)

    def shapes(self, module: str, outputs: int, inputs: int, tensors: TensorIndex) -> Shapes:
        """See `Scheme`."""
        return {f"{module}.weight": (outputs, inputs)}

    def read(self, module: str, part: Part, tensors: TensorIndex) -> CodedWeight:
        """See `Scheme`. Columns can be cut where a group begins."""
        name = f"{module}.weight"
        stored = tensors.slice(name)
        assert isinstance(stored, BlockStored)
        kind, (start, stop) = stored.block_type, part.columns
        if start % kind.group or stop % kind.group:
            _refuse_columns(name, kind, part)
        first, last = start // kind.elements, -(-stop // kind.elements)
        rows = stored.blocks(part.rows)[:, first * kind.size : last * kind.size]
        weight = kind.decode(name, rows)
        for values in (weight.scales, weight.offsets):
            if values is not None:
                check_finite(name, values)
        begin = first * kind.elements
        return _columns(weight, start - begin, stop - begin)


def _columns(weight: CodedWeight, start: int, stop: int) -> CodedWeight:
    """Columns [start, stop), whole groups, of a matrix."""
    if (start, stop) == (0, weight.columns):
        return weight
    per_byte, group = 8 // weight.book.bits, weight.group_size
    groups = slice(start // group, stop // group)
    return replace(
        weight,
        codes=weight.codes[:, start // per_byte : stop // per_byte].contiguous(),
        scales=weight.scales[:, groups].contiguous(),
        offsets=None if weight.offsets is None else weight.offsets[:, groups].contiguous(),
        inputs=stop - start,
    )


def _refuse_columns(name: str, kind: BlockType, part: Part) -> None:
    """Name the counts of ranks whose equal shares are whole groups."""
    groups, rest = divmod(part.inputs, kind.group)
    counts = [n for n in range(1, groups + 1) if groups % n == 0] if not rest else [1]
    refuse(
        f"tensor {name} ({kind.name}) cannot be cut at columns {part.columns[0]} and "
        f"{part.columns[1]}: {kind.group} neighbours of its {part.inputs} columns share a scale",
        f"use one of these for --num-shard: {', '.join(map(str, counts))}",
    )
