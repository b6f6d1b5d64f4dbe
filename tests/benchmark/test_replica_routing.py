import random

import pytest

from benchmarks.conversations import Answer, user_text
from benchmarks.replica_routing import Round, figures, make_table, queue_waits
from benchmarks.server_log import LogLine


def one_round(hit_tokens: float, waits: list[float]) -> Round:
    answers = [Answer(turn, 200, 100, 20, 0.5) for turn in range(4)]
    return Round(answers, hit_tokens, waits, wall_seconds=2.0)


def test_figures_are_over_all_rounds() -> None:
    found = figures([one_round(300, [0.001]), one_round(100, [0.003])])
    assert found["prefix hit rate"] == 0.5
    assert found["queue wait, p50 ms"] == pytest.approx(2.0)
    assert found["output tok/s"] == 40.0
    assert found["failed"] == 0.0


def test_the_table_judges_hit_rate_and_wait() -> None:
    table = make_table({"ours": [one_round(300, [0.002])], "other": [one_round(100, [0.001])]})
    judged = {row[0]: row[-1] for row in table.rows if row[-1]}
    assert judged == {"prefix hit rate": "met", "queue wait, p99 ms": "**missed**"}


def test_waits_are_those_of_requests_that_ended_since() -> None:
    lines = [
        LogLine(1.0, "front", "request", {"queue_s": 9.0}),
        LogLine(2.0, "front", "request", {"queue_s": 0.5}),
        LogLine(3.0, "front", "request", {"status": 422}),
        LogLine(4.0, "front", "resumed sequences", {"sequences": 1}),
    ]
    assert queue_waits(lines, since=2.0) == [0.5]


def test_the_same_seed_says_the_same() -> None:
    first, second = (user_text(random.Random("1 2"), 5) for _ in range(2))
    assert first == second
    assert len(first.split()) == 6
