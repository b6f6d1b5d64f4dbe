"""Bodies at and beyond the edges: every one gets an answer, every accepted one ends once."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import LiveServer

from tests.fuzz.bodies import CHAT_BODY, CHAT_VALUES, COMPLETION_BODY, NATIVE_BODY, NATIVE_VALUES
from tests.fuzz.checks import check_answer
from tests.fuzz.settings import fuzz

pytestmark = pytest.mark.e2e

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def ask(server: LiveServer, path: str, body: Any) -> None:
    """Send and check; a server that does not answer within a minute fails."""
    status, text = server.request("POST", path, body)
    check_answer(path, body, status, text)


@given(
    body=NATIVE_BODY, path=st.sampled_from(["/", "/generate", "/generate_stream", "/invocations"])
)
@fuzz(80)
def test_native_bodies(fuzzed: LiveServer, body: Any, path: str) -> None:
    ask(fuzzed, path, body)


@given(body=CHAT_BODY)
@fuzz(60)
def test_chat_bodies(fuzzed: LiveServer, body: Any) -> None:
    ask(fuzzed, CHAT, body)


@given(body=COMPLETION_BODY)
@fuzz(60)
def test_completion_bodies(fuzzed: LiveServer, body: Any) -> None:
    ask(fuzzed, COMPLETIONS, body)


@given(
    parameters=st.lists(NATIVE_VALUES, min_size=8, max_size=8),
    chats=st.lists(CHAT_VALUES, min_size=4, max_size=4),
    patience=st.lists(st.integers(0, 12), min_size=8, max_size=8),
)
@fuzz(6)
def test_clients_together_some_of_whom_hang_up(
    fuzzed: LiveServer, parameters: list[Any], chats: list[Any], patience: list[int]
) -> None:
    def hang_up(values: Any, events: int) -> None:
        body = {"inputs": "Count to 100", "parameters": values}
        stream = fuzzed.events("/generate_stream", body)
        for _ in zip(range(events), stream, strict=False):
            pass
        stream.close()

    with ThreadPoolExecutor(12) as pool:
        gone = [pool.submit(hang_up, *pair) for pair in zip(parameters, patience, strict=True)]
        whole = [pool.submit(ask, fuzzed, CHAT, body) for body in chats]
        for future in (*gone, *whole):
            future.result()
    fuzzed.wait_until_idle()
    assert fuzzed.metric("tgi_kv_cache_usage_ratio") == 0


def test_more_sequences_than_fit_all_get_the_text_they_get_alone(fuzzed: LiveServer) -> None:
    def text(number: int) -> str:
        parameters = {"max_new_tokens": 90, "ignore_eos": True, "temperature": 1.5, "seed": number}
        body = {"inputs": f"Count to {number}", "parameters": parameters}
        found: str = fuzzed.post("/generate", body)["generated_text"]
        return found

    alone = [text(number) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(text, range(12))) == alone


BROKEN = {
    "empty": b"",
    "null": b"null",
    "cut": b'{"inputs": "a',
    "list": b"[1]",
    "nan": b'{"inputs": "a", "parameters": {"temperature": NaN}}',
    "infinity": b'{"inputs": "a", "parameters": {"temperature": 1e999}}',
    "huge integer": b'{"inputs": "a", "parameters": {"seed": 1%s}}' % (b"0" * 5000),
    "not utf-8": b'{"inputs": "\xff\xfe"}',
    "lone surrogate": b'{"inputs": "\\ud800", "messages": "\\ud800", "prompt": "\\ud800"}',
    "byte order mark": b'\xef\xbb\xbf{"inputs": "a"}',
    "nested": b'{"inputs": "a", "parameters": {"grammar": {"type": "json", "value": %s1%s}}}'
    % (b'{"a":' * 3000, b"}" * 3000),
    "nested lists": b'{"messages": %s%s}' % (b"[" * 100_000, b"]" * 100_000),
    "twice": b'{"inputs": "a", "inputs": "b", "parameters": {"max_new_tokens": 1}}',
    "too large": b'{"inputs": "%s"}' % (b"a" * 2_100_000),
    "many fields": json.dumps({f"x{i}": i for i in range(20_000)} | {"inputs": "a"}).encode(),
}


@pytest.mark.parametrize(
    "path",
    ["/generate", "/", "/invocations", CHAT, COMPLETIONS, "/tokenize", "/vertex", "/chat_tokenize"],
)
@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_broken_bytes(fuzzed: LiveServer, path: str, body: bytes) -> None:
    status, text = fuzzed.request("POST", path, body)
    assert status in (200, 400, 413, 422), text
    assert status == 200 or text
