"""The openai client's chats with every parameter, structured outputs, typed errors."""

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from answers import (
    CHAT,
    COUNT,
    OPEN_CHAT,
    PERSON,
    adds_up,
    are_logprobs,
    collect,
    fitting,
    named,
    run,
)  # fmt: skip
from live_server import API_KEY, LiveServer
from pydantic import BaseModel, Field

pytestmark = pytest.mark.e2e

GREEDY: dict[str, Any] = {"model": "tgi", "temperature": 0, "max_tokens": 200}
SAMPLED: dict[str, Any] = {"model": "tgi", "temperature": 2.0, "max_tokens": 16}
STRICT = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON, "strict": True}}


class Pet(BaseModel):
    """What `.parse` asks for; the length keeps a toy model from writing for ever."""

    kind: Literal["cat", "dog"]
    legs: int = Field(ge=0, le=8)
    names: list[Literal["Tom", "Rex"]] = Field(max_length=2)


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as opened:
        yield opened


def chat(client: openai.OpenAI, messages: list[Any] = CHAT, **options: Any) -> Any:
    return client.chat.completions.create(messages=messages, **options)


def streamed(client: openai.OpenAI, messages: list[Any] = CHAT, **options: Any) -> list[Any]:
    with client.chat.completions.create(messages=messages, stream=True, **options) as stream:
        return list(stream)


def text_of(chunks: list[Any], index: int = 0) -> str:
    deltas = (c.delta for chunk in chunks for c in chunk.choices if c.index == index)
    return "".join(delta.content or "" for delta in deltas)


def test_answers_with_reason_usage_and_id(client: openai.OpenAI) -> None:
    answer = chat(client, **GREEDY)
    (choice,) = answer.choices
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert choice.message.content.strip() == COUNT
    assert choice.message.tool_calls is None
    assert choice.logprobs is None
    assert adds_up(answer.usage)
    assert answer.id != chat(client, **GREEDY).id
    assert answer.object == "chat.completion"


def test_stream_is_the_whole_text_with_usage_at_the_end(client: openai.OpenAI) -> None:
    whole = chat(client, **GREEDY)
    chunks = streamed(client, stream_options={"include_usage": True}, **GREEDY)
    assert text_of(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.usage for chunk in chunks if chunk.usage] == [whole.usage]
    assert chunks[-1].choices == []
    reasons = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert reasons == ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_without_the_option_has_no_usage(client: openai.OpenAI) -> None:
    assert not any(chunk.usage for chunk in streamed(client, **GREEDY))


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_token_limit_ends_with_length(client: openai.OpenAI, name: str) -> None:
    answer = chat(client, model="tgi", temperature=0, **{name: 3})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_stop_is_a_string_or_a_list(client: openai.OpenAI) -> None:
    for stop in (", 7", ["never", ", 7"]):
        (choice,) = chat(client, stop=stop, **GREEDY).choices
        assert choice.message.content.strip() == COUNT.partition(", 7")[0]
        assert choice.finish_reason == "stop"
        assert text_of(streamed(client, stop=stop, **GREEDY)) == choice.message.content


def test_choices_differ_and_are_streamed_alike(client: openai.OpenAI) -> None:
    answer = chat(client, OPEN_CHAT, n=3, seed=1, **SAMPLED)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert adds_up(answer.usage)
    chunks = streamed(client, OPEN_CHAT, n=3, seed=1, **SAMPLED)
    for choice in answer.choices:
        assert text_of(chunks, choice.index) == choice.message.content


def test_a_seed_decides(client: openai.OpenAI) -> None:
    texts = [
        chat(client, OPEN_CHAT, seed=seed, **SAMPLED).choices[0].message.content
        for seed in (1, 2, 3, 1)
    ]
    assert texts[0] == texts[3]
    assert len(set(texts)) > 1


def test_logprobs_tell_tokens_bytes_and_candidates(client: openai.OpenAI) -> None:
    (choice,) = chat(client, logprobs=True, top_logprobs=2, **GREEDY).choices
    tokens = choice.logprobs.content
    assert are_logprobs(token.logprob for token in tokens)
    assert choice.message.content.startswith("".join(token.token for token in tokens[:9]))
    for token in tokens:
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) >= 2
        assert token.top_logprobs[0].logprob == token.logprob
    chunks = streamed(client, logprobs=True, top_logprobs=2, **GREEDY)
    found = [c.logprobs.content for chunk in chunks for c in chunk.choices if c.logprobs]
    assert [token for part in found for token in part] == tokens


def test_a_bias_decides(client: openai.OpenAI, server: LiveServer) -> None:
    token = server.post("/tokenize", {"inputs": "7"})[-1]["id"]
    forced = chat(client, **{**GREEDY, "max_tokens": 4}, logit_bias={str(token): 100})
    assert forced.choices[0].message.content == "7777"
    banned = chat(client, **GREEDY, logit_bias={str(token): -100})
    assert "7" not in banned.choices[0].message.content


@pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty"])
def test_a_penalty_is_taken_from_what_was_said_only(client: openai.OpenAI, penalty: str) -> None:
    def logprobs(value: float) -> list[float]:
        options: Any = {**GREEDY, "max_tokens": 12, "logprobs": True, penalty: value}
        (choice,) = chat(client, **options).choices
        return [token.logprob for token in choice.logprobs.content]

    plain, penalized = logprobs(0.0), logprobs(2.0)
    assert penalized[0] == plain[0]  # nothing was said yet: the prompt does not count
    assert penalized != plain


@pytest.mark.parametrize(
    "response_format",
    [STRICT, {"type": "json_object", "value": PERSON}, {"type": "json", "value": PERSON}],
    ids=["json_schema", "json_object", "json"],
)
def test_a_response_format_gives_json_of_its_schema(
    client: openai.OpenAI, response_format: Any
) -> None:
    options: dict[str, Any] = {"response_format": response_format, **GREEDY}
    (choice,) = chat(client, **options).choices
    fitting(choice.message.content, PERSON)
    assert text_of(streamed(client, **options)) == choice.message.content


def test_json_mode_gives_an_object(client: openai.OpenAI) -> None:
    options: Any = {**GREEDY, "max_tokens": 400, "response_format": {"type": "json_object"}}
    (choice,) = chat(client, [{"role": "user", "content": "Give me JSON"}], **options).choices
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)
    assert choice.message.content.lstrip().startswith("{")


def test_the_text_format_is_no_format(client: openai.OpenAI) -> None:
    (choice,) = chat(client, response_format={"type": "text"}, **GREEDY).choices
    assert choice.message.content.strip() == COUNT


def test_parse_gives_an_instance_of_a_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(messages=CHAT, response_format=Pet, **GREEDY)
    pet = answer.choices[0].message.parsed
    assert isinstance(pet, Pet)
    assert pet.legs <= 8


def test_the_stream_helper_assembles_text_and_usage(client: openai.OpenAI) -> None:
    options: Any = {"stream_options": {"include_usage": True}, **GREEDY}
    with client.chat.completions.stream(messages=CHAT, **options) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "".join(deltas)
    assert final.choices[0].message.content.strip() == COUNT
    assert final.usage is not None
    assert adds_up(final.usage)


def test_the_stream_helper_parses_a_model(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(messages=CHAT, response_format=Pet, **GREEDY) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Pet)


def test_every_role_and_parts_of_text_are_taken(client: openai.OpenAI) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [{"type": "text", "text": "Be polite."}]},
        {"role": "user", "content": "Count to 3", "name": "me"},
        {"role": "assistant", "content": "1, 2, 3"},
        {
            "role": "user",
            "content": [{"type": "text", "text": text} for text in ("Count to ", "10")],
        },
    ]
    assert COUNT in chat(client, messages, **GREEDY).choices[0].message.content


def test_all_parameters_at_once_are_reproducible(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "frequency_penalty": 0.2, "logit_bias": {"5": 1}, "logprobs": True, "top_logprobs": 2,
        "max_completion_tokens": 12, "metadata": {"a": "b"}, "n": 2, "presence_penalty": 0.1,
        "parallel_tool_calls": True, "response_format": {"type": "text"}, "seed": 3,
        "service_tier": "auto", "stop": ["zzz"], "store": False, "temperature": 1.5,
        "top_p": 0.9, "user": "me", "model": "tgi", "reasoning_effort": "low",
        "extra_body": {"top_k": 30, "repetition_penalty": 1.1, "min_tokens": 2},
    }  # fmt: skip
    first, second = (chat(client, **options) for _ in range(2))
    assert first.choices == second.choices
    assert len(first.choices) == 2


def test_min_tokens_and_ignore_eos_go_past_the_end(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tgi", "temperature": 0}
    usual = chat(client, **options).usage.completion_tokens
    answer = chat(client, max_tokens=usual + 9, extra_body={"ignore_eos": True}, **options)
    assert answer.usage.completion_tokens == usual + 9
    least = chat(client, max_tokens=200, extra_body={"min_tokens": usual + 9}, **options)
    assert least.usage.completion_tokens >= usual + 9


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1}, "`temperature`"),
        ({"top_p": 0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"n": 0}, "`n` must be >= 1"),
        ({"max_tokens": 0}, "must be strictly positive"),
        ({"frequency_penalty": 2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"presence_penalty": -2.5}, "`presence_penalty` must be >= -2.0 and <= 2.0"),
        ({"logprobs": True, "top_logprobs": 6}, "must be >= 0 and <= 5. Given: 6"),
        ({"stop": list("abcde")}, "up to 4 stop sequences. Given: 5"),
        ({"logit_bias": {"0": 101}}, "`logit_bias`"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "got wizard"),
        ({"messages": "hi"}, "messages"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json", "value": {"type": "nothing"}}}, "rammar"),
    ],
    ids=named,
)
def test_what_is_wrong_is_a_readable_422(
    client: openai.OpenAI, wrong: dict[str, Any], message: str, stream: bool
) -> None:
    options: Any = {"messages": CHAT, "model": "tgi", "stream": stream, **wrong}
    with pytest.raises(openai.UnprocessableEntityError, match=re.escape(message)):
        client.chat.completions.create(**options)


def test_typed_errors_of_key_path_and_overload(guarded: LiveServer) -> None:
    address = f"{guarded.url}/v1"
    with openai.OpenAI(base_url=address, api_key=API_KEY, max_retries=0) as client:
        stranger = client.with_options(api_key="wrong")
        with pytest.raises(openai.AuthenticationError):
            chat(stranger, **GREEDY)
        with pytest.raises(openai.NotFoundError):
            chat(client.with_options(base_url=f"{address}/nowhere"), **GREEDY)
        with pytest.raises(openai.RateLimitError, match="Model is overloaded"):
            chat(client, n=3, **GREEDY)


def test_asynchronous_client_chats_streams_and_parses(server: LiveServer) -> None:
    async def ask() -> tuple[Any, list[Any], Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-") as client:
            completions = client.chat.completions
            whole = await completions.create(messages=CHAT, **GREEDY)
            stream = await completions.create(messages=CHAT, stream=True, **GREEDY)
            parsed = await completions.parse(messages=CHAT, response_format=Pet, **GREEDY)
            return whole, await collect(stream), parsed

    whole, chunks, parsed = run(ask)
    assert whole.choices[0].message.content.strip() == COUNT
    assert text_of(chunks) == whole.choices[0].message.content
    assert isinstance(parsed.choices[0].message.parsed, Pet)
