"""The tables of the attention's tiles, and how contexts are shared."""

import pytest
import torch

from serving.kernels.gpu import attention_tiles
from serving.kernels.gpu.attention_tiles import Table, padded, splits_for, tile_for

TABLES = [
    table(dtype, capability)
    for table in (attention_tiles.decode_table, attention_tiles.prefill_table)
    for dtype, capability in [
        (torch.bfloat16, (8, 6)), (torch.bfloat16, (9, 0)), (torch.float32, (9, 0)),
    ]
]  # fmt: skip


@pytest.mark.parametrize("table", TABLES, ids=range(len(TABLES)))
def test_tiles_are_what_matrix_units_take(table: Table) -> None:
    for _, tile in table:
        for size in (tile.rows, tile.tokens):
            assert size == padded(size)
        assert tile.warps in (4, 8)


@pytest.mark.parametrize("table", TABLES, ids=range(len(TABLES)))
def test_every_width_has_its_tile(table: Table) -> None:
    assert tile_for(table, 32) is tile_for(table, 128) is table[0][1]
    assert tile_for(table, 129) is tile_for(table, 256) is table[1][1]
    assert tile_for(table, 512) is table[2][1]
    assert tile_for(table, 576) is table[3][1]
    assert tile_for(table, 1024) is table[4][1]
    with pytest.raises(ValueError, match="of 1025 numbers, more than 1024"):
        tile_for(table, 1025)


def test_devices_have_tables_of_their_own() -> None:
    half = torch.float16
    for table in (attention_tiles.decode_table, attention_tiles.prefill_table):
        assert table(half, (8, 0)) is table(half, (8, 9)) is table(half, (12, 0))
        assert table(half, (9, 0)) is not table(half, (8, 0))
        assert table(torch.float32, (9, 0)) is table(torch.float32, (8, 0))
    assert attention_tiles.capability(torch.device("cpu")) == (8, 0)


def test_sizes_are_padded_to_powers_of_two() -> None:
    assert [padded(size) for size in (0, 1, 16, 17, 80, 128, 129)] == [0, 16, 16, 32, 128, 128, 256]


def test_few_rows_share_a_device() -> None:
    assert splits_for(1, 8, 132) == 64
    assert splits_for(8, 8, 132) == 16
    assert splits_for(64, 8, 132) == 2
    assert splits_for(66, 8, 132) == splits_for(4096, 8, 132) == 1


@pytest.mark.parametrize("processors", [1, 58, 132])
@pytest.mark.parametrize("kv_heads", [1, 2, 8, 32])
@pytest.mark.parametrize("rows", [1, 3, 64, 500])
def test_a_device_is_filled_and_not_more_than_twice(
    rows: int, kv_heads: int, processors: int
) -> None:
    splits = splits_for(rows, kv_heads, processors)
    wanted = attention_tiles.PROGRAMS_PER_PROCESSOR * processors
    assert splits in (1, 2, 4, 8, 16, 32, 64)
    assert splits == 64 or rows * kv_heads * splits >= wanted
    assert splits == 1 or rows * kv_heads * splits < 2 * wanted
