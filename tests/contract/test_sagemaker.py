"""SageMaker's contract around a single invocation: probes, headers, sizes, time limits."""

import time

import pytest
from flask.testing import FlaskClient

from serving.front.app import create_app
from serving.front.engine_client import Availability
from serving.front.text.tokenization import Tokenizer
from serving.settings_sources import resolve
from tests.support.fake_engine import ScriptedEngine
from tests.support.front_fixtures import MakeFront

ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
MESSAGES = [{"role": "user", "content": "hi"}]
BODIES = [
    {"inputs": "the", "parameters": {}},
    {"messages": MESSAGES},
    {"prompt": "the"},
]


@pytest.mark.parametrize("method", ["get", "post"])
def test_ping(client: FlaskClient, engine: ScriptedEngine, method: str) -> None:
    response = getattr(client, method)("/ping")
    assert (response.status_code, response.data) == (200, b"")
    engine.availability = Availability("recovering", healthy=False)
    assert getattr(client, method)("/ping").status_code == 503


def test_execution_parameters(client: FlaskClient) -> None:
    response = client.get("/execution-parameters")
    assert response.content_type == "application/json"
    assert response.data == (
        b'{"MaxConcurrentTransforms":100,"BatchStrategy":"SINGLE_RECORD","MaxPayloadInMB":1}'
    )


def test_execution_parameters_follow_the_engine(make_front: MakeFront) -> None:
    client = create_app(make_front(max_concurrent_requests=8, num_replicas=2)).test_client()
    assert client.get("/execution-parameters").json["MaxConcurrentTransforms"] == 16


class TestCustomAttributes:
    def test_they_are_not_repeated(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue")
        response = client.post("/invocations", json=BODIES[0], headers={ATTRIBUTES: "a=b"})
        assert ATTRIBUTES not in response.headers

    @pytest.mark.parametrize(
        ("given", "repeated"),
        [("a=b", "a=b"), ("", None), ("x" * 1024, "x" * 1024), ("x" * 1025, None), ("é", None)],
    )
    def test_they_are_where_that_is_wanted(
        self, make_front: MakeFront, given: str, repeated: str | None
    ) -> None:
        client = create_app(make_front(echo_custom_attributes=True)).test_client()
        response = client.post("/invocations", json={}, headers={ATTRIBUTES: given})
        assert response.headers.get(ATTRIBUTES) == repeated
        assert ATTRIBUTES not in client.post("/generate", headers={ATTRIBUTES: given}).headers


def test_the_inference_id_names_the_request(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.answer(tokenizer, " blue")
    headers = {"X-Amzn-SageMaker-Inference-Id": "order-7"}
    response = client.post("/invocations", json=BODIES[0], headers=headers)
    assert response.headers["X-Request-Id"] == "order-7"


@pytest.mark.parametrize("name", ["", "tgi", "anything", None])
def test_openai_clients_may_leave_the_model_open(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer, name: str | None
) -> None:
    engine.answer(tokenizer, " blue")
    body = {"model": name, "messages": MESSAGES}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200
    assert response.json["model"] == ("anything" if name == "anything" else "org/model")


class TestSizes:
    LIMIT = 25 * 1024 * 1024

    def body_of(self, size: int) -> bytes:
        return b'{"inputs":1,"x":"' + b"a" * (size - 19) + b'"}'

    def test_25_mib_are_read_under_serve(self, make_front: MakeFront) -> None:
        settings = resolve(["serve"], {})
        client = create_app(make_front(payload_limit=settings.payload_limit)).test_client()
        for size, status in ((self.LIMIT, 422), (self.LIMIT + 1, 413)):
            body = self.body_of(size)
            assert len(body) == size
            response = client.post("/invocations", data=body, content_type="application/json")
            assert response.status_code == status


class TestTimeLimits:
    @pytest.mark.parametrize("body", BODIES)
    @pytest.mark.parametrize(("stream", "seconds"), [(False, 55), (True, 470)])
    def test_whole_answers_and_streams_have_their_own(
        self, make_front: MakeFront, engine: ScriptedEngine, tokenizer: Tokenizer,
        body: dict[str, object], stream: bool, seconds: int,
    ) -> None:  # fmt: skip
        client = create_app(make_front(max_whole_seconds=55, max_stream_seconds=470)).test_client()
        engine.answer(tokenizer, " blue")
        before = time.monotonic_ns()
        assert client.post("/invocations", json={**body, "stream": stream}).data
        (sent,) = engine.submitted
        assert before <= sent.deadline_ns - seconds * 10**9 <= time.monotonic_ns()

    def test_a_shorter_max_time_wins(
        self, make_front: MakeFront, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        client = create_app(make_front(max_whole_seconds=55)).test_client()
        engine.answer(tokenizer, " blue")
        body = {"inputs": "the", "parameters": {"max_time": 5}}
        client.post("/invocations", json=body)
        assert engine.submitted[0].deadline_ns <= time.monotonic_ns() + 5 * 10**9

    def test_no_limit_is_no_deadline(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue")
        client.post("/invocations", json=BODIES[0])
        assert engine.submitted[0].deadline_ns == 0
