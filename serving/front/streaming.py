"""Server-sent events, framed as TGI frames them.

Runs in the front. Comes in: an iterator of frames and the request's `Handling`. Goes out: a Flask
response whose close hook ends the request: a generator that never started would not run its own
`finally`. Next: gunicorn, which iterates.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain

import flask
import msgspec

from serving.errors import ErrorKind, RequestError
from serving.front.generation import ClientGone
from serving.front.handling import Handling

KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE = b":\n\n"
DONE = b"data: [DONE]\n\n"
INCOMPLETE_STREAM = "Incomplete generation stream"

log = logging.getLogger(__name__)


def frame(content: msgspec.Struct) -> bytes:
    """One event; the JSON is compact and has no line breaks."""
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


def event_stream(
    frames: Iterator[bytes],
    handling: Handling,
    headers: Mapping[str, str],
    last_frames: Callable[[RequestError], Iterable[bytes]],
) -> flask.Response:
    """The streamed response; its end, whichever way, closes `handling`.

    Failures of `frames` become `last_frames`: the status is on its way already.
    """
    # The empty piece sends the headers before there is a first token.
    pieces = chain([b""], _terminated(frames, handling, last_frames))
    response = flask.Response(pieces, content_type="text/event-stream")
    response.headers.update({"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
    response.call_on_close(handling.close)
    return response


def _terminated(
    frames: Iterator[bytes],
    handling: Handling,
    last_frames: Callable[[RequestError], Iterable[bytes]],
) -> Iterator[bytes]:
    """`frames`, ending in exactly one terminal event unless nobody listens."""
    try:
        yield from _joined(frames, handling)
        handling.succeed()
    except RequestError as error:
        handling.fail(error)
        yield from last_frames(_of_stream(error))
    except ClientGone as error:
        handling.fail(error)
    except Exception as error:
        log.exception("unexpected error in the stream of request %s", handling.request_id)
        handling.fail(error)
        yield from last_frames(RequestError(ErrorKind.INCOMPLETE_STREAM, INCOMPLETE_STREAM))


def _joined(frames: Iterator[bytes], handling: Handling) -> Iterator[bytes]:
    """Frames that are there at the same time as one piece: one write instead of many."""
    held: list[bytes] = []
    try:
        for piece in frames:
            held.append(piece)
            if not handling.more_at_once:
                yield b"".join(held)
                held.clear()
    except Exception:
        if held:
            yield b"".join(held)
        raise
    if held:
        yield b"".join(held)


def _of_stream(error: RequestError) -> RequestError:
    """TGI has its own word for a stream that ends early."""
    if error.kind is ErrorKind.INCOMPLETE:
        return RequestError(ErrorKind.INCOMPLETE_STREAM, INCOMPLETE_STREAM)
    return error
