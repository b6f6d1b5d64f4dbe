"""Pickled weights become safetensors: the same tensors, no code run, all or nothing."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from serving.errors import StartupError
from serving.models import conversion, staging
from serving.models.artefacts import check_is_model
from serving.models.conversion import convert_directory, safetensors_name
from serving.models.weights import Checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text("{}")
    return directory


def left_over(directory: Path) -> list[str]:
    return sorted(
        p.name for p in directory.iterdir() if "safetensors" in p.name or "conv" in p.name
    )


@pytest.mark.parametrize(
    ("name", "converted"),
    [
        ("pytorch_model.bin", "model.safetensors"),
        ("pytorch_model-00001-of-00002.bin", "model-00001-of-00002.safetensors"),
        ("weights.pt", "weights.safetensors"),
        ("torch.pt", "torch.safetensors"),
    ],
)
def test_names_are_those_of_tgi(name: str, converted: str) -> None:
    assert safetensors_name(name) == converted


def test_tensors_are_the_same(model: Path) -> None:
    tensors = {
        "bf16": torch.randn(3, 5).bfloat16(),
        "nan": torch.tensor([float("nan"), 1.0]),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "scalar": torch.tensor(7),
        "half": torch.arange(20.0)[10:],
    }
    torch.save(tensors, model / "pytorch_model.bin")
    convert_directory(model, model)
    converted = load_file(model / "model.safetensors")
    assert converted.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(converted[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert converted["transposed"].is_contiguous()


def test_a_tied_tensor_is_written_once_and_found_under_both_names(model: Path) -> None:
    shared = torch.randn(4, 2)
    torch.save({"shared": shared, "encoder.embed": shared}, model / "pytorch_model.bin")
    convert_directory(model, model)
    with safe_open(model / "model.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["shared"]
        assert file.metadata() == {"format": "pt", "encoder.embed": "shared"}
    checkpoint = Checkpoint(model, torch.float32, torch.device("cpu"))
    assert torch.equal(checkpoint.vector("encoder.embed"), shared)


def test_parts_of_one_storage_are_written_apart(model: Path) -> None:
    storage = torch.arange(8.0)
    torch.save({"first": storage[:6], "second": storage[2:]}, model / "pytorch_model.bin")
    convert_directory(model, model)
    converted = load_file(model / "model.safetensors")
    assert converted["first"].tolist() == [0, 1, 2, 3, 4, 5]
    assert converted["second"].tolist() == [2, 3, 4, 5, 6, 7]


def test_a_state_dict_inside_is_unwrapped(model: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3}, model / "pytorch_model.bin")
    convert_directory(model, model)
    assert list(load_file(model / "model.safetensors")) == ["a"]


def test_files_in_the_format_before_zip(model: Path) -> None:
    torch.save(
        {"a": torch.ones(2)}, model / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    convert_directory(model, model)
    assert load_file(model / "model.safetensors")["a"].tolist() == [1, 1]


def test_several_files_get_an_index(model: Path) -> None:
    for number, name in enumerate("ab", start=1):
        torch.save(
            {name: torch.full((2,), number), "both": torch.zeros(1)},
            model / f"pytorch_model-0000{number}-of-00002.bin",
        )
    convert_directory(model, model)
    index = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    assert index == {
        "a": "model-00001-of-00002.safetensors",
        "both": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }
    checkpoint = Checkpoint(model, torch.float32, torch.device("cpu"))
    assert checkpoint.vector("b").tolist() == [2, 2]


def test_another_directory_becomes_a_whole_checkpoint(model: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, model / "pytorch_model.bin")
    output = tmp_path / "new" / "converted"
    convert_directory(model, output)
    assert sorted(path.name for path in output.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    check_is_model(output)
    assert left_over(model) == []


class Code:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_with_code_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, is_zip: bool
) -> None:
    monkeypatch.chdir(model)
    torch.save({"a": Code()}, model / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(StartupError, match=r"pytorch_model\.bin can run code.*mkdir"):
        convert_directory(model, model)
    assert not (model / "ran").exists()
    assert left_over(model) == []


def test_a_plain_pickle_is_refused(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Code()}, protocol=2))
    with pytest.raises(StartupError, match=r"pytorch_model\.bin"):
        convert_directory(model, model)
    assert not Path("ran").exists()


@pytest.mark.parametrize("keep", [0, 10, 300])
def test_a_truncated_file_is_named(model: Path, keep: int) -> None:
    path = model / "pytorch_model.bin"
    torch.save({"a": torch.ones(200)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StartupError, match=r"pytorch_model\.bin"):
        convert_directory(model, model)
    assert left_over(model) == []


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2)])
def test_a_file_that_holds_no_state_dict(model: Path, content: object) -> None:
    torch.save(content, model / "pytorch_model.bin")
    with pytest.raises(StartupError, match="holds no state dict"):
        convert_directory(model, model)


def test_too_little_space_is_noticed_before(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(200)}, model / "pytorch_model.bin")
    usage = staging.shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StartupError, match=r"has 0\.00 GB of free space, the weights need"):
        convert_directory(model, model)


def test_a_disk_that_fills_up_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        torch.save(
            {f"a{number}": torch.ones(2)}, model / f"pytorch_model-0000{number}-of-00002.bin"
        )
    save = conversion.save_file

    def fills_up(tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        if "a2" in tensors:
            raise OSError(28, "No space left on device")
        save(tensors, path, **options)

    monkeypatch.setattr(conversion, "save_file", fills_up)
    with pytest.raises(StartupError, match=r"cannot write to .*No space left on device"):
        convert_directory(model, model)
    assert left_over(model) == []


def test_whoever_could_read_the_pickled_file_can_read_the_converted_one(model: Path) -> None:
    torch.save({"a": torch.ones(2)}, model / "pytorch_model.bin")
    (model / "pytorch_model.bin").chmod(0o644)
    convert_directory(model, model)
    assert (model / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_what_a_killed_conversion_left_is_removed(model: Path) -> None:
    torch.save({"a": torch.ones(2)}, model / "pytorch_model.bin")
    old, young = model / ".converting-old", model / ".converting-young"
    for path in (old, young):
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"part")
    os.utime(old, (0, 0))
    convert_directory(model, model)
    assert not old.exists()
    assert young.exists()
