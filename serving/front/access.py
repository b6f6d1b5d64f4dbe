"""Cross-origin rules and the API key: what is decided before a route is chosen.

Runs in the front. Comes in: each request and response. Goes out: TGI's preflight answers, CORS
headers, and 401 without a body. Next: `app.py`, which installs both.
"""

import hmac
from collections.abc import Callable

import flask

from serving.front.responses import empty_response

VARY = "origin, access-control-request-method, access-control-request-headers"
PREFLIGHT = {
    "access-control-allow-methods": "GET,POST",
    "access-control-allow-headers": "content-type",
}
# The routes that take part in generating: they are observed and logged, and need the key.
GENERATING = frozenset(
    {
        "tgi.compat_generate",
        "tgi.generate",
        "tgi.generate_stream",
        "openai.chat",
        "openai.completions",
        "sagemaker.invocations",
        "vertex.predict",
        "configured.predict",
        "kserve.infer",
        "kserve.infer_of_version",
        "kserve.generate",
        "kserve.generate_of_version",
        "kserve.generate_stream",
        "kserve.generate_stream_of_version",
    }
)
# Everything else is open, /chat_tokenize too, as in TGI.
PROTECTED = GENERATING | {"tgi.tokenize"}


def answer_preflight() -> flask.Response | None:
    """Any OPTIONS request, on any path, gets 200 and the rules."""
    if flask.request.method != "OPTIONS":
        return None
    response = empty_response(200)
    response.headers.update(PREFLIGHT)
    return response


def cors_headers(allowed: str | None) -> Callable[[flask.Response], flask.Response]:
    """A hook that adds the headers; `allowed` is a comma separated list, None is any origin."""
    origins = None if allowed is None else {origin.strip() for origin in allowed.split(",")}

    def add(response: flask.Response) -> flask.Response:
        response.headers["vary"] = VARY
        origin = flask.request.headers.get("Origin")
        if origins is None:
            response.headers["access-control-allow-origin"] = "*"
        elif origin in origins:
            response.headers["access-control-allow-origin"] = origin
        return response

    return add


def require_api_key(key: str) -> Callable[[], flask.Response | None]:
    """A hook that refuses protected routes without the key; letter case does not matter in TGI."""
    expected = f"bearer {key}".lower().encode()

    def check() -> flask.Response | None:
        given = flask.request.headers.get("Authorization", "").lower().encode()
        if flask.request.endpoint in PROTECTED and not hmac.compare_digest(given, expected):
            return empty_response(401)
        return None

    return check
