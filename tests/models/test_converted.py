"""Where converted weights are kept, and the child process that makes them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from serving.errors import StartupError
from serving.models import converted
from serving.models.converted import has_safetensors, with_safetensors


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    torch.save({"a": torch.ones(2)}, directory / "pytorch_model.bin")
    return directory


@pytest.fixture
def read_only(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The superuser may write anywhere, so the answer is replaced, not the permissions."""
    answer = converted._is_writable
    monkeypatch.setattr(
        converted, "_is_writable", lambda path, anybodys: path != model and answer(path, anybodys)
    )
    return model


def test_weights_are_converted_beside_the_pickled_ones(model: Path) -> None:
    assert with_safetensors(model, None) == model
    assert (model / "model.safetensors").is_file()


def test_they_are_converted_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_safetensors(model, None)
    monkeypatch.setattr(converted, "CONVERT", ("false",))
    assert with_safetensors(model, None) == model


def test_a_directory_without_pickled_weights_is_left_alone(tmp_path: Path) -> None:
    assert with_safetensors(tmp_path, None) == tmp_path


def test_a_read_only_model_is_converted_into_the_cache(read_only: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    target = with_safetensors(read_only, str(cache))
    assert target.parent == cache / "text-generation-serving"
    assert (target / "config.json").read_text() == "{}"
    assert has_safetensors(target)
    assert not has_safetensors(read_only)
    assert with_safetensors(read_only, str(cache)) == target


def test_other_weights_are_another_conversion(read_only: Path, tmp_path: Path) -> None:
    first = with_safetensors(read_only, str(tmp_path / "cache"))
    torch.save({"a": torch.zeros(3)}, read_only / "pytorch_model.bin")
    assert with_safetensors(read_only, str(tmp_path / "cache")) != first


def test_a_conversion_that_was_killed_between_its_moves_is_made_again(model: Path) -> None:
    (model / "pytorch_model.bin").unlink()
    for number in (1, 2):
        path = model / f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({f"a{number}": torch.ones(2)}, path)
    with_safetensors(model, None)
    second = model / "model-00002-of-00002.safetensors"
    second.unlink()
    assert not has_safetensors(model)
    with_safetensors(model, None)
    assert second.is_file()


def test_the_childs_refusal_is_ours(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"nothing")
    with pytest.raises(StartupError) as caught:
        with_safetensors(model, None)
    assert caught.value.phase == "conversion"
    assert "pytorch_model.bin" in caught.value.cause
    assert caught.value.remedy.startswith("use a safetensors checkpoint")


def test_a_child_that_dies_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converted, "CONVERT", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(StartupError, match="exit code 3"):
        with_safetensors(model, None)


def test_the_command_converts_and_says_where(model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [*converted.CONVERT, str(model), "--output", str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"the converted weights are in {tmp_path / 'out'}" in done.stdout
    assert has_safetensors(tmp_path / "out")


def test_the_command_ends_with_its_parent(model: Path) -> None:
    done = subprocess.run(
        [*converted.CONVERT, str(model), "--parent", "1"], capture_output=True, check=False
    )
    assert done.returncode == 1
    assert not has_safetensors(model)
