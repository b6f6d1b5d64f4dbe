"""Logging for every process of the server: one line per event, text or JSON.

Leaf module. Each process calls `configure_logging()` once; everybody else uses
`logging.getLogger(__name__)` and passes fields as `extra={"fields": {...}}`.
"""

import json
import logging
import sys
import time

LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure_logging(process: str, level: str, json_output: bool) -> None:
    """Send log lines to stdout, naming the process ("launcher", "engine-0", "front")."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(process) if json_output else TextFormatter(process))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(LEVELS.get(level.lower(), logging.INFO))


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO engine-0 message key=value key="two words"`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """One line; the traceback of an exception follows on its own lines."""
        fields = "".join(f" {key}={_text(value)}" for key, value in _fields(record).items())
        line = (
            f"{_timestamp(record)} {record.levelname} {self._process} {record.getMessage()}{fields}"
        )
        return line + "\n" + self.formatException(record.exc_info) if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """The same as one JSON object per line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object with timestamp, level, process, message and the event's fields."""
        event: dict[str, object] = {
            "timestamp": _timestamp(record),
            "level": record.levelname,
            "process": self._process,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


def _text(value: object) -> str:
    """A value that cannot be mistaken for the next key, and never breaks the line."""
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    text = str(value)
    plain = text.isprintable() and not set(' "=') & set(text)
    return text if plain and text else json.dumps(text)


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = getattr(record, "fields", {})
    return fields
