"""A rank on this machine: a process, the pipe that it reports on, its assignment's pipe.

Runs in the launcher. Comes in: the command and the rank's place; later, once, what it is to be.
Goes out: the running process and its reports. Until its assignment comes a rank only imports its
modules, so a standby is nothing else than a rank without one. Next: `rank_set.py`.
"""

import contextlib
import os
import selectors
from collections.abc import Mapping
from dataclasses import dataclass

from serving.launcher.rank import Ending, Place
from serving.launcher.rank_reports import RankReports
from serving.launcher.run_directory import RunDirectory
from serving.launcher.supervision import Child
from serving.protocol.codec import framed
from serving.protocol.messages import Assignment

# A decode step streams all weights through the CPU; with 2 MiB pages it waits less for address
# look-ups (measured: 10 to 20 % of the step).
HUGE_PAGES = "glibc.malloc.hugetlb=1"


@dataclass(frozen=True)
class RankCommand:
    """How ranks of this machine are started, whatever their place."""

    command: tuple[str, ...]
    directory: RunDirectory
    environ: Mapping[str, str]

    def start(self, place: Place) -> "RankProcess":
        """Start a rank. Raises `OSError` if the machine has no room for another process."""
        return RankProcess(self, place)

    def rendezvous(self, group: int, epoch: int) -> str:
        """A file for this epoch; those of former ones are removed."""
        self.directory.forget_rendezvous(group)
        return f"file://{self.directory.rendezvous(group, epoch)}"


class RankProcess:
    """A rank, running from construction on; it waits for its assignment."""

    is_here = True

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
            self._child = Child(place.name, (*how.command, *arguments), environ, pass_fds)
        except OSError:
            self._close_pipes()
            raise
        finally:
            os.close(read_fd)
        self.reports.close_write_end()

    @property
    def pids(self) -> list[int]:
        """Its process id."""
        return [self._child.pid]

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Let its reports wake `selector`."""
        selector.register(self.reports, selectors.EVENT_READ)

    def ignore(self, selector: selectors.BaseSelector) -> None:
        """Let them wake it no more; may be repeated."""
        if self.reports in selector.get_map():
            selector.unregister(self.reports)

    def assign(self, assignment: Assignment) -> None:
        """Say what it is to be; once. If it has just died, that is noticed elsewhere."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._assignment_fd, framed(assignment))  # fits into the pipe

    def is_gone(self) -> bool:
        """Whether it has ended, or has said that it is about to."""
        return self.has_exited() or self.reports.crash is not None

    def has_exited(self) -> bool:
        """Whether the process has ended; reaps it."""
        return self._child.has_exited()

    def ending(self) -> Ending:
        """How it ended, once it has exited."""
        return Ending(f"ended with {self._child.exit_text()}", self._child.was_killed())

    def terminate(self) -> None:
        """Ask it to stop."""
        self._child.terminate()

    def kill(self) -> None:
        """Kill it and whatever it started; does not wait for the end."""
        self._child.send_kill()

    def close(self) -> None:
        """Kill what is left of it, wait for the end, and close the pipes."""
        self._child.kill_group()
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
