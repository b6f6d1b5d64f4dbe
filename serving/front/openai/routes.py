"""OpenAI's routes, correct by OpenAI's definition.

Runs in the front. Comes in: HTTP requests on /v1/chat/completions, /v1/completions, /v1/models.
Goes out: OpenAI's bodies and chunks. What fails before the first token fails with its own status,
also on streams. Next: `openai/parameters.py`, `openai/responses.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain

import flask

from serving.errors import BodyError, RequestError
from serving.front.bodies import read_body
from serving.front.context import Front
from serving.front.generation import Generation
from serving.front.handling import Handling
from serving.front.headers import response_headers, stream_headers
from serving.front.model import LoadedModel
from serving.front.openai.errors import (
    OpenAIRequestError,
    openai_body_error_response,
    openai_error_response,
    openai_errors,
    stream_error,
)
from serving.front.openai.parameters import chat_request, completion_requests
from serving.front.openai.response_schema import ModelCard, ModelList
from serving.front.openai.responses import Chat, Completion, EchoedPrompt, Shape
from serving.front.openai.schema import ChatRequest, CompletionRequest
from serving.front.openai.tool_chat import ToolChat
from serving.front.openai.tools import tool_use
from serving.front.responses import json_response
from serving.front.sequence_text import SequenceText, TokenEvent
from serving.front.streaming import DONE, KEEP_ALIVE, KEEP_ALIVE_SECONDS, event_stream, frame
from serving.front.validation import ValidRequest

# A stream's status is decided by its first event, but no client waits longer for headers.
FIRST_EVENT_SECONDS = 2.0

Prepared = tuple[Shape, Sequence[ValidRequest]]


def blueprint(front: Front) -> flask.Blueprint:
    """The routes, bound to `front`."""
    routes = flask.Blueprint("openai", __name__, url_prefix="/v1")
    routes.add_url_rule("/chat/completions", "chat", partial(chat, front), methods=["POST"])
    routes.add_url_rule(
        "/completions", "completions", partial(completions, front), methods=["POST"]
    )
    routes.add_url_rule("/models", "models", partial(models, front), methods=["GET"])
    routes.register_error_handler(RequestError, openai_error_response)
    routes.register_error_handler(BodyError, openai_body_error_response)
    # Of the whole application: these bodies come by other routes too, such as /invocations.
    routes.app_errorhandler(OpenAIRequestError)(openai_error_response)
    return routes


def chat(front: Front) -> flask.Response:
    """POST /v1/chat/completions."""
    return chat_response(front, read_body(ChatRequest))


def completions(front: Front) -> flask.Response:
    """POST /v1/completions."""
    return completion_response(front, read_body(CompletionRequest))


def models(front: Front) -> flask.Response:
    """GET /v1/models: the one model."""
    name = front.loaded_model().name
    return json_response(ModelList("list", [ModelCard(name, "model", 0, name)]))


def chat_response(front: Front, body: ChatRequest) -> flask.Response:
    """What /v1/chat/completions answers; /invocations shares it."""
    with openai_errors():
        model = front.serving_model()
        return _answer(front, model, bool(body.stream), 1, lambda: _chat(front, model, body))


def completion_response(front: Front, body: CompletionRequest) -> flask.Response:
    """What /v1/completions answers; /invocations shares it."""

    def prepare() -> Prepared:
        requests = completion_requests(body, model, front.settings)
        shape = EchoedPrompt if body.only_echoes else Completion
        return shape(body, model, requests), requests

    with openai_errors():
        model = front.serving_model()
        return _answer(front, model, bool(body.stream), len(body.prompts), prepare)


def _chat(front: Front, model: LoadedModel, body: ChatRequest) -> Prepared:
    """A chat in words, or one in which tools can be called."""
    use = tool_use(body, model.tool_dialect)
    if use is None:
        return Chat(body, model.name), [chat_request(body, model, front.settings)]

    def in_words() -> ValidRequest:
        return chat_request(body, model, front.settings)

    request = chat_request(body, model, front.settings, use)
    return ToolChat(body, model.name, use, in_words), [request]


def _answer(
    front: Front,
    model: LoadedModel,
    stream: bool,
    prompts: int,
    prepare: Callable[[], Prepared],
) -> flask.Response:
    """Generate and answer, whole or as a stream; `prepare` may raise `RequestError`."""
    handling = Handling(front, prompts, stream=stream)
    if not stream:
        with handling:
            shape, requests = prepare()
            exchange = _Exchange(handling, shape, requests)
            for event in exchange.events(KEEP_ALIVE_SECONDS):
                if event is not None:
                    shape.read(event)
            requests, sequences = exchange.requests, exchange.sequences
            headers = response_headers(model.info, requests, sequences, handling.started)
            content = shape.response(requests, sequences)
            handling.succeed()
            return json_response(content, headers=headers)
    with handling.until_response():
        shape, requests = prepare()
        exchange = _Exchange(handling, shape, requests)
        events = exchange.events(KEEP_ALIVE_SECONDS, FIRST_EVENT_SECONDS)
        events = chain([next(events)], events)
    headers = stream_headers(model.info, [request.prompt for request in requests])
    return event_stream(
        _frames(exchange, events),
        handling,
        headers,
        lambda error: [frame(stream_error(error)), DONE],
    )


class _Exchange:
    """The generation of a request, and the second one where its shape asks for that."""

    def __init__(self, handling: Handling, shape: Shape, requests: Sequence[ValidRequest]) -> None:
        """Submit the sequences. Raises `RequestError`."""
        self.shape = shape
        self._handling = handling
        self._begin(requests)

    def _begin(self, requests: Sequence[ValidRequest]) -> None:
        self.requests = requests
        self._generation: Generation = self._handling.start(requests, keep_stop=False)

    @property
    def sequences(self) -> Sequence[SequenceText]:
        """Those of the last generation."""
        return self._generation.sequences

    def events(
        self, tick_seconds: float, first_tick_seconds: float | None = None
    ) -> Iterator[TokenEvent | None]:
        """As `Generation.events`; the shape must have seen each event before the next."""
        yield from self._generation.events(tick_seconds, first_tick_seconds)
        requests = self.shape.second_round()
        if requests:
            self._begin(requests)
            yield from self._generation.events(tick_seconds)


def _frames(exchange: _Exchange, events: Iterator[TokenEvent | None]) -> Iterator[bytes]:
    """Chunks of every token, then usage if it was asked for, then the terminator."""
    shape = exchange.shape
    for event in events:
        if event is None:
            yield KEEP_ALIVE
        else:
            yield from map(frame, shape.chunks(event))
    if shape.include_usage:
        yield frame(shape.usage_chunk(exchange.requests, exchange.sequences))
    yield DONE
