"""Every way a request or a start-up can fail, in one table each.

Leaf module: anyone in `serving/` may import it. The front turns a `RequestError` into TGI's JSON
body and status; the launcher turns a `StartupError` into its last log line.
"""

from dataclasses import dataclass
from enum import Enum


class ErrorKind(Enum):
    """A kind of request failure: HTTP status, TGI's `error_type`, `err` label of the metric."""

    VALIDATION = (422, "validation", "validation")
    GENERATION = (424, "generation", "generation")
    OVERLOADED = (429, "overloaded", "overloaded")
    INCOMPLETE = (500, "incomplete_generation", "incomplete")
    INCOMPLETE_STREAM = (500, "incomplete_generation_stream", "incomplete")
    TEMPLATE = (422, "template_error", "template")
    TOOL = (422, "tool_error", "validation")
    SUFFIX = (422, "suffix not supported", "validation")
    BATCH_SIZE = (422, "batch size exceeded", "validation")
    NO_INSTANCES = (422, "Input validation error", "validation")
    UNHEALTHY = (503, "healthcheck", "generation")

    def __init__(self, status: int, error_type: str, metric_label: str) -> None:
        self.status = status
        self.error_type = error_type
        self.metric_label = metric_label


MESSAGE_PREFIX = {
    ErrorKind.VALIDATION: "Input validation error: ",
    ErrorKind.GENERATION: "Request failed during generation: ",
    ErrorKind.TEMPLATE: "Template error: ",
    ErrorKind.TOOL: "Tool error: ",
}


class RequestError(Exception):
    """A request ends with this error; `str()` is the text that goes on the wire."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(MESSAGE_PREFIX.get(kind, "") + message)
        self.kind = kind


class BodyError(Exception):
    """The body or its framing is unusable; TGI answers in plain text, not JSON."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(eq=False)  # not frozen: raising sets attributes of an exception
class StartupError(Exception):
    """The server cannot start. The launcher prints these three as its last line."""

    phase: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"start-up failed in phase '{self.phase}': {self.cause}. Remedy: {self.remedy}"
