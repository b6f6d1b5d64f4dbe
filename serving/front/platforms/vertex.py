"""Google Vertex AI's prediction route.

Runs in the front. Comes in: /vertex, or the route that the platform has chosen, with a list of
instances, each a prompt or a chat. Goes out: their texts in the same order; all instances are
generated at once, one failure fails them all. TGI answers every failure with 500 "Incomplete
generation"; here the true status and error are given. Next: `tgi/generate.py`,
`openai/parameters.py`.
"""

from dataclasses import replace
from functools import partial

import flask
import msgspec

from serving.errors import BodyError, ErrorKind, RequestError
from serving.front.bodies import WRONG_SHAPE, decode, read_json_bytes
from serving.front.context import Front
from serving.front.handling import Handling
from serving.front.model import LoadedModel
from serving.front.openai.parameters import chat_request
from serving.front.openai.schema import ChatRequest
from serving.front.openai.tools import tool_use
from serving.front.parameters import GenerateParameters
from serving.front.responses import json_response
from serving.front.tgi.schema import VertexInstance, VertexRequest, VertexResponse
from serving.front.validation import ValidRequest, validate

NO_VARIANT = "data did not match any variant of untagged enum VertexInstance"
NO_INSTANCES = "Input validation error"  # all that TGI says


def blueprint(front: Front) -> flask.Blueprint:
    """The route, bound to `front`."""
    routes = flask.Blueprint("vertex", __name__)
    routes.add_url_rule("/vertex", "predict", partial(predict, front), methods=["POST"])
    return routes


def predict(front: Front) -> flask.Response:
    """POST /vertex. Raises `RequestError`, or `BodyError` 422 if an instance fits no form."""
    return answer(front, read_json_bytes())


def answer(front: Front, data: bytes) -> flask.Response:
    """What the route answers to this body."""
    instances = [_parse(instance) for instance in decode(data, VertexRequest).instances]
    if not instances:
        raise RequestError(ErrorKind.NO_INSTANCES, NO_INSTANCES)
    model = front.serving_model()
    with Handling(front, len(instances)) as handling:
        requests = [_validate(front, model, instance) for instance in instances]
        generation = handling.start(requests, keep_stop=True)
        generation.run()
        handling.succeed()
        return json_response(VertexResponse([one.text for one in generation.sequences]))


def _parse(data: msgspec.Raw) -> VertexInstance | ChatRequest:
    """The first form that fits, as TGI tries them."""
    try:
        return decode(bytes(data), VertexInstance)
    except BodyError as error:
        no_prompt = error
    try:
        return decode(bytes(data), ChatRequest)
    except BodyError as no_chat:
        reasons = "; ".join(str(e).removeprefix(f"{WRONG_SHAPE}: ") for e in (no_prompt, no_chat))
        raise BodyError(422, f"{WRONG_SHAPE}: {NO_VARIANT} ({reasons})") from no_chat


def _validate(
    front: Front, model: LoadedModel, instance: VertexInstance | ChatRequest
) -> ValidRequest:
    """One sequence. Of a prompt's parameters TGI looks at two, and samples always.

    What a chat answers is text also where it calls a tool.
    """
    if isinstance(instance, ChatRequest):
        use = tool_use(instance, model.tool_dialect)
        return replace(chat_request(instance, model, front.settings, use), choices=1)
    given = instance.parameters or GenerateParameters()
    parameters = GenerateParameters(
        do_sample=True, max_new_tokens=given.max_new_tokens, seed=given.seed
    )
    return validate(
        instance.inputs, parameters, model, front.settings, stream=False, logprobs=False
    )
