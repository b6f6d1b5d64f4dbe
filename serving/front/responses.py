"""Whole responses: JSON bodies, and errors in TGI's forms.

Runs in the front. Comes in: structs and exceptions. Goes out: Flask responses. Next: gunicorn.
"""

from collections.abc import Mapping
from typing import Any

import flask
import msgspec

from serving.errors import BodyError, ErrorKind, RequestError

RETRY_AFTER_SECONDS = "1"
CLIENT_GONE = 499  # nobody reads it, but proxies' logs know the number


class ErrorBody(msgspec.Struct, frozen=True):
    """Body of every error that is not about the shape of the request."""

    error: str
    error_type: str


def json_response(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> flask.Response:
    """A response with `content` as compact JSON."""
    return flask.Response(
        msgspec.json.encode(content), status, headers, content_type="application/json"
    )


def error_body(error: RequestError) -> ErrorBody:
    """TGI's error object, the same in a body and in a native stream."""
    return ErrorBody(str(error), error.kind.error_type)


def error_response(error: RequestError) -> flask.Response:
    """The error object under its status."""
    headers = {}
    if error.kind in (ErrorKind.OVERLOADED, ErrorKind.UNHEALTHY):
        headers["retry-after"] = RETRY_AFTER_SECONDS
    return json_response(error_body(error), error.kind.status, headers)


def body_error_response(error: BodyError) -> flask.Response:
    """Plain text: the body could not be read, so the request is not an API error to TGI."""
    return flask.Response(str(error), error.status, content_type="text/plain; charset=utf-8")


def empty_response(status: int) -> flask.Response:
    """No body and no content type."""
    response = flask.Response(b"", status)
    del response.headers["content-type"]
    return response
