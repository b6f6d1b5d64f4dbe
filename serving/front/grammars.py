"""What a request says about the form of its output, as the engine's `Grammar`.

Runs in the front. Comes in: TGI's `{"type", "value"}`, or a schema from an OpenAI field. Goes out:
a `Grammar`, which only the engine compiles: what it refuses comes back as a validation error.
Next: `validation.py`.
"""

from typing import Any

import msgspec

from serving.errors import ErrorKind, RequestError
from serving.front.closed_schema import closed
from serving.front.parameters import GuidedFormat
from serving.protocol.params import Grammar

LONGEST_SOURCE = 256 * 1024  # characters of a schema, an expression or a grammar


def from_guided_format(format: GuidedFormat) -> Grammar:
    """The grammar of TGI's form. Raises `RequestError` VALIDATION, worded as TGI does."""
    if format.type in ("regex", "lark"):
        return _from_text(format.type, format.value)
    schema = format.value
    if format.type == "json_schema":
        schema = schema.get("schema") if isinstance(schema, dict) else None
        if not isinstance(schema, dict):
            raise _refusal("grammar is not valid: `value` must be an object with a `schema`")
    if isinstance(schema, str):
        schema = _parsed(schema)
    if not isinstance(schema, dict):
        raise _refusal("grammar is not supported")
    return json_schema(schema)


def json_schema(schema: dict[str, Any] | bool) -> Grammar:
    """A grammar of JSON texts that fit `schema`. Raises `RequestError` if it is too big."""
    try:
        source = msgspec.json.encode(closed(schema)).decode()
    except RecursionError as error:
        raise _refusal("grammar is not valid: the schema is nested too deep") from error
    return _bounded(Grammar("json_schema", source))


def _from_text(kind: Any, source: object) -> Grammar:
    if not isinstance(source, str):
        raise _refusal(f"grammar is not valid: the value of type `{kind}` must be a string")
    return _bounded(Grammar(kind, source))


def _parsed(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise _refusal(f"grammar is not valid: {error}") from error


def _bounded(grammar: Grammar) -> Grammar:
    length = len(grammar.source)
    if length > LONGEST_SOURCE:
        raise _refusal(f"grammar must have <= {LONGEST_SOURCE} characters. Given: {length}")
    return grammar


def _refusal(message: str) -> RequestError:
    return RequestError(ErrorKind.VALIDATION, message)
