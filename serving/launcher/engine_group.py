"""One engine group over all its epochs: start, assign, watch, kill, start again.

Runs in the launcher. Comes in: the model's directory, deaths of ranks, the time of
`turn_clock.py`. Goes out: assignments, and what the server must know of the group: its epoch,
whether it serves and is healthy. It is all or nothing: when one rank ends, all are killed and the
next epoch begins with new ones. Next: `engine_groups.py`, which decides what a death means.
"""

import logging
import selectors
from collections.abc import Sequence
from pathlib import Path

from serving.launcher.death import Death
from serving.launcher.engine_run import EngineRun
from serving.launcher.health import GroupHealth
from serving.launcher.rank import Place, RankStarter
from serving.launcher.rank_set import RankSet
from serving.launcher.restarts import RestartBudget
from serving.launcher.sizes import Sizes
from serving.launcher.stall_watch import StallWatch
from serving.launcher.standby import Standby
from serving.launcher.turn_clock import TurnClock
from serving.protocol.messages import Assignment, SequenceName
from serving.settings import Settings

logger = logging.getLogger(__name__)

NO_ROOM = "raise the limits of memory, processes or open files of the container"


class EngineGroup:
    """The ranks that make one engine, and their successors."""

    def __init__(
        self,
        how: RankStarter,
        places: Sequence[Place],
        settings: Settings,
        selector: selectors.BaseSelector,
        clock: TurnClock,
    ) -> None:
        """Nothing is started yet."""
        self._how, self._places = how, places
        self._clock = clock
        self._model_path: Path | None = None
        self._run: EngineRun | None = None
        self._failure: Death | None = None  # to start any process
        self._ending: list[RankSet] = []  # killed, and perhaps not gone yet
        self._start_at = 0.0
        self._selector = selector
        self._standby = Standby(settings.standby, self._new_ranks)
        self._stalls = StallWatch(settings.stall_seconds)
        self._health = GroupHealth(settings.recovery_seconds)
        self._restarts = RestartBudget(settings.max_restarts)
        self.sizes = Sizes()
        self.number = places[0].group
        self.epoch = 1  # that runs or will run next
        self.is_serving = False
        self.is_given_up = False

    # --- what others ask -----------------------------------------------------------------------

    @property
    def is_healthy(self) -> bool:
        """Whether it serves, or is being restarted and not overdue."""
        return not self.is_given_up and self._health.is_healthy(self._clock.now)

    @property
    def restarts_left(self) -> int:
        """How many restarts are allowed at present."""
        return self._restarts.left(self._clock.now)

    @property
    def phase(self) -> str:
        """Phase of its start, on rank 0."""
        return self._run.phase if self._run is not None else ""

    @property
    def trial(self) -> SequenceName | None:
        """The suspect that runs alone at present."""
        return self._run.trial if self._run is not None else None

    @property
    def pids(self) -> list[int]:
        """Every process of the group, the standby's and the killed ones' too."""
        return [pid for ranks in self._all_ranks() for pid in ranks.pids]

    # --- starting ------------------------------------------------------------------------------

    def assign(self, model_path: Path) -> None:
        """The model's files are there: the ranks may load them, from the next `start_due` on."""
        self._model_path = model_path

    def start_due(self) -> None:
        """Start, and assign, what is due; returns at once."""
        now = self._clock.now
        self._ending = [ranks for ranks in self._ending if not _is_over(ranks)]
        if self.is_given_up:
            return
        if self._run is None and now >= self._start_at and self._failure is None:
            self._start()
        # What was killed must be gone, and its memory free, before its successor asks for as much.
        if self._run is not None and self._model_path is not None and not self._ending:
            self._assign_once(self._run.ranks, self._model_path)
        if self.is_serving:
            self._standby.start_if_due(now)

    def _start(self) -> None:
        try:
            ranks = self._standby.take() or self._new_ranks()
        except OSError as error:
            name = self._places[0].name
            self._failure = Death(name, f"cannot be started: {error}", "process start", NO_ROOM)
            return
        self._run = EngineRun(ranks, self._stalls)

    def _new_ranks(self) -> RankSet:
        return RankSet(self._how, self._places, self._selector)

    def _assign_once(self, ranks: RankSet, model_path: Path) -> None:
        if ranks.is_assigned or not ranks.are_here:
            return
        rendezvous, sizes = self._rendezvous(), self.sizes
        ranks.assign(
            Assignment(self.epoch, str(model_path), rendezvous, sizes.limits, sizes.shrink)
        )
        self._health.assigned(self._clock.now)

    def _rendezvous(self) -> str:
        """Where the ranks of this epoch meet; a single one meets nobody."""
        return self._how.rendezvous(self.number, self.epoch) if len(self._places) > 1 else ""

    # --- watching ------------------------------------------------------------------------------

    def watch(self) -> Death | None:
        """Take what has been reported; whether the group must end, and of what."""
        now = self._clock.now
        dead_standby = self._standby.take_dead(now)
        if dead_standby is not None:
            self._end(dead_standby)
        if self._run is None:
            return self._failure
        self._run.read(now)
        if self._run.is_ready and not self.is_serving:
            self._serve(self._run, now)
        return self._run.death(now)

    def _serve(self, run: EngineRun, now: float) -> None:
        if self._health.has_served:
            seconds = self._health.down_seconds(now)
            logger.info(
                "group %d serves again, in epoch %d, %.1f s after the end of the last one",
                *(self.number, self.epoch, seconds),
            )
        self.is_serving = True
        if run.limits is not None:
            self.sizes.measured(run.limits)
        self._restarts.succeeded()
        self._health.serves(now)

    # --- ending --------------------------------------------------------------------------------

    def end_epoch(self) -> None:
        """Kill what is left of this epoch; the next one begins at the next `start_due`."""
        if self._run is not None:
            self._end(self._run.ranks)
        self._run, self._failure = None, None
        self._how.directory.forget_gauges(self.number)
        self.is_serving = False
        self.epoch += 1
        self._stalls.forget()
        self._health.died(self._clock.now)

    def pause_before_restart(self) -> float:
        """Count a restart; `start_due` begins with it after so many seconds."""
        pause = self._restarts.take(self._clock.now)
        self._start_at = self._clock.now + pause
        return pause

    def give_up(self) -> None:
        """There will be no further epoch."""
        self.is_given_up = True
        standby = self._standby.take()
        if standby is not None:
            self._end(standby)

    def want_no_standby(self) -> None:
        """Start no standby from now on; one that is there can still be used."""
        self._standby.is_wanted = False

    def _end(self, ranks: RankSet) -> None:
        ranks.kill()
        self._ending.append(ranks)

    def ignore_reports(self) -> None:
        """Take no more reports: `watch` will not be called again."""
        for ranks in self._all_ranks():
            ranks.ignore_reports()

    def terminate(self) -> None:
        """Ask every process to stop."""
        for ranks in self._all_ranks():
            ranks.terminate()

    def have_exited(self) -> bool:
        """Whether no process of the group is left."""
        return all(ranks.have_exited() for ranks in self._all_ranks())

    def close(self) -> None:
        """Kill what is left, wait for it to be gone, and release it."""
        for ranks in self._all_ranks():
            ranks.close()
        self._run, self._ending = None, []
        self._standby.take()

    def _all_ranks(self) -> list[RankSet]:
        running = [] if self._run is None else [self._run.ranks]
        standby = [] if self._standby.ranks is None else [self._standby.ranks]
        return [*running, *standby, *self._ending]


def _is_over(ranks: RankSet) -> bool:
    """Whether killed ranks are gone; they are released then."""
    if not ranks.have_exited():
        return False
    ranks.close()
    return True
