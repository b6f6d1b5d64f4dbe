"""Paths that Vertex AI chooses for predictions and health."""

from collections.abc import Callable

import pytest
from flask.testing import FlaskClient

from serving.front.app import create_app
from serving.front.engine_client import Availability
from serving.front.text.tokenization import Tokenizer
from tests.support.fake_engine import ScriptedEngine
from tests.support.front_fixtures import MakeFront

PREDICT = "/v1/endpoints/12/deployedModels/34:predict"
HEALTH = "/v1/endpoints/12/deployedModels/34"


@pytest.fixture
def client(make_front: MakeFront) -> FlaskClient:
    return create_app(make_front(predict_route=PREDICT, health_route=HEALTH)).test_client()


def test_health(client: FlaskClient, engine: ScriptedEngine) -> None:
    assert client.get(HEALTH).status_code == 200
    engine.availability = Availability("starting", healthy=False)
    assert client.get(HEALTH).status_code == 503


def test_instances(client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    engine.answer(tokenizer, " blue")
    response = client.post(PREDICT, json={"instances": [{"inputs": "the"}], "parameters": {}})
    assert response.data == b'{"predictions":[" blue"]}'
    assert "X-Request-Id" in response.headers


@pytest.mark.parametrize(
    ("body", "check"),
    [
        ({"inputs": "the"}, lambda text: text == '[{"generated_text":"the blue"}]'),
        ({"inputs": "the", "stream": True}, lambda text: text.startswith('data: {"index":1,')),
        ({"prompt": "the"}, lambda text: '"object":"text_completion"' in text),
        (
            {"messages": [{"role": "user", "content": "hi"}], "stream": True},
            lambda text: text.endswith("data: [DONE]\n\n"),
        ),
    ],
)
def test_raw_predictions(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer,
    body: object, check: Callable[[str], bool],
) -> None:  # fmt: skip
    engine.answer(tokenizer, " blue")
    assert check(client.post(PREDICT, json=body).get_data(as_text=True))


@pytest.mark.parametrize("body", [{}, [], {"instances": None}, {"instances": ["the"]}])
def test_wrong_shapes(client: FlaskClient, body: object) -> None:
    assert client.post(PREDICT, json=body).status_code == 422


def test_our_own_paths_stay(client: FlaskClient) -> None:
    assert client.get("/health").status_code == 200
    assert client.post("/vertex", json={}).status_code == 422


def test_a_path_of_ours_keeps_its_meaning(
    make_front: MakeFront, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    front = make_front(predict_route="/generate", health_route="/ping")
    client = create_app(front).test_client()
    engine.answer(tokenizer, " blue")
    response = client.post("/generate", json={"inputs": "the"})
    assert response.data == b'{"generated_text":" blue"}'
    assert client.get("/ping").status_code == 200


def test_the_prediction_may_lie_beside_another_method(make_front: MakeFront) -> None:
    client = create_app(make_front(predict_route="/health", health_route="/predict")).test_client()
    assert client.post("/health", json={}).status_code == 422
    assert client.get("/health").status_code == 200


def test_the_key_is_needed(make_front: MakeFront) -> None:
    client = create_app(make_front(predict_route=PREDICT, api_key="k")).test_client()
    assert client.post(PREDICT, json={"instances": []}).status_code == 401


def test_they_are_documented(client: FlaskClient) -> None:
    paths = client.get("/api-doc/openapi.json").json["paths"]
    assert "post" in paths[PREDICT]
    assert "get" in paths[HEALTH]
