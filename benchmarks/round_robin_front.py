"""The real front with another router: sequences go round the engines, whatever these have cached.

Started by `round_robin_server.py` in place of `serving.front`, with the same arguments. Measured by
`replica_routing.py`, as what prefix-aware routing is compared with.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from serving.front.__main__ import main  # patches the standard library before all that follows

from serving.front import engine_client  # isort: skip
from serving.front.routing import Router  # isort: skip


class RoundRobin(Router):
    """Every engine in its turn."""

    def __init__(self, num_groups: int, block_size: int, slack: int, limit: int) -> None:
        super().__init__(num_groups, block_size, slack, limit)
        self._turn = 0

    def choose(self, connected: Sequence[int], token_ids: list[int]) -> int:
        """The next one."""
        self._turn += 1
        return self._count(connected[self._turn % len(connected)])


if __name__ == "__main__":
    with patch.object(engine_client, "Router", RoundRobin):
        main(Path(sys.argv[1]), Path(sys.argv[2]))
