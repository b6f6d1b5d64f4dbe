"""The control plane: `POST /` with `X-Amz-Target: SageMaker.OPERATION`, AWS JSON 1.1.

Runs in the emulator. Comes in: boto3's calls. Goes out: their answers, times as seconds. Every
operation is checked by botocore's model and runs under one lock; what takes long runs in threads of
`hosted.py`. Next: `models.py`, `endpoints.py`, `components.py`.
"""

import json
import threading
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import flask

from local_mode.control.components import Components
from local_mode.control.endpoints import Endpoints
from local_mode.control.hosted import Hosted
from local_mode.control.models import EndpointConfigs, Fields, Models
from local_mode.control.shapes import ServiceModel
from local_mode.control.tags import Tags
from local_mode.errors import ServiceError
from local_mode.hosting.hosting import Hosting

TARGET = "X-Amz-Target"
PREFIX = "SageMaker."
CONTENT_TYPE = "application/x-amz-json-1.1"

Operation = Callable[[Fields], Fields]


class ControlPlane:
    """Everything that was created, and the operations on it."""

    def __init__(self, hosting: Hosting) -> None:
        self.lock = threading.RLock()
        self._service = ServiceModel("sagemaker")
        self.models = Models(self._service)
        self.configs = EndpointConfigs(self._service, self.models)
        self.endpoints = Endpoints(self.models, self.configs, hosting, self.lock)
        self.components = Components(self.models, self.endpoints, hosting, self.lock)
        self.tags = Tags()
        self._operations = self._table()

    def call(self, operation: str, parameters: Fields) -> Fields:
        """The answer of an operation; raises `ServiceError`."""
        known = self._operations.get(operation)
        if known is None:
            reason = "is not part of local mode" if self._service.knows(operation) else "is unknown"
            raise ServiceError("UnknownOperationException", f"The operation {operation} {reason}.")
        self._service.check(operation, parameters)
        with self.lock:
            answer = known(parameters)
            self._note_tags(operation, parameters, answer)
            return answer

    def close(self) -> None:
        """Stop every server, all at once."""
        with self.lock:
            hosted: list[Hosted] = [*self.endpoints.catalogue.all()]
            hosted += self.components.catalogue.all()
            servers = [server for item in hosted for server in item.servers()]
        for server in servers:
            server.ask_to_stop()
        for server in servers:
            server.stop()

    def _note_tags(self, operation: str, parameters: Fields, answer: Fields) -> None:
        if operation.startswith("Create") and "Tags" in parameters:
            arn = next(value for name, value in answer.items() if name.endswith("Arn"))
            self.tags.add({"ResourceArn": arn, "Tags": parameters["Tags"]})

    def _table(self) -> dict[str, Operation]:
        kinds: dict[str, Any] = {
            "Model": self.models,
            "EndpointConfig": self.configs,
            "Endpoint": self.endpoints,
            "InferenceComponent": self.components,
        }
        table: dict[str, Operation] = {}
        for kind, owner in kinds.items():
            table[f"Create{kind}"] = owner.create
            table[f"Describe{kind}"] = owner.describe
            table[f"Delete{kind}"] = owner.delete
            table[f"List{kind}s"] = owner.list
        return table | {
            "UpdateEndpoint": self.endpoints.update,
            "UpdateEndpointWeightsAndCapacities": self.endpoints.update_capacities,
            "UpdateInferenceComponent": self.components.update,
            "UpdateInferenceComponentRuntimeConfig": self.components.update_copies,
            "AddTags": self.tags.add,
            "ListTags": self.tags.list,
            "DeleteTags": self.tags.delete,
        }


def blueprint(control: ControlPlane) -> flask.Blueprint:
    """The one route of the control plane."""
    routes = flask.Blueprint("control", __name__)

    @routes.post("/")
    def call() -> flask.Response:
        target = flask.request.headers.get(TARGET, "")
        if not target.startswith(PREFIX):
            message = f"the header {TARGET} must be {PREFIX}OPERATION. Given: '{target}'"
            return _failure(ServiceError("UnknownOperationException", message))
        try:
            return _answer(control.call(target.removeprefix(PREFIX), _parameters()))
        except ServiceError as error:
            return _failure(error)

    return routes


def _parameters() -> Fields:
    """The body; raises `ServiceError` if it is no JSON object."""
    try:
        parameters = json.loads(flask.request.get_data() or b"{}")
    except ValueError as error:
        raise ServiceError("SerializationException", f"the body is no JSON: {error}") from error
    if not isinstance(parameters, dict):
        raise ServiceError("SerializationException", "the body must be a JSON object")
    return parameters


def _answer(fields: Fields, status: int = 200) -> flask.Response:
    body = json.dumps(fields, default=_encoded)
    response = flask.Response(body, status=status, content_type=CONTENT_TYPE)
    response.headers["x-amzn-RequestId"] = str(uuid.uuid4())
    return response


def _failure(error: ServiceError) -> flask.Response:
    return _answer({"__type": error.code, "message": error.message}, error.status)


def _encoded(value: object) -> float:
    if isinstance(value, datetime):
        return value.timestamp()
    raise TypeError(f"{type(value).__name__} cannot be sent")
