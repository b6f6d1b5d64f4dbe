"""Grammars that keep the output of a model to text and calls of given functions.

Runs in the front. Comes in: a `Dialect`, the schemas of the arguments, whether a call is required.
Goes out: Lark source in llguidance's form. Every schema stands alone in it, so that references
in it keep their meaning. Next: `tools.py`.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from serving.front.openai.tool_dialects import Dialect

Schema = dict[str, Any]

# Models were trained on what Python's `json` writes; nothing else is allowed between values.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
MOST_REFERENCES = 16  # from the top of a schema to an object
ANY_TEXT = "TEXT: /(.|\\n)*/"


def call_grammar(
    dialect: Dialect,
    schemas: Mapping[str, Schema],
    added_tokens: Mapping[str, int],
    *,
    required: bool,
    parallel: bool,
) -> str:
    """Lark source of outputs that call the functions of `schemas` (name to arguments).

    `added_tokens`: text to id of tokens that no text can contain. `required`: the output begins
    with a call; otherwise it may be text, or text and then calls. `parallel`: several calls.
    """
    literal = _literals(added_tokens)
    trigger = literal(dialect.trigger)
    more = ""
    if parallel and dialect.separator is not None:
        again = f"{trigger} call" if dialect.repeats_trigger else "call"
        more = f"({literal(dialect.separator)} {again})*"
    first = f'" "? {literal(dialect.first)}' if dialect.first else ""
    calls = f"{first} call {more} {literal(dialect.last)}"
    start = [f"start: {trigger} {calls}"] if required else _start(dialect, calls, added_tokens)
    names = " | ".join(f"call_{number}" for number in range(len(schemas)))
    each = (
        f"call_{number}: {_call(dialect, name, schema, literal)}"
        for number, (name, schema) in enumerate(schemas.items())
    )
    return "\n".join([*start, f"call: {names}", *each])


def _start(dialect: Dialect, calls: str, added_tokens: Mapping[str, int]) -> Iterator[str]:
    """The rules of what may stand before the first call, or instead of any."""
    trigger = _literals(added_tokens)(dialect.trigger)
    reserved = (dialect.trigger, dialect.ignored_prefix)
    others = [id for text, id in added_tokens.items() if text not in reserved]
    special = f"(<[{_ranges(others)}]> TEXT)*" if others else ""
    yield ANY_TEXT
    if dialect.at_start_only:
        prefix = added_tokens.get(dialect.ignored_prefix)
        yield f"start: {'' if prefix is None else f'<[{prefix}]>?'} {trigger} {calls} | free"
        yield f"free: FIRST? {special}"
        yield f"FIRST: /[^{re.escape(dialect.trigger[0])}](.|\\n)*/"
        return
    yield f"start: free | lead {calls}"
    yield f"free: TEXT {special}"
    if dialect.trigger in added_tokens:
        yield f"lead: free {trigger}"
    else:
        yield f"lead: {f'(TEXT <[{_ranges(others)}]>)*' if others else ''} triggered"
        yield f"triggered[lazy]: TEXT {trigger}"


def _call(dialect: Dialect, name: str, schema: Schema, literal: Callable[[str], str]) -> str:
    before = dialect.before_name
    if dialect.arguments_hold_name:
        schema = _with_name(name, schema)
    else:
        before += dialect.written_name(name) + dialect.after_name
    style = JSON_STYLE | schema.get("x-guidance", {})
    arguments = json.dumps({**schema, "x-guidance": style})
    return f"{literal(before)} %json {arguments} {literal(dialect.after_arguments)}"


def _literals(added_tokens: Mapping[str, int]) -> Callable[[str], str]:
    """A function that writes a text in Lark: strings, and ids where it holds added tokens."""
    longest_first = sorted(added_tokens, key=len, reverse=True)
    splitter = re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else "$")

    def literal(text: str) -> str:
        return " ".join(
            f"<[{added_tokens[piece]}]>" if piece in added_tokens else json.dumps(piece)
            for piece in splitter.split(text)
            if piece
        )

    return literal


def _ranges(ids: Iterable[int]) -> str:
    """The ids as llguidance writes sets of tokens: 3,7-9."""
    runs: list[list[int]] = []
    for id in sorted(ids):
        if runs and runs[-1][1] == id - 1:
            runs[-1][1] = id
        else:
            runs.append([id, id])
    return ",".join(f"{first}-{last}" if first != last else str(first) for first, last in runs)


def _with_name(name: str, schema: Schema) -> Schema:
    """`schema` with the function's name as its first property."""
    schema = _resolved(schema)
    return {
        **schema,
        "type": "object",
        "properties": {"_name": {"const": name}, **schema.get("properties", {})},
        "required": ["_name", *schema.get("required", [])],
    }


def _resolved(schema: Schema) -> Schema:
    """The object that a schema refers to at its top, with all definitions."""
    target: Any = schema
    for _ in range(MOST_REFERENCES):
        if not (isinstance(target, dict) and str(target.get("$ref", "")).startswith("#/")):
            break
        path = target["$ref"].removeprefix("#/").split("/")
        target = schema
        for key in path:
            target = target.get(key) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        return schema
    return {key: value for key, value in schema.items() if key != "$ref"} | target
