"""When a group counts as healthy."""

import pytest

from serving.launcher.health import GroupHealth


def served(recovery_seconds: float | None, first_start: float) -> GroupHealth:
    health = GroupHealth(recovery_seconds)
    health.assigned(1.0)
    health.serves(1.0 + first_start)
    return health


def test_loading_is_not_healthy() -> None:
    health = GroupHealth(None)
    health.assigned(0.0)
    assert not health.is_healthy(1.0)
    health.died(1.0)
    assert not health.is_healthy(1.0)


def test_serving_is_healthy_for_ever() -> None:
    assert served(5.0, 2.0).is_healthy(1e6)


@pytest.mark.parametrize(
    ("given", "first_start", "limit"), [(5.0, 60.0, 5.0), (None, 2.0, 30.0), (None, 20.0, 60.0)]
)
def test_a_recovery_is_healthy_within_its_limit(
    given: float | None, first_start: float, limit: float
) -> None:
    health = served(given, first_start)
    health.died(100.0)
    assert [health.is_healthy(100.0 + limit + more) for more in (-0.1, 0.1)] == [True, False]


def test_dying_again_does_not_make_a_recovery_younger() -> None:
    health = served(10.0, 2.0)
    health.died(100.0)
    health.assigned(101.0)
    health.died(105.0)
    assert not health.is_healthy(111.0)


def test_a_slow_restart_does_not_move_the_limit() -> None:
    health = served(None, 2.0)
    health.died(100.0)
    health.assigned(100.0)
    health.serves(150.0)
    assert health.limit == 30.0


def test_the_next_recovery_has_the_whole_limit() -> None:
    health = served(10.0, 2.0)
    health.died(100.0)
    health.serves(105.0)
    health.died(200.0)
    assert health.is_healthy(209.0)
    assert health.down_seconds(209.0) == 9.0
