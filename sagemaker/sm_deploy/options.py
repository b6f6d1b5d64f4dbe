"""What a person chooses about an endpoint: frozen, typed, checked when made.

Runs on the deploying person's machine. Comes in: values from `cli.py` or a script of one's own.
Goes out: options, or a `DeployError` that names the field, the limit and the value. Next:
`plan.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sm_deploy.errors import DeployError

NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
LONGEST_NAME = 54  # of SageMaker's 63: the model's and the configuration's end in -12345678
ROUTINGS = ("LEAST_OUTSTANDING_REQUESTS", "RANDOM", "PREFIX_AWARE")
SECONDS = (60, 3600)  # of both start-up limits


@dataclass(frozen=True, kw_only=True)
class AsyncOptions:
    """An endpoint that takes its requests from S3 and puts its answers there."""

    output: str  # s3://bucket/prefix
    failures: str | None = None  # s3://bucket/prefix; default: only the failure topic tells
    success_topic: str | None = None  # ARN of an SNS topic
    error_topic: str | None = None
    concurrent_requests: int = 16  # of each instance
    invocation_seconds: int = 900  # longest that an answer takes; above 900 requests must ask too

    def __post_init__(self) -> None:
        _check_s3("output", self.output)
        if self.failures is not None:
            _check_s3("failures", self.failures)
        _check_range("concurrent_requests", self.concurrent_requests, 1, 1000)
        _check_range("invocation_seconds", self.invocation_seconds, 1, 3600)


@dataclass(frozen=True, kw_only=True)
class ComponentOptions:
    """An inference component: copies of a model on the instances of a shared endpoint."""

    name: str | None = None  # default: <endpoint>-model
    copies: int = 1
    devices: int | None = None  # GPUs of a copy; default: all of an instance
    memory_mib: int = 1024  # host memory of a copy; far less than an instance's can be had
    min_instances: int = 1  # 0: the endpoint can scale to zero
    max_instances: int = 1

    def __post_init__(self) -> None:
        if self.name is not None:
            _check_name("component", self.name, 63)
        _check_range("copies", self.copies, 0, 10_000)
        _check_range("memory_mib", self.memory_mib, 128, 33_554_432)
        _check_range("min_instances", self.min_instances, 0, self.max_instances)
        _check_range("max_instances", self.max_instances, 1, 10_000)


@dataclass(frozen=True, kw_only=True)
class Network:
    """Where the containers are attached; both tuples empty: SageMaker's own network."""

    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    isolated: bool = False  # no network at all: the model must come from S3

    def __post_init__(self) -> None:
        if bool(self.subnets) != bool(self.security_groups):
            raise DeployError(
                "network", "subnets and security groups belong together", "give both, or neither"
            )
        _check_range("subnets", len(self.subnets), 0, 16)
        _check_range("security_groups", len(self.security_groups), 0, 5)


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """All of a deployment. What is None is chosen from the instance type and the model's size."""

    name: str
    image: str  # <account>.dkr.ecr.<region>.amazonaws.com/<repository>:<tag>, or @sha256:<digest>
    role: str  # ARN of the execution role
    instance_type: str
    # Hub id, s3://bucket/prefix/ or s3://.../model.tar.gz; empty: what the image has. With local
    # mode also file:///directory/.
    model: str = ""
    revision: str | None = None
    quantize: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    hf_token_secret: str | None = None  # name or ARN in Secrets Manager; with #KEY if it is JSON
    hf_token_from_environment: bool = False  # put this process's HF_TOKEN into the model
    instance_count: int = 1
    gpus: int | None = None  # ranks of an engine: SM_NUM_GPUS
    cuda: str = "13.0"  # that the image needs
    ami: str | None = None
    volume_gb: int | None = None  # of instances without NVMe
    startup_seconds: int | None = None
    download_seconds: int | None = None
    routing: str = "LEAST_OUTSTANDING_REQUESTS"
    network: Network = field(default_factory=Network)
    asynchronous: AsyncOptions | None = None
    component: ComponentOptions | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    suffix: str | None = None  # of the model's and configuration's names; default: a hash of all
    force: bool = False  # go on although the model clearly does not fit

    def __post_init__(self) -> None:
        _check_name("name", self.name, LONGEST_NAME)
        if self.suffix is not None:
            _check_name("suffix", self.suffix, 63 - len(self.name) - 1)
        _check_range("instance_count", self.instance_count, 1, 10_000)
        for seconds in ("startup_seconds", "download_seconds"):
            _check_range(seconds, getattr(self, seconds), *SECONDS)
        _check_range("volume_gb", self.volume_gb, 1, 512)
        _check_range("gpus", self.gpus, 1, 16)
        if self.routing not in ROUTINGS:
            raise DeployError("routing", f"'{self.routing}' is unknown", f"one of {ROUTINGS}")
        if self.asynchronous and self.component:
            raise DeployError("component", "cannot be asynchronous", "choose one of the two")
        if self.network.isolated and self.model and not self.is_artefact:
            raise DeployError(
                "network isolation", f"'{self.model}' cannot be downloaded", "put it on S3"
            )

    @property
    def is_artefact(self) -> bool:
        """Whether SageMaker puts the model into the container, which need not download it."""
        return self.model.startswith(("s3://", "file://"))

    @property
    def component_name(self) -> str:
        """Name of the inference component."""
        chosen = self.component.name if self.component else None
        return chosen or f"{self.name}-model"


def _check_name(what: str, name: str, longest: int) -> None:
    if not NAME.fullmatch(name) or len(name) > longest:
        raise DeployError(
            what,
            f"'{name}' is not a name of at most {longest} letters, digits and inner hyphens",
            "choose another",
        )


def _check_range(what: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise DeployError(what, f"{value} is not from {least} to {most}", "choose another value")


def _check_s3(what: str, address: str) -> None:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/.*)?", address):
        raise DeployError(what, f"'{address}' is not s3://bucket/prefix", "correct the address")
