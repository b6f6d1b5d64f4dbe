"""Products of few rows against float64, and who serves what the kernel does not."""

import pytest
import torch
import torch.nn.functional as F

from serving.kernels.gpu import row_matmul
from serving.kernels.gpu.row_matmul import (
    COLUMNS,
    MOST_ROWS,
    TILES,
    RowMatmul,
    RowTile,
    padded,
    reason_not,
    row_product,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
EVERY_TILE = pytest.mark.parametrize(
    ("rows", "tile"),
    [(rows, tile) for rows in range(1, MOST_ROWS + 1) for tile in TILES[padded(rows)]],
    ids=lambda each: each.name if isinstance(each, RowTile) else str(each),
)


def tensors(
    rows: int, outputs: int, inputs: int, device: str, dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random x, weight and bias."""
    sizes = ((rows, inputs), (outputs, inputs), (outputs,))
    x, weight, bias = (torch.randn(size, device=device).to(dtype) for size in sizes)
    return x, weight, bias


def check(
    found: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> None:
    """Nothing but the sum is rounded: in float32, then to the type."""
    expected = x.double() @ weight.double().T
    expected += 0 if bias is None else bias.double()
    assert found.dtype == x.dtype
    rounding = torch.finfo(x.dtype).eps / 2
    allowed = rounding * expected.abs() + 1e-5 * expected.square().mean().sqrt()
    assert ((found.double() - expected).abs() <= allowed).all()


@DTYPES
@EVERY_TILE
def test_every_tile(rows: int, tile: RowTile, dtype: torch.dtype, device: str) -> None:
    x, weight, bias = tensors(rows, 19, COLUMNS + 48, device, dtype)
    check(row_product(x, weight, bias, tile), x, weight, bias)
    check(row_product(x, weight, None, tile), x, weight, None)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("outputs", [1, 7, 8, 9])
@pytest.mark.parametrize("inputs", [16, COLUMNS - 16, COLUMNS, 2 * COLUMNS, 3 * COLUMNS + 16])
def test_edges(inputs: int, outputs: int, rows: int, device: str) -> None:
    x, weight, bias = tensors(rows, outputs, inputs, device)
    check(row_product(x, weight, bias, TILES[padded(rows)][0]), x, weight, bias)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_all_tiles_sum_in_the_same_order(rows: int, device: str) -> None:
    x, weight, bias = tensors(rows, 24, 2 * COLUMNS + 32, device)
    products = [row_product(x, weight, bias, tile) for tile in TILES[rows]]
    assert all(torch.equal(products[0], one) for one in products)


def test_a_row_does_not_depend_on_the_others(device: str) -> None:
    x, weight, bias = tensors(4, 24, COLUMNS + 32, device)
    tile = RowTile(8, 1)
    together = row_product(x, weight, bias, tile)
    for rows in (1, 2, 3):
        assert torch.equal(row_product(x[:rows], weight, bias, tile), together[:rows])


def test_numbers_outside_the_tensors_do_not_count(device: str) -> None:
    """Neither those behind the last input nor those of rows and outputs that are not there."""
    inputs, whole = 32, torch.full((64, 32), float("nan"), device=device, dtype=torch.bfloat16)
    x, weight, y = whole[:3], whole[16:21], whole[32:]
    x.normal_()
    weight.normal_()
    check(row_product(x, weight, None, RowTile(8, 1)), x, weight, None)
    assert y.isnan().all()
    assert inputs < COLUMNS


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, RowTile]]:
    """Rows and tiles of the products that our kernel has made."""
    seen: list[tuple[int, RowTile]] = []

    def product(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tile: RowTile
    ) -> torch.Tensor:
        seen.append((len(x), tile))
        return row_product(x, weight, bias, tile)

    monkeypatch.setattr(row_matmul, "row_product", product)
    return seen


@pytest.mark.parametrize("chosen", [(1,), (2,), (1, 4), (1, 2, 4), ()], ids=str)
def test_numbers_of_rows_have_their_tiles(
    chosen: tuple[int, ...], device: str, served: list[tuple[int, RowTile]]
) -> None:
    tiles = {rows: TILES[rows][-1] for rows in chosen}
    x, weight, bias = tensors(9, 16, 64, device)
    matmul = RowMatmul(weight, bias, tiles)
    for rows in range(10):
        torch.testing.assert_close(matmul(x[:rows]), F.linear(x[:rows], weight, bias))
    expected = {1: 1, 2: 2, 3: 4, 4: 4}
    assert served == [(rows, tiles[own]) for rows, own in expected.items() if own in chosen]


def test_rows_that_cannot_be_loaded_at_once_are_torchs(
    device: str, served: list[tuple[int, RowTile]]
) -> None:
    x, weight, bias = tensors(2, 16, 64, device)
    matmul = RowMatmul(weight, bias, {rows: TILES[rows][0] for rows in TILES})
    spaced = torch.randn(2, 128, device=device).to(torch.bfloat16)[:, ::2]
    shifted = torch.randn(65, device=device).to(torch.bfloat16)[1:].view(1, 64)
    for rows in (spaced, shifted):
        assert torch.equal(matmul(rows), F.linear(rows, weight, bias))
    assert served == []
    matmul(x)
    assert [rows for rows, _ in served] == [2]


def test_reasons_against(device: str) -> None:
    _, weight, bias = tensors(1, 32, 64, device)
    assert reason_not(weight, bias) is None
    assert reason_not(weight, None) is None
    assert reason_not(weight.T, None) == "the weights are not contiguous rows"
    assert reason_not(weight[:, :40].contiguous(), None) == "40 inputs are not a multiple of 16"
    shifted = torch.zeros(33, device=device, dtype=torch.bfloat16)[1:]
    assert reason_not(weight, shifted) == "an address is not a multiple of 16"
    shifted = torch.zeros(32 * 64 + 1, device=device, dtype=torch.bfloat16)[1:].view(32, 64)
    assert reason_not(shifted, bias) == "an address is not a multiple of 16"
