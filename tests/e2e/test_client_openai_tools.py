"""Tools with the openai client: every choice, streamed, in parallel, through its helpers."""

import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from answers import ASK_WEATHER, CHAT, COUNT, TOOLS, adds_up, fitting_call
from live_server import LiveServer
from pydantic import BaseModel, Field

pytestmark = pytest.mark.e2e

GREEDY: dict[str, Any] = {"model": "tgi", "temperature": 0, "max_tokens": 200}
BY_NAME = {"type": "function", "function": {"name": "get_time"}}


class GetTime(BaseModel):
    """Tell the time."""

    zone: str = Field(max_length=9)


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as opened:
        yield opened


def ask(client: openai.OpenAI, messages: list[Any] = ASK_WEATHER, **options: Any) -> Any:
    options = {"tools": TOOLS, **GREEDY, **options}
    return client.chat.completions.create(messages=messages, **options)


def streamed(client: openai.OpenAI, **options: Any) -> list[Any]:
    with ask(client, stream=True, **options) as stream:
        return list(stream)


def assembled(chunks: list[Any]) -> list[dict[str, str]]:
    """The calls of a stream: id, name and arguments joined as OpenAI says, by index."""
    calls: dict[int, dict[str, str]] = {}
    for delta in (c.delta for chunk in chunks for c in chunk.choices):
        for call in delta.tool_calls or []:
            found = calls.setdefault(call.index, {"id": "", "name": "", "arguments": ""})
            found["id"] += call.id or ""
            found["name"] += call.function.name or ""
            found["arguments"] += call.function.arguments or ""
    assert list(calls) == list(range(len(calls)))
    return list(calls.values())


@pytest.mark.parametrize("choice", ["required", BY_NAME], ids=["required", "named"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_forced_call_fits_its_schema(
    client: openai.OpenAI, choice: Any, temperature: float
) -> None:
    answer = ask(client, tool_choice=choice, temperature=temperature, seed=1)
    (chosen,) = answer.choices
    assert chosen.finish_reason == "tool_calls"
    assert chosen.message.content is None
    assert adds_up(answer.usage)
    for call in chosen.message.tool_calls:
        fitting_call(call.function.name, call.function.arguments)
        assert call.type == "function"
        assert choice == "required" or call.function.name == "get_time"
    assert len({call.id for call in chosen.message.tool_calls}) == len(chosen.message.tool_calls)


def test_auto_calls_or_answers_in_words(client: openai.OpenAI) -> None:
    for messages in (ASK_WEATHER, CHAT):
        (choice,) = ask(client, messages, tool_choice="auto").choices
        if choice.message.tool_calls:
            assert choice.finish_reason == "tool_calls"
            for call in choice.message.tool_calls:
                fitting_call(call.function.name, call.function.arguments)
        else:
            assert choice.finish_reason == "stop"
            assert choice.message.content


def test_auto_is_the_default_and_streamed_alike(client: openai.OpenAI) -> None:
    for messages in (ASK_WEATHER, CHAT):
        message = ask(client, messages).choices[0].message
        chunks = streamed(client, messages=messages)
        deltas = [c.delta for chunk in chunks for c in chunk.choices]
        assert "".join(delta.content or "" for delta in deltas) == (message.content or "")
        whole = [(c.function.name, c.function.arguments) for c in message.tool_calls or []]
        assert [(c["name"], c["arguments"]) for c in assembled(chunks)] == whole


def test_none_answers_in_words(client: openai.OpenAI) -> None:
    (choice,) = ask(client, CHAT, tool_choice="none").choices
    assert choice.message.content.strip() == COUNT
    assert choice.message.tool_calls is None


@pytest.mark.parametrize("choice", ["required", BY_NAME], ids=["required", "named"])
def test_a_stream_of_calls_is_the_whole_ones(client: openai.OpenAI, choice: Any) -> None:
    whole = ask(client, tool_choice=choice).choices[0].message.tool_calls
    chunks = streamed(client, tool_choice=choice, stream_options={"include_usage": True})
    calls = assembled(chunks)
    assert [(c["name"], c["arguments"]) for c in calls] == [
        (call.function.name, call.function.arguments) for call in whole
    ]
    assert all(call["id"] for call in calls)
    reasons = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert reasons == ["tool_calls"]
    assert adds_up(chunks[-1].usage)
    pieces = [c.delta.tool_calls for chunk in chunks for c in chunk.choices if c.delta.tool_calls]
    assert len(pieces) > 3


def test_without_parallel_calls_there_is_one(client: openai.OpenAI) -> None:
    message = ask(client, tool_choice="required", parallel_tool_calls=False).choices[0].message
    assert len(message.tool_calls) == 1


def test_every_choice_of_several_is_a_call(client: openai.OpenAI) -> None:
    answer = ask(client, tool_choice=BY_NAME, n=2, temperature=1.5, seed=3)
    assert len(answer.choices) == 2
    for choice in answer.choices:
        (call,) = choice.message.tool_calls
        fitting_call(call.function.name, call.function.arguments)


def test_a_call_that_is_cut_off_ends_with_length(client: openai.OpenAI) -> None:
    (choice,) = ask(client, tool_choice=BY_NAME, max_tokens=8).choices
    assert choice.finish_reason == "length"
    chunks = streamed(client, tool_choice=BY_NAME, max_tokens=8)
    assert [c.finish_reason for chunk in chunks for c in chunk.choices][-1] == "length"


def test_a_result_is_taken_back(client: openai.OpenAI) -> None:
    message = ask(client, tool_choice="required", parallel_tool_calls=False).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "21 degrees"}
    messages = [*ASK_WEATHER, message.model_dump(exclude_none=True), result]
    (choice,) = ask(client, messages, tool_choice="none").choices
    assert choice.finish_reason == "stop"
    assert choice.message.content


def test_the_stream_helper_gives_a_parsed_call(client: openai.OpenAI) -> None:
    tools: Any = [openai.pydantic_function_tool(GetTime, name="get_time")]
    options: Any = {"tools": tools, "tool_choice": "required", **GREEDY}
    with client.chat.completions.stream(messages=ASK_WEATHER, **options) as stream:
        done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls
    assert isinstance(calls[0].function.parsed_arguments, GetTime)
    assert [event.arguments for event in done] == [call.function.arguments for call in calls]


def test_parse_gives_a_parsed_call(client: openai.OpenAI) -> None:
    tools: Any = [openai.pydantic_function_tool(GetTime, name="get_time")]
    answer = client.chat.completions.parse(
        messages=ASK_WEATHER, tools=tools, tool_choice="required", **GREEDY
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert isinstance(calls[0].function.parsed_arguments, GetTime)


def test_a_function_without_parameters_is_called_with_none(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "ping"}}
    (choice,) = ask(client, tools=[tool], tool_choice="required", parallel_tool_calls=False).choices
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("ping", {})


def test_no_tools_is_a_plain_chat(client: openai.OpenAI) -> None:
    (choice,) = ask(client, CHAT, tools=[]).choices
    assert choice.message.content.strip() == COUNT


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "fly"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": openai.NOT_GIVEN, "tool_choice": "required"}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "name"),
    ],
    ids=["unknown", "twice", "missing", "nameless"],
)
def test_tools_that_make_no_sense_are_a_readable_422(
    client: openai.OpenAI, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match=re.escape(message)):
        ask(client, **wrong)
