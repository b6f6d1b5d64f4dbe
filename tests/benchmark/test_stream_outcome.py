from typing import Any

import pytest

from benchmarks.stream_outcome import Verdict, compare, has_token, judge

Event = dict[str, Any]


def token(index: int, text: str) -> Event:
    return {"index": index, "token": {"id": 1, "text": text, "special": False}}


def native_events() -> list[Event]:
    end = {"generated_text": "abc", "details": {"finish_reason": "length"}}
    return [token(1, "a"), token(2, "b"), token(3, "c") | end]


def chat_events() -> list[Event]:
    pieces = [{"choices": [{"delta": {"content": text}}]} for text in ("", "a", "b")]
    end = {"choices": [{"delta": {"content": ""}, "finish_reason": "stop"}]}
    return [*pieces, end, {"choices": [], "usage": {"completion_tokens": 2}}]


ERROR = {"error": "the engine has died", "error_type": "generation"}
NATIVE, CHAT = native_events(), chat_events()


def verdict(
    events: list[Event], is_native: bool, status: int = 200, is_complete: bool = True
) -> Verdict:
    """Against an undisturbed stream of the same kind."""
    expected = judge(200, NATIVE if is_native else CHAT, is_native, is_complete=True)
    return compare(judge(status, events, is_native, is_complete), expected)


def test_a_native_stream_is_read() -> None:
    outcome = judge(200, NATIVE, is_native=True, is_complete=True)
    assert (outcome.text, outcome.tokens, outcome.finish) == ("abc", 3, "length")
    assert (outcome.num_ends, outcome.error) == (1, None)


def test_a_chat_stream_is_read() -> None:
    outcome = judge(200, CHAT, is_native=False, is_complete=True)
    assert (outcome.text, outcome.tokens, outcome.finish) == ("ab", 2, "stop")
    assert (outcome.num_ends, outcome.num_after_end) == (1, 0)


@pytest.mark.parametrize(("events", "is_native"), [(NATIVE, True), (CHAT, False)])
def test_an_undisturbed_stream_is_right(events: list[Event], is_native: bool) -> None:
    assert verdict(events, is_native) == "right"


@pytest.mark.parametrize(
    ("events", "is_native"),
    [
        (NATIVE[:2], True),
        ([], True),
        ([NATIVE[0], NATIVE[2]], True),
        ([*NATIVE[:2], ERROR], True),
        (CHAT[:2], False),
        ([*CHAT[:2], ERROR], False),
    ],
)
def test_a_stream_without_its_end_or_a_token_is_lost(events: list[Event], is_native: bool) -> None:
    assert verdict(events, is_native) == "lost"


def test_a_broken_response_is_lost() -> None:
    assert verdict(NATIVE, is_native=True, is_complete=False) == "lost"


def test_a_refused_request_is_lost() -> None:
    assert verdict([ERROR], is_native=True, status=429) == "lost"


@pytest.mark.parametrize(
    ("events", "is_native"),
    [
        ([NATIVE[0], *NATIVE], True),
        ([*NATIVE, NATIVE[2]], True),
        ([*CHAT[:4], CHAT[1], CHAT[4]], False),
        ([*CHAT[:4], *CHAT[3:]], False),
    ],
)
def test_a_repeated_token_or_end_is_doubled(events: list[Event], is_native: bool) -> None:
    assert verdict(events, is_native) == "doubled"


@pytest.mark.parametrize(
    ("events", "is_native"),
    [
        ([NATIVE[0], token(2, "x"), NATIVE[2]], True),
        ([*CHAT[:2], CHAT[1], *CHAT[2:]], False),  # chat pieces have no index: the text tells
    ],
)
def test_another_text_is_wrong(events: list[Event], is_native: bool) -> None:
    assert verdict(events, is_native) == "wrong"


def test_a_role_is_no_token() -> None:
    assert [has_token(event) for event in CHAT] == [False, True, True, False, False]
    assert all(map(has_token, NATIVE))
