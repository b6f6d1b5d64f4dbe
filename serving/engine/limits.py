"""The sizes that bound every step: measured after the worst step has run, checked, logged.

Called by `process.py` between loading the model and allocating the KV pool. What the settings leave
open follows from the model and from the memory that is free.
"""

import logging
from dataclasses import dataclass

from serving.engine import kv_cache, warm_up
from serving.engine.model_loader import LoadedModel
from serving.errors import StartupError
from serving.settings import Settings

log = logging.getLogger(__name__)
PHASE = "kv cache"
# Prompt tokens of one step: larger chunks fall out of a CPU's caches, smaller ones starve a GPU.
TOKEN_BUDGET = {"cpu": 512, "cuda": 4096}


@dataclass(frozen=True)
class Limits:
    """Sizes that bound every step of this engine."""

    max_input_tokens: int
    max_total_tokens: int
    max_rows: int
    token_budget: int
    num_blocks: int


def measure_limits(settings: Settings, model: LoadedModel) -> Limits:
    """Run the worst step, size the KV pool by what is left. Raises `StartupError`."""
    budget = settings.max_batch_prefill_tokens or TOKEN_BUDGET[model.device.type]
    rows = min(settings.max_concurrent_requests, settings.max_batch_size or 10**9)
    starts = len(model.traits.start_token_ids)  # in the pool, but of no client's count
    longest = _longest_sequence(settings, model.context_length, starts)
    rows, num_blocks = _pool_size(settings, model, budget, rows, longest)
    capacity = num_blocks * settings.block_size
    if settings.max_total_tokens:
        kv_cache.check_capacity(num_blocks, settings.block_size, longest, "`max_total_tokens`")
    longest = min(longest, capacity)
    served = longest - starts
    max_input = settings.max_input_tokens or served - 1
    if max_input >= served:
        raise StartupError(
            PHASE,
            f"`max_input_tokens` must be < `max_total_tokens`. Given: {max_input} and {served}",
            "lower --max-input-tokens",
        )
    log.info(
        "kv pool: %d blocks of %d tokens, %d tokens; up to %d sequences, %d tokens a step",
        num_blocks, settings.block_size, capacity, rows, budget,
    )  # fmt: skip
    return Limits(max_input, longest, rows, budget, num_blocks)


def _longest_sequence(settings: Settings, context_length: int, starts: int) -> int:
    """Most tokens of one sequence, start tokens included, before the KV pool is known."""
    context = context_length - starts
    wanted = settings.max_total_tokens or context
    if wanted > context:
        raise StartupError(
            PHASE,
            f"`max_total_tokens` {wanted} is more than the model's context of {context} tokens",
            "lower --max-total-tokens, or extend the context with --rope-scaling",
        )
    return wanted + starts


def _pool_size(
    settings: Settings, model: LoadedModel, budget: int, rows: int, longest: int
) -> tuple[int, int]:
    """Rows of the state pool and blocks of the KV pool, with the memory ledger in the log."""
    before = kv_cache.resident_memory()
    fraction = kv_cache.device_fraction(model.device, settings.cuda_memory_fraction)
    free = kv_cache.free_memory(model.device)
    rows = kv_cache.affordable_rows(model.shape, free, fraction, rows)
    worst_step = warm_up.run(model, budget, rows, settings.block_size)
    free = kv_cache.free_memory(model.device)
    usable = max(free - worst_step, 0)
    rows = kv_cache.affordable_rows(model.shape, usable, fraction, rows)
    wanted = settings.max_batch_total_tokens or kv_cache.default_pool_tokens(
        model.shape, model.device, model.weight_bytes, rows, longest
    )
    num_blocks = kv_cache.pool_blocks(model.shape, usable, fraction, wanted)
    entries = {"process and weights": before, "worst step": worst_step, "free": free}
    if model.shape.block_bytes:
        entries["kv pool"] = num_blocks * model.shape.block_bytes
    if model.shape.row_bytes:
        entries["state pool"] = rows * model.shape.row_bytes
    kv_cache.log_ledger(entries)
    return rows, num_blocks
