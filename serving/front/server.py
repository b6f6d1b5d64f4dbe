"""Gunicorn, run inside our own process: the listening socket and the worker processes.

Runs in the front's master process; `FrontServer.load` in each worker, after the fork. Comes in:
settings and the run directory. Goes out: HTTP, until SIGTERM. Sockets of the wire are opened
after the fork, each worker has its own. Next: `app.py`, `engine_client.py`.
"""

import resource
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import flask
import gevent
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.workers.ggevent import GeventWorker
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import mark_process_dead

from serving.front.app import create_app
from serving.front.cloudwatch import CloudWatchLog
from serving.front.connection import Connection
from serving.front.context import Front
from serving.front.engine_client import EngineClient
from serving.front.listener import BACKLOG
from serving.front.model import reload_model
from serving.front.session_table import SessionTable
from serving.metrics import FrontMetrics, merged_registry, render
from serving.protocol.messages import EngineInfo
from serving.settings import Settings

DRAIN_SECONDS = 25  # SageMaker kills 30 s after SIGTERM
KEEP_ALIVE_SECONDS = 75  # longer than the load balancers in front (60 s), which then close first
IDLE_SECONDS_WHEN_DRAINING = 0.5
UNRESPONSIVE_SECONDS = 120  # then the master replaces a worker
# Open connections of a worker, idle ones included; requests are limited by
# --max-concurrent-requests, and a health check must not wait behind streams.
WORKER_CONNECTIONS = 16_384


class FrontServer(BaseApplication):  # type: ignore[misc]
    """Gunicorn's application object for one server."""

    def __init__(self, settings: Settings, run_directory: Path, listener: socket.socket) -> None:
        """Serve on `listener`, which must be bound; it is taken over."""
        self._settings = settings
        self._run_directory = run_directory
        self._listener_fd = listener.detach()
        _allow_open_files()
        super().__init__()

    def load_config(self) -> None:
        """Gunicorn's settings; nothing is read from its own files or variables."""
        grace = min(self._settings.graceful_termination_timeout, DRAIN_SECONDS)
        values: dict[str, Any] = {
            "bind": f"fd://{self._listener_fd}",
            "backlog": BACKLOG,
            "workers": self._settings.validation_workers,
            "worker_class": FrontWorker,
            "worker_connections": WORKER_CONNECTIONS,
            "worker_tmp_dir": str(self._run_directory),
            "timeout": UNRESPONSIVE_SECONDS,
            "graceful_timeout": grace,
            "keepalive": KEEP_ALIVE_SECONDS,
            "control_socket_disable": True,
            "logger_class": FrontLogger,
            "loglevel": "warning",
            "child_exit": _forget_metrics,
        }
        for name, value in values.items():
            self.cfg.set(name, value)

    def load(self) -> flask.Flask:
        """The application of this worker, connected to engine and launcher."""
        registry = CollectorRegistry()
        metrics = FrontMetrics(registry)
        metrics_directory = str(self._run_directory / "metrics")
        front: Front  # the client's callbacks need it, and it needs the client

        def on_ready(info: EngineInfo) -> None:
            pool = gevent.get_hub().threadpool
            front.model = pool.apply(reload_model, (front.model, info, self._settings))
            metrics.set_limits(info.max_input_tokens, info.max_total_tokens)

        client = EngineClient(
            self._run_directory, self._settings, on_ready, metrics.resumed_requests.inc
        )
        front = Front(
            self._settings, client, metrics, lambda: render(merged_registry(metrics_directory))
        )
        if self._settings.stateful_sessions:
            table = self._run_directory / "sessions"
            front.sessions = SessionTable(table, self._settings.session_seconds)
        client.start()
        if self._settings.cloudwatch_namespace:
            lock = self._run_directory / "cloudwatch.lock"
            source = partial(merged_registry, metrics_directory)
            gevent.spawn(CloudWatchLog(self._settings, source, lock, _write_line).run)
        return create_app(front)


class FrontWorker(GeventWorker):  # type: ignore[misc]
    """A gevent worker that does not wait for idle keep-alive connections when it drains."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: set[IdleTimeout] = set()

    def handle(self, listener: Any, client: Any, address: Any) -> None:
        """Serve one connection until either side closes it."""
        super().handle(listener, Connection(client), address)

    def timeout_ctx(self) -> "IdleTimeout":
        """Gunicorn waits for a connection's next request inside this context."""
        seconds = KEEP_ALIVE_SECONDS if self.alive else IDLE_SECONDS_WHEN_DRAINING
        return IdleTimeout(seconds, self._idle)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: stop accepting, close what is idle, let the rest finish."""
        super().handle_exit(sig, frame)
        gevent.spawn_later(IDLE_SECONDS_WHEN_DRAINING, self._close_idle)

    def _close_idle(self) -> None:
        for timeout in list(self._idle):
            timeout.expire()


class IdleTimeout(gevent.Timeout):  # type: ignore[misc]
    """A silent timeout that can be made to expire early."""

    def __init__(self, seconds: float, running: "set[IdleTimeout]") -> None:
        """While it runs it is a member of `running`."""
        super().__init__(seconds, False)
        self._running = running

    def __enter__(self) -> "IdleTimeout":
        self._greenlet = gevent.getcurrent()
        self._running.add(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        self._running.discard(self)
        return super().__exit__(*error)

    def expire(self) -> None:
        """End the wait now."""
        gevent.kill(self._greenlet, self)


class FrontLogger(Logger):  # type: ignore[misc]
    """Gunicorn's messages go where ours go."""

    def setup(self, cfg: Any) -> None:
        """Leave every handler to the root logger."""
        super().setup(cfg)
        self.error_log.handlers = []
        self.error_log.propagate = True


def _write_line(line: str) -> None:
    """A line of the log that is no message: without time and level."""
    sys.stdout.write(line)
    sys.stdout.flush()


def _allow_open_files() -> None:
    """Every connection is a file: take all that the system grants, in the workers too."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _forget_metrics(_: Any, worker: Any) -> None:
    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
