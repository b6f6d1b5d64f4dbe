"""The front's end of the wire: hands sequences to engines, and to others when these die.

Runs in each front worker, in greenlets. Comes in: `Generate` messages of requests; `Ready`, `Step`,
`Failed` and `Load` of the engines, one link to each group; `Status` of the launcher. Goes out:
events to the requests. A dead engine's sequences go, with the tokens already delivered, to another
one that lives, else to the next that is ready. Next: `dispatcher.py`; for events `generation.py`.
"""

import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import gevent
import zmq.green as zmq
from gevent.event import Event
from gevent.lock import BoundedSemaphore
from msgspec.structs import replace

from serving.errors import ErrorKind, RequestError
from serving.front.dispatcher import Dispatcher
from serving.front.engine_link import EngineLink
from serving.front.journal import Deliver, Journal
from serving.front.launcher_link import LauncherLink
from serving.front.routing import Router
from serving.protocol.messages import (
    CloseSession,
    EngineInfo,
    Generate,
    Load,
    Ready,
    Status,
    Step,
    ToFront,
)
from serving.settings import Settings

Phase = Literal["starting", "serving", "recovering", "draining", "failed"]

LATE_SECONDS = 10.0  # a worker may be so much later than the server to be ready

LAUNCHER_GONE = "the launcher has died"
OVERLOADED = "Model is overloaded"

FAILURES = {
    "validation": ErrorKind.VALIDATION,
    "generation": ErrorKind.GENERATION,
    "overloaded": ErrorKind.OVERLOADED,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Availability:
    """Whether sequences are taken, and whether health checks succeed; `message` says why not."""

    phase: Phase
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

    def close_session(self, session_id: str) -> None:
        """Let every engine forget what it keeps for this session."""


class EngineClient:
    """Owns the sockets of a worker: a link to the engine of each group, and one to the launcher.

    A group is connected as long as the launcher knows of no later engine there than the one that
    was last ready for this worker.
    """

    def __init__(
        self,
        run_directory: Path,
        settings: Settings,
        on_ready: Callable[[EngineInfo], None],
        on_resumed: Callable[[int], None],
    ) -> None:
        """Connect; `on_ready` prepares the worker for a model, `on_resumed` counts sequences.

        `on_ready` may take long and may raise, which ends the worker.
        """
        num_groups, per_engine = settings.num_replicas, settings.max_concurrent_requests
        self._limit = per_engine * num_groups
        self._on_ready = on_ready
        self._status = Status("starting", epochs=[1] * num_groups)
        self._prepared = Event()  # `on_ready` has run once
        self._preparing = BoundedSemaphore()
        self._identity = f"{os.getpid()}-{secrets.token_hex(8)}".encode()
        self._context = zmq.Context()
        self._links = [
            EngineLink(self._context, run_directory / f"engine-{group}.sock", self._identity, group)
            for group in range(num_groups)
        ]
        self._launcher = LauncherLink(self._context, run_directory / "control.sock")
        self._router = Router(num_groups, settings.block_size, settings.replica_slack, per_engine)
        self._journal = Journal(self._router.ended)
        self._dispatcher = Dispatcher(self._links, self._journal, self._router, on_resumed)
        self._greenlets: list[gevent.Greenlet] = []

    def start(self) -> None:
        """Begin to listen; returns at once."""
        for link in self._links:
            self._greenlets.append(gevent.spawn(link.read, self._handle))
            self._greenlets.append(gevent.spawn(link.say_hello))
        launcher = gevent.spawn(self._launcher.read, self._handle_status, self._fail_all)
        self._greenlets.append(launcher)

    def close(self) -> None:
        """Stop listening and close the sockets."""
        gevent.killall(self._greenlets)
        for link in self._links:
            link.close()
        self._launcher.close()
        self._context.term()

    @property
    def availability(self) -> Availability:
        """The state now, from memory."""
        status = self._status
        if self._launcher.is_gone:
            return Availability("failed", healthy=False, message=LAUNCHER_GONE)
        if status.phase in ("failed", "draining"):
            return Availability(status.phase, healthy=False, message=status.message)
        if not self._prepared.is_set():
            return Availability("starting", healthy=False)
        phase: Phase = "serving" if self._dispatcher.connected else "recovering"
        return Availability(phase, status.healthy)

    def wait_if_late(self) -> None:
        """Let a request wait for this worker when another one already said that it is ready."""
        if self._status.phase == "serving":
            self._prepared.wait(LATE_SECONDS)

    def submit(self, generate: Generate, deliver: Deliver) -> Callable[[], None]:
        """Start a sequence; its events go to `deliver`, the result aborts it.

        Epoch and id of `generate` are set here. Raises `RequestError`: UNHEALTHY while starting
        or draining, GENERATION when the engines are lost, OVERLOADED beyond the limit.
        """
        require_available(self.availability)
        if len(self._journal) >= self._limit:
            raise RequestError(ErrorKind.OVERLOADED, OVERLOADED)
        sequence_id = self._dispatcher.submit(generate, deliver)
        return lambda: self._dispatcher.abort(sequence_id)

    def close_session(self, session_id: str) -> None:
        """Let every engine forget what it keeps for this session; a dead one has forgotten."""
        for link in self._links:
            if link.epoch:
                link.send(CloseSession(link.epoch, session_id))

    def _handle(self, link: EngineLink, message: ToFront) -> None:
        if isinstance(message, Ready):
            self._handle_ready(link, message)
        elif message.epoch != link.epoch:
            return  # its sequences are with a later engine, or wait for one
        elif isinstance(message, Step):
            for delta in message.deltas:
                self._journal.deliver(delta)
        elif isinstance(message, Load):
            self._router.report(link.group, message)
        else:
            kind = FAILURES[message.kind]
            text = OVERLOADED if kind is ErrorKind.OVERLOADED else message.message
            self._journal.fail(message.sequence_id, RequestError(kind, text))

    def _handle_ready(self, link: EngineLink, ready: Ready) -> None:
        if ready.epoch <= link.ready_epoch:
            return
        link.ready_epoch, link.info = ready.epoch, ready.info
        self._follow(link)
        self._dispatcher.place_waiting()
        gevent.spawn(self._prepare)

    def _prepare(self) -> None:
        with self._preparing:
            info = _common([link.info for link in self._links if link.info is not None])
            try:
                self._on_ready(info)
            except Exception as error:
                log.exception("cannot serve the model in %s", info.model_path)
                raise SystemExit(3) from error  # gunicorn gives up on a worker that cannot boot
        self._prepared.set()

    def _handle_status(self, status: Status) -> None:
        self._status = status
        for link in self._links:
            self._follow(link)
        for name in status.poisoned:
            if name.worker == self._identity:
                self._dispatcher.refuse(name.sequence_id)
        self._dispatcher.place_waiting()
        if status.phase == "failed":
            self._fail_all(status.message)

    def _follow(self, link: EngineLink) -> None:
        wanted = self._status.epochs[link.group]
        self._dispatcher.follow(link, link.ready_epoch if 0 < wanted <= link.ready_epoch else 0)

    def _fail_all(self, message: str = LAUNCHER_GONE) -> None:
        self._journal.fail_all(RequestError(ErrorKind.GENERATION, message))


def require_available(availability: Availability) -> None:
    """Raise the `RequestError` of a state in which no sequence is taken."""
    if availability.phase == "starting":
        raise RequestError(ErrorKind.UNHEALTHY, "the model is loading")
    if availability.phase == "draining":
        raise RequestError(ErrorKind.UNHEALTHY, "the server is shutting down")
    if availability.phase == "failed":
        raise RequestError(ErrorKind.GENERATION, availability.message)


def _common(infos: list[EngineInfo]) -> EngineInfo:
    """What holds for every engine: a sequence may move from each to each."""
    return replace(
        infos[0],
        max_input_tokens=min(info.max_input_tokens for info in infos),
        max_total_tokens=min(info.max_total_tokens for info in infos),
    )
