"""Silence of ranks."""

import pytest

from serving.launcher.stall_watch import StallWatch


@pytest.mark.parametrize(
    ("given", "worst_step", "limit"), [(2.5, 60.0, 2.5), (None, 0.5, 30.0), (None, 4.0, 40.0)]
)
def test_limit(given: float | None, worst_step: float, limit: float) -> None:
    watch = StallWatch(given)
    watch.started(0, worst_step, 0.0)
    watch.started(1, 0.1, 0.0)
    assert watch.limit == limit


def test_the_worst_step_is_remembered_over_restarts() -> None:
    watch = StallWatch(None)
    watch.started(0, 4.0, 0.0)
    watch.forget()
    watch.started(0, 0.0, 50.0)
    assert watch.limit == 40.0


def test_silence_counts_from_the_last_sign_of_life() -> None:
    watch = StallWatch(2.0)
    watch.started(0, 0.0, 10.0)
    watch.heard(0, 11.0)
    assert watch.silent(13.0) == []
    assert watch.silent(13.5) == [(0, 2.5)]


def test_the_longest_silence_comes_first() -> None:
    watch = StallWatch(1.0)
    for rank, heard in enumerate((3.0, 2.0, 9.5)):
        watch.started(rank, 0.0, heard)
    assert watch.silent(10.0) == [(1, 8.0), (0, 7.0)]


def test_who_has_not_started_is_not_watched() -> None:
    watch = StallWatch(1.0)
    watch.heard(0, 0.0)
    assert watch.silent(100.0) == []


def test_who_has_ended_is_not_watched() -> None:
    watch = StallWatch(1.0)
    watch.started(0, 0.0, 0.0)
    watch.forget()
    assert watch.silent(100.0) == []
