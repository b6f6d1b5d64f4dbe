"""Blocks of GGUF files against the `gguf` library, and matrices cut by rows and columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from serving.errors import StartupError
from serving.kernels.coded_weight import CodedWeight
from serving.quant.gguf import GgufScheme
from serving.quant.gguf_blocks import BLOCK_TYPES, BlockType
from serving.quant.scheme import Part, Range, Stored

Array = np.ndarray[Any, Any]
ROWS, COLUMNS = 6, 768
# Bytes of a block that are float16 numbers: random ones would be NaN now and then.
NUMBERS = {
    "Q4_0": slice(0, 2), "Q4_1": slice(0, 4), "Q5_0": slice(0, 2), "Q5_1": slice(0, 4),
    "Q8_0": slice(0, 2), "Q4_K": slice(0, 4), "Q5_K": slice(0, 4), "Q6_K": slice(208, 210),
}  # fmt: skip
pytestmark = pytest.mark.parametrize("name", sorted(BLOCK_TYPES))


@dataclass(frozen=True)
class Matrix:
    """Rows of blocks in memory."""

    block_type: BlockType
    data: torch.Tensor
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.data), COLUMNS)

    def read(self, *ranges: Range) -> torch.Tensor:
        raise AssertionError("the scheme reads blocks")

    def blocks(self, rows: Range) -> torch.Tensor:
        return self.data[slice(*rows)]


class Tensors(dict[str, Stored]):
    def slice(self, name: str) -> Stored:
        return self[name]


def random_rows(name: str) -> Array:
    """Every bit pattern that a block can have, but NaN and infinity."""
    kind, generator = BLOCK_TYPES[name], np.random.default_rng(1)
    blocks = generator.integers(0, 256, (ROWS * COLUMNS // kind.elements, kind.size), np.uint8)
    numbers = NUMBERS[name]
    count = (numbers.stop - numbers.start) // 2
    blocks[:, numbers] = generator.normal(size=(len(blocks), count)).astype("f2").view(np.uint8)
    return blocks.reshape(ROWS, -1)


def expected(name: str, rows: Array) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(rows, GGMLQuantizationType[name]))


def tensors(name: str, rows: Array) -> Tensors:
    plain: Mapping[str, Stored] = {}
    return Tensors(plain | {"m.weight": Matrix(BLOCK_TYPES[name], torch.from_numpy(rows))})


def read(name: str, rows: Range, columns: Range) -> CodedWeight:
    part = Part(rows, columns, ROWS, COLUMNS)
    return GgufScheme().read("m", part, tensors(name, random_rows(name)))


def test_a_whole_matrix_is_that_of_the_library(name: str) -> None:
    weight = read(name, (0, ROWS), (0, COLUMNS))
    wanted = expected(name, random_rows(name))
    assert weight.group_size == (16 if name == "Q6_K" else 32)
    assert weight.name == "m.weight"
    torch.testing.assert_close(weight.dequantize(), wanted, rtol=1e-6, atol=1e-4)


def test_what_the_library_quantizes(name: str) -> None:
    if name.endswith("K"):
        pytest.skip("the library only reads these")
    values = np.random.default_rng(2).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    rows = gguf.quants.quantize(values, GGMLQuantizationType[name])
    weight = BLOCK_TYPES[name].decode("m", torch.from_numpy(rows))
    error = (weight.dequantize() - torch.from_numpy(values)).abs().max()
    assert error < {"Q8_0": 0.02, "Q5_0": 0.15, "Q5_1": 0.15}.get(name, 0.3)


@pytest.mark.parametrize("rows", [(0, 1), (2, 5)])
@pytest.mark.parametrize("columns", [(0, 256), (32, 96), (256, 768), (480, 736), (736, 768)])
def test_a_part_of_a_matrix(name: str, rows: Range, columns: Range) -> None:
    weight = read(name, rows, columns)
    wanted = expected(name, random_rows(name))[slice(*rows), slice(*columns)]
    assert weight.inputs == columns[1] - columns[0]
    torch.testing.assert_close(weight.dequantize(), wanted, rtol=1e-6, atol=1e-4)


def test_columns_within_a_group_are_refused(name: str) -> None:
    with pytest.raises(StartupError) as caught:
        read(name, (0, ROWS), (0, 24))
    assert f"tensor m.weight ({name}) cannot be cut at columns 0 and 24" in caught.value.cause
    counts = caught.value.remedy.rpartition(": ")[2].split(", ")
    assert all(COLUMNS // int(n) % (16 if name == "Q6_K" else 32) == 0 for n in counts)
    assert counts[:4] == ["1", "2", "3", "4"]
    assert counts[-1] == ("48" if name == "Q6_K" else "24")


def test_a_scale_that_is_not_finite_is_named(name: str) -> None:
    rows = random_rows(name)
    rows[1, NUMBERS[name]] = 255
    with pytest.raises(StartupError, match=r"tensor m\.weight holds \d+ scales that are NaN"):
        GgufScheme().read("m", Part((0, ROWS), (0, COLUMNS), ROWS, COLUMNS), tensors(name, rows))


def test_what_the_scheme_holds(name: str) -> None:
    @dataclass(frozen=True)
    class Plain:
        dtype: torch.dtype = torch.float32
        shape: tuple[int, ...] = (2, 2)

        def read(self, *ranges: Range) -> torch.Tensor:
            return torch.zeros(2, 2)

    index = tensors(name, random_rows(name))
    index["plain.weight"] = Plain()
    scheme = GgufScheme()
    assert scheme.holds("m", index)
    assert not scheme.holds("plain", index)
    assert not scheme.holds("none", index)
    assert scheme.shapes("m", 4, 32, index) == {"m.weight": (4, 32)}


def test_a_large_matrix_is_unpacked_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.quant.gguf_blocks.CHUNK", 4 * COLUMNS)
    weight = read(name, (0, ROWS), (0, COLUMNS))
    wanted = expected(name, random_rows(name))
    torch.testing.assert_close(weight.dequantize(), wanted, rtol=1e-6, atol=1e-4)
