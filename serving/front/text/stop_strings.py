"""Finds stop strings in a text that arrives in pieces.

Runs in the front, one matcher per sequence. Comes in: pieces of text, visible or (special tokens)
not. Goes out: the visible text that may be shown. Two ways: `keep` shows the stop string and
everything up to it at once (TGI), otherwise it is hidden, so a piece that might be the beginning
of one is held back (OpenAI). Next: `generation.py`.
"""

from collections.abc import Sequence


class StopStrings:
    """Matcher of one sequence; `matched` is the stop string found, if any."""

    def __init__(self, stops: Sequence[str], keep: bool) -> None:
        self._stops = [stop for stop in stops if stop]
        self._keep = keep
        self._reach = max((len(stop) for stop in self._stops), default=1) - 1
        self._text = ""  # the end of the text so far, long enough to begin any stop string
        self._visible = bytearray()  # per character of _text
        self._shown = 0  # characters of _text already dealt with
        self.matched: str | None = None

    def push(self, piece: str, visible: bool = True) -> str:
        """Take the next piece; the result is the visible text that is now certain."""
        if not self._stops:
            return piece if visible else ""
        seen = len(self._text)
        self._text += piece
        self._visible += bytes([visible]) * len(piece)
        match = self._first_match(seen)
        if match is not None:
            start, self.matched = match
            return self._show(start + len(self.matched) if self._keep else start)
        held = 0 if self._keep else self._possible_beginning()
        text = self._show(len(self._text) - held)
        self._forget()
        return text

    def flush(self) -> str:
        """The text held back, when no more follows."""
        return self._show(len(self._text))

    def _first_match(self, seen: int) -> tuple[int, str] | None:
        """Start and stop string of the match that ends first, after character `seen`."""
        best: tuple[int, str] | None = None
        for stop in self._stops:
            start = self._text.find(stop, max(0, seen - len(stop) + 1))
            if start >= 0 and (best is None or start + len(stop) < best[0] + len(best[1])):
                best = (start, stop)
        return best

    def _possible_beginning(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for length in range(min(self._reach, len(self._text)), 0, -1):
            end = self._text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0

    def _show(self, until: int) -> str:
        start, self._shown = self._shown, max(self._shown, until)
        return "".join(
            character
            for character, visible in zip(
                self._text[start:until], self._visible[start:until], strict=True
            )
            if visible
        )

    def _forget(self) -> None:
        excess = len(self._text) - self._reach
        if excess > 0:
            self._text = self._text[excess:]
            del self._visible[:excess]
            self._shown -= excess
