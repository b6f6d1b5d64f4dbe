"""The engine's reports to the launcher: a pipe of length-prefixed messages.

Runs in the launcher. Comes in: `Progress`, `Started` and `Crash` of `protocol/messages.py`, each
behind its length (4 bytes, little endian). Goes out: the decoded messages. Next:
`engine_process.py`.
"""

import os
import struct

from serving.protocol.codec import decode_to_launcher
from serving.protocol.messages import Crash, Progress, Started

LENGTH = struct.Struct("<I")
READ_SIZE = 65536


class EngineReports:
    """Reading end of the pipe of one engine, and what has been read from it so far."""

    def __init__(self) -> None:
        """Open the pipe. `write_fd` is for the engine; close it here once the engine has it."""
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._buffer = b""
        self.is_open = True
        self.phase = "engine start"
        self.crash: Crash | None = None

    def fileno(self) -> int:
        """File descriptor to select on; readable for ever once the engine has gone."""
        return self._read_fd

    def close_write_end(self) -> None:
        """Forget the engine's end, so that end of file means that the engine has gone."""
        os.close(self.write_fd)
        self.write_fd = -1

    def read(self) -> list[Progress | Started | Crash]:
        """New messages; never blocks. At end of file `is_open` becomes false.

        Raises `msgspec.DecodeError` for bytes that are no message: the engine is not ours.
        """
        try:
            while chunk := os.read(self._read_fd, READ_SIZE):
                self._buffer += chunk
            self.is_open = False
        except BlockingIOError:
            pass  # all that there is has been read
        messages = self._take_messages()
        for message in messages:
            if isinstance(message, Progress):
                self.phase = message.phase
            elif isinstance(message, Crash):
                self.crash = message
        return messages

    def _take_messages(self) -> list[Progress | Started | Crash]:
        messages = []
        while len(self._buffer) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                break
            messages.append(decode_to_launcher(self._buffer[LENGTH.size : end]))
            self._buffer = self._buffer[end:]
        return messages

    def close(self) -> None:
        """Close the pipe; the object is of no more use."""
        os.close(self._read_fd)
        if self.write_fd >= 0:
            self.close_write_end()
