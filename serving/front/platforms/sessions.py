"""SageMaker's stateful sessions: requests of one client, which the platform sends to one instance.

Runs in the front. Comes in: the session id in the headers of an invocation, and bodies that open or
close a session. Goes out: answers to these, and for other requests a `Session` in `flask.g`, which
`handling.py` gives to their sequences: the engine keeps what it has computed of the last one. Next:
`session_table.py`; `engine/schedule/session_pins.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal, NoReturn

import flask
import msgspec
from msgspec import UNSET, UnsetType

from serving.errors import BodyError, ErrorKind, RequestError
from serving.front.context import Front
from serving.front.observation import current
from serving.front.responses import json_response
from serving.front.session_table import MOST_SESSIONS, SessionTable, TooManySessions

SESSION_ID = "X-Amzn-SageMaker-Session-Id"
NEW_SESSION_ID = "X-Amzn-SageMaker-New-Session-Id"
CLOSED_SESSION_ID = "X-Amzn-SageMaker-Closed-Session-Id"
NEW_SESSION, CLOSE = "NEW_SESSION", "CLOSE"
MARK = b'"requestType"'
LONGEST_REQUEST = 1024  # bytes: it has one short field
DISABLED = "stateful sessions are disabled: set SAGEMAKER_ENABLE_STATEFUL_SESSIONS=true"


class SessionRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a request that opens a session, or closes the one in its headers."""

    request_type: Literal["NEW_SESSION", "CLOSE"] = msgspec.field(name="requestType")


class SessionResponse(msgspec.Struct, frozen=True):
    """Body of its answer; the platform reads the headers."""

    session_id: str
    expires: str | UnsetType = UNSET  # UTC, as in the header


class _Kind(msgspec.Struct):
    """What tells a session request from others."""

    request_type: object = msgspec.field(name="requestType", default=None)


def enter_session(front: Front, data: bytes) -> flask.Response | None:
    """Answer a session request; for any other body enter the session of its header, if it has one.

    Raises `BodyError` 400: disabled, unknown, expired, more fields than one. Raises `RequestError`
    GENERATION if the table fails, OVERLOADED if it is full.
    """
    session_id = flask.request.headers.get(SESSION_ID)
    request = _session_request(data)
    if request is None and session_id is None:
        return None
    if front.sessions is None:
        raise BodyError(400, DISABLED)
    if request is None:
        _enter(front.sessions, str(session_id))
        return None
    if request.request_type == NEW_SESSION:
        response = _open(front.sessions)
    else:
        response = _close(front, front.sessions, session_id)
    current().succeed()
    return response


def _session_request(data: bytes) -> SessionRequest | None:
    """The body as a session request; None if it is another one, or none at all."""
    if len(data) > LONGEST_REQUEST or MARK not in data:
        return None
    try:
        kind = msgspec.json.decode(data, type=_Kind).request_type
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if kind not in (NEW_SESSION, CLOSE):
        return None
    try:
        return msgspec.json.decode(data, type=SessionRequest)
    except msgspec.ValidationError as error:
        raise BodyError(400, f"not a session request: {error}") from error


def _enter(table: SessionTable, session_id: str) -> None:
    if session_id == NEW_SESSION:
        raise BodyError(400, 'a session is opened by the body {"requestType": "NEW_SESSION"}')
    session = table.find(session_id)
    if session is None:
        _refuse(session_id)
    flask.g.session = session


def _open(table: SessionTable) -> flask.Response:
    with _failing("open"):
        session_id, end = table.open()
    expires = datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    headers = {NEW_SESSION_ID: f"{session_id}; Expires={expires}"}
    return json_response(SessionResponse(session_id, expires), headers=headers)


def _close(front: Front, table: SessionTable, session_id: str | None) -> flask.Response:
    if session_id is None:
        raise BodyError(400, f"the header {SESSION_ID} does not say which session to close")
    with _failing("close"):
        was_open = table.close(session_id)
    if not was_open:
        _refuse(session_id)
    front.engine.close_session(session_id)
    headers = {CLOSED_SESSION_ID: session_id}
    return json_response(SessionResponse(session_id), headers=headers)


@contextmanager
def _failing(what: str) -> Iterator[None]:
    try:
        yield
    except TooManySessions as error:
        message = f"there are {MOST_SESSIONS} open sessions, the most that are allowed"
        raise RequestError(ErrorKind.OVERLOADED, message) from error
    except OSError as error:
        raise RequestError(ErrorKind.GENERATION, f"cannot {what} a session: {error}") from error


def _refuse(session_id: str) -> NoReturn:
    raise BodyError(400, f"session {session_id!r} is unknown, closed or expired")
