"""Filters without sorting against those that sort."""

from collections.abc import Callable

import pytest
import torch

from serving.kernels import filters
from serving.kernels.gpu import heaviest

INFINITY = float("inf")
VOCABS = [1, 2, 150]


@pytest.fixture(autouse=True)
def _short_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them in a small vocabulary."""
    monkeypatch.setattr(heaviest, "SPAN", 128)


def kept(filter_: Callable[..., None], scores: torch.Tensor, *others: object) -> torch.Tensor:
    """Where a filter leaves scores, which it does not change otherwise."""
    own = scores.clone()
    filter_(own, *others)
    mask = own != -INFINITY
    assert torch.equal(own[mask], scores[mask])
    return mask


def by_definition(keys: torch.Tensor, weights: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of [rows, vocab], each id compared with all others."""
    above = keys[:, None, :] > keys[:, :, None]
    return ((above * weights[:, None, :]).sum(-1) < targets[:, None]) & (keys != -INFINITY)


# ------------------------------------------------------------------ keys and weights of any kind


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("vocab", VOCABS)
def test_ids_below_which_less_than_the_target_weighs(
    vocab: int, weighted: bool, device: str
) -> None:
    scores, keys = torch.randn(2, 6, vocab, device=device)
    keys = (keys * 4).round() / 4 if vocab > 2 else keys  # with ties, and both zeros
    weights = torch.randint(0, 5, (6, vocab), device=device).float()
    if not weighted:
        weights[:] = 1.0
    targets = torch.tensor([1.0, 2.0, 7.0, 40.0, 1000.0, 0.5], device=device)
    found = kept(heaviest.keep_heaviest, scores, keys, weights if weighted else None, targets)
    assert torch.equal(found, by_definition(keys, weights, targets))


def test_keys_of_any_size(device: str) -> None:
    spreads = torch.tensor([0.0, 1e-44, 1e-30, 1.0, 1e37, 1e-3], device=device)[:, None]
    keys = torch.randn(6, 100, device=device) * spreads
    keys[5] -= 1.0
    targets = torch.tensor([1, 5, 99, 2, 50, 3], device=device)
    found = kept(heaviest.keep_heaviest, torch.zeros_like(keys), keys, None, targets)
    assert torch.equal(found, by_definition(keys, torch.ones_like(keys), targets))


def test_extreme_keys(device: str) -> None:
    largest, tiny = torch.finfo(torch.float32).max, 1e-45
    keys = torch.tensor([INFINITY, largest, 1.0, tiny, 0.0, -0.0, -tiny, -1.0, -largest, -INFINITY])
    keys = keys.to(device).expand(10, 10)
    targets = torch.arange(1, 11, device=device)
    found = kept(heaviest.keep_heaviest, torch.zeros(10, 10, device=device), keys, None, targets)
    assert found.sum(-1).tolist() == [1, 2, 3, 4, 6, 6, 7, 8, 9, 9]
    assert (found == (torch.arange(10, device=device) < found.sum(-1, keepdim=True))).all()


def test_the_best_stays_whatever_the_target(device: str) -> None:
    keys = torch.randn(3, 100, device=device)
    targets = torch.tensor([0.0, -5.0, 0.0], device=device)
    found = kept(heaviest.keep_heaviest, torch.zeros_like(keys), keys, None, targets)
    assert torch.equal(found, keys == keys.amax(-1, keepdim=True))


def test_nan_keys_stay_and_do_not_count(device: str) -> None:
    keys = torch.arange(100.0, device=device).repeat(2, 1)
    keys[0, 90:95] = keys[1, :] = float("nan")
    targets = torch.tensor([6, 6], device=device)
    found = kept(heaviest.keep_heaviest, torch.zeros_like(keys), keys, None, targets)
    assert found[0].nonzero()[:, 0].tolist() == [*range(89, 100)]
    assert found[1].all()


def test_rows_that_are_filtered_already(device: str) -> None:
    scores = torch.full((2, 100), -INFINITY, device=device)
    scores[1, 7] = 3.0
    for filter_ in (heaviest.keep_top_p, heaviest.keep_typical):
        found = kept(filter_, scores, torch.tensor([0.5, 0.5], device=device))
        assert found.nonzero().tolist() == [[1, 7]]


# ------------------------------------------------------------------ the filters of sampling


@pytest.mark.parametrize("vocab", VOCABS)
def test_top_k(vocab: int, device: str) -> None:
    scores = torch.randn(7, vocab, device=device)
    scores[3:] = (scores[3:] * 2).round() / 2  # ties
    scores[5, ::2] = -INFINITY
    top_k = torch.tensor([1, 2, 50, 3, 10, 200, 100_000], device=device)
    expected = kept(filters.keep_top_k, scores, top_k, 100_000)
    assert torch.equal(kept(heaviest.keep_top_k, scores, top_k), expected)


@pytest.mark.parametrize("vocab", VOCABS)
def test_top_p(vocab: int, device: str) -> None:
    spreads = torch.tensor([3.0, 0.1, 20.0, 3.0], device=device)[:, None]
    scores = torch.randn(4, vocab, device=device) * spreads + 5
    scores[3] = (scores[3] * 2).round() / 2  # ties
    top_p = torch.tensor([1e-6, 0.3, 0.95, 0.9], device=device)
    expected = kept(filters.keep_top_p, scores, top_p)
    assert torch.equal(kept(heaviest.keep_top_p, scores, top_p), expected)


@pytest.mark.parametrize("vocab", VOCABS)
def test_typical(vocab: int, device: str) -> None:
    spreads = torch.tensor([3.0, 0.5, 20.0, 3.0], device=device)[:, None]
    scores = torch.randn(4, vocab, device=device) * spreads + 5
    scores[3, 1::3] = -INFINITY
    typical_p = torch.tensor([1e-6, 0.3, 0.95, 0.9], device=device)
    expected = kept(filters.keep_typical, scores, typical_p)
    assert torch.equal(kept(heaviest.keep_typical, scores, typical_p), expected)


@pytest.mark.parametrize("name", ["top_p", "typical"])
def test_the_mass_that_is_kept_is_the_least_that_reaches_p(name: str, device: str) -> None:
    scores = torch.randn(4, 300, device=device) * 3
    likely, logprobs = scores.double().softmax(-1), scores.double().log_softmax(-1)
    entropy = -(likely * logprobs).sum(-1, keepdim=True)
    key = logprobs if name == "top_p" else -(logprobs + entropy).abs()
    p = torch.tensor([0.05, 0.5, 0.9, 0.999], device=device)
    found = kept(getattr(heaviest, f"keep_{name}"), scores, p)
    least = key.masked_fill(~found, INFINITY).amin(-1, keepdim=True)
    assert torch.equal(found, key >= least)
    assert ((likely * (key >= least)).sum(-1) >= p - 1e-6).all()
    assert ((likely * (key > least)).sum(-1) < p + 1e-6).all()


def test_rows_of_wider_matrices(device: str) -> None:
    scores, keys, weights = torch.randn(3, 4, 200, device=device)
    weights = (weights * 2).round().abs()
    targets = torch.full((4,), 20.0, device=device)
    narrow = [one[:, 30:150] for one in (scores, keys, weights)]
    before = scores.clone()
    heaviest.keep_heaviest(*narrow, targets)
    assert torch.equal(narrow[0] != -INFINITY, by_definition(*narrow[1:], targets))
    assert torch.equal(scores[:, :30], before[:, :30])
    assert torch.equal(scores[:, 150:], before[:, 150:])


def test_a_row_does_not_depend_on_the_others(device: str) -> None:
    scores, top_p = torch.randn(3, 300, device=device), torch.rand(3, device=device)
    together = kept(heaviest.keep_top_p, scores, top_p)
    assert torch.equal(together[1:2], kept(heaviest.keep_top_p, scores[1:2], top_p[1:2]))


def test_no_rows(device: str) -> None:
    none = torch.empty(0, 300, device=device)
    heaviest.keep_top_k(none, torch.empty(0, dtype=torch.int64, device=device))
    assert none.shape == (0, 300)
