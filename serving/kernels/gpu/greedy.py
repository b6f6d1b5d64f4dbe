"""The best id of each row of logits and its log-probability, on GPUs.

Logits in, ids and log-probabilities out, for `engine/step/sampler.py`. The vocabulary is split over
programs, so that a single row fills a device; a second launch joins the parts in a fixed order. The
size of a part never changes, so a row's result does not depend on the batch.
"""

import torch
import triton
import triton.language as tl

from serving.kernels.gpu.row_checks import need_whole_rows

SPAN = 1024  # ids of a part
NONE = tl.constexpr(2**31 - 1)  # above every id


def greedy(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Best id (int64) and its log-probability (float32) of each row of [rows, vocab].

    Equals `TorchOps.greedy`: the lowest id among ties; NaN is above all numbers, so that its first
    id is the best, with the log-probability NaN. The last dimension is contiguous.
    """
    need_whole_rows(logits)
    rows, vocab = logits.shape
    device = logits.device
    ids = torch.empty(rows, dtype=torch.int64, device=device)
    logprobs = torch.empty(rows, dtype=torch.float32, device=device)
    if rows == 0:
        return ids, logprobs
    parts = triton.cdiv(vocab, SPAN)
    best, totals = torch.empty(2, rows, parts, dtype=torch.float32, device=device)
    part_ids = torch.empty(rows, parts, dtype=torch.int32, device=device)
    _part_kernel[(rows, parts)](
        logits, best, totals, part_ids, logits.stride(0), vocab, parts, N=SPAN, num_warps=4
    )
    _join_kernel[(rows,)](
        best, totals, part_ids, ids, logprobs, parts, N=triton.next_power_of_2(parts), num_warps=1
    )
    return ids, logprobs


@triton.jit(do_not_specialize=["best", "totals", "ids"])
def _part_kernel(
    logits: tl.tensor,  # [rows, vocab], by its stride
    best: tl.tensor,  # [rows, parts]
    totals: tl.tensor,  # [rows, parts]
    ids: tl.tensor,  # [rows, parts]
    stride: tl.tensor,
    vocab: tl.tensor,
    parts: tl.tensor,
    N: tl.constexpr,
) -> None:
    """Of N ids: the best logit, its id, and the sum of all exponentials relative to it."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    own = part * N + tl.arange(0, N)
    value = tl.load(logits + row * stride + own, mask=own < vocab, other=-float("inf"))
    value = value.to(tl.float32)
    largest, best_id = _best(value, own)
    at = row * parts + part
    tl.store(best + at, largest)
    tl.store(totals + at, tl.sum(tl.exp(value - _base(largest)), axis=0))
    tl.store(ids + at, best_id)


@triton.jit(do_not_specialize=["best", "totals", "ids", "row_ids", "logprobs"])
def _join_kernel(
    best: tl.tensor,  # [rows, parts], as is to `ids`: see `_part_kernel`
    totals: tl.tensor,
    ids: tl.tensor,
    row_ids: tl.tensor,  # [rows]
    logprobs: tl.tensor,  # [rows]
    parts: tl.tensor,
    N: tl.constexpr,
) -> None:
    """The parts of one row to its result."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, N)
    at = row * parts + part
    value = tl.load(best + at, mask=part < parts, other=-float("inf"))
    largest, best_id = _best(value, tl.load(ids + at, mask=part < parts, other=NONE))
    base = _base(largest)
    total = tl.load(totals + at, mask=part < parts, other=0.0) * tl.exp(value - base)
    tl.store(row_ids + row, best_id.to(tl.int64))
    tl.store(logprobs + row, largest - base - tl.log(tl.sum(total, axis=0)))


@triton.jit
def _best(value: tl.tensor, ids: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The largest value and the lowest of its ids; NaN is above all numbers."""
    is_nan = value != value  # noqa: PLR0124
    largest = tl.max(tl.where(is_nan, -float("inf"), value), axis=0)
    best_id = tl.min(tl.where(value == largest, ids, NONE), axis=0)
    nan_id = tl.min(tl.where(is_nan, ids, NONE), axis=0)
    has_nan = nan_id < NONE
    return tl.where(has_nan, float("nan"), largest), tl.where(has_nan, nan_id, best_id)


@triton.jit
def _base(largest: tl.tensor) -> tl.tensor:
    """What exponents are relative to: the largest; 0 where everything is ruled out."""
    return tl.where(largest == -float("inf"), 0.0, largest)
