"""Endpoints: one server each, made from an endpoint config.

Runs in the emulator. Comes in: the parameters of the endpoint operations. Goes out: `Endpoint`s
whose status follows their server. Next: `hosted.py`.
"""

import threading
from collections.abc import Callable
from typing import Any

from local_mode.control.catalogue import Catalogue, invalid, page
from local_mode.control.hosted import Hosted
from local_mode.control.models import EndpointConfigs, Fields, Models
from local_mode.errors import ServiceError
from local_mode.hosting.hosting import Hosting, ServerRequest
from local_mode.hosting.server import Server

RequestOf = Callable[[Fields], ServerRequest]


class Endpoint(Hosted):
    """An endpoint with the config in force, as it was when it was taken."""

    def __init__(self, name: str, config: Fields, lock: threading.RLock) -> None:
        super().__init__(name, lock)
        self.config = config
        self.last_deployment: Fields = {}
        self.take_capacity(config["ProductionVariants"][0])

    def take_capacity(self, variant: Fields) -> None:
        """The number of instances and the weight of a variant; they are only written down."""
        self.instances: int = variant.get("InitialInstanceCount", 1)
        self.weight: float = variant.get("InitialVariantWeight", 1.0)

    @property
    def variant(self) -> Fields:
        """The one production variant."""
        variant: Fields = self.config["ProductionVariants"][0]
        return variant

    @property
    def hosts_components(self) -> bool:
        """Whether its models come as inference components."""
        return "ModelName" not in self.variant

    @property
    def is_invocable(self) -> bool:
        """Whether it takes requests."""
        return self.status in ("InService", "Updating")


class Endpoints:
    """The endpoint operations."""

    def __init__(
        self, models: Models, configs: EndpointConfigs, hosting: Hosting, lock: threading.RLock
    ) -> None:
        self._models = models
        self._configs = configs
        self._hosting = hosting
        self._lock = lock
        self.catalogue = Catalogue[Endpoint]("endpoint")
        self.components_of: Callable[[str], list[str]] = lambda endpoint: []

    def create(self, asked: Fields) -> Fields:
        """CreateEndpoint: the server is started meanwhile."""
        config = self._configs.catalogue.get(asked["EndpointConfigName"]).request
        endpoint = Endpoint(asked["EndpointName"], config, self._lock)
        endpoint.last_deployment = asked.get("DeploymentConfig", {})
        if endpoint.hosts_components:
            endpoint.create_without_server()
            self.catalogue.add(endpoint)
        else:
            make = self._maker(endpoint.name, config)
            self.catalogue.add(endpoint)
            endpoint.create(make)
        return {"EndpointArn": self.catalogue.arn(endpoint.name)}

    def update(self, asked: Fields) -> Fields:
        """UpdateEndpoint: the new server takes over when it is ready."""
        endpoint = self._settled(asked["EndpointName"])
        config = self._configs.catalogue.get(asked["EndpointConfigName"]).request
        if ("ModelName" in config["ProductionVariants"][0]) == endpoint.hosts_components:
            raise invalid("An endpoint with inference components cannot become one without.")
        kept = asked.get("RetainAllVariantProperties", False)

        def adopt() -> None:
            endpoint.config = config
            endpoint.last_deployment = asked.get("DeploymentConfig", {})
            if not kept:
                endpoint.take_capacity(endpoint.variant)

        if endpoint.hosts_components:
            adopt()
            endpoint.create_without_server()
        else:
            endpoint.replace(self._maker(endpoint.name, config), adopt)
        return {"EndpointArn": self.catalogue.arn(endpoint.name)}

    def update_capacities(self, asked: Fields) -> Fields:
        """UpdateEndpointWeightsAndCapacities: written down only; there is one server."""
        endpoint = self._settled(asked["EndpointName"])
        for wanted in asked["DesiredWeightsAndCapacities"]:
            if wanted["VariantName"] != endpoint.variant["VariantName"]:
                raise invalid(f'Could not find variant "{wanted["VariantName"]}".')
            endpoint.instances = wanted.get("DesiredInstanceCount", endpoint.instances)
            endpoint.weight = wanted.get("DesiredWeight", endpoint.weight)
        return {"EndpointArn": self.catalogue.arn(endpoint.name)}

    def describe(self, asked: Fields) -> Fields:
        """DescribeEndpoint."""
        endpoint = self.catalogue.get(asked["EndpointName"])
        optional = {
            "FailureReason": endpoint.failure_reason,
            "AsyncInferenceConfig": endpoint.config.get("AsyncInferenceConfig"),
            "LastDeploymentConfig": endpoint.last_deployment,
        }
        return {
            **self._summary(endpoint),
            "EndpointConfigName": endpoint.config["EndpointConfigName"],
            "ProductionVariants": [self._variant_summary(endpoint)],
            **{name: value for name, value in optional.items() if value},
        }

    def list(self, asked: Fields) -> Fields:
        """ListEndpoints."""
        return page(self.catalogue.all(), "Endpoints", asked, self._summary)

    def delete(self, asked: Fields) -> Fields:
        """DeleteEndpoint: its server is stopped meanwhile."""
        endpoint = self.catalogue.get(asked["EndpointName"])
        components = self.components_of(endpoint.name)
        if components:
            raise invalid(f"Delete the inference components first: {', '.join(components)}.")
        if endpoint.status != "Deleting":
            endpoint.remove(lambda: self.catalogue.remove(endpoint.name))
        return {}

    def _settled(self, name: str) -> Endpoint:
        endpoint = self.catalogue.get(name)
        if endpoint.status not in ("InService", "Failed"):
            raise invalid(f'Cannot update in-progress endpoint "{self.catalogue.arn(name)}".')
        if endpoint.status == "Failed":
            raise invalid(f'Cannot update endpoint "{self.catalogue.arn(name)}" in status Failed.')
        return endpoint

    def _maker(self, name: str, config: Fields) -> Callable[[], Server]:
        """How the server of a config is made; the model is looked up now."""
        variant = config["ProductionVariants"][0]
        model = self._models.catalogue.get(variant["ModelName"]).request
        request = ServerRequest(
            name,
            self._models.container(variant["ModelName"]),
            variant.get("ContainerStartupHealthCheckTimeoutInSeconds"),
            model.get("EnableNetworkIsolation", False),
        )
        return lambda: self._hosting.make_server(request)

    def _summary(self, endpoint: Endpoint) -> Fields:
        return {
            "EndpointName": endpoint.name,
            "EndpointArn": self.catalogue.arn(endpoint.name),
            "EndpointStatus": endpoint.status,
            "CreationTime": endpoint.created,
            "LastModifiedTime": endpoint.modified,
        }

    @staticmethod
    def _variant_summary(endpoint: Endpoint) -> Fields:
        summary: dict[str, Any] = {
            "VariantName": endpoint.variant["VariantName"],
            "CurrentWeight": endpoint.weight,
            "DesiredWeight": endpoint.weight,
            "CurrentInstanceCount": endpoint.instances,
            "DesiredInstanceCount": endpoint.instances,
        }
        if endpoint.server is not None:
            image = endpoint.server.spec.image
            summary["DeployedImages"] = [{"SpecifiedImage": image, "ResolvedImage": image}]
        return summary


def not_found(name: str, account: str) -> ServiceError:
    """What an invocation of an endpoint that is not in service gets."""
    return ServiceError("ValidationError", f"Endpoint {name} of account {account} not found.")
