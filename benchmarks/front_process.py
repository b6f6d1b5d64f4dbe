"""Starts the real front (gunicorn, our application) against the fake engine, and ends both.

Used by `front_throughput.py` and `front_clients.py`. Comes in: settings, processor cores. Goes
out: an address to send requests to, and the processes of the workers. Next: `sse_clients.py`.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from benchmarks.server_process import is_ready
from serving.settings import Settings

READY_SECONDS = 60.0
DEMO_MODEL = Path(__file__).parent.parent / "local_mode" / "demo_model"


@dataclass(frozen=True)
class FrontProcess:
    """A running front: where it listens, and its worker processes."""

    address: tuple[str, int]
    workers: list[psutil.Process]

    def cpu_seconds(self) -> float:
        """Processor time of all workers so far, their threads and the kernel's part included."""
        return sum(sum(worker.cpu_times()[:2]) for worker in self.workers)

    def resident_bytes(self) -> int:
        """Resident memory of all workers."""
        return sum(int(worker.memory_info().rss) for worker in self.workers)

    def connections(self) -> int:
        """Open connections of clients, over all workers."""
        return sum(
            connection.status == psutil.CONN_ESTABLISHED
            and connection.laddr.port == self.address[1]
            for worker in self.workers
            for connection in worker.net_connections("tcp")
        )


@contextmanager
def running_front(
    model: Path,
    *,
    workers: int = 1,
    wave: int = 1,
    steps_per_second: float = 0.0,
    max_concurrent_requests: int = 4096,
    cores: Sequence[int] = (),
) -> Iterator[FrontProcess]:
    """Serve for the length of the block; `cores` are those of the front, none are all.

    `wave` and `steps_per_second` as in `fake_engine.py`. Raises `RuntimeError` when the front is
    not ready in time.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (directory / "metrics").mkdir()
        settings = Settings(
            model_id="benchmark/model",
            hostname="127.0.0.1",
            port=free_port(),
            validation_workers=workers,
            max_concurrent_requests=max_concurrent_requests,
        )
        settings_file = directory / "settings.json"
        settings_file.write_bytes(msgspec.json.encode(settings))
        engine = [str(directory), f"--model={model}", f"--wave={wave}"]
        engine.append(f"--steps-per-second={steps_per_second}")
        stack.enter_context(_process("benchmarks.fake_engine", engine))
        front = stack.enter_context(
            _process(
                "serving.front",
                [str(settings_file), str(directory)],
                {"PROMETHEUS_MULTIPROC_DIR": str(directory / "metrics")},
                cores,
            )
        )
        address = ("127.0.0.1", settings.port)
        processes = _wait_for_workers(psutil.Process(front.pid), address, workers)
        yield FrontProcess(address, processes)


@contextmanager
def bare_front(tokens: int, cores: Sequence[int]) -> Iterator[FrontProcess]:
    """The roofline in place of the front: every request is answered with so many frames."""
    address = ("127.0.0.1", free_port())
    arguments = [str(address[1]), str(tokens)]
    with _process("benchmarks.bare_stream", arguments, cores=cores) as process:
        yield FrontProcess(address, _wait_for_workers(psutil.Process(process.pid), address, 1))


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _process(
    module: str,
    arguments: Sequence[str],
    environment: dict[str, str] | None = None,
    cores: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    process = subprocess.Popen(
        [*pinned, sys.executable, "-m", module, *arguments],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_workers(
    master: psutil.Process, address: tuple[str, int], workers: int
) -> list[psutil.Process]:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        children = master.children(recursive=True)
        if not master.is_running() or master.status() == psutil.STATUS_ZOMBIE:
            raise RuntimeError("the front has ended before it was ready")
        if len(children) == workers and is_ready(f"http://{address[0]}:{address[1]}/health"):
            time.sleep(1.0)  # the other workers connect too
            return children
        time.sleep(0.05)
    raise RuntimeError(f"the front was not ready within {READY_SECONDS:.0f} s")
