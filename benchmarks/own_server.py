"""Our own server under test: a free port, its processes, its metrics and its log.

Runs inside the benchmarks of recovery and routing. Comes in: options of the command line. Goes
out: a ready server, and the process of each rank, found by its arguments. Next:
`server_process.py`, which starts and stops it.
"""

import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from benchmarks.front_process import free_port
from benchmarks.server_process import ServerCommand, running_server

POLL_SECONDS = 0.02
WAIT_SECONDS = 120.0
# A standby that has imported its modules sleeps, and has used the processor for so long before.
IMPORT_CPU_SECONDS = 1.0
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class OwnServer:
    """A running server."""

    port: int
    launcher: psutil.Process
    log: Path  # JSON lines
    command: str  # what was started, as a user would write it

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://127.0.0.1:{self.port}"

    def ranks(self, rank: int, group: int = 0) -> list[psutil.Process]:
        """The process of a rank, and behind it that of its standby; those that have ended not."""
        wanted = {("--group", str(group)), ("--rank", str(rank))}
        found = [one for one in self.launcher.children() if wanted <= arguments_of(one)]
        return sorted(found, key=lambda one: one.create_time())

    def wait_for_rank(self, rank: int, group: int = 0) -> psutil.Process:
        """The process of a rank, as soon as there is one."""
        wait_until(lambda: bool(self.ranks(rank, group)), f"rank {rank} to be started")
        return self.ranks(rank, group)[0]

    def wait_for_standby(self, num_ranks: int) -> None:
        """Wait until the standby of every rank of group 0 has imported its modules."""

        def look() -> list[tuple[int, float]]:
            standby = [one for rank in range(num_ranks) for one in self.ranks(rank)[1:]]
            return [(one.pid, sum(one.cpu_times()[:2])) for one in standby if is_asleep(one)]

        def is_ready() -> bool:
            before = look()
            time.sleep(LOOK_SECONDS)
            return (
                len(before) == num_ranks
                and before == look()
                and all(seconds > IMPORT_CPU_SECONDS for _, seconds in before)
            )

        wait_until(is_ready, "the standby to be ready")

    def workers(self) -> list[psutil.Process]:
        """The HTTP workers."""
        masters = [
            one for one in self.launcher.children() if ("-m", "serving.front") in arguments_of(one)
        ]
        return [worker for master in masters for worker in master.children()]

    def run_directory(self) -> Path:
        """The private directory that its processes share."""
        arguments = self.wait_for_rank(0).cmdline()
        return Path(arguments[arguments.index("serving.engine") + 2])

    def metric(self, name: str) -> float:
        """Value of a metric without labels. Raises `KeyError` if there is none."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        return float(dict(line.rsplit(" ", 1) for line in lines if line[0] != "#")[name])

    def wait_until_idle(self) -> None:
        """Wait until no sequence runs."""
        wait_until(lambda: self.metric("tgi_batch_current_size") == 0, "the engines to be idle")


@contextmanager
def own_server(*options: str, module: str = "serving") -> Iterator[OwnServer]:
    """Serve for the length of the block. Raises `RuntimeError` if the server does not get ready.

    `module` is what Python runs.
    """
    port = free_port()
    arguments = ["--hostname", "127.0.0.1", "--port", str(port), "--json-output", *options]
    command = ServerCommand(
        "the server",
        " ".join([sys.executable, "-m", module, *arguments]),
        f"http://127.0.0.1:{port}",
        {"HF_HUB_OFFLINE": "1"},
    )
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        with running_server(command, log):
            launcher = next(
                child
                for child in psutil.Process().children()
                if ("--port", str(port)) in arguments_of(child)
            )
            yield OwnServer(port, launcher, log, shown_command(options, module))


def shown_command(options: Sequence[str], module: str = "serving") -> str:
    """The command line for a results page."""
    return " ".join(["python", "-m", module, *options])


def arguments_of(process: psutil.Process) -> set[tuple[str, str]]:
    """Each argument of a process with the next one; none if it has ended."""
    with suppress(psutil.Error):
        return set(pairwise(process.cmdline()))
    return set()


def is_asleep(process: psutil.Process) -> bool:
    """Whether it waits for something; False if it has ended."""
    with suppress(psutil.Error):
        return bool(process.status() == psutil.STATUS_SLEEPING)
    return False


def wait_until(condition: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Poll until the condition holds. Raises `TimeoutError` that names `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(POLL_SECONDS)
