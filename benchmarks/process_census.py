"""What a server holds on to over time: memory, files, dead processes.

Runs inside `kill_soak.py`. Comes in: a running server. Goes out: memory, sampled by a thread, and
how much it grew from the first quarter of the samples to the last; what is held at rest.
"""

import statistics
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields

import psutil

from benchmarks.own_server import OwnServer

MIB = 1024**2


@dataclass(frozen=True)
class Sample:
    """Resident memory of the processes that live as long as the server."""

    launcher: float
    workers: float  # all HTTP workers


@dataclass(frozen=True)
class Holdings:
    """What is counted while nothing runs and nothing is being started."""

    processes: int
    zombies: int
    launcher_files: int  # open ones, pipes and sockets included
    workers_files: int
    run_directory: int  # files and directories


@dataclass(frozen=True)
class Growth:
    """Medians of a figure in the first and in the last quarter of the samples."""

    name: str
    first: float
    last: float

    @property
    def share(self) -> float:
        """Growth over the first."""
        return self.last / self.first - 1 if self.first else 0.0


class Census:
    """Takes samples until it is stopped."""

    def __init__(self, server: OwnServer, seconds: float) -> None:
        """A sample every so many seconds."""
        self.samples: list[Sample] = []
        self._server = server
        self._workers = server.workers()
        self._seconds = seconds
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(self._seconds):
            self.samples.append(self._look())

    def _look(self) -> Sample:
        workers = sum(worker.memory_info().rss for worker in self._workers)
        return Sample(self._server.launcher.memory_info().rss / MIB, workers / MIB)


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """One for each figure. Raises `ValueError` for fewer than four samples."""
    quarter = len(samples) // 4
    if not quarter:
        raise ValueError(f"{len(samples)} samples, at least 4 are needed")
    return [
        Growth(
            one.name,
            statistics.median(getattr(sample, one.name) for sample in samples[:quarter]),
            statistics.median(getattr(sample, one.name) for sample in samples[-quarter:]),
        )
        for one in fields(Sample)
    ]


def hold(server: OwnServer) -> Holdings:
    """Count now; the server must be at rest."""
    children = server.launcher.children(recursive=True)
    return Holdings(
        len(children),
        sum(map(_is_zombie, children)),
        server.launcher.num_fds(),
        sum(worker.num_fds() for worker in server.workers()),
        sum(1 for _ in server.run_directory().rglob("*")),
    )


def _is_zombie(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return False
