"""An AWS account in memory behind real boto3 clients, so that botocore checks every call."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from sm_deploy.clients import Clients
from sm_deploy.execution import Pace
from sm_deploy.options import EndpointOptions

REGION = "eu-west-1"
IMAGE = f"111122223333.dkr.ecr.{REGION}.amazonaws.com/llm:1.0"
ROLE = "arn:aws:iam::111122223333:role/serving"
Parameters = dict[str, Any]


class Refusal(Exception):
    """The fake's way to answer with an error of the service."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class FakeAws:
    """Models, configurations, endpoints and components, with statuses that a test scripts."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Parameters]] = []  # those that change something
        self.things: dict[str, dict[str, Parameters]] = {
            "Model": {}, "EndpointConfig": {}, "Endpoint": {}, "InferenceComponent": {},
        }  # fmt: skip
        self.becomes = {"Endpoint": "InService", "InferenceComponent": "InService"}
        self.failure_reason = "The primary container did not pass the ping health check."
        self.rolls_back = False  # what is updated goes back to what it was
        self.failures: dict[str, list[Refusal]] = {}  # operation -> answers of its next calls
        self.answers: dict[str, Any] = {
            "DescribeImages": {"imageDetails": []},
            "DescribeAlarms": {"MetricAlarms": []},
            "DescribeScalableTargets": {"ScalableTargets": []},
            "DescribeScalingPolicies": {"ScalingPolicies": []},
            "PutScalingPolicy": {"PolicyARN": "arn:policy", "Alarms": []},
            "GetSecretValue": {"SecretString": "hf_from_secret"},
            "DescribeLogStreams": {"logStreams": [{"logStreamName": "AllTraffic/i-1"}]},
            "GetLogEvents": {"events": [{"timestamp": 1, "message": "CUDA is not there\n"}]},
            "InvokeEndpoint": {"Body": SimpleNamespace(read=lambda: b'{"generated_text": "hi"}')},
        }
        self._asked: Parameters = {}

    def client(self, service: str) -> Any:
        """A boto3 client whose calls end here instead of on the network."""
        client = boto3.client(
            service, region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x"
        )
        client.meta.events.register("before-parameter-build.*.*", self._note)
        client.meta.events.register("before-call.*.*", self._answer)
        return client

    def fail_next(self, operation: str, code: str, message: str, times: int = 1) -> None:
        """Let the next calls of an operation end with this error."""
        self.failures[operation] = [Refusal(code, message) for _ in range(times)]

    def names(self, kind: str) -> list[str]:
        """What exists of a kind."""
        return sorted(self.things[kind])

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left in the account."""
        return not any(self.things.values())

    @property
    def operations(self) -> list[str]:
        """Names of the changing calls so far."""
        return [operation for operation, _ in self.calls]

    def _note(self, params: Parameters, **_: Any) -> None:
        self._asked = copy.deepcopy(params)

    def _answer(self, model: Any, **_: Any) -> tuple[Any, Parameters]:
        operation = model.name
        if not operation.startswith(("Describe", "List", "Get")):
            self.calls.append((operation, self._asked))
        try:
            waiting = self.failures.get(operation)
            if waiting:
                raise waiting.pop(0)
            parsed = self._run(operation, self._asked)
        except Refusal as refusal:
            error = {"Error": {"Code": refusal.code, "Message": refusal.message}}
            return SimpleNamespace(status_code=400), error
        return SimpleNamespace(status_code=200), parsed or {}

    def _run(self, operation: str, asked: Parameters) -> Parameters | None:
        if operation in self.answers:
            answer: Parameters = self.answers[operation]
            return answer
        for kind in sorted(self.things, key=len, reverse=True):
            for verb in ("Create", "Describe", "Delete", "Update"):
                if operation == verb + kind:
                    return self._verb(verb, kind, asked)
        if operation == "ListInferenceComponents":
            found = self.things["InferenceComponent"]
            return {"InferenceComponents": [{"InferenceComponentName": name} for name in found]}
        return {}

    def _verb(self, verb: str, kind: str, asked: Parameters) -> Parameters | None:
        name, there = asked[f"{kind}Name"], self.things[kind]
        if verb == "Create":
            if name in there:
                raise Refusal("ValidationException", f"Cannot create already existing {kind}.")
            there[name] = {**asked, "looks": 0, "status": "Creating"}
            return {f"{kind}Arn": f"arn:{name}"}
        if name not in there:
            raise Refusal("ValidationException", f'Could not find {kind} "{name}".')
        if verb == "Delete":
            del there[name]
        elif verb == "Update":
            before = {key: there[name].get(key) for key in asked}
            there[name] |= {**asked, "looks": 0, "status": "Updating"}
            there[name]["before"] = before
        else:
            return self._described(kind, there[name])
        return {}

    def _described(self, kind: str, thing: Parameters) -> Parameters:
        """A thing that is being changed is done when it is looked at for the second time."""
        if kind not in self.becomes:
            return thing
        thing["looks"] += 1
        if thing["looks"] == 2 and thing["status"] in ("Creating", "Updating"):
            if self.rolls_back and thing["status"] == "Updating":
                thing |= thing["before"]
                thing["status"] = "InService"
            else:
                thing["status"] = self.becomes[kind]
        more: Parameters = {f"{kind}Status": thing["status"]}
        if self.rolls_back or thing["status"] == "Failed":
            more["FailureReason"] = self.failure_reason
        if kind == "Endpoint":
            config = self.things["EndpointConfig"].get(thing["EndpointConfigName"], {})
            more["ProductionVariants"] = [
                {"VariantName": each["VariantName"], "CurrentInstanceCount": 1}
                for each in config.get("ProductionVariants", [])
            ]
            if "AsyncInferenceConfig" in config:
                more["AsyncInferenceConfig"] = config["AsyncInferenceConfig"]
        return {**thing, **more}


SERVICES = (
    "sagemaker", "sagemaker-runtime", "logs", "cloudwatch", "application-autoscaling", "ecr", "iam",
    "secretsmanager",
)  # fmt: skip


@pytest.fixture
def aws() -> FakeAws:
    return FakeAws()


@pytest.fixture
def clients(aws: FakeAws) -> Clients:
    return Clients(REGION, made={service: aws.client(service) for service in SERVICES})


@pytest.fixture
def pace() -> Pace:
    """Waits for nothing: every sleep moves the clock."""
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    return Pace(sleep=sleep, now=lambda: clock.now)


@pytest.fixture
def make_options() -> Callable[..., EndpointOptions]:
    def make(**changed: Any) -> EndpointOptions:
        plain: dict[str, Any] = {
            "name": "my-llm",
            "image": IMAGE,
            "role": ROLE,
            "instance_type": "ml.g5.12xlarge",
        }
        return EndpointOptions(**(plain | changed))

    return make


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may find credentials, a region or a token of the machine."""
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "HF_TOKEN", "SAGEMAKER_ROLE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
