"""The engine's table of contents: receive, schedule, run, complete, reply.

Rank 0. Built by `process.py`. One turn is one step; everything between two forward passes is here
or is called from here, and must stay below a millisecond at 64 rows.
"""

import logging
import time
from collections import defaultdict

from serving.engine.guidance import Guidance
from serving.engine.mailbox import Mailbox
from serving.engine.model_runner import ModelRunner
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import Sequence
from serving.engine.step_metrics import StepMetrics, StepTimes
from serving.protocol.messages import Abort, Delta, EngineInfo, FailureKind, Generate

log = logging.getLogger(__name__)
IDLE_POLL_MS = 100
COMPILING_POLL_MS = 1
OVERLOADED = "Model is overloaded"


class EngineLoop:
    """Serves sequences until `stop()`."""

    def __init__(
        self,
        mailbox: Mailbox,
        scheduler: Scheduler,
        runner: ModelRunner,
        guidance: Guidance,
        metrics: StepMetrics,
        info: EngineInfo,
        max_live: int,
        check_idle: bool,
        start_token_ids: tuple[int, ...] = (),
    ) -> None:
        """`max_live`: admission limit over all front workers; `check_idle`: assert no leaks."""
        self._mailbox = mailbox
        self._scheduler = scheduler
        self._runner = runner
        self._guidance = guidance
        self._metrics = metrics
        self._info = info
        self._max_live = max_live
        self._check_idle = check_idle
        self._start_token_ids = start_token_ids
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
        self._receive(self._poll_ms())
        self._begin_prepared()
        self._refuse_overdue()
        started = time.perf_counter()
        plan = self._scheduler.schedule()
        if plan is None:
            return
        masks = self._guidance.masks(self._scheduler.sampling())
        scheduled = time.perf_counter()
        result = self._runner.execute(plan, masks)
        executed = time.perf_counter()
        deltas = self._scheduler.complete(result.choice)
        completed = time.perf_counter()
        self._reply(deltas)
        replied = time.perf_counter()
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
        if not self._scheduler.num_live:
            self._rest()

    def _poll_ms(self) -> int:
        """How long to wait for messages if there are none."""
        if self._scheduler.num_live:
            return 0
        return COMPILING_POLL_MS if self._guidance.num_pending else IDLE_POLL_MS

    def _begin_prepared(self) -> None:
        """Schedule the sequences whose grammar is compiled, refuse those whose is not valid."""
        for sequence, fault in self._guidance.prepared():
            if fault is None:
                self._scheduler.add(sequence)
            else:
                self._fail(sequence, "validation", fault)

    def _refuse_overdue(self) -> None:
        for sequence in self._scheduler.overdue():
            self._fail(sequence, "overloaded", OVERLOADED)

    def _fail(self, sequence: Sequence, kind: FailureKind, message: str) -> None:
        worker, sequence_id = sequence.key
        self._mailbox.send_failed(worker, sequence_id, kind, message)

    def _rest(self) -> None:
        """The last sequence has ended."""
        self._metrics.observe_sizes(self._scheduler)
        if self._check_idle:
            self._scheduler.blocks.check_idle()

    def _receive(self, timeout_ms: int) -> None:
        had_work = self._scheduler.num_live > 0
        for worker, message in self._mailbox.receive(timeout_ms):
            if isinstance(message, Abort):
                self._guidance.forget((worker, message.sequence_id))
                self._scheduler.abort((worker, message.sequence_id))
            else:
                self._accept(worker, message)
        while self._mailbox.lost_workers:
            worker = self._mailbox.lost_workers.pop()
            log.warning("front worker %s is gone; its sequences are dropped", worker.hex())
            self._guidance.forget_worker(worker)
            self._scheduler.abort_worker(worker)
        if had_work and not self._scheduler.num_live:
            self._rest()

    def _accept(self, worker: bytes, request: Generate) -> None:
        sequence = Sequence.from_request(worker, request, self._start_token_ids)
        live = self._scheduler.num_live + self._guidance.num_pending
        fault = fault_of(request, self._info)
        if live >= self._max_live and not request.resume_token_ids:
            self._fail(sequence, "overloaded", OVERLOADED)
        elif fault:
            self._fail(sequence, "validation", fault)
        elif request.grammar is not None:
            self._guidance.prepare(sequence)
        else:
            self._scheduler.add(sequence)

    def _reply(self, deltas: list[tuple[Sequence, Delta]]) -> None:
        by_worker: defaultdict[bytes, list[Delta]] = defaultdict(list)
        for sequence, delta in deltas:
            if sequence.guide is not None and sequence.guide.error is not None:
                self._scheduler.abort(sequence.key)
                self._fail(sequence, "validation", sequence.guide.error)
            else:
                by_worker[sequence.key[0]].append(delta)
        for worker, own in by_worker.items():
            self._mailbox.send_step(worker, own)


def fault_of(request: Generate, info: EngineInfo) -> str | None:
    """Why the engine cannot run this request; the front has validated it, a bug might not have."""
    tokens = request.prompt_token_ids + request.resume_token_ids
    if not tokens:
        return "`inputs` has no tokens"
    if not 0 <= min(tokens) <= max(tokens) < info.vocab_size:
        return (
            f"token ids must be >= 0 and < {info.vocab_size}. Given: {min(tokens)}..{max(tokens)}"
        )
    total = len(request.prompt_token_ids) + request.stop.max_new_tokens
    if total > info.max_total_tokens:
        return f"prompt and new tokens must be <= {info.max_total_tokens}. Given: {total}"
    return None
