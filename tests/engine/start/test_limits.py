"""Limits of an engine: what is asked for, what memory allows, what ranks agree on."""

import logging
from collections.abc import Sequence
from typing import cast

import pytest
import torch

from serving.engine.start import kv_cache, limits, warm_up
from serving.engine.start.kv_cache import KvShape, PoolShape
from serving.engine.start.limits import StepSizes, fit_lengths, known_limits, measure_limits
from serving.engine.start.model_loader import LoadedModel
from serving.engine.start.state_pool import StateShape
from serving.engine.start.warm_up import WorstStep
from serving.errors import StartupError
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import SINGLE, ShardContext
from serving.models.causal_model import CausalModel, SequenceTraits
from serving.protocol.messages import Limits
from serving.settings import Settings

CPU = torch.device("cpu")
BLOCK = 16
SHAPE = KvShape(layers=2, kv_heads=2, block_size=BLOCK, head_dim=8, dtype=torch.float32)
STATES = StateShape(
    layers=1, channels=100, state=4, convolution=3, dtype=torch.float32, block_size=BLOCK
)
CONTEXT = 1000


class Machine:
    """Free memory in units of blocks, and the worst steps that were run on it."""

    def __init__(self) -> None:
        self.free = 10_000 * SHAPE.block_bytes
        self.worst = WorstStep(0, 0.25)
        self.runs: list[tuple[int, int, int]] = []  # tokens, rows, longest


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()

    def run(model: LoadedModel, budget: int, rows: int, block_size: int, longest: int) -> WorstStep:
        machine.runs.append((budget, rows, longest))
        return machine.worst

    monkeypatch.setattr(warm_up, "run", run)
    monkeypatch.setattr(kv_cache, "free_memory", lambda device: machine.free)
    return machine


def model(
    shape: PoolShape = SHAPE,
    device: str = "cpu",
    starts: int = 0,
    shard: ShardContext = SINGLE,
    weight_bytes: int = 0,
) -> LoadedModel:
    return LoadedModel(
        decoder=cast(CausalModel, None),
        shape=shape,
        ops=TorchOps(),
        device=torch.device(device),
        dtype=torch.float32,
        weight_bytes=weight_bytes,
        context_length=CONTEXT + starts,
        end_token_ids=[1],
        padded_rows=lambda rows: rows,
        shard=shard,
        traits=SequenceTraits(start_token_ids=(0,) * starts),
    )


def measured(**settings: object) -> Limits:
    return measure_limits(Settings(**settings), model()).limits  # type: ignore[arg-type]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]


def test_with_plenty_of_memory_everything_is_as_asked(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    found = measured(
        max_total_tokens=200,
        max_input_tokens=150,
        max_batch_total_tokens=1600,
        max_batch_prefill_tokens=64,
        max_concurrent_requests=9,
    )
    assert found == Limits(150, 200, max_rows=9, token_budget=64, num_blocks=100)
    assert warnings(caplog) == []


def test_without_settings_the_model_decides(machine: Machine) -> None:
    found = measured()
    assert (found.max_input_tokens, found.max_total_tokens) == (CONTEXT - 1, CONTEXT)
    assert found.token_budget == 512


def test_the_worst_step_is_the_longest_that_will_be_served(machine: Machine) -> None:
    measured(max_total_tokens=300, max_batch_prefill_tokens=64, max_concurrent_requests=9)
    assert machine.runs == [(64, 9, 300)]


def test_seconds_of_the_worst_step_are_passed_on(machine: Machine) -> None:
    assert measure_limits(Settings(), model()).worst_step_seconds == 0.25


def test_the_pool_has_its_share_of_what_the_worst_step_leaves(machine: Machine) -> None:
    machine.free = 103 * SHAPE.block_bytes
    machine.worst = WorstStep(2 * SHAPE.block_bytes, 0.1)
    # Two for the worst step, one for the proof, half of the rest.
    assert measured().num_blocks == 50


def test_ranks_of_a_machine_share_its_memory(machine: Machine) -> None:
    machine.free = 404 * SHAPE.block_bytes
    found = measure_limits(Settings(), model(), neighbours=4).limits
    assert found.num_blocks == 50


def test_ranks_on_gpus_have_a_memory_each(machine: Machine) -> None:
    machine.free = 101 * SHAPE.block_bytes
    found = measure_limits(Settings(), model(device="cuda"), neighbours=4).limits
    assert found.num_blocks == 90


class PoorSister(ShardContext):
    """A second rank that has half of everything."""

    def agree_on_least(self, values: Sequence[int]) -> list[int]:
        return [value // 2 for value in values]


def test_ranks_agree_on_the_poorest(machine: Machine) -> None:
    machine.free = 201 * SHAPE.block_bytes
    assert measured().num_blocks == 100
    found = measure_limits(Settings(), model(shard=PoorSister())).limits
    assert found.num_blocks == 50


def test_ranks_agree_on_the_weights_that_bound_the_default_pool(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.free = 10**9 * SHAPE.block_bytes
    monkeypatch.setattr(kv_cache, "GIB", 1)
    weights = model(shard=PoorSister(), weight_bytes=400 * SHAPE.block_bytes)
    assert measure_limits(Settings(), weights).limits.num_blocks == 200


def test_a_limit_that_does_not_fit_is_lowered(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.free = 21 * SHAPE.block_bytes
    found = measured(max_total_tokens=400, max_input_tokens=300, max_batch_total_tokens=800)
    assert found.num_blocks == 10
    assert (found.max_input_tokens, found.max_total_tokens) == (159, 160)
    memory = "give the process more memory, or take a smaller model"
    assert warnings(caplog) == [
        f"lowered `max_batch_total_tokens` from 800 to 160: no more fits. Remedy: {memory}",
        f"lowered `max_total_tokens` from 400 to 160: no more fits. Remedy: {memory}",
        "lowered `max_input_tokens` from 300 to 159: no more fits. "
        "Remedy: see `max_total_tokens` above",
    ]


def test_the_longest_prompt_stays_where_it_fits(machine: Machine) -> None:
    machine.free = 21 * SHAPE.block_bytes
    assert measured(max_total_tokens=400, max_input_tokens=100).max_input_tokens == 100


def test_a_pool_that_is_too_small_by_its_setting_says_so(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    found = measured(max_total_tokens=512, max_batch_total_tokens=64)
    assert (found.num_blocks, found.max_total_tokens) == (4, 64)
    assert warnings(caplog) == [
        "lowered `max_total_tokens` from 512 to 64: no more fits. "
        "Remedy: raise --max-batch-total-tokens"
    ]


def test_less_than_two_blocks_are_refused(machine: Machine) -> None:
    machine.free = 4 * SHAPE.block_bytes
    with pytest.raises(StartupError, match="2 blocks of 16 tokens at least"):
        measured()


def test_a_setting_of_less_than_two_blocks_is_refused(machine: Machine) -> None:
    with pytest.raises(StartupError) as caught:
        measured(max_batch_total_tokens=16)
    assert caught.value.remedy == "raise --max-batch-total-tokens"


@pytest.mark.parametrize(("starts", "block_size"), [(1, 1), (3, 2)])
def test_a_prompt_and_a_new_token_must_fit(starts: int, block_size: int) -> None:
    with pytest.raises(StartupError, match=f"a sequence of {2 + starts} tokens"):
        fit_lengths(Settings(block_size=block_size), 100, starts, num_blocks=2)


def test_start_tokens_are_in_the_pool_but_not_in_what_is_served(machine: Machine) -> None:
    found = measure_limits(Settings(max_total_tokens=200), model(starts=1)).limits
    assert (found.max_input_tokens, found.max_total_tokens) == (199, 201)


def test_more_than_the_models_context_is_refused(machine: Machine) -> None:
    with pytest.raises(StartupError, match="1001 is more than the model's context of 1000 tokens"):
        measured(max_total_tokens=CONTEXT + 1)


def test_a_prompt_that_leaves_no_token_is_refused_before_anything_runs(machine: Machine) -> None:
    with pytest.raises(StartupError, match="Given: 1000 and 1000"):
        measured(max_input_tokens=CONTEXT)
    assert machine.runs == []


def test_rows_of_states_that_do_not_fit_are_fewer(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.free = 11 * STATES.row_bytes
    found = measure_limits(Settings(), model(STATES)).limits
    assert found.max_rows == 5
    assert machine.runs[0][1] == 5
    assert "lowered sequences of a step from 128 to 5" in warnings(caplog)[0]


def test_each_start_that_ran_out_of_memory_halves_the_step(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.free = 101 * SHAPE.block_bytes
    found = measure_limits(Settings(), model(), shrink=2).limits
    assert machine.runs == [(128, 32, CONTEXT)]
    assert (found.token_budget, found.max_rows) == (128, 32)
    assert found.num_blocks == 32  # of 100 a half, and 0.8 of that twice
    (line,) = [one for one in warnings(caplog) if "memory ran out in 2 starts" in one]
    assert "tokens of a step from 512 to 128, sequences of a step from 128 to 32" in line
    assert "share of the free memory from 0.50 to 0.32" in line


def test_the_step_has_a_floor() -> None:
    assert StepSizes(512, 128, 0.5).halved(9) == StepSizes(16, 1, pytest.approx(0.5 * 0.8**9))
    assert StepSizes(5, 1, 0.5).halved(1).token_budget == 5


def test_a_restart_runs_no_worst_step(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    short = []
    monkeypatch.setattr(limits.warm_up, "run_short", lambda model, size: short.append(size))
    known = Limits(99, 100, 8, 64, 50)
    found = known_limits(Settings(), model(), known)
    assert (found.limits, found.worst_step_seconds) == (known, 0.0)
    assert (short, machine.runs) == ([BLOCK], [])
