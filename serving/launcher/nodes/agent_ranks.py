"""The ranks of a machine other than 0, by the numbers that the leader gave them.

Runs in the agent. Comes in: orders of the leader. Goes out: processes; their reports as they come,
and how they ended. Nothing is decided here. Next: `agent.py`.
"""

import dataclasses
import logging
import selectors
from collections.abc import Callable
from pathlib import Path

import msgspec

from serving.errors import StartupError
from serving.launcher.nodes.network import with_gloo_interface
from serving.launcher.rank import Place
from serving.launcher.rank_process import RankCommand, RankProcess
from serving.protocol.codec import framed
from serving.protocol.messages import (
    AssignRank,
    Crash,
    RankExit,
    RankReport,
    StartRank,
    StopRank,
    ToLeader,
)
from serving.settings import Settings

logger = logging.getLogger(__name__)


class AgentRanks:
    """Running ranks, and those that are being killed because their session is over."""

    def __init__(
        self,
        how: RankCommand,
        settings: Settings,
        selector: selectors.BaseSelector,
        send: Callable[[ToLeader], None],
    ) -> None:
        """Nothing is started yet; reports of ranks will wake `selector`."""
        self._how, self._settings, self._selector, self._send = how, settings, selector, send
        self._ranks: dict[int, RankProcess] = {}
        self._ending: list[RankProcess] = []

    @property
    def pids(self) -> list[int]:
        """Every process."""
        return [pid for rank in (*self._ranks.values(), *self._ending) for pid in rank.pids]

    def start(self, order: StartRank) -> None:
        """Start a rank; that it cannot be started is reported as its end."""
        place = Place(
            order.group, order.rank, order.ranks, order.device_index, order.neighbours,
            self._settings.node_rank,
        )  # fmt: skip
        try:
            rank = self._command().start(place)
        except OSError as error:
            self._send(RankExit(order.serial, f"cannot be started: {error}", was_killed=False))
            return
        rank.watch(self._selector)
        self._ranks[order.serial] = rank

    def _command(self) -> RankCommand:
        """With the interface on which machine 0 is reached, which is certain once it was heard."""
        environ = with_gloo_interface(self._how.environ, self._settings)
        return dataclasses.replace(self._how, environ=environ)

    def assign(self, order: AssignRank, model_path: Callable[[], Path]) -> None:
        """Tell a rank what it is to be, with this machine's model; its lack is a crash report."""
        rank = self._ranks.get(order.serial)
        if rank is None:
            return  # it has ended, and the leader will hear so
        try:
            path = str(model_path())
        except StartupError as error:
            logger.error("%s", error)
            crash = Crash(error.phase, error.cause, error.remedy)
            self._send(RankReport(order.serial, framed(crash)))
            return
        rank.assign(msgspec.structs.replace(order.assignment, model_path=path))

    def stop(self, order: StopRank) -> None:
        """Ask a rank to stop, or kill it."""
        rank = self._ranks.get(order.serial)
        if rank is None:
            return
        if order.kill:
            rank.kill()
        else:
            rank.terminate()

    def forward(self) -> None:
        """Send what ranks have reported, and which have ended; last words come first."""
        for serial, rank in list(self._ranks.items()):
            has_exited = rank.has_exited()
            data = rank.reports.read_bytes() if rank.reports.is_open else b""
            if data:
                self._send(RankReport(serial, data))
            if has_exited:
                ending = rank.ending()
                self._send(RankExit(serial, ending.what, ending.was_killed))
                self._release(self._ranks.pop(serial))
            elif not rank.reports.is_open:
                rank.ignore(self._selector)
        for rank in [rank for rank in self._ending if rank.has_exited()]:
            self._ending.remove(rank)
            rank.close()

    def _release(self, rank: RankProcess) -> None:
        rank.ignore(self._selector)
        rank.close()

    def kill_all(self) -> None:
        """Kill every rank; nothing is reported of them any more."""
        for rank in self._ranks.values():
            rank.ignore(self._selector)
            rank.kill()
        self._ending += self._ranks.values()
        self._ranks = {}

    def have_ended(self) -> bool:
        """Whether nothing is left of the ranks that `kill_all` killed."""
        return not self._ending

    def close(self) -> None:
        """Kill what is left and wait for it to be gone."""
        self.kill_all()
        for rank in self._ending:
            rank.close()
        self._ending = []
