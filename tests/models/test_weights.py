"""Reading checkpoints: slices, dtype, and every fault named before anything is loaded."""

import json
import subprocess
import sys
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
    save_file({"a.weight": torch.arange(12.0).view(4, 3)}, tmp_path / "one.safetensors")
    save_file({"b.weight": torch.ones(5)}, tmp_path / "two.safetensors")
    return tmp_path


def opened(directory: Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    return Checkpoint(directory, dtype, CPU)


def test_rows_and_columns_are_slices(directory: Path) -> None:
    checkpoint = opened(directory)
    assert checkpoint.rows("a.weight", 1, 3).tolist() == [[3, 4, 5], [6, 7, 8]]
    assert checkpoint.columns("a.weight", 2, 3).flatten().tolist() == [2, 5, 8, 11]
    assert checkpoint.columns("a.weight", 0, 3).shape == (4, 3)
    assert checkpoint.read("a.weight", (1, 2), (0, 2)).tolist() == [[3, 4]]


def test_a_slice_is_read_when_it_is_asked_for(directory: Path) -> None:
    stored = opened(directory).slice("a.weight")
    assert stored.shape == (4, 3)
    assert stored.read((3, 4)).tolist() == [[9, 10, 11]]


def test_tensors_are_converted_to_the_models_dtype(directory: Path) -> None:
    checkpoint = opened(directory, torch.bfloat16)
    assert checkpoint.vector("b.weight").dtype is torch.bfloat16
    assert checkpoint.main_dtype() is torch.float32


def test_complete_checkpoint_passes(directory: Path) -> None:
    opened(directory).check({"a.weight": (4, 3), "b.weight": (5,)}, NAMES)
    assert "a.weight" in opened(directory)
    assert "c.weight" not in opened(directory)


def test_missing_tensors_are_named(directory: Path) -> None:
    expected = {"a.weight": (4, 3), "c.weight": (1,), "d.weight": (1,)}
    with pytest.raises(StartupError, match=r"2 of 3 tensors are missing: c\.weight, d\.weight"):
        opened(directory).check(expected, NAMES)


def test_wrong_shape_is_named_with_both_shapes(directory: Path) -> None:
    with pytest.raises(StartupError, match=r"a.weight is \(4, 3\), config.json implies \(4, 4\)"):
        opened(directory).check({"a.weight": (4, 4)}, NAMES)


def test_unused_tensors_are_logged(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(directory).check({"a.weight": (4, 3)}, NAMES)
    assert "1 tensors are not used: b.weight" in caplog.text


def test_truncated_file_is_named(directory: Path) -> None:
    path = directory / "two.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StartupError, match=r"two\.safetensors is not a readable safetensors"):
        opened(directory)


def test_a_tensor_in_two_files_is_refused(directory: Path) -> None:
    save_file({"b.weight": torch.zeros(5)}, directory / "three.safetensors")
    with pytest.raises(
        StartupError, match=r"tensor b\.weight is in three\.safetensors and in two\.safetensors"
    ):
        opened(directory)


def test_an_index_decides_which_files_are_read(directory: Path) -> None:
    save_file({"b.weight": torch.zeros(5)}, directory / "three.safetensors")
    index = {"weight_map": {"a.weight": "one.safetensors", "b.weight": "three.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert opened(directory).vector("b.weight").tolist() == [0.0] * 5


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "consolidated.safetensors"])
def test_files_that_hold_other_things_are_left_alone(directory: Path, name: str) -> None:
    save_file({"b.weight": torch.zeros(5)}, directory / name)
    assert opened(directory).vector("b.weight").tolist() == [1.0] * 5


def test_a_tied_matrix_under_the_name_of_the_head(tmp_path: Path) -> None:
    save_file({"lm_head.weight": torch.ones(4, 2)}, tmp_path / "model.safetensors")
    checkpoint = opened(tmp_path)
    checkpoint.check({"model.embed_tokens.weight": (4, 2)}, NAMES)
    assert checkpoint.rows("model.embed_tokens.weight", 0, 1).tolist() == [[1, 1]]


@pytest.mark.parametrize("stored", ["", "base."])
@pytest.mark.parametrize("expected", ["", "base."])
def test_a_prefix_that_is_there_or_not(tmp_path: Path, stored: str, expected: str) -> None:
    """Only the names of the family count; others, such as the head's, never have the prefix."""
    tensors = {f"{stored}a.weight": torch.ones(4, 2), "head.weight": torch.zeros(4, 2)}
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = opened(tmp_path)
    shapes = {f"{expected}a.weight": (4, 2), "head.weight": (4, 2)}
    checkpoint.check(shapes, WeightNames(optional_prefix="base."))
    assert checkpoint.vector(f"{expected}a.weight").tolist() == [[1.0, 1.0]] * 4


def test_an_untied_model_needs_both(tmp_path: Path) -> None:
    save_file({"lm_head.weight": torch.ones(4, 2)}, tmp_path / "model.safetensors")
    expected = {"model.embed_tokens.weight": (4, 2), "lm_head.weight": (4, 2)}
    with pytest.raises(StartupError, match=r"missing: model\.embed_tokens\.weight"):
        opened(tmp_path).check(expected, NAMES)


def test_names_that_a_conversion_left_out(tmp_path: Path) -> None:
    metadata = {"format": "pt", "encoder.embed": "shared"}
    save_file({"shared": torch.ones(2)}, tmp_path / "model.safetensors", metadata=metadata)
    assert opened(tmp_path).vector("encoder.embed").tolist() == [1, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: float, dtype: torch.dtype
) -> None:
    broken = torch.zeros(8, 8, dtype=dtype)
    broken[3, 1:3] = value
    save_file({"bad": broken, "good": torch.ones(8, dtype=dtype)}, tmp_path / "model.safetensors")
    checkpoint = opened(tmp_path)
    checkpoint.rows("good", 0, 8)
    checkpoint.rows("bad", 0, 3)
    assert not caplog.records
    checkpoint.rows("bad", 0, 8)
    assert caplog.messages == ["tensor bad holds 2 NaN or infinite values"]


def test_a_sum_that_overflows_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    large = torch.full((64,), 60000.0, dtype=torch.float16)
    save_file({"large": large}, tmp_path / "model.safetensors")
    opened(tmp_path).vector("large")
    assert not caplog.records


def test_only_the_first_broken_tensors_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = {f"t{i}": torch.full((2,), float("nan")) for i in range(9)}
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = opened(tmp_path)
    for name in tensors:
        checkpoint.vector(name)
    assert len(caplog.messages) == 6
    assert "not named" in caplog.messages[-1]


PEAK = """
import sys
from pathlib import Path
import torch
from serving.models.weights import Checkpoint

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

directory, ranks = Path(sys.argv[1]), int(sys.argv[2])
checkpoint = Checkpoint(directory, torch.bfloat16, torch.device("cpu"))
torch.ones(2**20, dtype=torch.bfloat16).sum()  # threads and their stacks
kept, share, before = [], 0, memory("VmRSS")
for i in range(16):
    for name, dim in (("up", 0), ("down", 1)):
        rows, columns = checkpoint.slice(f"{i}.{name}").shape
        take = checkpoint.columns if dim else checkpoint.rows
        part = take(f"{i}.{name}", 0, (columns if dim else rows) // ranks)
        kept.append(part.clone() if ranks == 1 or not dim else part)  # a view is no copy yet
        share += kept[-1].numel() * 2
print((memory("VmHWM") - before) / share)
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_peak_memory_is_the_ranks_share(tmp_path: Path, ranks: int) -> None:
    """One of two ranks keeps half of each matrix: rows of one kind, columns of the other."""
    matrices = {
        f"{i}.{name}": torch.ones(shape, dtype=torch.bfloat16)
        for i in range(16)
        for name, shape in (("up", (2048, 2048)), ("down", (2048, 2048)))
    }
    save_file(matrices, tmp_path / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), str(ranks)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) < 1.2
