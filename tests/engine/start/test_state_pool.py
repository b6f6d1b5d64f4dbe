"""Sizes of the state pool, and of a KV pool that holds nothing."""

import pytest
import torch

from serving.engine.start import kv_cache
from serving.engine.start.state_pool import StateShape
from serving.errors import StartupError

CPU = torch.device("cpu")
SHAPE = StateShape(
    layers=3, channels=10, state=4, convolution=3, dtype=torch.bfloat16, block_size=16
)


def test_row_bytes_count_both_states_of_all_layers() -> None:
    assert SHAPE.row_bytes == 3 * (10 * 4 * 4 + 3 * 10 * 2)


def test_pool_has_a_row_for_each_sequence() -> None:
    pool = kv_cache.allocate(SHAPE, 100, CPU, rows=5)
    assert [layer.recurrent.shape for layer in pool] == [(5, 4, 10)] * 3
    assert [layer.convolution.shape for layer in pool] == [(5, 3, 10)] * 3
    held = sum(layer.recurrent.nbytes + layer.convolution.nbytes for layer in pool)
    assert held == 5 * SHAPE.row_bytes


def test_blocks_cost_nothing_and_are_bounded_by_what_is_wanted() -> None:
    wanted = kv_cache.default_pool_tokens(SHAPE, CPU, weight_bytes=0, rows=8, longest=100)
    assert wanted == 800
    assert kv_cache.pool_blocks(SHAPE, free_bytes=0, fraction=0.5, wanted_tokens=wanted) == 50


def test_rows_are_no_more_than_fit() -> None:
    free = 10 * SHAPE.row_bytes
    assert kv_cache.affordable_rows(SHAPE, free, fraction=0.5, wanted=128) == 5
    assert kv_cache.affordable_rows(SHAPE, free, fraction=0.5, wanted=3) == 3


def test_no_room_for_one_row_is_a_start_up_error() -> None:
    with pytest.raises(StartupError, match=r"states of one sequence: 660 bytes of 500"):
        kv_cache.affordable_rows(SHAPE, 1000, fraction=0.5, wanted=128)


def test_a_kv_pool_does_not_bound_the_rows() -> None:
    shape = kv_cache.KvShape(layers=1, kv_heads=1, block_size=16, head_dim=8, dtype=torch.float32)
    assert kv_cache.affordable_rows(shape, 0, fraction=0.5, wanted=128) == 128
