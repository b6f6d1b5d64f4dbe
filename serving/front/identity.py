"""Who a request is: the ids that logs, clients and tracing systems know it by.

Runs in the front. Comes in: the headers of a request. Goes out: an `Identity` that is logged, and
the headers that repeat it in the response. Next: `observation.py`.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from werkzeug.datastructures import Headers

REQUEST_ID = "X-Request-Id"
INFERENCE_ID = "X-Amzn-SageMaker-Inference-Id"  # SageMaker's name of the same thing
TRACE_PARENT = "traceparent"
LONGEST_ID = 200  # characters

# W3C Trace Context: version, trace id, id of the caller's span, flags.
TRACE_CONTEXT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


@dataclass(frozen=True)
class Identity:
    """Ids of one request; all of them are printable ASCII."""

    request_id: str
    inference_id: str | None = None  # only if the platform sent one
    trace_id: str | None = None  # 32 hexadecimal digits

    def headers(self) -> dict[str, str]:
        """What the response repeats."""
        headers = {REQUEST_ID: self.request_id}
        if self.inference_id is not None:
            headers[INFERENCE_ID] = self.inference_id
        return headers


def identify(headers: Headers | Mapping[str, str]) -> Identity:
    """The caller's ids, so that both sides' logs can be matched; a new one if it gave none."""
    inference_id = _cleaned(headers.get(INFERENCE_ID))
    request_id = _cleaned(headers.get(REQUEST_ID)) or inference_id or secrets.token_hex(16)
    return Identity(request_id, inference_id, _trace_id(headers.get(TRACE_PARENT, "")))


def _cleaned(given: str | None) -> str | None:
    """Nothing that could end a header or forge a log line; None if nothing is left."""
    kept = "".join(c for c in given or "" if c.isascii() and c.isprintable())
    return kept.strip()[:LONGEST_ID] or None


def _trace_id(trace_parent: str) -> str | None:
    """The trace id of a well-formed header; a malformed one counts as absent."""
    match = TRACE_CONTEXT.fullmatch(trace_parent.strip())
    if match is None:
        return None
    version, trace_id, span_id, more = match.groups()
    known = version != "ff" and not (version == "00" and more)
    return trace_id if known and int(trace_id, 16) and int(span_id, 16) else None
