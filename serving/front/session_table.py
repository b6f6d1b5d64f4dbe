"""The open sessions of the server, shared by its worker processes.

Runs in each front worker, plain files, no Flask. Comes in: ids. Goes out: `Session`s with the time
that is left to them. Next: `platforms/sessions.py`.

An open session is an empty file in the run directory; its modification time is the moment of its
end. So every worker sees the same sessions, they outlive workers and engines, and a look costs one
system call. They end with the server, as the cached prefixes do that they stand for.
"""

import os
import re
import time
import uuid
from pathlib import Path

from serving.protocol.messages import Session

MOST_SESSIONS = 4096
ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # also keeps paths out


class TooManySessions(Exception):
    """`MOST_SESSIONS` are open."""


class SessionTable:
    """Opens, finds and closes sessions; made by each worker on the same directory."""

    def __init__(self, directory: Path, seconds: int) -> None:
        """`seconds`: life of a session, from its opening. Raises `OSError`."""
        directory.mkdir(mode=0o700, exist_ok=True)
        self._directory = directory
        self._seconds = seconds

    def open(self) -> tuple[str, int]:
        """(id, end in Unix seconds) of a new session. Raises `TooManySessions` or `OSError`."""
        if self._count() >= MOST_SESSIONS:
            self._forget_expired()
            if self._count() >= MOST_SESSIONS:
                raise TooManySessions
        session_id, end = str(uuid.uuid4()), int(time.time()) + self._seconds
        path = self._directory / session_id
        path.touch(mode=0o600)
        os.utime(path, (end, end))
        return session_id, end

    def find(self, session_id: str) -> Session | None:
        """The session, if it is open."""
        seconds = self._seconds_left(session_id)
        if seconds <= 0:
            return None
        return Session(session_id, time.monotonic_ns() + int(seconds * 1e9))

    def close(self, session_id: str) -> bool:
        """End a session; whether it was open. Raises `OSError`."""
        was_open = self._seconds_left(session_id) > 0
        if was_open:
            (self._directory / session_id).unlink(missing_ok=True)
        return was_open

    def _seconds_left(self, session_id: str) -> float:
        """Zero or less if the session has ended or never was."""
        if not ID.fullmatch(session_id):
            return 0.0
        try:
            return (self._directory / session_id).stat().st_mtime - time.time()
        except FileNotFoundError:
            return 0.0

    def _count(self) -> int:
        return len(os.listdir(self._directory))

    def _forget_expired(self) -> None:
        for name in os.listdir(self._directory):
            if self._seconds_left(name) <= 0:
                (self._directory / name).unlink(missing_ok=True)
