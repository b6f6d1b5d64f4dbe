"""Azure ML maps its liveness, readiness and scoring routes to paths that are there."""

import pytest
from flask.testing import FlaskClient

from serving.front.app import create_app
from serving.front.engine_client import Availability
from serving.front.text.tokenization import Tokenizer
from tests.support.fake_engine import ScriptedEngine
from tests.support.front_fixtures import MakeFront


@pytest.mark.parametrize("path", ["/", "/health", "/ping", "/health/live", "/health/ready"])
def test_probes(client: FlaskClient, path: str) -> None:
    assert client.get(path).status_code == 200


def test_a_slow_start_is_alive_and_not_ready(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.availability = Availability("starting", healthy=False)
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready").status_code == 503


def test_scoring(client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    engine.answer(tokenizer, " blue")
    response = client.post("/invocations", json={"inputs": "the"})
    assert response.json == [{"generated_text": "the blue"}]


def test_scoring_under_azures_own_path(
    make_front: MakeFront, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue")
    client = create_app(make_front(predict_route="/score")).test_client()
    assert client.post("/score", json={"inputs": "the"}).status_code == 200
