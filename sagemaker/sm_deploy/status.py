"""What an endpoint is at the moment, in one picture.

Runs on the deploying person's machine. Comes in: a name. Goes out: `EndpointStatus`, or a
`DeployError`. Next: `console.py` shows it.
"""

from dataclasses import dataclass
from typing import Any

from sm_deploy.clients import Clients
from sm_deploy.errors import DeployError, explained
from sm_deploy.execution import find
from sm_deploy.scaling import SERVICE, ScalingOptions, describe_scaling
from sm_deploy.teardown import component_descriptions


@dataclass(frozen=True, kw_only=True)
class ComponentStatus:
    """One inference component."""

    name: str
    status: str
    copies: str  # current of wanted
    failure: str | None


@dataclass(frozen=True, kw_only=True)
class EndpointStatus:
    """An endpoint and what belongs to it."""

    name: str
    status: str
    failure: str | None
    config: str
    variants: list[str]  # "AllTraffic: 1 of 1 x ml.g5.xlarge, image@digest"
    components: list[ComponentStatus]
    scaling: list[str]  # "inference-component/x: 0 to 4"

    @property
    def is_ready(self) -> bool:
        """Whether endpoint and components are in service."""
        return all(
            status == "InService" for status in (self.status, *[c.status for c in self.components])
        )


def endpoint_status(name: str, clients: Clients) -> EndpointStatus:
    """Ask for the endpoint and its components. Raises `DeployError` if there is none."""
    sagemaker = clients["sagemaker"]
    found = find(sagemaker.describe_endpoint, EndpointName=name)
    if found is None:
        cause = f"there is none of this name in {clients.region}"
        raise DeployError(f"endpoint {name}", cause, "check the name and --region")
    config = find(
        sagemaker.describe_endpoint_config, EndpointConfigName=found["EndpointConfigName"]
    )
    types = {
        each["VariantName"]: each.get("InstanceType", "?")
        for each in (config or {}).get("ProductionVariants", [])
    }
    variants = found.get("ProductionVariants", [])
    components = [_component(each) for each in component_descriptions(clients, name)]
    scaled = [
        *[ScalingOptions(endpoint=name, variant=each["VariantName"]) for each in variants],
        *[ScalingOptions(endpoint=name, component=each.name) for each in components],
    ]
    return EndpointStatus(
        name=name,
        status=found["EndpointStatus"],
        failure=found.get("FailureReason"),
        config=found["EndpointConfigName"],
        variants=[_variant(each, types.get(each["VariantName"], "?")) for each in variants],
        components=components,
        scaling=[line for options in scaled for line in _scaling(clients, options)],
    )


def _variant(variant: dict[str, Any], instance_type: str) -> str:
    count = f"{variant.get('CurrentInstanceCount', 0)} of {variant.get('DesiredInstanceCount', 0)}"
    images = [image.get("ResolvedImage", "?") for image in variant.get("DeployedImages", [])]
    return ", ".join([f"{variant['VariantName']}: {count} x {instance_type}", *images])


def _component(component: dict[str, Any]) -> ComponentStatus:
    runtime = component.get("RuntimeConfig", {})
    return ComponentStatus(
        name=component["InferenceComponentName"],
        status=component["InferenceComponentStatus"],
        copies=f"{runtime.get('CurrentCopyCount', 0)} of {runtime.get('DesiredCopyCount', 0)}",
        failure=component.get("FailureReason"),
    )


def _scaling(clients: Clients, options: ScalingOptions) -> list[str]:
    if not clients.knows(SERVICE):
        return []
    try:
        target = describe_scaling(clients, options)
    except Exception as error:
        raise explained(error, f"scaling of {options.endpoint}") from error
    if target is None:
        return []
    return [f"{target['ResourceId']}: {target['MinCapacity']} to {target['MaxCapacity']}"]
