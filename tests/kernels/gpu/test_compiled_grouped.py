"""The product with all experts compiled for GPUs that are not here, and without a look at them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from serving.kernels.codebooks import INT4, INT8, NF4, Codebook
from serving.kernels.expert_matmul import GroupedExperts
from serving.kernels.gpu import tiles
from serving.kernels.gpu.tiles import Tile
from serving.kernels.stacked_weight import StackedWeight
from serving.kernels.torch_ops import TorchOps
from serving.layers.moe import MoeMlp, Router
from serving.layers.parallel import SINGLE

pytest.importorskip("triton")
from gpu_build import POINTERS, build

from serving.kernels.gpu import expert_tiles, grouped_matmul, row_codes
from serving.kernels.gpu.coded_matmul import shared_run
from serving.kernels.gpu.grouped_matmul import TritonGroupedMatmul

EXPERTS, CHOSEN = 128, 8
META = torch.device("meta")


def build_grouped(
    capability: int,
    tile: Tile,
    dtype: torch.dtype,
    book: Codebook | None = None,
    group: int = 0,
    rounds: bool = False,
) -> str:
    """`book` None: plain weights; `rounds`: both sides are integers of 8 bits."""
    pointer = POINTERS[dtype]
    types = {
        "x": "*i8" if rounds else pointer, "row_scales": "*fp32", "codes": "*u8",
        "scales": "*fp32", "offsets": "*fp32", "values": "*fp32", "order": "*i64",
        "ends": "*i32", "factors": "*fp32", "y": pointer,
    }  # fmt: skip
    constants: dict[str, Any] = {
        "BOOK": "plain", "BITS": 8, "GROUP": group, "RUN": shared_run(group, tile.columns),
        "M": tile.rows, "N": tile.outputs, "K": tile.columns, "E": EXPERTS,
        "TOGETHER": grouped_matmul.TOGETHER, "STAGES": tile.stages,
    }  # fmt: skip
    if book is None:
        types["codes"] = "*i8" if rounds else pointer
    else:
        constants |= {"BOOK": "table" if book is NF4 else book.name, "BITS": book.bits}
    if not rounds:
        constants["row_scales"] = None
        constants |= {"scales": None} if book is None else {}
    constants |= {} if book is INT4 else {"offsets": None}
    constants |= {} if book is NF4 else {"values": None}
    return build(
        grouped_matmul._grouped_kernel, capability, types, constants,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _cold_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize(
    "tile", [tile for _, tile in tiles.EXPERTS_HALF], ids=lambda tile: tile.rows
)
@pytest.mark.parametrize(
    ("capability", "book", "dtype", "group"),
    [
        (80, INT4, torch.bfloat16, 128), (89, NF4, torch.float16, 64),
        (90, None, torch.bfloat16, 0),
    ],
    ids=["8.0-int4", "8.9-nf4", "9.0-plain"],
)  # fmt: skip
def test_compiled_for_half_precision(
    capability: int, book: Codebook | None, dtype: torch.dtype, group: int, tile: Tile
) -> None:
    ptx = build_grouped(capability, tile, dtype, book, group)
    assert ("mma" in ptx) == (tile.rows > 1)
    assert "cp.async" in ptx  # weights are loaded ahead


@pytest.mark.parametrize(
    "tile", [tile for _, tile in tiles.EXPERTS_SINGLE], ids=lambda tile: tile.rows
)
@pytest.mark.parametrize(("book", "group"), [(None, 0), (INT8, 48)], ids=str)
def test_compiled_for_single_precision(book: Codebook | None, group: int, tile: Tile) -> None:
    assert "tf32" not in build_grouped(80, tile, torch.float32, book, group)


@pytest.mark.parametrize("tile", [tile for _, tile in tiles.INT8], ids=lambda tile: tile.rows)
def test_compiled_for_activations_of_8_bits(tile: Tile) -> None:
    assert "s32.s8.s8.s32" in build_grouped(80, tile, torch.bfloat16, rounds=True)


@pytest.mark.parametrize(
    ("size", "warps"), [(expert_tiles.FEW, 4), (expert_tiles.MANY, 8)], ids=["few", "many"]
)
def test_compiled_sorting(size: int, warps: int) -> None:
    types = {"experts": "*i64", "order": "*i64", "ends": "*i32"}
    build(expert_tiles._sort_kernel, 80, types, {"SIZE": size}, num_warps=warps)


def test_compiled_reordering() -> None:
    types = {"x": "*bf16", "order": "*i64", "ends": "*i32", "orders": "*i64", "y": "*bf16"}
    constants = {"E": EXPERTS, "SIZE": expert_tiles.COPIED}
    build(expert_tiles._permute_kernel, 80, types, constants)


class NoLaunch:
    """Stands for a kernel where there is no device."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(type(size) is int and size > 0 for size in grid)
        return lambda *_, **__: None


@pytest.fixture
def _no_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped_matmul, "_grouped_kernel", NoLaunch())
    monkeypatch.setattr(expert_tiles, "_sort_kernel", NoLaunch())
    monkeypatch.setattr(expert_tiles, "_permute_kernel", NoLaunch())
    monkeypatch.setattr(row_codes, "_quantize_kernel", NoLaunch())


def mixture(gate_up: Any, down: Any) -> MoeMlp:
    """On a device that has no memory: reading from it fails."""
    weight = torch.empty(EXPERTS, 64, device=META)
    bias = torch.empty(EXPERTS, device=META)
    router = Router(weight, None, bias, CHOSEN, "sigmoid", True, 2.5, 8, 4, "top2", 0.0)
    return MoeMlp(router, gate_up, down, None, "silu", TorchOps(), SINGLE)


def stack(outputs: int, columns: int, rounds: bool) -> StackedWeight:
    """With the columns of each expert in an order of its own."""
    book, groups = (INT8, 1) if rounds else (INT4, 2)
    size = EXPERTS, outputs
    return StackedWeight(
        book,
        torch.empty(*size, columns * book.bits // 8, dtype=torch.uint8, device=META),
        torch.empty(*size, groups, device=META),
        None,
        columns,
        torch.empty(EXPERTS, columns, dtype=torch.int64, device=META),
        rounds,
    )


@pytest.mark.usefixtures("_no_launches")
@pytest.mark.parametrize("tokens", [1, 4, 300, 4000])
@pytest.mark.parametrize("kind", ["plain", "coded", "rounding"])
def test_the_host_reads_nothing_from_the_device(kind: str, tokens: int) -> None:
    """As a CUDA graph demands it, for the router, the sorting, and both products."""
    dtype = torch.bfloat16
    sizes = (96, 64), (64, 48)
    products = [
        TritonGroupedMatmul(
            torch.empty(EXPERTS, *size, dtype=dtype, device=META)
            if kind == "plain"
            else stack(*size, kind == "rounding"),
            dtype,
        )
        for size in sizes
    ]
    moe = mixture(*products)
    assert moe.is_capturable
    found = moe(torch.empty(tokens, 64, dtype=dtype, device=META))
    assert found.shape == (tokens, 64)
    assert found.dtype == dtype


def test_other_ways_read_from_it() -> None:
    """So that the test above would see it."""
    sizes = (90, 64), (64, 45)
    moe = mixture(*(GroupedExperts(torch.empty(EXPERTS, *size, device=META)) for size in sizes))
    assert not moe.is_capturable
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        moe(torch.empty(4, 64, device=META))
