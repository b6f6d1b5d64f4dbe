"""JSON Lines: many requests in one body, as SageMaker's batch transform sends them.

Runs in the front. Comes in: a body with one request per line. Goes out: one line for each, in
their order: its answer, or its error as an object. Each line is a request of its own to the same
route: parsed, limited, counted and logged as if it came alone. Next: `sagemaker.py`, once per line.
"""

import contextvars
import io
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flask
import gevent
import msgspec
from gevent.pool import Pool
from werkzeug.wrappers import Response

from serving.errors import ErrorKind
from serving.front.context import Front
from serving.front.generation import ClientGone
from serving.front.handling import DEADLINE, latest_end
from serving.front.identity import REQUEST_ID
from serving.front.observation import current
from serving.front.responses import CLIENT_GONE, ErrorBody
from serving.settings import Settings

LINES_TYPE = re.compile(r"application/(x-)?(jsonlines|jsonl|ndjson)\s*(;.*)?", re.IGNORECASE)
OVERLOAD_SECONDS = 0.2  # before a line that the engine has no place for is tried again
STREAMED = "`stream` must not be true: an answer is one line"
TOO_LATE = "the time limit of the request has passed before this line was begun"


class _Line(msgspec.Struct):
    """What a line must not ask for."""

    stream: bool | None = None


def is_json_lines() -> bool:
    """Whether the current request's body is said to be JSON Lines."""
    return LINES_TYPE.fullmatch(flask.request.headers.get("Content-Type", "")) is not None


def holds_lines(data: bytes) -> bool:
    """Whether a body that is said to be JSON has one value in its first line and more behind it.

    So comes a batch of records whose content type is that of one. Its other lines must not be lost.
    """
    first, _, rest = data.strip().partition(b"\n")
    if not rest:
        return False
    try:
        msgspec.json.decode(first, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True


def answer_lines(front: Front, data: bytes) -> flask.Response:
    """The answers to all lines of the current request's body `data`, under status 200.

    Raises `RequestError` while no sequence is taken, `ClientGone`.
    """
    lines = data.splitlines()
    front.serving_model()
    observation, app = current(), flask.current_app._get_current_object()  # type: ignore[attr-defined]
    environ = flask.request.environ
    end = latest_end(front.settings, environ, observation.started, stream=False)
    body = _Body(app, environ, observation.identity.request_id, end)
    answers = Pool(_lines_at_once(front.settings)).map(body.answer, enumerate(lines, 1))
    if body.client_is_gone:
        raise ClientGone
    observation.succeed()
    content_type = flask.request.headers["Content-Type"]
    return flask.Response(
        b"".join(answer + b"\n" for answer in answers), 200, None, None, content_type
    )


def _lines_at_once(settings: Settings) -> int:
    """This worker's share of the sequences that the engines take."""
    places = settings.max_concurrent_requests * settings.num_replicas
    return max(1, places // settings.validation_workers)


@dataclass
class _Body:
    """What the lines of one body have in common."""

    app: flask.Flask
    environ: Mapping[str, Any]  # of the request that holds the lines
    request_id: str
    end: int  # CLOCK_MONOTONIC in nanoseconds; 0: no limit
    client_is_gone: bool = False  # as a line has noticed that was under way

    def answer(self, numbered: tuple[int, bytes]) -> bytes:
        """The answer to a line and its number, without a line break; empty once nobody reads it."""
        number, line = numbered
        if _is_streamed(line):
            return _error(STREAMED, ErrorKind.VALIDATION)
        while not self.client_is_gone:
            if 0 < self.end <= time.monotonic_ns():
                return _error(TOO_LATE, ErrorKind.OVERLOADED)
            response = self._ask(number, line)
            if response.status_code == CLIENT_GONE:
                self.client_is_gone = True
            elif response.status_code != ErrorKind.OVERLOADED.status:
                return _as_line(response)
            else:
                gevent.sleep(OVERLOAD_SECONDS)
        return b""

    def _ask(self, number: int, line: bytes) -> Response:
        """Let the application answer the line; it knows nothing of the request around it."""
        environ = {
            **self.environ,
            "wsgi.input": io.BytesIO(line),
            "CONTENT_LENGTH": str(len(line)),
            "CONTENT_TYPE": "application/json",
            "HTTP_" + REQUEST_ID.upper().replace("-", "_"): f"{self.request_id}-{number}",
            DEADLINE: self.end,
        }
        return contextvars.Context().run(Response.from_app, self.app, environ, True)


def _is_streamed(line: bytes) -> bool:
    try:
        return bool(msgspec.json.decode(line, type=_Line).stream)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # the route says what is wrong with it


def _as_line(response: Response) -> bytes:
    """JSON as it is; what is plain text elsewhere becomes an object here."""
    if response.mimetype == "application/json":
        return response.get_data()
    return _error(response.get_data(as_text=True), ErrorKind.VALIDATION)


def _error(message: str, kind: ErrorKind) -> bytes:
    return msgspec.json.encode(ErrorBody(message, kind.error_type))
