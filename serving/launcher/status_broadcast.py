"""What the launcher tells all front workers: the state of the server, again and again.

Runs in the launcher. Comes in: the state, at every turn. Goes out: a `Status` message on the
publishing socket RUN_DIR/control.sock, at every change and as a heartbeat, so that workers that
join late, or lose their launcher, find out. Next: `front/engine_client.py`.
"""

import time
from pathlib import Path

import zmq

from serving.protocol.codec import encode
from serving.protocol.messages import Status

HEARTBEAT_SECONDS = 0.25
LINGER_MS = 200  # for the last message; readers are on this machine


class StatusBroadcast:
    """Publishing socket with the state it repeats."""

    def __init__(self, socket_path: Path) -> None:
        """Bind the socket. Raises `zmq.ZMQError` if the path cannot be used."""
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.PUB)
        self._socket.linger = LINGER_MS
        self._socket.bind(f"ipc://{socket_path}")
        self._last: Status | None = None
        self._due = time.monotonic()

    def tell(self, status: Status) -> None:
        """Send the state if it is new or the heartbeat is due."""
        if status != self._last or self.seconds_left() == 0:
            self._last = status
            self._socket.send(encode(status))
            self._due = time.monotonic() + HEARTBEAT_SECONDS

    def seconds_left(self) -> float:
        """Time until the next heartbeat is due; 0 if it is."""
        return max(0.0, self._due - time.monotonic())

    def close(self) -> None:
        """Deliver what is under way, then close the socket."""
        self._socket.close()
        self._context.term()
