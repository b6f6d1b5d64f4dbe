"""The form of the whole output that a request asks for: OpenAI's, TGI's and vLLM's fields.

Runs in the front. Comes in: a body of an OpenAI route. Goes out: a `Grammar` or None. Next:
`openai/parameters.py`.
"""

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from serving.errors import ErrorKind, RequestError
from serving.front.grammars import from_guided_format, json_schema
from serving.front.openai.schema import OpenAIRequest
from serving.front.parameters import GuidedFormat
from serving.protocol.params import Grammar

ANY_OBJECT = {"type": "object"}
TYPES = "text, json, json_object, json_schema, regex, lark"


def output_grammar(body: OpenAIRequest) -> Grammar | None:
    """What the output must match, None if it is free. Raises `RequestError` VALIDATION."""
    found = [grammar for grammar in _grammars(body) if grammar is not None]
    if len(found) > 1:
        raise _refusal(
            "only one of `response_format`, `structured_outputs` and the `guided_` fields "
            f"can be given. Given: {len(found)}"
        )
    return found[0] if found else None


def _grammars(body: OpenAIRequest) -> Iterator[Grammar | None]:
    """The grammar of each field that can ask for one."""
    if body.response_format is not None:
        yield _of_response_format(body.response_format)
    yield _of("json", body.guided_json)
    yield _of("regex", body.guided_regex)
    yield _of("lark", body.guided_grammar)
    yield _of_choices(body.guided_choice)
    outputs = body.structured_outputs
    if outputs is None:
        return
    if outputs.structural_tag is not None:
        raise _refusal("`structured_outputs.structural_tag` is not supported")
    yield _of("json", outputs.json)
    yield _of("regex", outputs.regex)
    yield _of("lark", outputs.grammar)
    yield _of_choices(outputs.choice)
    yield json_schema(ANY_OBJECT) if outputs.json_object else None


def _of_response_format(given: dict[str, Any]) -> Grammar | None:
    """TGI's form has a `value`, OpenAI's has a key of the type's name, or nothing more."""
    kind = given.get("type")
    if kind == "text":
        return None
    if "value" in given:
        try:
            return from_guided_format(msgspec.convert(given, GuidedFormat))
        except msgspec.ValidationError as error:
            raise _refusal(f"`response_format`: {error}") from error
    if kind == "json_object":
        return _of_openai_schema(given)  # LangChain's client of TGI puts a `schema` beside the type
    if kind == "json_schema":
        return _of_openai_schema(given.get("json_schema"))
    if kind in ("json", "regex", "lark"):
        raise _refusal(f"`response_format` of type `{kind}` needs a `value`")
    raise _refusal(f"`response_format.type` must be one of {TYPES}. Given: {kind}")


def _of_openai_schema(given: object) -> Grammar:
    schema = given.get("schema", ANY_OBJECT) if isinstance(given, dict) else None
    if not isinstance(schema, dict):
        raise _refusal("`response_format.json_schema` must be an object with a `schema`")
    return json_schema(schema)


def _of(kind: Any, value: object) -> Grammar | None:
    return None if value is None else from_guided_format(GuidedFormat(kind, value))


def _of_choices(choices: list[str] | None) -> Grammar | None:
    if choices is None:
        return None
    if not choices:
        raise _refusal("a choice needs at least one text")
    return _of("lark", "start: " + " | ".join(json.dumps(text) for text in choices))


def _refusal(message: str) -> RequestError:
    return RequestError(ErrorKind.VALIDATION, message)
