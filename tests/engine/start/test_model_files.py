"""What the engine reads from a model directory besides weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from serving.engine.start import model_files
from serving.errors import StartupError
from serving.settings import Settings


def write(directory: Path, **files: object) -> Path:
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def test_missing_config_is_a_start_up_error(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"no config\.json"):
        model_files.read_config(tmp_path, Settings())


def test_unreadable_config_is_a_start_up_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StartupError, match=r"config\.json cannot be read"):
        model_files.read_config(tmp_path, Settings())


def test_rope_flags_override_the_config(tmp_path: Path) -> None:
    write(tmp_path, config={"rope_theta": 5e5, "rope_scaling": {"type": "yarn"}})
    config = model_files.read_config(tmp_path, Settings(rope_factor=4.0))
    assert config["rope_parameters"] == {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
    assert config["rope_scaling"] is None


@pytest.mark.parametrize(
    ("tokenizer_limit", "factor", "length"),
    [(None, None, 2048), (512, None, 512), (1e30, None, 2048), (None, 2.0, 4096)],
)
def test_context_is_the_smallest_limit(
    tmp_path: Path, tokenizer_limit: float | None, factor: float | None, length: int
) -> None:
    write(tmp_path, tokenizer_config={"model_max_length": tokenizer_limit})
    config = {"max_position_embeddings": 2048}
    assert model_files.context_length(tmp_path, config, Settings(rope_factor=factor)) == length


# model: what its published config.json states -> the context that its publisher names
PUBLISHED: dict[str, tuple[dict[str, Any], int | None]] = {
    "llama-2": ({"max_position_embeddings": 4096}, 4096),
    "llama-3.1": (
        {
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
            },
        },
        131072,
    ),
    "vicuna-1.5-16k": (
        {
            "max_position_embeddings": 4096,
            "max_sequence_length": 16384,
            "rope_scaling": {"type": "linear", "factor": 4.0},
        },
        16384,
    ),
    "deepseek-coder": (
        {"max_position_embeddings": 16384, "rope_scaling": {"type": "linear", "factor": 4.0}},
        16384,
    ),
    "gemma-3": (
        {
            "max_position_embeddings": 131072,
            "sliding_window": 1024,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        131072,
    ),
    "mistral-7b-0.1": ({"max_position_embeddings": 32768, "sliding_window": 4096}, 32768),
    "qwen-2.5 with yarn": (
        {
            "max_position_embeddings": 32768,
            "rope_scaling": {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
            },
        },
        131072,
    ),
    "qwen-3 with yarn": (
        {
            "max_position_embeddings": 40960,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
            },
        },
        131072,
    ),
    "deepseek-v2": (
        {
            "max_position_embeddings": 163840,
            "rope_scaling": {
                "type": "yarn",
                "factor": 40,
                "original_max_position_embeddings": 4096,
            },
        },
        163840,
    ),
    "internlm2 in llama form": (
        {"max_position_embeddings": 32768, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        65536,
    ),
    "phi-3-mini-128k": (
        {
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
        },
        131072,
    ),
    "command-r": ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072),
    "gpt2": ({"model_type": "gpt2", "n_positions": 1024, "n_ctx": 1024}, 1024),
    "gpt-j": ({"n_positions": 2048}, 2048),
    "opt": ({"max_position_embeddings": 2048}, 2048),
    "mpt-storywriter": ({"model_type": "mpt", "max_seq_len": 65536}, 65536),
    "bloom-560m": ({"model_type": "bloom", "seq_length": 2048}, 2048),
    "bloom": ({"model_type": "bloom", "n_layer": 70}, None),
    "falcon-rw": ({"model_type": "falcon", "alibi": True}, None),
    "t5": ({"model_type": "t5", "n_positions": 512}, None),
    "mamba": ({"model_type": "mamba"}, None),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_positions_of_published_models(model: str) -> None:
    config, positions = PUBLISHED[model]
    assert model_files.declared_positions(config) == positions


def test_a_model_without_limit_takes_what_the_settings_say(tmp_path: Path) -> None:
    config = {"model_type": "t5", "n_positions": 512}
    write(tmp_path, tokenizer_config={"model_max_length": 512})
    assert model_files.context_length(tmp_path, config, Settings()) == 2048
    assert model_files.context_length(tmp_path, config, Settings(max_total_tokens=9000)) == 9000


def test_a_rope_factor_reaches_beyond_the_tokenizers_limit(tmp_path: Path) -> None:
    write(tmp_path, tokenizer_config={"model_max_length": 2048})
    config = {"max_position_embeddings": 2048}
    assert model_files.context_length(tmp_path, config, Settings(rope_factor=2.0)) == 4096


def test_list_in_generation_config_is_the_set_of_end_tokens(tmp_path: Path) -> None:
    write(tmp_path, generation_config={"eos_token_id": [5, 6]}, tokenizer_config={"eos_token": "x"})
    assert model_files.end_token_ids(tmp_path, {"eos_token_id": 1}) == [5, 6]


def test_tokenizers_end_token_wins_over_a_single_id(tmp_path: Path) -> None:
    write(
        tmp_path,
        generation_config={"eos_token_id": 5},
        tokenizer_config={"eos_token": "</s>", "added_tokens_decoder": {"9": {"content": "</s>"}}},
    )
    assert model_files.end_token_ids(tmp_path, {}) == [9]


def test_end_token_is_found_in_tokenizer_json(tmp_path: Path) -> None:
    write(
        tmp_path,
        tokenizer_config={"eos_token": {"content": "<end>"}},
        tokenizer={"added_tokens": [{"id": 3, "content": "<end>"}]},
    )
    assert model_files.end_token_ids(tmp_path, {}) == [3]


def test_config_tells_the_end_token_where_the_tokenizer_does_not(tmp_path: Path) -> None:
    assert model_files.end_token_ids(tmp_path, {"eos_token_id": [1, 2]}) == [1, 2]
    assert model_files.end_token_ids(tmp_path, {}) == []
