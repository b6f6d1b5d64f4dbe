"""Inference components: models that are put on an endpoint one by one, a server each.

Runs in the emulator. Comes in: the parameters of the component operations. Goes out: `Component`s
whose status follows their server. The number of copies is written down; any number above zero is
one server. Next: `hosted.py`.
"""

import threading
from collections.abc import Callable

from local_mode.control.catalogue import Catalogue, invalid, page
from local_mode.control.endpoints import Endpoints
from local_mode.control.hosted import Hosted
from local_mode.control.models import Fields, Models
from local_mode.hosting.hosting import Hosting, ServerRequest
from local_mode.hosting.server import Server

STARTUP_SECONDS = "ContainerStartupHealthCheckTimeoutInSeconds"


class Component(Hosted):
    """An inference component with the specification in force."""

    def __init__(self, asked: Fields, lock: threading.RLock) -> None:
        super().__init__(asked["InferenceComponentName"], lock)
        self.endpoint: str = asked["EndpointName"]
        self.specification: Fields = asked["Specification"]
        self.copies: int = asked.get("RuntimeConfig", {}).get("CopyCount", 1)
        self.variant = ""


class Components:
    """The inference component operations."""

    def __init__(
        self, models: Models, endpoints: Endpoints, hosting: Hosting, lock: threading.RLock
    ) -> None:
        self._models = models
        self._endpoints = endpoints
        self._hosting = hosting
        self._lock = lock
        self.catalogue = Catalogue[Component]("inference-component")
        endpoints.components_of = self.names_on

    def names_on(self, endpoint: str) -> list[str]:
        """Names of the components of an endpoint."""
        return [item.name for item in self.catalogue.all() if item.endpoint == endpoint]

    def create(self, asked: Fields) -> Fields:
        """CreateInferenceComponent: its server is started meanwhile."""
        if "Specification" not in asked:
            raise invalid("Local mode needs Specification; Specifications are not known to it.")
        endpoint = self._endpoints.catalogue.get(asked["EndpointName"])
        if not endpoint.hosts_components or endpoint.status != "InService":
            raise invalid(f"Endpoint {endpoint.name} takes no inference components now.")
        component = Component(asked, self._lock)
        component.variant = endpoint.variant["VariantName"]
        if asked.get("VariantName", component.variant) != component.variant:
            raise invalid(f'Could not find variant "{asked["VariantName"]}".')
        make = self._maker(component.name, component.specification)
        self.catalogue.add(component)
        if component.copies == 0:
            component.create_without_server()
        else:
            component.create(make)
        return self._arn(component)

    def update(self, asked: Fields) -> Fields:
        """UpdateInferenceComponent: the new server takes over when it is ready."""
        component = self._settled(asked["InferenceComponentName"])
        specification = asked.get("Specification", component.specification)
        copies = asked.get("RuntimeConfig", {}).get("CopyCount", component.copies)
        self._apply(component, specification, copies)
        return self._arn(component)

    def update_copies(self, asked: Fields) -> Fields:
        """UpdateInferenceComponentRuntimeConfig: zero copies stop the server."""
        component = self._settled(asked["InferenceComponentName"])
        copies = asked["DesiredRuntimeConfig"]["CopyCount"]
        if copies > 0 and component.server is not None:
            component.copies = copies
        else:
            self._apply(component, component.specification, copies)
        return self._arn(component)

    def _apply(self, component: Component, specification: Fields, copies: int) -> None:
        make = self._maker(component.name, specification)

        def adopt() -> None:
            component.specification = specification
            component.copies = copies

        if copies == 0:
            adopt()
            component.drop_server()
        else:
            component.replace(make, adopt)

    def describe(self, asked: Fields) -> Fields:
        """DescribeInferenceComponent."""
        component = self.catalogue.get(asked["InferenceComponentName"])
        reason = {"FailureReason": component.failure_reason} if component.failure_reason else {}
        running = component.copies if component.server is not None else 0
        return {
            **self._summary(component),
            "Specification": _specification_summary(component.specification),
            "RuntimeConfig": {"DesiredCopyCount": component.copies, "CurrentCopyCount": running},
            **reason,
        }

    def list(self, asked: Fields) -> Fields:
        """ListInferenceComponents."""
        items = [
            item
            for item in self.catalogue.all()
            if asked.get("EndpointNameEquals", item.endpoint) == item.endpoint
            and asked.get("VariantNameEquals", item.variant) == item.variant
        ]
        return page(items, "InferenceComponents", asked, self._summary)

    def delete(self, asked: Fields) -> Fields:
        """DeleteInferenceComponent: its server is stopped meanwhile."""
        component = self._settled(asked["InferenceComponentName"])
        component.remove(lambda: self.catalogue.remove(component.name))
        return {}

    def _settled(self, name: str) -> Component:
        component = self.catalogue.get(name)
        if component.status not in ("InService", "Failed"):
            what = self.catalogue.arn(name)
            raise invalid(f'Cannot change inference component "{what}" in {component.status}.')
        return component

    def _maker(self, name: str, specification: Fields) -> Callable[[], Server]:
        if "BaseInferenceComponentName" in specification:
            raise invalid("Local mode has no adapter components.")
        model = specification.get("ModelName")
        container = specification.get("Container", {})
        definition = dict(self._models.container(model)) if model else {}
        definition |= {key: container[key] for key in ("Image", "Environment") if key in container}
        if "ArtifactUrl" in container:
            definition["ModelDataUrl"] = container["ArtifactUrl"]
        if "Image" not in definition:
            raise invalid("Specification names neither ModelName nor Container.Image.")
        seconds = specification.get("StartupParameters", {}).get(STARTUP_SECONDS)
        request = ServerRequest(name, definition, seconds)
        return lambda: self._hosting.make_server(request)

    def _summary(self, component: Component) -> Fields:
        return {
            "InferenceComponentName": component.name,
            "InferenceComponentArn": self.catalogue.arn(component.name),
            "EndpointName": component.endpoint,
            "EndpointArn": self._endpoints.catalogue.arn(component.endpoint),
            "VariantName": component.variant,
            "InferenceComponentStatus": component.status,
            "CreationTime": component.created,
            "LastModifiedTime": component.modified,
        }

    def _arn(self, component: Component) -> Fields:
        return {"InferenceComponentArn": self.catalogue.arn(component.name)}


def _specification_summary(specification: Fields) -> Fields:
    """As Describe shows it: the image is said differently there."""
    container = dict(specification.get("Container", {}))
    image = container.pop("Image", None)
    if image is not None:
        container["DeployedImage"] = {"SpecifiedImage": image, "ResolvedImage": image}
    return specification | ({"Container": container} if container else {})
