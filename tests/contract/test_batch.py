"""JSON Lines on /invocations: a line for a line, in order, whatever becomes of each."""

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from serving.errors import ErrorKind, RequestError
from serving.front.app import create_app
from serving.front.engine_client import Availability
from serving.front.journal import Deliver
from serving.front.text.tokenization import Tokenizer
from serving.protocol.messages import Generate
from tests.support.fake_engine import Script, ScriptedEngine
from tests.support.front_fixtures import MakeFront

LINES = "application/jsonlines"
BLUE = '[{"generated_text":"the blue"}]'
PROMPT = '{"inputs":"the"}'


def post(client: FlaskClient, *lines: str, **headers: str) -> TestResponse:
    data = "".join(line + "\n" for line in lines)
    return client.post("/invocations", data=data, content_type=LINES, headers=headers)


def answers(response: TestResponse) -> list[Any]:
    assert response.status_code == 200
    return [json.loads(line) for line in response.data.splitlines()]


def test_golden_body(client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    engine.answer(tokenizer, " blue")
    engine.answer(tokenizer, " blue")
    response = post(client, PROMPT, '{"inputs":1}', PROMPT)
    assert (response.status_code, response.content_type) == (200, LINES)
    first, wrong, last = response.get_data(as_text=True).splitlines()
    assert (first, last) == (BLUE, BLUE)
    assert json.loads(wrong)["error_type"] == "validation"
    assert response.data.endswith(b"\n")


@pytest.mark.parametrize(
    "content_type", ["application/jsonlines", "application/x-ndjson", "Application/JSONLines; a=b"]
)
def test_names_of_the_format(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer, content_type: str
) -> None:
    engine.answer(tokenizer, " blue")
    response = client.post("/invocations", data=PROMPT, content_type=content_type)
    assert response.data.decode() == BLUE + "\n"
    assert response.content_type == content_type


def test_each_line_has_its_own_dialect(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    for _ in range(3):
        engine.answer(tokenizer, " blue")
    chat = '{"messages":[{"role":"user","content":"hi"}]}'
    found = answers(post(client, chat, PROMPT, '{"prompt":"the"}'))
    assert [isinstance(found[0], dict) and found[0]["object"], isinstance(found[1], list)] == [
        "chat.completion",
        True,
    ]
    assert found[2]["object"] == "text_completion"


def test_order_is_that_of_the_lines_not_of_the_ends(make_front: MakeFront) -> None:
    """The first line is answered only after the last one has been."""
    front = make_front()
    waiting: list[Callable[[], None]] = []
    tokens = {"a": 297, "b": 298, "c": 299}
    assert front.model is not None
    names = {tuple(front.model.tokenizer.encode(name, True)): name for name in tokens}
    ended: list[str] = []

    class Backwards(ScriptedEngine):
        def submit(self, generate: Generate, deliver: Deliver) -> Callable[[], None]:
            name = names[tuple(generate.prompt_token_ids)]

            def end() -> None:
                ended.append(name)
                one = ScriptedEngine()
                one.scripts.append(Script([tokens[name]], "length"))
                one.submit(generate, deliver)

            waiting.append(end)
            if len(waiting) == len(tokens):
                for one in reversed(waiting):
                    one()
            return lambda: None

    front.engine = Backwards()
    lines = [json.dumps({"inputs": name, "parameters": {"details": True}}) for name in tokens]
    found = answers(post(create_app(front).test_client(), *lines))
    ids = [one[0]["details"]["tokens"][0]["id"] for one in found]
    assert ended == ["c", "b", "a"]
    assert ids == list(tokens.values())


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("{", "Failed to parse the request body as JSON"),
        ("", "Failed to parse the request body as JSON"),
        ("[]", "Failed to deserialize the JSON body into the target type"),
        ('{"inputs":""}', "Input validation error: `inputs` cannot be empty"),
        ('{"inputs":"the","stream":true}', "`stream` must not be true"),
    ],
)
def test_a_wrong_line_is_an_object_among_the_others(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer, line: str, error: str
) -> None:
    engine.answer(tokenizer, " blue")
    found = answers(post(client, line, PROMPT))
    assert found[0]["error"].startswith(error)
    assert found[0]["error_type"] == "validation"
    assert found[1] == json.loads(BLUE)


def test_openai_errors_keep_their_form(client: FlaskClient) -> None:
    (found,) = answers(post(client, '{"messages":[{"role":"user","content":"hi"}],"n":0}'))
    assert found["error"]["type"] == "invalid_request_error"


def test_a_failed_generation_fails_its_line_only(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    engine.scripts.append(Script(error=RequestError(ErrorKind.GENERATION, "why")))
    engine.answer(tokenizer, " blue")
    found = answers(post(client, PROMPT, PROMPT))
    assert found[0]["error_type"] == "generation"
    assert found[1] == json.loads(BLUE)


def test_a_line_waits_for_a_place(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer, monkeypatch: Any
) -> None:
    engine.refusal = RequestError(ErrorKind.OVERLOADED, "Model is overloaded")
    engine.answer(tokenizer, " blue")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        engine.refusal = None

    monkeypatch.setattr("serving.front.platforms.json_lines.gevent.sleep", pause)
    assert answers(post(client, PROMPT)) == [json.loads(BLUE)]
    assert pauses[0] == 0.2


def test_lines_share_the_time_limit_of_their_request(
    make_front: MakeFront, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    client = create_app(make_front(max_whole_seconds=30, validation_workers=128)).test_client()
    for _ in range(3):
        engine.answer(tokenizer, " blue")
    before = time.monotonic_ns()
    answers(post(client, PROMPT, PROMPT, PROMPT))
    deadlines = {sent.deadline_ns for sent in engine.submitted}
    assert len(deadlines) == 1
    assert before <= deadlines.pop() - 30 * 10**9 <= time.monotonic_ns()


def test_what_was_not_begun_in_time_says_so(make_front: MakeFront, engine: ScriptedEngine) -> None:
    client = create_app(make_front(max_whole_seconds=1e-6)).test_client()
    (found,) = answers(post(client, PROMPT))
    assert found["error_type"] == "overloaded"
    assert "before this line was begun" in found["error"]
    assert engine.submitted == []


def test_each_line_is_logged_and_counted(
    front: Any, engine: ScriptedEngine, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    engine.answer(tokenizer, " blue")
    with caplog.at_level(logging.INFO, "serving.front.observation"):
        post(create_app(front).test_client(), PROMPT, "{", **{"X-Request-Id": "job"})
    records = [record.fields for record in caplog.records if record.message == "request"]  # type: ignore[attr-defined]
    assert {(one["request_id"], one["outcome"]) for one in records} == {
        ("job-1", "ok"),
        ("job-2", "refused"),
        ("job", "ok"),
    }
    assert b"tgi_request_count 1.0" in front.metrics_page()


class TestBatchJob:
    """With SAGEMAKER_BATCH, records may come together under the content type of one."""

    @pytest.fixture
    def client(self, make_front: MakeFront) -> FlaskClient:
        return create_app(make_front(batch_transform=True)).test_client()

    def test_no_record_is_lost(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        for _ in range(2):
            engine.answer(tokenizer, " blue")
        data = f"{PROMPT}\n{PROMPT}\n"
        response = client.post("/invocations", data=data, content_type="application/json")
        assert response.get_data(as_text=True) == f"{BLUE}\n{BLUE}\n"

    @pytest.mark.parametrize("data", [PROMPT, PROMPT + "\n", '{\n"inputs": "the"\n}'])
    def test_one_record_is_one_answer(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer, data: str
    ) -> None:
        engine.answer(tokenizer, " blue")
        response = client.post("/invocations", data=data, content_type="application/json")
        assert response.get_data(as_text=True) == BLUE

    def test_elsewhere_the_rest_is_not_looked_at_as_in_tgi(
        self, front: Any, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue")
        data, kind = f"{PROMPT}\n{PROMPT}", "application/json"
        response = (
            create_app(front).test_client().post("/invocations", data=data, content_type=kind)
        )
        assert response.get_data(as_text=True) == BLUE


def test_no_lines(client: FlaskClient) -> None:
    response = client.post("/invocations", data="", content_type=LINES)
    assert (response.status_code, response.data) == (200, b"")


def test_a_server_that_takes_nothing_refuses_the_body(
    client: FlaskClient, engine: ScriptedEngine
) -> None:
    engine.availability = Availability("draining", healthy=False)
    assert post(client, PROMPT).status_code == 503


def test_a_body_has_a_limit(make_front: MakeFront) -> None:
    client = create_app(make_front(payload_limit=100)).test_client()
    assert post(client, *[PROMPT] * 20).status_code == 413


def test_the_key_is_needed_and_reaches_the_lines(
    make_front: MakeFront, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    client = create_app(make_front(api_key="k")).test_client()
    assert post(client, PROMPT).status_code == 401
    engine.answer(tokenizer, " blue")
    assert answers(post(client, PROMPT, Authorization="Bearer k")) == [json.loads(BLUE)]


def test_other_routes_take_json_only(client: FlaskClient) -> None:
    assert client.post("/generate", data=PROMPT, content_type=LINES).status_code == 415
