"""Deletion: the order, and what is not ours."""

from collections.abc import Callable
from typing import Any

import pytest

from sm_deploy.clients import Clients
from sm_deploy.deployment import deploy
from sm_deploy.errors import DeployError
from sm_deploy.execution import Pace
from sm_deploy.options import ComponentOptions, EndpointOptions
from sm_deploy.reporting import Reporter
from sm_deploy.teardown import delete_endpoint

Make = Callable[..., EndpointOptions]


def test_a_plain_endpoint_goes_with_configuration_and_model(
    aws: Any, clients: Clients, pace: Pace, make_options: Make
) -> None:
    deploy(make_options(), clients, pace=pace)
    aws.calls.clear()
    deleted = delete_endpoint("my-llm", clients, pace=pace)
    assert aws.operations == ["DeleteEndpoint", "DeleteEndpointConfig", "DeleteModel"]
    assert aws.is_empty
    assert deleted[0] == "delete_endpoint my-llm"


def test_the_order_of_everything(
    aws: Any, clients: Clients, pace: Pace, make_options: Make
) -> None:
    component = ComponentOptions(name="base")
    deploy(make_options(component=component), clients, pace=pace)
    aws.things["InferenceComponent"]["adapter"] = {
        "InferenceComponentName": "adapter",
        "EndpointName": "my-llm",
        "Specification": {"BaseInferenceComponentName": "base"},
        "looks": 9,
        "status": "InService",
    }
    aws.answers["DescribeAlarms"] = {
        "MetricAlarms": [
            {
                "AlarmName": "my-llm-base-wake",
                "Dimensions": [{"Name": "InferenceComponentName", "Value": "base"}],
            },
            {  # of an endpoint called `my-llm-2`
                "AlarmName": "my-llm-2-AllTraffic-errors",
                "Dimensions": [{"Name": "EndpointName", "Value": "my-llm-2"}],
            },
        ]
    }
    dimension = "sagemaker:inference-component:DesiredCopyCount"
    aws.answers["DescribeScalingPolicies"] = {
        "ScalingPolicies": [{"PolicyName": "my-llm-base-wake", "ScalableDimension": dimension}]
    }
    aws.answers["DescribeScalableTargets"] = {"ScalableTargets": [{"ScalableDimension": dimension}]}
    aws.calls.clear()
    delete_endpoint("my-llm", clients, pace=pace)
    order = list(dict.fromkeys(aws.operations))
    assert order == [
        "DeleteAlarms", "DeleteScalingPolicy", "DeregisterScalableTarget",
        "DeleteInferenceComponent", "DeleteEndpoint", "DeleteEndpointConfig", "DeleteModel",
    ]  # fmt: skip
    assert aws.calls[0][1] == {"AlarmNames": ["my-llm-base-wake"]}
    components = [
        asked["InferenceComponentName"]
        for operation, asked in aws.calls
        if operation == "DeleteInferenceComponent"
    ]
    assert components == ["adapter", "base"]
    assert aws.is_empty


def test_a_component_that_is_busy_is_deleted_when_it_is_idle(
    aws: Any, clients: Clients, pace: Pace, make_options: Make
) -> None:
    deploy(make_options(component=ComponentOptions(name="base")), clients, pace=pace)
    aws.fail_next(
        "DeleteInferenceComponent", "ValidationException", "cannot be deleted: Updating", times=4
    )
    delete_endpoint("my-llm", clients, pace=pace)
    assert aws.is_empty


def test_what_others_have_made_stays(aws: Any, clients: Clients, pace: Pace) -> None:
    aws.things["Model"]["their-model"] = {"ModelName": "their-model"}
    aws.things["EndpointConfig"]["their-config"] = {
        "EndpointConfigName": "their-config",
        "ProductionVariants": [{"VariantName": "AllTraffic", "ModelName": "their-model"}],
    }
    aws.things["Endpoint"]["my-llm"] = {
        "EndpointName": "my-llm", "EndpointConfigName": "their-config", "looks": 9,
        "status": "InService",
    }  # fmt: skip
    report = Reporter()
    delete_endpoint("my-llm", clients, report, pace)
    assert aws.names("Endpoint") == []
    assert aws.names("Model") == ["their-model"]
    assert report.notes == [
        "left alone, not made by this helper: their-config",
        "left alone, not made by this helper: their-model",
    ]


def test_an_endpoint_that_is_not_there(clients: Clients) -> None:
    with pytest.raises(DeployError, match="endpoint my-llm: there is none of this name in eu-west"):
        delete_endpoint("my-llm", clients)
