"""From the bytes of a request body to a struct, failing exactly as TGI does.

Runs in the front. Comes in: Flask's current request. Goes out: a struct of `tgi/schema.py` or
`openai/schema.py`, or a `BodyError` with TGI's status and plain text. Next: the routes.
"""

import re
from typing import TypeVar

import flask
import msgspec
from werkzeug.exceptions import RequestEntityTooLarge

from serving.errors import BodyError

T = TypeVar("T")

JSON_TYPE = re.compile(r"application/([^;]+\+)?json\s*(;.*)?", re.IGNORECASE)
TRAILING = re.compile(r"trailing characters \(byte (\d+)\)$")
NOT_JSON = "Failed to parse the request body as JSON"
WRONG_SHAPE = "Failed to deserialize the JSON body into the target type"


def read_body(kind: type[T]) -> T:
    """The current request's JSON body as `kind`. Raises `BodyError`: 400, 413, 415 or 422."""
    return decode(read_json_bytes(), kind)


def read_json_bytes() -> bytes:
    """The current request's body, which must be JSON. Raises `BodyError` 415 or 413."""
    if not JSON_TYPE.fullmatch(flask.request.headers.get("Content-Type", "")):
        raise BodyError(415, "Expected request with `Content-Type: application/json`")
    return read_bytes()


def read_bytes() -> bytes:
    """The current request's body. Raises `BodyError` 413."""
    try:
        data = flask.request.get_data(cache=False)
    except RequestEntityTooLarge as error:
        raise _too_large() from error
    if len(data) == flask.request.max_content_length:  # one byte more than is allowed
        raise _too_large()
    return data


def decode(data: bytes, kind: type[T]) -> T:
    """JSON `data` as `kind`; what stands behind the first value is not looked at, as in TGI.

    Raises `BodyError` 400 (syntax) or 422 (types).
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise BodyError(422, f"{WRONG_SHAPE}: {_path_first(str(error))}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if trailing := TRAILING.search(str(error)):
            return decode(data[: int(trailing[1]) - 1], kind)
        raise BodyError(400, f"{NOT_JSON}: {error}") from error


def _too_large() -> BodyError:
    limit = (flask.request.max_content_length or 0) - 1
    return BodyError(
        413, f"Failed to buffer the request body: length limit exceeded, it is {limit} bytes"
    )


def _path_first(text: str) -> str:
    """`Expected ... - at `$.a.b`` becomes `a.b: Expected ...`."""
    message, separator, path = text.rpartition(" - at `$")
    if not separator:
        return text
    return f"{path.rstrip('`').lstrip('.')}: {message}" if path != "`" else message
