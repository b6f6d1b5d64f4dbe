"""The watermark, found by the detector's arithmetic: half of random text, nearly all of marked."""

import numpy as np
import pytest
import torch

from serving.engine.plan import Admission, Plan
from serving.engine.step.batch import RowTable
from serving.engine.step.watermark import Watermark
from serving.protocol.params import SamplingParams, StopParams

VOCABULARY = 200


def table_with(tokens: list[int], marked: bool) -> RowTable:
    table = RowTable(1, 64, 16)
    sampling = SamplingParams(watermark=marked)
    admission = Admission(0, tokens, 0, [0], len(tokens), sampling, StopParams(9), 0)
    table.apply(Plan([admission], [], [0], [len(tokens)], 0))
    return table


def favoured_by_the_paper(previous: int, gamma: float) -> set[int]:
    """Seed with key times previous id, permute, take the first share: written out once more."""
    generator = torch.Generator().manual_seed(15485863 * previous)
    permutation = torch.randperm(VOCABULARY, generator=generator).tolist()
    return set(permutation[: int(VOCABULARY * gamma)])


@pytest.mark.parametrize("gamma", [0.25, 0.5])
def test_the_share_behind_the_last_token_is_favoured(gamma: float) -> None:
    scores = torch.zeros(1, VOCABULARY)
    Watermark(gamma, 1.5).favour(scores, table_with([9, 42], True), np.array([0]))
    assert set(torch.nonzero(scores[0] == 1.5).flatten().tolist()) == favoured_by_the_paper(
        42, gamma
    )
    assert int((scores[0] != 0).sum()) == int(VOCABULARY * gamma)


def test_others_are_not_marked() -> None:
    scores = torch.zeros(1, VOCABULARY)
    Watermark(0.5, 2.0).favour(scores, table_with([9], False), np.array([0]))
    assert not scores.any()


def test_the_greatest_token_id_of_a_large_vocabulary_has_a_seed() -> None:
    assert len(Watermark(0.5, 2.0).favoured_ids(300_000, 8)) == 4
