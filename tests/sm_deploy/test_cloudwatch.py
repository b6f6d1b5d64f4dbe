"""Log lines of containers, from moto's CloudWatch."""

import itertools
import time
from collections.abc import Iterator

import boto3
import pytest
from moto import mock_aws

from sm_deploy.clients import Clients
from sm_deploy.cloudwatch import follow, last_lines, lines_of_failure, log_group
from sm_deploy.execution import Pace

GROUP = log_group("my-llm")


@pytest.fixture
def logging() -> Iterator[Clients]:
    """Two instances, whose lines alternate."""
    with mock_aws():
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
        logs = boto3.client("logs", region_name="eu-west-1", **keys)
        logs.create_log_group(logGroupName=GROUP)
        now = int(time.time() * 1000)
        for instance in range(2):
            stream = f"AllTraffic/i-{instance}"
            logs.create_log_stream(logGroupName=GROUP, logStreamName=stream)
            events = [
                {"timestamp": now + 10 * n + instance, "message": f"line {n} of {instance}\n"}
                for n in range(5)
            ]
            logs.put_log_events(logGroupName=GROUP, logStreamName=stream, logEvents=events)
        yield Clients("eu-west-1", made={"logs": logs})


def test_groups_are_named_as_sagemaker_names_them() -> None:
    assert log_group("e") == "/aws/sagemaker/Endpoints/e"
    assert log_group("e", "c") == "/aws/sagemaker/InferenceComponents/c"


def test_the_newest_lines_of_all_instances_in_the_order_of_time(logging: Clients) -> None:
    assert last_lines(logging, GROUP, 3) == ["line 3 of 1", "line 4 of 0", "line 4 of 1"]


def test_a_group_that_does_not_exist_has_no_lines(logging: Clients) -> None:
    assert last_lines(logging, "/aws/sagemaker/Endpoints/other", 3) == []
    (line,) = lines_of_failure(logging, "/aws/sagemaker/Endpoints/other")
    assert "may not have started" in line


def test_no_line_is_followed_twice(logging: Clients, pace: Pace) -> None:
    found = list(itertools.islice(follow(logging, GROUP, 0, pace), 10))
    assert len(set(found)) == 10


def test_local_mode_says_where_its_log_is() -> None:
    assert lines_of_failure(Clients(local="http://127.0.0.1:9"), GROUP) == [
        "local mode has the log: `local-endpoint logs`"
    ]
