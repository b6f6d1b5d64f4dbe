"""The private directory that one server's processes share while they run.

Made and removed by the launcher. Holds the settings as JSON (they may contain secrets, hence the
modes), the sockets between the processes, and the files of prometheus-client's workers. Next:
`launch.py`, which passes its path to every process.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serving.errors import StartupError
from serving.settings import Settings

LONGEST_SOCKET_PATH = 107  # bytes; sun_path of <sys/un.h>, less its terminator


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside the private directory `path`."""

    path: Path

    @property
    def settings(self) -> Path:
        """Settings of this server, as JSON."""
        return self.path / "settings.json"

    def engine_socket(self, group: int) -> Path:
        """Bound by rank 0 of the group: requests in, tokens out."""
        return self.path / f"engine-{group}.sock"

    def rendezvous(self, group: int, epoch: int) -> Path:
        """File through which the ranks of a group find each other, in this epoch only."""
        return self.path / f"rendezvous-{group}-{epoch}"

    def forget_rendezvous(self, group: int) -> None:
        """Drop what former epochs of a group met in; an epoch may have died before it met."""
        for file in self.path.glob(f"rendezvous-{group}-*"):
            file.unlink(missing_ok=True)

    def forget_gauges(self, group: int) -> None:
        """Drop the gauges of a group's engine, which is dead; its counts stay."""
        for file in self.metrics.glob(f"gauge_live*_engine-{group}.db"):
            file.unlink(missing_ok=True)

    @property
    def control_socket(self) -> Path:
        """Bound by the launcher: the state of the server."""
        return self.path / "control.sock"

    @property
    def metrics(self) -> Path:
        """Directory of prometheus-client's files, one set per process."""
        return self.path / "metrics"


@contextlib.contextmanager
def run_directory(settings: Settings) -> Iterator[RunDirectory]:
    """Make the directory (mode 0700) under the system's temporary one; remove it at the end.

    Raises `StartupError` if there is no writable temporary directory or its path is too long.
    """
    remedy = "set TMPDIR to a writable directory with a short path, for example /tmp"
    try:
        directory = RunDirectory(Path(tempfile.mkdtemp(prefix="tgs-")))
    except OSError as error:
        raise StartupError("run directory", f"cannot make it: {error}", remedy) from error
    try:
        longest = directory.engine_socket(settings.num_replicas - 1)
        length = len(str(longest).encode())
        if length > LONGEST_SOCKET_PATH:
            raise StartupError(
                "run directory",
                f"the socket path {longest} has {length} bytes, the limit is {LONGEST_SOCKET_PATH}",
                remedy,
            )
        directory.metrics.mkdir()
        directory.settings.touch(mode=0o600)
        directory.settings.write_bytes(msgspec.json.encode(settings))
        yield directory
    finally:
        shutil.rmtree(directory.path, ignore_errors=True)
