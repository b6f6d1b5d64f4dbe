"""Waits for an endpoint, a component or a deletion, and explains what has failed.

Runs on the deploying person's machine. Comes in: names. Goes out: the last description, or a
`DeployError` with SageMaker's reason and the container's last log lines. Next: `deployment.py`.
"""

from collections.abc import Callable
from typing import Any

from sm_deploy.clients import Clients
from sm_deploy.cloudwatch import lines_of_failure, log_group
from sm_deploy.errors import DeployError, remedy_of
from sm_deploy.execution import Pace, find
from sm_deploy.reporting import Reporter

TRANSIENT = {"Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"}
LOOKS_BEFORE_AN_UPDATE = 3  # at most, that may still show the state before it
LONGEST = 3 * 3600.0  # seconds: both start-up limits, and the time for instances


class StillBusy(DeployError):
    """The time to wait is over, and SageMaker is still at it."""


def wait_for_endpoint(
    clients: Clients, name: str, pace: Pace, report: Reporter, config: str | None = None
) -> dict[str, Any]:
    """The endpoint's description once it is InService, with `config` if that is given.

    Raises `DeployError` when it failed, or was rolled back to another configuration.
    """
    sagemaker = clients["sagemaker"]
    statuses: list[str] = []

    def ask() -> dict[str, Any]:
        found = find(sagemaker.describe_endpoint, EndpointName=name)
        if found is None:
            raise DeployError(f"endpoint {name}", "it has disappeared", "deploy it again")
        statuses.append(found["EndpointStatus"])
        has_not_begun = config not in (None, found["EndpointConfigName"]) and not TRANSIENT & {
            *statuses
        }
        if has_not_begun and len(statuses) < LOOKS_BEFORE_AN_UPDATE:
            return {**found, "EndpointStatus": "Updating"}
        return found

    found = _poll(ask, "EndpointStatus", f"endpoint {name}", pace, report)
    rolled_back = config is not None and found["EndpointConfigName"] != config
    if found["EndpointStatus"] != "InService" or rolled_back:
        status = "was rolled back" if rolled_back else f"is {found['EndpointStatus']}"
        reason = found.get("FailureReason", "SageMaker gives no reason")
        raise DeployError(
            f"endpoint {name}",
            f"it {status}: {reason}",
            remedy_of(reason),
            lines_of_failure(clients, log_group(name)),
        )
    return found


def wait_for_component(clients: Clients, name: str, pace: Pace, report: Reporter) -> dict[str, Any]:
    """The component's description once it is InService; raises `DeployError` when it failed."""
    sagemaker = clients["sagemaker"]

    def ask() -> dict[str, Any]:
        found = find(sagemaker.describe_inference_component, InferenceComponentName=name)
        if found is None:
            raise DeployError(f"component {name}", "it has disappeared", "deploy it again")
        return found

    found = _poll(ask, "InferenceComponentStatus", f"component {name}", pace, report)
    if found["InferenceComponentStatus"] != "InService":
        reason = found.get("FailureReason", "SageMaker gives no reason")
        raise DeployError(
            f"component {name}",
            f"it is {found['InferenceComponentStatus']}: {reason}",
            remedy_of(reason),
            lines_of_failure(clients, log_group("", name)),
        )
    return found


def wait_until_gone(ask: Callable[..., Any], pace: Pace, report: Reporter, **names: str) -> None:
    """Return when `ask(**names)` finds nothing any more; raises `DeployError`."""
    what = next(iter(names.values()))
    give_up = pace.now() + pace.busy_seconds
    while find(ask, **names) is not None:
        if pace.now() >= give_up:
            raise StillBusy(what, "it is still being deleted", f"see `status {what}` later")
        report.progress(f"{what}: being deleted")
        pace.sleep(pace.poll_seconds)


def _poll(
    ask: Callable[[], dict[str, Any]], key: str, what: str, pace: Pace, report: Reporter
) -> dict[str, Any]:
    began = pace.now()
    while True:
        found = ask()
        waited = pace.now() - began
        if found[key] not in TRANSIENT:
            return found
        if waited >= LONGEST:
            cause = f"it is still {found[key]} after {waited / 60:.0f} minutes"
            raise StillBusy(what, cause, "look at it with `status` and `logs`, then `delete` it")
        report.progress(f"{what}: {found[key]} for {waited / 60:.0f} min {waited % 60:.0f} s")
        pace.sleep(pace.poll_seconds)
