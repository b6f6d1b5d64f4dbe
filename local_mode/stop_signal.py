"""SIGTERM and SIGINT as something to wait for.

Runs in the main thread of the emulator's process. A lock is no way to wait for a signal: the kernel
may give it to another thread, and the main thread would sleep on. Next: `service.py`.
"""

import select
import signal
import socket

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Whether the process was asked to stop. One per process, made in the main thread."""

    def __init__(self) -> None:
        """Take over the signals."""
        self._reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._writer = writer  # open as long as the signals may come
        signal.set_wakeup_fd(writer.fileno())
        for number in STOP_SIGNALS:
            signal.signal(number, _leave_it_to_the_socket)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for a stop signal, so long at most; True if one has come, now or before."""
        return bool(select.select([self._reader], [], [], seconds)[0])


def _leave_it_to_the_socket(number: int, frame: object) -> None:
    """A Python handler must exist for the interpreter to write to the socket."""
