"""How long a stream pauses when a rank of its engine is killed.

`python -m benchmarks.recovery` serves the embedded model with one rank and with two, without and
with a standby. While a stream runs, a rank is killed with SIGKILL; measured is the time to the next
token at the client, and the server's log says where it went. Every stream must have the text of an
undisturbed one. The exit code is 1 if one has not.
"""

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.own_server import OwnServer, own_server, shown_command, wait_until
from benchmarks.recovery_phases import longest_gap, split
from benchmarks.results_page import Table, publish, seconds, verdict
from benchmarks.server_log import read_log
from benchmarks.stream_outcome import Outcome, compare
from benchmarks.watched_stream import StreamRequest, WatchedStream
from serving.benchmark.measures import percentile

TOKENS = 900
KILL_AFTER = 20  # tokens; each kill strikes a little later than the one before
KILL_LATER = 7
TARGET_SECONDS = {False: 4.0, True: 1.0}  # median, without and with a standby
REQUEST = StreamRequest(
    "count",
    "/generate_stream",
    {
        "inputs": "Count to 100",
        "parameters": {"max_new_tokens": TOKENS, "ignore_eos": True, "details": True},
    },
)


@dataclass(frozen=True)
class Case:
    """How the server is started."""

    ranks: int
    standby: bool

    @property
    def name(self) -> str:
        """As the tables say it."""
        ranks = "one rank" if self.ranks == 1 else f"{self.ranks} ranks"
        return f"{ranks}, standby" if self.standby else ranks

    def options(self) -> list[str]:
        """Of the command line. A run has more deaths than an operator would allow."""
        standby = ["--standby"] if self.standby else []
        return ["--num-shard", str(self.ranks), *standby, "--max-restarts", "100000"]


@dataclass(frozen=True)
class Recovery:
    """One kill."""

    seconds: float  # from the kill to the next token
    gap: float  # longest pause between two tokens
    phases: dict[str, float]
    is_right: bool


CASES = tuple(Case(ranks, standby) for standby in (False, True) for ranks in (1, 2))


def measure(case: Case, kills: int) -> Iterator[Recovery]:
    """Kill so many times, the ranks by turns."""
    with own_server(*case.options()) as server:
        undisturbed = WatchedStream(server.port, REQUEST)
        undisturbed.start()
        undisturbed.join()
        for number in range(kills):
            if case.standby:
                server.wait_for_standby(case.ranks)
            yield one_kill(server, number, case.ranks, undisturbed.outcome())


def one_kill(server: OwnServer, number: int, ranks: int, expected: Outcome) -> Recovery:
    """Kill a rank under a stream, and see the stream to its end."""
    stream = WatchedStream(server.port, REQUEST)
    stream.start()
    tokens = KILL_AFTER + KILL_LATER * number % (TOKENS // 4)
    wait_until(lambda: len(stream.token_times) >= tokens, f"{tokens} tokens of the stream")
    victim = server.ranks(number % ranks)[0]
    kill_time = time.time()
    victim.kill()
    stream.join()
    gap, token_time = longest_gap(stream.token_times, kill_time)
    phases = split(read_log(server.log), kill_time, token_time)
    is_right = compare(stream.outcome(), expected) == "right"
    return Recovery(token_time - kill_time, gap, phases, is_right)


def times_table(results: dict[Case, Sequence[Recovery]]) -> Table:
    """Median, p90 and maximum of each case."""
    columns = (
        "case", "kills", "median", "p90", "max", "longest gap", "target", "", "streams right",
    )  # fmt: skip
    table = Table("Seconds from SIGKILL to the next streamed token", columns)
    for case, recoveries in results.items():
        times = [one.seconds for one in recoveries]
        target = TARGET_SECONDS[case.standby]
        right = sum(one.is_right for one in recoveries)
        table.rows.append(
            (
                case.name,
                str(len(times)),
                *(seconds(percentile(times, percent)) for percent in (50, 90, 100)),
                seconds(max(one.gap for one in recoveries)),
                f"median < {target:.0f}",
                verdict(statistics.median(times) < target),
                f"{right} of {len(times)}",
            )
        )
    return table


def phases_table(results: dict[Case, Sequence[Recovery]]) -> Table:
    """Median of each phase, a column for each case."""
    table = Table("Where the time goes: median ms by phase", ("phase", *names_of(results)))
    found = [one.phases for recoveries in results.values() for one in recoveries]
    for phase in in_order(found):
        cells = [
            f"{1000 * statistics.median([one.phases.get(phase, 0.0) for one in recoveries]):.0f}"
            for recoveries in results.values()
        ]
        table.rows.append((phase, *cells))
    table.note = (
        "Phases of rank 0's start as the log names them; `rendezvous` and `connect` include "
        "waiting for the other rank, `hand over to standby` includes waiting for the killed "
        "processes to be gone. Medians of phases do not add up to the median of the whole."
    )
    return table


def in_order(found: Sequence[dict[str, float]]) -> list[str]:
    """All phases: each behind those that it follows in some recovery."""
    names: list[str] = []
    for phases in found:
        place = 0
        for phase in phases:
            if phase in names:
                place = names.index(phase) + 1
            else:
                names.insert(place, phase)
                place += 1
    return names


def names_of(cases: Iterable[Case]) -> list[str]:
    """What the cases are called."""
    return [case.name for case in cases]


@click.command(context_settings={"show_default": True})
@click.option("--kills", type=click.IntRange(1), default=15, help="Of each case.")
@click.option(
    "--case",
    "names",
    multiple=True,
    type=click.Choice(names_of(CASES)),
    help="Only this one; may be repeated.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Results page to write.")
def main(kills: int, names: tuple[str, ...], output: Path | None) -> None:
    """Print how long streams pause, and where the time goes."""
    results: dict[Case, Sequence[Recovery]] = {}
    for case in CASES:
        if case.name in (names or names_of(CASES)):
            results[case] = list(measure(case, kills))
    facts = {
        "command": f"python -m benchmarks.recovery --kills {kills}",
        "servers": "; ".join(shown_command(case.options()) for case in results),
        "stream": f"{TOKENS} tokens, greedy, on the embedded model",
    }
    publish("Recovery", facts, [times_table(results), phases_table(results)], output)
    raise SystemExit(not all(one.is_right for found in results.values() for one in found))


if __name__ == "__main__":
    main()
