"""The tables on the terminal, and the page of results.

Called by `__main__.py` at the end. A page without a single measurement says so, and describes no
machine.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting
from benchmarks.machine import describe_machine
from benchmarks.results_page import Table, make_page

TITLE = "The GPU path"
EMPTY = (
    "no GPU was at hand: every cell that must be measured is empty. MB and GFLOP are computed from "
    "the sizes"
)
GAP = "  "


def publish_report(
    setting: Setting, report: Report, only: Iterable[str], output: Path | None
) -> None:
    """Print; write the page to `output` if it is given. `only`: sections that were asked for."""
    for table in report.tables:
        click.echo("\n".join(plain_lines(table)))
    for name, value in report.facts.items():
        click.echo(f"{name}: {value}")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(make_page(TITLE, page_facts(setting, report, only), report.tables))


def plain_lines(table: Table) -> Iterator[str]:
    """A table as text: as narrow as its cells, the first column to the left."""
    rows = [list(table.columns), *(list(row) for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield table.title
    for row in rows:
        first, *others = (
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield GAP.join([GAP + first, *others]).rstrip()
    if table.note:
        yield f"{GAP}{table.note}"
    yield ""


def page_facts(setting: Setting, report: Report, only: Iterable[str]) -> dict[str, str]:
    """What stands above the tables."""
    words = ["python -m benchmarks.gpu", "--shape", setting.shape_name]
    command = " ".join([*words, *(f"--only {section}" for section in only)])
    facts = {"model": shown_shape(setting), "command": f"`{command}`"}
    if not setting.measures:
        return {"state": EMPTY, **facts}
    return {**describe_machine(), **report.facts, **facts}


def shown_shape(setting: Setting) -> str:
    """The model in words."""
    shape = setting.shape
    return (
        f"{setting.shape_name}, random weights in bfloat16: {shape.layers} layers, hidden "
        f"{shape.hidden}, {shape.heads} heads, {shape.kv_heads} KV heads of {shape.head_dim}, "
        f"intermediate {shape.intermediate}, vocabulary {shape.vocabulary}"
    )
