"""Weight-only products against the matrix that the codes stand for, in float64."""

from dataclasses import replace

import pytest
import torch
from random_weights import random_weight

from serving.kernels.codebooks import E4M3, E5M2, FP4, INT4, INT8, NF4, Codebook
from serving.kernels.coded_weight import CodedWeight
from serving.kernels.gpu import tiles
from serving.kernels.gpu.coded_matmul import TritonCodedMatmul, shared_run

# Relative to the norm of the result: weights and results are rounded to the type.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
CUDA = torch.device("cuda")
BOOKS = [INT4, NF4, FP4, INT8, E4M3, E5M2]


def product(
    weight: CodedWeight, rows: int, dtype: torch.dtype = torch.float32, has_bias: bool = True
) -> torch.Tensor:
    """Of random activations, after a comparison with the plain matrix."""
    device = weight.codes.device
    x = torch.randn(rows, weight.inputs, device=device).to(dtype)
    bias = torch.randn(weight.outputs, device=device).to(dtype) if has_bias else None
    found = TritonCodedMatmul(weight, bias, dtype)(x)
    expected = x.double() @ weight.dequantize().double().T
    expected += 0 if bias is None else bias.double()
    assert found.dtype == dtype
    assert (found.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()
    return found


@pytest.mark.parametrize("rows", [1, 2, 65])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("book", BOOKS, ids=str)
def test_every_codebook_and_type(
    book: Codebook, dtype: torch.dtype, rows: int, device: str
) -> None:
    product(random_weight(book, 24, 192, 64, offsets=book is INT4, device=device), rows, dtype)


def test_a_codebook_of_any_256_numbers(device: str) -> None:
    squares = Codebook("squares", 8, tuple((code / 16) ** 2 for code in range(256)))
    product(random_weight(squares, 24, 96, 32, device=device), 3)


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("group", [6, 16, 32, 48, 64, 96, 128, 256, 768])
def test_every_size_of_groups(group: int, rows: int, offsets: bool, device: str) -> None:
    product(random_weight(INT4, 18, 768, group, offsets, device=device), rows)


def test_groups_of_an_odd_number_of_bytes(device: str) -> None:
    product(random_weight(INT8, 18, 75, 5, offsets=True, device=device), 3)


@pytest.mark.parametrize("rows", [1, 16, 17, 64, 66])
@pytest.mark.parametrize(("outputs", "columns"), [(1, 2), (16, 64), (33, 258), (65, 254)])
def test_edges_of_tiles(outputs: int, columns: int, rows: int, device: str) -> None:
    product(random_weight(NF4, outputs, columns, columns, device=device), rows)


def test_more_rows_outputs_and_columns_than_a_tile_has(device: str) -> None:
    weight = random_weight(INT4, 130, 160, 32, offsets=True, device=device)
    product(weight, 129, torch.float16, has_bias=False)


@pytest.mark.parametrize("rows", [1, 5])
def test_columns_in_another_order_some_twice(rows: int, device: str) -> None:
    order = torch.cat([torch.randperm(60), torch.tensor([7, 7, 0, 59])])
    product(random_weight(INT4, 20, 64, 16, offsets=True, order=order, device=device), rows)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("has_bias", [False, True])
def test_split_inputs_give_the_same_sums_each_time(rows: int, has_bias: bool, device: str) -> None:
    weight = random_weight(INT4, 16, 2050, 2050, device=device)
    tile = tiles.tile_for(tiles.SINGLE, rows)
    assert tiles.steps_per_program(tile, 16, 2050, 1) * tile.columns < 2050
    seed = torch.random.get_rng_state()
    first = product(weight, rows, has_bias=has_bias)
    torch.random.set_rng_state(seed)
    assert torch.equal(first, product(weight, rows, has_bias=has_bias))


@pytest.mark.parametrize(("few", "many"), [(2, 16), (17, 64), (65, 130)])
def test_a_row_does_not_depend_on_the_others(few: int, many: int, device: str) -> None:
    matmul = TritonCodedMatmul(random_weight(INT4, 24, 512, 32, device=device), None, torch.float32)
    x = torch.randn(many, 512, device=device)
    assert torch.equal(matmul(x)[:few], matmul(x[:few]))


def test_activations_that_are_not_contiguous(device: str) -> None:
    weight = random_weight(INT4, 20, 64, 32, device=device)
    matmul = TritonCodedMatmul(weight, None, torch.float32)
    x = torch.randn(3, 128, device=device)[:, ::2]
    assert torch.equal(matmul(x), matmul(x.clone(memory_format=torch.contiguous_format)))


def test_no_rows(device: str) -> None:
    matmul = TritonCodedMatmul(random_weight(INT4, 20, 64, 32, device=device), None, torch.float32)
    assert matmul(torch.empty(0, 64, device=device)).shape == (0, 20)


def test_warm_up_runs_every_tile(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matmul = TritonCodedMatmul(random_weight(INT4, 20, 64, 32, device=device), None, torch.float32)
    seen = []
    monkeypatch.setattr(matmul, "_launch", lambda x, bias, y, tile, *others: seen.append(tile))
    matmul.warm_up(torch.float32)
    assert seen == [tile for _, tile in tiles.SINGLE]


def test_columns_that_share_a_scale() -> None:
    assert [shared_run(group, 128) for group in (0, 16, 48, 96, 128, 256, 5)] == [
        128, 16, 16, 32, 128, 128, 1,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("capability", "reason"),
    [((7, 5), "compute capability 7.5 is below 8.0"), ((8, 0), None), ((10, 0), None)],
)
def test_needs_a_gpu_that_is_not_too_old(
    capability: tuple[int, int], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    weight = random_weight(INT4, 20, 64, 32)
    assert TritonCodedMatmul.reason_not(weight, torch.float16, CUDA) == reason


def test_reasons_against() -> None:
    weight = random_weight(INT8, 20, 64, 64)
    reason_not = TritonCodedMatmul.reason_not
    assert reason_not(weight, torch.float16, torch.device("cpu")) == "no kernel for device 'cpu'"
    assert reason_not(weight, torch.float64, CUDA) == "no kernel for torch.float64"
    weight = replace(weight, quantizes_activations=True)
    assert reason_not(weight, torch.float16, CUDA) == "does not quantize activations"
