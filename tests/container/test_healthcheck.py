"""The image's HEALTHCHECK against real sockets and the launcher's real run directory."""

import contextlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.launcher.run_directory import run_directory
from serving.settings import Settings

HEALTHCHECK = Path(__file__).parent.parent.parent / "container" / "healthcheck"


def check(temporary: Path) -> tuple[int, str]:
    """Exit code and line of the script, with this temporary directory."""
    done = subprocess.run(
        [sys.executable, HEALTHCHECK],
        env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.strip()


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short temporary directory: it gets the paths of sockets."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@contextlib.contextmanager
def server(status: int) -> Iterator[int]:
    """A server whose /health answers `status`; its port."""

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Health) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made.server_port
        made.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
@pytest.mark.parametrize("hostname", ["0.0.0.0", "127.0.0.1", "a-container"])
def test_asks_the_port_of_the_settings(
    temporary: Path, status: int, code: int, hostname: str
) -> None:
    with server(status) as port, run_directory(Settings(port=port, hostname=hostname)):
        assert check(temporary) == (code, f"127.0.0.1:{port}/health: {status}")


def test_no_server_is_unhealthy(temporary: Path) -> None:
    assert check(temporary) == (1, "no server is running here")


def test_refused_connection_is_unhealthy(temporary: Path) -> None:
    with server(200) as port:
        pass
    with run_directory(Settings(port=port)):
        code, line = check(temporary)
    assert code == 1
    assert line.startswith(f"127.0.0.1:{port}: ")


def test_machine_without_http_is_healthy_while_it_runs(temporary: Path) -> None:
    with run_directory(Settings(nnodes=2, node_rank=1)):
        assert check(temporary)[0] == 0
