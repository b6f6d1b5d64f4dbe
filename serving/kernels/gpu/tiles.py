"""How the GPU kernels for weights cut a product into programs: one explicit table.

Read by `coded_matmul.py`, `int8_matmul.py` and `grouped_matmul.py`. A table instead of a search at
start: the same sums in the same order on every start, and in every batch that the same row of the
table serves.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """What one program computes: `rows` x `outputs`, of `columns` inputs at a time."""

    rows: int
    outputs: int
    columns: int
    warps: int
    stages: int  # of the pipeline that loads ahead
    splits: bool  # whether the inputs may be split over programs, to fill the device


# Up to this many rows, this tile; the last serves all. Matrix units need 16 rows, so a single row
# (a decode step of one sequence) has a kernel without them.
Table = tuple[tuple[int, Tile], ...]
HALF: Table = (
    (1, Tile(1, 16, 256, warps=4, stages=3, splits=True)),
    (16, Tile(16, 32, 128, warps=4, stages=4, splits=True)),
    (64, Tile(64, 64, 64, warps=4, stages=4, splits=True)),
    (65, Tile(128, 128, 64, warps=8, stages=3, splits=False)),
)
# float32 has no matrix units at full precision, and twice the bytes in shared memory.
SINGLE: Table = (
    (1, Tile(1, 16, 256, warps=4, stages=3, splits=True)),
    (16, Tile(16, 32, 64, warps=4, stages=3, splits=True)),
    (64, Tile(32, 64, 32, warps=4, stages=3, splits=True)),
    (65, Tile(64, 64, 32, warps=4, stages=3, splits=False)),
)
INT8: Table = (
    (16, Tile(16, 32, 128, warps=4, stages=4, splits=False)),
    (65, Tile(64, 64, 128, warps=4, stages=3, splits=False)),
)

# Of experts; the numbers of rows are those that `likely_rows` gives. There are many programs for
# few rows too, of one expert each, so that inputs need not be split.
EXPERTS_HALF: Table = (
    (1, Tile(1, 16, 256, warps=4, stages=3, splits=False)),
    (8, Tile(16, 32, 128, warps=4, stages=4, splits=False)),
    (64, Tile(64, 64, 64, warps=4, stages=4, splits=False)),
    (65, Tile(128, 128, 64, warps=8, stages=3, splits=False)),
)
EXPERTS_SINGLE: Table = (
    (1, Tile(1, 16, 256, warps=4, stages=3, splits=False)),
    (8, Tile(16, 32, 64, warps=4, stages=3, splits=False)),
    (64, Tile(32, 64, 32, warps=4, stages=3, splits=False)),
    (65, Tile(64, 64, 32, warps=4, stages=3, splits=False)),
)

PROGRAMS_PER_PROCESSOR = 4  # so many should be there to hide the latency of memory
STEPS_PER_SPLIT = 2  # fewer steps of the loop are not worth a program and its partial sum


def tile_for(table: Table, rows: int) -> Tile:
    """The tile that computes a product of so many rows."""
    for most, tile in table:
        if rows <= most:
            return tile
    return table[-1][1]


def likely_rows(pairs: int, chosen: int, experts: int) -> int:
    """How many rows an expert has on average; 1 is given only where surely none has two.

    `pairs` of a token and one of its `chosen` experts; those of a single token are different.
    """
    return 1 if pairs == chosen else max(2, -(-pairs // experts))


def steps_per_program(tile: Tile, outputs: int, columns: int, processors: int) -> int:
    """Iterations of a program's loop over its inputs; the number of rows has no say.

    The programs that share the inputs of an output are `splits(...)` many.
    """
    steps = -(-columns // tile.columns)
    if not tile.splits:
        return steps
    wanted = processors * PROGRAMS_PER_PROCESSOR // -(-outputs // tile.outputs)
    pieces = max(1, min(wanted, steps // STEPS_PER_SPLIT))
    return -(-steps // pieces)
