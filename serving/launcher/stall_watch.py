"""Which ranks of an engine have been silent for too long.

Runs in the launcher, one for each group. Comes in: each sign of life of a started rank, with the
time of `turn_clock.py`. Goes out: the ranks whose silence is beyond the limit. A rank that has not
started is not watched: loading may take long, and has deadlines of its own. Next:
`engine_group.py`.
"""

SHORTEST_LIMIT = 30.0  # seconds
WORST_STEPS = 10  # so many of the longest step that the warm-up saw


class StallWatch:
    """Signs of life of the ranks of one engine."""

    def __init__(self, stall_seconds: float | None) -> None:
        """Take the limit of the settings; None: from the worst step."""
        self._given = stall_seconds
        self._worst_step = 0.0
        self._heard: dict[int, float] = {}  # rank -> time of its last sign of life

    @property
    def limit(self) -> float:
        """Seconds of silence that are allowed."""
        if self._given is not None:
            return self._given
        return max(SHORTEST_LIMIT, WORST_STEPS * self._worst_step)

    def started(self, rank: int, worst_step_seconds: float, now: float) -> None:
        """Watch a rank from now on. A restart measures no worst step: the largest one counts."""
        self._worst_step = max(self._worst_step, worst_step_seconds)
        self._heard[rank] = now

    def heard(self, rank: int, now: float) -> None:
        """A started rank has completed a forward pass."""
        if rank in self._heard:
            self._heard[rank] = now

    def silent(self, now: float) -> list[tuple[int, float]]:
        """(rank, seconds of silence) of those beyond the limit, longest first."""
        silences = [(rank, now - heard) for rank, heard in self._heard.items()]
        beyond = [found for found in silences if found[1] > self.limit]
        return sorted(beyond, key=lambda found: -found[1])

    def forget(self) -> None:
        """The engine has ended: watch nobody until its successor has started."""
        self._heard.clear()
