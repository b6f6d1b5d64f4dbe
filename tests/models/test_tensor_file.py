"""Headers of safetensors files: what is read, and every fault that is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serving.errors import StartupError
from serving.models.tensor_file import DTYPES, open_tensor_file


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    """A file of the format, written by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[int], first: int, last: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


@pytest.mark.parametrize("dtype", sorted(set(DTYPES.values()), key=str))
def test_every_dtype_is_read_as_the_formats_library_wrote_it(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    bits = torch.tensor([[1, 0, 1], [0, 0, 1]], dtype=torch.uint8)
    tensor = bits.repeat(1, dtype.itemsize).view(dtype)
    save_file({"before": torch.ones(3, dtype=torch.uint8), "t": tensor}, tmp_path / "m.safetensors")
    stored = open_tensor_file(tmp_path / "m.safetensors").tensors["t"]
    assert (stored.dtype, stored.shape) == (dtype, tuple(tensor.shape))
    assert torch.equal(stored.read().view(torch.uint8), tensor.view(torch.uint8))


def test_ranges_of_leading_dimensions(tmp_path: Path) -> None:
    experts = torch.arange(4 * 5 * 6.0).view(4, 5, 6)
    save_file({"experts": experts}, tmp_path / "m.safetensors")
    stored = open_tensor_file(tmp_path / "m.safetensors").tensors["experts"]
    assert torch.equal(stored.read((1, 3)), experts[1:3])
    assert torch.equal(stored.read((1, 3), (2, 5)), experts[1:3, 2:5])
    assert torch.equal(stored.read((0, 4), (0, 5), (4, 6)), experts[..., 4:6])


def test_parts_beyond_one_page_start_where_they_should(tmp_path: Path) -> None:
    table = torch.arange(3000 * 7, dtype=torch.int32).view(3000, 7)
    save_file({"table": table}, tmp_path / "m.safetensors")
    stored = open_tensor_file(tmp_path / "m.safetensors").tensors["table"]
    assert torch.equal(stored.read((2345, 2999)), table[2345:2999])


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    save_file({"s": torch.tensor(2.5), "e": torch.empty(0, 4)}, tmp_path / "m.safetensors")
    tensors = open_tensor_file(tmp_path / "m.safetensors").tensors
    assert tensors["s"].read().item() == 2.5
    assert tensors["e"].read().shape == (0, 4)


def test_writing_to_a_view_leaves_the_file_alone(tmp_path: Path) -> None:
    save_file({"t": torch.zeros(8)}, tmp_path / "m.safetensors")
    stored = open_tensor_file(tmp_path / "m.safetensors").tensors["t"]
    stored.read().fill_(1)
    assert stored.read().tolist() == [0.0] * 8


def test_metadata(tmp_path: Path) -> None:
    save_file({"t": torch.zeros(1)}, tmp_path / "m.safetensors", metadata={"other": "t"})
    assert open_tensor_file(tmp_path / "m.safetensors").metadata == {"other": "t"}


@pytest.mark.parametrize(
    ("header", "data", "fault"),
    [
        (b"{", b"", "Expecting property name"),
        ([], b"", "no JSON object"),
        ({"t": 1}, b"", "tensor t has no valid"),
        ({"t": {"dtype": "F32"}}, b"", "tensor t has no valid"),
        ({"t": entry("F3", [1], 0, 4)}, b"0000", "unknown type F3"),
        ({"t": entry("F32", [2], 0, 4)}, b"0000", r"shape \(2,\) does not fill bytes 0 to 4"),
        ({"t": entry("F32", [1], -4, 0)}, b"0000", "does not fill"),
        ({"t": entry("F32", [2], 0, 8)}, b"0000", r"it has \d+ of \d+ bytes"),
    ],
)
def test_broken_files(tmp_path: Path, header: object, data: bytes, fault: str) -> None:
    path = raw(tmp_path / "m.safetensors", header, data)
    with pytest.raises(StartupError, match=rf"m\.safetensors is not a readable.*{fault}"):
        open_tensor_file(path)


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 8, (10**7).to_bytes(8, "little")])
def test_files_without_a_header(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(StartupError, match="its header ends beyond"):
        open_tensor_file(path)
