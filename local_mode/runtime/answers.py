"""The errors of sagemaker-runtime as HTTP, and what of a container's answer is passed back.

Runs in the emulator, pure. Comes in: a `ServiceError`, or a container's answer. Goes out: Flask
responses in the form that botocore turns into its exceptions. Next: `invocations.py`.
"""

import json
import uuid

import flask

from local_mode.control.catalogue import ACCOUNT
from local_mode.errors import ServiceError
from local_mode.runtime.forwarding import Answer
from local_mode.runtime.target import Target

MODEL_ERROR = 424
PASSED_BACK = (
    "X-Amzn-SageMaker-Custom-Attributes",
    "X-Amzn-SageMaker-New-Session-Id",
    "X-Amzn-SageMaker-Closed-Session-Id",
)


def failure(error: ServiceError, **fields: object) -> flask.Response:
    """The error as the service sends it; `fields` are further members."""
    body = json.dumps({"ErrorCode": error.code, "Message": error.message, **fields})
    response = flask.Response(body, status=error.status, content_type="application/json")
    response.headers["x-amzn-ErrorType"] = error.code
    response.headers["x-amzn-RequestId"] = str(uuid.uuid4())
    return response


def model_error_text(status: int, text: str, target: Target) -> str:
    """SageMaker's sentence about a container that answered with an error."""
    side = "client" if 400 <= status < 500 else "server"
    return (
        f'Received {side} error ({status}) from primary with message "{text}". '
        f"See {target.server.log} in account {ACCOUNT} for more information."
    )


def model_error(status: int, text: str, target: Target) -> flask.Response:
    """424 with the container's status and words; status 0: there was no answer."""
    error = ServiceError("ModelError", model_error_text(status, text, target), MODEL_ERROR)
    return failure(
        error, OriginalStatusCode=status, OriginalMessage=text, LogStreamArn=target.log_stream_arn
    )


def passed_back(answer: Answer, target: Target) -> dict[str, str]:
    """The headers of the client's answer, but for its content type."""
    headers = {"x-Amzn-Invoked-Production-Variant": target.variant}
    headers |= {name: answer.headers[name] for name in PASSED_BACK if name in answer.headers}
    return headers
