"""The engine's table of contents: receive, schedule, run, complete, reply.

Rank 0. Built by `process.py`. One turn is one step; everything between two forward passes is here
or is called from here, and must stay below a millisecond at 64 rows.
"""

import logging
import time
from collections import defaultdict

from serving.engine.guidance import Guidance
from serving.engine.intake import Intake
from serving.engine.life_signs import LifeSigns, Runner
from serving.engine.load_reports import LoadReports
from serving.engine.mailbox import Mailbox
from serving.engine.out_of_memory import is_out_of_memory
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import Sequence
from serving.engine.step_metrics import StepMetrics, StepTimes
from serving.protocol.messages import Delta

log = logging.getLogger(__name__)
IDLE_POLL_MS = 100
COMPILING_POLL_MS = 1


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
        repeats_steps: bool = True,
        check_idle: bool = False,
    ) -> None:
        """`loads`: only with siblings; `check_idle`: assert that nothing leaks.

        `repeats_steps`: a step that ran out of memory is run again, smaller. Not with several
        ranks, of which others may wait in the middle of the step.
        """
        self._intake = intake
        self._scheduler = scheduler
        self._guidance = guidance
        self._runner = runner
        self._mailbox = mailbox
        self._life = life
        self._metrics = metrics
        self._loads = loads
        self._repeats_steps = repeats_steps
        self._check_idle = check_idle
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
        if self._intake.must_wait or not self._step():
            self._life.prove_if_due()
        if not self._scheduler.num_live and self._was_busy:
            self._rest()
        self._was_busy = self._scheduler.num_live > 0
        if self._loads is not None:
            self._loads.send_if_due(self._intake.num_live)

    def _step(self) -> bool:
        """Run the next step; False if there is none."""
        started = time.perf_counter()
        plan = self._scheduler.schedule()
        if plan is None:
            return False
        self._was_busy = True
        masks = self._guidance.masks(self._scheduler.sampling())
        scheduled = time.perf_counter()
        try:
            result = self._runner.execute(plan, masks)
        except Exception as error:
            self._set_back(error)
            return True
        executed = time.perf_counter()
        deltas = self._scheduler.complete(result.choice)
        completed = time.perf_counter()
        self._reply(deltas)
        replied = time.perf_counter()
        self._life.step_done()
        self._metrics.observe(
            self._scheduler,
            StepTimes(
                whole=replied - started,
                schedule=scheduled - started,
                forward=result.forward_seconds,
                complete=completed - executed,
                reply=replied - completed,
            ),
        )
        return True

    def _poll_ms(self) -> int:
        """How long to wait for messages if there are none."""
        if self._scheduler.num_live:
            return 0
        return COMPILING_POLL_MS if self._guidance.num_pending else IDLE_POLL_MS

    def _set_back(self, error: Exception) -> None:
        """Undo a step for which memory was lacking, and make the next ones smaller.

        Raises `error` if it is another one, or if steps cannot be smaller.
        """
        self._metrics.observe_failure(self._scheduler)
        if not (self._repeats_steps and is_out_of_memory(error) and self._scheduler.can_shrink):
            raise error
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
