"""The table of tiles: whole products, whatever their sizes."""

import pytest

from serving.kernels.gpu.tiles import (
    EXPERTS_HALF,
    EXPERTS_SINGLE,
    HALF,
    INT8,
    SINGLE,
    Table,
    likely_rows,
    steps_per_program,
    tile_for,
)

TABLES = [HALF, SINGLE, INT8, EXPERTS_HALF, EXPERTS_SINGLE]


def is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


@pytest.mark.parametrize("table", TABLES)
def test_tiles_are_what_matrix_units_take(table: Table) -> None:
    for most, tile in table:
        assert all(map(is_power_of_two, (tile.rows, tile.outputs, tile.columns, tile.warps)))
        assert tile.columns >= 32
        assert tile.rows >= 16 or (tile.rows == 1 and most == 1)


@pytest.mark.parametrize("table", TABLES)
def test_every_number_of_rows_has_a_tile(table: Table) -> None:
    for rows in range(1, 300):
        at_least = [tile for most, tile in table if rows <= most]
        assert tile_for(table, rows) == (at_least[0] if at_least else table[-1][1])


@pytest.mark.parametrize("processors", [1, 58, 132])
@pytest.mark.parametrize("outputs", [1, 48, 1024, 14336, 256000])
@pytest.mark.parametrize("columns", [2, 256, 258, 4096, 28672])
def test_programs_cover_all_inputs_and_none_is_idle(
    columns: int, outputs: int, processors: int
) -> None:
    for _, tile in (*HALF, *SINGLE):
        steps = steps_per_program(tile, outputs, columns, processors)
        programs = -(-columns // (steps * tile.columns))
        assert programs * steps * tile.columns >= columns
        assert (programs - 1) * steps * tile.columns < columns
        assert programs == 1 or tile.splits


def test_one_row_fills_a_device() -> None:
    row = tile_for(HALF, 1)
    assert steps_per_program(row, 4096, 4096, 132) * row.columns < 4096
    assert steps_per_program(row, 256000, 4096, 132) * row.columns >= 4096


def test_many_rows_are_not_split() -> None:
    tile = tile_for(HALF, 5000)
    assert steps_per_program(tile, 16, 4096, 132) * tile.columns == 4096


@pytest.mark.parametrize("table", [EXPERTS_HALF, EXPERTS_SINGLE])
def test_experts_are_not_split(table: Table) -> None:
    assert not any(tile.splits for _, tile in table)


@pytest.mark.parametrize(
    ("tokens", "chosen", "experts", "rows"),
    [(1, 8, 128, 1), (1, 1, 4, 1), (2, 8, 128, 2), (64, 8, 128, 4), (65, 8, 128, 5), (9, 2, 2, 9)],
)
def test_rows_of_an_expert(tokens: int, chosen: int, experts: int, rows: int) -> None:
    """Two tokens may have the same expert, however many there are."""
    assert likely_rows(tokens * chosen, chosen, experts) == rows
