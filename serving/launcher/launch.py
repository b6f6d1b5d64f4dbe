"""Start the server's processes, watch them, drain and end them; PID 1 of the container.

Runs in the launcher, in one thread around one `select`. Comes in: settings, signals, the ranks'
reports, deaths of children. Goes out: the front (first, so that the port answers at once), the
engine groups, the broadcast `Status`, one last line. `Launcher.run` is the table of contents.
Next: `engine_groups.py`, `front/__main__.py` and `engine/process.py`.
"""

import contextlib
import logging
import selectors
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import click

from serving.errors import StartupError
from serving.launcher.engine_groups import EngineGroups, ServerFailed
from serving.launcher.model_search import ModelSearch
from serving.launcher.nodes.agent import run_agent
from serving.launcher.nodes.cluster import Cluster
from serving.launcher.nodes.network import with_gloo_interface
from serving.launcher.port_check import check_port_is_free
from serving.launcher.rank_process import RankCommand
from serving.launcher.run_directory import RunDirectory, run_directory
from serving.launcher.status_broadcast import StatusBroadcast
from serving.launcher.supervision import Child, SignalPipe, reap_orphans
from serving.launcher.turn_clock import TurnClock
from serving.models.hub import with_mounted_model
from serving.protocol.messages import Phase, Status
from serving.settings import Settings

logger = logging.getLogger(__name__)

PLATFORM_GRACE = 25.0  # seconds to drain at most: SageMaker kills 30 s after SIGTERM
CLOSING_SECONDS = 3.0  # of the grace, kept for the last errors and for stopping the engines
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


def launch(settings: Settings, environ: Mapping[str, str], commands: Commands | None = None) -> int:
    """Serve until a signal (returns 0) or a failure (returns 1, after one line on stderr).

    `environ` is what the children inherit. A machine other than machine 0 runs ranks for that one,
    and nothing else. Call from the main thread.
    """
    commands = commands or Commands()
    is_agent = settings.node_rank > 0
    try:
        settings = with_mounted_model(settings)
        if not is_agent:
            check_port_is_free(settings.listen_address, settings.port)
        with run_directory(settings) as directory:
            environ = {**environ, "PROMETHEUS_MULTIPROC_DIR": str(directory.metrics)}
            if is_agent:
                return run_agent(settings, RankCommand(commands.engine, directory, environ))
            environ = with_gloo_interface(environ, settings)
            launcher = Launcher(settings, directory, environ, commands)
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
        """Take over the signals and open the sockets; nothing is started yet.

        Raises `StartupError` if --master-addr or --master-port cannot be used.
        """
        self._started_at = time.monotonic()
        self._settings = settings
        self._directory = directory
        self._environ = environ
        self._commands = commands
        self._clock = TurnClock()
        how = RankCommand(commands.engine, directory, environ)
        self._cluster = Cluster(how, settings, self._clock) if settings.nnodes > 1 else None
        self._exit_code = 1
        self._signals = SignalPipe()
        self._broadcast = StatusBroadcast(directory.control_socket)
        self._phase: Phase = "starting"
        self._message = ""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._signals, selectors.EVENT_READ)
        if self._cluster is not None:
            self._selector.register(self._cluster, selectors.EVENT_READ)
        self._groups = EngineGroups(self._cluster or how, settings, self._selector, self._clock)
        self._front: Child | None = None

    # --- life ----------------------------------------------------------------------------------

    def run(self) -> int:
        """Start everything and supervise it; returns the exit code.

        Raises `StartupError` if the server could not start; its processes are stopped by then.
        """
        try:
            self._serve_and_drain()
        except ServerFailed as failure:
            self._fail(str(failure))
            logger.error("server failed: %s", failure)
            return 1
        except StartupError as error:
            self._fail(str(error))
            raise
        logger.info("stopped")
        self._exit_code = 0
        return 0

    def close(self) -> None:
        """Kill what is left of the children, then release sockets and signals."""
        if self._front is not None:
            self._front.kill_group()
        self._groups.close()
        if self._cluster is not None:
            self._cluster.close(self._exit_code)
        self._broadcast.close()
        self._selector.close()
        self._signals.close()

    def _serve_and_drain(self) -> None:
        """Serve until a signal, then let requests finish. Raises what ends the server early."""
        try:
            self._start_front()
            search = ModelSearch(self._settings, self._signals.wake)
            self._serve_until(search.is_over)  # the ranks import their modules meanwhile
            self._groups.assign(search.path())
            self._serve_until(lambda: False)
        except Shutdown:
            self._drain()

    # --- turns ---------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Wait, a heartbeat at most, for a signal or a report; tell the state of the server."""
        seconds = self._broadcast.seconds_left()
        if self._cluster is not None:
            seconds = min(seconds, self._cluster.seconds_left())
        events = self._selector.select(seconds)
        self._clock.tick()
        if self._cluster is not None:
            self._cluster.turn()
        if any(key.fileobj is self._signals for key, _ in events):
            self._signals.read()
            front = [] if self._front is None else [self._front.pid]
            reap_orphans([*front, *self._groups.pids])
        self._tell()

    def _supervised_turn(self) -> None:
        """A turn in which engines are watched and started. Raises what ends the server."""
        self._groups.start_due()
        self._turn()
        self._groups.watch()
        self._note_readiness()
        self._tell()  # before anything is started: fronts wait for it

    def _turn_until(self, done: Callable[[], bool], seconds: float, supervised: bool) -> None:
        """Turn until `done()`, so many seconds at most."""
        turn = self._supervised_turn if supervised else self._turn
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline:
            turn()

    def _serve_until(self, done: Callable[[], bool]) -> None:
        """Turn until `done()`. Raises `Shutdown` on a signal, and what a child's death means."""
        while not done():
            self._supervised_turn()
            if self._signals.stop is not None:
                logger.info("%s: draining", self._signals.stop.name)
                raise Shutdown
            if self._front_is_gone():
                self._on_front_death()

    # --- state ---------------------------------------------------------------------------------

    def _tell(self) -> None:
        message = self._groups.phase if self._phase == "starting" else self._message
        healthy = self._phase == "serving" and self._groups.are_healthy
        groups = self._groups
        self._broadcast.tell(Status(self._phase, groups.epochs, healthy, message, groups.poisoned))

    def _change_phase(self, phase: Phase, message: str = "") -> None:
        self._phase, self._message = phase, message
        self._tell()

    def _note_readiness(self) -> None:
        """The first group that serves makes the server ready."""
        if self._phase != "starting" or not self._groups.has_served:
            return
        self._change_phase("serving")
        logger.info(
            "ready: serving %s on http://%s:%s, %.1f s after the start",
            self._settings.model_id or "the embedded demo model",
            self._settings.listen_address,
            self._settings.port,
            time.monotonic() - self._started_at,
        )

    # --- front ---------------------------------------------------------------------------------

    def _start_front(self) -> None:
        command = (*self._commands.front, str(self._directory.settings), str(self._directory.path))
        self._front = Child("front", command, self._environ)

    def _front_is_gone(self) -> bool:
        return self._front is None or self._front.has_exited()

    def _on_front_death(self) -> None:
        how = self._front.exit_text() if self._front is not None else "not started"
        if self._groups.has_served:
            raise ServerFailed(f"the HTTP front died: {how}")
        cause = f"the HTTP front ended with {how}"
        raise StartupError("HTTP front", cause, "see the front's lines above")

    # --- end -----------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Announce the end, let requests finish, fail the rest, stop; under 25 s in all.

        Engines are restarted as ever meanwhile, so that streams can finish. Raises `ServerFailed`
        when none is left, or when the front dies with what it has left to answer.
        """
        has_served = self._groups.has_served
        grace = min(self._settings.graceful_termination_timeout, PLATFORM_GRACE)
        seconds = max(0.0, grace - CLOSING_SECONDS) if has_served else 0.0
        deadline = time.monotonic() + seconds
        self._groups.want_no_standby()
        self._change_phase("draining", SHUTDOWN_MESSAGE)
        self._turn_until(self._front_is_gone, min(ANNOUNCE_SECONDS, seconds), supervised=True)
        if self._front is not None:
            self._front.terminate()
        self._turn_until(self._front_is_gone, deadline - time.monotonic(), supervised=True)
        if has_served and not self._front_is_gone():
            self._fail(SHUTDOWN_MESSAGE)
            return
        if has_served and self._front is not None and not self._front.left_when_asked():
            self._on_front_death()
        self._stop_children()

    def _fail(self, message: str) -> None:
        """Let fronts end every live request with `message`, then stop the rest."""
        self._groups.ignore_reports()
        self._change_phase("failed", message)
        if self._groups.has_served:
            self._turn_until(self._front_is_gone, ERROR_SECONDS, supervised=False)
        self._stop_children()

    def _stop_children(self) -> None:
        """SIGTERM, and soon SIGKILL, for everything; nothing is started any more."""
        self._groups.ignore_reports()
        self._groups.terminate()
        if self._front is not None:
            self._front.terminate()
        self._turn_until(self._have_exited, STOP_SECONDS, supervised=False)
        self._groups.close()
        if self._front is not None:
            self._front.kill_group()

    def _have_exited(self) -> bool:
        return self._front_is_gone() and self._groups.have_exited()
