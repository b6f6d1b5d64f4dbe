"""The client on real sockets: one group, and what the launcher says."""

from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from serving.errors import ErrorKind, RequestError
from serving.protocol.messages import Abort, Delta, Failed, Ready
from tests.front.wire_rig import LIMIT, REQUEST, Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def test_nothing_is_taken_before_the_engine_is_ready(rig: Rig) -> None:
    assert not rig.client.availability.healthy
    with pytest.raises(RequestError, match="the model is loading") as caught:
        rig.client.submit(REQUEST, print)
    assert caught.value.kind is ErrorKind.UNHEALTHY


def test_ready_prepares_the_worker_and_makes_it_healthy(rig: Rig) -> None:
    rig.serve()
    assert rig.prepared == [60]
    assert rig.client.availability.healthy


def test_the_launcher_decides_what_is_healthy(rig: Rig) -> None:
    rig.serve()
    rig.launcher.broadcast(healthy=False)
    rig.wait_until(lambda: not rig.client.availability.healthy)
    assert rig.client.availability.phase == "serving"
    rig.put()  # it is still taken


def test_a_sequence_crosses_the_wire_and_its_deltas_come_back(rig: Rig) -> None:
    rig.serve()
    events, message = rig.submit()
    assert message.epoch == 1
    assert message.prompt_token_ids == [5, 6]
    deltas = [
        Delta(message.sequence_id, [7], [-0.5], [[(7, -0.5)]], None, 12),
        Delta(message.sequence_id, [8], finish_reason="length"),
    ]
    for delta in deltas:
        rig.step(delta)
    assert [events.get(timeout=5), events.get(timeout=5)] == deltas


def test_one_step_serves_many_sequences(rig: Rig) -> None:
    rig.serve()
    (first, a), (second, b) = rig.submit(), rig.submit()
    deltas = [Delta(a.sequence_id, [1]), Delta(b.sequence_id, [2])]
    rig.step(*deltas)
    assert [first.get(timeout=5), second.get(timeout=5)] == deltas


@pytest.mark.parametrize(
    ("kind", "error_kind", "text"),
    [
        ("overloaded", ErrorKind.OVERLOADED, "Model is overloaded"),
        ("generation", ErrorKind.GENERATION, "Request failed during generation: why"),
        ("validation", ErrorKind.VALIDATION, "Input validation error: why"),
    ],
)
def test_the_engines_refusals_become_errors(
    rig: Rig, kind: str, error_kind: ErrorKind, text: str
) -> None:
    rig.serve()
    events, message = rig.submit()
    rig.engines[0].send(rig.worker, Failed(1, message.sequence_id, kind, "why"))
    error = events.get(timeout=5)
    assert isinstance(error, RequestError)
    assert (error.kind, str(error)) == (error_kind, text)


def test_an_abort_reaches_the_engine_once(rig: Rig) -> None:
    rig.serve()
    _, message = rig.submit()
    rig.abort()
    rig.abort()
    assert rig.receive() == Abort(1, message.sequence_id)
    _, following = rig.submit()  # and not a second Abort
    assert following.sequence_id != message.sequence_id


def test_a_finished_sequence_is_not_aborted(rig: Rig) -> None:
    rig.serve()
    events, message = rig.submit()
    abort = rig.abort
    rig.step(Delta(message.sequence_id, [1], finish_reason="length"))
    events.get(timeout=5)
    abort()
    rig.submit()


def test_a_worker_refuses_at_once_beyond_the_limit(rig: Rig) -> None:
    rig.serve()
    for _ in range(LIMIT):
        rig.submit()
    with pytest.raises(RequestError) as caught:
        rig.put()
    assert caught.value.kind is ErrorKind.OVERLOADED


def test_failure_ends_every_sequence_and_refuses_new_ones(rig: Rig) -> None:
    rig.serve()
    events, _ = rig.submit()
    rig.launcher.broadcast(phase="failed", healthy=False, message="out of memory")
    error = events.get(timeout=5)
    assert isinstance(error, RequestError)
    assert str(error) == "Request failed during generation: out of memory"
    with pytest.raises(RequestError, match="out of memory") as caught:
        rig.put()
    assert caught.value.kind is ErrorKind.GENERATION
    assert not rig.client.availability.healthy


def test_draining_refuses_new_sequences_and_finishes_old_ones(rig: Rig) -> None:
    rig.serve()
    events, message = rig.submit()
    rig.launcher.broadcast(phase="draining")
    rig.wait_for("draining")
    with pytest.raises(RequestError, match="shutting down") as caught:
        rig.put()
    assert caught.value.kind is ErrorKind.UNHEALTHY
    final = Delta(message.sequence_id, [3], finish_reason="eos_token")
    rig.step(final)
    assert events.get(timeout=5) == final


def test_a_silent_launcher_is_dead(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.front.launcher_link.HEARTBEAT_WAIT_MS", 60)
    rig.serve()
    events, _ = rig.submit()
    gevent.sleep(1.1)  # the wait that was under way still has its old length
    rig.launcher.silent.set()
    error = events.get(timeout=5)
    assert isinstance(error, RequestError)
    assert str(error) == "Request failed during generation: the launcher has died"
    assert rig.client.availability.message == "the launcher has died"


def test_an_unreadable_message_harms_nobody(rig: Rig) -> None:
    rig.serve()
    events, message = rig.submit()
    rig.engines[0].send_bytes(rig.worker, b"\x00")
    rig.step(Delta(message.sequence_id, [1]))
    assert events.get(timeout=5).token_ids == [1]


def test_a_repeated_ready_changes_nothing(rig: Rig) -> None:
    rig.serve()
    events, message = rig.submit()
    rig.engines[0].send(rig.worker, Ready(1, rig.engines[0].info))
    rig.step(Delta(message.sequence_id, [1]))
    assert events.get(timeout=5).token_ids == [1]
    assert rig.is_silent()
    assert rig.resumed == []
    assert rig.prepared == [60]


def test_request_waits_for_a_worker_that_is_late(rig: Rig) -> None:
    """Another worker was ready first, so a client may already have seen a 200 on /health."""
    rig.launcher.serve()
    rig.wait_until(lambda: rig.client._status.phase == "serving")
    waiting = gevent.spawn(rig.client.wait_if_late)
    gevent.sleep(0)
    assert not waiting.dead
    rig.greet()
    waiting.get(timeout=10)
    assert rig.client.availability.phase == "serving"


def test_request_does_not_wait_while_the_server_starts(rig: Rig) -> None:
    with gevent.Timeout(1):
        rig.client.wait_if_late()
