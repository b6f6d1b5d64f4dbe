"""Turns of the engine with a model that always answers 5, and a mailbox in memory."""

import time
from pathlib import Path

import pytest
import torch
from loop_rig import PROOF, Engine, make_engine

from serving.protocol.messages import Abort, Alive
from serving.protocol.params import Grammar


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return make_engine(tmp_path)


def test_one_message_per_worker_and_step(engine: Engine) -> None:
    engine.send(b"a", 1)
    engine.send(b"a", 2)
    engine.loop.turn()
    assert [
        (worker, [d.sequence_id for d in deltas]) for worker, deltas in engine.mailbox.steps
    ] == [(b"a", [1, 2])]


def test_each_worker_gets_its_own_sequences(engine: Engine) -> None:
    engine.send(b"a", 1)
    engine.send(b"b", 1)
    engine.loop.turn()
    assert [worker for worker, _ in engine.mailbox.steps] == [b"a", b"b"]


def test_idle_check_finds_a_leaked_block(engine: Engine) -> None:
    engine.scheduler.blocks.allocate()
    engine.send(b"a", 1, new_tokens=1)
    with pytest.raises(AssertionError, match="still referenced"):
        engine.loop.turn()


def test_stop_ends_the_run(engine: Engine) -> None:
    engine.loop.stop()
    engine.loop.run()


def test_a_guided_sequence_is_given_its_masks(engine: Engine) -> None:
    engine.send(b"a", 1, new_tokens=1, grammar=Grammar("regex", "[a-z ]+"))
    engine.turn_until_idle()
    assert engine.runner.masks is not None
    assert engine.runner.masks.rows.tolist() == [0]


def test_a_token_against_the_grammar_ends_its_sequence_with_an_error(engine: Engine) -> None:
    engine.send(b"a", 1, grammar=Grammar("regex", "zzz"))  # the runner answers 5
    engine.turn_until_idle()
    assert [(number, kind) for _, number, kind, _ in engine.mailbox.failed] == [(1, "validation")]
    engine.scheduler.blocks.check_idle()


def test_the_deadline_ends_a_running_sequence(engine: Engine) -> None:
    engine.send(b"a", 1, new_tokens=9, deadline_ns=time.monotonic_ns() + 20_000_000)
    engine.loop.turn()
    time.sleep(0.02)
    engine.loop.turn()
    assert [delta.finish_reason for delta in engine.deltas()] == [None, "length"]


def test_a_step_that_runs_out_of_memory_is_run_again_smaller(engine: Engine) -> None:
    engine.send(b"a", 1, new_tokens=1)
    engine.send(b"a", 2, new_tokens=1)
    engine.runner.errors.append(torch.OutOfMemoryError("no memory"))
    engine.turn_until_idle()
    assert [len(plan.rows) for plan in engine.runner.plans] == [2, 1, 1]
    assert [delta.sequence_id for delta in engine.deltas()] == [1, 2]
    labels = {"method": "prefill"}
    assert engine.registry.get_sample_value("tgi_batch_inference_failure_total", labels) == 1


def test_several_ranks_do_not_repeat_a_step(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, repeats_steps=False)
    engine.send(b"a", 1)
    engine.runner.errors.append(torch.OutOfMemoryError("no memory"))
    with pytest.raises(torch.OutOfMemoryError):
        engine.loop.turn()


def test_other_errors_end_the_engine(engine: Engine) -> None:
    engine.send(b"a", 1)
    engine.runner.errors.append(RuntimeError("illegal instruction"))
    with pytest.raises(RuntimeError, match="illegal"):
        engine.loop.turn()


def test_a_step_is_a_sign_of_life(engine: Engine) -> None:
    engine.send(b"a", 1)
    engine.loop.turn()
    assert engine.reports.read() == [Alive()]


def test_an_idle_engine_is_silent_at_first(engine: Engine) -> None:
    engine.loop.turn()
    assert engine.runner.plans == []


def test_an_idle_engine_proves_itself_before_it_looks_stalled(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, stall_seconds=1e-6)
    engine.loop.turn()
    assert engine.runner.plans == [PROOF]
    assert engine.reports.read() == [Alive()]
    assert engine.mailbox.steps == []


def test_steps_follow_each_other_where_they_do_not_overlap(engine: Engine) -> None:
    engine.send(b"a", 1, new_tokens=2)
    engine.turn_until_idle()
    assert engine.runner.events == ["launch", "choose", "finish"] * 2


def test_a_step_is_launched_before_the_tokens_of_the_one_ahead_are_read(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, overlaps=True)
    engine.send(b"a", 1, new_tokens=3)
    engine.turn_until_idle()
    first, between, last = ["launch", "choose"], ["launch", "finish", "choose"], ["finish"]
    assert engine.runner.events == [*first, *between, *between, *last]
    assert [delta.token_ids for delta in engine.deltas()] == [[5], [5], [5]]


def test_no_step_is_launched_behind_the_last_token(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, overlaps=True)
    engine.send(b"a", 1, new_tokens=1)
    engine.turn_until_idle()
    engine.loop.turn()
    assert len(engine.runner.plans) == 1


def test_masks_are_made_when_the_token_ahead_is_known(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, overlaps=True)
    engine.send(b"a", 1, new_tokens=3, grammar=Grammar("regex", "(?s:.*)"))
    engine.turn_until_idle()
    assert engine.runner.events.count("masks") == 3
    assert len(engine.deltas()) == 3


def test_the_step_ahead_is_completed_before_one_that_failed_is_run_again(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, overlaps=True)
    engine.send(b"a", 1, new_tokens=3)
    engine.send(b"a", 2, new_tokens=3)
    engine.loop.turn()
    engine.runner.errors.append(torch.OutOfMemoryError("no memory"))
    engine.turn_until_idle()
    assert [delta.sequence_id for delta in engine.deltas()] == [1, 2, 1, 1, 2, 2]
    assert engine.scheduler.counters.retractions == 1


def test_a_sequence_that_is_aborted_with_a_token_on_its_way_gets_none(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, overlaps=True)
    engine.send(b"a", 1)
    engine.loop.turn()
    engine.mailbox.inbox.append((b"a", Abort(0, 1)))
    engine.loop.turn()
    assert engine.deltas() == []
    engine.scheduler.blocks.check_idle()
