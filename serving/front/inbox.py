"""What has come for a request while it was busy or asleep.

Runs in the front, one per `Generation`. Comes in: items, put by the greenlet that reads the
engine's messages. Goes out: all that is there, at once, to the one greenlet that waits. Next:
`generation.py`.
"""

from collections import deque
from typing import Generic, TypeVar

import gevent
from gevent.event import Event

MOST_AT_ONCE = 32  # items, so that a request with many of them lets others run in between

Item = TypeVar("Item")


class Inbox(Generic[Item]):
    """A queue with one reader, who takes what is there instead of item after item."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._filled = Event()

    def put(self, item: Item) -> None:
        """Add an item and wake the reader; safe in the event loop."""
        self._items.append(item)
        self._filled.set()

    def take(self, seconds: float) -> list[Item]:
        """The oldest items, at most `MOST_AT_ONCE`; none after so many seconds of silence."""
        if self._items:
            gevent.sleep(0)  # more than one helping: the others first
        else:
            self._filled.clear()
            self._filled.wait(seconds)
        count = min(len(self._items), MOST_AT_ONCE)
        return [self._items.popleft() for _ in range(count)]
