"""One running container, or the process that stands for it.

Runs in the emulator, in the thread of its `Server`. Comes in: a `Launch`, the command that a runner
made. Goes out: a process with its log file, stopped as SageMaker stops a container: SIGTERM, and
SIGKILL when the time is over. Next: `server.py`, which watches it.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

TAIL_BYTES = 8192


@dataclass(frozen=True)
class ServerSpec:
    """What is to be served, as the control plane was told."""

    name: str  # of the endpoint, or of the inference component
    image: str
    environment: Mapping[str, str] = field(default_factory=dict)
    model_directory: Path | None = None  # to be found at /opt/ml/model, read-only
    startup_seconds: float | None = None


@dataclass(frozen=True)
class Launch:
    """How a container is started, and how it is killed if its own process is not all of it."""

    command: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)  # may hold secrets
    kill: tuple[str, ...] = ()


class Container:
    """A running container; its output is appended to `log`."""

    def __init__(self, launch: Launch, log: Path) -> None:
        """Start it; raises `OSError` if there is no such program."""
        self._launch = launch
        self._log = log
        tied = sys.platform == "linux"
        wrapper = (sys.executable, "-m", "local_mode.hosting.tied", str(os.getpid()))
        with log.open("ab") as output:
            self._start = output.tell()
            self._process = subprocess.Popen(
                (*wrapper, *launch.command) if tied else launch.command,
                env=dict(launch.environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is for the emulator, which drains
            )

    @property
    def pid(self) -> int:
        """Process id of the container's process on this machine."""
        return self._process.pid

    def has_exited(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def exit_text(self) -> str:
        """How it ended: `exit code 3`, `signal SIGKILL`; `still running` before that."""
        code = self._process.poll()
        if code is None:
            return "still running"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def last_line(self) -> str:
        """The last line that this run wrote; empty if there is none."""
        with self._log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._start, end - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def stop(self, seconds: float) -> None:
        """SIGTERM, then SIGKILL after so many seconds; returns when it has ended."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        if self._launch.kill and not self.has_exited():
            subprocess.run(
                self._launch.kill, env=dict(self._launch.environ), capture_output=True, check=False
            )
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what it has left, too
        self._process.wait()
