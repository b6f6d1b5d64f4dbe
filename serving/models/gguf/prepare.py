"""From a GGUF model to a directory in Hugging Face form, with links in place of weights.

Runs in a process of its own (`text-generation-server convert`). Comes in: the files of a model.
Goes out: config, tokenizer and links to the files, complete or not at all. A tokenizer.json beside
the model is taken as it is. Next: `config.py`, `tokenizer.py`; the engine goes on with
`tensors.py`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.models.gguf.config import config_of, read_metadata
from serving.models.gguf.file import read_header
from serving.models.gguf.files import tokenizer_files
from serving.models.gguf.metadata import Metadata
from serving.models.gguf.tokenizer import build_tokenizer
from serving.models.gguf.tokens import special_tokens
from serving.models.spec import Config
from serving.models.staging import staging

TEMPLATE = "tokenizer.chat_template"


def prepare_gguf(files: Sequence[Path], output: Path) -> None:
    """Write the directory of the model in `files` to `output`. Raises `StartupError`."""
    model = read_metadata([read_header(files[0], skipped=()), *map(read_header, files[1:])])
    config = config_of(model)
    own = tokenizer_files(files)
    tokenizer = None if own else build_tokenizer(model)
    with staging(output, size=0) as directory:
        for path in (*files, *own):
            (directory / path.name).symlink_to(path.resolve())
        if tokenizer is not None:
            tokenizer.save(str(directory / "tokenizer.json"))
        if not (directory / "tokenizer_config.json").exists():
            _write(directory / "tokenizer_config.json", _tokenizer_config(model))
        _write(directory / "generation_config.json", _generation_config(config))
        _write(directory / "config.json", config)


def _generation_config(config: Config) -> Config:
    """A list of ends is the whole set of them."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: config[key] for key in keys if key in config}


def _tokenizer_config(model: Metadata) -> dict[str, Any]:
    """Special tokens by role, and the chat template."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **special_tokens(model),
    }
    templates = {"default": model.get(TEMPLATE, str)}
    for name in model.array(f"{TEMPLATE}s"):
        templates[name] = model.get(f"{TEMPLATE}.{name}", str)
    named = [{"name": name, "template": text} for name, text in templates.items() if text]
    if len(named) == 1 and templates["default"]:
        config["chat_template"] = templates["default"]
    elif named:
        config["chat_template"] = named
    return config


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
