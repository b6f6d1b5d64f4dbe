"""The engine's end of the wire: a ROUTER socket that every front worker connects to.

Rank 0 only. In come Hello, Generate, Abort and CloseSession; out go Ready, at most one Step per
worker and step, Failed and Load. `intake.py` polls it between steps. A worker that is gone is
noticed when a message to it cannot be delivered, and its sequences are reported so that they are
freed.
"""

import logging
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec
import zmq

from serving.protocol import codec
from serving.protocol.messages import (
    PROTOCOL_VERSION,
    Abort,
    CloseSession,
    Delta,
    EngineInfo,
    Failed,
    FailureKind,
    Generate,
    Hello,
    Load,
    Ready,
    Step,
    ToEngine,
)

log = logging.getLogger(__name__)


class Mailbox:
    """Messages of one epoch; what was meant for another epoch is dropped."""

    def __init__(self, path: Path, epoch: int, info: EngineInfo) -> None:
        """Bind `ipc://path`."""
        self._epoch = epoch
        self._ready = codec.encode(Ready(epoch, info))
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.LINGER, 1000)
        # A worker must be able to fall far behind without stopping the engine.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.bind(f"ipc://{path}")
        self._workers: set[bytes] = set()
        self.newcomers: set[bytes] = set()  # workers that were greeted; whoever handles them clears
        self.lost_workers: set[bytes] = set()

    def receive(self, timeout_ms: int) -> Iterator[tuple[bytes, Generate | Abort | CloseSession]]:
        """(worker, message) of everything that has arrived; waits for the first if told to."""
        if not self._socket.poll(timeout_ms):
            return
        while True:
            try:
                worker, payload = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = self._decode(worker, payload)
            if isinstance(message, Hello):
                self._greet(worker, message)
            elif message is not None and message.epoch == self._epoch:
                yield worker, message

    def send_step(self, worker: bytes, deltas: list[Delta]) -> None:
        """All new tokens of one worker's sequences."""
        self._send(worker, codec.encode(Step(self._epoch, deltas)))

    def send_failed(self, worker: bytes, sequence_id: int, kind: FailureKind, message: str) -> None:
        """One sequence has ended without a result."""
        self._send(worker, codec.encode(Failed(self._epoch, sequence_id, kind, message)))

    def send_load(
        self,
        num_live: int,
        published: list[bytes],
        evicted: list[bytes],
        only: set[bytes] | None = None,
        but: Collection[bytes] = (),
    ) -> None:
        """What routers must know, to all workers, or `only` to some, or to all `but` some."""
        payload = codec.encode(Load(self._epoch, num_live, published, evicted))
        for worker in list(self._workers if only is None else only):
            if worker not in but:
                self._send(worker, payload)

    def close(self) -> None:
        """Send what is queued (for at most a second) and close."""
        self._socket.close()
        self._context.term()

    def _greet(self, worker: bytes, hello: Hello) -> None:
        if hello.version != PROTOCOL_VERSION:
            log.error("front worker speaks protocol %d, not %d", hello.version, PROTOCOL_VERSION)
            return
        self._workers.add(worker)
        self.newcomers.add(worker)
        self._send(worker, self._ready)

    def _send(self, worker: bytes, payload: bytes) -> None:
        try:
            self._socket.send_multipart([worker, payload], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._workers.discard(worker)
            self.newcomers.discard(worker)
            self.lost_workers.add(worker)

    def _decode(self, worker: bytes, payload: bytes) -> ToEngine | None:
        try:
            message: ToEngine = codec.decode_to_engine(payload)
            return message
        except msgspec.DecodeError as error:
            log.error("dropped an unreadable message from worker %s: %s", worker.hex(), error)
            return None
