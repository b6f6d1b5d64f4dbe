"""Triton's kernels without a GPU: run by its interpreter, and compiled for GPUs that are not here.

The interpreter is chosen before triton is imported, for all of a process: hence one of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from serving.kernels.codebooks import E4M3, E5M2, INT4, INT8, NF4, Codebook
from serving.kernels.gpu import tiles
from serving.kernels.gpu.tiles import Tile

pytest.importorskip("triton")
import triton
from gpu_build import POINTERS, build

from serving.kernels.gpu import coded_matmul, int8_matmul, row_codes

INTERPRETED = Path(__file__).parent / "interpreted"


@pytest.mark.skipif(
    triton.__version__.startswith("3.6."), reason="its interpreter is too old for numpy 2"
)
def test_interpreted() -> None:
    files = map(str, INTERPRETED.glob("check_*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *sorted(files)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_engine_needs_no_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import serving.engine.process"
    subprocess.run([sys.executable, "-c", code], check=True)


def build_coded(
    capability: int, book: Codebook, dtype: torch.dtype, tile: Tile, group: int, is_split: bool
) -> str:
    pointer = POINTERS[dtype]
    constants = {
        "BOOK": "table" if book is NF4 else book.name, "BITS": book.bits, "GROUP": group,
        "RUN": coded_matmul.shared_run(group, tile.columns),
        "M": tile.rows, "N": tile.outputs, "K": tile.columns, "STAGES": tile.stages,
    }  # fmt: skip
    if book is not NF4:
        constants["values"] = None
    if book is not INT4:
        constants["offsets"] = None
    if is_split:
        constants["bias"] = None
    if group == 0:
        constants["groups"] = 1  # as triton does with an argument of 1
    return build(
        coded_matmul._row_kernel if tile.rows == 1 else coded_matmul._tile_kernel,
        capability,
        {
            "x": pointer, "codes": "*u8", "scales": "*fp32", "offsets": "*fp32",
            "values": "*fp32", "bias": pointer, "y": "*fp32" if is_split else pointer,
        },
        constants,
        num_warps=tile.warps, enable_fp_fusion=True,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _cold_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("tile", [tile for _, tile in tiles.HALF], ids=lambda tile: tile.rows)
@pytest.mark.parametrize(
    ("capability", "book", "dtype", "group"),
    [(80, INT4, torch.bfloat16, 128), (89, NF4, torch.float16, 64), (90, INT8, torch.bfloat16, 0)],
    ids=["8.0-int4", "8.9-nf4", "9.0-int8"],
)
def test_compiled_for_half_precision(
    capability: int, book: Codebook, dtype: torch.dtype, group: int, tile: Tile
) -> None:
    ptx = build_coded(capability, book, dtype, tile, group, tile.splits)
    assert ("mma" in ptx) == (tile.rows > 1)
    assert "cp.async" in ptx  # loads run ahead of the sums


@pytest.mark.parametrize("tile", [tile for _, tile in tiles.SINGLE], ids=lambda tile: tile.rows)
def test_compiled_for_single_precision(tile: Tile) -> None:
    assert "tf32" not in build_coded(80, INT4, torch.float32, tile, 48, False)


@pytest.mark.parametrize("book", [E4M3, E5M2], ids=str)
def test_compiled_for_gpus_without_fp8(book: Codebook) -> None:
    build_coded(80, book, torch.bfloat16, tiles.tile_for(tiles.HALF, 16), 128, False)


def test_compiled_sum() -> None:
    types = {"sums": "*fp32", "bias": "*bf16", "y": "*bf16"}
    build(coded_matmul._sum_kernel, 80, types, {"SIZE": coded_matmul.SUM_SIZE})


@pytest.mark.parametrize("tile", [tile for _, tile in tiles.INT8], ids=lambda tile: tile.rows)
def test_compiled_product_of_integers(tile: Tile) -> None:
    types = {
        "x": "*i8", "row_scales": "*fp32", "codes": "*i8", "scales": "*fp32", "bias": "*bf16",
        "y": "*bf16",
    }  # fmt: skip
    constants = {"M": tile.rows, "N": tile.outputs, "K": tile.columns}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    assert "s32.s8.s8.s32" in build(int8_matmul._product_kernel, 80, types, constants, **options)
    types["sums"] = "*i32"
    build(int8_matmul._scale_kernel, 80, types, {"SIZE": int8_matmul.SCALE_SIZE})


@pytest.mark.parametrize(
    ("dtype", "pointer", "rounding"),
    [(torch.int8, "*i8", "div.rn.f32"), (torch.float8_e4m3fn, "*fp8e4nv", "cvt.rn.satfinite.e4m3")],
    ids=str,
)
def test_compiled_quantization_of_rows(dtype: torch.dtype, pointer: str, rounding: str) -> None:
    types = {"x": "*bf16", "codes": pointer, "scales": "*fp32"}
    constants = {
        "LARGEST": row_codes.LARGEST[dtype], "ROUNDS": dtype is torch.int8, "K": 4096,
    }  # fmt: skip
    ptx = build(row_codes._quantize_kernel, 89, types, constants, num_warps=8)
    assert rounding in ptx
    assert "fma" not in ptx
