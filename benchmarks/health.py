"""How fast `/ping` and `/health` answer, whatever the server does.

`python -m benchmarks.health` asks for them, each time on a new connection: of an idle server, under
streams, under streams and large bodies, and while an engine is restarted under streams. By turns
with them it asks a bare gunicorn worker on the same machine that has nothing else to do: what that
takes is the machine's part. The exit code is 1 if an answer is not 200.
"""

import http.client
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import click

from benchmarks.front_process import bare_front
from benchmarks.health_load import busy, keep_posting, keep_streaming
from benchmarks.own_server import OwnServer, own_server, shown_command
from benchmarks.results_page import Table, publish, verdict
from benchmarks.server_log import read_log
from serving.benchmark.measures import percentile

PATHS = ("/ping", "/health")
BARE = "bare gunicorn"
LIMIT_SECONDS = 0.05
PAUSE_SECONDS = 0.01  # between two probes
TIMEOUT_SECONDS = 30.0
RECOVERY_SECONDS = 60.0
RAMP_UP_SECONDS = 4.0  # until the clients stream
POSTING_CLIENTS = 2


@dataclass
class Probes:
    """Answers of one address in one situation."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


def probe(port: int, path: str) -> tuple[float, int]:
    """(seconds, status) of a GET on a new connection; status 0 if there was no answer."""
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    status = 0
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        answer.read()
        status = answer.status
    except OSError:
        pass  # counted as status 0
    finally:
        connection.close()
    return time.perf_counter() - started, status


def probe_for(seconds: float, ports: Mapping[str, int], into: dict[str, Probes]) -> None:
    """Ask every address by turns. `ports`: name in the table, which is the path, to port."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for name, port in ports.items():
            took, status = probe(port, "/health" if name == BARE else name)
            into[name].seconds.append(took)
            into[name].statuses[status] += 1
            time.sleep(PAUSE_SECONDS)


def probe_restarts(
    server: OwnServer, restarts: int, ports: Mapping[str, int], into: dict[str, Probes]
) -> None:
    """Kill the engine so often and ask until it serves again, and a little longer.

    Raises `TimeoutError` if it does not.
    """
    for _ in range(restarts):
        served = _times_served(server)
        server.wait_for_rank(0).kill()
        deadline = time.monotonic() + RECOVERY_SECONDS
        while _times_served(server) == served:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the engine does not serve after {RECOVERY_SECONDS:.0f} s")
            probe_for(0.5, ports, into)
        probe_for(1.0, ports, into)


def _times_served(server: OwnServer) -> int:
    return sum("serves again" in line.message for line in read_log(server.log))


def measure(clients: int, seconds: float, restarts: int) -> dict[str, dict[str, Probes]]:
    """Probes by situation and address."""
    options = options_for(clients)
    results: dict[str, dict[str, Probes]] = {}
    with ExitStack() as stack:
        server = stack.enter_context(own_server(*options))
        bare = stack.enter_context(bare_front(1, ()))
        ports = {**dict.fromkeys(PATHS, server.port), BARE: bare.address[1]}
        streams = (keep_streaming, (server.port, clients))
        bodies = (keep_posting, (server.port,))

        def begin(situation: str) -> dict[str, Probes]:
            return results.setdefault(situation, {name: Probes() for name in ports})

        probe_for(seconds, ports, begin("idle"))
        with busy(streams):
            time.sleep(RAMP_UP_SECONDS)
            probe_for(seconds, ports, begin(f"{clients} streams"))
            probe_restarts(server, restarts, ports, begin(f"restarts under {clients} streams"))
        with busy(streams, *[bodies] * POSTING_CLIENTS):
            time.sleep(RAMP_UP_SECONDS)
            probe_for(seconds, ports, begin(f"{clients} streams and bodies of 2 MB"))
    return results


def options_for(clients: int) -> list[str]:
    """Of the command line: room for every client."""
    return ["--max-concurrent-requests", str(clients + 2 * POSTING_CLIENTS)]


def make_table(results: Mapping[str, Mapping[str, Probes]]) -> Table:
    """A row for each situation and address."""
    columns = (
        "situation", "address", "probes", "not 200", "p50 ms", "p99 ms", "max ms", "p99 < 50 ms",
    )  # fmt: skip
    table = Table("Time to answer a health check", columns)
    for situation, probes in results.items():
        for name, one in probes.items():
            points = [percentile(one.seconds, percent) for percent in (50, 99, 100)]
            table.rows.append(
                (
                    situation,
                    name,
                    str(len(one.seconds)),
                    str(one.statuses.total() - one.statuses[http.client.OK]),
                    *(f"{1000 * point:.1f}" for point in points),
                    "" if name == BARE else verdict(points[1] < LIMIT_SECONDS),
                )
            )
    table.note = (
        f"`{BARE}`: a gunicorn worker beside the server that only answers these probes; its times "
        "are what the machine takes to wake a process that must share the cores."
    )
    return table


@click.command(context_settings={"show_default": True})
@click.option("--clients", type=click.IntRange(1), default=256, help="Streams at the same time.")
@click.option("--seconds", type=click.FloatRange(1), default=20.0, help="Of each situation.")
@click.option("--restarts", type=click.IntRange(1), default=5)
@click.option("--output", type=click.Path(path_type=Path), help="Results page to write.")
def main(clients: int, seconds: float, restarts: int, output: Path | None) -> None:
    """Print how long health checks take."""
    results = measure(clients, seconds, restarts)
    facts = {
        "command": f"python -m benchmarks.health --clients {clients} --seconds {seconds:g} "
        f"--restarts {restarts}",
        "server": shown_command(options_for(clients)),
    }
    publish("Health checks", facts, [make_table(results)], output)
    asked = [one for probes in results.values() for one in probes.values()]
    raise SystemExit(any(set(one.statuses) != {http.client.OK} for one in asked))


if __name__ == "__main__":
    main()
