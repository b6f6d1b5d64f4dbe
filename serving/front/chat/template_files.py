"""What a model directory says about chat templates and special tokens.

Runs in the front when a worker loads a model. Comes in: the directory, and the file of
--tokenizer-config-path. Goes out: template sources by name, and special tokens. Next:
`template.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT = "default"
TOKEN_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True)
class TemplateFiles:
    """Chat templates by name, none if there are none, and the special tokens they may write."""

    templates: dict[str, str]
    special_tokens: dict[str, str]  # "bos_token" and the like; what the model lacks is missing


def read_template_files(model_path: Path, tokenizer_config_path: str | None) -> TemplateFiles:
    """The templates of the first file that has any, and the special tokens.

    The order: the file named on the command line, chat_template.jinja (with its named companions
    in additional_chat_templates/), chat_template.json, tokenizer_config.json,
    processor_config.json. Raises `OSError` if a named file is missing and `ValueError` if a file
    is not JSON.
    """
    named = _read_json(Path(tokenizer_config_path)) if tokenizer_config_path else {}
    config = named or _read_optional(model_path / "tokenizer_config.json")
    tokens = _read_optional(model_path / "special_tokens_map.json") | config
    candidates = [
        _templates(named),
        _jinja_files(model_path),
        _templates(_read_optional(model_path / "chat_template.json")),
        _templates(config),
        _templates(_read_optional(model_path / "processor_config.json")),
    ]
    special = {f"{name}_token": _token(tokens.get(f"{name}_token")) for name in TOKEN_NAMES}
    return TemplateFiles(
        templates=next((templates for templates in candidates if templates), {}),
        special_tokens={name: token for name, token in special.items() if token is not None},
    )


def _jinja_files(model_path: Path) -> dict[str, str]:
    files = {path.stem: path for path in (model_path / "additional_chat_templates").glob("*.jinja")}
    default = model_path / "chat_template.jinja"
    if default.is_file():
        files[DEFAULT] = default
    return {name: path.read_text(encoding="utf-8") for name, path in files.items()}


def _templates(config: dict[str, Any]) -> dict[str, str]:
    """The templates of a file: a single one, or a list of named ones."""
    template = config.get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    return {DEFAULT: template} if isinstance(template, str) else {}


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
