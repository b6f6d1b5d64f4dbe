"""/vertex: instances in, texts out, in their order."""

import pytest
from flask.testing import FlaskClient

from serving.errors import ErrorKind, RequestError
from serving.front.app import create_app
from serving.front.text.tokenization import Tokenizer
from tests.support.fake_engine import Script, ScriptedEngine
from tests.support.front_fixtures import MakeFront

MESSAGES = [{"role": "user", "content": "hi"}]


def test_prompts_and_chats_are_answered_in_order(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue", "eos_token")
    engine.answer(tokenizer, " green", "length")
    body = {"instances": [{"inputs": "the sky is"}, {"messages": MESSAGES}]}
    response = client.post("/vertex", json=body)
    assert (response.status_code, response.content_type) == (200, "application/json")
    assert response.data == b'{"predictions":[" blue"," green"]}'
    assert "x-compute-type" not in response.headers


def test_two_parameters_count_and_texts_are_sampled(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue")
    parameters = {
        "max_new_tokens": 3,
        "seed": 7,
        "temperature": 0.1,
        "return_full_text": True,
        "do_sample": False,
    }
    body = {"instances": [{"inputs": "the", "parameters": parameters}]}
    assert client.post("/vertex", json=body).json == {"predictions": [" blue"]}
    (sent,) = engine.submitted
    assert (sent.stop.max_new_tokens, sent.sampling.seed) == (3, 7)
    assert (sent.sampling.do_sample, sent.sampling.temperature) == (True, 1.0)


def test_parameters_may_be_null(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue")
    body = {"instances": [{"inputs": "the", "parameters": None}]}
    assert client.post("/vertex", json=body).status_code == 200
    assert engine.submitted[0].sampling.do_sample


def test_a_chat_has_one_prediction(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue")
    body = {"instances": [{"messages": MESSAGES, "n": 3, "stream": True}]}
    assert client.post("/vertex", json=body).json == {"predictions": [" blue"]}


def test_no_instances(client: FlaskClient) -> None:
    response = client.post("/vertex", json={"instances": []})
    assert response.status_code == 422
    assert response.data == (
        b'{"error":"Input validation error","error_type":"Input validation error"}'
    )


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"instances": None},
        {"instances": ["the"]},
        {"instances": [{"prompt": "the"}]},
        {"instances": [{"inputs": "the"}, {"inputs": 1}]},
    ],
)
def test_wrong_shapes_are_plain_text(client: FlaskClient, body: object) -> None:
    response = client.post("/vertex", json=body)
    assert response.status_code == 422
    assert response.content_type == "text/plain; charset=utf-8"
    assert response.data.startswith(b"Failed to deserialize the JSON body into the target type: ")


def test_one_invalid_instance_fails_all_before_anything_runs(
    client: FlaskClient, engine: ScriptedEngine
) -> None:
    body = {"instances": [{"inputs": "the"}, {"inputs": ""}]}
    response = client.post("/vertex", json=body)
    assert response.status_code == 422
    assert response.json["error_type"] == "validation"
    assert engine.submitted == []


def test_the_true_error_is_given(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue")
    engine.scripts.append(Script([297], error=RequestError(ErrorKind.GENERATION, "why")))
    body = {"instances": [{"inputs": "the"}, {"inputs": "the"}]}
    response = client.post("/vertex", json=body)
    assert response.status_code == 424
    assert response.json == {
        "error": "Request failed during generation: why",
        "error_type": "generation",
    }


def test_overload(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.refusal = RequestError(ErrorKind.OVERLOADED, "Model is overloaded")
    response = client.post("/vertex", json={"instances": [{"inputs": "the"}]})
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")


def test_the_key_is_needed(make_front: MakeFront) -> None:
    client = create_app(make_front(api_key="k")).test_client()
    response = client.post("/vertex", json={"instances": [{"inputs": "the"}]})
    assert (response.status_code, response.data) == (401, b"")
