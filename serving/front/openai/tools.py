"""What a request says about tools: which may be called, whether one must, what the prompt shows.

Runs in the front. Comes in: a `ChatRequest` and the model's dialect. Goes out: a `ToolUse`, or
None if no tool can be called. Next: `openai/parameters.py`, `tool_calls.py`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from serving.errors import ErrorKind, RequestError
from serving.front.chat.messages import ImagePart, Message, TextPart
from serving.front.chat.template import ASSISTANT, ChatTemplate
from serving.front.closed_schema import closed
from serving.front.grammars import from_guided_format
from serving.front.openai.schema import ChatRequest, Function, NamedChoice
from serving.front.openai.tool_dialects import Dialect
from serving.front.openai.tool_grammar import Schema, call_grammar
from serving.front.parameters import GuidedFormat
from serving.protocol.params import Grammar

NO_TOOL = Function(
    name="no_tool",
    description="Answer in words: none of the other functions fits the question.",
)
NO_ARGUMENTS: Schema = {"type": "object", "properties": {}, "additionalProperties": False}
# For models that were not trained to call tools, or not in a way that we know.
TOOL_PROMPT = (
    "Answer with a JSON function call. Pick the function that fits the question. "
    'The form is {"function": {"_name": name of the function, ... its arguments}}. '
    "Do not use variables."
)
FORMAT_AND_TOOLS = "Grammar and tools are mutually exclusive"


@dataclass(frozen=True)
class ToolUse:
    """The tools of one request."""

    dialect: Dialect
    callable: list[Function]  # never empty
    shown: list[dict[str, Any]]  # for the template, all that were given
    required: bool
    parallel: bool
    prompt: str | None  # to be added to the last message

    @property
    def may_decline(self) -> bool:
        """Whether calling `NO_TOOL` means that the model wants to answer in words."""
        return NO_TOOL in self.callable

    def grammar(self, added_tokens: Mapping[str, int]) -> Grammar:
        """What the output must match. Raises `RequestError` VALIDATION if it is too long."""
        schemas = {function.name: _schema(function) for function in self.callable}
        source = call_grammar(
            self.dialect,
            schemas,
            added_tokens,
            required=self.required or not self.dialect.is_native,
            parallel=self.parallel,
        )
        return from_guided_format(GuidedFormat("lark", source))

    def messages(self, messages: Sequence[Message], template: ChatTemplate) -> list[Message]:
        """The messages for the template; it may not show the tools, and a prompt may be wanted.

        Both are written below the last message, unless that one is to be continued.
        """
        listed = None if template.shows_tools else json.dumps(self.shown, ensure_ascii=False)
        addition = [text for text in (listed, self.prompt) if text]
        last = messages[-1] if messages else None
        if not addition or last is None or last.content is None or last.role == ASSISTANT:
            return list(messages)
        content = _with_text(last.content, "\n---\n" + "\n".join(addition))
        return [*messages[:-1], replace(last, content=content)]


def tool_use(body: ChatRequest, dialect: Dialect) -> ToolUse | None:
    """The tools that the model may call in this request, None if there are none.

    Raises `RequestError` TOOL if the choice names an unknown function, and VALIDATION for the
    fields that `tools` has replaced.
    """
    if body.functions is not None or body.function_call is not None:
        raise RequestError(
            ErrorKind.VALIDATION,
            "`functions` and `function_call` are not supported: use `tools` and `tool_choice`",
        )
    choice = body.tool_choice or "auto"
    if not body.tools or choice == "none":
        if body.tool_choice not in (None, "none", "auto"):
            raise RequestError(ErrorKind.TOOL, "`tool_choice` needs `tools`")
        return None
    functions = given = [tool.function for tool in body.tools]
    if len({function.name for function in functions}) < len(functions):
        raise RequestError(ErrorKind.TOOL, "the names of `tools` must be different")
    named = choice not in ("auto", "required")
    if named:
        functions = [_named(functions, choice)]
    elif choice == "auto" and not dialect.is_native:
        functions = [*functions, NO_TOOL]
    return ToolUse(
        dialect=dialect,
        callable=functions,
        shown=[_shown(function) for function in given],
        required=choice != "auto",
        parallel=body.parallel_tool_calls is not False and not named,
        prompt=body.tool_prompt or (None if dialect.is_native else TOOL_PROMPT),
    )


def _named(functions: list[Function], choice: str | NamedChoice) -> Function:
    name = choice if isinstance(choice, str) else choice.function.name
    for function in functions:
        if function.name == name:
            return function
    raise RequestError(ErrorKind.TOOL, f"`tool_choice` names a function not in `tools`: {name}")


def _parameters(function: Function) -> Schema:
    """The schema of the arguments; OpenAI takes none to mean a function without any."""
    given = function.arguments if function.parameters is None else function.parameters
    return NO_ARGUMENTS if given is None else given


def _schema(function: Function) -> Schema:
    """The schema to be forced: of an object, and without invented properties.

    What a grammar cannot express is left to the model, unless the function is strict.
    """
    try:
        schema = closed(_parameters(function))
    except RecursionError as error:
        raise RequestError(
            ErrorKind.TOOL, f"the schema of `{function.name}` is nested too deep"
        ) from error
    if "$ref" not in schema:
        schema = {"type": "object", **schema}
    return {**schema, "x-guidance": {"lenient": not function.strict}}


def _shown(function: Function) -> dict[str, Any]:
    """The tool as templates know it."""
    shown: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        shown["description"] = function.description
    return {"type": "function", "function": {**shown, "parameters": _parameters(function)}}


def _with_text(
    content: str | list[TextPart | ImagePart], text: str
) -> str | list[TextPart | ImagePart]:
    return content + text if isinstance(content, str) else [*content, TextPart(text)]
