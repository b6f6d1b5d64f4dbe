"""What another instance type means for a variant that runs already.

Runs on the deploying person's machine. Comes in: the old variant and the new type. Goes out: the
new variant, or a `DeployError` where the container's ranks would no longer suit. Next:
`updating.py`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sm_deploy.errors import DeployError
from sm_deploy.instances import find_instance

RANKS = "SM_NUM_GPUS"


def moved_variant(
    variant: Mapping[str, Any], instance_type: str, offered: Iterable[str]
) -> dict[str, Any]:
    """The variant on another type: a disk size goes where there is NVMe.

    `offered` are SageMaker's types; raises `DeployError` with near names for one that is not.
    """
    instance = find_instance(instance_type, offered)
    kept = {
        key: value
        for key, value in variant.items()
        if not (key == "VolumeSizeInGB" and instance and instance.nvme_gb)
    }
    return {**kept, "InstanceType": instance_type}


def check_ranks(
    old: Mapping[str, str], chosen: Mapping[str, str], instance_type: str, offered: Iterable[str]
) -> None:
    """Raise `DeployError` if the old number of ranks is not that of the new type's GPUs.

    `old` and `chosen` are the container's variables, and those that the person gives now: who
    names the ranks has decided.
    """
    instance = find_instance(instance_type, offered)
    ranks = old.get(RANKS, "")
    if instance is None or RANKS in chosen or not ranks or ranks == str(instance.gpus):
        return
    raise DeployError(
        RANKS,
        f"it is {ranks}, and {instance.name} has {instance.gpus} GPUs",
        f"pass --env {RANKS}={max(1, instance.gpus)}, or another number that divides the model",
    )
