"""Chooses the next token of every row: a pure function of logits, parameters and position.

Randomness is counter-based: the uniform number of a token is a hash of (seed, position), and the
token is found by inverse CDF over the filtered distribution. So the result does not depend on the
batch, no generator state exists, and a sequence can be resumed anywhere. Everything happens on the
device, and nothing is read from it: that is for whoever wants the `Chosen`. Called by
`model_runner.py`; the rules before it are in `logit_rules.py`, the filters in `kernels/`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from serving.engine.step import logit_rules
from serving.engine.step.batch import Ints, RowTable
from serving.engine.step.device_copy import Array, upload
from serving.engine.step.logit_rules import TokenMasks
from serving.engine.step.watermark import Watermark
from serving.kernels.torch_ops import TorchOps

TIES = 16  # candidates fetched beyond top_n_tokens, because ties with the last one are reported


@dataclass(frozen=True)
class TopTokens:
    """Candidates of the rows that want their best tokens, the best first."""

    counts: Ints  # [samples]; 0: a row that wants none and is not in the tensors
    ids: torch.Tensor  # int64 [rows that want some, candidates]
    logprobs: torch.Tensor  # float32, the same

    def read(self, ids: Array, logprobs: Array) -> list[list[tuple[int, float]]]:
        """The best `counts` (id, logprob) of each row, ties with the last included.

        `ids`, `logprobs`: the tensors' contents on the host.
        """
        tops: list[list[tuple[int, float]]] = [[] for _ in self.counts]
        for index, row in enumerate(np.flatnonzero(self.counts).tolist()):
            pairs = list(zip(ids[index].tolist(), logprobs[index].tolist(), strict=True))
            threshold = pairs[min(int(self.counts[row]), len(pairs)) - 1][1]
            tops[row] = [(i, v) for i, v in pairs if v >= threshold and v > float("-inf")]
        return tops


@dataclass(frozen=True)
class Chosen:
    """The tokens of a step, on the device."""

    ids: torch.Tensor  # int64 [samples]
    logprobs: torch.Tensor  # float32 [samples]
    tops: TopTokens | None = None


class Sampler:
    """Logits of a step to what is `Chosen`. Plain greedy rows take a short cut."""

    def __init__(self, ops: TorchOps, watermark: Watermark) -> None:
        self._ops = ops
        self._watermark = watermark

    def choose(
        self, logits: torch.Tensor, table: RowTable, rows: Ints, masks: TokenMasks | None = None
    ) -> Chosen:
        """`logits` [samples, vocab], one for each of `rows` in the table; `masks`: guided rows."""
        special = np.flatnonzero(~table.is_plain[rows])
        if len(special) == len(rows):
            return self._choose_special(logits.float(), table, rows, masks)
        ids, logprobs = self._ops.greedy(logits)
        if not len(special):
            return Chosen(ids, logprobs)
        (picked,) = upload([special], logits.device)
        own = self._choose_special(logits[picked].float(), table, rows[special], masks)
        ids[picked], logprobs[picked] = own.ids, own.logprobs
        if own.tops is None:
            return Chosen(ids, logprobs)
        counts = table.top_n_tokens[rows]
        return Chosen(ids, logprobs, replace(own.tops, counts=counts))

    def _choose_special(
        self, scores: torch.Tensor, table: RowTable, rows: Ints, masks: TokenMasks | None
    ) -> Chosen:
        """All rules for all rows of float32 `scores`."""
        scores = scores.clone()
        self._watermark.favour(scores, table, rows)
        logit_rules.penalise(scores, table, rows)
        logit_rules.penalise_output(scores, table, rows)
        logit_rules.add_bias(scores, table, rows)
        logit_rules.forbid_stop(scores, table, rows)
        if masks is not None:
            logit_rules.forbid(scores, masks, rows)
        sampled = np.flatnonzero(table.samples[rows])
        ids = scores.argmax(-1)
        if len(sampled):
            own = rows[sampled]
            uniforms = uniform(table.seed[own], table.num_tokens[own])
            picked, drawn_at = upload([sampled, uniforms], scores.device)
            warped = self._warp(scores[picked], table, own)
            scores[picked] = warped
            ids[picked] = draw(warped, drawn_at)
        logprobs = scores.log_softmax(-1)
        chosen = logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        return Chosen(ids, chosen, _top_tokens(logprobs, table.top_n_tokens[rows]))

    def _warp(self, scores: torch.Tensor, table: RowTable, rows: Ints) -> torch.Tensor:
        """Temperature, top-k, top-p, typical-p: filtered ids become -inf. [rows, vocab] float32."""
        ops, top_k = self._ops, table.top_k[rows]
        (temperature,) = upload([table.temperature[rows, None]], scores.device)
        # Relative to the best: a small temperature must not overflow.
        scores = (scores - scores.amax(-1, keepdim=True)) / temperature

        def keep_top_k(scores: torch.Tensor, values: torch.Tensor) -> None:
            ops.keep_top_k(scores, values, int(top_k.max()))

        _filter(scores, top_k, top_k > 0, keep_top_k)
        _filter(scores, table.top_p[rows], table.top_p[rows] < 1.0, ops.keep_top_p)
        _filter(scores, table.typical_p[rows], table.typical_p[rows] < 1.0, ops.keep_typical)
        return scores


def _filter(
    scores: torch.Tensor,
    values: Array,
    is_on: npt.NDArray[np.bool_],
    rule: Callable[[torch.Tensor, torch.Tensor], None],
) -> None:
    """Apply a filter to the rows where it is on, in place; `values` [rows]: its parameter."""
    if is_on.all():
        rule(scores, upload([values], scores.device)[0])
        return
    index = np.flatnonzero(is_on)
    if len(index):
        picked, own_values = upload([index, values[index]], scores.device)
        own = scores[picked]
        rule(own, own_values)
        scores[picked] = own


def draw(scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Inverse CDF: for each row the first id whose cumulative probability exceeds its uniform.

    `scores` [rows, vocab], `uniforms` float64 [rows] in [0, 1). Ids with -inf are never drawn.
    """
    cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(uniforms.unsqueeze(-1) * total, below_total)
    drawn = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return drawn.clamp(max=scores.shape[-1] - 1)  # NaN logits must not lead out of the vocabulary


def uniform(seeds: npt.NDArray[np.uint64], positions: Ints) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each (seed, position): two rounds of splitmix64.

    Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014).
    """
    mixed = _mix(_mix(seeds) + positions.astype(np.uint64))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


def _top_tokens(logprobs: torch.Tensor, counts: Ints) -> TopTokens | None:
    """The candidates of the rows whose count is not 0."""
    wanting = np.flatnonzero(counts)
    if not len(wanting):
        return None
    width = min(int(counts.max()) + TIES, logprobs.shape[-1])
    (picked,) = upload([wanting], logprobs.device)
    values, ids = logprobs[picked].topk(width, dim=-1)
    return TopTokens(counts, ids, values)
