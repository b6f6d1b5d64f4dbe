"""Requests to an endpoint: whole answers, and streams put together again.

Runs on the deploying person's machine. Comes in: a `Target` and a body. Goes out: bytes, or the
`data:` payloads of a stream. Raises `DeployError`. Next: `async_invoking.py` for endpoints that
answer into S3.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from sm_deploy.clients import Clients
from sm_deploy.errors import DeployError, explained

LARGEST_BODY = 25 * 1024 * 1024  # bytes
JSON = "application/json"
DONE = b"[DONE]"


@dataclass(frozen=True)
class Target:
    """What a request goes to."""

    endpoint: str
    component: str | None = None
    variant: str | None = None

    def parameters(self) -> dict[str, str]:
        """As the runtime API names them."""
        named = {
            "EndpointName": self.endpoint,
            "InferenceComponentName": self.component,
            "TargetVariant": self.variant,
        }
        return {key: value for key, value in named.items() if value}


def invoke(
    clients: Clients, target: Target, body: Mapping[str, Any] | bytes, content_type: str = JSON
) -> bytes:
    """The whole answer to `body`, JSON unless it is bytes; raises `DeployError`."""
    try:
        answer = clients["sagemaker-runtime"].invoke_endpoint(
            **target.parameters(), Body=encoded(body), ContentType=content_type
        )
        content: bytes = answer["Body"].read()
    except Exception as error:
        raise explained(error, f"invoke {target.endpoint}") from error
    return content


def invoke_stream(
    clients: Clients, target: Target, body: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Each event of the answer to `body` with `"stream": true`, parsed, as it comes.

    Raises `DeployError`, also for an error event in the stream and for one that breaks off.
    """
    try:
        answer = clients["sagemaker-runtime"].invoke_endpoint_with_response_stream(
            **target.parameters(), Body=encoded({**body, "stream": True}), ContentType=JSON
        )
        with closing(answer["Body"]) as events:
            yield from sse_events(_payloads(events))
    except Exception as error:
        raise explained(error, f"invoke {target.endpoint}") from error


def sse_events(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """JSON of each server-sent event; chunks may split or join events anywhere.

    Ends at `[DONE]`. Raises `DeployError` for an event with `error`, and for half an event.
    """
    for line in _lines(chunks):
        if not line.startswith(b"data:"):
            continue  # empty lines, comments, event names
        data = line.removeprefix(b"data:").strip()
        if data == DONE:
            return
        try:
            event: dict[str, Any] = json.loads(data)
        except ValueError as error:
            shown = data[:80].decode(errors="replace")
            raise DeployError("stream", f"not JSON: {shown}", "repeat the request") from error
        if "error" in event:
            said = event["error"]
            cause = said.get("message", said) if isinstance(said, dict) else said
            raise DeployError("stream", str(cause), "correct the request, or see the log")
        yield event


def text_of(event: Mapping[str, Any]) -> str:
    """The new text of an event, of TGI's or OpenAI's form; empty if it has none."""
    if "token" in event:
        return "" if event["token"].get("special") else str(event["token"].get("text", ""))
    for choice in event.get("choices", [])[:1]:
        return str(choice.get("delta", {}).get("content") or choice.get("text") or "")
    return ""


def encoded(body: Mapping[str, Any] | bytes) -> bytes:
    """Bytes of a body; raises `DeployError` for more than SageMaker takes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    if len(content) > LARGEST_BODY:
        raise DeployError(
            "body",
            f"{len(content)} bytes, SageMaker takes {LARGEST_BODY}",
            "send less, or use an asynchronous endpoint",
        )
    return content


def _payloads(events: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    for event in events:
        if "PayloadPart" in event:
            yield event["PayloadPart"]["Bytes"]


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
    if rest.strip():
        raise DeployError("stream", "it broke off within an event", "repeat the request")
