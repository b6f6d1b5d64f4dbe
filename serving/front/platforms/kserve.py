"""The Open Inference Protocol (KServe v2): metadata, health, inference and generation.

Runs in the front. Comes in: /v2 and what is below it. The name in a path is the platform's, and
there is one model: any name means it, and comes back in the answer. Goes out: the protocol's JSON
and events; errors are `{"error": ...}` under TGI's statuses, also before the first event of a
stream. Next: `kserve_schema.py`, `handling.py`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain

import flask
from msgspec import UNSET

import serving
from serving.errors import BodyError, ErrorKind
from serving.front.bodies import WRONG_SHAPE, read_body
from serving.front.context import Front
from serving.front.handling import Handling
from serving.front.headers import response_headers, stream_headers
from serving.front.model import LoadedModel
from serving.front.platforms.kserve_schema import (
    TEXT,
    GenerateDetails,
    InferOutput,
    InferRequest,
    InferResponse,
    KServeGenerateRequest,
    KServeGenerateResponse,
    KServeParameters,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    TensorMetadata,
)
from serving.front.platforms.probes import check_live
from serving.front.responses import ErrorBody, error_body, json_response
from serving.front.sequence_text import SequenceText, TokenEvent
from serving.front.streaming import KEEP_ALIVE, KEEP_ALIVE_SECONDS, event_stream, frame
from serving.front.tgi.routes import health
from serving.front.validation import ValidRequest, validate

SERVER = "text-generation-serving"
PLATFORM = "pytorch_text_generation"
INPUT, OUTPUT = "text_input", "text_output"
FIRST_EVENT_SECONDS = 2.0  # a stream's status waits so long for its first event

Named = Callable[..., flask.Response]  # of (front, model=..., version=...)


def blueprint(front: Front) -> flask.Blueprint:
    """The routes, bound to `front`."""
    routes = flask.Blueprint("kserve", __name__, url_prefix="/v2")
    routes.add_url_rule("", "server", server, methods=["GET"])
    routes.add_url_rule("/health/live", "live", partial(live, front), methods=["GET"])
    routes.add_url_rule("/health/ready", "ready", partial(ready, front), methods=["GET"])
    views: tuple[tuple[str, str, Named], ...] = (
        ("", "GET", model_metadata),
        ("/ready", "GET", model_ready),
        ("/infer", "POST", infer),
        ("/generate", "POST", generate),
        ("/generate_stream", "POST", generate_stream),
    )
    for path, method, view in views:
        bound = partial(view, front)
        for prefix, suffix in (("", ""), ("/versions/<version>", "_of_version")):
            rule, name = f"/models/<model>{prefix}{path}", view.__name__ + suffix
            routes.add_url_rule(rule, name, bound, methods=[method])
    routes.register_error_handler(BodyError, _body_error)
    return routes


def server() -> flask.Response:
    """GET /v2."""
    return json_response(ServerMetadata(SERVER, serving.__version__, ["generate"]))


def live(front: Front) -> flask.Response:
    """GET /v2/health/live. Raises `RequestError` UNHEALTHY."""
    check_live(front)
    return json_response(Live(True))


def ready(front: Front) -> flask.Response:
    """GET /v2/health/ready. Raises `RequestError` UNHEALTHY."""
    health(front)
    return json_response(Ready(True))


def model_ready(front: Front, model: str, version: str | None = None) -> flask.Response:
    """GET .../ready. Raises `RequestError` UNHEALTHY."""
    health(front)
    return json_response(ModelReady(model, True))


def model_metadata(front: Front, model: str, version: str | None = None) -> flask.Response:
    """GET /v2/models/{model}. Raises `RequestError` UNHEALTHY until it is loaded."""
    front.loaded_model()
    tensors = [[TensorMetadata(name, TEXT, [-1])] for name in (INPUT, OUTPUT)]
    versions = [] if version is None else [version]
    return json_response(ModelMetadata(model, versions, PLATFORM, *tensors))


def infer(front: Front, model: str, version: str | None = None) -> flask.Response:
    """POST .../infer: one text for each element of the one input tensor."""
    body = read_body(InferRequest)
    texts = _texts(body)
    loaded = front.serving_model()
    parameters = body.parameters or KServeParameters()
    with Handling(front, len(texts)) as handling:
        requests = [_validate(front, loaded, text, parameters) for text in texts]
        generation = handling.start(requests, keep_stop=True)
        generation.run()
        sequences = generation.sequences
        headers = response_headers(loaded.info, requests, sequences, handling.started)
        handling.succeed()
    name = str((body.outputs or [{}])[0].get("name", OUTPUT))
    output = InferOutput(name, body.inputs[0].shape, TEXT, [one.text for one in sequences])
    response = InferResponse(
        model_name=model,
        model_version=version or UNSET,
        id=UNSET if body.id is None else body.id,
        outputs=[output],
    )
    return json_response(response, headers=headers)


def generate(front: Front, model: str, version: str | None = None) -> flask.Response:
    """POST .../generate."""
    body = read_body(KServeGenerateRequest)
    loaded = front.serving_model()
    with Handling(front) as handling:
        request = _validate(front, loaded, body.text_input, body.parameters)
        generation = handling.start([request], keep_stop=True)
        generation.run()
        (sequence,) = generation.sequences
        headers = response_headers(loaded.info, [request], [sequence], handling.started)
        handling.succeed()
    response = KServeGenerateResponse(
        text_output=sequence.text,
        model_name=model,
        model_version=version or UNSET,
        details=_details(sequence) if body.parameters.details else UNSET,
    )
    return json_response(response, headers=headers)


def generate_stream(front: Front, model: str, version: str | None = None) -> flask.Response:
    """POST .../generate_stream: an event for each token, with what it adds to the text."""
    body = read_body(KServeGenerateRequest)
    loaded = front.serving_model()
    handling = Handling(front, stream=True)
    with handling.until_response():
        request = _validate(front, loaded, body.text_input, body.parameters)
        generation = handling.start([request], keep_stop=True)
        events = generation.events(KEEP_ALIVE_SECONDS, FIRST_EVENT_SECONDS)
        events = chain([next(events)], events)
    answer = partial(_event, model=model, version=version, with_details=body.parameters.details)
    return event_stream(
        _frames(events, answer),
        handling,
        stream_headers(loaded.info, [body.text_input]),
        lambda error: [frame(error_body(error))],
    )


def _texts(body: InferRequest) -> list[str]:
    """The prompts. Raises `BodyError` 422 if they are not one tensor of texts."""
    if len(body.inputs) != 1:
        message = f"`inputs` must be one tensor. Given: {len(body.inputs)}"
        raise BodyError(422, f"{WRONG_SHAPE}: {message}")
    try:
        texts = body.inputs[0].texts()
    except ValueError as error:
        raise BodyError(422, f"{WRONG_SHAPE}: inputs[0]: {error}") from error
    if not texts:
        raise BodyError(422, f"{WRONG_SHAPE}: inputs[0]: `data` must not be empty")
    return texts


def _validate(
    front: Front, model: LoadedModel, text: str, parameters: KServeParameters
) -> ValidRequest:
    native = parameters.native()
    return validate(text, native, model, front.settings, stream=False, logprobs=native.details)


def _details(sequence: SequenceText) -> GenerateDetails:
    return GenerateDetails(sequence.end.reason, sequence.tokens)


def _frames(
    events: Iterator[TokenEvent | None], answer: Callable[[TokenEvent], KServeGenerateResponse]
) -> Iterator[bytes]:
    for event in events:
        yield KEEP_ALIVE if event is None else frame(answer(event))


def _event(
    event: TokenEvent, *, model: str, version: str | None, with_details: bool
) -> KServeGenerateResponse:
    reason = event.finish.reason if event.finish else None
    return KServeGenerateResponse(
        text_output=event.text,
        model_name=model,
        model_version=version or UNSET,
        details=GenerateDetails(reason, [event.token]) if with_details else UNSET,
    )


def _body_error(error: BodyError) -> flask.Response:
    """The protocol has an object for every error."""
    return json_response(ErrorBody(str(error), ErrorKind.VALIDATION.error_type), error.status)
