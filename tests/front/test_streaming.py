"""Streams: keep-alive, the abort when the response closes, one terminal event always."""

import pytest
from flask.testing import FlaskClient

from serving.errors import ErrorKind, RequestError
from serving.front.openai import routes as openai_routes
from serving.front.tgi import generate as tgi_generate
from tests.support.fake_engine import Script, ScriptedEngine

STREAMS = [
    ("/generate_stream", {"inputs": "the"}),
    ("/v1/completions", {"prompt": "the", "stream": True}),
]
BLUE = 297


@pytest.mark.parametrize(("path", "body"), STREAMS)
def test_silence_is_filled_with_comments(
    client: FlaskClient,
    engine: ScriptedEngine,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, object],
) -> None:
    for module in (tgi_generate, openai_routes):
        monkeypatch.setattr(module, "KEEP_ALIVE_SECONDS", 0.01)
    monkeypatch.setattr(openai_routes, "FIRST_EVENT_SECONDS", 0.01)
    engine.scripts.append(Script())
    with client.post(path, json=body, buffered=False) as response:
        pieces = response.iter_encoded()
        assert [next(pieces) for _ in range(3)] == [b"", b":\n\n", b":\n\n"]


@pytest.mark.parametrize(("path", "body"), STREAMS)
def test_closing_the_response_aborts_the_sequence(
    client: FlaskClient, engine: ScriptedEngine, path: str, body: dict[str, object]
) -> None:
    engine.scripts.append(Script([BLUE]))
    response = client.post(path, json=body, buffered=False)
    pieces = response.iter_encoded()
    assert [next(pieces), next(pieces)][0] == b""
    response.close()
    assert engine.aborted == [0]


def test_a_stream_that_was_never_read_is_aborted_too(
    client: FlaskClient, engine: ScriptedEngine
) -> None:
    engine.scripts.append(Script([BLUE]))
    path, body = STREAMS[1]
    client.post(path, json=body, buffered=False).close()
    assert engine.aborted == [0]


def test_a_dropped_stream_is_counted_as_dropped(
    client: FlaskClient, engine: ScriptedEngine
) -> None:
    engine.scripts.append(Script([BLUE]))
    path, body = STREAMS[1]
    client.post(path, json=body, buffered=False).close()
    page = client.get("/metrics").get_data(as_text=True)
    assert 'tgi_request_failure{err="dropped"} 1.0' in page


def test_a_failure_after_tokens_is_the_last_event(
    client: FlaskClient, engine: ScriptedEngine
) -> None:
    engine.scripts.append(Script([BLUE], error=RequestError(ErrorKind.GENERATION, "boom")))
    data = client.post("/generate_stream", json={"inputs": "the"}).data
    assert data.endswith(
        b'data: {"error":"Request failed during generation: boom","error_type":"generation"}\n\n'
    )
    assert data.count(b"data: ") == 2


def test_an_early_end_has_tgis_name(client: FlaskClient, engine: ScriptedEngine) -> None:
    engine.scripts.append(Script(error=RequestError(ErrorKind.INCOMPLETE, "x")))
    assert client.post("/generate_stream", json={"inputs": "the"}).data == (
        b'data: {"error":"Incomplete generation stream",'
        b'"error_type":"incomplete_generation_stream"}\n\n'
    )


def test_a_fault_of_ours_still_ends_the_stream(
    client: FlaskClient, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    assert not engine.scripts  # so the fake raises IndexError
    data = client.post("/generate_stream", json={"inputs": "the"}).data
    assert b'"error_type":"incomplete_generation_stream"' in data
    assert "unexpected error in the stream" in caplog.text


@pytest.mark.parametrize(("path", "body"), STREAMS)
def test_events_that_are_there_together_are_one_write(
    client: FlaskClient, engine: ScriptedEngine, path: str, body: dict[str, object]
) -> None:
    engine.scripts.append(Script([BLUE, BLUE, BLUE], "length"))
    with client.post(path, json=body, buffered=False) as response:
        pieces = [piece for piece in response.iter_encoded() if piece]
    assert pieces[0].count(b"data: ") == pieces[0].count(b"\n\n") == 3


@pytest.mark.parametrize(("path", "body"), STREAMS)
def test_tokens_before_a_failure_are_not_lost(
    client: FlaskClient, engine: ScriptedEngine, path: str, body: dict[str, object]
) -> None:
    engine.scripts.append(Script([BLUE, BLUE], error=RequestError(ErrorKind.GENERATION, "boom")))
    text = client.post(path, json=body).text
    assert text.count(" blue") == 2
    assert text.count("boom") == 1
