"""Sessions of a whole server: two HTTP workers share them, the engine keeps their prefixes."""

import http.client
import json
import os
import signal
from collections.abc import Iterator

import pytest
from live_server import LiveServer, live_server, wait_for

pytestmark = pytest.mark.e2e

SESSION = "X-Amzn-SageMaker-Session-Id"
POOL = 512  # tokens: half of them may be kept for sessions
CONTEXT = 256
HITS = "tgi_prefix_cache_hit_tokens_total"
TALK = " ".join(f"word{number}" for number in range(24))  # some blocks of the demo model's tokens


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    limits = ("--max-total-tokens", str(CONTEXT), "--max-batch-total-tokens", str(POOL))
    log = tmp_path_factory.mktemp("sessions") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAGEMAKER_ENABLE_STATEFUL_SESSIONS", "true")
        with live_server(log, *limits, "--max-concurrent-requests", "8") as running:
            yield running
            running.wait_until_idle()
            assert "Traceback" not in log.read_text(), log.read_text()


def invoke(
    server: LiveServer, body: object, session_id: str | None = None
) -> http.client.HTTPResponse:
    """One invocation on a connection of its own, so that either worker may get it."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Content-Type": "application/json"}
    if session_id is not None:
        headers[SESSION] = session_id
    connection.request("POST", "/invocations", json.dumps(body), headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def open_session(server: LiveServer) -> str:
    response = invoke(server, {"requestType": "NEW_SESSION"}, "NEW_SESSION")
    assert response.status == 200
    return str(response.headers["X-Amzn-SageMaker-New-Session-Id"]).split(";")[0]


def prompt(text: str, tokens: int = 2) -> dict[str, object]:
    return {"inputs": text, "parameters": {"max_new_tokens": tokens}}


def flood(server: LiveServer) -> None:
    """More unrelated prompts than the whole pool holds."""
    for number in range(12):
        text = " ".join(f"x{number}y{word}" for word in range(20))
        assert invoke(server, prompt(text)).status == 200


def hits_of(server: LiveServer, text: str, session_id: str | None) -> float:
    """Prompt tokens that the engine had kept."""
    server.wait_until_idle()
    before = server.metric(HITS)
    assert invoke(server, prompt(text), session_id).status == 200
    server.wait_until_idle()
    return server.metric(HITS) - before


def test_every_worker_knows_every_session(server: LiveServer) -> None:
    assert len(server.worker_pids()) == 2
    session_id = open_session(server)
    statuses = {invoke(server, prompt("Count", 1), session_id).status for _ in range(12)}
    assert statuses == {200}
    assert invoke(server, {"requestType": "CLOSE"}, session_id).status == 200
    statuses = {invoke(server, prompt("Count", 1), session_id).status for _ in range(12)}
    assert statuses == {400}


def test_a_session_keeps_its_prefix_through_a_flood(server: LiveServer) -> None:
    forgotten, kept = f"a {TALK}", f"b {TALK}"
    session_id = open_session(server)
    invoke(server, prompt(forgotten))
    invoke(server, prompt(kept), session_id)
    flood(server)
    assert hits_of(server, forgotten, None) == 0
    assert hits_of(server, kept, session_id) > 16
    assert server.metric("tgi_kv_cache_usage_ratio") > 0
    response = invoke(server, {"requestType": "CLOSE"}, session_id)
    assert response.headers["X-Amzn-SageMaker-Closed-Session-Id"] == session_id
    flood(server)
    assert hits_of(server, kept, None) == 0
    assert server.metric("tgi_kv_cache_usage_ratio") == 0


def test_sessions_survive_the_death_of_a_worker_and_of_the_engine(server: LiveServer) -> None:
    session_id = open_session(server)
    invoke(server, prompt(TALK), session_id)
    engine, workers = server.engine_pid(), server.worker_pids()
    os.kill(workers[0], signal.SIGKILL)
    os.kill(engine, signal.SIGKILL)
    wait_for(lambda: len(set(server.worker_pids()) - {workers[0]}) == 2, "another worker")
    for _ in range(4):
        assert invoke(server, prompt(TALK), session_id).status == 200
    assert invoke(server, {"requestType": "CLOSE"}, session_id).status == 200


def test_json_lines_of_a_real_engine(server: LiveServer) -> None:
    lines = [json.dumps(prompt(f"Count to {number}", 8)) for number in range(1, 21)]
    alone = [server.post("/invocations", json.loads(line)) for line in lines]
    headers = {"Content-Type": "application/jsonlines"}
    status, text = server.request("POST", "/invocations", "\n".join(lines) + "\n", headers)
    assert status == 200
    assert [json.loads(line) for line in text.splitlines()] == alone  # 20 lines, 8 places


def test_a_client_that_hangs_up_ends_all_its_lines(server: LiveServer) -> None:
    parameters = {"max_new_tokens": 200, "ignore_eos": True}
    lines = [json.dumps({"inputs": f"Count to {n}", "parameters": parameters}) for n in range(60)]
    before = server.metric("tgi_request_count")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Content-Type": "application/jsonlines"}
    connection.request("POST", "/invocations", "\n".join(lines), headers)
    wait_for(lambda: server.metric("tgi_batch_current_size") > 0, "the first lines", 10)
    connection.close()
    server.wait_until_idle()
    assert server.metric("tgi_request_count") - before < len(lines) / 2
    assert server.post("/invocations", prompt("Count", 1))
