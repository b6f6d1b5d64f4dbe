"""Turns a `Grammar` into a matcher over the model's tokens, away from the engine's step path.

Rank 0. `guidance.py` calls `compile()` in threads of its own; llguidance works there without the
interpreter lock. Compiled grammars are kept, least recently used ones go first. Every limit that
keeps one grammar from holding up the others is here.
"""

import threading
from collections import OrderedDict
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark

from serving.protocol.params import Grammar

MOST_KEPT = 128  # compiled grammars; some 100 kB each
# One mask is one search of the vocabulary: at about 14,000 units of fuel and 20,000 items a
# millisecond, no grammar can take longer for it than this many milliseconds.
LONGEST_MASK_MS = 8
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # about 20 ms
    step_lexer_fuel=14_000 * LONGEST_MASK_MS,
    step_max_items=20_000 * LONGEST_MASK_MS,
    max_grammar_size=200_000,
    max_lexer_states=50_000,  # about 2 kB each
    verbose_errors=False,
)


class GrammarError(Exception):
    """The grammar cannot be used; the message is for the client."""


class GrammarCompiler:
    """Compiles for one model; may be called by several threads."""

    def __init__(self, model_path: Path, vocab_size: int, end_token_ids: list[int]) -> None:
        """`vocab_size`: width of the logits, which may exceed the tokenizer's own."""
        self._tokenizer_file = model_path / "tokenizer.json"
        self._vocab_size = vocab_size
        self._end_token_ids = end_token_ids
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def known(self, grammar: Grammar) -> LLMatcher | None:
        """A fresh matcher of a grammar that was compiled before; returns at once."""
        with self._lock:
            kept = self._kept.get(grammar)
            if kept is None:
                return None
            self._kept.move_to_end(grammar)
            return kept.deep_copy()

    def compile(self, grammar: Grammar) -> LLMatcher:
        """A fresh matcher at the beginning of the text. Raises `GrammarError`."""
        matcher = self.known(grammar)
        if matcher is not None:
            return matcher
        matcher = LLMatcher(self.loaded_tokenizer(), source_of(grammar), log_level=0, limits=LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what is too complex for a step shows already here
        if matcher.is_error():
            raise GrammarError(f"grammar is not valid: {one_line(matcher.get_error())}")
        with self._lock:
            self._kept[grammar] = matcher
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
            return matcher.deep_copy()

    def loaded_tokenizer(self) -> LLTokenizer:
        """The vocabulary as a tree, built at the first grammar: it takes a second if it is big."""
        with self._lock:
            if self._tokenizer is None:
                if not self._tokenizer_file.is_file():
                    raise GrammarError("grammar is not supported: the model has no tokenizer.json")
                self._tokenizer = LLTokenizer(
                    str(self._tokenizer_file), self._vocab_size, self._end_token_ids or None
                )
            return self._tokenizer


def source_of(grammar: Grammar) -> str:
    """The grammar in llguidance's own form. Raises `GrammarError`."""
    if grammar.kind == "regex":
        # \d, \w and \s mean ASCII, as in TGI and JSON Schema.
        return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(grammar.source, 'dws')}/")
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.source)
    try:
        # As in TGI, one space at most where JSON allows any: a weak model writes them for ever.
        return LLMatcher.grammar_from_json_schema(
            "{}" if grammar.source == "true" else grammar.source,
            overrides={"whitespace_pattern": "[ ]?"},
        )
    except ValueError as error:
        raise GrammarError(f"grammar is not valid: {one_line(str(error))}") from error


def one_line(message: str) -> str:
    """The library's message without its line breaks and drawings."""
    return " ".join(message.split())[:500]
