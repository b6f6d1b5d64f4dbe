"""The life of one generating request in the front: everything that must end when it ends.

Runs in the front. Comes in: Flask's request at a route's entry. Goes out: a `Generation`, watched
for a client that hangs up; at the end its sequences are aborted and the watch is stopped, exactly
once. How it ended is told to the request's `Observation`. Next: `generation.py`, `observation.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import flask

from serving.front.context import Front
from serving.front.disconnect import HangUpWatch
from serving.front.generation import Generation
from serving.front.observation import current
from serving.front.validation import ValidRequest
from serving.protocol.messages import Session
from serving.settings import Settings

DEADLINE = "serving.deadline_ns"  # in a request's environment: that of the one it is part of


def latest_end(
    settings: Settings, environ: Mapping[str, Any], started: int, *, stream: bool
) -> int:
    """When a request that came at `started` ends at the latest, CLOCK_MONOTONIC; 0: no limit.

    One that is part of another has the limit of that one.
    """
    enclosing: int = environ.get(DEADLINE, 0)
    seconds = settings.seconds_for(stream=stream)
    if enclosing or seconds is None:
        return enclosing
    return started + int(seconds * 1e9)


class Handling:
    """Made inside a Flask request; used as a context, or closed by the response it made."""

    def __init__(self, front: Front, prompts: int = 1, *, stream: bool = False) -> None:
        """`prompts`: how many requests this one counts for; `stream`: which time limit it has."""
        self._front = front
        self._connection = flask.request.environ.get("gunicorn.socket")
        self._observation = current()
        self._observation.accept(prompts)
        environ, started = flask.request.environ, self._observation.started
        self._deadline_ns = latest_end(front.settings, environ, started, stream=stream)
        self._session: Session | None = flask.g.get("session")
        self._generation: Generation | None = None
        self._watch: HangUpWatch | None = None

    @property
    def started(self) -> int:
        """When the request came, CLOCK_MONOTONIC in nanoseconds."""
        return self._observation.started

    @property
    def request_id(self) -> str:
        """What logs and the client call the request."""
        return self._observation.identity.request_id

    @property
    def more_at_once(self) -> bool:
        """Whether the next token event is there already."""
        return self._generation is not None and self._generation.more_at_once

    def start(self, requests: Sequence[ValidRequest], keep_stop: bool) -> Generation:
        """Submit the sequences. Raises `RequestError`.

        May be called again for another generation of the same request: the one before is closed.
        """
        self.close()
        requests = [one.bound_to(self._deadline_ns, self._session) for one in requests]
        self._observation.validated(requests)
        tokenizer = self._front.loaded_model().tokenizer
        self._generation = Generation(requests, tokenizer, self._front.engine, keep_stop)
        self._observation.submitted(self._generation.sequences)
        if self._connection is not None:
            self._watch = HangUpWatch(self._connection, self._generation.hang_up)
        return self._generation

    def succeed(self) -> None:
        """The request was answered in full."""
        self._observation.succeed()

    def fail(self, error: BaseException) -> None:
        """The request ends with this error."""
        self._observation.fail(error)

    def close(self) -> None:
        """End everything that is still going on; may be called again."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        if self._generation is not None:
            self._generation.close()
            self._generation = None

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
