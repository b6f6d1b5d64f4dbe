"""Start the server's processes, watch them, drain and end them; PID 1 of the container.

Runs in the launcher, in one thread around one `select`. Comes in: settings, signals, the engine's
reports, deaths of children. Goes out: the front (first, so that the port answers at once), the
engine, the broadcast `Status`, one last line. `Launcher.run` is the table of contents. Next:
`front/__main__.py` and `engine/process.py`.
"""

import contextlib
import logging
import selectors
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from serving.errors import StartupError
from serving.launcher.engine_process import EngineProcess
from serving.launcher.port_check import check_port_is_free
from serving.launcher.run_directory import RunDirectory, run_directory
from serving.launcher.status_broadcast import StatusBroadcast
from serving.launcher.supervision import Child, SignalPipe, reap_orphans
from serving.models.hub import resolve_model, with_mounted_model
from serving.protocol.messages import Phase, Progress, Started
from serving.settings import NO_MODEL, Settings

logger = logging.getLogger(__name__)

PLATFORM_GRACE = 25.0  # seconds to drain at most: SageMaker kills 30 s after SIGTERM
CLOSING_SECONDS = 3.0  # of the grace, kept for the last errors and for stopping the engine
ANNOUNCE_SECONDS = 0.5  # between "draining" and the closing of the port
ERROR_SECONDS = 1.0  # for fronts to end live requests with an error
STOP_SECONDS = 1.0  # for a process to leave after SIGTERM, once nobody waits for it
SHUTDOWN_MESSAGE = "the server is shutting down"


@dataclass(frozen=True)
class Commands:
    """How the processes are started; settings file and run directory are appended."""

    front: tuple[str, ...] = (sys.executable, "-m", "serving.front")
    engine: tuple[str, ...] = (sys.executable, "-m", "serving.engine")


class Shutdown(Exception):
    """A signal asks the server to stop."""


class ServerFailed(Exception):
    """A process died while the server was serving; `str()` says which and how."""


def launch(settings: Settings, environ: Mapping[str, str], commands: Commands | None = None) -> int:
    """Serve until a signal (returns 0) or a failure (returns 1, after one line on stderr).

    `environ` is what the children inherit. Call from the main thread.
    """
    settings = with_mounted_model(settings)
    try:
        check_port_is_free(settings.listen_address, settings.port)
        with run_directory(settings) as directory:
            launcher = Launcher(settings, directory, environ, commands or Commands())
            with contextlib.closing(launcher):
                return launcher.run()
    except StartupError as error:
        click.echo(str(error), err=True)
        return 1


class Launcher:
    """The supervisor of one server. `run` may be called once."""

    def __init__(
        self,
        settings: Settings,
        directory: RunDirectory,
        environ: Mapping[str, str],
        commands: Commands,
    ) -> None:
        """Take over the signals and open the broadcast; nothing is started yet."""
        self._started_at = time.monotonic()
        self._settings = settings
        self._directory = directory
        self._environ = {**environ, "PROMETHEUS_MULTIPROC_DIR": str(directory.metrics)}
        self._commands = commands
        self._signals = SignalPipe()
        self._status = StatusBroadcast(directory.control_socket)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signal)
        self._front: Child | None = None
        self._engine: EngineProcess | None = None

    # --- life ----------------------------------------------------------------------------------

    def run(self) -> int:
        """Start everything and supervise it; returns the exit code.

        Raises `StartupError` if the server could not start; its processes are stopped by then.
        """
        try:
            self._start_front()
            model_path = self._model_path()
            self._start_engine(model_path, epoch=1)
            self._watch_until(lambda: False)
        except Shutdown:
            self._drain()
        except ServerFailed as failure:
            self._fail(str(failure))
            logger.error("server failed: %s", failure)
            return 1
        except StartupError as error:
            self._fail(str(error))
            raise
        logger.info("stopped")
        return 0

    def close(self) -> None:
        """Kill what is left of the children, then release sockets and signals."""
        if self._front is not None:
            self._front.kill_group()
        if self._engine is not None:
            self._engine.close()
        self._status.close()
        self._selector.close()
        self._signals.close()

    # --- start ---------------------------------------------------------------------------------

    def _start_front(self) -> None:
        command = (*self._commands.front, str(self._directory.settings), str(self._directory.path))
        self._front = Child("front", command, self._environ)

    def _model_path(self) -> Path:
        """Resolve the model in a thread, so that heartbeats and signals go on meanwhile."""
        if self._settings.model_id == NO_MODEL and self._settings.weights_cache_override is None:
            logger.info("no model id is given: serving the embedded demo model")
        found: list[Path | Exception] = []

        def work() -> None:
            try:
                found.append(resolve_model(self._settings))
            except Exception as error:  # raised again below, in the main thread
                found.append(error)
            self._signals.wake()

        # A daemon: a download must not outlive a SIGTERM.
        threading.Thread(target=work, name="model files", daemon=True).start()
        self._watch_until(lambda: bool(found))
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def _start_engine(self, model_path: Path, epoch: int) -> None:
        command, environ = self._commands.engine, self._environ
        self._engine = EngineProcess(command, self._directory, model_path, epoch, environ)
        self._selector.register(self._engine.reports, selectors.EVENT_READ, self._on_report)
        self._change_status("starting")

    # --- events --------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Wait, a heartbeat at most, for events; handle them; send the heartbeat if it is due."""
        for key, _ in self._selector.select(self._status.seconds_left()):
            key.data()
        self._status.beat()

    def _turn_until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Turn until `done()`, so many seconds at most; whether it is done."""
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline:
            self._turn()
        return done()

    def _watch_until(self, done: Callable[[], bool]) -> None:
        """Turn until `done()`. Raises `Shutdown` on a signal, and what a child's death means."""
        while not done():
            self._turn()
            if self._signals.stop is not None:
                logger.info("%s: draining", self._signals.stop.name)
                raise Shutdown
            if self._front_is_gone():
                self._on_front_death()
            if self._engine is not None and self._engine.is_gone():
                self._on_engine_death(self._engine)

    def _on_signal(self) -> None:
        self._signals.read()
        reap_orphans([child.pid for child in self._children()])

    def _on_report(self) -> None:
        """Take the engine's reports; once it has started, the server serves."""
        if self._engine is None:
            return
        reports = self._engine.reports
        for message in reports.read():
            if isinstance(message, Progress):
                logger.debug("engine: %s", message.phase)  # the engine logs it too
                if not self._engine.has_started:
                    self._change_status("starting", message.phase)
            elif isinstance(message, Started):
                self._engine.has_started = True
                self._change_status("serving")
                self._log_ready()
        if not reports.is_open:
            self._ignore_reports()

    def _ignore_reports(self) -> None:
        if self._engine is not None and self._engine.reports in self._selector.get_map():
            self._selector.unregister(self._engine.reports)

    def _log_ready(self) -> None:
        logger.info(
            "ready: serving %s on http://%s:%s, %.1f s after the start",
            self._settings.model_id or "the embedded demo model",
            self._settings.listen_address,
            self._settings.port,
            time.monotonic() - self._started_at,
        )

    def _on_front_death(self) -> None:
        how = self._front.exit_text() if self._front is not None else "not started"
        if self._is_serving():
            raise ServerFailed(f"the HTTP front died: {how}")
        cause = f"the HTTP front ended with {how}"
        raise StartupError("HTTP front", cause, "see the front's lines above")

    def _on_engine_death(self, engine: EngineProcess) -> None:
        """Decide what follows the death of the engine: at present, the end of the server."""
        if engine.reports.crash is None:
            self._on_report()  # its last words may still be in the pipe
        if engine.has_started:
            raise ServerFailed(engine.death())
        raise engine.startup_error()

    # --- state ---------------------------------------------------------------------------------

    def _children(self) -> list[Child]:
        engine = self._engine.child if self._engine is not None else None
        return [child for child in (self._front, engine) if child is not None]

    def _front_is_gone(self) -> bool:
        return self._front is None or self._front.has_exited()

    def _nobody_answers(self) -> bool:
        """Whether requests in flight cannot end well any more, or there are none."""
        return self._front_is_gone() or self._engine is None or self._engine.is_gone()

    def _is_serving(self) -> bool:
        return self._engine is not None and self._engine.has_started

    def _change_status(self, phase: Phase, message: str = "") -> None:
        epoch = self._engine.epoch if self._engine is not None else 0
        self._status.change(epoch, phase, message)

    # --- end -----------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Announce the end, let requests finish, fail the rest, stop; under 25 s in all."""
        grace = min(self._settings.graceful_termination_timeout, PLATFORM_GRACE)
        seconds = max(0.0, grace - CLOSING_SECONDS) if self._is_serving() else 0.0
        deadline = time.monotonic() + seconds
        self._ignore_reports()  # an engine that is still loading must not undo the status
        self._change_status("draining", SHUTDOWN_MESSAGE)
        self._turn_until(self._front_is_gone, min(ANNOUNCE_SECONDS, seconds))
        if self._front is not None:
            self._front.terminate()
        self._turn_until(self._nobody_answers, deadline - time.monotonic())
        if self._is_serving() and not self._front_is_gone():
            self._change_status("failed", SHUTDOWN_MESSAGE)
            self._turn_until(self._front_is_gone, ERROR_SECONDS)
        self._stop_children()

    def _fail(self, message: str) -> None:
        """Let fronts end every live request with `message`, then stop the rest."""
        self._ignore_reports()
        self._change_status("failed", message)
        if self._is_serving():
            self._turn_until(self._front_is_gone, ERROR_SECONDS)
        self._stop_children()

    def _stop_children(self) -> None:
        children = self._children()
        for child in children:
            child.terminate()
        self._turn_until(lambda: all(child.has_exited() for child in children), STOP_SECONDS)
        for child in children:
            child.kill_group()
