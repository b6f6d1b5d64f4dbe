"""Owner of the KV blocks: who uses which, what is cached, what is evicted. Rank 0, no torch.

Invariant: every block is in exactly one of three states: referenced by at least one sequence or
by the pin of a session, cached (unreferenced, but holding a published prefix; least recently used
first), or free. A cached block can be taken back by a sequence with the same prefix or evicted for
a new one; a referenced block never moves. `check_idle()` asserts it. Called by `scheduler.py` and
`session_pins.py`; `loop.py` takes what changed in the prefix cache, for the routers in the front.
"""

import itertools
from collections import Counter, OrderedDict
from collections.abc import Iterable

from serving.protocol.prefix_hash import block_digest, reusable_digests


class BlockManager:
    """Reference-counted blocks with a prefix cache of chained hashes over full blocks."""

    def __init__(
        self, num_blocks: int, block_size: int, prefix_caching: bool, record_changes: bool = False
    ) -> None:
        """`record_changes`: keep what `take_changes` returns; somebody must take it."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._prefix_caching = prefix_caching
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._record_changes = record_changes
        self._new: set[bytes] = set()  # published since the changes were taken, and still here
        self._gone: set[bytes] = set()  # evicted since, and not published again

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out."""
        return len(self._free) + len(self._cached)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def match(self, token_ids: list[int]) -> tuple[list[int], list[bytes]]:
        """Longest cached prefix: (its blocks, their digests). References nothing yet."""
        blocks: list[int] = []
        digests: list[bytes] = []
        if not self._prefix_caching:
            return blocks, digests
        for digest in reusable_digests(token_ids, self.block_size):
            block = self._block_of.get(digest)
            if block is None:
                break
            blocks.append(block)
            digests.append(digest)
        return blocks, digests

    def published(self, digests: list[bytes]) -> list[int]:
        """The cached blocks of a chain of digests, as `match` finds them: first block first."""
        known = itertools.takewhile(self._block_of.__contains__, digests)
        return [self._block_of[digest] for digest in known]

    def available_beside(self, blocks: list[int]) -> int:
        """Blocks that could be allocated once these (cached ones among them) are referenced."""
        return self.num_available - sum(not self._references[block] for block in blocks)

    def reference(self, blocks: list[int]) -> None:
        """One more sequence, or the pin of a session, uses these blocks of the prefix cache."""
        for block in blocks:
            if not self._references[block]:
                del self._cached[block]
            self._references[block] += 1

    def allocate(self) -> int:
        """A block for one sequence, evicting the least recently used prefix if none is free.

        The caller has checked `num_available`.
        """
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            self._unpublish(block)
        self._references[block] = 1
        return block

    def publish(
        self, token_ids: list[int], num_computed: int, blocks: list[int], digests: list[bytes]
    ) -> None:
        """Offer a sequence's newly filled blocks to others; extends `digests` in place."""
        if not self._prefix_caching:
            return
        for index in range(len(digests), num_computed // self.block_size):
            start = index * self.block_size
            parent = digests[-1] if digests else b""
            digest = block_digest(parent, token_ids[start : start + self.block_size])
            digests.append(digest)
            # Two sequences may compute the same prefix at once; the first one's block is kept.
            if digest not in self._block_of:
                self._block_of[digest] = blocks[index]
                self._digest_of[blocks[index]] = digest
                self._record(digest, now_in=self._new, before_in=self._gone)

    def release(self, blocks: list[int]) -> None:
        """A sequence or a pin lets go. Tails are evicted before the prefixes they need."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block]:
                continue
            if block in self._digest_of:
                self._cached[block] = None
            else:
                self._free.append(block)

    def check_idle(self, pinned: Iterable[int] = ()) -> None:
        """Assert the invariant for a moment without sequences: nothing is referenced or lost.

        `pinned`: blocks that sessions hold, as often as they do.
        """
        pins = Counter(pinned)
        held = [block for block, count in enumerate(self._references) if count != pins[block]]
        assert not held, f"blocks {held[:10]} are still referenced while idle"
        states = sorted([*self._free, *self._cached, *pins])
        assert states == list(range(self.num_blocks)), "blocks were lost or doubled"
        kept = {*self._cached, *pins}
        assert set(self._digest_of) == kept, "a published block is not cached"

    def cached_digests(self) -> list[bytes]:
        """Every prefix that `match` can find now."""
        return list(self._block_of)

    def take_changes(self) -> tuple[list[bytes], list[bytes]]:
        """(published, evicted) since the last call: net changes, so no digest is in both."""
        changes = list(self._new), list(self._gone)
        self._new.clear()
        self._gone.clear()
        return changes

    def _unpublish(self, block: int) -> None:
        digest = self._digest_of.pop(block)
        del self._block_of[digest]
        self._record(digest, now_in=self._gone, before_in=self._new)

    def _record(self, digest: bytes, now_in: set[bytes], before_in: set[bytes]) -> None:
        """Note a change; two opposite ones since the last report are none."""
        if not self._record_changes:
            return
        if digest in before_in:
            before_in.remove(digest)
        else:
            now_in.add(digest)
