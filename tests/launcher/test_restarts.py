"""The budget of restarts and the pauses between them."""

from serving.launcher.restarts import RestartBudget


def test_the_first_is_immediate_and_pauses_grow_to_10_seconds() -> None:
    budget = RestartBudget(10)
    assert [budget.take(0.0) for _ in range(8)] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_success_makes_the_next_immediate() -> None:
    budget = RestartBudget(10)
    budget.take(0.0)
    budget.take(0.0)
    budget.succeeded()
    assert budget.take(0.0) == 0.0


def test_success_gives_no_restart_back_but_ten_minutes_do() -> None:
    budget = RestartBudget(2)
    budget.take(0.0)
    budget.take(100.0)
    budget.succeeded()
    assert [budget.left(now) for now in (100.0, 599.0, 600.0, 700.0)] == [0, 0, 1, 2]
