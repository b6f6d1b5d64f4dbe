"""One sequence from deltas to token events."""

import pytest

from serving.errors import ErrorKind, RequestError
from serving.front.model import LoadedModel
from serving.front.parameters import GenerateParameters
from serving.front.sequence_text import SequenceText, TokenEvent
from serving.front.text.tokens import Token
from serving.front.validation import validate
from serving.protocol.messages import Delta, FinishReason
from serving.settings import Settings


def sequence(model: LoadedModel, *stop: str, keep_stop: bool = True) -> SequenceText:
    parameters = GenerateParameters(stop=list(stop))
    request = validate("the", parameters, model, Settings(), stream=False, logprobs=True)
    return SequenceText(request, 0, 0, model.tokenizer, keep_stop)


def ids(model: LoadedModel, text: str) -> list[int]:
    return model.tokenizer.encode(text, add_special_tokens=False)


def play(
    target: SequenceText, token_ids: list[int], finish: FinishReason | None = "length"
) -> list[TokenEvent]:
    """One delta per token."""
    events: list[TokenEvent] = []
    for position, token_id in enumerate(token_ids):
        last = position == len(token_ids) - 1
        events += target.push(Delta(0, [token_id], [-1.0], [], finish if last else None))
        if target.finish is not None:
            break
    return events


def test_events_count_from_one_and_the_last_carries_the_end(model: LoadedModel) -> None:
    events = play(sequence(model), ids(model, " sky is"))
    assert [event.index for event in events] == [1, 2]
    assert [event.finish is None for event in events] == [True, False]


def test_special_tokens_are_listed_but_not_text(model: LoadedModel) -> None:
    target = sequence(model)
    events = play(target, [*ids(model, " sky"), 1], "eos_token")
    assert target.text == " sky"
    assert events[-1].token == Token(1, "</s>", -1.0, special=True)
    assert target.end.reason == "eos_token"


def test_several_tokens_of_one_delta_are_several_events(model: LoadedModel) -> None:
    target = sequence(model)
    delta = Delta(0, ids(model, " sky is blue"), [-0.1, -0.2, -0.3], [], "length")
    events = list(target.push(delta))
    assert [event.token.logprob for event in events] == [-0.1, -0.2, -0.3]
    assert events[-1].finish is not None


def test_tokens_behind_a_stop_string_are_dropped(model: LoadedModel) -> None:
    target = sequence(model, " is")
    events = list(target.push(Delta(0, ids(model, " sky is blue"), [], [], "length")))
    assert len(events) == len(target.tokens) == 2
    assert target.end.reason == "stop_sequence"
    assert target.text == " sky is"


def test_a_stop_string_within_a_token_cuts_the_text_but_not_the_token(model: LoadedModel) -> None:
    target = sequence(model, "bl")
    play(target, ids(model, " blue sky"))
    assert target.text == " bl"
    assert [token.text for token in target.tokens] == [" blue"]


def test_a_hidden_stop_string_is_not_in_the_text(model: LoadedModel) -> None:
    target = sequence(model, "ue sk", keep_stop=False)
    events = play(target, ids(model, " blue sky is"))
    assert target.text == "".join(event.text for event in events) == " bl"
    assert target.end.stop_string == "ue sk"


def test_a_special_token_can_be_a_stop_string(model: LoadedModel) -> None:
    target = sequence(model, "<|user|>")
    play(target, [*ids(model, " sky"), 2, *ids(model, " is")])
    assert target.text == " sky"
    assert target.end.reason == "stop_sequence"


def test_the_limit_wins_over_a_stop_string(model: LoadedModel) -> None:
    target = sequence(model, " is")
    play(target, ids(model, " sky is"), "length")
    assert target.end.reason == "length"
    assert target.end.stop_string == " is"


def test_an_incomplete_character_at_the_end_is_shown(model: LoadedModel) -> None:
    target = sequence(model)
    half = ids(model, "é")[:1]
    events = play(target, [*ids(model, " sky"), *half])
    assert events[-1].token.text == "\ufffd"
    assert target.text == " sky\ufffd"


def test_pieces_of_ordinary_tokens_join_to_the_text(model: LoadedModel) -> None:
    target = sequence(model)
    half = ids(model, "é")[:1]
    play(target, [*ids(model, " sky 😀"), 2, *half, 1], "eos_token")
    assert target.text == "".join(token.text for token in target.tokens if not token.special)


def test_candidates_are_decoded_alone(model: LoadedModel) -> None:
    target = sequence(model)
    token_id = ids(model, " sky")[0]
    (event,) = target.push(Delta(0, [token_id], [-0.1], [[(token_id, -0.1), (1, -2.0)]], "length"))
    assert event.top_tokens == [
        Token(token_id, " sky", -0.1, special=False),
        Token(1, "</s>", -2.0, special=True),
    ]


def test_an_unfinished_sequence_has_no_end(model: LoadedModel) -> None:
    target = sequence(model)
    play(target, ids(model, " sky"), None)
    with pytest.raises(RequestError) as caught:
        _ = target.end
    assert caught.value.kind is ErrorKind.INCOMPLETE


def test_the_clock_separates_queue_and_inference(model: LoadedModel) -> None:
    target = sequence(model)
    clock = target.clock
    list(target.push(Delta(0, ids(model, " sky"), [], [], None, clock.submitted + 5)))
    list(target.push(Delta(0, ids(model, " is blue"), [], [], "length")))
    assert clock.admitted == clock.submitted + 5
    assert clock.admitted <= clock.first_token <= clock.last_token
    assert len(clock.gaps) == 2


def test_the_times_and_prompt_of_the_first_engine_stay(model: LoadedModel) -> None:
    """A resumed sequence is admitted again, and its engine does not score the prompt again."""
    target = sequence(model)
    token_ids = ids(model, " sky is")
    target.push(Delta(0, token_ids[:1], [-1.0], admitted_ns=5, prompt_logprobs=[-0.5, -0.25]))
    first = target.clock.first_token
    target.push(Delta(0, token_ids[1:], [-1.0], finish_reason="length", admitted_ns=7))
    assert (target.clock.admitted, target.clock.first_token) == (5, first)
    assert target.prompt_logprobs == [-0.5, -0.25]
    assert len(target.clock.gaps) == 1
