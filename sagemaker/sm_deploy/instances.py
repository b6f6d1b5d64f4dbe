"""Instance types: what they have, names near a misspelt one, the host image for a CUDA version.

Runs on the deploying person's machine. Comes in: names from the command line. Goes out:
`InstanceType`, or a `DeployError` with suggestions. Next: `sizing.py`.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from sm_deploy.errors import DeployError
from sm_deploy.instance_table import ACCELERATED, GENERAL

NVME_OF_GENERAL = 50  # GB, at least
# Newest CUDA that the driver of a host image runs -> InferenceAmiVersion, oldest first.
AMI_BY_CUDA = (
    ((12, 2), "al2-ami-sagemaker-inference-gpu-2-1"),
    ((12, 4), "al2-ami-sagemaker-inference-gpu-3-1"),
    ((13, 0), "al2023-ami-sagemaker-inference-gpu-4-1"),
)
NEURON_AMI = "al2-ami-sagemaker-inference-neuron-2"


@dataclass(frozen=True)
class InstanceType:
    """A hosting instance type."""

    name: str  # ml.g5.2xlarge
    kind: str  # gpu, neuron or cpu
    accelerator: str  # A10G; empty without one
    devices: int
    device_mib: int  # memory of each device
    vcpus: int
    memory_gib: int
    nvme_gb: int  # 0: the disk is EBS, of a size that the variant chooses
    architecture: str  # x86_64 or arm64

    @property
    def gpus(self) -> int:
        """GPUs that the container will see."""
        return self.devices if self.kind == "gpu" else 0

    @property
    def model_memory_gib(self) -> float:
        """Memory that weights and KV cache can be in: the GPUs', else the host's."""
        return self.gpus * self.device_mib / 1024 if self.gpus else float(self.memory_gib)

    def __str__(self) -> str:
        """`ml.g5.12xlarge (4 x A10G of 22.4 GiB)`."""
        if self.kind == "cpu":
            return f"{self.name} ({self.vcpus} vCPUs, {self.memory_gib} GiB)"
        each = self.device_mib / 1024
        return f"{self.name} ({self.devices} x {self.accelerator} of {each:.1f} GiB)"


@cache
def table() -> Mapping[str, InstanceType]:
    """Name to type, of all that we have figures for."""
    types = [*_accelerated(), *_general()]
    return MappingProxyType({each.name: each for each in types})


def find_instance(name: str, offered: Iterable[str] = ()) -> InstanceType | None:
    """The type called `name`; None if SageMaker offers it and we have no figures.

    Raises `DeployError` with the nearest names for one that nobody knows.
    """
    if name in table():
        return table()[name]
    names = sorted({*table(), *offered})
    if name in names:
        return None
    near = difflib.get_close_matches(f"ml.{name.removeprefix('ml.')}", names, n=3, cutoff=0.5)
    remedy = f"did you mean {' or '.join(near)}?" if near else "see AWS's list of hosting types"
    raise DeployError("instance type", f"'{name}' is not one of SageMaker's hosting types", remedy)


def ami_for(instance: InstanceType, cuda: str) -> str | None:
    """InferenceAmiVersion whose driver runs an image of this CUDA version; None without devices.

    Raises `DeployError` for a version that no host image runs.
    """
    if instance.kind == "neuron":
        return NEURON_AMI
    if instance.kind == "cpu":
        return None
    wanted = _version(cuda)
    for newest, ami in AMI_BY_CUDA:
        if wanted <= newest:
            return ami
    last = ".".join(map(str, AMI_BY_CUDA[-1][0]))
    raise DeployError(
        "--cuda", f"no known host image runs CUDA {cuda}, the newest is {last}", "pass --ami"
    )


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    if not major.isdecimal() or not (minor or "0").isdecimal():
        raise DeployError("--cuda", f"'{text}' is not a version", "write it as 12.4")
    return int(major), int(minor or 0)


def _accelerated() -> Iterator[InstanceType]:
    family, accelerator, each_mib, kind = "", "", 0, ""
    for line in ACCELERATED.strip().splitlines():
        if not line.startswith(" "):
            family, accelerator, mib, kind = (part.strip() for part in line.split("|"))
            each_mib = int(mib)
            continue
        for entry in line.split(";"):
            size, *figures = entry.split()
            devices, vcpus, memory, nvme = map(int, figures)
            yield InstanceType(
                f"ml.{family}.{size}", kind, accelerator, devices, each_mib, vcpus, memory, nvme,
                "x86_64",
            )  # fmt: skip


def _general() -> Iterator[InstanceType]:
    for line in GENERAL.strip().splitlines():
        family, ratio, architecture, *sizes = line.split()
        nvme = NVME_OF_GENERAL if family.endswith("d") else 0
        for size in sizes:
            vcpus = 2 if size == "large" else 4 * int(size.removesuffix("xlarge") or 1)
            memory = vcpus * int(ratio)
            yield InstanceType(
                f"ml.{family}.{size}", "cpu", "", 0, 0, vcpus, memory, nvme, architecture
            )
