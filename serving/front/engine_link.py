"""A worker's connection to the engine of one group: its socket, and the epoch in use.

Runs in each front worker, in two greenlets. Comes in: messages to send; bytes of the engine. Goes
out: bytes to the engine; decoded messages to a handler. The socket outlives the engines that come
and go at its other end. Next: `engine_client.py`.
"""

import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import gevent
import msgspec
import zmq.green as zmq

from serving.protocol.codec import decode_to_front, encode
from serving.protocol.messages import EngineInfo, Hello, ToEngine, ToFront

HELLO_SECONDS = 0.25
RECONNECT_MS = 20  # the engine's socket appears when it is ready; be there soon after
STEPS_AT_ONCE = 8  # messages read before the requests that they are for get a turn

log = logging.getLogger(__name__)


class EngineLink:
    """The socket of one group. `epoch` and the last Ready are kept by `EngineClient`."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", path: Path, identity: bytes, group: int
    ) -> None:
        """Connect to `ipc://path`; the engine may appear later."""
        self.group = group
        self.epoch = 0  # of the engine that has our sequences; 0: none has
        self.ready_epoch = 0  # of the last engine that said that it is ready
        self.info: EngineInfo | None = None  # of the same
        self._socket = context.socket(zmq.DEALER)
        self._socket.identity = identity
        # Messages to a dead engine are dropped, not kept: the journal sends them again.
        self._socket.immediate = 1
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.linger = 0
        self._socket.reconnect_ivl = RECONNECT_MS
        self._socket.connect(f"ipc://{path}")

    def close(self) -> None:
        """Close the socket; what was not sent is dropped."""
        self._socket.close()

    def send(self, message: ToEngine) -> bool:
        """Send now; False if nobody is at the other end."""
        try:
            self._socket.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def say_hello(self) -> None:
        """Ask for Ready, again and again, whenever no engine has our sequences. Never returns."""
        while True:
            must_hurry = not self.epoch and not self.send(Hello())
            gevent.sleep(RECONNECT_MS / 1000 if must_hurry else HELLO_SECONDS)

    def read(self, handle: Callable[["EngineLink", ToFront], None]) -> None:
        """Pass every message on. Never returns."""
        for count in itertools.count(1):
            data = self._socket.recv()  # does not sleep while there are messages
            if count % STEPS_AT_ONCE == 0:
                gevent.sleep(0)
            try:
                message: ToFront = decode_to_front(data)
            except msgspec.MsgspecError:
                log.exception("unreadable message from engine %d", self.group)
                continue
            handle(self, message)
