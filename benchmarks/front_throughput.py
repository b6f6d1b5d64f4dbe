"""Events per second that one front worker can stream on one core, without an engine's cost.

`python -m benchmarks.front_throughput` runs the real front with one gunicorn worker alone on a core
against `fake_engine.py`; engine and clients share the other cores. Two loads on each streaming
route: paced, where steps come at a fixed rate and every event is a write of its own, and full
speed, where the worker falls behind and sends several events at once. In the same run, the
roofline: `bare_stream.py`, which sends a constant frame. Best of several rounds.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.front_process import DEMO_MODEL, FrontProcess, bare_front, running_front
from benchmarks.sse_clients import close_all, open_streams, read_all, request_bytes

ROUTES = ("/generate_stream", "/v1/chat/completions", "/v1/completions")
WARM_UP_TOKENS = 20


@dataclass(frozen=True)
class Round:
    """One wave of streams, from the first event to the last."""

    events: int
    wall_seconds: float
    cpu_seconds: float  # of the worker, the kernel's part included

    @property
    def speed(self) -> float:
        """Events per second of wall time."""
        return self.events / self.wall_seconds

    @property
    def efficiency(self) -> float:
        """Events per second of the worker's processor time."""
        return self.events / self.cpu_seconds


class Meter:
    """Counts events, and notes the times at the first one."""

    def __init__(self, front: FrontProcess) -> None:
        self._front = front
        self._events = 0
        self._started = self._cpu_started = 0.0

    def __call__(self, events: int) -> None:
        """So many events have come."""
        if not self._events:
            self._started, self._cpu_started = time.perf_counter(), self._front.cpu_seconds()
        self._events += events

    def result(self) -> Round:
        """What there was until now."""
        wall = time.perf_counter() - self._started
        return Round(self._events, wall, self._front.cpu_seconds() - self._cpu_started)


def one_round(front: FrontProcess, route: str, streams: int, tokens: int) -> Round:
    """Open so many streams and read them to their ends. Fails if one is not complete."""
    meter = Meter(front)
    connections = open_streams(front.address, request_bytes(route, tokens), streams)
    read_all(connections, meter)
    result = meter.result()
    close_all(connections)
    broken = sum(not stream.complete or stream.events < tokens for stream in connections)
    if broken:
        raise click.ClickException(f"{broken} of {streams} streams on {route} were not complete")
    return result


def best_of(rounds: int, play: Callable[[], Round]) -> tuple[float, float]:
    """The highest events per second, and per second of processor time, of several rounds."""
    results = [play() for _ in range(rounds)]
    return (
        max(result.speed for result in results),
        max(result.efficiency for result in results),
    )


def _line(load: str, route: str, figures: tuple[float, float]) -> str:
    return f"| {load} | {route} | {figures[0]:,.0f} | {figures[1]:,.0f} |"


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default=DEMO_MODEL)
@click.option("--streams", default=64, show_default=True)
@click.option("--tokens", default=400, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--route", "routes", multiple=True, default=ROUTES, show_default=True)
@click.option("--steps-per-second", default=300.0, show_default=True, help="of the paced load")
@click.option("--core", default=0, show_default=True, help="the worker's own core")
def main(
    model: Path,
    streams: int,
    tokens: int,
    rounds: int,
    routes: tuple[str, ...],
    steps_per_second: float,
    core: int,
) -> None:
    """Print a table of events per second."""
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {core})  # the engine inherits it
    click.echo("| load | route | events/s | events per second of processor time |")
    click.echo("|---|---|---:|---:|")
    paced = f"paced, {streams * steps_per_second:,.0f} events/s"
    for load, rate in ((paced, steps_per_second), ("full speed", 0.0)):
        with running_front(model, wave=streams, steps_per_second=rate, cores=[core]) as front:
            for route in routes:
                one_round(front, route, streams, WARM_UP_TOKENS)
                play = _player(front, route, streams, tokens)
                click.echo(_line(load, route, best_of(rounds, play)))
    with bare_front(tokens, [core]) as bare:
        play = _player(bare, ROUTES[0], streams, tokens)
        click.echo(_line("full speed", "bare gunicorn", best_of(rounds, play)))


def _player(front: FrontProcess, route: str, streams: int, tokens: int) -> Callable[[], Round]:
    return lambda: one_round(front, route, streams, tokens)


if __name__ == "__main__":
    main()
