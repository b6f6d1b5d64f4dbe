"""Whether a model fits into an instance, and what its size means for disk and time limits.

Runs on the deploying person's machine. Comes in: `ModelFacts`, `InstanceType`, options. Goes out:
an `Estimate` with its sum in words, timeouts, a volume size. Next: `plan.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sm_deploy.errors import DeployError
from sm_deploy.instances import InstanceType, table
from sm_deploy.model_facts import ModelFacts

GIB = 1024**3
WORKSPACE = 1.2  # weights and what a step needs beside them
USABLE = 0.90  # of a device's memory
RESERVED_GIB = 1.5  # of each device: context, graphs, communication
SHORT_CONTEXT = 4096  # tokens; with less a server is of little use
# Quantization while loading -> bytes left of the 16-bit weights.
QUANTIZED = {
    "bitsandbytes": 0.5, "eetq": 0.5, "fp8": 0.5, "int8": 0.5,
    "bitsandbytes-nf4": 0.3, "bitsandbytes-fp4": 0.3,
}  # fmt: skip
# Slow ends of what is usual: bytes per second from S3 or the Hub, and from disk to device.
DOWNLOAD_RATE, LOAD_RATE = 100e6, 200e6
BASE_SECONDS = 600  # image, start, warm-up
UNKNOWN_SECONDS = 1800
BASE_VOLUME_GB = 30
LARGEST_VOLUME_GB = 512
LARGEST_SECONDS = 3600


@dataclass(frozen=True)
class Estimate:
    """Memory that a model needs at least, and that an instance has, in GiB."""

    weights: float
    tokens: int
    kv_cache: float
    usable: float
    instance: str

    @property
    def needed(self) -> float:
        """GiB for weights, workspace and one sequence of `tokens`."""
        return self.weights * WORKSPACE + self.kv_cache

    @property
    def fits(self) -> bool:
        """Whether there is room for at least that."""
        return self.needed <= self.usable

    def lines(self) -> list[str]:
        """The sum, term by term."""
        return [
            f"weights   {self.weights:.1f} GiB x {WORKSPACE} = {self.weights * WORKSPACE:.1f} GiB",
            f"KV cache  one sequence of {self.tokens} tokens = {self.kv_cache:.1f} GiB",
            f"needed    {self.needed:.1f} GiB",
            f"usable    {self.usable:.1f} GiB of {self.instance}",
        ]


def estimate(
    facts: ModelFacts,
    instance: InstanceType,
    environment: Mapping[str, str],
    quantize: str | None = None,
    devices: int | None = None,
) -> Estimate:
    """What the model needs on `devices` of the instance (default: all)."""
    wanted = environment.get("MAX_TOTAL_TOKENS", "")
    longest = facts.longest_context or SHORT_CONTEXT
    tokens = int(wanted) if wanted.isdecimal() else min(longest, SHORT_CONTEXT)
    weights = facts.weight_bytes * QUANTIZED.get(quantize or "", 1.0) / GIB
    return Estimate(
        weights=weights,
        tokens=tokens,
        kv_cache=tokens * facts.kv_bytes_per_token / GIB,
        usable=usable_gib(instance, devices),
        instance=str(instance),
    )


def usable_gib(instance: InstanceType, devices: int | None = None) -> float:
    """Memory for weights and KV cache on so many devices; of the host if there are none."""
    if instance.kind == "cpu":
        return max(0.0, instance.memory_gib * USABLE - RESERVED_GIB)
    count = min(devices or instance.devices, instance.devices)
    return count * (instance.device_mib / 1024 * USABLE - RESERVED_GIB)


def check_fit(found: Estimate, instance: InstanceType, model: str) -> None:
    """Raise `DeployError` with the sum, and the smallest types that would do, if it is too big."""
    if found.fits:
        return
    larger = [
        each for each in table().values() if each.kind == instance.kind and _would_do(each, found)
    ]
    larger.sort(key=lambda each: (usable_gib(each), each.vcpus))
    names = list(dict.fromkeys(each.name for each in larger))[:3]
    choice = f"choose {' or '.join(names)}" if names else "choose a smaller model"
    raise DeployError(
        instance.name,
        f"'{model}' needs {found.needed:.1f} GiB, and {found.usable:.1f} GiB are usable",
        f"{choice}, quantize it, or pass --force to try all the same",
        found.lines(),
    )


def shard_count(facts: ModelFacts | None, devices: int) -> int:
    """Most ranks, up to `devices`, that divide the attention heads."""
    heads = facts.attention_heads if facts else 0
    if not heads:
        return devices
    return max(count for count in range(1, devices + 1) if heads % count == 0)


def download_seconds(facts: ModelFacts | None) -> int:
    """Limit of SageMaker's own download from S3."""
    return _limit(facts, DOWNLOAD_RATE)


def startup_seconds(facts: ModelFacts | None, downloads: bool) -> int:
    """Limit from the container's start to its first good /ping; `downloads`: from the Hub."""
    return _limit(facts, 1 / (1 / LOAD_RATE + (1 / DOWNLOAD_RATE if downloads else 0)))


def volume_gb(facts: ModelFacts | None, instance: InstanceType) -> int | None:
    """GB of EBS for twice the weights; None where there is NVMe, or no known size.

    Raises `DeployError` for a model that no volume holds.
    """
    if facts is None or instance.nvme_gb:
        return None
    wanted = BASE_VOLUME_GB + round(2 * facts.weight_bytes / 1e9)
    if wanted > LARGEST_VOLUME_GB:
        raise DeployError(
            "volume",
            f"the model needs {wanted} GB of disk, {instance.name} can have {LARGEST_VOLUME_GB} GB",
            "choose an instance type with NVMe, or pass --volume-gb to try all the same",
        )
    return wanted


def _would_do(instance: InstanceType, found: Estimate) -> bool:
    return instance.architecture == "x86_64" and usable_gib(instance) >= found.needed


def _limit(facts: ModelFacts | None, rate: float) -> int:
    if facts is None:
        return UNKNOWN_SECONDS
    return min(LARGEST_SECONDS, BASE_SECONDS + round(facts.weight_bytes / rate))
