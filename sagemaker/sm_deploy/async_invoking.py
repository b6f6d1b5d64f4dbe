"""Requests to an asynchronous endpoint: the body goes by S3, the answer comes by S3.

Runs on the deploying person's machine. Comes in: a `Target` and a body. Goes out: the place of
the answer, or the answer. Raises `DeployError`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from sm_deploy.clients import Clients
from sm_deploy.errors import DeployError, code_of, explained
from sm_deploy.execution import Pace
from sm_deploy.invoking import JSON, Target, encoded

LARGEST_INLINE = 128_000  # bytes that may travel in the call itself


@dataclass(frozen=True)
class Pending:
    """A request that was accepted."""

    inference_id: str
    output: str  # s3:// address where the answer will be
    failure: str | None  # and where an error would be


def invoke_async(
    clients: Clients,
    target: Target,
    body: Mapping[str, Any] | bytes | None = None,
    input_location: str | None = None,
    upload_to: str | None = None,
    timeout_seconds: int | None = None,
) -> Pending:
    """Send `body`, or name the object that holds it.

    A small body travels in the call; a larger one is put under `upload_to` (s3://bucket/prefix).
    SageMaker gives up after `timeout_seconds`, by default 900.
    Raises `DeployError`.
    """
    what = f"invoke {target.endpoint}"
    runtime = clients["sagemaker-runtime"]
    parameters: dict[str, Any] = {"EndpointName": target.endpoint, "ContentType": JSON}
    if timeout_seconds is not None:
        parameters["InvocationTimeoutSeconds"] = timeout_seconds
    shape = runtime.meta.service_model.operation_model("InvokeEndpointAsync").input_shape
    if input_location:
        parameters["InputLocation"] = input_location
    else:
        content = encoded(body or {})
        inline = "Body" in shape.members and len(content) <= LARGEST_INLINE and not upload_to
        if inline:
            parameters["Body"] = content
        elif upload_to:
            parameters["InputLocation"] = _upload(clients, upload_to, content)
        else:
            cause = f"a body of {len(content)} bytes must go by S3"
            raise DeployError(what, cause, "pass --upload-to s3://bucket/prefix")
    try:
        answer = runtime.invoke_endpoint_async(**parameters)
    except Exception as error:
        raise explained(error, what) from error
    return Pending(answer["InferenceId"], answer["OutputLocation"], answer.get("FailureLocation"))


def wait_for_answer(clients: Clients, pending: Pending, seconds: float, pace: Pace) -> bytes:
    """The answer's bytes once they are there.

    Raises `DeployError` for a failure, or after `seconds`.
    """
    give_up = pace.now() + seconds
    what = f"request {pending.inference_id}"
    while True:
        answer = _read(clients, pending.output)
        if answer is not None:
            return answer
        failure = _read(clients, pending.failure) if pending.failure else None
        if failure is not None:
            said = failure.decode(errors="replace").strip()
            raise DeployError(what, f"it failed: {said}", "correct the request, or see the log")
        if pace.now() >= give_up:
            cause = f"no answer after {seconds:.0f} s"
            raise DeployError(what, cause, f"look at {pending.output} later")
        pace.sleep(pace.retry_seconds)


def _upload(clients: Clients, prefix: str, content: bytes) -> str:
    address = f"{prefix.rstrip('/')}/{uuid4()}.json"
    bucket, key = _split(address)
    try:
        clients["s3"].put_object(Bucket=bucket, Key=key, Body=content)
    except Exception as error:
        raise explained(error, f"upload to {address}") from error
    return address


def _read(clients: Clients, address: str) -> bytes | None:
    bucket, key = _split(address)
    try:
        content: bytes = clients["s3"].get_object(Bucket=bucket, Key=key)["Body"].read()
    except Exception as error:
        if code_of(error) in ("NoSuchKey", "404"):
            return None
        raise explained(error, address) from error
    return content


def _split(address: str) -> tuple[str, str]:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return bucket, key
