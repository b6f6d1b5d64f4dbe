"""Which group gets a sequence."""

import pytest

from serving.front import routing
from serving.front.routing import Router
from serving.protocol.messages import Load
from serving.protocol.prefix_hash import reusable_digests

SIZE = 4
PROMPT = list(range(13))  # three blocks and a token
DIGESTS = list(reusable_digests(PROMPT, SIZE))
STRANGE = list(range(100, 113))
BOTH = [0, 1]


def router(groups: int = 2, slack: int = 3, limit: int = 100) -> Router:
    return Router(groups, SIZE, slack, limit)


def load(num_live: int = 0, published: list[bytes] = [], evicted: list[bytes] = []) -> Load:  # noqa: B006
    return Load(1, num_live, published, evicted)


def test_idle_groups_take_turns() -> None:
    target = router(3)
    for _ in range(2):
        assert [target.choose([0, 1, 2], PROMPT) for _ in range(3)] == [0, 1, 2]


def test_the_least_loaded_group_is_chosen() -> None:
    target = router()
    target.report(0, load(2))
    assert [target.choose(BOTH, PROMPT) for _ in range(3)] == [1, 1, 0]


def test_a_report_replaces_what_was_counted_since_the_last_one() -> None:
    target = router()
    for _ in range(4):
        target.choose([1], PROMPT)
    target.report(0, load(1))
    target.report(1, load(0))
    assert target.choose(BOTH, PROMPT) == 1


def test_what_ended_since_the_last_report_is_no_load() -> None:
    target = router()
    target.report(0, load(2))
    target.report(1, load(1))
    for _ in range(2):
        target.ended(0)
    assert target.choose(BOTH, PROMPT) == 0
    for _ in range(3):
        target.ended(1)  # more than it was known to have
    assert [target.choose(BOTH, PROMPT) for _ in range(2)] == [1, 0]


def test_the_longest_cached_prefix_wins() -> None:
    target = router(3)
    target.report(1, load(2, DIGESTS[:1]))
    target.report(2, load(2, DIGESTS[:2]))
    assert target.choose([0, 1, 2], PROMPT) == 2
    assert target.choose([0, 1], PROMPT) == 1
    assert target.choose([0, 1, 2], STRANGE) == 0


def test_of_equal_prefixes_the_less_loaded_wins() -> None:
    target = router()
    target.report(0, load(2, DIGESTS))
    target.report(1, load(1, DIGESTS))
    assert target.choose(BOTH, PROMPT) == 1


def test_a_block_whose_beginning_is_not_cached_is_worth_nothing() -> None:
    target = router()
    target.report(0, load(1, DIGESTS[1:]))
    assert target.choose(BOTH, PROMPT) == 1


@pytest.mark.parametrize(("num_live", "expected"), [(3, 0), (4, 1)])
def test_a_group_beyond_the_slack_is_passed_over(num_live: int, expected: int) -> None:
    target = router(slack=3)
    target.report(0, load(num_live, DIGESTS))
    assert target.choose(BOTH, PROMPT) == expected


def test_a_full_group_is_passed_over() -> None:
    target = router(slack=8, limit=5)
    target.report(0, load(5, DIGESTS))
    target.report(1, load(4))
    assert target.choose(BOTH, PROMPT) == 1


def test_all_full_groups_are_candidates_again() -> None:
    target = router(limit=5)
    target.report(0, load(7, DIGESTS))
    target.report(1, load(6))
    assert target.choose(BOTH, PROMPT) == 1


def test_an_evicted_prefix_is_forgotten() -> None:
    target = router()
    target.report(0, load(1, DIGESTS))
    target.report(0, load(1, [], DIGESTS))
    assert target.choose(BOTH, PROMPT) == 1


def test_a_full_list_may_come_again() -> None:
    target = router()
    for _ in range(2):
        target.report(0, load(1, DIGESTS))
    target.report(0, load(1, [], DIGESTS))
    assert target.choose(BOTH, PROMPT) == 1


def test_a_new_engine_has_nothing_cached_and_nothing_to_do() -> None:
    target = router()
    target.report(0, load(3, DIGESTS))
    target.begin(0)
    target.report(1, load(1))
    assert target.choose(BOTH, STRANGE) == 0
    target.report(0, load(2))
    assert target.choose(BOTH, PROMPT) == 1


def test_one_group_and_empty_caches_cost_no_hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "reusable_digests", None)
    assert router(1).choose([0], PROMPT) == 0
    assert router(2).choose(BOTH, PROMPT) == 0
