"""TGI's native routes.

Runs in the front. Comes in: HTTP requests on /, /generate, /generate_stream, /tokenize,
/chat_tokenize, /info, /health, /metrics. Goes out: TGI's bodies and events, to the field. Next:
`tgi/generate.py`.
"""

from functools import partial
from pathlib import Path

import flask

import serving
from serving.errors import ErrorKind, RequestError
from serving.front.bodies import read_body
from serving.front.context import Front
from serving.front.openai.parameters import chat_prompt
from serving.front.openai.schema import ChatRequest
from serving.front.openai.tools import tool_use
from serving.front.responses import empty_response, json_response
from serving.front.tgi.generate import json_or_stream
from serving.front.tgi.schema import (
    ChatTokenizeResponse,
    CompatGenerateRequest,
    GenerateRequest,
    Info,
)
from serving.metrics import CONTENT_TYPE

# What TGI assumes of a model whose Hub page it does not know.
COMPAT_RETURNS_FULL_TEXT = True


def blueprint(front: Front) -> flask.Blueprint:
    """The routes, bound to `front`."""
    routes = flask.Blueprint("tgi", __name__)
    for path, view in (
        ("/", compat_generate),
        ("/generate", generate),
        ("/generate_stream", generate_stream),
        ("/tokenize", tokenize),
        ("/chat_tokenize", chat_tokenize),
    ):
        routes.add_url_rule(path, view.__name__, partial(view, front), methods=["POST"])
    routes.add_url_rule("/", "root_health", partial(health, front), methods=["GET"])
    for path, reader in (("/health", health), ("/info", info), ("/metrics", metrics)):
        routes.add_url_rule(path, reader.__name__, partial(reader, front), methods=["GET"])
    return routes


def generate(front: Front) -> flask.Response:
    """POST /generate."""
    body = read_body(GenerateRequest)
    return json_or_stream(front, body, stream=False, full_text=False, as_list=False)


def generate_stream(front: Front) -> flask.Response:
    """POST /generate_stream."""
    body = read_body(GenerateRequest)
    return json_or_stream(front, body, stream=True, full_text=False, as_list=False)


def compat_generate(front: Front) -> flask.Response:
    """POST /: a list of one object, and the prompt is part of the text by default."""
    return compat_response(front, read_body(CompatGenerateRequest))


def compat_response(front: Front, body: CompatGenerateRequest) -> flask.Response:
    """What POST / answers; /invocations shares it."""
    return json_or_stream(
        front, body, stream=body.stream, full_text=COMPAT_RETURNS_FULL_TEXT, as_list=True
    )


def tokenize(front: Front) -> flask.Response:
    """POST /tokenize: the prompt's tokens; other parameters are not looked at."""
    model = front.loaded_model()
    return json_response(model.tokenizer.items(read_body(GenerateRequest).inputs, True))


def chat_tokenize(front: Front) -> flask.Response:
    """POST /chat_tokenize: the prompt as /v1/chat/completions writes it, and its tokens."""
    model = front.loaded_model()
    body = read_body(ChatRequest)
    front.metrics.request_count.inc()  # TGI counts it, unlike /tokenize
    text = chat_prompt(body, model, tool_use(body, model.tool_dialect))
    return json_response(ChatTokenizeResponse(model.tokenizer.items(text, False), text))


def info(front: Front) -> flask.Response:
    """GET /info."""
    model, settings = front.loaded_model(), front.settings
    return json_response(
        Info(
            model_id=model.name,
            model_sha=_snapshot(model.info.model_path),
            model_pipeline_tag=None,
            max_concurrent_requests=settings.max_concurrent_requests,
            max_best_of=settings.max_best_of,
            max_stop_sequences=settings.max_stop_sequences,
            max_input_tokens=model.info.max_input_tokens,
            max_total_tokens=model.info.max_total_tokens,
            validation_workers=settings.validation_workers,
            max_client_batch_size=settings.max_client_batch_size,
            version=serving.__version__,
        )
    )


def _snapshot(model_path: str) -> str | None:
    """The commit in a path of the Hub's cache, `.../snapshots/<commit>`; None anywhere else."""
    path = Path(model_path)
    return path.name if path.parent.name == "snapshots" else None


def health(front: Front) -> flask.Response:
    """GET /health, /ping and /: from memory, in every state."""
    if not front.engine.availability.healthy:
        raise RequestError(ErrorKind.UNHEALTHY, "unhealthy")
    return empty_response(200)


def metrics(front: Front) -> flask.Response:
    """GET /metrics: of all workers and the engine."""
    return flask.Response(front.metrics_page(), content_type=CONTENT_TYPE)
