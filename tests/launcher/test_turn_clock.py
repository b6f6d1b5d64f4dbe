"""The launcher's own time."""

from collections.abc import Iterator

from serving.launcher.turn_clock import TurnClock


def clock_that_sees(*times: float) -> TurnClock:
    seen: Iterator[float] = iter(times)
    return TurnClock(lambda: next(seen))


def test_turns_add_up() -> None:
    clock = clock_that_sees(100.0, 100.25, 100.5)
    clock.tick()
    clock.tick()
    assert clock.now == 0.5


def test_a_pause_of_the_machine_is_one_turn() -> None:
    clock = clock_that_sees(100.0, 4000.0, 4000.25)
    clock.tick()
    assert clock.now == 0.5
    clock.tick()
    assert clock.now == 0.75
