"""Routes whose paths a platform chooses: Vertex AI's AIP_PREDICT_ROUTE and AIP_HEALTH_ROUTE.

Runs in the front. Comes in: the settings, and the routes that exist anyway: a path that is one of
these keeps its meaning. Goes out: the same predictions and health as on our own paths. Next:
`vertex.py`, `sagemaker.py`.
"""

from functools import partial

import flask
import msgspec
from werkzeug.routing import Map

from serving.front.bodies import read_json_bytes
from serving.front.context import Front
from serving.front.platforms import sagemaker, vertex
from serving.front.tgi.routes import health


class _Shape(msgspec.Struct):
    """What tells a prediction in Vertex AI's form from one that was passed through as it is."""

    instances: msgspec.Raw = msgspec.Raw()


def blueprint(front: Front, known: Map) -> flask.Blueprint:
    """The configured routes that `known` does not have, bound to `front`."""
    routes = flask.Blueprint("configured", __name__)
    taken = {(rule.rule, method) for rule in known.iter_rules() for method in rule.methods or ()}
    for name, path, method, view in (
        ("predict", front.settings.predict_route, "POST", predict),
        ("health", front.settings.health_route, "GET", health),
    ):
        if path is not None and (path, method) not in taken:
            routes.add_url_rule(path, name, partial(view, front), methods=[method])
    return routes


def predict(front: Front) -> flask.Response:
    """POST $AIP_PREDICT_ROUTE: instances, or with rawPredict a body in any dialect."""
    data = read_json_bytes()
    if _has_instances(data):
        return vertex.answer(front, data)
    return sagemaker.any_dialect(front, data)


def _has_instances(data: bytes) -> bool:
    try:
        return bool(bytes(msgspec.json.decode(data, type=_Shape).instances))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # the dialects say what is wrong with it
