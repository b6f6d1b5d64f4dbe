"""The client that TGI itself published: text_generation.Client and AsyncClient.

Not here: its `chat(stream=True)`. Version 0.7 asks for keys that no server from TGI 2.1 on sends,
and for JSON in `data: [DONE]`.
"""

import inspect
import re
from typing import Any

import pytest
from answers import COUNT, END, OPEN, PERSON, QUESTION, are_logprobs, fitting, run
from live_server import API_KEY, LiveServer
from text_generation import AsyncClient, Client
from text_generation.errors import OverloadedError, ValidationError
from text_generation.types import Grammar, GrammarType, Message, Tool

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
]

MESSAGES = [Message(role="user", content=QUESTION)]
EVERYTHING: dict[str, Any] = {
    "do_sample": True, "max_new_tokens": 30, "repetition_penalty": 1.1, "frequency_penalty": 0.2,
    "return_full_text": True, "seed": 7, "stop_sequences": ["zzz"], "temperature": 1.5,
    "top_k": 40, "top_p": 0.95, "truncate": 20, "typical_p": 0.95, "watermark": True,
    "top_n_tokens": 2, "grammar": Grammar(type=GrammarType.Regex, value="[a-z0-9 ,]{1,40}"),
}  # fmt: skip


@pytest.fixture
def client(server: LiveServer) -> Client:
    return Client(server.url, timeout=60)


def test_generates_with_details(client: Client) -> None:
    answer = client.generate(QUESTION, max_new_tokens=100)
    details = answer.details
    assert answer.generated_text.strip() == COUNT
    assert details.finish_reason == "eos_token"
    assert details.generated_tokens == len(details.tokens)
    assert are_logprobs(token.logprob for token in details.tokens)


def test_the_default_is_twenty_tokens(client: Client) -> None:
    details = client.generate("Count to 100").details
    assert (details.generated_tokens, details.finish_reason) == (20, "length")


def test_streams_the_same_text(client: Client) -> None:
    events = list(client.generate_stream(QUESTION, max_new_tokens=100))
    text = "".join(event.token.text for event in events if not event.token.special)
    assert text == events[-1].generated_text
    assert text.strip() == COUNT
    assert events[-1].details.generated_tokens == len(events)
    assert events[-1].token.text == END


def test_all_parameters_at_once_are_reproducible_and_streamed_alike(client: Client) -> None:
    known = set(inspect.signature(Client.generate).parameters)
    assert known - set(EVERYTHING) == {"self", "prompt", "best_of", "decoder_input_details"}
    whole = client.generate(QUESTION, decoder_input_details=True, **EVERYTHING)
    assert whole == client.generate(QUESTION, best_of=1, decoder_input_details=True, **EVERYTHING)
    *_, last = client.generate_stream(QUESTION, **EVERYTHING)
    assert last.generated_text == whole.generated_text
    assert last.details.seed == whole.details.seed == 7
    assert re.fullmatch("[a-z0-9 ,]{1,40}", whole.generated_text.removeprefix(QUESTION))
    assert all(len(candidates) >= 1 for candidates in whole.details.top_tokens)


def test_best_of_shows_the_other_sequence(client: Client) -> None:
    details = client.generate(OPEN, best_of=2, temperature=2.0).details
    assert len(details.best_of_sequences) == 1
    assert details.best_of_sequences[0].tokens


def test_decoder_input_details_show_the_prompt_where_the_server_allows(guarded: LiveServer) -> None:
    client = Client(guarded.url, headers={"Authorization": f"Bearer {API_KEY}"})
    details = client.generate(QUESTION, decoder_input_details=True, max_new_tokens=1).details
    assert details.prefill[0].logprob is None
    assert are_logprobs(token.logprob for token in details.prefill[1:])
    assert "".join(token.text for token in details.prefill).endswith(QUESTION)


def test_a_json_grammar_gives_json_of_its_schema(client: Client) -> None:
    grammar = Grammar(type=GrammarType.Json, value=PERSON)
    fitting(client.generate(QUESTION, max_new_tokens=200, grammar=grammar).generated_text, PERSON)


def test_a_stop_string_ends_the_text(client: Client) -> None:
    answer = client.generate(QUESTION, max_new_tokens=100, stop_sequences=[", 7"])
    assert answer.generated_text.strip().endswith(", 7")
    assert answer.details.finish_reason == "stop_sequence"


def test_what_the_server_refuses_is_a_validation_error(client: Client) -> None:
    with pytest.raises(ValidationError, match="`frequency_penalty` must be >= -2"):
        client.generate(QUESTION, frequency_penalty=3.0)
    with pytest.raises(ValidationError, match="`max_new_tokens` must be strictly positive"):
        list(client.generate_stream(QUESTION, max_new_tokens=0))


def test_a_full_server_is_an_overloaded_error(guarded: LiveServer) -> None:
    client = Client(guarded.url, headers={"Authorization": f"Bearer {API_KEY}"}, timeout=60)
    options: dict[str, Any] = {"max_new_tokens": 900, "temperature": 5.0}
    streams = [client.generate_stream("Count to 100", **options) for _ in range(2)]
    for stream in streams:
        next(stream)
    with pytest.raises(OverloadedError, match="Model is overloaded"):
        client.generate(QUESTION)
    for stream in streams:
        stream.close()
    guarded.wait_until_idle()


def test_chats(client: Client) -> None:
    answer = client.chat(MESSAGES, temperature=0.0, max_tokens=100)
    (choice,) = answer.choices
    assert choice.message.content.strip() == COUNT
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.usage["total_tokens"] == sum(
        answer.usage[part] for part in ("prompt_tokens", "completion_tokens")
    )


def test_chats_with_all_parameters_reproducibly(client: Client) -> None:
    options: dict[str, Any] = {
        "repetition_penalty": 1.1, "frequency_penalty": 0.2, "logprobs": True, "top_logprobs": 2,
        "max_tokens": 12, "n": 1, "presence_penalty": 0.1, "seed": 5, "temperature": 1.5,
        "top_p": 0.9, "tools": None, "tool_choice": None, "logit_bias": None,
    }  # fmt: skip
    known = set(inspect.signature(Client.chat).parameters)
    assert known - set(options) == {"self", "messages", "stream"}
    first, second = (client.chat(MESSAGES, **options).choices[0] for _ in range(2))
    assert first == second
    content = first.logprobs["content"]
    assert are_logprobs(token["logprob"] for token in content)
    assert "".join(token["token"] for token in content) == first.message.content


def test_chat_calls_a_tool(client: Client) -> None:
    parameters = {"type": "object", "properties": {"zone": {"type": "string", "maxLength": 9}}}
    tool = Tool(type="function", function={"name": "get_time", "parameters": parameters})
    (choice,) = client.chat(
        MESSAGES, tools=[tool], tool_choice="get_time", temperature=0.0, max_tokens=100
    ).choices
    (call,) = choice.message.tool_calls
    assert call["function"]["name"] == "get_time"
    fitting(call["function"]["arguments"], parameters)


def test_asynchronous_client_generates_streams_and_chats(server: LiveServer) -> None:
    async def ask() -> tuple[Any, list[Any], Any]:
        client = AsyncClient(server.url, timeout=60)
        whole = await client.generate(QUESTION, max_new_tokens=100)
        events = [e async for e in client.generate_stream(QUESTION, max_new_tokens=100)]
        chat = await client.chat(MESSAGES, temperature=0.0, max_tokens=100)
        with pytest.raises(ValidationError, match="`frequency_penalty`"):
            await client.generate(QUESTION, frequency_penalty=3.0)
        return whole, events, chat

    whole, events, chat = run(ask)
    assert whole.generated_text.strip() == COUNT
    assert events[-1].generated_text == whole.generated_text
    assert chat.choices[0].message.content.strip() == COUNT


def test_asynchronous_client_takes_all_parameters(server: LiveServer) -> None:
    async def ask() -> Any:
        return await AsyncClient(server.url, timeout=60).generate(QUESTION, **EVERYTHING)

    assert run(ask) == run(ask)
