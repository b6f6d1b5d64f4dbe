"""SageMaker's health check: GET /ping within 2 seconds.

Runs in the emulator, in the thread of a `Server`. Comes in: a port of this machine. Goes out:
whether the container is healthy. Next: `server.py`, which counts.
"""

import http.client
import socket


def is_healthy(port: int, seconds: float) -> bool:
    """Whether GET /ping on 127.0.0.1 answers 200 within so many seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
