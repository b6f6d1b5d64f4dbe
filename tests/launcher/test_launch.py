"""The launcher as a process, with stand-ins for the front and the engine (launch_fakes.py)."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent.parent
FAKES = Path(__file__).with_name("launch_fakes.py")
TIMEOUT = 20.0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "condition not met"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
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

    def start(self, front: str, engine: str, *arguments: str) -> None:
        command = [sys.executable, str(FAKES), "launcher", front, engine]
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

    def pid(self, name: str) -> int:
        path = self.scratch / f"{name}.pid"
        wait_for(path.exists)
        return int(path.read_text())

    def wait_for_status(self, status: str) -> None:
        """Wait until the front has heard `epoch phase message`, or a status that starts so."""
        wait_for(lambda: any(heard.startswith(status) for heard in self.statuses()))

    def statuses(self) -> list[str]:
        path = self.scratch / "statuses"
        return path.read_text().splitlines() if path.exists() else []

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of the launcher, once it has ended."""
        assert self.process is not None
        out, error = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, out, error

    def clean_up(self) -> None:
        """Kill what a failed test has left, children first: they hold the output pipes."""
        for path in self.scratch.glob("*.pid"):
            with contextlib.suppress(psutil.NoSuchProcess):
                left = psutil.Process(int(path.read_text()))
                if str(FAKES) in left.cmdline():  # not a stranger with the same number
                    left.kill()
        if self.process is not None:
            self.process.kill()
            self.process.communicate(timeout=TIMEOUT)


@pytest.fixture
def server() -> Iterator[Server]:
    # Not tmp_path: the path of a unix socket must be short.
    import tempfile

    with tempfile.TemporaryDirectory(prefix="tl-") as scratch:
        found = Server(Path(scratch))
        yield found
        found.clean_up()


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_progress_after_the_start_is_no_new_status(server: Server) -> None:
    server.start("serve", "ready")
    server.wait_for_status("1 serving")
    os.kill(server.pid("launcher"), signal.SIGTERM)
    server.end()
    heard = [status.split()[1] for status in server.statuses()]
    assert heard[-2:] == ["serving", "draining"]


def test_a_started_engine_makes_the_server_ready(server: Server) -> None:
    server.start("serve", "ready")
    server.wait_for_status("1 serving")
    os.kill(server.pid("launcher"), signal.SIGTERM)
    code, out, error = server.end()
    assert (code, error) == (0, "")
    ready = [line for line in out.splitlines() if "ready: " in line]
    assert len(ready) == 1
    assert f"serving {server.model} on http://127.0.0.1:{server.port}, " in ready[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_drains_and_exits_with_0(server: Server, number: signal.Signals) -> None:
    server.start("serve", "ready")
    server.wait_for_status("1 serving")
    children = [server.pid("front"), server.pid("engine")]
    os.kill(server.pid("launcher"), number)
    assert server.end()[0] == 0
    assert server.statuses()[-1] == "1 draining the server is shutting down"
    assert not any(is_alive(pid) for pid in children)
    assert list(server.temporary.iterdir()) == []


def test_what_outlasts_the_drain_hears_failed(server: Server) -> None:
    server.start("busy", "ready", "--graceful-termination-timeout", "3")
    server.wait_for_status("1 serving")
    os.kill(server.pid("launcher"), signal.SIGTERM)
    assert server.end()[0] == 0
    assert server.statuses()[-2:] == [
        "1 draining the server is shutting down",
        "1 failed the server is shutting down",
    ]


def test_sigterm_while_the_engine_loads_exits_with_0(server: Server) -> None:
    server.start("serve", "slow")
    engine = server.pid("engine")
    os.kill(server.pid("launcher"), signal.SIGTERM)
    assert server.end()[0] == 0
    assert not is_alive(engine)


@pytest.mark.parametrize(
    ("mode", "line"),
    [
        (
            "crash",
            "start-up failed in phase 'load weights': tensor lm_head.weight is missing. "
            "Remedy: download it again",
        ),
        (
            "exit",
            "start-up failed in phase 'load weights': the engine ended with exit code 7. "
            "Remedy: see the engine's lines above",
        ),
        (
            "killed",
            "start-up failed in phase 'load weights': the engine ended with signal SIGKILL. "
            "Remedy: it probably ran out of memory: choose a smaller model, a smaller "
            "--max-batch-total-tokens, or give the container more memory",
        ),
        (
            "silent",
            "start-up failed in phase 'engine start': the engine ended with exit code 5. "
            "Remedy: see the engine's lines above",
        ),
    ],
)
def test_an_engine_that_does_not_start(server: Server, mode: str, line: str) -> None:
    server.start("serve", mode)
    code, _, error = server.end()
    assert (code, error) == (1, line + "\n")
    assert list(server.temporary.iterdir()) == []


def test_a_front_that_does_not_start(server: Server) -> None:
    server.start("broken", "slow")
    code, _, error = server.end()
    assert code == 1
    assert error.startswith("start-up failed in phase 'HTTP front': ")
    assert "exit code 3" in error


def test_a_model_that_is_missing(server: Server) -> None:
    (server.model / "config.json").unlink()
    server.start("serve", "ready")
    code, _, error = server.end()
    assert code == 1
    assert error.startswith("start-up failed in phase 'model files': ")
    assert not (server.scratch / "engine.pid").exists()


def test_a_port_in_use(server: Server) -> None:
    with socket.create_server(("127.0.0.1", server.port)):
        server.start("serve", "ready")
        code, _, error = server.end()
    assert (code, error) == (
        1,
        f"start-up failed in phase 'listen': port {server.port} of 127.0.0.1 is in use. "
        "Remedy: stop the other process, or choose another --port\n",
    )
    assert not (server.scratch / "front.pid").exists()


def test_a_temporary_directory_with_a_long_path(server: Server) -> None:
    server.temporary = server.scratch / ("long" * 25)
    server.temporary.mkdir()
    server.start("serve", "ready")
    code, _, error = server.end()
    assert code == 1
    assert "the limit is 107. Remedy: set TMPDIR" in error
    assert list(server.temporary.iterdir()) == []


def test_the_death_of_the_engine_is_broadcast_and_ends_the_server(server: Server) -> None:
    server.start("serve", "ready")
    server.wait_for_status("1 serving")
    os.kill(server.pid("engine"), signal.SIGKILL)
    code, out, _ = server.end()
    assert code == 1
    assert server.statuses()[-1] == "1 failed the engine died: signal SIGKILL"
    assert out.splitlines()[-1].endswith("server failed: the engine died: signal SIGKILL")
    assert not is_alive(server.pid("front"))


def test_the_death_of_the_front_ends_the_server(server: Server) -> None:
    server.start("serve", "ready")
    server.wait_for_status("1 serving")
    engine = server.pid("engine")
    os.kill(server.pid("front"), signal.SIGKILL)
    code, out, _ = server.end()
    assert code == 1
    assert out.splitlines()[-1].endswith("the HTTP front died: signal SIGKILL")
    assert not is_alive(engine)


def test_children_die_with_a_killed_launcher(server: Server) -> None:
    server.start("serve", "ready")
    server.wait_for_status("1 serving")
    children = [server.pid("front"), server.pid("engine")]
    os.kill(server.pid("launcher"), signal.SIGKILL)
    wait_for(lambda: not any(is_alive(pid) for pid in children))


def test_children_are_out_of_reach_of_the_terminal(server: Server) -> None:
    server.start("serve", "ready")
    children = [server.pid("front"), server.pid("engine")]
    assert [os.getpgid(pid) for pid in children] == children
    assert [os.getsid(pid) for pid in children] == children
