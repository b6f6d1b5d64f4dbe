"""The emulator's HTTP application: control plane and runtime on one port, and its own status.

Runs in the emulator. Comes in: the parts. Goes out: a Flask app. Next: `control/api.py`,
`runtime/invocations.py`.
"""

import ipaddress
import logging
from typing import Any
from urllib.parse import urlsplit

import flask

from local_mode.control import api
from local_mode.control.api import ControlPlane
from local_mode.control.hosted import Hosted
from local_mode.runtime.async_invocations import AsyncInvocations
from local_mode.runtime.invocations import Invocations

STATUS_PATH = "/local-mode/status"

logger = logging.getLogger(__name__)


def create_app(
    control: ControlPlane, invocations: Invocations, later: AsyncInvocations, about: dict[str, Any]
) -> flask.Flask:
    """The application; `about` is the fixed part of the status document."""
    app = flask.Flask(__name__)
    app.register_blueprint(api.blueprint(control))
    app.register_blueprint(invocations.blueprint())
    app.register_blueprint(later.blueprint())
    app.before_request(refuse_foreign_names)
    app.after_request(_log)

    @app.get(STATUS_PATH)
    def status() -> dict[str, Any]:
        return about | {"servers": server_list(control)}

    return app


def server_list(control: ControlPlane) -> list[dict[str, Any]]:
    """One entry for every endpoint and every component, as JSON."""
    with control.lock:
        endpoints: list[tuple[str, Hosted]] = [
            ("endpoint", item) for item in control.endpoints.catalogue.all()
        ]
        components = [("component", item) for item in control.components.catalogue.all()]
        return [_entry(kind, item) for kind, item in [*endpoints, *components]]


def _entry(kind: str, item: Hosted) -> dict[str, Any]:
    server = next(iter(item.servers()), None)
    entry: dict[str, Any] = {
        "kind": kind, "name": item.name, "status": item.status, "reason": item.failure_reason,
    }  # fmt: skip
    if server is not None:
        entry |= {
            "state": server.state.value,
            "port": server.port,
            "pid": server.pid,
            "restarts": server.restarts,
            "last_failure": server.failure,
        }
    return entry


def refuse_foreign_names() -> flask.Response | None:
    """403 for a name that is not this machine's: a web page could have it point here.

    The control plane starts programs, and the browser would let such a page call it.
    """
    host = urlsplit(f"//{flask.request.host}").hostname or ""
    if host in ("localhost", "host.docker.internal") or _is_address(host):
        return None
    text = f"local mode answers to localhost and to IP addresses. Given: {host}\n"
    return flask.Response(text, status=403, content_type="text/plain")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _log(response: flask.Response) -> flask.Response:
    request = flask.request
    level = logging.DEBUG if request.path == STATUS_PATH else logging.INFO
    what = request.headers.get(api.TARGET) or request.path
    logger.log(level, "%s %s: %d", request.method, what, response.status_code)
    return response
