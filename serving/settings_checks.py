"""Refusal of settings that contradict each other, are out of range or not available here.

Runs in the launcher, called by `settings_sources.resolve()`. Comes in: `Settings` as given. Goes
out: the same with old names folded into new ones, or a `SettingsError` with exit code 1, whose
message names the setting, the limit and the value. Next: `launch.py`.
"""

import msgspec

from serving.settings import NOT_YET, Settings, SettingsError, fields


def checked(settings: Settings) -> Settings:
    """Refuse what contradicts itself or is not implemented; fold old names into new ones."""
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
    _check_sharding(settings)
    return settings


def _check_ranges(settings: Settings) -> None:
    at_least_one = (
        "max_concurrent_requests", "max_best_of", "max_input_tokens", "max_total_tokens",
        "max_client_batch_size", "payload_limit", "max_batch_prefill_tokens",
        "max_batch_total_tokens", "max_batch_size", "validation_workers", "block_size",
    )  # fmt: skip
    for name in at_least_one:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise SettingsError(
                f"`{name}` must be > 0. Given: {value} ({settings.origins[name]})", exit_code=1
            )
    for name in ("cuda_memory_fraction", "watermark_gamma"):
        value = getattr(settings, name)
        if not 0 < value <= 1:
            raise SettingsError(
                f"`{name}` must be > 0 and <= 1. Given: {value} ({settings.origins[name]})",
                exit_code=1,
            )
    if settings.max_request_seconds is not None and not settings.max_request_seconds > 0:
        raise SettingsError(
            f"`max_request_seconds` must be > 0. Given: {settings.max_request_seconds}",
            exit_code=1,
        )
    if not 0 <= settings.port <= 65535:
        raise SettingsError(
            f"`port` must be between 0 and 65535. Given: {settings.port}", exit_code=1
        )
    longest, total = settings.max_input_tokens, settings.max_total_tokens
    if longest is not None and total is not None and longest >= total:
        raise SettingsError(
            f"`max_input_tokens` must be < `max_total_tokens`. Given: {longest} and {total}",
            exit_code=1,
        )


def _check_sharding(settings: Settings) -> None:
    if settings.num_shard is not None and settings.num_shard < 1:
        raise SettingsError(f"`num_shard` must be > 0. Given: {settings.num_shard}", exit_code=1)
    if settings.num_shard not in (None, 1) or settings.sharded:
        name = "num_shard" if "num_shard" in settings.origins else "sharded"
        raise SettingsError(f"{settings.origins[name]}: more than one shard {NOT_YET}", exit_code=1)
