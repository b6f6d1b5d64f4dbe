import pytest

from serving.benchmark.sse import EventParser

STREAM = (
    b": comment\r\n\r\n"
    b'data: {"a":1}\n\n'
    b"event: token\r\nid: 7\r\ndata:first\r\ndata: second\r\n\r\n"
    b"retry: 10\n\n"
    b"data: [DONE]\n\n"
)
PAYLOADS = [b'{"a":1}', b"first\nsecond", b"[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_payloads_do_not_depend_on_where_the_stream_is_cut(size: int) -> None:
    parser = EventParser()
    pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert [payload for piece in pieces for payload in parser.feed(piece)] == PAYLOADS


def test_an_event_is_complete_only_after_its_blank_line() -> None:
    parser = EventParser()
    assert parser.feed(b"data: x\n") == []
    assert parser.feed(b"\n") == [b"x"]


def test_one_piece_may_complete_several_events() -> None:
    assert EventParser().feed(b"data: 1\n\ndata: 2\n\ndata: 3") == [b"1", b"2"]
