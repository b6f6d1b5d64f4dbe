"""Products of few rows compiled for GPUs that are not here: wide loads, many under way, no spills.

What they compute is tested by the interpreter: `interpreted/check_row_matmul.py`.
"""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
import triton
from gpu_build import POINTERS, build

from serving.kernels.gpu import row_matmul
from serving.kernels.gpu.row_matmul import COLUMNS, TILES, VECTOR, WARPS, RowTile

# Of a processor at once, as far as its registers go: by rows; where memory allows no more.
PROGRAMS, COPYING_PROGRAMS = {1: 8, 2: 4, 4: 3}, 4
EVERY_TILE = pytest.mark.parametrize(
    ("rows", "tile"),
    [(rows, tile) for rows, tiles in TILES.items() for tile in tiles],
    ids=lambda each: each.name if isinstance(each, RowTile) else str(each),
)
CASES = pytest.mark.parametrize(
    ("capability", "dtype", "has_bias"),
    [(80, torch.float16, True), (90, torch.bfloat16, False), (90, torch.bfloat16, True)],
    ids=["8.0", "9.0", "9.0-bias"],
)


@pytest.fixture(autouse=True)
def _cold_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def build_rows(
    capability: int, dtype: torch.dtype, has_bias: bool, rows: int, tile: RowTile
) -> str:
    pointer = POINTERS[dtype]
    constants = {
        "M": rows, "N": tile.outputs, "K": COLUMNS, "V": VECTOR, "STAGES": tile.stages,
    } | ({} if has_bias else {"bias": None})  # fmt: skip
    return build(
        row_matmul._row_kernel, capability,
        {"x": pointer, "weight": pointer, "bias": pointer, "y": pointer}, constants,
        num_warps=WARPS, enable_fp_fusion=True,
    )  # fmt: skip


def loop_of(ptx: str) -> str:
    """What is between the label of the only loop and the jump back to it."""
    (label,) = re.findall(r"^(\$L__BB\d+_\d+):[^:]*=>This Inner Loop Header", ptx, re.M)
    behind = ptx[ptx.index(f"{label}:") :]
    found = re.search(rf"bra(?:\.uni)?\s+{re.escape(label)};", behind)
    assert found is not None
    return behind[: found.start()]


def count(instruction: str, ptx: str) -> int:
    return len(re.findall(rf"^\s*(?:@%p\d+ )?{re.escape(instruction)} ", ptx, re.M))


@CASES
@EVERY_TILE
def test_loads_of_16_bytes_and_no_spills(
    rows: int,
    tile: RowTile,
    capability: int,
    dtype: torch.dtype,
    has_bias: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(triton.knobs.nvidia, "dump_ptxas_log", True)
    ptx = build_rows(capability, dtype, has_bias, rows, tile)
    report = capsys.readouterr().out
    assert "0 bytes spill stores, 0 bytes spill loads" in report
    (registers,) = re.findall(r"Used (\d+) registers", report)
    programs = PROGRAMS[rows] if tile.stages == 1 else COPYING_PROGRAMS
    assert int(registers) <= 65536 // (programs * WARPS * 32)
    step = tile.outputs + rows
    if tile.stages == 1:
        loop = loop_of(ptx)
        assert count("ld.global.cg.v4.b32", loop) == tile.outputs  # the weights'
        assert count("ld.global.v4.b32", loop) == rows
        assert "cp.async" not in ptx
    else:
        # Those of a step in the loop, and of the steps before it.
        assert count("cp.async.cg.shared.global", loop_of(ptx)) == step
        assert count("cp.async.cg.shared.global", ptx) == step * tile.stages
        assert (
            len(re.findall(r"cp\.async\.cg\.shared\.global .*, 0x10, ", ptx)) == step * tile.stages
        )


@EVERY_TILE
def test_threads_do_not_meet_in_the_loop(rows: int, tile: RowTile) -> None:
    """But to see that copies to shared memory have arrived."""
    loop = loop_of(build_rows(90, torch.bfloat16, False, rows, tile))
    assert "shfl" not in loop
    assert "st.shared" not in loop
    if tile.stages == 1:
        assert "bar.sync" not in loop
        assert ".shared" not in loop
