"""Each filter against transformers' own processors, or against numbers worked out by hand."""

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper, TypicalLogitsWarper

from serving.kernels import filters

VOCABULARY = 2000


@pytest.fixture
def scores() -> torch.Tensor:
    return torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(3)) * 3


def kept(scores: torch.Tensor) -> torch.Tensor:
    return scores > float("-inf")


@pytest.mark.parametrize("k", [1, 7, 1999, 5000])
def test_top_k_keeps_what_transformers_keeps(scores: torch.Tensor, k: int) -> None:
    expected = TopKLogitsWarper(k)(torch.zeros(5, 1), scores.clone())
    filters.keep_top_k(scores, torch.full((5,), k), k)
    assert torch.equal(scores, expected)


def test_top_k_keeps_ties() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    filters.keep_top_k(scores, torch.tensor([2]), 2)
    assert kept(scores).tolist() == [[False, True, True, True, False]]


def test_top_k_differs_by_row() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    filters.keep_top_k(scores, torch.tensor([1, 2]), 2)
    assert kept(scores).sum(-1).tolist() == [1, 2]


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps(scores: torch.Tensor, p: float) -> None:
    expected = TopPLogitsWarper(p)(torch.zeros(5, 1), scores.clone())
    filters.keep_top_p(scores, torch.full((5,), p))
    assert torch.equal(kept(scores), kept(expected))


def test_top_p_sorts_everything_where_few_candidates_do_not_hold_the_mass() -> None:
    flat = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 0.01
    expected = TopPLogitsWarper(0.9)(torch.zeros(1, 1), flat.clone())
    filters.keep_top_p(flat, torch.tensor([0.9]), candidates=64)
    assert torch.equal(kept(flat), kept(expected))


@pytest.mark.parametrize("mass", [0.05, 0.5, 0.95])
def test_typical_keeps_what_transformers_keeps(scores: torch.Tensor, mass: float) -> None:
    expected = TypicalLogitsWarper(mass)(torch.zeros(5, 1), scores.clone())
    filters.keep_typical(scores, torch.full((5,), mass))
    assert torch.equal(kept(scores), kept(expected))


def test_typical_after_top_k_ignores_filtered_ids(scores: torch.Tensor) -> None:
    filters.keep_top_k(scores, torch.full((5,), 10), 10)
    filters.keep_typical(scores, torch.full((5,), 0.5))
    counts = kept(scores).sum(-1)
    assert ((counts >= 1) & (counts <= 10)).all()
