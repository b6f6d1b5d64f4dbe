"""Start a server under test, wait until it is ready, stop it.

Runs inside `compare.py`. In: a command line, environment additions, an address. Out: the time from
start to ready, and a server that has ended when the block ends. Touches its own processes only.
"""

import os
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

POLL_S = 0.05
TERMINATE_S = 60.0
LOG_TAIL_BYTES = 2000


@dataclass(frozen=True)
class ServerCommand:
    """How to run one server: `environment` is added to that of this process."""

    name: str
    command: str
    url: str
    environment: Mapping[str, str] = field(default_factory=dict)
    health_path: str = "/health"
    start_timeout_s: float = 600.0


def is_ready(url: str) -> bool:
    """Whether a GET of `url` answers 200 at once."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def running_server(server: ServerCommand, log_path: Path) -> Iterator[float]:
    """Run `server` for the length of the block; yields the seconds from start to ready.

    Its output goes to `log_path`. Raises `RuntimeError` when the address is already served, the
    server ends before it is ready, or is not ready within its limit.
    """
    health_url = server.url.rstrip("/") + server.health_path
    if is_ready(health_url):
        raise RuntimeError(f"{server.name}: something already answers on {health_url}")
    with log_path.open("wb") as log:
        started_s = time.perf_counter()
        process = subprocess.Popen(
            shlex.split(server.command),
            env={**os.environ, **server.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_ready(server, process, health_url, log_path)
            yield time.perf_counter() - started_s
        finally:
            _stop(process)


def _wait_until_ready(
    server: ServerCommand, process: subprocess.Popen[bytes], health_url: str, log_path: Path
) -> None:
    deadline_s = time.monotonic() + server.start_timeout_s
    while not is_ready(health_url):
        if process.poll() is not None:
            reason = f"ended with exit code {process.returncode} before it was ready"
        elif time.monotonic() > deadline_s:
            reason = f"not ready within {server.start_timeout_s:.0f} s"
        else:
            time.sleep(POLL_S)
            continue
        tail = log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        raise RuntimeError(f"{server.name}: {reason}; end of its output:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, then end what is left of its own process group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(TERMINATE_S)
    with suppress(ProcessLookupError):  # raised when the whole group has ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
