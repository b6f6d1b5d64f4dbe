"""OpenAI's routes, correct by OpenAI's definition.

Runs in the front. Comes in: HTTP requests on /v1/chat/completions, /v1/completions, /v1/models.
Goes out: OpenAI's bodies and chunks. What fails before the first token fails with its own status,
also on streams. Next: `openai/parameters.py`, `openai/responses.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain

import flask

from serving.front.bodies import read_body
from serving.front.context import Front
from serving.front.generation import Generation
from serving.front.handling import Handling
from serving.front.headers import response_headers, stream_headers
from serving.front.model import LoadedModel
from serving.front.openai.parameters import chat_request, completion_requests
from serving.front.openai.responses import Chat, Completion, Shape, stream_error
from serving.front.openai.schema import ChatRequest, CompletionRequest, ModelCard, ModelList
from serving.front.responses import json_response
from serving.front.streaming import DONE, KEEP_ALIVE, KEEP_ALIVE_SECONDS, event_stream, frame
from serving.front.text.sequence_text import TokenEvent
from serving.front.validation import ValidRequest

# A stream's status is decided by its first event, but no client waits longer for headers.
FIRST_EVENT_SECONDS = 2.0


def blueprint(front: Front) -> flask.Blueprint:
    """The routes, bound to `front`."""
    routes = flask.Blueprint("openai", __name__, url_prefix="/v1")
    routes.add_url_rule("/chat/completions", "chat", partial(chat, front), methods=["POST"])
    routes.add_url_rule(
        "/completions", "completions", partial(completions, front), methods=["POST"]
    )
    routes.add_url_rule("/models", "models", partial(models, front), methods=["GET"])
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
    model = front.serving_model()
    shape = Chat(body, model.name)
    return _answer(front, model, shape, lambda: [chat_request(body, model, front.settings)])


def completion_response(front: Front, body: CompletionRequest) -> flask.Response:
    """What /v1/completions answers; /invocations shares it."""
    model = front.serving_model()
    shape = Completion(body, model.name)
    return _answer(front, model, shape, lambda: completion_requests(body, model, front.settings))


def _answer(
    front: Front,
    model: LoadedModel,
    shape: Shape,
    make_requests: Callable[[], Sequence[ValidRequest]],
) -> flask.Response:
    handling = Handling(front, shape.prompts)
    if not shape.stream:
        with handling:
            requests = make_requests()
            generation = handling.start(requests, keep_stop=False)
            generation.run()
            headers = response_headers(model.info, requests, generation.sequences, handling.started)
            content = shape.response(requests, generation.sequences)
            handling.succeed()
            return json_response(content, headers=headers)
    with handling.until_response():
        requests = make_requests()
        generation = handling.start(requests, keep_stop=False)
        events = generation.events(KEEP_ALIVE_SECONDS, FIRST_EVENT_SECONDS)
        events = chain([next(events)], events)
    frames = _frames(shape, requests, generation, events)
    headers = stream_headers(model.info, [request.prompt for request in requests])
    return event_stream(frames, handling, headers, lambda error: [frame(stream_error(error)), DONE])


def _frames(
    shape: Shape,
    requests: Sequence[ValidRequest],
    generation: Generation,
    events: Iterator[TokenEvent | None],
) -> Iterator[bytes]:
    """Chunks of every token, then usage if it was asked for, then the terminator."""
    for event in events:
        if event is None:
            yield KEEP_ALIVE
        else:
            yield from map(frame, shape.chunks(event))
    if shape.include_usage:
        yield frame(shape.usage_chunk(requests, generation.sequences))
    yield DONE
