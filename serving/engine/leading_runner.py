"""Rank 0's runner where there are other ranks: tells them every step before it runs its own part.

Stands in for a `ModelRunner` in `loop.py`. Comes in: plans. Goes out: the plan to the followers,
with the tokens of the step before it if these are known by then, and the result of this rank, which
alone samples. Next:
`plan_channel.py`, `model_runner.py`.
"""

from serving.engine.plan import Plan
from serving.engine.plan_channel import Command, PlanSender
from serving.engine.step.logit_rules import TokenMasks
from serving.engine.step.model_runner import Launched, ModelRunner, Pending, StepResult


class LeadingRunner:
    """A model runner and the ranks that follow it."""

    def __init__(self, runner: ModelRunner, followers: PlanSender, tells_tokens: bool) -> None:
        """`tells_tokens`: with each plan; else the ranks share them on their devices."""
        self._runner = runner
        self._followers = followers
        self._tells_tokens = tells_tokens
        self._chosen: list[int] = []

    def launch(self, plan: Plan) -> Launched:
        """See `ModelRunner`. Raises `OSError` if a follower has gone."""
        self._followers.send(Command(plan, self._chosen))
        return self._runner.launch(plan)

    def choose(self, launched: Launched, masks: TokenMasks | None = None) -> Pending:
        """See `ModelRunner`."""
        return self._runner.choose(launched, masks)

    def finish(self, pending: Pending) -> StepResult:
        """See `ModelRunner`."""
        result = self._runner.finish(pending)
        if self._tells_tokens:
            self._chosen = result.choice.token_ids
        return result
