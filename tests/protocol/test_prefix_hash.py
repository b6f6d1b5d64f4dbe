"""Digests name prefixes: equal exactly if all tokens up to the end of the block are."""

from hashlib import blake2b

import numpy as np

from serving.protocol.prefix_hash import block_digest, reusable_digests


def test_digests_are_chained_over_little_endian_int32() -> None:
    tokens = [5, 70_000, 0, 2**31 - 1, 9]
    first = blake2b(np.array(tokens[:2], "<i4").tobytes(), digest_size=16).digest()
    second = blake2b(first + np.array(tokens[2:4], "<i4").tobytes(), digest_size=16).digest()
    assert list(reusable_digests(tokens, 2)) == [first, second]
    assert block_digest(first, tokens[2:4]) == second


def test_one_token_is_left_to_compute() -> None:
    counts = [len(list(reusable_digests(list(range(n)), 4))) for n in (0, 1, 4, 5, 8, 9)]
    assert counts == [0, 0, 0, 1, 1, 2]


def test_equal_blocks_behind_other_prefixes_differ() -> None:
    ours = list(reusable_digests([1, 1, 7, 7, 0], 2))
    theirs = list(reusable_digests([2, 2, 7, 7, 0], 2))
    assert not set(ours) & set(theirs)


def test_a_longer_prompt_begins_with_the_digests_of_a_shorter_one() -> None:
    short, long = ([*range(n)] for n in (9, 40))
    assert list(reusable_digests(long, 4))[:2] == list(reusable_digests(short, 4))
