"""Something with a status and a server behind it: the life of endpoints and components.

Runs in the emulator; each change of server has a thread of its own. Comes in: how the next server
is made. Goes out: the status that Describe calls show. A new server takes the place of the old one
only when it is ready. Next: `hosting/server.py`.
"""

import threading
from collections.abc import Callable

from local_mode.control.catalogue import now
from local_mode.errors import LocalModeError
from local_mode.hosting.server import Server

LONGEST_REASON = 1024  # characters of a FailureReason
PING_FAILED = "The primary container did not pass the ping health check"

MakeServer = Callable[[], Server]


class Hosted:
    """A status and at most one server in service. Methods are called under `lock`."""

    def __init__(self, name: str, lock: threading.RLock) -> None:
        self.name = name
        self.status = "Creating"
        self.failure_reason = ""
        self.created = self.modified = now()
        self.server: Server | None = None
        self._coming: Server | None = None
        self._lock = lock
        self._is_gone = False

    def create(self, make: MakeServer) -> None:
        """Start the first server: Creating, then InService or Failed."""
        self._start("Creating", "Failed", make, lambda: None)

    def create_without_server(self) -> None:
        """In service at once: an endpoint for components, a component of no copies."""
        self._change("InService")

    def replace(self, make: MakeServer, adopt: Callable[[], None]) -> None:
        """Bring up another server beside the one in service, then take its place.

        `adopt` is called under the lock when it does. If it fails, the old one stays, and the
        status is InService again with the reason of the failure.
        """
        self._start("Updating", "InService", make, adopt)

    def drop_server(self) -> None:
        """Go on in service without a server."""
        server, self.server = self.server, None
        if server is not None:
            server.ask_to_stop()
        self._change("InService")

    def remove(self, forget: Callable[[], None]) -> None:
        """Deleting; `forget` is called under the lock when the servers have ended."""
        self._is_gone = True
        self._change("Deleting")
        servers = self.servers()
        for server in servers:
            server.ask_to_stop()
        threading.Thread(target=self._finish_removal, args=(servers, forget), daemon=True).start()

    def servers(self) -> list[Server]:
        """The one in service and the one that is coming."""
        return [server for server in (self.server, self._coming) if server is not None]

    def _finish_removal(self, servers: list[Server], forget: Callable[[], None]) -> None:
        for server in servers:
            server.stop()
        with self._lock:
            forget()

    def _start(
        self, meanwhile: str, if_failed: str, make: MakeServer, adopt: Callable[[], None]
    ) -> None:
        self._change(meanwhile)
        arguments = (make, adopt, if_failed)
        threading.Thread(target=self._bring_up, args=arguments, daemon=True).start()

    def _bring_up(self, make: MakeServer, adopt: Callable[[], None], if_failed: str) -> None:
        try:
            server = make()
        except LocalModeError as error:
            with self._lock:
                self._change_unless_gone(if_failed, str(error))
            return
        with self._lock:
            if self._is_gone:
                return
            self._coming = server
            server.start()
        ready = server.wait()
        old: Server | None = None
        with self._lock:
            if ready and not self._is_gone:
                old, self.server = self.server, server
                adopt()
            self._coming = None
            reason = "" if ready else f"{PING_FAILED}: {server.failure}. Log: {server.log}"
            self._change_unless_gone("InService" if ready else if_failed, reason)
        if old is not None:
            old.stop()

    def _change_unless_gone(self, status: str, reason: str) -> None:
        if not self._is_gone:
            self._change(status, reason)

    def _change(self, status: str, reason: str = "") -> None:
        self.status = status
        self.failure_reason = reason[:LONGEST_REASON]
        self.modified = now()
