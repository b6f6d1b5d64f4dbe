"""What the engine says while it decides: lines of its log, kept for the page.

Used by the parts that run code of `serving/`. In: names of loggers. Out: their messages.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Keeper(logging.Handler):
    def __init__(self, kept: list[str]) -> None:
        super().__init__(logging.INFO)
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message that is new."""
        message = record.getMessage()
        if message not in self._kept:
            self._kept.append(message)


@contextmanager
def kept_lines(*names: str) -> Iterator[list[str]]:
    """Messages of these loggers for the length of the block, each once, in their order."""
    kept: list[str] = []
    keeper = _Keeper(kept)
    loggers = [logging.getLogger(name) for name in names]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.addHandler(keeper)
        one.setLevel(logging.INFO)
    try:
        yield kept
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.removeHandler(keeper)
            one.setLevel(level)
