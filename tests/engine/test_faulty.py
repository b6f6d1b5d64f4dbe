"""When an injected fault strikes, and that each does what its name says."""

import os
import signal
import threading

import numpy as np
import pytest
import torch

from serving.engine import faulty
from serving.engine.plan import Admission, Plan
from serving.engine.step.batch import RowTable
from serving.engine.step.model_runner import ModelRunner
from serving.fault import of_rank, parse
from serving.protocol.params import SamplingParams, StopParams

SPARE_ROW = 8
IDLE = Plan([], [], [SPARE_ROW], [1], 0)


class FakeDecoder:
    def forward(self, *_: object) -> str:
        return "hidden"


class FakeRunner:
    """Counts the steps that came through."""

    def __init__(self) -> None:
        self.decoder = FakeDecoder()
        self.steps = 0

    def launch(self, plan: Plan) -> None:
        self.decoder.forward()
        self.steps += 1

    def follow(self, plan: Plan, chosen: list[int]) -> None:
        self.launch(plan)


class Rig:
    """A runner with faults in front of it."""

    def __init__(self, spec: str, rank: int = 0, epoch: int = 1) -> None:
        self.inner = FakeRunner()
        faults = of_rank(parse(spec), 0, rank, epoch)
        self.runner = faulty.around(
            self.inner,
            self.inner.decoder,
            faults,
            SPARE_ROW,  # type: ignore[arg-type]
        )

    def steps(self, number: int, plan: Plan | None = None) -> int:
        """Run so many; how many came through before one raised."""
        for done in range(number):
            try:
                self.runner.launch(plan or decode(0))
            except (RuntimeError, torch.OutOfMemoryError):
                return done
        return number


def admission(row: int, token_ids: list[int], prompt_length: int | None = None) -> Admission:
    length = len(token_ids) if prompt_length is None else prompt_length
    return Admission(row, token_ids, 0, [row], length, SamplingParams(), StopParams(4), 0)


def prefill(row: int, token_ids: list[int], prompt_length: int | None = None) -> Plan:
    return Plan([admission(row, token_ids, prompt_length)], [], [row], [len(token_ids)], 0)


def decode(*rows: int) -> Plan:
    return Plan([], [], list(rows), [1] * len(rows), len(rows))


def test_strikes_before_the_nth_step_and_once() -> None:
    rig = Rig("raise@step=3")
    assert rig.steps(9) == 2
    assert rig.inner.steps == 2
    assert rig.steps(9) == 9


def test_proofs_of_progress_are_no_steps() -> None:
    rig = Rig("raise@step=2")
    assert rig.steps(5, IDLE) == 5
    assert rig.steps(5) == 1


def test_a_follower_is_struck_too() -> None:
    rig = Rig("raise@rank=1,step=2", rank=1)
    rig.runner.follow(decode(0), [])
    with pytest.raises(RuntimeError, match="injected fault at step 2"):
        rig.runner.follow(decode(0), [])


def test_strikes_the_steps_of_a_sequence_whose_prompt_has_the_token() -> None:
    rig = Rig("raise@token=7")
    assert rig.steps(1, prefill(0, [1, 2])) == 1
    assert rig.steps(1, prefill(1, [1, 7, 2])) == 0


def test_a_token_behind_the_prompt_does_not_count() -> None:
    assert Rig("raise@token=7").steps(1, prefill(0, [1, 2, 7], prompt_length=2)) == 1


def test_a_token_strikes_once() -> None:
    rig = Rig("raise@token=7")
    assert rig.steps(1, prefill(0, [7, 8])) == 0
    assert rig.steps(1, decode(0)) == 1


def test_a_row_forgets_the_sequence_before() -> None:
    rig = Rig("raise@step=1;raise@token=7")
    assert rig.steps(1, prefill(0, [8])) == 0  # by its step
    assert rig.steps(1, prefill(0, [2])) == 1
    assert rig.steps(1, prefill(0, [7])) == 0
    assert rig.steps(1, prefill(0, [2])) == 1


@pytest.mark.parametrize("spec", ["raise@step=1,epoch=2", "raise@step=1,rank=1", "raise@phase=x"])
def test_other_faults_leave_the_runner_as_it_is(spec: str) -> None:
    rig = Rig(spec)
    assert rig.runner is rig.inner  # type: ignore[comparison-overlap]


def test_out_of_memory_is_raised_by_the_forward_pass_of_one_step() -> None:
    rig = Rig("oom@step=2")
    rig.runner.launch(decode(0))
    with pytest.raises(torch.OutOfMemoryError, match="injected fault at step 2"):
        rig.runner.launch(decode(0))
    assert rig.inner.decoder.forward() == "hidden"
    assert rig.steps(3) == 3


def test_out_of_memory_leaves_the_row_table_as_a_real_one_does() -> None:
    table = RowTable(4, 16, 4)
    decoder = FakeDecoder()
    runner = ModelRunner(
        decoder,  # type: ignore[arg-type]
        [],
        table,
        None,  # type: ignore[arg-type]
        torch.device("cpu"),
        lambda rows: rows,
    )
    faults = parse("oom@step=1")
    struck = faulty.around(runner, decoder, faults, SPARE_ROW)  # type: ignore[arg-type]
    with pytest.raises(torch.OutOfMemoryError):
        struck.launch(prefill(2, [5, 6, 7]))
    assert table.num_computed.tolist() == [0, 0, 3, 0]
    assert np.array_equal(table.token_ids[2, :3], [5, 6, 7])


def test_kill_is_a_real_sigkill(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []

    class Killed(Exception):
        pass

    def kill(pid: int, number: int) -> None:
        sent.append((pid, number))
        raise Killed

    monkeypatch.setattr(os, "kill", kill)
    with pytest.raises(Killed):
        Rig("kill@step=1").runner.launch(decode(0))
    assert sent == [(os.getpid(), signal.SIGKILL)]


def test_hang_does_not_come_back() -> None:
    rig = Rig("hang@step=2")
    thread = threading.Thread(target=rig.steps, args=(3,), daemon=True)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    assert rig.inner.steps == 1


def test_a_phase_is_struck_when_it_begins() -> None:
    begin = faulty.at_phase(parse("oom@phase=warm-up;raise@phase=kv cache;raise@step=1"))
    begin("weights")
    with pytest.raises(torch.OutOfMemoryError, match="phase 'warm-up'"):
        begin("warm-up")
    with pytest.raises(RuntimeError, match="phase 'kv cache'"):
        begin("kv cache")
