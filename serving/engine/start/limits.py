"""The sizes that bound every step: measured after the worst step has run, fitted, logged.

Runs in every rank, called by `process.py` between loading the model and allocating the KV pool.
What the settings leave open follows from the model and from the memory that is free; what they ask
for and memory does not allow is lowered, with a warning. Ranks agree on every number that they
could see differently. Next: `warm_up.py`, `kv_cache.py`.
"""

import logging
from dataclasses import dataclass, replace

from serving.engine.start import kv_cache, warm_up
from serving.engine.start.graph_sizes import recorded_sizes
from serving.engine.start.model_loader import LoadedModel
from serving.errors import StartupError
from serving.protocol.messages import Limits
from serving.settings import Settings

log = logging.getLogger(__name__)
PHASE = "kv cache"
# Prompt tokens of one step: larger chunks fall out of a CPU's caches, smaller ones starve a GPU.
TOKEN_BUDGET = {"cpu": 512, "cuda": 4096}
LEAST_TOKEN_BUDGET = 16
LEAST_BLOCKS = 2
LEAST_TOKENS = 2  # a prompt of one and one new token
SHRINK_POOL = 0.8  # after each start that ran out of memory
MORE_MEMORY = "give the process more memory, or take a smaller model"


@dataclass(frozen=True)
class Measured:
    """Sizes of an engine, and the seconds of its longest step; 0.0 if no worst step was run."""

    limits: Limits
    worst_step_seconds: float = 0.0


@dataclass(frozen=True)
class StepSizes:
    """Tokens and sequences of the largest step, and the share of free memory for the pools."""

    token_budget: int
    rows: int
    pool_share: float

    def halved(self, times: int) -> "StepSizes":
        """What is tried after so many starts that ran out of memory."""
        return StepSizes(
            max(self.token_budget >> times, min(LEAST_TOKEN_BUDGET, self.token_budget)),
            max(self.rows >> times, 1),
            self.pool_share * SHRINK_POOL**times,
        )


def measure_limits(
    settings: Settings, model: LoadedModel, neighbours: int = 1, shrink: int = 0
) -> Measured:
    """Run the worst step, size the pools by what is left, fit the lengths to them.

    `neighbours`: rank processes of this machine, this one included; they share a CPU's memory.
    `shrink`: earlier starts that ran out of memory. Raises `StartupError`, or what a lack of memory
    raises (`out_of_memory.py`).
    """
    starts = len(model.traits.start_token_ids)  # in the pool, but of no client's count
    longest = _longest_sequence(settings, model.context_length, starts)
    asked = _step_sizes(settings, model, shrink)
    sizes = _with_affordable_rows(model, asked, _agreed_free(model, neighbours))
    before = kv_cache.resident_memory()
    worst = warm_up.run(model, sizes.token_budget, sizes.rows, settings.block_size, longest)
    recorded = recorded_sizes(settings.cuda_graphs, sizes.rows, model)
    graphs = warm_up.graph_bytes(model, recorded, settings.block_size, longest)
    free = _agreed_free(model, neighbours, beside=worst.num_bytes + graphs)
    sizes = _with_affordable_rows(model, sizes, free)
    if sizes.rows < asked.rows:
        _warn_lowered("sequences of a step", asked.rows, sizes.rows, MORE_MEMORY)
    num_blocks = _num_blocks(settings, model, sizes, free, longest)
    _log_ledger(model, before, worst.num_bytes, graphs, free, sizes.rows, num_blocks)
    max_input, longest = fit_lengths(settings, longest, starts, num_blocks)
    limits = Limits(max_input, longest, sizes.rows, sizes.token_budget, num_blocks)
    _log_limits(limits, settings.block_size)
    return Measured(limits, worst.seconds)


def known_limits(settings: Settings, model: LoadedModel, limits: Limits) -> Measured:
    """The limits of an earlier engine, once a tiny step has proved the model."""
    warm_up.run_short(model, settings.block_size)
    _log_limits(limits, settings.block_size)
    return Measured(limits)


def fit_lengths(settings: Settings, longest: int, starts: int, num_blocks: int) -> tuple[int, int]:
    """Longest prompt and longest sequence (start tokens included) in a pool of so many blocks.

    `longest`: what is wanted. Raises `StartupError` if not even the shortest sequence fits.
    """
    capacity = num_blocks * settings.block_size
    wanted, served = longest - starts, min(longest, capacity) - starts
    if served < LEAST_TOKENS:
        raise StartupError(
            PHASE,
            f"not enough memory to handle a sequence of {LEAST_TOKENS + starts} tokens: "
            f"the KV pool holds {capacity} tokens",
            _how_to_grow(settings, num_blocks),
        )
    if served < wanted:
        _warn_lowered("`max_total_tokens`", wanted, served, _how_to_grow(settings, num_blocks))
    max_input = settings.max_input_tokens or served - 1
    if max_input >= served:
        _warn_lowered("`max_input_tokens`", max_input, served - 1, "see `max_total_tokens` above")
        max_input = served - 1
    return max_input, served + starts


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
    if settings.max_input_tokens and settings.max_input_tokens >= wanted:
        raise StartupError(
            PHASE,
            "`max_input_tokens` must be < `max_total_tokens`. "
            f"Given: {settings.max_input_tokens} and {wanted}",
            "lower --max-input-tokens",
        )
    return wanted + starts


def _step_sizes(settings: Settings, model: LoadedModel, shrink: int) -> StepSizes:
    """Sizes of the worst step: as configured, smaller after starts that ran out of memory."""
    configured = StepSizes(
        settings.max_batch_prefill_tokens or TOKEN_BUDGET[model.device.type],
        min(settings.max_concurrent_requests, settings.max_batch_size or 10**9),
        kv_cache.device_fraction(model.device, settings.cuda_memory_fraction),
    )
    if not shrink:
        return configured
    lowered = configured.halved(shrink)
    log.warning(
        "memory ran out in %d starts; lowered: tokens of a step from %d to %d, sequences of a step "
        "from %d to %d, pool's share of the free memory from %.2f to %.2f. Remedy: %s",
        shrink, configured.token_budget, lowered.token_budget, configured.rows, lowered.rows,
        configured.pool_share, lowered.pool_share, MORE_MEMORY,
    )  # fmt: skip
    return lowered


def _agreed_free(model: LoadedModel, neighbours: int, beside: int = 0) -> int:
    """Bytes that every rank may use, beside so many and what the proof's block and row take."""
    free = kv_cache.free_memory(model.device)
    if model.device.type == "cpu":
        free //= neighbours
    own = free - beside - model.shape.block_bytes - model.shape.row_bytes
    return model.shard.agree_on_least([max(own, 0)])[0]


def _with_affordable_rows(model: LoadedModel, sizes: StepSizes, free: int) -> StepSizes:
    rows = kv_cache.affordable_rows(model.shape, free, sizes.pool_share, sizes.rows)
    return replace(sizes, rows=rows)


def _num_blocks(
    settings: Settings, model: LoadedModel, sizes: StepSizes, free: int, longest: int
) -> int:
    """Blocks of the KV pool. Raises `StartupError` if it would be too small to serve anything."""
    asked = settings.max_batch_total_tokens
    weight_bytes = model.shard.agree_on_least([model.weight_bytes])[0]
    wanted = asked or kv_cache.default_pool_tokens(
        model.shape, model.device, weight_bytes, sizes.rows, longest
    )
    num_blocks = kv_cache.pool_blocks(model.shape, free, sizes.pool_share, wanted)
    if num_blocks < LEAST_BLOCKS:
        raise StartupError(
            PHASE,
            f"not enough memory for the KV pool: it must have {LEAST_BLOCKS} blocks of "
            f"{settings.block_size} tokens at least. Blocks that fit: {num_blocks}",
            _how_to_grow(settings, num_blocks),
        )
    if asked and num_blocks * settings.block_size < asked:
        held = num_blocks * settings.block_size
        _warn_lowered("`max_batch_total_tokens`", asked, held, MORE_MEMORY)
    return num_blocks


def _how_to_grow(settings: Settings, num_blocks: int) -> str:
    """What makes the KV pool larger: the setting that bounds it, else memory."""
    asked = settings.max_batch_total_tokens
    if asked and asked <= num_blocks * settings.block_size:
        return "raise --max-batch-total-tokens"
    return MORE_MEMORY


def _warn_lowered(what: str, asked: int, got: int, remedy: str) -> None:
    log.warning("lowered %s from %d to %d: no more fits. Remedy: %s", what, asked, got, remedy)


def _log_ledger(
    model: LoadedModel,
    before: int,
    worst_step: int,
    graphs: int,
    free: int,
    rows: int,
    num_blocks: int,
) -> None:
    entries = {"process and weights": before, "worst step": worst_step, "free": free}
    if graphs:
        entries["recorded steps"] = graphs
    if model.shape.block_bytes:
        entries["kv pool"] = num_blocks * model.shape.block_bytes
    if model.shape.row_bytes:
        entries["state pool"] = rows * model.shape.row_bytes
    kv_cache.log_ledger(entries)


def _log_limits(limits: Limits, block_size: int) -> None:
    log.info(
        "kv pool: %d blocks of %d tokens, %d tokens; up to %d sequences, %d tokens a step",
        limits.num_blocks, block_size, limits.num_blocks * block_size, limits.max_rows,
        limits.token_budget,
    )  # fmt: skip
