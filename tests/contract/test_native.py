"""TGI's native routes, byte for byte."""

import json
from dataclasses import replace

import pytest
from flask.testing import FlaskClient
from msgspec import structs

from serving.front.app import create_app
from serving.front.model import LoadedModel
from serving.front.text.tokenization import Tokenizer
from serving.protocol.messages import Delta, FinishReason, Generate
from tests.support.fake_engine import ScriptedEngine
from tests.support.front_fixtures import MakeFront

SKY, IS, BLUE = 296, 266, 297  # " sky", " is", " blue" in the tiny tokenizer


def play(engine: ScriptedEngine, tokenizer: Tokenizer, text: str, finish: FinishReason) -> None:
    engine.answer(tokenizer, text, finish)


def test_the_ids_in_these_bodies_are_the_tokenizers(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(" sky is blue", False) == [SKY, IS, BLUE]


class TestGenerate:
    def test_text_only(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        play(engine, tokenizer, " blue", "eos_token")
        response = client.post("/generate", json={"inputs": "the sky is"})
        assert response.status_code == 200
        assert response.content_type == "application/json"
        assert response.data == b'{"generated_text":" blue"}'

    def test_details_and_candidates(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        play(engine, tokenizer, " blue", "length")
        parameters = {"details": True, "top_n_tokens": 1, "max_new_tokens": 1}
        body = {"inputs": "the sky is", "parameters": parameters}
        assert client.post("/generate", json=body).data == (
            b'{"generated_text":" blue","details":{"finish_reason":"length","generated_tokens":1,'
            b'"seed":null,"prefill":[],"tokens":[{"id":297,"text":" blue","logprob":-0.5,'
            b'"special":false}],"top_tokens":[[{"id":297,"text":" blue","logprob":-0.5,'
            b'"special":false}]]}}'
        )

    def test_the_end_token_is_listed(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        play(engine, tokenizer, " blue", "eos_token")
        body = {"inputs": "the sky is", "parameters": {"details": True}}
        assert client.post("/generate", json=body).data == (
            b'{"generated_text":" blue","details":{"finish_reason":"eos_token",'
            b'"generated_tokens":2,"seed":null,"prefill":[],"tokens":[{"id":297,"text":" blue",'
            b'"logprob":-0.5,"special":false},{"id":1,"text":"</s>","logprob":-1.0,'
            b'"special":true}]}}'
        )

    def test_input_details_imply_details_with_an_empty_prefill(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        play(engine, tokenizer, " blue", "length")
        body = {"inputs": "the sky is", "parameters": {"decoder_input_details": True}}
        details = client.post("/generate", json=body).json["details"]
        assert details["prefill"] == []
        assert len(details["tokens"]) == 1

    def test_input_details_show_the_prompt_where_the_server_allows_it(
        self, make_front: MakeFront, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        client = create_app(make_front(enable_prefill_logprobs=True)).test_client()
        play(engine, tokenizer, " blue", "length")
        parameters = {"decoder_input_details": True, "truncate": 2}
        body = {"inputs": "the sky is", "parameters": parameters}
        assert b'"prefill":[{"id":296,"text":" sky","logprob":null},' in (
            client.post("/generate", json=body).data
        )
        assert engine.submitted[0].prompt_logprobs
        play(engine, tokenizer, " blue", "length")
        body = {"inputs": "the sky", "parameters": {"decoder_input_details": True}}
        assert client.post("/generate", json=body).json["details"]["prefill"] == [
            {"id": 0, "text": "<s>", "logprob": None},
            {"id": 263, "text": "the", "logprob": -0.25},
            {"id": 296, "text": " sky", "logprob": -0.5},
        ]

    def test_input_details_are_only_shown_if_asked_for(
        self, make_front: MakeFront, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        client = create_app(make_front(enable_prefill_logprobs=True)).test_client()
        play(engine, tokenizer, " blue", "length")
        body = {"inputs": "the sky is", "parameters": {"details": True}}
        assert client.post("/generate", json=body).json["details"]["prefill"] == []
        assert not engine.submitted[0].prompt_logprobs

    def test_the_prompt_is_shown_with_every_one_of_the_best(
        self, make_front: MakeFront, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        client = create_app(make_front(enable_prefill_logprobs=True)).test_client()
        play(engine, tokenizer, " sky", "length")
        play(engine, tokenizer, " blue", "length")
        parameters = {"best_of": 2, "do_sample": True, "decoder_input_details": True}
        body = {"inputs": "the", "parameters": parameters}
        details = client.post("/generate", json=body).json["details"]
        expected = [
            {"id": 0, "text": "<s>", "logprob": None},
            {"id": 263, "text": "the", "logprob": -0.25},
        ]
        assert details["prefill"] == expected
        assert details["best_of_sequences"][0]["prefill"] == expected

    def test_the_seed_of_a_sampled_text_is_reported(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        play(engine, tokenizer, " blue", "length")
        parameters = {"details": True, "do_sample": True, "seed": 2**64 - 1}
        response = client.post("/generate", json={"inputs": "the", "parameters": parameters})
        assert b'"seed":18446744073709551615,' in response.data

    def test_the_stop_string_stays_in_the_text(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        play(engine, tokenizer, " sky is blue", "length")
        parameters = {"stop": [" is"], "details": True}
        content = client.post("/generate", json={"inputs": "x", "parameters": parameters}).json
        assert content["generated_text"] == " sky is"
        assert content["details"]["finish_reason"] == "stop_sequence"
        assert content["details"]["generated_tokens"] == 2
        assert engine.aborted == [0]

    def test_the_prompt_can_be_part_of_the_text(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        play(engine, tokenizer, " blue", "length")
        parameters = {"return_full_text": True, "truncate": 1}
        body = {"inputs": "the sky is", "parameters": parameters}
        assert client.post("/generate", json=body).json == {"generated_text": "the sky is blue"}

    def test_best_of_keeps_the_others(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        play(engine, tokenizer, " sky is", "length")  # mean log-probability -0.75
        play(engine, tokenizer, " blue", "length")  # -0.5
        parameters = {"best_of": 2, "do_sample": True, "details": True}
        content = client.post("/generate", json={"inputs": "x", "parameters": parameters}).json
        assert content["generated_text"] == " blue"
        (other,) = content["details"]["best_of_sequences"]
        assert list(other) == [
            "generated_text",
            "finish_reason",
            "generated_tokens",
            "seed",
            "prefill",
            "tokens",
        ]
        assert other["generated_text"] == " sky is"
        assert (other["seed"] - content["details"]["seed"]) % 2**64 in (1, 2**64 - 1)

    def test_logprobs_cost_nothing_when_nobody_sees_them(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        play(engine, tokenizer, " blue", "length")
        client.post("/generate", json={"inputs": "x"})
        assert not engine.submitted[0].logprobs

    def test_headers(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        play(engine, tokenizer, " blue", "eos_token")
        headers = client.post("/generate", json={"inputs": "thé sky"}).headers
        assert headers["x-compute-type"] == "1-cpu"
        assert headers["x-compute-characters"] == "7"
        assert int(headers["x-prompt-tokens"]) == len(engine.submitted[0].prompt_token_ids)
        assert headers["x-generated-tokens"] == "2"
        assert float(headers["x-compute-time"]) >= 0
        for name in ("total", "validation", "queue", "inference"):
            assert int(headers[f"x-{name}-time"]) >= 0
        assert int(headers["x-time-per-token"]) >= 0
        assert "x-accel-buffering" not in headers


class TestGenerateStream:
    def test_events(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        play(engine, tokenizer, " blue", "eos_token")
        body = {"inputs": "the sky is", "parameters": {"details": True}}
        response = client.post("/generate_stream", json=body)
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["x-compute-type"] == "1-cpu"
        assert response.headers["x-compute-characters"] == "10"
        assert "x-total-time" not in response.headers
        assert response.data == (
            b'data: {"index":1,"token":{"id":297,"text":" blue","logprob":-0.5,"special":false},'
            b'"generated_text":null,"details":null}\n\n'
            b'data: {"index":2,"token":{"id":1,"text":"</s>","logprob":-1.0,"special":true},'
            b'"generated_text":" blue","details":{"finish_reason":"eos_token",'
            b'"generated_tokens":2,"seed":null,"input_length":4}}\n\n'
        )

    def test_details_are_null_unless_asked_for(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        play(engine, tokenizer, " blue", "length")
        body = {"inputs": "the", "parameters": {"return_full_text": True}}
        assert client.post("/generate_stream", json=body).data.endswith(
            b'"generated_text":"the blue","details":null}\n\n'
        )

    def test_candidates_stand_behind_the_token(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        play(engine, tokenizer, " blue", "length")
        body = {"inputs": "the", "parameters": {"top_n_tokens": 1}}
        assert client.post("/generate_stream", json=body).data == (
            b'data: {"index":1,"token":{"id":297,"text":" blue","logprob":-0.5,"special":false},'
            b'"top_tokens":[{"id":297,"text":" blue","logprob":-0.5,"special":false}],'
            b'"generated_text":" blue","details":null}\n\n'
        )

    def test_validation_fails_inside_the_stream(self, client: FlaskClient) -> None:
        body = {"inputs": "the", "parameters": {"temperature": 0.0}}
        response = client.post("/generate_stream", json=body)
        assert response.status_code == 200
        assert response.data == (
            b'data: {"error":"Input validation error: `temperature` must be strictly positive",'
            b'"error_type":"validation"}\n\n'
        )


class TestCompat:
    def test_the_answer_is_a_list_and_contains_the_prompt(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        play(engine, tokenizer, " blue", "length")
        assert client.post("/", json={"inputs": "the sky is"}).data == (
            b'[{"generated_text":"the sky is blue"}]'
        )

    def test_the_prompt_can_be_left_out(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        play(engine, tokenizer, " blue", "length")
        body = {"inputs": "the", "parameters": {"return_full_text": False}}
        assert client.post("/", json=body).data == b'[{"generated_text":" blue"}]'

    def test_a_stream_is_the_native_one(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        play(engine, tokenizer, " blue", "length")
        assert client.post("/", json={"inputs": "the", "stream": True}).data == (
            b'data: {"index":1,"token":{"id":297,"text":" blue","logprob":-0.5,"special":false},'
            b'"generated_text":"the blue","details":null}\n\n'
        )


def test_tokenize(client: FlaskClient) -> None:
    response = client.post("/tokenize", json={"inputs": "the sky", "parameters": {"truncate": 1}})
    assert response.data == (
        b'[{"id":0,"text":"","start":0,"stop":0},{"id":263,"text":"the","start":0,"stop":3},'
        b'{"id":296,"text":" sky","start":3,"stop":7}]'
    )
    assert "x-compute-type" not in response.headers


def test_chat_tokenize(client: FlaskClient) -> None:
    body = {"messages": [{"role": "user", "content": " sky"}]}
    assert client.post("/chat_tokenize", json=body).data == (
        b'{"tokenize_response":[{"id":0,"text":"<s>","start":0,"stop":3},'
        b'{"id":2,"text":"<|user|>","start":3,"stop":11},'
        b'{"id":296,"text":" sky","start":11,"stop":15},'
        b'{"id":1,"text":"</s>","start":15,"stop":19},'
        b'{"id":3,"text":"<|assistant|>","start":19,"stop":32}],'
        b'"templated_text":"<s><|user|> sky</s><|assistant|>"}'
    )


def test_chat_tokenize_shows_what_a_chat_sends(
    make_front: MakeFront, model: LoadedModel, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    front = make_front()
    wide = structs.replace(model.info, max_input_tokens=2000, max_total_tokens=2100)
    front.model = replace(model, info=wide)
    client = create_app(front).test_client()
    play(engine, tokenizer, " blue", "length")
    function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": tools}
    client.post("/v1/chat/completions", json=body)
    content = client.post("/chat_tokenize", json=body).json
    ids = [item["id"] for item in content["tokenize_response"]]
    assert ids == engine.submitted[0].prompt_token_ids
    assert content["templated_text"] == tokenizer.decode(ids)


def test_chat_tokenize_fails_with_the_template(client: FlaskClient) -> None:
    body = {"messages": [{"role": "x", "content": "hi"}]}
    response = client.post("/chat_tokenize", json=body)
    assert response.status_code == 422
    assert response.json == {
        "error": "Template error: syntax error: unknown role x",
        "error_type": "template_error",
    }


def test_tokens_of_wide_characters_have_byte_ranges(client: FlaskClient) -> None:
    text = "é the 日"
    items = client.post("/tokenize", json={"inputs": text}).json
    data = text.encode()
    for item in items[1:]:
        shown = data[item["start"] : item["stop"]].decode()
        assert shown == item["text"]
    assert items[-1]["stop"] == len(data)


def test_info(make_front: MakeFront) -> None:
    client = create_app(make_front(max_best_of=3, validation_workers=5)).test_client()
    content = json.loads(client.get("/info").data)
    version = content.pop("version")
    assert version
    assert list(content.items()) == [
        ("model_id", "org/model"),
        ("model_sha", None),
        ("model_pipeline_tag", None),
        ("max_concurrent_requests", 128),
        ("max_best_of", 3),
        ("max_stop_sequences", 4),
        ("max_input_tokens", 60),
        ("max_total_tokens", 64),
        ("validation_workers", 5),
        ("max_client_batch_size", 4),
        ("router", "text-generation-router"),
        ("sha", None),
        ("docker_label", None),
    ]


def test_info_knows_the_commit_of_a_model_from_the_hub(
    make_front: MakeFront, model: LoadedModel
) -> None:
    front = make_front()
    commit = "0123456789abcdef0123456789abcdef01234567"
    path = f"hub/models--org--model/snapshots/{commit}"
    front.model = replace(model, info=structs.replace(model.info, model_path=path))
    assert create_app(front).test_client().get("/info").json["model_sha"] == commit


def test_get_routes_answer_head(client: FlaskClient) -> None:
    for path in ("/", "/health", "/info", "/metrics"):
        response = client.head(path)
        assert (response.status_code, response.data) == (200, b"")


@pytest.mark.parametrize("logprob", [float("nan"), float("-inf")])
def test_what_json_cannot_say_is_null(
    client: FlaskClient, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, logprob: float
) -> None:
    def submit(generate: Generate, deliver: object) -> object:
        deliver(Delta(0, [BLUE], [logprob], [], "length"))  # type: ignore[operator]
        return lambda: None

    monkeypatch.setattr(engine, "submit", submit)
    response = client.post("/generate_stream", json={"inputs": "the"})
    assert b'"logprob":null,' in response.data
