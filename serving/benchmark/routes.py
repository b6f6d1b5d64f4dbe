"""What differs between the routes that the benchmark can load: request body and event contents.

Runs in the benchmark process. In: a prompt, or the payload of one server-sent event. Out: the JSON
body of a request, or an `EventReading`. Next: `client.py` sends the one and collects the others.
"""

from collections.abc import Callable
from typing import Any

import msgspec

ROUTE_PATHS = {
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
    "generate_stream": "/generate_stream",
}
OPENAI_ROUTES = ("completions", "chat")


class GenerationOptions(msgspec.Struct, frozen=True):
    """What every request of a level asks for; decoding is greedy.

    `model` is sent on the OpenAI routes only. `ignore_eos` has no name on the native TGI route.
    """

    route: str
    max_new_tokens: int
    model: str = ""
    ignore_eos: bool = False


class EventReading(msgspec.Struct, frozen=True):
    """What one event says. Token counts are totals of the request, where the event has them."""

    has_token: bool = False
    is_last: bool = False
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None


def encode_body(options: GenerationOptions, prompt: str) -> bytes:
    """Return the JSON body of one streaming request."""
    return msgspec.json.encode(_BODIES[options.route](options, prompt))


def _openai_fields(options: GenerationOptions) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "model": options.model,
        "max_tokens": options.max_new_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if options.ignore_eos:
        fields["ignore_eos"] = True
    return fields


def _completion_body(options: GenerationOptions, prompt: str) -> dict[str, Any]:
    return {"prompt": prompt} | _openai_fields(options)


def _chat_body(options: GenerationOptions, prompt: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}]} | _openai_fields(options)


def _generate_stream_body(options: GenerationOptions, prompt: str) -> dict[str, Any]:
    # `details` puts the token counts into the last event; greedy is what `parameters` implies.
    parameters = {"max_new_tokens": options.max_new_tokens, "details": True}
    return {"inputs": prompt, "parameters": parameters}


_BODIES: dict[str, Callable[[GenerationOptions, str], dict[str, Any]]] = {
    "completions": _completion_body,
    "chat": _chat_body,
    "generate_stream": _generate_stream_body,
}


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    def has_token(self) -> bool:
        """Whether the choice carries generated tokens, not only a role or a finish reason."""
        if self.delta is not None:
            return bool(self.delta.content or self.delta.reasoning_content)
        # An empty text without a finish reason is a token whose character is still incomplete.
        return bool(self.text) or self.finish_reason is None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Details(msgspec.Struct):
    generated_tokens: int
    input_length: int | None = None


class _Token(msgspec.Struct):
    id: int


class _Error(msgspec.Struct):
    message: str = ""


class _Event(msgspec.Struct):
    """The fields of all routes' events together; their names do not clash."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    token: _Token | None = None
    generated_text: str | None = None
    details: _Details | None = None
    error: str | _Error | None = None


def read_event(payload: bytes) -> EventReading:
    """Interpret the payload of one event of any route.

    Raises `msgspec.DecodeError` when the payload is neither `[DONE]` nor an object of the known
    form.
    """
    if payload == b"[DONE]":
        return EventReading(is_last=True)
    event = msgspec.json.decode(payload, type=_Event)
    if event.error is not None:
        message = event.error.message if isinstance(event.error, _Error) else event.error
        return EventReading(error=message or "error event without a message")
    prompt_tokens = output_tokens = None
    if event.usage is not None:
        prompt_tokens, output_tokens = event.usage.prompt_tokens, event.usage.completion_tokens
    elif event.details is not None:
        prompt_tokens, output_tokens = event.details.input_length, event.details.generated_tokens
    return EventReading(
        has_token=event.token is not None or any(c.has_token() for c in event.choices),
        is_last=event.generated_text is not None,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
    )
