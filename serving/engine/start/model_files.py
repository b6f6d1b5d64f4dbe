"""Reads the JSON files of a model directory that the engine needs: config, limits, end tokens.

Used by `process.py`. Neither transformers nor tokenizers is imported: both are slow to load and
the engine needs only numbers.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from serving.errors import StartupError
from serving.models.spec import Config, UnsupportedConfig
from serving.settings import Settings

Spec_co = TypeVar("Spec_co", covariant=True)

PHASE = "model configuration"
# Where configs state how many positions there are. The first that is there counts: Command R gives
# its trained length as `model_max_length`, and less in `max_position_embeddings`.
POSITION_KEYS = (
    "model_max_length", "max_sequence_length", "max_position_embeddings", "n_positions",
    "max_seq_len", "seq_length", "n_ctx",
)  # fmt: skip
WITHOUT_POSITIONS = ("t5", "mt5", "umt5", "mamba", "falcon_mamba", "mamba2")
UNSTATED_POSITIONS = 2048  # ALiBi models were trained on as many, T5 on fewer
NO_TOKENIZER_LIMIT = 1e9  # tokenizers without a limit state 1e30


class SpecFamily(Protocol[Spec_co]):
    """A family of any kind of model."""

    @property
    def spec(self) -> Callable[[Config], Spec_co]:
        """Computes the spec of a config; raises `UnsupportedConfig`."""


def read_spec(family: SpecFamily[Spec_co], config: Config) -> Spec_co:
    """Spec of a config. Raises `StartupError` where it is not supported."""
    try:
        return family.spec(config)
    except UnsupportedConfig as error:
        raise StartupError(PHASE, str(error), "use a checkpoint of a supported family") from error


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
    """Longest sequence that model, tokenizer and --rope-factor allow.

    A sliding window is no limit: it bounds what one position sees, not how many there are. A model
    without position limit takes as many tokens as --max-total-tokens says.
    """
    declared = declared_positions(config)
    if declared is None:
        return settings.max_total_tokens or UNSTATED_POSITIONS
    if settings.rope_factor:
        return int(declared * settings.rope_factor)
    limit = read_json(directory / "tokenizer_config.json").get("model_max_length")
    if isinstance(limit, int | float) and 0 < limit < NO_TOKENIZER_LIMIT:
        return min(declared, int(limit))
    return declared


def declared_positions(config: Config) -> int | None:
    """Positions that config.json states, extended by its rotary scaling; None if there is no limit.

    None for relative position biases and state-space models, and where nothing is stated (ALiBi).
    """
    if config.get("model_type") in WITHOUT_POSITIONS:
        return None
    stated = [int(config[key]) for key in POSITION_KEYS if _is_count(config.get(key))]
    return _scaled(config, stated[0]) if stated else None


def _scaled(config: Config, stated: int) -> int:
    """`stated` positions with the model's own rotary scaling.

    YaRN and dynamic scaling state what the model was trained on before it was scaled, which
    `original_max_position_embeddings` may state as well. With linear scaling published configs
    state the scaled length, unless they give the original too. Llama 3's and long rope's always
    state it.
    """
    scaling = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = scaling.get("rope_type", scaling.get("type"))
    factor = scaling.get("factor")
    original = scaling.get("original_max_position_embeddings")
    if kind not in ("linear", "dynamic", "yarn") or not factor:
        return stated
    if not original and kind == "linear":
        return stated
    return max(stated, int((original or stated) * factor))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value > 0


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
