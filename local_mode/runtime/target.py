"""Which container a request is for, and what reaches it.

Runs in the emulator. Comes in: the endpoint's name and the client's headers. Goes out: a `Target`,
or SageMaker's refusal, in its order: endpoint, component, variant, container, health; and the
headers that the platform lets through. Next: `invocations.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from werkzeug.datastructures import Headers

from local_mode.control.api import ControlPlane
from local_mode.control.catalogue import ACCOUNT
from local_mode.control.endpoints import Endpoint, not_found
from local_mode.control.shapes import ServiceModel
from local_mode.errors import ServiceError
from local_mode.hosting.server import Server, State

COMPONENT = "X-Amzn-SageMaker-Inference-Component"
VARIANT = "X-Amzn-SageMaker-Target-Variant"
HOSTNAME = "X-Amzn-SageMaker-Target-Container-Hostname"
MODEL = "X-Amzn-SageMaker-Target-Model"
# Under these names the streaming and the asynchronous call carry what HTTP has its own names for.
HTTP_NAMES = {
    "X-Amzn-SageMaker-Accept": "Accept",
    "X-Amzn-SageMaker-Content-Type": "Content-Type",
}


@dataclass(frozen=True)
class Target:
    """A container that takes requests."""

    endpoint: Endpoint
    server: Server
    variant: str

    @property
    def log_stream_arn(self) -> str:
        """Where SageMaker would say that the container's log is."""
        group = f"/aws/sagemaker/Endpoints/{self.endpoint.name}"
        return f"arn:aws:logs:us-east-1:{ACCOUNT}:log-group:{group}"


def refusal(message: str) -> ServiceError:
    """A request that the platform does not pass on."""
    return ServiceError("ValidationError", message)


def find_endpoint(control: ControlPlane, name: str) -> Endpoint:
    """The endpoint of this name; raises `ServiceError` if it does not take requests."""
    with control.lock:
        endpoint = control.endpoints.catalogue.find(name)
    if endpoint is None or not endpoint.is_invocable:
        raise not_found(name, ACCOUNT)
    return endpoint


def find_target(control: ControlPlane, endpoint: Endpoint, headers: Mapping[str, str]) -> Target:
    """The healthy container that `headers` mean. Raises `ServiceError`."""
    server = _find_server(control, endpoint, headers.get(COMPONENT))
    variant: str = endpoint.variant["VariantName"]
    if headers.get(VARIANT, variant) != variant:
        raise refusal(f"Variant {headers[VARIANT]} not found for endpoint {endpoint.name}.")
    if HOSTNAME in headers:
        raise refusal(f"Endpoint {endpoint.name} has one container; it takes no {HOSTNAME}.")
    if MODEL in headers:
        raise refusal(f"Endpoint {endpoint.name} is no multi-model endpoint; it takes no {MODEL}.")
    if server.state is not State.READY:
        message = f"The container of {server.spec.name} is {server.state.value}."
        raise ServiceError("ModelNotReadyException", message, 429)
    return Target(endpoint, server, variant)


def _find_server(control: ControlPlane, endpoint: Endpoint, component: str | None) -> Server:
    if not endpoint.hosts_components:
        if component is not None:
            raise refusal(f"Endpoint {endpoint.name} has no inference components.")
        if endpoint.server is None:
            raise not_found(endpoint.name, ACCOUNT)
        return endpoint.server
    if component is None:
        raise refusal(f"Inference Component Name header is required for {endpoint.name}.")
    with control.lock:
        found = control.components.catalogue.find(component)
        if found is None or found.endpoint != endpoint.name:
            raise refusal(f"Inference component {component} of {endpoint.name} not found.")
        if found.server is None:
            raise refusal(f"Inference component {component} has no capacity to process requests.")
        return found.server


def passed_headers(service: ServiceModel, operation: str, given: Headers) -> dict[str, str]:
    """The headers of `operation`, checked, as the container gets them; all others are left out.

    Raises `ServiceError` for a value that the service's model refuses.
    """
    passed: dict[str, str] = {}
    for member, shape in service.input_members(operation).items():
        name = shape.serialization.get("name", "")
        if shape.serialization.get("location") == "header" and name in given:
            service.check_header(operation, member, given[name])
            passed[HTTP_NAMES.get(name, name)] = given[name]
    return passed
