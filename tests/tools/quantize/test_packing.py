"""Packed tensors, read back bit by bit from the definition of the formats."""

import numpy as np
import pytest
import quantized_reader as reader
import torch

from serving.tools.quantize.grid import QuantizedMatrix
from serving.tools.quantize.packing import awq_tensors, chunk, gptq_tensors, pack


def some_matrix(bits: int, inputs: int = 96, outputs: int = 64, group: int = 32) -> QuantizedMatrix:
    generator = torch.Generator().manual_seed(bits)
    groups = inputs // group
    return QuantizedMatrix(
        codes=torch.randint(2**bits, (inputs, outputs), generator=generator).to(torch.uint8),
        scales=torch.rand(groups, outputs, generator=generator).half().float(),
        zeros=torch.randint(1, 2**bits, (groups, outputs), generator=generator).int(),
        group_of=torch.randint(groups, (inputs,), generator=generator).int(),
        bits=bits,
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_is_a_little_endian_stream_of_bits(bits: int) -> None:
    matrix = some_matrix(bits)
    parts = {name: tensor.numpy() for name, tensor in gptq_tensors(matrix).items()}
    assert {name: (str(part.dtype), part.shape) for name, part in parts.items()} == {
        "qweight": ("int32", (96 * bits // 32, 64)),
        "qzeros": ("int32", (3, 64 * bits // 32)),
        "scales": ("float16", (3, 64)),
        "g_idx": ("int32", (96,)),
    }
    for column in range(64):  # with whole numbers of Python, word by word
        stream = sum(
            (int(word) & 0xFFFFFFFF) << (32 * place)
            for place, word in enumerate(parts["qweight"][:, column])
        )
        found = [(stream >> (bits * row)) & (2**bits - 1) for row in range(96)]
        assert found == matrix.codes[:, column].tolist()
    np.testing.assert_array_equal(reader.gptq_zeros(parts["qzeros"], bits), matrix.zeros)
    np.testing.assert_array_equal(reader.gptq_weight(parts, bits), matrix.dequantized())


def test_a_code_of_three_bits_that_lies_in_two_words() -> None:
    codes = torch.zeros(32, 1, dtype=torch.uint8)
    codes[10] = 0b101  # bits 30 to 32
    assert pack(codes, 3).flatten().tolist() == [0b01 << 30, 0b1, 0]


def test_the_highest_bit_makes_a_negative_word() -> None:
    assert pack(torch.full((8, 1), 15, dtype=torch.uint8), 4).item() == -1


def test_awq_interleaves_eight_columns() -> None:
    codes = torch.arange(8, dtype=torch.uint8)[None].repeat(32, 1)
    matrix = QuantizedMatrix(codes, torch.ones(1, 8), codes[:1].int(), torch.zeros(32).int(), 4)
    parts = awq_tensors(matrix)
    # Columns 0, 2, 4, 6, 1, 3, 5, 7 from the lowest nibble up.
    assert parts["qweight"].tolist() == [[0x75316420]] * 32
    assert parts["qzeros"].tolist() == [[0x75316420]]
    assert "g_idx" not in parts


def test_awq_is_read_back() -> None:
    matrix = some_matrix(4)
    parts = {name: tensor.numpy() for name, tensor in awq_tensors(matrix).items()}
    assert (parts["qweight"].shape, parts["qzeros"].shape) == ((96, 8), (3, 8))
    np.testing.assert_array_equal(reader.awq_codes(parts["qweight"]), matrix.codes)
    np.testing.assert_array_equal(reader.awq_codes(parts["qzeros"]), matrix.zeros)


@pytest.mark.parametrize(("bits", "codes", "words"), [(2, 16, 1), (3, 32, 3), (4, 8, 1), (8, 4, 1)])
def test_codes_that_fill_whole_words(bits: int, codes: int, words: int) -> None:
    assert chunk(bits) == (codes, words)
