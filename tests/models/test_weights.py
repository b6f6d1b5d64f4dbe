"""Reading checkpoints: slices, dtype, and every fault named before anything is loaded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serving.errors import StartupError
from serving.models.spec import WeightNames
from serving.models.weights import Checkpoint

CPU = torch.device("cpu")
NAMES = WeightNames()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_file({"a.weight": torch.arange(12.0).view(4, 3)}, tmp_path / "model-1.safetensors")
    save_file({"b.weight": torch.ones(5)}, tmp_path / "model-2.safetensors")
    return tmp_path


def test_rows_and_columns_are_slices(directory: Path) -> None:
    checkpoint = Checkpoint(directory, torch.float32, CPU)
    assert checkpoint.rows("a.weight", 1, 3).tolist() == [[3, 4, 5], [6, 7, 8]]
    assert checkpoint.columns("a.weight", 2, 3).flatten().tolist() == [2, 5, 8, 11]


def test_tensors_are_converted_to_the_models_dtype(directory: Path) -> None:
    assert Checkpoint(directory, torch.bfloat16, CPU).vector("b.weight").dtype is torch.bfloat16


def test_complete_checkpoint_passes(directory: Path) -> None:
    expected = {"a.weight": (4, 3), "b.weight": (5,)}
    Checkpoint(directory, torch.float32, CPU).check(expected, NAMES)


def test_missing_tensors_are_named(directory: Path) -> None:
    expected = {"a.weight": (4, 3), "c.weight": (1,), "d.weight": (1,)}
    with pytest.raises(StartupError, match=r"2 of 3 tensors are missing: c\.weight, d\.weight"):
        Checkpoint(directory, torch.float32, CPU).check(expected, NAMES)


def test_wrong_shape_is_named_with_both_shapes(directory: Path) -> None:
    with pytest.raises(StartupError, match=r"a.weight is \(4, 3\), config.json implies \(4, 4\)"):
        Checkpoint(directory, torch.float32, CPU).check({"a.weight": (4, 4)}, NAMES)


def test_unused_tensors_are_logged(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    Checkpoint(directory, torch.float32, CPU).check({"a.weight": (4, 3)}, NAMES)
    assert "1 tensors are not used: b.weight" in caplog.text


def test_truncated_file_is_named(directory: Path) -> None:
    path = directory / "model-2.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StartupError, match=r"model-2\.safetensors is not a readable safetensors"):
        Checkpoint(directory, torch.float32, CPU)
