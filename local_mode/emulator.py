"""The emulator: SageMaker's two APIs on one port of this machine, and the servers behind them.

Runs in a process of its own (`local-endpoint up`) or inside a test. Comes in: an address, a folder,
a runner and limits. Goes out: a running HTTP server; `close` stops it and every server. Next:
`app.py`.
"""

import os
import shutil
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

import flask
from werkzeug.serving import WSGIRequestHandler, make_server

from local_mode.app import create_app
from local_mode.control.api import ControlPlane
from local_mode.control.shapes import ServiceModel
from local_mode.errors import LocalModeError
from local_mode.hosting.hosting import Hosting
from local_mode.hosting.runners import Runner
from local_mode.limits import Limits
from local_mode.objects import ObjectStore
from local_mode.runtime.async_invocations import AsyncInvocations
from local_mode.runtime.invocations import Invocations
from local_mode.up_options import DEFAULT_PORT


@dataclass(frozen=True)
class EmulatorOptions:
    """How an emulator runs; port 0 takes a free one."""

    runner: Runner
    folder: Path  # logs and unpacked models
    objects: Path  # the folder that is S3
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    limits: Limits = field(default_factory=Limits)


class _Handler(WSGIRequestHandler):
    """The application has its own line per request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises `LocalModeError` if there can be none."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        cause = f"{host}:{port} cannot be listened on ({error.strerror})"
        remedy = "choose another --port, or run `local-endpoint down`"
        raise LocalModeError("emulator", cause, remedy) from error


class Emulator:
    """A running emulator."""

    def __init__(self, options: EmulatorOptions) -> None:
        """Listen at once; raises `LocalModeError` if the port is taken."""
        self.options = options
        with _listen(options.host, options.port) as listener:  # before another's logs are removed
            app = self._make_app()
            self._port: int = listener.getsockname()[1]
            self._server = make_server(
                options.host, self._port, app, True, request_handler=_Handler, fd=listener.fileno()
            )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _make_app(self) -> flask.Flask:
        options = self.options
        servers = options.folder / "servers"
        shutil.rmtree(servers, ignore_errors=True)  # of the run before
        options.objects.mkdir(parents=True, exist_ok=True)
        objects = ObjectStore(options.objects)
        self.control = ControlPlane(Hosting(options.runner, options.limits, objects, servers))
        runtime = ServiceModel("sagemaker-runtime", error="ValidationError")
        invocations = Invocations(self.control, runtime, options.limits)
        self._later = AsyncInvocations(self.control, runtime, options.limits, objects)
        about = {
            "pid": os.getpid(),
            "runner": options.runner.name,
            "folder": str(options.folder),
            "objects": str(objects.folder),
        }
        return create_app(self.control, invocations, self._later, about)

    @property
    def url(self) -> str:
        """The endpoint_url for boto3."""
        return f"http://{self.options.host}:{self._port}"

    def close(self) -> None:
        """Stop the servers while their requests can still end, then the emulator."""
        self._later.close()
        self.control.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
