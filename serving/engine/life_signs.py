"""Forward progress as the launcher and health checks see it: every step, or a proof while idle.

Rank 0. Used by `loop.py`. An idle engine runs a tiny step now and then, on all ranks: only a
forward pass shows that devices, ranks and the links between them still work. Next:
`launcher_reports.py`.
"""

import math
import time
from typing import Protocol

from serving.engine.launcher_reports import LauncherReports
from serving.engine.plan import Plan
from serving.engine.step.logit_rules import TokenMasks
from serving.engine.step.model_runner import Launched, Pending, StepResult

PROOF_SECONDS = 5.0  # without a step, until one is run for its own sake
PROOFS_IN_A_STALL = 3  # at least: one that comes late is no stall


class Runner(Protocol):
    """What runs steps: a `ModelRunner`, or a `LeadingRunner` around it."""

    def launch(self, plan: Plan) -> Launched:
        """See `ModelRunner`, for this and the others."""

    def choose(self, launched: Launched, masks: TokenMasks | None = None) -> Pending:
        """Choose the tokens of a launched step."""

    def finish(self, pending: Pending) -> StepResult:
        """Wait for them."""


class LifeSigns:
    """Knows when the last step was."""

    def __init__(
        self,
        reports: LauncherReports,
        runner: Runner,
        proof: Plan,
        stall_seconds: float | None = None,
    ) -> None:
        """`proof`: a step that touches no sequence (`warm_up.proof_plan`).

        `stall_seconds`: silence that the launcher takes for a stall; None: well above ours.
        """
        self._reports = reports
        self._runner = runner
        self._proof = proof
        self._interval = min(PROOF_SECONDS, (stall_seconds or math.inf) / PROOFS_IN_A_STALL)
        self._last_step = time.monotonic()

    def step_done(self) -> None:
        """A step was run to its end."""
        self._last_step = time.monotonic()
        self._reports.alive()

    def prove_if_due(self) -> None:
        """Run the proof if there was no step for long."""
        if time.monotonic() - self._last_step >= self._interval:
            self._runner.finish(self._runner.choose(self._runner.launch(self._proof)))
            self.step_done()
