"""Models and endpoint configs: what is only written down, to be used by an endpoint later.

Runs in the emulator. Comes in: the parameters of the operations. Goes out: records that keep the
request, and refusals of what local mode cannot serve. Next: `endpoints.py`.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from local_mode.control.catalogue import Catalogue, invalid, now, page
from local_mode.control.shapes import ServiceModel

Fields = dict[str, Any]


@dataclass
class Record:
    """A model or an endpoint config: the request that made it."""

    name: str
    request: Fields
    created: datetime = field(default_factory=now)
    status: str = ""

    @property
    def modified(self) -> datetime:
        """Records do not change."""
        return self.created


class Models:
    """The model operations."""

    def __init__(self, service: ServiceModel) -> None:
        self._service = service
        self.catalogue = Catalogue[Record]("model")

    def create(self, asked: Fields) -> Fields:
        """CreateModel."""
        _check_model(asked)
        self.catalogue.add(Record(asked["ModelName"], asked))
        return {"ModelArn": self.catalogue.arn(asked["ModelName"])}

    def describe(self, asked: Fields) -> Fields:
        """DescribeModel."""
        record = self.catalogue.get(asked["ModelName"])
        known = self._service.output_members("DescribeModel")
        return {name: value for name, value in record.request.items() if name in known} | {
            "ModelArn": self.catalogue.arn(record.name),
            "CreationTime": record.created,
            "EnableNetworkIsolation": record.request.get("EnableNetworkIsolation", False),
        }

    def list(self, asked: Fields) -> Fields:
        """ListModels."""
        return page(self.catalogue.all(), "Models", asked, lambda record: {
            "ModelName": record.name,
            "ModelArn": self.catalogue.arn(record.name),
            "CreationTime": record.created,
        })  # fmt: skip

    def delete(self, asked: Fields) -> Fields:
        """DeleteModel."""
        self.catalogue.remove(asked["ModelName"])
        return {}

    def container(self, name: str) -> Fields:
        """The container definition of a model."""
        request = self.catalogue.get(name).request
        definition: Fields = request.get("PrimaryContainer") or request["Containers"][0]
        return definition


def _check_model(asked: Fields) -> None:
    """Raise `ServiceError` for a model that cannot be served here."""
    containers = asked.get("Containers", [])
    if bool(asked.get("PrimaryContainer")) == bool(containers):
        raise invalid("Exactly one of PrimaryContainer and Containers must be given.")
    if len(containers) > 1:
        raise invalid(f"Local mode serves models of one container; {len(containers)} were given.")
    container = asked.get("PrimaryContainer") or containers[0]
    if container.get("Mode", "SingleModel") != "SingleModel":
        raise invalid("Local mode serves no multi-model containers; Mode must be SingleModel.")
    if not container.get("Image"):
        raise invalid("The container has no Image.")


class EndpointConfigs:
    """The endpoint config operations."""

    def __init__(self, service: ServiceModel, models: Models) -> None:
        self._service = service
        self._models = models
        self.catalogue = Catalogue[Record]("endpoint-config")

    def create(self, asked: Fields) -> Fields:
        """CreateEndpointConfig."""
        self._check(asked)
        self.catalogue.add(Record(asked["EndpointConfigName"], asked))
        return {"EndpointConfigArn": self.catalogue.arn(asked["EndpointConfigName"])}

    def describe(self, asked: Fields) -> Fields:
        """DescribeEndpointConfig."""
        record = self.catalogue.get(asked["EndpointConfigName"])
        known = self._service.output_members("DescribeEndpointConfig")
        return {name: value for name, value in record.request.items() if name in known} | {
            "EndpointConfigArn": self.catalogue.arn(record.name),
            "CreationTime": record.created,
        }

    def list(self, asked: Fields) -> Fields:
        """ListEndpointConfigs."""
        return page(self.catalogue.all(), "EndpointConfigs", asked, lambda record: {
            "EndpointConfigName": record.name,
            "EndpointConfigArn": self.catalogue.arn(record.name),
            "CreationTime": record.created,
        })  # fmt: skip

    def delete(self, asked: Fields) -> Fields:
        """DeleteEndpointConfig."""
        self.catalogue.remove(asked["EndpointConfigName"])
        return {}

    def _check(self, asked: Fields) -> None:
        variants = asked["ProductionVariants"]
        if len(variants) > 1 or asked.get("ShadowProductionVariants"):
            given = len(variants) + len(asked.get("ShadowProductionVariants", []))
            raise invalid(
                f"Local mode starts one server per endpoint; {given} variants were given."
            )
        variant = variants[0]
        if "ServerlessConfig" in variant:
            raise invalid("Local mode has no serverless variants.")
        if "ModelName" in variant:
            self._models.catalogue.get(variant["ModelName"])
        elif "ExecutionRoleArn" not in asked:
            raise invalid("ExecutionRoleArn is required where a variant names no model.")
