"""The clients that people use read what the server writes.

Both bring httpx2, whose transport for WSGI applications spares a server process.
"""

from collections.abc import Iterator

import flask
import httpx2
import huggingface_hub
import openai
import pytest
from huggingface_hub import InferenceClient

from serving.errors import ErrorKind, RequestError
from serving.front.text.tokenization import Tokenizer
from tests.support.fake_engine import ScriptedEngine

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
    assert caught.value.body == "Model is overloaded"


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
