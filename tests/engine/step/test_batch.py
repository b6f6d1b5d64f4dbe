"""The flat arrays of a step, worked out by hand for a small table."""

import numpy as np
import pytest

from serving.engine.plan import Admission, Plan
from serving.engine.step.batch import UNKNOWN, RowTable
from serving.protocol.params import SamplingParams, StopParams

SIZE = 4


def admission(row: int, tokens: list[int], blocks: list[int], computed: int = 0) -> Admission:
    return Admission(row, tokens, computed, blocks, len(tokens), SamplingParams(), StopParams(9), 0)


def grow(table: RowTable, token: int) -> None:
    """Row 2 chooses a token."""
    table.fill(table.expect(np.array([2])), [token])


@pytest.fixture
def table() -> RowTable:
    """Row 2 has computed its prompt of five and chosen 70; row 0 is new."""
    table = RowTable(rows=3, max_tokens=16, block_size=SIZE)
    table.apply(Plan([admission(2, [10, 11, 12, 13, 14], [7, 3])], [], [2], [5], 0))
    grow(table, 70)
    return table


def mixed(table: RowTable) -> Plan:
    """Row 2 decodes; row 0 computes four of its six tokens behind a cached block."""
    new = admission(0, [20, 21, 22, 23, 24, 25, 26, 27, 28, 29], [5, 1, 6], computed=4)
    return Plan([new], [], [2, 0], [1, 4], 1)


def test_decode_comes_first_then_the_chunk(table: RowTable) -> None:
    arrays = table.apply(mixed(table))
    assert arrays.token_ids.tolist() == [70, 24, 25, 26, 27]
    assert arrays.positions.tolist() == [5, 4, 5, 6, 7]


def test_slots_are_block_times_size_plus_offset(table: RowTable) -> None:
    arrays = table.apply(mixed(table))
    assert arrays.slots.tolist() == [3 * 4 + 1, 4, 5, 6, 7]


def test_decode_tables_are_as_wide_as_the_longest_context(table: RowTable) -> None:
    arrays = table.apply(mixed(table))
    assert arrays.block_tables.tolist() == [[7, 3]]
    assert arrays.context_lens.tolist() == [6]


def test_chunk_knows_its_context(table: RowTable) -> None:
    chunk = table.apply(mixed(table)).chunks[0]
    assert (chunk.start, chunk.stop, chunk.context_len) == (1, 5, 8)
    assert chunk.blocks.tolist() == [5, 1]


def test_only_rows_at_the_end_of_their_tokens_are_sampled(table: RowTable) -> None:
    first = table.apply(mixed(table))
    assert (first.sample_index.tolist(), first.sample_rows.tolist()) == ([0], [2])
    grow(table, 71)
    last = table.apply(Plan([], [], [2, 0], [1, 2], 1))
    assert (last.sample_index.tolist(), last.sample_rows.tolist()) == ([0, 2], [2, 0])


def test_grown_block_is_used_by_the_step_that_brings_it(table: RowTable) -> None:
    for token in (71, 72):
        table.apply(Plan([], [], [2], [1], 1))
        grow(table, token)
    assert table.apply(Plan([], [], [2], [1], 1)).slots.tolist() == [3 * 4 + 3]
    grow(table, 73)
    assert table.apply(Plan([], [(2, 2, 9)], [2], [1], 1)).slots.tolist() == [9 * 4]


def test_new_sequence_in_a_row_replaces_the_old_parameters(table: RowTable) -> None:
    sampled = SamplingParams(do_sample=True, temperature=0.5, seed=9)
    table.apply(Plan([Admission(2, [1], 0, [0], 1, sampled, StopParams(9), 3)], [], [2], [1], 1))
    assert (table.temperature[2], table.seed[2], table.is_plain[2]) == (0.5, 9, False)
    table.apply(Plan([admission(2, [1], [0])], [], [2], [1], 1))
    assert (table.temperature[2], table.seed[2], table.is_plain[2]) == (1.0, 0, True)


def test_a_token_is_unknown_until_it_is_filled_in(table: RowTable) -> None:
    expected = table.expect(np.array([2]))
    arrays = table.apply(Plan([], [], [2], [1], 1))
    assert not arrays.has_unknown  # the one before it is computed first
    arrays = table.apply(Plan([], [], [2], [1], 1))
    assert arrays.has_unknown
    assert arrays.token_ids.tolist() == [UNKNOWN]
    assert arrays.positions.tolist() == [6]
    table.fill(expected, [71])
    assert table.token_ids[2, :7].tolist() == [10, 11, 12, 13, 14, 70, 71]


def test_a_late_token_does_not_reach_the_next_sequence_of_its_row(table: RowTable) -> None:
    expected = table.expect(np.array([2]))
    table.apply(Plan([admission(2, [30, 31, 32, 33, 34, 35, 36], [4, 5])], [], [2], [7], 0))
    table.fill(expected, [71])
    assert table.token_ids[2, :7].tolist() == [30, 31, 32, 33, 34, 35, 36]
