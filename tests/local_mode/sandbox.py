"""An emulator for tests, with boto3 clients and short names for what tests do all the time."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from local_mode.emulator import Emulator, EmulatorOptions
from local_mode.hosting.runners import ProcessRunner
from local_mode.limits import Limits

FAKE = Path(__file__).parent / "fake_container.py"
ROLE = "arn:aws:iam::000000000000:role/tests"
IMAGE = "image:1"
QUICK = Limits(
    ping_seconds=0.5,
    ping_period=0.1,
    startup_ping_period=0.05,
    failed_pings=2,
    startup_seconds=20,
    stop_seconds=1,
    restart_pause=0.05,
    answer_seconds=1,
    stream_seconds=1.5,
    payload_bytes=50_000,
    payload_warning_bytes=10_000,
    async_payload_bytes=50_000,
    async_inline_bytes=1_000,
)
TIMEOUT = 30.0


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "condition not met"
        time.sleep(0.02)


@dataclass
class Sandbox:
    """An emulator, clients for it, and short names for what tests do all the time."""

    emulator: Emulator
    region: str = "eu-west-1"
    _clients: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.emulator.url

    @property
    def objects(self) -> Path:
        return self.emulator.options.objects

    @property
    def control(self) -> Any:
        return self._client("sagemaker")

    @property
    def runtime(self) -> Any:
        return self._client("sagemaker-runtime")

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = boto3.client(
                service,
                endpoint_url=self.url,
                region_name=self.region,
                aws_access_key_id="x",
                aws_secret_access_key="x",
                config=Config(retries={"total_max_attempts": 1}, read_timeout=60),
            )
        return self._clients[service]

    def make_model(self, name: str, **environment: str) -> None:
        self.control.create_model(
            ModelName=name,
            ExecutionRoleArn=ROLE,
            PrimaryContainer={"Image": IMAGE, "Environment": environment},
        )

    def make_config(self, name: str, model: str | None, **more: Any) -> None:
        variant = {"VariantName": "AllTraffic", "InstanceType": "ml.g5.xlarge"}
        variant |= {"InitialInstanceCount": 1} | more.pop("variant", {})
        if model is not None:
            variant["ModelName"] = model
        else:
            more["ExecutionRoleArn"] = ROLE
        self.control.create_endpoint_config(
            EndpointConfigName=name, ProductionVariants=[variant], **more
        )

    def make_endpoint(
        self, name: str, environment: dict[str, str] | None = None, **more: Any
    ) -> None:
        """Model, config and endpoint of one name, without waiting."""
        self.make_model(name, **environment or {})
        self.make_config(name, name, **more)
        self.control.create_endpoint(EndpointName=name, EndpointConfigName=name)

    def endpoint(self, name: str) -> Any:
        return self.control.describe_endpoint(EndpointName=name)

    def component(self, name: str) -> Any:
        return self.control.describe_inference_component(InferenceComponentName=name)

    def settle(self, name: str) -> Any:
        """Wait until an endpoint is no longer on its way; its description."""
        wait_for(lambda: self.endpoint(name)["EndpointStatus"] in ("InService", "Failed"))
        return self.endpoint(name)

    def settle_component(self, name: str) -> Any:
        wait_for(
            lambda: self.component(name)["InferenceComponentStatus"] in ("InService", "Failed")
        )
        return self.component(name)


def open_sandbox(folder: Path, command: tuple[str, ...] | None, limits: Limits) -> Sandbox:
    runner = ProcessRunner(os.environ) if command is None else ProcessRunner(os.environ, command)
    options = EmulatorOptions(runner, folder / "home", folder / "s3", port=0, limits=limits)
    return Sandbox(Emulator(options))
