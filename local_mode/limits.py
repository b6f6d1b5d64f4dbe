"""SageMaker's limits on a container and on a request, which local mode enforces.

Leaf module. `cli.py` makes one `Limits` from its options; `hosting/` obeys the health-check part,
`runtime/` the request part. Tests use small values.
"""

from dataclasses import dataclass

MEGABYTE = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """The limits of one emulator; times in seconds, sizes in bytes."""

    # health checks
    ping_seconds: float = 2.0  # for the answer to one GET /ping
    ping_period: float = 5.0  # between two pings of a server that is in service
    startup_ping_period: float = 0.5  # between two pings of one that starts
    failed_pings: int = 3  # in a row, until the server is replaced
    startup_seconds: float = 480.0  # until the first 200, unless the endpoint config says
    stop_seconds: float = 30.0  # from SIGTERM to SIGKILL
    restart_pause: float = 1.0  # before a server that has ended is started again

    # requests
    connect_seconds: float = 0.25  # for the container to take a connection
    answer_seconds: float = 60.0
    stream_seconds: float = 480.0
    payload_bytes: int = 25 * MEGABYTE
    payload_warning_bytes: int = 6 * MEGABYTE  # what the API reference still names as the limit
    async_payload_bytes: int = 1024 * MEGABYTE
    async_inline_bytes: int = 128_000
    async_seconds: int = 900
    async_concurrency: int = 4  # where the endpoint config names none
