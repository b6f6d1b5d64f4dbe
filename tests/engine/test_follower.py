"""A leader and a follower in one process, joined by a socket."""

import threading
from multiprocessing import Pipe
from typing import Any

import pytest

from serving.engine.follower import FollowerLoop
from serving.engine.leading_runner import LeadingRunner
from serving.engine.plan import Choice, Plan
from serving.engine.plan_channel import PlanReader, PlanSender
from serving.engine.step.model_runner import StepResult


class FakeRunner:
    """Chooses the step's number for each row, and notes what it is told to follow."""

    def __init__(self) -> None:
        self.steps = 0
        self.followed: list[tuple[list[int], list[int]]] = []

    def launch(self, plan: Plan) -> Plan:
        self.steps += 1
        return plan

    def choose(self, launched: Plan, masks: object = None) -> Plan:
        return launched

    def finish(self, pending: Plan) -> StepResult:
        count = len(pending.rows)
        return StepResult(Choice(pending.rows, [self.steps] * count, [0.0] * count, []), 0.0)

    def follow(self, plan: Plan, chosen: list[int]) -> None:
        self.followed.append((plan.rows, chosen))


class FakeReports:
    def __init__(self) -> None:
        self.count = 0

    def alive(self) -> None:
        self.count += 1


def test_a_follower_gets_each_plan_with_the_tokens_of_the_step_before() -> None:
    near, far = Pipe()
    leading, followed, reports = FakeRunner(), FakeRunner(), FakeReports()
    lead: Any = leading
    sender = PlanSender([near])  # type: ignore[list-item]
    runner = LeadingRunner(lead, sender, tells_tokens=True)
    for rows in ([0], [0, 3], [3]):
        launched = runner.launch(Plan([], [], rows, [1] * len(rows), len(rows)))
        runner.finish(runner.choose(launched))
    sender.close()
    loop = FollowerLoop(PlanReader(far), followed, reports)  # type: ignore[arg-type]
    with pytest.raises(EOFError):  # the leader has gone: so must the follower
        loop.run()
    assert followed.followed == [([0], []), ([0, 3], [1]), ([3], [2, 2])]
    assert reports.count == 3


def test_a_follower_stops_when_it_is_told_to() -> None:
    near, far = Pipe()
    runner: Any = FakeRunner()
    reports: Any = FakeReports()
    loop = FollowerLoop(PlanReader(far), runner, reports)  # type: ignore[arg-type]
    thread = threading.Thread(target=loop.run)
    thread.start()
    loop.stop()
    thread.join(5)
    assert not thread.is_alive()
    near.close()
