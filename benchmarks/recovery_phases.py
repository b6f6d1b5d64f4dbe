"""Where the time between a kill and the next token went; pure functions.

Runs inside `recovery.py`. Comes in: times of kill and tokens as the client saw them, the server's
log. Goes out: the gap, and seconds by phase that add up to the time from the kill to the token.
Next: `server_log.py`, which reads the log.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from benchmarks.server_log import LogLine

PHASE_ENDS = re.compile(r"phase '(?P<phase>.*)' took .*; next '(?P<next>.*)'")
DEATH = re.compile(r"epoch \d+ of group 0 is over")
RESUMED = "resumed sequences"
LEADER = "engine-0"
FIRST_PHASE, IMPORT, SERVING = "engine start", "import torch", "serving"


def longest_gap(token_times: Sequence[float], kill_time: float) -> tuple[float, float]:
    """(seconds, time of its end) of the longest pause between tokens that ends after the kill.

    Tokens that were under way at the kill come after it too, so the next one does not count.
    Raises `ValueError` if no token came after the kill.
    """
    gaps = [
        (later - earlier, later) for earlier, later in pairwise(token_times) if later > kill_time
    ]
    if not gaps:
        raise ValueError("the stream ended before the kill")
    return max(gaps)


def split(lines: Sequence[LogLine], kill_time: float, token_time: float) -> dict[str, float]:
    """Seconds by phase, in order: the kill's discovery, rank 0's start, the stream's way back.

    `lines` are by time. With a standby, process start and import lie before the kill; what is left
    of them is how long it took to hand the assignment over. Raises `ValueError` if the log tells
    of no recovery in this time.
    """
    phases: dict[str, float] = {}
    until = kill_time
    for name, moment in _ends(lines, kill_time, token_time):
        end = max(moment, until)
        phases[name] = phases.get(name, 0.0) + end - until
        until = end
    phases["first token"] = max(0.0, token_time - until)
    return phases


def _ends(
    lines: Sequence[LogLine], kill_time: float, token_time: float
) -> Iterator[tuple[str, float]]:
    """Name and end of each phase but the last."""
    during = [line for line in lines if kill_time <= line.time + 0.001 and line.time <= token_time]
    deaths = [line.time for line in during if DEATH.match(line.message)]
    resumed = [line.time for line in during if line.message == RESUMED]
    starts = _start(during)
    if not (deaths and starts and resumed):
        raise ValueError("the log tells of no recovery between the kill and the next token")
    yield "death noticed", deaths[0]
    for phase, moment in starts:
        if phase == FIRST_PHASE:
            yield "process start", moment
        elif phase == IMPORT and starts[0][0] != FIRST_PHASE:
            yield "hand over to standby", moment
        else:
            yield phase, moment
    yield "resubmission", resumed[0]


def _start(lines: Sequence[LogLine]) -> list[tuple[str, float]]:
    """Phases of rank 0's start with their ends; what follows belongs to the next standby."""
    found = []
    for line in lines:
        match = PHASE_ENDS.match(line.message) if line.process == LEADER else None
        if match is not None:
            found.append((match["phase"], line.time))
            if match["next"] == SERVING:
                break
    return found
