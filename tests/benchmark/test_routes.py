import json

import msgspec
import pytest

from serving.benchmark.routes import EventReading, GenerationOptions, encode_body, read_event


def test_completions_body_asks_for_usage_and_greedy_tokens() -> None:
    options = GenerationOptions("completions", max_new_tokens=8, model="m", ignore_eos=True)
    assert json.loads(encode_body(options, "hello")) == {
        "model": "m",
        "prompt": "hello",
        "max_tokens": 8,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }


def test_chat_body_sends_one_user_message() -> None:
    body = json.loads(encode_body(GenerationOptions("chat", 8, model="m"), "hello"))
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert "ignore_eos" not in body
    assert "prompt" not in body


def test_generate_stream_body_is_greedy_with_details() -> None:
    body = json.loads(encode_body(GenerationOptions("generate_stream", 8), "hello"))
    assert body == {"inputs": "hello", "parameters": {"max_new_tokens": 8, "details": True}}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"choices": [{"text": " a", "finish_reason": None}]}, EventReading(has_token=True)),
        ({"choices": [{"text": "", "finish_reason": None}]}, EventReading(has_token=True)),
        ({"choices": [{"text": " b", "finish_reason": "length"}]}, EventReading(has_token=True)),
        ({"choices": [{"text": "", "finish_reason": "stop"}]}, EventReading()),
        (
            {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
            EventReading(prompt_tokens=3, output_tokens=4),
        ),
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, EventReading()),
        ({"choices": [{"delta": {"content": "x"}}], "usage": None}, EventReading(has_token=True)),
        (
            {"index": 1, "token": {"id": 5, "text": "x"}, "generated_text": None, "details": None},
            EventReading(has_token=True),
        ),
        (
            {
                "token": {"id": 2},
                "generated_text": "x",
                "details": {"generated_tokens": 2, "input_length": 5, "seed": None},
            },
            EventReading(has_token=True, is_last=True, prompt_tokens=5, output_tokens=2),
        ),
        ({"error": "overloaded", "error_type": "overloaded"}, EventReading(error="overloaded")),
        ({"error": {"message": "too long", "code": 400}}, EventReading(error="too long")),
    ],
)
def test_reading_of_an_event(event: dict[str, object], expected: EventReading) -> None:
    assert read_event(json.dumps(event).encode()) == expected


def test_done_is_the_last_event() -> None:
    assert read_event(b"[DONE]") == EventReading(is_last=True)


def test_anything_else_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        read_event(b"<html>")
