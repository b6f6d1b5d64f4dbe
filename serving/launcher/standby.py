"""A set of ranks without assignment, at hand for the next death of their group's engine.

Runs in the launcher, one for each group, with --standby. Its ranks have their modules imported,
but neither weights nor KV memory. Comes in: the wish for one. Goes out: the ranks, when they are
needed. Next: `engine_group.py`.
"""

import logging
from collections.abc import Callable

from serving.launcher.rank_set import RankSet

logger = logging.getLogger(__name__)

PAUSE = 10.0  # seconds, after a standby that ended by itself


class Standby:
    """At most one set of ranks."""

    def __init__(self, is_wanted: bool, start: Callable[[], RankSet]) -> None:
        """`start` makes a set; nothing is started yet."""
        self.is_wanted = is_wanted
        self.ranks: RankSet | None = None
        self._start = start
        self._not_before = 0.0

    def start_if_due(self, now: float) -> None:
        """Start one if it is wanted and there is none."""
        if not self.is_wanted or self.ranks is not None or now < self._not_before:
            return
        try:
            self.ranks = self._start()
        except OSError as error:
            self._pause(f"cannot be started: {error}", now)

    def take(self) -> RankSet | None:
        """The set, if there is one; it is the caller's from now on."""
        taken, self.ranks = self.ranks, None
        return taken

    def take_dead(self, now: float) -> RankSet | None:
        """The set, if one of its ranks has ended; there will be a new one after a pause."""
        if self.ranks is None:
            return None
        list(self.ranks.read())  # nothing to act on before they are assigned
        death = self.ranks.death()
        if death is None:
            return None
        self._pause(f"has ended: {death}", now)
        return self.take()

    def _pause(self, why: str, now: float) -> None:
        logger.warning("a standby %s; the next one is started in %.0f s", why, PAUSE)
        self._not_before = now + PAUSE
