"""The asynchronous call through a real boto3 client; the container is a fake."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.local_mode.sandbox import Sandbox, wait_for

OUTPUT = {"S3OutputPath": "s3://results/good", "S3FailurePath": "s3://results/bad"}


@pytest.fixture(scope="module")
def later(fakes: Sandbox) -> Sandbox:
    """`fakes` with the asynchronous endpoint `later`."""
    fakes.make_endpoint("later", AsyncInferenceConfig={"OutputConfig": OUTPUT})
    fakes.settle("later")
    return fakes


def put(sandbox: Sandbox, key: str, content: object) -> str:
    path = sandbox.objects / "inputs" / key
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return f"s3://inputs/{key}"


def written(sandbox: Sandbox, uri: str) -> bytes:
    """An object, once it is there."""
    path: Path = sandbox.objects / uri.removeprefix("s3://")
    wait_for(path.is_file)
    return path.read_bytes()


def invoke(sandbox: Sandbox, uri: str, **parameters: Any) -> Any:
    return sandbox.runtime.invoke_endpoint_async(
        EndpointName="later", InputLocation=uri, **parameters
    )


def test_the_result_is_an_object(later: Sandbox) -> None:
    uri = put(later, "echo.json", {"do": "echo"})
    answer = invoke(later, uri, InferenceId="job-1", ContentType="a/b", Accept="c/d")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert answer["InferenceId"] == "job-1"
    assert answer["OutputLocation"] == "s3://results/good/job-1.out"
    assert answer["FailureLocation"] == "s3://results/bad/job-1-error.out"
    seen = json.loads(written(later, answer["OutputLocation"]))
    assert seen["headers"]["Content-Type"] == "a/b"
    assert seen["headers"]["Accept"] == "c/d"
    assert seen["headers"]["X-Amzn-SageMaker-Inference-Id"] == "job-1"
    assert "X-Amzn-SageMaker-InputLocation" not in seen["headers"]


def test_an_error_of_the_container_is_a_failure_object(later: Sandbox) -> None:
    answer = invoke(later, put(later, "fail.json", {"do": "fail", "status": 500, "text": "oh"}))
    text = written(later, answer["FailureLocation"]).decode()
    assert 'Received server error (500) from primary with message "oh"' in text
    assert not (later.objects / answer["OutputLocation"].removeprefix("s3://")).exists()


def test_an_input_that_is_not_there_is_a_failure_object(later: Sandbox) -> None:
    answer = invoke(later, "s3://inputs/nothing.json")
    assert b"s3://inputs/nothing.json cannot be read" in written(later, answer["FailureLocation"])


def test_a_job_has_its_own_time(later: Sandbox) -> None:
    uri = put(later, "sleep.json", {"do": "sleep", "seconds": 1.3})  # more than an answer may take
    assert written(later, invoke(later, uri)["OutputLocation"]) == b"late"
    answer = invoke(later, uri, InvocationTimeoutSeconds=1)
    assert b"timed out" in written(later, answer["FailureLocation"])


def test_names_of_results_can_be_chosen(later: Sandbox) -> None:
    uri = put(later, "named.json", {"do": "echo"})
    headers = {
        "X-Amzn-SageMaker-InputLocation": uri,
        "X-Amzn-SageMaker-S3OutputPathExtension": "some/where",
        "X-Amzn-SageMaker-Filename": "result.json",
    }
    answer = httpx.post(f"{later.url}/endpoints/later/async-invocations", headers=headers)
    location = answer.headers["X-Amzn-SageMaker-OutputLocation"]
    assert location == "s3://results/good/some/where/result.json"
    assert written(later, location)


def test_a_small_body_needs_no_object(later: Sandbox) -> None:
    url = f"{later.url}/endpoints/later/async-invocations"
    answer = httpx.post(url, content=b'{"do": "echo"}')
    assert answer.status_code == 202
    assert written(later, answer.headers["X-Amzn-SageMaker-OutputLocation"])
    assert httpx.post(url, content=bytes(1001)).status_code == 400
    assert httpx.post(url).status_code == 400  # neither body nor location


def test_jobs_of_an_endpoint_that_is_deleted_fail(fakes: Sandbox) -> None:
    client = {"MaxConcurrentInvocationsPerInstance": 1}
    config = {"OutputConfig": OUTPUT, "ClientConfig": client}
    fakes.make_endpoint("brief", AsyncInferenceConfig=config)
    fakes.settle("brief")
    call = {
        "EndpointName": "brief",
        "InputLocation": put(fakes, "long.json", {"do": "sleep", "seconds": 0.5}),
    }
    fakes.runtime.invoke_endpoint_async(**call)
    waiting = fakes.runtime.invoke_endpoint_async(**call)
    fakes.control.delete_endpoint(EndpointName="brief")
    assert b"brief was deleted" in written(fakes, waiting["FailureLocation"])


def test_locations_stay_in_their_folder(later: Sandbox) -> None:
    with pytest.raises(later.runtime.exceptions.ValidationError, match="leads out of"):
        invoke(later, "s3://inputs/../../secret")


def test_an_endpoint_is_asynchronous_or_not(later: Sandbox, served: Sandbox) -> None:
    refused = later.runtime.exceptions.ValidationError
    with pytest.raises(refused, match="use InvokeEndpointAsync"):
        later.runtime.invoke_endpoint(EndpointName="later", Body=b"{}")
    with pytest.raises(refused, match="is not asynchronous"):
        served.runtime.invoke_endpoint_async(EndpointName="served", InputLocation="s3://a/b")
