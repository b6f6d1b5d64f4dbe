"""The Open Inference Protocol: metadata, health, inference and generation, to the byte."""

import json
from typing import Any

import pytest
from flask.testing import FlaskClient

import serving
from serving.errors import ErrorKind, RequestError
from serving.front.app import create_app
from serving.front.engine_client import Availability
from serving.front.text.tokenization import Tokenizer
from tests.support.fake_engine import Script, ScriptedEngine
from tests.support.front_fixtures import MakeFront

DOWN = Availability("recovering", healthy=False)


def tensor(*texts: str, **changes: object) -> dict[str, Any]:
    given = {"name": "in", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}
    return {"inputs": [{**given, **changes}]}


class TestMetadata:
    def test_server(self, client: FlaskClient) -> None:
        response = client.get("/v2")
        assert response.json == {
            "name": "text-generation-serving",
            "version": serving.__version__,
            "extensions": ["generate"],
        }

    def test_model(self, client: FlaskClient) -> None:
        assert client.get("/v2/models/m/versions/3").data == (
            b'{"name":"m","versions":["3"],"platform":"pytorch_text_generation",'
            b'"inputs":[{"name":"text_input","datatype":"BYTES","shape":[-1]}],'
            b'"outputs":[{"name":"text_output","datatype":"BYTES","shape":[-1]}]}'
        )
        assert client.get("/v2/models/m").json["versions"] == []

    def test_unknown_paths(self, client: FlaskClient) -> None:
        for path in ("/v2/", "/v2/models", "/v2/models/m/nothing", "/v2/health"):
            assert client.get(path).status_code == 404


class TestHealth:
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v2/health/live", b'{"live":true}'),
            ("/v2/health/ready", b'{"ready":true}'),
            ("/v2/models/m/ready", b'{"name":"m","ready":true}'),
            ("/v2/models/m/versions/1/ready", b'{"name":"m","ready":true}'),
            ("/health/live", b""),
            ("/health/ready", b""),
        ],
    )
    def test_of_a_serving_engine(self, client: FlaskClient, path: str, body: bytes) -> None:
        response = client.get(path)
        assert (response.status_code, response.data) == (200, body)

    @pytest.mark.parametrize("phase", ["starting", "recovering", "draining"])
    def test_who_is_not_ready_may_be_alive(
        self, client: FlaskClient, engine: ScriptedEngine, phase: Any
    ) -> None:
        engine.availability = Availability(phase, healthy=False)
        for path in ("/v2/health/live", "/health/live"):
            assert client.get(path).status_code == 200
        for path in ("/v2/health/ready", "/health/ready", "/v2/models/m/ready"):
            assert client.get(path).status_code == 503

    def test_a_failed_server_is_not_alive(
        self, client: FlaskClient, engine: ScriptedEngine
    ) -> None:
        engine.availability = Availability("failed", healthy=False, message="why")
        response = client.get("/v2/health/live")
        assert (response.status_code, response.json["error"]) == (503, "why")


class TestInfer:
    def test_golden_body(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue")
        engine.answer(tokenizer, " green")
        body = {**tensor("the", "a"), "id": "7", "parameters": {"max_tokens": 3}}
        response = client.post("/v2/models/m/versions/1/infer", json=body)
        assert (response.status_code, response.content_type) == (200, "application/json")
        assert response.data == (
            b'{"model_name":"m","model_version":"1","id":"7","outputs":'
            b'[{"name":"text_output","shape":[2],"datatype":"BYTES","data":[" blue"," green"]}]}'
        )
        assert [sent.stop.max_new_tokens for sent in engine.submitted] == [3, 3]
        assert response.headers["x-generated-tokens"] == "2"

    def test_what_was_not_given_is_left_out(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue")
        response = client.post("/v2/models/m/infer", json=tensor("the"))
        assert set(response.json) == {"model_name", "outputs"}
        assert engine.submitted[0].stop.max_new_tokens == 20

    def test_a_nested_tensor_keeps_its_shape(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        for word in (" blue", " green"):
            engine.answer(tokenizer, word)
        body = tensor("x", shape=[2, 1], data=[["the"], ["a"]]) | {"outputs": [{"name": "out"}]}
        (output,) = client.post("/v2/models/m/infer", json=body).json["outputs"]
        assert output == {
            "name": "out", "shape": [2, 1], "datatype": "BYTES", "data": [" blue", " green"]
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            ({}, "missing required field `inputs`"),
            ({"inputs": []}, "`inputs` must be one tensor. Given: 0"),
            (tensor("the", datatype="FP32"), "must be BYTES. Given: FP32"),
            (tensor("the", shape=[2]), "as many elements as `shape` [2] says. Given: 1"),
            (tensor("the", shape=[1] * 9), "Expected `array` of length <= 8"),
            (tensor("the", data=[1]), "must hold texts"),
            (tensor("the", shape=[1], data=[["the"]]), "must hold texts"),
            (tensor(), "`data` must not be empty"),
            ({**tensor("the"), "parameters": {"max_tokens": "x"}}, "parameters.max_tokens"),
        ],
    )
    def test_wrong_bodies(
        self, client: FlaskClient, engine: ScriptedEngine, body: object, text: str
    ) -> None:
        response = client.post("/v2/models/m/infer", json=body)
        assert (response.status_code, response.content_type) == (422, "application/json")
        assert text in response.json["error"]
        assert engine.submitted == []

    def test_syntax_errors_are_objects_too(self, client: FlaskClient) -> None:
        response = client.post("/v2/models/m/infer", data="{", content_type="application/json")
        assert (response.status_code, "error" in response.json) == (400, True)
        assert client.post("/v2/models/m/infer", data="{}").status_code == 415


class TestGenerate:
    PATH = "/v2/models/m/generate"

    def test_golden_body(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue")
        response = client.post(self.PATH, json={"text_input": "the"})
        assert response.data == b'{"text_output":" blue","model_name":"m"}'

    def test_details(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        (token,) = engine.answer(tokenizer, " blue")
        body = {"text_input": "the", "parameters": {"details": True}}
        response = client.post("/v2/models/m/versions/9/generate", json=body)
        assert response.json == {
            "text_output": " blue",
            "model_name": "m",
            "model_version": "9",
            "details": {
                "finish_reason": "length",
                "logprobs": [{"id": token, "text": " blue", "logprob": -0.5, "special": False}],
            },
        }

    def test_parameters(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue")
        parameters = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 4, "stop": ["x"], "seed": 3}
        client.post(self.PATH, json={"text_input": "the", "parameters": parameters})
        sampling, stop = engine.submitted[0].sampling, engine.submitted[0].stop
        assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, pytest.approx(0.9), 3)
        assert stop.max_new_tokens == 4

    def test_temperature_0_is_greedy(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue")
        body = {"text_input": "the", "parameters": {"temperature": 0}}
        assert client.post(self.PATH, json=body).status_code == 200
        assert not engine.submitted[0].sampling.samples

    def test_golden_stream(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue blue")
        response = client.post(f"{self.PATH}_stream", json={"text_input": "the"})
        assert response.content_type == "text/event-stream"
        assert response.data == 2 * b'data: {"text_output":" blue","model_name":"m"}\n\n'

    def test_streamed_details(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue blue")
        body = {"text_input": "the", "parameters": {"details": True}}
        text = client.post(f"{self.PATH}_stream", json=body).get_data(as_text=True)
        events = [json.loads(block.removeprefix("data: ")) for block in text.split("\n\n") if block]
        assert [event["details"]["finish_reason"] for event in events] == [None, "length"]
        assert [len(event["details"]["logprobs"]) for event in events] == [1, 1]

    @pytest.mark.parametrize("path", ["generate", "generate_stream"])
    def test_errors_have_their_status(
        self, client: FlaskClient, engine: ScriptedEngine, path: str
    ) -> None:
        response = client.post(f"/v2/models/m/{path}", json={"text_input": ""})
        assert (response.status_code, response.json["error_type"]) == (422, "validation")
        engine.scripts.append(Script(error=RequestError(ErrorKind.GENERATION, "why")))
        response = client.post(f"/v2/models/m/{path}", json={"text_input": "the"})
        assert (response.status_code, response.json["error_type"]) == (424, "generation")
        engine.refusal = RequestError(ErrorKind.OVERLOADED, "Model is overloaded")
        response = client.post(f"/v2/models/m/{path}", json={"text_input": "the"})
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")

    def test_a_stream_that_fails_ends_with_the_error(
        self, client: FlaskClient, engine: ScriptedEngine
    ) -> None:
        engine.scripts.append(Script([297], error=RequestError(ErrorKind.GENERATION, "why")))
        response = client.post(f"{self.PATH}_stream", json={"text_input": "the"})
        assert response.data.endswith(
            b'data: {"error":"Request failed during generation: why","error_type":"generation"}\n\n'
        )

    def test_the_key_is_needed(self, make_front: MakeFront) -> None:
        client = create_app(make_front(api_key="k")).test_client()
        for path in ("infer", "generate", "generate_stream", "versions/1/generate"):
            assert client.post(f"/v2/models/m/{path}", json={}).status_code == 401
        assert client.get("/v2/models/m").status_code == 200
