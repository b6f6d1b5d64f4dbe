"""Runs calls: retries what AWS does not know yet, undoes what was made when a later step fails.

Runs on the deploying person's machine. Comes in: `Call`s. Goes out: their answers, or a
`DeployError` when nothing of this run is left. Next: `deployment.py`.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from botocore.exceptions import ClientError

from sm_deploy.calls import Call, Result
from sm_deploy.clients import Clients
from sm_deploy.errors import DeployError, code_of, explained, message_of
from sm_deploy.reporting import Reporter
from sm_deploy.secret_values import with_secrets

# AWS accepts a call before all of it knows the result: the next call may not find it yet.
UNKNOWN = re.compile(r"(?i)could not find|not found|does not exist|cannot be found|no .* found")
# What is being made or changed cannot be deleted or changed at that moment.
BUSY = re.compile(r"(?i)in.?progress|creating|updating|deleting|rolling ?back|in use|currently")
REFUSALS = ("ValidationException", "ValidationError", "ConflictException", "ResourceInUse")


@dataclass(frozen=True)
class Pace:
    """How often and how long is waited; tests make it quick."""

    poll_seconds: float = 15.0  # between looks at a status
    retry_seconds: float = 3.0  # between tries of a call
    tries: int = 6  # of a call whose resources are not known yet
    busy_seconds: float = 1800.0  # for something that must become idle before it can be deleted
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.monotonic


PATIENT = Pace()
AT_HAND = Pace(poll_seconds=1.0, retry_seconds=1.0)  # local mode: nothing takes minutes


def pace_for(clients: Clients) -> Pace:
    """How patiently AWS, or local mode, is asked."""
    return AT_HAND if clients.local else PATIENT


def run(call: Call, clients: Clients, pace: Pace, results: Mapping[str, Any] | None = None) -> Any:
    """The answer of `call`, tried again while AWS does not know what it refers to.

    `results` are answers of earlier calls by title, for `Result`s. Raises `DeployError`.
    """
    parameters = with_secrets(_with_results(dict(call.parameters), results or {}), clients)
    method = getattr(clients[call.service], call.operation)
    for left in reversed(range(pace.tries)):
        try:
            return method(**parameters)
        except Exception as error:
            if not left or not _refused(error, UNKNOWN):
                raise explained(error, call.title) from error
        pace.sleep(pace.retry_seconds)
    raise AssertionError("unreachable: the last try returns or raises")


def run_all(calls: list[Call], clients: Clients, pace: Pace) -> dict[str, Any]:
    """Answers by title, of calls that may hold `Result`s of earlier ones."""
    results: dict[str, Any] = {}
    for call in calls:
        results[call.title] = run(call, clients, pace, results)
    return results


def delete(call: Call, clients: Clients, pace: Pace) -> bool:
    """Run a deletion, waiting while its object is busy; False if it was gone already.

    Raises `DeployError`.
    """
    give_up = pace.now() + pace.busy_seconds
    while True:
        try:
            getattr(clients[call.service], call.operation)(**call.parameters)
            return True
        except Exception as error:
            if is_missing(error):
                return False
            if not _refused(error, BUSY) or pace.now() >= give_up:
                raise explained(error, call.title) from error
        pace.sleep(pace.poll_seconds)


def find(ask: Callable[..., Any], **names: str) -> dict[str, Any] | None:
    """The description that `ask` gives, or None if there is no such thing; raises `DeployError`."""
    try:
        found: dict[str, Any] = ask(**names)
    except Exception as error:
        if is_missing(error):
            return None
        raise explained(error, next(iter(names.values()), "AWS")) from error
    return found


def is_missing(error: Exception) -> bool:
    """Whether a service says that what it was asked about does not exist."""
    if code_of(error) in (
        "ResourceNotFound",
        "ResourceNotFoundException",
        "ObjectNotFoundException",
    ):
        return True
    return _refused(error, UNKNOWN)


@dataclass
class Transaction:
    """What a run has made. Left by an exception, all of it is deleted again, newest first."""

    clients: Clients
    pace: Pace
    report: Reporter
    keep_on_failure: bool = False
    made: list[tuple[Call, Callable[[], None]]] = field(default_factory=list)

    def create(self, call: Call, undo: Callable[[], None]) -> Any:
        """Run `call`, and `undo` should anything fail from now on."""
        answer = run(call, self.clients, self.pace)
        self.made.append((call, undo))
        self.report.note(f"made: {call.title}")
        return answer

    def __enter__(self) -> "Transaction":
        """Nothing is made yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Undo on any exception; what cannot be undone is reported with its name."""
        if error is None:
            return
        if self.keep_on_failure:
            for call, _ in self.made:
                self.report.warn(f"kept for inspection: {call.title}")
            return
        left = list(self.made)
        try:
            while left:
                call, undo = left[-1]
                self.report.progress(f"undoing {call.title}")
                undo()
                self.report.note(f"undone: {call.title}")
                left.pop()
        except DeployError as failure:
            # The older ones may be in use by this one: they stay too.
            names = ", ".join(call.title for call, _ in reversed(left))
            self.report.warn(f"left behind, delete it by hand: {names} ({failure.cause})")


def _refused(error: BaseException, pattern: re.Pattern[str]) -> bool:
    return (
        isinstance(error, ClientError)
        and code_of(error) in REFUSALS
        and pattern.search(message_of(error)) is not None
    )


def _with_results(value: Any, results: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_results(item, results) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_results(item, results) for item in value]
    return results[value.of][value.key] if isinstance(value, Result) else value
