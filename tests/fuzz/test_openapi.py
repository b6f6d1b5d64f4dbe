"""Every route as our own OpenAPI document describes it: schemathesis asks, the answers conform."""

import json
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from live_server import LiveServer
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from tests.fuzz.checks import check_kserve_stream, check_stream
from tests.fuzz.settings import fuzz

pytestmark = pytest.mark.e2e

ANSWER_SECONDS = 20
OPERATIONS = [
    *(("get", path) for path in ("/", "/health", "/info", "/metrics", "/ping", "/v1/models")),
    *(("post", path) for path in ("/", "/generate", "/generate_stream", "/invocations", "/vertex")),
    *(("post", path) for path in ("/ping", "/tokenize", "/chat_tokenize")),
    *(("post", path) for path in ("/v1/chat/completions", "/v1/completions")),
    *(("get", path) for path in ("/execution-parameters", "/health/live", "/health/ready")),
    *(("get", path) for path in ("/v2", "/v2/health/live", "/v2/health/ready")),
    *(
        (method, f"/v2/models/{{model}}{version}{path}")
        for version in ("", "/versions/{version}")
        for method, path in (
            *(("get", ""), ("get", "/ready")),
            *(("post", "/infer"), ("post", "/generate"), ("post", "/generate_stream")),
        )
    ),
]
CONFORMS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance", "unsupported_method",
)  # fmt: skip


@pytest.fixture(scope="session")
def api(fuzzed: LiveServer) -> Any:
    """The document as the server hands it out."""
    load_all_checks()
    return schemathesis.openapi.from_url(f"{fuzzed.url}/api-doc/openapi.json")


def test_every_documented_operation_is_asked(fuzzed: LiveServer) -> None:
    document = json.loads(fuzzed.request("GET", "/api-doc/openapi.json")[1])
    documented = {(method, path) for path, item in document["paths"].items() for method in item}
    assert documented == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_conform(api: Any, method: str, path: str) -> None:
    operation = api[path][method]
    checks = CHECKS.get_by_names(CONFORMS)
    right, wrong = (operation.as_strategy(generation_mode=mode) for mode in GenerationMode)

    @fuzz(20 if method == "post" else 2)
    @given(case=right if method == "get" else st.one_of(right, wrong))
    def ask(case: Case) -> None:
        # Not `case.call()`: it hangs up after the first events of a stream.
        response = requests.request(**case.as_transport_kwargs(), timeout=ANSWER_SECONDS)
        case.validate_response(response, checks=checks)
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            if path.startswith("/v2/"):
                check_kserve_stream(response.text)
            else:
                check_stream(response.text, openai="[DONE]" in response.text)

    ask()
