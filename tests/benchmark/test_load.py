"""The load client against a small server of known events, over real sockets."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from serving.benchmark.cli import main
from serving.benchmark.load import Server, make_levels, run_level, warm_up
from serving.benchmark.measures import Level, LevelReport
from serving.benchmark.prompts import PromptMaker

FIRST_TOKEN_S, GAP_S = 0.05, 0.02
LEVEL = Level("decode-2", concurrency=2, requests=4, prompt_tokens=12, max_new_tokens=5)


class FakeServer(ThreadingHTTPServer):
    """Streams `max_tokens` tokens, two per event from the second event on; keeps what it saw."""

    daemon_threads = False
    truncate = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.bodies: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.in_flight = self.most_in_flight = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self.lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        yield
        with self.lock:
            self.in_flight -= 1


class FakeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.counted():
            self.server.bodies.append(body)
            if self.path == "/v1/completions":
                self._stream_completion(body["max_tokens"])
            elif self.path == "/generate_stream":
                self._stream_generate(body["parameters"]["max_new_tokens"])
            else:
                self.send_error(429, "busy")
                self.close_connection = True
        # Only now: the client's next request may come as soon as it has read the end.
        if not self.close_connection:
            self._chunk(b"")

    def _stream_completion(self, num_tokens: int) -> None:
        self._begin()
        sent = 0
        while sent < num_tokens:
            time.sleep(GAP_S if sent else FIRST_TOKEN_S)
            sent = min(sent + 2, num_tokens) if sent else 1
            choice = {"text": " x", "finish_reason": "length" if sent == num_tokens else None}
            self._event({"choices": [choice]})
        self._event({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": sent}})
        if not self.server.truncate:
            self._chunk(b"data: [DONE]\n\n")

    def _stream_generate(self, num_tokens: int) -> None:
        self._begin()
        for index in range(1, num_tokens + 1):
            time.sleep(GAP_S if index > 1 else FIRST_TOKEN_S)
            last = index == num_tokens
            details = {"generated_tokens": index, "input_length": 11} if last else None
            text = " x" * index if last else None
            self._event({"token": {"id": 7}, "generated_text": text, "details": details})

    def _begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _event(self, event: dict[str, Any]) -> None:
        data = f"data: {json.dumps(event)}\n\n".encode()
        # Cut inside the event: the client must not depend on one event per chunk.
        self._chunk(data[:9])
        self._chunk(data[9:])

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, format: str, *args: object) -> None:
        """Write no access log."""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        fake.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def prompts(tiny_model: Path) -> PromptMaker:
    return PromptMaker(tiny_model)


def run(server: FakeServer, prompts: PromptMaker, route: str = "completions") -> LevelReport:
    return run_level(Server(server.url, route, model="m"), prompts, LEVEL, seed=1)


def test_completions_counts_come_from_usage(server: FakeServer, prompts: PromptMaker) -> None:
    report = run(server, prompts)
    assert report.errors == {}
    assert (report.requests_ok, report.requests_failed) == (4, 0)
    assert (report.prompt_tokens, report.output_tokens) == (44, 20)


def test_times_are_at_least_the_servers_delays(server: FakeServer, prompts: PromptMaker) -> None:
    report = run(server, prompts)
    assert report.time_to_first_token_s is not None
    assert report.inter_token_s is not None
    assert report.event_gap_s is not None
    assert report.time_to_first_token_s.p50 >= FIRST_TOKEN_S
    assert report.event_gap_s.p50 >= 0.75 * GAP_S
    # Five tokens in three events: two gaps over four tokens.
    assert report.inter_token_s.p50 >= 0.75 * 2 * GAP_S / 4
    assert report.wall_s >= 2 * (FIRST_TOKEN_S + 2 * GAP_S)


def test_concurrency_is_the_number_of_requests_in_flight(
    server: FakeServer, prompts: PromptMaker
) -> None:
    run(server, prompts)
    assert server.most_in_flight == LEVEL.concurrency


def test_every_request_has_its_own_prompt(server: FakeServer, prompts: PromptMaker) -> None:
    run(server, prompts)
    sent = [body["prompt"] for body in server.bodies]
    assert len(set(sent)) == 4
    assert {prompts.count_tokens(prompt) for prompt in sent} == {12}


def test_generate_stream_counts_come_from_details(server: FakeServer, prompts: PromptMaker) -> None:
    report = run(server, prompts, "generate_stream")
    assert report.errors == {}
    assert (report.prompt_tokens, report.output_tokens) == (44, 20)


def test_refused_requests_are_counted_with_their_status(
    server: FakeServer, prompts: PromptMaker
) -> None:
    report = run(server, prompts, "chat")
    assert (report.requests_ok, report.requests_failed) == (0, 4)
    assert all(message.startswith("HTTP 429") for message in report.errors)


def test_stream_without_its_last_event_is_a_failure(
    server: FakeServer, prompts: PromptMaker
) -> None:
    server.truncate = True
    assert run(server, prompts).errors == {"the stream ended before its last event": 4}


def test_unreachable_server_is_a_failure(prompts: PromptMaker) -> None:
    report = run_level(Server("http://127.0.0.1:1", "completions", "m"), prompts, LEVEL, seed=1)
    assert report.requests_failed == 4


def test_warm_up_uses_other_prompts_than_the_level(
    server: FakeServer, prompts: PromptMaker
) -> None:
    warm_up(Server(server.url, "completions", "m"), prompts, LEVEL, requests=1, seed=1)
    run(server, prompts)
    assert len({body["prompt"] for body in server.bodies}) == 5


def test_default_requests_follow_the_concurrency() -> None:
    levels = list(make_levels([1, 16], None, 265, 64))
    assert [(level.name, level.requests) for level in levels] == [
        ("decode-1", 4),
        ("decode-16", 32),
    ]


def test_command_line_writes_a_table_and_json(
    server: FakeServer, tiny_model: Path, tmp_path: Path
) -> None:
    json_path = tmp_path / "report.json"
    arguments = f"--url {server.url} --model m --tokenizer {tiny_model} --concurrency 1,2 --seed 3"
    arguments += f" --requests 2 --prompt-tokens 9 --prefill-only --ignore-eos --json {json_path}"
    result = CliRunner().invoke(main, arguments.split())
    assert result.exit_code == 0, result.output
    assert "prefill-1" in result.output
    report = json.loads(json_path.read_bytes())
    assert report["seed"] == 3
    assert [level["requests_ok"] for level in report["levels"]] == [2, 2]
    assert [level["output_tokens"] for level in report["levels"]] == [2, 2]
    assert all(body["ignore_eos"] and body["max_tokens"] == 1 for body in server.bodies)


def test_command_line_fails_when_a_request_failed(server: FakeServer, tiny_model: Path) -> None:
    arguments = f"--url {server.url} --route chat --model m --tokenizer {tiny_model}"
    result = CliRunner().invoke(main, [*arguments.split(), "--concurrency", "1"])
    assert result.exit_code == 1
    assert "HTTP 429" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--route completions", "needs --model"),
        ("--route generate_stream --ignore-eos", "no counterpart"),
        ("--model m --url ftp://host", "http://host:port"),
        ("--model m --concurrency 1,0", "integer >= 1"),
        ("--model m --header nothing", "Name: value"),
    ],
)
def test_command_line_refuses(tiny_model: Path, arguments: str, message: str) -> None:
    result = CliRunner().invoke(main, [*arguments.split(), "--tokenizer", str(tiny_model)])
    assert result.exit_code == 2
    assert message in result.output
