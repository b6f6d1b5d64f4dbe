"""Encoder-decoders against transformers: logits and greedy tokens, in every way we compute."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference import answers
from safetensors.torch import load_file, save_file
from seq2seq_rig import Seq2SeqRig, load
from transformers import AutoModelForSeq2SeqLM

from local_mode.tiny_variants_t5 import VARIANTS, write_checkpoint
from serving.kernels import cpu_ops
from serving.kernels.compiled_ops import CompiledOps
from serving.kernels.torch_ops import TorchOps
from serving.layers import relative_bias
from serving.models.registry import ENCODER_DECODERS

NEW_TOKENS = 32
PROMPTS = [37, 1, 64, 90]  # lengths: inside a block, one token, block boundary, beyond the buckets
TOLERANCE = 1e-3
Record = Callable[[str, str, float, bool], None]


class Oracle:
    """A checkpoint, its greedy outputs and logits by transformers, and our model."""

    def __init__(self, variant: str, path: Path, record: Record) -> None:
        self.variant, self.record = variant, record
        self.path = write_checkpoint(variant, path)
        model = AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32).eval()
        source = random.Random(variant)
        self.prompts = [[source.randrange(3, 320) for _ in range(n)] for n in PROMPTS]
        self.loaded = load(path, TorchOps())
        found = answers(model, self.prompts, self.rig().answers(self.prompts, NEW_TOKENS))
        self.tokens = [one.tokens for one in found]
        self.logits = [one.logits for one in found]

    def rig(self, **options: int) -> Seq2SeqRig:
        return Seq2SeqRig(self.loaded, **options)

    def check(self, rig: Seq2SeqRig, column: str, prompts: dict[int, int]) -> None:
        """Compare tokens and logits; `prompts`: which prompt each sequence had."""
        agrees = all(rig.tokens[one] == self.tokens[prompt] for one, prompt in prompts.items())
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
def test_one_prompt(oracle: Oracle, index: int) -> None:
    rig = oracle.rig()
    rig.add(0, oracle.prompts[index], NEW_TOKENS)
    rig.run()
    oracle.check(rig, "whole prefill", {0: index})


def test_a_prompt_beyond_the_budget_is_one_chunk(oracle: Oracle) -> None:
    rig = oracle.rig(token_budget=16)
    rig.add(0, oracle.prompts[3], NEW_TOKENS)
    rig.run()
    assert rig.chunk_lengths == [91]
    oracle.check(rig, "chunked prefill", {0: 3})


def test_the_encoder_in_blocks_of_queries(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relative_bias, "QUERIES_AT_ONCE", 16)
    rig = oracle.rig()
    rig.add(0, oracle.prompts[3], NEW_TOKENS)
    rig.add(1, oracle.prompts[0], NEW_TOKENS, resume=oracle.tokens[0][:20])
    rig.run()
    assert rig.tokens == {0: oracle.tokens[3], 1: oracle.tokens[0][20:]}


def test_mixed_batch_with_preemption(oracle: Oracle) -> None:
    """Sequences arrive while others decode, on a pool too small for all of them."""
    rig = oracle.rig(num_blocks=24, token_budget=64)
    for sequence_id, prompt in enumerate(oracle.prompts):
        rig.add(sequence_id, prompt, NEW_TOKENS)
        for _ in range(3):
            rig.step()
    rig.run()
    assert rig.scheduler.counters.preemptions > 0
    own = {len(prompt) + 1 for prompt in oracle.prompts}
    assert set(rig.chunk_lengths) - own  # some output was recomputed with its prompt
    oracle.check(rig, "mixed batch", {i: i for i in range(len(PROMPTS))})


def test_a_prompt_seen_before_is_computed_again(oracle: Oracle) -> None:
    """Entries of a prompt depend on all of it: those of a shorter one are not its prefix."""
    rig = oracle.rig()
    rig.add(0, oracle.prompts[3][:64], 2)
    rig.add(1, oracle.prompts[3], 2)
    rig.run()
    rig.add(2, oracle.prompts[3], NEW_TOKENS)
    rig.run()
    assert rig.scheduler.counters.prefix_hit_tokens == 0
    oracle.check(rig, "prefix-cache hit", {2: 3})


def test_resumed_sequence_continues_where_it_stopped(oracle: Oracle) -> None:
    rig = oracle.rig()
    rig.add(0, oracle.prompts[0], NEW_TOKENS, resume=oracle.tokens[0][:13])
    rig.add(1, oracle.prompts[1], NEW_TOKENS, resume=oracle.tokens[1][:25])
    assert rig.run() == {0: oracle.tokens[0][13:], 1: oracle.tokens[1][25:]}


def test_no_probabilities_of_the_prompt(oracle: Oracle) -> None:
    """They would be those of a text that the decoder never sees; the rig asserts their absence."""
    rig = oracle.rig()
    rig.add(0, oracle.prompts[0], 3, prompt_logprobs=True)
    assert rig.run() == {0: oracle.tokens[0][:3]}


def test_compiled_operations_in_a_mixed_batch(oracle: Oracle) -> None:
    loaded = cpu_ops.load()
    if not loaded:
        pytest.skip(f"no compiled operations here: {loaded.reason}")
    rig = Seq2SeqRig(load(oracle.path, CompiledOps()), token_budget=64)
    for sequence_id, prompt in enumerate(oracle.prompts):
        rig.add(sequence_id, prompt, NEW_TOKENS)
        rig.step()
    found = rig.run()
    assert [found[i] for i in range(len(PROMPTS))] == oracle.tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_exact_as_transformers(oracle: Oracle, dtype: torch.dtype) -> None:
    """Logits of the first token, before rounding can lead elsewhere."""
    rig = Seq2SeqRig(load(oracle.path, TorchOps(), dtype))
    model = AutoModelForSeq2SeqLM.from_pretrained(oracle.path, dtype=dtype).eval()
    start = torch.tensor([[model.config.decoder_start_token_id]])
    ours, theirs = [], []
    for index, prompt in enumerate(oracle.prompts):
        rig.add(index, prompt, 1)
        rig.run()
        with torch.no_grad():
            found = model(input_ids=torch.tensor([prompt]), decoder_input_ids=start).logits[0, -1]
        ours.append(float((rig.logits[index][0] - oracle.logits[index][0]).abs().mean()))
        theirs.append(float((found.float() - oracle.logits[index][0]).abs().mean()))
    assert sum(ours) < 1.5 * sum(theirs)


def test_float16_holds_where_its_range_ends(oracle: Oracle, tmp_path: Path) -> None:
    """T5's residual stream and feed-forward outputs exceed 65504."""
    shutil.copytree(oracle.path, tmp_path, dirs_exist_ok=True)
    tensors = load_file(oracle.path / "model.safetensors")
    tensors |= {name: value * 1e5 for name, value in tensors.items() if name.endswith("wo.weight")}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    chosen = []
    for dtype in (torch.float32, torch.float16):
        rig = Seq2SeqRig(load(tmp_path, TorchOps(), dtype))
        rig.add(0, oracle.prompts[0], 1)
        rig.run()
        chosen.append(rig.logits[0][0])
    assert chosen[1].isfinite().all()
    assert (chosen[0] - chosen[1]).abs().mean() < 0.05 * chosen[0].abs().mean()


def test_every_encoder_decoder_family_has_a_parity_row() -> None:
    served = {name for family in ENCODER_DECODERS for name in family.model_types}
    assert {variant.model_type for variant in VARIANTS.values()} == served
