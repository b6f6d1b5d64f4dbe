"""The benchmark's results as a table for people and as JSON for programs.

Runs in the benchmark process. In: the `LevelReport`s of a run. Out: a rich table, a JSON document.
"""

from collections.abc import Callable, Sequence

import msgspec
from rich.table import Table

from serving.benchmark.measures import LevelReport, Percentiles


class RunReport(msgspec.Struct, frozen=True):
    """One run of the benchmark: what was asked, and the figures of every level."""

    route: str
    model: str
    seed: int
    ignore_eos: bool
    levels: list[LevelReport]


def encode_report(report: RunReport) -> bytes:
    """Return the report as indented JSON; times in seconds, rates in tokens per second."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def make_table(reports: Sequence[LevelReport]) -> Table:
    """Return a table with one column per level; times in milliseconds, where any level has them."""
    table = Table()
    table.add_column("", no_wrap=True)
    for report in reports:
        table.add_column(report.level.name, justify="right", no_wrap=True)
    for name, cell in _COUNTS.items():
        table.add_row(name, *map(cell, reports))
    for name, times in _TIMES.items():
        if all(times(report) is None for report in reports):
            continue
        table.add_section()
        for point in Percentiles.__struct_fields__:
            cells = [_milliseconds(times(report), point) for report in reports]
            table.add_row(f"{name}, {point} ms", *cells)
    return table


_COUNTS: dict[str, Callable[[LevelReport], str]] = {
    "requests ok": lambda report: str(report.requests_ok),
    "requests failed": lambda report: str(report.requests_failed),
    "prompt tok/s": lambda report: f"{report.prompt_tokens_per_s:.1f}",
    "output tok/s": lambda report: f"{report.output_tokens_per_s:.1f}",
    "benchmark's own CPU": lambda report: f"{report.client_cpu_s / report.wall_s:.1%}",
}
_TIMES: dict[str, Callable[[LevelReport], Percentiles | None]] = {
    "first token": lambda report: report.time_to_first_token_s,
    "inter-token": lambda report: report.inter_token_s,
    "event gap": lambda report: report.event_gap_s,
    "end to end": lambda report: report.end_to_end_s,
}


def _milliseconds(times: Percentiles | None, point: str) -> str:
    return "-" if times is None else f"{1000 * getattr(times, point):.0f}"
