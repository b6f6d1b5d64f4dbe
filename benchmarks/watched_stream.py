"""One streaming client that notes when each token came and judges what it got.

Runs inside `recovery.py` and `kill_soak.py`, a thread for each stream. Comes in: a request. Goes
out: times of tokens while it runs; at the end an `Outcome`, equal for equal requests whatever
happened to the engine. Next: `stream_outcome.py`.
"""

import http.client
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from benchmarks.stream_outcome import Outcome, has_token, judge
from serving.benchmark.sse import EventParser

READ_BYTES = 1 << 16
TIMEOUT_SECONDS = 300.0  # without any byte; the server sends keep-alives
DONE = b"[DONE]"


@dataclass(frozen=True)
class StreamRequest:
    """A request whose answer is a stream."""

    name: str
    path: str
    body: dict[str, Any]


def no_arrival(_: float) -> None:
    """What a stream tells of its tokens, if nobody listens: nothing."""


class WatchedStream(threading.Thread):
    """Reads one stream to its end."""

    def __init__(
        self, port: int, request: StreamRequest, on_token: Callable[[float], None] = no_arrival
    ) -> None:
        """`on_token` is told the time of each piece that has a token, in this thread."""
        super().__init__(name=request.name, daemon=True)
        self.request = request
        self.token_times: list[float] = []  # as of time.time(), one for each event with a token
        self._on_token = on_token
        self._port = port
        self._status = 0
        self._events: list[Any] = []
        self._num_done = 0
        self._is_complete = False

    def run(self) -> None:
        """Send the request, read the answer; a broken connection is part of the outcome."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS)
        headers = {"Content-Type": "application/json"}
        try:
            connection.request("POST", self.request.path, json.dumps(self.request.body), headers)
            answer = connection.getresponse()
            self._status = answer.status
            if answer.status == http.client.OK:
                self._read(answer)
            else:
                self._events.append(msgspec.json.decode(answer.read()))
            self._is_complete = True
        except (http.client.HTTPException, OSError, msgspec.DecodeError):
            pass  # `_is_complete` says so
        finally:
            connection.close()

    def _read(self, answer: http.client.HTTPResponse) -> None:
        """Raises `http.client.IncompleteRead` if the body ends early."""
        parser = EventParser()
        while piece := answer.read1(READ_BYTES):
            now = time.time()
            for payload in parser.feed(piece):
                self._take(payload, now)

    def _take(self, payload: bytes, now: float) -> None:
        if payload == DONE:
            self._num_done += 1
            return
        event = msgspec.json.decode(payload)
        self._events.append(event)
        if has_token(event):
            self.token_times.append(now)
            self._on_token(now)

    def outcome(self) -> Outcome:
        """What came; call it when the thread has ended."""
        is_native = self.request.path == "/generate_stream"
        ends = 1 if is_native else self._num_done
        return judge(self._status, self._events, is_native, self._is_complete and ends == 1)
