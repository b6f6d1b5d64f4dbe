"""What holds for every route: availability, access, framework errors, the log line."""

import logging

import pytest
from flask.testing import FlaskClient

from serving.errors import ErrorKind, RequestError
from serving.front.app import create_app
from serving.front.engine_client import Availability
from serving.front.text.tokenization import Tokenizer
from tests.support.fake_engine import ScriptedEngine
from tests.support.front_fixtures import MakeFront

GENERATE = {"inputs": "the"}
UNHEALTHY = b'{"error":"unhealthy","error_type":"healthcheck"}'


@pytest.mark.parametrize("path", ["/", "/health", "/ping"])
def test_health_is_empty_when_serving(client: FlaskClient, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.data) == (200, b"")


def test_ping_may_be_posted(client: FlaskClient) -> None:
    assert client.post("/ping").status_code == 200


@pytest.mark.parametrize("phase", ["starting", "draining", "failed"])
@pytest.mark.parametrize("path", ["/", "/health", "/ping"])
def test_health_fails_in_every_other_state(
    client: FlaskClient, engine: ScriptedEngine, path: str, phase: str
) -> None:
    engine.availability = Availability(phase, healthy=False, message="why")
    response = client.get(path)
    assert (response.status_code, response.data) == (503, UNHEALTHY)


@pytest.mark.parametrize(
    ("phase", "status", "body"),
    [
        ("starting", 503, b'{"error":"the model is loading","error_type":"healthcheck"}'),
        ("draining", 503, b'{"error":"the server is shutting down","error_type":"healthcheck"}'),
        (
            "failed",
            424,
            b'{"error":"Request failed during generation: why","error_type":"generation"}',
        ),
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/", "/invocations"])
def test_generating_routes_say_why_they_cannot(
    client: FlaskClient, engine: ScriptedEngine, path: str, phase: str, status: int, body: bytes
) -> None:
    engine.availability = Availability(phase, healthy=False, message="why")
    response = client.post(path, json=GENERATE)
    assert (response.status_code, response.data) == (status, body)


@pytest.mark.parametrize("path", ["/info", "/v1/models"])
def test_what_needs_the_model_waits_for_it(make_front: MakeFront, path: str) -> None:
    front = make_front()
    front.model = None
    assert create_app(front).test_client().get(path).status_code == 503


def test_overload_asks_for_a_later_try(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.refusal = RequestError(ErrorKind.OVERLOADED, "Model is overloaded")
    response = client.post("/generate", json=GENERATE)
    assert response.status_code == 429
    assert response.data == b'{"error":"Model is overloaded","error_type":"overloaded"}'
    assert response.headers["retry-after"] == "1"


def test_a_fault_of_ours_is_a_typed_error(
    client: FlaskClient, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    response = client.post("/generate", json=GENERATE)  # no script: the fake raises IndexError
    assert response.status_code == 500
    assert response.json == {
        "error": "Incomplete generation",
        "error_type": "incomplete_generation",
    }
    assert "unexpected error in /generate" in caplog.text


class TestCrossOrigin:
    def test_every_response_admits_any_origin(self, client: FlaskClient) -> None:
        for response in (client.get("/health"), client.get("/nowhere"), client.post("/generate")):
            assert response.headers["access-control-allow-origin"] == "*"
            assert response.headers["vary"] == (
                "origin, access-control-request-method, access-control-request-headers"
            )

    @pytest.mark.parametrize("path", ["/generate", "/nowhere"])
    def test_preflight_is_answered_everywhere(self, client: FlaskClient, path: str) -> None:
        response = client.options(path)
        assert (response.status_code, response.data) == (200, b"")
        assert response.headers["access-control-allow-methods"] == "GET,POST"
        assert response.headers["access-control-allow-headers"] == "content-type"

    def test_a_list_of_origins_is_exact(self, make_front: MakeFront) -> None:
        front = make_front(cors_allow_origin="https://a.example, https://b.example")
        client = create_app(front).test_client()

        def allowed(origin: str) -> str | None:
            headers = client.get("/health", headers={"Origin": origin}).headers
            return headers.get("access-control-allow-origin")

        assert allowed("https://b.example") == "https://b.example"
        assert allowed("https://c.example") is None


class TestApiKey:
    @pytest.fixture
    def locked(self, make_front: MakeFront) -> FlaskClient:
        return create_app(make_front(api_key="SeCret")).test_client()

    PROTECTED = (
        "/",
        "/generate",
        "/generate_stream",
        "/tokenize",
        "/invocations",
        "/v1/chat/completions",
        "/v1/completions",
    )

    @pytest.mark.parametrize("path", PROTECTED)
    @pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer no"}])
    def test_generating_routes_need_it(
        self, locked: FlaskClient, path: str, header: dict[str, str]
    ) -> None:
        response = locked.post(path, json=GENERATE, headers=header)
        assert (response.status_code, response.data) == (401, b"")

    @pytest.mark.parametrize("path", ["/", "/health", "/ping", "/info", "/metrics", "/v1/models"])
    def test_the_others_do_not(self, locked: FlaskClient, path: str) -> None:
        assert locked.get(path).status_code == 200

    def test_chat_tokenize_does_not(self, locked: FlaskClient) -> None:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        assert locked.post("/chat_tokenize", json=body).status_code == 200

    def test_the_whole_value_is_compared_without_case(self, locked: FlaskClient) -> None:
        header = {"Authorization": "bEARER sEcRET"}
        assert locked.post("/tokenize", json=GENERATE, headers=header).status_code == 200


def test_one_log_line_per_request_without_its_text(
    client: FlaskClient,
    engine: ScriptedEngine,
    tokenizer: Tokenizer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.answer(tokenizer, " blue")
    with caplog.at_level(logging.INFO, "serving.front.observation"):
        client.post("/generate", json={"inputs": "the sky"}, headers={"X-Request-Id": "my-request"})
    (record,) = caplog.records
    fields: dict[str, object] = record.fields  # type: ignore[attr-defined]
    assert fields["request_id"] == "my-request"
    assert fields["outcome"] == "ok"
    assert (fields["prompt_tokens"], fields["generated_tokens"]) == (3, 1)
    assert "sky" not in str(fields)


def test_sagemakers_request_id_is_logged(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "serving.front.observation"):
        client.post(
            "/generate", json={"inputs": ""}, headers={"X-Amzn-SageMaker-Inference-Id": "i"}
        )
    assert caplog.records[0].fields["request_id"] == "i"  # type: ignore[attr-defined]
