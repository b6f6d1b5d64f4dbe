"""The embedded model behind the whole server, as `make serve` starts it, with real clients."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from huggingface_hub import InferenceClient
from live_server import LiveServer, wait_for

pytestmark = pytest.mark.e2e

COUNT = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"
CHAT = [{"role": "user", "content": "Count to 10"}]


def stream_text(events: list[Any]) -> str:
    return "".join(e["token"]["text"] for e in events if not e["token"]["special"])


def test_generate_counts_to_ten_and_stops_by_itself(server: LiveServer) -> None:
    body = {"inputs": "Count to 10", "parameters": {"details": True}}
    answer = server.post("/generate", body)
    assert answer["generated_text"].strip() == COUNT
    assert answer["details"]["finish_reason"] == "eos_token"


def test_stream_equals_the_whole_text(server: LiveServer) -> None:
    body = {"inputs": "What is deep learning?", "parameters": {"details": True}}
    whole = server.post("/generate", body)["generated_text"]
    events = list(server.events("/generate_stream", body))
    assert stream_text(events) == whole == events[-1]["generated_text"]
    assert events[-1]["details"]["finish_reason"] == "eos_token"


def test_invocations_takes_all_three_bodies(server: LiveServer) -> None:
    native = server.post(
        "/invocations",
        {"inputs": "Count to 10", "parameters": {"return_full_text": False}},
    )
    chat = server.post("/invocations", {"messages": CHAT, "temperature": 0})
    completion = server.post("/invocations", {"prompt": "Count to 10", "temperature": 0})
    assert native[0]["generated_text"].strip() == COUNT
    assert chat["choices"][0]["message"]["content"].strip() == COUNT
    assert completion["choices"][0]["text"].strip() == COUNT


def test_hub_client_generates_and_streams(server: LiveServer) -> None:
    client = InferenceClient(server.url)
    options: dict[str, Any] = {"return_full_text": False}
    assert client.text_generation("Count to 10", **options).strip() == COUNT
    pieces = client.text_generation("Count to 10", stream=True, **options)
    # As with TGI, this client shows the end token of a stream.
    assert "".join(pieces).removesuffix("<|end|>").strip() == COUNT


def test_hub_client_chats_and_streams(server: LiveServer) -> None:
    client = InferenceClient(server.url)
    answer = client.chat_completion(CHAT, temperature=0, max_tokens=100)
    assert answer.choices[0].message.content.strip() == COUNT
    chunks = client.chat_completion(CHAT, temperature=0, max_tokens=100, stream=True)
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces).strip() == COUNT


def test_openai_client_chats_and_streams(server: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-") as client:
        answer = client.chat.completions.create(model="tgi", messages=CHAT, temperature=0)
        assert answer.choices[0].message.content.strip() == COUNT
        assert answer.choices[0].finish_reason == "stop"
        options = {"include_usage": True}
        with client.chat.completions.create(
            model="tgi", messages=CHAT, temperature=0, stream=True, stream_options=options
        ) as stream:
            chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text.strip() == COUNT
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens


def test_openai_client_completes(server: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-") as client:
        answer = client.completions.create(model="tgi", prompt="Count to 10", temperature=0)
    assert answer.choices[0].text.strip() == COUNT


def test_seeded_sampling_is_the_same_alone_and_among_16(server: LiveServer) -> None:
    def sample(seed: int) -> str:
        parameters = {
            "do_sample": True, "seed": seed, "temperature": 2.0, "top_p": 0.95,
            "max_new_tokens": 40,
        }  # fmt: skip
        body = {"inputs": f"Tell me about number {seed % 3}", "parameters": parameters}
        text: str = server.post("/generate", body)["generated_text"]
        return text

    alone = [sample(seed) for seed in range(16)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(sample, range(16)))
    assert together == alone
    assert len(set(alone)) > 8


def test_tokenize_reports_the_models_ids(server: LiveServer) -> None:
    tokens = server.post("/tokenize", {"inputs": "Count to 10"})
    assert "".join(token["text"] for token in tokens) == "Count to 10"


def test_info_and_models_name_the_model(server: LiveServer) -> None:
    info = json.loads(server.request("GET", "/info")[1])
    models = json.loads(server.request("GET", "/v1/models")[1])
    assert models["data"][0]["id"] == info["model_id"]
    assert info["max_input_tokens"] == info["max_total_tokens"] - 1


def test_ping_and_health_are_empty_and_200(server: LiveServer) -> None:
    assert server.request("GET", "/ping") == (200, "")
    assert server.request("GET", "/health") == (200, "")


@pytest.mark.parametrize("path", ["/generate_stream", "/v1/chat/completions"])
def test_client_that_hangs_up_frees_its_blocks(server: LiveServer, path: str) -> None:
    long = {"max_new_tokens": 900}
    body: dict[str, Any] = {"inputs": "Count to 100", "parameters": {**long, "ignore_eos": True}}
    if "chat" in path:
        body = {"messages": CHAT, "stream": True, "max_tokens": 900, "ignore_eos": True}
    events = server.events(path, body)
    next(events)
    # The engine sends its tokens before it counts them.
    wait_for(lambda: server.metric("tgi_batch_current_size") == 1, "the sequence to be counted", 5)
    events.close()
    wait_for(lambda: server.metric("tgi_batch_current_size") == 0, "the sequence to end", 5)
    assert server.metric("tgi_kv_cache_usage_ratio") == 0


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/generate", {"inputs": ""}, 422, "`inputs` cannot be empty"),
        ("/generate", {"inputs": "word " * 3000}, 422, "tokens + `max_new_tokens` must be <="),
        ("/generate", {"inputs": 5}, 422, "Failed to deserialize the JSON body"),
        ("/generate", {"inputs": "a", "parameters": {"temperature": 0}}, 422, "strictly positive"),
        ("/generate", "{", 400, "Failed to parse the request body as JSON"),
        ("/v1/chat/completions", {"messages": "hi"}, 422, "Failed to deserialize"),
        ("/nowhere", {}, 404, ""),
    ],
)
def test_bad_input_is_refused_clearly(
    server: LiveServer, path: str, body: object, status: int, text: str
) -> None:
    found = server.request("POST", path, body)
    assert found[0] == status
    assert text in found[1]
    assert server.request("GET", "/health")[0] == 200
