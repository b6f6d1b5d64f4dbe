"""A rank on another machine, as its group sees it: the same face as `rank_process.py` shows.

Runs in the launcher of machine 0. Comes in: what its agent reports, by `machine.py`. Goes out:
messages to the agent. Before it is assigned a rank is only a process: if its machine goes, it
waits to be started again there. Once it is assigned it is lost with its machine. Next:
`machine.py`.
"""

import selectors
from typing import Protocol

from serving.launcher.rank import Ending, Place
from serving.launcher.rank_reports import ReportDecoder
from serving.protocol.messages import (
    Assignment,
    AssignRank,
    StartRank,
    StopRank,
    ToAgent,
    ToLauncher,
)


class Agent(Protocol):
    """What a rank needs of its machine."""

    @property
    def is_here(self) -> bool:
        """Whether it can be told to assign ranks."""

    @property
    def now(self) -> float:
        """Time of the launcher's turns."""

    def send(self, message: ToAgent) -> None:
        """Send to the agent; nothing happens if it is not there."""

    def forget(self, serial: int) -> None:
        """The rank of this number has ended."""

    def absence(self, since: float) -> Ending | None:
        """What has become of a rank that waits for its machine since then, if anything."""


class RemoteReports(ReportDecoder):
    """Reports that come as messages."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = True
        self.phase = "machines"
        self._messages: list[ToLauncher] = []

    def take(self, data: bytes) -> None:
        """Bytes from the rank's pipe."""
        self._messages += self.decoded(data)

    def read(self) -> list[ToLauncher]:
        """New messages."""
        messages, self._messages = self._messages, []
        return messages


class RemoteRank:
    """A rank that is started as soon as its machine is there."""

    pids: list[int] = []  # noqa: RUF012 - never any: they are of another machine

    def __init__(self, place: Place, serial: int, agent: Agent) -> None:
        """`serial`: its number in all messages, never used again."""
        self.place = place
        self.name = place.name
        self.reports = RemoteReports()
        self._serial = serial
        self._agent = agent
        self._waits_since = agent.now
        self._is_started = self._is_assigned = self._is_killed = False
        self._ending: Ending | None = None

    # --- what its machine tells ----------------------------------------------------------------

    def start(self) -> None:
        """The machine is there."""
        place = self.place
        self._is_started = True
        self.reports.phase = "engine start"
        self._agent.send(
            StartRank(
                self._serial, place.group, place.rank, place.ranks, place.device_index,
                place.neighbours,
            )
        )  # fmt: skip

    def machine_gone(self, why: str) -> None:
        """The machine is not there any more, and nothing that ran on it."""
        if self._is_assigned or self._is_killed:
            self.exited(Ending(f"is lost: {why}", remedy="see the lines of that machine"))
        else:
            self._is_started = False
            self._waits_since = self._agent.now
            self.reports = RemoteReports()

    def exited(self, ending: Ending) -> None:
        """It has ended."""
        self._ending = ending
        self._agent.forget(self._serial)

    # --- what its group asks -------------------------------------------------------------------

    @property
    def is_here(self) -> bool:
        """Whether it can be assigned."""
        return self._is_started and self._agent.is_here

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Nothing to do: the socket of all machines wakes the launcher."""

    def ignore(self, selector: selectors.BaseSelector) -> None:
        """Nothing to do."""

    def assign(self, assignment: Assignment) -> None:
        """Say what it is to be; once."""
        self._is_assigned = True
        self._agent.send(AssignRank(self._serial, assignment))

    def is_gone(self) -> bool:
        """Whether it has ended, is about to, or its machine has not come."""
        return self._end() is not None or self.reports.crash is not None

    def has_exited(self) -> bool:
        """Whether nothing of it is left."""
        return self._ending is not None or not self._is_started

    def ending(self) -> Ending:
        """How it ended, once `is_gone` without a crash report."""
        return self._end() or Ending("is still running")

    def _end(self) -> Ending | None:
        if self._ending is not None or self._is_started:
            return self._ending
        return self._agent.absence(self._waits_since)

    def terminate(self) -> None:
        """Ask it to stop."""
        if not self.has_exited():
            self._agent.send(StopRank(self._serial, kill=False))

    def kill(self) -> None:
        """Kill it; does not wait for the end."""
        if self._is_killed:
            return
        self._is_killed = True
        if not self._is_started:
            self.exited(Ending("was not started"))
        elif self._ending is None:
            self._agent.send(StopRank(self._serial, kill=True))

    def close(self) -> None:
        """Kill it; its agent waits for the end."""
        self.kill()
