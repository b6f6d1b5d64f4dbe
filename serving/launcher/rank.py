"""What a launcher knows of any rank, wherever it runs: its place, its reports, its end.

Runs in the launcher. `Rank` is the seam between the rules of groups and the ways to start a rank:
`rank_process.py` on this machine, `nodes/remote_rank.py` on another one. Comes in: a `Place`. Goes
out: running ranks, reports, an `Ending`. Next: `rank_set.py`.
"""

import selectors
from dataclasses import dataclass
from typing import Protocol

from serving.launcher.run_directory import RunDirectory
from serving.protocol.messages import Assignment, Crash, ToLauncher

ENGINE = "the engine"  # what the only rank of a server is called
SEE_ABOVE = "see the engine's lines above"


@dataclass(frozen=True)
class Place:
    """Which rank of which group, and whom it shares its machine with."""

    group: int
    rank: int
    ranks: int  # of the group
    device_index: int  # number of the rank among those of its machine
    neighbours: int  # ranks of its machine in all
    machine: int = 0

    @property
    def name(self) -> str:
        """As short as the server allows: "the engine", "rank 1", "rank 1 of group 0"."""
        if self.machine:
            return f"rank {self.rank} on machine {self.machine}"
        if self.neighbours > self.ranks:  # of other groups too
            name = f"group {self.group}"
            return name if self.ranks == 1 else f"rank {self.rank} of {name}"
        return ENGINE if self.ranks == 1 else f"rank {self.rank}"

    def arguments(self) -> tuple[str, ...]:
        """The part of a rank's command line that says its place."""
        return (
            *("--group", str(self.group)),
            *("--rank", str(self.rank)),
            *("--ranks", str(self.ranks)),
            *("--device-index", str(self.device_index)),
            *("--neighbours", str(self.neighbours)),
        )


@dataclass(frozen=True)
class Ending:
    """How a rank ended that had no last words."""

    what: str  # "ended with exit code 3"
    was_killed: bool = False  # by SIGKILL
    remedy: str = SEE_ABOVE
    is_final: bool = False  # no further start can help


class Reports(Protocol):
    """What a rank has reported so far."""

    is_open: bool
    phase: str
    crash: Crash | None

    def read(self) -> list[ToLauncher]:
        """New messages; never blocks."""


class Rank(Protocol):
    """A rank that has been started, or will be as soon as its machine is there."""

    place: Place
    name: str

    @property
    def reports(self) -> Reports:
        """What it reports."""

    @property
    def pids(self) -> list[int]:
        """Its process id, if it runs on this machine."""

    @property
    def is_here(self) -> bool:
        """Whether it can be assigned."""

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Let its reports wake `selector`."""

    def ignore(self, selector: selectors.BaseSelector) -> None:
        """Let them wake it no more; may be repeated."""

    def assign(self, assignment: Assignment) -> None:
        """Say what it is to be; once."""

    def is_gone(self) -> bool:
        """Whether it has ended, or has said that it is about to."""

    def has_exited(self) -> bool:
        """Whether nothing of it is left."""

    def ending(self) -> Ending:
        """How it ended, once `is_gone`."""

    def terminate(self) -> None:
        """Ask it to stop."""

    def kill(self) -> None:
        """Kill it and whatever it started; does not wait for the end."""

    def close(self) -> None:
        """Kill what is left of it and release it; the object is of no more use."""


class RankStarter(Protocol):
    """How ranks are started, whatever their place."""

    @property
    def directory(self) -> RunDirectory:
        """The server's private directory on this machine."""

    def start(self, place: Place) -> Rank:
        """Start a rank. Raises `OSError` if this machine has no room for another process."""

    def rendezvous(self, group: int, epoch: int) -> str:
        """Where the ranks of a group meet in this epoch, for `Assignment.rendezvous`."""
