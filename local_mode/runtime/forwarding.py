"""One request to a container, and its answer piece by piece, within a time limit.

Runs in the emulator, in the thread of the client's request. Comes in: body and headers as SageMaker
would pass them on. Goes out: an `Answer`, or one of the three ways in which there is none. Next:
`invocations.py`, `async_invocations.py`.
"""

import http.client
import socket
import time
from collections.abc import Mapping

PIECE_BYTES = 65536
SHORTEST_WAIT = 0.001  # seconds; a socket that may wait 0 s does not wait at all


class NotConnected(Exception):
    """The container takes no connection."""


class TimeIsOver(Exception):
    """The container did not answer within its time."""


class AnswerBroken(Exception):
    """The container ended the connection before its answer was complete."""


class Answer:
    """A container's answer whose body is still to be read; `close` hangs up."""

    def __init__(self, connection: http.client.HTTPConnection, deadline: float) -> None:
        """`connection` has sent its request. Waits for the head of the answer; raises as `send`."""
        self._connection = connection
        self._socket: socket.socket = connection.sock
        self._deadline = deadline
        try:
            self._allow_remaining()
            self._response = connection.getresponse()
        except TimeoutError as error:
            raise TimeIsOver from error
        except (OSError, http.client.HTTPException) as error:
            raise AnswerBroken(str(error)) from error
        self.status = self._response.status
        self.headers = self._response.headers

    @property
    def is_success(self) -> bool:
        """Whether the status says so."""
        return 200 <= self.status < 300

    def extend(self, deadline: float) -> None:
        """Let the body take until another time."""
        self._deadline = deadline

    def piece(self) -> bytes:
        """The next bytes as soon as they are there; none at the end. Raises as `send`."""
        try:
            self._allow_remaining()
            content = self._response.read1(PIECE_BYTES)
        except TimeoutError as error:
            raise TimeIsOver from error
        except (OSError, http.client.HTTPException) as error:
            raise AnswerBroken(str(error) or type(error).__name__) from error
        if not content and self._response.length:  # Content-Length promised more
            raise AnswerBroken(f"{self._response.length} bytes are missing")
        return content

    def content(self) -> bytes:
        """All of the body; raises as `piece`."""
        return b"".join(iter(self.piece, b""))

    def close(self) -> None:
        """Hang up, so that the container can stop generating."""
        self._response.close()
        self._connection.close()

    def _allow_remaining(self) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeIsOver
        self._socket.settimeout(max(remaining, SHORTEST_WAIT))


def send(
    port: int, path: str, body: bytes, headers: Mapping[str, str], *, connect: float, seconds: float
) -> Answer:
    """POST to the container on 127.0.0.1; its status and headers are there when this returns.

    `connect` and `seconds` limit the time for the connection, and until the end of the answer.
    Raises `NotConnected`, `TimeIsOver`, `AnswerBroken`.
    """
    deadline = time.monotonic() + seconds
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=connect)
    try:
        try:
            connection.connect()
        except OSError as error:
            raise NotConnected(str(error)) from error
        connection.sock.settimeout(seconds)
        try:
            connection.request("POST", path, body, dict(headers))
        except TimeoutError as error:
            raise TimeIsOver from error
        except OSError as error:
            raise AnswerBroken(str(error)) from error
        return Answer(connection, deadline)
    except (NotConnected, TimeIsOver, AnswerBroken):
        connection.close()
        raise
