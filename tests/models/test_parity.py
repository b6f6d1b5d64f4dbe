"""Every served family against transformers: logits and greedy tokens, in every way we compute."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_rig import Rig, load_decoder
from reference import answers, load_reference

from local_mode.published_layouts import LAYOUTS
from local_mode.tiny_model import VARIANTS, write_checkpoint
from serving.kernels import cpu_ops
from serving.kernels.compiled_ops import CompiledOps
from serving.kernels.torch_ops import TorchOps
from serving.models.registry import FAMILIES, family_of

NEW_TOKENS = 32
PROMPTS = [37, 1, 64, 90]  # lengths: inside a block, one token, block boundary, beyond windows
TOLERANCE = 1e-3
Record = Callable[[str, str, float, bool], None]


class Oracle:
    """A checkpoint, its greedy continuations and logits by transformers, and our decoder."""

    def __init__(self, variant: str, path: Path, record: Record) -> None:
        self.record = record
        write_checkpoint(variant, path)
        model = load_reference(path)
        self.model = model
        source = random.Random(variant)
        self.prompts = [[source.randrange(3, 320) for _ in range(n)] for n in PROMPTS]
        self.variant = variant
        self.path = path
        self.decoder = load_decoder(path, TorchOps())
        found = answers(model, self.prompts, self.rig().answers(self.prompts, NEW_TOKENS))
        self.tokens = [one.tokens for one in found]
        self.logits = [one.logits for one in found]

    @torch.no_grad()
    def prompt_logprobs(self, index: int) -> torch.Tensor:
        """Of every token of the prompt but the first."""
        ids = torch.tensor([self.prompts[index]])
        logprobs = self.model(ids, use_cache=False).logits[0].log_softmax(-1)
        return logprobs[:-1].gather(-1, ids[0, 1:, None]).squeeze(-1)

    def rig(self, **options: object) -> Rig:
        return Rig(self.decoder, TorchOps(), **options)  # type: ignore[arg-type]

    def check(
        self, rig: Rig, column: str, tokens: dict[int, list[int]], prompts: dict[int, int]
    ) -> None:
        """Compare tokens and logits; `prompts`: which prompt each sequence had."""
        agrees = all(tokens[one] == self.tokens[prompt] for one, prompt in prompts.items())
        error = max(
            float((torch.stack(rig.logits[one]) - self.logits[prompt]).abs().max())
            for one, prompt in prompts.items()
        )
        self.record(self.variant, column, error, agrees)
        assert agrees
        assert error < TOLERANCE


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def oracle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, parity: Record
) -> Oracle:
    return Oracle(request.param, tmp_path_factory.mktemp("tiny") / request.param, parity)


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_whole_prefill_then_decode(oracle: Oracle, index: int) -> None:
    rig = oracle.rig()
    rig.add(0, oracle.prompts[index], NEW_TOKENS)
    oracle.check(rig, "whole prefill", rig.run(), {0: index})


@pytest.mark.parametrize("budget", [5, 33])
def test_chunked_prefill(oracle: Oracle, budget: int) -> None:
    rig = oracle.rig(token_budget=budget)
    rig.add(0, oracle.prompts[3], NEW_TOKENS)
    oracle.check(rig, "chunked prefill", rig.run(), {0: 3})


def test_prefix_cache_hit(oracle: Oracle) -> None:
    rig = oracle.rig()
    rig.add(0, oracle.prompts[3], 1)
    rig.run()
    rig.add(1, oracle.prompts[3], NEW_TOKENS)
    tokens = rig.run()
    assert rig.scheduler.counters.prefix_hit_tokens == 88
    oracle.check(rig, "prefix-cache hit", tokens, {1: 3})


def test_mixed_batch_with_preemption(oracle: Oracle) -> None:
    """Sequences arrive while others decode, on a pool too small for all of them."""
    rig = oracle.rig(num_blocks=22, token_budget=24, prefix_caching=False)
    tokens: dict[int, list[int]] = {}
    for sequence_id, prompt in enumerate(oracle.prompts):
        rig.add(sequence_id, prompt, NEW_TOKENS)
        for _ in range(3):
            for delta in rig.step() or []:
                tokens.setdefault(delta.sequence_id, []).extend(delta.token_ids)
    for sequence_id, rest in rig.run().items():
        tokens.setdefault(sequence_id, []).extend(rest)
    assert rig.scheduler.counters.preemptions > 0
    oracle.check(rig, "mixed batch", tokens, {i: i for i in range(len(PROMPTS))})


def test_compiled_operations_in_a_mixed_batch(oracle: Oracle) -> None:
    loaded = cpu_ops.load()
    if not loaded:
        pytest.skip(f"no compiled operations here: {loaded.reason}")
    ops = CompiledOps()
    rig = Rig(load_decoder(oracle.path, ops), ops, token_budget=40)
    for sequence_id, prompt in enumerate(oracle.prompts):
        rig.add(sequence_id, prompt, NEW_TOKENS)
    found = rig.run()
    assert [found[i] for i in range(len(PROMPTS))] == oracle.tokens


def test_resumed_sequence_continues_where_it_stopped(oracle: Oracle) -> None:
    rig = oracle.rig()
    rig.add(0, oracle.prompts[0], NEW_TOKENS, resume=oracle.tokens[0][:13])
    assert rig.run() == {0: oracle.tokens[0][13:]}


@pytest.mark.parametrize("budget", [16, 512])
def test_prompt_logprobs(oracle: Oracle, budget: int) -> None:
    """Asked for twice, so that the second prompt could come from the prefix cache."""
    rig = oracle.rig(token_budget=budget)
    for sequence_id in (0, 1):
        rig.add(sequence_id, oracle.prompts[3], 2, prompt_logprobs=True)
        assert rig.run() == {sequence_id: oracle.tokens[3][:2]}
        found = torch.tensor(rig.prompt_logprobs[sequence_id])
        assert (found - oracle.prompt_logprobs(3)).abs().max() < TOLERANCE


def test_prompt_logprobs_of_a_preempted_prompt(oracle: Oracle) -> None:
    rig = oracle.rig(num_blocks=22, token_budget=24, prefix_caching=False)
    for sequence_id, prompt in enumerate(oracle.prompts):
        rig.add(sequence_id, prompt, NEW_TOKENS, prompt_logprobs=True)
    rig.run()
    assert rig.scheduler.counters.preemptions > 0
    for sequence_id in (0, 2, 3):
        found = torch.tensor(rig.prompt_logprobs[sequence_id])
        assert (found - oracle.prompt_logprobs(sequence_id)).abs().max() < TOLERANCE
    assert 1 not in rig.prompt_logprobs  # its only token has none


def test_every_registered_family_has_a_parity_row() -> None:
    published = {
        LAYOUTS[variant][0] if variant in LAYOUTS else model_type
        for variant, (model_type, _) in VARIANTS.items()
    }
    assert {family_of({"model_type": name}) for name in published} == set(FAMILIES)
