"""One server of an endpoint: a container that is started, pinged, replaced and stopped.

Runs in the emulator; each server has a thread of its own, which lives as long as the container,
because the kernel ties the container to it. Comes in: `ServerSpec`, `Runner`, `Limits`. Goes out:
the port and whether it may be invoked. Next: `control/hosted.py` owns it, `runtime/` invokes it.
"""

import logging
import threading
import time
from enum import Enum
from pathlib import Path

from local_mode.hosting.container import Container, ServerSpec
from local_mode.hosting.ping import free_port, is_healthy
from local_mode.hosting.runners import Runner
from local_mode.limits import Limits

logger = logging.getLogger(__name__)


class State(Enum):
    """What a server is doing."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"  # fails pings, or is being replaced
    FAILED = "failed"  # never became ready
    STOPPED = "stopped"


class Server:
    """A server; `start` once, `stop` at any time. All members may be used from any thread."""

    def __init__(self, spec: ServerSpec, runner: Runner, limits: Limits, log: Path) -> None:
        self.spec = spec
        self.log = log
        self.state = State.STARTING
        self.failure = ""  # why it is FAILED, or was last replaced
        self.restarts = 0
        self.port = 0
        self.pid = 0
        self.runner_name = runner.name
        self._runner = runner
        self._limits = limits
        self._asked_to_stop = threading.Event()
        self._settled = threading.Event()  # ready, failed or stopped
        self._thread = threading.Thread(target=self._run, name=f"server {spec.name}", daemon=True)

    def start(self) -> None:
        """Start the container, and pinging it."""
        self._thread.start()

    def wait(self) -> bool:
        """Wait for the start to succeed or fail; True if it is ready."""
        self._settled.wait()
        return self.state in (State.READY, State.UNHEALTHY)

    def ask_to_stop(self) -> None:
        """Have the container stopped, without waiting."""
        self._asked_to_stop.set()

    def stop(self) -> None:
        """Stop the container and wait for its end."""
        self.ask_to_stop()
        if self._thread.ident is not None:
            self._thread.join()

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        container: Container | None = None
        try:
            container = self._begin()
            if not self._becomes_ready(container):
                return
            while not self._asked_to_stop.is_set():
                self._become(State.READY)
                cause = self._watch(container)
                if cause:
                    container = self._replace(container, cause)
        except OSError as error:
            self.failure = f"the container could not be started: {error}"
        finally:
            self._end(container)

    def _begin(self) -> Container:
        self.port = free_port()
        container = Container(self._runner.launch(self.spec, self.port), self.log)
        self.pid = container.pid
        logger.info(
            "server %s: started (%s, port %d)", self.spec.name, self._runner.name, self.port
        )
        return container

    def _end(self, container: Container | None) -> None:
        if container is not None:
            container.stop(self._limits.stop_seconds)
        stopped = self._asked_to_stop.is_set()
        self._become(State.STOPPED if stopped else State.FAILED)
        if not stopped:
            logger.error("server %s: %s", self.spec.name, self.failure)

    def _become(self, state: State) -> None:
        if state is not self.state:
            logger.info("server %s: %s", self.spec.name, state.value)
        self.state = state
        self._settled.set()

    def _becomes_ready(self, container: Container) -> bool:
        """Ping until the first 200; False with `failure` set if it does not come in time."""
        seconds = self.spec.startup_seconds or self._limits.startup_seconds
        deadline = time.monotonic() + seconds
        while not is_healthy(self.port, self._limits.ping_seconds):
            if container.has_exited():
                self.failure = f"the container ended with {container.exit_text()}"
            elif time.monotonic() > deadline:
                self.failure = f"GET /ping did not answer 200 within {seconds:g} s"
            if container.has_exited() or time.monotonic() > deadline:
                last = container.last_line()
                self.failure += f"; its last line: {last}" if last else "; it wrote no line"
                return False
            if self._asked_to_stop.wait(self._limits.startup_ping_period):
                return False
        return True

    def _watch(self, container: Container) -> str:
        """Ping a ready server until it must be replaced: the cause, or "" when asked to stop."""
        failed = 0
        while not self._asked_to_stop.wait(self._limits.ping_period):
            if container.has_exited():
                return f"the container ended with {container.exit_text()}"
            if is_healthy(self.port, self._limits.ping_seconds):
                failed = 0
                self._become(State.READY)
                continue
            failed += 1
            self._become(State.UNHEALTHY)
            if failed >= self._limits.failed_pings:
                return f"{failed} pings in a row failed"
        return ""

    def _replace(self, container: Container, cause: str) -> Container:
        """Stop it and start another until one is ready, as the platform does, without an end."""
        self._become(State.UNHEALTHY)
        while True:
            self.restarts += 1
            self.failure = cause
            logger.warning("server %s: %s; starting another", self.spec.name, cause)
            container.stop(self._limits.stop_seconds)
            if self._asked_to_stop.wait(self._limits.restart_pause):
                return container
            container = self._begin()
            if self._becomes_ready(container) or self._asked_to_stop.is_set():
                return container
            cause = self.failure
