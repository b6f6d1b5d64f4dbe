"""The journal hands every event on, and knows who has what and how to resume it."""

import pytest

from serving.errors import ErrorKind, RequestError
from serving.front.journal import Event, Journal
from serving.protocol.messages import Delta, Generate
from serving.protocol.params import SamplingParams, StopParams

REQUEST = Generate(0, 0, [5, 6], SamplingParams(seed=9), StopParams(10))


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def left() -> list[int]:
    """Groups that a sequence has left because it ended."""
    return []


@pytest.fixture
def journal(left: list[int]) -> Journal:
    return Journal(left.append)


def send(journal: Journal, sequence: int, group: int = 0) -> Generate:
    message = journal.message(sequence, epoch=4)
    journal.sent(sequence, group)
    return message


def test_ids_are_unique(journal: Journal, events: list[Event]) -> None:
    assert journal.add(REQUEST, events.append) != journal.add(REQUEST, events.append)


def test_deltas_arrive_in_order(journal: Journal, events: list[Event]) -> None:
    sequence = journal.add(REQUEST, events.append)
    deltas = [Delta(sequence, [1]), Delta(sequence, [2], finish_reason="length")]
    for delta in deltas:
        journal.deliver(delta)
    assert events == deltas


def test_a_message_holds_the_request_and_the_delivered_tokens(
    journal: Journal, events: list[Event]
) -> None:
    sequence = journal.add(REQUEST, events.append)
    journal.deliver(Delta(sequence, [1, 2]))
    journal.deliver(Delta(sequence, [3]))
    message = journal.message(sequence, epoch=4)
    assert (message.epoch, message.sequence_id) == (4, sequence)
    assert message.resume_token_ids == [1, 2, 3]
    assert message.prompt_token_ids == journal.prompt_token_ids(sequence) == [5, 6]
    assert message.sampling.seed == 9
    assert not message.is_suspect


def test_a_sequence_waits_until_it_is_sent(journal: Journal, events: list[Event]) -> None:
    sequence = journal.add(REQUEST, events.append)
    assert journal.waiting() == [sequence]
    assert journal.group_of(sequence) is None
    assert not journal.sent(sequence, group=1)
    assert journal.waiting() == []
    assert journal.group_of(sequence) == 1


def test_a_lost_group_leaves_its_sequences_waiting_oldest_first(
    journal: Journal, events: list[Event]
) -> None:
    first, other, second = (journal.add(REQUEST, events.append) for _ in range(3))
    for sequence, group in ((second, 0), (first, 0), (other, 1)):
        journal.sent(sequence, group)
    late = journal.add(REQUEST, events.append)
    assert journal.lose(0) == 2
    assert journal.waiting() == [first, second, late]
    assert journal.group_of(first) is None
    assert journal.group_of(other) == 1
    assert journal.sent(first, group=1)  # another engine had it before


def test_only_what_an_engine_had_before_is_resumed(journal: Journal, events: list[Event]) -> None:
    sequence = journal.add(REQUEST, events.append)
    journal.lose(0)
    assert not send(journal, sequence).is_resumed
    journal.lose(0)
    assert send(journal, sequence).is_resumed


def test_a_sequence_is_suspect_when_two_engines_died_before_it_got_a_token(
    journal: Journal, events: list[Event]
) -> None:
    sequence = journal.add(REQUEST, events.append)
    suspicion = []
    for _ in range(4):
        suspicion.append(send(journal, sequence).is_suspect)
        journal.lose(0)
    assert suspicion == [False, False, True, True]


def test_a_token_clears_a_sequence_of_suspicion(journal: Journal, events: list[Event]) -> None:
    sequence = journal.add(REQUEST, events.append)
    for _ in range(2):
        send(journal, sequence)
        journal.lose(0)
    assert send(journal, sequence).is_suspect
    journal.deliver(Delta(sequence, [1]))
    journal.lose(0)
    assert not send(journal, sequence).is_suspect
    journal.lose(0)
    assert not send(journal, sequence).is_suspect  # the count began again at none
    journal.lose(0)
    assert send(journal, sequence).is_suspect


def test_waiting_through_deaths_is_not_suspicious(journal: Journal, events: list[Event]) -> None:
    sequence = journal.add(REQUEST, events.append)
    for _ in range(3):
        journal.lose(0)
    assert not send(journal, sequence).is_suspect


def test_what_has_ended_is_gone(journal: Journal, events: list[Event]) -> None:
    ended, failed, dropped = (journal.add(REQUEST, events.append) for _ in range(3))
    journal.deliver(Delta(ended, [1], finish_reason="eos_token"))
    assert journal.fail(failed, RequestError(ErrorKind.GENERATION, "x"))
    journal.forget(dropped)
    assert journal.waiting() == []
    terminal = len(events)
    for sequence in (ended, failed, dropped):
        journal.deliver(Delta(sequence, [1]))
        assert not journal.fail(sequence, RequestError(ErrorKind.GENERATION, "again"))
        journal.forget(sequence)
        assert journal.group_of(sequence) is None
    assert len(events) == terminal == 2
    assert journal.lose(0) == 0


def test_each_end_on_an_engine_is_told_once(
    journal: Journal, events: list[Event], left: list[int]
) -> None:
    first, second, third, waiting = (journal.add(REQUEST, events.append) for _ in range(4))
    for group, sequence in enumerate((first, second, third)):
        journal.sent(sequence, group)
    journal.lose(0)
    journal.deliver(Delta(second, [1], finish_reason="length"))
    for sequence in (first, second, third, waiting):
        journal.forget(sequence)
    assert left == [1, 2]


def test_all_can_fail_at_once(journal: Journal, events: list[Event]) -> None:
    for _ in range(3):
        journal.add(REQUEST, events.append)
    error = RequestError(ErrorKind.GENERATION, "x")
    journal.fail_all(error)
    assert events == [error] * 3
    assert len(journal) == 0
