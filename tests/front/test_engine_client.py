"""The client on real sockets, against an engine and a launcher that the test plays."""

from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent.queue import SimpleQueue

from serving.errors import ErrorKind, RequestError
from serving.front.engine_client import EngineClient
from serving.front.journal import Event
from serving.protocol.messages import Abort, Delta, Failed, Generate, Ready, Step, ToEngine
from serving.protocol.params import SamplingParams, StopParams
from tests.support.fake_engine import WireEngine

REQUEST = Generate(0, 0, [5, 6], SamplingParams(), StopParams(10))


class Rig:
    """A client and the other ends of its sockets; blocking calls run in gevent's threads."""

    def __init__(self, run_directory: Path) -> None:
        self.wire = WireEngine(run_directory, Path("model"))
        self.prepared: list[str] = []
        self.resumed: list[int] = []
        self.client = EngineClient(
            run_directory,
            max_concurrent_requests=3,
            on_ready=lambda info: self.prepared.append(info.model_path),
            on_resumed=self.resumed.append,
        )
        self.client.start()

    def close(self) -> None:
        self.client.close()
        self.wire.close()

    def serve(self) -> None:
        gevent.get_hub().threadpool.apply(self.wire.greet)
        self.wire.broadcast("serving")
        self.wait_for("serving")

    def wait_for(self, phase: str) -> None:
        with gevent.Timeout(10):
            while self.client.availability.phase != phase:
                gevent.sleep(0.005)

    def receive(self) -> ToEngine:
        worker, message = gevent.get_hub().threadpool.apply(self.wire.receive)
        self.worker = worker
        return message

    def submit(self) -> tuple["SimpleQueue[Event]", Generate]:
        events: SimpleQueue[Event] = SimpleQueue()
        self.abort = self.client.submit(REQUEST, events.put)
        message = self.receive()
        assert isinstance(message, Generate)
        return events, message

    def step(self, *deltas: Delta, epoch: int | None = None) -> None:
        self.wire.send(self.worker, Step(epoch or self.wire.epoch, list(deltas)))


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
    assert rig.prepared == ["model"]
    assert rig.client.availability.healthy


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
    rig.wire.send(rig.worker, Failed(1, message.sequence_id, kind, "why"))
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
    for _ in range(3):
        rig.submit()
    with pytest.raises(RequestError) as caught:
        rig.client.submit(REQUEST, print)
    assert caught.value.kind is ErrorKind.OVERLOADED


def test_a_new_engine_resumes_every_live_sequence(rig: Rig) -> None:
    rig.serve()
    events, first = rig.submit()
    _, second = rig.submit()
    rig.step(Delta(first.sequence_id, [1, 2]))
    events.get(timeout=5)
    rig.wire.die()
    rig.wire.restart()
    resumed = [rig.receive(), rig.receive()]
    assert [(m.epoch, m.sequence_id, m.resume_token_ids) for m in resumed] == [
        (2, first.sequence_id, [1, 2]),
        (2, second.sequence_id, []),
    ]
    assert rig.resumed == [0, 2]
    final = Delta(first.sequence_id, [3], finish_reason="eos_token")
    rig.step(final)
    assert events.get(timeout=5) == final


def test_sequences_are_accepted_while_the_engine_restarts(rig: Rig) -> None:
    rig.serve()
    rig.wire.die()
    rig.wire.broadcast("starting", epoch=2)
    rig.wait_for("recovering")
    assert rig.client.availability.healthy
    events: SimpleQueue[Event] = SimpleQueue()
    rig.client.submit(REQUEST, events.put)
    rig.wire.restart()
    message = rig.receive()
    assert isinstance(message, Generate)
    assert message.epoch == 2


def test_deltas_of_a_dead_engine_are_ignored(rig: Rig) -> None:
    rig.serve()
    events, first = rig.submit()
    rig.wire.die()
    rig.wire.restart()
    rig.receive()
    rig.step(Delta(first.sequence_id, [9]), epoch=1)
    rig.step(Delta(first.sequence_id, [1]))
    assert events.get(timeout=5).token_ids == [1]


def test_a_repeated_ready_changes_nothing(rig: Rig) -> None:
    rig.serve()
    events, message = rig.submit()
    rig.wire.send(rig.worker, Ready(1, rig.wire.info))
    rig.step(Delta(message.sequence_id, [1]))
    assert events.get(timeout=5).token_ids == [1]
    assert rig.resumed == [0]


def test_failure_ends_every_sequence_and_refuses_new_ones(rig: Rig) -> None:
    rig.serve()
    events, _ = rig.submit()
    rig.wire.broadcast("failed", "out of memory")
    error = events.get(timeout=5)
    assert isinstance(error, RequestError)
    assert str(error) == "Request failed during generation: out of memory"
    with pytest.raises(RequestError, match="out of memory") as caught:
        rig.client.submit(REQUEST, print)
    assert caught.value.kind is ErrorKind.GENERATION
    assert not rig.client.availability.healthy


def test_draining_refuses_new_sequences_and_finishes_old_ones(rig: Rig) -> None:
    rig.serve()
    events, message = rig.submit()
    rig.wire.broadcast("draining")
    rig.wait_for("draining")
    with pytest.raises(RequestError, match="shutting down") as caught:
        rig.client.submit(REQUEST, print)
    assert caught.value.kind is ErrorKind.UNHEALTHY
    final = Delta(message.sequence_id, [3], finish_reason="eos_token")
    rig.step(final)
    assert events.get(timeout=5) == final


def test_a_silent_launcher_is_dead(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.front.engine_client.HEARTBEAT_WAIT_MS", 60)
    rig.serve()
    events, _ = rig.submit()
    gevent.sleep(1.1)  # the wait that was under way still has its old length
    rig.wire.silent.set()
    error = events.get(timeout=5)
    assert isinstance(error, RequestError)
    assert str(error) == "Request failed during generation: the launcher has died"


def test_an_unreadable_message_harms_nobody(rig: Rig) -> None:
    rig.serve()
    events, message = rig.submit()
    rig.wire._router.send_multipart([rig.worker, b"\x00"])
    rig.step(Delta(message.sequence_id, [1]))
    assert events.get(timeout=5).token_ids == [1]


def test_request_waits_for_a_worker_that_is_late(rig: Rig) -> None:
    """Another worker was ready first, so a client may already have seen a 200 on /health."""
    rig.wire.broadcast("serving")
    with gevent.Timeout(10):
        while rig.client._status.phase != "serving":
            gevent.sleep(0.005)
    waiting = gevent.spawn(rig.client.wait_if_late)
    gevent.sleep(0)
    assert not waiting.dead
    gevent.get_hub().threadpool.apply(rig.wire.greet)
    waiting.get(timeout=10)
    assert rig.client.availability.phase == "serving"


def test_request_does_not_wait_while_the_server_starts(rig: Rig) -> None:
    rig.wire.broadcast("starting")
    with gevent.Timeout(1):
        rig.client.wait_if_late()
