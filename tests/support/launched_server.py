"""A launcher whose front and ranks are the stand-ins of tests/launcher/launch_fakes.py."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent.parent
FAKES = ROOT / "tests" / "launcher" / "launch_fakes.py"
TIMEOUT = 20.0


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "condition not met"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


class LaunchedServer:
    """A launcher with its fakes, in one scratch directory."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.port = free_port()
        self.temporary = scratch / "tmp"
        self.temporary.mkdir()
        self.model = scratch / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")
        (self.model / "tokenizer.json").write_text("{}")
        (self.model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        self.process: subprocess.Popen[str] | None = None

    def start(self, front: str, ranks: str, *arguments: str) -> None:
        command = [sys.executable, str(FAKES), "launcher", front, ranks]
        command += ["--model-id", str(self.model), "--hostname", "127.0.0.1"]
        command += ["--port", str(self.port), *arguments]
        environ = os.environ | {
            "FAKES": str(self.scratch),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(ROOT),
        }
        self.process = subprocess.Popen(
            command, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def start_serving(self, ranks: str, *arguments: str) -> None:
        """With a front that leaves when it is asked to; wait until every first epoch serves."""
        self.start("serve", ranks, *arguments)
        self.wait_for_status(phase="serving")

    def pid(self, name: str) -> int:
        """Process id of `launcher`, `front` or `rank-GROUP-RANK` (the last that was assigned)."""
        path = self.scratch / f"{name}.pid"
        wait_for(path.exists)
        return int(path.read_text())

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid(name), number)

    def pids(self) -> list[int]:
        """Of every process that there ever was."""
        return self._lines("pids")

    def statuses(self) -> list[dict[str, Any]]:
        """What the front has heard, without repetitions."""
        return self._lines("statuses")

    def assignments(self, **fields: object) -> list[dict[str, Any]]:
        """What ranks were told, with their place and pid; those with these fields."""
        return [found for found in self._lines("assignments") if fields.items() <= found.items()]

    def waiting(self) -> list[list[int]]:
        """(group, rank, pid) of every rank that has waited for an assignment."""
        return self._lines("waiting")

    def wait_for_status(self, **fields: object) -> None:
        """Wait until the front has heard a status with these fields."""
        wait_for(lambda: any(fields.items() <= heard.items() for heard in self.statuses()))

    def wait_for_assignments(self, count: int, **fields: object) -> list[dict[str, Any]]:
        """Wait until so many ranks with these fields have been assigned."""
        wait_for(lambda: len(self.assignments(**fields)) >= count)
        return self.assignments(**fields)

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of the launcher, once it has ended; nothing may be left."""
        assert self.process is not None
        out, error = self.process.communicate(timeout=TIMEOUT)
        assert not any(is_alive(pid) for pid in self.pids())
        assert list(self.temporary.iterdir()) == []
        return self.process.returncode, out, error

    def stop(self) -> tuple[int, str, str]:
        """SIGTERM, then `end`."""
        self.kill("launcher", signal.SIGTERM)
        return self.end()

    def _lines(self, name: str) -> list[Any]:
        path = self.scratch / name
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]

    def clean_up(self) -> None:
        """Kill what a failed test has left, children first: they hold the output pipes."""
        for pid in self.pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                left = psutil.Process(pid)
                if str(FAKES) in left.cmdline():  # not a stranger with the same number
                    left.kill()
        if self.process is not None:
            self.process.kill()
            self.process.communicate(timeout=TIMEOUT)


@contextlib.contextmanager
def launched_server() -> Iterator[LaunchedServer]:
    """A server that is not started yet, in a scratch directory with a short path."""
    # Not tmp_path: the path of a unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="tl-") as scratch:
        server = LaunchedServer(Path(scratch))
        try:
            yield server
        finally:
            server.clean_up()
