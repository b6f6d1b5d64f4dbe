"""Engines that die and come back: every live sequence goes on, no token comes twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from serving.errors import ErrorKind, RequestError
from serving.protocol.messages import Abort, Delta, Load, Ready, SequenceName, Step
from serving.protocol.prefix_hash import reusable_digests
from tests.front.wire_rig import LIMIT, REQUEST, Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    rig.serve()
    yield rig
    rig.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Rig]:
    """Two groups; sequences that are submitted one after the other go to them in turn."""
    rig = Rig(tmp_path, groups=2)
    rig.serve()
    yield rig
    rig.close()


# --- one group ---


def test_a_new_engine_resumes_every_live_sequence(rig: Rig) -> None:
    events, first = rig.submit()
    _, second = rig.submit()
    rig.step(Delta(first.sequence_id, [1, 2]))
    events.get(timeout=5)
    rig.kill(0)
    rig.engines[0].restart()
    resumed = [rig.receive_generate(), rig.receive_generate()]
    assert [(m.epoch, m.sequence_id, m.resume_token_ids) for m in resumed] == [
        (2, first.sequence_id, [1, 2]),
        (2, second.sequence_id, []),
    ]
    assert rig.resumed == [2]
    final = Delta(first.sequence_id, [3], finish_reason="eos_token")
    rig.step(final)
    assert events.get(timeout=5) == final


def test_sequences_are_accepted_while_the_engine_restarts(rig: Rig) -> None:
    rig.kill(0)
    assert rig.client.availability.phase == "recovering"
    assert rig.client.availability.healthy
    for _ in range(LIMIT):
        rig.put()
    with pytest.raises(RequestError) as caught:
        rig.put()
    assert caught.value.kind is ErrorKind.OVERLOADED
    rig.engines[0].restart()
    assert [rig.receive_generate().epoch for _ in range(LIMIT)] == [2] * LIMIT
    assert rig.resumed == []  # no engine had them before


def test_a_sequence_that_is_aborted_while_it_waits_is_never_sent(rig: Rig) -> None:
    rig.kill(0)
    rig.put()
    rig.abort()
    rig.put()
    rig.engines[0].restart()
    assert rig.receive_generate().sequence_id == 2
    assert rig.is_silent()


def test_a_ready_before_the_launchers_word_resumes_once(rig: Rig) -> None:
    rig.submit()
    rig.restart_unannounced()
    assert rig.receive_generate().epoch == 2
    rig.announce()
    assert rig.is_silent()
    assert rig.resumed == [1]
    # It counted as one death: only after the next one is the sequence a suspect.
    rig.kill(0)
    rig.engines[0].restart()
    assert rig.receive_generate().is_suspect
    assert rig.resumed == [1, 1]


def test_a_ready_that_comes_late_does_not_bring_a_dead_engine_back(rig: Rig) -> None:
    events, message = rig.submit()
    rig.restart_unannounced()
    rig.receive_generate()
    rig.engines[0].send(rig.worker, Ready(1, rig.engines[0].info))
    rig.step(Delta(message.sequence_id, [9]), epoch=1)
    rig.step(Delta(message.sequence_id, [1]), epoch=2)
    assert events.get(timeout=5).token_ids == [1]
    assert rig.is_silent()


def test_an_engine_that_the_launcher_has_given_up_gets_nothing(rig: Rig) -> None:
    rig.announce(0)
    rig.engines[0].send(rig.engines[0].workers[0], Ready(1, rig.engines[0].info))
    rig.put()
    assert rig.is_silent()
    rig.engines[0].restart()
    assert rig.receive_generate().epoch == 2


def test_deltas_of_a_dead_engine_are_ignored(rig: Rig) -> None:
    events, first = rig.submit()
    rig.kill(0)
    rig.engines[0].restart()
    rig.receive()
    rig.step(Delta(first.sequence_id, [9]), epoch=1)
    rig.step(Delta(first.sequence_id, [1]))
    assert events.get(timeout=5).token_ids == [1]


def test_while_draining_a_new_engine_still_gets_what_is_live(rig: Rig) -> None:
    events, first = rig.submit()
    rig.launcher.broadcast(phase="draining")
    rig.wait_for("draining")
    rig.kill(0)
    rig.engines[0].restart()
    assert rig.receive_generate().sequence_id == first.sequence_id
    rig.step(Delta(first.sequence_id, [3], finish_reason="length"))
    assert events.get(timeout=5).finish_reason == "length"


def test_a_new_worker_meets_an_engine_that_never_died(rig: Rig) -> None:
    rig.submit()
    rig.client.close()
    rig.connect()
    rig.greet()
    rig.wait_for("serving")
    events, message = rig.submit()
    assert rig.engines[0].workers[1] == rig.worker
    rig.step(Delta(message.sequence_id, [4]))
    assert events.get(timeout=5).token_ids == [4]


@pytest.mark.parametrize("is_resubmitted", [False, True])
def test_a_poisoned_sequence_is_refused(rig: Rig, is_resubmitted: bool) -> None:
    events, poison = rig.submit()
    rig.put()
    rig.receive()
    strangers = [SequenceName(b"other", poison.sequence_id + 1)]
    names = [*strangers, SequenceName(rig.worker, poison.sequence_id)]
    if is_resubmitted:
        rig.restart_unannounced()
        assert rig.receive_generate().sequence_id == poison.sequence_id
        assert rig.receive_generate().sequence_id == poison.sequence_id + 1
    else:
        rig.engines[0].restart()
    rig.launcher.broadcast(epochs=[2], poisoned=names)
    error = events.get(timeout=5)
    assert isinstance(error, RequestError)
    assert error.kind is ErrorKind.GENERATION
    if is_resubmitted:
        assert rig.receive() == Abort(2, poison.sequence_id)
    else:
        assert rig.receive_generate().sequence_id == poison.sequence_id + 1
    assert rig.is_silent()  # the status comes again and again
    assert events.empty()


# --- two groups ---


def test_both_groups_get_sequences(pair: Rig) -> None:
    assert [pair.submit(group)[1].epoch for group in (0, 1, 0, 1)] == [1] * 4


def test_a_worker_takes_as_many_sequences_as_both_engines(pair: Rig) -> None:
    for _ in range(2 * LIMIT):
        pair.put()
    with pytest.raises(RequestError, match="overloaded"):
        pair.put()


def test_a_dead_groups_sequences_move_at_once(pair: Rig) -> None:
    events, moved = pair.submit(0)
    other_events, other = pair.submit(1)
    pair.step(Delta(moved.sequence_id, [1]))
    events.get(timeout=5)
    pair.kill(0)
    message = pair.receive_generate(1)
    assert (message.sequence_id, message.epoch, message.resume_token_ids) == (
        moved.sequence_id,
        1,
        [1],
    )
    pair.step(Delta(moved.sequence_id, [2]), Delta(other.sequence_id, [3]), group=1)
    assert events.get(timeout=5).token_ids == [2]
    assert other_events.get(timeout=5).token_ids == [3]
    pair.engines[0].restart()
    pair.greet(0)
    pair.wait_until(lambda: pair.client._dispatcher.connected == [0, 1])
    assert pair.is_silent(0)
    assert pair.resumed == [1]


def test_a_hanging_engine_that_wakes_up_late_is_not_heard(pair: Rig) -> None:
    events, moved = pair.submit(0)
    pair.announce(0)
    pair.receive_generate(1)
    pair.step(Delta(moved.sequence_id, [9]), group=0)
    pair.step(Delta(moved.sequence_id, [1]), group=1)
    assert events.get(timeout=5).token_ids == [1]
    assert pair.is_silent(0)
    assert events.empty()


@pytest.mark.parametrize("survivor", [0, 1])
def test_after_the_death_of_both_the_first_one_back_gets_all(pair: Rig, survivor: int) -> None:
    sequences = [pair.submit(group)[1].sequence_id for group in (0, 1)]
    pair.kill(0, 1)
    assert pair.client.availability.phase == "recovering"
    pair.engines[survivor].restart()
    resumed = [pair.receive_generate(survivor) for _ in sequences]
    assert [(m.sequence_id, m.epoch) for m in resumed] == [(s, 2) for s in sequences]
    pair.engines[1 - survivor].restart()
    assert pair.is_silent(1 - survivor)


def test_death_follows_the_sequences_to_the_other_group(pair: Rig) -> None:
    events, lucky = pair.submit(0)
    _, other = pair.submit(1)
    _, unlucky = pair.submit(0)
    pair.kill(0)
    moved = [pair.receive_generate(1), pair.receive_generate(1)]
    assert [m.sequence_id for m in moved] == [lucky.sequence_id, unlucky.sequence_id]
    pair.step(Delta(lucky.sequence_id, [1]), group=1)
    events.get(timeout=5)
    pair.engines[1].die()
    pair.launcher.broadcast(epochs=[2, 2])
    pair.wait_for("recovering")
    pair.engines[0].restart()
    resumed = {m.sequence_id: m for m in (pair.receive_generate(0) for _ in range(3))}
    assert resumed[lucky.sequence_id].resume_token_ids == [1]
    suspects = [m.sequence_id for m in resumed.values() if m.is_suspect]
    assert suspects == [unlucky.sequence_id]
    assert other.sequence_id in resumed
    assert pair.resumed == [2, 3]


def test_a_poisoned_sequence_is_taken_from_the_group_that_it_was_moved_to(pair: Rig) -> None:
    events, poison = pair.submit(0)
    pair.kill(0)
    pair.receive_generate(1)
    name = SequenceName(pair.worker, poison.sequence_id)
    pair.launcher.broadcast(epochs=[2, 1], poisoned=[name])
    assert pair.receive(1) == Abort(1, poison.sequence_id)
    assert isinstance(events.get(timeout=5), RequestError)


def test_a_group_that_is_given_up_for_good_gets_nothing(pair: Rig) -> None:
    _, first = pair.submit(0)
    pair.launcher.broadcast(epochs=[0, 1])
    assert pair.receive_generate(1).sequence_id == first.sequence_id
    for _ in range(2):
        pair.submit(1)


def test_a_worker_serves_with_the_first_engine_that_is_ready(tmp_path: Path) -> None:
    rig = Rig(tmp_path, groups=2)
    try:
        rig.greet(1)
        rig.launcher.serve()
        rig.wait_until(lambda: rig.client.availability.healthy)
        rig.submit(1)
        rig.submit(1)
    finally:
        rig.close()


def test_requests_must_suit_every_engine(tmp_path: Path) -> None:
    rig = Rig(tmp_path, groups=2)
    try:
        rig.engines[1].info = replace(rig.engines[1].info, max_input_tokens=40)
        rig.serve()
        rig.wait_until(lambda: len(rig.prepared) == 2)
        assert rig.prepared[-1] == 40
    finally:
        rig.close()


def test_a_cached_prefix_draws_a_sequence(pair: Rig) -> None:
    prompt = list(range(9))
    digests = list(reusable_digests(prompt, 4))
    pair.submit(0)
    pair.submit(1)
    pair.engines[0].send(pair.worker, Load(7, 0, digests))  # not of this engine
    pair.engines[1].send(pair.worker, Load(1, 2, digests))
    pair.engines[1].send(pair.worker, Step(1, []))
    pair.wait_until(lambda: pair.client._router._groups[1].load == 2)
    pair.client.submit(replace(REQUEST, prompt_token_ids=prompt), print)
    assert pair.receive_generate(1).prompt_token_ids == prompt


def test_a_load_before_its_ready_is_ignored(pair: Rig) -> None:
    digests = list(reusable_digests(list(range(9)), 4))
    pair.kill(1)
    pair.engines[1].restart()
    pair.greet(1)
    pair.wait_until(lambda: pair.client._dispatcher.connected == [0, 1])
    pair.engines[1].send(pair.engines[1].workers[0], Load(3, 5, digests))
    pair.engines[1].send(pair.engines[1].workers[0], Load(2, 1))
    pair.wait_until(lambda: pair.client._router._groups[1].load == 1)
    assert pair.client._router._groups[1].cached == set()
