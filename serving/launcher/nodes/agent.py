"""The launcher of a machine other than 0: it runs ranks for machine 0, and decides nothing.

Comes in: settings, orders of the leader, signals. Goes out: rank processes, their reports, an exit
code. It has no front and no HTTP port. When the leader has gone all ranks are killed, and the agent
waits for it to come back. Next: `cluster.py`, the leader's side.
"""

import contextlib
import logging
import selectors

from serving.errors import StartupError
from serving.launcher.model_search import ModelSearch
from serving.launcher.nodes.agent_ranks import AgentRanks
from serving.launcher.nodes.leader_link import LeaderLink
from serving.launcher.nodes.network import PHASE
from serving.launcher.nodes.session import SILENCE_SECONDS
from serving.launcher.rank_process import RankCommand
from serving.launcher.supervision import SignalPipe, reap_orphans
from serving.launcher.turn_clock import TurnClock
from serving.protocol.messages import (
    AssignRank,
    Farewell,
    LeaderBeat,
    Refused,
    StartRank,
    StopRank,
    ToAgent,
)
from serving.settings import Settings

logger = logging.getLogger(__name__)

LONGEST_GRACE = 25.0  # seconds after SIGTERM for machine 0 to drain; the platform kills after 30


def run_agent(settings: Settings, how: RankCommand) -> int:
    """Run ranks until the leader says farewell (its exit code) or a signal asks to stop (0).

    Call from the main thread. Raises `StartupError` if the leader refuses this machine, or is
    missing for longer than `rendezvous_seconds`.
    """
    agent = Agent(settings, how)
    with contextlib.closing(agent):
        return agent.run()


class Agent:
    """The supervisor of one machine's ranks. `run` may be called once."""

    def __init__(self, settings: Settings, how: RankCommand) -> None:
        """Look for the leader and for the model's files."""
        self._settings = settings
        self._signals = SignalPipe()
        self._clock = TurnClock()
        self._link = LeaderLink(settings, self._clock)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._signals, selectors.EVENT_READ)
        self._link_fd = self._link.fileno()
        self._selector.register(self._link_fd, selectors.EVENT_READ)
        self._ranks = AgentRanks(how, settings, self._selector, self._link.send)
        self._search = ModelSearch(settings, self._signals.wake)
        self._exit_code: int | None = None
        self._stop_at: float | None = None  # once a signal has come

    def run(self) -> int:
        """Turn until the end; returns the exit code. Raises `StartupError`."""
        number, address = self._settings.node_rank, self._link.address
        logger.info("machine %d looks for machine 0 at %s", number, address)
        while self._exit_code is None:
            self._turn()
            self._watch_leader()
            self._heed_signal()
        return self._exit_code

    def close(self) -> None:
        """Kill what is left of the ranks, then release sockets and signals."""
        self._ranks.close()
        self._selector.close()
        self._link.close()
        self._signals.close()

    def _turn(self) -> None:
        """Wait, a beat at most, for an order, a report or a signal; follow, and pass on."""
        self._selector.select(self._link.seconds_left())
        self._clock.tick()
        self._signals.read()
        reap_orphans(self._ranks.pids)
        for order in self._link.orders():
            self._follow(order)
        self._ranks.forward()
        self._link.beat_if_due(self._search.is_over(), may_join=self._ranks.have_ended())

    def _follow(self, order: ToAgent) -> None:
        """Orders count within a session only. Raises `StartupError` if the leader refuses us."""
        match order:
            case LeaderBeat():
                if self._link.is_over(order):
                    self._end_session("has begun anew, or messages were lost")
            case Refused(why):
                remedy = "start all machines with the same settings, and each with its own number"
                raise StartupError(PHASE, why, remedy)
            case _ if not self._link.has_session:
                return
            case StartRank():
                self._ranks.start(order)
            case AssignRank():
                self._ranks.assign(order, self._search.path)
            case StopRank():
                self._ranks.stop(order)
            case Farewell(exit_code):
                logger.info("machine 0 has ended the server with exit code %d", exit_code)
                self._exit_code = exit_code

    def _end_session(self, why: str) -> None:
        logger.warning("machine 0 %s: killing all ranks of this machine", why)
        self._ranks.kill_all()
        self._link.end_session()

    def _watch_leader(self) -> None:
        """Kill the ranks of a leader that has gone. Raises `StartupError` if it stays away."""
        silence = self._link.silence()
        if self._link.has_session and silence > SILENCE_SECONDS:
            self._end_session(f"was silent for {silence:.0f} s")
        if silence > self._settings.rendezvous_seconds:
            cause = (
                f"machine 0 was not heard at {self._link.address} "
                f"for {self._settings.rendezvous_seconds} s"
            )
            remedy = "see that machine 0 runs, and check --master-addr and --master-port"
            raise StartupError(PHASE, cause, remedy)
        if not self._link.has_session and self._link.reopen_if_silent():
            self._selector.unregister(self._link_fd)
            self._link_fd = self._link.fileno()
            self._selector.register(self._link_fd, selectors.EVENT_READ)

    def _heed_signal(self) -> None:
        """After a signal, run on for as long as machine 0 drains: its streams need these ranks."""
        if self._signals.stop is None or self._exit_code is not None:
            return
        if self._stop_at is None:
            grace = min(self._settings.graceful_termination_timeout, LONGEST_GRACE)
            self._stop_at = self._clock.now + grace
            logger.info("%s: waiting for machine 0 to end", self._signals.stop.name)
        if not self._link.has_session or self._clock.now >= self._stop_at:
            self._exit_code = 0
