"""Keeps a model from inventing properties: objects of a JSON schema allow only what they name.

Runs in the front. Comes in: a schema as the client gave it. Goes out: a schema that admits fewer
texts, each of which fits the given one. JSON Schema allows further properties unless told
otherwise; TGI and OpenAI do not, and a weak model would add them without end. Next: `grammars.py`.
"""

from collections.abc import Mapping
from typing import Any

# Keywords whose value is one schema, a list of schemas, or schemas by name. Others are left alone:
# what is closed inside `oneOf` or `not` could admit more than before.
ONE = ("items", "additionalItems", "additionalProperties")
MANY = ("anyOf", "prefixItems", "items")
NAMED = ("properties", "patternProperties", "$defs", "definitions")
# Keywords beside which the properties of other schemas count too: such an object stays open.
SHARED = ("allOf", "anyOf", "oneOf", "$ref", "patternProperties", "unevaluatedProperties", "if")


def closed(schema: Any) -> Any:
    """`schema`, in which every object that names its properties has no others.

    A schema with `allOf` anywhere is returned as it is: there, objects are put together from parts
    that would exclude each other. Raises `RecursionError` if it is nested too deep.
    """
    return schema if _has_all_of(schema) else _closed(schema)


def _has_all_of(value: Any) -> bool:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if "allOf" in one:
                return True
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return False


def _closed(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    result = {keyword: _closed_value(keyword, value) for keyword, value in schema.items()}
    if (
        isinstance(schema.get("properties"), Mapping)
        and "additionalProperties" not in schema
        and not any(keyword in schema for keyword in SHARED)
    ):
        result["additionalProperties"] = False
    return result


def _closed_value(keyword: str, value: Any) -> Any:
    if keyword in NAMED and isinstance(value, Mapping):
        return {name: _closed(one) for name, one in value.items()}
    if keyword in MANY and isinstance(value, list):
        return [_closed(one) for one in value]
    return _closed(value) if keyword in ONE else value
