"""A benchmark's result: a table for the terminal, and a page of Markdown for the repository.

Runs inside the benchmarks. Comes in: columns, rows of cells, the facts of the machine. Goes out:
print on stdout, and a file if one is wanted. Pure but for `publish`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import rich.console
import rich.table

from benchmarks.machine import describe_machine, load_average

LEAST_WIDTH = 120  # of the terminal's tables, so that no cell is cut where stdout is a file


@dataclass
class Table:
    """Rows of text; the first column is left-justified, the others are numbers."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    note: str = ""  # one paragraph below it

    def markdown(self) -> list[str]:
        """Lines of the page."""
        lines = [f"## {self.title}", "", _row(self.columns)]
        lines.append("|---|" + "---:|" * (len(self.columns) - 1))
        lines += [_row(row) for row in self.rows]
        return [*lines, "", *([self.note, ""] if self.note else [])]

    def print(self) -> None:
        """Show it on the terminal."""
        table = rich.table.Table(title=self.title, title_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        console = rich.console.Console()
        console.width = max(console.width, LEAST_WIDTH)
        console.print(table)
        if self.note:
            console.print(self.note, highlight=False)


def make_page(title: str, facts: Mapping[str, str], tables: Sequence[Table]) -> str:
    """The whole page."""
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    for table in tables:
        lines += table.markdown()
    return "\n".join(lines).rstrip() + "\n"


def publish(
    title: str, facts: Mapping[str, str], tables: Sequence[Table], output: Path | None
) -> None:
    """Print the tables; write the page with `facts` and those of the machine to `output`."""
    for table in tables:
        table.print()
    if output is not None:
        end = {"load average at the end": f"{load_average():.1f}"}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(make_page(title, {**describe_machine(), **facts, **end}, tables))


def seconds(value: float) -> str:
    """A time in seconds, for a cell."""
    return f"{value:.2f}"


def verdict(is_met: bool) -> str:
    """Whether a target is met, for a cell."""
    return "met" if is_met else "**missed**"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
