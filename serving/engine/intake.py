"""What the front asks for, on its way to the scheduler: checked, its grammar compiled, or refused.

Rank 0. Called by `loop.py` between steps. Comes in: the mailbox's messages. Goes out: sequences in
the scheduler, refusals to the front. Suspects (see `Generate.is_suspect`) come in one at a time:
each is on trial until it gets its first token, which the launcher is told before anything of it
runs. Next: `guidance.py`, `scheduler.py`.
"""

import logging
from collections import deque

from serving.engine.launcher_reports import LauncherReports
from serving.engine.mailbox import Mailbox
from serving.engine.schedule.guidance import Guidance
from serving.engine.schedule.scheduler import Scheduler
from serving.engine.schedule.sequence import Sequence, SequenceKey
from serving.protocol.messages import Abort, CloseSession, EngineInfo, FailureKind, Generate

log = logging.getLogger(__name__)
OVERLOADED = "Model is overloaded"


class Intake:
    """Takes sequences in, and out again when nobody wants them any more."""

    def __init__(
        self,
        mailbox: Mailbox,
        scheduler: Scheduler,
        guidance: Guidance,
        reports: LauncherReports,
        info: EngineInfo,
        max_live: int,
        start_token_ids: tuple[int, ...] = (),
    ) -> None:
        """`max_live`: admission limit over all front workers."""
        self._mailbox = mailbox
        self._scheduler = scheduler
        self._guidance = guidance
        self._reports = reports
        self._info = info
        self._max_live = max_live
        self._start_token_ids = start_token_ids
        self._suspects: deque[Sequence] = deque()
        self._trial: Sequence | None = None

    @property
    def num_live(self) -> int:
        """Sequences that have not ended, wherever they are."""
        return self._scheduler.num_live + self._guidance.num_pending + len(self._suspects)

    @property
    def must_wait(self) -> bool:
        """Whether no step may run: the grammar of a suspect is being compiled."""
        return self._trial is not None and self._guidance.is_pending(self._trial.key)

    def turn(self, timeout_ms: int) -> None:
        """Take what has come, waiting if told to; begin what is prepared, end what is late."""
        for worker, message in self._mailbox.receive(timeout_ms):
            if isinstance(message, Abort):
                self._forget((worker, message.sequence_id))
            elif isinstance(message, CloseSession):
                self._scheduler.pins.drop(message.session_id)
            else:
                self._accept(worker, message)
        while self._mailbox.lost_workers:
            self._forget_worker(self._mailbox.lost_workers.pop())
        for sequence, fault in self._guidance.prepared():
            if fault is None:
                self._scheduler.add(sequence)
            else:
                self.fail(sequence, "validation", fault)
        self._scheduler.pins.drop_expired()
        for sequence in self._scheduler.overdue():
            self.fail(sequence, "overloaded", OVERLOADED)
        if self._trial is not None or self._suspects:
            self._go_on_with_trials()

    def fail(self, sequence: Sequence, kind: FailureKind, message: str) -> None:
        """Tell the front that the sequence has ended; nothing holds it any more."""
        worker, sequence_id = sequence.key
        self._mailbox.send_failed(worker, sequence_id, kind, message)

    def _accept(self, worker: bytes, request: Generate) -> None:
        sequence = Sequence.from_request(worker, request, self._start_token_ids)
        fault = fault_of(request, self._info)
        if self.num_live >= self._max_live and not request.is_resumed:
            self.fail(sequence, "overloaded", OVERLOADED)
        elif fault:
            self.fail(sequence, "validation", fault)
        elif request.is_suspect:
            self._suspects.append(sequence)
        else:
            self._begin(sequence)

    def _begin(self, sequence: Sequence) -> None:
        if sequence.request.grammar is not None:
            self._guidance.prepare(sequence)
        else:
            self._scheduler.add(sequence)

    def _go_on_with_trials(self) -> None:
        """End the trial if it is decided, and begin the next one."""
        trial = self._trial
        if trial is not None:
            if not trial.has_new_token and self._is_live(trial.key):
                return
            self._trial = None
            self._reports.trial_over()
        if self._suspects:
            self._trial = self._suspects.popleft()
            log.warning("sequence %d was in two crashes: it begins alone", self._trial.key[1])
            self._reports.trial(self._trial.key)
            self._begin(self._trial)

    def _is_live(self, key: SequenceKey) -> bool:
        return self._guidance.is_pending(key) or self._scheduler.is_live(key)

    def _forget(self, key: SequenceKey) -> None:
        self._suspects = deque(one for one in self._suspects if one.key != key)
        self._guidance.forget(key)
        self._scheduler.abort(key)

    def _forget_worker(self, worker: bytes) -> None:
        log.warning("front worker %s is gone; its sequences are dropped", worker.hex())
        self._suspects = deque(one for one in self._suspects if one.key[0] != worker)
        self._guidance.forget_worker(worker)
        self._scheduler.abort_worker(worker)


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
