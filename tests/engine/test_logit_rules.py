"""Each rule against transformers' own logits processors, or against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from serving.engine import logit_rules
from serving.engine.batch import RowTable
from serving.engine.plan import Admission, Plan
from serving.protocol.params import SamplingParams

VOCABULARY = 2000


@pytest.fixture
def scores() -> torch.Tensor:
    return torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(3)) * 3


def table_with(tokens: list[int], sampling: SamplingParams) -> RowTable:
    table = RowTable(2, 64, 16)
    table.apply(Plan([Admission(1, tokens, 0, [0], sampling, 0)], [], [1], [len(tokens)], 0))
    return table


def kept(scores: torch.Tensor) -> torch.Tensor:
    return scores > float("-inf")


@pytest.mark.parametrize("k", [1, 7, 1999, 5000])
def test_top_k_keeps_what_transformers_keeps(scores: torch.Tensor, k: int) -> None:
    expected = TopKLogitsWarper(k)(torch.zeros(5, 1), scores.clone())
    logit_rules.keep_top_k(scores, torch.full((5,), k))
    assert torch.equal(scores, expected)


def test_top_k_keeps_ties() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    logit_rules.keep_top_k(scores, torch.tensor([2]))
    assert kept(scores).tolist() == [[False, True, True, True, False]]


def test_top_k_differs_by_row() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    logit_rules.keep_top_k(scores, torch.tensor([1, 2]))
    assert kept(scores).sum(-1).tolist() == [1, 2]


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps(scores: torch.Tensor, p: float) -> None:
    expected = TopPLogitsWarper(p)(torch.zeros(5, 1), scores.clone())
    logit_rules.keep_top_p(scores, torch.full((5,), p))
    assert torch.equal(kept(scores), kept(expected))


def test_top_p_sorts_everything_where_few_candidates_do_not_hold_the_mass() -> None:
    flat = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 0.01
    expected = TopPLogitsWarper(0.9)(torch.zeros(1, 1), flat.clone())
    logit_rules.keep_top_p(flat, torch.tensor([0.9]), candidates=64)
    assert torch.equal(kept(flat), kept(expected))


@pytest.mark.parametrize("mass", [0.05, 0.5, 0.95])
def test_typical_keeps_what_transformers_keeps(scores: torch.Tensor, mass: float) -> None:
    expected = TypicalLogitsWarper(mass)(torch.zeros(5, 1), scores.clone())
    logit_rules.keep_typical(scores, torch.full((5,), mass))
    assert torch.equal(kept(scores), kept(expected))


def test_typical_after_top_k_ignores_filtered_ids(scores: torch.Tensor) -> None:
    logit_rules.keep_top_k(scores, torch.full((5,), 10))
    logit_rules.keep_typical(scores, torch.full((5,), 0.5))
    counts = kept(scores).sum(-1)
    assert ((counts >= 1) & (counts <= 10)).all()


def test_repetition_penalty_is_that_of_transformers(scores: torch.Tensor) -> None:
    tokens = [5, 900, 5, 17]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([tokens]), scores[:1].clone())
    table = table_with(tokens, SamplingParams(repetition_penalty=1.3))
    found = scores[:1].clone()
    logit_rules.penalise(found, table, np.array([1]))
    torch.testing.assert_close(found, expected)


def test_frequency_penalty_is_the_share_of_all_tokens() -> None:
    table = table_with([3, 4, 3, 5], SamplingParams(frequency_penalty=0.8))
    scores = torch.ones(1, 8)
    logit_rules.penalise(scores, table, np.array([1]))
    expected = [1.0, 1.0, 1.0, 1 - 0.8 * 2 / 4, 1 - 0.8 / 4, 1 - 0.8 / 4, 1.0, 1.0]
    torch.testing.assert_close(scores[0], torch.tensor(expected))


def test_rows_without_penalties_are_untouched() -> None:
    table = table_with([3, 4], SamplingParams(temperature=0.5))
    scores = torch.ones(1, 8)
    logit_rules.penalise(scores, table, np.array([1]))
    assert torch.equal(scores, torch.ones(1, 8))
