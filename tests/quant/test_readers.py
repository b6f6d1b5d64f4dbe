"""Every form of a quantized matrix, whole and in every cut: what its writer says it stands for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from quantized_variants import MARLIN, OTHERS, gptq_variants
from safetensors.torch import save_file
from written_matrix import Writer, Written

from serving.kernels.coded_weight import CodedWeight
from serving.models.tensor_file import StoredTensor, open_tensor_file
from serving.quant.detect import quantization_of
from serving.quant.scheme import Part, Scheme

MODULE = "model.layers.0.mlp.down_proj"
OUTPUTS, INPUTS = 64, 96
VARIANTS = gptq_variants() | OTHERS | MARLIN
EXACT = 1e-6  # of the largest weight


@dataclass
class Files:
    """The tensors of one file."""

    tensors: dict[str, StoredTensor]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def slice(self, name: str) -> StoredTensor:
        return self.tensors[name]


@dataclass
class Matrix:
    """One that is written, and the scheme that its config asks for."""

    scheme: Scheme
    files: Files
    written: Written

    def read(self, rows: tuple[int, int], columns: tuple[int, int]) -> CodedWeight:
        outputs, inputs = self.written.weight.shape
        return self.scheme.read(MODULE, Part(rows, columns, outputs, inputs), self.files)


def matrix(writer: Writer, directory: Path, outputs: int, inputs: int) -> Matrix:
    rng = np.random.default_rng(outputs * inputs)
    written = writer(rng.normal(size=(outputs, inputs)).astype(np.float32) * 0.1, rng)
    path = directory / "model.safetensors"
    save_file({f"{MODULE}.{end}": part for end, part in written.tensors.items()}, path)
    scheme = quantization_of({"quantization_config": writer.config}, directory, None).scheme
    assert scheme is not None
    return Matrix(scheme, Files(dict(open_tensor_file(path).tensors)), written)


def cuts(size: int) -> Iterator[tuple[int, int]]:
    """Shares of 1, 2 and 4 ranks, and one that begins and ends anywhere (at an even number)."""
    for ranks in (1, 2, 4):
        width = size // ranks
        yield from ((rank * width, (rank + 1) * width) for rank in range(ranks))
    yield 6, size - 10


@pytest.mark.parametrize("name", VARIANTS)
def test_every_cut_is_what_was_written(name: str, tmp_path: Path) -> None:
    sizes = (128, 256) if name in MARLIN else (OUTPUTS, INPUTS)
    found = matrix(VARIANTS[name], tmp_path, *sizes)
    outputs, inputs = sizes
    assert found.scheme.holds(MODULE, found.files)
    shapes = found.scheme.shapes(MODULE, outputs, inputs, found.files)
    assert {one: found.files.slice(one).shape for one in shapes} == shapes
    largest = np.abs(found.written.weight).max()
    for rows, columns in [
        *((rows, (0, inputs)) for rows in cuts(outputs)),
        *(((0, outputs), columns) for columns in cuts(inputs)),
        ((7, 21), (10, 62)),
    ]:
        weight = found.read(rows, columns)
        expected = found.written.weight[slice(*rows), slice(*columns)]
        assert weight.outputs == expected.shape[0]
        assert weight.inputs == expected.shape[1]
        assert weight.codes.is_contiguous()
        assert weight.scales.is_contiguous()
        error = np.abs(weight.dequantize().numpy() - expected).max()
        assert error <= EXACT * largest, (rows, columns)


def test_columns_of_ragged_blocks_keep_the_plain_order(tmp_path: Path) -> None:
    """Blocks of 40 over 96 inputs are cut into groups of 8; nothing is filled up."""
    weight = matrix(OTHERS["fp8, blocks"], tmp_path, OUTPUTS, INPUTS).read((0, 64), (0, 96))
    assert (weight.order, weight.group_size) == (None, 8)


def test_zero_points_that_are_all_the_same_cost_nothing(tmp_path: Path) -> None:
    variants = gptq_variants()
    for bits in (2, 3, 4, 8):
        name = f"gptq {bits} bits, group 32, symmetric, v1"
        weight = matrix(variants[name], tmp_path, OUTPUTS, INPUTS).read((0, 64), (0, 96))
        assert weight.offsets is None
        assert weight.book.bits == (8 if bits == 8 else 4)


@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        ("int8 activations", True),
        ("int8 static activations, one scale", True),
        ("int8 weights", False),
        ("float, channels", False),
    ],
)
def test_activations_are_rounded_where_the_checkpoint_says_so(
    name: str, rounds: bool, tmp_path: Path
) -> None:
    weight = matrix(OTHERS[name], tmp_path, OUTPUTS, INPUTS).read((0, 64), (0, 96))
    assert weight.quantizes_activations is rounds


def test_a_plain_matrix_beside_is_not_held(tmp_path: Path) -> None:
    save_file({f"{MODULE}.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    files = Files(dict(open_tensor_file(tmp_path / "model.safetensors").tensors))
    for writer in VARIANTS.values():
        config = {"quantization_config": writer.config}
        scheme = quantization_of(config, tmp_path, None).scheme
        assert scheme is not None
        assert not scheme.holds(MODULE, files)
