"""Notices that a client has hung up while its request is in flight.

Runs in the front's event loop. Comes in: the connection's socket, as gunicorn puts it into the
WSGI environment. Goes out: one call of `on_hang_up`. Nothing is read from the socket: it may hold
the next, pipelined request. Next: `handling.py`.
"""

import select
import socket
from collections.abc import Callable

import gevent
from gevent import monkey

READ = 1  # event mask of gevent's loops
RECHECK_SECONDS = 0.5
HUNG_UP = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class HangUpWatch:
    """Watches from its creation to `stop()`, which must come before the socket is closed."""

    def __init__(self, connection: socket.socket, on_hang_up: Callable[[], None]) -> None:
        """`on_hang_up` is called in the event loop and must not block."""
        self._on_hang_up = on_hang_up
        # Gevent's own poll would wait in the hub; this one looks and returns at once.
        self._poll = monkey.get_original("select", "poll")()
        self._poll.register(connection.fileno(), HUNG_UP)
        loop = gevent.get_hub().loop
        self._readable = loop.io(connection.fileno(), READ)
        self._later = loop.timer(RECHECK_SECONDS)
        self._readable.start(self._look)

    def stop(self) -> None:
        """Watch no longer; may be called again."""
        for watcher in (self._readable, self._later):
            watcher.stop()
            watcher.close()

    def _look(self) -> None:
        """The socket is readable: the client's end of file, or bytes that are not ours."""
        self._readable.stop()
        if self._poll.poll(0):
            self._on_hang_up()
        else:
            # Unread bytes keep the socket readable: look again later instead of spinning.
            self._later.start(self._readable.start, self._look)
