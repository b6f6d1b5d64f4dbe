"""Autoscaling: from what a person wants to the exact calls, and to run them.

Runs on the deploying person's machine. Comes in: `ScalingOptions`. Goes out: `Call`s, or their
effect. Metric: requests in flight, waiting ones included, every 10 s; of an asynchronous endpoint
its backlog. Next: `execution.py`; `teardown.py` deletes what is made here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sm_deploy.calls import Call, Result
from sm_deploy.clients import Clients
from sm_deploy.errors import DeployError
from sm_deploy.execution import PATIENT, Pace, delete, find, run, run_all
from sm_deploy.plan import VARIANT

SERVICE = "application-autoscaling"
VARIANT_METRIC = "SageMakerVariantConcurrentRequestsPerModelHighResolution"
COMPONENT_METRIC = "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution"
WAKE_COOLDOWN = 60  # seconds


@dataclass(frozen=True, kw_only=True)
class ScalingOptions:
    """How many instances, or copies of a component, there may be, and what decides."""

    endpoint: str
    component: str | None = None
    variant: str = VARIANT
    minimum: int = 1  # 0: only components and asynchronous endpoints
    maximum: int = 2
    target: float = 8.0  # requests in flight, or in the backlog, of each instance or copy
    scale_in_seconds: int = 300
    scale_out_seconds: int = 60

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum or self.maximum < 1:
            cause = f"from {self.minimum} to {self.maximum} is no range"
            raise DeployError("scaling", cause, "let 0 <= minimum <= maximum, maximum >= 1")
        if self.target <= 0:
            raise DeployError("target", f"{self.target} is not above 0", "choose another value")

    @property
    def resource(self) -> dict[str, str]:
        """What is scaled, as application-autoscaling names it."""
        if self.component:
            name, dimension = f"inference-component/{self.component}", "inference-component"
            count = "DesiredCopyCount"
        else:
            name, dimension = f"endpoint/{self.endpoint}/variant/{self.variant}", "variant"
            count = "DesiredInstanceCount"
        return {
            "ServiceNamespace": "sagemaker",
            "ResourceId": name,
            "ScalableDimension": f"sagemaker:{dimension}:{count}",
        }


def scaling_calls(options: ScalingOptions, is_asynchronous: bool = False) -> list[Call]:
    """The calls, in order; raises `DeployError` where zero is not possible."""
    if options.minimum == 0 and not (options.component or is_asynchronous):
        raise DeployError(
            "minimum",
            "0 instances: a real-time variant keeps at least 1",
            "deploy it as a component (--component, --min-instances 0), or asynchronously",
        )
    capacity = {"MinCapacity": options.minimum, "MaxCapacity": options.maximum}
    calls = [Call(SERVICE, "register_scalable_target", {**options.resource, **capacity})]
    calls.append(_target_tracking(options, is_asynchronous))
    if options.minimum == 0:
        calls += _wake_from_zero(options)
    return calls


def scale(options: ScalingOptions, clients: Clients, pace: Pace = PATIENT) -> None:
    """Set up autoscaling; the same options again change nothing. Raises `DeployError`.

    If a later call fails, the scalable target and with it its policies are removed again.
    """
    calls = scaling_calls(options, is_asynchronous(clients, options.endpoint))
    for call in calls:
        clients.check(call)
    try:
        run_all(calls, clients, pace)
    except DeployError:
        stop_scaling(options, clients, pace)
        raise


def stop_scaling(options: ScalingOptions, clients: Clients, pace: Pace = PATIENT) -> bool:
    """Keep the number as it is from now on; False if there was no autoscaling."""
    return delete(Call(SERVICE, "deregister_scalable_target", options.resource), clients, pace)


def set_count(options: ScalingOptions, count: int, clients: Clients, pace: Pace = PATIENT) -> None:
    """Ask for `count` instances of the variant, or copies of the component, now."""
    if options.component:
        name = {"InferenceComponentName": options.component}
        parameters: dict[str, Any] = {**name, "DesiredRuntimeConfig": {"CopyCount": count}}
        call = Call("sagemaker", "update_inference_component_runtime_config", parameters)
    else:
        wanted = {"VariantName": options.variant, "DesiredInstanceCount": count}
        parameters = {"EndpointName": options.endpoint, "DesiredWeightsAndCapacities": [wanted]}
        call = Call("sagemaker", "update_endpoint_weights_and_capacities", parameters)
    run(call, clients, pace)


def is_scaled(clients: Clients, endpoint: str) -> bool:
    """Whether autoscaling sets the number of the endpoint's instances."""
    if not clients.knows(SERVICE):
        return False
    resource = ScalingOptions(endpoint=endpoint).resource
    found = find(
        lambda **names: clients[SERVICE].describe_scalable_targets(
            ServiceNamespace="sagemaker", ResourceIds=[names["resource"]]
        ),
        resource=resource["ResourceId"],
    )
    return bool(found and found["ScalableTargets"])


def is_asynchronous(clients: Clients, endpoint: str) -> bool:
    """Whether the endpoint takes its requests from S3; raises `DeployError` if there is none."""
    found = find(clients["sagemaker"].describe_endpoint, EndpointName=endpoint)
    if found is None:
        raise DeployError(f"endpoint {endpoint}", "there is none", "check name and --region")
    return bool(found.get("AsyncInferenceConfig"))


def _target_tracking(options: ScalingOptions, is_asynchronous: bool) -> Call:
    policy: dict[str, Any] = {
        "TargetValue": options.target,
        "ScaleInCooldown": options.scale_in_seconds,
        "ScaleOutCooldown": options.scale_out_seconds,
    }
    if is_asynchronous:
        policy["CustomizedMetricSpecification"] = {
            "Namespace": "AWS/SageMaker",
            "MetricName": "ApproximateBacklogSizePerInstance",
            "Dimensions": _dimensions(EndpointName=options.endpoint),
            "Statistic": "Average",
        }
    else:
        metric = COMPONENT_METRIC if options.component else VARIANT_METRIC
        policy["PredefinedMetricSpecification"] = {"PredefinedMetricType": metric}
    return Call(
        SERVICE,
        "put_scaling_policy",
        {
            "PolicyName": _policy(options, "in-flight"),
            **options.resource,
            "PolicyType": "TargetTrackingScaling",
            "TargetTrackingScalingPolicyConfiguration": policy,
        },
    )


def _wake_from_zero(options: ScalingOptions) -> list[Call]:
    """A step to 1, and the alarm that takes it when requests find nobody."""
    name = _policy(options, "wake")
    step = Call(
        SERVICE,
        "put_scaling_policy",
        {
            "PolicyName": name,
            **options.resource,
            "PolicyType": "StepScaling",
            "StepScalingPolicyConfiguration": {
                "AdjustmentType": "ChangeInCapacity",
                "MetricAggregationType": "Maximum",
                "Cooldown": WAKE_COOLDOWN,
                "StepAdjustments": [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}],
            },
        },
    )
    if options.component:
        metric, statistic = "NoCapacityInvocationFailures", "Sum"
        dimensions = _dimensions(InferenceComponentName=options.component)
    else:
        metric, statistic = "HasBacklogWithoutCapacity", "Average"
        dimensions = _dimensions(EndpointName=options.endpoint)
    alarm = alarm_call(
        name, metric, dimensions, 1.0, statistic, actions=[Result(step.title, "PolicyARN")]
    )
    return [step, alarm]


def alarm_call(
    name: str,
    metric: str,
    dimensions: list[dict[str, str]],
    threshold: float,
    statistic: str,
    periods: int = 1,
    actions: list[Result] | None = None,
) -> Call:
    """The call for an alarm on a metric of SageMaker that reaches `threshold` within a minute."""
    return Call(
        "cloudwatch",
        "put_metric_alarm",
        {
            "AlarmName": name,
            "Namespace": "AWS/SageMaker",
            "MetricName": metric,
            "Dimensions": dimensions,
            "Statistic": statistic,
            "Period": 60,
            "EvaluationPeriods": periods,
            "DatapointsToAlarm": periods,
            "Threshold": threshold,
            "ComparisonOperator": "GreaterThanOrEqualToThreshold",
            "TreatMissingData": "missing" if actions else "notBreaching",
            "AlarmActions": actions or [],
        },
    )


def _policy(options: ScalingOptions, what: str) -> str:
    return f"{options.endpoint}-{options.component or options.variant}-{what}"


def _dimensions(**named: str) -> list[dict[str, str]]:
    return [{"Name": name, "Value": value} for name, value in named.items()]


def describe_scaling(clients: Clients, options: ScalingOptions) -> Mapping[str, Any] | None:
    """The scalable target as AWS describes it; None without autoscaling."""
    resource = options.resource
    answer = clients[SERVICE].describe_scalable_targets(
        ServiceNamespace="sagemaker", ResourceIds=[resource["ResourceId"]]
    )
    targets: list[Mapping[str, Any]] = answer["ScalableTargets"]
    return targets[0] if targets else None
