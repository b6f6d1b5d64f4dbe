"""Another machine, as machine 0 sees it: its session and the ranks that run there.

Runs in the launcher of machine 0. Comes in: messages of its agent, the time of `turn_clock.py`.
Goes out: messages to the agent, reports and ends of its ranks. With the end of the session
everything on the machine is taken to be gone: its agent kills what is left. Next: `cluster.py`.
"""

import logging
import secrets
from collections.abc import Callable

from serving.launcher.nodes.remote_rank import RemoteRank
from serving.launcher.nodes.session import SILENCE_SECONDS, Session
from serving.launcher.rank import Ending, Place
from serving.launcher.turn_clock import TurnClock
from serving.protocol.messages import AgentBeat, LeaderBeat, RankExit, RankReport, Refused, ToAgent

logger = logging.getLogger(__name__)

NO_SESSION = LeaderBeat(0, 0)  # "join"


class Machine:
    """One machine but machine 0. Starts ranks when its agent has joined."""

    def __init__(
        self,
        number: int,
        address: str,
        patience: float,
        clock: TurnClock,
        post: Callable[[bytes, ToAgent], None],
    ) -> None:
        """`address`: where its agent must come to, within `patience` seconds; `post` sends there.

        `post` takes the route of the agent, which ZeroMQ made, and the message.
        """
        self.number = number
        self.route = b""
        self._address, self._patience = address, patience
        self._clock = clock
        self._post = post
        self._session: Session | None = None
        self._is_confirmed = False  # the agent knows of the session
        self._is_prepared = False
        self._ranks: dict[int, RemoteRank] = {}

    # --- for its ranks -------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Time of the launcher's turns."""
        return self._clock.now

    @property
    def is_here(self) -> bool:
        """Whether its agent was heard just now, and has the model's files."""
        session = self._session
        return session is not None and self._is_prepared and session.is_fresh(self.now)

    def send(self, message: ToAgent) -> None:
        """Send to the agent; nothing happens if it is not there."""
        if self._session is not None:
            self._session.sent += 1
            self._post(self.route, message)

    def forget(self, serial: int) -> None:
        """The rank of this number has ended."""
        self._ranks.pop(serial, None)

    def absence(self, since: float) -> Ending | None:
        """What has become of a rank that waits for this machine since then, if anything."""
        if self._session is not None or self.now - since <= self._patience:
            return None
        return Ending(
            f"is missing: machine {self.number} has not come to {self._address} within "
            f"{self._patience:.0f} s",
            remedy=f"start the server on it with --node-rank {self.number} and the same "
            "--master-addr and --master-port, and see that it can reach them",
            is_final=True,
        )

    # --- for the cluster -----------------------------------------------------------------------

    def start(self, place: Place, serial: int) -> RemoteRank:
        """A rank of this machine; it is started at once or when the agent has joined."""
        rank = RemoteRank(place, serial, self)
        self._ranks[serial] = rank
        if self._is_confirmed:
            rank.start()
        return rank

    def join(self, route: bytes) -> None:
        """An agent asks for a session. The old one is over, whoever asks."""
        if route == self.route and self._session is not None and not self._is_confirmed:
            self.beat()  # it has asked again before the answer came
            return
        if self._session is not None and route != self.route:
            why = f"another launcher with --node-rank {self.number} has taken its place"
            self._post(self.route, Refused(why))
        self.end_session("has started anew")
        self.route = route
        self._session = Session(secrets.randbits(63) | 1, self.now)
        self.beat()

    def has_session(self, number: int) -> bool:
        """Whether this is the number of its session."""
        return self._session is not None and self._session.number == number

    def take(self, message: AgentBeat | RankReport | RankExit) -> None:
        """A message of its agent."""
        if self._session is None:  # the agent does not know yet that it is over
            self._post(self.route, NO_SESSION)
            return
        self._session.heard_at = self.now
        if isinstance(message, AgentBeat):
            self._take_beat(self._session, message)
            return
        self._session.received += 1
        rank = self._ranks.get(message.serial)
        if rank is None:
            logger.warning("machine %d speaks of the unknown rank %d", self.number, message.serial)
        elif isinstance(message, RankReport):
            rank.reports.take(message.data)
        else:
            rank.exited(Ending(message.how, message.was_killed))

    def _take_beat(self, session: Session, beat: AgentBeat) -> None:
        if not session.fits(beat.session, beat.sent):
            self.end_session("lost messages")
            self._post(self.route, NO_SESSION)
            return
        self._is_prepared = beat.is_prepared
        if not self._is_confirmed:
            self._is_confirmed = True
            logger.info("machine %d is there", self.number)
            for rank in list(self._ranks.values()):
                rank.start()

    def beat(self) -> None:
        """Tell the agent that the leader is there."""
        if self._session is not None:
            self._post(self.route, LeaderBeat(self._session.number, self._session.sent))

    def end_if_silent(self) -> None:
        """Its agent has gone if nothing was heard of it for long."""
        if self._session is not None and self._session.is_silent(self.now):
            self.end_session(f"was silent for {SILENCE_SECONDS:.0f} s")

    def end_session(self, why: str) -> None:
        """Nothing runs on the machine any more."""
        if self._session is None:
            return
        what = f"machine {self.number} {why}"
        logger.warning("%s: its ranks are gone", what)
        self._session, self._is_confirmed, self._is_prepared = None, False, False
        for rank in list(self._ranks.values()):
            rank.machine_gone(what)
