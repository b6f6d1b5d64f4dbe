"""Guided sequences: which tokens their grammar allows next, for a whole batch at once.

Rank 0. `loop.py` hands over a sequence that has a grammar, gets it back when the grammar is
compiled, and asks for the masks of each step; the sequence itself reports its tokens to its
`Guide`. Whatever a grammar does, only its own sequence fails. Next: `logit_rules.py` applies the
masks.
"""

import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor, LLMatcher

from serving.engine.schedule.grammar_compiler import GrammarCompiler, GrammarError
from serving.engine.schedule.guide import Guide
from serving.engine.schedule.sequence import Sequence, SequenceKey
from serving.engine.step.logit_rules import TokenMasks

COMPILING_THREADS = 2
MASK_THREADS = 8  # at most
LONGEST_COMPILATION = 10.0  # seconds that a sequence waits, those of others before it included
WORD_BITS = 32


@dataclass
class _Pending:
    """A sequence that waits for its grammar."""

    sequence: Sequence
    matcher: "Future[LLMatcher]"
    give_up: float  # time.monotonic()


class Guidance:
    """Guides of one engine's sequences; used by the loop's thread only."""

    def __init__(
        self, compiler: GrammarCompiler, vocab_size: int, end_token_ids: list[int]
    ) -> None:
        self._compiler = compiler
        self._end_token_ids = end_token_ids
        self._words = -(-vocab_size // WORD_BITS)
        self._compiling = ThreadPoolExecutor(COMPILING_THREADS, "grammar")
        self._executor = LLExecutor(min(MASK_THREADS, os.cpu_count() or 1))
        self._pending: dict[SequenceKey, _Pending] = {}

    @property
    def num_pending(self) -> int:
        """Sequences that wait for their grammar."""
        return len(self._pending)

    def is_pending(self, key: SequenceKey) -> bool:
        """Whether this sequence waits for its grammar."""
        return key in self._pending

    def prepare(self, sequence: Sequence) -> None:
        """Begin to compile the grammar of `sequence`; `prepared()` gives it back."""
        grammar = sequence.request.grammar
        assert grammar is not None
        matcher = self._compiler.known(grammar)
        future: Future[LLMatcher]
        if matcher is None:
            future = self._compiling.submit(self._compiler.compile, grammar)
        else:
            future = Future()
            future.set_result(matcher)
        give_up = time.monotonic() + LONGEST_COMPILATION
        self._pending[sequence.key] = _Pending(sequence, future, give_up)

    def prepared(self) -> Iterator[tuple[Sequence, str | None]]:
        """Sequences that can start, each with None; those that cannot, each with the reason."""
        for key, pending in list(self._pending.items()):
            if pending.matcher.done():
                del self._pending[key]
                yield pending.sequence, self._attach(pending)
            elif time.monotonic() > pending.give_up:
                self.forget(key)
                yield (
                    pending.sequence,
                    f"grammar is not supported: compiling it takes over {LONGEST_COMPILATION} s",
                )

    def forget(self, key: SequenceKey) -> None:
        """The sequence is not wanted any more."""
        pending = self._pending.pop(key, None)
        if pending is not None:
            pending.matcher.cancel()

    def forget_worker(self, worker: bytes) -> None:
        """The sequences of this front worker are not wanted any more."""
        for key in [key for key in self._pending if key[0] == worker]:
            self.forget(key)

    def masks(self, sequences: Iterable[Sequence]) -> TokenMasks | None:
        """What those of `sequences` that have a guide may choose next; None if there are none.

        All of them are in a row. Nothing is computed until the masks are asked for their bits.
        """
        guided = [sequence for sequence in sequences if sequence.guide is not None]
        if not guided:
            return None
        rows = np.array([sequence.row for sequence in guided])
        guides = [sequence.guide for sequence in guided if sequence.guide is not None]
        return TokenMasks(rows, partial(self._compute_masks, guides))

    def _compute_masks(self, guides: list[Guide]) -> npt.NDArray[np.int32]:
        """Bits [guides, words] of where the tokens of each guide end."""
        bits = np.full((len(guides), self._words), -1, np.int32)
        for guide in guides:
            guide.catch_up()
        matchers = [
            (guide.matcher, index) for index, guide in enumerate(guides) if guide.error is None
        ]
        if matchers:
            self._executor.unsafe_compute_mask_ptr(
                matchers, bits.ctypes.data, self._words * 4, len(guides)
            )
        for index, guide in enumerate(guides):
            if guide.error is not None:
                bits[index] = -1  # its token will not be delivered
        return bits

    def _attach(self, pending: _Pending) -> str | None:
        """Give the sequence its guide, told of the resumed tokens."""
        try:
            guide = Guide(pending.matcher.result(), self._end_token_ids)
        except GrammarError as error:
            return str(error)
        for token_id in pending.sequence.request.resume_token_ids:
            guide.advance(token_id)
        pending.sequence.guide = guide
        return None
