"""Probes that tell a server which is loading from one that is broken, as orchestrators ask.

Runs in the front. Comes in: requests for liveness or readiness. Goes out: a status, from memory.
Not alive is only what a restart of the container can mend; loading, recovering and draining are
not. Next: `kserve.py`, which asks the same.
"""

from functools import partial

import flask

from serving.errors import ErrorKind, RequestError
from serving.front.context import Front
from serving.front.responses import empty_response
from serving.front.tgi.routes import health


def blueprint(front: Front) -> flask.Blueprint:
    """The routes, bound to `front`."""
    routes = flask.Blueprint("probes", __name__, url_prefix="/health")
    routes.add_url_rule("/live", "live", partial(live, front), methods=["GET"])
    routes.add_url_rule("/ready", "ready", partial(health, front), methods=["GET"])
    return routes


def live(front: Front) -> flask.Response:
    """GET /health/live: 200 unless the server has failed for good."""
    check_live(front)
    return empty_response(200)


def check_live(front: Front) -> None:
    """Raise `RequestError` UNHEALTHY if the server has failed for good."""
    availability = front.engine.availability
    if availability.phase == "failed":
        raise RequestError(ErrorKind.UNHEALTHY, availability.message or "failed")
