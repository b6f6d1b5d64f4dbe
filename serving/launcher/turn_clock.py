"""The launcher's own time: the sum of its turns, each of at most half a second.

Runs in the launcher. A machine that was paused (docker pause, a laptop's lid) or that starves the
launcher too has not waited for its engines: a long gap between two turns counts as a short one, so
that nobody is judged for it. Comes in: a tick at each turn. Goes out: `now`. Next:
`engine_group.py`.
"""

import time
from collections.abc import Callable

LONGEST_TURN = 0.5  # seconds; a turn waits for a heartbeat, half as long, at most


class TurnClock:
    """Seconds that the launcher has been turning, from 0."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Start at 0; `monotonic` gives the seconds of the system."""
        self._monotonic = monotonic
        self._last = monotonic()
        self.now = 0.0

    def tick(self) -> None:
        """A turn is over: add what it took, `LONGEST_TURN` at most."""
        last, self._last = self._last, self._monotonic()
        self.now += min(self._last - last, LONGEST_TURN)
