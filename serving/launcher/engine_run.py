"""One epoch of an engine group: what its ranks have reported, and whether it must end.

Runs in the launcher. Comes in: running ranks, their reports and deaths, the time of
`turn_clock.py`. Goes out: readiness, sizes, the open trial, and the death of a rank that has ended
or is silent. Next: `engine_group.py`.
"""

import logging

from serving.launcher.death import Death, death_by_silence
from serving.launcher.rank import Rank
from serving.launcher.rank_set import RankSet
from serving.launcher.stall_watch import StallWatch
from serving.protocol.messages import (
    Alive,
    Limits,
    Progress,
    SequenceName,
    Started,
    ToLauncher,
    Trial,
    TrialOver,
)

logger = logging.getLogger(__name__)


class EngineRun:
    """The ranks of one epoch and what is known of them."""

    def __init__(self, ranks: RankSet, stalls: StallWatch) -> None:
        """Take over running ranks; `stalls` must watch nobody yet."""
        self.ranks = ranks
        self.phase = ""  # of the start, on rank 0
        self.limits: Limits | None = None  # of rank 0, once it has started
        self.trial: SequenceName | None = None  # the suspect that runs alone at present
        self._stalls = stalls
        self._started: set[int] = set()

    @property
    def is_ready(self) -> bool:
        """Whether every rank has started."""
        return len(self._started) == len(self.ranks.ranks)

    def read(self, now: float) -> None:
        """Take the reports that have come."""
        for rank, message in self.ranks.read():
            self._take(rank, message, now)

    def _take(self, rank: Rank, message: ToLauncher, now: float) -> None:
        number = rank.place.rank
        match message:
            case Progress(phase):
                logger.debug("%s: %s", rank.name, phase)  # the rank logs it too
                if number == 0:
                    self.phase = phase
            case Started(_, limits, worst_step_seconds):
                self._stalls.started(number, worst_step_seconds, now)
                self._started.add(number)
                if number == 0:
                    self.limits = limits
            case Alive():
                self._stalls.heard(number, now)
            case Trial(sequence):
                self.trial = sequence
            case TrialOver():
                self.trial = None

    def death(self, now: float) -> Death | None:
        """Whether a rank has ended or is silent for too long, and how."""
        if self.ranks.death() is not None:
            self.read(now)  # the last words
            return self.ranks.death()
        silent = self._stalls.silent(now)
        if not silent:
            return None
        return death_by_silence([(self.ranks.ranks[number], gone) for number, gone in silent])
