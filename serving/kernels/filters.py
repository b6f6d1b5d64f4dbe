"""Filters that keep the likely ids of a distribution, in plain torch: part of `torch_ops.py`.

Scores are float32 [rows, vocab]; what is filtered becomes -inf, in place. On a GPU
`gpu/heaviest.py` does the same without sorting.
"""

import torch

CANDIDATES = 1024  # ids that nearly always hold the mass of top-p


def keep_top_k(scores: torch.Tensor, top_k: torch.Tensor, largest: int) -> None:
    """Keep ids whose score reaches the k-th largest (ties stay).

    `top_k` int64 [rows], >= 1; `largest`: of them, as the host knows it.
    """
    vocabulary = scores.shape[-1]
    wanted = top_k.clamp(max=vocabulary)
    best = scores.topk(min(largest, vocabulary), dim=-1).values
    threshold = best.gather(-1, (wanted - 1).unsqueeze(-1))
    scores.masked_fill_(scores < threshold, float("-inf"))


def keep_top_p(scores: torch.Tensor, top_p: torch.Tensor, candidates: int = CANDIDATES) -> None:
    """Keep the most likely ids until their mass reaches p; at least one stays. `top_p` [rows].

    Nearly always the `candidates` best hold that mass, so all are sorted only if not; to know that,
    scores are read.
    """
    log_total = scores.logsumexp(dim=-1, keepdim=True)
    best = scores.topk(min(candidates, scores.shape[-1]), dim=-1).values
    if bool(((best - log_total).exp().sum(-1) < top_p).any()):
        keep_sorted_top_p(scores, top_p)
    else:
        _keep_mass(scores, best, log_total, top_p)


def keep_sorted_top_p(scores: torch.Tensor, top_p: torch.Tensor) -> None:
    """As `keep_top_p()`, without reading a score: all are sorted."""
    log_total = scores.logsumexp(dim=-1, keepdim=True)
    _keep_mass(scores, scores.sort(dim=-1, descending=True).values, log_total, top_p)


def _keep_mass(
    scores: torch.Tensor, best: torch.Tensor, log_total: torch.Tensor, top_p: torch.Tensor
) -> None:
    """`best`: scores in falling order, enough of them to hold the mass."""
    probabilities = (best - log_total).exp()
    mass_before = probabilities.cumsum(-1) - probabilities
    kept = (mass_before < top_p.unsqueeze(-1)).sum(-1, keepdim=True).clamp(min=1)
    threshold = best.gather(-1, kept - 1)
    scores.masked_fill_(scores < threshold, float("-inf"))


def keep_typical(scores: torch.Tensor, typical_p: torch.Tensor) -> None:
    """Keep the ids nearest to the expected information until their mass reaches p.

    `typical_p` [rows]. Source: locally typical sampling, arXiv:2202.00666.
    """
    logprobs = scores.log_softmax(-1)
    probabilities = logprobs.exp()
    entropy = -(probabilities * logprobs).nansum(-1, keepdim=True)
    distance = (-logprobs - entropy).abs()
    nearest, order = distance.sort(dim=-1, stable=True)
    mass = probabilities.gather(-1, order).cumsum(-1)
    last = (mass < typical_p.unsqueeze(-1)).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
    threshold = nearest.gather(-1, last)
    scores.masked_fill_(distance > threshold, float("-inf"))
