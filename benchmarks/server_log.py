"""The server's JSON log as a benchmark reads it.

Runs inside the benchmarks of recovery and routing. Comes in: a log file. Goes out: its lines, in
the order of their times. Lines that are not JSON (tracebacks of libraries) are left out. Next:
`recovery_phases.py`.
"""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

STANDARD = ("timestamp", "level", "process", "message")


@dataclass(frozen=True)
class LogLine:
    """One event; `time` as `time.time()` gives it, to a millisecond."""

    time: float
    process: str
    message: str
    fields: dict[str, Any] = field(default_factory=dict)


def read_log(path: Path) -> list[LogLine]:
    """The lines so far; one that is being written is left out."""
    return parse_log(path.read_text(errors="replace").splitlines())


def parse_log(lines: Iterable[str]) -> list[LogLine]:
    """The lines that are events of ours, by time: processes share the file and may overtake."""
    found = []
    for line in lines:
        try:
            event = msgspec.json.decode(line)
        except msgspec.DecodeError:
            continue
        if isinstance(event, dict) and set(STANDARD) <= set(event):
            found.append(_line(event))
    return sorted(found, key=lambda one: one.time)


def _line(event: dict[str, Any]) -> LogLine:
    moment = datetime.datetime.fromisoformat(event["timestamp"]).timestamp()
    fields = {name: value for name, value in event.items() if name not in STANDARD}
    return LogLine(moment, event["process"], event["message"], fields)
