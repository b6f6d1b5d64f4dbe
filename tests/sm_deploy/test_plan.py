"""The exact calls of each kind of endpoint, and names that tell their content."""

from collections.abc import Callable
from typing import Any

import pytest

from sm_deploy.clients import Clients
from sm_deploy.errors import DeployError
from sm_deploy.instances import table
from sm_deploy.model_facts import ModelFacts
from sm_deploy.options import AsyncOptions, ComponentOptions, EndpointOptions, Network
from sm_deploy.plan import Plan, make_plan

Make = Callable[..., EndpointOptions]
TAGS = [{"Key": "created-by", "Value": "sagemaker-endpoint"}]
FACTS = ModelFacts(16_000_000_000, 131_072, 32, 8192)
IMAGE = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/llm:1.0"
ROLE = "arn:aws:iam::111122223333:role/serving"


def plan_of(options: EndpointOptions, facts: ModelFacts | None = None) -> Plan:
    return make_plan(options, table().get(options.instance_type), facts)


def without(parameters: Any, *names: str) -> dict[str, Any]:
    return {key: value for key, value in parameters.items() if key not in names}


def test_a_real_time_endpoint_of_a_hub_model(make_options: Make) -> None:
    plan = plan_of(make_options(model="org/m", tags={"team": "x"}), FACTS)
    tags = [*TAGS, {"Key": "team", "Value": "x"}]
    model, config = plan.model.parameters["ModelName"], plan.config.parameters["EndpointConfigName"]
    assert plan.model.operation == "create_model"
    assert plan.model.parameters == {
        "ModelName": model,
        "ExecutionRoleArn": ROLE,
        "PrimaryContainer": {
            "Image": IMAGE,
            "Environment": {"HF_MODEL_ID": "org/m", "SM_NUM_GPUS": "4"},
        },
        "Tags": tags,
    }
    assert plan.config.parameters == {
        "EndpointConfigName": config,
        "ProductionVariants": [
            {
                "VariantName": "AllTraffic",
                "ModelName": model,
                "InstanceType": "ml.g5.12xlarge",
                "InitialInstanceCount": 1,
                "InitialVariantWeight": 1.0,
                "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},
                "InferenceAmiVersion": "al2023-ami-sagemaker-inference-gpu-4-1",
                "ContainerStartupHealthCheckTimeoutInSeconds": 840,
            }
        ],
        "Tags": tags,
    }
    assert plan.endpoint.parameters == {
        "EndpointName": "my-llm",
        "EndpointConfigName": config,
        "Tags": tags,
    }
    assert plan.component is None


def test_a_model_on_s3_without_network_in_a_vpc(make_options: Make) -> None:
    network = Network(subnets=("subnet-1",), security_groups=("sg-1",), isolated=True)
    plan = plan_of(make_options(model="s3://b/m", network=network), FACTS)
    container = plan.model.parameters["PrimaryContainer"]
    assert container["ModelDataSource"] == {
        "S3DataSource": {
            "S3Uri": "s3://b/m/",
            "S3DataType": "S3Prefix",
            "CompressionType": "None",
        }
    }
    assert plan.model.parameters["EnableNetworkIsolation"] is True
    assert plan.model.parameters["VpcConfig"] == {
        "Subnets": ["subnet-1"],
        "SecurityGroupIds": ["sg-1"],
    }
    variant = plan.config.parameters["ProductionVariants"][0]
    assert variant["ModelDataDownloadTimeoutInSeconds"] == 760
    assert variant["ContainerStartupHealthCheckTimeoutInSeconds"] == 680


def test_an_archive_on_s3(make_options: Make) -> None:
    plan = plan_of(make_options(model="s3://b/model.tar.gz"))
    assert plan.model.parameters["PrimaryContainer"]["ModelDataUrl"] == "s3://b/model.tar.gz"


def test_an_asynchronous_endpoint(make_options: Make) -> None:
    asynchronous = AsyncOptions(
        output="s3://bucket/out",
        failures="s3://bucket/bad",
        error_topic="arn:aws:sns:eu-west-1:1:bad",
        concurrent_requests=32,
    )
    plan = plan_of(make_options(asynchronous=asynchronous))
    assert plan.config.parameters["AsyncInferenceConfig"] == {
        "OutputConfig": {
            "S3OutputPath": "s3://bucket/out",
            "S3FailurePath": "s3://bucket/bad",
            "NotificationConfig": {"ErrorTopic": "arn:aws:sns:eu-west-1:1:bad"},
        },
        "ClientConfig": {"MaxConcurrentInvocationsPerInstance": 32},
    }


def test_an_inference_component(make_options: Make) -> None:
    component = ComponentOptions(
        name="qwen", copies=2, devices=1, memory_mib=2048, min_instances=0, max_instances=3
    )
    plan = plan_of(make_options(model="org/m", component=component), FACTS)
    environment = plan.model.parameters["PrimaryContainer"]["Environment"]
    assert environment["SM_NUM_GPUS"] == "1"  # of a copy, not of the instance
    assert without(plan.config.parameters, "EndpointConfigName") == {
        "ProductionVariants": [
            {
                "VariantName": "AllTraffic",
                "InstanceType": "ml.g5.12xlarge",
                "InitialInstanceCount": 1,
                "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},
                "InferenceAmiVersion": "al2023-ami-sagemaker-inference-gpu-4-1",
                "ManagedInstanceScaling": {
                    "Status": "ENABLED",
                    "MinInstanceCount": 0,
                    "MaxInstanceCount": 3,
                },
            }
        ],
        "ExecutionRoleArn": ROLE,
        "Tags": TAGS,
    }
    assert plan.component is not None
    assert plan.component.parameters == {
        "InferenceComponentName": "qwen",
        "EndpointName": "my-llm",
        "VariantName": "AllTraffic",
        "Specification": {
            "ModelName": plan.model.parameters["ModelName"],
            "StartupParameters": {"ContainerStartupHealthCheckTimeoutInSeconds": 840},
            "ComputeResourceRequirements": {
                "MinMemoryRequiredInMb": 2048,
                "NumberOfAcceleratorDevicesRequired": 1,
            },
        },
        "RuntimeConfig": {"CopyCount": 2},
        "Tags": TAGS,
    }


def test_a_cpu_type_has_no_ranks_and_no_gpu_host_image(make_options: Make) -> None:
    plan = plan_of(make_options(instance_type="ml.m5.4xlarge"), FACTS)
    assert plan.model.parameters["PrimaryContainer"]["Environment"] == {}
    variant = plan.config.parameters["ProductionVariants"][0]
    assert "InferenceAmiVersion" not in variant
    assert variant["VolumeSizeInGB"] == 62


def test_a_type_without_figures_leaves_all_to_the_container(make_options: Make) -> None:
    plan = plan_of(make_options(instance_type="ml.z9.large"))
    assert plan.model.parameters["PrimaryContainer"]["Environment"] == {}
    assert "InferenceAmiVersion" not in plan.config.parameters["ProductionVariants"][0]


def test_what_was_chosen_is_not_overruled(make_options: Make) -> None:
    plan = plan_of(
        make_options(
            instance_type="ml.m5.4xlarge",
            model="s3://b/m/",
            gpus=3,
            ami="my-ami",
            volume_gb=100,
            startup_seconds=700,
            download_seconds=800,
            routing="RANDOM",
        ),
        FACTS,
    )
    variant = plan.config.parameters["ProductionVariants"][0]
    assert plan.model.parameters["PrimaryContainer"]["Environment"]["SM_NUM_GPUS"] == "3"
    assert variant["InferenceAmiVersion"] == "my-ami"
    assert variant["VolumeSizeInGB"] == 100
    assert variant["ContainerStartupHealthCheckTimeoutInSeconds"] == 700
    assert variant["ModelDataDownloadTimeoutInSeconds"] == 800
    assert variant["RoutingConfig"] == {"RoutingStrategy": "RANDOM"}


def test_names_tell_the_content(make_options: Make) -> None:
    one, same = plan_of(make_options()), plan_of(make_options())
    other = plan_of(make_options(environment={"A": "b"}))
    assert [call.parameters for call in one] == [call.parameters for call in same]
    assert one.model.parameters["ModelName"] != other.model.parameters["ModelName"]
    assert plan_of(make_options(suffix="v2")).model.parameters["ModelName"] == "my-llm-v2"


def test_botocore_takes_every_call(make_options: Make, clients: Clients) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"asynchronous": AsyncOptions(output="s3://bucket/o")},
        {"component": ComponentOptions()},
    ]
    for kind in kinds:
        for call in plan_of(make_options(model="s3://b/m/", **kind), FACTS):
            clients.check(call)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "my_llm"}, "name: 'my_llm' is not a name"),
        ({"name": "x" * 55}, "at most 54 letters"),
        ({"startup_seconds": 30}, "startup_seconds: 30 is not from 60 to 3600"),
        ({"volume_gb": 513}, "volume_gb: 513 is not from 1 to 512"),
        ({"instance_count": 0}, "instance_count: 0 is not from 1"),
        ({"routing": "NEAREST"}, "routing: 'NEAREST' is unknown"),
        ({"model": "org/m", "network": Network(isolated=True)}, "'org/m' cannot be downloaded"),
    ],
)
def test_wrong_values_are_named_with_their_limit(
    make_options: Make, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeployError, match=message):
        make_options(**wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AsyncOptions(output="bucket/x"), "output: 'bucket/x' is not s3://"),
        (lambda: AsyncOptions(output="s3://bkt", invocation_seconds=4000), "4000 is not from 1"),
        (lambda: ComponentOptions(min_instances=2), "min_instances: 2 is not from 0 to 1"),
        (lambda: Network(subnets=("a",)), "subnets and security groups belong together"),
    ],
)  # fmt: skip
def test_so_are_those_of_the_parts(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(DeployError, match=message):
        make()
