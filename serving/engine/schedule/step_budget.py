"""How much one step may hold: tokens and rows, as configured, or less after memory ran out.

Rank 0 only, no torch. Owned by `scheduler.py`, which fills steps up to it. A step that ran out of
memory halves it, relative to what that step held; steps that run to their end bring it back.
"""

from dataclasses import dataclass

STEPS_TO_RECOVER = 200  # completed ones until the budget doubles again


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step holds, or may hold at most."""

    tokens: int
    rows: int


class StepBudget:
    """Bounds of the next step. `tokens` and `rows` are never below one block and one row."""

    def __init__(self, configured: StepSize, block_size: int) -> None:
        """`block_size`: tokens that a step may always have (or all of them, if they are fewer)."""
        self._configured = configured
        self._least_tokens = min(block_size, configured.tokens)
        self._completed = 0
        self.tokens = configured.tokens
        self.rows = configured.rows

    @property
    def is_shrunk(self) -> bool:
        """Whether steps are bound to less than what is configured."""
        return self.tokens < self._configured.tokens or self.rows < self._configured.rows

    def can_shrink(self, used: StepSize, whole_prompts: bool) -> bool:
        """Whether a smaller step than one that held `used` could be planned.

        `whole_prompts`: the tokens of a single row cannot be divided.
        """
        return used.rows > 1 or (used.tokens > self._least_tokens and not whole_prompts)

    def shrink(self, used: StepSize) -> None:
        """Halve what the next steps may hold, relative to one that held `used`.

        What a single row needed, its tokens needed: the number of rows then stays as it is.
        """
        self.tokens = min(self.tokens, max(self._least_tokens, used.tokens // 2))
        if used.rows > 1:
            self.rows = used.rows // 2
        self._completed = 0

    def step_completed(self) -> None:
        """A step ran to its end; after enough of them the budget doubles."""
        if not self.is_shrunk:
            return
        self._completed += 1
        if self._completed == STEPS_TO_RECOVER:
            self.tokens = min(2 * self.tokens, self._configured.tokens)
            self.rows = min(2 * self.rows, self._configured.rows)
            self._completed = 0
