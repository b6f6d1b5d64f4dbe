"""The front as a process, under gunicorn, with an engine that the test plays."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.protocol.messages import Delta, Generate, Step
from serving.settings import Settings
from tests.support.fake_engine import WireEngine, WireLauncher

PROMPT = {"inputs": "the sky is"}
BLUE = 297  # " blue" in the tiny tokenizer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A running front with its run directory, and the engine's end of the wire."""

    def __init__(self, directory: Path, model_directory: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        (directory / "metrics").mkdir()
        settings = Settings(model_id="org/model", hostname="127.0.0.1", port=self.port)
        settings_file = directory / "settings.json"
        settings_file.write_bytes(msgspec.json.encode(settings))
        self.engine = WireEngine(directory, model_directory)
        self.launcher = WireLauncher(directory)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving.front", str(settings_file), str(directory)],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory / "metrics")},
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_for_ping(self, status: int) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/ping", timeout=10).status_code == status:
                    return
            except httpx.TransportError:
                assert self.process.poll() is None
            time.sleep(0.02)
        raise TimeoutError(f"/ping was never {status}")

    def serve(self) -> None:
        self.engine.greet(workers=2)
        self.launcher.serve()
        for _ in range(8):  # both workers, whichever answers
            self.wait_for_ping(200)

    def post(self, path: str) -> "Call":
        return Call(lambda: httpx.post(self.url + path, json=PROMPT, timeout=30))

    def connect(self, path: str) -> socket.socket:
        """Send the request over a bare socket, which the test will close."""
        body = json.dumps(PROMPT).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.sendall(head.encode() + body)
        return connection

    def step(self, worker: bytes, request: Generate, end: bool) -> None:
        delta = Delta(
            request.sequence_id,
            [BLUE],
            [-0.5] if request.logprobs else [],
            finish_reason="length" if end else None,
            admitted_ns=time.monotonic_ns(),
        )
        self.engine.send(worker, Step(self.engine.epoch, [delta]))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=10)
        self.engine.close()
        self.launcher.close()


class Call:
    """An HTTP call under way in a thread."""

    def __init__(self, call: Callable[[], httpx.Response]) -> None:
        self._responses: list[httpx.Response] = []
        self._thread = threading.Thread(target=lambda: self._responses.append(call()), daemon=True)
        self._thread.start()

    def response(self) -> httpx.Response:
        self._thread.join(timeout=30)
        return self._responses[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_directory: Path) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("run"), model_directory)
    try:
        server.wait_for_ping(503)  # listening before there is an engine
        server.serve()
        yield server
    finally:
        server.close()


@pytest.fixture
def own_server(tmp_path: Path, model_directory: Path) -> Iterator[Server]:
    server = Server(tmp_path, model_directory)
    try:
        server.wait_for_ping(503)
        yield server
    finally:
        server.close()


def test_a_request_crosses_all_processes(server: Server) -> None:
    call = server.post("/generate")
    worker, request = server.engine.receive_generate()
    server.step(worker, request, end=True)
    assert call.response().text == '{"generated_text":" blue"}'


def test_a_stream_arrives_token_by_token(server: Server) -> None:
    with httpx.stream("POST", f"{server.url}/generate_stream", json=PROMPT, timeout=30) as response:
        worker, request = server.engine.receive_generate()
        assert response.headers["content-type"] == "text/event-stream"
        lines = response.iter_lines()
        server.step(worker, request, end=False)
        assert json.loads(next(lines).removeprefix("data: "))["index"] == 1
        server.step(worker, request, end=True)
        last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["generated_text"] == " blue blue"


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/v1/completions"])
def test_a_client_that_hangs_up_is_aborted_at_once(server: Server, path: str) -> None:
    PROMPT["prompt"] = "the sky is"
    connection = server.connect(path)
    worker, request = server.engine.receive_generate()
    connection.close()
    assert server.engine.receive_abort()[1].sequence_id == request.sequence_id
    assert worker in server.engine.workers


def test_a_client_that_hangs_up_during_its_stream_is_aborted(server: Server) -> None:
    connection = server.connect("/generate_stream")
    worker, request = server.engine.receive_generate()
    server.step(worker, request, end=False)
    assert connection.recv(12) == b"HTTP/1.1 200"
    connection.close()
    assert server.engine.receive_abort()[1].sequence_id == request.sequence_id


def test_a_connection_serves_several_requests(server: Server) -> None:
    with httpx.Client(timeout=30) as client:
        for _ in range(2):
            call = Call(lambda: client.post(f"{server.url}/generate", json=PROMPT))
            worker, request = server.engine.receive_generate()
            server.step(worker, request, end=True)
            assert call.response().status_code == 200


def test_an_oversized_chunked_body_is_refused(server: Server) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"inputs":"'
        for _ in range(30):
            yield b"a" * 100_000

    headers = {"content-type": "application/json"}
    response = httpx.post(f"{server.url}/generate", content=body(), headers=headers, timeout=30)
    assert response.status_code == 413


def test_metrics_of_all_workers_are_added_up_on_one_page(own_server: Server) -> None:
    own_server.serve()
    calls = 2
    call = own_server.post("/generate")
    first, request = own_server.engine.receive_generate()
    own_server.step(first, request, end=True)
    assert call.response().status_code == 200
    pid = int(first.split(b"-")[0])
    os.kill(pid, signal.SIGSTOP)  # the other worker has to take the next one
    try:
        call = own_server.post("/generate")
        second, request = own_server.engine.receive_generate()
        own_server.step(second, request, end=True)
        assert call.response().status_code == 200
    finally:
        os.kill(pid, signal.SIGCONT)
    assert first != second
    page = httpx.get(f"{own_server.url}/metrics").text
    samples = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    for name in ("tgi_request_count_total", "tgi_request_success_total"):
        assert samples[name, None] == calls
    for name in ("tgi_request_duration", "tgi_request_queue_duration"):
        assert samples[f"{name}_count", None] == calls
        assert samples[f"{name}_bucket", "+Inf"] == calls
    assert samples["tgi_request_generated_tokens_sum", None] == calls


def test_what_was_dropped_is_counted(server: Server) -> None:
    page = httpx.get(f"{server.url}/metrics").text
    assert 'tgi_request_failure{err="dropped"}' in page


def test_sigterm_finishes_streams_and_closes_idle_connections(own_server: Server) -> None:
    own_server.serve()
    with httpx.Client() as idle:
        idle.get(f"{own_server.url}/ping")
        call = own_server.post("/generate_stream")
        worker, request = own_server.engine.receive_generate()
        own_server.step(worker, request, end=False)
        own_server.launcher.broadcast(phase="draining", healthy=False)
        own_server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        own_server.step(worker, request, end=True)
        assert '"generated_text":" blue blue"' in call.response().text
        assert own_server.process.wait(timeout=10) == 0


def test_streams_survive_a_restart_of_the_engine(own_server: Server) -> None:
    own_server.serve()
    call = own_server.post("/generate_stream")
    worker, request = own_server.engine.receive_generate()
    own_server.step(worker, request, end=False)
    # A second request proves that the worker has read the first one's token.
    probe = own_server.post("/generate")
    other, second = own_server.engine.receive_generate()
    own_server.step(other, second, end=True)
    probe.response()
    own_server.engine.restart()
    own_server.launcher.broadcast(epochs=[2])
    worker, resumed = own_server.engine.receive_generate()
    assert resumed.resume_token_ids == [BLUE]
    own_server.step(worker, resumed, end=True)
    assert '"generated_text":" blue blue"' in call.response().text


def test_a_port_in_use_is_named_and_ends_the_process(tmp_path: Path, model_directory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Server(tmp_path, model_directory, port)
        output, _ = server.process.communicate(timeout=30)
        server.close()
    assert server.process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in output.splitlines()[-1]


def test_an_unusable_tokenizer_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run_directory = tmp_path / "run"
    run_directory.mkdir()
    server = Server(run_directory, tmp_path / "empty")
    try:
        server.engine.greet()
        output, _ = server.process.communicate(timeout=30)
    finally:
        server.close()
    assert server.process.returncode == 3
    assert "no tokenizer.json in" in output
