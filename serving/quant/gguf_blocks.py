"""The block types of GGUF files, brought into the form of `kernels/coded_weight.py`.

Read by `gguf.py`, and by `models/gguf/tensors.py` where a tensor is wanted in plain form. Comes in:
the bytes of whole rows. Goes out: codes, scales and offsets in the order of the row's elements.
Source of the layouts: ggml-common.h and ggml-quants.c of ggml; d and m are float16, and the two
halves of a byte are elements half a block (of 32) apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from serving.kernels.codebooks import INT4, INT8, Codebook
from serving.kernels.coded_weight import CodedWeight, pack_nibbles

CHUNK = 2**24  # elements that are unpacked at once: it takes several bytes for each
SUPER = 256  # elements of a super-block, the K types


@dataclass(frozen=True)
class Blocks:
    """n blocks, unpacked: codes uint8 [n, elements], one a byte; the others float32 [n, groups]."""

    codes: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None = None


@dataclass(frozen=True)
class BlockType:
    """How `elements` neighbours of a row are stored in `size` bytes."""

    name: str
    elements: int
    size: int
    group: int  # elements that share a scale
    book: Codebook
    unpack: Callable[[torch.Tensor], Blocks]  # of uint8 [n, size]

    def decode(self, name: str, rows: torch.Tensor) -> CodedWeight:
        """uint8 [out, bytes of a row] of the tensor `name` to the matrix [out, in]."""
        outputs, width = rows.shape
        blocks = width // self.size
        columns, groups = blocks * self.elements, blocks * self.elements // self.group
        codes = torch.empty(outputs, columns * self.book.bits // 8, dtype=torch.uint8)
        scales = torch.empty(outputs, groups)
        offsets: torch.Tensor | None = None
        step = max(1, CHUNK // max(columns, 1))
        for start in range(0, outputs, step):
            part = slice(start, min(start + step, outputs))
            found = self.unpack(rows[part].reshape(-1, self.size))
            unpacked = found.codes.reshape(-1, columns)
            codes[part] = pack_nibbles(unpacked) if self.book.bits == 4 else unpacked
            scales[part] = found.scales.reshape(-1, groups)
            if found.offsets is not None:
                offsets = torch.empty(outputs, groups) if offsets is None else offsets
                offsets[part] = found.offsets.reshape(-1, groups)
        return CodedWeight(name, self.book, codes, scales, offsets, columns)


def _halves(data: torch.Tensor) -> torch.Tensor:
    """uint8 [n, 2 * count] to float32 [n, count] of the float16 values in it."""
    return data.contiguous().view(torch.float16).float()


def _nibbles(data: torch.Tensor) -> torch.Tensor:
    """uint8 [n, count] to [n, 2 * count]: all low halves, then all high ones."""
    return torch.cat([data & 15, data >> 4], dim=1)


def _bits(data: torch.Tensor) -> torch.Tensor:
    """uint8 [n, count] to [n, 8 * count]: the bits of each byte, lowest first."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return ((data.unsqueeze(-1) >> shifts) & 1).flatten(1)


def _q4_0(data: torch.Tensor) -> Blocks:
    """d, 16 bytes of codes: w = d (q - 8)."""
    return Blocks(_nibbles(data[:, 2:]), _halves(data[:, :2]))


def _q4_1(data: torch.Tensor) -> Blocks:
    """d, m, 16 bytes of codes: w = d q + m."""
    scale, least = torch.split(_halves(data[:, :4]), 1, dim=1)
    return Blocks(_nibbles(data[:, 4:]), scale, least + 8 * scale)


def _q5_0(data: torch.Tensor) -> Blocks:
    """d, 4 bytes of fifth bits, 16 bytes of the others: w = d (q - 16)."""
    codes = _nibbles(data[:, 6:]) | (_bits(data[:, 2:6]) << 4)
    return Blocks(codes - 16, _halves(data[:, :2]))


def _q5_1(data: torch.Tensor) -> Blocks:
    """d, m, 4 bytes of fifth bits, 16 bytes of the others: w = d q + m."""
    scale, least = torch.split(_halves(data[:, :4]), 1, dim=1)
    return Blocks(_nibbles(data[:, 8:]) | (_bits(data[:, 4:8]) << 4), scale, least)


def _q8_0(data: torch.Tensor) -> Blocks:
    """d, 32 signed bytes: w = d q."""
    return Blocks(data[:, 2:], _halves(data[:, :2]))


def _q4_k(data: torch.Tensor) -> Blocks:
    """d, dmin, 12 bytes of 8 scales and 8 minima, 128 bytes of codes: w = d s q - dmin m."""
    scales, least = _super_scales(data)
    codes = _nibbles_of_pairs(data[:, 16:])
    return Blocks(codes, scales, 8 * scales - least)


def _q5_k(data: torch.Tensor) -> Blocks:
    """As Q4_K, with 32 bytes before the codes: bit g of byte j is the fifth of element 32 g + j."""
    scales, least = _super_scales(data)
    high = data[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None]  # [n, 8, 32]
    codes = _nibbles_of_pairs(data[:, 48:]) | ((high & 1) << 4).flatten(1)
    return Blocks(codes, scales, -least)


def _q6_k(data: torch.Tensor) -> Blocks:
    """Low 4 bits (128 bytes), high 2 (64), 16 scales (int8), d: w = d s (q - 32).

    Each half of a super-block has 64 bytes of low bits, whose low halves come first, and 32 bytes
    of high bits, whose lowest pairs come first.
    """
    low = data[:, :128].reshape(-1, 2, 1, 64) >> torch.tensor([[0], [4]], dtype=torch.uint8)
    shifts = torch.tensor([[0], [2], [4], [6]], dtype=torch.uint8)
    high = data[:, 128:192].reshape(-1, 2, 1, 32) >> shifts
    codes = (low & 15).flatten(1) | ((high & 3) << 4).flatten(1)
    scales = data[:, 192:208].contiguous().view(torch.int8).float()
    return Blocks(codes - 32, scales * _halves(data[:, 208:]))


def _nibbles_of_pairs(data: torch.Tensor) -> torch.Tensor:
    """uint8 [n, 128] to [n, 256]: of each 32 bytes all low halves, then all high ones."""
    pairs = data.reshape(-1, 4, 1, 32) >> torch.tensor([[0], [4]], dtype=torch.uint8)
    return (pairs & 15).flatten(1)


def _super_scales(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """d times the scale, and dmin times the minimum, of 8 groups: float32 [n, 8] each.

    The first 4 scales and minima have 6 bits of their own bytes; the others 4 bits in the last 4
    bytes, and the 2 upper bits of the first 8.
    """
    scale, least = torch.split(_halves(data[:, :4]), 1, dim=1)
    first, second, last = torch.split(data[:, 4:16], 4, dim=1)
    scales = torch.cat([first & 63, (last & 15) | ((first >> 6) << 4)], dim=1)
    minima = torch.cat([second & 63, (last >> 4) | ((second >> 6) << 4)], dim=1)
    return scale * scales, least * minima


BLOCK_TYPES = {
    one.name: one
    for one in (
        BlockType("Q4_0", 32, 18, 32, INT4, _q4_0),
        BlockType("Q4_1", 32, 20, 32, INT4, _q4_1),
        BlockType("Q5_0", 32, 22, 32, INT8, _q5_0),
        BlockType("Q5_1", 32, 24, 32, INT8, _q5_1),
        BlockType("Q8_0", 32, 34, 32, INT8, _q8_0),
        BlockType("Q4_K", SUPER, 144, 32, INT4, _q4_k),
        BlockType("Q5_K", SUPER, 176, 32, INT8, _q5_k),
        BlockType("Q6_K", SUPER, 210, 16, INT8, _q6_k),
    )
}
