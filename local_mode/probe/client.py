"""HTTP as the probe needs it: every number that the contract limits is measured.

Runs in the probe. Comes in: requests. Goes out: whole replies, or a stream's pieces with the time
of each. Next: `checks.py`.
"""

import http.client
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

PIECE_BYTES = 65536
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """A whole answer; times in seconds."""

    status: int
    headers: Mapping[str, str]  # lower-case names
    body: bytes
    connect_seconds: float
    seconds: float  # in all

    def json(self) -> Any:
        """The body as JSON; raises `ValueError`."""
        return json.loads(self.body)

    @property
    def shown(self) -> str:
        """Status and the start of the body, for messages."""
        return f"{self.status} {self.body[:200].decode(errors='replace')!r}"


@dataclass(frozen=True)
class Stream:
    """A streamed answer while it comes."""

    status: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]


class Site:
    """The container under test."""

    def __init__(self, url: str, timeout: float) -> None:
        """`url` without a path; raises `ValueError` for another form."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
            raise ValueError(f"the address must be http://HOST:PORT. Given: {url}")
        self.host = parts.hostname
        self.port = parts.port or 80
        self._timeout = timeout

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.host}:{self.port}"

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] = JSON,
        timeout: float | None = None,
    ) -> Reply:
        """One request; a body is sent as JSON unless it is bytes.

        Raises `OSError` and `http.client.HTTPException`.
        """
        started = time.monotonic()
        with self._connected(timeout or self._timeout) as connection:
            connected = time.monotonic()
            connection.request(method, path, _encoded(body), dict(headers))
            response = connection.getresponse()
            content = response.read()
            ended = time.monotonic()
        return Reply(
            response.status, _lower(response), content, connected - started, ended - started
        )

    @contextmanager
    def stream(self, path: str, body: object) -> Iterator[Stream]:
        """One streamed request; leaving the block hangs up. Raises as `request`."""
        with self._connected(self._timeout) as connection:
            connection.request("POST", path, _encoded(body), JSON)
            response = connection.getresponse()
            pieces = iter(lambda: response.read1(PIECE_BYTES), b"")
            try:
                yield Stream(response.status, _lower(response), pieces)
            finally:
                response.close()

    @contextmanager
    def _connected(self, timeout: float) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.connect()
            yield connection
        finally:
            connection.close()


def _encoded(body: object) -> bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    return json.dumps(body).encode()


def _lower(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}
