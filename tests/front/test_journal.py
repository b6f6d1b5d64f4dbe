"""The journal hands every event on, and knows how to resume."""

import pytest

from serving.errors import ErrorKind, RequestError
from serving.front.journal import Event, Journal
from serving.protocol.messages import Delta, Generate
from serving.protocol.params import SamplingParams, StopParams

REQUEST = Generate(0, 0, [5, 6], SamplingParams(seed=9), StopParams(10))


@pytest.fixture
def events() -> list[Event]:
    return []


def test_ids_are_unique(events: list[Event]) -> None:
    journal = Journal()
    assert journal.add(REQUEST, events.append) != journal.add(REQUEST, events.append)


def test_deltas_arrive_in_order(events: list[Event]) -> None:
    journal = Journal()
    sequence = journal.add(REQUEST, events.append)
    deltas = [Delta(sequence, [1]), Delta(sequence, [2], finish_reason="length")]
    for delta in deltas:
        journal.deliver(delta)
    assert events == deltas


def test_a_new_engine_gets_the_request_and_the_delivered_tokens(events: list[Event]) -> None:
    journal = Journal()
    sequence = journal.add(REQUEST, events.append)
    journal.deliver(Delta(sequence, [1, 2]))
    journal.deliver(Delta(sequence, [3]))
    (message,) = journal.messages(epoch=4)
    assert (message.epoch, message.sequence_id) == (4, sequence)
    assert message.resume_token_ids == [1, 2, 3]
    assert message.prompt_token_ids == [5, 6]
    assert message.sampling.seed == 9


def test_what_has_ended_is_not_resumed_nor_delivered_to(events: list[Event]) -> None:
    journal = Journal()
    ended, failed, dropped = (journal.add(REQUEST, events.append) for _ in range(3))
    journal.deliver(Delta(ended, [1], finish_reason="eos_token"))
    journal.fail(failed, RequestError(ErrorKind.GENERATION, "x"))
    assert journal.forget(dropped)
    assert not journal.forget(dropped)
    assert journal.messages(2) == []
    terminal = len(events)
    for sequence in (ended, failed, dropped):
        journal.deliver(Delta(sequence, [1]))
        journal.fail(sequence, RequestError(ErrorKind.GENERATION, "again"))
    assert len(events) == terminal == 2


def test_all_can_fail_at_once(events: list[Event]) -> None:
    journal = Journal()
    for _ in range(3):
        journal.add(REQUEST, events.append)
    error = RequestError(ErrorKind.GENERATION, "x")
    journal.fail_all(error)
    assert events == [error] * 3
    assert len(journal) == 0
