"""Which group of ranks gets a sequence: the one that knows its prompt, unless it is too busy.

Runs in each front worker, no sockets. Comes in: `Load` reports of the engines, prompts. Goes out:
the number of a group. Holds as many digests per group as its engine has cached blocks. Next:
`engine_client.py`, which sends the sequence there.
"""

from collections.abc import Sequence

from serving.protocol.messages import Load
from serving.protocol.prefix_hash import reusable_digests


class _Group:
    """What is known of one engine."""

    def __init__(self) -> None:
        self.cached: set[bytes] = set()
        self.load = 0  # sequences: of its last report, plus ours sent and less ours ended since
        self.chosen = 0  # number of the last choice that fell on it


class Router:
    """Chooses between groups; with one there is nothing to choose, and it costs nothing."""

    def __init__(self, num_groups: int, block_size: int, slack: int, limit: int) -> None:
        """`slack`: sequences more than the least loaded that a group may have and still be chosen
        for its cache; `limit`: sequences at which an engine refuses more."""
        self._groups = [_Group() for _ in range(num_groups)]
        self._block_size = block_size
        self._slack = slack
        self._limit = limit
        self._choices = 0

    def begin(self, group: int) -> None:
        """A new engine, with nothing cached and nothing to do, serves the group."""
        self._groups[group].cached.clear()
        self._groups[group].load = 0

    def report(self, group: int, load: Load) -> None:
        """Take over what an engine says of itself."""
        known = self._groups[group]
        known.load = load.num_live
        known.cached.difference_update(load.evicted)
        known.cached.update(load.published)

    def ended(self, group: int) -> None:
        """A sequence of ours has left the group; a short one may have come in no report at all."""
        self._groups[group].load = max(0, self._groups[group].load - 1)

    def choose(self, connected: Sequence[int], token_ids: list[int]) -> int:
        """One of the connected groups, at least one, for a sequence of these tokens.

        The longest cached prefix among the groups that are not too busy; then the least load;
        then the one that was not chosen for longest.
        """
        if len(connected) == 1:
            return self._count(connected[0])
        least = min(self._groups[group].load for group in connected)
        most = max(least, min(least + self._slack, self._limit - 1))
        idle = [group for group in connected if self._groups[group].load <= most]
        groups = self._longest_prefix(idle, token_ids)
        return self._count(min(groups, key=self._load_and_turn))

    def _longest_prefix(self, groups: list[int], token_ids: list[int]) -> list[int]:
        """Those of the groups that hold the longest prefix; all, if none holds anything."""
        holders = [group for group in groups if self._groups[group].cached]
        best = groups
        for digest in reusable_digests(token_ids, self._block_size) if holders else ():
            holders = [group for group in holders if digest in self._groups[group].cached]
            if not holders:
                break
            best = holders
        return best

    def _load_and_turn(self, group: int) -> tuple[int, int]:
        return self._groups[group].load, self._groups[group].chosen

    def _count(self, group: int) -> int:
        self._choices += 1
        self._groups[group].load += 1
        self._groups[group].chosen = self._choices
        return group
