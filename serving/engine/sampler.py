"""Chooses the next token of every row: a pure function of logits, parameters and position.

Randomness is counter-based: the uniform number of a token is a hash of (seed, position), and the
token is found by inverse CDF over the filtered distribution. So the result does not depend on the
batch, no generator state exists, and a sequence can be resumed anywhere. Called by
`model_runner.py`; the rules before it are in `logit_rules.py`.
"""

import numpy as np
import numpy.typing as npt
import torch

from serving.engine import logit_rules
from serving.engine.batch import Ints, RowTable
from serving.engine.logit_rules import TokenMasks
from serving.engine.plan import Choice
from serving.engine.watermark import Watermark
from serving.kernels.torch_ops import TorchOps

TIES = 16  # candidates fetched beyond top_n_tokens, because ties with the last one are reported


class Sampler:
    """Logits of a step to its `Choice`. Plain greedy rows take a short cut."""

    def __init__(self, ops: TorchOps, watermark: Watermark) -> None:
        self._ops = ops
        self._watermark = watermark

    def choose(
        self, logits: torch.Tensor, table: RowTable, rows: Ints, masks: TokenMasks | None = None
    ) -> Choice:
        """`logits` [samples, vocab], one for each of `rows` in the table; `masks`: guided rows."""
        special = np.flatnonzero(~table.is_plain[rows])
        if len(special) == len(rows):
            return self._choose_special(logits.float(), table, rows, masks)
        ids, logprobs = self._ops.greedy(logits)
        choice = Choice(rows.tolist(), ids.tolist(), logprobs.tolist(), [[]] * len(rows))
        if len(special):
            picked = torch.from_numpy(special).to(logits.device)
            scores = logits[picked].float()
            _overlay(choice, special, self._choose_special(scores, table, rows[special], masks))
        return choice

    def _choose_special(
        self, scores: torch.Tensor, table: RowTable, rows: Ints, masks: TokenMasks | None
    ) -> Choice:
        """All rules for all rows of float32 `scores`, which may be overwritten."""
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
            picked = torch.from_numpy(sampled).to(scores.device)
            warped = warp(scores[picked], table, rows[sampled])
            scores[picked] = warped
            uniforms = uniform(table.seed[rows[sampled]], table.num_tokens[rows[sampled]])
            ids[picked] = draw(warped, torch.from_numpy(uniforms).to(scores.device))
        logprobs = scores.log_softmax(-1)
        chosen = logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        tops = _top_tokens(logprobs, table.top_n_tokens[rows])
        return Choice(rows.tolist(), ids.tolist(), chosen.tolist(), tops)


def warp(scores: torch.Tensor, table: RowTable, rows: Ints) -> torch.Tensor:
    """Temperature, top-k, top-p, typical-p: filtered ids become -inf. [rows, vocab] float32."""
    device = scores.device
    # Relative to the best: a small temperature must not overflow.
    scores = scores - scores.amax(-1, keepdim=True)
    scores = scores / torch.from_numpy(table.temperature[rows]).to(device).unsqueeze(-1)
    for values, is_on, rule in (
        (table.top_k[rows], table.top_k[rows] > 0, logit_rules.keep_top_k),
        (table.top_p[rows], table.top_p[rows] < 1.0, logit_rules.keep_top_p),
        (table.typical_p[rows], table.typical_p[rows] < 1.0, logit_rules.keep_typical),
    ):
        index = np.flatnonzero(is_on)
        if not len(index):
            continue
        picked = torch.from_numpy(index).to(device)
        subset = scores[picked]
        rule(subset, torch.from_numpy(values[index]).to(device))
        scores[picked] = subset
    return scores


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


def _top_tokens(logprobs: torch.Tensor, counts: Ints) -> list[list[tuple[int, float]]]:
    """The best `counts[row]` (id, logprob) of each row, ties with the last included."""
    tops: list[list[tuple[int, float]]] = [[] for _ in counts]
    if not counts.any():
        return tops
    width = min(int(counts.max()) + TIES, logprobs.shape[-1])
    values, ids = logprobs.topk(width, dim=-1)
    for row, count in enumerate(counts):
        if not count:
            continue
        pairs = list(zip(ids[row].tolist(), values[row].tolist(), strict=True))
        threshold = pairs[min(int(count), width) - 1][1]
        tops[row] = [(i, v) for i, v in pairs if v >= threshold and v > float("-inf")]
    return tops


def _overlay(choice: Choice, index: Ints, special: Choice) -> None:
    """Put the results of the special rows in their places."""
    for source, target in enumerate(index.tolist()):
        choice.token_ids[target] = special.token_ids[source]
        choice.logprobs[target] = special.logprobs[source]
        choice.top_tokens[target] = special.top_tokens[source]
