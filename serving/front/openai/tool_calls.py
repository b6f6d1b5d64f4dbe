"""Finds the calls in the text of a model, while the text arrives in pieces.

Runs in the front, one parser per sequence; no sockets, no waiting. Comes in: text, with the tokens
that mark calls in it. Goes out: pieces: words of the answer, the start of a call, text of its
arguments exactly as generated. Next: `tool_chat.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from serving.front.openai.tool_dialects import Dialect


@dataclass(frozen=True)
class CallStart:
    """A call begins; all pieces of arguments up to the next one are its own."""

    name: str


@dataclass(frozen=True)
class Arguments:
    """A piece of the JSON text of the arguments."""

    text: str


Piece = str | CallStart | Arguments  # a string is a piece of the answer in words


class CallParser:
    """Goes from words to the head of a call, to its arguments, to the head of the next one."""

    def __init__(self, dialect: Dialect, required: bool) -> None:
        """`required`: the output is a call from its first character on."""
        self._dialect = dialect
        self._required = required or not dialect.trigger
        self._words = not self._required  # whether what comes is words; then heads are looked for
        self._final = False  # whether words can no longer end
        self._calls = 0
        self._held = ""  # text that is not understood yet
        self._object: _ObjectEnd | None = None  # while arguments come

    @property
    def in_words(self) -> bool:
        """Whether the last text belonged to the answer in words."""
        return self._words

    def push(self, text: str) -> Iterator[Piece]:
        """Pieces that `text` completes."""
        self._held += text
        while True:
            before = (self._words, self._object, len(self._held))
            if self._object is not None:
                yield from self._read_arguments(self._object)
            elif self._words:
                yield from self._read_words()
            else:
                yield from self._read_head()
            if (self._words, self._object, len(self._held)) == before or not self._held:
                return

    def flush(self) -> Iterator[Piece]:
        """What is left at the end: a call that only seemed to begin was words."""
        if self._held and not self._calls and not self._required:
            yield self._held
        self._held = ""

    def _read_words(self) -> Iterator[str]:
        end = self._end_of_words()
        if end > 0:
            yield self._held[:end]
            self._held = self._held[end:]
        if self._held.startswith(self._dialect.trigger) or self._starts_with_a_call():
            self._words = False

    def _end_of_words(self) -> int:
        """Characters of the held text that are certainly words."""
        trigger = self._dialect.trigger
        if self._dialect.at_start_only:
            start = self._held.lstrip()
            self._final = self._final or (bool(start) and start[0] != trigger[0])
            return len(self._held) if self._final else 0
        found = self._held.find(trigger)
        if found >= 0:
            return found
        for length in range(min(len(trigger) - 1, len(self._held)), 0, -1):
            if trigger.startswith(self._held[-length:]):
                return len(self._held) - length
        return len(self._held)

    def _starts_with_a_call(self) -> bool:
        return (
            self._dialect.at_start_only
            and not self._final
            and self._held.lstrip()[:1] == self._dialect.trigger[0]
        )

    def _read_head(self) -> Iterator[Piece]:
        match = self._dialect.head.search(self._held)
        # At the very end of the text, more could still belong to the head.
        if match is None or match.end() == len(self._held):
            return
        self._calls += 1
        self._held = self._held[match.end() :]
        self._object = _ObjectEnd()
        yield CallStart(self._dialect.read_name(match[1]))
        if self._dialect.arguments_hold_name:
            self._object.find("{")
            yield Arguments("{")

    def _read_arguments(self, end: "_ObjectEnd") -> Iterator[Arguments]:
        length = end.find(self._held)
        if length:
            yield Arguments(self._held[:length])
        self._held = self._held[length:]
        if end.found:
            self._object = None


class _ObjectEnd:
    """Finds the brace that closes a JSON object."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.found = False

    def find(self, text: str) -> int:
        """How many characters of `text` belong to the object."""
        for position, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.found = True
                    return position + 1
        return len(text)
