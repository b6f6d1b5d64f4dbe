"""Which cached prefixes open sessions keep for their next request, within a share of the pool.

Rank 0, no torch. Called by `scheduler.py`, which tells the end of each sequence and asks for room,
and by `intake.py`, which tells the end of sessions. A pin is a reference in `block_manager.py`: its
blocks are not evicted for sequences that wait. Lost pins cost time only: the prefix is computed
again. Next: `block_manager.py`.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from serving.engine.schedule.block_manager import BlockManager
from serving.protocol.messages import Session

NEVER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class _Pin:
    blocks: list[int]  # first block first, each held once by this pin
    expires_ns: int  # CLOCK_MONOTONIC


class SessionPins:
    """One pin for each session that has one, in the order of their last use."""

    def __init__(self, blocks: BlockManager, most_blocks: int) -> None:
        """`most_blocks`: of all pins together; 0: no session has a pin."""
        self._blocks = blocks
        self._most_blocks = most_blocks
        self._pins: dict[str, _Pin] = {}
        self._holders: Counter[int] = Counter()  # block to the number of pins on it
        self._next_expiry_ns = NEVER  # no pin expires before

    @property
    def num_blocks(self) -> int:
        """Blocks that are held, each counted once."""
        return len(self._holders)

    def pin(self, session: Session, digests: list[bytes]) -> None:
        """Hold the published blocks of the session's last sequence instead of what it held before.

        Beyond the limit the longest unused sessions lose their pins, and the sequence its tail.
        """
        blocks = self._blocks.published(digests)[: self._most_blocks]
        self._blocks.reference(blocks)  # before the earlier pin on the same blocks goes
        self.drop(session.id)
        if blocks:
            self._holders.update(blocks)
            self._pins[session.id] = _Pin(blocks, session.expires_ns)
            self._next_expiry_ns = min(self._next_expiry_ns, session.expires_ns)
        while len(self._holders) > self._most_blocks:
            self.drop_oldest()

    def drop(self, session_id: str) -> None:
        """The session is closed; unknown ones have no pin."""
        pin = self._pins.pop(session_id, None)
        if pin is None:
            return
        self._blocks.release(pin.blocks)
        self._holders.subtract(pin.blocks)
        for block in pin.blocks:
            if not self._holders[block]:
                del self._holders[block]

    def drop_oldest(self) -> bool:
        """Drop the pin that was not used for longest; False if there is none."""
        for session_id in self._pins:
            self.drop(session_id)
            return True
        return False

    def drop_expired(self) -> None:
        """Drop the pins of sessions whose time is over; called each turn, so it rarely looks."""
        now = time.monotonic_ns()
        if now < self._next_expiry_ns:
            return
        for session_id in [name for name, pin in self._pins.items() if pin.expires_ns <= now]:
            self.drop(session_id)
        self._next_expiry_ns = min((pin.expires_ns for pin in self._pins.values()), default=NEVER)

    def references(self) -> Iterator[int]:
        """Every block, as often as it is held."""
        return self._holders.elements()
