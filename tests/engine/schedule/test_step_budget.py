"""The budget of a step after memory ran out, and its way back."""

import pytest

from serving.engine.schedule.step_budget import STEPS_TO_RECOVER, StepBudget, StepSize

BLOCK = 16


def budget(tokens: int = 512, rows: int = 128) -> StepBudget:
    return StepBudget(StepSize(tokens, rows), BLOCK)


def size_of(one: StepBudget) -> tuple[int, int]:
    return one.tokens, one.rows


@pytest.mark.parametrize(
    ("used", "left"),
    [
        (StepSize(512, 128), (256, 64)),
        (StepSize(300, 5), (150, 2)),  # relative to what ran, not to what might have
        (StepSize(400, 1), (200, 128)),  # one prompt: its rows were not the matter
        (StepSize(20, 2), (BLOCK, 1)),
        (StepSize(900, 3), (450, 1)),  # whole prompts may exceed the budget
        (StepSize(2000, 3), (512, 1)),  # and never raise it
    ],
)
def test_a_failed_step_halves_what_it_held(used: StepSize, left: tuple[int, int]) -> None:
    one = budget()
    one.shrink(used)
    assert size_of(one) == left
    assert one.is_shrunk


def test_a_budget_below_a_block_is_its_own_floor() -> None:
    one = budget(tokens=5)
    one.shrink(StepSize(5, 2))
    assert size_of(one) == (5, 1)


@pytest.mark.parametrize(
    ("used", "whole_prompts", "can"),
    [
        (StepSize(2, 2), False, True),
        (StepSize(BLOCK + 1, 1), False, True),
        (StepSize(BLOCK, 1), False, False),
        (StepSize(400, 1), True, False),
        (StepSize(400, 2), True, True),
    ],
)
def test_what_can_be_smaller(used: StepSize, whole_prompts: bool, can: bool) -> None:
    assert budget().can_shrink(used, whole_prompts) is can


def test_completed_steps_double_it_until_it_is_as_configured() -> None:
    one = budget(tokens=100, rows=6)
    one.shrink(StepSize(100, 6))
    one.shrink(StepSize(50, 3))
    assert size_of(one) == (25, 1)
    sizes = []
    for _ in range(3):
        for _ in range(STEPS_TO_RECOVER):
            one.step_completed()
        sizes.append(size_of(one))
    assert sizes == [(50, 2), (100, 4), (100, 6)]
    assert not one.is_shrunk


def test_another_failure_begins_the_count_again() -> None:
    one = budget()
    one.shrink(StepSize(512, 128))
    for _ in range(STEPS_TO_RECOVER - 1):
        one.step_completed()
    one.shrink(StepSize(100, 50))
    one.step_completed()
    assert size_of(one) == (50, 25)
