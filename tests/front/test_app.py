"""What holds for every route: availability, access, framework errors, the log line."""

import logging
from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient

from serving.errors import ErrorKind, RequestError
from serving.front.app import create_app
from serving.front.engine_client import Availability
from serving.front.text.tokenization import Tokenizer
from tests.support.fake_engine import Script, ScriptedEngine
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
        "/vertex",
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

    def test_a_value_outside_of_ascii_is_wrong(self, locked: FlaskClient) -> None:
        header = {"Authorization": "Bearer secr\xe9t"}
        assert locked.post("/generate", json=GENERATE, headers=header).status_code == 401

    def test_preflight_does_not_need_it(self, locked: FlaskClient) -> None:
        assert locked.options("/generate").status_code == 200

    @pytest.mark.parametrize("path", ["/", "/health", "/ping", "/info", "/metrics", "/v1/models"])
    def test_the_others_do_not(self, locked: FlaskClient, path: str) -> None:
        assert locked.get(path).status_code == 200

    def test_chat_tokenize_does_not(self, locked: FlaskClient) -> None:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        assert locked.post("/chat_tokenize", json=body).status_code == 200

    def test_the_whole_value_is_compared_without_case(self, locked: FlaskClient) -> None:
        header = {"Authorization": "bEARER sEcRET"}
        assert locked.post("/tokenize", json=GENERATE, headers=header).status_code == 200


GENERATING = (
    ("/generate", {"inputs": "the sky"}),
    ("/generate_stream", {"inputs": "the sky"}),
    ("/", {"inputs": "the sky"}),
    ("/invocations", {"inputs": "the sky"}),
    ("/vertex", {"instances": [{"inputs": "the sky"}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "the sky"}]}),
    ("/v1/completions", {"prompt": "the sky", "stream": True}),
)


class TestRequestIds:
    """They are on every response of a generating route, whatever became of the request."""

    @pytest.mark.parametrize(("path", "body"), GENERATING)
    def test_success(
        self,
        client: FlaskClient,
        engine: ScriptedEngine,
        tokenizer: Tokenizer,
        path: str,
        body: object,
    ) -> None:
        engine.answer(tokenizer, " blue")
        headers = {"X-Request-Id": "mine", "X-Amzn-SageMaker-Inference-Id": "theirs"}
        response = client.post(path, json=body, headers=headers)
        assert response.status_code == 200
        assert response.headers["x-request-id"] == "mine"
        assert response.headers["x-amzn-sagemaker-inference-id"] == "theirs"

    @pytest.mark.parametrize(("path", "_"), GENERATING)
    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            ({"data": "{}", "content_type": "text/plain"}, 415),
            ({"data": "{", "content_type": "application/json"}, 400),
            ({"data": "x" * 2_000_001, "content_type": "application/json"}, 413),
            ({"json": []}, 422),
        ],
    )
    def test_unreadable_bodies(
        self, client: FlaskClient, path: str, _: object, request_: dict[str, object], status: int
    ) -> None:
        response = client.post(path, headers={"X-Request-Id": "mine"}, **request_)
        assert (response.status_code, response.headers["x-request-id"]) == (status, "mine")
        assert "x-amzn-sagemaker-inference-id" not in response.headers

    @pytest.mark.parametrize(("path", "body"), GENERATING)
    def test_a_missing_key(self, make_front: MakeFront, path: str, body: object) -> None:
        client = create_app(make_front(api_key="k")).test_client()
        response = client.post(path, json=body, headers={"X-Request-Id": "mine"})
        assert (response.status_code, response.headers["x-request-id"]) == (401, "mine")

    @pytest.mark.parametrize(("path", "body"), GENERATING)
    def test_our_own_id_is_the_one_in_the_log(
        self,
        client: FlaskClient,
        engine: ScriptedEngine,
        caplog: pytest.LogCaptureFixture,
        path: str,
        body: object,
    ) -> None:
        engine.refusal = RequestError(ErrorKind.OVERLOADED, "Model is overloaded")
        with caplog.at_level(logging.INFO, "serving.front.observation"):
            response = client.post(path, json=body)
            assert response.data  # a stream ends when it has been read
            response.close()
        (fields,) = lines(caplog)
        assert response.headers["x-request-id"] == fields["request_id"]

    def test_other_routes_have_none(self, client: FlaskClient) -> None:
        for path in ("/health", "/metrics", "/info"):
            response = client.get(path, headers={"X-Request-Id": "mine"})
            assert "x-request-id" not in response.headers


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """Fields of the summary lines so far."""
    name = "serving.front.observation"
    return [record.fields for record in caplog.records if record.name == name]  # type: ignore[attr-defined]


class TestLogLine:
    """Exactly one for each request to a generating route."""

    @pytest.fixture(autouse=True)
    def at_info(self, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
        with caplog.at_level(logging.INFO, "serving.front.observation"):
            yield

    def test_it_has_timings_and_parameters_but_no_text(
        self,
        client: FlaskClient,
        engine: ScriptedEngine,
        tokenizer: Tokenizer,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        engine.answer(tokenizer, " blue")
        parameters = {"top_k": 5, "seed": 1, "stop": ["sky"], "logit_bias": {"1": 2}}
        body = {"inputs": "the sky", "parameters": parameters}
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        headers = {"X-Request-Id": "mine", "traceparent": trace}
        client.post("/generate", json=body, headers=headers)
        (fields,) = lines(caplog)
        assert "sky" not in str(fields)
        assert "blue" not in str(fields)
        for name in ("total_s", "validation_s", "queue_s", "first_token_s", "inference_s"):
            assert fields.pop(name) >= 0
        assert fields.pop("per_token_s") >= 0
        assert fields == {
            "request_id": "mine",
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "route": "/generate",
            "status": 200,
            "outcome": "ok",
            "generated_tokens": 1,
            "finish_reason": "length",
            "sequences": 1,
            "prompt_tokens": 3,
            "max_new_tokens": 61,
            "sampling": {"top_k": 5, "seed": 1, "logit_bias": 1},
            "stop_strings": 1,
        }

    def test_a_stream_has_it_at_its_end(
        self,
        client: FlaskClient,
        engine: ScriptedEngine,
        tokenizer: Tokenizer,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        engine.answer(tokenizer, " blue sky", "eos_token")
        with client.post("/generate_stream", json=GENERATE, buffered=False) as response:
            assert lines(caplog) == []
            assert b"eos" not in response.data
        (fields,) = lines(caplog)
        assert (fields["outcome"], fields["generated_tokens"]) == ("ok", 3)

    def test_a_client_that_leaves_its_stream(
        self, client: FlaskClient, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine.scripts.append(Script([297]))
        response = client.post("/generate_stream", json=GENERATE, buffered=False)
        pieces = response.iter_encoded()
        assert [next(pieces), next(pieces)][0] == b""
        response.close()
        (fields,) = lines(caplog)
        assert (fields["outcome"], fields["generated_tokens"]) == ("dropped", 1)

    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            ({"data": "{}", "content_type": "text/plain"}, 415),
            ({"data": "{", "content_type": "application/json"}, 400),
            ({"data": "x" * 2_000_001, "content_type": "application/json"}, 413),
            ({"json": {"inputs": 1}}, 422),
        ],
    )
    def test_unreadable_bodies_have_one(
        self,
        client: FlaskClient,
        caplog: pytest.LogCaptureFixture,
        request_: dict[str, object],
        status: int,
    ) -> None:
        client.post("/generate", **request_)
        (fields,) = lines(caplog)
        assert (fields["status"], fields["outcome"]) == (status, "refused")
        assert fields["error"]

    def test_a_missing_key_has_one(
        self, make_front: MakeFront, caplog: pytest.LogCaptureFixture
    ) -> None:
        create_app(make_front(api_key="k")).test_client().post("/generate", json=GENERATE)
        (fields,) = lines(caplog)
        assert (fields["status"], fields["outcome"]) == (401, "refused")

    def test_a_server_that_is_not_ready_has_one(
        self, client: FlaskClient, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine.availability = Availability("starting", healthy=False)
        client.post("/v1/chat/completions", json={"messages": []})
        (fields,) = lines(caplog)
        assert (fields["status"], fields["error_type"]) == (503, "healthcheck")

    def test_an_invalid_parameter_is_named(
        self, client: FlaskClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        body = {"inputs": "the", "parameters": {"temperature": 0}}
        client.post("/generate", json=body)
        (fields,) = lines(caplog)
        assert (fields["status"], fields["outcome"]) == (422, "validation")
        assert (fields["error_type"], fields["error"]) == (
            "validation",
            "Input validation error: `temperature` must be strictly positive",
        )

    def test_what_a_template_says_may_be_the_clients_text(
        self, client: FlaskClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        body = {"messages": [{"role": "secret", "content": "hi"}]}
        client.post("/v1/chat/completions", json=body)
        (fields,) = lines(caplog)
        assert (fields["status"], fields["error_type"]) == (422, "template_error")
        assert "secret" not in str(fields)

    def test_a_fault_of_ours_has_one_beside_its_traceback(
        self, client: FlaskClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        client.post("/generate", json=GENERATE, headers={"X-Request-Id": "mine"})
        (fields,) = lines(caplog)
        assert (fields["status"], fields["outcome"]) == (500, "generation")
        (fault,) = [record for record in caplog.records if record.name == "serving.front.app"]
        assert fault.fields == {"request_id": "mine"}  # type: ignore[attr-defined]

    def test_texts_are_logged_when_asked_for(
        self,
        make_front: MakeFront,
        engine: ScriptedEngine,
        tokenizer: Tokenizer,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        engine.answer(tokenizer, " blue")
        create_app(make_front(log_prompts=True)).test_client().post("/generate", json=GENERATE)
        (fields,) = lines(caplog)
        assert (fields["prompts"], fields["texts"]) == (["the"], [" blue"])

    def test_reading_routes_have_none(
        self, client: FlaskClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        for path in ("/health", "/metrics", "/info", "/nowhere"):
            client.get(path)
        client.options("/generate")
        assert lines(caplog) == []


def test_sagemakers_request_id_is_logged(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "serving.front.observation"):
        client.post(
            "/generate", json={"inputs": ""}, headers={"X-Amzn-SageMaker-Inference-Id": "i"}
        )
    (fields,) = lines(caplog)
    assert fields["request_id"] == "i"
    assert "inference_id" not in fields
