"""The last lines that containers have logged, from CloudWatch.

Runs on the deploying person's machine. Comes in: the name of an endpoint or component. Goes out:
log lines. Next: `waiting.py` shows them with a failure, `cli.py` by `logs`.
"""

from collections.abc import Iterator
from typing import Any

from sm_deploy.clients import Clients
from sm_deploy.errors import explained
from sm_deploy.execution import Pace, is_missing

MOST_STREAMS = 4  # one for each instance; the newest say most


def log_group(endpoint: str, component: str | None = None) -> str:
    """Name of the log group that SageMaker writes to."""
    if component:
        return f"/aws/sagemaker/InferenceComponents/{component}"
    return f"/aws/sagemaker/Endpoints/{endpoint}"


def last_lines(clients: Clients, group: str, count: int) -> list[str]:
    """The newest `count` lines, oldest first; none if the group does not exist.

    Raises `DeployError`.
    """
    logs = clients["logs"]
    try:
        streams = logs.describe_log_streams(
            logGroupName=group, orderBy="LastEventTime", descending=True, limit=MOST_STREAMS
        )["logStreams"]
        events: list[dict[str, Any]] = []
        for stream in streams:
            events += logs.get_log_events(
                logGroupName=group,
                logStreamName=stream["logStreamName"],
                limit=count,
                startFromHead=False,
            )["events"]
    except Exception as error:
        if is_missing(error):
            return []
        raise explained(error, f"log group {group}") from error
    events.sort(key=lambda event: event["timestamp"])
    return [event["message"].rstrip() for event in events[-count:]]


def follow(clients: Clients, group: str, since_ms: int, pace: Pace) -> Iterator[str]:
    """Every line logged since that time, and then each as it comes, without end."""
    logs = clients["logs"]
    seen: set[str] = set()
    while True:
        try:
            pages = logs.get_paginator("filter_log_events").paginate(
                logGroupName=group, startTime=since_ms
            )
            for event in (event for page in pages for event in page["events"]):
                if event["eventId"] not in seen:
                    since_ms = max(since_ms, event["timestamp"])
                    seen.add(event["eventId"])
                    yield event["message"].rstrip()
        except Exception as error:
            if not is_missing(error):
                raise explained(error, f"log group {group}") from error
        pace.sleep(pace.retry_seconds)


def lines_of_failure(clients: Clients, group: str, count: int = 20) -> list[str]:
    """As `last_lines`, for the report of a failure: its own failure is one more line of it."""
    if not clients.knows("logs"):
        return ["local mode has the log: `local-endpoint logs`"]
    try:
        found = last_lines(clients, group, count)
    except Exception as error:
        return [f"no log lines: {error}"]
    return found or [f"{group} has no lines: the container may not have started"]
