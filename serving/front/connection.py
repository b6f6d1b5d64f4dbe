"""A client's connection as gunicorn writes to it: one system call per write, and no endless wait.

Runs in the front, one per connection, made by `server.py`. Comes in: gevent's socket and the
pieces of a response. Goes out: bytes. A client that does not read blocks its own greenlet only,
and is given up after a while. Next: the kernel.
"""

import errno
from typing import Any

import gevent

STALLED_SECONDS = 120.0  # a full send buffer that does not move for so long: nobody reads


class Connection:
    """Gevent's socket but for `sendall`, which asks the kernel for nothing but to send."""

    __slots__ = ("_socket", "_stalled_seconds")

    def __init__(self, socket: Any, stalled_seconds: float = STALLED_SECONDS) -> None:
        """`socket`: a gevent socket; whoever made it closes it."""
        self._socket = socket
        self._stalled_seconds = stalled_seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def sendall(self, data: bytes) -> None:
        """Send `data`, waiting while the send buffer is full.

        Raises `OSError`: the client is gone, or has read nothing for `stalled_seconds`.
        """
        try:
            sent = self._socket.send(data, timeout=0.0)  # 0: do not wait
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._send_slowly(memoryview(data)[sent:])

    def _send_slowly(self, rest: memoryview) -> None:
        message = f"the client has read nothing for {self._stalled_seconds:.0f} s"
        while rest:
            # Gunicorn knows this error as a client that has gone.
            with gevent.Timeout(self._stalled_seconds, BrokenPipeError(errno.EPIPE, message)):
                rest = rest[self._socket.send(rest) :]
