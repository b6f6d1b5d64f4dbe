"""All engine groups of the server, and what the death of one means for it.

Runs in the launcher. Comes in: settings, the model's directory, deaths that the groups find. Goes
out: restarts within the budget, poisoned sequences, groups that are given up; `StartupError` while
the server has never served, `ServerFailed` when no group is left. Next: `launch.py`.
"""

import logging
import selectors
from collections import deque
from pathlib import Path

from serving.launcher.death import Death
from serving.launcher.engine_group import EngineGroup
from serving.launcher.rank import Place, RankStarter
from serving.launcher.restarts import WINDOW_SECONDS
from serving.launcher.sizes import MAX_SHRINKS
from serving.launcher.turn_clock import TurnClock
from serving.protocol.messages import SequenceName
from serving.settings import Settings

logger = logging.getLogger(__name__)

POISONED_KEPT = 64  # names that are repeated in every status; workers act on each one once


class ServerFailed(Exception):
    """The server cannot go on; `str()` says why."""


class EngineGroups:
    """The groups, and the record of what they died of."""

    def __init__(
        self,
        how: RankStarter,
        settings: Settings,
        selector: selectors.BaseSelector,
        clock: TurnClock,
    ) -> None:
        """Nothing is started before `start_due`."""
        self._max_restarts = settings.max_restarts
        self._groups = [
            EngineGroup(how, places, settings, selector, clock) for places in all_places(settings)
        ]
        self._poisoned: deque[SequenceName] = deque(maxlen=POISONED_KEPT)
        self.has_served = False

    # --- what the status says ------------------------------------------------------------------

    @property
    def epochs(self) -> list[int]:
        """Per group: the epoch that runs or will run next; 0: there will be none."""
        return [0 if group.is_given_up else group.epoch for group in self._groups]

    @property
    def poisoned(self) -> list[SequenceName]:
        """The last sequences that died alone with their engine."""
        return list(self._poisoned)

    @property
    def are_healthy(self) -> bool:
        """Whether a group serves, or is being restarted and not overdue."""
        return any(group.is_healthy for group in self._groups)

    @property
    def phase(self) -> str:
        """Phase of the start, of the first group's first rank."""
        return self._groups[0].phase

    @property
    def pids(self) -> list[int]:
        """Every process of every group."""
        return [pid for group in self._groups for pid in group.pids]

    # --- turns ---------------------------------------------------------------------------------

    def assign(self, model_path: Path) -> None:
        """The model's files are there: ranks may load them, from the next `start_due` on."""
        for group in self._groups:
            group.assign(model_path)

    def start_due(self) -> None:
        """Start, and assign, what is due; returns at once."""
        for group in self._groups:
            group.start_due()

    def watch(self) -> None:
        """Look after every group, once in a turn.

        Raises `StartupError` and `ServerFailed`, see above.
        """
        for group in self._groups:
            death = group.watch()
            self.has_served = self.has_served or group.is_serving
            if death is not None:
                self._on_death(group, death)

    def _on_death(self, group: EngineGroup, death: Death) -> None:
        self._refuse_suspect(group)
        group.end_epoch()
        is_smaller = group.sizes.shrinks_after(death)
        if is_smaller:
            logger.warning(
                "group %d ran out of memory in phase '%s' (%s): the tokens and rows of its steps "
                "are halved, for time %d of at most %d",
                *(group.number, death.phase, death, group.sizes.shrink, MAX_SHRINKS),
            )
        if self.has_served:
            self._restart(group, death)
        elif not is_smaller:
            raise death.startup_error()

    def _refuse_suspect(self, group: EngineGroup) -> None:
        if group.trial is not None:
            self._poisoned.append(group.trial)
            logger.error(
                "sequence %d of worker %s ran alone when group %d died, and is refused",
                *(group.trial.sequence_id, group.trial.worker.decode(errors="replace")),
                group.number,
            )

    def _restart(self, group: EngineGroup, death: Death) -> None:
        what = f"epoch {group.epoch - 1} of group {group.number} is over: {death}"
        if group.restarts_left > 0 and not death.is_final:
            pause = group.pause_before_restart()
            logger.warning(
                "%s (phase '%s'); epoch %d starts in %.1f s, %d restarts are left",
                *(what, death.phase, group.epoch, pause, group.restarts_left),
            )
            return
        group.give_up()
        spent = (
            f" after {self._max_restarts} restarts within {WINDOW_SECONDS:.0f} s, "
            "as many as --max-restarts allows"
        )
        after = "" if death.is_final else spent
        logger.error("%s; the group is given up%s", what, after)
        if all(group.is_given_up for group in self._groups):
            raise ServerFailed(f"no engine is left{after}: {death}")

    # --- end -----------------------------------------------------------------------------------

    def want_no_standby(self) -> None:
        """Start no standby from now on; those that are there can still be used."""
        for group in self._groups:
            group.want_no_standby()

    def ignore_reports(self) -> None:
        """Take no more reports: `watch` will not be called again."""
        for group in self._groups:
            group.ignore_reports()

    def terminate(self) -> None:
        """Ask every process to stop."""
        for group in self._groups:
            group.terminate()

    def have_exited(self) -> bool:
        """Whether no process is left."""
        return all(group.have_exited() for group in self._groups)

    def close(self) -> None:
        """Kill what is left, wait for it to be gone, and release it."""
        for group in self._groups:
            group.close()


def all_places(settings: Settings) -> list[list[Place]]:
    """Per group, the places of its ranks; those of a machine are numbered through."""
    num_ranks = settings.num_shard or 1
    in_all = num_ranks * settings.num_replicas // settings.nnodes  # of a machine
    return [
        [_place(group, rank, num_ranks, in_all) for rank in range(num_ranks)]
        for group in range(settings.num_replicas)
    ]


def _place(group: int, rank: int, num_ranks: int, in_all: int) -> Place:
    machine, device_index = divmod(group * num_ranks + rank, in_all)
    return Place(group, rank, num_ranks, device_index, in_all, machine)
