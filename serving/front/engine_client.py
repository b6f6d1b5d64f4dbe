"""The front's end of the wire: one DEALER to the engine, one SUB to the launcher.

Runs in each front worker, in greenlets. Comes in: `Generate` messages of requests; `Ready`,
`Step`, `Failed` of the engine; `Status` of the launcher. Goes out: events to the requests, and
messages to the engine. An engine of a new epoch gets every live sequence again, with the tokens
already delivered. Next: `generation.py`.
"""

import itertools
import logging
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import gevent
import msgspec
import zmq.green as zmq
from gevent.event import Event

from serving.errors import ErrorKind, RequestError
from serving.front.journal import Deliver, Journal
from serving.protocol.codec import decode_status, decode_to_front, encode
from serving.protocol.messages import (
    Abort,
    EngineInfo,
    Failed,
    Generate,
    Hello,
    Ready,
    Status,
    Step,
    ToEngine,
)

HELLO_SECONDS = 0.25
HEARTBEAT_WAIT_MS = 1000
HEARTBEATS_MISSED = 5  # waits without a status, then the launcher is dead
STEPS_AT_ONCE = 8  # messages read before the requests that they are for get a turn
RECONNECT_MS = 20  # the engine's socket appears when it is ready; be there soon after
LATE_SECONDS = 10.0  # a worker may be so much later than the server to be ready
RECOVERY_GRACE_SECONDS = 30.0  # an engine restart may take so long before /ping turns 503

LAUNCHER_GONE = "the launcher has died"

FAILURES = {
    "validation": ErrorKind.VALIDATION,
    "generation": ErrorKind.GENERATION,
    "overloaded": ErrorKind.OVERLOADED,
}
OVERLOADED = "Model is overloaded"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Availability:
    """Whether sequences are taken, and whether health checks succeed; `message` says why not."""

    phase: Literal["starting", "serving", "recovering", "draining", "failed"]
    healthy: bool
    message: str = ""


class Engine(Protocol):
    """What the routes need of an engine; `EngineClient` and the tests' fakes have it."""

    @property
    def availability(self) -> Availability:
        """The state now, from memory."""

    def wait_if_late(self) -> None:
        """Return at once, unless the server serves and only this worker is not ready yet."""

    def submit(self, generate: Generate, deliver: Deliver) -> Callable[[], None]:
        """Start a sequence; the result aborts it. Raises `RequestError` if none is taken."""


class EngineClient:
    """Owns both sockets of a worker and the journal."""

    def __init__(
        self,
        run_directory: Path,
        max_concurrent_requests: int,
        on_ready: Callable[[EngineInfo], None],
        on_resumed: Callable[[int], None],
    ) -> None:
        """Connect; `on_ready` prepares the worker for a model, `on_resumed` counts sequences.

        `on_ready` may take long and may raise, which ends the worker.
        """
        self._limit = max_concurrent_requests
        self._on_ready = on_ready
        self._on_resumed = on_resumed
        self._journal = Journal()
        self._ready_epoch = 0  # engine that takes our messages; 0: none yet
        self._prepared = Event()  # `on_ready` has run once
        self._status = Status(epoch=0, phase="starting")
        self._launcher_gone = False
        self._recovering_since = 0.0
        self._context = zmq.Context()
        self._engine = self._context.socket(zmq.DEALER)
        self._engine.identity = f"{os.getpid()}-{secrets.token_hex(8)}".encode()
        # Messages to a dead engine are dropped, not kept: the journal sends them again.
        self._engine.immediate = 1
        self._engine.sndhwm = self._engine.rcvhwm = 0
        self._engine.linger = 0
        self._engine.reconnect_ivl = RECONNECT_MS
        self._engine.connect(f"ipc://{run_directory / 'engine.sock'}")
        self._control = self._context.socket(zmq.SUB)
        self._control.subscribe(b"")
        self._control.connect(f"ipc://{run_directory / 'control.sock'}")
        self._greenlets: list[gevent.Greenlet] = []

    def start(self) -> None:
        """Begin to listen; returns at once."""
        loops = (self._read_engine, self._read_control, self._say_hello)
        self._greenlets = [gevent.spawn(loop) for loop in loops]

    def close(self) -> None:
        """Stop listening and close the sockets."""
        gevent.killall(self._greenlets)
        self._engine.close()
        self._control.close(linger=0)
        self._context.term()

    @property
    def availability(self) -> Availability:
        """The state now, from memory."""
        status = self._status
        if self._launcher_gone:
            return Availability("failed", healthy=False, message=LAUNCHER_GONE)
        if status.phase in ("failed", "draining"):
            return Availability(status.phase, healthy=False, message=status.message)
        if not self._prepared.is_set():
            return Availability("starting", healthy=False)
        if self._connected:
            return Availability("serving", healthy=True)
        overdue = time.monotonic() - self._recovering_since > RECOVERY_GRACE_SECONDS
        return Availability("recovering", healthy=not overdue)

    def wait_if_late(self) -> None:
        """Let a request wait for this worker when another one already said that it is ready."""
        if self._status.phase == "serving":
            self._prepared.wait(LATE_SECONDS)

    def submit(self, generate: Generate, deliver: Deliver) -> Callable[[], None]:
        """Start a sequence; its events go to `deliver`, the result aborts it.

        Epoch and id of `generate` are set here. Raises `RequestError`: UNHEALTHY while starting
        or draining, GENERATION when the engine is lost, OVERLOADED beyond the limit.
        """
        require_available(self.availability)
        if len(self._journal) >= self._limit:
            raise RequestError(ErrorKind.OVERLOADED, OVERLOADED)
        sequence_id = self._journal.add(generate, deliver)
        if self._connected:
            self._send(self._journal.message(sequence_id, self._ready_epoch))
        return lambda: self._abort(sequence_id)

    @property
    def _connected(self) -> bool:
        """Whether the engine that the launcher speaks of is the one that is ready for us."""
        return 0 < self._ready_epoch >= self._status.epoch

    def _abort(self, sequence_id: int) -> None:
        if self._journal.forget(sequence_id) and self._connected:
            self._send(Abort(self._ready_epoch, sequence_id))

    def _send(self, message: ToEngine) -> None:
        try:
            self._engine.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            log.debug("the engine is not connected; its successor will get every live sequence")

    def _say_hello(self) -> None:
        while True:
            if not self._connected:
                self._send(Hello())
            gevent.sleep(HELLO_SECONDS)

    def _read_engine(self) -> None:
        for count in itertools.count(1):
            data = self._engine.recv()  # does not sleep while there are messages
            if count % STEPS_AT_ONCE == 0:
                gevent.sleep(0)
            try:
                message = decode_to_front(data)
            except msgspec.MsgspecError:
                log.exception("unreadable message from the engine")
                continue
            if isinstance(message, Ready):
                self._handle_ready(message)
            elif message.epoch == self._ready_epoch:
                self._handle(message)

    def _handle(self, message: Step | Failed) -> None:
        if isinstance(message, Step):
            for delta in message.deltas:
                self._journal.deliver(delta)
        else:
            kind = FAILURES[message.kind]
            text = OVERLOADED if kind is ErrorKind.OVERLOADED else message.message
            self._journal.fail(message.sequence_id, RequestError(kind, text))

    def _handle_ready(self, ready: Ready) -> None:
        if ready.epoch <= self._ready_epoch:
            return
        self._ready_epoch = ready.epoch
        live = self._journal.messages(ready.epoch)
        for message in live:
            self._send(message)
        self._on_resumed(len(live))
        if live:
            log.info("resumed sequences", extra={"fields": {"count": len(live)}})
        gevent.spawn(self._prepare, ready.info)

    def _prepare(self, info: EngineInfo) -> None:
        try:
            self._on_ready(info)
        except Exception as error:
            log.exception("cannot serve the model in %s", info.model_path)
            raise SystemExit(3) from error  # gunicorn gives up on a worker that cannot boot
        self._prepared.set()

    def _read_control(self) -> None:
        missed = 0
        while True:
            # Counted in short waits: a worker that was busy for long must read before it judges.
            if not self._control.poll(HEARTBEAT_WAIT_MS):
                missed += 1
                if missed == HEARTBEATS_MISSED:
                    self._launcher_gone = True
                    self._fail_all(LAUNCHER_GONE)
                continue
            missed, self._launcher_gone = 0, False
            try:
                self._handle_status(decode_status(self._control.recv()))
            except msgspec.MsgspecError:
                log.exception("unreadable message from the launcher")

    def _handle_status(self, status: Status) -> None:
        was_connected = self._connected
        self._status = status
        if was_connected and not self._connected:
            self._recovering_since = time.monotonic()
        if status.phase == "serving" and not self._connected:
            self._send(Hello())
        if status.phase == "failed":
            self._fail_all(status.message)

    def _fail_all(self, message: str) -> None:
        self._journal.fail_all(RequestError(ErrorKind.GENERATION, message))


def require_available(availability: Availability) -> None:
    """Raise the `RequestError` of a state in which no sequence is taken."""
    if availability.phase == "starting":
        raise RequestError(ErrorKind.UNHEALTHY, "the model is loading")
    if availability.phase == "draining":
        raise RequestError(ErrorKind.UNHEALTHY, "the server is shutting down")
    if availability.phase == "failed":
        raise RequestError(ErrorKind.GENERATION, availability.message)
