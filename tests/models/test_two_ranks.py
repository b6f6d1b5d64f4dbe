"""Every family on two ranks, one leading and one following: the greedy tokens of transformers."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rank_group import Answer, Job, run_jobs
from reference import answers, load_reference

from local_mode.tiny_model import VARIANTS, write_checkpoint

LENGTHS = (37, 1, 64)
NEW_TOKENS = 12
TOLERANCE = 1e-3
REPLICATED = "llama"  # on four ranks each of its two KV heads is held twice
OVERLAPPING = "llama, overlapping steps"
Record = Callable[[str, str, float, bool], None]


@dataclass
class Result:
    """Of one variant: the answers to each prompt, by transformers and by ranks."""

    expected: list[Answer]
    found: list[Answer]

    @property
    def error(self) -> float:
        """Largest difference of two logits."""
        pairs = zip(self.found, self.expected, strict=True)
        return max(float((one.logits - other.logits).abs().max()) for one, other in pairs)

    @property
    def agrees(self) -> bool:
        """Whether all tokens are equal."""
        return [one.tokens for one in self.found] == [one.tokens for one in self.expected]


def results_of(
    variants: list[str], directory: Path, size: int = 2, way: str = "compiled"
) -> dict[str, Result]:
    """Each variant on one group of ranks, and by transformers."""
    jobs, models = [], {}
    for variant in variants:
        path = write_checkpoint(variant, directory / variant)
        models[variant] = load_reference(path)
        source = random.Random(variant)
        prompts = [[source.randrange(3, 320) for _ in range(n)] for n in LENGTHS]
        jobs.append(Job(path, prompts, NEW_TOKENS))
    jobs.append(replace(jobs[variants.index(REPLICATED)], overlaps=True))
    models[OVERLAPPING] = models[REPLICATED]
    found = run_jobs("decoder", jobs, directory, size, way)
    return {
        label: Result(answers(model, job.prompts, own), own)
        for (label, model), job, own in zip(models.items(), jobs, found, strict=True)
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    return results_of(sorted(VARIANTS), tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_two_ranks_give_the_tokens_of_transformers(
    results: dict[str, Result], variant: str, parity: Record
) -> None:
    result = results[variant]
    parity(variant, "two ranks", result.error, result.agrees)
    assert result.agrees
    assert result.error < TOLERANCE


def test_ranks_share_tokens_on_their_devices_where_steps_overlap(
    results: dict[str, Result],
) -> None:
    assert results[OVERLAPPING].agrees
    assert results[OVERLAPPING].error < TOLERANCE


def test_four_ranks_share_kv_heads_over_gloo(tmp_path: Path) -> None:
    result = results_of([REPLICATED], tmp_path, size=4, way="plain")[REPLICATED]
    assert result.agrees
    assert result.error < TOLERANCE
