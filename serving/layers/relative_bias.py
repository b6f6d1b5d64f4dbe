"""T5's relative position bias: a value for each head and distance, added to attention scores.

Runs in an engine rank. Built by `models/encoder_decoder_loader.py`, used by
`layers/encoder_decoder_attention.py`. Beyond the largest distance all values are equal, so the
values of every distance are one small table, made at load; a step only looks them up.
"""

import math

import torch

QUERIES_AT_ONCE = 1024  # of one sequence: bounds the memory of its [heads, queries, keys] biases


class RelativeBias:
    """Values of one layer for the heads of this rank."""

    def __init__(self, weight: torch.Tensor, max_distance: int, bidirectional: bool) -> None:
        """`weight`: [buckets, heads], one value for each bucket and head."""
        self._reach = max_distance
        distances = torch.arange(-max_distance, max_distance + 1)
        buckets = bucket(distances, weight.shape[0], max_distance, bidirectional)
        self._values = weight[buckets.to(weight.device)].T.contiguous()  # [heads, distances]

    def __call__(self, distances: torch.Tensor) -> torch.Tensor:
        """`distances`: int64 [...], position of the key minus that of the query.

        Returns [heads, ...].
        """
        return self._values[:, distances.clamp(-self._reach, self._reach) + self._reach]


class SequenceBias:
    """Biases of one sequence whose queries are its keys, in blocks of queries."""

    def __init__(self, bias: RelativeBias, length: int, causal: bool, device: torch.device) -> None:
        """`causal`: what lies behind a query gets -inf. Short sequences are computed here."""
        self._bias, self._length, self._causal, self._device = bias, length, causal, device
        self._all = self._rows(0, length) if length <= QUERIES_AT_ONCE else None

    def blocks(self) -> list[tuple[int, int]]:
        """Half-open ranges of queries that are attended together."""
        starts = range(0, self._length, QUERIES_AT_ONCE)
        return [(start, min(start + QUERIES_AT_ONCE, self._length)) for start in starts]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Additive [heads, stop - start, length] of one of the `blocks()`."""
        return self._rows(start, stop) if self._all is None else self._all

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        queries = torch.arange(start, stop, device=self._device)[:, None]
        distances = torch.arange(self._length, device=self._device)[None, :] - queries
        values = self._bias(distances)
        return values.masked_fill(distances > 0, float("-inf")) if self._causal else values


def bucket(
    distances: torch.Tensor, buckets: int, max_distance: int, bidirectional: bool
) -> torch.Tensor:
    """Bucket of each distance (key minus query), int64 of the same shape.

    Bidirectional: the upper half of the buckets is for keys behind the query. Otherwise such keys
    count as distance 0. Source: T5, arXiv:1910.10683.
    """
    first = torch.zeros_like(distances)
    if bidirectional:
        buckets //= 2
        first = (distances > 0) * buckets
        away = distances.abs()
    else:
        away = (-distances).clamp(min=0)
    exact = buckets // 2
    growth = torch.log(away.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
    return first + torch.where(away < exact, away, far)
