"""How often, and how soon, an engine may be started again.

Runs in the launcher, one for each group. Comes in: each restart and each success, with the time of
`turn_clock.py`. Goes out: the pause before the next start, and how many are left. Next:
`engine_group.py`.
"""

from collections import deque

WINDOW_SECONDS = 600.0
FIRST_PAUSE = 0.5  # seconds; before that, one restart without a pause
LONGEST_PAUSE = 10.0


class RestartBudget:
    """At most `max_restarts` within `WINDOW_SECONDS`, with growing pauses while none succeeds."""

    def __init__(self, max_restarts: int) -> None:
        """Nothing has been restarted yet."""
        self._max_restarts = max_restarts
        self._times: deque[float] = deque()
        self._failed = 0  # restarts since an engine was last ready

    def left(self, now: float) -> int:
        """How many restarts are allowed at present."""
        while self._times and now - self._times[0] >= WINDOW_SECONDS:
            self._times.popleft()
        return self._max_restarts - len(self._times)

    def take(self, now: float) -> float:
        """Count one restart; the seconds to wait before it: 0, 0.5, 1, 2, 4, 8, 10, 10 ..."""
        self._times.append(now)
        self._failed += 1
        if self._failed == 1:
            return 0.0
        return float(min(FIRST_PAUSE * 2 ** (self._failed - 2), LONGEST_PAUSE))

    def succeeded(self) -> None:
        """An engine is ready: the next restart is immediate again."""
        self._failed = 0
