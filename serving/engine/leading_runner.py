"""Rank 0's runner where there are other ranks: tells them every step before it runs its own part.

Stands in for a `ModelRunner` in `loop.py`. Comes in: plans. Goes out: the plan to the followers,
with the tokens of the step before it, and the result of this rank, which alone samples. Next:
`plan_channel.py`, `model_runner.py`.
"""

from serving.engine.logit_rules import TokenMasks
from serving.engine.model_runner import ModelRunner, StepResult
from serving.engine.plan import Plan
from serving.engine.plan_channel import Command, PlanSender


class LeadingRunner:
    """A model runner and the ranks that follow it."""

    def __init__(self, runner: ModelRunner, followers: PlanSender) -> None:
        self._runner = runner
        self._followers = followers
        self._chosen: list[int] = []

    def execute(self, plan: Plan, masks: TokenMasks | None = None) -> StepResult:
        """See `ModelRunner`. Raises `OSError` if a follower has gone."""
        self._followers.send(Command(plan, self._chosen))
        result = self._runner.execute(plan, masks)
        self._chosen = result.choice.token_ids
        return result
