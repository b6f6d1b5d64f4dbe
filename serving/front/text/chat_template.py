"""Chat messages to one prompt text, with the model's own template in a sandbox.

Runs in the front, loaded once per worker. Comes in: the template found by `template_files.py` and
the messages of a request. Goes out: the prompt text, which `openai/parameters.py` tokenizes
without adding special tokens. Next: `openai/parameters.py`.
"""

import datetime
import json
from collections.abc import Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from serving.errors import ErrorKind, RequestError
from serving.front.openai.schema import Message, TextPart


class TemplateRaised(jinja2.TemplateError):
    """The template itself refused the messages."""


class GenerationBlock(Extension):
    """`{% generation %}` marks training targets; for serving its body is all there is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template. Raises `jinja2.TemplateSyntaxError` if it cannot be compiled."""

    def __init__(self, source: str, bos_token: str | None, eos_token: str | None) -> None:
        self._template = _environment().from_string(source)
        self._takes_tool_calls = "tool_calls" in source
        tokens = {"bos_token": bos_token, "eos_token": eos_token}
        # An absent token must be undefined, which prints as nothing; None prints as "None".
        self._tokens = {name: token for name, token in tokens.items() if token is not None}

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt of the messages; a last message of the assistant is to be continued.

        Raises `RequestError` TEMPLATE if the template refuses the messages or fails on them.
        """
        continued = bool(messages) and messages[-1].role == "assistant"
        views = [self._view(message) for message in messages]
        try:
            text = self._template.render(
                messages=views, tools=None, add_generation_prompt=not continued, **self._tokens
            )
        except TemplateRaised as error:
            raise RequestError(ErrorKind.TEMPLATE, f"syntax error: {error.message}") from error
        except Exception as error:  # a template may fail in any way that Python code can
            raise RequestError(ErrorKind.TEMPLATE, str(error)) from error
        return _cut_after(text, views[-1]["content"]) if continued else text

    def _view(self, message: Message) -> dict[str, Any]:
        """The message as templates know it; content is always one string."""
        view: dict[str, Any] = {"role": message.role, "content": flat_content(message)}
        if message.tool_call_id is not None:
            view["tool_call_id"] = message.tool_call_id
        if message.tool_calls and not message.content:
            if self._takes_tool_calls:
                view["tool_calls"] = [_with_parsed_arguments(call) for call in message.tool_calls]
            else:
                view["content"] = json.dumps(message.tool_calls, ensure_ascii=False)
        return view


def flat_content(message: Message) -> str:
    """The content as one string; images become markdown, which a text model sees literally."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "".join(
        part.text if isinstance(part, TextPart) else f"![]({part.image_url.url})"
        for part in message.content
    )


def _cut_after(text: str, content: str) -> str:
    """Leave the last message open: drop what the template puts behind its content."""
    wanted = content.strip()
    start = text.rfind(wanted)
    if start < 0:
        raise RequestError(
            ErrorKind.TEMPLATE, "the template changes the last message, so it cannot be continued"
        )
    return text[: start + len(wanted)].rstrip() if wanted else text


def _with_parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """OpenAI sends arguments as JSON text, templates expect the object."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", GenerationBlock],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja2's own filter escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateRaised(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)
