"""What a model directory says about chat templates and special tokens.

Runs in the front when a worker loads a model. Comes in: the directory, and the file of
--tokenizer-config-path. Goes out: template source and special tokens for `chat_template.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TemplateFiles:
    """A chat template, where there is one, and the special tokens it may write."""

    template: str | None
    bos_token: str | None
    eos_token: str | None


def read_template_files(model_path: Path, tokenizer_config_path: str | None) -> TemplateFiles:
    """The template of the first file that has one, and the special tokens.

    The order: the file named on the command line, chat_template.jinja, chat_template.json,
    tokenizer_config.json, processor_config.json. Raises `OSError` if a named file is missing and
    `ValueError` if a file is not JSON.
    """
    named = _read_json(Path(tokenizer_config_path)) if tokenizer_config_path else {}
    config = named or _read_optional(model_path / "tokenizer_config.json")
    tokens = _read_optional(model_path / "special_tokens_map.json") | config
    jinja_file = model_path / "chat_template.jinja"
    candidates = [
        _template(named),
        jinja_file.read_text(encoding="utf-8") if jinja_file.is_file() else None,
        _template(_read_optional(model_path / "chat_template.json")),
        _template(config),
        _template(_read_optional(model_path / "processor_config.json")),
    ]
    return TemplateFiles(
        template=next((source for source in candidates if source is not None), None),
        bos_token=_token(tokens.get("bos_token")),
        eos_token=_token(tokens.get("eos_token")),
    )


def _template(config: dict[str, Any]) -> str | None:
    """The template of a file; of a list of named ones, the one called "default"."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token(value: object) -> str | None:
    """A special token is written as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read_optional(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return content
