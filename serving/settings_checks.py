"""Refusal of settings that contradict each other, are out of range or not available here.

Runs in the launcher, called by `settings_sources.resolve()`. Comes in: `Settings` as given. Goes
out: the same with old names folded into new ones, or a `SettingsError` with exit code 1, whose
message names the setting, the limit and the value. Next: `launch.py`.
"""

import math
from collections.abc import Callable

import msgspec

from serving import fault
from serving.settings import Settings, SettingsError, fields
from serving.settings_sharding import with_shard_count

Number = int | float

# Settings, their limit in words, and whether a value is within it.
RANGES: tuple[tuple[tuple[str, ...], str, Callable[[Number], bool]], ...] = (
    (
        (
            "max_concurrent_requests", "max_best_of", "max_input_tokens", "max_total_tokens",
            "max_client_batch_size", "payload_limit", "max_batch_prefill_tokens",
            "max_batch_total_tokens", "max_batch_size", "validation_workers", "block_size",
            "num_shard", "num_replicas", "nnodes", "rendezvous_seconds", "session_seconds",
        ),
        "> 0",
        lambda value: value > 0,
    ),
    (("max_restarts", "replica_slack", "node_rank"), ">= 0", lambda value: value >= 0),
    (("cuda_memory_fraction", "watermark_gamma"), "> 0 and <= 1", lambda value: 0 < value <= 1),
    (("session_kv_share",), ">= 0 and <= 1", lambda value: 0 <= value <= 1),
    (
        (
            "max_request_seconds", "max_whole_seconds", "max_stream_seconds",
            "stall_seconds", "recovery_seconds",
        ),
        "> 0 and finite",
        lambda value: 0 < value < math.inf,
    ),
    (("port", "master_port"), "between 0 and 65535", lambda value: 0 <= value <= 65535),
)  # fmt: skip


def checked(settings: Settings, num_devices: int = 0) -> Settings:
    """Refuse what contradicts itself or is not implemented; fold old names into new ones.

    `num_devices` of this machine settle the number of shards where none is given; 0: unknown.
    """
    defaults = Settings()
    for name, (flag, _) in fields().items():
        given = name in settings.origins
        if flag.refused and given and getattr(settings, name) != getattr(defaults, name):
            raise SettingsError(f"{settings.origins[name]} {flag.refused}", exit_code=1)
    if settings.max_input_length is not None:
        if settings.max_input_tokens is not None:
            raise SettingsError(
                "both --max-input-tokens and --max-input-length are set; give one", exit_code=1
            )
        origins = settings.origins | {"max_input_tokens": settings.origins["max_input_length"]}
        settings = msgspec.structs.replace(
            settings, max_input_tokens=settings.max_input_length, origins=origins
        )
    _check_ranges(settings)
    _check_graphs(settings)
    _check_fault(settings)
    return with_shard_count(settings, num_devices)


def _check_ranges(settings: Settings) -> None:
    for names, limit, is_within in RANGES:
        for name in names:
            value = getattr(settings, name)
            if value is not None and not is_within(value):
                raise SettingsError(
                    f"`{name}` must be {limit}. Given: {value} ({settings.origins[name]})",
                    exit_code=1,
                )
    longest, total = settings.max_input_tokens, settings.max_total_tokens
    if longest is not None and total is not None and longest >= total:
        raise SettingsError(
            f"`max_input_tokens` must be < `max_total_tokens`. Given: {longest} and {total}",
            exit_code=1,
        )


def _check_graphs(settings: Settings) -> None:
    sizes = settings.cuda_graphs
    if sizes is None or all(part.strip().isdecimal() for part in sizes.split(",")):
        return
    raise SettingsError(
        "`cuda_graphs` must be numbers separated by commas, or 0. "
        f"Given: {sizes} ({settings.origins['cuda_graphs']})",
        exit_code=1,
    )


def _check_fault(settings: Settings) -> None:
    if settings.fault is None:
        return
    origin = settings.origins["fault"]
    if not settings.engine_checks:
        raise SettingsError(
            f"{origin} is for tests: it is refused unless ENGINE_CHECKS=true", exit_code=1
        )
    try:
        fault.parse(settings.fault)
    except ValueError as error:
        raise SettingsError(f"{origin}: {error}", exit_code=1) from error
