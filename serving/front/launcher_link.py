"""A worker's connection to the launcher: the state of the server, and the launcher's own life.

Runs in each front worker, in one greenlet. Comes in: `Status` messages, repeated as a heartbeat.
Goes out: each status to a handler; when the heartbeat stops, word of that. Next:
`engine_client.py`.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq.green as zmq

from serving.protocol.codec import decode_status
from serving.protocol.messages import Status

HEARTBEAT_WAIT_MS = 1000
HEARTBEATS_MISSED = 5  # waits without a status, then the launcher is dead

log = logging.getLogger(__name__)


class LauncherLink:
    """The subscription to the launcher's broadcast."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", path: Path) -> None:
        """Subscribe to `ipc://path`."""
        self.is_gone = False  # the heartbeat has stopped
        self._socket = context.socket(zmq.SUB)
        self._socket.subscribe(b"")
        self._socket.connect(f"ipc://{path}")

    def close(self) -> None:
        """Close the socket."""
        self._socket.close(linger=0)

    def read(self, on_status: Callable[[Status], None], on_gone: Callable[[], None]) -> None:
        """Pass every status on, and the end of them. Never returns."""
        missed = 0
        while True:
            # Counted in short waits: a worker that was busy for long must read before it judges.
            if not self._socket.poll(HEARTBEAT_WAIT_MS):
                missed += 1
                if missed == HEARTBEATS_MISSED:
                    self.is_gone = True
                    on_gone()
                continue
            missed, self.is_gone = 0, False
            try:
                status = decode_status(self._socket.recv())
            except msgspec.MsgspecError:
                log.exception("unreadable message from the launcher")
                continue
            on_status(status)
