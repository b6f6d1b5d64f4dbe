"""Random kills of ranks under streams of every kind: nothing may be lost, wrong or doubled.

`python -m benchmarks.kill_soak` serves the embedded model with two ranks and a standby, keeps
streams going, and sends SIGKILL to ranks at random moments, also while the server recovers from
the kill before. Each stream is compared with its undisturbed text. The exit code is 1 if one is not
right, memory or files grow, or something is left behind.

At most two kills in a row strike a stream before it got on: a sequence that is in a third such
crash is taken for its cause and refused, which is what the server promises.
"""

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import click

from benchmarks.kill_load import KillLoad
from benchmarks.kill_requests import make_request
from benchmarks.own_server import OwnServer, own_server, shown_command, wait_until
from benchmarks.process_census import Census, Growth, Holdings, growths, hold
from benchmarks.results_page import Table, publish, verdict
from benchmarks.server_log import LogLine, read_log
from serving.benchmark.measures import percentile

RANKS = 2
OPTIONS = ("--num-shard", str(RANKS), "--standby", "--max-restarts", "100000")
DIFFERENT_REQUESTS = 48
UNDER_WAY = 0.25  # seconds after a kill in which tokens of before may still come
QUICK_IN_A_ROW = 2
SAMPLE_SECONDS = 1.0
SHOWN_FAULTS = 20


@dataclass(frozen=True)
class Pace:
    """How long after the last kill, or after the recovery from it, the next one strikes."""

    quick_share: float = 0.3  # of kills that do not wait for the recovery
    quick_seconds: float = 2.0  # at most, after the kill
    calm_seconds: float = 2.0  # at most, after every stream got on


@dataclass(frozen=True)
class Soak:
    """A finished run."""

    load: KillLoad
    kill_times: list[float]
    num_quick: int
    seconds: float
    growths: list[Growth]
    before: Holdings
    after: Holdings
    lines: list[LogLine]
    kv_usage: float

    def silences(self) -> list[float]:
        """Pauses of the whole server in which a kill fell."""
        return pauses_with_kills(self.load.arrivals.silences, self.kill_times)

    def count(self, text: str) -> int:
        """Log lines with this in their message."""
        return sum(text in line.message for line in self.lines)


def pauses_with_kills(
    silences: Sequence[tuple[float, float]], kill_times: Sequence[float]
) -> list[float]:
    """Seconds of each silence that a kill began or prolonged."""
    return [
        end - begin
        for begin, end in silences
        if any(begin - UNDER_WAY <= kill <= end for kill in kill_times)
    ]


def run_kills(
    server: OwnServer, load: KillLoad, kills: int, pace: Pace, source: random.Random
) -> tuple[list[float], int]:
    """Kill so many times; the times, and how many kills did not wait for a recovery."""
    times = [time.time()]
    in_a_row = num_quick = 0
    for _ in range(kills):
        is_quick = in_a_row < QUICK_IN_A_ROW and source.random() < pace.quick_share
        if is_quick:
            time.sleep(source.uniform(0, pace.quick_seconds))
        else:
            since = times[-1] + UNDER_WAY
            wait_until(partial(load.has_got_on, since), "every stream to get on")
            time.sleep(source.uniform(0, pace.calm_seconds))
        in_a_row = 1 if load.has_got_on(times[-1] + UNDER_WAY) else in_a_row + 1
        num_quick += is_quick
        victim = server.wait_for_rank(source.randrange(RANKS))
        times.append(time.time())
        victim.kill()
    return times[1:], num_quick


def soak(kills: int, concurrency: int, pace: Pace, seed: int) -> Soak:
    """The whole run."""
    with own_server(*OPTIONS) as server:
        requests = [make_request(number) for number in range(DIFFERENT_REQUESTS)]
        load = KillLoad(server.port, requests, concurrency)
        load.learn()
        before = at_rest(server)
        census = Census(server, SAMPLE_SECONDS)
        started = time.monotonic()
        load.start()
        kill_times, num_quick = run_kills(server, load, kills, pace, random.Random(seed))
        load.finish()
        lasted = time.monotonic() - started
        census.stop()
        after = at_rest(server)
        return Soak(
            load, kill_times, num_quick, lasted, growths(census.samples), before, after,
            read_log(server.log), server.metric("tgi_kv_cache_usage_ratio"),
        )  # fmt: skip


def at_rest(server: OwnServer) -> Holdings:
    """What the server holds when no stream runs and the standby is ready."""
    server.wait_until_idle()
    server.wait_for_standby(RANKS)
    return hold(server)


def streams_table(run: Soak) -> Table:
    """What came of the streams, and how often the server recovered."""
    verdicts, pauses = run.load.verdicts, run.silences() or [float("nan")]
    table = Table("Streams under kills", ("figure", "value"))
    table.rows = [
        ("kills", str(len(run.kill_times))),
        ("of these without waiting for the recovery", str(run.num_quick)),
        ("recoveries", str(run.count("serves again"))),
        ("engines that ran out of memory (none should)", str(run.count("ran out of memory"))),
        ("seconds", f"{run.seconds:.0f}"),
        ("streams, all ended", str(verdicts.total())),
        ("tokens", f"{run.load.tokens:,}"),
        ("sequences sent again", str(resumed(run.lines))),
        ("lost", str(verdicts["lost"])),
        ("wrong", str(verdicts["wrong"])),
        ("doubled", str(verdicts["doubled"])),
        ("pause of the whole server, median s", f"{statistics.median(pauses):.2f}"),
        ("pause, p90 s", f"{percentile(pauses, 90):.2f}"),
        ("pause, longest s", f"{max(pauses):.2f}"),
    ]
    return table


def resumed(lines: Sequence[LogLine]) -> int:
    """Sequences that were sent to another engine than the one that had them."""
    return sum(line.fields["sequences"] for line in lines if line.message == "resumed sequences")


def memory_table(run: Soak, limit: float) -> Table:
    """Memory over the run."""
    columns = ("MiB, median", "first quarter", "last quarter", "growth", f"limit {limit:.0%}")
    table = Table("Resident memory of what is not killed", columns)
    for one in run.growths:
        cells = (one.name, f"{one.first:.1f}", f"{one.last:.1f}", f"{one.share:+.1%}")
        table.rows.append((*cells, verdict(one.share <= limit)))
    return table


def left_table(run: Soak) -> Table:
    """What the server holds at rest."""
    table = Table("At rest", ("count", "before", "after", "equal"))
    for one in fields(Holdings):
        before, after = getattr(run.before, one.name), getattr(run.after, one.name)
        name = one.name.replace("_", " ")
        table.rows.append((name, str(before), str(after), verdict(before == after)))
    table.note = f"KV pool in use after the run: {run.kv_usage:.0%}."
    return table


@click.command(context_settings={"show_default": True})
@click.option("--kills", type=click.IntRange(1), default=200)
@click.option("--concurrency", type=click.IntRange(1), default=12, help="Streams all the time.")
@click.option("--quick-share", type=click.FloatRange(0, 1), default=Pace.quick_share)
@click.option("--calm-seconds", type=click.FloatRange(0), default=Pace.calm_seconds)
@click.option("--growth-limit", type=float, default=0.05, help="Of memory.")
@click.option("--seed", default=1)
@click.option("--output", type=click.Path(path_type=Path), help="Results page to write.")
def main(
    kills: int,
    concurrency: int,
    quick_share: float,
    calm_seconds: float,
    growth_limit: float,
    seed: int,
    output: Path | None,
) -> None:
    """Kill ranks at random under streams; print what became of the streams and of the server."""
    pace = Pace(quick_share=quick_share, calm_seconds=calm_seconds)
    run = soak(kills, concurrency, pace, seed)
    facts = {
        "command": f"python -m benchmarks.kill_soak --kills {kills} --concurrency {concurrency} "
        f"--quick-share {quick_share} --calm-seconds {calm_seconds} --seed {seed}",
        "server": shown_command(OPTIONS),
        "streams": f"{DIFFERENT_REQUESTS} different requests of the embedded model: greedy, "
        "sampled with seed, guided, penalties and watermark, stop strings; three routes",
    }
    tables = [streams_table(run), memory_table(run, growth_limit), left_table(run)]
    publish("Kill soak", facts, tables, output)
    for fault in run.load.faults[:SHOWN_FAULTS]:
        click.echo(f"{fault.verdict}: {fault.name}: {fault.outcome}")
    grew = any(one.share > growth_limit for one in run.growths)
    is_left = run.before != run.after or run.kv_usage > 0
    raise SystemExit(bool(run.load.faults) or grew or is_left)


if __name__ == "__main__":
    main()
