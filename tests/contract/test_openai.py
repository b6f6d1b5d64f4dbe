"""OpenAI's routes: bodies and chunks, byte for byte but for id and time."""

import re

import pytest
from flask.testing import FlaskClient

import serving
from serving.errors import ErrorKind, RequestError
from serving.front.engine_client import Availability
from serving.front.text.tokenization import Tokenizer
from tests.support.fake_engine import Script, ScriptedEngine

MESSAGES = [{"role": "user", "content": "hi"}]
FINGERPRINT = f'"system_fingerprint":"{serving.__version__}-native"'.encode()
ERROR = (
    b'{"error":{"message":"Request failed during generation: boom","http_status_code":422,'
    b'"type":"server_error","code":"generation"}}'
)
OVERLOADED = (
    b'{"error":{"message":"Model is overloaded","type":"rate_limit_error","param":null,'
    b'"code":"overloaded"},"error_type":"overloaded"}'
)


def fixed(data: bytes, prefix: bytes) -> bytes:
    """The body with id and time replaced, which must be alike in all chunks."""
    ids = set(re.findall(rb'"id":"(%s-[0-9a-f]{32})","created":(\d+)' % prefix, data))
    assert len(ids) == 1
    data = re.sub(rb'"id":"%s-[0-9a-f]{32}","created":\d+' % prefix, b"ID", data)
    return data.replace(FINGERPRINT, b"FP")


class TestChat:
    CHUNK = b'data: {"object":"chat.completion.chunk",ID,"model":"org/model",FP,"choices":['

    def test_whole(self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
        engine.answer(tokenizer, " blue sky", "eos_token")
        response = client.post("/v1/chat/completions", json={"messages": MESSAGES})
        assert fixed(response.data, b"chatcmpl") == (
            b'{"object":"chat.completion",ID,"model":"org/model",FP,"choices":[{"index":0,'
            b'"message":{"role":"assistant","content":" blue sky"},"logprobs":null,'
            b'"finish_reason":"stop"}],"usage":{"prompt_tokens":6,"completion_tokens":3,'
            b'"total_tokens":9}}'
        )
        assert response.headers["x-compute-characters"] == "30"
        assert response.headers["x-prompt-tokens"] == "6"

    def test_stream(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue sky", "length")
        body = {
            "messages": MESSAGES,
            "stream": True,
            "max_tokens": 2,
            "stream_options": {"include_usage": True},
        }
        response = client.post("/v1/chat/completions", json=body)
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-accel-buffering"] == "no"
        assert fixed(response.data, b"chatcmpl") == (
            self.CHUNK + b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
            b'"finish_reason":null}],"usage":null}\n\n'
            + self.CHUNK
            + b'{"index":0,"delta":{"content":" blue"},"logprobs":null,"finish_reason":null}],'
            b'"usage":null}\n\n'
            + self.CHUNK
            + b'{"index":0,"delta":{"content":" sky"},"logprobs":null,"finish_reason":null}],'
            b'"usage":null}\n\n'
            + self.CHUNK
            + b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null}\n\n'
            + self.CHUNK
            + b'],"usage":{"prompt_tokens":6,"completion_tokens":2,"total_tokens":8}}\n\n'
            b"data: [DONE]\n\n"
        )

    def test_logprobs(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue", "length")
        body = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 1}
        content = client.post("/v1/chat/completions", json=body).json
        candidate = {"token": " blue", "logprob": -0.5, "bytes": [32, 98, 108, 117, 101]}
        assert content["choices"][0]["logprobs"] == {
            "content": [{**candidate, "top_logprobs": [candidate]}]
        }

    def test_a_stop_string_is_not_in_the_content(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " sky is blue", "length")
        body = {"messages": MESSAGES, "stop": " is"}
        (choice,) = client.post("/v1/chat/completions", json=body).json["choices"]
        assert choice["message"]["content"] == " sky"
        assert choice["finish_reason"] == "stop"
        assert engine.aborted == [0]

    def test_a_stop_string_does_not_show_in_the_stream(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " sky is blue", "length")
        body = {"messages": MESSAGES, "stop": ["ky is b"], "stream": True}
        data = client.post("/v1/chat/completions", json=body).data
        assert re.findall(rb'"content":"([^"]*)"', data) == [b"", b" s"]
        assert data.count(b'"finish_reason":"stop"') == 1

    def test_several_choices(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " sky", "length")
        engine.answer(tokenizer, " blue", "eos_token")
        content = client.post("/v1/chat/completions", json={"messages": MESSAGES, "n": 2}).json
        choices = [(c["index"], c["message"]["content"]) for c in content["choices"]]
        assert choices == [(0, " sky"), (1, " blue")]
        assert content["usage"] == {
            "prompt_tokens": 6,
            "completion_tokens": 3,
            "total_tokens": 9,
        }

    def test_several_choices_share_a_stream(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " sky", "length")
        engine.answer(tokenizer, " blue", "length")
        body = {"messages": MESSAGES, "n": 2, "stream": True}
        data = client.post("/v1/chat/completions", json=body).data
        for index in (b"0", b"1"):
            assert data.count(b'"index":%s,"delta":{"role":"assistant"' % index) == 1
        assert data.count(b'"finish_reason":"length"') == 2
        assert data.count(b"data: [DONE]") == 1

    @pytest.mark.parametrize(
        ("asked", "shown"), [("tgi", "org/model"), ("", "org/model"), ("mine", "mine")]
    )
    def test_a_made_up_model_is_echoed(
        self,
        client: FlaskClient,
        engine: ScriptedEngine,
        tokenizer: Tokenizer,
        asked: str,
        shown: str,
    ) -> None:
        engine.answer(tokenizer, " sky", "length")
        body = {"messages": MESSAGES, "model": asked}
        assert client.post("/v1/chat/completions", json=body).json["model"] == shown

    def test_a_template_refusal(self, client: FlaskClient) -> None:
        body = {"messages": [{"role": "wizard", "content": "hi"}], "stream": True}
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 422
        assert response.data == (
            b'{"error":{"message":"Template error: syntax error: unknown role wizard",'
            b'"type":"invalid_request_error","param":null,"code":"template_error"},'
            b'"error_type":"template_error"}'
        )

    @pytest.mark.parametrize(
        "messages", [[{"role": "user"}], [{"content": "x"}], "hi", [{"role": "a", "content": 1}]]
    )
    def test_wrong_messages_are_refused(self, client: FlaskClient, messages: object) -> None:
        response = client.post("/v1/chat/completions", json={"messages": messages})
        assert response.status_code == 422
        assert response.content_type == "application/json"
        assert "messages" in response.json["error"]["message"]
        assert response.json["error_type"] == "validation"

    @pytest.mark.parametrize("stream", [True, False])
    def test_failure_before_the_first_token_has_its_status(
        self, client: FlaskClient, engine: ScriptedEngine, stream: bool
    ) -> None:
        engine.scripts.append(
            Script(error=RequestError(ErrorKind.OVERLOADED, "Model is overloaded"))
        )
        body = {"messages": MESSAGES, "stream": stream}
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 429
        assert response.data == OVERLOADED
        assert response.headers["retry-after"] == "1"

    def test_failure_behind_it_is_an_event(
        self, client: FlaskClient, engine: ScriptedEngine
    ) -> None:
        engine.scripts.append(Script([297], error=RequestError(ErrorKind.GENERATION, "boom")))
        body = {"messages": MESSAGES, "stream": True}
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200
        assert response.data.endswith(b"data: " + ERROR + b"\n\ndata: [DONE]\n\n")


class TestCompletions:
    CHUNK = b'data: {"object":"text_completion",ID,"model":"org/model",FP,"choices":['

    def test_whole(self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
        engine.answer(tokenizer, " blue", "eos_token")
        body = {"prompt": "the sky is", "model": "anything"}
        response = client.post("/v1/completions", json=body)
        assert fixed(response.data, b"cmpl") == (
            b'{"object":"text_completion",ID,"model":"org/model",FP,"choices":[{"index":0,'
            b'"text":" blue","logprobs":null,"finish_reason":"stop"}],"usage":'
            b'{"prompt_tokens":4,"completion_tokens":2,"total_tokens":6}}'
        )

    def test_stream(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue", "eos_token")
        response = client.post("/v1/completions", json={"prompt": "the sky is", "stream": True})
        assert fixed(response.data, b"cmpl") == (
            self.CHUNK + b'{"index":0,"text":" blue","logprobs":null,"finish_reason":null}],'
            b'"usage":null}\n\n' + self.CHUNK + b'{"index":0,"text":"","logprobs":null,'
            b'"finish_reason":"stop"}],"usage":null}\n\ndata: [DONE]\n\n'
        )

    def test_several_prompts_in_order(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        for text in (" sky", " sea", " blue", " green"):
            engine.answer(tokenizer, text)
        body = {"prompt": ["the", "a"], "n": 2}
        response = client.post("/v1/completions", json=body)
        assert [(c["index"], c["text"]) for c in response.json["choices"]] == [
            (0, " sky"),
            (1, " sea"),
            (2, " blue"),
            (3, " green"),
        ]
        assert response.headers["x-compute-characters"] == "4"

    def test_logprobs(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue sky")
        content = client.post("/v1/completions", json={"prompt": "the", "logprobs": 1}).json
        assert content["choices"][0]["logprobs"] == {
            "tokens": [" blue", " sky"],
            "token_logprobs": [-0.5, -1.0],
            "top_logprobs": [{" blue": -0.5}, {" sky": -1.0}],
            "text_offset": [0, 5],
        }

    def test_suffix(self, client: FlaskClient) -> None:
        response = client.post("/v1/completions", json={"prompt": "a", "suffix": ""})
        assert response.status_code == 422
        assert response.json["error_type"] == "suffix not supported"

    def test_too_many_prompts(self, client: FlaskClient) -> None:
        response = client.post("/v1/completions", json={"prompt": list("abcde"), "stream": True})
        assert response.status_code == 422
        assert response.json["error_type"] == "batch size exceeded"

    @pytest.mark.parametrize("prompt", [[], 5, [1, "a"], [[1], "a"], [-1], None])
    def test_prompts_are_texts_or_ids(self, client: FlaskClient, prompt: object) -> None:
        response = client.post("/v1/completions", json={"prompt": prompt})
        assert response.status_code == 422
        assert response.content_type == "application/json"

    @pytest.mark.parametrize("prompt", [[0, 5], [[0, 5]]])
    def test_prompts_of_ids(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer, prompt: object
    ) -> None:
        engine.answer(tokenizer, " sky")
        (choice,) = client.post("/v1/completions", json={"prompt": prompt}).json["choices"]
        assert choice["text"] == " sky"
        assert engine.submitted[0].prompt_token_ids == [0, 5]


class TestEcho:
    def test_the_prompt_is_part_of_the_text(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " sky")
        engine.answer(tokenizer, " sea")
        body = {"prompt": ["the", "a"], "echo": True}
        content = client.post("/v1/completions", json=body).json
        assert [c["text"] for c in content["choices"]] == ["the sky", "a sea"]
        assert content["choices"][0]["logprobs"] is None

    def test_its_tokens_have_log_probabilities_but_the_first(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue")
        body = {"prompt": "the sky", "echo": True, "logprobs": 1}
        (choice,) = client.post("/v1/completions", json=body).json["choices"]
        assert choice["logprobs"] == {
            "tokens": ["<s>", "the", " sky", " blue"],
            "token_logprobs": [None, -0.25, -0.5, -0.5],
            "top_logprobs": [None, None, None, {" blue": -0.5}],
            "text_offset": [0, 0, 3, 7],
        }

    def test_a_stream_begins_with_it(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
    ) -> None:
        engine.answer(tokenizer, " blue sky")
        body = {"prompt": "the", "echo": True, "stream": True, "logprobs": 0}
        data = client.post("/v1/completions", json=body).data
        assert re.findall(rb'"text":"([^"]*)"', data) == [b"the", b" blue", b" sky"]
        assert re.findall(rb'"text_offset":(\[[^]]*\])', data) == [b"[0,0]", b"[3]", b"[8]"]

    @pytest.mark.parametrize("stream", [False, True])
    def test_without_new_tokens_it_is_the_whole_answer(
        self, client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer, stream: bool
    ) -> None:
        engine.answer(tokenizer, " blue")
        body = {"prompt": "the sky", "echo": True, "max_tokens": 0, "logprobs": 0}
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        response = client.post("/v1/completions", json=body | options)
        assert response.status_code == 200
        assert re.findall(rb'"text":"([^"]*)"', response.data) == [b"the sky"]
        assert re.findall(rb'"token_logprobs":(\[[^]]*\])', response.data) == [b"[null,-0.25,-0.5]"]
        assert b'"finish_reason":"length"' in response.data
        assert b'"completion_tokens":0' in response.data
        assert engine.submitted[0].stop.max_new_tokens == 1

    def test_no_new_tokens_and_no_echo_is_refused(self, client: FlaskClient) -> None:
        response = client.post("/v1/completions", json={"prompt": "the", "max_tokens": 0})
        assert response.status_code == 422


class TestErrors:
    """OpenAI's object and TGI's `error_type`, also where the body came by another route."""

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/invocations"])
    @pytest.mark.parametrize("stream", [True, False])
    def test_a_refused_chat(self, client: FlaskClient, path: str, stream: bool) -> None:
        body = {"messages": MESSAGES, "top_p": 2.0, "stream": stream}
        response = client.post(path, json=body)
        assert response.status_code == 422
        assert response.data == (
            b'{"error":{"message":"Input validation error: `top_p` must be > 0.0 and < 1.0",'
            b'"type":"invalid_request_error","param":null,"code":"validation"},'
            b'"error_type":"validation"}'
        )

    @pytest.mark.parametrize("path", ["/v1/completions", "/invocations"])
    def test_a_server_that_cannot(
        self, client: FlaskClient, engine: ScriptedEngine, path: str
    ) -> None:
        engine.availability = Availability("failed", healthy=False, message="why")
        response = client.post(path, json={"prompt": "a"})
        assert response.status_code == 424
        assert response.json["error"]["type"] == "server_error"
        assert response.json["error_type"] == "generation"

    @pytest.mark.parametrize(
        ("data", "status"), [(b"{", 400), (b'{"prompt":"' + b"a" * 2_000_000 + b'"}', 413)]
    )
    def test_a_body_that_cannot_be_read(
        self, client: FlaskClient, data: bytes, status: int
    ) -> None:
        response = client.post("/v1/completions", data=data, content_type="application/json")
        assert response.status_code == status
        assert response.json["error"]["message"].startswith("Failed to ")


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me", "store": True, "metadata": {}, "service_tier": "auto"},
        {"reasoning_effort": "low", "parallel_tool_calls": True, "guideline": "x"},
        {"tools": [], "response_format": {"type": "json_object"}},
        {"tools": [], "tool_choice": "auto", "stream_options": None, "logit_bias": [1]},
    ],
)
def test_what_says_nothing_about_the_answer_is_accepted(
    client: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer, fields: dict[str, object]
) -> None:
    engine.answer(tokenizer, " sky", "eos_token")
    body = {"messages": MESSAGES, **fields}
    assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_models(client: FlaskClient) -> None:
    assert client.get("/v1/models").data == (
        b'{"object":"list","data":[{"id":"org/model","object":"model","created":0,'
        b'"owned_by":"org/model"}]}'
    )
