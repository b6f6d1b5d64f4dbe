"""Whether an engine group lets the server call itself healthy.

Runs in the launcher, one for each group. Comes in: its assignments, its readiness and its deaths,
with the time of `turn_clock.py`. Goes out: healthy while it serves, and while a restart is not
overdue. Silence of a rank needs no rule here: it is a death (`stall_watch.py`). Next:
`engine_groups.py`.
"""

SHORTEST_LIMIT = 30.0  # seconds
FIRST_STARTS = 3  # a recovery may take so many times as long as the first start


class GroupHealth:
    """Past and present of one group, as far as health checks care."""

    def __init__(self, recovery_seconds: float | None) -> None:
        """Take the limit of the settings; None: from the first start. Not healthy yet."""
        self._given = recovery_seconds
        self._first_start: float | None = None  # seconds from assignment to readiness
        self._assigned_at = 0.0
        self._down_since: float | None = None
        self._is_serving = False

    @property
    def limit(self) -> float:
        """Seconds that a recovery may take, repeated attempts included."""
        if self._given is not None:
            return self._given
        return max(SHORTEST_LIMIT, FIRST_STARTS * (self._first_start or 0.0))

    @property
    def has_served(self) -> bool:
        """Whether the group was ever ready."""
        return self._first_start is not None

    def down_seconds(self, now: float) -> float:
        """How long a group that has served has been out of service; 0 while it serves."""
        return 0.0 if self._down_since is None else now - self._down_since

    def assigned(self, now: float) -> None:
        """The ranks have begun to load."""
        self._assigned_at = now

    def serves(self, now: float) -> None:
        """Every rank is ready."""
        if self._first_start is None:
            self._first_start = now - self._assigned_at
        self._is_serving, self._down_since = True, None

    def died(self, now: float) -> None:
        """The ranks are gone. A death during a recovery does not make the recovery younger."""
        if self._is_serving:
            self._is_serving, self._down_since = False, now

    def is_healthy(self, now: float) -> bool:
        """Whether it serves, or is being restarted within the limit."""
        if self._down_since is not None:
            return now - self._down_since < self.limit
        return self._is_serving
