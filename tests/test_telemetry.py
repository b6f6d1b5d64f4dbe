"""Log lines: one event is one line, whatever its fields hold."""

import json
import logging

import pytest

from serving.telemetry import JsonFormatter, TextFormatter


def record(**fields: object) -> logging.LogRecord:
    made = logging.LogRecord("serving", logging.INFO, "", 0, "request", None, None)
    made.fields = fields
    return made


def test_text_names_level_process_and_fields() -> None:
    line = TextFormatter("front").format(record(route="/generate", status=200))
    assert line.endswith("INFO front request route=/generate status=200")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('"', '"\\""'),
        ("a\nERROR forged", '"a\\nERROR forged"'),
        ("\x1b[31m", '"\\u001b[31m"'),
        ("", '""'),
        (None, "None"),
        ({"top_k": 5}, '{"top_k": 5}'),
        (["a", "b"], '["a", "b"]'),
    ],
)
def test_text_quotes_what_would_be_ambiguous(value: object, shown: str) -> None:
    line = TextFormatter("front").format(record(key=value))
    assert line.endswith(f" request key={shown}")
    assert "\n" not in line


def test_json_is_one_object_with_the_fields_beside_the_message() -> None:
    line = JsonFormatter("front").format(record(status=422, error="a\nb", sampling={"seed": 1}))
    event = json.loads(line)
    assert "\n" not in line
    assert event.pop("timestamp")
    assert event == {
        "level": "INFO",
        "process": "front",
        "message": "request",
        "status": 422,
        "error": "a\nb",
        "sampling": {"seed": 1},
    }
