"""One streaming request, timed.

Runs in the benchmark process, on one thread per stream. In: an endpoint and a request body. Out: a
`RequestResult`. Next: `load.py` runs many of these; `measures.py` sums them up.

The client shares its cores with the server under test, so it must be light. At 48 streams and 480
events/s, on one Zen 4 core, blocking `http.client` on threads cost 65 us of CPU per event (3 % of
a core), httpx 140-170 us (7 %), a hand-written asyncio HTTP client 47 us (2 %). The standard
library is within a percent of the lightest, does TLS, and is no parser of ours to maintain.
"""

import http.client
import time
from contextlib import closing
from urllib.parse import urlsplit

import msgspec

from serving.benchmark.measures import RequestResult
from serving.benchmark.routes import read_event
from serving.benchmark.sse import EventParser

_READ_BYTES = 65536
_ERROR_BYTES = 300


class Endpoint(msgspec.Struct, frozen=True):
    """Where requests go: server base address, route path, extra headers, socket timeout."""

    base_url: str
    path: str
    headers: dict[str, str] = {}
    timeout_s: float = 600.0

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection that opens with its first request.

        Raises `ValueError` when `base_url` is not an http or https address.
        """
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ValueError(f"url must be http://host:port or https://host:port: {self.base_url}")
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        return kind(parts.hostname, parts.port, timeout=self.timeout_s)

    def full_path(self) -> str:
        """Return the path of the request line, with the base address's own path before it."""
        return urlsplit(self.base_url).path.rstrip("/") + self.path


def send_request(endpoint: Endpoint, body: bytes) -> RequestResult:
    """Send one request and read its stream to the end; every failure becomes a result.

    A connection is made per request, as most clients of a streaming route do, and its cost is part
    of the time to first token.
    """
    result = RequestResult(started_s=time.perf_counter())
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    try:
        with closing(endpoint.connect()) as connection:
            connection.request("POST", endpoint.full_path(), body, headers | endpoint.headers)
            response = connection.getresponse()
            if response.status == http.client.OK:
                _read_stream(response, result)
            else:
                text = response.read(_ERROR_BYTES).decode(errors="replace")
                result.error = f"HTTP {response.status}: {text}"
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        result.error = f"{type(error).__name__}: {error}"
    result.finished_s = time.perf_counter()
    return result


def _read_stream(response: http.client.HTTPResponse, result: RequestResult) -> None:
    """Add to `result` the arrival time of every token event, the counts and any error."""
    parser = EventParser()
    complete = False
    while piece := response.read1(_READ_BYTES):
        arrived_s = time.perf_counter()
        for payload in parser.feed(piece):
            reading = read_event(payload)
            complete = complete or reading.is_last
            if reading.has_token:
                result.token_times_s.append(arrived_s)
            if reading.output_tokens is not None:
                result.output_tokens = reading.output_tokens
            if reading.prompt_tokens is not None:
                result.prompt_tokens = reading.prompt_tokens
            if reading.error is not None:
                result.error = reading.error
                return
    if not complete:
        result.error = "the stream ended before its last event"
    elif not result.token_times_s:
        result.error = "the stream ended without a token"
