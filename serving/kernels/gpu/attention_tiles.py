"""How the GPU's attention is cut into programs: explicit tables, and how many share a context.

Read by `paged_decode.py` and `ragged_prefill.py`. Tables instead of a search at start: the same
sums in the same order on every start. The sizes are the largest at which the compiled loops keep
their numbers in registers and in the shared memory of the smallest GPU of their class; queries,
keys and values of one tile, times the stages that are loaded ahead, lie in shared memory.
"""

from dataclasses import dataclass

import torch

SMALLEST = 16  # that matrix units take, of every side
PROGRAMS_PER_PROCESSOR = 4  # two or three run at once; the others fill in where contexts differ
MOST_SPLITS = 64


@dataclass(frozen=True)
class Tile:
    """What one program computes: `rows` queries, by `tokens` of the context at a time."""

    rows: int  # decoding: at most, and no more than a KV head has
    tokens: int
    warps: int
    stages: int  # of the pipeline that loads ahead


# Up to this many numbers of a token, key and value together, this tile: heads of 64, 128 and 256,
# latent vectors of 576, which are both, and heads of 512.
Table = tuple[tuple[int, Tile], ...]

# Decoding waits for memory: some 64 KiB under way in each program, and room for two or three
# programs on a processor. A tile of 16 rows leaves the matrix units idle, which is no loss there.
DECODE_LARGE: Table = (
    (128, Tile(64, 128, warps=4, stages=3)),
    (256, Tile(64, 64, warps=4, stages=3)),
    (512, Tile(64, 32, warps=4, stages=3)),
    (576, Tile(64, 64, warps=8, stages=2)),
    (1024, Tile(64, 32, warps=8, stages=2)),
)
DECODE_SMALL: Table = (
    (128, Tile(64, 128, warps=4, stages=3)),
    (256, Tile(64, 64, warps=4, stages=3)),
    (512, Tile(32, 32, warps=4, stages=3)),
    (576, Tile(32, 32, warps=8, stages=2)),
    (1024, Tile(32, 16, warps=8, stages=2)),
)
# float32 has no matrix units at full precision, and twice the bytes.
DECODE_SINGLE: Table = (
    (128, Tile(16, 64, warps=4, stages=3)),
    (256, Tile(16, 32, warps=4, stages=3)),
    (512, Tile(16, 16, warps=4, stages=3)),
    (576, Tile(16, 16, warps=8, stages=2)),
    (1024, Tile(16, 16, warps=8, stages=2)),
)

# Prompts keep the matrix units busy: on 9.0 two groups of four warps with 64 rows each, whose sums
# fill the registers from 256 numbers on.
PREFILL_LARGE: Table = (
    (128, Tile(128, 128, warps=8, stages=3)),
    (256, Tile(128, 64, warps=8, stages=3)),
    (512, Tile(128, 64, warps=8, stages=2)),
    (576, Tile(64, 64, warps=8, stages=2)),
    (1024, Tile(64, 32, warps=8, stages=2)),
)
PREFILL_SMALL: Table = (
    (128, Tile(128, 64, warps=8, stages=3)),
    (256, Tile(128, 32, warps=8, stages=3)),
    (512, Tile(64, 32, warps=8, stages=2)),
    (576, Tile(32, 32, warps=8, stages=2)),
    (1024, Tile(32, 16, warps=8, stages=2)),
)
PREFILL_SINGLE: Table = (
    (128, Tile(64, 32, warps=8, stages=2)),
    (256, Tile(64, 32, warps=8, stages=2)),
    (512, Tile(32, 16, warps=8, stages=2)),
    (576, Tile(16, 16, warps=8, stages=2)),
    (1024, Tile(16, 16, warps=8, stages=2)),
)


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability; triton's interpreter counts as the oldest."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)


def is_large(of: tuple[int, int]) -> bool:
    """Whether a program may have 227 KiB of shared memory, for the matrix units of 9.0; else 99."""
    return of[0] == 9


def decode_table(dtype: torch.dtype, of: tuple[int, int]) -> Table:
    """For queries of this type on a GPU of this compute capability."""
    if dtype == torch.float32:
        return DECODE_SINGLE
    return DECODE_LARGE if is_large(of) else DECODE_SMALL


def prefill_table(dtype: torch.dtype, of: tuple[int, int]) -> Table:
    """As `decode_table`."""
    if dtype == torch.float32:
        return PREFILL_SINGLE
    return PREFILL_LARGE if is_large(of) else PREFILL_SMALL


def tile_for(table: Table, width: int) -> Tile:
    """The tile for tokens of so many numbers. Raises `ValueError` where there is none."""
    for most, tile in table:
        if width <= most:
            return tile
    raise ValueError(f"no tile for keys and values of {width} numbers, more than {table[-1][0]}")


def padded(size: int) -> int:
    """The next power of two that matrix units take; 0 of nothing."""
    return max(SMALLEST, 1 << (size - 1).bit_length()) if size else 0


def splits_for(rows: int, kv_heads: int, processors: int) -> int:
    """Programs that should share a context in `paged_decode`: a power of two up to 64.

    As few as give every processor four programs, if all contexts are long; where they are not,
    programs without tokens end at once. It depends on sizes of the batch only, so that a CUDA graph
    of a batch size has one number.
    """
    wanted = -(-processors * PROGRAMS_PER_PROCESSOR // (rows * kv_heads))
    return min(1 << (wanted - 1).bit_length(), MOST_SPLITS)
