"""A rank's end of the pipe to the launcher: phases, signs of life, trials, its last words.

Used by `process.py` and the loops. Each message goes behind its length (4 bytes, little endian).
Written before the next thing is done, so that the launcher has it whatever happens then.
"""

import logging
import os
import time
from collections.abc import Callable

from serving.engine.schedule.sequence import SequenceKey
from serving.protocol import codec
from serving.protocol.messages import (
    Alive,
    Crash,
    Limits,
    Progress,
    SequenceName,
    Started,
    ToLauncher,
    Trial,
    TrialOver,
)

log = logging.getLogger(__name__)
ALIVE_SECONDS = 0.25  # between two signs of life, at least


class LauncherReports:
    """Writes to an inherited file descriptor; remembers the current phase."""

    def __init__(self, fd: int) -> None:
        self.on_begin: Callable[[str], None] | None = None  # told of every phase, before its work
        self._fd = fd
        self._phase = "engine start"
        self._since = time.monotonic()
        self._alive_due = 0.0

    @property
    def phase(self) -> str:
        """The phase that is running."""
        return self._phase

    def begin(self, phase: str) -> None:
        """A start-up phase begins; the time of the last one is logged."""
        now = time.monotonic()
        log.info("phase '%s' took %.2f s; next '%s'", self._phase, now - self._since, phase)
        self._phase, self._since = phase, now
        self._send(Progress(phase))
        if self.on_begin is not None:
            self.on_begin(phase)

    def started(self, epoch: int, limits: Limits, worst_step_seconds: float) -> None:
        """Every phase is done."""
        self._send(Started(epoch, limits, worst_step_seconds))

    def alive(self) -> None:
        """A forward pass was completed; said a few times in a second at most."""
        now = time.monotonic()
        if now >= self._alive_due:
            self._alive_due = now + ALIVE_SECONDS
            self._send(Alive())

    def trial(self, key: SequenceKey) -> None:
        """This suspect is about to run alone."""
        self._send(Trial(SequenceName(*key)))

    def trial_over(self) -> None:
        """The suspect has got its token, or has gone."""
        self._send(TrialOver())

    def crash(self, cause: str, remedy: str, out_of_memory: bool = False) -> None:
        """The process is about to exit."""
        self._send(Crash(self._phase, cause, remedy, out_of_memory))

    def _send(self, message: ToLauncher) -> None:
        os.write(self._fd, codec.framed(message))
