"""SageMaker's routes.

Runs in the front. Comes in: /ping, /execution-parameters, and /invocations with a body in any of
the server's dialects, with many of them as JSON Lines, or about a session. Goes out: what the route
of that dialect would answer. Next: `sessions.py`, `json_lines.py`; `tgi/generate.py`,
`openai/routes.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flask
import msgspec

from serving.errors import BodyError
from serving.front.bodies import WRONG_SHAPE, decode, read_bytes, read_json_bytes
from serving.front.context import Front
from serving.front.openai.routes import chat_response, completion_response
from serving.front.openai.schema import ChatRequest, CompletionRequest
from serving.front.platforms.json_lines import answer_lines, holds_lines, is_json_lines
from serving.front.platforms.sessions import enter_session
from serving.front.responses import json_response
from serving.front.tgi.routes import compat_response, health
from serving.front.tgi.schema import CompatGenerateRequest

NO_VARIANT = "data did not match any variant of untagged enum SagemakerRequest"
CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
LONGEST_ATTRIBUTES = 1024  # characters
LARGEST_RECORD_MB = 1
MOST_MB = 100  # of all records that are under way at once, a limit of SageMaker

# In TGI's order: the first shape that fits completely wins.
DIALECTS: tuple[tuple[type[Any], Callable[[Front, Any], flask.Response]], ...] = (
    (CompatGenerateRequest, compat_response),
    (ChatRequest, chat_response),
    (CompletionRequest, completion_response),
)


class ExecutionParameters(msgspec.Struct, frozen=True, rename="pascal"):
    """Body of /execution-parameters: how a batch job calls where its creator left it open."""

    max_concurrent_transforms: int
    batch_strategy: str
    max_payload_in_mb: int = msgspec.field(name="MaxPayloadInMB")


def blueprint(front: Front) -> flask.Blueprint:
    """The routes, bound to `front`."""
    routes = flask.Blueprint("sagemaker", __name__)
    routes.add_url_rule("/ping", "ping", partial(health, front), methods=["GET", "POST"])
    routes.add_url_rule(
        "/invocations", "invocations", partial(invocations, front), methods=["POST"]
    )
    routes.add_url_rule(
        "/execution-parameters",
        "execution_parameters",
        partial(execution_parameters, front),
        methods=["GET"],
    )
    if front.settings.echo_custom_attributes:
        routes.after_request(_echo_custom_attributes)
    return routes


def invocations(front: Front) -> flask.Response:
    """POST /invocations. Raises `BodyError` 422 if no dialect fits, saying why."""
    if is_json_lines():
        return answer_lines(front, read_bytes())
    data = read_json_bytes()
    if front.settings.batch_transform and holds_lines(data):
        return answer_lines(front, data)
    return enter_session(front, data) or any_dialect(front, data)


def any_dialect(front: Front, data: bytes) -> flask.Response:
    """What the route answers whose body has this shape. Raises `BodyError`."""
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


def execution_parameters(front: Front) -> flask.Response:
    """GET /execution-parameters: one record per request, as many at once as the engine takes.

    The engine batches them itself; one that fails is tried again alone.
    """
    settings = front.settings
    places = settings.max_concurrent_requests * settings.num_replicas
    at_once = min(places, MOST_MB // LARGEST_RECORD_MB)
    return json_response(ExecutionParameters(at_once, "SINGLE_RECORD", LARGEST_RECORD_MB))


def _echo_custom_attributes(response: flask.Response) -> flask.Response:
    """The platform hands on only what the container says itself."""
    given = flask.request.headers.get(CUSTOM_ATTRIBUTES, "")
    if given.isascii() and given.isprintable() and 0 < len(given) <= LONGEST_ATTRIBUTES:
        response.headers[CUSTOM_ATTRIBUTES] = given
    return response
