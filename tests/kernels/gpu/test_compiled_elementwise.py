"""Norms, rotation, activations and filters compiled for GPUs that are not here, without waste.

What they compute is tested by the interpreter: `interpreted/check_*.py`.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from gpu_build import POINTERS, build

from serving.kernels.gpu import gated, greedy, heaviest, norms, rotary
from serving.kernels.torch_ops import ACTIVATIONS

EVERY_GPU = pytest.mark.parametrize("capability", [80, 89, 90])
CASES = pytest.mark.parametrize(
    ("capability", "dtype"), [(80, torch.bfloat16), (89, torch.float16), (90, torch.float32)]
)


@pytest.fixture(autouse=True)
def _cold_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def only_wide_accesses(ptx: str) -> bool:
    """Whether memory is read and written 16 bytes at a time, by every thread."""
    sizes = re.findall(r"\b(?:ld|st)\.global\S*?((?:\.v\d)?\.b\d+)\b", ptx)
    return bool(sizes) and set(sizes) == {".v4.b32"}


# ------------------------------------------------------------------ norms


def build_norm(
    capability: int, dtype: torch.dtype, columns: int, rounds_first: bool, **given: str | None
) -> str:
    """`given`: types of `residual`, `weight` and `bias`, None: not there."""
    size = min(1 << (columns - 1).bit_length(), norms.LONGEST)
    rows = max(1, norms.SHORTEST // size)
    pointer = POINTERS[dtype]
    types = {"x": pointer, "out": pointer, "eps": "fp32"}
    constants: dict[str, Any] = {
        "CENTRED": given["bias"] is not None, "ROUNDS_FIRST": rounds_first, "COLUMNS": columns,
        "ROWS": rows, "N": size,
    }  # fmt: skip
    for name, own in given.items():
        (types if own else constants)[name] = own
    if given["residual"] is not None:  # rows of one head, as triton sees these arguments
        constants |= {"heads": 1}
    else:
        constants["residual_stride"] = 0
    kernel = norms._norm_kernel if columns <= norms.LONGEST else norms._long_norm_kernel
    return build(kernel, capability, types, constants, num_warps=norms.warps(rows * size))


@CASES
@pytest.mark.parametrize("columns", [128, 4096, 5376, 16384, 20480])
def test_rms_norm(capability: int, dtype: torch.dtype, columns: int) -> None:
    pointer = POINTERS[dtype]
    residual = None if columns == 128 else pointer  # heads of 128
    ptx = build_norm(
        capability, dtype, columns, rounds_first=True, residual=residual, weight=pointer, bias=None
    )
    assert only_wide_accesses(ptx)
    assert "fma.rn.f32" not in ptx  # products are rounded
    assert ".local" not in ptx


@CASES
def test_other_norms(capability: int, dtype: torch.dtype) -> None:
    pointer = POINTERS[dtype]
    for columns in (4096, 20480):
        build_norm(
            capability, dtype, columns, False, residual=pointer, weight=pointer, bias=pointer
        )
        build_norm(capability, dtype, columns, False, residual=None, weight="*fp32", bias=None)


# ------------------------------------------------------------------ rotation and the KV cache


def build_rotary(capability: int, dtype: torch.dtype, form: str, dim: int, half: int) -> str:
    """Of a layer with 32 query heads and 8 of keys and of values."""
    stored = STORED.get(form, POINTERS[dtype])
    width = 1 << (dim - 1).bit_length()
    types = {
        "rows": POINTERS[dtype], "slots": "*i64", "keys": stored, "values": stored,
        "key_scales": "*fp32", "value_scales": "*fp32",
        "cos": "*fp32", "sin": "*fp32",
    }  # fmt: skip
    constants: dict[str, Any] = {
        "QUERIES": 32, "KV_HEADS": 8, "HEADS": 48, "DIM": dim, "HALF": half, "BLOCK_SIZE": 16,
        "FORMAT": form, "LARGEST": torch.finfo(dtype).max,
        "B": max(1, rotary.NUMBERS // width), "D": width,
    }  # fmt: skip
    missing = [] if form != "plain" else ["key_scales", "value_scales"]
    if half == 0:
        missing += ["cos", "sin"]
        constants["angle_stride"] = 0
    for name in missing:
        constants[name] = None
        del types[name]
    return build(rotary._rotate_and_write_kernel, capability, types, constants)


STORED = {"e4m3": "*u8", "e5m2": "*u8", "int8": "*i8"}


@CASES
@pytest.mark.parametrize(
    ("form", "dim", "half"),
    [
        ("plain", 128, 64), ("e4m3", 128, 64), ("e5m2", 96, 16), ("int8", 80, 16),
        ("plain", 576, 0), ("int8", 576, 0),
    ],
)  # fmt: skip
def test_rotation_and_write(
    capability: int, dtype: torch.dtype, form: str, dim: int, half: int
) -> None:
    ptx = build_rotary(capability, dtype, form, dim, half)
    assert "fma.rn.f32" not in ptx  # products are rounded
    assert ".ftz" not in ptx  # tiny numbers have codes too
    assert "cvt.rn.satfinite" not in ptx  # which old GPUs lack
    assert ("div.rn.f32" in ptx) == (form != "plain")
    reads = re.findall(r"\bld\.global\S*?((?:\.v\d)?\.b\d+)\b", ptx)
    assert reads.count(".v4.b32") >= (4 if half else 1)
    assert set(reads) <= {".v4.b32", ".b64", ".b32"}  # 16 bytes; or one slot, position, scale
    assert ".local" not in ptx


def test_heads_are_turned_without_a_cache() -> None:
    constants: dict[str, Any] = dict.fromkeys(
        ("slots", "keys", "values", "key_scales", "value_scales")
    )
    constants |= {
        "QUERIES": 16, "KV_HEADS": 0, "HEADS": 16, "DIM": 64, "HALF": 32, "BLOCK_SIZE": 1,
        "FORMAT": "plain", "LARGEST": torch.finfo(torch.bfloat16).max, "B": 16, "D": 64,
    }  # fmt: skip
    types = {"rows": "*bf16", "cos": "*fp32", "sin": "*fp32"}
    assert only_wide_accesses(build(rotary._rotate_and_write_kernel, 80, types, constants))


# ------------------------------------------------------------------ activations and sampling


@CASES
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated(capability: int, dtype: torch.dtype, activation: str) -> None:
    types = dict.fromkeys(("gate_up", "out"), POINTERS[dtype])
    constants = {"ACTIVATION": activation, "N": gated.NUMBERS}
    ptx = build(gated._gated_kernel, capability, types, constants, enable_fp_fusion=True)
    assert only_wide_accesses(ptx)


@CASES
def test_greedy(capability: int, dtype: torch.dtype) -> None:
    parts = {"best": "*fp32", "totals": "*fp32", "ids": "*i32"}
    ptx = build(
        greedy._part_kernel, capability, {"logits": POINTERS[dtype], **parts}, {"N": greedy.SPAN}
    )
    assert set(re.findall(r"\bld\.global\S*?((?:\.v\d)?\.b\d+)\b", ptx)) == {".v4.b32"}
    types = {**parts, "row_ids": "*i64", "logprobs": "*fp32"}
    build(greedy._join_kernel, capability, types, {"N": 128}, num_warps=1)


@EVERY_GPU
@pytest.mark.parametrize("kind", ["given", "ones", "likely", "typical"])
def test_filters(capability: int, kind: str) -> None:
    types = dict.fromkeys(("scores", "keys", "weights", "targets"), "*fp32")
    constants: dict[str, Any] = {"KIND": kind, "N": heaviest.SPAN}
    if kind != "given":
        del types["weights"]
        constants |= {"weights": None, "weight_stride": 0}
    if kind == "ones":
        types["targets"] = "*i64"
    ptx = build(heaviest._keep_kernel, capability, types, constants, num_warps=heaviest.WARPS)
    narrow = re.findall(r"\b(?:ld|st)\.global\S*?((?:\.v\d)?\.b(?:32|64))\b", ptx)
    assert sorted(set(narrow)) == [".b64" if kind == "ones" else ".b32", ".v4.b32"]
    assert narrow.count(".v4.b32") == len(narrow) - 1  # all but the target
