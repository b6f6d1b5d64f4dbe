"""InvokeEndpointAsync: requests are objects, and so are results.

Runs in the emulator; each asynchronous endpoint has threads of its own. Comes in: an InputLocation
or a small body. Goes out: 202 at once, and later an object at the output or failure location.
Notifications are not sent: there is no SNS here. Next: `forwarding.py`.
"""

import json
import logging
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import flask

from local_mode.control.api import ControlPlane
from local_mode.control.endpoints import Endpoint
from local_mode.control.shapes import ServiceModel
from local_mode.errors import LocalModeError, ServiceError
from local_mode.limits import Limits
from local_mode.objects import ObjectStore
from local_mode.runtime.answers import failure, model_error_text
from local_mode.runtime.forwarding import AnswerBroken, NotConnected, TimeIsOver, send
from local_mode.runtime.invocations import BROKEN, TIMED_OUT, read_body
from local_mode.runtime.target import Target, find_endpoint, find_target, passed_headers, refusal

logger = logging.getLogger(__name__)

OPERATION = "InvokeEndpointAsync"
PREFIX = "X-Amzn-SageMaker-"
DEFAULT_OUTPUT = "s3://sagemaker-local/async-endpoint-outputs"
DEFAULT_TTL = 21600
RETRY_SECONDS = 0.2  # between two looks at a container that is not ready
# What is for the platform, not for the container.
FOR_THE_PLATFORM = tuple(
    PREFIX + name
    for name in (
        "InputLocation", "S3OutputPathExtension", "Filename", "RequestTTLSeconds",
        "InvocationTimeoutSeconds",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One asynchronous request."""

    endpoint: Endpoint
    headers: dict[str, str]  # for the container
    body: bytes | None  # None: it is the object at `input_uri`
    input_uri: str
    output_uri: str
    failure_uri: str
    seconds: float  # for the container's answer
    expires_at: float  # CLOCK_MONOTONIC


class JobFailed(Exception):
    """A job ends with this text as its failure object."""


class AsyncInvocations:
    """The asynchronous call and its threads."""

    def __init__(
        self, control: ControlPlane, service: ServiceModel, limits: Limits, objects: ObjectStore
    ) -> None:
        self._control = control
        self._service = service
        self._limits = limits
        self._objects = objects
        self._threads: dict[Endpoint, ThreadPoolExecutor] = {}
        self._is_closed = False

    def blueprint(self) -> flask.Blueprint:
        """Its route."""
        routes = flask.Blueprint("async_invocations", __name__)
        routes.post("/endpoints/<name>/async-invocations")(self.invoke)
        routes.register_error_handler(ServiceError, failure)
        return routes

    def close(self) -> None:
        """Drop what waits; what runs ends with its container."""
        self._is_closed = True
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

    def invoke(self, name: str) -> flask.Response:
        """InvokeEndpointAsync."""
        body = read_body(self._limits.async_inline_bytes)
        endpoint = find_endpoint(self._control, name)
        if "AsyncInferenceConfig" not in endpoint.config:
            raise refusal(f"Endpoint {name} is not asynchronous: use InvokeEndpoint.")
        headers = passed_headers(self._service, OPERATION, flask.request.headers)
        inference_id = headers.setdefault(f"{PREFIX}Inference-Id", str(uuid.uuid4()))
        job = self._job(endpoint, headers, body, inference_id)
        self._pool(endpoint).submit(self._run, job)
        answer = json.dumps({"InferenceId": inference_id})
        response = flask.Response(answer, status=202, content_type="application/json")
        response.headers[f"{PREFIX}OutputLocation"] = job.output_uri
        response.headers[f"{PREFIX}FailureLocation"] = job.failure_uri
        return response

    def _job(
        self, endpoint: Endpoint, given: dict[str, str], body: bytes, inference_id: str
    ) -> Job:
        options = {name: given.get(name) for name in FOR_THE_PLATFORM}
        location, extension, filename, ttl, seconds = options.values()
        if bool(location) == bool(body):
            raise refusal("Exactly one of InputLocation and Body must be given.")
        config = endpoint.config["AsyncInferenceConfig"].get("OutputConfig", {})
        output = config.get("S3OutputPath", DEFAULT_OUTPUT)
        failures = config.get("S3FailurePath", output)
        folder = f"/{extension.strip('/')}" if extension else ""
        stem = filename or f"{inference_id}.out"
        job = Job(
            endpoint=endpoint,
            headers={name: value for name, value in given.items() if name not in options},
            body=body or None,
            input_uri=location or "",
            output_uri=f"{output.rstrip('/')}{folder}/{stem}",
            failure_uri=f"{failures.rstrip('/')}{folder}/{inference_id}-error.out",
            seconds=float(seconds or self._limits.async_seconds),
            expires_at=time.monotonic() + float(ttl or DEFAULT_TTL),
        )
        self._check_uris(job)
        return job

    def _check_uris(self, job: Job) -> None:
        """Raise `ServiceError` for a location that is no place in our S3."""
        for uri in filter(None, (job.input_uri, job.output_uri, job.failure_uri)):
            try:
                self._objects.path(uri)
            except LocalModeError as error:
                raise refusal(str(error)) from error

    def _pool(self, endpoint: Endpoint) -> ThreadPoolExecutor:
        with self._control.lock:
            if endpoint not in self._threads:
                client: dict[str, Any] = endpoint.config["AsyncInferenceConfig"].get(
                    "ClientConfig", {}
                )
                count = client.get(
                    "MaxConcurrentInvocationsPerInstance", self._limits.async_concurrency
                )
                self._threads[endpoint] = ThreadPoolExecutor(count, f"async {endpoint.name}")
            return self._threads[endpoint]

    # --- in a thread of the endpoint -----------------------------------------------------------

    def _run(self, job: Job) -> None:
        """Invoke the container; write the result, or why there is none."""
        try:
            uri, content = job.output_uri, self._result(job)
        except JobFailed as error:
            uri, content = job.failure_uri, str(error).encode()
        try:
            self._objects.write(uri, content)
        except OSError:
            logger.exception("%s: %s cannot be written", job.endpoint.name, uri)
        else:
            logger.info("%s: wrote %s", job.endpoint.name, uri)

    def _result(self, job: Job) -> bytes:
        body = self._input(job)
        target = self._ready_target(job)
        try:
            answer = send(
                target.server.port, "/invocations", body, job.headers,
                connect=self._limits.connect_seconds, seconds=job.seconds,
            )  # fmt: skip
            try:
                content = answer.content()
            finally:
                answer.close()
        except TimeIsOver as error:
            raise JobFailed(model_error_text(0, TIMED_OUT, target)) from error
        except (AnswerBroken, NotConnected) as error:
            raise JobFailed(model_error_text(0, f"{BROKEN}: {error}", target)) from error
        if not answer.is_success:
            text = content.decode(errors="replace")
            raise JobFailed(model_error_text(answer.status, text, target))
        return content

    def _input(self, job: Job) -> bytes:
        if job.body is not None:
            return job.body
        path = self._objects.path(job.input_uri)
        try:
            size = path.stat().st_size
            if size > self._limits.async_payload_bytes:
                limit = self._limits.async_payload_bytes
                raise JobFailed(f"{job.input_uri} may have {limit} bytes. Given: {size}")
            return path.read_bytes()
        except OSError as error:
            raise JobFailed(f"{job.input_uri} cannot be read ({path}): {error}") from error

    def _ready_target(self, job: Job) -> Target:
        """Wait for the container, as the queue of an asynchronous endpoint does."""
        while True:
            if not job.endpoint.is_invocable:
                raise JobFailed(f"not invoked: endpoint {job.endpoint.name} was deleted")
            try:
                return find_target(self._control, job.endpoint, {})
            except ServiceError as error:
                is_over = time.monotonic() > job.expires_at or self._is_closed
                if is_over or error.code != "ModelNotReadyException":
                    raise JobFailed(f"not invoked: {error}") from error
            time.sleep(RETRY_SECONDS)
