"""Requests' grammars as the engine gets them; closed objects, against jsonschema as the oracle."""

import json
from typing import Any

import jsonschema
import pytest

from serving.errors import ErrorKind, RequestError
from serving.front import grammars
from serving.front.closed_schema import closed
from serving.protocol.params import Grammar

PERSON = {"type": "object", "properties": {"name": {"type": "string"}}}
CLOSED_PERSON = {**PERSON, "additionalProperties": False}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (PERSON, CLOSED_PERSON),
        ({"type": "array", "items": PERSON}, {"type": "array", "items": CLOSED_PERSON}),
        ({"anyOf": [PERSON, True]}, {"anyOf": [CLOSED_PERSON, True]}),
        (
            {"$defs": {"p": PERSON}, "$ref": "#/$defs/p"},
            {"$defs": {"p": CLOSED_PERSON}, "$ref": "#/$defs/p"},
        ),
        (
            {"properties": {"properties": PERSON}},
            {"properties": {"properties": CLOSED_PERSON}, "additionalProperties": False},
        ),
        (
            {"type": "object", "additionalProperties": PERSON},
            {"type": "object", "additionalProperties": CLOSED_PERSON},
        ),
    ],
    ids=["object", "items", "anyOf", "$defs", "property called properties", "values of a map"],
)
def test_objects_allow_what_they_name(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert closed(given) == expected


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {**PERSON, "additionalProperties": {"type": "integer"}},
        {**PERSON, "additionalProperties": True},
        {**PERSON, "patternProperties": {"^x": {}}},
        {**PERSON, "anyOf": [{"required": ["name"]}, {"required": ["age"]}]},
        {"allOf": [PERSON, {"properties": {"age": {"type": "integer"}}}]},
        {"oneOf": [PERSON, {"properties": {"age": {"type": "integer"}}}]},
        {"not": PERSON},
        {"enum": [{"properties": {}}]},
    ],
    ids=str,
)
def test_a_schema_stays_as_it_is_where_closing_would_change_its_meaning(schema: Any) -> None:
    assert closed(schema) == schema


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (PERSON, '{"name": "Ada"}'),
        (PERSON, "{}"),
        ({"anyOf": [PERSON, {"type": "integer"}]}, "3"),
        ({"oneOf": [PERSON, {"type": "integer"}]}, "3"),
    ],
)
def test_what_fits_the_closed_schema_fits_the_given_one(schema: Any, text: str) -> None:
    for one in (schema, closed(schema)):
        jsonschema.validate(json.loads(text), one)


def test_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(2000):
        schema = {"items": schema}
    with pytest.raises(RequestError, match="nested too deep") as caught:
        grammars.json_schema(schema)
    assert caught.value.kind is ErrorKind.VALIDATION


def test_a_schema_becomes_compact_json() -> None:
    assert grammars.json_schema({"const": "\u00e4 b"}) == Grammar(
        "json_schema", '{"const":"\u00e4 b"}'
    )
