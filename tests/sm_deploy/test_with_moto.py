"""The whole life of an endpoint in moto: deploy, status, delete."""

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws

from sm_deploy.clients import Clients
from sm_deploy.deployment import deploy
from sm_deploy.execution import Pace
from sm_deploy.options import AsyncOptions, EndpointOptions
from sm_deploy.status import endpoint_status
from sm_deploy.teardown import delete_endpoint

REGION = "eu-west-1"
SERVICES = ("sagemaker", "sagemaker-runtime", "ecr", "iam", "cloudwatch", "application-autoscaling")
Make = Callable[..., EndpointOptions]


@pytest.fixture
def account() -> Iterator[Clients]:
    """An account with the image; moto has no components, so the list of them is empty here."""
    with mock_aws():
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
        made = {name: boto3.client(name, region_name=REGION, **keys) for name in SERVICES}
        made["ecr"].create_repository(repositoryName="llm", registryId="111122223333")
        manifest = {"mediaType": "application/vnd.docker.distribution.manifest.v2+json"}
        made["ecr"].put_image(
            registryId="111122223333",
            repositoryName="llm",
            imageManifest=json.dumps(manifest),
            imageTag="1.0",
        )

        def no_components(**_: Any) -> tuple[Any, dict[str, Any]]:
            return SimpleNamespace(status_code=200), {"InferenceComponents": []}

        events = made["sagemaker"].meta.events
        events.register("before-call.sagemaker.ListInferenceComponents", no_components)
        yield Clients(REGION, made=made)


@pytest.mark.parametrize("kind", [{}, {"asynchronous": AsyncOptions(output="s3://bucket/o")}])
def test_the_life_of_an_endpoint(
    account: Clients, make_options: Make, pace: Pace, kind: dict[str, Any]
) -> None:
    # moto knows instance types of older families only.
    options = make_options(instance_type="ml.g4dn.xlarge", **kind)
    done = deploy(options, account, pace=pace)
    status = endpoint_status("my-llm", account)
    assert status.is_ready
    assert status.config == done.config
    sagemaker = account["sagemaker"]
    config = sagemaker.describe_endpoint_config(EndpointConfigName=done.config)
    assert config["ProductionVariants"][0]["ModelName"] == done.model
    assert ("AsyncInferenceConfig" in config) is bool(kind)
    delete_endpoint("my-llm", account, pace=pace)
    assert sagemaker.list_endpoints()["Endpoints"] == []
    assert sagemaker.list_endpoint_configs()["EndpointConfigs"] == []
    assert sagemaker.list_models()["Models"] == []


def test_a_role_may_be_given_by_name(account: Clients, make_options: Make, pace: Pace) -> None:
    role = account["iam"].create_role(RoleName="serving", AssumeRolePolicyDocument="{}")["Role"]
    done = deploy(make_options(instance_type="ml.g4dn.xlarge", role="serving"), account, pace=pace)
    model = account["sagemaker"].describe_model(ModelName=done.model)
    assert model["ExecutionRoleArn"] == role["Arn"]
