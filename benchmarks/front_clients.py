"""Many clients, long service, slow readers: what the front does under each, without an engine.

`python -m benchmarks.front_clients` runs the real front with two gunicorn workers against
`fake_engine.py` and prints three results, each with the limit that it is held to; the exit code
is 1 if one is missed. Idle streams: 1,000 clients at once, a token per second each. Growth:
5,000 requests one after the other. Slow readers: clients that never read beside clients that do.
"""

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.front_process import DEMO_MODEL, FrontProcess, running_front
from benchmarks.front_throughput import one_round
from benchmarks.sse_clients import (
    allow_open_files,
    close_all,
    open_streams,
    read_all,
    request_bytes,
)

STREAM = "/generate_stream"
KIB = 1024
IDLE_TOKENS = 15
IDLE_LIMIT_BYTES = 200_000  # of front memory per stream
GROWTH_LIMIT = 0.02  # of the memory after the first fifth
SLOW_TOKENS = 60_000  # 8 MB of events: more than the kernel buffers for one connection
SLOW_LIMIT = 0.8  # of the events per second without slow readers


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    name: str
    figure: str
    limit: str
    passed: bool


def idle_streams(model: Path, count: int) -> Result:
    """`count` streams open at once with a token per second: all end, and what each takes."""
    request = request_bytes(STREAM, IDLE_TOKENS)
    limit = 2 * count
    with running_front(
        model, workers=2, steps_per_second=1.0, max_concurrent_requests=limit
    ) as front:
        _warm_up(front)
        before = front.resident_bytes()
        streams = open_streams(front.address, request, count)
        highest = before

        def look(_: int) -> None:
            nonlocal highest
            highest = max(highest, front.resident_bytes())

        read_all(streams, _once_a_second(look))
        close_all(streams)
        workers = len(front.workers)
    complete = sum(stream.complete and stream.events == IDLE_TOKENS for stream in streams)
    each = (highest - before) / count
    return Result(
        f"{count} streams at once, a token per second, {workers} workers",
        f"{complete} complete, {each / 1000:.1f} kB of front memory each",
        f"all, < {IDLE_LIMIT_BYTES / 1000:.0f} kB",
        complete == count and each < IDLE_LIMIT_BYTES,
    )


def growth(model: Path, count: int) -> Result:
    """`count` requests one after the other, streamed and not by turns, over kept connections."""
    samples: list[int] = []
    with running_front(model, workers=2) as front:
        _warm_up(front)
        connection = http.client.HTTPConnection(*front.address, timeout=60)
        headers = {"Content-Type": "application/json"}
        for number in range(count):
            body = {"inputs": f"{number} Count to ten", "parameters": {"max_new_tokens": 20}}
            route = STREAM if number % 2 else "/generate"
            connection.request("POST", route, json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200 or b"generated_text" not in text:
                raise click.ClickException(f"request {number} failed: {answer.status} {text!r}")
            if (number + 1) % (count // 5) == 0:
                samples.append(front.resident_bytes())
                connection.close()  # the next fifth may meet the other worker
    grown = max(samples[1:]) / samples[0] - 1
    history = ", ".join(f"{sample / KIB**2:.1f}" for sample in samples)
    return Result(
        f"{count} requests one after the other",
        f"front memory {history} MiB: {grown:+.2%}",
        f"< {GROWTH_LIMIT:+.0%} after the first fifth",
        grown < GROWTH_LIMIT,
    )


def slow_readers(model: Path, slow: int) -> Result:
    """Events per second of 16 readers on one worker, alone and beside clients that never read."""
    with running_front(model, wave=1) as front:
        one_round(front, STREAM, 16, 100)
        alone = max(_speed(front) for _ in range(3))
        before = front.resident_bytes()
        stuck = open_streams(front.address, request_bytes(STREAM, SLOW_TOKENS), slow, 4096)
        time.sleep(SLOW_TOKENS / 10_000)  # the engine has made all their tokens
        held = (front.resident_bytes() - before) / slow
        beside = max(_speed(front) for _ in range(3))
        close_all(stuck)
        recovered = _wait_until(lambda: front.connections() == 0)
    return Result(
        f"16 readers beside {slow} clients that never read, 1 worker",
        f"{beside:,.0f} events/s, {alone:,.0f} without; {held / 1e6:.1f} MB held for each "
        f"{SLOW_TOKENS:,} tokens; connections left when they hang up: {0 if recovered else 'some'}",
        f">= {SLOW_LIMIT:.0%}, none left",
        beside >= SLOW_LIMIT * alone and recovered,
    )


def _speed(front: FrontProcess) -> float:
    result = one_round(front, STREAM, 16, 500)
    return result.events / result.wall_seconds


def _warm_up(front: FrontProcess) -> None:
    """What workers allocate once."""
    streams = open_streams(front.address, request_bytes(STREAM, 1), 100)
    read_all(streams)
    close_all(streams)


def _once_a_second(look: Callable[[int], None]) -> Callable[[int], None]:
    due = 0.0

    def maybe(events: int) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + 1
            look(events)

    return maybe


def _wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default=DEMO_MODEL)
@click.option("--streams", default=1000, show_default=True)
@click.option("--requests", default=5000, show_default=True)
@click.option("--slow", default=8, show_default=True)
def main(model: Path, streams: int, requests: int, slow: int) -> None:
    """Print a line for each of the three."""
    allow_open_files()
    passed = True
    for result in (
        idle_streams(model, streams),
        growth(model, requests),
        slow_readers(model, slow),
    ):
        passed = passed and result.passed
        verdict = "ok" if result.passed else "MISSED"
        click.echo(f"{verdict}: {result.name}: {result.figure} (limit: {result.limit})")
    raise SystemExit(not passed)


if __name__ == "__main__":
    main()
