"""Who holds a KV block, what the prefix cache finds, what is evicted first."""

from random import Random

import pytest

from serving.engine.schedule.block_manager import BlockManager

SIZE = 4


def manager(num_blocks: int = 8, prefix_caching: bool = True) -> BlockManager:
    return BlockManager(num_blocks, SIZE, prefix_caching)


def fill(blocks: BlockManager, tokens: list[int]) -> tuple[list[int], list[bytes]]:
    """A sequence that computes all its tokens and publishes its full blocks."""
    held = [blocks.allocate() for _ in range(blocks.blocks_for(len(tokens)))]
    digests: list[bytes] = []
    blocks.publish(tokens, len(tokens), held, digests)
    return held, digests


def test_blocks_for_rounds_up() -> None:
    assert [manager().blocks_for(n) for n in (1, 4, 5)] == [1, 1, 2]


def test_allocated_blocks_are_distinct_and_counted() -> None:
    blocks = manager(4)
    held = [blocks.allocate() for _ in range(4)]
    assert sorted(held) == [0, 1, 2, 3]
    assert blocks.num_available == 0


def test_released_blocks_are_available_again() -> None:
    blocks = manager(2)
    blocks.release([blocks.allocate(), blocks.allocate()])
    assert blocks.num_available == 2
    blocks.check_idle()


def test_match_finds_full_blocks_of_a_published_prefix() -> None:
    blocks = manager()
    held, digests = fill(blocks, list(range(10)))
    assert blocks.match([*range(8), 99, 98, 97]) == (held[:2], digests)


def test_match_leaves_one_token_to_compute() -> None:
    blocks = manager()
    held, _ = fill(blocks, list(range(8)))
    assert blocks.match(list(range(8)))[0] == held[:1]


def test_match_stops_at_the_first_difference() -> None:
    blocks = manager()
    held, _ = fill(blocks, list(range(12)))
    assert blocks.match([0, 1, 2, 3, 4, 5, 6, 99, 8, 9, 10, 11, 12])[0] == held[:1]


def test_equal_block_behind_another_prefix_does_not_match() -> None:
    blocks = manager()
    fill(blocks, [1, 1, 1, 1, 7, 7, 7, 7])
    assert blocks.match([2, 2, 2, 2, 7, 7, 7, 7, 0])[0] == []


def test_match_finds_nothing_with_caching_off() -> None:
    blocks = manager(prefix_caching=False)
    fill(blocks, list(range(8)))
    assert blocks.match(list(range(9)))[0] == []


def test_released_prefix_stays_cached_until_evicted() -> None:
    blocks = manager(3)
    held, _ = fill(blocks, list(range(8)))
    blocks.release(held)
    assert blocks.match(list(range(9)))[0] == held
    assert blocks.num_available == 3


def test_tail_of_a_prefix_is_evicted_before_its_head() -> None:
    blocks = manager(2)
    held, _ = fill(blocks, list(range(8)))
    blocks.release(held)
    assert blocks.allocate() == held[1]
    assert blocks.match(list(range(9)))[0] == held[:1]


def test_least_recently_used_prefix_is_evicted_first() -> None:
    blocks = manager(2)
    first, _ = fill(blocks, [1, 2, 3, 4])
    second, _ = fill(blocks, [5, 6, 7, 8])
    blocks.release(first)
    blocks.release(second)
    blocks.reference(first)  # used again: now the younger one
    blocks.release(first)
    assert blocks.allocate() == second[0]


def test_referenced_block_is_never_evicted() -> None:
    blocks = manager(2)
    held, _ = fill(blocks, [1, 2, 3, 4])
    blocks.release(held)
    blocks.reference(held)
    assert blocks.num_available == 1
    assert blocks.allocate() != held[0]


def test_shared_block_is_freed_with_its_last_reference() -> None:
    blocks = manager(1)
    held, _ = fill(blocks, [1, 2, 3, 4])
    blocks.reference(held)
    blocks.release(held)
    assert blocks.num_available == 0
    blocks.release(held)
    assert blocks.num_available == 1


def test_available_beside_does_not_count_cached_blocks_twice() -> None:
    blocks = manager(3)
    held, _ = fill(blocks, list(range(8)))
    blocks.release(held)
    assert blocks.available_beside(held) == 1


def test_second_copy_of_a_prefix_is_kept_private() -> None:
    blocks = manager()
    first, _ = fill(blocks, [1, 2, 3, 4])
    second, _ = fill(blocks, [1, 2, 3, 4])
    assert blocks.match([1, 2, 3, 4, 5])[0] == first
    blocks.release(first)
    blocks.release(second)
    blocks.check_idle()


def test_check_idle_names_a_leak() -> None:
    blocks = manager()
    leaked = blocks.allocate()
    with pytest.raises(AssertionError, match=rf"\[{leaked}\] are still referenced"):
        blocks.check_idle()


def recording(num_blocks: int) -> BlockManager:
    return BlockManager(num_blocks, SIZE, prefix_caching=True, record_changes=True)


def test_changes_are_what_was_published_and_evicted_since() -> None:
    blocks = recording(2)
    held, digests = fill(blocks, list(range(8)))
    published, evicted = blocks.take_changes()
    assert (sorted(published), evicted) == (sorted(digests), [])
    blocks.release(held)
    blocks.allocate()
    assert blocks.take_changes() == ([], digests[1:])
    assert blocks.take_changes() == ([], [])
    assert blocks.cached_digests() == digests[:1]


def test_changes_that_cancel_out_are_not_reported() -> None:
    blocks = recording(1)
    held, _ = fill(blocks, [1, 2, 3, 4])
    blocks.release(held)
    blocks.release([blocks.allocate()])
    assert blocks.take_changes() == ([], [])


def test_a_prefix_published_again_within_a_report_is_not_evicted() -> None:
    blocks = recording(1)
    held, digests = fill(blocks, [1, 2, 3, 4])
    blocks.take_changes()
    for tokens in ([5, 6, 7, 8], [1, 2, 3, 4]):
        blocks.release(held)
        held, _ = fill(blocks, tokens)
    assert blocks.take_changes() == ([], [])
    assert blocks.cached_digests() == digests


def test_reports_add_up_to_the_cache_whatever_happens() -> None:
    blocks, mirror, random = recording(6), set[bytes](), Random(3)
    for round_ in range(300):
        prompt = [random.randrange(3)] * SIZE * random.randrange(1, 5)
        held, _ = fill(blocks, prompt)
        blocks.release(held)
        if round_ % 3 == 0:
            published, evicted = blocks.take_changes()
            mirror = (mirror - set(evicted)) | set(published)
            assert mirror == set(blocks.cached_digests())


def test_nothing_is_recorded_unless_asked_for() -> None:
    blocks = manager()
    fill(blocks, list(range(8)))
    assert blocks.take_changes() == ([], [])
