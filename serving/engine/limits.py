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
    longest = _longest_sequence(settings, model.context_length)
    num_blocks = _pool_size(settings, model, budget, rows, longest)
    capacity = num_blocks * settings.block_size
    if settings.max_total_tokens:
        kv_cache.check_capacity(num_blocks, settings.block_size, longest, "`max_total_tokens`")
    longest = min(longest, capacity)
    max_input = settings.max_input_tokens or longest - 1
    if max_input >= longest:
        raise StartupError(
            PHASE,
            f"`max_input_tokens` must be < `max_total_tokens`. Given: {max_input} and {longest}",
            "lower --max-input-tokens",
        )
    log.info(
        "kv pool: %d blocks of %d tokens, %d tokens; up to %d sequences, %d tokens a step",
        num_blocks, settings.block_size, capacity, rows, budget,
    )  # fmt: skip
    return Limits(max_input, longest, rows, budget, num_blocks)


def _longest_sequence(settings: Settings, context_length: int) -> int:
    """Most tokens of one sequence, before the KV pool is known."""
    wanted = settings.max_total_tokens or context_length
    if wanted > context_length:
        raise StartupError(
            PHASE,
            f"`max_total_tokens` {wanted} is more than the model's context of {context_length} "
            "tokens",
            "lower --max-total-tokens, or extend the context with --rope-scaling",
        )
    return wanted


def _pool_size(settings: Settings, model: LoadedModel, budget: int, rows: int, longest: int) -> int:
    """Blocks of the KV pool, with the memory ledger in the log."""
    before = kv_cache.resident_memory()
    worst_step = warm_up.run(model, budget, rows, settings.block_size)
    free = kv_cache.free_memory(model.device)
    wanted = settings.max_batch_total_tokens or kv_cache.default_pool_tokens(
        model.shape, model.device, model.weight_bytes, rows, longest
    )
    fraction = kv_cache.device_fraction(model.device, settings.cuda_memory_fraction)
    num_blocks = kv_cache.pool_blocks(model.shape, max(free - worst_step, 0), fraction, wanted)
    kv_cache.log_ledger(
        {
            "process and weights": before,
            "worst step": worst_step,
            "free": free,
            "kv pool": num_blocks * model.shape.block_bytes,
        }
    )
    return num_blocks
