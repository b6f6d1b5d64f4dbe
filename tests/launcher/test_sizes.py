"""What the next start is told about sizes."""

from serving.launcher.death import Death
from serving.launcher.sizes import MAX_SHRINKS, Sizes
from serving.protocol.messages import Limits

LIMITS = Limits(10, 20, 3, 40, 50)
CRASH = Death("the engine", "KeyError", "weights", "")
OUT_OF_MEMORY = Death("the engine", "no memory", "warm-up", "", out_of_memory=True)
KILLED = Death("the engine", "ended with signal SIGKILL", "warm-up", "", killed_while_hungry=True)


def measured() -> Sizes:
    sizes = Sizes()
    sizes.measured(LIMITS)
    return sizes


def test_limits_stay_after_a_crash() -> None:
    sizes = measured()
    assert not sizes.shrinks_after(CRASH)
    assert (sizes.limits, sizes.shrink) == (LIMITS, 0)


def test_want_of_memory_makes_the_step_smaller_and_limits_unknown() -> None:
    sizes = measured()
    assert sizes.shrinks_after(OUT_OF_MEMORY)
    assert (sizes.limits, sizes.shrink) == (None, 1)


def test_a_kill_before_anything_has_fitted_is_want_of_memory() -> None:
    assert Sizes().shrinks_after(KILLED)


def test_one_kill_is_no_proof_against_limits_that_have_fitted() -> None:
    sizes = measured()
    assert not sizes.shrinks_after(KILLED)
    assert sizes.shrinks_after(KILLED)


def test_kills_with_a_start_in_between_are_no_proof() -> None:
    sizes = measured()
    assert not sizes.shrinks_after(KILLED)
    sizes.measured(LIMITS)
    assert not sizes.shrinks_after(KILLED)


def test_there_is_an_end_to_it() -> None:
    sizes = Sizes()
    assert [sizes.shrinks_after(OUT_OF_MEMORY) for _ in range(7)] == [True] * 5 + [False] * 2
    assert sizes.shrink == MAX_SHRINKS == 5
