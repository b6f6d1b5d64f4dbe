"""Checkpoints that the bitsandbytes library quantized: 8-bit integers, or 4-bit floats in blocks.

Runs in an engine rank, while weights are read; the library itself is not needed. 8 bits: `weight`
int8 [out, in], `SCB` float32 [out]; w = code * SCB / 127. 4 bits: `weight` uint8 [out * in / 2, 1],
row after row, the first code in the high bits; `weight.absmax` has the scale of each block of them,
or, quantized again, codes of scales. Source: what `QuantState.as_dict()` of the library stores.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch

from serving.kernels.codebooks import FP4, INT8, NF4, Codebook
from serving.kernels.coded_weight import CodedWeight
from serving.quant.online import from_blocks
from serving.quant.scaled import check_cuts, scaled_weight
from serving.quant.scheme import Part, Shapes, TensorIndex, check_dtype, check_finite, refuse

BOOKS = {"nf4": NF4, "fp4": FP4}
BOOK_TOLERANCE = 1e-4  # of stored numbers, which the library computes in several ways


@dataclass(frozen=True)
class Int8Scheme:
    """Activations stay as they are: nearer to what was trained than the library's own rounding."""

    label: str = "bitsandbytes"

    def holds(self, module: str, tensors: TensorIndex) -> bool:
        """See `Scheme`."""
        return f"{module}.SCB" in tensors

    def shapes(self, module: str, outputs: int, inputs: int, tensors: TensorIndex) -> Shapes:
        """See `Scheme`."""
        check_dtype(tensors, f"{module}.weight", torch.int8)
        return {f"{module}.weight": (outputs, inputs), f"{module}.SCB": (outputs,)}

    def read(self, module: str, part: Part, tensors: TensorIndex) -> CodedWeight:
        """See `Scheme`."""
        codes = tensors.slice(f"{module}.weight").read(*part.ranges).contiguous()
        scales = tensors.slice(f"{module}.SCB").read(part.rows).float().unsqueeze(-1) / 127
        check_finite(f"{module}.SCB", scales)
        all_one = torch.zeros(codes.shape[1], dtype=torch.int64)  # the group of every input
        return scaled_weight(module, INT8, codes.view(torch.uint8), scales, all_one)


@dataclass(frozen=True)
class FloatScheme:
    """`kind`: nf4 or fp4."""

    kind: str

    @property
    def label(self) -> str:
        """See `Scheme`."""
        return f"bitsandbytes-{self.kind}"

    def holds(self, module: str, tensors: TensorIndex) -> bool:
        """See `Scheme`."""
        stem = f"{module}.weight"
        return f"{stem}.absmax" in tensors or self._state_name(stem) in tensors

    def shapes(self, module: str, outputs: int, inputs: int, tensors: TensorIndex) -> Shapes:
        """See `Scheme`."""
        stem = f"{module}.weight"
        check_dtype(tensors, stem, torch.uint8)
        state = self._state(stem, tensors)
        blocks = -(-outputs * inputs // int(state["blocksize"]))
        found: Shapes = {
            stem: (-(-outputs * inputs // 2), 1),
            f"{stem}.absmax": (blocks,),
            f"{stem}.quant_map": (2**4,),
            self._state_name(stem): tensors.slice(self._state_name(stem)).shape,
        }
        if f"{stem}.nested_absmax" in tensors:
            outer = -(-blocks // int(state["nested_blocksize"]))
            found |= {f"{stem}.nested_absmax": (outer,), f"{stem}.nested_quant_map": (256,)}
        self._check_book(f"{stem}.quant_map", tensors)
        return found

    def read(self, module: str, part: Part, tensors: TensorIndex) -> CodedWeight:
        """See `Scheme`. Reads whole rows: the blocks run on from row to row."""
        stem = f"{module}.weight"
        check_cuts(stem, part)
        state = self._state(stem, tensors)
        block, (start, stop) = int(state["blocksize"]), part.rows
        first, last = start * part.inputs, stop * part.inputs
        packed = tensors.slice(stem).read((first // 2, last // 2)).flatten()
        begin = first // block
        scales = _block_scales(stem, (begin, -(-last // block)), tensors, state)
        check_finite(f"{stem}.absmax", scales)
        codes, scales = from_blocks(
            packed, scales, stop - start, part.inputs, block, first - begin * block
        )
        own = slice(*part.columns)
        group_of = torch.arange(part.inputs) // (part.inputs // scales.shape[1])
        return scaled_weight(module, self._book, codes[:, own], scales, group_of[own])

    @property
    def _book(self) -> Codebook:
        return BOOKS[self.kind]

    def _state_name(self, stem: str) -> str:
        return f"{stem}.quant_state.bitsandbytes__{self.kind}"

    def _state(self, stem: str, tensors: TensorIndex) -> dict[str, Any]:
        """Sizes of blocks and the like: JSON, byte by byte."""
        name = self._state_name(stem)
        if name not in tensors:
            refuse(f"tensor {name} is missing", "use a complete checkpoint that matches its config")
        state: dict[str, Any] = json.loads(bytes(tensors.slice(name).read().tolist()))
        return state

    def _check_book(self, name: str, tensors: TensorIndex) -> None:
        if name not in tensors:
            return  # which is refused with all that are missing
        found = tensors.slice(name).read().float()
        expected = torch.tensor(self._book.values)
        if found.shape != expected.shape or not torch.allclose(found, expected, 0, BOOK_TOLERANCE):
            refuse(
                f"tensor {name} gives other numbers for its codes than {self.kind} has",
                "use a checkpoint of an unmodified bitsandbytes",
            )


def _block_scales(
    stem: str, blocks: tuple[int, int], tensors: TensorIndex, state: dict[str, Any]
) -> torch.Tensor:
    """float32, one for each block of the half-open range."""
    stored = tensors.slice(f"{stem}.absmax").read(blocks)
    if f"{stem}.nested_absmax" not in tensors:
        return stored.float()
    book = tensors.slice(f"{stem}.nested_quant_map").read().float()
    outer = tensors.slice(f"{stem}.nested_absmax").read().float()
    own = outer[torch.arange(*blocks) // int(state["nested_blocksize"])]
    return book[stored.int()] * own + float(state["nested_offset"])
