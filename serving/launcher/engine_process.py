"""One run of the engine, as the launcher sees it: a process and the pipe that it reports on.

Runs in the launcher. Comes in: the command, the model's directory, the epoch. Goes out: the running
process, its reports and, at its death, the error that explains it. Next: `launch.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.errors import StartupError
from serving.launcher.engine_reports import EngineReports
from serving.launcher.run_directory import RunDirectory
from serving.launcher.supervision import Child

# A decode step streams all weights through the CPU; with 2 MiB pages it waits less for address
# look-ups (measured: 10 to 20 % of the step).
HUGE_PAGES = "glibc.malloc.hugetlb=1"


class EngineProcess:
    """The engine of one epoch, running from construction on."""

    def __init__(
        self,
        command: Sequence[str],
        directory: RunDirectory,
        model_path: Path,
        epoch: int,
        environ: Mapping[str, str],
    ) -> None:
        """Start it as `command SETTINGS RUN_DIR --model-path P --epoch N ...`."""
        self.epoch = epoch
        self.has_started = False  # set by the launcher when the engine says so
        self.reports = EngineReports()
        arguments = (
            *(str(directory.settings), str(directory.path)),
            *("--model-path", str(model_path)),
            *("--epoch", str(epoch)),
            *("--rank", "0"),
            *("--report-fd", str(self.reports.write_fd)),
        )
        pass_fds = (self.reports.write_fd,)
        self.child = Child("engine", (*command, *arguments), with_huge_pages(environ), pass_fds)
        self.reports.close_write_end()

    def is_gone(self) -> bool:
        """Whether it has ended, or has said that it is about to."""
        return self.child.has_exited() or self.reports.crash is not None

    def startup_error(self) -> StartupError:
        """Why it ended before it was ready: its own words, else how it ended."""
        crash = self.reports.crash
        if crash is not None:
            return StartupError(crash.phase, crash.cause, crash.remedy)
        remedy = "see the engine's lines above"
        if self.child.was_killed():
            remedy = (
                "it probably ran out of memory: choose a smaller model, a smaller "
                "--max-batch-total-tokens, or give the container more memory"
            )
        cause = f"the engine ended with {self.child.exit_text()}"
        return StartupError(self.reports.phase, cause, remedy)

    def death(self) -> str:
        """One sentence on its death while it was serving."""
        crash = self.reports.crash
        return f"the engine died: {crash.cause if crash is not None else self.child.exit_text()}"

    def close(self) -> None:
        """Kill what is left of it and close the pipe."""
        self.child.kill_group()
        self.reports.close()


def with_huge_pages(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with glibc told to ask for huge pages, unless it says something on them."""
    given = environ.get("GLIBC_TUNABLES", "")
    if "hugetlb" in given:
        return dict(environ)
    return {**environ, "GLIBC_TUNABLES": f"{given}:{HUGE_PAGES}" if given else HUGE_PAGES}
