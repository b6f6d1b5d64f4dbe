"""Grammars over the tiny tokenizer: what they admit, what is refused, what is kept."""

import threading
from pathlib import Path

import pytest
from llguidance import LLMatcher

from serving.engine.schedule.grammar_compiler import (
    MOST_KEPT,
    GrammarCompiler,
    GrammarError,
    source_of,
)
from serving.protocol.params import Grammar
from tests.support.tiny_model import EOS_ID, make_model_directory

VOCABULARY = 330  # ten more than the tokenizer has


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_directory(tmp_path_factory.mktemp("model"))


@pytest.fixture
def compiler(directory: Path) -> GrammarCompiler:
    return GrammarCompiler(directory, VOCABULARY, [EOS_ID])


def admits(compiler: GrammarCompiler, grammar: Grammar, text: str) -> bool:
    """Whether the grammar takes `text` as a whole, one token per byte."""
    matcher = compiler.compile(grammar)
    tokens = compiler.loaded_tokenizer().tokenize_str(text)
    return bool(matcher.consume_tokens(tokens) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("grammar", "text", "fits"),
    [
        (Grammar("regex", r"\d{2}"), "42", True),
        (Grammar("regex", r"\d{2}"), "٤٢", False),
        (Grammar("regex", "^ab$"), "ab", True),
        (Grammar("regex", r"a/b\."), "a/b.", True),
        (Grammar("lark", 'start: "a" | "b" start'), "bba", True),
        (Grammar("lark", 'start: "a" | "b" start'), "bb", False),
        (Grammar("json_schema", '{"type":"integer","minimum":3}'), "7", True),
        (Grammar("json_schema", '{"type":"integer","minimum":3}'), "2", False),
        (Grammar("json_schema", '{"type":"array"}'), "[1, 2]", True),
        (Grammar("json_schema", '{"type":"array"}'), "[1,  2]", False),
        (Grammar("json_schema", "true"), '{"a": [null]}', True),
    ],
    ids=str,
)
def test_whole_texts(compiler: GrammarCompiler, grammar: Grammar, text: str, fits: bool) -> None:
    assert admits(compiler, grammar, text) is fits


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar("regex", "("), "unclosed group"),
        (Grammar("regex", "(?=a)b"), "look-around"),
        (Grammar("lark", "start: nothing"), "nothing"),
        (Grammar("json_schema", '{"type":"objec"}'), "Invalid type: objec"),
        (Grammar("json_schema", "{"), "grammar is not valid"),
        (Grammar("json_schema", '{"type":"array","uniqueItems":true}'), "uniqueItems"),
        (Grammar("json_schema", '{"$ref":"#/nowhere"}'), "'/nowhere' does not exist"),
        (
            Grammar("json_schema", '{"type":"integer","minimum":3,"maximum":2}'),
            "minimum (3) is greater than maximum (2)",
        ),
    ],
    ids=str,
)
def test_the_reason_of_a_refusal_is_one_line(
    compiler: GrammarCompiler, grammar: Grammar, reason: str
) -> None:
    with pytest.raises(GrammarError) as caught:
        compiler.compile(grammar)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_compiled_grammar_is_kept_and_each_matcher_starts_afresh(
    compiler: GrammarCompiler,
) -> None:
    grammar = Grammar("regex", "ab")
    assert compiler.known(grammar) is None
    compiler.compile(grammar).consume_tokens(compiler.loaded_tokenizer().tokenize_str("a"))
    kept = compiler.known(grammar)
    assert kept is not None
    assert kept.consume_tokens(compiler.loaded_tokenizer().tokenize_str("ab"))


def test_the_least_recently_used_grammar_goes_first(compiler: GrammarCompiler) -> None:
    grammars = [Grammar("regex", f"a{{{number}}}") for number in range(1, MOST_KEPT + 2)]
    compiler.compile(grammars[0])
    for grammar in grammars[1:-1]:
        compiler.compile(grammar)
    compiler.known(grammars[0])
    compiler.compile(grammars[-1])
    assert compiler.known(grammars[0]) is not None
    assert compiler.known(grammars[1]) is None


def test_without_a_tokenizer_file_grammars_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GrammarError, match=r"no tokenizer\.json"):
        GrammarCompiler(tmp_path, 10, [1]).compile(Grammar("regex", "a"))


def test_threads_may_compile_at_once(compiler: GrammarCompiler) -> None:
    made: list[LLMatcher] = []
    threads = [
        threading.Thread(target=lambda: made.append(compiler.compile(Grammar("regex", "a|b"))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [matcher.is_error() for matcher in made] == [False] * 4


def test_json_is_checked_before_it_reaches_the_library() -> None:
    with pytest.raises(GrammarError):
        source_of(Grammar("json_schema", "not json"))
