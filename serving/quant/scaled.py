"""Codes with scales: of the whole matrix, of outputs, of groups of inputs, or of blocks.

Pure functions, used by the readers of fp8, compressed-tensors and bitsandbytes checkpoints. In: the
names of stored tensors and a rank's part. Out: the form of `coded_weight.py`; w = code * scale, or
(code - zero) * scale.
"""

import torch

from serving.kernels.codebooks import E4M3, E5M2, INT8, Codebook
from serving.kernels.coded_weight import CodedWeight, pack_nibbles
from serving.quant.affine import arrange
from serving.quant.scheme import Part, TensorIndex, check_finite, refuse

BOOKS: dict[torch.dtype, Codebook] = {
    torch.int8: INT8, torch.float8_e4m3fn: E4M3, torch.float8_e5m2: E5M2,
}  # fmt: skip
LARGEST = {E4M3.name: 0x7E, E5M2.name: 0x7B}  # finite number of an 8-bit float, without its sign
Block = tuple[int, int]  # outputs and inputs that share a scale


def block_of(
    name: str, outputs: int, inputs: int, tensors: TensorIndex, configured: Block
) -> Block:
    """The block of each scale in tensor `name`, told from its shape.

    `configured`: where it is neither one scale nor one for each output. Raises `StartupError`.
    """
    shape = tensors.slice(name).shape
    if set(shape) <= {1}:
        return outputs, inputs
    if shape in ((outputs,), (outputs, 1)):
        return 1, inputs
    rows, columns = configured
    expected = (-(-outputs // rows), -(-inputs // columns))
    if shape != expected:
        refuse(
            f"tensor {name} is {shape}; for {outputs} outputs and {inputs} inputs it would be "
            f"one scale, ({outputs}, 1), or {expected} for blocks of {rows} by {columns}",
            "use the config.json that belongs to these weights",
        )
    return configured


def read_scales(name: str, part: Part, tensors: TensorIndex, block: Block) -> torch.Tensor:
    """float32 [rows of the part, groups of all inputs]; a block's scale is that of all its rows."""
    stored = tensors.slice(name)
    start, stop = part.rows
    first, last = start // block[0], -(-stop // block[0])
    found = stored.read((first, last)) if stored.shape else stored.read()
    scales = found.float().reshape(last - first, -1)
    check_finite(name, scales)
    return scales[torch.arange(start, stop) // block[0] - first]


def scaled_weight(
    module: str,
    book: Codebook,
    codes: torch.Tensor,
    scales: torch.Tensor,
    group_of: torch.Tensor,
    zeros: torch.Tensor | None = None,
    rounds: bool = False,
) -> CodedWeight:
    """The weight of codes [out, in], uint8, one a byte; scales and zeros [out, groups].

    `group_of` int [in]: the group of each input. `zeros`: int8, the codes that stand for 0, where
    that is not code 0. `rounds`: whether activations are quantized.
    """
    _check_numbers(module, book, codes)
    inputs = codes.shape[1]
    columns, groups, is_filled = arrange(group_of)
    scales = scales[:, groups].contiguous()
    filler = torch.tensor(book.values.index(0.0), dtype=torch.uint8)
    offsets = None
    if zeros is not None:
        zeros = zeros[:, groups]
        offsets = zeros * -scales
        filler = zeros.view(torch.uint8)
    if columns is not None:
        filler = filler.expand(scales.shape).repeat_interleave(len(columns) // len(groups), 1)
        codes = torch.where(is_filled, filler, codes[:, columns])
    codes = codes.contiguous() if book.bits == 8 else pack_nibbles(codes)
    return CodedWeight(module, book, codes, scales, offsets, inputs, columns, rounds)


def _check_numbers(module: str, book: Codebook, codes: torch.Tensor) -> None:
    """Refuse floats that are NaN or infinite: kernels would take them for numbers."""
    if book.name not in LARGEST:
        return
    count = int(((codes & 0x7F) > LARGEST[book.name]).sum())
    if count:
        refuse(
            f"tensor {module}.weight holds {count} numbers that are NaN or infinite",
            "copy or download the checkpoint again; if it stays, it was quantized wrongly",
        )


def check_cuts(name: str, part: Part) -> None:
    """Refuse an odd number of 4-bit columns: two of them share a byte. Names possible shards."""
    width = part.columns[1] - part.columns[0]
    if width % 2 == 0:
        return
    counts = [n for n in range(1, part.inputs // 2 + 1) if part.inputs % (2 * n) == 0]
    refuse(
        f"tensor {name} cannot be cut into {width} of its {part.inputs} inputs: two share a byte",
        f"use one of these for --num-shard: {', '.join(map(str, counts)) or 'none is possible'}",
    )
