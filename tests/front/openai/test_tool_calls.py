"""Calls are found in the text of a model, however it is cut into pieces."""

import json
from collections.abc import Iterator, Sequence

import pytest

from serving.front.openai.tool_calls import Arguments, CallParser, CallStart, Piece
from serving.front.openai.tool_dialects import (
    GENERIC,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_ARGS,
    Dialect,
)

ARGUMENTS = '{"a": "}\\"{", "b": [{"c": 1}]}'
BOTH = [("f", ARGUMENTS), ("g", "{}")]

# Dialect, text, words, calls.
OUTPUTS: list[tuple[Dialect, str, str, list[tuple[str, str]]]] = [
    (HERMES, "only <words> here", "only <words> here", []),
    (
        HERMES,
        'see:\n<tool_call>\n{"name": "f", "arguments": ' + ARGUMENTS + "}\n</tool_call>\n"
        '<tool_call>{"name":"g","arguments":{}}</tool_call>',
        "see:\n",
        BOTH,
    ),
    (
        MISTRAL,
        '[TOOL_CALLS][{"name": "f", "arguments": ' + ARGUMENTS + "}, "
        '{"name": "g", "arguments": {}}]',
        "",
        BOTH,
    ),
    (MISTRAL, ' [TOOL_CALLS] [{"name": "g", "arguments": {}, "id": "x"}]', " ", BOTH[1:]),
    (MISTRAL_ARGS, "so[TOOL_CALLS]f[ARGS]" + ARGUMENTS + "[TOOL_CALLS]g[ARGS]{}", "so", BOTH),
    (LLAMA, '{"name": "f", "parameters": ' + ARGUMENTS + "}", "", BOTH[:1]),
    (LLAMA, '\n{"name": "g", "parameters": {}}', "", BOTH[1:]),
    (LLAMA, 'as {"name": "g", "parameters": {}}', 'as {"name": "g", "parameters": {}}', []),
    (LLAMA, '{"city": "Rome"}', '{"city": "Rome"}', []),
    (GENERIC, '{"function": {"_name": "f", ' + ARGUMENTS[1:] + "}", "", BOTH[:1]),
    (GENERIC, '{"function": {"_name": "g"}}', "", BOTH[1:]),
    (GENERIC, '{"function":{"_name":"g","a":1}}', "", [("g", '{"a":1}')]),
]


def parse(
    dialect: Dialect, pieces: Sequence[str], required: bool = False
) -> tuple[str, list[tuple[str, str]]]:
    """Words, and the calls with their arguments."""
    words, calls = "", []
    for piece in stream(CallParser(dialect, required), pieces):
        if isinstance(piece, str):
            words += piece
        elif isinstance(piece, CallStart):
            calls.append((piece.name, ""))
        else:
            name, arguments = calls.pop()
            calls.append((name, arguments + piece.text))
    return words, calls


def stream(parser: CallParser, pieces: Sequence[str]) -> Iterator[Piece]:
    for piece in pieces:
        yield from parser.push(piece)
    yield from parser.flush()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("dialect", "text", "words", "calls"), OUTPUTS)
def test_words_and_calls_are_told_apart(
    dialect: Dialect, text: str, words: str, calls: list[tuple[str, str]], size: int
) -> None:
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert parse(dialect, pieces) == (words, calls)


@pytest.mark.parametrize(("dialect", "text", "words", "calls"), OUTPUTS)
def test_a_cut_text_has_a_beginning_of_the_same_calls(
    dialect: Dialect, text: str, words: str, calls: list[tuple[str, str]]
) -> None:
    for end in range(len(text)):
        found = parse(dialect, list(text[:end]), required=not words)[1]
        for (name, arguments), (whole_name, whole) in zip(found, calls, strict=False):
            assert name == whole_name
            assert whole.startswith(arguments)
        assert len(found) <= len(calls)


def test_words_are_given_out_at_once_and_arguments_as_they_come() -> None:
    parser = CallParser(HERMES, required=False)
    assert list(parser.push("so <")) == ["so "]
    assert list(parser.push("b> <tool")) == ["<b> "]
    assert list(parser.push('_call>\n{"name": "f", "arguments": ')) == []
    assert list(parser.push('{"a"')) == [CallStart("f"), Arguments('{"a"')]
    assert list(parser.push(": 1}}\n")) == [Arguments(": 1}")]
    assert list(parser.push("</tool_call>")) == []
    assert list(parser.flush()) == []


def test_what_only_seemed_to_be_a_call_is_words() -> None:
    assert parse(HERMES, ["a <tool_c"]) == ("a <tool_c", [])
    assert parse(HERMES, ["<tool_call>{}"]) == ("<tool_call>{}", [])


def test_a_call_that_was_required_never_shows_as_words() -> None:
    assert parse(HERMES, ['<tool_call>\n{"name": "f'], required=True) == ("", [])
    assert parse(GENERIC, ['{"function": {"_na']) == ("", [])


def test_names_are_read_as_json() -> None:
    name = 'é"\n'
    text = json.dumps({"name": name, "parameters": {}})
    assert parse(LLAMA, [text]) == ("", [(name, "{}")])
    assert parse(LLAMA, ['{"name": "\\x", "parameters": {}}'])[1] == []
