"""What a request says about tools."""

from pathlib import Path
from typing import Any

import pytest

from serving.errors import ErrorKind, RequestError
from serving.front.chat.messages import Message, TextPart
from serving.front.model import LoadedModel
from serving.front.openai.parameters import chat_request
from serving.front.openai.schema import ChatRequest, Function, FunctionName, NamedChoice, Tool
from serving.front.openai.tool_dialects import GENERIC, HERMES, Dialect
from serving.front.openai.tools import NO_TOOL, TOOL_PROMPT, ToolUse, tool_use
from serving.settings import Settings
from tests.support.tool_models import make_tool_model

SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}
TOOLS = [Tool(Function("f", "Does f.", SCHEMA, strict=True)), Tool(Function("g", arguments=SCHEMA))]
HI = Message(role="user", content="hi")


def body(**fields: Any) -> ChatRequest:
    return ChatRequest(**{"messages": [HI], "tools": TOOLS, **fields})


def use(dialect: Dialect = HERMES, **fields: Any) -> ToolUse:
    found = tool_use(body(**fields), dialect)
    assert found is not None
    return found


def names(found: ToolUse) -> list[str]:
    return [function.name for function in found.callable]


@pytest.mark.parametrize("choice", [None, "auto"])
def test_by_default_the_model_decides(choice: str | None) -> None:
    found = use(tool_choice=choice)
    assert (names(found), found.required, found.parallel) == (["f", "g"], False, True)


def test_a_call_can_be_required() -> None:
    assert use(tool_choice="required").required


@pytest.mark.parametrize("choice", ["g", NamedChoice(FunctionName("g"))])
def test_a_named_function_is_called_once(choice: str | NamedChoice) -> None:
    found = use(tool_choice=choice)
    assert (names(found), found.required, found.parallel) == (["g"], True, False)
    assert len(found.shown) == 2


def test_calls_need_not_be_parallel() -> None:
    assert not use(parallel_tool_calls=False).parallel


@pytest.mark.parametrize("fields", [{"tools": []}, {"tools": None}, {"tool_choice": "none"}])
def test_there_may_be_nothing_to_call(fields: dict[str, Any]) -> None:
    assert tool_use(body(**fields), HERMES) is None


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"tool_choice": "h"}, ErrorKind.TOOL, "not in `tools`: h"),
        ({"tools": [], "tool_choice": "required"}, ErrorKind.TOOL, "needs `tools`"),
        ({"tools": TOOLS[:1] * 2}, ErrorKind.TOOL, "must be different"),
        ({"functions": []}, ErrorKind.VALIDATION, "`functions`"),
        ({"function_call": "auto"}, ErrorKind.VALIDATION, "`function_call`"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], kind: ErrorKind, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        tool_use(body(**fields), HERMES)
    assert caught.value.kind is kind


def test_templates_see_tools_in_their_usual_form() -> None:
    first, second = use().shown
    assert first == {
        "type": "function",
        "function": {"name": "f", "description": "Does f.", "parameters": SCHEMA},
    }
    assert second == {"type": "function", "function": {"name": "g", "parameters": SCHEMA}}


class TestModelsWithoutCallsOfTheirOwn:
    def test_they_may_decline(self) -> None:
        assert names(use(GENERIC)) == ["f", "g", NO_TOOL.name]
        assert use(GENERIC).may_decline
        assert not use(GENERIC, tool_choice="required").may_decline

    def test_the_tools_stand_below_the_question_if_the_template_hides_them(
        self, tmp_path: Path
    ) -> None:
        model = make_tool_model(tmp_path / "model", "GENERIC")
        (message,) = use(GENERIC).messages([HI], model.chat_template)
        assert isinstance(message.content, str)
        assert message.content.startswith('hi\n---\n[{"type": "function", "function": {"name": "f"')
        assert message.content.endswith("\n" + TOOL_PROMPT)

    def test_a_prompt_of_the_client_replaces_ours(self, model: LoadedModel) -> None:
        message = Message(role="user", content=[TextPart("hi")])
        (found,) = use(GENERIC, tool_prompt="Call!").messages([message], model.chat_template)
        assert isinstance(found.content, list)
        assert isinstance(found.content[-1], TextPart)
        assert found.content[-1].text.endswith("\nCall!")

    def test_a_message_to_be_continued_is_left_alone(self, model: LoadedModel) -> None:
        messages = [HI, Message(role="assistant", content="I ")]
        assert use(GENERIC).messages(messages, model.chat_template) == messages


def test_models_with_calls_of_their_own_need_no_prompt(tmp_path: Path) -> None:
    model = make_tool_model(tmp_path / "model", "QWEN")
    assert use().messages([HI], model.chat_template) == [HI]
    assert use(tool_prompt="Call!").messages([HI], model.chat_template) == [
        Message(role="user", content="hi\n---\nCall!")
    ]


def test_a_form_of_the_output_and_tools_exclude_each_other(model: LoadedModel) -> None:
    request = body(response_format={"type": "json_object"})
    with pytest.raises(RequestError, match="mutually exclusive") as caught:
        chat_request(request, model, Settings(), use())
    assert caught.value.kind is ErrorKind.TOOL
