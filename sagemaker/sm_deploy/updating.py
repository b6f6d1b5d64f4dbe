"""Changes to a running endpoint: what stays is read from AWS, what is named is replaced.

Runs on the deploying person's machine. Comes in: `Changes`, `Strategy`. Goes out: a `Plan` that
`deployment.carry_out` brings about, with SageMaker's own roll-back on alarms. Next:
`deployment.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sm_deploy.calls import Call
from sm_deploy.clients import Clients
from sm_deploy.deployment import (
    PLAINLY,
    TOKEN_IS_READABLE,
    Deployment,
    How,
    carry_out,
    update_component_call,
    update_endpoint_call,
)
from sm_deploy.environment import checked_environment, secret_reference
from sm_deploy.errors import DeployError
from sm_deploy.execution import PATIENT, Pace, Transaction, delete, find
from sm_deploy.instance_change import check_ranks, moved_variant
from sm_deploy.plan import Plan, tag_list, unique_name
from sm_deploy.reporting import Reporter
from sm_deploy.scaling import alarm_call, is_scaled
from sm_deploy.strategy import Strategy
from sm_deploy.teardown import component_descriptions

ERROR_RATE_ALARM, ERRORS_A_MINUTE = "errors", 5.0


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is to be different; None and empty: stays."""

    image: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()  # names of variables
    hf_token_secret: str | None = None
    instance_type: str | None = None
    instance_count: int | None = None
    startup_seconds: int | None = None
    suffix: str | None = None  # for an image whose tag was moved: everything else is the same

    @property
    def of_model(self) -> bool:
        """Whether the container changes."""
        named = (self.image, self.environment, self.removed, self.hf_token_secret, self.suffix)
        return any(named)

    @property
    def of_variant(self) -> bool:
        """Whether the instances change."""
        return any((self.instance_type, self.instance_count, self.startup_seconds))


def update(
    name: str,
    changes: Changes,
    strategy: Strategy,
    clients: Clients,
    component: str | None = None,
    how: How = PLAINLY,
    report: Reporter | None = None,
    pace: Pace = PATIENT,
) -> Deployment:
    """Bring `changes` to an endpoint, or to a component of it.

    Raises `DeployError`; the endpoint serves what it served before, then.
    """
    report = report or Reporter()
    if changes.hf_token_secret:
        report.warn(TOKEN_IS_READABLE)
    plan, how, alarms = plan_update(name, changes, strategy, clients, component, how)
    with Transaction(clients, pace, report, how.keep_on_failure) as made:
        for alarm in alarms:
            deletion = Call(
                "cloudwatch", "delete_alarms", {"AlarmNames": [alarm.parameters["AlarmName"]]}
            )

            def undo(deletion: Call = deletion) -> None:
                delete(deletion, clients, pace)

            made.create(alarm, undo)
        return carry_out(plan, clients, how, report, pace)


def plan_update(
    name: str,
    changes: Changes,
    strategy: Strategy,
    clients: Clients,
    component: str | None = None,
    how: How = PLAINLY,
) -> tuple[Plan, How, list[Call]]:
    """The plan, how to carry it out, and the alarms to make before it; makes nothing.

    Raises `DeployError` if there is nothing to change, or no such endpoint or component.
    """
    if not (changes.of_model or changes.of_variant):
        raise DeployError("update", "nothing to change was named", "see `update --help`")
    sagemaker = clients["sagemaker"]
    endpoint = _found(sagemaker.describe_endpoint, EndpointName=name)
    config = _found(
        sagemaker.describe_endpoint_config, EndpointConfigName=endpoint["EndpointConfigName"]
    )
    old_component = _component(clients, name, config, component)
    variant = config["ProductionVariants"][0]
    model_name = (
        old_component["Specification"]["ModelName"] if old_component else variant["ModelName"]
    )
    model = _found(sagemaker.describe_model, ModelName=model_name)
    if changes.instance_type and not old_component:
        environment = model.get("PrimaryContainer", {}).get("Environment", {})
        check_ranks(environment, changes.environment, changes.instance_type, _offered(clients))
    model_call = _model_call(name, model, changes, clients)
    new_name = model_call.parameters["ModelName"]
    config_call = _config_call(name, config, None if old_component else new_name, changes, clients)
    component_call = _component_call(old_component, new_name, changes) if old_component else None
    alarms = []
    if strategy.watch_errors:
        alarms = [_error_alarm(name, variant["VariantName"])]
    plan = Plan(
        model_call,
        config_call,
        Call(
            "sagemaker",
            "create_endpoint",
            {
                "EndpointName": name,
                "EndpointConfigName": config_call.parameters["EndpointConfigName"],
            },
        ),
        component_call,
    )
    watched = [str(alarm.parameters["AlarmName"]) for alarm in alarms]
    chosen = replace(
        how,
        replace_foreign=True,  # it was named on purpose
        retain=changes.instance_count is None and is_scaled(clients, name),
        endpoint_strategy=strategy.for_endpoint(watched),
        component_strategy=strategy.for_component(watched),
    )
    for call in plan:
        clients.check(call)
    return plan, chosen, alarms


def update_calls(
    plan: Plan, how: How, alarms: list[Call], endpoint: Mapping[str, Any]
) -> list[Call]:
    """What `update` would call, for --dry-run; `endpoint` is its description before it."""
    calls = list(alarms)
    calls.append(plan.model)
    if plan.config.parameters["EndpointConfigName"] != endpoint["EndpointConfigName"]:
        calls += [plan.config, update_endpoint_call(plan, how)]
    if plan.component is not None:
        calls.append(update_component_call(plan.component, how))
    return calls


def _model_call(name: str, model: Mapping[str, Any], changes: Changes, clients: Clients) -> Call:
    """The same container with the changes; the same call and name if there are none."""
    parameters = _creatable(model, "create_model", clients)
    if not changes.of_model:
        return Call("sagemaker", "create_model", parameters)
    if "PrimaryContainer" not in model:
        raise DeployError(
            f"model {model['ModelName']}", "it has several containers", "deploy it anew"
        )
    container = dict(model["PrimaryContainer"])
    environment = {
        key: value
        for key, value in container.get("Environment", {}).items()
        if key not in changes.removed
    }
    environment |= changes.environment
    if changes.hf_token_secret:
        environment["HF_TOKEN"] = secret_reference(changes.hf_token_secret)
    container["Environment"] = checked_environment(environment)
    if changes.image:
        container["Image"] = changes.image
    del parameters["ModelName"]
    parameters["PrimaryContainer"] = container
    parameters["Tags"] = tag_list({})
    new = unique_name(name, parameters, changes.suffix)
    return Call("sagemaker", "create_model", {"ModelName": new, **parameters})


def _config_call(
    name: str,
    config: Mapping[str, Any],
    model_name: str | None,
    changes: Changes,
    clients: Clients,
) -> Call:
    """The same configuration with the changes, and the model unless components name it."""
    parameters = _creatable(config, "create_endpoint_config", clients)
    variants = [dict(each) for each in parameters["ProductionVariants"]]
    variant = variants[0]
    if changes.instance_type:
        variant = moved_variant(variant, changes.instance_type, _offered(clients))
        variants[0] = variant
    variant |= {"ModelName": model_name} if model_name else {}
    if changes.instance_count:
        variant["InitialInstanceCount"] = changes.instance_count
    if changes.startup_seconds and model_name:
        variant["ContainerStartupHealthCheckTimeoutInSeconds"] = changes.startup_seconds
    if variants == parameters["ProductionVariants"] and not (changes.suffix and model_name):
        return Call("sagemaker", "create_endpoint_config", parameters)
    del parameters["EndpointConfigName"]
    parameters |= {"ProductionVariants": variants, "Tags": tag_list({})}
    new = unique_name(name, parameters, changes.suffix)
    return Call("sagemaker", "create_endpoint_config", {"EndpointConfigName": new, **parameters})


def _component_call(component: Mapping[str, Any], model_name: str, changes: Changes) -> Call:
    """The call that would make the component as it is to be."""
    old = component["Specification"]
    kept = ("StartupParameters", "ComputeResourceRequirements")
    specification = {"ModelName": model_name, **{key: old[key] for key in kept if key in old}}
    if changes.startup_seconds:
        limit = {"ContainerStartupHealthCheckTimeoutInSeconds": changes.startup_seconds}
        specification["StartupParameters"] = {**old.get("StartupParameters", {}), **limit}
    copies = component.get("RuntimeConfig", {}).get("DesiredCopyCount", 1)
    parameters = {
        "InferenceComponentName": component["InferenceComponentName"],
        "EndpointName": component["EndpointName"],
        "VariantName": component["VariantName"],
        "Specification": specification,
        "RuntimeConfig": {"CopyCount": copies},
    }
    return Call("sagemaker", "create_inference_component", parameters)


def _component(
    clients: Clients, endpoint: str, config: Mapping[str, Any], name: str | None
) -> dict[str, Any] | None:
    """The component to update; None for an endpoint whose variant names its model."""
    if config["ProductionVariants"][0].get("ModelName"):
        return None
    there = {
        each["InferenceComponentName"]: each for each in component_descriptions(clients, endpoint)
    }
    if name is None and len(there) == 1:
        return next(iter(there.values()))
    if name not in there:
        shown = ", ".join(there) or "none"
        cause = f"'{name}' is not one of its components" if name else "which component is meant?"
        raise DeployError(f"endpoint {endpoint}", cause, f"pass --component; there are: {shown}")
    return there[name]


def _creatable(described: Mapping[str, Any], operation: str, clients: Clients) -> dict[str, Any]:
    """Of a description only what the creating call takes."""
    client = clients["sagemaker"]
    name = client.meta.method_to_api_mapping[operation]
    members = client.meta.service_model.operation_model(name).input_shape.members
    return {key: value for key, value in described.items() if key in members}


def _offered(clients: Clients) -> list[str]:
    """Every hosting type that boto3 knows."""
    model = clients["sagemaker"].meta.service_model
    return list(model.shape_for("ProductionVariantInstanceType").enum)


def _found(ask: Any, **names: str) -> dict[str, Any]:
    found = find(ask, **names)
    if found is None:
        what = next(iter(names.values()))
        raise DeployError(what, "it does not exist", "check the name and --region")
    return found


def _error_alarm(endpoint: str, variant: str) -> Call:
    dimensions = [
        {"Name": "EndpointName", "Value": endpoint},
        {"Name": "VariantName", "Value": variant},
    ]
    name = f"{endpoint}-{variant}-{ERROR_RATE_ALARM}"
    return alarm_call(name, "Invocation5XXErrors", dimensions, ERRORS_A_MINUTE, "Sum")
