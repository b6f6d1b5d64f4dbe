"""The way of an agent to machine 0: a ZeroMQ socket and the present session.

Runs in the launcher of a machine other than 0. Comes in: reports to send. Goes out: orders of the
leader. The link joins, beats, and notices that the leader has gone or that something was lost;
`agent.py` kills its ranks then. Next: `agent.py`.
"""

import contextlib
import logging
from collections.abc import Iterator

import msgspec
import zmq

from serving.launcher.nodes.agreement import shared_settings
from serving.launcher.nodes.session import BEAT_SECONDS, LONGEST_MESSAGE, SILENCE_SECONDS, Session
from serving.launcher.turn_clock import TurnClock
from serving.protocol.codec import decode_to_agent, encode
from serving.protocol.messages import AgentBeat, Join, LeaderBeat, ToAgent, ToLeader
from serving.settings import Settings

logger = logging.getLogger(__name__)


class LeaderLink:
    """Connection to machine 0, opened again whenever that is silent."""

    def __init__(self, settings: Settings, clock: TurnClock) -> None:
        """Connect; whether anybody is there shows later."""
        self.address = f"{settings.master_addr}:{settings.master_port}"
        self.heard_at = clock.now
        self._join = Join(settings.node_rank, shared_settings(settings))
        self._clock = clock
        self._session: Session | None = None
        self._ended = 0  # number of the last session
        self._context = zmq.Context(io_threads=1)
        self._beat_at = 0.0
        self._opened_at = clock.now
        self._socket = self._connected()

    @property
    def has_session(self) -> bool:
        """Whether the leader has taken this machine in."""
        return self._session is not None

    def fileno(self) -> int:
        """File descriptor to select on; a new one after `reopen_if_silent`."""
        return int(self._socket.getsockopt(zmq.FD))

    def seconds_left(self) -> float:
        """Time until there is something to do; 0 if orders are there already."""
        if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            return 0.0
        return max(0.0, self._beat_at - self._clock.now)

    def orders(self) -> Iterator[ToAgent]:
        """What has come, but for beats of the present session; never blocks."""
        while (body := self._receive()) is not None:
            try:
                message = decode_to_agent(body)
            except msgspec.MsgspecError as error:
                logger.warning("an order of %s cannot be read: %s", self.address, error)
                continue
            self.heard_at = self._clock.now
            if self._session is not None and not isinstance(message, LeaderBeat):
                self._session.received += 1
            yield message

    def is_over(self, beat: LeaderBeat) -> bool:
        """Take a beat: whether it shows that the session has ended. It may begin a new one."""
        if self._session is None:
            if beat.session not in (0, self._ended):
                self._session = Session(beat.session, self._clock.now)
                self._beat_at = self._clock.now
            return False
        return not self._session.fits(beat.session, beat.sent)

    def end_session(self) -> None:
        """Take no more orders before the leader has taken this machine in again."""
        if self._session is not None:
            self._ended = self._session.number
        self._session = None
        self._beat_at = self._clock.now

    def send(self, message: ToLeader) -> None:
        """Report. What cannot be sent, or is lost, shows at the next beat."""
        if self._session is not None:
            self._session.sent += 1
            self._post(message)

    def beat_if_due(self, is_prepared: bool, may_join: bool) -> None:
        """Tell the leader that this machine is there, or ask to be taken in."""
        if self._clock.now < self._beat_at:
            return
        self._beat_at = self._clock.now + BEAT_SECONDS
        if self._session is not None:
            self._post(AgentBeat(self._session.number, self._session.sent, is_prepared))
        elif may_join:
            self._post(self._join)

    def silence(self) -> float:
        """Seconds since the leader was heard."""
        return self._clock.now - self.heard_at

    def reopen_if_silent(self) -> bool:
        """Connect anew if nothing came for long: the address may mean another machine by now."""
        if self._clock.now - max(self.heard_at, self._opened_at) <= SILENCE_SECONDS:
            return False
        self._opened_at = self._clock.now
        self._socket.close()
        self._socket = self._connected()
        return True

    def _connected(self) -> "zmq.Socket[bytes]":
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.maxmsgsize = LONGEST_MESSAGE
        socket.connect(f"tcp://{self.address}")
        return socket

    def _receive(self) -> bytes | None:
        try:
            return self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def _post(self, message: ToLeader) -> None:
        with contextlib.suppress(zmq.Again):
            self._socket.send(encode(message), zmq.NOBLOCK)

    def close(self) -> None:
        """Close the socket; what is under way is dropped."""
        self._socket.close()
        self._context.term()
