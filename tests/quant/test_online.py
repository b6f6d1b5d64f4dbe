"""Quantizing while loading: against the definitions, and against bitsandbytes' own numbers."""

import numpy as np
import pytest
import torch
from bitsandbytes import functional

from serving.errors import StartupError
from serving.kernels.codebooks import FP4, NF4
from serving.quant import online
from serving.quant.online import QUANTIZERS

FLAGS = sorted(QUANTIZERS)
SHAPES = [(64, 64), (33, 96), (5, 1024), (7, 20)]


def matrix(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(sum(shape))
    return (torch.randn(shape) * 0.1).to(dtype)


def nearest(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Of each value the distance to the nearest number."""
    return np.abs(values[..., None] - numbers).min(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("flag", ["int8", "eetq", "fp8"])
def test_every_number_is_the_nearest(flag: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Brute force: no other code of the book is nearer."""
    given = matrix(shape, dtype)
    weight = QUANTIZERS[flag]("name", given)
    numbers = np.array([value for value in weight.book.values if abs(value) < 1e9])
    scaled = given.double().numpy() / weight.scales.double().numpy()
    distance = np.abs(weight.numbers().double().numpy() - scaled)
    most = 448 if flag == "fp8" else 127
    assert (distance <= nearest(scaled, numbers) + 1e-6 * most).all()
    largest = given.double().abs().amax(1, keepdim=True) / most
    torch.testing.assert_close(weight.scales.double(), largest, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_4_bits_are_what_bitsandbytes_stands_for(kind: str, shape: tuple[int, int]) -> None:
    given = matrix(shape)
    weight = QUANTIZERS[f"bitsandbytes-{kind}"]("name", given)
    packed, state = functional.quantize_4bit(given, blocksize=64, quant_type=kind)
    expected = functional.dequantize_4bit(packed, state)
    torch.testing.assert_close(weight.dequantize(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_4_bits_are_the_nearest(kind: str) -> None:
    """bitsandbytes' borders are rounded to a few digits."""
    given = matrix((64, 64))
    weight = QUANTIZERS[f"bitsandbytes-{kind}"]("name", given)
    numbers = np.array({"nf4": NF4, "fp4": FP4}[kind].values)
    scaled = given.double().numpy() / weight.scales.double().numpy()
    distance = np.abs(weight.numbers().double().numpy() - scaled)
    assert (distance <= nearest(scaled, numbers) + 1e-3).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_8_bits_are_what_bitsandbytes_stands_for(shape: tuple[int, int]) -> None:
    given = matrix(shape)
    weight = QUANTIZERS["bitsandbytes"]("name", given)
    codes, most, _ = functional.int8_vectorwise_quant(given.half())
    expected = functional.int8_vectorwise_dequant(codes, most)
    torch.testing.assert_close(weight.dequantize(), expected.float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("shape", [(130, 96), (200, 20), (70, 64)], ids=str)
def test_pieces_give_what_the_whole_gives(
    flag: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = matrix(shape, torch.bfloat16)
    whole = QUANTIZERS[flag]("name", given)
    monkeypatch.setattr(online, "CHUNK", 1)
    pieces = QUANTIZERS[flag]("name", given)
    assert torch.equal(whole.codes, pieces.codes)
    assert torch.equal(whole.scales, pieces.scales)


@pytest.mark.parametrize("flag", FLAGS)
def test_views_of_a_file_that_are_not_in_order(flag: str) -> None:
    """A transposed matrix, and columns of a wider one."""
    given = matrix((64, 96), torch.float16)
    for view in (given.T, given[:, 32:64]):
        weight, plain = (QUANTIZERS[flag]("name", one) for one in (view, view.contiguous()))
        assert torch.equal(weight.dequantize(), plain.dequantize())


@pytest.mark.parametrize("flag", FLAGS)
def test_rows_of_zeros(flag: str) -> None:
    given = matrix((4, 64))
    given[1:3] = 0
    weight = QUANTIZERS[flag]("name", given).dequantize()
    assert torch.equal(weight[1:3], torch.zeros(2, 64))


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_name(flag: str, value: float) -> None:
    given = matrix((70, 64))
    given[68, 3] = value
    with pytest.raises(StartupError, match=r"tensor model\.up\.weight"):
        QUANTIZERS[flag]("model.up", given)


def test_bits_are_what_is_kept() -> None:
    given = matrix((256, 1024))
    for flag, quantizer in QUANTIZERS.items():
        weight = quantizer("name", given)
        bits = 8 * weight.num_bytes / given.numel()
        assert bits == pytest.approx(quantizer.bits, rel=0.01), flag
