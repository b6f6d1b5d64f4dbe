"""Proves at start that the attention of a model comes out right on its GPU, in its own shapes.

Called by `attention_kinds.py` when the first step of a kind runs, in the warm-up. `proof.py` has
proved the operations in one common shape; the size of a head, the form of the cache or a rule of
the scores may still need a kernel that the compiler cannot build for this GPU, or builds wrong.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from serving.kernels.first_line import first_line
from serving.kernels.gpu.attention_sample import (
    AttentionShape,
    Sample,
    empty_like,
    expected,
    make_sample,
)
from serving.kernels.gpu.deviation import off_by
from serving.kernels.kv_format import CachedVectors
from serving.kernels.torch_attention import ScoreRule

CHUNKS = ((0, 7), (33, 130), (0, 40))  # cached and new tokens; more and less than a tile has
CONTEXTS = (1, 16, 300)  # of decodes
WINDOW = 24  # at most, so that what is beyond is there
TOLERANCE = 1e-2  # of the result's norm: rounding to bfloat16; a wrong row is off by more
WRITTEN = 50  # tokens that are put into a cache

# Attention of all rows of a sample into `sample.out`.
Attend = Callable[[Sample], None]
# Puts rows [tokens, kv_heads, dim] into slots of a cache, as `CachedVectors.store()` does.
Write = Callable[[torch.Tensor, CachedVectors, torch.Tensor], None]


def fault_of(
    attend: Attend, shape: AttentionShape, rule: ScoreRule, device: torch.device
) -> str | None:
    """What is wrong with this kind of attention; None: nothing."""
    sample = make_sample(shape, narrowed(rule), device, CHUNKS, CONTEXTS)
    try:
        attend(sample)
        found = sample.out.cpu()
    except Exception as error:  # whatever triton, its compiler or the driver raise
        return f"{type(error).__name__}: {first_line(error)}"
    wanted, decodes = expected(sample), len(CONTEXTS)
    for what, rows in (("decodes", slice(decodes)), ("prompts", slice(decodes, None))):
        fault = off_by(found[rows], wanted[rows], TOLERANCE)
        if fault is not None:
            return f"attention of {what} {fault}"
    return None


def fault_of_writing(write: Write, cache: CachedVectors, dtype: torch.dtype) -> str | None:
    """What is wrong with writing rows of `dtype` into caches such as this one; None: nothing."""
    device, noise = cache.codes.device, torch.Generator().manual_seed(0)
    blocks = -(-WRITTEN // cache.block_size) + 1
    slots = torch.randperm(blocks * cache.block_size, generator=noise)[:WRITTEN].to(device)
    numbers = torch.randn(WRITTEN, cache.codes.shape[1], cache.codes.shape[3], generator=noise)
    found, wanted = (numbers.to(device, dtype, copy=True) for _ in range(2))
    own, other = (empty_like(cache, blocks) for _ in range(2))
    other.store(wanted, slots)
    try:
        write(found, own, slots)
        every = torch.arange(blocks, device=device)
        pairs = ((found, wanted), (own.load(every, dtype), other.load(every, dtype)))
        faults = [off_by(one, another, TOLERANCE) for one, another in pairs]
    except Exception as error:  # as above
        return f"{type(error).__name__}: {first_line(error)}"
    return next((f"what it writes {fault}" for fault in faults if fault is not None), None)


def narrowed(rule: ScoreRule) -> ScoreRule:
    """With a window that is shorter than what is proved, if there is one."""
    return replace(rule, window=min(rule.window, WINDOW))
