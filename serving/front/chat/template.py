"""Chat messages to one prompt text, with the model's own templates.

Runs in the front, loaded once per worker. Comes in: the templates found by `template_files.py`
and a conversation. Goes out: the prompt text, which `openai/parameters.py` tokenizes without
adding special tokens. Next: `openai/parameters.py`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import meta, nodes

from serving.errors import ErrorKind, RequestError
from serving.front.chat.messages import Message, TextPart
from serving.front.chat.sandbox import SandboxedTemplate, TemplateRaised
from serving.front.chat.template_files import DEFAULT

TOOL_USE = "tool_use"  # the name of a template for chats with tools
ASSISTANT = "assistant"
OPEN_END = "OPEN-END-OF-THE-LAST-MESSAGE "  # its blank tells whether a template trims messages


class ChatTemplate:
    """The templates of a model by name, and the special tokens that they may write.

    Raises `jinja2.TemplateSyntaxError` if one cannot be compiled.
    """

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._named = {name: _Template(source) for name, source in sources.items()}
        self._tokens = special_tokens

    @property
    def source_for_tools(self) -> str:
        """The text of the template of a chat with tools."""
        return self._choose(with_tools=True).source

    @property
    def shows_tools(self) -> bool:
        """Whether that template writes the tools into the prompt."""
        return self._choose(with_tools=True).shows_tools

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        documents: Sequence[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
    ) -> str:
        """The prompt of the messages; a last message of the assistant is to be continued.

        The last two say otherwise, where they are given. Raises `RequestError` TEMPLATE if there
        is no template, or if it refuses the messages or fails on them.
        """
        continued = _is_continued(messages, add_generation_prompt, continue_final_message)
        template = self._choose(bool(tools))
        names = _names_of_calls(messages)
        views = [template.view(message, names) for message in messages]
        if continued:
            views[-1]["content"] = _with_open_end(views[-1]["content"])
        if add_generation_prompt is None:
            add_generation_prompt = not continued
        text = template.render(
            {
                **self._tokens,
                **(variables or {}),
                "messages": views,
                "tools": tools,
                "documents": documents,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        if not continued:
            return text
        # TGI trims what is to be continued; who asks for it in so many words gets it exactly.
        return _cut(text, trim=not continue_final_message)

    def _choose(self, with_tools: bool) -> "_Template":
        for name in (TOOL_USE, DEFAULT) if with_tools else (DEFAULT,):
            if name in self._named:
                return self._named[name]
        known = ", ".join(self._named)
        raise RequestError(
            ErrorKind.TEMPLATE, f"the model has no template named `{DEFAULT}`, only: {known}"
        )


class _Template:
    """One template, and what can be seen from its text."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._template = SandboxedTemplate(source)
        tree = self._template.tree
        self.shows_tools = "tools" in meta.find_undeclared_variables(tree)
        self._takes_tool_calls = "tool_calls" in source
        self._takes_parts = _takes_parts(tree)

    def render(self, variables: dict[str, Any]) -> str:
        """The text. Raises `RequestError` TEMPLATE."""
        try:
            return self._template.render(variables)
        except TemplateRaised as error:
            raise RequestError(ErrorKind.TEMPLATE, f"syntax error: {error.message}") from error
        except Exception as error:  # a template may fail in any way that Python code can
            raise RequestError(ErrorKind.TEMPLATE, str(error)) from error

    def view(self, message: Message, names: Mapping[str, str]) -> dict[str, Any]:
        """The message as this template knows it; `names`: of functions, by id of the call."""
        fields = {
            "name": message.name or names.get(message.tool_call_id or ""),
            "tool_call_id": message.tool_call_id,
            "reasoning_content": message.reasoning_content,
        }
        view: dict[str, Any] = {"role": message.role, "content": flat_content(message)}
        view |= {name: value for name, value in fields.items() if value is not None}
        if message.tool_calls:
            if self._takes_tool_calls:
                view["tool_calls"] = [_with_parsed_arguments(call) for call in message.tool_calls]
            else:
                calls = json.dumps(message.tool_calls, ensure_ascii=False)
                view["content"] = "\n".join(filter(None, [view["content"], calls]))
        if self._takes_parts:
            view["content"] = [{"type": "text", "text": view["content"]}]
        return view


def flat_content(message: Message) -> str:
    """The content as one string; images become markdown, which a text model sees literally."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "".join(
        part.text if isinstance(part, TextPart) else f"![]({part.image_url.url})"
        for part in message.content
    )


def _names_of_calls(messages: Sequence[Message]) -> dict[str, str]:
    """Id to name: some templates want the name with a result, where OpenAI sends the id only."""
    names = {}
    for message in messages:
        for call in message.tool_calls or []:
            function = call.get("function")
            if isinstance(function, dict):
                names[str(call.get("id"))] = str(function.get("name"))
    return names


def _takes_parts(tree: nodes.Template) -> bool:
    """Whether the template reads parts of a content without asking if it is a string."""

    def is_content(node: nodes.Node) -> bool:
        match node:
            case nodes.Getattr(attr="content") | nodes.Name(name="content"):
                return True
            case nodes.Getitem(arg=nodes.Const(value="content")):
                return True
        return False

    tests = (test for test in tree.find_all(nodes.Test) if test.name in ("string", "iterable"))
    if any(is_content(test.node) for test in tests):
        return False
    loops = any(is_content(loop.iter) for loop in tree.find_all(nodes.For))
    return loops or any(
        is_content(item.node) and isinstance(item.arg, nodes.Const) and item.arg.value == 0
        for item in tree.find_all(nodes.Getitem)
    )


def _is_continued(
    messages: Sequence[Message], add_generation_prompt: bool | None, wanted: bool | None
) -> bool:
    """Whether the last message stays open. Raises `RequestError` TEMPLATE on a contradiction."""
    if wanted and add_generation_prompt:
        raise RequestError(
            ErrorKind.TEMPLATE,
            "`continue_final_message` and `add_generation_prompt` cannot both be true",
        )
    if wanted and (not messages or messages[-1].content is None):
        raise RequestError(
            ErrorKind.TEMPLATE, "`continue_final_message` needs a last message with `content`"
        )
    if wanted is not None or add_generation_prompt:
        return bool(wanted)
    return bool(messages) and messages[-1].role == ASSISTANT and not messages[-1].tool_calls


def _with_open_end(content: Any) -> Any:
    if isinstance(content, str):
        return content + OPEN_END
    return [*content[:-1], {**content[-1], "text": content[-1]["text"] + OPEN_END}]


def _cut(text: str, trim: bool) -> str:
    """Leave the last message open: drop its mark and what the template puts behind it."""
    end = text.rfind(OPEN_END.strip())
    if end < 0:
        raise RequestError(
            ErrorKind.TEMPLATE, "the template changes the last message, so it cannot be continued"
        )
    trimmed = not text.startswith(OPEN_END, end)
    return text[:end].rstrip() if trim or trimmed else text[:end]


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
