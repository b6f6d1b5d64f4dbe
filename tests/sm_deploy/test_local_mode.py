"""The command line against local mode: no account, a real server, a plain boto3 client after it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from click.testing import CliRunner, Result

from sm_deploy.cli import main

ROOT = Path(__file__).parents[2]
START_SECONDS = 60

pytestmark = pytest.mark.e2e


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of local mode, started for this module."""
    home, port = tmp_path_factory.mktemp("local"), free_port()
    command = [
        sys.executable, "-m", "local_mode", "up", "--no-endpoint", "--runner", "process",
        "--port", str(port), "--home", str(home), "--objects", str(home / "s3"),
    ]  # fmt: skip
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=os.environ.copy())
    url = f"http://127.0.0.1:{port}"
    try:
        give_up = time.monotonic() + START_SECONDS
        while not answers(url):
            assert server.poll() is None, (home / "log").read_text()
            assert time.monotonic() < give_up, "local mode does not answer"
            time.sleep(0.1)
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(40)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False
    return True


def run(address: str, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, f"--local={address}"])


def test_from_nothing_to_an_answer_and_back(address: str) -> None:
    deployed = run(address, "deploy", "my-llm")
    assert deployed.exit_code == 0, deployed.stderr
    runtime = boto3.client(
        "sagemaker-runtime", endpoint_url=address, region_name="us-east-1",
        aws_access_key_id="x", aws_secret_access_key="x",
    )  # fmt: skip
    body = json.dumps({"inputs": "Count to 10", "parameters": {"max_new_tokens": 60}})
    answer = runtime.invoke_endpoint(
        EndpointName="my-llm", Body=body, ContentType="application/json"
    )
    whole = json.loads(answer["Body"].read())[0]["generated_text"]
    streamed = run(address, "invoke", "my-llm", "Count to 10", "--stream")
    assert streamed.stdout.strip() == whole.removeprefix("Count to 10").strip()
    assert run(address, "status", "my-llm").exit_code == 0
    deleted = run(address, "delete", "my-llm", "--yes")
    assert deleted.exit_code == 0, deleted.stderr
    assert run(address, "status", "my-llm").exit_code == 1


def test_a_setting_that_the_server_refuses_leaves_nothing(address: str) -> None:
    done = run(address, "deploy", "bad", "--env", "MAX_TOTAL_TOKENS=many")
    assert done.exit_code == 1
    assert "invalid value 'many' for MAX_TOTAL_TOKENS" in done.stderr
    sagemaker = boto3.client(
        "sagemaker", endpoint_url=address, region_name="us-east-1",
        aws_access_key_id="x", aws_secret_access_key="x",
    )  # fmt: skip
    assert sagemaker.list_endpoints(NameContains="bad")["Endpoints"] == []
    assert sagemaker.list_models(NameContains="bad")["Models"] == []
