"""Twelve concurrent streams of every kind, and what must hold for each of them whatever happens.

`running()` starts the fixed mix on a server; `outcomes()` waits for the ends, checks each stream by
itself (one terminal event, no gap, nothing doubled) and gives what a fault-free run gives too.
"""

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
from live_server import LiveServer, wait_for

END_SECONDS = 60  # for all streams to end, recoveries included
TOKENS = 120  # long enough to be running still when a process has been found and killed
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "size", "tags"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Request:
    """A streaming request of the mix."""

    name: str
    path: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a client got; equal for the same request whatever happened to the engine."""

    status: int
    text: str
    pieces: int  # events with text or a token
    finish: str | None
    error: str | None


def native(name: str, inputs: str, **parameters: Any) -> Request:
    """A request of /generate_stream."""
    parameters = {"max_new_tokens": TOKENS, "details": True, **parameters}
    return Request(name, "/generate_stream", {"inputs": inputs, "parameters": parameters})


def plain(name: str, inputs: str) -> Request:
    """A request of /generate that must fail."""
    return Request(name, "/generate", {"inputs": inputs})


def chat(name: str, question: str, **fields: Any) -> Request:
    """A streamed chat."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": TOKENS,
        "temperature": 0,
        **fields,
    }
    return Request(name, "/v1/chat/completions", body)


def completion(name: str, prompt: str, **fields: Any) -> Request:
    """A streamed text completion."""
    body = {
        "prompt": prompt,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": TOKENS,
        "temperature": 0,
        **fields,
    }
    return Request(name, "/v1/completions", body)


def sampled(seed: int, **parameters: Any) -> dict[str, Any]:
    """Parameters of seeded sampling of a native request."""
    return {"do_sample": True, "seed": seed, "temperature": 1.2, "ignore_eos": True, **parameters}


MIX = (
    native("greedy", "Count to 100", ignore_eos=True),
    chat("greedy chat", "What is deep learning?", ignore_eos=True),
    completion("greedy completion", "The sky is", ignore_eos=True),
    native("sampled", "Tell me about the sea", **sampled(1, top_p=0.95)),
    chat("sampled chat", "Tell me a story", temperature=1.1, seed=2, ignore_eos=True),
    native("typical", "Name a colour", **sampled(3, top_k=50, typical_p=0.9)),
    native(
        "guided", "A thing:", **sampled(4, ignore_eos=False, max_new_tokens=80),
        grammar={"type": "json", "value": SCHEMA},
    ),
    chat(
        "guided chat", "Describe a thing.", max_tokens=80,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
    ),
    native(
        "penalised", "Count to 20", repetition_penalty=1.3, frequency_penalty=0.4, ignore_eos=True,
        watermark=True,
    ),
    chat(
        "penalised chat", "Count to 30", temperature=0.9, seed=5, frequency_penalty=0.6,
        presence_penalty=0.5, ignore_eos=True,
    ),
    native("stop", "Count to 50", stop=[" 15", "zzz"], max_new_tokens=60),
    completion(
        "biased", "Numbers: 1, 2", logit_bias={"300": 4, "301": 3, "302": -100}, ignore_eos=True
    ),
)  # fmt: skip


class Stream(threading.Thread):
    """One client: reads its events as they come."""

    def __init__(self, server: LiveServer, request: Request) -> None:
        super().__init__(name=request.name, daemon=True)
        self.request = request
        self.status = 0
        self.events: list[Any] = []
        self.is_done = False  # "[DONE]" came
        self.is_broken = False  # the connection ended before the response did
        self.local_port = 0
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=END_SECONDS)

    def run(self) -> None:
        body = json.dumps(self.request.body)
        try:
            headers = {"Content-Type": "application/json"}
            self._connection.connect()
            self.local_port = self._connection.sock.getsockname()[1]
            self._connection.request("POST", self.request.path, body, headers)
            answer = self._connection.getresponse()
            self.status = answer.status
            if answer.status == 200:
                self._read(answer)
            else:
                self.events.append(json.loads(answer.read()))
        except (http.client.HTTPException, OSError):
            self.is_broken = True
        finally:
            self._connection.close()

    def _read(self, answer: http.client.HTTPResponse) -> None:
        """Raises `IncompleteRead` if the body ends early: only `read1` tells."""
        rest = b""
        while piece := answer.read1(1 << 16):
            *frames, rest = (rest + piece).split(b"\n\n")
            for frame in frames:
                self._take(frame)
        assert not rest

    def _take(self, frame: bytes) -> None:
        if frame == b":":  # keep-alive
            return
        assert not self.is_done
        content = frame.removeprefix(b"data: ").removeprefix(b"data:")
        if content == b"[DONE]":
            self.is_done = True
        else:
            self.events.append(json.loads(content))

    def outcome(self) -> Outcome:
        """What came; asserts what must hold for this stream alone."""
        assert not self.is_alive(), f"{self.name}: no end after {len(self.events)} events"
        assert not self.is_broken, f"{self.name}: broken off after {len(self.events)} events"
        if self.request.path == "/generate":
            return Outcome(self.status, "", 0, None, _error(self.events[0]))
        if self.request.path == "/generate_stream":
            return self._native_outcome()
        return self._openai_outcome()

    def _native_outcome(self) -> Outcome:
        ends = [event for event in self.events if _error(event) or event.get("generated_text")]
        assert ends == self.events[-1:], self.events
        tokens = [event for event in self.events if "token" in event]
        assert [event["index"] for event in tokens] == list(range(1, len(tokens) + 1))
        text = "".join(e["token"]["text"] for e in tokens if not e["token"]["special"])
        error = _error(ends[0])
        if error:
            return Outcome(self.status, text, len(tokens), None, error)
        assert text == ends[0]["generated_text"]
        assert len(tokens) == ends[0]["details"]["generated_tokens"]
        return Outcome(self.status, text, len(tokens), ends[0]["details"]["finish_reason"], None)

    def _openai_outcome(self) -> Outcome:
        errors = [_error(event) for event in self.events if _error(event)]
        choices = [c for event in self.events if not _error(event) for c in event["choices"]]
        finishes = [c["finish_reason"] for c in choices if c["finish_reason"]]
        assert len(errors) + len(finishes) == 1, self.events
        assert self.is_done or self.status != 200
        text = "".join(_text(choice) for choice in choices)
        if errors:
            assert _error(self.events[-1])
            return Outcome(self.status, text, len(choices), None, errors[0])
        assert choices[-1]["finish_reason"]
        used = self.events[-1]["usage"]["completion_tokens"]
        return Outcome(self.status, text, used, finishes[0], None)


class Streams:
    """The streams of one run of the mix."""

    def __init__(self, server: LiveServer, requests: Sequence[Request]) -> None:
        self._streams = [Stream(server, request) for request in requests]
        for stream in self._streams:
            stream.start()

    def wait_for_events(self, number: int) -> None:
        """Wait until every stream has had so many events, or its end."""
        wait_for(
            lambda: all(len(s.events) >= number or not s.is_alive() for s in self._streams),
            f"{number} events of every stream",
        )

    def of_worker(self, pid: int) -> set[str]:
        """Names of the streams that an HTTP worker serves."""
        connections = psutil.Process(pid).net_connections("tcp4")
        ports = {connection.raddr.port for connection in connections if connection.raddr}
        return {stream.request.name for stream in self._streams if stream.local_port in ports}

    def join(self) -> list[Stream]:
        """Wait for every end; the streams in the order of the mix."""
        deadline = time.monotonic() + END_SECONDS
        for stream in self._streams:
            stream.join(max(deadline - time.monotonic(), 0.0))
        return self._streams

    def outcomes(self) -> dict[str, Outcome]:
        """Wait for every end; what each stream gave."""
        return {stream.request.name: stream.outcome() for stream in self.join()}


@contextmanager
def hanging_request(server: LiveServer, inputs: str) -> Iterator[None]:
    """A request that is in flight inside the block, and whose client hangs up at its end."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=END_SECONDS)
    body = {"inputs": inputs, "parameters": {"max_new_tokens": 1}}
    connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
    try:
        yield
    finally:
        connection.close()


def _text(choice: Any) -> str:
    return str(choice["text"] if "text" in choice else choice["delta"].get("content") or "")


def _error(event: Any) -> str | None:
    """The kind of error that an event or a body tells, in any dialect."""
    if "error" not in event:
        return None
    error = event["error"]
    return str(error["code"] if isinstance(error, dict) else event["error_type"])
