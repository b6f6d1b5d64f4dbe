"""All ranks of one engine group, together: started together, assigned together, killed together.

Runs in the launcher; one set for each epoch of a group, and one as its standby. Comes in: the
places, the assignment. Goes out: reports, and the death of any rank. Ranks on other machines would
join here. Next: `engine_group.py`.
"""

import selectors
from collections.abc import Iterator, Sequence

from serving.launcher.death import Death, death_of, root_cause
from serving.launcher.rank_process import Place, RankCommand, RankProcess
from serving.protocol.messages import Assignment, ToLauncher


class RankSet:
    """Running ranks, in the order of their numbers."""

    def __init__(
        self, how: RankCommand, places: Sequence[Place], selector: selectors.BaseSelector
    ) -> None:
        """Start them; their reports wake `selector`.

        Raises `OSError` if one of them cannot be started; the others are gone by then.
        """
        self._selector = selector
        self.ranks: list[RankProcess] = []
        self.is_assigned = False
        try:
            for place in places:
                rank = RankProcess(how, place)
                self.ranks.append(rank)
                selector.register(rank.reports, selectors.EVENT_READ)
        except OSError:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Process ids of the ranks."""
        return [rank.child.pid for rank in self.ranks]

    def assign(self, assignment: Assignment) -> None:
        """Tell all ranks what they are to be; once."""
        self.is_assigned = True
        for rank in self.ranks:
            rank.assign(assignment)

    def read(self) -> Iterator[tuple[RankProcess, ToLauncher]]:
        """New reports of all ranks; a dead rank's last words are among them."""
        for rank in self.ranks:
            if rank.reports.is_open:
                for message in rank.reports.read():
                    yield rank, message
                if not rank.reports.is_open:
                    self._ignore(rank)

    def death(self) -> Death | None:
        """Of the rank that ended first, as far as one can tell; None while all run."""
        return root_cause([death_of(rank) for rank in self.ranks if rank.is_gone()])

    def terminate(self) -> None:
        """Ask all ranks to stop."""
        for rank in self.ranks:
            rank.child.terminate()

    def ignore_reports(self) -> None:
        """Let reports wake the selector no more: nobody will read them."""
        for rank in self.ranks:
            self._ignore(rank)

    def _ignore(self, rank: RankProcess) -> None:
        if rank.reports in self._selector.get_map():
            self._selector.unregister(rank.reports)

    def kill(self) -> None:
        """Kill all ranks and whatever they started; does not wait for them to be gone."""
        self.ignore_reports()
        for rank in self.ranks:
            rank.child.send_kill()

    def have_exited(self) -> bool:
        """Whether no rank is left."""
        return all(rank.child.has_exited() for rank in self.ranks)

    def close(self) -> None:
        """Kill what is left, wait for it to be gone, and close the pipes."""
        self.kill()
        for rank in self.ranks:
            rank.close()
