"""A real server for a test: launcher, front and engine as a user starts them."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

START_SECONDS = 60
STOP_SECONDS = 30
API_KEY = "a-key"  # of servers that ask for one


@dataclass
class LiveServer:
    """A launcher and the address that it serves."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """(status, body) of one request; a body that is no text is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, str | bytes) or body is None else json.dumps(body)
        given = {"Content-Type": "application/json"} if headers is None else headers
        connection.request(method, path, data, given)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def post(self, path: str, body: object) -> Any:
        """The JSON of a successful answer."""
        status, text = self.request("POST", path, body)
        assert status == 200, text
        return json.loads(text)

    def events(self, path: str, body: object) -> Iterator[Any]:
        """The JSON of each SSE event as it comes; closing the iterator hangs up."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        try:
            for line in answer:
                if line.startswith(b"data: ") and line != b"data: [DONE]\n":
                    yield json.loads(line.removeprefix(b"data: "))
        finally:
            answer.close()
            connection.close()

    def metric(self, name: str) -> float:
        """Value of a metric without labels."""
        for line in self.request("GET", "/metrics")[1].splitlines():
            if line.split(" ")[0] == name:
                return float(line.split(" ")[1])
        raise AssertionError(f"no metric {name}")

    def wait_until_idle(self) -> None:
        """Wait for all sequences to end."""
        wait_for(lambda: self.metric("tgi_batch_current_size") == 0, "the engine to be idle", 10)

    def wait_until(self, status: int, path: str = "/health") -> None:
        """Wait for a status of a health route."""
        wait_for(lambda: self._status(path) == status, f"{path} to answer {status}")

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def engine_pid(self) -> int:
        """Process id of the engine."""
        return self.rank_pid(0)

    def rank_pids(self, rank: int, group: int = 0) -> list[int]:
        """Process ids of a rank, and behind it of its standby, if there is one."""
        wanted = [["--group", str(group)], ["--rank", str(rank)]]
        found = [
            child
            for child in psutil.Process(self.process.pid).children()
            if all(pair in _pairs(child) for pair in wanted)
        ]
        return [child.pid for child in sorted(found, key=lambda child: child.create_time())]

    def rank_pid(self, rank: int, group: int = 0) -> int:
        """Process id of a rank that is running."""
        pids = self.rank_pids(rank, group)
        assert pids, f"rank {rank} of group {group} is not running"
        return pids[0]

    def worker_pids(self) -> list[int]:
        """Process ids of the HTTP workers."""
        masters = [
            child
            for child in psutil.Process(self.process.pid).children()
            if ["-m", "serving.front"] in _pairs(child)
        ]
        return [worker.pid for master in masters for worker in master.children()]

    def process_ids(self) -> list[int]:
        """Every process of the server."""
        launcher = psutil.Process(self.process.pid)
        return [launcher.pid, *(child.pid for child in launcher.children(recursive=True))]

    def _status(self, path: str) -> int:
        try:
            return self.request("GET", path)[0]
        except OSError:
            return 0


def _pairs(process: psutil.Process) -> list[list[str]]:
    """Arguments of a process, each with the next one; none if it has just ended."""
    try:
        return [list(pair) for pair in pairwise(process.cmdline())]
    except psutil.Error:
        return []


def wait_for(condition: Any, what: str, seconds: float = START_SECONDS) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def launcher(*arguments: str, port: int, log: Path) -> subprocess.Popen[str]:
    """Start `text-generation-launcher`; stdout and stderr go to `log`."""
    command = [sys.executable, "-m", "serving", "--hostname", "127.0.0.1", "--port", str(port)]
    environ = os.environ | {"ENGINE_CHECKS": "true", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        return subprocess.Popen(
            [*command, *arguments], stdout=output, stderr=subprocess.STDOUT, text=True, env=environ
        )


@contextmanager
def live_server(log: Path, *arguments: str) -> Iterator[LiveServer]:
    """A server that is ready, stopped at the end; its log is shown if it does not start."""
    port = free_port()
    process = launcher(*arguments, port=port, log=log)
    server = LiveServer(process, port, log)
    try:
        wait_for(lambda: process.poll() is not None or server._status("/health") == 200, "ready")
        assert process.poll() is None, log.read_text()
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(STOP_SECONDS)
