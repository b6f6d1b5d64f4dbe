"""Goes once through the bytes of a GGUF header, value by value. Used by `file.py`. No torch.

Every length is compared with a limit and with what is left of the file before anything is read.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

from serving.models.gguf.fault import refuse

MOST_ENTRIES = 2**16  # keys, and tensors: the largest models have some thousands
LONGEST_NAME = 2**10  # bytes of a key or of a tensor's name
LONGEST_TEXT = 2**27  # bytes: a whole tokenizer.json may be a value
LONGEST_ARRAY = 2**24  # elements: the largest vocabularies have some hundred thousand
# Value type -> its form for `struct`; strings and arrays have their own readers.
NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
STRING, ARRAY = 8, 9


class Cursor:
    """A place in a file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        """At the start."""
        self._path, self._data = path, data
        self.at = 0

    def value(self, kind: int, is_skipped: bool) -> Any:
        """A value of the type `kind`; None if it is skipped."""
        if kind == ARRAY:
            return self._array(is_skipped)
        if kind != STRING:
            return self.number(self._form(kind))
        if not is_skipped:
            return self.text()
        self._skip_strings(1)
        return None

    def text(self) -> str:
        """A string; bytes that are no UTF-8 are replaced, as they are in some vocabularies."""
        length = self.number("Q")
        if length > LONGEST_TEXT:
            refuse(self._path, f"a string of {length} bytes")
        return self.take(length).decode("utf-8", errors="replace")

    def name(self, what: str) -> str:
        """A key or a tensor's name."""
        length = self.number("Q")
        if not 0 < length <= LONGEST_NAME:
            refuse(self._path, f"a {what} of {length} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            refuse(self._path, f"a {what} is not UTF-8")

    def count(self, what: str) -> int:
        """How many `what` follow."""
        count = int(self.number("Q"))
        if count > MOST_ENTRIES:
            refuse(self._path, f"it claims {count} {what}")
        return count

    def number(self, form: str) -> Any:
        """A number of a form of `struct`."""
        return struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0]

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self._check_left(count, "header")
        self.at += count
        return self._data[self.at - count : self.at]

    def _array(self, is_skipped: bool) -> list[Any] | None:
        kind, count = self.number("I"), self.number("Q")
        if count > LONGEST_ARRAY:
            refuse(self._path, f"an array of {count} elements")
        if kind == STRING:
            self._check_left(8 * count, "array")
            if not is_skipped:
                return [self.text() for _ in range(count)]
            self._skip_strings(count)
            return None
        form = self._form(kind)
        values = self.take(struct.calcsize(form) * count)
        return None if is_skipped else list(struct.unpack(f"<{count}{form}", values))

    def _skip_strings(self, count: int) -> None:
        """Past `count` strings; a vocabulary has some hundred thousand, so this is a tight loop."""
        data, at, length = self._data, self.at, struct.Struct("<Q").unpack_from
        end = len(data) - 8
        for _ in range(count):
            if at > end:
                break
            at += 8 + length(data, at)[0]
        self.at = at
        self._check_left(0, "string")

    def _form(self, kind: int) -> str:
        if kind not in NUMBERS:
            refuse(self._path, f"value type {kind} is unknown")
        return NUMBERS[kind]

    def _check_left(self, count: int, what: str) -> None:
        if self.at + count > len(self._data):
            refuse(self._path, f"its {what} ends beyond its {len(self._data)} bytes")
