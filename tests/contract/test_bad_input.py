"""Statuses and bodies of requests that cannot be served."""

import pytest
from flask.testing import FlaskClient

from serving.front.app import create_app
from tests.support.front_fixtures import MakeFront

JSON = "application/json"


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/generate/",
        "/v1//models",
        "/chat/completions",
        "/v1/chat/completions/",
        "/static/x",
    ],
)
def test_unknown_paths_are_404_without_a_body(client: FlaskClient, path: str) -> None:
    for response in (client.get(path), client.post(path, json={})):
        assert (response.status_code, response.data) == (404, b"")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/generate", "POST"),
        ("DELETE", "/info", "GET,HEAD"),
        ("GET", "/invocations", "POST"),
    ],
)
def test_wrong_methods_are_405_and_say_which_are_right(
    client: FlaskClient, method: str, path: str, allowed: str
) -> None:
    response = client.open(path, method=method)
    assert (response.status_code, response.data) == (405, b"")
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("content_type", [None, "text/plain"])
def test_other_content_types_are_415(client: FlaskClient, content_type: str | None) -> None:
    response = client.post("/generate", data='{"inputs":"a"}', content_type=content_type)
    assert response.status_code == 415
    assert response.content_type == "text/plain; charset=utf-8"
    assert response.data == b"Expected request with `Content-Type: application/json`"


def test_malformed_json_is_400(client: FlaskClient) -> None:
    response = client.post("/generate", data='{"inputs":', content_type=JSON)
    assert response.status_code == 400
    assert response.content_type == "text/plain; charset=utf-8"
    assert response.data.startswith(b"Failed to parse the request body as JSON: ")


def test_wrong_types_are_422(client: FlaskClient) -> None:
    body = {"inputs": "a", "parameters": {"max_new_tokens": "many"}}
    response = client.post("/generate", json=body)
    assert response.status_code == 422
    assert response.content_type == "text/plain; charset=utf-8"
    assert response.data == (
        b"Failed to deserialize the JSON body into the target type: "
        b"parameters.max_new_tokens: Expected `int | null`, got `str`"
    )


@pytest.mark.parametrize(("length", "status"), [(30, 422), (31, 413)])
def test_the_body_limit_is_exact(make_front: MakeFront, length: int, status: int) -> None:
    client = create_app(make_front(payload_limit=30)).test_client()
    response = client.post("/generate", data=b" " * (length - 2) + b"{}", content_type=JSON)
    assert response.status_code == status


def test_a_large_body_is_413_in_plain_text(client: FlaskClient) -> None:
    response = client.post("/generate", json={"inputs": "a" * 2_000_001})
    assert response.status_code == 413
    assert response.content_type == "text/plain; charset=utf-8"
    assert response.data.startswith(b"Failed to buffer the request body: length limit exceeded")


def test_an_empty_prompt(client: FlaskClient) -> None:
    response = client.post("/generate", json={"inputs": ""})
    assert response.status_code == 422
    assert response.data == (
        b'{"error":"Input validation error: `inputs` cannot be empty","error_type":"validation"}'
    )


def test_a_prompt_that_is_too_long(client: FlaskClient) -> None:
    response = client.post("/generate", json={"inputs": " the" * 61})
    assert response.status_code == 422
    assert response.data == (
        b'{"error":"Input validation error: `inputs` must have less than 60 tokens. Given: 62",'
        b'"error_type":"validation"}'
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("grammar", {"type": "regex", "value": 1}), ("adapter_id", "x")],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: FlaskClient, field: str, value: object
) -> None:
    response = client.post("/generate", json={"inputs": "a", "parameters": {field: value}})
    assert response.status_code == 422
    assert field in response.json["error"]
    assert response.json["error_type"] == "validation"
