"""Every encoder-decoder on two ranks gives the greedy tokens of transformers."""

import random
from collections.abc import Callable

import pytest
import torch
from rank_group import Answer, Job, run_jobs
from reference import answers
from transformers import AutoModelForSeq2SeqLM

from local_mode.tiny_variants_t5 import VARIANTS, write_checkpoint

LENGTHS = (37, 1, 64)
NEW_TOKENS = 32
TOLERANCE = 1e-3
Record = Callable[[str, str, float, bool], None]
Pair = tuple[list[Answer], list[Answer]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Of each variant, what transformers and what two ranks give; all in one pair of processes."""
    directory = tmp_path_factory.mktemp("ranks")
    jobs, models = [], {}
    for variant in sorted(VARIANTS):
        path = write_checkpoint(variant, directory / variant)
        model = AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32).eval()
        source = random.Random(variant)
        prompts = [[source.randrange(3, 320) for _ in range(n)] for n in LENGTHS]
        models[variant] = model
        jobs.append(Job(path, prompts, NEW_TOKENS))
    found = run_jobs("encoder_decoder", jobs, directory)
    return {
        variant: (answers(model, job.prompts, own), own)
        for (variant, model), job, own in zip(models.items(), jobs, found, strict=True)
    }


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_two_ranks_give_the_tokens_of_transformers(
    results: dict[str, Pair], variant: str, parity: Record
) -> None:
    expected, found = results[variant]
    agrees = [one.tokens for one in found] == [one.tokens for one in expected]
    pairs = zip(found, expected, strict=True)
    error = max(float((one.logits - other.logits).abs().max()) for one, other in pairs)
    parity(variant, "two ranks", error, agrees)
    assert agrees
    assert error < TOLERANCE
