"""Undeclared architectures against transformers itself, in every way that the engine computes."""

import random
from pathlib import Path

import pytest
import torch
from reference import answers
from transformers import AutoModelForCausalLM
from undeclared_models import ARCHITECTURES, write_undeclared
from undeclared_rig import UndeclaredRig

from serving.kernels import cpu_ops
from serving.kernels.compiled_ops import CompiledOps
from serving.kernels.torch_ops import TorchOps
from serving.models.registry import model_types
from serving.models.transformers_decoder import TransformersDecoder

NEW_TOKENS = 16
PROMPTS = [37, 1, 64, 90]  # lengths: inside a block, one token, block boundary, beyond windows
TOLERANCE = 1e-3


def load(path: Path, ops: TorchOps) -> TransformersDecoder:
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )
    return TransformersDecoder(model.eval(), torch.float32, ops)


class Oracle:
    """A checkpoint, its greedy continuations and logits by transformers, and our decoder."""

    def __init__(self, model_type: str, path: Path) -> None:
        self.path = write_undeclared(model_type, path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        source = random.Random(model_type)
        self.prompts = [[source.randrange(3, 320) for _ in range(n)] for n in PROMPTS]
        self.decoder = load(path, TorchOps())
        found = answers(model, self.prompts, self.rig().answers(self.prompts, NEW_TOKENS))
        self.tokens = [one.tokens for one in found]
        self.logits = [one.logits for one in found]

    def rig(self, **options: object) -> UndeclaredRig:
        return UndeclaredRig(self.decoder, TorchOps(), **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(request.param, tmp_path_factory.mktemp("undeclared") / request.param)


def assert_logits(rig: UndeclaredRig, expected: torch.Tensor) -> None:
    found = torch.stack(rig.sampler.logits)
    assert (found - expected).abs().max() < TOLERANCE


def test_the_architectures_are_not_declared() -> None:
    assert not set(ARCHITECTURES) & set(model_types())


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_whole_prefill_then_decode(oracle: Oracle, index: int) -> None:
    rig = oracle.rig()
    rig.add(0, oracle.prompts[index], NEW_TOKENS)
    assert rig.run() == {0: oracle.tokens[index]}
    assert_logits(rig, oracle.logits[index])


@pytest.mark.parametrize("budget", [5, 33])
def test_chunked_prefill(oracle: Oracle, budget: int) -> None:
    rig = oracle.rig(token_budget=budget)
    rig.add(0, oracle.prompts[3], NEW_TOKENS)
    assert rig.run() == {0: oracle.tokens[3]}
    assert_logits(rig, oracle.logits[3])


def test_prefix_cache_hit(oracle: Oracle) -> None:
    rig = oracle.rig()
    rig.add(0, oracle.prompts[3], 1)
    rig.run()
    rig.sampler.logits.clear()
    rig.add(1, oracle.prompts[3], NEW_TOKENS)
    assert rig.run()[1] == oracle.tokens[3]
    assert rig.scheduler.counters.prefix_hit_tokens == 88
    assert_logits(rig, oracle.logits[3])


def test_mixed_batch_with_preemption(oracle: Oracle) -> None:
    """Sequences arrive while others decode, on a pool too small for all of them."""
    rig = oracle.rig(num_blocks=17, token_budget=24, prefix_caching=False)
    for sequence_id, prompt in enumerate(oracle.prompts):
        rig.add(sequence_id, prompt, NEW_TOKENS)
        for _ in range(3):
            rig.step()
    found = rig.run()
    assert [found[i] for i in range(len(PROMPTS))] == oracle.tokens
    assert rig.scheduler.counters.preemptions > 0


def test_resumed_sequence_continues_where_it_stopped(oracle: Oracle) -> None:
    rig = oracle.rig()
    rig.add(0, oracle.prompts[0], NEW_TOKENS, resume=oracle.tokens[0][:7])
    assert rig.run() == {0: oracle.tokens[0][7:]}


def test_compiled_operations_in_a_mixed_batch(oracle: Oracle) -> None:
    loaded = cpu_ops.load()
    if not loaded:
        pytest.skip(f"no compiled operations here: {loaded.reason}")
    rig = UndeclaredRig(load(oracle.path, CompiledOps()), CompiledOps(), token_budget=40)
    for sequence_id, prompt in enumerate(oracle.prompts):
        rig.add(sequence_id, prompt, NEW_TOKENS)
    found = rig.run()
    assert [found[i] for i in range(len(PROMPTS))] == oracle.tokens
