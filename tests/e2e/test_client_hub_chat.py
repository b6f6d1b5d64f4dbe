"""huggingface_hub.InferenceClient.chat_completion with every parameter that it has."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from answers import (
    ASK_WEATHER,
    CHAT,
    COUNT,
    OPEN_CHAT,
    PERSON,
    QUESTION,
    TOOLS,
    adds_up,
    are_logprobs,
    collect,
    fitting,
    fitting_call,
    named,
    run,
)  # fmt: skip
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from live_server import API_KEY, LiveServer

pytestmark = pytest.mark.e2e

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 200}
SAMPLED: dict[str, Any] = {"temperature": 2.0, "max_tokens": 16}


@pytest.fixture
def client(server: LiveServer) -> Iterator[InferenceClient]:
    with InferenceClient(server.url) as opened:
        yield opened


def content(client: InferenceClient, messages: list[Any] = CHAT, **options: Any) -> str:
    text: str = client.chat_completion(messages, **options).choices[0].message.content
    return text


def streamed(client: InferenceClient, messages: list[Any] = CHAT, **options: Any) -> list[Any]:
    return list(client.chat_completion(messages, stream=True, **options))


def text_of(chunks: list[Any]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def reasons_of(chunks: list[Any]) -> list[str]:
    reasons = (c.choices[0].finish_reason for c in chunks if c.choices)
    return [reason for reason in reasons if reason]


def test_answers_with_reason_and_usage(client: InferenceClient) -> None:
    answer = client.chat_completion(CHAT, **GREEDY)
    (choice,) = answer.choices
    assert choice.message.content.strip() == COUNT
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert adds_up(answer.usage)
    assert answer.model
    assert answer.id


def test_the_openai_alias_is_the_same(client: InferenceClient) -> None:
    answer = client.chat.completions.create(messages=CHAT, model="tgi", **GREEDY)
    assert answer.choices[0].message.content.strip() == COUNT


def test_stream_is_the_whole_text_with_one_reason_and_usage(client: InferenceClient) -> None:
    options: Any = {"include_usage": True}
    chunks = streamed(client, stream_options=options, **GREEDY)
    whole = client.chat_completion(CHAT, **GREEDY)
    assert text_of(chunks) == whole.choices[0].message.content
    assert reasons_of(chunks) == ["stop"]
    assert [chunk.usage for chunk in chunks if chunk.usage] == [chunks[-1].usage]
    assert vars(chunks[-1].usage) == vars(whole.usage)


def test_max_tokens_ends_with_length(client: InferenceClient) -> None:
    answer = client.chat_completion(CHAT, temperature=0, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_n_choices_are_numbered_and_counted(client: InferenceClient) -> None:
    answer = client.chat_completion(OPEN_CHAT, n=3, seed=1, **SAMPLED)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert adds_up(answer.usage)
    chunks = streamed(client, OPEN_CHAT, n=3, seed=1, **SAMPLED)
    for choice in answer.choices:
        of_choice = [c for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert text_of(of_choice) == choice.message.content


def test_a_seed_decides(client: InferenceClient) -> None:
    texts = [content(client, OPEN_CHAT, seed=seed, **SAMPLED) for seed in (1, 2, 3, 1)]
    assert texts[0] == texts[3]
    assert len(set(texts)) > 1


def test_a_narrow_top_p_is_greedy(client: InferenceClient) -> None:
    assert content(client, top_p=0.001, temperature=1.0, max_tokens=200).strip() == COUNT


def test_logprobs_of_every_token_with_candidates(client: InferenceClient) -> None:
    options: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, **GREEDY}
    (choice,) = client.chat_completion(CHAT, **options).choices
    tokens = choice.logprobs.content
    assert are_logprobs(token.logprob for token in tokens)
    for token in tokens:
        assert len(token.top_logprobs) >= 2
        assert token.top_logprobs[0].token == token.token
    chunks = streamed(client, **options)
    found = [c.choices[0].logprobs for c in chunks if c.choices and c.choices[0].logprobs]
    pieces = [token.token for logprobs in found for token in logprobs.content]
    assert pieces == [token.token for token in tokens]


@pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty"])
def test_a_penalty_changes_the_distribution(client: InferenceClient, penalty: str) -> None:
    def logprobs(**options: Any) -> list[float]:
        (choice,) = client.chat_completion(
            CHAT, logprobs=True, temperature=0, max_tokens=12, **options
        ).choices
        return [token.logprob for token in choice.logprobs.content]

    assert logprobs(**{penalty: 2.0}) != logprobs()
    assert logprobs(**{penalty: 0.0}) == logprobs()


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json", "value": PERSON},
        {"type": "json_object", "value": PERSON},
        {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}},
    ],
    ids=named,
)
def test_a_response_format_gives_json_of_its_schema(
    client: InferenceClient, response_format: Any
) -> None:
    fitting(content(client, response_format=response_format, **GREEDY), PERSON)
    fitting(text_of(streamed(client, response_format=response_format, **GREEDY)), PERSON)


def test_a_regex_response_format_is_matched(client: InferenceClient) -> None:
    response_format: Any = {"type": "regex", "value": "[a-c]{3}"}
    assert re.fullmatch("[a-c]{3}", content(client, response_format=response_format, **GREEDY))


def test_a_stop_string_ends_the_text(client: InferenceClient) -> None:
    answer = client.chat_completion(CHAT, stop=["never", ", 7"], **GREEDY)
    assert answer.choices[0].message.content.strip() == COUNT.partition(", 7")[0]
    assert answer.choices[0].finish_reason == "stop"
    assert text_of(streamed(client, stop=[", 7"], **GREEDY)) == answer.choices[0].message.content


@pytest.mark.parametrize(
    "tool_choice", ["required", {"type": "function", "function": {"name": "get_time"}}], ids=named
)
def test_a_forced_tool_is_called_with_fitting_arguments(
    client: InferenceClient, tool_choice: Any
) -> None:
    (choice,) = client.chat_completion(
        ASK_WEATHER, tools=TOOLS, tool_choice=tool_choice, tool_prompt="Call one.", **GREEDY
    ).choices
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls:
        fitting_call(call.function.name, call.function.arguments)
        assert call.id
        assert tool_choice == "required" or call.function.name == "get_time"


def test_a_streamed_tool_call_is_the_whole_one(client: InferenceClient) -> None:
    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", **GREEDY}
    whole = client.chat_completion(ASK_WEATHER, **options).choices[0].message.tool_calls[0]
    chunks = streamed(client, ASK_WEATHER, **options)
    calls = [call for c in chunks if c.choices for call in c.choices[0].delta.tool_calls or []]
    first = [call for call in calls if call.index == 0]
    assert first[0].function.name == whole.function.name
    assert "".join(call.function.arguments for call in first) == whole.function.arguments
    assert reasons_of(chunks) == ["tool_calls"]


def test_no_tool_is_called_where_none_may_be(client: InferenceClient) -> None:
    choice: Any = "none"
    (answer,) = client.chat_completion(CHAT, tools=TOOLS, tool_choice=choice, **GREEDY).choices
    assert answer.message.content
    assert not answer.message.tool_calls


def test_extra_body_reaches_the_server(client: InferenceClient) -> None:
    options: dict[str, Any] = {"extra_body": {"ignore_eos": True}, "temperature": 0}
    answer = client.chat_completion(CHAT, max_tokens=60, **options)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (60, "length")


def test_all_parameters_at_once_are_reproducible(client: InferenceClient) -> None:
    options: dict[str, Any] = {
        "frequency_penalty": 0.2, "logprobs": True, "max_tokens": 12, "n": 2, "seed": 3,
        "presence_penalty": 0.1, "stop": ["zzz"], "temperature": 1.5, "top_logprobs": 2,
        "top_p": 0.9, "tool_choice": "none", "tool_prompt": "Call one.", "tools": TOOLS,
        "extra_body": {"top_k": 30}, "model": None, "logit_bias": None, "stream_options": None,
        "response_format": None,
    }  # fmt: skip
    known = set(inspect.signature(InferenceClient.chat_completion).parameters)
    assert known - set(options) == {"self", "messages", "stream"}
    first, second = (client.chat_completion(CHAT, **options) for _ in range(2))
    assert first.choices == second.choices
    assert len(first.choices) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "`temperature`"),
        ({"frequency_penalty": 3.0}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"presence_penalty": -3.0}, "`presence_penalty` must be >= -2.0 and <= 2.0"),
        ({"max_tokens": 0}, "must be strictly positive"),
        ({"top_logprobs": 6, "logprobs": True}, "must be >= 0 and <= 5. Given: 6"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "fly"}}}, "fly"),
    ],
    ids=named,
)
def test_what_is_out_of_range_is_a_422_that_says_why(
    client: InferenceClient, wrong: dict[str, Any], message: str, stream: bool
) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        list(client.chat_completion(CHAT, stream=stream, **wrong))
    assert caught.value.response.status_code == 422
    if not stream:  # the client does not show the body of a failed stream
        assert message in str(caught.value)


def test_a_key_is_asked_for(guarded: LiveServer) -> None:
    with InferenceClient(guarded.url, token=API_KEY) as client:
        assert content(client, **GREEDY).strip() == COUNT
    with (
        InferenceClient(guarded.url, token="no") as client,
        pytest.raises(HfHubHTTPError) as caught,
    ):
        client.chat_completion(CHAT)
    assert caught.value.response.status_code == 401


def test_asynchronous_client_chats_streams_and_calls(server: LiveServer) -> None:
    async def ask() -> tuple[Any, list[Any], Any]:
        choice: Any = "required"
        async with AsyncInferenceClient(server.url) as client:
            whole = await client.chat_completion(CHAT, **GREEDY)
            chunks = await collect(await client.chat_completion(CHAT, stream=True, **GREEDY))
            called = await client.chat_completion(
                [{"role": "user", "content": QUESTION}], tools=TOOLS, tool_choice=choice, **GREEDY
            )
            return whole, chunks, called

    whole, chunks, called = run(ask)
    assert whole.choices[0].message.content.strip() == COUNT
    assert text_of(chunks) == whole.choices[0].message.content
    call = called.choices[0].message.tool_calls[0].function
    fitting_call(call.name, call.arguments)
