"""What becomes of the front's messages before anything runs."""

from pathlib import Path

import pytest
from loop_rig import INFO, Engine, make_engine, request

from serving.engine.intake import fault_of
from serving.protocol.messages import Abort, Generate, SequenceName, Trial, TrialOver
from serving.protocol.params import Grammar


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return make_engine(tmp_path)


def trials(engine: Engine) -> list[Trial | TrialOver]:
    return [one for one in engine.reports.read() if isinstance(one, Trial | TrialOver)]


def test_admission_limit_refuses_with_overloaded(engine: Engine) -> None:
    for number in (1, 2, 3):
        engine.send(b"a", number)
    engine.loop.turn()
    assert engine.mailbox.failed == [(b"a", 3, "overloaded", "Model is overloaded")]


def test_resumed_sequence_is_admitted_above_the_limit(engine: Engine) -> None:
    for number in (1, 2):
        engine.send(b"a", number)
    engine.send(b"a", 3, is_resumed=True)
    engine.loop.turn()
    assert engine.mailbox.failed == []
    assert engine.scheduler.num_live == 3


def test_abort_is_heard_before_the_next_step(engine: Engine) -> None:
    engine.send(b"a", 1)
    engine.loop.turn()
    engine.mailbox.inbox.append((b"a", Abort(0, 1)))
    engine.loop.turn()
    assert len(engine.mailbox.steps) == 1
    engine.scheduler.blocks.check_idle()


def test_sequences_of_a_lost_worker_are_freed(engine: Engine) -> None:
    engine.send(b"a", 1)
    engine.loop.turn()
    engine.mailbox.lost_workers.add(b"a")
    engine.loop.turn()
    assert engine.scheduler.num_live == 0


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (request(1, prompt=[]), "`inputs` has no tokens"),
        (request(1, prompt=[1, 100]), "token ids must be >= 0 and < 100. Given: 1..100"),
        (request(1, prompt=[-1]), "token ids must be >= 0"),
        (request(1, new_tokens=30), "prompt and new tokens must be <= 32. Given: 33"),
    ],
)
def test_impossible_request_is_refused_with_its_reason(
    engine: Engine, bad: Generate, text: str
) -> None:
    assert text in str(fault_of(bad, INFO))
    engine.mailbox.inbox.append((b"a", bad))
    engine.loop.turn()
    assert engine.mailbox.failed[0][2] == "validation"


def test_an_invalid_grammar_fails_alone(engine: Engine) -> None:
    engine.send(b"a", 1, grammar=Grammar("regex", "("))
    engine.send(b"a", 2)
    engine.turn_until_idle()
    ((worker, number, kind, message),) = engine.mailbox.failed
    assert (worker, number, kind) == (b"a", 1, "validation")
    assert "unclosed group" in message
    assert engine.deltas()[-1].finish_reason == "length"


def test_an_abort_reaches_a_sequence_that_waits_for_its_grammar(engine: Engine) -> None:
    engine.send(b"a", 1, grammar=Grammar("regex", "a"))
    engine.mailbox.inbox.append((b"a", Abort(0, 1)))
    engine.turn_until_idle()
    assert (engine.mailbox.steps, engine.mailbox.failed) == ([], [])


def test_waiting_for_a_grammar_counts_towards_the_limit(engine: Engine) -> None:
    for number in (1, 2, 3):
        engine.send(b"a", number, grammar=Grammar("regex", f"a{number}"))
    engine.loop.turn()
    assert (b"a", 3, "overloaded", "Model is overloaded") in engine.mailbox.failed


def test_who_waits_past_the_deadline_is_refused(engine: Engine) -> None:
    engine.send(b"a", 1, deadline_ns=1)
    engine.loop.turn()
    assert engine.mailbox.failed == [(b"a", 1, "overloaded", "Model is overloaded")]


def test_a_suspect_is_named_before_it_runs_alone(engine: Engine) -> None:
    engine.send(b"a", 1)
    engine.send(b"a", 2, is_suspect=True)
    engine.loop.turn()
    assert trials(engine) == [Trial(SequenceName(b"a", 2))]
    assert [delta.sequence_id for delta in engine.deltas()] == [2]
    engine.turn_until_idle()
    assert trials(engine) == [TrialOver()]
    ended = [delta.sequence_id for delta in engine.deltas() if delta.finish_reason]
    assert sorted(ended) == [1, 2]


def test_suspects_are_tried_one_by_one(engine: Engine) -> None:
    for number in (1, 2):
        engine.send(b"a", number, is_suspect=True)
    engine.loop.turn()
    engine.loop.turn()
    assert [delta.sequence_id for delta in engine.deltas()] == [1, 2]
    assert trials(engine) == [
        Trial(SequenceName(b"a", 1)), TrialOver(), Trial(SequenceName(b"a", 2)),
    ]  # fmt: skip


def test_nothing_runs_while_the_grammar_of_a_suspect_is_compiled(engine: Engine) -> None:
    engine.send(b"a", 1)
    engine.send(b"a", 2, is_suspect=True, grammar=Grammar("regex", "[a-z]+"))
    engine.turn_until_idle()
    assert engine.deltas()[0].sequence_id == 2


def test_an_aborted_suspect_ends_its_trial(engine: Engine) -> None:
    engine.send(b"a", 1, is_suspect=True, grammar=Grammar("regex", "[a-z]+"))
    engine.send(b"a", 2, is_suspect=True)
    engine.loop.turn()
    engine.mailbox.inbox.append((b"a", Abort(0, 1)))
    engine.turn_until_idle()
    over = trials(engine)[1:]
    assert over[0] == TrialOver()
    assert {delta.sequence_id for delta in engine.deltas()} <= {1, 2}
    assert any(delta.sequence_id == 2 and delta.finish_reason for delta in engine.deltas())


def test_suspects_that_wait_are_forgotten_with_their_worker(engine: Engine) -> None:
    for number in (1, 2):
        engine.send(b"a", number, is_suspect=True)
    engine.loop.turn()
    engine.mailbox.lost_workers.add(b"a")
    engine.loop.turn()
    assert engine.scheduler.num_live == 0
    assert {delta.sequence_id for delta in engine.deltas()} == {1}
