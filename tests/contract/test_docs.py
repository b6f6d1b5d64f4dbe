"""The OpenAPI document describes this server, and the page shows it without the network."""

import json
import re
from typing import Any

import flask
import jsonschema
import pytest
from flask.testing import FlaskClient
from openapi_spec_validator import OpenAPIV31SpecValidator

from serving.front.access import PROTECTED
from serving.front.app import create_app
from serving.front.documentation.routes import assets
from serving.front.text.tokenization import Tokenizer
from tests.support.fake_engine import ScriptedEngine
from tests.support.front_fixtures import MakeFront

DOCUMENT = "/api-doc/openapi.json"


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    response = client.get(DOCUMENT)
    assert response.content_type == "application/json"
    content: dict[str, Any] = json.loads(response.data)
    return content


def validator(document: dict[str, Any], name: str) -> jsonschema.Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return jsonschema.Draft202012Validator(schema)


def operations(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(path, method) for path, item in document["paths"].items() for method in item}


class TestDocument:
    def test_it_is_valid(self, document: dict[str, Any]) -> None:
        assert document["openapi"] == "3.1.0"
        assert document["info"]["title"] == "Text Generation Inference"
        assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []

    def test_it_has_every_rule_and_no_other(
        self, app: flask.Flask, document: dict[str, Any]
    ) -> None:
        rules = {
            (rule.rule.replace("<", "{").replace(">", "}"), method.lower())
            for rule in app.url_map.iter_rules()
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
            if not rule.endpoint.startswith("docs.")
        }
        assert operations(document) == rules

    def test_protected_routes_say_so(self, app: flask.Flask, document: dict[str, Any]) -> None:
        locked = {
            (rule.rule.replace("<", "{").replace(">", "}"), "post")
            for rule in app.url_map.iter_rules()
            if rule.endpoint in PROTECTED
        }
        found = {
            (path, method)
            for path, method in operations(document)
            if "security" in document["paths"][path][method]
        }
        assert found == locked
        for path, method in found:
            assert "401" in document["paths"][path][method]["responses"]

    def test_the_key_is_demanded_only_where_one_is_set(self, make_front: MakeFront) -> None:
        open_, locked = (
            create_app(make_front(api_key=key)).test_client().get(DOCUMENT).json
            for key in (None, "k")
        )
        assert open_["paths"]["/generate"]["post"]["security"] == [{"ApiKey": []}, {}]
        assert locked["paths"]["/generate"]["post"]["security"] == [{"ApiKey": []}]

    def test_operations_have_names_of_their_own(self, document: dict[str, Any]) -> None:
        names = [
            document["paths"][path][method]["operationId"] for path, method in operations(document)
        ]
        assert len(names) == len(set(names))

    def test_generating_routes_list_their_errors(self, document: dict[str, Any]) -> None:
        responses = document["paths"]["/generate"]["post"]["responses"]
        assert set(responses) == {
            *("200", "400", "401", "413", "415", "422", "424", "429", "500", "503")
        }
        assert set(responses["422"]["content"]) == {"application/json", "text/plain"}
        assert set(responses["415"]["content"]) == {"text/plain"}
        assert "Retry-After" in responses["429"]["headers"]

    def test_streams_are_described_by_their_events(self, document: dict[str, Any]) -> None:
        def data(path: str) -> Any:
            content = document["paths"][path]["post"]["responses"]["200"]["content"]
            return content["text/event-stream"]["schema"]["properties"]["data"]

        native = data("/generate_stream")
        assert native["contentMediaType"] == "application/json"
        assert {"$ref": "#/components/schemas/StreamResponse"} in native["contentSchema"]["anyOf"]
        assert data("/v1/chat/completions")["anyOf"][0] == {"const": "[DONE]"}

    def test_limits_are_those_of_the_server(self, make_front: MakeFront) -> None:
        client = create_app(make_front(max_best_of=7, max_stop_sequences=9)).test_client()
        parameters = client.get(DOCUMENT).json["components"]["schemas"]["GenerateParameters"]
        best_of = parameters["properties"]["best_of"]["anyOf"][0]
        assert (best_of["minimum"], best_of["maximum"]) == (0, 7)
        assert parameters["properties"]["stop"]["maxItems"] == 9


OUT_OF_RANGE = [
    ("best_of", 3),
    ("temperature", 0),
    ("temperature", -1.5),
    ("repetition_penalty", 0),
    ("frequency_penalty", 2.5),
    ("top_k", 0),
    ("top_p", 0),
    ("top_p", 1.5),
    ("typical_p", 0),
    ("typical_p", 1.5),
    ("max_new_tokens", 0),
    ("stop", ["a"] * 5),
    ("truncate", 0),
    ("seed", 2**64),
    ("top_n_tokens", 6),
    ("max_time", 0),
    ("output_frequency_penalty", -3),
    ("output_presence_penalty", 3),
    ("logit_bias", {"1": 101}),
    ("logit_bias", {"a": 1}),
    ("grammar", {"type": "xml", "value": ""}),
    ("do_sample", None),
]
IN_RANGE = [
    ("temperature", 0.1),
    ("frequency_penalty", -2),
    ("top_k", 1),
    ("top_p", 1),
    ("typical_p", 0.5),
    ("max_new_tokens", 1),
    ("stop", ["a"] * 4),
    ("truncate", 1),
    ("seed", 2**64 - 1),
    ("top_n_tokens", 5),
    ("max_time", 0.5),
    ("output_presence_penalty", 2),
    ("logit_bias", {"1": -100}),
    ("grammar", {"type": "json", "value": {}}),
    ("adapter_id", None),
]


class TestRangesAreTheServers:
    """What the document forbids is refused, what it allows is taken."""

    @pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE)
    def test_outside(
        self, client: FlaskClient, document: dict[str, Any], field: str, value: object
    ) -> None:
        body = {"inputs": "the", "parameters": {field: value, "do_sample": True} | {field: value}}
        assert not validator(document, "GenerateRequest").is_valid(body)
        assert client.post("/generate", json=body).status_code == 422

    @pytest.mark.parametrize(("field", "value"), IN_RANGE)
    def test_inside(
        self,
        client: FlaskClient,
        engine: ScriptedEngine,
        tokenizer: Tokenizer,
        document: dict[str, Any],
        field: str,
        value: object,
    ) -> None:
        engine.answer(tokenizer, " blue")
        body = {"inputs": "the", "parameters": {field: value}}
        validator(document, "GenerateRequest").validate(body)
        assert client.post("/generate", json=body).status_code == 200

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("temperature", -0.5),
            ("top_p", 0),
            ("n", 0),
            ("n", 129),
            ("top_k", -2),
            ("max_tokens", 0),
            ("presence_penalty", 2.5),
            ("top_logprobs", 6),
            ("seed", 2**64),
            ("stop", ["a"] * 5),
        ],
    )
    def test_outside_of_a_chat(
        self, client: FlaskClient, document: dict[str, Any], field: str, value: object
    ) -> None:
        message = {"role": "user", "content": "hi"}
        body = {"messages": [message], "logprobs": True, field: value}
        assert not validator(document, "ChatRequest").is_valid(body)
        assert client.post("/v1/chat/completions", json=body).status_code == 422


class TestAnswersFitTheirSchemas:
    CASES = (
        ("/generate", {"inputs": "x", "parameters": {"details": True}}, "GenerateResponse"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]},
         "ChatCompletion"),
        ("/v1/completions", {"prompt": "x"}, "TextCompletion"),
        ("/vertex", {"instances": [{"inputs": "x"}]}, "VertexResponse"),
    )  # fmt: skip

    @pytest.mark.parametrize(("path", "body", "name"), CASES)
    def test_generating(
        self,
        client: FlaskClient,
        engine: ScriptedEngine,
        tokenizer: Tokenizer,
        document: dict[str, Any],
        path: str,
        body: object,
        name: str,
    ) -> None:
        engine.answer(tokenizer, " blue", "eos_token")
        validator(document, name).validate(client.post(path, json=body).json)

    @pytest.mark.parametrize(
        ("path", "name"),
        [("/generate_stream", "StreamResponse"), ("/v1/chat/completions", "ChatCompletionChunk")],
    )
    def test_events(
        self,
        client: FlaskClient,
        engine: ScriptedEngine,
        tokenizer: Tokenizer,
        document: dict[str, Any],
        path: str,
        name: str,
    ) -> None:
        engine.answer(tokenizer, " blue", "eos_token")
        message = {"role": "user", "content": "x"}
        body = {"inputs": "x", "messages": [message], "stream": True}
        events = client.post(path, json=body).get_data(as_text=True).split("\n\n")
        datas = [event.removeprefix("data: ") for event in events if event.startswith("data: {")]
        assert len(datas) >= 2
        for data in datas:
            validator(document, name).validate(json.loads(data))

    @pytest.mark.parametrize(("path", "name"), [("/info", "Info"), ("/v1/models", "ModelList")])
    def test_reading(
        self, client: FlaskClient, document: dict[str, Any], path: str, name: str
    ) -> None:
        validator(document, name).validate(client.get(path).json)

    @pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/vertex"])
    def test_errors(self, client: FlaskClient, document: dict[str, Any], path: str) -> None:
        message = {"role": "user", "content": "x"}
        body = {"inputs": "", "messages": [message], "n": 0, "instances": []}
        response = client.post(path, json=body)
        schema = document["paths"][path]["post"]["responses"]["422"]["content"]["application/json"]
        name = schema["schema"]["$ref"].rpartition("/")[2]
        validator(document, name).validate(response.json)


class TestPage:
    def test_docs_redirects(self, client: FlaskClient) -> None:
        response = client.get("/docs")
        assert (response.status_code, response.headers["location"]) == (303, "/docs/")

    def test_the_page_and_all_it_names_are_here(self, client: FlaskClient) -> None:
        page = client.get("/docs/")
        assert page.content_type == "text/html; charset=utf-8"
        names = re.findall(r'(?:src|href)="([^"]+)"', page.get_data(as_text=True))
        assert len(names) == 4
        for name in names:
            response = client.get(f"/docs/{name}")
            assert (response.status_code, len(response.data) > 100) == (200, True)

    def test_nothing_outside_is_loaded(self, client: FlaskClient) -> None:
        policy = client.get("/docs/").headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "http" not in policy
        for name in ("", "start.js"):
            text = client.get(f"/docs/{name}").get_data(as_text=True)
            assert "//" not in re.sub(r"^//.*$", "", text, flags=re.MULTILINE)
        style = client.get("/docs/swagger-ui.css").get_data(as_text=True)
        assert set(re.findall(r"url\((?![\"']?data:)([^)]*)\)", style)) == set()
        assert "@import" not in style

    def test_the_page_asks_for_this_document_and_no_validator(self, client: FlaskClient) -> None:
        script = client.get("/docs/start.js").get_data(as_text=True)
        assert f'"..{DOCUMENT}"' in script
        assert "validatorUrl: null" in script

    @pytest.mark.parametrize("name", ["nothing", "../openapi.py", "%2e%2e/app.py", "index.htm"])
    def test_other_files_are_not_served(self, client: FlaskClient, name: str) -> None:
        response = client.get(f"/docs/{name}")
        assert (response.status_code, response.data) == (404, b"")

    def test_every_asset_has_its_type(self, client: FlaskClient) -> None:
        for name, asset in assets().items():
            response = client.get(f"/docs/{name}")
            assert response.mimetype == asset.content_type
            assert response.headers["x-content-type-options"] == "nosniff"

    def test_neither_needs_the_key(self, make_front: MakeFront) -> None:
        client = create_app(make_front(api_key="k")).test_client()
        assert client.get(DOCUMENT).status_code == 200
        assert client.get("/docs/").status_code == 200

    def test_head_is_answered(self, client: FlaskClient) -> None:
        for path in ("/docs/", DOCUMENT):
            response = client.head(path)
            assert (response.status_code, response.data) == (200, b"")
