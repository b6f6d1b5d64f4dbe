"""The clients that people use read what the server writes.

Both bring httpx2, whose transport for WSGI applications spares a server process.
"""

import json
from collections.abc import Iterator

import flask
import httpx2
import huggingface_hub
import openai
import pydantic
import pytest
from huggingface_hub import InferenceClient

from serving.errors import ErrorKind, RequestError
from serving.front.context import Front
from serving.front.model import LoadedModel
from serving.front.text.tokenization import Tokenizer
from tests.support.fake_engine import Script, ScriptedEngine
from tests.support.tool_models import make_tool_model

URL = "http://server"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def openai_client(app: flask.Flask) -> Iterator[openai.OpenAI]:
    transport = httpx2.Client(transport=httpx2.WSGITransport(app=app))
    with openai.OpenAI(
        base_url=f"{URL}/v1", api_key="-", http_client=transport, max_retries=0
    ) as client:
        yield client


@pytest.fixture
def hub_client(app: flask.Flask) -> Iterator[InferenceClient]:
    huggingface_hub.set_client_factory(
        lambda: httpx2.Client(transport=httpx2.WSGITransport(app=app))
    )
    yield InferenceClient(URL)
    huggingface_hub.set_client_factory(httpx2.Client)


def test_openai_chat(
    openai_client: openai.OpenAI, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue", "eos_token")
    answer = openai_client.chat.completions.create(
        model="tgi", messages=MESSAGES, logprobs=True, top_logprobs=2, n=1
    )
    assert answer.choices[0].message.content == " blue"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs.content[0].top_logprobs[1].logprob == -1.5
    assert answer.usage.total_tokens == 8


def test_openai_chat_stream_adds_up(
    openai_client: openai.OpenAI, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue sky", "eos_token")
    with openai_client.chat.completions.stream(model="tgi", messages=MESSAGES) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.role == "assistant"
    assert final.choices[0].message.content == " blue sky"
    assert final.choices[0].finish_reason == "stop"


def test_openai_completions(
    openai_client: openai.OpenAI, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue", "length")
    answer = openai_client.completions.create(model="tgi", prompt="the sky is", stop="x")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (" blue", "length")


def test_openai_sees_overload_as_a_rate_limit(
    openai_client: openai.OpenAI, engine: ScriptedEngine
) -> None:
    engine.refusal = RequestError(ErrorKind.OVERLOADED, "Model is overloaded")
    with pytest.raises(openai.RateLimitError) as caught:
        openai_client.chat.completions.create(model="tgi", messages=MESSAGES)
    assert "Model is overloaded" in str(caught.value)
    assert (caught.value.code, caught.value.type) == ("overloaded", "rate_limit_error")


def test_openai_shows_why_a_request_is_refused(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="`top_p` must be > 0"):
        openai_client.chat.completions.create(model="tgi", messages=MESSAGES, top_p=2.0)


def test_openai_shows_a_failure_within_a_stream(
    openai_client: openai.OpenAI, engine: ScriptedEngine
) -> None:
    engine.scripts.append(Script([297], error=RequestError(ErrorKind.GENERATION, "boom")))
    answer = openai_client.chat.completions.create(model="tgi", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="boom") as caught:
        list(answer)
    assert caught.value.code == "generation"


class Sum(pydantic.BaseModel):
    """Adds two numbers."""

    a: int
    b: int


SUM_CALL = '<tool_call>\n{"name": "Sum", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


@pytest.fixture(scope="module")
def calling_model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return make_tool_model(tmp_path_factory.mktemp("calling"), "QWEN", max_total_tokens=2000)


@pytest.fixture
def calling(front: Front, calling_model: LoadedModel) -> None:
    """Another model for the server: one that was trained to call tools."""
    front.model = calling_model


def test_openai_parses_what_fits_a_schema(
    openai_client: openai.OpenAI, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, '{"a": 1, "b": 2}', "eos_token")
    answer = openai_client.chat.completions.parse(
        model="tgi", messages=MESSAGES, response_format=Sum
    )
    assert answer.choices[0].message.parsed == Sum(a=1, b=2)
    grammar = engine.submitted[0].grammar
    assert grammar is not None
    assert json.loads(grammar.source)["required"] == ["a", "b"]


@pytest.mark.usefixtures("calling")
def test_openai_parses_calls(
    openai_client: openai.OpenAI, engine: ScriptedEngine, calling_model: LoadedModel
) -> None:
    engine.answer(calling_model.tokenizer, SUM_CALL, "eos_token")
    answer = openai_client.chat.completions.parse(
        model="tgi", messages=MESSAGES, tools=[openai.pydantic_function_tool(Sum)]
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.parsed_arguments == Sum(a=1, b=2)


@pytest.mark.usefixtures("calling")
def test_openai_follows_a_stream_of_calls(
    openai_client: openai.OpenAI, engine: ScriptedEngine, calling_model: LoadedModel
) -> None:
    engine.answer(calling_model.tokenizer, f"Let me add.{SUM_CALL}\n{SUM_CALL}", "eos_token")
    with openai_client.chat.completions.stream(
        model="tgi", messages=MESSAGES, tools=[openai.pydantic_function_tool(Sum)]
    ) as stream:
        done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    assert [(e.name, e.index, e.parsed_arguments) for e in done] == [
        ("Sum", 0, Sum(a=1, b=2)),
        ("Sum", 1, Sum(a=1, b=2)),
    ]
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.content == "Let me add."


@pytest.mark.usefixtures("calling")
def test_openai_sends_back_calls_and_results(
    openai_client: openai.OpenAI, engine: ScriptedEngine, calling_model: LoadedModel
) -> None:
    tools = [openai.pydantic_function_tool(Sum)]
    engine.answer(calling_model.tokenizer, SUM_CALL, "eos_token")
    answer = openai_client.chat.completions.create(model="tgi", messages=MESSAGES, tools=tools)
    message = answer.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "3"}
    engine.answer(calling_model.tokenizer, " 3", "eos_token")
    answer = openai_client.chat.completions.create(
        model="tgi", messages=[*MESSAGES, message, result], tools=tools
    )
    assert answer.choices[0].message.content == " 3"
    prompt = calling_model.tokenizer.decode(engine.submitted[1].prompt_token_ids)
    assert f"{SUM_CALL}<|im_end|>" in prompt
    assert "<tool_response>\n3\n</tool_response>" in prompt


@pytest.mark.usefixtures("calling")
def test_langchain_calls_tools(
    app: flask.Flask, engine: ScriptedEngine, calling_model: LoadedModel
) -> None:
    from langchain_openai import ChatOpenAI  # slow to import

    engine.answer(calling_model.tokenizer, SUM_CALL, "eos_token")
    transport = httpx2.Client(transport=httpx2.WSGITransport(app=app))
    with transport:
        chat = ChatOpenAI(
            base_url=f"{URL}/v1", api_key="-", model="tgi", http_client=transport, max_retries=0
        )
        answer = chat.bind_tools([Sum]).invoke("Add 1 and 2")
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("Sum", {"a": 1, "b": 2})


@pytest.mark.usefixtures("calling")
@pytest.mark.parametrize("stream", [True, False])
def test_hub_calls_tools(
    hub_client: InferenceClient, engine: ScriptedEngine, calling_model: LoadedModel, stream: bool
) -> None:
    engine.answer(calling_model.tokenizer, SUM_CALL, "eos_token")
    tools = [openai.pydantic_function_tool(Sum)]
    answer = hub_client.chat_completion(MESSAGES, tools=tools, tool_choice="auto", stream=stream)
    if stream:
        calls = [c for chunk in answer for c in chunk.choices[0].delta.tool_calls or []]
    else:
        calls = answer.choices[0].message.tool_calls
    assert calls[0].function.name == "Sum"
    arguments = "".join(call.function.arguments for call in calls)
    assert json.loads(arguments) == {"a": 1, "b": 2}


def test_hub_text_generation(
    hub_client: InferenceClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue", "eos_token")
    answer = hub_client.text_generation(
        "the sky is", details=True, max_new_tokens=5, return_full_text=False
    )
    assert answer.generated_text == " blue"
    assert answer.details.finish_reason == "eos_token"
    assert [token.text for token in answer.details.tokens] == [" blue", "</s>"]


def test_hub_text_generation_stream(
    hub_client: InferenceClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue sky", "length")
    answer = hub_client.text_generation("the", stream=True, details=True, return_full_text=False)
    events = list(answer)
    assert [event.token.text for event in events] == [" blue", " sky"]
    assert events[-1].generated_text == " blue sky"
    assert events[-1].details.generated_tokens == 2


def test_hub_chat_stream(
    hub_client: InferenceClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue sky", "eos_token")
    chunks = list(hub_client.chat_completion(MESSAGES, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == " blue sky"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_hub_validation_error(hub_client: InferenceClient) -> None:
    with pytest.raises(huggingface_hub.errors.ValidationError, match="strictly positive"):
        hub_client.text_generation("the", temperature=-1.0)
