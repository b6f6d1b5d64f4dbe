"""SageMaker's stateful sessions: opening, using, closing, and every way to be refused."""

import re
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from serving.front import session_table
from serving.front.app import create_app
from serving.front.context import Front
from serving.front.session_table import SessionTable
from serving.front.text.tokenization import Tokenizer
from tests.support.fake_engine import ScriptedEngine
from tests.support.front_fixtures import MakeFront

SESSION = "X-Amzn-SageMaker-Session-Id"
NEW = "X-Amzn-SageMaker-New-Session-Id"
CLOSED = "X-Amzn-SageMaker-Closed-Session-Id"
PROMPT = {"inputs": "the"}
# The pattern of the platform's API for this header.
NEW_PATTERN = (
    r"[a-zA-Z0-9](-*[a-zA-Z0-9])*;\sExpires=[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"
)


@pytest.fixture
def table(tmp_path: Path) -> SessionTable:
    return SessionTable(tmp_path / "sessions", 1200)


@pytest.fixture
def sticky(make_front: MakeFront, table: SessionTable) -> Front:
    front = make_front(stateful_sessions=True)
    front.sessions = table
    return front


@pytest.fixture
def client(sticky: Front) -> FlaskClient:
    return create_app(sticky).test_client()


def post(client: FlaskClient, body: object, session_id: str | None = None) -> TestResponse:
    headers = {} if session_id is None else {SESSION: session_id}
    return client.post("/invocations", json=body, headers=headers)


def open_session(client: FlaskClient) -> str:
    response = post(client, {"requestType": "NEW_SESSION"}, "NEW_SESSION")
    assert response.status_code == 200
    return response.headers[NEW].split(";")[0]


class TestLife:
    def test_opening(self, client: FlaskClient) -> None:
        response = post(client, {"requestType": "NEW_SESSION"}, "NEW_SESSION")
        assert response.status_code == 200
        header = response.headers[NEW]
        assert re.fullmatch(NEW_PATTERN, header)
        session_id, expires = header.split("; Expires=")
        seconds = datetime.strptime(expires, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
        assert 1198 <= seconds - time.time() <= 1200
        assert response.json == {"session_id": session_id, "expires": expires}

    def test_a_request_carries_its_session_to_the_engine(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        session_id = open_session(client)
        engine.answer(tokenizer, " blue")
        assert post(client, PROMPT, session_id).status_code == 200
        session = engine.submitted[0].session
        assert session is not None
        assert session.id == session_id
        assert 1190 * 10**9 < session.expires_ns - time.monotonic_ns() <= 1200 * 10**9

    @pytest.mark.parametrize(
        "body", [{"messages": [{"role": "user", "content": "hi"}]}, {"prompt": "the"}]
    )
    def test_in_every_dialect_and_on_streams(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer, body: object
    ) -> None:
        session_id = open_session(client)
        for stream in (False, True):
            engine.answer(tokenizer, " blue")
            assert post(client, {**body, "stream": stream}, session_id).data  # type: ignore[dict-item]
        assert {sent.session.id for sent in engine.submitted if sent.session} == {session_id}
        assert len(engine.submitted) == 2

    def test_closing(self, client: FlaskClient, engine: ScriptedEngine) -> None:
        session_id = open_session(client)
        response = post(client, {"requestType": "CLOSE"}, session_id)
        assert response.status_code == 200
        assert response.headers[CLOSED] == session_id
        assert response.json == {"session_id": session_id}
        assert engine.closed_sessions == [session_id]
        assert post(client, PROMPT, session_id).status_code == 400

    def test_requests_without_a_session_have_none(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue")
        post(client, PROMPT)
        assert engine.submitted[0].session is None

    def test_other_routes_know_no_sessions(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue")
        response = client.post("/generate", json=PROMPT, headers={SESSION: "unknown"})
        assert response.status_code == 200
        assert engine.submitted[0].session is None


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "session_id", "text"),
        [
            (PROMPT, "d1e7c5c0-0000-4000-8000-000000000000", "unknown, closed or expired"),
            (PROMPT, "../../etc/passwd", "unknown, closed or expired"),
            (PROMPT, "NEW_SESSION", 'opened by the body {"requestType": "NEW_SESSION"}'),
            ({"requestType": "CLOSE"}, "unknown", "unknown, closed or expired"),
            ({"requestType": "CLOSE"}, None, "does not say which session to close"),
            ({"requestType": "NEW_SESSION", "a": 1}, "NEW_SESSION", "unknown field `a`"),
        ],
    )
    def test_are_400(
        self, client: FlaskClient, body: object, session_id: str | None, text: str
    ) -> None:
        response = post(client, body, session_id)
        assert (response.status_code, text in response.get_data(as_text=True)) == (400, True)
        assert NEW not in response.headers
        assert CLOSED not in response.headers

    @pytest.mark.parametrize(
        ("body", "session_id"), [({"requestType": "NEW_SESSION"}, None), (PROMPT, "some-id")]
    )
    def test_disabled(self, make_front: MakeFront, body: object, session_id: str | None) -> None:
        response = post(create_app(make_front()).test_client(), body, session_id)
        assert response.status_code == 400
        assert response.data == (
            b"stateful sessions are disabled: set SAGEMAKER_ENABLE_STATEFUL_SESSIONS=true"
        )

    def test_expired(self, make_front: MakeFront, tmp_path: Path) -> None:
        front = make_front(stateful_sessions=True)
        front.sessions = SessionTable(tmp_path / "short", -1)
        client = create_app(front).test_client()
        assert post(client, PROMPT, open_session(client)).status_code == 400

    def test_too_many(self, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session_table, "MOST_SESSIONS", 1)
        open_session(client)
        response = post(client, {"requestType": "NEW_SESSION"}, "NEW_SESSION")
        assert (response.status_code, response.json["error_type"]) == (429, "overloaded")

    def test_a_table_that_cannot_be_written_is_424(
        self, client: FlaskClient, table: SessionTable, tmp_path: Path
    ) -> None:
        (tmp_path / "sessions").rmdir()
        response = post(client, {"requestType": "NEW_SESSION"}, "NEW_SESSION")
        assert (response.status_code, response.json["error_type"]) == (424, "generation")
        assert "cannot open a session" in response.json["error"]

    @pytest.mark.parametrize("kind", ["PREDICT", None, 1, ["NEW_SESSION"]])
    def test_other_request_types_are_fields_that_nobody_reads(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer, kind: object
    ) -> None:
        engine.answer(tokenizer, " blue")
        assert post(client, {**PROMPT, "requestType": kind}).status_code == 200

    @pytest.mark.parametrize("data", [b'{"requestType"', b'["requestType"]', b'"requestType"'])
    def test_bodies_that_are_none_get_the_usual_errors(
        self, client: FlaskClient, data: bytes
    ) -> None:
        response = client.post("/invocations", data=data, content_type="application/json")
        assert response.status_code in (400, 422)

    def test_the_key_is_needed(self, make_front: MakeFront, table: SessionTable) -> None:
        front = make_front(api_key="k")
        front.sessions = table
        response = post(create_app(front).test_client(), {"requestType": "NEW_SESSION"})
        assert response.status_code == 401


def test_session_requests_are_no_generations(client: FlaskClient, sticky: Front) -> None:
    open_session(client)
    page = sticky.metrics_page()
    assert b"tgi_request_count 0.0" in page
    assert b"tgi_request_failure{" not in page
