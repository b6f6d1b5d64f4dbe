"""API calls as data: made by the planners, printed by --dry-run, run by `execution.py`.

Runs on the deploying person's machine. Comes in: service, operation and parameters. Goes out:
the same, checked against botocore's model, or printable with secrets masked. Next:
`execution.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MASK = "***"
SECRET_NAME = re.compile(r"TOKEN$|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.I)
# What a planner writes in the place of a secret; `secret_values.py` fills it in when a call is run.
REFERENCE = re.compile(r"\{\{resolve:(?P<store>secretsmanager|environment):(?P<rest>.+)\}\}")


@dataclass(frozen=True)
class Call:
    """One call: `getattr(client(service), operation)(**parameters)`.

    A parameter may be a `Result`, or hold the reference of a secret.
    """

    service: str
    operation: str
    parameters: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Operation and the name of what it is about, for messages: `create_model my-llm`."""
        names = [
            value
            for key, value in self.parameters.items()
            if key in TITLES and isinstance(value, str)
        ]
        return " ".join([self.operation, *names[:1]])

    def printable(self) -> dict[str, Any]:
        """The call as JSON can hold it, without any secret."""
        return {
            "service": self.service,
            "operation": self.operation,
            "parameters": masked(dict(self.parameters)),
        }


TITLES = (
    "InferenceComponentName", "ModelName", "EndpointName", "EndpointConfigName", "PolicyName",
    "AlarmName", "ResourceId",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """The place of a value that an earlier call returns: member `key` of the call titled `of`."""

    of: str
    key: str


def is_secret(name: str) -> bool:
    """Whether an environment variable of this name usually holds a secret."""
    return SECRET_NAME.search(name) is not None


def masked(value: Any, name: str = "") -> Any:
    """A copy in which no value of a secret's name is readable; references may be."""
    if isinstance(value, Mapping):
        return {key: masked(item, key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    if isinstance(value, Result):
        return f"<{value.key} of {value.of}>"
    if isinstance(value, str) and is_secret(name) and not REFERENCE.fullmatch(value):
        return MASK
    return value
