"""A whole server as SageMaker starts it: `serve`, large bodies, answers within its time limits."""

import http.client
import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from live_server import LiveServer, live_server, wait_for

pytestmark = pytest.mark.e2e

LONG = {"max_new_tokens": 900, "ignore_eos": True, "details": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The time limits are shortened; that of streams is the longer one, as on the platform."""
    log = tmp_path_factory.mktemp("sagemaker") / "log"
    limits = ("--max-whole-seconds", "0.2", "--max-stream-seconds", "0.5")
    with live_server(log, "serve", *limits) as running:
        wait_for_every_worker(running)
        yield running


def wait_for_every_worker(server: LiveServer) -> None:
    """One of two may be ready a moment before the other; either may answer the next request."""
    wait_for(
        lambda: all(server.request("GET", "/ping")[0] == 200 for _ in range(20)),
        "every worker to become ready",
    )


def test_both_pings(server: LiveServer) -> None:
    for method in ("GET", "POST"):
        assert server.request(method, "/ping") == (200, "")


def test_a_whole_answer_is_cut_in_time(server: LiveServer) -> None:
    (answer,) = server.post("/invocations", {"inputs": "Count to 10", "parameters": LONG})
    details = answer["details"]
    assert details["finish_reason"] == "length"
    assert 0 < details["generated_tokens"] < LONG["max_new_tokens"]


def test_a_stream_may_take_longer(server: LiveServer) -> None:
    def last(seconds: str) -> Any:
        body = {"inputs": f"Count to 10{seconds}", "parameters": LONG, "stream": True}
        *_, end = server.events("/invocations", body)
        return end

    end = last("")
    (whole,) = server.post("/invocations", {"inputs": "Count to 10", "parameters": LONG})
    assert end["details"]["finish_reason"] == "length"
    assert end["index"] > whole["details"]["generated_tokens"]


def test_a_body_of_25_mib_is_read(server: LiveServer) -> None:
    size = 25 * 1024 * 1024
    body = b'{"inputs":1,"x":"' + b"a" * (size - 19) + b'"}'
    assert len(body) == size
    status, text = server.request("POST", "/invocations", body)
    assert (status, "inputs: Expected `str`, got `int`" in text) == (422, True)
    status, text = server.request("POST", "/invocations", body + b" ")
    assert (status, f"it is {size} bytes" in text) == (413, True)


def test_the_platforms_headers_go_through(server: LiveServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "X-Amzn-SageMaker-Inference-Id": "order-7",
        "X-Amzn-SageMaker-Target-Variant": "AllTraffic",
        "X-Amzn-SageMaker-Unknown": "x",
    }
    body = {"model": "", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    assert (response.status, content["choices"][0]["finish_reason"]) in (
        (200, "length"),
        (200, "stop"),
    )
    assert response.headers["X-Request-Id"] == "order-7"


def test_sigterm_with_20_streams(tmp_path: Path) -> None:
    """Pings fail at once, every stream has exactly one end, and the server is gone in 30 s."""
    with live_server(tmp_path / "log", "serve") as server, ThreadPoolExecutor(20) as pool:
        begun = Barrier(21, timeout=20)

        def stream(number: int) -> list[Any]:
            body = {"inputs": f"Count to {number}", "parameters": LONG, "stream": True}
            events = server.events("/invocations", body)
            found = [next(events)]
            begun.wait()
            return [*found, *events]

        streams = [pool.submit(stream, number) for number in range(20)]
        begun.wait()
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server._status("/ping") != 200, "a failing ping", 2)
        assert server.process.wait(30) == 0
        for one in streams:
            events = one.result(timeout=5)
            ends = ["error" in event or event["generated_text"] is not None for event in events]
            assert ends == [False] * (len(events) - 1) + [True]


def test_the_log_names_where_limits_come_from(server: LiveServer) -> None:
    log = server.log.read_text()
    assert re.search(r"setting payload_limit = 26214400 \(serve\)", log)
    assert re.search(r"setting max_whole_seconds = 0.2 \(--max-whole-seconds\)", log)
