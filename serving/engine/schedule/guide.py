"""The place in its grammar that one guided sequence has reached.

Rank 0. Made by `guidance.py`, told of every token by `sequence.py`. A pure function of grammar and
tokens. Tokens are only noted at first: `catch_up()` runs while the device is busy with the next
forward pass.
"""

from llguidance import LLMatcher

from serving.engine.schedule.grammar_compiler import one_line


class Guide:
    """One sequence's matcher."""

    def __init__(self, matcher: LLMatcher, end_token_ids: list[int]) -> None:
        """`matcher` is owned; `end_token_ids` may be empty if the model has none."""
        self.matcher = matcher
        self._end_token_ids = end_token_ids
        self._unread: list[int] = []
        self._ended = False

    @property
    def error(self) -> str | None:
        """Why it can go no further, if so: it was too complex for the last `catch_up()`."""
        if not self.matcher.is_error():
            return None
        return f"grammar cannot be followed: {one_line(self.matcher.get_error())}"

    @property
    def finished(self) -> bool:
        """Whether the text is complete: by an end token, or, without one, by the grammar."""
        if self._end_token_ids:
            return self._ended
        self.catch_up()
        return self.matcher.is_stopped() and not self.matcher.is_error()

    def advance(self, token_id: int) -> None:
        """The sequence has got this token."""
        self._unread.append(token_id)
        self._ended = token_id in self._end_token_ids

    def catch_up(self) -> None:
        """Move the matcher to where the tokens end."""
        if self._unread:
            self.matcher.consume_tokens(self._unread)
            self._unread.clear()
