"""Stop strings in a text that comes in pieces, against a search in the whole text."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from serving.front.text.stop_strings import StopStrings

TEXT = st.text(alphabet="abc", max_size=20)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    """`text` cut at the given places."""
    places = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[a:b] for a, b in pairwise(places)]


def play(matcher: StopStrings, pieces: list[str]) -> str:
    """All text that comes out."""
    shown = ""
    for piece in pieces:
        shown += matcher.push(piece)
        if matcher.matched is not None:
            return shown
    return shown + matcher.flush()


def earliest_end(text: str, stops: list[str]) -> tuple[int, int] | None:
    """(end, start) of the match that ends first, by trying every end."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return end, min(starts)
    return None


@given(TEXT, STOPS, st.lists(st.integers(0, 20)))
def test_hidden_stop_string_cuts_before_the_first_match(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    # One character at a time no two matches end in the same piece, so the first end decides.
    match = earliest_end(text, stops)
    matcher = StopStrings(stops, keep=False)
    shown = play(matcher, list(text))
    if match is None:
        assert shown == text
        assert matcher.matched is None
    else:
        end, _ = match
        assert matcher.matched is not None
        assert shown == text[: end - len(matcher.matched)]
        assert text[:end].endswith(matcher.matched)
    assert play(StopStrings(stops, keep=False), pieces_of(text, cuts)) == shown


@given(TEXT, STOPS, st.lists(st.integers(0, 20)))
def test_kept_stop_string_cuts_behind_the_first_match(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    match = earliest_end(text, stops)
    expected = text if match is None else text[: match[0]]
    assert play(StopStrings(stops, keep=True), pieces_of(text, cuts)) == expected


def test_text_that_might_begin_a_stop_string_is_held_back() -> None:
    matcher = StopStrings(["</end>"], keep=False)
    assert matcher.push("a <") == "a "
    assert matcher.push("/e") == ""
    assert matcher.push("xit") == "</exit"
    assert matcher.matched is None


def test_kept_text_is_never_held_back() -> None:
    matcher = StopStrings(["</end>"], keep=True)
    assert matcher.push("a </e") == "a </e"
    assert matcher.push("nd> more") == "nd>"
    assert matcher.matched == "</end>"


def test_invisible_text_matches_but_is_not_shown() -> None:
    matcher = StopStrings(["b<eot>"], keep=True)
    assert matcher.push("ab") == "ab"
    assert matcher.push("<eot>", visible=False) == ""
    assert matcher.matched == "b<eot>"


def test_invisible_text_between_held_pieces_stays_invisible() -> None:
    matcher = StopStrings(["xyz"], keep=False)
    assert matcher.push("ax") == "a"
    assert matcher.push("<s>", visible=False) == "x"
    assert matcher.push("b") == "b"


def test_a_match_within_one_piece_is_found() -> None:
    matcher = StopStrings(["stop"], keep=False)
    assert matcher.push("one stop two") == "one "


def test_empty_stop_strings_do_not_match() -> None:
    matcher = StopStrings([""], keep=True)
    assert matcher.push("abc") == "abc"
    assert matcher.matched is None
