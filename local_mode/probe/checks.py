"""What a container must do to be served by SageMaker, one function for each demand.

Runs in the probe. Comes in: a container that is ready. Goes out: a sentence on what was seen, or a
`CheckFailed` with what was wrong. Next: `run.py`, which runs them in this order.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from local_mode.limits import MEGABYTE, Limits
from local_mode.probe.client import JSON, Reply, Site

LIMITS = Limits()
PINGS = 20
LOADED_STREAMS = 4
NEW_TOKENS = 8
LOADED_TOKENS = 48
PROMPT = "Count to 10"
INFERENCE_ID = "X-Amzn-SageMaker-Inference-Id"
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
SESSION = "X-Amzn-SageMaker-Session-Id"


class CheckFailed(Exception):
    """The container does not do what the contract asks."""


@dataclass(frozen=True)
class Check:
    """A demand; one that is not `required` only warns."""

    name: str
    function: Callable[[Site], str]
    required: bool = True


def native_body(stream: bool = False, tokens: int = NEW_TOKENS) -> dict[str, Any]:
    """A request in TGI's form."""
    return {"inputs": PROMPT, "parameters": {"max_new_tokens": tokens}, "stream": stream}


def chat_body(**more: object) -> dict[str, Any]:
    """A request in the form of OpenAI's chats."""
    messages = [{"role": "user", "content": PROMPT}]
    return {"messages": messages, "max_tokens": NEW_TOKENS, **more}


def expect(condition: object, message: str) -> None:
    """Raise `CheckFailed` with `message` unless the condition holds."""
    if not condition:
        raise CheckFailed(message)


def expect_status(reply: Reply, *statuses: int) -> None:
    """Raise `CheckFailed` if the status is another."""
    wanted = " or ".join(map(str, statuses))
    expect(reply.status in statuses, f"expected {wanted}; got {reply.shown}")


def ping(site: Site) -> str:
    """GET /ping: 200, connection in 250 ms, answer in 2 s, time after time."""
    replies = [site.request("GET", "/ping", timeout=LIMITS.ping_seconds) for _ in range(PINGS)]
    for reply in replies:
        expect_status(reply, 200)
    connect = max(reply.connect_seconds for reply in replies)
    expect(connect < LIMITS.connect_seconds, f"a connection took {connect * 1000:.0f} ms")
    slowest = max(reply.seconds for reply in replies)
    return f"{PINGS} of {PINGS} answered 200, the slowest in {slowest * 1000:.0f} ms"


def ping_by_post(site: Site) -> str:
    """POST /ping is a health check too."""
    expect_status(site.request("POST", "/ping", timeout=LIMITS.ping_seconds), 200)
    return "200"


def ping_under_load(site: Site) -> str:
    """Health checks do not wait behind generations."""
    body = native_body(tokens=LOADED_TOKENS)
    threads = [
        threading.Thread(target=_quietly, args=(site, body), daemon=True)
        for _ in range(LOADED_STREAMS)
    ]
    for thread in threads:
        thread.start()
    text = ping(site)
    for thread in threads:
        thread.join()
    return text


def _quietly(site: Site, body: object) -> None:
    """Load only: what becomes of these requests is the business of other checks."""
    try:
        site.request("POST", "/invocations", body)
    except OSError:
        return


def native(site: Site) -> str:
    """`inputs` on /invocations: a list with `generated_text`."""
    reply = site.request("POST", "/invocations", native_body())
    expect_status(reply, 200)
    expect(reply.headers.get("content-type", "").startswith("application/json"), reply.shown)
    answer = reply.json()
    found = isinstance(answer, list) and answer and isinstance(answer[0], dict)
    expect(found and "generated_text" in answer[0], f"no generated_text in {reply.shown}")
    return f"{reply.seconds:.2f} s"


def native_stream(site: Site) -> str:
    """`stream: true` on /invocations: chunked events, each sent when it is made."""
    with site.stream("/invocations", native_body(stream=True)) as stream:
        expect(stream.status == 200, f"expected 200; got {stream.status}")
        kind = stream.headers.get("content-type", "")
        expect(kind.startswith("text/event-stream"), f"the content type is '{kind}'")
        coding = stream.headers.get("transfer-encoding", "")
        expect(coding == "chunked", f"the transfer encoding is '{coding}'")
        pieces = list(stream.pieces)
    events = b"".join(pieces).count(b"data:")
    expect(events > 1, f"{events} events")
    expect(len(pieces) > 1, "all events came at once: something buffers them")
    return f"{events} events in {len(pieces)} pieces"


def chat_shape(site: Site) -> str:
    """`messages` on /invocations: a chat completion."""
    return _choices(site.request("POST", "/invocations", chat_body()))


def prompt_shape(site: Site) -> str:
    """`prompt` on /invocations: a completion."""
    body = {"prompt": PROMPT, "max_tokens": NEW_TOKENS}
    return _choices(site.request("POST", "/invocations", body))


def openai_route(site: Site) -> str:
    """/v1/chat/completions with an empty model, as SageMaker's OpenAI path sends it."""
    return _choices(site.request("POST", "/v1/chat/completions", chat_body(model="")))


def openai_stream(site: Site) -> str:
    """The same as a stream, which ends in [DONE]."""
    with site.stream("/v1/chat/completions", chat_body(model="", stream=True)) as stream:
        expect(stream.status == 200, f"expected 200; got {stream.status}")
        content = b"".join(stream.pieces)
    expect(content.rstrip().endswith(b"data: [DONE]"), f"it ends in {content[-80:]!r}")
    events = content.count(b"data:")
    return f"{events} events"


def _choices(reply: Reply) -> str:
    expect_status(reply, 200)
    answer = reply.json()
    expect(isinstance(answer, dict) and answer.get("choices"), f"no choices in {reply.shown}")
    return f"{reply.seconds:.2f} s"


def malformed_body(site: Site) -> str:
    """A body that is no JSON is the client's fault."""
    return _client_error(site.request("POST", "/invocations", b'{"inputs": '))


def invalid_parameter(site: Site) -> str:
    """So is a parameter out of range; the error is JSON and says which."""
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 0}}
    reply = site.request("POST", "/invocations", body)
    _client_error(reply)
    answer = reply.json()
    expect("error" in answer and "error_type" in answer, f"no error_type in {reply.shown}")
    return f"{reply.status} {answer['error_type']}"


def wrong_method(site: Site) -> str:
    """GET /invocations is refused."""
    reply = site.request("GET", "/invocations")
    expect_status(reply, 404, 405)
    return str(reply.status)


def _client_error(reply: Reply) -> str:
    expect(400 <= reply.status < 500, f"expected 4xx; got {reply.shown}")
    return str(reply.status)


def platform_headers(site: Site) -> str:
    """The headers that the platform adds do not disturb."""
    headers = JSON | {
        INFERENCE_ID: "probe-1",
        ATTRIBUTES: "probe=1",
        "X-Amzn-SageMaker-Target-Variant": "AllTraffic",
        "X-Amzn-SageMaker-Forwarded-Api": "InvokeEndpoint",
    }
    expect_status(site.request("POST", "/invocations", native_body(), headers), 200)
    return "200"


def unknown_session(site: Site) -> str:
    """A session that does not exist is refused or ignored."""
    reply = site.request(
        "POST",
        "/invocations",
        native_body(),
        JSON | {SESSION: "00000000-0000-0000-0000-000000000000"},
    )
    expect_status(reply, 200, 400)
    return str(reply.status)


def large_body(site: Site) -> str:
    """A body of 25 MB is read: SageMaker lets it through."""
    limit = 25_000_000  # what both readings of the limit, of 10**6 and of 2**20, allow
    body = b'{"inputs": "Count to 10", "parameters": {"max_new_tokens": 1}}'
    reply = site.request("POST", "/invocations", body + b" " * (limit - len(body)))
    expect_status(reply, 200)
    return f"{limit / MEGABYTE:.0f} MiB in {reply.seconds:.2f} s"


def hang_up(site: Site) -> str:
    """A client that goes away in the middle of a stream leaves the container healthy."""
    with site.stream("/invocations", native_body(stream=True, tokens=LOADED_TOKENS)) as stream:
        next(stream.pieces, b"")
    expect_status(site.request("GET", "/ping", timeout=LIMITS.ping_seconds), 200)
    native(site)
    return "it goes on serving"


def side_routes(site: Site) -> str:
    """/health, /metrics, /info and /v1/models answer 200."""
    paths = ("/health", "/metrics", "/info", "/v1/models")
    missing = [path for path in paths if site.request("GET", path).status != 200]
    expect(not missing, f"not there: {', '.join(missing)}")
    return "200"


CHECKS = (
    Check("ping", ping),
    Check("ping-by-post", ping_by_post, required=False),
    Check("inputs", native),
    Check("inputs-stream", native_stream),
    Check("messages", chat_shape),
    Check("prompt", prompt_shape),
    Check("openai", openai_route),
    Check("openai-stream", openai_stream),
    Check("malformed-body", malformed_body),
    Check("invalid-parameter", invalid_parameter),
    Check("wrong-method", wrong_method),
    Check("platform-headers", platform_headers),
    Check("unknown-session", unknown_session),
    Check("large-body", large_body, required=False),
    Check("hang-up", hang_up),
    Check("ping-under-load", ping_under_load),
    Check("side-routes", side_routes, required=False),
)
