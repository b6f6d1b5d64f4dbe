"""boto3 clients for one account and region, or for local mode.

Runs on the deploying person's machine. Comes in: region, profile, or the address of local mode.
Goes out: a client for each service, made when first asked for. Next: `execution.py`.
"""

from collections.abc import Mapping
from typing import Any

import boto3
from botocore.config import Config
from botocore.validate import ParamValidator

from sm_deploy.calls import Call, Result
from sm_deploy.errors import DeployError, explained

LOCAL_URL = "http://127.0.0.1:8081"
LOCAL_SERVICES = frozenset({"sagemaker", "sagemaker-runtime"})
LOCAL_REGION = "us-east-1"
# Seconds that a client waits for a byte: the platform's limit is 60. A retry would silently
# generate the same text again.
INVOKING = Config(read_timeout=70, retries={"total_max_attempts": 1}, tcp_keepalive=True)
MANAGING = Config(read_timeout=60, retries={"total_max_attempts": 5, "mode": "standard"})


class Clients:
    """The services that the helper uses.

    `local` is the address of local mode; it has SageMaker's two services and no others, and
    takes any credentials. `made` are clients to use instead of making them.
    """

    def __init__(
        self,
        region: str | None = None,
        profile: str | None = None,
        local: str | None = None,
        made: Mapping[str, Any] | None = None,
    ) -> None:
        self.local = local
        self._region = region or (LOCAL_REGION if local else None)
        self._profile = profile
        self._made: dict[str, Any] = dict(made or {})
        self._session: Any = None

    def knows(self, service: str) -> bool:
        """Whether there is such a service: local mode has no logs, scaling or alarms."""
        return self.local is None or service in LOCAL_SERVICES

    @property
    def region(self) -> str:
        """The region in use. Raises `DeployError` when none is chosen."""
        region = self["sagemaker"].meta.region_name
        return str(region)

    def __getitem__(self, service: str) -> Any:
        """The client of `service`. Raises `DeployError` for missing regions and profiles."""
        if service not in self._made:
            if not self.knows(service):
                raise DeployError(service, "local mode does not have it", "leave out --local")
            try:
                self._made[service] = self._make(service)
            except Exception as error:
                raise explained(error, "AWS session") from error
        return self._made[service]

    def check(self, call: Call) -> None:
        """Compare a call with botocore's model of it.

        Raises `DeployError` that names each unknown, missing or ill-typed parameter.
        """
        client = self[call.service]
        name = client.meta.method_to_api_mapping[call.operation]
        shape = client.meta.service_model.operation_model(name).input_shape
        parameters = {
            key: value for key, value in call.parameters.items() if not _holds_result(value)
        }
        omitted = set(call.parameters) - set(parameters)
        errors = ParamValidator().validate(parameters, shape).generate_report().splitlines()
        wrong = [line for line in errors if not any(f'"{name}"' in line for name in omitted)]
        if wrong:
            raise DeployError(call.title, "; ".join(wrong), "correct the named values")

    def _make(self, service: str) -> Any:
        if self._session is None:
            self._session = boto3.Session(region_name=self._region, profile_name=self._profile)
        extra: dict[str, Any] = {}
        if self.local is not None:
            extra = {"endpoint_url": self.local, "aws_access_key_id": "local"}
            extra["aws_secret_access_key"] = "local"
        config = INVOKING if service == "sagemaker-runtime" else MANAGING
        return self._session.client(service, config=config, **extra)


def _holds_result(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_result(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_result(item) for item in value)
    return isinstance(value, Result)
