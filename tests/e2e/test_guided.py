"""Guided output of the whole server: fifty schemas, sixteen streams at a time, every answer valid.

The oracle is jsonschema. Grammars that cannot be used are refused while others go on.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from live_server import LiveServer

pytestmark = pytest.mark.e2e

SCHEMAS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "data" / "json_schemas.json").read_text()
)
STREAMS = 16
IP_ADDRESS = r"((25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(25[0-5]|2[0-4]\d|1?\d?\d)"


def streamed_text(server: LiveServer, body: dict[str, Any]) -> str:
    """The text of a stream that must end by itself."""
    events = list(server.events("/generate_stream", body))
    assert "error" not in events[-1], events[-1]
    assert events[-1]["details"]["finish_reason"] == "eos_token", events[-1]
    text = "".join(e["token"]["text"] for e in events if not e["token"]["special"])
    assert text == events[-1]["generated_text"]
    return text


def answer(server: LiveServer, number: int) -> tuple[str, str]:
    """(name of a schema, a sampled text that follows it); numbers go round the schemas."""
    name = list(SCHEMAS)[number % len(SCHEMAS)]
    parameters = {
        "max_new_tokens": 700,
        "do_sample": True,
        "seed": number,
        "details": True,
        "grammar": {"type": "json", "value": SCHEMAS[name]},
    }
    return name, streamed_text(server, {"inputs": f"A {name}:", "parameters": parameters})


def test_every_answer_to_fifty_schemas_is_valid(server: LiveServer) -> None:
    assert len(SCHEMAS) == 50
    with ThreadPoolExecutor(STREAMS) as streams:
        answers = list(streams.map(lambda number: answer(server, number), range(100)))
    for name, text in answers:
        jsonschema.validate(json.loads(text), SCHEMAS[name])


def test_a_regular_expression_matches_the_whole_text(server: LiveServer) -> None:
    parameters = {
        "max_new_tokens": 50,
        "details": True,
        "grammar": {"type": "regex", "value": IP_ADDRESS},
    }
    text = streamed_text(server, {"inputs": "The address is", "parameters": parameters})
    assert re.fullmatch(IP_ADDRESS, text, re.ASCII)


def test_a_seeded_answer_does_not_depend_on_its_neighbours(server: LiveServer) -> None:
    alone = answer(server, 7)
    with ThreadPoolExecutor(STREAMS) as streams:
        among = list(streams.map(lambda number: answer(server, number), [7, *range(20, 35)]))
    assert among[0] == alone


def test_invalid_grammars_are_refused_while_others_go_on(server: LiveServer) -> None:
    bad = [
        {"type": "regex", "value": "("},
        {"type": "json", "value": {"type": "objec"}},
        {"type": "json", "value": {"$ref": "#/nowhere"}},
        {"type": "lark", "value": "start: nothing"},
    ]

    def refuse(grammar: dict[str, Any]) -> tuple[int, str]:
        return server.request(
            "POST", "/generate", {"inputs": "a", "parameters": {"grammar": grammar}}
        )

    with ThreadPoolExecutor(STREAMS) as streams:
        refusals = streams.map(refuse, bad * 4)
        good = streams.map(lambda number: answer(server, number), range(8))
        for status, text in refusals:
            assert status == 422
            assert "grammar is not valid" in json.loads(text)["error"]
        for name, text in good:
            jsonschema.validate(json.loads(text), SCHEMAS[name])
