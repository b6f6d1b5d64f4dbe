"""What local mode can fail with, in one form.

Leaf module. The command line prints an error as its last line and exits with 1; the control plane
turns the failure of a server into the `FailureReason` of its endpoint.
"""

from dataclasses import dataclass


@dataclass(eq=False)  # not frozen: raising sets attributes of an exception
class LocalModeError(Exception):
    """Something cannot be done: what, why, and what to do about it."""

    what: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.cause}. Remedy: {self.remedy}"


@dataclass(eq=False)
class ServiceError(Exception):
    """An answer that is an error of the service: its code, HTTP status and message."""

    code: str
    message: str
    status: int = 400

    def __str__(self) -> str:
        return self.message
