"""What the machines of one server must agree on before their ranks work together.

Runs in the launchers. Comes in: the settings of an agent and those of the leader. Goes out: the
reason why they cannot work together, if there is one. Next: `cluster.py`.
"""

from serving.protocol.messages import PROTOCOL_VERSION, Join
from serving.settings import Settings

# Ranks that differ in these would compute different steps. Where the model lies, and what only
# the HTTP front reads, may differ.
SHARED = (
    "nnodes", "num_shard", "dtype", "quantize", "kv_cache_dtype", "rope_scaling", "rope_factor",
    "block_size", "cuda_memory_fraction", "max_concurrent_requests", "max_input_tokens",
    "max_total_tokens", "max_batch_prefill_tokens", "max_batch_total_tokens", "max_batch_size",
)  # fmt: skip


def shared_settings(settings: Settings) -> dict[str, str]:
    """The settings that must be the same, as text."""
    return {name: str(getattr(settings, name)) for name in SHARED}


def objection(join: Join, settings: Settings) -> str | None:
    """Why the leader, with `settings`, cannot take this agent; None if it can."""
    if join.version != PROTOCOL_VERSION:
        return (
            f"machine {join.machine} runs another version of this server: protocol {join.version}, "
            f"machine 0 has {PROTOCOL_VERSION}"
        )
    wanted = shared_settings(settings)
    for name in SHARED:
        if join.settings.get(name) != wanted[name]:
            return (
                f"`{name}` must be the same on all machines: machine {join.machine} has "
                f"{join.settings.get(name)}, machine 0 has {wanted[name]}"
            )
    if not 0 < join.machine < settings.nnodes:
        return (
            f"`node_rank` must be > 0 and < `nnodes`, which is {settings.nnodes}. "
            f"Given: {join.machine}"
        )
    return None
