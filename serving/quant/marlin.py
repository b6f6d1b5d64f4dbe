"""Checkpoints packed for the Marlin kernel: symmetric 4-bit integers, in the order of its threads.

Runs in an engine rank, while weights are read. `B` int32 [in / 16, out * 2] holds tiles of 16
inputs by 64 outputs, `s` [groups, out] scales whose columns are in another order, too; w = (code -
8) * scale. Source: Frantar et al., MARLIN, arXiv:2408.11743, and the packing of its reference code.
"""

from dataclasses import dataclass

import torch

from serving.kernels.coded_weight import CodedWeight
from serving.quant.affine import affine_weight, count_groups, neighbours
from serving.quant.packing import unpack
from serving.quant.scheme import Part, Shapes, TensorIndex, check_dtype, check_finite, refuse

BITS, ZERO = 4, 8
GROUPS = (-1, 128)
INPUTS, OUTPUTS = 16, 64  # of a tile, which is 4 squares beside each other
INTERLEAVE = (0, 2, 4, 6, 1, 3, 5, 7)  # which of its 8 numbers each part of a word holds


@dataclass(frozen=True)
class MarlinScheme:
    """`group_size` -1: one group of all inputs."""

    group_size: int
    label: str = "marlin"

    def holds(self, module: str, tensors: TensorIndex) -> bool:
        """See `Scheme`."""
        return f"{module}.B" in tensors

    def shapes(self, module: str, outputs: int, inputs: int, tensors: TensorIndex) -> Shapes:
        """See `Scheme`."""
        for what, size, unit in (("inputs", inputs, INPUTS), ("outputs", outputs, OUTPUTS)):
            if size % unit:
                refuse(
                    f"tensor {module}.B has {size} {what}; Marlin packs them by {unit}",
                    "use the config.json that belongs to these weights",
                )
        check_dtype(tensors, f"{module}.B", torch.int32)
        groups = count_groups(inputs, self.group_size)
        return {
            f"{module}.B": (inputs // INPUTS, outputs * INPUTS * BITS // 32),
            f"{module}.s": (groups, outputs),
        }

    def read(self, module: str, part: Part, tensors: TensorIndex) -> CodedWeight:
        """See `Scheme`. Whole tiles are read, and what is not needed of them is left away."""
        groups = count_groups(part.inputs, self.group_size)
        inputs, outputs = _tiles(part.columns, INPUTS), _tiles(part.rows, OUTPUTS)
        first, last = outputs[0] * OUTPUTS, outputs[1] * OUTPUTS
        per_output = INPUTS * BITS // 32
        packed = tensors.slice(f"{module}.B").read(inputs, (first * per_output, last * per_output))
        scales = tensors.slice(f"{module}.s").read((0, groups), (first, last)).float()
        check_finite(f"{module}.s", scales)
        scales = scales[:, scale_places(last - first, groups)]
        rows = slice(part.rows[0] - first, part.rows[1] - first)
        begin = inputs[0] * INPUTS
        columns = slice(part.columns[0] - begin, part.columns[1] - begin)
        codes = codes_of(packed)[rows, columns].contiguous()
        scales = scales[:, rows].T.contiguous()
        group_of = neighbours(part.columns, part.inputs, self.group_size)
        return affine_weight(module, codes, torch.full_like(scales, ZERO), scales, group_of)


def codes_of(packed: torch.Tensor) -> torch.Tensor:
    """int32 [tiles, 2 * out] to codes uint8 [out, 16 * tiles]."""
    tiles = unpack(packed, BITS).view(len(packed), -1, INPUTS * OUTPUTS)
    natural = tiles[..., tile_order().argsort()]
    squares = natural.view(*tiles.shape[:2], OUTPUTS // 16, INPUTS, 16)
    return squares.permute(1, 2, 4, 0, 3).reshape(tiles.shape[1] * OUTPUTS, -1)


def tile_order() -> torch.Tensor:
    """int64 [1024]: which number of a tile (square, input, output) is packed at each place.

    Each of 32 threads has 8 numbers of every square, as the tensor cores want them.
    """
    order = []
    for thread in range(32):
        pair = 2 * (thread % 4)
        inputs = (pair, pair + 1, pair + 8, pair + 9)
        for square in range(OUTPUTS // 16):
            own = [
                256 * square + 16 * one + thread // 4 + half for half in (0, 8) for one in inputs
            ]
            order += [own[i] for i in INTERLEAVE]
    return torch.tensor(order)


def scale_places(outputs: int, groups: int) -> torch.Tensor:
    """int64 [out]: where the scale of each output is stored."""
    if groups > 1:
        order = [i + 8 * j for i in range(8) for j in range(8)]
    else:  # as the sums lie in the threads, which are scaled last
        order = [2 * i + j + k for i in range(4) for j in (0, 8, 16, 24) for k in (0, 1)]
    places = torch.tensor(order).argsort()
    starts = torch.arange(0, outputs, len(order))
    return (starts[:, None] + places).flatten()


def _tiles(wanted: tuple[int, int], size: int) -> tuple[int, int]:
    """Half-open range of the tiles that hold these."""
    return wanted[0] // size, -(-wanted[1] // size)
