"""What the engine reads from a model directory besides weights."""

import json
from pathlib import Path

import pytest

from serving.engine import model_files
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
