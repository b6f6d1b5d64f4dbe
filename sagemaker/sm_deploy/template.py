"""A plan as a CloudFormation template.

Runs on the deploying person's machine; asks nobody anything. Comes in: a `Plan`, calls of
`scaling.py`. Goes out: a template as data, for JSON. Secrets are dynamic references or parameters
that CloudFormation does not show.
"""

from collections.abc import Mapping
from typing import Any

from sm_deploy.calls import REFERENCE, Call, Result, is_secret
from sm_deploy.plan import Plan

Resource = dict[str, Any]


def template(plan: Plan, scaling: list[Call] | None = None) -> dict[str, Any]:
    """The template that makes what the calls of `plan`, and of `scaling`, make.

    Model and configuration get their names from CloudFormation, which replaces both when they
    change.
    """
    model = dict(plan.model.parameters)
    environment, parameters = _without_secrets(model["PrimaryContainer"]["Environment"])
    parameters |= {
        "Image": _parameter("image in ECR", model["PrimaryContainer"]["Image"]),
        "ExecutionRole": _parameter("ARN of the execution role", model["ExecutionRoleArn"]),
    }
    role = {"Ref": "ExecutionRole"}
    container = {
        **model["PrimaryContainer"],
        "Image": {"Ref": "Image"},
        "Environment": environment,
    }
    model_name = {"Fn::GetAtt": ["Model", "ModelName"]}
    del model["ModelName"]
    resources: dict[str, Resource] = {
        "Model": _resource(
            "SageMaker::Model", {**model, "ExecutionRoleArn": role, "PrimaryContainer": container}
        ),
        "EndpointConfig": _resource("SageMaker::EndpointConfig", _config(plan, model_name, role)),
        "Endpoint": _resource(
            "SageMaker::Endpoint",
            {
                **plan.endpoint.parameters,
                "EndpointConfigName": {"Fn::GetAtt": ["EndpointConfig", "EndpointConfigName"]},
            },
        ),
    }
    if plan.component is not None:
        resources["Component"] = _component(plan.component, model_name)
    for number, call in enumerate(scaling or []):
        after = "Component" if plan.component is not None else "Endpoint"
        resources[_logical_name(call, number)] = _scaling(call, scaling or [], after)
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"Text generation endpoint {plan.endpoint_name}",
        "Parameters": parameters,
        "Resources": resources,
        "Outputs": {"EndpointName": {"Value": {"Fn::GetAtt": ["Endpoint", "EndpointName"]}}},
    }


def _config(plan: Plan, model_name: Resource, role: Resource) -> Resource:
    config = dict(plan.config.parameters)
    del config["EndpointConfigName"]
    config["ProductionVariants"] = [
        {**variant, "ModelName": model_name} if "ModelName" in variant else variant
        for variant in config["ProductionVariants"]
    ]
    if "ExecutionRoleArn" in config:
        config["ExecutionRoleArn"] = role
    return config


def _component(call: Call, model_name: Resource) -> Resource:
    specification = {**call.parameters["Specification"], "ModelName": model_name}
    properties = {
        **call.parameters,
        "EndpointName": {"Fn::GetAtt": ["Endpoint", "EndpointName"]},
        "Specification": specification,
    }
    return _resource("SageMaker::InferenceComponent", properties)


_SCALING_TYPES = {
    "register_scalable_target": "ApplicationAutoScaling::ScalableTarget",
    "put_scaling_policy": "ApplicationAutoScaling::ScalingPolicy",
    "put_metric_alarm": "CloudWatch::Alarm",
}


def _scaling(call: Call, calls: list[Call], after: str) -> Resource:
    """A scalable target after the endpoint, policies after the target, alarms after policies."""
    properties = _with_references(dict(call.parameters), calls)
    resource = _resource(_SCALING_TYPES[call.operation], properties)
    if call.operation == "register_scalable_target":
        resource["DependsOn"] = after
    if call.operation == "put_scaling_policy":
        resource["DependsOn"] = _logical_name(calls[0], 0)
    return resource


def _with_references(value: Any, calls: list[Call]) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_references(item, calls) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_references(item, calls) for item in value]
    if isinstance(value, Result):
        number = next(index for index, call in enumerate(calls) if call.title == value.of)
        return {"Ref": _logical_name(calls[number], number)}
    return value


def _logical_name(call: Call, number: int) -> str:
    return f"{_SCALING_TYPES[call.operation].partition('::')[2]}{number}"


def _without_secrets(environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables, and the parameters that hold the secret ones among them."""
    variables: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    for name, value in environment.items():
        reference = REFERENCE.fullmatch(value)
        if reference and reference["store"] == "secretsmanager":
            variables[name] = value  # CloudFormation's own form
        elif reference or is_secret(name):
            logical = "".join(part.capitalize() for part in name.split("_"))
            parameters[logical] = {
                "Type": "String", "NoEcho": True, "Description": f"value of {name}",
            }  # fmt: skip
            variables[name] = {"Ref": logical}
        else:
            variables[name] = value
    return variables, parameters


def _parameter(description: str, default: str) -> dict[str, str]:
    return {"Type": "String", "Description": description, "Default": default}


def _resource(kind: str, properties: Mapping[str, Any]) -> Resource:
    return {"Type": f"AWS::{kind}", "Properties": dict(properties)}
