"""The steps that an engine runs for its own sake, on every kind of model."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from local_mode import tiny_model, tiny_variants_mamba, tiny_variants_t5
from serving.engine.launcher_reports import LauncherReports
from serving.engine.plan import Admission, Plan
from serving.engine.start import warm_up
from serving.engine.start.model_loader import LoadedModel, load_model
from serving.engine.step.model_runner import ModelRunner
from serving.engine.step.sampler import Sampler
from serving.engine.step.watermark import Watermark
from serving.kernels.dispatch import choose_ops
from serving.layers.parallel import SINGLE
from serving.protocol.messages import Limits
from serving.protocol.params import SamplingParams, StopParams
from serving.settings import Settings

CPU = torch.device("cpu")
BLOCK = 16
LIMITS = Limits(99, 100, max_rows=3, token_budget=32, num_blocks=8)
KINDS: dict[str, Callable[[Path], Path]] = {
    "decoder": lambda path: tiny_model.write_checkpoint("llama", path),
    "encoder-decoder": lambda path: tiny_variants_t5.write_checkpoint("t5", path),
    "state space": lambda path: tiny_variants_mamba.write_checkpoint("mamba", path),
}


@pytest.fixture(scope="module", params=sorted(KINDS))
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LoadedModel]:
    path = KINDS[request.param](tmp_path_factory.mktemp("tiny") / "model")
    with open(os.devnull, "wb") as pipe:
        reports = LauncherReports(pipe.fileno())
        yield load_model(Settings(), path, SINGLE, CPU, choose_ops(CPU, False), reports)


def runner(model: LoadedModel) -> ModelRunner:
    pool, table = warm_up.allocate(model, LIMITS, BLOCK)
    sampler = Sampler(model.ops, Watermark(0.5, 2.0))
    return ModelRunner(model.decoder, pool, table, sampler, CPU, model.padded_rows)


def proof(model: LoadedModel) -> Plan:
    starts = len(model.traits.start_token_ids)
    return warm_up.proof_plan(LIMITS.max_rows, LIMITS.num_blocks, starts)


def generate(one: ModelRunner, between: Callable[[], object]) -> list[int]:
    """Greedy tokens of a sequence in the last row and the last blocks that the scheduler knows."""
    tokens = list(range(10, 40))
    blocks = [LIMITS.num_blocks - 1, LIMITS.num_blocks - 2, LIMITS.num_blocks - 3]
    row = LIMITS.max_rows - 1
    admission = Admission(row, tokens, 0, blocks, len(tokens), SamplingParams(), StopParams(10), 0)
    plan = Plan([admission], [], [row], [len(tokens)], 0)
    found = []
    for _ in range(10):
        found += one.execute(plan).choice.token_ids
        between()
        plan = Plan([], [], [row], [1], 1)
    return found


def test_the_proof_chooses_the_same_token_every_time(model: LoadedModel) -> None:
    one = runner(model)
    chosen = [one.execute(proof(model)).choice for _ in range(3)]
    assert chosen[0].rows == [LIMITS.max_rows]
    assert np.isfinite(chosen[0].logprobs).all()
    assert [choice.token_ids for choice in chosen] == [chosen[0].token_ids] * 3


def test_the_proof_touches_no_sequence(model: LoadedModel) -> None:
    one = runner(model)
    undisturbed = generate(runner(model), lambda: None)
    assert generate(one, lambda: one.execute(proof(model))) == undisturbed


def tensors_of(part: object) -> list[torch.Tensor]:
    """All tensors of a layer's pool."""
    if isinstance(part, torch.Tensor):
        return [part]
    if not dataclasses.is_dataclass(part):
        return []
    return [tensor for value in vars(part).values() for tensor in tensors_of(value)]


def test_a_pool_has_a_block_and_a_row_more_than_the_limits(model: LoadedModel) -> None:
    pool, table = warm_up.allocate(model, LIMITS, BLOCK, in_background=True)
    assert len(table.num_tokens) == LIMITS.max_rows + 1
    largest = {tensor.shape[0] for tensor in tensors_of(pool[0])}
    assert largest in ({LIMITS.max_rows + 1}, {LIMITS.num_blocks + 1})


def test_the_worst_step_is_measured(model: LoadedModel) -> None:
    worst = warm_up.run(model, 64, 9, BLOCK, longest=200)
    assert worst.num_bytes >= 0
    assert worst.seconds > 0


def test_a_restart_proves_the_model_with_a_prompt_and_a_decode(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []
    execute = ModelRunner.execute

    def record(self: ModelRunner, plan: Plan) -> object:
        plans.append(plan)
        return execute(self, plan)

    monkeypatch.setattr(ModelRunner, "execute", record)
    warm_up.run_short(model, BLOCK)
    assert [plan.num_decodes for plan in plans] == [0, 1]
    assert sum(sum(plan.lengths) for plan in plans) <= 3


def test_steps_that_build_kernels_do_not_count(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or an engine that hangs would be given ten times as long as the compiler takes."""
    seconds = iter([40.0, 30.0, 0.25, 0.5])
    run = warm_up._timed

    def timed(one: ModelRunner, plan: Plan) -> float:
        run(one, plan)
        return next(seconds)

    monkeypatch.setattr(warm_up, "_timed", timed)
    monkeypatch.setattr(warm_up, "_times_on", lambda device: 2)
    assert warm_up.run(model, 32, 3, BLOCK, 100).seconds == 0.5
    assert next(seconds, None) is None
