"""What a directory holds is told apart, with a remedy for each."""

import json
from pathlib import Path

import pytest

from serving.errors import StartupError
from serving.models.artefacts import check_directory, pickled_files, weight_files

EMPTY_SAFETENSORS = (2).to_bytes(8, "little") + b"{}"  # a valid file with no tensor
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(EMPTY_SAFETENSORS)
    return directory


def with_files(directory: Path, *names: str) -> Path:
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_bytes(EMPTY_SAFETENSORS)
    return directory


def refusal(directory: Path) -> StartupError:
    with pytest.raises(StartupError) as caught:
        check_directory(directory)
    assert caught.value.phase == "model files"
    assert caught.value.remedy
    return caught.value


def test_a_complete_checkpoint(model: Path) -> None:
    check_directory(model)


def test_nothing_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none").cause == f"{tmp_path}/none does not exist"


def test_a_file_is_no_directory(model: Path) -> None:
    error = refusal(model / "config.json")
    assert "is a file" in error.cause
    assert str(model) in error.remedy


def test_an_empty_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path).cause == f"{tmp_path} is empty"


def test_no_config(model: Path) -> None:
    (model / "config.json").unlink()
    assert (
        refusal(model).cause
        == f"{model} has no config.json (found: model.safetensors, tokenizer.json)"
    )


def test_the_model_is_one_directory_further(model: Path) -> None:
    (model.parent / "README.md").write_text("")
    assert str(model) in refusal(model.parent).remedy


def test_no_fast_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert refusal(model).cause == f"{model} has no tokenizer.json"


def test_no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert "has no *.safetensors (found: config.json, tokenizer.json)" in refusal(model).cause


def test_an_adapter_names_its_model(tmp_path: Path) -> None:
    with_files(tmp_path, "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    error = refusal(tmp_path)
    assert "holds a LoRA adapter for org/base" in error.cause
    assert "base model" in error.remedy


def test_an_adapter_with_a_config_is_still_an_adapter(model: Path) -> None:
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    (model / "adapter_config.json").write_text("{}")
    assert "holds a LoRA adapter (" in refusal(model).cause


def test_a_full_model_beside_an_adapter_is_a_model(model: Path) -> None:
    with_files(model, "adapter_model.safetensors")
    (model / "adapter_config.json").write_text("{}")
    check_directory(model)
    assert weight_files(model) == [model / "model.safetensors"]


def test_gguf_files_without_a_config_are_named(tmp_path: Path) -> None:
    with_files(tmp_path, "m-Q4_K_M.gguf", "m-Q8_0.gguf", "model.safetensors")
    assert "holds GGUF files (m-Q4_K_M.gguf, m-Q8_0.gguf)" in refusal(tmp_path).cause


def test_weights_in_the_publishers_own_form(tmp_path: Path) -> None:
    with_files(tmp_path, "consolidated.00.pth", "params.json", "tokenizer.model")
    assert "publisher's own form (consolidated.*)" in refusal(tmp_path).cause


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pointer_in_place_of_a_file(model: Path, name: str) -> None:
    (model / name).write_text(POINTER)
    error = refusal(model)
    assert f"{name} is a Git LFS pointer" in error.cause
    assert "git lfs pull" in error.remedy


@pytest.mark.parametrize("content", [b"", b"\x02", (3).to_bytes(8, "little") + b"{}"])
def test_a_truncated_weight_file(model: Path, content: bytes) -> None:
    (model / "model.safetensors").write_bytes(content)
    cause = refusal(model).cause
    assert f"is not a complete safetensors file ({len(content)} bytes)" in cause


def test_a_shard_that_the_index_names_is_missing(model: Path) -> None:
    weight_map = {"a": "model.safetensors", "b": "model-2.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "1 missing file(s), first model-2.safetensors" in refusal(model).cause


def test_a_shard_is_missing_without_an_index(tmp_path: Path) -> None:
    with_files(tmp_path, "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors")
    with pytest.raises(StartupError, match=r"first model-00002-of-00003\.safetensors"):
        weight_files(tmp_path)


def test_an_unreadable_index(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text("{")
    assert "is not an index of weights" in refusal(model).cause


def test_two_candidates(model: Path) -> None:
    with_files(model, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    error = refusal(model)
    assert "two sets of weights" in error.cause
    assert "model.safetensors" in error.cause
    assert "model-00001-of-00002.safetensors" in error.cause
    assert "index.json" in error.remedy


def test_pickled_weights_without_what_belongs_to_a_training_run(tmp_path: Path) -> None:
    with_files(tmp_path, "pytorch_model.bin", "training_args.bin", "optimizer.bin", "other.bin")
    assert [path.name for path in pickled_files(tmp_path)] == ["pytorch_model.bin"]


def test_pickled_weights_of_other_names(tmp_path: Path) -> None:
    with_files(tmp_path, "weights.pt", "training_args.bin")
    assert [path.name for path in pickled_files(tmp_path)] == ["weights.pt"]
