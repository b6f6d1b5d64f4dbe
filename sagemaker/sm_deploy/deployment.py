"""Create or update: runs a plan, waits, tries one request, leaves nothing half-made.

Runs on the deploying person's machine. Comes in: `EndpointOptions` or a `Plan`. Goes out: a
`Deployment`, or a `DeployError` when all that this run has made is deleted again. Next:
`waiting.py`, `invoking.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sm_deploy.calls import Call
from sm_deploy.clients import Clients
from sm_deploy.errors import DeployError
from sm_deploy.execution import PATIENT, Pace, Transaction, delete, find, run
from sm_deploy.options import EndpointOptions
from sm_deploy.plan import Plan
from sm_deploy.preparation import prepare
from sm_deploy.reporting import Reporter
from sm_deploy.scaling import is_scaled
from sm_deploy.smoke import smoke_test
from sm_deploy.teardown import remove_replaced
from sm_deploy.waiting import TRANSIENT, wait_for_component, wait_for_endpoint, wait_until_gone


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What a deployment has led to."""

    endpoint: str
    config: str
    model: str
    component: str | None
    outcome: str  # created, updated or unchanged


@dataclass(frozen=True, kw_only=True)
class How:
    """How a plan is carried out."""

    wait: bool = True
    smoke: bool = True  # one request after InService
    keep_on_failure: bool = False
    keep_replaced: bool = False  # the configuration and the model that an update replaces
    # An update keeps the number of instances that autoscaling has chosen; None: if it is on.
    retain: bool | None = None
    endpoint_strategy: Mapping[str, Any] | None = None  # DeploymentConfig of an endpoint's update
    component_strategy: Mapping[str, Any] | None = None  # and of a component's
    replace_foreign: bool = False  # update an endpoint that this helper has not made


PLAINLY = How()
TOKEN_IS_READABLE = (
    "the Hub's token becomes part of the model's environment: whoever may sagemaker:DescribeModel "
    "in this account can read it"
)


def deploy(
    options: EndpointOptions,
    clients: Clients,
    how: How = PLAINLY,
    report: Reporter | None = None,
    pace: Pace = PATIENT,
) -> Deployment:
    """Create the endpoint of `options`, or bring the one of that name to them.

    Raises `DeployError`; nothing that this call has made is left then, unless it is to be kept.
    """
    report = report or Reporter()
    if options.hf_token_secret or options.hf_token_from_environment:
        report.warn(TOKEN_IS_READABLE)
    plan = prepare(options, clients, report)
    return carry_out(plan, clients, how, report, pace)


def carry_out(plan: Plan, clients: Clients, how: How, report: Reporter, pace: Pace) -> Deployment:
    """As `deploy`, for a plan."""
    existing = _existing_endpoint(plan, clients, how, report, pace)
    replaced: list[str] = []
    with Transaction(clients, pace, report, how.keep_on_failure) as made:
        _make_model_and_config(plan, clients, made, pace)
        outcome = _make_endpoint(plan, existing, clients, how, made)
        if outcome != "unchanged" and (how.wait or plan.component):  # a component needs it ready
            wait_for_endpoint(clients, plan.endpoint_name, pace, report, _config_name(plan))
        if plan.component is not None:
            outcome = _make_component(plan, plan.component, clients, how, made, replaced) or outcome
            if how.wait:
                wait_for_component(clients, plan.component_name or "", pace, report)
        if how.wait and how.smoke:
            smoke_test(clients, plan, report)
    if existing and outcome == "updated" and how.wait and not how.keep_replaced:
        remove_replaced(clients, plan, existing["EndpointConfigName"], replaced, pace, report)
    return Deployment(
        endpoint=plan.endpoint_name,
        config=_config_name(plan),
        model=plan.model.parameters["ModelName"],
        component=plan.component_name,
        outcome=outcome,
    )


def update_endpoint_call(plan: Plan, how: How) -> Call:
    """The call that moves the endpoint to the plan's configuration."""
    parameters: dict[str, Any] = {
        "EndpointName": plan.endpoint_name,
        "EndpointConfigName": _config_name(plan),
    }
    if how.retain:
        parameters["RetainAllVariantProperties"] = True
    if how.endpoint_strategy:
        parameters["DeploymentConfig"] = how.endpoint_strategy
    return Call("sagemaker", "update_endpoint", parameters)


def update_component_call(component: Call, how: How) -> Call:
    """The call that brings an existing component to what `component` would create."""
    kept = ("InferenceComponentName", "Specification")
    parameters: dict[str, Any] = {key: component.parameters[key] for key in kept}
    if how.component_strategy:
        parameters["DeploymentConfig"] = how.component_strategy
    return Call("sagemaker", "update_inference_component", parameters)


def _existing_endpoint(
    plan: Plan, clients: Clients, how: How, report: Reporter, pace: Pace
) -> dict[str, Any] | None:
    """The endpoint to update; None if one is to be created. Raises `DeployError`."""
    name = plan.endpoint_name
    sagemaker = clients["sagemaker"]
    found = find(sagemaker.describe_endpoint, EndpointName=name)
    if found is None:
        return None
    if not found["EndpointConfigName"].startswith(f"{name}-") and not how.replace_foreign:
        raise DeployError(
            f"endpoint {name}",
            "the name is in use by an endpoint that this helper has not made",
            "choose another name, or pass --replace-foreign to update that endpoint",
        )
    status = found["EndpointStatus"]
    if status in TRANSIENT:
        raise DeployError(
            f"endpoint {name}",
            f"it is {status}",
            f"wait until `sagemaker-endpoint status {name}` shows InService",
        )
    if status in ("Failed", "OutOfService"):
        report.note(f"endpoint {name} is {status}: it is deleted and made anew")
        _delete_endpoint(name, clients, pace, report)
        return None
    return found


def _make_model_and_config(plan: Plan, clients: Clients, made: Transaction, pace: Pace) -> None:
    """Make both unless they exist: their names tell their content."""
    sagemaker = clients["sagemaker"]
    steps = (
        (plan.model, sagemaker.describe_model, "delete_model", "ModelName"),
        (plan.config, sagemaker.describe_endpoint_config, "delete_endpoint_config",
         "EndpointConfigName"),
    )  # fmt: skip
    for call, ask, deletion, key in steps:
        name = {key: call.parameters[key]}
        if find(ask, **name) is None:
            undo = Call("sagemaker", deletion, name)
            made.create(call, partial(_undo, undo, clients, pace))


def _make_endpoint(
    plan: Plan,
    existing: dict[str, Any] | None,
    clients: Clients,
    how: How,
    made: Transaction,
) -> str:
    """Create it, update it, or leave it. Returns `created`, `updated` or `unchanged`."""
    name, config = plan.endpoint_name, _config_name(plan)
    if existing is None:
        made.create(plan.endpoint, partial(_delete_endpoint, name, clients, made.pace, made.report))
        return "created"
    old = existing["EndpointConfigName"]
    if old == config:
        return "unchanged"
    if how.retain is None:
        how = replace(how, retain=is_scaled(clients, name))
    made.create(
        update_endpoint_call(plan, how),
        partial(_restore_endpoint, name, old, clients, made.pace, made.report),
    )
    return "updated"


def _make_component(
    plan: Plan,
    component: Call,
    clients: Clients,
    how: How,
    made: Transaction,
    replaced: list[str],
) -> str | None:
    """Create or update the component; the outcome, or None if it is as planned."""
    sagemaker = clients["sagemaker"]
    name = str(component.parameters["InferenceComponentName"])
    key = {"InferenceComponentName": name}
    found = find(sagemaker.describe_inference_component, **key)
    if found is None:
        deletion = Call("sagemaker", "delete_inference_component", key)

        def undo() -> None:
            delete(deletion, clients, made.pace)
            wait_until_gone(sagemaker.describe_inference_component, made.pace, made.report, **key)

        made.create(component, undo)
        return "created"
    if found["EndpointName"] != plan.endpoint_name:
        raise DeployError(
            f"component {name}",
            f"the name is in use on endpoint {found['EndpointName']}",
            "choose another by --component",
        )
    specification = component.parameters["Specification"]
    described = found.get("Specification", {})
    old = described.get("ModelName")
    if all(described.get(part) == wanted for part, wanted in specification.items()):
        return None
    before = {part: described[part] for part in specification if part in described}
    restore = Call("sagemaker", "update_inference_component", {**key, "Specification": before})

    def undo_update() -> None:
        run(restore, clients, made.pace)
        wait_for_component(clients, name, made.pace, made.report)

    made.create(update_component_call(component, how), undo_update)
    if old and old != specification["ModelName"]:
        replaced.append(str(old))
    return "updated"


def _config_name(plan: Plan) -> str:
    return str(plan.config.parameters["EndpointConfigName"])


def _undo(call: Call, clients: Clients, pace: Pace) -> None:
    delete(call, clients, pace)


def _delete_endpoint(name: str, clients: Clients, pace: Pace, report: Reporter) -> None:
    """Delete it and wait until it is gone: only then may its configuration go."""
    delete(Call("sagemaker", "delete_endpoint", {"EndpointName": name}), clients, pace)
    wait_until_gone(clients["sagemaker"].describe_endpoint, pace, report, EndpointName=name)


def _restore_endpoint(
    name: str, config: str, clients: Clients, pace: Pace, report: Reporter
) -> None:
    """Bring it back to `config`, unless SageMaker has done so: then nothing else is in use."""
    found = wait_for_endpoint(clients, name, pace, report)
    if found["EndpointConfigName"] != config:
        parameters = {"EndpointName": name, "EndpointConfigName": config}
        run(Call("sagemaker", "update_endpoint", parameters), clients, pace)
        wait_for_endpoint(clients, name, pace, report, config)
