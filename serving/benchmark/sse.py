"""Incremental parser of server-sent events.

Runs in the benchmark process. In: pieces of a response body as they come off the socket, cut
anywhere. Out: the complete `data` payloads. Next: `routes.py` interprets a payload.
"""


class EventParser:
    """Turns body pieces into event payloads; keeps what is incomplete for the next piece."""

    def __init__(self) -> None:
        self._partial_line = b""
        self._data_lines: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the payloads of the events that `piece` completes, in order.

        Several `data:` lines of one event are joined by a newline; comments and the other fields
        of an event are skipped.
        """
        *lines, self._partial_line = (self._partial_line + piece).split(b"\n")
        events = []
        for raw_line in lines:
            line = raw_line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data_lines.append(line[5:].removeprefix(b" "))
            elif not line and self._data_lines:
                events.append(b"\n".join(self._data_lines))
                self._data_lines.clear()
        return events
