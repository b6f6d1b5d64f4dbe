"""Grammars of calls: llguidance, as the engine uses it, accepts what may be written, no more."""

import json
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from serving.front.chat.messages import Message
from serving.front.model import LoadedModel
from serving.front.openai.schema import ChatRequest, Function, Tool
from serving.front.openai.tool_dialects import (
    GENERIC,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_ARGS,
    Dialect,
    dialect_of,
)
from serving.front.openai.tools import tool_use
from tests.support.tool_models import make_tool_model

ADD = Function("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})
GREET = Function(
    "greet",
    parameters={
        "type": "object",
        "properties": {"who": {"$ref": "#/$defs/Person"}},
        "required": ["who"],
        "$defs": {"Person": {"type": "object", "properties": {"name": {"enum": ["Ann", "Bo"]}}}},
    },
)
STOP = Function("stop")


class Checker:
    """A model and what its grammars accept."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._tokenizer = LLTokenizer(
            (Path(model.info.model_path) / "tokenizer.json").read_text(),
            max(model.info.vocab_size, 400),
            model.info.eos_token_ids,
        )

    def accepts(self, text: str, *functions: Function, **fields: Any) -> bool:
        """Whether `text` is a whole output."""
        matcher, ids = self._matcher(functions, fields), self._ids(text)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    def begins(self, text: str, *functions: Function, **fields: Any) -> bool:
        """Whether `text` is the beginning of an output."""
        ids = self._ids(text)
        return self._matcher(functions, fields).try_consume_tokens(ids) == len(ids)

    def _ids(self, text: str) -> list[int]:
        return self.model.tokenizer.encode(text, add_special_tokens=False)

    def _matcher(self, functions: tuple[Function, ...], fields: dict[str, Any]) -> LLMatcher:
        tools = [Tool(function) for function in functions]
        body = ChatRequest(messages=[Message(role="user", content="q")], tools=tools, **fields)
        use = tool_use(body, self.model.tool_dialect)
        assert use is not None
        grammar = use.grammar(self.model.tokenizer.added_tokens)
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar.source))
        assert matcher.get_error() == ""
        return matcher


@pytest.fixture(scope="module", params=[True, False], ids=["tokens", "text"])
def qwen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checker:
    return Checker(make_tool_model(tmp_path_factory.mktemp("qwen"), "QWEN", request.param))


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Checker:
    return Checker(make_tool_model(tmp_path_factory.mktemp("mistral"), "MISTRAL"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checker:
    return Checker(make_tool_model(tmp_path_factory.mktemp("llama"), "LLAMA"))


@pytest.fixture(scope="module")
def generic(tmp_path_factory: pytest.TempPathFactory) -> Checker:
    return Checker(make_tool_model(tmp_path_factory.mktemp("generic"), "GENERIC"))


def hermes_call(name: str, arguments: dict[str, Any]) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


A, B = hermes_call("add", {"a": 1}), hermes_call("greet", {"who": {"name": "Ann"}})


def test_the_template_tells_the_dialect(
    qwen: Checker, mistral: Checker, llama: Checker, generic: Checker
) -> None:
    found = [one.model.tool_dialect for one in (qwen, mistral, llama, generic)]
    assert found == [HERMES, MISTRAL, LLAMA, GENERIC]


@pytest.mark.parametrize(
    ("template", "dialect"),
    [
        (r"<tool_call>{{ '{\"name\": ..., \"arguments\": ...}' }}", HERMES),
        ("<tool_call>\\n<function=f>\\n<parameter=a>", GENERIC),
        ("<tool_call>f\\n<arg_key>a</arg_key>", GENERIC),
        ('<tool_calls>[{"name": ..., "arguments": ...}]', GENERIC),
        ("[TOOL_CALLS]f[ARGS]{}", MISTRAL_ARGS),
        ("{{ messages }}", GENERIC),
    ],
)
def test_others_tell_their_own(template: str, dialect: Dialect) -> None:
    assert dialect_of(template) == dialect


class TestHermes:
    @pytest.mark.parametrize(
        "text", ["", "words", f"words {A}", A, f"{A}\n{B}", f"{B}\n{A}\n{B}", "<tool", "1 < 2"]
    )
    def test_words_calls_or_both_are_free(self, qwen: Checker, text: str) -> None:
        assert qwen.accepts(text, ADD, GREET)

    @pytest.mark.parametrize(
        "text",
        [
            "<tool_call>?",
            hermes_call("other", {}),
            hermes_call("add", {"a": "x"}),
            hermes_call("add", {"b": 1}),
            hermes_call("greet", {}),
            hermes_call("greet", {"who": {"name": "Cy"}}),
        ],
    )
    def test_a_call_that_begins_fits_its_schema(self, qwen: Checker, text: str) -> None:
        assert not qwen.begins(text, ADD, GREET)
        assert not qwen.begins(f"words {text}", ADD, GREET)

    def test_thoughts_may_come_first(self, qwen: Checker) -> None:
        assert qwen.accepts(f"<think>hm</think>{A}", ADD)
        assert not qwen.begins("<think>hm</think><tool_call>?", ADD)

    @pytest.mark.parametrize("choice", ["required", "add"])
    def test_a_required_call_comes_at_once(self, qwen: Checker, choice: str) -> None:
        assert qwen.accepts(A, ADD, GREET, tool_choice=choice)
        assert not qwen.begins("w", ADD, GREET, tool_choice=choice)

    def test_only_the_named_function_is_called_and_once(self, qwen: Checker) -> None:
        assert not qwen.begins(B, ADD, GREET, tool_choice="add")
        assert not qwen.begins(f"{A}\n", ADD, GREET, tool_choice="add")

    def test_calls_need_not_be_parallel(self, qwen: Checker) -> None:
        assert not qwen.begins(f"{A}\n", ADD, parallel_tool_calls=False)

    def test_a_function_without_parameters_has_no_arguments(self, qwen: Checker) -> None:
        assert qwen.accepts(hermes_call("stop", {}), STOP)
        assert not qwen.begins(hermes_call("stop", {"a": 1}), STOP)


class TestMistral:
    CALLS = '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}'

    def test_calls_are_a_list(self, mistral: Checker) -> None:
        second = ', {"name": "greet", "arguments": {"who": {"name": "Bo"}}}'
        assert mistral.accepts(f"{self.CALLS}]", ADD, GREET)
        assert mistral.accepts(f"{self.CALLS}]".replace("][", "] ["), ADD, GREET)
        assert mistral.accepts(f"words{self.CALLS}{second}]", ADD, GREET)
        assert not mistral.accepts(self.CALLS, ADD, GREET)

    def test_what_follows_the_mark_is_a_call(self, mistral: Checker) -> None:
        assert not mistral.begins("[TOOL_CALLS]words", ADD)
        assert mistral.accepts("words [TOOL CALLS]", ADD)


class TestLlama:
    CALL = '{"name": "add", "parameters": {"a": 1}}'

    @pytest.mark.parametrize("text", ["", "words", "words {", CALL, f"<|python_tag|>{CALL}"])
    def test_words_or_one_call(self, llama: Checker, text: str) -> None:
        assert llama.accepts(text, ADD)

    @pytest.mark.parametrize("text", ["{}", '{"name": "sub"', CALL + ";", "<|python_tag|>words"])
    def test_what_begins_like_a_call_is_one(self, llama: Checker, text: str) -> None:
        assert not llama.begins(text, ADD)

    def test_a_required_call_comes_at_once(self, llama: Checker) -> None:
        assert llama.accepts(self.CALL, ADD, tool_choice="required")
        assert not llama.begins("w", ADD, tool_choice="required")


class TestGeneric:
    CALL = '{"function": {"_name": "add", "a": 1}}'

    def test_it_calls_a_function_or_none(self, generic: Checker) -> None:
        assert generic.accepts(self.CALL, ADD, GREET)
        assert generic.accepts('{"function": {"_name": "no_tool"}}', ADD, GREET)
        assert generic.accepts('{"function": {"_name": "greet", "who": {"name": "Bo"}}}', GREET)
        assert not generic.begins("words", ADD)

    @pytest.mark.parametrize("choice", ["required", "add"])
    def test_a_required_call_cannot_be_declined(self, generic: Checker, choice: str) -> None:
        assert generic.accepts(self.CALL, ADD, tool_choice=choice)
        assert not generic.begins('{"function": {"_name": "no', ADD, tool_choice=choice)

    def test_a_schema_may_be_a_reference(self, generic: Checker) -> None:
        schema = {"$ref": "#/$defs/Args", "$defs": {"Args": ADD.parameters}}
        assert generic.accepts(self.CALL, Function("add", parameters=schema))
        assert not generic.begins(
            '{"function": {"_name": "add", "b"', Function("add", parameters=schema)
        )

    def test_a_reference_to_itself_is_left_to_the_engine_to_refuse(self, generic: Checker) -> None:
        schema = {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}
        with pytest.raises(AssertionError, match="stack level exceeded"):
            generic.begins("", Function("add", parameters=schema))


def test_what_a_grammar_cannot_say_is_left_out_unless_strict(qwen: Checker) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "not": {"const": 3}}}}
    assert qwen.accepts(A, Function("add", parameters=schema))
    with pytest.raises(AssertionError, match="not"):
        qwen.accepts(A, Function("add", parameters=schema, strict=True))


def test_names_and_texts_are_escaped(qwen: Checker) -> None:
    function = Function('odd "name"\n', parameters=ADD.parameters)
    assert qwen.accepts(hermes_call('odd "name"\n', {"a": 1}), function)
