"""The reports of one rank to the launcher: a pipe of length-prefixed messages.

Runs in the launcher. Comes in: the `ToLauncher` messages of `protocol/messages.py`, each behind
its length (4 bytes, little endian), from a pipe or from another machine. Goes out: the decoded
messages. Next: `rank_process.py`.
"""

import os

import msgspec

from serving.protocol.codec import LENGTH, decode_to_launcher
from serving.protocol.messages import Crash, Progress, ToLauncher

READ_SIZE = 65536


class ReportDecoder:
    """Bytes to messages, and what has come so far."""

    def __init__(self) -> None:
        """Nothing has come yet."""
        self.phase = "engine start"
        self.crash: Crash | None = None
        self._buffer = b""

    def decoded(self, data: bytes) -> list[ToLauncher]:
        """The messages that `data` completes.

        Bytes that are no message count as a crash: what wrote them cannot be trusted with streams.
        """
        self._buffer += data
        messages: list[ToLauncher] = []
        while (body := self._take_frame()) is not None:
            messages.append(self._decoded(body))
            self._note(messages[-1])
        return messages

    def _take_frame(self) -> bytes | None:
        if len(self._buffer) < LENGTH.size:
            return None
        end = LENGTH.size + LENGTH.unpack_from(self._buffer)[0]
        if len(self._buffer) < end:
            return None
        body, self._buffer = self._buffer[LENGTH.size : end], self._buffer[end:]
        return body

    def _decoded(self, body: bytes) -> ToLauncher:
        try:
            message: ToLauncher = decode_to_launcher(body)
        except msgspec.MsgspecError as error:
            cause = f"a report cannot be read: {error}"
            return Crash(self.phase, cause, "see the engine's lines above")
        return message

    def _note(self, message: ToLauncher) -> None:
        if isinstance(message, Progress):
            self.phase = message.phase
        elif isinstance(message, Crash) and self.crash is None:
            self.crash = message


class RankReports(ReportDecoder):
    """Reading end of the pipe of one rank of this machine."""

    def __init__(self) -> None:
        """Open the pipe. `write_fd` is for the rank; close it here once the rank has it."""
        super().__init__()
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self.is_open = True

    def fileno(self) -> int:
        """File descriptor to select on; readable for ever once the rank has gone."""
        return self._read_fd

    def close_write_end(self) -> None:
        """Forget the rank's end, so that end of file means that the rank has gone."""
        os.close(self.write_fd)
        self.write_fd = -1

    def read(self) -> list[ToLauncher]:
        """New messages; never blocks. At end of file `is_open` becomes false."""
        return self.decoded(self.read_bytes())

    def read_bytes(self) -> bytes:
        """The same, not decoded: for passing them on."""
        data = b""
        try:
            while chunk := os.read(self._read_fd, READ_SIZE):
                data += chunk
            self.is_open = False
        except BlockingIOError:
            pass  # all that there is has been read
        return data

    def close(self) -> None:
        """Close the pipe; the object is of no more use."""
        os.close(self._read_fd)
        if self.write_fd >= 0:
            self.close_write_end()
