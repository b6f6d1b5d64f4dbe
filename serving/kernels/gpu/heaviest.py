"""Filters of a distribution on GPUs without sorting: ids stay whose better ones weigh too little.

Scores of the sampled rows in, for `engine/step/sampler.py`; those of filtered ids become -inf. One
program has a row: it searches the key from which ids stay, three candidates at a time, adding up
the weights above each in a fixed order while the row stays in the cache. So a row's result does not
depend on the batch, and the host waits for nothing. The definitions: `kernels/filters.py`.
"""

import torch
import triton
import triton.language as tl

from serving.kernels.gpu.row_checks import need_whole_rows

SPAN = 4096  # ids that a program reads at a time: 16 bytes for each thread
WARPS = 32
LOWEST = tl.constexpr(-2139095041)  # `_order` of -inf


def keep_heaviest(
    scores: torch.Tensor,
    keys: torch.Tensor,
    weights: torch.Tensor | None,
    targets: torch.Tensor,
) -> None:
    """Keep an id only if those with a greater key weigh less than the target, in place.

    `scores`, `keys`, `weights` float32 [rows, vocab], weights >= 0 (None: all 1); `targets` [rows]
    of any type. The ids of the greatest key always stay, those of lesser keys that are -inf never.
    Ids of NaN stay, and do not weigh. The last dimensions are contiguous.
    """
    _launch(scores, keys, weights, targets, "ones" if weights is None else "given")


def keep_top_k(scores: torch.Tensor, top_k: torch.Tensor) -> None:
    """Keep ids whose score reaches the k-th largest (ties stay): `filters.keep_top_k`.

    In place on float32 [rows, vocab]; `top_k` [rows], >= 1.
    """
    _launch(scores, scores, None, top_k, "ones")


def keep_top_p(scores: torch.Tensor, top_p: torch.Tensor) -> None:
    """Keep the most likely ids until their mass reaches p: `filters.keep_top_p`.

    In place on float32 [rows, vocab]; at least the best stays. `top_p` [rows]. Sums are in another
    order than there: an id that reaches p but for rounding may be judged otherwise.
    """
    _launch(scores, scores, None, top_p, "likely")


def keep_typical(scores: torch.Tensor, typical_p: torch.Tensor) -> None:
    """Keep the ids of about the expected information until their mass reaches p.

    In place on float32 [rows, vocab]; `typical_p` [rows]. Equals `filters.keep_typical` but for
    rounding, as for `keep_top_p`. Source: locally typical sampling, arXiv:2202.00666.
    """
    _launch(scores, scores, None, typical_p, "typical")


def _launch(
    scores: torch.Tensor,
    keys: torch.Tensor,
    weights: torch.Tensor | None,
    targets: torch.Tensor,
    kind: str,
) -> None:
    need_whole_rows(scores, keys, weights)
    rows, vocab = scores.shape
    if rows == 0:
        return
    _keep_kernel[(rows,)](
        scores, keys, weights, targets,
        scores.stride(0), keys.stride(0), 0 if weights is None else weights.stride(0), vocab,
        KIND=kind, N=SPAN, num_warps=WARPS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["targets"])
def _keep_kernel(
    scores: tl.tensor,  # [rows, vocab], this to `weights` by their strides
    keys: tl.tensor,  # [rows, vocab]; where keys are made of scores: these
    weights: tl.tensor,  # [rows, vocab]
    targets: tl.tensor,  # [rows]
    score_stride: tl.tensor,
    key_stride: tl.tensor,
    weight_stride: tl.tensor,
    vocab: tl.tensor,
    KIND: tl.constexpr,  # keys and weights: "given" both, "ones" weights, "likely", "typical"
    N: tl.constexpr,
) -> None:
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row).to(tl.float32)
    scores += row * score_stride
    keys += row * key_stride
    if weights is not None:
        weights += row * weight_stride
    greatest = _greatest(keys, vocab, 0.0, 0.0, "ones", N)
    best, center = greatest, 0.0
    if (KIND == "likely") | (KIND == "typical"):
        best = tl.where(best == -float("inf"), 0.0, best)
        total, product = _total(keys, vocab, best, N)
        target *= total
        center = product / tl.where(total > 0.0, total, 1.0)  # the mean score, relative to the best
        if KIND == "typical":
            greatest = _greatest(keys, vocab, best, center, KIND, N)
    least = _least_key(keys, weights, vocab, target, greatest, best, center, KIND, N)
    for first in range(0, vocab, N):
        own = first + tl.arange(0, N)
        key, _ = _keyed(keys, weights, own, vocab, best, center, KIND)
        score = tl.load(scores + own, mask=own < vocab)
        tl.store(scores + own, tl.where(key < least, -float("inf"), score), mask=own < vocab)


@triton.jit
def _least_key(
    keys: tl.tensor,  # of one row, as all are
    weights: tl.tensor,
    vocab: tl.tensor,
    target: tl.tensor,
    greatest: tl.tensor,
    best: tl.tensor,
    center: tl.tensor,
    KIND: tl.constexpr,
    N: tl.constexpr,
) -> tl.tensor:
    """The least key above which the weights are less than the target; at most the greatest.

    It is in (low, high]. Each pass leaves one of four parts of that, then what of it has keys.
    """
    high = _order(greatest)
    low = high * 0 + LOWEST
    # Where scores, whose exponentials count, usually have it.
    one, two, three = _order(greatest - 16.0), _order(greatest - 6.0), _order(greatest - 2.0)
    while high - low > 1:
        key_1, key_2, key_3 = _number(one), _number(two), _number(three)
        key_low, key_high = _number(low), _number(high)
        sum_1 = tl.zeros((N,), dtype=tl.float32)
        sum_2 = tl.zeros((N,), dtype=tl.float32)
        sum_3 = tl.zeros((N,), dtype=tl.float32)
        first_key = tl.full((N,), float("inf"), dtype=tl.float32)  # above low
        last_key = tl.full((N,), -float("inf"), dtype=tl.float32)  # up to high
        for first in range(0, vocab, N):
            own = first + tl.arange(0, N)
            key, weight = _keyed(keys, weights, own, vocab, best, center, KIND)
            sum_1 += tl.where(key > key_1, weight, 0.0)
            sum_2 += tl.where(key > key_2, weight, 0.0)
            sum_3 += tl.where(key > key_3, weight, 0.0)
            first_key = tl.where((key > key_low) & (key < first_key), key, first_key)
            last_key = tl.where((key <= key_high) & (key > last_key), key, last_key)
        is_1 = tl.sum(sum_1, axis=0) < target
        is_2 = tl.sum(sum_2, axis=0) < target
        is_3 = tl.sum(sum_3, axis=0) < target
        low = tl.where(is_1, low, tl.where(is_2, one, tl.where(is_3, two, three)))
        high = tl.where(is_1, one, tl.where(is_2, two, tl.where(is_3, three, high)))
        low = tl.maximum(low, _order(tl.min(first_key, axis=0)) - 1)
        high = tl.minimum(high, _order(tl.max(last_key, axis=0)))
        step = (high - low + 3) // 4
        one, two = low + step, tl.minimum(low + 2 * step, high)
        three = tl.minimum(low + 3 * step, high)
    return _number(high)


@triton.jit
def _keyed(
    keys: tl.tensor,
    weights: tl.tensor,
    own: tl.tensor,
    vocab: tl.tensor,
    best: tl.tensor,
    center: tl.tensor,
    KIND: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """(keys, weights) of some ids; -inf and nothing beyond the vocabulary.

    Typical is what is near the expected information, which is that of the mean score.
    """
    key = tl.load(keys + own, mask=own < vocab, other=-float("inf"))
    if KIND == "ones":
        return key, 1.0
    elif KIND == "given":
        return key, tl.load(weights + own, mask=own < vocab, other=0.0)
    elif KIND == "likely":
        return key, tl.exp(key - best)
    else:
        return -tl.abs(key - best - center), tl.exp(key - best)


@triton.jit
def _greatest(
    keys: tl.tensor,
    vocab: tl.tensor,
    best: tl.tensor,
    center: tl.tensor,
    KIND: tl.constexpr,
    N: tl.constexpr,
) -> tl.tensor:
    """The greatest key of a row that is a number; -inf if there is none."""
    greatest = tl.full((N,), -float("inf"), dtype=tl.float32)
    for first in range(0, vocab, N):
        key, _ = _keyed(keys, keys, first + tl.arange(0, N), vocab, best, center, KIND)
        greatest = tl.where(key > greatest, key, greatest)
    return tl.max(greatest, axis=0)


@triton.jit
def _total(
    scores: tl.tensor, vocab: tl.tensor, best: tl.tensor, N: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Of a row: sums of w and of w * (score - best), where w = exp(score - best)."""
    total = tl.zeros((N,), dtype=tl.float32)
    product = tl.zeros((N,), dtype=tl.float32)
    for first in range(0, vocab, N):
        own = first + tl.arange(0, N)
        score = tl.load(scores + own, mask=own < vocab, other=-float("inf")) - best
        weight = tl.exp(score)
        total += weight
        product += weight * tl.where(weight > 0.0, score, 0.0)
    return tl.sum(total, axis=0), tl.sum(product, axis=0)


@triton.jit
def _order(number: tl.tensor) -> tl.tensor:
    """float32 to int64 in the same order, neighbours to neighbours."""
    bits = number.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _number(order: tl.tensor) -> tl.tensor:
    """`_order` undone."""
    bits = order.to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)
