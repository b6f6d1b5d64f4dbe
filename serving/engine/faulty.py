"""Injects the faults of `--fault` into one rank: composed by `process.py`, only in tests.

Runs in a rank. Comes in: the faults of this rank and epoch (`serving/fault.py`). A `FaultyRunner`
stands in front of the rank's `ModelRunner` and strikes before a step; `at_phase()` gives the hook
of `LauncherReports` that strikes when a start-up phase begins. Next: `model_runner.py`.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Never, cast

import torch

from serving.engine.plan import Admission, Plan
from serving.engine.step.logit_rules import TokenMasks
from serving.engine.step.model_runner import Launched, ModelRunner, Pending, StepResult
from serving.fault import Fault
from serving.models.causal_model import CausalModel

log = logging.getLogger(__name__)


def around(
    runner: ModelRunner, decoder: CausalModel, faults: tuple[Fault, ...], spare_row: int
) -> ModelRunner:
    """The runner with these faults in front of it, or the runner itself if none strikes at a step.

    `decoder`: the runner's, whose forward pass runs out of memory where a fault says so.
    `spare_row`: the row of the proof of progress, which is no sequence and no step.
    """
    at_steps = [fault for fault in faults if fault.phase is None]
    if not at_steps:
        return runner
    return cast(ModelRunner, FaultyRunner(runner, decoder, at_steps, spare_row))


def at_phase(faults: tuple[Fault, ...]) -> Callable[[str], None]:
    """A function to be called when a start-up phase begins, with its name."""

    def begin(phase: str) -> None:
        for fault in faults:
            if fault.phase == phase:
                strike(fault, f"phase '{phase}'")

    return begin


class FaultyRunner:
    """What `loop.py` and `follower.py` use of a `ModelRunner`; each fault strikes once."""

    def __init__(
        self, runner: ModelRunner, decoder: CausalModel, faults: list[Fault], spare_row: int
    ) -> None:
        """See `around()`."""
        self._runner = runner
        self._decoder = decoder
        self._faults = faults
        self._spare_row = spare_row
        self._steps = 0
        self._prompts: dict[int, frozenset[int]] = {}  # row: token ids of its sequence's prompt

    def launch(self, plan: Plan) -> Launched:
        """See `ModelRunner`; raises what a fault says."""
        with self._struck(plan):
            return self._runner.launch(plan)

    def choose(self, launched: Launched, masks: TokenMasks | None = None) -> Pending:
        """See `ModelRunner`."""
        return self._runner.choose(launched, masks)

    def finish(self, pending: Pending) -> StepResult:
        """See `ModelRunner`."""
        return self._runner.finish(pending)

    def follow(self, plan: Plan, chosen: list[int]) -> None:
        """See `ModelRunner`; raises what a fault says."""
        with self._struck(plan):
            self._runner.follow(plan, chosen)

    @contextmanager
    def _struck(self, plan: Plan) -> Iterator[None]:
        """Strikes before the body, but out of memory inside of it, behind the row table."""
        self._prompts |= {admission.row: _prompt(admission) for admission in plan.admissions}
        if plan.rows != [self._spare_row]:
            self._steps += 1
        due = [fault for fault in self._faults if self._is_due(fault, plan)]
        self._faults = [fault for fault in self._faults if fault not in due]
        where = f"step {self._steps}"
        for fault in due:
            if fault.action != "oom":
                strike(fault, where)
        if not due:
            yield
            return
        with _no_memory(self._decoder, due[0], where):
            yield

    def _is_due(self, fault: Fault, plan: Plan) -> bool:
        if fault.token is not None:
            return any(fault.token in self._prompts[row] for row in plan.rows)
        return fault.step == self._steps


def strike(fault: Fault, where: str) -> Never:
    """Do what the fault says.

    Raises `RuntimeError` or `torch.OutOfMemoryError`, or never returns.
    """
    log.warning("injected fault: %s at %s", fault.action, where)
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.action == "raise":
        raise RuntimeError(f"injected fault at {where}")
    if fault.action == "oom":
        raise torch.OutOfMemoryError(f"injected fault at {where}")
    while True:
        threading.Event().wait()


@contextmanager
def _no_memory(decoder: CausalModel, fault: Fault, where: str) -> Iterator[None]:
    """The decoder's forward pass finds no memory inside the block."""

    def forward(*_: object) -> Never:
        strike(fault, where)

    setattr(decoder, "forward", forward)  # noqa: B010 - shadows the method of this one instance
    try:
        yield
    finally:
        delattr(decoder, "forward")


def _prompt(admission: Admission) -> frozenset[int]:
    return frozenset(admission.token_ids[: admission.prompt_length])
