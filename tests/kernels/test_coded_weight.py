"""Quantized matrices in their one form: taking apart, joining, and what they stand for."""

import pytest
import torch
from random_weights import random_weight

from serving.kernels.codebooks import E4M3, E5M2, FP4, INT4, INT8, NF4
from serving.kernels.coded_weight import (
    CodedWeight,
    as_tensor,
    can_join,
    join,
    pack_nibbles,
    unpack_nibbles,
)

BOOKS = [INT4, NF4, FP4, INT8, E4M3, E5M2]


def one_by_one(weight: CodedWeight) -> torch.Tensor:
    """The matrix by its definition, number by number."""
    result = torch.zeros(weight.outputs, weight.inputs, dtype=torch.float64)
    codes = weight.codes if weight.book.bits == 8 else unpack_nibbles(weight.codes)
    for o in range(weight.outputs):
        for j in range(weight.columns):
            column = j if weight.order is None else int(weight.order[j])
            group = j // weight.group_size
            value = weight.book.values[int(codes[o, j])] * float(weight.scales[o, group])
            if weight.offsets is not None:
                value += float(weight.offsets[o, group])
            result[o, column] += value
    return result


def e4m3(byte: int) -> float:
    """A sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if byte >> 7 else size


def e5m2(byte: int) -> float:
    """A sign, 5 bits of exponent (bias 15), 2 of mantissa."""
    exponent, mantissa = byte >> 2 & 31, byte & 3
    size = mantissa / 4 * 2.0**-14 if exponent == 0 else (1 + mantissa / 4) * 2.0 ** (exponent - 15)
    return -size if byte >> 7 else size


def test_codes_are_worth_what_their_types_say() -> None:
    finite = [byte for byte in range(256) if byte & 127 != 127]
    assert [E4M3.values[byte] for byte in finite] == [e4m3(byte) for byte in finite]
    finite = [byte for byte in range(256) if byte >> 2 & 31 != 31]
    assert [E5M2.values[byte] for byte in finite] == [e5m2(byte) for byte in finite]
    assert list(INT8.values) == [byte if byte < 128 else byte - 256 for byte in range(256)]
    assert list(INT4.values) == list(range(-8, 8))


@pytest.mark.parametrize("book", BOOKS, ids=str)
def test_numbers_of_all_codes(book) -> None:  # type: ignore[no-untyped-def]
    codes = torch.arange(2**book.bits, dtype=torch.uint8)
    expected = torch.tensor(book.values)
    torch.testing.assert_close(book.numbers(codes), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("book", BOOKS, ids=str)
@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("order", [None, torch.tensor([5, 3, 0, 1, 7, 2, 6, 4])])
def test_dequantize(book, offsets: bool, order: torch.Tensor | None) -> None:  # type: ignore[no-untyped-def]
    weight = random_weight(book, 6, 8, 4, offsets, order)
    torch.testing.assert_close(
        weight.dequantize().double(), one_by_one(weight), rtol=1e-6, atol=1e-6
    )
    narrow = weight.dequantize(torch.bfloat16)
    assert torch.equal(narrow, weight.dequantize().bfloat16())


def test_an_input_with_several_columns_is_their_sum() -> None:
    order = torch.tensor([0, 1, 2, 0])
    weight = random_weight(INT8, 5, 4, 2, order=order)
    torch.testing.assert_close(
        weight.dequantize().double(), one_by_one(weight), rtol=1e-6, atol=1e-6
    )
    assert weight.dequantize().shape == (5, 3)


def test_joined_matrices_lie_upon_each_other() -> None:
    parts = [random_weight(NF4, rows, 16, 8) for rows in (3, 1, 4)]
    whole = join(parts)
    expected = torch.cat([part.dequantize() for part in parts])
    assert torch.equal(as_tensor(whole, torch.float32), expected)
    assert join(parts[:1]) is parts[0]


def test_joined_matrices_may_have_offsets_or_not() -> None:
    parts = [random_weight(INT4, 2, 16, 8, offsets) for offsets in (False, True)]
    whole = join(parts)
    assert torch.equal(
        as_tensor(whole, torch.float32), torch.cat([part.dequantize() for part in parts])
    )


def test_what_cannot_be_one_matrix() -> None:
    first = random_weight(INT4, 2, 16, 8)
    order = torch.randperm(16)
    others = [
        random_weight(NF4, 2, 16, 8),
        random_weight(INT4, 2, 16, 4),
        random_weight(INT4, 2, 16, 8, order=order),
        random_weight(INT4, 2, 32, 8),
        random_weight(INT4, 2, 16, 8, quantizes_activations=True),
        torch.ones(2, 16),
    ]
    assert not any(can_join([first, other]) for other in others)
    assert not any(can_join([other, first]) for other in others)
    assert can_join([first, random_weight(INT4, 5, 16, 8, offsets=True)])
    assert can_join([others[2], random_weight(INT4, 3, 16, 8, order=order.clone())])
    assert not can_join([others[2], random_weight(INT4, 3, 16, 8, order=order.flip(0))])


@pytest.mark.parametrize("offsets", [False, True])
def test_rows_in_another_order(offsets: bool) -> None:
    weight = random_weight(INT4, 6, 16, 8, offsets)
    turned = weight.map_rows(lambda rows: rows[[4, 0, 5]])
    assert torch.equal(turned.dequantize(), weight.dequantize()[[4, 0, 5]])


def test_sizes() -> None:
    weight = random_weight(INT4, 6, 16, 8, offsets=True)
    assert (weight.outputs, weight.columns, weight.group_size) == (6, 16, 8)
    assert weight.num_bytes == 6 * 16 // 2 + 2 * 6 * 2 * 4


def test_nibbles() -> None:
    codes = torch.tensor([[1, 2, 3, 15]], dtype=torch.uint8)
    assert pack_nibbles(codes).tolist() == [[0x21, 0xF3]]
    assert torch.equal(unpack_nibbles(pack_nibbles(codes)), codes)
