"""The life of one generating request in the front: everything that must end when it ends.

Runs in the front. Comes in: Flask's request at a route's entry. Goes out: a `Generation`, watched
for a client that hangs up; at the end its sequences are aborted, the watch is stopped, metrics
and the log line are written, each exactly once. Next: `generation.py`, `observation.py`.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import flask

from serving.errors import ErrorKind, RequestError
from serving.front.context import Front
from serving.front.disconnect import HangUpWatch
from serving.front.generation import ClientGone, Generation
from serving.front.observation import Observation
from serving.front.validation import ValidRequest

REQUEST_ID_HEADERS = ("X-Request-Id", "X-Amzn-SageMaker-Inference-Id")
LONGEST_REQUEST_ID = 200  # characters that are logged


class Handling:
    """Made inside a Flask request; used as a context, or closed by the response it made."""

    def __init__(self, front: Front, prompts: int = 1) -> None:
        """`prompts`: how many requests this one counts for."""
        self._front = front
        self._connection = flask.request.environ.get("gunicorn.socket")
        self.request_id = _request_id()
        path = flask.request.path
        self._observation = Observation(front.metrics, path, self.request_id, prompts)
        self._generation: Generation | None = None
        self._watch: HangUpWatch | None = None
        self._outcome = "dropped"  # unless somebody says otherwise before the end
        self._closed = False

    @property
    def started(self) -> int:
        """When the request came, CLOCK_MONOTONIC in nanoseconds."""
        return self._observation.started

    def start(self, requests: Sequence[ValidRequest], keep_stop: bool) -> Generation:
        """Submit the sequences. Raises `RequestError`; may be called once."""
        tokenizer = self._front.loaded_model().tokenizer
        self._generation = Generation(requests, tokenizer, self._front.engine, keep_stop)
        if self._connection is not None:
            self._watch = HangUpWatch(self._connection, self._generation.hang_up)
        return self._generation

    def succeed(self) -> None:
        """The request was answered in full."""
        self._outcome = "ok"

    def fail(self, error: BaseException) -> None:
        """The request ends with this error."""
        if isinstance(error, RequestError):
            self._outcome = error.kind.metric_label
        elif not isinstance(error, ClientGone | GeneratorExit):
            self._outcome = ErrorKind.GENERATION.metric_label

    def close(self) -> None:
        """End everything that is still going on; may be called again."""
        if self._closed:
            return
        self._closed = True
        if self._watch is not None:
            self._watch.stop()
        if self._generation is not None:
            self._generation.close()
        self._observation.finish(
            self._outcome, self._generation.sequences if self._generation else []
        )

    @contextmanager
    def until_response(self) -> Iterator[None]:
        """Close only if the body fails: otherwise the streamed response will close."""
        try:
            yield
        except BaseException as error:
            self.fail(error)
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.fail(error)
        self.close()


def _request_id() -> str:
    """The caller's id of the request, so that logs can be matched, or a new one."""
    for header in REQUEST_ID_HEADERS:
        given = flask.request.headers.get(header)
        if given:
            return given[:LONGEST_REQUEST_ID]
    return secrets.token_hex(16)
