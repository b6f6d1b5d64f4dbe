"""Errors of the OpenAI routes: OpenAI's object for its clients, TGI's `error_type` beside it.

Runs in the front. Comes in: the exceptions of a route. Goes out: JSON bodies under TGI's statuses,
and the error event of a stream. Clients of OpenAI show `error.message`; those of TGI read
`error_type`. Next: `responses.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import flask
import msgspec

from serving.errors import BodyError, ErrorKind, RequestError
from serving.front.responses import body_error_response, error_response

STREAM_ERROR_STATUS = 422  # what TGI writes into every in-stream error of these routes

Type = Literal["invalid_request_error", "rate_limit_error", "server_error"]


class ErrorDetail(msgspec.Struct, frozen=True):
    """OpenAI's error object; `code` is TGI's `error_type`."""

    message: str
    type: Type
    param: str | None
    code: str


class OpenAIError(msgspec.Struct, frozen=True):
    """Body of an error."""

    error: ErrorDetail
    error_type: str


class StreamErrorDetail(msgspec.Struct, frozen=True):
    """A failure inside a stream."""

    message: str
    http_status_code: int
    type: Type
    code: str


class StreamError(msgspec.Struct, frozen=True):
    """An error event of a stream."""

    error: StreamErrorDetail


class OpenAIRequestError(RequestError):
    """A `RequestError` that is to be answered in OpenAI's form, whatever the route."""

    def __init__(self, error: RequestError) -> None:
        Exception.__init__(self, str(error))
        self.kind = error.kind


@contextmanager
def openai_errors() -> Iterator[None]:
    """Failures of the body are answered in OpenAI's form."""
    try:
        yield
    except RequestError as error:
        raise OpenAIRequestError(error) from error


def openai_error_response(error: RequestError) -> flask.Response:
    """The error under its status, with the headers that it has on the native routes."""
    code = error.kind.error_type
    detail = ErrorDetail(str(error), _type(error.kind.status), None, code)
    return _with_body(error_response(error), OpenAIError(detail, code))


def openai_body_error_response(error: BodyError) -> flask.Response:
    """A body that could not be read; native routes answer in plain text."""
    code = ErrorKind.VALIDATION.error_type
    detail = ErrorDetail(str(error), _type(error.status), None, code)
    return _with_body(body_error_response(error), OpenAIError(detail, code))


def stream_error(error: RequestError) -> StreamError:
    """The event that reports a failure after the stream has begun."""
    kind = error.kind
    return StreamError(
        StreamErrorDetail(str(error), STREAM_ERROR_STATUS, _type(kind.status), kind.error_type)
    )


def _type(status: int) -> Type:
    if status == ErrorKind.OVERLOADED.status:
        return "rate_limit_error"
    upstream = status >= 500 or status == ErrorKind.GENERATION.status
    return "server_error" if upstream else "invalid_request_error"


def _with_body(response: flask.Response, body: OpenAIError) -> flask.Response:
    response.set_data(msgspec.json.encode(body))
    response.content_type = "application/json"
    return response
