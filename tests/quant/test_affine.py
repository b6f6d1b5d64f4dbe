"""Words of small integers, groups of inputs in any order, and zero points."""

import random

import numpy as np
import pytest
import torch

from serving.quant.affine import PADDED_GROUP, affine_weight, arrange, count_groups
from serving.quant.packing import unit_range, unpack, values_of_unit, words_of_unit


def one_word_stream(values: list[int], bits: int) -> list[int]:
    """Values as one number, low first, cut into 32-bit words with a sign."""
    whole = sum(value << (bits * place) for place, value in enumerate(values))
    words = [(whole >> (32 * i)) & 0xFFFFFFFF for i in range(len(values) * bits // 32)]
    return [word - (1 << 32) if word >> 31 else word for word in words]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_unpack(bits: int) -> None:
    source = random.Random(bits)
    rows = [[source.randrange(2**bits) for _ in range(96)] for _ in range(5)]
    words = torch.tensor([one_word_stream(row, bits) for row in rows], dtype=torch.int32)
    assert unpack(words, bits).tolist() == rows
    assert unpack(words.T.contiguous().T, bits).tolist() == rows  # whatever the strides


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("wanted", [(0, 96), (1, 2), (32, 64), (31, 33), (40, 56)])
def test_a_range_is_in_its_words(bits: int, wanted: tuple[int, int]) -> None:
    values = list(np.random.default_rng(bits).integers(0, 2**bits, 96).tolist())
    words = torch.tensor(one_word_stream(values, bits), dtype=torch.int32)
    start, stop = unit_range(*wanted, bits)
    first = start // words_of_unit(bits) * values_of_unit(bits)
    own = unpack(words[start:stop], bits).tolist()
    assert own[wanted[0] - first : wanted[1] - first] == values[slice(*wanted)]
    assert stop - start <= -(-(wanted[1] - wanted[0]) * bits // 32) + 2 * words_of_unit(bits)


def test_groups_are_counted() -> None:
    assert [count_groups(96, size) for size in (-1, 96, 48, 64, 128)] == [1, 1, 2, 2, 1]


def check(group_of: torch.Tensor) -> tuple[torch.Tensor | None, int]:
    """Whatever the arrangement: every input is there once, in a column of its group."""
    columns, groups, is_filled = arrange(group_of)
    total = len(group_of) if columns is None else len(columns)
    size, rest = divmod(total, len(groups))
    assert rest == 0
    wide = groups.repeat_interleave(size)
    if columns is None:
        assert torch.equal(wide, group_of)
        return None, size
    inputs = columns[~is_filled]
    assert torch.equal(inputs.sort().values, torch.arange(len(group_of)))
    assert torch.equal(wide[~is_filled], group_of[inputs])
    return columns, size


@pytest.mark.parametrize(
    ("lengths", "size"),
    [([32, 32, 32], 32), ([96], 96), ([7], 7), ([16, 32, 32, 16], 16), ([8, 40, 40, 8], 8)],
)
def test_neighbours_stay_where_they_are(lengths: list[int], size: int) -> None:
    group_of = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)) + 5
    assert check(group_of) == (None, size)


@pytest.mark.parametrize("lengths", [[6, 32, 10], [1, 32, 32], [4, 4], [12, 24]])
def test_groups_that_are_cut_too_small_are_filled_up(lengths: list[int]) -> None:
    group_of = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    columns, size = check(group_of)
    assert columns is not None
    assert size == PADDED_GROUP


@pytest.mark.parametrize("seed", range(8))
def test_any_order(seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    whole = torch.arange(8).repeat_interleave(16)[torch.randperm(128, generator=source)]
    columns, size = check(whole)
    assert columns is not None
    assert (len(columns), size) == (128, 16)  # nothing is filled up
    check(whole[: 40 + seed])  # a rank's share


def affine(codes: torch.Tensor, zeros: torch.Tensor, groups: torch.Tensor) -> None:
    scales = torch.rand(zeros.shape) + 0.5
    expected = (codes.float() - zeros[:, groups]) * scales[:, groups]
    weight = affine_weight("name", codes, zeros, scales, groups)
    torch.testing.assert_close(weight.dequantize(), expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("most", [3, 7, 15, 255])
@pytest.mark.parametrize("seed", range(4))
def test_zero_points(most: int, seed: int) -> None:
    torch.manual_seed(seed)
    groups = torch.arange(4).repeat_interleave(16)[torch.randperm(64)]
    codes = torch.randint(most + 1, (6, 64), dtype=torch.uint8)
    affine(codes, torch.randint(most + 1, (6, 4)), groups)
    for zero in (0, 1, most // 2 + 1, most):
        affine(codes, torch.full((6, 4), zero), groups)
        affine(codes[:, :57], torch.full((6, 4), zero), groups[:57])


def test_an_odd_number_of_inputs_takes_bytes() -> None:
    codes = torch.randint(16, (4, 9), dtype=torch.uint8)
    weight = affine_weight("name", codes, torch.full((4, 1), 8), torch.ones(4, 1))
    assert weight.book.bits == 8
    assert torch.equal(weight.dequantize(), codes.float() - 8)
