"""How many ranks an engine has: TGI's rule for `--num-shard`, `--sharded`; replicas, machines.

Runs in the launcher, called by `settings_checks.checked()`. Comes in: `Settings` as given and the
number of devices. Goes out: the same with `num_shard` set, or a `SettingsError` with exit code 1.
Next: `launcher/engine_groups.py`.
"""

import msgspec

from serving.settings import Settings, SettingsError

ORIGIN = "device count"  # of a number of shards that nobody gave


def with_shard_count(settings: Settings, num_devices: int) -> Settings:
    """Settle `num_shard` on a machine with so many devices; 0: none, or none that is known.

    With several machines it is the number of ranks over all of them, which are alike.
    """
    _check_machines(settings)
    if settings.num_shard is not None:
        _refuse_contradictions(settings, settings.num_shard, num_devices)
        return settings
    if settings.sharded is False or num_devices == 0:
        num_shard, origins = settings.nnodes, settings.origins
    else:
        num_shard = max(1, num_devices // settings.num_replicas) * settings.nnodes
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
    if settings.sharded is False and settings.nnodes > 1:
        raise SettingsError(
            f"`sharded` is false ({settings.origins['sharded']}), but `nnodes` is "
            f"{settings.nnodes}, which spreads the ranks of one engine over machines",
            exit_code=1,
        )
    if num_shard % settings.nnodes != 0:
        raise SettingsError(
            f"`num_shard` is the number of ranks over all machines: it must be a multiple of "
            f"`nnodes`, which is {settings.nnodes}. Given: {num_shard}",
            exit_code=1,
        )
    asked = num_shard // settings.nnodes * settings.num_replicas
    if asked > num_devices > 0:
        where = "" if settings.nnodes == 1 else f" on each of {settings.nnodes} machines"
        raise SettingsError(
            f"`num_shard` {num_shard} times `num_replicas` {settings.num_replicas} needs {asked} "
            f"devices{where}; there are {num_devices}",
            exit_code=1,
        )


def _check_machines(settings: Settings) -> None:
    nnodes, node_rank = settings.nnodes, settings.node_rank
    if node_rank >= nnodes:
        raise SettingsError(
            f"`node_rank` must be < `nnodes`, which is {nnodes}. "
            f"Given: {node_rank} ({settings.origins['node_rank']})",
            exit_code=1,
        )
    if nnodes == 1:
        return
    if settings.num_replicas > 1:
        raise SettingsError(
            f"`num_replicas` must be 1 with `nnodes` {nnodes}: each replica would be spread over "
            f"all machines. Given: {settings.num_replicas}. Start one server for each replica "
            "instead, with a load balancer before them",
            exit_code=1,
        )
    if "master_addr" not in settings.origins:
        raise SettingsError(
            f"`nnodes` is {nnodes} ({settings.origins['nnodes']}), which needs --master-addr: the "
            "address of machine 0, the same on all machines",
            exit_code=1,
        )
    if settings.master_port == 0:
        raise SettingsError(
            f"`master_port` must be > 0 with `nnodes` {nnodes}. Given: 0", exit_code=1
        )
    if settings.safe_port_range is not None:
        try:
            port_range(settings.safe_port_range)
        except ValueError as error:
            raise SettingsError(
                "`SAGEMAKER_SAFE_PORT_RANGE` must be FIRST-LAST, two ports. "
                f"Given: {settings.safe_port_range}",
                exit_code=1,
            ) from error


def port_range(text: str) -> range:
    """The ports of "FIRST-LAST". Raises `ValueError` for anything else."""
    first, _, last = text.partition("-")
    ports = range(int(first), int(last) + 1)
    if not ports or ports[0] < 1 or ports[-1] > 65535:
        raise ValueError(text)
    return ports
