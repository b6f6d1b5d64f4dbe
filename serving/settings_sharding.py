"""How many ranks an engine has: TGI's rule for `--num-shard` and `--sharded`, and replicas.

Runs in the launcher, called by `settings_checks.checked()`. Comes in: `Settings` as given and the
number of devices. Goes out: the same with `num_shard` set, or a `SettingsError` with exit code 1.
Next: `launcher/engine_groups.py`.
"""

import msgspec

from serving.settings import NOT_YET, Settings, SettingsError

ORIGIN = "device count"  # of a number of shards that nobody gave


def with_shard_count(settings: Settings, num_devices: int) -> Settings:
    """Settle `num_shard` on a machine with so many devices; 0: none, or none that is known."""
    _refuse_several_machines(settings)
    if settings.num_shard is not None:
        _refuse_contradictions(settings, settings.num_shard, num_devices)
        return settings
    if settings.sharded is False or num_devices == 0:
        num_shard, origins = 1, settings.origins
    else:
        num_shard = max(1, num_devices // settings.num_replicas)
        origins = settings.origins | {"num_shard": ORIGIN}
    _refuse_contradictions(settings, num_shard, num_devices)
    return msgspec.structs.replace(settings, num_shard=num_shard, origins=origins)


def _refuse_contradictions(settings: Settings, num_shard: int, num_devices: int) -> None:
    if settings.sharded and num_shard <= 1:
        given = settings.num_shard
        found = f"{num_devices} devices were found" if given is None else f"`num_shard` is {given}"
        raise SettingsError(
            f"`sharded` is true ({settings.origins['sharded']}), which needs more than one shard "
            f"for each of {settings.num_replicas} replicas; {found}",
            exit_code=1,
        )
    asked = num_shard * settings.num_replicas
    if asked > num_devices > 0:
        raise SettingsError(
            f"`num_shard` {num_shard} times `num_replicas` {settings.num_replicas} needs {asked} "
            f"devices; there are {num_devices}",
            exit_code=1,
        )


def _refuse_several_machines(settings: Settings) -> None:
    if settings.nnodes > 1:
        raise SettingsError(f"{settings.origins['nnodes']} {NOT_YET}", exit_code=1)
    if settings.node_rank != 0:
        raise SettingsError(
            f"`node_rank` must be < `nnodes`, which is {settings.nnodes}. "
            f"Given: {settings.node_rank} ({settings.origins['node_rank']})",
            exit_code=1,
        )
