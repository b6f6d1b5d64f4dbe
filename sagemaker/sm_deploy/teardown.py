"""Deletes an endpoint and all that belongs to it, in the order that AWS wants.

Runs on the deploying person's machine. Comes in: a name. Goes out: titles of what was deleted, or
a `DeployError`. Order: alarms, scaling, components (adapters first), endpoint, configuration,
models. Next: `scaling.py` names alarms and policies.
"""

from collections.abc import Iterable
from typing import Any

from sm_deploy.calls import Call
from sm_deploy.clients import Clients
from sm_deploy.errors import DeployError, explained
from sm_deploy.execution import PATIENT, Pace, delete, find
from sm_deploy.plan import Plan
from sm_deploy.reporting import Reporter
from sm_deploy.waiting import wait_until_gone

NAMESPACE = "sagemaker"


def delete_endpoint(
    name: str,
    clients: Clients,
    report: Reporter | None = None,
    pace: Pace = PATIENT,
) -> list[str]:
    """Delete endpoint `name`, its components, configuration, models, scaling and alarms.

    Models and configurations that this helper has not made stay. Returns what was deleted; raises
    `DeployError`, also if there is no such endpoint.
    """
    report = report or Reporter()
    sagemaker = clients["sagemaker"]
    found = find(sagemaker.describe_endpoint, EndpointName=name)
    if found is None:
        cause = f"there is none of this name in {clients.region}"
        raise DeployError(f"endpoint {name}", cause, "check the name and --region")
    # The names are read first: without the endpoint nobody knows them any more.
    config = find(
        sagemaker.describe_endpoint_config, EndpointConfigName=found["EndpointConfigName"]
    )
    components = component_descriptions(clients, name)
    models = {*_models_of(config), *_component_models(components)}
    resources = [
        *[f"endpoint/{name}/variant/{variant}" for variant in _variants(found, config)],
        *[f"inference-component/{each['InferenceComponentName']}" for each in components],
    ]
    calls = [*_scaling_deletions(clients, name, resources, report)]
    calls += [
        Call("sagemaker", "delete_inference_component", {"InferenceComponentName": each})
        for each in _adapters_first(components)
    ]
    deleted = [call.title for call in calls if delete(call, clients, pace)]
    for each in components:
        component = str(each["InferenceComponentName"])
        ask = sagemaker.describe_inference_component
        wait_until_gone(ask, pace, report, InferenceComponentName=component)
    ending = Call("sagemaker", "delete_endpoint", {"EndpointName": name})
    deleted += [ending.title] * delete(ending, clients, pace)
    wait_until_gone(sagemaker.describe_endpoint, pace, report, EndpointName=name)
    for call in _leftovers(name, [found["EndpointConfigName"]], sorted(models), report):
        deleted += [call.title] * delete(call, clients, pace)
    return deleted


def remove_replaced(
    clients: Clients,
    plan: Plan,
    config_name: str,
    models: Iterable[str],
    pace: Pace,
    report: Reporter,
) -> None:
    """After an update to `plan`: delete the configuration and the models it has replaced.

    What cannot be deleted is reported; the update itself has succeeded.
    """
    kept = plan.config.parameters["EndpointConfigName"]
    replaced = {*models}
    configs = []
    if config_name != kept:
        ask = clients["sagemaker"].describe_endpoint_config
        replaced |= {*_models_of(find(ask, EndpointConfigName=config_name))}
        configs = [config_name]
    in_use = {plan.model.parameters["ModelName"]}
    if plan.component is not None:
        in_use |= _component_models(component_descriptions(clients, plan.endpoint_name))
    for call in _leftovers(plan.endpoint_name, configs, sorted(replaced - in_use), report):
        try:
            delete(call, clients, pace)
        except DeployError as error:
            report.warn(str(error))


def component_descriptions(clients: Clients, endpoint: str) -> list[dict[str, Any]]:
    """Descriptions of every inference component of an endpoint; raises `DeployError`."""
    sagemaker = clients["sagemaker"]
    try:
        pages = sagemaker.get_paginator("list_inference_components").paginate(
            EndpointNameEquals=endpoint
        )
        names = [
            each["InferenceComponentName"] for page in pages for each in page["InferenceComponents"]
        ]
    except Exception as error:
        raise explained(error, f"components of {endpoint}") from error
    found = (
        find(sagemaker.describe_inference_component, InferenceComponentName=name) for name in names
    )
    return [each for each in found if each is not None]


def _adapters_first(components: list[dict[str, Any]]) -> list[str]:
    def is_base(component: dict[str, Any]) -> bool:
        return not component.get("Specification", {}).get("BaseInferenceComponentName")

    return [str(each["InferenceComponentName"]) for each in sorted(components, key=is_base)]


def _scaling_deletions(
    clients: Clients, name: str, resources: list[str], report: Reporter
) -> list[Call]:
    if not clients.knows("application-autoscaling"):
        report.note("local mode has no alarms and no scaling: nothing of them to delete")
        return []
    scaling = clients["application-autoscaling"]
    calls: list[Call] = []
    try:
        alarms = clients["cloudwatch"].describe_alarms(AlarmNamePrefix=f"{name}-")["MetricAlarms"]
        for resource in resources:
            of = {"ServiceNamespace": NAMESPACE, "ResourceId": resource}
            policies = scaling.describe_scaling_policies(**of)["ScalingPolicies"]
            targets = scaling.describe_scalable_targets(
                ServiceNamespace=NAMESPACE, ResourceIds=[resource]
            )["ScalableTargets"]
            calls += [
                _of("delete_scaling_policy", {**of, "PolicyName": each["PolicyName"]}, each)
                for each in policies
            ]
            calls += [_of("deregister_scalable_target", of, each) for each in targets]
    except Exception as error:
        raise explained(error, f"scaling of {name}") from error
    names = [each["AlarmName"] for each in alarms if _is_about(each, name, resources)]
    if names:
        calls.insert(0, Call("cloudwatch", "delete_alarms", {"AlarmNames": names}))
    return calls


def _of(operation: str, parameters: dict[str, str], described: dict[str, Any]) -> Call:
    dimension = described["ScalableDimension"]
    service = "application-autoscaling"
    return Call(service, operation, {**parameters, "ScalableDimension": dimension})


def _is_about(alarm: dict[str, Any], endpoint: str, resources: list[str]) -> bool:
    """Whether it watches this endpoint or one of its components, and not one of a longer name."""
    components = {each.partition("/")[2] for each in resources if each.startswith("inference")}
    values = {dimension["Value"] for dimension in alarm.get("Dimensions", [])}
    return bool(values & {endpoint, *components})


def _variants(endpoint: dict[str, Any], config: dict[str, Any] | None) -> list[str]:
    described = endpoint.get("ProductionVariants") or (config or {}).get("ProductionVariants", [])
    return [str(each["VariantName"]) for each in described]


def _models_of(config: dict[str, Any] | None) -> list[str]:
    variants = (config or {}).get("ProductionVariants", [])
    return [str(each["ModelName"]) for each in variants if each.get("ModelName")]


def _component_models(components: list[dict[str, Any]]) -> set[str]:
    models = (each.get("Specification", {}).get("ModelName") for each in components)
    return {str(model) for model in models if model}


def _leftovers(name: str, configs: list[str], models: list[str], report: Reporter) -> list[Call]:
    """Deletions of those that are named as this helper does; the others are reported."""
    calls = [
        Call("sagemaker", "delete_endpoint_config", {"EndpointConfigName": each})
        for each in configs
    ] + [Call("sagemaker", "delete_model", {"ModelName": each}) for each in models]
    kept = [call for call in calls if not call.title.split()[1].startswith(f"{name}-")]
    for call in kept:
        report.note(f"left alone, not made by this helper: {call.title.split()[1]}")
    return [call for call in calls if call not in kept]
