"""The proof at start, of the kernel itself: every tile passes, and is served as it was proved."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F

from serving.kernels.gpu import row_choice
from serving.kernels.gpu.row_choice import LINEAR, RowMatmuls, Runs
from serving.kernels.gpu.row_matmul import TILES, RowMatmul, row_product


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_every_tile_is_proved_and_the_fastest_served(
    has_bias: bool,
    dtype: torch.dtype,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(row_choice, "SMALLEST", 1)
    monkeypatch.setattr(row_choice, "SPREAD", 1)
    asked: list[list[str]] = []

    def clock(ways: Mapping[str, Runs]) -> dict[str, float]:
        asked.append(list(ways))
        return {name: 1.0 / place for place, name in enumerate(ways, 1)}  # the last is the fastest

    weight = torch.randn(21, 1072, device=device).to(dtype)
    bias = torch.randn(21, device=device).to(dtype) if has_bias else None
    matmul = RowMatmuls(clock)(weight, bias)
    assert asked == [[LINEAR, *(tile.name for tile in tiles)] for tiles in TILES.values()]
    assert caplog.messages == []  # no warning
    assert isinstance(matmul, RowMatmul)
    x = torch.randn(5, 1072, device=device).to(dtype)
    for rows, tiles in TILES.items():
        assert torch.equal(matmul(x[:rows]), row_product(x[:rows], weight, bias, tiles[-1]))
    assert torch.equal(matmul(x), F.linear(x, weight, bias))
