"""Chats with tools, whole and streamed: a model with calls of its own, and one without."""

import json
import re
from pathlib import Path
from typing import Any

import flask
import pytest
from flask.testing import FlaskClient

from serving.front.app import create_app
from serving.front.model import LoadedModel
from tests.support.fake_engine import ScriptedEngine
from tests.support.front_fixtures import MakeFront
from tests.support.tool_models import make_tool_model

MESSAGES = [{"role": "user", "content": "hi"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
        },
    }
]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
GENERIC_CALL = '{"function": {"_name": "add", "a": 1}}'
DECLINED = '{"function": {"_name": "no_tool"}}'


class Chatter:
    """A client, and the scripted engine of its server."""

    def __init__(self, app: flask.Flask, engine: ScriptedEngine, model: LoadedModel) -> None:
        self._client: FlaskClient = app.test_client()
        self.engine = engine
        self._tokenizer = model.tokenizer

    def script(self, text: str, finish: Any = "eos_token") -> int:
        """The next answer of the model; the result is its length in tokens."""
        return len(self.engine.answer(self._tokenizer, text, finish))

    def chat(self, **fields: Any) -> dict[str, Any]:
        """The whole response."""
        body = {"messages": MESSAGES, "tools": TOOLS, **fields}
        response = self._client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.data
        return response.json

    def choice(self, **fields: Any) -> dict[str, Any]:
        """The only choice."""
        (choice,) = self.chat(**fields)["choices"]
        return choice

    def deltas(self, **fields: Any) -> list[tuple[dict[str, Any], str | None]]:
        """Delta and finish reason of each chunk of a stream that ends as it must."""
        body = {"messages": MESSAGES, "tools": TOOLS, "stream": True, **fields}
        data = self._client.post("/v1/chat/completions", json=body).data.decode()
        *events, done, end = data.split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        return [(choice["delta"], choice["finish_reason"]) for choice in choices]


@pytest.fixture
def qwen(tmp_path: Path, make_front: MakeFront, engine: ScriptedEngine) -> Chatter:
    return chatter("QWEN", tmp_path, make_front, engine)


@pytest.fixture
def mistral(tmp_path: Path, make_front: MakeFront, engine: ScriptedEngine) -> Chatter:
    return chatter("MISTRAL", tmp_path, make_front, engine)


@pytest.fixture
def generic(tmp_path: Path, make_front: MakeFront, engine: ScriptedEngine) -> Chatter:
    return chatter("GENERIC", tmp_path, make_front, engine)


def chatter(family: str, path: Path, make_front: MakeFront, engine: ScriptedEngine) -> Chatter:
    """Long prompts are allowed: templates write the tools into them."""
    model = make_tool_model(path / "model", family, max_total_tokens=1000)
    front = make_front()
    front.model = model
    return Chatter(create_app(front), engine, model)


def called(message: dict[str, Any]) -> list[tuple[str, str]]:
    functions = [call["function"] for call in message["tool_calls"]]
    return [(function["name"], function["arguments"]) for function in functions]


class TestWhole:
    def test_calls_take_the_place_of_words(self, qwen: Chatter) -> None:
        tokens = qwen.script(f"{CALL}\n{CALL}")
        content = qwen.chat()
        (choice,) = content["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        assert called(choice["message"]) == [("add", '{"a": 1}')] * 2
        ids = [call["id"] for call in choice["message"]["tool_calls"]]
        assert len(set(ids)) == 2
        assert all(re.fullmatch("call_[0-9a-f]{24}", id) for id in ids)
        assert content["usage"]["completion_tokens"] == tokens

    def test_words_may_stand_before_them(self, qwen: Chatter) -> None:
        qwen.script(f"I add. {CALL}")
        choice = qwen.choice()
        assert choice["message"]["content"] == "I add. "
        assert called(choice["message"]) == [("add", '{"a": 1}')]

    def test_words_alone_are_a_message_as_always(self, qwen: Chatter) -> None:
        qwen.script(" sky")
        choice = qwen.choice()
        assert choice["message"] == {"role": "assistant", "content": " sky"}
        assert choice["finish_reason"] == "stop"

    def test_a_call_that_is_cut_off_is_shown_as_far_as_it_goes(self, qwen: Chatter) -> None:
        qwen.script(CALL[: CALL.index(" 1")], "length")
        choice = qwen.choice()
        assert choice["finish_reason"] == "length"
        assert called(choice["message"]) == [("add", '{"a":')]

    def test_marks_that_are_special_tokens_are_seen(self, mistral: Chatter) -> None:
        mistral.script('[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]')
        message = mistral.choice()["message"]
        assert (message["content"], called(message)) == (None, [("add", '{"a": 1}')])
        assert re.fullmatch("[0-9A-Za-z]{9}", message["tool_calls"][0]["id"])

    def test_only_words_have_log_probabilities(self, qwen: Chatter) -> None:
        qwen.script(f" sky{CALL}")
        logprobs = qwen.choice(logprobs=True)["logprobs"]
        assert [token["token"] for token in logprobs["content"]] == [" sky"]

    def test_without_a_choice_there_is_no_grammar(self, qwen: Chatter) -> None:
        qwen.script(" sky")
        qwen.choice(tool_choice="none")
        assert qwen.engine.submitted[0].grammar is None


class TestStreams:
    def test_arguments_come_in_pieces(self, qwen: Chatter) -> None:
        qwen.script(CALL)
        (first, _), *others, last = qwen.deltas()
        (call,) = first["tool_calls"]
        assert (first["role"], first["content"]) == ("assistant", None)
        assert re.fullmatch("call_[0-9a-f]{24}", call.pop("id"))
        assert call == {
            "index": 0,
            "type": "function",
            "function": {"name": "add", "arguments": ""},
        }
        pieces = [delta["tool_calls"][0] for delta, _ in others]
        assert len(pieces) > 2
        assert all(set(piece) == {"index", "function"} for piece in pieces)
        assert all(set(piece["function"]) == {"arguments"} for piece in pieces)
        assert "".join(piece["function"]["arguments"] for piece in pieces) == '{"a": 1}'
        assert last == ({}, "tool_calls")

    def test_each_call_has_its_index(self, qwen: Chatter) -> None:
        qwen.script(f"{CALL}\n{CALL}")
        calls = [call for delta, _ in qwen.deltas() for call in delta.get("tool_calls", [])]
        assert [call["index"] for call in calls if "id" in call] == [0, 1]
        assert calls[-1]["index"] == 1

    def test_words_come_as_always(self, qwen: Chatter) -> None:
        qwen.script(" blue sky")
        assert qwen.deltas() == [
            ({"role": "assistant", "content": " blue"}, None),
            ({"content": " sky"}, None),
            ({}, "stop"),
        ]

    def test_usage_can_be_asked_for(self, qwen: Chatter) -> None:
        tokens = qwen.script(CALL)
        body = {"messages": MESSAGES, "tools": TOOLS, "stream": True}
        body["stream_options"] = {"include_usage": True}
        data = qwen._client.post("/v1/chat/completions", json=body).data
        assert b'"completion_tokens":%d,' % tokens in data.split(b"\n\n")[-3]


class TestModelsWithoutCallsOfTheirOwn:
    def test_the_name_is_not_an_argument(self, generic: Chatter) -> None:
        generic.script(GENERIC_CALL)
        choice = generic.choice()
        assert choice["finish_reason"] == "tool_calls"
        assert called(choice["message"]) == [("add", '{"a": 1}')]

    def test_who_declines_is_asked_again_without_tools(self, generic: Chatter) -> None:
        generic.script(DECLINED)
        tokens = generic.script(" sky")
        content = generic.chat(logprobs=True)
        (choice,) = content["choices"]
        assert choice["message"] == {"role": "assistant", "content": " sky"}
        assert choice["finish_reason"] == "stop"
        first, second = generic.engine.submitted
        assert (first.grammar is None, second.grammar) == (False, None)
        assert len(second.prompt_token_ids) < len(first.prompt_token_ids)
        assert content["usage"]["prompt_tokens"] == len(second.prompt_token_ids)
        assert content["usage"]["completion_tokens"] == tokens
        assert len(choice["logprobs"]["content"]) == tokens

    def test_a_stream_shows_the_second_answer_only(self, generic: Chatter) -> None:
        generic.script(DECLINED)
        generic.script(" sky")
        assert generic.deltas() == [
            ({"role": "assistant", "content": " sky"}, None),
            ({}, "stop"),
        ]

    def test_of_several_choices_only_those_that_declined_are_asked_again(
        self, generic: Chatter
    ) -> None:
        for text in (GENERIC_CALL, DECLINED, GENERIC_CALL, DECLINED, " sky", " sea"):
            generic.script(text)
        choices = generic.chat(n=4)["choices"]
        assert [choice["message"]["content"] for choice in choices] == [None, " sky", None, " sea"]
        assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
        assert len(generic.engine.submitted) == 6

    def test_a_required_call_is_never_declined(self, generic: Chatter) -> None:
        generic.script(GENERIC_CALL)
        deltas = generic.deltas(tool_choice="required")
        assert deltas[-1] == ({}, "tool_calls")

    def test_cut_off_before_the_name_there_is_nothing(self, generic: Chatter) -> None:
        generic.script('{"function"', "length")
        choice = generic.choice()
        assert choice["message"] == {"role": "assistant", "content": ""}
        assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool_choice": "sub"}, "Tool error: `tool_choice` names a function not in `tools`: sub"),
        (
            {"response_format": {"type": "json_object"}},
            "Tool error: Grammar and tools are mutually exclusive",
        ),
        ({"functions": [{"name": "f"}]}, "use `tools` and `tool_choice`"),
        ({"tools": [{"type": "custom"}]}, "function"),
    ],
)
def test_refusals(client: FlaskClient, fields: dict[str, Any], message: str, stream: bool) -> None:
    body = {"messages": MESSAGES, "tools": TOOLS, "stream": stream, **fields}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 422
    assert message in response.json["error"]["message"]
