"""Tells the front's routers how loaded this engine is and which prefixes it has cached.

Rank 0, only where an engine has siblings. Used by `loop.py` after each turn. Next: `mailbox.py`,
`front/routing.py`.
"""

import time

from serving.engine.mailbox import Mailbox
from serving.engine.schedule.block_manager import BlockManager

REPORT_SECONDS = 0.05  # between two reports, at least


class LoadReports:
    """Sends what has changed since the last report to every worker."""

    def __init__(self, mailbox: Mailbox, blocks: BlockManager) -> None:
        """`blocks` must record its changes."""
        self._mailbox = mailbox
        self._blocks = blocks
        self._due = 0.0
        self._num_live = 0

    def send_if_due(self, num_live: int) -> None:
        """`num_live`: sequences that have not ended."""
        if self._mailbox.newcomers:
            self._welcome(num_live)
        now = time.monotonic()
        if now < self._due:
            return
        published, evicted = self._blocks.take_changes()
        if num_live != self._num_live or published or evicted:
            self._mailbox.send_load(num_live, published, evicted)
            self._num_live, self._due = num_live, now + REPORT_SECONDS

    def _welcome(self, num_live: int) -> None:
        """Tell everybody what changed, then the new ones everything: nobody is told twice."""
        newcomers = self._mailbox.newcomers.copy()
        self._mailbox.newcomers.clear()
        published, evicted = self._blocks.take_changes()
        self._mailbox.send_load(num_live, published, evicted, but=newcomers)
        self._mailbox.send_load(num_live, self._blocks.cached_digests(), [], only=newcomers)
