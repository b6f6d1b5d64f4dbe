"""The engine's socket, with real ZeroMQ dealers on the other end."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from serving.engine.mailbox import Mailbox
from serving.protocol import codec
from serving.protocol.messages import (
    Abort,
    Delta,
    EngineInfo,
    Failed,
    Generate,
    Hello,
    Load,
    Ready,
    Step,
)
from serving.protocol.params import SamplingParams, StopParams

INFO = EngineInfo("path", "float32", "cpu", "1-cpu", 10, 20, 100, 50, [2])
EPOCH = 3


@pytest.fixture
def mailbox(tmp_path: Path) -> Iterator[Mailbox]:
    box = Mailbox(tmp_path / "engine.sock", EPOCH, INFO)
    yield box
    box.close()


@pytest.fixture
def worker(tmp_path: Path, mailbox: Mailbox) -> Iterator[zmq.Socket[bytes]]:
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.IDENTITY, b"w1")
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.RCVTIMEO, 5000)
    dealer.connect(f"ipc://{tmp_path}/engine.sock")
    yield dealer
    dealer.close()
    context.term()


def generate(epoch: int = EPOCH) -> Generate:
    return Generate(epoch, 7, [1, 2], SamplingParams(), StopParams(5))


def received(mailbox: Mailbox) -> list[object]:
    return list(mailbox.receive(2000))


def test_hello_is_answered_with_ready(mailbox: Mailbox, worker: zmq.Socket[bytes]) -> None:
    worker.send(codec.encode(Hello()))
    assert received(mailbox) == []
    assert codec.decode_to_front(worker.recv()) == Ready(EPOCH, INFO)


def test_hello_of_another_protocol_is_not_answered(
    mailbox: Mailbox, worker: zmq.Socket[bytes]
) -> None:
    worker.send(codec.encode(Hello(version=99)))
    assert received(mailbox) == []
    assert worker.poll(50) == 0


def test_messages_of_this_epoch_come_in_order(mailbox: Mailbox, worker: zmq.Socket[bytes]) -> None:
    worker.send(codec.encode(generate()))
    worker.send(codec.encode(Abort(EPOCH, 7)))
    found = received(mailbox)
    if len(found) == 1:
        found += received(mailbox)
    assert found == [(b"w1", generate()), (b"w1", Abort(EPOCH, 7))]


def test_messages_of_another_epoch_are_dropped(mailbox: Mailbox, worker: zmq.Socket[bytes]) -> None:
    worker.send(codec.encode(generate(epoch=EPOCH - 1)))
    assert received(mailbox) == []


def test_unreadable_message_is_dropped_and_the_next_one_read(
    mailbox: Mailbox, worker: zmq.Socket[bytes]
) -> None:
    worker.send(b"\xc1 nonsense")
    worker.send(codec.encode(generate()))
    found = received(mailbox) or received(mailbox)
    assert found == [(b"w1", generate())]


def test_step_and_failed_reach_their_worker(mailbox: Mailbox, worker: zmq.Socket[bytes]) -> None:
    worker.send(codec.encode(generate()))
    received(mailbox)
    deltas = [Delta(7, [4], [-0.5], [[(4, -0.5)]], "length", 12)]
    mailbox.send_step(b"w1", deltas)
    mailbox.send_failed(b"w1", 8, "overloaded", "full")
    assert codec.decode_to_front(worker.recv()) == Step(EPOCH, deltas)
    assert codec.decode_to_front(worker.recv()) == Failed(EPOCH, 8, "overloaded", "full")


def test_worker_that_has_gone_is_reported(mailbox: Mailbox, worker: zmq.Socket[bytes]) -> None:
    worker.send(codec.encode(generate()))
    received(mailbox)
    worker.close()
    deadline = time.monotonic() + 5
    while not mailbox.lost_workers and time.monotonic() < deadline:
        mailbox.send_step(b"w1", [])
        time.sleep(0.01)
    assert mailbox.lost_workers == {b"w1"}


def test_loads_go_to_every_worker_that_was_greeted(
    mailbox: Mailbox, worker: zmq.Socket[bytes]
) -> None:
    worker.send(codec.encode(Hello()))
    received(mailbox)
    worker.recv()
    assert mailbox.newcomers == {b"w1"}
    mailbox.send_load(3, [b"12345678"], [])
    mailbox.send_load(4, [], [], but={b"w1"})
    mailbox.send_load(5, [], [b"12345678"], only={b"w1"})
    loads = [codec.decode_to_front(worker.recv()) for _ in range(2)]
    assert loads == [Load(EPOCH, 3, [b"12345678"], []), Load(EPOCH, 5, [], [b"12345678"])]
