"""One rank, as the launcher sees it: a process, the pipe that it reports on, its assignment's pipe.

Runs in the launcher. Comes in: the command and the rank's place; later, once, what it is to be.
Goes out: the running process and its reports. Until its assignment comes a rank only imports its
modules, so a standby is nothing else than a rank without one. Next: `rank_set.py`.
"""

import contextlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from serving.launcher.rank_reports import RankReports
from serving.launcher.run_directory import RunDirectory
from serving.launcher.supervision import Child
from serving.protocol.codec import encode
from serving.protocol.messages import Assignment

LENGTH = struct.Struct("<I")
# A decode step streams all weights through the CPU; with 2 MiB pages it waits less for address
# look-ups (measured: 10 to 20 % of the step).
HUGE_PAGES = "glibc.malloc.hugetlb=1"
ENGINE = "the engine"  # what the only rank of a server is called


@dataclass(frozen=True)
class Place:
    """Which rank of which group, and whom it shares the machine with."""

    group: int
    rank: int
    ranks: int  # of the group
    device_index: int  # number of the rank among those of this machine
    neighbours: int  # ranks of this machine in all

    @property
    def name(self) -> str:
        """As short as the server allows: "the engine", "rank 1", "group 1", "rank 1 of group 0"."""
        if self.neighbours == 1:
            return ENGINE
        if self.neighbours == self.ranks:
            return f"rank {self.rank}"
        return (
            f"group {self.group}" if self.ranks == 1 else f"rank {self.rank} of group {self.group}"
        )

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
class RankCommand:
    """How ranks are started, whatever their place."""

    command: tuple[str, ...]
    directory: RunDirectory
    environ: Mapping[str, str]


class RankProcess:
    """A rank, running from construction on; it waits for its assignment."""

    def __init__(self, how: RankCommand, place: Place) -> None:
        """Start it as `COMMAND SETTINGS RUN_DIR --group G ... --report-fd F --assignment-fd A`.

        Raises `OSError` if the machine has no room for another process.
        """
        self.place = place
        self.name = place.name
        self.reports = RankReports()
        read_fd, self._assignment_fd = os.pipe()
        arguments = (
            *(str(how.directory.settings), str(how.directory.path)),
            *place.arguments(),
            *("--report-fd", str(self.reports.write_fd)),
            *("--assignment-fd", str(read_fd)),
        )
        pass_fds = (self.reports.write_fd, read_fd)
        environ = with_huge_pages(how.environ)
        try:
            self.child = Child(place.name, (*how.command, *arguments), environ, pass_fds)
        except OSError:
            self._close_pipes()
            raise
        finally:
            os.close(read_fd)
        self.reports.close_write_end()

    def assign(self, assignment: Assignment) -> None:
        """Say what it is to be; once. If it has just died, that is noticed elsewhere."""
        body = encode(assignment)
        with contextlib.suppress(BrokenPipeError):
            os.write(self._assignment_fd, LENGTH.pack(len(body)) + body)  # fits into the pipe

    def is_gone(self) -> bool:
        """Whether it has ended, or has said that it is about to."""
        return self.child.has_exited() or self.reports.crash is not None

    def close(self) -> None:
        """Kill what is left of it and close the pipes."""
        self.child.kill_group()
        self._close_pipes()

    def _close_pipes(self) -> None:
        self.reports.close()
        os.close(self._assignment_fd)


def with_huge_pages(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with glibc told to ask for huge pages, unless it says something on them."""
    given = environ.get("GLIBC_TUNABLES", "")
    if "hugetlb" in given:
        return dict(environ)
    return {**environ, "GLIBC_TUNABLES": f"{given}:{HUGE_PAGES}" if given else HUGE_PAGES}
