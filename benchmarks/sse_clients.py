"""Many SSE clients in one thread, on bare sockets: they count events and do nothing else.

Used by `front_throughput.py` and `front_clients.py`. Comes in: an address, a route, a body. Goes
out: how many events came on each connection, and whether its response was complete.
"""

import json
import resource
import selectors
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EVENT = b"data: "
END = b"\r\n0\r\n\r\n"  # the chunk that ends a response
RECEIVE_BYTES = 1 << 18


@dataclass
class Stream:
    """One response under way; `tail` is what the next bytes may complete a mark with."""

    connection: socket.socket
    events: int = 0
    received: int = 0
    tail: bytes = b""
    complete: bool = False
    closed: bool = False

    def fileno(self) -> int:
        """For selectors."""
        return self.connection.fileno()

    def receive(self) -> int:
        """Read what is there; the number of events in it."""
        data = self.connection.recv(RECEIVE_BYTES)
        if not data:
            self.closed = True
            return 0
        self.received += len(data)
        data = self.tail + data
        events = data.count(EVENT) - self.tail.count(EVENT)
        self.events += events
        self.complete = data.endswith(END)
        self.tail = data[-len(END) :]
        return events


def request_bytes(route: str, tokens: int) -> bytes:
    """A streaming request for so many tokens on one of the three streaming routes."""
    bodies: dict[str, Mapping[str, Any]] = {
        "/generate_stream": {"inputs": "Count to ten", "parameters": {"max_new_tokens": tokens}},
        "/v1/chat/completions": {
            "messages": [{"role": "user", "content": "Count to ten"}],
            "max_tokens": tokens,
            "stream": True,
        },
        "/v1/completions": {"prompt": "Count to ten", "max_tokens": tokens, "stream": True},
    }
    return post_bytes(route, bodies[route])


def post_bytes(route: str, fields: Mapping[str, Any]) -> bytes:
    """A request with these fields as its JSON body."""
    body = json.dumps(fields).encode()
    head = (
        f"POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def open_streams(
    address: tuple[str, int], request: bytes, count: int, receive_buffer: int = 0
) -> list[Stream]:
    """Connect and send `request` on each of `count` connections, without reading any answer."""
    streams = []
    for _ in range(count):
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.connect(address)
        connection.sendall(request)
        streams.append(Stream(connection))
    return streams


def read_all(streams: Sequence[Stream], on_events: Callable[[int], None] | None = None) -> None:
    """Read until every response has ended; `on_events` is told of new ones, 0 excepted.

    Raises `TimeoutError` after 60 s of silence on all of them.
    """
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ, stream)
        open_count = len(streams)
        while open_count:
            ready = selector.select(60)
            if not ready:
                raise TimeoutError(f"{open_count} streams are silent for 60 s")
            for key, _ in ready:
                reader: Stream = key.data
                events = reader.receive()
                if events and on_events is not None:
                    on_events(events)
                if reader.complete or reader.closed:
                    selector.unregister(reader)
                    open_count -= 1


def close_all(streams: Sequence[Stream]) -> None:
    """Close every connection."""
    for stream in streams:
        stream.connection.close()


def allow_open_files() -> None:
    """Let this process have as many open files as the system grants."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
