"""The table of instance types against EC2's own data, which moto carries."""

import gzip
import json
from pathlib import Path
from typing import Any

import boto3
import moto
import pytest

from sm_deploy.errors import DeployError
from sm_deploy.instances import ami_for, find_instance, table

NOT_IN_THE_TABLE = {"ml.dl1.24xlarge", "ml.p6e-gb200.36xlarge"}  # not CUDA; figures not known


def ec2_data() -> dict[str, Any]:
    path = Path(moto.__file__).parent / "ec2/resources/instance_types.json.gz"
    found: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return found


EC2 = ec2_data()


@pytest.mark.parametrize("name", sorted(name for name in table() if name[3:] in EC2))
def test_the_figures_are_those_of_ec2(name: str) -> None:
    ours, theirs = table()[name], EC2[name[3:]]
    assert ours.vcpus == theirs["VCpuInfo"]["DefaultVCpus"]
    assert ours.memory_gib == theirs["MemoryInfo"]["SizeInMiB"] // 1024
    assert ours.architecture in theirs["ProcessorInfo"]["SupportedArchitectures"]
    assert bool(ours.nvme_gb) == bool(theirs.get("InstanceStorageInfo"))
    gpus = theirs.get("GpuInfo", {}).get("Gpus", [])
    assert ours.gpus == sum(gpu["Count"] for gpu in gpus)
    if gpus:
        assert ours.device_mib == gpus[0]["MemoryInfo"]["SizeInMiB"]
    neuron = theirs.get("NeuronInfo", {}).get("NeuronDevices", [])
    if neuron:
        assert (ours.kind, ours.devices) == ("neuron", neuron[0]["Count"])


def hosting_types() -> list[str]:
    client = boto3.client("sagemaker", region_name="eu-west-1")
    found: list[str] = client.meta.service_model.shape_for("ProductionVariantInstanceType").enum
    return found


def test_every_hosting_type_with_a_gpu_is_in_the_table() -> None:
    accelerated = {
        name for name in hosting_types() if name[3] in "pg" or name[3:6] in ("inf", "trn")
    }
    assert accelerated - NOT_IN_THE_TABLE <= set(table())


def test_the_table_names_hosting_types_only() -> None:
    assert set(table()) <= set(hosting_types())


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("ml.g5.12xlage", "ml.g5.12xlarge"),
        ("g5.2xlarge", "ml.g5.2xlarge"),
        ("ml.p4de.24xlrge", "ml.p4de.24xlarge"),
        ("ml.c7i.xlarg", "ml.c7i.xlarge"),
    ],
)
def test_an_unknown_type_is_answered_with_near_names(written: str, meant: str) -> None:
    with pytest.raises(DeployError, match=f"'{written}'.*did you mean.*{meant}"):
        find_instance(written)


def test_a_type_that_only_sagemaker_knows_has_no_figures() -> None:
    assert find_instance("ml.z9.large", offered=["ml.z9.large"]) is None


@pytest.mark.parametrize(
    ("instance", "cuda", "ami"),
    [
        ("ml.g5.xlarge", "12.1", "al2-ami-sagemaker-inference-gpu-2-1"),
        ("ml.g5.xlarge", "12.4", "al2-ami-sagemaker-inference-gpu-3-1"),
        ("ml.g5.xlarge", "12.8", "al2023-ami-sagemaker-inference-gpu-4-1"),
        ("ml.p5.48xlarge", "13.0", "al2023-ami-sagemaker-inference-gpu-4-1"),
        ("ml.inf2.xlarge", "13.0", "al2-ami-sagemaker-inference-neuron-2"),
        ("ml.m5.xlarge", "13.0", None),
    ],
)
def test_the_host_image_runs_the_cuda_of_the_image(
    instance: str, cuda: str, ami: str | None
) -> None:
    assert ami_for(table()[instance], cuda) == ami


def test_every_host_image_is_one_of_sagemakers() -> None:
    client = boto3.client("sagemaker", region_name="eu-west-1")
    known = client.meta.service_model.shape_for("ProductionVariantInferenceAmiVersion").enum
    chosen = {ami_for(each, cuda) for each in table().values() for cuda in ("12.2", "12.4", "13.0")}
    assert chosen - {None} <= set(known)


@pytest.mark.parametrize("cuda", ["14.0", "new"])
def test_a_cuda_without_host_image_is_refused(cuda: str) -> None:
    with pytest.raises(DeployError, match=r"--cuda: .*" + cuda):
        ami_for(table()["ml.g5.xlarge"], cuda)
