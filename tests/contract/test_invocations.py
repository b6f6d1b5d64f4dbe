"""/invocations: the body decides which route answers."""

import pytest
from flask.testing import FlaskClient

from serving.front.text.tokenization import Tokenizer
from tests.support.fake_engine import ScriptedEngine

MESSAGES = [{"role": "user", "content": "hi"}]
NO_VARIANT = (
    "Failed to deserialize the JSON body into the target type: "
    "data did not match any variant of untagged enum SagemakerRequest"
)


def test_inputs(client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    engine.answer(tokenizer, " blue")
    response = client.post("/invocations", json={"inputs": "the sky is"})
    assert response.data == b'[{"generated_text":"the sky is blue"}]'
    assert response.headers["x-generated-tokens"] == "1"


def test_inputs_streamed(client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    engine.answer(tokenizer, " blue")
    response = client.post("/invocations", json={"inputs": "the", "stream": True})
    assert response.data.startswith(b'data: {"index":1,')
    assert b"[DONE]" not in response.data


def test_messages(client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    engine.answer(tokenizer, " blue")
    content = client.post("/invocations", json={"messages": MESSAGES}).json
    assert content["object"] == "chat.completion"


def test_messages_streamed(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue")
    response = client.post("/invocations", json={"messages": MESSAGES, "stream": True})
    assert response.data.endswith(b"data: [DONE]\n\n")


def test_prompt(client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    engine.answer(tokenizer, " blue")
    content = client.post("/invocations", json={"prompt": "the"}).json
    assert content["object"] == "text_completion"


def test_inputs_come_first(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue")
    content = client.post("/invocations", json={"inputs": "the", "messages": MESSAGES}).json
    assert isinstance(content, list)


@pytest.mark.parametrize(
    "body", [{}, {"inputs": 1}, {"inputs": "a", "parameters": {"temperature": "hot"}}, []]
)
def test_no_shape_fits(client: FlaskClient, body: object) -> None:
    response = client.post("/invocations", json=body)
    assert response.status_code == 422
    assert response.content_type == "text/plain; charset=utf-8"
    assert response.get_data(as_text=True).startswith(NO_VARIANT)


def test_the_wrong_field_is_named(client: FlaskClient) -> None:
    body = {"inputs": "a", "parameters": {"temperature": "hot"}}
    text = client.post("/invocations", json=body).get_data(as_text=True)
    assert "parameters.temperature: Expected `float | null`, got `str`" in text


def test_a_syntax_error_is_400(client: FlaskClient) -> None:
    response = client.post("/invocations", data="{", content_type="application/json")
    assert response.status_code == 400


def test_platform_headers_are_ignored(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue")
    headers = {
        "X-Amzn-SageMaker-Custom-Attributes": "x",
        "X-Amzn-SageMaker-Target-Model": "y",
        "Accept": "application/xml",
    }
    response = client.post("/invocations", json={"inputs": "the"}, headers=headers)
    assert response.status_code == 200
