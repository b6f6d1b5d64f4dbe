"""Autoscaling: the exact calls, and their effect in moto where moto knows the dimension."""

from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

from sm_deploy.calls import Result
from sm_deploy.clients import Clients
from sm_deploy.errors import DeployError
from sm_deploy.execution import PATIENT, run_all
from sm_deploy.options import EndpointOptions
from sm_deploy.scaling import ScalingOptions, is_scaled, scale, scaling_calls, set_count

Make = Callable[..., EndpointOptions]
VARIANT = {
    "ServiceNamespace": "sagemaker",
    "ResourceId": "endpoint/my-llm/variant/AllTraffic",
    "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
}
COMPONENT = {
    "ServiceNamespace": "sagemaker",
    "ResourceId": "inference-component/qwen",
    "ScalableDimension": "sagemaker:inference-component:DesiredCopyCount",
}


def test_a_variant_scales_by_requests_in_flight() -> None:
    register, policy = scaling_calls(ScalingOptions(endpoint="my-llm", maximum=4, target=6))
    assert register.parameters == {**VARIANT, "MinCapacity": 1, "MaxCapacity": 4}
    assert policy.parameters == {
        "PolicyName": "my-llm-AllTraffic-in-flight",
        **VARIANT,
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": {
            "TargetValue": 6,
            "ScaleInCooldown": 300,
            "ScaleOutCooldown": 60,
            "PredefinedMetricSpecification": {
                "PredefinedMetricType": "SageMakerVariantConcurrentRequestsPerModelHighResolution"
            },
        },
    }


def test_a_component_scales_to_zero_and_wakes_up() -> None:
    options = ScalingOptions(endpoint="my-llm", component="qwen", minimum=0, maximum=3)
    register, tracking, step, alarm = scaling_calls(options)
    assert register.parameters == {**COMPONENT, "MinCapacity": 0, "MaxCapacity": 3}
    metric = tracking.parameters["TargetTrackingScalingPolicyConfiguration"]
    assert metric["PredefinedMetricSpecification"]["PredefinedMetricType"] == (
        "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution"
    )
    assert step.parameters["StepScalingPolicyConfiguration"] == {
        "AdjustmentType": "ChangeInCapacity",
        "MetricAggregationType": "Maximum",
        "Cooldown": 60,
        "StepAdjustments": [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}],
    }
    assert alarm.parameters["MetricName"] == "NoCapacityInvocationFailures"
    assert alarm.parameters["Dimensions"] == [{"Name": "InferenceComponentName", "Value": "qwen"}]
    assert alarm.parameters["AlarmActions"] == [
        Result("put_scaling_policy my-llm-qwen-wake", "PolicyARN")
    ]


def test_an_asynchronous_endpoint_scales_to_zero_by_its_backlog() -> None:
    options = ScalingOptions(endpoint="my-llm", minimum=0, maximum=3, target=5)
    _, tracking, _, alarm = scaling_calls(options, is_asynchronous=True)
    metric = tracking.parameters["TargetTrackingScalingPolicyConfiguration"]
    assert metric["CustomizedMetricSpecification"] == {
        "Namespace": "AWS/SageMaker",
        "MetricName": "ApproximateBacklogSizePerInstance",
        "Dimensions": [{"Name": "EndpointName", "Value": "my-llm"}],
        "Statistic": "Average",
    }
    assert alarm.parameters["MetricName"] == "HasBacklogWithoutCapacity"


def test_a_real_time_variant_cannot_go_to_zero() -> None:
    with pytest.raises(DeployError, match="keeps at least 1"):
        scaling_calls(ScalingOptions(endpoint="my-llm", minimum=0))


@pytest.mark.parametrize("wrong", [{"minimum": 3}, {"maximum": 0, "minimum": 0}, {"target": 0}])
def test_wrong_ranges_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DeployError):
        ScalingOptions(endpoint="my-llm", **wrong)


def test_botocore_takes_every_call(clients: Clients) -> None:
    component = ScalingOptions(endpoint="my-llm", component="qwen", minimum=0)
    for call in [*scaling_calls(component), *scaling_calls(ScalingOptions(endpoint="my-llm"))]:
        clients.check(call)


def test_the_alarm_gets_the_arn_of_its_policy(aws: Any, clients: Clients) -> None:
    options = ScalingOptions(endpoint="my-llm", component="qwen", minimum=0)
    run_all(scaling_calls(options), clients, PATIENT)
    assert aws.operations == [
        "RegisterScalableTarget", "PutScalingPolicy", "PutScalingPolicy", "PutMetricAlarm",
    ]  # fmt: skip
    assert aws.calls[-1][1]["AlarmActions"] == ["arn:policy"]


@pytest.mark.parametrize(
    ("component", "operation", "asked"),
    [
        (
            None,
            "UpdateEndpointWeightsAndCapacities",
            {
                "EndpointName": "my-llm",
                "DesiredWeightsAndCapacities": [
                    {"VariantName": "AllTraffic", "DesiredInstanceCount": 3}
                ],
            },
        ),
        (
            "qwen",
            "UpdateInferenceComponentRuntimeConfig",
            {"InferenceComponentName": "qwen", "DesiredRuntimeConfig": {"CopyCount": 3}},
        ),
    ],
)
def test_a_number_is_set_at_once(
    aws: Any, clients: Clients, component: str | None, operation: str, asked: dict[str, Any]
) -> None:
    set_count(ScalingOptions(endpoint="my-llm", component=component), 3, clients)
    assert aws.calls == [(operation, asked)]


def test_a_failure_leaves_no_half_of_it(aws: Any, clients: Clients) -> None:
    aws.things["Endpoint"]["my-llm"] = {
        "EndpointName": "my-llm", "EndpointConfigName": "c", "looks": 9, "status": "InService",
    }  # fmt: skip
    aws.fail_next("PutScalingPolicy", "AccessDeniedException", "no")
    with pytest.raises(DeployError, match="not allowed"):
        scale(ScalingOptions(endpoint="my-llm"), clients)
    assert aws.operations[-1] == "DeregisterScalableTarget"


@pytest.fixture
def moto_clients() -> Iterator[Clients]:
    with mock_aws():
        services = ("sagemaker", "application-autoscaling")
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
        made = {name: boto3.client(name, region_name="eu-west-1", **keys) for name in services}
        yield Clients("eu-west-1", made=made)


def test_in_moto_a_variant_is_scaled_afterwards(moto_clients: Clients) -> None:
    assert not is_scaled(moto_clients, "my-llm")
    run_all(scaling_calls(ScalingOptions(endpoint="my-llm", maximum=5)), moto_clients, PATIENT)
    assert is_scaled(moto_clients, "my-llm")
    scaling = moto_clients["application-autoscaling"]
    (target,) = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 5)
    (policy,) = scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert policy["PolicyName"] == "my-llm-AllTraffic-in-flight"
