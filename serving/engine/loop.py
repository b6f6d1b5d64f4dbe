"""The engine's table of contents: receive, schedule, run, complete, reply.

Rank 0. Built by `process.py`. One turn is one step; everything between two forward passes is here
or is called from here, and must stay below a millisecond at 64 rows. On a GPU all of it happens
beside a forward pass: a step is launched before the tokens of the one ahead of it are read.
"""

import logging
import time
from collections import defaultdict
from dataclasses import dataclass

from serving.engine.intake import Intake
from serving.engine.life_signs import LifeSigns, Runner
from serving.engine.load_reports import LoadReports
from serving.engine.mailbox import Mailbox
from serving.engine.out_of_memory import is_out_of_memory
from serving.engine.plan import Plan
from serving.engine.schedule.guidance import Guidance
from serving.engine.schedule.scheduler import Scheduler
from serving.engine.schedule.sequence import Sequence
from serving.engine.step.model_runner import Pending
from serving.engine.step_metrics import StepMetrics, StepTimes
from serving.protocol.messages import Delta

log = logging.getLogger(__name__)
IDLE_POLL_MS = 100
COMPILING_POLL_MS = 1


@dataclass(frozen=True)
class _Step:
    """A step whose tokens are not read yet."""

    pending: Pending
    began: float  # time.perf_counter()
    scheduling: float  # seconds


class EngineLoop:
    """Serves sequences until `stop()`."""

    def __init__(
        self,
        intake: Intake,
        scheduler: Scheduler,
        guidance: Guidance,
        runner: Runner,
        mailbox: Mailbox,
        life: LifeSigns,
        metrics: StepMetrics,
        loads: LoadReports | None = None,
        overlaps: bool = False,
        repeats_steps: bool = True,
        check_idle: bool = False,
    ) -> None:
        """`loads`: only with siblings; `check_idle`: assert that nothing leaks.

        `overlaps`: a step is launched before the one ahead of it is complete. Where the device is
        the CPU itself that gains nothing, and wastes the rows that have ended. `repeats_steps`: a
        step that ran out of memory is run again, smaller. Not with several ranks, of which others
        may wait in the middle of the step.
        """
        self._intake = intake
        self._scheduler = scheduler
        self._guidance = guidance
        self._runner = runner
        self._mailbox = mailbox
        self._life = life
        self._metrics = metrics
        self._loads = loads
        self._overlaps = overlaps
        self._repeats_steps = repeats_steps
        self._check_idle = check_idle
        self._ahead: _Step | None = None
        self._was_busy = False
        self._running = True

    def stop(self) -> None:
        """Return from `run()` after the current step (called from a signal handler)."""
        self._running = False

    def run(self) -> None:
        """Turn until stopped."""
        self._metrics.observe_sizes(self._scheduler)  # so that dashboards see an idle engine
        while self._running:
            self.turn()

    def turn(self) -> None:
        """One step, or a short wait for messages when there is nothing to do."""
        self._intake.turn(self._poll_ms())
        if not self._step():
            self._life.prove_if_due()
        if not self._scheduler.num_live and self._was_busy:
            self._rest()
        self._was_busy = self._scheduler.num_live > 0
        if self._loads is not None:
            self._loads.send_if_due(self._intake.num_live)

    def _step(self) -> bool:
        """Start the next step and complete the one ahead of it; False if there is neither."""
        began = time.perf_counter()
        plan = None if self._intake.must_wait else self._scheduler.schedule()
        if plan is None:
            return self._complete_ahead()
        self._was_busy = True
        scheduled = time.perf_counter()
        try:
            pending = self._start(plan)
        except Exception as error:
            self._set_back(error)
            return True
        self._ahead = _Step(pending, began, scheduled - began)
        if not self._overlaps:
            self._complete_ahead()
        return True

    def _start(self, plan: Plan) -> Pending:
        """Launch a step; the tokens of the one ahead are known when its own are chosen."""
        launched = self._runner.launch(plan)
        self._complete_ahead()
        masks = self._guidance.masks(self._scheduler.sampling())
        return self._runner.choose(launched, masks)

    def _complete_ahead(self) -> bool:
        """Read the tokens of the step ahead, append and send them; False if there is none."""
        step, self._ahead = self._ahead, None
        if step is None:
            return False
        result = self._runner.finish(step.pending)
        arrived = time.perf_counter()
        deltas = self._scheduler.complete(result.choice)
        completed = time.perf_counter()
        self._reply(deltas)
        replied = time.perf_counter()
        self._life.step_done()
        times = StepTimes(
            whole=replied - step.began,
            schedule=step.scheduling,
            forward=result.forward_seconds,
            complete=completed - arrived,
            reply=replied - completed,
        )
        self._metrics.observe(self._scheduler, times)
        return True

    def _poll_ms(self) -> int:
        """How long to wait for messages if there are none."""
        if self._scheduler.num_live or self._ahead is not None:
            return 0
        return COMPILING_POLL_MS if self._guidance.num_pending else IDLE_POLL_MS

    def _set_back(self, error: Exception) -> None:
        """Undo a step for which memory was lacking, and make the next ones smaller.

        Raises `error` if it is another one, or if steps cannot be smaller.
        """
        self._metrics.observe_failure(self._scheduler)
        if not (self._repeats_steps and is_out_of_memory(error) and self._scheduler.can_shrink):
            raise error
        self._complete_ahead()
        self._scheduler.retract()
        log.warning("a step ran out of memory and is run again, smaller: %s", error)

    def _reply(self, deltas: list[tuple[Sequence, Delta]]) -> None:
        by_worker: defaultdict[bytes, list[Delta]] = defaultdict(list)
        for sequence, delta in deltas:
            if sequence.guide is not None and sequence.guide.error is not None:
                self._scheduler.abort(sequence.key)
                self._intake.fail(sequence, "validation", sequence.guide.error)
            else:
                by_worker[sequence.key[0]].append(delta)
        for worker, own in by_worker.items():
            self._mailbox.send_step(worker, own)

    def _rest(self) -> None:
        """The last sequence has ended."""
        self._metrics.observe_sizes(self._scheduler)
        if self._check_idle:
            self._scheduler.check_idle()
