"""Ids of a request: whose is taken, what is dropped from them, which trace they belong to."""

import pytest

from serving.front.identity import LONGEST_ID, identify

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


def test_the_callers_id_comes_first() -> None:
    identity = identify({"X-Request-Id": "a", "X-Amzn-SageMaker-Inference-Id": "b"})
    assert identity.request_id == "a"
    assert identity.headers() == {"X-Request-Id": "a", "X-Amzn-SageMaker-Inference-Id": "b"}


def test_the_platforms_id_serves_as_both() -> None:
    identity = identify({"X-Amzn-SageMaker-Inference-Id": "b"})
    assert identity.headers() == {"X-Request-Id": "b", "X-Amzn-SageMaker-Inference-Id": "b"}


@pytest.mark.parametrize("given", [{}, {"X-Request-Id": ""}, {"X-Request-Id": " \x00\x7f "}])
def test_without_a_usable_id_there_is_a_new_one(given: dict[str, str]) -> None:
    first, second = identify(given), identify(given)
    assert len(first.request_id) == 32
    assert first.request_id != second.request_id
    assert list(first.headers()) == ["X-Request-Id"]


def test_what_could_forge_headers_or_log_lines_is_dropped() -> None:
    given = "a\r\nSet-Cookie: b=c\x1b[31m\xe9\u2028d"
    assert identify({"X-Request-Id": given}).request_id == "aSet-Cookie: b=c[31md"


def test_long_ids_are_cut() -> None:
    assert identify({"X-Request-Id": "x" * 5000}).request_id == "x" * LONGEST_ID


@pytest.mark.parametrize(
    "header",
    [
        f"00-{TRACE}-{SPAN}-01",
        f" 00-{TRACE}-{SPAN}-00 ",
        f"cc-{TRACE}-{SPAN}-01-what-comes-later",
    ],
)
def test_a_trace_parent_names_the_trace(header: str) -> None:
    assert identify({"traceparent": header}).trace_id == TRACE


@pytest.mark.parametrize(
    "header",
    [
        "",
        TRACE,
        f"00-{TRACE}-{SPAN}",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n00-{TRACE}-{SPAN}-01",
    ],
)
def test_a_malformed_trace_parent_counts_as_absent(header: str) -> None:
    assert identify({"traceparent": header}).trace_id is None
