"""Waiting: what is shown, and when it is over."""

from typing import Any

import pytest

from sm_deploy.clients import Clients
from sm_deploy.errors import DeployError
from sm_deploy.execution import Pace
from sm_deploy.reporting import Reporter
from sm_deploy.waiting import StillBusy, wait_for_endpoint, wait_until_gone


class Listener(Reporter):
    """Keeps progress too."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str] = []

    def progress(self, line: str) -> None:
        self.shown.append(line)


def endpoint(status: str, **more: Any) -> dict[str, Any]:
    plain = {"EndpointName": "e", "EndpointConfigName": "new", "looks": 0, "status": status}
    return plain | more


def test_status_and_time_are_shown(aws: Any, clients: Clients, pace: Pace) -> None:
    aws.things["Endpoint"]["e"] = endpoint("Creating", looks=-4)
    listener = Listener()
    wait_for_endpoint(clients, "e", pace, listener)
    assert listener.shown[0] == "endpoint e: Creating for 0 min 0 s"
    assert listener.shown[-1] == "endpoint e: Creating for 1 min 0 s"


def test_an_endpoint_that_is_never_ready(aws: Any, clients: Clients, pace: Pace) -> None:
    aws.things["Endpoint"]["e"] = endpoint("Creating", looks=10)
    with pytest.raises(StillBusy, match="it is still Creating after 180 minutes"):
        wait_for_endpoint(clients, "e", pace, Reporter())


def test_an_update_that_has_not_begun_yet_is_no_rollback(
    aws: Any, clients: Clients, pace: Pace
) -> None:
    aws.things["Endpoint"]["e"] = endpoint("InService", EndpointConfigName="old")

    class Starter(Reporter):
        def progress(self, line: str) -> None:
            aws.things["Endpoint"]["e"] = endpoint("Updating", looks=aws_looks.pop(0))

    aws_looks = [0, 1]
    found = wait_for_endpoint(clients, "e", pace, Starter(), config="new")
    assert found["EndpointConfigName"] == "new"


def test_an_update_that_never_begins_is_told(aws: Any, clients: Clients, pace: Pace) -> None:
    aws.things["Endpoint"]["e"] = endpoint("InService", EndpointConfigName="old")
    with pytest.raises(DeployError, match="rolled back"):
        wait_for_endpoint(clients, "e", pace, Reporter(), config="new")


def test_an_endpoint_that_disappears(clients: Clients, pace: Pace) -> None:
    with pytest.raises(DeployError, match="it has disappeared"):
        wait_for_endpoint(clients, "e", pace, Reporter())


def test_a_deletion_that_takes_too_long(aws: Any, clients: Clients, pace: Pace) -> None:
    aws.things["Endpoint"]["e"] = endpoint("Deleting", looks=10)
    ask = clients["sagemaker"].describe_endpoint
    with pytest.raises(StillBusy, match="still being deleted"):
        wait_until_gone(ask, pace, Reporter(), EndpointName="e")
