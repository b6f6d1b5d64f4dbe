"""SageMaker's two routes.

Runs in the front. Comes in: /ping, and /invocations with a body in any of the server's dialects.
Goes out: what the route of that dialect would answer. Next: `tgi/generate.py`,
`openai/routes.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flask

from serving.errors import BodyError
from serving.front.bodies import WRONG_SHAPE, decode, read_json_bytes
from serving.front.context import Front
from serving.front.openai.routes import chat_response, completion_response
from serving.front.openai.schema import ChatRequest, CompletionRequest
from serving.front.tgi.routes import compat_response, health
from serving.front.tgi.schema import CompatGenerateRequest

NO_VARIANT = "data did not match any variant of untagged enum SagemakerRequest"

# In TGI's order: the first shape that fits completely wins.
DIALECTS: tuple[tuple[type[Any], Callable[[Front, Any], flask.Response]], ...] = (
    (CompatGenerateRequest, compat_response),
    (ChatRequest, chat_response),
    (CompletionRequest, completion_response),
)


def blueprint(front: Front) -> flask.Blueprint:
    """The routes, bound to `front`."""
    routes = flask.Blueprint("sagemaker", __name__)
    routes.add_url_rule("/ping", "ping", partial(health, front), methods=["GET", "POST"])
    routes.add_url_rule(
        "/invocations", "invocations", partial(invocations, front), methods=["POST"]
    )
    return routes


def invocations(front: Front) -> flask.Response:
    """POST /invocations. Raises `BodyError` 422 if no dialect fits, saying why."""
    data = read_json_bytes()
    reasons = []
    for kind, answer in DIALECTS:
        try:
            body = decode(data, kind)
        except BodyError as error:
            if error.status != 422:
                raise
            reasons.append(f"{kind.__name__}: {str(error).removeprefix(WRONG_SHAPE + ': ')}")
        else:
            return answer(front, body)
    raise BodyError(422, f"{WRONG_SHAPE}: {NO_VARIANT} ({'; '.join(reasons)})")
