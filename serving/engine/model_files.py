"""Reads the JSON files of a model directory that the engine needs: config, limits, end tokens.

Used by `process.py`. Neither transformers nor tokenizers is imported: both are slow to load and
the engine needs only numbers.
"""

import json
from pathlib import Path
from typing import Any

from serving.errors import StartupError
from serving.models.spec import Config
from serving.settings import Settings

PHASE = "model configuration"


def read_config(directory: Path, settings: Settings) -> Config:
    """`config.json`, with --rope-scaling and --rope-factor applied."""
    config = read_json(directory / "config.json")
    if not config:
        raise StartupError(
            PHASE,
            f"there is no config.json in {directory}",
            "give --model-id a directory in Hugging Face format",
        )
    if settings.rope_scaling or settings.rope_factor:
        scaling = {
            "rope_type": settings.rope_scaling or "linear",
            "factor": settings.rope_factor or 1.0,
        }
        theta = (config.get("rope_parameters") or {}).get("rope_theta")
        config["rope_parameters"] = scaling | {"rope_theta": theta or config.get("rope_theta", 1e4)}
        config["rope_scaling"] = None
    return config


def context_length(directory: Path, config: Config, settings: Settings) -> int:
    """Longest sequence that model, tokenizer and --rope-factor allow."""
    limit = int(config["max_position_embeddings"])
    if settings.rope_factor:
        limit = int(limit * settings.rope_factor)
    tokenizer_limit = read_json(directory / "tokenizer_config.json").get("model_max_length")
    return min(limit, int(tokenizer_limit)) if tokenizer_limit else limit


def end_token_ids(directory: Path, config: Config) -> list[int]:
    """TGI's rule: a list in generation_config.json is the set; else the tokenizer's own id.

    Where the tokenizer files do not tell its id, the ids of the configs are used.
    """
    generation = read_json(directory / "generation_config.json").get("eos_token_id")
    if isinstance(generation, list):
        return generation
    own = _tokenizer_end_token(directory)
    declared = generation if generation is not None else config.get("eos_token_id")
    for candidate in (own, declared):
        if candidate is not None:
            return candidate if isinstance(candidate, list) else [candidate]
    return []


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no file. Raises `StartupError` if unreadable."""
    if not path.exists():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise StartupError(
            PHASE, f"{path.name} cannot be read: {error}", "restore the file of the checkpoint"
        ) from error
    return content


def _tokenizer_end_token(directory: Path) -> int | None:
    settings = read_json(directory / "tokenizer_config.json")
    token = settings.get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    for number, added in settings.get("added_tokens_decoder", {}).items():
        if added.get("content") == text:
            return int(number)
    for added in read_json(directory / "tokenizer.json").get("added_tokens", []):
        if added.get("content") == text:
            return int(added["id"])
    return None
