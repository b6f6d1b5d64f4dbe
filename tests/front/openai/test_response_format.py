"""Every field that asks for a form of the output, as a grammar."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher

from serving.errors import ErrorKind, RequestError
from serving.front.openai.response_format import output_grammar
from serving.front.openai.schema import CompletionRequest, StructuredOutputs
from serving.protocol.params import Grammar

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED = {**SCHEMA, "additionalProperties": False}
REGEX = Grammar("regex", "[a-z]+")
LARK = Grammar("lark", 'start: "a"')


def grammar(**fields: Any) -> Grammar | None:
    return output_grammar(CompletionRequest(prompt="a", **fields))


@pytest.mark.parametrize(
    "format",
    [
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
        {"type": "json_schema", "value": {"name": "x", "schema": SCHEMA}},
        {"type": "json_object", "value": SCHEMA},
        {"type": "json", "value": json.dumps(SCHEMA)},
    ],
)
def test_a_schema_in_each_of_its_forms(format: dict[str, Any]) -> None:
    found = grammar(response_format=format)
    assert found is not None
    assert (found.kind, json.loads(found.source)) == ("json_schema", CLOSED)


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"structured_outputs": StructuredOutputs(json=SCHEMA)},
    ],
)
def test_a_schema_by_the_names_of_vllm(fields: dict[str, Any]) -> None:
    found = grammar(**fields)
    assert found is not None
    assert json.loads(found.source) == CLOSED


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"structured_outputs": StructuredOutputs(json_object=True)},
    ],
)
def test_any_object(fields: dict[str, Any]) -> None:
    assert grammar(**fields) == Grammar("json_schema", '{"type":"object"}')


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"response_format": {"type": "regex", "value": "[a-z]+"}}, REGEX),
        ({"guided_regex": "[a-z]+"}, REGEX),
        ({"structured_outputs": StructuredOutputs(regex="[a-z]+")}, REGEX),
        ({"response_format": {"type": "lark", "value": 'start: "a"'}}, LARK),
        ({"guided_grammar": 'start: "a"'}, LARK),
        ({"structured_outputs": StructuredOutputs(grammar='start: "a"')}, LARK),
    ],
)
def test_expressions_and_grammars(fields: dict[str, Any], found: Grammar) -> None:
    assert grammar(**fields) == found


def test_choices_are_texts_and_nothing_else() -> None:
    texts = ['a "b"', "c\nd", "é"]
    found = grammar(guided_choice=texts)
    assert found == grammar(structured_outputs=StructuredOutputs(choice=texts))
    assert found is not None
    assert LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(found.source)) == ""
    assert found.source == 'start: "a \\"b\\"" | "c\\nd" | "\\u00e9"'


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"structured_outputs": StructuredOutputs(json_object=False)},
    ],
)
def test_a_free_output(fields: dict[str, Any]) -> None:
    assert grammar(**fields) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"response_format": {"type": "xml"}}, "one of text, json, .* Given: xml"),
        ({"response_format": {}}, "Given: None"),
        ({"response_format": {"type": "regex"}}, "`regex` needs a `value`"),
        ({"response_format": {"type": "regex", "value": 5}}, "must be a string"),
        ({"response_format": {"type": "xml", "value": "x"}}, "`response_format`: "),
        ({"response_format": {"type": "json_schema"}}, "must be an object with a `schema`"),
        ({"guided_choice": []}, "at least one text"),
        ({"structured_outputs": StructuredOutputs(structural_tag={})}, "structural_tag"),
        ({"guided_regex": "a", "guided_json": SCHEMA}, "only one of .* Given: 2"),
    ],
)
def test_what_makes_no_grammar_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        grammar(**fields)
    assert caught.value.kind is ErrorKind.VALIDATION
