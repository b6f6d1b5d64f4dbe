"""What a part has found so far: tables that grow row by row, kept in a file after each row.

Filled by the parts, read by `isolation.py`: what was measured before a part died is not lost.
Comes in: cells. Goes out: `Table`s of `results_page.py`, facts for the page, the ceilings.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu.roofline import Ceilings
from benchmarks.results_page import Table

MEASURES = ("measure", "value", "bound", "share", "target", "verdict")
NO_GPU = "needs a GPU"


class Report:
    """Results of one part, or of several one after the other."""

    def __init__(self, path: Path | None = None) -> None:
        """`path`: where everything is kept; None: nowhere."""
        self.tables: list[Table] = []
        self.facts: dict[str, str] = {}
        self.ceilings: Ceilings | None = None
        self._path = path

    def begin(self, title: str, columns: Sequence[str] = MEASURES, note: str = "") -> None:
        """A new table, to which the next rows belong."""
        self.tables.append(Table(title, list(columns), [], note))
        self.keep()

    def add(self, *cells: str) -> None:
        """A row of the last table; cells that are left out are empty."""
        table = self.tables[-1]
        table.rows.append([*cells, *[""] * (len(table.columns) - len(cells))])
        self.keep()

    def add_blank(self, name: str, target: str = "", reason: str = NO_GPU) -> None:
        """A row of `MEASURES` that could not be measured."""
        self.add(name, "", "", "", target, reason)

    def remark(self, text: str) -> None:
        """A sentence below the last table."""
        table = self.tables[-1]
        table.note = f"{table.note} {text}".strip()
        self.keep()

    def keep(self) -> None:
        """Write everything, or what was there before: never a part of it."""
        if self._path is None:
            return
        beside = self._path.with_suffix(".new")
        ceilings = None if self.ceilings is None else asdict(self.ceilings)
        tables = [asdict(table) for table in self.tables]
        beside.write_text(json.dumps({"tables": tables, "facts": self.facts, "ceilings": ceilings}))
        beside.replace(self._path)

    def take(self, path: Path) -> None:
        """Add what another process has kept."""
        kept = json.loads(path.read_text())
        self.tables += [Table(**table) for table in kept["tables"]]
        self.facts |= kept["facts"]
        if kept["ceilings"] is not None:
            self.ceilings = Ceilings(**kept["ceilings"])
        self.keep()


def share_cell(bound: float, found: float) -> str:
    """How much of the bound was reached; both in seconds."""
    return f"{bound / found:.0%}"


def at_least(share: float) -> str:
    """A target, for a cell."""
    return f">= {share:.0%}"


def first_line(error: BaseException) -> str:
    """The type of an error and the first line of what it says."""
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line[:200]}"
