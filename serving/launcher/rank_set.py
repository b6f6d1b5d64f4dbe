"""All ranks of one engine group, together: started together, assigned together, killed together.

Runs in the launcher; one set for each epoch of a group, and one as its standby. Comes in: the
places, the assignment. Goes out: reports, and the death of any rank. On which machine a rank runs
makes no difference here. Next: `engine_group.py`.
"""

import selectors
from collections.abc import Iterator, Sequence

from serving.launcher.death import Death, death_of, root_cause
from serving.launcher.rank import Place, Rank, RankStarter
from serving.protocol.messages import Assignment, ToLauncher


class RankSet:
    """Running ranks, in the order of their numbers."""

    def __init__(
        self, how: RankStarter, places: Sequence[Place], selector: selectors.BaseSelector
    ) -> None:
        """Start them; their reports wake `selector`.

        Raises `OSError` if one of them cannot be started; the others are gone by then.
        """
        self._selector = selector
        self.ranks: list[Rank] = []
        self.is_assigned = False
        try:
            for place in places:
                rank = how.start(place)
                self.ranks.append(rank)
                rank.watch(selector)
        except OSError:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Process ids of the ranks of this machine."""
        return [pid for rank in self.ranks for pid in rank.pids]

    @property
    def are_here(self) -> bool:
        """Whether all can be assigned."""
        return all(rank.is_here for rank in self.ranks)

    def assign(self, assignment: Assignment) -> None:
        """Tell all ranks what they are to be; once."""
        self.is_assigned = True
        for rank in self.ranks:
            rank.assign(assignment)

    def read(self) -> Iterator[tuple[Rank, ToLauncher]]:
        """New reports of all ranks; a dead rank's last words are among them."""
        for rank in self.ranks:
            if rank.reports.is_open:
                for message in rank.reports.read():
                    yield rank, message
                if not rank.reports.is_open:
                    rank.ignore(self._selector)

    def death(self) -> Death | None:
        """Of the rank that ended first, as far as one can tell; None while all run."""
        return root_cause([death_of(rank) for rank in self.ranks if rank.is_gone()])

    def terminate(self) -> None:
        """Ask all ranks to stop, rank 0 last: the others may take its end for a failure."""
        for rank in reversed(self.ranks):
            rank.terminate()

    def ignore_reports(self) -> None:
        """Let reports wake the selector no more: nobody will read them."""
        for rank in self.ranks:
            rank.ignore(self._selector)

    def kill(self) -> None:
        """Kill all ranks and whatever they started; does not wait for them to be gone."""
        self.ignore_reports()
        for rank in self.ranks:
            rank.kill()

    def have_exited(self) -> bool:
        """Whether no rank is left."""
        return all(rank.has_exited() for rank in self.ranks)

    def close(self) -> None:
        """Kill what is left, wait for it to be gone, and close the pipes."""
        self.kill()
        for rank in self.ranks:
            rank.close()
