"""InvokeEndpoint, InvokeEndpointWithResponseStream and the OpenAI path.

Runs in the emulator. Comes in: boto3's requests. Goes out: the container's answer in the service's
form: whole, as event-stream frames, or (on the OpenAI path) as it is. Next: `forwarding.py`.
"""

import logging
import time
from collections.abc import Iterator

import flask

from local_mode.control.api import ControlPlane
from local_mode.control.endpoints import Endpoint
from local_mode.control.shapes import ServiceModel
from local_mode.errors import ServiceError
from local_mode.limits import MEGABYTE, Limits
from local_mode.runtime import event_stream
from local_mode.runtime.answers import failure, model_error, passed_back
from local_mode.runtime.forwarding import Answer, AnswerBroken, NotConnected, TimeIsOver, send
from local_mode.runtime.target import (
    COMPONENT,
    Target,
    find_endpoint,
    find_target,
    passed_headers,
    refusal,
)

logger = logging.getLogger(__name__)

OPENAI_PATH = "/v1/chat/completions"
TIMED_OUT = "Your invocation timed out while waiting for a response from container primary."
BROKEN = "The container closed the connection before its answer was complete"


class Invocations:
    """The synchronous calls."""

    def __init__(self, control: ControlPlane, service: ServiceModel, limits: Limits) -> None:
        self._control = control
        self._service = service
        self._limits = limits

    def blueprint(self) -> flask.Blueprint:
        """Their routes."""
        routes = flask.Blueprint("invocations", __name__)
        routes.post("/endpoints/<name>/invocations")(self.invoke)
        routes.post("/endpoints/<name>/invocations-response-stream")(self.invoke_stream)
        routes.post("/endpoints/<name>/openai/v1/chat/completions")(self.chat)
        routes.post(
            "/endpoints/<name>/inference-components/<component>/openai/v1/chat/completions"
        )(self.chat)
        routes.register_error_handler(ServiceError, failure)
        return routes

    def invoke(self, name: str) -> flask.Response:
        """InvokeEndpoint: the whole answer, within 60 s."""
        headers, target, body = self._prepare(name, "InvokeEndpoint")
        try:
            answer = self._send(target, "/invocations", body, headers, self._limits.answer_seconds)
            content = self._content(answer)
        except TimeIsOver:
            return model_error(0, TIMED_OUT, target)
        except AnswerBroken as error:
            return model_error(0, f"{BROKEN}: {error}", target)
        if not answer.is_success:
            return model_error(answer.status, content.decode(errors="replace"), target)
        response = flask.Response(content, content_type=answer.headers.get("Content-Type"))
        response.headers.update(passed_back(answer, target))
        return response

    def invoke_stream(self, name: str) -> flask.Response:
        """InvokeEndpointWithResponseStream: frames as the pieces come, within 8 minutes."""
        headers, target, body = self._prepare(name, "InvokeEndpointWithResponseStream")
        try:
            answer = self._send(target, "/invocations", body, headers, self._limits.stream_seconds)
            if not answer.is_success:
                text = self._content(answer).decode(errors="replace")
                return model_error(answer.status, text, target)
        except TimeIsOver:
            return model_error(0, TIMED_OUT, target)
        except AnswerBroken as error:
            return model_error(0, f"{BROKEN}: {error}", target)
        response = flask.Response(_frames(answer), content_type=event_stream.CONTENT_TYPE)
        response.headers.update(passed_back(answer, target))
        content_type = answer.headers.get("Content-Type", "application/octet-stream")
        response.headers["X-Amzn-SageMaker-Content-Type"] = content_type
        response.call_on_close(answer.close)
        return response

    def chat(self, name: str, component: str | None = None) -> flask.Response:
        """The OpenAI path: status, body and stream are the container's."""
        headers, target, body = self._prepare(name, "InvokeEndpoint", component)
        try:
            answer = self._send(target, OPENAI_PATH, body, headers, self._limits.answer_seconds)
        except TimeIsOver:
            return model_error(0, TIMED_OUT, target)
        except AnswerBroken as error:
            return model_error(0, f"{BROKEN}: {error}", target)
        content_type = answer.headers.get("Content-Type")
        if content_type is not None and content_type.startswith("text/event-stream"):
            answer.extend(time.monotonic() + self._limits.stream_seconds)
        response = flask.Response(_pieces(answer), status=answer.status, content_type=content_type)
        response.call_on_close(answer.close)
        return response

    def _prepare(
        self, name: str, operation: str, component: str | None = None
    ) -> tuple[dict[str, str], Target, bytes]:
        """Headers for the container, the container, the body. Raises `ServiceError`."""
        body = read_body(self._limits.payload_bytes)
        endpoint = find_endpoint(self._control, name)
        _refuse_async_endpoint(endpoint)
        headers = passed_headers(self._service, operation, flask.request.headers)
        if component is not None:
            headers[COMPONENT] = component
        target = find_target(self._control, endpoint, headers)
        if len(body) > self._limits.payload_warning_bytes:
            logger.warning(
                "%s: a body of %d bytes; some of AWS's documents still limit it to %d",
                name, len(body), self._limits.payload_warning_bytes,
            )  # fmt: skip
        return headers, target, body

    def _send(
        self, target: Target, path: str, body: bytes, headers: dict[str, str], seconds: float
    ) -> Answer:
        try:
            return send(
                target.server.port, path, body, headers,
                connect=self._limits.connect_seconds, seconds=seconds,
            )  # fmt: skip
        except NotConnected as error:
            message = f"The container of {target.endpoint.name} takes no connection: {error}"
            raise ServiceError("ServiceUnavailable", message, 503) from error

    @staticmethod
    def _content(answer: Answer) -> bytes:
        try:
            return answer.content()
        finally:
            answer.close()


def read_body(limit: int) -> bytes:
    """The request's body, read to its end in any case, so that the client hears the answer.

    Raises `ServiceError` if it is longer than `limit` bytes.
    """
    pieces: list[bytes] = []
    size = 0
    while piece := flask.request.stream.read(MEGABYTE):
        size += len(piece)
        if size <= limit:
            pieces.append(piece)
    if size > limit:
        raise refusal(f"The body may have {limit} bytes. Given: {size}")
    return b"".join(pieces)


def _refuse_async_endpoint(endpoint: Endpoint) -> None:
    if "AsyncInferenceConfig" in endpoint.config:
        raise refusal(f"Endpoint {endpoint.name} is asynchronous: use InvokeEndpointAsync.")


def _frames(answer: Answer) -> Iterator[bytes]:
    """Each piece as a frame; a failure in between is one exception frame at the end."""
    try:
        while piece := answer.piece():
            yield event_stream.payload_part(piece)
    except TimeIsOver:
        yield _stream_error("ModelInvocationTimeExceeded", "The stream took too long.")
    except AnswerBroken as error:
        yield _stream_error("StreamBroken", f"{BROKEN}: {error}")


def _stream_error(code: str, message: str) -> bytes:
    return event_stream.exception("ModelStreamError", Message=message, ErrorCode=code)


def _pieces(answer: Answer) -> Iterator[bytes]:
    """The pieces as they are. Raises `ConnectionError`, which breaks the connection off."""
    try:
        while piece := answer.piece():
            yield piece
    except (TimeIsOver, AnswerBroken) as error:
        raise ConnectionAbortedError(BROKEN) from error
