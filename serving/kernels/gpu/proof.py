"""Proves at start that the GPU's operations are right: each against plain torch, on a small step.

Called by `kernels/dispatch.py`, which takes plain torch where the proof fails. A driver, a compiler
or a GPU that triton does not suit shows here, and not in a user's text.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from serving.kernels.attention_batch import AttentionBatch, PrefillChunk
from serving.kernels.first_line import first_line
from serving.kernels.gpu.deviation import off_by
from serving.kernels.kv_format import CachedVectors, KvLayer
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout, TorchOps

TOLERANCE = 2e-2  # of a result's norm; in bfloat16, of which rounding takes a fifth of that
LAYOUT = HeadLayout(8, 2, 64)
BLOCK_SIZE = 16
TABLES = ([5, 1, 8], [2, 7, 0], [3, 6])  # blocks of two decodes and a chunk
CONTEXTS = (41, 16)  # of the decodes
CHUNK, CACHED = 11, 17  # new tokens of the chunk, and those before it
VOCABULARY = 5000

Results = Iterator[tuple[str, torch.Tensor]]


def fault_of(ops: TorchOps, device: torch.device) -> str | None:
    """What is wrong with operations on this device; None: nothing."""
    try:
        pairs = zip(results(ops, device), results(TorchOps(), device), strict=True)
        for (name, found), (_, expected) in pairs:
            fault = off_by(found, expected, TOLERANCE)
            if fault is not None:
                return f"{name} {fault}"
    except Exception as error:  # whatever triton, its compiler or the driver raise
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def results(ops: TorchOps, device: torch.device) -> Results:
    """Names and results of the operations, on the same random numbers at each call."""
    noise = torch.Generator().manual_seed(0)

    def numbers(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=noise).to(device, torch.bfloat16)

    rows, weight = numbers(3, 512), numbers(512)
    yield "rms norm", ops.rms_norm(rows, weight, 1e-6)
    residual = numbers(3, 512)
    yield "rms norm of a sum", ops.add_rms_norm(rows.clone(), residual, weight, 1e-6)
    yield "residual", residual
    yield "layer norm", ops.layer_norm(rows, weight, weight, 1e-6)
    yield "gated activation", ops.gated(rows, "silu")
    yield from _attention(ops, numbers, device)
    logits = numbers(2, VOCABULARY)
    ids, logprobs = ops.greedy(logits)
    yield "greedy choice", ids.double()
    yield "its log-probability", logprobs
    yield from _filters(ops, logits.float(), device)


def _filters(ops: TorchOps, scores: torch.Tensor, device: torch.device) -> Results:
    """What two rows keep, as weights."""
    most, share = torch.tensor([3, 40], device=device), torch.tensor([0.5, 0.9], device=device)

    def kept(rule: Callable[..., None], *values: Any) -> torch.Tensor:
        rows = scores.clone()
        rule(rows, *values)
        return rows.exp()

    yield "top-k", kept(ops.keep_top_k, most, 40)
    yield "top-p", kept(ops.keep_top_p, share)
    yield "typical-p", kept(ops.keep_typical, share)


def _attention(
    ops: TorchOps, numbers: Callable[..., torch.Tensor], device: torch.device
) -> Results:
    """Two decodes and a chunk behind a cached prefix, rotated and written first."""
    batch, tokens = _batch(device), len(CONTEXTS) + CHUNK
    qkv = numbers(tokens, (LAYOUT.heads + 2 * LAYOUT.kv_heads) * LAYOUT.head_dim)
    size = (sum(map(len, TABLES)) + 1, LAYOUT.kv_heads, BLOCK_SIZE, LAYOUT.head_dim)
    kv = KvLayer(CachedVectors(numbers(*size)), CachedVectors(numbers(*size)))
    angle = numbers(tokens, LAYOUT.head_dim // 2).float()
    ops.rope_and_write(qkv, LAYOUT, angle.cos(), angle.sin(), kv, batch)
    yield "rotation", qkv
    yield "cached keys", kv.keys.codes
    yield "cached values", kv.values.codes
    rule = ScoreRule(LAYOUT.head_dim**-0.5)
    yield "attention", ops.attention(qkv, LAYOUT, kv, batch, rule)


def _batch(device: torch.device) -> AttentionBatch:
    *decodes, own = TABLES
    positions = [*(context - 1 for context in CONTEXTS), *range(CACHED, CACHED + CHUNK)]
    tables = [*decodes, *[own] * CHUNK]
    slots = [
        table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
        for table, position in zip(tables, positions, strict=True)
    ]
    first = len(CONTEXTS)
    chunk = PrefillChunk(first, first + CHUNK, CACHED + CHUNK, torch.tensor(own, device=device))
    return AttentionBatch(
        len(positions),
        torch.tensor(positions, device=device),
        torch.tensor(slots, device=device),
        first,
        torch.tensor(decodes, dtype=torch.int32, device=device),
        torch.tensor(CONTEXTS, dtype=torch.int32, device=device),
        [chunk],
    )
