"""Guides and their masks, walked at random: every text must fit, checked by jsonschema."""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from serving.engine.schedule.grammar_compiler import GrammarCompiler
from serving.engine.schedule.guidance import Guidance
from serving.engine.schedule.sequence import Sequence
from serving.front.text.tokenization import Tokenizer
from serving.protocol.messages import Generate
from serving.protocol.params import Grammar, SamplingParams, StopParams
from tests.support.tiny_model import EOS_ID, make_model_directory

VOCABULARY = 330
SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": -5, "maximum": 120},
        "kind": {"enum": ["a", "b", None, 3]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 3},
        "note": {"type": "string", "maxLength": 8},
    },
    "required": ["id", "kind"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "pattern": "^[a-z]{1,4}$"}},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_directory(tmp_path_factory.mktemp("model"))


@pytest.fixture
def guidance(directory: Path) -> Guidance:
    return Guidance(GrammarCompiler(directory, VOCABULARY, [EOS_ID]), VOCABULARY, [EOS_ID])


def sequence(
    grammar: Grammar | None, number: int = 1, row: int = 0, resume: list[int] | None = None
) -> Sequence:
    request = Generate(
        0,
        number,
        [5, 6],
        SamplingParams(),
        StopParams(200, [EOS_ID]),
        grammar=grammar,
        resume_token_ids=resume or [],
    )
    made = Sequence.from_request(b"worker", request)
    made.row = row
    return made


def wait(guidance: Guidance) -> Iterator[tuple[Sequence, str | None]]:
    deadline = time.monotonic() + 10
    while guidance.num_pending and time.monotonic() < deadline:
        yield from guidance.prepared()
        time.sleep(0.001)


def prepared(guidance: Guidance, *sequences: Sequence) -> list[tuple[Sequence, str | None]]:
    for one in sequences:
        guidance.prepare(one)
    return list(wait(guidance))


def allowed(guidance: Guidance, *sequences: Sequence) -> list[list[int]]:
    masks = guidance.masks(sequences)
    assert masks is not None
    bits = np.unpackbits(masks.bits().view(np.uint8), axis=1, bitorder="little")
    return [np.flatnonzero(row).tolist() for row in bits]


@pytest.mark.parametrize("seed", range(20))
def test_any_walk_through_the_masks_is_valid(
    guidance: Guidance, directory: Path, seed: int
) -> None:
    chance = random.Random(seed)
    one = sequence(Grammar("json_schema", json.dumps(SCHEMA)))
    prepared(guidance, one)
    while one.finish_reason() is None:
        one.append(chance.choice(allowed(guidance, one)[0]))
    assert one.finish_reason() == "eos_token"
    text = Tokenizer(directory).decode(one.token_ids[2:-1])
    jsonschema.validate(json.loads(text), SCHEMA)


def test_masks_of_a_batch_are_those_of_each_alone(guidance: Guidance) -> None:
    grammars = [Grammar("regex", expression) for expression in ("ab", "[0-9]+", "x|y")]
    batch = [sequence(grammar, number) for number, grammar in enumerate(grammars)]
    prepared(guidance, *batch)
    assert allowed(guidance, *batch) == [allowed(guidance, one)[0] for one in batch]


def test_masks_name_the_rows_of_guided_sequences(guidance: Guidance) -> None:
    guided, free = sequence(Grammar("regex", "a"), row=7), sequence(None, number=2, row=3)
    prepared(guidance, guided)
    masks = guidance.masks([free, guided])
    assert masks is not None
    assert masks.rows.tolist() == [7]


def test_without_a_guided_sequence_there_is_no_mask(guidance: Guidance) -> None:
    assert guidance.masks([sequence(None)]) is None


def test_a_resumed_sequence_goes_on_where_its_tokens_end(
    guidance: Guidance, directory: Path
) -> None:
    tokens = Tokenizer(directory).encode("abcab", add_special_tokens=False)
    whole = sequence(Grammar("regex", "(abc){3}"))
    resumed = sequence(Grammar("regex", "(abc){3}"), number=2, resume=tokens)
    prepared(guidance, whole, resumed)
    for token in tokens:
        whole.append(token)
    assert allowed(guidance, whole) == allowed(guidance, resumed)


def test_after_the_text_only_the_end_is_allowed(guidance: Guidance, directory: Path) -> None:
    one = sequence(Grammar("regex", "a"))
    prepared(guidance, one)
    one.append(Tokenizer(directory).encode("a", add_special_tokens=False)[0])
    assert allowed(guidance, one) == [[EOS_ID]]
    assert one.finish_reason() is None


def test_the_end_counts_even_where_end_tokens_are_ignored(
    guidance: Guidance, directory: Path
) -> None:
    one = sequence(Grammar("regex", "a"))
    one.request.stop.stop_token_ids.clear()
    prepared(guidance, one)
    one.append(Tokenizer(directory).encode("a", add_special_tokens=False)[0])
    one.append(EOS_ID)
    assert one.finish_reason() == "eos_token"


def test_a_model_without_end_tokens_ends_with_the_grammar(directory: Path) -> None:
    guidance = Guidance(GrammarCompiler(directory, VOCABULARY, []), VOCABULARY, [])
    one = sequence(Grammar("regex", "a"))
    one.request.stop.stop_token_ids.clear()
    prepared(guidance, one)
    one.append(Tokenizer(directory).encode("a", add_special_tokens=False)[0])
    assert one.finish_reason() == "eos_token"


def test_an_invalid_grammar_comes_back_with_its_reason(guidance: Guidance) -> None:
    bad, good = sequence(Grammar("regex", "("), 1), sequence(Grammar("regex", "a"), 2)
    faults = dict(prepared(guidance, bad, good))
    assert "unclosed group" in str(faults[bad])
    assert faults[good] is None


def test_a_forgotten_sequence_does_not_come_back(guidance: Guidance) -> None:
    one, other = sequence(Grammar("regex", "a"), 1), sequence(Grammar("regex", "b"), 2)
    guidance.prepare(one)
    guidance.prepare(other)
    guidance.forget(one.key)
    assert [found for found, _ in wait(guidance)] == [other]


def test_sequences_of_a_lost_worker_do_not_come_back(guidance: Guidance) -> None:
    guidance.prepare(sequence(Grammar("regex", "a")))
    guidance.forget_worker(b"worker")
    assert guidance.num_pending == 0


def test_who_waits_too_long_is_refused(guidance: Guidance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.engine.schedule.guidance.LONGEST_COMPILATION", -1.0)
    monkeypatch.setattr(GrammarCompiler, "compile", lambda *_: time.sleep(0.2))
    guidance.prepare(sequence(Grammar("regex", "a")))
    ((_, fault),) = guidance.prepared()
    assert "compiling it takes over" in str(fault)
    assert guidance.num_pending == 0


def test_a_token_that_does_not_fit_is_an_error_of_its_sequence_only(guidance: Guidance) -> None:
    wrong, right = sequence(Grammar("regex", "a"), 1, 0), sequence(Grammar("regex", "b"), 2, 1)
    prepared(guidance, wrong, right)
    alone = allowed(guidance, right)
    wrong.append(EOS_ID)
    assert wrong.guide is not None
    everything, others = allowed(guidance, wrong, right)
    assert "grammar cannot be followed" in str(wrong.guide.error)
    assert [others] == alone
    assert len(everything) >= VOCABULARY


def test_what_a_step_cannot_follow_fails_its_sequence(guidance: Guidance, directory: Path) -> None:
    many = {f"p{number}": {"type": "string"} for number in range(2000)}
    schema = {"type": "object", "properties": many, "additionalProperties": False}
    one = sequence(Grammar("json_schema", json.dumps(schema)))
    prepared(guidance, one)
    allowed(guidance, one)
    one.append(Tokenizer(directory).encode("{", add_special_tokens=False)[0])
    allowed(guidance, one)
    assert one.guide is not None
    assert "items" in str(one.guide.error)
