"""Several sequences of one request: all or nothing, and nothing left behind."""

import pytest

from serving.errors import ErrorKind, RequestError
from serving.front.generation import ClientGone, Generation, best_first
from serving.front.model import LoadedModel
from serving.front.parameters import GenerateParameters
from serving.front.validation import ValidRequest, validate
from serving.protocol.messages import Delta
from serving.settings import Settings
from tests.support.fake_engine import Script, ScriptedEngine

FAILURE = RequestError(ErrorKind.GENERATION, "boom")


def request(model: LoadedModel, choices: int = 1, *stop: str) -> ValidRequest:
    parameters = GenerateParameters(do_sample=True, stop=list(stop))
    return validate(
        "the", parameters, model, Settings(), stream=False, logprobs=True, choices=choices
    )


def start(model: LoadedModel, engine: ScriptedEngine, *requests: ValidRequest) -> Generation:
    return Generation(requests, model.tokenizer, engine, keep_stop=True)


def test_every_choice_of_every_prompt_is_a_sequence(
    model: LoadedModel, engine: ScriptedEngine
) -> None:
    for text in (" sky", " sea", " blue", " green"):
        engine.answer(model.tokenizer, text)
    generation = start(model, engine, request(model, 2), request(model, 2))
    generation.run()
    assert [sequence.text for sequence in generation.sequences] == [
        " sky",
        " sea",
        " blue",
        " green",
    ]
    assert [sequence.index for sequence in generation.sequences] == [0, 1, 2, 3]


def test_a_finished_generation_aborts_nothing(model: LoadedModel, engine: ScriptedEngine) -> None:
    engine.answer(model.tokenizer, " sky")
    generation = start(model, engine, request(model))
    generation.run()
    generation.close()
    assert engine.aborted == []


def test_a_stop_string_aborts_its_sequence_only(model: LoadedModel, engine: ScriptedEngine) -> None:
    engine.answer(model.tokenizer, " sky is blue")
    engine.answer(model.tokenizer, " sea")
    generation = start(model, engine, request(model, 2, " is"))
    generation.run()
    generation.close()
    assert engine.aborted == [0]
    assert [s.text for s in generation.sequences] == [" sky is", " sea"]


def test_one_failure_ends_the_request_and_aborts_the_others(
    model: LoadedModel, engine: ScriptedEngine
) -> None:
    engine.scripts += [Script(), Script(error=FAILURE)]
    generation = start(model, engine, request(model, 2))
    with pytest.raises(RequestError, match="boom"):
        generation.run()
    generation.close()
    assert 0 in engine.aborted


def test_a_refused_sequence_takes_back_the_others(
    model: LoadedModel, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = engine.submit
    overloaded = RequestError(ErrorKind.OVERLOADED, "Model is overloaded")

    def accept_one(*arguments: object) -> object:
        if engine.submitted:
            raise overloaded
        return accept(*arguments)

    monkeypatch.setattr(engine, "submit", accept_one)
    engine.scripts.append(Script())
    with pytest.raises(RequestError, match="overloaded"):
        start(model, engine, request(model, 2))
    assert engine.aborted == [0]


def test_an_end_without_a_token_is_an_error(model: LoadedModel, engine: ScriptedEngine) -> None:
    engine.scripts.append(Script())
    generation = start(model, engine, request(model))
    generation._deliverer(0)(Delta(0, [], finish_reason="length"))
    with pytest.raises(RequestError) as caught:
        generation.run()
    assert caught.value.kind is ErrorKind.INCOMPLETE


def test_it_is_known_whether_more_has_come(model: LoadedModel, engine: ScriptedEngine) -> None:
    engine.answer(model.tokenizer, " sky is blue")
    generation = start(model, engine, request(model))
    ahead = [generation.more_at_once for _ in generation.events(10)]
    assert ahead == [True, True, False]


def test_events_before_a_failure_come_first(model: LoadedModel, engine: ScriptedEngine) -> None:
    ids = model.tokenizer.encode(" sky is", add_special_tokens=False)
    engine.scripts.append(Script(ids, error=FAILURE))
    events = start(model, engine, request(model)).events(10)
    assert [next(events), next(events)][1] is not None
    with pytest.raises(RequestError, match="boom"):
        next(events)


def test_silence_is_reported(model: LoadedModel, engine: ScriptedEngine) -> None:
    engine.scripts.append(Script())
    generation = start(model, engine, request(model))
    assert next(generation.events(10, first_tick_seconds=0.001)) is None


def test_a_hang_up_wakes_the_request(model: LoadedModel, engine: ScriptedEngine) -> None:
    engine.scripts.append(Script())
    generation = start(model, engine, request(model))
    generation.hang_up()
    with pytest.raises(ClientGone):
        generation.run()
    generation.close()
    assert engine.aborted == [0]


def test_the_best_comes_first_and_ties_keep_their_order(
    model: LoadedModel, engine: ScriptedEngine
) -> None:
    # Mean log-probabilities: -0.75, -0.5, -0.5.
    for text in (" sky is", " sea", " blue"):
        engine.answer(model.tokenizer, text)
    generation = start(model, engine, request(model, 3))
    generation.run()
    ranked = best_first(generation.sequences)
    assert [sequence.text for sequence in ranked] == [" sea", " sky is", " blue"]
