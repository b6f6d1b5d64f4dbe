"""The engine's end of the pipe to the launcher: which phase has begun, started, or why it died.

Used by `process.py`. Each message goes behind its length (4 bytes, little endian).
"""

import logging
import os
import struct
import time

from serving.protocol import codec
from serving.protocol.messages import Crash, Progress, Started

log = logging.getLogger(__name__)


class LauncherReports:
    """Writes to an inherited file descriptor; remembers the current phase."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._phase = "engine start"
        self._since = time.monotonic()

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

    def started(self, epoch: int) -> None:
        """The mailbox is open."""
        self._send(Started(epoch))

    def crash(self, cause: str, remedy: str) -> None:
        """The process is about to exit."""
        self._send(Crash(self._phase, cause, remedy))

    def _send(self, message: Progress | Started | Crash) -> None:
        payload = codec.encode(message)
        os.write(self._fd, struct.pack("<I", len(payload)) + payload)
